"""What is written to disk: strict JSON for dataclasses, safetensors for tensors, both all or nothing."""

import json
import platform
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

FORMAT = 5
READ = (2, 3, 4, FORMAT)
"""The formats that are read; a record of an older one is brought up to date by its kind's `Upgrade`."""
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
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
    content = {"format": FORMAT, **_converter.unstructure(record)}
    replace_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path, kind: type[T], upgrade: Upgrade = dict) -> T:
    """Reads back a record of `kind`; an unknown, missing or mistyped key is an `InputError`.

    Args:
        upgrade: turns the content of an older format into today's.
    """
    content = _read_object(path)
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
    return record


def register(kind: Any, encode: Callable[[T], dict[str, Any]], decode: Callable[[Mapping[str, Any]], T]) -> None:
    """Says how values of an abstract class are written and read; `decode` raises `InputError` for what is none."""
    _converter.register_unstructure_hook_func(lambda of: of == kind, encode)
    _converter.register_structure_hook_func(lambda of: of == kind, lambda content, _: decode(content))


def encode(record: Any) -> dict[str, Any]:
    """A dataclass in JSON's types."""
    content: dict[str, Any] = _converter.unstructure(record)
    return content


def decode(content: Mapping[str, Any], kind: type[T]) -> T:
    """A dataclass from JSON's types; raises what cattrs raises."""
    return _converter.structure(content, kind)


def _read_object(path: Path) -> dict[str, Any]:
    encoded = _bytes(path)
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors as safetensors."""
    # safetensors refuses tensors that share their memory
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    replace_file(path, safetensors.torch.save(own))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads named tensors; a file that is no safetensors is an `InputError`."""
    try:
        return safetensors.torch.load(_bytes(path))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"There is no {path}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def replace_file(path: Path, content: bytes) -> None:
    """All or nothing: a reader never meets half a file, also after a crash."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            part.unlink()
