"""Figures: pure functions from records and arrays to matplotlib figures. Nothing is trained, read or drawn at random here."""

from pyro_vae.figures.comparisons import (
    PARAMETERS,
    Case,
    Curve,
    SNRLine,
    cases,
    convergence,
    cost,
    growth,
    snr,
    timings,
)
from pyro_vae.figures.images import (
    grid,
    latents,
    learning_curves,
    plane,
    reconstructions,
    samples,
    traversals,
)
from pyro_vae.figures.parts import Cloud, against_prior, gaps, side_by_side

__all__ = [
    "PARAMETERS",
    "Case",
    "Cloud",
    "Curve",
    "SNRLine",
    "against_prior",
    "cases",
    "convergence",
    "cost",
    "gaps",
    "grid",
    "growth",
    "latents",
    "learning_curves",
    "plane",
    "reconstructions",
    "samples",
    "side_by_side",
    "snr",
    "timings",
    "traversals",
]
