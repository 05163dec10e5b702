"""CIFAR-10, vehicles or animals (default: 50 training images per class)."""

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.archives import cifar10
from exhume.problems.datasets import grouped, problem_of

VEHICLE_OR_ANIMAL = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)


def load(selection: Selection) -> Problem:
    """The first vehicles (class 0) and animals (class 1); 250 of each in the papers' run (Haim et al. 2022)."""
    data = grouped(cifar10(selection), VEHICLE_OR_ANIMAL, ("vehicle", "animal"))
    return problem_of(
        "cifar10-vehicles-animals", data, selection.per_class or 50, task="binary", network=NetworkConfig()
    )
