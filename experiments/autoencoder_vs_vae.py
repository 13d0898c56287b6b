"""What noise and the KL each do: ``pyro-vae autoencoder`` as a script (see `pyro_vae.app.autoencoder`)."""

from pyro_vae.app.autoencoder import main

if __name__ == "__main__":
    main()
