"""The page: what it shows is what the files say, and it needs nothing from elsewhere."""

import io
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from PIL import Image
from torch import Tensor

from exhume.audit.sentence import sentence
from exhume.errors import InputError
from exhume.metrics import min_max
from exhume.records import read_tensors, write, write_tensors
from exhume.report import draw
from exhume.runs.schema import CandidatesRecord, FoundStart, ScoresRecord, read_record
from made_run import RAN, Made, made_candidates, make_run, pictures_of, write_candidates

VOID = {"meta", "link", "img", "br", "hr", "input"}
INLINE = {"button", "sup", "b", "strong", "span", "code"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute"
        if tag not in VOID:
            self.open.append(tag)
        self._part(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._part(tag)

    def _part(self, tag: str) -> None:
        if tag not in INLINE:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def pictures(self) -> list[dict[str, str | None]]:
        """All but the mean image, their spaces ordinary ones."""
        shown = [attributes for tag, attributes in self.tags if tag == "img"]
        of_training = [a | {"alt": " ".join(str(a["alt"]).split())} for a in shown]
        return [a for a in of_training if a["alt"] != "The mean training image"]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "run")


def page_of(folder: Path) -> Reader:
    return Reader(draw(folder).read_text(encoding="utf-8"))


def pixels(source: str | None) -> Tensor:
    """The picture in a data: URI, [h, w] or [h, w, 3], 0 to 255."""
    assert source is not None
    image = Image.open(io.BytesIO(b64decode(source.removeprefix("data:image/png;base64,"))))
    return torch.tensor(list(image.tobytes())).reshape(image.height, image.width, -1).squeeze(-1)


def test_the_page_is_well_formed_and_accessible(made: Made) -> None:
    page = page_of(made.folder)
    names = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert names.count("h1") == names.count("title") == 1
    assert all(picture["alt"] for picture in page.pictures())
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 4
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_asks_no_other_host_for_anything(made: Made) -> None:
    page, text = page_of(made.folder), (made.folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attributes.get(name) is None or str(attributes[name]).startswith(("data:", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert all(target in ids for target in re.findall(r"url\(#([^)]*)\)", text))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_the_policy_allows_the_page_s_own_script_and_no_other(made: Made) -> None:
    page, text = page_of(made.folder), (made.folder / "report.html").read_text(encoding="utf-8")
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}], "one, inline"
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = b64encode(sha256(script[1].encode()).digest()).decode()
    policy = next(str(a["content"]) for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_numbers_are_those_of_the_scores(made: Made) -> None:
    page, scores = page_of(made.folder), read_record(made.folder / "scores.json", ScoresRecord)
    assert 0 < scores.recovered["0.9"] < 12
    assert sentence(scores).replace(">=", "≥") in page.text
    assert "NCC training of 12 held out of 12 look-alikes of 12 mean alone of 12" in page.text
    for threshold, count in scores.recovered.items():
        null, perfect, mean = (each[threshold] for each in (scores.null, scores.null_perfect, scores.mean_alone))
        assert f"≥ {threshold} {count} {null} {perfect} {mean} " in page.text
    assert f"median {scores.median_ncc:.3f} {scores.null_median_ncc:.3f}" in page.text
    assert f"recovered, at NCC ≥ 0.9 {scores.recovered['0.9']} of 12 Held-out images: the control 0 of 12" in page.text
    ssim = scores.ssim
    assert f"{ssim.good} of 12 training images have such a candidate, and {ssim.null_good} of 12" in page.text
    assert f"themselves were the candidates, {ssim.null_perfect} held-out images would" in page.text
    shown = [picture["alt"] for picture in page.pictures() if str(picture["alt"]).startswith("Its reconstruction")]
    best_first = [f"Its reconstruction, NCC {v:.3f}" for v in sorted((i.ncc for i in scores.per_image), reverse=True)]
    assert shown[:10] == best_first[:10], "the best pairs"
    assert shown[20:] == best_first, "all pairs, after ten of the control"


def test_the_page_says_what_was_attacked_and_how(made: Made) -> None:
    text = page_of(made.folder).text
    for words in (
        "Dense layers 64\N{EN DASH}5\N{EN DASH}3, relu; 340 weights",
        "To tell 3 classes apart: zero, one, two",
        "12 images of 8\N{MULTIPLICATION SIGN}8 pixels; made up",
        "Cross-entropy, weight decay 0.0156, gradient descent, all images at once. All 1000 epochs are over.",
        "87.5% on the training images, 62.5% on held-out ones",
        "the 3 classes, the mean training image.",
        "12 training images, a number read from the weights",
        "24 candidates, within the 11 directions",
        "By the candidates: the weights of layer 1 of 2, weighted by the errors that training leaves",
        "Smoothness prior (flat with edges), weight 3\N{MULTIPLICATION SIGN}10\N{MINUS SIGN}5;",
        "Black-or-white prior, weight 5",
        "every 25 steps the errors are weighted anew",
        RAN.torch,
        RAN.device,
        "Training took 2 s, reconstruction 2 s.",
    ):
        assert words in text


@pytest.mark.parametrize("channels", [1, 3])
def test_originals_are_shown_as_they_are_and_candidates_stretched(tmp_path: Path, channels: int) -> None:
    made = make_run(tmp_path, shape=(channels, 8, 8))
    scores = read_record(made.folder / "scores.json", ScoresRecord)
    best = max(scores.per_image, key=lambda image: image.ncc)
    original, found = (picture["src"] for picture in page_of(made.folder).pictures()[:2])
    stretched = min_max(made.found[best.candidate][None])[0]
    for source, image in ((original, made.images[best.index]), (found, stretched)):
        expected = (image * 255).round().permute(1, 2, 0).squeeze(-1)
        assert torch.equal(pixels(source), expected.long())


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    bad = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    made = make_run(tmp_path, classes=(bad, "one", "two"), name=bad)
    page = page_of(made.folder)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert bad in page.text


def test_without_scores_nothing_is_claimed(made: Made) -> None:
    for name in ("scores.json", "scores.safetensors", "training.json"):
        (made.folder / name).unlink()
    page = page_of(made.folder)
    assert "24 candidates, none of them checked" in page.text
    assert "is not known until they are scored against the truth" in page.text
    assert "recovered" not in page.text.lower() and "came out" not in page.text
    assert "Confidence is not available." in page.text
    assert "Not recorded: the network came from elsewhere" in page.text
    shown = [picture["alt"] for picture in page.pictures()]
    best_first = [f"Candidate {row}, explains {row / 10:.2f} %" for row in reversed(range(24))]
    assert shown == best_first[:10] + best_first


def test_the_most_confident_come_first_and_the_unknown_last_by_what_they_explain(made: Made) -> None:
    for name in ("scores.json", "scores.safetensors"):
        (made.folder / name).unlink()
    tensors = read_tensors(made.folder / "candidates.safetensors")
    tensors["confidence"][:] = torch.nan
    tensors["confidence"][3:5] = torch.tensor([0.25, 0.75])
    write_tensors(made.folder / "candidates.safetensors", tensors)
    page = page_of(made.folder)
    assert "Confidence is not available" not in page.text
    shown = [picture["alt"] for picture in page.pictures()]
    assert shown[:3] == ["Candidate 4, confidence 75 %", "Candidate 3, confidence 25 %", "Candidate 0, explains 0.00 %"]
    assert not any("nan" in text for text in shown)


def test_what_two_searches_have_found_is_shown_once(made: Made) -> None:
    for name in ("scores.json", "scores.safetensors"):
        (made.folder / name).unlink()
    tensors = read_tensors(made.folder / "candidates.safetensors")
    tensors["images"][20] = 0.5 * tensors["images"][4] + 0.1
    tensors["confidence"][:] = torch.linspace(0.5, 0.4, 24)
    write_tensors(made.folder / "candidates.safetensors", tensors)
    page = page_of(made.folder)
    shown = [picture["alt"].split(",")[0] for picture in page.pictures()]
    rows = [row for row in range(24) if row != 20]  # the less confident of the two
    assert shown == [f"Candidate {row}" for row in rows[:10] + rows]
    assert "All 23 that are not alike, of 24" in page.text


def test_a_regression_run_shows_its_targets(tmp_path: Path) -> None:
    made = make_run(tmp_path, task="regression", classes=("minus", "plus"))
    text = page_of(made.folder).text
    assert "target -1" in text and "target 1" in text and "margin: minus the absolute error" in text


def test_points_are_drawn_in_the_plane(tmp_path: Path) -> None:
    found = torch.cat([torch.rand(11, 1, 1, 2), torch.tensor([7.0, 0.5]).reshape(1, 1, 1, 2)])
    made = make_run(tmp_path, shape=(1, 1, 2), task="binary", classes=("in", "out"), found=found)
    page = page_of(made.folder)
    assert not page.pictures()
    assert "12 points of 2 coordinates" in page.text and "Candidates outside the frame: 1." in page.text
    (made.folder / "scores.json").unlink()
    assert "12 candidates, none of them checked" in page_of(made.folder).text


def test_more_images_than_candidates_and_candidates_that_diverged(tmp_path: Path) -> None:
    found = torch.rand(5, 1, 8, 8)
    found[0, 0, 0, 0] = torch.nan
    page = page_of(make_run(tmp_path, found=found).folder)
    assert page.text.count("no candidate none") == 0
    assert page.text.count("no candidate ") >= 8


def test_a_failed_search_is_called_one(made: Made) -> None:
    candidates = replace(made_candidates(made.found), status="diverged", message="The residual was no longer finite.")
    write_candidates(made.folder, replace(candidates, history=[]))
    assert "did not end well: The residual was no longer finite." in page_of(made.folder).text


def test_the_same_files_give_the_same_bytes_and_touch_no_globals(made: Made) -> None:
    before = dict(mpl.rcParams)
    first = draw(made.folder)
    assert first == made.folder / "report.html"
    content = first.read_bytes()
    assert draw(made.folder).read_bytes() == content
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("missing", ["candidates.json", "candidates.safetensors", "checkpoint.json"])
def test_a_missing_file_is_one_sentence_and_leaves_no_page(made: Made, missing: str) -> None:
    (made.folder / missing).unlink()
    with pytest.raises(InputError, match=re.escape(missing)):
        draw(made.folder)
    assert not list(made.folder.glob("report*"))


def test_files_that_do_not_fit_are_refused(made: Made) -> None:
    write_tensors(made.folder / "scores.safetensors", {"images": made.images})
    with pytest.raises(InputError, match="holds no candidates"):
        draw(made.folder)
    scores = read_record(made.folder / "scores.json", ScoresRecord)
    write(made.folder / "scores.json", replace(scores, per_image=scores.per_image[:3]))
    write_tensors(
        made.folder / "scores.safetensors", pictures_of(made_candidates(made.found), made.images, made.images.clone())
    )
    with pytest.raises(InputError, match="do not belong together"):
        draw(made.folder)


# ---- The start of training


SEEDED = FoundStart(way="all-seeds", seed=123456, place=60_000, candidate=None, log10_p=-21.6, unknown=[], hints=[])


def said_of(folder: Path, *, initial: str | None = None, start: FoundStart | None = None) -> str:
    """The words of a page whose candidates were found with this knowledge."""
    make_run(folder)
    record = read_record(folder / "candidates.json", CandidatesRecord)
    write(folder / "candidates.json", replace(record, initial=initial, start=start))
    return page_of(folder).text


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (
            SEEDED,
            "seed 123456 of PyTorch\u2019s random generator (the low 32 bits of what it was given), after 60,000",
        ),
        (replace(SEEDED, seed=None), "the state of PyTorch\u2019s random generator."),
        (replace(SEEDED, seed=None, place=None, candidate="v1.pt"), "it shares its start with the network v1.pt."),
        (
            replace(SEEDED, unknown=["5.weight", "5.bias"]),
            "after 60,000 draws. The chance of a false alarm is below 10\N{MINUS SIGN}21. Not found: 5.weight, 5.bias.",
        ),
    ],
    ids=["seed", "state", "public", "unknown"],
)
def test_a_start_that_was_found_is_on_the_page(tmp_path: Path, start: FoundStart, words: str) -> None:
    said = said_of(tmp_path, initial="0" * 16, start=start)
    assert "The weights, the task" in said and "those that its training began with" not in said
    assert "Found in them What its training began with: " in said and words in said
    assert "The chance of a false alarm is below 10\N{MINUS SIGN}21" in said
    assert "What training added to the weights of layer 1" in said


def test_what_the_search_for_the_start_was_given_is_on_the_page(tmp_path: Path) -> None:
    start = replace(SEEDED, hints=["a range of seeds", "3 seeds to try"])
    assert "the 3 classes, a range of seeds, 3 seeds to try. No training" in said_of(
        tmp_path, initial="0" * 16, start=start
    ).replace(", the mean training image", "")


def test_a_start_that_was_given_or_is_unknown_is_not_said_to_be_found(tmp_path: Path) -> None:
    given, unknown = said_of(tmp_path / "given", initial="0" * 16), said_of(tmp_path / "unknown")
    assert "The weights, those that its training began with, the task" in given and "Found in them" not in given
    assert "began with" not in unknown and "Found in them" not in unknown and "What training added" not in unknown
