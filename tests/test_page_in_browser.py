"""The page in a browser: it is readable at every width, sorts, filters and enlarges, and runs no script of others."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from exhume.audit.counts import ImageScore
from exhume.records import read_tensors, write, write_tensors
from exhume.report import draw
from exhume.runs.audit_record import AuditRecord
from exhume.runs.schema import CandidatesRecord, ScoresRecord, TrainingRecord, read_record
from made_run import made_candidates, make_audit, make_run, write_candidates

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from benchmarks import screenshot  # noqa: E402

PROGRAM = screenshot.find_browser()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the path, and CHROME does not name one"),
]

WIDTHS = (360, 400, 800, 1400)
LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3, for text of any size."""
LONG = "a_name_without_a_single_space_" * 4
PLANTED = (
    "<script>planted=1</script>\"'><img src=x onerror=planted=1><svg onload=planted=1>"
    "<a href=javascript:planted=1>x</a></script></style>"
    "<iframe srcdoc='<script>parent.planted=1</script>'></iframe>{{ 7 * 7 }}${planted=1}"
)


@dataclass
class Opened:
    """A page and what went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert PROGRAM is not None
    with playwright.sync_playwright() as driver:
        running = screenshot.launch(driver, PROGRAM)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    contexts = []

    def begin(path: Path, width: int = 1400, scheme: str = "light", **settings: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **settings)
        contexts.append(context)
        result = Opened(context.new_page())
        told = result.problems.append
        result.page.on("console", lambda message: told(f"console: {message.text}"))
        result.page.on("pageerror", lambda error: told(f"error: {error}"))
        result.page.on("dialog", lambda dialog: (told(f"dialog: {dialog.message}"), dialog.dismiss()))
        result.page.on("request", lambda asked: told(f"request: {asked.url}") if not inside(asked.url, path) else None)
        result.page.goto(path.as_uri())
        return result

    yield begin
    for context in contexts:
        context.close()


def inside(url: str, path: Path) -> bool:
    return url == path.as_uri() or url.startswith("data:")


Kind = Literal["scored", "unscored", "audit", "points", "diverged", "foreign", "no control"]
KINDS: tuple[Kind, ...] = ("scored", "unscored", "audit", "points", "diverged", "foreign", "no control")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    root = tmp_path_factory.mktemp("pages")
    return {kind: make_page(root / kind.replace(" ", "-"), kind) for kind in KINDS}


def make_page(folder: Path, kind: Kind) -> Path:
    if kind == "points":
        return draw(
            make_run(folder, shape=(1, 1, 2), task="binary", classes=("in", "out"), found=torch.rand(9, 1, 1, 2)).folder
        )
    made = make_run(folder, shape=(1, 28, 28), classes=("zero", "one", "two " + LONG))
    if kind == "unscored":
        remove(folder, "scores.json", "scores.safetensors")
        with_confidence(folder)
    if kind == "foreign":
        remove(folder, "training.json")
    if kind == "diverged":
        write_candidates(folder, replace(made_candidates(made.found), status="diverged", message="It diverged."))
    if kind == "no control":
        scores = read_record(folder / "scores.json", ScoresRecord)
        none = dict.fromkeys(scores.recovered, 0)
        write(folder / "scores.json", replace(scores, held_out=0, null=none, null_perfect=none))
        tensors = read_tensors(folder / "scores.safetensors")
        empty = {name: tensor[:0] for name, tensor in tensors.items() if name.startswith("null")}
        write_tensors(folder / "scores.safetensors", tensors | empty)
    if kind == "audit":
        make_audit(folder, word=LONG)
    return draw(folder)


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def with_confidence(folder: Path) -> None:
    """Candidate k is the more confident the nearer k is to 10."""
    tensors = read_tensors(folder / "candidates.safetensors")
    tensors["confidence"] = 1 - (torch.arange(len(tensors["images"])) - 10).abs() / 20.0
    write_tensors(folder / "candidates.safetensors", tensors)


# ---- Every page, at every width, in both dresses


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_error_and_no_request_elsewhere(opened: Open, pages: dict[str, Path], kind: Kind) -> None:
    shown = opened(pages[kind])
    shown.page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    shown.page.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
    shown.page.wait_for_function("[...document.images].every((image) => image.complete)")
    assert shown.page.locator("img").evaluate_all("all => all.every((one) => one.naturalWidth > 0)")
    assert shown.problems == []


BEYOND = """() => {
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  const width = document.documentElement.clientWidth;
  const cut = [...document.querySelectorAll("body *:not(svg *, select, option, .all figcaption span)")].filter((one) =>
    one.checkVisibility() && (one.getBoundingClientRect().right > width + 0.5 || one.scrollWidth > one.clientWidth + 1)
    && getComputedStyle(one).display !== "inline" && getComputedStyle(one).display !== "contents");
  return [document.documentElement.scrollWidth - width, ...cut.map((one) => one.outerHTML.slice(0, 120))];
}"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_or_scrolls_sideways(opened: Open, pages: dict[str, Path], kind: Kind, width: int) -> None:
    assert opened(pages[kind], width).page.evaluate(BEYOND) == [0]


CONTRASTS = """() => {
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  document.querySelectorAll("[popover]").forEach((one) => one.removeAttribute("popover"));
  document.querySelector("dialog").show();
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const [r, g, b, alpha] = parse(getComputedStyle(one).backgroundColor);
      if (alpha === undefined || alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const seen = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest("script, style, option")) continue;
    const style = getComputedStyle(one);
    const ink = parse(one.closest("svg") ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(ground(one))].sort((x, y) => y - x);
    seen[`${one.localName}.${one.className.baseVal ?? one.className}`] = (a + 0.05) / (b + 0.05);
  }
  return seen;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_stands_out_from_its_ground(opened: Open, pages: dict[str, Path], kind: Kind, scheme: str) -> None:
    contrasts = opened(pages[kind], scheme=scheme).page.evaluate(CONTRASTS)
    assert len(contrasts) > 12
    assert {name: value for name, value in contrasts.items() if value < LEAST_CONTRAST} == {}


def test_the_dresses_differ(opened: Open, pages: dict[str, Path]) -> None:
    grounds = [
        opened(pages["scored"], scheme=scheme).page.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds[0] != grounds[1]


# ---- Sorting and filtering


def places(list_: Any) -> list[int]:
    """The items that are shown, in their order, by their place in the files."""
    shown: list[str] = list_.locator("[data-items] > *:visible").evaluate_all(
        "all => all.map((one) => one.dataset.place)"
    )
    return [int(place) for place in shown]


def choice(list_: Any, label: str) -> Any:
    return list_.get_by_role("combobox", name=re.compile(f"^{label}"))


def per_image(page: Path) -> list[ImageScore]:
    return read_record(page.parent / "scores.json", ScoresRecord).per_image


def test_the_pairs_are_sorted_as_the_reader_asks(opened: Open, pages: dict[str, Path]) -> None:
    shown, images = opened(pages["scored"]), per_image(pages["scored"])
    pairs = shown.page.locator("section[data-list]")
    best_first = [image.index for image in sorted(images, key=lambda image: -image.ncc)]
    assert places(pairs) == best_first
    sort = choice(pairs, "Sort by")
    by_class = ["one", "two " + LONG, "zero"]
    for option, expected in (
        ("NCC, worst first", [image.index for image in sorted(images, key=lambda image: image.ncc)]),
        ("order of the files", list(range(12))),
        ("class", sorted(best_first, key=lambda place: by_class.index(("zero", "one", by_class[1])[place % 3]))),
        ("NCC, best first", best_first),
    ):
        sort.select_option(option)
        assert places(pairs) == expected, option
    assert shown.problems == []


def test_the_pairs_are_filtered_as_the_reader_asks(opened: Open, pages: dict[str, Path]) -> None:
    shown, images = opened(pages["scored"]), per_image(pages["scored"])
    pairs, recovered = shown.page.locator("section[data-list]"), {i.index for i in images if i.ncc >= 0.9}
    assert 0 < len(recovered) < 12
    choice(pairs, "Show").select_option("recovered (NCC ≥ 0.9)")
    assert set(places(pairs)) == recovered
    assert pairs.locator("output").inner_text() == f"{len(recovered)} of 12"
    choice(pairs, "Show").select_option("not recovered")
    assert set(places(pairs)) == set(range(12)) - recovered
    choice(pairs, "Class").select_option("one")
    assert set(places(pairs)) == set(range(1, 12, 3)) - recovered
    choice(pairs, "Show").select_option("all")
    assert set(places(pairs)) == set(range(1, 12, 3))
    choice(pairs, "Class").select_option("all")
    pairs.get_by_label("Find").fill("Image 11")
    assert places(pairs) == [11]
    pairs.get_by_label("Find").fill("no such name")
    assert places(pairs) == [] and pairs.locator("output").inner_text() == "0 of 12"


def test_candidates_are_sorted_by_confidence_and_by_share(opened: Open, pages: dict[str, Path]) -> None:
    candidates = opened(pages["unscored"]).page.locator("section[data-list]")
    most_confident = sorted(range(24), key=lambda place: (abs(place - 10), place))
    assert places(candidates) == most_confident
    sort = choice(candidates, "Sort by")
    sort.select_option("share of the weights")
    assert places(candidates) == list(reversed(range(24)))
    sort.select_option("order of the search")
    assert places(candidates) == list(range(24))
    sort.select_option("confidence")
    assert places(candidates) == most_confident


def audit_of(page: Path) -> AuditRecord:
    return read_record(page.parent / "audit.json", AuditRecord)


def test_the_headings_of_the_leaking_images_sort_and_turn_round(opened: Open, pages: dict[str, Path]) -> None:
    shown = opened(pages["audit"]).page
    table = shown.locator("section[data-list]", has=shown.get_by_role("heading", name="images that leak"))
    leaked = audit_of(pages["audit"]).leaked
    rows = [image.index for image in leaked]
    assert places(table) == rows and len(rows) == 4
    by_share = [image.index for image in sorted(leaked, key=lambda image: -(image.share or 0))]
    assert by_share not in (rows, rows[::-1])
    heading = table.get_by_role("columnheader", name="Share")
    heading.get_by_role("button").click()
    assert places(table) == by_share and heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert places(table) == by_share[::-1] and heading.get_attribute("aria-sort") == "ascending"
    table.get_by_role("columnheader", name="Confidence").get_by_role("button").click()
    assert places(table) == [row for row in rows if row != 1] + [1], "the unknown one is last"
    table.get_by_role("columnheader", name="Confidence").get_by_role("button").click()
    assert places(table) == [row for row in rows[::-1] if row != 1] + [1], "in either direction"
    assert heading.get_attribute("aria-sort") is None
    table.get_by_role("columnheader", name="File").get_by_role("button").click()
    assert places(table) == sorted(rows), "as numbers: 2 comes before 10"


def test_the_fates_of_the_images_are_filtered(opened: Open, pages: dict[str, Path]) -> None:
    shown = opened(pages["audit"]).page
    shown.get_by_text("Image by image").click()
    table = shown.locator("details[data-list]")
    expected = [image.index for image in audit_of(pages["audit"]).images if image.fate == "does not stay"]
    assert len(expected) > 1
    choice(table, "Show").select_option("does not stay")
    assert places(table) == expected
    choice(table, "Sort by").select_option("staying, most first")
    assert places(table) == expected[::-1]


# ---- An image, large


def test_a_click_opens_an_image_large_and_escape_closes_it(opened: Open, pages: dict[str, Path]) -> None:
    shown = opened(pages["scored"])
    pairs, viewer = shown.page.locator("section[data-list] .images"), shown.page.locator("#viewer")
    small = pairs.nth(1).locator("img").first.bounding_box()["width"]
    pairs.nth(1).click()
    assert viewer.is_visible()
    best = sorted(per_image(pages["scored"]), key=lambda image: -image.ncc)
    assert f"Training image {best[1].index} " in viewer.locator(".caption").inner_text()
    assert f"NCC {best[1].ncc:.3f}" in viewer.locator(".caption").inner_text()
    frames = viewer.locator("img")
    assert frames.count() == 2 and all(frames.nth(k).bounding_box()["width"] > 4 * small for k in (0, 1))
    shown.page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert pairs.nth(1).evaluate("one => document.activeElement === one"), "the reader is where she was"
    assert shown.problems == []


def test_the_arrows_go_on_to_the_images_that_are_shown(opened: Open, pages: dict[str, Path]) -> None:
    page = opened(pages["scored"]).page
    pairs, caption = page.locator("section[data-list]"), page.locator("#viewer .caption")
    choice(pairs, "Class").select_option("one")
    expected = [f"Training image {place} " for place in places(pairs)]
    pairs.locator(".images:visible").first.click()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        seen.append(caption.inner_text())
        page.keyboard.press(key)
    assert len(expected) == 4
    assert all(text.startswith(start) for text, start in zip(seen, [*expected, expected[0]], strict=True))
    assert caption.inner_text().startswith(expected[3])
    page.get_by_role("button", name="Next").click()
    assert caption.inner_text().startswith(expected[0])
    page.get_by_role("button", name="Previous").click()
    assert caption.inner_text().startswith(expected[3])
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#viewer").is_visible()


def test_a_click_beside_the_image_closes_it(opened: Open, pages: dict[str, Path]) -> None:
    page = opened(pages["scored"]).page
    page.locator(".images").first.click()
    page.mouse.click(5, 5)
    assert not page.locator("#viewer").is_visible()


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_opens_what_the_mouse_opens(opened: Open, pages: dict[str, Path], key: str) -> None:
    page = opened(pages["scored"]).page
    reached = 0
    for _ in range(40):
        page.keyboard.press("Tab")
        reached = page.evaluate("[...document.querySelectorAll('.images')].indexOf(document.activeElement)")
        if reached >= 0:
            break
    assert reached == 0, "the first image follows the words that are explained"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "and is marked"
    page.keyboard.press(key)
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("[...document.querySelectorAll('.images')].indexOf(document.activeElement)") == 1


@pytest.mark.parametrize(("width", "height"), [(360, 640), (1400, 900), (800, 360)])
def test_a_large_image_fits_the_screen(opened: Open, pages: dict[str, Path], width: int, height: int) -> None:
    page = opened(pages["audit"], width).page
    page.set_viewport_size({"width": width, "height": height})
    page.locator(".images").first.click()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0
    assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
    assert page.locator("#viewer").evaluate("one => one.scrollWidth <= one.clientWidth")
    assert page.locator("#viewer img").first.bounding_box()["width"] >= 100


# ---- Words


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("script", [True, False], ids=["with the script", "without"])
def test_a_touch_on_a_word_says_what_it_means(opened: Open, pages: dict[str, Path], width: int, script: bool) -> None:
    page = opened(pages["scored"], width, has_touch=True, java_script_enabled=script).page
    heading = page.get_by_role("heading", name="Recovered, against chance")
    words = heading.locator("+ p .term")
    assert words.count() == 3, "NCC, one-to-one, held-out images"
    for k, meaning in enumerate(
        ("Normalised cross-correlation", "No candidate counts for two", "They are the control")
    ):
        # In the middle of the screen there is room beneath a word, and a touch need not scroll to it.
        words.nth(k).evaluate("one => one.scrollIntoView({block: 'center'})")
        words.nth(k).tap()
        shown = page.locator(".meaning:visible")
        assert shown.count() == 1 and meaning in shown.inner_text()
        box = shown.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        for _ in range(50):  # the browser may place it a frame later
            box, word = shown.bounding_box(), words.nth(k).bounding_box()
            # beneath the word or, where a scroll had left no room as it was opened, above it
            apart = max(box["y"] - word["y"] - word["height"], word["y"] - box["y"] - box["height"])
            if 0 <= apart < 40:
                break
            page.wait_for_timeout(20)
        assert 0 <= apart < 40, "next to the word"
        assert box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"], "and on the screen"
        page.keyboard.press("Escape")
        assert page.locator(".meaning:visible").count() == 0


def test_without_its_script_the_page_is_whole(opened: Open, pages: dict[str, Path]) -> None:
    page = opened(pages["scored"], java_script_enabled=False).page
    best_first = [image.index for image in sorted(per_image(pages["scored"]), key=lambda image: -image.ncc)]
    assert places(page.locator("section[data-list]")) == best_first
    assert page.locator(".controls:visible").count() == 0
    assert page.locator("#viewer").is_hidden()


# ---- What others wrote is only text


def planted_page(folder: Path) -> Path:
    """A page in which every text that comes from elsewhere is a script."""
    make_run(folder, classes=(PLANTED, "one", PLANTED + "2"), name=PLANTED)
    training = read_record(folder / "training.json", TrainingRecord)
    problem = replace(training.problem, source=PLANTED)
    ran = replace(training.provenance, device=PLANTED, torch=PLANTED, exhume=PLANTED)
    write(
        folder / "training.json",
        replace(training, message=PLANTED, problem=problem, provenance=ran, status="diverged", initial=PLANTED),
    )
    found = read_record(folder / "candidates.json", CandidatesRecord)
    assumed = replace(found.assumptions, layers=[PLANTED], regime=PLANTED)
    write(
        folder / "candidates.json",
        replace(found, message=f"Done. {PLANTED}", chosen=PLANTED, assumptions=assumed, provenance=ran),
    )
    make_audit(folder, word=PLANTED)
    return draw(folder)


def test_planted_scripts_do_not_run(opened: Open, tmp_path: Path) -> None:
    shown = opened(planted_page(tmp_path / "planted"))
    page = shown.page
    for control in page.locator("select[data-filter=class]").all():
        control.evaluate("one => { one.selectedIndex = 1; one.dispatchEvent(new Event('change')); }")
    page.locator(".images:visible").first.click()
    page.keyboard.press("ArrowRight")
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    page.wait_for_timeout(100)
    assert page.evaluate("typeof planted") == "undefined"
    assert shown.problems == []
    assert page.locator("script").count() == 1 and page.locator("iframe, a, svg [onload], [onerror]").count() == 0
    assert page.locator("h1, .kicker").all_inner_texts()[0].count("<script>planted=1</script>") == 1
    assert "{{ 7 * 7 }}" in page.content() and "49$" not in page.content()


def test_the_policy_stops_a_script_that_got_in(opened: Open, tmp_path: Path) -> None:
    path = draw(make_run(tmp_path / "run").folder)
    text = path.read_text(encoding="utf-8")
    within = "<script>planted=1</script><img src='data:,' onerror='planted=2'><svg onload='planted=3'></svg>"
    path.write_text(text.replace("<main>", f"<main>{within}"), encoding="utf-8")
    shown = opened(path)
    assert shown.page.evaluate("typeof planted") == "undefined"
    refused = [problem for problem in shown.problems if "Content Security Policy" in problem]
    assert len(refused) == 3 and len(refused) == len(shown.problems)
    assert shown.page.locator(".controls:visible").count() == 1, "the page's own script runs"


def test_the_policy_lets_nothing_out(opened: Open, tmp_path: Path) -> None:
    shown, stopped = opened(draw(make_run(tmp_path / "run").folder)), []
    shown.page.on("requestfailed", lambda asked: stopped.append((asked.url, asked.failure)))
    ask = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert shown.page.evaluate(ask) == "refused"
    shown.page.evaluate("new Image().src = 'https://example.org/x.png'")
    shown.page.wait_for_timeout(100)
    assert stopped == [("https://example.org/x.png", "csp")]


# ---- The picture of the README


def test_the_picture_of_a_page_is_drawn(pages: dict[str, Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.screenshot", str(pages["scored"].parent), str(tmp_path / "page.png")]
    subprocess.run(words, cwd=Path(__file__).parents[1], check=True)
    with Image.open(tmp_path / "page.png") as drawn:
        assert drawn.size == (1200, 1120) and len(set(drawn.convert("RGB").get_flattened_data())) > 20
    assert (tmp_path / "page.png").stat().st_size < 300_000
