"""The application as a module: ``python -m pyro_vae train``."""

from pyro_vae.app.commands import main

if __name__ == "__main__":
    main()
