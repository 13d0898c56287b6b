"""Evaluation of a trained model, or of any Pyro model and guide, from log-probabilities (K, B).

===================== ===========================================================================================
module                what it computes
===================== ===========================================================================================
`importance_sampling` log p(x) of each datum by importance sampling; bits per dimension
`bound`               an estimator's bound over data, with its terms
`predictions`         latents of data, reconstructions, samples
`latent_use`          which latents are in use
`calibration`         whether q(t|x) is the posterior of its own model: ranks, coverage, TARP
`gradients`           mean, variance, signal-to-noise ratio, bias and cost of an estimator's gradient
`statistics`          means with errors, intervals, the jackknife, a fitted line
===================== ===========================================================================================
"""

from pyro_vae.evaluate.bound import DivergedError, Terms, evaluate_bound
from pyro_vae.evaluate.calibration import Calibration, RankCurve, calibrate
from pyro_vae.evaluate.gradients import GROUPS, SIDES, Draws, Moments, draw_gradients, moments
from pyro_vae.evaluate.importance_sampling import bits_per_dim, log_px
from pyro_vae.evaluate.latent_use import active_units, variance_of_means
from pyro_vae.evaluate.predictions import decode, encode, reconstruct, sample
from pyro_vae.evaluate.statistics import (
    Crossed,
    Interval,
    Line,
    Mean,
    crossed,
    fit_line,
    interval,
    interval_of_median,
    mean,
)

__all__ = [
    "GROUPS",
    "SIDES",
    "Calibration",
    "Crossed",
    "DivergedError",
    "Draws",
    "Interval",
    "Line",
    "Mean",
    "Moments",
    "RankCurve",
    "Terms",
    "active_units",
    "bits_per_dim",
    "calibrate",
    "crossed",
    "decode",
    "draw_gradients",
    "encode",
    "evaluate_bound",
    "fit_line",
    "interval",
    "interval_of_median",
    "log_px",
    "mean",
    "moments",
    "reconstruct",
    "sample",
    "variance_of_means",
]
