"""Whether the held-out images are a control: of the same kind as the training images, and never trained on."""

from exhume.audit.counts import HEADLINE, THRESHOLDS, Counts
from exhume.audit.kind import ANOTHER_KIND, MOST_GAP
from exhume.audit.significance import fisher

SUSPECT = 1e-3
"""Chance of so many held-out images that came out, by those that training images resemble, below which the control is
taken for one that was trained on. The benchmark's controls have 5 beside 2 at most."""
SUSPICION = (
    "The held-out images came out too, more of them than resemble a training image: were they trained on? "
    "Then they are no control."
)


DOUBTED = 0.05
"""Chance of such neighbours below which kinds may differ, as they do in one of twenty pairs that were drawn alike."""
UNLIKELY = 0.01
"""Chance of so few held-out images, if what came out came out for its kind, below which it did not."""
SCARCE = 2 / 3
"""Share of the held-out images that is expected among neighbours, below which those are scarce. Near 12
of 100 digits that were drawn alike it is 0.77 to 1.13 (40 sets); near ones, where one side has a third of them, 0.5."""
HALVED = 0.5
"""Of the held-out images that ought to come out, the share that is counted on where kinds may differ: neighbours
see a kind only coarsely. So none of 104 pairs of changed and unchanged digits and of 21 mixes of ones, scored against
other images of one side's kind, had a lead at 0.9 that its kind did not explain (docs/log.md)."""
SOMEWHAT = "The held-out images are of a somewhat other kind, and the lead is larger than that would explain"
ANOTHER = "The held-out images are of another kind than the training images, so they are no control"


def differs(scores: Counts) -> bool:
    """Whether the held-out images are plainly not of exactly the same kind as the training images."""
    return scores.p_kind is not None and scores.p_kind <= ANOTHER_KIND


def is_another_kind(scores: Counts) -> bool:
    """Whether the held-out images are of another kind than the training images, so that they are no control.

    Where the kinds are near to each other they are one for a lead that such a difference does not explain.
    """
    return differs(scores) and not leads(scores)


def leads(scores: Counts) -> bool:
    """Whether more training images came out than a difference between kinds that are near to each other explains."""
    near = scores.kind_gap is not None and scores.kind_gap <= MOST_GAP
    return near and by_kind(scores, HEADLINE) < UNLIKELY


def may_differ(scores: Counts) -> bool:
    """Whether the kinds may differ, so that what all similarities together say may be their difference."""
    return scores.p_kind is not None and scores.p_kind < DOUBTED


def may_be_kind(scores: Counts, level: str) -> bool:
    """Whether images may have come out at a threshold for their kind: the kinds may differ, and that explains it.

    Kinds may differ in a part of the images, which a test of all does not see: then held-out ones are scarce there.
    """
    if level not in scores.near:
        return False
    scarce = scores.near[level] < SCARCE * scores.held_out / (scores.images + scores.held_out)
    return (scarce or may_differ(scores)) and by_kind(scores, level) >= UNLIKELY


def of_their_kind(scores: Counts, level: str) -> str:
    """Why those that came out at a threshold may have come out for their kind, in a sentence without its full stop."""
    like = f"of the images most like those that came out only {scores.near[level]:.0%} are held-out ones"
    return f"But that may be their kind: {like}"


def is_common(scores: Counts) -> bool:
    """Whether pictures are so much alike that most held-out ones look like a candidate too.

    Then a difference of kinds that neighbours do not see shows in the similarities.
    """
    common = scores.null_median_ncc is not None and scores.null_median_ncc >= float(HEADLINE)
    return scores.measure == "ncc" and common


def by_kind(scores: Counts, level: str) -> float:
    """The chance of so few held-out images among those that came out, if an image came out for its kind alone.

    Each that came out would then be a held-out one as often as its neighbours are (`Counts.near`), half as often where
    the kinds may differ. 1 where that is not known.
    """
    from scipy.stats import binom  # noqa: PLC0415

    if level not in scores.near:
        return 1.0
    share = scores.near[level] * (HALVED if may_differ(scores) else 1.0)
    return float(binom.cdf(scores.null[level], scores.null[level] + scores.recovered[level], share))


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
