"""The verdict: does the network leak, was nothing found by a method that applies, or does the method not apply here?"""

from dataclasses import dataclass
from typing import Literal

from exhume.audit.readability import Readability
from exhume.audit.scores import HEADLINE, SUSPICION, Counts, is_suspect
from exhume.audit.significance import fisher

Verdict = Literal["leaks", "nothing found", "does not apply"]
Strength = Literal["plainly", "in part", "traces", "not proven", "none"]

PLAINLY = 1e-3
"""Chance of a difference of counts below which they prove a leak; for several thresholds, divided by their number."""
TRACES = 0.01
"""Chance of a difference of all similarities below which it is called a leak: one in a hundred networks that leak
nothing is called so."""
GIVING = ("decayed", "small initialisation", "known start")
"""Rows of REGIMES from which most images of a small set came out. Nothing came out of the default initialisation while
the start was not known; of inexact starts (Adam) sometimes a part, so nothing found there says little."""


@dataclass(frozen=True, kw_only=True)
class Applicability:
    """What is known of whether the method can read this network.

    method_reads: whether it has the equations of this kind of network; reason: why not, or what speaks against it,
    in words for the owner ("": nothing does); regime: the row of REGIMES that the weights chose.

    readability: whether the training images can be read from the weights, told with them at hand; None: not looked at.
    start_known: whether the weights before training are known; optimiser: by its signs in the weights ("adam"); None:
    not known.

        own, others = (exhume.examine(checkpoint, images) for images in (problem.images, problem.held_out))
        readable = exhume.readability(own, others, membership_p=1.0)
        exhume.judge(scores, exhume.Applicability(method_reads=True, readability=readable))
    """

    method_reads: bool
    reason: str = ""
    regime: str | None = None
    readability: Readability | None = None
    start_known: bool | None = None
    optimiser: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One of three verdicts, how strong the evidence for a leak is, one sentence for the owner, and the reasons.

    strength: "plainly" (the counts at NCC >= 0.9), "in part" (those at another threshold, and all similarities),
    "traces" (all similarities together, no single image), "not proven" (there is no control, or none that can decide),
    "none".

        judgement = exhume.judge(scores, None)
        print(judgement.verdict, judgement.sentence, *judgement.reasons)
    """

    verdict: Verdict
    strength: Strength
    sentence: str
    reasons: tuple[str, ...]


def judge(scores: Counts, applies: Applicability | None = None) -> Judgement:
    """Gives the verdict on the counts.

    "leaks" needs a test against held-out images; without them nothing is called a leak, and neither is the network
    cleared where these came out themselves or are too few. "nothing found" needs a method
    that applies: a search that begins at the training images stays there more than at others (`readability`), or, where
    that was not tried, the weights are of a kind from which images come out (`GIVING`). All else is "does not apply".

        judgement = exhume.judge(exhume.score(candidates, images, labels, held_out))

    Args:
        applies: whether the method can read this network; None: nobody looked.
    """
    strength = _strength(scores)
    if strength in ("plainly", "in part", "traces"):
        return Judgement(
            verdict="leaks", strength=strength, sentence=_LEAKS[strength], reasons=_evidence(scores, strength)
        )
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
    "traces": "The network shows traces of its training images, though no single image can be pointed at.",
}


def _undecided(scores: Counts) -> tuple[str, str] | None:
    """Why the counts cannot be judged, and what to do; None: they can."""
    images, held_out, recovered = scores.images, scores.held_out, scores.recovered[HEADLINE]
    if held_out == 0:
        told = (
            f"{recovered} of {images} training images look like a candidate of their own, but no held-out images were "
            "given, so nothing tells a leak from chance."
        )
        return (
            (told, "Give images of the same kind that the network never saw, and count again.") if recovered else None
        )
    if is_suspect(scores):
        told = f"{scores.null[HEADLINE]} of {held_out} held-out images came out, as training images do."
        return told, SUSPICION
    if fisher(images, images, 0, held_out) >= TRACES:
        told = f"with {images} training and {held_out} held-out images no difference can be told from chance."
        return told, "Give more held-out images."
    return None


def _strength(scores: Counts) -> Strength:
    if _proves(scores, HEADLINE, PLAINLY):
        return "plainly"
    rank = 1.0 if scores.p_rank is None else scores.p_rank
    levels = scores.p_values
    if rank < TRACES and any(_proves(scores, level, PLAINLY / len(levels)) for level in levels):
        return "in part"
    return "traces" if rank < TRACES else "none"


def _proves(scores: Counts, level: str, below: float) -> bool:
    """More than chance gives, and more than the mean image gives, which the attacker knows."""
    return scores.p_values.get(level, 1.0) < below and scores.recovered[level] > scores.mean_alone[level]


def _evidence(scores: Counts, strength: Strength) -> tuple[str, ...]:
    level = HEADLINE if strength == "plainly" else min(scores.p_values, key=lambda level: scores.p_values[level])
    measure = "NCC" if scores.measure == "ncc" else "agreement"
    reasons = [
        f"{measure} >= {level}: {scores.recovered[level]} of {scores.images} training images, "
        f"{scores.null[level]} of {scores.held_out} held-out images (p = {scores.p_values[level]:.1g})."
    ]
    if scores.p_rank is not None:
        reasons.append(f"All similarities together: p = {scores.p_rank:.1g} (rank test).")
    if is_suspect(scores):
        reasons.append(SUSPICION)
    return tuple(reasons)


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
    if reasons and applies.optimiser == "adam":
        reasons.append("Training took steps element by element (Adam), which the equations do not describe.")
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
