"""What the weights give away before any search: the data's subspace, how many images, which layers to trust."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exhume.networks import Shape
from exhume.stationarity import Dense

STATIONARY_ENERGY = 0.95
"""Share of a hidden layer's energy in its first `images` directions above which training has made it."""
ROUNDING = 1e-5
"""Share of the largest singular value below which a float32 training leaves rounding."""
FALL = 5.0
"""Ratio of consecutive singular values that is no part of a spectrum, but its end."""
EMPTY = 1e-3
"""Norm of a row or column, of the largest, below which it is none."""
ROUNDED = 1e-3
"""Singular value, of the largest, below which what follows a fall may be rounding (half precision's 5e-4 at most)."""
FEWER = 0.95
"""Share of the rows or columns up to which directions are few."""
NOISY = 0.05
"""Share of a layer's energy below which what looks like its initialisation may be anything."""
UNBALANCED = 0.1
"""Relative difference of consecutive layers' squared norms above which initialisation is left (decayed: 1e-6)."""
HOMOGENEOUS = ("relu", "leaky-relu")
"""Activations for which the norms of consecutive layers balance."""
SMOOTH_DIRECTIONS = 50
"""Directions by which smoothness is told: the first few are smooth whatever the images are, the last are rough."""
SMOOTH_ROUGHNESS = 1.1
"""Their roughness below which images are photographs (CIFAR-10: 0.8, digits: 1.5 to 1.8, noise: 4)."""


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

    def leading(self, rank: int) -> "Subspace":
        """The `rank` strongest directions."""
        return Subspace(
            basis=self.basis[:, :rank].contiguous(),
            first=self.first[:, :rank].contiguous(),
            singular=self.singular[:rank],
            biased=self.biased,
        )


def first_layer(dense: Dense) -> Tensor:
    """[W | b] of the first layer, [width, d (+ 1 with a bias)]."""
    bias = dense.biases[0]
    return dense.weights[0] if bias is None else torch.cat([dense.weights[0], bias[:, None]], 1)


def bulk_noise(matrix: Float[Tensor, "rows columns"], singular: Tensor | None = None) -> float | None:
    """Standard deviation of the entries that an initialisation left in a matrix.

    None where too little of it is left to be told from what training has added: of the directions, or of the energy.

    Args:
        singular: all its singular values in descending order, if they are known.
    """
    rows, columns = matrix.shape
    singular = torch.linalg.svdvals(matrix) if singular is None else singular
    rank = bulk_rank(singular, (rows, columns))
    if rank > min(rows, columns) / 2:
        return None
    noise = float(singular[rank:].median() / _median_singular(rows - rank, columns - rank))
    return noise if noise**2 * matrix.numel() > NOISY * float(matrix.pow(2).sum()) else None


def bulk_rank(singular: Float[Tensor, " k"], size: tuple[int, int]) -> int:
    """Number of singular values above the Marchenko-Pastur bulk that the initialisation (or rounding) left behind.

    The noise level is read from the median of the bulk, the bulk from what the rank leaves over, until both agree.

    Args:
        singular: all singular values in descending order, of a matrix of `size` (rows, columns).
    """
    rank, edge = 0, 0.0
    for _ in range(20):
        rows, columns = size[0] - rank, size[1] - rank
        if min(rows, columns) < 8:  # no bulk is left to read
            return len(singular)
        noise = singular[rank:].median().item() / _median_singular(rows, columns)
        edge = max(noise * (rows**0.5 + columns**0.5), ROUNDING * singular[0].item())
        found = int((singular > 1.02 * edge).sum())
        if found == rank:
            break
        rank = found
    return _cliff(singular, rank, 2 * edge)


def _cliff(singular: Tensor, rank: int, floor: float) -> int:
    """Where weight decay has left nothing but rounding, which is no bulk, the rank ends at the fall into it."""
    ratios = singular[:rank] / singular[1 : rank + 1].clamp_min(1e-30)
    ratios = torch.where(singular[1 : rank + 1] < floor, ratios, 0)
    return int(ratios.argmax()) + 1 if rank and ratios.amax() > FALL else rank


def ends(matrix: Float[Tensor, "rows columns"], singular: Float[Tensor, " k"]) -> bool:
    """Whether a matrix is made of few directions: its singular values, in descending order, fall to rounding.

    Rows and columns that are next to nothing, neurons that never fire and pixels that no image shows, make an end of
    their own, and so do pixels that a single image shows: nearly as many directions as rows or columns are not few.
    """
    norms = matrix.norm(dim=0), matrix.norm(dim=1)
    used = min(int((norm > EMPTY * norm.max()).sum()) for norm in norms)
    seen = singular[: int(FEWER * used)]
    return bool(((seen[:-1] > FALL * seen[1:]) & (seen[1:] < ROUNDED * singular[0])).any())


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


def decomposed(matrix: Float[Tensor, "out in"], *, biased: bool = False) -> Subspace:
    """All directions of a matrix U S V^T, strongest first; computed in float64, in which S is left."""
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Subspace(
        basis=right.T.to(matrix.dtype),
        first=(left * singular).to(matrix.dtype),
        singular=singular,
        biased=biased,
    )


def spectrum_of(dense: Dense) -> tuple[int, Subspace]:
    """The rank above the bulk, and all directions of the first layer, strongest first; computed in float64."""
    first = first_layer(dense)
    whole = decomposed(first, biased=dense.biases[0] is not None)
    rank = bulk_rank(whole.singular, (first.shape[0], first.shape[1]))
    return rank, replace(whole, singular=whole.singular.to(first.dtype))


def is_stationary(dense: Dense, images: int) -> bool:
    """Whether the layers after the first are the data's work rather than their initialisation's.

    A stationary hidden layer is a sum of one rank-one term an image, so its energy lies in its first `images`
    directions; an initialisation spreads it over all of them. And gradient flow on layers with hinges keeps the
    difference of consecutive layers' squared norms (Du et al. 2018), which weight decay alone brings to 0.
    """
    if dense.activation in HOMOGENEOUS:
        for layer, after in enumerate(dense.weights[1:]):
            bias = dense.biases[layer]
            before = dense.weights[layer].pow(2).sum() + (0 if bias is None else bias.pow(2).sum())
            if (after.pow(2).sum() - before).abs() > UNBALANCED * (after.pow(2).sum() + before):
                return False
    elif len(dense.weights) < 3:
        return False  # nothing tells
    for weight in dense.weights[1:-1]:
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
