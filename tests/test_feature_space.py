"""The search where dense layers stand behind convolutions: what it reads, what it asks, and what comes out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exhume import Checkpoint, Exhume, NetworkConfig, Problem, Selection, load_problem, reconstruct, train
from exhume.attack.activations import ScaleFree
from exhume.attack.analysis import SMOOTHNESS
from exhume.attack.methods.feature_space import OUTSIDE_WEIGHT, FeatureSpaceSearch
from exhume.attack.methods.input_subspace import InputSubspaceSearch
from exhume.attack.methods.pixel_space import PixelSpaceSearch
from exhume.attack.priors import implausible
from exhume.attack.residuals import relative_residual
from exhume.attack.stationarity import network_gradients
from exhume.attack.target import Target
from exhume.audit.scores import score
from exhume.defence.training import TrainingConfig
from exhume.networks import build
from exhume.tuning.objective import believed_layers

CNN = NetworkConfig(kind="cnn", channels=(2, 1), widths=(30, 6), init_scale=None, bias="all")
"""Behind its convolutions are 4 features, fewer than neurons: the first dense layer's directions are all there are."""


def network_of(kind: NetworkConfig, outputs: int = 3) -> nn.Module:
    centre = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return build(kind, centre, outputs, torch.Generator().manual_seed(1))


def search_of(network: nn.Module, method: Exhume) -> FeatureSpaceSearch:
    centre = torch.full((1, 5, 6), 0.4, dtype=torch.float64)
    target = Target(network=network, centre=centre, task="multiclass", outputs=3)
    search = method.start(target, torch.Generator().manual_seed(0))
    search.prepare(0)
    assert isinstance(search, FeatureSpaceSearch)
    return search


def images_of(count: int) -> Tensor:
    return torch.rand(count, 1, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_layers_are_called_by_their_names_whatever_is_frozen() -> None:
    network = network_of(CNN)
    for parameter in list(network.parameters())[-2:]:
        parameter.requires_grad_(False)
    search = search_of(network, Exhume(images=6, dtype="float64"))
    assert search.assumptions.layers[0] == "layers.5.weight"


@pytest.mark.parametrize(("stationary", "believed"), [(True, 6), (False, 2)])
def test_the_exact_residual_is_of_the_layers_that_are_believed(
    monkeypatch: pytest.MonkeyPatch, stationary: bool, believed: int
) -> None:
    """Also where the hidden layer counts in the search, above the noise of its initialisation."""
    monkeypatch.setattr("exhume.attack.analysis.is_stationary", lambda *_: stationary)
    network = network_of(CNN)
    weights = {name.removeprefix("layers."): p.detach() for name, p in network.named_parameters()}
    victim = Checkpoint(
        network=CNN, task="multiclass", classes=("a", "b", "c"), centre=images_of(1)[0], weights=weights
    )
    names = [f"layers.{layer}.{kind}" for layer in (5, 7, 9) for kind in ("weight", "bias")]
    assert believed_layers(victim) == names[:believed]


def test_without_features_every_pixel_is_free() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    target = Target(network=layers, centre=images_of(1)[0], task="multiclass", outputs=3)
    search = Exhume(images=4).start(target, torch.Generator())
    assert isinstance(search, PixelSpaceSearch) and not isinstance(search, InputSubspaceSearch)


# ---- What is asked of the candidates


def test_what_is_read_is_of_the_dense_layers() -> None:
    search = search_of(network_of(CNN), Exhume(images=6, dtype="float64"))
    assert search.assumptions.layers[0] == "layers.5.weight"
    assert search.assumptions.rank == 5  # four features and the bias
    assert search.assumptions.smoothness == SMOOTHNESS
    assert search.assumptions.binary_prior == 0


def test_the_residual_and_its_slopes_are_those_of_double_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all dense layers' parameters, were they stationary; nothing lies outside of all directions."""
    monkeypatch.setattr("exhume.attack.analysis.is_stationary", lambda *_: True)
    network = network_of(CNN)
    search = search_of(network, Exhume(images=6, dtype="float64", init_scale=0.5, smoothness=0.0))
    residual, penalty = search.objective()
    gradients = network_gradients(network, search.images, search.multipliers.cotangents, ScaleFree(10.0))[4:]
    parameters = [parameter.detach() for parameter in network.parameters()][4:]
    first = [torch.cat([part[0], part[1][:, None]], 1) @ search.subspace.basis for part in (parameters, gradients)]
    weightings = [search.weighting, *[None] * len(parameters[2:])]
    oracle = relative_residual([first[0], *parameters[2:]], [first[1], *gradients[2:]], weightings)
    torch.testing.assert_close(residual, oracle)
    slopes = [torch.autograd.grad(of, search.variables, retain_graph=True)[0] for of in (residual, oracle)]
    assert slopes[0].norm() > 1e-6
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(penalty, search.multipliers.penalty() + implausible(search.images, 0.0))


def test_features_outside_of_the_span_speak_against_an_image() -> None:
    network = network_of(replace(CNN, channels=(2, 8), widths=(9, 6), bias="first"))
    search = search_of(network, Exhume(images=3, dtype="float64", init_scale=0.5))
    features = search.head(search.images).flatten(1)
    within = torch.linalg.lstsq(search.subspace.basis, features.T).solution
    left = (features.T - search.subspace.basis @ within).pow(2).sum(0) / features.pow(2).sum(1)
    assert left.mean() > 0.01
    penalty = search.objective()[1] - search.multipliers.penalty() - implausible(search.images, SMOOTHNESS)
    torch.testing.assert_close(penalty, OUTSIDE_WEIGHT * left.mean())


# ---- What comes out


@pytest.fixture(scope="module")
def victim() -> tuple[Problem, Checkpoint]:
    problem = load_problem("mnist-digits", Selection(per_class=3))
    network = NetworkConfig(kind="cnn", channels=(8, 16), widths=(300,), init_scale=None)
    decay = TrainingConfig(epochs=2500, lr=0.05, momentum=0.9, weight_decay=5e-3)
    return problem, train(problem, decay, network=network).checkpoint


def test_digits_come_out_of_convolutions(victim: tuple[Problem, Checkpoint]) -> None:
    problem, trained = victim
    found = reconstruct(trained, Exhume(steps=400, restarts=1))
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.8"] >= 18
    assert scores.null["0.8"] <= 5


def test_nothing_comes_out_of_convolutions_that_were_not_trained(victim: tuple[Problem, Checkpoint]) -> None:
    problem, trained = victim
    module = build(trained.network, trained.centre, trained.outputs, torch.Generator().manual_seed(7))
    weights = {name: p.detach() for name, p in module.layers.named_parameters()}
    found = reconstruct(replace(trained, weights=weights), Exhume(steps=400, restarts=1, images=30))
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.8"] <= scores.null["0.8"] + 2
    assert scores.recovered["0.9"] <= 1
