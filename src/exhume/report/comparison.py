"""The page that puts runs side by side."""

from collections.abc import Sequence
from importlib.resources import files

from exhume.runs.tables import Row, columns, short


def comparison_page(rows: Sequence[Row]) -> str:
    """A self-contained page with a column for each row, and a line for each of their columns."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    folder = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = short
    page = environment.from_string((folder / "comparison.html").read_text(encoding="utf-8"))
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))  # noqa: S704 the package's own file
    return page.render(rows=rows, columns=columns(rows), style=style)
