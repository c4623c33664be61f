"""Labelled tweets: reading them, as words with tags, from Parquet or CoNLL files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.config import InputError
from scalemine.store import file_sha256
from scalemine.training.labels import OUTSIDE, CharSpan, Span, align, is_bio, tags_of_spans, type_of, word_offsets

# Endings of files with a word and its tag per line, tweets parted by empty lines.
CONLL_ENDINGS = (".conll", ".iob", ".bio", ".txt", ".tsv")


@dataclass(frozen=True)
class Document:
    """One labelled tweet.

    Args:
        id: Its identifier.
        text: Its text; words joined by spaces where the file has only words.
        words: Its words.
        offsets: Where they are in the text.
        tags: The BIO tag of each word.
        class_name: Its class, where the file has one.
        negative_kind: Where a negative comes from, such as ``random`` or ``mined_2s``; None for what is no negative.
        columns: Further columns that were asked for.
    """

    id: str
    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    class_name: str | None
    negative_kind: str | None
    columns: Mapping[str, str | None]

    @property
    def types(self) -> set[str]:
        """The span types in it."""
        return {name for tag in self.tags if (name := type_of(tag)) is not None}


@dataclass(frozen=True)
class Dataset:
    """The tweets of one file.

    Args:
        uri: The file.
        sha256: Hash of the file.
        documents: Its tweets, in order; those without a word are left out.
        num_inexact: Spans that do not end where words do, and were widened to whole words or held none.
        num_empty: Tweets without a word.
    """

    uri: str
    sha256: str
    documents: tuple[Document, ...]
    num_inexact: int
    num_empty: int

    @property
    def types(self) -> set[str]:
        """The span types in it."""
        return set().union(*(document.types for document in self.documents))


def read_dataset(uri: str, *, keep: Sequence[str] = (), key: str = "file") -> Dataset:
    """Read labelled tweets.

    Parquet: ``tokens`` and ``tags``; or ``text`` and ``spans`` (start, end, type: characters); or ``tokens`` and
    ``spans`` (positions of words). CoNLL: a word first and its tag last on each line, an empty line between tweets.

    Args:
        uri: The file.
        keep: Columns to carry along, as text.
        key: What named the file, for messages.

    Raises:
        InputError: The file is not there or cannot be read, a tag is not BIO, or a span is out of range or overlaps.
    """
    path = Path(uri)
    if not path.is_file():
        raise InputError(f"{key}: no such file: {uri} (expected Parquet or CoNLL)")
    try:
        if path.suffix.lower() in CONLL_ENDINGS:
            rows: Iterable[dict[str, Any]] = _read_conll(path)
            columns = ["tokens", "tags"]
        else:
            table = pq.read_table(path)
            rows, columns = table.to_pylist(), table.column_names
    except UnicodeError:
        raise InputError(f"{key}: {uri} is not UTF-8; convert it first") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{key}: {uri} cannot be read: {str(error).splitlines()[0]}") from None
    _check_columns(columns, keep, f"{key}: {uri}")
    documents: list[Document] = []
    num_inexact = num_empty = 0
    for number, row in enumerate(rows):
        try:
            document, inexact = _document(row, f"{path.stem}:{number}", keep)
        except ValueError as error:
            raise InputError(f"{key}: {uri}, row {number} (id {row.get('id', number)}): {error}") from None
        num_inexact += inexact
        if document.words:
            documents.append(document)
        else:
            num_empty += 1
    if not documents:
        raise InputError(f"{key}: {uri} holds no tweets with words")
    return Dataset(uri, file_sha256(path), tuple(documents), num_inexact, num_empty)


def _check_columns(columns: Sequence[str], keep: Sequence[str], where: str) -> None:
    if ("text" not in columns and "tokens" not in columns) or ("spans" not in columns and "tags" not in columns):
        raise InputError(
            f"{where}: expected columns tokens and tags, or text and spans; the file has {', '.join(columns)}"
        )
    if "tags" in columns and "tokens" not in columns:
        raise InputError(f"{where}: column tags wants a column tokens beside it; the file has {', '.join(columns)}")
    if missing := set(keep) - set(columns):
        raise InputError(f"{where}: no column {', '.join(sorted(missing))}; the file has {', '.join(columns)}")


def _document(row: Mapping[str, Any], default_id: str, keep: Sequence[str]) -> tuple[Document, int]:
    """Return the tweet of a row, and how many of its spans are inexact."""
    inexact = 0
    if row.get("tokens") is not None:
        words = tuple(str(word) for word in row["tokens"])
        text, offsets = _join(words)
        if row.get("tags") is not None:
            tags = tuple(row["tags"])
        else:
            tags = tuple(tags_of_spans([Span(*_bounds(span)) for span in row.get("spans") or []], len(words)))
    else:
        text = row.get("text") or ""
        offsets = tuple(word_offsets(text))
        words = tuple(text[start:end] for start, end in offsets)
        spans, changed = align([CharSpan(*_bounds(span)) for span in row.get("spans") or []], offsets, len(text))
        inexact = len(changed)
        tags = tuple(tags_of_spans(spans, len(words)))
    if len(tags) != len(words):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags")
    for position, tag in enumerate(tags):
        if not isinstance(tag, str) or not is_bio(tag):
            raise ValueError(f"tag {tag!r} of word {position} is not BIO; expected O, B-type or I-type")
    if row.get("is_negative") and any(tag != OUTSIDE for tag in tags):
        raise ValueError("it is marked as a negative, and has spans")
    document = Document(
        id=str(row["id"]) if row.get("id") is not None else default_id,
        text=text,
        words=words,
        offsets=offsets,
        tags=tags,
        class_name=row.get("class_name"),
        negative_kind=(row.get("label_source") or "negative") if row.get("is_negative") else None,
        columns={name: None if row[name] is None else str(row[name]) for name in keep},
    )
    return document, inexact


def _bounds(span: Mapping[str, Any]) -> tuple[int, int, str]:
    start, end, kind = (span.get(name) for name in ("start", "end", "type"))
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(kind, str) or not kind:
        raise ValueError(f"span {dict(span)} has no start, end and type")
    return start, end, kind


def _join(words: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return words joined by spaces, and where each is."""
    offsets, position = [], 0
    for word in words:
        offsets.append((position, position + len(word)))
        position += len(word) + 1
    return " ".join(words), tuple(offsets)


def _read_conll(path: Path) -> Iterator[dict[str, Any]]:
    tokens: list[str] = []
    tags: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split("\t") if "\t" in line else line.split()
            if not "".join(fields).strip() or fields[0] == "-DOCSTART-":
                if tokens:
                    yield {"tokens": tokens, "tags": tags}
                tokens, tags = [], []
            elif len(fields) < 2:
                raise InputError(f"{path}, line {number}: expected a word and a tag, got {line.strip()!r}")
            else:
                tokens.append(fields[0])
                tags.append(fields[-1].strip())
    if tokens:
        yield {"tokens": tokens, "tags": tags}


def check_types(train: Dataset, others: Iterable[Dataset]) -> None:
    """Raise InputError where a file has spans of a type that the training file has none of."""
    for other in others:
        if unknown := sorted(other.types - train.types):
            raise InputError(
                f"{other.uri}: spans of type {', '.join(unknown)}, of which {train.uri} has none "
                f"(it has {', '.join(sorted(train.types)) or 'no spans at all'}); add such to the training file, "
                f"or set train.unseen_types: count to score them as missed"
            )
