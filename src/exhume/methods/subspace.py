"""Our scheme for dense networks: a search in the data's own subspace, with the gradients written out."""

from collections.abc import Sequence
from functools import partial
from itertools import compress

import torch
from torch import Tensor

from exhume.chains import dense_part
from exhume.methods.ground import (
    Found,
    Multipliers,
    Reconstruction,
    Target,
    balanced_labels,
    falling,
    first_guess,
    grey,
    image_optimisers,
    implausible,
    snapshot,
)
from exhume.methods.trusted import read_weights
from exhume.networks import CentredNetwork
from exhume.reading import Subspace, first_layer
from exhume.residual import Weighting, change_by_sum, left_behind, relative_residual
from exhume.stationarity import Dense, Term, dense_terms, product, scale_free, summed

COMMON = 0.1
"""Error that neurons have in common at the end of the search, of what a direction of the neurons has in the weighted
layer. Its square grows from 0 in a line: these directions lead a search from its random start. Chosen by experiment."""
HIDDEN = 20.0
"""Weight of the hidden layers' equations, times candidates over neurons, over what the weighted first layer has in all
before common errors are taken off. Chosen by experiment (see the log), before these were thought of."""
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
        explained = dense_part(target.explained)
        assert explained is not None
        read = read_weights(target, explained, config, pictures=pictures)
        self.subspace, self.reading = read.subspace, read.reading
        self.stationary, self.noisy = read.stationary, read.noisy
        self.error, self.floor = read.errors
        self.dense = _seen_in(self.subspace.first, explained)
        self.moved = [target.moved(parameter) for parameter in self.dense.parameters]
        self.precision = fast_products(self.subspace.first)
        explained_as_it_is = target.change is None and not read.rescaled
        here = self.dense if explained_as_it_is else _seen_in(first_layer(dense) @ self.subspace.basis, dense)
        self.products = here.multiplied_in(self.precision)
        self.added = {layer: AddedLayer(added, self.precision) for layer, added in read.added.items()}
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
        count = None if self.stationary else 1 + max([len(self.noisy), *self.added])
        terms = dense_terms(self.products, coordinates, self.multipliers.cotangents, self.sharpness, count=count)
        if self.reading.weighted and self.evaluations % REWEIGHTED == 0:
            self._reweigh(terms)
        self.evaluations += 1
        gradients = summed(self.products, terms if self.stationary else terms[:1])
        weights = [self.weighting, *[None] * (len(gradients) - 1)]
        asked = compress(zip(self.dense.parameters, gradients, weights, strict=False), self.moved)
        residual = relative_residual(*zip(*asked, strict=True))
        for layer, row in enumerate(self.noisy, start=1):
            change = change_by_sum(self.products.weights[layer], self.products.biases[layer], terms[layer])
            residual = residual + self.hidden * (row.added + change / row.noise**2)
        if self.added:
            of_added = [added.residual(terms[layer]) for layer, added in self.added.items()]
            residual = torch.stack([residual, *of_added]).mean()
        penalty = self.multipliers.penalty() + against + implausible(images, self.reading.smoothness)
        return residual, penalty + self.bilevel * grey(images) if self.reading.bilevel else penalty

    @torch.no_grad()
    def _reweigh(self, terms: Sequence[Term]) -> None:
        """Takes the weightings, and what counts against the first layer's, from the candidates."""
        term = terms[0]
        if not (term.delta.isfinite().all() and term.inputs.isfinite().all()):
            return  # a divergence is seen in the residual
        common = COMMON * min(self.evaluations / self.steps, 1) ** 0.5
        weigh = partial(left_behind, error=self.error, floor=self.floor, common=common, precision=self.precision)
        self.weighting = weigh(self.subspace.first, term.delta, term.inputs)
        for layer, added in self.added.items():
            added.weighting = weigh(added.first, terms[layer].delta, added.within(terms[layer]))
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


class AddedLayer:
    """What training added to a hidden layer, judged within its strongest directions as the first layer is."""

    def __init__(self, strongest: Subspace, precision: torch.dtype) -> None:
        # column by column, an order of summation that the measured rows are repeated with to the last bit
        self.first, self.basis = strongest.first.T.contiguous().T, strongest.basis.to(precision)
        self.weighting: Weighting | None = None

    def within(self, term: Term) -> Tensor:
        """The layer's inputs in these directions, [m, r]."""
        return product(term.inputs, self.basis)

    def residual(self, term: Term) -> Tensor:
        found = product(term.delta.T, self.within(term).to(self.basis.dtype))
        return relative_residual([self.first], [found], [self.weighting])


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


def _seen_in(first: Tensor, dense: Dense) -> Dense:
    """A chain whose first layer, [W | b], takes coordinates in a basis: [width, r]."""
    return Dense([first, *dense.weights[1:]], [None, *dense.biases[1:]], dense.activation)


def _subtracted(target: Target) -> Tensor:
    """What the network takes off an image before its first layer, [c, h, w]."""
    network = target.network
    return network.centre.centre if isinstance(network, CentredNetwork) else torch.zeros_like(target.centre)
