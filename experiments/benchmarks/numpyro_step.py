"""The same step in NumPyro: the programs of one VAE, with its first weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import infer
from numpyro.distributions.flows import InverseAutoregressiveTransform
from torch import Tensor, nn

from benchmarks.steps import LR, Case, Contender

Map = Callable[[Any], Any]


def contender(case: Case) -> Contender:
    """NumPyro's jitted ``SVI.update``."""
    vae, d = case.vae(), case.latent
    encode = dense("encoder", vae.posterior.get_submodule("network"))
    decode = dense("decoder", vae.likelihood.get_submodule("network"))
    offset, x = array(vae.likelihood.get_buffer("offset")).ravel(), array(case.x.flatten(1))
    prior, posterior = partial(standard_normal, d), lambda x: normal(encode(x))
    if case.prior == "VampPrior":
        prior = partial(vamp_prior, array(vae.prior.get_parameter("inputs").flatten(1)), encode)
    if case.guide == "InverseAutoregressive":
        flow: Any = vae.posterior.get_submodule("flow")
        networks = [masked(f"flow{i}", each.hyper, d) for i, each in enumerate(flow.transforms)]
        posterior = partial(inverse_autoregressive, d, encode, networks)

    if case.prior == "Bernoulli":
        prior, posterior = partial(bits, jnp.zeros(d)), lambda x: bits(encode(x))

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            t = numpyro.sample("t", prior())
            numpyro.sample("x", dist.Bernoulli(logits=decode(t) + offset).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("t", posterior(x))

    iwae = partial(infer.RenyiELBO, alpha=0)
    of_elbo = infer.TraceGraph_ELBO if case.prior == "Bernoulli" else infer.Trace_ELBO
    elbo = (iwae if case.bound == "IWAE" else of_elbo)(num_particles=case.K)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(LR), elbo)
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


def array(tensor: Tensor) -> Any:
    """A tensor as JAX's array."""
    return jnp.asarray(tensor.detach().numpy())


def dense(name: str, network: nn.Module) -> Map:
    """A network of one hidden layer, with its weights as NumPyro's parameters."""
    first = [array(parameter) for parameter in network.parameters()]

    def apply(inputs: Any) -> Any:
        w1, b1, w2, b2 = (numpyro.param(f"{name}{i}", value) for i, value in enumerate(first))
        return jax.nn.softplus(inputs @ w1.T + b1) @ w2.T + b2

    return apply


def masked(name: str, network: nn.Module, d: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A masked network from (ε, h) to shift and log scale, which is bounded softly as zuko does it."""
    linear: list[Any] = [layer for layer in network.children() if isinstance(layer, nn.Linear)]
    layers = [(array(layer.weight), array(layer.bias), array(layer.mask)) for layer in linear]

    def apply(h: Any, eps: Any) -> tuple[Any, Any]:
        out = jnp.concatenate([eps, h], -1)
        for i, (weight, bias, mask) in enumerate(layers):
            out = jax.nn.relu(out) if i else out
            out = out @ (numpyro.param(f"{name}.{i}.weight", weight) * mask).T + numpyro.param(f"{name}.{i}.bias", bias)
        numbers = out.reshape(*out.shape[:-1], d, 2)
        return numbers[..., 0], numbers[..., 1] / (1 + jnp.abs(numbers[..., 1] / jnp.log(1e-3)))

    return apply


def normal(head: Any) -> Any:
    """N(m, diag s²) of (m, log s)."""
    loc, log_scale = jnp.split(head, 2, -1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def standard_normal(d: int) -> Any:
    """N(0, I)."""
    return dist.Normal(jnp.zeros(d), 1).to_event(1)


def bits(logits: Any) -> Any:
    """Independent numbers 0 and 1."""
    return dist.Bernoulli(logits=logits).to_event(1)


def vamp_prior(first: Any, encode: Map) -> Any:
    """The mixture of the guide's posteriors of pseudo-inputs."""
    inputs = numpyro.param("inputs", first).clip(0, 1)
    return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(len(inputs))), normal(encode(inputs)))


def inverse_autoregressive(d: int, encode: Map, networks: list[Any], x: Any) -> Any:
    """m + s ⊙ f(ε; h), f by NumPyro's own transform."""
    loc, log_scale, h = jnp.split(encode(x), [d, 2 * d], -1)
    steps = [InverseAutoregressiveTransform(partial(network, h)) for network in networks]
    last = dist.transforms.IndependentTransform(dist.transforms.AffineTransform(loc, jnp.exp(log_scale)), 1)
    return dist.TransformedDistribution(dist.Normal(jnp.zeros_like(loc), 1).to_event(1), [*steps, last])
