"""Runs of classical models on frozen embeddings or on words, in the same folds and with the same scores as classifiers.

Shapes: N tweets, C labels, D dimensions.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scalemine.config import TAGGER_KEYS, WORD_NETWORK_KEYS, BaselineConfig, Config, EncoderConfig, InputError
from scalemine.executor import ShowProgress, Stopped, StopRequest, num_cores, ray_jobs
from scalemine.models import encoder_settings
from scalemine.shards import Embeddings
from scalemine.store import fingerprint, open_stage, remove
from scalemine.text import normaliser
from scalemine.training.family import Data, chooser, described_chooser, encoder_name, remove_predictions, run_label
from scalemine.training.kept import OTHERS
from scalemine.training.multilabel.baselines import fit_predict, settled
from scalemine.training.multilabel.calibration import Calibration, logits_of
from scalemine.training.multilabel.data import LabelFamily, LabelSets, brief, judged_labels
from scalemine.training.multilabel.embedding_features import EmbeddingFeatures, encoder_facts
from scalemine.training.multilabel.examples import NEGATIVE, UNKNOWN, Examples
from scalemine.training.multilabel.grid_search import NUM_FOLDS, Part, Tried, best, deal, points, search
from scalemine.training.multilabel.text_model import label_file, write_estimator, write_text_model
from scalemine.training.multilabel.word_features import WordFeatures, read_lexicon
from scalemine.training.splits import Rows, Split

# Keys of train that are of what is trained step by step.
_STEPWISE = frozenset(
    {"freeze", "normaliser", "max_length", "lr", "head_lr", "weight_decay", "batch_size", "bucket_batches", "epochs"}
    | {"patience", "min_delta", "schedule", "warmup", "clip", "gradient_checkpointing", "lora", "precision"}
)


class BaselineFamily(LabelFamily):
    """Classical models; see ``family.Family``."""

    foreign_keys = frozenset((*TAGGER_KEYS, *WORD_NETWORK_KEYS)) | _STEPWISE

    def settings(self, config: Config) -> dict[str, Any]:
        """Return what the model is like, what it reads, and what the labels mean."""
        options: dict[str, Any] = {"loss.unknown": config.loss.unknown}
        options |= {f"baseline.{key}": value for key, value in config.baseline.model_dump().items()}
        if config.baseline.is_of_words:
            options["train.normaliser"] = config.train.normaliser
        return super().settings(config) | options

    def source(self, config: Config) -> str | None:
        """Return the hash of what decides the embeddings, or of the lexicon."""
        if config.reads_embeddings:
            return fingerprint(encoder_settings(embedding_encoder(config)))
        return fingerprint(_phrases(config)) if config.baseline.lexicon else None

    def trainer(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> BaselineTrainer:
        """Return what does one run."""
        return BaselineTrainer(config, data, split, folder)


def _phrases(config: Config) -> tuple[str, ...]:
    """Return the phrases of the lexicon, if there is one."""
    lexicon = config.baseline.lexicon
    return () if lexicon is None else read_lexicon(Path(lexicon), normaliser(config.train.normaliser))


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


class _EmbeddingReader:
    """Learns from training tweets how a model reads embeddings, and gives them of these and of sets."""

    def __init__(self, tweets: LabelSets) -> None:
        self._tweets = tweets
        self._train_ND = vectors_of(tweets.config, *tweets.of("train"))
        self.features: EmbeddingFeatures | None = None

    def learn(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Learn from some training tweets, and return their embeddings."""
        vectors_ND = self._train_ND[rows]
        self.features = EmbeddingFeatures.fit(self._tweets.config.train.model, vectors_ND)
        return self.features.transform(vectors_ND)

    def read(self, what: str | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of a set, or of some training tweets, as it was learnt last."""
        assert self.features is not None
        return self.features.transform(
            vectors_of(self._tweets.config, *self._tweets.of(what)) if isinstance(what, str) else self._train_ND[what]
        )


class _WordReader:
    """Learns features of words from training tweets, and gives them of these and of sets."""

    def __init__(self, tweets: LabelSets) -> None:
        self._tweets = tweets
        self._normalise = normaliser(tweets.config.train.normaliser)
        self._phrases = _phrases(tweets.config)
        self._train = self._texts("train")
        self.features: WordFeatures | None = None

    def _texts(self, name: str) -> list[str]:
        examples, rows = self._tweets.of(name)
        return [self._normalise(text or "") for text in examples.values("text", rows)]

    def learn(self, rows: NDArray[np.int64]) -> csr_matrix:
        """Learn from some training tweets, and return their features."""
        texts, options = [self._train[row] for row in rows], self._tweets.config.baseline
        self.features = WordFeatures.fit(texts, ngrams=options.ngrams, min_df=options.min_df, phrases=self._phrases)
        return self.features.transform(texts)

    def read(self, what: str | NDArray[np.int64]) -> csr_matrix:
        """Return the features of a set, or of some training tweets, as they were learnt last."""
        assert self.features is not None
        return self.features.transform(
            self._texts(what) if isinstance(what, str) else [self._train[row] for row in what]
        )


def _parts(
    reader: _EmbeddingReader | _WordReader, targets_NC: NDArray[np.int8], weight_N: NDArray[np.float32], seed: int
) -> Iterator[Part]:
    """Yield the folds of the grid search; features of words are learnt in each anew."""
    fold_N = deal(targets_NC, seed)
    for fold in range(NUM_FOLDS):
        rows, held_back = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        learnt_ND = reader.learn(rows)
        yield Part((learnt_ND, targets_NC[rows], weight_N[rows]), (reader.read(held_back), targets_NC[held_back]))


class BaselineTrainer:
    """One run; see ``family.Trainer``."""

    is_main = True

    def __init__(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> None:
        if config.train.processes != 1:
            raise InputError(f"train.processes: {config.train.model} is fitted by one process; set it to 1")
        self.config, self.folder = config, folder
        self.tweets = LabelSets(config, data, split)
        self.options: BaselineConfig = config.baseline
        self.tried: Sequence[Tried] = ()
        self.reader: _EmbeddingReader | _WordReader | None = None
        self.priors: dict[int, float] = {}
        self.scores: dict[str, NDArray[np.float32]] = {}
        self.calibration = Calibration.identity(len(self.tweets.labels))
        self.thresholds_C = np.full(len(self.tweets.labels), np.nan)

    @property
    def sets(self) -> Sequence[str]:
        """What the model is scored on."""
        return self.tweets.names

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that are trained on."""
        return self.tweets.rows(name)

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:
        """Search the grid, fit a model per label and predict every set."""
        started = time.monotonic()
        examples, rows = self.tweets.of("train")
        targets_NC, weight_N = examples.targets_of(rows), examples.weights_of(rows)
        if self.config.loss.unknown == "negative":
            targets_NC[targets_NC == UNKNOWN] = NEGATIVE
        self.reader = _WordReader(self.tweets) if self.options.is_of_words else _EmbeddingReader(self.tweets)

        def stop_if_asked() -> None:
            if signals is not None and signals.requested:
                raise Stopped

        how: dict[str, Any] = {
            "seed": self.config.seed,
            "jobs": self.config.compute.threads or num_cores(),
            "check": stop_if_asked,
        }
        steps = len(self.tweets.labels) + (NUM_FOLDS * len(points(self.options.grid)) if self.options.grid else 0)
        with (
            ray_jobs(self.config.compute) as cluster,
            show(run_label(self.config, self.tweets.split), steps) as advance,
        ):
            how["cluster"] = cluster
            if self.options.grid:
                parts = _parts(self.reader, targets_NC, weight_N, self.config.seed)
                self.tried = search(self.config.train.model, self.options, parts, on_fit=advance, **how)
                self.options = self.options.model_copy(update=dict(best(self.tried).values))
            learnt_ND = self.reader.learn(np.arange(len(rows)))
            others = {name: self.reader.read(name) for name in self.sets}
            remove(self.folder / "model" / OTHERS)
            self.scores = fit_predict(
                self.config.train.model, self.options, learnt_ND, targets_NC, weight_N, others,
                on_label=lambda _label: advance(1), keep=self._keep, **how,
            )  # fmt: skip
        return {"seconds": round(time.monotonic() - started, 3)}

    def _keep(self, label: int, model: Any) -> None:  # noqa: ANN401
        """Write a model beside the others; called by several threads."""
        if isinstance(model, float):
            self.priors[label] = model
        else:
            write_estimator(model, self.folder / "model" / label_file(label))

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and write the predictions; calibrated, and in the order of nested labels."""
        remove_predictions(self.folder, self.sets)
        logits = {name: logits_of(scores_NC) for name, scores_NC in self.scores.items()}
        self.calibration = self.tweets.calibrate(logits[chooser(self.config)])
        self.scores = {name: self.tweets.in_order(self.calibration.apply(of_set)) for name, of_set in logits.items()}
        self.thresholds_C = self.tweets.thresholds(self.scores[chooser(self.config)])
        metrics = {}
        for name, scores_NC in self.scores.items():
            self.tweets.write_predictions(name, scores_NC, self.folder / "predictions" / f"{name}.parquet")
            metrics[name] = self.tweets.score(name, scores_NC, self.thresholds_C)
        return metrics

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write ``model/``."""
        assert self.reader is not None and self.reader.features is not None
        labels, found = self.tweets.labels, self.calibration
        info = {
            "version": importlib.metadata.version("scalemine"),
            "versions": {name: importlib.metadata.version(name) for name in ("scikit-learn", "skops", "numpy")},
            "labels": labels,
            "model": self.config.train.model,
            "settings": self._settled(),
            "features": self.options.features,
            **self._read_as(),
            "thresholds": dict(zip(labels, self.thresholds_C.tolist(), strict=True)),
            "calibration": {
                label: [slope, offset]
                for label, slope, offset in zip(labels, found.slope_C.tolist(), found.offset_C.tolist(), strict=True)
            },
            "nested": self.config.labels.nested,
            # As files of the same kind are to be read again.
            "reading": judged_labels(self.config.labels).model_dump(mode="json", exclude={"names", "nested"}),
            "priors": dict(zip(labels, self.tweets.priors.tolist(), strict=True)),
            "languages": self.tweets.languages(),
            "training": {
                "file": Path(self.tweets.data.train.uri).name,
                "sha256": self.tweets.data.train.sha256,
                "tweets": len(self.tweets.split.train),
                "seed": self.config.seed,
                "fold": self.tweets.split.fold,
                "chosen_on": described_chooser(self.config),
                "seconds": facts["seconds"],
            },
            "metrics": brief(metrics),
        }
        write_text_model(self.folder / "model", info, self.reader.features, self.priors)

    def _read_as(self) -> dict[str, Any]:
        """Return how the model reads texts: a normaliser, and the encoder of the embeddings."""
        if self.options.is_of_words:
            return {"normaliser": self.config.train.normaliser}
        encoder = embedding_encoder(self.config)
        return {"normaliser": encoder.normaliser, "encoder": encoder_facts(encoder)}

    def _settled(self) -> dict[str, Any]:
        return settled(self.config.train.model, self.options)

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        found: dict[str, Any] = {
            "words": self.options.features
            if self.options.is_of_words
            else f"{Path(encoder_name(self.config)[0]).name}, frozen embeddings",
            "labels": list(self.tweets.labels),
            "settings": self._settled(),
            "epochs": 0,
            "best_epoch": 0,
            "chosen_on": described_chooser(self.config),
            "seconds": facts["seconds"],
            "device": "cpu",
        }
        if self.tried:
            found["chosen"] = dict(best(self.tried).values)
            found["grid"] = [{"values": dict(one.values), "f1": one.f1, "std": one.std} for one in self.tried]
        return found

    def end(self) -> None:
        """Do nothing: there is one process."""
