"""Reading a part of the corpus: its shards in an order of the seed, and how many of them to try mining with.

Mining is tried with the first shards of that order: with as many as the probe says are needed, then with more and more
until every quota is filled. The numbers that are tried are of one fixed series, 1, 2, 3, 4, 6, 8, 12, 16 and so on, so
where mining stops depends on the seed and the corpus, not on workers, nor on what was encoded before.

Shapes: P rows of a probe, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from scalemine.corpus import Corpus, Shard
from scalemine.mining.candidates import Cell

FloatArray = NDArray[np.float64]

# Some of what a cell may take are copies, or taken by another cell.
ROOM = 1.25
# Where tweets are drawn by weights, the heaviest have to be far more than are drawn: else the light ones are, too.
ROOM_OF_WEIGHTED = 10.0


def seeded_order(shards: Sequence[Shard], seed: int) -> list[Shard]:
    """Return the shards in the order in which they are read."""

    def priority(shard: Shard) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{seed}:shard:{shard.name}".encode(), digest_size=8).digest(), shard.name

    return sorted(shards, key=priority)


def first_shards(corpus: Corpus, num: int, seed: int) -> Corpus:
    """Return the corpus of the first shards of the seed's order; they lie as in the whole corpus."""
    kept = {shard.name for shard in seeded_order(corpus.shards, seed)[:num]}
    return dataclasses.replace(corpus, shards=tuple(shard for shard in corpus.shards if shard.name in kept))


def waves(corpus: Corpus, num_rows: float, seed: int) -> Iterator[Corpus]:
    """Yield the parts of the corpus to try, each within the next, the last the whole.

    Args:
        corpus: The whole.
        num_rows: The first part has at least so many rows.
        seed: Of the order.
    """
    rows = np.cumsum([shard.num_rows for shard in seeded_order(corpus.shards, seed)])
    for num in _sizes(len(rows)):
        if num == len(rows) or rows[num - 1] >= num_rows:
            yield first_shards(corpus, num, seed)


def _sizes(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12 and so on, below ``most``, and ``most``."""
    power = 1
    while power < most:
        yield power
        if power > 1 and power // 2 * 3 < most:
            yield power // 2 * 3
        power *= 2
    yield most


def effective_share(log_weights_P: FloatArray) -> float:
    """Return which share of the corpus has a say in a draw with these weights, going by a sample; never 0.

    Of weights 0 and 1 it is the share of the ones. A row is added of which half has a say, so that no hit in a small
    sample does not pass for none in the corpus.

    Source: Kish (1965), effective sample size: (sum w)^2 / sum w^2.
    """
    weights_P = np.exp(log_weights_P - max(log_weights_P.max(initial=-np.inf), -np.finfo(np.float64).max))
    squares = float((weights_P**2).sum())
    effective = float(weights_P.sum()) ** 2 / squares if squares else 0.0
    return (effective + 0.5) / (len(weights_P) + 1)


def rows_needed(cells: Sequence[Cell], cosines: Sequence[FloatArray]) -> float:
    """Return about how many rows of the corpus fill the scarcest cell.

    Args:
        cells: What is to be filled.
        cosines: Of each view, those ``(P, K)`` of its probe.
    """
    needed = ROOM * sum(cell.quota for cell in cells)
    for cell in cells:
        log_weights_P = cell.rule.weigh(cosines[cell.view], 0.0)
        eligible = log_weights_P[log_weights_P > -np.inf]
        is_even = bool(np.ptp(eligible) == 0) if len(eligible) else True
        room = ROOM if is_even else ROOM_OF_WEIGHTED
        needed = max(needed, room * cell.quota / effective_share(log_weights_P))
    return needed
