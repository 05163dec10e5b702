"""Whether the method could have found the training images at all: what the owner can see, and no attacker.

A search that begins at the training images tells "not found" from "not readable". What it would do with any images is
seen by the same search from held-out ones.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from exhume.audit.significance import fisher
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
Readable = Literal["readable", "held but not readable", "not held", "too few"]
"""Of all images: the method applies; the weights tell them from others, but a search does not stay; they do not; so few
that no count could tell."""


@runtime_checkable
class Examined(Protocol):
    """What is used of an examination of n images: similarities, [n], and what all leave unexplained."""

    @property
    def residual(self) -> float:
        """Share of the weights that the best sum over the images leaves unexplained."""

    @property
    def reachable(self) -> Float[Tensor, " n"]:
        """Of each image and its projection on the subspace that is searched."""

    @property
    def stays(self) -> Float[Tensor, " n"]:
        """Of each image and the end of a search that begins at it."""


@dataclass(frozen=True, kw_only=True)
class Readability:
    """Whether the training images can be read from the weights by the method.

    explained: what was searched, in words: the weights, or what stood in their place; level: the similarity at which
    `stay` of `images` training images and `held_out_stay` of `held_out` others stay;
    p_value: the chance of such counts, or more unequal ones, if both were alike (Fisher's exact test, one-sided, of two
    levels); residual, held_out_residual: what training and held-out images leave of the weights unexplained;
    reachable: training images whose projection on the subspace reaches 0.9; reason: one sentence.

        own, others = (exhume.examine(checkpoint, images) for images in (problem.images, problem.held_out))
        assert exhume.readability(own, others, membership_p=1.0).verdict == "readable"
    """

    verdict: Readable
    explained: str = "the weights"
    level: float
    images: int
    held_out: int
    stay: int
    held_out_stay: int
    p_value: float
    residual: float
    held_out_residual: float
    reachable: int
    reason: str


def readability(
    training: Examined, held_out: Examined, *, membership_p: float, explained: str = "the weights"
) -> Readability:
    """Says whether the method applies: whether its search, begun at the training images, stays at more than at others.

    Images that leave more of the weights unexplained than held-out ones are not those that it was trained on, wherever
    a search stays. Counts that could not show a difference if it were complete show none that is missing.

        own = exhume.examine(checkpoint, problem.images, problem.labels)
        others = exhume.examine(checkpoint, problem.held_out, problem.held_out_labels)
        print(exhume.readability(own, others, membership_p=1.0).reason)

    Args:
        training, held_out: examinations by the same method with the same knowledge, with a search of some steps.
        membership_p: the chance that signals of membership tell training from held-out images as well as they do, or
            better, corrected for their number; 1: they were not looked at.
        explained: what the images had to explain, in words.

    Raises:
        InputError: no search was begun at the images.
    """
    if training.stays.isnan().any() or held_out.stays.isnan().any():
        raise InputError("Readability needs examinations with a search that begins at the images.")
    stays = {level: [int((examined.stays >= level).sum()) for examined in (training, held_out)] for level in LEVELS}
    images, others = len(training.stays), len(held_out.stays)
    tests = {level: _chance(stay, images, other, others) for level, (stay, other) in stays.items()}
    level = next((level for level in LEVELS if tests[level] < CHANCE), LEVELS[0])
    found = Readability(
        verdict="not held",
        explained=explained,
        level=level,
        images=images,
        held_out=others,
        stay=stays[level][0],
        held_out_stay=stays[level][1],
        p_value=tests[level],
        residual=training.residual,
        held_out_residual=held_out.residual,
        reachable=int((training.reachable >= LEVELS[0]).sum()),
        reason="",
    )
    found = replace(found, verdict=_verdict(found, membership_p))
    return replace(found, reason=_reason(found))


def _verdict(found: Readability, membership_p: float) -> Readable:
    if found.p_value < CHANCE:
        return "readable" if found.residual <= found.held_out_residual else "not held"
    if _chance(found.images, found.images, 0, found.held_out) >= CHANCE:
        return "too few"
    return "held but not readable" if membership_p < CHANCE else "not held"


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


def _chance(stay: int, images: int, other: int, others: int) -> float:
    """Of the better of all levels, so times their number (Bonferroni)."""
    return min(1.0, len(LEVELS) * fisher(stay, images, other, others))


def _reason(found: Readability) -> str:
    where = "" if found.explained == "the weights" else f" in {found.explained}"
    stay = (
        f"A search{where} that begins at the images stays at {found.stay} of {found.images} training images and "
        f"{found.held_out_stay} of {found.held_out} held-out ones (NCC >= {found.level:g})"
    )
    if found.verdict == "readable":
        return f"{stay}: the method applies to this network."
    if found.verdict == "too few":
        return f"{stay}: too few images to tell a difference from chance."
    if found.p_value < CHANCE:
        left = f"{found.residual:.2g} of {found.explained} unexplained, and the held-out ones"
        return (
            f"{stay}, but the training images leave {left} {found.held_out_residual:.2g}: there is no more of these "
            "images in it."
        )
    if found.verdict == "not held":
        return f"{stay}, and nothing else tells training images from held-out ones."
    if found.reachable < found.images / 2:
        why = f"the first layer shows only a part of them: {found.reachable} of {found.images} can be reached at all"
    else:
        why = "what it asks of the weights does not determine them"
    return f"{stay}. Other signals tell training images from others, but {why}."
