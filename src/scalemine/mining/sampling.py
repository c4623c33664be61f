"""Random choices that depend on a seed and a row's id alone: not on order, shards, workers or restarts.

Each row has a priority, hash(seed, purpose, id); a sample of k is the k rows of lowest priority, so samples of parts
merge into the sample of the whole.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.corpus import Corpus, Shard
from scalemine.executor import Executor

FloatArray = NDArray[np.float64]

# Shards that one task goes through: enough that starting it costs nothing.
SHARDS_PER_TASK = 16


def row_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit key ``(N,)`` of each id."""
    digests = b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def priorities(keys_N: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return the priority ``(N,)`` of each row: uniform over 64 bits, and independent between purposes.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood (2014).
    """
    salt = np.frombuffer(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest(), "<u8")[0]
    mixed = keys_N ^ salt
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed, np.uint64)


def race(log_weights_N: FloatArray, priorities_N: NDArray[np.uint64]) -> FloatArray:
    """Return keys ``(N,)`` whose ``k`` least are a sample without replacement with these weights, infinite at weight 0.

    Of equal weights, the lowest priorities have the least keys.

    Source: Efraimidis and Spirakis (2006), as logarithms of exponential waiting times.
    """
    uniform_N = (priorities_N.astype(np.float64) + 0.5) / 2.0**64
    return np.log(-np.log1p(-np.minimum(uniform_N, 1 - 2.0**-53))) - log_weights_N


def lowest(keys_N: NDArray[Any], size: int, ties_N: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
    """Return the indices of the ``size`` lowest keys, in order; of equal ones the lowest tie, then the first."""
    if size < len(keys_N):
        bound = np.partition(keys_N, size - 1)[size - 1]
        candidates = np.flatnonzero(keys_N <= bound)
    else:
        candidates = np.arange(len(keys_N))
    keys = (keys_N[candidates],) if ties_N is None else (ties_N[candidates], keys_N[candidates])
    return candidates[np.lexsort(keys)][:size].astype(np.int64)


def groups(shards: Sequence[Shard], size: int = SHARDS_PER_TASK) -> list[tuple[Shard, ...]]:
    """Return the shards in groups, each the work of one task."""
    return [tuple(shards[start : start + size]) for start in range(0, len(shards), size)]


@dataclass(frozen=True)
class Row:
    """A row of the corpus, its place there, and what was asked for of its further columns."""

    shard: str
    row: int
    id: str
    text: str
    more: tuple[str | None, ...] = ()


class _Sampler:
    def __init__(self, corpus: Corpus, size: int, seed: int, purpose: str) -> None:
        self._corpus, self._size, self._seed, self._purpose = corpus, size, seed, purpose

    def __call__(self, shards: tuple[Shard, ...]) -> list[tuple[int, str, int]]:
        """Return priority, shard and row of the lowest priorities of some shards."""
        found: list[tuple[int, str, int]] = []
        for shard in shards:
            ids = self._corpus.read(shard, columns=["id"])["id"].to_pylist()
            priorities_N = priorities(row_keys(ids), self._seed, self._purpose)
            rows = lowest(priorities_N, self._size)
            found += [(int(priorities_N[row]), shard.name, int(row)) for row in rows]
            found = sorted(found)[: self._size]
        return found


def sample_places(corpus: Corpus, size: int, *, seed: int, purpose: str, executor: Executor) -> list[tuple[str, int]]:
    """Return the places (shard, row) of a simple random sample of the corpus, in order of priority."""
    found: list[tuple[int, str, int]] = []
    for outcome in executor.map(partial(_Sampler, corpus, size, seed, purpose), groups(corpus.shards)):
        if outcome.error is not None or outcome.result is None:
            raise RuntimeError(f"the corpus cannot be sampled:\n{outcome.error}")
        found = sorted(found + outcome.result)[:size]
    return [(shard, row) for _, shard, row in found]


def sample_corpus(corpus: Corpus, size: int, *, seed: int, purpose: str, executor: Executor) -> list[Row]:
    """Return a simple random sample of the corpus, in order of priority; all of it if it has no more rows."""
    return fetch_rows(corpus, sample_places(corpus, size, seed=seed, purpose=purpose, executor=executor))


def fetch_rows(corpus: Corpus, places: Sequence[tuple[str, int]], columns: Sequence[str] = ()) -> list[Row]:
    """Return the rows at given places (shard, row), in that order, with further columns; each shard is read once."""
    shards = {shard.name: shard for shard in corpus.shards}
    wanted: dict[str, list[int]] = {}
    for shard, row in places:
        wanted.setdefault(shard, []).append(row)
    rows: dict[tuple[str, int], Row] = {}
    for name, indices in wanted.items():
        table = corpus.read(shards[name], columns=["id", "text", *columns]).take(pa.array(indices))
        values = (table[column].to_pylist() for column in ("id", "text", *columns))
        for index, id_, text, *more in zip(indices, *values, strict=True):
            rows[name, index] = Row(name, index, id_, text, tuple(more))
    return [rows[place] for place in places]
