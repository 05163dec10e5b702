"""The owner's network and her images, made to fit each other."""

from dataclasses import replace

import torch

from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.problems import Problem
from exhume.problems.owned import OwnedImages
from exhume.runs.defences import check_comparable

AS_SUBTRACTED = 1e-3
"""Difference of a pixel up to which what the network subtracts is the mean of the training images."""


def fitted(checkpoint: Checkpoint, mine: OwnedImages) -> tuple[Checkpoint, OwnedImages]:
    """Network and images as they are audited: of the same classes, with what the attacker is given.

    Raises:
        InputError: as for `with_outputs_as_classes`.
    """
    mine = with_outputs_as_classes(mine, checkpoint)
    return replace(with_known_mean(checkpoint, mine), classes=mine.classes or checkpoint.classes), mine


def with_known_mean(checkpoint: Checkpoint, mine: OwnedImages) -> Checkpoint:
    """The checkpoint of an attacker who knows the mean of the training images too: the worst case for their owner."""
    mean = mine.images.mean(0)
    if checkpoint.shape != tuple(mean.shape) or torch.allclose(checkpoint.centre.to(mean), mean, atol=AS_SUBTRACTED):
        return checkpoint  # what is subtracted tells it
    return replace(checkpoint, known_mean=mean)


def with_outputs_as_classes(mine: OwnedImages, checkpoint: Checkpoint) -> OwnedImages:
    """The images with the network's outputs as their classes, where some classes have no image but all are numbers.

    Raises:
        InputError: the classes cannot be told from each other's outputs.
    """
    mine = with_labels_of(mine, checkpoint)
    if mine.labels is None or checkpoint.task != "multiclass" or len(mine.classes) == checkpoint.outputs:
        return mine
    numbers = [int(name) if name.isdecimal() else -1 for name in mine.classes]
    if not all(0 <= number < checkpoint.outputs for number in numbers):
        raise InputError(
            f"The network tells {checkpoint.outputs} classes apart, and the images are of {len(mine.classes)} "
            f"({', '.join(mine.classes[:5])}). Name them by the number of their output, from 0."
        )
    order = torch.tensor(numbers)
    known = mine.held_out_labels
    return replace(
        mine,
        labels=order[mine.labels],
        held_out_labels=None if known is None else order[known],
        classes=tuple(str(output) for output in range(checkpoint.outputs)),
    )


def with_labels_of(mine: OwnedImages, checkpoint: Checkpoint) -> OwnedImages:
    """The images with labels of the network's kind: real targets for regression, else classes.

    Whole numbers that were stored as real ones become classes; two classes stand for the targets -1 and 1.

    Raises:
        InputError: the labels are real numbers, and the network tells classes apart.
    """
    labels, others = mine.labels, mine.held_out_labels
    if labels is None:
        return mine
    if checkpoint.task == "regression" and not labels.is_floating_point() and len(mine.classes) > 2:
        values = torch.tensor([float(name) for name in mine.classes if _is_number(name)])
        if len(values) != len(mine.classes):
            raise InputError("The network gives real numbers, and the images have classes: give numbers as labels.")
        real = None if others is None else values[others]
        return replace(mine, labels=values[labels], held_out_labels=real, classes=())
    if not labels.is_floating_point() or checkpoint.task == "regression":
        return mine
    both = labels if others is None else torch.cat([labels, others])
    if not torch.equal(both, both.round()):
        raise InputError("The labels are real numbers, and the network tells classes apart: give these as labels.")
    values, indices = torch.unique(both, return_inverse=True)
    return replace(
        mine,
        labels=indices[: len(labels)],
        held_out_labels=None if others is None else indices[len(labels) :],
        classes=tuple(str(int(value)) for value in values),
    )


def _is_number(name: str) -> bool:
    return name.removeprefix("-").replace(".", "", 1).isdecimal()


def to_train_on(checkpoint: Checkpoint, mine: OwnedImages) -> Problem:
    """What variants of the network are trained on.

    Raises:
        InputError: as for `check_comparable`.
    """
    check_comparable(checkpoint, mine)
    assert mine.labels is not None and mine.held_out_labels is not None
    return Problem(
        name=mine.name,
        images=mine.images,
        labels=mine.labels,
        held_out=mine.held_out,
        held_out_labels=mine.held_out_labels,
        task=checkpoint.task,
        classes=checkpoint.classes,
        network=checkpoint.network if isinstance(checkpoint.network, NetworkConfig) else NetworkConfig(),
        source=mine.source,
    )
