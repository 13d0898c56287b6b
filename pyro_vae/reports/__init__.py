"""Reports: what is told of a trained model, as metrics and as pictures. Each is one class, and yours take their place.

`Trained` is what they are given. On the command line they fill the slots ``--metrics`` and ``--figures``.
"""

from pyro_vae.reports.base import Measured, Metric, Picture, Row, Trained
from pyro_vae.reports.diagnostics import AIS, Bracket, Calibration, Gaps, Surgery
from pyro_vae.reports.metrics import LogLikelihood, TestBound
from pyro_vae.reports.pictures import Latents, LearningCurves, Plane, Reconstructions, Samples, Traversals

__all__ = [
    "AIS",
    "Bracket",
    "Calibration",
    "Gaps",
    "Latents",
    "LearningCurves",
    "LogLikelihood",
    "Measured",
    "Metric",
    "Picture",
    "Plane",
    "Reconstructions",
    "Row",
    "Samples",
    "Surgery",
    "TestBound",
    "Trained",
    "Traversals",
]
