"""Runs of classical models on frozen embeddings, in the same folds and with the same scores as classifiers.

Shapes: N tweets, C labels, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from scalemine.config import TAGGER_KEYS, Config, EncoderConfig, InputError
from scalemine.executor import ShowProgress, Stopped, StopRequest, StopSignals, num_cores, silent
from scalemine.models import encoder_settings
from scalemine.shards import Embeddings
from scalemine.store import fingerprint, open_stage
from scalemine.training.family import Data, chooser, described_chooser, encoder_name, remove_predictions, run_label
from scalemine.training.multilabel.baselines import fit_predict
from scalemine.training.multilabel.data import LabelFamily, LabelSets, read_label_data
from scalemine.training.multilabel.examples import NEGATIVE, UNKNOWN, Examples
from scalemine.training.splits import Rows, Split

# Keys of train that are of what is trained step by step.
_STEPWISE = frozenset(
    {"freeze", "normaliser", "max_length", "lr", "head_lr", "weight_decay", "batch_size", "bucket_batches", "epochs"}
    | {"patience", "min_delta", "schedule", "warmup", "clip", "gradient_checkpointing", "lora", "precision"}
)


_LEAST = 1e-6


class BaselineFamily(LabelFamily):
    """Classical models; see ``family.Family``."""

    foreign_keys = frozenset(TAGGER_KEYS) | _STEPWISE

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,
        show: ShowProgress = silent,
        scratch: Path | None = None,
    ) -> Data[Examples]:
        """Read the files."""
        return read_label_data(config, None, signals=signals, show=show, scratch=scratch)

    def settings(self, config: Config) -> dict[str, Any]:
        """Return what the model is like, the embeddings, and what the labels mean."""
        options: dict[str, Any] = {"loss.unknown": config.loss.unknown}
        options |= {f"baseline.{key}": value for key, value in config.baseline.model_dump().items()}
        return super().settings(config) | options

    def source(self, config: Config) -> str | None:
        """Return the hash of what decides the embeddings."""
        return fingerprint(encoder_settings(embedding_encoder(config)))

    def trainer(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> BaselineTrainer:
        """Return what does one run."""
        return BaselineTrainer(config, data, split, folder)


def embedding_encoder(config: Config) -> EncoderConfig:
    """Return the encoder of the embeddings: that of ``train`` where it names one, read as ``encoder`` says."""
    name, revision = encoder_name(config)
    return config.encoder.model_copy(update={"model": name, "revision": revision})


def open_embeddings(config: Config, examples: Examples) -> Embeddings:
    """Return where the embeddings of labelled tweets are, or are to be."""
    settings = encoder_settings(embedding_encoder(config))
    stage = open_stage(
        examples.corpus.folder.parent / f"embeddings-{fingerprint(settings)}",
        version=1, settings=settings, inputs={"tweets": examples.corpus.fingerprint}, redo=True,
    )  # fmt: skip
    return Embeddings(stage, examples.corpus)


def vectors_of(config: Config, examples: Examples, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the embeddings ``(N, D)`` of some labelled tweets; a tweet that could not be encoded is zeros.

    Raises:
        InputError: They are not embedded.
    """
    embeddings = open_embeddings(config, examples)
    if embeddings.missing():
        raise InputError(f"{examples.uri}: not embedded yet; scalemine train and scalemine map do that")
    return examples.gather(rows, [embeddings.vectors(shard)[0] for shard in examples.corpus.shards])


class BaselineTrainer:
    """One run; see ``family.Trainer``. No model is kept, only what it predicts."""

    is_main = True

    def __init__(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> None:
        if config.train.processes != 1:
            raise InputError(f"train.processes: {config.train.model} is fitted by one process; set it to 1")
        self.config, self.folder = config, folder
        self.tweets = LabelSets(config, data, split)
        self.scores: dict[str, NDArray[np.float32]] = {}

    @property
    def sets(self) -> Sequence[str]:
        """What the model is scored on."""
        return self.tweets.names

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that are trained on."""
        return self.tweets.rows(name)

    def vectors(self, name: str) -> NDArray[np.float16]:
        """Return the embeddings ``(N, D)`` of a set."""
        examples, rows = self.tweets.of(name)
        return vectors_of(self.config, examples, rows)

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:
        """Fit a model per label and predict every set."""
        started = time.monotonic()
        options, train = self.config.train, "train"
        examples, rows = self.tweets.of(train)
        targets_NC = examples.targets_of(rows)
        if self.config.loss.unknown == "negative":
            targets_NC[targets_NC == UNKNOWN] = NEGATIVE

        def stop_if_asked() -> None:
            if signals is not None and signals.requested:
                raise Stopped

        with show(run_label(self.config, self.tweets.split), len(self.tweets.labels)) as advance:
            self.scores = fit_predict(
                options.model, self.config.baseline, self.vectors(train), targets_NC,
                examples.weights_of(rows), {name: self.vectors(name) for name in self.sets}, seed=self.config.seed,
                jobs=self.config.compute.threads or num_cores(), on_label=lambda _label: advance(1),
                check=stop_if_asked,
            )  # fmt: skip
        return {"seconds": round(time.monotonic() - started, 3)}

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and write the predictions; calibrated, and in the order of nested labels."""
        remove_predictions(self.folder, self.sets)
        # Far enough from 0 and 1 that their logits are numbers.
        logits = {name: logit(scores_NC.clip(_LEAST, 1 - _LEAST)) for name, scores_NC in self.scores.items()}
        calibration = self.tweets.calibrate(logits[chooser(self.config)])
        self.scores = {name: self.tweets.in_order(calibration.apply(of_set)) for name, of_set in logits.items()}
        thresholds_C = self.tweets.thresholds(self.scores[chooser(self.config)])
        metrics = {}
        for name, scores_NC in self.scores.items():
            self.tweets.write_predictions(name, scores_NC, self.folder / "predictions" / f"{name}.parquet")
            metrics[name] = self.tweets.score(name, scores_NC, thresholds_C)
        return metrics

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write nothing: a classical model is fitted anew where it is wanted."""

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        return {
            "words": f"{Path(encoder_name(self.config)[0]).name}, frozen embeddings",
            "labels": list(self.tweets.labels),
            "epochs": 0,
            "best_epoch": 0,
            "chosen_on": described_chooser(self.config),
            "seconds": facts["seconds"],
            "device": "cpu",
        }

    def end(self) -> None:
        """Do nothing: there is one process."""
