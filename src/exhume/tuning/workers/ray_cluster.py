"""Work on a Ray cluster: each item is a task, which Ray does again where a worker or a node dies."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any, ClassVar

import torch

from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.progress import ProgressCallback, ProgressDisplay, no_op
from exhume.tuning.workers.protocol import Done

RETRIES = 5
"""Times that a task is done again: enough for nodes that come and go, and a task that kills its workers ends."""

CONNECT_SECONDS = 10.0
"""Until a cluster that does not answer counts as none."""
REFUSED = "If it asks for a token, set RAY_AUTH_MODE=token, with its token in ~/.ray/auth_token."
"""Ray says so of itself only in its log. `ray start --head` asks for one wherever there is such a file."""
MISSING = InputError("Ray is not installed; install exhume again with the extra [ray].")


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A Ray cluster; `local` starts one of this machine's processors, which ends with the work.

    Each item has one thread, and a GPU of its own if it needs one. Results travel by themselves. A bulk stays in the
    object store of the node where it was made, until it is fetched or given up.
    """

    name: ClassVar[str] = "ray"
    same_disk: ClassVar[bool] = False

    address: str = "local"

    def check(self, device: str) -> None:
        """Says nothing of a cluster's devices: the nodes have their own, and some nodes may not be there yet."""
        if find_spec("ray") is None:
            raise MISSING
        if self.address == "local":
            choose_device(device)
        _check_address(self.address)

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,
        display: ProgressDisplay,  # steps do not travel
    ) -> Iterator[Done[Any, Any, Any]]:
        """As `Workers.map`; what a node or a worker loses is done again, RETRIES times."""
        left = iter(items)
        with _connected(self.address) as ray:
            gpus = 1 if device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU")) else 0
            task = ray.remote(_task).options(num_returns=2, num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
            shared, under_way = ray.put(work), {}

            def begin(item: Any) -> None:
                result, bulk = task.remote(shared, item)
                under_way[result] = (item, bulk)

            try:
                for item in islice(left, count):
                    begin(item)
                while under_way:
                    (ended,), _ = ray.wait([*under_way], num_returns=1)
                    item, bulk = under_way.pop(ended)
                    yield Done(item=item, result=_gotten(ray, ended), fetch=partial(_gotten, ray, bulk))
                    del bulk  # its node may forget it
                    for following in islice(left, 1):
                        begin(following)
            finally:
                for result in under_way:
                    ray.cancel(result, force=True)


def _task(work: Callable[[Any, ProgressCallback], tuple[Any, Any]], item: Any) -> tuple[Any, Any]:
    """One item, in a process of a node."""
    torch.set_num_threads(1)
    return work(item, no_op)


def _gotten(ray: Any, what: Any) -> Any:
    """What a reference stands for.

    Raises:
        InputError: the work raised it, or Ray gave it up.
    """
    try:
        return ray.get(what)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # of the task itself
        if not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"Ray gave up a task after {RETRIES} retries ({reason}); the same command goes on with what has not ended."
        ) from None


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Within, this process is a driver of the cluster, if it is not one already.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    with _signals_kept():
        try:
            import ray  # noqa: PLC0415
        except ImportError:
            raise MISSING from None
        begun = not ray.is_initialized()
        if begun:
            _connect(ray, address)
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    _check_address(address)
    # Ray would else tell its makers of every cluster that is started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"The Ray cluster {address} cannot be reached: {reason}. {REFUSED}") from None


def _check_address(address: str) -> None:
    """Raises `InputError` where nobody listens: Ray would wait there for ten minutes and more."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not (host and port.isdecimal()):
        raise InputError(f"{address} is no address of a Ray cluster; it is HOST:PORT, auto or local.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"The Ray cluster {address} cannot be reached: {error}.") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Afterwards SIGTERM does what it did: Ray would end the process at once, before its state is saved."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
