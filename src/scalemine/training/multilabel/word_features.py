"""What classical models read of texts: TF-IDF of words and their sequences, and the number of a lexicon's phrases.

idf(t) = ln((1 + n) / (1 + df(t))) + 1 for n texts, df(t) of which hold t: what Wang et al. 2022 print, and
scikit-learn calls ``smooth_idf``. A row of TF-IDF has length 1, or 0 where no word of it is known.

Shapes: N texts, F features.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from scalemine.config import InputError

logger = logging.getLogger(__name__)

# A phrase may hold words of one letter, which are no features of their own.
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class WordFeatures:
    """Features that were learnt from texts.

    Args:
        terms: Words, and sequences of them parted by spaces, in the order of the features.
        texts_with: Of the texts that were learnt from, how many hold each.
        num_texts: How many texts were learnt from.
        ngrams: Words of the shortest and the longest sequence.
        phrases: Those of a lexicon, words parted by single spaces; if there are any, their number is the last feature.
    """

    terms: tuple[str, ...]
    texts_with: tuple[int, ...]
    num_texts: int
    ngrams: tuple[int, int] = (1, 1)
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.texts_with) or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"{len(self.terms)} terms, some twice or none, and {len(self.texts_with)} counts of them")
        if not 1 <= min(self.texts_with) <= max(self.texts_with) <= self.num_texts:
            raise ValueError(f"terms in {min(self.texts_with)} to {max(self.texts_with)} of {self.num_texts} texts")

    @classmethod
    def fit(
        cls, texts: Sequence[str], *, ngrams: tuple[int, int] = (1, 1), min_df: int = 1, phrases: Sequence[str] = ()
    ) -> WordFeatures:
        """Learn features from texts that are normalised.

        Args:
            texts: The texts.
            ngrams: Words of the shortest and the longest sequence.
            min_df: Texts that a sequence is in, to be a feature.
            phrases: See above.

        Raises:
            InputError: No word of two letters is in so many texts.
        """
        counter = CountVectorizer(ngram_range=ngrams)
        try:
            counts_NF = counter.fit_transform(texts)
        except ValueError:
            raise InputError("the training tweets hold no word of two letters; see train.normaliser") from None
        texts_with_F = np.bincount(counts_NF.indices, minlength=counts_NF.shape[1])
        kept = np.flatnonzero(texts_with_F >= min_df)
        if not len(kept):
            raise InputError(f"baseline.min_df: nothing is in {min_df} of the {len(texts)} training tweets; lower it")
        terms = counter.get_feature_names_out()[kept].tolist()
        return cls(tuple(terms), tuple(texts_with_F[kept].tolist()), len(texts), ngrams, tuple(phrases))

    @property
    def width(self) -> int:
        """How many features there are."""
        return len(self.terms) + bool(self.phrases)

    @property
    def idf(self) -> NDArray[np.float64]:
        """How much a term counts ``(F,)``: the fewer texts hold it, the more."""
        return np.log((1 + self.num_texts) / (1 + np.array(self.texts_with))) + 1

    @cached_property
    def _counter(self) -> CountVectorizer:
        return CountVectorizer(ngram_range=self.ngrams, vocabulary=self.terms)

    def transform(self, texts: Sequence[str]) -> csr_matrix:
        """Return the features ``(N, F)`` of texts that are normalised, float32."""
        if not len(texts):
            return csr_matrix((0, self.width), dtype=np.float32)
        counts_NF = csr_matrix(self._counter.transform(texts), dtype=np.float64)
        counts_NF.data *= self.idf[counts_NF.indices]
        features_NF = normalize(counts_NF, copy=False)
        if self.phrases:
            features_NF = hstack([features_NF, csr_matrix(count_phrases(texts, self.phrases)[:, None])], format="csr")
        return csr_matrix(features_NF, dtype=np.float32)

    def as_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WordFeatures:
        """Return the features that were written as JSON.

        Raises:
            KeyError: A value is missing.
            TypeError: One is of another type.
            ValueError: They contradict one another.
        """
        shortest, longest = values["ngrams"]
        return cls(
            tuple(map(str, values["terms"])), tuple(map(int, values["texts_with"])), int(values["num_texts"]),
            (int(shortest), int(longest)), tuple(map(str, values["phrases"])),
        )  # fmt: skip


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, as phrases are looked for."""
    return _WORD.findall(text.casefold())


def count_phrases(texts: Sequence[str], phrases: Collection[str]) -> NDArray[np.int64]:
    """Return how many of some phrases each text holds ``(N,)``, as whole words; one that is there twice counts once.

    Args:
        texts: The texts.
        phrases: Words parted by single spaces, as ``read_lexicon`` gives them.

    Source: De la Peña Sarracén & Rosso 2019, the number of aggressive phrases in a tweet.
    """
    wanted = frozenset(phrases)
    lengths = sorted({phrase.count(" ") + 1 for phrase in wanted})
    counts_N = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        words = words_of(text)
        there = {" ".join(words[at : at + n]) for n in lengths for at in range(len(words) - n + 1)}
        counts_N[row] = len(there & wanted)
    return counts_N


def read_lexicon(path: Path, normalise: Callable[[str], str]) -> tuple[str, ...]:
    """Return the phrases of a text file, one a line, normalised as the tweets are, each once, in order.

    Raises:
        InputError: The file is not there or is no text, or holds no phrase.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"baseline.lexicon: {path} cannot be read ({error}); expected text in UTF-8, a phrase a line"
        ) from None
    given = [line for line in lines if line.strip()]
    phrases = [" ".join(words_of(normalise(line))) for line in given]
    if lost := phrases.count(""):
        logger.warning("%s: of %d phrases nothing is left after train.normaliser", path, lost)
    found = tuple(dict.fromkeys(phrase for phrase in phrases if phrase))
    if not found:
        raise InputError(f"baseline.lexicon: {path} holds no phrase; expected one a line")
    return found
