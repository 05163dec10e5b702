"""Whether the method could have found the training images at all: what the owner can see, and no attacker.

A search that begins at the training images tells "not found" from "not readable". What it would do with any images is
seen by the same search from held-out ones.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from exhume.errors import InputError

LEVELS = (0.9, 0.8)
"""Similarities at which images are counted that a search keeps: that of the headline, and a weaker one. Trainings whose
start is unknown keep none at 0.9 and 17 to 30 of 100 at 0.8, and as many came out (networks sgd and adam of
docs/theory.md, "What the owner can see")."""
CHANCE = 1e-3
"""Chance of such counts, or of such signals of membership, up to which they are believed. Of the networks on which the
rule was chosen those that hold the images have 6e-6 at most, those that do not 0.25 at least."""

Fate = Literal["outside the subspace", "does not stay", "stays but not found", "found"]
"""What becomes of one image: the subspace that is searched does not hold it; a search that begins at it leaves it; it
would stay, and no candidate shows it; a candidate shows it."""
Readable = Literal["readable", "held but not readable", "not held"]
"""Of all images: the method applies; the weights tell them from others, but a search does not stay; they do not."""


@runtime_checkable
class Examined(Protocol):
    """What is used of an examination of n images: similarities, [n]."""

    @property
    def reachable(self) -> Float[Tensor, " n"]:
        """Of each image and its projection on the subspace that is searched."""

    @property
    def stays(self) -> Float[Tensor, " n"]:
        """Of each image and the end of a search that begins at it."""


@dataclass(frozen=True, kw_only=True)
class Readability:
    """Whether the training images can be read from the weights by the method.

    level: the similarity at which `stay` of `images` training images and `held_out_stay` of `held_out` others stay;
    p_value: the chance of such counts, or more unequal ones, if both were alike (Fisher's exact test, one-sided, of two
    levels); reachable: training images whose projection on the subspace reaches 0.9; reason: one sentence.

        own, others = (exhume.examine(checkpoint, images) for images in (problem.images, problem.held_out))
        assert exhume.readability(own, others, membership_p=1.0).verdict == "readable"
    """

    verdict: Readable
    level: float
    images: int
    held_out: int
    stay: int
    held_out_stay: int
    p_value: float
    reachable: int
    reason: str


def readability(training: Examined, held_out: Examined, *, membership_p: float) -> Readability:
    """Says whether the method applies: whether its search, begun at the training images, stays at more than at others.

        own = exhume.examine(checkpoint, problem.images, problem.labels)
        others = exhume.examine(checkpoint, problem.held_out, problem.held_out_labels)
        print(exhume.readability(own, others, membership_p=1.0).reason)

    Args:
        training, held_out: examinations by the same method with the same knowledge, with a search of some steps.
        membership_p: the chance that signals of membership tell training from held-out images as well as they do, or
            better, corrected for their number; 1: they were not looked at.

    Raises:
        InputError: no search was begun at the images.
    """
    if training.stays.isnan().any() or held_out.stays.isnan().any():
        raise InputError("Readability needs examinations with a search that begins at the images.")
    tests = {level: _p_value(training.stays >= level, held_out.stays >= level) for level in LEVELS}
    level = next((level for level in LEVELS if tests[level] < CHANCE), LEVELS[0])
    stay, other = (int((examined.stays >= level).sum()) for examined in (training, held_out))
    reachable = int((training.reachable >= LEVELS[0]).sum())
    verdict: Readable = "held but not readable" if membership_p < CHANCE else "not held"
    verdict = "readable" if tests[level] < CHANCE else verdict
    counts = f"{stay} of {len(training.stays)} training images and {other} of {len(held_out.stays)} held-out ones"
    return Readability(
        verdict=verdict,
        level=level,
        images=len(training.stays),
        held_out=len(held_out.stays),
        stay=stay,
        held_out_stay=other,
        p_value=tests[level],
        reachable=reachable,
        reason=_reason(verdict, counts, level, reachable, len(training.stays)),
    )


def fates(examined: Examined, found: Float[Tensor, " n"], level: float = LEVELS[0]) -> list[Fate]:
    """What becomes of each image.

        scores = exhume.match(candidates, problem.images)
        print(exhume.fates(exhume.examine(checkpoint, problem.images, problem.labels), scores.assigned_similarity))

    Args:
        found: similarity of each image and its candidate.
        level: similarity from which two images count as the same.
    """
    kept = zip(found >= level, examined.stays >= level, examined.reachable >= level, strict=True)
    return [_fate(bool(is_found), bool(stays), bool(reachable)) for is_found, stays, reachable in kept]


def _fate(found: bool, stays: bool, reachable: bool) -> Fate:
    if found:
        return "found"
    if stays:
        return "stays but not found"
    return "does not stay" if reachable else "outside the subspace"


def _p_value(training: Shaped[Tensor, " n"], held_out: Shaped[Tensor, " k"]) -> float:
    """Of the better of all levels, so times their number (Bonferroni)."""
    from scipy.stats import fisher_exact  # noqa: PLC0415

    table = [[int(kept.sum()), int((~kept).sum())] for kept in (training.bool(), held_out.bool())]
    return min(1.0, len(LEVELS) * float(fisher_exact(table, alternative="greater").pvalue))


def _reason(verdict: Readable, counts: str, level: float, reachable: int, images: int) -> str:
    stay = f"A search that begins at the images stays at {counts} (NCC >= {level:g})"
    if verdict == "readable":
        return f"{stay}: the method applies to this network."
    if verdict == "not held":
        return f"{stay}, and the weights do not tell training images from held-out ones."
    if reachable < images / 2:
        why = f"the first layer shows only a part of them: {reachable} of {images} can be reached at all"
    else:
        why = "what it asks of the weights does not determine them"
    return f"{stay}: the weights tell training images from others, but {why}."
