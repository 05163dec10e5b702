"""Numbers and resources: how far float32 is from float64, and that long work grows neither memory nor anything else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from exhume.attack.methods import Exhume
from exhume.attack.optimisation import Stepper
from exhume.attack.search import Guess
from exhume.attack.target import make_target
from exhume.checkpoint import Checkpoint
from exhume.defence.training import Trained, TrainingConfig, train
from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, load_problem

NETWORK = NetworkConfig(widths=(50,))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=2, data_dir="installed"))


def trained(problem: Problem, dtype: str) -> Trained:
    config = TrainingConfig(epochs=200, lr=0.05, evaluate_every=200, dtype=dtype)  # type: ignore[arg-type]
    return train(problem, config, network=NETWORK)


@pytest.fixture(scope="module")
def checkpoint(problem: Problem) -> Checkpoint:
    return trained(problem, "float64").checkpoint


def test_training_in_float32_is_near_that_in_float64(problem: Problem, checkpoint: Checkpoint) -> None:
    """The same seed draws the same weights; after 200 steps they differ by rounding alone."""
    single = trained(problem, "float32").checkpoint
    for name, weight in checkpoint.weights.items():
        assert float((single.weights[name].double() - weight.double()).abs().max()) < 1e-4 * float(weight.abs().max())


@pytest.mark.parametrize("steps", [1, 30])
def test_a_search_in_float32_is_near_that_in_float64(problem: Problem, checkpoint: Checkpoint, steps: int) -> None:
    """From the same images: the first guess of a search is drawn in its own precision, which gives other numbers."""
    images, labels = problem.images, problem.labels.long()
    guess = Guess(
        images=images, labels=labels, multipliers=torch.ones(len(images)), shares=torch.zeros(len(images), 10)
    )
    ended = []
    for dtype in ("float32", "float64"):
        method = Exhume(steps=steps, restarts=1, dtype=dtype)  # type: ignore[arg-type]
        target = make_target(checkpoint).moved_to(torch.device("cpu"), getattr(torch, dtype))
        search = method.prepared(target)(torch.Generator(), guess=guess)
        stepper = Stepper([search], torch.device("cpu"))
        for step in range(steps):
            stepper.take(step)
        ended.append((float(stepper.residuals[0]), search.iterate().images.double()))
    (single, one), (double, other) = ended
    assert single == pytest.approx(double, rel=1e-2)  # the weighting of directions follows from rounded singular values
    assert float((one - other).abs().max()) < 0.02


# ---- Long work: nothing grows

GROWTH = """
import os, sys, threading
from pathlib import Path
import numpy as np

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def left():
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task")), len(children)
"""
STEPS = """
from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.checkpoint import load_checkpoint
checkpoint, seen = load_checkpoint("run"), []

def told(event):
    if event.stage == "reconstruct":
        seen.append((event.step, memory()))

def search(steps):
    reconstruct(checkpoint, Exhume(steps=steps, restarts=1, per_class=3), progress_callback=told)

search(300)
seen.clear()
search(int(sys.argv[1]))
early = max(size for step, size in seen if step <= int(sys.argv[1]) // 5)
print((seen[-1][1] - early) / 2**20)
"""
TRIALS = """
from exhume.attack.methods import Exhume
from exhume.runs.tune import search_run
from exhume.tuning.study import SweepConfig
run, method, count = Path("run"), Exhume(steps=1, restarts=1, per_class=1), int(sys.argv[1])
search_run(run, SweepConfig(trials=5), method, device="cpu")
before = left()
search_run(run, SweepConfig(trials=count), method, device="cpu")
after = left()
names = sorted(path.name for path in run.iterdir())
trials = len(list((run / "trials").iterdir()))
print(after == before or (before, after), trials <= 3 and not [name for name in names if name.startswith(".")] or names)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 5, 5), dtype=np.uint8)
    arrays = {"images": images[:8], "held_out": images[8:], "labels": np.arange(8) % 2}
    np.savez(tmp_path / "data.npz", **arrays, held_out_labels=arrays["labels"])  # type: ignore[arg-type]
    printed(
        tmp_path,
        "from exhume.cli import main; main(sys.argv[2].split())",
        0,
        "train data.npz run --widths 12 --epochs 4",
    )
    return tmp_path


def printed(folder: Path, code: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH + code, *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@linux
@pytest.mark.slow
def test_ten_thousand_steps_need_no_more_memory_than_two_thousand(run: Path) -> None:
    assert float(printed(run, STEPS, 10_000)) < 8  # MiB; a copy of a step's tensors kept each time would be 100


@linux
@pytest.mark.parametrize("trials", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_a_search_leaves_no_process_thread_handle_or_file(run: Path, trials: int) -> None:
    assert printed(run, TRIALS, trials) == "True True"
