"""How a search moves: its candidates, their rates, and their steps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from exhume import METHODS, NetworkConfig, reconstruct
from exhume.attack.analysis import REGIMES
from exhume.attack.objectives import OBJECTIVES
from exhume.attack.optimisation import Multipliers, Stepper, balanced_labels, muon_and_adam
from exhume.attack.target import Target, make_target
from victims import SMALL, checkpoint, generator, target_of


@pytest.mark.parametrize(
    "network", [NetworkConfig(widths=(20,)), NetworkConfig(kind="cnn", channels=(2,), widths=(4,))]
)
@pytest.mark.parametrize("method", METHODS)
def test_the_images_rate_falls_to_a_fiftieth_and_the_papers_stays(method: str, network: NetworkConfig) -> None:
    target = target_of(checkpoint("multiclass", network))
    search = replace(SMALL[method], steps=10).start(target, generator())
    rates, stepper = [], Stepper([search], torch.device("cpu"))
    for step in range(10):
        rates.append([group["lr"] for optimiser in search.optimisers for group in optimiser.param_groups])
        stepper.take(step)
    images, *multipliers = zip(*rates, strict=True)
    lowest = images[0] * (0.02 if method == "exhume" else 1)
    assert images == pytest.approx(torch.linspace(images[0], lowest, 11)[:10].tolist())
    assert all(len(set(values)) == 1 for values in multipliers)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.01])
def test_candidates_move_whatever_the_centre(value: float) -> None:
    """Where no mean was subtracted the centre is 0, which gives the images no scale."""
    victim = replace(checkpoint("multiclass"), centre=torch.full((1, 5, 5), value))
    short, longer = (reconstruct(victim, replace(SMALL["exhume"], steps=steps)) for steps in (1, 40))
    assert (longer.images - short.images).abs().mean() > 2e-3


def test_no_more_candidates_than_equations_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters of the 700 neurons where twice the 300 images would be too many; what is asked for stays.

    On a GPU a few more make a multiple of what it multiplies fast.
    """
    target = Target(network=nn.Identity(), centre=torch.zeros(1, 5, 5), task="binary", outputs=1)
    assert [len(balanced_labels(target, None, n, 700)) for n in (10, 150, 300, 500)] == [200, 300, 526, 750]
    assert [len(balanced_labels(target, None, n, 700, most=1.0)) for n in (10, 300, 500)] == [200, 350, 500]
    assert len(balanced_labels(target, None, 300)) == 600
    monkeypatch.setattr("exhume.attack.optimisation.alignment", lambda *_: 16)
    assert [len(balanced_labels(target, None, n, 700)) for n in (10, 300, 500)] == [200, 528, 752]  # 208 is too many
    classes = replace(target, task="multiclass", outputs=101)
    assert len(balanced_labels(classes, None, 100)) == 202
    assert len(balanced_labels(target, 450, 300, 700)) == 900


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_shares_do_not_run_away(decay: float) -> None:
    """A slope that never changes its sign moves logits to where their decay ends, and leaves multipliers alone."""
    target = target_of(checkpoint("multiclass"))
    labels = torch.zeros(4, dtype=torch.long)
    multipliers = Multipliers(OBJECTIVES["multiclass"], labels, torch.ones(4), target.outputs, 0.0)
    adam = muon_and_adam(torch.zeros(4, 25, requires_grad=True), multipliers, 0.1, 0.02, shares_decay=decay)[1]
    for _ in range(1000):
        multipliers.shares.grad, multipliers.values.grad = -torch.ones_like(multipliers.shares), torch.zeros(4)
        adam.step()
    assert float(multipliers.shares.detach().max()) == pytest.approx(1 / decay, rel=0.01)
    assert torch.equal(multipliers.values, torch.ones(4))


def test_a_search_takes_the_decay_of_its_regime(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(checkpoint("multiclass"))
    for decay in (0.25, 3.0):
        rows = {name: replace(row, shares_decay=decay) for name, row in REGIMES.items()}
        monkeypatch.setattr("exhume.attack.analysis.REGIMES", rows)
        multipliers, shares = SMALL["exhume"].start(target, generator()).optimisers[1].param_groups
        assert (multipliers["weight_decay"], shares["weight_decay"]) == (0, decay)


def test_memory_is_asked_for_images_and_for_what_layers_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times each: 25 pixels and 20 + 10 + 1 outputs of a candidate."""
    least: list[int] = []
    monkeypatch.setattr("exhume.attack.optimisation.check_memory", lambda size, *_: least.append(size))
    balanced_labels(make_target(checkpoint("binary")), 50, 10)
    assert least == [100 * 4 * (25 + 20 + 10 + 1) * 4]
