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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine import bucket, scores
from scalemine.config import SIGMA_BANDED, Config, EncoderConfig, InputError
from scalemine.corpus import Corpus, check_import, import_corpus, open_corpus
from scalemine.decisions import Decision, read_decisions
from scalemine.encoder import Encoder, load_encoder
from scalemine.engines import check_engine
from scalemine.executor import Executor, InlineExecutor, ShowProgress, StopSignals, num_cores, silent, threads_of_worker
from scalemine.mining import anchors as anchors_module
from scalemine.mining import cascade, distributions, negatives, sets
from scalemine.mining.anchors import Anchors, Positives, check_classes, make_anchors, read_positives
from scalemine.mining.candidates import Scored, View
from scalemine.mining.embeddings import Similarities, encode_corpus, encoder_loader, score_corpus
from scalemine.mining.engine_choice import Choice, candidates, choose_engine
from scalemine.mining.events import columns_of, near_event
from scalemine.mining.mine import Mined, ScoredCorpus, check_precautions, mine, rows_wanted, texts_of
from scalemine.mining.probe import Probe, load_probe, probe_size, probed_places, store_probe
from scalemine.mining.sampling import fetch_rows, sample_corpus, sample_places
from scalemine.mining.similarity import anchor_grid
from scalemine.mining.strategies import kinds
from scalemine.mining.waves import first_shards, waves
from scalemine.mirror import spelled
from scalemine.models import device_name, encoder_settings, engine_settings, find_model, model_fingerprint
from scalemine.redaction import redact
from scalemine.shards import Embeddings, write_quarantine
from scalemine.store import (
    Share,
    Stage,
    Workdir,
    file_sha256,
    fingerprint,
    open_stage,
    read_json,
    write_json,
    write_whole,
)
from scalemine.throughput import Work

logger = logging.getLogger(__name__)

# To measure the peak of the machine takes a second: nothing beside the encoding of so many tweets.
MIN_ROWS_FOR_PEAK = 50_000


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
    work: Work = field(default_factory=Work)
    warnings: list[str] = field(default_factory=list)
    engine_choice: Choice | None = None

    @cached_property
    def workdir(self) -> Workdir:
        """Where everything is written."""
        return Workdir(self.config.workdir.absolute())

    @cached_property
    def threads(self) -> int:
        """Threads of one worker."""
        return threads_of_worker(self.config.compute)

    @cached_property
    def model_settings(self) -> dict[str, Any]:
        """What decides an embedding, but for the engine."""
        return encoder_settings(self.config.encoder.model_copy(update={"engine": "torch"}))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides an embedding."""
        return self.model_settings | engine_settings(self.engine)

    @property
    def engine(self) -> str:
        """The engine that encodes the corpus: the one named, or that of what is there, or the one chosen, or torch."""
        if self.config.encoder.engine != "auto":
            return self.config.encoder.engine
        chosen = self.engine_choice.engine if self.engine_choice else "torch"
        return self.engine_before or chosen

    @property
    def engine_before(self) -> str | None:
        """The engine of what the work directory holds, if that was made with the settings of now."""
        for folder in (self.workdir.probe, self.workdir.embeddings, self.workdir.similarities):
            if (folder / "stage.json").exists():
                before = read_json(folder / "stage.json")["settings"]
                if all(before.get(key) == value for key, value in self.model_settings.items()):
                    return str(before.get("encoder.engine", "torch"))
        return None

    @property
    def encoder_config(self) -> EncoderConfig:
        """The encoder of the corpus, with its engine."""
        return self.config.encoder.model_copy(update={"engine": self.engine})

    @cached_property
    def float32_encoder(self) -> Encoder:
        """The encoder that decides, of one engine always: of anchors, and of what is selected."""
        config = self.config.encoder.model_copy(update={"engine": "torch"})
        return load_encoder(config, precision="float32", threads=self.config.compute.threads or num_cores())

    def encode_exactly(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the float32 embeddings of texts."""
        return self.float32_encoder.encode_texts(texts)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a step, each time it is taken; one that had nothing to do keeps the time of an earlier call."""
        started = time.monotonic()
        self.signals.raise_if_requested()
        logger.info("%s: started", name)
        yield
        taken = time.monotonic() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + taken, 3)
        logger.info("%s: %.1f s", name, taken)

    def open_stage(self, folder: Path, *, version: int, settings: dict[str, Any], inputs: dict[str, Any]) -> Stage:
        """Open a stage as this run is to; see ``store.open_stage``."""
        return open_stage(folder, version=version, settings=settings, inputs=inputs, redo=self.redo, make=self.make)

    def warn(self, message: str) -> None:
        """Say a warning now, and again in the report."""
        message = spelled(message)
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
    _check_embeds_all(run.config)
    _check_encoder(run)
    corpus = run_import(run)
    _choose_engine(run, corpus)
    embeddings = _open_embeddings(run, corpus)
    _encode(run, embeddings, None)
    _sum_up(run, embeddings)
    write_manifest(run, corpus)
    return embeddings


def _check_embeds_all(config: Config) -> None:
    if config.mining.cascade is not None:
        raise InputError("mining.cascade: only scalemine mine knows what to leave out; set it to null to embed all")


def run_share(run: Run, share: Share, whole: contextlib.ExitStack) -> Embeddings:
    """Embed a share of the corpus: one of several processes that know nothing of one another.

    Args:
        run: Of this share.
        share: Which shards.
        whole: The hold on the whole work directory; closed when what all shares have in common is there.
    """
    if not run.config.encoder.keep_embeddings:
        raise InputError("encoder.keep_embeddings is false, so there is nothing to embed for; use scalemine mine")
    _check_encoder(run)
    _check_embeds_all(run.config)
    corpus = run_import(run)
    _choose_engine(run, corpus)
    begun = (run.workdir.embeddings / "stage.json").exists()
    # Who opens a stage to write clears away what was left half written: others may be writing.
    embeddings = _open_embeddings(replace(run, make=not begun), corpus)
    whole.close()
    shards = tuple(sorted(corpus.shards, key=lambda shard: shard.name)[share.index :: share.count])
    embeddings = replace(embeddings, corpus=replace(corpus, shards=shards))
    _encode(run, embeddings, None)
    return embeddings


def run_mine(run: Run) -> pa.Table:
    """Go the whole way from the corpus to negatives and sets; return the negatives."""
    config = run.config
    sets.check_mix(config.sets.mix, list(kinds(config.mining)))
    positives, test = _read_positives(config)
    generators = [_generator(run, model) for model in config.mining.generators]
    for each in (run, *generators):
        _check_encoder(each)
    _models_beside(config)
    check_precautions(config, positives, test)
    corpus = run_import(run)
    _check_columns(config, corpus)
    stage, mined = _score_and_mine(run, generators, corpus, positives, test)
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


def mine_again(run: Run, model: str, *, per_class: int, without: Sequence[str]) -> Mined:
    """Return what a trained model takes for positives in a corpus that was mined before, the surest first.

    Args:
        run: Of the mined corpus.
        model: Folder of the tagger.
        per_class: How many at most of each class.
        without: Texts whose copies are not taken.
    """
    update = {"strategy": "model", "query": "anchor", "model": model, "per_class": per_class, "generators": ()}
    config = run.config.model_copy(update={"mining": run.config.mining.model_copy(update=update)})
    positives, test = _read_positives(config)
    corpus, before = run_import(run), read_json(run.workdir.mined / "mined.json").get("read")
    prepared = _prepare(run, corpus, positives, None)
    part = prepared.view.similarities.corpus
    if before:
        part = first_shards(part, before["shards"], config.seed)
    corpora = [_score(run, prepared, part)]
    with run.show("score", config.mining.pool) as advance:
        scored = scores.score_candidates(config, corpora[0], run.executor, on_rows=advance)
    return mine(
        config, corpora, positives, test, decisions=_decisions(run), scored=scored, threads=run.threads,
        executor=run.executor, exclude=without,
    )  # fmt: skip


def _generator(run: Run, model: str) -> Run:
    """Return the run of a further encoder: it shares the corpus, and keeps the rest in a folder of its own."""
    encoder = run.config.encoder.model_copy(update={"model": model, "revision": None, "max_length": None})
    workdir = run.workdir.generator(model)
    config = run.config.model_copy(update={"encoder": encoder, "workdir": workdir})
    return replace(run, config=config, facts={}, work=Work(), engine_choice=None)


def _check_encoder(run: Run) -> None:
    """Raise InputError before the work begins where the encoder or its engine is not there."""
    device = device_name(run.config.encoder.device)
    check_engine(run.engine, precision=run.settings["encoder.precision"], device=device)


def _choose_engine(run: Run, corpus: Corpus) -> None:
    """Find the fastest engine for the corpus, unless one is named or was taken before."""
    if run.config.encoder.engine != "auto" or run.engine_before:
        return
    precision = run.model_settings["encoder.precision"]
    names = candidates(precision, device_name(run.config.encoder.device))
    compute = run.config.compute
    if compute.executor == "ray" and compute.address != "local":
        names = names[:1]  # the machines of a cluster may be unlike this one

    def load(name: str) -> Encoder:
        config = run.config.encoder.model_copy(update={"engine": name})
        return load_encoder(config, precision=precision, threads=run.threads)

    run.engine_choice = choose_engine(load, names, corpus)


def _score_and_mine(
    run: Run, generators: Sequence[Run], corpus: Corpus, positives: Positives, test: Positives | None
) -> tuple[Stage, dict[str, Any]]:
    """Encode, score and mine the corpus; where only quotas are wanted, parts of it until they are filled.

    Returns:
        The stage of what was mined, and its mined.json.
    """
    config, runs = run.config, [run, *generators]
    wanted = negatives.quotas(config.mining, positives, test)
    prepared = [_prepare(one, corpus, positives, None if index else wanted) for index, one in enumerate(runs)]
    # What is refused is refused before the work.
    _open_mined(replace(run, make=False), [one.view.similarities for one in prepared], positives, test)
    corpus = prepared[0].view.similarities.corpus
    parts: Iterable[Corpus] = [corpus]
    if config.mining.until == "quota":
        parts = waves(corpus, rows_wanted(config, prepared, wanted), config.seed)
    for part in parts:
        scored = [_score(one, whole, part) for one, whole in zip(runs, prepared, strict=True)]
        stage = _open_mined(run, [one.view.similarities for one in scored], positives, test)
        if _mine_part(run, stage, scored, corpus, positives, test):
            break
    for one, whole in zip(runs, scored, strict=True):
        _sum_up(one, whole.view.embeddings or whole.view.similarities)
    return stage, read_json(stage.file("mined.json"))


def _mine_part(
    run: Run, stage: Stage, scored: Sequence[ScoredCorpus], corpus: Corpus, positives: Positives, test: Positives | None
) -> bool:
    """Mine a part of the corpus, and say whether it is enough; what is mined is written only then.

    What was tried is noted, so that a run that is called again does not try it again.
    """
    part, notes = scored[0].view.similarities.corpus, stage.file("waves.json")
    tried = read_json(notes) if notes.exists() else []
    read = {
        "rows": part.num_rows,
        "of_rows": corpus.num_rows,
        "shards": len(part.shards),
        "of_shards": len(corpus.shards),
    }
    if any(wave["shards"] == read["shards"] for wave in tried):
        return False
    if stage.manifest(run.workdir.negatives) is not None:
        return True
    with run.timed("negatives"):
        mined = _mine(run, scored, positives, test)
        if mined.num_short and read["rows"] < read["of_rows"]:
            logger.info("%(rows)d of %(of_rows)d tweets are not enough", read)
            write_json(notes, [*tried, {**read, "short": mined.num_short}])
            return False
        _write_mined(run, stage, mined, {**read, "waves": len(tried) + 1})
    return True


def _prepare(run: Run, corpus: Corpus, positives: Positives, wanted: dict[tuple[str, str], int] | None) -> ScoredCorpus:
    """Do what comes before the corpus is gone through: anchors, probe, forecast; open what the scores go into.

    Args:
        run: Of the encoder.
        corpus: The corpus.
        positives: Of training.
        wanted: How many negatives the bands are to give, to be forecast; None: nothing is forecast.
    """
    _choose_engine(run, corpus)
    anchors, anchors_print = _anchors(run, positives)
    probe = _probe(run, corpus, anchors)
    if wanted is not None:
        _forecast(run, corpus, probe, anchors, wanted)
    kept, probe = _cascade(run, corpus, probe, anchors, anchors_print)
    is_sieved, corpus = kept is not corpus, kept
    embeddings = _open_embeddings(run, corpus) if run.config.encoder.keep_embeddings else None
    scored = _open_similarities(run, corpus, anchors_print)
    columns = columns_of(run.config.guard)
    view = View(scored, anchors, {}, run.encode_exactly, probe.margin(anchors), embeddings, columns)
    return ScoredCorpus(run.config.encoder.model, view, probe, is_sieved)


def _cascade(run: Run, corpus: Corpus, probe: Probe, anchors: Anchors, anchors_print: str) -> tuple[Corpus, Probe]:
    """Return what is to be encoded of a corpus and what stands for the whole: without a cascade, as they are."""
    if run.config.mining.cascade is None:
        return corpus, probe
    stage = _open_cascade(run, corpus, anchors_print)
    facts = cascade.read_plan(stage)
    load = encoder_loader(
        run.encoder_config,
        precision=run.settings["encoder.precision"],
        threads=run.config.compute.threads or num_cores(),
    )
    if facts is None:
        with run.timed("cascade"):
            places = probed_places(_open_probe(run, corpus))
            facts = cascade.plan(
                stage, corpus, probe, places, anchors, run.config.mining,
                seed=run.config.seed, load=load, executor=run.executor,
            )  # fmt: skip
        if facts["pays"]:
            logger.info("%s", cascade.describe(facts))
    run.facts["cascade"] = facts
    if not facts["pays"]:
        run.warn(cascade.describe(facts))
        return corpus, probe
    files = cascade.KeptShards(stage, corpus)
    if rows := sum(shard.num_rows for shard in files.missing()):
        with run.timed("cascade"), run.show("cascade", rows) as advance:
            cascade.sieve(files, load().pieces(), run.config.mining, run.executor, advance)
    kept = files.as_corpus()
    run.facts["cascade"] = facts | {"kept": kept.num_rows, "rows": corpus.num_rows}
    return kept, cascade.with_audit(stage, probe)


def _open_cascade(run: Run, corpus: Corpus, anchors_print: str) -> Stage:
    mining = run.config.mining
    settings = run.settings | {"seed": run.config.seed, "rows": probe_size(mining, corpus.num_rows)}
    settings |= {f"mining.{key}": getattr(mining, key) for key in ("cascade", "bands", "tails")}
    inputs = {"corpus": corpus.fingerprint, "anchors": anchors_print}
    return run.open_stage(run.workdir.cascade, version=1, settings=settings, inputs=inputs)


def _encoded_part(run: Run, corpus: Corpus, anchors_print: str) -> Corpus | None:
    """Return what is encoded of a corpus; None where a cascade has not found that out yet."""
    if run.config.mining.cascade is None:
        return corpus
    stage = _open_cascade(run, corpus, anchors_print)
    facts, files = cascade.read_plan(stage), cascade.KeptShards(stage, corpus)
    if facts is None or (facts["pays"] and files.missing()):
        return None
    return files.as_corpus() if facts["pays"] else corpus


def _score(run: Run, prepared: ScoredCorpus, part: Corpus) -> ScoredCorpus:
    """Score a part of the corpus with an encoder, as far as it was not done before; return the view of that part."""
    view = prepared.view
    scored = replace(view.similarities, corpus=part)
    embeddings = replace(view.embeddings, corpus=part) if view.embeddings else None
    grid_KD = anchor_grid(view.anchors.vectors_KD)
    # What is encoded now is scored as it is encoded; what was encoded before, from its embeddings.
    _encode(run, embeddings or scored, (scored, grid_KD))
    if embeddings and scored.missing():
        with run.timed("similarities"):
            score_corpus(
                embeddings, scored, grid_KD, run.executor, workers=run.config.compute.workers, threads=run.threads
            )
    return replace(prepared, view=replace(view, similarities=scored, embeddings=embeddings))


def _check_columns(config: Config, corpus: Corpus) -> None:
    """Raise InputError where the guard is to look at a column that the corpus does not have."""
    for column in columns_of(config.guard):
        if column not in corpus.columns:
            raise InputError(
                f"guard: the corpus has no column {column!r}, only {', '.join(corpus.columns)}; "
                f"carry it along by corpus.keep"
            )
        if all(corpus.read(shard, columns=[column])[column].null_count == shard.num_rows for shard in corpus.shards):
            raise InputError(
                f"guard: column {column!r} of the corpus is empty: no source has it; name another, or none"
            )


def check_embed(config: Config) -> None:
    """Look whether `run_embed` would take the workdir, and write nothing.

    Raises:
        InputError: Another configuration left something in it, as `run_embed` would say.
    """
    _check_embeds_all(config)
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
    sets.check_mix(config.sets.mix, list(kinds(config.mining)))
    positives, test = _read_positives(config)
    check_precautions(config, positives, test)
    generators = [_generator(run, model) for model in config.mining.generators]
    for each in (run, *generators):
        _check_encoder(each)
    corpus = _check_corpus(run)
    anchors = _open_anchors(run)
    if corpus is None:
        return  # what follows depends on its content
    _open_probe(run, corpus)
    corpus = _encoded_part(run, corpus, anchors.fingerprint)
    if corpus is None:
        return
    if config.encoder.keep_embeddings:
        _open_embeddings(run, corpus)
    scored = [_open_similarities(run, corpus, anchors.fingerprint)]
    for generator in generators:
        scored.append(_open_similarities(generator, corpus, _open_anchors(generator).fingerprint))
    mined = _open_mined(run, scored, positives, test)
    _open_sets(run, mined, positives, test)


def finished_embeddings(run: Run) -> Embeddings:
    """Return the embeddings of the corpus, or of what a cascade kept of it, for who only reads them; writes nothing.

    Raises:
        InputError: They are not finished, or another configuration made them.
    """
    looking = dataclasses.replace(run, redo=False, make=False)
    corpus = _check_corpus(looking)
    has_cascade = run.config.mining.cascade is not None
    made_by = f"scalemine {'mine' if has_cascade else 'embed'} CONFIG makes them"
    if corpus and has_cascade:
        num_rows = corpus.num_rows
        corpus = _encoded_part(looking, corpus, _open_anchors(looking).fingerprint)
        if corpus and corpus.num_rows < num_rows:
            logger.info("%d of %d tweets are encoded: the cascade left out the others", corpus.num_rows, num_rows)
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


def _open_mined(run: Run, scored: list[Similarities], positives: Positives, test: Positives | None) -> Stage:
    config = run.config
    # What is for rounds, or for another strategy, decides nothing here.
    others = {"replace"} if config.mining.strategy == "model" else {"replace", "pool", "model"}
    others.add("cascade")  # the similarities' fingerprints say what it kept
    if config.mining.until == "all":
        others.add("until")
    settings = {f"mining.{key}": value for key, value in config.mining.model_dump(exclude=others).items()}
    settings |= {f"guard.{key}": value for key, value in config.guard.model_dump().items()} | {"seed": config.seed}
    guarded = config.guard.max_false_negative is not None or columns_of(config.guard)
    if guarded:  # its sample of the corpus is read from them, or encoded
        settings |= {"encoder.keep_embeddings": config.encoder.keep_embeddings}
    decided = sorted((key.hex(), decision) for key, decision in _decisions(run).items())
    inputs = {
        "similarities": [one.stage.fingerprint for one in scored],
        "positives.test_uri": fingerprint(test.table.to_pylist()) if test else None,
        "positives.event, time": guarded and fingerprint(positives.table.select(["event", "time"]).to_pylist()),
        **_models_beside(config),
        "decisions.jsonl": f"{len(decided)} decisions, {fingerprint(decided)}" if decided else None,
    }
    return run.open_stage(run.workdir.mined, version=2, settings=settings, inputs=inputs)


def _models_beside(config: Config) -> dict[str, str | None]:
    """Return the hashes of models that mining asks beside the encoders.

    Raises:
        InputError: One is not there.
    """
    model, rescorer = config.mining.model, config.guard.rescorer
    return {
        "mining.model": scores.fingerprint_of(model) if model else None,
        "guard.rescorer": model_fingerprint(find_model(rescorer, None, key="guard.rescorer")) if rescorer else None,
    }


def _decisions(run: Run) -> dict[bytes, str]:
    """Return what a review decided: yes, or no."""
    every = read_decisions(run.workdir.decisions)
    return {key: decision for key, decision in every.items() if decision in (Decision.yes, Decision.no)}


def _open_anchors(run: Run) -> Stage:
    settings = {key: value for key, value in run.model_settings.items() if key != "encoder.precision"}
    settings |= anchors_module.positives_settings(run.config.positives)
    inputs = {"positives": file_sha256(bucket.file_of(run.config.positives.uri))}
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
            encoder = load_encoder(run.encoder_config, threads=run.config.compute.threads or num_cores())
            store_probe(rows, encoder, run.float32_encoder, stage)
        probe = load_probe(stage)
        assert probe is not None
    run.facts["probe"] = {
        "dim": probe.vectors_PD.shape[1],
        "max_error": probe.max_error(anchors),
        "band_changed_share": probe.band_changed_share(anchors, run.config.mining.tails),
    }
    return probe


def _forecast(run: Run, corpus: Corpus, probe: Probe, anchors: Anchors, wanted: dict[tuple[str, str], int]) -> None:
    """Say before the corpus is encoded which bands of sigma cannot be filled from it."""
    band_of = kinds(run.config.mining) if run.config.mining.strategy in SIGMA_BANDED else {}
    of_bands = {(name, band): count for (name, kind), count in wanted.items() if (band := band_of.get(kind))}
    forecasts = distributions.forecast(probe.distributions(anchors), of_bands, corpus.num_rows, run.config.mining.tails)
    run.facts["forecast"] = [forecast.as_dict() for forecast in forecasts]
    run.on_forecast(forecasts)


def _encode(
    run: Run, files: Embeddings | Similarities, scoring: tuple[Similarities, NDArray[np.float32]] | None
) -> None:
    """Encode the shards that are missing among the files, which are embeddings where these are kept."""
    todo = files.missing()
    if not todo:
        return
    embeddings = files if isinstance(files, Embeddings) else None
    rows = sum(shard.num_rows for shard in todo)
    with run.timed("embed"), run.show("embed", rows) as advance:
        precision = run.settings["encoder.precision"]
        load = encoder_loader(run.encoder_config, precision=precision, threads=run.threads)
        work = encode_corpus(
            load, files.corpus, run.executor, embeddings=embeddings, scoring=scoring, on_rows=advance,
            measure_peak=rows >= MIN_ROWS_FOR_PEAK,
        )  # fmt: skip
    run.work += work
    run.facts["throughput"] = run.work.describe(run.config.compute, run.threads)
    run.facts["tweets_per_second"] = run.facts["throughput"]["tweets_per_second"]


def _sum_up(run: Run, files: Embeddings | Similarities) -> None:
    """Say what encoding gave, from the manifests of the shards."""
    num_quarantined = write_quarantine(files, run.workdir.quarantine)
    if num_quarantined:
        run.warn(f"{num_quarantined} rows could not be encoded and are left out; see {run.workdir.quarantine}")
    every = [files.facts(shard) or {} for shard in files.corpus.shards]
    totals: dict[str, Any] = {key: sum(facts[key] for facts in every) for key in ("distinct", "tokens", "cut")}
    totals |= {"rows": files.corpus.num_rows, "quarantined": num_quarantined}
    totals |= {key: ", ".join(sorted({facts[key] for facts in every})) for key in ("precision", "device")}
    totals["engine"] = ", ".join(sorted({facts.get("engine", "torch") for facts in every}))
    totals["max_length"] = max(facts["max_length"] for facts in every)
    run.facts["encoded"] = totals
    if totals["cut"]:
        share = totals["cut"] / max(1, totals["distinct"])
        logger.warning(
            "%s tweets (%.2f %%) are longer than the encoder reads and were cut", f"{totals['cut']:,}", 100 * share
        )


def _mine(run: Run, corpora: Sequence[ScoredCorpus], positives: Positives, test: Positives | None) -> Mined:
    """Choose the negatives."""
    config = run.config
    scored: list[Scored] = []
    if config.mining.strategy == "model":
        with run.show("score", config.mining.pool) as advance:
            scored = scores.score_candidates(config, corpora[0], run.executor, on_rows=advance)
    return mine(
        config, corpora, positives, test, decisions=_decisions(run), scored=scored, threads=run.threads,
        executor=run.executor,
    )  # fmt: skip


def _write_mined(run: Run, stage: Stage, mined: Mined, read: dict[str, int]) -> None:
    """Write distributions.json, negatives.parquet, review.parquet and what the report needs."""
    write_json(run.workdir.distributions, mined.distributions)
    for path, table in (
        (stage.file("histograms.parquet"), distributions.histogram_table(mined.measured)),
        (run.workdir.review, mined.negatives.review),
        (run.workdir.negatives, mined.negatives.table),
    ):
        with write_whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    summary = {
        "read": read,
        "yield": mined.yields,
        "passed_over": mined.negatives.passed_over,
        "verified": mined.negatives.num_candidates,
        "guard": mined.guard,
        "review": mined.negatives.review.num_rows,
        "warnings": mined.warnings,
    }
    write_json(stage.file("mined.json"), summary)
    stage.commit(run.workdir.negatives, rows=mined.negatives.table.num_rows)


def _open_sets(run: Run, mined: Stage, positives: Positives, test: Positives | None) -> Stage:
    settings = {f"sets.{key}": value for key, value in run.config.sets.model_dump().items()}
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
            texts = texts_of(positives, test)
            # Some of the sample will be copies of what is already used.
            decisions = _decisions(run)
            places = sample_places(
                corpus, size + len(texts) + table.num_rows + len(decisions) + size // 4,
                seed=run.config.seed, purpose="random", executor=run.executor,
            )  # fmt: skip
            sample = fetch_rows(corpus, places, columns_of(run.config.guard))
            is_near = near_event(run.config.guard, [group for group in (positives, test) if group])
            sample = [row for row in sample if not any(is_near(row, name) for name in positives.class_names)]
            reviewed = {key for key, decision in decisions.items() if decision == Decision.yes}
            usable = sets.usable_random(sample, table, texts, reviewed)[:size]
            made = sets.make_sets(
                positives, test, table, usable, kinds=list(kinds(run.config.mining)), ratio=ratio,
                mix=run.config.sets.mix,
            )  # fmt: skip
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
    if encoded:
        counts["rows"] = corpus.num_rows
    encoder = {
        "model": run.config.encoder.model,
        "dim": probe.get("dim"),
        "precision": encoded.get("precision"),
        "device": encoded.get("device"),
        "engine": encoded.get("engine"),
        "engines_measured": (run.engine_choice and run.engine_choice.measured) or None,
        "max_length": encoded.get("max_length"),
        "threads": run.threads,
        "max_error": probe.get("max_error"),
        "band_changed_share": probe.get("band_changed_share"),
    }
    manifest = {
        "scalemine": importlib.metadata.version("scalemine"),
        "config": redact(run.config.model_dump(mode="json")),
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
        "throughput": run.facts.get("throughput"),
        "cascade": run.facts.get("cascade"),
        "read": mined.get("read"),
        "forecast": run.facts.get("forecast"),
        "yield": mined.get("yield"),
        "rejected_candidates": mined.get("passed_over"),
        "verified_candidates": mined.get("verified"),
        "guard": mined.get("guard"),
        "to_review": mined.get("review"),
        "sets": run.facts.get("sets"),
        # Those of mining, where this call did not mine.
        "warnings": redact(run.warnings if "mined" in run.facts else before.get("warnings", run.warnings)),
    }
    # What this call had no part in stays as the call before left it.
    known = before | _known(manifest) | {"encoder": before.get("encoder", {}) | _known(encoder)}
    if "mined" in run.facts:  # what was mined now had no part in what it does not name
        known |= {key: manifest[key] for key in ("cascade", "guard")}
    write_json(path, known)


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
