"""The power of the calibration checks against posteriors that are known to be wrong (see `benchmarks.calibration_power`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "benchmarks.calibration_power")

if __name__ == "__main__":
    main()
