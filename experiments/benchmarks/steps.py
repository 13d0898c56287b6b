"""One training step of one network, by this project and by its peers, from the same weights on the same batch.

Each contender is a function from a `Case` to a `Contender`. A peer that is not installed raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_vae import VAE, Dims, Estimator, Guide, Prior
from pyro_vae.data import Split
from pyro_vae.estimators import ELBO, IWAE, DReG, Objective
from pyro_vae.guides import Bernoulli as BernoulliGuide
from pyro_vae.guides import DiagonalNormal, InverseAutoregressive
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.precision import Precision, has_products
from pyro_vae.priors import Bernoulli as BernoulliPrior
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path, parameters
from pyro_vae.training.compiled_step import make_step
from pyro_vae.training.optimizers import fuse
from pyro_vae.training.step import Update

CPU = torch.device("cpu")
LR = 1e-3
PSEUDO_INPUTS = 500
PRIORS: dict[str, Callable[[Dims], Prior]] = {"StandardNormal": StandardNormal, "Bernoulli": BernoulliPrior}
GUIDES: dict[str, Callable[..., Guide]] = {
    "DiagonalNormal": DiagonalNormal,
    "InverseAutoregressive": InverseAutoregressive,
    "Bernoulli": BernoulliGuide,
}


@dataclass(frozen=True)
class Case:
    """A network and a batch: one hidden layer of softplus units in encoder and decoder, binary pixels, Adam."""

    x: Tensor
    hidden: int
    latent: int
    bound: Literal["ELBO", "IWAE", "DReG"] = "ELBO"
    K: int = 1
    prior: Literal["StandardNormal", "VampPrior", "Bernoulli"] = "StandardNormal"
    guide: Literal["DiagonalNormal", "InverseAutoregressive", "Bernoulli"] = "DiagonalNormal"

    def __str__(self) -> str:
        """Batch / hidden / latent, and what is not plain."""
        size = f"{len(self.x)}/{self.hidden}/{self.latent}"
        vamp = f" VampPrior({PSEUDO_INPUTS})" if self.prior == "VampPrior" else ""
        flow = f" {self.guide}" if self.guide != "DiagonalNormal" else ""
        return size + (f" {self.bound} K = {self.K}" if self.K > 1 else "") + vamp + flow

    def require_plain(self, who: str) -> None:
        """Raises NotImplementedError for other parts than N(0, I) and the diagonal Gaussian."""
        if (self.prior, self.guide) != ("StandardNormal", "DiagonalNormal"):
            raise NotImplementedError(f"{who} has no such parts")

    @property
    def estimator(self) -> Estimator:
        """The bound, of this project."""
        return {"ELBO": ELBO, "IWAE": IWAE, "DReG": DReG}[self.bound](self.K)

    def vae(self) -> VAE:
        """The same first weights each time."""
        dims = Dims(self.latent, tuple(self.x.shape[1:]))
        network = partial(MLP, hidden=[self.hidden], activation=nn.Softplus)
        with seeded(CPU, "benchmark"):
            prior: Prior = VampPrior(dims, PSEUDO_INPUTS) if self.prior == "VampPrior" else PRIORS[self.prior](dims)
            return VAE(prior, GUIDES[self.guide](dims, network), Bernoulli(dims, network))


class Contender(NamedTuple):
    """A step that trains, and one draw of the loss per datum (nats) at the weights as they are."""

    step: Callable[[], Any]
    loss: Callable[[], float]


def require_products(precision: Precision) -> None:
    """Raises NotImplementedError where the processor would compute them by other means, far more slowly."""
    if not has_products(precision, CPU):
        raise NotImplementedError("this processor has no bfloat16 products")


def ours(
    case: Case, compiled: bool, precision: Precision = "fp32", make: Callable[[], Estimator] | None = None
) -> Contender:
    """This project's step, with the batch gathered from the data by its indices.

    Args:
        case: the network and the batch.
        compiled: whether the step is one graph.
        precision: of matrix products.
        make: makes the estimator; by default that of the case.
    """
    require_products(precision)
    make = make or (lambda: case.estimator)
    vae = case.vae()
    with library_path():
        leaves = [leaf for part in parameters(vae.model, vae.guide, case.x) for leaf in part.values()]
    optimizer = torch.optim.Adam(leaves, lr=LR)
    fuse(optimizer)
    columns = Split(case.x).columns()
    update = Update(vae, make(), Objective(), columns, optimizer, {"both": leaves}, precision=precision)
    step = make_step(update, "on" if compiled else "off", 0, len(case.x))
    index = torch.arange(len(case.x))

    def loss() -> float:
        with library_path(), torch.no_grad():
            return -make().estimate(vae.model, vae.guide, case.x).bound.mean().item()

    taken = 0

    def take() -> Any:
        """As `fit` does within an epoch, where programs are not validated; a graph, which the first two make, runs none."""
        nonlocal taken
        taken += 1
        with nullcontext() if compiled and taken > 2 else library_path():
            return step(index, 1.0, "both", undisturbed=True)

    return Contender(take, loss)


def stock(case: Case, jit: bool = False) -> Contender:
    """Pyro's ``SVI.step`` on the same programs."""
    vae = case.vae()
    pyro.clear_param_store()
    if case.bound == "DReG":
        raise NotImplementedError("Pyro has no DReG")
    many = {"num_particles": case.K, "vectorize_particles": case.K > 1, "max_plate_nesting": 1}
    if case.bound == "IWAE":
        if jit:
            raise NotImplementedError("Pyro has no traced RenyiELBO")
        elbo: Any = pyro.infer.RenyiELBO(alpha=0, **many)
    elif jit:
        elbo = pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True, **many)
    else:
        elbo = pyro.infer.Trace_ELBO(**many)
    svi = pyro.infer.SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": LR}), elbo)
    return Contender(lambda: svi.step(case.x), lambda: svi.evaluate_loss(case.x) / len(case.x))


def by_hand(case: Case, compiled: bool) -> Contender:
    """The loss written out in PyTorch, with PyTorch's fused Adam; ``torch.compile`` takes the loss and its derivatives."""
    case.require_plain("the loss written by hand")
    vae = case.vae()
    encoder, decoder = vae.posterior.get_submodule("network"), vae.likelihood.get_submodule("network")
    offset = vae.likelihood.get_buffer("offset")
    weights = [nn.Parameter(parameter.detach().clone()) for net in (encoder, decoder) for parameter in net.parameters()]
    flat = case.x.flatten(1)

    def forward(x: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3, w4, b4 = weights
        loc, log_scale = (softplus(x @ w1.T + b1) @ w2.T + b2).chunk(2, -1)
        eps = torch.randn(case.K, *loc.shape)
        t = loc + log_scale.exp() * eps
        logits = softplus(t @ w3.T + b3) @ w4.T + b4 + offset.flatten()
        log_px = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_px - 0.5 * (t**2 - eps**2).sum(-1) + log_scale.sum(-1)
        return -(log_w.logsumexp(0) - torch.tensor(float(case.K)).log()).mean()

    if case.bound == "DReG":
        raise NotImplementedError("not written by hand")
    optimizer = torch.optim.Adam(weights, lr=LR, fused=True)
    compute = torch.compile(forward) if compiled else forward

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compute(flat)
        loss.backward()
        optimizer.step()
        return loss

    return Contender(step, lambda: float(compute(flat).detach()))


def numpyro(case: Case) -> Contender:
    """NumPyro's jitted ``SVI.update``."""
    if case.bound == "DReG":
        raise NotImplementedError("NumPyro has no DReG")
    contender: Contender = import_module("benchmarks.numpyro_step").contender(case)
    return contender


def floor(case: Case) -> Contender:
    """The matrix products of a step alone: three for each layer, forward and backward, and two for the first."""
    case.require_plain("the count of products")
    B, K, D, H, d = len(case.x), case.K, case.x[0].numel(), case.hidden, case.latent
    layers = [(B, D, H, False), (B, H, 2 * d, True), (K * B, d, H, True), (K * B, H, D, True)]
    products = []
    for rows, fan_in, fan_out, first_input_too in layers:
        inputs, weight, slopes = torch.randn(rows, fan_in), torch.randn(fan_out, fan_in), torch.randn(rows, fan_out)
        products += [(inputs, weight.T), (slopes.T, inputs)] + ([(slopes, weight)] if first_input_too else [])
    outputs = [torch.mm(left, right) for left, right in products]

    def step() -> None:
        for (left, right), out in zip(products, outputs, strict=True):
            torch.mm(left, right, out=out)

    return Contender(step, lambda: float("nan"))


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "pyro_vae eager": partial(ours, compiled=False),
    "pyro_vae": partial(ours, compiled=True),
    "pyro_vae bf16": partial(ours, compiled=True, precision="bf16"),
    "Pyro SVI": stock,
    "Pyro SVI, JitTrace_ELBO": partial(stock, jit=True),
    "PyTorch by hand": partial(by_hand, compiled=False),
    "PyTorch by hand, torch.compile": partial(by_hand, compiled=True),
    "NumPyro": numpyro,
    "matrix products alone": floor,
}
