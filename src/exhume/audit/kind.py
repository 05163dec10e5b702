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
    n, k = (min(len(part), MOST) for part in (images, held_out))
    rows, other = (torch.linspace(0, len(part) - 1, of).round().long() for part, of in ((images, n), (held_out, k)))
    pool = torch.cat([images[rows], held_out[other]])
    of_classes = classes or one_class(len(images), len(held_out))
    both = torch.cat([of_classes[0][rows], of_classes[1][other]])
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randperm(n + k, generator=generator)  # so that among equal neighbours none is preferred for its side
    pool, both, training = pool[mixed], both[mixed], mixed < n
    views = [similarity(pool, pool)]
    if measure_of(images) == "ncc":
        views.append(-torch.cdist(pool.flatten(1), pool.flatten(1)))
    near = [_neighbours(view) for view in views]
    seen = [_same_side(training[None], neighbours) for neighbours in near]
    as_many = torch.zeros(len(near))
    for begin in range(0, SHUFFLES, AT_ONCE):
        divided = training[shuffled(both, min(AT_ONCE, SHUFFLES - begin), generator)]
        as_many += torch.stack([(_same_side(divided, near[i]) >= seen[i]).sum() for i in range(len(near))])
    return min(1.0, len(near) * (1 + int(as_many.min())) / (1 + SHUFFLES))


def _neighbours(alike: Float[Tensor, "p p"]) -> Int[Tensor, "p q"]:
    return alike.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, max(1, len(alike) // NEAR))).indices


def _same_side(training: Tensor, neighbours: Int[Tensor, "p q"]) -> Int[Tensor, " shuffles"]:
    """Of each division, [shuffles, p], how many neighbours are on the side of their image."""
    return torch.stack([(training[:, column] == training).sum(1) for column in neighbours.T]).sum(0)
