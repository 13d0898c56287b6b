"""Calibration of an amortized posterior under its own model: simulated latents among the guide's draws.

=================== =====================================================================================
module              what it holds
=================== =====================================================================================
`simulation`        latents and data drawn from a Pyro model
`ranks`             ranks of the truth among draws, for single latents and for joint quantities
`bands`             whether ranks are uniform: exact p-values and bands of the ECDF, Holm's procedure
`collection`        truths and draws, in batches; importance weights; the references of TARP
`diagnose`          all of it for a model and a guide
`result`            what is found
`words`             what follows from it, in sentences
=================== =====================================================================================
"""

from pyro_vae.evaluate.calibration.diagnose import calibrate
from pyro_vae.evaluate.calibration.result import Calibration, RankCurve

__all__ = ["Calibration", "RankCurve", "calibrate"]
