"""Training runs: data to folds, folds to models, models to results.

A run is one model trained on one set, whole or without one fold. It owns a folder ``runs/NAME`` with the checkpoint
while it is under way, then ``model/`` and ``result.json``. Calling it again does what is missing. What differs between
taggers, classifiers and classical baselines is their family's: how data is read, and what trains on it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.config import Config
from scalemine.executor import ShowProgress, StopRequest, StopSignals, silent
from scalemine.store import (
    RESULT,
    STATE,
    Stage,
    Workdir,
    fingerprint,
    open_stage,
    read_json,
    read_result,
    remove,
    write_json,
    write_whole,
)
from scalemine.training.family import SHARED, Data, Family, Trainer, run_settings
from scalemine.training.folds import Leak, leak_report, text_leaks
from scalemine.training.loop import BEST
from scalemine.training.processes import launch, threads_of_process, wait_for_run
from scalemine.training.splits import Split, plan_splits

logger = logging.getLogger(__name__)


# Keys of train that change neither what is read nor how it is dealt out.
_OF_FITTING = frozenset(
    {
        "name",
        "crf",
        "dimensions",
        "hidden",
        "kernel",
        "dropout",
        "lr",
        "head_lr",
        "weight_decay",
        "batch_size",
        "micro_batch",
    }
    | {"bucket_batches", "epochs", "patience", "min_delta", "schedule", "warmup", "clip", "gradient_checkpointing"}
    | {"lora", "processes", "checkpoint_steps", "bootstrap"}
)
# More tweets than this are not compared for near-duplicates, which would take many minutes and much memory.
_MOST_COMPARED = 500_000


def family_of(config: Config) -> Family:
    """Return what a configuration trains."""
    # A family's libraries take seconds to load, so only the one that is needed is.
    if config.train.model == "classifier":
        from scalemine.training.multilabel.trainer import ClassifierFamily

        return ClassifierFamily()
    if config.train.is_word_network:
        from scalemine.training.multilabel.word_trainer import WordNetworkFamily

        return WordNetworkFamily()
    if config.train.is_baseline:
        from scalemine.training.multilabel.baseline_trainer import BaselineFamily

        return BaselineFamily()
    if config.is_ensemble:
        from scalemine.training.ensemble.trainer import EnsembleFamily

        return EnsembleFamily()
    from scalemine.training.tagging.trainer import TaggerFamily

    return TaggerFamily()


def learns_spans(config: Config) -> bool:
    """Return whether what a configuration trains gives spans; else it gives labels."""
    if not config.is_ensemble:
        return config.train.is_tagger
    from scalemine.training.ensemble.trainer import gives_spans

    return gives_spans(config)


def run_training(
    config: Config, *, signals: StopSignals | None = None, show: ShowProgress = silent, redo: bool = False
) -> list[dict[str, Any]]:
    """Train and test what a configuration says, every fold; return the results, finished before or now.

    Raises:
        InputError: The data or the configuration is wrong.
        RunError: A run failed.
        Stopped: A signal asked for it; what is finished is kept, and the run under way goes on from its checkpoint.
    """
    prepared = prepare(config, signals=signals, show=show)
    for line in prepared.family.describe(prepared.data):
        logger.info("%s", line)
    results = []
    for split in prepared.splits:
        if signals is not None:
            signals.raise_if_requested()
        results.append(run_split(config, prepared, split, signals=signals, show=show, redo=redo))
        write_results(Workdir(config.workdir.absolute()))
    return results


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the runs of a configuration share: its data, read and dealt out.

    Args:
        family: The kind of model.
        data: The files.
        splits: One per fold, or one.
        leaks: What was found of them so far, by fold.
    """

    family: Family
    data: Data[Any]
    splits: Sequence[Split]
    leaks: dict[int | None, dict[str, list[Leak]]] = field(default_factory=dict)

    def split(self, fold: int | None) -> Split:
        """Return the split of a fold."""
        [found] = [split for split in self.splits if split.fold == fold]
        return found


def prepare(
    config: Config, *, signals: StopSignals | None = None, show: ShowProgress = silent, scratch: Path | None = None
) -> Prepared:
    """Read the data of a configuration and deal it out.

    Args:
        config: The configuration.
        signals: A request to stop.
        show: Shows progress.
        scratch: Where to write what is made of the data, instead of the workdir.

    Raises:
        InputError: The data or the configuration is wrong.
        Stopped: A signal asked for it.
    """
    family = family_of(config)
    data = family.read(config, signals=signals, show=show, scratch=scratch)
    return Prepared(family, data, splits_of(config, family, data))


def preparation_key(config: Config) -> str:
    """Return a hash that is the same for configurations for which ``prepare`` gives the same."""
    values = config.model_dump(mode="json")
    return fingerprint(
        {
            "workdir": values["workdir"],
            "encoder": values["encoder"],
            "labels": values["labels"],
            "embeddings": [one.reads_embeddings for one in config.trained],
            "ensemble": values["ensemble"] if config.is_ensemble else None,
            "train": {key: value for key, value in values["train"].items() if key not in _OF_FITTING},
        }
    )


def splits_of(config: Config, family: Family, data: Data[Any]) -> list[Split]:
    """Return the splits of a training set, each checked for what it has to hold.

    Raises:
        InputError: A part would be empty, or hold nothing that can be learnt or judged.
    """
    splits = plan_splits(config.train, data.train.num_rows, partial(family.rows, config, data))
    for split in splits:
        family.check_split(config, data, split)
    return splits


def describe_plan(config: Config) -> list[str]:
    """Return what training would do, line by line; no run is begun."""
    with tempfile.TemporaryDirectory(prefix="scalemine-") as scratch:
        prepared = prepare(config, scratch=Path(scratch))
        lines = [f"{key}: {value}" for key, value in run_settings(config, prepared.family).items()]
        for split in prepared.splits:
            run = run_state(config, prepared, split)
            dev = f"{len(split.dev)} of dev" if len(split.dev) else "dev from elsewhere"
            lines.append(f"{run.name}: {len(split.train)} tweets, {dev}, {len(split.held_out)} held out: {run.state}")
        return [*lines, *(f"{name}: {dataset.num_rows} tweets" for name, dataset in prepared.data.tests.items())]


RunState = Literal["finished", "trained, to be scored again", "to go on", "to do"]


@dataclass(frozen=True)
class KnownRun:
    """A run, before it is begun or after.

    Args:
        name: Of its folder.
        state: How far it has come.
        stage: Hash of the settings and data that decide its model.
        scoring: Hash of what decides its scores beside that.
    """

    name: str
    state: RunState
    stage: str
    scoring: str


def run_state(config: Config, prepared: Prepared, split: Split, *, redo: bool = False) -> KnownRun:
    """Return what a run is called, and how far it has come; nothing is written.

    Args:
        config: The configuration.
        prepared: Its data.
        split: Of this run.
        redo: What other data left in the folder is to be discarded.

    Raises:
        InputError: The folder was made with other data, and that is not to be discarded.
    """
    stage, scoring = _open_run(config, prepared, split, redo=redo, make=False), _scoring(config, prepared.data)
    result = read_result(stage.folder) if stage.is_ours() else None
    state: RunState = "to go on" if stage.is_ours() and (stage.folder / STATE).exists() else "to do"
    if result is not None:
        state = "finished" if result["scoring"] == scoring else "trained, to be scored again"
    return KnownRun(stage.folder.name, state, stage.fingerprint, fingerprint(scoring))


def _open_run(config: Config, prepared: Prepared, split: Split, *, redo: bool = False, make: bool = True) -> Stage:
    """Open a run's folder, for these settings, data, and files of the encoder."""
    family, data = prepared.family, prepared.data
    inputs = {
        "train": data.train.sha256,
        "dev": data.dev.sha256 if data.dev else None,
        "fold": split.fold,
        "words": family.source(config),
    }
    settings = run_settings(config, family)
    folder = Workdir(config.workdir.absolute()).runs / run_name(config, settings, split)
    return open_stage(folder, version=2, settings=settings, inputs=inputs, redo=redo, make=make)


def run_name(config: Config, settings: Mapping[str, Any], split: Split) -> str:
    """Return the name of a run's folder."""
    options = config.train
    source = Path(options.train_uri).stem if options.train_uri else options.train_set
    name = options.name or f"{options.model}-{source}-{fingerprint(settings)[:10]}"
    return name if split.fold is None else f"{name}-fold{split.fold}"


def run_split(
    config: Config,
    prepared: Prepared,
    split: Split,
    *,
    signals: StopRequest | None = None,
    show: ShowProgress = silent,
    redo: bool = False,
) -> dict[str, Any]:
    """Do one run, unless it is done, and return its result.

    Raises:
        InputError: The data or the configuration is wrong.
        RunError: It failed.
        Stopped: A signal asked for it; it goes on from its checkpoint.
    """
    data = prepared.data
    stage = _open_run(config, prepared, split, redo=redo)
    result = read_result(stage.folder)
    if result is not None and result["scoring"] != _scoring(config, data):
        logger.info("%s: trained before; scored again, as what it is scored on has changed", stage.folder.name)
    if result is not None and result["scoring"] == _scoring(config, data):
        logger.info("%s: finished before", stage.folder.name)
        _remove_checkpoint(stage.folder)
        return result
    if config.is_ensemble:
        _run_members(config, prepared, split, signals=signals, show=show, redo=redo)
    if config.train.processes == 1:
        train_split(config, prepared, split, stage.folder, signals=signals, show=show)
    else:
        launch(config, split.fold, stage, signals)
    result = read_result(stage.folder)
    assert result is not None
    return result


def _run_members(
    config: Config, prepared: Prepared, split: Split, *, signals: StopRequest | None, show: ShowProgress, redo: bool
) -> None:
    """Do the runs of an ensemble's members, unless they are done; another process may be at one of them."""
    from scalemine.training.ensemble.trainer import EnsembleFamily

    assert isinstance(prepared.family, EnsembleFamily)
    for name, member in prepared.family.members.items():
        # Of a sweep another process may have read the ensemble's data for a trial with other settings.
        of_member = config.members()[name]
        one = Prepared(member.family, member.data, [split], prepared.leaks)
        folder = Workdir(config.workdir.absolute()).runs / run_name(
            of_member, run_settings(of_member, one.family), split
        )
        with wait_for_run(folder, signals):
            logger.info("member %s: %s", name, folder.name)
            run_split(of_member, one, split, signals=signals, show=show, redo=redo)


def train_split(
    config: Config,
    prepared: Prepared,
    split: Split,
    folder: Path,
    *,
    signals: StopRequest | None = None,
    show: ShowProgress = silent,
) -> None:
    """Train and test one split in this process, one of ``train.processes``; write model/ and result.json."""
    started = time.monotonic()
    family, data, leaks = prepared.family, prepared.data, prepared.leaks
    trainer = family.trainer(config, data, split, folder)
    if trainer.is_main and split.fold not in leaks:
        leaks[split.fold] = _leaks(config, trainer)
    facts = trainer.train(signals, show)
    metrics = trainer.evaluate()
    if trainer.is_main:
        trainer.write_model(facts, metrics)
        write_json(
            folder / RESULT,
            {
                "name": folder.name,
                "spec": run_settings(config, family),
                "fold": split.fold,
                "seed": config.seed,
                "train_set": config.train.train_uri or config.train.train_set,
                "model": config.train.model,
                "metrics": metrics,
                "scoring": _scoring(config, data),
                "train_tweets": len(split.train),
                "processes": config.train.processes,
                "threads": threads_of_process(config),
                "leaks": {name: [asdict(leak) for leak in of_set] for name, of_set in leaks[split.fold].items()},
                "total_seconds": round(time.monotonic() - started, 3),
                "versions": {"python": platform.python_version()}
                | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
            }
            | trainer.describe(facts),
        )
        _remove_checkpoint(folder)
    trainer.end()


def _leaks(config: Config, trainer: Trainer) -> dict[str, list[Leak]]:
    """Return what each set shares with the training tweets, and say it."""
    found = {}
    train = trainer.rows("train")
    for name in trainer.sets:
        rows = trainer.rows(name)
        near = len(train.texts) + len(rows.texts) <= _MOST_COMPARED
        leaks = text_leaks(train.texts, rows.texts, config.train.near_duplicate if near else None)
        wanted = (*SHARED, *config.train.group_by)
        both = [key for key in train.columns if key in rows.columns and key in wanted]
        leaks += leak_report({key: train.columns[key] for key in both}, {key: rows.columns[key] for key in both})
        found[name] = leaks
        said = ", ".join(f"{leak.kind} in {leak.rows} tweets ({leak.share:.1%})" for leak in leaks if leak.rows)
        compared = ", ".join(["texts" if near else "texts, for copies only", *both])
        if said:
            logger.warning("%s shares with the training tweets: %s (compared: %s)", name, said, compared)
        else:
            logger.info("%s shares nothing with the training tweets (compared: %s)", name, compared)
    return found


def _scoring(config: Config, data: Data[Any]) -> dict[str, Any]:
    """Return what decides the scores of a model that is trained."""
    return {
        "tests": {name: dataset.sha256 for name, dataset in data.tests.items()},
        "groups": list(config.labels.groups),
        "bootstrap": config.train.bootstrap,
    }


def _remove_checkpoint(folder: Path) -> None:
    for leftover in (STATE, BEST.format("*"), "checkpoint-*.safetensors", "pseudo-*.safetensors"):
        for path in folder.glob(leftover):
            remove(path)


def write_results(workdir: Workdir) -> pa.Table:
    """Write results.parquet: one row per run, test set and metric, of all finished runs."""
    rows = []
    for folder in sorted(path.parent for path in workdir.runs.glob(f"*/{RESULT}")):
        result = read_json(folder / RESULT)
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
