"""The owner's images of a network that was trained elsewhere: every image counts, and no control is made of them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from exhume.errors import InputError
from exhume.metrics import measure_of, similarity
from exhume.networks import Task
from exhume.problems import PROBLEMS, Problem, Selection, load_problem
from exhume.problems.datasets import unit_range
from exhume.problems.formats import npz_arrays, npz_images, npz_labels, npz_targets
from exhume.problems.image_folder import image_files, read_images, visible_folders

Split = Literal["half", "rest"]
TRAINING = ("train", "training")
HELD_OUT = ("held_out", "held-out", "heldout", "held", "test", "val", "valid", "validation")
"""Names of the folders of a data set that hold its two parts."""
KEYS = (("x_train", "y_train"), ("images", "labels"), ("X", "y"), ("X", "Y"), ("x", "y"))
HELD_OUT_KEYS = (("x_test", "y_test"), ("held_out", "held_out_labels"))
"""Names of the arrays of an .npz file that hold them: images and labels."""
OWN = ("image-folder", "npz")
"""Problems that are a user's own data, by the path that data_dir is."""
SAME_IMAGE = 0.999
"""NCC from which a held-out image is a training image, saved anew perhaps. Of 5,000 digits and of 200 faces no
two come nearer than 0.983."""
MOST_NAMED = 5
"""Folders or arrays that a note lists."""
ROWS = 500
"""Training images that are compared with all held-out ones at once."""


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The images that a network was trained on, and images of the same kind that it never saw.

    images: [n, c, h, w] in [0, 1]; labels: [n], class indices (real targets for regression), None where they are not
    known; names: of each image, its file or its row of an array; held_out, held_out_labels: the same for the control,
    of no images (k = 0) where none were given; classes: their names, empty where they are not known; task: None where
    the classes do not tell it; source: where the images came from, how many of each, and which is the control; notes:
    what was left out or looks odd, a sentence each, which the source says too.

        mine = exhume.load_images("photographs")
        print(mine.source, mine.names[0], len(mine.held_out))
    """

    name: str
    images: Float[Tensor, "n c h w"]
    labels: Shaped[Tensor, " n"] | None
    names: tuple[str, ...]
    held_out: Float[Tensor, "k c h w"]
    held_out_labels: Shaped[Tensor, " k"] | None
    held_out_names: tuple[str, ...]
    classes: tuple[str, ...]
    task: Task | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A digest of all images and labels, to tell when they, or the control, have changed."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.held_out, self.held_out_labels):
            digest.update(b"unknown" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class _Part(NamedTuple):
    """Images as they are stored, their labels (None: not known; real targets have no classes), the names of both.

    notes: what lies beside them and was not read.
    """

    images: Shaped[Tensor, "n c h w"]
    labels: Shaped[Tensor, " n"] | None
    names: tuple[str, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_images(
    images: str | Path,
    *,
    held_out: str | Path | None = None,
    split: Split | None = None,
    selection: Selection | None = None,
) -> OwnedImages:
    """Loads the images that a network elsewhere was trained on; every one of them counts.

    They may be a folder with a folder of images for each class; a folder of images alone, of unknown classes; a folder
    with `train` and `held_out` (or `test`, `val`) of either kind; an .npz file with `images` and `labels` (or
    `x_train` and `y_train`, or X and y) and perhaps `held_out` (`x_test`); a .py file with `load(selection)`; or a
    problem's name. Classes may have any number of images.

    Held-out images are never made of training images. They are those of `held_out`, or of the part that is named so,
    or those that `split` names. Else there are none, and nothing that is counted has a control.

        mine = exhume.load_images("photographs", held_out="photographs-of-later")
        scores = exhume.score(candidates, mine.images, mine.labels, mine.held_out)

    Args:
        held_out: a folder or an .npz file of images that the network never saw.
        split: "half": only the first half of each class was trained on, and the others are held out; "rest": only the
            first `per_class` of each class were, and the others are held out.
        selection: per_class: only the first so many of each class were trained on; classes: only the first so many.

    Raises:
        InputError: nothing can be read there, the control is given twice, sizes differ, or a held-out image is (nearly)
            the same as a training image; the sentence names it.
    """
    selection, place = selection or Selection(), str(images)
    if place in OWN and selection.data_dir is not None:
        place = selection.data_dir
    if place in PROBLEMS or place.endswith(".py"):
        if split is not None:
            raise InputError(f"{place} says itself what is held out; a split is for folders and .npz files.")
        owned = _of_problem(load_problem(place, selection))
        owned = _without_twins(owned) if place in PROBLEMS else owned
        if held_out is not None:
            owned = replace(owned, held_out=owned.held_out[:0], held_out_labels=None, held_out_names=())
    else:
        owned = _owned(Path(place), *_selected(*_read(Path(place)), selection, split))
    if held_out is not None:
        if len(owned.held_out):
            raise InputError(f"{place} holds held-out images of its own; give them in one place only.")
        owned = _with_held_out(owned, Path(held_out))
    _check(owned)
    return _with_notes(owned)


def _with_notes(owned: OwnedImages) -> OwnedImages:
    """With a note on images that are there more than once, and all notes in the source."""
    repeats = len(owned.images) - len({hashlib.blake2b(image.tobytes()).digest() for image in owned.images.numpy()})
    notes = owned.notes
    if repeats:
        are = "is a repeat" if repeats == 1 else "are repeats"
        notes += (f"{repeats} of your {len(owned.images)} images {are} of another one, and counted all the same.",)
    return replace(owned, notes=notes, source=". ".join([owned.source, *notes]).removesuffix("."))


def _of_problem(problem: Problem) -> OwnedImages:
    return OwnedImages(
        name=problem.name,
        images=problem.images,
        labels=problem.labels,
        names=tuple(f"training image {i}" for i in range(len(problem.images))),
        held_out=problem.held_out,
        held_out_labels=problem.held_out_labels,
        held_out_names=tuple(f"held-out image {i}" for i in range(len(problem.held_out))),
        classes=problem.classes,
        task=problem.task,
        source=problem.source,
    )


# ---- Reading


def _read(path: Path) -> tuple[_Part, _Part | None]:
    """Training images, and the part that is named as held out."""
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.exists():
        raise InputError(f"{path} is no folder of images, no .npz and no .py file.")
    raise InputError(f"There is no {path}.")


def _read_folder(folder: Path) -> tuple[_Part, _Part | None]:
    training = [folder / name for name in TRAINING if (folder / name).is_dir()]
    if not training:
        return _images_in(folder), None
    held_out = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
    control = [_images_in(part) for part in held_out]
    used = [training[0].name, *(part.name for part in held_out)]
    others = [path.name for path in (*visible_folders(folder), *image_files(folder)) if path.name not in used]
    return _images_in(training[0])._replace(notes=_unread(folder, others, used)), _joined(control) if control else None


def _unread(place: Path, others: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """A note on what lies beside the images and is not read, in a tuple; () where nothing does."""
    if not others:
        return ()
    named = f"{', '.join(others[:MOST_NAMED])}{', ...' * (len(others) > MOST_NAMED)}"
    read = f"{', '.join(used[:-1])} and {used[-1]} are" if len(used) > 1 else f"{used[0]} is"
    return (f"{place.name} holds {named} too, which {'is' if len(others) == 1 else 'are'} not read: only {read}.",)


def _images_in(folder: Path) -> _Part:
    """The images of each class, where there are folders, or those of the folder itself."""
    folders, loose = visible_folders(folder), image_files(folder)
    if folders and loose:
        raise InputError(
            f"{folder} holds images ({loose[0].name}) beside folders ({folders[0].name}); put all images into a folder "
            "for each class, or all into one."
        )
    if not folders and not loose:
        raise InputError(f"{folder} holds no image files.")
    of_class = {one.name: image_files(one) for one in folders}
    empty = [name for name, files in of_class.items() if not files]
    if empty:
        raise InputError(f"{folder / empty[0]} holds no image file, but every folder in {folder} is taken for a class.")
    files = [path for group in of_class.values() for path in group] or loose
    labels = [label for label, group in enumerate(of_class.values()) for _ in group]
    return _Part(
        images=read_images(files),
        labels=torch.tensor(labels) if folders else None,
        names=tuple(path.relative_to(folder).as_posix() for path in files),
        classes=tuple(of_class),
    )


def _read_npz(path: Path) -> tuple[_Part, _Part | None]:
    arrays, names = npz_arrays(path)
    labelled = [pair for pair in KEYS if set(pair) <= arrays.keys()]
    keys = next((pair for pair in (*labelled, *KEYS) if pair[0] in arrays), None)
    if keys is None:
        held = ", ".join(names) or "nothing"
        raise InputError(
            f"{path} holds {held}; the images are looked for under images, x_train, X or x, and their labels under "
            "labels, y_train, y or Y."
        )
    control = next((pair for pair in HELD_OUT_KEYS if pair[0] in arrays), None)
    used = [key for key in (*keys, *(control or ())) if key in arrays]
    training = _npz_part(path, keys, arrays)._replace(
        notes=_unread(path, [name for name in names if name not in used], used)
    )
    return training, None if control is None else _npz_part(path, control, arrays)


def _npz_part(path: Path, keys: tuple[str, str], arrays: dict[str, np.ndarray]) -> _Part:
    images = torch.tensor(npz_images(path, keys[0], arrays[keys[0]]))
    names = tuple(f"{keys[0]}[{i}]" for i in range(len(images)))
    if keys[1] not in arrays:
        return _Part(images, None, names, ())
    is_real = arrays[keys[1]].dtype.kind == "f"
    labels = npz_targets(path, keys[1], arrays) if is_real else npz_labels(path, keys[1], arrays)
    if len(labels) != len(images):
        raise InputError(f"{path}: {keys[0]} holds {len(images)} images and {keys[1]} {len(labels)} labels.")
    if is_real:
        return _Part(images, torch.tensor(labels), names, ())
    values, indices = np.unique(labels, return_inverse=True)
    return _Part(images, torch.tensor(indices.reshape(-1)), names, tuple(map(str, values)))


def _joined(parts: Sequence[_Part]) -> _Part:
    """Several parts of one data set; labels are kept where all have the same classes."""
    if len(parts) == 1:
        return parts[0]
    pixels = _alike([part.images for part in parts], "The held-out images")
    known = [part.labels for part in parts if part.labels is not None and part.classes == parts[0].classes]
    labels = torch.cat(known) if len(known) == len(parts) else None
    names = tuple(name for part in parts for name in part.names)
    return _Part(torch.cat(pixels), labels, names, parts[0].classes if labels is not None else ())


# ---- Which are training images, which are the control


def _selected(
    training: _Part, control: _Part | None, selection: Selection, split: Split | None
) -> tuple[_Part, _Part | None, str]:
    """The training images, the control, and where the control came from, in words."""
    if selection.classes is not None:
        training = _rows(training, _labelled(training, "classes") < selection.classes)
        control = control and _rows(control, _labelled(control, "classes") < selection.classes)
    if split is not None and control is not None:
        raise InputError("There are held-out images already, so no split is needed; leave it out.")
    if (split == "rest") and selection.per_class is None:
        raise InputError('The split "rest" holds out what is beyond per_class (--per-class), which is missing.')
    if split == "half" and selection.per_class is not None:
        raise InputError('The split "half" takes half of each class; with per_class say "rest".')
    if selection.per_class is None and split is None:
        return training, control, "held out by the data set" if control else ""
    kept = _first(training, selection.per_class)
    others = _rows(training, ~kept) if split is not None else control
    if split is not None and not len(_rows(training, ~kept).images):
        raise InputError("No image is left for the split to hold out.")
    words = {"half": "the second half, which the owner says was not trained on", None: "held out by the data set"}
    rest = f"those beyond {selection.per_class} of each class, which the owner says were not trained on"
    return _rows(training, kept), others, (words.get(split, rest) if others else "")


def _first(part: _Part, per_class: int | None) -> Tensor:
    """Which images are the first `per_class` of their class, or in its first half, rounded up."""
    labels = part.labels
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(len(part.images), dtype=torch.long)
    if per_class is not None:
        labels = _labelled(part, "per_class")
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        rows = torch.nonzero(labels == label)[:, 0]
        if per_class is not None and len(rows) < per_class:
            raise InputError(
                f"Class {part.classes[int(label)]} has {len(rows)} images, fewer than the {per_class} asked for."
            )
        kept[rows[: per_class or -(-len(rows) // 2)]] = True
    return kept


def _labelled(part: _Part, what: str) -> Tensor:
    if part.labels is None or part.labels.is_floating_point():
        raise InputError(f"The images have no classes, so {what} cannot choose among them.")
    return part.labels


def _rows(part: _Part, chosen: Tensor) -> _Part:
    names = tuple(name for name, keep in zip(part.names, chosen.tolist(), strict=True) if keep)
    return part._replace(
        images=part.images[chosen], labels=None if part.labels is None else part.labels[chosen], names=names
    )


def _owned(path: Path, training: _Part, control: _Part | None, chosen: str) -> OwnedImages:
    if not len(training.images):
        raise InputError(f"{path} holds no images.")
    classes = training.classes
    owned = OwnedImages(
        name=path.name,
        images=unit_range(training.images),
        labels=training.labels,
        names=training.names,
        held_out=unit_range(training.images[:0]),
        held_out_labels=None,
        held_out_names=(),
        classes=classes,
        task=None if len(classes) < 2 else "binary" if len(classes) == 2 else "multiclass",
        source=f"The owner's images, from {path.name}: {_counted(training)}",
        notes=training.notes,
    )
    return owned if control is None else _beside(owned, control, chosen)


def _with_held_out(owned: OwnedImages, path: Path) -> OwnedImages:
    """The same images with the control from another place: its training part, where it has two."""
    training, control = _read(path)
    both = _joined([training, control]) if control else training
    return _beside(replace(owned, notes=(*owned.notes, *training.notes)), both, f"from {path.name}")


def _beside(owned: OwnedImages, control: _Part, origin: str) -> OwnedImages:
    images, held_out = _alike([owned.images, unit_range(control.images)], "Training and held-out images")
    index = {name: label for label, name in enumerate(owned.classes)}
    known = control.labels is not None and owned.labels is not None and set(control.classes) <= set(index)
    real = known and control.labels is not None and control.labels.is_floating_point()
    return replace(
        owned,
        images=images,
        held_out=held_out,
        held_out_labels=control.labels
        if real
        else (
            torch.tensor([index[control.classes[int(label)]] for label in control.labels])
            if known and control.labels is not None
            else None
        ),
        held_out_names=control.names,
        source=f"{owned.source}; {len(held_out)} held-out images, {origin}",
    )


def _counted(part: _Part) -> str:
    if part.labels is None:
        return f"{len(part.images)} of unknown class"
    if part.labels.is_floating_point():
        return f"{len(part.images)}, with real targets"
    counts = Counter(part.labels.tolist()).values()
    each = f"{min(counts)} of each" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} of each"
    return f"{len(part.images)}, {each} of {len(counts)} class{'es' * (len(counts) > 1)}"


def _alike(several: Sequence[Tensor], what: str) -> list[Tensor]:
    """Of one shape; grey images beside coloured ones become coloured."""
    channels = max(images.shape[1] for images in several)
    same = [images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images for images in several]
    shapes = sorted({tuple(images.shape[1:]) for images in same})
    if len(shapes) > 1:
        listed = " and ".join("x".join(map(str, shape)) for shape in shapes)
        raise InputError(f"{what} must have one size, and there are {listed} (channels x height x width).")
    return [images.contiguous() for images in same]


# ---- The control


def _check(owned: OwnedImages) -> None:
    """No held-out image may be a training image: the control would count what it is to be compared with."""
    twins = _twins(owned.images, owned.held_out)
    if twins:
        few = ", ".join(f"{owned.held_out_names[k]} = {owned.names[i]}" for k, i in list(twins.items())[:3])
        raise InputError(
            f"{len(twins)} of the {len(owned.held_out)} held-out images are training images too, so they are no "
            f"control ({few}{', ...' if len(twins) > 3 else ''}). Take them out, or give no held-out images."
        )


def _without_twins(owned: OwnedImages) -> OwnedImages:
    """Published data sets hold some images twice; nobody but this program chose which are held out."""
    twins = _twins(owned.images, owned.held_out)
    kept = [k for k in range(len(owned.held_out)) if k not in twins]
    left = (
        "1 held-out image that is a training image too was"
        if len(twins) == 1
        else (f"{len(twins)} held-out images that are training images too were")
    )
    return replace(
        owned,
        notes=(*owned.notes, f"{left} left out.") if twins else owned.notes,
        held_out=owned.held_out[kept],
        held_out_labels=None if owned.held_out_labels is None else owned.held_out_labels[kept],
        held_out_names=tuple(owned.held_out_names[k] for k in kept),
    )


def _twins(images: Float[Tensor, "n c h w"], held_out: Float[Tensor, "k c h w"]) -> dict[int, int]:
    """Each held-out image that is a training image, byte by byte or nearly, with that one."""
    if len(held_out) == 0:
        return {}
    rows = {image.tobytes(): i for i, image in enumerate(images.numpy())}
    twins = {k: rows[image.tobytes()] for k, image in enumerate(held_out.numpy()) if image.tobytes() in rows}
    for start in range(0, len(images) if measure_of(images) == "ncc" else 0, ROWS):
        alike = similarity(images[start : start + ROWS], held_out) >= SAME_IMAGE
        for i, k in torch.nonzero(alike).tolist():
            twins.setdefault(k, start + i)
    return dict(sorted(twins.items()))
