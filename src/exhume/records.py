"""What is written to disk: strict JSON for dataclasses, safetensors for tensors, both all or nothing.

Every file carries a digest of itself, and a record those of the files that belong to it: a changed byte is an error.
"""

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import safetensors.torch
import torch
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception
from safetensors import SafetensorError
from torch import Tensor

from exhume.errors import InputError

T = TypeVar("T")

FORMAT = 7
READ = (2, 3, 4, 5, 6, FORMAT)
"""The formats that are read; a record of an older one is brought up to date by its kind's `Upgrade`."""
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
SEAL = "sha256"
"""Key of a file's digest of itself: of all its bytes, with zeros in the digest's place. Older files have none."""
TENSOR_FILES = "tensors"
"""Key of a record's table of the files that belong to it, and their digests."""
ABOUT = "about"
"""Key of the text beside a file's tensors."""
FOREIGN = {"format"}
"""What other programs write beside tensors; files with nothing else there are read without a digest."""
PART = ".exhume-part-"
"""How the name of a file begins that is still being written."""
_UNSEALED = "0" * 64
_converter = make_converter(forbid_extra_keys=True)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result came from: versions, device, seed, and when and how long it ran (`seconds` of wall time)."""

    exhume: str
    torch: str
    python: str
    device: str
    threads: int
    seed: int
    date: str
    seconds: float


def provenance(*, device: torch.device, seed: int, seconds: float) -> Provenance:
    """States what is running here and now."""
    return Provenance(
        exhume=version("exhume"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        threads=torch.get_num_threads(),
        seed=seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 2),
    )


def write(path: Path, record: Any) -> None:
    """Writes the dataclass `record` as strict JSON with the format number; numbers that are not finite are refused."""
    replace_file(path, encode(record))


def write_together(path: Path, record: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes PATH.safetensors and then its record PATH.json, so that neither is taken for the other's older twin."""
    replace_files(encode_together(path, record, tensors))


def encode_together(path: Path, record: Any, tensors: Mapping[str, Tensor]) -> dict[Path, bytes]:
    """What `write_together` writes: the record last, with the tensors' digest."""
    file, content = path.with_name(f"{path.name}.safetensors"), encode_tensors(tensors)
    return {file: content, path.with_name(f"{path.name}.json"): encode(record, {file.name: content})}


def encode(record: Any, files: Mapping[str, bytes] | None = None) -> bytes:
    """The dataclass `record` as a file's content.

    Args:
        files: the contents of the files beside it that belong to it, by name; they are checked when it is read.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (files or {}).items()}
    head = {"format": FORMAT, SEAL: _UNSEALED, **({TENSOR_FILES: digests} if digests else {})}
    content = {**head, **_converter.unstructure(record)}
    return _sealed((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _sealed(content: bytes) -> bytes:
    """The content with its own digest in the place that was kept for it."""
    return content.replace(_UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def _check_seal(path: Path, content: bytes, seal: object) -> None:
    """Raises `InputError` unless the seal is the content's digest."""
    plain = content.replace(str(seal).encode(), _UNSEALED.encode(), 1)
    if hashlib.sha256(plain).hexdigest() != seal:
        raise InputError(f"{path} is damaged, or was changed by hand: it is not what its digest says.")


def read(path: Path, kind: type[T], upgrade: Upgrade = dict) -> T:
    """Reads back a record of `kind`; an unknown, missing or mistyped key is an `InputError`.

    Args:
        upgrade: turns the content of an older format into today's.
    """
    return parse(path, _bytes(path), kind, upgrade)


def parse(path: Path, encoded: bytes, kind: type[T], upgrade: Upgrade = dict) -> T:
    """The record of `kind` that some bytes of a file are; raises as `read` does."""
    content = _object(path, encoded)
    seal, files = content.pop(SEAL, None), content.pop(TENSOR_FILES, {})
    written_as = content.pop("format", None)
    if written_as not in READ:
        formats = ", ".join(map(str, READ))
        raise InputError(f"{path} has none of the formats that this version of exhume reads ({formats}).")
    try:
        content = content if written_as == FORMAT else upgrade(content)
        record = _converter.structure(content, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        detail = "; ".join(cattrs.transform_error(error, format_exception=_what_is_wrong))
        raise InputError(f"{path} does not hold what is expected: {detail}.") from None
    except (KeyError, AttributeError) as error:  # an upgrade looked for what is not there
        raise InputError(f"{path} does not hold what is expected: {error}.") from None
    # cattrs would take "7" or 7.5 for 7, and a default for a key that is not there
    again = _converter.unstructure(record)
    for key in again:
        if key not in content or _canonical(again[key]) != _canonical(content[key]):
            raise InputError(f"{path} does not hold what is expected: a value is missing or of another type @ $.{key}.")
    if seal is not None or files:
        _check_seal(path, encoded, seal)
    _check_files(path, files)
    return record


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    """Raises `InputError` unless the files beside a record are those that it was written with."""
    for name, digest in files.items():
        if hashlib.sha256(_bytes(path.with_name(name))).hexdigest() != digest:
            raise InputError(
                f"{path.with_name(name)} is damaged, or does not belong to the {path.name} beside it: it is not what "
                "the digest there says."
            )


def register(kind: Any, encode: Callable[[T], dict[str, Any]], decode: Callable[[Mapping[str, Any]], T]) -> None:
    """Says how values of an abstract class are written and read; `decode` raises `InputError` for what is none."""
    _converter.register_unstructure_hook_func(lambda of: of == kind, encode)
    _converter.register_structure_hook_func(lambda of: of == kind, lambda content, _: decode(content))


def unstructured(record: Any) -> dict[str, Any]:
    """A dataclass in JSON's types."""
    content: dict[str, Any] = _converter.unstructure(record)
    return content


def decode(content: Mapping[str, Any], kind: type[T]) -> T:
    """A dataclass from JSON's types; raises what cattrs raises."""
    return _converter.structure(content, kind)


def _object(path: Path, encoded: bytes) -> dict[str, Any]:
    try:
        content = json.loads(encoded, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object.")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _what_is_wrong(error: BaseException, kind: Any) -> str:
    return str(error).removesuffix(".") if isinstance(error, InputError) else format_exception(error, kind)


def _canonical(content: Any) -> str:
    """The same text for the same JSON: 1 is 1.0, and neither is true."""
    return json.dumps(json.loads(json.dumps(content), parse_int=float), sort_keys=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: str = "") -> None:
    """Writes named tensors as safetensors; `about` is a text to be kept beside them, see `read_about`."""
    replace_file(path, encode_tensors(tensors, about))


def encode_tensors(tensors: Mapping[str, Tensor], about: str = "") -> bytes:
    """Named tensors as the content of a safetensors file."""
    # safetensors refuses tensors that share their memory
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    # safetensors, which holds three copies, ends the process where it gets no memory; Python raises MemoryError
    bytes(3 * sum(tensor.nbytes for tensor in own.values()))
    return _sealed(safetensors.torch.save(own, {SEAL: _UNSEALED, **({ABOUT: about} if about else {})}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads named tensors; a file that is no safetensors, or not what its digest says, is an `InputError`."""
    return read_about(path)[1]


def read_about(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Reads the text beside named tensors, and these."""
    content = _bytes(path)
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    beside = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    if set(beside) - FOREIGN:
        _check_seal(path, content, beside.get(SEAL))
    return beside.get(ABOUT, ""), tensors


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is no file: a pipe or a device is not read.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"There is no {path}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def replace_file(path: Path, content: bytes) -> None:
    """All or nothing: a reader never meets half a file, also after a crash."""
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes], clear: Callable[[], object] = lambda: None) -> None:
    """Writes several files of one folder; nothing that was there is touched before all of the new is on the disk.

    The files are put in their places in the order given. The records among several, which vouch for the tensors, come
    last and the old ones go first: after a crash between two files there is no record, but never one of other tensors.

    Args:
        clear: removes what follows from the old files; it is called once all of the new is on the disk.

    Raises:
        InputError: a file cannot be written. What was there is left as it was, unless the disk itself fails.
    """
    parts: dict[Path, Path] = {}
    path = folder = next(iter(contents)).parent
    try:
        for path, content in contents.items():
            folder.mkdir(parents=True, exist_ok=True)
            parts[path] = path.with_name(f"{PART}{secrets.token_hex(8)}")
            _write_through(parts[path], content)
        clear()
        for path in contents if len(contents) > 1 else ():
            if path.suffix == ".json":
                remove(path)
        for path, part in parts.items():
            part.replace(path)
        _sync(folder)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        InputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}.") from None


def _write_through(path: Path, content: bytes) -> None:
    """Writes a new file to the disk itself: a rename must not get there before what it names."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
