"""Evaluation of a trained model, or of any Pyro model and guide, from log-probabilities (K, B).

===================== ===========================================================================================
module                what it computes
===================== ===========================================================================================
`importance_sampling` log p(x) of each datum by importance sampling; bits per dimension
`evidence`            what importance weights say about log p(x): its rise, effective sample sizes, k̂
`pareto`              the shape k̂ of the weights' tail, by ArviZ
`annealing`           log p(x) by annealed importance sampling, a bracket of it, the rate-distortion curve
`bound`               an estimator's bound over data, with its terms
`inference_gaps`      where the gap log p(x) - ELBO comes from: approximation, amortization, generalization
`families`            a guide's family for each datum, for `inference_gaps`
`surgery`             mutual information I(x;t), marginal KL, KL and activity per dimension, posterior collapse
`predictions`         latents of data, reconstructions, samples, posterior predictive draws
`latents`             mean, scale and draws of q(t|x,φ); interpolation between data
`exported`            encoder and decoder through ``torch.export``
`latent_use`          which latents are in use, the KL of each dimension
`classes`             probabilities of a discrete latent's values, compared with labels
`calibration`         whether q(t|x) is the posterior of its own model: ranks, coverage, TARP
`gradients`           mean, variance, signal-to-noise ratio, bias and cost of an estimator's gradient
`statistics`          means with errors, intervals, the jackknife, a fitted line
===================== ===========================================================================================
"""

from pyro_vae.evaluate.annealing import Annealed, Annealing, Bracket, RateDistortion, ais, bracket
from pyro_vae.evaluate.bound import DivergedError, Terms, evaluate_bound
from pyro_vae.evaluate.calibration import Calibration, RankCurve, calibrate
from pyro_vae.evaluate.classes import Classified, class_probabilities, classified
from pyro_vae.evaluate.evidence import TRUSTED, Evidence
from pyro_vae.evaluate.exported import export, export_decoder, export_encoder
from pyro_vae.evaluate.families import NoFamilyError
from pyro_vae.evaluate.gradients import GROUPS, SIDES, Draws, Moments, draw_gradients, exact_gradient, moments
from pyro_vae.evaluate.importance_sampling import bits_per_dim, evidence, log_px
from pyro_vae.evaluate.inference_gaps import Gaps, gaps, generalization_gap
from pyro_vae.evaluate.latent_use import active_units, kl_per_dimension, variance_of_means
from pyro_vae.evaluate.latents import Posterior, interpolate, posterior
from pyro_vae.evaluate.predictions import decode, encode, posterior_predictive, reconstruct, sample
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
    needed,
    probability_first,
)
from pyro_vae.evaluate.surgery import Surgery, elbo_surgery

__all__ = [
    "GROUPS",
    "SIDES",
    "TRUSTED",
    "Annealed",
    "Annealing",
    "Bracket",
    "Calibration",
    "Classified",
    "Crossed",
    "DivergedError",
    "Draws",
    "Evidence",
    "Gaps",
    "Interval",
    "Line",
    "Mean",
    "Moments",
    "NoFamilyError",
    "Posterior",
    "RankCurve",
    "RateDistortion",
    "Surgery",
    "Terms",
    "active_units",
    "ais",
    "bits_per_dim",
    "bracket",
    "calibrate",
    "class_probabilities",
    "classified",
    "crossed",
    "decode",
    "draw_gradients",
    "elbo_surgery",
    "encode",
    "evaluate_bound",
    "evidence",
    "exact_gradient",
    "export",
    "export_decoder",
    "export_encoder",
    "fit_line",
    "gaps",
    "generalization_gap",
    "interpolate",
    "interval",
    "interval_of_median",
    "kl_per_dimension",
    "log_px",
    "mean",
    "moments",
    "needed",
    "posterior",
    "posterior_predictive",
    "probability_first",
    "reconstruct",
    "sample",
    "variance_of_means",
]
