"""Whether held-out images are of the same kind as the training images, so that they can be a control."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
MOST_GAP = 0.18
"""Gap up to which two kinds are near to each other. Digits of MNIST's file for training against its file for tests,
other writers: 0.02 to 0.14; 30 % ones against 10 %: 0.13 to 0.16; moved by a pixel: 0.06 to 0.15, by two: 0.21 to
0.35; averages of two digits: 0.39; dimmed to 80 %: 0.29; other classes: 0.44."""
AT_ONCE = 500
"""Divisions that are held in memory together."""


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """How alike the kinds of the training and of the held-out images are.

    p_value: the chance of such neighbours if both sides were drawn alike; gap: how far the kinds are apart, 0 if they
    are one, up to about 0.5; near: of the images that came out by a count, the share that would be held-out ones if an
    image came out for its kind alone, by the name of the count; without those that no image came out by.
    """

    p_value: float
    gap: float
    near: dict[str, float]


def compare_kinds(
    images: Float[Tensor, "n c h w"],
    held_out: Float[Tensor, "k c h w"],
    classes: Classes | None = None,
    came_out: Mapping[str, Bool[Tensor, " n"]] | None = None,
) -> Kinds:
    """Whether both sides are of one kind, by the nearest neighbours of each image among all images together.

    Neighbours are those of the largest similarity, and for pictures once more those of the smallest distance, since
    similarity does not see brightness; of the two the one that says more against the control counts.

    p_value: the nearest-neighbour test of two samples (Schilling 1986, Henze 1988): how many of the ten nearest
    neighbours of an image are on its own side? And how many are training images at all: blurred images, which lie near
    to everything, are neighbours of both sides. The same is counted after random divisions; the smallest of the four
    p-values counts four times. gap: by how much the share of training images among an image's neighbours is other than
    after random divisions, on average over the training images or over the held-out ones, the largest. near: the mean
    share of held-out images among the neighbours of the training images that came out. Where images come out for their
    kind, held-out images of that kind, which lie near, must come out in proportion.

        >>> images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> alike, darker = compare_kinds(images[:30], images[30:]), compare_kinds(images[:30], images[30:] / 2)
        >>> alike.p_value > 0.05, darker.p_value
        (True, 0.0004)
        >>> alike.gap < MOST_GAP < darker.gap
        True

    Args:
        classes: of both sides, within which the sides are divided at random; None: all are of one.
        came_out: which training images came out, by the name of each count.
    """
    pool, training, of_classes, rows = _mixed(images, held_out, classes)
    generator = torch.Generator().manual_seed(0)
    near = [_neighbours(view) for view in _alike(pool)]
    seen = torch.stack([_training_near(training[None], neighbours) for neighbours in near])
    divisions = (
        training[shuffled(of_classes, min(AT_ONCE, SHUFFLES - begin), generator)]
        for begin in range(0, SHUFFLES, AT_ONCE)
    )
    chance = torch.cat([torch.stack([_training_near(some, one) for one in near]) for some in divisions], 2)
    slots = near[0].shape[1] * torch.tensor([int(training.sum()), int((~training).sum())])[:, None]
    as_many = torch.cat(
        [_own_side(chance, slots) >= _own_side(seen, slots), _hubs(chance, chance) >= _hubs(seen, chance)]
    )
    # Where of one side fewer are compared than there are, each of it stands for more.
    odds = (len(held_out) / (~training).sum()) / (len(images) / training.sum())
    out = {name: (training & of[rows.clamp_max(len(images) - 1)]) for name, of in (came_out or {}).items()}
    return Kinds(
        p_value=min(1.0, len(as_many) * (1 + int(as_many.sum(1).min())) / (1 + SHUFFLES)),
        gap=float(((seen - chance.double().mean(2, keepdim=True)) / slots).abs().max()),
        near={
            name: min(_held_out_share(training, neighbours, of, float(odds)) for neighbours in near)
            for name, of in out.items()
            if of.any()
        },
    )


def _held_out_share(training: Tensor, neighbours: Int[Tensor, "p q"], of: Bool[Tensor, " p"], odds: float) -> float:
    """Of held-out images among the neighbours of some, on average."""
    share = (~training[neighbours[of]]).double().mean(1)
    return float((odds * share / (odds * share + 1 - share)).mean())


def _training_near(divided: Bool[Tensor, "shuffles p"], neighbours: Int[Tensor, "p q"]) -> Int[Tensor, "2 shuffles"]:
    """Of each division, how many neighbours of training images, and of held-out ones, are training images."""
    near = torch.stack([divided[:, column] for column in neighbours.T]).sum(0)
    return torch.stack([(near * side).sum(1) for side in (divided, ~divided)])


def _own_side(counts: Int[Tensor, "views 2 shuffles"], slots: Int[Tensor, "2 1"]) -> Int[Tensor, "views shuffles"]:
    """How many neighbours are on the side of their image."""
    return counts[:, 0] + slots[1] - counts[:, 1]


def _hubs(
    counts: Int[Tensor, "views 2 shuffles"], chance: Int[Tensor, "views 2 others"]
) -> Float[Tensor, "views shuffles"]:
    """By how much more or fewer neighbours than by chance are training images."""
    return (counts.sum(1) - chance.sum(1).double().mean(1, keepdim=True)).abs()


def _mixed(
    images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"], classes: Classes | None
) -> tuple[Tensor, Bool[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Some images of both sides in a random order, which of them are training images, their classes, their rows.

    Mixed so that among equal neighbours none is preferred for its side. The rows are those of each image's own side.
    """
    n, k = (min(len(part), MOST) for part in (images, held_out))
    rows, other = (torch.linspace(0, len(part) - 1, of).round().long() for part, of in ((images, n), (held_out, k)))
    of_classes = classes or one_class(len(images), len(held_out))
    mixed = torch.randperm(n + k, generator=torch.Generator().manual_seed(0))
    pool = torch.cat([images[rows], held_out[other]])[mixed]
    of_both = torch.cat([of_classes[0][rows], of_classes[1][other]])
    return pool, mixed < n, of_both[mixed], torch.cat([rows, other])[mixed]


def _alike(pool: Float[Tensor, "p c h w"]) -> list[Float[Tensor, "p p"]]:
    """How near images are to each other: by similarity and, for pictures, by distance."""
    views = [similarity(pool, pool)]
    if measure_of(pool) == "ncc":
        views.append(-torch.cdist(pool.flatten(1), pool.flatten(1)))
    return views


def _neighbours(alike: Float[Tensor, "p p"]) -> Int[Tensor, "p q"]:
    return alike.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, max(1, len(alike) // NEAR))).indices
