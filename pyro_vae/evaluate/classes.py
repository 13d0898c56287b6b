"""What a discrete latent of few values says about the class of a datum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_vae.data import DataLike, columns_for
from pyro_vae.evaluate.statistics import Mean, mean
from pyro_vae.kinds import takes
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Programs, library_path, particles


class Classified(NamedTuple):
    """How well a discrete latent tells the classes of data.

    Attributes:
        accuracy: the share of the data whose most probable value is their class, with its error over data.
        matching: the class that each value of the latent stands for, where values have no names of their own; otherwise None.
        counts: how often each value is the most probable one of data of each class (values, classes).
    """

    accuracy: Mean
    matching: tuple[int, ...] | None
    counts: Tensor


@takes
def class_probabilities(
    programs: Programs,
    data: DataLike,
    site: str = "y",
    K: int = 100,
    *,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
) -> Float[Tensor, "N S"]:
    """Returns the probability of each value of a discrete latent, for each datum.

    For a latent that the guide samples it is q(y|x). For one that is summed out of the model it is p(y|x), estimated with K
    importance-weighted particles of the other latents.

    Args:
        programs: a model and a guide.
        data: N data.
        site: the name of the latent.
        K: the number of particles.
        batch_size: the number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of the particles.

    Raises:
        ValueError: there is no such latent, or it has too many values.
    """
    columns, found = columns_for(programs, data), []
    device, sizes = columns.x.device, {"batch_size": batch_size, "K": K}
    with telling_memory(**sizes), evaluating(programs, device, seed, "classes"), library_path():
        for batch in columns.batches(batch_size):
            draws = particles(programs.model, programs.guide, *batch, K=1, max_plate_nesting=max_plate_nesting)
            if not (of_guide := site in draws.guide) and site not in draws.enumerated:
                raise ValueError(
                    f"site: expected a latent of the guide, which draws {sorted(draws.guide)}, or one that is summed out of "
                    f"the model, which are {sorted(draws.enumerated)}; got {site!r}"
                )
            draws = particles(
                programs.model,
                programs.guide,
                *batch,
                K=1 if of_guide else K,
                max_plate_nesting=max_plate_nesting,
                enumerate=(site,) if of_guide else (),
            )
            assert draws.log_states is not None
            weights = torch.zeros_like(draws.log_w) if of_guide else draws.log_w
            found.append((weights.log_softmax(0) + draws.log_states(site)).logsumexp(1).exp().T)
    return torch.cat(found)


@takes
def classified(probabilities: Tensor, labels: Tensor, matched: bool = False) -> Classified:
    """Compares the most probable values of a latent with labels.

    Args:
        probabilities: those of each value (N, S), of `class_probabilities`.
        labels: the classes (N,), whole numbers from 0 on.
        matched: whether each value is taken for the class that it fits best, one for one, as clusters are (the assignment by
            the Hungarian method, which is chosen on these very labels).

    Raises:
        ValueError: there are more classes than values, or there is not one label for each datum.
    """
    if probabilities.dim() != 2:
        raise ValueError(f"probabilities: expected those of each value, (N, S), got shape {tuple(probabilities.shape)}")
    values, classes = probabilities.argmax(1).cpu(), labels.cpu().long()
    if len(values) != len(classes):
        raise ValueError(f"labels: expected one for each of {len(values)} data, got {len(classes)}")
    S, C = probabilities.shape[1], int(classes.max()) + 1
    if not matched and C > S:
        raise ValueError(f"labels: expected classes 0..{S - 1}, as many as the latent has values, got {C - 1}")
    counts = torch.zeros(S, C, dtype=torch.int64)
    counts.index_put_((values, classes), torch.ones(len(values), dtype=torch.int64), accumulate=True)
    if not matched:
        return Classified(mean((values == classes).to(torch.float64)), None, counts)
    stands = np.full(S, -1)
    rows, columns = linear_sum_assignment(-counts.numpy())
    stands[rows] = columns
    right = torch.from_numpy(stands)[values] == classes
    return Classified(mean(right.to(torch.float64)), tuple(stands.tolist()), counts)
