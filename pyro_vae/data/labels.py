"""Which labels a model is told that learns from some of them."""

from __future__ import annotations

import torch
from torch import Tensor

UNKNOWN = -1
"""Stands for a label that a program is not told."""


def told_labels(x: Tensor, labels: Tensor | None, labelled: Tensor | None) -> Tensor:
    """The labels that programs are told (N,), and -1 for the others.

    Args:
        x: the data.
        labels: their classes, or None where there are none to tell.
        labelled: which of them are told.

    Raises:
        ValueError: it is not known which, or there are not as many as data.
    """
    if labels is None:
        return torch.full((len(x),), UNKNOWN, device=x.device)
    if labelled is None:
        raise ValueError(
            "the model is told some of the labels, and these data do not say which: give their number, --data.labelled 100 or "
            "make_splits(..., labelled=100), or Split(x, labels, labelled=...)"
        )
    if not len(labels) == len(labelled) == len(x):
        raise ValueError(
            f"labelled: expected a label, and whether it is told, for each of {len(x)} data, got "
            f"{len(labels)} and {len(labelled)}"
        )
    return torch.where(labelled, labels, UNKNOWN)


def choose_labelled(labels: Tensor | None, count: int, seed: int) -> Tensor:
    """Chooses data whose labels a model is told, of each class as many; what is left over is of different classes.

    Args:
        labels: the classes of all data (N,).
        count: how many are chosen.
        seed: the seed of the choice.

    Returns:
        whether each datum is chosen (N,).

    Raises:
        ValueError: there are no labels, they are no classes, or there are fewer of a class than are asked for.
    """
    if labels is None:
        raise ValueError("labelled: these data have no labels; of a file --data.labels names the column, or the array")
    if labels.is_floating_point() or bool((labels < 0).any()):
        raise ValueError("labelled: labels are classes, whole numbers from 0 on; these data have others")
    classes = labels.unique().tolist()
    if not len(classes) <= count <= len(labels):
        raise ValueError(
            f"labelled: expected at least one for each of {len(classes)} classes, and at most all {len(labels)} training data, "
            f"got {count}"
        )
    generator = torch.Generator().manual_seed(seed)
    extra = set(torch.randperm(len(classes), generator=generator)[: count % len(classes)].tolist())
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for i, each in enumerate(classes):
        own = (labels == each).nonzero().flatten()
        wanted = count // len(classes) + (i in extra)
        if wanted > len(own):
            raise ValueError(
                f"labelled: {count} in all are {wanted} of class {each}, which has {len(own)} training data"
            )
        chosen[own[torch.randperm(len(own), generator=generator)[:wanted]]] = True
    return chosen
