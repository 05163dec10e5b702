"""The one-to-one assignment of the largest total: of small matrices by SciPy, of large ones by column generation.

Kuhn 1955. A large problem is solved on the few best pairs of each row and column. The prices of that solution tell
which other pairs could raise the total; these are added until there are none (Dantzig, Wolfe 1960). So the assignment
is as good as that over all pairs, most of which are only looked at, to see that they could not.

A large matrix may come in parts of its rows, so that nobody needs to join them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

LARGE = 4_000_000
"""Pairs above which column generation is faster (3,000 x 3,000: 0.8 s for 1.3 to 2.5 s)."""
BEST = 20
"""Best pairs of each row and of each column to begin with."""
TOLERANCE = 1e-6
"""By how much a pair must raise the total to be added: the rounding of float32."""
SETTLED = 1e-12
"""Change of a price that is rounding."""
ROUNDS = 100
"""Most rounds of column generation, and hundredfold of prices; beyond, all pairs are solved at once."""
ROWS = 1_024
"""Rows that are looked at together, and columns. Fewer fit a processor's cache better (256: a tenth faster), but each
look wakes all threads and waits for them, which takes 10 ms where other work keeps a core busy (256: twice the time).
"""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def largest_total(*parts: Float[Tensor, "_ m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Rows and columns, each at most once, of the pairs with the largest total; k is the smaller of n and m.

    >>> rows, columns = largest_total(torch.tensor([[1.0, 0.9], [0.9, 0.0]]))
    >>> columns
    tensor([1, 0])

    Args:
        parts: similarities, between -1 and 1: n rows, in one matrix or several.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    if sum(part.numel() for part in parts) > LARGE:
        found = by_column_generation(*parts)
        if found is not None:
            return found
    values = torch.cat(parts) if len(parts) > 1 else parts[0]
    rows, columns = (torch.from_numpy(chosen) for chosen in linear_sum_assignment(values.numpy(), maximize=True))
    return rows, columns


def by_column_generation(*parts: Float[Tensor, "_ m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]] | None:
    """As `largest_total`; None where this is no way: the best pairs leave a row without a column.

    Many columns that are alike, for example, are all among the best of every row.
    """
    n, m = sum(map(len, parts)), parts[0].shape[1]
    pairs = _best_pairs(parts)
    costs = _costs(parts, pairs)
    for _ in range(ROUNDS):
        rows, columns = np.divmod(pairs, m)
        chosen = _solve(rows, columns, costs, (n, m))
        prices = None if chosen is None else _prices(rows, columns, costs, chosen, (n, m))
        if chosen is None or prices is None:
            return None
        better = np.setdiff1d(_worth_adding(parts, *prices), pairs, assume_unique=True)
        if len(better) == 0:
            return torch.from_numpy(chosen[0]), torch.from_numpy(chosen[1])
        places = np.concatenate([pairs, better])
        order = np.argsort(places, kind="stable")
        pairs, costs = places[order], np.concatenate([costs, _costs(parts, better)])[order]
    return None


def _best_pairs(parts: tuple[Float[Tensor, "_ m"], ...]) -> Ints:
    """The best of each row and of each column, as sorted places in the flat matrix."""
    n, m = sum(map(len, parts)), parts[0].shape[1]
    of_rows = torch.cat([block.topk(min(BEST, m)).indices for _, block in _blocks(parts)])
    columns = (torch.cat([part[:, begin : begin + ROWS].T for part in parts], 1) for begin in range(0, m, ROWS))
    of_columns = torch.cat([block.topk(min(BEST, n)).indices for block in columns])
    places = torch.arange(n)[:, None] * m + of_rows, of_columns * m + torch.arange(m)[:, None]
    pairs: Ints = torch.unique(torch.cat([place.flatten() for place in places])).numpy()
    return pairs


def _costs(parts: tuple[Float[Tensor, "_ m"], ...], pairs: Ints) -> Floats:
    """Of pairs in their order. Above 0, since SciPy's sparse matrices hold no zeros."""
    m, begin, similar = parts[0].shape[1], 0, []
    for part in parts:
        low, high = np.searchsorted(pairs, (begin * m, (begin + len(part)) * m))
        similar.append(part.flatten()[torch.from_numpy(pairs[low:high] - begin * m)].double().numpy())
        begin += len(part)
    costs: Floats = 2.0 - np.concatenate(similar)
    return costs


def _solve(rows: Ints, columns: Ints, costs: Floats, size: tuple[int, int]) -> tuple[Ints, Ints] | None:
    """Rows and columns, in the order of the rows."""
    from scipy.sparse import csr_array  # noqa: PLC0415
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching  # noqa: PLC0415

    try:
        found = min_weight_full_bipartite_matching(csr_array((costs, (rows, columns)), shape=size))
    except ValueError:  # no full matching
        return None
    order = np.argsort(found[0])
    return found[0][order].astype(np.int64), found[1][order].astype(np.int64)


def _prices(
    rows: Ints, columns: Ints, costs: Floats, chosen: tuple[Ints, Ints], size: tuple[int, int]
) -> tuple[Floats, Floats] | None:
    """Prices of rows and of columns, whose sum is at most a pair's cost, and just that of a chosen one.

    Those of the longer side are at most 0: shortest paths (Bellman, Ford) on which one of the shorter side, all of
    which are chosen, gives up its partner for another one. None if rounding hides them.
    """
    tall = size[0] > size[1]
    short, long = (columns, rows) if tall else (rows, columns)
    partner = np.empty(min(size), dtype=np.int64)
    partner[chosen[tall]] = chosen[not tall]
    order = np.argsort(long, kind="stable")
    short, long, costs = short[order], long[order], costs[order]
    own, is_own = np.empty(len(partner)), partner[short] == long
    own[short[is_own]] = costs[is_own]
    step, before = costs - own[short], partner[short]
    starts = np.flatnonzero(np.r_[True, long[1:] != long[:-1]])
    there, prices = long[starts], np.zeros(max(size))
    for _ in range(100 * ROUNDS):
        lower = np.minimum(prices[there], np.minimum.reduceat(prices[before] + step, starts))
        if (prices[there] - lower).max() <= SETTLED:
            both = own - prices[partner], prices
            return (both[1], both[0]) if tall else both
        prices[there] = lower
    return None


def _worth_adding(parts: tuple[Float[Tensor, "_ m"], ...], of_rows: Floats, of_columns: Floats) -> Ints:
    """Places in the flat matrix of the pairs that cost less than the prices of their row and column together."""
    m, dtype = parts[0].shape[1], parts[0].dtype
    least = torch.from_numpy(2.0 - of_rows + TOLERANCE).to(dtype)
    added = torch.from_numpy(of_columns).to(dtype)
    total, found = torch.empty(ROWS, m, dtype=dtype), [torch.empty(0, dtype=torch.long)]
    for begin, block in _blocks(parts):
        worth = torch.add(block, added, out=total[: len(block)])
        rows = torch.nonzero(worth.amax(1) > least[begin : begin + len(block)])[:, 0]
        if len(rows) > 0:
            better, columns = torch.nonzero(worth[rows] > least[begin + rows, None], as_tuple=True)
            found.append((begin + rows[better]) * m + columns)
    places: Ints = torch.cat(found).numpy()
    return places


def _blocks(parts: tuple[Float[Tensor, "_ m"], ...]) -> Iterator[tuple[int, Float[Tensor, "_ m"]]]:
    """A few rows at a time, and the place of the first."""
    begin = 0
    for part in parts:
        for block in torch.split(part, ROWS):
            yield begin, block
            begin += len(block)
