"""What a network was trained on. One file is one problem: a function `load(selection) -> Problem`.

A user's own problem is a path to such a file, to a folder of images, or to an .npz file, in place of a name.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task

PROBLEMS: dict[str, str] = {
    "mnist-digits": "exhume.problems.mnist_digits",
    "mnist-odd-even": "exhume.problems.mnist_odd_even",
    "faces": "exhume.problems.faces",
    "toy-circle": "exhume.problems.toy_circle",
    "cifar10-multiclass": "exhume.problems.cifar10_multiclass",
    "cifar10-vehicles-animals": "exhume.problems.cifar10_vehicles_animals",
    "cifar10-vehicles-animals-regression": "exhume.problems.cifar10_vehicles_animals_regression",
    "cifar100-multiclass": "exhume.problems.cifar100_multiclass",
    "image-folder": "exhume.problems.image_folder",
    "npz": "exhume.problems.npz",
}
"""A problem's name and the module that loads it."""
INSTALLED = "installed"
"""In place of a data folder: what comes with the installation, whatever else is at hand."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a data set is trained on.

    Example:
        exhume.load_problem("mnist-digits", exhume.Selection(per_class=5))
    """

    per_class: int | None = None
    """Training images of each class, the first in the data set's order; None: the problem's own number."""
    classes: int | None = None
    """Only the first so many classes, of a problem with several; None: all."""
    data_dir: str | None = None
    """Folder (or file) that holds the data; "installed": the digits that come with the installation; None: the
    environment variable EXHUME_DATA, else a download."""

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < 1:
            raise InputError(f"per_class must be at least 1, not {self.per_class}.")
        if self.classes is not None and self.classes < 2:
            raise InputError(f"classes must be at least 2, not {self.classes}.")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Images to train on and held-out images of the same kind.

    images: [n, c, h, w] in [0, 1]; labels: [n], class indices (binary: 0 or 1), or real targets for regression;
    held_out, held_out_labels: the same for images the network never sees, for the null control and the accuracy;
    network: the default network; source: where the data came from, in words.

        mine = exhume.Problem(
            name="mine", images=images, labels=labels, held_out=others, held_out_labels=their_labels, task="binary",
            classes=("cat", "dog"), network=exhume.NetworkConfig(), source="my photographs",
        )
    """

    name: str
    images: Float[Tensor, "n c h w"]
    labels: Shaped[Tensor, " n"]
    held_out: Float[Tensor, "k c h w"]
    held_out_labels: Shaped[Tensor, " k"]
    task: Task
    classes: tuple[str, ...]
    network: NetworkConfig
    source: str

    @property
    def outputs(self) -> int:
        """Number of outputs a network for this problem has."""
        return len(self.classes) if self.task == "multiclass" else 1

    @property
    def fingerprint(self) -> str:
        """A digest of all images and labels, to tell when the data under a run, or its control, have changed."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.held_out, self.held_out_labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def load_problem(name: str, selection: Selection | None = None) -> Problem:
    """Loads a problem by its name, or from the user's .py file, folder of images or .npz file that `name` is a path to.

        >>> problem = load_problem("mnist-digits", Selection(per_class=5, data_dir="installed"))
        >>> problem.images.shape
        torch.Size([50, 1, 28, 28])

    Raises:
        InputError: the name is unknown, or the data cannot be found or read, or hold fewer images or classes than asked
            for.
    """
    name, selection = locate(name, selection or Selection())
    if selection.data_dir not in (None, INSTALLED) and not Path(selection.data_dir).exists():
        raise InputError(f"There is no file or folder {selection.data_dir} to read the data from.")
    module = importlib.import_module(PROBLEMS[name]) if name in PROBLEMS else _user_module(Path(name))
    load: Callable[[Selection], Problem] = module.load
    problem = load(selection)
    if not isinstance(problem, Problem):
        raise InputError(f"{name}: load(selection) returned no Problem but a {type(problem).__name__}.")
    _check(problem)
    if selection.classes is None:
        return problem
    fewer = _first_classes(problem, selection.classes)
    _check(fewer)
    return fewer


def locate(name: str, selection: Selection) -> tuple[str, Selection]:
    """The same problem with absolute paths, so that it can be loaded again from another folder."""
    path, data_dir = Path(name), selection.data_dir
    if name not in PROBLEMS and path.suffix == ".npz":
        name, data_dir = "npz", name
    elif name not in PROBLEMS and path.is_dir():
        name, data_dir = "image-folder", name
    elif name not in PROBLEMS and path.suffix == ".py":
        name = str(path.resolve())
    if data_dir not in (None, INSTALLED):
        data_dir = str(Path(data_dir).resolve())
    return name, replace(selection, data_dir=data_dir)


def names_and_summaries() -> dict[str, str]:
    """What each problem is, in the one line that begins its module's documentation."""
    modules = {name: importlib.import_module(module) for name, module in PROBLEMS.items()}
    return {name: (module.__doc__ or "").splitlines()[0] for name, module in modules.items()}


def first_per_class(
    images: Shaped[Tensor, "n c h w"], labels: Shaped[Tensor, " n"], per_class: int, *, start: int = 0, what: str
) -> tuple[Tensor, Tensor]:
    """Takes images start .. start + per_class of each class in the data set's order, class by class.

    Raises:
        InputError: a class has fewer; `what` names the data in the sentence.
    """
    rows = []
    for label in torch.unique(labels):
        of_class = torch.nonzero(labels == label)[:, 0]
        if len(of_class) < start + per_class:
            raise InputError(
                f"{what} has {len(of_class)} images of class {label.item():g}, "
                f"fewer than the {start + per_class} needed ({per_class} of them asked for)."
            )
        rows.append(of_class[start : start + per_class])
    chosen = torch.cat(rows)
    return images[chosen], labels[chosen]


def _first_classes(problem: Problem, count: int) -> Problem:
    if problem.task != "multiclass" or count > len(problem.classes):
        raise InputError(
            f"Problem {problem.name} ({problem.task}) has {len(problem.classes)} classes; "
            f"{count} of them cannot be chosen, and only multiclass problems can have fewer."
        )
    kept, kept_held_out = problem.labels < count, problem.held_out_labels < count
    return replace(
        problem,
        images=problem.images[kept],
        labels=problem.labels[kept],
        held_out=problem.held_out[kept_held_out],
        held_out_labels=problem.held_out_labels[kept_held_out],
        classes=problem.classes[:count],
    )


def _user_module(path: Path) -> ModuleType:
    if path.suffix != ".py":
        close = get_close_matches(str(path), PROBLEMS, n=1)
        hint = f" Did you mean {close[0]}?" if close else " `exhume problems` lists them."
        raise InputError(f"There is no problem {str(path)!r}, nor a .py, .npz or folder of that name.{hint}")
    if not path.is_file():
        raise InputError(f"There is no problem file {path}.")
    spec = importlib.util.spec_from_file_location(f"exhume_problem_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass in the user's file looks its own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}.") from error
    if not hasattr(module, "load"):
        raise InputError(f"{path} defines no function load(selection) that returns a Problem.")
    return module


def _check(problem: Problem) -> None:
    """What every stage relies on, checked once for our problems and the users'."""
    _check_part(problem, problem.images, problem.labels, f"Problem {problem.name}: the training")
    _check_part(problem, problem.held_out, problem.held_out_labels, f"Problem {problem.name}: the held-out")
    if problem.images.shape[1:] != problem.held_out.shape[1:]:
        raise InputError(f"Problem {problem.name}: training and held-out images have different shapes.")
    seen = {image.tobytes() for image in problem.images.numpy()}
    if any(image.tobytes() in seen for image in problem.held_out.numpy()):
        raise InputError(f"Problem {problem.name}: a held-out image is a training image too, so it is no control.")


def _check_part(problem: Problem, images: Tensor, labels: Tensor, what: str) -> None:
    if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
        raise InputError(f"{what} images must be [n, c, h, w] with n labels, n > 0.")
    if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
        raise InputError(f"{what} images must be floats in [0, 1].")
    if problem.task == "regression":
        if not labels.is_floating_point() or not labels.isfinite().all():
            raise InputError(f"{what} labels must be real targets (finite floats) for regression.")
    elif labels.dtype != torch.int64 or labels.min() < 0 or labels.max() >= len(problem.classes):
        raise InputError(f"{what} labels must be class indices (int64) below {len(problem.classes)}.")
