"""A trained model on a whole corpus: one Parquet file per shard, row for row with it, and what there is to see in them.

    OUT/corpus/            the imported tweets, with what could not be imported
    OUT/predictions/       per shard id, kept columns, and labels with all probabilities, or spans
    OUT/predictions.json   counts, histograms, surest and most doubtful tweets; the same for any workers
    OUT/report.html        the same to look at
    OUT/manifest.json      model, versions, counts, speed; written last

Shapes: N rows of a shard, D distinct texts among them, C classes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import ComputeConfig, CorpusConfig, InputError
from scalemine.corpus import Corpus, Shard, import_corpus, open_corpus
from scalemine.executor import Executor, Outcome, ShowProgress, StopSignals, silent, threads_of_worker
from scalemine.mining.events import seconds_of
from scalemine.mining.sampling import fetch_rows
from scalemine.models import model_fingerprint
from scalemine.report.page import write_predictions_page
from scalemine.shards import ShardJob, ShardStage, run_past_poison, write_quarantine
from scalemine.store import Stage, open_stage, read_json, write_json, write_whole
from scalemine.training.kept import folder_of, kind_of
from scalemine.training.predictions import PROBABILITY, Found, Predictor, load_predictor

# Rises when the meaning of the files of predictions changes.
VERSION = 1
NUM_BINS = 20
NUM_SAMPLES = 5
# As rows of the corpus have.
_ROW_GROUP_ROWS = 4_096


@dataclass(frozen=True)
class Wanted:
    """What is to be predicted, and where it goes.

    Args:
        model: Folder of the model, or of the run that wrote it.
        to: Folder of everything that is written.
        corpus: Which tweets.
        compute: Where the work runs.
        min_probability: Instead of the model's thresholds; spans below are left out.
        only_positive: Rows without a label or span are not written.
        time: Column of the corpus with the time of a tweet, to count by day.
        precision: In which a fine-tuned classifier computes.
    """

    model: Path
    to: Path
    corpus: CorpusConfig
    compute: ComputeConfig = ComputeConfig()
    min_probability: float | None = None
    only_positive: bool = False
    time: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise InputError(f"--min-probability: expected a number from 0 to 1, got {self.min_probability}")
        for name in self.corpus.keep:
            if name in ("labels", "spans") or name.startswith(PROBABILITY):
                raise InputError(f"--keep {name}: a column of the predictions has this name; rename it in the corpus")

    @property
    def tweets(self) -> CorpusConfig:
        """The corpus, with the column of the time; a finished work directory stands for the corpus in it."""
        keep = self.corpus.keep if self.time in (None, *self.corpus.keep) else (*self.corpus.keep, str(self.time))
        uri = self.corpus.uri
        if len(uri) == 1 and (Path(uri[0]) / "corpus" / "corpus.json").is_file():
            uri = (str(Path(uri[0]) / "corpus"),)
        return self.corpus.model_copy(update={"keep": keep, "uri": uri})

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the files of a shard, beside model and corpus."""
        keys = ("min_probability", "only_positive", "time", "precision")
        return {f"--{key.replace('_', '-')}": getattr(self, key) for key in keys} | {"--keep": self.corpus.keep}


@dataclass(frozen=True)
class Predictions(ShardStage):
    """The predictions: one Parquet file per shard of the corpus."""

    suffix = "parquet"

    def write(self, shard: Shard, table: pa.Table, **facts: Any) -> None:  # noqa: ANN401  JSON values
        """Write and commit the file of a shard."""
        with write_whole(self.path(shard)) as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=_ROW_GROUP_ROWS, write_page_checksum=True
            )
        self.stage.commit(self.path(shard), input=shard.sha256, rows=shard.num_rows, written=table.num_rows, **facts)


class ShardPredictor:
    """The worker that predicts a shard; each distinct text is read once."""

    def __init__(
        self,
        load: Callable[[], Predictor],
        files: Predictions,
        *,
        keep: Sequence[str],
        only_positive: bool,
        time: str | None,
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._predictor, self._files = load(), files
        self._keep, self._only_positive, self._time = keep, only_positive, time
        # A worker goes through two shards at a time; tokenisers cannot be used by two threads.
        self._alone = threading.Lock()

    def __call__(self, job: ShardJob) -> None:
        """Predict one shard."""
        started = time.monotonic()
        table = self._files.corpus.read(job.shard)
        skip = {row for row, _ in job.skip}
        rows = range(*job.trial) if job.trial else range(table.num_rows)
        texts = table["text"].to_pylist()
        source_N = np.full(table.num_rows, -1, np.int64)
        distinct: dict[str, int] = {}
        with self._alone:
            for row in rows:
                if row not in skip:
                    source_N[row] = distinct.setdefault(self._predictor.normalise(texts[row]), len(distinct))
            del texts
            found = self._predictor.read(list(distinct))
        if job.trial:
            return
        facts = {
            "distinct": len(distinct),
            "quarantined": [{"row": row, "id": table["id"][row].as_py(), "error": error} for row, error in job.skip],
            "found": summarise(self._predictor, found, source_N, table[self._time] if self._time else None),
        }
        self._files.write(
            job.shard, self._as_table(table, found, source_N), **facts, seconds=time.monotonic() - started
        )

    def _as_table(self, table: pa.Table, found: Found, source_N: NDArray[np.int64]) -> pa.Table:
        kept = {name: table[name] for name in ("id", *self._keep)}
        thresholds = dict(zip(self._predictor.names, self._predictor.thresholds, strict=True))
        made = pa.table({**kept, **found.columns(source_N)})
        made = made.replace_schema_metadata({"scalemine": json.dumps({self._predictor.gives: thresholds})})
        if self._only_positive:
            has_any_D = np.append(found.has_class().any(1), False)  # of the rows in quarantine, which are at -1
            made = made.take(pa.array(np.flatnonzero(has_any_D[source_N])))
        return made.combine_chunks()


def summarise(
    predictor: Predictor, found: Found, source_N: NDArray[np.int64], times: pa.ChunkedArray | None
) -> dict[str, Any]:
    """Return what is to be told of a shard's predictions: counts, and by class a histogram and samples, as rows."""
    known_N = np.flatnonzero(source_N >= 0)
    copies_D = np.bincount(source_N[known_N])
    # Of each distinct text the first row that has it.
    first_D = known_N[np.unique(source_N[known_N], return_index=True)[1]]
    has_DC = found.has_class()
    classes = []
    for place in range(len(predictor.names)):
        at_E, scores_E, parts = found.entries(place)
        classes.append(
            {"tweets": int(copies_D[has_DC[:, place]].sum())}
            | _scored(at_E, scores_E, parts, predictor.thresholds[place], copies_D, first_D)
        )
    days: Counter[str] = Counter()
    by_class: dict[str, list[int]] = {}
    if times is not None:
        for value, place in zip(times.to_pylist(), source_N.tolist(), strict=True):
            day = day_of(value) or "unknown"
            days[day] += 1
            counts = by_class.setdefault(day, [0] * len(predictor.names))
            for one in np.flatnonzero(has_DC[place]) if place >= 0 else ():
                counts[one] += 1
    return {
        "with_any": int(copies_D[has_DC.any(1)].sum()),
        "classes": classes,
        "days": {day: [days[day], *by_class[day]] for day in sorted(days)},
    }


def day_of(time: str | None) -> str | None:
    """Return the day of a time, in UTC, as ISO 8601; None where it cannot be read."""
    seconds = seconds_of(time) if time else None
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def _scored(
    at_E: NDArray[np.int64], scores_E: NDArray[np.float64], parts: Sequence[str], threshold: float,
    copies_D: NDArray[np.int64], first_D: NDArray[np.int64],
) -> dict[str, Any]:  # fmt: skip
    """Return the histogram of a class's probabilities, and the places of its surest and most doubtful tweets."""
    bins_E = np.clip((scores_E * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    histogram = np.bincount(bins_E, weights=copies_D[at_E], minlength=NUM_BINS)

    def samples(keys_E: NDArray[np.float64]) -> list[dict[str, Any]]:
        order = np.lexsort((first_D[at_E], keys_E))[:NUM_SAMPLES].tolist()
        return [
            {"row": int(first_D[at_E[one]]), "probability": float(scores_E[one])}
            | ({"part": parts[one]} if parts else {})
            for one in order
        ]

    return {
        "entries": int(copies_D[at_E].sum()),
        "histogram": histogram.astype(np.int64).tolist(),
        "confident": samples(-scores_E),
        "uncertain": samples(np.abs(scores_E - threshold)),
    }


@dataclass
class Prepared:
    """A model, a corpus and the files of their predictions."""

    wanted: Wanted
    predictor: Predictor
    model_sha256: str
    files: Predictions
    seconds: float = 0.0
    rows: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def run_predict(
    wanted: Wanted, executor: Executor, signals: StopSignals, *, redo: bool = False, show: ShowProgress = silent
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predict what is missing, and tell what there is; return ``predictions.json`` and ``manifest.json``.

    Raises:
        InputError: The model or the corpus cannot be read, or the folder holds predictions of others.
        RuntimeError: A shard fails and no single row of it is to blame.
    """
    predictor, sha256 = _open_model(wanted)
    with show("import", None) as advance:

        def read(rows: int) -> None:
            signals.raise_if_requested()
            advance(rows)

        corpus = import_corpus(wanted.tweets, wanted.to / "corpus", redo=redo, on_rows=read)
    stage = _open_stage(wanted, corpus, sha256, redo=redo)
    made = Prepared(wanted, predictor, sha256, Predictions(stage, corpus))
    _predict(made, executor, show)
    summary = _sum_up(made)
    write_json(wanted.to / "predictions.json", summary)
    manifest = _manifest(made)
    write_predictions_page(summary, manifest, wanted.to / "report.html")
    write_json(wanted.to / "manifest.json", manifest)
    return summary, manifest


def check_predict(wanted: Wanted) -> list[str]:
    """Refuse what ``run_predict`` would refuse, write nothing, and return what it would do, a line each.

    Raises:
        InputError: As ``run_predict`` raises before it predicts.
    """
    from scalemine.corpus import check_import
    from scalemine.sources import find_sources

    predictor, sha256 = _open_model(wanted)
    lines = [f"model: {kind_of(wanted.model)} {folder_of(wanted.model)}, sha256 {sha256}"]
    lines.append(f"{predictor.gives}: {', '.join(predictor.names)}")
    check_import(wanted.tweets, wanted.to / "corpus")
    if not (wanted.to / "corpus" / "corpus.json").exists():
        if not (Path(wanted.tweets.uri[0]) / "corpus.json").exists():
            lines += [
                f"to import: {one.name}, {one.num_bytes / 1e6:,.1f} MB" for one in find_sources(wanted.tweets.uri)
            ]
        return [*lines, "predictions: all to be made"]
    corpus = open_corpus(wanted.to / "corpus")
    files = Predictions(_open_stage(wanted, corpus, sha256, make=False), corpus)
    done = len(corpus.shards) - len(files.missing())
    return [
        *lines,
        f"corpus: imported, {corpus.num_rows:,} rows",
        f"predictions: {done} of {len(corpus.shards)} shards done",
    ]


def _open_model(wanted: Wanted) -> tuple[Predictor, str]:
    # Before anything is imported, which may take hours; and the workers load it again, each for itself.
    predictor = _loader(wanted)()
    if clash := set(wanted.tweets.keep) & {PROBABILITY + name for name in predictor.names}:
        raise InputError(f"--keep {min(clash)}: a column of the predictions has this name; rename it in the corpus")
    return predictor, model_fingerprint(folder_of(wanted.model))


def _loader(wanted: Wanted) -> Callable[[], Predictor]:
    folder = folder_of(wanted.model).absolute()  # a worker may run in another folder
    return partial(load_predictor, folder, min_probability=wanted.min_probability, precision=wanted.precision)


def _open_stage(wanted: Wanted, corpus: Corpus, sha256: str, *, redo: bool = False, make: bool = True) -> Stage:
    inputs = {"corpus": corpus.fingerprint, "model": sha256}
    return open_stage(
        wanted.to / "predictions", version=VERSION, settings=wanted.settings, inputs=inputs, redo=redo, make=make
    )


def _predict(made: Prepared, executor: Executor, show: ShowProgress) -> None:
    """Predict the shards that are not finished."""
    todo, wanted = made.files.missing(), made.wanted
    if not todo:
        return
    started = time.monotonic()
    worker = partial(
        ShardPredictor, _loader(wanted), made.files, keep=wanted.tweets.keep, only_positive=wanted.only_positive,
        time=wanted.time, threads=threads_of_worker(wanted.compute),
    )  # fmt: skip

    def count(outcome: Outcome[ShardJob, None]) -> None:
        made.rows += 0 if outcome.error else outcome.item.shard.num_rows

    with show("predict", sum(shard.num_rows for shard in todo)) as advance:
        run_past_poison(executor, worker, todo, advance, count, verb="predicted")
    made.seconds = time.monotonic() - started


def _sum_up(made: Prepared) -> dict[str, Any]:
    """Return what there is to tell, from the manifests of the shards."""
    names, corpus = made.predictor.names, made.files.corpus
    facts = [(shard, made.files.facts(shard) or {}) for shard in corpus.shards]
    made.facts = {key: sum(one[key] for _, one in facts) for key in ("distinct", "written")}
    made.facts["quarantined"] = write_quarantine(made.files, made.wanted.to / "predictions" / "quarantine.parquet")
    classes = {
        name: _add_up([(shard.name, one["found"]["classes"][place]) for shard, one in facts], threshold)
        for place, (name, threshold) in enumerate(zip(names, made.predictor.thresholds, strict=True))
    }
    _put_texts(corpus, [row for one in classes.values() for key in _SAMPLES for row in one[key]])
    days: dict[str, NDArray[np.int64]] = {}
    for _, one in facts:
        for day, counts in one["found"]["days"].items():
            days[day] = days.get(day, np.zeros(1 + len(names), np.int64)) + counts
    return {
        "gives": made.predictor.gives,
        "tweets": corpus.num_rows,
        "with_any": sum(one["found"]["with_any"] for _, one in facts),
        **made.facts,
        "classes": classes,
        "days": {day: dict(zip(("tweets", *names), days[day].tolist(), strict=True)) for day in sorted(days)},
    }


_SAMPLES = ("confident", "uncertain")


def _add_up(parts: Sequence[tuple[str, dict[str, Any]]], threshold: float) -> dict[str, Any]:
    """Return what is told of a class over all shards."""

    def first(key: str, order: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
        every = ({"shard": shard, **row} for shard, part in parts for row in part[key])
        return sorted(every, key=lambda row: (order(row), row["shard"], row["row"]))[:NUM_SAMPLES]

    return {
        "threshold": threshold,
        **{key: sum(part[key] for _, part in parts) for key in ("tweets", "entries")},
        "histogram": np.sum([part["histogram"] for _, part in parts], axis=0).tolist(),
        "confident": first("confident", lambda row: -row["probability"]),
        "uncertain": first("uncertain", lambda row: abs(row["probability"] - threshold)),
    }


def _put_texts(corpus: Corpus, samples: Iterable[dict[str, Any]]) -> None:
    """Replace the places of sampled tweets by their ids and texts."""
    samples = list(samples)
    rows = fetch_rows(corpus, [(row.pop("shard"), row.pop("row")) for row in samples])
    for sample, row in zip(samples, rows, strict=True):
        sample |= {"id": row.id, "text": row.text}


def _manifest(made: Prepared) -> dict[str, Any]:
    path = made.wanted.to / "manifest.json"
    before = read_json(path) if path.exists() else {}
    # A call that found everything done keeps the speed of the one that did it.
    speed = {key: before.get(key) for key in ("predicted", "seconds", "tweets_per_second")}
    if made.rows:
        rate = round(made.rows / max(made.seconds, 1e-9), 1)
        speed = {"predicted": made.rows, "seconds": round(made.seconds, 3), "tweets_per_second": rate}
    counts = made.files.corpus.counts
    names = ("torch", "transformers", "scikit-learn", "numpy", "pyarrow")
    return {
        "scalemine": importlib.metadata.version("scalemine"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": {
            "folder": str(folder_of(made.wanted.model)),
            "kind": kind_of(made.wanted.model),
            "sha256": made.model_sha256,
            "thresholds": dict(zip(made.predictor.names, made.predictor.thresholds, strict=True)),
        },
        "settings": made.wanted.settings,
        "inputs": {"corpus": made.files.corpus.fingerprint},
        "counts": {key: counts[key] for key in ("read", "accepted", "rejected", "rejected_by_reason", "copies")}
        | {"rows": made.files.corpus.num_rows, **made.facts},
        **speed,
        "workers": made.wanted.compute.workers,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
    }
