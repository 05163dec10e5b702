"""Photographs of CIFAR-10 on which no other row is trained: of each class those after the first 50, 200 at most."""

from dataclasses import replace

import torch
from torch.nn import functional

from exhume import Problem, Selection, load_problem

PRIVATE = 50
"""Images of each class, the first, on which others are trained."""


def load(selection: Selection) -> Problem:
    public = selection.per_class or 200
    photographs = load_problem("cifar10-multiclass", replace(selection, per_class=PRIVATE + public))
    # how many of its class came before it
    place = functional.one_hot(photographs.labels).cumsum(0).gather(1, photographs.labels[:, None])[:, 0] - 1
    rest = torch.nonzero(place >= PRIVATE)[:, 0]
    return replace(
        photographs, name="public-photographs", images=photographs.images[rest], labels=photographs.labels[rest]
    )
