"""What closed neurons tell, as candidates."""

import math
from dataclasses import replace

import torch

from exhume.attack.closed_neurons import images_of_closed_neurons
from exhume.attack.confidence import FEWEST_DIRECTIONS
from exhume.attack.target import Target
from exhume.candidates import Candidates, Images
from exhume.metrics import measure_of
from exhume.progress import ProgressCallback

TOLD_CALIBRATION = (-3.4, 7.3)
"""Intercept and slope of the log-odds against the share of images that are told: a logistic fit (-2.35, 7.35) to those
that were right in 42 rounds on two networks (photographs by Adam), lowered for a third: 65 of 76 right of 100 images,
where that fit says 73."""


def told_by_closed_neurons(
    target: Target, found: Candidates, seed: int, progress_callback: ProgressCallback
) -> list[Candidates]:
    """What closed neurons tell of a target, from the candidates of a search of it on; [] if nothing.

    The multiplier is the length of M x / |x|^2, for an image's inputs x and the first layer M, and the explained share
    that of M's squared norm within x: what a term of this image alone would account for. Labels are the network's own,
    where gradients are taken.
    """
    generator = torch.Generator().manual_seed(seed)
    smooth = found.assumptions.smoothness > 0
    told = images_of_closed_neurons(target, found.images, generator, smooth=smooth, progress_callback=progress_callback)
    images, mlp = told.images, target.explained_mlp
    if len(images) == 0 or mlp is None:
        return []
    seen, first = images.to(target.centre), mlp.weights[0]
    with torch.no_grad():
        scores = target.network(seen)
        inputs = target.as_inputs(seen).flatten(1)
        along, length = (inputs @ first.T).norm(dim=1), inputs.norm(dim=1)
    labels = scores.argmax(1) if target.task == "multiclass" else (scores.flatten() > 0).long()
    sign = 2 * labels - 1 if target.task == "regression" else 1
    one = replace(
        found,
        images=images.cpu(),
        labels=labels.cpu(),
        multipliers=(sign * along / length.pow(2)).float().cpu(),
        explained=(along / length / first.norm()).pow(2).float().cpu(),
        confidence=torch.full((len(images),), told_confidence(len(images), told.directions, images)),
    )
    return [one]


def told_confidence(count: int, directions: int, images: Images) -> float:
    """The chance that an image which zeros tell is right: the more of all are told, the less is left to gates.

    NaN for points, which have no contrast to compare, and for few directions.
    """
    if measure_of(images) != "ncc" or directions < FEWEST_DIRECTIONS:
        return math.nan
    intercept, slope = TOLD_CALIBRATION
    return 1 / (1 + math.exp(-intercept - slope * count / directions))
