"""Measures what a step costs, and prints ratios of times and of memory taken in one run.

    python -m benchmarks.speed

Shapes are those of b2 and b7 (see targets.py), with the priors that digits have in b2 and photographs in b7, and that
of the sweep in RESULTS.md. The network is untrained: what a step costs does not depend on the values of the weights.
Every time is the least of several.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exhume.architecture import as_mlp
from exhume.attack.analysis import BINARY_PRIOR, SMOOTHNESS
from exhume.attack.methods import Exhume, Reference
from exhume.attack.methods.input_subspace import REWEIGHT_EVERY
from exhume.attack.optimisation import Stepper, take_step
from exhume.attack.search import Method, Search
from exhume.attack.target import Target
from exhume.defence.gradient_descent import Descent
from exhume.defence.losses import LOSSES
from exhume.devices import WARM_UP, recorded
from exhume.networks import NetworkConfig, Task, build


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network and how many images it was trained on.

    per_class, reference_per_class: candidates of each label in a search of each method; None: its own number;
    smoothness, binary_prior: as would be read from weights that have been trained on such images, and from their mean.
    """

    image: tuple[int, int, int]
    outputs: int
    images: int
    task: Task
    widths: tuple[int, ...] = (1000, 1000)
    per_class: int | None = None
    reference_per_class: int | None = None
    smoothness: float = 0.0
    binary_prior: float = 0.0


DIGIT, PHOTOGRAPH = (1, 28, 28), (3, 32, 32)
SHAPES = {
    "b2": Shape(image=DIGIT, outputs=1, images=100, task="binary", binary_prior=BINARY_PRIOR),
    "b7": Shape(image=PHOTOGRAPH, outputs=10, images=500, task="multiclass", smoothness=SMOOTHNESS),
    "sweep": Shape(
        image=DIGIT,
        outputs=1,
        images=20,
        task="binary",
        widths=(200, 200),
        reference_per_class=20,
        binary_prior=BINARY_PRIOR,
    ),
}


def main(device: str = "cpu", steps: int = 2 * REWEIGHT_EVERY) -> None:
    """Prints one line for each ratio, with what it was measured from.

    Args:
        device: cpu or cuda.
        steps: of exhume, for one timing; of the papers' scheme a tenth.
    """
    print(f"{torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}")
    for name, shape in SHAPES.items():
        ours, theirs = ((method(shape), shape, device) for method in (exhume_method, reference_method))
        fast, slow = least(steps_of(*ours), steps), least(steps_of(*theirs), max(steps // 10, 2))
        products = least(_products_alone(step_of(*ours), device), steps)
        small, large = peak(*ours), peak(*theirs)
        print(f"{name}: reference / exhume, one step: {slow / fast:.1f} ({1e3 * slow:.1f} ms / {1e3 * fast:.2f} ms)")
        print(f"{name}: exhume's step / its matrix products: {fast / products:.2f} ({1e3 * products:.2f} ms)")
        if min(small, large) > 1:  # of small networks nothing is to be seen beside the libraries
            print(f"{name}: memory of a step, exhume / reference: {small / large:.2f} ({small:.0f} / {large:.0f} MB)")
        epochs = _epochs(shape, device)
        number = 1000 if device == "cuda" else 20
        epoch, alone = least(epochs, number), least(_products_alone(partial(epochs, 1), device), number)
        print(f"{name}: an epoch / its matrix products: {epoch / alone:.2f} ({1e6 * epoch:.0f} / {1e6 * alone:.0f} us)")


def exhume_method(shape: Shape) -> Method:
    """Our method, with what it would read from trained weights of this shape."""
    return Exhume(
        images=shape.images,
        per_class=shape.per_class,
        smoothness=shape.smoothness,
        binary_prior=shape.binary_prior,
    )


def reference_method(shape: Shape) -> Method:
    """The papers' scheme."""
    return Reference(images=shape.images, per_class=shape.reference_per_class)


def steps_of(method: Method, shape: Shape, device: str) -> Callable[[int], None]:
    """Takes so many steps of a search that is under way; on a GPU they are recorded."""
    # at the last step errors common to neurons are taken off in full
    stepper, done = Stepper([_search(method, shape, device)], torch.device(device)), count(method.steps)

    def run(steps: int) -> None:
        for _ in range(steps):
            stepper.take(next(done))

    return run


def step_of(method: Method, shape: Shape, device: str) -> Callable[[], None]:
    """Takes one step that is not recorded."""
    search = _search(method, shape, device)
    search.prepare(method.steps)

    def run() -> None:
        residual, penalty = search.objective()
        take_step(search, residual + penalty)

    return run


def _search(method: Method, shape: Shape, device: str) -> Search:
    """A search as it begins on an untrained network."""
    generator, centre = torch.Generator().manual_seed(0), torch.full(shape.image, 0.5)
    network = build(NetworkConfig(widths=shape.widths), centre, shape.outputs, generator)
    network = network.to(device, getattr(torch, method.dtype))
    target = Target(network=network, centre=network.centre.centre, task=shape.task, outputs=shape.outputs)
    return method.start(target, generator)


def _epochs(shape: Shape, device: str) -> Callable[[int], None]:
    generator = torch.Generator().manual_seed(0)
    # in the images' span, whose basis is computed once in a training and is no part of an epoch
    centre = torch.zeros(1, 1, shape.images)
    network = build(NetworkConfig(widths=shape.widths), centre, shape.outputs, generator).to(device)
    mlp = as_mlp(network)
    assert mlp is not None
    inputs = torch.randn(shape.images, shape.images, generator=generator).to(device)
    labels = (torch.arange(shape.images) % max(shape.outputs, 2)).to(device)
    slope = LOSSES["ce" if shape.outputs > 1 else "bce"].slopes(inputs.new_empty(shape.images, shape.outputs), labels)
    return Descent(mlp, inputs, slope, 1e-4, decay=0.0).advance


def least(run: Callable[[int], None], number: int, repeats: int = 5) -> float:
    """Seconds for one of so many steps: the least of several timings, after a warm-up."""
    run(WARM_UP + 1)
    seconds = []
    for _ in range(repeats):
        _wait()
        start = _clock()
        run(number)
        _wait()
        seconds.append((_clock() - start) / number)
    return min(seconds)


def _clock() -> float:
    """Seconds; with one thread on a CPU those of the processor, which other work on the machine does not lengthen."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the factors of every matrix product, replaced by others of the same shape and layout."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.pool: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__.strip("_") in {"mm", "addmm", "bmm", "baddbmm"}:
            left, right = args[-2:]
            self.factors.append((self._like(left), self._like(right)))
        return function(*args, **(kwargs or {}))

    def _like(self, factor: Tensor) -> Tensor:
        """One tensor for all factors of a shape and layout: they are not alive all at once."""
        key = (factor.shape, factor.stride(), factor.dtype, factor.device)
        if key not in self.pool:
            empty = torch.empty_strided(factor.shape, factor.stride(), dtype=factor.dtype, device=factor.device)
            self.pool[key] = empty.normal_()
        return self.pool[key]


def _products_alone(work: Callable[[], None], device: str) -> Callable[[int], None]:
    """Does the matrix products of a work so many times, and nothing else; on a GPU they are recorded."""
    with _Products() as noted:
        work()

    def products() -> None:
        for left, right in noted.factors:
            torch.matmul(left, right)

    alone = recorded(torch.device(device), products)

    def run(times: int) -> None:
        for _ in range(times):
            alone()

    return run


def peak(method: Method, shape: Shape, device: str) -> float:
    """Megabytes that steps take beyond what was there before the search began, at most, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak_here, (method, shape, device)))


def _peak_here(method: Method, shape: Shape, device: str) -> float:
    if device == "cuda":
        steps_of(method, shape, device)(3)
        return torch.cuda.max_memory_allocated() / 1e6
    tiny = Shape(image=(1, 4, 4), outputs=shape.outputs, images=2, task=shape.task)
    make = exhume_method if isinstance(method, Exhume) else reference_method
    steps_of(make(tiny), tiny, device)(3)  # libraries are loaded
    before = high_water()
    steps_of(method, shape, device)(3)
    return high_water() - before


def reset_high_water() -> None:
    """Lets `high_water` begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def high_water() -> float:
    """The most memory this process has had so far, in megabytes (Linux; getrusage would tell the parent's too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    tyro.cli(main)
