"""The attack: statuses, any module, confidence, and quality with controls."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import (
    METHODS,
    Checkpoint,
    Exhume,
    InputError,
    NetworkConfig,
    Problem,
    Reference,
    Selection,
    TrainingConfig,
    load_problem,
    reconstruct,
    train,
)
from exhume.attack.confidence import LIMITS, agreement, confidence
from exhume.attack.find_start import StartSearch, find_start
from exhume.attack.search import Begin, Iterate, Search
from exhume.attack.target import Target
from exhume.audit.matching import match
from exhume.audit.scores import score
from exhume.candidates import Candidates
from exhume.networks import Task
from exhume.tuning.objective import exact_gate_residual
from victims import SMALL, checkpoint, generator

TASKS: tuple[Task, ...] = get_args(Task)


# ---- Any method


def unexplained(network: nn.Module, iterates: list[Iterate], layers: list[str]) -> list[float]:
    """How much of these layers the first and the last candidates leave, by one measure whatever the search weighs."""
    network = network.to(iterates[0].images.dtype)
    return [exact_gate_residual(network, iterate, layers) for iterate in (iterates[0], iterates[-1])]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_search_explains_more_and_says_what_it_found(method: str, task: Task) -> None:
    victim, iterates = checkpoint(task), list[Iterate]()
    found = reconstruct(victim, SMALL[method], iterate_callback=iterates.append)
    classes, each = (3 if task == "multiclass" else 2), 5 * SMALL[method].restarts
    count = each * classes
    assert found.status == "done"
    assert found.images.shape == (count, 1, 5, 5)
    assert found.labels.shape == found.multipliers.shape == found.explained.shape == (count,)
    if task != "regression":
        assert found.labels.bincount().tolist() == [each] * classes
    assert found.history[-1].step == 60
    start, end = unexplained(victim.build(), iterates, found.assumptions.layers)
    assert end < start


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


def trained(module: nn.Module) -> nn.Module:
    """The module after some descent on six images, in evaluation mode: there is something to explain."""
    images, labels = torch.rand(6, 1, 5, 5), torch.arange(6) % 3
    optimiser = torch.optim.SGD(module.eval().parameters(), lr=0.2)
    for _ in range(300):
        optimiser.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimiser.step()
    return module


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
def test_any_module_can_be_attacked_and_is_left_as_it_was(method: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, iterates = trained(make()), list[Iterate]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = reconstruct(
        module.train(),
        replace(SMALL[method], steps=300),
        task="multiclass",
        centre=torch.full((1, 5, 5), 0.5),
        iterate_callback=iterates.append,
    )
    start, end = unexplained(copy.deepcopy(module).eval(), iterates, found.assumptions.layers)
    assert end < start
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_module_needs_task_and_centre() -> None:
    with pytest.raises(InputError, match="task and the centre"):
        reconstruct(Functional())
    with pytest.raises(InputError, match="does not fit the task binary"):
        reconstruct(Functional(), task="binary", centre=torch.zeros(1, 5, 5))


@pytest.mark.parametrize("method", METHODS.values())
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"images": -1}, "images must be at least 1"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"lr_images": 0.0}, "lr_images must be positive"),
        ({"lr_multipliers": -1.0}, "lr_multipliers must be positive"),
        ({"init_scale": math.inf}, "init_scale must be positive"),
        ({"sharpness": math.nan}, "sharpness must be positive"),
        ({"min_multiplier": math.inf}, "min_multiplier must be a finite number"),
        ({"objective": "best"}, "Unknown objective 'best'; there are binary, multiclass, runner-up, regression."),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings_of_any_method_are_refused_in_a_sentence(
    method: type[Exhume] | type[Reference], bad: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        method(**bad)


@pytest.mark.parametrize("weight", ["smoothness", "binary_prior"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_the_weight_of_a_prior_is_finite_and_not_negative(weight: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{weight} must not be negative"):
        Exhume(**{weight: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS.values())
def test_an_objective_for_another_task_is_refused(method: type[Exhume] | type[Reference]) -> None:
    with pytest.raises(InputError, match="objective multiclass is for the task multiclass, not binary"):
        reconstruct(checkpoint("binary"), method(objective="multiclass"))


# ---- Quality, and the controls


@pytest.fixture(scope="module")
def victim() -> tuple[Problem, Checkpoint]:
    problem = load_problem("mnist-digits", Selection(per_class=3))
    return problem, train(problem, TrainingConfig(epochs=600), network=NetworkConfig(widths=(400,))).checkpoint


@pytest.fixture(scope="module")
def digits(victim: tuple[Problem, Checkpoint]) -> tuple[Problem, Candidates]:
    problem, trained = victim
    return problem, reconstruct(trained, Exhume(steps=400))


def test_most_of_thirty_digits_come_out(digits: tuple[Problem, Candidates]) -> None:
    problem, found = digits
    assert found.assumptions.images == 30  # read from the weights
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] >= 25
    assert scores.null["0.9"] <= 1


def test_what_explains_most_comes_out_best(victim: tuple[Problem, Checkpoint]) -> None:
    """Without the truth, and before all have come out: what explains most is nearer to training images."""
    problem, trained = victim
    found = reconstruct(trained, Exhume(steps=150, restarts=1))
    best = match(found, problem.images).similarity.amax(0)[found.explained.argsort(descending=True)]
    assert best[: len(best) // 4].mean() > best[-len(best) // 4 :].mean() + 0.05


def test_confident_candidates_are_right(digits: tuple[Problem, Candidates]) -> None:
    problem, found = digits
    confident = found.confidence >= 0.9
    assert confident.sum() >= 15
    right = match(found, problem.images).similarity.amax(0) >= 0.9
    assert right[confident].float().mean() >= 0.9
    # the control: confidence tells them apart
    assert right[~confident].float().mean() < right[confident].float().mean() - 0.1


def any_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' steps are few."""
    monkeypatch.setitem(LIMITS, "start unknown", replace(LIMITS["start unknown"], unexplained=math.inf))


def test_a_single_search_has_no_confidence_and_is_the_first_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    any_residual(monkeypatch)  # 20 steps are few
    problem = load_problem("mnist-digits", Selection(per_class=3))
    victim = train(problem, TrainingConfig(epochs=300), network=NetworkConfig(widths=(200,))).checkpoint
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
    expected = torch.cat([confidence(one, two.explained[part]) for one, part in zip(agreed, parts, strict=True)])
    torch.testing.assert_close(two.confidence, expected)


@pytest.mark.parametrize(("activation", "steps"), [("relu", 3), ("tanh", 300)])
def test_there_is_no_confidence_where_the_calibration_does_not_hold(activation: str, steps: int) -> None:
    """Of a search cut short, and of networks of another activation."""
    problem = load_problem("mnist-digits", Selection(per_class=3))
    network = NetworkConfig(widths=(200,), activation=activation)
    victim = train(problem, TrainingConfig(epochs=300), network=network).checkpoint
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
            NetworkConfig(widths=(20, 10), activation="tanh"),
            2,
            "not available: it was calibrated for relu where the start is unknown, and this network has tanh.",
        ),
        (NetworkConfig(widths=(20, 10), activation="tanh"), 1, None),
        (NetworkConfig(kind="cnn", channels=(2,), widths=(4,)), 2, "where the start is known."),
    ],
)
def test_the_message_says_why_there_is_no_confidence(network: NetworkConfig, searches: int, why: str | None) -> None:
    found = reconstruct(checkpoint("multiclass", network), replace(SMALL["exhume"], steps=2, restarts=searches))
    assert found.confidence.isnan().all()
    assert (why or "All 2 steps are done.") in found.message
    assert ("Confidence is not available" in found.message) == bool(why)


def test_the_message_says_for_how_many_searches_there_is_no_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([None, "it is too bad", None])
    monkeypatch.setattr("exhume.attack.reconstruct.uncalibrated_reason", lambda *_, **__: next(told))
    found = reconstruct(checkpoint("multiclass"), replace(SMALL["exhume"], steps=2, restarts=3))
    assert "Confidence is not available for 1 of 3 searches: it is too bad." in found.message
    known = found.confidence.isfinite().reshape(3, -1)
    assert known[0].all() and not known[1].any() and known[2].all()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_search_that_diverges_leaves_the_candidates_of_the_others(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    any_residual(monkeypatch)
    victim, config = checkpoint("multiclass"), replace(SMALL["exhume"], steps=20, restarts=3, images=26)
    whole, prepared, started = reconstruct(victim, config), Exhume.prepared, []

    def spoiled(method: Exhume, target: Target) -> Begin:
        begin = prepared(method, target)

        def start(generator: torch.Generator) -> Search:
            started.append(begin(generator))
            if len(started) == lost + 1:
                with torch.no_grad():
                    started[-1].optimisers[0].param_groups[0]["params"][0].fill_(torch.inf)
            return started[-1]

        return start

    monkeypatch.setattr(Exhume, "prepared", spoiled)
    found = reconstruct(victim, config)
    assert found.status == "done" and "1 of 3 searches diverged and left nothing" in found.message
    parts = torch.arange(len(whole.images)).chunk(3)
    first, second = (rows for which, rows in enumerate(parts) if which != lost)
    one, two = ((whole.images[rows], whole.labels[rows]) for rows in (first, second))
    torch.testing.assert_close(found.images, torch.cat([one[0], two[0]]), rtol=0, atol=0)
    assert (found.history == whole.history) == (lost > 0)  # that of the first search that is kept
    expected = torch.cat(
        [
            confidence(agreement(*one, [two]), whole.explained[first]),
            confidence(agreement(*two, [one]), whole.explained[second]),
        ]
    )
    assert expected.isfinite().all()
    torch.testing.assert_close(found.confidence, expected)


def test_several_searches_are_kept_where_there_is_no_confidence() -> None:
    found = reconstruct(checkpoint("binary", NetworkConfig(kind="cnn", channels=(2,), widths=(4,))), SMALL["exhume"])
    assert len(found.images) == 2 * 2 * 5 and found.confidence.isnan().all()


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
    trained = train(problem, TrainingConfig(epochs=0), network=NetworkConfig(widths=(400,)))
    found = reconstruct(trained.checkpoint, Exhume(steps=200, images=30))
    assert (found.confidence >= 0.9).sum() == 0
    few = reconstruct(trained.checkpoint, Exhume(steps=20, images=3))  # within 3 directions all searches agree
    assert (few.confidence >= 0.9).sum() == 0
    scores = score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] <= scores.null["0.9"] + 1
    assert scores.p_value > 0.05


@pytest.mark.gpu
def test_a_gpu_finds_the_same_residuals() -> None:
    victim = checkpoint("multiclass")
    for config in (replace(SMALL["exhume"], dtype="float64", restarts=2), SMALL["reference"]):
        here, there = (reconstruct(victim, config, device=device) for device in ("cpu", "cuda"))
        assert there.history[-1].residual == pytest.approx(here.history[-1].residual, rel=1e-6)
        torch.testing.assert_close(there.images, here.images, rtol=0, atol=1e-3)


@pytest.mark.gpu
def test_recorded_steps_are_those_that_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weightings too, which are recorded after the third."""
    victim, config = checkpoint("multiclass"), replace(SMALL["exhume"], steps=120, restarts=2)
    from exhume.devices import _InTurn  # noqa: PLC0415

    recorded = reconstruct(victim, config, device="cuda")
    monkeypatch.setattr("exhume.devices._Recorded", lambda works, _: _InTurn(works))
    plain = reconstruct(victim, config, device="cuda")
    torch.testing.assert_close(recorded.images, plain.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("known", [False, True], ids=["start unknown", "start known"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_directions_that_fill_up_a_multiple_change_nothing(
    kind: Literal["mlp", "cnn"], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products want multiples of 8 on a GPU; here all else is as on a CPU."""
    channels = (3,) if kind == "cnn" else ()
    network = NetworkConfig(kind=kind, channels=channels, widths=(40, 10), bias="all", init_scale=None)
    victim, other = (checkpoint("multiclass", network, seed) for seed in (0, 1))
    config = replace(SMALL["exhume"], dtype="float64", steps=60, restarts=1, images=10, per_class=16)
    initial = replace(other, centre=victim.centre) if known else None
    before = reconstruct(victim, config, initial=initial)
    monkeypatch.setattr("exhume.attack.methods.input_subspace.alignment", lambda *_: 8)
    after = reconstruct(victim, config, initial=initial)
    assert before.assumptions.rank % 8
    assert after.history[-1].residual == pytest.approx(before.history[-1].residual, rel=1e-6)
    torch.testing.assert_close(after.images, before.images, rtol=0, atol=1e-4)


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


# ---- A start that was found


def test_the_start_that_was_found_gives_an_ordinary_network_away() -> None:
    """In Python alone. Control: held-out digits, and the same attack without the start."""
    problem = load_problem("mnist-digits", Selection(per_class=3, data_dir="installed"))
    torch.manual_seed(int.from_bytes(os.urandom(8), "little"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    before = copy.deepcopy(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(10):
        for rows in torch.randperm(30).split(8):
            optimiser.zero_grad()
            functional.cross_entropy(network(problem.images[rows]), problem.labels[rows]).backward()
            optimiser.step()
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    assert outcome.start is not None

    def attack(initial: Mapping[str, Tensor] | nn.Module | None) -> Candidates:
        method, centre = Exhume(steps=300, per_class=6, restarts=1), torch.full((1, 28, 28), 0.5)
        return reconstruct(network, method, task="multiclass", centre=centre, initial=initial)

    def count(found: Candidates) -> tuple[int, int]:
        scores = score(found, problem.images, problem.labels, problem.held_out)
        return scores.recovered["0.9"], scores.null["0.9"]

    found = attack(outcome.start.initial)
    came_out, control = count(found)
    assert came_out >= 27 and control <= 3
    assert torch.equal(found.images, attack(before).images)
    came_out, control = count(attack(None))
    assert came_out <= control + 2


def test_a_mapping_is_the_start_of_the_parameters_that_it_names_and_the_others_are_frozen() -> None:
    whole = checkpoint("multiclass")
    start = {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator()) for name, weight in whole.weights.items()
    }
    some = {name: start[name] for name in list(start)[:2]}
    module = replace(whole, weights=whole.weights | some)
    asked = replace(SMALL["exhume"], steps=3)
    by_module = reconstruct(whole, asked, initial=module)
    for initial in (some, {f"layers.{name}": weight for name, weight in some.items()}, module.weights):
        assert torch.equal(reconstruct(whole, asked, initial=initial).images, by_module.images)
    assert not set(by_module.assumptions.layers) & {f"layers.{name}" for name in list(start)[2:]}


@pytest.mark.parametrize(
    ("initial", "hint"),
    [
        ({"nothing.weight": torch.zeros(20, 25)}, "it has no nothing.weight of this shape"),
        ({"1.weight": torch.zeros(20, 24)}, "1.weight of this shape"),
        ({"1.weight": torch.full((20, 25), torch.nan)}, "not finite"),
        ({}, "training has added nothing"),
    ],
    ids=["name", "shape", "nan", "empty"],
)
def test_a_mapping_that_is_no_start_is_refused(initial: dict[str, Tensor], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        reconstruct(checkpoint("multiclass"), SMALL["exhume"], initial=initial)
