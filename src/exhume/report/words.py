"""The page's title, its caveats, and how it writes numbers."""

import re

from exhume.attack.methods import Exhume
from exhume.audit.counts import HEADLINE, Counts
from exhume.audit.doubts import is_another_kind
from exhume.audit.readability import Fate
from exhume.audit.significance import SIGNIFICANT
from exhume.audit.verdict import Judgement
from exhume.defence.training import TrainingConfig
from exhume.runs.schema import CandidatesRecord

NEARLY = 0.005
"""Chances nearer to 0 or 1 are written as < 1 % and > 99 %: no estimate of them is exact."""
SMALL, LARGE = 1e-3, 1e6
"""Numbers outside are written as powers of ten."""
_SPACE, _TIMES = "\N{NO-BREAK SPACE}", "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "\N{MINUS SIGN}0123456789")
_EXPONENT = re.compile("10(⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")

TITLES = {
    "leaks": "This network gives training images away",
    "traces": "This network shows traces of its training images",
    "nothing found": "No training image was found",
    "does not apply": "The method does not apply to this network",
    "not proven": "Whether training images came out is not decided",
}
"""The page's title where no count says more: by the strength of the evidence if it has a row, else by the verdict."""


def headline(
    judgement: Judgement | None, scores: Counts | None, total: int, thing: str, explained: str = "the weights"
) -> str:
    """The title: what the scores say, under the verdict, or that nothing was checked.

    Args:
        explained: what they came out of, in words.
    """
    if scores is None or judgement is None:
        return f"{total} candidates, none of them checked"
    level = judgement.level if scores.held_out else HEADLINE
    recovered = f"{scores.recovered[level]} of {scores.images} training {thing}s"
    if not scores.held_out:
        return f"{recovered} look recovered, without a control"
    if names_leaks(judgement, scores) and _p_value(scores, level) < SIGNIFICANT:
        return f"{recovered} came out of {explained}{'' if level == HEADLINE else ', most of them not sharply'}"
    return TITLES.get(judgement.strength, TITLES[judgement.verdict])


def _p_value(scores: Counts, level: str) -> float:
    """Records before 5 have that of the headline alone."""
    return scores.p_value if level == HEADLINE and scores.p_value is not None else scores.p_values.get(level, 1.0)


def names_leaks(judgement: Judgement | None, scores: Counts | None) -> bool:
    """Whether the images that came out may be called leaked: by the verdict, a control, and more than traces."""
    if judgement is None or scores is None or not scores.held_out:
        return False
    return judgement.verdict == "leaks" and judgement.strength != "traces"


def by_chance(scores: Counts, thing: str, level: str = HEADLINE) -> str:
    """How many images would resemble a candidate by chance, as far as the control tells."""
    if not scores.held_out or is_another_kind(scores):
        return f"There is no control, so how many {thing}s would do so by chance is not known."
    null = scores.null[level]
    told = f"Of {scores.held_out} held-out {thing}s {null} {'does' if null == 1 else 'do'} so"
    return (
        f"{told}: by chance about {number(round(null / scores.held_out * scores.images, 1))} of {scores.images} would."
    )


def fates(leaks: bool) -> dict[Fate, tuple[str, str]]:
    """What became of an image, as the page calls it, and what it means.

    Args:
        leaks: whether the images that came out may be called so.
    """
    found = ("found", f"A candidate shows the image, at NCC {HEADLINE} or more.")
    alike = (
        "resembles a candidate",
        f"At NCC {HEADLINE} or more. That may be chance: it is not known to have come out.",
    )
    return {
        "found": found if leaks else alike,
        "stays but not found": (
            "stays but not found",
            f"A search that begins at the image stays at NCC {HEADLINE} or more, but none that began elsewhere came to "
            "it. A longer or luckier search may find it.",
        ),
        "does not stay": (
            "does not stay",
            f"A search that begins at the image moves away, below NCC {HEADLINE}: nothing holds it there.",
        ),
        "outside the subspace": (
            "outside the subspace",
            f"So much of the image lies outside the subspace that no search can reach NCC {HEADLINE} with it.",
        ),
    }


def caveats(found: CandidatesRecord, training: TrainingConfig | None, confident: bool) -> list[str]:
    """What a reader has to know before she believes a count, a sentence or two each.

    Args:
        confident: whether the confidence of any candidate is known.
    """
    if found.status != "done":
        return [f"The reconstruction did not end well: {found.message}", *_of_training(training, found)]
    _, _, remarks = found.message.partition(". ")
    texts = [remarks] if remarks else []
    if not confident and "Confidence" not in remarks:
        because = ": there was only one search" if found.method.restarts == 1 else ""
        texts.append(f"Confidence is not available{because}.")
    if isinstance(found.method, Exhume) and found.assumptions.rank == 0:
        texts.append(
            "The method reads the layers of no such network, so it searched every pixel freely. In no experiment so "
            "far has a training image come out that way: that nothing is found says little."
        )
    return texts + _of_training(training, found)


def _of_training(training: TrainingConfig | None, found: CandidatesRecord) -> list[str]:
    """What of the training the method does not allow for."""
    if training is None:
        return []
    texts = []
    if training.optimiser == "adam":
        texts.append("Training used Adam. The method is derived for gradient descent, and after Adam less comes out.")
    if training.batch_size is not None and found.initial is None:
        texts.append(
            f"Training used batches of {training.batch_size} images, and its start is not known. The weights then fit "
            "the method's equation only roughly: that nothing is found says little."
        )
    return texts


def typeset(text: str) -> str:
    """A sentence of the program as a page prints it: ≥ for >=, with its number; 10⁻²⁰ for 1e-20; a raised apostrophe.

    Example:
        >>> typeset("NCC >= 0.9, p < 1e-20, 3e-05").replace("\\N{NO-BREAK SPACE}", " ")
        'NCC ≥ 0.9, p < 10⁻²⁰, 3×10⁻⁵'
    """
    signs = re.sub(r"(?<=\w)'(?=\w)", "\N{RIGHT SINGLE QUOTATION MARK}", text.replace(">=", "≥").replace("<=", "≤"))
    signs = re.sub(r"([≥≤]) (?=\d)", rf"\1{_SPACE}", signs)
    return re.sub(r"\b(\d+(?:\.\d+)?)e([+-]?\d+)\b", _power, signs)


def _power(found: "re.Match[str]") -> str:
    digits = found[1].rstrip("0").rstrip(".") if "." in found[1] else found[1]
    power = "10" + str(int(found[2])).translate(_SUPERSCRIPT)
    return power if digits == "1" else f"{digits}{_TIMES}{power}"


def raised(value: object) -> object:
    """Text whose powers of ten, as `typeset` writes them, have superscripts that every font has; all else as it is."""
    from markupsafe import Markup, escape  # noqa: PLC0415

    if not isinstance(value, str) or not _EXPONENT.search(value):
        return value
    written = _EXPONENT.sub(lambda found: f"10<sup>{found[1].translate(_PLAIN)}</sup>", str(escape(value)))
    return Markup(written)  # noqa: S704 all else is escaped


def number(value: float) -> str:
    """A number to three digits, an integer with commas.

    Example:
        >>> number(1795000), number(0.015625), number(4e-6)
        ('1,795,000', '0.0156', '4×10⁻⁶')
    """
    if isinstance(value, int):
        return f"{value:,}"
    if value and not SMALL <= abs(value) < LARGE:
        return typeset(f"{value:.2e}")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def fine_percent(share: float) -> str:
    """A small share, to a hundredth of a per cent."""
    return f"{share:.2%}".replace("%", f"{_SPACE}%")


def percent(chance: float) -> str:
    """A chance or a share, in whole per cent.

    Example:
        >>> [percent(chance).replace("\\N{NO-BREAK SPACE}", " ") for chance in (0.0, 0.001, 0.25, 1.0)]
        ['0 %', '< 1 %', '25 %', '> 99 %']
    """
    if chance > 1 - NEARLY:
        return f">{_SPACE}99{_SPACE}%"
    if 0 < chance < NEARLY:
        return f"<{_SPACE}1{_SPACE}%"
    return f"{chance:.0%}".replace("%", f"{_SPACE}%")
