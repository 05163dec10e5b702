"""What an owner is told to do follows from the verdict."""

from pathlib import Path

import pytest

from exhume.audit.verdict import Judgement, Strength
from exhume.runs.advice import DEFEND, next_steps
from exhume.runs.schema import CandidatesRecord, ScoresRecord, read_record
from made_run import make_run


@pytest.mark.parametrize(("strength", "named"), [("plainly", True), ("in part", True), ("traces", False)])
def test_traces_name_no_image_that_came_out(tmp_path: Path, strength: Strength, named: bool) -> None:
    """All similarities together prove no single one."""
    folder = make_run(tmp_path / "run", shape=(1, 28, 28), classes=("zero", "one")).folder
    scores, found = (
        read_record(folder / "scores.json", ScoresRecord),
        read_record(folder / "candidates.json", CandidatesRecord),
    )
    level = min(scores.recovered)
    assert scores.recovered[level] > 0
    judgement = Judgement(verdict="leaks", strength=strength, sentence="", reasons=(), level=level)
    steps = next_steps(judgement, scores, found)
    assert any("leaked.csv" in step for step in steps) == named
    assert DEFEND in steps
