"""What all trained models that give labels have in common, seen from who uses one.

Shapes: N texts, C labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class LabelModel(ABC):
    """A trained model that gives labels: fine-tuned, classical, on word vectors, or several together.

    Attributes:
        info: What its folder says of it: ``labels`` and ``thresholds`` at least.
    """

    info: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the columns of ``scores``."""
        return list(self.info["labels"])

    @property
    def thresholds(self) -> dict[str, float]:
        """By label, the least score at which a text has it."""
        return {label: self.info["thresholds"][label] for label in self.labels}

    @abstractmethod
    def normalise(self, text: str) -> str:
        """Return a text as the model reads it: those that are read alike have the same scores."""

    @abstractmethod
    def scores_of_normalised(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what ``scores`` does, of texts that are normalised."""

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the scores of the labels ``(N, C)``, each in [0, 1]: probabilities, or shares of votes.

        Those of a text are the same, to the last bit, whatever the other texts. Texts that are cut give a warning.

        Raises:
            ValueError: ``texts`` is one text rather than several.
        """
        if isinstance(texts, str):
            raise ValueError("expected several texts, got one; give [text]")
        return self.scores_of_normalised([self.normalise(text) for text in texts])

    # As who knows scikit-learn calls it.
    predict = scores

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return for each text the labels whose score reaches their threshold, with that score."""
        thresholds = self.thresholds
        return [
            {label: score for (label, least), score in zip(thresholds.items(), scores, strict=True) if score >= least}
            for scores in self.scores(texts).tolist()
        ]
