"""What the README shows is run."""

import re
from pathlib import Path

import pytest

from exhume import TrainingConfig, load_problem, train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def shown(mark: str) -> str:
    """The Python code after a mark."""
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_digs_digits_out(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(shown("example"), names)
    found = re.match(
        r"(\d+) of 50 training images came out .* of 50 held-out images (\d+) did", capsys.readouterr().out
    )
    assert found is not None
    assert int(found[1]) >= 15
    assert int(found[2]) <= 2
    assert names["again"].images.shape[1:] == (1, 28, 28)  # type: ignore[attr-defined]


def test_the_example_of_a_problem_trains(tmp_path: Path) -> None:
    path = tmp_path / "stripes.py"
    path.write_text(shown("problem"))
    problem = load_problem(str(path))
    assert problem.name == "stripes"
    assert train(problem, TrainingConfig(epochs=200)).history[-1].accuracy == 1
