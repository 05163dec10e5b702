"""Your own arrays x_train and y_train in an .npz file (default: all of them are trained on)."""

from pathlib import Path

from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task
from exhume.problems import Problem, Selection
from exhume.problems.datasets import DataSet, problem_of, whole_problem_of
from exhume.problems.formats import read_npz


def load(selection: Selection) -> Problem:
    """Arrays x_train (or images), y_train (or labels), and x_test (or held_out), y_test (or held_out_labels) to take
    held-out images from; without these half of each class is trained on, and the other half is held out.

    Images are [n, h, w], [n, h, w, c] or [n, c, h, w], uint8 or floats in [0, 1]; labels are whole numbers. Two classes
    make a binary problem.
    """
    if selection.data_dir is None:
        raise InputError("The problem npz needs a file: give its path in place of a problem's name or as --data-dir.")
    return own_problem("npz", read_npz(Path(selection.data_dir), title="Your arrays"), selection.per_class)


def own_problem(name: str, data: DataSet, per_class: int | None) -> Problem:
    """The problem of a user's own data: binary for two classes, multiclass for more.

    Args:
        per_class: None: every image is trained on, or half of each class where held-out images have to be left of it.

    Raises:
        InputError: there are fewer than two classes, fewer images than asked for, or none is left to hold out.
    """
    if len(data.classes) < 2:
        raise InputError(f"{name}: a problem needs two classes or more, not only {data.classes[0]} ({data.source}).")
    task: Task = "binary" if len(data.classes) == 2 else "multiclass"
    if per_class is not None:
        return problem_of(name, data, per_class, task=task, network=NetworkConfig())
    return whole_problem_of(name, data, task=task, network=NetworkConfig())
