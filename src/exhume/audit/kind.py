"""Whether held-out images are of the same kind as the training images, so that they can be a control."""

from collections.abc import Iterator, Mapping
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
"""Random divisions that are compared: the smallest p-value is 1e-4, below `ANOTHER_KIND`."""
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

    p_value: three things are counted, and the same after random divisions. How many of the ten nearest neighbours of an
    image are on its own side (the nearest-neighbour test of two samples: Schilling 1986, Henze 1988)? And how many
    neighbours are training images, too many or too few? The first does not see noise: where the nearest of all images
    are the clean ones, as many neighbours are lost to one side as the other has more (Chen, Friedman 2017). And are the
    neighbours of training images nearer than others, or farther, by rank? Of all three, by either measure, the one that
    is farthest from its mean counts (max-type test: Chu, Chen 2019), in its standard deviations. gap: by how much the
    share of training images among an image's neighbours is other than after random divisions, on average over the
    training images or over the held-out ones, the largest. near: the mean share of held-out images among the neighbours
    of the training images that came out. Where images come out for their kind, held-out images of that kind, which lie
    near, must come out in proportion.

        >>> images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> alike, darker = compare_kinds(images[:30], images[30:]), compare_kinds(images[:30], images[30:] / 2)
        >>> alike.p_value > 0.05, darker.p_value
        (True, 0.0001)
        >>> alike.gap < MOST_GAP < darker.gap
        True

    Args:
        classes: of both sides, within which the sides are divided at random; None: all are of one.
        came_out: which training images came out, by the name of each count.
    """
    pool = _mixed(images, held_out, classes)
    near = [_neighbours(view.fill_diagonal_(-torch.inf)) for view in _alike(pool.images, pool.images)]
    counts = torch.stack([_counts(pool, of) for of in near])
    # Where of one side fewer are compared than there are, each of it stands for more.
    odds = (len(held_out) / (~pool.training).sum()) / (len(images) / pool.training.sum())
    return Kinds(
        p_value=_chance(counts),
        gap=_gap(counts, pool.training, near[0].rows.shape[1]),
        near={name: _near(pool, images, of, float(odds)) for name, of in (came_out or {}).items() if of.any()},
    )


def _divisions(pool: "_Pool") -> Iterator[Float[Tensor, "divisions p"]]:
    """Which are training images: as it is, and after random divisions."""
    generator = torch.Generator().manual_seed(0)
    yield pool.training[None].float()
    for begin in range(0, SHUFFLES, AT_ONCE):
        yield pool.training[shuffled(pool.classes, min(AT_ONCE, SHUFFLES - begin), generator)].float()


def _counts(pool: "_Pool", near: "_Neighbours") -> Float[Tensor, "divisions 3"]:
    """Of each division: how many neighbours of its training images, and of all images, are training images, and the
    ranks of its training images by how near their neighbours are."""
    from scipy.stats import rankdata  # noqa: PLC0415

    edges = torch.zeros(len(near.rows), len(near.rows)).scatter_(1, near.rows, 1.0)
    ranks = torch.from_numpy(rankdata(near.alike.double().mean(1).numpy())).float()
    counts = [
        torch.stack([((divided @ edges) * divided).sum(1), divided @ edges.sum(0), divided @ ranks], 1)
        for divided in _divisions(pool)
    ]
    return torch.cat(counts).double()


def _chance(counts: Float[Tensor, "views divisions 3"]) -> float:
    """The chance that counts are as far from their means as those of the first division."""
    own, of_all, ranks = counts.unbind(2)
    both = torch.stack([2 * own - of_all, of_all, ranks])  # the first: neighbours on the same side, but for a constant
    apart = (both - both.mean(2, keepdim=True)) / both.std(2, keepdim=True).clamp_min(torch.finfo(both.dtype).tiny)
    farthest = torch.cat([apart[:1], apart[1:].abs()]).amax((0, 1))
    return float((farthest >= farthest[0]).double().mean())


def _gap(counts: Float[Tensor, "views divisions 3"], training: Bool[Tensor, " p"], neighbours: int) -> float:
    own, of_all, _ = counts.unbind(2)
    n = int(training.sum())
    shares = torch.stack([own / n, (of_all - own) / (len(training) - n)]) / neighbours
    return float((shares[:, :, 0] - shares.mean(2)).abs().max())


def _near(pool: "_Pool", images: Float[Tensor, "n c h w"], of: Bool[Tensor, " n"], odds: float) -> float:
    """The mean share of held-out images among the neighbours of some training images, by the measure that says less."""
    some = torch.nonzero(of)[:, 0]
    some = some[_spread(len(some))]
    itself = pool.training & (pool.rows == some[:, None])
    shares = []
    for view in _alike(images[some], pool.images):
        share = (~pool.training[_neighbours(view.masked_fill_(itself, -torch.inf)).rows]).double().mean(1)
        shares.append(float((odds * share / (odds * share + 1 - share)).mean()))
    return min(shares)


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Some images of both sides in a random order, which of them are training images, their classes, their rows.

    Mixed so that among equal neighbours none is preferred for its side. The rows are those of each image's own side.
    """

    images: Float[Tensor, "p c h w"]
    training: Bool[Tensor, " p"]
    classes: Int[Tensor, " p"]
    rows: Int[Tensor, " p"]


def _mixed(images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"], classes: Classes | None) -> _Pool:
    rows, other = _spread(len(images)), _spread(len(held_out))
    of_classes = classes or one_class(len(images), len(held_out))
    mixed = torch.randperm(len(rows) + len(other), generator=torch.Generator().manual_seed(0))
    return _Pool(
        images=torch.cat([images[rows], held_out[other]])[mixed],
        training=mixed < len(rows),
        classes=torch.cat([of_classes[0][rows], of_classes[1][other]])[mixed],
        rows=torch.cat([rows, other])[mixed],
    )


def _spread(count: int) -> Int[Tensor, " some"]:
    """At most `MOST` of so many rows, evenly spread."""
    return torch.linspace(0, count - 1, min(count, MOST)).round().long()


def _alike(some: Float[Tensor, "n c h w"], pool: Float[Tensor, "p c h w"]) -> list[Float[Tensor, "n p"]]:
    """How near images are to those of the pool: by similarity and, for pictures, by distance."""
    views = [similarity(pool, some).T.contiguous()]
    if measure_of(pool) == "ncc":
        views.append(-torch.cdist(some.flatten(1), pool.flatten(1)))
    return views


@dataclass(frozen=True, kw_only=True)
class _Neighbours:
    """The nearest images of a pool to each image, and how near they are."""

    rows: Int[Tensor, "n q"]
    alike: Float[Tensor, "n q"]


def _neighbours(alike: Float[Tensor, "n p"]) -> _Neighbours:
    nearest = alike.topk(min(NEIGHBOURS, max(1, alike.shape[1] // NEAR)))
    return _Neighbours(rows=nearest.indices, alike=nearest.values)
