"""CIFAR-100, a hundred classes of photographs (default: 1 training image per class)."""

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.archives import cifar100
from exhume.problems.datasets import problem_of


def load(selection: Selection) -> Problem:
    """The first images of each of the 100 fine classes (Krizhevsky 2009; the run is Buzaglo et al. 2023)."""
    per_class = selection.per_class or 1
    return problem_of("cifar100-multiclass", cifar100(selection), per_class, task="multiclass", network=NetworkConfig())
