from __future__ import annotations

from collections import Counter
from math import erf, inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.mining.cheap_score import DIMENSIONS, SIF, TokenTable, chances, fit_ridge, learn, learn_features

NUM_TOKENS = 9
TEXTS = st.lists(st.lists(st.integers(0, NUM_TOKENS - 1), max_size=7), min_size=1, max_size=12)


def planted(num_rows: int, seed: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Texts of 40 tokens, the tokens' vectors, and two targets that are nearly linear in the texts' directions."""
    rng = np.random.default_rng(seed)
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    texts = [rng.integers(0, 40, rng.integers(1, 9)).tolist() for _ in range(num_rows)]
    sums = np.stack([vectors[text].sum(axis=0) for text in texts])
    return texts, vectors, sums[:, :2] / np.linalg.norm(sums, axis=1, keepdims=True)


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_counts_and_pairs_are_those_of_the_texts(texts: list[list[int]]) -> None:
    table = TokenTable.of(texts)
    expected = [[text.count(token) for token in range(NUM_TOKENS)] for text in texts]
    assert table.counts(NUM_TOKENS).toarray().tolist() == expected
    rows, numbers = table.pairs(NUM_TOKENS)
    found = [(int(row), divmod(int(number), NUM_TOKENS)) for row, number in zip(rows, numbers, strict=True)]
    assert found == [(row, pair) for row, text in enumerate(texts) for pair in zip(text, text[1:], strict=False)]


@settings(max_examples=50, deadline=None)
@given(TEXTS.filter(any), st.integers(0, 2**31))
def test_features_are_those_of_the_formulas(texts: list[list[int]], seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((NUM_TOKENS, 4)).astype(np.float32)
    table = TokenTable.of(texts)
    features = learn_features(table, vectors)
    total = sum(map(len, texts))
    tweets = Counter(token for text in texts for token in set(text))
    pairs = Counter(pair for text in texts for pair in set(zip(text, text[1:], strict=False)))
    idf = {key: log((1 + len(texts)) / (1 + count)) + 1 for key, count in (tweets | pairs).items()}
    for index, text in enumerate(texts):
        # Without a dimension left out, principal components turn the centred vectors and nothing else.
        weights = {
            token: SIF / (SIF + (sum(t.count(token) for t in texts) + 0.5) / (total + 0.5 * NUM_TOKENS))
            for token in set(text)
        }
        centred = vectors - vectors.mean(axis=0)
        direction = sum((weights[token] * centred[token] for token in text), np.zeros(4))
        static = features.static(table.counts(NUM_TOKENS))
        length = max(np.linalg.norm(direction), 1e-6)
        gram = static @ static[index]
        other = sum((SIF / (SIF + share(texts, t)) * centred[t] for t in texts[0]), np.zeros(4))
        assert gram[0] == pytest.approx(other @ direction / length / max(np.linalg.norm(other), 1e-6), abs=1e-3)
        words = Counter({token: text.count(token) * idf[token] for token in set(text)})
        for pair in zip(text, text[1:], strict=False):
            if pairs[pair] >= 2:
                words[pair] += idf[pair]
        row = features.words(table, table.counts(NUM_TOKENS))[index]
        expected = np.array(sorted(words.values())) / max(sqrt(sum(value**2 for value in words.values())), 1e-6)
        assert sorted(row.data.tolist()) == pytest.approx(expected.tolist())


def share(texts: list[list[int]], token: int) -> float:
    return (sum(t.count(token) for t in texts) + 0.5) / (sum(map(len, texts)) + 0.5 * NUM_TOKENS)


def test_left_out_rows_are_predicted_by_the_others() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((12, 3))
    targets = rows @ rng.standard_normal((3, 2)) + 0.1 * rng.standard_normal((12, 2))
    gram = rows @ rows.T
    dual, left_out = fit_ridge(gram, targets)
    # The penalty that was taken, from the fit: (G + c I) dual = targets.
    penalty = float(np.mean((targets - gram @ dual) / dual))
    for row in range(12):
        others = np.arange(12) != row
        refitted = np.linalg.solve(gram[np.ix_(others, others)] + penalty * np.eye(11), targets[others])
        assert gram[row, others] @ refitted == pytest.approx(left_out[row], abs=1e-9)


def test_what_is_learnt_predicts_other_texts_with_the_spread_it_says() -> None:
    texts, vectors, z = planted(400, 1)
    score, left_out = learn(TokenTable.of(texts), vectors, z)
    others, _, z_others = planted(400, 2)
    errors = score.predict(TokenTable.of(others)) - z_others
    assert (errors.std(axis=0) < 0.4 * z_others.std(axis=0)).all()
    assert errors.std(axis=0) == pytest.approx(score.spread_K, rel=0.25)
    assert (left_out - z).std(axis=0) == pytest.approx(score.spread_K)


def test_a_text_has_the_same_bits_in_any_company() -> None:
    texts, vectors, z = planted(120, 3)
    score, _ = learn(TokenTable.of(texts), vectors, z)
    texts = [*planted(300, 4)[0], [], [7]]
    whole = score.predict(TokenTable.of(texts))
    assert np.isfinite(whole).all()
    for start, stop in ((0, 1), (17, 90), (250, 302), (300, 301), (301, 302)):
        assert (score.predict(TokenTable.of(texts[start:stop])) == whole[start:stop]).all()


def test_no_more_dimensions_are_kept_than_are_wanted() -> None:
    vectors = np.random.default_rng(5).standard_normal((300, DIMENSIONS + 40)).astype(np.float32)
    assert learn_features(TokenTable.of([[0, 1], [2]]), vectors).static_VD.shape == (300, DIMENSIONS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=2),
    st.sets(st.sampled_from([1, 2, 3, 4]), min_size=1),
    st.sampled_from(["both", "upper"]),
)
def test_chances_are_those_of_normal_errors(predicted: list[float], bands: set[int], tails: str) -> None:
    spread = np.array([0.5, 1.2])
    none = 1.0
    for mean, sigma in zip(predicted, spread, strict=True):
        inside = 0.0
        for band in bands:
            low, high = band - 1, band if band < 4 else inf
            for side in (1, -1) if tails == "both" else (1,):
                below, above = (low, high) if side == 1 else (-high, -low)
                inside += cdf((above - mean) / sigma) - cdf((below - mean) / sigma)
        none *= 1 - inside
    found = chances(np.array([predicted]), spread, sorted(bands), tails)  # type: ignore[arg-type]
    assert found == pytest.approx([1 - none], abs=1e-9)


def cdf(value: float) -> float:
    return (1 + erf(value / sqrt(2))) / 2
