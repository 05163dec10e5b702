"""What protects is measured: every row is trained, attacked and counted beside its control."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exhume import read_network
from exhume.attack.methods import Exhume
from exhume.checkpoint import Checkpoint
from exhume.defence.privacy import epsilon
from exhume.defence.training import TrainingConfig, train
from exhume.errors import InputError
from exhume.layers import LayerGraph
from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, load_problem
from exhume.problems.owned import OwnedImages, load_images
from exhume.runs import defences
from exhume.runs.defences import DEFENCES, DefenceRow, check_comparable, compare_defences, fresh

NETWORK = NetworkConfig(widths=(60,), init_scale=None, bias="all")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=2, data_dir="installed"))


@pytest.fixture(scope="module")
def rows(problem: Problem) -> dict[str, DefenceRow]:
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    return {row.name: row for row in compare_defences(network, problem, Exhume(steps=150, restarts=1))}


def test_every_variant_has_figures(rows: dict[str, DefenceRow]) -> None:
    assert list(rows) == list(DEFENCES)
    for row in rows.values():
        assert row.message == ""
        assert row.images == (30 if row.name == "more images" else 20)
        assert row.held_out == (10 if row.name == "more images" else 20)
        assert 0 <= row.held_out_accuracy <= 1
        assert (row.epsilon is not None) == (row.name == "dp-sgd")


def test_ordinary_training_leaks_and_noise_protects(rows: dict[str, DefenceRow]) -> None:
    assert rows["as usual"].recovered >= 15
    assert rows["as usual"].null <= 3
    assert rows["dp-sgd"].recovered <= 3


def test_fresh_weights_are_as_pytorch_makes_them(problem: Problem) -> None:
    network = train(problem, TrainingConfig(epochs=1), network=NETWORK).checkpoint
    one, again, larger = fresh(network, 3), fresh(network, 3), fresh(network, 3, factor=2.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = torch.nn.Linear(784, 60)
    assert torch.equal(one.weights["1.weight"], first.weight)
    assert torch.equal(one.weights["1.bias"], first.bias)
    assert all(torch.equal(one.weights[name], again.weights[name]) for name in one.weights)
    assert all(torch.equal(2 * one.weights[name], larger.weights[name]) for name in one.weights)


def test_a_variant_that_is_not_possible_says_why(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    monkeypatch.setattr(defences, "DEFENCES", {"dp-sgd": DEFENCES["dp-sgd"]})
    monkeypatch.setitem(sys.modules, "opacus", None)
    (row,) = compare_defences(network, problem, Exhume(steps=1, restarts=1))
    assert 'extra "dp"' in row.message


# ---- Differential privacy


def test_the_bound_on_epsilon_is_of_all_that_the_network_holds(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DP-SGD's network holds nothing of the images; the attacker is told their mean besides, as of the others."""
    trained: list[Checkpoint] = []

    def seen(checkpoint: Checkpoint, *_: object, initial: Checkpoint, **__: object) -> None:
        assert checkpoint.known_mean is not None and torch.equal(checkpoint.known_mean, mean)
        trained.extend([replace(checkpoint, known_mean=None), initial])
        raise InputError("seen")

    mean = problem.images.mean(0)
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    network = replace(network, known_mean=mean, scale=problem.images.std(0) + 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(defences, "reconstruct", seen)
        patch.setattr(defences, "DEFENCES", {name: DEFENCES[name] for name in ("as usual", "dp-sgd")})
        assert [row.message for row in compare_defences(network, problem)] == ["seen", "seen"]
    usual, private = trained[:2], trained[2:]
    assert all(torch.equal(one.centre, mean) and one.scale is not None for one in usual)
    for one in private:
        assert one.images_seen.keys() == {"centre"}
        assert torch.equal(one.centre, torch.full((1, 28, 28), 0.5))


def test_the_row_of_dp_sgd_says_its_epsilon(rows: dict[str, DefenceRow]) -> None:
    # of 20 images each is in every batch; 60 epochs of one step
    assert rows["dp-sgd"].epsilon == pytest.approx(epsilon(noise=1, rate=1, steps=60, delta=0.1 / 20))


# ---- Networks that were built elsewhere


def lenet() -> nn.Module:
    head = [nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()]
    return nn.Sequential(*head, nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 10))


class Named(nn.Module):
    """A chain of dense layers, the last of which is built first."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.hidden = nn.Linear(60, 10), nn.Linear(784, 60)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.hidden(images.flatten(1)).relu())
        return scores


def torchscript(path: Path) -> Path:
    torch.jit.script(Named().eval()).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["lenet", "batch norm", "torchscript"])
def test_any_network_can_be_defended(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    modules = {"lenet": lenet, "batch norm": with_batch_norm}
    source = modules[kind]() if kind in modules else torchscript(tmp_path / "program.pt")
    network = read_network(source, shape=(1, 28, 28), classes=problem.classes).checkpoint
    assert isinstance(network.network, LayerGraph)
    kept = ["as usual", "larger start", "more images", "shifts", "dp-sgd"]
    monkeypatch.setattr(defences, "DEFENCES", {name: DEFENCES[name] for name in kept})
    for row in compare_defences(network, problem, Exhume(steps=20, restarts=1)):
        if (kind, row.name) == ("batch norm", "dp-sgd"):
            assert "cannot be trained with DP-SGD" in row.message  # the images of a batch see each other
        else:
            assert row.message == ""
            assert row.name == "dp-sgd" or row.accuracy > 0.6
            assert 0 <= row.recovered <= row.images


def test_a_torchscript_chain_leaks_as_the_same_chain_does(
    problem: Problem, rows: dict[str, DefenceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(DeprecationWarning):
        path = torchscript(tmp_path / "program.pt")
    network = read_network(path, shape=(1, 28, 28), classes=problem.classes).checkpoint
    monkeypatch.setattr(defences, "DEFENCES", {"as usual": DEFENCES["as usual"]})
    (row,) = compare_defences(network, problem, Exhume(steps=150, restarts=1))
    assert row.recovered == pytest.approx(rows["as usual"].recovered, abs=1)


def test_fresh_weights_of_batch_norm_are_those_of_a_new_network() -> None:
    torch.manual_seed(0)
    module = with_batch_norm().train()
    for _ in range(3):
        module(torch.rand(9, 1, 28, 28))  # its statistics
    network = read_network(module, shape=(1, 28, 28)).checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        new = read_network(with_batch_norm(), shape=(1, 28, 28)).checkpoint.weights
    assert set(new) == set(network.weights)
    drawn = [name for name in new if name.startswith(("1.", "4."))]
    assert len(drawn) == 4
    for name, weight in fresh(network, 3, factor=3.0).weights.items():
        assert torch.equal(weight, new[name] * 3 if name in drawn else new[name])


# ---- What is refused before anything is trained


def owned(problem: Problem, tmp_path: Path) -> OwnedImages:
    np_file = tmp_path / "mine.npz"
    np.savez(
        np_file,
        images=problem.images.numpy(),
        labels=problem.labels.numpy(),
        held_out=problem.held_out.numpy(),
        held_out_labels=problem.held_out_labels.numpy(),
    )
    return load_images(np_file)


def test_the_images_of_an_audit_are_checked_as_a_problem_is(problem: Problem, tmp_path: Path) -> None:
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    mine = owned(problem, tmp_path)
    check_comparable(network, mine)
    check_comparable(network, problem)
    for without in ({"labels": None}, {"held_out_labels": None}):
        with pytest.raises(InputError, match="give the classes of the training and the held-out images"):
            check_comparable(network, replace(mine, **without))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"held_out": slice(0, 1), "held_out_labels": slice(0, 1)}, "at least 2 held-out images"),
        ({"images": (..., slice(0, 27)), "held_out": (..., slice(0, 27))}, "takes images (1, 28, 28), not (1, 28, 27)"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, changed: dict[str, slice], sentence: str
) -> None:
    monkeypatch.setattr(defences, "train", None)  # a call would fail
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    parts = {name: getattr(problem, name)[part] for name, part in changed.items()}
    with pytest.raises(InputError, match=re.escape(sentence)):
        compare_defences(network, replace(problem, **parts))


@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("regression", 2), ("multiclass", 9)])
def test_images_of_more_classes_than_the_network_has_are_refused(problem: Problem, task: str, classes: int) -> None:
    network = train(problem, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    network = replace(network, task=task, classes=network.classes[:classes])
    with pytest.raises(InputError, match=f"must be of the network's {classes} classes, not of 10"):
        compare_defences(network, problem)


def test_a_regression_on_real_targets_can_be_compared(monkeypatch: pytest.MonkeyPatch, problem: Problem) -> None:
    targets, others = problem.labels / 5 - 1, problem.held_out_labels / 5 - 1
    real = replace(problem, labels=targets, held_out_labels=others, task="regression", classes=())
    network = train(real, TrainingConfig(epochs=0), network=NETWORK).checkpoint
    monkeypatch.setattr(defences, "DEFENCES", {"as usual": DEFENCES["as usual"]})
    (row,) = compare_defences(network, real, Exhume(steps=20, restarts=1))
    assert row.message == ""
    assert row.accuracy > 0.8
