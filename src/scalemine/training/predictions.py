"""What a trained model finds in texts, whatever it is: probabilities of labels, or spans.

A model is taken by what it does: one that has ``tag`` gives spans, a ``LabelModel`` labels.

Shapes: D distinct texts, N rows of a table, C classes: labels, or types of spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.config import InputError
from scalemine.training.kept import load_model
from scalemine.training.multilabel.label_model import LabelModel

# Before the name of a label, the column of its probabilities.
PROBABILITY = "p_"
# How surely a span has to be there, for what is told of doubtful ones, where nobody says.
SPAN_THRESHOLD = 0.5
_SPAN = pa.struct(
    {"start": pa.int32(), "end": pa.int32(), "type": pa.string(), "text": pa.string(), "probability": pa.float32()}
)


class Found(Protocol):
    """What was found in some distinct texts."""

    def columns(self, source_N: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Return the columns of rows, each of which has the text of this place; null where it is -1."""

    def has_class(self) -> NDArray[np.bool_]:
        """Return which texts have which class ``(D, C)``."""

    def entries(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
        """Return what is scored of a class: places of texts, probabilities, and the characters, if they are a part."""

    def as_json(self) -> list[dict[str, Any]]:
        """Return what was found in each text."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The probabilities ``(D, C)`` of labels, float32, and from which on a text has each ``(C,)``."""

    names: tuple[str, ...]
    probabilities_DC: NDArray[np.float32]
    thresholds_C: NDArray[np.float64]

    def has_class(self) -> NDArray[np.bool_]:
        """Return which texts have which label ``(D, C)``."""
        return self.probabilities_DC.astype(np.float64) >= self.thresholds_C

    def columns(self, source_N: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Return the labels and all probabilities; see ``Found``."""
        has_DC, is_null_N = self.has_class(), source_N < 0
        of_text = [[self.names[place] for place in np.flatnonzero(has_C)] for has_C in has_DC]
        labels = [None if place < 0 else of_text[place] for place in source_N.tolist()]
        columns = {"labels": pa.array(labels, pa.list_(pa.string()))}
        at_N = np.maximum(source_N, 0)
        for place, name in enumerate(self.names):
            of_D = self.probabilities_DC[:, place]
            values_N = of_D[at_N] if len(of_D) else np.zeros(len(at_N), np.float32)
            columns[PROBABILITY + name] = pa.array(values_N, pa.float32(), mask=is_null_N)
        return columns

    def entries(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
        """Return the probability of a label in every text; see ``Found``."""
        return np.arange(len(self.probabilities_DC)), self.probabilities_DC[:, place].astype(np.float64), []

    def as_json(self) -> list[dict[str, Any]]:
        """Return for each text its labels, and all probabilities."""
        return [
            {
                "labels": [self.names[place] for place in np.flatnonzero(has_C)],
                "probabilities": {name: round(p, 6) for name, p in zip(self.names, row, strict=True)},
            }
            for has_C, row in zip(self.has_class(), self.probabilities_DC.tolist(), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of some texts, each with start, end, type, text and confidence."""

    names: tuple[str, ...]
    spans: Sequence[Sequence[Any]]

    def has_class(self) -> NDArray[np.bool_]:
        """Return which texts have a span of which type ``(D, C)``."""
        has_DC = np.zeros((len(self.spans), len(self.names)), np.bool_)
        for place, of_text in enumerate(self.spans):
            for span in of_text:
                has_DC[place, self.names.index(span.type)] = True
        return has_DC

    def columns(self, source_N: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Return the spans; see ``Found``."""
        of_text = self._dicts()
        values = [None if place < 0 else of_text[place] for place in source_N.tolist()]
        return {"spans": pa.array(values, pa.list_(_SPAN))}

    def _dicts(self) -> list[list[dict[str, Any]]]:
        return [
            [
                dict(zip(_SPAN.names, (one.start, one.end, one.type, one.text, one.confidence), strict=True))
                for one in of
            ]
            for of in self.spans
        ]

    def entries(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
        """Return the spans of a type; see ``Found``."""
        name = self.names[place]
        found = [(at, one) for at, of_text in enumerate(self.spans) for one in of_text if one.type == name]
        return (
            np.array([at for at, _ in found], np.int64),
            np.array([one.confidence for _, one in found], np.float64),
            [one.text for _, one in found],
        )

    def as_json(self) -> list[dict[str, Any]]:
        """Return the spans of each text."""
        return [
            {"spans": [one | {"probability": round(float(one["probability"]), 6)} for one in of_text]}
            for of_text in self._dicts()
        ]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model as it is used on many texts.

    Args:
        gives: What it finds.
        names: The classes.
        thresholds: Of each class: from which probability on a label counts, or a span is surely there.
        normalise: A text as the model reads it; texts that are read alike have the same prediction.
        read: What is found in texts that are normalised.
    """

    gives: Literal["labels", "spans"]
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    normalise: Callable[[str], str]
    read: Callable[[Sequence[str]], Found]


def load_predictor(
    folder: str | Path, *, min_probability: float | None = None, precision: str = "float32"
) -> Predictor:
    """Load a model from its folder, or from that of the run that wrote it.

    Args:
        folder: The folder.
        min_probability: Instead of the thresholds of labels; spans below are left out. None: thresholds, all spans.
        precision: In which a fine-tuned classifier computes.

    Raises:
        InputError: There is none, it is damaged, or gives neither labels nor spans.
    """
    return predictor_of(load_model(folder, precision=precision), str(folder), min_probability)


def predictor_of(model: Any, name: str, min_probability: float | None = None) -> Predictor:  # noqa: ANN401  by what it does
    """Return a model that is loaded as a predictor; see ``load_predictor``."""
    if hasattr(model, "tag"):
        return _of_spans(model, min_probability)
    if not isinstance(model, LabelModel):
        raise InputError(f"{name}: a {type(model).__name__} gives neither spans nor labels of texts")
    names = tuple(model.labels)
    given = [float(model.thresholds[one]) for one in names]
    thresholds_C = np.array(given if min_probability is None else [min_probability] * len(names), np.float64)

    def read(texts: Sequence[str]) -> Labels:
        return Labels(names, model.scores_of_normalised(texts), thresholds_C)

    return Predictor("labels", names, tuple(thresholds_C.tolist()), model.normalise, read)


def _of_spans(model: Any, min_probability: float | None) -> Predictor:  # noqa: ANN401
    names, least = tuple(model.types), min_probability or 0.0

    def read(texts: Sequence[str]) -> Spans:
        return Spans(names, [[span for span in found if span.confidence >= least] for found in model.tag(list(texts))])

    threshold = SPAN_THRESHOLD if min_probability is None else min_probability
    # Spans are given by characters of the text as it is.
    return Predictor("spans", names, (threshold,) * len(names), str, read)
