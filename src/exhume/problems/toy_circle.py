"""Points on a circle in the plane, in four arcs of alternating class (default: 10 training points per class)."""

import math

import torch
from torch import Tensor

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection


def load(selection: Selection) -> Problem:
    """Points as images of two pixels, [n, 1, 1, 2], evenly spaced in the two quadrants of each class.

    The held-out points lie between them. The circle has centre (1/2, 1/2) and radius 1/2, so that it fills [0, 1].
    """
    per_class = selection.per_class or 10
    labels = torch.arange(2).repeat_interleave(per_class)
    return Problem(
        name="toy-circle",
        images=_points(per_class, 0.25),
        labels=labels,
        held_out=_points(per_class, 0.75),
        held_out_labels=labels,
        task="binary",
        classes=("first and third quadrant", "second and fourth quadrant"),
        network=NetworkConfig(widths=(1000,)),
        source="computed",
    )


def _points(per_class: int, offset: float) -> Tensor:
    """`per_class` points of class 0, then of class 1; `offset` in (0, 1) shifts them along the circle."""
    along = 2 * (torch.arange(per_class, dtype=torch.float64) + offset) / per_class  # in [0, 2): in its two quadrants
    quarter_turns = torch.cat([along + along.floor() + label for label in (0, 1)])
    angle = quarter_turns * math.pi / 2
    return (0.5 + 0.5 * torch.stack([angle.cos(), angle.sin()], 1)).float()[:, None, None, :]
