"""Our scheme for dense networks: a search in the data's own subspace, with the gradients written out."""

import torch
from torch import Tensor, nn

from exhume.candidates import Reading
from exhume.methods.ground import (
    Found,
    Multipliers,
    Reconstruction,
    Target,
    assumed_images,
    balanced_labels,
    first_guess,
    image_optimisers,
    outside,
    snapshot,
)
from exhume.networks import ACTIVATIONS, CentredNetwork
from exhume.reading import (
    SMOOTH_DIRECTIONS,
    SMOOTH_ROUGHNESS,
    Subspace,
    first_layer,
    is_stationary,
    roughness,
    spectrum_of,
    squared_differences,
)
from exhume.stationarity import Dense, dense_terms, left_behind, relative_residual, scale_free, summed

LEFT_BEHIND = 0.26
"""Error of a candidate's own contribution to a neuron, of its root mean square (measured at the truth: see the log)."""
FLOOR = 0.02
"""Error of the first layer that no candidate explains, of its root mean square."""
REWEIGHTED = 25
"""Evaluations after which the weighting is taken anew from the candidates."""


class SubspaceSearch:
    """Coordinates [m, r] and multipliers, judged by the relative residual of the layers that can be trusted."""

    def __init__(self, target: Target, dense: Dense, config: Reconstruction, generator: torch.Generator) -> None:
        assert config.init_scale is not None and config.sharpness is not None
        self.target, self.sharpness = target, scale_free(config.sharpness)
        self.offset = _subtracted(target)
        self.subspace, self.stationary, self.reading = read_weights(target, dense, config)
        self.dense = Dense([self.subspace.first, *dense.weights[1:]], [None, *dense.biases[1:]], dense.activation)
        self.factor: Tensor | None = None
        self.evaluations = 0
        self.labels = balanced_labels(target, config, self.reading.images, len(self.subspace.first))
        pixels = self.subspace.basis[: self.offset.numel()]
        around = (target.centre - self.offset).flatten() @ pixels
        self.coordinates = first_guess((len(self.labels), self.reading.rank), config.init_scale, around, generator)
        self.multipliers = Multipliers(target, self.labels, config, generator)
        self.optimisers: list[torch.optim.Optimizer] = image_optimisers(
            self.coordinates, self.multipliers, target, config
        )

    def objective(self) -> tuple[Tensor, Tensor]:
        terms = dense_terms(
            self.dense, self.coordinates, self.multipliers.cotangents, self.sharpness, first_only=not self.stationary
        )
        if self.reading.weighted and self.evaluations % REWEIGHTED == 0:
            with torch.no_grad():
                if all(part.isfinite().all() for part in terms[0]):  # a divergence is seen in the residual
                    self.factor = left_behind(self.subspace.first, *terms[0], error=LEFT_BEHIND, floor=FLOOR)
        self.evaluations += 1
        gradients = summed(self.dense, terms)
        parameters = self.dense.parameters[: len(gradients)]
        weights = [self.factor, *[None] * (len(gradients) - 1)]
        images, ones = self._images()
        rough = self.reading.smoothness * squared_differences(images)
        penalty = self.multipliers.penalty() + 1e-3 * ((ones - 1).pow(2).sum() + outside(images)) + rough
        return relative_residual(parameters, gradients, weights), penalty

    def _images(self) -> tuple[Tensor, Tensor]:
        """Un-centred images and their bias coordinate, which a true training image has at 1."""
        values = self.coordinates @ self.subspace.basis.T
        count = self.target.centre.numel()
        ones = values[:, count] if self.subspace.biased else values.new_ones(())
        return values[:, :count].reshape(-1, *self.target.shape) + self.offset, ones

    def found(self) -> Found:
        return snapshot(self.target, self._images()[0], self.multipliers)


def as_dense(network: nn.Module) -> Dense | None:
    """The network as a chain of dense layers, or None if it is anything else."""
    layers = list(network.layers) if isinstance(network, CentredNetwork) else None
    if layers is None:
        layers = list(network) if type(network) is nn.Sequential else []
    layers = layers[1:] if layers and isinstance(layers[0], nn.Flatten) else layers
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    # by their printed form, which tells also a leaky ReLU's slope and how a GELU is computed
    between = {repr(layer) for layer in layers[1::2]}
    activations = [name for name, make in ACTIVATIONS.items() if between <= {repr(make())}]
    if len(linear) != len(layers[::2]) or len(layers) != 2 * len(linear) - 1 or not activations:
        return None
    return Dense(
        [layer.weight.detach() for layer in linear],
        [layer.bias.detach() if layer.bias is not None else None for layer in linear],
        activations[0],
    )


def read_weights(target: Target, dense: Dense, config: Reconstruction) -> tuple[Subspace, bool, Reading]:
    """Reads subspace, number of images, trusted layers, weighting and smoothness from the weights alone."""
    read, space = spectrum_of(dense)
    images, images_from = assumed_images(config, target, read)
    rank = min(max(read, images), *first_layer(dense).shape)
    left_out = space.singular[rank : rank + 1].sum() / space.singular[0].clamp_min(1e-30)
    space = space.leading(rank)
    stationary = is_stationary(dense, images)
    smooth = (
        rank >= SMOOTH_DIRECTIONS
        and min(target.shape[1:]) >= 3
        and roughness(space.leading(SMOOTH_DIRECTIONS).basis, target.shape) < SMOOTH_ROUGHNESS
    )
    names = [name for name, parameter in target.network.named_parameters() if parameter.requires_grad]
    first_names = names[: 1 + (dense.biases[0] is not None)]
    return (
        space,
        stationary,
        Reading(
            images=images,
            images_from=images_from,
            rank=rank,
            left_out=left_out.item(),
            layers=names if stationary else first_names,
            weighted=config.weighted is not False,
            smoothness=config.smoothness if config.smoothness is not None else 1e-5 * smooth,
        ),
    )


def _subtracted(target: Target) -> Tensor:
    """What the network takes off an image before its first layer, [c, h, w]."""
    network = target.network
    return network.centre.centre if isinstance(network, CentredNetwork) else torch.zeros_like(target.centre)
