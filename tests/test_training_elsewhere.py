"""Training goes on from any checkpoint, also of a network that was built elsewhere, and gives what it trained."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exhume import Checkpoint, read_network
from exhume.defence import training
from exhume.defence.losses import LOSSES, resolve_loss
from exhume.defence.training import TrainingConfig, TrainingState, train
from exhume.errors import InputError
from exhume.layers import LayerGraph
from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.runs.pipeline import train_run

SHAPE = (1, 6, 6)
COUNT = 13
CLASSES = ("a", "b", "c")


def make_problem() -> Problem:
    generator = torch.Generator().manual_seed(5)
    images, held_out = torch.rand(2, COUNT, *SHAPE, generator=generator)
    labels = torch.arange(COUNT) % len(CLASSES)
    return Problem(
        name="noise",
        images=images,
        labels=labels,
        held_out=held_out,
        held_out_labels=labels,
        task="multiclass",
        classes=CLASSES,
        network=NetworkConfig(widths=(8,), init_scale=None),
        source="made up",
    )


def read(module: nn.Module, mean: float | None = None, std: float | None = None) -> Checkpoint:
    return read_network(module, shape=SHAPE, classes=CLASSES, mean=mean, std=std).checkpoint


def plain() -> Checkpoint:
    return train(make_problem(), TrainingConfig(epochs=0)).checkpoint


def scaled() -> Checkpoint:
    known = torch.full(SHAPE, 0.4)
    return replace(plain(), scale=torch.full(SHAPE, 0.25, dtype=torch.float64), known_mean=known)


def half() -> Checkpoint:
    return scaled().half()


def batch_norm() -> Checkpoint:
    return read(nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)), 0.5, 0.2)


def lenet() -> Checkpoint:
    head = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()]
    return read(nn.Sequential(*head, nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3)), 0.5)


class BuiltBackwards(nn.Module):
    """A chain of dense layers that is built in another order than that of its work; one may be used twice."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(36, 8)
        self.twice = twice

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.middle(self.first(images.flatten(1)).relu()).relu()
        hidden = self.middle(hidden).relu() if self.twice else hidden
        scores: Tensor = self.last(hidden)
        return scores


def backwards() -> Checkpoint:
    return read(BuiltBackwards())


def twice() -> Checkpoint:
    return read(BuiltBackwards(twice=True))


def torchscript() -> Checkpoint:
    path = Path("program.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(BuiltBackwards().eval(), torch.rand(2, *SHAPE)).save(str(path))
    return read_network(path, shape=SHAPE, classes=CLASSES).checkpoint


STARTS: list[Callable[[], Checkpoint]] = [plain, scaled, half, batch_norm, lenet, backwards, twice, torchscript]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("settings", [{}, {"batch_size": 6, "dtype": "float64"}], ids=["full batch", "batches"])
def test_the_checkpoint_is_the_network_of_the_last_point(
    start: Callable[[], Checkpoint], settings: dict[str, object]
) -> None:
    problem, initial = make_problem(), start()
    trained = train(problem, TrainingConfig(epochs=20, lr=0.1, **settings), initial=initial)
    module = trained.checkpoint.build()
    dtype = next(module.parameters()).dtype
    loss = LOSSES[resolve_loss("multiclass", None)].loss(module(problem.images.to(dtype)), problem.labels)
    assert trained.history[-1].loss == pytest.approx(loss.item(), rel=1e-6)
    assert trained.history[-1].loss < 0.99 * trained.history[0].loss
    assert trained.checkpoint.network == initial.network
    assert trained.checkpoint.known_mean is initial.known_mean
    assert set(trained.checkpoint.weights) == set(initial.weights)


def test_what_an_optimiser_kept_before_is_not_published_again() -> None:
    initial = plain()
    initial = replace(initial, momentum={name: torch.ones_like(w) for name, w in initial.weights.items()})
    assert train(make_problem(), TrainingConfig(epochs=1), initial=initial).checkpoint.momentum == {}


@pytest.mark.parametrize("start", STARTS)
def test_the_initial_network_is_left_as_it_is(start: Callable[[], Checkpoint]) -> None:
    initial = start()
    before = {name: weight.clone() for name, weight in initial.weights.items()}
    train(make_problem(), TrainingConfig(epochs=3), initial=initial)
    assert all(torch.equal(initial.weights[name], before[name]) for name in before)


@pytest.mark.parametrize("start", [plain, scaled, backwards, twice, torchscript])
def test_a_chain_is_trained_as_pytorch_would(start: Callable[[], Checkpoint]) -> None:
    problem, initial = make_problem(), start()
    config = TrainingConfig(epochs=15, lr=0.1, momentum=0.9, weight_decay=0.01, dtype="float64", evaluate_every=5)
    trained = train(problem, config, initial=initial).checkpoint
    module = initial.build().double().train()
    optimiser = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=0.01)
    for _ in range(15):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(problem.images.double()), problem.labels).backward()
        optimiser.step()
    for name, expected in module.layers.named_parameters():
        torch.testing.assert_close(trained.weights[name], expected.detach(), rtol=1e-9, atol=1e-11)


def test_batch_norm_measures_what_pytorch_would() -> None:
    problem, initial = make_problem(), batch_norm()
    trained = train(problem, TrainingConfig(epochs=5, lr=0.1, dtype="float64"), initial=initial).checkpoint
    module = initial.build().double().train()
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(problem.images.double()), problem.labels).backward()
        optimiser.step()
    assert isinstance(trained.network, LayerGraph) and len(trained.network.statistics) == 2
    for name, expected in module.layers.state_dict().items():
        torch.testing.assert_close(trained.weights[name], expected, rtol=1e-9, atol=1e-11)
        if name in trained.network.statistics:
            assert not torch.equal(trained.weights[name], initial.weights[name].double())


@pytest.mark.parametrize("start", [batch_norm, lenet, backwards, scaled])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_an_interrupted_training_goes_on_with_the_very_same_numbers(
    start: Callable[[], Checkpoint], batch_size: int | None
) -> None:
    problem, initial = make_problem(), start()
    config = TrainingConfig(epochs=9, lr=0.1, momentum=0.9, batch_size=batch_size, evaluate_every=3)
    states: list[TrainingState] = []
    whole = train(problem, config, initial=initial, keep=states.append)
    resumed = train(problem, config, initial=initial, resume=states[1])
    assert resumed.history == whole.history
    for name, weight in whole.checkpoint.weights.items():
        assert torch.equal(resumed.checkpoint.weights[name], weight)


def test_a_last_batch_of_one_image_joins_the_one_before_for_batch_norm() -> None:
    initial, problem = batch_norm(), make_problem()
    trained = train(problem, TrainingConfig(epochs=3, lr=0.1, batch_size=COUNT - 1), initial=initial)
    whole = train(problem, TrainingConfig(epochs=3, lr=0.1), initial=initial)
    assert trained.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=1e-4)


def test_batch_norm_is_not_trained_on_single_images() -> None:
    with pytest.raises(InputError, match="in batches of at least two images"):
        train(make_problem(), TrainingConfig(epochs=1, batch_size=1), initial=batch_norm())


def test_a_network_that_does_not_fit_the_images_or_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, initial = make_problem(), lenet()
    with pytest.raises(InputError, match="does not fit the problem"):
        train(replace(problem, images=problem.images[:, :, 1:]), initial=initial)
    with pytest.raises(InputError, match="another than the one that is asked for"):
        train(problem, network=problem.network, initial=initial)
    least: list[int] = []
    monkeypatch.setattr(training, "check_memory", lambda count, *_: least.append(count))
    train(problem, TrainingConfig(epochs=0), initial=initial)
    weights = sum(weight.numel() for weight in initial.weights.values())
    assert least == [4 * (3 * weights + COUNT * (4 * 4 * 4 + 9 + 3))]


def test_a_run_refuses_a_network_that_was_built_elsewhere(tmp_path: Path) -> None:
    problem, initial = make_problem(), lenet()
    with pytest.raises(InputError, match="another than the one that is asked for"):
        train_run(tmp_path, problem, ("noise", Selection()), problem.network, TrainingConfig(epochs=1), initial=initial)
    with pytest.raises(InputError, match=r"`exhume\.train` in Python can"):
        initial.config  # noqa: B018
