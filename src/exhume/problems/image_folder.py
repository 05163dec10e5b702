"""Your own images, a folder per class (default: trained on half of each class)."""

import re
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from exhume.errors import InputError
from exhume.problems import Problem, Selection
from exhume.problems.datasets import DataSet, Rows
from exhume.problems.npz import own_problem

GREY = {"1", "L", "LA"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read. Others may start a program: Pillow goes by the content, and hands PostScript to Ghostscript."""
MOST_PIXELS = 2**24
"""Of an image, 4096 x 4096: no network is trained on larger ones, and a small file can claim to hold far more."""
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError)
"""What Pillow raises for a damaged file."""


def load(selection: Selection) -> Problem:
    """The image files in each sub-folder, in natural order of their names; the sub-folders name the classes.

    Where the folder holds `train` and `held_out`, each with a folder per class, the first is trained on and the second
    is the control; else the first images of each class are trained on, and those after them are the control.
    Every image counts, also where classes differ in their number, unless `per_class` asks for fewer.
    Grey where every image is grey, RGB otherwise; an alpha channel is dropped, and 16 bits a channel become 8. Turned
    as their EXIF data say. All images must have the same size.
    """
    if selection.data_dir is None or not Path(selection.data_dir).is_dir():
        raise InputError(
            "The problem image-folder needs a folder that holds a folder of images for each class: give its path in "
            "place of the problem's name, or as --data-dir."
        )
    folder = Path(selection.data_dir)
    if (folder / "train").is_dir() and (folder / "held_out").is_dir():
        files, held_out = _files_by_class(folder / "train"), _files_by_class(folder / "held_out")
        if list(files) != list(held_out):
            raise InputError(f"{folder / 'train'} and {folder / 'held_out'} must hold the same classes.")
        source = f"Your images, from {folder.name}: train, and held_out as the control"
        images = read_images([path for group in (files, held_out) for of_class in group.values() for path in of_class])
        split = sum(map(len, files.values()))
        test = Rows(images[split:], _labels(held_out))
        data = DataSet(Rows(images[:split], _labels(files)), test, tuple(files), source)
        return own_problem("image-folder", data, selection.per_class)
    files, per_class = _files_by_class(folder), selection.per_class
    needed = {name: of_class[: per_class and 2 * per_class] for name, of_class in files.items()}
    rows = Rows(read_images([path for of_class in needed.values() for path in of_class]), _labels(needed))
    first = per_class or _even_half(files)
    which = "half of each class" if first is None else f"{first} of each class"
    source = f"Your images, from {folder.name}: the first {which}, and those after them as the control"
    return own_problem("image-folder", DataSet(rows, None, tuple(files), source), per_class)


def _even_half(files: dict[str, list[Path]]) -> int | None:
    """Half the number of images of a class, where all classes have the same even number."""
    counts = {len(of_class) for of_class in files.values()}
    count = counts.pop()
    return None if counts or count % 2 else count // 2


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    files = {path.name: image_files(path) for path in visible_folders(folder)}
    if len(files) < 2:
        raise InputError(f"{folder} holds {len(files)} folders, but image-folder needs one per class, two or more.")
    empty = [name for name, of_class in files.items() if not of_class]
    if empty:
        raise InputError(
            f"{folder / empty[0]} holds no image file ({', '.join(FORMATS)}), but every folder in {folder} is taken "
            "for a class."
        )
    return files


def _labels(files: dict[str, list[Path]]) -> torch.Tensor:
    return torch.tensor([label for label, of_class in enumerate(files.values()) for _ in of_class])


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The image files that lie in a folder, in natural order of their names."""
    known = [suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS]
    images = (path for path in folder.iterdir() if path.suffix.lower() in known and not path.name.startswith("."))
    return sorted(images, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def read_images(paths: list[Path]) -> torch.Tensor:
    """Images as bytes, [n, c, h, w]."""
    images = [_open(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.size != images[0].size:
            raise InputError(
                f"All images must have one size: {paths[0]} is {images[0].width}x{images[0].height}, "
                f"{path} is {image.width}x{image.height}."
            )
    mode = "L" if all(image.mode in GREY for image in images) else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode)) for image in images])
    return torch.tensor(pixels).reshape(*pixels.shape[:3], -1).permute(0, 3, 1, 2).contiguous()


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{path} is no file.")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InputError(
                    f"{path} has {file.width} x {file.height} pixels, more than the {MOST_PIXELS:,} allowed."
                )
            image = ImageOps.exif_transpose(file)
    except InputError:
        raise
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {getattr(error, 'strerror', None) or error}.") from None
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode[0] in "IF":
        raise InputError(f"{path} has more than 16 bits a channel ({image.mode}), which image-folder does not read.")
    return image
