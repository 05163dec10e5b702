"""The search for settings: what it tries, by what it judges, and that nothing is lost or counted twice."""

import json
import math
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from exhume.attack.methods import Exhume, Reference
from exhume.attack.reconstruct import reconstruct
from exhume.attack.search import Iterate, Method
from exhume.checkpoint import Checkpoint, save_checkpoint
from exhume.cli import main, parse
from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task, build
from exhume.presets import RECONSTRUCTIONS
from exhume.progress import Progress, ProgressCallback, no_op
from exhume.report import draw
from exhume.runs.schema import ScoresRecord, SearchRecord, read_record
from exhume.runs.store import load_candidates, load_truth, read_training, same_candidates
from exhume.runs.tune import recovered, search_run
from exhume.tuning.objective import believed_layers, exact_gate_residual
from exhume.tuning.search_spaces import SPACES, Interval, Space, known_points
from exhume.tuning.study import RESIDUAL, Judge, SweepConfig, Trial, best, sweep

EXHUME = Path(sys.executable).with_name("exhume")
SHORT = Exhume(steps=3, per_class=3, restarts=1)
PUBLISHED = Reference(steps=3, per_class=3, dtype="float32")


def checkpoint(task: Task = "binary", seed: int = 0) -> Checkpoint:
    """A random network: what a search does does not depend on training."""
    network, outputs = NetworkConfig(widths=(8,), init_scale=0.3), 3 if task == "multiclass" else 1
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, 3, 3, generator=generator)
    weights = {n: p.detach() for n, p in build(network, centre, outputs, generator).layers.named_parameters()}
    return Checkpoint(
        network=network, task=task, classes=("a", "b", "c")[: max(outputs, 2)], centre=centre, weights=weights
    )


def searched(
    journal: Path,
    config: SweepConfig,
    settings: Method = SHORT,
    *,
    judge: Judge = RESIDUAL,
    first: Sequence[dict[str, Any]] = (),
    progress_callback: ProgressCallback = no_op,
    victim: Checkpoint | None = None,
) -> list[Trial]:
    """All trials of a search that is over."""
    rounds = sweep(
        victim or checkpoint(),
        config,
        settings,
        journal=journal,
        judge=judge,
        first=first,
        progress_callback=progress_callback,
    )
    return list(rounds)[-1]


def timeless(trials: Sequence[Trial]) -> list[Trial]:
    return sorted((replace(trial, seconds=0.0) for trial in trials), key=lambda trial: trial.number)


# ---- Spaces


def ends(values: Interval | tuple[Any, ...]) -> tuple[Any, ...]:
    return (values.low, values.high) if isinstance(values, Interval) else values


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_method(name: str) -> None:
    space = SPACES[name]
    assert space.source
    assert set(space.ranges) < {item.name for item in fields(space.base)} - {"seed", "steps"}
    for setting, values in space.ranges.items():
        for value in ends(values):
            assert getattr(replace(space.base, **{setting: value}), setting) == value


@pytest.mark.parametrize(
    ("name", "task", "presets"),
    [
        ("exhume", "binary", ["exhume"]),
        ("published", "binary", ["cifar10-binary-1", "cifar10-binary-2", "mnist-binary-1", "mnist-binary-2"]),
        ("published", "multiclass", []),  # whose rate of the multipliers is not searched
        ("published", "regression", ["cifar10-regression-1", "cifar10-regression-2"]),
        ("published-multiclass", "multiclass", ["cifar10-multiclass-1", "cifar10-multiclass-2"]),
    ],
)
def test_the_presets_that_fit_are_tried_first(tmp_path: Path, name: str, task: Task, presets: list[str]) -> None:
    (tmp_path / "run").mkdir()
    save_checkpoint(checkpoint(task), tmp_path / "run")
    base = replace(SPACES[name].base, steps=1, per_class=3, dtype="float32")
    record = search_run(tmp_path / "run", SweepConfig(trials=4, space=name), base, device="cpu")
    tried = [trial.settings for trial in timeless(record.trials)]
    for preset, settings in zip(presets or [None], tried, strict=False):
        known = base if preset is None else RECONSTRUCTIONS[preset].method
        for setting, value in settings.items():
            if setting != "min_multiplier" or task != "regression":  # of no effect there
                assert value == getattr(known, setting)
    for settings in tried:
        for setting, value in settings.items():
            assert value in SPACES[name].ranges[setting] if isinstance(SPACES[name].ranges[setting], Interval) else True
    assert len(tried) == 4
    assert len({json.dumps(settings) for settings in tried[len(presets) :]}) == len(tried[len(presets) :])


def test_a_value_outside_its_range_is_left_to_the_sampler() -> None:
    outside = replace(PUBLISHED, lr_images=7.0, init_scale=1e-3, lr_multipliers=1e-4)
    assert known_points(SPACES["published"], PUBLISHED, [outside]) == [
        {"init_scale": 1e-3, "min_multiplier": 0.4, "sharpness": 50.0}
    ]


@pytest.mark.parametrize(
    ("config", "settings", "hint"),
    [
        ({"space": "everything"}, SHORT, "Unknown space 'everything'; there are exhume, published"),
        ({"trials": 0}, SHORT, "trials must be at least 1, not 0"),
        ({"workers": 0}, SHORT, "workers must be at least 1, not 0"),
        ({}, PUBLISHED, "The space exhume is for the method exhume"),
        ({"space": "published"}, SHORT, "The space published is for the method reference"),
        ({}, replace(SHORT, restarts=2), "A trial is judged by one search, so restarts must be 1"),
        ({}, replace(SHORT, lr_images=0.1), "lr_images is searched in the space exhume, so it cannot be given"),
        ({}, replace(SHORT, objective="regression"), "for the task regression, not binary"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tmp_path: Path, config: dict[str, Any], settings: Method, hint: str
) -> None:
    with pytest.raises(InputError, match=hint):
        searched(tmp_path / "journal", SweepConfig(**config), settings)
    assert not list(tmp_path.iterdir())


# ---- The judge


def test_residual_is_zero_where_the_candidates_are_the_weights_and_falls_to_no_smaller_ones() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 1, bias=False))
    generator = torch.Generator().manual_seed(0)
    images, cotangents = torch.randn(4, 1, 3, 3, generator=generator), torch.randn(4, 1, generator=generator)
    with torch.no_grad():
        module[1].weight.copy_(cotangents.T @ images.flatten(1))

    def at(scale: float, images: torch.Tensor = images) -> float:
        return exact_gate_residual(
            module, Iterate(images=images, multipliers=torch.ones(4), cotangents=scale * cotangents), ["1.weight"]
        )

    assert at(1.0) < 1e-10
    assert at(0.0) == pytest.approx(1.0)
    assert at(0.5) == pytest.approx(0.25)
    assert at(1.0, images.flip(0)) > 0.1


def test_exact_gate_residual_has_no_smoothed_gate() -> None:
    """It is the same for candidates of any sharpness: that of autograd through the network itself."""
    module, generator = checkpoint().build().double(), torch.Generator().manual_seed(0)
    images, cotangents = torch.rand(5, 1, 3, 3, generator=generator).double(), torch.rand(5, 1, generator=generator)
    named = dict(module.named_parameters())
    sums = torch.autograd.grad((cotangents * module(images)).sum(), list(named.values()))
    expected = [(p - g).pow(2).sum() / p.pow(2).sum() for p, g in zip(named.values(), sums, strict=True)]
    found = Iterate(images=images, multipliers=cotangents[:, 0], cotangents=cotangents.double())
    for name, value in zip(named, expected, strict=True):
        assert exact_gate_residual(module, found, [name]) == pytest.approx(value.item(), rel=1e-6)


def test_the_value_is_the_exact_gate_residual_of_the_last_candidates(tmp_path: Path) -> None:
    trials = searched(tmp_path / "journal", SweepConfig(trials=1), first=[{"lr_images": 0.01, "sharpness": 5.0}])
    method = replace(SHORT, **trials[0].settings)  # type: ignore[arg-type]
    seen: list[Iterate] = []
    reconstruct(checkpoint(), method, iterate_callback=seen.append)
    assert len(seen) == 4
    network = checkpoint().build()
    assert trials[0].value == pytest.approx(
        exact_gate_residual(network, seen[-1], believed_layers(checkpoint())), rel=1e-6
    )


@pytest.mark.parametrize("bias", ["first", "all"])
def test_hidden_layers_that_keep_their_initialisation_are_not_asked_to_be_stationary(bias: str) -> None:
    network = NetworkConfig(widths=(60, 60, 60), init_scale=1e-4, bias=bias)
    built = build(network, torch.zeros(1, 3, 3), 1, torch.Generator().manual_seed(0))
    weights = {name: parameter.detach() for name, parameter in built.layers.named_parameters()}
    untrained = Checkpoint(
        network=network, task="binary", classes=("a", "b"), centre=torch.zeros(1, 3, 3), weights=weights
    )
    first = next(iter(weights)).rpartition(".")[0]
    assert believed_layers(untrained) == [f"layers.{first}.weight", f"layers.{first}.bias"]


def test_the_best_are_the_smallest_or_the_largest() -> None:
    def trial(number: int, value: float | None) -> Trial:
        return Trial(number=number, settings={}, value=value, state="complete" if value else "pruned", seconds=1.0)

    trials = [trial(0, 2.0), trial(1, None), trial(2, 1.0), trial(3, 3.0)]
    assert [t.number for t in best(trials, RESIDUAL, 2)] == [2, 0]
    assert [t.number for t in best(trials, replace(RESIDUAL, largest=True), 9)] == [3, 0, 2]


def test_the_truth_counts_what_came_out_and_then_how_alike_the_rest_is() -> None:
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))

    def worth(found: torch.Tensor) -> float:
        of, ones = reconstruct(checkpoint(), SHORT), torch.ones(len(found))
        return recovered(
            images,
            replace(of, images=found, labels=ones.long(), multipliers=ones, explained=ones, confidence=ones),
        )

    assert 4 < worth(images) < 5
    assert 2 < worth(torch.cat([images[:2], 1 - images[2:]])) < 3
    assert worth(torch.cat([images[:2], images[2:] + 0.6 * (1 - images[2:].flip(0))])) > worth(images[:2])


# ---- The same again


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_gives_the_same_search(tmp_path: Path, sampler: Any) -> None:
    config = SweepConfig(trials=12, sampler=sampler)
    trials = [timeless(searched(tmp_path / name, config)) for name in ("one", "two")]
    assert trials[0] == trials[1]
    other = timeless(searched(tmp_path / "three", config, replace(SHORT, seed=1)))
    assert not {json.dumps(t.settings) for t in trials[0]} & {json.dumps(t.settings) for t in other}


def test_more_trials_go_on_where_the_search_was(tmp_path: Path) -> None:
    whole = timeless(searched(tmp_path / "whole", SweepConfig(trials=8, sampler="random")))
    parts = [searched(tmp_path / "parts", SweepConfig(trials=count, sampler="random")) for count in (3, 8, 8, 2)]
    assert timeless(parts[1]) == whole
    assert [len(part) for part in parts] == [3, 8, 8, 8]
    assert parts[1] == parts[2]


class Interrupt:
    """A callback that presses Ctrl-C in a trial."""

    def __init__(self, trial: int) -> None:
        self.trial = trial

    def __call__(self, event: Progress) -> None:
        if event.stage == f"trial-{self.trial}" and event.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 1, 3], ids=["first known point", "second", "a random one"])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_trial_is_done_again_as_it_was(tmp_path: Path, at: int, sampler: Any) -> None:
    config = SweepConfig(trials=5, sampler=sampler)
    first = [
        {"lr_images": lr, "sharpness": 5.0, "smoothness": None, "binary_prior": None, "images": 50}
        for lr in (0.01, 0.02)
    ]
    journal = tmp_path / "journal"
    heard: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        searched(journal, config, first=first, progress_callback=Interrupt(at))
    trials = searched(
        journal,
        config,
        first=first,
        progress_callback=lambda e: heard.append(e.step) if e.stage == "search" else None,
    )
    assert heard == list(range(at + 1, 6))
    assert len(trials) == 5
    assert timeless(trials) == timeless(searched(tmp_path / "whole", config, first=first))


def test_what_a_kill_leaves_is_mended(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    searched(journal, SweepConfig(trials=2))
    whole = journal.read_bytes()
    (tmp_path / "journal.lock").touch()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_i')
    assert len(searched(journal, SweepConfig(trials=2))) == 2
    assert journal.read_bytes().startswith(whole)
    assert len(searched(journal, SweepConfig(trials=3))) == 3
    journal.write_bytes(whole[: len(whole) // 2])
    assert len(searched(journal, SweepConfig(trials=3))) == 3


def test_a_journal_serves_one_search_at_a_time(tmp_path: Path) -> None:
    def search_beside(event: Progress) -> None:
        with pytest.raises(InputError, match=r"Another search with .*journal is under way"):
            searched(tmp_path / "journal", SweepConfig(trials=2))

    trials = searched(tmp_path / "journal", SweepConfig(trials=2), progress_callback=search_beside)
    assert [trial.state for trial in trials] == ["complete", "complete"]
    assert len(searched(tmp_path / "journal", SweepConfig(trials=3))) == 3


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for content in (b"nonsense\nnonsense\n", b'{"op_code": 0}\n', b"[]\n"):
        journal.write_bytes(content)
        with pytest.raises(InputError, match=r"journal is damaged .* add --overwrite"):
            searched(journal, SweepConfig(trials=2))
        assert journal.read_bytes() == content


@pytest.mark.parametrize(
    "other",
    [
        {"config": SweepConfig(trials=2, sampler="random")},
        {"config": SweepConfig(trials=2, space="published"), "settings": PUBLISHED},
        {"settings": replace(SHORT, seed=1)},
        {"settings": replace(SHORT, steps=4)},
        {"victim": checkpoint(seed=1)},
        {"judge": Judge(name="truth", words="", largest=True, value=lambda _: 1.0)},
    ],
    ids=["sampler", "space", "seed", "steps", "checkpoint", "judge"],
)
def test_the_journal_of_another_search_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    journal, config = tmp_path / "journal", SweepConfig(trials=2)
    searched(journal, config)
    with pytest.raises(InputError, match="holds another search; add --overwrite"):
        searched(journal, **{"config": config, **other})
    assert len(searched(journal, config, replace(SHORT, sharpness=10.0))) == 2


# ---- Trials that end early


def test_a_hopeless_trial_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = {"lr_images": Interval(low=1e-12, high=1.0, log=True)}
    monkeypatch.setitem(SPACES, "rates", Space(ranges=ranges, base=SHORT, source="here"))
    first = [{"lr_images": lr} for lr in (0.03, 0.031, 0.032, 0.033, 0.034, 1e-12)]
    steps: dict[str, int] = {}

    def progress_callback(event: Progress) -> None:
        steps[event.stage] = event.step

    config, settings = SweepConfig(trials=6, space="rates"), replace(SHORT, steps=60)
    trials = searched(tmp_path / "journal", config, settings, first=first, progress_callback=progress_callback)
    assert [trial.state for trial in trials] == ["complete"] * 5 + ["pruned"]
    assert trials[-1].value is None
    assert 20 <= steps["trial-5"] + 1 < 60
    assert steps["trial-4"] == 60
    assert steps["search"] == 6  # it counts all the same


def test_a_divergence_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = {"lr_images": Interval(low=1e-3, high=1e30, log=True)}
    monkeypatch.setitem(SPACES, "wild", Space(ranges=ranges, base=PUBLISHED, source="here"))
    first = [{"lr_images": 1e30}, {"lr_images": 1e-3}]
    kept: list[int] = []
    rounds = sweep(
        checkpoint(),
        SweepConfig(trials=2, space="wild"),
        replace(PUBLISHED, steps=20),
        journal=tmp_path / "journal",
        first=first,
        keep=lambda number, config, candidates, seconds: kept.append(number),
    )
    trials = list(rounds)[-1]
    assert [(trial.state, trial.value is None) for trial in trials] == [("diverged", True), ("complete", False)]
    assert kept == [1]


# ---- In a run folder, by the command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = ["--steps", "3", "--per-class", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["train", "toy-circle", str(run), "--widths", "8", "--epochs", "6", "--per-class", "5", "--device", "cpu"])
    return run


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    return Path(shutil.copytree(trained, here / "run"))


def record(run: Path) -> SearchRecord:
    return read_record(run / "search.json", SearchRecord)


def test_a_search_ends_with_the_best_candidates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "run", "--trials", "4", *TINY])
    said = capsys.readouterr().out.splitlines()
    found = record(run)
    leading = sorted(found.trials, key=lambda trial: trial.value or math.inf)
    assert found.kept == [trial.number for trial in leading[:2]]
    assert found.best == found.kept[0]
    assert {path.name for path in (run / "trials").iterdir()} == {str(number) for number in found.kept}
    for name in ("candidates.json", "candidates.safetensors"):
        assert (run / name).read_bytes() == (run / "trials" / str(found.best) / name).read_bytes()
    _, candidates = load_candidates(run)
    for name, value in leading[0].settings.items():
        assert value is None or getattr(candidates.method, name) == value
    assert said[0] == "trials        4: 4 complete"
    assert said[1].startswith(f"best          trial {found.best}, residual {leading[0].value:.4g}: lr_images ")
    assert said[2] == "candidates    chosen by the weights alone, without the truth"
    main(["score", "run"])
    assert "chosen by the weights alone, without the truth" in capsys.readouterr().out
    assert "(chosen by the weights alone, without the truth)" in draw(run).read_text()


def test_more_trials_replace_the_candidates_only_if_they_are_better(run: Path) -> None:
    best_of_all: int | None = None
    changes = []
    for trials in ("1", "2", "3"):
        main(["search", "run", "--sampler", "random", "--trials", trials, *TINY])
        changes.append(record(run).best != best_of_all)
        assert (run / "scores.json").exists() == (not changes[-1])  # made from the same candidates it is still true
        main(["score", "run"])
        best_of_all = record(run).best
    assert changes == [True, True, False]


def test_chosen_with_the_truth_is_an_upper_bound_everywhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "run", "--trials", "3", "--judge", "truth", "--keep", "1", *TINY])
    words = "an upper bound: chosen with the truth"
    assert words in capsys.readouterr().out
    found = record(run)
    assert (found.chosen, found.judge) == (words, "truth")
    problem = load_truth(read_training(run))
    value = recovered(problem.images, load_candidates(run)[0])
    assert value == pytest.approx(max(trial.value or -1 for trial in found.trials))
    main(["score", "run"])
    assert words in capsys.readouterr().out
    assert words in draw(run).read_text()
    assert read_record(run / "scores.json", ScoresRecord).chosen == words
    shutil.copytree(run, "chosen", ignore=shutil.ignore_patterns("search.*", "trials"))  # the candidates alone
    main(["score", "chosen"])
    assert words in capsys.readouterr().out
    main(["reconstruct", "run", "--overwrite", *TINY])
    main(["score", "run"])
    assert words not in capsys.readouterr().out
    assert words not in draw(run).read_text()
    main(["score", "run", "--with", "chosen"])
    assert words in capsys.readouterr().out
    assert words in draw(run).read_text()


def test_candidates_of_an_interrupted_search_are_still_known_for_its(run: Path) -> None:
    """Also where a better trial has taken their place among the best, before it has become the run's."""
    judge = {"judge": "truth", "keep": 1, "device": "cpu"}
    first = search_run(run, SweepConfig(trials=1, sampler="random"), SHORT, **judge)  # type: ignore[arg-type]

    def interrupt(event: Progress) -> None:
        if record(run).best != first.best:
            raise KeyboardInterrupt

    more = SweepConfig(trials=20, sampler="random")
    with pytest.raises(KeyboardInterrupt):
        search_run(run, more, SHORT, progress_callback=interrupt, **judge)  # type: ignore[arg-type]
    assert same_candidates(run, run / "trials" / str(first.best))
    assert load_candidates(run)[1].chosen == "an upper bound: chosen with the truth"
    (run / "trials" / ".DS_Store").touch()  # as a file manager leaves it
    after = search_run(run, more, SHORT, **judge)  # type: ignore[arg-type]
    assert same_candidates(run, run / "trials" / str(after.best))
    assert [path.name for path in (run / "trials").iterdir() if path.is_dir()] == [str(after.best)]


def test_the_truth_is_not_at_hand_everywhere(run: Path) -> None:
    (run / "training.json").unlink()
    with pytest.raises(InputError, match=r"--judge truth needs the training images, and .* does not tell"):
        search_run(run, SweepConfig(trials=1), SHORT, judge="truth")
    assert search_run(run, SweepConfig(trials=1), SHORT).best == 0


def test_candidates_of_no_search_are_not_replaced(run: Path) -> None:
    main(["reconstruct", "run", *TINY])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match="already holds candidates of no search; add --overwrite"):
        search_run(run, SweepConfig(trials=1), SHORT)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    search_run(run, SweepConfig(trials=1), SHORT, overwrite=True)
    search_run(run, SweepConfig(trials=2), SHORT)
    with pytest.raises(InputError, match="holds another search"):
        search_run(run, SweepConfig(trials=2), replace(SHORT, steps=4))
    assert len(search_run(run, SweepConfig(trials=1), replace(SHORT, steps=4), overwrite=True).trials) == 1


def test_another_training_removes_the_search(run: Path) -> None:
    main(["search", "run", "--trials", "2", *TINY])
    words = ["train", "toy-circle", "run", "--widths", "9", "--epochs", "6", "--per-class", "5", "--device", "cpu"]
    main([*words, "--overwrite"])
    assert {path.name for path in run.iterdir()} == {"training.json", "checkpoint.json", "checkpoint.safetensors"}


def test_bad_words_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    for words, hint in (
        ("--space everything", "Unknown space 'everything'"),
        ("--sampler sobol", "invalid choice 'sobol'"),
        ("--judge me", "invalid choice 'me'"),
        ("--keep 0", "keep must be at least 1, not 0."),
        ("--lr-images 0.1", "lr_images is searched in the space exhume"),
        ("--method reference", "Unrecognized options: --method, reference"),
        ("--space published --smoothness 1", "Unrecognized options: --smoothness, 1"),
        ("--track pencil", "There is no tracker 'pencil'; there are tensorboard, wandb."),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["search", "run", *words.split()])
        assert ended.value.code == 2
        assert hint in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(run.iterdir()) == before


def test_several_workers_share_a_search_and_end_with_it(run: Path, here: Path) -> None:
    """Also what a worker is given survives the way there: a judge that knows the truth, and its images."""
    shutil.copytree(run, "alone")
    config = SweepConfig(trials=4, sampler="random")
    alone = search_run(here / "alone", config, SHORT, judge="truth", device="cpu").trials

    def interrupt(event: Progress) -> None:
        assert (event.stage, event.total) == ("search", 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_run(run, replace(config, workers=2), SHORT, judge="truth", device="cpu", progress_callback=interrupt)
    assert multiprocessing.active_children() == []
    together = search_run(run, config, SHORT, judge="truth", device="cpu", keep=9)
    values = {json.dumps(trial.settings): trial.value for trial in together.trials}
    assert len(values) == 4
    for trial in timeless(alone)[:2]:  # those that were begun first
        assert values[json.dumps(trial.settings)] == pytest.approx(trial.value, rel=1e-4)
    assert sorted(together.kept) == sorted(trial.number for trial in together.trials)


@pytest.mark.thorough
def test_a_trial_that_ends_behind_the_parents_back_is_counted(tmp_path: Path) -> None:
    """Both workers have something to say while the parent is busy with what it has just counted."""
    count = 0
    for trials in sweep(checkpoint(), SweepConfig(trials=2, workers=2), SHORT, journal=tmp_path / "journal"):
        count = len(trials)
        time.sleep(2)
    assert count == 2


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def until(what: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells processes apart by /proc")
def test_a_killed_search_goes_on(run: Path) -> None:
    words = ["search", "run", "--steps", "100", "--per-class", "3", "--keep", "9", "--space", "published"]
    with subprocess.Popen([EXHUME, *words, "--trials", "30", "--workers", "2"], stderr=subprocess.DEVNULL) as process:
        until(lambda: (run / "search.json").exists() and len(record(run).trials) >= 1)
        workers = list(children(process.pid))
        process.kill()
    assert len(workers) >= 2
    until(lambda: all(gone(pid) for pid in workers))
    before = record(run).trials
    main([*words, "--trials", str(len(before) + 4)])
    after = record(run)
    assert after.trials[: len(before)] == before
    presets = [RECONSTRUCTIONS[f"{name}-binary-{n}"].method for name in ("cifar10", "mnist") for n in (1, 2)]
    assert {p.lr_images for p in presets} <= {t.settings["lr_images"] for t in after.trials}
    assert {path.name for path in (run / "trials").iterdir()} == {str(number) for number in after.kept}


# ---- The sweep file


def test_the_wandb_sweep_is_the_published_space() -> None:
    sweep = yaml.safe_load((Path(__file__).parents[1] / "docs" / "wandb-sweep.yaml").read_text())
    ranges = SPACES["published"].ranges
    assert set(sweep["parameters"]) == set(ranges)
    for name, parameter in sweep["parameters"].items():
        values = ranges[name]
        assert isinstance(values, Interval)
        assert (parameter["min"], parameter["max"]) == (values.low, values.high)
        assert parameter["distribution"] == ("log_uniform_values" if values.log else "uniform")
    command = sweep["command"]
    assert (command[:2], command[-1]) == (["${env}", "exhume"], "${args}")
    words = [*command[2:-1], *(f"--{name}={p['max']}" for name, p in sweep["parameters"].items())]
    asked = parse(words)
    assert (asked.track, asked.overwrite, asked.method) == ("wandb", True, "reference")
    for name, parameter in sweep["parameters"].items():
        assert getattr(asked.settings, name) == parameter["max"]
    assert sweep["metric"]["name"] == "reconstruct/residual"
