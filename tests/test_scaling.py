"""How the images were scaled before training, told by how well the network knows them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import Checkpoint, NetworkConfig, Problem, Selection, check_scaling, load_problem
from exhume.audit.verdict import NOT_DECIDED
from exhume.commands.audit import exit_code
from exhume.foreign import ForeignNetwork
from exhume.owner.scaling import ScalingCheck, _scalings
from exhume.runs.advice import MORE_MAY_LEAK, about_scaling

Scale = Callable[[Tensor, Tensor], Tensor]
SCALES: dict[str, Scale] = {
    "neither --mean nor --std": lambda images, _: images,
    "--mean images": lambda images, mean: images - mean,
    "--mean 0.5 --std 0.5": lambda images, _: 2 * images - 1,
    "--std 0.0039216": lambda images, _: 255 * images,
    "--mean images --std 0.0039216": lambda images, mean: 255 * (images - mean),
    "--mean 0.1307 --std 0.3081": lambda images, _: (images - 0.1307) / 0.3081,
}


@cache
def digits() -> Problem:
    return load_problem("mnist-digits", Selection(per_class=6, data_dir="installed"))


def trained(scale: Scale, labels: Tensor | None = None) -> Checkpoint:
    """A plain script's network, as it is read where nobody says how the images were scaled."""
    problem = digits()
    inputs = scale(problem.images, problem.images.mean(0)).flatten(1)
    torch.manual_seed(4)
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(60):
        for rows in torch.randperm(len(inputs)).split(10):
            optimiser.zero_grad()
            functional.cross_entropy(
                network(inputs[rows]), (problem.labels if labels is None else labels)[rows]
            ).backward()
            optimiser.step()
    weights = {
        f"{name}.{part}": network.get_parameter(f"{row}.{part}").detach()
        for name, row in (("1", 0), ("3", 2))
        for part in ("weight", "bias")
    }
    config = NetworkConfig(widths=(100,), init_scale=None, bias="all")
    centre, classes = torch.zeros(1, 28, 28), tuple("0123456789")
    return Checkpoint(network=config, task="multiclass", classes=classes, centre=centre, weights=weights)


@pytest.mark.parametrize("flags", SCALES)
def test_the_scaling_of_the_training_is_told(flags: str) -> None:
    problem = digits()
    check = check_scaling(trained(SCALES[flags]), problem.images, problem.labels)
    assert check is not None
    if check.right == check.images:  # nothing can be better
        assert check.best is None
        return
    assert check.best is not None
    assert (check.best.flags, check.best.right) == (flags, check.images)
    assert check.is_plain == (check.images - check.right >= 8)


def test_it_shows_only_at_images_that_were_trained_on() -> None:
    problem = digits()
    check = check_scaling(trained(SCALES["--mean images"]), problem.held_out, problem.held_out_labels)
    assert check is not None
    assert not check.is_plain


def test_nothing_is_told_without_classes() -> None:
    problem, network = digits(), trained(SCALES["--mean images"])
    for labels in (None, problem.labels.double()):
        assert check_scaling(network, problem.images, labels) is None
    assert check_scaling(network, problem.images[..., :20], problem.labels) is None


def test_two_classes_are_told_by_the_sign() -> None:
    problem = digits()
    network = trained(SCALES["--mean images"], labels=problem.labels % 2)
    weights = {**network.weights, "3.weight": network.weights["3.weight"][1:2] - network.weights["3.weight"][:1]}
    weights["3.bias"] = network.weights["3.bias"][1:2] - network.weights["3.bias"][:1]
    one = replace(network, task="binary", classes=("even", "odd"), weights=weights)
    check = check_scaling(one, problem.images, problem.labels % 2)
    assert check is not None
    assert check.best is not None
    assert (check.best.flags, check.best.right) == ("--mean images", 60)


def test_colours_have_the_numbers_of_coloured_data_sets() -> None:
    flags = [flags for _, flags, _, _ in _scalings(torch.zeros(3, 4, 4))]
    assert flags[-1] == "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"
    assert not any("0.1307" in one for one in flags)


def test_the_owner_is_asked_where_nobody_said_it() -> None:
    silent = ForeignNetwork(checkpoint=trained(SCALES["neither --mean nor --std"]))
    said, own = replace(silent, scaling="the user"), replace(silent, scaling="the network")
    fine = ScalingCheck(images=60, right=60, best=None, p_value=1.0)
    (asked,) = about_scaling(silent, fine, plain=False)
    assert asked.startswith("Was a mean subtracted")
    assert "60 of 60" in asked
    assert about_scaling(silent, None, plain=False)
    for network in (said, own):
        assert about_scaling(network, fine, plain=False) == []
    assert about_scaling(silent, fine, plain=True) == [MORE_MAY_LEAK]
    chance = replace(fine, right=59, best=replace(fine, right=60).best, p_value=0.5)
    assert "try" not in about_scaling(silent, chance, plain=False)[0]
    assert about_scaling(silent, fine, plain=False, untrained=True) == []


def test_a_scaling_that_is_plainly_wrong_is_always_told() -> None:
    problem, network, centre = digits(), trained(SCALES["--mean images"]), torch.full((1, 28, 28), 0.9)
    for scaling in ("nobody", "the user"):
        read = ForeignNetwork(checkpoint=network, scaling=scaling)  # type: ignore[arg-type]
        check = check_scaling(replace(network, centre=centre), problem.images, problem.labels)
        (told,) = about_scaling(read, check, plain=True)
        assert "If it was trained on these, try --mean images." in told
        assert told.endswith("was it so in training?") == (scaling == "the user")


@pytest.mark.parametrize(
    ("verdicts", "leaks", "undecided"),
    [
        (["leaks", "does not apply"], 1, 1),
        (["leaks", NOT_DECIDED], 1, 1),
        ([NOT_DECIDED, "nothing found"], 3, 3),
        (["does not apply"], 0, 3),
        (["nothing found"], 0, 0),
    ],
)
def test_exit_codes_tell_a_leak_from_what_is_not_decided(verdicts: list[str], leaks: int, undecided: int) -> None:
    assert exit_code(verdicts, "leaks") == leaks
    assert exit_code(verdicts, "undecided") == undecided
    assert exit_code(verdicts, None) == 0
