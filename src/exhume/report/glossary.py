"""The page's glossary: what a term means is shown where it stands, at a touch."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exhume.audit.counts import HEADLINE
from exhume.report.words import typeset

if TYPE_CHECKING:
    from markupsafe import Markup

GLOSSARY: dict[str, tuple[str, str]] = {
    "NCC": (
        r"NCC",
        "Normalised cross-correlation: how alike two images are, whatever their brightness and contrast. "
        f"1: the same image up to these. 0: nothing in common. Here an image counts from {HEADLINE} on.",
    ),
    "Agreement": (
        r"[Aa]greement",
        "How near two points are. 1: they are the same point. It falls with their squared distance, and is 0 where "
        "this is as large as between two training points.",
    ),
    "SSIM": (
        r"SSIM",
        "Structural similarity: how alike two images are within a small window, averaged over the image. "
        "1: the same image.",
    ),
    "One-to-one": (
        r"one-to-one",
        "No candidate counts for two images: each image is paired with a candidate of its own, so that all pairs "
        "together are as alike as possible.",
    ),
    "Held-out images": (
        r"held-out (?:images?|points?|ones)",
        "Images of the same kind that the network was not trained on. They are the control: what seems to come out "
        "of them comes out by chance, or because images of one kind are alike.",
    ),
    "Candidates": (
        r"candidates?",
        "What the search returns: images that together explain the weights as well as it can manage. It returns as "
        "many from a network that gives nothing away.",
    ),
    "Confidence": (
        r"[Cc]onfidence",
        f"The chance that a candidate shows a training image at NCC {HEADLINE} or more. It is judged without the "
        "training images: by how closely a search from another start agrees.",
    ),
    "Residual": (
        r"[Rr]esiduals?",
        "How much of the weights the candidates leave unexplained, in the search's own measure. 0: nothing.",
    ),
    "Margin": (
        r"[Mm]argins?",
        "By how much the network prefers an image's own class to the next best.",
    ),
    "Subspace": (
        r"subspace",
        "The directions that training has left in the first layer. What of an image lies outside them cannot be read "
        "from that layer.",
    ),
    "Prior": (
        r"[Pp]riors?",
        "What the search believes of images in general, whatever the weights say. A larger weight makes it count more.",
    ),
    "AUC": (
        r"AUC",
        "Area under the ROC curve: the chance that a training image ranks above a held-out one. 0.5 is guessing, 1 is "
        "certainty.",
    ),
    "False positives": (
        r"false positives",
        "Held-out images that are wrongly taken for training images.",
    ),
}
"""A term, the pattern of the words that stand for it in a text, and what it means. The page shows it at a touch."""

_TERMS = re.compile("|".join(rf"(?P<_{i}>\b{pattern}\b)" for i, (pattern, _) in enumerate(GLOSSARY.values())))
_CODE = re.compile("`([^`]+)`")


def explained(text: str) -> "Markup":
    """The text, typeset, with a button at the first use of each term of the glossary, which shows what it means.

    What stands in backticks is code.
    """
    from markupsafe import Markup  # noqa: PLC0415

    text = typeset(text)

    def parts() -> Iterator[Markup]:
        end, seen = 0, set[str]()
        for found in _TERMS.finditer(text):
            key = str(found.lastgroup)
            if key not in seen:
                seen.add(key)
                before = text[end : found.start()]
                button = Markup('<button type="button" class="term" popovertarget="term{}">{}</button>').format(
                    key, found.group()
                )
                if before.endswith("("):  # without the span a line may end between the bracket and the button
                    button = Markup('<span class="joined">({}</span>').format(button)
                yield _plain(before.removesuffix("("))
                yield button
                end = found.end()
        yield _plain(text[end:])

    return Markup("").join(parts())


def _plain(text: str) -> "Markup":
    """Text without terms; what stands in backticks is code."""
    from markupsafe import Markup  # noqa: PLC0415

    parts = enumerate(_CODE.split(text))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in parts)


def meanings() -> list[dict[str, str]]:
    """Every term with its meaning, and the name by which `explained` points at it."""
    return [{"id": f"term_{i}", "term": term, "text": text} for i, (term, (_, text)) in enumerate(GLOSSARY.items())]
