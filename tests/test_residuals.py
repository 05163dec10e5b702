"""What counts of the error of the weights, and how much."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exhume.attack.residuals import (
    NEGLIGIBLE_VARIANCE,
    Weighting,
    absolute_residual,
    gls_weighting,
    in_place,
    relative_residual,
)


def test_the_residuals_are_what_they_say() -> None:
    parameters = [torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])]
    sums = [torch.tensor([[3.0, 1.0]]), torch.tensor([1.0])]
    assert absolute_residual(parameters, sums) == 9 + 1
    torch.testing.assert_close(relative_residual(parameters, sums), torch.tensor(9 / 25 + 1 / 4))
    weighting = Weighting(
        columns=torch.diag(torch.tensor([1.0, 0.5])),
        discounted=torch.tensor([[0.5]]),
        null_residual=torch.tensor(13.0),
        uncorrelated_null_residual=torch.tensor(1.0),
    )
    weighted = relative_residual(parameters, sums, [weighting, None])
    torch.testing.assert_close(weighted, torch.tensor(0.75 * 2.25 / 13 + 1 / 4))
    nothing = [parameters[0], torch.zeros(1)]  # a bias that is 0 is still to be explained, by nothing
    torch.testing.assert_close(relative_residual(nothing, sums), torch.tensor(9 / 25 + 1 / (1e-3 * 25 / 2)))


@pytest.mark.parametrize("correlated", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_what_training_leaves_behind_is_weighed_by_its_covariances(seed: int, correlated: float) -> None:
    """An error counts by the inverses of the two covariances that the docstring names."""
    g = torch.Generator().manual_seed(seed)
    sizes = ((9, 4), (6, 9), (6, 4), (9, 4))
    first, deltas, inputs, error = (torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)
    weighting = gls_weighting(
        first, deltas, inputs, error=0.3, floor=0.1, correlated=correlated, precision=torch.float64
    )
    columns = 0.1**2 * first.square().mean() * torch.eye(4, dtype=torch.float64)
    for delta, x in zip(deltas, inputs, strict=True):
        columns += 0.3**2 * delta.square().mean() * torch.outer(x, x)
    of_first = first @ columns.inverse() @ first.T
    energy, directions = torch.linalg.eigh(correlated**2 / 4 * of_first)
    told = energy * (energy > NEGLIGIBLE_VARIANCE)
    assert (told > 0).any() == (correlated > 0)
    rows = torch.eye(9, dtype=torch.float64) + directions @ told.diag() @ directions.T

    def weighed(e: Tensor) -> Tensor:
        return (rows.inverse() @ e @ columns.inverse() @ e.T).trace()

    torch.testing.assert_close(weighting.of(error), weighed(error), rtol=1e-8, atol=0)
    torch.testing.assert_close(weighting.null_residual, weighed(first), rtol=1e-8, atol=0)
    torch.testing.assert_close(weighting.uncorrelated_null_residual, of_first.trace(), rtol=1e-8, atol=0)


def test_what_is_discounted_keeps_its_slope_in_half_precision() -> None:
    """Where nearly all of a direction is taken off again, the rest must not be a rounding."""
    g = torch.Generator().manual_seed(0)
    direction = functional.normalize(torch.randn(300, generator=g), dim=0)
    common_part = torch.outer(direction, torch.randn(40, generator=g))
    first = 500 * common_part + torch.randn(300, 40, generator=g)
    error = 50 * common_part + torch.randn(300, 40, generator=g)
    deltas, inputs = torch.randn(60, 300, generator=g), torch.randn(60, 40, generator=g)
    slopes = []
    for dtype, precision in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        given = (x.to(dtype) for x in (first, deltas, inputs))
        weighting = gls_weighting(*given, error=0.3, floor=0.02, correlated=0.1, precision=precision)
        assert weighting.discounted.square().sum(1).max() > 0.99
        at = error.to(dtype).requires_grad_()
        slopes.append(direction.double() @ torch.autograd.grad(weighting.of(at), at)[0].double())
    assert (slopes[0] - slopes[1]).norm() < 0.1 * slopes[1].norm()


@pytest.mark.parametrize("correlated", [0.0, 0.1, 1.0])
def test_with_a_fixed_size_the_weighting_is_the_same_but_for_negligible_directions(
    correlated: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Cholesky factors or by eigenvalues; F differs by a rotation, which no norm sees."""
    monkeypatch.setattr("exhume.attack.residuals.NEGLIGIBLE_VARIANCE", -1.0)  # all directions are kept
    first, deltas, inputs, error = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed, shape in enumerate([(30, 8), (12, 30), (12, 8), (30, 8)])
    )
    two = [
        gls_weighting(
            first,
            deltas,
            inputs,
            error=0.3,
            floor=0.1,
            correlated=correlated,
            precision=torch.float64,
            fixed_size=fixed,
        )
        for fixed in (False, True)
    ]
    assert two[1].discounted.shape == (8, 30)
    for of in (lambda w: w.of(error), lambda w: w.null_residual, lambda w: w.uncorrelated_null_residual):
        torch.testing.assert_close(*(of(weighting).double() for weighting in two), rtol=1e-6, atol=0)
    assert (two[0].of(error) < (error @ two[0].columns).square().sum()) == (correlated > 0)


def test_a_weighting_stays_where_it_was_unless_it_is_new() -> None:
    """In the memory that recorded work reads."""
    one, other = (
        Weighting(
            columns=torch.full((2, 2), v),
            discounted=torch.full((1, 2), v),
            null_residual=torch.tensor(v),
            uncorrelated_null_residual=torch.tensor(v),
        )
        for v in (1.0, 2.0)
    )
    place = one.columns.data_ptr()
    assert in_place(one, other, where=torch.tensor(False)) is one and bool((one.columns == 1).all())
    assert in_place(one, other, where=torch.tensor(True)) is one and one.columns.data_ptr() == place
    assert bool((one.columns == 2).all()) and bool((one.discounted == 2).all()) and one.null_residual == 2
    assert in_place(None, other, where=torch.tensor(False)) is other
