"""How tweets lie in files: finds the files of a corpus, and reads records out of them one at a time.

Every line, row or object of a file comes out either as a `Record` or as a `Reject` with its reason. Files are streamed,
and nothing a file holds makes memory grow: neither an endless line nor a small file that decompresses to a large one.

A quoted field of a CSV file may go over several lines. If a quote is open at the end of a record's first line, and the
record is not well-formed, with the columns of the header, within `_RECORD_LINES` lines, ``corpus.max_record_bytes`` and
the file, then that first line alone is a reject, an unclosed quote, and reading goes on with the next line. So no quote
costs other rows, unless a later one happens to close it where the columns are as many as they should be.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import glob
import hashlib
import io
import json
import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scalemine.config import CorpusConfig, InputError

log = logging.getLogger(__name__)
Json = Any

BROKEN_JSON: Final = "broken JSON"
JSON_ARRAY: Final = "JSON array, expected one object a line"
BROKEN_CSV: Final = "broken CSV row"
UNCLOSED_QUOTE: Final = "unclosed quote"
NO_TEXT: Final = "no text"
NOT_UTF8: Final = "not UTF-8"
LONG_TEXT: Final = "text over the cap"
LONG_RECORD: Final = "record over the cap"
RATIO: Final = "decompression over the ratio cap"
BROKEN_STREAM: Final = "broken compressed stream"
BROKEN_PARQUET: Final = "broken Parquet file"
DUPLICATE_ID: Final = "duplicate id"

# The usual names, the more telling first: Twitter's numeric "id" loses digits in tools that read numbers as floats.
TEXT_NAMES: Final = ("full_text", "text", "tweet_text", "tweet")
ID_NAMES: Final = ("id_str", "id", "tweet_id")
FORMATS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
CODECS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}

EXCERPT_CHARS: Final = 120
# Below this a high ratio harms nobody, and small files of repeated tweets do reach one.
MIN_RATIO_BYTES: Final = 16 * 2**20
_BLOCK_BYTES: Final = 2**20
# Small, since what one read had decoded before a broken place is lost with it.
_DECODED_BLOCK_BYTES: Final = 1024
# More lines than any tweet has.
_RECORD_LINES: Final = 1000
_PARQUET_ROWS: Final = 4096
_BATCH_BYTES: Final = 32 * 2**20
# Pages are read piece by piece, where Arrow would by itself load whole row groups.
_PARQUET_OPTIONS: Final = {"buffer_size": _BLOCK_BYTES, "pre_buffer": False, "page_checksum_verification": True}
_SAMPLE_BYTES: Final = 64 * 2**10


class Record(NamedTuple):
    """One tweet; ``line`` is the line or row it begins at, from 1, and ``kept`` follows ``corpus.keep``."""

    line: int
    id: str
    text: str
    kept: tuple[str | None, ...]


class Reject(NamedTuple):
    """What could not become a record, and why."""

    line: int
    reason: str
    excerpt: str


class _GivenUp(Exception):  # noqa: N818  not an error: the rest of the file is passed over
    """The rest of a file cannot be read, for this reason."""


class _LongRecord(Exception):  # noqa: N818
    """A CSV record has more bytes or lines than are believed of one."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of tweets; ``name`` is its path below the folder that all files of the corpus share."""

    name: str
    uri: str
    filesystem: pafs.FileSystem
    path: str
    num_bytes: int

    def fingerprint(self) -> str:
        """Return the size and a hash of the first and last 64 KiB: cheap, and changes when a file is replaced.

        Raises:
            InputError: The file cannot be read.
        """
        try:
            with self.filesystem.open_input_file(self.path) as file:
                sample = file.read(_SAMPLE_BYTES)
                file.seek(max(0, self.num_bytes - _SAMPLE_BYTES))
                sample += file.read(_SAMPLE_BYTES)
        except (OSError, pa.ArrowException) as error:
            hint = "check its permissions"
            raise InputError(f"corpus.uri {self.uri}: cannot be read: {_one_line(error)}; {hint}") from None
        return f"{self.num_bytes} bytes, sha256 of both ends {hashlib.sha256(sample).hexdigest()[:16]}"


def find_sources(uris: Sequence[str]) -> list[Source]:
    """Return the files that files, globs, folders and bucket URIs stand for, sorted within each, no file twice.

    Raises:
        InputError: A URI matches no file, has an unknown ending, or its bucket cannot be reached.
    """
    found: dict[str, Source] = {}
    for uri in uris:
        for source in _expand(uri):
            found.setdefault(source.uri, source)
    folders = [uri.split("/")[:-1] for uri in found]
    depth = len(folders[0])
    while any(folder[:depth] != folders[0][:depth] for folder in folders):
        depth -= 1
    return [replace(source, name="/".join(uri.split("/")[depth:])) for uri, source in found.items()]


def _expand(uri: str) -> list[Source]:
    """Return the files one URI stands for; their names are not set yet."""
    scheme = re.match(r"[A-Za-z][\w+.-]+://", uri)
    try:
        filesystem, path = _locate(uri) if scheme else (pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        local = isinstance(filesystem, pafs.LocalFileSystem)
        matches = [path]
        if local and glob.has_magic(path) and not Path(path).exists():
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  pathlib's glob also matches hidden files
        infos = [info for match in filesystem.get_file_info(matches) for info in _list_files(filesystem, match)]
    except (OSError, pa.ArrowException) as error:
        hint = "check the bucket's name, your credentials and the network" if scheme else "check its permissions"
        raise InputError(f"corpus.uri {uri}: cannot be reached: {_one_line(error)}; {hint}") from None
    known = [info for info in infos if _ending(info.path)]
    if len(known) < len(infos):
        log.warning("corpus.uri %s: passing over %d files of unknown ending", uri, len(infos) - len(known))
    if not known:
        endings = f"expected {', '.join(FORMATS)}, and all but .parquet also with {', '.join(CODECS)}"
        if infos:
            raise InputError(f"corpus.uri {uri}: unknown file ending; {endings}")
        where = f" (paths are taken from {Path.cwd()})" if local else ""
        raise InputError(
            f"corpus.uri {uri}: matches no file{where}; give a file, glob, folder or bucket URI; {endings}"
        )
    prefix = "" if local or scheme is None else scheme[0]
    return [Source("", prefix + info.path, filesystem, info.path, info.size) for info in known]


def _locate(uri: str) -> tuple[pafs.FileSystem, str]:
    # Google's client retries for a quarter of an hour before it says that it has no credentials.
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        uri += ("&" if "?" in uri else "?") + "retry_limit_seconds=30"
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path


def _list_files(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> list[pafs.FileInfo]:
    """Return a file itself, or the files of a folder by path, without hidden and marker files such as ``_SUCCESS``."""
    if info.type == pafs.FileType.File:
        return [info]
    if info.type != pafs.FileType.Directory:
        return []
    inside = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    start = len(info.path.rstrip("/")) + 1
    files = [
        file
        for file in inside
        if file.type == pafs.FileType.File
        and not any(part.startswith((".", "_")) for part in file.path[start:].split("/"))
    ]
    return sorted(files, key=lambda file: str(file.path))


def _ending(path: str) -> tuple[str, str] | None:
    """Return the format's ending and the compression's ("" for none), or None where they are not known."""
    name = PurePosixPath(path.lower())
    codec = name.suffix if name.suffix in CODECS else ""
    form = PurePosixPath(name.stem).suffix if codec else name.suffix
    return (form, codec) if form in FORMATS and not (form == ".parquet" and codec) else None


def read_records(source: Source, config: CorpusConfig) -> Iterator[Record | Reject]:
    """Yield what a file holds, in its order.

    Raises:
        InputError: A Parquet or CSV file has no such text or id column.
        OSError: The file could be opened but not read to its end.
    """
    ending = _ending(source.path)
    assert ending is not None, source.path
    line = 0
    try:
        for found in _read_format(source, config, ending[0]):
            line = found.line
            yield found
    except _GivenUp as reason:
        yield Reject(line + 1, str(reason), "")


def _read_format(source: Source, config: CorpusConfig, form: str) -> Iterator[Record | Reject]:
    if form == ".parquet":
        return _read_parquet(source, config)
    if form in {".csv", ".tsv"}:
        return _read_csv(source, config, "\t" if form == ".tsv" else ",")
    return _read_text(source, config) if form == ".txt" else _read_json(source, config)


# Bytes and lines


class _Raw(io.RawIOBase):
    """A file's bytes; remembers that reading them failed, which Arrow's errors do not tell from broken content."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(None if size < 0 else size))
        except OSError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def _open(source: Source, reason: str) -> Iterator[_Raw]:
    """Open a file so that broken content gives it up for a reason, while a failing disk or network stays an error."""
    with source.filesystem.open_input_file(source.path) as file:
        raw = _Raw(file)
        try:
            yield raw
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if raw.error is not None:
                raise raw.error from None
            log.warning("%s: %s: %s", source.uri, reason, _one_line(error))
            raise _GivenUp(reason) from None


def _blocks(source: Source, config: CorpusConfig) -> Iterator[bytes]:
    """Yield a file's content piece by piece, decompressed."""
    codec = CODECS.get(PurePosixPath(source.path.lower()).suffix)
    with _open(source, BROKEN_STREAM) as raw:
        if codec is None:
            yield from iter(lambda: raw.read(_BLOCK_BYTES), b"")
            return
        # Arrow's decompressors and not Python's zstandard, which takes a truncated file for a whole one.
        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
        most_bytes = max(MIN_RATIO_BYTES, config.max_ratio * source.num_bytes)
        num_bytes = 0
        for block in iter(lambda: stream.read(_DECODED_BLOCK_BYTES), b""):
            num_bytes += len(block)
            if num_bytes > most_bytes:
                raise _GivenUp(RATIO)
            yield block


class _Line(NamedTuple):
    r"""A line's number, its content without "\n", and whether that is all of it."""

    number: int
    content: bytes
    whole: bool


def _read_lines(source: Source, config: CorpusConfig) -> Iterator[_Line]:
    """Yield the lines of a file; of one over the cap only the beginning comes."""
    cap = config.max_record_bytes
    number, begun, num_begun = 1, [b""], 0
    for index, block in enumerate(_blocks(source, config)):
        *lines, last = (block.removeprefix(codecs.BOM_UTF8) if index == 0 else block).split(b"\n")
        if lines:
            lines[0] = b"".join([*begun, lines[0]])
            begun, num_begun = [], 0
        for line in lines:
            yield _Line(number, line[:cap], len(line) <= cap)
            number += 1
        # Once it is over the cap, a line is known to be too long, and the rest of it is dropped as it comes.
        if num_begun <= cap:
            begun.append(last)
            num_begun += len(last)
    if num_begun:
        yield _Line(number, b"".join(begun)[:cap], num_begun <= cap)


# From fields to records


class _Fields(NamedTuple):
    """The values of a record that are used, as their format gives them."""

    text: object
    ids: Sequence[object]
    kept: Sequence[object]


def _make_record(
    source: Source, config: CorpusConfig, line: int, fields: _Fields, *, raw: bytes, place: str = ""
) -> Record | Reject:
    """Return a record of the fields found, or the reject they come to.

    Args:
        source: Names the record where it has no id.
        config: Says what is over the cap.
        line: Where the record begins.
        fields: What was found.
        raw: The record, or its beginning, for the excerpt.
        place: The record's place in its line, where a line holds several.
    """
    text, ids, kept = fields
    if not isinstance(text, str) or not text or text.isspace():
        return Reject(line, NO_TEXT, _excerpt(raw))
    if len(text) > config.max_text_chars:
        return Reject(line, LONG_TEXT, _excerpt(raw))
    parts = [_as_text(value) for value in ids]
    named = bool(parts) and all(part and not part.isspace() for part in parts)
    id = ":".join(part or "" for part in parts) if named else f"{source.name}:{line}{place}"
    record = Record(line, id, text, tuple(_as_text(value) for value in kept))
    return record if _is_unicode((text, id, *record.kept)) else Reject(line, NOT_UTF8, _excerpt(raw))


def _as_text(value: object) -> str | None:
    """Return a value as text: numbers as Python writes them, whole ones without loss; lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return _decode(value)
    if not isinstance(value, (bool, dict, list)):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return None  # nested a thousand levels deep


def _decode(content: bytes) -> str:
    """Decode UTF-8; other bytes become lone surrogates, which `_is_unicode` then finds in the fields that are used."""
    return content.decode("utf-8", "surrogateescape")


def _is_unicode(values: Iterable[str | None]) -> bool:
    try:
        for value in values:
            if value is not None and not value.isascii():
                value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(raw: bytes) -> str:
    # A character has at most four bytes.
    return raw[: 4 * EXCERPT_CHARS].decode("utf-8", "replace")[:EXCERPT_CHARS]


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


# Plain text and JSON lines


def _read_text(source: Source, config: CorpusConfig) -> Iterator[Record | Reject]:
    """Yield one tweet a line; the line's end, which may be Windows', is no part of it."""
    for number, line, whole in _read_lines(source, config):
        if whole:
            fields = _Fields(_decode(line.removesuffix(b"\r")), (), [None] * len(config.keep))
            yield _make_record(source, config, number, fields, raw=line)
        else:
            yield Reject(number, LONG_RECORD, _excerpt(line))


def _read_json(source: Source, config: CorpusConfig) -> Iterator[Record | Reject]:
    """Yield the tweets of objects, one object a line; blank lines are no records."""
    for number, line, whole in _read_lines(source, config):
        if not whole:
            yield Reject(number, LONG_RECORD, _excerpt(line))
            continue
        yield from read_json_line(source, config, number, line)


def read_json_line(source: Source, config: CorpusConfig, number: int, line: bytes) -> Iterator[Record | Reject]:
    """Yield the tweets of one line of JSON: none, if it is blank, and often one."""
    if not line or line.isspace():
        return
    value = _parse_json(line)
    if not isinstance(value, dict):
        yield Reject(number, _json_fault(line, value, number), _excerpt(line))
        return
    tweets = _unwrap(value, config)
    for position, tweet in enumerate(tweets, start=1):
        fields = _json_fields(tweet, value, config) if isinstance(tweet, dict) else _Fields(None, (), ())
        if any(isinstance(part, float) for part in fields.ids):
            # orjson reads a whole number beyond 64 bits as a float.
            exact = _parse_leniently(line)
            if isinstance(exact, dict):
                fields = _json_fields(_unwrap(exact, config)[position - 1], exact, config)
        place = f".{position}" if len(tweets) > 1 else ""
        yield _make_record(source, config, number, fields, raw=line, place=place)


def _parse_json(line: bytes) -> Json:
    """Return the value of a line, or None where it is not JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_leniently(line)


def _parse_leniently(line: bytes) -> Json:
    """Return what Python's own parser makes of a line, or None.

    It takes NaN, and bytes and escapes that are not Unicode: a fault in a field that nobody uses costs no tweet.
    """
    try:
        return json.loads(_decode(line))
    except (ValueError, RecursionError):
        return None


def _json_fault(line: bytes, value: Json, number: int) -> str:
    """Say why a line is not one JSON object."""
    if isinstance(value, list) or (number == 1 and line.lstrip().startswith(b"[")):
        return JSON_ARRAY
    return BROKEN_JSON if _is_unicode([_decode(line)]) else NOT_UTF8


def _unwrap(value: dict[str, Json], config: CorpusConfig) -> list[Json]:
    """Return the tweets of an object: itself, or those in ``data`` of a Twitter API v2 response."""
    inner = value.get("data")
    if not isinstance(inner, (dict, list)) or _json_fields(value, value, config).text is not None:
        return [value]
    return inner if isinstance(inner, list) else [inner]


def _json_fields(tweet: dict[str, Json], outer: dict[str, Json], config: CorpusConfig) -> _Fields:
    """Return the fields of a tweet; columns named in the configuration may also lie around it."""
    text = _tweet_text(tweet) if config.text is None else _look_up(tweet, outer, config.text)
    if config.id is None:
        ids: list[object] = [next((tweet[name] for name in ID_NAMES if tweet.get(name) not in (None, "")), None)]
    else:
        ids = [_look_up(tweet, outer, path) for path in config.id]
    return _Fields(text, ids, [_look_up(tweet, outer, path) for path in config.keep])


def _look_up(tweet: dict[str, Json], outer: dict[str, Json], path: str) -> Json:
    """Return what lies under a dotted path in the tweet, else in the object around it; None where there is nothing."""
    for place in (tweet, outer):
        value: Json = place
        # A flat table written as JSON has whole paths as its keys.
        for key in [path] if path in place else path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _tweet_text(tweet: dict[str, Json]) -> Json:
    """Return the full text of a Twitter API object, or the text of any flat one.

    Source: developer.x.com, "Tweet updates" (v1.1: extended_tweet, full_text, retweeted_status) and "Tweet object"
    (v2: note_tweet).
    """
    text = _own_text(tweet)
    retweeted = tweet.get("retweeted_status")
    if isinstance(retweeted, dict) and isinstance(text, str) and (tweet.get("truncated") or text.endswith("…")):
        # A retweet is cut to the old length even where the tweet itself is there in full.
        user, whole = _look_up(retweeted, {}, "user.screen_name"), _own_text(retweeted)
        if isinstance(user, str) and isinstance(whole, str):
            return f"RT @{user}: {whole}"
    return text


def _own_text(tweet: dict[str, Json]) -> Json:
    for place, name in (("extended_tweet", "full_text"), ("note_tweet", "text")):
        longer = tweet.get(place)
        if isinstance(longer, dict) and longer.get(name):
            return longer[name]
    return next((tweet[name] for name in TEXT_NAMES if tweet.get(name) is not None), None)


# Tables


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are used; a kept column may be None: it is not there."""

    text: str
    ids: tuple[str, ...]
    kept: tuple[str | None, ...]

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.text, *self.ids, *self.kept) if name is not None))

    def fields(self, row: Mapping[str, object]) -> _Fields:
        return _Fields(
            row[self.text],
            [row[name] for name in self.ids],
            [None if name is None else row[name] for name in self.kept],
        )


def _choose_columns(source: Source, config: CorpusConfig, names: list[str]) -> _Columns:
    """Choose the columns of a table that has these names.

    Raises:
        InputError: The text or an id column is not among them.
    """
    text = config.text or next((name for name in TEXT_NAMES if name in names), None)
    if text is None:
        if len(names) == 1 and (mark := next((one for one in ";|\t" if one in names[0]), None)):
            raise InputError(
                f"{source.uri}: one column, {names[0][:80]!r}, which seems to be several parted by {mark!r}; expected "
                f"commas (.csv) or tabs (.tsv)"
            )
        raise InputError(f"{source.uri}: no text column found; set corpus.text to one of: {_name_list(names)}")
    ids = tuple(name for name in ID_NAMES if name in names)[:1] if config.id is None else config.id
    for key, name in [("corpus.text", text), *(("corpus.id", name) for name in ids)]:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"{source.uri}: no column {name} ({key}); {hint}it has: {_name_list(names)}")
    twice = [name for name in (text, *ids, *config.keep) if names.count(name) > 1]
    if twice:
        raise InputError(f"{source.uri}: column {twice[0]} is there more than once; rename one of them")
    absent = [name for name in config.keep if name not in names]
    if absent:
        log.warning("%s: no column %s (corpus.keep); null is kept", source.uri, ", ".join(absent))
    return _Columns(text, ids, tuple(name if name in names else None for name in config.keep))


def read_table_row(
    source: Source, config: CorpusConfig, header: list[str], row: list[str], line: int, raw: bytes
) -> Record | Reject:
    """Return the tweet of one row of a table with these columns.

    Raises:
        InputError: The text or an id column is not among them.
    """
    if len(row) != len(header):
        return Reject(line, BROKEN_CSV, _excerpt(raw))
    fields = _choose_columns(source, config, header).fields(dict(zip(header, row, strict=True)))
    return _make_record(source, config, line, fields, raw=raw)


def _name_list(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:40])
    return shown + (f" and {len(names) - 40} more" if len(names) > 40 else "")


class _CsvLines:
    """The lines of a CSV file for ``csv.reader``, record by record; a record that fails gives back all but its first.

    ``csv.reader`` asks for a second line of a record only where a quote is open at the end of the first.
    """

    def __init__(self, lines: Iterator[_Line], cap: int) -> None:
        self._lines = lines
        self._cap = cap
        self._given_back: deque[_Line] = deque()
        self._given_up: _GivenUp | None = None
        # A quote that was open over all lines up to this one came to nothing; one left open before it would, too.
        self._in_vain = 0
        self.begin()

    def begin(self) -> None:
        """Start a record."""
        self.taken: list[_Line] = []
        self._num_bytes = 0
        self._quote_open = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.taken:
            self._quote_open = True
            if len(self.taken) == _RECORD_LINES or self.taken[0].number < self._in_vain:
                raise _LongRecord
        line = self._next_line()
        self.taken.append(line)
        self._num_bytes += len(line.content)
        if not line.whole or self._num_bytes > self._cap:
            raise _LongRecord
        return _decode(line.content) + "\n"

    def _next_line(self) -> _Line:
        if self._given_back:
            return self._given_back.popleft()
        if self._given_up is None:
            try:
                return next(self._lines)
            except _GivenUp as reason:
                self._given_up = reason
        if self.taken:  # they come first
            raise StopIteration
        raise self._given_up

    def fault(self, reason: str, *, ended: bool = False) -> str:
        """Return why the record is none, after giving back the lines that an open quote took.

        Args:
            reason: Why, where no quote is open.
            ended: The record came to an end, but is not what it should be.
        """
        if not self._quote_open:
            return reason
        if not ended:
            self._in_vain = max(self._in_vain, self.taken[-1].number)
        self._given_back.extendleft(reversed(self.taken[1:]))
        return UNCLOSED_QUOTE


def _read_rows(source: Source, config: CorpusConfig, delimiter: str) -> Iterator[tuple[_Line, list[str] | str]]:
    """Yield a row's first line, and the row or why there is none; blank lines are no rows."""
    # The csv module has one limit for the whole process: it is raised, never lowered; `_CsvLines` holds the real cap.
    csv.field_size_limit(max(csv.field_size_limit(), config.max_record_bytes))
    lines = _CsvLines(_read_lines(source, config), config.max_record_bytes)
    # Strict, since otherwise an open quote at the end of the file passes as a row.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    num_columns = 0
    while True:
        lines.begin()
        row: list[str] | str
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            row = lines.fault(BROKEN_CSV)
        except _LongRecord:
            row = lines.fault(LONG_RECORD)
        else:
            num_columns = num_columns or len(row)
            if row and len(row) != num_columns:
                row = lines.fault(BROKEN_CSV, ended=True)
        if row:
            yield lines.taken[0], row


def _read_csv(source: Source, config: CorpusConfig, delimiter: str) -> Iterator[Record | Reject]:
    """Yield the rows of a table whose first row names the columns."""
    rows = _read_rows(source, config, delimiter)
    line, header = next(rows, (None, []))
    if line is None:
        return
    if isinstance(header, str):
        raise InputError(f"{source.uri}: {header} where the column names were expected: {_excerpt(line.content)}")
    columns = _choose_columns(source, config, header)
    for line, row in rows:
        if isinstance(row, str):
            yield Reject(line.number, row, _excerpt(line.content))
        else:
            fields = columns.fields(dict(zip(header, row, strict=True)))
            yield _make_record(source, config, line.number, fields, raw=line.content)


def _read_parquet(source: Source, config: CorpusConfig) -> Iterator[Record | Reject]:
    """Yield the rows of a Parquet file, of which a few thousand at most are in memory."""
    with _open(source, BROKEN_PARQUET) as raw:
        file = pq.ParquetFile(raw, **_PARQUET_OPTIONS)
        columns = _choose_columns(source, config, file.schema_arrow.names)
        names = columns.names()
        strings = [name for name in names if _is_string(file.schema_arrow.field(name).type)]
        kind = file.schema_arrow.field(columns.text).type
        if columns.text not in strings or _is_binary(kind):
            raise InputError(f"{source.uri}: column {columns.text} is {kind}; corpus.text must name one of strings")
        most_bytes = max(MIN_RATIO_BYTES, config.max_ratio * source.num_bytes)
        num_bytes = num_rows = 0
        if _chunk_bytes(file.metadata, names) > most_bytes:
            raise _GivenUp(RATIO)
        for batch in _read_batches(raw, file, names, strings):
            num_bytes += batch.nbytes
            if num_bytes > most_bytes:
                raise _GivenUp(RATIO)
            values = {name: _column_values(batch.column(name)) for name in names}
            yield from _parquet_records(source, config, columns, values, num_rows)
            num_rows += batch.num_rows


def _chunk_bytes(metadata: pq.FileMetaData, names: Sequence[str]) -> int:
    """Return what the footer says the pages of some columns decompress to; Arrow holds a page as a whole."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    used = (chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(tuple(f"{name}." for name in names)))
    return sum(chunk.total_uncompressed_size for chunk in used)


def _read_batches(
    raw: _Raw, file: pq.ParquetFile, names: Sequence[str], strings: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield rows in batches that stay small also where one long string in a dictionary stands for every row.

    Neither the footer nor the file's size tells what such a dictionary decodes to. So the dictionaries of each row
    group are read first, by way of its first row, and their longest strings bound the rows of a batch. (To leave the
    strings in dictionaries throughout would be simpler, but Arrow then gathers those of a row group in memory.)
    """
    probe = pq.ParquetFile(raw, metadata=file.metadata, read_dictionary=list(strings), **_PARQUET_OPTIONS)
    for group in range(file.num_row_groups):
        first = next(
            probe.iter_batches(batch_size=1, row_groups=[group], columns=list(strings), use_threads=False), None
        )
        words = [] if first is None else [column.dictionary.cast(pa.large_binary()) for column in first.columns]
        longest = sum(pc.max(pc.binary_length(column)).as_py() or 0 for column in words)
        num_rows = max(1, min(_PARQUET_ROWS, _BATCH_BYTES // max(1, longest)))
        yield from file.iter_batches(batch_size=num_rows, row_groups=[group], columns=list(names), use_threads=False)


def _parquet_records(
    source: Source,
    config: CorpusConfig,
    columns: _Columns,
    values: Mapping[str, Sequence[object]],
    num_before: int,
) -> Iterator[Record | Reject]:
    for line, row in enumerate(zip(*values.values(), strict=True), start=num_before + 1):
        fields = columns.fields(dict(zip(values, row, strict=True)))
        raw = fields.text if isinstance(fields.text, bytes) else b""
        if sum(len(value) for value in row if isinstance(value, bytes)) > config.max_record_bytes:
            yield Reject(line, LONG_RECORD, _excerpt(raw))
        else:
            yield _make_record(source, config, line, fields._replace(text=_as_text(fields.text)), raw=raw)


def _is_string(kind: pa.DataType) -> bool:
    """Say whether values are strings, or bytes that may be strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_text or _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _column_values(column: pa.Array) -> list[object]:
    """Return a column's values, strings as bytes: Arrow does not check that they are Unicode."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[object] = column.to_pylist()
    return values
