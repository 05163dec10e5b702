"""The papers' own code is run by one-line commands, `Main.py --run_mode=...`, which it keeps in files: read as ours.

FLAGS is every flag of its two editions, 2022 and 2023, with its default there and what became of it.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath
from typing import Literal

from exhume.defence.losses import resolve_loss
from exhume.errors import InputError
from exhume.networks import Task

Mode = Literal["train", "reconstruct"]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A command of ours, word by word, and which of the given flags are not in it, each with the reason.

    missing: those without counterpart here; dead: those without effect there; remarks: sentences on the command.
    """

    command: list[str]
    missing: dict[str, str]
    dead: dict[str, str]
    remarks: list[str]


def read_arguments(text: str, run: str | None = None) -> Imported:
    """Reads a command of the papers' code; quotes within quotes, line breaks and comments may be in it.

    Args:
        run: folder of the run for our command; None: in runs/, under the name its weights have there.

    Raises:
        InputError: a flag or its value is unknown, or one that has no default is missing.
    """
    given = _given(_words(text))
    mode: Mode = "train" if _chosen(given, "run_mode", ("train", "reconstruct")) == "train" else "reconstruct"
    overruled = _overruled(given, TASKS[_chosen(given, "problem", tuple(TASKS))])
    words, missing, dead = [], dict[str, str](), dict[str, str]()
    for name, flag in FLAGS.items():
        kind, _, why = (flag.train if mode == "train" else flag.reconstruct).partition(": ")
        if name in overruled:
            kind, why = "dead", overruled[name]
        value = _taken(name, given[name]) if name in given else None
        if kind.startswith("--"):
            words += [kind, *(_taken(name, flag.default) if value is None else value)]
        elif value is not None and kind == "dead":
            dead[name] = why
        elif value is not None and kind == "missing" and value != [flag.same]:
            missing[name] = why
    run = run or f"runs/{_name(given, mode)}"
    places = ["train", given["problem"].replace("_", "-"), run] if mode == "train" else ["reconstruct", run]
    more = [*_loss(given), *_start(given)] if mode == "train" else ["--method", "reference"]
    remarks = _remarks(given, mode, run)
    return Imported(command=["exhume", *places, *words, *more], missing=missing, dead=dead, remarks=remarks)


# ---- The table


def _number(text: str) -> list[str]:
    float(text)
    return [text]


def _whole(text: str) -> list[str]:
    int(text)
    return [text]


def _list(text: str) -> list[str]:
    items = [item.strip(" '\"") for item in text.strip("[]() ").split(",")]
    return [word for item in items if item for word in _number(item)]


def _yes(text: str) -> list[str]:
    words = {"yes": "yes true t y 1", "no": "no false f n 0"}
    return [next(name for name, spellings in words.items() if text.lower() in spellings.split())]


def _bias(text: str) -> list[str]:
    return ["all" if _yes(text) == ["yes"] else "first"]


def _activation(text: str) -> list[str]:
    ours = {"relu": "relu", "leakyrelu": "leaky-relu", "gelu": "gelu", "tanh": "tanh", "sigmoid": "sigmoid"}
    return [ours[text]]


def _dtype(text: str) -> list[str]:
    return ["float64" if text == "double" else "float32"]


def _any(text: str) -> list[str]:
    return [text]


@dataclass(frozen=True)
class Flag:
    """A flag of the papers' code.

    train, reconstruct: what became of it in each mode: our flag ("--lr"), "dead: " and why it had no effect there,
    "missing: " and why there is no counterpart here, or "" where the command says it in another way;
    default: its value where it is not given, None if it must be; takes: checks a value, and turns it into our words;
    same: the word for what is always done here.
    """

    train: str
    reconstruct: str
    default: str | None = ""
    takes: Callable[[str], list[str]] = _any
    same: str = ""


_UNREAD = "dead: this mode does not read it"
_NEVER = "dead: nothing reads it"
_KEPT = "missing: a training is kept every 20 seconds and when it is over"
_OF_CHECKPOINT = "missing: the checkpoint says it"
_FOUND = "missing: the candidates are kept when the search is over"
_BATCHES = "dead: every step took all images all the same (2022: one step an epoch, 2023: as many as batches)"
_HELD_OUT = "missing: the accuracy is told of as many held-out images as are trained on"
_MEAN = "missing: the mean of the training images is always subtracted"
_RECORDS = "missing: every record holds the settings"
_TRACK = "missing: that is --track wandb"
_PROJECT = "missing: with --track wandb it is called exhume"
_ENTITY = "dead: the code has an account of its own written into it"
_DEVICE = "dead: a GPU was used wherever there was one; here --device chooses"

FLAGS: dict[str, Flag] = {
    "run_mode": Flag("", "", None),
    "problem": Flag("", "", None),
    "data_per_class_train": Flag("--per-class", "missing: the attack sees no training images", None, _whole),
    "data_per_class_val": Flag(_HELD_OUT, _UNREAD),
    "data_per_class_test": Flag(_HELD_OUT, _UNREAD),
    "data_reduce_mean": Flag(_MEAN, _MEAN, "true", _yes, "yes"),
    "proj_name": Flag("", ""),
    "pretrained_model_path": Flag(_UNREAD, ""),
    "seed": Flag("--seed", "--seed", "1", _whole),
    "precision": Flag("--dtype", "--dtype", "double", _dtype),
    "cuda": Flag(_DEVICE, _DEVICE),
    # the network
    "model_type": Flag("missing: --kind chooses", _OF_CHECKPOINT, "mlp", _any, "mlp"),
    "model_hidden_list": Flag("--widths", _OF_CHECKPOINT, "[1000, 1000]", _list),
    "model_use_bias": Flag("--bias", _OF_CHECKPOINT, "false", _bias),
    "model_train_activation": Flag("--activation", _UNREAD, "relu", _activation),
    "use_init_scale": Flag("", _UNREAD, "true", _yes),
    "use_init_scale_only_first": Flag("", _UNREAD, "true", _yes),
    "model_init_list": Flag("", _UNREAD, "", _list),
    # its training
    "train_epochs": Flag("--epochs", _UNREAD, "1000", _whole),
    "train_lr": Flag("--lr", _UNREAD, "0.01", _number),
    "train_wd": Flag("--weight-decay", _UNREAD, "0", _number),
    "train_regression": Flag("", _UNREAD, "false", _yes),
    "train_huber_loss": Flag("", _UNREAD, "false", _yes),
    "train_threshold": Flag("--stop-loss", _UNREAD, "1e-40", _number),
    "train_evaluate_rate": Flag("--evaluate-every", _UNREAD, "1000", _whole),
    "train_SGD": Flag(_BATCHES, _UNREAD, "false", _yes),
    "train_SGD_batch_size": Flag(_BATCHES, _UNREAD),
    "train_save_model": Flag(_KEPT, _UNREAD),
    "train_save_model_every": Flag(_KEPT, _UNREAD),
    # the attack
    "extraction_data_amount_per_class": Flag(_UNREAD, "--per-class", None, _whole),
    "extraction_epochs": Flag(_UNREAD, "--steps", "1000", _whole),
    "extraction_lr": Flag(_UNREAD, "--lr-images", "1e-4", _number),
    "extraction_lambda_lr": Flag(_UNREAD, "--lr-multipliers", "1e-4", _number),
    "extraction_init_scale": Flag(_UNREAD, "--init-scale", "1e-9", _number),
    "extraction_min_lambda": Flag(_UNREAD, "--min-multiplier", "0.05", _number),
    "extraction_model_relu_alpha": Flag(_UNREAD, "--sharpness", "300", _number),
    "extraction_model_activation": Flag(
        _UNREAD, "missing: the smoothed derivative is the only one", "modifiedrelu", _any, "modifiedrelu"
    ),
    "extraction_loss_type": Flag(_UNREAD, "missing: stationarity is the only objective", "kkt", _any, "kkt"),
    "extraction_regression": Flag(_UNREAD, _OF_CHECKPOINT, "false", _yes, "no"),
    "extraction_evaluate_rate": Flag(_UNREAD, "missing: the residual is recorded about a hundred times"),
    "extraction_stop_threshold": Flag(
        _UNREAD, "missing: it gave up far from the training images, which no attacker can know"
    ),
    "extraction_lr_x": Flag(_NEVER, _NEVER),
    "extraction_lr_l": Flag(_NEVER, _NEVER),
    "extract_save_results": Flag(_UNREAD, _FOUND),
    "extract_save_results_every": Flag(_UNREAD, _FOUND),
    # what is written down
    "save_args_files": Flag(_RECORDS, _RECORDS),
    "wandb_active": Flag(_TRACK, _TRACK, "false", _yes, "no"),
    "wandb_project_name": Flag(_PROJECT, _PROJECT),
    "wandb_entity": Flag(_ENTITY, _ENTITY),
}

TASKS: dict[str, Task] = {
    "cifar10_vehicles_animals": "binary",
    "mnist_odd_even": "binary",
    "cifar10_multiclass": "multiclass",
    "cifar100_multiclass": "multiclass",
    "cifar10_vehicles_animals_regression": "regression",
}
"""The problems there, which are the same here, but for the hyphens in their names."""
_FLAGS_OF_2023 = {"train_wd", "train_regression", "train_huber_loss", "extraction_regression"}
_PROBLEMS_OF_2022 = {"cifar10_vehicles_animals", "mnist_odd_even"}


# ---- From the file to flags


def _words(text: str) -> list[str]:
    """The words of a shell's line; one that holds flags of its own, a quoted command, is taken apart too."""
    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text), comments=True)
    except ValueError:
        raise InputError("A quotation mark has no partner.") from None
    # each quotation mark that is taken away shortens the text; what has none left is no command
    return [
        inner for word in words for inner in (_words(word) if re.search(r"\s--\w", word) and word != text else [word])
    ]


def _given(words: list[str]) -> dict[str, str]:
    """The flags and their values; what stands before the first flag is the program's name."""
    given, name = dict[str, str](), ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            if name not in FLAGS:
                close = get_close_matches(name, FLAGS, n=1)
                hint = f"; did you mean --{close[0]}?" if close else "."
                raise InputError(f"The papers' code has no flag --{name}{hint}")
            given[name] = value.strip("'\"")
        elif name and PurePath(word).name == "Main.py":
            raise InputError("There is more than one command; give each a file of its own.")
        elif name:
            given[name] = f"{given[name]} {word}".strip()
    return given


def _chosen(given: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    if given.get(name) not in choices:
        raise InputError(f"--{name} must be one of {', '.join(choices)}, and is {given.get(name, 'missing')}.")
    return given[name]


def _taken(name: str, value: str | None) -> list[str]:
    """A value in our words."""
    if value is None:
        raise InputError(f"--{name} is missing, and the papers' code has no default for it.")
    try:
        return FLAGS[name].takes(value)
    except (ValueError, KeyError, StopIteration):
        raise InputError(f"--{name} cannot be {value!r}.") from None


def _holds(given: Mapping[str, str], name: str) -> bool:
    return _taken(name, given.get(name, FLAGS[name].default)) == ["yes"]


# ---- What depends on several flags


def _overruled(given: Mapping[str, str], task: Task) -> dict[str, str]:
    """Flags that others deprive of their effect, and why."""
    reasons = dict[str, str]()
    if task == "regression":
        reasons |= dict.fromkeys(("train_regression", "extraction_regression"), "the problem sets it")
        reasons["extraction_min_lambda"] = "the multipliers of a regression may be negative"
    elif not _holds(given, "train_regression"):
        reasons["train_huber_loss"] = "without train_regression it is not looked at"
    if not _holds(given, "use_init_scale"):
        reasons |= dict.fromkeys(("model_init_list", "use_init_scale_only_first"), "use_init_scale is off")
    if task != "multiclass":
        reasons |= dict.fromkeys(("data_per_class_val", "data_per_class_test"), "the problem has its own number")
    return reasons


def _loss(given: Mapping[str, str]) -> list[str]:
    task = TASKS[given["problem"]]
    real = task == "regression" or _holds(given, "train_regression")
    return ["--loss", resolve_loss(task, ("huber" if _holds(given, "train_huber_loss") else "mse") if real else None)]


def _start(given: Mapping[str, str]) -> list[str]:
    """How the weights begin; one list has a scale for each layer, of which mostly the first is used."""
    if not _holds(given, "use_init_scale"):
        return ["--init-scale", "None"]
    scales = _taken("model_init_list", given.get("model_init_list", "[1e-1]" if _edition(given) == 2022 else "[1e-4]"))
    if not scales:
        raise InputError("--model_init_list is empty.")
    if _holds(given, "use_init_scale_only_first"):
        return ["--init-scale", scales[0]]
    if len(set(map(float, scales))) > 1:
        raise InputError("--model_init_list has different scales, and here the layers share one.")
    return ["--init-scale", scales[0], "--init-layers", "all"]


def _edition(given: Mapping[str, str]) -> int:
    return 2022 if given["problem"] in _PROBLEMS_OF_2022 and not _FLAGS_OF_2023 & set(given) else 2023


def _name(given: Mapping[str, str], mode: Mode) -> str:
    """What the weights are called there."""
    if mode == "reconstruct":
        weights = PurePath(given.get("pretrained_model_path", "")).name
        return weights.removeprefix("weights-").removesuffix(".pth") or given["problem"]
    project = given.get("proj_name")
    return f"{given['problem']}_d{given['data_per_class_train']}" + (f"_{project}" if project else "")


def _remarks(given: Mapping[str, str], mode: Mode, run: str) -> list[str]:
    remarks = ["The same seed draws other numbers here."]
    task = TASKS[given["problem"]]
    if mode == "reconstruct":
        weights = given.get("pretrained_model_path") or "WEIGHTS.pth"
        shape = "1 28 28" if given["problem"] == "mnist_odd_even" else "3 32 32"
        foreign = f"--checkpoint {weights} --shape {shape} --task {task} --centre MEAN.npy"
        remarks.append(f"The weights are those of {run}; for a file of the papers' code add {foreign}.")
        return remarks
    if "model_init_list" not in given and _holds(given, "use_init_scale"):
        remarks.append(f"The scale of the first weights is the default of the {_edition(given)} code.")
    if task == "binary" and _holds(given, "train_regression"):
        remarks.append("The targets were 0 and 1 there; here they are -1 and +1.")
    if _edition(given) == 2022 and _holds(given, "model_use_bias"):
        remarks.append("The last layer had no bias in the 2022 code.")
    return remarks
