"""Signals of membership: what of the weights tells a training image from one that the network has never seen.

Membership is less than reconstruction: it asks whether an image that is at hand was among the training images.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from exhume.architecture import mlp_of
from exhume.attack.methods import Exhume
from exhume.attack.spectrum import HOMOGENEOUS, first_layer_spectrum
from exhume.checkpoint import Checkpoint
from exhume.networks import Task
from exhume.owner.examine import CHUNK, FittedImages, Labels, fit_images, margins, shares_of_weights

NEAR = 0.1
"""Pre-activation, relative to the root mean square of an image's, below which a neuron is near its hinge. Among six
measures of nearness this had the largest true-positive rate at 1 % false positives on sgd, adam and random-labels."""
LEADING_DIRECTIONS = 100
"""Strongest directions of the first layer that count as training's, where fewer stand out of its initialisation: areas
under the curve 0.91, 0.93 and 0.92 on sgd, adam and random-labels, against 0.84, 0.90 and 0.87 by what stands out."""


def signals(
    target: Checkpoint | nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Labels | None = None,
    method: Exhume | None = None,
    *,
    task: Task | None = None,
    centre: Float[Tensor, "c h w"] | None = None,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None = None,
    of_momentum: bool = False,
    chunk: int = CHUNK,
) -> dict[str, Float[Tensor, " n"]]:
    """Signals of membership, [n] each, by name: the larger, the more like a training image.

    Multipliers are fitted to all images together, so that these compete for the weights. So give training images and
    held-out ones in one call, and part the result.

        problem = exhume.load_problem("mnist-digits", exhume.Selection(per_class=5))
        trained = exhume.train(problem, exhume.TrainingConfig(epochs=500))
        images = torch.cat([problem.images, problem.held_out])
        told = exhume.signals(trained.checkpoint, images, torch.cat([problem.labels, problem.held_out_labels]))
        print({name: (values[:50].mean(), values[50:].mean()) for name, values in told.items()})

    Returns:
        "loss": minus the cross-entropy, logistic or squared loss; "margin": by how much the score of the label exceeds
        the next; "share of the weights" (or "of the change", "of the momentum"): what each image accounts for, if all
        compete; "multiplier": its multiplier; where dense layers are recognised also "within the first layer": the
        share of the image within the strongest directions of the first of them, or of what is explained in its place;
        and for activations with a hinge "neurons about to switch": the share of its neurons whose input is within 0.1
        of 0, relative to the image's root mean square.

    Args:
        images, labels, method, task, centre, initial, of_momentum, chunk: as for `examine`.

    Raises:
        InputError: as for `examine`.
    """
    known = {"task": task, "centre": centre, "initial": initial, "of_momentum": of_momentum}
    given = fit_images(target, images, labels, method or Exhume(), chunk=chunk, **known)  # type: ignore[arg-type]
    margin = margins(given, labels)
    found = {
        "loss": -_loss(given, margin),
        "margin": margin,
        f"share of the {given.of}": shares_of_weights(given, chunk),
        "multiplier": given.fit.multipliers.sum(1).abs(),
        **_first_layer(given, chunk),
    }
    return {name: values.float() for name, values in found.items()}


def _loss(given: FittedImages, margin: Tensor) -> Float[Tensor, " n"]:
    if given.target.task == "multiclass":
        return functional.cross_entropy(given.scores, given.classes, reduction="none")
    return functional.softplus(-margin) if given.target.task == "binary" else margin.square()


@torch.no_grad()
def _first_layer(given: FittedImages, chunk: int) -> dict[str, Float[Tensor, " n"]]:
    """What the first dense layer says; nothing where none is recognised."""
    mlp, explained = mlp_of(given.trained.architecture), given.target.explained_mlp
    if mlp is None or explained is None:
        return {}
    rank, space = first_layer_spectrum(explained)
    directions = space.leading(max(rank, LEADING_DIRECTIONS))
    inside, near = [], []
    for some in torch.split(given.images, chunk):
        inputs = given.trained.dense_inputs(some)
        assert inputs is not None
        inside.append(directions.share(inputs))
        near.append(_near_hinges(functional.linear(inputs, mlp.weights[0], mlp.biases[0])))
    of_hinges = {"neurons about to switch": torch.cat(near)} if mlp.activation in HOMOGENEOUS else {}
    return {"within the first layer": torch.cat(inside), **of_hinges}


def _near_hinges(z: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    """The share of an image's pre-activations that are small, relative to their root mean square."""
    return (z.abs() < NEAR * z.pow(2).mean(1, keepdim=True).sqrt()).to(z).mean(1)
