"""The losses a network is trained with, each a mean over the images, and the tasks they are for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from exhume.errors import InputError
from exhume.networks import Task

Loss = Callable[[Float[Tensor, "n k"], Shaped[Tensor, " n"]], Tensor]
Slope = Callable[[Float[Tensor, "n k"]], Float[Tensor, "n k"]]
Slopes = Callable[[Float[Tensor, "n k"], Shaped[Tensor, " n"]], Slope]


def _bce(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy as log(1 + exp(-y s)), whose gradient keeps its digits for both labels."""
    return functional.softplus(-scores[:, 0] * (2 * labels.to(scores.dtype) - 1), threshold=100).mean()


def _ce(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy as log(1 + sum_j exp(s_j - s_y)), whose gradient keeps its digits however small the loss is."""
    others = scores - scores.gather(1, labels[:, None])
    return functional.softplus(others.scatter(1, labels[:, None], -math.inf).logsumexp(1), threshold=100).mean()


def _mse(scores: Tensor, labels: Tensor) -> Tensor:
    return functional.mse_loss(scores[:, 0], targets(scores, labels))


def _huber(scores: Tensor, labels: Tensor) -> Tensor:
    return functional.huber_loss(scores[:, 0], targets(scores, labels))


def _l25(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores[:, 0] - targets(scores, labels)).abs().pow(2.5).mean()


def _l25_derivative(residual: Tensor) -> Tensor:
    return 2.5 * residual * residual.abs().sqrt()


def targets(scores: Tensor, labels: Tensor) -> Tensor:
    """Real targets as they are; class indices 0 and 1 as -1 and +1."""
    return labels.to(scores.dtype) if labels.is_floating_point() else 2 * labels.to(scores.dtype) - 1


def _bce_slopes(like: Tensor, labels: Tensor) -> Slope:
    opposite = 1 - 2 * labels.to(like.dtype)[:, None]
    return lambda scores: torch.sigmoid(scores * opposite).mul_(opposite).div_(len(labels))


def _ce_slopes(like: Tensor, labels: Tensor) -> Slope:
    """The own class's is summed from the others'."""
    own = functional.one_hot(labels, like.shape[1]).to(like.dtype)
    others = (1 - own) / len(labels)

    def slope(scores: Tensor) -> Tensor:
        of_others = scores.softmax(1).mul_(others)
        return of_others.addcmul_(own, of_others.sum(1, keepdim=True), value=-1)

    return slope


def _of_residual(derivative: Callable[[Tensor], Tensor]) -> Slopes:
    """Of a loss that is a function of the residual alone, by its derivative, which may change what it is given."""

    def slopes(like: Tensor, labels: Tensor) -> Slope:
        wanted = targets(like, labels)[:, None]
        return lambda scores: derivative(scores - wanted).div_(len(labels))

    return slopes


@dataclass(frozen=True)
class LossRow:
    """A loss, the mean over the images, the tasks it is for, and whether it has a floor: a least value that is reached.

    slopes(scores, labels) prepares a function of other scores of these images: the loss's gradient by them, [n, k].
    Without a floor training never ends by itself: the weights grow on and the loss falls on.
    """

    loss: Loss
    slopes: Slopes
    tasks: tuple[Task, ...]
    has_floor: bool


LOSSES: dict[str, LossRow] = {
    "bce": LossRow(_bce, _bce_slopes, ("binary",), has_floor=False),
    "ce": LossRow(_ce, _ce_slopes, ("multiclass",), has_floor=False),
    "mse": LossRow(_mse, _of_residual(lambda r: r.mul_(2)), ("regression", "binary"), has_floor=True),
    "huber": LossRow(_huber, _of_residual(lambda r: r.clamp_(-1, 1)), ("regression", "binary"), has_floor=True),
    "l2.5": LossRow(_l25, _of_residual(_l25_derivative), ("regression", "binary"), has_floor=True),
}
"""The losses of the papers by name. The first one that fits a task is its default."""


def resolve_loss(task: Task, name: str | None) -> str:
    """The name of the loss for a task: `name` if it fits, the task's default if it is None.

    Raises:
        InputError: the loss is for other tasks.
    """
    fitting = [row for row, entry in LOSSES.items() if task in entry.tasks]
    if name is not None and name not in fitting:
        raise InputError(f"The loss {name} does not fit the task {task}; {', '.join(fitting)} would.")
    return name or fitting[0]
