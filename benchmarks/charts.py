"""The figures of the studies."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.laws import by_number, fit_law, grouped, share
from exhume.runs.cells import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Chart = Callable[["Figure", Sequence[Result]], None]
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def png(chart: Chart, results: Sequence[Result]) -> bytes:
    """Draws a chart without changing matplotlib's globals."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure, buffer = Figure(figsize=(9, 4), layout="constrained"), io.BytesIO()
    chart(figure, results)
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def lines(x: str, series: str, zero: float | None = None) -> Chart:
    """How many come out and how well against a column, a line for each of a series; seeds are averaged.

    zero: up to where the logarithmic axis is linear, so that 0 has its place; None: nowhere.
    """

    def chart(figure: "Figure", results: Sequence[Result]) -> None:
        number, quality = figure.subplots(1, 2)
        for axes in (number, quality):  # before the curves, whose limits depend on it
            if zero is None:
                axes.set_xscale("log")
            else:
                axes.set_xscale("symlog", linthresh=zero)
        for colour, (name, of) in zip(COLOURS, grouped(results, series).items(), strict=False):
            _curve(number, x, of, _share, colour=colour, label=str(name))
            _curve(number, x, of, _null_share, colour=colour, style=":", label=f"{name}, held-out")
            _curve(quality, x, of, lambda result: result.number("median NCC"), colour=colour)
            _curve(quality, x, of, lambda result: result.number("null median NCC"), colour=colour, style=":")
        number.set(ylabel="share recovered at NCC ≥ 0.9", ylim=(-0.02, 1.02))
        quality.set(ylabel="median NCC")
        for axes in (number, quality):
            axes.set(xlabel=x)
            _ticks(axes, by_number(results, x))
        number.legend(fontsize="small")

    return chart


def bars(series: str) -> Chart:
    """A bar for each row's share, and for the held-out images beside it."""

    def chart(figure: "Figure", results: Sequence[Result]) -> None:
        axes = figure.subplots()
        groups = grouped(results, series)
        for shift, label, value in ((-0.2, "training", _share), (0.2, "held-out", _null_share)):
            heights = [fmean(value(result) for result in of) for of in groups.values()]
            axes.bar([place + shift for place in range(len(groups))], heights, 0.38, label=label)
        axes.set_xticks(range(len(groups)), [str(name) for name in groups])
        axes.set(ylabel="share recovered at NCC ≥ 0.9", ylim=(0, 1.02))
        axes.legend()

    return chart


def widths(figure: "Figure", results: Sequence[Result]) -> None:
    """For each problem a map of the share recovered by width and images; for all, the share against their ratio."""
    problems = grouped(results, "problem")
    figure.set_size_inches(4.5 * (len(problems) + 1), 4)
    *maps, law_axes = figure.subplots(1, len(problems) + 1)
    for axes, colour, (name, of) in zip(maps, COLOURS, problems.items(), strict=False):
        _map(axes, of)
        axes.set_title(str(name))
        ratios, shares = [result.number("n / width") for result in of], [_share(result) for result in of]
        law_axes.scatter(ratios, shares, color=colour, label=str(name))
        law = fit_law(ratios, shares)
        if law is not None:
            dense = np.geomspace(min(ratios), max(ratios), 100)
            law_axes.plot(dense, [law.share(ratio) for ratio in dense], color=colour)
    law_axes.set(xscale="log", xlabel="images / width", ylabel="share recovered at NCC ≥ 0.9", ylim=(-0.02, 1.02))
    law_axes.legend(fontsize="small")


def _map(axes: "Axes", results: Sequence[Result]) -> None:
    rows, columns = (sorted(by_number(results, name)) for name in ("width", "images"))
    shares = np.full((len(rows), len(columns)), np.nan)
    for width, of_width in by_number(results, "width").items():
        for images, cell in by_number(of_width, "images").items():
            place = rows.index(width), columns.index(images)
            shares[place] = fmean(_share(result) for result in cell)
            axes.text(place[1], place[0], f"{shares[place]:.2f}", ha="center", va="center", fontsize="small",
                      color="white" if shares[place] < 0.6 else "black")  # fmt: skip
    axes.imshow(shares, vmin=0, vmax=1, origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    axes.set(xlabel="training images", ylabel="width")


def scatters(points: Callable[[Path], dict[str, list[float]]]) -> Chart:
    """For each network the images' NCC against each of the quantities that `points` tells of its folder."""

    def chart(figure: "Figure", results: Sequence[Result]) -> None:
        figure.set_size_inches(9, 3.5 * len(results))
        grid = figure.subplots(len(results), 2, squeeze=False)
        for panels, result in zip(grid, results, strict=True):
            for axes, (name, values) in zip(panels, points(result.folder).items(), strict=True):
                axes.scatter(values, result.ncc, s=14, alpha=0.7, linewidth=0)
                axes.axhline(0.9, color="grey", linewidth=0.6, linestyle="--")
                axes.set(xlabel=name, ylabel="NCC", title=f"{result.row['network']}, seed {result.row['seed']}")

    return chart


def costs(figure: "Figure", results: Sequence[Result]) -> None:
    """Seconds of a step against each quantity that is varied, which has a logarithmic axis."""
    groups = grouped(results, "varied")
    for axes, (name, of) in zip(figure.subplots(1, len(groups), sharey=True), groups.items(), strict=True):
        _curve(axes, str(name), of, lambda result: 1e3 * result.number("step s"))
        axes.set(xscale="log", ylim=(0, None), xlabel=str(name))
        _ticks(axes, by_number(of, str(name)))
    figure.axes[0].set_ylabel("ms of a step")


def many(figure: "Figure", results: Sequence[Result]) -> None:
    """How many come out against the number of images, and what the attack took, a line for each start."""
    figure.set_size_inches(10, 3.2)
    panels = figure.subplots(1, 3)
    drawn = (("recovered", "recovered at NCC ≥ 0.9", 1.0), ("attack cpu s", "processor seconds of the attack", 1.0),
             ("peak MB", "memory, GB", 1e-3))  # fmt: skip
    for axes, (column, label, unit) in zip(panels, drawn, strict=True):
        axes.set(xscale="log", xlabel="training images", ylabel=label)
        for colour, (start, of) in zip(COLOURS, grouped(results, "start").items(), strict=False):
            there = [result for result in of if result.row[column] is not None]
            _curve(axes, "images", there, _scaled(column, unit), colour=colour, label=str(start))
            if column == "recovered":
                _curve(axes, "images", of, lambda result: result.number("null"), colour=colour, style=":")
        axes.set_ylim(0, None)
        _ticks(axes, by_number(results, "images"))
    panels[0].legend(fontsize="small")


def _scaled(column: str, unit: float) -> Callable[[Result], float]:
    return lambda result: unit * result.number(column)


def _ticks(axes: "Axes", values: Iterable[float]) -> None:
    """The values themselves, where a logarithmic axis would show powers of ten."""
    axes.minorticks_off()
    axes.set_xticks(list(values), [f"{value:g}" for value in values], fontsize="small", rotation=30)


def _share(result: Result) -> float:
    return share([result])


def _null_share(result: Result) -> float:
    return result.number("null") / result.number("images")


def _curve(
    axes: "Axes",
    x: str,
    results: Sequence[Result],
    value: Callable[[Result], float],
    *,
    colour: str | None = None,
    style: str = "o-",
    label: str | None = None,
) -> None:
    groups = by_number(results, x)
    keys = sorted(groups)
    heights = [fmean(value(result) for result in groups[key]) for key in keys]
    axes.plot(keys, heights, style, color=colour, label=label)
