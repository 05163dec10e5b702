"""The page: one self-contained HTML file about one run, drawn from the run's files alone."""

from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from exhume.attack.find_start import chance
from exhume.audit.matching import merge
from exhume.audit.scores import Counts, sentence
from exhume.errors import InputError
from exhume.metrics import measure_of
from exhume.networks import NetworkConfig, Task
from exhume.records import read_tensors, replace_file
from exhume.report import figures
from exhume.runs.claim import alone
from exhume.runs.schema import CandidatesRecord, ScoresRecord, StartRecord, TrainingRecord, read_record
from exhume.runs.store import read_candidate_tensors

T = TypeVar("T")

LARGE = 10
"""Pairs shown large, of the training images and of the held-out ones."""
ALIKE = 0.95
"""NCC from which two candidates show the same image: each search finds it again. Different digits seldom reach it."""
MARGIN: dict[Task, str] = {
    "binary": "margin: score towards the right side",
    "multiclass": "margin: score of its class minus the best other",
    "regression": "margin: minus the absolute error",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """checkpoint.json, what was known of the network."""

    network: NetworkConfig
    task: Task
    classes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the run folder holds; training, scores and the scores' tensors only if those stages were run here."""

    published: Published
    weights: dict[str, Tensor]
    found: CandidatesRecord
    candidates: dict[str, Tensor]
    training: TrainingRecord | None
    scores: ScoresRecord | None
    start: StartRecord | None
    truth: dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """An image above its reconstruction, as pictures; None: there is no such image to show."""

    title: str
    name: str
    value: str
    original: str | None
    found: str | None


@alone
def draw(run: Path) -> Path:
    """Writes run/report.html, a page that needs no other file and no other host, and returns its path.

    Without training.json the page leaves out how the network was trained; without scores.json it shows the candidates
    by the attacker's confidence, and says that nothing was checked.

        page = exhume.draw(Path("runs/demo"))

    Raises:
        InputError: the folder holds no checkpoint or no candidates, or one of its files is damaged.
    """
    page = _render(_context(_contents(run)))
    replace_file(run / "report.html", page.encode(errors="backslashreplace"))
    return run / "report.html"


def _contents(run: Path) -> Contents:
    if not (run / "candidates.json").exists():
        raise InputError(f"{run} holds no candidates.json, so there is nothing to report; reconstruct first.")
    scores = _optional(run / "scores.json", ScoresRecord)
    names = ("images", "candidates", "null_images", "null_candidates", "null_similarity")
    truth = _tensors(run / "scores.safetensors", *names) if scores else {}
    if scores and len(truth["images"]) != len(scores.per_image):
        raise InputError(f"scores.json and scores.safetensors in {run} do not belong together; score again.")
    published, found = (
        read_record(run / "checkpoint.json", Published),
        read_record(run / "candidates.json", CandidatesRecord),
    )
    if not published.fingerprint == found.checkpoint == (scores.checkpoint if scores else found.checkpoint):
        raise InputError(f"The files in {run} come from different checkpoints; reconstruct and score again.")
    return Contents(
        published=published,
        weights=_tensors(run / "checkpoint.safetensors", "centre"),
        found=found,
        candidates=read_candidate_tensors(run),
        training=_optional(run / "training.json", TrainingRecord),
        start=_start(run, found),
        scores=scores,
        truth=truth,
    )


def _start(run: Path, found: CandidatesRecord) -> StartRecord | None:
    """What was told of the network's start, unless the attacker was given it."""
    record = _optional(run / "start.json", StartRecord) if found.initial is None or found.start else None
    return record if record and record.checkpoint == found.checkpoint else None


def _optional(path: Path, kind: type[T]) -> T | None:
    return read_record(path, kind) if path.exists() else None


def _tensors(path: Path, *names: str) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{path} is damaged: it holds no {missing[0]}.")
    return tensors


def _render(context: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(context)


def _context(run: Contents) -> dict[str, Any]:
    published, images = run.published, run.candidates["images"]
    points = measure_of(images) == "agreement"
    outputs = len(published.classes) if published.task == "multiclass" else 1
    return {
        "run": run,
        "sentence": sentence(run.scores) if run.scores else None,
        "measure": "agreement" if points else "NCC",
        "chance": chance(run.found.start.log10_p).replace("<", "below") if run.found.start else None,
        "sizes": [images[0].numel(), *published.network.widths, outputs],
        "parameters": sum(tensor.numel() for name, tensor in run.weights.items() if name != "centre"),
        "mean_known": bool(run.weights["centre"].any()),
        "mean": None if points else figures.picture(run.weights["centre"]),
        "loss": run.training.training.loss if run.training else None,
        "pairs": [] if points else _pairs(run, run.scores) if run.scores else _unchecked(run),
        "control": [] if points or not run.scores else _control(run.truth),
        "large": LARGE,
        "alike": ALIKE,
        "confidence_known": bool(run.candidates["confidence"].isfinite().any()),
        "total": len(images),
        "outside": figures.outside(images) if points else 0,
        "charts": _charts(run, points),
        "settings": _settings(run),
    }


def _pairs(run: Contents, scores: Counts) -> list[Pair]:
    """Every training image and its one-to-one candidate, the most alike first."""
    found, pairs = figures.stretched(run.truth["candidates"]), []
    for image in sorted(scores.per_image, key=lambda image: -image.ncc):
        title, name = _class(run.published, image.label), f"training image {image.index}"
        original, paired = figures.picture(run.truth["images"][image.index]), image.candidate >= 0
        value, picture = (f"{image.ncc:.3f}", found[image.index]) if paired else ("none", None)
        pairs.append(Pair(title, name, value, original, picture))
    return pairs


def _control(truth: dict[str, Tensor]) -> list[Pair]:
    """The held-out images that resemble their candidate most, matched as the training images are."""
    order = truth["null_similarity"].argsort(descending=True, stable=True)[:LARGE]
    found, pairs = figures.stretched(truth["null_candidates"][order]), []
    for row, picture in zip(order.tolist(), found, strict=True):
        similarity, original = truth["null_similarity"][row].item(), figures.picture(truth["null_images"][row])
        value, shown = (f"{similarity:.3f}", picture) if similarity > -1 else ("none", None)
        pairs.append(Pair("held out", f"held-out image {row}", value, original, shown))
    return pairs


def _unchecked(run: Contents) -> list[Pair]:
    """Candidates alone, the most confident or those that explain most first; of those alike only the first."""
    images, labels, explained, confidence = (
        run.candidates[name] for name in ("images", "labels", "explained", "confidence")
    )
    known = not confidence.isnan().all()
    order = (confidence.nan_to_num(-1.0) if known else explained).argsort(descending=True, stable=True)
    order = order[merge(images[order], ALIKE)]
    values = [
        f"explains {explained[row]:.2%}" if confidence[row].isnan() else f"confidence {confidence[row]:.0%}"
        for row in order.tolist()
    ]
    return [
        Pair(_class(run.published, labels[row].item()), f"candidate {row}", value, None, picture)
        for row, value, picture in zip(order.tolist(), values, figures.stretched(images[order]), strict=True)
    ]


def _class(published: Published, label: float) -> str:
    if published.task == "regression" or not 0 <= label < len(published.classes):
        return f"target {label:g}"
    name = published.classes[int(label)]
    return name if len(name) > 2 else f"class {name}"


def _charts(run: Contents, points: bool) -> dict[str, Any]:
    """The figures that the run's files allow, by name."""
    charts: dict[str, Any] = {}
    training, scores, history, truth = run.training, run.scores, run.found.history, run.truth
    if points:
        charts["plane"] = figures.plane(run.candidates["images"], truth.get("images"), truth.get("null_images"))
    if scores:
        charts["bars"] = figures.bars(scores)
    if scores and training and len(training.margins) == len(scores.per_image):
        charts["margin"] = figures.against_margin(training.margins, scores, MARGIN[run.published.task])
    if training and training.history:
        past = training.history
        series = {"loss": [point.loss for point in past], "norm of the gradient": [point.gradient for point in past]}
        charts["training"] = figures.curves("training", "epoch", [point.epoch for point in past], series)
    if history:
        series = {"residual": [point.residual for point in history]}
        charts["search"] = figures.curves("search", "step", [point.step for point in history], series)
    return charts


def _settings(run: Contents) -> dict[str, dict[str, Any]]:
    """Everything that was set or read from the weights, and what it ran on."""
    tables: dict[str, Any] = {"Network": run.published.network}
    if run.training:
        tables |= {"Problem": run.training.problem, "Training": run.training.training}
        tables["The training ran on"] = run.training.provenance
    tables |= {"Method": run.found.method, "What it assumed": run.found.assumptions}
    tables["The reconstruction ran on"] = run.found.provenance
    return {title: asdict(record) for title, record in tables.items()}
