"""Training runs: data to folds, folds to models, models to results.

A run is one model trained on one set, whole or without one fold. It owns a folder ``runs/NAME`` with the checkpoint
while it is under way, then ``model/`` (see ``tagger``) and ``result.json``. Calling it again does what is missing.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray

from scalemine.config import Config, InputError, RunError, TrainConfig
from scalemine.executor import ShowProgress, Stopped, StopSignals, num_cores, silent
from scalemine.models import device_name, find_model, model_fingerprint, precision_name
from scalemine.store import Stage, Workdir, file_sha256, fingerprint, open_stage, read_json, write_json, write_whole
from scalemine.training.folds import (
    Leak,
    hold_out,
    join_groups,
    leak_report,
    make_folds,
    near_duplicate_groups,
    text_leaks,
)
from scalemine.training.loop import BEST, STATE, Fit, Plan, Progress, fit
from scalemine.training.tagging.datasets import Dataset, Document, check_types, read_dataset
from scalemine.training.tagging.encoders import load_words
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.labels import tag_names
from scalemine.training.tagging.metrics import surfaces
from scalemine.training.tagging.network import Shape, TaggerNetwork, TransformerWords
from scalemine.training.tagging.scoring import score_documents
from scalemine.training.tagging.tagger import CONFIG, FORMAT, load_tagger, write_tagger
from scalemine.training.tagging.task import TaggerTask, fill_up, micro_f1, predict_tags

logger = logging.getLogger(__name__)

NEAR_DUPLICATES = "near_duplicates"
# How long processes may take to end by themselves when one of them has failed.
GRACE_SECONDS = 2.0
DEV, HELD_OUT, WHOLE = "dev", "held_out", "whole"
# What passes between a run with several processes and who started it; hidden, as it is no result.
SPEC, FAILURE, STOPPED, LOCK = ".spec.json", ".failure.json", ".stopped", ".run.lock"
# What changes a run's place or pace, and not its weights; the encoder is named by what it comes to.
_INCIDENTAL = frozenset(
    {"name", "processes", "micro_batch", "device", "checkpoint_steps", "bootstrap", "test_sets", "test_uris"}
    | {"unseen_types", "encoder", "revision"}
)
# Columns that say what tweets have in common, carried along where a file has them.
_SHARED = ("event", "user")


@dataclass(frozen=True)
class Data:
    """What a configuration trains on and is tested on."""

    train: Dataset
    dev: Dataset | None
    tests: Mapping[str, Dataset]


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of the training set a run trains on, chooses the epoch on, and is tested on.

    Args:
        fold: Which fold is held out, from 0; None where there are no folds.
        train: Rows to train on.
        dev: Rows that choose the epoch; none where a file or the held-out fold does.
        held_out: Rows of the held-out fold.
    """

    fold: int | None
    train: NDArray[np.int64]
    dev: NDArray[np.int64]
    held_out: NDArray[np.int64]


def read_data(config: Config) -> Data:
    """Read the files that a configuration trains on, chooses the epoch on, and is tested on.

    Raises:
        InputError: One is not there, cannot be read, or has spans of types that the training set has none of.
    """
    train, sets = config.train, Workdir(config.workdir.absolute()).sets
    needs = [name for name in train.group_by if name != NEAR_DUPLICATES]
    keep = [*needs, *_SHARED]
    uri = train.train_uri or str(sets / f"train_{train.train_set}.parquet")
    if train.train_uri is None and not Path(uri).exists():
        there = ", ".join(sorted(path.stem.removeprefix("train_") for path in sets.glob("train_*.parquet")))
        raise InputError(
            f"train.train_set: no set {train.train_set!r} in {sets} (there are: {there or 'none'}); scalemine mine "
            f"makes them, or give train.train_uri"
        )
    tests = dict(train.test_uris)
    if train.test_sets or (not tests and train.train_uri is None):
        names = train.test_sets or sorted(path.stem.removeprefix("test_") for path in sets.glob("test_*.parquet"))
        tests = {f"test_{name}": str(sets / f"test_{name}.parquet") for name in names}
    data = Data(
        read_dataset(uri, needs=needs, keep=keep, key="train.train_uri" if train.train_uri else "train.train_set"),
        read_dataset(train.dev_uri, keep=keep, key="train.dev_uri") if train.dev_uri else None,
        {name: read_dataset(uri, keep=keep, key=f"train.test_uris.{name}") for name, uri in tests.items()},
    )
    if not data.train.types:
        raise InputError(f"{uri}: no tweet bears a span, so there is nothing to learn")
    if train.unseen_types == "refuse":
        check_types(data.train, [*([data.dev] if data.dev else []), *data.tests.values()])
    return data


def plan_splits(config: Config, train: Dataset) -> list[Split]:
    """Return the split of each fold, or the one split where there are no folds; the seed of the folds alone decides.

    Positives are dealt first, by themselves: they lie in the same folds whatever negatives there are.

    Raises:
        InputError: There are too few groups of tweets for the folds or the dev part, or one of them bears no span.
    """
    options, documents = config.train, train.documents
    dealer = _Dealer(config, documents)
    every = np.arange(len(documents))
    parts: list[tuple[int | None, NDArray[np.int64], NDArray[np.int64]]] = [(None, every, every[:0])]
    if options.folds:
        fold_N = dealer.deal(every, _in_folds(options), "train.folds")
        parts = [(fold, every[fold_N != fold], every[fold_N == fold]) for fold in range(options.folds)]
    splits = []
    for fold, rest, held_out in parts:
        is_dev = np.zeros(len(rest), np.bool_)
        if options.stop_on == "dev" and options.dev_uri is None:
            is_dev = dealer.deal(rest, _in_dev(options), "train.dev_share") == 1
        splits.append(Split(fold, rest[~is_dev], rest[is_dev], held_out))
    for split in splits:
        chooses = split.held_out if options.stop_on == "test" else split.dev
        for what, rows in (("to train on", split.train), ("to choose the epoch on", chooses)):
            if len(rows) and not any(documents[row].types for row in rows):
                raise InputError(
                    f"train.folds: {train.uri}, fold {split.fold}: no tweet {what} bears a span; take another "
                    f"train.dev_share, train.fold_seed or number of folds"
                )
    return splits


Deal = Callable[..., NDArray[np.int64]]


def _in_folds(options: TrainConfig) -> Deal:
    return lambda rows, **how: make_folds(rows, options.folds, seed=options.fold_seed, **how)


def _in_dev(options: TrainConfig) -> Deal:
    return lambda rows, **how: hold_out(rows, options.dev_share, seed=options.fold_seed, **how).astype(np.int64)


class _Dealer:
    """Deals tweets out to parts: positives first, then each negative to its near copies or wherever it is wanted."""

    def __init__(self, config: Config, documents: Sequence[Document]) -> None:
        self.config, self.documents = config, documents
        self.strata = [_strata(document) for document in documents]
        self.keys = _distinct([document.id for document in documents])
        self.is_negative_N = np.array([document.negative_kind is not None for document in documents])
        positives = np.flatnonzero(~self.is_negative_N)
        # Those of positives must not hang on the negatives, which may tie two of them together.
        self.group_of_positive = dict(zip(positives.tolist(), self._groups(positives), strict=True))
        self.group_N = np.array(self._groups(np.arange(len(documents))))

    def _groups(self, rows: NDArray[np.int64]) -> list[int]:
        members, groupings = [self.documents[row] for row in rows], []
        for name in self.config.train.group_by:
            if name == NEAR_DUPLICATES:
                texts = [document.text for document in members]
                groupings.append(near_duplicate_groups(texts, threshold=self.config.train.near_duplicate))
            else:
                groupings.append([document.columns[name] for document in members])
        return join_groups(*groupings) if groupings else list(range(len(members)))

    def deal(self, rows: NDArray[np.int64], deal: Deal, key: str) -> NDArray[np.int64]:
        """Return the part of each of some rows."""
        positives, negatives = rows[~self.is_negative_N[rows]], rows[self.is_negative_N[rows]]
        groups = [self.group_of_positive[row] for row in positives.tolist()]
        try:
            part_of = self._deal(positives, groups, deal)
        except ValueError as error:
            raise InputError(f"{key}: {error}; take fewer folds or another share, or group by less") from None
        of_group = {int(self.group_N[row]): part for row, part in part_of.items()}
        near = of_group.keys() & set(self.group_N[negatives].tolist())
        part_of |= {row: of_group[group] for row in negatives.tolist() if (group := int(self.group_N[row])) in near}
        alone = np.array([row for row in negatives.tolist() if row not in part_of], np.int64)
        try:
            part_of |= self._deal(alone, self.group_N[alone].tolist(), deal)
        except ValueError:  # too few to be shared out
            part_of |= dict.fromkeys(alone.tolist(), 0)
        return np.array([part_of[row] for row in rows.tolist()])

    def _deal(self, rows: NDArray[np.int64], groups: list[int], deal: Deal) -> dict[int, int]:
        if not len(rows):
            return {}
        strata = [self.strata[row] for row in rows] if self.config.train.stratify else None
        parts = deal(len(rows), strata=strata, groups=groups, keys=[self.keys[row] for row in rows])
        return dict(zip(rows.tolist(), parts.tolist(), strict=True))


def _strata(document: Document) -> set[str]:
    labels = {f"span:{name}" for name in document.types}
    labels |= {f"class:{document.class_name}"} if document.class_name and document.negative_kind is None else set()
    return labels | ({f"negative:{document.negative_kind}"} if document.negative_kind else set())


def _distinct(ids: Sequence[str]) -> list[str]:
    """Return identifiers, those that come again with a number."""
    seen: dict[str, int] = {}
    keys = []
    for id_ in ids:
        seen[id_] = seen.get(id_, 0) + 1
        keys.append(id_ if seen[id_] == 1 else f"{id_}#{seen[id_]}")
    return keys


def run_training(
    config: Config, *, signals: StopSignals | None = None, show: ShowProgress = silent, redo: bool = False
) -> list[dict[str, Any]]:
    """Train and test what a configuration says, every fold; return the results, finished before or now.

    Raises:
        InputError: The data or the configuration is wrong.
        RunError: A run failed.
        Stopped: A signal asked for it; what is finished is kept, and the run under way goes on from its checkpoint.
    """
    data = read_data(config)
    splits = plan_splits(config, data.train)
    _describe_data(data)
    results = []
    for split in splits:
        if signals is not None:
            signals.raise_if_requested()
        results.append(_run(config, data, split, signals, show, redo))
        write_results(Workdir(config.workdir.absolute()))
    return results


def describe_plan(config: Config) -> list[str]:
    """Return what training would do, line by line; nothing is written."""
    data = read_data(config)
    splits = plan_splits(config, data.train)
    lines = [f"{key}: {value}" for key, value in run_settings(config).items()]
    for split in splits:
        stage = _open_run(config, data, split, make=False)
        folder = stage.folder
        state = (
            "finished" if (folder / "result.json").exists() else "to go on" if (folder / STATE).exists() else "to do"
        )
        dev = f"{len(split.dev)} of dev" if len(split.dev) else "dev from elsewhere"
        lines.append(f"{folder.name}: {len(split.train)} tweets, {dev}, {len(split.held_out)} held out: {state}")
    return [*lines, *(f"{name}: {len(dataset.documents)} tweets" for name, dataset in data.tests.items())]


def _describe_data(data: Data) -> None:
    for name, dataset in {"train": data.train, **({"dev": data.dev} if data.dev else {}), **data.tests}.items():
        notes = [f"{dataset.num_inexact} spans widened to whole words"] if dataset.num_inexact else []
        notes += [f"{dataset.num_empty} tweets without a word left out"] if dataset.num_empty else []
        logger.info("%s: %s tweets%s", name, f"{len(dataset.documents):,}", "".join(f"; {note}" for note in notes))


def run_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide a run's weights, by dotted key."""
    settings = {f"train.{key}": value for key, value in config.train.model_dump().items() if key not in _INCIDENTAL}
    if config.train.vectors is None:
        settings["train.encoder"], settings["train.revision"] = _encoder_name(config)
    return settings | {"seed": config.seed}


def _encoder_name(config: Config) -> tuple[str, str | None]:
    """Return the name and the revision of the encoder."""
    if config.train.encoder:
        return config.train.encoder, config.train.revision
    return config.encoder.model, config.encoder.revision


def _open_run(config: Config, data: Data, split: Split, *, redo: bool = False, make: bool = True) -> Stage:
    """Open a run's folder, for these settings, data, and files of the encoder."""
    if config.train.vectors:
        words = file_sha256(Path(config.train.vectors)) if Path(config.train.vectors).is_file() else None
    else:
        words = model_fingerprint(find_model(*_encoder_name(config), key="train.encoder"))
    inputs = {
        "train": data.train.sha256, "dev": data.dev.sha256 if data.dev else None, "fold": split.fold, "words": words,
    }  # fmt: skip
    folder = Workdir(config.workdir.absolute()).runs / run_name(config, split)
    return open_stage(folder, version=2, settings=run_settings(config), inputs=inputs, redo=redo, make=make)


def run_name(config: Config, split: Split) -> str:
    """Return the name of a run's folder."""
    options = config.train
    source = Path(options.train_uri).stem if options.train_uri else options.train_set
    name = options.name or f"{options.model}-{source}-{fingerprint(run_settings(config))[:6]}"
    return name if split.fold is None else f"{name}-fold{split.fold}"


def _run(
    config: Config, data: Data, split: Split, signals: StopSignals | None, show: ShowProgress, redo: bool
) -> dict[str, Any]:
    """Do one run, unless it is done."""
    stage = _open_run(config, data, split, redo=redo)
    result = read_result(stage.folder)
    if result is not None and result["tests"] == _test_hashes(data):
        logger.info("%s: finished before", stage.folder.name)
        _remove_checkpoint(stage.folder)
        return result
    if config.train.processes == 1:
        train_split(config, data, split, stage.folder, signals=signals, show=show)
    else:
        _launch(config, split, stage, signals)
    result = read_result(stage.folder)
    assert result is not None
    return result


def _launch(config: Config, split: Split, stage: Stage, signals: StopSignals | None) -> None:
    """Do one run with several processes on this machine; a request to stop is passed on to them once."""
    spec, failure, stopped = (stage.file(name) for name in (SPEC, FAILURE, STOPPED))
    for left in (failure, stopped):
        left.unlink(missing_ok=True)
    write_json(spec, {"config": config.model_dump(mode="json"), "fold": split.fold, "folder": str(stage.folder)})
    workers = _start_workers(config, spec)
    told = False
    try:
        while any(worker.poll() is None for worker in workers):
            if signals is not None and signals.requested and not told:
                told = True
                for worker in workers:
                    worker.terminate()
            if any(worker.poll() for worker in workers):  # one failed, so the others would wait for it for ever
                time.sleep(GRACE_SECONDS)
                break
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    spec.unlink(missing_ok=True)
    if stopped.exists():
        stopped.unlink()
        raise Stopped
    if failure.exists():
        said = read_json(failure)
        failure.unlink()
        raise (InputError if said["is_input"] else RunError)(said["message"])
    if codes := [worker.returncode for worker in workers if worker.returncode]:
        raise RunError(f"a process of {stage.folder.name} ended with code {codes[0]}; see what it said above")


def _start_workers(config: Config, spec: Path) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run, each in a session of its own: Ctrl-C reaches them through this process, once."""
    world = config.train.processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.compute.threads or max(1, num_cores() // world)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    command = [sys.executable, "-m", "scalemine.training.worker", str(spec)]
    return [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True
        )
        for rank in range(world)
    ]


def train_split(
    config: Config,
    data: Data,
    split: Split,
    folder: Path,
    *,
    signals: StopSignals | None = None,
    show: ShowProgress = silent,
) -> None:
    """Train and test one split in this process, one of ``train.processes``; write model/ and result.json."""
    trainer = _Trainer(config, data, split, folder)
    leaks = trainer.leaks() if trainer.accelerator.is_main_process else {}
    if (folder / "model" / CONFIG).exists():
        trainer.load()
        facts = read_json(folder / "model" / CONFIG)["training"]
    else:
        facts = trainer.describe_fit(trainer.fit(signals, show))
    metrics = trainer.evaluate()
    trainer.write(facts, metrics, leaks)
    trainer.accelerator.end_training()


class _Trainer:
    """One run: its data as a network reads them, its network, and what comes out."""

    def __init__(self, config: Config, data: Data, split: Split, folder: Path) -> None:
        self.config, self.data, self.split, self.folder = config, data, split, folder
        options = config.train
        torch.set_num_threads(config.compute.threads or max(1, num_cores() // options.processes))
        self.accelerator = _accelerator(config, folder)
        self.tags = tag_names(data.train.types)
        self.train = [data.train.documents[row] for row in split.train]
        self.rows = {"train": split.train, HELD_OUT: split.held_out, **({} if data.dev else {DEV: split.dev})}
        self.words = load_words(options, config.encoder, (document.words for document in self.train))
        self.sets = self._sets()
        self.cache = Workdir(config.workdir.absolute()).features
        self.uses_cache = options.freeze and isinstance(self.words.module, TransformerWords)
        if self.uses_cache:
            self.words.module.to(self.accelerator.device)
        shape = Shape(
            options.model, options.crf, options.hidden, options.kernel, options.dropout, self.words.module.dim
        )
        torch.manual_seed(config.seed)
        self.network = TaggerNetwork(shape, self.tags, None if self.uses_cache else self.words.module)
        self.shape = shape
        self._inputs: dict[str, Inputs] = {}

    def _sets(self) -> dict[str, list[Document]]:
        """Return what the model is scored on: what chose the epoch, the held-out fold, and the test sets."""
        documents, split = self.data.train.documents, self.split
        dev = list(self.data.dev.documents) if self.data.dev else [documents[row] for row in split.dev]
        sets = {DEV: dev, HELD_OUT: [documents[row] for row in split.held_out]}
        sets |= {name: list(dataset.documents) for name, dataset in self.data.tests.items()}
        return {name: members for name, members in sets.items() if members}

    @property
    def chooser(self) -> str:
        """The set that chooses the epoch."""
        return HELD_OUT if self.config.train.stop_on == "test" else DEV

    def read(self, name: str) -> Inputs:
        """Return what the network reads of a set; parts of the training file are read, and stored, as one."""
        if name in self.rows:
            return self._read(WHOLE, self.data.train.documents).select(self.rows[name].tolist())
        return self._read(name, self.sets[name])

    def _read(self, name: str, documents: Sequence[Document]) -> Inputs:
        if name not in self._inputs:
            texts = [document.words for document in documents]
            with self.accelerator.main_process_first():  # which fills the cache
                self._inputs[name] = (
                    self.words.read_cached(texts, self.cache) if self.uses_cache else self.words.read(texts)
                )
        return self._inputs[name]

    def fit(self, signals: StopSignals | None, show: ShowProgress) -> Fit:
        """Train."""
        options = self.config.train
        index = {tag: number for number, tag in enumerate(self.tags)}
        inputs = self.read("train")
        tags = [
            [index[tag] for tag in document.tags[:length]]
            for document, length in zip(self.train, inputs.num_words, strict=True)
        ]
        chosen_by = self.sets[self.chooser]
        if not any(document.types for document in chosen_by):
            raise InputError(f"train.dev_uri: {options.dev_uri}: no tweet bears a span, so it cannot choose an epoch")
        texts, gold = [document.words for document in chosen_by], [document.tags for document in chosen_by]
        task = TaggerTask(
            self.network, replace(inputs, tags=tags), [document.id for document in self.train],
            self.read(self.chooser), lambda predicted: micro_f1(gold, fill_up(predicted, texts)),
            lr=options.lr, head_lr=options.head_lr or options.lr, weight_decay=options.weight_decay,
            pad_id=self.words.pad_id,
        )  # fmt: skip
        plan = Plan(
            batch_size=options.batch_size, micro_batch=options.micro_batch, bucket_batches=options.bucket_batches,
            epochs=options.epochs, patience=options.patience, min_delta=options.min_delta, clip=options.clip,
            checkpoint_steps=options.checkpoint_steps, seed=self.config.seed,
        )  # fmt: skip
        label = "train" if self.split.fold is None else f"fold {self.split.fold + 1}/{options.folds}"
        with show(label, options.epochs * len(self.train)) as advance:
            return fit(
                task, plan, self.folder, accelerator=self.accelerator, signals=signals, on_step=advance,
                on_epoch=lambda progress: self._report_epoch(label, progress),
            )  # fmt: skip

    def _report_epoch(self, label: str, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            last, epochs = progress.history[-1], self.config.train.epochs
            logger.info(
                "%s: epoch %d/%d, loss %.4f, F1 on %s %.4f (best %.4f at %d), %.0f tweets/s, at most %.0f s left",
                label, last["epoch"], epochs, last["loss"], self.chooser, last["score"], progress.best,
                progress.best_epoch, len(self.train) / max(last["seconds"], 1e-9),
                (epochs - progress.epoch) * last["seconds"],
            )  # fmt: skip

    def describe_fit(self, found: Fit) -> dict[str, Any]:
        """Return what is to be said of a fit, in the card and in the results."""
        options = self.config.train
        chosen_on = {HELD_OUT: "the held-out fold (the published way)", DEV: "a dev part of the training folds"}
        return {
            "file": Path(self.data.train.uri).name,
            "sha256": self.data.train.sha256,
            "tweets": len(self.train),
            "cut": self._num_cut(),
            "seed": self.config.seed,
            "fold": self.split.fold,
            "epochs": len(found.history),
            "best_epoch": found.best_epoch,
            "chosen_on": Path(options.dev_uri).name if options.dev_uri else chosen_on[self.chooser],
            "history": found.history,
            "lr_check": found.lr_check,
            "seconds": found.seconds,
        }

    def load(self) -> None:
        """Take the weights of a model that was trained before."""
        tagger = load_tagger(self.folder, device=str(self.accelerator.device))
        self.network, self.words = tagger.network, tagger.words
        self.network.eval()

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and how much of it was not read."""
        options = self.config.train
        self.network.to(self.accelerator.device)
        known = surfaces([one.tags for one in self.train], [one.words for one in self.train])
        metrics: dict[str, Any] = {}
        for name, documents in self.sets.items():
            inputs = self.read(name)
            words = [document.words for document in documents]
            predicted = predict_tags(self.network, inputs, self.accelerator, self.words.pad_id)
            metrics[name] = score_documents(
                documents, fill_up(predicted, words), known_surfaces=known, num_bootstrap=options.bootstrap
            ) | {"num_cut": sum(read < len(all_) for read, all_ in zip(inputs.num_words, words, strict=True))}
        return metrics

    def leaks(self) -> dict[str, list[Leak]]:
        """Return what each set shares with the training tweets, and say it."""
        texts = [document.text for document in self.train]
        found = {}
        for name, documents in self.sets.items():
            leaks = text_leaks(texts, [one.text for one in documents], self.config.train.near_duplicate)
            both = [key for key in self.train[0].columns if key in documents[0].columns]
            leaks += leak_report(
                {key: [one.columns[key] for one in self.train] for key in both},
                {key: [one.columns[key] for one in documents] for key in both},
            )
            found[name] = leaks
            said = ", ".join(f"{leak.kind} in {leak.rows} tweets ({leak.share:.1%})" for leak in leaks if leak.rows)
            compared = ", ".join(["texts", *both])
            if said:
                logger.warning("%s shares with the training tweets: %s (compared: %s)", name, said, compared)
            else:
                logger.info("%s shares nothing with the training tweets (compared: %s)", name, compared)
        return found

    def write(self, facts: dict[str, Any], metrics: dict[str, Any], leaks: dict[str, list[Leak]]) -> None:
        """Write the model, then the result, then remove the checkpoint."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        brief = {
            name: {key: one[key] for key in ("f1", "precision", "recall", "num_gold", "num_tweets", "false_alarms")}
            for name, one in metrics.items()
        }
        described = self._describe_words()
        model = {
            "scalemine": "tagger",
            "format": FORMAT,
            "version": importlib.metadata.version("scalemine"),
            "tags": self.tags,
            "shape": asdict(self.shape),
            "word_source": described,
            "training": facts,
            "metrics": brief,
        }
        write_tagger(self.network, self.words, model, self.folder / "model")
        write_json(
            self.folder / "result.json",
            {
                "name": self.folder.name,
                "spec": run_settings(self.config),
                "fold": self.split.fold,
                "seed": self.config.seed,
                "train_set": self.config.train.train_uri or self.config.train.train_set,
                "model": self.config.train.model,
                "words": described["description"],
                "metrics": metrics,
                "tests": _test_hashes(self.data),
                "epochs": facts["epochs"],
                "best_epoch": facts["best_epoch"],
                "chosen_on": facts["chosen_on"],
                "history": facts["history"],
                "lr_check": facts["lr_check"],
                "seconds": facts["seconds"],
                "processes": self.accelerator.num_processes,
                "device": str(self.accelerator.device),
                "train_tweets": facts["tweets"],
                "train_cut": facts["cut"],
                "leaks": {name: [asdict(leak) for leak in of_set] for name, of_set in leaks.items()},
                "versions": {"python": platform.python_version()}
                | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
            },
        )
        _remove_checkpoint(self.folder)
        self.accelerator.wait_for_everyone()

    def _num_cut(self) -> int:
        inputs = self.read("train")
        return sum(read < len(one.words) for read, one in zip(inputs.num_words, self.train, strict=True))

    def _describe_words(self) -> dict[str, Any]:
        """Return how the words are read, for ``config.json``."""
        options = self.config.train
        if options.vectors:
            how = "frozen" if options.freeze else "tuned"
            return {"kind": "static", "description": f"static vectors {Path(options.vectors).name}, {how}"}
        name, revision = _encoder_name(self.config)
        is_folder = Path(name).expanduser().is_dir()
        # A frozen encoder that others can get is named; whatever else is copied.
        is_named = options.freeze and not is_folder
        called = Path(name).name if is_folder else name
        return {
            "kind": "transformer",
            "name": name if is_named else None,
            "revision": revision if is_named else None,
            "fingerprint": self.words.settings["train.weights"],
            "pooling": options.pooling,
            "normaliser": options.normaliser,
            "max_length": options.max_length,
            "precision": options.precision,
            "frozen": options.freeze,
            "description": f"{called}, {'frozen' if options.freeze else 'fine-tuned'}",
        }


def _accelerator(config: Config, folder: Path) -> Accelerator:
    """Return the processes of a run."""
    options = config.train
    cpu = device_name(options.device, key="train.device") == "cpu"
    # Only float16 wants its gradients scaled; bfloat16 is the encoder's own affair.
    scaled = not cpu and precision_name(options.precision, "cuda") == "float16"
    tracker = None if config.tracking == "none" else config.tracking
    if tracker and tracker not in {str(one.value) for one in get_available_trackers()}:
        raise InputError(f"tracking: {tracker} is not installed here; pip install {tracker}, or tracking: none")
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="fp16" if scaled else "no", log_with=tracker, project_dir=str(folder),
        # The others wait while one process fills the cache.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )  # fmt: skip
    if accelerator.num_processes != options.processes:
        raise RunError(
            f"train.processes: {options.processes} wanted, but {accelerator.num_processes} are running; let scalemine "
            f"train start them itself"
        )
    if tracker:
        accelerator.init_trackers(folder.name, config={key: str(value) for key, value in run_settings(config).items()})
    return accelerator


def _test_hashes(data: Data) -> dict[str, str]:
    return {name: dataset.sha256 for name, dataset in data.tests.items()}


def _remove_checkpoint(folder: Path) -> None:
    for leftover in (STATE, BEST.format("*"), "checkpoint-*.safetensors"):
        for path in folder.glob(leftover):
            path.unlink()


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a run, or None where it is not finished."""
    path = folder / "result.json"
    return read_json(path) if path.exists() else None


def write_results(workdir: Workdir) -> pa.Table:
    """Write results.parquet: one row per run, test set and metric, of all finished runs."""
    rows = []
    for folder in sorted(path.parent for path in workdir.runs.glob("*/result.json")):
        result = read_json(folder / "result.json")
        for name, metrics in result["metrics"].items():
            for metric, value in _flat(metrics):
                rows.append(
                    {
                        "run": result["name"],
                        "fold": result["fold"],
                        "seed": result["seed"],
                        "train_set": result["train_set"],
                        "model": result["model"],
                        "words": result["words"],
                        "chosen_on": result["chosen_on"],
                        "test_set": name,
                        "metric": metric,
                        "value": value,
                    }
                )
    table = pa.Table.from_pylist(rows, schema=RESULTS)
    with write_whole(workdir.results) as path:
        pq.write_table(table, path, compression="zstd")
    return table


RESULTS = pa.schema(
    [
        ("run", pa.string()),
        ("fold", pa.int32()),
        ("seed", pa.int64()),
        ("train_set", pa.string()),
        ("model", pa.string()),
        ("words", pa.string()),
        ("chosen_on", pa.string()),
        ("test_set", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of nested metrics by its dotted name."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):  # an interval
            yield from _flat(dict(zip(("low", "high"), value, strict=True)), f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
