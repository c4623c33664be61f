"""What taggers, classifiers and classical baselines have in common, seen from a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from scalemine.config import Config, InputError
from scalemine.executor import ShowProgress, StopRequest, StopSignals, silent
from scalemine.store import Workdir, remove
from scalemine.training.loop import Fit, Progress
from scalemine.training.splits import NEAR_DUPLICATES, Rows, Split

logger = logging.getLogger(__name__)

# Columns that say what tweets have in common, carried along where a file has them.
SHARED = ("event", "user")
DEV, HELD_OUT, WHOLE = "dev", "held_out", "whole"
RANDOM_PLUS = "test_random_plus"  # on which the paper compares
# Training keys that change a run's place or pace, and not its weights; the encoder is named by what it comes to.
_INCIDENTAL = frozenset(
    {"name", "processes", "micro_batch", "device", "checkpoint_steps", "bootstrap", "test_sets", "test_uris"}
    | {"unseen_types", "encoder", "revision"}
)


class LabelledTweets(Protocol):
    """The labelled tweets of one file."""

    @property
    def uri(self) -> str:
        """The file."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of its content."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of tweets."""
        ...


DatasetT = TypeVar("DatasetT", bound=LabelledTweets)


@dataclass(frozen=True)
class Data(Generic[DatasetT]):
    """What a configuration trains on and is tested on."""

    train: DatasetT
    dev: DatasetT | None
    tests: Mapping[str, DatasetT]


class Trainer(Protocol):
    """One run: its data as a model reads them, its model, and what comes out."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        ...

    @property
    def sets(self) -> Sequence[str]:
        """What the model is scored on: what chose the epoch, the held-out fold, and the test sets."""
        ...

    def rows(self, name: str) -> Rows:
        """Return the tweets of one of these sets, or of ``train``."""
        ...

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:
        """Train, or take the model that was trained before; return what is to be said of it."""
        ...

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set."""
        ...

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write ``model/``."""
        ...

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what belongs into ``result.json`` beside what all runs have there."""
        ...

    def end(self) -> None:
        """Wait for the other processes, and end them."""
        ...


class Family(Protocol):
    """A kind of model."""

    # Keys of ``train`` that are of no matter to it.
    foreign_keys: frozenset[str]

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,
        show: ShowProgress = silent,
        scratch: Path | None = None,
    ) -> Data[Any]:
        """Read the files that a configuration trains on, chooses the epoch on, and is tested on.

        What is written for that goes into ``scratch``, where it is given, instead of into the workdir.
        """
        ...

    def rows(self, config: Config, data: Data[Any]) -> Rows:
        """Return the training tweets, as folds are made of them."""
        ...

    def check_split(self, config: Config, data: Data[Any], split: Split) -> None:
        """Refuse a split that nothing can be learnt or judged on."""
        ...

    def describe(self, data: Data[Any]) -> list[str]:
        """Return what is to be said of the data, line by line."""
        ...

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the settings beside ``train`` that decide a run's weights, by dotted key."""
        ...

    def source(self, config: Config) -> str | None:
        """Return the hash of what turns text into vectors."""
        ...

    def trainer(self, config: Config, data: Data[Any], split: Split, folder: Path) -> Trainer:
        """Return what does one run."""
        ...


@dataclass(frozen=True)
class DataFiles:
    """The files that a configuration names.

    Args:
        train: Training tweets.
        train_key: The configuration key that names them.
        dev: Tweets that choose the epoch; None: a part of the training tweets does.
        tests: Test tweets, by name.
        needs: Columns that the training tweets must have.
        keep: Columns that are carried along where they are there.
    """

    train: str
    train_key: str
    dev: str | None
    tests: Mapping[str, str]
    needs: tuple[str, ...]
    keep: tuple[str, ...]


def find_files(config: Config) -> DataFiles:
    """Return the files that a configuration names: sets of the workdir, or files of the user's.

    Raises:
        InputError: The workdir has no such set.
    """
    train, sets = config.train, Workdir(config.workdir.absolute()).sets
    needs = tuple(name for name in train.group_by if name != NEAR_DUPLICATES)
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
    key = "train.train_uri" if train.train_uri else "train.train_set"
    return DataFiles(uri, key, train.dev_uri, tests, needs, (*needs, *(name for name in SHARED if name not in needs)))


def encoder_name(config: Config) -> tuple[str, str | None]:
    """Return the name and the revision of the encoder that is trained."""
    if config.train.encoder:
        return config.train.encoder, config.train.revision
    return config.encoder.model, config.encoder.revision


def run_settings(config: Config, family: Family) -> dict[str, Any]:
    """Return the settings that decide a run's weights, by dotted key."""
    settings = {f"train.{key}": value for key, value in config.train.model_dump().items() if key not in _INCIDENTAL}
    settings = {key: value for key, value in settings.items() if key.removeprefix("train.") not in family.foreign_keys}
    return settings | family.settings(config) | {"seed": config.seed}


def remove_predictions(folder: Path, sets: Sequence[str]) -> None:
    """Remove what a run predicted of sets that it is no longer scored on, and figures of that."""
    for path in [*folder.glob("predictions/*.parquet"), *folder.glob("roc-*.png")]:
        if path.stem.removeprefix("roc-") not in sets:
            remove(path)


def run_label(config: Config, split: Split) -> str:
    """Return what a run is called where it is watched."""
    return "train" if split.fold is None else f"fold {split.fold + 1}/{config.train.folds}"


def chooser(config: Config) -> str:
    """Return the set that chooses the epoch."""
    return HELD_OUT if config.train.stop_on == "test" else DEV


def described_chooser(config: Config) -> str:
    """Return in words what chooses the epoch, and decides what is fitted after it."""
    if config.train.dev_uri:
        return Path(config.train.dev_uri).name
    parts = {HELD_OUT: "the held-out fold (the published way)", DEV: "a dev part of the training folds"}
    return parts[chooser(config)]


def report_epoch(config: Config, split: Split, progress: Progress, measure: str) -> None:
    """Say how an epoch went.

    Args:
        config: The configuration.
        split: What is trained on.
        progress: After the epoch.
        measure: What the score is.
    """
    last, epochs = progress.history[-1], config.train.epochs
    logger.info(
        "%s: epoch %d/%d, loss %.4f, %s on %s %.4f (best %.4f at %d), %.0f tweets/s, at most %.0f s left",
        run_label(config, split), last["epoch"], epochs, last["loss"], measure, chooser(config), last["score"],
        progress.best, progress.best_epoch, len(split.train) / max(last["seconds"], 1e-9),
        (epochs - progress.epoch) * last["seconds"],
    )  # fmt: skip


def fit_facts(config: Config, data: Data[Any], split: Split, found: Fit, *, cut: int) -> dict[str, Any]:
    """Return what is to be said of a fit, in the card and in the results; ``cut``: tweets that are not read whole."""
    return {
        "file": Path(data.train.uri).name,
        "sha256": data.train.sha256,
        "tweets": len(split.train),
        "cut": cut,
        "seed": config.seed,
        "fold": split.fold,
        "epochs": len(found.history),
        "best_epoch": found.best_epoch,
        "chosen_on": described_chooser(config),
        "history": found.history,
        "lr_check": found.lr_check,
        "seconds": found.seconds,
    }
