"""CIFAR-10, vehicles (target -1) or animals (+1) by regression (default: 50 training images per class)."""

from dataclasses import replace

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection, cifar10_vehicles_animals


def load(selection: Selection) -> Problem:
    """The images of cifar10-vehicles-animals with real targets; PyTorch's initialisation (Buzaglo et al. 2023)."""
    problem = cifar10_vehicles_animals.load(selection)
    return replace(
        problem,
        name="cifar10-vehicles-animals-regression",
        labels=2 * problem.labels.float() - 1,
        held_out_labels=2 * problem.held_out_labels.float() - 1,
        task="regression",
        network=NetworkConfig(init_scale=None),
    )
