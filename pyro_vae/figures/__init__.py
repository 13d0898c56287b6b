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

__all__ = [
    "PARAMETERS",
    "Case",
    "Curve",
    "SNRLine",
    "cases",
    "convergence",
    "cost",
    "grid",
    "growth",
    "latents",
    "learning_curves",
    "plane",
    "reconstructions",
    "samples",
    "snr",
    "timings",
    "traversals",
]
