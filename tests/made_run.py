"""A run folder whose every file is made up, for the tests of the page."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from exhume.attack.methods import Exhume
from exhume.audit.counts import HEADLINE, Counts, ImageScore, Seconds
from exhume.audit.matching import match
from exhume.audit.membership import Membership
from exhume.audit.readability import Fate, Readability
from exhume.audit.scores import score
from exhume.audit.significance import Interval
from exhume.audit.verdict import Applicability, Judgement, Strength, Verdict
from exhume.candidates import Assumptions, Candidates, HistoryPoint
from exhume.checkpoint import Checkpoint, save_checkpoint
from exhume.defence.training import TrainingConfig, TrainingPoint
from exhume.networks import NetworkConfig, Shape, Task, build
from exhume.problems import Selection
from exhume.records import Provenance, write, write_tensors
from exhume.runs.audit_record import AuditedImage, AuditRecord, LayerResidual, OwnersView
from exhume.runs.defences import DefenceRow
from exhume.runs.schema import CandidatesRecord, ProblemRecord, ScoresRecord, TrainingRecord, read_record

RAN = Provenance(
    exhume="7.8.9",
    torch="2.99.1",
    python="3.11.0",
    device="a computer",
    threads=2,
    seed=0,
    date="2026-01-02T03:04:05+00:00",
    seconds=1.5,
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run folder and what was written into it."""

    folder: Path
    images: Tensor
    found: Tensor


def make_run(
    folder: Path,
    *,
    shape: Shape = (1, 8, 8),
    task: Task = "multiclass",
    classes: tuple[str, ...] = ("zero", "one", "two"),
    name: str = "blobs",
    found: Tensor | None = None,
) -> Made:
    """Twelve random training images, recovered with growing noise, twelve useless candidates beside them."""
    generator = torch.Generator().manual_seed(1)
    images, held_out, useless = torch.rand(3, 12, *shape, generator=generator)
    noise = torch.linspace(0.001, 0.3, 12)[:, None, None, None]
    blurred = 0.7 * images + noise * torch.randn(images.shape, generator=generator)
    found = torch.cat([useless, blurred]) if found is None else found
    labels = torch.arange(12) % 3 if task == "multiclass" else torch.arange(12) % 2
    if task == "regression":
        labels = labels.float() * 2 - 1
    network, centre = NetworkConfig(widths=(5,)), images.mean(0)
    module = build(network, centre, 3 if task == "multiclass" else 1, generator)
    weights = {key: tensor.detach() for key, tensor in module.layers.named_parameters()}
    save_checkpoint(
        Checkpoint(network=network, task=task, classes=classes, centre=centre, weights=weights),
        folder,
    )
    write(folder / "training.json", _training_record(network, name))
    candidates = made_candidates(found)
    write_candidates(folder, candidates)
    scores = score(candidates, images, labels, held_out, problem=name, seconds=Seconds(train=1.5, reconstruct=2.5))
    record = ScoresRecord(
        **{item.name: getattr(scores, item.name) for item in fields(Counts)},
        truth=_problem_record(name),
        checkpoint=_fingerprint(folder),
        provenance=RAN,
    )
    write(folder / "scores.json", record)
    write_tensors(folder / "scores.safetensors", pictures_of(candidates, images, held_out))
    return Made(folder=folder, images=images, found=found)


def _problem_record(name: str) -> ProblemRecord:
    return ProblemRecord(name=name, selection=Selection(), source="made up", images=12, fingerprint="f")


def _fingerprint(folder: Path) -> str:
    return str(json.loads((folder / "checkpoint.json").read_text())["fingerprint"])


def _training_record(network: NetworkConfig, name: str) -> TrainingRecord:
    return TrainingRecord(
        problem=_problem_record(name),
        network=network,
        training=TrainingConfig(loss="ce", weight_decay=0.015625),
        history=[
            TrainingPoint(epoch=e, loss=0.5**e, gradient=0.0, accuracy=0.875, held_out_accuracy=0.625) for e in range(4)
        ],
        margins=[float(k) for k in range(12)],
        status="epochs over",
        message="All 1000 epochs are over.",
        provenance=RAN,
    )


def made_candidates(found: Tensor) -> Candidates:
    count = len(found)
    return Candidates(
        images=found,
        labels=torch.arange(count) % 2,
        multipliers=torch.ones(count),
        explained=torch.arange(count) / 1000,
        confidence=torch.full((count,), torch.nan),
        history=[HistoryPoint(step=s, residual=1 / (1 + s), penalty=0.0) for s in range(5)],
        assumptions=Assumptions(
            regime="decayed",
            images=12,
            images_from="weights",
            rank=11,
            discarded=0.01,
            layers=["1.weight"],
            smoothness=3e-5,
            binary_prior=5.0,
        ),
        status="done",
        message="All 1000 steps are done.",
    )


def write_candidates(folder: Path, candidates: Candidates) -> None:
    record = CandidatesRecord(
        checkpoint=_fingerprint(folder),
        method=Exhume(),
        assumptions=candidates.assumptions,
        history=candidates.history,
        status=candidates.status,
        message=candidates.message,
        provenance=RAN,
    )
    write(folder / "candidates.json", record)
    names = ("images", "labels", "multipliers", "explained", "confidence")
    write_tensors(folder / "candidates.safetensors", {name: getattr(candidates, name) for name in names})


def pictures_of(candidates: Candidates, images: Tensor, held_out: Tensor) -> dict[str, Tensor]:
    def assigned(truth: Tensor) -> tuple[Tensor, Tensor]:
        matches = match(candidates, truth)
        rows = matches.assigned
        paired = (rows >= 0)[:, None, None, None]
        return candidates.images[rows.clamp_min(0)].where(paired, 0), matches.assigned_similarity

    null_candidates, null_similarity = assigned(held_out)
    return {
        "images": images,
        "candidates": assigned(images)[0],
        "null_images": held_out,
        "null_candidates": null_candidates,
        "null_similarity": null_similarity,
    }


def make_audit(
    folder: Path, *, word: str = "photo", verdict: Verdict = "leaks", strength: Strength = "plainly"
) -> AuditRecord:
    """Writes an audit of the run that has all sections, and gives it; `word` is in every text of it."""
    scores = read_record(folder / "scores.json", ScoresRecord)
    record = AuditRecord(
        truth=scores.truth,
        checkpoint=scores.checkpoint,
        notes=[f"{word} was assumed."],
        judgement=Judgement(
            verdict=verdict, strength=strength, sentence=f"What {word} says.", reasons=(f"Because of {word}.",)
        ),
        applies=Applicability(method_reads=True, readability=made_readability(word, level=0.9)),
        next_steps=[f"Keep {word} to yourself."],
        images=[_audited(image, word) for image in scores.per_image],
        owner=OwnersView(
            residuals=[
                LayerResidual(layer=f"{word}.weight", training=0.0214, held_out=0.7131, candidates=1.25),
                LayerResidual(layer=f"{word}.bias", training=0.5),
            ],
            training=12,
            stay=7,
            held_out=11,
            held_out_stay=3,
        ),
        membership=[_told_apart(f"loss of {word}")],
        defences=[
            DefenceRow(
                name=f"{word} decay",
                what=f"{word} 1e-2",
                recovered=2,
                images=12,
                null=1,
                held_out=11,
                held_out_accuracy=0.625,
            ),
            DefenceRow(name="dp", what="noise", images=12, held_out=12, held_out_accuracy=0.5, epsilon=3.21987),
            DefenceRow(name="shifts", what="moved", message=f"Not for {word}."),
        ],
        provenance=RAN,
    )
    write(folder / "audit.json", record)
    return record


def made_readability(word: str, *, level: float) -> Readability:
    return Readability(
        verdict="readable",
        level=level,
        images=12,
        held_out=11,
        stay=9,
        held_out_stay=4,
        p_value=1e-5,
        residual=0.2,
        held_out_residual=0.9,
        reachable=12,
        reason=f"Thus {word} can be read.",
    )


def _audited(image: ImageScore, word: str) -> AuditedImage:
    """Those that came out are found; of the others each fate is there."""
    k, others = image.index, [fate for fate in get_args(Fate) if fate != "found"]
    return AuditedImage(
        index=k,
        name=f"{word}-{k}.png",
        label=image.label,
        fate="found" if image.ncc >= float(HEADLINE) else others[k % 3],
        ncc=image.ncc,
        confidence=None if k == 1 else 1 - k / 100,
        share=(k * 7 % 12) / 1000,
        reachable=1 - k / 50,
        stays=k / 50,
    )


def _told_apart(signal: str) -> Membership:
    return Membership(
        signal=signal,
        members=12,
        others=11,
        auc=0.9123,
        auc_interval=Interval(low=0.8, high=0.95),
        true_positives=0.25,
        true_positives_interval=Interval(low=0.1, high=0.5),
        false_positives=0.0,
        smallest=1 / 11,
        p_value=0.001,
    )
