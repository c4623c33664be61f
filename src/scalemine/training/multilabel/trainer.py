"""Runs of classifiers: training on labelled tweets, fitting decisions on dev, and scoring.

Shapes: N tweets, C labels.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray

from scalemine.config import TAGGER_KEYS, WORD_NETWORK_KEYS, Config
from scalemine.executor import ShowProgress, StopRequest, StopSignals, silent
from scalemine.models import device_name, find_model, load_tokenizer, model_fingerprint, precision_name
from scalemine.store import read_json
from scalemine.training.family import (
    Data,
    chooser,
    encoder_name,
    fit_facts,
    remove_predictions,
    report_epoch,
    run_label,
    run_settings,
)
from scalemine.training.loop import Plan, Progress, Task, fit
from scalemine.training.multilabel.calibration import Calibration, probabilities_of
from scalemine.training.multilabel.classifier import (
    CONFIG,
    FORMAT,
    load_classifier,
    write_classifier,
)
from scalemine.training.multilabel.data import (
    LabelFamily,
    LabelSets,
    brief,
    judged_labels,
    read_label_data,
)
from scalemine.training.multilabel.examples import Examples, TokeniserSpec, num_cut
from scalemine.training.multilabel.first_tokens import check_first_tokens, with_vectors
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.network import ClassifierNetwork, load_network
from scalemine.training.multilabel.task import ClassifierTask, predict_logits, selection
from scalemine.training.processes import make_accelerator, threads_of_process
from scalemine.training.splits import Rows, Split


class ClassifierFamily(LabelFamily):
    """Fine-tuned multilabel classifiers; see ``family.Family``."""

    foreign_keys = frozenset((*TAGGER_KEYS, *WORD_NETWORK_KEYS))

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,
        show: ShowProgress = silent,
        scratch: Path | None = None,
    ) -> Data[Examples]:
        """Read and tokenise the files."""
        folder, options = _encoder_folder(config), config.train
        tokenizer = load_tokenizer(folder, key="train.encoder")  # said here in one line, rather than by a worker
        if options.freeze:
            check_first_tokens(folder)
        if scratch is not None:  # a look: nothing is going to be trained
            return read_label_data(config, None, signals=signals, show=show, scratch=scratch)
        spec = TokeniserSpec(folder, model_fingerprint(folder), options.max_length, options.normaliser)
        encode = None
        if options.freeze:
            pad_id = int(tokenizer.pad_token_id or 0)
            encode = partial(with_vectors, folder=folder, pad_id=pad_id, device=options.device)
        return read_label_data(config, spec, signals=signals, show=show, encode=encode)

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the encoder, the loss, and what the labels mean."""
        name, revision = encoder_name(config)
        loss = {f"loss.{key}": value for key, value in config.loss.model_dump().items()}
        return super().settings(config) | loss | {"train.encoder": name, "train.revision": revision}

    def source(self, config: Config) -> str | None:
        """Return the hash of the encoder."""
        return model_fingerprint(_encoder_folder(config))

    def trainer(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> ClassifierTrainer:
        """Return what does one run."""
        return ClassifierTrainer(config, data, split, folder)


def _encoder_folder(config: Config) -> Path:
    return find_model(*encoder_name(config), key="train.encoder")


class LabelTrainer(ABC):
    """One run of a model that learns labels step by step; see ``family.Trainer``.

    A model says what it is, how it is fitted, and what it makes of tweets; the rest is said here.
    """

    def __init__(
        self, config: Config, data: Data[Examples], split: Split, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self.config, self.folder = config, folder
        self.tweets = LabelSets(config, data, split)
        torch.set_num_threads(threads_of_process(config))
        self.accelerator: Accelerator = make_accelerator(config, folder, settings)
        self.calibration = Calibration.identity(len(self.tweets.labels))
        self.thresholds_C: NDArray[np.float64] | None = None
        self.info: dict[str, Any] | None = None

    @abstractmethod
    def _load(self) -> dict[str, Any] | None:
        """Take weights, thresholds and ``info`` of a model that was trained before, and return its facts, if any."""

    @abstractmethod
    def _task(self) -> Task:
        """Return a new model, to be trained."""

    @abstractmethod
    def _finish(self, slope_C: NDArray[np.float64], offset_C: NDArray[np.float64]) -> None:
        """Put a calibration into the last layer, and go on in the precision in which the model will be used."""

    @abstractmethod
    def _logits(self, name: str) -> NDArray[np.float32]:
        """Return the logits ``(N, C)`` of a set."""

    @abstractmethod
    def _num_cut(self) -> int:
        """Return how many of the training tweets are not read whole."""

    @abstractmethod
    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the model's folder; of one that was there before, what it says of its scores is new."""

    @abstractmethod
    def _words(self) -> str:
        """Return in words what the model reads tweets by."""

    def _in_order(self, scores_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities in the order of nested labels; as they are, where the model itself keeps it."""
        return scores_NC

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def sets(self) -> Sequence[str]:
        """What the model is scored on."""
        return self.tweets.names

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that are trained on."""
        return self.tweets.rows(name)

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:
        """Train, or take the model that was trained before; return what is to be said of it."""
        facts = self._load()
        if facts is not None:
            return facts
        config, tweets = self.config, self.tweets
        torch.manual_seed(config.seed)
        task = self._task()
        with show(run_label(config, tweets.split), config.train.epochs * len(tweets.split.train)) as advance:
            found = fit(
                task, Plan.of(config.train, config.seed), self.folder, accelerator=self.accelerator, signals=signals,
                on_step=advance, on_epoch=self._report_epoch,
            )  # fmt: skip
        self._calibrate()
        return fit_facts(config, tweets.data, tweets.split, found, cut=self._num_cut())

    def _report_epoch(self, progress: Progress) -> None:
        if self.is_main:
            report_epoch(self.config, self.tweets.split, progress, self.config.labels.select.replace("_", " "))

    def _selection_score(self, accelerator: Accelerator) -> float:  # noqa: ARG002
        name = chooser(self.config)
        logits_NC, score = self._logits(name), 0.0
        if self.is_main:
            score = selection(self.config.labels.select)(self.tweets.targets(name), probabilities_of(logits_NC))
        return float(self._from_main([[score]])[0, 0])

    def _from_main(self, values: Any) -> NDArray[np.float64]:  # noqa: ANN401  what numpy takes
        """Return a matrix of the main process, in every process."""
        found = torch.tensor(np.asarray(values, np.float64)).to(self.accelerator.device)
        return np.asarray(broadcast(found).cpu())

    def _calibrate(self) -> None:
        """Fit probabilities and thresholds on what chose the epoch; the calibration goes into the last layer."""
        ones = np.ones(len(self.tweets.labels))
        self._finish(ones, 0 * ones)
        logits_NC = self._logits(chooser(self.config))
        found = np.zeros((3, len(self.tweets.labels)))
        if self.is_main:
            calibration = self.tweets.calibrate(logits_NC)
            thresholds_C = self.tweets.thresholds(self._in_order(calibration.apply(logits_NC)))
            found = np.stack([calibration.slope_C, calibration.offset_C, thresholds_C])
        slope_C, offset_C, self.thresholds_C = self._from_main(found)
        self.calibration = Calibration(slope_C, offset_C)
        self._finish(slope_C, offset_C)

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and write the predictions."""
        assert self.thresholds_C is not None
        if self.is_main:
            remove_predictions(self.folder, self.sets)
        metrics = {}
        for name in self.sets:
            scores_NC = self._in_order(probabilities_of(self._logits(name)))
            if self.is_main:
                self.tweets.write_predictions(name, scores_NC, self.folder / "predictions" / f"{name}.parquet")
                metrics[name] = self.tweets.score(name, scores_NC, self.thresholds_C)
        return metrics

    def _info(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a kept model says of itself, of whatever kind it is."""
        assert self.thresholds_C is not None
        labels, found = self.tweets.labels, self.calibration
        return {
            "version": importlib.metadata.version("scalemine"),
            "thresholds": dict(zip(labels, self.thresholds_C.tolist(), strict=True)),
            "calibration": {
                label: [slope, offset]
                for label, slope, offset in zip(labels, found.slope_C.tolist(), found.offset_C.tolist(), strict=True)
            },
            "normaliser": self.config.train.normaliser,
            "max_length": self.config.train.max_length,
            "nested": self.config.labels.nested,
            # As files of the same kind are to be read again.
            "reading": judged_labels(self.config.labels).model_dump(mode="json", exclude={"names", "nested"}),
            "priors": dict(zip(labels, self.tweets.priors.tolist(), strict=True)),
            "languages": self.tweets.languages(),
            "loss": self.config.loss.name,
            "training": dict(facts),
            "metrics": brief(metrics),
        }

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        keys = ("epochs", "best_epoch", "chosen_on", "history", "lr_check", "seconds")
        world = self.config.train.processes
        return {key: facts[key] for key in keys} | {
            "words": self._words(),
            "loss": self.config.loss.name,
            "labels": list(self.tweets.labels),
            "global_batch": self.config.train.batch_size,
            "batch_per_process": -(-self.config.train.batch_size // world),
            "device": str(self.accelerator.device),
            "train_cut": facts["cut"],
        }

    def end(self) -> None:
        """Wait for the other processes, and end them."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


class ClassifierTrainer(LabelTrainer):
    """One run of a fine-tuned classifier."""

    def __init__(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> None:
        super().__init__(config, data, split, folder, run_settings(config, ClassifierFamily()))
        self.tokenizer = load_tokenizer(_encoder_folder(config), key="train.encoder")
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.network: ClassifierNetwork | None = None

    def _load(self) -> dict[str, Any] | None:
        """Take a classifier that was trained before; its calibration is in its weights."""
        if not (self.folder / "model" / CONFIG).exists():
            return None
        classifier = load_classifier(self.folder / "model", device=str(self.accelerator.device))
        self._take(classifier.model)
        self.thresholds_C = np.array([classifier.thresholds[label] for label in self.tweets.labels])
        self.info = classifier.info
        facts: dict[str, Any] = read_json(self.folder / "model" / CONFIG)["scalemine"]["training"]
        return facts

    def _take(self, model: Any) -> None:  # noqa: ANN401
        """Go on with a finished model, in the precision in which it will be used."""
        self.network = ClassifierNetwork(model, None, None, precision="float32").to(self.accelerator.device)

    def _precision(self) -> str:
        return precision_name(self.config.train.precision, device_name(self.config.train.device, key="train.device"))

    def _task(self) -> ClassifierTask:
        config, options, tweets = self.config, self.config.train, self.tweets
        self.network = load_network(
            _encoder_folder(config), tweets.labels, nesting=tweets.nesting,
            loss=LabelLoss(config.loss, LabelCounts.of(tweets.targets("train"))), precision=self._precision(),
            max_length=options.max_length, freeze=options.freeze, lora=options.lora,
            gradient_checkpointing=options.gradient_checkpointing,
        )  # fmt: skip
        return ClassifierTask(
            self.network, tweets.data.train, tweets.split.train, self._selection_score, config.loss,
            epochs=options.epochs, lr=options.lr, head_lr=options.head_lr or options.lr,
            weight_decay=options.weight_decay, pad_id=self.pad_id,
        )  # fmt: skip

    def _finish(self, slope_C: NDArray[np.float64], offset_C: NDArray[np.float64]) -> None:
        assert self.network is not None
        self._take(self.network.whole(slope_C, offset_C))

    def _logits(self, name: str) -> NDArray[np.float32]:
        assert self.network is not None
        examples, rows = self.tweets.of(name)
        return predict_logits(self.network, examples, rows, self.accelerator, self.pad_id).numpy()

    def _num_cut(self) -> int:
        return num_cut(*self.tweets.of("train"))

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the classifier's folder; of one that was there before, what its card says of its scores is new."""
        assert self.network is not None
        if self.info is not None:
            info = self.info | {"metrics": brief(metrics)}
        else:
            encoder = Path(encoder_name(self.config)[0]).name
            info = {"kind": "classifier", "format": FORMAT, "encoder": encoder} | self._info(facts, metrics)
        ones = np.ones(len(self.tweets.labels))
        write_classifier(self.network.whole(ones, 0 * ones), self.tokenizer, info, self.folder / "model")

    def _words(self) -> str:
        how = "frozen" if self.config.train.freeze else "adapted" if self.config.train.lora else "fine-tuned"
        return f"{Path(encoder_name(self.config)[0]).name}, {how}"
