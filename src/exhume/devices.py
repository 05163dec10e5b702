"""Where to compute, and how to do it without waiting for Python."""

import gc
from collections.abc import Callable, Sequence
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
