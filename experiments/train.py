"""Trains a variational autoencoder and reports what it reached: ``pyro-vae train`` as a script (see `pyro_vae.app.train`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.train")

if __name__ == "__main__":
    main()
