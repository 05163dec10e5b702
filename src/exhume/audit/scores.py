"""The auditor: how many training images came out, and how many would have by chance.

It sees the candidates and the truth, never the network. Every count stands beside its null: the same candidates, scored
by the same procedure against held-out images. Where there are none, a count is only a count, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exhume.audit.kind import ANOTHER_KIND, MOST_GAP, kind_gap, kind_test
from exhume.audit.matching import Matches, comparable, finite, halved_similarity, masked, match, merge
from exhume.audit.significance import (
    SIGNIFICANT,
    Classes,
    Interval,
    count_tests,
    difference_interval,
    fisher,
    least_chance,
    one_class,
    rank_test,
    share_interval,
)
from exhume.candidates import Candidates, Images
from exhume.errors import InputError
from exhume.metrics import Measure, l2, measure_of, min_max, psnr, similarity, ssim

THRESHOLDS = ("0.7", "0.8", "0.9", "0.95")
"""Similarities at which recovered images are counted; 0.9 is the headline."""
HEADLINE = "0.9"
"""The threshold that the sentence begins with."""
SAME = 0.95
"""NCC from which two training images count as one where distinct images are counted."""
CONFIDENT = 0.5
"""Confidence from which an attacker without the data would pick a candidate: more likely right than wrong."""
SUSPECT = 1e-3
"""Chance of so many held-out images that came out, by those that training images resemble, below which the control is
taken for one that was trained on. The benchmark's controls have 5 beside 2 at most."""
HALF = 0.5
"""Share of training images with a class that the control has too, from which on they are compared within classes."""
AT_ONCE = 2_000
"""Images that are compared with all candidates together where only the nearest counts."""
GOOD_SSIM = 0.4
"""What the papers call a good reconstruction: SSIM with window 3 above this."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well training image `index` came out; label: None where it is not known.

    candidate: its one-to-one candidate, which `ncc` (agreement, for points), `ssim3`, `ssim11`, `l2`, `psnr` judge;
    nearest: its best candidate many-to-one. -1: there is none, the similarity is then -1 and the others None.
    SSIM is of the candidate stretched to [0, 1] (None for points), L2 and PSNR (dB) of the candidate clamped to [0, 1].
    """

    index: int
    label: float | None
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
class Picked:
    """What an attacker without the data would have picked: the candidates of a confidence of at least 0.5.

    candidates: how many these are; expected: how many of them would be right by their confidence, its sum; right: how
    many are, that is resemble some training image (NCC >= 0.9, many-to-one); distinct: how many training images these
    show; null_right: how many resemble some held-out image as much (0 without held-out images).
    """

    candidates: int
    expected: float
    right: int
    distinct: int
    null_right: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many training images came out, and how many would have by chance: all of `Scores` that is a record.

    measure: "ncc", or "agreement" for points; images, held_out, candidates: how many were compared of each; given: how
    many held-out images there were, of which the control was taken (`control_rows`; None: not recorded); recovered:
    images whose one-to-one candidate reaches the similarity "0.7", "0.8", "0.9", "0.95"; null: the same counts for the
    held-out images, unscaled where they are fewer; null_perfect: what null would be if the training images themselves
    were the candidates: so many held-out images resemble them (null is to be read beside it; it is no bound);
    mean_alone: the counts if every candidate were the training mean, which the attacker is given; p_value: the chance
    of at least so many recovered at 0.9 if training and held-out images were equally easy (`count_tests`: Fisher's
    exact test, one-sided); p_values: the same at each threshold; p_least: the smallest that so many images can have.
    Where the classes of both are known, all tests compare within them.

    p_kind: the chance of such held-out images if they were of the same kind as the training images (`kind_test`);
    kind_gap: how far the two kinds are apart (`kind_gap`);
    p_rank: that of `rank_test`, over all similarities; share: of the images recovered at 0.9, with its 95 % interval
    (Clopper-Pearson); difference: of that share and the held-out images' (Newcombe); distinct: images recovered at 0.9
    that do not resemble each other (NCC < 0.95); picked: what an attacker without the data would have picked.

    Without held-out images held_out and all null counts are 0, and what compares with them is None. Records of formats
    before 5 have no p_rank, p_kind and p_least, no intervals, no distinct and no picked: None.
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
    null_median_ncc: float | None
    p_value: float | None
    p_values: dict[str, float] = field(default_factory=dict)
    p_least: float | None = None
    p_kind: float | None = None
    kind_gap: float | None = None
    p_rank: float | None = None
    share: Interval | None = None
    difference: Interval | None = None
    distinct: int | None = None
    picked: Picked | None = None
    ssim: Ssim
    per_image: list[ImageScore]
    seconds: Seconds
    given: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scores(Counts):
    """The counts, with the matches that they were counted from; control: the held-out images taken, [k, c, h, w]."""

    matches: Matches = field(compare=False)
    control: Float[Tensor, "k c h w"] = field(compare=False)
    control_matches: Matches = field(compare=False)


def score(
    candidates: Candidates | Float[Tensor, "m _ _ _"],
    images: Float[Tensor, "n c h w"],
    labels: Shaped[Tensor, " labels"] | None,
    held_out: Float[Tensor, "k _ _ _"],
    *,
    held_out_labels: Shaped[Tensor, " others"] | None = None,
    problem: str = "",
    seconds: Seconds | None = None,
) -> Scores:
    """Counts the training images that came out, beside as many held-out images scored in exactly the same way.

        scores = exhume.score(candidates, problem.images, problem.labels, problem.held_out)
        print(scores.recovered["0.9"], scores.null["0.9"], scores.p_value, scores.p_rank)

    Args:
        candidates: what was found; images of any other origin are scored in the same way.
        images, labels: the training set, images in [0, 1]; labels: None where they are not known.
        held_out: images of the same kind that the network never saw, in [0, 1]; n of them are taken (`control_rows`).
            Empty where there are none: then nothing is compared, and no test is made.
        held_out_labels: their labels; where both are known, the control has the classes of the training set as far as
            it can, and the tests compare within classes; None: not known.

    Raises:
        InputError: labels and images differ in number, or as for `match`.
    """
    for name, part, of in (("images", images, labels), ("held-out images", held_out, held_out_labels)):
        if of is not None and len(of) != len(part):
            raise InputError(f"There are {len(part)} {name} but {len(of)} labels.")
    rows = control_rows(len(held_out), len(images), labels, held_out_labels)
    control, classes = (
        held_out[rows],
        shared_classes(labels, None if held_out_labels is None else held_out_labels[rows]),
    )
    matches = match(candidates, images)
    control_matches = match(candidates, control) if len(control) else _no_matches(len(comparable(candidates, images)))
    recovered, null = _counts(matches), _counts(control_matches)
    count, p_values = recovered[HEADLINE], _p_values(candidates, images, control, (matches, control_matches), classes)
    return Scores(
        problem=problem,
        measure=measure_of(images),
        images=len(images),
        held_out=len(control),
        candidates=len(comparable(candidates, images)),
        recovered=recovered,
        null=null,
        null_perfect=_counts(match(images, control)) if len(control) else dict.fromkeys(THRESHOLDS, 0),
        mean_alone=_reached(similarity(images, images.mean(0, keepdim=True))[:, 0]),
        median_ncc=median(matches.assigned_similarity.tolist()),
        null_median_ncc=median(control_matches.assigned_similarity.tolist()) if len(control) else None,
        p_value=p_values.get(HEADLINE),
        p_values=p_values,
        p_least=least_chance(classes or one_class(len(images), len(control))) if len(control) else None,
        p_kind=kind_test(images, control, classes) if len(control) else None,
        kind_gap=kind_gap(images, control, classes) if len(control) else None,
        p_rank=(
            rank_test(
                candidates,
                images,
                control,
                labels,
                classes,
                similarities=(matches.similarity, control_matches.similarity),
            )
            if len(control)
            else None
        ),
        share=share_interval(count, len(images)),
        difference=(difference_interval(count, len(images), null[HEADLINE], len(control)) if len(control) else None),
        distinct=len(merge(images[matches.assigned_similarity >= float(HEADLINE)], SAME)) if count else 0,
        picked=_picked(candidates, images, control),
        ssim=_papers_ssim(candidates, images, control),
        per_image=_per_image(candidates, images, labels, matches),
        seconds=seconds or Seconds(),
        given=len(held_out),
        matches=matches,
        control=control,
        control_matches=control_matches,
    )


def sentence(scores: Counts) -> str:
    """Says in one sentence how much came out and how surprising that is; a second one where other evidence says more.

    A p-value of 0.05 or more counts as no difference. What follows for the network is the verdict's (`exhume.judge`).

        print(exhume.sentence(exhume.score(candidates, images, labels, held_out)))
    """
    recovered, null = scores.recovered[HEADLINE], scores.null[HEADLINE]
    measure = "NCC" if scores.measure == "ncc" else "agreement"
    if scores.held_out == 0 or scores.p_value is None:
        return (
            f"{recovered} of {scores.images} training images look like a candidate of their own ({measure} >= "
            f"{HEADLINE}, one-to-one). No held-out images were given, so this count has no control."
        )
    counts = (
        f"{recovered} of {scores.images} training images came out ({measure} >= {HEADLINE}, one-to-one); "
        f"of {scores.held_out} held-out images {null} did"
    )
    if is_another_kind(scores):
        return f"{counts}. {ANOTHER} (p = {scores.p_kind:.1g})."
    if recovered * scores.held_out > null * scores.images and scores.p_value < SIGNIFICANT:
        odds = "below 1e-20" if scores.p_value < 1e-20 else f"about {scores.p_value:.1g}"
        return f"{counts}: chance alone would give such a difference with probability {odds}."
    told = f"{counts}: no clear difference at this threshold (p = {scores.p_value:.2g}). {_elsewhere(scores, measure)}"
    return f"{told} {SUSPICION}" if is_suspect(scores) else told


SUSPICION = (
    "The held-out images came out too, more of them than resemble a training image: were they trained on? "
    "Then they are no control."
)


MOST_EXPLAINED, PER_GAP = 0.2, 4.0
"""Difference of the shares that came out up to which two kinds that are near to each other may explain it: so much, and
so many times their gap. A part of the images that is a share more on one side moves the gap by a quarter of that or
more (ones, 40 % against 10 %: gaps of 0.07 to 0.16), and at most that part comes out for its kind alone."""
SOMEWHAT = "The held-out images are of a somewhat other kind, and the lead is larger than that would explain"
ANOTHER = "The held-out images are of another kind than the training images, so they are no control"


def differs(scores: Counts) -> bool:
    """Whether the held-out images are plainly not of exactly the same kind as the training images."""
    return scores.p_kind is not None and scores.p_kind <= ANOTHER_KIND


def is_another_kind(scores: Counts) -> bool:
    """Whether the held-out images are of another kind than the training images, so that they are no control.

    Where the kinds are near to each other they are one for a lead that is larger than such a difference can explain.
    """
    return differs(scores) and not leads(scores)


def leads(scores: Counts) -> bool:
    """Whether more training images came out than a difference between kinds that are near to each other explains."""
    if scores.kind_gap is None or scores.kind_gap > MOST_GAP:
        return False
    counts = scores.recovered[HEADLINE], scores.images, scores.null[HEADLINE], scores.held_out
    return difference_interval(*counts).low > max(MOST_EXPLAINED, PER_GAP * scores.kind_gap)


def about_control(scores: Counts) -> str:
    """How many of the held-out images are the control, and why not all, in a sentence; "" where all are."""
    if not scores.held_out or scores.given in (None, scores.held_out):
        return ""
    each = "of each class as many as there are training images of it, or all if there are fewer"
    why = "as many as there are training images" if scores.held_out == scores.images else each
    return f"The control is {scores.held_out} of the {scores.given} held-out images: {why}."


def no_control(scores: Counts) -> str:
    """Why the held-out images are no control, in a sentence; "" where they are one, or none were given."""
    if is_another_kind(scores):
        return f"{ANOTHER} (nearest neighbours, p = {scores.p_kind:.1g})."
    return SUSPICION if is_suspect(scores) else ""


def is_suspect(scores: Counts) -> bool:
    """Whether so many held-out images came out that the network must have been trained on them.

    Compared, by Fisher's exact test, with how many resemble a training image or, as training images do, the mean.
    """
    for level in (HEADLINE, THRESHOLDS[-1]) if scores.held_out else ():
        by_mean = round(scores.mean_alone[level] * scores.held_out / scores.images)
        expected = min(scores.held_out, max(scores.null_perfect[level], by_mean))
        if fisher(scores.null[level], scores.held_out, expected, scores.held_out) < SUSPECT:
            return True
    return False


def _elsewhere(scores: Counts, measure: str) -> str:
    """What lower thresholds and all similarities together say, where the headline's threshold shows no difference."""
    best = min(scores.p_values, key=lambda level: scores.p_values[level], default=HEADLINE)
    found = []
    if scores.p_values.get(best, 1.0) * len(scores.p_values) < SIGNIFICANT:
        found.append(
            f"at {measure} >= {best} it is {scores.recovered[best]} [{scores.null[best]} held-out], "
            f"p = {scores.p_values[best]:.1g}"
        )
    if scores.p_rank is not None and scores.p_rank < SIGNIFICANT:
        found.append(f"over all similarities training images lie nearer to the candidates, p = {scores.p_rank:.1g}")
    if found:
        return f"But {' and '.join(found)}."
    if scores.p_rank is None:
        return "This record has no test over all similarities."
    return f"Nor is there one over all similarities (p = {scores.p_rank:.2g})."


def control_images(held_out: Images, count: int) -> Float[Tensor, "n c h w"]:
    """The control where no classes are known: `control_rows` of the held-out images."""
    return held_out[control_rows(len(held_out), count)]


def control_rows(
    held_out: int,
    count: int,
    labels: Shaped[Tensor, " n"] | None = None,
    held_out_labels: Shaped[Tensor, " k"] | None = None,
) -> Int[Tensor, " rows"]:
    """Which of so many held-out images are the control, in their order.

    Where the classes of both are known: of each class as many as are trained on, or all if fewer. Else `count`, or all
    if fewer, evenly spread since they may come class by class.

    >>> control_rows(6, 2, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1, 1, 2]))
    tensor([0, 2])
    """
    classes = shared_classes(labels, held_out_labels)
    if classes is None:
        return torch.linspace(0, held_out - 1, min(count, held_out)).round().long()
    rows = []
    for of in torch.unique(classes[0]):
        there = torch.nonzero(classes[1] == of)[:, 0]
        rows.append(there[control_rows(len(there), int((classes[0] == of).sum()))])
    return torch.cat(rows).sort().values


def shared_classes(labels: Shaped[Tensor, " n"] | None, held_out_labels: Shaped[Tensor, " k"] | None) -> Classes | None:
    """The classes within which training and held-out images are compared, numbered.

    None: they are not known, or most training images are of classes that the held-out images do not have, as where
    labels are measurements.
    """
    if labels is None or held_out_labels is None or not torch.isin(labels, held_out_labels).double().mean() >= HALF:
        return None
    numbers = torch.unique(torch.cat([labels, held_out_labels]), return_inverse=True)[1]
    return numbers[: len(labels)], numbers[len(labels) :]


def _counts(matches: Matches) -> dict[str, int]:
    return _reached(matches.assigned_similarity)


def _reached(values: Float[Tensor, " n"]) -> dict[str, int]:
    return {threshold: int((values >= float(threshold)).sum()) for threshold in THRESHOLDS}


def _p_values(
    candidates: Candidates | Images,
    images: Float[Tensor, "n c h w"],
    control: Float[Tensor, "k c h w"],
    matches: tuple[Matches, Matches],
    classes: Classes | None,
) -> dict[str, float]:
    if len(control) == 0:
        return {}
    similarities = (matches[0].assigned_similarity, matches[1].assigned_similarity)
    return count_tests(candidates, images, control, similarities, THRESHOLDS, classes=classes)


def _no_matches(candidates: int) -> Matches:
    """Those of no images."""
    none = torch.zeros(0, dtype=torch.long)
    return Matches(similarity=torch.zeros(0, candidates), nearest=none, assigned=none)


def _picked(
    candidates: Candidates | Images, images: Float[Tensor, "n c h w"], control: Float[Tensor, "k c h w"]
) -> Picked | None:
    """None where the candidates have no confidence."""
    if not isinstance(candidates, Candidates) or bool(candidates.confidence.isnan().all()):
        return None
    chosen = candidates.confidence.nan_to_num(0.0) >= CONFIDENT
    found = comparable(candidates, images)[chosen]
    alike = _alike(images, found)
    shown = alike.argmax(0)[alike.amax(0) >= float(HEADLINE)] if len(found) else torch.zeros(0, dtype=torch.long)
    return Picked(
        candidates=int(chosen.sum()),
        expected=float(candidates.confidence[chosen].double().sum()),
        right=len(shown),
        distinct=len(torch.unique(shown)),
        null_right=int((_alike(control, found) >= float(HEADLINE)).any(0).sum()),
    )


def _alike(images: Float[Tensor, "n c h w"], found: Images) -> Float[Tensor, "n m"]:
    """The similarity of each image and each candidate; -1 where a candidate is not finite."""
    if len(images) == 0 or len(found) == 0:
        return torch.zeros(len(images), len(found))
    return masked(similarity(images, found), finite(found), -1.0)


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
    if len(images) == 0:
        return []
    found = comparable(candidates, images)
    found = found[finite(found)]
    if len(found) == 0:
        return []
    nearest = torch.cat([halved_similarity(found, some).argmax(1) for some in torch.split(images, AT_ONCE)])
    values = ssim(min_max(found[nearest]), images, 3)
    return [] if values is None else values.tolist()


def _per_image(
    candidates: Candidates | Images,
    images: Float[Tensor, "n c h w"],
    labels: Shaped[Tensor, " n"] | None,
    matches: Matches,
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
            label=None if labels is None else float(labels[i]),
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
