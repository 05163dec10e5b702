"""The search where dense layers stand behind convolutions: what it reads, what it asks, and what comes out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exhume import Checkpoint, Network, Problem, Reconstruction, Selection, load_problem, reconstruct, train
from exhume.chains import as_dense, dense_behind
from exhume.methods import METHODS, resolve
from exhume.methods.features import OUTSIDE, FeatureSearch
from exhume.methods.ground import Target, implausible
from exhume.methods.pixels import PixelSearch
from exhume.methods.trusted import SMOOTHNESS
from exhume.misfit import trusted_layers
from exhume.networks import build
from exhume.residual import relative_residual
from exhume.scores import score
from exhume.stationarity import network_gradients, scale_free
from exhume.training import Training

CNN = Network(kind="cnn", channels=(2, 1), widths=(30, 6), init_scale=None, bias="all")
"""Behind its convolutions are 4 features, fewer than neurons: the first dense layer's directions are all there are."""


def network_of(kind: Network, outputs: int = 3) -> nn.Module:
    centre = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return build(kind, centre, outputs, torch.Generator().manual_seed(1))


def search_of(network: nn.Module, config: Reconstruction) -> FeatureSearch:
    config = resolve(config, "multiclass")
    centre = torch.full((1, 5, 6), 0.4, dtype=torch.float64)
    target = Target(network=network, centre=centre, task="multiclass", outputs=3)
    search = METHODS["exhume"].start(target, config, torch.Generator().manual_seed(0))
    assert isinstance(search, FeatureSearch)
    return search


def images_of(count: int) -> Tensor:
    return torch.rand(count, 1, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# ---- What stands behind what


def test_dense_layers_go_on_from_the_features_of_their_head() -> None:
    network, images = network_of(CNN), images_of(7)
    parts = dense_behind(network)
    assert parts is not None
    features = parts.head(images).flatten(1)
    assert features.shape == (7, 4)
    for i, (weight, bias) in enumerate(zip(parts.dense.weights, parts.dense.biases, strict=True)):
        features = (features.relu() if i else features) @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(features, network(images))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),  # a row for each class only
        nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.LayerNorm(9), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Linear(30, 3),
        nn.Sequential(),
    ],
)
def test_a_network_without_two_dense_layers_at_its_end_has_no_features(network: nn.Module) -> None:
    assert dense_behind(network) is None


def test_what_does_nothing_and_how_layers_are_grouped_makes_no_difference() -> None:
    torch.manual_seed(0)
    head, first, last = nn.Conv2d(1, 2, 3), nn.Linear(24, 8), nn.Linear(8, 3)
    grouped = nn.Sequential(
        nn.Sequential(head, nn.ReLU(), nn.Identity()),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(), first, nn.ReLU(), nn.Dropout(), last),
    ).eval()
    parts, images = dense_behind(grouped), images_of(3).float()
    assert parts is not None
    assert [weight.shape for weight in parts.dense.weights] == [(8, 24), (3, 8)]
    features = parts.head(images).flatten(1)
    torch.testing.assert_close(last(first(features).relu()), grouped(images))
    dense = as_dense(nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Dropout(), last))
    assert dense is not None and len(dense.weights) == 2


def test_layers_are_called_by_their_names_whatever_is_frozen() -> None:
    network = network_of(CNN)
    for parameter in list(network.parameters())[-2:]:
        parameter.requires_grad_(False)
    search = search_of(network, Reconstruction(images=6, dtype="float64"))
    assert search.reading.layers[0] == "layers.5.weight"


@pytest.mark.parametrize(("stationary", "trusted"), [(True, 6), (False, 2)])
def test_a_misfit_is_of_the_dense_layers_that_are_trusted(
    monkeypatch: pytest.MonkeyPatch, stationary: bool, trusted: int
) -> None:
    """Also where the hidden layer counts in the search, above the noise of its initialisation."""
    monkeypatch.setattr("exhume.methods.trusted.is_stationary", lambda *_: stationary)
    network = network_of(CNN)
    weights = {name.removeprefix("layers."): p.detach() for name, p in network.named_parameters()}
    victim = Checkpoint(
        network=CNN, task="multiclass", classes=("a", "b", "c"), centre=images_of(1)[0], weights=weights
    )
    names = [f"layers.{layer}.{kind}" for layer in (5, 7, 9) for kind in ("weight", "bias")]
    assert trusted_layers(victim) == names[:trusted]


def test_without_features_every_pixel_is_free() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    target = Target(network=layers, centre=images_of(1)[0], task="multiclass", outputs=3)
    search = METHODS["exhume"].start(target, resolve(Reconstruction(images=4), "multiclass"), torch.Generator())
    assert isinstance(search, PixelSearch) and not isinstance(search, FeatureSearch)


# ---- What is asked of the candidates


def test_what_is_read_is_of_the_dense_layers() -> None:
    search = search_of(network_of(CNN), Reconstruction(images=6, dtype="float64"))
    assert search.reading.layers[0] == "layers.5.weight"
    assert search.reading.rank == 5  # four features and the bias
    assert search.reading.smoothness == SMOOTHNESS
    assert search.reading.bilevel == 0


def test_the_residual_and_its_slopes_are_those_of_double_backward() -> None:
    """Of all dense layers' parameters, were they stationary; nothing lies outside of all directions."""
    network = network_of(CNN)
    config = Reconstruction(images=6, dtype="float64", init_scale=0.5, weighted=False, smoothness=0.0)
    search = search_of(network, config)
    search.stationary = True
    residual, penalty = search.objective()
    gradients = network_gradients(network, search.images, search.multipliers.cotangents, scale_free(10.0))[4:]
    parameters = [parameter.detach() for parameter in network.parameters()][4:]
    first = [torch.cat([part[0], part[1][:, None]], 1) for part in (parameters, gradients)]
    oracle = relative_residual([first[0], *parameters[2:]], [first[1], *gradients[2:]])
    torch.testing.assert_close(residual, oracle)
    slopes = [torch.autograd.grad(of, search.variables, retain_graph=True)[0] for of in (residual, oracle)]
    assert slopes[0].norm() > 1e-6
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(penalty, search.multipliers.penalty() + implausible(search.images, 0.0))


def test_features_outside_of_the_span_speak_against_an_image() -> None:
    network = network_of(replace(CNN, channels=(2, 8), widths=(9, 6), bias="first"))
    search = search_of(network, Reconstruction(images=3, dtype="float64", init_scale=0.5, weighted=False))
    features = search.head(search.images).flatten(1)
    within = torch.linalg.lstsq(search.subspace.basis, features.T).solution
    left = (features.T - search.subspace.basis @ within).pow(2).sum(0) / features.pow(2).sum(1)
    assert left.mean() > 0.01
    penalty = search.objective()[1] - search.multipliers.penalty() - implausible(search.images, SMOOTHNESS)
    torch.testing.assert_close(penalty, OUTSIDE * left.mean())


# ---- What comes out


@pytest.fixture(scope="module")
def victim() -> tuple[Problem, Checkpoint]:
    problem = load_problem("mnist-digits", Selection(per_class=3))
    network = Network(kind="cnn", channels=(8, 16), widths=(300,), init_scale=None)
    decay = Training(epochs=2500, lr=0.05, momentum=0.9, weight_decay=5e-3)
    return problem, train(problem, decay, network=network).checkpoint


def test_digits_come_out_of_convolutions(victim: tuple[Problem, Checkpoint]) -> None:
    problem, trained = victim
    found = reconstruct(trained, Reconstruction(steps=500, restarts=1))
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.8"] >= 18
    assert scores.null["0.8"] <= 5


def test_nothing_comes_out_of_convolutions_that_were_not_trained(victim: tuple[Problem, Checkpoint]) -> None:
    problem, trained = victim
    module = build(trained.network, trained.centre, trained.outputs, torch.Generator().manual_seed(7))
    weights = {name: p.detach() for name, p in module.layers.named_parameters()}
    found = reconstruct(replace(trained, weights=weights), Reconstruction(steps=500, restarts=1, images=30))
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.8"] <= scores.null["0.8"] + 2
    assert scores.recovered["0.9"] <= 1
