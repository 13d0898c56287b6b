"""One HTML page of trained models: ``pyro-vae report`` as a script (see `pyro_vae.app.report.command`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.report.command")

if __name__ == "__main__":
    main()
