"""The imported corpus: shards of tweets with unique ids, in which copies of one text lie together.

An import runs in three passes over files larger than memory:

1. each file of the corpus is read into one staging file, with a number for every record (`sources` says how);
2. DuckDB finds ids that were there before, and texts that occur more than once;
3. DuckDB puts the rows in order, and they are cut into shards.

The order is that of the input, except that exact copies of a text follow directly after its first occurrence. Copies
share a shard, so that each text need be encoded only once, by whoever holds its shard. Only where they are more than
`rows_per_shard` may they be cut apart, and be encoded once per shard: no shard has more than twice that many rows. The
last shards are smaller than the others, so that workers that share a corpus end together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalemine import bucket, store
from scalemine.config import CorpusConfig, InputError
from scalemine.mirror import is_uri, mirror_of, spelled
from scalemine.sources import DUPLICATE_ID, EXCERPT_CHARS, Record, Reject, Source, find_sources, read_records
from scalemine.store import Stage, open_stage, read_json, write_json, write_whole
from scalemine.text import text_hash

log = logging.getLogger(__name__)
Json = Any

IMPORT_VERSION: Final = 1
_CORPUS_FILE: Final = "corpus.json"
_REJECTS_FILE: Final = "rejects.parquet"
# Hidden, so that of a corpus in a bucket it stays on this machine.
_STAGING: Final = ".staging"
_ROW_GROUP_ROWS: Final = 4096
# Towards the end shards are smaller, each this part of the rows that are left, so that workers end together. No smaller
# than this: the encoder then tops up more and more of its batches (4,096 rows: 6 % of what it computes; 1,000: 25 %).
_LAST_PARTS: Final = 16
_SMALL_SHARD_ROWS: Final = 4096
_STAGING_ROWS: Final = 16_384
_MANY_DUPLICATES: Final = 0.05
# A record's number is that of its file, shifted by this, plus its place among the file's records.
_SEQ_BITS: Final = 40
_REJECTS_SCHEMA: Final = pa.schema(
    {"source": pa.string(), "line": pa.int64(), "reason": pa.string(), "excerpt": pa.string()}
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the corpus: the unit of work of every later stage."""

    name: str
    path: Path
    num_rows: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """An imported corpus.

    ``counts`` holds ``read``, ``accepted``, ``rejected``, ``rejected_by_reason``, ``copies`` (rows that repeat an
    earlier text) and ``by_source``.
    """

    folder: Path
    shards: tuple[Shard, ...]
    columns: tuple[str, ...]
    counts: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Number of tweets."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all shards, in order."""
        return store.fingerprint([shard.sha256 for shard in self.shards])

    @property
    def rejects(self) -> Path:
        """Parquet file of what was read and not accepted: source, line, reason, excerpt."""
        return self.folder / _REJECTS_FILE

    def read(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a shard: id, text and the kept columns, all strings; or only some of the columns.

        Raises:
            InputError: The file is damaged.
        """
        here = bucket.local(shard.path)
        try:
            with pq.ParquetFile(here, page_checksum_verification=True) as file:
                table = file.read(columns=None if columns is None else list(columns))
            wanted = self.columns if columns is None else columns
            if table.num_rows != shard.num_rows or set(table.column_names) != set(wanted):
                raise ValueError(f"{table.num_rows} rows of {', '.join(table.column_names)}")
        except (OSError, ValueError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:120]
            raise InputError(f"{shard.path}: damaged ({said}); remove {self.folder} and import again") from None
        return table


def open_corpus(folder: Path) -> Corpus:
    """Return the corpus that was imported into a folder.

    Raises:
        InputError: There is none, it is damaged, or its shards are gone.
    """
    try:
        facts = read_json(folder / _CORPUS_FILE)
    except FileNotFoundError:
        raise InputError(f"{folder}: no imported corpus (expected {_CORPUS_FILE} in it); import one first") from None
    try:
        home = Path(facts["shards_in"] or folder)
        if is_uri(str(facts["shards_in"])):
            home = mirror_of(facts["shards_in"])
            bucket.attach(home)
        if strange := [entry["name"] for entry in facts["shards"] if not store.is_plain_name(entry["name"])]:
            raise ValueError(f"{strange[0]!r} is no name of a shard")
        shards = tuple(
            Shard(entry["name"], _shard_path(home, entry["name"]), int(entry["rows"]), str(entry["sha256"]))
            for entry in facts["shards"]
        )
        columns, counts = tuple(map(str, facts["columns"])), dict(facts["counts"])
        missing = [shard.path for shard in shards if not shard.path.exists()]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / _CORPUS_FILE}: damaged ({error!r}); remove {folder} and import again") from None
    if missing:
        raise InputError(
            f"{missing[0]}: shard is gone ({len(missing)} of {len(shards)}); "
            f"put {home} back, or remove {folder} and import again"
        )
    return Corpus(folder, shards, columns, counts)


def import_corpus(
    config: CorpusConfig, folder: Path, *, redo: bool = False, on_rows: Callable[[int], None] | None = None
) -> Corpus:
    """Import tweets into a folder, or go on with an import that was stopped; a finished one is only opened.

    Where ``config.uri`` is one imported corpus, its shards are used where they lie.

    Args:
        config: Which tweets, and what is too much.
        folder: Where the corpus goes.
        redo: Discard a corpus that was imported there with other settings or from other files.
        on_rows: Called with the number of further records read.

    Raises:
        InputError: A file cannot be found or read, a column is not there, no row is usable, or the folder holds a
            corpus of other settings or files.
    """
    stage, origin = _open_import(config, folder, redo=redo)
    if not stage.file(_CORPUS_FILE).exists():
        if isinstance(origin, Corpus):
            _adopt(origin, stage)
        else:
            try:
                _import(config, stage, origin, on_rows or (lambda _: None))
            except InputError:
                shutil.rmtree(stage.file(_STAGING), ignore_errors=True)  # nothing of it is of use to a mended call
                raise
    # After the commit, since an import that is stopped between the two must not start again.
    shutil.rmtree(stage.file(_STAGING), ignore_errors=True)
    return open_corpus(folder)


def check_import(config: CorpusConfig, folder: Path) -> None:
    """Look whether `import_corpus` would take these settings, files and folder, and write nothing.

    Raises:
        InputError: As `import_corpus` raises before it reads any record.
    """
    _open_import(config, folder, make=False)


def _open_import(
    config: CorpusConfig, folder: Path, *, redo: bool = False, make: bool = True
) -> tuple[Stage, Corpus | list[Source]]:
    """Open the stage of an import, and return it with what is to be imported: a corpus from elsewhere, or files."""
    _check_keep(config)
    _check_apart(config, folder)
    imported = _folder_of(config.uri[0])
    origin: Corpus | list[Source]
    if len(config.uri) == 1 and (imported / _CORPUS_FILE).is_file():
        origin = open_corpus(imported)
        _check_columns(config, origin)
        inputs = {"imported corpus": origin.fingerprint}
    else:
        origin = find_sources(config.uri)
        inputs = {source.name: source.fingerprint() for source in origin}
    settings = _settings(config)
    stage = open_stage(folder, version=IMPORT_VERSION, settings=settings, inputs=inputs, redo=redo, make=make)
    return stage, origin


def _folder_of(uri: str) -> Path:
    """Return the folder that may hold an imported corpus; of one in a bucket, its mirror."""
    try:
        folder = mirror_of(uri) if is_uri(uri) else Path(uri).absolute()
    except ValueError:  # what other filesystems there are hold tweets alone
        return Path(uri).absolute()
    if bucket.find(folder / _CORPUS_FILE):
        bucket.attach(folder)
    return folder


def _check_keep(config: CorpusConfig) -> None:
    columns = ["id", "text", *config.keep]
    twice = [name for name in config.keep if columns.count(name) > 1]
    if twice:
        raise InputError(f"corpus.keep: {twice[0]} would be there twice; id and text are always kept, so leave it out")


def _check_apart(config: CorpusConfig, folder: Path) -> None:
    """Refuse to import a folder into itself: the next run would read what this one wrote."""
    for uri in config.uri:
        if Path(uri).is_dir() and folder.resolve().is_relative_to(Path(uri).resolve()):
            raise InputError(f"{folder}: lies in the folder of corpus.uri, {uri}; choose a workdir outside of it")


def _settings(config: CorpusConfig) -> Json:
    return {f"corpus.{key}": value for key, value in config.model_dump(mode="json").items()}


def _shard_path(folder: Path, name: str) -> Path:
    return folder / "shards" / f"{name}.parquet"


def _check_columns(config: CorpusConfig, corpus: Corpus) -> None:
    absent = [name for name in config.keep if name not in corpus.columns]
    if absent:
        raise InputError(
            f"corpus.keep: {absent[0]} is not in the imported corpus {corpus.folder}, "
            f"which has {', '.join(corpus.columns)}; import its files again, or leave it out"
        )


def _adopt(corpus: Corpus, stage: Stage) -> None:
    """Point a stage to the shards of a corpus that was imported elsewhere."""
    with write_whole(stage.file(_REJECTS_FILE)) as temporary:
        shutil.copyfile(bucket.local(corpus.rejects), temporary)
    home = corpus.shards[0].path.parent.parent
    _write_corpus_file(dataclasses.replace(corpus, folder=stage.folder), shards_in=spelled(str(home.absolute())))


def _write_corpus_file(corpus: Corpus, *, shards_in: str | None = None) -> None:
    shards = [{"name": shard.name, "rows": shard.num_rows, "sha256": shard.sha256} for shard in corpus.shards]
    facts = {"columns": corpus.columns, "counts": corpus.counts, "shards_in": shards_in, "shards": shards}
    write_json(corpus.folder / _CORPUS_FILE, facts)


def _import(config: CorpusConfig, stage: Stage, sources: Sequence[Source], on_rows: Callable[[int], None]) -> None:
    """Make the corpus of a stage; its last file is the commit."""
    # A stage within the stage, so that its manifests go with it.
    staging = Stage(stage.file(_STAGING), stage.fingerprint)
    paths = [staging.file(f"{index:05}.parquet") for index in range(len(sources))]
    for source, path in zip(sources, paths, strict=True):
        if staging.manifest(path) is None:
            # The first record shows whether the columns are there: better said now than after hours of reading.
            next(read_records(source, config), None)
    tallies = []
    for index, (source, path) in enumerate(zip(sources, paths, strict=True)):
        tallies.append(_stage_source(config, staging, source, path, index << _SEQ_BITS, on_rows))
    with _full_disk_said(staging.folder), _open_database(staging.folder, paths) as database:
        _find_repeats(database)
        counts = _add_up(database, [source.name for source in sources], tallies)
        _write_rejects(database, [source.name for source in sources], stage.file(_REJECTS_FILE))
        assert pq.read_metadata(stage.file(_REJECTS_FILE)).num_rows == counts["rejected"], counts
        _check_usable(config, stage, counts)
        shards = tuple(_write_shards(database, config, counts["accepted"], stage.folder))
    assert sum(shard.num_rows for shard in shards) == counts["accepted"], (shards, counts)
    _write_corpus_file(Corpus(stage.folder, shards, ("id", "text", *config.keep), counts))


# Pass 1: from files to numbered records


def _stage_source(
    config: CorpusConfig, staging: Stage, source: Source, path: Path, first_seq: int, on_rows: Callable[[int], None]
) -> Json:
    """Read a file into its staging file, unless that was done, and return how many records had each reason."""
    manifest = staging.manifest(path)
    if manifest is not None:
        on_rows(manifest["read"])
        return manifest
    reasons: Counter[str | None] = Counter()
    schema = _staging_schema(len(config.keep))
    log.info("reading %s", source.uri)
    with write_whole(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        records = read_records(source, config)
        while chunk := list(itertools.islice(records, _STAGING_ROWS)):
            rows = _staging_rows(chunk, first_seq + reasons.total(), schema)
            writer.write_table(rows)
            reasons.update(rows["reason"].to_pylist())
            on_rows(len(chunk))
    assert reasons.total() < 1 << _SEQ_BITS, source.uri
    accepted = reasons.pop(None, 0)
    read = accepted + reasons.total()
    by_reason = dict(sorted(reasons.items()))
    staging.commit(path, source=source.name, read=read, accepted=accepted, rejected_by_reason=by_reason)
    return staging.manifest(path)


def _staging_schema(num_kept: int) -> pa.Schema:
    """Return the columns of a staging file: of a record, all but ``reason``; of a reject, ``text`` is its excerpt."""
    kept = {f"kept_{index}": pa.string() for index in range(num_kept)}
    narrow = {"seq": pa.int64(), "line": pa.int64(), "reason": pa.string(), "text_hash": pa.binary(16)}
    return pa.schema({**narrow, "id": pa.string(), "text": pa.string(), **kept})


def _staging_rows(chunk: Sequence[Record | Reject], first_seq: int, schema: pa.Schema) -> pa.Table:
    num_kept = len(schema) - 6
    rows = [
        (seq, found.line, None, text_hash(found.text), found.id, found.text, *found.kept)
        if isinstance(found, Record)
        else (seq, found.line, found.reason, None, None, found.excerpt, *[None] * num_kept)
        for seq, found in enumerate(chunk, start=first_seq)
    ]
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


# Pass 2: what was there before


@contextlib.contextmanager
def _full_disk_said(folder: Path) -> Iterator[None]:
    """Say in one line that the database has no room below a folder."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        # What does not fit into its share of memory goes to the disk; if it cannot, the one is full or the other.
        if not any(words in str(error) for words in ("No space left", "quota exceeded", "failed to offload")):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _open_database(staging: Path, paths: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """Open an empty database over the staging files, which spills to disk what a small memory does not hold."""
    spill = staging / "database"
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir()
    settings = {
        "memory_limit": "256MB",
        "threads": 2,
        "temp_directory": str(spill),
        # Only the outermost ORDER BY counts, and other orders cost memory.
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    database = duckdb.connect(str(spill / "import.duckdb"), config=settings)
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    database.execute(f"CREATE VIEW staged AS FROM read_parquet([{files}])")
    return database


def _find_repeats(database: duckdb.DuckDBPyConnection) -> None:
    """Make the tables of rows whose id was there before (``late``), and of texts with copies (``copied``).

    Only hashes and numbers are grouped; texts and ids stay in the files.
    """
    database.execute("""
        CREATE TABLE repeated AS
        SELECT md5_number(id) AS id_hash, min(seq) AS first FROM staged WHERE reason IS NULL
        GROUP BY id_hash HAVING count(*) > 1
    """)
    database.execute("""
        CREATE TABLE late AS
        SELECT seq FROM (SELECT seq, md5_number(id) AS id_hash FROM staged WHERE reason IS NULL)
        JOIN repeated USING (id_hash) WHERE seq > first
    """)
    database.execute("""
        CREATE TABLE copied AS
        SELECT text_hash, min(seq) AS first, count(*) AS rows FROM staged ANTI JOIN late USING (seq)
        WHERE reason IS NULL GROUP BY text_hash HAVING count(*) > 1
    """)


def _add_up(database: duckdb.DuckDBPyConnection, names: Sequence[str], tallies: Sequence[Json]) -> dict[str, Any]:
    """Return the counts of the whole corpus, and check that every record read is in one of them."""
    late = dict(database.execute(f"SELECT seq >> {_SEQ_BITS}, count(*) FROM late GROUP BY ALL").fetchall())
    reasons: Counter[str] = Counter()
    by_source = {}
    for index, (name, tally) in enumerate(zip(names, tallies, strict=True)):
        reasons.update(tally["rejected_by_reason"])
        reasons.update({DUPLICATE_ID: late[index]} if index in late else {})
        accepted = tally["accepted"] - late.get(index, 0)
        by_source[name] = {"read": tally["read"], "accepted": accepted, "rejected": tally["read"] - accepted}
    totals = {key: sum(source[key] for source in by_source.values()) for key in ("read", "accepted", "rejected")}
    assert totals["rejected"] == reasons.total(), (totals, reasons)
    [(copies,)] = database.execute("SELECT coalesce(sum(rows - 1), 0)::BIGINT FROM copied").fetchall()
    return {
        **totals,
        "rejected_by_reason": dict(reasons.most_common()),
        "copies": copies,
        "by_source": by_source,
        "warnings": [],
    }


def _check_usable(config: CorpusConfig, stage: Stage, counts: dict[str, Any]) -> None:
    """Refuse a corpus without a usable row, and warn of one whose ids look wrong."""
    late = counts["rejected_by_reason"].get(DUPLICATE_ID, 0)
    if late > _MANY_DUPLICATES * counts["read"]:
        counts["warnings"].append(
            f"{late} of {counts['read']} records have an id that was there before and were rejected; if they are other "
            f"tweets, set corpus.id to columns that are unique together, or to [] for file:line"
        )
        log.warning(counts["warnings"][-1])
    if counts["accepted"]:
        return
    where = f"corpus.uri {', '.join(config.uri)}: empty corpus"
    if not counts["read"]:
        raise InputError(f"{where}: 0 records read, the files hold none; name other files")
    reason, number = next(iter(counts["rejected_by_reason"].items()))
    raise InputError(
        f"{where}: {counts['read']} records read, none usable; most often: {reason} ({number} times); "
        f"see {stage.file(_REJECTS_FILE)}, and set corpus.text if the text has another name"
    )


# Pass 3: rejects and shards


def _write_rejects(database: duckdb.DuckDBPyConnection, names: Sequence[str], path: Path) -> None:
    """Write everything that was read and not accepted, in the order of the input."""
    rejects = _stream(
        database,
        f"""
        SELECT seq >> {_SEQ_BITS} AS source, line, coalesce(reason, '{DUPLICATE_ID}') AS reason,
            substr(text, 1, {EXCERPT_CHARS}) AS excerpt
        FROM staged WHERE reason IS NOT NULL OR seq IN (FROM late) ORDER BY seq
        """,
    )
    labels = pa.array(names, pa.string())
    with write_whole(path) as temporary, pq.ParquetWriter(temporary, _REJECTS_SCHEMA, compression="zstd") as writer:
        for batch in rejects:
            columns = [labels.take(batch["source"]), *batch.columns[1:]]
            writer.write_table(pa.Table.from_arrays(columns, schema=_REJECTS_SCHEMA), row_group_size=_ROW_GROUP_ROWS)


def _write_shards(
    database: duckdb.DuckDBPyConnection, config: CorpusConfig, num_rows: int, folder: Path
) -> Iterator[Shard]:
    """Write the accepted rows, of which there are so many, and yield each shard written."""
    kept = "".join(f", kept_{index}" for index in range(len(config.keep)))
    rows = _stream(
        database,
        f"""
        SELECT coalesce(first, seq) AS group_seq, id, text{kept}
        FROM staged ANTI JOIN late USING (seq) LEFT JOIN copied USING (text_hash)
        WHERE reason IS NULL ORDER BY group_seq, seq
        """,
    )
    for index, table in enumerate(_cut_shards(rows, config.rows_per_shard, num_rows)):
        name = f"{index:05}"
        path = _shard_path(folder, name)
        with write_whole(path) as temporary:
            # One chunk, so that the bytes do not depend on how the rows came.
            whole = table.rename_columns(["id", "text", *config.keep]).combine_chunks()
            pq.write_table(
                whole, temporary, compression="zstd", row_group_size=_ROW_GROUP_ROWS, write_page_checksum=True
            )
        yield Shard(name, path, table.num_rows, store.file_sha256(path))


def _stream(database: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a query, some at a time; no batch is empty."""
    for batch in database.sql(query).to_arrow_reader(_STAGING_ROWS):
        if batch.num_rows:
            yield batch


def shard_rows(num_left: int, rows_per_shard: int) -> int:
    """Return how many rows the next shard is to have, with so many left; copies of a text can make it larger."""
    return min(rows_per_shard, max(_SMALL_SHARD_ROWS, num_left // _LAST_PARTS))


def _cut_shards(batches: Iterable[pa.RecordBatch], rows_per_shard: int, num_rows: int) -> Iterator[pa.Table]:
    """Cut rows into tables between groups, and through a group only if it has more than ``rows_per_shard`` rows.

    Args:
        batches: Rows with their group in the first column, which is left out of the tables; groups lie together.
        rows_per_shard: A table has at most twice as many rows, and so many at least, but for the last ones, which are
            smaller (``shard_rows``).
        num_rows: Of all batches.
    """
    held: list[pa.RecordBatch] = []
    num_held, last_group, num_left = 0, -1, num_rows
    for batch in batches:
        groups = batch.column(0).to_numpy()
        starts = np.flatnonzero(np.diff(groups, prepend=last_group))
        rows, begin, last_group = batch.select(batch.schema.names[1:]), 0, groups[-1]
        while True:
            # A table ends before the first row that begins a group, once it is full.
            wanted = shard_rows(num_left, rows_per_shard)
            place = np.searchsorted(starts, begin + max(0, wanted - num_held))
            end = int(starts[place]) if place < len(starts) else batch.num_rows
            end = min(end, begin + 2 * rows_per_shard - num_held)
            if end == batch.num_rows:
                break
            yield pa.Table.from_batches([*held, rows.slice(begin, end - begin)])
            num_left -= num_held + end - begin
            held, num_held, begin = [], 0, end
        held.append(rows.slice(begin))
        num_held += batch.num_rows - begin
    if num_held:
        yield pa.Table.from_batches(held)
