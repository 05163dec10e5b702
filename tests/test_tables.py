"""Tables of results: all columns of all rows, the status last."""

from exhume.runs.tables import table_csv, table_markdown

ROWS = [{"x": 1.0, "status": "Diverged | here."}, {"x": 2.34567, "recovered": 3, "median": None, "status": "done"}]


def test_a_table_for_reading_has_three_digits() -> None:
    assert table_markdown(ROWS).splitlines() == [
        "| x | recovered | median | status |",
        "| --- | --- | --- | --- |",
        "| 1 | - | - | Diverged / here. |",
        "| 2.35 | 3 | - | done |",
    ]


def test_a_table_for_programs_has_all_digits() -> None:
    assert table_csv(ROWS).splitlines() == ["x,recovered,median,status", "1.0,,,Diverged | here.", "2.34567,3,,done"]
