"""The path of annealed chains: from which density they start, and by which inverse temperatures they go to the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.kinds import require

Schedule = Literal["linear", "sigmoidal"]
Start = Literal["prior", "guide"]

_STEEPNESS = 4.0
"""δ of the sigmoidal schedule, as in Wu et al. 2017 (section 3.1)."""


@dataclass(frozen=True)
class Annealing:
    """How chains go from a start to the posterior: through densities proportional to p₀(t)^(1-β) p(x,t)^β, β from 0 to 1.

    At each β the chains make one move by Hamiltonian Monte Carlo (Neal 2011), which leaves that density as it is.

    From a trained guide the path is short. For a trained model of Digits, 50 temperatures from the guide come as near as 1,000
    from the prior do. So the guide is the default. From there, chains may miss what the guide misses, such as a second mode of
    the posterior. A path from the prior knows nothing of the guide: it is the independent check, and it gives the
    rate-distortion curve. Start there too if the guide is poor, or cannot score latents that it did not draw.

    Args:
        temperatures: T, the number of steps from β = 0 to β = 1. The bound becomes tighter as T grows.
        leapfrog: L, the number of leapfrog steps of a move. A temperature takes L + 1 gradients of log p(x,t). For the same
            number of gradients, more temperatures with fewer leapfrog steps gave tighter bounds.
        schedule: "linear" has equal steps of β. "sigmoidal" has small steps at both ends, where the densities change most:
            β_k = (σ(δ (2k/T - 1)) - σ(-δ)) / (σ(δ) - σ(-δ)) with δ = 4 (Wu et al. 2017).
        start: p₀, which is the prior p(t) or the guide q(t|x,φ).
        acceptance: the rate at which moves are to be accepted. The preliminary run seeks the length of the steps for it; more
            are accepted where L steps of this length would lead the chains back to where they came from.

    Raises:
        ValueError: a number is out of its range.
    """

    temperatures: int = 1000
    leapfrog: int = 3
    schedule: Schedule = "sigmoidal"
    start: Start = "guide"
    acceptance: float = 0.65

    def __post_init__(self) -> None:
        hints: dict[str, Any] = {
            "temperatures": int, "leapfrog": int, "schedule": Schedule, "start": Start, "acceptance": float,
        }  # fmt: skip
        require(vars(self), hints, "Annealing")
        for name in ("temperatures", "leapfrog"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance: expected a rate between 0 and 1, got {self.acceptance}")

    def betas(self, temperatures: int) -> Float64[Tensor, " _"]:
        """Returns the inverse temperatures, from 0 to 1, in this many steps, on the CPU."""
        at = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64, device="cpu")
        if self.schedule == "linear":
            return at
        sigmoid = torch.sigmoid(_STEEPNESS * (2 * at - 1))
        return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
