"""Which held-out images are the control, and within which classes it is compared."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exhume.audit.significance import Classes
from exhume.candidates import Images

HALF = 0.5
"""Share of training images with a class that the control has too, from which on they are compared within classes."""


def control_images(held_out: Images, count: int) -> Float[Tensor, "n c h w"]:
    """The control where no classes are known: `control_rows` of the held-out images."""
    return held_out[control_rows(len(held_out), count)]


def control_rows(
    held_out: int,
    count: int,
    labels: Shaped[Tensor, " n"] | None = None,
    held_out_labels: Shaped[Tensor, " k"] | None = None,
) -> Int[Tensor, " rows"]:
    """Which of so many held-out images are the control, in their order.

    Where the classes of both are known: of each class as many as are trained on, or all if fewer. Else `count`, or all
    if fewer, evenly spread since they may come class by class.

    >>> control_rows(6, 2, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1, 1, 2]))
    tensor([0, 2])
    """
    classes = shared_classes(labels, held_out_labels)
    if classes is None:
        return torch.linspace(0, held_out - 1, min(count, held_out)).round().long()
    rows = []
    for of in torch.unique(classes[0]):
        there = torch.nonzero(classes[1] == of)[:, 0]
        rows.append(there[control_rows(len(there), int((classes[0] == of).sum()))])
    return torch.cat(rows).sort().values


def shared_classes(labels: Shaped[Tensor, " n"] | None, held_out_labels: Shaped[Tensor, " k"] | None) -> Classes | None:
    """The classes within which training and held-out images are compared, numbered.

    None: they are not known, or most training images are of classes that the held-out images do not have, as where
    labels are measurements.
    """
    if labels is None or held_out_labels is None or not torch.isin(labels, held_out_labels).double().mean() >= HALF:
        return None
    numbers = torch.unique(torch.cat([labels, held_out_labels]), return_inverse=True)[1]
    return numbers[: len(labels)], numbers[len(labels) :]
