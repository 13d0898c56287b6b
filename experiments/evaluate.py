"""Evaluates trained models: ``pyro-vae evaluate`` as a script (see `pyro_vae.app.evaluation.command`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.evaluation.command")

if __name__ == "__main__":
    main()
