"""Every study from its command to its table and figure, in tiny; the tables of results; the laws; what is concluded."""

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cluster, designs, findings, pictures, run, speed, study, targets, zoo
from benchmarks.laws import (
    Difference,
    difference,
    exponent,
    fit_law,
    in_number,
    in_quality,
    multipliers,
    rank_correlation,
)
from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.scores import score
from exhume.defence.training import TrainingConfig, TrainingPoint, train
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.presets import TRAININGS
from exhume.problems import INSTALLED, Problem, Selection, load_problem
from exhume.records import read_tensors, write_tensors
from exhume.runs.cells import Result, train_once
from exhume.runs.schema import SearchRecord, read_record
from exhume.runs.store import load_candidates, read_training
from exhume.runs.zoo import SECOND


@pytest.fixture(autouse=True)
def the_digits_of_the_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EXHUME_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- the studies, end to end


@pytest.mark.parametrize("name", study.STUDIES)
def test_a_study_ends_with_table_and_figure(name: str) -> None:
    study.main(name, size="test")
    folder = Path("runs/studies") / f"{name}-test"
    table, planned = rows(folder), study.STUDIES[name].cells(study.SIZES["test"])
    assert len(table) == len(planned) == len({cell.name for cell in planned})
    for row, cell in zip(table, planned, strict=True):
        assert {column: row[column] for column in cell.setting} == {c: str(v) for c, v in cell.setting.items()}
        assert row["status"].endswith("done")
    with Image.open(folder / "figure.png") as figure:
        figure.load()
        assert figure.format == "PNG" and figure.width > 500
    page = (folder / "table.md").read_text()
    assert study.STUDIES[name].papers in page and f"benchmarks.study {name} --size test --seeds 0" in page
    assert page.count("\n| ") == len(table) + 2  # with the heading and its rule


@pytest.mark.parametrize("name", ["margin", "many", "cost"])
def test_a_study_with_work_of_its_own_repeats_nothing_either(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study.main(name, size="test")
    table = rows(Path("runs/studies") / f"{name}-test")
    monkeypatch.setattr("exhume.runs.cells.reconstruct_run", None)
    monkeypatch.setattr(designs, "least", None)
    study.main(name, size="test")
    assert rows(Path("runs/studies") / f"{name}-test") == table


def test_the_classes_are_as_many_images_in_all_for_each_seed() -> None:
    study.main("classes", size="test", seeds=(3, 4))
    table = rows(Path("runs/studies/classes-test"))
    assert [(row["seed"], row["classes"], row["images"]) for row in table] == [
        (seed, classes, "20") for seed in "34" for classes in ("2", "10")
    ]


def test_the_cost_is_of_as_many_candidates_as_the_table_says() -> None:
    for cell in designs.cost(study.SIZES["test"]):
        shape: speed.Shape = cell.work.keywords["shape"]  # type: ignore[attr-defined]
        method = speed.exhume_method(shape)
        assert isinstance(method, Exhume) and method.per_class is not None
        assert 10 * method.per_class == cell.setting["candidates"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"name": "widht"}, "There is no study widht; there are weight-decay, width"),
        ({"name": "width", "device": "cuda"}, "There is no usable GPU here"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(words: dict[str, str], sentence: str) -> None:
    if torch.cuda.is_available() and "device" in words:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match=sentence):
        study.main(words["name"], size="test", device=words.get("device", "cpu"))  # type: ignore[arg-type]


def test_a_study_without_a_measurement_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXHUME_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"Nothing could be measured. There is no file or folder .*nowhere"):
        study.main("classes", size="test")


# ---------------------------------------------------------------- the tables


def test_a_target_is_a_row_and_is_attacked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = targets.known("mnist-digits", 2, TrainingConfig(epochs=3), NetworkConfig(widths=(20,), bias="all"))
    monkeypatch.setitem(targets.TARGETS, "tiny", tiny)
    first = run.row("tiny", 1, Exhume(steps=3, restarts=1), "cpu")
    trained = Path("runs/benchmarks/tiny-1/checkpoint.safetensors").stat().st_mtime_ns
    found = Path("runs/benchmarks/tiny-1/candidates.safetensors").stat().st_mtime_ns
    again = run.row("tiny", 1, Exhume(steps=3, restarts=1), "cpu")
    untimed = {"train s": None, "reconstruct s": None}
    assert {**first, **untimed} == {**again, **untimed} and (first["target"], first["seed"]) == ("tiny", 1)
    assert first["confident"] is None  # one search
    assert Path("runs/benchmarks/tiny-1/checkpoint.safetensors").stat().st_mtime_ns == trained
    assert Path("runs/benchmarks/tiny-1/candidates.safetensors").stat().st_mtime_ns > found
    assert load_candidates(Path("runs/benchmarks/tiny-1"))[1].initial is not None
    with pytest.raises(SystemExit, match="There is no target b99; there are demo, b1"):
        run.main(("b3", "b99"))


def test_every_row_of_the_results_can_be_made_again() -> None:
    results = (Path(run.__file__).parent / "RESULTS.md").read_text()
    commands = re.findall(r"python -m benchmarks\.(run|study|zoo) ([^\n`]+)", results)
    tables = {"run": targets.TARGETS, "study": study.STUDIES, "zoo": zoo.ROWS}
    named = {(table, name) for table, words in commands for name in words.partition(" --")[0].split()}
    assert len(named) > 25 and all(name in tables[table] for table, name in named)


def test_images_that_are_shown_twice_count_once() -> None:
    similarity = torch.tensor([[0.95, 0.93, 0.2, 0.91], [0.1, 0.2, 0.3, 0.92], [0.1, 0.0, 0.5, 0.3]])
    assert run.shown(similarity) == (3, 2)
    assert run.shown(similarity[2:]) == (0, 0)


def test_mirror_images_follow_where_there_are_too_few_photographs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(30) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=pixels[:30], y_train=labels, x_test=pixels[30:], y_test=labels[:20])
    enough, more = (load_problem(targets.MANY, Selection(per_class=count, data_dir=str(tmp_path))) for count in (3, 5))
    original, mirrored = (part.reshape(10, -1, 3, 32, 32) for part in (enough.images, more.images))
    assert torch.equal(mirrored[:, :3], original) and torch.equal(mirrored[:, 3:], original[:, :2].flip(-1))
    # no mirror image of a training image is in the control
    control = more.held_out.reshape(10, 4, 3, 32, 32)
    assert len(enough.held_out) == 20
    assert torch.equal(control[:, :2].flip(-1), control[:, 2:])


def test_public_photographs_are_none_that_others_are_trained_on(noise_archives: Path) -> None:
    selection = Selection(per_class=10, data_dir=str(noise_archives))
    public = load_problem(targets.PUBLIC, selection)
    private = load_problem("cifar10-multiclass", replace(selection, per_class=50))
    assert public.labels.bincount().tolist() == [10] * 10
    assert len(torch.cat([public.images, private.images]).flatten(1).unique(dim=0)) == 600


# ---------------------------------------------------------------- networks that were trained elsewhere


@pytest.fixture
def trained_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Problem, TrainingPoint]:
    """A folder with a network for the preset mnist-binary, made small, the images of its problem, and how it ended."""
    monkeypatch.setattr(zoo, "METHOD", Exhume(steps=2, restarts=1, per_class=2))
    network = NetworkConfig(widths=(6, 5))
    tiny = replace(TRAININGS["mnist-binary"], per_class=3, network=network)
    monkeypatch.setitem(TRAININGS, "mnist-binary", tiny)
    problem = load_problem(tiny.problem, Selection(per_class=3, data_dir=INSTALLED))
    trained = train(problem, TrainingConfig(epochs=5), network=network)
    weights, centre = trained.checkpoint.weights, trained.checkpoint.centre
    first = torch.cat([weights["1.weight"], weights["1.bias"][:, None]], 1)
    rest = {"second": weights["3.weight"], "last": weights["5.weight"], "centre": centre}
    write_tensors(tmp_path / "mnist-binary.first.safetensors", {"first": first})
    write_tensors(tmp_path / "mnist-binary.rest.safetensors", rest)
    return tmp_path, problem, trained.history[-1]


def test_a_network_from_elsewhere_becomes_an_entry(
    trained_elsewhere: tuple[Path, Problem, TrainingPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    source, problem, last = trained_elsewhere
    zoo.main(("mnist-binary",), source=source)
    entry = Path("zoo/mnist-binary")
    record, (_, first) = read_training(entry), load_candidates(entry)
    (point,) = record.history
    assert (point.epoch, record.training.epochs, record.training.dtype) == (898_025, 898_025, "float64")
    assert (point.loss, point.gradient) == pytest.approx((last.loss, last.gradient), rel=1e-4)
    assert (point.accuracy, point.held_out_accuracy) == (last.accuracy, last.held_out_accuracy)
    assert record.problem.fingerprint == problem.fingerprint and record.problem.selection.data_dir == INSTALLED
    assert len(record.margins) == 6 and "float16" in record.message
    _, second = load_candidates(entry / SECOND, of=entry)
    assert (first.method.seed, second.method.seed) == (0, 1)
    assert read_tensors(entry / SECOND / "candidates.safetensors")["images"].dtype == torch.uint8
    assert capsys.readouterr().out.count("| mnist-binary |") == 2


def test_a_network_of_other_images_is_refused(trained_elsewhere: tuple[Path, Problem, TrainingPoint]) -> None:
    source, problem, _ = trained_elsewhere
    preset, other = targets.preset("mnist-binary"), replace(problem, images=problem.images / 2)
    with pytest.raises(InputError, match="was trained on other images"):
        zoo.read_network(source, "mnist-binary", other, preset)
    write_tensors(source / "mnist-binary.first.safetensors", {"third": torch.ones(2, 2)})
    with pytest.raises(InputError, match="hold centre, last, second, third, not a network"):
        zoo.read_network(source, "mnist-binary", problem, preset)


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
    config = TrainingConfig(epochs=6000, lr=0.5, weight_decay=1e-2, stop_gradient=1e-7, dtype="float64")
    trained = train(problem, config, network=NetworkConfig(widths=(40,)))
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
    figures = {"recovered": recovered, "null": 0, "images": images}
    spread = [0.9 + 0.001 * k for k in range(recovered)] + [0.5 - 0.001 * k for k in range(images - recovered)]
    return Made(setting=setting, figures=figures, folder=Path(), values=tuple(spread))


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


# ---------------------------------------------------------------- the driver of a cluster


def test_the_driver_of_a_search_is_measured_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = cluster.recipe((10,))
    train_once(tmp_path / "trained", replace(recipe, training=TrainingConfig(epochs=5)), device="cpu")
    cluster.print_driver(tmp_path, tmp_path / "trained", 50, "random")
    told = re.fullmatch(
        r"driver, random, after 50 trials: ([\d.]+) ms each, ([\d.]+) .*\n +the journal has ([\d,]+) bytes a trial\n",
        capsys.readouterr().out,
    )
    assert told is not None
    assert float(told[1]) > 0 and int(told[3].replace(",", "")) > 1000
    record = read_record(tmp_path / "search-instant" / "search.json", SearchRecord)
    assert [trial.number for trial in record.trials] == list(range(50)) and record.best == 0


# ---------------------------------------------------------------- pictures of other kinds


@pytest.mark.thorough
@pytest.mark.parametrize("name", pictures.SETS)
def test_a_set_of_pictures_is_its_seeds_and_holds_none_twice(name: str) -> None:
    problem, again, other = (pictures.pictures(name, seed) for seed in (0, 0, 1))
    assert torch.equal(problem.images, again.images)
    assert name == "grey-digits" or not torch.equal(problem.images, other.images)
    both = torch.cat([problem.images, problem.held_out])
    assert len(both) == 2 * pictures.COUNT == len(both.flatten(1).unique(dim=0))
    assert both.min() >= 0 and both.max() <= 1
    assert problem.labels.bincount().tolist() == [pictures.COUNT // pictures.CLASSES] * pictures.CLASSES


@pytest.mark.thorough
def test_grey_pictures_come_out_by_the_prior_that_the_weights_choose() -> None:
    """Control: held-out pictures, and the same search without a prior."""
    problem = pictures.pictures("shapes", 0)
    victim = train(problem, TrainingConfig(loss="ce", lr=0.5, epochs=600)).checkpoint
    recovered, null = {}, {}
    for smoothness in (None, 0.0):
        found = reconstruct(victim, Exhume(steps=200, restarts=1, smoothness=smoothness))
        counts = score(found, problem.images, problem.labels, problem.held_out)
        recovered[smoothness], null[smoothness] = counts.recovered["0.8"], counts.null["0.8"]
    assert recovered[None] >= 60 and recovered[None] >= recovered[0.0] + 15
    assert max(null.values()) <= 10
