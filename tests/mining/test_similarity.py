from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mining import oracles
from scalemine.mining import similarity
from scalemine.mining.similarity import (
    BANDS,
    NUM_STEPS,
    STEPS_PER_UNIT,
    Normal,
    SimilarityDistribution,
    anchor_grid,
    count_steps,
    describe,
    similarities,
)

DIM = 384
STEP_LISTS = st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=60)


def distribution(steps, name="flood") -> SimilarityDistribution:
    return SimilarityDistribution(name, count_steps(np.asarray(steps, np.int16)[:, None])[0])


@pytest.fixture(scope="module")
def anchors():
    return oracles.unit_rows(np.random.default_rng(1), 3, DIM)


@pytest.fixture(scope="module")
def vectors(anchors):
    """Random rows, the anchors, their opposites, and rows at every closeness in between."""
    rng = np.random.default_rng(2)
    rows = oracles.unit_rows(rng, 90, DIM)
    near = [anchors[0] * (1 - t) + rows[0] * t for t in np.linspace(0.05, 1, 20)]
    rows = np.concatenate([rows, anchors, -anchors, np.stack(near)])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_similarities_equal_whole_number_oracle(vectors, anchors):
    grid = anchor_grid(anchors)
    steps = similarities(vectors, grid)
    assert steps.dtype == np.int16
    assert steps.tolist() == oracles.exact_steps(vectors, grid)


def test_similarities_are_near_the_cosine(vectors, anchors):
    steps = similarities(vectors, anchor_grid(anchors)) / STEPS_PER_UNIT
    for row, found in zip(vectors, steps, strict=True):
        for anchor, value in zip(anchors, found, strict=True):
            assert abs(value - oracles.cosine(row, anchor)) < 5e-4


@settings(max_examples=40, deadline=None)
@given(
    rows=hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(7)), elements=st.floats(-1, 1, width=32)),
    anchor=hnp.arrays(np.float64, (2, 7), elements=st.floats(-1, 1, width=32)),
)
def test_similarities_equal_oracle_for_any_rows(rows, anchor):
    rows[np.linalg.norm(rows, axis=1) < 0.01] = 1
    anchor[np.linalg.norm(anchor, axis=1) < 0.01] = 1
    rows16 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    grid = anchor_grid(anchor.astype(np.float32))
    assert similarities(rows16, grid).tolist() == oracles.exact_steps(rows16, grid)


def test_anchor_grid_is_the_nearest_whole_number(anchors):
    grid = anchor_grid(anchors * 3)
    assert grid.dtype == np.float32
    assert np.array_equal(grid, np.round(grid))
    units = anchors.astype(np.float64) / np.linalg.norm(anchors.astype(np.float64), axis=1, keepdims=True)
    assert np.abs(grid - units * 4000).max() < 0.501


@pytest.mark.parametrize("block_rows", [1, 7, 10_000])
def test_similarities_do_not_depend_on_blocks(vectors, anchors, block_rows, monkeypatch):
    grid = anchor_grid(anchors)
    expected = similarities(vectors, grid)
    monkeypatch.setattr(similarity, "BLOCK_ROWS", block_rows)
    assert np.array_equal(similarities(vectors, grid), expected)


def test_similarities_do_not_depend_on_threads(threads, anchors):
    rows = oracles.unit_rows(np.random.default_rng(4), 5_000, DIM).astype(np.float16)
    grid = anchor_grid(anchors)
    threads(1)
    alone = similarities(rows, grid)
    threads(2)
    assert np.array_equal(similarities(rows, grid), alone)


def test_similarities_do_not_depend_on_row_order_or_company(vectors, anchors):
    grid = anchor_grid(anchors)
    expected = similarities(vectors, grid)
    order = np.random.default_rng(5).permutation(len(vectors))
    assert np.array_equal(similarities(vectors[order], grid), expected[order])
    assert np.array_equal(similarities(vectors[13:57], grid), expected[13:57])
    assert np.array_equal(np.concatenate([similarities(row[None], grid) for row in vectors]), expected)
    assert np.array_equal(np.concatenate([similarities(vectors, row[None]) for row in grid], axis=1), expected)


def test_similarities_do_not_depend_on_the_order_of_the_sum(vectors, anchors):
    grid = anchor_grid(anchors)
    expected = similarities(vectors, grid)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(DIM)
        assert np.array_equal(
            similarities(np.ascontiguousarray(vectors[:, order]), np.ascontiguousarray(grid[:, order])), expected
        )


def test_similarities_of_no_rows(anchors):
    assert similarities(np.empty((0, DIM), np.float16), anchor_grid(anchors)).shape == (0, 3)


def test_partial_sums_of_tweets_fit_24_bits(anchors):
    # Rows that are no near copies of an anchor, as nearly all tweets.
    rows = oracles.unit_rows(np.random.default_rng(6), 20, DIM).astype(np.float16)
    grid = anchor_grid(anchors)
    for row in rows:
        for anchor in grid:
            products = [a * int(b) for a, b in zip(oracles.grid_of(row), anchor, strict=True)]
            assert max(map(abs, accumulate(products))) <= 2**24


def test_partial_sums_of_copies_of_an_anchor_fit_24_bits():
    rows = oracles.unit_rows(np.random.default_rng(7), 20, 4_096)
    for row, anchor in zip(rows.astype(np.float16), anchor_grid(rows), strict=True):
        assert sum(abs(a * int(b)) for a, b in zip(oracles.grid_of(row), anchor, strict=True)) <= 2**24


def test_count_steps_equals_counter():
    rng = np.random.default_rng(8)
    steps = rng.integers(-(2**15), 2**15, (500, 3)).astype(np.int16)
    steps[:5] = [[-(2**15), 2**15 - 1, 0]] * 5
    histogram = count_steps(steps)
    assert histogram.shape == (3, NUM_STEPS)
    for column, counts in zip(steps.T.tolist(), histogram, strict=True):
        expected = Counter(column)
        assert {int(b) - 2**15: int(counts[b]) for b in np.flatnonzero(counts)} == expected


def test_count_steps_of_no_rows():
    assert not count_steps(np.empty((0, 2), np.int16)).any()


@settings(max_examples=50, deadline=None)
@given(STEP_LISTS)
def test_moments_equal_scipy(steps):
    found = distribution(steps)
    values = np.array(steps) / STEPS_PER_UNIT
    assert found.count == len(steps)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.std == pytest.approx(values.std(), abs=1e-12)
    if len(set(steps)) > 1:
        assert found.skewness == pytest.approx(scipy.stats.skew(values), abs=1e-6)
        assert found.excess_kurtosis == pytest.approx(scipy.stats.kurtosis(values), abs=1e-6)


def test_moments_of_tweets_all_alike():
    found = distribution([1234] * 7)
    assert (found.std, found.skewness, found.excess_kurtosis) == (0, 0, 0)
    assert found.mean == 1234 / STEPS_PER_UNIT


@settings(max_examples=30, deadline=None)
@given(STEP_LISTS, STEP_LISTS)
def test_parts_add_up_to_the_whole(one, other):
    both = distribution(one) + distribution(other)
    whole = distribution(one + other)
    assert np.array_equal(both.counts_B, whole.counts_B)
    assert both.class_name == "flood"


def test_distributions_of_two_classes_do_not_add():
    with pytest.raises(AssertionError):
        distribution([1]) + distribution([1], "fire")


def test_ks_statistic_equals_loop():
    rng = np.random.default_rng(9)
    values = np.round(np.sort(rng.gamma(4, 0.05, 400) - 0.2) * STEPS_PER_UNIT).astype(int)
    found = distribution(values)
    normal = Normal(0.01, 0.09)
    # Each value was rounded from anywhere in its step: spread over it, a step is no jump.
    times = Counter(values.tolist())
    spread = np.concatenate([value + np.linspace(-0.5, 0.5, 50 * number) for value, number in times.items()])
    reference = scipy.stats.kstest(spread / STEPS_PER_UNIT, "norm", args=(0.01, 0.09)).statistic
    assert reference > 0.05
    assert found.ks_statistic(normal) == pytest.approx(reference, abs=1e-3)
    # Without the spreading the two differ by no more than one step holds.
    jumps = scipy.stats.kstest(values / STEPS_PER_UNIT, "norm", args=(0.01, 0.09)).statistic
    assert abs(found.ks_statistic(normal) - jumps) <= found.counts_B.max() / found.count + 1e-3


def test_ks_statistic_of_few_steps():
    # A normal three steps wide, rounded: it is the rounding that must not count.
    quantiles = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000, 100, 3)
    found = distribution(np.rint(quantiles))
    assert found.ks_statistic(Normal(100 / STEPS_PER_UNIT, 3 / STEPS_PER_UNIT)) < 1e-3


def test_ks_statistic_of_a_normal_is_small_and_of_another_large():
    normal = Normal(0.1, 0.05)
    quantiles = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000, 0.1, 0.05)
    found = distribution(np.rint(quantiles * STEPS_PER_UNIT))
    assert found.ks_statistic(normal) < 1e-3
    # Two normals of one sigma, one sigma apart, differ most halfway: 2 Phi(1/2) - 1.
    assert found.ks_statistic(Normal(0.15, 0.05)) == pytest.approx(0.3829, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    st.lists(st.integers(-5, 5), min_size=1, max_size=10),
)
def test_auc_equals_pairwise_loop(tweets, positives):
    wins = sum(1.0 if p > t else 0.5 if p == t else 0.0 for p in positives for t in tweets)
    found = distribution(tweets).auc(np.array(positives, np.int16))
    assert found == pytest.approx(wins / len(tweets) / len(positives))


def test_auc_at_the_ends_of_the_scale():
    tweets = distribution([-(2**15), 2**15 - 1])
    assert tweets.auc(np.array([2**15 - 1], np.int16)) == 0.75
    assert tweets.auc(np.array([-(2**15)], np.int16)) == 0.25


@given(STEP_LISTS, st.floats(0, 1))
def test_quantile_equals_loop(steps, share):
    ordered = sorted(steps)
    # The least value up to which the share lies, among all values, not only those that were seen.
    reached = next(place for place in range(len(ordered) + 1) if place >= share * len(ordered))
    expected = ordered[reached - 1] if reached else -(2**15)
    assert distribution(steps).quantile(share) * STEPS_PER_UNIT == expected


def test_quantiles_of_tweets_all_alike():
    found = distribution([700] * 5)
    assert [found.quantile(share) * STEPS_PER_UNIT for share in (1e-9, 0.5, 1.0)] == [700] * 3


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_band_counts_equal_loop(tails):
    steps = np.random.default_rng(10).normal(3000, 2000, 600).astype(np.int16)
    normal = Normal(3000 / STEPS_PER_UNIT, 2000 / STEPS_PER_UNIT)
    edges = [3000 + z * 2000 for z in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    steps = np.concatenate([steps, np.array(edges, np.int16)])
    expected = Counter(oracles.band_of((int(s) / 2**15 - normal.mean) / normal.std, tails) for s in steps)
    counts = distribution(steps).band_counts(normal, tails)
    assert counts == {band: expected[band] for band in BANDS}
    if tails == "both":
        assert sum(counts.values()) == len(steps)


EDGES = [
    (-4.5, 4, 0), (-3.0, 4, 0), (-2.0, 3, 0), (-1.0, 2, 0), (-0.5, 1, 0), (0.0, 1, 1), (0.5, 1, 1), (1.0, 2, 2),
    (1.75, 2, 2), (2.0, 3, 3), (2.75, 3, 3), (3.0, 4, 4), (3.5, 4, 4),
]  # fmt: skip


@pytest.mark.parametrize(("z", "both", "upper"), EDGES)
def test_bands_at_their_edges(z, both, upper):
    normal = Normal(0.25, 0.125)  # binary fractions, so that z comes out exactly
    cosines = np.array([0.25 + z * 0.125])
    assert normal.z(cosines)[0] == z
    assert normal.bands(cosines, "both")[0] == both
    assert normal.bands(cosines, "upper")[0] == upper
    for tails, band in (("both", both), ("upper", upper)):
        inside = [b for b in BANDS if normal.in_band(cosines, b, tails)[0]]
        assert inside == ([band] if band else [])


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1, 1), st.sampled_from(BANDS), st.sampled_from(["both", "upper"]), st.floats(0, 0.05),
    st.floats(-1, 1),
)  # fmt: skip
def test_in_band_with_margin_never_misses(cosine, band, tails, margin, share):
    normal = Normal(0.1, 0.06)
    off = cosine + share * margin * (1 - 1e-9)
    if oracles.band_of((cosine - normal.mean) / normal.std, tails) == band:
        assert normal.in_band(np.array([off]), band, tails, margin=margin + 1e-12)[0]


def test_in_band_with_margin_is_no_wider_than_the_margin():
    normal = Normal(0.0, 0.125)
    cosines = np.array([0.25 - 0.011, 0.25 - 0.009, 0.3, 0.375 + 0.009, 0.375 + 0.011])
    inside = [False, True, True, True, False]
    assert normal.in_band(cosines, 3, "both", margin=0.01).tolist() == inside
    assert normal.in_band(-cosines, 3, "both", margin=0.01).tolist() == inside
    assert not normal.in_band(-cosines, 3, "upper", margin=0.01).any()
    assert normal.in_band(cosines, 4, "upper", margin=0.01).tolist() == [False, False, False, True, True]


def test_band_shares_of_a_normal():
    assert sum(Normal.band_share(band, "both") for band in BANDS) == pytest.approx(1)
    assert sum(Normal.band_share(band, "upper") for band in BANDS) == pytest.approx(0.5)
    shares = [Normal.band_share(band, "both") for band in BANDS]
    assert shares == pytest.approx([0.6827, 0.2718, 0.0428, 0.0027], abs=1e-4)
    for band in BANDS:
        assert Normal.band_share(band, "upper") == pytest.approx(Normal.band_share(band, "both") / 2)


def test_describe_has_every_key():
    steps = np.random.default_rng(11).normal(0, 2000, 300).astype(np.int16)
    row = describe(
        distribution(steps), Normal(0.0, 0.06), fit={"method": "exact", "rows": 300}, tails="both",
        positive_steps=np.array([20_000, 21_000], np.int16),
    )  # fmt: skip
    assert {
        "class_name", "num_positives", "count", "mean", "std", "skewness", "excess_kurtosis", "ks_statistic",
        "band_counts", "auc", "fit",
    } <= row.keys()  # fmt: skip
    assert (row["class_name"], row["num_positives"], row["count"], row["auc"]) == ("flood", 2, 300, 1.0)
    assert sum(row["band_counts"].values()) == 300
    assert sum(row["band_shares"].values()) == pytest.approx(1)
