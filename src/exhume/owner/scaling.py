"""How the images were scaled before training: told by how well the network knows them under each scaling.

A network that was trained to the end classifies nearly all of its training images rightly, if it is given them as in
training. So a mean that was subtracted, or a deviation, shows where it was forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from exhume.checkpoint import Checkpoint

MOST_CLASSIFIED = 200
"""Images that are classified under each scaling, evenly spread: a difference that matters shows at so many."""
PLAINLY_BETTER = 0.05
"""Chance of so many images that are right under the other scaling only, below which this one is the better."""
MOSTLY = 0.9
"""Share of her images that a network knows at least under the scaling of its training."""
CLEARER = 0.5
"""Ratio of losses from which one of two scalings is preferred that let know as many images; else the simpler one is."""
SPREAD = 10.0
"""Deviation of the scores at which this loss is taken, so that a factor of all images changes it little."""
BYTE = 1 / 255
USUAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of each channel, as tutorials give them."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A way to scale images in [0, 1]: in words, by the flags of the command line, and how many images it lets know.

    right: images that the network classifies rightly under it.
    """

    words: str
    flags: str
    right: int


@dataclass(frozen=True, kw_only=True)
class ScalingCheck:
    """How many of `images` the network classifies rightly as it was read, and under the scaling that suits them best.

    p_value: the chance of so many images that are right under the better scaling only, if both were alike (sign test,
    one-sided, times the number of scalings); best: None where no scaling is better.
    """

    images: int
    right: int
    best: Scaling | None
    p_value: float

    @property
    def is_plain(self) -> bool:
        """Whether the network was plainly trained under the other scaling."""
        best = self.best
        return best is not None and self.p_value < PLAINLY_BETTER and best.right >= MOSTLY * self.images


def check_scaling(
    network: Checkpoint, images: Float[Tensor, "n c h w"], labels: Shaped[Tensor, " n"] | None
) -> ScalingCheck | None:
    """Whether the network knows the images better under another scaling than that of the checkpoint.

    None where that cannot be told: the labels are not known or real numbers, or the images do not fit.

        check = exhume.check_scaling(exhume.load_checkpoint("runs/demo"), problem.images, problem.labels)
        print(check.right, check.images, check.best)

    Args:
        images: in [0, 1], those that the network was trained on.
        labels: class indices.
    """
    from scipy.stats import binomtest  # noqa: PLC0415

    if labels is None or labels.is_floating_point() or tuple(images.shape[1:]) != network.shape:
        return None
    rows = torch.linspace(0, len(images) - 1, min(MOST_CLASSIFIED, len(images))).round().long()
    some, classes, mean = images[rows], labels[rows], images.mean(0)
    now = _right(network, some, classes)
    tried = [
        (*_right(replace(network, centre=centre, scale=scale), some, classes), words, flags)
        for words, flags, centre, scale in _scalings(mean)
    ]
    right, loss, words, flags = tried[0]
    for one in tried[1:]:
        more = int(one[0].sum()) - int(right.sum())
        if more > 0 or (more == 0 and one[1] < CLEARER * loss):
            right, loss, words, flags = one
    gained, lost = int((right & ~now[0]).sum()), int((now[0] & ~right).sum())
    best = Scaling(words=words, flags=flags, right=int(right.sum())) if gained > lost else None
    chance = len(tried) * binomtest(gained, gained + lost, alternative="greater").pvalue if best else 1.0
    return ScalingCheck(images=len(rows), right=int(now[0].sum()), best=best, p_value=min(1.0, float(chance)))


@torch.no_grad()
def _right(network: Checkpoint, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Which images are classified rightly, and the loss by scores of one size."""
    scores = network.build().float()(images)
    scores = SPREAD * scores / scores.std().clamp_min(torch.finfo(scores.dtype).tiny)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long() == labels, float(functional.softplus(-scores[:, 0] * (2 * labels - 1)).mean())
    return scores.argmax(1) == labels, float(functional.cross_entropy(scores, labels.long()))


def _scalings(mean: Float[Tensor, "c h w"]) -> Iterator[tuple[str, str, Tensor, Tensor | None]]:
    """The usual ways to scale images, the simpler first: words, flags, what is subtracted, what is divided by."""
    nothing, ones = torch.zeros_like(mean), torch.ones_like(mean)
    yield "as they are in [0, 1]", "neither --mean nor --std", nothing, None
    yield "with their mean image subtracted", "--mean images", mean, None
    yield "scaled to [-1, 1]", "--mean 0.5 --std 0.5", 0.5 * ones, 0.5 * ones
    yield "as bytes, 0 to 255", f"--std {BYTE:.7f}", nothing, BYTE * ones
    yield "as bytes, their mean image subtracted", f"--mean images --std {BYTE:.7f}", mean, BYTE * ones
    for name, (centre, scale) in USUAL.items():
        if len(centre) == len(mean):
            flags = f"--mean {' '.join(map(str, centre))} --std {' '.join(map(str, scale))}"
            mu, sigma = (torch.tensor(values)[:, None, None].expand_as(mean) for values in (centre, scale))
            yield f"with the mean and the deviation of {name}", flags, mu, sigma
