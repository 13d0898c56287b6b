"""KL(q‖p) in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.traces import Particles, layers


def closed_form_kl(draws: Particles) -> Float[Tensor, "K B"]:
    """Returns KL(q(t|x,φ)‖p(t)) in nats, the sum over sites of the KL of each latent given those before it.

    With one latent it is the same for each particle. With several, it depends on the draws of those before the last. It
    is computed once for each run of the programs: `Estimator.estimate` keeps it in ``draws.kl``.

    Raises:
        ValueError: a site has no KL in closed form, the guide's latents have another order than the model's, or only
            one of the two has a mask. The KL is never sampled instead.
    """
    if draws.kl is not None:
        return draws.kl
    in_model = [name for name in draws.model if name not in draws.observed]
    if summed := [name for name in in_model if name not in draws.guide and name not in draws.expected]:
        raise ValueError(
            f"AnalyticKL: p({summed[0]}) is a sum over the values of {sorted(draws.enumerated - draws.expected)}, to which no "
            f"closed-form KL is known; use ELBO, which estimates it from draws with noise"
        )
    drawn = [name for name in in_model if name not in draws.expected]
    if list(draws.guide) != drawn:
        raise ValueError(f"AnalyticKL: the guide draws {list(draws.guide)}, the model {drawn}: expected one order")
    # Of a site over which the expectation was taken, the model's entry is that of log p(z) - log q(z).
    terms = [-draws.model[name] if name in draws.expected else _of_site(name, draws) for name in in_model]
    return sum(terms, torch.zeros_like(draws.log_lik))


def _of_site(name: str, draws: Particles) -> Tensor:
    q, p = draws.distributions[name]
    masked = [isinstance(each, MaskedDistribution) for each in (q, p)]
    if masked[0] != masked[1]:
        raise ValueError(f"AnalyticKL: at site {name!r}, only the {'guide' if masked[0] else 'model'} has a mask")
    if layers(q)[-1].support.is_discrete and q.batch_shape != p.batch_shape:
        p = p.expand(q.batch_shape)  # PyTorch's masks of probabilities of zero need one shape
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        names = [type(layers(each)[-1]).__name__ for each in (q, p)]
        raise ValueError(
            f"AnalyticKL: no closed-form KL is known at site {name!r} from {names[0]} to {names[1]}; use ELBO, which "
            f"estimates it from draws with noise"
        ) from None
    return draws.per_datum(torch.as_tensor(kl).to(draws.log_lik))
