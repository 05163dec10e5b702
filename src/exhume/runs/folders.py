"""The same work in many run folders, on workers that may have disks of their own.

A worker with another disk gets what the folder holds, works in a folder of its own, and gives back what has changed.
This process alone writes the run folders then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from exhume.progress import ProgressCallback, ProgressDisplay, no_display
from exhume.records import PART, remove, replace_files
from exhume.runs.claim import CLAIM, claim
from exhume.runs.tables import Row
from exhume.tuning.workers.protocol import Workers

Task = TypeVar("Task")
FolderWork = Callable[[Path, Task, ProgressCallback], Row]
"""Does a task in a folder, or what is missing of it, and returns its figures."""
Contents = Mapping[str, bytes | None]
"""Files by their paths in a folder; None: it is gone."""


@dataclass(frozen=True, kw_only=True)
class Visit(Generic[Task]):
    """A task that has been done in a folder, and its figures."""

    task: Task
    folder: Path
    row: Row


def map_folders(
    work: Callable[[Path, Any, ProgressCallback], Row],
    tasks: Iterable[tuple[Path, Any]],
    *,
    workers: Workers,
    count: int = 1,
    device: str = "auto",
    display: ProgressDisplay = no_display,
) -> Iterator[Visit[Any]]:
    """Does each task in its folder, `count` at a time, and yields each as soon as it has ended.

    Raises:
        InputError: a folder cannot be written, or another command works there; what `workers.map` raises.
    """
    workers.check(device)
    if workers.same_disk:
        for done in workers.map(partial(_here, work), tasks, count=count, device=device, display=display):
            yield Visit(task=done.item[1], folder=done.item[0], row=done.result)
        return
    packed = ((folder, task, _contents(folder)) for folder, task in tasks)
    for done in workers.map(partial(_elsewhere, work), packed, count=count, device=device, display=display):
        folder, task, _ = done.item
        _put(folder, done.fetch())
        yield Visit(task=task, folder=folder, row=done.result)


def _here(
    work: Callable[[Path, Any, ProgressCallback], Row], item: tuple[Path, Any], progress_callback: ProgressCallback
) -> tuple[Row, None]:
    return work(*item, progress_callback), None


def _elsewhere(
    work: Callable[[Path, Any, ProgressCallback], Row],
    item: tuple[Path, Any, Mapping[str, bytes]],
    progress_callback: ProgressCallback,
) -> tuple[Row, Contents]:
    """The work in a folder of this machine, by the same name; and what it has changed."""
    folder, task, before = item
    with TemporaryDirectory(prefix="exhume-") as place:
        there = Path(place) / folder.name
        for name, content in before.items():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(content)
        row, after = work(there, task, progress_callback), _contents(there)
    changed: dict[str, bytes | None] = {name: new for name, new in after.items() if before.get(name) != new}
    return row, changed | dict.fromkeys(before.keys() - after.keys())


def _contents(folder: Path) -> dict[str, bytes]:
    """What the files in a folder hold, by their paths in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name != CLAIM and not path.name.startswith(PART)
    }


def _put(folder: Path, changed: Contents) -> None:
    """Brings the folder up to date: what is gone first, then files by their folders, records after what they name."""
    with claim(folder):
        for name, content in changed.items():
            if content is None:
                remove(folder / name)
        new = {folder / name: content for name, content in changed.items() if content is not None}
        in_order = sorted(new, key=lambda path: (path.parent, path.suffix == ".json", path))
        for _, paths in groupby(in_order, key=lambda path: path.parent):
            replace_files({path: new[path] for path in paths})
