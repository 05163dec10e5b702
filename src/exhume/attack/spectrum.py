"""What the spectra of the layers show: the data's subspace, its rank, the noise of an initialisation."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from exhume.architecture import MLP
from exhume.networks import Shape

STATIONARY_ENERGY = 0.95
"""Share of a hidden layer's energy in its first `images` directions from which on training has made the layer."""
BALANCED = 0.1
"""Relative difference of consecutive layers' squared norms up to which decay has balanced them (decayed: 1e-6)."""
HOMOGENEOUS = ("relu", "leaky-relu")
"""Activations for which the norms of consecutive layers balance."""

ROUNDING = 1e-5
"""Singular value, relative to the largest, below which a float32 training leaves rounding."""
HALF_ROUNDING = 1e-3
"""Singular value, relative to the largest, below which there may be rounding of any kind (half precision: 5e-4)."""
GAP = 5.0
"""Ratio of consecutive singular values that ends a spectrum; within one they fall more slowly."""
BULK_MARGIN = 1.02
"""Singular values up to so many times the edge of the bulk belong to it: the edge of a finite matrix fluctuates."""
GAP_BELOW = 2.0
"""A gap ends the rank only if what follows it is below so many times the edge of the bulk."""
SMALLEST_BULK = 8
"""Rows and columns that must be left over for a bulk to be measured."""
BULK_ROUNDS = 20
"""Most rounds in which the bulk's noise and the rank above it are found in turn."""
BULK_SHARE = 0.5
"""Share of the directions that must be bulk for its noise to be believed."""
NOISE_ENERGY = 0.05
"""Share of a layer's energy that must be bulk for it to be its initialisation."""
UNUSED = 1e-3
"""Norm of a row or column, relative to the largest, up to which a neuron or pixel is unused."""
FEW_DIRECTIONS = 0.95
"""Share of the used rows or columns up to which directions are few."""

FEW_ABOVE_BULK = 0.6
"""Share of the rows or columns in use up to which directions above a bulk of rounding are few: 0.11 to 0.53 where there
were at most half as many images as neurons, 0.72 and more where there were more than neurons (SGD, in bfloat16 or
float32). Nearly as many images as neurons lie between, and count as many."""
HALF_STEP = 2.0**-8
"""Largest error of rounding to bfloat16, relative, twice: the strongest directions of it are below the bulk's edge of
so large an error."""
UNEQUAL = 0.32
"""Distance of the quartiles of neurons' changes, as logarithms, from which gradient descent has made them: 0.35 to 0.53
in 21 trainings by SGD (momentum, decay, dropout, shifts; 1 to 100 epochs; 100 to 5,000 digits or photographs; 64 to
1,000 neurons), 0.10 to 0.20 in 18 by Adam, AdamW, RMSprop and Adagrad; 0.29 by Adam at a rate of 0.01, 60 epochs."""

SMOOTH_DIRECTIONS = 50
"""Directions that tell smoothness: the first few are smooth whatever the images are, the last are rough."""
SMOOTH_ROUGHNESS = 1.1
"""Their roughness up to which images are photographs (CIFAR-10: 0.8, digits: 1.5 to 1.8, noise: 4)."""
PICTURE_ROUGHNESS = 2.8
"""Their roughness up to which they are pictures at all (textures, letters, shapes: 1.6 to 1.9; noise: 4)."""
FEWEST_PICTURES = 10
"""Directions from which pictures can be told from noise, whose directions are all as rough."""


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The span of the training images in the first layer [W | b] = U S V^T.

    A candidate is its coordinates c, [r]: (image - centre, 1) = c V^T, since every row of the first layer's stationary
    value is a combination of the training images, each with a 1 for the bias.
    basis: V, [d (+ 1 with a bias), r]; first: U S, [width, r]; singular: S, [r].
    """

    basis: Float[Tensor, "d r"]
    first: Float[Tensor, "width r"]
    singular: Float[Tensor, " r"]
    biased: bool

    def coordinates(self, inputs: Float[Tensor, "n inputs"]) -> Float[Tensor, "n r"]:
        """Those of what the layer sees, or of its projection."""
        return self.with_ones(inputs) @ self.basis

    def share(self, inputs: Float[Tensor, "n inputs"]) -> Float[Tensor, " n"]:
        """The share of the squared norm of what the layer sees, with a 1 for the bias, that is within the subspace."""
        whole = self.with_ones(inputs)
        return (whole @ self.basis).pow(2).sum(1) / whole.pow(2).sum(1).clamp_min(1e-30)

    def with_ones(self, inputs: Float[Tensor, "n inputs"]) -> Float[Tensor, "n d"]:
        """What the layer sees, with a 1 for the bias where it has one."""
        return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1) if self.biased else inputs

    def within(self, span: Float[Tensor, "d k"]) -> "Subspace":
        """What of all these directions lies in the span of orthonormal columns, strongest first."""
        inner = decompose(self.first @ (self.basis.T @ span))
        return replace(inner, basis=span @ inner.basis, singular=inner.singular.to(span), biased=self.biased)

    def padded(self, multiple: int) -> "Subspace":
        """With directions of zeros, up to a multiple: a coordinate in them that is 0 stays so."""
        short = -self.basis.shape[1] % multiple
        if short == 0:
            return self
        basis, first, singular = (pad(part, (0, short)) for part in (self.basis, self.first, self.singular))
        return Subspace(basis=basis, first=first, singular=singular, biased=self.biased)

    def leading(self, rank: int) -> "Subspace":
        """The `rank` strongest directions."""
        return Subspace(
            basis=self.basis[:, :rank].contiguous(),
            first=self.first[:, :rank].contiguous(),
            singular=self.singular[:rank],
            biased=self.biased,
        )


@dataclass(frozen=True, kw_only=True)
class Span:
    """What the first layer sees of the images, if something besides the weights tells it.

    basis: orthonormal columns; discarded: the largest singular value of what else there was, relative to the largest.
    """

    basis: Float[Tensor, "d r"]
    discarded: float


def first_layer(mlp: MLP) -> Tensor:
    """[W | b] of the first layer, [width, d (+ 1 with a bias)]."""
    bias = mlp.biases[0]
    return mlp.weights[0] if bias is None else torch.cat([mlp.weights[0], bias[:, None]], 1)


def are_few(
    rank: int, matrix: Float[Tensor, "rows columns"], singular: Float[Tensor, " k"], *, weights: Tensor
) -> bool:
    """Whether what training added to a matrix is `rank` directions and the rounding of weights to half precision.

    Rounding leaves no gap behind them, but a bulk. That of other initial weights is stronger by far.

    Args:
        rank: number of directions above a bulk.
        singular: all singular values of the matrix, in descending order.
        weights: the trained weights, of the same size.
    """
    edge = sum(size**0.5 for size in matrix.shape) * HALF_STEP * float(weights.pow(2).mean().sqrt())
    rounded = rank < len(singular) and float(singular[rank]) <= edge
    return rounded and rank < FEW_ABOVE_BULK * most_directions(matrix)


def changed_unequally(change: Float[Tensor, "width d"]) -> bool:
    """Whether training changed some neurons of a layer far more than others, as gradient descent does.

    A neuron's change is as large as the sum of its gradients. Adam, RMSprop and Adagrad divide by the size of these, so
    that all neurons change nearly alike, whatever the images. What is asked is the distance between the quartiles of
    the logarithms of the rows' norms; neurons that did not change at all are left out.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> alike = torch.randn(200, 50, generator=generator)
        >>> changed_unequally(alike), changed_unequally(alike * torch.rand(200, 1, generator=generator))
        (False, True)
    """
    norms = change.norm(dim=1)
    norms = norms[norms > 0]
    if not len(norms) or not norms.isfinite().all():
        return False
    lower, upper = norms.double().log().quantile(norms.new_tensor([0.25, 0.75], dtype=torch.float64))
    return bool(upper - lower > UNEQUAL)


def bulk_noise(matrix: Float[Tensor, "rows columns"], singular: Tensor | None = None) -> float | None:
    """Standard deviation of the entries that an initialisation left in a matrix.

    None where too little of it is left to be told from what training has added: of the directions, or of the energy.

    Args:
        singular: all its singular values in descending order, if they are known.
    """
    rows, columns = matrix.shape
    singular = torch.linalg.svdvals(matrix) if singular is None else singular
    rank = bulk_rank(singular, (rows, columns))
    if rank > BULK_SHARE * min(rows, columns):
        return None
    noise = float(singular[rank:].median() / _median_singular(rows - rank, columns - rank))
    return noise if noise**2 * matrix.numel() > NOISE_ENERGY * float(matrix.pow(2).sum()) else None


def bulk_rank(singular: Float[Tensor, " k"], size: tuple[int, int]) -> int:
    """Number of singular values above the Marchenko-Pastur bulk that the initialisation (or rounding) left behind.

    The noise level is read from the median of the bulk, the bulk from what the rank leaves over, until both agree.

    Args:
        singular: all singular values in descending order, of a matrix of `size` (rows, columns).
    """
    rank, edge = 0, 0.0
    for _ in range(BULK_ROUNDS):
        rows, columns = size[0] - rank, size[1] - rank
        if min(rows, columns) < SMALLEST_BULK:
            return len(singular)
        noise = singular[rank:].median().item() / _median_singular(rows, columns)
        edge = max(noise * (rows**0.5 + columns**0.5), ROUNDING * singular[0].item())
        found = int((singular > BULK_MARGIN * edge).sum())
        if found == rank:
            break
        rank = found
    return gap_rank(singular, rank, GAP_BELOW * edge)


def gap_rank(singular: Tensor, rank: int, floor: float) -> int:
    """Where weight decay has left nothing but rounding, which is no bulk, the rank ends at the fall into it."""
    ratios = singular[:rank] / singular[1 : rank + 1].clamp_min(1e-30)
    ratios = torch.where(singular[1 : rank + 1] < floor, ratios, 0)
    return int(ratios.argmax()) + 1 if rank and ratios.amax() > GAP else rank


def has_spectral_gap(matrix: Float[Tensor, "rows columns"], singular: Float[Tensor, " k"]) -> bool:
    """Whether a matrix is made of few directions: its singular values, in descending order, fall to rounding.

    Rows and columns that are next to nothing, neurons that never fire and pixels that no image shows, make an end of
    their own, and so do pixels that a single image shows: nearly as many directions as rows or columns are not few.
    """
    seen = singular[: most_directions(matrix)]
    return bool(((seen[:-1] > GAP * seen[1:]) & (seen[1:] < HALF_ROUNDING * singular[0])).any())


def most_directions(matrix: Float[Tensor, "rows columns"]) -> int:
    """How many directions are few: those of FEW_DIRECTIONS of the rows or columns in use."""
    norms = matrix.norm(dim=0), matrix.norm(dim=1)
    return int(FEW_DIRECTIONS * min(int((norm > UNUSED * norm.max()).sum()) for norm in norms))


def _median_singular(rows: int, columns: int) -> float:
    """Median singular value of a Gaussian matrix of unit variance: the quantile of the Marchenko-Pastur law."""
    ratio = min(rows, columns) / max(rows, columns)
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    # substituting the angle removes the density's singular ends
    angles = (np.arange(2000) + 0.5) * np.pi / 2000
    values = (low + high) / 2 - (high - low) / 2 * np.cos(angles)
    cumulated = np.cumsum(np.sin(angles) ** 2 / values)
    median = np.interp(0.5 * cumulated[-1], cumulated, values)
    return float((median * max(rows, columns)) ** 0.5)


def decompose(matrix: Float[Tensor, "out in"], *, biased: bool = False) -> Subspace:
    """All directions of a matrix U S V^T, strongest first; computed in float64, in which S is left.

    A GPU gives singular vectors other signs, and so a search another start. float64 promises the same numbers
    everywhere, so it is decomposed on the CPU.
    """
    place = torch.device("cpu") if matrix.dtype == torch.float64 else matrix.device
    left, singular, right = torch.linalg.svd(matrix.to(place, torch.float64), full_matrices=False)
    return Subspace(
        basis=right.T.to(matrix),
        first=(left * singular).to(matrix),
        singular=singular.to(matrix.device),
        biased=biased,
    )


def first_layer_spectrum(mlp: MLP) -> tuple[int, Subspace]:
    """The rank above the bulk, and all directions of the first layer, strongest first; computed in float64."""
    first = first_layer(mlp)
    full = decompose(first, biased=mlp.biases[0] is not None)
    rank = bulk_rank(full.singular, (first.shape[0], first.shape[1]))
    return rank, replace(full, singular=full.singular.to(first.dtype))


def is_stationary(mlp: MLP, images: int) -> bool:
    """Whether the layers after the first are the data's work rather than their initialisation's.

    A stationary hidden layer is a sum of one rank-one term an image, so its energy lies in its first `images`
    directions; an initialisation spreads it over all of them. And gradient flow on layers with hinges keeps the
    difference of consecutive layers' squared norms (Du et al. 2018), which weight decay alone brings to 0.
    """
    if mlp.activation in HOMOGENEOUS:
        for layer, after in enumerate(mlp.weights[1:]):
            bias = mlp.biases[layer]
            before = mlp.weights[layer].pow(2).sum() + (0 if bias is None else bias.pow(2).sum())
            if (after.pow(2).sum() - before).abs() > BALANCED * (after.pow(2).sum() + before):
                return False
    elif len(mlp.weights) < 3:
        return False  # nothing tells
    for weight in mlp.weights[1:-1]:
        energy = torch.linalg.svdvals(weight).pow(2)
        if energy[:images].sum() < STATIONARY_ENERGY * energy.sum():
            return False
    return True


def roughness(basis: Float[Tensor, "d r"], shape: Shape) -> float:
    """Squared differences of neighbouring pixels over squared pixels, over the data's directions (noise: 4)."""
    count = shape[0] * shape[1] * shape[2]
    pictures = basis[:count].T.reshape(-1, *shape)
    differences = pictures.diff(dim=-1).pow(2).sum() + pictures.diff(dim=-2).pow(2).sum()
    return (differences / pictures.pow(2).sum().clamp_min(1e-30)).item()


def texture(space: Subspace, shape: Shape) -> Literal["photographs", "pictures", "noise"]:
    """What the data's directions look like; noise also where there are too few to tell."""
    count = len(space.singular)
    if count < FEWEST_PICTURES:
        return "noise"
    rough = roughness(space.leading(min(count, SMOOTH_DIRECTIONS)).basis, shape)
    if rough < SMOOTH_ROUGHNESS and count >= SMOOTH_DIRECTIONS:
        return "photographs"
    return "pictures" if rough < PICTURE_ROUGHNESS else "noise"
