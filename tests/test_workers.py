"""Workers: every item once, in the order in which they end, wherever they are worked on."""

import csv
import math
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
import torch
from torch import nn

from exhume.attack.methods import Exhume
from exhume.cli import main
from exhume.commands import audit as audit_command
from exhume.commands import study as study_command
from exhume.errors import InputError
from exhume.progress import Progress, ProgressCallback, ProgressDisplay, no_display
from exhume.runs.folders import map_folders
from exhume.runs.tables import Row
from exhume.tuning import journal, study
from exhume.tuning.workers import WORKERS, choose_workers
from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Done, Workers
from exhume.tuning.workers.ray_cluster import RayCluster
from victims import checkpoint


@dataclass(frozen=True, kw_only=True)
class Far:
    """Workers in this process that see nothing of its files, and are sent everything as bytes."""

    name: ClassVar[str] = "far"
    same_disk: ClassVar[bool] = False

    def check(self, device: str) -> None:
        """They have any device."""

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,
        display: ProgressDisplay,
    ) -> Iterator[Done[Any, Any, Any]]:
        sent = pickle.dumps(work)
        for item in items:
            result, bulk = pickle.loads(sent)(pickle.loads(pickle.dumps(item)), lambda _: None)
            yield Done(item=item, result=result, fetch=partial(pickle.loads, pickle.dumps(bulk)))


def squared(item: int, progress_callback: ProgressCallback) -> tuple[int, list[int]]:
    progress_callback(Progress(stage="square", step=item, total=item, values={}))
    return item**2, [item]


def refused(item: int, _: object) -> tuple[int, None]:
    raise InputError(f"{item} is refused.")


def killed(item: int, _: object) -> tuple[int, None]:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item, None


# ---- The interface


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("workers", [Processes(), Far()], ids=["processes", "far"])
def test_each_item_comes_back_once_with_its_result_and_its_bulk(workers: Workers, count: int) -> None:
    done = [
        (one.item, one.result, one.fetch())
        for one in workers.map(squared, range(7), count=count, device="cpu", display=no_display)
    ]
    assert sorted(done) == [(item, item**2, [item]) for item in range(7)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_item_is_taken_when_a_place_is_free_and_what_ended_was_yielded(count: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            taken.append(item)
            yield item

    told = 0
    for _ in Processes().map(squared, items(), count=count, device="cpu", display=no_display):
        told += 1
        assert len(taken) <= told - 1 + count
    assert told == 5


def test_one_process_shows_its_steps_and_opens_the_display_anew() -> None:
    shown: list[list[int]] = []

    @contextmanager
    def display() -> Iterator[ProgressCallback]:
        shown.append([])
        yield lambda event: shown[-1].append(event.step)

    list(Processes().map(squared, [3, 5], count=1, device="cpu", display=display))
    assert shown == [[3], [5]]


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_work_refuses_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=r"^7 is refused\.$"):
        list(Processes().map(refused, [7], count=count, device="cpu", display=no_display))


def test_a_killed_worker_is_a_sentence_and_the_others_end() -> None:
    with pytest.raises(InputError, match="A worker was killed, for lack of memory perhaps; the same command goes on"):
        list(Processes().map(killed, range(4), count=2, device="cpu", display=no_display))
    assert multiprocessing.active_children() == []


def test_the_flag_chooses_a_row() -> None:
    assert set(WORKERS) == {"processes", "ray"}
    assert all(isinstance(kind(), Workers) for kind in WORKERS.values())
    assert choose_workers(None) == Processes()
    assert choose_workers("auto") == RayCluster(address="auto")


def test_ray_that_is_not_installed_or_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, hint in (
        ("127.0.0.1:1", r"The Ray cluster 127.0.0.1:1 cannot be reached: \[Errno"),
        ("nowhere", r"nowhere is no address of a Ray cluster; it is HOST:PORT, auto or local\."),
        ("ray://nowhere", r"ray://nowhere is no address"),
        ("127.0.0.1:99999", "cannot be reached"),
    ):
        with pytest.raises(InputError, match=hint):
            choose_workers(address).check("cpu")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed; install exhume again with the extra \[ray\]"):
        list(RayCluster().map(squared, [1], count=1, device="cpu", display=no_display))


@pytest.mark.parametrize("kind", ["ConnectionError", "AuthenticationError"])
def test_a_cluster_that_refuses_is_a_sentence_with_what_to_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    refusal = ConnectionError if kind == "ConnectionError" else ray.exceptions.AuthenticationError

    def refuse(**_: object) -> None:
        raise refusal("No token.\nMore.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match=r"auto cannot be reached: .*No token\. If it asks .*, set RAY_AUTH_MODE"):
        list(RayCluster(address="auto").map(squared, [1], count=1, device="cpu", display=no_display))


# ---- The journal and the medians


@pytest.mark.parametrize("complete", [4, 5, 6, 20])
def test_a_trial_is_stopped_where_the_median_rule_of_optuna_stops_it(complete: int) -> None:
    """Against Optuna's own pruner, asked at each look, on random residuals."""
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=study.JUDGES, n_warmup_steps=study.WARM_UP, interval_steps=study.LOOKS_BETWEEN
    )
    generator, ends = torch.Generator().manual_seed(complete), []
    for _ in range(20):
        searched = optuna.create_study(pruner=pruner)
        for _ in range(complete):
            values = torch.rand(int(torch.randint(1, 60, (1,), generator=generator)), generator=generator).tolist()
            trial = searched.ask()
            for look, value in enumerate(values):
                trial.report(value, look)
            searched.tell(trial, values[-1])
        limits, trial, residuals = study._limits(searched), searched.ask(), list[float]()
        for look, value in enumerate((0.3 + 0.4 * torch.rand(50, generator=generator)).tolist()):
            trial.report(value, look)
            residuals.append(value)
            stopped = look in limits and min(residuals) > limits[look]
            assert stopped == trial.should_prune()
            if stopped:
                break
        ends.append(look)
    assert (min(ends) < 49) == (complete >= study.JUDGES)


def test_what_is_told_together_is_one_writing_or_none(tmp_path: Path) -> None:
    opened = journal.open_journal(tmp_path / "journal", largest=False)
    first, second = opened.ask(), opened.ask()
    before = (tmp_path / "journal").read_bytes()
    with journal.together(opened):
        for look in range(100):
            first.report(1.0, look)
        assert (tmp_path / "journal").read_bytes() == before
    assert len(opened.get_trials()[0].intermediate_values) == 100
    after = (tmp_path / "journal").read_bytes()
    with pytest.raises(KeyboardInterrupt), journal.together(opened):
        second.report(1.0, 0)
        raise KeyboardInterrupt
    assert (tmp_path / "journal").read_bytes() == after
    with journal.together(opened):
        pass
    assert (tmp_path / "journal").read_bytes() == after
    opened.tell(second, 2.0)
    assert journal.open_journal(tmp_path / "journal", largest=False).best_value == 2.0


class Telling(Far):
    """Notes how many bytes a result has, and of which items the bulk is asked for."""

    def __init__(self) -> None:
        self.sizes, self.fetched = list[int](), list[int]()

    def map(self, *words: Any, **more: Any) -> Iterator[Done[Any, Any, Any]]:
        for done in super().map(*words, **more):
            self.sizes.append(len(pickle.dumps(done.result)))
            yield replace(done, fetch=partial(self.fetch, done))

    def fetch(self, done: Done[Any, Any, Any]) -> Any:
        self.fetched.append(done.item.number)
        return done.fetch()


def large(*_: Any) -> bytes:
    return bytes(1_000_000)


def test_only_scores_travel_but_for_the_candidates_of_trials_that_lead(tmp_path: Path) -> None:
    workers, config = Telling(), study.SweepConfig(trials=12, sampler="random")
    method = Exhume(steps=30, per_class=3, restarts=1)
    rounds = study.sweep(
        checkpoint("binary"), config, method, journal=tmp_path / "journal", workers=workers, keep=large
    )
    values = [math.inf if trial.value is None else trial.value for trial in list(rounds)[-1]]
    assert workers.fetched == [n for n in range(12) if values[n] < min(values[:n], default=math.inf)]
    assert 0 < len(workers.fetched) < 12 and max(workers.sizes) < 3000


# ---- Run folders


def stage(folder: Path, task: str, _: object) -> Row:
    """Changes one file, makes one in a folder, removes one."""
    seen = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    folder.mkdir(exist_ok=True)
    (folder / "kept.json").write_text(task)
    (folder / "within").mkdir(exist_ok=True)
    (folder / "within" / "new.bin").write_bytes(b"new")
    (folder / "gone.txt").unlink(missing_ok=True)
    return {"name": folder.name, "seen": " ".join(seen)}


@pytest.mark.parametrize("workers", [Processes(), Far()], ids=["processes", "far"])
def test_a_folder_is_the_same_after_work_here_and_elsewhere(tmp_path: Path, workers: Workers) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("kept.json", "gone.txt", "same.bin"):
            (tmp_path / name / file).write_text("old")
    (tmp_path / "a" / ".exhume-part-1").write_text("of a killed command")
    before = (tmp_path / "a" / "same.bin").stat().st_mtime_ns
    visits = list(map_folders(stage, [(tmp_path / name, name) for name in "abc"], workers=workers, device="cpu"))
    assert [(visit.task, visit.folder, visit.row["name"]) for visit in visits] == [
        (name, tmp_path / name, name) for name in "abc"
    ]
    assert [visit.row["seen"] for visit in visits[1:]] == ["gone.txt kept.json same.bin", ""]
    for name in "ab":
        files = {path.name: path.read_text() for path in (tmp_path / name).rglob("*") if path.is_file()}
        files.pop(".exhume-part-1", None)
        assert files == {"kept.json": name, "new.bin": "new", "same.bin": "old"}
    assert (tmp_path / "a" / "same.bin").stat().st_mtime_ns == before
    assert (tmp_path / "c" / "within" / "new.bin").read_bytes() == b"new"


def test_work_elsewhere_leaves_nothing_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    list(map_folders(stage, [(tmp_path / "run", "x")], workers=Far(), device="cpu"))
    assert (tmp_path / "run" / "kept.json").exists() and not list((tmp_path / "temporary").iterdir())


# ---- The commands on many runs

CELLS = """
from dataclasses import dataclass, replace
from functools import partial
from exhume import Exhume, NetworkConfig, Selection, TrainingConfig
from exhume.runs.cells import Cell, Recipe, run_cell


@dataclass
class Width:
    neurons: int


def cells():
    method, found = Exhume(steps=5, restarts=1), []
    for width in (Width(8), Width(10)):
        recipe = Recipe(
            problem="toy-circle",
            selection=Selection(per_class=5),
            training=TrainingConfig(epochs=20),
            network=NetworkConfig(widths=(width.neurons,)),
        )
        found.append(Cell(setting={"width": width.neurons}, work=partial(run_cell, recipe=recipe, method=method)))
    return found
"""


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith(" s")} for row in csv.DictReader(file)]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """--ray gives workers that are far away, without Ray."""
    for command in (study_command, audit_command):
        monkeypatch.setattr(command, "choose_workers", lambda ray: Processes() if ray is None else Far())


@pytest.mark.usefixtures("far")
def test_a_study_gives_the_same_table_everywhere_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "widths.py").write_text(CELLS)
    for out, words in (("one", []), ("two", ["--workers", "2"]), ("far", ["--ray", "local"])):
        main(
            [
                "study",
                f"{tmp_path}/widths.py",
                "--out",
                f"{tmp_path}/{out}",
                "--seeds",
                "3",
                "4",
                "--device",
                "cpu",
                *words,
            ]
        )
        assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/{out}/table.md"
    tables = [table(tmp_path / out) for out in ("one", "two", "far")]
    assert [(row["width"], row["seed"]) for row in tables[0]] == [("8", "3"), ("10", "3"), ("8", "4"), ("10", "4")]
    assert tables[0] == tables[1] == tables[2]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "far" / "cells").rglob("*.*")}
    main(["study", f"{tmp_path}/widths.py", "--out", f"{tmp_path}/far", "--seeds", "3", "4", "--ray", "local"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "far" / "cells").rglob("*.*")} == times


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (None, "cannot be read"),
        ("def cells(:", "cells.py cannot be run: SyntaxError"),
        ("x = 1", "cannot be run: AttributeError"),
        ("def cells(): return []", r"needs a function cells\(\) that returns a list of Cell"),
        ("def cells(): return [1]", r"needs a function cells\(\) that returns a list of Cell"),
        (f"{CELLS}\nonce = cells\ndef cells(): return once() * 2", "gives two cells the name 8; their settings"),
    ],
)
def test_a_file_of_no_cells_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, hint: str
) -> None:
    if text is not None:
        (tmp_path / "cells.py").write_text(text)
    with pytest.raises(InputError, match=hint):
        study_command.load_cells(tmp_path / "cells.py")


MODELS = ["--per-class", "2", "--no-find-start", "--steps", "5", "--restarts", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "epochs"
    (folder / "later").mkdir(parents=True)
    for name, seed in (("one.pt", 0), ("later/two.pt", 1)):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
        torch.save(network.state_dict(), folder / name)
    (folder / "broken.pt").write_bytes(b"PK")
    return folder


def audit_all(models: Path, out: Path, *words: str) -> None:
    """One of the models is broken, and so the command ends with 2."""
    images = ["--images", "mnist-digits", "--data-dir", "installed"]
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--all", str(models), "--out", str(out), *images, *MODELS, *words])
    assert ended.value.code == 2


@pytest.mark.thorough
@pytest.mark.usefixtures("far")
def test_all_models_of_a_folder_are_audited_everywhere_alike_and_once(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit_all(models, tmp_path / "here")
    said = capsys.readouterr().out.splitlines()
    audit_all(models, tmp_path / "far", "--ray", "local")
    rows = table(tmp_path / "here")
    assert rows == table(tmp_path / "far")
    assert [row["model"] for row in rows] == ["broken.pt", "later/two.pt", "one.pt"]
    assert "broken.pt is no plain state dict" in rows[0]["status"] and rows[0]["verdict"] == ""
    assert rows[1]["verdict"] and rows[1]["images"] == "20"
    assert float(rows[1]["p of all"]) <= 1 and (rows[1]["strength"] == "") == (rows[1]["verdict"] != "leaks")
    assert said[-2] == f"table         {tmp_path}/here/table.csv"
    assert said[-1] == "not audited   1 of 3 models: broken.pt. The status says why."
    assert "held-out" in rows[1] and "null" not in rows[1]
    assert {path.name for path in (tmp_path / "far").iterdir()} == {"later-two", "one", "table.csv"}
    assert (tmp_path / "far" / "later-two" / "report.html").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*.json")}
    audit_all(models, tmp_path / "here")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*.json")} == times
    assert table(tmp_path / "here") == rows
    audit_all(models, tmp_path / "here", "--overwrite", "--seed", "1")
    assert all(path.stat().st_mtime_ns != time for path, time in times.items() if path.name == "candidates.json")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--all", "{models}", "--json"], "--weights and --json are for one model, not for --all."),
        (["one.pt", "--all", "{models}"], "Give one model, or --all and a folder of models"),
        (["--all", "{models}/nowhere"], "holds no model file"),
        (["--all", "{models}", "--workers", "0"], "workers must be at least 1, not 0."),
        ([], "Say which model: a file, a program or model.py:name; or --all and a folder of them."),
        (["{models}/one.pt", "--workers", "2"], "--ray and --workers go with --all"),
    ],
)
def test_what_does_not_go_together_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    images = ["--images", "mnist-digits", "--data-dir", "installed", "--out", f"{tmp_path}/out"]
    with pytest.raises(SystemExit) as ended:
        main(["audit", *(word.format(models=models) for word in words), *images, *MODELS])
    assert ended.value.code == 2
    assert hint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_study_of_which_nothing_can_be_measured_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "widths.py").write_text(CELLS.replace("toy-circle", "toy-circel"))
    with pytest.raises(SystemExit) as ended:
        main(["study", f"{tmp_path}/widths.py", "--out", f"{tmp_path}/study", "--device", "cpu"])
    assert ended.value.code == 2 and "Did you mean" in (tmp_path / "study" / "table.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cluster_of_this_machine_has_no_gpu_that_this_machine_has_not() -> None:
    """Of another it is not known: its nodes may come later."""
    with pytest.raises(InputError, match="no usable GPU"):
        RayCluster(address="local").check("cuda")


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "widths.py").write_text(CELLS)
    main(["study", f"{tmp_path}/widths.py", "--out", f"{tmp_path}/study", "--device", "cpu"])
    runs = [f"{tmp_path}/study/cells/{width}-0" for width in (8, 10)]
    (tmp_path / "study" / "cells" / "10-0" / "scores.json").unlink()
    capsys.readouterr()
    main(["compare", *runs, "--csv", f"{tmp_path}/table.csv", "--page", f"{tmp_path}/table.html"])
    lines = {line.split("  ")[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert lines["run"] == runs and lines["widths"] == ["8", "10"] and lines["seed"] == ["0", "0"]
    assert lines["images"] == ["10", "-"] and lines["steps"] == ["5", "5"]
    rows = table(tmp_path)
    assert [row["run"] for row in rows] == runs and (rows[0]["start"], rows[1]["recovered"]) == ("unknown", "")
    main(["score", runs[0]])
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict"))
    assert said.split(None, 1)[1].startswith(rows[0]["verdict"]) and rows[0]["verdict"] and not rows[1]["verdict"]
    (tmp_path / "study" / "cells" / "10-0" / "candidates.json").unlink()
    main(["compare", *runs])
    assert "not reconstructed" in capsys.readouterr().out
    page = (tmp_path / "table.html").read_text()
    assert page.count("<td>") == 2 * page.count('<th scope="row">') and "2 runs side by side" in page
    for words, hint in (([runs[0], runs[0]], "The runs must differ"), ([str(tmp_path)], "is no run")):
        with pytest.raises(SystemExit):
            main(["compare", *words])
        assert hint in capsys.readouterr().err
