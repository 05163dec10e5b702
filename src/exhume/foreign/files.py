"""Files of weights become named tensors. No code of a file is run; what is none is told by what it is."""

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as _scalar
from torch import Tensor

from exhume.errors import InputError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")
"""Files that are looked for in a folder."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
"""Keys under which training scripts save a state dict, beside the epoch and the optimiser's state."""
AVERAGED = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema")
"""Keys under which they save the average of the weights of many steps."""
HARMLESS = (argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath)
"""Classes that hold values only, and that training scripts save with their settings."""
HEAD = 512
"""Bytes that tell what a file is."""
SMALLEST = 1e-18
"""Largest value of a matrix of weights below which the squares of its values are 0 in float32."""
NO_ARRAYS = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    TokenError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and the standard library raise at an archive of arrays that is damaged, packed otherwise or encrypted."""
MOST_DEFLATED = 1100
"""Bytes that a byte of a zip file can stand for at most (deflate: 1,032)."""


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors by name; notes: what was taken and what left out, in sentences.

    ordered: whether their order is that in which the network was built; safetensors keeps none.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    ordered: bool = True


def weights_file(source: Path) -> Path:
    """The file itself, or the one file of weights in a folder.

    Raises:
        InputError: there is none, or several.
    """
    if not source.is_dir():
        return source
    found = sorted(path for path in source.iterdir() if path.suffix in (*SUFFIXES, ".pt2"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or f"no file ends in {', '.join(SUFFIXES)}"
        raise InputError(f"{source} must hold one file of weights, and holds {len(found)} ({names}).")
    return found[0]


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a file of weights, those of floating point in float32, or in float64 where they were.

    Raises:
        InputError: as for `read_named_tensors`, or a tensor cannot be computed with.
    """
    tensors, notes = read_named_tensors(path)
    tensors = {name: _checked(path, name, tensor) for name, tensor in tensors.items()}
    matrices = [
        tensor for tensor in tensors.values() if tensor.ndim > 1 and tensor.numel() and tensor.is_floating_point()
    ]
    if matrices and all(float(tensor.abs().max()) < SMALLEST for tensor in matrices):
        raise InputError(f"{path} holds weights that are all zero, or next to it: there is nothing to read.")
    return StateDict(tensors=tensors, notes=notes, ordered=kind_of(path) != "safetensors")


def read_content(path: Path) -> Any:
    """All that a file of weights holds, whatever is beside them.

    Raises:
        InputError: there is no such file, or it is none of weights.
    """
    kind = kind_of(path)
    if kind in REFUSED:
        raise InputError(f"{path} {REFUSED[kind]}")
    if kind in PROGRAMS:
        raise InputError(f"{path} is a program and no plain state dict; save the network's `state_dict()`.")
    return READERS[kind](path)


def read_named_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file of weights by name, as they are, and what to note of it.

    Raises:
        InputError: there is no such file, or it is no state dict; the sentence says what it is.
    """
    content, notes = unwrapped(read_content(path))
    if not isinstance(content, Mapping):
        raise InputError(f"{path} is no plain state dict: it must map names to tensors.")
    named = {str(name): value for name, value in content.items()}
    packed = [name for name, value in named.items() if "_packed_params" in name or _is_quantised(value)]
    if packed:
        raise InputError(f"{path} holds quantised weights ({packed[0]}); give the weights before quantisation.")
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    others = [name for name, value in named.items() if not isinstance(value, Tensor)]
    if others and not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise InputError(f"{path} is no plain state dict: it must map names to tensors.")
    if others:
        notes = (*notes, f"Left out, for they are no tensors: {', '.join(others[:5])}.")
    return tensors, notes


def kind_of(path: Path) -> str:
    """What a file is, by its first bytes and, of an archive, by its members: a key of READERS, REFUSED or PROGRAMS.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is no plain state dict: it is a folder.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file: a pipe or a device is not read.")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"There is no {path}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    text = head.lstrip().lower()
    if not head:
        return "empty"
    told = {
        "git-lfs": text.startswith(b"version https://git-lfs"),
        "html": text.startswith((b"<!doctype html", b"<html")),
        "hdf5": head.startswith(b"\x89HDF"),
        "gguf": head.startswith(b"GGUF"),
        "npy": head.startswith(b"\x93NUMPY"),
        "safetensors": head[8:9] == b"{" and path.suffix not in (".pt", ".pth"),
    }
    return next(
        (kind for kind, is_it in told.items() if is_it), "safetensors" if path.suffix == ".safetensors" else "torch"
    )


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "torch"  # whose reader says what is wrong
    inner = [name.partition("/")[2] for name in names]
    if "models/model.json" in inner or "serialized_exported_program.json" in names:
        return "export"
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "torchscript"
    if any(name.endswith(".h5") for name in names):
        return "keras"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"


REFUSED = {
    "empty": "is no plain state dict: it is empty.",
    "git-lfs": "is a pointer of Git LFS and not the file itself; fetch that with `git lfs pull`.",
    "html": "is an HTML page and not a file of weights; the download gave a page to read instead.",
    "hdf5": "is an HDF5 file, of Keras perhaps; save the weights as .npz, by names such as dense/kernel.",
    "keras": "is a Keras archive; save the weights as .npz, by names such as dense/kernel, dense/bias.",
    "gguf": "is a GGUF file, of quantised weights; give the weights before quantisation.",
    "npy": "holds a single array; save all weights by name, as .npz or as a state dict.",
}
"""What is told from its first bytes and not read: the rest of the sentence."""
PROGRAMS = ("export", "torchscript")
"""What holds the network's operations beside its weights."""


def unwrapped(content: Any) -> tuple[Any, tuple[str, ...]]:
    """The state dict of a file's content, from under the keys of training scripts, and what to note of it."""
    notes: list[str] = []
    while isinstance(content, Mapping):
        plain = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        averaged = [key for key in AVERAGED if isinstance(content.get(key), Mapping)]
        if not plain and not averaged:
            plain = [key for key, value in content.items() if _is_state_dict(value)]
            if len(plain) != 1 or any(isinstance(value, Tensor) and value.ndim > 1 for value in content.values()):
                break
        key = (plain or averaged)[0]
        if plain and averaged:
            notes.append(f"The averaged weights under the key {averaged[0]} are left out.")
        if key not in WRAPPERS[:2]:
            notes.append(f"The weights are taken from under the key {key}.")
        content = content[key]
    return content, tuple(notes)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _is_quantised(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_quantised(one) for one in value)
    return isinstance(value, Tensor) and value.is_quantized


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor that can be computed with; halves are widened."""
    what = f"{path} holds {name}, a "
    if tensor.is_nested:
        raise InputError(f"{what}nested tensor; give plain ones.")
    if tensor.layout != torch.strided:
        raise InputError(f"{what}sparse tensor; give it as `.to_dense()`.")
    if tensor.is_meta:
        raise InputError(f"{what}tensor on the meta device, without values.")
    if tensor.is_complex():
        raise InputError(f"{what}tensor of complex numbers, which is not supported.")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        there = tensor.untyped_storage().nbytes() // tensor.itemsize
        raise InputError(f"{what}tensor that claims {tensor.numel():,} values and holds {there:,}.")
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not tensor.isfinite().all():
        raise InputError(f"{path} holds weights that are not finite ({name}).")
    return tensor.contiguous()


# ---- One reader a kind of file


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals([*HARMLESS, *_numpy_scalars()]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old format, an unusual pickle: what is wrong is said below
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes the unpickler stumble in any way
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise InputError(
                    f"{path} is no plain state dict: it holds an object of {refused[1]}, and no code in a file is run. "
                    "Save `model.state_dict()`, or give the network's code, as model.py:make_model, with its weights."
                ) from None
            if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error):
                raise InputError(f"{path} is no plain state dict: it is damaged, or holds more than tensors.") from None
            told = isinstance(error, RuntimeError | pickle.UnpicklingError | EOFError | OSError)
            detail = str(error).strip().partition("\n")[0] if told else ""
            raise InputError(f"{path} is no plain state dict: {detail or NO_TORCH}") from None


def _numpy_scalars() -> list[Any]:
    """What numbers of NumPy are pickled by: they hold bytes and a type."""
    numbers = (
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
        np.dtypes.Int64DType,
        np.dtypes.Int32DType,
        np.dtypes.BoolDType,
    )
    return [_scalar, np.dtype, *numbers]


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load  # noqa: PLC0415

    try:
        found = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no plain state dict: {error}") from None
    return {name: found[name] for name in sorted(found, key=_with_numbers)}


def _with_numbers(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `layers.10` behind `layers.9`. The format keeps no order, and is read in another one each time."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _read_npz(path: Path) -> dict[str, Tensor]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    _check_array(path, member, file)
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except NO_ARRAYS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no .npz file of arrays: {' '.join(str(error).split())}") from None
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]
    if odd:
        raise InputError(f"{path} holds {odd[0]}, which is no array of numbers.")
    return {
        name: torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
        for name, array in arrays.items()
    }


def _check_array(path: Path, member: zipfile.ZipInfo, file: Any) -> None:
    """Refuses an array that claims more values than the file can hold."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{path} holds {member.filename}, an array of objects; no code in a file is run.")
    claimed = int(np.prod([int(size) for size in shape], dtype=object)) * dtype.itemsize
    if claimed > member.file_size or member.file_size > MOST_DEFLATED * max(member.compress_size, 1):
        raise InputError(f"{path} claims {claimed:,} bytes for {member.filename} and does not hold them.")


NO_TORCH = "it is damaged, or was not saved by PyTorch."
"""What is said where the reader's own words, such as a bare number, say nothing."""
READERS: dict[str, Callable[[Path], Any]] = {"torch": _read_torch, "safetensors": _read_safetensors, "npz": _read_npz}
"""How each kind of file of weights is read."""
