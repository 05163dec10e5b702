"""A sum of gradients at images as two factors, neurons and images, and what the first layer gives within it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.architecture import MLP
from exhume.attack.momentum import FLOAT32_ROUNDING, rank_above_rounding
from exhume.attack.priors import spread
from exhume.attack.spectrum import HALF_ROUNDING, bulk_rank, first_layer, most_directions
from exhume.attack.target import Target

MOST_RANK = 0.25
"""Rank over neurons up to which right vectors can be told from wrong ones by their zeros."""
MOST_DIRECTIONS = 200
"""Directions up to which it is tried: the time grows with their third power."""
TYPICAL_SPREAD = 0.45
"""Distance of an image from the mean, relative to the largest that images in [0, 1] can have on average."""


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """M = U S V^T, a momentum or the change since a start, and what the first layer W gives within it.

    W is the trained one for a momentum, for a change that halfway since the start.

    subtracted, divided: before the first layer; typical: an image's distance from the mean, length: that of its
    inputs; neurons: U, [N, n]; singular: S, [n]; basis: V, [d, n]; gates: W V, [N, n]. An image is its coordinates
    x V, [n].
    """

    subtracted: Float[Tensor, "c h w"]
    divided: Float[Tensor, "c h w"] | None
    typical: float
    length: float
    neurons: Float[Tensor, "N n"]
    singular: Float[Tensor, " n"]
    basis: Float[Tensor, "d n"]
    gates: Float[Tensor, "N n"]
    biased: bool
    smooth: bool

    @property
    def rank(self) -> int:
        return len(self.singular)

    def inputs(self, coordinates: Float[Tensor, "m n"]) -> Float[Tensor, "m c h w"]:
        """What the first layer sees of the images."""
        pixels = self.subtracted.numel()
        return (coordinates @ self.basis[:pixels].T).reshape(-1, *self.subtracted.shape)

    def differences(self, coordinates: Float[Tensor, "m n"]) -> Float[Tensor, "m c h w"]:
        """The images less what the network subtracts."""
        inputs = self.inputs(coordinates)
        return inputs if self.divided is None else inputs * self.divided

    def coordinates(self, target: Target, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m n"]:
        """Those of un-centred images, of their projections."""
        inputs = target.as_inputs(images.to(target.centre)).flatten(1).cpu().double()
        return (torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1) if self.biased else inputs) @ self.basis


def contributions(target: Target, *, smooth: bool) -> Contributions | None:
    """What is read of a momentum, or of the change since a start; None where zeros cannot tell images.

    The rounding of a change has summed up over the whole training, so that it is a bulk.
    """
    mlp, explained, delta = target.architecture, target.explained_mlp, target.delta
    if not isinstance(mlp, MLP) or explained is None or delta is None or mlp.activation != "relu":
        return None
    matrix = first_layer(explained).detach().cpu().double()
    size = matrix.norm(dim=1)
    rounding = FLOAT32_ROUNDING if delta.of == "momentum" else HALF_ROUNDING
    told = size > rounding * size.max()  # a neuron that hardly opened is a zero of any vector
    if not told.any():
        return None
    neurons, singular, basis = torch.linalg.svd(matrix[told], full_matrices=False)
    rows, columns = matrix[told].shape
    rank = rank_above_rounding(singular) if delta.of == "momentum" else bulk_rank(singular, (rows, columns))
    if not 1 < rank <= min(MOST_RANK * rows, MOST_DIRECTIONS, most_directions(matrix)):
        return None
    cut = basis[:rank].T.contiguous()
    divided, typical = target.divided, TYPICAL_SPREAD * spread(target.centre)
    return Contributions(
        subtracted=target.subtracted.detach().cpu().double(),
        divided=None if divided is None else divided.detach().cpu().double(),
        typical=typical,
        length=typical / target.unit,
        neurons=neurons[:, :rank].contiguous(),
        singular=singular[:rank],
        basis=cut,
        gates=first_layer(mlp).detach().cpu().double()[told] @ cut,
        biased=explained.biases[0] is not None,
        smooth=smooth,
    )
