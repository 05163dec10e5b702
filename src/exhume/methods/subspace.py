"""Our scheme for dense networks: a search in the data's own subspace, with the gradients written out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exhume.candidates import Reading
from exhume.methods.ground import (
    Found,
    Multipliers,
    Reconstruction,
    Target,
    assumed_images,
    balanced_labels,
    black_or_white,
    falling,
    first_guess,
    grey,
    image_optimisers,
    implausible,
    snapshot,
)
from exhume.networks import CentredNetwork
from exhume.reading import (
    SMOOTH_DIRECTIONS,
    SMOOTH_ROUGHNESS,
    Subspace,
    bulk_noise,
    first_layer,
    is_stationary,
    roughness,
    spectrum_of,
)
from exhume.residual import Weighting, change_by_sum, left_behind, relative_residual
from exhume.stationarity import Dense, Term, dense_terms, product, scale_free, summed

LEFT_BEHIND = 0.26
"""Error of a candidate's own contribution to a neuron, of its root mean square (measured at the truth: see the log);
half of it where weight decay has made all layers stationary."""
FLOOR = 0.02
"""Error of the first layer that no candidate explains, of its root mean square."""
COMMON = 0.1
"""Error that neurons have in common at the end of the search, of what a direction of the neurons has in the weighted
layer. Its square grows from 0 in a line: these directions lead a search from its random start. Chosen by experiment."""
HIDDEN = 20.0
"""Weight of the hidden layers' equations, times candidates over neurons, over what the weighted first layer has in all
before common errors are taken off. Chosen by experiment (see the log), before these were thought of."""
SMOOTHNESS = 4e-6
"""Weight of a photograph's total variation against one layer's residual. Chosen by experiment (see the log)."""
BILEVEL = 5.0
"""Weight of grey in images that are black or white, against the weighted error. Chosen by experiment (see the log)."""
REWEIGHTED = 25
"""Evaluations after which the weighting is taken anew from the candidates."""


class SubspaceSearch:
    """Coordinates [m, r] and multipliers, judged by the relative residual of the layers that can be trusted."""

    def __init__(
        self,
        target: Target,
        dense: Dense,
        config: Reconstruction,
        generator: torch.Generator,
        *,
        pictures: bool = True,
    ) -> None:
        """pictures: whether the first layer sees images, so that its directions are pictures themselves."""
        assert config.init_scale is not None and config.sharpness is not None and config.steps is not None
        self.target, self.sharpness = target, scale_free(config.sharpness)
        read = read_weights(target, dense, config, pictures=pictures)
        self.subspace, self.reading = read.subspace, read.reading
        self.stationary, self.noisy = read.stationary, read.noisy
        self.dense = Dense([self.subspace.first, *dense.weights[1:]], [None, *dense.biases[1:]], dense.activation)
        self.precision = fast_products(self.subspace.first)
        self.products = self.dense.multiplied_in(self.precision)
        self.steps, self.evaluations = config.steps, 0
        self.weighting: Weighting | None = None
        self.hidden: Tensor | float = 0.0
        self.bilevel: Tensor | float = 0.0
        self.labels = balanced_labels(target, config, self.reading.images, len(self.subspace.first))
        self.variables = self._start(len(self.labels), config.init_scale, generator)
        self.multipliers = Multipliers(target, self.labels, config, generator)
        self.optimisers: list[torch.optim.Optimizer] = image_optimisers(
            self.variables, self.multipliers, target, config
        )
        self.schedules = [falling(self.optimisers[0], config)]

    def _start(self, count: int, scale: float, generator: torch.Generator) -> Tensor:
        """What is searched for: coordinates, [m, r]."""
        pixels = self.subspace.basis[: self.target.centre.numel()]
        around = (self.target.centre - _subtracted(self.target)).flatten() @ pixels
        return first_guess((count, self.reading.rank), scale, around, generator)

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates' coordinates, [m, r], their images, and by how much these are none."""
        images, ones = self._images(self.precision)
        return self.variables, images, 1e-3 * (ones - 1).pow(2).sum()

    def objective(self) -> tuple[Tensor, Tensor]:
        coordinates, images, against = self._look()
        count = None if self.stationary else 1 + len(self.noisy)
        terms = dense_terms(self.products, coordinates, self.multipliers.cotangents, self.sharpness, count=count)
        if self.reading.weighted and self.evaluations % REWEIGHTED == 0:
            self._reweigh(terms[0])
        self.evaluations += 1
        gradients = summed(self.products, terms if self.stationary else terms[:1])
        parameters = self.dense.parameters[: len(gradients)]
        weights = [self.weighting, *[None] * (len(gradients) - 1)]
        residual = relative_residual(parameters, gradients, weights)
        for layer, row in enumerate(self.noisy, start=1):
            change = change_by_sum(self.products.weights[layer], self.products.biases[layer], terms[layer])
            residual = residual + self.hidden * (row.added + change / row.noise**2)
        penalty = self.multipliers.penalty() + against + implausible(images, self.reading.smoothness)
        return residual, penalty + self.bilevel * grey(images) if self.reading.bilevel else penalty

    @torch.no_grad()
    def _reweigh(self, term: Term) -> None:
        """Takes the weighting of the first layer, and what counts against it, from the candidates."""
        if not (term.delta.isfinite().all() and term.inputs.isfinite().all()):
            return  # a divergence is seen in the residual
        self.weighting = left_behind(
            self.subspace.first,
            term.delta,
            term.inputs,
            error=LEFT_BEHIND / 2 if self.stationary else LEFT_BEHIND,
            floor=FLOOR,
            common=COMMON * min(self.evaluations / self.steps, 1) ** 0.5,
            precision=self.precision,
        )
        self.hidden = HIDDEN * len(self.labels) / term.delta.shape[1] / self.weighting.of_columns
        self.bilevel = self.reading.bilevel / self.weighting.of_all

    def _images(self, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Un-centred images and their bias coordinate, which a true training image has at 1."""
        values = product(self.variables, self.subspace.basis.T.to(precision))
        count = self.target.centre.numel()
        ones = values[:, count] if self.subspace.biased else values.new_ones(())
        return values[:, :count].reshape(-1, *self.target.shape) + _subtracted(self.target), ones

    def found(self) -> Found:
        return snapshot(self.target, self._images(self.variables.dtype)[0], self.multipliers)


@dataclass(frozen=True, kw_only=True)
class NoisyLayer:
    """A hidden layer W that still shows its initialisation.

    noise: standard deviation of the initial weights; added: norm(W)^2 / noise^2 less the number of entries, on average
    0 for noise alone, so what candidates have to explain of the layer.
    """

    noise: float
    added: float


@dataclass(frozen=True, kw_only=True)
class Read:
    """What is read from the weights.

    stationary: all layers are what the data made them; noisy: otherwise, the hidden layers from the second on, empty
    where their initialisation is not told or not asked for.
    """

    subspace: Subspace
    stationary: bool
    noisy: list[NoisyLayer]
    reading: Reading


def read_weights(target: Target, dense: Dense, config: Reconstruction, *, pictures: bool = True) -> Read:
    """Reads subspace, number of images, trusted layers, weighting and priors from the weights and the mean alone.

    Args:
        pictures: whether directions are pictures, which tell photographs; where they are not, images are smoothed.
    """
    read, space = spectrum_of(dense)
    images, images_from = assumed_images(config, target, read)
    rank = min(max(read, images), *first_layer(dense).shape)
    left_out = space.singular[rank : rank + 1].sum() / space.singular[0].clamp_min(1e-30)
    space = space.leading(rank)
    stationary = is_stationary(dense, images)
    shown = min(target.shape[1:]) >= 3
    smooth = shown and (
        not pictures
        or (
            rank >= SMOOTH_DIRECTIONS
            and roughness(space.leading(SMOOTH_DIRECTIONS).basis, target.shape) < SMOOTH_ROUGHNESS
        )
    )
    bilevel = BILEVEL * (shown and not smooth and black_or_white(target.centre))
    trusted = len(dense.weights) if stationary else 1  # the residual is a sum over them
    weighted = config.weighted is not False
    noisy = noisy_layers(dense) if weighted and not stationary else []
    known = {parameter.data_ptr(): name for name, parameter in target.network.named_parameters()}
    names = [known[parameter.data_ptr()] for parameter in dense.parameters]
    first = 1 + (dense.biases[0] is not None)
    hidden = [name for name in names[first:] if name.endswith("weight")][: len(noisy)]
    return Read(
        subspace=space,
        stationary=stationary,
        noisy=noisy,
        reading=Reading(
            images=images,
            images_from=images_from,
            rank=rank,
            left_out=left_out.item(),
            layers=names if stationary else names[:first] + hidden,
            weighted=weighted,
            smoothness=config.smoothness if config.smoothness is not None else trusted * SMOOTHNESS * smooth,
            bilevel=(config.bilevel if config.bilevel is not None else bilevel) * weighted,
        ),
    )


def noisy_layers(dense: Dense) -> list[NoisyLayer]:
    """The hidden layers from the second on, if all of them show what initialisation has left."""
    rows = []
    for weight in dense.weights[1:-1]:
        noise = bulk_noise(weight)
        if noise is None:
            return []
        rows.append(NoisyLayer(noise=noise, added=weight.pow(2).sum().item() / noise**2 - weight.numel()))
    return rows


def fast_products(like: Tensor) -> torch.dtype:
    """bfloat16 for float32 where the machine multiplies it many times faster: GPUs, and CPUs with units for it.

    The weighted condition holds to a quarter at best, its rounding is of a few thousandths.
    """
    if like.dtype != torch.float32:
        return like.dtype
    units = torch.cpu.get_capabilities()
    fast = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if like.is_cuda
        else units.get("amx_bf16", False) or units.get("avx512_bf16", False)
    )
    return torch.bfloat16 if fast else torch.float32


def _subtracted(target: Target) -> Tensor:
    """What the network takes off an image before its first layer, [c, h, w]."""
    network = target.network
    return network.centre.centre if isinstance(network, CentredNetwork) else torch.zeros_like(target.centre)
