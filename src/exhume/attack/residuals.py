"""How far a network's parameters are from the weighted sum of its gradients, and which of it counts how much.

The papers' absolute residual, ours relative to the parameters' size, and generalised least squares for a layer whose
condition holds only nearly (docs/theory.md, "The weighted residual").
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from exhume.attack.stationarity import Term, product


def absolute_residual(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """sum over parameters of norm(theta_p - G_p)^2: the papers' stationarity loss (2022, eq. 5)."""
    return torch.stack([squared_norm(g - p) for p, g in zip(parameters, gradients, strict=True)]).sum()


class _SquaredNorm(torch.autograd.Function):
    """The slope is written out: PyTorch takes three passes over a matrix for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _inner(x, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = (2 * along).to(x.dtype) * x
        return slope


def squared_norm(x: Tensor) -> Tensor:
    """norm(x)^2, summed in float32 at least; to be differentiated once."""
    result: Tensor = _SquaredNorm.apply(x)  # type: ignore[no-untyped-call]
    return result


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """The sum of elementwise products; those of half precision are summed in float32."""
    return (one * other).sum(dtype=torch.promote_types(one.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How a layer's error E = W - G counts, generalised least squares on both sides: norm(E F)^2 - norm(H E F)^2.

    columns: F, [in, in], multiplied in its own precision; discounted: H, [directions, out], in which directions of the
    neurons errors are expected, and how much less they count; null_residual: what W alone would give;
    uncorrelated_null_residual: that without H.
    """

    columns: Tensor
    discounted: Tensor
    null_residual: Tensor
    uncorrelated_null_residual: Tensor

    def of(self, error: Tensor) -> Tensor:
        weighed = product(error, self.columns)
        return squared_norm(weighed) - squared_norm(self.discounted @ weighed)


class Sizes(NamedTuple):
    """How large parameters are, [parameters] each: squared norms to divide by, and what a weighted error counts."""

    squared_norms: Tensor
    counted: Tensor


@torch.no_grad()
def sizes_of(parameters: Sequence[Tensor]) -> Sizes:
    """Those of parameters that are to be explained."""
    norms = torch.stack([p.pow(2).sum() for p in parameters])
    least = LEAST_NORM * norms.mean()
    return Sizes(norms.clamp_min(least), (norms / least).clamp_max(1))


def relative_residual(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Weighting | None] | None = None,
    *,
    sizes: Sizes | None = None,
) -> Tensor:
    """sum over parameters of norm(theta_p - G_p)^2 / norm(theta_p)^2, so that every parameter counts alike.

    weights: for each parameter, how its error counts instead; None: as it is; sizes: `sizes_of(parameters)`, where that
    is known.
    """
    squared_norms, counted = sizes or sizes_of(parameters)
    errors = []
    for which, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        error, weighting = gradient - parameter, weights[which] if weights else None
        if weighting is None:
            errors.append(squared_norm(error) / squared_norms[which])
        else:
            errors.append(weighting.of(error) * (counted[which] / weighting.null_residual))
    return errors[0] if len(errors) == 1 else torch.stack(errors).sum()


def change_by_sum(weight: Float[Tensor, "out in"], term: Term) -> Tensor:
    """norm(W - G)^2 - norm(W)^2: by how much a layer's sum G changes what of it is unexplained.

    With the layer's own products and two Gram matrices of the samples, G itself is not needed; it is formed where that
    is less work, so that this and the memory grow no faster than the number of samples. Multiplied in the precision of
    `weight`.
    """
    along, (outputs, inputs) = _inner(term.delta, term.products), weight.shape
    # four products with Gram matrices, forward and backward, or three with G
    if 4 * len(term.delta) * (outputs + inputs) > 6 * outputs * inputs:
        return squared_norm(product(term.delta.T, term.inputs.to(weight.dtype))) - 2 * along
    squares: Tensor = _InnerOfGrams.apply(term.delta, term.inputs, weight.dtype)  # type: ignore[no-untyped-call]
    return squares - 2 * along


class _InnerOfGrams(torch.autograd.Function):
    """<delta delta^T, a a^T> = norm(delta^T a)^2. PyTorch would take twice the products back: it sees no symmetry."""

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, inputs: Tensor, precision: torch.dtype) -> Tensor:
        grams = [product(x, x.T.to(precision)) for x in (deltas, inputs)]
        ctx.precision = precision
        ctx.save_for_backward(deltas, inputs, *grams)
        return _inner(*grams)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, Tensor, None]:
        deltas, inputs, of_deltas, of_inputs = ctx.saved_tensors
        by_deltas = product(of_inputs, deltas.to(ctx.precision))
        by_inputs = product(of_deltas, inputs.to(ctx.precision))
        twice = 2 * along
        return twice.to(deltas.dtype) * by_deltas, twice.to(inputs.dtype) * by_inputs, None


NEGLIGIBLE_VARIANCE = 0.05
"""Correlated variance of a direction of the neurons, relative to the white noise, up to which it counts as none."""
SMALLEST_EIGENVALUE = 1e-12
"""Eigenvalues of a covariance are at least this, relative to the largest: rounding may make them negative."""
LEAST_NORM = 1e-3
"""Squared norm of a parameter, relative to the mean of all, below which it counts by the latter: a bias that is all but
0 must not outweigh the layers."""


def gls_weighting(
    first: Float[Tensor, "width r"],
    deltas: Float[Tensor, "m width"],
    inputs: Float[Tensor, "m r"],
    *,
    error: float,
    floor: float,
    correlated: float | Float[Tensor, ""],
    precision: torch.dtype,
    fixed_size: bool = False,
) -> Weighting:
    """How the first layer's error counts, where the condition holds only nearly: generalised least squares.

    Training leaves multipliers of the past and gates that have closed since in the weights, so that the true delta_ij
    is ours give or take s_i = error * rms_j(delta_ij). Were that independent, each row of E would have the covariance

        C = sum_i s_i^2 x_i x_i^T + (floor * rms(W))^2 = (F F^T)^-1,

    and E F that of white noise. But neurons err together, in the directions in which B = W F, [width, r], is strong:
    each of the r columns of E F has the covariance

        K = 1 + correlated^2 B B^T / r = (1 - H^T H)^-1,

    an error of the share `correlated` of what a direction of the neurons has, over all columns.

    Args:
        precision: what F is multiplied in. H is not rounded: 1 - H^T H is next to nothing where K is large.
        fixed_size: keeps all r directions in H, so that its shape does not depend on values; else those are left out in
            which K is 1, nearly.
    """
    of = error**2 * deltas.double().pow(2).mean(1)
    covariance = (inputs.double().T * of) @ inputs.double()
    rank = first.any(0).sum().clamp_min(1)  # columns of zeros, which fill up a multiple, do not count
    covariance.diagonal().add_(floor**2 * first.double().pow(2).mean() * (first.shape[1] / rank))
    q = correlated**2 / rank
    if fixed_size:
        return _by_cholesky(first.double(), covariance, q, precision)
    values, vectors = torch.linalg.eigh(covariance)
    columns = vectors * values.clamp_min(SMALLEST_EIGENVALUE * values[-1]).rsqrt()
    weighed = first.double() @ columns
    energy, directions = torch.linalg.eigh(weighed.T @ weighed)
    # with B = U S V^T, H^T H is U (1 - 1 / (1 + q S^2)) U^T, and U^T is S^-1 V^T B^T
    energy = energy.clamp_min(0)
    told = q * energy > NEGLIGIBLE_VARIANCE
    discounted = (q / (1 + q * energy[told])).sqrt()[:, None] * (weighed @ directions[:, told]).T
    return Weighting(
        columns=columns.to(precision),
        discounted=discounted.to(first.dtype),
        null_residual=(energy / (1 + q * energy * told)).sum().to(first.dtype),
        uncorrelated_null_residual=energy.sum().to(first.dtype),
    )


def _by_cholesky(first: Tensor, covariance: Tensor, q: float | Tensor, precision: torch.dtype) -> Weighting:
    """The same without eigenvalues: any F with F F^T = C^-1 will do, and H = sqrt(q) L^-1 B^T, L L^T = 1 + q B^T B."""
    one = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky_ex(covariance).L
    columns = torch.linalg.solve_triangular(factor, one, upper=False).T
    weighed = first @ columns
    energy = weighed.T @ weighed
    inner = torch.linalg.cholesky_ex(one + q * energy).L
    discounted = q**0.5 * torch.linalg.solve_triangular(inner, weighed.T, upper=False)
    uncorrelated = energy.diagonal().sum()
    unrounded = torch.float32 if precision == torch.bfloat16 else precision
    return Weighting(
        columns=columns.to(precision),
        discounted=discounted.to(unrounded),
        null_residual=(uncorrelated - (discounted @ weighed).pow(2).sum()).to(unrounded),
        uncorrelated_null_residual=uncorrelated.to(unrounded),
    )


def in_place(old: Weighting | None, new: Weighting, *, where: Tensor) -> Weighting:
    """The new weighting, in the memory of the old one where its shapes are the same, as recorded work needs it.

    where: whether it is new; else the old one stays.
    """
    if old is None or old.discounted.shape != new.discounted.shape:
        return new
    for item in fields(Weighting):
        before = getattr(old, item.name)
        torch.where(where, getattr(new, item.name), before, out=before)
    return old
