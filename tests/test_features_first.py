"""The search behind a head that moved from a known start: what it asks of features and images, and what comes out."""

import copy
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import Candidates, Checkpoint, Exhume, NetworkConfig, Problem, Selection, examine, load_problem, reconstruct
from exhume.attack.activations import ScaleFree, smooth_hinges
from exhume.attack.analysis import OF_VALUES, SMOOTHNESS
from exhume.attack.confidence import INEXACT_CALIBRATION, LIMITS, agreement, confidence
from exhume.attack.interruption import restore_search, search_state
from exhume.attack.methods.features_first import (
    MATCH_WEIGHT,
    NEGATIVE_WEIGHT,
    PULL_WEIGHT,
    TRIED_IMAGES,
    FeaturesFirstSearch,
    in_black_and_white,
)
from exhume.attack.methods.input_subspace import BIAS_WEIGHT
from exhume.attack.momentum import momentum_target
from exhume.attack.optimisation import Stepper
from exhume.attack.priors import implausible
from exhume.attack.target import make_target
from exhume.audit.scores import score
from exhume.networks import CentredNetwork
from test_feature_space import CNN, images_of, network_of


def moved(kind: NetworkConfig) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, its start, of which every parameter is another, and the centre of its images."""
    network = network_of(kind)
    before = copy.deepcopy(network)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    return network, before, torch.full((1, 5, 6), 0.4, dtype=torch.float64)


def search_of(kind: NetworkConfig, method: Exhume) -> FeaturesFirstSearch:
    network, before, centre = moved(kind)
    target = make_target(network, task="multiclass", centre=centre, initial=before)
    search = method.start(target, torch.Generator().manual_seed(0))
    search.prepare(0)
    assert isinstance(search, FeaturesFirstSearch)
    return search


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.75, 1.0])
def test_images_move_to_features_and_later_features_to_images(progress: float) -> None:
    """Each is drawn by the squared distance of the two, relative to the features, and by nothing else of the other."""
    method = Exhume(images=3, dtype="float64", init_scale=0.5, steps=100)
    search = search_of(replace(CNN, channels=(2, 8), widths=(9, 6)), method)
    search.prepare(int(100 * progress))
    values = search.variables @ search.subspace.basis.T
    searched, ones = values[:, :-1], BIAS_WEIGHT * (values[:, -1] - 1).pow(2).sum()
    features, seen = searched.clamp_min(0), search.head(search.images).flatten(1)
    norms = features.detach().pow(2).sum(1)
    pull = PULL_WEIGHT * max(0.0, 2 * progress - 1)
    match = MATCH_WEIGHT * ((seen - features.detach()).pow(2).sum(1) / norms).sum()
    drawn = pull * ((seen.detach() - features).pow(2).sum(1) / norms).sum()
    size = search.head(in_black_and_white(search.target.centre, TRIED_IMAGES)).flatten(1).norm(dim=1).mean().detach()
    negative = NEGATIVE_WEIGHT * (searched.clamp(max=0) / size).pow(2).sum()
    plain = search.multipliers.penalty() + implausible(search.images, search.assumptions.smoothness)
    penalty = search.objective()[1]
    torch.testing.assert_close(penalty, match + drawn + negative + ones + plain)
    of_features = torch.autograd.grad(penalty, search.variables, retain_graph=True)[0]
    torch.testing.assert_close(
        of_features, torch.autograd.grad(drawn + negative + ones, search.variables, retain_graph=True)[0]
    )
    with smooth_hinges(ScaleFree(10.0)):
        again = search.head(search.images).flatten(1)
    match = MATCH_WEIGHT * ((again - features.detach()).pow(2).sum(1) / norms).sum()
    of_pixels = torch.autograd.grad(penalty, search.pixels)[0]
    expected = torch.autograd.grad(match + implausible(search.images, search.assumptions.smoothness), search.pixels)[0]
    torch.testing.assert_close(of_pixels, expected)


@pytest.mark.parametrize(("activation", "never"), [("relu", True), ("tanh", False)])
def test_only_features_that_are_never_negative_are_held_there(activation: str, never: bool) -> None:
    search = search_of(
        replace(CNN, channels=(2, 8), activation=activation), Exhume(images=3, dtype="float64", init_scale=5.0)
    )
    held = []
    for weight in (0.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("exhume.attack.methods.features_first.NEGATIVE_WEIGHT", weight)
            held.append(search.objective()[1].item())
    assert (held[1] > held[0]) == never


@pytest.mark.parametrize("stopped", [28, 78, 93])
def test_a_search_that_goes_on_ends_with_the_very_same_images(stopped: int) -> None:
    """Before features are pulled, and while they are, between two new weightings."""
    method = Exhume(images=3, dtype="float64", steps=100)
    whole, again = search_of(CNN, method), search_of(CNN, method)
    stepper = Stepper([whole], torch.device("cpu"))
    for step in range(100):
        if step == stopped:
            state = search_state(whole)
        stepper.take(step)
    restore_search(again, state)
    stepper = Stepper([again], torch.device("cpu"))
    for step in range(stopped, 100):
        stepper.take(step)
    assert torch.equal(again.images, whole.images)
    assert not torch.equal(again.images, search_of(CNN, method).images)


@pytest.mark.parametrize("bias", ["all", "none"])
def test_one_candidate_without_features_does_not_stop_the_others(bias: Literal["all", "none"]) -> None:
    """Of a head without biases the centre has no features, where nothing else was subtracted but it."""
    search = search_of(replace(CNN, channels=(2, 8), widths=(9, 6), bias=bias), Exhume(images=3, steps=100))
    with torch.no_grad():
        search.variables[0] = 1e-9 * search.variables[0]
    before, stepper = search.images.detach().clone(), Stepper([search], torch.device("cpu"))
    for step in range(50):
        stepper.take(step)
    assert stepper.penalties.isfinite().all()
    moved = (search.images.detach() - before).flatten(1).norm(dim=1)
    assert moved[1:].median() > 0.1


def test_given_images_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner may have thousands of them."""
    seen = []
    original = FeaturesFirstSearch._seen
    monkeypatch.setattr(FeaturesFirstSearch, "_seen", lambda s, images: seen.append(len(images)) or original(s, images))
    monkeypatch.setattr("exhume.attack.methods.features_first.ENCODED_AT_ONCE", 7)
    network, before, centre = moved(CNN)
    images, labels = images_of(30).float(), torch.arange(30) % 3
    result = examine(
        network.float(),
        images,
        labels,
        Exhume(images=3),
        task="multiclass",
        centre=centre.float(),
        initial=before.float(),
        steps=0,
        chunk=10,
    )
    assert max(seen) == 10
    assert result.inside.isfinite().all() and ((result.inside > 0) & (result.inside <= 1 + 1e-6)).all()


def test_confidence_behind_a_head_is_that_of_an_inexact_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        LIMITS,
        "inexact",
        replace(LIMITS["inexact"], discarded=math.inf, unexplained=math.inf, crowding=math.inf, activations=("relu",)),
    )
    monkeypatch.setattr("exhume.attack.confidence.FEWEST_DIRECTIONS", 1)
    network, before, centre = moved(CNN)
    method = Exhume(images=3, steps=4, per_class=2, dtype="float64")
    found = reconstruct(network, method, task="multiclass", centre=centre, initial=before)
    one, other = (found.images[:6], found.labels[:6]), (found.images[6:], found.labels[6:])
    expected = confidence(agreement(*one, [other]), found.explained[:6], INEXACT_CALIBRATION)
    torch.testing.assert_close(found.confidence[:6], expected.float())
    assert not torch.allclose(expected, confidence(agreement(*one, [other]), found.explained[:6]))
    unknown = reconstruct(network, method, task="multiclass", centre=centre)
    assert unknown.confidence.isnan().all() and "where the start is known" in unknown.message


def test_a_momentum_is_explained_in_the_same_way() -> None:
    network, before, centre = moved(CNN)
    weights, momentum = (
        {name.removeprefix("layers."): p.detach().float() for name, p in one.named_parameters()}
        for one in (network, before)
    )
    classes = ("a", "b", "c")
    checkpoint = Checkpoint(
        network=CNN, task="multiclass", classes=classes, centre=centre.float(), weights=weights, momentum=momentum
    )
    search = Exhume(images=3).start(momentum_target(checkpoint), torch.Generator().manual_seed(0))
    assert isinstance(search, FeaturesFirstSearch)
    assert search.assumptions.smoothness == pytest.approx(SMOOTHNESS * OF_VALUES / 30)
    found = reconstruct(checkpoint, Exhume(images=3, steps=3, restarts=1))
    assert found.images.isfinite().all() and "explain the optimiser's momentum" in found.message


@pytest.mark.parametrize(("value", "mean"), [(0.0, 0.5), (0.2, 0.2), (0.5, 0.5), (1.0, 0.5)])
def test_random_images_have_the_mean_if_it_is_one(value: float, mean: float) -> None:
    images = in_black_and_white(torch.full((2, 10, 10), value), 50)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert images.mean().item() == pytest.approx(mean, abs=0.02)
    assert torch.equal(images, in_black_and_white(torch.full((2, 10, 10), value), 50))


# ---- What comes out


def trained(problem: Problem) -> tuple[CentredNetwork, CentredNetwork]:
    """Convolutions as people train them: the network at the start, and at the end."""
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    network = CentredNetwork(
        problem.images.mean(0),
        [*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 300), nn.ReLU(), nn.Linear(300, problem.outputs)],
    )
    start = copy.deepcopy(network)
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    for _ in range(20):
        for rows in torch.randperm(len(problem.images)).split(10):
            optimiser.zero_grad()
            functional.cross_entropy(network(problem.images[rows]), problem.labels[rows]).backward()
            optimiser.step()
    return start.eval(), network.eval()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=3))


@pytest.fixture(scope="module")
def networks(problem: Problem) -> tuple[CentredNetwork, CentredNetwork]:
    return trained(problem)


def attacked(network: nn.Module, start: nn.Module, problem: Problem) -> Candidates:
    centre = problem.images.mean(0)
    method = Exhume(steps=250, restarts=1, images=30, per_class=6)
    return reconstruct(network, method, task="multiclass", centre=centre, initial=start)


def test_digits_come_out_of_convolutions_that_moved(
    problem: Problem, networks: tuple[CentredNetwork, CentredNetwork]
) -> None:
    scores = score(attacked(networks[1], networks[0], problem), problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] >= 14
    assert scores.null["0.9"] <= 2


def test_nothing_comes_out_with_another_start(
    problem: Problem, networks: tuple[CentredNetwork, CentredNetwork]
) -> None:
    other = copy.deepcopy(networks[0])
    torch.manual_seed(6)
    for layer in other.layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    scores = score(attacked(networks[1], other, problem), problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] <= scores.null["0.9"] + 1
