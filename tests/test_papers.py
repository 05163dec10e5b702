"""What docs/papers.md says can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from exhume.cli import parse

ROOT = Path(__file__).parents[1]
PAPERS = (ROOT / "docs" / "papers.md").read_text()
BLOCK = re.search(r"```sh\n(.*?)```", PAPERS, re.DOTALL)
assert BLOCK is not None
COMMANDS = sorted({*re.findall(r"`(exhume [^`]+)`", PAPERS), *re.findall(r"^exhume .*$", BLOCK[1], re.MULTILINE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"<!-- problem -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "stripes.py").write_text(example[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXHUME_DATA", raising=False)
    assert callable(parse(shlex.split(command)[1:]))


def test_every_link_and_study_is_there() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAPERS):
        assert (ROOT / "docs" / link).exists(), link
    assert re.search(r"`python -m benchmarks.study [\w-]+`", PAPERS)
    for study in re.findall(r"`python -m benchmarks.study ([\w-]+)`", PAPERS):
        assert f'"{study}": Study(' in (ROOT / "benchmarks" / "study.py").read_text(), study


def test_every_row_of_the_results_is_there() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for row in set(re.findall(r"\bb\d+(?:-decay)?\b", PAPERS)):
        assert re.search(rf"^\| {row}\b", results, re.MULTILINE), row
