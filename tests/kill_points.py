"""Kills a command before each of its file operations, and in the middle of each write, and then runs it again.

    python tests/kill_points.py SCENARIO FOLDER {kill | full} [EVERY [FIRST]]

A program of its own, because it forks: PyTorch's threads do not survive that, so this process must never compute. It
prints how many operations there were; what is not as it must be is an `AssertionError`.

kill: dies at operation k, for every k; the same command must then give the same files as if nothing had been. A search
does each trial once, and those that had ended stay; the processes that it has started end with it.
EVERY: 1 tries all points, 20 each twentieth, beginning with FIRST.
full: the disk has no room from write k on; the command must say so in one sentence, and leave all that was there.
"""

import ctypes
import errno
import gc
import importlib
import json
import os
import re
import shutil
import stat
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from exhume.attack.methods import Exhume
from exhume.cli import main
from exhume.commands import run as commands
from exhume.presets import TRAININGS
from exhume.problems import Selection, load_problem
from exhume.records import PART
from exhume.runs import owners_look, pipeline, start
from exhume.runs.claim import CLAIM

KILLED = 137
BECOME_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): what a killed child has started becomes this process's own child."""
ORPHANS_SECONDS = 30.0
"""Within which what a killed command has started must have ended: a worker that still imports PyTorch needs a few."""
TRIAL_STATE, TRIAL_ATTRIBUTE, ENDED = 6, 8, (1, 2)
"""Of Optuna's journal: the numbers of two operations, and of the states complete and pruned."""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
UNLIKE = {"provenance", "seconds", "sha256"}
"""What differs between two records of the same results: dates, times, and the digest of these."""

TRAIN = "train data.npz run --widths 12 --epochs 4 --lr 0.1 --evaluate-every 2 --device cpu"
OTHER = TRAIN.replace("0.1", "0.2")
RECONSTRUCT = "reconstruct run --steps 3 --per-class 3 --no-find-start --device cpu"
MORE = RECONSTRUCT.replace("3", "4", 1)
SEARCH = "search run --trials 3 --steps 3 --per-class 3 --keep 1 --device cpu"
OTHER_SEARCH = SEARCH.replace("--steps 3", "--steps 2")
AUDIT = "audit model.npz --images data.npz --out run --steps 3 --restarts 1 --no-find-start --device cpu"
DEMO = "demo --out run --device cpu"
FIND = "find-start run --ways all-seeds --last-seed 40 --threads 1"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command, and those that were run in its folder before (`before`)."""

    command: str
    before: Sequence[str] = field(default=())
    stages: bool = False
    """Whether it is made of several stages, so that what was there goes when an earlier one has ended."""
    workers: bool = False
    """Whether processes of its own do the work, so that its operations come in another order each time."""


SCENARIOS = {
    "train": Scenario(command=TRAIN),
    "train-overwrite": Scenario(command=f"{OTHER} --overwrite", before=(TRAIN, RECONSTRUCT, "score run", "report run")),
    "reconstruct": Scenario(command=RECONSTRUCT, before=(TRAIN,)),
    "reconstruct-overwrite": Scenario(
        command=f"{MORE} --overwrite", before=(TRAIN, RECONSTRUCT, "score run", "report run")
    ),
    "score": Scenario(
        command="score run", before=(TRAIN, RECONSTRUCT, "score run", "report run", f"{MORE} --overwrite")
    ),
    "score-again": Scenario(command="score run", before=(TRAIN, RECONSTRUCT, "score run", "report run")),
    "report": Scenario(command="report run", before=(TRAIN, RECONSTRUCT, "score run")),
    "find-start": Scenario(command=FIND, before=(TRAIN,)),
    "search": Scenario(command=SEARCH, before=(TRAIN,)),
    "search-overwrite": Scenario(command=f"{SEARCH} --overwrite", before=(TRAIN, OTHER_SEARCH, "score run")),
    "search-workers": Scenario(command=f"{SEARCH} --workers 2", before=(TRAIN,), workers=True),
    "demo": Scenario(command=DEMO),
    "demo-again": Scenario(command=f"{DEMO} --seed 1", before=(DEMO,), stages=True),
    "audit": Scenario(command=AUDIT),
    "audit-overwrite": Scenario(command=f"{AUDIT} --steps 2 --overwrite", before=(AUDIT,), stages=True),
    "audit-defend": Scenario(command=f"{AUDIT} --defend"),
}


IMPORTED_LATE = (
    "torch._dynamo",
    "kornia.metrics",
    "scipy.optimize",
    "scipy.stats",
    "matplotlib.figure",
    "jinja2",
    "optuna",
)
IMPORTED_LATE += ("exhume.attack.find_start.all_seeds", "exhume.attack.find_start.kernels", "exhume.report", "tyro")
IMPORTED_LATE += (
    "exhume.commands.audit",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "optuna.storages.journal",
    "optuna.samplers",
    "optuna.pruners",
)


def prepare(folder: Path) -> None:
    """Tiny data, and the real commands made short; every state is saved at once."""
    for name in IMPORTED_LATE:  # once, and not in every child
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 5, 5), dtype=np.uint8)
    np.savez(
        folder / "data.npz",
        images=images[:8],
        labels=np.arange(8) % 2,
        held_out=images[8:],
        held_out_labels=np.arange(8) % 2,
    )
    shapes = {"0.weight": (12, 25), "0.bias": (12,), "2.weight": (1, 12), "2.bias": (1,)}
    np.savez(folder / "model.npz", **{name: random.normal(0, 0.2, shape) for name, shape in shapes.items()})
    pipeline.SAVE_EVERY = start.SAVE_EVERY = -1.0  # type: ignore[misc]
    demo = TRAININGS["demo"]
    training = replace(demo.training, epochs=4, evaluate_every=2)
    TRAININGS["demo"] = replace(demo, per_class=1, network=replace(demo.network, widths=(12,)), training=training)
    load_problem(demo.problem, Selection(per_class=1))  # which takes a second, and is kept
    owners_look.examine = partial(owners_look.examine, steps=3)  # type: ignore[assignment]
    commands.Exhume = lambda seed, steps: Exhume(seed=seed, steps=3, per_class=1)  # type: ignore[misc, assignment]


class Operations:
    """Counts what a process does to the files beneath a folder, and does something at one of them."""

    def __init__(self, folder: Path, at: int, act: Callable[[], object] | None, *, writes_only: bool) -> None:
        self.folder, self.at, self.act, self.writes_only = str(folder), at, act, writes_only
        self.count, self.half = 0, False
        self.write, self.sync = os.write, os.fsync

    def begin(self) -> None:
        os.write, os.fsync = self._write, self._sync  # type: ignore[assignment]
        if not self.writes_only:
            sys.addaudithook(self._hear)

    def reached(self) -> bool:
        self.count += 1
        return self.count >= self.at if self.writes_only else self.count == self.at

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and self._within(arguments[0]) and self.reached() and self.act:
            self.act()

    def _write(self, file: int, content: bytes) -> int:
        if not self._within(_path(file)):
            return self.write(file, content)
        if self.reached() and self.act:
            self.act()
        if not self.writes_only and self.reached() and self.act:
            self.write(file, content[: len(content) // 2])
            self.act()
        return self.write(file, content)

    def _sync(self, file: int) -> None:
        # that a folder's names cannot be brought to the disk is no failure: they are there already
        within = self._within(_path(file)) and not (self.writes_only and stat.S_ISDIR(os.fstat(file).st_mode))
        if within and self.reached() and self.act:
            if not self.writes_only and os.fstat(file).st_size > 3 and str(_path(file)).endswith(".journal"):
                os.ftruncate(file, os.fstat(file).st_size - 3)  # half a line
            self.act()
        self.sync(file)

    def _within(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)  # noqa: PTH100


def _path(file: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115
    except OSError:
        return ""


def die() -> NoReturn:
    os._exit(KILLED)


def full() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def child(folder: Path, command: str, operations: Operations | None = None) -> tuple[int, str, int]:
    """Runs a command in a process of its own; gives its exit code, what it said, and the number of operations."""
    said, counted = folder / "said", folder / "counted"
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        count = int(counted.read_text()) if counted.exists() else 0
        counted.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), said.read_text(), count
    code = 1
    try:
        os.chdir(folder)
        with said.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        torch.set_num_threads(1)
        if operations:
            operations.begin()
        main(command.split())
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if operations:
        with counted.open("w") as file:
            file.write(str(operations.count))
    os._exit(code)


def wait_for_orphans() -> None:
    """Waits until all that a killed command has started is gone."""
    end = time.monotonic() + ORPHANS_SECONDS
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        assert pid or time.monotonic() < end, "a process of the killed command lives on"
        time.sleep(0 if pid else 0.02)


def ended_trials(run: Path) -> dict[int, float]:
    """The seconds of the trials that have ended, by number; each may have ended once."""
    found: dict[int, float] = {}
    seconds: dict[int, float] = {}
    journal = run / "search.journal"
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            told = json.loads(line)
        except ValueError:  # cut short by the kill
            continue
        if told["op_code"] == TRIAL_ATTRIBUTE and "seconds" in told["user_attr"]:
            seconds[told["trial_id"]] = told["user_attr"]["seconds"]
        if told["op_code"] == TRIAL_STATE and told["state"] in ENDED:
            assert told["trial_id"] not in found, (told, "has ended twice")
            found[told["trial_id"]] = seconds[told["trial_id"]]
    return found


def contents(run: Path) -> dict[str, Any]:
    """What two runs of the same command have in common: every file, without dates, times and Optuna's journal."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
            if path.name == "search.json":  # in the order in which they have ended
                found[name]["trials"].sort(key=lambda trial: trial["number"])
        elif path.is_file():
            found[name] = None if path.suffix in (".journal", ".html") else path.read_bytes()
    return found


def timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key not in UNLIKE}
    if isinstance(content, str):
        return re.sub(r"[\d.]+ s\b", "some seconds", content)
    return [timeless(value) for value in content] if isinstance(content, list) else content


def fresh(base: Path, folder: Path) -> Path:
    shutil.rmtree(folder / "run", ignore_errors=True)
    if base.exists():
        shutil.copytree(base, folder / "run")
    return folder / "run"


def check(name: str, folder: Path, mode: str, every: int = 1, first: int = 1) -> int:
    """Tries the points of a scenario; returns how many were tried."""
    scenario, run, base = SCENARIOS[name], folder / "run", folder / "base"
    assert ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1) == 0
    prepare(folder)
    for command in scenario.before:
        code, said, _ = child(folder, command)
        assert code == 0, (command, said)
    if run.exists():
        run.rename(base)
    fresh(base, folder)
    writes_only = mode == "full"
    code, said, count = child(folder, scenario.command, Operations(run, 0, None, writes_only=writes_only))
    assert code == 0, said
    assert count > 0
    expected = contents(run)
    old = {} if scenario.stages else raw(base)
    tried = 0
    for at in range(first, count + 1, every):
        fresh(base, folder)
        act = full if writes_only else die
        code, said, _ = child(folder, scenario.command, Operations(run, at, act, writes_only=writes_only))
        wait_for_orphans()
        if scenario.workers and code == 0:  # this time it was done in fewer operations
            continue
        tried += 1
        if writes_only:
            check_full(run, old, code, said, at)
        else:
            assert code == KILLED, (at, code, said)
        check_again(scenario, folder, expected, at)
    return tried


def check_again(scenario: Scenario, folder: Path, expected: dict[str, Any], at: int) -> None:
    """Gives the command again, which must end with what is expected, and do no trial again that has ended."""
    run = folder / "run"
    kept = {} if "--overwrite" in scenario.command else ended_trials(run)
    code, said, _ = child(folder, scenario.command)
    assert code == 0, (at, said)
    wait_for_orphans()
    found = contents(run)
    assert found.keys() == expected.keys(), (at, found.keys() ^ expected.keys())
    for file, content in expected.items():
        assert found[file] == content, (at, file, content, found[file])
    trials = ended_trials(run)
    assert kept.items() <= trials.items(), (at, kept, trials)
    if "search.json" in found:
        assert sorted(trials) == [trial["number"] for trial in found["search.json"]["trials"]], (at, trials)


def raw(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def check_full(run: Path, old: dict[str, bytes], code: int, said: str, at: int) -> None:
    """One sentence; and of what was there nothing is gone, but for the memory of a search that is replaced."""
    lines = said.strip().splitlines()
    assert code == 2 and lines[-1].startswith("exhume: ") and lines[-1].endswith("No space left on device."), (at, said)
    assert "Traceback" not in said, (at, said)
    now = raw(run) if run.exists() else {}
    assert not [name for name in now if PART in name or CLAIM in name], (at, now.keys())
    for name, content in old.items():
        if not name.startswith(("search.", "trials/")):
            assert now.get(name) == content, (at, name)


if __name__ == "__main__":
    print(check(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3], *map(int, sys.argv[4:])))  # noqa: T201
