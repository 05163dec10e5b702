"""Settings and assumptions in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from exhume.report.words import number

LABELS = {
    "kind": "Kind of network",
    "widths": "Neurons of the hidden layers",
    "channels": "Channels of the convolutions",
    "activation": "Activation",
    "bias": "Layers with a bias",
    "init_layers": "Layers of that initial size",
    "name": "Name",
    "selection": "Selection",
    "source": "Where the images come from",
    "images": "Training images",
    "fingerprint": "Fingerprint",
    "per_class": "Images of each class",
    "classes": "Number of classes",
    "data_dir": "Folder of the data",
    "loss": "Loss",
    "epochs": "Most epochs",
    "lr": "Learning rate",
    "lr_over_loss": "Learning rate over loss",
    "optimiser": "Optimiser",
    "momentum": "Momentum",
    "weight_decay": "Weight decay",
    "batch_size": "Images in a batch",
    "shifts": "Random shifts",
    "noise": "DP-SGD noise",
    "clip": "DP-SGD clipping",
    "stop_loss": "Stops at a loss below",
    "stop_gradient": "Stops at a gradient below",
    "patience": "Evaluations without progress before it stops",
    "dtype": "Precision",
    "seed": "Seed",
    "evaluate_every": "Epochs between evaluations",
    "steps": "Steps of a search",
    "restarts": "Searches",
    "objective": "Objective",
    "lr_images": "Learning rate of the images",
    "lr_multipliers": "Learning rate of the multipliers",
    "init_scale": "Size of the first values (standard deviation)",
    "min_multiplier": "Least multiplier without a penalty",
    "sharpness": "Sharpness of the smoothed ReLU",
    "smoothness": "Smoothness prior, weight",
    "binary_prior": "Black-or-white prior, weight",
    "regime": "Kind of training, told by the weights",
    "images_from": "That number comes from",
    "rank": "Directions searched in",
    "discarded": "Largest direction left out, relative to the largest of all",
    "layers": "Parameters to be explained",
    "known_init": "Start of training",
    "retained": "Share of the start that is left",
    "exact": "The change has few directions",
    "exhume": "exhume",
    "torch": "PyTorch",
    "python": "Python",
    "device": "Device",
    "threads": "Threads",
    "date": "Date",
    "seconds": "Seconds",
}
"""What the settings and assumptions are called on the page, by the names of their fields."""

UNSET = {
    "init_scale": "the default of PyTorch",
    "batch_size": "all at once",
    "loss": "that of the task",
    "objective": "that of the task",
    "patience": "no early stopping",
    "evaluate_every": "about a hundred in all",
    "images": "read from the weights",
    "smoothness": "read from the weights",
    "binary_prior": "read from the weights",
    "known_init": "not known",
    "discarded": "none",
    "regime": "none: all parameters are believed",
}
"""What it means that a setting was not set; of others the default is meant."""


def setting(name: str, value: Any) -> tuple[str, str]:
    """A setting's name and value in plain words.

    Example:
        >>> setting("binary_prior", 5.0), setting("known_init", None)
        (('Black-or-white prior, weight', '5'), ('Start of training', 'not known'))
    """
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    return label, UNSET.get(name, "default") if value is None else _written(name, value)


def _written(name: str, value: Any) -> str:
    if name in ("date", "seed"):
        return str(value).partition("T")[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, str):
        return value
    return ", ".join(_written(name, part) for part in value) or "none"


def in_words(records: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The fields of each record in plain words, those of records within it among them."""
    return {title: list(_fields(asdict(record))) for title, record in records.items()}


def _fields(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _fields(value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield "Layers", ", ".join(str(layer["kind"]) for layer in value)
        else:
            yield setting(name, value)


def layers(names: Sequence[str], parameters: Sequence[str]) -> str:
    """Parameters in words: the weights and biases of which layers.

    Args:
        names: of the parameters to be explained, as the network calls them.
        parameters: all of the network, as the checkpoint calls them; where these are no numbers, names are given.

    Example:
        >>> layers(["layers.1.weight", "layers.1.bias"], ["1.bias", "1.weight", "3.weight", "5.weight"])
        'the weights of layer 1 of 3, the biases of layer 1'
        >>> layers(["layers.1.weight", "layers.3.weight"], ["1.weight", "3.weight"])
        'all weights'
    """
    asked, parameters = ([name.removeprefix("layers.") for name in given] for given in (names, parameters))
    if set(asked) == set(parameters):
        return "all weights and biases" if any(name.endswith("bias") for name in asked) else "all weights"
    modules = {name.rpartition(".")[0] for name in parameters}
    if not set(asked) <= set(parameters) or not all(module.isdecimal() for module in modules):
        return ", ".join(names)
    place = {module: i for i, module in enumerate(sorted(modules, key=int), 1)}
    of_all = f" of {len(modules)}" if len(modules) > 1 else ""
    parts = []
    for kind, words, rest in (("weight", "the weights", of_all), ("bias", "the biases", "")):
        places = [place[name.rpartition(".")[0]] for name in asked if name.endswith(kind)]
        parts += [f"{words} of {_numbered(places)}{rest}"] if places else []
    return ", ".join(parts)


def _numbered(places: Sequence[int]) -> str:
    *others, last = map(str, places)
    return f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
