"""The application: the command line of this project, ``pyro-vae`` or ``python -m pyro_vae``.

Only this room imports jsonargparse and rich, but for `pyro_vae.runs`, which reads a configuration with the former.
"""
