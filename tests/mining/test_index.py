from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.config import IndexConfig, InputError
from scalemine.executor import InlineExecutor, RayExecutor, Stopped, StopSignals
from scalemine.mining import index as module
from scalemine.mining.index import Index, best, build_index, index_settings, search, search_block, train
from scalemine.mining.sampling import fetch_rows
from scalemine.mining.similarity import anchor_grid
from scalemine.shards import Embeddings, matrix_column

DIM = 12


def slow_search(vectors, valid, ids, grid, k):
    """Sums by whole numbers, all of them sorted: the higher first, equal ones by id."""
    rows = [[int(value) for value in oracles.grid_of(row)] for row in vectors]
    hits = []
    for query in grid:
        sums = [sum(a * int(b) for a, b in zip(row, query, strict=True)) for row in rows]
        order = sorted((row for row in range(len(rows)) if valid[row]), key=lambda row: (-sums[row], ids[row]))
        hits.append([(sums[row], row) for row in order[:k]])
    return hits


def pairs(sums, rows):
    return [[(int(s), int(r)) for s, r in zip(*query, strict=True)] for query in zip(sums, rows, strict=True)]


def make_embeddings(folder: Path, vectors, valid, ids, rows_per_shard) -> Embeddings:
    corpus = oracles.make_corpus(folder, ids, [f"text {number}" for number in range(len(ids))], rows_per_shard)
    files = Embeddings(oracles.make_stage(folder / "embeddings"), corpus)
    start = 0
    for shard in corpus.shards:
        rows = slice(start, start + shard.num_rows)
        column = matrix_column(vectors[rows], valid[rows])
        files.write(shard, pa.table({"id": ids[rows], "vector": column}))
        start += shard.num_rows
    return files


def clustered(seed: int, num_rows: int, num_clusters: int = 20, dim: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = oracles.unit_rows(np.random.default_rng(0), num_clusters, dim)
    rows = centres[rng.integers(num_clusters, size=num_rows)] + 0.15 * rng.standard_normal((num_rows, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def tweets():
    """Vectors with copies, ids in no order, and some rows in quarantine."""
    rng = np.random.default_rng(3)
    vectors = oracles.unit_rows(rng, 40, DIM).astype(np.float16)[rng.integers(40, size=90)]
    return vectors, rng.random(90) > 0.15, [f"t{number}" for number in rng.permutation(90)]


@pytest.fixture(scope="module")
def queries():
    return oracles.unit_rows(np.random.default_rng(4), 7, DIM)


# The kernel


@settings(max_examples=60, deadline=None)
@example(60, 1, 2, 5, 0)
@example(60, 2, 5, 12, 1)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 5), st.integers(1, 70), st.integers(0, 10**6))
def test_block_equals_the_oracle(num_rows, num_different, num_queries, k, seed):
    # The fewer different vectors, the longer the ties, which often reach beyond what FAISS was asked for.
    rng = np.random.default_rng(seed)
    vectors = oracles.unit_rows(rng, num_different, 5).astype(np.float16)[rng.integers(num_different, size=num_rows)]
    valid = rng.random(num_rows) > 0.2
    ids = [f"{number}é" if number % 3 else f"{number}" for number in rng.permutation(num_rows)]
    grid = anchor_grid(oracles.unit_rows(rng, num_queries, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_QUERIES", 2)
        patch.setattr(module, "TIED_QUERIES", 1)
        found = search_block(vectors, valid, pa.array(ids), grid, k)
    assert pairs(*found) == slow_search(vectors, valid, ids, grid, k)


@pytest.mark.parametrize(("num_queries", "dim"), [(1, 384), (400, 384), (3, 768)])
def test_sums_are_exact_whole_numbers_whichever_way_faiss_takes(num_queries, dim):
    rng = np.random.default_rng(5)
    # One vector and its negative are queries too: the longest sums there are.
    vectors = oracles.unit_rows(rng, 500, dim).astype(np.float16)
    grid = anchor_grid(np.concatenate([vectors[:1], oracles.unit_rows(rng, num_queries - 1, dim)]).astype(np.float32))
    whole = np.rint(vectors.astype(np.float64) * 4096).astype(np.int64) @ grid.astype(np.int64).T
    sums, rows = search_block(vectors, np.ones(500, bool), pa.array([f"{i:03}" for i in range(500)]), grid, 500)
    assert (sums.astype(np.int64) == np.take_along_axis(whole.T, rows, 1)).all()
    assert (np.sort(rows, axis=1) == np.arange(500)).all()


def test_many_copies_are_told_apart_by_id():
    rng = np.random.default_rng(6)
    one, other = oracles.unit_rows(rng, 2, DIM).astype(np.float16)
    vectors = np.stack([one] * 3_000 + [other])
    ids = [f"t{number}" for number in rng.permutation(3_001)]
    grid = anchor_grid(np.stack([one, other]).astype(np.float32))
    _, rows = search_block(vectors, np.ones(3_001, bool), pa.array(ids), grid, 5)
    copies = sorted(range(3_000), key=lambda row: ids[row])
    assert rows.tolist() == [copies[:5], [3_000, *copies[:4]]]


def test_best_looks_up_only_what_is_equal():
    asked = []

    def rank(places):
        asked.extend(places.tolist())
        return -places

    sums = np.array([[5, 3, 3, 3, 1], [9, 8, 7, 7, -np.inf]], np.float32)
    places = np.array([[10, 11, 12, 13, 14], [20, 21, 22, 23, -1]])
    found = best(sums, places, 2, rank)
    assert pairs(*found) == [[(5, 10), (3, 13)], [(9, 20), (8, 21)]]
    assert asked == [11, 12, 13]


# The search


@pytest.mark.parametrize("rows_per_shard", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 12, 500])
def test_search_does_not_depend_on_shards(tmp_path, tweets, queries, rows_per_shard, k, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 11)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 3)
    vectors, valid, ids = tweets
    embeddings = make_embeddings(tmp_path, vectors, valid, ids, rows_per_shard)
    found = search(embeddings, queries, k, executor=InlineExecutor())
    expected = slow_search(vectors, valid, ids, anchor_grid(queries), k)
    assert found.ids == [[ids[row] for _, row in hits] for hits in expected]
    assert found.cosines_QK.shape == (7, min(k, valid.sum()))
    wanted = np.array([[total / (4096 * 4000) for total, _ in hits] for hits in expected], np.float32)
    assert (found.cosines_QK == wanted).all()
    for query in range(7):
        rows = fetch_rows(embeddings.corpus, found.places(query))
        assert [row.id for row in rows] == found.ids[query]


def test_cosines_are_those_of_the_vectors(tmp_path, tweets, queries):
    vectors, valid, ids = tweets
    embeddings = make_embeddings(tmp_path, vectors, valid, ids, 30)
    found = search(embeddings, queries, 5, executor=InlineExecutor())
    for query in range(7):
        for id_, cosine in zip(found.ids[query], found.cosines_QK[query], strict=True):
            assert cosine == pytest.approx(oracles.cosine(vectors[ids.index(id_)], queries[query]), abs=1e-3)


def test_rows_in_quarantine_are_never_found(tmp_path, tweets):
    vectors, _, ids = tweets
    valid = np.arange(90) >= 50  # of whole shards and of a part of one
    embeddings = make_embeddings(tmp_path, vectors, valid, ids, 20)
    found = search(embeddings, vectors[:3].astype(np.float32), 90, executor=InlineExecutor())
    assert [sorted(query) for query in found.ids] == [sorted(ids[50:])] * 3
    nobody = make_embeddings(tmp_path / "nobody", vectors, np.zeros(90, bool), ids, 20)
    assert search(nobody, vectors[:2].astype(np.float32), 4, executor=InlineExecutor()).ids == [[], []]


def test_progress_is_told_in_rows(tmp_path, tweets, queries):
    told: list[int] = []
    embeddings = make_embeddings(tmp_path, *tweets, 7)
    search(embeddings, queries, 3, executor=InlineExecutor(), on_rows=told.append)
    assert sum(told) == 90


def test_what_cannot_be_searched_is_said(tmp_path, tweets, queries):
    embeddings = make_embeddings(tmp_path, *tweets, 30)
    with pytest.raises(ValueError, match="expected k of at least 1, got 0"):
        search(embeddings, queries, 0, executor=InlineExecutor())
    embeddings.path(embeddings.corpus.shards[1]).write_bytes(b"not Arrow")
    with pytest.raises(RuntimeError, match="cannot be searched"):
        search(embeddings, queries, 3, executor=InlineExecutor())


def test_memory_is_that_of_blocks_and_hits(tmp_path, monkeypatch):
    num_rows, num_queries, k = 8_000, 3_000, 20
    monkeypatch.setattr(module, "BLOCK_ROWS", 1_000)
    shapes = []
    knn = module._knn
    monkeypatch.setattr(module, "_knn", lambda q, x, k: shapes.append((len(q), len(x))) or knn(q, x, k))
    rng = np.random.default_rng(8)
    vectors = oracles.unit_rows(rng, num_rows, 16).astype(np.float16)
    ids = [str(number) for number in range(num_rows)]
    embeddings = make_embeddings(tmp_path, vectors, np.ones(num_rows, bool), ids, 4_000)
    queries = oracles.unit_rows(rng, num_queries, 16)
    tracemalloc.start()
    found = search(embeddings, queries, k, executor=InlineExecutor())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {size for size, _ in shapes} == {1_024, 952}
    assert {size for _, size in shapes} == {1_000}
    # All sums at once would be 96 MB; hits are sums and places (12 bytes), a few times over, and ids in the end.
    assert peak < 0.6 * num_rows * num_queries * 4
    assert all(len(query) == k for query in found.ids)


# GPU


def test_gpu_is_asked_for_no_more_than_it_can(monkeypatch):
    rows = oracles.unit_rows(np.random.default_rng(9), 2_100, 4)
    asked = []

    def knn_gpu(resources, q, x, k, metric):
        asked.append((resources, k))
        return faiss.knn(q, x, k, metric=metric)

    monkeypatch.setattr(module, "_gpu_resources", lambda: "gpu")
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    assert module._knn(rows[:2], rows, 2_048)[0].shape == (2, 2_048)
    assert module._knn(rows[:2], rows, 2_049)[0].shape == (2, 2_049)
    assert asked == [("gpu", 2_048)]


@pytest.mark.gpu
@pytest.mark.parametrize("num_queries", [1, 700])
def test_gpu_finds_what_the_cpu_finds(monkeypatch, num_queries):
    if faiss.get_num_gpus() == 0:
        pytest.skip("FAISS is built without GPUs, or there is none")
    rng = np.random.default_rng(10)
    vectors = oracles.unit_rows(rng, 4_000, 384).astype(np.float16)[rng.integers(4_000, size=9_000)]
    grid = anchor_grid(oracles.unit_rows(rng, num_queries, 384))
    ids = pa.array([str(number) for number in range(9_000)])
    there = search_block(vectors, np.ones(9_000, bool), ids, grid, 50)
    monkeypatch.setattr(module, "_gpu_resources", lambda: None)
    here = search_block(vectors, np.ones(9_000, bool), ids, grid, 50)
    assert (there[0] == here[0]).all()
    assert (there[1] == here[1]).all()


# Approximate indexes


@pytest.fixture
def crowd(tmp_path):
    """Clustered tweets with some in quarantine."""
    vectors = clustered(1, 4_000)
    ids = [f"c{number}" for number in range(4_000)]
    return make_embeddings(tmp_path, vectors, np.arange(4_000) % 50 > 0, ids, 1_000)


def make_index(embeddings: Embeddings, folder: Path, probes: int = 4) -> Index:
    return Index(oracles.make_stage(folder / "index"), embeddings.corpus, embeddings, probes)


def build(index: Index, config: IndexConfig, executor=None) -> None:
    build_index(index, config, seed=7, executor=executor or InlineExecutor(), threads=2)


def recall(found, exact) -> float:
    shares = [len(set(a) & set(b)) / len(b) for a, b in zip(found.ids, exact.ids, strict=True)]
    return float(np.mean(shares))


@pytest.mark.parametrize(("kind", "bound"), [("sq8", 0.99), ("ivf", 0.85), ("ivf_sq8", 0.85)])
def test_recall_and_exact_cosines(tmp_path, crowd, kind, bound):
    config = IndexConfig(kind=kind, lists=None if kind == "sq8" else 40, train_rows=2_000)
    index = make_index(crowd, tmp_path, probes=8)
    build(index, config)
    queries = clustered(2, 50).astype(np.float32)
    exact = search(crowd, queries, 10, executor=InlineExecutor())
    found = search(crowd, queries, 10, executor=InlineExecutor(), index=index)
    assert recall(found, exact) >= bound
    every = search(crowd, queries, 4_000, executor=InlineExecutor())
    for query in range(50):
        cosines = dict(zip(every.ids[query], every.cosines_QK[query], strict=True))
        here = found.cosines_QK[query][: len(found.ids[query])]
        assert [cosines[id_] for id_ in found.ids[query]] == here.tolist()
        assert (np.diff(here) <= 0).all()


def test_all_lists_find_what_the_exact_search_finds(tmp_path, crowd):
    index = make_index(crowd, tmp_path, probes=40)
    build(index, IndexConfig(kind="ivf", lists=40))
    queries = clustered(3, 20).astype(np.float32)
    exact = search(crowd, queries, 10, executor=InlineExecutor())
    assert search(crowd, queries, 10, executor=InlineExecutor(), index=index).ids == exact.ids


def test_lists_that_hold_too_few_leave_places_empty(tmp_path, crowd):
    index = make_index(crowd, tmp_path, probes=1)
    build(index, IndexConfig(kind="ivf", lists=100))
    found = search(crowd, clustered(3, 20).astype(np.float32), 300, executor=InlineExecutor(), index=index)
    counts = np.array([len(query) for query in found.ids])
    assert 0 < counts.min() < 300
    held = np.arange(found.cosines_QK.shape[1]) < counts[:, None]
    assert (np.isnan(found.cosines_QK) == ~held).all()
    assert ((found.rows_QK == -1) == ~held).all()
    assert all(int(name[1:]) % 50 for query in found.ids for name in query)


def test_two_ray_workers_make_and_find_the_same(tmp_path, crowd, ray_session):
    config, queries = IndexConfig(kind="ivf_sq8", lists=20), clustered(5, 9).astype(np.float32)
    one, other = make_index(crowd, tmp_path / "one"), make_index(crowd, tmp_path / "other")
    executor = RayExecutor(2, cpus_per_worker=1, gpus_per_worker=0, signals=StopSignals())
    try:
        build(other, config, executor)
        there = [search(crowd, queries, 8, executor=executor, index=index) for index in (None, other)]
    finally:
        executor.close()
    build(one, config)
    for shard in crowd.corpus.shards:
        assert one.path(shard).read_bytes() == other.path(shard).read_bytes()
    here = [search(crowd, queries, 8, executor=InlineExecutor(), index=index) for index in (None, one)]
    for found, expected in zip(there, here, strict=True):
        assert found.ids == expected.ids
        for name in ("cosines_QK", "shards_QK", "rows_QK"):
            assert (getattr(found, name) == getattr(expected, name)).all()


def test_stopped_build_goes_on(tmp_path, crowd):
    config = IndexConfig(kind="sq8")
    index, signals = make_index(crowd, tmp_path), StopSignals()

    def stop(_: int) -> None:
        signals.requested = True

    with pytest.raises(Stopped):
        build_index(index, config, seed=7, executor=InlineExecutor(signals), threads=1, on_rows=stop)
    made = [shard for shard in crowd.corpus.shards if index.facts(shard)]
    assert 0 < len(made) < len(crowd.corpus.shards)
    kept = {path: path.stat().st_mtime_ns for path in (index.trained, *map(index.path, made))}
    # A kill between the file and its manifest leaves a file that is not finished.
    (torn,) = index.missing()[:1]
    index.path(torn).write_bytes(b"torn")
    build(index, config)
    assert index.missing() == []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = make_index(crowd, tmp_path / "whole")
    build(whole, config)
    for shard in crowd.corpus.shards:
        assert index.path(shard).read_bytes() == whole.path(shard).read_bytes()


def test_what_was_made_from_other_files_is_missing(tmp_path, crowd):
    index = make_index(crowd, tmp_path)
    build(index, IndexConfig(kind="sq8"))
    assert index.missing() == []
    again = crowd.corpus.shards[2]
    table = crowd.read(again)
    vectors, valid = crowd.vectors(again)
    crowd.write(again, table.set_column(1, "vector", matrix_column(-vectors, valid)))
    assert index.missing() == [again]
    build(index, IndexConfig(kind="sq8"))
    assert index.missing() == []
    index.stage.commit(index.trained, rows=1)  # the same file is the same
    assert index.missing() == []
    os.truncate(index.trained, 10)
    index.stage.commit(index.trained, rows=1)
    assert len(index.missing()) == len(crowd.corpus.shards)


def test_number_of_lists():
    vectors = clustered(4, 400).astype(np.float32)
    assert train(vectors, IndexConfig(kind="ivf"), 10_000, 1).nlist == 400 // 39
    assert train(vectors, IndexConfig(kind="ivf"), 4, 1).nlist == 8
    assert train(vectors, IndexConfig(kind="ivf_sq8", lists=5), 10_000, 1).nlist == 5
    with pytest.raises(InputError, match="index.lists: expected at most the 400 rows to train on, got 401"):
        train(vectors, IndexConfig(kind="ivf", lists=401), 10_000, 1)


def test_settings_are_those_that_change_a_file():
    assert index_settings(IndexConfig(kind="ivf", probes=3), 5) == index_settings(IndexConfig(kind="ivf"), 5)
    assert index_settings(IndexConfig(kind="ivf", lists=3), 5) != index_settings(IndexConfig(kind="ivf"), 5)
    assert index_settings(IndexConfig(kind="ivf"), 6) != index_settings(IndexConfig(kind="ivf"), 5)
