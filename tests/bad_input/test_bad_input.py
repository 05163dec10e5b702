"""Every bad input ends with exit code 2 and one sentence, runs nothing, and leaves every file as it was."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bad_input.cases import CASES, Case
from exhume.cli import main
from exhume.records import read, write_together
from exhume.runs.schema import StartRecord

MADE = (
    "train data.npz run --widths 12 --epochs 4 --lr 0.1 --device cpu",
    "reconstruct run --steps 2 --per-class 3 --device cpu",
    "score run",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each case changes: a run, its data as arrays and as files, a model and a mean image."""
    folder, random = tmp_path_factory.mktemp("base"), np.random.default_rng(0)
    images = random.integers(0, 256, (16, 5, 5), dtype=np.uint8)
    labels = np.arange(8) % 2
    held_out = {"held_out": images[8:], "held_out_labels": labels}
    np.savez(folder / "data.npz", images=images[:8], labels=labels, **held_out)  # type: ignore[arg-type]
    for number, image in enumerate(images):
        (folder / "images" / ("even", "odd")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / ("even", "odd")[number % 2] / f"{number // 2}.png")
    np.save(folder / "mean.npy", np.full((1, 5, 5), 0.5, np.float32))
    model = torch.nn.Sequential(torch.nn.Linear(25, 12), torch.nn.ReLU(), torch.nn.Linear(12, 1))
    torch.save(model.state_dict(), folder / "model.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in MADE:
            main(command.split())
        write_start(folder / "run")
    return folder


def write_start(run: Path) -> None:
    """start.json with its tensors, which an ordinary run of this size would not have."""
    record = read(run / "start.json", StartRecord)
    write_together(run / "start", record, {"1.weight": torch.zeros(12, 25)})


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_its_sentence(
    case: Case, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "here"))
    monkeypatch.chdir(folder)
    case.make()
    before = snapshot(folder)
    with pytest.raises(SystemExit) as ended:
        main(case.command.split())
    said = capsys.readouterr()
    message = re.sub(r"[\s│╭╮╰╯─]+", " ", said.err).strip()
    assert ended.value.code == 2, message
    assert case.sentence in message
    assert "Traceback" not in message
    assert snapshot(folder) == before


def test_the_cases_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(CASES) >= 350
