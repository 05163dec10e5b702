"""A known start: what training added to it is told exactly, and gives away what ordinary training hides."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exhume
from exhume import Exhume, InputError, NetworkConfig, Problem, Selection, TrainingConfig
from exhume.attack.known_init import UNLIKE, midpoint_network, resembles, retained_share, weight_delta
from exhume.attack.spectrum import changed_unequally, first_layer, has_spectral_gap
from exhume.attack.target import make_target
from exhume.audit.matching import match
from exhume.candidates import KnownInit
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.cli import main
from exhume.defence.training import train
from exhume.runs.audit import _given_sentence
from exhume.runs.schema import CandidatesRecord, TrainingRecord, read_record

ORDINARY = NetworkConfig(widths=(300,), init_scale=None, bias="all")
CROWDED = NetworkConfig(widths=(128, 128), init_scale=None, bias="all")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- What training added


@pytest.mark.parametrize("retained", [1.0, 0.97, 0.3])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_what_decay_has_left_is_told_exactly_beside_few_directions(shape: tuple[int, int], retained: float) -> None:
    start, added = normal(*shape), normal(shape[0], 9, seed=1) @ normal(9, shape[1], seed=2)
    assert retained_share(retained * start + added, start) == pytest.approx(retained, abs=1e-5)


def test_the_change_is_what_was_added_and_frozen_layers_are_none() -> None:
    initial = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 2))
    trained = copy.deepcopy(initial)
    added = 0.1 * normal(40, 3) @ normal(3, 30, seed=1)
    with torch.no_grad():
        trained[0].weight.mul_(0.9).add_(added)  # type: ignore[operator, union-attr]
        trained[0].bias.mul_(0.9)  # type: ignore[operator, union-attr]
    found = weight_delta(trained, initial)
    assert found.retained == pytest.approx(0.9, abs=1e-4)
    parameters = list(found.module.parameters())
    assert torch.allclose(parameters[0], added, atol=1e-4) and parameters[1].abs().max() < 1e-4
    assert not parameters[2].any() and not parameters[3].any()


def test_halfway_is_the_mean_and_leaves_both_as_they_were() -> None:
    trained, initial = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [parameter.clone() for module in (trained, initial) for parameter in module.parameters()]
    middle = midpoint_network(trained, initial)
    for m, t, i in zip(middle.parameters(), trained.parameters(), initial.parameters(), strict=True):
        assert torch.allclose(m, (t + i) / 2)
    after = [parameter for module in (trained, initial) for parameter in module.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_another_network_is_no_start_and_neither_is_the_trained_one() -> None:
    trained = nn.Linear(3, 2)
    with pytest.raises(InputError, match="of another network"):
        weight_delta(trained, nn.Linear(4, 2))
    with pytest.raises(InputError, match="added nothing"):
        weight_delta(trained, copy.deepcopy(trained))


@pytest.mark.parametrize("empty", [0, 20])
def test_few_directions_end_and_what_no_pixel_shows_is_no_end(empty: int) -> None:
    few, many = normal(80, 9) @ normal(9, 60, seed=1), normal(80, 60)
    for matrix in (few, many):
        matrix[:, 60 - empty :] = 0
    assert has_spectral_gap(few, torch.linalg.svdvals(few))
    assert not has_spectral_gap(many, torch.linalg.svdvals(many))


def test_neurons_that_never_fire_and_one_strong_direction_are_no_end() -> None:
    dead, strong = normal(80, 60), normal(80, 60) + 30 * normal(80, 1, seed=1) @ normal(1, 60, seed=2)
    dead[50:] = 0
    for matrix in (dead, strong):
        assert not has_spectral_gap(matrix, torch.linalg.svdvals(matrix))


@pytest.mark.parametrize("shape", [(10, 40), (60, 40)])
def test_what_training_added_everywhere_is_no_decay(shape: tuple[int, int]) -> None:
    start = normal(*shape)
    assert retained_share(start + 0.5 * normal(*shape, seed=1), start) == 1.0


# ---- What comes out of ordinary training


@pytest.fixture(scope="module")
def problem() -> Problem:
    return exhume.load_problem("mnist-digits", Selection(per_class=3, data_dir="installed"))


def fresh(problem: Problem, seed: int = 0) -> Checkpoint:
    """The weights that a training with this seed begins with."""
    return train(problem, TrainingConfig(epochs=0, seed=seed), network=ORDINARY).checkpoint


TRAININGS = {
    "batches": TrainingConfig(lr=0.1, batch_size=8, epochs=30),
    "momentum and decay": TrainingConfig(lr=0.03, momentum=0.9, weight_decay=1e-3, batch_size=8, epochs=30),
    "adam": TrainingConfig(lr=1e-3, optimiser="adam", batch_size=8, epochs=30),
}


@pytest.mark.parametrize(
    ("name", "least", "exact"), [("batches", 28, True), ("momentum and decay", 28, True), ("adam", 20, False)]
)
def test_ordinary_training_from_a_known_start_gives_most_digits_away(
    problem: Problem, name: str, least: int, exact: bool
) -> None:
    """Controls: as many held-out digits, and what comes out where the start is not known, or a wrong one is given."""
    trained = train(problem, TRAININGS[name], network=ORDINARY).checkpoint
    config = Exhume(steps=300, per_class=6, restarts=1)

    def came_out(initial: Checkpoint | None) -> tuple[int, int]:
        found = exhume.reconstruct(trained, config, initial=initial)
        scores = exhume.score(found, problem.images, problem.labels, problem.held_out)
        return scores.recovered["0.9"], scores.null["0.9"]

    count, control = came_out(fresh(problem))
    assert count >= least and control <= 1
    if exact:  # Adam goes so far that any start is little beside it
        assert max(*came_out(None), *came_out(fresh(problem, seed=1))) <= 2
    else:
        count, control = came_out(None)
        assert count >= 10 and control <= 1
    found = config.analyse(make_target(trained, initial=fresh(problem)))
    assert found is not None and found.assumptions.known_init is not None
    assert found.assumptions.known_init.exact == exact


@pytest.mark.parametrize("name", TRAININGS)
def test_the_optimiser_is_told_by_how_unequally_neurons_changed(problem: Problem, name: str) -> None:
    trained = train(problem, TRAININGS[name], network=ORDINARY).checkpoint
    explained = make_target(trained, initial=fresh(problem)).explained_mlp
    assert explained is not None
    assert changed_unequally(first_layer(explained)) == (TRAININGS[name].optimiser != "adam")


def test_of_more_images_than_neurons_some_come_out() -> None:
    """Control: as many held-out digits. As many images are assumed as there are directions, nearly one a neuron."""
    problem = exhume.load_problem("mnist-digits", Selection(per_class=30, data_dir="installed"))
    trained, start = (
        train(problem, replace(TRAININGS["momentum and decay"], epochs=epochs, batch_size=32), network=CROWDED)
        for epochs in (30, 0)
    )
    found = exhume.reconstruct(trained.checkpoint, Exhume(steps=300), initial=start.checkpoint)
    assert found.assumptions.regime == "known start, many images" and 100 < found.assumptions.images <= 128
    scores = exhume.score(found, problem.images, problem.labels, problem.held_out)
    assert scores.recovered["0.9"] >= max(20, 3 * scores.null["0.9"])


def test_a_wrong_start_is_no_exact_change_however_strong_the_training(problem: Problem) -> None:
    strong = TrainingConfig(lr=0.3, momentum=0.9, batch_size=8, epochs=30)
    trained = train(problem, strong, network=ORDINARY).checkpoint
    known = [Exhume().analyse(make_target(trained, initial=fresh(problem, seed))) for seed in (0, 1)]
    assert [found is not None and found.assumptions.regime for found in known] == [
        "known start",
        "known start, inexact",
    ]


@pytest.mark.parametrize("name", ["batches", "adam"])
def test_weights_in_half_precision_are_read_as_before_where_descent_made_them(problem: Problem, name: str) -> None:
    trained = train(problem, TRAININGS[name], network=ORDINARY).checkpoint
    rounded = replace(trained, weights={key: w.bfloat16().float() for key, w in trained.weights.items()})
    found = Exhume().analyse(make_target(rounded, initial=fresh(problem)))
    assert found is not None
    assert found.assumptions.regime == ("known start" if name == "batches" else "known start, inexact")
    if name == "batches":
        assert abs(found.assumptions.rank - len(problem.images)) <= 1


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_confident_candidates_of_a_known_start_are_right(problem: Problem, activation: str) -> None:
    """By Adam where the activation is ReLU. Controls: the others are right less often; a wrong start gives none."""
    training = TRAININGS["adam" if activation == "relu" else "batches"]
    network = replace(ORDINARY, activation=activation)
    trained, start, wrong = (
        train(problem, config, network=network).checkpoint
        for config in (training, replace(training, epochs=0), replace(training, epochs=0, seed=1))
    )
    method = Exhume(steps=300 if activation == "relu" else 150, per_class=6)  # with 300 by GELU all are right
    found = exhume.reconstruct(trained, method, initial=start)
    right = match(found, problem.images).similarity.amax(0) >= 0.9
    confident = found.confidence >= 0.9
    assert confident.sum() >= 15 and right[confident].float().mean() >= 0.9
    assert right[~confident].float().mean() < right[confident].float().mean() - 0.1
    misled = exhume.reconstruct(trained, method, initial=wrong)
    assert misled.confidence.isnan().all() and "Confidence is not available" in misled.message


def tuned_by_hand(problem: Problem, initial: Checkpoint, frozen: tuple[int, ...]) -> nn.Module:
    """Ordinary batches of gradient descent, with some layers left as they were."""
    module = initial.build()
    for layer in frozen:
        module.layers[layer].requires_grad_(False)
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for rows in torch.randperm(len(problem.images), generator=generator).split(8):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(problem.images[rows]), problem.labels[rows]).backward()
            optimiser.step()
    return module


@pytest.mark.parametrize(("frozen", "least"), [((3,), 28), ((5,), 28), ((1,), 0), ((1, 3), 0)])
def test_frozen_layers_tell_nothing_and_do_no_harm(problem: Problem, frozen: tuple[int, ...], least: int) -> None:
    network = replace(ORDINARY, widths=(300, 300))
    initial = train(problem, TrainingConfig(epochs=0), network=network).checkpoint
    module = tuned_by_hand(problem, initial, frozen)
    found = exhume.reconstruct(
        module,
        Exhume(steps=300, per_class=6, restarts=1),
        task="multiclass",
        centre=initial.centre,
        initial=initial,
    )
    scores = exhume.score(found, problem.images, problem.labels, problem.held_out)
    assert found.status == "done" and found.images.isfinite().all()
    assert scores.recovered["0.9"] >= least and scores.null["0.9"] <= 1
    assert not any(f"layers.{layer}." in name for layer in frozen for name in found.assumptions.layers)
    assert max(found.history[-1].residual, found.history[0].residual) < 10


@pytest.mark.parametrize(("seed", "said"), [(0, False), (1, True)])
def test_a_start_of_another_seed_is_told(problem: Problem, seed: int, said: bool) -> None:
    trained = train(problem, replace(TrainingConfig(epochs=3), lr=0.1), initial=fresh(problem)).checkpoint
    start = fresh(problem, seed)
    found = exhume.reconstruct(trained, Exhume(steps=1, restarts=1), initial=start)
    assert (UNLIKE in found.message) == said
    assert _given_sentence(trained, start) == "The weights before training were given." + (f" {UNLIKE}" if said else "")


def test_resemblance_is_of_any_matrix_and_never_by_chance() -> None:
    """A replaced layer does no harm, a long training little, and 200 pairs of strangers are none."""
    one, other = {"a.weight": normal(30, 40), "b.weight": normal(5, 30, seed=1)}, {"a.weight": normal(30, 40, seed=2)}
    assert resembles(one, {**one, "a.weight": other["a.weight"]})
    assert resembles({"a.weight": one["a.weight"] + 4 * other["a.weight"]}, {"a.weight": one["a.weight"]})
    assert not resembles(other, {"a.weight": one["a.weight"]})
    assert not any(resembles({"w": normal(9, 9, seed=n)}, {"w": normal(9, 9, seed=n + 1000)}) for n in range(200))
    assert resembles({"bias": torch.ones(3)}, {"bias": -torch.ones(3)})


def test_a_start_of_zeros_is_one_and_what_is_not_finite_is_none(problem: Problem) -> None:
    trained = train(problem, TrainingConfig(epochs=2), network=ORDINARY).checkpoint
    for value in (0.0, float("nan")):
        start = fresh(problem)
        broken = replace(start, weights={name: weight * value for name, weight in start.weights.items()})
        if value == 0:  # all of the weights was added then
            found = exhume.reconstruct(trained, Exhume(steps=2), initial=broken)
            assert found.assumptions.known_init is not None and found.assumptions.known_init.retained == 1.0
        else:
            with pytest.raises(InputError, match="not finite"):
                exhume.reconstruct(trained, Exhume(steps=2), initial=broken)


@pytest.mark.parametrize("frozen", ["convolutions", "dense"])
def test_frozen_parts_of_a_convolutional_network_do_no_harm(problem: Problem, frozen: str) -> None:
    network = NetworkConfig(kind="cnn", channels=(4,), widths=(50,), init_scale=None, bias="all")
    initial = train(problem, TrainingConfig(epochs=0), network=network).checkpoint
    module = tuned_by_hand(problem, initial, (0,) if frozen == "convolutions" else (3, 5))
    found = exhume.reconstruct(module, Exhume(steps=5), task="multiclass", centre=initial.centre, initial=initial)
    assert found.status == "done" and found.images.isfinite().all()
    assert (found.assumptions.rank > 0) == (frozen == "convolutions")


# ---- From the command line


WORDS = "--per-class 2 --data-dir installed --widths 60 --init-scale None --bias all --lr 0.1 --batch-size 8"


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs a command in a folder with the runs `start`, without training, and `tuned`, that begins with it."""
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> int:
        try:
            main(words.split())
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert run(f"train mnist-digits start {WORDS} --epochs 0") == 0
    assert run(f"train mnist-digits tanh {WORDS} --epochs 0 --activation tanh") == 0
    assert run("train mnist-digits tuned --per-class 2 --data-dir installed --lr 0.1 --epochs 20 --initial start") == 0
    return run


def test_a_training_can_begin_with_a_run_and_be_attacked_with_it(tuned: Callable[[str], int]) -> None:
    start, end = load_checkpoint("start"), load_checkpoint("tuned")
    assert read_record(Path("tuned/training.json"), TrainingRecord).initial == start.fingerprint
    assert end.network == start.network and torch.equal(end.centre, start.centre)
    assert tuned("reconstruct tuned --steps 3 --initial start") == 0
    record = read_record(Path("tuned/candidates.json"), CandidatesRecord)
    assert record.initial == start.fingerprint
    known = record.assumptions.known_init
    assert isinstance(known, KnownInit) and known.retained == pytest.approx(1, abs=1e-4)
    assert tuned("report tuned") == 0
    assert "those that its training began with" in Path("tuned/report.html").read_text()
    assert tuned("reconstruct tuned --steps 3 --no-find-start") == 2  # the candidates there are of other knowledge
    assert tuned("reconstruct tuned --steps 3 --no-find-start --overwrite") == 0
    assert read_record(Path("tuned/candidates.json"), CandidatesRecord).assumptions.known_init is None
    assert tuned("report tuned") == 0
    assert "those that its training began with" not in Path("tuned/report.html").read_text()


def test_a_training_with_another_start_is_another_training(tuned: Callable[[str], int]) -> None:
    again = "train mnist-digits tuned --per-class 2 --data-dir installed --lr 0.1 --epochs 20"
    assert tuned(f"{again} --initial start") == 0
    assert tuned(f"{again} --widths 60 --init-scale None --bias all") == 2


def test_a_start_may_be_a_state_dict(tuned: Callable[[str], int]) -> None:
    weights = load_checkpoint("start").build().layers.state_dict()
    torch.save(weights, "start.pt")
    assert tuned("reconstruct tuned --steps 3 --initial start.pt") == 0
    torch.save({"0.weight": torch.zeros(10, 784)}, "other.pt")
    assert tuned("reconstruct tuned --steps 3 --initial other.pt --overwrite") == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train mnist-odd-even other --per-class 2 --initial start", "does not fit the problem"),
        ("train mnist-digits other --per-class 2 --initial start --widths 50", "another than the one that is asked"),
        ("train mnist-digits other --per-class 2 --initial nowhere", "There is no nowhere"),
        ("reconstruct tuned --initial tuned", "added nothing"),
        ("reconstruct tuned --initial tanh", "activation tanh, not relu"),
        ("reconstruct tuned --initial nowhere.pt", "There is no nowhere.pt"),
    ],
)
def test_what_is_no_start_is_refused(
    tuned: Callable[[str], int], capsys: pytest.CaptureFixture[str], words: str, sentence: str
) -> None:
    assert tuned(words) == 2
    assert sentence in capsys.readouterr().err
