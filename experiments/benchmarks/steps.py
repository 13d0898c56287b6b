"""One training step of one network, by this project and by its peers, from the same weights on the same batch.

Each contender is a function from a `Case` to a `Contender`. A peer that is not installed raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_vae import VAE, Dims, Estimator
from pyro_vae.data import Split
from pyro_vae.estimators import ELBO, IWAE, DReG
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.objectives import Objective
from pyro_vae.particles import library_path, parameters
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import seeded
from pyro_vae.steps import Precision, Update, make_step
from pyro_vae.training import fuse

CPU = torch.device("cpu")
LR = 1e-3


@dataclass(frozen=True)
class Case:
    """A network and a batch: one hidden layer of softplus units in encoder and decoder, binary pixels, Adam."""

    x: Tensor
    hidden: int
    latent: int
    bound: Literal["ELBO", "IWAE", "DReG"] = "ELBO"
    K: int = 1

    def __str__(self) -> str:
        """Batch / hidden / latent, and the bound."""
        size = f"{len(self.x)}/{self.hidden}/{self.latent}"
        return size if self.K == 1 else f"{size} {self.bound} K = {self.K}"

    @property
    def estimator(self) -> Estimator:
        """The bound, of this project."""
        return {"ELBO": ELBO, "IWAE": IWAE, "DReG": DReG}[self.bound](self.K)

    def vae(self) -> VAE:
        """The same first weights each time."""
        dims = Dims(self.latent, tuple(self.x.shape[1:]))
        network = partial(MLP, hidden=[self.hidden], activation=nn.Softplus)
        with seeded(CPU, "benchmark"):
            return VAE(StandardNormal(dims), DiagonalNormal(dims, network), Bernoulli(dims, network))


class Contender(NamedTuple):
    """A step that trains, and one draw of the loss per datum (nats) at the weights as they are."""

    step: Callable[[], Any]
    loss: Callable[[], float]


def ours(case: Case, compiled: bool, precision: Precision = "fp32") -> Contender:
    """This project's step, with the batch gathered from the data by its indices."""
    vae = case.vae()
    with library_path():
        leaves = [leaf for part in parameters(vae.model, vae.guide, case.x) for leaf in part.values()]
    optimizer = torch.optim.Adam(leaves, lr=LR)
    fuse(optimizer)
    update = Update(vae, case.estimator, Objective(), Split(case.x), optimizer, {"both": leaves}, precision=precision)
    step = make_step(update, "on" if compiled else "off", 0, len(case.x))
    index = torch.arange(len(case.x))

    def loss() -> float:
        with library_path(), torch.no_grad():
            return -case.estimator.estimate(vae.model, vae.guide, case.x).bound.mean().item()

    return Contender(lambda: step(index, 1.0, "both"), loss)


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
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), elbo)
    return Contender(lambda: svi.step(case.x), lambda: svi.evaluate_loss(case.x) / len(case.x))


def by_hand(case: Case, compiled: bool) -> Contender:
    """The loss written out in PyTorch, with PyTorch's fused Adam; ``torch.compile`` takes the loss and its derivatives."""
    vae = case.vae()
    encoder, decoder, offset = (vae.posterior.network, vae.likelihood.network, vae.likelihood.offset)
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
    jax, jnp, npr, dist = map(import_module, ("jax", "jax.numpy", "numpyro", "numpyro.distributions"))
    infer = import_module("numpyro.infer")

    if case.bound == "DReG":
        raise NotImplementedError("NumPyro has no DReG")
    vae = case.vae()

    def weights(network: Any) -> list[Any]:
        return [jnp.asarray(parameter.detach().numpy()) for parameter in network.parameters()]

    encoder, decoder = weights(vae.posterior.network), weights(vae.likelihood.network)
    offset, x = jnp.asarray(vae.likelihood.offset.numpy()).ravel(), jnp.asarray(case.x.flatten(1).numpy())

    def network(name: str, first: list[Any], inputs: Any) -> Any:
        w1, b1, w2, b2 = (npr.param(f"{name}{i}", value) for i, value in enumerate(first))
        return jax.nn.softplus(inputs @ w1.T + b1) @ w2.T + b2

    def model(x: Any) -> None:
        with npr.plate("data", len(x)):
            t = npr.sample("t", dist.Normal(jnp.zeros(case.latent), 1).to_event(1))
            logits = network("decoder", decoder, t) + offset
            npr.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, log_scale = jnp.split(network("encoder", encoder, x), 2, -1)
        with npr.plate("data", len(x)):
            npr.sample("t", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    elbo = (
        infer.RenyiELBO(alpha=0, num_particles=case.K)
        if case.bound == "IWAE"
        else infer.Trace_ELBO(num_particles=case.K)
    )
    svi = infer.SVI(model, guide, npr.optim.Adam(LR), elbo)
    state = [svi.init(jax.random.PRNGKey(0), x)]
    update, evaluate = jax.jit(svi.update), jax.jit(svi.evaluate)

    def step() -> Any:
        state[0], loss = update(state[0], x)
        return loss.block_until_ready()

    def loss() -> float:
        key, state_key = jax.random.split(state[0].rng_key)
        state[0] = state[0]._replace(rng_key=key)
        return float(evaluate(state[0]._replace(rng_key=state_key), x)) / len(case.x)

    return Contender(step, loss)


def floor(case: Case) -> Contender:
    """The matrix products of a step alone: three for each layer, forward and backward, and two for the first."""
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
