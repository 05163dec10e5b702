"""The page: one self-contained HTML file about one run, drawn from the run's files alone."""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from exhume.attack.find_start import chance
from exhume.attack.methods.input_subspace import REWEIGHT_EVERY
from exhume.audit.counts import HEADLINE
from exhume.audit.doubts import about_control, is_another_kind
from exhume.audit.membership import tells_apart
from exhume.audit.sentence import sentence
from exhume.audit.verdict import NOT_DECIDED, Judgement, judge
from exhume.checkpoint import Description
from exhume.errors import InputError
from exhume.layers import LayerGraph
from exhume.metrics import measure_of
from exhume.networks import Task
from exhume.records import read_tensors, replace_file
from exhume.report import entries, figures
from exhume.report.entries import Entry
from exhume.report.glossary import explained, meanings
from exhume.report.settings import in_words, layers
from exhume.report.words import (
    by_chance,
    caveats,
    fates,
    fine_percent,
    headline,
    names_leaks,
    number,
    percent,
    raised,
    typeset,
)
from exhume.runs.applicability import read_applicability
from exhume.runs.audit_record import EXPLAINED, AuditedImage, AuditRecord
from exhume.runs.claim import alone
from exhume.runs.schema import CandidatesRecord, ScoresRecord, StartRecord, TrainingRecord, read_record
from exhume.runs.store import read_candidate_tensors

T = TypeVar("T")

MARGIN: dict[Task, str] = {
    "binary": "margin: score towards the right side",
    "multiclass": "margin: score of its class minus the best other",
    "regression": "margin: minus the absolute error",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """checkpoint.json, what was known of the network."""

    network: Description
    task: Task
    classes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the run folder holds; training, scores, the scores' tensors and audit only if those stages were run here.

    name: the problem's, or the folder's where the network came from elsewhere; audit: of these candidates and of the
    images that were scored; outdated: whether there is one of others, which is left out.
    """

    name: str
    published: Published
    weights: dict[str, Tensor]
    found: CandidatesRecord
    candidates: dict[str, Tensor]
    training: TrainingRecord | None
    scores: ScoresRecord | None
    start: StartRecord | None
    truth: dict[str, Tensor]
    audit: AuditRecord | None
    outdated: bool


@alone
def draw(run: Path) -> Path:
    """Writes run/report.html, a page that needs no other file and no other host, and returns its path.

    Without training.json the page leaves out how the network was trained; without scores.json it shows the candidates
    by the attacker's confidence, and says that nothing was checked. With audit.json it shows the audit, else the
    verdict on the scores alone; an audit of another network or of other images is left out, and the page says so.

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
    training, audit = _optional(run / "training.json", TrainingRecord), _optional(run / "audit.json", AuditRecord)
    belongs = audit is not None and _belongs(audit, found, scores)
    return Contents(
        name=training.problem.name if training else run.resolve().name,
        published=published,
        weights=_tensors(run / "checkpoint.safetensors", "centre"),
        found=found,
        candidates=read_candidate_tensors(run),
        training=training,
        start=_start(run, found),
        scores=scores,
        truth=truth,
        audit=audit if belongs else None,
        outdated=audit is not None and not belongs,
    )


def _belongs(audit: AuditRecord, found: CandidatesRecord, scores: ScoresRecord | None) -> bool:
    """Whether the audit is of this network, and of the images that were scored."""
    return scores is not None and (audit.checkpoint, audit.truth.fingerprint) == (
        found.checkpoint,
        scores.truth.fingerprint,
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
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=raised,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "explained": explained,
        "number": number,
        "percent": percent,
        "fine_percent": fine_percent,
        "typeset": typeset,
    }
    return environment.get_template("page.html").render(context | _inline())


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _inline() -> dict[str, Any]:
    """The style and the script that go into the page, and the hash by which its policy allows this script alone."""
    from markupsafe import Markup  # noqa: PLC0415

    script = _part("page.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    style = Markup(_part("page.css"))  # noqa: S704 both are the package's own files
    return {"style": style, "script": Markup(script), "script_hash": digest}  # noqa: S704


def _context(run: Contents) -> dict[str, Any]:
    published, images, training = run.published, run.candidates["images"], run.training
    judgement, audit = _judgement(run), run.audit
    leaks = names_leaks(judgement, run.scores)
    points = measure_of(images) == "agreement"
    mean = run.weights.get("known_mean", run.weights["centre"])
    outputs = len(published.classes) if published.task == "multiclass" else 1
    confident = bool(run.candidates["confidence"].isfinite().any())
    parameters = {name: tensor for name, tensor in run.weights.items() if name.startswith("layers.")}
    thing, level = "point" if points else "image", judgement.level if judgement else HEADLINE
    explained_what = EXPLAINED[audit.owner.of if audit and audit.owner else "weights"]
    # a change is read from the weights too
    source = EXPLAINED["momentum" if audit and audit.owner and audit.owner.of == "momentum" else "weights"]
    return {
        "run": run,
        "audit": audit,
        "judgement": judgement,
        "leaks": leaks,
        "undecided": judgement is not None and judgement.name == NOT_DECIDED,
        "another_kind": run.scores is not None and is_another_kind(run.scores),
        "about_control": about_control(run.scores) if run.scores else "",
        "fates": fates(leaks),
        "told_apart": audit is not None and tells_apart(audit.membership),
        "headline": HEADLINE,
        "level": level,
        "thing": thing,
        "title": headline(judgement, run.scores, len(images), thing, source),
        "explained_what": explained_what,
        "sentence": sentence(run.scores) if run.scores else None,
        "caveats": caveats(run.found, training.training if training else None, confident),
        "glossary": meanings(),
        "measure": "agreement" if points else "NCC",
        "chance": chance(run.found.start.log10_p).replace("<", "below") if run.found.start else None,
        "network": _network(published.network, [images[0].numel(), outputs]),
        "parameters": sum(tensor.numel() for tensor in parameters.values()),
        "layers": layers(run.found.assumptions.layers, list(parameters)),
        "mean_known": bool(mean.any()),
        "mean": None if points else figures.picture(mean),
        "loss": training.training.loss if training else None,
        "pairs": [] if points else _pairs(run),
        "control": [] if points or not run.scores else entries.control(run.truth),
        "resembling": [_resembling(run, image, points) for image in (audit.leaked if audit else [])],
        "by_chance": by_chance(run.scores, thing, level) if run.scores else None,
        "class_name": lambda label: entries.class_name(published.task, published.classes, label),
        "large": entries.LARGE,
        "alike": entries.ALIKE,
        "reweight_every": REWEIGHT_EVERY,
        "confident": confident,
        "total": len(images),
        "outside": figures.outside(images) if points else 0,
        "charts": _charts(run, points),
        "settings": _settings(run),
    }


def _judgement(run: Contents) -> Judgement | None:
    """The audit's, or as far as the scores alone tell it; None: nothing was scored."""
    if run.audit is not None:
        return run.audit.judgement
    return judge(run.scores, read_applicability(run.found)) if run.scores else None


def _network(network: Description, ends: list[int]) -> str:
    """The network in words; ends: the number of pixels and of outputs."""
    if isinstance(network, LayerGraph):
        kinds = [layer.kind for layer in network.layers]
        counted = [f"{kinds.count(kind)} {kind}" if kinds.count(kind) > 1 else kind for kind in dict.fromkeys(kinds)]
        return f"{len(kinds)} layers, built elsewhere: {', '.join(counted)}"
    dense = "\N{EN DASH}".join(map(str, [*network.widths, ends[1]]))
    if network.channels:
        convolutions = f"Convolutions with {', '.join(map(str, network.channels))} channels"
        return f"{convolutions}, then dense layers {dense}, {network.activation}"
    return f"Dense layers {ends[0]}\N{EN DASH}{dense}, {network.activation}"


def _pairs(run: Contents) -> list[Entry]:
    task, classes = run.published.task, run.published.classes
    if run.scores is None:
        return entries.unchecked(run.candidates, task, classes)
    return entries.pairs(run.scores, run.truth, run.candidates["confidence"], task, classes)


def _resembling(run: Contents, image: AuditedImage, points: bool) -> Entry:
    """A training image that resembles its candidate, with the pictures of both; points have none."""
    pictures: dict[str, str | None] = {"original": None, "found": None}
    if not points:
        original, found = (run.truth[name][image.index : image.index + 1] for name in ("images", "candidates"))
        pictures = {"original": figures.picture(original[0]), "found": figures.stretched(found)[0]}
    return Entry(
        title=entries.class_name(run.published.task, run.published.classes, image.label),
        name=image.name,
        measure="agreement" if points else "NCC",
        value=f"{image.ncc:.3f}",
        place=image.index,
        ncc=image.ncc,
        confidence=image.confidence,
        share=image.share,
        **pictures,
    )


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


def _settings(run: Contents) -> dict[str, list[tuple[str, str]]]:
    """Everything that was set or read from the weights, and what it ran on, in plain words."""
    tables: dict[str, Any] = {"Network": run.published.network}
    if run.training:
        tables |= {"Problem": run.training.problem, "Training": run.training.training}
        tables["The training ran on"] = run.training.provenance
    tables |= {"Method": run.found.method, "What it assumed": run.found.assumptions}
    tables["The reconstruction ran on"] = run.found.provenance
    return in_words(tables)
