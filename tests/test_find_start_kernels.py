"""The generator, the sweeps and the linear algebra behind `find_start`, against PyTorch and against plain NumPy."""

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from exhume.attack.find_start import generator_state, gf2, kernels, likely_seeds, mt19937, sweep_gpu
from exhume.attack.find_start.draws import DISTRIBUTIONS, INITIALISATIONS, Distribution, draw, fans, pattern, question
from exhume.attack.find_start.evidence import log10_p, z_score
from exhume.attack.find_start.layers import trained_network
from exhume.attack.find_start.stream import Stream


def random_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 7 + 2**32, None], ids=str)
def test_outputs_are_those_of_pytorch(seed: int | None) -> None:
    seed = random_seed() if seed is None else seed
    drawn = mt19937.outputs(mt19937.seeded_words(np.uint32(seed % 2**32)), 2000)
    expected = torch.rand(2000, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.from_numpy((drawn & 0xFFFFFF) * np.float32(2**-24)), expected)


@pytest.mark.parametrize("place", [0, 1, 623, 624, 5000])
def test_a_stream_goes_on_where_the_generator_would(place: int) -> None:
    seed = random_seed()
    generator = torch.Generator().manual_seed(seed)
    torch.rand(place, generator=generator)
    expected = torch.rand(700, generator=generator) * 2 - 1
    words = Stream(words=mt19937.seeded_words(np.uint32(seed)))
    for stream in (Stream(seed=seed), words):
        assert np.abs(stream.uniform(place, 700) - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("row", DISTRIBUTIONS.values(), ids=list(DISTRIBUTIONS))
@pytest.mark.parametrize("count", [5, 15, 16, 100, 320])
def test_a_distribution_takes_as_many_outputs_as_it_says(row: Distribution, count: int) -> None:
    generator, stream = torch.Generator().manual_seed(5), Stream(seed=5)
    values = row.draw(count, generator)
    assert torch.equal(
        torch.rand(9, generator=generator), torch.rand(9, generator=stream.generator(row.outputs(count)))
    )
    if count > 16:
        assert float(values.double().pow(2).mean()) == pytest.approx(row.variance, rel=0.6)


def test_layers_are_drawn_to_the_last_bit() -> None:
    for seed, layer in enumerate([nn.Linear(784, 30), nn.Linear(3, 7), nn.Conv2d(3, 6, 5), nn.Conv1d(4, 5, 3)]):
        torch.manual_seed(seed)
        layer.reset_parameters()
        generator = Stream(seed=seed).generator()
        for parameter in layer.parameters():
            bound = INITIALISATIONS["pytorch-default"].scale(*fans(layer.weight))
            assert torch.equal(draw(DISTRIBUTIONS["uniform"], bound, parameter.shape, generator), parameter.detach())


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("xavier-uniform", nn.init.xavier_uniform_),
        ("kaiming-uniform", nn.init.kaiming_uniform_),
        ("xavier-normal", nn.init.xavier_normal_),
        ("kaiming-normal", nn.init.kaiming_normal_),
    ],
)
def test_rules_are_those_of_pytorch(name: str, rule: object) -> None:
    weight = torch.empty(40, 30)
    assert callable(rule)
    torch.manual_seed(3)
    rule(weight)
    row = INITIALISATIONS[name]
    distribution = DISTRIBUTIONS["normal" if row.normal else "uniform"]
    assert torch.equal(draw(distribution, row.scale(30, 40), weight.shape, Stream(seed=3).generator()), weight)


@pytest.mark.parametrize("row", DISTRIBUTIONS.values(), ids=list(DISTRIBUTIONS))
@pytest.mark.parametrize("place", [0, 99])
def test_all_sweeps_agree(row: Distribution, place: int) -> None:
    seed = random_seed()
    weights = row.draw(256, Stream(seed=seed).generator(place)).double()
    asked = question(pattern(weights, row, 256).first(64), place=place, least=3.0)
    first, count = max(0, seed - 1000), 2003
    args = (first, count, place, int(row.normal), row.bits, asked.cosine, asked.sine, np.float32(asked.least))
    found = {}
    for sweep in (kernels.sweep, kernels.sweep_far):
        seeds, scores = np.empty(100, np.int64), np.empty(100, np.float32)
        size = sweep(*args, seeds, scores)
        found[sweep] = dict(zip(seeds[:size].tolist(), scores[:size].tolist(), strict=True))
    seeds, scores = sweep_gpu.sweep_torch(asked, torch.device("cpu"), first, count)
    assert found[kernels.sweep] == pytest.approx(found[kernels.sweep_far], abs=1e-4)
    assert found[kernels.sweep] == pytest.approx(dict(zip(seeds.tolist(), scores.tolist(), strict=True)), abs=1e-4)
    assert max(found[kernels.sweep], key=lambda one: found[kernels.sweep][one]) == seed
    assert found[kernels.sweep][seed] == pytest.approx(8 if not row.normal else 7, abs=2)


@pytest.mark.parametrize("row", DISTRIBUTIONS.values(), ids=list(DISTRIBUTIONS))
@pytest.mark.parametrize("place", [0, 511, 40_000])
def test_a_scan_finds_the_place(row: Distribution, place: int) -> None:
    seed = random_seed()
    wanted = pattern(row.draw(300, Stream(seed=seed).generator(place)), row, kernels.OVERLAP)
    offsets, weights, least = likely_seeds._in_steps(wanted, 7.0)
    hits, places, scores = np.empty(100, np.uint32), np.empty(100, np.int64), np.empty(100, np.float32)
    seeds = np.array([seed ^ 1, seed], np.uint32)
    args = (int(row.normal), row.bits, offsets, weights, least, hits, places, scores)
    assert kernels.scan(seeds, 50_000, *args) == 1
    assert (hits[0], places[0]) == (seed, place)
    assert kernels.scan(seeds, place, *args) == 0


def test_a_score_has_mean_0_and_variance_1_in_a_stream_of_its_own() -> None:
    for row in DISTRIBUTIONS.values():
        weights = row.draw(320, torch.Generator().manual_seed(9999))
        scores = [z_score(weights, row.draw(320, Stream(seed=seed).generator()), row) for seed in range(2000)]
        assert abs(float(np.mean(scores))) < 0.1
        assert float(np.std(scores)) == pytest.approx(1, abs=0.06)


def test_the_bound_on_chance_is_a_bound() -> None:
    values = torch.rand(200_000, 8, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    weights = torch.tensor([5.0, 1, 1, 1, 0.5, 0.1, 0.1, 0.1], dtype=torch.float64)
    z = values @ weights / (weights.norm() / math.sqrt(3))
    for t in (1.0, 2.0, 2.5, 3.0):
        assert float((z > t).double().mean()) < 10 ** log10_p(t)
    assert log10_p(0.0) == 0 and log10_p(5.0, 2**32) == 0 and log10_p(100.0, 2**32) < -2000


def test_a_state_is_rewound_to_its_seed() -> None:
    seed = random_seed()
    line = np.concatenate([mt19937.seeded_words(np.uint32(seed)), np.zeros(3000, np.uint32)])
    for k in range(3000):
        joined = (int(line[k]) & 0x80000000) | (int(line[k + 1]) & 0x7FFFFFFF)
        line[k + 624] = int(line[k + 397]) ^ (joined >> 1) ^ (0x9908B0DF if joined & 1 else 0)
    back = mt19937.rewound(line[-624:], 3000 + 50)
    assert (back[51 + 1 :] == line[2:]).all()
    assert mt19937.last_seeding(back) == 50
    assert mt19937.seed_of(int(back[51])) == seed
    assert mt19937.last_seeding(back[:600]) == -1


@pytest.mark.parametrize(
    ("rows", "unknowns", "empty"), [(100, 50, 0), (90, 63, 2), (200, 64, 0), (150, 200, 5), (700, 600, 30)]
)
def test_elimination_solves_what_can_be_solved(rows: int, unknowns: int, empty: int) -> None:
    random = np.random.default_rng(rows)
    matrix = random.integers(0, 2, (rows, unknowns))
    matrix[:, unknowns - empty :] = 0
    constants = matrix @ random.integers(0, 2, unknowns) % 2
    width = unknowns // 64 + 1
    bits = np.zeros((rows, 64 * width), np.uint8)
    bits[:, :unknowns], bits[:, -1] = matrix, constants
    packed = np.packbits(bits, axis=1, bitorder="little").view(np.uint64).copy()
    leads = gf2.eliminate(packed, unknowns)
    assert len(leads) == min(rows, unknowns - empty)
    solution = np.unpackbits(gf2.back_substitute(packed, leads, width).view(np.uint8), bitorder="little")
    assert (matrix @ solution[:unknowns] % 2 == constants).all()


def known(places: np.ndarray, seed: int, place: int) -> generator_state.Known:
    drawn = mt19937.outputs(mt19937.seeded_words(np.uint32(seed)), place + int(places.max()) + 1)[place:]
    return generator_state.Known(layer=0, places=places, bits=drawn[places] & np.uint32(0xFFFFFF))


PLACES = {
    "consecutive": np.arange(100, 1700),
    "columns": np.add.outer(np.arange(8) * 784, np.sort(np.random.default_rng(0).choice(784, 300, False))).ravel(),
}


@pytest.mark.parametrize("pattern_of", PLACES)
def test_the_state_is_solved_for(pattern_of: str) -> None:
    seed, place = random_seed(), 12_345
    one = known(PLACES[pattern_of], seed, place)
    solution = generator_state.solve(one)
    assert solution is not None
    assert generator_state._origin(*solution)[0].seed == seed
    assert generator_state._origin(*solution)[1] == place


def test_contradictions_and_too_few_weights_give_no_state() -> None:
    one = known(PLACES["consecutive"], 7, 0)
    one.bits[900] ^= np.uint32(1)
    assert generator_state.solve(one) is None
    few = known(np.arange(1240), 7, 0)
    assert generator_state.solve(few) is None
    noise = np.random.default_rng(0).integers(0, 2**24, 1600).astype(np.uint32)
    assert generator_state.solve(generator_state.Known(layer=0, places=np.arange(1600), bits=noise)) is None


def test_what_never_moved_is_told_from_what_did() -> None:
    torch.manual_seed(random_seed())
    layer = nn.Linear(200, 100)
    with torch.no_grad():
        layer.weight[:50] += 1e-3 * torch.randn(50, 200)
        layer.weight[50:, 1:] += 1e-3 * torch.randn(50, 199)
    assert not list(generator_state.unmoved(trained_network(layer)))  # of each row and column something moved
    torch.manual_seed(1)
    layer = nn.Linear(200, 100)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[:, 30:] += 1e-3 * torch.randn(100, 170)
        layer.weight[7] = start[7]
    (one,) = generator_state.unmoved(trained_network(layer.double()))
    expected = np.zeros((100, 200), bool)
    expected[:, :30], expected[7] = True, True
    assert (one.places == expected.ravel().nonzero()[0]).all()
    drawn = mt19937.outputs(mt19937.seeded_words(np.uint32(1)), 20_000) & np.uint32(0xFFFFFF)
    assert (one.bits == drawn[one.places]).all()
