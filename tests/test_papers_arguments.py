"""The papers' argument files, written here in our words, and the commands that they become."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exhume.attack.methods import Reference
from exhume.cli import main, parse
from exhume.commands.papers_arguments import FLAGS, TASKS, read_arguments
from exhume.defence.training import TrainingConfig
from exhume.errors import InputError
from exhume.presets import RECONSTRUCTIONS, TRAININGS

THERE = {
    "cifar10-binary": "cifar10_vehicles_animals",
    "mnist-binary": "mnist_odd_even",
    "cifar10-multiclass": "cifar10_multiclass",
    "cifar100-multiclass": "cifar100_multiclass",
    "cifar10-regression": "cifar10_vehicles_animals_regression",
    "cifar10-huber": "cifar10_vehicles_animals_regression",
}
"""The papers' trainings that their code can run, and the problem's name there."""


@pytest.fixture(autouse=True)
def noise(noise_archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse a training, its problem is loaded."""
    monkeypatch.setenv("EXHUME_DATA", str(noise_archives))


def line(**flags: object) -> str:
    return "Main.py " + " ".join(f"--{name}={value}" for name, value in flags.items())


def train_line(name: str, **flags: object) -> str:
    """The line that a preset's training is run by there."""
    preset = TRAININGS[name]
    asked = {
        "run_mode": "train",
        "problem": THERE[name],
        "data_per_class_train": preset.per_class,
        "model_hidden_list": "[1000,1000]",
        "train_epochs": preset.training.epochs,
        "train_lr": preset.training.lr,
    }
    if preset.network.init_scale is None:
        asked |= {"use_init_scale": "False"}
    else:
        asked |= {"model_init_list": f"[{preset.network.init_scale},{preset.network.init_scale}]"}
    if preset.training.weight_decay:
        asked |= {"train_wd": preset.training.weight_decay, "train_regression": "true"}
    if preset.training.loss == "huber":
        asked |= {"train_huber_loss": "true"}
    return line(**(asked | flags))


def reconstruct_line(name: str, **flags: object) -> str:
    settings = RECONSTRUCTIONS[name].method
    assert isinstance(settings, Reference)
    asked = {
        "run_mode": "reconstruct",
        "problem": THERE[name.rpartition("-")[0]],
        "extraction_data_amount_per_class": settings.per_class,
        "extraction_epochs": settings.steps,
        "extraction_init_scale": settings.init_scale,
        "extraction_lr": settings.lr_images,
        "extraction_lambda_lr": settings.lr_multipliers,
        "extraction_min_lambda": settings.min_multiplier,
        "extraction_model_relu_alpha": settings.sharpness,
    }
    return line(**(asked | flags))


def parsed(text: str) -> Any:
    command = read_arguments(text).command
    assert command[0] == "exhume"
    return parse(command[1:])


@pytest.mark.parametrize("name", THERE)
def test_the_papers_trainings_become_their_presets(name: str) -> None:
    command, preset = parsed(train_line(name)), TRAININGS[name]
    assert (command.problem, command.selection.per_class) == (preset.problem, preset.per_class)
    assert command.network == preset.network
    expected = replace(preset.training, stop_loss=1e-40, evaluate_every=1000, seed=1)  # their defaults
    assert command.training == expected


@pytest.mark.parametrize("name", [name for name in RECONSTRUCTIONS if name != "exhume"])
def test_the_papers_reconstructions_become_their_presets(name: str) -> None:
    command, preset = parsed(reconstruct_line(name)), RECONSTRUCTIONS[name].method
    expected = replace(preset, seed=1)
    if TASKS[THERE[name.rpartition("-")[0]]] == "regression":  # where no multiplier is too small
        expected = replace(expected, min_multiplier=Reference().min_multiplier)
    assert (command.method, command.settings) == ("reference", expected)


def test_a_flag_that_is_not_given_has_its_default_of_there() -> None:
    train = parsed(line(run_mode="train", problem="cifar10_multiclass", data_per_class_train=7))
    expected = TrainingConfig(
        epochs=1000, lr=0.01, loss="ce", dtype="float64", seed=1, stop_loss=1e-40, evaluate_every=1000
    )
    assert train.training == expected
    assert (train.network.widths, train.network.init_scale, train.network.bias) == ((1000, 1000), 1e-4, "first")
    asked = line(run_mode="reconstruct", problem="mnist_odd_even", extraction_data_amount_per_class=9)
    settings = parsed(asked).settings
    assert (settings.steps, settings.init_scale, settings.lr_images, settings.lr_multipliers) == (
        1000,
        1e-9,
        1e-4,
        1e-4,
    )
    assert (settings.min_multiplier, settings.sharpness) == (0.05, 300)


def test_the_editions_differ_in_the_first_scale() -> None:
    words = train_line("mnist-binary").replace("--model_init_list=[0.0001,0.0001]", "")
    for more, scale, year in (("", 0.1, 2022), (" --train_wd=0.001", 1e-4, 2023)):
        assert parsed(words + more).network.init_scale == scale
        assert f"default of the {year} code" in " ".join(read_arguments(words + more).remarks)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"model_hidden_list": "'[30, 20]'"}, {"widths": (30, 20)}),
        ({"model_hidden_list": "[30]"}, {"widths": (30,)}),
        ({"model_use_bias": "yes"}, {"bias": "all"}),
        ({"model_train_activation": "leakyrelu"}, {"activation": "leaky-relu"}),
        ({"model_train_activation": "gelu"}, {"activation": "gelu"}),
        ({"use_init_scale": "f"}, {"init_scale": None}),
        ({"use_init_scale_only_first": 0, "model_init_list": "[.1,.1,.1]"}, {"init_scale": 0.1, "init_layers": "all"}),
        ({"precision": "single"}, {"dtype": "float32"}),
        ({"train_threshold": "1e-7"}, {"stop_loss": 1e-7}),
        ({"seed": 5}, {"seed": 5}),
        ({"train_regression": "true"}, {"loss": "mse"}),
        ({"train_huber_loss": "true"}, {"loss": "bce"}),
        ({"train_huber_loss": "true", "train_regression": "1"}, {"loss": "huber"}),
        ({"data_per_class_train": 3}, {"per_class": 3}),
        ({"train_SGD": "true", "train_SGD_batch_size": 2}, {"batch_size": None}),
    ],
)
def test_each_flag_arrives(flags: dict[str, object], expected: dict[str, object]) -> None:
    command = parsed(train_line("cifar10-binary", **flags))
    values = {**vars(command.network), **vars(command.training), **vars(command.selection)}
    assert {name: values[name] for name in expected} == expected


STYLES: dict[str, Callable[[str], str]] = {
    "shell": lambda line: f"CUDA_VISIBLE_DEVICES=0 nohup python -u {line}",
    "continued": lambda line: line.replace(" ", " \\\n  "),
    "lines": lambda line: line.replace(" ", "\n"),
    "windows": lambda line: line.replace(" ", "\r\n"),
    "comments": lambda line: "# the best run\n" + line.replace(" ", "  # so it was\n") + " # and that is all",
    "quoted values": lambda line: re.sub(r"=(\S+)", r"=\"'\1'\"", line),
    "quoted flags": lambda line: " ".join(f'"{word}"' for word in line.split()),
    "quoted command": lambda line: f"sh -c {shlex.quote('python ' + line)}",
    "twice quoted": lambda line: f"ssh host {shlex.quote('sh -c ' + shlex.quote(line))}",
    "spaces": lambda line: line.replace("=", " ").replace("[1000,1000]", "[1000, 1000]"),
    "backwards": lambda line: " ".join([*line.split()[:1], *reversed(line.split()[1:])]),
}
"""How people keep such a line."""


@pytest.mark.parametrize("style", STYLES)
def test_a_line_means_the_same_however_it_is_written(style: str) -> None:
    for text in (train_line("cifar10-regression"), reconstruct_line("cifar10-multiclass-2")):
        plain, other = read_arguments(text), read_arguments(STYLES[style](text))
        assert STYLES[style](text) != text
        assert other.command == plain.command
        assert (other.missing, other.dead) == (plain.missing, plain.dead)


def test_flags_without_counterpart_and_without_effect_are_told_apart() -> None:
    flags = {"extraction_lr_x": 1, "extraction_stop_threshold": 5000, "wandb_active": "True", "train_lr": 3}
    same = {
        "data_reduce_mean": "true",
        "extraction_loss_type": "kkt",
        "model_type": "mlp",
        "extraction_regression": "no",
    }
    read = read_arguments(reconstruct_line("cifar10-binary-1", **flags, **same))
    assert set(read.missing) == {"extraction_stop_threshold", "wandb_active"}
    assert set(read.dead) == {"extraction_lr_x", "train_lr"}
    other = {"data_reduce_mean": "false", "extraction_loss_type": "naive", "wandb_active": "no"}
    assert set(read_arguments(reconstruct_line("cifar10-binary-1", **other)).missing) == {
        "data_reduce_mean",
        "extraction_loss_type",
    }


def test_flags_that_others_overrule_have_no_effect() -> None:
    read = read_arguments(reconstruct_line("cifar10-regression-1", extraction_regression="true"))
    assert set(read.dead) == {"extraction_min_lambda", "extraction_regression"}
    assert "--min-multiplier" not in read.command
    read = read_arguments(
        train_line("mnist-binary", use_init_scale="no", train_huber_loss="yes", data_per_class_test=4)
    )
    assert set(read.dead) == {"model_init_list", "train_huber_loss", "data_per_class_test"}
    assert "data_per_class_test" in read_arguments(train_line("cifar10-multiclass", data_per_class_test=4)).missing


OTHER = {"_yes": ("true", "false"), "_whole": ("17",), "_number": ("0.125",), "_list": ("[7, 8]",), "_bias": ("true",)}
"""A value for each kind of flag that is not the one in the lines below (of two, one of them)."""


@pytest.mark.parametrize(
    "text", [train_line("cifar10-binary"), reconstruct_line("cifar10-binary-1")], ids=["train", "reconstruct"]
)
def test_every_flag_is_in_the_command_or_accounted_for(text: str) -> None:
    plain = read_arguments(text)
    for name in FLAGS.keys() - {"run_mode", "problem"}:
        others = [
            read_arguments(f"{text} --{name} '{value}'") for value in OTHER.get(FLAGS[name].takes.__name__, ("gelu",))
        ]
        counted = any(read.command != plain.command for read in others)
        accounted = any(name in (read.missing | read.dead) for read in others)
        assert counted != accounted or (name, counted) == ("proj_name", False), name


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "--run_mode must be one of train, reconstruct, and is missing."),
        ("Main.py --run_mode=evaluate --problem=mnist_odd_even", "and is evaluate."),
        (
            "Main.py --run_mode=train --problem=svhn",
            "--problem must be one of cifar10_vehicles_animals, mnist_odd_even",
        ),
        ("Main.py --run_mode=train --problem=mnist_odd_even", "--data_per_class_train is missing"),
        ("Main.py --run_mode=reconstruct --problem=mnist_odd_even", "--extraction_data_amount_per_class is missing"),
        (train_line("mnist-binary", train_epochs="many"), "--train_epochs cannot be 'many'."),
        (train_line("mnist-binary", train_lr="fast"), "--train_lr cannot be 'fast'."),
        (train_line("mnist-binary", train_lr=""), "--train_lr cannot be ''."),
        (train_line("mnist-binary", use_init_scale="maybe"), "--use_init_scale cannot be 'maybe'."),
        (train_line("mnist-binary", model_train_activation="swish"), "--model_train_activation cannot be 'swish'."),
        (train_line("mnist-binary", model_hidden_list="[a]"), "--model_hidden_list cannot be '[a]'."),
        (train_line("mnist-binary", model_init_list="[]"), "--model_init_list is empty."),
        (
            train_line("mnist-binary", use_init_scale_only_first="no", model_init_list="[1,2,3]"),
            "--model_init_list has different scales",
        ),
        (train_line("mnist-binary", trian_lr=1), "The papers' code has no flag --trian_lr; did you mean --train_lr?"),
        (train_line("mnist-binary", zzz=1), "The papers' code has no flag --zzz."),
        (train_line("cifar10-multiclass", train_regression="true"), "The loss mse does not fit the task multiclass"),
        (train_line("mnist-binary") + "\npython " + train_line("cifar10-binary"), "There is more than one command"),
        (train_line("mnist-binary") + " --proj_name='mine", "A quotation mark has no partner."),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        read_arguments(text)


# ---- The command


def test_the_names_of_the_weights_become_the_names_of_the_runs() -> None:
    train = read_arguments(train_line("mnist-binary", proj_name="mine"))
    weights = "models/weights-mnist_odd_even_d250_mine.pth"
    attack = read_arguments(reconstruct_line("mnist-binary-1", pretrained_model_path=weights))
    assert train.command[3] == attack.command[2] == "runs/mnist_odd_even_d250_mine"
    assert f"--checkpoint {weights} --shape 1 28 28 --task binary --centre MEAN.npy" in attack.remarks[1]
    assert read_arguments(reconstruct_line("mnist-binary-1"), "mine").command[2] == "mine"


def test_import_args_prints_a_command_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"train_epochs": 2, "data_per_class_train": 4, "model_hidden_list": "[20]", "wandb_entity": "us"}
    Path("train.txt").write_text(train_line("mnist-binary", **few))
    attack = {"extraction_epochs": 2, "extraction_data_amount_per_class": 4, "extraction_evaluate_rate": 1}
    Path("attack.txt").write_text(reconstruct_line("mnist-binary-1", **attack))
    for file, told in (("train.txt", "No effect there:"), ("attack.txt", "No counterpart here:")):
        main(["import-args", file, "--run", "a run"])
        first, *rest = capsys.readouterr().out.splitlines()
        assert told in rest and "The same seed draws other numbers here." in rest
        assert first.startswith("exhume ") and "'a run'" in first
        main(shlex.split(first)[1:])
        capsys.readouterr()
    main(["score", "a run"])
    assert "of 8 training images came out" in capsys.readouterr().out
    for content, hint in ((b"\xff\xfe", "cannot be read"), (b"Main.py --run_mod=train", "did you mean --run_mode?")):
        Path("bad.txt").write_bytes(content)
        with pytest.raises(SystemExit) as ended:
            main(["import-args", "bad.txt"])
        assert ended.value.code == 2 and hint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import-args", "nothing.txt"])
    assert "nothing.txt cannot be read" in capsys.readouterr().err
