"""What is written to disk: strict JSON for dataclasses, safetensors for tensors, both all or nothing."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import safetensors.torch
import torch
from cattrs.preconf.json import make_converter
from safetensors import SafetensorError
from torch import Tensor

from exhume.errors import InputError

T = TypeVar("T")

FORMAT = 1
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
    _replace(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path, kind: type[T]) -> T:
    """Reads back a record of `kind`; an unknown, missing or mistyped key is an `InputError`."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise InputError(f"{path} is damaged: it holds no JSON object.")
        if content.pop("format", None) != FORMAT:
            raise InputError(f"{path} has another format than {FORMAT}, the one this version of exhume reads.")
        return _converter.structure(content, kind)
    except FileNotFoundError:
        raise InputError(f"There is no {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        detail = "; ".join(cattrs.transform_error(error))
        raise InputError(f"{path} does not hold what is expected: {detail}.") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors as safetensors."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, safetensors.torch.save(on_cpu))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads named tensors; a file that is no safetensors is an `InputError`."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"There is no {path}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def _replace(path: Path, content: bytes) -> None:
    """All or nothing: a reader never meets half a file, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
