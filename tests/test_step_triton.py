"""The kernels of a search on a GPU: against the operations that a CPU takes one by one.

Where there is no GPU, Triton's interpreter does what they say (conftest.py). It is slow, so the cases are small.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from exhume.attack.activations import HINGES, SLOPES, ScaleFree, Sharpness, fixed
from exhume.attack.methods import Exhume, input_subspace
from exhume.attack.priors import greyness, implausible
from exhume.attack.search import Search
from exhume.attack.target import make_target
from exhume.networks import NetworkConfig
from victims import checkpoint, generator

pytest.importorskip("triton")
from exhume.attack import step_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(one: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    """Relative to the largest number."""
    assert (one.float() - other).abs().max() <= ROUNDING[dtype] * other.abs().max()
    assert one.dtype == dtype


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("activation", list(HINGES))
@pytest.mark.parametrize("bias", [None, randn(37, seed=1)], ids=["plain", "biased"])
def test_a_hinge_is_that_of_stationarity(activation: str, bias: Tensor | None, dtype: torch.dtype) -> None:
    given, along = (3 * randn(5, 37)).to(dtype).requires_grad_(), (randn(5, 37, seed=2), randn(5, 37, seed=3))
    found = step_triton.hinge(given, bias, 10.0, HINGES[activation])
    z = given.detach().float().requires_grad_()
    at = z if bias is None else z + bias
    expected = SLOPES[activation](at, ScaleFree(10.0)(at))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, dtype)
    slopes = [
        torch.autograd.grad(sum((x * a.to(x.dtype)).sum() for x, a in zip(pair, along, strict=True)), at)[0]
        for pair, at in ((found, given), (expected, z))
    ]
    assert_near(slopes[0], slopes[1], dtype)
    assert slopes[1].abs().max() > 1


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("grey", [False, True], ids=["", "grey"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize(
    ("shape", "smoothness"), [((3, 5, 7), 0.0), ((3, 5, 7), 0.1), ((2, 1, 5), 0.1), ((1, 40, 31), 0.1)], ids=str
)
def test_penalties_are_those_of_the_priors(  # noqa: PLR0917 pytest
    shape: tuple[int, int, int], smoothness: float, scaled: bool, biased: bool, grey: bool, dtype: torch.dtype
) -> None:
    """Also beyond one program's pixels, and with columns that fill a row up."""
    count = shape[0] * shape[1] * shape[2]
    columns = count + biased + -(count + biased) % 8
    given = (0.5 * randn(2, columns)).to(dtype).requires_grad_()
    factor = randn(*shape, seed=1).abs() + 0.5 if scaled else None
    offset = (0.5 + 0.1 * randn(*shape[1:], shape[0], seed=2)).permute(2, 0, 1)  # its channels are not side by side
    weight = torch.tensor(0.3, device=DEVICE) if grey else None
    found = step_triton.pixel_penalties(
        given,
        shape,
        factor=factor,
        offset=offset,
        grey_weight=weight,
        smoothness=smoothness,
        bias_weight=0.1 if biased else None,
    )
    values = given.detach().float().requires_grad_()
    images = values[:, :count].reshape(-1, *shape)
    images = (images if factor is None else images * factor) + offset
    expected = implausible(images, smoothness)
    expected = expected + (weight * greyness(images) if weight is not None else 0)
    expected = expected + (0.1 * (values[:, count] - 1).pow(2).sum() if biased else 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    slopes = [torch.autograd.grad(2 * value, at)[0] for value, at in ((found, given), (expected, values))]
    assert_near(slopes[0], slopes[1], dtype)
    assert slopes[1].abs().max() > 0


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A CPU is taken for a GPU: half precision, its alignment, and (until it is undone) kernels."""
    for place in ("methods.input_subspace", "optimisation", "muon"):
        monkeypatch.setattr(f"exhume.attack.{place}.fast_products", lambda *_: torch.bfloat16)
    for place in ("methods.input_subspace", "optimisation"):
        monkeypatch.setattr(f"exhume.attack.{place}.alignment", lambda *_: 8)
    with pytest.MonkeyPatch.context() as kernels:
        for place in ("methods.input_subspace", "activations"):
            kernels.setattr(f"exhume.attack.{place}.fuses", lambda *_: True)
        yield kernels


def slopes_of(search: Search) -> tuple[Any, list[Tensor]]:
    values = search.objective()
    variables = [v for o in search.optimisers for group in o.param_groups for v in group["params"]]
    return values, list(torch.autograd.grad(sum(values), variables))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU's own steps are measured by test_reconstruct")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_step_with_kernels_is_that_without(task: str, activation: str, as_on_a_gpu: pytest.MonkeyPatch) -> None:
    """Value and slope, to the rounding of half precision; the directions that fill up a multiple stay empty.

    Of GELU there is no kernel: it stays in float32.
    """
    victim = checkpoint(task, NetworkConfig(widths=(50, 40), init_scale=1e-2, activation=activation))
    method = Exhume(images=10, per_class=4, smoothness=1e-3, binary_prior=5.0, init_scale=0.5)
    search = method.start(make_target(victim), generator())
    assert isinstance(search, input_subspace.InputSubspaceSearch)
    rank = search.assumptions.rank
    assert rank % 8 and search.variables.shape[1] % 8 == 0 and not search.variables[:, rank:].any()
    search.prepare(500)
    with_kernels = slopes_of(search)
    as_on_a_gpu.undo()
    without = slopes_of(search)
    for one, other in zip(with_kernels[0], without[0], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=0)
    for slope, expected in zip(with_kernels[1], without[1], strict=True):
        assert (slope - expected).norm() < 0.05 * expected.norm()
    assert not with_kernels[1][0][:, rank:].any()


def refuses(*_: object, **__: object) -> None:
    raise AssertionError("no kernel is for this")


@pytest.mark.parametrize(
    ("limit", "kernel", "gate"),
    [
        ("MOST_NEURONS", "hinge", ScaleFree(10.0)),
        ("MOST_CHANNELS", "pixel_penalties", ScaleFree(10.0)),
        (None, "hinge", fixed(7.0)),
    ],
    ids=["many neurons", "many channels", "a gate that sees the scale"],
)
def test_what_kernels_are_not_for_is_done_without(
    limit: str | None, kernel: str, gate: Sharpness, as_on_a_gpu: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = checkpoint("multiclass", NetworkConfig(widths=(50, 40), init_scale=1e-2))
    search = Exhume(images=10, per_class=4, smoothness=1e-3).start(make_target(victim), generator())
    assert isinstance(search, input_subspace.InputSubspaceSearch)
    search.sharpness = gate
    monkeypatch.setattr(step_triton, kernel, refuses)
    if limit is not None:
        with pytest.raises(AssertionError, match="no kernel"):
            search.objective()
        monkeypatch.setattr(step_triton, limit, 0)
    found = search.objective()
    as_on_a_gpu.undo()
    for one, other in zip(found, search.objective(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=0)
