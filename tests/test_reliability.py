"""What docs/reliability.md promises: no kill and no full disk loses work, signals end a command as Ctrl-C does.

The kill tests try every file operation of a command (tests/kill_points.py). The default suite has those that take
seconds; the others are marked slow.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import exhume
from exhume.cli import main
from kill_points import SCENARIOS

HERE = Path(__file__).parent
QUICK = (("train", "kill"), ("reconstruct", "kill"), ("score", "kill"), ("train", "full"), ("reconstruct", "full"))
SAMPLED = (("audit", "kill", 17), ("demo", "kill", 22), ("audit", "full", 8), ("demo", "full", 10))
"""Commands of so many operations that the default suite tries each seventeenth, or so, only."""
POINTS = [
    pytest.param(name, mode, 1, marks=[] if (name, mode) in QUICK else pytest.mark.slow, id=f"{name}-{mode}")
    for name in SCENARIOS
    for mode in ("kill", "full")
]
POINTS += [pytest.param(*row, id=f"some of {row[0]}-{row[1]}") for row in SAMPLED]


@pytest.mark.skipif(sys.platform != "linux", reason="tells the files of a process by /proc")
@pytest.mark.parametrize(("name", "mode", "every"), POINTS)
def test_a_command_that_is_stopped_anywhere_goes_on(name: str, mode: str, every: int, tmp_path: Path) -> None:
    words = [sys.executable, str(HERE / "kill_points.py"), name, str(tmp_path), mode, str(every), str(1 + every // 2)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 2


# ---- Signals


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (16, 5, 5), dtype=np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "data.npz", images=images[:8], labels=labels, held_out=images[8:], held_out_labels=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = "train data.npz run --widths 12 --lr 0.01 --device cpu"
RECONSTRUCT = "reconstruct run --per-class 3 --no-find-start --device cpu"
LONG = {"train": f"{TRAIN} --epochs 100000000 --evaluate-every 500", "reconstruct": f"{RECONSTRUCT} --steps 100000"}
WATCHED = """
from contextlib import contextmanager
from pathlib import Path
from exhume.attack import reconstruct
from exhume.cli import main
from exhume.runs import pipeline

reconstruct.KEEP_AFTER, pipeline.SAVE_EVERY, original = 0.1, 1e9, pipeline.saving


@contextmanager
def saving(save, every):
    with original(save, every) as keep:
        kept = iter([None, Path("newer").touch])

        def told(state):
            keep(state)
            (next(kept, None) or (lambda: None))()

        yield told


pipeline.saving = saving
main()
"""
"""The command line, where only the first state is saved in time; the file `newer` says that there is another one."""
STATES = {"train": "run/training-state.safetensors", "reconstruct": "run/reconstruction-state.safetensors"}


def until_there(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300  # of a machine that is very busy; an idle one needs five
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("command", LONG)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_with_its_state_saved(data: Path, command: str, number: signal.Signals) -> None:
    if command == "reconstruct":
        main(f"{TRAIN} --epochs 4".split())
    words = [sys.executable, "-c", WATCHED, *LONG[command].split()]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until_there(Path("newer"), process)
        first = Path(STATES[command]).read_bytes()
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    sentence = {"train": "the training", "reconstruct": "the reconstruction"}[command]
    assert said.strip().splitlines()[-1] == f"exhume: interrupted; the same command goes on where {sentence} was"
    assert Path(STATES[command]).read_bytes() != first  # saved as it was at the end, not as it was first
    assert not list(Path("run").glob(".exhume*"))


def test_signals_are_as_they_were_after_a_command(data: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    main(f"{TRAIN} --epochs 4".split())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


# ---- Output that nobody reads


@pytest.mark.parametrize("words", ["problems", "--help", f"{TRAIN} --epochs 40"])
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_pipe_ends_quietly(data: Path, words: str, closed: str) -> None:
    Path("zoo").mkdir()
    command = [sys.executable, "-c", "from exhume.cli import main; main()", *words.split()]
    reading, writing = os.pipe()
    os.close(reading)
    other = "stderr" if closed == "stdout" else "stdout"
    streams = {closed: writing, other: subprocess.PIPE}
    done = subprocess.run(command, **streams, text=True, timeout=300, check=False)  # type: ignore[call-overload]
    os.close(writing)
    assert "Traceback" not in (getattr(done, other) or "") and "Broken pipe" not in (getattr(done, other) or "")
    if words.startswith("train data"):
        assert done.returncode == 0 and Path("run/training.json").exists()


def test_a_path_is_printed_letter_by_letter(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = "a[/b]:smile:[red]"
    main([*TRAIN.replace("run", run, 1).split(), "--epochs", "4"])
    main(["reconstruct", run, "--per-class", "3", "--steps", "2", "--no-find-start"])
    main(["score", run])
    capsys.readouterr()
    main(["report", run])
    assert capsys.readouterr().out == f"{run}/report.html\n"


# ---- The same again


def test_a_finished_training_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"{TRAIN} --epochs 4".split())
    assert "finished already" not in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    main(f"{TRAIN} --epochs 4".split())
    assert "This training was finished already, on " in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_stands_in_the_record(data: Path, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        main(f"{TRAIN} --epochs 4 --threads {threads}".split())
        assert exhume.read_training(Path("run")).provenance.threads == threads
    finally:
        torch.set_num_threads(before)
