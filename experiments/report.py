"""One HTML page of trained models: ``pyro-vae report`` as a script (see `pyro_vae.app.report.command`)."""

from pyro_vae.app.report.command import main

if __name__ == "__main__":
    main()
