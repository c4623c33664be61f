"""Labelled tweets for a classifier, on disk: imported once, labels read once, tokenised once, and read by memory map.

A file of any size and format is imported as a corpus (see ``corpus``). Beside its shards lie those of the targets and,
per tokeniser, those of the tokens; all of them are made shard by shard, by as many workers as are configured, and found
again by what decides their content.

Shapes: N tweets, B tweets of a batch, C labels.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from scalemine import bucket
from scalemine.config import CorpusConfig, InputError, LabelsConfig
from scalemine.corpus import Corpus, import_corpus
from scalemine.executor import Executor
from scalemine.models import quieten_libraries
from scalemine.shards import OnRows, ShardFiles, ShardJob, matrix, matrix_column, run_shards
from scalemine.store import fingerprint, open_stage
from scalemine.text import normaliser
from scalemine.training.batches import Batch, pad
from scalemine.training.splits import Rows

logger = logging.getLogger(__name__)

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
IS_NEGATIVE = "is_negative"
_TRUE, _FALSE, _NOTHING = {"1", "1.0", "true"}, {"0", "0.0", "false"}, {"-1", "-1.0", ""}
# A label seen less often than this cannot be in the training part, the dev part and a test part.
_FEW = 3

_STREAMED_ROWS = 16_384

Int8 = NDArray[np.int8]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, eq=False)
class Examples:
    """The labelled tweets of one file.

    Args:
        uri: The file.
        sha256: Hash of ids, texts, targets and weights; further columns are of no matter to it.
        labels: The labels, C of them.
        corpus: Its tweets.
        targets: Their targets and weights, per shard.
        tokens: Their tokens, per shard; None where none are wanted.
        columns: Further columns that are there.
        unlisted: Labels of the file that are not among ``labels``, and how many tweets have each.
        vectors: What a frozen encoder makes of them, per shard; see ``first_tokens``.
    """

    uri: str
    sha256: str
    labels: tuple[str, ...]
    corpus: Corpus
    targets: ShardFiles
    tokens: ShardFiles | None
    columns: tuple[str, ...]
    unlisted: Mapping[str, int]
    vectors: ShardFiles | None = None

    @property
    def num_rows(self) -> int:
        """Number of tweets."""
        return self.corpus.num_rows

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard.num_rows for shard in self.corpus.shards)])

    @cached_property
    def _maps(self) -> list[tuple[Int8, NDArray[np.float32]]]:
        """Targets and weights of each shard, memory-mapped."""
        tables = [self.targets.read(shard) for shard in self.corpus.shards]
        return [(matrix(table["targets"])[0], _mapped(table["weight"]).to_numpy()) for table in tables]

    @cached_property
    def _ids(self) -> list[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Where the tokens of each tweet begin, and the tokens, of each shard, memory-mapped."""
        assert self.tokens is not None
        columns = [_mapped(self.tokens.read(shard)["ids"]) for shard in self.corpus.shards]
        return [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each tweet ``(N,)``."""
        return np.concatenate([np.diff(offsets) for offsets, _ in self._ids]).astype(np.int32)

    def targets_of(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> Int8:
        """Return the targets ``(B, C)`` of some tweets, or of all: 1, 0, or -1 for unknown."""
        if rows is None:
            return np.concatenate([targets_NC for targets_NC, _ in self._maps])
        return self.gather(rows, [targets_NC for targets_NC, _ in self._maps])

    def weights_of(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the weights ``(B,)`` of some tweets, or of all."""
        if rows is None:
            return np.concatenate([weight_N for _, weight_N in self._maps])
        return self.gather(rows, [weight_N for _, weight_N in self._maps])

    def gather(self, rows: Sequence[int] | NDArray[np.int64], parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return rows of what there is of each shard, in the order asked for."""
        rows = np.asarray(rows, np.int64)
        found = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
        for shard, places, inside in self._by_shard(rows):
            found[places] = parts[shard][inside]
        return found

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each shard that some rows lie in, their places among these rows, and their places in the shard."""
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self._starts)
        for shard in np.flatnonzero(np.diff(ends)).tolist():
            places = order[ends[shard] : ends[shard + 1]]
            yield shard, places, rows[places] - self._starts[shard]

    def tokens_of(self, rows: Sequence[int]) -> list[NDArray[np.int32]]:
        """Return the tokens of some tweets."""
        found = []
        for row in rows:
            shard = int(np.searchsorted(self._starts, row, side="right")) - 1
            offsets, ids = self._ids[shard]
            place = row - self._starts[shard]
            found.append(ids[offsets[place] : offsets[place + 1]])
        return found

    def vectors_of(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(B, D)`` of some tweets."""
        return self.gather(rows, self._vectors)

    @cached_property
    def _vectors(self) -> list[NDArray[np.float32]]:
        assert self.vectors is not None
        return [matrix(self.vectors.read(shard)["vector"])[0] for shard in self.corpus.shards]

    def column(self, name: str) -> list[str | None]:
        """Return a column of all tweets: id, text, or one that was kept."""
        values: list[str | None] = []
        for shard in self.corpus.shards:
            values += self.corpus.read(shard, [name])[name].to_pylist()
        return values

    def ids_of(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the identifiers of some tweets."""
        return [str(value) for value in self.values("id", rows)]

    def values(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> list[str | None]:
        """Return a column of some tweets."""
        rows = np.asarray(rows, np.int64)
        found: list[str | None] = [None] * len(rows)
        for shard, places, inside in self._by_shard(rows):
            column = self.corpus.read(self.corpus.shards[shard], [name])[name]
            for place, value in zip(places.tolist(), column.take(inside).to_pylist(), strict=True):
                found[place] = value
        return found

    def negative(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some tweets are mined or random negatives ``(B,)``."""
        if IS_NEGATIVE not in self.corpus.columns:
            return np.zeros(len(rows), np.bool_)
        return np.array([(value or "").strip().lower() in _TRUE for value in self.values(IS_NEGATIVE, rows)], np.bool_)

    def rows(self, rows: NDArray[np.int64] | None = None) -> Rows:
        """Return some tweets, or all, as folds are made of them; folds are alike in each label."""
        every = np.arange(self.num_rows) if rows is None else rows
        return Rows(
            _Stream(self.ids_of, every),
            _Stream(lambda some: [text or "" for text in self.values("text", some)], every),
            _Stream(self._labels_of, every),
            _Stream(lambda some: (self.targets_of(some) == UNKNOWN).all(axis=1).tolist(), every),
            {name: _Stream(partial(self.values, name), every) for name in self.columns},
        )

    def _labels_of(self, rows: NDArray[np.int64]) -> list[Collection[str]]:
        return [[self.labels[label] for label in np.flatnonzero(row == POSITIVE)] for row in self.targets_of(rows)]


def _mapped(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; of one chunk, as files of shards have it, without the copy of combine_chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class _Stream(Sequence[ValueT]):
    """What is read of some tweets, some thousand at a time whenever it is gone through."""

    def __init__(self, read: Callable[[NDArray[np.int64]], list[ValueT]], rows: NDArray[np.int64]) -> None:
        self._read, self._rows = read, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[ValueT]:
        for start in range(0, len(self._rows), _STREAMED_ROWS):
            yield from self._read(self._rows[start : start + _STREAMED_ROWS])

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        if isinstance(place, slice):
            return self._read(self._rows[place])
        return self._read(self._rows[[place]])[0]


def read_examples(
    uri: str,
    config: LabelsConfig,
    folder: Path,
    *,
    executor: Callable[[], Executor],
    names: Sequence[str] | None = None,
    needs: Sequence[str] = (),
    keep: Sequence[str] = (),
    key: str = "file",
    tokenise: TokeniserSpec | None = None,
    on_rows: OnRows | None = None,
) -> Examples:
    """Read labelled tweets; what was read before is opened.

    Args:
        uri: File, glob, folder or bucket URI.
        config: Where the labels are, and what they mean.
        folder: Where the tweets, targets and tokens of all files go.
        executor: Gives where shards are worked on; called only if there are any to do.
        names: The labels, in order; None: those that are configured, or found, by name.
        needs: Columns that must be there.
        keep: Columns that are carried along where they are there.
        key: What named the file, for messages.
        tokenise: How to tokenise; None: no tokens.
        on_rows: Told how many rows were read or tokenised.

    Raises:
        InputError: A file or column is not there, a target is no number, a label is not among the training set's, or
            no tweet bears one of the labels.
    """
    corpus, columns = _import(uri, config, folder, needs=needs, keep=keep, key=key, on_rows=on_rows)
    where = f"{key}: {uri}"
    try:
        found = _labels_found(corpus, config)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    chosen = names if names is not None else config.names
    labels = tuple(sorted(found) if chosen is None else chosen)
    if not labels:
        raise InputError(f"{where}: no tweet bears a label in {_label_columns(config)}; see the section labels")
    settings = {"labels": labels, **config.model_dump(include={"column", "columns", "categories", "unknown_values"})}
    settings |= {"absent": config.absent, "weight": config.weight}
    stage = open_stage(
        corpus.folder.parent / f"targets-{fingerprint(settings)}",
        version=2, settings=settings, inputs={"tweets": corpus.fingerprint}, redo=True,
    )  # fmt: skip
    targets = ShardFiles(stage, corpus)
    worker = partial(_TargetReader, corpus, targets, config, labels, where)
    make_shards(targets, worker, executor, None)
    facts = [targets.facts(shard) or {} for shard in corpus.shards]
    content = fingerprint([labels, [[one["tweets"], one["sha256"]] for one in facts]])
    unlisted = {label: number for label, number in found.items() if label not in labels}
    examples = Examples(uri, content, labels, corpus, targets, None, columns, unlisted)
    return examples if tokenise is None else _tokenised(examples, tokenise, executor, on_rows)


def _import(
    uri: str,
    config: LabelsConfig,
    folder: Path,
    *,
    needs: Sequence[str],
    keep: Sequence[str],
    key: str,
    on_rows: OnRows | None,
) -> tuple[Corpus, tuple[str, ...]]:
    """Import the tweets of a file with their label columns; return which further columns are there, too."""
    label_columns = _label_columns(config)
    optional = [IS_NEGATIVE, config.weight, *keep, *config.groups]
    wanted = list(dict.fromkeys([*label_columns, *needs, *optional]))
    there = _columns_of(uri)
    if there is not None:
        if missing := [name for name in (*label_columns, *needs) if name not in there]:
            raise InputError(f"{key}: {uri}: no column {missing[0]}; the file has {', '.join(there)}")
        wanted = [name for name in wanted if name in there]
    wanted = [name for name in wanted if name not in ("id", "text")]
    reading = CorpusConfig(uri=(uri,), text=config.text, id=config.id, keep=tuple(wanted))
    stem = re.sub(r"\W+", "-", Path(uri).stem).strip("-") or "tweets"
    home = folder / f"{stem}-{fingerprint(reading.model_dump(mode='json'))[:6]}"
    try:
        corpus = import_corpus(reading, home / "tweets", redo=True, on_rows=on_rows)
    except InputError as error:
        message = str(error).replace("corpus.uri", key).replace("corpus.keep", "labels")
        raise InputError(re.sub(r"corpus\.(text|id)\b", r"labels.\1", message)) from None
    if rejected := corpus.counts["rejected"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.counts["rejected_by_reason"].items())
        logger.warning("%s: %d of %d tweets left out: %s", uri, rejected, corpus.counts["read"], reasons)
    if there is None:  # what is nowhere was read as nothing
        wanted = [name for name in wanted if not _is_empty(corpus, name)]
        if missing := [name for name in (*label_columns, *needs) if name not in ("id", "text", *wanted)]:
            raise InputError(f"{key}: {uri}: no column {missing[0]}, or nothing in it")
    further = [name for name in dict.fromkeys([*needs, *keep, *config.groups]) if name in wanted]
    return corpus, tuple(further)


def _is_empty(corpus: Corpus, name: str) -> bool:
    return all(corpus.read(shard, [name])[name].null_count == shard.num_rows for shard in corpus.shards)


def _columns_of(uri: str) -> list[str] | None:
    """Return the columns of a Parquet, CSV or TSV file, or None where they are not known before it is read."""
    path = bucket.file_of(uri)
    if not path.is_file():
        return None
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), None)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error):
        return None  # said by who reads it
    return None


def _label_columns(config: LabelsConfig) -> tuple[str, ...]:
    return config.columns or config.categories or (config.column,)


def _labels_found(corpus: Corpus, config: LabelsConfig) -> Counter[str]:
    """Return the labels in a file, and how many tweets bear each of them."""
    if config.columns:
        return Counter(config.columns)
    found: Counter[str] = Counter()
    for shard in corpus.shards:
        for name in _label_columns(config):
            table = corpus.read(shard, ["id", name])
            for value, count in _value_counts(table[name]):
                for label in _labels_of(value, name, config, table):
                    found[label] += count
    return found


def _value_counts(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    for one in pc.value_counts(column.fill_null("")).to_pylist():
        yield one["values"], one["counts"]


def _labels_of(value: str, name: str, config: LabelsConfig, table: pa.Table) -> list[str]:
    """Return the labels that a value of a column stands for; the table says in which tweet it is.

    Raises:
        ValueError: It begins as a list, and is no list of names.
    """
    given, value = value, value.strip()
    if config.categories:
        if not value or value in config.unknown_values:
            return []
        return [value if len(config.categories) == 1 else f"{name}={value}"]
    if value.startswith("["):
        try:
            labels = orjson.loads(value)
        except orjson.JSONDecodeError:
            labels = [None]
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{_said(table, name, given)}; expected a JSON list of names, or names parted by commas")
        return list(dict.fromkeys(label.strip() for label in labels))
    return list(dict.fromkeys(label for part in value.split(",") if (label := part.strip())))


def make_shards(
    files: ShardFiles, worker: Callable[[], Callable[[ShardJob], Any]], executor: Callable[[], Executor],
    on_rows: OnRows | None,
) -> None:  # fmt: skip
    """Make the shards that are missing; what a worker finds wrong with the input is said in its words."""
    jobs = [ShardJob(shard) for shard in files.missing()]
    if not jobs:
        return
    for _, error in run_shards(executor(), worker, jobs, on_rows):
        # A worker's own words where it says what is wrong with the input, else the traceback.
        said = re.search(r"^scalemine\.config\.InputError: (.*)", error, flags=re.MULTILINE)
        raise InputError(said[1]) if said else RuntimeError(error)


class _TargetReader:
    """The worker that reads the targets of a shard."""

    def __init__(
        self, corpus: Corpus, files: ShardFiles, config: LabelsConfig, labels: tuple[str, ...], where: str
    ) -> None:
        self.corpus, self.files, self.config, self.labels, self.where = corpus, files, config, labels, where

    def __call__(self, job: ShardJob) -> None:
        """Write the targets and weights of one shard."""
        table = self.corpus.read(job.shard)
        try:
            targets_NC = read_targets(table, self.labels, self.config)
            weight_N = _weights(table, self.config)
        except ValueError as error:
            raise InputError(f"{self.where}: {error}") from None
        valid_N = np.ones(len(targets_NC), np.bool_)
        self.files.write(
            job.shard,
            pa.table({"targets": matrix_column(targets_NC, valid_N), "weight": pa.array(weight_N)}),
            tweets=_tweets_hash(table),
        )


def _tweets_hash(table: pa.Table) -> str:
    """Return the hash of the ids and texts of some tweets."""
    digest = hashlib.sha256()
    for name in ("id", "text"):
        for value in table[name].to_pylist():
            digest.update((value or "").encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def read_targets(table: pa.Table, labels: Sequence[str], config: LabelsConfig) -> Int8:
    """Return the targets ``(N, C)`` of some tweets, whose columns hold text: 1, 0, or -1 for unknown.

    Raises:
        ValueError: A value is not what its column should hold.
    """
    place = {label: number for number, label in enumerate(labels)}
    if config.columns:
        columns = [_numbers(table, label) if label in table.column_names else None for label in labels]
        absent_N = np.full(table.num_rows, UNKNOWN, np.int8)
        targets_NC = np.stack([absent_N if one is None else one for one in columns], axis=1)
    else:
        absent = NEGATIVE if config.absent == "negative" else UNKNOWN
        targets_NC = np.full((table.num_rows, len(labels)), absent, np.int8)
        for name in _label_columns(config):
            coded = table[name].fill_null("").combine_chunks().dictionary_encode()
            values_VC = np.full((len(coded.dictionary), len(labels)), absent, np.int8)
            is_own_C = np.array([not config.categories or _is_of(label, name, config) for label in labels])
            for number, value in enumerate(coded.dictionary.to_pylist()):
                if config.categories and (not value.strip() or value.strip() in config.unknown_values):
                    values_VC[number] = UNKNOWN
                for label in _labels_of(value, name, config, table):
                    if label in place:
                        values_VC[number, place[label]] = POSITIVE
            found_NC = values_VC[coded.indices.to_numpy()]
            targets_NC = np.where(is_own_C, found_NC, targets_NC)
    if IS_NEGATIVE in table.column_names:
        targets_NC[_numbers(table, IS_NEGATIVE) == POSITIVE] = UNKNOWN
    return targets_NC


def _is_of(label: str, name: str, config: LabelsConfig) -> bool:
    return len(config.categories) == 1 or label.startswith(f"{name}=")


def _numbers(table: pa.Table, name: str) -> Int8:
    """Return a column of 1, 0 and unknown."""
    coded = table[name].fill_null("").combine_chunks().dictionary_encode()
    codes = []
    for value in coded.dictionary.to_pylist():
        text = value.strip().lower()
        if text not in _TRUE | _FALSE | _NOTHING:
            raise ValueError(f"{_said(table, name, value)}; expected 1, 0, and -1 or nothing for unknown")
        codes.append(POSITIVE if text in _TRUE else NEGATIVE if text in _FALSE else UNKNOWN)
    return np.array(codes, np.int8)[coded.indices.to_numpy()] if codes else np.empty(0, np.int8)


def _said(table: pa.Table, name: str, value: str) -> str:
    """Return what a column holds, and in which tweet."""
    row = table[name].fill_null("").to_pylist().index(value)
    return f"column {name} holds {value[:40]!r} (id {table['id'][row].as_py()})"


def _weights(table: pa.Table, config: LabelsConfig) -> NDArray[np.float32]:
    if config.weight not in table.column_names:
        return np.ones(table.num_rows, np.float32)
    weights: dict[str, float] = {}
    values = table[config.weight].fill_null("").to_pylist()
    for value in dict.fromkeys(values):
        try:
            weights[value] = float(value or 1)
        except ValueError:
            weights[value] = np.nan
        if not 0 <= weights[value] < np.inf:
            raise ValueError(f"{_said(table, config.weight, value)}; expected a number from 0")
    return np.array([weights[value] for value in values], np.float32)


@dataclass(frozen=True)
class TokeniserSpec:
    """How texts become tokens.

    Args:
        folder: Of the Hugging Face tokeniser.
        fingerprint: Hash of its files.
        max_length: Tokens of a tweet, special ones included; what is beyond is cut.
        normaliser: How a text is rewritten first; see scalemine.text.
    """

    folder: Path
    fingerprint: str
    max_length: int
    normaliser: str


def _tokenised(
    examples: Examples, spec: TokeniserSpec, executor: Callable[[], Executor], on_rows: OnRows | None
) -> Examples:
    """Return the tweets with their tokens."""
    corpus = examples.corpus
    settings = {"max_length": spec.max_length, "normaliser": spec.normaliser, "tokeniser": spec.fingerprint}
    stage = open_stage(
        corpus.folder.parent / f"tokens-{fingerprint(settings)}",
        version=2, settings=settings, inputs={"tweets": corpus.fingerprint}, redo=True,
    )  # fmt: skip
    files = ShardFiles(stage, corpus)
    make_shards(files, partial(_Tokeniser, corpus, files, spec), executor, on_rows)
    return replace(examples, tokens=files)


def num_cut(examples: Examples, rows: NDArray[np.int64]) -> int:
    """Return how many of some tweets are longer than the encoder reads."""
    assert examples.tokens is not None
    shards = examples.corpus.shards
    return int(examples.gather(rows, [_mapped(examples.tokens.read(one)["cut"]).to_numpy() for one in shards]).sum())


class _Tokeniser:
    """The worker that tokenises a shard."""

    def __init__(self, corpus: Corpus, files: ShardFiles, spec: TokeniserSpec) -> None:
        quieten_libraries()
        from transformers import AutoTokenizer

        self.corpus, self.files, self.spec = corpus, files, spec
        self.tokenizer = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True, trust_remote_code=False)
        self.normalise = normaliser(spec.normaliser)
        # A call sets whether it cuts, for those of other threads too.
        self.lock = threading.Lock()

    def __call__(self, job: ShardJob) -> None:
        """Write the tokens of one shard."""
        texts = [self.normalise(text) for text in self.corpus.read(job.shard, ["text"])["text"].to_pylist()]
        with self.lock:
            found = self.tokenizer(texts, truncation=True, max_length=self.spec.max_length, return_attention_mask=False)
            ids = [tokens or [self.tokenizer.pad_token_id or 0] for tokens in found["input_ids"]]
            at_limit = [row for row, tokens in enumerate(ids) if len(tokens) == self.spec.max_length]
            whole = self.tokenizer([texts[row] for row in at_limit], verbose=False)["input_ids"] if at_limit else []
        is_cut_N = np.zeros(len(ids), np.int8)
        is_cut_N[at_limit] = [len(tokens) > self.spec.max_length for tokens in whole]
        self.files.write(job.shard, pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "cut": is_cut_N}))


def check_labels(examples: Examples, key: str) -> None:
    """Refuse labels that no training tweet bears, and say which ones too few bear.

    Raises:
        InputError: No tweet bears a label, or none has a weight.
    """
    if not examples.weights_of().any():
        raise InputError(f"{key}: {examples.uri}: every tweet weighs 0, so nothing can be learnt; see labels.weight")
    targets_NC = examples.targets_of()
    positives_C, known_C = (targets_NC == POSITIVE).sum(0), (targets_NC != UNKNOWN).sum(0)
    for label, positives, known in zip(examples.labels, positives_C.tolist(), known_C.tolist(), strict=True):
        if not positives:
            raise InputError(
                f"{key}: {examples.uri}: no tweet bears the label {label!r}, so it cannot be learnt; leave it out by "
                f"labels.names or labels.columns"
            )
        if positives == known and (targets_NC == NEGATIVE).any():
            logger.warning("%s: every tweet whose label %r is known bears it", examples.uri, label)
    few = [f"{label} ({n})" for label, n in zip(examples.labels, positives_C.tolist(), strict=True) if n < _FEW]
    if few:
        logger.warning(
            "%s: labels that fewer than %d tweets bear: %s; where a part has none, they are left out of averages",
            examples.uri, _FEW, ", ".join(few),
        )  # fmt: skip


def check_same_labels(train: Examples, others: Mapping[str, Examples]) -> None:
    """Refuse files with labels that the training file has none of.

    Raises:
        InputError: One has.
    """
    for key, examples in others.items():
        if examples.unlisted:
            label, count = max(examples.unlisted.items(), key=lambda one: one[1])
            raise InputError(
                f"{key}: {examples.uri}: label {label!r} ({count} tweets) is not among those of {train.uri}: "
                f"{', '.join(train.labels)}; list the labels to use in labels.names"
            )


def tokens_batch(examples: Examples, rows: NDArray[np.int64], pad_id: int) -> Batch:
    """Return the tokens of some tweets, filled up; or their vectors, where they have them."""
    if examples.vectors is not None:
        return {"vectors": torch.from_numpy(examples.vectors_of(rows))}
    tokens = [ids.tolist() for ids in examples.tokens_of(rows.tolist())]
    return {"input_ids": pad(tokens, pad_id), "attention_mask": pad([[1] * len(ids) for ids in tokens], 0)}
