"""The one-to-one assignment of the largest total: of small matrices by SciPy, of large ones by column generation.

Kuhn 1955. A large problem is solved on the few best pairs of each row and column. The prices of that solution tell
which other pairs could raise the total; these are added until there are none (Dantzig, Wolfe 1960). So the assignment
is as good as that over all pairs, most of which are only looked at, to see that they could not.
"""

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
ROWS = 64
"""Rows that are looked at together, so that they stay in a processor's cache, and columns."""


def largest_total(values: Float[Tensor, "n m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Rows and columns, each at most once, of the pairs with the largest total; k is the smaller of n and m.

    >>> rows, columns = largest_total(torch.tensor([[1.0, 0.9], [0.9, 0.0]]))
    >>> columns
    tensor([1, 0])

    Args:
        values: similarities, between -2 and 1.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    if values.numel() > LARGE:
        tall = values.shape[0] > values.shape[1]
        columns = by_column_generation(values.T if tall else values)
        if columns is not None:
            return (columns.sort().values, columns.argsort()) if tall else (torch.arange(len(columns)), columns)
    rows, columns = (torch.from_numpy(chosen) for chosen in linear_sum_assignment(values.numpy(), maximize=True))
    return rows, columns


def by_column_generation(values: Float[Tensor, "n m"]) -> Int[Tensor, " n"] | None:
    """The column of each row, n <= m; None where this is no way: the best pairs leave a row without a column.

    Many columns that are alike, for example, are all among the best of every row.
    """
    n, m = values.shape
    pairs = _best_pairs(values)
    for _ in range(ROUNDS):
        costs = _costs(values, *np.divmod(pairs, m))
        columns = _solve(pairs, costs, (n, m))
        prices = None if columns is None else _prices(pairs, costs, columns, m)
        if columns is None or prices is None:
            return None
        own = _costs(values, np.arange(n), columns)
        better = np.setdiff1d(_worth_adding(values, prices, own - prices[columns]), pairs, assume_unique=True)
        if len(better) == 0:
            return torch.from_numpy(columns)
        pairs = np.union1d(pairs, better)
    return None


def _costs(values: Float[Tensor, "n m"], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Above 0, since SciPy's sparse matrices hold no zeros."""
    similar: NDArray[np.float64] = values[torch.from_numpy(rows), torch.from_numpy(columns)].double().numpy()
    return 2.0 - similar


def _best_pairs(values: Float[Tensor, "n m"]) -> NDArray[np.int64]:
    """The best of each row and of each column, as sorted places in the flat matrix."""
    n, m = values.shape
    of_rows = torch.cat([part.topk(min(BEST, m), dim=1).indices for part in torch.split(values, ROWS)])
    of_columns = torch.cat([part.topk(min(BEST, n), dim=0).indices for part in torch.split(values, ROWS, 1)], 1)
    places = torch.arange(n)[:, None] * m + of_rows, of_columns * m + torch.arange(m)
    pairs: NDArray[np.int64] = torch.unique(torch.cat([place.flatten() for place in places])).numpy()
    return pairs


def _solve(pairs: NDArray[np.int64], costs: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64] | None:
    from scipy.sparse import csr_array  # noqa: PLC0415
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching  # noqa: PLC0415

    try:
        rows, columns = min_weight_full_bipartite_matching(csr_array((costs, np.divmod(pairs, size[1])), shape=size))
    except ValueError:  # no full matching
        return None
    found: NDArray[np.int64] = np.asarray(columns)[np.argsort(rows)].astype(np.int64)
    return found


def _prices(
    pairs: NDArray[np.int64], costs: NDArray[np.float64], columns: NDArray[np.int64], m: int
) -> NDArray[np.float64] | None:
    """The columns' prices, at most 0, that make each row prefer its own column; None if rounding hides them.

    Shortest paths (Bellman, Ford) on which a row gives up its column for another one.
    """
    order = np.argsort(pairs % m, kind="stable")
    row, column = np.divmod(pairs[order], m)
    own = np.empty(len(columns))
    is_own = columns[row] == column
    own[row[is_own]] = costs[order][is_own]
    step, before = costs[order] - own[row], columns[row]
    starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    there, prices = column[starts], np.zeros(m)
    for _ in range(100 * ROUNDS):
        lower = np.minimum(prices[there], np.minimum.reduceat(prices[before] + step, starts))
        if (prices[there] - lower).max() <= SETTLED:
            return prices
        prices[there] = lower
    return None


def _worth_adding(
    values: Float[Tensor, "n m"], prices: NDArray[np.float64], paid: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Places in the flat matrix of the pairs that cost less than their row pays and their column asks for together."""
    least = (2.0 - torch.from_numpy(paid) + TOLERANCE).to(values.dtype)[:, None]
    added = torch.from_numpy(prices).to(values.dtype)
    found = []
    for begin in range(0, len(values), ROWS):
        better = (values[begin : begin + ROWS] + added) > least[begin : begin + ROWS]
        if better.any():
            rows, columns = torch.nonzero(better, as_tuple=True)
            found.append((rows + begin) * values.shape[1] + columns)
    return torch.cat(found).numpy() if found else np.empty(0, dtype=np.int64)
