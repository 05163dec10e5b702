"""What users and strangers give that cannot be used, and the sentence that each gets.

A case is made in a folder that holds `run`, a finished run, `data.npz`, what it was trained on, `images`, the same as
files, and `mean.npy`. It changes what it must, and gives the command and a part of the sentence.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import by_hand


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that must end with a sentence; make: changes the folder that it is run in."""

    name: str
    make: Callable[[], object]
    command: str
    sentence: str


def nothing() -> None:
    """Nothing is changed: the flags are what cannot be used."""


# ---- Flags

TRAIN = "train data.npz new"
RECONSTRUCT = "reconstruct run --overwrite --no-find-start"
SEARCH = "search run --overwrite"
FIND = "find-start run --overwrite"
FLAGS = {
    TRAIN: {
        "--lr 0": "lr must be positive",
        "--lr -1": "lr must be positive",
        "--lr nan": "lr must be positive",
        "--lr inf": "lr must be positive",
        "--lr fast": "Error parsing --lr",
        "--epochs -1": "epochs must not be negative",
        "--epochs 1.5": "invalid",
        "--momentum 1": "momentum must be in [0, 1)",
        "--momentum nan": "momentum must be in [0, 1)",
        "--weight-decay -1": "weight_decay must not be negative",
        "--weight-decay inf": "weight_decay must not be negative",
        "--lr-over-loss -1": "lr_over_loss must not be negative",
        "--lr-over-loss 1e-3 --weight-decay 1": "lr_over_loss is for bce and ce without weight decay",
        "--stop-loss nan": "must be finite",
        "--stop-gradient inf": "must be finite",
        "--batch-size 0": "batch_size must be at least 1",
        "--evaluate-every 0": "evaluate_every must be at least 1",
        "--patience 0": "patience must be at least 1",
        "--seed -1": "seed must be at least 0",
        "--seed 9223372036854775808": "seed must be at least 0",
        "--loss l0": "Unknown loss 'l0'",
        "--loss ce": "ce",
        "--optimiser muon": "invalid choice",
        "--optimiser adam --momentum 0.5": "momentum and lr_over_loss are for sgd",
        "--dtype float16": "invalid choice",
        "--widths 0": "Widths and channels must be at least 1",
        "--widths -3": "Widths and channels must be at least 1",
        "--widths 1000000000000 1000000000000": "would need at least",
        "--widths 1000000000": "would need at least",
        "--kind transformer": "Unknown network",
        "--kind cnn": "A cnn needs channels",
        "--channels 3": "A cnn needs channels",
        "--kind cnn --channels 0": "Widths and channels must be at least 1",
        "--activation swish": "Unknown activation",
        "--bias some": "invalid choice",
        "--init-scale 0": "init_scale must be positive",
        "--init-scale nan": "init_scale must be positive",
        "--init-layers last": "invalid choice",
        "--per-class 0": "per_class must be at least 1",
        "--per-class 9": "fewer than the 9",
        "--classes 1": "classes must be at least 2",
        "--classes 2": "cannot be chosen",
        "--threads 0": "threads must be at least 1",
        "--device tpu": "invalid choice",
        "--preset nothing": "There is no training preset",
        "--initial nowhere": "There is no nowhere",
        "--track pencil": "There is no tracker 'pencil'",
        "--learning-rate 1": "Unrecognized options",
    },
    "train": {
        "": "required",
        "nothing new": "There is no problem 'nothing'",
        "data.npz": "Say `exhume train PROBLEM RUN`",
        "missing.py new": "There is no problem file",
        "missing.npz new": "There is no",
        "mnist-digits --preset demo": "is a problem, and the folder of the run is missing",
        "data.npz data.npz": "is a file, but a run is a folder",
        "data.npz data.npz/run": "cannot be written",
        "data.npz run": "already holds another training",
        "image-folder new": "needs a folder",
        "image-folder new --data-dir nowhere": "nowhere to read the data from",
        "npz new": "The problem npz needs a file",
        "npz new --data-dir images": "is no file",
        f"data.npz {'x' * 300}": "too long",
        f"{'x' * 5000} new": "File name too long",
    },
    RECONSTRUCT: {
        "--steps 0": "steps must be at least 1",
        "--restarts 0": "restarts must be at least 1",
        "--images 0": "images must be at least 1",
        "--images 1000000000000": "would need at least",
        "--per-class 0": "per_class must be at least 1",
        "--per-class 1000000000000": "would need at least",
        "--lr-images 0": "lr_images must be positive",
        "--lr-images nan": "lr_images must be positive",
        "--lr-multipliers -1": "lr_multipliers must be positive",
        "--init-scale inf": "init_scale must be positive",
        "--min-multiplier nan": "min_multiplier must be a finite number",
        "--sharpness 0": "sharpness must be positive",
        "--smoothness -1": "smoothness must not be negative",
        "--binary-prior inf": "binary_prior must not be negative",
        "--objective best": "best",
        "--objective regression": "for the task regression",
        "--dtype int8": "invalid choice",
        "--seed -1": "seed must be at least 0",
        "--method magic": "There is no method 'magic'",
        "--preset magic": "There is no reconstruction preset",
        "--method reference --preset exhume": "is for the method exhume",
        "--method reference --smoothness 1": "Unrecognized options",
        "--checkpoint model.pt": "are needed together",
        "--shape 1 5 5": "are needed together",
        "--checkpoint model.pt --shape 1 5 --task binary": "shape",
        "--checkpoint model.pt --shape 1 5 5 --task ranking": "invalid choice",
        "--checkpoint missing.pt --shape 1 5 5 --task binary": "There is no missing.pt",
        "--initial missing.pt": "missing.pt",
        "--threads -1": "threads must be at least 1",
        "--track pencil": "There is no tracker 'pencil'",
    },
    "reconstruct": {
        "": "required",
        "nowhere": "There is no",
        "data.npz": "data.npz",
        "run --steps 7": "of other settings",
    },
    SEARCH: {
        "--trials 0": "trials must be at least 1",
        "--workers 0": "workers must be at least 1",
        "--keep 0": "keep must be at least 1",
        "--space everything": "Unknown space",
        "--sampler sobol": "invalid choice",
        "--judge me": "invalid choice",
        "--lr-images 0.1": "is searched in the space exhume",
        "--restarts 2": "restarts must be 1",
        "--steps 0": "steps must be at least 1",
        "--track pencil": "There is no tracker 'pencil'",
        "--threads 0": "threads must be at least 1",
    },
    "search": {"": "required", "nowhere": "There is no", "run": "already holds candidates of no search"},
    FIND: {
        "--ways magic": "magic",
        "--first-seed -1": "seed",
        "--last-seed -1": "seed",
        "--first-seed 9 --last-seed 3": "seed",
        "--places 0": "places",
        "--among nowhere": "nowhere",
        "--out x.safetensors": "--out is for a file of weights",
    },
    "find-start": {"": "required", "nowhere": "nowhere", "data.npz": "There is no layer of weights"},
    "score": {
        "": "required",
        "nowhere": "There is no",
        "data.npz": "There is no",
        "run --with nowhere": "There is no",
        "run --with run": "must differ from each other",
        "run --problem data.npz": "was trained on a problem of its own",
        "run --per-class 3": "go with --problem, which is missing",
        "run --data-dir nowhere": "nowhere to read the data from",
    },
    "report": {"": "required", "nowhere": "nothing to report", "data.npz": "is a file"},
    "import-args": {"": "required", "nowhere": "cannot be read", "run": "cannot be read", "data.npz": "cannot be read"},
    "zoo": {"--folder nowhere": "holds no trained networks"},
    "": {"trian": "did you mean train?", "x": "There is no command 'x'"},
}


def of_flags() -> Iterator[Case]:
    for command, rows in FLAGS.items():
        for flags, sentence in rows.items():
            words = f"{command} {flags}".strip()
            yield Case(name=words[:80], make=nothing, command=words, sentence=sentence)


# ---- Records

READERS = {
    "training.json": "score run",
    "checkpoint.json": "reconstruct run --steps 2 --no-find-start --overwrite",
    "candidates.json": "score run",
    "scores.json": "report run",
    "start.json": "reconstruct run --steps 2 --overwrite",
}
BAD_TEXT = {
    "empty": b"",
    "half": None,
    "a word": b"nonsense",
    "HTML": b"<!DOCTYPE html><html></html>",
    "a list": b"[]",
    "a number": b"3",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
}


def damaged(path: Path, content: bytes | None) -> Callable[[], object]:
    return lambda: path.write_bytes(path.read_bytes()[:200] if content is None else content)


def flipped(path: Path, place: float) -> Callable[[], object]:
    def flip() -> None:
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)

    return flip


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
    return lambda: by_hand.change(path, edit)


def in_place_of(path: Path, put: Callable[[Path], object]) -> Callable[[], object]:
    def replace() -> None:
        path.unlink()
        put(path)

    return replace


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown key": (lambda c: c.update(more=1), "extra fields found (more)"),
    "no provenance": (lambda c: c.pop("provenance", c.pop("network", None)), "required field missing"),
    "another format": (lambda c: c.update(format=99), "has none of the formats"),
    "no format": (lambda c: c.pop("format"), "has none of the formats"),
    "another digest": (lambda c: c.update(sha256="0" * 64), "not what its digest says"),
    "a digest that is none": (lambda c: c.update(sha256=[3]), "not what its digest says"),
    "files without a digest": (lambda c: c.update(tensors={"x": "y"}), "not what its digest says"),
}


def of_records() -> Iterator[Case]:
    for name, command in READERS.items():
        path = Path("run", name)
        for what, content in BAD_TEXT.items():
            yield Case(name=f"{name}: {what}", make=damaged(path, content), command=command, sentence=f"{name} ")
        for place in (0.02, 0.3, 0.6, 0.95):
            yield Case(name=f"{name}: a bit at {place}", make=flipped(path, place), command=command, sentence=name)
        for what, (edit, sentence) in EDITS.items():
            yield Case(name=f"{name}: {what}", make=edited(path, edit), command=command, sentence=sentence)
        puts: dict[str, Callable[[Path], object]] = {"a folder": Path.mkdir, "a pipe": os.mkfifo}
        for what, put in puts.items():
            yield Case(name=f"{name}: {what}", make=in_place_of(path, put), command=command, sentence=name)


# ---- Tensors

BAD_TENSORS = {
    "empty": b"",
    "half": None,
    "a word": b"nonsense",
    "a header of 4 EB": struct.pack("<Q", 2**62) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a tensor of 40 TB": b"",
}


def of_tensors() -> Iterator[Case]:
    header = json.dumps({"images": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4 * 10**13]}}).encode()
    contents = BAD_TENSORS | {"a tensor of 40 TB": struct.pack("<Q", len(header)) + header}
    for name in ("checkpoint", "candidates", "scores", "start"):
        path, command = Path("run", f"{name}.safetensors"), READERS[f"{name}.json"]
        for what, content in contents.items():
            yield Case(name=f"{path.name}: {what}", make=damaged(path, content), command=command, sentence=path.name)
        for place in (0.01, 0.2, 0.5, 0.99):
            yield Case(
                name=f"{path.name}: a bit at {place}", make=flipped(path, place), command=command, sentence=path.name
            )
        yield Case(
            name=f"{path.name}: gone", make=path.unlink, command=command, sentence=f"There is no run/{path.name}"
        )
        pipe = in_place_of(path, os.mkfifo)
        yield Case(name=f"{path.name}: a pipe", make=pipe, command=command, sentence="is no file: a pipe")


# ---- Images

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n0 0 5 5 rectfill\nshowpage\n%%EOF\n"


def png(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that claims a size, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def as_file(array: np.ndarray[Any, Any]) -> Callable[[], object]:
    return lambda: Image.fromarray(array).save("images/even/0.tiff")


def of_images() -> Iterator[Case]:
    first = Path("images/even/0.png")
    contents = {
        "empty": b"",
        "a word": b"nonsense",
        "half": None,
        "PostScript": POSTSCRIPT,
        "PDF": b"%PDF-1.4\n%%EOF\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "HTML": b"<!DOCTYPE html>",
        "a million pixels each way": png(10**6, 10**6),
        "5,000 pixels each way": png(5000, 5000),
        "the largest size": png(2**31 - 1, 2**31 - 1),
        "too few bytes for its size": png(500, 500),
        "no pixels": png(0, 0),
    }
    for what, content in contents.items():
        make = damaged(first, content if content is not None else first_bytes())
        yield Case(name=f"an image: {what}", make=make, command="train images new", sentence="even/0.png")
    others: dict[str, tuple[Callable[[], object], str]] = {
        "of another size": (lambda: Image.new("L", (7, 7)).save(first), "All images must have one size"),
        "a folder": (in_place_of(first, Path.mkdir), "is no file"),
        "a pipe": (in_place_of(first, os.mkfifo), "is no file"),
        "a dead link": (in_place_of(first, lambda path: path.symlink_to("nowhere")), "is no file"),
        "of 32 bits": (as_file(np.zeros((5, 5), np.int32)), "more than 16 bits a channel"),
        "of floats": (as_file(np.zeros((5, 5), np.float32)), "more than 16 bits a channel"),
        "one class only": (lambda: Path("images/odd").rename("elsewhere"), "needs one per class, two or more"),
        "an empty class": (lambda: Path("images/third").mkdir(), "holds no image file"),
    }
    for what, (make, sentence) in others.items():
        yield Case(name=f"images: {what}", make=make, command="train images new", sentence=sentence)


def first_bytes() -> bytes:
    """Half of a PNG."""
    return png(5, 5)[:40]


# ---- Arrays


def arrays(**changes: Any) -> Callable[[], object]:
    def make() -> None:
        with np.load("data.npz") as stored:
            content = dict(stored)
        content |= changes
        np.savez("data.npz", **{key: value for key, value in content.items() if value is not None})  # type: ignore[arg-type]

    return make


def npz_member(header: bytes, name: str = "images.npy") -> Callable[[], object]:
    def make() -> None:
        with zipfile.ZipFile("data.npz", "w") as archive:
            archive.writestr(name, header)

    return make


def npy_header(words: str) -> bytes:
    text = words.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HUGE = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }")
CODE = npy_header("{'descr': __import__('os').system('touch ran'), 'fortran_order': False, 'shape': (3,), }")
FLOATS = np.linspace(0, 1, 8 * 25, dtype=np.float32).reshape(8, 5, 5)


def of_arrays() -> Iterator[Case]:
    contents = {
        "empty": b"",
        "a word": b"nonsense",
        "HTML": b"<!DOCTYPE html><html></html>",
        "half": None,
        "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00K\x03.",
        "one array": HUGE,
    }
    for what, content in contents.items():
        make = damaged(Path("data.npz"), content)
        yield Case(name=f"an .npz: {what}", make=make, command=TRAIN, sentence="data.npz cannot be read as .npz")
    rows: dict[str, tuple[Callable[[], object], str]] = {
        "a claim of 40 TB": (npz_member(HUGE), "data.npz"),
        "code in a header": (npz_member(CODE), "data.npz"),
        "a member that is no array": (npz_member(b"nonsense"), "data.npz"),
        "nothing": (npz_member(b"", "notes.txt"), "but no images"),
        "objects": (arrays(images=np.array([{}] * 8, dtype=object)), "cannot be read as .npz"),
        "no images": (arrays(images=None), "but no images"),
        "no labels": (arrays(labels=None), "but no labels"),
        "held-out images without labels": (arrays(held_out_labels=None), "but no held_out_labels"),
        "held-out labels without images": (arrays(held_out=None), "but no held_out"),
        "images above 1": (arrays(images=2 * FLOATS), "floats in [0, 1]"),
        "images below 0": (arrays(images=-FLOATS), "floats in [0, 1]"),
        "images with NaN": (arrays(images=FLOATS * np.nan), "floats in [0, 1]"),
        "images with infinity": (arrays(images=FLOATS + np.inf), "floats in [0, 1]"),
        "complex images": (arrays(images=FLOATS.astype(complex)), "floats in [0, 1]"),
        "whole numbers": (arrays(images=FLOATS.astype(np.int64)), "floats in [0, 1]"),
        "texts": (arrays(images=np.array(["a"] * 8)), "shape"),
        "flat images": (arrays(images=FLOATS.reshape(8, 25)), "shape"),
        "images of five axes": (arrays(images=FLOATS[..., None, None]), "shape"),
        "two channels": (arrays(images=np.stack([FLOATS] * 2, 3)), "shape"),
        "no image": (arrays(images=FLOATS[:0], labels=np.arange(0)), "data.npz"),
        "fewer labels": (arrays(labels=np.arange(7) % 2), "holds 8 images and 7 labels"),
        "real labels": (arrays(labels=np.arange(8) / 2), "whole numbers"),
        "labels of two axes": (arrays(labels=np.zeros((8, 2), int)), "whole numbers"),
        "labels that are texts": (arrays(labels=np.array(["a"] * 8)), "whole numbers"),
        "labels beyond 2^63": (arrays(labels=np.arange(8, dtype=np.uint64) + np.uint64(2**63)), "too large"),
        "one class": (arrays(labels=np.zeros(8, int), held_out_labels=np.zeros(8, int)), "two classes or more"),
        "held-out labels of another class": (arrays(held_out_labels=np.arange(8)), "which is none of the 2 classes"),
        "held-out images of another shape": (arrays(held_out=FLOATS[:, :4]), "different shapes"),
    }
    for what, (make, sentence) in rows.items():
        yield Case(name=f"an .npz: {what}", make=make, command=TRAIN, sentence=sentence)


# ---- The mean image

CENTRE = (
    "reconstruct other --checkpoint model.pt --shape 1 5 5 --task binary --steps 2 --no-find-start --centre mean.npy"
)
MEAN = np.full((1, 5, 5), 0.5, np.float32)


def mean(array: Any) -> Callable[[], object]:
    return lambda: np.save("mean.npy", array)


def archive() -> None:
    with Path("mean.npy").open("wb") as file:
        np.savez(file, images=MEAN)


def of_centres() -> Iterator[Case]:
    rows: dict[str, tuple[Callable[[], object], str]] = {
        "bytes": (mean((255 * MEAN).astype(np.uint8)), "holds uint8 from 127 to 127; divide bytes by 255"),
        "0 to 255": (mean(255 * MEAN), "must hold floats in [0, 1]"),
        "centred": (mean(MEAN - 1), "must hold floats in [0, 1]"),
        "NaN": (mean(MEAN * np.nan), "float32 that are not finite"),
        "infinite": (mean(MEAN + np.inf), "float32 that are not finite"),
        "complex": (mean(MEAN.astype(complex)), "holds complex128"),
        "truth values": (mean(MEAN > 0), "holds bool"),
        "texts": (mean(np.full((1, 5, 5), "a")), "holds <U1"),
        "objects": (mean(np.full((1, 5, 5), None)), "Python objects"),
        "flat": (mean(MEAN.reshape(-1)), "holds an array of shape (25,)"),
        "channels last": (mean(MEAN.reshape(5, 5, 1)), "holds an array of shape (5, 5, 1)"),
        "a number": (mean(np.float32(0.5)), "holds an array of shape ()"),
        "a claim of 40 TB": (damaged(Path("mean.npy"), HUGE), "is no .npy file"),
        "code in a header": (damaged(Path("mean.npy"), CODE), "is no .npy file"),
        "an archive": (archive, "it is an archive of arrays"),
        "a pickle": (damaged(Path("mean.npy"), b"\x80\x04K\x03."), "it is no array"),
        "HTML": (damaged(Path("mean.npy"), b"<!DOCTYPE html>"), "it is no array"),
        "empty": (damaged(Path("mean.npy"), b""), "is no .npy file"),
        "half": (damaged(Path("mean.npy"), None), "is no .npy file"),
        "a folder": (in_place_of(Path("mean.npy"), Path.mkdir), "is no file"),
        "a pipe": (in_place_of(Path("mean.npy"), os.mkfifo), "is no file"),
        "gone": (Path("mean.npy").unlink, "There is no mean.npy"),
    }
    for what, (make, sentence) in rows.items():
        yield Case(name=f"a mean image: {what}", make=make, command=CENTRE, sentence=sentence)


# ---- What belongs to others, or to no run


def of_folders() -> Iterator[Case]:
    rows: dict[str, tuple[Callable[[], object], str, str]] = {
        "candidates of another checkpoint": (
            edited(Path("run/candidates.json"), lambda c: c.update(checkpoint="0" * 16)),
            "score run",
            "come from another checkpoint",
        ),
        "the truth has changed": (
            edited(Path("run/training.json"), lambda c: c["problem"].update(fingerprint="0" * 16)),
            "score run",
            "now loads other images",
        ),
        "the truth is gone": (
            edited(Path("run/training.json"), lambda c: c["problem"]["selection"].update(data_dir="/nowhere")),
            "score run",
            "There is no file or folder /nowhere",
        ),
        "a page that no training made": (
            lambda: [Path("new").mkdir(), Path("new/report.html").touch()],
            TRAIN,
            "which no training here has made",
        ),
        "checkpoint.json of another": (
            edited(Path("run/checkpoint.json"), lambda c: c.update(fingerprint="0" * 16)),
            READERS["checkpoint.json"],
            "do not belong together",
        ),
        "no checkpoint": (Path("run/checkpoint.json").unlink, READERS["checkpoint.json"], "There is no"),
        "no candidates": (Path("run/candidates.json").unlink, "score run", "There is no"),
        "a training under way, by an older version": (
            edited(Path("run/training.json"), lambda c: c.update(status="running")),
            "score run",
            "was interrupted",
        ),
    }
    for what, (make, command, sentence) in rows.items():
        yield Case(name=what, make=make, command=command, sentence=sentence)


LONG = "n" * 300


def pipe(name: str) -> Callable[[], object]:
    return lambda: os.mkfifo(name)


def cells(text: str = "def cells():\n    return []\n") -> Callable[[], object]:
    return lambda: Path("cells.py").write_text(text)


def of_audits_and_studies() -> Iterator[Case]:
    audit = "audit model.pt --images data.npz --steps 2 --restarts 1 --no-find-start --out new"
    rows: dict[str, tuple[Callable[[], object], str]] = {
        "audit pipe.pt --images data.npz --out new": (pipe("pipe.pt"), "is no file"),
        "audit model.pt --images pipe.npz --out new": (pipe("pipe.npz"), "is no file"),
        "audit model.pt --images pipe --out new": (pipe("pipe"), "is no folder of images"),
        f"{audit} --initial pipe.pt": (pipe("pipe.pt"), "is no file"),
        f"{audit} --mean pipe.npy": (pipe("pipe.npy"), "is no file"),
        f"{audit} --mean {LONG}.npy": (nothing, "File name too long"),
        f"{audit} --out {LONG}": (nothing, "File name too long"),
        f"{audit} --out data.npz": (nothing, "is a file, but a run is a folder"),
        f"{audit} --out data.npz/x": (nothing, "Not a directory"),
        f"audit {LONG} --images data.npz --out new": (nothing, "File name too long"),
        f"audit model.pt --images {LONG} --out new": (nothing, "File name too long"),
        f"{RECONSTRUCT} --restarts 1000000000000": (nothing, "fewer --restarts lower it"),
        f"{audit} --seed -1": (nothing, "seed must be at least 0"),
        f"{audit} --std 0": (nothing, "must be positive"),
        f"{audit} --threads 0": (nothing, "threads must be at least 1"),
        "audit --all pipe --images data.npz --out new": (pipe("pipe"), "holds no model file"),
        "audit --all images --images data.npz --out new": (nothing, "holds no model file"),
        f"audit --all {LONG} --images data.npz --out new": (nothing, "File name too long"),
        "study pipe.py --out new": (pipe("pipe.py"), "it is no file"),
        f"study {LONG}.py --out new": (nothing, "File name too long"),
        "study cells.py --out new": (cells(), "needs a function cells()"),
        "study cells.py --out new --threads 0": (cells(), "threads must be at least 1"),
        "study data.npz --out new": (nothing, "cannot be read"),
        "compare": (nothing, "Give the folders of the runs"),
        "compare pipe": (pipe("pipe"), "pipe is no run"),
        f"compare {LONG}": (nothing, "File name too long"),
        f"compare run --csv {LONG}": (nothing, "File name too long"),
        "compare run --page images": (nothing, "Is a directory"),
        "find-start pipe.pt": (pipe("pipe.pt"), "is no file"),
        f"find-start {LONG}": (nothing, "File name too long"),
        "import-args pipe": (pipe("pipe"), "is no file"),
        f"import-args {LONG}": (nothing, "File name too long"),
        "import-args images": (nothing, "is no file"),
        f"report {LONG}": (nothing, "File name too long"),
        "zoo --threads 0": (nothing, "threads must be at least 1"),
    }
    for command, (make, sentence) in rows.items():
        yield Case(name=command.replace(LONG, "LONG"), make=make, command=command, sentence=sentence)


CASES = [
    *of_flags(),
    *of_audits_and_studies(),
    *of_records(),
    *of_tensors(),
    *of_images(),
    *of_arrays(),
    *of_centres(),
    *of_folders(),
]
