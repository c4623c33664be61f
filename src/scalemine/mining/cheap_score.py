"""A cheap score of tweets: what z a class's anchor is likely to give, without the encoder.

It is ridge over a static embedding distilled from the encoder and over TF-IDF, both of the encoder's own tokens, fitted
to all classes at once. Once fitted it is sums of tables over tokens, which take a moment beside the tokenising.

Shapes: N tweets, P tweets of a sample, K classes, V tokens of the encoder, F pairs of tokens, W of both, D dimensions,
T tokens of all texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, hstack
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from scalemine.mining.similarity import Tails

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Of the static embedding: dimensions that are kept, and the constant of its weights.
DIMENSIONS, SIF = 256, 1e-3
# A pair of tokens that one tweet of the sample alone has tells nothing of others.
MIN_TWEETS_OF_PAIR = 2
# Of the ridge, in parts of a tweet's mean squared length.
PENALTIES = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of texts, one after another.

    Args:
        tokens_T: Their numbers.
        lengths_N: How many each text has.
    """

    tokens_T: IntArray
    lengths_N: IntArray

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]]) -> TokenTable:
        """Return the table of lists of tokens."""
        lengths_N = np.fromiter(map(len, ids), np.int64, len(ids))
        tokens_T = np.fromiter(itertools.chain.from_iterable(ids), np.int64, int(lengths_N.sum()))
        return cls(tokens_T, lengths_N)

    def counts(self, num_tokens: int) -> csr_matrix:
        """Return how often each text has each token ``(N, V)``."""
        starts = np.concatenate([[0], np.cumsum(self.lengths_N)])
        shape = (len(self.lengths_N), num_tokens)
        counts_NV = csr_matrix((np.ones(len(self.tokens_T)), self.tokens_T, starts), shape=shape)
        counts_NV.sum_duplicates()
        return counts_NV

    def pairs(self, num_tokens: int) -> tuple[IntArray, IntArray]:
        """Return the text of each pair of neighbouring tokens, and a number for the pair."""
        rows_T = np.repeat(np.arange(len(self.lengths_N)), self.lengths_N)
        inside = rows_T[:-1] == rows_T[1:]
        return rows_T[:-1][inside], (self.tokens_T[:-1] * num_tokens + self.tokens_T[1:])[inside]


@dataclass(frozen=True, eq=False)
class Features:
    """What the cheap score looks at; rows of length 1 that hang on a text's tokens alone.

    Args:
        static_VD: Weighted vector of each token.
        idf_V: Weight of each token in TF-IDF, 0 where no probed tweet has it.
        pairs_F: Numbers of the pairs that count, rising.
        pair_idf_F: Their weights.
    """

    static_VD: NDArray[np.float32]
    idf_V: FloatArray
    pairs_F: IntArray
    pair_idf_F: FloatArray

    def static(self, counts_NV: csr_matrix) -> NDArray[np.float32]:
        """Return the static embeddings ``(N, D)``: the direction of the sum of the tokens' vectors."""
        sums_ND = counts_NV.astype(np.float32) @ self.static_VD
        return np.asarray(sums_ND / _lengths(sums_ND)[:, None], np.float32)

    def words(self, table: TokenTable, counts_NV: csr_matrix) -> csr_matrix:
        """Return TF-IDF of tokens and of pairs of them ``(N, V + F)``."""
        tokens_NV = csr_matrix(
            (counts_NV.data * self.idf_V[counts_NV.indices], counts_NV.indices, counts_NV.indptr), counts_NV.shape
        )
        rows, numbers = table.pairs(len(self.idf_V))
        places = np.searchsorted(self.pairs_F, numbers)
        known = places < len(self.pairs_F)
        known[known] = self.pairs_F[places[known]] == numbers[known]
        rows, places = rows[known], places[known]
        pairs_NF = csr_matrix(
            (self.pair_idf_F[places], (rows, places)), shape=(len(table.lengths_N), len(self.pairs_F))
        )
        words = hstack([tokens_NV, pairs_NF], format="csr")
        rows = np.repeat(np.arange(words.shape[0]), np.diff(words.indptr))
        squares_N = np.bincount(rows, weights=words.data**2, minlength=words.shape[0])
        words.data /= np.sqrt(np.maximum(squares_N, 1e-12))[rows]
        return words


def _lengths(rows_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_N: NDArray[np.float32] = np.maximum(np.sqrt((rows_ND * rows_ND).sum(axis=1)), np.float32(1e-6))
    return lengths_N


def learn_features(table: TokenTable, vectors_VD: NDArray[np.float32]) -> Features:
    """Return the features, weighted by how frequent tokens and pairs are in the probe.

    Args:
        table: Tokens of the probe.
        vectors_VD: The encoder's embedding of each token as a sentence.

    Source: Tulkens and van Dongen (2024), Model2Vec: a vocabulary put through the encoder, principal components, and
    weights of Arora, Liang and Ma (2017), a / (a + p(token)); here p is that of the probe.
    """
    num_tokens, num_rows = len(vectors_VD), len(table.lengths_N)
    centred_VD = vectors_VD.astype(np.float64) - vectors_VD.mean(axis=0, dtype=np.float64)
    _, axes_DD = np.linalg.eigh(centred_VD.T @ centred_VD)
    components_VD = centred_VD @ axes_DD[:, ::-1][:, :DIMENSIONS]
    share_V = (np.bincount(table.tokens_T, minlength=num_tokens) + 0.5) / (len(table.tokens_T) + 0.5 * num_tokens)
    tweets_V = np.bincount(table.counts(num_tokens).indices, minlength=num_tokens)
    idf_V = np.where(tweets_V > 0, _idf(tweets_V, num_rows), 0.0)
    rows, numbers = table.pairs(num_tokens)
    _, numbers = np.unique(np.stack([rows, numbers]), axis=1)
    pairs_F, tweets_F = np.unique(numbers, return_counts=True)
    often = tweets_F >= MIN_TWEETS_OF_PAIR
    static_VD = (components_VD * (SIF / (SIF + share_V))[:, None]).astype(np.float32)
    return Features(static_VD, idf_V, pairs_F[often], _idf(tweets_F[often], num_rows))


def _idf(num_tweets: IntArray, num_rows: int) -> FloatArray:
    weights: FloatArray = np.log((1 + num_rows) / (1 + num_tweets)) + 1
    return weights


def fit_ridge(gram_PP: FloatArray, targets_PK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit a kernel ridge with the penalty that predicts left-out rows best.

    Args:
        gram_PP: Products of the rows.
        targets_PK: What is predicted, with mean 0.

    Returns:
        The dual coefficients ``(P, K)``, and each row as the others predict it ``(P, K)``.

    Source: Allen (1974), PRESS: without a row, its error is its dual coefficient over that diagonal element of the
    inverse.
    """
    best: tuple[float, FloatArray, FloatArray] | None = None
    unit = np.trace(gram_PP) / len(gram_PP)
    for penalty in PENALTIES:
        factor, failed = lapack.dpotrf(gram_PP + penalty * unit * np.eye(len(gram_PP)), lower=1)
        assert not failed, failed
        inverse, failed = lapack.dpotri(factor, lower=1)
        assert not failed, failed
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        dual_PK = inverse @ targets_PK
        errors_PK = dual_PK / np.diag(inverse)[:, None]
        loss = float((errors_PK**2).mean())
        if best is None or loss < best[0]:
            best = loss, dual_PK, targets_PK - errors_PK
    assert best is not None
    return best[1:]


@dataclass(frozen=True, eq=False)
class CheapScore:
    """The fitted score.

    Args:
        static_VD: See ``Features``.
        idf_V: See ``Features``.
        pairs_F: See ``Features``.
        pair_idf_F: See ``Features``.
        tokens_VK: What a token's static vector adds to each class, before it is divided by the text's length.
        words_WK: What a token or pair adds by TF-IDF ``(V + F, K)``.
        constant_K: What is added to all.
        spread_K: Standard deviation of the errors.
    """

    static_VD: NDArray[np.float32]
    idf_V: FloatArray
    pairs_F: IntArray
    pair_idf_F: FloatArray
    tokens_VK: FloatArray
    words_WK: FloatArray
    constant_K: FloatArray
    spread_K: FloatArray

    def predict(self, table: TokenTable) -> FloatArray:
        """Return the predicted z ``(N, K)``; of a text it is the same bits in any company."""
        counts_NV = table.counts(len(self.idf_V))
        lengths_N = _lengths(counts_NV.astype(np.float32) @ self.static_VD).astype(np.float64)
        features = Features(self.static_VD, self.idf_V, self.pairs_F, self.pair_idf_F)
        words_NK = features.words(table, counts_NV) @ self.words_WK
        return np.asarray(self.constant_K + counts_NV @ self.tokens_VK / lengths_N[:, None] + words_NK)

    def chances(self, table: TokenTable, bands: Sequence[int], tails: Tails) -> FloatArray:
        """Return how probable it is that a text is wanted ``(N,)``."""
        return chances(self.predict(table), self.spread_K, bands, tails)


def learn(table: TokenTable, vectors_VD: NDArray[np.float32], z_PK: FloatArray) -> tuple[CheapScore, FloatArray]:
    """Learn the score on a sample; return it, and each row as the others predict it ``(P, K)``.

    Args:
        table: Tokens of the sample.
        vectors_VD: The encoder's embedding of each token as a sentence.
        z_PK: What is predicted.
    """
    with threadpool_limits(1):  # the last bits hang on the number of threads
        features = learn_features(table, vectors_VD)
        counts_PV = table.counts(len(vectors_VD))
        static_PD = features.static(counts_PV).astype(np.float64)
        centre_D = static_PD.mean(axis=0)
        static_PD = static_PD - centre_D
        scale = float(np.sqrt((static_PD**2).sum(axis=1).mean())) or 1.0
        words_PW = features.words(table, counts_PV)
        mean_K = z_PK.mean(axis=0)
        gram_PP = (static_PD / scale) @ (static_PD / scale).T + (words_PW @ words_PW.T).toarray()
        dual_PK, left_out_PK = fit_ridge(gram_PP, z_PK - mean_K)
        weights_DK = static_PD.T @ dual_PK / scale**2
        score = CheapScore(
            **{field.name: getattr(features, field.name) for field in fields(Features)},
            tokens_VK=features.static_VD.astype(np.float64) @ weights_DK,
            words_WK=np.asarray(words_PW.T @ dual_PK),
            constant_K=mean_K - centre_D @ weights_DK,
            spread_K=np.maximum((z_PK - mean_K - left_out_PK).std(axis=0), 1e-6),
        )
    return score, left_out_PK + mean_K


def chances(predicted_NK: FloatArray, spread_K: FloatArray, bands: Sequence[int], tails: Tails) -> FloatArray:
    """Return how probable it is ``(N,)`` that z of any class lies in a band, if errors are normal and independent."""
    none_N = np.ones(len(predicted_NK))
    wanted_NK = np.zeros_like(predicted_NK)
    for band in bands:
        low, high = band - 1.0, np.inf if band == 4 else float(band)
        sides = ((low, high), (-high, -low)) if tails == "both" else ((low, high),)
        for below, above in sides:
            wanted_NK += ndtr((above - predicted_NK) / spread_K) - ndtr((below - predicted_NK) / spread_K)
    for wanted_N in wanted_NK.T:
        none_N *= 1 - np.minimum(wanted_N, 1.0)
    return 1 - none_N
