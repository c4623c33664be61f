"""What is stored per shard of a corpus: one Arrow file each, written by workers and read by memory map.

Shapes: N tweets of a shard, D dimensions, W values of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine import bucket
from scalemine.config import InputError
from scalemine.corpus import Corpus, Shard
from scalemine.executor import Executor, Outcome
from scalemine.store import Stage, write_whole

logger = logging.getLogger(__name__)

OnRows = Callable[[int], None]


@dataclass(frozen=True)
class ShardStage:
    """A stage that has one file per shard of the corpus."""

    stage: Stage
    corpus: Corpus

    suffix: ClassVar[str]

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        return self.stage.file(f"{shard.name}.{self.suffix}")

    def facts(self, shard: Shard) -> dict[str, Any] | None:
        """Return what the manifest of a shard says, or None where the shard is not finished."""
        manifest: dict[str, Any] | None = self.stage.manifest(self.path(shard))
        return manifest if manifest and manifest["input"] == shard.sha256 else None

    def missing(self) -> list[Shard]:
        """Return the shards that are not finished, the largest first."""
        todo = [shard for shard in self.corpus.shards if self.facts(shard) is None]
        return sorted(todo, key=lambda shard: (-shard.num_rows, shard.name))


@dataclass(frozen=True)
class ShardFiles(ShardStage):
    """The files of a stage that has one Arrow file per shard of the corpus."""

    suffix = "arrow"

    def write(self, shard: Shard, table: pa.Table, **facts: Any) -> None:  # noqa: ANN401  JSON values
        """Write and commit the file of a shard."""
        write_arrow(self.path(shard), table)
        self.stage.commit(self.path(shard), input=shard.sha256, rows=table.num_rows, **facts)

    def read(self, shard: Shard) -> pa.Table:
        """Return the table of a shard, memory-mapped."""
        return read_arrow(self.path(shard))


@dataclass(frozen=True)
class Embeddings(ShardFiles):
    """The embeddings: columns id and vector (float16, rows of length 1; null for a row in quarantine)."""

    def vectors(self, shard: Shard) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return a shard's embeddings ``(N, D)`` and which rows have one ``(N,)``; row order is the corpus's."""
        return matrix(self.read(shard)["vector"])

    def at(self, places: Sequence[tuple[str, int]]) -> NDArray[np.float16]:
        """Return the embeddings ``(N, D)`` at places (shard, row), in that order; a row in quarantine is zeros."""
        shards = {shard.name: shard for shard in self.corpus.shards}
        by_shard: dict[str, list[int]] = {}
        for position, (name, _) in enumerate(places):
            by_shard.setdefault(name, []).append(position)
        vectors_ND: NDArray[np.float16] | None = None
        for name, positions in by_shard.items():
            part, valid_N = self.vectors(shards[name])
            rows = np.array([places[position][1] for position in positions])
            if vectors_ND is None:
                vectors_ND = np.empty((len(places), part.shape[1]), np.float16)
            vectors_ND[positions] = np.where(valid_N[rows, None], part[rows], 0)
        assert vectors_ND is not None, "no places"
        return vectors_ND


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as an Arrow file, whole or not at all."""
    with write_whole(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def read_arrow(path: Path) -> pa.Table:
    """Return the table in an Arrow file, memory-mapped.

    Raises:
        InputError: The file is damaged; of its values, which have no checksum, that is not seen.
    """
    here = bucket.local(path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(here))).read_all()
        table.validate()
    except (OSError, ValueError, pa.ArrowException) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: damaged ({said}); remove it and {path.name}.json, and run again") from None
    return table


def matrix(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a column of fixed-size lists as a matrix without copying, and which of its rows are not null."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = array.type.list_size
    values = array.values.to_numpy(zero_copy_only=True)[array.offset * width : (array.offset + len(array)) * width]
    return values.reshape(len(array), width), array.is_valid().to_numpy(zero_copy_only=False)


def matrix_column(values_NW: NDArray[Any], valid_N: NDArray[np.bool_]) -> pa.Array:
    """Return a matrix as a column of fixed-size lists, null where a row is not valid."""
    flat = pa.array(np.ascontiguousarray(values_NW).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_NW.shape[1], mask=pa.array(~valid_N))


@dataclass(frozen=True)
class ShardJob:
    """A shard to encode.

    Args:
        shard: The shard.
        skip: Rows in quarantine with the error of each.
        trial: Encode only these rows, [start, stop), and write nothing: the search for a row that breaks the worker.
    """

    shard: Shard
    skip: tuple[tuple[int, str], ...] = ()
    trial: tuple[int, int] | None = None


def run_shards(
    executor: Executor,
    make_worker: Callable[[], Callable[[ShardJob], Any]],
    jobs: Sequence[ShardJob],
    on_rows: OnRows | None,
    on_outcome: Callable[[Outcome[ShardJob, Any]], None] | None = None,
) -> list[tuple[ShardJob, str]]:
    """Run jobs; return those that failed, with the traceback; see ``Executor.map``."""
    failures = []
    for outcome in executor.map(make_worker, jobs):
        if on_outcome:
            on_outcome(outcome)
        if outcome.error is not None:
            failures.append((outcome.item, outcome.error))
        elif on_rows:
            on_rows(outcome.item.shard.num_rows)
    bucket.refresh()
    return failures


def run_past_poison(
    executor: Executor,
    make_worker: Callable[[], Callable[[ShardJob], Any]],
    shards: Sequence[Shard],
    on_rows: OnRows | None,
    on_outcome: Callable[[Outcome[ShardJob, Any]], None] | None,
    *,
    verb: str,
) -> None:
    """Run a worker on shards; rows that break it go to quarantine and the rest goes on.

    Args:
        executor: Where.
        make_worker: Makes the worker, which leaves out the rows of ``ShardJob.skip``.
        shards: What it is run on.
        on_rows: Told how many rows were finished.
        on_outcome: Told every outcome.
        verb: What is done with a row.

    Raises:
        RuntimeError: A shard fails and no single row of it is to blame.
    """
    for failed, error in run_shards(executor, make_worker, [ShardJob(shard) for shard in shards], on_rows, on_outcome):
        logger.warning("shard %s fails; looking for the row that breaks it", failed.shard.name)
        poison = _find_poison(executor, make_worker, failed.shard)
        # Where no row is to blame, its workers may have had bad luck: nodes that went away.
        again = run_shards(executor, make_worker, [ShardJob(failed.shard, skip=tuple(poison))], on_rows, on_outcome)
        if again and not poison:
            raise RuntimeError(f"shard {failed.shard.name} fails, though each of its rows can be {verb}:\n{error}")
        if again:
            raise RuntimeError(
                f"shard {failed.shard.name} fails also without rows {[r for r, _ in poison]}:\n{again[0][1]}"
            )


# More poison than this in one shard is no matter of rows.
MAX_POISON = 32


def _find_poison(
    executor: Executor, make_worker: Callable[[], Callable[[ShardJob], Any]], shard: Shard
) -> list[tuple[int, str]]:
    """Return the rows that break the worker, with the error of each, by halving; none if it breaks at too many."""
    suspected: list[int] = []
    suspects = [(0, shard.num_rows)]
    while suspects and len(suspects) + len(suspected) <= 2 * MAX_POISON:
        trials = [ShardJob(shard, trial=span) for span in suspects]
        suspects = []
        for outcome in executor.map(make_worker, trials, attempts=1):
            if outcome.error is None:
                continue
            assert outcome.item.trial is not None
            start, stop = outcome.item.trial
            if stop - start == 1:
                suspected.append(start)
            else:
                middle = (start + stop) // 2
                suspects += [(start, middle), (middle, stop)]
    if suspects or len(suspected) > MAX_POISON:
        return []
    # A worker can fail for reasons of its own: a row is to blame that fails each time it is tried.
    singles = [ShardJob(shard, trial=(row, row + 1)) for row in suspected]
    return sorted((o.item.trial[0], o.error) for o in executor.map(make_worker, singles) if o.error and o.item.trial)


def write_quarantine(files: ShardStage, path: Path) -> int:
    """Write the rows in quarantine, over all shards; return how many there are."""
    rows = [
        {"shard": shard.name, **row}
        for shard in files.corpus.shards
        for row in (files.facts(shard) or {}).get("quarantined", [])
    ]
    if rows:
        schema = pa.schema([("shard", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("error", pa.string())])
        with write_whole(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    return len(rows)
