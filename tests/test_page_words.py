"""The page's words: its title, its caveats, its numbers, its settings and its glossary."""

import doctest
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from exhume.attack.methods import METHODS
from exhume.audit.verdict import Judgement, Verdict
from exhume.candidates import Assumptions, KnownInit
from exhume.defence.training import TrainingConfig
from exhume.networks import NetworkConfig
from exhume.problems import Selection
from exhume.records import Provenance, read_tensors, write, write_tensors
from exhume.report import draw, glossary, settings, words
from exhume.report.audit_view import AuditView, OwnersView
from exhume.runs.defences import DefenceRow
from exhume.runs.schema import CandidatesRecord, ProblemRecord, ScoresRecord, TrainingRecord, read_record
from made_run import RAN, Made, made_candidates, make_audit, make_run, write_candidates
from test_report import Reader, page_of


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "theirs")


def scored(made: Made, change: Callable[[ScoresRecord], ScoresRecord]) -> None:
    write(made.folder / "scores.json", change(read_record(made.folder / "scores.json", ScoresRecord)))


def trained(made: Made, **changes: object) -> None:
    record = read_record(made.folder / "training.json", TrainingRecord)
    write(made.folder / "training.json", replace(record, training=replace(record.training, **changes)))


def found(made: Made, **changes: object) -> None:
    record = read_record(made.folder / "candidates.json", CandidatesRecord)
    write(made.folder / "candidates.json", replace(record, **changes))


def title(page: Reader) -> str:
    """The text of the heading, which is the page's title, too."""
    found = re.match(r"(.*?): (.+?) exhume · \1 \2 ", page.text)
    assert found is not None
    return found[2]


# ---- The title


def test_the_title_is_the_result(made: Made) -> None:
    assert title(page_of(made.folder)) == "4 of 12 training images came out of the weights"
    scored(made, lambda scores: replace(scores, p_value=0.05, p_values={"0.9": 0.05}, p_rank=0.5))
    assert title(page_of(made.folder)) == words.TITLES["nothing found"]


@pytest.mark.parametrize("verdict", get_args(Verdict))
@pytest.mark.parametrize("p_value", [1e-9, 0.5])
def test_the_title_follows_the_verdict(made: Made, verdict: Verdict, p_value: float) -> None:
    scored(made, lambda scores: replace(scores, p_value=p_value))
    audit = AuditView(
        judgement=Judgement(verdict=verdict, strength="plainly", sentence="So it is.", reasons=("First.", "Second."))
    )
    page = Reader(draw(made.folder, audit).read_text(encoding="utf-8"))
    counted = verdict == "leaks" and p_value < 0.05
    assert title(page) == ("4 of 12 training images came out of the weights" if counted else words.TITLES[verdict])
    assert "So it is. First. Second." in page.text


def test_without_a_control_the_title_claims_nothing(made: Made) -> None:
    none = dict.fromkeys(("0.7", "0.8", "0.9", "0.95"), 0)
    scored(made, lambda scores: replace(scores, held_out=0, null=none, null_perfect=none))
    tensors = read_tensors(made.folder / "scores.safetensors")
    empty = {name: tensor[:0] for name, tensor in tensors.items() if name.startswith("null")}
    write_tensors(made.folder / "scores.safetensors", tensors | empty)
    for audit in (
        None,
        AuditView(judgement=Judgement(verdict="leaks", strength="plainly", sentence="Not decided.", reasons=())),
    ):
        page = Reader(draw(made.folder, audit).read_text(encoding="utf-8"))
        assert title(page) == "4 of 12 training images look recovered, without a control"
        assert "No held-out images were given" in page.text
        assert "look-alikes" not in page.text and "The control: held-out" not in page.text


def test_a_foreign_run_has_the_name_of_its_folder(made: Made) -> None:
    (made.folder / "training.json").unlink()
    page = page_of(made.folder)
    assert page.text.startswith("theirs: 4 of 12") and "exhume · theirs" in page.text
    assert "12 images of 8\N{MULTIPLICATION SIGN}8 pixels; made up" in page.text, "the data are those of the scores"


# ---- Caveats


def test_why_confidence_is_not_available_stays_when_scores_are_there(made: Made) -> None:
    found(made, message="All 1000 steps are done. Confidence is not available: the first layer hides them.")
    assert "Confidence is not available: the first layer hides them." in page_of(made.folder).text
    found(made, message="All 1000 steps are done.", method=METHODS["exhume"](restarts=1))
    assert "Confidence is not available: there was only one search." in page_of(made.folder).text


def test_a_known_confidence_needs_no_caveat(made: Made) -> None:
    tensors = read_tensors(made.folder / "candidates.safetensors")
    write_tensors(made.folder / "candidates.safetensors", tensors | {"confidence": torch.ones(24)})
    text = page_of(made.folder).text
    assert "Confidence is not available" not in text
    assert "100 %" not in text and "100%" not in text.replace("100.0%", "")


def test_what_the_training_was_is_a_caveat(made: Made) -> None:
    assert "Training used" not in page_of(made.folder).text
    trained(made, optimiser="adam", batch_size=8)
    text = page_of(made.folder).text
    assert "Training used Adam." in text and "Training used batches of 8 images, and its start is not known." in text
    found(made, initial="0" * 16)
    text = page_of(made.folder).text
    assert "Training used Adam." in text and "Training used batches" not in text, "a known start allows for batches"


def test_a_search_over_pixels_is_a_caveat(made: Made) -> None:
    assert "searched every pixel freely" not in page_of(made.folder).text
    record = read_record(made.folder / "candidates.json", CandidatesRecord)
    found(made, assumptions=replace(record.assumptions, rank=0))
    assert "searched every pixel freely" in page_of(made.folder).text
    found(made, method=METHODS["reference"]())
    assert "searched every pixel freely" not in page_of(made.folder).text, "the papers' method has come that way"


def test_a_failed_search_is_no_caveat_twice(made: Made) -> None:
    diverged = replace(made_candidates(made.found), status="diverged", message="It diverged. Too fast.")
    write_candidates(made.folder, diverged)
    assert page_of(made.folder).text.count("Too fast.") == 1


# ---- Confidence, settings and numbers


def test_no_chance_is_called_certain(made: Made) -> None:
    for name in ("scores.json", "scores.safetensors"):
        (made.folder / name).unlink()
    tensors = read_tensors(made.folder / "candidates.safetensors")
    confidence = torch.linspace(0, 1, 24)
    confidence[1] = 1e-6
    write_tensors(made.folder / "candidates.safetensors", tensors | {"confidence": confidence})
    shown = [str(picture["alt"]) for picture in page_of(made.folder).pictures()]
    assert shown[0] == "Candidate 23, confidence > 99 %"
    assert shown[-2:] == ["Candidate 1, confidence < 1 %", "Candidate 0, confidence 0 %"]


RECORDS: tuple[object, ...] = (
    NetworkConfig(),
    ProblemRecord(name="p", selection=Selection(), source="s", images=3, fingerprint="f"),
    TrainingConfig(),
    *(method() for method in METHODS.values()),
    made_candidates(torch.rand(2, 1, 8, 8)).assumptions,
    RAN,
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_setting_has_a_plain_name_and_a_round_value(record: object) -> None:
    table = settings.in_words({"it": record})["it"]
    assert len(table) >= len(fields(record))  # type: ignore[arg-type]
    for name, value in table:
        assert "_" not in name and name[0] == (name[0].upper() if name != "exhume" else "e")
        assert "None" not in value and "e-0" not in value and not re.search(r"\.\d{4,}", value), (name, value)


def test_the_table_of_names_has_no_row_for_nothing() -> None:
    classes = [type(record) for record in RECORDS] + [Selection, KnownInit, Assumptions, Provenance]
    there = {item.name for kind in classes for item in fields(kind)}  # type: ignore[arg-type]
    assert set(settings.LABELS) | set(settings.UNSET) <= there


@pytest.mark.parametrize("module", [words, settings, glossary])
def test_the_examples_are_true(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_layers_of_a_foreign_network_keep_their_names() -> None:
    names = ["fc1.weight", "fc1.bias"]
    assert settings.layers(names, ["fc1.bias", "fc1.weight", "fc2.weight"]) == "fc1.weight, fc1.bias"
    assert settings.layers(names, names) == "all weights and biases"
    numbered = [f"{k}.{part}" for k in (1, 3, 11) for part in ("weight", "bias")]
    asked = ["layers.1.weight", "layers.3.weight", "layers.11.weight", "layers.1.bias"]
    assert settings.layers(asked, numbered) == "the weights of layers 1, 2 and 3 of 3, the biases of layer 1"


# ---- The glossary


def test_every_word_that_is_explained_has_its_meaning_on_the_page(made: Made) -> None:
    page = Reader(draw(made.folder, make_audit(made.folder)).read_text(encoding="utf-8"))
    asked = {attributes["popovertarget"] for tag, attributes in page.tags if "popovertarget" in attributes}
    meanings = {attributes["id"] for tag, attributes in page.tags if "popover" in attributes}
    assert len(meanings) == len(glossary.GLOSSARY) and asked <= meanings
    agreement = list(glossary.GLOSSARY).index("Agreement")
    assert meanings - asked == {f"term_{agreement}"}, "that of points; all others stand somewhere on an audit's page"


def test_a_word_is_explained_once_in_a_text_and_others_text_stays_text() -> None:
    text = glossary.explained("NCC & <b> NCC, one-to-one; no NCCs, candidates")
    assert text.count('popovertarget="term_0"') == 1 and text.count("<button") == 3
    assert "&amp; &lt;b&gt; NCC," in text and "NCCs" in text


# ---- The audit


def test_a_section_of_the_audit_is_drawn_only_if_its_part_is_there(made: Made) -> None:
    headings = {
        "next_steps": "What to do next",
        "leaked": "The 10 images that leak",
        "owner": "What only you can see",
        "membership": "Membership: this is not reconstruction",
        "defences": "What would help",
    }
    whole = make_audit(made.folder)
    for part in (None, *headings):
        audit = AuditView(**{part: getattr(whole, part)} if part else {})
        text = Reader(draw(made.folder, audit).read_text(encoding="utf-8")).text
        assert [name for name, heading in headings.items() if heading in text] == [part] * bool(part)
    assert "images that leak" not in page_of(made.folder).text


def test_the_audit_s_numbers_are_on_the_page(made: Made) -> None:
    text = Reader(draw(made.folder, make_audit(made.folder)).read_text(encoding="utf-8")).text
    for said in (
        "photo-1.png one 0.990 \N{EN DASH} 0.70 %",
        "photo.weight training images 0.021 held-out images 0.713 candidates 1.250 photo.bias training images 0.500",
        "3 found",
        "3 outside the subspace",
        "of 12 held-out images at which a search began, it stayed at 3",
        "photo-2.png two does not stay 0.960 0.040",
        "loss of photo 0.912 0.800 to 0.950 25.0 %",
        "With 12 held-out images no rate below 8.3 % can be measured",
        "photo 10\N{MINUS SIGN}2 2 of 12 1 of 11 62.5 %",
        "noise, ε = 3.22 0 of 12",
        "shifts moved Not for photo.",
    ):
        assert said in text, said


def test_an_audit_of_a_run_that_was_not_scored_has_no_pictures_of_the_leaks(made: Made) -> None:
    whole = make_audit(made.folder)
    for name in ("scores.json", "scores.safetensors"):
        (made.folder / name).unlink()
    page = Reader(draw(made.folder, AuditView(leaked=whole.leaked)).read_text(encoding="utf-8"))
    assert "The 10 images that leak" in page.text
    assert not any("photo" in str(picture["alt"]) for picture in page.pictures())


def test_an_owner_s_view_may_be_of_one_part_alone(made: Made) -> None:
    view = AuditView(owner=OwnersView(images=make_audit(made.folder).owner.images))  # type: ignore[union-attr]
    text = Reader(draw(made.folder, view).read_text(encoding="utf-8")).text
    assert "What became of each image" in text and "Do your images explain" not in text and "it stayed at" not in text
    none = AuditView(defences=[DefenceRow(name="n", what="w", message="m")])
    assert "What only you" not in Reader(draw(made.folder, none).read_text(encoding="utf-8")).text
