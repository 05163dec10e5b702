"""What docs/architecture.md shows is run."""

import csv
import re
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import exhume
from exhume import NetworkConfig, Selection, TrainingConfig, load_problem, reconstruct, train
from exhume.attack.search import Method
from exhume.cli import main

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_method_of_the_recipe_reconstructs() -> None:
    shown = re.search(r"<!-- method -->\n```python\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert shown is not None
    names: dict[str, type[Method]] = {}
    exec(shown[1], names)
    problem = load_problem("toy-circle", Selection(per_class=5))
    trained = train(problem, TrainingConfig(epochs=20), network=NetworkConfig(widths=(30,)))
    narrow, wide = (
        reconstruct(trained.checkpoint, names["Wide"](steps=2, restarts=2, width=width))  # type: ignore[call-arg]
        for width in (0.01, 10.0)
    )
    assert len(wide.images) == len(narrow.images)
    assert wide.status == "done"
    assert not torch.equal(wide.images, narrow.images)


def test_the_cells_of_the_guide_are_cells(tmp_path: Path) -> None:
    shown = re.search(r"<!-- cells -->\n```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "neurons.py").write_text(shown[1])
    main(["study", str(tmp_path / "neurons.py"), "--out", str(tmp_path / "study"), "--device", "cpu"])
    with (tmp_path / "study" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["neurons"], row["images"]) for row in rows] == [("50", "50"), ("200", "50")]
    assert int(rows[1]["recovered"]) > int(rows[1]["null"])


@pytest.mark.thorough
def test_the_lines_for_a_secret_start_leave_nothing_to_find() -> None:
    shown = re.search(
        r"<!-- secret start -->\n```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL
    )
    assert shown is not None
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 3))
    found = exhume.find_start(network, exhume.StartSearch(ways=("likely-seeds",), seeds=(0,)))
    assert found.start is not None and found.start.seed == 0
    before = [p.detach().clone() for p in network.parameters()]
    exec(shown[1], {"network": network, "numpy": numpy, "torch": torch})
    for old, new in zip(before, network.parameters(), strict=True):
        assert new.dtype == old.dtype and new.detach().abs().max() <= old.abs().max() + 1e-6
    weights = {name: value for name, value in network.state_dict().items() if name.endswith("weight")}
    assert exhume.find_start(weights, exhume.StartSearch(ways=("likely-seeds",), seeds=(0,))).start is None


def test_every_link_within_the_pages_is_there() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in headings(other.read_text()), f"{page.name}: {link}"


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    lines = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole_and_hold_no_placeholder(page: Path) -> None:
    """All rows of a table have as many cells, and no line is a word that was to be filled in."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        rows = [re.sub(r"`[^`]*`", "", row) for row in table.splitlines()]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows[0]
        assert len(rows) > 2, rows[0]
        assert re.fullmatch(r"[|: -]+", rows[1]), rows[0]
    assert not re.search(r"^[A-Z0-9_]{3,}$|\| [A-Z]+\d+ \|$", text, re.MULTILINE)
