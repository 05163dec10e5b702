"""The sentence that says how much came out."""

from exhume.audit.counts import HEADLINE, Counts
from exhume.audit.doubts import ANOTHER, SUSPICION, is_another_kind, is_suspect, may_be_kind, of_their_kind
from exhume.audit.significance import SIGNIFICANT


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
        if may_be_kind(scores, HEADLINE):
            return f"{counts}. {of_their_kind(scores, HEADLINE)}."
        odds = "below 1e-20" if scores.p_value < 1e-20 else f"about {scores.p_value:.1g}"
        return f"{counts}: chance alone would give such a difference with probability {odds}."
    told = f"{counts}: no clear difference at this threshold (p = {scores.p_value:.2g}). {_elsewhere(scores, measure)}"
    return f"{told} {SUSPICION}" if is_suspect(scores) else told


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
