"""The pictures of a page: pairs of an image and its reconstruction, or candidates alone, in an order of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from torch import Tensor

from exhume.audit.counts import HEADLINE, Counts
from exhume.audit.matching import merge
from exhume.networks import Task
from exhume.report import figures
from exhume.report.words import fine_percent, percent

LARGE = 10
"""Pairs shown large, of the training images and of the held-out ones."""
ALIKE = 0.95
"""NCC from which two candidates show the same image: each search finds it again. Different digits seldom reach it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image beside its reconstruction, as pictures (data: URIs), and what the page sorts and filters by.

    title: its class; name: what it is, or its file; measure, value: what stands under it; original, found: None if
    there is no such image to show; place: its row, or the order of the files; ncc, confidence, share: None if unknown.
    """

    title: str
    name: str
    measure: str
    value: str
    original: str | None
    found: str | None
    place: int
    ncc: float | None = None
    confidence: float | None = None
    share: float | None = None

    @property
    def recovered(self) -> bool:
        return self.ncc is not None and self.ncc >= float(HEADLINE)


def pairs(
    scores: Counts, truth: Mapping[str, Tensor], confidence: Tensor, task: Task, classes: Sequence[str]
) -> list[Entry]:
    """Every training image and its one-to-one candidate, the most alike first.

    Args:
        confidence: [m] of the run's own candidates, which are the first of those that were scored.
    """
    found = figures.stretched(truth["candidates"])
    return [
        Entry(
            title=class_name(task, classes, image.label),
            name=f"training image {image.index}",
            measure="NCC",
            value=f"{image.ncc:.3f}" if image.candidate >= 0 else "none",
            original=figures.picture(truth["images"][image.index]),
            found=found[image.index] if image.candidate >= 0 else None,
            place=image.index,
            ncc=image.ncc if image.candidate >= 0 else None,
            confidence=known(confidence, image.candidate),
        )
        for image in sorted(scores.per_image, key=lambda image: -image.ncc)
    ]


def control(truth: Mapping[str, Tensor]) -> list[Entry]:
    """The held-out images that resemble their candidate most, matched as the training images are."""
    order = truth["null_similarity"].argsort(descending=True, stable=True)[:LARGE]
    found, entries = figures.stretched(truth["null_candidates"][order]), []
    for row, picture in zip(order.tolist(), found, strict=True):
        similarity, original = truth["null_similarity"][row].item(), figures.picture(truth["null_images"][row])
        value, shown = (f"{similarity:.3f}", picture) if similarity > -1 else ("none", None)
        name = f"held-out image {row}"
        entry = Entry(
            title="held out", name=name, measure="NCC", value=value, original=original, found=shown, place=row
        )
        entries.append(entry)
    return entries


def unchecked(candidates: Mapping[str, Tensor], task: Task, classes: Sequence[str]) -> list[Entry]:
    """Candidates alone, the most confident or those that explain most first; of those alike only the first."""
    images, labels, explained, confidence = (
        candidates[name] for name in ("images", "labels", "explained", "confidence")
    )
    unknown = confidence.isnan().all()
    order = (explained if unknown else confidence.nan_to_num(-1.0)).argsort(descending=True, stable=True)
    order = order[merge(images[order], ALIKE)]
    return [
        Entry(
            title=class_name(task, classes, labels[row].item()),
            name=f"candidate {row}",
            measure="explains" if confidence[row].isnan() else "confidence",
            value=fine_percent(explained[row].item()) if confidence[row].isnan() else percent(confidence[row].item()),
            original=None,
            found=picture,
            place=row,
            confidence=known(confidence, row),
            share=explained[row].item(),
        )
        for row, picture in zip(order.tolist(), figures.stretched(images[order]), strict=True)
    ]


def known(confidence: Tensor, row: int) -> float | None:
    """A candidate's confidence, None where there is no such candidate or it is not available."""
    if not 0 <= row < len(confidence) or confidence[row].isnan():
        return None
    return float(confidence[row])


def class_name(task: Task, classes: Sequence[str], label: float | None) -> str:
    """An image's class, or its target, in words."""
    if label is None or isnan(label):
        return "class unknown"
    if task == "regression" or not 0 <= label < len(classes):
        return f"target {label:g}"
    name = classes[int(label)]
    return name if len(name) > 2 else f"class {name}"
