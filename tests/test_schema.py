"""The records of a run: older formats are read under today's names, and a method is its name and its settings."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from exhume.attack.methods import METHODS, Exhume, Reference
from exhume.attack.search import Method
from exhume.candidates import Assumptions, KnownInit
from exhume.errors import InputError
from exhume.records import FORMAT, write
from exhume.runs.schema import CandidatesRecord, ScoresRecord, SearchRecord, TrainingRecord, read_record
from exhume.runs.store import read_training
from exhume.runs.zoo import SECOND
from exhume.tuning.search_spaces import SPACES

HERE = Path(__file__).parent / "records"
"""Records of format 3, as they were written then."""
ZOO = HERE.parents[1] / "zoo"
KINDS = {
    "training": TrainingRecord,
    "candidates": CandidatesRecord,
    "search": SearchRecord,
    "scores": ScoresRecord,
}
OLD = sorted(HERE.glob("*.json"))
SHIPPED = [path for stage in ("training", "candidates") for path in sorted(ZOO.rglob(f"{stage}.json"))]
FREE = {"settings", "recovered", "null", "null_perfect", "mean_alone"}
"""Names of what maps any names to values."""
MAY_LACK = {"initial", "start", "weighted"}
"""What format 2 did not have, and what is no longer asked."""


def kind_of(path: Path) -> type:
    return KINDS[path.stem.partition("-")[0]]


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def edited(path: Path, folder: Path, edit: Callable[[Any], object]) -> Path:
    """A copy of a record, changed."""
    content = load(path)
    edit(content)
    copy = folder / path.name
    copy.write_text(json.dumps(content))
    return copy


def refusal(path: Path) -> str:
    """The one sentence with which a record is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read_record(path, kind_of(path))
    sentence = str(caught.value)
    assert str(path) in sentence and sentence.endswith(".") and "\n" not in sentence
    return sentence


def mappings(content: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all mappings of fixed names within JSON."""
    if isinstance(content, dict):
        yield place
        for name, value in content.items():
            if name not in FREE:
                yield from mappings(value, (*place, name))
    elif isinstance(content, list):
        for i, value in enumerate(content[:1]):
            yield from mappings(value, (*place, i))


def at(content: Any, place: tuple[str | int, ...]) -> Any:
    for step in place:
        content = content[step]
    return content


# ---- Formats 2 and 3


def name_of_file(path: Path) -> str:
    return "-".join(path.with_suffix("").parts[-2:])


@pytest.mark.parametrize("path", [*OLD, *(path for path in SHIPPED if SECOND not in path.parts)], ids=name_of_file)
def test_a_record_of_any_format_is_read_and_written_as_todays(path: Path, tmp_path: Path) -> None:
    record = read_record(path, kind_of(path))
    again = tmp_path / path.name
    write(again, record)
    old, new = load(path), load(again)
    assert new.pop("format") == FORMAT
    assert read_record(again, kind_of(path)) == record
    renamed = {"format", "reconstruction", "reading", "never_seen", "method", "assumptions", "trials"}
    if "training" in old:
        old["training"] = {"shifts": 0, "noise": 0.0, "clip": 1.0, **old["training"]}  # there were none before
    for name in old.keys() - renamed:
        assert new[name] == old[name], name


@pytest.mark.parametrize("path", OLD, ids=name_of_file)
def test_format_2_lacked_the_known_start(path: Path, tmp_path: Path) -> None:
    def age(content: Any) -> None:
        content["format"] = 2
        content.pop("initial", None)
        content.get("reading", {}).pop("start", None)

    record, older = (read_record(file, kind_of(path)) for file in (path, edited(path, tmp_path, age)))
    if isinstance(record, CandidatesRecord):
        assert older == replace(record, initial=None, assumptions=replace(record.assumptions, known_init=None))
    elif isinstance(record, TrainingRecord):
        assert older == replace(record, initial=None)
    else:
        assert older == record


FIRST_LAYER = ["layers.1.weight", "layers.1.bias"]


@pytest.mark.parametrize(
    ("name", "method", "assumptions"),
    [
        (
            "exhume",
            Exhume(steps=2, images=4, per_class=3, objective="binary", lr_images=0.03, binary_prior=1.0),
            Assumptions(
                regime=None,
                images=4,
                images_from="settings",
                rank=3,
                discarded=0.0,
                layers=FIRST_LAYER,
                smoothness=0.0,
                binary_prior=1.0,
            ),
        ),
        (
            "reference",
            Reference(steps=2, per_class=3, objective="binary", seed=3),
            Assumptions(
                regime=None,
                images=3,
                images_from="settings",
                rank=0,
                discarded=None,
                layers=[*FIRST_LAYER, "layers.3.weight"],
                smoothness=0.0,
                binary_prior=0.0,
            ),
        ),
        (
            "known-start",
            Exhume(steps=2, per_class=3, objective="binary"),
            Assumptions(
                regime=None,
                images=3,
                images_from="settings",
                rank=3,
                discarded=0.0,
                layers=FIRST_LAYER,
                smoothness=0.0,
                binary_prior=0.0,
                known_init=KnownInit(retained=1.0, exact=False),
            ),
        ),
    ],
)
def test_old_candidates_have_their_settings_under_todays_names(
    name: str, method: Method, assumptions: Assumptions
) -> None:
    record = read_record(HERE / f"candidates-{name}.json", CandidatesRecord)
    assert (record.method, record.assumptions) == (method, assumptions)


def test_an_old_search_has_its_settings_under_todays_names() -> None:
    record = read_record(HERE / "search.json", SearchRecord)
    assert record.method == Exhume(steps=2, restarts=1, per_class=3, seed=2)
    old = load(HERE / "search.json")["trials"]
    assert any(trial["settings"]["bilevel"] for trial in old)
    for trial, before in zip(record.trials, old, strict=True):
        assert trial.settings.keys() == SPACES["exhume"].ranges.keys()
        assert trial.settings["binary_prior"] == before["settings"]["bilevel"]
        assert (trial.settings["lr_images"], trial.value) == (before["settings"]["lr_images"], before["value"])


def test_old_scores_count_their_held_out_images() -> None:
    old = load(HERE / "scores.json")
    assert read_record(HERE / "scores.json", ScoresRecord).held_out == old["never_seen"] == 4


def test_the_candidates_of_the_zoo_are_of_default_settings() -> None:
    for path in SHIPPED:
        if path.stem == "candidates":
            method = read_record(path, CandidatesRecord).method
            folder = path.parent if (path.parent / "training.json").exists() else path.parent.parent
            assert method == Exhume(seed=method.seed, objective=method.objective), path
            assert read_training(folder).status != "running"


@pytest.mark.parametrize("path", OLD, ids=name_of_file)
def test_a_wrong_or_missing_key_in_an_old_record_is_refused(path: Path, tmp_path: Path) -> None:
    for place in list(mappings(load(path))):
        assert "wrong" in refusal(edited(path, tmp_path, lambda c, place=place: at(c, place).update(wrong=1)))
        for name in at(load(path), place):
            if name not in MAY_LACK:
                refusal(edited(path, tmp_path, lambda c, place=place, name=name: at(c, place).pop(name)))


@pytest.mark.parametrize("path", OLD, ids=name_of_file)
def test_what_is_no_mapping_in_an_old_record_is_refused(path: Path, tmp_path: Path) -> None:
    for *place, last in [place for place in mappings(load(path)) if place]:
        for value in (3, "text", [], [3]) if last == "start" else (None, 3, "text", [], [3]):
            content = load(path)
            at(content, tuple(place))[last] = value
            copy = tmp_path / path.name
            copy.write_text(json.dumps(content))
            refusal(copy)


def test_an_old_method_that_is_none_is_refused(tmp_path: Path) -> None:
    path = HERE / "candidates-exhume.json"
    for name in ("magic", None, 3):
        refusal(edited(path, tmp_path, lambda c, name=name: c["reconstruction"].update(method=name)))


# ---- A method is written as its name and its settings


def other(name: str, value: Any) -> Any:
    """A value of a setting that is not its default."""
    if isinstance(value, str):
        return {"float32": "float64", "float64": "float32"}[value]
    if value is None:
        return {"objective": "binary", "images": 7, "per_class": 8}.get(name, 0.75)
    return value + 1


@pytest.fixture
def record() -> CandidatesRecord:
    return read_record(HERE / "candidates-exhume.json", CandidatesRecord)


@pytest.fixture(params=METHODS)
def path(request: pytest.FixtureRequest, record: CandidatesRecord, tmp_path: Path) -> Path:
    """Candidates of each method, of today's format."""
    write(tmp_path / "candidates.json", replace(record, method=METHODS[request.param]()))
    return tmp_path / "candidates.json"


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_comes_back(name: str, record: CandidatesRecord, tmp_path: Path) -> None:
    default, path = METHODS[name](), tmp_path / "candidates.json"
    changed = {item.name: other(item.name, getattr(default, item.name)) for item in fields(default)}
    for method in (default, replace(default, **changed)):
        write(path, replace(record, method=method))
        again = read_record(path, CandidatesRecord).method
        assert again == method and type(again) is METHODS[name]
        assert load(path)["method"] == {"name": name, **vars(method)}


def with_method(path: Path, folder: Path, method: object) -> Path:
    copy = folder / "changed" / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(json.dumps({**load(path), "method": method}))
    return copy


def test_a_method_of_another_name_is_refused(path: Path, tmp_path: Path) -> None:
    settings = load(path)["method"]
    for name in ("magic", "Exhume", "", None, 3):
        copy = with_method(path, tmp_path, {**settings, "name": name})
        assert f"there are {', '.join(METHODS)}" in refusal(copy)
    del settings["name"]
    assert f"there are {', '.join(METHODS)}" in refusal(with_method(path, tmp_path, settings))


def test_a_method_without_settings_is_refused(path: Path, tmp_path: Path) -> None:
    for value in (None, "exhume", 3, [], {}):
        assert "$.method" in refusal(with_method(path, tmp_path, value))


def test_settings_of_the_other_method_are_refused(path: Path, tmp_path: Path) -> None:
    settings = load(path)["method"]
    theirs = {item.name for kind in METHODS.values() for item in fields(kind)} - settings.keys()
    for name in (*theirs, "weighted", "bilevel"):
        copy = with_method(path, tmp_path, {**settings, name: None})
        assert f"extra fields found ({name})" in refusal(copy)


def test_a_missing_or_mistyped_setting_is_refused(path: Path, tmp_path: Path) -> None:
    settings = load(path)["method"]
    for name in settings.keys() - {"name"}:
        for value in ("text", "5", True, [], {}, [1]):
            assert "$.method" in refusal(with_method(path, tmp_path, {**settings, name: value})), (name, value)
        lacking = {key: value for key, value in settings.items() if key != name}
        assert "$.method" in refusal(with_method(path, tmp_path, lacking))


def test_a_setting_that_makes_no_sense_is_refused_with_its_own_sentence(path: Path, tmp_path: Path) -> None:
    for name, value, words in (
        ("steps", 0, "steps must be at least 1, not 0"),
        ("seed", -1, "seed must be at least 0"),
        ("lr_images", 0.0, "lr_images must be positive, not 0.0"),
        ("objective", "magic", "Unknown objective 'magic'"),
    ):
        assert words in refusal(with_method(path, tmp_path, {**load(path)["method"], name: value}))


@pytest.mark.parametrize(("name", "of"), [("recovered", "images"), ("null", "held_out"), ("null_perfect", "held_out")])
def test_scores_count_no_more_images_than_there_are(name: str, of: str) -> None:
    record = read_record(HERE / "scores.json", ScoresRecord)
    for count in (-1, getattr(record, of) + 1):
        with pytest.raises(InputError, match=f"{name} counts {count} of"):
            replace(record, **{name: {**getattr(record, name), "0.9": count}})


@pytest.mark.parametrize(
    ("name", "of", "least"), [("index", "images", 0), ("candidate", "candidates", -1), ("nearest", "candidates", -1)]
)
def test_scores_are_of_images_and_candidates_that_there_are(name: str, of: str, least: int) -> None:
    record = read_record(HERE / "scores.json", ScoresRecord)
    first, *rest = record.per_image
    for number in (least - 1, getattr(record, of)):
        with pytest.raises(InputError, match="is not among those"):
            replace(record, per_image=[replace(first, **{name: number}), *rest])
