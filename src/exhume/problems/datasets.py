"""From a data set as it was published to a problem: the first images of each class, and others for the control."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task
from exhume.problems import Problem, first_per_class


class Rows(NamedTuple):
    """Images, [n, c, h, w], bytes or floats in [0, 1], and their class indices, [n]."""

    images: Shaped[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]


class DataSet(NamedTuple):
    """A data set in its published order; `test` is its own test split, None where it has none."""

    train: Rows
    test: Rows | None
    classes: tuple[str, ...]
    source: str


def grouped(data: DataSet, group_of: tuple[int, ...], classes: tuple[str, ...]) -> DataSet:
    """Joins classes into super-classes: class k becomes class `group_of[k]` of `classes`; the order stays."""
    groups = torch.tensor(group_of)
    train = Rows(data.train.images, groups[data.train.labels])
    test = data.test and Rows(data.test.images, groups[data.test.labels])
    return data._replace(train=train, test=test, classes=classes)


def problem_of(name: str, data: DataSet, per_class: int, *, task: Task, network: NetworkConfig) -> Problem:
    """Takes the first `per_class` images of each class to train on, and as many others to hold out, where there are.

    The held-out images are the first of each class in the test split where that has enough, else those that follow
    the training images; they are balanced too, and none equals a training image.

    Raises:
        InputError: a class has fewer than `per_class` images, or none is left that the network would not see.
    """
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    if int(counts.min()) < per_class:
        raise InputError(
            f"{name}: class {data.classes[int(counts.argmin())]} has {int(counts.min())} training images, "
            f"fewer than the {per_class} per class asked for ({data.source})."
        )
    train = Rows(*first_per_class(*data.train, per_class, what=data.source))
    held_out = _held_out(name, data, train.images, per_class)
    return Problem(
        name=name,
        images=unit_range(train.images),
        labels=train.labels,
        held_out=unit_range(held_out.images),
        held_out_labels=held_out.labels,
        task=task,
        classes=data.classes,
        network=network,
        source=data.source,
    )


def whole_problem_of(name: str, data: DataSet, *, task: Task, network: NetworkConfig) -> Problem:
    """Trains on every image, or on the first half of each class where the data set has no test split.

    Classes keep the number of images that they have. Held out are the test split or the other halves, without copies of
    training images, and of each class no more than are trained on.

    Raises:
        InputError: no image is left that the network would not see.
    """
    ordered = _by_class(data.train)
    counts = torch.bincount(ordered.labels, minlength=len(data.classes))
    if data.test is None:
        counts = (counts + 1) // 2
        train, rest = _first(ordered, counts), _first(ordered, counts, last=True)
    else:
        train, rest = ordered, _by_class(data.test)
    held_out = _first(_without(rest, {image.tobytes() for image in train.images.numpy()}), counts)
    if len(held_out.images) == 0:
        raise InputError(f"{name}: no held-out images are left for the control ({data.source}).")
    return Problem(
        name=name,
        images=unit_range(train.images),
        labels=train.labels,
        held_out=unit_range(held_out.images),
        held_out_labels=held_out.labels,
        task=task,
        classes=data.classes,
        network=network,
        source=f"{data.source}{_uneven(train, held_out, len(data.classes))}",
    )


def _by_class(rows: Rows) -> Rows:
    """Class by class, each in the order of the data set."""
    order = rows.labels.argsort(stable=True)
    return Rows(rows.images[order], rows.labels[order])


def _first(rows: Rows, counts: Int[Tensor, " classes"], *, last: bool = False) -> Rows:
    """The first so many images of each class, all if there are fewer; or those after them."""
    place = torch.zeros(len(rows.labels), dtype=torch.long)
    for label in torch.unique(rows.labels):
        of_class = rows.labels == label
        place[of_class] = torch.arange(int(of_class.sum()))
    kept = (place < counts[rows.labels]) != last
    return Rows(rows.images[kept], rows.labels[kept])


def _uneven(train: Rows, held_out: Rows, classes: int) -> str:
    """How many images there are, where classes differ in their number."""
    trained, others = (torch.bincount(part.labels, minlength=classes) for part in (train, held_out))
    if len(set(trained.tolist())) == len(set(others.tolist())) == 1:
        return ""
    listed = ", ".join(f"{count} and {other}" for count, other in zip(trained.tolist(), others.tolist(), strict=True))
    return f"; of each class trained on and held out: {listed}"


def unit_range(images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats stay what they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _held_out(name: str, data: DataSet, seen: Tensor, per_class: int) -> Rows:
    seen_bytes = {image.tobytes() for image in seen.numpy()}
    most, chosen = 0, data.train
    for pool in (data.test, data.train):
        if pool is not None and most < per_class:
            rest = _without(pool, seen_bytes)
            available = int(torch.bincount(rest.labels, minlength=len(data.classes)).min())
            if available > most:
                most, chosen = available, rest
    if most == 0:
        raise InputError(
            f"{name}: with {per_class} images per class no held-out images of every class are left for the control; "
            f"take fewer per class ({data.source})."
        )
    return Rows(*first_per_class(*chosen, min(most, per_class), what=data.source))


def _without(pool: Rows, seen: set[bytes]) -> Rows:
    """Images are told apart by their pixels, so that a second copy of a training image is no held-out image."""
    fresh = torch.tensor([image.tobytes() not in seen for image in pool.images.numpy()], dtype=torch.bool)
    return Rows(pool.images[fresh], pool.labels[fresh])
