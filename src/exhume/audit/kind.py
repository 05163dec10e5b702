"""Whether held-out images are of the same kind as the training images, so that they can be a control."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from exhume.audit.significance import Classes, one_class, shuffled
from exhume.metrics import measure_of, similarity

ANOTHER_KIND = 1e-3
"""Chance of such neighbours up to which the control is taken for one of another kind: one in a thousand that is not."""
NEIGHBOURS = 10
"""Nearest neighbours that are looked at. Of 50 digits a side, 60 % ones on one side and 10 % on the other, three
told 40 % of divisions, five 65 %, ten 78 %."""
NEAR = 4
"""Neighbours are at most one of so many images: were all of them neighbours, nothing could be told."""
SHUFFLES = 9_999
"""Random divisions that are compared: with two measures the smallest p-value is 2e-4, below `ANOTHER_KIND`."""
MOST = 500
"""Images of each side that are compared (4 s); these are enough to see any difference that could look like a leak."""
MOST_GAP = 0.15
"""Share of an image's neighbours that are training images beyond what chance gives, up to which two kinds are near to
each other. Digits of MNIST's file for training against its file for tests, other writers: 0.02 to 0.13; 30 % ones
against 10 %: 0.09; 40 %: 0.07 to 0.16; averages of two digits: 0.39; dimmed to 80 %: 0.29; other classes: 0.44."""
AT_ONCE = 500
"""Divisions that are held in memory together."""


def kind_test(
    images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"], classes: Classes | None = None
) -> float:
    """The chance of so many nearest neighbours on the same side if both sides were drawn alike.

    The nearest-neighbour test of two samples (Schilling 1986, Henze 1988): among all images together, how many of the
    ten nearest neighbours of an image are on its own side? The same is counted after random divisions. Neighbours are
    those of the largest similarity, and for pictures once more those of the smallest distance, since similarity does
    not see brightness; the smaller p-value counts twice.

        >>> images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> kind_test(images[:30], images[30:]) > 0.05
        True
        >>> kind_test(images[:30], images[30:] / 2)
        0.0002

    Args:
        classes: of both sides, within which the sides are divided at random; None: all are of one.
    """
    pool, training, of_classes, generator = _mixed(images, held_out, classes)
    near = [_neighbours(view) for view in _alike(pool)]
    seen = [_same_side(training[None], neighbours) for neighbours in near]
    as_many = torch.zeros(len(near))
    for begin in range(0, SHUFFLES, AT_ONCE):
        divided = training[shuffled(of_classes, min(AT_ONCE, SHUFFLES - begin), generator)]
        as_many += torch.stack([(_same_side(divided, near[i]) >= seen[i]).sum() for i in range(len(near))])
    return min(1.0, len(near) * (1 + int(as_many.min())) / (1 + SHUFFLES))


def kind_gap(
    images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"], classes: Classes | None = None
) -> float:
    """How far two kinds are apart: 0 if they are one, up to about 0.5.

    Among the neighbours of an image, of `kind_test`, a share are training images. The gap is by how much that share is
    other than after random divisions, on average over the training images or over the held-out ones, for either
    measure; the largest. So it sees images that lie near to everything too, as blurred ones do.

        >>> images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> kind_gap(images[:30], images[30:]) < MOST_GAP < kind_gap(images[:30], images[30:] / 2)
        True
    """
    pool, training, of_classes, generator = _mixed(images, held_out, classes)
    divided = training[shuffled(of_classes, AT_ONCE, generator)]
    gaps = [
        _shares(training[None], neighbours) - _shares(divided, neighbours).mean(1, keepdim=True)
        for neighbours in map(_neighbours, _alike(pool))
    ]
    return float(torch.cat(gaps, 1).abs().max())


def _shares(divided: Tensor, neighbours: Int[Tensor, "p q"]) -> Float[Tensor, "2 shuffles"]:
    """Of each division, the share of training images among the neighbours of training and of held-out images."""
    near = torch.stack([divided[:, column] for column in neighbours.T]).float().mean(0)
    return torch.stack([(near * side).sum(1) / side.sum(1).clamp_min(1) for side in (divided, ~divided)])


def _mixed(
    images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"], classes: Classes | None
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Some images of both sides in a random order, which of them are training images, their classes, a generator.

    Mixed so that among equal neighbours none is preferred for its side.
    """
    n, k = (min(len(part), MOST) for part in (images, held_out))
    rows, other = (torch.linspace(0, len(part) - 1, of).round().long() for part, of in ((images, n), (held_out, k)))
    of_classes = classes or one_class(len(images), len(held_out))
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randperm(n + k, generator=generator)
    pool = torch.cat([images[rows], held_out[other]])[mixed]
    return pool, mixed < n, torch.cat([of_classes[0][rows], of_classes[1][other]])[mixed], generator


def _alike(pool: Float[Tensor, "p c h w"]) -> list[Float[Tensor, "p p"]]:
    """How near images are to each other: by similarity and, for pictures, by distance."""
    views = [similarity(pool, pool)]
    if measure_of(pool) == "ncc":
        views.append(-torch.cdist(pool.flatten(1), pool.flatten(1)))
    return views


def _neighbours(alike: Float[Tensor, "p p"]) -> Int[Tensor, "p q"]:
    return alike.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, max(1, len(alike) // NEAR))).indices


def _same_side(training: Tensor, neighbours: Int[Tensor, "p q"]) -> Int[Tensor, " shuffles"]:
    """Of each division, [shuffles, p], how many neighbours are on the side of their image."""
    return torch.stack([(training[:, column] == training).sum(1) for column in neighbours.T]).sum(0)
