"""How often each diagnostic of `pyro_vae.evaluate.calibrate` rejects a posterior: one that is exact, and five that are wrong.

The model is linear and Gaussian, so that the exact posterior is known: p(t) = N(0, I), p(x|t) = N(W t, I) with W of d columns
that are not orthogonal. The guide is the exact posterior, or one of its alterations. Each repetition draws new data with a seed
of its own. The table has the share of the repetitions in which a diagnostic alone rejects at 5 %, and in which the result is
not `calibrated` (all together, corrected by Holm), with the 95 % interval of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from scipy.special import betaincinv
from torch import Tensor

from pyro_vae import VAE, Dims, Guide
from pyro_vae.evaluate import Calibration, calibrate
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP
from pyro_vae.parts import Distribution
from pyro_vae.priors import StandardNormal

ALTERED = {
    "exact posterior": "exact",
    "scale × 0.8": "narrow",
    "scale × 1.25": "wide",
    "shifted by 0.2 s": "shifted",
    "q = p": "prior",
    "correlations dropped": "independent",
}
"""The rows of the table, and how the guide is altered in each."""
TESTS = ("latents", "log p(x|t)", "log p(t)", "log w", "coverage", "TARP")
"""The columns of the table; "latents" is the least p-value of single latents times their number."""
N_OBSERVED = 8
"""The number of observed numbers, above the largest d."""


class Altered(Guide):
    """The posterior of a linear Gaussian model, N(m(x), S), or an alteration of it.

    Args:
        dims: the sizes.
        W: the weights (n, d) of p(x|t) = N(W t, I).
        how: "exact"; "narrow" or "wide", with scales × 0.8 or × 1.25; "shifted", by 0.2 standard deviations in each coordinate;
            "prior", N(0, I) for all x; "independent", with the right variances and no correlations.
    """

    def __init__(self, dims: Dims, W: Tensor, how: str) -> None:
        super().__init__(dims)
        covariance = torch.linalg.inv(torch.eye(dims.latent, dtype=W.dtype) + W.T @ W)
        scale = covariance.diagonal().sqrt()
        gain, shift, factor = covariance @ W.T, torch.zeros_like(scale), torch.linalg.cholesky(covariance)
        if how in ("narrow", "wide"):
            factor = factor * (0.8 if how == "narrow" else 1.25)
        elif how == "shifted":
            shift = 0.2 * scale
        elif how == "prior":
            gain, factor = torch.zeros_like(gain), torch.eye(dims.latent, dtype=W.dtype)
        elif how == "independent":
            factor = scale.diag()
        self.gain, self.shift, self.factor = gain, shift, factor

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, n)``."""
        return dist.MultivariateNormal(x @ self.gain.T + self.shift, scale_tril=self.factor)


def weights(d: int) -> Tensor:
    """Returns W (n, d), whose columns have a common part, so that the latents are correlated given x."""
    generator = torch.Generator().manual_seed(d)
    columns, _ = torch.linalg.qr(torch.randn(N_OBSERVED, d + 1, generator=generator, dtype=torch.float64))
    return 1.5 * columns[:, :d] + 1.5 * columns[:, d:]


def linear_gaussian(d: int, how: str) -> VAE:
    """Returns the model with a guide that is altered in this way (see `Altered`), in float64."""
    dims, W = Dims(d, (N_OBSERVED,)), weights(d)
    affine = partial(MLP, hidden=())
    vae = VAE(StandardNormal(dims), Altered(dims, W, how), Normal(dims, affine, scale=1.0)).double()
    layer: Any = vae.likelihood.get_submodule("network.layers.0")
    with torch.no_grad():
        layer.weight.copy_(W)
        layer.bias.zero_()
    return vae


def p_values(found: Calibration) -> list[float]:
    """Returns the p-value of each of `TESTS` alone, and the adjusted one of all together."""
    d = len(found.latents)
    return [min(1.0, d * float(found.p[:d].min())), *found.p[d:].tolist(), float(found.adjusted.min())]


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a probability of which k of n trials are known."""
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, 0.025))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.975))
    return low, high


def study(d: int, how: str, repetitions: int, n: int, draws: int, M: int | None) -> np.ndarray:
    """Returns p-values (repetitions, tests + 1), the last of all tests together."""
    vae, like = linear_gaussian(d, how), torch.zeros(1, N_OBSERVED, dtype=torch.float64)
    return np.array([p_values(calibrate(vae, like, n, draws, M=M, seed=seed)) for seed in range(repetitions)])


def line(d: int, name: str, p: np.ndarray) -> str:
    """Returns a row of the table."""
    hits = (p <= 0.05).sum(0)
    low, high = clopper_pearson(int(hits[-1]), len(p))
    cells = [f"{100 * k / len(p):.1f}" for k in hits[:-1]]
    return f"| {d} | {name} | {' | '.join(cells)} | {100 * hits[-1] / len(p):.1f} [{100 * low:.1f}, {100 * high:.1f}] |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="of each wrong posterior (default: %(default)s)")
    parser.add_argument(
        "--null", type=int, default=1000, help="repetitions of the exact posterior (default: %(default)s)"
    )
    parser.add_argument("--n", type=int, default=500, help="simulated data of each repetition (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=100, help="L, draws for each of them (default: %(default)s)")
    parser.add_argument(
        "--M", type=int, default=None, help="correct q by importance weights of M draws (default: do not)"
    )
    parser.add_argument("--d", type=int, nargs="+", default=[1, 2, 5], help="dimensions of the latent (default: 1 2 5)")
    given = parser.parse_args(arguments)
    corrected = f", taken by their weights from M = {given.M}" if given.M else ""
    print(
        f"Rejections in percent of {given.repetitions} repetitions ({given.null} of the exact posterior); n = {given.n}, "
        f"L = {given.draws}{corrected}.\n"
    )
    print(f"| d | q(t\\|x) | {' | '.join(name.replace('|', chr(92) + '|') for name in TESTS)} | not calibrated |")
    print("|" + "---|" * (len(TESTS) + 3))
    for d in given.d:
        for name, how in ALTERED.items():
            if d > 1 or how != "independent":
                repetitions = given.null if how == "exact" else given.repetitions
                print(line(d, name, study(d, how, repetitions, given.n, given.draws, given.M)), flush=True)
