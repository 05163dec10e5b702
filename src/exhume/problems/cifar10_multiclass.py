"""CIFAR-10, ten classes of photographs (default: 10 training images per class)."""

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.archives import cifar10
from exhume.problems.datasets import problem_of


def load(selection: Selection) -> Problem:
    """The first images of each class; the papers' multiclass run has 50 of each (Buzaglo et al. 2023)."""
    per_class = selection.per_class or 10
    return problem_of("cifar10-multiclass", cifar10(selection), per_class, task="multiclass", network=NetworkConfig())
