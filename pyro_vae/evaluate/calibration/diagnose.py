"""The calibration of q(t|x) under its own model: t ~ p(t), x ~ p(x|t), and ranks of that t among draws of q(t|x)."""

from __future__ import annotations

import numpy as np
from torch.nn.parameter import is_lazy

from pyro_vae.data import DataLike, columns_for
from pyro_vae.evaluate.calibration.bands import holm, p_value
from pyro_vae.evaluate.calibration.collection import FEWEST, collect
from pyro_vae.evaluate.calibration.ranks import JOINT
from pyro_vae.evaluate.calibration.result import Calibration
from pyro_vae.kinds import takes
from pyro_vae.scopes import modules_of
from pyro_vae.traces import Programs


@takes
def calibrate(
    programs: Programs,
    like: DataLike,
    n: int = 500,
    draws: int = 100,
    *,
    M: int | None = None,
    max_plate_nesting: int = 1,
    seed: int = 0,
) -> Calibration:
    """Compares q(t|x) with the posterior p(t|x) of its own model, by n data that the model draws itself.

    For each of n data, t ~ p(t) and x ~ p(x|t) are drawn from the model, and L = ``draws`` latents from q(t|x). If q is the
    posterior, the true t is one of L + 1 draws that cannot be told apart, so that the rank of any quantity f(t, x) of it among
    those of the draws is uniform on 0..L (Talts et al. 2018, theorem 1). These quantities are ranked:

    - each number of the latents. They see a q that is too narrow, too wide or shifted. They do not see q = p, nor a dependence
      between latents that q leaves out;
    - log p(x|t), log p(t) and log w = log p(x,t) - log q(t|x), which see those too (Modrák et al. 2023);
    - the density q(t|x): how often the truth is in a region of highest density of each level (expected coverage, Hermans et
      al. 2022);
    - the distance from a reference point (TARP, Lemos et al. 2023), in units in which each number of t has the same spread.
      The point is the t of another simulated datum, the one whose x is nearest, since TARP passes q = p where the point does
      not depend on x.

    Whether ranks are uniform is told by one p-value for each quantity (see `bands`); Holm's procedure makes the chance of any
    false alarm at most 5 %. Each joint quantity has a share of one, and so have all numbers of the latents together.

    With ``M``, q is corrected first: M latents are drawn from q(t|x), and L of these are taken **without replacement**, with
    chances in proportion to p(x,t) / q(t|x). So what is left shows how far importance weights can mend q. Draws that are taken
    with replacement would hold copies of each other wherever few weights are large, and copies are not independent draws; and
    smoothed weights would still be taken so. The price: where few weights are large, the L draws lie between q and the
    posterior (Rubin 1987; Gelman et al. 2014, section 10.4). `Calibration.ess` should be 10 L or more, and a notice says where
    it is not.

    Memory grows with n × (d + L), and not with n × L × d.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        like: data, of which the shape of a datum, labels, missing values (NaN) and the device are used. Programs that take
            labels are judged given the labels of these data, and programs that observe a part of x given its other numbers;
            where a value is missing in these data, it is missing in a simulated datum.
        n: the number of simulated data, at least 20.
        draws: L, the number of draws from q(t|x) for each of them.
        M: the number of draws that importance weights choose from, at least 2 L; None takes q as it is.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of all random numbers.

    Raises:
        ValueError: a number is too small, the data have no values, x cannot be drawn from the model, the guide cannot score a
            latent that it did not draw, or a log-probability is NaN.
    """
    if n < FEWEST:
        raise ValueError(f"n: expected at least {FEWEST} simulated data, got {n}")
    if draws < 2:
        raise ValueError(f"draws: expected at least 2 draws for each datum, got {draws}")
    if M is not None and 2 * draws > M:
        raise ValueError(f"M: expected at least 2 × draws = {2 * draws} to choose {draws} of, or None, got {M}")
    columns = columns_for(programs, like)
    if not len(columns):
        raise ValueError("like: expected at least one datum, whose shape simulated data have, and got none")
    if columns.x.is_meta:
        raise ValueError("like: it is on the meta device, where numbers have no values and nothing can be compared")
    known = (each for top in modules_of(programs) for each in top.parameters() if not is_lazy(each))
    if any(bool(each.isnan().any()) for each in known):
        raise ValueError("programs: parameters are NaN, so that no data can be drawn from the model")
    names, found = collect(programs, columns, n, draws, M, max_plate_nesting, seed)
    ranks = found.ranks.cpu().numpy()
    d = len(names)
    weights = [1 / d] * d + [1.0] * len(JOINT)
    p = np.array([p_value(column, draws) for column in ranks.T])
    return Calibration(
        names=(*names, *JOINT),
        ranks=ranks,
        L=draws,
        p=p,
        adjusted=holm(p.tolist(), weights),
        weights=np.array(weights),
        mean=found.mean.cpu().numpy(),
        variance=found.variance.cpu().numpy(),
        pairs=found.pairs.cpu().numpy(),
        ess=None if M is None else found.ess.cpu().numpy(),
        M=M,
        seed=seed,
    )
