"""Records and tensors that are changed by hand, and so without the digests that tell a changed file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from exhume.records import SEAL, TENSOR_FILES

Content = dict[str, Any]


def plain(path: Path) -> Content:
    """What a record says, without its digests."""
    content: Content = json.loads(path.read_text())
    return {key: value for key, value in content.items() if key not in (SEAL, TENSOR_FILES)}


def change(path: Path, edit: Callable[[Content], object] = lambda content: None, to: Path | None = None) -> Path:
    """Edits a record as older versions wrote it: nothing tells that it was changed."""
    content = plain(path)
    edit(content)
    (to or path).write_text(json.dumps(content))
    return to or path


def put_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Puts tensors into the place of a record's own, and makes the record forget those."""
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    change(path.with_suffix(".json"))
