"""Where training began, if the attacker knows it: what training has added to it, and where its gradients are taken.

theta = c theta_0 + sum_i J(x_i)^T d_i holds for gradient descent from any start theta_0 as far as J stays what it is on
the way; c is what weight decay has left of the start (Loo et al. 2024 without decay, docs/theory.md, item 14).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exhume.errors import InputError

UNTOUCHED = 4
"""One in so many directions of a matrix are taken for such to which training has added nothing."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What training did to a start that is known.

    added: the network with the parameters theta - left * theta_0; left: c, the share of the start that decay has left.
    """

    added: nn.Module
    left: float


@torch.no_grad()
def change(network: nn.Module, initial: nn.Module) -> Change:
    """What training has added to `initial` to make `network` of it.

    Raises:
        InputError: they are different networks, or the same to the last weight, or hold no finite weights.
    """
    parameters, before = dict(network.named_parameters()), dict(initial.named_parameters())
    if any(isinstance(p, UninitializedParameter) or p.is_meta for p in (*parameters.values(), *before.values())):
        raise InputError("The network or its initial weights hold no values yet.")
    if {name: p.shape for name, p in parameters.items()} != {name: p.shape for name, p in before.items()}:
        raise InputError(
            "The initial weights are those of another network: names or shapes of parameters differ. If its last layer "
            "alone is another, put any of the right shape in its place."
        )
    pairs = [(parameters[name], start.to(parameters[name])) for name, start in before.items()]
    moved = [pair for pair in pairs if not torch.equal(*pair)]
    if not moved:
        raise InputError("The initial weights are the trained ones: training has added nothing.")
    if not all(tensor.isfinite().all() for pair in moved for tensor in pair):
        raise InputError("The initial or the trained weights are not finite.")
    largest = max((pair for pair in moved if pair[0].ndim == 2), key=lambda pair: min(pair[0].shape), default=None)
    left = share_left(*largest) if largest and min(largest[0].shape) > 2 * UNTOUCHED else 1.0
    added = copy.deepcopy(network)
    for name, parameter in added.named_parameters():
        start = before[name].to(parameter)
        parameter.copy_(torch.zeros_like(parameter) if torch.equal(parameter, start) else parameter - left * start)
    return Change(added=added, left=left)


@torch.no_grad()
def halfway(network: nn.Module, initial: nn.Module) -> nn.Module:
    """The network with the mean of its weights and the initial ones: gates there are nearest to those of the way."""
    middle, before = copy.deepcopy(network), dict(initial.named_parameters())
    for name, parameter in middle.named_parameters():
        parameter.lerp_(before[name].to(parameter), 0.5)
    return middle


def share_left(trained: Tensor, start: Tensor) -> float:
    """The c for which trained - c start, both [out, in], is nearest to nothing where training has added least.

    That is where it is weakest, in the last of its singular directions, so both are told in turn. Fewer images than
    three quarters of the directions leave these their start, exactly. Where c explains less than half of what changed
    there it is no decay, and 1.
    """
    trained, start = trained.double(), start.double()
    if len(trained) < trained.shape[1]:
        trained, start = trained.T, start.T
    left, now, then = float((trained * start).sum() / start.pow(2).sum().clamp_min(1e-30)), trained, start
    for _ in range(20):
        difference = trained - left * start
        weakest = torch.linalg.eigh(difference.T @ difference).eigenvectors[:, : trained.shape[1] // UNTOUCHED]
        now, then = trained @ weakest, start @ weakest
        before, left = left, float((now * then).sum() / then.pow(2).sum().clamp_min(1e-30))
        if abs(left - before) < 1e-8:
            break
    decayed = (now - left * then).norm() < 0.5 * (now - then).norm()
    return left if decayed and 0 < left < 1 else 1.0
