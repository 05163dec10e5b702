"""MNIST, the ten digits (default: 10 training images per class)."""

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.archives import mnist
from exhume.problems.datasets import problem_of


def load(selection: Selection) -> Problem:
    """The first images of each digit; source: LeCun, Cortes, Burges, The MNIST database of handwritten digits."""
    per_class = selection.per_class or 10
    data = mnist(selection, per_digit=2 * per_class)
    return problem_of("mnist-digits", data, per_class, task="multiclass", network=NetworkConfig())
