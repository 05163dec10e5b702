"""How surprising a difference between training and held-out images is: exact tests, and intervals of shares."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from exhume.audit.matching import assign, comparable, finite, masked
from exhume.candidates import Candidates, Images
from exhume.metrics import measure_of, similarity

EXACT_PAIRS = 40_000
"""Pairs of values up to which the rank test counts all orders (0.3 s). Beyond, the normal distribution takes their
place: it is near them, and larger far out (9.8e-6 for 7.8e-6, and 1e-34 for 1e-59, at 100 and 100 values)."""
FEW = 8
"""Values on the smaller side up to which tied values are permuted, because the normal distribution is too rough."""
PERMUTATIONS = 20_000
"""Permutations of tied values; all of them where there are no more."""
FEW_IMAGES = 2_000
"""Images from which means are taken out and that are then compared in float64."""
AT_ONCE = 500
"""Images whose means are taken out together (of 2,000 photographs it takes twice the time)."""
ROUNDING = 1e-4
"""Share of an image below which what the mean does not explain is the rounding of float32."""
LEVEL = 0.95
"""Confidence level of every interval."""
SIGNIFICANT = 0.05
"""Chance of a difference from which on it is called none."""

Classes = tuple[Int[Tensor, " n"], Int[Tensor, " k"]]
"""The classes of the training and of the held-out images, within which both are compared."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval of level 95 %."""

    low: float
    high: float


def rank_test(
    candidates: Candidates | Images,
    images: Float[Tensor, "n c h w"],
    held_out: Float[Tensor, "k c h w"],
    labels: Shaped[Tensor, " n"] | None = None,
    classes: Classes | None = None,
    *,
    similarities: tuple[Float[Tensor, "n m"], Float[Tensor, "k m"], Float[Tensor, "k m"]] | None = None,
) -> float:
    """The chance that training images would lie so much nearer to the candidates than held-out ones, by luck.

    Training and held-out images are matched one-to-one to the candidates *together*, and the similarities of the two
    are compared by the rank test of Mann and Whitney (1947, one-sided). The similarity of an image then does not depend
    on which images are called training images. If the candidates do not either, each way to call them so is equally
    likely, and the test is exact, although images compete for the candidates.

    An attacker knows the training mean, which lies nearer to training images than to others. Candidates made of it
    alone would pass the test (60 % of sets of 20 digits at p < 0.05, 22 % of sets of 100). Class means would, too (98 %
    of sets of ten digits a class), and they are in the weights of most networks, but they are no images. So the test is
    done several times, and the largest p-value counts: with the images as they are; with the held-out images moved so
    that their mean is the training mean too; with the mean taken out of images and candidates (partial correlation);
    with the means of the classes taken out.

    Assumes that training and held-out images were drawn alike. Exact for candidates that know nothing of the training
    images. For those that know their means alone it is so up to the shape of the distribution: in simulations p < 0.05
    came in at most 5 % of sets for the mean, 8 % for class means, and mostly in far fewer.

        >>> images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> rank_test(images[:20], images[:20], images[20:]) < 1e-6
        True

    Args:
        labels: the training images' classes, of which those of two or more images have a mean; None: not known.
        classes: of both, within which they are compared (`van_elteren`), so that a control of another mix of classes
            makes no difference; None: all are compared with all.
        similarities: of the candidates with the training images, with the held-out images and with these when moved
            (`moved_similarity`), where they are known (NCC); -1 for candidates that are not finite.

    Raises:
        InputError: as for `match`.
    """
    found, n = comparable(candidates, images), len(images)
    parts = []
    for alike, usable in _views(found, images, held_out, labels, similarities):
        values = _assigned(alike, usable)
        parts.append((values[:n], values[n:]))
        del alike  # before the next ones are made: they may be the largest matrices of all
    return max(mann_whitney(*part) if classes is None else van_elteren(*part, classes) for part in parts)


def count_tests(
    candidates: Candidates | Images,
    images: Float[Tensor, "n c h w"],
    held_out: Float[Tensor, "k c h w"],
    similarities: tuple[Float[Tensor, " n"], Float[Tensor, " k"]],
    thresholds: Sequence[str],
    *,
    classes: Classes | None = None,
    moved: Float[Tensor, "k m"] | None = None,
) -> dict[str, float]:
    """The exact test of the counts at each threshold: Fisher's (1935, one-sided), within classes `stratified_fisher`.

    As in `rank_test` the training mean must not pass for a leak: where the held-out images, moved to the training mean,
    give the larger p-value, that one counts.

    Args:
        similarities: of the training and of the held-out images with their one-to-one candidates.
        classes: of both, within which they are compared; None: all are compared with all.
        moved: `moved_similarity`, where it is known.
    """
    values = moved_similarity(candidates, images, held_out) if moved is None else moved
    controls = (similarities[1], _assigned([values], finite(comparable(candidates, images))))
    within = classes or one_class(len(images), len(held_out))
    return {
        level: max(
            stratified_fisher(similarities[0] >= float(level), control >= float(level), within) for control in controls
        )
        for level in thresholds
    }


def moved_similarity(
    candidates: Candidates | Images, images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"]
) -> Float[Tensor, "k m"]:
    """Similarities of the held-out images, moved so that their mean is that of the training images, with each
    candidate, [k, m]; -1 for one that is not finite."""
    found = comparable(candidates, images)
    return masked(similarity(_moved(images, held_out), found), finite(found), -1.0)


def fisher(recovered: int, images: int, null: int, held_out: int) -> float:
    """The chance of at least so many recovered if training and held-out images were equally easy (Fisher 1935).

    >>> round(fisher(3, 3, 0, 3), 6)
    0.05
    """
    from scipy.stats import fisher_exact  # noqa: PLC0415

    table = [[recovered, images - recovered], [null, held_out - null]]
    return min(1.0, float(fisher_exact(table, alternative="greater").pvalue))


def stratified_fisher(reached: Bool[Tensor, " n"], null: Bool[Tensor, " k"], classes: Classes) -> float:
    """The chance of at least so many reached if within each class training and held-out images were equally easy.

    The exact conditional test of Cochran, Mantel and Haenszel (Birch 1964), one-sided: how many of a class are reached
    is given, so its training images among them are distributed hypergeometrically, and the classes add up. A class
    of one side only tells nothing. With one class it is Fisher's test.

    >>> reached, null = torch.tensor([True, True]), torch.tensor([False, False])
    >>> stratified_fisher(reached, null, (torch.tensor([0, 1]), torch.tensor([0, 1])))
    0.25
    """
    from scipy.stats import hypergeom  # noqa: PLC0415

    chances, seen = np.ones(1), 0
    for here, there in _by_class(reached, null, classes):
        of_training, of_both = int(here.sum()), int(here.sum() + there.sum())
        counts = np.arange(len(here) + 1)
        chances = np.convolve(chances, hypergeom.pmf(counts, len(here) + len(there), of_both, len(here)))
        seen += of_training
    return min(1.0, float(chances[seen:].sum()))


def least_chance(classes: Classes) -> float:
    """The smallest p-value that counts of so many images can have: all of the training images, and no other."""
    training, others = (torch.ones(len(part), dtype=torch.bool) for part in classes)
    return stratified_fisher(training, ~others, classes)


def van_elteren(larger: Float[Tensor, " n"], smaller: Float[Tensor, " k"], classes: Classes) -> float:
    """The chance of so high ranks of the first values within their classes if in each both were drawn alike.

    The stratified rank test of van Elteren (1960), one-sided: rank sums, weighted by 1 / (number + 1) of the class. By
    the normal distribution, with its corrections for ties and continuity; few values are permuted within classes.

    >>> both = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> round(van_elteren(torch.arange(1.0, 7), torch.arange(6.0), (both, both)), 2)
    0.09
    """
    from scipy.stats import norm, rankdata  # noqa: PLC0415

    parts = _by_class(larger.double(), smaller.double(), classes)
    if not parts:
        return 1.0
    if len(parts) == 1:
        return mann_whitney(*parts[0])
    sides = torch.cat([torch.arange(len(here) + len(there)) < len(here) for here, there in parts])
    of_class = torch.cat([torch.full((len(here) + len(there),), i) for i, (here, there) in enumerate(parts)])
    sizes = of_class.bincount()[of_class].double()
    ranks = torch.cat([torch.from_numpy(rankdata(torch.cat(part).numpy())) for part in parts])
    scores = (ranks - (sizes + 1) / 2) / (sizes + 1)
    seen = float(scores[sides].sum())
    if min(int(sides.sum()), int((~sides).sum())) <= FEW:
        shuffles = shuffled(of_class, PERMUTATIONS, torch.Generator().manual_seed(0))
        as_high = int((torch.where(sides[shuffles], scores, 0.0).sum(1) >= seen - 1e-9).sum())
        return (1 + as_high) / (1 + PERMUTATIONS)
    counts = torch.tensor([[len(here), len(there)] for here, there in parts]).double()
    spread = torch.zeros(len(parts), dtype=torch.float64).index_add(0, of_class, scores.square())
    variance = float((spread * counts.prod(1) / (counts.sum(1) * (counts.sum(1) - 1))).sum())
    if variance == 0:
        return 1.0
    return float(norm.sf((seen - 0.5 / (1 + float(sizes.min()))) / math.sqrt(variance)))


def mann_whitney(larger: Float[Tensor, " n"], smaller: Float[Tensor, " k"]) -> float:
    """The chance of so high ranks of the first values among all if both were drawn alike (Mann, Whitney 1947).

    Exact where no values are tied and there are few enough; tied values of a small sample are permuted; else by the
    normal distribution, with its corrections for ties and continuity.

    >>> round(mann_whitney(torch.tensor([4.0, 5.0, 6.0]), torch.tensor([1.0, 2.0, 3.0])), 6)
    0.05
    """
    from scipy.stats import PermutationMethod, mannwhitneyu  # noqa: PLC0415

    one, other = larger.double().numpy(), smaller.double().numpy()
    both = np.concatenate([one, other])
    if len(one) == 0 or len(other) == 0 or both.min() == both.max():
        return 1.0
    tied = len(np.unique(both)) < len(both)
    if tied and min(len(one), len(other)) == 1:  # which SciPy does not permute: each place is as likely
        return float(np.mean(both >= one[0] if len(one) == 1 else both <= other[0]))
    if tied and min(len(one), len(other)) <= FEW:
        method: object = PermutationMethod(n_resamples=PERMUTATIONS, rng=np.random.default_rng(0))
    else:
        method = "asymptotic" if tied or len(one) * len(other) > EXACT_PAIRS else "exact"
    return min(1.0, float(mannwhitneyu(one, other, alternative="greater", method=method).pvalue))


def one_class(images: int, held_out: int) -> Classes:
    """All of one class: so many training and so many held-out images are compared with each other."""
    return torch.zeros(images, dtype=torch.long), torch.zeros(held_out, dtype=torch.long)


def shuffled(classes: Int[Tensor, " p"], count: int, generator: torch.Generator) -> Int[Tensor, "count p"]:
    """So many random orders of the rows, each of which moves a row to a place of its own class."""
    order = classes.argsort(stable=True)
    keys = classes[order] + torch.rand(count, len(classes), generator=generator, dtype=torch.float64)
    places = torch.empty(count, len(classes), dtype=torch.long)
    places[:, order] = order[keys.argsort(1)]
    return places


def share_interval(count: int, total: int) -> Interval:
    """The exact interval of a share (Clopper, Pearson 1934).

    >>> share_interval(0, 10)
    Interval(low=0.0, high=0.3084971078187608)
    """
    from scipy.stats import binomtest  # noqa: PLC0415

    interval = binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return Interval(low=float(interval.low), high=float(interval.high))


def difference_interval(count: int, total: int, other: int, other_total: int) -> Interval:
    """The interval of the difference of two shares, count / total - other / other_total.

    From the Wilson intervals of both (Newcombe 1998, method 10).
    """
    from scipy.stats import binomtest  # noqa: PLC0415

    share, null = count / total, other / other_total
    one, two = (
        binomtest(part, of).proportion_ci(LEVEL, method="wilson") for part, of in ((count, total), (other, other_total))
    )
    return Interval(
        low=float(share - null - math.hypot(share - one.low, two.high - null)),
        high=float(share - null + math.hypot(one.high - share, null - two.low)),
    )


def _views(
    found: Images,
    images: Float[Tensor, "n c h w"],
    held_out: Float[Tensor, "k c h w"],
    labels: Shaped[Tensor, " n"] | None,
    similarities: tuple[Float[Tensor, "n m"], Float[Tensor, "k m"], Float[Tensor, "k m"]] | None,
) -> Iterator[tuple[list[Float[Tensor, "_ m"]], Bool[Tensor, " m"]]]:
    """Similarities of all images together with each candidate, as the rank test sees them, one view at a time.

    Each in parts of its rows, so that no larger matrix is made of them.
    """
    usable = finite(found)
    if measure_of(images) != "ncc":
        for others in (held_out, _moved(images, held_out)):
            yield [masked(similarity(torch.cat([images, others]), found), usable, -1.0)], usable
        return
    own, others, moved = similarities or (
        masked(similarity(images, found), usable, -1.0),
        masked(similarity(held_out, found), usable, -1.0),
        moved_similarity(found, images, held_out),
    )
    yield [own, others], usable
    yield [own, moved], usable
    mean, of_both = images.mean(0, keepdim=True), len(images) + len(held_out)
    for means in (mean, torch.cat([mean, *_class_means(images, labels)])):
        rest = _without(found, means, len(found))
        usable = finite(rest)
        parts = (similarity(_without(part, means, of_both), rest) for part in (images, held_out))
        yield [masked(part, usable, -1.0) for part in parts], usable


def _moved(images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"]) -> Float[Tensor, "k c h w"]:
    return held_out - held_out.mean(0, keepdim=True) + images.mean(0, keepdim=True)


def _assigned(parts: list[Float[Tensor, "_ m"]], usable: Bool[Tensor, " m"]) -> Float[Tensor, " p"]:
    chosen = assign(*parts, usable=usable)
    rows = torch.split(chosen, [len(part) for part in parts])
    values = [part.gather(1, row.clamp_min(0)[:, None])[:, 0] for part, row in zip(parts, rows, strict=True)]
    return torch.where(chosen >= 0, torch.cat(values), -1.0)


def _by_class(training: Tensor, held_out: Tensor, classes: Classes) -> list[tuple[Tensor, Tensor]]:
    """The values of each class that both sides have."""
    shared = [of for of in torch.unique(classes[0]) if bool((classes[1] == of).any())]
    return [(training[classes[0] == of], held_out[classes[1] == of]) for of in shared]


def _class_means(
    images: Float[Tensor, "n c h w"], labels: Shaped[Tensor, " n"] | None
) -> list[Float[Tensor, "1 c h w"]]:
    """The mean of each class of two images or more; that of one image is the image."""
    classes = [] if labels is None else [images[labels == label] for label in torch.unique(labels)]
    return [of_class.mean(0, keepdim=True) for of_class in classes if len(of_class) > 1]


def _without(
    images: Float[Tensor, "n c h w"], means: Float[Tensor, "k c h w"], together: int
) -> Float[Tensor, "n c h w"]:
    """What is left of each channel without its brightness and its part in the span of the means; 0 for rounding.

    Args:
        together: how many images are compared, of which these may be a part.
    """
    _, singular, basis = torch.linalg.svd(_deviation(means).transpose(0, 1), full_matrices=False)
    basis = torch.where(singular[:, :, None] > ROUNDING * singular[:, :1, None], basis, 0.0)
    # similarities of many images are multiplied in float32, whose order is that of float64 but for near ties
    dtype = torch.float64 if together <= FEW_IMAGES else images.dtype
    rest = torch.empty_like(images, dtype=dtype)
    for some, into in zip(torch.split(images, AT_ONCE), torch.split(rest, AT_ONCE), strict=True):
        into.copy_(_without_span(some, basis))
    return rest


def _without_span(images: Float[Tensor, "n c h w"], basis: Float[Tensor, "c k d"]) -> Float[Tensor, "n c h w"]:
    pixels = _deviation(images).transpose(0, 1)
    rest = pixels - pixels @ basis.mT @ basis
    kept = rest.norm(dim=2, keepdim=True) > ROUNDING * pixels.norm(dim=2, keepdim=True)
    return torch.where(kept, rest, 0.0).transpose(0, 1).reshape(images.shape)


def _deviation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c d"]:
    pixels = images.double().flatten(2)
    return pixels - pixels.mean(2, keepdim=True)
