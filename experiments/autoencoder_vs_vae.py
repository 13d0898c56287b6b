"""What noise and the KL each do: ``pyro-vae autoencoder`` as a script (see `pyro_vae.app.autoencoder`)."""

from functools import partial

from pyro_vae.app.start import run

main = partial(run, "pyro_vae.app.autoencoder")

if __name__ == "__main__":
    main()
