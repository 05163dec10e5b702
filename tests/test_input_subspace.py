"""The search of `exhume` for MLPs: what it asks of its candidates, and in which precision."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exhume import Checkpoint, Exhume, NetworkConfig
from exhume.attack.methods.input_subspace import InputSubspaceSearch
from exhume.attack.optimisation import Stepper, take_step
from exhume.attack.residuals import Weighting, gls_weighting
from exhume.attack.spectrum import bulk_noise
from exhume.attack.stationarity import mlp_terms
from exhume.attack.target import Target
from victims import checkpoint, generator, target_of


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers the results of all operations have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.of += [part.numel() for part in tree_leaves(result) if isinstance(part, Tensor)]
        return result


def search_of(victim: Checkpoint, **settings: Any) -> InputSubspaceSearch:
    method = Exhume(**settings)
    search = method.start(target_of(victim, method.dtype), generator())
    assert isinstance(search, InputSubspaceSearch)
    search.prepare(0)
    return search


@pytest.mark.parametrize("bias", ["first", "all"])
@pytest.mark.parametrize("widths", [(80, 60), (80, 60, 50)])
def test_hidden_layers_count_above_the_noise_of_their_initialisation(
    widths: tuple[int, ...], bias: Literal["first", "all"]
) -> None:
    """In value and slope: the first layer's relative residual and, for each hidden one, what noise does not explain."""
    victim = checkpoint("multiclass", NetworkConfig(widths=widths, init_scale=1e-2, bias=bias))
    search = search_of(victim, images=10, dtype="float64", init_scale=1.0, steps=1000)
    with torch.no_grad():
        search.multipliers.values.mul_(20)  # so that there is something to explain the layers with
    search.prepare(1000)  # at first no error is taken to be common to neurons
    residual, _ = search.objective()
    terms = mlp_terms(search.products, search.variables, search.multipliers.cotangents, search.sharpness)
    first, *hidden = [(w, t.delta.T @ t.inputs) for w, t in zip(search.explained.weights[:-1], terms, strict=False)]
    assert search.weighting is not None and len(hidden) == len(widths) - 1
    scale = (first[0] @ search.weighting.columns).square().sum()
    share = 20 * len(search.labels) / widths[0]
    alone = search.weighting.of(first[0] - first[1]) / search.weighting.null_residual
    assert search.weighting.null_residual < 0.99 * scale
    beyond = torch.zeros(())
    for weight, by in hidden:
        noise = bulk_noise(weight)
        assert noise == pytest.approx(weight.std().item(), rel=0.1)
        beyond = beyond + (weight - by).square().sum() / noise**2 - weight.numel()
    torch.testing.assert_close(residual, alone + share / scale * beyond)
    slopes = [torch.autograd.grad(value, search.variables, retain_graph=True)[0] for value in (residual, alone)]
    long = torch.autograd.grad(alone + share / scale * beyond, search.variables)[0]
    torch.testing.assert_close(slopes[0], long)
    assert (slopes[0] - slopes[1]).norm() > 0.01 * slopes[1].norm()
    names = [f"layers.{1 + 2 * layer}.weight" for layer in range(len(widths))]
    assert [name for name in search.assumptions.layers if name.endswith("weight")] == names


def weighting_of(search: InputSubspaceSearch, correlated: float) -> Weighting:
    """What a search in float64 should have taken from its candidates."""
    term = mlp_terms(search.products, search.variables, search.multipliers.cotangents, search.sharpness)[0]
    return gls_weighting(
        search.subspace.first,
        term.delta.detach(),
        term.inputs.detach(),
        error=search.regime.contribution_error,
        floor=search.floor,
        correlated=correlated,
        precision=torch.float64,
        fixed_size=True,
    )


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.5), (1.0, 1.0)])
def test_errors_come_to_be_common_to_neurons_in_the_course_of_a_search(progress: float, share: float) -> None:
    """Their square grows in a line."""
    victim = checkpoint("multiclass", NetworkConfig(widths=(80, 60)))
    search = search_of(victim, images=10, steps=200, dtype="float64")
    search.prepare(round(progress * 200))
    expected = weighting_of(search, 0.1 * share)
    assert search.weighting is not None and bool(expected.discounted.any()) == (share > 0)
    torch.testing.assert_close(search.weighting.null_residual, expected.null_residual)
    torch.testing.assert_close(*(w.discounted.T @ w.discounted for w in (search.weighting, expected)))


def test_the_weighting_is_taken_anew_every_25_steps() -> None:
    search = search_of(checkpoint("multiclass"), images=10)
    residuals, stepper = [], Stepper([search], torch.device("cpu"))
    for step in range(51):
        stepper.take(step)
        assert search.weighting is not None
        residuals.append(search.weighting.uncorrelated_null_residual.item())
    anew = [step for step in range(1, 51) if residuals[step] != residuals[step - 1]]
    assert anew == [25, 50]


def test_an_image_whose_bias_is_not_1_costs_a_thousandth_of_the_square() -> None:
    search = search_of(checkpoint("multiclass", NetworkConfig(widths=(40,))), images=26, dtype="float64")
    ones = search.variables @ search.subspace.basis[25]
    with torch.no_grad():
        search.multipliers.values.abs_()  # none is penalised
    inside = (search.iterate().images - search.iterate().images.clamp(0, 1)).square().sum()
    expected = 1e-3 * (ones - 1).square().sum() + 3e-3 * inside
    assert (ones - 1).abs().max() > 0.1
    torch.testing.assert_close(search.objective()[1], expected)


BINARY_PRIOR = 5.0
"""As `Exhume` documents it."""
DIGITS_MEAN = torch.linspace(0, 1, 144).pow(8).reshape(1, 12, 12)
"""Black but for a corner, as no mean of grey images can be."""


@pytest.mark.parametrize(
    ("centre", "asked", "weight"),
    [
        (DIGITS_MEAN, {}, BINARY_PRIOR),
        (1 - DIGITS_MEAN, {}, BINARY_PRIOR),
        (DIGITS_MEAN, {"binary_prior": 0.0}, 0.0),
        (torch.full((1, 12, 12), 0.4), {}, 0.0),
        (torch.full((1, 12, 12), 0.4), {"binary_prior": 2.0}, 2.0),
        (torch.zeros(1, 12, 12), {}, 0.0),
        (torch.full((1, 1, 2), 0.99), {}, 0.0),
    ],
    ids=["dark", "light", "not asked for", "grey", "asked for", "no mean", "points"],
)
def test_images_are_black_or_white_where_their_mean_says_so(
    centre: Tensor, asked: dict[str, Any], weight: float
) -> None:
    """Grey counts against twice the negative log-likelihood, so by what the weighted layer has in all."""
    victim = checkpoint("binary", NetworkConfig(widths=(20,)), centre=centre)
    settings = {"images": 4, "dtype": "float64", "init_scale": 3.0, **asked}
    search, without = (search_of(victim, **{**settings, **of}) for of in ({}, {"binary_prior": 0.0}))
    assert search.assumptions.binary_prior == weight
    penalty, plain = search.objective()[1], without.objective()[1]
    pixels = search.iterate().images
    greyness = sum(y * (1 - y) for y in pixels.flatten().tolist() if 0 < y < 1)
    assert greyness > 0.1
    null_residual = search.weighting.null_residual.item() if search.weighting else math.inf
    assert (penalty - plain).item() == pytest.approx(weight * greyness / null_residual, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "units", "products"),
    [
        ("float32", {"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ("float32", {"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ("float32", {"amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ("float32", {}, torch.float32),  # other processors
        ("float64", {"amx_bf16": True, "avx512_bf16": True}, torch.float64),
    ],
)
def test_products_are_in_bfloat16_only_where_the_processor_has_units_for_it(
    dtype: str, units: dict[str, bool], products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found stays in the precision that was asked for, and alike."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    search = search_of(checkpoint("multiclass"), images=10, dtype=dtype)
    assert {weight.dtype for weight in search.products.weights} == {products}
    own = getattr(torch, dtype)
    residual, penalty = search.objective()
    assert (residual.dtype, penalty.dtype, search.iterate().images.dtype) == (own, own, own)


def test_an_uncentred_chain_is_shown_as_it_was_searched() -> None:
    """What the search holds to be an image gives the first layer what the search gave it, whatever the centre."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(25, 60), nn.ReLU(), nn.Linear(60, 3))
    centred = checkpoint("multiclass").build()
    for module in (flat, centred):
        target = Target(network=module, centre=torch.full((1, 5, 5), 0.4), task="multiclass", outputs=3)
        search = Exhume(images=26, per_class=9).start(target, generator())
        assert isinstance(search, InputSubspaceSearch)
        linear = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
        images = search.iterate().images
        inputs = images - centred.centre.centre if module is centred else images
        # the bias coordinate is searched for too, so only the part without it must agree
        without_bias = search.variables @ search.subspace.basis[:25].T
        torch.testing.assert_close(
            inputs.flatten(1) @ linear.weight.T, without_bias @ linear.weight.T, atol=1e-4, rtol=1e-4
        )
        if module is flat:  # whose directions are all there are: it starts around the given centre
            assert (images.mean(0) - 0.4).abs().max() < 0.05


@pytest.mark.parametrize("init_scale", [1e-2, None])
def test_the_memory_of_a_step_grows_no_faster_than_the_candidates(init_scale: float | None) -> None:
    """Neither of one result nor of all together, also where the hidden layer's noise is measured."""
    victim = checkpoint("multiclass", NetworkConfig(widths=(80, 60), init_scale=init_scale))
    largest, whole = [], []
    for per_class in (100, 200, 400):
        search = search_of(victim, images=10, per_class=per_class)
        assert search.noisy
        with Sizes() as sizes:
            search.prepare(25)
            residual, penalty = search.objective()
            take_step(search, residual + penalty)
        largest.append(max(sizes.of))
        whole.append(sum(sizes.of))
    for sizes_of in (largest, whole):
        assert sizes_of[1] <= 2 * sizes_of[0] and sizes_of[2] <= 2 * sizes_of[1]
    assert whole[2] > 1.5 * whole[1]  # the candidates are what was measured
