"""Where to compute, and how to do it without waiting for Python."""

import gc
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from exhume.errors import InputError

Device = Literal["auto", "cpu", "cuda"]
WARM_UP = 3
"""Calls before a GPU's work is recorded: libraries choose their kernels and allocate in the first ones."""


def choose_device(name: str) -> torch.device:
    """The device of that name; auto: a GPU where there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no usable GPU here; use --device cpu.")
    return torch.device(name)


def check_memory(least: int, device: torch.device, what: str, flags: str) -> None:
    """Raises `InputError` where work needs at least so many bytes and the device has fewer left.

    Args:
        what: needs it, as the beginning of the sentence; flags: lower it, in words.
    """
    free = free_memory(device)
    if free is not None and least > free:
        raise InputError(
            f"{what} would need at least {least / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free; "
            f"{flags} lower it."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, as far as the system tells; None: it does not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = [_available(), _left_by_limit(), _left_in_container()]
    return min((left for left in told if left is not None), default=None)


def _available() -> int | None:
    """What the system can give without writing memory to disk."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:  # not Linux: all that there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _left_by_limit() -> int | None:
    """What `ulimit -v` leaves."""
    try:
        import resource  # noqa: PLC0415

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(limit - used, 0)


def _left_in_container() -> int | None:
    """What a control group leaves (cgroup v2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = [line.split()[1] for line in (group / "memory.stat").read_text().splitlines() if line[:5] == "file "]
    except (OSError, ValueError):  # no group, or one without a limit ("max")
        return None
    return max(limit - used + sum(map(int, cached)), 0)


def fast_products(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for float32 where the device multiplies it many times faster: GPUs, and CPUs with units for it.

    Only for conditions that hold nearly at best: bfloat16 rounds to a few thousandths.
    """
    if dtype != torch.float32:
        return dtype
    units = torch.cpu.get_capabilities()
    fast = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else units.get("amx_bf16", False) or units.get("avx512_bf16", False)
    )
    return torch.bfloat16 if fast else torch.float32


def fuses(products: torch.dtype, device: torch.device) -> bool:
    """Whether what is between products in this precision is done by kernels of our own: on GPUs, with Triton."""
    return products == torch.bfloat16 and device.type == "cuda" and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and what it compiles its launches with: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton asks
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    return find_spec("triton") is not None and compiler is not None and header.exists()


def alignment(products: torch.dtype, device: torch.device) -> int:
    """What the sizes of factors of products in this precision should be a multiple of: 16 bytes on a GPU, else 1.

    With directions and pixels filled up so, a step's products took 0.36 ms in place of 0.49 (b7, H200).
    """
    return 16 // products.itemsize if products == torch.bfloat16 and device.type == "cuda" else 1


def recorded(device: torch.device, *works: Callable[[], object]) -> Callable[[], None]:
    """Does all works at each call, one after another on a CPU.

    On a GPU they are recorded once in a CUDA graph, as branches side by side, and replayed: a launch costs almost
    nothing then. So a work must change tensors in place, and always the same ones; it may not read a tensor's value
    into Python; and works may not depend on each other. The numbers are the same to the last bit. Work that cannot be
    recorded (a user's module that looks at a value, for example) is done as on a CPU.
    """
    return _Recorded(works, device) if device.type == "cuda" else _InTurn(works)


class _InTurn:
    def __init__(self, works: Sequence[Callable[[], object]]) -> None:
        self.works = works

    def __call__(self) -> None:
        for work in self.works:
            work()


class _Recorded:
    def __init__(self, works: Sequence[Callable[[], object]], device: torch.device) -> None:
        self.works, self.device, self.calls = works, device, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.streams = [torch.cuda.Stream(device) for _ in works]  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        self.calls += 1
        with torch.cuda.device(self.device):
            if self.calls == WARM_UP + 1:
                self.graph = self._record()
            if self.graph is None:
                self._branch()
            else:
                self.graph.replay()

    def _branch(self) -> None:
        """Every work on a stream of its own, between what comes before and after."""
        main = torch.cuda.current_stream()
        for work, stream in zip(self.works, self.streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                work()
        for stream in self.streams:
            main.wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph | None:
        """The graph of all works; None if they cannot be recorded. Nothing is done yet."""
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.collect()
        gc.disable()  # a graph that is freed during a recording spoils it
        try:
            with torch.cuda.graph(graph):
                self._branch()
        except RuntimeError:
            return None
        finally:
            if collects:
                gc.enable()
        return graph
