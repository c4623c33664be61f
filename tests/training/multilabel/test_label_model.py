from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from scalemine.training.multilabel.label_model import LabelModel


class Letters(LabelModel):
    """The share of a text's letters that are a label's."""

    def __init__(self, **thresholds: float) -> None:
        self.info = {"labels": list(thresholds), "thresholds": thresholds}

    def normalise(self, text: str) -> str:
        return text.lower()

    def scores_of_normalised(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[text.count(label) / len(text) for label in self.labels] for text in texts], np.float32)


def test_texts_are_normalised_and_labelled_from_their_threshold_on() -> None:
    model = Letters(b=0.5, a=0.25)
    assert model.labels == ["b", "a"]
    assert model.scores(["AB", "aaab"]).tolist() == model.predict(["AB", "aaab"]).tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert model.classify(["AB", "aaab", "ccc"]) == [{"b": 0.5, "a": 0.5}, {"a": 0.75}, {}]


def test_one_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected several texts, got one; give \[text\]"):
        Letters(a=0.5).scores("a text")


def test_what_gives_no_scores_is_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        LabelModel()  # type: ignore[abstract]
