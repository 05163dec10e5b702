"""The method `reference`: the papers' objective to the last digit, and their start."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exhume import NetworkConfig, Reference
from exhume.attack.optimisation import take_step
from exhume.networks import Task
from victims import SMALL, checkpoint, generator, target_of

TASKS: tuple[Task, ...] = get_args(Task)


def papers_loss(  # noqa: PLR0917
    weights: list[Tensor], bias: Tensor, x: Tensor, labels: Tensor, lam: Tensor, task: str, a: float, least: float
) -> Tensor:
    """The reference objective, written anew from the papers for a network with one hidden layer and a first bias."""
    theta = [weights[0], bias, weights[1]]

    def smooth(z: Tensor) -> Tensor:
        return functional.relu(z).detach() + (s := -functional.logsigmoid(-a * z) / a) - s.detach()

    scores = smooth(x.flatten(1) @ theta[0].T + theta[1]) @ theta[2].T
    if task == "binary":
        out = lam * (2 * labels - 1) * scores[:, 0]
    elif task == "multiclass":
        own = scores.gather(1, labels[:, None])[:, 0]
        out = lam * (own - scores.scatter(1, labels[:, None], -math.inf).amax(1))
    else:
        out = lam * scores[:, 0]
    sums = torch.autograd.grad(out.sum() / len(x), theta, create_graph=True)
    loss = sum((t.detach() - g).pow(2).sum() for t, g in zip(theta, sums, strict=True))
    loss = loss + (x - 1).relu().pow(2).sum() + (-1 - x).relu().pow(2).sum()
    assert isinstance(loss, Tensor)
    return loss if task == "regression" else loss + 5 * (least - lam).relu().pow(2).sum()


@pytest.mark.parametrize("task", TASKS)
def test_reference_is_the_papers_objective(task: Task) -> None:
    """Value, gradients and two steps of SGD with momentum, in float64."""
    victim = checkpoint(task, NetworkConfig(widths=(20,), init_scale=0.3))
    target = target_of(victim, "float64")
    settings = SMALL["reference"]
    assert isinstance(settings, Reference)
    search = replace(settings, init_scale=0.9, min_multiplier=0.4).start(target, generator())
    weights = [p for n, p in target.network.named_parameters() if n.endswith("weight")]
    bias = next(p for n, p in target.network.named_parameters() if n.endswith("bias"))
    x, lam = search.pixels, search.multipliers.values
    assert (x.detach().abs() > 1).any()  # both penalties are at work
    assert (lam < 0.4).any()

    residual, penalty = search.objective()
    oracle = papers_loss(weights, bias, x, search.labels, lam, task, 20.0, 0.4)
    torch.testing.assert_close(residual + penalty, oracle, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss, [x, lam], retain_graph=True) for loss in (residual + penalty, oracle))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)

    before = [x.detach().clone(), lam.detach().clone()]
    velocity = list(theirs)
    for _ in range(2):  # the second step has momentum
        take_step(search, sum(search.objective()))
        before = [b - rate * v for b, v, rate in zip(before, velocity, (0.05, 1e-2), strict=True)]
        torch.testing.assert_close([x.detach(), lam.detach()], before, rtol=1e-9, atol=1e-12)
        slopes = torch.autograd.grad(papers_loss(weights, bias, x, search.labels, lam, task, 20.0, 0.4), [x, lam])
        velocity = [0.9 * v + s for v, s in zip(velocity, slopes, strict=True)]


@pytest.mark.parametrize("task", TASKS)
def test_reference_starts_as_the_papers_do(task: Task) -> None:
    target = target_of(checkpoint(task))
    search = Reference(per_class=400, init_scale=1e-2).start(target, generator())
    assert search.pixels.std().item() == pytest.approx(1e-2, rel=0.05)
    values = search.multipliers.values.detach()
    mean, std = (0, 1) if task == "regression" else (0.5, 12**-0.5)
    assert values.mean().item() == pytest.approx(mean, abs=0.1)
    assert values.std().item() == pytest.approx(std, rel=0.1)
    assert search.labels.bincount().tolist() == [400] * target.labels
