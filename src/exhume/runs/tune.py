"""The search stage of a run: many reconstructions, and the best one's candidates become the run's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from exhume.attack.methods import name_of
from exhume.attack.search import Method
from exhume.audit.matching import match
from exhume.candidates import Candidates, Images
from exhume.checkpoint import load_checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.presets import RECONSTRUCTIONS
from exhume.progress import ProgressCallback, no_op
from exhume.records import Provenance, provenance, remove, replace_files, write
from exhume.runs.claim import alone
from exhume.runs.schema import SearchRecord
from exhume.runs.store import (
    FILES,
    candidates_files,
    candidates_record,
    from_search,
    load_truth,
    read_training,
    remove_after,
    remove_folder,
    same_candidates,
)
from exhume.tuning.journal import remembers
from exhume.tuning.search_spaces import SPACES, known_points
from exhume.tuning.study import RESIDUAL, Judge, SweepConfig, Trial, best, check_settings, question, sweep
from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Workers


@alone
def search_run(
    folder: Path,
    config: SweepConfig,
    method: Method,
    *,
    judge: Literal["residual", "truth"] = "residual",
    keep: int = 2,
    device: str = "auto",
    workers: Workers | None = None,
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> SearchRecord:
    """Searches for settings; goes on where the same search was interrupted, or where more trials are asked for.

    Args:
        method: the settings that are not searched.
        judge: "truth" chooses with the training images at hand, so that the result is an upper bound.
        keep: how many of the best trials' candidates are kept.
        workers: where trials are run; None: in processes of this machine. This process alone writes the folder.

    Raises:
        InputError: there is no checkpoint, or for "truth" no training record; the folder holds another search or
            candidates that are not of one (unless `overwrite`); as for `sweep`.
    """
    checkpoint, workers = load_checkpoint(folder), workers or Processes()
    workers.check(device)
    if keep < 1:
        raise InputError(f"keep must be at least 1, not {keep}.")
    check_settings(config, method)
    arbiter = RESIDUAL if judge == "residual" else truth_judge(folder)
    _claim(folder, question(checkpoint, config, method, arbiter), overwrite)
    presets = [
        preset.method
        for name, preset in RECONSTRUCTIONS.items()
        if name == name_of(preset.method) or f"-{checkpoint.task}-" in name
    ]
    rounds = sweep(
        checkpoint,
        config,
        method,
        journal=folder / "search.journal",
        first=known_points(SPACES[config.space], method, presets),
        judge=arbiter,
        device=device,
        workers=workers,
        progress_callback=progress_callback,
        keep=partial(_trial_files, checkpoint=checkpoint.fingerprint, device=device, chosen=arbiter.words),
        receive=partial(_keep_trial, folder / "trials"),
        most=keep,
    )
    record = None
    for trials in rounds:
        if record is None or len(trials) > len(record.trials):
            leading = [trial.number for trial in best(trials, arbiter, keep)]
            # at the start nothing runs, so what no trial of the journal has made was left by one that was killed
            _tidy(folder, leading, None if record is None else trials)
            record = SearchRecord(
                checkpoint=checkpoint.fingerprint,
                sweep=config,
                method=method,
                judge=judge,
                chosen=arbiter.words,
                trials=trials,
                best=leading[0] if leading else None,
                kept=[number for number in leading if (folder / "trials" / str(number)).exists()],
                provenance=_provenance(workers, device, method.seed, sum(t.seconds for t in trials)),
            )
            write(folder / "search.json", record)
    assert record is not None
    if record.best is not None:
        _take(folder, folder / "trials" / str(record.best))
        _tidy(folder, record.kept, record.trials)
    return record


def truth_judge(folder: Path) -> Judge:
    """Judges by the images that the folder's network was trained on.

    Raises:
        InputError: it was not trained here.
    """
    if not (folder / "training.json").exists():
        raise InputError(f"--judge truth needs the training images, and {folder} does not tell which they are.")
    images = load_truth(read_training(folder)).images
    words = "an upper bound: chosen with the truth"
    return Judge(name="truth", words=words, largest=True, value=partial(recovered, images))


def recovered(images: Images, candidates: Candidates) -> float:
    """How many training images came out (NCC >= 0.9, one-to-one), and behind the point their mean similarity."""
    alike = match(candidates, images).assigned_similarity
    return float((alike >= 0.9).sum() + alike.clamp(0, 0.999).mean())


def _claim(folder: Path, what: Mapping[str, Any], overwrite: bool) -> None:
    """Makes sure that a search may replace the folder's candidates; they stay until it has others.

    Of another search, whose memory is not of use to this one, only the record stays as long.
    """
    if overwrite:
        if not remembers(folder / "search.journal", what):
            remove(folder / "search.journal")
            remove_folder(folder / "trials")
        return
    if (folder / FILES["candidates"][0]).exists() and not from_search(folder):
        raise InputError(f"{folder} already holds candidates of no search; add --overwrite or use another folder.")


def _provenance(workers: Workers, device: str, seed: int, seconds: float) -> Provenance:
    """Where trials were run; on other machines only their own records name the device."""
    if workers.same_disk:
        return provenance(device=choose_device(device), seed=seed, seconds=seconds)
    here = provenance(device=torch.device("cpu"), seed=seed, seconds=seconds)
    return replace(here, device=f"{workers.name}, {device}")


def _trial_files(
    number: int,
    method: Method,
    candidates: Candidates,
    seconds: float,
    *,
    checkpoint: str,
    device: str,
    chosen: str,
) -> dict[str, bytes]:
    """The files of a trial by name, made where it was run."""
    place = choose_device(device)
    record = candidates_record(candidates, method, checkpoint=checkpoint, device=place, seconds=seconds, chosen=chosen)
    files = candidates_files(Path(str(number)), candidates, record)
    return {path.name: content for path, content in files.items()}


def _keep_trial(folder: Path, number: int, files: Mapping[str, bytes]) -> None:
    place = folder / str(number)
    replace_files(
        {place / name: content for name, content in files.items()}, clear=partial(remove_after, place, "candidates")
    )


def _tidy(folder: Path, leading: Sequence[int], ended: Sequence[Trial] | None) -> None:
    """Removes the candidates of trials that have ended, or of all (None), but for the leading ones and the run's own.

    By its own the run is known for one of a search, until it is given others.
    """
    kept = {str(number) for number in leading}
    gone = None if ended is None else {str(trial.number) for trial in ended}
    for path in (folder / "trials").glob("*/"):
        if path.name not in kept and (gone is None or path.name in gone) and not same_candidates(folder, path):
            remove_folder(path)


def _take(folder: Path, trial: Path) -> None:
    """Makes a trial's candidates the run's, unless they are already."""
    if not same_candidates(folder, trial):
        # the record last: without it there are no candidates
        files = {folder / name: (trial / name).read_bytes() for name in ("candidates.safetensors", "candidates.json")}
        replace_files(files, clear=partial(remove_after, folder, "candidates"))
