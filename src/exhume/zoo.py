"""The zoo: trained networks that come with the repository, one run folder each, with two reconstructions.

zoo/NAME/           checkpoint (float16), training.json, candidates (in bytes)
zoo/NAME/second/    the candidates of a second reconstruction, from another seed

`benchmarks/zoo.py` makes them. All that is known of an entry is read from its records.
"""

from dataclasses import dataclass
from pathlib import Path

from exhume.checkpoint import load_checkpoint
from exhume.errors import InputError
from exhume.records import read_tensors
from exhume.runs import FILES, TrainingRecord, read_training

SECOND = "second"
"""Folder of an entry's second reconstruction, beneath the entry's own."""


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


def list_zoo(folder: Path = Path("zoo")) -> list[Entry]:
    """The entries of a zoo, by name.

    Raises:
        InputError: there is no such folder or nothing in it, or an entry is damaged.
    """
    names = sorted(path.parent.name for path in folder.glob("*/training.json"))
    if not names:
        raise InputError(f"{folder} holds no trained networks; they come with the repository, in its folder zoo.")
    return [_entry(folder / name) for name in names]


def _entry(folder: Path) -> Entry:
    checkpoint, training = load_checkpoint(folder), read_training(folder)
    network = training.network
    channels, height, width = checkpoint.shape
    convolutions = (f"{count}c" for count in network.channels)
    found = [path / "candidates.safetensors" for path in (folder, folder / SECOND)]
    shipped = [path / name for path in (folder, folder / SECOND) for name in (*FILES["training"], *FILES["candidates"])]
    return Entry(
        name=folder.name,
        training=training,
        layers=(str(channels * height * width), *convolutions, *map(str, network.widths), str(checkpoint.outputs)),
        candidates=tuple(len(read_tensors(path)["images"]) for path in found if path.exists()),
        size=sum(path.stat().st_size for path in shipped if path.exists()),
    )
