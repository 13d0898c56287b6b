"""The application as a module: ``python -m pyro_vae train``."""

from pyro_vae.app.start import main

if __name__ == "__main__":
    main()
