"""Photographs of CIFAR-10, ten classes; where more are asked for than there are, their mirror images follow."""

import torch

from exhume import Problem, Selection
from exhume.networks import NetworkConfig
from exhume.problems import first_per_class
from exhume.problems.archives import cifar10
from exhume.problems.datasets import DataSet, Rows, problem_of

DEFAULT = 50
"""Training images of each class."""


def load(selection: Selection) -> Problem:
    data, per_class = cifar10(selection), selection.per_class or DEFAULT
    if int(data.train.labels.bincount().min()) < per_class:
        data = _with_mirror_images(data, per_class)
    return problem_of("many-photographs", data, per_class, task="multiclass", network=NetworkConfig())


def _with_mirror_images(data: DataSet, per_class: int) -> DataSet:
    """No more than are trained on, so that none of their mirror images is held out."""
    train = Rows(*first_per_class(*_mirrored(data.train), per_class, what=data.source))
    return data._replace(train=train, test=data.test and _mirrored(data.test))


def _mirrored(rows: Rows) -> Rows:
    return Rows(torch.cat([rows.images, rows.images.flip(-1)]), rows.labels.repeat(2))
