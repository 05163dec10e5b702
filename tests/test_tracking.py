"""Trackers: what was heard can be read back from their files."""

import json
import sys
import time
from pathlib import Path

import pytest

from exhume.cli import main
from exhume.commands.tracking import TRACKERS
from exhume.progress import Progress

TRAIN = ["train", "toy-circle", "run", "--widths", "8", "--epochs", "6", "--per-class", "5", "--device", "cpu"]
SHORT = ["--steps", "3", "--per-class", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without an account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    log = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_tensorboard_reads_back_what_every_stage_said(here: Path) -> None:
    main([*TRAIN, "--track", "tensorboard"])
    main(["reconstruct", "run", *SHORT, "--track", "tensorboard"])
    read = scalars(here / "run" / "tracking")
    training, found = (json.loads((here / "run" / f"{name}.json").read_text()) for name in ("training", "candidates"))
    losses = [(point["epoch"], pytest.approx(point["loss"])) for point in training["history"]]
    assert read["train/loss"] == losses
    residuals = [(point["step"], pytest.approx(point["residual"])) for point in found["history"]]
    assert read["reconstruct/residual"] == residuals  # of the first search, as the history
    main(["search", "run", "--trials", "2", *SHORT, "--track", "tensorboard", "--overwrite"])
    read, search = scalars(here / "run" / "tracking"), json.loads((here / "run" / "search.json").read_text())
    values = [(number + 1, pytest.approx(trial["value"])) for number, trial in enumerate(search["trials"])]
    assert read["search/residual"] == values
    assert [step for step, _ in read["trial-1/penalty"]] == [0, 1, 2, 3]


def test_wandb_writes_what_was_heard_without_an_account(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    main([*TRAIN, "--track", "wandb"])
    said = capfd.readouterr()
    assert "wandb" not in said.out + said.err
    files = list((here / "run" / "tracking").rglob("offline-run-*/*.wandb"))
    assert len(files) == 1
    history = json.loads((here / "run" / "training.json").read_text())["history"]
    for _ in range(300):  # a process of its own writes the file, a moment after the run has ended
        content = files[0].read_bytes()
        if content.count(b"train/loss") >= len(history):
            break
        time.sleep(0.1)
    assert content.count(b"train/loss") >= len(history)
    for point in history:
        assert repr(point["loss"]).encode() in content


def test_the_users_mode_is_wandbs_mode(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with TRACKERS["wandb"](here / "tracking") as progress_callback:
        progress_callback(Progress(stage="train", step=1, total=1, values={"loss": 0.5}))
    assert not list(here.rglob("*.wandb"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_hears_nothing_leaves_nothing(here: Path, name: str) -> None:
    with TRACKERS[name](here / "tracking"):
        pass
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_extra_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        main([*TRAIN, "--track", name])
    assert ended.value.code == 2
    assert f"{name} is not installed; install exhume again with the extra [{name}]." in capsys.readouterr().err
    assert list(here.iterdir()) == []
