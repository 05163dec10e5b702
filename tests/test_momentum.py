"""What an optimiser keeps beside the weights is read, and images come out of it alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target, within_momentum
from exhume.attack.reconstruct import reconstruct
from exhume.attack.spectrum import first_layer_spectrum
from exhume.attack.target import make_target
from exhume.audit.scores import score
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.errors import InputError
from exhume.foreign import ForeignNetwork, read_network
from exhume.foreign.optimiser_state import read_momentum
from exhume.owner.examine import examine
from exhume.problems import Problem, Selection, load_problem
from exhume.problems.owned import load_images
from exhume.runs.audit import Source, audit_run

Optimiser = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, tuple[Optimiser, float, float]] = {
    "SGD": (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), 0.9, 1.0),
    "SGD with decay": (lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, weight_decay=0.01), 0.8, 1.0),
    "Adam": (lambda p: torch.optim.Adam(p, 1e-3), 0.9, 0.1),
    "Adam with decay": (lambda p: torch.optim.Adam(p, 1e-3, weight_decay=0.02), 0.9, 0.1),
    "AdamW": (lambda p: torch.optim.AdamW(p, 1e-3), 0.9, 0.1),
}
"""Each with its momentum's factor and the share of a gradient that it takes."""


def network(width: int = 40) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=2, data_dir="installed"))


def trained(problem: Problem, make: Optimiser, epochs: int, width: int = 40) -> tuple[nn.Sequential, Any, list[Tensor]]:
    """The network, its optimiser, and the gradients of the first layer, without decay, step by step."""
    module = network(width)
    optimiser, gradients = make(module.parameters()), []
    images = (problem.images - problem.images.mean(0)).flatten(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(5):
            optimiser.zero_grad()
            functional.cross_entropy(module(images[rows]), problem.labels[rows]).backward()
            gradients.append(module.get_parameter("0.weight").grad.clone())  # type: ignore[union-attr]
            optimiser.step()
    return module, optimiser, gradients


def checkpoint_of(module: nn.Module, optimiser: Any, path: Path, key: str = "optimizer_state_dict") -> Checkpoint:
    state: Any = optimiser.state_dict()
    torch.save({"state_dict": module.state_dict(), key: [state] if key.endswith("states") else state}, path)
    return read_network(path, shape=(1, 28, 28)).checkpoint


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_momentum_is_the_sum_of_the_last_gradients(name: str, problem: Problem, tmp_path: Path) -> None:
    """By hand. The weights move a little within the steps that count, so decay is taken out nearly, not quite."""
    make, factor, share = OPTIMISERS[name]
    module, optimiser, gradients = trained(problem, make, epochs=20)
    momentum = checkpoint_of(module, optimiser, tmp_path / "model.pt").momentum
    expected = torch.zeros_like(gradients[0])
    for gradient in gradients:
        expected = factor * expected + share * gradient
    error = (momentum["1.weight"] - expected).norm() / expected.norm()
    assert error < (0.1 if "with decay" in name else 1e-5)
    raw = optimiser.state[module.get_parameter("0.weight")]
    kept = raw["momentum_buffer" if "SGD" in name else "exp_avg"]
    assert "with decay" not in name or (kept - expected).norm() > 2 * error * expected.norm()


@pytest.mark.parametrize("key", ["optimizer_state_dict", "optimizer", "optimizer_states"])
def test_it_is_found_where_training_scripts_keep_it(key: str, problem: Problem, tmp_path: Path) -> None:
    module, optimiser, _ = trained(problem, OPTIMISERS["Adam"][0], epochs=1)
    checkpoint = checkpoint_of(module, optimiser, tmp_path / "model.ckpt", key)
    assert checkpoint.momentum.keys() == checkpoint.weights.keys()
    save_checkpoint(checkpoint, tmp_path / "run")
    again = load_checkpoint(tmp_path / "run")
    assert again.fingerprint == checkpoint.fingerprint
    assert all(torch.equal(again.momentum[name], tensor) for name, tensor in checkpoint.momentum.items())
    assert replace(checkpoint, momentum={}).fingerprint != checkpoint.fingerprint


def test_another_networks_state_is_not_taken(problem: Problem, tmp_path: Path) -> None:
    module, _, _ = trained(problem, OPTIMISERS["SGD"][0], epochs=1)
    _, other, _ = trained(problem, OPTIMISERS["SGD"][0], epochs=1, width=30)
    assert checkpoint_of(module, other, tmp_path / "model.pt").momentum == {}
    plain = torch.optim.SGD(module.parameters(), 0.1)
    assert read_momentum(tmp_path / "model.pt", checkpoint_of(module, plain, tmp_path / "plain.pt")) is None


def test_images_come_out_of_the_momentum_alone(tmp_path: Path) -> None:
    """Nothing is known of the start. The weights alone are a control beside the held-out images: they give nothing."""
    problem = load_problem("mnist-digits", Selection(per_class=4, data_dir="installed"))
    module, optimiser, _ = trained(problem, OPTIMISERS["SGD"][0], epochs=10, width=150)
    checkpoint = checkpoint_of(module, optimiser, tmp_path / "model.pt")
    checkpoint = replace(checkpoint, centre=problem.images.mean(0))
    counts = []
    for attacked in (checkpoint, replace(checkpoint, momentum={})):
        found = reconstruct(attacked, Exhume(steps=300, restarts=1))
        counts.append(score(found, problem.images, problem.labels, problem.held_out))
    assert counts[0].recovered["0.9"] >= 20
    assert counts[0].null["0.9"] <= 5
    assert counts[1].recovered["0.9"] <= 4


@pytest.mark.parametrize(
    ("momentum", "said"),
    [
        ({"9.weight": torch.ones(2)}, "no 9.weight"),
        ({"1.weight": torch.ones(2)}, "no 1.weight of this shape"),
        ({"1.bias": torch.full((40,), torch.nan)}, "not finite"),
        ({"1.bias": torch.zeros(40)}, "no step was taken"),
    ],
)
def test_a_momentum_that_cannot_be_attacked_is_told(
    momentum: dict[str, Tensor], said: str, problem: Problem, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    checkpoint = replace(read_network(tmp_path / "model.pt", shape=(1, 28, 28)).checkpoint, momentum=momentum)
    with pytest.raises(InputError, match=said):
        momentum_target(checkpoint)
    assert said in reconstruct(checkpoint, Exhume(steps=1, restarts=1)).message


@pytest.mark.thorough
def test_an_audit_speaks_of_what_was_searched(tmp_path: Path) -> None:
    """Where the images come out of the momentum, the owner's view is of it, and not of the weights."""
    selection = Selection(per_class=2, data_dir="installed")
    problem = load_problem("mnist-digits", selection)
    module, optimiser, _ = trained(problem, OPTIMISERS["SGD"][0], epochs=10, width=150)
    checkpoint = replace(checkpoint_of(module, optimiser, tmp_path / "model.pt"), centre=problem.images.mean(0))
    mine, method = load_images("mnist-digits", selection=selection), Exhume(steps=250, restarts=1)
    source = Source(images="mnist-digits", selection=selection)
    network = ForeignNetwork(checkpoint=checkpoint, scaling="the user")
    record = audit_run(tmp_path / "run", network, mine, source, method=method, find_start=False)
    assert record.judgement.verdict == "leaks"
    assert record.owner is not None
    assert record.owner.of == "momentum"
    assert record.owner.stay > 10 > record.owner.held_out_stay
    assert record.applies.readability is not None
    assert record.applies.readability.reason.startswith("A search in the momentum of the optimiser that begins")
    assert record.applies.reason == "" or record.applies.reason.startswith("As for the weights without the momentum")
    assert record.next_steps[-1].startswith("The file holds the optimiser's state beside the weights, and images come")
    assert all(image.confidence is None for image in record.images)
    assert any(one.signal == "share of the momentum" for one in record.membership)


@pytest.fixture(scope="module")
def by_adam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Checkpoint, dict[str, Tensor]]:
    """Forty digits, a checkpoint of their training by Adam, and the weights that it began with."""
    problem = load_problem("mnist-digits", Selection(per_class=4, data_dir="installed"))
    module, optimiser, _ = trained(problem, OPTIMISERS["Adam"][0], epochs=12, width=150)
    checkpoint = checkpoint_of(module, optimiser, tmp_path_factory.mktemp("adam") / "model.pt")
    start = {f"{int(name[0]) + 1}{name[1:]}": value.detach() for name, value in network(150).named_parameters()}
    return problem, replace(checkpoint, centre=problem.images.mean(0)), start


def test_the_momentum_spans_the_images_and_what_adam_changed_does_not(
    by_adam: tuple[Problem, Checkpoint, dict[str, Tensor]],
) -> None:
    problem, checkpoint, start = by_adam
    target = within_momentum(make_target(checkpoint, initial=start), checkpoint)
    assert target.span is not None
    assert target.span.basis.shape == (785, 40)
    assert target.span.discarded < 1e-7
    seen = torch.cat([target.as_inputs(problem.images).flatten(1), torch.ones(40, 1)], 1)
    within = (seen @ target.span.basis).norm(dim=1) / seen.norm(dim=1)
    assert within.min() > 0.999
    changed = target.explained_mlp
    assert changed is not None
    own = first_layer_spectrum(changed)[1].leading(40).basis
    assert ((seen @ own).norm(dim=1) / seen.norm(dim=1)).max() < 0.98
    found = Exhume().analyse(target)
    assert found is not None
    assert (found.assumptions.images, found.assumptions.images_from, found.assumptions.rank) == (40, "momentum", 40)
    assert found.assumptions.discarded == target.span.discarded
    given = Exhume(images=30).analyse(target)
    assert given is not None
    assert (given.assumptions.images, given.assumptions.images_from, given.assumptions.rank) == (30, "settings", 40)


def test_more_comes_out_of_what_adam_changed_within_that_span(
    by_adam: tuple[Problem, Checkpoint, dict[str, Tensor]],
) -> None:
    """The first search explains the change in both; what the second finds in the momentum is not counted."""
    problem, checkpoint, start = by_adam
    counts = []
    for attacked in (replace(checkpoint, momentum={}), checkpoint):
        found = reconstruct(attacked, Exhume(steps=300, restarts=1), initial=start)
        count = len(found.images) // (2 if attacked.momentum else 1)
        first = {name: getattr(found, name)[:count] for name in ("images", "labels", "multipliers", "explained")}
        one = replace(found, **first, confidence=found.confidence[:count])
        counts.append(score(one, problem.images, problem.labels, problem.held_out))
    alone, within = counts
    assert within.recovered["0.95"] >= 36
    assert within.null["0.95"] <= 1
    assert alone.recovered["0.95"] + 8 <= within.recovered["0.95"]


def test_a_span_that_does_not_hold_the_change_is_left(
    by_adam: tuple[Problem, Checkpoint, dict[str, Tensor]], tmp_path: Path
) -> None:
    """The training went on with a quarter of the images, of which alone the momentum knows in the end."""
    problem, checkpoint, start = by_adam
    module = network(150)
    module.load_state_dict({f"{int(name[0]) - 1}{name[1:]}": value for name, value in checkpoint.weights.items()})
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    inputs = (problem.images - problem.images.mean(0)).flatten(1)
    for _ in range(10):
        optimiser.zero_grad()
        functional.cross_entropy(module(inputs[::4]), problem.labels[::4]).backward()
        optimiser.step()
    later = replace(checkpoint_of(module, optimiser, tmp_path / "model.pt"), centre=checkpoint.centre)
    target = within_momentum(make_target(later, initial=start), later)
    assert target.span is not None and target.span.basis.shape == (785, 10)
    found = Exhume().analyse(target)
    assert found is not None
    assert (found.assumptions.images, found.assumptions.images_from) == (100, "nothing")


def test_a_momentum_of_many_directions_spans_nothing(
    by_adam: tuple[Problem, Checkpoint, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Where decay is taken out of a momentum only nearly, where it was rounded, and where no start is known."""
    problem, checkpoint, start = by_adam
    module, optimiser, _ = trained(problem, OPTIMISERS["Adam with decay"][0], epochs=12, width=150)
    decayed = checkpoint_of(module, optimiser, tmp_path / "model.pt")
    for attacked in (decayed, checkpoint.half()):
        assert within_momentum(make_target(attacked, initial=start), attacked).span is None
    assert within_momentum(make_target(checkpoint), checkpoint).span is None
    other = replace(checkpoint, momentum={"9.weight": torch.ones(2)})
    assert within_momentum(make_target(other, initial=start), other).span is None


def test_what_cannot_be_explained_is_told(problem: Problem, tmp_path: Path) -> None:
    module, optimiser, _ = trained(problem, OPTIMISERS["SGD"][0], epochs=1)
    checkpoint = replace(checkpoint_of(module, optimiser, tmp_path / "model.pt"), momentum={})
    with pytest.raises(InputError, match="no momentum"):
        examine(checkpoint, problem.images, of_momentum=True)
