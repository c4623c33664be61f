"""Labelled tweets against predictions: from a model, or from a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.config import InputError
from scalemine.store import write_whole
from scalemine.training.tagging.datasets import Dataset, Document, read_dataset
from scalemine.training.tagging.metrics import score


def score_documents(
    documents: Sequence[Document],
    predicted: Sequence[Sequence[str]],
    *,
    known_surfaces: Collection[tuple[str, str]] | None = None,
    num_bootstrap: int = 1_000,
) -> dict[str, Any]:
    """Return the scores of predicted tags of some tweets, with false alarms by where a negative comes from."""
    return score(
        [document.tags for document in documents],
        predicted,
        [document.words for document in documents],
        negative_kinds=[document.negative_kind for document in documents],
        known_surfaces=known_surfaces,
        num_bootstrap=num_bootstrap,
    )


def write_predictions(documents: Sequence[Document], predicted: Sequence[Sequence[str]], path: Path) -> None:
    """Write what was predicted of some tweets: id, where a negative comes from, gold and predicted tags."""
    columns = {
        "id": pa.array([document.id for document in documents], pa.string()),
        "negative_kind": pa.array([document.negative_kind for document in documents], pa.string()),
        "gold": pa.array([document.tags for document in documents], pa.list_(pa.string())),
        "predicted": pa.array([list(tags) for tags in predicted], pa.list_(pa.string())),
    }
    with write_whole(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def score_dataset(dataset: Dataset, predicted: Sequence[Sequence[str]], *, num_bootstrap: int) -> dict[str, Any]:
    """Return the scores of predicted tags of a file's tweets, and how many of its spans are inexact."""
    scores = score_documents(dataset.documents, predicted, num_bootstrap=num_bootstrap)
    return scores | {"num_inexact": dataset.num_inexact}


def score_files(gold_uri: str, predicted_uri: str, *, num_bootstrap: int) -> dict[str, Any]:
    """Return the scores of a file of predictions.

    Raises:
        InputError: A file cannot be read, or they do not hold the same words in the same order.
    """
    gold = read_dataset(gold_uri, key="GOLD")
    predicted = read_dataset(predicted_uri, key="PRED", are_predictions=True)
    if len(gold.documents) != len(predicted.documents):
        raise InputError(
            f"{predicted_uri}: {len(predicted.documents)} tweets with words, expected the {len(gold.documents)} of "
            f"{gold_uri}, in the same order"
        )
    for number, (one, other) in enumerate(zip(gold.documents, predicted.documents, strict=True)):
        if one.words != other.words:
            first = len(commonprefix([one.words, other.words]))
            raise InputError(
                f"{predicted_uri}, row {number} of those with words (id {other.id!r}): from word {first} on, its words "
                f"{_excerpt(other, first)} are not those of {gold_uri}, {_excerpt(one, first)}; "
                f"give the same tweets in the same order"
            )
    return score_dataset(gold, [document.tags for document in predicted.documents], num_bootstrap=num_bootstrap)


def _excerpt(document: Document, first: int) -> str:
    text = " ".join(document.words[first:])
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
