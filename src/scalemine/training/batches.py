"""Rows to batches: which go together, and how they are filled up.

Shapes: B rows, S tokens of the longest one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalemine.models import length_batches

Batch = dict[str, Tensor]

# Padded tokens of one batch where nothing is learnt, by the device's type.
BATCH_TOKENS = defaultdict(lambda: 4_096, cuda=32_768)
# Of a batch of one length; see even_batches.
_LEAST_ROWS, _LEAST_TOKENS = 8, 256


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of several lengths as one tensor ``(B, S)``, int64, filled up with a value."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def training_batches(
    costs: Sequence[int] | NDArray[np.int32], batch_size: int, bucket_batches: int, *, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return the batches of one epoch: every row once, in an order that depends on the seed and the epoch alone.

    Rows are shuffled, then sorted by length among ``bucket_batches`` batches at a time, so that little is filled up;
    then the batches are shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(costs))
    size = batch_size * bucket_batches
    pools = [order[start : start + size] for start in range(0, len(order), size)]
    if bucket_batches > 1:
        lengths = np.asarray(costs)
        pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[start : start + batch_size] for pool in pools for start in range(0, len(pool), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def prediction_batches(costs: Sequence[int] | NDArray[np.integer[Any]], budget: int) -> list[list[int]]:
    """Return batches of rows of about one length, with at most ``budget`` padded tokens each (one row at least)."""
    lengths = np.asarray(costs, np.int64)
    order = np.argsort(lengths, kind="stable")
    lengths, rows = lengths[order], order.tolist()
    batches: list[list[int]] = []
    start = 0
    while start < len(rows):
        # A batch only grows with each row of ascending length, so where it first grows too large can be searched.
        is_over = partial(_is_over, lengths=lengths, start=start, budget=budget)
        end = bisect_left(range(len(rows)), True, lo=start + 1, key=is_over)
        batches.append(rows[start:end])
        start = end
    return batches


def _is_over(last: int, lengths: NDArray[np.int64], start: int, budget: int) -> bool:
    """Return whether rows of ascending length, from the first to the last of a batch, are too many padded tokens."""
    return bool((last - start + 1) * lengths[last] > budget)


def even_batches(costs: Sequence[int] | NDArray[np.integer[Any]], budget: int) -> Iterator[tuple[list[int], int]]:
    """Yield batches of rows of one length, shortest first, each with how many of its rows count.

    Nothing is filled up, and batches are topped up with copies of their rows, which do not count: what a model makes of
    a row then has the same bits whatever else is there. Kernels for few rows or tokens round otherwise, and with one
    output for the last few rows, too, so there is always a multiple of ``_LEAST_ROWS``.
    """
    for rows in length_batches([max(1, int(cost)) for cost in costs], budget):
        wanted = max(len(rows), -(-_LEAST_TOKENS // max(1, int(costs[rows[0]]))))
        size = -(-wanted // _LEAST_ROWS) * _LEAST_ROWS
        yield (rows * -(-size // len(rows)))[:size], len(rows)


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Return a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
