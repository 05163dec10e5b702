"""What protects: small variants of a training, each attacked in the same way, leak against accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.scores import score
from exhume.checkpoint import Checkpoint
from exhume.defence.privacy import epsilon
from exhume.defence.training import TrainingConfig, train
from exhume.errors import InputError
from exhume.problems import Problem
from exhume.progress import ProgressCallback, no_op

BATCH = 32
AS_USUAL = TrainingConfig(lr=0.05, momentum=0.9, weight_decay=5e-4, batch_size=BATCH, epochs=60)
"""An ordinary training, the first row of the table. The variants change one thing of it."""
LARGER = 3.0
"""Factor of the larger initialisation."""


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One way to train that may leak less.

    training: the settings; init_factor: of all initial values; more_images: whether half of the held-out images are
    trained on too.
    """

    what: str
    training: TrainingConfig = AS_USUAL
    init_factor: float = 1.0
    more_images: bool = False


DEFENCES: dict[str, Defence] = {
    "as usual": Defence(what="SGD in batches of 32, momentum 0.9, weight decay 5e-4, 60 epochs"),
    "more decay": Defence(what="weight decay 1e-2", training=replace(AS_USUAL, weight_decay=1e-2)),
    "early stop": Defence(
        what="stopped when held-out accuracy no longer rises",
        training=replace(AS_USUAL, patience=3, evaluate_every=1),
    ),
    "larger start": Defence(what="initial values three times as large", init_factor=LARGER),
    "more images": Defence(what="half of the held-out images are trained on, too", more_images=True),
    "shifts": Defence(what="images moved by up to 2 pixels at each step", training=replace(AS_USUAL, shifts=2)),
    "dp-sgd": Defence(what="gradients clipped to 1, noise 1", training=replace(AS_USUAL, noise=1.0, clip=1.0)),
}
"""The variants. Rates and epochs were chosen on mnist-digits."""


@dataclass(frozen=True, kw_only=True)
class DefenceRow:
    """What a variant leaked, and what it cost.

    recovered: of `images`, at NCC >= 0.9; null: of `held_out` images, by the same candidates; accuracy: on the images
    that were trained on, and on those that were not; epsilon: of differential privacy at delta = 1 / images, None
    without noise; message: why there are no figures; "" if there are.
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
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress_callback: ProgressCallback = no_op,
) -> Iterator[DefenceRow]:
    """Trains a network with each row of DEFENCES, attacks it, and yields what it leaked.

    The attacker knows the initial weights: of an ordinary training they can be found (`find_start`). So the table shows
    the worst case.

        for row in exhume.compare_defences(exhume.load_checkpoint("runs/demo"), problem):
            print(row.name, row.recovered, row.null, row.held_out_accuracy)

    Args:
        network: whose layers are trained; its weights do not matter.
        problem: the images; its held-out images are the control.
        method: None: `Exhume()`.
        seed: of the initial weights, the batches and the noise.
    """
    for name, defence in DEFENCES.items():
        images = _with_more_images(problem) if defence.more_images else problem
        training = replace(defence.training, seed=seed)
        start = fresh(replace(network, centre=images.images.mean(0)), seed, defence.init_factor)
        try:
            trained = train(images, training, initial=start, device=device, progress_callback=progress_callback)
            found = reconstruct(
                trained.checkpoint,
                method or Exhume(),
                initial=start,
                device=device,
                progress_callback=progress_callback,
            )
        except InputError as error:  # opacus is not installed, or a layer is none that it can take
            yield DefenceRow(name=name, what=defence.what, message=str(error))
            continue
        counts, last = score(found, images.images, images.labels, images.held_out), trained.history[-1]
        yield DefenceRow(
            name=name,
            what=defence.what,
            recovered=counts.recovered["0.9"],
            images=counts.images,
            null=counts.null["0.9"],
            held_out=counts.held_out,
            accuracy=last.accuracy,
            held_out_accuracy=last.held_out_accuracy,
            epsilon=_epsilon(training, last.epoch, counts.images) if training.noise else None,
        )


def fresh(network: Checkpoint, seed: int, factor: float = 1.0) -> Checkpoint:
    """The network with new weights, as PyTorch initialises its layers, times `factor`."""
    module = network.build()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in module.layers.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    weights = {name: factor * parameter.detach() for name, parameter in module.layers.named_parameters()}
    return replace(network, weights=weights)


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
    return epsilon(noise=training.noise, rate=batch / images, steps=steps, delta=1 / images)
