"""The run folder: what it holds belongs together, or the stage refuses; what was interrupted goes on."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import by_hand
from exhume.attack.methods import Exhume
from exhume.audit.control import control_images
from exhume.audit.matching import Matches, match
from exhume.candidates import Candidates, join
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.defence.training import TrainingConfig
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.foreign import load_state_dict
from exhume.networks import NetworkConfig
from exhume.problems import Selection, load_problem, locate
from exhume.progress import Progress, ProgressCallback, no_op
from exhume.records import read_about, read_tensors, write_tensors
from exhume.report import draw
from exhume.runs import pipeline
from exhume.runs.pipeline import reconstruct_run, score_run, train_run
from exhume.runs.schema import Merged, ScoresRecord, TrainingRecord, read_record
from exhume.runs.store import FILES, load_candidates, load_truth, read_training, save_candidates

NETWORK = NetworkConfig(widths=(20,))
TRAINING = TrainingConfig(epochs=20, lr=0.1, evaluate_every=2)
SEARCH = Exhume(steps=3, per_class=6)
STAGES = {
    "training": {"training.json", "checkpoint.json", "checkpoint.safetensors"},
    "candidates": {"candidates.json", "candidates.safetensors"},
    "scores": {"scores.json", "scores.safetensors"},
    "report": {"report.html"},
}


def train_tiny(
    folder: Path,
    training: TrainingConfig = TRAINING,
    *,
    network: NetworkConfig = NETWORK,
    name: str = "toy-circle",
    per_class: int | None = 5,
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> TrainingRecord:
    origin = locate(name, Selection(per_class=per_class))
    return train_run(
        folder,
        load_problem(*origin),
        origin,
        network,
        training,
        device="cpu",
        overwrite=overwrite,
        progress_callback=progress_callback,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(folder)
    reconstruct_run(folder, SEARCH, device="cpu")
    score_run(folder)
    draw(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def edit(path: Path, **values: Any) -> None:
    by_hand.change(path, lambda content: content.update(values))


# ---- The stages


def test_each_stage_writes_its_files_and_no_others(tmp_path: Path) -> None:
    folder, expected = tmp_path / "a" / "run", set[str]()
    stages = {
        "training": lambda: train_tiny(folder),
        "candidates": lambda: reconstruct_run(folder, SEARCH, device="cpu"),
        "scores": lambda: score_run(folder),
        "report": lambda: draw(folder),
    }
    assert (
        list(stages) == list(STAGES) == [stage for stage in FILES if stage not in ("start", "search", "audit")]
    )  # tested apart
    for stage, start in stages.items():
        start()
        expected |= STAGES[stage]
        assert set(contents(folder)) == expected


def test_the_records_hold_every_setting(run: Path) -> None:
    training = read_training(run)
    assert (training.network, training.training) == (NETWORK, replace(TRAINING, loss="bce"))
    assert (training.problem.name, training.problem.selection.per_class) == ("toy-circle", 5)
    assert (training.problem.images, len(training.margins)) == (10, 10)
    assert [point.epoch for point in training.history] == list(range(0, 21, 2))
    assert training.provenance.seed == TRAINING.seed
    _, found = load_candidates(run)
    assert found.method == SEARCH
    assert found.checkpoint == load_checkpoint(run).fingerprint


def test_the_scores_hold_the_pairs_that_they_count(run: Path) -> None:
    scores, pairs = json.loads((run / "scores.json").read_text()), read_tensors(run / "scores.safetensors")
    candidates, _ = load_candidates(run)
    problem = load_truth(read_training(run))
    assert torch.equal(pairs["images"], problem.images)
    control = control_images(problem.held_out, len(problem.images))
    assert torch.equal(pairs["null_images"], control)
    for prefix, images in (("", problem.images), ("null_", control)):
        matches = match(candidates, images)
        assert torch.equal(pairs[f"{prefix}candidates"], candidates.images[matches.assigned])
        assert torch.equal(pairs[f"{prefix}similarity"], matches.assigned_similarity)
    for image, similarity in zip(scores["per_image"], pairs["similarity"].tolist(), strict=True):
        assert image["ncc"] == pytest.approx(similarity)
    assert scores["seconds"]["train"] == read_training(run).provenance.seconds


def test_scoring_matches_each_set_of_images_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Candidates | Tensor, Tensor]] = []

    def counted(candidates: Candidates | Tensor, images: Tensor) -> Matches:
        asked.append((candidates, images))
        return match(candidates, images)

    for module in [module for name, module in sys.modules.items() if name.startswith("exhume.")]:
        if vars(module).get("match") is match:  # wherever it is imported to
            monkeypatch.setattr(module, "match", counted)
    score_run(run)
    problem = load_truth(read_training(run))
    control = control_images(problem.held_out, len(problem.images))
    of_candidates = [images for candidates, images in asked if isinstance(candidates, Candidates)]
    assert len(of_candidates) == 2
    for images, expected in zip(of_candidates, (problem.images, control), strict=True):
        assert torch.equal(images, expected)
    assert len(asked) == 3  # with the training images as candidates


def test_the_attacker_needs_the_checkpoint_alone(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("checkpoint.json", "checkpoint.safetensors"):
        shutil.copy(run / name, bare)
    reconstruct_run(bare, SEARCH, device="cpu")
    assert contents(bare)["candidates.safetensors"] == contents(run)["candidates.safetensors"]


def test_every_stage_can_be_repeated(run: Path) -> None:
    before = contents(run)
    train_tiny(run)
    assert set(contents(run)) == set(before)  # what was made from the same weights is still true
    reconstruct_run(run, SEARCH, device="cpu")
    assert contents(run) == before  # nor is what is finished done again
    reconstruct_run(run, SEARCH, device="cpu", overwrite=True)
    assert set(contents(run)) == STAGES["training"] | STAGES["candidates"]
    score_run(run)
    draw(run)
    after = contents(run)
    assert set(after) == set(before)
    for name in ("checkpoint.json", "checkpoint.safetensors", "candidates.safetensors", "scores.safetensors"):
        assert after[name] == before[name]


# ---- A folder holds one run


@pytest.mark.parametrize(
    "other",
    [
        {"training": replace(TRAINING, lr=0.2)},
        {"training": replace(TRAINING, seed=1)},
        {"training": replace(TRAINING, loss="mse")},
        {"network": NetworkConfig(widths=(21,))},
        {"per_class": 4},
        {"name": "faces"},
    ],
    ids=["lr", "seed", "loss", "network", "images", "problem"],
)
def test_another_training_is_refused_unless_it_may_overwrite(run: Path, other: dict[str, Any]) -> None:
    before = contents(run)
    with pytest.raises(InputError, match="already holds another training; add --overwrite"):
        train_tiny(run, **other)
    assert contents(run) == before
    train_tiny(run, **other, overwrite=True)
    assert set(contents(run)) == STAGES["training"]  # what was made from the old weights is gone
    assert load_checkpoint(run).fingerprint != json.loads(before["checkpoint.json"])["fingerprint"]


def test_the_default_loss_and_its_name_are_the_same_training(run: Path) -> None:
    before = contents(run)["checkpoint.safetensors"]
    train_tiny(run, replace(TRAINING, loss="bce"))
    assert contents(run)["checkpoint.safetensors"] == before


def test_other_candidates_are_refused_unless_they_may_overwrite(run: Path) -> None:
    before, other = contents(run), replace(SEARCH, steps=2)
    with pytest.raises(InputError, match="already holds candidates of other settings"):
        reconstruct_run(run, other, device="cpu")
    assert contents(run) == before
    reconstruct_run(run, other, device="cpu", overwrite=True)
    assert set(contents(run)) == STAGES["training"] | STAGES["candidates"]


def test_a_finished_training_is_finished(run: Path) -> None:
    before = contents(run)
    assert train_tiny(run) == read_training(run)
    assert contents(run) == before
    train_tiny(run, overwrite=True)  # and gives the same weights, of which all the rest is still true
    assert set(contents(run)) == set(before)
    assert contents(run)["training.json"] != before["training.json"]


def test_a_training_whose_checkpoint_is_gone_is_done_again(run: Path) -> None:
    before = contents(run)
    (run / "checkpoint.safetensors").unlink()
    train_tiny(run)
    assert contents(run)["checkpoint.safetensors"] == before["checkpoint.safetensors"]


def test_candidates_of_another_checkpoint_are_not_scored(run: Path, tmp_path: Path) -> None:
    train_tiny(tmp_path / "other", replace(TRAINING, seed=1))
    for name in STAGES["training"]:
        shutil.copy(tmp_path / "other" / name, run)
    before = contents(run)
    with pytest.raises(InputError, match="come from another checkpoint"):
        score_run(run)
    assert contents(run) == before


@pytest.mark.parametrize("network", [NetworkConfig(kind="cnn"), NetworkConfig(channels=(3,))])
def test_a_network_that_cannot_be_built_leaves_the_folder_alone(run: Path, network: NetworkConfig) -> None:
    before = contents(run)
    with pytest.raises(InputError, match="A cnn needs channels"):
        train_tiny(run, network=network, overwrite=True)
    assert contents(run) == before
    with pytest.raises(InputError, match="A cnn needs channels"):
        train_tiny(run.with_name("new"), network=network)
    assert not run.with_name("new").exists()


@pytest.mark.parametrize("save_every", [1e9, -1.0], ids=["never saved", "always saved"])
def test_a_diverged_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", save_every)
    with pytest.raises(InputError, match="no longer finite"):
        train_tiny(tmp_path / "run", replace(TRAINING, loss="mse", lr=1e12))
    assert contents(tmp_path / "run") == {}


def test_a_run_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for stage in (train_tiny, lambda path: reconstruct_run(path, SEARCH), score_run, draw):
        with pytest.raises(InputError):
            stage(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# ---- Several reconstructions of one checkpoint


@pytest.fixture
def second(run: Path, tmp_path: Path) -> Path:
    """A folder with nothing but other candidates found in the same checkpoint."""
    for name in STAGES["training"]:
        (tmp_path / "again").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "again")
    reconstruct_run(tmp_path / "again", replace(SEARCH, seed=1, per_class=4), device="cpu")
    for name in STAGES["training"]:
        (tmp_path / "again" / name).unlink()
    return tmp_path / "again"


def test_merged_candidates_are_scored_as_one(run: Path, second: Path) -> None:
    alone, record = score_run(run), score_run(run, others=[second])
    assert (alone.candidates, alone.merged) == (24, [])
    assert (record.candidates, record.merged) == (40, [Merged(folder=str(second), candidates=16)])
    own, other = load_candidates(run)[0], load_candidates(second, of=run)[0]
    problem = load_truth(read_training(run))
    matches = match(join([own, other]), problem.images)
    assert [image.ncc for image in record.per_image] == pytest.approx(matches.assigned_similarity.tolist())
    assert [image.candidate for image in record.per_image] == matches.assigned.tolist()
    assert torch.equal(read_tensors(run / "scores.safetensors")["similarity"], matches.assigned_similarity)
    for now, before in zip(record.per_image, alone.per_image, strict=True):
        assert now.nearest_ncc >= before.nearest_ncc - 1e-6
    spent = [json.loads((folder / "candidates.json").read_text())["provenance"]["seconds"] for folder in (run, second)]
    assert record.seconds.reconstruct == pytest.approx(sum(spent))
    page = draw(run).read_text()
    assert f"40 candidates were scored: these, and from other searches of the same weights 16 of {second}." in page
    assert "24 candidates, within the " in page  # this run's own search
    assert "own candidates are drawn." in page


def test_only_candidates_of_the_same_checkpoint_are_merged_and_each_once(run: Path, second: Path) -> None:
    edit(second / "candidates.json", checkpoint="0" * 16)
    before = contents(run)
    with pytest.raises(InputError, match=f"The candidates in {second} come from another checkpoint than the one in"):
        score_run(run, others=[second])
    with pytest.raises(InputError, match="Each reconstruction counts once"):
        score_run(run, others=[second, second / ".." / second.name])
    with pytest.raises(InputError, match="Each reconstruction counts once"):
        score_run(run, others=[run])
    with pytest.raises(InputError, match=r"There is no .*candidates\.json"):
        score_run(run, others=[run.parent])
    assert contents(run) == before


def test_small_files_hold_the_same_images_to_a_255th_of_their_range(run: Path, tmp_path: Path) -> None:
    candidates, record = load_candidates(run)
    images = torch.cat(
        [candidates.images[:-2] * 7 - 3, torch.full((1, 1, 1, 2), 0.3), torch.full((1, 1, 1, 2), torch.nan)]
    )
    save_candidates(tmp_path / "small", replace(candidates, images=images), record, small=True)
    again = load_candidates(tmp_path / "small", of=run)[0]
    extent = images.flatten(1).amax(1) - images.flatten(1).amin(1)
    error = (again.images - images).abs().flatten(1).amax(1)
    assert (error[:-1] <= extent[:-1] / 255 * 0.501 + 1e-6).all()
    assert again.images[-1].isnan().all()
    assert torch.equal(again.multipliers, candidates.multipliers)
    assert read_tensors(tmp_path / "small" / "candidates.safetensors")["images"].dtype == torch.uint8
    save_candidates(run, candidates, record, small=True)
    assert score_run(run).candidates == 24 and draw(run).exists()


def test_half_precision_is_read_as_float32(run: Path) -> None:
    before, path = load_candidates(run)[0], run / "candidates.safetensors"
    tensors = read_tensors(path)
    by_hand.put_tensors(path, {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()})
    after = load_candidates(run)[0]
    assert after.images.dtype == after.multipliers.dtype == torch.float32
    torch.testing.assert_close(after.images, before.images, rtol=1e-3, atol=1e-3)
    draw(run)


@pytest.mark.parametrize("change", ["no range", "other length", "no images"])
def test_tensors_that_do_not_fit_each_other_are_no_candidates(run: Path, change: str) -> None:
    save_candidates(run, *load_candidates(run), small=True)
    path = run / "candidates.safetensors"
    tensors = read_tensors(path)
    if change == "other length":
        tensors["labels"] = tensors["labels"][1:]
    else:
        del tensors[change.removeprefix("no ")]
    by_hand.put_tensors(path, tensors)
    for stage in (score_run, draw):
        with pytest.raises(InputError, match=r"candidates\.safetensors does not hold candidates: "):
            stage(run)


# ---- Interruption


class Interrupt:
    """A callback that presses Ctrl-C at an epoch, and remembers the epochs that it heard of."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch, self.heard = epoch, list[int]()

    def __call__(self, progress: Progress) -> None:
        self.heard.append(progress.step)
        if progress.step == self.epoch:
            raise KeyboardInterrupt


def interrupt(folder: Path, epoch: int, training: TrainingConfig = TRAINING, *, overwrite: bool = False) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_tiny(folder, training, overwrite=overwrite, progress_callback=Interrupt(epoch))


@pytest.mark.parametrize(
    "training", [TRAINING, replace(TRAINING, momentum=0.9, batch_size=3, dtype="float64")], ids=["plain", "momentum"]
)
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: TrainingConfig
) -> None:
    whole = train_tiny(tmp_path / "whole", training)
    monkeypatch.setattr(pipeline, "SAVE_EVERY", -1.0)
    folder = tmp_path / "run"
    interrupt(folder, 8, training)
    assert set(contents(folder)) == {"training-state.safetensors"}
    with pytest.raises(InputError, match="was interrupted; `exhume train` with the same words goes on with it"):
        read_training(folder)
    with pytest.raises(InputError, match=r"There is no .*checkpoint\.json"):
        reconstruct_run(folder, SEARCH)
    second = Interrupt(14)  # once more, later
    with pytest.raises(KeyboardInterrupt):
        train_tiny(folder, training, progress_callback=second)
    assert second.heard == [8, 10, 12, 14]  # it did not begin anew
    record = train_tiny(folder, training)
    assert set(contents(folder)) == STAGES["training"]
    assert load_checkpoint(folder).fingerprint == load_checkpoint(tmp_path / "whole").fingerprint
    assert (record.history, record.margins) == (whole.history, whole.margins)


def test_what_an_interruption_ends_is_saved_whenever_it_was_saved_last(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupt(folder, 8)
    again = Interrupt(None)
    train_tiny(folder, progress_callback=again)
    assert again.heard[0] == 8


def test_a_training_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupt(folder, 8)
    about, tensors = read_about(folder / "training-state.safetensors")
    (folder / "training.json").write_text(about)
    (folder / "training-state.safetensors").write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(InputError, match="was interrupted; `exhume train` with the same words goes on with it"):
        read_training(folder)
    with pytest.raises(InputError, match="already holds another training"):
        train_tiny(folder, replace(TRAINING, lr=0.2))
    again = Interrupt(None)
    train_tiny(folder, progress_callback=again)
    assert again.heard[0] == 8
    assert set(contents(folder)) == STAGES["training"]


def test_an_interrupted_training_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", -1.0)
    folder, other = tmp_path / "run", replace(TRAINING, lr=0.2)
    interrupt(folder, 8)
    before = contents(folder)
    with pytest.raises(InputError, match="already holds another training"):
        train_tiny(folder, other)
    assert contents(folder) == before
    progress_callback = Interrupt(None)
    train_tiny(folder, other, overwrite=True, progress_callback=progress_callback)
    assert progress_callback.heard[0] == 0
    assert set(contents(folder)) == STAGES["training"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_interrupted_replacement_leaves_the_old_run_and_goes_on(run: Path, overwrite: bool) -> None:
    before, other = contents(run), replace(TRAINING, lr=0.2)
    interrupt(run, 8, other, overwrite=True)
    after = contents(run)
    assert set(after) - set(before) == {"training-state.safetensors"}
    assert before.items() <= after.items()
    again = Interrupt(None)
    train_tiny(run, other, overwrite=overwrite, progress_callback=again)
    assert again.heard[0] == 8
    assert set(contents(run)) == STAGES["training"]


def test_a_replacement_that_diverges_leaves_the_old_run(run: Path) -> None:
    before = contents(run)
    with pytest.raises(InputError, match="no longer finite"):
        train_tiny(run, replace(TRAINING, loss="mse", lr=1e12), overwrite=True)
    assert contents(run) == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_interrupted_reconstruction_ends_as_if_it_had_not_been(tmp_path: Path, dtype: Any) -> None:
    folder, method = tmp_path / "run", replace(SEARCH, steps=40, dtype=dtype)
    train_tiny(folder)
    shutil.copytree(folder, tmp_path / "whole")
    whole = reconstruct_run(tmp_path / "whole", method, device="cpu")
    for step in (10, 30):
        stop = Interrupt(step)
        with pytest.raises(KeyboardInterrupt):
            reconstruct_run(folder, method, device="cpu", progress_callback=stop)
        assert set(contents(folder)) == STAGES["training"] | {"reconstruction-state.safetensors"}
    assert stop.heard[0] == 11
    with pytest.raises(InputError, match="a reconstruction of other settings was interrupted"):
        reconstruct_run(folder, SEARCH, device="cpu")
    found = reconstruct_run(folder, method, device="cpu")
    assert set(contents(folder)) == STAGES["training"] | STAGES["candidates"]
    name = "candidates.safetensors"
    assert contents(folder)[name] == contents(tmp_path / "whole")[name]
    assert found.history == whole.history
    assert found.provenance.seconds > 0


def test_an_interrupted_reconstruction_leaves_the_old_candidates_and_may_be_given_up(run: Path) -> None:
    before, other = contents(run), replace(SEARCH, steps=40)
    with pytest.raises(KeyboardInterrupt):
        reconstruct_run(run, other, device="cpu", overwrite=True, progress_callback=Interrupt(20))
    assert before.items() <= contents(run).items()
    assert score_run(run).candidates == 24
    reconstruct_run(run, SEARCH, device="cpu", overwrite=True)
    assert set(contents(run)) == STAGES["training"] | STAGES["candidates"]


@pytest.mark.parametrize("damage", ["half", "other", "other coordinates", "fewer searches"])
def test_a_damaged_state_of_a_reconstruction_is_refused(tmp_path: Path, damage: str) -> None:
    folder, method = tmp_path / "run", replace(SEARCH, steps=40)
    train_tiny(folder)
    with pytest.raises(KeyboardInterrupt):
        reconstruct_run(folder, method, device="cpu", progress_callback=Interrupt(10))
    state = folder / "reconstruction-state.safetensors"
    about, tensors = read_about(state)
    if damage == "half":
        state.write_bytes(state.read_bytes()[:100])
    elif damage == "other":
        write_tensors(state, {"images": torch.zeros(3)}, about)
    elif damage == "other coordinates":
        write_tensors(state, {k: 1 - v if "own subspace" in k else v for k, v in tensors.items()}, about)
    else:
        write_tensors(state, {k: v for k, v in tensors.items() if not k.startswith("1 ")}, about)
    with pytest.raises(InputError, match=r"reconstruction-state|coordinates|searches"):
        reconstruct_run(folder, method, device="cpu")
    again = Interrupt(None)
    reconstruct_run(folder, method, device="cpu", overwrite=True, progress_callback=again)
    assert again.heard[0] == 0
    assert set(contents(folder)) == STAGES["training"] | STAGES["candidates"]


@pytest.mark.parametrize("damage", ["half", "other"])
def test_a_damaged_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", -1.0)
    folder = tmp_path / "run"
    interrupt(folder, 8)
    state = folder / "training-state.safetensors"
    if damage == "half":
        state.write_bytes(state.read_bytes()[:100])
    else:
        write_tensors(state, {"images": torch.zeros(3)})
    with pytest.raises(InputError, match="training-state"):
        train_tiny(folder)
    train_tiny(folder, overwrite=True)
    assert set(contents(folder)) == STAGES["training"]


# ---- Damage


def test_tensors_that_are_no_candidates_are_refused(run: Path) -> None:
    by_hand.put_tensors(run / "candidates.safetensors", {"images": torch.zeros(3, 1, 1, 2)})
    with pytest.raises(InputError, match="does not hold candidates"):
        score_run(run)


def test_a_damaged_training_is_refused_until_it_is_overwritten(run: Path) -> None:
    (run / "training.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        train_tiny(run)
    train_tiny(run, overwrite=True)
    assert read_training(run).status == "epochs over"


PROBLEM = """
import torch
from exhume import NetworkConfig, Problem, Selection

def load(selection: Selection) -> Problem:
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(SEED))
    labels = torch.arange(6) % 2
    return Problem(
        name="mine", images=images[:6], labels=labels, held_out=images[6:], held_out_labels=labels,
        task="binary", classes=("even", "odd"), network=NetworkConfig(widths=(8,)), source="seed SEED",
    )
"""


def test_a_users_problem_is_found_again_and_a_changed_one_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(PROBLEM.replace("SEED", "1"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    train_tiny(folder, name="mine.py", per_class=None)
    reconstruct_run(folder, SEARCH)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert score_run(folder).problem == "mine"
    before = contents(folder)
    (tmp_path / "mine.py").write_text(PROBLEM.replace("SEED", "200"))
    with pytest.raises(InputError, match=r"other images \(seed 200\) than it was trained on \(seed 1\)\. .*--data-dir"):
        score_run(folder)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(InputError, match="There is no problem file"):
        score_run(folder)
    assert contents(folder) == before


# ---- Someone else's checkpoint


def foreign(tmp_path: Path, seed: int = 0) -> Checkpoint:
    module = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in module.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pt")
    return load_state_dict(tmp_path / "theirs.pt", shape=(1, 1, 2), task="binary")


def test_a_foreign_checkpoint_is_attacked_and_scored_in_its_own_folder(tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "run", foreign(tmp_path)
    reconstruct_run(folder, SEARCH, foreign=checkpoint, device="cpu")
    reconstruct_run(folder, SEARCH, foreign=checkpoint, device="cpu")
    assert load_checkpoint(folder).fingerprint == checkpoint.fingerprint
    with pytest.raises(InputError, match=r"There is no .*training\.json"):
        score_run(folder)
    scores = score_run(folder, ("toy-circle", Selection()))
    assert (scores.images, scores.seconds.train) == (20, None)
    draw(folder)
    assert set(contents(folder)) == set().union(*STAGES.values()) - {"training.json"}
    before = contents(folder)
    with pytest.raises(InputError, match=r"already holds checkpoint\.json, which no training here has made"):
        train_tiny(folder)
    with pytest.raises(InputError, match="already holds another checkpoint"):
        reconstruct_run(folder, SEARCH, foreign=foreign(tmp_path, seed=1))
    assert contents(folder) == before


def write_points(path: Path, **extra: Tensor) -> Path:
    """The training points of toy-circle as arrays, and what else the file is to hold."""
    problem = load_problem("toy-circle")
    arrays = {"images": problem.images[:, 0], "labels": problem.labels, **extra}
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]
    return path


def test_a_foreign_checkpoint_has_the_control_that_it_is_given_and_no_other(tmp_path: Path) -> None:
    """Half of the training images once became the control: all of both came out, which looked like chance."""
    folder, mine = tmp_path / "run", write_points(tmp_path / "mine.npz")
    reconstruct_run(folder, SEARCH, foreign=foreign(tmp_path), device="cpu")
    alone = score_run(folder, (str(mine), Selection()))
    assert (alone.images, alone.held_out, alone.p_value, alone.p_rank) == (20, 0, None, None)
    assert alone.truth.source == "The owner's images, from mine.npz: 20, 10 of each of 2 classes"
    assert read_record(folder / "scores.json", ScoresRecord) == alone
    assert "of 20 training points look recovered, without a control</title>" in draw(folder).read_text()
    others = load_problem("toy-circle").held_out[:, 0]
    beside = score_run(folder, (str(mine), Selection()), held_out=write_points(tmp_path / "new.npz", images=others))
    assert (beside.images, beside.held_out) == (20, 20) and beside.p_rank is not None
    assert beside.truth.fingerprint != alone.truth.fingerprint
    before = contents(folder)
    with pytest.raises(InputError, match=r"20 of the 20 held-out images are training images too"):
        score_run(folder, (str(mine), Selection()), held_out=mine)
    assert contents(folder) == before
    half = score_run(folder, (str(mine), Selection()), split="half")
    assert (half.images, half.held_out) == (10, 10)


def test_images_of_unknown_class_are_scored_and_drawn(tmp_path: Path) -> None:
    folder, others = tmp_path / "run", load_problem("toy-circle").held_out[:, 0]
    np.savez(tmp_path / "mine.npz", images=load_problem("toy-circle").images[:, 0].numpy(), held_out=others.numpy())
    reconstruct_run(folder, SEARCH, foreign=foreign(tmp_path), device="cpu")
    scores = score_run(folder, (str(tmp_path / "mine.npz"), Selection()))
    assert (scores.held_out, scores.per_image[0].label) == (20, None)
    assert draw(folder).exists()


def test_held_out_images_go_with_a_foreign_truth(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Held-out images go with the images of a checkpoint from elsewhere"):
        score_run(run, held_out=tmp_path)


def test_a_run_of_uneven_classes_that_were_trimmed_loads_what_it_was_trained_on(tmp_path: Path) -> None:
    """Until format 4 as many of each class were trained on as half of the smallest has."""
    points, labels = torch.rand(12, 1, 2, generator=torch.Generator().manual_seed(0)), [0] * 8 + [1] * 4
    path = write_points(tmp_path / "mine.npz", images=points, labels=torch.tensor(labels))
    trimmed = load_problem(str(path), Selection(per_class=2))
    origin, network = locate(str(path), Selection()), NetworkConfig(widths=(5,))
    record = train_run(tmp_path / "run", trimmed, origin, network, TrainingConfig(epochs=1), device="cpu")
    assert load_truth(record).fingerprint == trimmed.fingerprint != load_problem(str(path)).fingerprint
    write_points(path, images=points.flip(0), labels=torch.tensor(labels))
    with pytest.raises(InputError, match="now loads other images"):
        load_truth(record)


def test_a_foreign_checkpoint_is_not_adopted_for_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The objective regression is for the task regression"):
        reconstruct_run(tmp_path / "run", Exhume(objective="regression"), foreign=foreign(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_foreign_checkpoint_does_not_replace_a_trained_one(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    with pytest.raises(InputError, match="already holds a network that was trained there"):
        reconstruct_run(run, SEARCH, foreign=foreign(tmp_path))
    assert contents(run) == before


def test_images_of_another_shape_are_not_the_truth(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reconstruct_run(folder, SEARCH, foreign=foreign(tmp_path), device="cpu")
    before = contents(folder)
    with pytest.raises(InputError, match="The candidates are 1x1x2"):
        score_run(folder, ("faces", Selection()))
    assert contents(folder) == before


# ---- Devices


def test_a_gpu_that_is_not_there_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = contents(run)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="There is no usable GPU here; use --device cpu"):
        reconstruct_run(run, SEARCH, device="cuda")
    assert contents(run) == before


def test_the_candidates_come_back_as_they_were_found(run: Path) -> None:
    candidates, record = load_candidates(run)
    assert isinstance(candidates, Candidates)
    tensors: dict[str, Tensor] = read_tensors(run / "candidates.safetensors")
    for name, tensor in tensors.items():  # an unknown confidence is NaN
        torch.testing.assert_close(getattr(candidates, name), tensor, rtol=0, atol=0, equal_nan=True)
    assert (candidates.history, candidates.assumptions) == (record.history, record.assumptions)
    assert len(candidates.images) == 24


def test_a_saved_checkpoint_is_what_a_run_reads(run: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(run), tmp_path / "copy")
    reconstruct_run(tmp_path / "copy", SEARCH, device="cpu")
    expected = contents(run)["candidates.safetensors"]
    assert contents(tmp_path / "copy")["candidates.safetensors"] == expected


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"already holds report.html, which no training here has made"):
        train_tiny(tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_trained_run_is_not_scored_against_another_truth(tmp_path: Path) -> None:
    train_tiny(tmp_path)
    reconstruct_run(tmp_path, SEARCH)
    with pytest.raises(InputError, match="was trained on a problem of its own"):
        score_run(tmp_path, ("faces", Selection()))
    assert score_run(tmp_path).truth.name == "toy-circle"
