"""Sparse vectors within the span of the neurons: the factors of images by the neurons that were closed for them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from exhume.attack.closed_neurons.contributions import Contributions

NEARLY_ZERO, EXACT_ZERO = 0.01, 1e-3
"""Size of delta_ij, relative to the 90th percentile of image i, up to which it counts as 0: as it is found, and when it
is sharpened."""
MORE_NEARLY, MORE_ZEROS = 0.03, 0.05
"""Share of neurons that must be 0 beyond rank / neurons, as it is found and when it is sharpened. Sharpened wrong ones
had 0.03 more at most, and 0.01 where no image was near; right ones 0.15 and 0.22 in the median of two networks."""
LARGE = 0.9
"""Quantile of |delta_ij| over the neurons that is a large one."""
MARGIN = 0.2
"""Pre-activation, by the root mean square, below whose negative a candidate's neuron is taken as closed."""
SPARSE_POWER, SHARP_POWER = 0.5, 0.2
"""p of sum |delta_j|^p, first by a candidate's closed neurons, then by all."""
SPARSE_EPSILONS = [max(1e-3, 0.3 * 0.7**k) for k in range(1, 20)]
SHARP_EPSILONS = [max(1e-5, 0.02 * 0.6**k) for k in range(15)]
"""What is added to |delta_j|, relative to a large one, from step to step."""
RIDGE = 1e-10
"""Added to the diagonal of a quadratic form, relative to its mean."""
ALIKE = 0.97
"""Cosine of two deltas from which on they are those of one image. Two photographs of one class had 0.903."""
INDEPENDENT = 0.15
"""Length of a delta of length 1 outside of the span of others from which on it is another image's. That of each of 100
photographs, outside of all others, was 0.29 or more."""


def sparse_combinations(span: Contributions, candidates: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """For each candidate the c, of length 1, for which U c is sparsest on the neurons that the candidate closes."""
    before = candidates @ span.gates.T
    closed = (before < -MARGIN * before.pow(2).mean(1, keepdim=True).sqrt()).double()
    start = torch.linalg.eigh(quadratic_forms(span, closed))[1][:, :, 0]
    return reweighted(span, start, closed, SPARSE_POWER, SPARSE_EPSILONS)


def sharpened(span: Contributions, combinations: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The same with the zeros that they have themselves, of any neuron, to rounding."""
    every = combinations.new_ones(len(combinations), len(span.neurons))
    return reweighted(span, combinations, every, SHARP_POWER, SHARP_EPSILONS)


def reweighted(
    span: Contributions,
    start: Float[Tensor, "m n"],
    weights: Float[Tensor, "m N"],
    power: float,
    epsilons: Sequence[float],
) -> Float[Tensor, "m n"]:
    """Minimises sum_j w_j |(U c)_j|^p by least squares, each time with the last c as the direction of length 1."""
    for epsilon in epsilons:
        size = (start @ span.neurons.T).abs()
        floor = epsilon * size.quantile(LARGE, dim=1, keepdim=True)
        now = weights / (size.pow(2) + floor**2).pow(1 - power / 2)
        start = functional.normalize(torch.linalg.solve(quadratic_forms(span, now), start[:, :, None])[:, :, 0])
    return start


def quadratic_forms(span: Contributions, weights: Float[Tensor, "m N"]) -> Float[Tensor, "m n n"]:
    """U^T diag(w) U for each row of weights, of mean 1, and a little more that it can be inverted."""
    scaled = weights / weights.mean(1, keepdim=True).clamp_min(1e-300)
    forms = torch.stack([span.neurons.T @ (row[:, None] * span.neurons) for row in scaled])
    mean = forms.diagonal(dim1=1, dim2=2).mean(1)
    ridge = RIDGE * torch.where(mean > 0, mean, 1)  # a candidate may close no neuron
    return forms + ridge[:, None, None] * torch.eye(span.rank, dtype=torch.float64)


def relative_sizes(span: Contributions, combinations: Float[Tensor, "m n"]) -> Float[Tensor, "m N"]:
    """|delta_ij| over its 90th percentile."""
    size = (combinations @ span.neurons.T).abs()
    return size / size.quantile(LARGE, dim=1, keepdim=True)


def distinct(span: Contributions, combinations: Float[Tensor, "m n"]) -> Float[Tensor, "k n"]:
    """Those that have more exact zeros than a wrong vector can have, sharpened: sparsest first, independent."""
    promising = sparsest(combinations, zeros(span, combinations, NEARLY_ZERO), MORE_NEARLY)
    if len(promising) == 0:
        return promising
    exact = sharpened(span, promising)
    return sparsest(exact, zeros(span, exact, EXACT_ZERO), MORE_ZEROS)


def zeros(span: Contributions, combinations: Float[Tensor, "m n"], up_to: float) -> Float[Tensor, " m"]:
    """The share of neurons with a size up to this, beyond rank / neurons, which every vector can have."""
    return (relative_sizes(span, combinations) < up_to).double().mean(1) - span.rank / len(span.neurons)


def sparsest(combinations: Float[Tensor, "m n"], more: Float[Tensor, " m"], least: float) -> Float[Tensor, "k n"]:
    """Those with at least so many more zeros that are no sum of sparser ones: the difference of two deltas has many."""
    chosen, left = list[int](), combinations.clone()
    for row in more.argsort(descending=True, stable=True).tolist():
        length = left[row].norm()
        if more[row] >= least and length > INDEPENDENT:
            chosen.append(row)
            direction = left[row] / length
            left -= (left @ direction)[:, None] * direction
    return combinations[chosen]


def duals(span: Contributions, combinations: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "r n"], Float[Tensor, "k n"]]:
    """An orthonormal basis of the other images' span, and the images of these c, outside of it, up to their length.

    With C the matrix of all c_i, the images are C^-1 S V^T. So those of some c_i lie in the rest's span plus that of
    pinv(C) S, and all others are orthogonal to these c_i S^-1.
    """
    scaled = torch.diag(span.singular)
    known = torch.linalg.qr(combinations.T)[0]
    rest = torch.linalg.svd(scaled - known @ (known.T @ scaled))[2][: span.rank - len(combinations)]
    images = torch.linalg.pinv(combinations.T) @ scaled
    return rest, images - images @ rest.T @ rest
