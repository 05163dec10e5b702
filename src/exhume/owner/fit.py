"""The multipliers of images that are given: once the images are fixed the condition is a bounded least-squares problem.

The residual is a quadratic function of the multipliers, and these are at least 0 or of either sign. So the fit has one
minimum, and needs neither a random start nor the order of the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from exhume.attack.objectives import Objective
from exhume.attack.search import FixedImages

REWEIGHTINGS = 3
"""Times that errors are weighed anew after the multipliers have been fitted. Two more change the residual by at most
0.005 (networks demo, sgd and untrained of docs/theory.md, "What the owner can see")."""
ROUND_STEPS, FIT_STEPS = 50, 200
"""Most steps of L-BFGS-B before errors are weighed anew, and in the last round."""
FIT_TOLERANCE = 1e-9
"""Decrease of the residual in a step at which a fit ends."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The multipliers of n fixed images, [n, g]: one for each, or for each pair of the label and another class.

    labels: [n] class indices, or signs as 0 and 1; scores: [n, k], of the network where gradients are taken.
    """

    objective: Objective
    labels: Int[Tensor, " n"]
    scores: Float[Tensor, "n k"]

    def cotangents(self, multipliers: Float[Tensor, "n g"]) -> Float[Tensor, "n k"]:
        """sum_j lambda_ij (e_y - e_j) where an image has a multiplier for each other class, else the objective's."""
        if not self.objective.shared:
            return self.objective.cotangents(self.scores, self.labels, multipliers[:, 0], self.scores)
        others = multipliers * (1 - self._own)
        return self._own * others.sum(1, keepdim=True) - others

    @property
    def even(self) -> Float[Tensor, "n g"]:
        """All multipliers alike, of the label's sign where they may have either."""
        if self.objective.shared:
            return 1 - self._own
        ones = self.scores.new_ones(len(self.labels), 1)
        return ones * (2 * self.labels[:, None] - 1) if self.objective.signed else ones

    @property
    def _own(self) -> Float[Tensor, "n k"]:
        return functional.one_hot(self.labels, self.scores.shape[1]).to(self.scores)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The multipliers of the least residual: multipliers [n, g], cotangents [n, k].

    residual: relative to what no image at all would leave, so 0 where all is explained and 1 where nothing is.
    """

    multipliers: Float[Tensor, "n g"]
    cotangents: Float[Tensor, "n k"]
    residual: float


def fit(fixed: FixedImages, pairs: Pairs) -> Fit:
    """Finds the multipliers of fixed images, and in turn the weighting of the errors that follows from them."""
    found = None
    for steps in [*[ROUND_STEPS] * REWEIGHTINGS, FIT_STEPS]:
        if found is not None:
            fixed.reweight(pairs.cotangents(found))
        found = _least(fixed.residual, pairs, found, steps)
    assert found is not None
    left, whole = (float(fixed.residual(pairs.cotangents(factor * found)).detach()) for factor in (1.0, 0.0))
    return Fit(multipliers=found, cotangents=pairs.cotangents(found), residual=left / whole)


def _least(
    residual: Callable[[Tensor], Tensor], pairs: Pairs, start: Float[Tensor, "n g"] | None, steps: int
) -> Float[Tensor, "n g"]:
    """By L-BFGS-B, whose memory grows with the number of images and not with its square; None: from even ones."""
    from scipy.optimize import minimize  # noqa: PLC0415

    best, unit = _scales(residual, pairs)
    start = best * pairs.even if start is None else start

    def value_and_slope(values: Any) -> tuple[float, Any]:
        point = (torch.as_tensor(values, dtype=start.dtype).reshape(start.shape) * unit).requires_grad_()
        value = residual(pairs.cotangents(point))
        (slope,) = torch.autograd.grad(value, point)
        return value.item(), (slope * unit).flatten().numpy()

    found = minimize(
        value_and_slope,
        (start / unit).flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=None if pairs.objective.signed else [(0, None)] * start.numel(),
        options={"maxiter": steps, "ftol": FIT_TOLERANCE, "gtol": 0},
    )
    return torch.as_tensor(found.x, dtype=start.dtype).reshape(start.shape) * unit


@torch.no_grad()
def _scales(residual: Callable[[Tensor], Tensor], pairs: Pairs) -> tuple[float, float]:
    """How large even multipliers best are, and the unit in which the residual curves alike whatever the network.

    The residual of even multipliers is a parabola, and three points tell it.
    """
    none, once, twice = (float(residual(pairs.cotangents(factor * pairs.even))) for factor in (0.0, 1.0, 2.0))
    curvature = twice - 2 * once + none
    if curvature <= 0:  # nothing passes the hinges
        return 0.0, 1.0
    best = max((curvature / 2 - (once - none)) / curvature, 0.0)
    return best, (pairs.even.numel() / curvature) ** 0.5
