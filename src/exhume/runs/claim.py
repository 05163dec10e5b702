"""Who works in a run folder: one command at a time. What a killed one has left there is cleared away.

The claim is a file in the folder that names the process: its number, its host, and when both began. The system's lock
on the file ends with the process, however it ends. Where a file system keeps no locks, or none between hosts, the name
tells.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from exhume.errors import InputError
from exhume.records import PART, remove

P = ParamSpec("P")
R = TypeVar("R")

CLAIM = ".exhume-claim"
"""The file that says who works in a folder."""
LONGEST_CLAIM = 4096
"""Bytes of it that are read."""


_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""The folders that this command has to itself already: a stage of several may call them."""


def alone(stage: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[Path, P], R]:
    """The same stage, which has the run folder, its first argument, to itself while it works.

    Raises:
        InputError: another process works in the folder, or the folder cannot be written.
    """

    @wraps(stage)
    def claimed(folder: Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        place = folder.resolve()
        if place in _held.get():
            return stage(folder, *args, **kwargs)
        with claim(folder):
            token = _held.set(_held.get() | {place})
            try:
                return stage(folder, *args, **kwargs)
            finally:
                _held.reset(token)

    return claimed


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Within, no other process works in the folder, which is made if it is not there.

    Raises:
        InputError: another process does, or the folder cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, but a run is a folder.")
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_myself()).encode(), 0)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.") from None
    try:
        for part in folder.glob(f"{PART}*"):
            remove(part)
        yield
    finally:
        with suppress(OSError):
            (folder / CLAIM).unlink()
        os.close(file)
        for path in made:  # a command that was refused leaves nothing behind
            with suppress(OSError):
                path.rmdir()


def _locked(folder: Path) -> int:
    """The claim's file, locked; what it says is known to be of no process that lives."""
    import fcntl  # noqa: PLC0415

    path = folder / CLAIM
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            locked = _lock(fcntl, file, folder)
            if _same_file(file, path):
                _check_dead(_holder(file), folder, locked=locked)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has just removed it: another claim has its name now, or none


def _lock(fcntl: Any, file: int, folder: Path) -> bool:
    """Whether the system keeps a lock on the file; where its file system has none, the name must do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(folder, _holder(file)) from None
    except OSError:
        return False
    return True


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _holder(file: int) -> Mapping[str, Any]:
    """What a claim's file says; nothing where it says nothing that can be read."""
    try:
        content = json.loads(os.pread(file, LONGEST_CLAIM, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_dead(holder: Mapping[str, Any], folder: Path, *, locked: bool) -> None:
    """Raises `InputError` if the holder may live. Within one machine a lock would show it; between two it need not."""
    here = _myself()
    if holder.get("boot") == here["boot"]:
        pid = holder.get("pid")
        alive = not locked and pid != here["pid"] and isinstance(pid, int) and began(pid) == holder.get("began")
    else:
        alive = holder.get("host") not in (None, here["host"])
    if alive:
        raise _taken(folder, holder)


def _taken(folder: Path, holder: Mapping[str, Any]) -> InputError:
    if not holder:
        return InputError(f"Another command works in {folder}; wait until it ends, or choose another folder.")
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    elsewhere = "" if holder.get("host") == platform.node() else f" If it has been killed, remove {folder / CLAIM}."
    return InputError(
        f"Another command works in {folder} ({who}); wait until it ends, or choose another folder.{elsewhere}"
    )


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "began": began(os.getpid()), "host": platform.node(), "boot": _boot()}


def _boot() -> str:
    """Which start of which machine this is, the same in all its containers; else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def began(pid: int) -> str | None:
    """When a process of this host began, in the system's words; None: there is no such process.

    A number alone does not name a process: the system gives it again.
    """
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # the command's name, in brackets, may hold anything; the start time is the 20th field after it
            return status.read_text(errors="replace").rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return None
    asked = ["/bin/ps", "-o", "lstart=", "-p", str(int(pid))]
    words = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 a fixed program, a number
    return words.stdout.strip() or None
