"""Training: stochastic variational inference, from a plan to the records of its epochs.

==================== ===========================================================================================
module               what it holds
==================== ===========================================================================================
`plan`               everything that decides how a model is trained: `TrainingPlan`
`loop`               `fit`, the loop over epochs
`step`               a training step, eagerly
`compiled_step`      the same step as one compiled graph
`optimizers`         the optimizer in groups of w and φ
`schedules`          learning rates that move by the epoch or by the step
`callbacks`          objects that are told of each epoch; one lowers temperatures
`watch`              what can be watched of an epoch beside its bound
`checks`             what is checked before training begins
==================== ===========================================================================================
"""

from pyro_vae.training.callbacks import Callback, LowerTemperature
from pyro_vae.training.checks import check_support
from pyro_vae.training.loop import Training, fit
from pyro_vae.training.optimizers import OptimizerFactory
from pyro_vae.training.plan import TrainingPlan
from pyro_vae.training.records import Epoch, Progress
from pyro_vae.training.schedules import BurdaSchedule, ScheduleFactory
from pyro_vae.training.watch import Watch

__all__ = [
    "BurdaSchedule",
    "Callback",
    "Epoch",
    "LowerTemperature",
    "OptimizerFactory",
    "Progress",
    "ScheduleFactory",
    "Training",
    "TrainingPlan",
    "Watch",
    "check_support",
    "fit",
]
