"""Tables of results: rows with named columns, written as CSV and as Markdown."""

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
    lines = [heads, ["---"] * len(heads), *([short(row.get(column)) for column in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns in the order of their first appearance, the status last."""
    found = dict.fromkeys(column for row in rows for column in row)
    return sorted(found, key="status".__eq__)


def short(value: Value) -> str:
    """A value with three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
