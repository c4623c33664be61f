"""What trainers eat, out of a finished workdir: pairs, triplets and tuples of tweets, sets with tags, plain rows.

Shapes: M positives, C positives of one class, D dimensions.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from scalemine.config import DiskFullError, InputError, TrainConfig
from scalemine.mining.anchors import Anchors, load_anchors
from scalemine.store import (
    Stage,
    Workdir,
    disk_full_said,
    fingerprint,
    read_json,
    write_json,
    write_whole,
    write_whole_folder,
)
from scalemine.text import duplicate_key
from scalemine.training.tagging.labels import CharSpan, align, tag_names, tags_of_spans, word_offsets

# Those of sentence-transformers, which takes every column but the label as a text to encode, in the order of the file.
PAIR_FORMATS: Final = ("triplets", "n-tuples", "labeled-pairs")
FORMATS: Final = (*PAIR_FORMATS, "datasets", "conll", "jsonl")
NEGATIVES_PER_ANCHOR: Final = 3
# Says that a folder was made here, so that it may be replaced. Readers of folders pass hidden files over.
MARK: Final = ".scalemine-export.json"
KINDS: Final = ("no", "random", "1s", "2s", "3s")
# Decimals of a cosine that count: copies of a tweet tie, in whatever order a product is summed.
DECIMALS: Final = 6
# What JSON leaves as it is, and some readers take for the end of a line.
_LINE_ENDS: Final = re.compile("[\x85\u2028\u2029]")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What is exported, and how.

    Args:
        format: One of ``FORMATS``.
        sets: Names of sets. Of ``datasets`` and ``conll``: only these, None: all. Of ``jsonl``: these beside the
            negatives. Of the formats of pairs: only negatives that are in these, None: all.
        negatives_per_anchor: Of ``n-tuples``; None: ``NEGATIVES_PER_ANCHOR``.
        max_false_negative: Negatives whose estimate is higher, or that have none, are left out.
        redo: Replace what is there.
    """

    format: str
    sets: tuple[str, ...] | None = None
    negatives_per_anchor: int | None = None
    max_false_negative: float | None = None
    redo: bool = False


@dataclass
class Report:
    """What was written, and what was left out; each a line."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)


def export(workdir: Path, to: Path, options: Options) -> Report:
    """Write what a finished workdir holds in the format of a trainer, whole or not at all.

    Raises:
        InputError: The options contradict one another, the workdir is not finished or has not what is asked for, or
            the output is there already or cannot be written.
        DiskFullError: There is no room for it.
    """
    _check_options(options, to)
    _check_place(workdir, to, options)
    finished = Finished(Workdir(workdir))
    report = Report()
    kept, dropped = _surely_negative(finished, options, report)
    try:
        with disk_full_said(to):
            if options.format in PAIR_FORMATS:
                _export_pairs(finished, _of_sets(finished, kept, options, report), to, options, report)
            elif options.format == "jsonl":
                _export_json_lines(finished, kept, dropped, to, options, report)
            else:
                sets = {name: _without(table, dropped) for name, table in finished.sets(options.sets).items()}
                write = _write_conll if options.format == "conll" else _write_datasets
                with _new_folder(to, finished, options) as folder:
                    write(folder, finished, sets, report)
    except DiskFullError:
        raise
    except OSError as error:
        raise InputError(f"{to}: cannot be written ({error.strerror or error}); choose another place") from None
    report.say(f"written: {to}")
    return report


# What may be asked for


def _near(name: str, known: Sequence[str]) -> str:
    """Return the end of a message on an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(known)}"


def _check_options(options: Options, to: Path) -> None:
    name, ending = options.format, to.suffix.lower()
    if name not in FORMATS:
        raise InputError(f"--format: no format {name!r}; {_near(name, FORMATS)}")
    if options.negatives_per_anchor is not None and name != "n-tuples":
        raise InputError(f"--negatives-per-anchor is of --format n-tuples, not of {name}; drop it")
    if name in PAIR_FORMATS and ending not in (".parquet", ".jsonl"):
        raise InputError(f"--to {to}: {name} are written as .parquet or .jsonl, by the ending; got {ending or 'none'}")
    if name == "jsonl" and not options.sets and ending != ".jsonl":
        raise InputError(f"--to {to}: expected a file ending in .jsonl; got {ending or 'none'}")
    is_folder = name in ("datasets", "conll") or (name == "jsonl" and options.sets)
    if is_folder and ending in (".parquet", ".jsonl", ".conll"):
        what = "with --sets, jsonl is" if name == "jsonl" else f"{name} is"
        raise InputError(f"--to {to}: {what} a folder of files; got the name of a file")


def _check_place(workdir: Path, to: Path, options: Options) -> None:
    """Raise InputError where the output would replace what is not an earlier output."""
    root, place = workdir.resolve(), to.resolve()
    if root == place or root in place.parents or place in root.parents:
        raise InputError(f"--to {to}: lies in the workdir {workdir}, or around it; choose another place")
    if not place.exists():
        return
    if not options.redo:
        raise InputError(f"{to}: exists; --redo replaces it")
    is_folder = options.format in ("datasets", "conll") or (options.format == "jsonl" and bool(options.sets))
    if place.is_dir() != is_folder:
        was, wanted = ("folder", "file") if place.is_dir() else ("file", "folder")
        raise InputError(f"{to}: is a {was}, and {options.format} makes a {wanted}; choose another place")
    if is_folder and any(place.iterdir()) and not (place / MARK).is_file():
        raise InputError(f"{to}: holds what was not exported (it has no {MARK}); choose another place")


# What is there


class Finished:
    """A workdir whose negatives are finished, and agree with its anchors."""

    def __init__(self, workdir: Workdir) -> None:
        self.workdir = workdir
        mined, anchors_stage = _stage(workdir.mined), _stage(workdir.anchors)
        anchors = load_anchors(anchors_stage) if anchors_stage else None
        if mined is None or mined.manifest(workdir.negatives) is None or anchors_stage is None or anchors is None:
            raise InputError(f"{workdir.root}: no finished negatives here; scalemine mine CONFIG makes them")
        scored = _stage(workdir.similarities)
        if scored and read_json(scored.file("stage.json"))["inputs"]["anchors"] != anchors_stage.fingerprint:
            raise InputError(
                f"{workdir.root}: its negatives are of other positives than its anchors, "
                f"as if a run was stopped; scalemine mine CONFIG ends it"
            )
        self.fingerprint = mined.fingerprint
        self.negatives = pq.read_table(workdir.negatives)
        self.anchors = anchors
        self.texts: list[str] = pq.read_table(workdir.anchors / "positives.parquet")["text"].to_pylist()

    @cached_property
    def set_names(self) -> list[str]:
        """The sets, training's first, by kind; none where they are not finished, or are of other negatives."""
        stage = _stage(self.workdir.sets)
        if stage is None or not stage.file("sets.json").exists():
            return []
        if read_json(stage.file("stage.json"))["inputs"]["mined"] != self.fingerprint:
            return []
        described = [stage.file(f"{row['name']}.parquet") for row in read_json(stage.file("sets.json"))]
        if not all(map(stage.manifest, described)):
            return []
        return sorted((path.stem for path in stage.folder.glob("*.parquet") if _part_and_kind(path.stem)), key=_order)

    def sets(self, names: Sequence[str] | None = None) -> dict[str, pa.Table]:
        """Return the sets of some names, or all, in order.

        Raises:
            InputError: There are no finished sets, or none of a name.
        """
        if not self.set_names:
            raise InputError(f"{self.workdir.root}: no finished sets here; scalemine mine CONFIG makes them")
        for name in names or ():
            if name not in self.set_names:
                raise InputError(f"--sets: no set {name!r} in {self.workdir.sets}; {_near(name, self.set_names)}")
        wanted = [name for name in self.set_names if names is None or name in names]
        return {name: pq.read_table(self.workdir.sets / f"{name}.parquet") for name in wanted}


def _stage(folder: Path) -> Stage | None:
    """Return a stage as it was left, whatever its settings."""
    mark = folder / "stage.json"
    return Stage(folder, fingerprint(read_json(mark))) if mark.exists() else None


def _part_and_kind(name: str) -> tuple[str, str] | None:
    """Return ``("train", "2s")`` of the set ``train_2s``; None for what is no set."""
    found = re.fullmatch("(train|test)_(.+)", name)
    return (found[1], found[2]) if found else None


def _order(name: str) -> tuple[bool, int, str]:
    part, kind = _part_and_kind(name) or ("", name)
    return part != "train", KINDS.index(kind) if kind in KINDS else len(KINDS), kind


def _surely_negative(finished: Finished, options: Options, report: Report) -> tuple[pa.Table, frozenset[str]]:
    """Return the negatives that are not too likely to be positives, and the ids of the others."""
    table, limit = finished.negatives, options.max_false_negative
    if limit is None:
        return table, frozenset()
    name = "false_negative_probability"
    estimates = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(table.num_rows, "float")])
    if estimates.null_count == len(estimates):
        raise InputError(
            f"--max-false-negative: {finished.workdir.negatives} has no estimate ({name} is null in all rows); drop it"
        )
    keep = pc.fill_null(pc.less_equal(estimates, limit), False)
    kept, others = table.filter(keep), table.filter(pc.invert(keep))
    report.say(
        f"{others.num_rows:,} of {table.num_rows:,} negatives left out: {estimates.null_count:,} without an estimate, "
        f"the others likelier than {limit:g} to be positives"
    )
    return kept, frozenset(others["id"].to_pylist())


def _without(table: pa.Table, ids: frozenset[str]) -> pa.Table:
    """Return a set without the negatives of some ids; a positive may have the id of a tweet of the corpus."""
    if not ids:
        return table
    return table.filter([not (row["is_negative"] and row["id"] in ids) for row in _rows(table, "id", "is_negative")])


def _rows(table: pa.Table, *columns: str) -> Rows:
    rows: Rows = table.select(list(columns)).to_pylist()
    return rows


def _negative_ids(table: pa.Table) -> set[str]:
    return {row["id"] for row in _rows(table, "id", "is_negative") if row["is_negative"]}


def _of_sets(finished: Finished, negatives: pa.Table, options: Options, report: Report) -> pa.Table:
    """Return the negatives of the sets that were named; of all, and say so where test sets have some."""
    ids = negatives["id"].to_pylist()
    if options.sets:
        wanted = set[str]().union(*map(_negative_ids, finished.sets(options.sets).values()))
        return negatives.filter([id_ in wanted for id_ in ids])
    if finished.set_names:
        used = {name: _negative_ids(table) & set(ids) for name, table in finished.sets().items()}
        tested = set[str]().union(*(of_set for name, of_set in used.items() if name.startswith("test_")))
        if tested:
            trained = ",".join(name for name, of_set in used.items() if of_set and name.startswith("train_"))
            report.say(f"{len(tested):,} of the negatives are in test sets; --sets {trained} leaves them out")
    return negatives


# Pairs, triplets and tuples


class Positives:
    """Which positives a negative is set against.

    Args:
        anchors: Embeddings, identifiers and classes.
        texts: The tweets, in the same order.
    """

    def __init__(self, anchors: Anchors, texts: Sequence[str]) -> None:
        self.texts = texts
        self._anchors = anchors
        self._keys = [duplicate_key(text) for text in texts]
        self._rows_of_id: dict[str | None, list[int]] = {}
        for row, id_ in enumerate(anchors.positive_ids):
            self._rows_of_id.setdefault(id_, []).append(row)
        self._near: dict[tuple[str, str | None], int] = {}
        self._partners: dict[int, int | None] = {}

    def anchor(self, class_name: str, nearest_id: str | None) -> int | None:
        """Return the positive of a class that a negative is nearest to, as far as is known; None without any.

        That is the nearest of all positives where it is of the class. Otherwise it is that of the class which is most
        like the nearest of all; where none is named, most like the class's anchor.

        Args:
            class_name: The class of the negative.
            nearest_id: Its nearest positive of any class.

        Raises:
            InputError: There is no positive of that id.
        """
        if class_name not in self._anchors.class_names:
            return None
        if (class_name, nearest_id) not in self._near:
            self._near[class_name, nearest_id] = self._find_anchor(class_name, nearest_id)
        return self._near[class_name, nearest_id]

    def _find_anchor(self, class_name: str, nearest_id: str | None) -> int:
        index = self._anchors.class_names.index(class_name)
        if nearest_id is None:
            return self._ranked(index, self._anchors.vectors_KD[index])[0]
        if nearest_id not in self._rows_of_id:
            raise InputError(
                f"negatives.parquet names the positive {nearest_id!r}, which anchors/positives.parquet has not; "
                f"scalemine mine CONFIG makes both"
            )
        rows = self._rows_of_id[nearest_id]
        same = [row for row in rows if self._anchors.positive_class_M[row] == index]
        return same[0] if same else self._ranked(index, self._anchors.positives_MD[rows[0]])[0]

    def partner(self, anchor: int) -> int | None:
        """Return the nearest other positive of an anchor's class that is no copy of it; None where there is none."""
        if anchor not in self._partners:
            index = int(self._anchors.positive_class_M[anchor])
            ranked = self._ranked(index, self._anchors.positives_MD[anchor])
            self._partners[anchor] = next((row for row in ranked if self._keys[row] != self._keys[anchor]), None)
        return self._partners[anchor]

    def _ranked(self, class_index: int, vector_D: np.ndarray) -> list[int]:
        """Return the positives of a class, the nearest to a vector first; of equal ones the first."""
        rows_C = np.flatnonzero(self._anchors.positive_class_M == class_index)
        cosines_C = self._anchors.positives_MD[rows_C].astype(np.float64) @ vector_D.astype(np.float64)
        ranked: list[int] = rows_C[np.argsort(-cosines_C.round(DECIMALS), kind="stable")].tolist()
        return ranked


@dataclass(frozen=True)
class Match:
    """The texts of an anchor, its positive, and the negatives that it is the nearest positive of."""

    anchor: str
    positive: str
    negatives: list[str]


def match(negatives: pa.Table, positives: Positives, report: Report) -> list[Match]:
    """Return the anchors in the order of their first negatives; say what has none."""
    found: dict[int, Match] = {}
    alone: Counter[str] = Counter()
    for row in _rows(negatives, "text", "class_name", "nearest_positive_id"):
        anchor = positives.anchor(row["class_name"], row["nearest_positive_id"])
        partner = None if anchor is None else positives.partner(anchor)
        if anchor is None or partner is None:
            alone[row["class_name"]] += 1
            continue
        texts = positives.texts
        found.setdefault(anchor, Match(texts[anchor], texts[partner], [])).negatives.append(row["text"])
    for name, count in sorted(alone.items(), key=lambda item: str(item[0])):
        report.say(f"class {name}: {count:,} negatives left out: it has no two positives but copies of one")
    return list(found.values())


def triplets(matches: Iterable[Match]) -> pa.Table:
    """Return anchor, positive, negative: one row per negative."""
    rows = [(one.anchor, one.positive, negative) for one in matches for negative in one.negatives]
    return _text_table(("anchor", "positive", "negative"), rows)


def n_tuples(matches: Iterable[Match], size: int, report: Report) -> pa.Table:
    """Return anchor, positive, negative_1 … negative_N: of an anchor's negatives the first N, the next N, and so on."""
    rows, short, left = [], 0, 0
    for one in matches:
        short += len(one.negatives) < size
        left += len(one.negatives) % size
        for start in range(0, len(one.negatives) - size + 1, size):
            rows.append((one.anchor, one.positive, *one.negatives[start : start + size]))
    if left:
        report.say(f"{short:,} anchors with fewer than {size} negatives left out; in all, {left:,} negatives")
    return _text_table(("anchor", "positive", *(f"negative_{number + 1}" for number in range(size))), rows)


def labeled_pairs(matches: Iterable[Match]) -> pa.Table:
    """Return sentence1, sentence2, label: each anchor with its positive (1.0) once, and with its negatives (0.0)."""
    rows, labels = [], []
    for one in matches:
        rows += [(one.anchor, one.positive), *((one.anchor, negative) for negative in one.negatives)]
        labels += [1.0, *(0.0 for _ in one.negatives)]
    return _text_table(("sentence1", "sentence2"), rows).append_column("label", pa.array(labels, pa.float64()))


def _text_table(names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> pa.Table:
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})


def _export_pairs(finished: Finished, negatives: pa.Table, to: Path, options: Options, report: Report) -> None:
    matches = match(negatives, Positives(finished.anchors, finished.texts), report)
    if options.format == "triplets":
        table = triplets(matches)
    elif options.format == "n-tuples":
        table = n_tuples(matches, options.negatives_per_anchor or NEGATIVES_PER_ANCHOR, report)
    else:
        table = labeled_pairs(matches)
    if table.num_rows == 0:
        reasons = "; ".join(report.lines) or "there are no negatives"
        raise InputError(f"--format {options.format}: nothing to write: {reasons}")
    with write_whole(to) as path:
        if to.suffix.lower() == ".parquet":
            pq.write_table(table, path, compression="zstd")
        else:
            path.write_bytes(json_lines(table.to_pylist()))
    num_anchors = pc.count_distinct(table.column(0)).as_py()
    report.say(f"{table.num_rows:,} {options.format} with {num_anchors:,} anchors: {', '.join(table.column_names)}")


# Plain rows


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return one JSON object a line, in UTF-8; what JSON has no number for is null."""
    lines = (json.dumps(_json_value(row), ensure_ascii=False, allow_nan=False, default=str) for row in rows)
    escaped = (_LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", line) for line in lines)
    return "".join(f"{line}\n" for line in escaped).encode()


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json_value(one) for key, one in value.items()}
    return [_json_value(one) for one in value] if isinstance(value, list) else value


def with_weight(negatives: pa.Table) -> Rows:
    """Return negatives with ``weight``, 1 - false_negative_probability, null without one; kept where it is there."""
    rows: Rows = negatives.to_pylist()
    if "weight" not in negatives.column_names:
        for row in rows:
            probability = row.get("false_negative_probability")
            row["weight"] = None if probability is None else 1 - probability
    return rows


def _export_json_lines(
    finished: Finished, negatives: pa.Table, dropped: frozenset[str], to: Path, options: Options, report: Report
) -> None:
    content = json_lines(with_weight(negatives))
    report.say(f"{negatives.num_rows:,} negatives")
    if not options.sets:
        with write_whole(to) as path:
            path.write_bytes(content)
        return
    sets = {name: _without(table, dropped) for name, table in finished.sets(options.sets).items()}
    files = {"negatives": content}
    files |= {name: json_lines(table.to_pylist()) for name, table in sets.items()}
    with _new_folder(to, finished, options) as folder:
        for name, lines in files.items():
            with write_whole(folder / f"{name}.jsonl") as path:
                path.write_bytes(lines)
    for name, table in sets.items():
        report.say(f"{name}: {table.num_rows:,} tweets")


@contextlib.contextmanager
def _new_folder(to: Path, finished: Finished, options: Options) -> Iterator[Path]:
    with write_whole_folder(to.resolve()) as folder:
        yield folder
        made_by = {"scalemine": importlib.metadata.version("scalemine"), "mined": finished.fingerprint}
        write_json(folder / MARK, {"format": options.format} | made_by)


# Sets with words and tags


@dataclass
class Tagged:
    """The words and BIO tags of each tweet of a set.

    Args:
        words: Per tweet.
        tags: Per tweet, as many.
        num_inexact: Spans that were widened to whole words, or held none.
        num_unlabelled: Positives without spans, not even none: all their words are tagged O, as in training.
    """

    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    num_inexact: int = 0
    num_unlabelled: int = 0

    def describe(self, name: str, report: Report) -> None:
        """Say how large a set is, and what of its spans could not be kept."""
        notes = [
            (self.num_inexact, "spans that do not end where words do"),
            (self.num_unlabelled, "positives without spans, tagged O"),
        ]
        said = "".join(f"; {count:,} {what}" for count, what in notes if count)
        report.say(f"{name}: {len(self.words):,} tweets{said}")


def tag_words(name: str, table: pa.Table) -> Tagged:
    """Return the words and tags of a set, those that a tagger is trained with.

    Raises:
        InputError: A span is empty, out of range, or overlaps another.
    """
    tagged = Tagged()
    for row in table.to_pylist():
        text, spans = row["text"] or "", row.get("spans")
        offsets = word_offsets(text)
        try:
            chars = [CharSpan(span["start"], span["end"], span["type"]) for span in spans or []]
            aligned, inexact = align(chars, offsets, len(text))
            tags = tags_of_spans(aligned, len(offsets))
        except ValueError as error:
            raise InputError(f"set {name}, id {row.get('id')!r}: {error}") from None
        tagged.words.append([text[start:end] for start, end in offsets])
        tagged.tags.append(tags)
        tagged.num_inexact += len(inexact)
        tagged.num_unlabelled += spans is None and not row.get("is_negative")
    return tagged


def conll(name: str, tagged: Tagged, report: Report) -> bytes:
    r"""Return a set as a word and its tag a line, parted by a tab, with an empty line between tweets.

    Words hold no blanks (see ``word_offsets``), whatever is in the texts; a tweet without words is left out, as it
    would be two empty lines.

    Raises:
        InputError: The name of a type would end a line or a field.
    """
    for kind in sorted({tag[2:] for tags in tagged.tags for tag in tags} - {""}):
        if kind != kind.strip() or re.search(r"[^\S ]", kind):
            raise InputError(f"set {name}: spans of type {kind!r} cannot be written as CoNLL; rename the type")
    tweets = [
        "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in zip(tagged.words, tagged.tags, strict=True)
        if words
    ]
    if num_empty := len(tagged.words) - len(tweets):
        report.say(f"{name}: {num_empty:,} tweets without a word left out")
    content = "\n".join(tweets)
    # A reader would take it for the mark of the encoding, not for a word.
    return (("\n" if content.startswith("\ufeff") else "") + content).encode()


def _write_conll(folder: Path, finished: Finished, sets: Mapping[str, pa.Table], report: Report) -> None:
    for name, table in sets.items():
        tagged = tag_words(name, table)
        tagged.describe(name, report)
        with write_whole(folder / f"{name}.conll") as path:
            path.write_bytes(conll(name, tagged, report))


def _write_datasets(folder: Path, finished: Finished, sets: Mapping[str, pa.Table], report: Report) -> None:
    # Of all sets: a tag has one number, whatever is exported.
    names = tag_names(
        span["type"]
        for table in finished.sets().values()
        for row in table.to_pylist()
        for span in row.get("spans") or []
    )
    numbers = {name: number for number, name in enumerate(names)}
    tables: dict[tuple[str, str], pa.Table] = {}
    for name, table in sets.items():
        tagged = tag_words(name, table)
        tagged.describe(name, report)
        part_and_kind = _part_and_kind(name)
        assert part_and_kind is not None
        part, kind = part_and_kind
        tables[kind, part] = _with_tags(table, tagged, numbers)
    tables = _alike(tables)
    for (kind, part), table in tables.items():
        with write_whole(folder / _data_file(kind, part)) as path:
            pq.write_table(table, path, compression="zstd")
    with write_whole(folder / "README.md") as path:
        path.write_text(dataset_card(tables, names), encoding="utf-8")


def _with_tags(table: pa.Table, tagged: Tagged, numbers: Mapping[str, int]) -> pa.Table:
    table = table.select([name for name in table.column_names if name not in ("tokens", "ner_tags")])
    tags = [[numbers[tag] for tag in row] for row in tagged.tags]
    table = table.append_column("tokens", pa.array(tagged.words, pa.list_(pa.string())))
    return table.append_column("ner_tags", pa.array(tags, pa.list_(pa.int64())))


def _alike(tables: Mapping[tuple[str, str], pa.Table]) -> dict[tuple[str, str], pa.Table]:
    """Return tables with the same columns in the train and test part of a kind; what a part has not is null."""
    empty: dict[str, pa.Table] = {}
    for (kind, _), table in tables.items():
        parts = [empty[kind], table.slice(0, 0)] if kind in empty else [table.slice(0, 0)]
        empty[kind] = pa.concat_tables(parts, promote_options="permissive")
    return {
        (kind, part): pa.concat_tables([empty[kind], table], promote_options="permissive")
        for (kind, part), table in tables.items()
    }


def _data_file(kind: str, part: str) -> str:
    return f"data/{kind}/{part}-00000-of-00001.parquet"


def dataset_card(tables: Mapping[tuple[str, str], pa.Table], tags: Sequence[str]) -> str:
    """Return the README.md of a folder of Parquet files: what ``datasets.load_dataset`` reads of it, and a summary.

    Args:
        tables: The rows by kind of set and part, train or test.
        tags: Names of the numbers in column ner_tags.
    """
    kinds = list(dict.fromkeys(kind for kind, _ in tables))
    default = TrainConfig().train_set if TrainConfig().train_set in kinds else kinds[0]
    configs, infos, lines = [], [], []
    for kind in kinds:
        parts = [(part, tables[kind, part]) for part in ("train", "test") if (kind, part) in tables]
        config: dict[str, Any] = {
            "config_name": kind,
            "data_files": [{"split": part, "path": _data_file(kind, part)} for part, _ in parts],
        }
        configs.append(config | ({"default": True} if kind == default else {}))
        splits = [{"name": part, "num_bytes": table.nbytes, "num_examples": table.num_rows} for part, table in parts]
        infos.append({"config_name": kind, "features": features(parts[0][1].schema, tags), "splits": splits})
        for part, table in parts:
            num_negatives = int(pc.sum(table["is_negative"]).as_py() or 0)
            lines.append(f"| {kind} | {part} | {table.num_rows - num_negatives} | {num_negatives} |")
    header = yaml.safe_dump({"configs": configs, "dataset_info": infos}, sort_keys=False, allow_unicode=True)
    table_text = "\n".join(["| set | split | positives | negatives |", "|---|---|---|---|", *lines])
    return (
        f"---\n{header}---\n\n# Tweets with difficult negatives\n\nMade by scalemine {_version()}. "
        f"`spans` are in characters of `text`; `tokens` and `ner_tags` are the words and BIO tags of the same.\n\n"
        f"{table_text}\n"
    )


def _version() -> str:
    return importlib.metadata.version("scalemine")


def features(schema: pa.Schema, tags: Sequence[str]) -> Rows:
    """Return the columns of a table as the header of a dataset card names them."""
    named = {str(number): name for number, name in enumerate(tags)}
    described = []
    for column in schema:
        kind = {"list": {"class_label": {"names": named}}} if column.name == "ner_tags" else _feature(column.type)
        described.append({"name": column.name} | kind)
    return described


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _feature(kind.value_type)
        return {
            "large_list" if pa.types.is_large_list(kind) else "list": inner.get("struct", inner.get("dtype", inner))
        }
    if pa.types.is_struct(kind):
        return {"struct": [{"name": one.name} | _feature(one.type) for one in kind]}
    renamed = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": renamed.get(kind, str(kind))}
