"""Similarity search: the rows of the corpus whose vectors are nearest to a query; the only module that imports FAISS.

Rows and queries are rounded to the grid of ``similarity``, on which FAISS's float32 product sums have no rounding: they
are whole numbers, the same for any block, shard, thread or device. So the outcome is exact by a rule: the higher sum
first, equal sums by the id of the row. A cosine is a sum over the product of the grids' units; it differs from the
float32 cosine of the stored vectors by 0.0001 (standard deviation; 0.0006 at most in 66 million pairs of real tweets).

An approximate index, made on request, only proposes: the exact sums of what it proposes decide order and cosine.

Shapes: N rows of a block, V of them valid, Q queries, K hits of a query, C candidates, D dimensions.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from scalemine import bucket
from scalemine.config import IndexConfig, InputError
from scalemine.corpus import Shard
from scalemine.executor import IN_FLIGHT, Executor
from scalemine.mining.sampling import SHARDS_PER_TASK, groups, sample_places
from scalemine.mining.similarity import ANCHOR_COORDINATES_PER_UNIT, COORDINATES_PER_UNIT, anchor_grid, row_grid
from scalemine.shards import Embeddings, OnRows, ShardFiles, ShardJob, run_shards
from scalemine.store import write_whole

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
# Numbers of rows, each once and sorted, to whole numbers in the order of the rows' ids.
Rank = Callable[[IntArray], IntArray]

# What is in memory at a time: so many rows, and hits of so many queries.
BLOCK_ROWS = 16_384
BLOCK_QUERIES = 1_024
# Hits asked for beyond k, to see whether the tie at the k-th place ends. FAISS does not say which of equals it keeps.
SPARE = 16
# Queries whose ties are settled at a time; each takes the sums of a whole block.
TIED_QUERIES = 64
# Numbers of a block of candidates' vectors.
CANDIDATE_BLOCK = 2**21
# An index proposes this many times k in each shard.
CANDIDATES_PER_HIT = 4
GPU_MAX_K = 2_048
# FAISS asks for this many training rows per list.
ROWS_PER_LIST = 39
# Enough tasks to share out among workers, where there are as many shards.
NUM_TASKS = 16
# A place in the corpus is one number: the shard's, shifted, and the row.
SHARD_BITS = 32
NOWHERE = -1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of each query, best first; all queries have K, but where an approximate index finds fewer.

    Args:
        cosines_QK: The cosine to the query; nan where there is no K-th hit.
        shards_QK: Index of the shard in ``corpus.shards``; -1 where there is none.
        rows_QK: Row in the shard; -1 where there is none.
        ids: Ids of the hits, per query as many as there are.
        shard_names: The names of the shards.
    """

    cosines_QK: FloatArray
    shards_QK: IntArray
    rows_QK: IntArray
    ids: list[list[str]]
    shard_names: tuple[str, ...]

    def places(self, query: int) -> list[tuple[str, int]]:
        """Return shard and row of a query's hits, as ``sampling.fetch_rows`` takes them."""
        hits = slice(len(self.ids[query]))
        shards, rows = self.shards_QK[query, hits].tolist(), self.rows_QK[query, hits].tolist()
        return [(self.shard_names[shard], row) for shard, row in zip(shards, rows, strict=True)]


def search(
    embeddings: Embeddings,
    queries_QD: FloatArray,
    k: int,
    *,
    executor: Executor,
    index: Index | None = None,
    threads: int = 1,
    on_rows: OnRows | None = None,
) -> Neighbours:
    """Return the k nearest rows of each query in the whole corpus; all rows with a vector, where they are fewer.

    Args:
        embeddings: The finished embeddings of the corpus.
        queries_QD: Queries, float32 rows of length 1.
        k: Hits per query, from 1.
        executor: Where the shards are gone through.
        index: What proposes candidates; None: every row is looked at.
        threads: Threads of one worker.
        on_rows: Told how many rows of the corpus were gone through.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    shards = embeddings.corpus.shards
    worker = partial(_Searcher, embeddings, anchor_grid(queries_QD), k, index, threads)
    rank = partial(_rank, embeddings)
    hits = _nothing(len(queries_QD))
    group_size = min(SHARDS_PER_TASK, max(1, len(shards) // NUM_TASKS))
    for outcome in executor.map(worker, groups(shards, group_size)):
        if outcome.error is not None or outcome.result is None:
            raise RuntimeError(f"the corpus cannot be searched:\n{outcome.error}")
        hits = _merge(hits, outcome.result, k, rank)
        if on_rows:
            on_rows(sum(shard.num_rows for shard in outcome.item))
    return _neighbours(embeddings, *hits)


def _neighbours(embeddings: Embeddings, sums_QK: FloatArray, places_QK: IntArray) -> Neighbours:
    found_QK = places_QK != NOWHERE
    cosines_QK = sums_QK / np.float32(COORDINATES_PER_UNIT * ANCHOR_COORDINATES_PER_UNIT)
    ids = iter(_ids(embeddings, places_QK[found_QK]))
    return Neighbours(
        np.where(found_QK, cosines_QK, np.float32(np.nan)),
        np.where(found_QK, places_QK >> SHARD_BITS, NOWHERE),
        np.where(found_QK, places_QK & ((1 << SHARD_BITS) - 1), NOWHERE),
        [[next(ids) for _ in range(count)] for count in found_QK.sum(axis=1)],
        tuple(shard.name for shard in embeddings.corpus.shards),
    )


def _ids(embeddings: Embeddings, places: IntArray) -> list[str]:
    """Return the ids of the rows at some places, each shard read once."""
    ids = np.empty(len(places), np.object_)
    shards = places >> SHARD_BITS
    for number in np.unique(shards):
        here = np.flatnonzero(shards == number)
        rows = places[here] & ((1 << SHARD_BITS) - 1)
        column = embeddings.read(embeddings.corpus.shards[number])["id"]
        ids[here] = column.take(pa.array(rows)).to_pylist()
    listed: list[str] = ids.tolist()
    return listed


def _rank(embeddings: Embeddings, places: IntArray) -> IntArray:
    return _order_numbers(pa.array(_ids(embeddings, places), pa.string()))


def _order_numbers(ids: pa.Array | pa.ChunkedArray) -> IntArray:
    """Return the number of each id in the order of all of them (of their code points)."""
    order = pc.sort_indices(ids).to_numpy()
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    return numbers


# The kernel: hits are a matrix of sums and one of places, -inf and NOWHERE where there is none.


def _nothing(num_queries: int) -> tuple[FloatArray, IntArray]:
    return np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64)


def best(sums_QC: FloatArray, places_QC: IntArray, k: int, rank: Rank) -> tuple[FloatArray, IntArray]:
    """Return the k best candidates of each query in order: the higher sum first, equal sums by id.

    Args:
        sums_QC: Sums of the candidates; -inf where there is none.
        places_QC: Their places.
        k: How many to keep, or as many as there are columns.
        rank: The order of ids; asked about places whose sums are equal.
    """
    order_QC = np.argsort(-sums_QC, axis=1, kind="stable")
    sums_QC, places_QC = np.take_along_axis(sums_QC, order_QC, 1), np.take_along_axis(places_QC, order_QC, 1)
    equal = (sums_QC[:, 1:] == sums_QC[:, :-1]) & (sums_QC[:, 1:] > -np.inf)
    # Those among the first k, and the one behind them.
    queries = np.flatnonzero(equal[:, :k].any(axis=1))
    if len(queries):
        tied = np.zeros((len(queries), sums_QC.shape[1]), np.bool_)
        tied[:, 1:] |= equal[queries]
        tied[:, :-1] |= equal[queries]
        places, inverse = np.unique(places_QC[queries][tied], return_inverse=True)
        ranks = np.zeros(tied.shape, np.int64)
        ranks[tied] = rank(places)[inverse]
        order = np.lexsort((ranks, -sums_QC[queries]))
        places_QC[queries] = np.take_along_axis(places_QC[queries], order, 1)
    return sums_QC[:, :k], places_QC[:, :k]


def _merge(
    one: tuple[FloatArray, IntArray], other: tuple[FloatArray, IntArray], k: int, rank: Rank
) -> tuple[FloatArray, IntArray]:
    """Return the k best of two parts of the corpus, some queries at a time."""
    parts = []
    for start in range(0, len(one[0]), BLOCK_QUERIES):
        queries = slice(start, start + BLOCK_QUERIES)
        sums_QC = np.concatenate([one[0][queries], other[0][queries]], axis=1)
        places_QC = np.concatenate([one[1][queries], other[1][queries]], axis=1)
        parts.append(best(sums_QC, places_QC, k, rank))
    return np.concatenate([sums for sums, _ in parts]), np.concatenate([places for _, places in parts])


def search_block(
    vectors_ND: NDArray[np.float16],
    valid_N: NDArray[np.bool_],
    ids: pa.Array | pa.ChunkedArray,
    queries_QD: FloatArray,
    k: int,
) -> tuple[FloatArray, IntArray]:
    """Return sums and rows ``(Q, min(k, V))`` of the nearest rows of a block: the higher sum first, ties by id.

    Args:
        vectors_ND: Embeddings, rows of length 1.
        valid_N: Which rows have one.
        ids: Ids of the N rows.
        queries_QD: Queries from ``similarity.anchor_grid``.
        k: Hits per query.
    """
    rows_V = np.flatnonzero(valid_N)
    if not len(rows_V):
        return _nothing(len(queries_QD))
    chosen = vectors_ND if len(rows_V) == len(valid_N) else vectors_ND[rows_V]
    grid_VD = row_grid(chosen, torch.empty(chosen.shape, dtype=torch.float32)).numpy()
    numbers_V = functools.cache(lambda: _order_numbers(ids)[rows_V])
    parts = [
        _search_grid(grid_VD, queries_QD[start : start + BLOCK_QUERIES], k, lambda rows: numbers_V()[rows])
        for start in range(0, len(queries_QD), BLOCK_QUERIES)
    ]
    return np.concatenate([sums for sums, _ in parts]), rows_V[np.concatenate([rows for _, rows in parts])]


def _search_grid(grid_VD: FloatArray, queries_QD: FloatArray, k: int, rank: Rank) -> tuple[FloatArray, IntArray]:
    """Return sums and rows ``(Q, min(k, V))`` of the nearest rows on the grid."""
    k = min(k, len(grid_VD))
    asked = min(k + SPARE, len(grid_VD))
    sums_QC, rows_QC = _knn(queries_QD, grid_VD, asked)
    if asked < len(grid_VD):
        # A tie that reaches past the end: more rows may have the sum of the k-th place than were returned.
        endless = np.flatnonzero(sums_QC[:, -1] == sums_QC[:, k - 1])
        for start in range(0, len(endless), TIED_QUERIES):
            queries = endless[start : start + TIED_QUERIES]
            sums_TV = (torch.from_numpy(queries_QD[queries]) @ torch.from_numpy(grid_VD).T).numpy()
            for query, sums_V in zip(queries, sums_TV, strict=True):
                last = sums_QC[query, k - 1]
                above, tied = np.flatnonzero(sums_V > last), np.flatnonzero(sums_V == last)
                kept = np.concatenate([above, tied[np.argsort(rank(tied))[: k - len(above)]]])
                rows_QC[query], sums_QC[query] = NOWHERE, -np.inf
                rows_QC[query, :k], sums_QC[query, :k] = kept, sums_V[kept]
    return best(sums_QC, rows_QC, k, rank)


def _knn(queries_QD: FloatArray, grid_VD: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
    """Return the k largest sums of each query and their rows, on a GPU where FAISS has one; of equal sums any."""
    resources = _gpu_resources() if k <= GPU_MAX_K else None
    if resources is None:
        sums_QK, rows_QK = faiss.knn(queries_QD, grid_VD, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        with _GPU_LOCK:  # its memory serves one call at a time
            sums_QK, rows_QK = faiss.knn_gpu(resources, queries_QD, grid_VD, k, metric=faiss.METRIC_INNER_PRODUCT)
    return sums_QK, rows_QK


_GPU_LOCK = threading.Lock()


@functools.cache
def _gpu_resources() -> Any:  # noqa: ANN401  faiss.StandardGpuResources
    return faiss.StandardGpuResources() if faiss.get_num_gpus() > 0 else None


class _Searcher:
    """The worker that returns the hits of all queries in some shards."""

    def __init__(
        self, embeddings: Embeddings, queries_QD: FloatArray, k: int, index: Index | None, threads: int
    ) -> None:
        self._threads = max(1, threads // IN_FLIGHT)  # two groups are gone through at a time
        torch.set_num_threads(self._threads)
        self._embeddings, self._queries_QD, self._k = embeddings, queries_QD, k
        self._numbers = {shard.name: number for number, shard in enumerate(embeddings.corpus.shards)}
        self._proposer = index.proposer(queries_QD, k) if index else None

    def __call__(self, shards: tuple[Shard, ...]) -> tuple[FloatArray, IntArray]:
        """Return sums and places."""
        faiss.omp_set_num_threads(self._threads)  # those of the calling thread
        hits = _nothing(len(self._queries_QD))
        for shard in shards:
            for sums_QK, rows_QK in self._search(shard):
                place = self._numbers[shard.name] << SHARD_BITS
                places_QK = np.where(rows_QK == NOWHERE, NOWHERE, rows_QK + place)
                hits = _merge(hits, (sums_QK, places_QK), self._k, partial(_rank, self._embeddings))
        return hits

    def _search(self, shard: Shard) -> Iterator[tuple[FloatArray, IntArray]]:
        """Yield the hits of a shard's blocks, by row of the shard."""
        vectors_ND, valid_N = self._embeddings.vectors(shard)
        ids = self._embeddings.read(shard)["id"]
        if self._proposer:
            rows_QC = self._proposer(shard, np.flatnonzero(valid_N))
            sums_QC = _candidate_sums(vectors_ND, rows_QC, self._queries_QD)
            numbers_N = functools.cache(lambda: _order_numbers(ids))
            yield best(sums_QC, rows_QC, self._k, lambda rows: numbers_N()[rows])
            return
        for start in range(0, len(vectors_ND), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            sums_QK, rows_QK = search_block(vectors_ND[block], valid_N[block], ids[block], self._queries_QD, self._k)
            yield sums_QK, rows_QK + start


def _candidate_sums(vectors_ND: NDArray[np.float16], rows_QC: IntArray, queries_QD: FloatArray) -> FloatArray:
    """Return the exact sums of candidates; -inf where there is none."""
    (num_queries, num_candidates), dim = rows_QC.shape, vectors_ND.shape[1]
    sums_QC = np.full(rows_QC.shape, -np.inf, np.float32)
    step = max(1, CANDIDATE_BLOCK // max(1, num_candidates * dim))
    for start in range(0, num_queries, step):
        rows = rows_QC[start : start + step]
        taken = vectors_ND[rows.ravel()]
        grid = row_grid(taken, torch.empty(taken.shape, dtype=torch.float32)).view(*rows.shape, dim)
        sums = torch.bmm(grid, torch.from_numpy(queries_QD[start : start + step, :, None])).squeeze(2).numpy()
        sums_QC[start : start + step] = np.where(rows == NOWHERE, -np.inf, sums)
    return sums_QC


# Approximate indexes


@dataclass(frozen=True)
class Index(ShardFiles):
    """An approximate index of the embeddings: one FAISS file per shard, of the shard's valid rows in their order."""

    embeddings: Embeddings
    probes: int

    @property
    def trained(self) -> Path:
        """The trained index, without rows, that each shard's begins with."""
        return self.stage.file("trained.faiss")

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        return self.stage.file(f"{shard.name}.faiss")

    def made_from(self, shard: Shard) -> dict[str, str] | None:
        """Return the hashes of what a shard's file is made from, None where some of it is not there."""
        embedded, trained = self.embeddings.facts(shard), self.stage.manifest(self.trained)
        return {"input": embedded["sha256"], "trained": trained["sha256"]} if embedded and trained else None

    def facts(self, shard: Shard) -> dict[str, Any] | None:
        """Return what the manifest of a shard says, or None where the shard is not finished."""
        manifest: dict[str, Any] | None = self.stage.manifest(self.path(shard))
        made_from = self.made_from(shard)
        return manifest if manifest and made_from and made_from.items() <= manifest.items() else None

    def proposer(self, queries_QD: FloatArray, k: int) -> Callable[[Shard, IntArray], IntArray]:
        """Return what proposes rows ``(Q, C)`` of a shard, given its valid rows; the lists are chosen here, once."""
        size = max(CANDIDATES_PER_HIT * k, k + SPARE)
        trained = faiss.read_index(str(bucket.local(self.trained)))
        lists = None
        if isinstance(trained, faiss.IndexIVF):
            lists = trained.quantizer.search(queries_QD, min(self.probes, trained.nlist))

        def propose(shard: Shard, rows_V: IntArray) -> IntArray:
            if not len(rows_V):
                return _nothing(len(queries_QD))[1]
            part: Any = faiss.read_index(str(bucket.local(self.path(shard))))
            wanted = min(size, len(rows_V))
            if lists is None:
                _, found_QC = part.search(queries_QD, wanted)
            else:
                part.nprobe = lists[1].shape[1]
                _, found_QC = part.search_preassigned(queries_QD, wanted, lists[1], lists[0])
            return np.where(found_QC < 0, NOWHERE, rows_V[found_QC])

        return propose


def index_settings(config: IndexConfig, seed: int) -> dict[str, Any]:
    """Return what decides the files of an index, by dotted key."""
    return {f"index.{key}": value for key, value in config.model_dump(exclude={"probes"}).items()} | {"seed": seed}


def build_index(
    index: Index, config: IndexConfig, *, seed: int, executor: Executor, threads: int, on_rows: OnRows | None = None
) -> None:
    """Train the index and make the files of the shards that have none.

    Args:
        index: What is to be made.
        config: Which kind.
        seed: Of the sample that it is trained on, and of its k-means.
        executor: Where.
        threads: Threads of one worker.
        on_rows: Told how many rows were indexed.

    Raises:
        InputError: There are fewer rows to train on than lists.
    """
    if index.stage.manifest(index.trained) is None:
        places = sample_places(index.corpus, config.train_rows, seed=seed, purpose="index", executor=executor)
        faiss.omp_set_num_threads(threads)
        vectors_ND = index.embeddings.at(sorted(places)).astype(np.float32)
        # Rows in quarantine are zeros.
        trained = train(vectors_ND[vectors_ND.any(axis=1)], config, index.corpus.num_rows, seed)
        _write(trained, index.trained)
        index.stage.commit(index.trained, rows=len(places))
    worker = partial(_ShardIndexer, index, threads)
    failures = run_shards(executor, worker, [ShardJob(shard) for shard in index.missing()], on_rows)
    if failures:
        raise RuntimeError(f"shard {failures[0][0].shard.name} cannot be indexed:\n{failures[0][1]}")


def train(vectors_ND: FloatArray, config: IndexConfig, num_rows: int, seed: int) -> Any:  # noqa: ANN401  faiss.Index
    """Return an index without rows, trained on a sample of the rows that it is to hold.

    Args:
        vectors_ND: The sample, rows of length 1.
        config: Which kind, with how many lists.
        num_rows: Rows of the corpus.
        seed: Of k-means.

    Raises:
        InputError: There are fewer rows in the sample than lists.
    """
    num_lists = config.lists or max(1, min(int(4 * math.sqrt(num_rows)), len(vectors_ND) // ROWS_PER_LIST))
    if config.kind != "sq8" and num_lists > len(vectors_ND):
        raise InputError(f"index.lists: expected at most the {len(vectors_ND)} rows to train on, got {num_lists}")
    # Stored vectors are float16, so SQfp16 is as good as the float32 of plain IVF in half the room.
    spec = {"sq8": "SQ8", "ivf": f"IVF{num_lists},SQfp16", "ivf_sq8": f"IVF{num_lists},SQ8"}[config.kind]
    index: Any = faiss.index_factory(vectors_ND.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
    if config.kind != "sq8":
        index.cp.seed, index.cp.spherical = seed % 2**31, True
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, len(vectors_ND)
    index.train(vectors_ND)
    return index


def _write(index: Any, path: Path) -> None:  # noqa: ANN401  faiss.Index
    with write_whole(path) as temporary:
        faiss.write_index(index, str(temporary))


class _ShardIndexer:
    """The worker that makes the index of a shard."""

    def __init__(self, index: Index, threads: int) -> None:
        self._index, self._threads = index, max(1, threads // IN_FLIGHT)

    def __call__(self, job: ShardJob) -> None:
        """Index one shard."""
        faiss.omp_set_num_threads(self._threads)
        vectors_ND, valid_N = self._index.embeddings.vectors(job.shard)
        rows_V = np.flatnonzero(valid_N)
        part = faiss.read_index(str(bucket.local(self._index.trained)))
        for start in range(0, len(rows_V), BLOCK_ROWS):
            part.add(vectors_ND[rows_V[start : start + BLOCK_ROWS]].astype(np.float32))
        path, made_from = self._index.path(job.shard), self._index.made_from(job.shard)
        assert made_from is not None
        _write(part, path)
        self._index.stage.commit(path, rows=len(rows_V), **made_from)
