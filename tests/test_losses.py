"""The losses: against their formulas written out by hand, and to the last digit of their gradients."""

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from exhume.defence.losses import LOSSES, resolve_loss
from exhume.networks import Task

TASKS: tuple[Task, ...] = get_args(Task)


def softplus(z: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(z))


def huber(r: np.ndarray) -> np.ndarray:
    return np.where(np.abs(r) <= 1, r**2 / 2, np.abs(r) - 0.5)


def by_hand(name: str, scores: np.ndarray, labels: np.ndarray) -> float:
    """The losses as in the papers; class indices 0 and 1 are the targets -1 and 1."""
    if name == "ce":
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]))
    targets = labels if labels.dtype == np.float64 else 2.0 * labels - 1
    residual = scores[:, 0] - targets
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "bce": lambda: softplus(-targets * scores[:, 0]),
        "mse": lambda: residual**2,
        "huber": lambda: huber(residual),
        "l2.5": lambda: np.abs(residual) ** 2.5,
    }
    return float(formulas[name]().mean())


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, row in LOSSES.items() for task in row.tasks])
def test_losses_are_their_formulas(name: str, task: Task) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(30, 4 if task == "multiclass" else 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(4 if task == "multiclass" else 2, (30,), generator=generator)
    if task == "regression":
        labels = torch.randn(30, generator=generator, dtype=torch.float64)
    value = LOSSES[name].loss(scores, labels).item()
    assert value == pytest.approx(by_hand(name, scores.numpy(), labels.numpy()), rel=1e-12)


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, row in LOSSES.items() for task in row.tasks])
def test_slopes_are_the_losses_gradients(name: str, task: Task) -> None:
    generator, outputs = torch.Generator().manual_seed(2), 4 if task == "multiclass" else 1
    scores = 3 * torch.randn(30, outputs, generator=generator, dtype=torch.float64)
    labels = torch.randint(max(outputs, 2), (30,), generator=generator)
    if task == "regression":
        labels = torch.randn(30, generator=generator, dtype=torch.float64)
    slope = LOSSES[name].slopes(torch.zeros_like(scores), labels)(scores)
    (by_autograd,) = torch.autograd.grad(LOSSES[name].loss(scores.requires_grad_(), labels), scores)
    torch.testing.assert_close(slope, by_autograd, rtol=1e-12, atol=1e-15)


def test_every_task_has_a_default_loss_that_fits() -> None:
    assert {task: resolve_loss(task, None) for task in TASKS} == {
        "binary": "bce",
        "multiclass": "ce",
        "regression": "mse",
    }


@pytest.mark.parametrize("scale", [1.0, 10.0, 80.0])
def test_cross_entropy_keeps_the_digits_of_its_gradient(scale: float) -> None:
    """1 - p of the own class is summed from the others, where 1 - p itself would round to 0."""
    scores = scale * torch.tensor([[1.0, 0.1, -0.3], [0.2, 0.9, 0.0]])
    labels = torch.tensor([0, 1])
    ours = scores.clone().requires_grad_()
    loss = LOSSES["ce"].loss(ours, labels)
    (slopes,) = torch.autograd.grad(loss, ours)
    others = [
        sum(math.exp(row[j] - row[own]) for j in range(3) if j != own)
        for row, own in zip(scores.double().tolist(), labels.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(map(math.log1p, others)) / 2, rel=1e-4)
    for i, (own, odds) in enumerate(zip(labels.tolist(), others, strict=True)):
        assert slopes[i, own].item() == pytest.approx(-odds / (1 + odds) / 2, rel=1e-4)
    torch.testing.assert_close(LOSSES["ce"].slopes(scores, labels)(scores), slopes, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, functional.cross_entropy(scores, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("margin", [0.5, 20.0, 80.0])
def test_binary_cross_entropy_keeps_the_digits_of_its_gradient(label: int, margin: float) -> None:
    scores = torch.tensor([[margin if label else -margin]]).requires_grad_()
    loss = LOSSES["bce"].loss(scores, torch.tensor([label]))
    (slope,) = torch.autograd.grad(loss, scores)
    odds = math.exp(-margin)
    written_out = LOSSES["bce"].slopes(scores, torch.tensor([label]))(scores.detach())
    torch.testing.assert_close(written_out, slope, rtol=1e-5, atol=0)
    assert loss.item() == pytest.approx(math.log1p(odds), rel=1e-4)
    assert slope.item() == pytest.approx((-1 if label else 1) * odds / (1 + odds), rel=1e-4)
