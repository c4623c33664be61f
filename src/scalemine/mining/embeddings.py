"""Embeddings and similarities of the corpus, one Arrow file per shard: computed by workers, read by memory map.

Shapes: N tweets of a shard, K classes, D dimensions.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from scalemine.config import EncoderConfig
from scalemine.corpus import Corpus, Shard
from scalemine.encoder import Encoder, load_encoder
from scalemine.executor import Executor, Outcome
from scalemine.mining.bandpass import choose_way
from scalemine.mining.sampling import row_keys
from scalemine.mining.similarity import similarities
from scalemine.shards import (
    Embeddings,
    OnRows,
    ShardFiles,
    ShardJob,
    matrix,
    matrix_column,
    run_past_poison,
    run_shards,
)
from scalemine.throughput import Effort, Work

# What a manifest says of how a shard was encoded; the similarities keep it, also when the embeddings are not kept.
ENCODED_FACTS = ("distinct", "tokens", "cut", "max_length", "precision", "device", "engine", "quarantined")

LoadEncoder = Callable[[], Encoder]


@dataclass(frozen=True)
class Similarities(ShardFiles):
    """Similarities to the anchors: columns key (uint64, of the id) and steps (K times int16, null in quarantine)."""

    def steps(self, shard: Shard) -> tuple[NDArray[np.uint64], NDArray[np.int16], NDArray[np.bool_]]:
        """Return a shard's row keys ``(N,)``, S_an ``(N, K)`` in steps of 2^-15, and which rows have them ``(N,)``."""
        table = self.read(shard)
        steps_NK, valid_N = matrix(table["steps"])
        return table["key"].combine_chunks().to_numpy(), steps_NK, valid_N


class ShardEncoder:
    """The worker that encodes a shard of the corpus and writes its embeddings, its similarities, or both."""

    def __init__(
        self,
        load: LoadEncoder,
        corpus: Corpus,
        embeddings: Embeddings | None,
        scoring: tuple[Similarities, NDArray[np.float32]] | None,
        measure_peak: bool = False,
    ) -> None:
        self._encoder = load()
        self._corpus, self._embeddings, self._scoring = corpus, embeddings, scoring
        self._peak = self._encoder.measure_peak() if measure_peak else None

    def __call__(self, job: ShardJob) -> Effort:
        """Encode one shard; return what that took."""
        started = time.monotonic()
        table = self._corpus.read(job.shard, columns=["id", "text"])
        rows = range(*job.trial) if job.trial else range(table.num_rows)
        skip = {row for row, _ in job.skip}
        texts = table["text"].to_pylist()
        distinct: dict[str, int] = {}
        source = [
            distinct.setdefault(self._encoder.normalise(texts[row]), len(distinct)) for row in rows if row not in skip
        ]
        tokens = self._encoder.tokenise(list(distinct))
        vectors = self._encoder.encode(tokens)
        effort = Effort(
            worker=f"{socket.gethostname()}:{os.getpid()}",
            machine=self._encoder.machine,
            peak=self._peak,
            tokens=tokens.num_tokens,
            padded_tokens=self._encoder.num_padded(tokens),
            flops=self._encoder.num_flops(tokens),
        )
        if job.trial:
            return effort
        valid_N = np.ones(table.num_rows, np.bool_)
        valid_N[list(skip)] = False
        vectors_ND = np.zeros((table.num_rows, self._encoder.dim), np.float16)
        vectors_ND[valid_N] = vectors.astype(np.float16)[source]
        facts = {
            "distinct": len(distinct),
            "tokens": tokens.num_tokens,
            "cut": tokens.num_cut,
            "max_length": self._encoder.max_length,
            "precision": self._encoder.precision,
            "device": self._encoder.device,
            "engine": self._encoder.engine,
            "quarantined": [{"row": row, "id": table["id"][row].as_py(), "error": error} for row, error in job.skip],
        }
        if self._scoring:
            files, grid_KD = self._scoring
            files.write(
                job.shard, score(table["id"], vectors_ND, valid_N, grid_KD), **facts, seconds=time.monotonic() - started
            )
        if self._embeddings:
            columns = {"id": table["id"], "vector": matrix_column(vectors_ND, valid_N)}
            self._embeddings.write(job.shard, pa.table(columns), **facts, seconds=time.monotonic() - started)
        return effort


class ShardScorer:
    """The worker that reads the embeddings of a shard and writes its similarities.

    Args:
        embeddings: What is read.
        similarities: What is written.
        grid_KD: The anchors.
        num_rows: About how many rows this worker will see.
        threads: Shards that are computed at a time, each by one thread.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        similarities: Similarities,
        grid_KD: NDArray[np.float32],
        num_rows: int,
        threads: int,
    ) -> None:
        torch.set_num_threads(1)
        self._embeddings, self._similarities = embeddings, similarities
        self._way, self._grid_KD = choose_way(num_rows * grid_KD.shape[1]), grid_KD
        # A worker goes through two shards at a time, also on one core.
        self._cores = threading.Semaphore(threads)

    def __call__(self, job: ShardJob) -> None:
        """Score one shard."""
        started = time.monotonic()
        table = self._embeddings.read(job.shard)
        vectors_ND, valid_N = matrix(table["vector"])
        with self._cores:
            steps_NK = self._way(vectors_ND, self._grid_KD)
        embedded = self._embeddings.facts(job.shard)
        assert embedded is not None
        facts = {key: embedded[key] for key in ENCODED_FACTS if key in embedded}  # an older one names no engine
        scored = similarity_table(table["id"], steps_NK, valid_N)
        self._similarities.write(job.shard, scored, **facts, seconds=time.monotonic() - started)


def score(
    ids: pa.ChunkedArray, vectors_ND: NDArray[np.float16], valid_N: NDArray[np.bool_], grid_KD: NDArray[np.float32]
) -> pa.Table:
    """Return the similarity table of a shard's embeddings."""
    return similarity_table(ids, similarities(vectors_ND, grid_KD), valid_N)


def similarity_table(ids: pa.ChunkedArray, steps_NK: NDArray[np.int16], valid_N: NDArray[np.bool_]) -> pa.Table:
    """Return the similarity table of a shard: key and steps."""
    return pa.table({"key": row_keys(ids.to_pylist()), "steps": matrix_column(steps_NK, valid_N)})


def encode_corpus(
    load: LoadEncoder,
    corpus: Corpus,
    executor: Executor,
    *,
    embeddings: Embeddings | None,
    scoring: tuple[Similarities, NDArray[np.float32]] | None = None,
    on_rows: OnRows | None = None,
    measure_peak: bool = False,
) -> Work:
    """Encode the shards that are not finished; rows that break a worker go to quarantine and the rest goes on.

    Args:
        load: Loads the encoder, once per worker.
        corpus: What to encode.
        executor: Where.
        embeddings: Where the embeddings go; None: nowhere.
        scoring: Where similarities to the anchors go, and the anchors' grid, if they are computed in the same pass.
        on_rows: Told how many rows were finished.
        measure_peak: Each worker first measures for a second what its machine can do.

    Returns:
        What it took.

    Raises:
        RuntimeError: A shard fails and no single row of it is to blame.
    """
    files: ShardFiles | None = embeddings or (scoring[0] if scoring else None)
    assert files is not None
    started, work = time.monotonic(), Work()

    def count(outcome: Outcome[ShardJob, Effort]) -> None:
        work.rows_again += outcome.failures * outcome.item.shard.num_rows
        if outcome.result:
            work.add(outcome.item.shard.num_rows, outcome.result)

    worker = partial(ShardEncoder, load, corpus, embeddings, scoring, measure_peak)
    run_past_poison(executor, worker, files.missing(), on_rows, count, verb="encoded")
    work.seconds = time.monotonic() - started
    return work


def score_corpus(
    embeddings: Embeddings,
    scored: Similarities,
    grid_KD: NDArray[np.float32],
    executor: Executor,
    *,
    workers: int = 1,
    threads: int = 1,
) -> None:
    """Compute the similarities of the shards that have none, from their embeddings.

    Args:
        embeddings: What is read.
        scored: What is written.
        grid_KD: The anchors.
        executor: Where.
        workers: That share the work.
        threads: Of each worker.

    Raises:
        RuntimeError: A shard cannot be scored.
    """
    missing = scored.missing()
    rows_of_worker = sum(shard.num_rows for shard in missing) // workers
    worker = partial(ShardScorer, embeddings, scored, grid_KD, rows_of_worker, threads)
    failures = run_shards(executor, worker, [ShardJob(shard) for shard in missing], None)
    if failures:
        raise RuntimeError(f"shard {failures[0][0].shard.name} cannot be scored:\n{failures[0][1]}")


def encoder_loader(config: EncoderConfig, *, precision: str, threads: int) -> LoadEncoder:
    """Return a loader that pickles, for the workers; all of them compute in one precision, whatever their device."""
    if Path(config.model).expanduser().is_dir():  # a worker may run in another folder
        config = config.model_copy(update={"model": str(Path(config.model).expanduser().absolute())})
    return partial(load_encoder, config, precision=precision, threads=threads)
