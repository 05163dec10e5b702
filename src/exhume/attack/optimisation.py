"""How a search moves: its first guess, its multipliers, its optimisers and their rates."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from exhume.attack.muon import Muon
from exhume.attack.objectives import Objective
from exhume.attack.priors import spread
from exhume.attack.residuals import squared_norm
from exhume.attack.search import Guess, Iterate, Search
from exhume.attack.target import Target
from exhume.devices import alignment, check_memory, fast_products, recorded
from exhume.networks import numbers_kept

FEWEST_CANDIDATES = 200
"""Candidates of a search at the least, so that few images have many chances. Chosen on b1 to b3 of the benchmark."""
CANDIDATES_PER_IMAGE = 2
"""The papers' number: twice as many candidates as images."""
MOST_CANDIDATES = 1.5
"""Candidates within a layer's subspace at most, for each image; half as many for each neuron where that is more. Chosen
on 500 photographs by SGD with a known start (not a row of the benchmark) and on the zoo's photographs."""
SHARES_DECAY = 0.5
"""Decoupled weight decay of how multipliers are shared: logits stay within 1 / SHARES_DECAY. Else some run away and
keep a candidate at a wrong class. Chosen as MOST_CANDIDATES was."""
MOMENTUM = 0.9
"""Of Muon, and of the papers' SGD."""
FINAL_RATE = 0.02
"""The images' rate at the end of a search, of what it was at the start. Chosen on b1 to b3, b5 to b8 and b8-decay."""


def balanced_labels(
    target: Target, per_class: int | None, images: int, neurons: int | None = None, most: float = MOST_CANDIDATES
) -> Int[Tensor, " m"]:
    """The candidates' labels, as many of each class: `per_class`, or twice the images assumed, at least 200 in all.

    Within r directions m candidates have m r unknowns and the first layer gives `neurons` x r equations. So there are
    no more candidates than three quarters of the neurons, that the condition stays over-determined; or half as many
    again as images where that is more, that each has a chance. That is `most` for each image, and half of it for each
    neuron (`Regime.most_candidates`). On a GPU a few more may make the products faster.
    """
    device = target.centre.device
    count = max(CANDIDATES_PER_IMAGE * images, FEWEST_CANDIDATES)
    if neurons is not None:
        count = min(count, max(int(most * images), int(most / 2 * neurons)))
    if per_class is None:
        multiple = math.lcm(target.labels, alignment(fast_products(target.centre.dtype, device), device))
        multiple = multiple if multiple <= count // FEW_MORE else target.labels
        per_class = -(-count // multiple) * multiple // target.labels
    _check_memory(target, per_class * target.labels)
    return torch.arange(target.labels, device=device).repeat_interleave(per_class)


FEW_MORE = 16
"""A search on a GPU has more candidates for the sake of its products only where that is less than 1 / FEW_MORE."""
COPIES = 4
"""What a search holds at the least, in the size of its images (images, gradients, momenta, a step) and of what layers
give for them (outputs, slopes, and the same of the way back)."""


def _check_memory(target: Target, count: int) -> None:
    """Raises `InputError` for more candidates than fit into memory."""
    of_one = target.centre.numel() + numbers_kept(target.network, target.shape)
    size = count * of_one * target.centre.element_size()
    what = f"A search for {count:,} candidates"
    check_memory(COPIES * size, target.centre.device, what, "a smaller --per-class or --images")


def first_guess(shape: tuple[int, ...], scale: float, around: Tensor, generator: torch.Generator) -> Tensor:
    """Normal with standard deviation `scale` around a point, which must broadcast to `shape`."""
    start = scale * torch.randn(shape, generator=generator, dtype=around.dtype)
    return (around + start.to(around.device)).requires_grad_()


class Multipliers:
    """The multipliers of m candidates, and how each is shared among the other classes.

    values: [m], the start, on the device of the search; minimum: what multipliers below it are penalised against,
    unless the objective gives them either sign.
    """

    def __init__(
        self, objective: Objective, labels: Int[Tensor, " m"], values: Float[Tensor, " m"], outputs: int, minimum: float
    ) -> None:
        self.objective, self.labels, self.minimum = objective, labels, minimum
        self.values = values.requires_grad_()
        self.shares = torch.zeros(len(labels), outputs, dtype=values.dtype, device=values.device, requires_grad=True)

    def cotangents(self, scores: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        """d_i / m by the objective."""
        return self.objective.cotangents(scores, self.labels, self.values, self.shares) / len(self.labels)

    def penalty(self) -> Tensor:
        """sum relu(minimum - lambda)^2; 0 where multipliers may be negative."""
        if self.objective.signed:
            return self.values.new_zeros(())
        return squared_norm((self.minimum - self.values).relu())

    @property
    def variables(self) -> list[Tensor]:
        """What is searched for besides the images."""
        return [self.values, self.shares] if self.objective.shared else [self.values]


def begun_at(guess: Guess, objective: Objective, target: Target, minimum: float) -> Multipliers:
    """The multipliers of a first guess that is given."""
    labels, values = guess.labels.to(target.centre.device), guess.multipliers.detach().to(target.centre).clone()
    multipliers = Multipliers(objective, labels, values, target.outputs, minimum)
    multipliers.shares = guess.shares.detach().to(target.centre).clone().requires_grad_()
    return multipliers


def uniform_start(
    objective: Objective, labels: Int[Tensor, " m"], like: Tensor, generator: torch.Generator
) -> Float[Tensor, " m"]:
    """Multipliers from U(0, 1); of the label's sign where the objective gives them either sign."""
    start = torch.rand(len(labels), generator=generator, dtype=like.dtype).to(like.device)
    return start * (2 * labels - 1) if objective.signed else start


def image_scale(target: Target) -> float:
    """The largest spread that images can have, in units of the network's inputs."""
    return spread(target.centre) / target.unit


def muon_and_adam(
    images: Float[Tensor, "m d"],
    multipliers: Multipliers,
    lr_images: float,
    lr_multipliers: float,
    *,
    shares_decay: float = SHARES_DECAY,
) -> list[torch.optim.Optimizer]:
    """Muon for the candidates, a matrix, and Adam for their multipliers, with decay of how these are shared.

    Muon's orthogonalised step moves all directions alike, between candidates as well as within one, however weakly the
    weights depend on them. Adam's diagonal scaling cannot (binary networks: 44 instead of 15 images).
    """
    on_gpu = images.is_cuda
    decays = (0.0, shares_decay)  # of multipliers, and of how they are shared
    groups = [{"params": [v], "weight_decay": w} for v, w in zip(multipliers.variables, decays, strict=False)]
    adam = torch.optim.AdamW(groups, lr=lr_multipliers, capturable=on_gpu, fused=on_gpu)
    return [Muon([images], lr=lr_images, momentum=MOMENTUM), adam]


def linear_decay(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Lets a rate fall in a line to FINAL_RATE of it over the search.

    Muon's steps do not get shorter by themselves. Long ones find more at first; short ones let the search come to rest
    (of 500 photographs 101 instead of 37).
    """
    return torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, FINAL_RATE, total_iters=steps)


class Stepper:
    """Takes the steps of several searches together; on a GPU the whole of a step is one launch.

    residuals, penalties: [searches], of the candidates before the last step.
    """

    def __init__(self, searches: Sequence[Search], device: torch.device) -> None:
        self.searches = searches
        self.residuals, self.penalties = torch.zeros(2, len(searches), dtype=torch.float64, device=device)
        self._take = recorded(device, *(partial(self._step, which) for which in range(len(searches))))

    def take(self, step: int) -> None:
        """Takes the step with this number, counted from 0."""
        for search in self.searches:
            search.prepare(step)
        self._take()
        for search in self.searches:
            for schedule in search.schedules:
                schedule.step()

    def evaluate(self, step: int) -> None:
        """Residuals and penalties of the moment, without a step."""
        for which, search in enumerate(self.searches):
            search.prepare(step)
            self._note(which, *search.objective())

    def _step(self, which: int) -> None:
        residual, penalty = self.searches[which].objective()
        self._note(which, residual, penalty)
        take_step(self.searches[which], residual + penalty)

    def _note(self, which: int, residual: Tensor, penalty: Tensor) -> None:
        self.residuals[which].copy_(residual.detach())
        self.penalties[which].copy_(penalty.detach())


def take_step(search: Search, objective: Tensor) -> None:
    """One step of the search's optimisers against the gradient of its objective."""
    groups = [group for optimiser in search.optimisers for group in optimiser.param_groups]
    variables = [variable for group in groups for variable in group["params"]]
    for variable in variables:
        variable.grad = None
    objective.backward(inputs=variables)  # type: ignore[no-untyped-call]
    for optimiser in search.optimisers:
        optimiser.step()


@torch.no_grad()
def snapshot(target: Target, images: Tensor, multipliers: Multipliers) -> Iterate:
    """The candidates of the moment, detached."""
    images, values = images.detach(), multipliers.values.detach().clone()
    return Iterate(images=images, multipliers=values, cotangents=multipliers.cotangents(target.network(images)))


def images_given(images: int | None, per_class: int | None, target: Target) -> int | None:
    """The number of training images by the settings: given, or half the candidates; None: the settings do not say."""
    if images is None and per_class is not None:
        return max(per_class * target.labels // 2, 1)
    return images
