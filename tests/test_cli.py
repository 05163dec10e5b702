"""The command line: what it does with good input, and the one sentence that it says about bad input."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from exhume.attack.methods import METHODS, name_of
from exhume.checkpoint import load_checkpoint
from exhume.cli import COMMANDS, main, parse
from exhume.commands import display
from exhume.defence.losses import resolve_loss
from exhume.networks import build
from exhume.presets import RECONSTRUCTIONS, TRAININGS
from exhume.problems import PROBLEMS, Selection, load_problem, names_and_summaries
from exhume.progress import Progress
from exhume.records import SEAL, provenance, read_tensors
from exhume.runs.store import FILES

EXHUME = Path(sys.executable).with_name("exhume")
PAGES = [Path(__file__).parents[1] / name for name in ("README.md", "docs/guide.md")]
SHOWN = [
    line for page in PAGES for line in re.findall(r"(?:^|^\$ |&& )exhume ([^&\n]+)", page.read_text(), re.MULTILINE)
]
"""The commands that the pages for users show."""
TINY = ("--widths", "20", "--epochs", "6", "--per-class", "5")
SHORT = ("--steps", "3", "--per-class", "6")
UNLIKE = {"seconds": None, "provenance": None, SEAL: None}
"""What differs between two records of the same results."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with no data at hand."""
    monkeypatch.delenv("EXHUME_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every stage, made by the commands in this process; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    main(["train", "toy-circle", str(run), *TINY, "--device", "cpu"])
    with pytest.MonkeyPatch.context() as patch:  # as conftest.py does for each test
        patch.setattr("exhume.runs.start.ALWAYS", ("generator-state",))
        main(["reconstruct", str(run), *SHORT, "--device", "cpu"])
    main(["score", str(run)])
    main(["report", str(run)])
    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that ends with 2, changes no file and prints no result."""
    before = snapshot(Path.cwd())
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert snapshot(Path.cwd()) == before
    assert said.out == ""
    assert "Traceback" not in said.err
    message = re.sub(r"[\s│╭╮╰╯─]+", " ", said.err).strip()
    assert message
    return message


def record(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


# ---- Bad input


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("dmeo", "There is no command 'dmeo'; did you mean demo?"),
        ("frobnicate run", "There is no command 'frobnicate'; there are demo, audit, train"),
        ("--frobnicate", "required: COMMAND"),
        ("train", "Required"),
        ("train toy-circle", "Say `exhume train PROBLEM RUN`, or `exhume train RUN --preset NAME`."),
        ("train mnist-digits --preset demo", "mnist-digits is a problem, and the folder of the run is missing."),
        ("train run --preset dmeo", "There is no training preset 'dmeo'; there are demo, mnist-binary"),
        (
            "train toy-cirle run",
            "There is no problem 'toy-cirle', nor a .py, .npz or folder of that name. Did",
        ),
        ("train nothing.py run", "There is no problem file"),
        ("train nothing.npz run", "nothing.npz"),
        ("train npz run", "needs a file"),
        ("train image-folder run", "needs a folder"),
        ("train toy-circle run --data-dir nowhere", "There is no file or folder"),
        ("train toy-circle run --preset dmeo", "There is no training preset 'dmeo'; there are demo, mnist-binary"),
        ("train toy-circle run --preset exhume", "There is no training preset 'exhume'"),
        ("train toy-circle run --preset demo", "The loss ce does not fit the task binary"),
        ("train toy-circle run --epcohs 3", "Perhaps you meant: --epochs"),
        ("train toy-circle run --epochs", "--epochs"),
        ("train toy-circle run --epochs three", "Error parsing --epochs: invalid literal for int()"),
        ("train toy-circle run --epochs -3", "epochs must not be negative, and -3 is."),
        ("train toy-circle run --lr nan", "lr must be positive, not nan."),
        ("train toy-circle run --lr inf", "lr must be positive, not inf."),
        ("train toy-circle run --init-scale nan", "init_scale must be positive, not nan"),
        ("train toy-circle run --stop-loss nan", "stop_loss and stop_gradient must be finite."),
        ("train toy-circle run --batch-size 0", "batch_size must be at least 1, not 0."),
        ("train toy-circle run --seed 99999999999999999999", "seed must be at least 0 and below 2^63"),
        ("train toy-circle run --widths 0", "Widths and channels must be at least 1."),
        ("train toy-circle run --kind mpl", "Unknown network 'mpl'; there are mlp, cnn."),
        ("train toy-circle run --kind cnn", "A cnn needs channels"),
        ("train toy-circle run --channels 3", "A cnn needs channels"),
        ("train toy-circle run --activation rellu", "Unknown activation 'rellu'"),
        ("train toy-circle run --loss bse", "Unknown loss 'bse'; there are bce, ce, mse, huber, l2.5."),
        ("train toy-circle run --loss ce", "The loss ce does not fit the task binary; bce, mse, huber, l2.5 would."),
        ("train toy-circle run --loss mse --lr 1e12 --widths 20", "The loss was no longer finite after"),
        ("train toy-circle run --device gpu", "invalid choice 'gpu' for argument '--device'"),
        ("train toy-circle run --per-class 0", "per_class must be at least 1, not 0."),
        ("train toy-circle run --classes 1", "classes must be at least 2, not 1."),
        ("train toy-circle run --classes 2", "Problem toy-circle (binary) has 2 classes; 2 of them cannot be chosen"),
        ("train faces run --per-class 101", "has 100 training images, fewer than the 101 per class asked for"),
        ("train faces run --per-class 100", "no held-out images of every class are left for the control"),
        ("reconstruct run", "There is no run/checkpoint.json."),
        (
            "reconstruct run --preset demo",
            "There is no reconstruction preset 'demo'; there are exhume, cifar10-",
        ),
        ("reconstruct run --setps 3", "Perhaps you meant: --steps"),
        ("reconstruct run --steps 0", "steps must be at least 1, not 0."),
        ("reconstruct run --objective magic", "Unknown objective 'magic'"),
        ("reconstruct run --method nonsense", "There is no method 'nonsense'; there are exhume, reference."),
        ("reconstruct run --method reference --smoothness 1", "Unrecognized options: --smoothness, 1"),
        ("reconstruct run --preset cifar10-binary-1 --smoothness 1", "Unrecognized options: --smoothness, 1"),
        (
            "reconstruct run --method exhume --preset cifar10-binary-1",
            "The preset cifar10-binary-1 is for the method reference.",
        ),
        ("reconstruct run --method", "--method"),
        (
            "reconstruct run --checkpoint model.pt",
            "--checkpoint, --shape (channels height width) and --task are",
        ),
        ("reconstruct run --shape 1 2 3", "are needed together"),
        ("reconstruct run --checkpoint model.pt --shape 1 2 3 --task binary", "There is no model.pt."),
        ("reconstruct run --checkpoint model.pt --shape 1 2 --task binary", "--shape"),
        ("reconstruct run --checkpoint model.pt --shape 1 2 3 --task ranking", "invalid choice 'ranking'"),
        ("find-start", "Required"),
        ("find-start nowhere", "There is no nowhere."),
        ("find-strat run", "There is no command 'find-strat'; did you mean find-start?"),
        ("find-start nowhere --wyas all-seeds", "Perhaps you meant: --ways"),
        ("find-start nowhere --first-seed 7 --last-seed 3", "first_seed and last_seed must be at least 0 and below"),
        ("find-start nowhere --last-seed 4294967296", "first_seed and last_seed must be at least 0 and below"),
        ("find-start nowhere --places 0", "offset must be at least 0, and places at least 1"),
        ("find-start nowhere --threads 0", "threads must be at least 1, not 0."),
        ("find-start nowhere --seeds -1", "A seed must be at least 0."),
        ("find-start nowhere --distributions dice", "distributions must be of uniform, normal"),
        ("score run", "There is no run/candidates.json; run `exhume reconstruct` first."),
        ("score run --problem toy-circle", "There is no run/candidates.json; run `exhume reconstruct` first."),
        ("report run", "reconstruct first"),
        ("problems run", "run"),
        ("demo --seed -1", "seed must be at least 0"),
        ("demo --epochs 3", "Unrecognized options: --epochs"),
    ],
)
def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str], words: str, hint: str) -> None:
    assert hint in refused(capsys, *words.split())


@pytest.mark.parametrize(
    "words", ["train toy-circle new --widths 20", "reconstruct run --overwrite", "demo"], ids=["train", "rec", "demo"]
)
def test_a_gpu_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished: Path, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shutil.copytree(finished, "run")
    message = refused(capsys, *words.split(), "--device", "cuda")
    assert message == "exhume: There is no usable GPU here; use --device cpu."


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("train", "toy-circle", "run", *TINY, "--lr", "0.3"), "already holds another training; add --overwrite"),
        (("train", "faces", "run", *TINY), "already holds another training"),
        (("reconstruct", "run", "--steps", "4"), "already holds candidates of other settings; add --overwrite"),
        (("reconstruct", "run", "--objective", "regression"), "The objective regression is for the task regression"),
        (("score", "run", "--per-class", "3"), "--problem"),
        (("score", "run", "--problem", "faces"), "was trained on a problem of its own"),
        (("train", "toy-cirle", "run2", *TINY), "Did you mean toy-circle?"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    capsys: pytest.CaptureFixture[str], finished: Path, words: tuple[str, ...], hint: str
) -> None:
    shutil.copytree(finished, "run")
    assert hint in refused(capsys, *words)


@pytest.mark.parametrize("name", ["training.json", *FILES["training"][2:], *FILES["candidates"][:2]])
def test_a_damaged_run_is_refused(capsys: pytest.CaptureFixture[str], finished: Path, name: str) -> None:
    path = Path(shutil.copytree(finished, "run")) / name
    content = path.read_bytes()
    for damage in (content[: len(content) // 2], b"nonsense", None):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert name in refused(capsys, "score", "run")
        if name.startswith("checkpoint"):
            assert name in refused(capsys, "reconstruct", "run", *SHORT)
        if damage is not None or name.startswith("candidates"):
            assert name in refused(capsys, "report", "run")


def test_a_file_in_place_of_the_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").write_text("mine")
    for words in (("train", "toy-circle", "run", *TINY), ("reconstruct", "run"), ("score", "run"), ("report", "run")):
        assert "run" in refused(capsys, *words)


def test_a_foreign_file_that_is_no_state_dict_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("reconstruct", "run", "--checkpoint", "model.pt", "--shape", "1", "1", "2", "--task", "binary")
    Path("model.pt").write_bytes(b"nonsense")
    assert "model.pt is no plain state dict" in refused(capsys, *words)
    torch.save({"0.weight": torch.ones(1, 3)}, "model.pt")
    assert "model.pt holds no chain of dense layers on 2 inputs" in refused(capsys, *words)
    torch.save({"0.weight": torch.ones(1, 2)}, "model.pt")
    assert "does not fit the task multiclass" in refused(capsys, *words[:-1], "multiclass")
    assert "There is no method 'magic'" in refused(capsys, *words, "--method", "magic")


MODEL_PY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(12, 30), nn.BatchNorm1d(30), nn.Linear(30, 3)

    def forward(self, x):
        return torch.log_softmax(self.fc2(torch.relu(self.bn(self.fc1(x.flatten(1))))), 1)
"""


def test_a_network_is_read_by_its_code_in_its_own_units(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.py").write_text(MODEL_PY)
    names: dict[str, Any] = {}
    exec(MODEL_PY, names)
    torch.save({"model": names["Net"]().state_dict()}, "model.pt")
    words = ("reconstruct", "run", "--checkpoint", "model.py:Net", "--weights", "model.pt", "--shape", "3", "2", "2")
    words += ("--task", "multiclass", "--std", "0.2", "0.3", "0.4", "--layout", "hwc", "--channels", "bgr", *SHORT)
    run_words = (*words, "--mean", "0.1", "0.2", "0.3")
    main(list(run_words))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("taken from under the key model") == 1 and "log-softmax, is left out" in said
    checkpoint = load_checkpoint(Path("run"))
    assert checkpoint.scale is not None
    assert torch.equal(checkpoint.centre[:, 0, 0], torch.tensor([0.3, 0.2, 0.1]))
    assert "under the key model" in json.loads(Path("run/candidates.json").read_text())["message"]
    main(["report", "run"])
    assert "linear" in Path("run/report.html").read_text()
    np.save("mean.npy", np.zeros((3, 2, 2)))
    assert "say the same" in refused(capsys, *run_words, "--centre", "mean.npy")
    assert "neither numbers nor an .npy file" in refused(capsys, *words, "--mean", "grey")
    assert "cannot train a network that was built elsewhere" in refused(
        capsys, "train", "toy-circle", "new", "--initial", "run"
    )


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("", "defines no function load(selection)"),
        ("def load(selection): return 3", "returned no Problem but a int"),
        (
            "import torch\nfrom exhume import *\ndef load(selection):\n"
            "    return Problem(name='p', images=2 * torch.ones(2, 1, 3, 3), labels=torch.arange(2), held_out="
            "torch.ones(2, 1, 3, 3), held_out_labels=torch.arange(2), task='binary', classes=('a', 'b'), "
            "network=NetworkConfig(), source='')",
            "must be floats in [0, 1]",
        ),
    ],
)
def test_a_users_problem_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: str, hint: str
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("mine.py").write_text(code)
    assert hint in refused(capsys, "train", "mine.py", "run")


def test_an_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def load(selection): raise KeyboardInterrupt")
    with pytest.raises(SystemExit) as ended:
        main(["train", "mine.py", "run"])
    assert ended.value.code == 130
    told = "exhume: interrupted; the same command goes on where the training was"
    assert capsys.readouterr().err.strip() == told


# ---- Help and tables


def test_version_is_that_of_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    made = provenance(device=torch.device("cpu"), seed=0, seconds=0.0)
    assert capsys.readouterr().out == f"exhume {made.exhume}\n"


def test_help_lists_the_commands_and_waits_for_nothing(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", EXHUME, "--help"], capture_output=True, text=True, check=True
    )
    for name, (_, summary) in COMMANDS.items():
        assert name in done.stdout
        assert summary.split(",")[0] in re.sub(r"\s+", " ", done.stdout)
    slow = re.compile(r"\| +(torch|numpy|tyro|rich|matplotlib|kornia)$", re.MULTILINE)
    assert re.search(r"\| +exhume\.cli$", done.stderr, re.MULTILINE)
    assert not slow.search(done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    words = {
        "train": ["toy-circle", "run"],
        "reconstruct": ["run"],
        "search": ["run"],
        "score": ["run"],
        "report": ["run"],
        "import-args": ["file"],
    }
    for given in ([], words.get(command, [])):
        with pytest.raises(SystemExit) as ended:
            main([command, *given, "--help"])
        said = capsys.readouterr()
        assert ended.value.code == 0
        assert f"usage: exhume {command}" in said.out
        summary = re.sub(r"\s+", " ", said.out).lower()
        assert COMMANDS[command][1].split(",")[0].lower() in summary
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("command", ["audit", "train run x", "reconstruct run", "find-start run"])
def test_help_breaks_lines_only_where_they_are_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert "In Python" not in said and "exhume." not in said
    lines = [line[1:-1].rstrip() for line in said.splitlines() if line.startswith("│")]
    for line, after in pairwise(lines):
        if line.startswith(" " * 20) and after.startswith(" " * 20):
            assert len(line) + 1 + len(after.split()[0]) > 77, line


def test_problems_lists_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["problems"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == names_and_summaries()
    assert list(lines) == list(PROBLEMS)


def test_presets_lists_every_row_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    shown = [(name, row.source) for table in (TRAININGS, RECONSTRUCTIONS) for name, row in table.items()]
    listed = [line for line in lines if line.startswith("  ")]
    assert len(listed) == len(shown)
    for line, (name, source) in zip(listed, shown, strict=True):
        assert line.split()[0] == name
        assert source in line


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_preset_fits_its_problem(name: str, noise_archives: Path) -> None:
    row = TRAININGS[name]
    problem = load_problem(row.problem, Selection(per_class=row.per_class, data_dir=str(noise_archives)))
    assert resolve_loss(problem.task, row.training.loss) == row.training.loss
    assert len(problem.images) == row.per_class * len(problem.classes)
    module = build(row.network, problem.images.mean(0), problem.outputs, torch.Generator())
    assert module(problem.images[:2]).shape == (2, problem.outputs)


@pytest.fixture(scope="module")
def briefly(tmp_path_factory: pytest.TempPathFactory, noise_archives: Path) -> Callable[[str], Path]:
    """Trains by a preset for two epochs on a few images, and returns the run; each once."""
    folder = tmp_path_factory.mktemp("presets")

    def train(name: str) -> Path:
        if not (folder / name).exists():
            few = ["--epochs", "2", "--per-class", "1", "--data-dir", str(noise_archives), "--device", "cpu"]
            main(["train", str(folder / name), "--preset", name, *few])
        return folder / name

    return train


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_preset_is_a_whole_command(name: str, briefly: Callable[[str], Path]) -> None:
    training, preset = record(briefly(name), "training.json"), TRAININGS[name]
    assert training["problem"]["name"] == preset.problem
    assert training["training"] == {**vars(preset.training), "epochs": 2}
    network = vars(preset.network)
    assert training["network"] == {**network, "widths": list(network["widths"]), "channels": list(network["channels"])}
    assert [point["epoch"] for point in training["history"]] == [0, 1, 2]


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_every_reconstruction_preset_is_a_whole_command(name: str, briefly: Callable[[str], Path]) -> None:
    run = briefly("demo" if name == "exhume" else name.rpartition("-")[0])
    main(["reconstruct", str(run), "--preset", name, "--steps", "2", "--per-class", "2", "--overwrite"])
    found, preset = record(run, "candidates.json"), RECONSTRUCTIONS[name].method
    assert found["method"] == {"name": name_of(preset), **asdict(replace(preset, steps=2, per_class=2))}
    assert [point["step"] for point in found["history"]] == [0, 1, 2]
    assert read_tensors(run / "candidates.safetensors")["images"].isfinite().all()


def test_every_published_reconstruction_is_for_a_published_training() -> None:
    for name, preset in RECONSTRUCTIONS.items():
        assert name == "exhume" or (name_of(preset.method), name.rpartition("-")[0] in TRAININGS) == ("reference", True)


@pytest.mark.parametrize("line", dict.fromkeys(SHOWN))
def test_the_commands_that_are_shown_are_commands(line: str, finished: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "train" and "--initial" in words:  # this network is read before the flags that override it
        shutil.copytree(finished, words[words.index("--initial") + 1])
    assert callable(parse(words))


# ---- Flags and defaults


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_own_flags_and_no_others(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["reconstruct", "run", f"--method={name}", "--help"])
    shown = set(re.findall(r"--([a-z-]+)", capsys.readouterr().out))
    flags = {kind: {item.name.replace("_", "-") for item in fields(METHODS[kind])} for kind in METHODS}
    assert flags[name] <= shown
    assert not (set().union(*flags.values()) - flags[name]) & shown
    assert parse(["reconstruct", "run", "--method", name]).settings == METHODS[name]()
    asked = parse(["reconstruct", f"--method={name}", "--steps", "7", "run"])
    assert (asked.method, asked.settings, asked.run) == (name, METHODS[name](steps=7), Path("run"))


def test_a_preset_brings_its_method() -> None:
    preset = RECONSTRUCTIONS["cifar10-binary-1"].method
    for words in ([], ["--method", "reference"]):
        asked = parse(["reconstruct", "run", "--preset", "cifar10-binary-1", *words])
        assert (asked.method, asked.settings) == ("reference", preset)


def test_flags_override_a_problems_network(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "faces", "run", "--widths", "7", "--per-class", "2", "--epochs", "1", "--bias", "all"])
    own = load_problem("faces").network
    network = record(Path("run"), "training.json")["network"]
    assert network == {**vars(own), "channels": [32, 64], "widths": [7], "bias": "all"}
    assert capsys.readouterr().out.startswith("All 1 epochs are over. Loss ")


def test_flags_override_a_preset() -> None:
    main(["train", "mnist-digits", "run", "--preset", "demo", "--epochs", "3", "--widths", "20", "--seed", "5"])
    training, preset = record(Path("run"), "training.json"), TRAININGS["demo"]
    assert training["training"] == {**vars(preset.training), "epochs": 3, "seed": 5}
    assert training["network"] == {**vars(preset.network), "channels": [], "widths": [20]}
    assert training["problem"]["selection"]["per_class"] == preset.per_class
    assert training["problem"]["images"] == 10 * preset.per_class


def test_flags_override_a_reconstruction_preset(finished: Path) -> None:
    shutil.copytree(finished, "run")
    words = ["--preset", "cifar10-binary-1", "--steps", "2", "--per-class", "3", "--overwrite"]
    main(["reconstruct", "run", *words])
    found, preset = record(Path("run"), "candidates.json"), RECONSTRUCTIONS["cifar10-binary-1"].method
    assert found["method"] == {"name": "reference", **asdict(preset), "steps": 2, "per_class": 3}
    assert found["provenance"]["seed"] == 0


def test_a_number_can_be_set_back_to_none() -> None:
    main(["train", "toy-circle", "run", *TINY, "--init-scale", "None"])
    assert record(Path("run"), "training.json")["network"]["init_scale"] is None


def test_overwrite_replaces_and_its_absence_refuses(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    shutil.copytree(finished, "run")
    refused(capsys, "train", "toy-circle", "run", *TINY, "--seed", "1")
    main(["train", "toy-circle", "run", *TINY, "--seed", "1", "--overwrite"])
    assert {path.name for path in Path("run").iterdir()} == {
        "training.json",
        "checkpoint.json",
        "checkpoint.safetensors",
    }
    refused(capsys, "train", "toy-circle", "run", *TINY, "--seed", "2")


def test_the_results_go_to_one_stream_and_the_progress_to_the_other(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    shutil.copytree(finished, "run")
    capsys.readouterr()
    main(["reconstruct", "run", *SHORT, "--overwrite"])
    said = capsys.readouterr()
    assert re.search(r"\nAll 3 steps are done\. .*Residual .* s\.\n$", said.out)
    assert re.search(r"reconstruct .*100%", said.err)
    main(["score", "run"])
    said = capsys.readouterr()
    assert "of 10 training images came out" in said.out
    assert "0.95: " in said.out
    assert said.err == ""
    main(["report", "run"])
    assert capsys.readouterr().out.strip() == str(Path("run/report.html"))


def test_progress_in_a_file_is_a_line_at_the_begin_and_one_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, *(10.0 + step for step in range(1, 301)), 320.0, 321.0])
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with display.bars() as hear:
        hear(Progress(stage="reconstruct", step=0, total=300, values={}))
        assert capsys.readouterr().err == "reconstruct   begins\n"
        for step in range(1, 301):
            hear(Progress(stage="reconstruct", step=step, total=300, values={"residual": 0.5}))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 5
        assert lines[0] == "reconstruct   20%, 60 s, about 240 s left  residual 5.00e-01"
        hear(Progress(stage="all seeds", step=1, total=5, values={"seconds_left": 90.0, "passed": 0.0}))
        assert capsys.readouterr().err == "all seeds     begins, about 90 s left\n"
    end = capsys.readouterr().err.splitlines()
    assert end[0] == "reconstruct   100%, 300 s  residual 5.00e-01"
    assert end[1].startswith("all seeds     20%, 0 s, about 90 s left")


def test_a_centre_is_an_image_of_the_checkpoints_shape(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"0.weight": torch.ones(1, 2)}, "model.pt")
    words = ("reconstruct", "run", "--checkpoint", "model.pt", "--shape", "1", "1", "2", "--task", "binary", *SHORT)
    assert "nothing.npy" in refused(capsys, *words, "--centre", "nothing.npy")
    Path("damaged.npy").write_bytes(b"\x93NUMPY\x01")
    assert "damaged.npy" in refused(capsys, *words, "--centre", "damaged.npy")
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    assert "objects.npy" in refused(capsys, *words, "--centre", "objects.npy")
    np.save("other.npy", np.zeros((2, 1, 1)))
    assert "shape (2, 1, 1), not of the images' (1, 1, 2)" in refused(capsys, *words, "--centre", "other.npy")
    np.save("mean.npy", np.array([[[0.25, 0.75]]]))
    assert "are needed together" in refused(capsys, "reconstruct", "run", "--centre", "mean.npy")
    main([*words, "--centre", "mean.npy"])
    assert load_checkpoint(Path("run")).centre.tolist() == [[[0.25, 0.75]]]


def test_score_merges_other_folders(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    for name in ("run", "second", "third"):
        shutil.copytree(finished, name)
    main(["score", "run", "--with", "second", "third"])
    scores = record(Path("run"), "scores.json")
    assert scores["merged"] == [{"folder": name, "candidates": 24, "chosen": None} for name in ("second", "third")]
    assert scores["candidates"] == 72
    assert "There is no nowhere/candidates.json" in refused(capsys, "score", "run", "--with", "nowhere")
    assert "--with" in refused(capsys, "score", "run", "--wiht", "second")


def test_a_foreign_checkpoint_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"layers.0.weight": torch.randn(9, 2, generator=generator), "layers.0.bias": torch.zeros(9)}
    torch.save({"state_dict": {**state, "layers.1.weight": torch.randn(1, 9, generator=generator)}}, "model.pth")
    words = ["--checkpoint", "model.pth", "--shape", "1", "1", "2", "--task", "binary"]
    main(["reconstruct", "run", *words, *SHORT])
    assert (load_checkpoint(Path("run")).network.widths, load_checkpoint(Path("run")).network.bias) == ((9,), "first")
    refused(capsys, "score", "run")
    main(["score", "run", "--problem", "toy-circle", "--per-class", "4"])
    scores = record(Path("run"), "scores.json")
    assert (scores["images"], scores["seconds"]["train"]) == (8, None)
    said = " ".join(capsys.readouterr().out.split())
    assert "verdict does not apply: Nothing was found, and that does not clear the network" in said
    points = load_problem("toy-circle", Selection(per_class=6)).images[:, 0].numpy()
    np.savez("mine.npz", images=points[::2], labels=[0, 0, 0, 1, 1, 1])
    np.savez("new.npz", images=points[1::2])
    main(["score", "run", "--problem", "mine.npz"])
    said = " ".join(capsys.readouterr().out.split())
    assert "No held-out images were given, so this count has no control." in said and "(no control)" in said
    main(["score", "run", "--problem", "mine.npz", "--held-out", "new.npz"])
    assert record(Path("run"), "scores.json")["held_out"] == 6
    assert "6 of the 6 held-out" in refused(capsys, "score", "run", "--problem", "mine.npz", "--held-out", "mine.npz")
    assert "(--problem)" in refused(capsys, "score", "run", "--held-out", "new.npz")
    main(["score", "run", "--problem", "mine.npz", "--split", "half"])
    assert record(Path("run"), "scores.json")["held_out"] == 2


def test_score_says_what_is_known_of_the_network(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    shutil.copytree(finished, "run")
    main(["score", "run"])
    said = capsys.readouterr().out
    assert [line.partition(" ")[0] for line in said.splitlines() if line[0] != " "] == [
        "result",
        "counts",
        "share",
        "p-values",
        "verdict",
    ]
    assert "95 % interval" in said and "all similarities: " in said


# ---- In another process


def test_the_pipeline_gives_the_same_numbers_in_another_process(here: Path, finished: Path) -> None:
    train = ["train", "toy-circle", "run", *TINY, "--device", "cpu"]
    stages = [train, ["reconstruct", "run", *SHORT, "--device", "cpu"], ["score", "run"], ["report", "run"]]
    code = f"from exhume.cli import main\nfor words in {stages}: main(words)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot(here / "run").keys() == snapshot(finished).keys()
    for name in ("checkpoint.json", "checkpoint.safetensors", "candidates.safetensors", "scores.safetensors"):
        assert (here / "run" / name).read_bytes() == (finished / name).read_bytes()
    for name, key in (("training.json", "history"), ("training.json", "margins"), ("candidates.json", "history")):
        assert record(here / "run", name)[key] == record(finished, name)[key]
    scores, again = record(here / "run", "scores.json"), record(finished, "scores.json")
    assert {**scores, **UNLIKE} == {**again, **UNLIKE}


def test_bad_input_ends_the_process_with_2(here: Path) -> None:
    done = subprocess.run([EXHUME, "score", "run"], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "exhume: There is no run/candidates.json; run `exhume reconstruct` first.\n",
    )
