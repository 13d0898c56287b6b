"""Evaluates trained models: ``pyro-vae evaluate`` as a script (see `pyro_vae.app.evaluation.command`)."""

from pyro_vae.app.evaluation.command import main

if __name__ == "__main__":
    main()
