"""The auditor: how many training images came out, and how many would have by chance.

It sees the candidates and the truth, never the network. Every count stands beside its null: the same candidates, scored
by the same procedure against held-out images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from exhume.audit.matching import Matches, comparable, finite, halved_similarity, match
from exhume.candidates import Candidates, Images
from exhume.errors import InputError
from exhume.metrics import Measure, l2, measure_of, min_max, psnr, ssim

THRESHOLDS = ("0.7", "0.8", "0.9", "0.95")
"""Similarities at which recovered images are counted; 0.9 is the headline."""
GOOD_SSIM = 0.4
"""What the papers call a good reconstruction: SSIM with window 3 above this."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well training image `index` came out.

    candidate: its one-to-one candidate, which `ncc` (agreement, for points), `ssim3`, `ssim11`, `l2`, `psnr` judge;
    nearest: its best candidate many-to-one. -1: there is none, the similarity is then -1 and the others None.
    SSIM is of the candidate stretched to [0, 1] (None for points), L2 and PSNR (dB) of the candidate clamped to [0, 1].
    """

    index: int
    label: float
    candidate: int
    ncc: float
    nearest: int
    nearest_ncc: float
    ssim3: float | None
    ssim11: float | None
    l2: float | None
    psnr: float | None


@dataclass(frozen=True, kw_only=True)
class Ssim:
    """The papers' measure: images whose nearest candidate (many-to-one) has an SSIM above 0.4.

    null_good: the same count for the held-out images; null_perfect: that of a perfect reconstruction (see `Scores`);
    top10: mean of the ten best, None where SSIM is not defined.
    """

    good: int
    null_good: int
    null_perfect: int
    top10: float | None
    window: int = 3


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of the stages before; None where it is not known."""

    train: float | None = None
    reconstruct: float | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many training images came out, and how many would have by chance: all of `Scores` that is a record.

    measure: "ncc", or "agreement" for points; images, held_out, candidates: how many there were of each; recovered:
    images whose one-to-one candidate reaches the similarity "0.7", "0.8", "0.9", "0.95"; null: the same counts for the
    held-out images, unscaled where they are fewer; null_perfect: what null would be if the training images themselves
    were the candidates: so many held-out images resemble them (null is to be read beside it; it is no bound);
    mean_alone: the counts if every candidate were the training mean, which the attacker is given; p_value: the chance
    of at least so many recovered at 0.9 if training and held-out images were equally easy (Fisher's exact test,
    one-sided; Fisher 1935).
    """

    problem: str
    measure: Measure
    images: int
    held_out: int
    candidates: int
    recovered: dict[str, int]
    null: dict[str, int]
    null_perfect: dict[str, int]
    mean_alone: dict[str, int]
    median_ncc: float
    null_median_ncc: float
    p_value: float
    ssim: Ssim
    per_image: list[ImageScore]
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class Scores(Counts):
    """The counts, with the matches that they were counted from; control: the held-out images taken, [k, c, h, w]."""

    matches: Matches = field(compare=False)
    control: Float[Tensor, "k c h w"] = field(compare=False)
    control_matches: Matches = field(compare=False)


def score(
    candidates: Candidates | Float[Tensor, "m _ _ _"],
    images: Float[Tensor, "n c h w"],
    labels: Shaped[Tensor, " labels"],
    held_out: Float[Tensor, "k _ _ _"],
    *,
    problem: str = "",
    seconds: Seconds | None = None,
) -> Scores:
    """Counts the training images that came out, beside as many held-out images scored in exactly the same way.

        scores = exhume.score(candidates, problem.images, problem.labels, problem.held_out)
        print(scores.recovered["0.9"], scores.null["0.9"], scores.p_value)

    Args:
        candidates: what was found; images of any other origin are scored in the same way.
        images, labels: the training set, images in [0, 1].
        held_out: images of the same kind that the network never saw, in [0, 1]; n of them are taken, evenly spread, or
            all if fewer.

    Raises:
        InputError: labels and images differ in number, there is no held-out image, or as for `match`.
    """
    if len(labels) != len(images):
        raise InputError(f"There are {len(images)} images but {len(labels)} labels.")
    if len(held_out) == 0:
        raise InputError("Without held-out images there is no control, and a count alone says nothing.")
    control = control_images(held_out, len(images))
    matches, control_matches = match(candidates, images), match(candidates, control)
    recovered, null = _counts(matches), _counts(control_matches)
    return Scores(
        problem=problem,
        measure=measure_of(images),
        images=len(images),
        held_out=len(control),
        candidates=len(comparable(candidates, images)),
        recovered=recovered,
        null=null,
        null_perfect=_counts(match(images, control)),
        mean_alone=_counts(match(images.mean(0).expand_as(images), images)),
        median_ncc=median(matches.assigned_similarity.tolist()),
        null_median_ncc=median(control_matches.assigned_similarity.tolist()),
        p_value=_p_value(recovered["0.9"], len(images), null["0.9"], len(control)),
        ssim=_papers_ssim(candidates, images, control),
        per_image=_per_image(candidates, images, labels, matches),
        seconds=seconds or Seconds(),
        matches=matches,
        control=control,
        control_matches=control_matches,
    )


def sentence(scores: Counts) -> str:
    """Says in one sentence how much came out and how surprising that is.

    A p-value of 0.05 or more, or a share no larger than that of the held-out images, counts as chance.

        print(exhume.sentence(exhume.score(candidates, images, labels, held_out)))
    """
    recovered, null = scores.recovered["0.9"], scores.null["0.9"]
    measure = "NCC" if scores.measure == "ncc" else "agreement"
    counts = (
        f"{recovered} of {scores.images} training images came out ({measure} >= 0.9, one-to-one); "
        f"of {scores.held_out} held-out images {null} did"
    )
    if recovered * scores.held_out <= null * scores.images:
        return f"{counts}: at this threshold no better than chance."
    if scores.p_value >= 0.05:
        return f"{counts}: chance alone would give such a difference with probability {scores.p_value:.2g}."
    odds = "below 1e-20" if scores.p_value < 1e-20 else f"about {scores.p_value:.1g}"
    return f"{counts}: chance alone would give such a difference with probability {odds}."


def control_images(held_out: Images, count: int) -> Float[Tensor, "n c h w"]:
    """The control: `count` held-out images, or all if fewer, evenly spread since they may come class by class."""
    return held_out[torch.linspace(0, len(held_out) - 1, min(count, len(held_out))).round().long()]


def _counts(matches: Matches) -> dict[str, int]:
    values = matches.assigned_similarity
    return {threshold: int((values >= float(threshold)).sum()) for threshold in THRESHOLDS}


def _p_value(recovered: int, images: int, null: int, held_out: int) -> float:
    from scipy.stats import fisher_exact  # noqa: PLC0415

    table = [[recovered, images - recovered], [null, held_out - null]]
    return min(1.0, float(fisher_exact(table, alternative="greater").pvalue))


def _papers_ssim(
    candidates: Candidates | Images, images: Float[Tensor, "n c h w"], control: Float[Tensor, "k c h w"]
) -> Ssim:
    values, null = _nearest_ssim(candidates, images), _nearest_ssim(candidates, control)
    best = sorted(values, reverse=True)[:10]
    return Ssim(
        good=_good(values),
        null_good=_good(null),
        null_perfect=_good(_nearest_ssim(images, control)),
        top10=fmean(best) if best else None,
    )


def _good(values: Sequence[float]) -> int:
    return sum(value > GOOD_SSIM for value in values)


def _nearest_ssim(candidates: Candidates | Images, images: Float[Tensor, "n c h w"]) -> list[float]:
    """SSIM, window 3, of each image and its nearest candidate, stretched to [0, 1]; empty where it is not defined."""
    found = comparable(candidates, images)
    found = found[finite(found)]
    if len(found) == 0:
        return []
    nearest = halved_similarity(found, images).argmax(1)
    values = ssim(min_max(found[nearest]), images, 3)
    return [] if values is None else values.tolist()


def _per_image(
    candidates: Candidates | Images, images: Float[Tensor, "n c h w"], labels: Shaped[Tensor, " n"], matches: Matches
) -> list[ImageScore]:
    paired = torch.nonzero(matches.assigned >= 0)[:, 0]
    found, truth = comparable(candidates, images)[matches.assigned[paired]], images[paired]
    stretched, clamped = min_max(found), found.clamp(0, 1)

    def by_image(values: Tensor | None) -> dict[int, float]:
        return {} if values is None else dict(zip(paired.tolist(), values.tolist(), strict=True))

    ssim3, ssim11 = (by_image(ssim(stretched, truth, window)) for window in (3, 11))
    distance, ratio = by_image(l2(clamped, truth)), by_image(psnr(clamped, truth))
    return [
        ImageScore(
            index=i,
            label=float(labels[i]),
            candidate=int(matches.assigned[i]),
            ncc=float(matches.assigned_similarity[i]),
            nearest=int(matches.nearest[i]),
            nearest_ncc=float(matches.nearest_similarity[i]),
            ssim3=ssim3.get(i),
            ssim11=ssim11.get(i),
            l2=distance.get(i),
            psnr=ratio.get(i),
        )
        for i in range(len(images))
    ]
