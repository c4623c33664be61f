"""Difficult negatives: for each class and band, tweets of the corpus whose S_an lies in the band.

The stored S_an (low precision, rounded) only proposes candidates; each one that is taken was encoded again in float32
and lies in its band by that. Candidates are gone through in order of priority, so the outcome depends on the seed and
the corpus alone.

Shapes: N rows of a shard, K classes, D dimensions, M positives.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.config import MiningConfig
from scalemine.corpus import Shard
from scalemine.executor import Executor
from scalemine.mining.anchors import Anchors, Positives
from scalemine.mining.embeddings import Similarities
from scalemine.mining.sampling import Row, fetch_rows, groups, lowest, priorities
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, Tails
from scalemine.text import duplicate_key

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]

# Why a candidate was not taken.
OUTSIDE = "outside its band in float32"
OF_POSITIVE = "copy of a positive"
OF_NEGATIVE = "copy of a negative already taken"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("class_name", pa.string()),
        ("band", pa.int8()),
        ("cosine", pa.float32()),
        ("z", pa.float32()),
        ("nearest_positive_id", pa.string()),
        ("nearest_positive_cosine", pa.float32()),
        ("false_negative_probability", pa.float32()),
        ("strategy", pa.string()),
        ("seed", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Cell:
    """A class and a band to fill."""

    class_index: int
    class_name: str
    band: int
    quota: int
    normal: Normal
    tails: Tails

    @property
    def purpose(self) -> str:
        """What the priorities of this cell are for, so that they differ from another cell's."""
        return f"negatives:{self.class_name}:{self.band}"

    def proposes(self, steps_N: NDArray[np.int16], margin: float) -> NDArray[np.bool_]:
        """Return which rows may lie in the band, given how far a stored S_an can be off."""
        return self.normal.in_band(steps_N.astype(np.float64) / STEPS_PER_UNIT, self.band, self.tails, margin=margin)

    def holds(self, cosine: float) -> bool:
        """Return whether a cosine lies in the band."""
        return bool(self.normal.in_band(np.array([cosine]), self.band, self.tails)[0])


@dataclass(frozen=True)
class MinedNegatives:
    """The mined negatives, and how many candidates were passed over by each rule.

    Args:
        table: The columns of ``SCHEMA``; by class, band and priority.
        passed_over: Candidates by reason.
        num_candidates: Candidates encoded in float32.
    """

    table: pa.Table
    passed_over: dict[str, int]
    num_candidates: int


def quotas(config: MiningConfig, positives: Positives, test: Positives | None) -> dict[tuple[str, int], int]:
    """Return how many negatives each class and band is to have.

    ``match`` asks for as many as the class has positives, those of the test sets included.
    """
    wanted: dict[tuple[str, int], int] = {}
    for name in positives.class_names:
        matching = positives.count(name) + (test.count(name) if test else 0)
        for band in config.bands:
            wanted[name, band] = matching if config.per_class == "match" else int(config.per_class)
    return wanted


class _Selector:
    """The worker that returns each cell's candidates of lowest priority in some shards."""

    def __init__(
        self, similarities: Similarities, cells: Sequence[Cell], sizes: Sequence[int], seed: int, margin: float
    ) -> None:
        self._similarities, self._cells, self._sizes = similarities, cells, sizes
        self._seed, self._margin = seed, margin

    def __call__(self, shards: tuple[Shard, ...]) -> list[list[tuple[int, str, int]]]:
        """Return per cell (priority, shard, row), sorted."""
        found: list[list[tuple[int, str, int]]] = [[] for _ in self._cells]
        for shard in shards:
            keys_N, steps_NK, valid_N = self._similarities.steps(shard)
            for index, cell in enumerate(self._cells):
                inside = np.flatnonzero(cell.proposes(steps_NK[:, cell.class_index], self._margin) & valid_N)
                priorities_N = priorities(keys_N[inside], self._seed, cell.purpose)
                chosen = lowest(priorities_N, self._sizes[index])
                found[index] += [(int(priorities_N[i]), shard.name, int(inside[i])) for i in chosen]
        return [sorted(cell)[:size] for cell, size in zip(found, self._sizes, strict=True)]


def _propose(
    similarities: Similarities,
    cells: Sequence[Cell],
    sizes: Sequence[int],
    *,
    seed: int,
    margin: float,
    executor: Executor,
) -> list[list[Row]]:
    """Return per cell its candidates of lowest priority in the whole corpus, in order."""
    found: list[list[tuple[int, str, int]]] = [[] for _ in cells]
    worker = partial(_Selector, similarities, cells, sizes, seed, margin)
    for outcome in executor.map(worker, groups(similarities.corpus.shards)):
        if outcome.error is not None or outcome.result is None:
            raise RuntimeError(f"candidates cannot be selected:\n{outcome.error}")
        found = [sorted(a + b)[:size] for a, b, size in zip(found, outcome.result, sizes, strict=True)]
    places = sorted({(shard, row) for cell in found for _, shard, row in cell})
    rows = dict(zip(places, fetch_rows(similarities.corpus, places), strict=True))
    return [[rows[shard, row] for _, shard, row in cell] for cell in found]


@dataclass
class _Choice:
    """The choice in progress: what is known of the candidates, across rounds."""

    cells: Sequence[Cell]
    encode: Encode
    anchors: Anchors
    positive_keys: frozenset[bytes]
    vectors: dict[str, FloatArray] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)

    def key(self, row: Row) -> bytes:
        """Return the key that copies of a tweet share."""
        if row.text not in self.keys:
            self.keys[row.text] = duplicate_key(row.text)
        return self.keys[row.text]

    def cosine(self, row: Row, cell: Cell) -> float | None:
        """Return the float32 S_an of a row, None where it was not encoded yet."""
        vector = self.vectors.get(row.text)
        if vector is None:
            return None
        # Summed in float64 and in one fixed order, so that it is the same in whatever company it is computed.
        return float((vector.astype(np.float64) * self.anchors.vectors_KD[cell.class_index].astype(np.float64)).sum())

    def take(self, candidates: Sequence[Sequence[Row]], order: Sequence[int]) -> tuple[list[list[Row]], Counter[str]]:
        """Fill the cells from their candidates: each tweet once, no copy of a positive, none known to lie outside."""
        taken: set[bytes] = set()
        chosen: list[list[Row]] = [[] for _ in self.cells]
        passed_over: Counter[str] = Counter()
        for index in order:
            cell = self.cells[index]
            for row in candidates[index]:
                if len(chosen[index]) == cell.quota:
                    break
                cosine = self.cosine(row, cell)
                if self.key(row) in self.positive_keys:
                    passed_over[OF_POSITIVE] += 1
                elif self.key(row) in taken:
                    passed_over[OF_NEGATIVE] += 1
                elif cosine is not None and not cell.holds(cosine):
                    passed_over[OUTSIDE] += 1
                else:
                    taken.add(self.key(row))
                    chosen[index].append(row)
        return chosen, passed_over

    def verify(self, candidates: Sequence[Sequence[Row]], order: Sequence[int]) -> tuple[list[list[Row]], Counter[str]]:
        """Return the choice in which every tweet was encoded in float32 and lies in its band."""
        while True:
            chosen, passed_over = self.take(candidates, order)
            unknown = sorted({row.text for rows in chosen for row in rows} - self.vectors.keys())
            if not unknown:
                return chosen, passed_over
            self.vectors.update(zip(unknown, self.encode(unknown), strict=True))


def mine_negatives(
    similarities: Similarities,
    anchors: Anchors,
    normals: Mapping[str, Normal],
    config: MiningConfig,
    *,
    wanted: Mapping[tuple[str, int], int],
    available: Mapping[tuple[str, int], int],
    exclude: Sequence[str],
    encode: Encode,
    margin: float,
    seed: int,
    executor: Executor,
) -> MinedNegatives:
    """Mine the negatives of every class and band.

    Args:
        similarities: S_an of the corpus.
        anchors: Anchors and positives.
        normals: The fitted normal per class.
        config: Tails and strategy.
        wanted: Negatives per class and band.
        available: Tweets per class and band; the scarcest is served first when two want the same tweet.
        exclude: Texts whose copies are no negatives: the positives, of training and test.
        encode: Texts to float32 embeddings, rows of length 1.
        margin: How far a stored S_an may be off.
        seed: Of the choice.
        executor: Where the corpus is gone through.
    """
    cells = [
        Cell(index, name, band, wanted[name, band], normals[name], config.tails)
        for index, name in enumerate(anchors.class_names)
        for band in config.bands
    ]
    order = sorted(
        range(len(cells)),
        key=lambda i: (
            available[cells[i].class_name, cells[i].band] / cells[i].quota,
            cells[i].class_name,
            cells[i].band,
        ),
    )
    choice = _Choice(cells, encode, anchors, frozenset(map(duplicate_key, exclude)))
    # Room for what will be passed over; where it is used up, the lists are made again, longer.
    sizes = [cell.quota + cell.quota // 4 + 64 for cell in cells]
    while True:
        candidates = _propose(similarities, cells, sizes, seed=seed, margin=margin, executor=executor)
        chosen, passed_over = choice.verify(candidates, order)
        cut_short = [len(chosen[i]) < cells[i].quota and len(candidates[i]) == sizes[i] for i in range(len(cells))]
        if not any(cut_short):
            break
        sizes = [size * 4 if cut else size for size, cut in zip(sizes, cut_short, strict=True)]
    table = _table(cells, chosen, choice, config.strategy, seed)
    return MinedNegatives(table, dict(passed_over), len(choice.vectors))


def _table(
    cells: Sequence[Cell], chosen: Sequence[Sequence[Row]], choice: _Choice, strategy: str, seed: int
) -> pa.Table:
    """Return the chosen rows with what is known of them."""
    rows = []
    for cell, members in zip(cells, chosen, strict=True):
        for row in members:
            cosine = choice.cosine(row, cell)
            assert cosine is not None
            near_M = choice.anchors.positives_MD @ choice.vectors[row.text]
            nearest = int(near_M.argmax())
            rows.append(
                {
                    "id": row.id,
                    "text": row.text,
                    "class_name": cell.class_name,
                    "band": cell.band,
                    "cosine": cosine,
                    "z": float(cell.normal.z(np.array([cosine]))[0]),
                    "nearest_positive_id": choice.anchors.positive_ids[nearest],
                    "nearest_positive_cosine": float(near_M[nearest]),
                    "false_negative_probability": None,
                    "strategy": strategy,
                    "seed": seed,
                }
            )
    return pa.Table.from_pylist(rows, schema=SCHEMA)
