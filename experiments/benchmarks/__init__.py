"""The insides of scripts: what benchmark.py measures, this project and its peers at the same work, and calibration_power.py."""
