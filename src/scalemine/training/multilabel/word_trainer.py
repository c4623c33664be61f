"""Runs of networks on word vectors, in the same folds and with the same scores as classifiers.

Shapes: N tweets, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from scalemine.config import Config
from scalemine.store import file_sha256
from scalemine.text import normaliser
from scalemine.training.batches import Batch
from scalemine.training.family import Data, run_settings
from scalemine.training.kept import OTHERS
from scalemine.training.loop import predict_rows
from scalemine.training.multilabel.classifier import fold
from scalemine.training.multilabel.data import LabelFamily, brief
from scalemine.training.multilabel.examples import Examples
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.task import ClassifierTask
from scalemine.training.multilabel.trainer import LabelTrainer
from scalemine.training.multilabel.word_model import load_word_network, write_word_network
from scalemine.training.multilabel.word_network import (
    NetworkShape,
    WordNetwork,
    learnt_words,
    logits_of_one_length,
    prediction_rows,
    split_words,
)
from scalemine.training.splits import Split
from scalemine.training.tagging.encoders import WordEncoder, load_words
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.network import StaticWords

# Keys of train that are of transformers; these networks are float32.
_FOREIGN = frozenset({"crf", "pooling", "precision", "gradient_checkpointing", "lora"})


class WordNetworkFamily(LabelFamily):
    """Networks on word vectors; see ``family.Family``."""

    foreign_keys = _FOREIGN

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the loss, and what the labels mean."""
        return super().settings(config) | {f"loss.{key}": value for key, value in config.loss.model_dump().items()}

    def source(self, config: Config) -> str | None:
        """Return the hash of the static vectors, if there are any."""
        path = config.train.vectors and Path(config.train.vectors)
        return file_sha256(path) if path and path.is_file() else None

    def trainer(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> WordNetworkTrainer:
        """Return what does one run."""
        return WordNetworkTrainer(config, data, split, folder)


class WordTask(ClassifierTask):
    """A network on word vectors to be trained; see ``ClassifierTask``."""

    def __init__(
        self, network: WordNetwork, inputs: Inputs, examples: Examples, rows: NDArray[np.int64],
        evaluate: Callable[[Accelerator], float], config: Config,
    ) -> None:  # fmt: skip
        options = config.train
        super().__init__(
            network, examples, rows, evaluate, config.loss, epochs=options.epochs, lr=options.lr,
            head_lr=options.head_lr or options.lr, weight_decay=options.weight_decay, pad_id=0,
        )  # fmt: skip
        self._inputs = inputs

    def costs(self) -> NDArray[np.int32]:
        """Return the words of each training tweet."""
        return np.array(self._inputs.num_words, np.int32)

    def _is_head(self, name: str) -> bool:
        return not name.startswith("words.")

    def _read(self, rows: Sequence[int]) -> Batch:
        return self._inputs.collate(rows)

    def _logits(self, accelerator: Accelerator) -> Tensor:
        return predict_logits(self._network, self._inputs, accelerator)


class WordNetworkTrainer(LabelTrainer):
    """One run of a network on word vectors."""

    def __init__(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> None:
        super().__init__(config, data, split, folder, run_settings(config, WordNetworkFamily()))
        self._normalise = normaliser(config.train.normaliser)
        self._read: dict[str, tuple[list[list[str]], int]] = {}
        self.network: WordNetwork | None = None
        self.words: WordEncoder | None = None

    def _words_of(self, name: str) -> tuple[list[list[str]], int]:
        """Return the words of a set, and how many of its tweets are cut."""
        if name not in self._read:
            examples, rows = self.tweets.of(name)
            self._read[name] = split_words(examples.values("text", rows), self._normalise, self.config.train.max_length)
        return self._read[name]

    def _load(self) -> dict[str, Any] | None:
        """Take a network that was trained before; its calibration is in its weights."""
        if not (self.folder / "model" / OTHERS).exists():
            return None
        model = load_word_network(self.folder / "model", device=str(self.accelerator.device))
        self.network, self.info = model.network, model.info
        self.words = WordEncoder(model.network.words, None, dict(model.vocabulary), {})
        self.thresholds_C = np.array([model.thresholds[label] for label in self.tweets.labels])
        facts: dict[str, Any] = model.info["training"]
        return facts

    def _task(self) -> WordTask:
        config, options, tweets = self.config, self.config.train, self.tweets
        texts, _ = self._words_of("train")
        if options.vectors is None:
            self.words = learnt_words(texts, dimensions=options.dimensions, most=options.vocabulary)
        else:
            self.words = load_words(options, config.encoder, texts)
        words = self.words.module
        assert isinstance(words, StaticWords)
        shape = NetworkShape(
            options.model, words.dim, options.hidden, options.kernel, options.dropout, len(tweets.labels)
        )
        loss = LabelLoss(config.loss, LabelCounts.of(tweets.targets("train")))
        self.network = WordNetwork(shape, words, loss)
        inputs = self.words.read(texts)
        return WordTask(self.network, inputs, tweets.data.train, tweets.split.train, self._selection_score, config)

    def _finish(self, slope_C: NDArray[np.float64], offset_C: NDArray[np.float64]) -> None:
        assert self.network is not None
        self.network.head = fold(self.network.head, slope_C, offset_C)
        self.network.loss = None

    def _logits(self, name: str) -> NDArray[np.float32]:
        assert self.network is not None
        assert self.words is not None
        texts, _ = self._words_of(name)
        return predict_logits(self.network, self.words.read(texts), self.accelerator).numpy()

    def _num_cut(self) -> int:
        return self._words_of("train")[1]

    def _in_order(self, scores_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.tweets.in_order(scores_NC)

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the network's folder; of one that was there before, what it says of its scores is new."""
        assert self.network is not None
        assert self.words is not None
        assert self.words.vocabulary is not None
        if self.info is not None:
            info = self.info | {"metrics": brief(metrics)}
        else:
            how = {"labels": self.tweets.labels, "model": self.config.train.model, "words": self._words()}
            info = how | self._info(facts, metrics)
        write_word_network(self.network, self.words.vocabulary, info, self.folder / "model")

    def _words(self) -> str:
        options = self.config.train
        if options.vectors is None:
            return f"vectors of {options.dimensions} dimensions, learnt"
        return f"{Path(options.vectors).name}, {'frozen' if options.freeze else 'tuned'}"


def predict_logits(network: WordNetwork, inputs: Inputs, accelerator: Accelerator) -> Tensor:
    """Return the logits ``(N, C)`` of some tweets, float32 on the CPU; the same in every process."""
    assert inputs.word_ids is not None
    word_ids = inputs.word_ids
    was_training = network.training
    network.eval()
    logits_NC = predict_rows(
        accelerator, prediction_rows(inputs.num_words), (len(inputs), network.shape.num_labels),
        lambda rows: logits_of_one_length(network, [word_ids[row] for row in rows]), torch.float32,
    )  # fmt: skip
    network.train(was_training)
    return logits_NC
