"""A small model with discrete latents, of several kinds, and the log-probabilities of all its states."""

from __future__ import annotations

from itertools import product

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Dims, Model

X = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.float64)
ONE_HOT = [torch.eye(3, dtype=torch.float64)[list(pair)] for pair in product(range(3), repeat=2)]
STATES = {
    "binary": torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64),
    "chain": torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64),  # t (3) and t2 (1)
    "two sites": torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64),  # a (2) and b (2)
    "classes": torch.stack(ONE_HOT).flatten(1),
}


class Discrete(Model):
    """A non-linear model with discrete latents: x ~ Bernoulli(tanh(t U) V), with t from a prior that is learned.

    Args:
        kind: "binary" has one site of 4 bits; "chain" 3 bits and one given them; "two sites" 2 and 2; "classes" two one-hot
            vectors of three.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(Dims(4, (3,)))
        generator = torch.Generator().manual_seed(1)

        def numbers(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.9 * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.kind, self.d = kind, STATES[kind].shape[1]
        self.w = nn.ParameterDict({"U": numbers(self.d, 3), "V": numbers(3, 3), "prior": numbers(self.d)})
        self.phi = nn.ParameterDict({"Q": numbers(3, self.d), "c": numbers(self.d), "up": numbers(3)})

    def decoded(self, t: Tensor) -> Tensor:
        return 2 * torch.tanh(t @ self.w["U"]) @ self.w["V"]

    def split(self) -> dict[str, slice]:
        return {
            "binary": {"t": slice(4)},
            "chain": {"t": slice(3), "t2": slice(3, 4)},
            "two sites": {"a": slice(2), "b": slice(2, 4)},
            "classes": {"t": slice(6)},
        }[self.kind]

    def of(self, logits: Tensor) -> dist.TorchDistribution:
        if self.kind == "classes":
            return dist.OneHotCategorical(logits=logits.unflatten(-1, (2, 3))).to_event(1)
        return dist.Bernoulli(logits=logits).to_event(1)

    def model(self, x: Tensor | None = None) -> Tensor:
        assert x is not None
        self.register("w", self.w)
        with pyro.plate("data", len(x), dim=-1):
            sites = [pyro.sample(name, self.of(self.w["prior"][at])) for name, at in self.split().items()]
            sizes = torch.broadcast_shapes(
                *(site.shape[:-1] for site in sites)
            )  # sites that are enumerated have others
            t = torch.cat([site.expand(*sizes, -1) for site in sites], -1)
            t = t.flatten(-2) if self.kind == "classes" else t
            return pyro.sample("x", dist.Bernoulli(logits=self.decoded(t)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        self.register("phi", self.phi)
        logits, before = x @ self.phi["Q"] + self.phi["c"], None
        with pyro.plate("data", len(x), dim=-1):
            for name, at in self.split().items():
                own = logits[..., at]
                if self.kind == "chain" and before is not None:
                    own = own + (before @ self.phi["up"]).unsqueeze(-1)
                before = pyro.sample(name, self.of(own))

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|s), log p(s) and log q(s|x) of all states (S, B)."""
        states = STATES[self.kind]
        logits = (X @ self.phi["Q"] + self.phi["c"]).expand(len(states), *X.shape[:1], self.d)
        prior = self.w["prior"].expand(len(states), 1, self.d)
        s = states.unsqueeze(1)
        if self.kind == "chain":
            logits = torch.cat(
                [logits[..., :3], logits[..., 3:] + (s[..., :3] @ self.phi["up"])[..., None, None][..., 0]], -1
            )
        if self.kind == "classes":
            log_q, log_prior = (
                (each.unflatten(-1, (2, 3)).log_softmax(-1).flatten(-2) * s).sum(-1) for each in (logits, prior)
            )
        else:
            log_q, log_prior = (
                (s * nn.functional.logsigmoid(each) + (1 - s) * nn.functional.logsigmoid(-each)).sum(-1)
                for each in (logits, prior)
            )
        eta = self.decoded(states).unsqueeze(1)
        log_lik = (X * nn.functional.logsigmoid(eta) + (1 - X) * nn.functional.logsigmoid(-eta)).sum(-1)
        return log_lik, log_prior.expand_as(log_lik), log_q
