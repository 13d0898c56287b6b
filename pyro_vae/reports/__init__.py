"""Reports: what is told of a trained model, as metrics and as pictures, and trackers, which pass on what a run tells.

Each is one class, and yours take their place. On the command line they fill the slots ``--metrics``, ``--figures`` and
``--trackers``. `Trained` is what metrics and pictures are given.
"""

from pyro_vae.reports.base import Measured, Metric, Picture, Row, Trained
from pyro_vae.reports.classes import Classes
from pyro_vae.reports.diagnostics import AIS, Bracket, Calibration, Gaps, Surgery
from pyro_vae.reports.metrics import DiscreteModel, LogLikelihood, TestBound
from pyro_vae.reports.pictures import Latents, LearningCurves, Plane, Reconstructions, Samples, Traversals
from pyro_vae.reports.trackers import TensorBoard, Tracker, scalars

__all__ = [
    "AIS",
    "Bracket",
    "Calibration",
    "Classes",
    "DiscreteModel",
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
    "TensorBoard",
    "TestBound",
    "Tracker",
    "Trained",
    "Traversals",
    "scalars",
]
