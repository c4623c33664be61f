"""The main path: import, anchors, probe, embed, similarities, negatives, sets, report; each step on what is there.

Each step opens its stage, does what is missing, and leaves files; calling it again does nothing, or goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import Config, InputError
from scalemine.corpus import Corpus, check_import, import_corpus, open_corpus
from scalemine.executor import Executor, InlineExecutor, ShowProgress, StopSignals, num_cores, silent, threads_of_worker
from scalemine.mining import anchors as anchors_module
from scalemine.mining import distributions, negatives, sets
from scalemine.mining.anchors import Anchors, Positives, check_classes, make_anchors, read_positives
from scalemine.mining.embeddings import (
    Embeddings,
    Similarities,
    encode_corpus,
    encoder_loader,
    score_corpus,
    write_quarantine,
)
from scalemine.mining.encoder import Encoder, encoder_settings, load_encoder
from scalemine.mining.probe import Probe, load_probe, probe_size, store_probe
from scalemine.mining.sampling import sample_corpus
from scalemine.mining.similarity import SimilarityDistribution, anchor_grid, describe
from scalemine.store import Stage, Workdir, file_sha256, fingerprint, open_stage, read_json, write_json, write_whole

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One run of an experiment: its configuration, where it runs, and what it has found so far.

    Where ``make`` is false, stages are only looked at, and nothing is written.
    """

    config: Config
    executor: Executor
    signals: StopSignals = field(default_factory=StopSignals)
    redo: bool = False
    make: bool = True
    show: ShowProgress = silent
    on_forecast: Callable[[list[distributions.Forecast]], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def workdir(self) -> Workdir:
        """Where everything is written."""
        return Workdir(self.config.workdir.absolute())

    @cached_property
    def threads(self) -> int:
        """Threads of one worker."""
        return threads_of_worker(self.config.compute)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides an embedding."""
        return encoder_settings(self.config.encoder)

    @cached_property
    def float32_encoder(self) -> Encoder:
        """The encoder that decides: of anchors, and of what is selected."""
        return load_encoder(
            self.config.encoder, precision="float32", threads=self.config.compute.threads or num_cores()
        )

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a step; a step that had nothing to do keeps its earlier time."""
        started = time.monotonic()
        self.signals.raise_if_requested()
        logger.info("%s: started", name)
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)
        logger.info("%s: %.1f s", name, self.seconds[name])

    def open_stage(self, folder: Path, *, version: int, settings: dict[str, Any], inputs: dict[str, Any]) -> Stage:
        """Open a stage as this run is to; see ``store.open_stage``."""
        return open_stage(folder, version=version, settings=settings, inputs=inputs, redo=self.redo, make=self.make)

    def warn(self, message: str) -> None:
        """Say a warning now, and again in the report."""
        logger.warning("%s", message)
        self.warnings.append(message)


def run_import(run: Run) -> Corpus:
    """Import the corpus, unless that is done."""
    done = (run.workdir.corpus / "corpus.json").exists()
    with contextlib.ExitStack() as stack:
        if not done:
            stack.enter_context(run.timed("import"))
        advance = stack.enter_context(run.show("import", None))

        def read(rows: int) -> None:
            run.signals.raise_if_requested()  # what is imported of a file is made again, files that are done are not
            advance(rows)

        corpus = import_corpus(run.config.corpus, run.workdir.corpus, redo=run.redo, on_rows=read)
    run.warnings += corpus.counts["warnings"]
    return corpus


def run_embed(run: Run) -> Embeddings:
    """Import and embed the corpus."""
    if not run.config.encoder.keep_embeddings:
        raise InputError("encoder.keep_embeddings is false, so there is nothing to embed for; use scalemine mine")
    _ = run.settings  # a model that is not there is said before the work begins
    corpus = run_import(run)
    embeddings = _open_embeddings(run, corpus)
    _encode(run, corpus, embeddings, None)
    write_manifest(run, corpus)
    return embeddings


def run_mine(run: Run) -> pa.Table:
    """Go the whole way from the corpus to negatives and sets; return the negatives."""
    config = run.config
    positives, test = _read_positives(config)
    _ = run.settings  # a model that is not there is said before the work begins
    corpus = run_import(run)
    anchors, anchors_print = _anchors(run, positives)
    wanted = negatives.quotas(config.mining, positives, test)
    probe = _probe(run, corpus, anchors)
    _forecast(run, corpus, probe, anchors, wanted)
    embeddings = _open_embeddings(run, corpus) if config.encoder.keep_embeddings else None
    scored = _open_similarities(run, corpus, anchors_print)
    grid_KD = anchor_grid(anchors.vectors_KD)
    # What is encoded now is scored as it is encoded; what was encoded before, from its embeddings.
    _encode(run, corpus, embeddings, (scored, grid_KD))
    if embeddings and scored.missing():
        with run.timed("similarities"):
            score_corpus(embeddings, scored, grid_KD, run.executor)
    stage = _open_mined(run, scored, test)
    if stage.manifest(run.workdir.negatives) is None:
        with run.timed("negatives"):
            _mine(run, stage, scored, anchors, probe, wanted, positives, test)
    mined = read_json(stage.file("mined.json"))
    run.facts["mined"] = mined
    for message in mined["warnings"]:
        run.warn(message)
    table = pq.read_table(run.workdir.negatives)
    _sets(run, corpus, stage, table, positives, test)
    write_manifest(run, corpus)
    if not run.seconds:
        # With the same configuration, --redo discards nothing.
        logger.info("already finished; nothing to do (to mine otherwise, change the configuration and add --redo)")
    return table


def check_embed(config: Config) -> None:
    """Look whether `run_embed` would take the workdir, and write nothing.

    Raises:
        InputError: Another configuration left something in it, as `run_embed` would say.
    """
    run = Run(config, InlineExecutor(), make=False)
    corpus = _check_corpus(run)
    if corpus:
        _open_embeddings(run, corpus)


def check_mine(config: Config) -> None:
    """Look whether `run_mine` would take the workdir, and write nothing.

    Raises:
        InputError: Another configuration left something in it, as `run_mine` would say; or the positives or the
            encoder, which decide that, are not there.
    """
    run = Run(config, InlineExecutor(), make=False)
    positives, test = _read_positives(config)
    corpus = _check_corpus(run)
    anchors = _open_anchors(run)
    if corpus is None:
        return  # what follows depends on its content
    _open_probe(run, corpus)
    if config.encoder.keep_embeddings:
        _open_embeddings(run, corpus)
    scored = _open_similarities(run, corpus, anchors.fingerprint)
    mined = _open_mined(run, scored, test)
    _open_sets(run, mined, positives, test)


def finished_embeddings(run: Run) -> Embeddings:
    """Return the embeddings of the whole corpus, for who only reads them; writes nothing.

    Raises:
        InputError: They are not finished, or another configuration made them.
    """
    looking = dataclasses.replace(run, redo=False, make=False)
    corpus = _check_corpus(looking)
    made_by = "scalemine embed CONFIG makes them"
    if corpus is None:
        raise InputError(f"{run.workdir.root}: no imported corpus and no embeddings here; {made_by}")
    embeddings = _open_embeddings(looking, corpus)
    missing, all_shards = len(embeddings.missing()), len(corpus.shards)
    if missing:
        kept = "" if run.config.encoder.keep_embeddings else " (encoder.keep_embeddings is false)"
        raise InputError(
            f"{embeddings.stage.folder}: no finished embeddings here ({all_shards - missing} of {all_shards} shards); "
            f"{made_by}{kept}"
        )
    return embeddings


def _check_corpus(run: Run) -> Corpus | None:
    """Return the corpus if it is imported, after a look whether it is the one that is wanted."""
    check_import(run.config.corpus, run.workdir.corpus)
    return open_corpus(run.workdir.corpus) if (run.workdir.corpus / "corpus.json").exists() else None


def _read_positives(config: Config) -> tuple[Positives, Positives | None]:
    """Return the positives of training and, if there are any, of test."""
    train, test = read_positives(config.positives.uri, config.positives), None
    if config.positives.test_uri:
        test = read_positives(config.positives.test_uri, config.positives, key="positives.test_uri")
    check_classes(train, test, config.positives)
    return train, test


def _open_embeddings(run: Run, corpus: Corpus) -> Embeddings:
    inputs = {"corpus": corpus.fingerprint}
    stage = run.open_stage(run.workdir.embeddings, version=1, settings=run.settings, inputs=inputs)
    return Embeddings(stage, corpus)


def _open_similarities(run: Run, corpus: Corpus, anchors_print: str) -> Similarities:
    inputs = {"corpus": corpus.fingerprint, "anchors": anchors_print}
    stage = run.open_stage(run.workdir.similarities, version=1, settings=run.settings, inputs=inputs)
    return Similarities(stage, corpus)


def _open_mined(run: Run, scored: Similarities, test: Positives | None) -> Stage:
    settings = {f"mining.{key}": value for key, value in run.config.mining.model_dump().items()} | {
        "seed": run.config.seed
    }
    inputs = {
        "similarities": scored.stage.fingerprint,
        "positives.test_uri": fingerprint(test.table.to_pylist()) if test else None,
    }
    return run.open_stage(run.workdir.mined, version=1, settings=settings, inputs=inputs)


def _open_anchors(run: Run) -> Stage:
    settings = {key: value for key, value in run.settings.items() if key != "encoder.precision"}
    settings |= anchors_module.positives_settings(run.config.positives)
    inputs = {"positives": file_sha256(Path(run.config.positives.uri))}
    return run.open_stage(run.workdir.anchors, version=1, settings=settings, inputs=inputs)


def _anchors(run: Run, positives: Positives) -> tuple[Anchors, str]:
    """Return the anchors and the fingerprint of what made them."""
    stage = _open_anchors(run)
    anchors = anchors_module.load_anchors(stage)
    if anchors is None:
        with run.timed("anchors"):
            anchors = make_anchors(positives, run.float32_encoder)
            anchors_module.store_anchors(anchors, positives, stage)
    return anchors, stage.fingerprint


def _open_probe(run: Run, corpus: Corpus) -> Stage:
    size = probe_size(run.config.mining, corpus.num_rows)
    settings = run.settings | {"seed": run.config.seed, "rows": size}
    inputs = {"corpus": corpus.fingerprint}
    return run.open_stage(run.workdir.probe, version=1, settings=settings, inputs=inputs)


def _probe(run: Run, corpus: Corpus, anchors: Anchors) -> Probe:
    """Return an encoded sample of the corpus."""
    stage = _open_probe(run, corpus)
    probe = load_probe(stage)
    if probe is None:
        with run.timed("probe"):
            size = probe_size(run.config.mining, corpus.num_rows)
            rows = sample_corpus(corpus, size, seed=run.config.seed, purpose="probe", executor=run.executor)
            encoder = load_encoder(run.config.encoder, threads=run.config.compute.threads or num_cores())
            store_probe(rows, encoder, run.float32_encoder, stage)
        probe = load_probe(stage)
        assert probe is not None
    run.facts["probe"] = {
        "dim": probe.vectors_PD.shape[1],
        "max_error": probe.max_error(anchors),
        "band_changed_share": probe.band_changed_share(anchors, run.config.mining.tails),
    }
    return probe


def _forecast(run: Run, corpus: Corpus, probe: Probe, anchors: Anchors, wanted: dict[tuple[str, int], int]) -> None:
    """Say before the corpus is encoded which bands cannot be filled from it."""
    forecasts = distributions.forecast(probe.distributions(anchors), wanted, corpus.num_rows, run.config.mining.tails)
    run.facts["forecast"] = [forecast.as_dict() for forecast in forecasts]
    run.on_forecast(forecasts)


def _encode(
    run: Run, corpus: Corpus, embeddings: Embeddings | None, scoring: tuple[Similarities, NDArray[np.float32]] | None
) -> None:
    files = embeddings or (scoring[0] if scoring else None)
    assert files is not None
    todo = files.missing()
    if todo:
        rows = sum(shard.num_rows for shard in todo)
        with run.timed("embed"), run.show("embed", rows) as advance:
            precision = run.settings["encoder.precision"]
            load = encoder_loader(run.config.encoder, precision=precision, threads=run.threads)
            done = encode_corpus(load, corpus, run.executor, embeddings=embeddings, scoring=scoring, on_rows=advance)
        run.facts["tweets_per_second"] = round(done / max(run.seconds["embed"], 1e-9), 1)
    num_quarantined = write_quarantine(files, run.workdir.quarantine)
    if num_quarantined:
        run.warn(f"{num_quarantined} rows could not be encoded and are left out; see {run.workdir.quarantine}")
    every = [files.facts(shard) or {} for shard in corpus.shards]
    totals: dict[str, Any] = {key: sum(facts[key] for facts in every) for key in ("distinct", "tokens", "cut")}
    totals |= {"rows": corpus.num_rows, "quarantined": num_quarantined}
    totals |= {key: ", ".join(sorted({facts[key] for facts in every})) for key in ("precision", "device")}
    totals["max_length"] = max(facts["max_length"] for facts in every)
    run.facts["encoded"] = totals
    if totals["cut"]:
        share = totals["cut"] / max(1, totals["distinct"])
        logger.warning(
            "%s tweets (%.2f %%) are longer than the encoder reads and were cut", f"{totals['cut']:,}", 100 * share
        )


def _mine(
    run: Run, stage: Stage, scored: Similarities, anchors: Anchors, probe: Probe,
    wanted: dict[tuple[str, int], int], positives: Positives, test: Positives | None,
) -> None:  # fmt: skip
    """Fit, choose, verify, and write distributions.json, negatives.parquet and what the report needs."""
    config = run.config.mining
    measured = distributions.measure(scored, anchors.class_names, run.executor)
    rows, normals = _fit(run, measured, anchors, probe)
    available: dict[tuple[str, int], int] = {
        (row["class_name"], band): row["band_counts"][str(band)] for row in rows for band in config.bands
    }
    mined = negatives.mine_negatives(
        scored, anchors, normals, config,
        wanted=wanted, available=available, exclude=_texts(positives, test), encode=run.float32_encoder.encode_texts,
        margin=probe.margin(anchors), seed=run.config.seed, executor=run.executor,
    )  # fmt: skip
    found = dict.fromkeys(wanted, 0)
    for row in mined.table.select(["class_name", "band"]).to_pylist():
        found[row["class_name"], row["band"]] += 1
    warnings = distributions.weak_anchor_warnings(rows, config)
    warnings += [
        f"{name}, band {band}: {found[name, band]} of {wanted[name, band]} negatives found; "
        f"the corpus holds {available[name, band]} tweets there"
        for name, band in wanted
        if found[name, band] < wanted[name, band]
    ]
    write_json(run.workdir.distributions, rows)
    for path, table in (
        (stage.file("histograms.parquet"), distributions.histogram_table(measured)),
        (run.workdir.negatives, mined.table),
    ):
        with write_whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    yields = [
        {
            "class_name": name,
            "band": band,
            "quota": wanted[name, band],
            "available": available[name, band],
            "found": count,
        }
        for (name, band), count in found.items()
    ]
    summary = {
        "yield": yields,
        "passed_over": mined.passed_over,
        "verified": mined.num_candidates,
        "warnings": warnings,
    }
    write_json(stage.file("mined.json"), summary)
    stage.commit(run.workdir.negatives, rows=mined.table.num_rows)


def _fit(
    run: Run, measured: list[SimilarityDistribution], anchors: Anchors, probe: Probe
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of distributions.json and the fitted normal per class."""
    config = run.config.mining
    fitted = measured
    if config.fit == "sample":
        fitted = probe.distributions(anchors)
    positive_steps = distributions.positive_steps(anchors)
    normals = {one.class_name: distributions.fit(one) for one in fitted}
    rows = [
        describe(
            whole,
            normals[whole.class_name],
            fit={"method": config.fit, "rows": part.count},
            tails=config.tails,
            positive_steps=positive_steps[whole.class_name],
        )
        for whole, part in zip(measured, fitted, strict=True)
    ]
    return rows, normals


def _texts(positives: Positives, test: Positives | None) -> list[str]:
    return [text for group in (positives, test) if group for text in group.table["text"].to_pylist()]


def _open_sets(run: Run, mined: Stage, positives: Positives, test: Positives | None) -> Stage:
    settings = {"sets.random_plus_ratio": run.config.sets.random_plus_ratio}
    spans = fingerprint([group.table["spans"].to_pylist() for group in (positives, test) if group])
    inputs = {"mined": mined.fingerprint, "positives.spans": spans}
    return run.open_stage(run.workdir.sets, version=1, settings=settings, inputs=inputs)


def _sets(
    run: Run, corpus: Corpus, mined: Stage, table: pa.Table, positives: Positives, test: Positives | None
) -> None:
    ratio = run.config.sets.random_plus_ratio
    stage = _open_sets(run, mined, positives, test)
    described = read_json(stage.file("sets.json")) if stage.file("sets.json").exists() else []
    if not described or any(stage.manifest(stage.file(f"{row['name']}.parquet")) is None for row in described):
        with run.timed("sets"):
            size = sets.num_random(positives.table.num_rows, test.table.num_rows if test else 0, ratio)
            texts = _texts(positives, test)
            # Some of the sample will be copies of what is already used.
            sample = sample_corpus(
                corpus, size + len(texts) + table.num_rows + size // 4,
                seed=run.config.seed, purpose="random", executor=run.executor,
            )  # fmt: skip
            usable = sets.usable_random(sample, table, texts)[:size]
            made = sets.make_sets(positives, test, table, usable, bands=run.config.mining.bands, ratio=ratio)
            sets.write_sets(made, stage)
            write_json(stage.file("sets.json"), sets.describe(made, ratio))
    run.facts["sets"] = read_json(stage.file("sets.json"))
    for row in run.facts["sets"]:
        if row["negatives"] < row["wanted_negatives"]:
            run.warn(f"{row['name']}: {row['negatives']} of {row['wanted_negatives']} negatives")


def write_manifest(run: Run, corpus: Corpus) -> None:
    """Write manifest.json; a step that had nothing to do keeps the time it took."""
    path = run.workdir.manifest
    before = read_json(path) if path.exists() else {}
    encoded, mined, probe = (run.facts.get(name) or {} for name in ("encoded", "mined", "probe"))
    counts = {key: corpus.counts[key] for key in ("read", "accepted", "rejected", "rejected_by_reason", "copies")}
    counts |= {key: encoded.get(key) for key in ("rows", "distinct", "tokens", "cut", "quarantined")}
    encoder = {
        "model": run.config.encoder.model,
        "dim": probe.get("dim"),
        "precision": encoded.get("precision"),
        "device": encoded.get("device"),
        "max_length": encoded.get("max_length"),
        "threads": run.threads,
        "max_error": probe.get("max_error"),
        "band_changed_share": probe.get("band_changed_share"),
    }
    manifest = {
        "scalemine": importlib.metadata.version("scalemine"),
        "config": run.config.model_dump(mode="json"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "inputs": {"corpus": corpus.fingerprint, "weights": run.settings["encoder.weights"]},
        "versions": {"python": platform.python_version()}
        | {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "sentence-transformers", "ray", "pyarrow")
        },
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "counts": counts,
        "seconds": {**before.get("seconds", {}), **run.seconds},
        "tweets_per_second": run.facts.get("tweets_per_second", before.get("tweets_per_second")),
        "forecast": run.facts.get("forecast"),
        "yield": mined.get("yield"),
        "rejected_candidates": mined.get("passed_over"),
        "verified_candidates": mined.get("verified"),
        "sets": run.facts.get("sets"),
        # Those of mining, where this call did not mine.
        "warnings": run.warnings if "mined" in run.facts else before.get("warnings", run.warnings),
    }
    # What this call had no part in stays as the call before left it.
    write_json(path, before | _known(manifest) | {"encoder": before.get("encoder", {}) | _known(encoder)})


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
