"""Evaluates trained models: ``pyro-vae evaluate`` as a script (see `pyro_vae.app.evaluation`)."""

from pyro_vae.app.evaluation import main

if __name__ == "__main__":
    main()
