"""Trains a variational autoencoder and reports what it reached: ``pyro-vae train`` as a script (see `pyro_vae.app.train`)."""

from pyro_vae.app.train import main

if __name__ == "__main__":
    main()
