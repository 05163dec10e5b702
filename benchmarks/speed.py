"""Measures what a step costs, and prints ratios of times and of memory taken in one run.

    python benchmarks/speed.py

Shapes are those of b2 and b7 (see run.py), with the priors that digits have in b2 and photographs in b7, and that of
the sweep in RESULTS.md. The weights are those of an untrained network: what a step costs does not depend on what is in
them. Every time is the least of several.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exhume.descent import descend
from exhume.losses import LOSSES
from exhume.methods import METHODS, Reconstruction, resolve
from exhume.methods.ground import Search, Target
from exhume.methods.subspace import REWEIGHTED, SubspaceSearch
from exhume.methods.trusted import BILEVEL, SMOOTHNESS
from exhume.networks import Network, Task, build
from exhume.solver import take_step


@dataclass(frozen=True)
class Shape:
    """A network and how many images it was trained on.

    per_class: candidates of each label in the papers' scheme, None for our own number; smoothness, bilevel: as would be
    read from weights that have been trained on such images, and from their mean.
    """

    image: tuple[int, int, int]
    outputs: int
    images: int
    task: Task
    widths: tuple[int, ...] = (1000, 1000)
    per_class: int | None = None
    smoothness: float = 0.0
    bilevel: float = 0.0


SHAPES = {
    "b2": Shape((1, 28, 28), 1, 100, "binary", bilevel=BILEVEL),
    "b7": Shape((3, 32, 32), 10, 500, "multiclass", smoothness=SMOOTHNESS),
    "sweep": Shape((1, 28, 28), 1, 20, "binary", widths=(200, 200), per_class=20, bilevel=BILEVEL),
}


def main(device: str = "cpu", steps: int = 2 * REWEIGHTED) -> None:
    """Prints one line for each ratio, with what it was measured from.

    Args:
        device: cpu or cuda.
        steps: of exhume, for one timing; of the papers' scheme a tenth.
    """
    print(f"{torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}")
    for name, shape in SHAPES.items():
        ours, theirs = ((method, shape, device) for method in ("exhume", "reference"))
        fast, slow = least(steps_of(*ours), steps), least(steps_of(*theirs), max(steps // 10, 2))
        products = least(_products_alone(steps_of(*ours), steps), 1) / steps
        small, large = peak(*ours), peak(*theirs)
        print(f"{name}: reference / exhume, one step: {slow / fast:.1f} ({1e3 * slow:.0f} ms / {1e3 * fast:.1f} ms)")
        print(f"{name}: exhume's step / its matrix products: {fast / products:.2f} ({1e3 * products:.1f} ms)")
        if min(small, large) > 1:  # of small networks nothing is to be seen beside the libraries
            print(f"{name}: memory of a step, exhume / reference: {small / large:.2f} ({small:.0f} / {large:.0f} MB)")
        epochs = _epochs(shape, device)
        epoch, alone = least(epochs, 20), least(_products_alone(epochs, 20), 1) / 20
        print(f"{name}: an epoch / its matrix products: {epoch / alone:.2f} ({1e3 * epoch:.1f} / {1e3 * alone:.1f} ms)")


def search(method: str, shape: Shape, device: str) -> Search:
    """A search as `reconstruct` would start it, on an untrained network."""
    generator = torch.Generator().manual_seed(0)
    config = Reconstruction(method=method, images=shape.images)
    if method == "exhume":
        config = replace(config, smoothness=shape.smoothness, bilevel=shape.bilevel)
    else:
        config = replace(config, per_class=shape.per_class)
    config = resolve(config, shape.task)
    centre = torch.full(shape.image, 0.5)
    dtype = getattr(torch, config.dtype or "")
    network = build(Network(widths=shape.widths), centre, shape.outputs, generator).to(device, dtype)
    target = Target(network=network, centre=network.centre.centre, task=shape.task, outputs=shape.outputs)
    return METHODS[method].start(target, config, generator)


def steps_of(method: str, shape: Shape, device: str) -> Callable[[int], None]:
    """Takes so many steps of a search that is under way."""
    under_way = search(method, shape, device)
    if isinstance(under_way, SubspaceSearch):
        under_way.evaluations = under_way.steps  # as at the end, where errors common to neurons are taken off in full

    def run(count: int) -> None:
        for _ in range(count):
            take_step(under_way, sum(under_way.objective()))

    return run


def _epochs(shape: Shape, device: str) -> Callable[[int], None]:
    generator = torch.Generator().manual_seed(0)
    # in the images' span, whose basis is computed once in a training and is no part of an epoch
    network = build(Network(widths=shape.widths), torch.zeros(1, 1, shape.images), shape.outputs, generator).to(device)
    layers = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    inputs = torch.randn(shape.images, shape.images, generator=generator).to(device)
    labels = (torch.arange(shape.images) % max(shape.outputs, 2)).to(device)
    loss = LOSSES["ce" if shape.outputs > 1 else "bce"].loss

    def slope(scores: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            value = loss(scores.requires_grad_(), labels)
        return value, torch.autograd.grad(value, scores)[0]

    return lambda count: descend(layers, inputs, slope, lambda _: 1e-4, decay=0.0, epochs=count)


def least(run: Callable[[int], None], count: int, repeats: int = 5) -> float:
    """Seconds for one of `count` steps: the least of several timings, after a warm-up."""
    run(min(count, 3))
    seconds = []
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        run(count)
        _wait()
        seconds.append((time.perf_counter() - start) / count)
    return min(seconds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Products(TorchDispatchMode):
    """Notes the factors of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        if name.strip("_") in {"mm", "addmm", "bmm", "baddbmm"}:
            left, right = args[-2:]
            # of the same shape and layout, but not alive all at once
            self.factors.append((_like(left), _like(right)))
        return function(*args, **(kwargs or {}))


_POOL: dict[tuple[object, ...], Tensor] = {}


def _like(factor: Tensor) -> Tensor:
    key = (factor.shape, factor.stride(), factor.dtype, factor.device)
    if key not in _POOL:
        _POOL[key] = torch.empty_strided(
            factor.shape, factor.stride(), dtype=factor.dtype, device=factor.device
        ).normal_()
    return _POOL[key]


def _products_alone(run: Callable[[int], None], count: int) -> Callable[[int], None]:
    """The matrix products of `count` steps and nothing else."""
    with _Products() as noted:
        run(count)

    def alone(_: int) -> None:
        for left, right in noted.factors:
            torch.matmul(left, right)

    return alone


def peak(method: str, shape: Shape, device: str) -> float:
    """Megabytes that steps take beyond what was there before the search began, at most, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak_here, (method, shape, device)))


def _peak_here(method: str, shape: Shape, device: str) -> float:
    if device == "cuda":
        steps_of(method, shape, device)(3)
        return torch.cuda.max_memory_allocated() / 1e6
    steps_of(method, Shape((1, 4, 4), shape.outputs, 2, shape.task), device)(3)  # libraries are loaded
    before = _high_water()
    steps_of(method, shape, device)(3)
    return _high_water() - before


def _high_water() -> float:
    """The most memory this process has had so far, in megabytes (Linux; getrusage would tell the parent's too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    tyro.cli(main)
