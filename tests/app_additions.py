"""One of everything that a user may add, as they would write it: each in one file of their own, with no edit elsewhere.

`ADDITIONS` has the text of each file, and `COMMANDS` what is told to the command line. `docs/design.md` lists their lines.
"""

PRIOR = '''
import pyro.distributions as dist
import torch
from pyro_vae import Prior


class Cauchy(Prior):
    """p(t) = ∏ Cauchy(t_j; 0, scale)."""

    def __init__(self, dims, scale: float = 1.0):
        super().__init__(dims)
        self.scale = scale
        self.register_buffer("loc", torch.zeros(dims.latent))

    def forward(self):
        return dist.Cauchy(self.loc, self.scale).to_event(1)
'''
GUIDE = '''
import pyro.distributions as dist
from pyro_vae import Guide
from pyro_vae.networks import MLP


class LogisticGuide(Guide):
    """q(t|x,φ) = ∏ Logistic(t_j; m_j, s_j)."""

    def __init__(self, dims, network=MLP):
        super().__init__(dims)
        self.network = network(dims.seen_shape, (2 * dims.latent,))

    def forward(self, x):
        loc, log_scale = self.network(self.scaled(x)).chunk(2, dim=-1)
        return dist.Logistic(loc, log_scale.exp()).to_event(1)
'''
LIKELIHOOD = '''
import pyro.distributions as dist
from pyro_vae import Likelihood
from pyro_vae.networks import MLP


class Geometric(Likelihood):
    """p(x|t,w) = ∏ Geometric(x_j; p_j(t)), for counts."""

    def __init__(self, dims, network=MLP):
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)

    def forward(self, t):
        return dist.Geometric(logits=self.network(t)).to_event(len(self.dims.x_shape))
'''
NETWORK = '''
from math import prod
from torch import nn
from pyro_vae import Network


class Wide(Network):
    """One hidden layer, for any leading dimensions."""

    def __init__(self, in_shape, out_shape, width: int = 30):
        super().__init__(in_shape, out_shape)
        self.layers = nn.Sequential(nn.Linear(prod(in_shape), width), nn.SiLU(), nn.Linear(width, prod(out_shape)))

    def forward(self, inputs):
        return self.layers(inputs.flatten(-len(self.in_shape))).unflatten(-1, self.out_shape)
'''
ESTIMATOR = '''
from pyro_vae import Estimator


class Tempered(Estimator):
    """The importance-weighted bound, with the gradient of log weights whose differences are tempered."""

    def __init__(self, K: int = 5, power: float = 0.5, max_plate_nesting: int = 1):
        super().__init__(K, max_plate_nesting)
        self.power = power

    def bound(self, draws):
        return draws.log_w.logsumexp(0) - draws.log_w.new_tensor(self.K).log()

    def surrogate(self, draws):
        return ((self.power * draws.log_w.detach()).softmax(0) * draws.log_w).sum(0)
'''
DATA = '''
import torch
from sklearn.datasets import make_moons
from pyro_vae.data import Binarize, Data, Split, make_splits


class TwoMoons(Data):
    """Two half circles in the unit square."""

    def __init__(self, size: int = 500, noise: float = 0.05, valid: int = 50, test: int = 50, binarize: Binarize = "none"):
        self.size, self.noise, self.valid, self.test, self.binarize = size, noise, valid, test, binarize

    def load(self):
        x, y = make_moons(self.size, noise=self.noise, random_state=0)
        x = (x - x.min(0)) / (x.max(0) - x.min(0))
        split = Split(torch.from_numpy(x).float(), torch.from_numpy(y))
        return make_splits(split, valid=self.valid, test=self.test, binarize=self.binarize)
'''
METRIC = '''
from pyro_vae.evaluate import encode, mean
from pyro_vae.reports import Measured, Metric, Row


class Norm(Metric):
    """The mean length of the first latent of the test data."""

    def __init__(self, images: int = 20):
        self.images = images

    def measure(self, trained):
        t = next(iter(encode(trained.model, trained.test(self.images)).values()))
        found = mean(t.flatten(1).norm(dim=1))
        return Measured([Row("length of t", str(found), f"first {self.images}")], {"norm": found.as_dict()})
'''
PICTURE = '''
from pyro_vae.evaluate import sample
from pyro_vae.figures import samples
from pyro_vae.reports import Picture


class Nine(Picture):
    """Nine samples."""

    def draw(self, trained):
        return {"nine": samples(sample(trained.model, 9), trained.look)}
'''
CALLBACK = '''
from pathlib import Path
from pyro_vae.training import Callback


class Log(Callback):
    """A line for each epoch."""

    def __init__(self, file: str = "log.txt"):
        self.file = file

    def on_epoch(self, record, programs):
        with Path(self.file).open("a") as log:
            log.write(f"{record.epoch} {record.valid.bound:.1f} {type(programs).__name__}\\n")
'''
TRACKER = '''
import json
from pathlib import Path
from pyro_vae.reports import Tracker, scalars


class Sheet(Tracker):
    """A line for each epoch, in a file beside the runs."""

    def __init__(self, file: str = "sheet.txt"):
        self.file = Path(file)

    def epoch(self, record):
        with self.file.open("a") as sheet:
            sheet.write(json.dumps({"epoch": record.epoch, **scalars(record.as_dict())}) + "\\n")
'''
SCHEDULE = '''
from torch.optim.lr_scheduler import LambdaLR


class Halving(LambdaLR):
    """Halves the rate every so many steps."""

    moves_by = "step"

    def __init__(self, optimizer, every: int = 10):
        super().__init__(optimizer, lambda step: 0.5 ** (step // every))
'''
MODEL = '''
import pyro
import pyro.distributions as dist
import torch
from pyro_vae import Model
from pyro_vae.guides import DiagonalNormal


class Chain(Model):
    """p(a) p(b|a) p(c|b) p(x|c) with q(c|x) q(b|x) q(a|x): three latents, none of them named t."""

    def __init__(self, dims, prior, guide, likelihood):
        super().__init__(dims)
        self.top, self.likelihood = prior(dims), likelihood(dims)
        self.encoders = torch.nn.ModuleDict({site: guide(dims) for site in "abc"})
        inner = type(dims)(dims.latent, (dims.latent,))
        self.down = torch.nn.ModuleDict({site: DiagonalNormal(inner) for site in "bc"})

    def model(self, x=None, *, n: int = 1):
        for role in ("top", "down", "likelihood"):
            self.register(role, getattr(self, role))
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            a = pyro.sample("a", self.top())
            b = pyro.sample("b", self.down["b"](a))
            c = pyro.sample("c", self.down["c"](b))
            return pyro.sample("x", self.likelihood(c), obs=x)

    def guide(self, x):
        self.register("encoders", self.encoders)
        with pyro.plate("data", len(x), dim=-1):
            for site, encoder in self.encoders.items():
                pyro.sample(site, encoder(x))
'''
ADDITIONS = {
    "prior": ("my_priors", PRIOR, ["--prior", "my_priors.Cauchy", "--prior.scale", "2"]),
    "guide": ("my_guides", GUIDE, ["--guide", "my_guides.LogisticGuide"]),
    "likelihood": ("my_likelihoods", LIKELIHOOD, ["--likelihood", "my_likelihoods.Geometric"]),
    "network": ("my_networks", NETWORK, ["--guide.network", "my_networks.Wide", "--guide.network.width", "20"]),
    "estimator": ("my_estimators", ESTIMATOR, ["--estimator", "my_estimators.Tempered", "--estimator.power", "0.3"]),
    "data set": ("my_data", DATA, ["--data", "my_data.TwoMoons", "--data.size", "300"]),
    "metric": ("my_metrics", METRIC, ["--metrics", "[TestBound, my_metrics.Norm]"]),
    "figure": ("my_pictures", PICTURE, ["--figures", "[LearningCurves, my_pictures.Nine]"]),
    "callback": ("my_callbacks", CALLBACK, ["--callbacks", "[my_callbacks.Log]"]),
    "tracker": ("my_trackers", TRACKER, ["--trackers", "[my_trackers.Sheet]", "--watch", "[rates, gradient_norm]"]),
    "schedule": ("my_schedules", SCHEDULE, ["--schedule", "my_schedules.Halving", "--schedule.every", "20"]),
    "model of latents a, b, c": ("my_models", MODEL, ["--model", "my_models.Chain"]),
}
"""By what is added: the name of the file, its text, and the options that name it."""
