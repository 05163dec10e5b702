"""What the weights say of images that are given: whether they satisfy the condition, and whether a search stays there.

The images come from the caller, and nothing here knows whether the network was trained on them. A caller who does know
compares her training images with as many that the network has never seen (docs/theory.md, "What the owner can see").
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from exhume.attack.activations import ScaleFree
from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target, within_momentum
from exhume.attack.objectives import choose_objective
from exhume.attack.optimisation import Stepper
from exhume.attack.reconstruct import explained_shares
from exhume.attack.residuals import relative_residual
from exhume.attack.search import FixedImages, Guess, SearchOfFixed
from exhume.attack.stationarity import gradients_in_chunks
from exhume.attack.target import Target, make_target
from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.metrics import measure_of, similarity
from exhume.networks import Task
from exhume.owner.fit import Fit, Pairs, fit

Explained = Literal["weights", "change", "momentum"]
"""What images have to explain: the weights, what training added to a known start, or an optimiser's momentum."""
Labels = Int[Tensor, " labels"] | Float[Tensor, " labels"]
CHUNK = 256
"""Images that are differentiated at a time, where memory grows with them."""
AT_ONCE = 1_000
"""Images that are compared with their partners together: all pairs of these are multiplied."""
STAY_STEPS = 150
"""Steps of the search that begins at the images. Its rates begin and end as those of an ordinary search, so that
held-out images drift off: 0 to 3 of 100 stayed within NCC 0.9, at a fifth of the rate 14 to 20 (networks demo, sgd and
adam of docs/theory.md, "What the owner can see")."""
TINY_SHARE = 1e-9
"""Multipliers count as at least this share of the largest, so that their logarithm is finite."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the weights say of n given images, with the multipliers that suit them best.

    of: what the images had to explain. "The weights" below are this.
    residual: of the method's own search, weighted as at its end, relative to what no image would leave: from 0 (the
    images explain all that it believes) to about 1 (nothing); believed: the same of each layer that it believes, by
    name; layers: norm(theta_p - G_p)^2 / norm(theta_p)^2 of every parameter p, unweighted, by name;
    multipliers: [n]; explained: [n], the share of the weights' squared norm that each image accounts for; margins: [n],
    by how much the network's score of the label exceeds the next (regression: minus the absolute error);
    inside: [n], the share of each image's squared norm, or of its features', within the subspace that is searched, NaN
    where there is none; reachable: [n], similarity of each image and its projection on this subspace, the most that any
    search within it can reach, 1 where it searches all images; stays: [n], similarity of each image and the end of a
    short search that begins at it, NaN if none was asked for.

        examined = exhume.examine(checkpoint, problem.images, problem.labels)
        at_risk = examined.explained.argsort(descending=True)[:10]
    """

    of: Explained = "weights"
    residual: float
    believed: dict[str, float]
    layers: dict[str, float]
    multipliers: Float[Tensor, " n"]
    explained: Float[Tensor, " n"]
    margins: Float[Tensor, " n"]
    inside: Float[Tensor, " n"]
    reachable: Float[Tensor, " n"]
    stays: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class FittedImages:
    """Given images with their multipliers.

    of: what they have to explain; trained: the network as training left it; target: what says what is to be explained,
    with the start where it is known; scores: of the trained network; classes: labels, or signs in regression.
    """

    of: Explained
    method: Exhume
    trained: Target
    target: Target
    images: Float[Tensor, "n c h w"]
    scores: Float[Tensor, "n k"]
    classes: Int[Tensor, " n"]
    fixed: FixedImages
    fit: Fit


def examine(
    target: Checkpoint | nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Labels | None = None,
    method: Exhume | None = None,
    *,
    task: Task | None = None,
    centre: Float[Tensor, "c h w"] | None = None,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None = None,
    of_momentum: bool = False,
    steps: int = STAY_STEPS,
    chunk: int = CHUNK,
) -> Examination:
    """Evaluates the condition of `reconstruct` at given images, and begins a short search at them.

    The order of the images changes nothing. All is computed on the CPU.

        problem = exhume.load_problem("mnist-digits", exhume.Selection(per_class=5))
        trained = exhume.train(problem, exhume.TrainingConfig(epochs=500))
        own = exhume.examine(trained.checkpoint, problem.images, problem.labels)
        held_out = exhume.examine(trained.checkpoint, problem.held_out, problem.held_out_labels)
        print(own.residual, held_out.residual, (own.stays >= 0.9).sum(), (held_out.stays >= 0.9).sum())

    Args:
        images: in [0, 1].
        labels: class indices, or the real targets of regression (indices 0 and 1 stand for -1 and 1); None: what the
            network says.
        method: whose search is asked; None: `Exhume()`.
        task, centre, initial: as for `reconstruct`.
        of_momentum: whether the images have to explain the checkpoint's momentum, in place of its weights.
        steps: of the search that begins at the images; 0: none.
        chunk: images that are differentiated at a time. It bounds the memory of all but this search, and changes
            nothing else.

    Raises:
        InputError: there are no images, they do not fit the network or the labels, or as for `reconstruct`.
    """
    known = {"task": task, "centre": centre, "initial": initial, "of_momentum": of_momentum}
    given = fit_images(target, images, labels, method or Exhume(), chunk=chunk, **known)  # type: ignore[arg-type]
    fixed, nothing = given.fixed, torch.full((len(images),), torch.nan)
    reached = given.images if fixed.projections is None else fixed.projections
    return Examination(
        of=given.of,
        residual=given.fit.residual,
        believed=fixed.by_layer(given.fit.cotangents),
        layers=_layers(given, chunk),
        multipliers=(given.fit.multipliers.sum(1) * len(images)).float(),
        explained=shares_of_weights(given, chunk).float(),
        margins=margins(given, labels).float(),
        inside=nothing if fixed.inside is None else fixed.inside.float(),
        reachable=paired_similarity(given.images, reached).float(),
        stays=_search_from(given, steps).float() if steps else nothing,
    )


def fit_images(
    attacked: Checkpoint | nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Labels | None,
    method: Exhume,
    *,
    task: Task | None,
    centre: Float[Tensor, "c h w"] | None,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None,
    of_momentum: bool,
    chunk: int,
) -> FittedImages:
    """The multipliers that suit given images best, in float64; arguments and errors are those of `examine`."""
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, not {chunk}.")
    cpu, precision = torch.device("cpu"), torch.float64
    trained = make_target(attacked, task=task, centre=centre).moved_to(cpu, precision)
    of, target = _explained(attacked, trained, initial, of_momentum=of_momentum, task=task, centre=centre)
    target = target if target is trained else target.moved_to(cpu, precision)
    _check(target, images, labels)
    images = images.detach().to(target.centre)
    scores = scores_of(trained.network, images, chunk)
    classes = _classes(trained, scores, labels)
    objective = choose_objective(method.objective, target.task, "multiclass")
    pairs = Pairs(objective=objective, labels=classes, scores=scores_of(target.network, images, chunk))
    guess = Guess(images=images, labels=classes, multipliers=pairs.even.sum(1), shares=torch.zeros_like(pairs.scores))
    search = replace(method, dtype="float64").prepared(target)(torch.Generator(), guess=guess)
    assert isinstance(search, SearchOfFixed)
    fixed = search.fix(images, chunk=chunk)
    return FittedImages(
        of=of,
        method=method,
        trained=trained,
        target=target,
        images=images,
        scores=scores,
        classes=classes,
        fixed=fixed,
        fit=fit(fixed, pairs),
    )


def _explained(
    attacked: Checkpoint | nn.Module,
    trained: Target,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None,
    *,
    of_momentum: bool,
    task: Task | None,
    centre: Float[Tensor, "c h w"] | None,
) -> tuple[Explained, Target]:
    """What the images have to explain, and the target that says it.

    Raises:
        InputError: as for `momentum_target` and `make_target`, or there is no momentum.
    """
    if of_momentum:
        if not isinstance(attacked, Checkpoint) or not attacked.momentum:
            raise InputError("There is no momentum.")
        return "momentum", momentum_target(attacked)
    if initial is None:
        return "weights", trained
    return "change", within_momentum(make_target(attacked, task=task, centre=centre, initial=initial), attacked)


def _layers(given: FittedImages, chunk: int) -> dict[str, float]:
    """The relative residual of every parameter that training changed, unweighted."""
    gate, network = ScaleFree(given.method.sharpness), given.target.network
    gradients = gradients_in_chunks(network, given.images, given.fit.cotangents, gate, chunk)
    named = [(name, p.detach()) for name, p in given.target.explained.named_parameters() if p.requires_grad]
    return {
        name: float(relative_residual([parameter], [gradient]))
        for (name, parameter), gradient in zip(named, gradients, strict=True)
        if parameter.any()
    }


def shares_of_weights(given: FittedImages, chunk: int) -> Float[Tensor, " n"]:
    """The share of the weights' squared norm that each image accounts for."""
    parts = zip(*(torch.split(part, chunk) for part in (given.images, given.fit.cotangents)), strict=True)
    return torch.cat([explained_shares(given.target, some, theirs) for some, theirs in parts])


def margins(given: FittedImages, labels: Labels | None) -> Float[Tensor, " n"]:
    """By how much the trained network's score of the label exceeds the next; regression: minus the absolute error."""
    scores, classes = given.scores, given.classes
    if given.target.task == "regression":
        return torch.zeros_like(scores[:, 0]) if labels is None else -(scores[:, 0] - _targets(labels).to(scores)).abs()
    if given.target.task == "binary":
        return scores[:, 0] * (2 * classes - 1)
    own = functional.one_hot(classes, scores.shape[1]).bool()
    return scores[own] - scores.masked_fill(own, -torch.inf).amax(1)


def _search_from(given: FittedImages, steps: int) -> Float[Tensor, " n"]:
    """Similarity of each image and where a search ends that begins at it, with its fitted multipliers."""
    method, fitted = replace(given.method, steps=steps), given.fit.multipliers
    # moving is in place
    target = copy.deepcopy(given.target).moved_to(torch.device("cpu"), getattr(torch, method.dtype))
    smallest = TINY_SHARE * float(fitted.abs().max()) or 1.0
    guess = Guess(
        images=given.images,
        labels=given.classes,
        multipliers=fitted.sum(1) * len(fitted),
        shares=fitted.clamp_min(smallest).log().expand(-1, target.outputs),
    )
    search = method.prepared(target)(torch.Generator(), guess=guess)
    stepper = Stepper([search], torch.device("cpu"))
    for step in range(steps):
        stepper.take(step)
    return paired_similarity(given.images, search.iterate().images.to(given.images))


@torch.no_grad()
def scores_of(network: nn.Module, images: Float[Tensor, "n c h w"], chunk: int) -> Float[Tensor, "n k"]:
    """The network's scores, for so many images at a time."""
    return torch.cat([network(some) for some in torch.split(images, chunk)])


def paired_similarity(images: Float[Tensor, "n c h w"], others: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Similarity of each image and the same row of the others."""
    if measure_of(images) != "ncc":
        return similarity(images, others).diagonal()
    parts = zip(torch.split(images, AT_ONCE), torch.split(others, AT_ONCE), strict=True)
    return torch.cat([similarity(some, other).diagonal() for some, other in parts])


def _classes(target: Target, scores: Tensor, labels: Labels | None) -> Int[Tensor, " n"]:
    """Class indices; in regression whether the target exceeds the output, which is the multiplier's sign."""
    if target.task == "regression":
        return (scores[:, 0] > 0 if labels is None else _targets(labels).to(scores) > scores[:, 0]).long()
    if labels is not None:
        return labels.long()
    return scores.argmax(1) if target.task == "multiclass" else (scores[:, 0] > 0).long()


def _targets(labels: Labels) -> Tensor:
    """What a regression network is to give: real targets as they are, classes 0 and 1 as -1 and 1."""
    return labels if labels.is_floating_point() else 2 * labels - 1


def _check(target: Target, images: Tensor, labels: Labels | None) -> None:
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != target.shape:
        shape = " x ".join(map(str, target.shape))
        raise InputError(f"The images must be [n, c, h, w] of {shape}, not {list(images.shape)}.")
    if not images.isfinite().all():
        raise InputError("The images are not finite.")
    if labels is None:
        return
    if labels.shape != images.shape[:1]:
        raise InputError(f"There are {len(images)} images, and labels of shape {list(labels.shape)}.")
    if target.task != "regression" and not 0 <= labels.min() <= labels.max() < target.labels:
        raise InputError(f"Labels must be from 0 to {target.labels - 1}.")
