from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damage
from mining import oracles
from scalemine.config import InputError
from scalemine.executor import InlineExecutor, Stopped, StopSignals
from scalemine.shards import Embeddings, ShardJob, matrix, matrix_column, read_arrow, run_shards, write_arrow

DIM = 5
TEXTS = [f"tweet {number % 17} on the storm" for number in range(40)]
IDS = [f"id{number}" for number in range(len(TEXTS))]
POISON = "tweet 3 on the storm"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 5), st.sampled_from(["f2", "i2", "f4"]), st.data())
def test_matrix_column_round_trip(num_rows, width, kind, data):
    values = np.arange(num_rows * width).reshape(num_rows, width).astype(kind)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), bool)
    column = matrix_column(values, valid)
    assert column.null_count == (~valid).sum()
    assert column.to_pylist() == [row.tolist() if ok else None for row, ok in zip(values, valid, strict=True)]
    start = data.draw(st.integers(0, num_rows))
    stop = data.draw(st.integers(start, num_rows))
    for found, rows in (
        (pa.chunked_array([column]), slice(None)),
        (pa.chunked_array([column]).slice(start, stop - start), slice(start, stop)),
        (pa.chunked_array([column[:start], column[start:]]), slice(None)),
    ):
        back, ok = matrix(found)
        assert back.dtype == values.dtype
        assert np.array_equal(ok, valid[rows])
        assert np.array_equal(back[ok], values[rows][valid[rows]])


def test_matrix_column_of_a_transposed_matrix():
    values = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert matrix_column(values, np.ones(3, bool)).to_pylist() == [[0, 3], [1, 4], [2, 5]]


def test_arrow_file_round_trip(tmp_path):
    values = np.arange(20, dtype=np.float16).reshape(5, 4)
    valid = np.array([True, False, True, True, False])
    table = pa.table({"id": list("abcde"), "vector": matrix_column(values, valid)})
    write_arrow(tmp_path / "sub" / "x.arrow", table)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x.arrow"]
    back = read_arrow(tmp_path / "sub" / "x.arrow")
    assert back["id"].to_pylist() == list("abcde")
    found, ok = matrix(back["vector"])
    assert np.array_equal(ok, valid)
    assert np.array_equal(found[ok], values[valid])


@pytest.fixture
def corpus(tmp_path):
    return oracles.make_corpus(tmp_path, IDS, TEXTS, 9)


@pytest.fixture
def files(tmp_path, corpus):
    """Embeddings of a corpus, none where the text is poison."""
    files = Embeddings(oracles.make_stage(tmp_path / "embeddings"), corpus)
    for shard in corpus.shards:
        texts = corpus.read(shard)["text"].to_pylist()
        valid = np.array([text != POISON for text in texts])
        vectors = np.stack([vector_of(text) for text in texts])
        files.write(shard, pa.table({"vector": matrix_column(vectors, valid)}))
    return files


def vector_of(text: str) -> np.ndarray:
    return oracles.fake_vector(text, DIM).astype(np.float16)


def test_vectors_of_a_shard(corpus, files):
    assert len(corpus.shards) > 3
    for shard in corpus.shards:
        texts = corpus.read(shard)["text"].to_pylist()
        vectors, valid = files.vectors(shard)
        assert vectors.dtype == np.float16
        assert valid.tolist() == [text != POISON for text in texts]
        assert np.array_equal(vectors[valid], [vector_of(text) for text in texts if text != POISON])


def test_vectors_at_places_keep_the_order_asked_for(corpus, files):
    places = [(shard.name, row) for shard in corpus.shards for row in range(shard.num_rows)]
    places = [places[i] for i in np.random.default_rng(2).permutation(len(places))]
    places += places[:3]  # one place may be asked for again
    found = files.at(places)
    assert found.dtype == np.float16
    tables = {shard.name: corpus.read(shard)["text"].to_pylist() for shard in corpus.shards}
    texts = [tables[shard][row] for shard, row in places]
    assert 0 < texts.count(POISON) < len(texts)
    assert np.array_equal(found, [vector_of(text) * (text != POISON) for text in texts])
    assert np.array_equal(files.at(places[7:8]), found[7:8])


def test_vectors_at_places_open_each_shard_once(corpus, files, monkeypatch):
    opened = []
    vectors = Embeddings.vectors

    def spy(self, shard):
        opened.append(shard.name)
        return vectors(self, shard)

    monkeypatch.setattr(Embeddings, "vectors", spy)
    first, second = corpus.shards[0].name, corpus.shards[2].name
    files.at([(second, 1), (first, 0), (second, 0), (first, 3)])
    assert sorted(opened) == [first, second]


def test_missing_are_the_largest_first(corpus, files, tmp_path):
    assert files.missing() == []
    missing = Embeddings(oracles.make_stage(tmp_path / "none"), corpus).missing()
    sizes = [shard.num_rows for shard in missing]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    assert Counter(missing) == Counter(corpus.shards)


def test_a_shard_that_is_torn_unfinished_or_of_other_content_is_missing(corpus, files, tmp_path):
    torn, unfinished = corpus.shards[:2]
    files.path(torn).write_bytes(files.path(torn).read_bytes()[:100])
    files.path(unfinished).with_suffix(".arrow.json").unlink()
    assert {shard.name for shard in files.missing()} == {torn.name, unfinished.name}
    assert files.facts(torn) is files.facts(unfinished) is None
    assert files.facts(corpus.shards[2])["rows"] == corpus.shards[2].num_rows
    other = oracles.make_corpus(tmp_path / "other", IDS, [text.upper() for text in TEXTS], 9)
    assert len(Embeddings(files.stage, other).missing()) == len(other.shards)


# Jobs


def make_worker():
    tried = Counter()

    def work(job: ShardJob) -> None:
        tried[job] += 1
        if job.trial == (0, 1):
            raise ValueError("never")
        if job.trial == (0, 2) and tried[job] == 1:
            raise ValueError("not at first")

    return work


def test_jobs_that_fail_are_returned_with_what_they_said(corpus):
    jobs = [ShardJob(shard) for shard in corpus.shards]
    bad, slow = (ShardJob(corpus.shards[0], trial=(0, number)) for number in (1, 2))
    counted = []
    [(job, error)] = run_shards(InlineExecutor(), make_worker, [*jobs, bad, slow], counted.append)
    assert job == bad
    assert error.startswith("Traceback")
    assert "ValueError: never" in error
    assert sorted(counted) == sorted([*(shard.num_rows for shard in corpus.shards), corpus.shards[0].num_rows])


def test_jobs_without_a_count(corpus):
    assert run_shards(InlineExecutor(), make_worker, [ShardJob(shard) for shard in corpus.shards], None) == []


def test_jobs_that_are_stopped(corpus):
    signals, counted = StopSignals(), []

    def count(rows: int) -> None:
        counted.append(rows)
        signals.requested = True

    with pytest.raises(Stopped):
        run_shards(InlineExecutor(signals), make_worker, [ShardJob(shard) for shard in corpus.shards], count)
    assert 0 < len(counted) < len(corpus.shards)


@pytest.mark.parametrize("num_seeds", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, num_seeds: int) -> None:
    vectors = matrix_column(np.eye(4, 8, dtype=np.float16), np.array([True, True, False, True]))
    whole = tmp_path / "whole.arrow"
    write_arrow(whole, pa.table({"id": pa.array(list("abcd")), "vector": vectors}))
    refused = 0
    for seed in range(num_seeds):
        path = tmp_path / f"{seed}.arrow"  # a new one each time, as the last may still be mapped
        path.write_bytes(damage(whole.read_bytes(), random.Random(seed), 1))
        try:
            table = read_arrow(path)
        except InputError as error:
            assert "damaged" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert isinstance(table, pa.Table)
        path.unlink()
    assert num_seeds / 4 < refused < num_seeds
