"""MNIST, odd or even digits (default: 50 training images per class)."""

from exhume.networks import NetworkConfig
from exhume.problems import Problem, Selection
from exhume.problems.archives import mnist
from exhume.problems.datasets import grouped, problem_of


def load(selection: Selection) -> Problem:
    """The first even (class 0) and odd (class 1) digits; 250 of each in the papers' run (Haim et al. 2022)."""
    per_class = selection.per_class or 50
    data = mnist(selection, per_digit=-(-2 * per_class // 5))
    parity = grouped(data, (0, 1) * 5, ("even", "odd"))
    return problem_of("mnist-odd-even", parity, per_class, task="binary", network=NetworkConfig())
