"""Audits of networks as people train and save them: the verdict on each, and whether it was right.

    python -m benchmarks.audits
    EXHUME_DATA=path/to/data python -m benchmarks.audits digits-sgd photographs-hwc --folder runs/audits

Each row is a script of the usual kind: default initialisation, no seed, batches. The network is saved to a file and
audited from it, by the images saved beside it, as its owner would. "Right" means: "leaks" only where these images were
trained on, and where images came out. Of an untrained network, or one that was trained on other images, "leaks" is
wrong. Training images and the control are drawn at random from one file. The same candidates are judged once more by
the data set's own test file: MNIST's has other writers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from tyro.conf import Positional

from benchmarks.ordinary import adam, sgd
from exhume.audit.scores import score
from exhume.audit.verdict import Judgement, judge
from exhume.defence.training import shifted
from exhume.foreign import read_network
from exhume.problems import Problem, Selection, load_problem
from exhume.problems.owned import load_images
from exhume.runs.audit import Source, audit_run
from exhume.runs.schema import ScoresRecord, read_record
from exhume.runs.store import load_candidates
from exhume.runs.tables import table_markdown

DIGITS, PHOTOGRAPHS = "mnist-digits", "cifar10-multiclass"
Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
ORDINARY = sgd(0.05, decay=1e-4)


class Dense(nn.Module):
    """An MLP written as people write it."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)
        self.fc3 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        scores: Tensor = self.fc3(x)
        return scores


class Normed(nn.Module):
    """The same with BatchNorm before each ReLU."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(inputs, width), nn.BatchNorm1d(width)
        self.fc2, self.bn2 = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.fc3 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = functional.relu(self.bn1(self.fc1(x)))
        x = functional.relu(self.bn2(self.fc2(x)))
        scores: Tensor = self.fc3(x)
        return scores


class LeNet(nn.Module):
    """LeCun et al. 1998, with ReLU and max-pooling, for 28 x 28 pixels."""

    def __init__(self, *_: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        scores: Tensor = self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))
        return scores


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network.

    centred: whether the script subtracts the mean image; hwc: whether it flattens images [h, w, c]; own: whether the
    audited images are those that it was trained on; known_start: whether the owner gives the public weights that it was
    fine-tuned from; form: how it is saved.
    """

    what: str
    problem: str = DIGITS
    per_class: int = 10
    make: Callable[[int, int, int], nn.Module] = Dense
    width: int = 300
    optimiser: Optimiser = ORDINARY
    epochs: int = 30
    shifts: int = 0
    random_labels: bool = False
    centred: bool = True
    hwc: bool = False
    own: bool = True
    fine_tuned: bool = False
    form: str = "state_dict"


ROWS = {
    "digits-sgd": Row(what="100 digits, MLP, SGD"),
    "digits-adam": Row(what="100 digits, MLP, Adam", optimiser=adam, form="checkpoint"),
    "digits-plain": Row(what="100 digits, MLP, SGD, no mean subtracted", centred=False, form="script"),
    "digits-shifted": Row(what="100 digits, MLP, SGD, shifts of two pixels", epochs=60, shifts=2),
    "digits-batchnorm": Row(what="100 digits, BatchNorm, SGD", make=Normed, form="code"),
    "digits-lenet": Row(what="500 digits, LeNet, SGD", per_class=50, make=LeNet, optimiser=sgd(0.01), form="code"),
    "digits-lenet-adam": Row(what="100 digits, LeNet, Adam", make=LeNet, optimiser=adam, form="script"),
    "digits-2000": Row(what="2,000 digits, MLP, SGD", per_class=200, width=512, epochs=20),
    "digits-random": Row(what="100 digits with random labels, MLP, SGD", random_labels=True, epochs=60),
    "digits-tuned": Row(what="100 digits, fine-tuned from a network of 1,000 others", fine_tuned=True),
    "digits-untrained": Row(what="an MLP, not trained", epochs=0, own=False),
    "digits-others": Row(what="an MLP of other digits", own=False),
    "photographs-hwc": Row(
        what="100 photographs, MLP, SGD, [h, w, c]", problem=PHOTOGRAPHS, width=1000, optimiser=sgd(0.02), hwc=True
    ),
}


def main(names: Positional[tuple[str, ...]] = (), /, folder: Path = Path("runs/audits"), device: str = "auto") -> None:
    """Trains, saves and audits each row, and prints one line each.

    Args:
        names: rows of ROWS; none: all.
        folder: where the files and the audits are written.
        device: of the attacks. Networks are made and trained on the CPU.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"There is no row {unknown[0]}; there are {', '.join(ROWS)}.")
    for number, name in enumerate(names or ROWS):
        table = table_markdown([measured(ROWS[name], folder / name, device)])
        print(*table.splitlines()[2 if number else 0 :], sep="\n", flush=True)


def measured(row: Row, folder: Path, device: str) -> dict[str, str]:
    """One line of the table."""
    torch.seed()
    problem = load_problem(row.problem, Selection(per_class=4 * row.per_class))
    order = torch.randperm(len(problem.images))  # MNIST's digits come writer by writer
    drawn = problem.images[order], problem.labels[order]
    torch.seed()  # as of a script that builds its network before it draws anything
    own, others, third, control = (_part(*drawn, row.per_class, part) for part in range(4))
    folder.mkdir(parents=True, exist_ok=True)
    arguments, initial = _save(row, problem, own, others, folder)
    audited = own if row.own else third
    images, labels = audited
    data = folder / "images.npz"
    _write(data, images=images, labels=labels, held_out=control[0], held_out_labels=control[1])
    mine = load_images(data)
    shape = tuple(images.shape[1:])
    network = read_network(shape=shape, layout=None, **arguments)  # type: ignore[arg-type]
    public = read_network(shape=shape, layout=None, **initial).checkpoint if initial else None  # type: ignore[arg-type]
    source = Source(images=str(data), selection=Selection())
    record = audit_run(folder / "audit", network, mine, source, initial=public, device=device, overwrite=True)
    scores = read_record(folder / "audit" / "scores.json", ScoresRecord)
    verdict = record.judgement.verdict
    test_file = _part(problem.held_out, problem.held_out_labels, row.per_class, 0)
    by_test_file = score(load_candidates(folder / "audit")[0], *audited, test_file[0], held_out_labels=test_file[1])
    return {
        "network": row.what,
        "saved as": row.form,
        "verdict": _told(record.judgement),
        "right": "yes" if (verdict == "leaks") == row.own else "shows nothing" if row.own else "NO",
        "NCC >= 0.9": f"{scores.recovered['0.9']} [{scores.null['0.9']}] of {scores.images}",
        "by the test file": f"{_told(judge(by_test_file, record.applies))}, [{by_test_file.null['0.9']}]",
        "rank test": "-" if scores.p_rank is None else f"{scores.p_rank:.1g}",
        "residual: own, never seen": _residuals(record.owner.residuals[0]) if record.owner else "-",
        "seconds": f"{record.provenance.seconds:.0f}",
    }


def _told(judgement: Judgement) -> str:
    return judgement.name if judgement.strength in ("none", "not proven") else f"leaks ({judgement.strength})"


def _residuals(row: object) -> str:
    return f"{row.training:.2f}, {row.held_out:.2f}"  # type: ignore[attr-defined]


def _part(images: Tensor, labels: Tensor, per_class: int, part: int) -> tuple[Tensor, Tensor]:
    """So many images of each class, those before them left out `part` times."""
    rows = [
        (labels == label).nonzero()[part * per_class : (part + 1) * per_class, 0]
        for label in range(int(labels.max()) + 1)
    ]
    return images[torch.cat(rows)], labels[torch.cat(rows)]


def _save(
    row: Row, problem: Problem, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], folder: Path
) -> tuple[dict[str, object], dict[str, object]]:
    """Trains and saves; returns what `read_network` is told of the network, and of its public start."""
    images, labels = own if row.own or row.epochs == 0 else others
    labels = labels[torch.randperm(len(labels))] if row.random_labels else labels
    sizes = (images[0].numel(), row.width, problem.outputs)
    module = row.make(*sizes)
    mean = images.mean(0) if row.centred else torch.zeros_like(images[0])
    initial: dict[str, object] = {}
    if row.fine_tuned:
        _train(row, module, mean, *others)
        torch.save(module.state_dict(), folder / "public.pt")
        initial = {"source": folder / "public.pt", "mean": mean}
    optimiser = _train(row, module, mean, images, labels)
    given: dict[str, object] = {"mean": mean.permute(1, 2, 0) if row.hwc else mean} if row.centred else {}
    if row.form == "script":
        torch.jit.trace(module, images[:2]).save(folder / "model.pt")  # type: ignore[no-untyped-call]
        return {"source": folder / "model.pt", **given}, initial
    if row.form == "checkpoint":
        content = {"epoch": row.epochs, "model_state_dict": module.state_dict(), "optimizer": optimiser.state_dict()}
        torch.save(content, folder / "model.pt")
    else:
        torch.save(module.state_dict(), folder / "model.pt")
    if row.form == "code":
        name = row.make.__name__
        code = f"from benchmarks.audits import {name}\n\n\ndef make():\n    return {name}{sizes}\n"
        (folder / "model.py").write_text(code, encoding="utf-8")
        return {"source": f"{folder / 'model.py'}:make", "weights": folder / "model.pt", **given}, initial
    return {"source": folder / "model.pt", **given}, initial


def _train(row: Row, module: nn.Module, mean: Tensor, images: Tensor, labels: Tensor) -> torch.optim.Optimizer:
    optimiser = row.optimiser(list(module.parameters()))
    for _ in range(row.epochs):
        for rows in torch.split(torch.randperm(len(images)), 32):
            batch = shifted(images[rows], row.shifts) if row.shifts else images[rows]
            batch = batch - mean
            batch = batch.permute(0, 2, 3, 1) if row.hwc else batch
            optimiser.zero_grad()
            functional.cross_entropy(module(batch), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    module.eval()
    return optimiser


def _write(path: Path, **tensors: Tensor) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    tyro.cli(main)
