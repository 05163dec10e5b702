"""The zoo: trained networks that come with the repository, one run folder each, with two reconstructions.

zoo/NAME/           checkpoint (float16), training.json, candidates (in bytes)
zoo/NAME/second/    the candidates of a second reconstruction, from another seed

`benchmarks/zoo.py` makes the entries. All that is known of an entry is read from its records.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.attack.search import Method
from exhume.candidates import Candidates
from exhume.checkpoint import load_checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError, known
from exhume.progress import ProgressCallback, no_op
from exhume.records import read_tensors
from exhume.runs.schema import CandidatesRecord, TrainingRecord
from exhume.runs.store import FILES, candidates_record, read_training, save_candidates

SECOND = "second"
"""Folder of an entry's second reconstruction, beneath the entry's own."""
SEEDS = {".": 0, SECOND: 1}
"""Seeds of the two reconstructions, by their folders beneath the entry's."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network of the zoo.

    layers: number of inputs, channels of each convolution (with a c), neurons of each layer, number of outputs;
    candidates: how many each reconstruction gave; size: bytes of what is shipped.
    """

    name: str
    training: TrainingRecord
    layers: tuple[str, ...]
    candidates: tuple[int, ...]
    size: int


def list_zoo(folder: Path = Path("zoo"), names: Sequence[str] = ()) -> list[Entry]:
    """The entries of a zoo, by name.

        for entry in exhume.list_zoo(Path("zoo")):
            print(entry.name, entry.layers)

    Args:
        names: only these; none: all.

    Raises:
        InputError: as for `zoo_names`, or an entry is damaged.
    """
    return [_entry(folder / name) for name in zoo_names(folder, names)]


def zoo_names(folder: Path = Path("zoo"), names: Sequence[str] = ()) -> list[str]:
    """The names of a zoo's entries, or of those asked for once they are known to be there.

    Raises:
        InputError: there is no such folder, nothing in it, or no entry of such a name.
    """
    there = sorted(path.parent.name for path in folder.glob("*/training.json"))
    if not there:
        raise InputError(f"{folder} holds no trained networks; they come with the repository, in its folder zoo.")
    return [known(name, dict.fromkeys(there), "network of the zoo") for name in names or there]


def reconstruct_entry(
    entry: Path,
    method: Method | None = None,
    *,
    device: str = "auto",
    progress_callback: ProgressCallback = no_op,
) -> list[CandidatesRecord]:
    """Reconstructs twice from an entry's checkpoint, and stores the candidates small, in place of those before.

    Nothing is replaced before both reconstructions are done.

    Args:
        entry: its folder.
        method: None: `Exhume()`; the seeds are those of SEEDS.

    Raises:
        InputError: there is no checkpoint in the folder.
    """
    checkpoint, place = load_checkpoint(entry), choose_device(device)
    made: list[tuple[Path, Candidates, CandidatesRecord]] = []
    for below, seed in SEEDS.items():
        seeded, start = replace(method or Exhume(), seed=seed), time.perf_counter()
        found = reconstruct(checkpoint, seeded, device=place, progress_callback=progress_callback)
        seconds = time.perf_counter() - start
        record = candidates_record(found, seeded, checkpoint=checkpoint.fingerprint, device=place, seconds=seconds)
        made.append((entry / below, found, record))
    for folder, found, record in made:
        save_candidates(folder, found, record, small=True)
    return [record for _, _, record in made]


def _entry(folder: Path) -> Entry:
    checkpoint, training = load_checkpoint(folder), read_training(folder)
    network = training.network
    channels, height, width = checkpoint.shape
    convolutions = (f"{count}c" for count in network.channels)
    found = [folder / below / "candidates.safetensors" for below in SEEDS]
    shipped = [folder / below / name for below in SEEDS for name in (*FILES["training"], *FILES["candidates"])]
    return Entry(
        name=folder.name,
        training=training,
        layers=(str(channels * height * width), *convolutions, *map(str, network.widths), str(checkpoint.outputs)),
        candidates=tuple(len(read_tensors(path)["images"]) for path in found if path.exists()),
        size=sum(path.stat().st_size for path in shipped if path.exists()),
    )
