"""The audit of many models with the same images: which there are, and the row of each."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from exhume.audit.counts import HEADLINE
from exhume.errors import InputError
from exhume.runs.audit_record import AuditRecord
from exhume.runs.schema import CandidatesRecord, ScoresRecord, read_record
from exhume.runs.tables import Row

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".pt2", ".ts")
"""How the names of model files end."""


def model_files(folder: Path, *, besides: Iterable[Path]) -> list[Path]:
    """The model files in a folder and beneath it, by name.

    Args:
        besides: files and folders that are not searched: the images, the results.

    Raises:
        InputError: there are none.
    """
    others = {path.resolve() for path in besides}
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    models = [path for path in found if others.isdisjoint([path.resolve(), *path.resolve().parents])]
    if not models:
        raise InputError(f"{folder} holds no model file ({', '.join(SUFFIXES)}).")
    return models


def folders_of(models: list[Path], folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Each model with the folder of its audit, by its path in the common folder; of one stem with its suffix."""
    stems = [model.relative_to(folder).with_suffix("") for model in models]
    for model, stem in zip(models, stems, strict=True):
        name = stem if stems.count(stem) == 1 else model.relative_to(folder)
        yield model, out / "-".join(name.parts)


def audit_row(folder: Path) -> Row:
    """The figures of a finished audit."""
    audit, scores = read_record(folder / "audit.json", AuditRecord), read_record(folder / "scores.json", ScoresRecord)
    found, checked = read_record(folder / "candidates.json", CandidatesRecord), scores.held_out > 0
    owner = audit.owner
    return {
        "verdict": audit.judgement.name,
        "strength": audit.judgement.strength if audit.judgement.verdict == "leaks" else None,
        "images": scores.images,
        "recovered": scores.recovered[HEADLINE],
        "held-out": scores.null[HEADLINE] if checked else None,
        "p": scores.p_value,
        "p of all": scores.p_rank,
        "median NCC": scores.median_ncc,
        "stays": owner.stay if owner else None,
        "held-out stays": owner.held_out_stay if owner and owner.held_out else None,
        "start": "found" if found.start else "given" if found.initial else "unknown",
        "reconstruct s": found.provenance.seconds,
        "status": found.status,
    }
