"""Readers of the formats in which CIFAR, MNIST and arrays of one's own are published.

Whatever is wrong with a file is one `InputError` that names it. Nothing in a file is ever executed.
"""

import gzip
import io
import pickle
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exhume.devices import check_memory
from exhume.errors import InputError
from exhume.problems.datasets import DataSet, Rows

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TokenError,
    OverflowError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the standard library and NumPy raise for a file that is cut short or something else than its name says."""

NPZ_KEYS = ("x_train", "y_train", "images", "labels", "x_test", "y_test", "held_out", "held_out_labels", *"XYxy")
"""Names under which an .npz file may hold images and labels."""
MOST_BYTES = 2**30
"""To which a packed file may unpack; CIFAR, the largest that is read so, has a sixth of it."""

MNIST_IMAGES = "train-images-idx3-ubyte"
MNIST_FILES = (MNIST_IMAGES, "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """What CIFAR-10 and CIFAR-100 do not have in common.

    train, test: the names of their files (with .bin in the binary version); label_key: where the python version has its
    labels; label_bytes: bytes before the pixels of an image in the binary version, the last of which is the label.
    """

    title: str
    classes: tuple[str, ...]
    train: tuple[str, ...]
    test: str
    label_key: bytes
    label_bytes: int


def read_cifar(path: Path, kind: Cifar) -> DataSet:
    """Reads a CIFAR archive, packed (.tar.gz) or unpacked, in its python or its binary version.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html describes both; in both an image is its red, green, blue planes.
    """
    binary = "-bin" in path.name
    names = [f"{name}.bin" if binary else name for name in (*kind.train, kind.test)]
    files = _members(path, names)
    parts = []
    for name in names:
        try:
            images, labels = (_cifar_binary if binary else _cifar_pickle)(files[name], kind)
            parts.append(_rows(images, labels, kind.classes))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {name} {error}.") from None
    train = Rows(torch.cat([part.images for part in parts[:-1]]), torch.cat([part.labels for part in parts[:-1]]))
    return DataSet(train, parts[-1], kind.classes, f"{kind.title}, from {path.name}")


def read_mnist(path: Path) -> DataSet:
    """Reads MNIST's four IDX files, gzipped or not, of which `path` is that of the training images."""
    arrays = [_idx(path.parent, name) for name in MNIST_FILES]
    classes = tuple("0123456789")
    try:
        train = _rows(arrays[0][:, None], arrays[1], classes)
        test = _rows(arrays[2][:, None], arrays[3], classes)
    except (ValueError, IndexError) as error:
        raise InputError(f"The MNIST files beside {path} are damaged: one {error}.") from None
    return DataSet(train, test, classes, f"MNIST, from {path.name} and the files beside it")


def read_npz(path: Path, classes: tuple[str, ...] | None = None, title: str = "Arrays") -> DataSet:
    """Reads an .npz file with x_train, y_train (or images, labels), and perhaps x_test, y_test (or held_out,
    held_out_labels).

    Args:
        classes: the names of labels 0, 1, ...; None: the sorted distinct labels are the classes.

    Raises:
        InputError: an array is missing, or is no images ([n, h, w], [n, h, w, c] or [n, c, h, w] with 1 or 3 channels,
            uint8 or floats in [0, 1]) or no labels ([n], whole numbers).
    """
    arrays, names_held = npz_arrays(path)
    train_keys = ("x_train", "y_train") if "x_train" in arrays else ("images", "labels")
    for key in train_keys:
        if key not in arrays:
            raise InputError(
                f"{path} holds {', '.join(names_held) or 'nothing'}, but no {key}; x_train and y_train (or images and "
                "labels) are needed."
            )
    values = np.unique(npz_labels(path, train_keys[1], arrays)) if classes is None else np.arange(len(classes))
    names = classes or tuple(str(value) for value in values)
    train = _npz_rows(path, train_keys, arrays, values)
    test_keys = ("x_test", "y_test") if "x_test" in arrays else ("held_out", "held_out_labels")
    half = [key for key in test_keys if key in arrays]
    if len(half) == 1:
        other = next(key for key in test_keys if key not in arrays)
        raise InputError(f"{path} holds {half[0]}, but no {other}.")
    test = _npz_rows(path, test_keys, arrays, values) if set(test_keys) <= arrays.keys() else None
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(f"{path}: the images of {train_keys[0]} and {test_keys[0]} have different shapes.")
    return DataSet(train, test, names, f"{title}, from {path.name}")


def _members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The named files of a folder or a .tar.gz, read into memory; nothing is unpacked to disk."""
    try:
        if path.is_dir():
            files = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
        else:
            with tarfile.open(path) as archive:
                files = {
                    Path(member.name).name: content.read()
                    for member in _bounded(archive)
                    if Path(member.name).name in names and (content := archive.extractfile(member)) is not None
                }
    except DAMAGE as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    for name in names:
        if name not in files:
            raise InputError(f"{path} is damaged: it holds no {name}.")
    return files


def _bounded(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, no links, as long as they are not larger than any data set read here."""
    total = 0
    for member in archive:
        total += member.size
        if total > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
        if member.isfile():
            yield member


class _Recorder:
    """Stands in for NumPy's array and type while a pickle is read: keeps what it is given, does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Reads a pickle without executing anything it asks for.

    Why this is safe: a pickle can only call what `find_class` hands out (the persistent ids and the extension registry,
    the other two ways, are undefined and empty). This `find_class` imports nothing: for the three names that a pickled
    NumPy array needs it hands out the recorder above, for any other it refuses.
    """

    def find_class(self, module: str, name: str) -> Any:
        array = module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct"
        if array or (module == "numpy" and name in {"ndarray", "dtype"}):
            return _Recorder
        raise ValueError(f"wants to run {module}.{name}, which is refused")


def _check_memo(content: bytes) -> None:
    """Raises `ValueError` for a pickle that numbers its objects beyond their count.

    Python makes a table up to the largest number: a few bytes could ask for 32 GB.
    """
    largest = 0
    with suppress(ValueError):  # the reader says what else is wrong
        for operation, number, _ in pickletools.genops(content):
            if operation.name in ("PUT", "LONG_BINPUT") and isinstance(number, int):
                largest = max(largest, number)
    if largest > len(content):
        raise ValueError("numbers more objects than it holds")


def _cifar_pickle(content: bytes, kind: Cifar) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        _check_memo(content)
        batch = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
        labels = np.array(batch[kind.label_key], dtype=np.int64)
        _, shape, dtype, fortran, pixels = batch[b"data"].state
        if dtype.arguments[0] != b"u1":
            raise ValueError("holds pixels that are no bytes")
        images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
        return images.reshape(-1, 3, 32, 32), labels
    except ValueError:
        raise
    except Exception as error:  # a broken pickle can raise anything, says its documentation
        raise ValueError(f"is no CIFAR batch ({type(error).__name__}: {' '.join(str(error).split())})") from None


def _cifar_binary(content: bytes, kind: Cifar) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, kind.label_bytes + 3 * 32 * 32)
    return rows[:, kind.label_bytes :].reshape(-1, 3, 32, 32), rows[:, kind.label_bytes - 1]


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An array in the IDX format: 0, 0, 8 (for bytes), the number of axes, their lengths (big-endian), the bytes."""
    path = folder / f"{name}.gz"
    path = path if path.is_file() else folder / name
    if not path.is_file():
        raise InputError(f"{folder} holds {MNIST_IMAGES} but no {name} (or {name}.gz), which belongs to it.")
    try:
        content = path.read_bytes()
        content = _unpacked(content) if path.suffix == ".gz" else content
        if content[:3] != b"\0\0\x08":
            raise ValueError("it is no IDX file of bytes")
        start = 4 + 4 * content[3]
        return np.frombuffer(content[start:], np.uint8).reshape(struct.unpack(f">{content[3]}I", content[4:start]))
    except (*DAMAGE, IndexError, struct.error) as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def _unpacked(content: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(MOST_BYTES + 1)
    if len(unpacked) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    return unpacked


def _check_sizes(path: Path, keys: Sequence[str]) -> None:
    """Raises `InputError` for arrays that are larger than the memory, before any is read, and for no archive at all."""
    if not path.is_file():
        raise InputError(f"{path} is no file." if path.exists() else f"There is no {path}.")
    try:
        with path.open("rb") as file:
            is_archive = zipfile.is_zipfile(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if not is_archive:
        raise InputError(f"{path} cannot be read as .npz: it is no archive of arrays.")
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist() if item.filename.removesuffix(".npy") in keys)
    check_memory(size, torch.device("cpu"), f"The arrays in {path}", "fewer or smaller images")


def npz_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The arrays of an .npz file that can be images or labels, by name; and the names of all that it holds."""
    try:
        _check_sizes(path, NPZ_KEYS)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names = tuple(content)
            return {key: np.asarray(content[key]) for key in NPZ_KEYS if key in names}, names  # bytes where no .npy is
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path} is damaged: it claims to hold more than the memory does.") from None
    except (*DAMAGE, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}.") from None


def _npz_rows(path: Path, keys: tuple[str, str], arrays: dict[str, NDArray[Any]], values: NDArray[Any]) -> Rows:
    images, labels = npz_images(path, keys[0], arrays[keys[0]]), npz_labels(path, keys[1], arrays)
    if not np.isin(labels, values).all():
        unknown = labels[~np.isin(labels, values)][0]
        raise InputError(f"{path}: {keys[1]} has label {unknown}, which is none of the {len(values)} classes.")
    try:
        return _rows(images, np.searchsorted(values, labels), tuple(map(str, values)))
    except ValueError as error:
        raise InputError(f"{path}: {keys[0]} {error}.") from None


def npz_images(path: Path, key: str, images: NDArray[Any]) -> NDArray[Any]:
    """Any accepted layout as [n, c, h, w]; where both ends could be the channels, the last axis is."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"{path}: {key} has shape {list(images.shape)}, not [n, h, w], [n, h, w, c] or [n, c, h, w] with 1 or 3 "
            "channels."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f" or not np.all((images >= 0) & (images <= 1)):
        raise InputError(f"{path}: {key} must be uint8 (0 to 255) or floats in [0, 1], not {_range(images)}.")
    return images.astype(np.float32)


def _range(array: NDArray[Any]) -> str:
    return f"{array.dtype} from {array.min():g} to {array.max():g}" if array.dtype.kind in "iuf" else str(array.dtype)


def npz_labels(path: Path, key: str, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Whole numbers, one an image, [n]."""
    labels = arrays[key]
    if labels.dtype.kind not in "iub" or labels.shape[:1] != (labels.size,):
        raise InputError(
            f"{path}: {key} must be whole numbers, one per image, not {labels.dtype} {list(labels.shape)}."
        )
    if labels.size and labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"{path}: {key} has label {labels.max()}, which is too large.")
    return labels.reshape(-1).astype(np.int64)


def npz_targets(path: Path, key: str, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Real numbers, one an image, [n]."""
    targets = arrays[key]
    if targets.shape[:1] != (targets.size,) or not np.isfinite(targets).all():
        raise InputError(f"{path}: {key} must be finite numbers, one per image, not {list(targets.shape)}.")
    return targets.reshape(-1).astype(np.float32)


def _rows(images: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]) -> Rows:
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"holds {len(images)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"holds labels outside 0 to {len(classes) - 1}")
    return Rows(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))
