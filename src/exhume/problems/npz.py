"""Your own arrays x_train and y_train in an .npz file (default: as many of each class as of the smallest)."""

from pathlib import Path

import torch

from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task
from exhume.problems import Problem, Selection
from exhume.problems.datasets import DataSet, problem_of
from exhume.problems.formats import read_npz


def load(selection: Selection) -> Problem:
    """Arrays x_train (or images), y_train (or labels), and x_test (or held_out), y_test (or held_out_labels) to take
    held-out images from; without these half of the smallest class is trained on, and the other half is held out.

    Images are [n, h, w], [n, h, w, c] or [n, c, h, w], uint8 or floats in [0, 1]; labels are whole numbers. Two classes
    make a binary problem.
    """
    if selection.data_dir is None:
        raise InputError("The problem npz needs a file: give its path in place of a problem's name or as --data-dir.")
    return own_problem("npz", read_npz(Path(selection.data_dir), title="Your arrays"), selection.per_class)


def own_problem(name: str, data: DataSet, per_class: int | None) -> Problem:
    """The problem of a user's own data: binary for two classes, multiclass for more.

    Args:
        per_class: None: the smallest class, or half of it where held-out images have to be left of it.
    """
    if len(data.classes) < 2:
        raise InputError(f"{name}: a problem needs two classes or more, not only {data.classes[0]} ({data.source}).")
    smallest = int(torch.bincount(data.train.labels, minlength=len(data.classes)).min())
    task: Task = "binary" if len(data.classes) == 2 else "multiclass"
    most = smallest if data.test is not None else max(1, smallest // 2)
    return problem_of(name, data, per_class or most, task=task, network=NetworkConfig())
