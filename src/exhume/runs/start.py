"""The stage that looks for the start of training in a run's checkpoint, and what the attack takes from it."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from exhume.attack.find_start import SearchOutcome, StartSearch, Sweep, find_start, read_candidates
from exhume.attack.methods import Exhume
from exhume.attack.target import make_target
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.progress import ProgressCallback, no_op
from exhume.records import provenance, read_tensors, write, write_tensors
from exhume.runs.schema import FoundStart, StartRecord, read_record
from exhume.runs.store import FILES

ALWAYS = ("generator-state", "likely-seeds")
"""The ways that every attack tries first: seconds."""
WHERE_NOISE_SHOWS = "all-seeds"
"""The way that it tries besides where the first layer shows an initialisation: minutes on a CPU."""
SAVE_EVERY = 20.0
"""Seconds between two savings of a sweep under way."""
SWEEP = "start-sweep.json"


def find_start_run(
    folder: Path,
    search: StartSearch | None = None,
    *,
    among: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> StartRecord:
    """Looks for the start of the folder's network and writes start.json; an interrupted sweep goes on where it was.

    Args:
        search: where to look; None: by all ways.
        among: a folder of networks, of which one may be the start.

    Raises:
        InputError: there is no checkpoint, or another search for the start was made here (unless `overwrite`).
    """
    checkpoint, place = load_checkpoint(folder), choose_device(device)
    search = replace(search or StartSearch(), device=place.type)
    networks = {} if among is None else read_candidates(among)
    path = folder / FILES["start"][0]
    if path.exists() and not overwrite:
        before = read_record(path, StartRecord)
        if before.checkpoint != checkpoint.fingerprint or (before.search, before.among) != (search, list(networks)):
            raise InputError(f"{folder} already holds another search for the start; add --overwrite.")
        return before
    start, saved = time.perf_counter(), time.monotonic()

    def keep(sweep: Sweep) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY:
            write(folder / SWEEP, sweep)
            saved = time.monotonic()

    outcome = find_start(
        _by_name(checkpoint),
        search,
        among=networks or None,
        resume=None if overwrite else _interrupted(folder),
        keep=keep,
        progress_callback=progress_callback,
    )
    seconds = time.perf_counter() - start
    record = StartRecord(
        checkpoint=checkpoint.fingerprint,
        search=search,
        among=list(networks),
        found=_found(outcome),
        tried=list(outcome.tried),
        evidence=list(outcome.evidence),
        sentence=outcome.sentence,
        provenance=provenance(device=place, seed=0, seconds=seconds),
    )
    if outcome.start is not None:
        write_tensors(folder / FILES["start"][1], outcome.start.initial)
    write(path, record)
    (folder / SWEEP).unlink(missing_ok=True)
    return record


def start_of(
    folder: Path, *, device: str = "auto", progress_callback: ProgressCallback = no_op
) -> tuple[Checkpoint, FoundStart] | None:
    """What the folder's training began with, as far as its weights show; None if they do not.

    What was looked for before is not looked for again. Parameters that did not match keep their trained values.
    """
    checkpoint, path = load_checkpoint(folder), folder / FILES["start"][0]
    record = read_record(path, StartRecord) if path.exists() else None
    if record is None or record.checkpoint != checkpoint.fingerprint:
        search = StartSearch(ways=ways_for(checkpoint))
        record = find_start_run(
            folder, search, device=device, overwrite=record is not None, progress_callback=progress_callback
        )
    if record.found is None:
        return None
    initial = read_tensors(folder / FILES["start"][1])
    weights = {name: initial.get(name, trained).to(trained) for name, trained in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights), record.found


def ways_for(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The ways that are worth their time for a network."""
    found = Exhume().analyse(make_target(checkpoint))
    noisy = found is not None and found.assumptions.regime == "default initialisation"
    return (*ALWAYS, WHERE_NOISE_SHOWS) if noisy else ALWAYS


def _by_name(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The weights by name, in the order in which the network was built."""
    return {name: parameter.detach() for name, parameter in checkpoint.build().layers.named_parameters()}


def _found(outcome: SearchOutcome) -> FoundStart | None:
    start = outcome.start
    if start is None:
        return None
    return FoundStart(
        way=start.way,
        seed=start.seed,
        place=start.place,
        candidate=start.candidate,
        log10_p=outcome.log10_p,
        unknown=list(start.unknown),
    )


def _interrupted(folder: Path) -> Sweep | None:
    """Where an interrupted sweep goes on; its digest says of which question it is."""
    try:
        return read_record(folder / SWEEP, Sweep) if (folder / SWEEP).exists() else None
    except InputError:  # damaged by a kill: the sweep begins anew
        return None
