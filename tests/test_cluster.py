"""On a real Ray cluster of three nodes on this machine: what dies is done again, and every trial is there once.

Not in the default suite: `pytest -n 0 -m cluster tests/test_cluster.py`.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exhume.attack.methods import Exhume
from exhume.candidates import Candidates
from exhume.checkpoint import load_checkpoint
from exhume.cli import main
from exhume.errors import InputError
from exhume.progress import no_display
from exhume.runs.schema import SearchRecord, read_record
from exhume.runs.tune import search_run
from exhume.tuning import study
from exhume.tuning.study import SweepConfig, Trial
from exhume.tuning.workers.ray_cluster import RETRIES, RayCluster

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]

EXHUME = Path(sys.executable).with_name("exhume")
SHORT = Exhume(steps=30, per_class=3, restarts=1)
MANY = SweepConfig(trials=12, sampler="random", workers=3)
WORDS = ["--sampler=random", "--workers=3", "--steps=30", "--per-class=3", "--device=cpu", "--threads=1"]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The cluster, and the nodes that can be removed."""

    cluster: Any
    nodes: list[Any]

    @property
    def workers(self) -> RayCluster:
        return RayCluster(address=self.cluster.address)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    torch.set_num_threads(1)
    # the workers find this file's functions in what is sent, as they would those of a notebook
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield Nodes(cluster=cluster, nodes=[cluster.add_node(num_cpus=1) for _ in range(2)])
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["train", "toy-circle", str(run), "--widths", "8", "--epochs", "6", "--per-class", "5", "--device", "cpu"])
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def local(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchRecord:
    """The same search in one process."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("local") / "run"))
    return search_run(run, replace(MANY, workers=1), SHORT, keep=9, device="cpu")


def timeless(trials: list[Trial]) -> list[Trial]:
    return sorted((replace(trial, seconds=0.0) for trial in trials), key=lambda trial: trial.number)


def check_equal(found: SearchRecord, local: SearchRecord, run: Path) -> None:
    """Every trial once, with the values of the local search, and the candidates of the best."""
    assert [trial.number for trial in timeless(found.trials)] == list(range(MANY.trials))
    assert timeless(found.trials) == timeless(local.trials)
    assert (found.best, found.kept) == (local.best, local.kept)
    assert {path.name for path in (run / "trials").iterdir()} == {str(number) for number in local.kept}


def test_a_search_is_the_same_as_in_one_process(nodes: Nodes, run: Path, local: SearchRecord) -> None:
    found = search_run(run, MANY, SHORT, keep=9, device="cpu", workers=nodes.workers)
    check_equal(found, local, run)
    assert found.provenance.device == "ray, cpu"
    assert not ray.is_initialized()


def test_the_command_gives_the_same_with_ray_as_without(tmp_path: Path) -> None:
    """By the defaults, where each trial follows from all before it: the sampler learns, and the median stops some."""
    small = ["--widths", "40", "--epochs", "20", "--per-class", "2", "--data-dir", "installed", "--device", "cpu"]
    main(["train", "mnist-digits", str(tmp_path / "trained"), *small])
    found, images = [], []
    for place, words in (("here", []), ("there", ["--ray", "local"])):
        run = Path(shutil.copytree(tmp_path / "trained", tmp_path / place))
        command = [str(EXHUME), "search", str(run), "--trials=14", "--steps=30", "--device=cpu", "--threads=1", *words]
        # in a process of its own: after a local cluster Ray has a token, which the other cluster here does not know
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        found.append(read_record(run / "search.json", SearchRecord))
        images.append((run / "candidates.safetensors").read_bytes())
    here, there = found
    assert [trial.number for trial in there.trials] == list(range(14))
    assert timeless(there.trials) == timeless(here.trials)
    assert {trial.state for trial in here.trials} == {"complete", "pruned"}
    assert (there.best, there.kept) == (here.best, here.kept) and images[0] == images[1]


def bulky(item: int, _: object) -> tuple[str, bytes]:
    """Says where it was done, and leaves there what is too large to travel with that."""
    time.sleep(0.5)  # so that all nodes get some
    return ray.get_runtime_context().get_node_id(), bytes([item]) * 1_000_000


def check_held(done: Any, nodes: set[str]) -> None:
    """These nodes and no others hold the bulk; Ray tells it a little later."""
    (_, bulk), end = done.fetch.args, time.monotonic() + 10
    while (held := set(ray.experimental.get_object_locations([bulk])[bulk]["node_ids"])) != nodes:
        assert len(held) < len(nodes) and time.monotonic() < end
        time.sleep(0.05)


def test_a_bulk_stays_where_it_was_made_until_it_is_fetched(nodes: Nodes) -> None:
    made, here = set(), nodes.cluster.head_node.node_id
    with closing(nodes.workers.map(bulky, range(6), count=3, device="cpu", display=no_display)) as results:
        for done in results:
            made.add(done.result)
            check_held(done, {done.result})
            assert done.fetch() == bytes([done.item]) * 1_000_000
            check_held(done, {done.result, here})
    assert made - {here}


def test_a_bulk_whose_node_is_removed_before_it_is_fetched_is_made_again(nodes: Nodes) -> None:
    with closing(nodes.workers.map(bulky, range(6), count=3, device="cpu", display=no_display)) as results:
        done = next(done for done in results if done.result != nodes.cluster.head_node.node_id)
        gone = next(node for node in nodes.nodes if node.node_id == done.result)
        nodes.cluster.remove_node(gone, allow_graceful=False)
        nodes.nodes[nodes.nodes.index(gone)] = nodes.cluster.add_node(num_cpus=1)
        assert done.fetch() == bytes([done.item]) * 1_000_000


def deadly(number: int, method: Any, candidates: Candidates, seconds: float, *, marks: Path, times: int) -> Any:
    """Kills its own worker, `times` times for the trial 4; what a trial keeps is made last."""
    if number == 4:
        tries = len(list(marks.iterdir()))
        (marks / str(tries)).touch()
        if tries < times:
            os.kill(os.getpid(), signal.SIGKILL)
    return candidates.images


def test_a_trial_whose_worker_is_killed_is_done_again(
    nodes: Nodes, tmp_path: Path, trained: Path, local: SearchRecord
) -> None:
    received: list[int] = []
    rounds = study.sweep(
        load_checkpoint(trained),
        MANY,
        SHORT,
        journal=tmp_path / "journal",
        first=[timeless(local.trials)[0].settings],
        device="cpu",
        workers=nodes.workers,
        keep=partial(deadly, marks=marks(tmp_path), times=2),
        receive=lambda number, images: received.append(number),
        most=99,
    )
    trials = list(rounds)[-1]
    assert [trial.value for trial in timeless(trials)] == [trial.value for trial in timeless(local.trials)]
    assert sorted(received) == list(range(MANY.trials))
    assert len(list((tmp_path / "marks").iterdir())) == 3


def marks(folder: Path) -> Path:
    (folder / "marks").mkdir()
    return folder / "marks"


def always_deadly(item: int, _: object) -> tuple[int, None]:
    os.kill(os.getpid(), signal.SIGKILL)
    return item, None


def refusing(item: int, _: object) -> tuple[int, None]:
    raise InputError(f"{item} is refused.")


def test_a_task_that_always_kills_its_worker_ends_in_a_sentence(nodes: Nodes) -> None:
    with pytest.raises(InputError, match=f"Ray gave up a task after {RETRIES} retries"):
        list(nodes.workers.map(always_deadly, [1], count=1, device="cpu", display=no_display))
    with pytest.raises(InputError, match=r"^[78] is refused\.$"):
        list(nodes.workers.map(refusing, [7, 8], count=2, device="cpu", display=no_display))


def test_a_node_that_is_removed_loses_nothing(nodes: Nodes, run: Path, local: SearchRecord) -> None:
    gone = nodes.nodes.pop()

    def remove(event: Any) -> None:
        if event.step == 2:
            nodes.cluster.remove_node(gone, allow_graceful=False)

    found = search_run(run, MANY, SHORT, keep=9, device="cpu", workers=nodes.workers, progress_callback=remove)
    check_equal(found, local, run)
    nodes.nodes.append(nodes.cluster.add_node(num_cpus=1))


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_a_driver_that_is_killed_goes_on(nodes: Nodes, run: Path, local: SearchRecord, where: str) -> None:
    address = nodes.cluster.address if where == "cluster" else "local"
    command = [str(EXHUME), "search", str(run), "--trials", "12", "--keep", "9", "--ray", address, *WORDS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        end = time.monotonic() + 60
        while not (run / "search.json").exists() or len(read_record(run / "search.json", SearchRecord).trials) < 3:
            assert driver.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        driver.kill()
    before = read_record(run / "search.json", SearchRecord).trials
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = read_record(run / "search.json", SearchRecord)
    assert 3 <= len(before) < 12 and found.trials[: len(before)] == before
    check_equal(found, local, run)


CELLS = """
from functools import partial
from exhume import Exhume, NetworkConfig, Selection, TrainingConfig
from exhume.runs.cells import Cell, Recipe, run_cell


def cells():
    method = Exhume(steps=5, restarts=1)
    recipes = {width: Recipe(
        problem="toy-circle",
        selection=Selection(per_class=5),
        training=TrainingConfig(epochs=20),
        network=NetworkConfig(widths=(width,)),
    ) for width in (8, 10, 12)}
    return [Cell(setting={"width": n}, work=partial(run_cell, recipe=of, method=method)) for n, of in recipes.items()]
"""


def table(out: Path) -> list[dict[str, str]]:
    """The rows of a table, without their times."""
    with (out / "table.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith(" s")} for row in csv.DictReader(file)]


def test_a_study_is_the_same_as_in_one_process(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "widths.py").write_text(CELLS)
    for out, words in (("here", []), ("there", ["--ray", nodes.cluster.address, "--workers", "3"])):
        main(["study", f"{tmp_path}/widths.py", "--out", f"{tmp_path}/{out}", "--device", "cpu", *words])
    assert table(tmp_path / "there") == table(tmp_path / "here")
    assert [row["width"] for row in table(tmp_path / "here")] == ["8", "10", "12"]
    for width in (8, 10, 12):
        name = f"cells/{width}-0/candidates.safetensors"
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "cells").rglob("*.*")}
    main(["study", f"{tmp_path}/widths.py", "--out", f"{tmp_path}/there", "--ray", nodes.cluster.address])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "cells").rglob("*.*")} == before


def test_an_audit_of_a_folder_is_the_same_as_in_one_process(nodes: Nodes, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for seed in range(2):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
        torch.save(network.state_dict(), models / f"epoch-{seed}.pt")
    (models / "broken.pt").write_bytes(b"PK")
    words = ["--images", "mnist-digits", "--per-class", "2", "--data-dir", "installed", "--no-find-start"]
    words += ["--steps", "5", "--restarts", "1", "--device", "cpu"]
    tables = []
    for out, more in (("here", []), ("there", ["--ray", nodes.cluster.address, "--workers", "3"])):
        with pytest.raises(SystemExit, match="2"):  # one is broken
            main(["audit", "--all", str(models), "--out", f"{tmp_path}/{out}", *words, *more])
        tables.append(table(tmp_path / out))
        assert all((tmp_path / out / f"epoch-{seed}" / "report.html").exists() for seed in range(2))
    assert tables[0] == tables[1] and len(tables[0]) == 3
    before, after = (json.loads((tmp_path / o / "epoch-1" / "audit.json").read_text()) for o in ("here", "there"))
    assert [image["ncc"] for image in before["images"]] == [image["ncc"] for image in after["images"]]
