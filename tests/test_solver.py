"""The attack: the papers' objective to the last digit, statuses, any module, and quality with controls."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import Checkpoint, InputError, Network, Problem, Reconstruction, Selection, load_problem, reconstruct, train
from exhume.candidates import Candidates
from exhume.confidence import agreement, confidence
from exhume.matching import match
from exhume.methods import METHODS, resolve, subspace, trusted
from exhume.methods.ground import EDGE, Search, Target, balanced_labels, implausible, total_variation
from exhume.methods.pixels import ReferenceSearch
from exhume.methods.subspace import HIDDEN, SubspaceSearch
from exhume.networks import Task, build
from exhume.reading import bulk_noise
from exhume.residual import Weighting, left_behind
from exhume.scores import score
from exhume.solver import take_step
from exhume.stationarity import dense_terms
from exhume.training import Training

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
SMALL = {"exhume": Reconstruction(steps=60, per_class=5), "reference": Reconstruction(
    method="reference", steps=60, per_class=5, lr_images=0.05, lr_multipliers=1e-2, sharpness=20.0)}  # fmt: skip


def checkpoint(task: Task, network: Network | None = None, seed: int = 0, centre: Tensor | None = None) -> Checkpoint:
    """A random network: what a search does does not depend on training."""
    network = network or Network(widths=(20, 10), init_scale=0.3)
    if centre is None:
        centre = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(seed))
    k = 3 if task == "multiclass" else 1
    module = build(network, centre, k, torch.Generator().manual_seed(seed))
    weights = {name: p.detach() for name, p in module.layers.named_parameters()}
    classes = ("a", "b", "c")[: max(k, 2)]
    return Checkpoint(network=network, task=task, classes=classes, centre=centre, weights=weights)


# ---- What our scheme asks of a dense network


def subspace_search(victim: Checkpoint, config: Reconstruction) -> SubspaceSearch:
    config = resolve(config, victim.task)
    dtype = getattr(torch, config.dtype or "")
    target = Target(
        network=victim.build().to(dtype), centre=victim.centre.to(dtype), task=victim.task, outputs=victim.outputs
    )
    search = METHODS["exhume"].start(target, config, torch.Generator().manual_seed(0))
    assert isinstance(search, SubspaceSearch)
    return search


@pytest.mark.parametrize("bias", ["first", "all"])
@pytest.mark.parametrize("widths", [(80, 60), (80, 60, 50)])
def test_hidden_layers_count_above_the_noise_of_their_initialisation(
    widths: tuple[int, ...], bias: Literal["first", "all"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In value and slope: the first layer's relative residual and, for each hidden one, what noise does not explain."""
    victim = checkpoint("multiclass", Network(widths=widths, init_scale=1e-2, bias=bias))
    search = subspace_search(victim, Reconstruction(images=10, dtype="float64", init_scale=10.0))
    with torch.no_grad():
        search.multipliers.values.mul_(300)  # so that there is something to explain the layers with
    monkeypatch.setattr(subspace, "COMMON", 1000.0)
    search.evaluations = 500  # at first no error is taken to be common to neurons
    residual, _ = search.objective()
    terms = dense_terms(search.products, search.variables, search.multipliers.cotangents, search.sharpness)
    first, *hidden = [(w, t.delta.T @ t.inputs) for w, t in zip(search.dense.weights[:-1], terms, strict=False)]
    assert search.weighting is not None and len(hidden) == len(widths) - 1
    scale = (first[0] @ search.weighting.columns).square().sum()
    share = HIDDEN * len(search.labels) / widths[0]
    alone = search.weighting.of(first[0] - first[1]) / search.weighting.of_all
    assert search.weighting.of_all < 0.99 * scale
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
    assert [name for name in search.reading.layers if name.endswith("weight")] == names


def weighting_of(search: SubspaceSearch, error: float, common: float) -> Weighting:
    """What a search in float64 should have taken from its candidates."""
    term = dense_terms(search.products, search.variables, search.multipliers.cotangents, search.sharpness)[0]
    first, delta, inputs = search.subspace.first, term.delta.detach(), term.inputs.detach()
    return left_behind(first, delta, inputs, error=error, floor=search.floor, common=common, precision=torch.float64)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.5), (1.0, 1.0)])
def test_errors_come_to_be_common_to_neurons_in_the_course_of_a_search(
    monkeypatch: pytest.MonkeyPatch, progress: float, share: float
) -> None:
    """Their square grows in a line."""
    monkeypatch.setattr(subspace, "COMMON", 10.0)
    victim = checkpoint("multiclass", Network(widths=(80, 60)))
    search = subspace_search(victim, Reconstruction(images=10, steps=200, dtype="float64", init_scale=10.0))
    search.evaluations = round(progress * 200)
    search.objective()
    expected = weighting_of(search, trusted.LEFT_BEHIND, 10.0 * share)
    assert search.weighting is not None and (len(expected.discounted) > 0) == (share > 0)
    torch.testing.assert_close(search.weighting.of_all, expected.of_all)
    torch.testing.assert_close(*(w.discounted.T @ w.discounted for w in (search.weighting, expected)))


@pytest.mark.parametrize(
    ("network", "weighted"), [(Network(widths=(20,)), None), (Network(widths=(40, 40), init_scale=None), False)]
)
def test_hidden_layers_are_left_out_where_there_are_none_or_it_is_asked_for(
    network: Network, weighted: bool | None
) -> None:
    search = subspace_search(checkpoint("multiclass", network), Reconstruction(images=10, weighted=weighted))
    assert [name for name in search.reading.layers if name.endswith("weight")] == ["layers.1.weight"]


def smooth_victim(pixels: Tensor) -> Checkpoint:
    """Three layers, biases everywhere, of which the first holds sums of the images [n, c, h, w]."""
    g = torch.Generator().manual_seed(1)
    victim = checkpoint("binary", Network(widths=(200, 40), bias="all"))
    data = torch.randn(200, len(pixels), generator=g) @ pixels.flatten(1)
    weights = {**victim.weights, "1.weight": data, "1.bias": data.sum(1)}
    return replace(victim, centre=torch.full_like(pixels[0], 0.5), weights=weights)


def photographs(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    return functional.interpolate(coarse, size=(12, 12), mode="bicubic")


@pytest.mark.parametrize(("stationary", "error", "layers"), [(False, 0.26, 1), (True, 0.13, 3)])
def test_how_far_a_network_is_trusted_and_how_smooth_its_photographs_are(
    monkeypatch: pytest.MonkeyPatch, stationary: bool, error: float, layers: int
) -> None:
    """Once decay has made all layers, contributions err by half; the prior is as strong against each layer's term."""
    victim = smooth_victim(photographs(60))
    monkeypatch.setattr(trusted, "is_stationary", lambda *_: stationary)
    search = subspace_search(victim, Reconstruction(images=60, dtype="float64", init_scale=1.0))
    assert search.reading.smoothness == pytest.approx(layers * trusted.SMOOTHNESS)
    with torch.no_grad():
        search.multipliers.values.mul_(1e6)  # so that the floor is not all there is
    search.objective()
    expected, other = (weighting_of(search, of, 0.0).columns for of in (error, 0.39 - error))
    assert (expected - other).norm() > 0.1 * expected.norm()
    assert search.weighting is not None
    torch.testing.assert_close(search.weighting.columns, expected)


@pytest.mark.parametrize(
    ("images", "asked", "weight"),
    [
        (photographs(60), None, 3 * trusted.SMOOTHNESS),
        (photographs(60), 1e-4, 1e-4),
        (photographs(60), 0.0, 0.0),
        (torch.rand(60, 3, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5, None, 0.0),
        (photographs(40), None, 0.0),
        (photographs(60).reshape(60, 3, 72, 2), None, 0.0),
    ],
    ids=["photographs", "asked for", "none asked for", "noise", "few directions", "no pictures"],
)
def test_only_photographs_are_smoothed_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, asked: float | None, weight: float
) -> None:
    monkeypatch.setattr(trusted, "is_stationary", lambda *_: True)
    search = subspace_search(smooth_victim(images), Reconstruction(images=len(images), smoothness=asked))
    assert search.reading.smoothness == pytest.approx(weight)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 5), (1, 1, 1, 6), (2, 1, 3, 1)])
def test_pixels_beyond_0_and_1_and_variation_speak_against_images(shape: tuple[int, int, int, int]) -> None:
    """Against the sums written out, in value and slope."""
    g = torch.Generator().manual_seed(0)
    images = (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 0.5).requires_grad_()
    beyond = (images - 1).relu().square().sum() + (-images).relu().square().sum()
    _, _, height, width = shape
    variation = images.new_zeros(())
    for row, column in itertools.product(range(height), range(width)):
        here = images[:, :, row, column]
        right = images[:, :, row, min(column + 1, width - 1)] - here
        below = images[:, :, min(row + 1, height - 1), column] - here
        variation = variation + ((right**2 + below**2).sum(1) + EDGE**2).sqrt().sum() - EDGE * len(images)
    for smoothness in (0.0, 0.3):
        oracle, value = 3e-3 * beyond + smoothness * variation, implausible(images, smoothness)
        torch.testing.assert_close(value, oracle)
        slopes = [torch.autograd.grad(of, images, retain_graph=True)[0] for of in (value, oracle)]
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("network", [Network(widths=(20,)), Network(kind="cnn", channels=(2,), widths=(4,))])
def test_smoothness_counts_in_every_search(network: Network) -> None:
    victim = checkpoint("binary", network)
    penalties = []
    for smoothness in (0.0, 0.3):
        config = resolve(Reconstruction(images=4, smoothness=smoothness, init_scale=10.0), victim.task)
        target = Target(network=victim.build(), centre=victim.centre, task=victim.task, outputs=victim.outputs)
        search = METHODS["exhume"].start(target, config, torch.Generator().manual_seed(0))
        penalties.append(search.objective()[1])
    rough = total_variation(search.found().images)
    assert rough > 1
    torch.testing.assert_close(penalties[1] - penalties[0], 0.3 * rough, rtol=0.02, atol=0)  # products in bfloat16


DIGITS_MEAN = torch.linspace(0, 1, 144).pow(8).reshape(1, 12, 12)
"""Black but for a corner, as no mean of grey images can be."""


@pytest.mark.parametrize(
    ("centre", "asked", "weight"),
    [
        (DIGITS_MEAN, {}, trusted.BILEVEL),
        (1 - DIGITS_MEAN, {}, trusted.BILEVEL),
        (DIGITS_MEAN, {"bilevel": 0.0}, 0.0),
        (DIGITS_MEAN, {"weighted": False}, 0.0),
        (torch.full((1, 12, 12), 0.4), {}, 0.0),
        (torch.full((1, 12, 12), 0.4), {"bilevel": 2.0}, 2.0),
        (torch.zeros(1, 12, 12), {}, 0.0),
        (torch.full((1, 1, 2), 0.99), {}, 0.0),
    ],
    ids=["dark", "light", "not asked for", "unweighted", "grey", "asked for", "no mean", "points"],
)
def test_images_are_black_or_white_where_their_mean_says_so(
    centre: Tensor, asked: dict[str, Any], weight: float
) -> None:
    """Grey counts against twice the negative log-likelihood, so by what the weighted layer has in all."""
    victim = checkpoint("binary", Network(widths=(20,)), centre=centre)
    config = {"images": 4, "dtype": "float64", "init_scale": 3.0, **asked}
    search, without = (subspace_search(victim, Reconstruction(**{**config, **of})) for of in ({}, {"bilevel": 0.0}))
    assert search.reading.bilevel == weight
    penalty, plain = search.objective()[1], without.objective()[1]
    pixels = search.found().images
    greyness = sum(y * (1 - y) for y in pixels.flatten().tolist() if 0 < y < 1)
    assert greyness > 0.1
    of_all = search.weighting.of_all.item() if search.weighting else math.inf
    assert (penalty - plain).item() == pytest.approx(weight * greyness / of_all, rel=1e-6)


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
    search = subspace_search(checkpoint("multiclass"), Reconstruction(images=10, dtype=dtype))
    assert {weight.dtype for weight in search.products.weights} == {products}
    own = getattr(torch, dtype)
    residual, penalty = search.objective()
    assert (residual.dtype, penalty.dtype, search.found().images.dtype) == (own, own, own)


# ---- The papers' scheme


def papers_loss(  # noqa: PLR0917
    weights: list[Tensor], bias: Tensor, x: Tensor, labels: Tensor, lam: Tensor, task: str, a: float, least: float
) -> Tensor:
    """The reference objective, written anew from the papers for a network with one hidden layer and a first bias."""
    theta = [weights[0], bias, weights[1]]

    def smooth(z: Tensor) -> Tensor:
        return functional.relu(z).detach() + (s := -functional.logsigmoid(-a * z) / a) - s.detach()

    scores = smooth(x.flatten(1) @ theta[0].T + theta[1]) @ theta[2].T
    if task == "binary":
        out = lam * (2 * labels - 1) * scores[:, 0]
    elif task == "multiclass":
        own = scores.gather(1, labels[:, None])[:, 0]
        out = lam * (own - scores.scatter(1, labels[:, None], -math.inf).amax(1))
    else:
        out = lam * scores[:, 0]
    sums = torch.autograd.grad(out.sum() / len(x), theta, create_graph=True)
    loss = sum((t.detach() - g).pow(2).sum() for t, g in zip(theta, sums, strict=True))
    loss = loss + (x - 1).relu().pow(2).sum() + (-1 - x).relu().pow(2).sum()
    assert isinstance(loss, Tensor)
    return loss if task == "regression" else loss + 5 * (least - lam).relu().pow(2).sum()


@pytest.mark.parametrize("task", TASKS)
def test_reference_is_the_papers_objective(task: Task) -> None:
    """Value, gradients and one step of SGD with momentum, in float64."""
    victim = checkpoint(task, Network(widths=(20,), init_scale=0.3))
    module = victim.build().double()
    target = Target(network=module, centre=victim.centre.double(), task=task, outputs=victim.outputs)
    config = replace(SMALL["reference"], init_scale=0.9, min_multiplier=0.4, dtype="float64")
    config = resolve(config, task)
    search = ReferenceSearch(target, config, torch.Generator().manual_seed(0))
    weights = [p for n, p in module.named_parameters() if n.endswith("weight")]
    bias = next(p for n, p in module.named_parameters() if n.endswith("bias"))
    x, lam = search.pixels, search.multipliers.values
    assert (x.detach().abs() > 1).any()  # both penalties are at work
    assert (lam < 0.4).any()

    residual, penalty = search.objective()
    oracle = papers_loss(weights, bias, x, search.labels, lam, task, 20.0, 0.4)
    torch.testing.assert_close(residual + penalty, oracle, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss, [x, lam], retain_graph=True) for loss in (residual + penalty, oracle))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)

    before = [x.detach().clone(), lam.detach().clone()]
    velocity = list(theirs)
    for _ in range(2):  # the second step has momentum
        (optimiser,) = search.optimisers
        optimiser.zero_grad()
        sum(search.objective()).backward()  # type: ignore[union-attr, no-untyped-call]
        optimiser.step()
        before = [b - rate * v for b, v, rate in zip(before, velocity, (0.05, 1e-2), strict=True)]
        torch.testing.assert_close([x.detach(), lam.detach()], before, rtol=1e-9, atol=1e-12)
        slopes = torch.autograd.grad(papers_loss(weights, bias, x, search.labels, lam, task, 20.0, 0.4), [x, lam])
        velocity = [0.9 * v + s for v, s in zip(velocity, slopes, strict=True)]


@pytest.mark.parametrize("task", TASKS)
def test_reference_starts_as_the_papers_do(task: Task) -> None:
    victim = checkpoint(task)
    target = Target(network=victim.build(), centre=victim.centre, task=task, outputs=victim.outputs)
    config = resolve(Reconstruction(method="reference", per_class=400, init_scale=1e-2), task)
    search = ReferenceSearch(target, config, torch.Generator().manual_seed(0))
    assert search.pixels.std().item() == pytest.approx(1e-2, rel=0.05)
    values = search.multipliers.values.detach()
    mean, std = (0, 1) if task == "regression" else (0.5, 12**-0.5)
    assert values.mean().item() == pytest.approx(mean, abs=0.1)
    assert values.std().item() == pytest.approx(std, rel=0.1)
    assert search.labels.bincount().tolist() == [400] * target.labels


# ---- Any method


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_search_goes_down_and_says_what_it_found(method: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "COMMON", 0.0)  # with it the residual at the end is not the measure it was at first
    found = reconstruct(checkpoint(task), SMALL[method])
    classes, each = (3 if task == "multiclass" else 2), 5 * (METHODS[method].defaults.restarts or 1)
    count = each * classes
    assert found.status == "done"
    assert found.images.shape == (count, 1, 5, 5)
    assert found.labels.shape == found.multipliers.shape == found.explained.shape == (count,)
    if task != "regression":
        assert found.labels.bincount().tolist() == [each] * classes
    assert found.history[-1].step == 60
    total = [point.residual + point.penalty for point in found.history]
    assert total[-1] < total[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_finds_the_same(method: str) -> None:
    victim, config = checkpoint("multiclass"), SMALL[method]
    once, again, other = (reconstruct(victim, replace(config, seed=seed)).images for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.allclose(once, other, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_weights_in_half_precision_are_searched_in_full_and_told_of(method: str) -> None:
    whole = checkpoint("multiclass")
    half = reconstruct(whole.half(), SMALL[method])
    assert half.images.dtype == torch.float32
    assert "float16" in half.message
    full = reconstruct(whole, SMALL[method])
    assert "float" not in full.message
    assert half.history[0].residual == pytest.approx(full.history[0].residual, rel=1e-2)
    module = reconstruct(whole.half().build(), SMALL[method], task="multiclass", centre=whole.centre)
    assert "float16" in module.message


@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_a_status_and_the_last_finite_candidates_remain(method: str) -> None:
    found = reconstruct(
        checkpoint("binary"), replace(SMALL[method], lr_images=1e20 if method == "exhume" else 1e12, steps=200)
    )
    assert found.status == "diverged"
    assert "smaller learning rates" in found.message
    assert found.images.isfinite().all()
    assert all(math.isfinite(point.residual) for point in found.history)


def test_explained_is_the_share_of_the_weights() -> None:
    """By the definition, one candidate at a time: <theta, lambda_i y_i grad f(x_i)> / m / norm(theta)^2."""
    victim = checkpoint("binary")
    found = reconstruct(victim, replace(SMALL["exhume"], dtype="float64", restarts=1))
    module = victim.build()
    parameters = list(module.parameters())
    norm = sum(p.pow(2).sum() for p in parameters)
    for i in (0, 7):
        scores = module(found.images[i : i + 1]).sum()
        gradients = torch.autograd.grad(scores, parameters)
        along = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
        expected = found.multipliers[i] * (2 * found.labels[i] - 1) * along / len(found.images) / norm
        torch.testing.assert_close(found.explained[i], expected.detach(), rtol=1e-3, atol=1e-7)


class Functional(nn.Module):
    """A user's own network, nothing of ours in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(25, 30), nn.Linear(30, 3)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.second(functional.relu(self.first(images.flatten(1) - 0.5)))
        return scores


@pytest.mark.parametrize(
    "make",
    [
        Functional,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.ReLU(), nn.Linear(30, 3)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
    ],
    ids=["own class", "dense", "convolutional"],
)
@pytest.mark.parametrize("method", METHODS)
def test_any_module_can_be_attacked_and_is_left_as_it_was(
    method: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subspace, "COMMON", 0.0)  # with it the residual at the end is not the measure it was at first
    torch.manual_seed(0)
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = reconstruct(module.train(), SMALL[method], task="multiclass", centre=torch.full((1, 5, 5), 0.5))
    total = [point.residual + point.penalty for point in found.history]  # of random weights the residual alone may rise
    assert total[-1] < total[0]
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_module_needs_task_and_centre() -> None:
    with pytest.raises(InputError, match="task and the centre"):
        reconstruct(Functional())
    with pytest.raises(InputError, match="does not fit the task binary"):
        reconstruct(Functional(), task="binary", centre=torch.zeros(1, 5, 5))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"images": -1}, "images must be at least 1"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"lr_images": 0.0}, "lr_images must be positive"),
        ({"sharpness": math.nan}, "sharpness must be positive"),
        ({"smoothness": -1.0}, "smoothness must not be negative"),
        ({"bilevel": math.inf}, "bilevel must not be negative"),
        ({"objective": "best"}, "Unknown objective"),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"method": "magic"}, "Unknown method"),
        ({"objective": "multiclass"}, "for the task multiclass, not binary"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(bad: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(Reconstruction(**bad), "binary")  # type: ignore[arg-type]


# ---- Quality, and the controls


@pytest.fixture(scope="module")
def victim() -> tuple[Problem, Checkpoint]:
    problem = load_problem("mnist-digits", Selection(per_class=3))
    return problem, train(problem, Training(epochs=600), network=Network(widths=(400,))).checkpoint


@pytest.fixture(scope="module")
def digits(victim: tuple[Problem, Checkpoint]) -> tuple[Problem, Candidates]:
    problem, trained = victim
    return problem, reconstruct(trained, Reconstruction(steps=600))


def test_most_of_thirty_digits_come_out(digits: tuple[Problem, Candidates]) -> None:
    problem, found = digits
    assert found.reading.images == 30  # read from the weights
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] >= 25
    assert scores.null["0.9"] <= 1


def test_what_explains_most_comes_out_best(victim: tuple[Problem, Checkpoint]) -> None:
    """Without the truth, and before all have come out: what explains most is nearer to training images."""
    problem, trained = victim
    found = reconstruct(trained, Reconstruction(steps=150))
    best = match(found, problem.images).similarity.amax(0)[found.explained.argsort(descending=True)]
    assert best[: len(best) // 4].mean() > best[-len(best) // 4 :].mean() + 0.05


def test_what_the_attacker_is_sure_of_is_true(digits: tuple[Problem, Candidates]) -> None:
    problem, found = digits
    sure = found.confidence >= 0.9
    assert sure.sum() >= 15
    right = match(found, problem.images).similarity.amax(0) >= 0.9
    assert right[sure].float().mean() >= 0.9
    assert right[~sure].float().mean() < right[sure].float().mean() - 0.1  # the control: confidence tells them apart


def test_a_single_search_is_sure_of_nothing_and_is_the_first_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exhume.confidence.UNEXPLAINED", math.inf)  # 20 steps are few
    problem = load_problem("mnist-digits", Selection(per_class=3))
    victim = train(problem, Training(epochs=300), network=Network(widths=(200,))).checkpoint
    config = replace(SMALL["exhume"], steps=20)
    two, one = reconstruct(victim, config), reconstruct(victim, replace(config, restarts=1))
    assert one.confidence.isnan().all() and two.confidence.isfinite().all()
    count = len(one.images)
    assert len(two.images) == len(two.labels) == len(two.explained) == len(two.multipliers) == 2 * count
    torch.testing.assert_close(two.images[:count], one.images, rtol=0, atol=0)
    assert not torch.equal(two.images[count:], one.images)  # from another start
    # agreement looks both ways: the confidence of one search's candidates is by the other's
    parts = (slice(count), slice(count, None))
    halves = [(two.images[part], two.labels[part]) for part in parts]
    agreed = [agreement(*halves[0], [halves[1]]), agreement(*halves[1], [halves[0]])]
    sure = torch.cat([confidence(one, two.explained[part]) for one, part in zip(agreed, parts, strict=True)])
    torch.testing.assert_close(two.confidence, sure)


@pytest.mark.parametrize(("activation", "steps"), [("relu", 3), ("tanh", 300)])
def test_nothing_is_sure_where_the_calibration_does_not_hold(activation: str, steps: int) -> None:
    """Of a search cut short, and of networks of another activation."""
    problem = load_problem("mnist-digits", Selection(per_class=3))
    network = Network(widths=(200,), activation=activation)
    victim = train(problem, Training(epochs=300), network=network).checkpoint
    found = reconstruct(victim, replace(SMALL["exhume"], steps=steps))
    assert found.status == "done" and found.confidence.isnan().all()
    if activation == "tanh":
        assert found.history[-1].residual < 0.5  # it is not that which tells


def test_a_divergence_between_two_looks_is_a_status_too() -> None:
    found = reconstruct(checkpoint("multiclass"), replace(SMALL["exhume"], lr_images=1e20, steps=3000))
    assert found.status == "diverged" and found.confidence.isnan().all()
    assert "left nothing" not in found.message  # the first one's last finite candidates are kept


@pytest.mark.parametrize(
    ("network", "searches", "why"),
    [
        (
            Network(widths=(20, 10), activation="tanh"),
            2,
            "unknown: it was calibrated for relu, and this network has tanh.",
        ),
        (Network(widths=(20, 10), activation="tanh"), 1, None),
        (Network(kind="cnn", channels=(2,), widths=(4,)), 2, "within a dense network's first layer."),
    ],
)
def test_the_message_says_why_nobody_is_sure(network: Network, searches: int, why: str | None) -> None:
    found = reconstruct(checkpoint("multiclass", network), replace(SMALL["exhume"], steps=2, restarts=searches))
    assert found.confidence.isnan().all()
    assert (why or "All 2 steps are over.") in found.message
    assert ("How sure" in found.message) == bool(why)


def test_the_message_says_of_how_many_searches_nobody_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([None, "it is too bad", None])
    monkeypatch.setattr("exhume.solver.doubt", lambda *_: next(told))
    found = reconstruct(checkpoint("multiclass"), replace(SMALL["exhume"], steps=2, restarts=3))
    assert "How sure to be of 1 of 3 searches is unknown: it is too bad." in found.message
    known = found.confidence.isfinite().reshape(3, -1)
    assert known[0].all() and not known[1].any() and known[2].all()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_search_that_diverges_leaves_the_candidates_of_the_others(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    monkeypatch.setattr("exhume.confidence.UNEXPLAINED", math.inf)
    victim, config = checkpoint("multiclass"), replace(SMALL["exhume"], steps=20, restarts=3, images=26)
    whole, row, started = reconstruct(victim, config), METHODS["exhume"], []

    def start(*given: Any) -> Search:
        search = row.start(*given)
        started.append(search)
        if len(started) == lost + 1:
            with torch.no_grad():
                search.optimisers[0].param_groups[0]["params"][0].fill_(torch.inf)
        return search

    monkeypatch.setitem(METHODS, "exhume", replace(row, start=start))
    found = reconstruct(victim, config)
    assert found.status == "done" and "1 of 3 searches diverged and left nothing" in found.message
    parts = torch.arange(len(whole.images)).chunk(3)
    first, second = (rows for which, rows in enumerate(parts) if which != lost)
    one, two = ((whole.images[rows], whole.labels[rows]) for rows in (first, second))
    torch.testing.assert_close(found.images, torch.cat([one[0], two[0]]), rtol=0, atol=0)
    assert (found.history == whole.history) == (lost > 0)  # that of the first search that is kept
    sure = torch.cat(
        [
            confidence(agreement(*one, [two]), whole.explained[first]),
            confidence(agreement(*two, [one]), whole.explained[second]),
        ]
    )
    assert sure.isfinite().all()
    torch.testing.assert_close(found.confidence, sure)


def test_where_nothing_tells_how_sure_one_can_be_several_searches_are_kept_all_the_same() -> None:
    found = reconstruct(checkpoint("binary", Network(kind="cnn", channels=(2,), widths=(4,))), SMALL["exhume"])
    assert len(found.images) == 2 * 2 * 5 and found.confidence.isnan().all()


@pytest.mark.parametrize("network", [Network(widths=(20,)), Network(kind="cnn", channels=(2,), widths=(4,))])
@pytest.mark.parametrize("method", METHODS)
def test_the_images_rate_falls_to_a_fiftieth_and_the_papers_stays(method: str, network: Network) -> None:
    victim, config = checkpoint("multiclass", network), resolve(replace(SMALL[method], steps=10), "multiclass")
    target = Target(network=victim.build(), centre=victim.centre, task="multiclass", outputs=3)
    search = METHODS[method].start(target, replace(config, dtype="float32"), torch.Generator().manual_seed(0))
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for optimiser in search.optimisers for group in optimiser.param_groups])
        take_step(search, sum(search.objective()))
    images, *multipliers = zip(*rates, strict=True)
    lowest = images[0] * (0.02 if method == "exhume" else 1)
    assert images == pytest.approx(torch.linspace(images[0], lowest, 11)[:10].tolist())
    assert all(len(set(values)) == 1 for values in multipliers)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.01])
def test_candidates_move_whatever_the_centre(value: float) -> None:
    """Where no mean was subtracted the centre is 0, which gives the images no scale."""
    victim = replace(checkpoint("multiclass"), centre=torch.full((1, 5, 5), value))
    short, longer = (reconstruct(victim, replace(SMALL["exhume"], steps=steps)) for steps in (1, 40))
    assert (longer.images - short.images).abs().mean() > 2e-3


def test_no_more_candidates_than_equations_allow() -> None:
    """Half the 700 neurons where twice the 300 images would be too many; what is asked for stays."""
    target = Target(network=nn.Identity(), centre=torch.zeros(1, 5, 5), task="binary", outputs=1)
    settings = Reconstruction()
    assert [len(balanced_labels(target, settings, n, 700)) for n in (10, 150, 300, 500)] == [200, 300, 350, 500]
    assert len(balanced_labels(target, settings, 300)) == 600
    assert len(balanced_labels(target, replace(settings, per_class=450), 300, 700)) == 900


def test_other_digits_score_at_chance(digits: tuple[Problem, Candidates]) -> None:
    """The candidates of one training set, scored against another that the network never saw."""
    problem, found = digits
    half = len(problem.held_out) // 2
    scores = score(found, problem.held_out[::2], problem.held_out_labels[::2], problem.held_out[1::2])
    assert scores.images == half
    assert scores.recovered["0.9"] <= scores.null["0.9"] + 1
    assert scores.p_value > 0.05


def test_an_untrained_network_gives_nothing_away() -> None:
    problem = load_problem("mnist-digits", Selection(per_class=3))
    trained = train(problem, Training(epochs=0), network=Network(widths=(400,)))
    found = reconstruct(trained.checkpoint, Reconstruction(steps=300, images=30))
    assert (found.confidence >= 0.9).sum() == 0
    few = reconstruct(trained.checkpoint, Reconstruction(steps=300, images=3))  # within 3 directions all searches agree
    assert (few.confidence >= 0.9).sum() == 0
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] <= scores.null["0.9"] + 1
    assert scores.p_value > 0.05


@pytest.mark.gpu
def test_a_gpu_finds_the_same_residuals() -> None:
    victim = checkpoint("multiclass")
    config = replace(SMALL["exhume"], dtype="float64")
    here, there = (reconstruct(victim, config, device=device) for device in ("cpu", "cuda"))
    assert there.history[-1].residual == pytest.approx(here.history[-1].residual, rel=1e-6)


def test_an_uncentred_chain_is_shown_as_it_was_searched() -> None:
    """What the search holds to be an image gives the first layer what the search gave it, whatever the centre."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(25, 60), nn.ReLU(), nn.Linear(60, 3))
    centred = checkpoint("multiclass").build()
    for module in (flat, centred):
        target = Target(network=module, centre=torch.full((1, 5, 5), 0.4), task="multiclass", outputs=3)
        config = resolve(Reconstruction(images=26, per_class=9), "multiclass")
        search = METHODS["exhume"].start(target, config, torch.Generator().manual_seed(0))
        assert isinstance(search, SubspaceSearch)
        linear = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
        images = search.found().images
        inputs = images - centred.centre.centre if module is centred else images
        # the bias coordinate is searched for too, so only the part without it must agree
        without_bias = search.variables @ search.subspace.basis[:25].T
        torch.testing.assert_close(
            inputs.flatten(1) @ linear.weight.T, without_bias @ linear.weight.T, atol=1e-4, rtol=1e-4
        )
        if module is flat:  # whose directions are all there are: it starts around the given centre
            assert (images.mean(0) - 0.4).abs().max() < 0.05


def test_a_bias_that_is_zero_does_not_outweigh_the_layers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(network[3].bias)
    found = reconstruct(network, SMALL["exhume"], task="multiclass", centre=torch.full((1, 5, 5), 0.5))
    assert found.history[0].residual < 100


@pytest.mark.parametrize("scales", [(1, 1e6, 1e38), (1e19, 1, 1), (1, 1e10, 1e15)])
def test_weights_beyond_all_measure_are_a_status(scales: tuple[float, float, float]) -> None:
    """The first contributions overflow, so that no weighting can be taken from them, or what is made of them does."""
    torch.manual_seed(0)
    layers = nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)
    with torch.no_grad():
        for layer, scale in zip(layers[::2], scales, strict=True):
            layer.weight.mul_(scale)
    centre = torch.full((1, 6, 6), 0.5)
    found = reconstruct(nn.Sequential(nn.Flatten(), *layers), SMALL["exhume"], task="multiclass", centre=centre)
    assert found.status == "diverged"


@pytest.mark.parametrize("setting", [{"smoothness": 1e-5}, {"bilevel": 0.0}, {"weighted": True}])
def test_reference_refuses_what_the_papers_do_not_have(setting: dict[str, object]) -> None:
    with pytest.raises(InputError, match="for the method exhume"):
        resolve(Reconstruction(method="reference", **setting), "binary")  # type: ignore[arg-type]


WRONG = """
import torch, exhume
module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
for task, centre in (("multi", torch.zeros(1, 2, 2)), ("multiclass", torch.zeros(2, 2)), ("multiclass", [[[0.5]]])):
    try:
        exhume.reconstruct(module, task=task, centre=centre)
    except exhume.InputError as error:
        print(error)
"""


def test_what_is_wrong_with_a_module_is_a_sentence() -> None:
    """In a process of its own: here the types of arguments are checked, and nothing else would be seen."""
    said = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "There is no task 'multi'; there are binary, multiclass, regression.",
        *["The centre to search around must be a tensor [c, h, w]."] * 2,
    ]
