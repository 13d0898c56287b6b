"""Estimators for discrete latents (see `pyro_vae.estimators`)."""
