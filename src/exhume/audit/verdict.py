"""The verdict: does the network leak, was nothing found by a method that applies, or does the method not apply here?"""

from dataclasses import dataclass
from typing import Literal

from exhume.audit.counts import HEADLINE, Counts
from exhume.audit.doubts import (
    ANOTHER,
    SOMEWHAT,
    SUSPICION,
    differs,
    is_another_kind,
    is_common,
    is_suspect,
    may_be_kind,
    may_differ,
    of_their_kind,
)
from exhume.audit.readability import Readability
from exhume.audit.significance import SIGNIFICANT, fisher

Verdict = Literal["leaks", "nothing found", "does not apply"]
Strength = Literal["plainly", "in part", "traces", "not proven", "none"]

PLAINLY = 1e-3
"""Chance of a difference of counts below which they prove a leak; for several thresholds, divided by their number."""
TRACES = 1e-3
"""Chance of a difference of all similarities below which it alone is called a leak, though no count proves one."""
IN_PART = 0.01
"""The same where a count proves a leak too, and below which nothing is cleared."""
OTHERS_EXPECTED, OTHERS_RIGHT = 10, 0.1
"""Confident candidates of which so many should show her images and at most this share of these does: so they show
others. (The calibration of the confidence was off by less than a half wherever it holds.)"""
NOT_DECIDED = "not decided"
"""How the verdict is called where it is "does not apply" for the want of a control that decides."""
MOST_NAMED = 10
"""Images that a sentence lists."""
GIVING = ("decayed", "small initialisation", "known start")
"""Rows of REGIMES from which most images of a small set came out. Nothing came out of the default initialisation while
the start was not known; of inexact starts (Adam) sometimes a part, and of more images than neurons about a tenth. So
nothing found there says little."""


@dataclass(frozen=True, kw_only=True)
class Applicability:
    """What is known of whether the method can read this network.

    untrained: whether its weights are known to be those of an initialisation, so that it holds no image; method_reads:
    whether the method has the equations of this kind of network; reason: why not, or what speaks against it, in words
    for the owner ("": nothing does); regime: the row of REGIMES that the weights chose.

    readability: whether the training images can be read from the weights, told with them at hand; None: not looked at.
    start_known: whether the weights before training are known; None: nobody looked.

        own, others = (exhume.examine(checkpoint, images) for images in (problem.images, problem.held_out))
        readable = exhume.readability(own, others, membership_p=1.0)
        exhume.judge(scores, exhume.Applicability(method_reads=True, readability=readable))
    """

    method_reads: bool
    untrained: bool = False
    reason: str = ""
    regime: str | None = None
    readability: Readability | None = None
    start_known: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One of three verdicts, how strong the evidence for a leak is, one sentence for the owner, and the reasons.

    strength: "plainly" (the counts at NCC >= 0.9), "in part" (those at another threshold, and all similarities),
    "traces" (all similarities together, no count), "not proven" (there is no control, or none that can decide, the
    tests contradict each other, or what came out shows other images), "none". level: the similarity from which an
    image counts as come out: that of the count that proves it.

        judgement = exhume.judge(scores, None)
        print(judgement.verdict, judgement.sentence, *judgement.reasons)
    """

    verdict: Verdict
    strength: Strength
    sentence: str
    reasons: tuple[str, ...]
    level: str = HEADLINE

    @property
    def name(self) -> str:
        """The verdict, or NOT_DECIDED where the images cannot decide."""
        return NOT_DECIDED if self.strength == "not proven" else self.verdict


def judge(scores: Counts, applies: Applicability | None = None) -> Judgement:
    """Gives the verdict on the counts.

    An untrained network holds no image, whatever the counts. "leaks" needs a test against held-out images of the same
    kind; without them nothing is called a leak. Neither is the network cleared then, nor where these came out
    themselves or are too few, where the tests contradict each other, or where other images came out. "nothing found"
    needs a method that applies: a search that begins at the training images stays there more than at others
    (`readability`), or, where that was not tried, the weights are of a kind from which images come out (`GIVING`). All
    else is "does not apply".

        judgement = exhume.judge(exhume.score(candidates, images, labels, held_out))

    Args:
        applies: whether the method can read this network; None: nobody looked.
    """
    if applies is not None and applies.untrained:
        sentence = "The network holds no training image, since it was not trained: the method does not apply here."
        reason = applies.reason or "Its weights are those of an initialisation."
        return Judgement(verdict="does not apply", strength="none", sentence=sentence, reasons=(reason,))
    strength = _strength(scores)
    if strength in _LEAKS:
        told, reasons = _LEAKS[strength] + _named(scores, strength), _evidence(scores, strength)
        level = _proving(scores)[0] if strength == "in part" else HEADLINE
        return Judgement(verdict="leaks", strength=strength, sentence=told, reasons=reasons, level=level)
    undecided = _undecided(scores)
    if undecided:
        sentence, advice = undecided
        return Judgement(
            verdict="does not apply", strength="not proven", sentence=f"Not decided: {sentence}", reasons=(advice,)
        )
    against = _against(applies)
    if against:
        sentence = "Nothing was found, and that does not clear the network: the method does not apply here."
        return Judgement(verdict="does not apply", strength="none", sentence=sentence, reasons=against)
    return Judgement(
        verdict="nothing found",
        strength="none",
        sentence="Nothing was found, by a method that applies to this network.",
        reasons=_for(applies),
    )


_LEAKS = {
    "plainly": "The network leaks: training images came out of it.",
    "in part": "The network leaks: what came out shows training images, most of them not sharply.",
    "traces": "The network shows traces of its training images: all together they lie nearer to what came out.",
}


def _named(scores: Counts, strength: Strength) -> str:
    """For traces, which images came out, although so few that chance might have given them; "" where none did."""
    count = scores.recovered[HEADLINE]
    if strength != "traces":
        return ""
    if count == 0:
        return " No single image can be pointed at."
    found = [str(image.index) for image in scores.per_image if image.ncc >= float(HEADLINE)]
    rest = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    which = f" (number {', '.join(found[:MOST_NAMED])}{rest})" if found else ""
    return f" {count} of {scores.images} look like a candidate of their own{which}, which alone would prove nothing."


def _undecided(scores: Counts) -> tuple[str, str] | None:
    """Why the counts cannot be judged, and what to do; None: they can."""
    images, held_out = scores.images, scores.held_out
    if held_out and is_suspect(scores):
        told = f"{scores.null[HEADLINE]} of {held_out} held-out images came out, as training images do."
        return told, SUSPICION
    others = _of_others(scores)
    if others or held_out == 0:
        return others or _without_control(scores)
    if is_another_kind(scores):
        told = "the control is of another kind than the images."
        return told, f"{ANOTHER} (nearest neighbours, p = {scores.p_kind:.1g}): give some that were drawn like these."
    if _counting(scores) or (scores.p_rank is not None and scores.p_rank < IN_PART):
        return _contradiction(scores), "Give more held-out images of the same kind."
    least = fisher(images, images, 0, held_out) if scores.p_least is None else scores.p_least
    if least >= PLAINLY:
        told = f"with {images} training and {held_out} held-out images no difference can be told from chance."
        return told, "Give more held-out images."
    return None


def _of_others(scores: Counts) -> tuple[str, str] | None:
    """Where an attacker without the data would be sure of images, and they are not these; None: it is not so."""
    picked = scores.picked
    if picked is None or picked.expected < OTHERS_EXPECTED or picked.right > OTHERS_RIGHT * picked.expected:
        return None
    if picked.distinct > OTHERS_RIGHT * scores.images:
        return None  # hers came out too: she gave a part of what it was trained on
    told = (
        "what came out seems to show training images, but not these. By their confidence about "
        f"{picked.expected:.0f} of {picked.candidates} candidates show what it was trained on, and {picked.right} "
        f"{'looks' if picked.right == 1 else 'look'} like an image of yours."
    )
    return told, "Are these the images that it was trained on, scaled as they were in training?"


def _without_control(scores: Counts) -> tuple[str, str]:
    recovered, images = scores.recovered[HEADLINE], scores.images
    told = (
        f"{recovered} of {images} training images look like a candidate of their own, but no held-out images were "
        "given, so nothing tells it from chance."
        if recovered
        else f"none of {images} training images came out sharply, but no held-out images were given, so nothing tells "
        "weaker traces from chance."
    )
    return told, "Give images of the same kind that the network never saw, and count again."


def _contradiction(scores: Counts) -> str:
    """What shows a leak, and why it does not prove one."""
    rank, proving = "" if scores.p_rank is None else f"p = {scores.p_rank:.1g}, rank test", _proving(scores)
    for level in [*proving, *_counting(scores)][:1]:
        count = _count(scores, level).removesuffix(".")
        if proving:
            return f"{count}, but all similarities together do not show it ({rank})."
        return f"{count}. {of_their_kind(scores, level)}."
    told = f"over all similarities training images lie nearer to what came out ({rank}), but"
    if may_differ(scores):
        return f"{told} held-out images may be of a somewhat other kind (nearest neighbours, p = {scores.p_kind:.1g})."
    return (
        f"{told} most held-out images look like a candidate too." if is_common(scores) else f"{told} not beyond doubt."
    )


def _strength(scores: Counts) -> Strength:
    """How plainly the tests show a leak.

    Even a plain count must not be contradicted by the ranks of all images. Where a part of the training images is easy
    to resemble, as those of one class may be, chance lifts that part over the threshold and not the others; a network
    that leaks lifts most images somewhat.
    """
    if is_another_kind(scores):
        return "none"
    rank = 1.0 if scores.p_rank is None else scores.p_rank
    proving = _proving(scores)
    if HEADLINE in proving and (scores.p_rank is None or rank < SIGNIFICANT):
        return "plainly"
    if rank < IN_PART and proving:
        return "in part"
    doubtful = _counting(scores) or may_differ(scores) or is_common(scores)  # what a kind explains in a count, too
    return "traces" if rank < TRACES and not doubtful else "none"


def _proving(scores: Counts) -> list[str]:
    """The thresholds whose counts prove a leak, the surest first."""
    return [level for level in _counting(scores) if not may_be_kind(scores, level)]


def _counting(scores: Counts) -> list[str]:
    """The thresholds whose counts prove one if both sides were drawn alike: the headline, or with all of them in mind.

    They are more than chance gives, and more than the mean image gives, which the attacker knows.
    """
    below = {level: PLAINLY if level == HEADLINE else PLAINLY / len(scores.p_values) for level in scores.p_values}
    levels = [level for level in below if scores.p_values[level] < below[level]]
    more = [level for level in levels if scores.recovered[level] > scores.mean_alone[level]]
    return sorted(more, key=lambda level: scores.p_values[level])


def _evidence(scores: Counts, strength: Strength) -> tuple[str, ...]:
    """The counts that prove a leak, if any do, and what all similarities say."""
    levels = [HEADLINE] if strength == "plainly" else _proving(scores)
    reasons = [_count(scores, level) for level in levels[:1]]
    if scores.p_rank is not None:
        reasons.append(f"All similarities together: p = {scores.p_rank:.1g} (rank test).")
    if differs(scores):
        reasons.append(f"{SOMEWHAT} (nearest neighbours, p = {scores.p_kind:.1g}).")
    if is_suspect(scores):
        reasons.append(SUSPICION)
    return tuple(reasons)


def _count(scores: Counts, level: str) -> str:
    measure = "NCC" if scores.measure == "ncc" else "agreement"
    return (
        f"{measure} >= {level}: {scores.recovered[level]} of {scores.images} training images, "
        f"{scores.null[level]} of {scores.held_out} held-out images (p = {scores.p_values[level]:.1g})."
    )


def _against(applies: Applicability | None) -> tuple[str, ...]:
    """Why nothing found says nothing; none of it: the method applies."""
    if applies is None:
        return ("Whether the method can read this network was not looked at.",)
    reasons = [applies.reason] if applies.reason else []
    if not applies.method_reads:
        return tuple(reasons) or ("The method has no equations for this kind of network.",)
    if applies.readability is not None:
        if applies.readability.verdict == "readable":
            return ()
        reasons.insert(0, applies.readability.reason)
    elif not reasons and applies.regime not in GIVING:
        reasons.append(_regime(applies))
    return tuple(reasons)


def _regime(applies: Applicability) -> str:
    if applies.regime is None:
        return "What kind of training this was does not show in the weights."
    known = "" if applies.start_known else ", and the weights before training are not known"
    return f"From networks of this kind ({applies.regime}) little or nothing came out so far{known}."


def _for(applies: Applicability | None) -> tuple[str, ...]:
    if applies is None:
        return ()
    if applies.readability is not None:
        return (applies.readability.reason, "So a search that begins elsewhere may find them yet.")
    return (f"From networks of this kind ({applies.regime}) images came out before.",) if applies.regime else ()
