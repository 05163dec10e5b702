"""The memory of a search: a file to which Optuna appends, and which survives a kill."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhume.errors import InputError
from exhume.tuning.search_spaces import Setting

if TYPE_CHECKING:
    from optuna import Study

DAMAGED = (ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError, OSError)
"""What Optuna raises at a journal whose lines are not as it wrote them."""


def claim(journal: Path, what: Mapping[str, Any], first: Sequence[Mapping[str, Setting]], *, largest: bool) -> "Study":
    """Opens the journal for one search, which is `alone` with it.

    Args:
        what: says which search it is, in JSON's types; first: points to be tried first; largest: are best.

    Raises:
        InputError: the journal is damaged, or holds another search.
    """
    _mend(journal)
    try:
        study = open_journal(journal, largest=largest)
    except InputError:  # the disk is full
        raise
    except DAMAGED as error:
        raise InputError(f"{journal} is damaged ({error}); add --overwrite to search from the start.") from None
    if study.user_attrs.setdefault("search", what) != json.loads(json.dumps(what)):
        raise InputError(f"{journal} holds another search; add --overwrite or use another folder.")
    study.set_user_attr("search", what)
    with _quiet():
        for point in first:
            study.enqueue_trial(dict(point), skip_if_exists=True)
    return study


def unfinished(study: "Study") -> list[int]:
    """The identities of the trials that were begun and have not ended, the first first."""
    import optuna  # noqa: PLC0415

    return [trial._trial_id for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,))]


def remembers(journal: Path, what: Mapping[str, Any]) -> bool:
    """Whether the journal is of this search.

    Raises:
        InputError: it cannot be written, as it must be even to be opened.
    """
    try:
        _mend(journal)
        told = open_journal(journal, largest=False).user_attrs.get("search") if journal.exists() else None
    except InputError:
        raise
    except DAMAGED:  # damaged
        return False
    return bool(told == json.loads(json.dumps(what)))


@contextmanager
def alone(journal: Path) -> Iterator[None]:
    """Within, no other search uses the journal; the system forgets it of a process that is killed.

    Raises:
        InputError: another search uses it, or it cannot be written.
    """
    import fcntl  # noqa: PLC0415

    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        file = journal.open("ab")
    except OSError as error:
        raise InputError(f"{journal} cannot be written: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another search with {journal} is under way.") from None
        yield


def open_journal(path: Path, *, largest: bool) -> "Study":
    """The search that a journal remembers; begins one where there is no file."""
    import optuna  # noqa: PLC0415
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock  # noqa: PLC0415

    class Backend(JournalFileBackend):
        held: list[dict[str, Any]] | None = None  # by `together`

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            if self.held is not None:
                self.held += logs
                return
            try:
                super().append_logs(logs)
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror}.") from None

    with _quiet():
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(Backend(str(path), JournalFileOpenLock(str(path)))),
            study_name="search",
            direction="maximize" if largest else "minimize",
            load_if_exists=True,
        )


@contextmanager
def together(study: "Study") -> Iterator[None]:
    """What is told of trials within is written at once, or not at all: each writing waits for the disk."""
    backend: Any = vars(study._storage)["_backend"]
    held: list[dict[str, Any]] = []
    backend.held = held
    try:
        yield
    finally:
        backend.held = None
    if held:  # of nothing Optuna would write an empty line, which it cannot read
        backend.append_logs(held)


def _mend(journal: Path) -> None:
    """Takes away what a killed process can leave: its lock, under one of its names, and half a line."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, Optuna says nothing but warnings."""
    import optuna  # noqa: PLC0415

    before: Any = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
