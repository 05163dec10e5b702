"""Damaged and hostile files: whatever is in them, a reader gives a result or an `InputError`, and a stage does too.

EXHUME_FUZZ_SECONDS says for how long in all (default: a few seconds). A mutation follows from its seed; what was found
to go wrong is a row of SEEDS, and is tried first. A changed byte of a file with a digest must always be an error.
"""

import gzip
import io
import json
import os
import shutil
import tarfile
import time
import warnings
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import by_hand
from exhume.attack.find_start.attempt import Sweep
from exhume.attack.methods import Exhume
from exhume.checkpoint import load_checkpoint
from exhume.commands.normalising import load_centre, load_numbers
from exhume.commands.papers_arguments import read_arguments
from exhume.defence.training import TrainingConfig
from exhume.errors import InputError
from exhume.foreign import read_network
from exhume.networks import NetworkConfig
from exhume.problems import Selection, load_problem, locate
from exhume.problems.archives import ARCHIVES
from exhume.problems.formats import MNIST_FILES, read_mnist, read_npz
from exhume.problems.owned import load_images
from exhume.records import read_tensors, write
from exhume.report import draw
from exhume.runs.audit import Source, audit_run
from exhume.runs.audit_record import AuditRecord
from exhume.runs.pipeline import reconstruct_run, score_run, train_run
from exhume.runs.schema import CandidatesRecord, ScoresRecord, SearchRecord, StartRecord, TrainingRecord, read_record
from exhume.runs.store import (
    interrupted_reconstruction,
    interrupted_training,
    load_candidates,
    load_reconstruction,
    load_state,
)
from exhume.runs.tune import search_run
from exhume.tuning.journal import alone, claim
from exhume.tuning.study import RESIDUAL, SweepConfig, question
from test_problems import python2_pickle

SECONDS = float(os.environ.get("EXHUME_FUZZ_SECONDS", "6"))
METHOD = Exhume(steps=8, per_class=3, restarts=1)
Read = Callable[[Path], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that is read: a run with all its stages, the states of interrupted ones, and data."""
    folder, random = tmp_path_factory.mktemp("base"), np.random.default_rng(0)
    images, labels = random.integers(0, 256, (16, 5, 5), dtype=np.uint8), np.arange(8) % 2
    np.savez(folder / "data.npz", images=images[:8], labels=labels, held_out=images[8:], held_out_labels=labels)
    np.save(folder / "mean.npy", np.full((1, 5, 5), 0.5, np.float32))
    for kind in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        Image.fromarray(np.kron(images[0], np.ones((4, 4), np.uint8))).save(folder / f"image.{kind}")
    run, origin = folder / "run", locate(str(folder / "data.npz"), Selection())
    problem, network = load_problem(*origin), NetworkConfig(widths=(12,))
    epochs = TrainingConfig(epochs=4, lr=0.1, evaluate_every=1)

    def stop(event: Any) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(run, problem, origin, network, epochs, device="cpu", progress_callback=stop)
    shutil.copy(run / "training-state.safetensors", folder)
    train_run(run, problem, origin, network, epochs, device="cpu")
    search_run(run, SweepConfig(trials=2), METHOD, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        reconstruct_run(run, METHOD, device="cpu", find_start=True, overwrite=True, progress_callback=stop)
    shutil.copy(run / "reconstruction-state.safetensors", folder)
    reconstruct_run(run, METHOD, device="cpu", find_start=True, overwrite=True)
    score_run(run)
    write(run / "start-sweep.json", Sweep(digest="0", done=3, survivors=((1, 2.0),)))
    models(folder)
    archives(folder)
    source = Source(images=origin[0], selection=origin[1])
    mine, network = load_images(str(folder / "data.npz")), read_network(folder / "model.npz", shape=(1, 5, 5))
    audit_run(folder / "audit", network, mine, source, method=METHOD, find_start=False, device="cpu")
    return folder


def models(folder: Path) -> None:
    """A network in every kind of file that holds one, by other programs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.ReLU(), nn.Linear(6, 1))
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.rand(4, 1, 5, 5)).square().sum().backward()
    optimiser.step()
    state = network.state_dict()
    torch.save({"model": state, "optimizer": optimiser.state_dict(), "epoch": 3}, folder / "model.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "model.safetensors")
    np.savez(folder / "model.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(folder / "script.pt"))
        torch.export.save(torch.export.export(network.eval(), (torch.rand(2, 1, 5, 5),)), folder / "program.pt2")


def archives(folder: Path) -> None:
    """MNIST and CIFAR-10 as they are published, with a few images of noise; and a command of the papers' code."""
    random, digits, photographs = np.random.default_rng(1), folder / "digits", folder / "cifar-10-batches-py"
    digits.mkdir()
    for name in MNIST_FILES:
        array = random.integers(0, 10, (10, 28, 28) if "images" in name else (10,), dtype=np.uint8)
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        (digits / f"{name}.gz").write_bytes(gzip.compress(content))
    photographs.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        images = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        (photographs / name).write_bytes(python2_pickle(images, [0, 1, 2, 3], b"labels"))
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(photographs, photographs.name)
    (folder / "papers.args").write_text(
        "python Main.py --run_mode=train --problem=cifar10_vehicles_animals --data_per_class_train=10 "
        "--model_hidden_list='[1000,1000]' --train_epochs=1000 --train_lr=0.01"
    )


def a_journal(path: Path) -> None:
    what = question(load_checkpoint(path.parent), SweepConfig(trials=2), METHOD, RESIDUAL)
    with alone(path):
        claim(path, what, [], largest=False)


def an_image(path: Path) -> None:
    from exhume.problems.image_folder import _open  # noqa: PLC0415

    _open(path)


def a_state_of_training(path: Path) -> None:
    interrupted_training(path.parent)
    load_state(path)


def a_state_of_reconstruction(path: Path) -> None:
    interrupted_reconstruction(path.parent)
    load_reconstruction(path.parent)


def a_record(kind: type) -> Read:
    return lambda path: read_record(path, kind)


def each(*reads: Read) -> Read:
    """All readers of a kind of file; it is refused if one of them refuses it."""

    def read(path: Path) -> None:
        refused = None
        for one in reads:
            try:
                one(path)
            except InputError as error:
                refused = error
        if refused is not None:
            raise refused

    return read


def a_network(path: Path) -> None:
    read_network(path, shape=(1, 5, 5))


def a_cifar(path: Path) -> None:
    reader = ARCHIVES["cifar10"].readers["cifar-10-batches-py"]
    reader(path if path.suffix == ".gz" else path.parent)


SEALED: dict[str, Read] = {
    "run/training.json": a_record(TrainingRecord),
    "run/candidates.json": a_record(CandidatesRecord),
    "run/scores.json": a_record(ScoresRecord),
    "run/search.json": a_record(SearchRecord),
    "run/start.json": a_record(StartRecord),
    "run/start-sweep.json": a_record(Sweep),
    "run/checkpoint.json": lambda path: load_checkpoint(path.parent),
    "run/checkpoint.safetensors": lambda path: load_checkpoint(path.parent),
    "run/candidates.safetensors": lambda path: load_candidates(path.parent),
    "run/scores.safetensors": lambda path: read_record(path.with_suffix(".json"), ScoresRecord),
    "training-state.safetensors": a_state_of_training,
    "reconstruction-state.safetensors": a_state_of_reconstruction,
    "audit/audit.json": a_record(AuditRecord),
}
"""Files with a digest: any change of their bytes is an error."""
OPEN: dict[str, Read] = {
    "data.npz": each(read_npz, lambda path: load_images(str(path))),
    "mean.npy": each(lambda path: load_centre(path, (1, 5, 5)), lambda path: load_numbers([str(path)])),
    "run/search.journal": a_journal,
    **{f"image.{kind}": an_image for kind in ("png", "jpg", "gif", "bmp", "tiff", "webp")},
    **dict.fromkeys(("model.pt", "old.pth", "model.safetensors", "model.npz", "script.pt", "program.pt2"), a_network),
    **{f"digits/{name}.gz": lambda path: read_mnist(path.parent / f"{MNIST_FILES[0]}.gz") for name in MNIST_FILES[:2]},
    **dict.fromkeys(("cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz"), a_cifar),
    "papers.args": lambda path: read_arguments(path.read_text(errors="replace")),
}
"""Files of others, and Optuna's."""
STAGES: dict[str, Read] = {
    "run/training.json": lambda path: score_run(path.parent),
    "run/candidates.json": lambda path: score_run(path.parent),
    "run/checkpoint.json": lambda path: reconstruct_run(path.parent, METHOD, device="cpu", overwrite=True),
    "run/start.json": lambda path: reconstruct_run(path.parent, METHOD, device="cpu", find_start=True, overwrite=True),
    "run/search.json": lambda path: search_run(path.parent, SweepConfig(trials=2), METHOD, device="cpu"),
    "run/scores.json": lambda path: draw(path.parent),
    "audit/audit.json": lambda path: draw(path.parent),
    "audit/candidates.json": lambda path: draw(path.parent),
}
"""Records whose digest is taken away, by the stage that reads them."""
SEEDS: dict[str, tuple[int, ...]] = {
    "mean.npy": (2, 20),
    "run/scores.json": (1795747128, 1795762665, 1795763757),
    "run/search.journal": (1795714405,),
    "run/training.json": (1795764324,),
    "script.pt": (8, 81, 212, 256, 490, 540, 572, 710),
    "program.pt2": (249, 316),
    "model.npz": (1795716899,),
    "papers.args": (2576,),
}
"""Mutations that have once gone wrong."""


def mutated(content: bytes, seed: int) -> bytes:
    """The content with some bytes flipped, cut, doubled, or put in from elsewhere."""
    random, changed = np.random.default_rng(seed), bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(0, max(len(changed), 1)))
        length = int(random.integers(1, 20))
        match random.integers(0, 6):
            case 0 | 1 if changed:
                changed[place] ^= 1 << int(random.integers(0, 8))
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = random.bytes(length)
            case 4:
                changed[place:place] = changed[place : place + length]
            case _:
                changed = changed[:place] if random.random() < 0.3 else changed + random.bytes(1)
    return bytes(changed)


ODD = (None, True, -1, 0, 3, 2**70, 1e308, 0.5, "", "text", "\ud800", [], [None], {}, {"a": 1})


def restructured(content: Any, seed: int) -> Any:
    """A record's content with one value, somewhere in it, lost or put in place of another."""
    random = np.random.default_rng(seed)
    places = list(walk(content))
    holder, key = places[int(random.integers(0, len(places)))]
    if random.random() < 0.2:
        del holder[key]
    else:
        holder[key] = ODD[int(random.integers(0, len(ODD)))]
    return content


def walk(content: Any) -> Any:
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from walk(content[key])


def tried(name: str, attempt: Callable[[int], None], *, least: int) -> int:
    """Attempts the kept seeds, and then others until the target's share of the time is over; gives their number."""
    begun, seeds = time.monotonic(), [*SEEDS.get(name, ()), *range(least)]
    for number, seed in enumerate(chain(seeds, count(int(time.time())))):
        if number >= len(seeds) and time.monotonic() > begun + SECONDS / TARGETS:
            return number
        attempt(seed)
    raise AssertionError("seeds have no end")


TARGETS = len(SEALED) + len(OPEN) + len(STAGES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*SEALED, *OPEN])
def test_changed_bytes_are_an_error_or_are_read(
    name: str, base: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "here"))
    path, read = folder / name, (SEALED | OPEN)[name]
    content = path.read_bytes()
    read(path)

    def attempt(seed: int) -> None:
        changed = mutated(content, seed)
        path.write_bytes(changed)
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error) or name in SEALED, f"seed {seed} of {name}: {error}"
            return
        except Exception as error:
            raise AssertionError(f"seed {seed} of {name}") from error
        assert name in OPEN or changed == content, f"seed {seed} of {name} was not noticed"

    record_property("rounds", tried(name, attempt, least=10))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STAGES)
def test_a_changed_structure_is_an_error_or_is_used(
    name: str, base: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "here"

    def attempt(seed: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        path = folder / name
        path.write_text(json.dumps(restructured(by_hand.plain(path), seed)))
        try:
            STAGES[name](path)
        except InputError:
            return
        except Exception as error:
            raise AssertionError(f"seed {seed} of {name}") from error

    record_property("rounds", tried(name, attempt, least=2))


def test_tensors_of_any_bytes_are_an_error_or_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    for content in (buffer.getvalue(), b"\x08" + bytes(15), bytes(8), b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "a.safetensors").write_bytes(content)
        try:
            assert read_tensors(tmp_path / "a.safetensors") == {}
        except InputError:
            continue
