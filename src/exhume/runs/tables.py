"""Tables of results: rows with named columns, written as CSV, as Markdown, and for a terminal."""

import csv
import io
from collections.abc import Mapping, Sequence

Value = str | float | None
Row = Mapping[str, Value]
"""One line of a table, by column; None where there is nothing to tell."""


def table_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with all columns that any of them has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with three digits."""
    heads = columns(rows)
    lines = [heads, ["---"] * len(heads), *_cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_text(rows: Sequence[Row]) -> str:
    """The rows for a terminal, with three digits and aligned columns."""
    return _aligned([columns(rows), *_cells(rows)])


def side_by_side(rows: Sequence[Row]) -> str:
    """The same with a column for each row, and a line for each column."""
    return _aligned([list(line) for line in zip(columns(rows), *_cells(rows), strict=True)])


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[short(row.get(column)) for column in columns(rows)] for row in rows]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns in the order of their first appearance, the status last."""
    found = dict.fromkeys(column for row in rows for column in row)
    return sorted(found, key="status".__eq__)


def short(value: Value) -> str:
    """A value with three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
