"""Trained models on labelled tweets."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from scalemine.config import ENSEMBLE, InputError, LabelsConfig
from scalemine.executor import InlineExecutor
from scalemine.models import first_line, is_path
from scalemine.store import read_json
from scalemine.training.kept import OTHERS, kind_of, load_model

logger = logging.getLogger(__name__)

CONFIG = "config.json"


def is_classifier(model: str) -> bool:
    """Return whether a model gives labels: a folder, that of a run, or a hub id, whose configuration is fetched.

    Raises:
        InputError: There is no such folder, and the hub does not give it.
    """
    if kind := _own_kind(model):
        from scalemine.training.ensemble.model import of_spans

        return kind != ENSEMBLE or not of_spans(model)
    path = _configuration(model)
    if path is None:
        return False  # said by who loads it, as is a damaged one
    try:
        found = read_json(path).get("scalemine")
    except (ValueError, AttributeError):
        return False
    return isinstance(found, dict) and found.get("kind") == "classifier"


def _own_kind(model: str) -> str | None:
    """Return what a folder, or that of a run, holds in a form of our own; None where it is one of Hugging Face's."""
    if any((Path(model) / inner / OTHERS).exists() for inner in ("", "model")):
        return kind_of(model)
    return None


def _configuration(model: str) -> Path | None:
    """Return a model's ``config.json``; None where a folder has none."""
    folder = Path(model)
    if folder.is_dir():
        return next((path for path in (folder / CONFIG, folder / "model" / CONFIG) if path.exists()), None)
    if is_path(model):
        raise InputError(f"MODEL: {model}: no such folder (expected a model that scalemine train wrote, or a hub id)")
    try:
        return Path(hf_hub_download(model, CONFIG))
    except (OSError, HFValidationError) as error:
        raise InputError(f"{model}: no model here, and the hub does not give it ({first_line(error)})") from None


def evaluate_tagger(model: str, uris: Sequence[str], *, num_bootstrap: int) -> dict[str, Any]:
    """Return the scores of a tagger on files of labelled tweets, by file.

    Raises:
        InputError: A file or the model cannot be read.
    """
    from scalemine.training.ensemble.model import SpanEnsemble
    from scalemine.training.tagging.datasets import read_dataset
    from scalemine.training.tagging.scoring import score_dataset
    from scalemine.training.tagging.tagger import Tagger, load_tagger

    datasets = [read_dataset(uri, key="SET") for uri in uris]
    tagger = load_model(model) if _own_kind(model) else load_tagger(model)
    assert isinstance(tagger, Tagger | SpanEnsemble)
    scores = {}
    for dataset in datasets:
        if unknown := sorted(dataset.types - set(tagger.types)):
            logger.warning(
                "%s: the model knows no spans of type %s, and misses all of them", dataset.uri, ", ".join(unknown)
            )
        words = [document.words for document in dataset.documents]
        scored = score_dataset(dataset, tagger.tag_words(words), num_bootstrap=num_bootstrap)
        scores[dataset.uri] = scored | {"num_cut": tagger.count_cut(words)}
    return scores


def evaluate_classifier(model: str, uris: Sequence[str], *, num_bootstrap: int) -> dict[str, Any]:
    """Return the scores of what gives labels, by file; labels are read as in its training.

    Raises:
        InputError: A file or the model cannot be read, or the file holds none of the model's labels.
    """
    from scalemine.training.ensemble.model import SpanEnsemble
    from scalemine.training.multilabel.classifier import load_classifier
    from scalemine.training.multilabel.examples import POSITIVE, read_examples
    from scalemine.training.multilabel.scores import score_labels
    from scalemine.training.tagging.tagger import Tagger

    classifier = load_model(model) if _own_kind(model) else load_classifier(model)
    assert not isinstance(classifier, Tagger | SpanEnsemble)
    labels = classifier.labels
    reading = LabelsConfig.model_validate(classifier.info["reading"])
    priors = classifier.info["priors"]
    scores = {}
    with tempfile.TemporaryDirectory(prefix="scalemine-") as folder:
        for uri in uris:
            examples = read_examples(
                uri, reading, Path(folder), executor=InlineExecutor, names=labels, key="SET"
            )  # fmt: skip
            if examples.unlisted:
                unknown = ", ".join(f"{label!r} ({number} tweets)" for label, number in examples.unlisted.items())
                logger.warning("%s: labels that the model does not know are left out: %s", uri, unknown)
            if examples.sha256 == classifier.info["training"]["sha256"]:
                logger.warning("%s: the model was trained on this file, so its scores are flattered", uri)
            targets_NC = examples.targets_of()
            if not (targets_NC == POSITIVE).any():
                raise InputError(f"SET: {uri}: no tweet bears one of the model's labels: {', '.join(labels)}")
            every = np.arange(examples.num_rows)
            scores[uri] = score_labels(
                targets_NC, classifier.scores([text or "" for text in examples.column("text")]), labels,
                prior_C=[priors[label] for label in labels],
                thresholds_C=[classifier.thresholds[label] for label in labels],
                negative_N=examples.negative(every),
                groups={name: examples.values(name, every) for name in reading.groups if name in examples.columns},
                num_bootstrap=num_bootstrap, seed=classifier.info["training"]["seed"],
            )  # fmt: skip
    return scores
