"""How far candidates are from explaining the weights, alike for all settings: what an attacker can compare."""

from collections.abc import Sequence

import torch
from torch import nn

from exhume.attack.activations import ScaleFree
from exhume.attack.methods import Exhume
from exhume.attack.residuals import relative_residual
from exhume.attack.search import Iterate
from exhume.attack.stationarity import network_gradients
from exhume.attack.target import make_target
from exhume.checkpoint import Checkpoint

EXACT_SHARPNESS = 1e6
"""Sharpness at which the smoothed gate is ReLU's own derivative in all but name."""


def exact_gate_residual(network: nn.Module, iterate: Iterate, layers: Sequence[str]) -> float:
    """The relative residual of `layers` with ReLU's own gates: how far the candidates are from explaining the weights.

    The residuals that the methods minimise cannot be compared between settings: the sharpness of their gates is a
    setting itself, and our weighting follows the candidates of the moment. This one depends on nothing but the
    candidates; priors are no part of it. More candidates and weaker priors fit better whether or not they are right, so
    it is no proof. (On a small network its rank correlation with the number of images recovered was 0.91, that of the
    method's own residual 0.51.)
    """
    gradients = network_gradients(network, iterate.images, lambda _: iterate.cotangents, ScaleFree(EXACT_SHARPNESS))
    named = [(name, p.detach()) for name, p in network.named_parameters() if p.requires_grad]
    kept = [(p, g) for (name, p), g in zip(named, gradients, strict=True) if name in layers]
    return relative_residual([p for p, _ in kept], [g for _, g in kept]).item()


def believed_layers(checkpoint: Checkpoint) -> list[str]:
    """The parameters whose stationarity `exact_gate_residual` asks for, whatever method is searched.

    These are all that our method believes where it believes every layer; else the first dense layer's: no candidates
    explain what initialisation has left in the others. For a network without an MLP they are all parameters.
    """
    target = make_target(checkpoint)
    target = target.moved_to(torch.device("cpu"), next(target.network.parameters()).dtype)
    found = Exhume().analyse(target)
    if found is None:
        return [name for name, _ in target.network.named_parameters()]
    layers = found.assumptions.layers
    if found.regime.every_layer:
        return layers
    first = layers[0].rpartition(".")[0]
    return [name for name in layers if name.rpartition(".")[0] == first]
