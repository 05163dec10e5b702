"""What docs/reliability.md promises: no kill and no full disk loses work, signals end a command as Ctrl-C does.

The kill tests try every file operation of a command (tests/kill_points.py). The default suite tries some of them.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import exhume
from exhume import cli
from exhume.cli import main
from kill_points import SCENARIOS

HERE = Path(__file__).parent
SAMPLED = (("train", "kill", 9), ("reconstruct", "kill", 7), ("train", "full", 5), ("audit", "kill", 40))
"""Commands of so many operations that the default suite tries each ninth, or so, only."""
THOROUGH = (
    *(("train", "kill", 1), ("reconstruct", "kill", 1), ("score", "kill", 1)),
    *(("train", "full", 1), ("reconstruct", "full", 1), ("audit", "full", 10)),
    *(("demo", "kill", 30), ("search-workers", "kill", 90)),
)
"""The same, with a mark of its own; where it says 1, each operation. What is in neither list is marked slow."""
POINTS = [pytest.param(*row, id=f"some of {row[0]}-{row[1]}") for row in SAMPLED]
POINTS += [pytest.param(*row, marks=pytest.mark.thorough, id=f"{row[0]}-{row[1]}") for row in THOROUGH]
POINTS += [
    pytest.param(name, mode, 1, marks=pytest.mark.slow, id=f"all of {name}-{mode}")
    for name in SCENARIOS
    for mode in ("kill", "full")
    if (name, mode, 1) not in THOROUGH
]


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
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGHUP, signal.SIGINT))],
)
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


EACH_OF = """
import os, sys
from exhume.cli import main

out = os.dup(1)
for words in sys.argv[1:]:
    os.dup2(out, 1)
    try:
        main(words.split())
    except SystemExit as ended:
        print(words, "ends with", ended.code, file=sys.stderr)
"""
"""The command line, several times: importing PyTorch for each command would take longer than its work."""
AUDIT = "audit model.npz --images data.npz --steps 3 --restarts 1 --no-find-start --device cpu"
CELLS = """
from functools import partial
from exhume import Exhume, NetworkConfig, Selection, TrainingConfig
from exhume.runs.cells import Cell, Recipe, run_cell

def cells():
    network, training = NetworkConfig(widths=(10,)), TrainingConfig(epochs=2)
    recipe = Recipe(problem="toy-circle", network=network, selection=Selection(per_class=3), training=training)
    return [Cell(setting={"width": 10}, work=partial(run_cell, recipe=recipe, method=Exhume(steps=2, per_class=3)))]
"""


@pytest.fixture
def models(data: Path) -> Path:
    """Also a run, a model, a folder of models, and a file of cells."""
    main(f"{TRAIN} --epochs 4".split())
    main(f"{RECONSTRUCT} --steps 2".split())
    main(["score", "run"])
    shutil.copytree("run", "second")
    random, shapes = np.random.default_rng(0), {"0.weight": (12, 25), "0.bias": 12, "2.weight": (1, 12), "2.bias": 1}
    weights = {name: random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    Path("models").mkdir()
    for path in ("model.npz", "models/model.npz"):
        np.savez(path, **weights)  # type: ignore[arg-type]
    Path("cells.py").write_text(CELLS)
    Path("arguments").write_text("Main.py --run_mode=train --problem=mnist_odd_even --data_per_class_train=9")
    return data


PRINTING = {
    "presets": None,
    "import-args arguments": None,
    f"{RECONSTRUCT} --steps 3 --overwrite": "run/candidates.json",
    "score second": None,
    "report second": "second/report.html",
    "search run --overwrite --trials 1 --steps 2 --per-class 3": "run/search.json",
    "find-start run --ways generator-state": None,
    "compare run second --csv compared.csv": "compared.csv",
    f"{AUDIT} --out audit": "audit/report.html",
    f"{AUDIT.replace('model.npz', '--all models')} --out all": "all/table.csv",
    "study cells.py --out study": "study/table.md",
}
"""Commands that print, and what they have written at their end."""


@pytest.mark.thorough
def test_commands_do_their_work_also_where_nobody_reads(models: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", EACH_OF, *PRINTING]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(writing)
    assert done.returncode == 0 and not {"Traceback", "Broken pipe", "ends with"} & {*done.stderr.split()}, done.stderr
    assert "ends with" not in done.stderr and "exhume: " not in done.stderr, done.stderr
    assert [path for path in PRINTING.values() if path and not Path(path).exists()] == []


# ---- Folders that cannot be written, and too little memory


WRITING = {
    f"{TRAIN} --epochs 4 --overwrite": "run",
    f"{RECONSTRUCT} --steps 3 --overwrite": "run",
    "score run": "run",
    "report run": "run",
    "search run --overwrite": "run",
    "find-start run --overwrite": "run",
    f"{AUDIT} --out run": "run",
    f"{AUDIT} --out new": "new",
    f"{AUDIT.replace('model.npz', '--all models')} --out new": "new",
    "study cells.py --out new": "new",
    "compare run second --csv new.csv": "new.csv",
    "compare run second --page new.html": "new.html",
    "demo --out new": "new",
}
"""Commands that write, and what of it is named where it cannot be."""
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
"""For the superuser, whom no mode of a file stops."""


@pytest.mark.parametrize("owner", ["myself", pytest.param("another user", marks=pytest.mark.slow)])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(models: Path, owner: str) -> None:
    superuser = os.getuid() == 0
    if (superuser and not shutil.which("setpriv")) or (owner == "another user" and not superuser):
        pytest.skip("only the superuser can give a folder to another user, and then give up the right to write there")
    modes = {path: path.stat().st_mode for path in (models, *models.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if owner == "myself" else 0o755)
        if owner == "another user":
            os.chown(path, 65534, 65534)
    command = [*WITHOUT_RIGHTS * superuser, sys.executable, "-c", EACH_OF, *WRITING]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    said = done.stderr.splitlines()
    expected = [
        line
        for words, path in WRITING.items()
        for line in (f"exhume: {path} cannot be written: Permission denied.", f"{words} ends with 2")
    ]
    assert said == expected
    assert {models, *models.rglob("*")} == modes.keys()


def test_a_file_that_may_not_be_read_says_so(models: Path) -> None:
    if (superuser := os.getuid() == 0) and not shutil.which("setpriv"):
        pytest.skip("no mode of a file stops the superuser")
    commands = {
        f"{AUDIT.replace('data.npz', 'secret.npz')} --out new": "secret.npz",
        f"{AUDIT.replace('model.npz', 'secret.npz')} --out new": "secret.npz",
        "study secret.py": "secret.py",
        "import-args secret.py": "secret.py",
    }
    for path in map(Path, {*commands.values()}):
        path.touch(0)
    command = [*WITHOUT_RIGHTS * superuser, sys.executable, "-c", EACH_OF, *commands]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr.splitlines()[::2] == [
        f"exhume: {path} cannot be read: Permission denied." for path in commands.values()
    ]


def limited(words: str, limit: int) -> tuple[int, str]:
    """Runs a command that has so many bytes of addresses; its exit code, and the last line that it says."""
    done = subprocess.run(
        [sys.executable, "-c", "from exhume.cli import main; main()", *words.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no limit on addresses")
@pytest.mark.parametrize("words", [TRAIN, RECONSTRUCT, "search run", AUDIT])
def test_too_few_addresses_for_the_libraries_are_refused(data: Path, words: str) -> None:
    code, said = limited(words, 2**29)
    assert (code, said) == (
        2,
        "exhume: This shell allows 0.50 GiB of memory (ulimit -v), and exhume needs more than 1 GiB.",
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no limit on addresses")
@pytest.mark.parametrize(
    "words",
    [
        f"{TRAIN} --overwrite --widths 9000 9000 --epochs 2",
        "reconstruct run --overwrite --steps 2 --images 4000000 --no-find-start --device cpu",
        "search run --overwrite --trials 1 --steps 2 --per-class 2000000 --device cpu",
        f"{AUDIT} --restarts 9000 --out new",
    ],
)
def test_work_that_a_limit_leaves_no_room_for_is_refused(models: Path, words: str) -> None:
    code, said = limited(words, 3 * 2**29)
    assert code == 2 and said.startswith("exhume: ") and "memory" in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ImportError("libscipy_openblas.so: failed to map segment from shared object"),
    ],
    ids=repr,
)
def test_memory_that_runs_out_is_a_sentence(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "parse", fail)
    with pytest.raises(SystemExit) as ended:
        main(TRAIN.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "exhume: There is not enough memory for this; --widths, --channels, --per-class and --batch-size lower it.\n"
    )


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
