"""Pictures and figures: as text that goes into the page (PNG as data: URIs, charts as inline SVG), or for notebooks.

The page's charts carry no colours of their own but its CSS variables, so that they follow its light and dark dress.
"""

import io
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from exhume.audit.counts import HEADLINE, Counts
from exhume.metrics import min_max

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, TRAINING, HELD_OUT = "#010203", "#010204", "#010205"
_CSS = {INK: "currentColor", TRAINING: "var(--training)", HELD_OUT: "var(--held-out)"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "exhume",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
WITHOUT_POWERS = 30
"""Ratio of the largest to the smallest value below which a logarithmic axis has plain numbers, not powers of ten."""
FRAME = (-0.25, 1.25)
"""What `plane` shows of both coordinates; training points lie in [0, 1], candidates may not."""


def picture(image: Float[Tensor, "c h w"]) -> str:
    """An image in [0, 1] as a data: URI of a PNG; other than three channels are averaged to grey."""
    from PIL import Image  # noqa: PLC0415

    pixels = image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)
    buffer = io.BytesIO()
    Image.fromarray((pixels.nan_to_num().clamp(0, 1) * 255).round().byte().numpy()).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def stretched(images: Float[Tensor, "m c h w"]) -> list[str]:
    """Each candidate stretched to [0, 1] on its own, as `picture`s."""
    return [picture(image) for image in min_max(images.float().nan_to_num(posinf=0, neginf=0))]


def gallery(rows: Mapping[str, Float[Tensor, "_ c h w"]], titles: Sequence[str], columns: int = 10) -> "Figure":
    """Images of one kind above those of another, such as originals above reconstructions, as a figure of matplotlib.

        figure = exhume.gallery({"original": images, "found": found}, titles=[f"{i}" for i in range(len(images))])

    Args:
        rows: as many images of each kind, by its name; where one leaves [0, 1], each of its kind is stretched to it.
        titles: one for each column of images.
        columns: images beside each other; the others follow beneath.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    blocks = -(-len(titles) // columns)
    figure = Figure(figsize=(0.9 * columns, 1.1 * len(rows) * blocks), layout="compressed")
    grid = figure.subplots(len(rows) * blocks, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, images) in enumerate(rows.items()):
        within = images if images.min() >= 0 and images.max() <= 1 else min_max(images)
        for i, image in enumerate(within):
            axes = grid[i // columns * len(rows) + line, i % columns]
            pixels = image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)
            axes.imshow(pixels.float().numpy(), cmap="gray", vmin=0, vmax=1)
            if line == 0:
                axes.set_title(titles[i], fontsize=8)
            if i % columns == 0:
                axes.text(-0.1, 0.5, name, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=8)
    return figure


def bars(scores: Counts) -> "Markup":
    """Share of the training and of the held-out images that reach each similarity, with the counts on the bars."""

    def chart(axes: "Axes") -> None:
        for shift, counts, total, colour, label in (
            (-0.2, scores.recovered, scores.images, TRAINING, "training"),
            (0.2, scores.null, scores.held_out, HELD_OUT, "held out"),
        ):
            if not total:
                continue  # no held-out images
            places = [k + shift for k in range(len(counts))]
            drawn = axes.bar(places, [count / total for count in counts.values()], 0.36, color=colour, label=label)
            axes.bar_label(drawn, [str(count) for count in counts.values()], padding=2)
        axes.set_xticks(range(len(scores.recovered)), [f"≥ {threshold}" for threshold in scores.recovered])
        axes.set(xlabel=_measure(scores), ylabel="share", ylim=(0, 1.08), yticks=(0, 0.5, 1))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handlelength=1)

    return _svg("bars", "Recovered training images beside held-out images, by threshold", chart)


def against_margin(margins: Sequence[float], scores: Counts, axis: str) -> "Markup":
    """Similarity of each training image and its reconstruction, where it has one, against the image's margin."""
    values = [image.ncc if image.candidate >= 0 else nan for image in scores.per_image]

    def chart(axes: "Axes") -> None:
        axes.axhline(float(HEADLINE), color=INK, linewidth=0.6, linestyle=(0, (4, 4)), alpha=0.6)
        axes.scatter(margins, values, s=16, color=TRAINING, alpha=0.65, linewidth=0)
        axes.set(xlabel=axis, ylabel=_measure(scores))

    return _svg("margin", "Quality of each reconstruction against the margin of its training image", chart)


def curves(name: str, axis: str, steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> "Markup":
    """Quantities over the steps on a logarithmic scale, where zeros and what is below are left out."""
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    def chart(axes: "Axes") -> None:
        for (label, values), style in zip(series.items(), ("-", (0, (3, 1.5))), strict=False):
            positive = [value if value > 0 else nan for value in values]
            axes.plot(steps, positive, color=INK, linewidth=1.3, linestyle=style, label=label)
        shown = [value for values in series.values() for value in values if value > 0]
        if shown:
            axes.set_yscale("log")
        if shown and max(shown) < WITHOUT_POWERS * min(shown):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=axis)
        axes.legend(loc="best")

    return _svg(name, f"{' and '.join(series)} by {axis}".capitalize(), chart)


def plane(found: Tensor, training: Tensor | None, held_out: Tensor | None) -> "Markup":
    """Points by their first two coordinates: candidates as crosses, training and held-out points as rings."""

    def chart(axes: "Axes") -> None:
        for points, marker, colour, label in (
            (held_out, "^", HELD_OUT, "held-out points"),
            (training, "o", TRAINING, "training points"),
        ):
            if points is not None:
                x, y = _coordinates(points)
                axes.scatter(x, y, s=46, marker=marker, facecolors="none", edgecolors=colour, label=label)
        x, y = _coordinates(found)
        axes.scatter(x, y, s=20, marker="+", color=INK, linewidth=1, label="candidates")
        axes.set(xlim=FRAME, ylim=FRAME, aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handletextpad=0.1, columnspacing=1)

    return _svg("plane", "Candidates among the training and held-out points", chart, (4.6, 4.6))


def outside(found: Tensor) -> int:
    """How many points `plane` cannot show."""
    shown = (found >= FRAME[0]) & (found <= FRAME[1])
    return int((~shown.flatten(1).all(1)).sum())


def _measure(scores: Counts) -> str:
    return "NCC" if scores.measure == "ncc" else scores.measure


def _coordinates(points: Tensor) -> tuple[list[float], list[float]]:
    flat = points.flatten(1).double()
    return flat[:, 0].tolist(), (flat[:, 1] if flat.shape[1] > 1 else flat[:, 0] * 0).tolist()


def _svg(name: str, label: str, chart: Callable[["Axes"], None], size: tuple[float, float] = (4.6, 3.0)) -> "Markup":
    """The chart as inline SVG: no globals changed, no date, no namespaces, ids that begin with `name`."""
    import matplotlib  # noqa: PLC0415
    from markupsafe import Markup, escape  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        chart(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    opening = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {72 * size[0]:g} {72 * size[1]:g}">'
    text = re.sub(r"<svg[^>]*>", opening, text[text.index("<svg") :], count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    return Markup(text)  # noqa: S704 Matplotlib's own SVG, whose texts it escapes
