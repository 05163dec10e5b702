"""The auditor: how many training images came out, and how many would have by chance.

It sees the candidates and the truth, never the network. Every count stands beside its null: the same candidates, scored
by the same procedure against held-out images. Where there are none, a count is only a count, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from exhume.audit.control import control_rows, shared_classes
from exhume.audit.counts import HEADLINE, THRESHOLDS, Counts, ImageScore, Picked, Seconds, Ssim
from exhume.audit.kind import compare_kinds
from exhume.audit.matching import Matches, comparable, finite, masked, match, merge, nearest_halved
from exhume.audit.significance import (
    Classes,
    count_tests,
    difference_interval,
    least_chance,
    moved_similarity,
    one_class,
    rank_test,
    share_interval,
)
from exhume.candidates import Candidates, Images
from exhume.errors import InputError
from exhume.metrics import l2, measure_of, min_max, psnr, similarity, ssim

SAME = 0.95
"""NCC from which two training images count as one where distinct images are counted."""
CONFIDENT = 0.5
"""Confidence from which an attacker without the data would pick a candidate: more likely right than wrong."""
GOOD_SSIM = 0.4
"""What the papers call a good reconstruction: SSIM with window 3 above this."""


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
    count = recovered[HEADLINE]
    both = matches, control_matches
    p_values, p_rank = _p_values(candidates, images, control, both, labels=labels, classes=classes)
    out = {level: matches.assigned_similarity >= float(level) for level in THRESHOLDS}
    kinds = compare_kinds(images, control, classes, out) if len(control) else None
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
        p_kind=kinds.p_value if kinds else None,
        kind_gap=kinds.gap if kinds else None,
        near=kinds.near if kinds else {},
        p_rank=p_rank,
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


def _counts(matches: Matches) -> dict[str, int]:
    return _reached(matches.assigned_similarity)


def _reached(values: Float[Tensor, " n"]) -> dict[str, int]:
    return {threshold: int((values >= float(threshold)).sum()) for threshold in THRESHOLDS}


def _p_values(
    candidates: Candidates | Images,
    images: Float[Tensor, "n c h w"],
    control: Float[Tensor, "k c h w"],
    matches: tuple[Matches, Matches],
    *,
    labels: Shaped[Tensor, " n"] | None,
    classes: Classes | None,
) -> tuple[dict[str, float], float | None]:
    """Of the counts at each threshold, and of the ranks."""
    if len(control) == 0:
        return {}, None
    moved = moved_similarity(candidates, images, control)
    reached = (matches[0].assigned_similarity, matches[1].assigned_similarity)
    similarities = (matches[0].similarity, matches[1].similarity, moved)
    return (
        count_tests(candidates, images, control, reached, THRESHOLDS, classes=classes, moved=moved),
        rank_test(candidates, images, control, labels, classes, similarities=similarities),
    )


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
    values = ssim(min_max(found[nearest_halved(found, images)]), images, 3)
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
    assigned, nearest = matches.assigned_similarity.tolist(), matches.nearest_similarity.tolist()
    return [
        ImageScore(
            index=i,
            label=None if labels is None else float(labels[i]),
            candidate=int(matches.assigned[i]),
            ncc=assigned[i],
            nearest=int(matches.nearest[i]),
            nearest_ncc=nearest[i],
            ssim3=ssim3.get(i),
            ssim11=ssim11.get(i),
            l2=distance.get(i),
            psnr=ratio.get(i),
        )
        for i in range(len(images))
    ]
