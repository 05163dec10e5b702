"""The stage that looks for the start of training in a run's checkpoint, and what the attack takes from it."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from exhume.attack.find_start import (
    SearchOutcome,
    StartSearch,
    Sweep,
    find_start,
    read_candidates,
    sweep_digest,
    trained_network,
)
from exhume.attack.methods import Exhume
from exhume.attack.target import make_target
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.layers import LayerGraph
from exhume.progress import ProgressCallback, no_op
from exhume.records import encode, encode_together, provenance, read_tensors, remove, replace_files, write
from exhume.runs.claim import alone
from exhume.runs.schema import FoundStart, StartRecord, read_record
from exhume.runs.store import FILES, saving

ALWAYS = ("generator-state", "likely-seeds")
"""The ways that every attack tries first: seconds."""
WHERE_NOISE_SHOWS = "all-seeds"
"""The way that it tries besides where the first layer shows an initialisation: minutes on a CPU."""
SAVE_EVERY = 20.0
"""Seconds between two savings of a sweep under way."""
SWEEP = "start-sweep.json"


@alone
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

    A start that was found before, by an attack for example, answers the default search.

    Args:
        search: where to look; None: by all ways.
        among: a folder of networks, of which one may be the start.

    Raises:
        InputError: there is no checkpoint, or another search for the start was made here (unless `overwrite`).
    """
    return _find_start_run(
        folder, search, among=among, device=device, overwrite=overwrite, progress_callback=progress_callback
    )


def _find_start_run(
    folder: Path,
    search: StartSearch | None = None,
    *,
    among: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> StartRecord:
    """The same in a folder that is claimed already."""
    checkpoint, place = load_checkpoint(folder), choose_device(device)
    search = replace(search or StartSearch(), device=place.type)
    networks = {} if among is None else read_candidates(among)
    path, weights = folder / FILES["start"][0], _by_name(checkpoint)
    resume = _interrupted(folder, sweep_digest(trained_network(weights), search))
    if path.exists() and not overwrite and resume is None:
        before = read_record(path, StartRecord)
        same = (_question(before.search), before.among) == (_question(search), list(networks))
        answered = before.found is not None and _question(search) == StartSearch() and not networks
        if before.checkpoint != checkpoint.fingerprint or not (same or answered):
            raise InputError(f"{folder} already holds another search for the start; add --overwrite.")
        return before
    start = time.perf_counter()
    with saving(partial(write, folder / SWEEP), SAVE_EVERY) as keep:
        outcome = find_start(
            weights, search, among=networks or None, resume=resume, keep=keep, progress_callback=progress_callback
        )
    seconds = time.perf_counter() - start
    record = StartRecord(
        checkpoint=checkpoint.fingerprint,
        search=search,
        among=list(networks),
        found=_found(outcome, search, len(networks)),
        tried=list(outcome.tried),
        evidence=list(outcome.evidence),
        sentence=outcome.sentence,
        provenance=provenance(device=place, seed=0, seconds=seconds),
    )
    if outcome.start is None:
        replace_files({path: encode(record)}, clear=partial(remove, folder / FILES["start"][1]))
    else:
        replace_files(encode_together(folder / "start", record, outcome.start.initial))
    remove(folder / SWEEP)
    return record


def start_of(
    folder: Path, *, device: str = "auto", progress_callback: ProgressCallback = no_op
) -> tuple[Checkpoint, FoundStart] | None:
    """What the folder's training began with, as far as its weights show; None if they do not, or not enough.

    None, too, of a network that was not trained: there is no change to attack.

    A start that was found before is taken; so is that none was found, if it was looked for by as many ways.
    """
    checkpoint, path = load_checkpoint(folder), folder / FILES["start"][0]
    record = read_record(path, StartRecord) if path.exists() else None
    search = StartSearch(ways=ways_for(checkpoint))
    told = record is not None and record.checkpoint == checkpoint.fingerprint
    if record is None or not told or (record.found is None and not _covers(record.search, search)):
        record = _find_start_run(
            folder, search, device=device, overwrite=record is not None, progress_callback=progress_callback
        )
    if record.found is None or not is_enough(checkpoint, record.found) or is_untrained(folder):
        return None
    return found_start(folder), record.found


def is_untrained(folder: Path) -> bool:
    """Whether the start that was found is the network itself, in all weights that are known of it."""
    path = folder / FILES["start"][1]
    initial, weights = read_tensors(path) if path.exists() else {}, load_checkpoint(folder).weights
    return bool(initial) and all(torch.equal(value.to(weights[name]), weights[name]) for name, value in initial.items())


def found_start(folder: Path) -> Checkpoint:
    """The folder's network with the initial weights that were found in it."""
    return completed(load_checkpoint(folder), read_tensors(folder / FILES["start"][1]))


def is_enough(checkpoint: Checkpoint, found: FoundStart) -> bool:
    """Whether a start can be attacked with: all weights but the last layer's must be known.

    A first layer that was initialised in another way would count as frozen, and the images would be lost.
    """
    *weights, _ = _matrices(checkpoint)
    return not set(weights) & set(found.unknown)


def completed(checkpoint: Checkpoint, initial: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint with its initial values.

    A bias that is not known, of a layer whose weight is, began at 0: no draw fits it. PyTorch begins with factors of 1
    and shifts of 0 after a normalisation. Other parameters that are not known keep their trained values, as if training
    had frozen them.
    """
    network = checkpoint.network
    graph = network.layers if isinstance(network, LayerGraph) else ()
    norms = {layer.name for layer in graph if layer.kind in ("batch-norm", "layer-norm")}
    weights = {}
    for name, trained in checkpoint.weights.items():
        layer, _, kind = name.rpartition(".")
        usual = trained
        if kind == "bias" and (layer in norms or f"{layer}.weight" in initial):
            usual = torch.zeros_like(trained)
        elif kind == "weight" and layer in norms:
            usual = torch.ones_like(trained)
        weights[name] = initial.get(name, usual).to(trained)
    return replace(checkpoint, weights=weights)


def with_weights(trained: Checkpoint, initial: Mapping[str, Tensor]) -> Checkpoint:
    """The trained network with initial weights in place of its own, where these have the name and the shape.

    Others keep their trained values, as if training had frozen them: those of a last layer that is new, for example.
    Where no name is the trained network's, layers are matched by their order, if all shapes but the last layer's fit.

    Raises:
        InputError: nothing fits.
    """
    named = {name: initial[name] for name in trained.weights if name in initial}
    fits = {name for name, value in named.items() if value.shape == trained.weights[name].shape}
    if not named:
        named = _by_order(trained, initial)
        fits = set(named)
    if not fits:
        raise InputError(
            "The initial weights are those of another network: neither names nor, layer by layer, shapes are the "
            "trained one's."
        )
    weights = {name: (named[name] if name in fits else value).to(value) for name, value in trained.weights.items()}
    return replace(trained, weights=weights)


def _by_order(trained: Checkpoint, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Initial values by the trained network's names, layer by layer; {} unless the shapes of all but the last fit."""
    found, learned = dict[str, Tensor](), _by_name(trained)
    place = {name.rpartition(".")[0]: number for number, name in enumerate(_matrices(trained))}
    of_layers = sorted(
        (name for name in learned if name.rpartition(".")[0] in place), key=lambda name: place[name.rpartition(".")[0]]
    )
    for many in (True, False):
        names = [name for name in of_layers if (learned[name].ndim > 1) == many]
        values = [value for value in initial.values() if (value.ndim > 1) == many]
        if len(names) != len(values):
            return {}
        fits = [learned[name].shape == value.shape for name, value in zip(names, values, strict=True)]
        if not all(fits[:-1]):
            return {}
        found |= {name: value for name, value, same in zip(names, values, fits, strict=True) if same}
    return found


def ways_for(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The ways that are worth their time for a network: a small convolution has too few weights to show its noise."""
    first = checkpoint.weights[_matrices(checkpoint)[0]]
    found = Exhume().analyse(make_target(checkpoint)) if first.ndim == 2 else None
    noisy = first.ndim > 2 or (found is not None and found.assumptions.regime == "default initialisation")
    return (*ALWAYS, WHERE_NOISE_SHOWS) if noisy else ALWAYS


def _question(search: StartSearch) -> StartSearch:
    """A search without what does not change its answer."""
    return replace(search, device="cpu", threads=None)


def _covers(done: StartSearch, wanted: StartSearch) -> bool:
    """Whether a search looked wherever another would."""
    alike = replace(done, ways=wanted.ways, seeds=wanted.seeds, places=wanted.places)
    more = set(wanted.ways) <= set(done.ways) and done.places >= wanted.places
    return more and _question(alike) == _question(wanted)


def _by_name(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The weights by name, in the order in which the network was built."""
    return checkpoint.parameters


def _matrices(checkpoint: Checkpoint) -> list[str]:
    """The names of the weights of layers, in the order of their work."""
    network, named = checkpoint.network, _by_name(checkpoint)
    matrices = [name for name, parameter in named.items() if parameter.ndim > 1]
    if isinstance(network, LayerGraph):
        place = {layer.name: number for number, layer in enumerate(network.layers)}
        matrices.sort(key=lambda name: place[name.rpartition(".")[0]])
    return matrices


def _found(outcome: SearchOutcome, search: StartSearch, networks: int) -> FoundStart | None:
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
        hints=_hints(search, networks),
    )


def _hints(search: StartSearch, networks: int) -> list[str]:
    """What a search was given besides the weights, in words."""
    whole = (StartSearch().first_seed, StartSearch().last_seed)
    given = (
        (networks > 0, f"{networks} networks to compare with"),
        (bool(search.seeds), f"{len(search.seeds)} seeds to try"),
        (search.offset > 0, "how much was drawn before the network"),
        ((search.first_seed, search.last_seed) != whole, "a range of seeds"),
    )
    return [words for holds, words in given if holds]


def _interrupted(folder: Path, digest: str) -> Sweep | None:
    """Where an interrupted sweep over the question of this digest goes on; None: it begins anew."""
    try:
        kept = read_record(folder / SWEEP, Sweep) if (folder / SWEEP).exists() else None
    except InputError:  # damaged
        return None
    return kept if kept is not None and kept.digest == digest else None
