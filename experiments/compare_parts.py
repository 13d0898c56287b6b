"""Compares parts: ``pyro-vae compare-parts`` as a script (see `pyro_vae.app.comparisons.parts`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.comparisons.parts")

if __name__ == "__main__":
    main()
