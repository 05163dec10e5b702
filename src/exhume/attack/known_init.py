"""A known start of training: what training has added to it, and where the gradients of that are taken.

    theta = c theta_0 + sum_i J(x_i)^T d_i

holds for gradient descent from any start theta_0 as far as J stays what it is on the way; c is the share of the start
that weight decay has retained (Loo et al. 2024 without decay; docs/theory.md, "A known start").
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exhume.errors import InputError

UNTRAINED_SHARE = 4
"""The weakest 1 / UNTRAINED_SHARE of a matrix's directions count as untrained."""
DECAY_MUST_EXPLAIN = 0.5
"""Largest part of the change of the untrained directions that may remain if it is to be told as weight decay."""
ALIKE_Z = 6.0
"""z of a correlation from which trained weights resemble initial ones: chance reaches it in less than 1 of 6e7 matrices
(exp(-z^2 / 2), Marchal and Arbel 2017)."""
UNLIKE = "The initial weights resemble the trained ones in no layer: training has probably begun with others."
"""What is said where they do not."""
ROUNDS, SETTLED = 20, 1e-8
"""Most rounds in which retained share and untrained directions are found in turn; the change that ends them."""


@dataclass(frozen=True, kw_only=True)
class WeightDelta:
    """What training did to a known start theta_0.

    module: the network with the parameters theta - retained * theta_0; retained: c, the share of theta_0 that weight
    decay has left; of: "change", or "momentum" where the parameters are those of `with_momentum` instead; resembles:
    whether the trained weights resemble those of the start (`resembles`).
    """

    module: nn.Module
    retained: float
    of: Literal["change", "momentum"] = "change"
    resembles: bool = True


@torch.no_grad()
def weight_delta(network: nn.Module, initial: nn.Module) -> WeightDelta:
    """What training has added to `initial` to make `network` of it.

    A parameter that did not change at all counts as frozen: its delta is 0, whatever the share retained of the others.

    Raises:
        InputError: they are different networks, or the same to the last weight, or hold no finite weights.
    """
    parameters, before = dict(network.named_parameters()), dict(initial.named_parameters())
    if any(isinstance(p, UninitializedParameter) or p.is_meta for p in (*parameters.values(), *before.values())):
        raise InputError("The network or its initial weights hold no values yet.")
    if {name: p.shape for name, p in parameters.items()} != {name: p.shape for name, p in before.items()}:
        raise InputError(
            "The initial weights are those of another network: names or shapes of parameters differ. If only its last "
            "layer differs, give the initial weights any last layer of the new shape."
        )
    pairs = [(parameters[name], start.to(parameters[name])) for name, start in before.items()]
    changed = [pair for pair in pairs if not torch.equal(*pair)]
    if not changed:
        raise InputError("The initial weights are the trained ones: training has added nothing.")
    if not all(tensor.isfinite().all() for pair in changed for tensor in pair):
        raise InputError("The initial or the trained weights are not finite.")
    largest = max((pair for pair in changed if pair[0].ndim == 2), key=lambda pair: min(pair[0].shape), default=None)
    retained = retained_share(*largest) if largest and min(largest[0].shape) > 2 * UNTRAINED_SHARE else 1.0
    delta = copy.deepcopy(network)
    for name, parameter in delta.named_parameters():
        start = before[name].to(parameter)
        frozen = torch.equal(parameter, start)
        parameter.copy_(torch.zeros_like(parameter) if frozen else parameter - retained * start)
    return WeightDelta(module=delta, retained=retained, resembles=resembles(parameters, before))


@torch.no_grad()
def resembles(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> bool:
    """Whether any matrix or kernel of the trained weights is correlated with the initial one beyond chance.

    Training that began with other weights, from another seed, leaves no such correlation; False too where so much
    training followed that nothing of the start is left, and it is worth nothing then. True if there is no matrix.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> one, other = torch.randn(2, 50, 50, generator=generator)
        >>> resembles({"weight": one + 0.5 * other}, {"weight": one}), resembles({"weight": one}, {"weight": other})
        (True, False)
    """
    pairs = [(trained[name].double(), value.double()) for name, value in start.items() if value.ndim > 1]
    z = [(w * u.to(w)).sum() / (w.norm() * u.pow(2).mean().sqrt()).clamp_min(1e-30) for w, u in pairs]
    return not z or bool(torch.stack([one.cpu() for one in z]).max() >= ALIKE_Z)


@torch.no_grad()
def midpoint_network(network: nn.Module, initial: nn.Module) -> nn.Module:
    """The network with the mean of its weights and the initial ones: its gates are nearest to those of the way."""
    middle, before = copy.deepcopy(network), dict(initial.named_parameters())
    for name, parameter in middle.named_parameters():
        parameter.lerp_(before[name].to(parameter), 0.5)
    return middle


def retained_share(trained: Tensor, start: Tensor) -> float:
    """The c for which trained - c start, both [out, in], is nearest to 0 in the directions that training changed least.

    Those are its weakest singular directions, so both are found in turn. With fewer images than three quarters of the
    directions these hold nothing but the start. If c explains less than half of what changed there it is no decay: 1.
    """
    trained, start = trained.double(), start.double()
    if len(trained) < trained.shape[1]:
        trained, start = trained.T, start.T
    retained, now, then = float((trained * start).sum() / start.pow(2).sum().clamp_min(1e-30)), trained, start
    for _ in range(ROUNDS):
        difference = trained - retained * start
        weakest = torch.linalg.eigh(difference.T @ difference).eigenvectors[:, : trained.shape[1] // UNTRAINED_SHARE]
        now, then = trained @ weakest, start @ weakest
        before, retained = retained, float((now * then).sum() / then.pow(2).sum().clamp_min(1e-30))
        if abs(retained - before) < SETTLED:
            break
    decayed = (now - retained * then).norm() < DECAY_MUST_EXPLAIN * (now - then).norm()
    return retained if decayed and 0 < retained < 1 else 1.0
