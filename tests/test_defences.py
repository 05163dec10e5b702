"""What protects is measured: every row is trained, attacked and counted beside its control."""

import sys

import pytest
import torch

from exhume.attack.methods import Exhume
from exhume.defence.training import TrainingConfig, train
from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, load_problem
from exhume.runs import defences
from exhume.runs.defences import DEFENCES, DefenceRow, compare_defences, fresh

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
