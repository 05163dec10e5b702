"""Studies: what is done once is not done again, what differs is, and an interrupted study goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from exhume.attack.methods import Exhume
from exhume.checkpoint import load_checkpoint
from exhume.defence.training import TrainingConfig
from exhume.networks import NetworkConfig
from exhume.problems import INSTALLED, Selection
from exhume.progress import Progress, ProgressCallback
from exhume.runs import cells, pipeline
from exhume.runs.cells import Cell, Recipe, Result, attack_once, initial_of, run_cell, run_study, train_once
from exhume.runs.schema import CandidatesRecord, read_record
from exhume.runs.store import read_training

TINY = Recipe(
    problem="mnist-digits",
    selection=Selection(per_class=2, data_dir=INSTALLED),
    training=TrainingConfig(epochs=20),
    network=NetworkConfig(widths=(20, 20)),
)
SHORT = Exhume(restarts=1, steps=5)
STUDY = [
    Cell(
        setting={"width": width},
        work=partial(run_cell, recipe=replace(TINY, network=NetworkConfig(widths=(width,))), method=SHORT),
    )
    for width in (10, 20)
]
KEPT = ("checkpoint.safetensors", "candidates.safetensors", "scores.json")
"""What is written anew where a cell is done again."""


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in KEPT for path in folder.rglob(name)}


def test_a_study_has_a_row_for_each_cell_and_seed_and_repeats_nothing(tmp_path: Path) -> None:
    first = list(run_study(tmp_path, STUDY, seeds=(3, 4)))
    assert [(result.row["width"], result.row["seed"]) for result in first] == [(10, 3), (20, 3), (10, 4), (20, 4)]
    assert {path.name for path in tmp_path.iterdir()} == {"10-3", "20-3", "10-4", "20-4"}
    assert all(result.row["status"] == "epochs over, done" and len(result.ncc) == 20 for result in first)
    before = times(tmp_path)
    assert list(run_study(tmp_path, STUDY, seeds=(3, 4))) == first
    assert len(before) == 4 * len(KEPT) and times(tmp_path) == before


def test_an_interrupted_study_loses_the_cell_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run_study(tmp_path, STUDY)
    next(results)
    before = times(tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "attack_once", interrupted)
        next(results)
    assert len(times(tmp_path)) == len(before) + 1  # the second checkpoint
    assert len(list(run_study(tmp_path, STUDY))) == 2
    assert len(times(tmp_path)) == 2 * len(KEPT) and before.items() <= times(tmp_path).items()


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    @contextmanager
    def display(stop: int | None) -> Iterator[ProgressCallback]:
        def hear(event: Progress) -> None:
            steps.append(event.step)
            if event.stage == "train" and event.step == stop:
                raise KeyboardInterrupt

        yield hear

    monkeypatch.setattr(pipeline, "SAVE_EVERY", -1.0)
    with pytest.raises(KeyboardInterrupt):
        list(run_study(tmp_path, STUDY[:1], progress_display=lambda: display(10)))
    steps.clear()
    list(run_study(tmp_path, STUDY[:1], progress_display=lambda: display(None)))
    assert steps[0] == 10 and 20 in steps


def test_other_settings_are_done_anew_and_only_what_they_touch(tmp_path: Path) -> None:
    run_cell(tmp_path, TINY, SHORT)
    before = times(tmp_path)
    run_cell(tmp_path, TINY, replace(SHORT, steps=6))
    after = times(tmp_path)
    assert {path.name for path in before if before[path] != after[path]} == {"candidates.safetensors", "scores.json"}
    run_cell(tmp_path, replace(TINY, selection=replace(TINY.selection, classes=5)), replace(SHORT, steps=6))
    assert all(times(tmp_path)[path] != after[path] for path in after)


def test_a_damaged_score_is_counted_again_from_the_same_candidates(tmp_path: Path) -> None:
    figures = run_cell(tmp_path, TINY, SHORT)
    candidates = times(tmp_path)[tmp_path / "candidates.safetensors"]
    (tmp_path / "scores.json").write_text("{")
    assert run_cell(tmp_path, TINY, SHORT) == figures
    assert times(tmp_path)[tmp_path / "candidates.safetensors"] == candidates


def test_a_training_that_diverges_is_a_status_beside_the_others(tmp_path: Path) -> None:
    training = TrainingConfig(lr=1e12, epochs=20, loss="mse")
    diverging = replace(TINY, problem="mnist-odd-even", training=training)
    work = partial(run_cell, recipe=diverging, method=SHORT)
    (result,) = run_study(tmp_path, [Cell(setting={"rate": 1e12}, work=work)])
    assert not result.measured and str(result.row["status"]).startswith("The loss was no longer finite")


def test_an_initial_network_is_trained_first_and_known_to_the_attacker(tmp_path: Path) -> None:
    recipe = replace(TINY, network=None, initial=replace(TINY, training=TrainingConfig(epochs=0))).seeded(5)
    assert recipe.training.seed == 5 and recipe.initial is not None and recipe.initial.training.seed == 5
    train_once(tmp_path, recipe)
    initial, trained = initial_of(tmp_path, recipe), load_checkpoint(tmp_path)
    assert initial is not None and initial.network == trained.network == TINY.network
    assert read_training(tmp_path).initial == initial.fingerprint != trained.fingerprint
    attack_once(tmp_path, SHORT, initial=initial)
    assert read_record(tmp_path / "candidates.json", CandidatesRecord).initial == initial.fingerprint
    before = times(tmp_path)
    train_once(tmp_path, recipe)
    attack_once(tmp_path, SHORT, initial=initial)
    assert times(tmp_path) == before
    attack_once(tmp_path, SHORT)  # without that knowledge it is another attack
    assert read_record(tmp_path / "candidates.json", CandidatesRecord).initial is None
    train_once(tmp_path, TINY)  # another training: with fresh weights
    assert read_training(tmp_path).initial is None and initial_of(tmp_path, TINY) is None


def test_a_setting_is_the_name_of_a_folder() -> None:
    setting = {"loss": "mse, decay", "initial scale": 1e-4, "images": 20}
    assert Cell(setting=setting, work=partial(run_cell, recipe=TINY)).name == "mse-decay-0.0001-20"
    assert Result(setting=setting, figures={"recovered": 3}, folder=Path()).number("images") == 20
