"""How far candidates are from explaining the weights, alike for all settings: what an attacker can see."""

from collections.abc import Sequence

import torch
from torch import nn

from exhume.checkpoint import Checkpoint
from exhume.methods import METHODS, Reconstruction, resolve
from exhume.methods.ground import Found, Target
from exhume.residual import relative_residual
from exhume.stationarity import network_gradients, scale_free

SHARP = 1e6
"""Sharpness at which the smoothed gate is ReLU's own derivative in all but name."""


def misfit(network: nn.Module, found: Found, layers: Sequence[str]) -> float:
    """How far the candidates are from explaining the weights: the relative residual of `layers`, with ReLU's own gates.

    The residuals that the methods minimise cannot be compared between settings: the sharpness of their gates is a
    setting itself, and ours is weighted by the candidates of the moment, so that candidates that explain little are
    held to little. This one depends on nothing but the candidates. Priors are no part of it. More candidates and
    weaker priors fit better whether or not they are right, so it is no proof. On a small network its rank correlation
    with the number of images recovered was 0.91, that of the method's own residual 0.51 (see docs/log.md).
    """
    gradients = network_gradients(network, found.images, lambda _: found.cotangents, scale_free(SHARP))
    named = [(name, p.detach()) for name, p in network.named_parameters() if p.requires_grad]
    kept = [(p, g) for (name, p), g in zip(named, gradients, strict=True) if name in layers]
    return relative_residual([p for p, _ in kept], [g for _, g in kept]).item()


def trusted_layers(checkpoint: Checkpoint) -> list[str]:
    """The parameters whose stationarity `misfit` asks for, whatever method is searched.

    Those that our method asks for, the dense layers' where there are such; but if the deeper ones are not stationary
    only the first dense layer's: what initialisation has left in the others no candidates explain.
    """
    network = checkpoint.build()
    centre = checkpoint.centre.to(next(network.parameters()).dtype)
    target = Target(network=network, centre=centre, task=checkpoint.task, outputs=checkpoint.outputs)
    config = resolve(Reconstruction(), checkpoint.task)
    layers = METHODS[config.method].start(target, config, torch.Generator()).reading.layers
    if layers[-1] == list(dict(network.named_parameters()))[-1]:  # the last layer's is asked for only with all others
        return layers
    first = layers[0].rpartition(".")[0]
    return [name for name in layers if name.rpartition(".")[0] == first]
