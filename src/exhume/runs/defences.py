"""What protects: small variants of a training, each attacked in the same way, leak against accuracy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.counts import HEADLINE
from exhume.audit.scores import score
from exhume.checkpoint import Checkpoint
from exhume.defence.privacy import epsilon
from exhume.defence.training import TrainingConfig, train
from exhume.errors import InputError
from exhume.layers import BATCH_NORMS
from exhume.problems import Problem
from exhume.problems.owned import OwnedImages
from exhume.progress import ProgressCallback, no_op

AS_USUAL = TrainingConfig(lr=0.05, momentum=0.9, weight_decay=5e-4, batch_size=32, epochs=60)
"""An ordinary training, the first row of the table. The variants change one thing of it."""
LARGER = 3.0
"""Factor of the larger initialisation."""
PUBLIC_GREY = 0.5
"""What DP-SGD's network subtracts: the training mean would be published outside of the bound on epsilon."""
DELTA = 0.1
"""delta of differential privacy, times the number of images. At 1 a single image may be published as it is."""


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One way to train that may leak less.

    training: the settings; init_factor: of the initial values of dense layers and convolutions; more_images: whether
    half of the held-out images are trained on too; public_centre: whether the network subtracts PUBLIC_GREY, and
    divides by nothing, in place of what the images tell.
    """

    what: str
    training: TrainingConfig = AS_USUAL
    init_factor: float = 1.0
    more_images: bool = False
    public_centre: bool = False


DEFENCES: dict[str, Defence] = {
    "as usual": Defence(what="SGD in batches of 32, rate 0.05, momentum 0.9, weight decay 5e-4, 60 epochs"),
    "more decay": Defence(what="weight decay 1e-2", training=replace(AS_USUAL, weight_decay=1e-2)),
    "early stop": Defence(
        what="stopped when held-out accuracy has not risen for 3 epochs",
        training=replace(AS_USUAL, patience=3, evaluate_every=1),
    ),
    "larger start": Defence(what="initial values three times as large", init_factor=LARGER),
    "more images": Defence(what="half of the held-out images are trained on, too", more_images=True),
    "shifts": Defence(what="images moved by up to 2 pixels at each step", training=replace(AS_USUAL, shifts=2)),
    "dp-sgd": Defence(
        what="gradients clipped to 1, noise 1, grey subtracted in place of the mean",
        training=replace(AS_USUAL, noise=1.0, clip=1.0),
        public_centre=True,
    ),
}
"""The variants. Rates and epochs were chosen on mnist-digits."""


@dataclass(frozen=True, kw_only=True)
class DefenceRow:
    """What a variant leaked, and what it cost.

    recovered: of `images`, at NCC >= 0.9; null: of `held_out` images, by the same candidates; accuracy: on the images
    that were trained on, and on those that were not; epsilon: of differential privacy at delta = DELTA / images, of all
    that is published of the network, None without noise; message: why there are no figures; "" if there are.
    """

    name: str
    what: str
    recovered: int = 0
    images: int = 0
    null: int = 0
    held_out: int = 0
    accuracy: float = 0.0
    held_out_accuracy: float = 0.0
    epsilon: float | None = None
    message: str = ""


def compare_defences(
    network: Checkpoint,
    problem: Problem,
    method: Exhume | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress_callback: ProgressCallback = no_op,
) -> Iterator[DefenceRow]:
    """Trains a network with each row of DEFENCES, attacks it, and yields what it leaked.

    The attacker knows the initial weights: of an ordinary training they can be found (`find_start`). So the table shows
    the worst case. She also knows the mean of the images. All networks but that of DP-SGD subtract it; that one
    subtracts grey, for the bound on epsilon would not hold for a mean that is published. It holds whatever she knows
    besides, so she is told the mean there too, and the rows can be compared. Networks are trained without dropout.

        for row in exhume.compare_defences(exhume.load_checkpoint("runs/demo"), problem):
            print(row.name, row.recovered, row.null, row.held_out_accuracy)

    Args:
        network: whose layers are trained, also one that was built elsewhere; its weights do not matter.
        problem: the images; its held-out images are the control.
        method: None: `Exhume()`; that of an audit, for figures that can be compared with it.
        names: of the rows of DEFENCES that are measured; None: all.
        seed: of the initial weights, the batches and the noise.

    Raises:
        InputError: as for `check_comparable`, before anything is trained. What goes wrong with one variant is in its
            row.
    """
    check_comparable(network, problem)
    told = partial(_row, seed=seed, device=device, progress_callback=progress_callback)
    return (told(name, network, problem, method or Exhume()) for name in (DEFENCES if names is None else names))


def check_comparable(network: Checkpoint, images: Problem | OwnedImages) -> None:
    """Raises `InputError` unless variants of the network can be trained on these images, and compared."""
    labels, others = images.labels, images.held_out_labels
    if labels is None or others is None:
        raise InputError("To compare defences, give the classes of the training and the held-out images.")
    if len(images.held_out) < 2:
        raise InputError(
            f"To compare defences, give at least 2 held-out images as a control; there are {len(images.held_out)}."
        )
    if tuple(images.images.shape[1:]) != network.shape:
        raise InputError(f"The network takes images {network.shape}, not {tuple(images.images.shape[1:])}.")
    both = torch.cat([labels.double(), others.double()])
    classes = network.outputs if network.task == "multiclass" else 2
    real = network.task == "regression" and labels.is_floating_point()
    if not real and (both.min() < 0 or both.max() >= classes):
        raise InputError(
            f"To compare defences, the images must be of the network's {classes} classes, not of {int(both.max()) + 1}."
        )


def _row(
    name: str,
    network: Checkpoint,
    problem: Problem,
    method: Exhume,
    *,
    seed: int,
    device: torch.device | str,
    progress_callback: ProgressCallback,
) -> DefenceRow:
    """Trains and attacks one variant."""
    defence = DEFENCES[name]
    images = _with_more_images(problem) if defence.more_images else problem
    training = replace(defence.training, seed=seed)
    start = fresh(_before_layers(network, images, defence), seed, defence.init_factor)
    try:
        trained = train(images, training, initial=start, device=device, progress_callback=progress_callback)
        attacked = replace(trained.checkpoint, known_mean=images.images.mean(0))
        found = reconstruct(attacked, method, initial=start, device=device, progress_callback=progress_callback)
    except InputError as error:  # opacus is not installed or cannot take a layer, or the training diverged
        return DefenceRow(name=name, what=defence.what, message=str(error))
    others = images.held_out_labels
    counts = score(found, images.images, images.labels, images.held_out, held_out_labels=others)
    last = trained.history[-1]
    return DefenceRow(
        name=name,
        what=defence.what,
        recovered=counts.recovered[HEADLINE],
        images=counts.images,
        null=counts.null[HEADLINE],
        held_out=counts.held_out,
        accuracy=last.accuracy,
        held_out_accuracy=last.held_out_accuracy,
        epsilon=_epsilon(training, last.epoch, counts.images) if training.noise else None,
    )


def fresh(network: Checkpoint, seed: int, factor: float = 1.0) -> Checkpoint:
    """The network with new weights, as PyTorch initialises its layers; what is drawn, not of norms, times `factor`."""
    layers = network.build().layers
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for layer in layers.modules():
            if isinstance(layer, BATCH_NORMS):
                layer.num_batches_tracked = torch.tensor(0)  # what its reset counts from
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            if isinstance(layer, nn.Linear | nn.Conv2d):
                for parameter in layer.parameters():
                    parameter.mul_(factor)
    values = layers.state_dict()
    return replace(network, weights={name: values[name] for name in network.weights}, momentum={})


def _before_layers(network: Checkpoint, images: Problem, defence: Defence) -> Checkpoint:
    """The network that subtracts the mean of the images it is trained on, or grey; nothing else tells of them."""
    if defence.public_centre:
        grey = torch.full_like(network.centre, PUBLIC_GREY)
        return replace(network, centre=grey, scale=None, known_mean=None)
    return replace(network, centre=images.images.mean(0), known_mean=None)


def _with_more_images(problem: Problem) -> Problem:
    """Every other held-out image joins the training images."""
    return replace(
        problem,
        images=torch.cat([problem.images, problem.held_out[1::2]]),
        labels=torch.cat([problem.labels, problem.held_out_labels[1::2]]),
        held_out=problem.held_out[::2],
        held_out_labels=problem.held_out_labels[::2],
    )


def _epsilon(training: TrainingConfig, epochs: int, images: int) -> float:
    batch = min(training.batch_size or images, images)
    steps = epochs * -(-images // batch)
    return epsilon(noise=training.noise, rate=batch / images, steps=steps, delta=DELTA / images)
