"""Laws of metrics, matching, tests of significance and records, for any input that hypothesis can think of.

EXHUME_FUZZ_SECONDS=60, as of the damaged files, tries forty times as many inputs as the suite does.
"""

import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from exhume.attack.find_start.attempt import Sweep
from exhume.audit.matching import assign, match, merge, vote
from exhume.audit.significance import (
    difference_interval,
    fisher,
    mann_whitney,
    one_class,
    share_interval,
    stratified_fisher,
    van_elteren,
)
from exhume.errors import InputError
from exhume.metrics import agreement, l2, min_max, ncc, psnr, ssim
from exhume.problems import Selection
from exhume.records import read, read_about, read_tensors, write, write_tensors

SECONDS = float(os.environ.get("EXHUME_FUZZ_SECONDS", "1.5"))
few = settings(max_examples=max(10, int(20 * SECONDS / 1.5)), deadline=None, database=None, derandomize=SECONDS < 2)
KINDS = ("noise", "steps", "constant", "point", "nearly constant")


@st.composite
def pictures(draw: st.DrawFn, count: int | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """Images in [0, 1], [n, c, h, w]: noise, few grey values, constant ones, single bright pixels."""
    shape = shape or draw(st.sampled_from([(1, 3, 3), (1, 4, 5), (3, 4, 4), (3, 6, 6)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(count or draw(st.integers(1, 6))):
        kind, values = draw(st.sampled_from(KINDS)), random.random(shape)
        found.append(picture(kind, values))
    return torch.tensor(np.stack(found), dtype=torch.float32)


def picture(kind: str, values: NDArray[Any]) -> NDArray[Any]:
    if kind == "steps":
        return np.round(values * 2) / 2
    if kind == "point":
        return (values == values.max()).astype(float)
    flat = np.full_like(values, float(values.flat[0]))
    return {"noise": values, "constant": flat, "nearly constant": flat * (1 - 1e-7 * values)}[kind]


# ---- Metrics


@few
@given(pictures(shape=(3, 4, 5)), pictures(shape=(3, 4, 5)))
def test_ncc_lies_between_minus_one_and_one_and_is_symmetric(one: Tensor, other: Tensor) -> None:
    values = ncc(one, other)
    assert values.shape == (len(one), len(other)) and bool((values.abs() <= 1).all())
    torch.testing.assert_close(values, ncc(other, one).T, atol=1e-6, rtol=0)


@few
@given(pictures(shape=(1, 5, 5)), pictures(shape=(1, 5, 5)), st.floats(0.01, 100), st.floats(-10, 10))
def test_brightness_and_contrast_do_not_change_ncc(one: Tensor, other: Tensor, contrast: float, shift: float) -> None:
    double = one.double()
    visible = (double - double.mean((2, 3), keepdim=True)).abs().amax((1, 2, 3)) > 1e-3
    changed = contrast * double[visible] + shift
    torch.testing.assert_close(ncc(changed, other), ncc(double[visible], other), atol=1e-6, rtol=0)
    torch.testing.assert_close(ncc(-changed, other), -ncc(double[visible], other), atol=1e-6, rtol=0)


@few
@given(pictures())
def test_an_image_is_itself_or_shows_nothing(images: Tensor) -> None:
    own = ncc(images, images).diagonal()
    channels = images.shape[1]
    shares = torch.tensor([part / channels for part in range(channels + 1)])
    assert bool(((own[:, None] - shares).abs().amin(1) < 1e-6).all())  # the share of channels that are not constant


@few
@given(pictures(shape=(3, 6, 6)), st.sampled_from([3, 5]), st.integers(0, 2**32))
def test_ssim_lies_between_minus_one_and_one_and_is_symmetric(images: Tensor, window: int, seed: int) -> None:
    others = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    values, same = ssim(images, others, window), ssim(images, images, window)
    assert values is not None and same is not None
    assert bool((values.abs() <= 1 + 1e-5).all())
    torch.testing.assert_close(values, ssim(others, images, window), atol=1e-5, rtol=0)
    torch.testing.assert_close(same, torch.ones(len(images)), atol=1e-4, rtol=0)


@few
@given(pictures(3, (1, 4, 4)), pictures(3, (1, 4, 4)), pictures(3, (1, 4, 4)))
def test_l2_is_a_distance_and_psnr_falls_with_it(one: Tensor, two: Tensor, three: Tensor) -> None:
    assert bool((l2(one, two) <= l2(one, three) + l2(three, two) + 1e-5).all())
    assert not bool(l2(one, one).any()) and torch.equal(l2(one, two), l2(two, one))
    assert bool((psnr(one, two) <= 100).all()) and bool((psnr(one, one) == 100).all())
    nearer = l2(one, two) < l2(one, three)
    assert bool((psnr(one, two) >= psnr(one, three))[nearer].all())


@few
@given(pictures(), st.integers(0, 2**32))
def test_stretched_images_fill_their_range(images: Tensor, seed: int) -> None:
    low, high = min_max(images).amin((1, 2, 3)), min_max(images).amax((1, 2, 3))
    assert not bool(low.any()) and bool(((high == 1) | (high == 0)).all())
    points = torch.rand(5, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    values = agreement(points, points)
    assert bool((values.abs() <= 1).all()) and bool((values.diagonal() == 1).all())


# ---- Matching

tables = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32), st.booleans())


@few
@given(tables)
def test_an_assignment_is_one_to_one_and_none_is_better(table: tuple[int, int, int, bool]) -> None:
    rows, columns, seed, tied = table
    random = np.random.default_rng(seed)
    values = torch.tensor(np.round(random.uniform(-1, 1, (rows, columns)), 0 if tied else 6), dtype=torch.float32)
    usable = torch.tensor(random.random(columns) < 0.7)
    assigned = assign(values, usable=usable)
    taken = assigned[assigned >= 0].tolist()
    assert len(set(taken)) == len(taken) == min(rows, int(usable.sum()))
    assert all(bool(usable[column]) for column in taken)
    total = sum(float(values[row, column]) for row, column in enumerate(assigned.tolist()) if column >= 0)
    shuffles = (random.permutation(max(rows, columns)) for _ in range(30))
    for order in shuffles:
        pairs = [(row, int(order[row])) for row in range(rows) if order[row] < columns and usable[int(order[row])]]
        if len(pairs) == len(taken):
            assert total >= sum(float(values[pair]) for pair in pairs) - 1e-5


@few
@given(pictures(shape=(1, 4, 4)), pictures(shape=(1, 4, 4)), st.integers(0, 2**32))
def test_the_order_of_the_candidates_changes_no_similarity(images: Tensor, found: Tensor, seed: int) -> None:
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    one, other = match(found, images), match(found[order], images)
    torch.testing.assert_close(one.nearest_similarity, other.nearest_similarity, atol=1e-6, rtol=0)
    totals = one.assigned_similarity.sum(), other.assigned_similarity.sum()
    torch.testing.assert_close(*totals, atol=1e-5, rtol=0)
    assert bool((one.nearest_similarity >= one.assigned_similarity - 1e-6).all())


@few
@given(pictures(shape=(1, 4, 4)), pictures(shape=(1, 4, 4)), st.integers(0, 5))
def test_a_candidate_that_is_not_finite_is_nobodys(images: Tensor, found: Tensor, which: int) -> None:
    broken = found.clone()
    broken[which % len(found), 0, 0, 0] = torch.nan if which % 2 else torch.inf
    matches = match(broken, images)
    for chosen in (matches.nearest, matches.assigned):
        assert which % len(found) not in chosen.tolist()
    assert bool(vote(broken, images).images.isfinite().all())
    assert which % len(found) not in merge(broken, 0.9).tolist()


@few
@given(pictures(shape=(1, 4, 4)), st.floats(0.1, 1.0))
def test_what_is_kept_of_near_duplicates_is_not_alike(found: Tensor, threshold: float) -> None:
    kept = merge(found, threshold)
    alike = ncc(found[kept], found[kept]).fill_diagonal_(-1)
    assert kept.tolist() == sorted(set(kept.tolist())) and 0 in kept.tolist()
    assert bool((alike < threshold).all())


# ---- Significance

counts = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60), st.integers(0, 60)).map(
    lambda row: (min(row[2], row[0]), row[0], min(row[3], row[1]), row[1])
)


@few
@given(counts)
def test_the_chance_of_counts_is_one_and_falls_with_each_recovered_image(row: tuple[int, int, int, int]) -> None:
    recovered, images, null, held_out = row
    chance = fisher(*row)
    assert 0 <= chance <= 1
    if recovered < images:
        assert fisher(recovered + 1, images, null, held_out) <= chance + 1e-9
    if null < held_out:
        assert fisher(recovered, images, null + 1, held_out) >= chance - 1e-9
    reached, others = torch.arange(images) < recovered, torch.arange(held_out) < null
    assert stratified_fisher(reached, others, one_class(images, held_out)) == pytest.approx(chance, rel=1e-6, abs=1e-12)


@few
@given(
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30),
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30),
    st.integers(1, 3),
)
def test_the_chance_of_ranks_is_one_and_falls_as_values_rise(one: list[float], two: list[float], classes: int) -> None:
    larger, smaller = torch.tensor(one), torch.tensor(two)
    chance = mann_whitney(larger, smaller)
    assert 0 <= chance <= 1
    assert mann_whitney(larger + 3, smaller) <= chance + 1e-9  # all of them above all others: no order is rarer
    within = torch.arange(len(one)) % classes, torch.arange(len(two)) % classes
    assert 0 <= van_elteren(larger, smaller, within) <= 1


@few
@given(counts)
def test_intervals_hold_their_share(row: tuple[int, int, int, int]) -> None:
    count, total, other, other_total = row
    share, difference = share_interval(count, total), difference_interval(*row)
    assert 0 <= share.low <= count / total <= share.high <= 1
    assert -1 - 1e-9 <= difference.low <= count / total - other / other_total + 1e-9
    assert count / total - other / other_total - 1e-9 <= difference.high <= 1 + 1e-9


# ---- Records

words = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
survivors = st.lists(st.tuples(st.integers(0, 2**62), numbers), max_size=5)
sweeps = st.tuples(words, st.integers(0, 2**62), survivors)
selections = st.tuples(st.none() | st.integers(1, 10**9), st.none() | st.integers(2, 10**6), st.none() | words)


def shown(text: str) -> bool:
    """Whether a text is one that UTF-8 can hold: half of a pair of surrogates is not."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


@few
@given(sweeps, selections)
def test_a_record_is_read_as_it_was_written(sweep: tuple[Any, ...], selection: tuple[Any, ...]) -> None:
    """They are made here and not by a strategy: the types are checked at random places."""
    digest, done, kept = sweep
    per_class, classes, data_dir = selection
    records = (
        Sweep(digest=digest, done=done, survivors=tuple(kept)),
        Selection(per_class=per_class, classes=classes, data_dir=data_dir),
    )
    with TemporaryDirectory() as folder:
        for record in records:
            write(Path(folder) / "record.json", record)
            assert read(Path(folder) / "record.json", type(record)) == record


@few
@given(values, st.sampled_from([Sweep, Selection]))
def test_any_json_is_a_record_or_an_error(content: Any, kind: type) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            assert isinstance(read(path, kind), kind)
        except InputError as error:
            assert str(path) in str(error)


@few
@given(
    st.dictionaries(words.filter(lambda name: shown(name) and name != "__metadata__"), st.integers(0, 3), max_size=4),
    words.filter(shown),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]),
)
def test_tensors_are_read_as_they_were_written(named: dict[str, int], about: str, dtype: torch.dtype) -> None:
    tensors = {name: torch.arange(math.prod(range(1, axes + 2))).to(dtype) for name, axes in named.items()}
    tensors = {name: tensor.reshape(*range(1, named[name] + 2)) for name, tensor in tensors.items()}
    with TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "a.safetensors", tensors, about)
        assert read_about(Path(folder) / "a.safetensors")[0] == about
        found = read_tensors(Path(folder) / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in tensors.items())
