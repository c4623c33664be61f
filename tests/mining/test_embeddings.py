from __future__ import annotations

import errno
import os
import pickle
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining import oracles
from scalemine.config import ComputeConfig, DiskFullError, EncoderConfig
from scalemine.executor import InlineExecutor, StopSignals, make_executor
from scalemine.mining import bandpass
from scalemine.mining import embeddings as module
from scalemine.mining.embeddings import (
    ShardEncoder,
    Similarities,
    encode_corpus,
    encoder_loader,
    score,
    score_corpus,
)
from scalemine.mining.sampling import row_keys
from scalemine.mining.similarity import anchor_grid, similarities
from scalemine.shards import Embeddings, _find_poison, write_quarantine

DIM = oracles.FakeEncoder.dim
# Copies of texts, some with other spaces around them.
TEXTS = [f"{'' if i % 5 else ' '}tweet {i % 17} on the storm" for i in range(40)] + ["long one"]
IDS = [f"id{i}" for i in range(len(TEXTS))]
GRID = anchor_grid(oracles.unit_rows(np.random.default_rng(1), 3, DIM))


@pytest.fixture
def corpus(tmp_path):
    return oracles.make_corpus(tmp_path, IDS, TEXTS, 9)


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "notes"


@pytest.fixture
def files(tmp_path, corpus):
    return Embeddings(oracles.make_stage(tmp_path / "embeddings"), corpus)


@pytest.fixture
def scored(tmp_path, corpus):
    return Similarities(oracles.make_stage(tmp_path / "similarities"), corpus)


def encode(corpus, files, notes, *, scoring=None, on_rows=None, **fake):
    load = partial(oracles.FakeEncoder, notes, **fake)
    return encode_corpus(load, corpus, InlineExecutor(), embeddings=files, scoring=scoring, on_rows=on_rows)


def test_vectors_keep_the_order_of_the_corpus(corpus, files, notes):
    assert len(corpus.shards) > 3
    assert encode(corpus, files, notes).rows == len(TEXTS)
    for shard in corpus.shards:
        rows = corpus.read(shard).to_pylist()
        vectors, valid = files.vectors(shard)
        assert vectors.dtype == np.float16
        assert valid.all()
        expected = [oracles.fake_vector(row["text"].strip(), DIM).astype(np.float16) for row in rows]
        assert np.array_equal(vectors, expected)
        assert files.read(shard)["id"].to_pylist() == [row["id"] for row in rows]
    assert files.missing() == []


def test_copies_are_encoded_once_per_shard(corpus, files, notes):
    encode(corpus, files, notes)
    per_shard = [{text.strip() for text in corpus.read(shard)["text"].to_pylist()} for shard in corpus.shards]
    assert oracles.noted(notes) == sorted(text for texts in per_shard for text in texts)
    for shard, texts in zip(corpus.shards, per_shard, strict=True):
        facts = files.facts(shard)
        assert facts["distinct"] == len(texts) < shard.num_rows or shard == corpus.shards[-1]
        assert facts["rows"] == shard.num_rows
        assert facts["tokens"] == sum(len(text) for text in texts)
        assert facts["cut"] == sum("long" in text for text in texts)
        assert (facts["precision"], facts["device"], facts["quarantined"]) == ("float32", "cpu", [])
        assert facts["engine"] == "torch"
    # Exact copies share a shard, so only their variants are met again.
    assert len(oracles.noted(notes)) <= len(set(TEXTS))


def test_work_is_counted(corpus, files, notes):
    work = encode(corpus, files, notes)
    tokens = sum(files.facts(shard)["tokens"] for shard in corpus.shards)
    assert (work.tokens, work.padded_tokens, work.flops) == (tokens, 2 * tokens, 10 * tokens)
    assert (work.rows_again, work.machines, list(work.peaks.values())) == (0, {"cpu"}, [None])
    assert work.seconds > 0


def test_peak_is_measured_where_it_is_asked_for(corpus, files, notes):
    load = partial(oracles.FakeEncoder, notes)
    work = encode_corpus(load, corpus, InlineExecutor(), embeddings=files, measure_peak=True)
    assert list(work.peaks.values()) == [1e9]


def test_rows_that_were_begun_again_are_counted(corpus, files, notes, monkeypatch):
    write, failed = Embeddings.write, []

    def once_full(self, shard, *arguments, **facts):
        if shard == corpus.shards[1] and not failed:
            failed.append(shard)
            raise OSError("no space left on device")
        write(self, shard, *arguments, **facts)

    monkeypatch.setattr(Embeddings, "write", once_full)
    work = encode(corpus, files, notes)
    assert work.rows == len(TEXTS)
    assert work.rows_again == corpus.shards[1].num_rows


def test_one_worker_loads_the_encoder_once(corpus, files, notes):
    encode(corpus, files, notes)
    assert notes.read_text().count("\tloaded") == 1


def test_resume_does_only_what_is_missing(corpus, files, notes):
    encode(corpus, files, notes)
    before = {shard.name: files.path(shard).read_bytes() for shard in corpus.shards}
    notes.write_text("")
    assert encode(corpus, files, notes).rows == 0
    assert notes.read_text() == ""
    unfinished, torn = corpus.shards[1], corpus.shards[2]
    files.path(unfinished).with_suffix(".arrow.json").unlink()
    files.path(torn).write_bytes(before[torn.name][:100])
    assert {shard.name for shard in files.missing()} == {unfinished.name, torn.name}
    counted = []
    assert encode(corpus, files, notes, on_rows=counted.append).rows == unfinished.num_rows + torn.num_rows
    assert sorted(counted) == sorted([unfinished.num_rows, torn.num_rows])
    texts = [{text.strip() for text in corpus.read(shard)["text"].to_pylist()} for shard in (unfinished, torn)]
    assert oracles.noted(notes) == sorted([*texts[0], *texts[1]])
    assert {shard.name: files.path(shard).read_bytes() for shard in corpus.shards} == before


def test_shard_of_other_content_is_missing(corpus, files, notes, tmp_path):
    encode(corpus, files, notes)
    other = oracles.make_corpus(tmp_path / "other", IDS, [text.upper() for text in TEXTS], 9)
    assert len(Embeddings(files.stage, other).missing()) == len(other.shards)


POISON = ("tweet 3 on the storm", "tweet 8 on the storm")


def test_rows_that_break_the_worker_go_to_quarantine(corpus, files, notes, tmp_path):
    counted = []
    assert encode(corpus, files, notes, poison=POISON, on_rows=counted.append).rows == len(TEXTS)
    assert sum(counted) == len(TEXTS)
    bad = [(shard, row) for shard in corpus.shards for row, found in enumerate(rows_of(corpus, shard)) if broken(found)]
    assert len(bad) > 2
    for shard in corpus.shards:
        vectors, valid = files.vectors(shard)
        for row, found in enumerate(rows_of(corpus, shard)):
            assert valid[row] != broken(found)
            if valid[row]:
                expected = oracles.fake_vector(found["text"].strip(), DIM).astype(np.float16)
                assert np.array_equal(vectors[row], expected)
        assert files.read(shard)["vector"].null_count == sum(broken(found) for found in rows_of(corpus, shard))
    path = tmp_path / "quarantine.parquet"
    assert write_quarantine(files, path) == len(bad)
    table = pq.read_table(path).to_pylist()
    assert [(row["shard"], row["row"]) for row in table] == [(shard.name, row) for shard, row in bad]
    assert [row["id"] for row in table] == [rows_of(corpus, shard)[row]["id"] for shard, row in bad]
    for row in table:
        assert "Traceback" in row["error"]
        assert "cannot digest" in row["error"]
    # Nothing is left to do, and the poison is not tried again.
    assert encode(corpus, files, notes, poison=POISON).rows == 0


def rows_of(corpus, shard):
    return corpus.read(shard).to_pylist()


def broken(row):
    return row["text"].strip() in POISON


def test_find_poison_finds_two_rows_and_no_other(tmp_path, notes):
    texts = [f"tweet {i}" for i in range(13)]
    corpus = oracles.make_corpus(tmp_path, IDS[:13], texts, 100)
    load = partial(oracles.FakeEncoder, notes, poison=("tweet 4", "tweet 12"))
    worker = partial(ShardEncoder, load, corpus, None, None)
    found = _find_poison(InlineExecutor(), worker, corpus.shards[0])
    assert [row for row, _ in found] == [4, 12]
    assert "'tweet 4'" in found[0][1]
    assert "'tweet 12'" in found[1][1]


def test_shard_of_poison_alone(tmp_path, notes):
    corpus = oracles.make_corpus(tmp_path, IDS[:2], ["bad", "worse"], 100)
    files = Embeddings(oracles.make_stage(tmp_path / "embeddings"), corpus)
    encode(corpus, files, notes, poison=("bad", "worse"))
    assert files.vectors(corpus.shards[0])[1].tolist() == [False, False]
    assert write_quarantine(files, tmp_path / "quarantine.parquet") == 2


def test_no_quarantine_no_file(corpus, files, notes, tmp_path):
    encode(corpus, files, notes)
    assert write_quarantine(files, tmp_path / "quarantine.parquet") == 0
    assert not (tmp_path / "quarantine.parquet").exists()


def test_shard_that_fails_though_its_rows_do_not(corpus, files, notes):
    with pytest.raises(RuntimeError, match="though each of its rows can be encoded") as caught:
        encode(corpus, files, notes, most_texts=3)
    assert "too many texts at once" in str(caught.value)


def test_shard_that_cannot_be_written(corpus, files, notes, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Embeddings, "write", full)
    with pytest.raises(RuntimeError, match="no space left on device"):
        encode(corpus, files, notes)


def test_shard_that_fails_also_without_its_poison(corpus, files, notes, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Embeddings, "write", full)
    with pytest.raises(RuntimeError, match="fails also without rows"):
        encode(corpus, files, notes, poison=tuple({text.strip() for text in TEXTS} - {"long one"}))


def test_score_is_key_and_similarity():
    vectors = oracles.unit_rows(np.random.default_rng(2), 6, DIM).astype(np.float16)
    valid = np.array([True, True, False, True, True, True])
    table = score(pa.chunked_array([IDS[:6]]), vectors, valid, GRID)
    assert table["key"].to_pylist() == row_keys(IDS[:6]).tolist()
    exact = oracles.exact_steps(vectors, GRID)
    assert table["steps"].to_pylist() == [row if ok else None for row, ok in zip(exact, valid, strict=True)]


@pytest.mark.parametrize("poison", [(), POISON])
def test_scoring_while_encoding_equals_scoring_embeddings(corpus, files, scored, notes, tmp_path, poison):
    encode(corpus, files, notes, poison=poison)
    score_corpus(files, scored, GRID, InlineExecutor())
    alone = Similarities(oracles.make_stage(tmp_path / "alone"), corpus)
    assert encode(corpus, None, notes, scoring=(alone, GRID), poison=poison).rows == len(TEXTS)
    assert alone.missing() == scored.missing() == []
    for shard in corpus.shards:
        assert alone.read(shard).equals(scored.read(shard))
        keys, steps, valid = alone.steps(shard)
        vectors, has_vector = files.vectors(shard)
        assert np.array_equal(keys, row_keys(corpus.read(shard)["id"].to_pylist()))
        assert np.array_equal(valid, has_vector)
        assert np.array_equal(steps[valid], similarities(np.array(vectors), GRID)[valid])
    quarantine = tmp_path / "quarantine.parquet"
    assert write_quarantine(alone, quarantine) == write_quarantine(files, quarantine)


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_scoring_writes_the_same(corpus, files, scored, notes, tmp_path, monkeypatch, threads):
    encode(corpus, files, notes, poison=POISON)
    score_corpus(files, scored, GRID, InlineExecutor())
    monkeypatch.setattr(bandpass, "MIN_COORDINATES_TO_COMPILE", 0)
    compiled = Similarities(oracles.make_stage(tmp_path / "compiled"), corpus)
    score_corpus(files, compiled, GRID, InlineExecutor(), threads=threads)
    for shard in corpus.shards:
        assert compiled.read(shard).equals(scored.read(shard))


def test_no_more_shards_are_computed_at_a_time_than_threads(corpus, files, scored, notes, monkeypatch):
    encode(corpus, files, notes)
    running, most = [], []

    def slow(vectors, grid):
        running.append(None)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return similarities(vectors, grid)

    monkeypatch.setattr(module, "choose_way", lambda _: slow)
    score_corpus(files, scored, GRID, InlineExecutor(), threads=1)
    assert len(most) == len(corpus.shards)
    assert max(most) == 1


def test_score_corpus_does_only_what_is_missing(corpus, files, scored, notes):
    encode(corpus, files, notes)
    score_corpus(files, scored, GRID, InlineExecutor())
    first, second = corpus.shards[:2]
    scored.path(first).with_suffix(".arrow.json").unlink()
    stamp = scored.path(second).stat().st_mtime_ns
    score_corpus(files, scored, GRID, InlineExecutor())
    assert scored.missing() == []
    assert scored.path(second).stat().st_mtime_ns == stamp


def test_score_corpus_says_what_went_wrong(corpus, files, scored, notes):
    encode(corpus, files, notes)
    files.path(corpus.shards[0]).unlink()
    with pytest.raises(RuntimeError, match=f"shard {corpus.shards[0].name} cannot be scored"):
        score_corpus(files, scored, GRID, InlineExecutor())


def test_encoder_loader_pickles():
    load = pickle.loads(pickle.dumps(encoder_loader(EncoderConfig(max_length=64), precision="float32", threads=3)))
    assert load.args[0].max_length == 64
    assert load.keywords == {"precision": "float32", "threads": 3}


def test_a_disk_that_is_full_keeps_what_was_finished(corpus, files, notes, tmp_path, monkeypatch):
    fsync, synced = os.fsync, []

    def until_full(number):
        synced.append(number)
        if len(synced) > 4:  # a shard is a file and its manifest
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", until_full)
        with pytest.raises(DiskFullError, match="the disk or its quota is full"):
            encode(corpus, files, notes)
    done = [shard for shard in corpus.shards if files.facts(shard)]
    assert 1 <= len(done) <= 2 < len(corpus.shards)
    assert not list(files.stage.folder.glob(".*"))
    before = {shard.name: files.path(shard).stat().st_mtime_ns for shard in done}

    encode(corpus, files, notes)
    assert files.missing() == []
    assert {shard.name: files.path(shard).stat().st_mtime_ns for shard in done} == before
    other = Embeddings(oracles.make_stage(tmp_path / "undisturbed"), corpus)
    encode(corpus, other, notes)
    for shard in corpus.shards:
        assert files.path(shard).read_bytes() == other.path(shard).read_bytes()


def test_a_shard_whose_workers_had_bad_luck_is_tried_once_more(corpus, files, notes, monkeypatch):
    write, tried = Embeddings.write, []

    def write_at_last(self, shard, *arguments, **facts):
        if shard == corpus.shards[1]:
            tried.append(shard)
            if len(tried) <= 3:
                raise OSError("the node went away")
        write(self, shard, *arguments, **facts)

    monkeypatch.setattr(Embeddings, "write", write_at_last)
    assert encode(corpus, files, notes).rows == len(TEXTS)
    assert len(tried) == 4
    assert files.facts(corpus.shards[1])["quarantined"] == []


def loader_of_actors(notes, **fake):
    """Return a loader that travels by value, as an actor does not know where the tests lie."""
    folder = str(Path(oracles.__file__).parents[1])

    def load():
        import sys

        sys.path.insert(0, folder)
        from mining import oracles as there

        return there.FakeEncoder(notes, **fake)

    return load


@pytest.mark.slow
def test_a_row_that_ends_the_process_goes_to_quarantine(tmp_path, notes, ray_session):
    texts = [f"tweet {number}" for number in range(12)]
    corpus = oracles.make_corpus(tmp_path, IDS[:12], texts, 6)
    files = Embeddings(oracles.make_stage(tmp_path / "embeddings"), corpus)
    load = loader_of_actors(notes, deadly=("tweet 4",))
    with make_executor(ComputeConfig(executor="ray", workers=2), signals=StopSignals(), wants_gpu=False) as executor:
        assert encode_corpus(load, corpus, executor, embeddings=files).rows == 12
    path = tmp_path / "quarantine.parquet"
    assert write_quarantine(files, path) == 1
    [row] = pq.read_table(path).to_pylist()
    [place] = [
        (shard.name, i)
        for shard in corpus.shards
        for i, r in enumerate(rows_of(corpus, shard))
        if r["text"] == "tweet 4"
    ]
    assert (row["shard"], row["row"]) == place
    assert "the worker process died" in row["error"]
    for shard in corpus.shards:
        vectors, valid = files.vectors(shard)
        for i, found in enumerate(rows_of(corpus, shard)):
            assert valid[i] == (found["text"] != "tweet 4")
            if valid[i]:
                assert np.array_equal(vectors[i], oracles.fake_vector(found["text"], DIM).astype(np.float16))


@pytest.mark.slow
def test_the_kernel_ends_a_worker_for_want_of_memory(tmp_path, notes, ray_session):
    corpus = oracles.make_corpus(tmp_path, IDS, TEXTS, 9)
    files = Embeddings(oracles.make_stage(tmp_path / "embeddings"), corpus)
    load = loader_of_actors(notes, killed_once=("tweet 3 on the storm",))
    with make_executor(ComputeConfig(executor="ray", workers=2), signals=StopSignals(), wants_gpu=False) as executor:
        work = encode_corpus(load, corpus, executor, embeddings=files)
    assert work.rows == len(TEXTS)
    assert work.rows_again > 0
    other = Embeddings(oracles.make_stage(tmp_path / "undisturbed"), corpus)
    encode(corpus, other, notes)
    for shard in corpus.shards:
        assert files.path(shard).read_bytes() == other.path(shard).read_bytes()
