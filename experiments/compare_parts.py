"""Compares parts: ``pyro-vae compare-parts`` as a script (see `pyro_vae.app.comparisons.parts`)."""

from pyro_vae.app.comparisons.parts import main

if __name__ == "__main__":
    main()
