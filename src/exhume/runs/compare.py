"""Runs side by side: the same figures of each, from its records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from exhume.attack.methods import name_of
from exhume.audit.counts import HEADLINE
from exhume.audit.verdict import judge
from exhume.errors import InputError
from exhume.runs.applicability import read_applicability
from exhume.runs.audit_record import AuditRecord
from exhume.runs.schema import CandidatesRecord, ScoresRecord, TrainingRecord, read_record
from exhume.runs.tables import Row

T = TypeVar("T")


def compare_runs(folders: Sequence[Path]) -> list[Row]:
    """A row for each run; None where a stage was not done.

    Raises:
        InputError: a folder holds neither a training nor candidates, is given twice, or a record is damaged.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("The runs must differ from each other.")
    return [_row(folder) for folder in folders]


def _row(folder: Path) -> Row:
    found = _if_there(folder / "candidates.json", CandidatesRecord)
    training = _if_there(folder / "training.json", TrainingRecord)
    if found is None and training is None:
        raise InputError(f"{folder} is no run: it has neither training.json nor candidates.json.")
    scores = _if_there(folder / "scores.json", ScoresRecord)
    audit = _if_there(folder / "audit.json", AuditRecord)
    row: dict[str, str | float | None] = {
        "run": str(folder),
        "problem": training.problem.name if training else scores.truth.name if scores else None,
        "widths": " ".join(map(str, training.network.widths)) if training else None,
        "final loss": training.history[-1].loss if training else None,
        "seed": training.training.seed if training else None,
        "method": name_of(found.method) if found else None,
        "steps": found.method.steps if found else None,
        "search seed": found.method.seed if found else None,
        "start": _start(found) if found else None,
        "chosen": found.chosen if found else None,
        "verdict": _verdict(found, scores, audit),
    }
    row |= _counted(scores) if scores else {}
    return row | {
        "train s": training.provenance.seconds if training else None,
        "reconstruct s": found.provenance.seconds if found else None,
        "device": found.provenance.device if found else None,
        "status": found.status if found else "not reconstructed",
    }


def _verdict(found: CandidatesRecord | None, scores: ScoresRecord | None, audit: AuditRecord | None) -> str | None:
    """The audit's, or what `exhume score` says; None where nothing was scored."""
    if audit is not None:
        return audit.judgement.name
    return judge(scores, read_applicability(found)).name if found and scores else None


def _counted(scores: ScoresRecord) -> Row:
    """The counts; null: the same for held-out images, None without any."""
    checked = scores.held_out > 0
    return {
        "images": scores.images,
        "recovered": scores.recovered[HEADLINE],
        "null": scores.null[HEADLINE] if checked else None,
        "recovered at 0.7": scores.recovered["0.7"],
        "null at 0.7": scores.null["0.7"] if checked else None,
        "SSIM > 0.4": scores.ssim.good,
        "null SSIM > 0.4": scores.ssim.null_good if checked else None,
        "median NCC": scores.median_ncc,
    }


def _start(found: CandidatesRecord) -> str:
    """What the attacker knew of the weights before training."""
    if found.start is not None:
        return "found"
    return "given" if found.initial is not None else "unknown"


def _if_there(path: Path, kind: type[T]) -> T | None:
    return read_record(path, kind) if path.exists() else None
