"""Positives and anchors: the mean embedding of each class's labelled tweets.

Shapes: M positives, K classes, D dimensions.
"""

from __future__ import annotations

import csv
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from scalemine import bucket
from scalemine.config import InputError, PositivesConfig
from scalemine.encoder import Encoder
from scalemine.mining.similarity import STEPS_PER_UNIT
from scalemine.store import Stage, write_whole

FloatArray = NDArray[np.float32]

SPANS = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("type", pa.string())]))


@dataclass(frozen=True, eq=False)
class Positives:
    """Labelled tweets.

    Args:
        table: Columns id, text, class_name (strings), spans (character offsets), event and time (strings); the last
            three null where the file has none.
    """

    table: pa.Table

    @property
    def class_names(self) -> list[str]:
        """The classes, in order of their names."""
        return sorted(set(self.table["class_name"].to_pylist()))

    def count(self, class_name: str) -> int:
        """Return the number of tweets of a class."""
        return int(pc.sum(pc.equal(self.table["class_name"], class_name)).as_py() or 0)


def read_positives(uri: str, config: PositivesConfig, *, key: str = "positives.uri") -> Positives:
    """Read labelled tweets; a row without text or class is no positive.

    Args:
        uri: The file.
        config: The names of its columns, and which classes are wanted.
        key: The configuration key that named the file, for messages.

    Raises:
        InputError: The file or a column is not there, or no row is usable.
    """
    table = _read_table(uri, key)
    columns = {
        "id": _column(table, config.id, uri) if config.id in table.column_names else None,
        "text": _column(table, config.text, uri, "positives.text"),
        "class_name": _column(table, config.class_name, uri, "positives.class_name"),
    }
    if columns["id"] is None:
        columns["id"] = pa.chunked_array([pa.array([f"{Path(uri).stem}:{row}" for row in range(table.num_rows)])])
    columns["spans"] = _spans(table, config.spans, uri)
    for name, column in (("event", config.event), ("time", config.time)):
        known = column in table.column_names
        columns[name] = _column(table, column, uri, f"positives.{name}") if known else _no_texts(table.num_rows)
    positives = pa.table(columns)
    usable = pc.and_(
        pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(positives["text"], ""))), 0),
        pc.greater(pc.utf8_length(pc.fill_null(positives["class_name"], "")), 0),
    )
    labelled = set(positives["class_name"].to_pylist()) - {None, ""}
    positives = positives.filter(usable)
    if config.classes:
        positives = positives.filter(pc.is_in(positives["class_name"], value_set=pa.array(config.classes)))
    if positives.num_rows == 0:
        of_classes = f" of {', '.join(config.classes)}" if config.classes else ""
        raise InputError(
            f"{uri}: no positives{of_classes}: none of its {table.num_rows} rows has both a text and a class"
        )
    emptied = sorted((labelled & set(config.classes or labelled)) - set(positives["class_name"].to_pylist()))
    if emptied:
        raise InputError(
            f"{uri}: class {emptied[0]!r} has no positives: none of its rows has a text; add some, or drop it"
        )
    return Positives(positives)


def check_classes(train: Positives, test: Positives | None, config: PositivesConfig) -> None:
    """Raise InputError where a class has too few positives for an anchor, or none at all."""
    wanted = set(config.classes or train.class_names) | set(test.class_names if test else [])
    for class_name in sorted(wanted):
        count = train.count(class_name)
        if count < config.min_per_class:
            known = ", ".join(f"{name} ({train.count(name)})" for name in train.class_names)
            raise InputError(
                f"{config.uri}: class {class_name!r} has {count} positives, expected at least {config.min_per_class}; "
                f"the file has {known}"
            )


def _read_table(uri: str, key: str) -> pa.Table:
    path = bucket.file_of(uri)
    if not path.is_file():
        raise InputError(f"{key}: no such file: {uri} (expected Parquet, CSV, TSV or JSON lines)")
    try:
        match path.suffix.lower():
            case ".parquet":
                table = pq.read_table(path)
            case ".csv" | ".tsv":
                table = _read_csv(path, "\t" if path.suffix.lower() == ".tsv" else ",")
            case ".jsonl" | ".ndjson" | ".json":
                table = _read_json_lines(path)
            case _:
                raise InputError(f"{key}: {uri}: unknown ending; expected .parquet, .csv, .tsv or .jsonl")
    except UnicodeError:
        raise InputError(f"{key}: {uri} is not UTF-8; convert it first") from None
    except (pa.ArrowException, csv.Error, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{key}: {uri} cannot be read: {str(error).splitlines()[0]}") from None
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise InputError(f"{key}: {uri}: column {twice[0]!r} is there more than once; rename one of them")
    return table


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    """Read a table as text; Arrow's own reader would make numbers and times of texts that look like them."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            rows = [row for row in reader if row]
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from None
    if header is None:
        raise csv.Error("the file is empty")
    for row in rows:
        if len(row) != len(header):
            raise csv.Error(f"a row has {len(row)} fields where the header names {len(header)}: {row[0][:60]!r}")
    return pa.table([pa.array([row[i] for row in rows], pa.string()) for i in range(len(header))], names=header)


def _read_json_lines(path: Path) -> pa.Table:
    """Read objects, one a line; what is neither text nor nested becomes text, as JSON writes it."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            rows.append(json.loads(line))
            if not isinstance(rows[-1], dict):
                raise pa.ArrowInvalid(f"line {number}: expected an object, got {line[:60]!r}")
    if not rows:
        raise pa.ArrowInvalid("the file is empty")
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, list | dict) for value in values):
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array(values)
    return pa.table(columns)


def _column(table: pa.Table, name: str, uri: str, key: str = "positives.id") -> pa.ChunkedArray:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{key}: no column {name!r} in {uri}; {hint}it has {', '.join(table.column_names)}")
    column = table[name]
    if pa.types.is_nested(column.type):
        raise InputError(f"{key}: column {name!r} of {uri} holds {column.type}, expected text")
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise InputError(f"{key}: column {name!r} of {uri} holds {column.type} that is not UTF-8 text") from None


def _no_texts(num_rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(num_rows, pa.string())])


def _spans(table: pa.Table, name: str, uri: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, SPANS)])
    try:
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):  # JSON, in a CSV
            spans = [json.loads(text) if text else None for text in table[name].to_pylist()]
            return pa.chunked_array([pa.array(spans, SPANS)])
        return table[name].cast(SPANS)
    except (pa.ArrowException, json.JSONDecodeError):
        raise InputError(
            f"positives.spans: column {name!r} of {uri} holds {table[name].type}, "
            f"expected a list of start, end (characters) and type"
        ) from None


@dataclass(frozen=True, eq=False)
class Anchors:
    """The anchors of the classes, and the positives that they are the means of.

    Args:
        class_names: K names, sorted.
        vectors_KD: Anchors, rows of length 1.
        positive_ids: M identifiers.
        positive_class_M: Index of each positive's class.
        positives_MD: Embeddings of the positives, rows of length 1.
        positive_texts: Their texts.
    """

    class_names: tuple[str, ...]
    vectors_KD: FloatArray
    positive_ids: tuple[str, ...]
    positive_class_M: NDArray[np.int64]
    positives_MD: FloatArray
    positive_texts: tuple[str, ...]

    def leave_one_out_steps(self, class_index: int) -> NDArray[np.int16]:
        """Return S_an of each positive of a class to the anchor of the others, in steps of 2^-15.

        A positive is part of its own anchor, which would flatter it; so it is left out.
        """
        own_MD = self.positives_MD[self.positive_class_M == class_index].astype(np.float64)
        others_MD = own_MD.sum(axis=0) - own_MD
        others_MD /= np.maximum(np.linalg.norm(others_MD, axis=1, keepdims=True), 1e-12)
        cosines_M = (own_MD * others_MD).sum(axis=1)
        steps = np.rint(cosines_M * STEPS_PER_UNIT).clip(-STEPS_PER_UNIT, STEPS_PER_UNIT - 1)
        return np.asarray(steps, np.int16)


def make_anchors(positives: Positives, encoder: Encoder) -> Anchors:
    """Encode positives and average them by class.

    Source: Zhang, Lo and Win Myint (2023), "Calculate anchor vector".
    """
    names = positives.class_names
    texts = tuple(positives.table["text"].to_pylist())
    vectors_MD = encoder.encode_texts(texts)
    class_M = np.array([names.index(name) for name in positives.table["class_name"].to_pylist()])
    means_KD = np.stack([vectors_MD[class_M == index].astype(np.float64).mean(axis=0) for index in range(len(names))])
    means_KD /= np.linalg.norm(means_KD, axis=1, keepdims=True)
    ids = tuple(positives.table["id"].to_pylist())
    return Anchors(tuple(names), means_KD.astype(np.float32), ids, class_M, vectors_MD, texts)


def store_anchors(anchors: Anchors, positives: Positives, stage: Stage) -> None:
    """Write ``anchors.safetensors`` (anchors, positives) and ``positives.parquet`` (their rows, in the same order)."""
    with write_whole(stage.file("positives.parquet")) as path:
        pq.write_table(positives.table.select(["id", "text", "class_name"]), path, compression="zstd")
    with write_whole(stage.file("anchors.safetensors")) as path:
        safetensors.numpy.save_file({"anchors": anchors.vectors_KD, "positives": anchors.positives_MD}, path)
    stage.commit(stage.file("anchors.safetensors"), rows=len(anchors.positive_ids))


def load_anchors(stage: Stage) -> Anchors | None:
    """Return the stored anchors, or None where they are not finished."""
    if stage.manifest(stage.file("anchors.safetensors")) is None:
        return None
    tensors = safetensors.numpy.load_file(stage.file("anchors.safetensors"))
    table = pq.read_table(stage.file("positives.parquet"))
    labels = table["class_name"].to_pylist()
    names = sorted(set(labels))
    class_M = np.array([names.index(label) for label in labels])
    ids, texts = (tuple(table[column].to_pylist()) for column in ("id", "text"))
    return Anchors(tuple(names), tensors["anchors"], ids, class_M, tensors["positives"], texts)


def positives_settings(config: PositivesConfig) -> dict[str, Any]:
    """Return what decides the positives and anchors, by dotted key."""
    others = ("test_uri", "spans", "event", "time")
    return {f"positives.{key}": value for key, value in config.model_dump().items() if key not in others}
