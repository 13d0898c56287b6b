"""Compares estimators: ``pyro-vae compare-estimators`` as a script (see `pyro_vae.app.comparisons.estimators`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.comparisons.estimators")

if __name__ == "__main__":
    main()
