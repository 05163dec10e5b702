"""Work in processes of this machine: in this one, or in several of one thread each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

import torch

from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.progress import ProgressCallback, ProgressDisplay, no_op
from exhume.tuning.workers.protocol import Done


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes of this machine; one at a time is this process itself."""

    name: ClassVar[str] = "processes"
    same_disk: ClassVar[bool] = True

    def check(self, device: str) -> None:
        """As `choose_device`."""
        choose_device(device)

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,  # each process chooses it for itself
        display: ProgressDisplay,
    ) -> Iterator[Done[Any, Any, Any]]:
        """As `Workers.map`; a process that dies is an error."""
        return _in_turn(work, items, display) if count == 1 else _side_by_side(work, items, count)


def _in_turn(
    work: Callable[[Any, ProgressCallback], tuple[Any, Any]], items: Iterable[Any], display: ProgressDisplay
) -> Iterator[Done[Any, Any, Any]]:
    for item in items:
        with display() as progress_callback:
            result, bulk = work(item, progress_callback)
        yield _done(item, result, bulk)


def _done(item: Any, result: Any, bulk: Any) -> Done[Any, Any, Any]:
    return Done(item=item, result=result, fetch=lambda: bulk)


def _side_by_side(
    work: Callable[[Any, ProgressCallback], tuple[Any, Any]], items: Iterable[Any], count: int
) -> Iterator[Done[Any, Any, Any]]:
    left = iter(items)
    with _pool(work) as begin:
        busy = {begin(item): item for item in islice(left, count)}
        while busy:
            for end in wait(list(busy)):
                assert isinstance(end, Connection)
                item = busy.pop(end)
                outcome = _received(end)
                if isinstance(outcome, InputError):
                    raise outcome
                yield _done(item, *outcome)
                for following in islice(left, 1):
                    end.send(following)
                    busy[end] = following


def _received(end: Connection) -> Any:
    """What a worker sends.

    Raises:
        InputError: it has died.
    """
    try:
        return end.recv()
    except (EOFError, OSError):
        raise InputError(
            "A worker was killed, for lack of memory perhaps; the same command goes on with what has not ended."
        ) from None


@contextmanager
def _pool(work: Callable[[Any, ProgressCallback], tuple[Any, Any]]) -> Iterator[Callable[[Any], Connection]]:
    """A function that starts a worker with its first item; at the end all workers are ended."""
    context = multiprocessing.get_context("spawn")
    started = []

    def begin(item: Any) -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its end is heard
        started.append((process, ours))
        ours.send(item)
        return ours

    try:
        yield begin
    finally:
        for process, end in started:
            end.close()
            process.terminate()
        for process, _ in started:
            process.join()


def _serve(work: Callable[[Any, ProgressCallback], tuple[Any, Any]], end: Connection) -> None:
    """A worker process: items, one after another, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            item = end.recv()
            try:
                outcome: Any = work(item, no_op)
            except InputError as error:
                outcome = error
            end.send(outcome)


def _end_with_parent() -> None:
    """Ends this worker as soon as its parent was killed, whatever it computes: its files are those of a kill then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
