"""Labelled tweets: reading them, as words with tags, from Parquet or CoNLL files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine import bucket
from scalemine.config import InputError
from scalemine.store import file_sha256
from scalemine.training.tagging.labels import CharSpan, Span, align, is_bio, tags_of_spans, type_of, word_offsets
from scalemine.training.tagging.metrics import ALL_NEGATIVES, NO_GOLD

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
    def num_rows(self) -> int:
        """Number of tweets."""
        return len(self.documents)

    @property
    def types(self) -> set[str]:
        """The span types in it."""
        return set().union(*(document.types for document in self.documents))


def read_dataset(
    uri: str,
    *,
    needs: Sequence[str] = (),
    keep: Sequence[str] = (),
    key: str = "file",
    are_predictions: bool = False,
) -> Dataset:
    """Read labelled tweets.

    Parquet: ``tokens`` and ``tags``; or ``text`` and ``spans`` (start, end, type: characters); or ``tokens`` and
    ``spans`` (positions of words). CoNLL: a word first and its tag last on each line, an empty line between tweets.

    Args:
        uri: The file.
        needs: Columns that must be there, and are carried along as text.
        keep: Columns that are carried along where they are there.
        key: What named the file, for messages.
        are_predictions: The labels were predicted, so that a negative may have spans: false alarms.

    Raises:
        InputError: The file is not there or cannot be read, a value is of another kind than expected, a tag is not
            BIO, a span is out of range or overlaps, or a negative has spans.
    """
    path = bucket.file_of(uri)
    if not path.is_file():
        raise InputError(f"{key}: no such file: {uri} (expected Parquet or CoNLL)")
    try:
        if path.suffix.lower() in CONLL_ENDINGS:
            rows, columns = list(_read_conll(path, f"{key}: {uri}")), ["tokens", "tags"]
        else:
            table = pq.read_table(path)
            rows, columns = table.to_pylist(), table.column_names
    except UnicodeError:
        raise InputError(f"{key}: {uri} is not UTF-8; convert it first") from None
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{key}: {uri} cannot be read: {first_line}") from None
    _check_columns(columns, needs, f"{key}: {uri}")
    carried = [*needs, *(name for name in keep if name in columns and name not in needs)]
    documents: list[Document] = []
    num_inexact = num_empty = 0
    for number, row in enumerate(rows):
        try:
            document, inexact = _document(row, f"{path.stem}:{number}", carried)
            if document.negative_kind is not None and document.types and not are_predictions:
                raise ValueError("it is marked as a negative, and has spans")
            if document.negative_kind in (ALL_NEGATIVES, NO_GOLD):
                raise ValueError(f"label_source {document.negative_kind!r} is the name of a total; take another")
        except ValueError as error:
            raise InputError(f"{key}: {uri}, row {number} (id {row.get('id', number)!r}): {error}") from None
        num_inexact += inexact
        if document.words:
            documents.append(document)
        else:
            num_empty += 1
    if not documents:
        raise InputError(f"{key}: {uri} holds no tweets with words")
    return Dataset(uri, file_sha256(path), tuple(documents), num_inexact, num_empty)


def _check_columns(columns: Sequence[str], needs: Sequence[str], where: str) -> None:
    if ("text" not in columns and "tokens" not in columns) or ("spans" not in columns and "tags" not in columns):
        raise InputError(
            f"{where}: expected columns tokens and tags, or text and spans; the file has {', '.join(columns)}"
        )
    if "tags" in columns and "tokens" not in columns:
        raise InputError(f"{where}: column tags wants a column tokens beside it; the file has {', '.join(columns)}")
    if missing := set(needs) - set(columns):
        raise InputError(f"{where}: no column {', '.join(sorted(missing))}; the file has {', '.join(columns)}")


def _document(row: Mapping[str, Any], default_id: str, keep: Sequence[str]) -> tuple[Document, int]:
    """Return the tweet of a row, and how many of its spans are inexact."""
    inexact = 0
    if row.get("tokens") is not None or "text" not in row:
        words = tuple(_list(row, "tokens"))
        if strange := [word for word in words if not isinstance(word, str)]:
            raise ValueError(f"tokens holds {strange[0]!r}, expected strings")
        text, offsets = _join(words)
        if row.get("tags") is not None or "spans" not in row:
            tags = tuple(_list(row, "tags"))
        else:
            tags = tuple(tags_of_spans([Span(*_bounds(span)) for span in _list(row, "spans")], len(words)))
    else:
        text = row.get("text") or ""
        if not isinstance(text, str):
            raise ValueError(f"text is of type {type(text).__name__}, expected a string")
        offsets = tuple(word_offsets(text))
        words = tuple(text[start:end] for start, end in offsets)
        spans, changed = align([CharSpan(*_bounds(span)) for span in _list(row, "spans")], offsets, len(text))
        inexact = len(changed)
        tags = tuple(tags_of_spans(spans, len(words)))
    if len(tags) != len(words):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags")
    for position, tag in enumerate(tags):
        if not isinstance(tag, str) or not is_bio(tag):
            raise ValueError(f"tag {tag!r} of word {position} is not BIO; expected O, B-type or I-type")
    is_negative = row.get("is_negative")
    if is_negative not in (None, False, True):
        raise ValueError(f"is_negative is {is_negative!r}, expected true or false")
    document = Document(
        id=str(row["id"]) if row.get("id") is not None else default_id,
        text=text,
        words=words,
        offsets=offsets,
        tags=tags,
        class_name=None if row.get("class_name") is None else str(row["class_name"]),
        negative_kind=str(row.get("label_source") or "negative") if is_negative else None,
        columns={name: None if row[name] is None else str(row[name]) for name in keep},
    )
    return document, inexact


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    """Return what a row has in a column of lists; nothing where it has none."""
    values = row.get(name)
    if not isinstance(values, list | None):
        raise ValueError(f"{name} is of type {type(values).__name__}, expected a list")
    return values or []


def _bounds(span: object) -> tuple[int, int, str]:
    if isinstance(span, Mapping):
        start, end, kind = (span.get(name) for name in ("start", "end", "type"))
        if isinstance(start, int) and isinstance(end, int) and isinstance(kind, str) and kind:
            return start, end, kind
    raise ValueError(f"span {span!r} has no start, end and type")


def _join(words: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return words joined by spaces, and where each is."""
    offsets, position = [], 0
    for word in words:
        offsets.append((position, position + len(word)))
        position += len(word) + 1
    return " ".join(words), tuple(offsets)


def _read_conll(path: Path, where: str) -> Iterator[dict[str, Any]]:
    tokens: list[str] = []
    tags: list[str] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split("\t") if "\t" in line else line.split()
            if not "".join(fields).strip() or fields[0] == "-DOCSTART-":
                if tokens:
                    yield {"tokens": tokens, "tags": tags}
                tokens, tags = [], []
            elif len(fields) < 2:
                raise InputError(f"{where}, line {number}: expected a word and a tag, got {line.strip()!r}")
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
