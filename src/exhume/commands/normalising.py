"""The values of --mean, --std and --centre: what training subtracted from images, and what it divided by."""

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import Shape

NOT_NPY = (OSError, ValueError, TypeError, EOFError, OverflowError, SyntaxError, TokenError)
"""What NumPy raises at a file that is no array."""


def load_centre(path: Path, shape: Shape) -> Tensor:
    """The mean training image in an .npy file, [c, h, w].

    Raises:
        InputError: the file cannot be read, or holds no image of this shape.
    """
    stored = _npy(path)
    if stored.shape != tuple(shape):
        raise InputError(f"{path} holds an array of shape {stored.shape}, not of the images' {tuple(shape)}.")
    if stored.dtype.kind != "f" or not np.all((stored >= 0) & (stored <= 1)):
        raise InputError(
            f"{path} must hold floats in [0, 1], as the images are, and holds {_range(stored)}; divide bytes by 255."
        )
    return torch.from_numpy(np.array(stored, dtype=np.float32))


def load_numbers(words: Sequence[str]) -> list[float] | Tensor | None:
    """The values of --mean or --std: numbers, or the array of an .npy file; None where there are none.

    Raises:
        InputError: they are neither.
    """
    if not words:
        return None
    try:
        if len(words) == 1 and words[0].endswith(".npy"):
            return torch.from_numpy(np.array(_npy(Path(words[0])), dtype=np.float64))
        return [float(word) for word in words]
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{' '.join(words)} is neither numbers nor an .npy file: {error}.") from None


def _npy(path: Path) -> NDArray[Any]:
    """The array in an .npy file, which is not read before it is used.

    Raises:
        InputError: there is none.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file." if path.exists() else f"There is no {path}.")
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(stored, np.ndarray):
            stored.close()
            raise ValueError("it is an archive of arrays")
    except NOT_NPY as error:
        why = "it is no array" if "pickle" in str(error) else " ".join(str(error).split())
        raise InputError(f"{path} is no .npy file with an image: {why}.") from None
    return stored


def _range(values: NDArray[Any]) -> str:
    """What an array holds, in words."""
    if values.dtype.kind not in "iuf":
        return str(values.dtype)
    if not np.isfinite(values).all():
        return f"{values.dtype} that are not finite"
    return f"{values.dtype} from {values.min():g} to {values.max():g}"
