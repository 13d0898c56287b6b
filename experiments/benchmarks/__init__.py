"""What benchmark.py measures: this project and its peers at the same work."""
