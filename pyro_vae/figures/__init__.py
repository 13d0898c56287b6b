"""Figures: pure functions from records and arrays to matplotlib figures.

They train no model, read no file and draw no random number.
"""

from pyro_vae.figures.calibration import calibration
from pyro_vae.figures.cases import Case, cases
from pyro_vae.figures.curves import Curve, bounds, convergence, gaps, learning_curves
from pyro_vae.figures.gradients import PARAMETERS, SNRLine, cost, snr
from pyro_vae.figures.latents import Cloud, against_prior, coordinate, latents
from pyro_vae.figures.look import Look, look_of
from pyro_vae.figures.predictions import plane, reconstructions, samples, side_by_side, traversals

__all__ = [
    "PARAMETERS",
    "Case",
    "Cloud",
    "Curve",
    "Look",
    "SNRLine",
    "against_prior",
    "bounds",
    "calibration",
    "cases",
    "convergence",
    "coordinate",
    "cost",
    "gaps",
    "latents",
    "learning_curves",
    "look_of",
    "plane",
    "reconstructions",
    "samples",
    "side_by_side",
    "snr",
    "traversals",
]
