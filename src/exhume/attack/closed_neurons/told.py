"""What closed neurons tell, as candidates."""

from dataclasses import replace

import torch

from exhume.attack.closed_neurons import images_of_closed_neurons
from exhume.attack.target import Target
from exhume.candidates import Candidates
from exhume.progress import ProgressCallback


def told_by_closed_neurons(
    target: Target, found: Candidates, seed: int, progress_callback: ProgressCallback
) -> list[Candidates]:
    """What closed neurons tell of a target, from the candidates of a search of it on; [] if nothing.

    The multiplier is the length of M x / |x|^2, for an image's inputs x and the first layer M, and the explained share
    that of M's squared norm within x: what a term of this image alone would account for.
    """
    generator = torch.Generator().manual_seed(seed)
    smooth = found.assumptions.smoothness > 0
    images = images_of_closed_neurons(
        target, found.images, generator, smooth=smooth, progress_callback=progress_callback
    )
    mlp = target.explained_mlp
    if len(images) == 0 or mlp is None:
        return []
    seen, first = images.to(target.centre), mlp.weights[0]
    with torch.no_grad():
        scores = target.network(seen)
        inputs = target.as_inputs(seen).flatten(1)
        along, length = (inputs @ first.T).norm(dim=1), inputs.norm(dim=1)
    labels = scores.argmax(1) if target.task == "multiclass" else (scores.flatten() > 0).long()
    one = replace(
        found,
        images=images.cpu(),
        labels=labels.cpu(),
        multipliers=(along / length.pow(2)).float().cpu(),
        explained=(along / length / first.norm()).pow(2).float().cpu(),
        confidence=torch.full((len(images),), torch.nan),
    )
    return [one]
