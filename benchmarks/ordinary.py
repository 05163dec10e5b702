"""Networks as people train them: unseeded, default initialisation, batches. Is the start found, and what comes out?

    EXHUME_DATA=path/to/data python -m benchmarks.ordinary
    EXHUME_DATA=path/to/data python -m benchmarks.ordinary digits-adam lenet-adam --repeats 2 --device cuda

Each row draws its seed from the system (`torch.seed()`). It is attacked three times with default settings: with nothing
known, with the start that `find_start` found, and with the true start. Where it is found the last two agree. A dense
network is attacked a fourth time, with the start found and the optimiser's state that a training checkpoint has beside
the weights. A network that is not recognised (BatchNorm between dense layers) is only searched for its start.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from tyro.conf import Positional

from exhume.architecture import MLP, recognise
from exhume.attack.find_start import SearchOutcome, StartSearch, find_start
from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.counts import Counts
from exhume.audit.matching import match
from exhume.audit.scores import score
from exhume.checkpoint import Checkpoint
from exhume.defence.training import shifted
from exhume.devices import choose_device
from exhume.foreign import read_network
from exhume.networks import CentredNetwork
from exhume.problems import Problem, Selection, load_problem
from exhume.runs.tables import table_markdown

WAYS = ("generator-state", "likely-seeds", "all-seeds")
"""What `exhume reconstruct` tries where the first layer shows an initialisation."""
CONFIDENT = 0.9


@dataclass(frozen=True, kw_only=True)
class Ordinary:
    """One training: images, layers behind the centring, optimiser, epochs, batches, random shifts in pixels.

    rounded: the precision in which the trained weights are kept; None: float32, as they are.
    """

    problem: str
    per_class: int
    layers: Callable[[Problem], list[nn.Module]]
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch: int = 32
    shifts: int = 0
    rounded: torch.dtype | None = None


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-2)


def sgd(lr: float, momentum: float = 0.9, decay: float = 5e-4) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum, weight_decay=decay)


def mlp(*widths: int, between: Callable[[int], list[nn.Module]] = lambda _: []) -> Callable[[Problem], list[nn.Module]]:
    """Dense layers with ReLU; `between`: what stands before each ReLU."""

    def build(problem: Problem) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Flatten()]
        before = problem.images[0].numel()
        for width in widths:
            layers += [nn.Linear(before, width), *between(width), nn.ReLU()]
            before = width
        return [*layers, nn.Linear(before, problem.outputs)]

    return build


def lenet(problem: Problem) -> list[nn.Module]:
    """LeCun et al. 1998, with ReLU and max-pooling, for 28 x 28 pixels."""
    return [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, problem.outputs)),
    ]


def strided(problem: Problem) -> list[nn.Module]:
    """Two convolutions of stride 2, and a wide dense layer, for 32 x 32 pixels in colour."""
    return [
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4096, 1000), nn.ReLU(), nn.Linear(1000, problem.outputs)),
    ]


DIGITS, PHOTOGRAPHS = "mnist-digits", "cifar10-multiclass"
ROWS = {
    "digits-sgd": Ordinary(problem=DIGITS, per_class=10, layers=mlp(300, 300), optimiser=sgd(0.05), epochs=30),
    "digits-adam": Ordinary(problem=DIGITS, per_class=10, layers=mlp(300, 300), optimiser=adam, epochs=30),
    "digits-adamw": Ordinary(problem=DIGITS, per_class=10, layers=mlp(300, 300), optimiser=adamw, epochs=30),
    "digits-dropout-sgd": Ordinary(
        problem=DIGITS,
        per_class=10,
        layers=mlp(500, 500, between=lambda _: [nn.Dropout(0.2)]),
        optimiser=sgd(0.05),
        epochs=40,
    ),
    "digits-shifted-sgd": Ordinary(
        problem=DIGITS, per_class=10, layers=mlp(300, 300), optimiser=sgd(0.05), epochs=60, shifts=2
    ),
    "digits-batchnorm-sgd": Ordinary(
        problem=DIGITS,
        per_class=10,
        layers=mlp(300, 300, between=lambda width: [nn.BatchNorm1d(width)]),
        optimiser=sgd(0.05),
        epochs=30,
    ),
    "digits-500-adam": Ordinary(problem=DIGITS, per_class=50, layers=mlp(1000, 1000), optimiser=adam, epochs=30),
    "digits-1000-sgd": Ordinary(problem=DIGITS, per_class=100, layers=mlp(512, 512), optimiser=sgd(0.05), epochs=30),
    "digits-5000-sgd": Ordinary(
        problem=DIGITS, per_class=500, layers=mlp(512, 512), optimiser=sgd(0.05), epochs=5, batch=64
    ),
    "photographs-adam": Ordinary(problem=PHOTOGRAPHS, per_class=10, layers=mlp(1000, 1000), optimiser=adam, epochs=30),
    "photographs-sgd": Ordinary(
        problem=PHOTOGRAPHS, per_class=10, layers=mlp(1000, 1000), optimiser=sgd(0.02), epochs=30
    ),
    "photographs-500-sgd": Ordinary(
        problem=PHOTOGRAPHS, per_class=50, layers=mlp(1000, 1000), optimiser=sgd(0.03, 0.0, 0.0), epochs=60
    ),
    "lenet-adam": Ordinary(problem=DIGITS, per_class=10, layers=lenet, optimiser=adam, epochs=60),
    "lenet-500-sgd": Ordinary(problem=DIGITS, per_class=50, layers=lenet, optimiser=sgd(0.01), epochs=40),
    "strided-photographs-sgd": Ordinary(
        problem=PHOTOGRAPHS, per_class=10, layers=strided, optimiser=sgd(0.01), epochs=30
    ),
}
ROWS |= {f"{name}-half": replace(ROWS[name], rounded=torch.bfloat16) for name in ("digits-sgd", "photographs-500-sgd")}


def main(names: Positional[tuple[str, ...]] = (), /, repeats: int = 1, device: str = "auto") -> None:
    """Trains and attacks each row, so many times from another seed, and prints one line each.

    Args:
        names: rows of ROWS; none: all.
        repeats: trainings of each row.
        device: of the attacks: auto, cpu or cuda. Networks are made and trained on the CPU.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"There is no row {unknown[0]}; there are {', '.join(ROWS)}.")
    for number, name in enumerate(name for name in names or ROWS for _ in range(repeats)):
        table = table_markdown([measured(name, ROWS[name], device)])
        print(*table.splitlines()[2 if number else 0 :], sep="\n", flush=True)


def measured(name: str, row: Ordinary, device: str) -> dict[str, str]:
    """One line of the table."""
    problem = load_problem(row.problem, Selection(per_class=row.per_class))
    torch.seed()
    start, network, optimiser = trained(row, problem)
    place = choose_device(device)
    began = time.perf_counter()
    outcome = find_start(network, StartSearch(ways=WAYS, device=place.type))
    seconds = time.perf_counter() - began
    truth = {key: value.detach() for key, value in start.named_parameters()}
    line = {
        "row": name,
        "accuracy, held out": " / ".join(f"{accuracy(network, *part):.2f}" for part in _parts(problem)),
        "start": _told(outcome, truth),
        "seconds": f"{seconds:.0f}",
    }
    known = {"nothing": None, "found": outcome.start.initial if outcome.start else None, "true": truth}
    for what, initial in known.items():
        attacked = recognise(network) is not None and (what == "nothing" or initial is not None)
        line[f"{what} known"] = counted(network, problem, initial, place) if attacked else "-"
    line["found, and the optimiser's state"] = "-"
    if outcome.start and isinstance(recognise(network), MLP):
        checkpoint = with_state(network, optimiser, problem)
        names = dict(zip((name for name, _ in network.named_parameters()), checkpoint.parameters, strict=True))
        initial = {names[name]: value for name, value in outcome.start.initial.items()}
        line["found, and the optimiser's state"] = counted(checkpoint, problem, initial, place)
    return line


def trained(row: Ordinary, problem: Problem) -> tuple[nn.Module, CentredNetwork, torch.optim.Optimizer]:
    """The network as it began, as training left it, and its optimiser."""
    images, labels = problem.images, problem.labels
    network = CentredNetwork(images.mean(0), row.layers(problem))
    start = copy.deepcopy(network).eval()
    optimiser = row.optimiser(list(network.parameters()))
    for _ in range(row.epochs):
        for rows in torch.split(torch.randperm(len(images)), row.batch):
            batch = shifted(images[rows], row.shifts) if row.shifts else images[rows]
            optimiser.zero_grad()
            functional.cross_entropy(network(batch), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    if row.rounded:
        network.layers.to(row.rounded).float()
    return start, network.eval(), optimiser


def with_state(network: CentredNetwork, optimiser: torch.optim.Optimizer, problem: Problem) -> Checkpoint:
    """A dense network read back from a training checkpoint as scripts save it; the mean of its images is known."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save({"model": network.layers.state_dict(), "optimizer": optimiser.state_dict()}, path)
        channels, height, width = problem.images.shape[1:]
        read = read_network(path, shape=(channels, height, width), task=problem.task).checkpoint
    return replace(read, centre=problem.images.mean(0))


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def counted(
    network: nn.Module | Checkpoint, problem: Problem, initial: Mapping[str, Tensor] | None, place: torch.device
) -> str:
    """NCC >= 0.9 and >= 0.8 [held out], and the confident candidates with how many of them are right."""
    centre = problem.images.mean(0)
    found = reconstruct(network, Exhume(), task=problem.task, centre=centre, initial=initial, device=place)
    counts: Counts = score(found, problem.images, problem.labels, problem.held_out)
    confident = found.confidence >= CONFIDENT
    best = match(found, problem.images).similarity.amax(0)
    right = int((best[confident] >= CONFIDENT).sum())
    levels = ", ".join(f"{counts.recovered[level]} [{counts.null[level]}]" for level in ("0.9", "0.8"))
    return f"{levels} of {counts.images}; confident {int(confident.sum())}, right {right}"


def _parts(problem: Problem) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (problem.images, problem.labels), (problem.held_out, problem.held_out_labels)


def _told(outcome: SearchOutcome, truth: Mapping[str, Tensor]) -> str:
    """How the start was found, and whether every value of it is right to the last bit."""
    if outcome.start is None:
        return "not found"
    right = all(torch.equal(value, truth[name]) for name, value in outcome.start.initial.items())
    unknown = f", {len(outcome.start.unknown)} parameters unknown" if outcome.start.unknown else ""
    return f"{outcome.start.way}, {'exact' if right else 'WRONG'}{unknown}"


if __name__ == "__main__":
    tyro.cli(main)
