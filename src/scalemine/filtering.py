"""The filter: tweets of the corpus with words, patterns or codes, and without others.

Each shard is read by a worker, which writes what it keeps; then all of it goes into one file. Patterns and words are
matched by RE2, so that the time is linear in the text, whatever the pattern.

Shapes: N tweets of a shard.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import Config, Entries, FilterConfig, InputError
from scalemine.corpus import Corpus, check_import, open_corpus
from scalemine.mining.sampling import priorities, row_keys
from scalemine.pipeline import Run, run_import
from scalemine.shards import ShardFiles, ShardJob, run_shards
from scalemine.store import Stage, Workdir, file_sha256, open_stage, read_json, remove, write_json, write_whole

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

VERSION = 1
# Columns beside id, text and those that the corpus keeps: what was found, by kind.
MATCHED: Final = {"keywords": "matched_keywords", "patterns": "matched_patterns", "codes": "matched_codes"}
# A word ends where no letter, digit or mark follows; \b of RE2 knows ASCII alone.
_WORD: Final = r"\pL\pN\pM_"
_WORD_EDGE: Final = re.compile(r"\w")
# Five digits that are no part of a longer number, an amount, or a telephone number; ZIP+4 counts by its first five.
_CODE_RE: Final = re.compile(r"(?<![\w@])(?<![0-9][.,\-])([0-9]{5})(?:-[0-9]{4})?(?!\w)(?![.,\-][0-9])")
_FIVE_DIGITS: Final = "[0-9]{5}"


@dataclass(frozen=True)
class Terms:
    """What is looked for in a text.

    Args:
        keywords: Words and phrases, in any case.
        patterns: Regular expressions of RE2.
        codes: Five digits each.
    """

    keywords: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of which there are any."""
        return [kind for kind in MATCHED if getattr(self, kind)]

    @cached_property
    def _code_set(self) -> frozenset[str]:
        return frozenset(self.codes)

    def find(self, texts: pa.ChunkedArray) -> dict[str, list[list[str]]]:
        """Return what each text has, in the order of the entries (codes: of the text), by kind."""
        found = {
            "keywords": _matches(texts, self.keywords, [keyword_pattern(word) for word in self.keywords]),
            "patterns": _matches(texts, self.patterns, self.patterns),
            "codes": self._codes_in(texts),
        }
        return {kind: found[kind] for kind in self.kinds}

    def _codes_in(self, texts: pa.ChunkedArray) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in range(len(texts))]
        rows_M = np.flatnonzero(_mask(texts, _FIVE_DIGITS)) if self.codes else np.empty(0, np.int64)
        for row, text in zip(rows_M.tolist(), texts.take(rows_M).to_pylist(), strict=True):
            there = dict.fromkeys(_CODE_RE.findall(text))
            found[row] = [code for code in there if code in self._code_set]
        return found


def keyword_pattern(keyword: str) -> str:
    """Return the pattern of RE2 that finds a word or phrase as whole words, in any case.

    Between the words of a phrase there may be any white space. Where a keyword begins or ends in no letter, such as
    with a hash sign, there is no edge to be met.
    """
    phrase = r"[\s\pZ]+".join(map(re.escape, keyword.split()))
    before = rf"(?:^|[^{_WORD}])" if _WORD_EDGE.match(keyword[0]) else ""
    after = rf"(?:$|[^{_WORD}])" if _WORD_EDGE.match(keyword[-1]) else ""
    return f"(?i){before}{phrase}{after}"


def _mask(texts: pa.ChunkedArray, pattern: str) -> Mask:
    mask = pc.fill_null(pc.match_substring_regex(texts, pattern), False)
    return np.asarray(mask.to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else mask.to_numpy(), np.bool_)


def _matches(texts: pa.ChunkedArray, names: Sequence[str], patterns: Sequence[str]) -> list[list[str]]:
    """Return the names of the patterns that each text has; texts with none of them are read once."""
    found: list[list[str]] = [[] for _ in range(len(texts))]
    if patterns:
        has_any_N = np.logical_or.reduce([_mask(texts, pattern) for pattern in _joined(tuple(patterns))])
        rows_M = np.flatnonzero(has_any_N)
        some = texts.take(rows_M)
        for name, pattern in zip(names, patterns, strict=True):
            for row in rows_M[_mask(some, pattern)].tolist():
                found[row].append(name)
    return found


@cache
def _joined(patterns: tuple[str, ...]) -> list[str]:
    """Return one pattern that finds what any of some does; several, where RE2 finds one too large."""
    if len(patterns) == 1:
        return list(patterns)
    joined = "|".join(f"(?:{pattern})" for pattern in patterns)
    try:
        pc.match_substring_regex(pa.array([""]), joined)
    except pa.ArrowInvalid:
        half = len(patterns) // 2
        return [*_joined(patterns[:half]), *_joined(patterns[half:])]
    return [joined]


@dataclass(frozen=True)
class Rule:
    """Which texts are kept.

    Args:
        wanted: What is looked for; nothing: every text is.
        need: Whether of what is wanted ``any`` kind is to be there, or ``all``.
        excluded: What a text must not have.
    """

    wanted: Terms
    need: str
    excluded: Terms

    def apply(self, texts: pa.ChunkedArray) -> tuple[Mask, Mask, dict[str, list[list[str]]]]:
        """Return which texts ``(N,)`` have what is wanted, which what is excluded, and what is wanted and there."""
        wanted, num_rows = self.wanted.find(texts), len(texts)
        has = [np.fromiter(map(bool, found), np.bool_, num_rows) for found in wanted.values()]
        together = np.logical_or if self.need == "any" else np.logical_and
        found_N = together.reduce(has) if has else np.ones(num_rows, np.bool_)
        excluded_N = np.zeros(num_rows, np.bool_)
        rows_M = np.flatnonzero(found_N)
        for found in self.excluded.find(texts.take(rows_M)).values():
            excluded_N[rows_M] |= np.fromiter(map(bool, found), np.bool_, len(rows_M))
        return found_N, excluded_N, wanted


def make_rule(config: FilterConfig) -> Rule:
    """Return the rule of a configuration.

    Raises:
        InputError: There is nothing to look for, a file is not there, or an entry is not what it should be.
    """
    if not config.is_given:
        raise InputError(
            "filter: nothing to look for; give filter.keywords, filter.patterns or filter.codes, or what to exclude"
        )

    def terms(prefix: str) -> Terms:
        found = {kind: _entries(getattr(config, prefix + kind), f"filter.{prefix}{kind}") for kind in MATCHED}
        for word in found["keywords"]:
            if not word.strip():
                raise InputError(f"filter.{prefix}keywords: expected words, got an empty text")
        for pattern in found["patterns"]:
            check_pattern(pattern, f"filter.{prefix}patterns")
        for code in found["codes"]:
            if not re.fullmatch("[0-9]{5}", code):
                raise InputError(f"filter.{prefix}codes: expected five digits (as text, in quotes), got {code[:40]!r}")
        return Terms(**found)

    return Rule(terms(""), config.need, terms("exclude_"))


def check_pattern(pattern: str, key: str) -> None:
    """Refuse what RE2 does not read.

    Raises:
        InputError: It is no regular expression, or has what RE2 lacks, such as lookaround.
    """
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        said = str(error).removeprefix("Invalid regular expression: ")
        raise InputError(
            f"{key}: {pattern!r} is no regular expression of RE2 ({said}), which reads without going back and so has "
            f"no lookaround and no backreferences; write it without"
        ) from None


def _entries(value: Entries, key: str) -> tuple[str, ...]:
    """Return the entries of a list, or those of the file that a text names, each once."""
    if isinstance(value, str):
        path = Path(value)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{key}: {value}: cannot be read as a file with an entry a line ({error}); entries themselves go into "
                f"a list, [{value}]"
            ) from None
        value = tuple(line.strip() for line in lines if line.strip())
        if not value:
            raise InputError(f"{key}: {path}: expected an entry a line, got an empty file")
    return tuple(dict.fromkeys(value))


class ShardFilter:
    """The worker that reads a shard and writes what is kept of it."""

    def __init__(self, corpus: Corpus, files: ShardFiles, rule: Rule) -> None:
        self._corpus, self._files, self._rule = corpus, files, rule

    def __call__(self, job: ShardJob) -> None:
        """Filter one shard."""
        started = time.monotonic()
        table = self._corpus.read(job.shard)
        found_N, excluded_N, matched = self._rule.apply(table["text"])
        rows_M = np.flatnonzero(found_N & ~excluded_N)
        kept = table.take(rows_M)
        for kind, column in MATCHED.items():
            there = matched.get(kind)
            values = [there[row] for row in rows_M.tolist()] if there else [[]] * len(rows_M)
            kept = kept.append_column(column, pa.array(values, pa.list_(pa.string())))
        counts = {"read": table.num_rows, "found": int(found_N.sum()), "excluded": int((found_N & excluded_N).sum())}
        self._files.write(job.shard, kept.combine_chunks(), **counts, seconds=time.monotonic() - started)


def run_filter(run: Run) -> dict[str, Any]:
    """Filter the corpus, importing it where that is to be done; return the counts, as in ``filtered.json``.

    Raises:
        InputError: The configuration is wrong, or the workdir holds what another filter kept.
    """
    rule = make_rule(run.config.filter)
    _check_columns(run.config)
    corpus = run_import(run)
    files = ShardFiles(_open(run, rule, corpus), corpus)
    counts = _finished(run.workdir, files.stage)
    if counts is not None:
        logger.info("filter: finished before")
        return counts
    remove(run.workdir.filter_counts)
    with run.timed("filter"), run.show("filter", corpus.num_rows) as advance:
        todo = files.missing()
        advance(corpus.num_rows - sum(shard.num_rows for shard in todo))
        worker = partial(ShardFilter, corpus, files, rule)
        failures = run_shards(run.executor, worker, [ShardJob(shard) for shard in todo], advance)
    if failures:
        raise RuntimeError(f"shard {failures[0][0].shard.name} cannot be filtered:\n{failures[0][1]}")
    return _gather(run, files, rule)


def check_filter(config: Config) -> None:
    """Look whether ``run_filter`` would take a configuration, and write nothing.

    Raises:
        InputError: As ``run_filter``.
    """
    rule = make_rule(config.filter)
    _check_columns(config)
    workdir = Workdir(config.workdir.absolute())
    check_import(config.corpus, workdir.corpus)
    if (workdir.corpus / "corpus.json").exists():
        corpus = open_corpus(workdir.corpus)
        open_stage(
            workdir.filter, version=VERSION, settings=_settings(config, rule),
            inputs={"corpus": corpus.fingerprint}, make=False,
        )  # fmt: skip


def _check_columns(config: Config) -> None:
    for name in config.corpus.keep:
        if name in MATCHED.values():
            raise InputError(f"corpus.keep: {name} is a column that the filter writes itself; leave it out")


def _settings(config: Config, rule: Rule) -> dict[str, Any]:
    settings: dict[str, Any] = {"filter.need": rule.need, "filter.sample": config.filter.sample}
    settings["seed"] = config.seed if config.filter.sample else None
    for prefix, terms in (("", rule.wanted), ("exclude_", rule.excluded)):
        settings |= {f"filter.{prefix}{kind}": getattr(terms, kind) for kind in MATCHED}
    return settings


def _open(run: Run, rule: Rule, corpus: Corpus) -> Stage:
    settings = _settings(run.config, rule)
    return run.open_stage(run.workdir.filter, version=VERSION, settings=settings, inputs={"corpus": corpus.fingerprint})


def _finished(workdir: Workdir, stage: Stage) -> dict[str, Any] | None:
    """Return the counts where what this stage keeps is there, whole."""
    if not (workdir.filter_counts.exists() and workdir.filtered.exists()):
        return None
    counts: dict[str, Any] = read_json(workdir.filter_counts)
    is_ours = counts["stage"] == stage.fingerprint and counts["sha256"] == file_sha256(workdir.filtered)
    return counts if is_ours else None


def _gather(run: Run, files: ShardFiles, rule: Rule) -> dict[str, Any]:
    """Write what all shards keep, in their order, and then the counts."""
    shards = files.corpus.shards
    steps: Counter[str] = Counter()
    for shard in shards:
        steps.update(
            {key: value for key, value in (files.facts(shard) or {}).items() if key in ("read", "found", "excluded")}
        )
    limit = _cut(run, files)
    by_entry = {kind: dict.fromkeys(getattr(rule.wanted, kind) if kind != "codes" else (), 0) for kind in MATCHED}
    num_kept = 0
    schema = files.read(shards[0]).schema
    with write_whole(run.workdir.filtered) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for shard in shards:
            table = files.read(shard)
            if limit is not None:
                table = table.filter(pa.array(_drawing(run, table) <= limit))
            if table.num_rows:
                writer.write_table(table)
            num_kept += table.num_rows
            for kind, column in MATCHED.items():
                for entry, number in _counted(table[column]).items():
                    by_entry[kind][entry] = by_entry[kind].get(entry, 0) + number
    by_entry["codes"] = dict(sorted(by_entry["codes"].items()))
    counts: dict[str, Any] = {key: steps[key] for key in ("read", "found", "excluded")}
    counts |= {"kept": num_kept, **by_entry}
    counts |= {"stage": files.stage.fingerprint, "sha256": file_sha256(run.workdir.filtered)}
    write_json(run.workdir.filter_counts, counts)
    return counts


def _counted(column: pa.ChunkedArray) -> Mapping[str, int]:
    values = pc.value_counts(pc.list_flatten(column))
    return {entry["values"]: entry["counts"] for entry in values.to_pylist()}


def _drawing(run: Run, table: pa.Table) -> NDArray[np.uint64]:
    """Return the priority of each row ``(N,)``: those with the least are drawn."""
    return priorities(row_keys(table["id"].to_pylist()), run.config.seed, "filter")


def _cut(run: Run, files: ShardFiles) -> np.uint64 | None:
    """Return the highest priority that is drawn; None where all rows are."""
    sample = run.config.filter.sample
    every = [_drawing(run, files.read(shard)) for shard in files.corpus.shards] if sample else []
    keys_M = np.sort(np.concatenate(every)) if every else np.empty(0, np.uint64)
    return None if sample is None or len(keys_M) <= sample else keys_M[sample - 1]
