"""Compares estimators: ``pyro-vae compare-estimators`` as a script (see `pyro_vae.app.comparisons.estimators`)."""

from pyro_vae.app.comparisons.estimators import main

if __name__ == "__main__":
    main()
