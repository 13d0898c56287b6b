"""A run is a folder: what was asked, what happened, the weights, the versions, the figures.

======================= ====================================================
config.yaml             the resolved command line: ``--config`` takes it back
metrics.jsonl           one `Epoch` a line
result.json             the final evaluation
model.safetensors       weights of the last epoch, with the sizes of the VAE
checkpoint.safetensors  what training goes on from where it was cut
versions.json           of this project and of what it stands on
figures/*.png           pictures
======================= ====================================================

Nothing in it is unpickled, and what it names is found by the rule of `pyro_vae.trust`. The weights carry a digest of themselves
and one of the model's description in ``config.yaml``: what was damaged or changed afterwards is not loaded.
"""

from pyro_vae.runs.folder import build, describe_model, load, save
from pyro_vae.runs.records import read_records
from pyro_vae.runs.run import Run

__all__ = ["Run", "build", "describe_model", "load", "read_records", "save"]
