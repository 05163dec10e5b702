"""Which candidate belongs to which image: nearest, one-to-one, by the papers' vote; and merging of near-duplicates."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from exhume.audit.assignment import largest_total
from exhume.candidates import Candidates, Images
from exhume.errors import InputError
from exhume.metrics import most_similar, similarity


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which candidate belongs to which image.

    similarity: [n, m] in [-1, 1], image by candidate; nearest: [n], the best candidate of each image (many-to-one);
    assigned: [n], one candidate for one image at most, of the largest total similarity (Kuhn 1955).
    -1 stands for no candidate; one that is not finite (a diverged run) is nobody's.
    """

    similarity: Float[Tensor, "n m"]
    nearest: Int[Tensor, " n"]
    assigned: Int[Tensor, " n"]

    @property
    def nearest_similarity(self) -> Float[Tensor, " n"]:
        """Similarity of each image and its nearest candidate, [n]; -1 where it has none."""
        return _of(self.similarity, self.nearest)

    @property
    def assigned_similarity(self) -> Float[Tensor, " n"]:
        """Similarity of each image and its one-to-one candidate, [n]; -1 where it has none."""
        return _of(self.similarity, self.assigned)


@dataclass(frozen=True, kw_only=True)
class Vote:
    """The averaged candidates of each image, [n, c, h, w], and how many they were, [n]; 0: none, and black."""

    images: Float[Tensor, "n c h w"]
    votes: Int[Tensor, " n"]


def match(candidates: Candidates | Images, images: Float[Tensor, "n c h w"]) -> Matches:
    """Finds each image's nearest candidate, and the best one-to-one assignment of candidates to images.

        >>> images = torch.eye(4).reshape(4, 1, 2, 2)
        >>> match(images.flip(0), images).assigned
        tensor([3, 2, 1, 0])

    Raises:
        InputError: there are no candidates or no images, their shapes differ, or an image leaves [0, 1].
    """
    found = comparable(candidates, images)
    usable = finite(found)
    values = masked(similarity(images, found), usable, -1.0)
    return Matches(similarity=values, nearest=_best(values, usable), assigned=assign(values, usable=usable))


def assign(*parts: Float[Tensor, "_ m"], usable: Bool[Tensor, " m"]) -> Int[Tensor, " n"]:
    """The one-to-one assignment of the largest total, [n]: the candidate of each image, -1 where it has none.

    Args:
        parts: similarities, of n images in one matrix or several.
        usable: which candidates may serve an image, [m].
    """
    assigned = torch.full((sum(map(len, parts)),), -1)
    rows, columns = largest_total(*(parts if usable.all() else [part[:, usable] for part in parts]))
    assigned[rows] = torch.nonzero(usable)[:, 0][columns]
    return assigned


def vote(candidates: Candidates | Images, images: Float[Tensor, "n c h w"], tolerance: float = 1.1) -> Vote:
    """Averages the candidates of each image, as in the papers' figures.

    A candidate belongs only to its nearest image; those within `tolerance` times the best distance are averaged. The
    distance is L2 between standardised images, of half the size (bicubic) in colour.

    Raises:
        InputError: tolerance is below 1, or as for `match`.
    """
    if not tolerance >= 1:
        raise InputError(f"tolerance must be at least 1, not {tolerance}.")
    found = comparable(candidates, images)
    distance = (2 - 2 * halved_similarity(found.double(), images)).sqrt()
    owned = (distance.argmin(0) == torch.arange(len(images))[:, None]) & finite(found)
    best = distance.where(owned, torch.inf).amin(1, keepdim=True)
    chosen = owned & (distance <= tolerance * best)
    votes = chosen.sum(1)
    weights = chosen.to(found) / votes.clamp_min(1)[:, None]
    averaged = torch.einsum("nm,mchw->nchw", weights, found.where(finite(found)[:, None, None, None], 0))
    return Vote(images=averaged, votes=votes)


def merge(candidates: Candidates | Images, threshold: float) -> Int[Tensor, " kept"]:
    """Keeps the first of every group of near-duplicates, in the order given.

    Returns:
        Indices of the finite candidates whose similarity with every one kept before is below `threshold`.
    """
    found = candidates.images if isinstance(candidates, Candidates) else candidates
    rows = torch.nonzero(finite(found))[:, 0]
    alike = similarity(found[rows], found[rows]) >= threshold
    covered = torch.zeros(len(rows), dtype=torch.bool)
    kept = []
    for i in range(len(rows)):
        if not covered[i]:
            kept.append(i)
            covered |= alike[i]
    return rows[kept]


def comparable(candidates: Candidates | Images, images: Float[Tensor, "n c h w"]) -> Images:
    """The candidates' images, once they are known to be comparable with `images`."""
    found = candidates.images if isinstance(candidates, Candidates) else candidates
    if found.shape[1:] != images.shape[1:]:
        ours, theirs = ("x".join(map(str, tensor.shape[1:])) for tensor in (found, images))
        raise InputError(f"The candidates are {ours} (channels x height x width), the images to compare with {theirs}.")
    if len(found) == 0 or len(images) == 0:
        raise InputError(f"There is nothing to match: {len(found)} candidates, {len(images)} images.")
    if not (images.is_floating_point() and images.min() >= 0 and images.max() <= 1):
        raise InputError("The images to compare with must be floating-point numbers in [0, 1].")
    return found.detach().to(images)


def masked(values: Float[Tensor, "n m"], usable: Bool[Tensor, " m"], instead: float) -> Float[Tensor, "n m"]:
    """The values, once their columns that are not usable have another one: in place, since they may be many."""
    return values if usable.all() else values.masked_fill_(~usable, instead)


def finite(images: Float[Tensor, "m c h w"]) -> Bool[Tensor, " m"]:
    """Which images are finite throughout, [m]; a diverged run leaves others."""
    low, high = images.flatten(1).aminmax(dim=1)  # which are NaN where a pixel is
    return low.isfinite() & high.isfinite()


def _best(values: Float[Tensor, "n m"], usable: Bool[Tensor, " m"]) -> Int[Tensor, " n"]:
    return values.argmax(1) if usable.any() else torch.full((len(values),), -1)


def _of(values: Float[Tensor, "n m"], chosen: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return torch.where(chosen >= 0, values.gather(1, chosen.clamp_min(0)[:, None])[:, 0], -1.0)


def halved_similarity(found: Float[Tensor, "m c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m"]:
    """The papers' comparison: colour images at half their size, where noise of single pixels does not count."""
    images, found = _halved(images), _halved(found)
    return masked(similarity(images, found), finite(found), -1.0)


def nearest_halved(found: Float[Tensor, "m c h w"], images: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """The most similar candidate of each image, all of which are finite, as by `halved_similarity`."""
    return most_similar(_halved(images), _halved(found))


def _halved(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
    if images.shape[1] != 3 or min(images.shape[2:]) < 6:
        return images
    return functional.interpolate(images, scale_factor=0.5, mode="bicubic")
