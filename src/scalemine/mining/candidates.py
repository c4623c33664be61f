"""Candidates: per cell, the tweets of the corpus that it may take, in the order in which it takes them.

Where the score is S_an, each shard proposes the rows of least key and the lists are merged; where each positive asks by
itself, its nearest tweets are searched; where a model scored tweets, its scores are the order. Keys hang on the seed,
the row and its stored similarities: not on shards, workers or restarts.

Shapes: N rows of a shard, K classes, C clusters, D dimensions, M positives, R neighbours of a positive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalemine.config import MiningConfig
from scalemine.corpus import Shard
from scalemine.executor import Executor
from scalemine.mining.anchors import Anchors
from scalemine.mining.embeddings import Similarities
from scalemine.mining.index import search
from scalemine.mining.sampling import Row, fetch_rows, groups, lowest, priorities, race, row_keys
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, similarities
from scalemine.mining.strategies import NEVER, Rule, weigh_neighbours
from scalemine.shards import Embeddings

FloatArray = NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]
# Given how many candidates each cell wants: a list for each, in order, of all that it may take if it is shorter.
Propose = Callable[[Sequence[int]], list[list[Row]]]


@dataclass(frozen=True, eq=False)
class View:
    """The corpus as one encoder sees it.

    Args:
        similarities: S_an of the corpus, as stored.
        anchors: Anchors and positives, float32.
        normals: The fitted normal per class.
        encode: Texts to float32 embeddings, rows of length 1.
        margin: How far a stored S_an may be off.
        embeddings: Of the corpus, where they are kept.
        columns: Further columns of the corpus that candidates are to carry.
    """

    similarities: Similarities
    anchors: Anchors
    normals: dict[str, Normal]
    encode: Encode
    margin: float
    embeddings: Embeddings | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A class and a kind of negatives, to be filled as one encoder sees the corpus.

    Args:
        class_index: Of the class.
        class_name: Of the class.
        kind: Of negatives, such as 3s.
        quota: How many are wanted.
        rule: Which may be taken, and in which order.
        view: Number of the view that the rule looks at.
    """

    class_index: int
    class_name: str
    kind: str
    quota: int
    rule: Rule
    view: int = 0

    @property
    def purpose(self) -> str:
        """What the priorities of this cell are for, so that they differ from another cell's."""
        return f"negatives:{self.class_name}:{self.kind}" + (f":{self.view}" if self.view else "")


class Proposal(NamedTuple):
    """A row in a list of candidates; lists are in this order."""

    key: float
    priority: int
    shard: str
    row: int
    cluster: int = 0


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of the corpus, to draw from evenly.

    Args:
        grid_CD: Centroids, from ``similarity.anchor_grid``.
        skipped: Clusters that nothing is taken from.
    """

    grid_CD: FloatArray
    skipped: frozenset[int]

    def of(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.int64]:
        """Return the nearest cluster ``(N,)`` of each row."""
        return np.asarray(similarities(vectors_ND, self.grid_CD).argmax(axis=1), np.int64)


# What a worker needs of a view: its encoder stays in this process.
_ViewFiles = tuple[Similarities, Embeddings | None, float]


class _Selector:
    """The worker that returns each cell's candidates of least key in some shards."""

    def __init__(
        self,
        views: Sequence[_ViewFiles],
        cells: Sequence[Cell],
        sizes: Sequence[int],
        seed: int,
        clusters: Clusters | None,
    ) -> None:
        self._views = views
        self._cells, self._sizes, self._seed, self._clusters = cells, sizes, seed, clusters

    def __call__(self, shards: tuple[Shard, ...]) -> list[list[Proposal]]:
        """Return a list per cell, in order."""
        found: list[list[Proposal]] = [[] for _ in self._cells]
        for number, (stored, embeddings, margin) in enumerate(self._views):
            for shard in shards:
                keys_N, steps_NK, valid_N = stored.steps(shard)
                cosines_NK = steps_NK / float(STEPS_PER_UNIT)
                for index, cell in enumerate(self._cells):
                    if cell.view == number:
                        priorities_N = priorities(keys_N, self._seed, cell.purpose)
                        order_N = np.where(valid_N, cell.rule.keys(cosines_NK, priorities_N, margin), np.inf)
                        found[index] += self._proposals(shard, order_N, priorities_N, self._sizes[index], embeddings)
        return [_least(cell, size) for cell, size in zip(found, self._sizes, strict=True)]

    def _proposals(
        self,
        shard: Shard,
        order_N: NDArray[np.float64],
        priorities_N: NDArray[np.uint64],
        size: int,
        embeddings: Embeddings | None,
    ) -> Iterable[Proposal]:
        eligible = np.flatnonzero(order_N < np.inf)
        if self._clusters is None:
            clusters = np.zeros(len(eligible), np.int64)
        else:
            assert embeddings is not None
            clusters = self._clusters.of(embeddings.vectors(shard)[0][eligible])
        for cluster in np.unique(clusters):
            rows = eligible[clusters == cluster]
            if self._clusters is None or int(cluster) not in self._clusters.skipped:
                for row in rows[lowest(order_N[rows], size, priorities_N[rows])]:
                    yield Proposal(float(order_N[row]), int(priorities_N[row]), shard.name, int(row), int(cluster))


def _least(proposals: Iterable[Proposal], size: int) -> list[Proposal]:
    """Return the least of each cluster, the clusters in turn: the first of each, then the second of each, and so on."""
    by_cluster: dict[int, list[Proposal]] = {}
    for proposal in sorted(proposals):
        members = by_cluster.setdefault(proposal.cluster, [])
        if len(members) < size:
            members.append(proposal)
    turns = itertools.zip_longest(*by_cluster.values())
    return [proposal for turn in turns for proposal in sorted(filter(None, turn))][:size]


def by_score(
    views: Sequence[View], cells: Sequence[Cell], seed: int, executor: Executor, clusters: Clusters | None = None
) -> Propose:
    """Return what proposes by S_an, in one pass over the corpus for all cells."""
    files: list[_ViewFiles] = [(view.similarities, view.embeddings, view.margin) for view in views]

    def propose(sizes: Sequence[int]) -> list[list[Row]]:
        # The places of a window are those of the whole corpus.
        sizes = [cell.rule.window[1] or size for size, cell in zip(sizes, cells, strict=True)]
        found: list[list[Proposal]] = [[] for _ in cells]
        worker = partial(_Selector, files, cells, sizes, seed, clusters)
        for outcome in executor.map(worker, groups(views[0].similarities.corpus.shards)):
            if outcome.error is not None or outcome.result is None:
                raise RuntimeError(f"candidates cannot be selected:\n{outcome.error}")
            found = [_least(a + b, size) for a, b, size in zip(found, outcome.result, sizes, strict=True)]
        return _fetch(views[0], [_in_window(cell.rule, rows) for cell, rows in zip(cells, found, strict=True)])

    return propose


def _in_window(rule: Rule, proposals: list[Proposal]) -> list[Proposal]:
    inside = proposals[slice(*rule.window)]
    return sorted(inside, key=lambda proposal: proposal.priority) if rule.draw_window else inside


def _fetch(view: View, found: Sequence[Sequence[Proposal]]) -> list[list[Row]]:
    places = sorted({(proposal.shard, proposal.row) for cell in found for proposal in cell})
    rows = dict(zip(places, fetch_rows(view.similarities.corpus, places, view.columns), strict=True))
    return [[rows[proposal.shard, proposal.row] for proposal in cell] for cell in found]


def by_positive(
    view: View, cells: Sequence[Cell], config: MiningConfig, seed: int, executor: Executor, threads: int
) -> Propose:
    """Return what proposes the nearest tweets of each positive, by a window of ranks, a margin, or SimANS.

    The positives of a class take in turn, each its first, then each its second; or all draw together, alike.
    """
    assert view.embeddings is not None
    anchors = view.anchors
    neighbours = search(view.embeddings, anchors.positives_MD, config.rank_max, executor=executor, threads=threads)
    weights_MR = weigh_neighbours(config, neighbours.cosines_QK.astype(np.float64), nearest_sibling(anchors))
    found: list[list[Proposal]] = []
    for cell in cells:
        least: dict[tuple[str, int], Proposal] = {}
        for positive in np.flatnonzero(anchors.positive_class_M == cell.class_index).tolist():
            ids, places = neighbours.ids[positive], neighbours.places(positive)
            purpose = f"{cell.purpose}:{anchors.positive_ids[positive]}"
            priorities_R = priorities(row_keys(ids), seed, purpose)
            weights_R = weights_MR[positive, : len(ids)]
            keys_R = _turns(weights_R) if config.sampling == "top" else _draw(weights_R, priorities_R)
            for place, key, priority in zip(places, keys_R.tolist(), priorities_R.tolist(), strict=True):
                if key < np.inf:
                    proposal = Proposal(key, priority, *place)
                    least[place] = min(proposal, least.get(place, proposal))
        found.append(sorted(least.values()))
    candidates = _fetch(view, found)
    return lambda sizes: [rows[:size] for rows, size in zip(candidates, sizes, strict=True)]


def nearest_sibling(anchors: Anchors) -> NDArray[np.float64]:
    """Return the cosine ``(M,)`` of each positive to the nearest other one of its class; 1 where it is the only one."""
    vectors_MD = anchors.positives_MD.astype(np.float64)
    nearest_M = np.ones(len(vectors_MD))
    for positive, vector_D in enumerate(vectors_MD):
        siblings_M = anchors.positive_class_M == anchors.positive_class_M[positive]
        siblings_M[positive] = False
        if siblings_M.any():
            nearest_M[positive] = (vectors_MD[siblings_M] @ vector_D).max()
    return nearest_M


def _turns(weights_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place ``(R,)`` of each neighbour among the eligible, the heaviest first and of equals the nearest."""
    eligible_R = weights_R > NEVER
    turns_R = np.full(len(weights_R), np.inf)
    order = np.argsort(-weights_R, kind="stable")[: int(eligible_R.sum())]
    turns_R[order] = np.arange(len(order))
    return turns_R


def _draw(weights_R: NDArray[np.float64], priorities_R: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return keys ``(R,)`` of a draw in which each positive has the same say, whatever its neighbours weigh."""
    eligible_R = weights_R > NEVER
    if not eligible_R.any():
        return np.full(len(weights_R), np.inf)
    total = np.logaddexp.reduce(weights_R[eligible_R])
    return race(weights_R - total, priorities_R)


@dataclass(frozen=True)
class Scored:
    """A tweet that a model took for a positive: the higher the score, the surer it was."""

    row: Row
    score: float
    class_name: str


def by_model(cells: Sequence[Cell], scored: Sequence[Scored], seed: int) -> Propose:
    """Return what proposes the tweets that a model scored, the highest score first."""
    found = []
    for cell in cells:
        mine = [one for one in scored if one.class_name == cell.class_name]
        priorities_N = priorities(row_keys([one.row.id for one in mine]), seed, cell.purpose).tolist()
        order = sorted(range(len(mine)), key=lambda i: (-mine[i].score, priorities_N[i]))
        found.append([mine[i].row for i in order])
    return lambda sizes: [rows[:size] for rows, size in zip(found, sizes, strict=True)]


class _StratumSampler:
    """The worker that counts the rows of each stratum in some shards, and returns those of lowest priority."""

    def __init__(
        self,
        stored: Similarities,
        normals: Sequence[Normal],
        edges: Sequence[float],
        size: int,
        seed: int,
        purpose: str,
    ) -> None:
        self._stored, self._normals, self._edges, self._size = stored, normals, edges, size
        self._seed, self._purpose = seed, purpose

    def __call__(self, shards: tuple[Shard, ...]) -> tuple[list[int], list[list[tuple[int, str, int]]]]:
        """Return per stratum the number of rows, and (priority, shard, row) of some."""
        counts = [0] * (len(self._edges) + 1)
        found: list[list[tuple[int, str, int]]] = [[] for _ in counts]
        for shard in shards:
            keys_N, steps_NK, valid_N = self._stored.steps(shard)
            z_KN = [normal.z(steps_NK[:, k] / STEPS_PER_UNIT) for k, normal in enumerate(self._normals)]
            stratum_N = np.where(valid_N, np.digitize(np.max(z_KN, axis=0), self._edges), -1)
            for stratum in range(len(counts)):
                rows = np.flatnonzero(stratum_N == stratum)
                counts[stratum] += len(rows)
                priorities_N = priorities(keys_N[rows], self._seed, f"{self._purpose}:{stratum}")
                chosen = lowest(priorities_N, self._size)
                found[stratum] += [(int(priorities_N[i]), shard.name, int(rows[i])) for i in chosen]
        return counts, [sorted(part)[: self._size] for part in found]


def sample_by_z(
    view: View,
    normals: Sequence[Normal],
    edges: Sequence[float],
    size: int,
    *,
    seed: int,
    purpose: str,
    executor: Executor,
) -> tuple[list[int], list[list[Row]]]:
    """Return, per stratum of the largest z over the classes, how many rows of the corpus it has, and a sample of them.

    Args:
        view: Similarities of the corpus.
        normals: Of the classes, in order.
        edges: Rising z that part the strata.
        size: Rows of a sample, or all of a smaller stratum.
        seed: Of the draw.
        purpose: Draws for other purposes are independent.
        executor: Where the corpus is gone through.
    """
    counts = [0] * (len(edges) + 1)
    found: list[list[tuple[int, str, int]]] = [[] for _ in counts]
    corpus = view.similarities.corpus
    worker = partial(_StratumSampler, view.similarities, normals, edges, size, seed, purpose)
    for outcome in executor.map(worker, groups(corpus.shards)):
        if outcome.error is not None or outcome.result is None:
            raise RuntimeError(f"the corpus cannot be sampled:\n{outcome.error}")
        counts = [a + b for a, b in zip(counts, outcome.result[0], strict=True)]
        found = [sorted(a + b)[:size] for a, b in zip(found, outcome.result[1], strict=True)]
    rows = iter(fetch_rows(corpus, [(shard, row) for part in found for _, shard, row in part], view.columns))
    return counts, [[next(rows) for _ in part] for part in found]
