"""The page's words: its title, its caveats, its numbers, its settings and its glossary."""

import doctest
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from exhume.attack.methods import METHODS
from exhume.audit.verdict import Strength, Verdict
from exhume.candidates import MANY_IMAGES, Assumptions, KnownInit
from exhume.defence.training import TrainingConfig
from exhume.layers import Layer
from exhume.networks import NetworkConfig
from exhume.problems import Selection
from exhume.records import Provenance, read_tensors, write, write_tensors
from exhume.report import glossary, settings, words
from exhume.runs.audit_record import AuditRecord
from exhume.runs.schema import CandidatesRecord, ProblemRecord, ScoresRecord, TrainingRecord, read_record
from made_run import RAN, Made, made_candidates, made_readability, make_audit, make_run, write_candidates
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


def audited(made: Made, **changes: object) -> None:
    write(made.folder / "audit.json", replace(read_record(made.folder / "audit.json", AuditRecord), **changes))


def without_control(made: Made) -> None:
    none = dict.fromkeys(("0.7", "0.8", "0.9", "0.95"), 0)
    scored(made, lambda scores: replace(scores, held_out=0, null=none, null_perfect=none))
    tensors = read_tensors(made.folder / "scores.safetensors")
    empty = {name: tensor[:0] for name, tensor in tensors.items() if name.startswith("null")}
    write_tensors(made.folder / "scores.safetensors", tensors | empty)


def title(page: Reader) -> str:
    """The text of the heading, which is the page's title, too."""
    found = re.match(r"(.*?): (.+?) exhume · \1 \2 ", page.text)
    assert found is not None
    return found[2]


# ---- The title


def test_the_title_is_the_result(made: Made) -> None:
    assert title(page_of(made.folder)) == ("10 of 12 training images came out of the weights, most of them not sharply")
    scored(made, lambda scores: replace(scores, p_value=0.05, p_values={"0.9": 0.05}, p_rank=0.5))
    assert title(page_of(made.folder)) == words.TITLES["nothing found"]


@pytest.mark.parametrize("verdict", get_args(Verdict))
@pytest.mark.parametrize("p_value", [1e-9, 0.5])
def test_the_title_follows_the_verdict(made: Made, verdict: Verdict, p_value: float) -> None:
    scored(made, lambda scores: replace(scores, p_value=p_value))
    make_audit(made.folder, verdict=verdict)
    page = page_of(made.folder)
    counted = verdict == "leaks" and p_value < 0.05  # by the level of the judgement, 0.9
    assert title(page) == ("4 of 12 training images came out of the weights" if counted else words.TITLES[verdict])
    assert "What photo says. Because of photo." in page.text


@pytest.mark.parametrize(("verdict", "strength"), [("leaks", "traces"), ("does not apply", "not proven")])
def test_the_title_claims_no_more_than_the_evidence(made: Made, verdict: Verdict, strength: Strength) -> None:
    scored(made, lambda scores: replace(scores, p_value=1e-9))
    make_audit(made.folder, verdict=verdict, strength=strength)
    page = page_of(made.folder)
    assert title(page) == words.TITLES[strength]
    assert "Images that resemble a candidate" in page.text and "that leak" not in page.text


def test_without_a_control_the_title_claims_nothing(made: Made) -> None:
    make_audit(made.folder)
    without_control(made)
    for audit in (True, False):
        if not audit:
            (made.folder / "audit.json").unlink()
        page = page_of(made.folder)
        assert title(page) == "4 of 12 training images look recovered, without a control"
        assert "No held-out images were given" in page.text
        assert "look-alikes" not in page.text and "The control: held-out" not in page.text


def test_a_foreign_run_has_the_name_of_its_folder(made: Made) -> None:
    (made.folder / "training.json").unlink()
    page = page_of(made.folder)
    assert page.text.startswith("theirs: 10 of 12") and "exhume · theirs" in page.text
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


def test_of_many_images_the_page_says_that_their_number_is_the_least_and_few_come_out(made: Made) -> None:
    record = read_record(made.folder / "candidates.json", CandidatesRecord)
    many = replace(record.assumptions, regime=MANY_IMAGES)
    found(made, assumptions=many)
    assert "At least 12 training images, read from the weights. There were about as many" in page_of(made.folder).text
    found(made, assumptions=replace(many, images_from="settings"))
    assert "12 training images, a number given to it" in page_of(made.folder).text


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


@dataclass(frozen=True)
class Named:
    layers: tuple[Layer, ...]


def test_layers_that_were_read_are_told_by_their_kinds() -> None:
    read = (Layer(name="conv", kind="conv2d", inputs=(-1,)), Layer(name="", kind="relu", inputs=(0,)))
    assert settings.in_words({"Network": Named(read)}) == {"Network": [("Layers", "conv2d, relu")]}


def test_layers_of_a_foreign_network_keep_their_names() -> None:
    names = ["fc1.weight", "fc1.bias"]
    assert settings.layers(names, ["fc1.bias", "fc1.weight", "fc2.weight"]) == "fc1.weight, fc1.bias"
    assert settings.layers(names, names) == "all weights and biases"
    numbered = [f"{k}.{part}" for k in (1, 3, 11) for part in ("weight", "bias")]
    asked = ["layers.1.weight", "layers.3.weight", "layers.11.weight", "layers.1.bias"]
    assert settings.layers(asked, numbered) == "the weights of layers 1, 2 and 3 of 3, the biases of layer 1"


# ---- The glossary


def test_every_word_that_is_explained_has_its_meaning_on_the_page(made: Made) -> None:
    make_audit(made.folder)
    page = page_of(made.folder)
    asked = {attributes["popovertarget"] for tag, attributes in page.tags if "popovertarget" in attributes}
    meanings = {attributes["id"] for tag, attributes in page.tags if "popover" in attributes}
    assert len(meanings) == len(glossary.GLOSSARY) and asked <= meanings
    agreement = list(glossary.GLOSSARY).index("Agreement")
    assert meanings - asked == {f"term_{agreement}"}, "that of points; all others stand somewhere on an audit's page"


def test_a_word_is_explained_once_in_a_text_and_others_text_stays_text() -> None:
    text = glossary.explained("NCC & <b> NCC, one-to-one; no NCCs, candidates")
    assert text.count('popovertarget="term_0"') == 1 and text.count("<button") == 3
    assert "&amp; &lt;b&gt; NCC," in text and "NCCs" in text


def test_no_line_ends_between_a_bracket_and_a_word_and_a_flag_is_code() -> None:
    text = glossary.explained("Unexplained (residual 0.53); `--defend <x>` helps, NCC >= 0.9.")
    assert '<span class="joined">(<button' in text and text.count("<span") == 1
    assert "<code>--defend &lt;x&gt;</code>" in text
    assert "≥\N{NO-BREAK SPACE}0.9" in text


# ---- The audit

HEADINGS = {
    "next_steps": "What to do next",
    "images": "The 4 images that leak",
    "owner": "What only you can see",
    "membership": "Membership: this is not reconstruction",
    "defences": "What would help",
}


def test_a_section_of_the_audit_is_drawn_only_if_its_part_is_there(made: Made) -> None:
    def drawn() -> list[str]:
        text = page_of(made.folder).text
        return [name for name, heading in HEADINGS.items() if heading in text]

    assert drawn() == []
    make_audit(made.folder)
    assert drawn() == [*HEADINGS]
    for left_out in HEADINGS:
        make_audit(made.folder)
        audited(made, **{left_out: None if left_out == "owner" else []})
        assert drawn() == [name for name in HEADINGS if name != left_out]


def test_the_audit_s_numbers_are_on_the_page(made: Made) -> None:
    make_audit(made.folder)
    page = page_of(made.folder)
    for said in (
        "photo-1.png one 0.9",
        "photo.weight training images 0.021 held-out images 0.713 candidates 1.250 Layer by layer",
        "photo.bias training images 0.500",
        "4 found A candidate shows the image, at NCC 0.9 or more.",
        "2 outside the subspace",
        "It stays there if it ends at NCC 0.9 or more",
        "NCC training of 12 held out of 11 ≥ 0.9 7 3",
        "photo-4.png one does not stay 0.920 0.080",
        "loss of photo 0.912 0.800 to 0.950 25.0 %",
        "ranks 12 training and 11 held-out images",
        "With 11 held-out images no rate below 9.1 % can be measured",
        "photo 10\N{MINUS SIGN}2 2 of 12 1 of 11 62.5 %",
        "noise, ε = 3.22 0 of 12",
        "shifts moved Not for photo.",
    ):
        assert said in page.text, said
    named = [str(picture["alt"]) for picture in page.pictures() if "Photo" in str(picture["alt"])]
    assert named == ["Photo-0.png, zero", "Photo-1.png, one", "Photo-2.png, two", "Photo-3.png, zero"], "those found"


def test_a_weaker_level_at_which_the_method_reads_is_shown_with_its_reason(made: Made) -> None:
    audit = make_audit(made.folder)
    assert "Thus photo can be read." not in page_of(made.folder).text, "its counts are those of the headline"
    audited(made, applies=replace(audit.applies, readability=made_readability("photo", level=0.8)))
    assert "≥ 0.9 7 3 ≥ 0.8 9 4 Thus photo can be read." in page_of(made.folder).text


def test_why_the_owner_s_view_is_missing_stands_in_its_place(made: Made) -> None:
    make_audit(made.folder)
    audited(made, owner=None, not_examined="There are too many images.")
    text = page_of(made.folder).text
    assert "are in the weights at all was not looked at. There are too many images." in text
    assert "What became of each image" not in text


UNPROVEN: tuple[tuple[Verdict, Strength], ...] = (
    ("nothing found", "none"),
    ("does not apply", "none"),
    ("does not apply", "not proven"),
    ("leaks", "traces"),
)


@pytest.mark.parametrize(("verdict", "strength"), UNPROVEN)
def test_no_image_is_called_leaked_but_by_the_verdict(made: Made, verdict: Verdict, strength: Strength) -> None:
    none = dict.fromkeys(("0.7", "0.8", "0.95"), 0)
    scored(made, lambda scores: replace(scores, held_out=8, null={**none, "0.9": 3}))
    make_audit(made.folder, verdict=verdict, strength=strength)
    text = page_of(made.folder).text
    assert "leak" not in text.lower()
    assert (
        "Images that resemble a candidate 4 of your images have a candidate at NCC ≥ 0.9. "
        "Of 8 held-out images 3 do so: by chance about 4.5 of 12 would."
    ) in text
    assert "4 resembles a candidate" in text and "4 found" not in text


def test_without_a_control_nothing_is_called_leaked(made: Made) -> None:
    audit = make_audit(made.folder)
    without_control(made)
    assert audit.owner is not None
    owner = replace(audit.owner, held_out=0, held_out_stay=0)
    audited(made, owner=owner, membership=[], applies=replace(audit.applies, readability=None))
    text = page_of(made.folder).text
    assert "leak" not in text.lower()
    assert "There is no control, so how many images would do so by chance is not known." in text
    assert "NCC training of 12 ≥ 0.9 7 What became" in text


@pytest.mark.parametrize("other", ["images", "network", "nothing scored"])
def test_an_audit_of_something_else_is_left_out(made: Made, other: str) -> None:
    audit = make_audit(made.folder)
    if other == "images":
        audited(made, truth=replace(audit.truth, fingerprint="another"))
    elif other == "network":
        audited(made, checkpoint="another")
    else:
        for name in ("scores.json", "scores.safetensors"):
            (made.folder / name).unlink()
    text = page_of(made.folder).text
    assert "it is left out; audit again." in text and "photo" not in text


def test_what_is_known_of_no_image_has_no_column(made: Made) -> None:
    audit = make_audit(made.folder)
    assert "Image File Class NCC Confidence Share" in page_of(made.folder).text
    audited(made, images=[replace(image, confidence=None, share=None) for image in audit.images])
    text = page_of(made.folder).text
    assert "Image File Class NCC photo-" in text
    assert "The share is how much" not in text


def test_no_leak_is_listed_where_no_image_came_out(made: Made) -> None:
    audit = make_audit(made.folder)
    audited(made, images=[replace(image, fate="does not stay") for image in audit.images])
    text = page_of(made.folder).text
    assert "that leak" not in text and "Images that resemble" not in text and "0 found" in text


def test_an_audit_of_points_has_no_pictures(tmp_path: Path) -> None:
    shape, points = (1, 1, 2), torch.rand(9, 1, 1, 2)
    folder = make_run(tmp_path / "points", shape=shape, task="binary", classes=("in", "out"), found=points).folder
    audit = make_audit(folder)
    write(folder / "audit.json", replace(audit, images=[replace(image, fate="found") for image in audit.images]))
    page = page_of(folder)
    assert "The 12 points that leak" in page.text and "Image File Class agreement Confidence Share" in page.text
    assert page.pictures() == []


def test_a_control_of_another_kind_is_no_control(made: Made) -> None:
    """The page boasts of no count, though a test that took these for a control would find a leak."""
    make_audit(made.folder, verdict="does not apply", strength="not proven")
    scored(made, lambda scores: replace(scores, p_value=1e-9, p_kind=1e-9, kind_gap=0.4))
    page = page_of(made.folder)
    assert title(page) == words.TITLES["not proven"]
    assert "Held-out images, of another kind: no control" in page.text
    assert "No control: held-out images of another kind" in page.text
    assert "Counts, without a control" in page.text
    assert "There is no control, so how many images would do so by chance is not known." in page.text
    for boast in ("recovered, at", "Recovered, against chance", "The control: held-out", "by chance about"):
        assert boast not in page.text
    assert '<dl class="bars undecided">' in (made.folder / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_was_explained(made: Made) -> None:
    audit = make_audit(made.folder)
    assert audit.owner is not None
    for of, said in (("weights", "the weights"), ("momentum", "the momentum of the optimiser")):
        audited(made, owner=replace(audit.owner, of=of))
        page = page_of(made.folder)
        assert f"Do your images explain {said}?" in page.text
        assert title(page).endswith(f"came out of {said}")
        assert f"The share is how much of {said} the image accounts for." in page.text


def test_what_the_control_cannot_tell_is_said(made: Made) -> None:
    audit = make_audit(made.folder)
    assert "not told apart" not in page_of(made.folder).text
    assert "The control is" not in page_of(made.folder).text
    chance = replace(audit.membership[0], p_value=0.7)
    audited(made, membership=[chance])
    scored(made, lambda scores: replace(scores, given=scores.held_out + 4))
    text = page_of(made.folder).text
    assert "Training and held-out images are not told apart" in text
    assert re.search(r"The control is \d+ of the \d+ held-out images: as many as there are training images", text)
    audited(made, membership=[], no_membership="They are of another kind.")
    assert "is not decided. They are of another kind." in page_of(made.folder).text
