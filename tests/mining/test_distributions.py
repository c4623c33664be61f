from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from mining import oracles
from scalemine.config import MiningConfig
from scalemine.executor import InlineExecutor
from scalemine.mining import sampling
from scalemine.mining.anchors import Anchors
from scalemine.mining.distributions import (
    HISTOGRAM_BINS,
    Forecast,
    fit,
    forecast,
    histogram_table,
    measure,
    of_sample,
    positive_steps,
    weak_anchor_warnings,
)
from scalemine.mining.embeddings import Similarities
from scalemine.mining.similarity import STEPS_PER_UNIT, count_steps
from scalemine.shards import matrix_column

NAMES = ("fire", "flood")


def normal_steps(seed: int, num_rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal([2000, 6000], [1500, 2500], (num_rows, 2)).astype(np.int16)


@pytest.mark.parametrize("rows_per_shard", [1, 7, 1000])
def test_measure_over_shards_equals_all_at_once(tmp_path, rows_per_shard):
    steps = normal_steps(1, 60)
    valid = np.random.default_rng(2).random(60) > 0.2
    all_ids = [f"t{i}" for i in range(60)]
    corpus = oracles.make_corpus(tmp_path, all_ids, [f"text {i}" for i in range(60)], rows_per_shard)
    files = Similarities(oracles.make_stage(tmp_path / "similarities"), corpus)
    start = 0
    for shard in corpus.shards:
        rows = slice(start, start + shard.num_rows)
        ids = corpus.read(shard, ["id"])["id"].to_pylist()
        assert ids == all_ids[rows]
        column = matrix_column(steps[rows], valid[rows])
        files.write(shard, pa.table({"key": sampling.row_keys(ids), "steps": column}))
        start += shard.num_rows
    measured = measure(files, NAMES, InlineExecutor())
    assert [one.class_name for one in measured] == list(NAMES)
    assert np.array_equal([one.counts_B for one in measured], count_steps(steps[valid]))


def test_measure_says_what_went_wrong(tmp_path):
    corpus = oracles.make_corpus(tmp_path, ["t1"], ["text"], 10)
    with pytest.raises(RuntimeError, match="cannot be counted"):
        measure(Similarities(oracles.make_stage(tmp_path / "similarities"), corpus), NAMES, InlineExecutor())


def test_of_sample_counts_each_class_by_itself():
    steps = normal_steps(3, 50)
    for index, found in enumerate(of_sample(steps, NAMES)):
        assert found.class_name == NAMES[index]
        assert found.mean == pytest.approx(steps[:, index].mean() / STEPS_PER_UNIT)


def test_fit_has_the_moments():
    steps = normal_steps(4, 400)
    normal = fit(of_sample(steps, NAMES)[1])
    assert normal.mean == pytest.approx(steps[:, 1].mean() / STEPS_PER_UNIT)
    assert normal.std == pytest.approx(steps[:, 1].std() / STEPS_PER_UNIT)


def test_fit_of_tweets_all_alike_stays_finite():
    [distribution] = of_sample(np.full((9, 1), 4321, np.int16), ["flood"])
    normal = fit(distribution)
    assert normal.std > 0
    assert np.isfinite(normal.z(np.array([-1.0, 0.0, 1.0]))).all()
    assert distribution.band_counts(normal, "both") == {1: 9, 2: 0, 3: 0, 4: 0}
    assert np.isfinite(distribution.ks_statistic(normal))


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_forecast_interval_is_clopper_pearson(tails):
    steps = normal_steps(5, 300)
    sample = of_sample(steps, NAMES)
    quotas = {(name, band): 10 * band for name in NAMES for band in (1, 2, 3, 4)}
    found = forecast(sample, quotas, 50_000, tails)
    assert [(one.class_name, one.band) for one in found] == sorted(quotas)
    for one in found:
        column = steps[:, NAMES.index(one.class_name)] / STEPS_PER_UNIT
        hits = sum(oracles.band_of(z, tails) == one.band for z in (column - column.mean()) / column.std())
        interval = binomtest(hits, 300).proportion_ci(0.95, method="exact")
        assert one.expected == pytest.approx(50_000 * hits / 300)
        assert one.low == pytest.approx(50_000 * interval.low)
        assert one.high == pytest.approx(50_000 * interval.high)
        assert one.quota == 10 * one.band


def test_forecast_at_none_and_all():
    [sample] = of_sample(np.full((30, 1), 100, np.int16), ["flood"])
    first, third = forecast([sample], {("flood", 1): 5, ("flood", 3): 5, ("other", 2): 1}, 1_000, "both")
    assert (first.expected, first.high) == (1_000, 1_000)
    assert first.low == pytest.approx(1_000 * binomtest(30, 30).proportion_ci(0.95, method="exact").low)
    assert (third.expected, third.low) == (0, 0)
    assert third.high == pytest.approx(1_000 * binomtest(0, 30).proportion_ci(0.95, method="exact").high)
    assert third.may_fall_short
    assert not third.falls_short


def test_forecast_says_when_a_band_falls_short():
    one = Forecast("flood", 3, quota=10, expected=9.0, low=4.0, high=14.0)
    assert (one.may_fall_short, one.falls_short) == (True, False)
    assert replace(one, high=9.9).falls_short
    assert not replace(one, expected=10.0).may_fall_short
    assert one.as_dict()["quota"] == 10


@pytest.mark.parametrize("spread", [0, 3, 400, 60_000])
def test_histogram_table_holds_every_tweet_once(spread):
    rng = np.random.default_rng(6)
    steps = (rng.integers(0, spread + 1, (300, 1)) - spread // 2).astype(np.int16)
    steps = np.concatenate([steps, np.array([[2**15 - 1], [-(2**15)]], np.int16)]) if spread == 60_000 else steps
    sample = of_sample(steps, ["flood"])
    rows = histogram_table(sample).to_pylist()
    assert len(rows) <= HISTOGRAM_BINS + 1
    assert sum(row["count"] for row in rows) == len(steps)
    values = steps[:, 0] / STEPS_PER_UNIT
    for row in rows:
        assert row["count"] == sum(row["low"] < value < row["high"] for value in values)
    assert [row["high"] for row in rows[:-1]] == [row["low"] for row in rows[1:]]


def test_histogram_table_keeps_classes_apart():
    rows = histogram_table(of_sample(normal_steps(7, 80), NAMES)).to_pylist()
    for name in NAMES:
        assert sum(row["count"] for row in rows if row["class_name"] == name) == 80


def test_weak_anchors_are_warned_about():
    rows = [{"class_name": "flood", "auc": 0.79}, {"class_name": "fire", "auc": 0.8}]
    [warning] = weak_anchor_warnings(rows, MiningConfig(weak_auc=0.8))
    assert "flood" in warning
    assert "0.79" in warning


def test_positive_steps_are_per_class():
    vectors = oracles.unit_rows(np.random.default_rng(8), 5, 6)
    classes = np.array([0, 1, 0, 1, 1])
    anchors = Anchors(NAMES, vectors[:2], tuple("12345"), classes, vectors, tuple("abcde"))
    found = positive_steps(anchors)
    assert {name: len(steps) for name, steps in found.items()} == {"fire": 2, "flood": 3}
    # Of two positives, each is the anchor of the other.
    assert found["fire"] / STEPS_PER_UNIT == pytest.approx([oracles.cosine(vectors[0], vectors[2])] * 2, abs=2e-5)
