"""Runs of taggers: reading spans, training on them, and scoring them."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from scalemine.config import CLASSIFIER_KEYS, WORD_NETWORK_KEYS, Config, InputError
from scalemine.executor import ShowProgress, StopRequest, StopSignals, silent
from scalemine.models import find_model, model_fingerprint
from scalemine.store import Workdir, file_sha256, read_json
from scalemine.training.family import (
    DEV,
    HELD_OUT,
    WHOLE,
    Data,
    chooser,
    encoder_name,
    find_files,
    fit_facts,
    report_epoch,
    run_label,
    run_settings,
)
from scalemine.training.loop import Fit, Plan, Progress, fit
from scalemine.training.processes import make_accelerator, threads_of_process
from scalemine.training.splits import Rows, Split
from scalemine.training.tagging.datasets import Dataset, Document, check_types, read_dataset
from scalemine.training.tagging.encoders import load_words
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.labels import tag_names
from scalemine.training.tagging.metrics import surfaces
from scalemine.training.tagging.network import Architecture, Shape, TaggerNetwork, TransformerWords
from scalemine.training.tagging.scoring import score_documents, write_predictions
from scalemine.training.tagging.tagger import CONFIG, FORMAT, load_tagger, write_tagger
from scalemine.training.tagging.task import TaggerTask, fill_up, micro_f1, predict_tags

logger = logging.getLogger(__name__)


class TaggerFamily:
    """Sequence taggers; see ``family.Family``."""

    foreign_keys = frozenset((*CLASSIFIER_KEYS, *WORD_NETWORK_KEYS))

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,  # noqa: ARG002
        show: ShowProgress = silent,  # noqa: ARG002
        scratch: Path | None = None,  # noqa: ARG002
    ) -> Data[Dataset]:
        """Read the files.

        Raises:
            InputError: One is not there, cannot be read, or has spans of types that the training set has none of.
        """
        files = find_files(config)
        data = Data(
            read_dataset(files.train, needs=files.needs, keep=files.keep, key=files.train_key),
            read_dataset(files.dev, keep=files.keep, key="train.dev_uri") if files.dev else None,
            {
                name: read_dataset(uri, keep=files.keep, key=f"train.test_uris.{name}")
                for name, uri in files.tests.items()
            },
        )
        if not data.train.types:
            raise InputError(f"{files.train}: no tweet bears a span, so there is nothing to learn")
        if config.train.unseen_types == "refuse":
            check_types(data.train, [*([data.dev] if data.dev else []), *data.tests.values()])
        return data

    def rows(self, config: Config, data: Data[Dataset]) -> Rows:  # noqa: ARG002
        """Return the training tweets, as folds are made of them."""
        return rows_of(data.train.documents)

    def check_split(self, config: Config, data: Data[Dataset], split: Split) -> None:
        """Refuse a split without a span to learn from or to choose the epoch by."""
        chooses = split.held_out if config.train.stop_on == "test" else split.dev
        for what, rows in (("to train on", split.train), ("to choose the epoch on", chooses)):
            if len(rows) and not any(data.train.documents[row].types for row in rows):
                raise InputError(
                    f"train.folds: {data.train.uri}, fold {split.fold}: no tweet {what} bears a span; take another "
                    f"train.dev_share, train.fold_seed or number of folds"
                )

    def describe(self, data: Data[Dataset]) -> list[str]:
        """Return what was read, line by line."""
        lines = []
        for name, dataset in {"train": data.train, **({"dev": data.dev} if data.dev else {}), **data.tests}.items():
            notes = [f"{dataset.num_inexact} spans widened to whole words"] if dataset.num_inexact else []
            notes += [f"{dataset.num_empty} tweets without a word left out"] if dataset.num_empty else []
            lines.append(f"{name}: {dataset.num_rows:,} tweets{''.join(f'; {note}' for note in notes)}")
        return lines

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the encoder, where there is one."""
        if config.train.vectors is not None:
            return {}
        name, revision = encoder_name(config)
        return {"train.encoder": name, "train.revision": revision}

    def source(self, config: Config) -> str | None:
        """Return the hash of the encoder or of the static vectors."""
        if config.train.vectors:
            return file_sha256(Path(config.train.vectors)) if Path(config.train.vectors).is_file() else None
        return model_fingerprint(find_model(*encoder_name(config), key="train.encoder"))

    def trainer(self, config: Config, data: Data[Dataset], split: Split, folder: Path) -> _Trainer:
        """Return what does one run."""
        return _Trainer(config, data, split, folder)


def rows_of(documents: Sequence[Document]) -> Rows:
    """Return what decides where tweets go."""
    return Rows(
        [document.id for document in documents],
        [document.text for document in documents],
        [_strata(document) for document in documents],
        [document.negative_kind is not None for document in documents],
        {name: [document.columns[name] for document in documents] for name in documents[0].columns},
    )


def scored_documents(data: Data[Dataset], split: Split) -> dict[str, list[Document]]:
    """Return what a model is scored on: what chose the epoch, the held-out fold, and the test sets."""
    documents = data.train.documents
    dev = list(data.dev.documents) if data.dev else [documents[row] for row in split.dev]
    sets = {DEV: dev, HELD_OUT: [documents[row] for row in split.held_out]}
    sets |= {name: list(dataset.documents) for name, dataset in data.tests.items()}
    return {name: members for name, members in sets.items() if members}


def _strata(document: Document) -> Collection[str]:
    labels = {f"span:{name}" for name in document.types}
    labels |= {f"class:{document.class_name}"} if document.class_name and document.negative_kind is None else set()
    return labels | ({f"negative:{document.negative_kind}"} if document.negative_kind else set())


class _Trainer:
    """One run: its data as a network reads them, its network, and what comes out."""

    def __init__(self, config: Config, data: Data[Dataset], split: Split, folder: Path) -> None:
        self.config, self.data, self.split, self.folder = config, data, split, folder
        options = config.train
        torch.set_num_threads(threads_of_process(config))
        self.accelerator = make_accelerator(config, folder, run_settings(config, TaggerFamily()))
        self.tags = tag_names(data.train.types)
        self.train_documents = [data.train.documents[row] for row in split.train]
        self.rows_of = {"train": split.train, HELD_OUT: split.held_out, **({} if data.dev else {DEV: split.dev})}
        self.words = load_words(options, config.encoder, (document.words for document in self.train_documents))
        self.documents = scored_documents(data, split)
        self.cache = Workdir(config.workdir.absolute()).features
        self.uses_cache = options.freeze and isinstance(self.words.module, TransformerWords)
        if self.uses_cache:
            self.words.module.to(self.accelerator.device)
        shape = Shape(
            cast(Architecture, options.model),
            options.crf,
            options.hidden,
            options.kernel,
            options.dropout,
            self.words.module.dim,
        )
        torch.manual_seed(config.seed)
        self.network = TaggerNetwork(shape, self.tags, None if self.uses_cache else self.words.module)
        self.shape = shape
        self._inputs: dict[str, Inputs] = {}

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def sets(self) -> Sequence[str]:
        """What the model is scored on."""
        return list(self.documents)

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that are trained on."""
        return rows_of(self.train_documents if name == "train" else self.documents[name])

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:
        """Train, or take the tagger that was trained before; return what is to be said of it."""
        if (self.folder / "model" / CONFIG).exists():
            self.load()
            facts: dict[str, Any] = read_json(self.folder / "model" / CONFIG)["training"]
            return facts
        return fit_facts(self.config, self.data, self.split, self.fit(signals, show), cut=self._num_cut())

    def read(self, name: str) -> Inputs:
        """Return what the network reads of a set; parts of the training file are read, and stored, as one."""
        if name in self.rows_of:
            return self._read(WHOLE, self.data.train.documents).select(self.rows_of[name].tolist())
        return self._read(name, self.documents[name])

    def _read(self, name: str, documents: Sequence[Document]) -> Inputs:
        if name not in self._inputs:
            texts = [document.words for document in documents]
            with self.accelerator.main_process_first():  # which fills the cache
                self._inputs[name] = (
                    self.words.read_cached(texts, self.cache) if self.uses_cache else self.words.read(texts)
                )
        return self._inputs[name]

    def fit(self, signals: StopRequest | None, show: ShowProgress) -> Fit:
        """Train."""
        options = self.config.train
        index = {tag: number for number, tag in enumerate(self.tags)}
        inputs = self.read("train")
        tags = [
            [index[tag] for tag in document.tags[:length]]
            for document, length in zip(self.train_documents, inputs.num_words, strict=True)
        ]
        chosen_by = self.documents[chooser(self.config)]
        if not any(document.types for document in chosen_by):
            raise InputError(f"train.dev_uri: {options.dev_uri}: no tweet bears a span, so it cannot choose an epoch")
        texts, gold = [document.words for document in chosen_by], [document.tags for document in chosen_by]
        task = TaggerTask(
            self.network, replace(inputs, tags=tags), [document.id for document in self.train_documents],
            self.read(chooser(self.config)), lambda predicted: micro_f1(gold, fill_up(predicted, texts)),
            lr=options.lr, head_lr=options.head_lr or options.lr, weight_decay=options.weight_decay,
            pad_id=self.words.pad_id,
        )  # fmt: skip
        with show(run_label(self.config, self.split), options.epochs * len(self.train_documents)) as advance:
            return fit(
                task, Plan.of(options, self.config.seed), self.folder, accelerator=self.accelerator, signals=signals,
                on_step=advance, on_epoch=self._report_epoch,
            )  # fmt: skip

    def _report_epoch(self, progress: Progress) -> None:
        if self.is_main:
            report_epoch(self.config, self.split, progress, "F1")

    def load(self) -> None:
        """Take the weights of a model that was trained before."""
        tagger = load_tagger(self.folder, device=str(self.accelerator.device))
        self.network, self.words = tagger.network, tagger.words
        self.network.eval()

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and how much of it was not read; write the predictions."""
        options = self.config.train
        self.network.to(self.accelerator.device)
        known = surfaces([one.tags for one in self.train_documents], [one.words for one in self.train_documents])
        metrics: dict[str, Any] = {}
        for name, documents in self.documents.items():
            inputs = self.read(name)
            words = [document.words for document in documents]
            predicted = fill_up(predict_tags(self.network, inputs, self.accelerator, self.words.pad_id), words)
            if self.is_main:
                write_predictions(documents, predicted, self.folder / "predictions" / f"{name}.parquet")
            metrics[name] = score_documents(
                documents, predicted, known_surfaces=known, num_bootstrap=options.bootstrap
            ) | {"num_cut": sum(read < len(all_) for read, all_ in zip(inputs.num_words, words, strict=True))}
        return metrics

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the tagger's folder."""
        brief = {
            name: {key: one[key] for key in ("f1", "precision", "recall", "num_gold", "num_tweets", "false_alarms")}
            for name, one in metrics.items()
        }
        model = {
            "scalemine": "tagger",
            "format": FORMAT,
            "version": importlib.metadata.version("scalemine"),
            "tags": self.tags,
            "shape": asdict(self.shape),
            "word_source": self._describe_words(),
            "training": facts,
            "metrics": brief,
        }
        write_tagger(self.network, self.words, model, self.folder / "model")

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        keys = ("epochs", "best_epoch", "chosen_on", "history", "lr_check", "seconds")
        return {key: facts[key] for key in keys} | {
            "words": self._describe_words()["description"],
            "device": str(self.accelerator.device),
            "train_cut": facts["cut"],
        }

    def end(self) -> None:
        """Wait for the other processes, and end them."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _num_cut(self) -> int:
        inputs = self.read("train")
        return sum(read < len(one.words) for read, one in zip(inputs.num_words, self.train_documents, strict=True))

    def _describe_words(self) -> dict[str, Any]:
        """Return how the words are read, for ``config.json``."""
        options = self.config.train
        if options.vectors:
            how = "frozen" if options.freeze else "tuned"
            return {"kind": "static", "description": f"static vectors {Path(options.vectors).name}, {how}"}
        name, revision = encoder_name(self.config)
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
