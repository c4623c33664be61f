"""Tweets as they come, from standard input or from files that appear and grow, each answered by a line of JSON.

With ``--to``, a folder is followed so that a restart neither skips nor repeats a tweet: what was read and how long the
output is are written to one file after each batch, and a restart cuts off what the output holds beyond that.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import logging
import os
import select
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scalemine.config import CorpusConfig, InputError
from scalemine.executor import StopSignals
from scalemine.models import model_fingerprint
from scalemine.sources import (
    BROKEN_CSV,
    LONG_RECORD,
    UNCLOSED_QUOTE,
    Record,
    Reject,
    Source,
    read_json_line,
    read_records,
    read_table_row,
)
from scalemine.store import read_json, write_json
from scalemine.training.kept import folder_of
from scalemine.training.predictions import Predictor

logger = logging.getLogger(__name__)

# Tweets of one batch at most, and seconds until a batch that is smaller goes to the model.
BATCH, WAIT = 256, 0.5
JSON_ENDINGS, TABLE_ENDINGS = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
# By which a file is known again.
_HEAD_BYTES = 1_024
# Lines of one row of a table; with more, its quote was never closed.
_ROW_LINES = 100

Found = tuple[str, Record | Reject]


@dataclass(frozen=True)
class Watched:
    """What is followed, and how.

    Args:
        model: Folder of the model, or of its run.
        folder: The folder; ``-`` is standard input.
        to: File to write; None: standard output.
        text: Column of the text; None: found by its usual names.
        id: Column of the identifier; None: found by its usual names, else file:line.
        min_probability: Instead of the model's thresholds.
        precision: In which a fine-tuned classifier computes.
    """

    model: Path
    folder: str = "-"
    to: Path | None = None
    text: str | None = None
    id: str | None = None
    min_probability: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise InputError(f"--min-probability: expected a number from 0 to 1, got {self.min_probability}")
        if self.folder == "-":
            return
        if not Path(self.folder).is_dir():
            raise InputError(f"{self.folder}: no such folder; expected a folder of files, or - for standard input")
        if self.to and self.to.resolve().is_relative_to(Path(self.folder).resolve()):
            raise InputError(f"--to {self.to}: lies in the folder that is followed; write it elsewhere")

    @property
    def tweets(self) -> CorpusConfig:
        """How records are read."""
        return CorpusConfig(uri=(self.folder,), text=self.text, id=None if self.id is None else (self.id,))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the output, beside what is read."""
        keys = ("text", "id", "min_probability", "precision")
        settings = {f"--{key.replace('_', '-')}": getattr(self, key) for key in keys}
        folder = str(Path(self.folder).resolve())
        return settings | {"FOLDER": folder, "MODEL": model_fingerprint(folder_of(self.model))}


@dataclass
class Tally:
    """What was read so far."""

    tweets: int = 0
    bad: int = 0


def run_watch(watched: Watched, predictor: Predictor, signals: StopSignals, *, once: bool = False) -> Tally:
    """Answer tweets until standard input ends, or a signal comes; or, if asked for, until nothing more is there.

    Raises:
        InputError: The output is not that of an earlier call with the same model and settings.
        BrokenPipeError: Nobody reads the output any more.
    """
    tally = Tally()
    if watched.folder == "-":
        with _open_output(watched) as file:
            for batch in read_stream(sys.stdin.fileno(), watched.tweets, signals):
                _answer(batch, predictor, tally, file)
        return tally
    follower = Follower(Path(watched.folder), watched.tweets)
    with _open_output(watched, follower) as file:
        while not signals.requested:
            if batch := follower.read(BATCH):
                _answer(batch, predictor, tally, file)
                if watched.to:
                    _write_state(watched, follower, file)
            elif once:
                break
            else:
                time.sleep(WAIT)
    return tally


def _answer(batch: list[Found], predictor: Predictor, tally: Tally, file: BinaryIO) -> None:
    """Write what is found in the tweets of a batch, and tell of the lines that hold none."""
    records = []
    for name, found in batch:
        if isinstance(found, Reject):
            tally.bad += 1
            logger.warning("%s, line %d: %s", name, found.line, found.reason)
        else:
            records.append((name, found))
    for (name, record), answer in zip(records, _predict(records, predictor), strict=True):
        if answer is None:
            tally.bad += 1
            logger.warning("%s, line %d: the model cannot read it", name, record.line)
            continue
        tally.tweets += 1
        file.write(json.dumps({"id": record.id, **answer}, ensure_ascii=False).encode() + b"\n")
    file.flush()


def _predict(records: list[tuple[str, Record]], predictor: Predictor) -> list[dict[str, Any] | None]:
    """Return what is found in some texts; None for one that breaks the model."""
    texts = [predictor.normalise(record.text) for _, record in records]
    if not texts:
        return []
    try:
        return list(predictor.read(texts).as_json())
    # Whatever it is, and of any library: it costs one tweet, and the rest goes on.
    except Exception as error:  # noqa: BLE001
        if len(texts) == 1:
            logger.warning("%s: %s", type(error).__name__, error)
            return [None]
    return [answer for one in records for answer in _predict([one], predictor)]


# Standard input


def read_stream(file: int, config: CorpusConfig, signals: StopSignals) -> Iterator[list[Found]]:
    """Yield the tweets of a stream of JSON lines in batches, each soon after its first line came."""
    source, cap = _source("stdin", Path("stdin")), config.max_record_bytes
    begun, number, is_long = b"", 0, False
    batch: list[Found] = []
    since = time.monotonic()
    while not signals.requested:
        ready, _, _ = select.select([file], [], [], WAIT / 5)
        content = os.read(file, 1 << 16) if ready else None
        *lines, begun = (begun + (content or b"")).split(b"\n")
        if content == b"" and (begun or is_long):
            lines, begun = [*lines, begun], b""
        for line in lines:
            number += 1
            if not batch:
                since = time.monotonic()
            if is_long or len(line) > cap:
                batch.append(("stdin", Reject(number, LONG_RECORD, "")))
                is_long = False
            else:
                batch += [("stdin", found) for found in read_json_line(source, config, number, line)]
            if len(batch) >= BATCH:
                yield batch
                batch = []
        if len(begun) > cap:
            begun, is_long = b"", True
        if batch and (content == b"" or time.monotonic() - since >= WAIT):
            yield batch
            batch = []
        if content == b"":
            return
    if batch:  # taken from the stream, so it would be lost
        yield batch


def _source(name: str, path: Path) -> Source:
    return Source(
        name, str(path), pafs.LocalFileSystem(), str(path.absolute()), path.stat().st_size if path.exists() else 0
    )


# Files that appear and grow


@dataclass
class Follower:
    """The files of a folder, and how far each was read.

    Args:
        folder: The folder.
        config: How records are read.
        places: By the name of a file, ``offset`` and ``line``: bytes and lines that were read, rows of Parquet files.
    """

    folder: Path
    config: CorpusConfig
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    # By name: how a file was when it could not be read, and the rows of a Parquet file that are still to come.
    _passed_over: dict[str, tuple[int, int]] = field(default_factory=dict)
    _rows: dict[str, tuple[tuple[int, int], Iterator[Record | Reject]]] = field(default_factory=dict)

    def read(self, most: int) -> list[Found]:
        """Return about so many further records at most, and remember them as read."""
        batch: list[Found] = []
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            is_hidden = any(part.startswith((".", "_")) for part in Path(name).parts)
            if is_hidden or path.suffix.lower() not in (*JSON_ENDINGS, *TABLE_ENDINGS, PARQUET):
                continue
            before = dict(self.places.get(name, {"offset": 0, "line": 0}))
            try:
                status = path.stat()
                now = (status.st_size, status.st_mtime_ns)
                if self._passed_over.get(name) != now:
                    batch += [(name, found) for found in self._read_file(name, path, now, most - len(batch))]
            except FileNotFoundError:
                continue  # it went in between
            except (InputError, OSError) as error:
                self._passed_over[name] = now
                # What was read of it in this turn is not given on, so it is read again.
                self.places[name] = before
                self._rows.pop(name, None)
                logger.warning("%s; the file is passed over until it changes", error)
            if len(batch) >= most:
                break
        return batch

    def _read_file(self, name: str, path: Path, now: tuple[int, int], most: int) -> list[Record | Reject]:
        place = self.places.setdefault(name, {"offset": 0, "line": 0})
        if path.suffix.lower() == PARQUET:
            return self._read_parquet(name, path, now, most)
        read = self._read_row if path.suffix.lower() in TABLE_ENDINGS else self._read_json
        batch: list[Record | Reject] = []
        source = _source(name, path)
        with path.open("rb") as file:
            if now[0] < place["offset"] or _head(file, place.get("head", [0, 0])[0]) != place.get("head", [0, 0]):
                logger.warning(
                    "%s: another file has taken its name, or it was cut; it is read from its beginning", name
                )
                place.clear()
                place |= {"offset": 0, "line": 0}
            file.seek(place["offset"])
            while len(batch) < most and (found := read(source, file, place)) is not None:
                batch += found
            place["head"] = _head(file, min(place["offset"], _HEAD_BYTES))
        return batch

    def _next_line(self, file: BinaryIO, place: dict[str, Any]) -> bytes | Reject | None:
        """Return the next line that is whole, or that it is too long; None: there is none yet."""
        cap = self.config.max_record_bytes
        while True:
            line = file.readline(cap + 1)
            is_whole = line.endswith(b"\n")
            if not is_whole and len(line) <= cap:
                return None
            is_first = place["offset"] == 0
            place["offset"] += len(line)
            if place.pop("is_long", False):  # the rest of one that was told of
                if not is_whole:
                    place["is_long"] = True
                continue
            place["line"] += 1
            if is_whole:
                return line[:-1].removeprefix(codecs.BOM_UTF8 if is_first else b"")
            place["is_long"] = True
            return Reject(place["line"], LONG_RECORD, "")

    def _read_json(self, source: Source, file: BinaryIO, place: dict[str, Any]) -> list[Record | Reject] | None:
        """Return the tweets of the next line; None: there is none yet."""
        line = self._next_line(file, place)
        if line is None or isinstance(line, Reject):
            return None if line is None else [line]
        return list(read_json_line(source, self.config, place["line"], line))

    def _read_row(self, source: Source, file: BinaryIO, place: dict[str, Any]) -> list[Record | Reject] | None:
        """Return the tweet of the next row of a table, none of its header; None: there is none yet."""
        before = dict(place)
        row, raw = self._next_row(file, place, TABLE_ENDINGS[Path(source.path).suffix.lower()])
        if row is None:
            place.clear()
            place |= before
            return None
        if isinstance(row, Reject):
            return [row]
        if "header" not in place:
            place["header"] = row
            return []
        return [read_table_row(source, self.config, place["header"], row, before["line"] + 1, raw)] if row else []

    def _next_row(
        self, file: BinaryIO, place: dict[str, Any], delimiter: str
    ) -> tuple[list[str] | Reject | None, bytes]:
        """Return the next row that is whole, or what is wrong with its line; None: there is none yet; and its bytes."""
        csv.field_size_limit(max(csv.field_size_limit(), self.config.max_record_bytes))
        raw, reason = b"", UNCLOSED_QUOTE
        after_first: dict[str, Any] = {}
        for _ in range(_ROW_LINES):
            line = self._next_line(file, place)
            if line is None or (isinstance(line, Reject) and not raw):
                return line, raw
            if isinstance(line, Reject):
                break  # told of when it is a first line itself
            after_first = after_first or dict(place)
            raw += line + b"\n"
            text = io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")
            try:
                return next(csv.reader(text, delimiter=delimiter, strict=True), []), raw
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    reason = BROKEN_CSV if after_first == place else UNCLOSED_QUOTE
                    break
        # Its first line alone is lost.
        place.clear()
        place |= after_first
        file.seek(place["offset"])
        return Reject(place["line"], reason, ""), raw

    def _read_parquet(self, name: str, path: Path, now: tuple[int, int], most: int) -> list[Record | Reject]:
        """Return further rows of a file; one that took its place goes on where that ended."""
        place = self.places[name]
        if place.get("read") == list(now):
            return []
        known, rows = self._rows.get(name, (None, iter(())))
        if known != now:
            try:
                pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:  # as the footer is written last, it may not be there yet
                raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
            rows = itertools.islice(read_records(_source(name, path), self.config), place["offset"], None)
            self._rows[name] = (now, rows)
        batch = list(itertools.islice(rows, most))
        place["offset"] += len(batch)
        if len(batch) < most:
            place["read"] = list(now)
            del self._rows[name]
        return batch


def _head(file: BinaryIO, num_bytes: int) -> list[int]:
    """Return what a file is known by: a checksum of its first bytes, and of how many."""
    file.seek(0)
    return [num_bytes, zlib.crc32(file.read(num_bytes))]


# What was written


def _state_path(to: Path) -> Path:
    return to.with_name(f"{to.name}.state")


@contextlib.contextmanager
def _open_output(watched: Watched, follower: Follower | None = None) -> Iterator[BinaryIO]:
    """Give the output; of a folder that was followed before, as it was after the last batch."""
    if watched.to is None:
        yield sys.stdout.buffer
        return
    watched.to.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{watched.to}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"--to {watched.to}: another process writes it; name another file") from None
    try:
        with watched.to.open("ab+") as file:
            file.truncate(_good_bytes(watched, file) if follower is None else _resume(watched, follower, file))
            file.seek(0, os.SEEK_END)
            yield file
    finally:
        lock.release()


def _good_bytes(watched: Watched, file: BinaryIO) -> int:
    """Return the length of the output without a last line that is torn."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - watched.tweets.max_record_bytes)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


def _resume(watched: Watched, follower: Follower, file: BinaryIO) -> int:
    """Put the follower where the last batch ended, and return the length of the output then."""
    path, size = _state_path(watched.to or Path()), file.seek(0, os.SEEK_END)
    if not path.exists():
        if size:
            raise InputError(f"--to {watched.to}: is there, and not from following a folder; name another file")
        return 0
    state = read_json(path)
    try:
        before, num_bytes, places = dict(state["settings"]), int(state["bytes"]), dict(state["files"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: damaged; remove it and {watched.to} to start anew") from None
    if changed := [key for key, value in watched.settings.items() if before.get(key) != value]:
        raise InputError(f"--to {watched.to}: made with another {', '.join(changed)}; name another file")
    if size < num_bytes:
        raise InputError(
            f"--to {watched.to}: has {size} bytes, and had {num_bytes}; remove it and {path} to start anew"
        )
    follower.places = places
    return num_bytes


def _write_state(watched: Watched, follower: Follower, file: BinaryIO) -> None:
    assert watched.to is not None
    os.fsync(file.fileno())
    write_json(_state_path(watched.to), {"settings": watched.settings, "bytes": file.tell(), "files": follower.places})
