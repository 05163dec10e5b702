"""Every study from its command to its table and figure, in tiny; what is done once is not done again; the laws."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cells
import designs
import findings
import run
import study
from cells import Row, Target
from designs import Job
from exhume import stages
from exhume.checkpoint import load_checkpoint
from exhume.methods import Reconstruction
from exhume.networks import Network
from exhume.problems import Selection, load_problem
from exhume.progress import Listener, Progress
from exhume.records import read
from exhume.runs import CandidatesRecord, read_training
from exhume.training import Training, train
from laws import Difference, Result, difference, exponent, fit_law, in_number, in_quality, multipliers, rank_correlation

TINY = Target("mnist-digits", 2, Training(epochs=20), Network(widths=(20, 20)))
JOB = Job(seed=0, device="cpu", steps=5)
KEPT = ("checkpoint.safetensors", "candidates.safetensors", "cost.json")
"""What is written anew where a cell is done again."""


@pytest.fixture(autouse=True)
def the_digits_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXHUME_DATA", raising=False)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in KEPT for path in folder.rglob(name)}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- the studies, end to end


@pytest.mark.parametrize("name", study.STUDIES)
def test_a_study_ends_with_table_and_figure_and_repeats_nothing(name: str, tmp_path: Path) -> None:
    study.main(name, size="test", out=tmp_path)
    folder = tmp_path / f"{name}-test"
    table, done = rows(folder), times(folder)
    planned = study.STUDIES[name].cells(study.SIZES["test"])
    assert len(table) == len(planned) == len({cell.name for cell in planned})
    for row, cell in zip(table, planned, strict=True):
        assert {column: row[column] for column in cell.setting} == {c: str(v) for c, v in cell.setting.items()}
        assert row["status"].endswith("done")
    with Image.open(folder / "figure.png") as figure:
        figure.load()
        assert figure.format == "PNG" and figure.width > 500
    page = (folder / "table.md").read_text()
    assert study.STUDIES[name].papers in page and f"study.py {name} --size test --seeds 0" in page
    assert page.count("\n| ") == len(table) + 2  # with the heading and its rule
    study.main(name, size="test", out=tmp_path)
    assert done and times(folder) == done
    assert rows(folder) == table


def test_an_interrupted_study_loses_the_cell_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack_once, attacked = designs.attack_once, []

    def interrupted(folder: Path, *settings: object) -> None:
        attacked.append(folder)
        if len(attacked) == 2:
            raise KeyboardInterrupt
        attack_once(folder, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(designs, "attack_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.main("classes", size="test", out=tmp_path)
    before = times(tmp_path)
    assert len(before) == 3  # two checkpoints, one cell's candidates
    study.main("classes", size="test", out=tmp_path)
    assert len(times(tmp_path)) == 4
    assert before.items() <= times(tmp_path).items()


def test_seeds_are_cells_of_their_own(tmp_path: Path) -> None:
    study.main("classes", size="test", seeds=(3, 4), out=tmp_path)
    assert [row["seed"] for row in rows(tmp_path / "classes-test")] == ["3", "3", "4", "4"]
    assert len(times(tmp_path)) == 8


def test_the_classes_are_as_many_images_in_all(tmp_path: Path) -> None:
    study.main("classes", size="test", out=tmp_path)
    assert [(row["classes"], row["images"]) for row in rows(tmp_path / "classes-test")] == [("2", "20"), ("10", "20")]


def test_what_cannot_be_trained_is_a_status_beside_the_others(tmp_path: Path) -> None:
    diverging = replace(TINY, training=Training(lr=1e12, epochs=20, loss="mse"), problem="mnist-odd-even")
    assert designs.attacked(diverging, tmp_path / "a", JOB)["status"].startswith("The loss was no longer finite")
    assert designs.correlated(diverging, tmp_path / "a", JOB).keys() == {"status"}
    table = study.table_markdown([{"x": 1.0, "status": "Diverged."}, {"x": 2.0, "recovered": 3, "status": "done"}])
    assert table.splitlines()[2:] == ["| 1 | - | Diverged. |", "| 2 | 3 | done |"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"name": "widht"}, "There is no study widht; there are weight-decay, width"),
        ({"name": "width", "device": "cuda"}, "There is no usable GPU here"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(words: dict[str, str], sentence: str, tmp_path: Path) -> None:
    if torch.cuda.is_available() and "device" in words:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match=sentence):
        study.main(words["name"], size="test", device=words.get("device", "cpu"), out=tmp_path)  # type: ignore[arg-type]


def test_a_study_of_which_nothing_could_be_measured_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXHUME_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"Nothing could be measured. There is no file or folder .*nowhere"):
        study.main("classes", size="test", out=tmp_path)


# ---------------------------------------------------------------- a cell


def test_other_settings_are_done_anew_and_only_what_they_touch(tmp_path: Path) -> None:
    designs.attacked(TINY, tmp_path, JOB)
    before = times(tmp_path)
    designs.attacked(TINY, tmp_path, replace(JOB, steps=6))
    after = times(tmp_path)
    assert {path.name for path in before if before[path] != after[path]} == {"candidates.safetensors"}
    designs.attacked(replace(TINY, classes=5), tmp_path, replace(JOB, steps=6))
    assert all(times(tmp_path)[path] != after[path] for path in after)


def test_a_damaged_score_is_counted_again(tmp_path: Path) -> None:
    row = designs.attacked(TINY, tmp_path, JOB)
    (tmp_path / "scores.json").write_text("{")
    again = designs.attacked(TINY, tmp_path, JOB)
    assert {**again, "reconstruct s": None} == {**row, "reconstruct s": None}


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    @contextmanager
    def stopping(at: int | None) -> Iterator[Listener]:
        def hear(event: Progress) -> None:
            heard.append(event.step)
            if event.step == at:
                raise KeyboardInterrupt

        yield hear

    monkeypatch.setattr(stages, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(cells, "bars", lambda: stopping(10))
    with pytest.raises(KeyboardInterrupt):
        cells.train_once(tmp_path, TINY, 0, "cpu")
    heard.clear()
    monkeypatch.setattr(cells, "bars", lambda: stopping(None))
    cells.train_once(tmp_path, TINY, 0, "cpu")
    assert heard[0] == 10 and heard[-1] == 20


def test_a_start_is_trained_first_and_known_to_the_attacker(tmp_path: Path) -> None:
    fresh = replace(TINY, training=Training(epochs=0))
    target = replace(TINY, network=None, start=fresh)
    cells.train_once(tmp_path, target, 0, "cpu")
    initial, trained = cells.start_of(tmp_path, target), load_checkpoint(tmp_path)
    assert initial is not None and initial.network == trained.network == TINY.network
    assert read_training(tmp_path).initial == initial.fingerprint != trained.fingerprint
    cells.attack(tmp_path, Reconstruction(steps=2), "cpu", initial)
    assert read(tmp_path / "candidates.json", CandidatesRecord).initial == initial.fingerprint
    before = (tmp_path / "training.json").read_bytes()
    cells.train_once(tmp_path, target, 0, "cpu")
    assert (tmp_path / "training.json").read_bytes() == before
    assert cells.start_of(tmp_path, TINY) is None
    cells.train_once(tmp_path, TINY, 0, "cpu")  # another training: with fresh weights, which nobody knows
    assert read_training(tmp_path).initial is None


def test_public_photographs_are_none_that_others_are_trained_on(noise_archives: Path) -> None:
    selection = Selection(per_class=10, data_dir=str(noise_archives))
    public = load_problem(run.PUBLIC, selection)
    private = load_problem("cifar10-multiclass", replace(selection, per_class=50))
    assert public.labels.bincount().tolist() == [10] * 10
    assert len(torch.cat([public.images, private.images]).flatten(1).unique(dim=0)) == 600


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize(("ceiling", "half", "steepness"), [(1.0, 0.3, 2.0), (0.6, 0.05, 1.0), (0.9, 4.0, 5.0)])
def test_the_law_recovers_planted_constants(ceiling: float, half: float, steepness: float) -> None:
    ratios = np.geomspace(0.01, 50, 25)
    law = fit_law(ratios.tolist(), (ceiling / (1 + (ratios / half) ** steepness)).tolist())
    assert law is not None
    assert [law.ceiling, law.half, law.steepness] == pytest.approx([ceiling, half, steepness], rel=1e-3)
    assert law.r_squared > 0.9999
    assert law.share(half) == pytest.approx(ceiling / 2, rel=1e-3)


def test_the_law_explains_noise_badly_and_needs_something_to_explain() -> None:
    generator = np.random.default_rng(0)
    law = fit_law(np.geomspace(0.01, 50, 40).tolist(), generator.uniform(size=40).tolist())
    assert law is not None and law.r_squared < 0.3
    assert fit_law([0.1, 0.2, 0.3], [1.0, 0.5, 0.0]) is None
    assert fit_law([0.1, 0.2, 0.3, 0.4], [0.0] * 4) is None


def test_powers_and_rank_correlations() -> None:
    assert exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)]) == pytest.approx(1.5)
    rho, p_value = rank_correlation(list(range(10)), [-(x**3) for x in range(10)])
    assert rho == pytest.approx(-1) and p_value < 1e-6
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == (0.0, 1.0)


def test_multipliers_of_a_stationary_network_are_the_slopes_of_its_loss() -> None:
    """Under weight decay lambda_i = slope_i / (n decay) (Buzaglo et al. 2023, eq. 7)."""
    problem = load_problem("mnist-digits", Selection(per_class=1, classes=4))
    config = Training(epochs=6000, lr=0.5, weight_decay=1e-2, stop_gradient=1e-7, dtype="float64")
    trained = train(problem, config, network=Network(widths=(40,)))
    with torch.no_grad():
        shares = trained.checkpoint.build().double()(problem.images.double()).softmax(1)
    expected = (1 - shares.gather(1, problem.labels[:, None])[:, 0]) / (len(problem.images) * config.weight_decay)
    assert multipliers(trained.checkpoint, problem) == pytest.approx(expected.tolist(), rel=0.05)


# ---------------------------------------------------------------- what is said of the papers


@dataclass(frozen=True, kw_only=True)
class Made(Result):
    values: tuple[float, ...]

    @property
    def ncc(self) -> list[float]:
        return list(self.values)


def made(recovered: int, images: int = 100, **setting: float | str) -> Made:
    row: Row = {**setting, "recovered": recovered, "null": 0, "images": images, "accuracy": 1.0, "train s": 1.0}
    spread = [0.9 + 0.001 * k for k in range(recovered)] + [0.5 - 0.001 * k for k in range(images - recovered)]
    return Made(row=row, folder=Path(), values=tuple(spread))


def test_differences_have_a_sign_only_beyond_chance() -> None:
    many, few, same = [made(80)], [made(20)], [made(78)]
    for test in (in_number, in_quality):
        assert test(few, many).sign == 1
        assert test(many, few).sign == -1
        assert test(same, many).sign == 0
    assert in_quality([made(0)], [made(0)]).sign == 0
    better = replace(same[0], values=(0.5,) * 60 + (1.0,) * 40), replace(same[0], values=(0.1,) * 40 + (0.5,) * 60)
    assert in_quality([better[1]], [better[0]]).sign == 1  # though their medians are equal
    assert difference(1.0, 0.02).sign == 1 and difference(1.0, 0.02, tries=5) == Difference(sign=0, p_value=0.1)


@pytest.mark.parametrize(("decayed", "said"), [(80, "agrees"), (51, "does not decide"), (10, "disagrees")])
def test_weight_decay_is_judged_by_its_numbers(decayed: int, said: str) -> None:
    results = [made(50, loss="ce", **{"weight decay": decay}) for decay in (0.0,)]
    results += [made(decayed, loss="ce", **{"weight decay": decay}) for decay in (1e-3, 1e-2)]
    sentence = findings.weight_decay(results)
    assert f"50 [0] of 100 without decay, {decayed} [0] of 100 with 0.001" in sentence
    assert sentence.count(f"which {said} ") == 2


def test_the_width_is_judged_by_the_ratio_and_gives_its_law() -> None:
    ratios = [float(ratio) for ratio in np.geomspace(0.01, 10, 12)]
    falling = [made(round(1000 / (1 + r / 0.5)), 1000, problem="p", **{"n / width": r}) for r in ratios]
    sentence = findings.width(falling)
    assert "is -1.00, which agrees" in sentence and "share = 1.00 / (1 + (x / 0.5)^1), x = images / width" in sentence
    rising = [made(round(1000 / (1 + r / 0.5)), 1000, problem="p", **{"n / width": 1 / r}) for r in ratios]
    assert "is 1.00, which disagrees" in findings.width(rising)


def test_more_classes_are_judged_against_two() -> None:
    assert "which agrees" in findings.classes([made(20, problem="p", classes=2), made(80, problem="p", classes=10)])
    assert "which disagrees" in findings.classes([made(80, problem="p", classes=2), made(20, problem="p", classes=10)])


def test_losses_are_judged_in_the_papers_order() -> None:
    results = [made(count, loss=loss) for loss, count in (("bce", 40), ("ce", 90), ("mse, decay", 41))]
    assert "ce against bce agrees" in findings.losses(results)
    assert "bce against mse, decay does not decide" in findings.losses(results)


@pytest.mark.parametrize(("last", "said"), [(20, "agrees"), (78, "does not decide"), (99, "disagrees")])
def test_longer_training_is_judged_against_the_best_of_less(last: int, said: str) -> None:
    results = [made(count, loss="ce", epochs=10**k) for k, count in enumerate((0, 45, 80, last))]
    sentence = findings.epochs(results)
    assert f"after 100, the best of less, which {said}" in sentence
    assert f"half of the most came out after {100 if last == 99 else 10}" in sentence


def test_nothing_at_any_time_is_said() -> None:
    assert "nothing at any time" in findings.epochs([made(0, loss="ce", epochs=length) for length in (1, 10)])


def test_the_initial_scale_is_judged_without_decay_only() -> None:
    results = [
        made(count, training=training, **{"initial scale": scale})
        for training in ("no decay", "decay")
        for scale, count in ((1e-4, 90), (0.02, 30))
    ]
    without, decay = findings.init_scale(results).split("*decay*")
    assert "90 [0] of 100 at 0.0001, 30 [0] of 100 at 0.02, which agrees" in without
    assert "more at the smaller" in decay and "agrees" not in decay


def test_the_margin_is_judged_by_its_correlations() -> None:
    correlations = {"rho margin": -0.6, "p margin": 1e-4, "rho multiplier": -0.6, "p multiplier": 1e-4}
    sentence = findings.margin([made(5, network="ce", **correlations)])
    assert "margin -0.60, which agrees" in sentence and "multiplier -0.60, which disagrees" in sentence
