"""Objectives: which cotangents the images of a task may have, by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from exhume.errors import InputError
from exhume.networks import Task


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the cotangents of a task are made of.

    cotangents(scores, labels, multipliers, shares) -> [m, k], with scores [m, k], labels [m] class indices,
    multipliers [m] and shares [m, k] (logits of how a multiplier is shared among the other classes);
    signed: multipliers may be negative; shared: the shares are searched for as well.
    """

    task: Task
    cotangents: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    signed: bool = False
    shared: bool = False


def _binary(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i y_i with y_i = -1 or 1 (2022, eq. 3)."""
    return (multipliers * (2 * labels - 1))[:, None]


def _runner_up(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i (e_y - e_j), j the highest-scoring other class: one multiplier a sample (2023, section 4.1)."""
    own = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
    runner_up = scores.detach().masked_fill(own.bool(), -torch.inf).argmax(1)
    return multipliers[:, None] * (own - functional.one_hot(runner_up, scores.shape[1]))


def _multiclass(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = sum_j lambda_ij (e_y - e_j): every multiplier of 2023, eq. 4, as lambda_i times shares that sum to 1."""
    own = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
    others = shares.masked_fill(own.bool(), -torch.inf).softmax(1)
    return multipliers[:, None] * (own - others)


def _regression(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i of free sign (2023, eq. 7)."""
    return multipliers[:, None]


OBJECTIVES: dict[str, Objective] = {
    "binary": Objective(task="binary", cotangents=_binary),
    "multiclass": Objective(task="multiclass", cotangents=_multiclass, shared=True),
    "runner-up": Objective(task="multiclass", cotangents=_runner_up),
    "regression": Objective(task="regression", cotangents=_regression, signed=True),
}


def choose_objective(name: str | None, task: Task, multiclass: str) -> Objective:
    """The objective of that name, or the task's own; `multiclass` is the method's own for several classes.

    Raises:
        InputError: the objective is for another task.
    """
    row = OBJECTIVES[name or (multiclass if task == "multiclass" else task)]
    if row.task != task:
        raise InputError(f"The objective {name} is for the task {row.task}, not {task}.")
    return row


def check_objective(name: str | None) -> None:
    """Raises `InputError` if there is no such row of OBJECTIVES; None stands for the task's own."""
    if name is not None and name not in OBJECTIVES:
        raise InputError(f"Unknown objective {name!r}; there are {', '.join(OBJECTIVES)}.")
