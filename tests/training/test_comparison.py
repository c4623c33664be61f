from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from scalemine.training import comparison
from scalemine.training.comparison import (
    Alarms,
    Counts,
    Difference,
    FoldTest,
    Summary,
    false_alarm_difference,
    fold_means,
    fold_test,
    holm,
    paired_bootstrap,
    summarise,
    verdict,
)

Pairs = tuple[list[Counts], list[Counts]]
CORRECT, PREDICTED, GOLD = range(3)
MEASURES = ["f1", "precision", "recall"]


def tagged(gold_N: NDArray[Any], recall: float, generator: np.random.Generator, prefix: str = "") -> Counts:
    """A tagger that finds so large a share of the gold spans, and now and then another one."""
    correct_N = generator.binomial(gold_N, recall)
    predicted_N = correct_N + generator.binomial(1, 0.2, len(gold_N))
    ids = [f"{prefix}{row:04d}" for row in range(len(gold_N))]
    return Counts(ids, np.stack([correct_N, predicted_N, gold_N], axis=1))


def two_arms(num_tweets: int, recalls: tuple[float, float], seed: int, num_folds: int = 1, num_seeds: int = 1) -> Pairs:
    generator = np.random.default_rng(seed)
    base, other = [], []
    for fold in range(num_folds):
        gold_N = generator.integers(0, 3, num_tweets + fold)
        for _ in range(num_seeds):
            base.append(tagged(gold_N, recalls[0], generator, f"fold {fold} "))
            other.append(tagged(gold_N, recalls[1], generator, f"fold {fold} "))
    return base, other


def of_measure(
    base: Sequence[Counts], other: Sequence[Counts], *, measure: Any, rounds: int, seed: int = 0
) -> Difference:
    return paired_bootstrap(base, other, rounds=rounds, seed=seed)[measure]


def measured(rows: Sequence[NDArray[Any]], measure: str) -> float:
    correct, predicted, gold = (sum(int(row[part]) for row in rows) for part in range(3))
    part, whole = {
        "f1": (2 * correct, predicted + gold),
        "precision": (correct, predicted),
        "recall": (correct, gold),
    }[measure]
    return part / whole if whole else 0.0


def per_1000(rows: Sequence[NDArray[Any]]) -> float:
    negatives = [int(row[0]) for row in rows if row[1]]
    return 1_000 * sum(negatives) / len(negatives) if negatives else 0.0


def resampled(
    base: Sequence[tuple[list[str], NDArray[Any]]],
    other: Sequence[tuple[list[str], NDArray[Any]]],
    rate: Callable[[Sequence[NDArray[Any]]], float],
    rounds: int,
    seed: int,
) -> list[float]:
    """Tweet by tweet: the test sets in the order of their ids, each with the next draws of one generator."""
    generator = np.random.default_rng(seed)
    totals = [0.0] * rounds
    for ids in sorted({tuple(ids) for ids, _ in base}):
        for number in range(rounds):
            drawn = generator.integers(len(ids), size=len(ids)).tolist()
            for (one, counts), (_, others) in zip(base, other, strict=True):
                if tuple(one) == ids:
                    totals[number] += rate([others[row] for row in drawn]) - rate([counts[row] for row in drawn])
    return [total / len(base) for total in totals]


def check_resampled(found: Difference, differences: list[float]) -> None:
    assert [found.low, found.high] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-9)
    above = sum(one >= -1e-12 for one in differences)
    below = sum(one <= 1e-12 for one in differences)
    assert found.p == min(1.0, 2 * (min(above, below) + 1) / (len(differences) + 1))


# --- Bootstrap of spans


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("num_folds", "num_seeds"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_bootstrap_is_explicit_resampling_of_tweets(measure, num_folds, num_seeds):
    base, other = two_arms(12, (0.5, 0.7), 3, num_folds, num_seeds)
    found = of_measure(base, other, measure=measure, rounds=99, seed=5)
    values = [[measured(run.counts_N3, measure) for run in arm] for arm in (base, other)]
    assert (found.base, found.other) == pytest.approx(np.mean(values, axis=1))
    assert found.effect == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert (found.measure, found.num_runs) == (measure, num_folds * num_seeds)
    assert found.num_tweets == sum(12 + fold for fold in range(num_folds))
    pairs = [[(run.ids, run.counts_N3) for run in arm] for arm in (base, other)]
    check_resampled(found, resampled(*pairs, lambda rows: measured(rows, measure), 99, 5))


def test_chunks_bound_the_memory_alone(monkeypatch):
    base, other = two_arms(20, (0.5, 0.7), 1, num_folds=2, num_seeds=2)
    whole = of_measure(base, other, measure="f1", rounds=50)
    monkeypatch.setattr(comparison, "_DRAWS_PER_CHUNK", 7 * 20)
    assert of_measure(base, other, measure="f1", rounds=50) == whole


def test_any_order_of_the_runs_gives_the_same():
    base, other = two_arms(30, (0.5, 0.6), 2, num_folds=2, num_seeds=5)
    expected = of_measure(base, other, measure="f1", rounds=200)
    for order in (list(range(10))[::-1], [2, 0, 9, 5, 1, 3, 7, 8, 6, 4]):
        found = of_measure([base[i] for i in order], [other[i] for i in order], measure="f1", rounds=200)
        assert found == expected


def test_exchanged_arms_differ_in_the_sign_alone():
    base, other = two_arms(30, (0.5, 0.6), 2, num_folds=2)
    found = of_measure(base, other, measure="precision", rounds=200)
    turned = of_measure(other, base, measure="precision", rounds=200)
    assert turned.effect == -found.effect
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == found.p


def test_runs_of_one_test_set_are_drawn_together():
    """Two seeds whose differences cancel out in each tweet: a common draw leaves no spread, independent ones would."""
    gold_N = np.ones(40, np.int64)
    finds = np.arange(40) % 2
    runs = [
        Counts([str(row) for row in range(40)], np.stack([one, gold_N, gold_N], axis=1)) for one in (finds, 1 - finds)
    ]
    found = of_measure(runs, runs[::-1], measure="recall", rounds=300)
    assert (found.effect, found.low, found.high, found.p) == (0, 0, 0, 1)
    renamed = [runs[0], replace(runs[1], ids=[f"other {one}" for one in runs[1].ids])]
    apart = of_measure(
        renamed, [replace(runs[1], ids=renamed[0].ids), replace(runs[0], ids=renamed[1].ids)],
        measure="recall", rounds=300,
    )  # fmt: skip
    assert apart.low < -0.1 < 0.1 < apart.high
    assert (found.num_tweets, apart.num_tweets) == (40, 80)


def test_equal_arms_show_no_difference():
    base, _ = two_arms(30, (0.5, 0.5), 0, num_folds=3)
    found = of_measure(base, base, measure="f1", rounds=100)
    assert (found.effect, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_difference_of_rounding_is_none():
    """Tweets of a fold are all alike, so draws change nothing: 0.1 + 0.2 - 0.3 is 0."""
    base, other = (
        [
            Counts([f"{fold} {row}" for row in range(5)], np.array([[found, found, 10]] * 5))
            for fold, found in enumerate(of)
        ]
        for of in ([0, 0, 3], [1, 2, 0])
    )
    found = of_measure(base, other, measure="recall", rounds=20)
    assert (found.low, found.high, found.p) == (0, 0, 1)
    assert all(type(one) is float for one in (found.base, found.other, found.effect, found.low, found.high, found.p))


@pytest.mark.parametrize("measure", MEASURES)
def test_without_a_span_a_measure_is_0(measure):
    nothing = Counts(["a", "b"], np.zeros((2, 3), np.int8))
    found = of_measure([nothing], [nothing], measure=measure, rounds=10)
    assert (found.base, found.other, found.p) == (0, 0, 1)


def test_p_is_uniform_where_arms_are_alike():
    found = []
    for seed in range(400):
        base, other = two_arms(150, (0.6, 0.6), seed, num_folds=2)
        found.append(of_measure(base, other, measure="f1", rounds=400, seed=seed).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_pairing_finds_what_lies_within_the_spread_of_tweets():
    """The other arm finds one span in a hundred more; which tweets are hard is common to both."""
    base, _ = two_arms(600, (0.6, 0.6), 4)
    better_N3 = base[0].counts_N3.copy()
    missed_N = np.flatnonzero(better_N3[:, CORRECT] < better_N3[:, GOLD])[:12]
    better_N3[missed_N, CORRECT] += 1
    better_N3[missed_N, PREDICTED] += 1
    found = of_measure(base, [replace(base[0], counts_N3=better_N3)], measure="recall", rounds=1_000)
    assert found.p == 2 / 1_001
    assert 0 < found.low < found.effect < found.high < 0.05
    # A worse one is worse.
    worse = of_measure([replace(base[0], counts_N3=better_N3)], base, measure="recall", rounds=1_000)
    assert worse.high < 0
    assert worse.p == found.p


def test_interval_covers_the_difference_it_estimates():
    covered = 0
    for seed in range(200):
        base, other = two_arms(200, (0.5, 0.6), seed)
        found = of_measure(base, other, measure="recall", rounds=300, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 199


def test_runs_that_do_not_match_are_refused():
    base, other = two_arms(10, (0.5, 0.7), 0, num_folds=2)
    turned = Counts(base[0].ids[::-1], base[0].counts_N3[::-1])
    more = base[0].counts_N3 + np.array([0, 0, 1])
    cases: list[tuple[Sequence[Counts], Sequence[Counts], str]] = [
        ([], [], "0 runs of the base, 0 of the other arm"),
        (base, other[:1], "2 runs of the base, 1 of the other arm"),
        (base, other[::-1], "pair 0: the runs do not have the same tweets in the same order"),
        ([base[1], base[0]], [other[1], turned], "pair 1: the runs do not have the same tweets in the same order"),
        (base[:1], [replace(base[0], counts_N3=more)], "pair 0: the runs do not have the same targets"),
        ([base[0], turned], [base[0], turned], "two runs have the same tweets in another order"),
    ]
    for ours, theirs, message in cases:
        with pytest.raises(ValueError, match=message):
            of_measure(ours, theirs, measure="f1", rounds=10)
    with pytest.raises(ValueError, match="rounds is 0"):
        of_measure(base, other, measure="f1", rounds=0)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([], np.zeros((0, 3), int), "for 0 tweets"),
        (["a"], np.zeros((2, 3), int), r"shape \(2, 3\) for 1 tweets"),
        (["a"], np.zeros((1, 2), int), "expected 3 per tweet"),
        (["a"], np.zeros((1, 3)), "whole numbers"),
        (["a"], np.array([[0, -1, 0]]), "whole numbers from 0"),
        (["a"], np.array([[1, 0, 1]]), "more correct than predicted or gold"),
        (["a"], np.array([[1, 1, 0]]), "more correct than predicted or gold"),
    ],
)
def test_wrong_counts_are_refused(ids, counts, message):
    with pytest.raises(ValueError, match=message):
        Counts(ids, counts)


# --- Bootstrap of false alarms


def alarms_of(num_tweets: int, share: float, negative_N: NDArray[Any], seed: int, prefix: str = "") -> Alarms:
    alarm_N = np.random.default_rng(seed).random(num_tweets) < share
    return Alarms(
        [f"{prefix}{row}" for row in range(num_tweets)], np.stack([alarm_N, negative_N], axis=1).astype(np.int8)
    )


def test_false_alarms_are_explicit_resampling_of_tweets():
    negative_N = np.arange(15) % 3 > 0
    base = [alarms_of(15, 0.3, negative_N, seed, "ab"[seed % 2]) for seed in range(4)]
    other = [alarms_of(15, 0.6, negative_N, 10 + seed, "ab"[seed % 2]) for seed in range(4)]
    found = false_alarm_difference(base, other, rounds=99, seed=2)
    assert found.base == pytest.approx(np.mean([per_1000(run.alarms_N2) for run in base]))
    assert found.other == pytest.approx(np.mean([per_1000(run.alarms_N2) for run in other]))
    assert (found.measure, found.num_tweets, found.num_runs) == ("false_alarms", 30, 4)
    pairs = [[(run.ids, run.alarms_N2) for run in arm] for arm in (base, other)]
    check_resampled(found, resampled(*pairs, per_1000, 99, 2))


def test_alarms_in_positives_do_not_count():
    negative_N = np.arange(40) % 2 == 0
    base = alarms_of(40, 0.3, negative_N, 0)
    louder = base.alarms_N2.copy()
    louder[~negative_N, 0] = 1
    found = false_alarm_difference([base], [Alarms(base.ids, louder)], rounds=50)
    assert (found.effect, found.p) == (0, 1)


def test_fewer_false_alarms_are_found():
    negative_N = np.ones(2_000, np.bool_)
    found = false_alarm_difference(
        [alarms_of(2_000, 0.10, negative_N, 0)], [alarms_of(2_000, 0.05, negative_N, 1)], rounds=1_000
    )
    assert found.low < -50 < found.high < 0
    assert found.p == 2 / 1_001
    assert verdict(found, found.p).startswith("better by ")


def test_wrong_alarms_are_refused():
    for alarms, message in [
        (np.array([[2, 1]]), "0 or 1"),
        (np.array([[1, 0]]), "no negative"),
        (np.array([[1, 1, 0]]), "expected 2 per tweet"),
        (np.array([[0.5, 1.0]]), "whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            Alarms(["a"], alarms)
    one, other = (Alarms(["a", "b"], np.array([[1, 1], [1, int(negative)]])) for negative in (True, False))
    with pytest.raises(ValueError, match="pair 0: the runs do not have the same targets"):
        false_alarm_difference([one], [other], rounds=10)


# --- Folds

few_values = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12)


@given(few_values, st.floats(0, 1))
def test_corrected_t_is_the_paired_one_shrunk(pairs, share):
    base, other = np.array(pairs).T
    differences = other - base
    found = fold_test(base.tolist(), other.tolist(), test_share=share)
    if found.t is None:
        assert differences.std(ddof=1) < 1e-11
        return
    plain = stats.ttest_rel(other, base)
    shrunk = math.sqrt(1 + len(pairs) * share)
    assert found.effect == pytest.approx(differences.mean(), abs=1e-12)
    assert found.sd == pytest.approx(differences.std(ddof=1))
    assert found.t == pytest.approx(plain.statistic / shrunk, rel=1e-6, abs=1e-12)
    assert found.p == pytest.approx(2 * stats.t.cdf(-abs(plain.statistic / shrunk), len(pairs) - 1), rel=1e-5)
    interval = plain.confidence_interval(0.95)
    assert found.high is not None and found.low is not None
    assert found.high - found.low == pytest.approx((interval.high - interval.low) * shrunk, rel=1e-6)
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05) or found.p == pytest.approx(0.05)


def test_without_a_share_it_is_one_cross_validation():
    base, other = [0.50, 0.55, 0.61, 0.47, 0.52], [0.53, 0.56, 0.66, 0.50, 0.51]
    assert fold_test(base, other) == fold_test(base, other, test_share=1 / 4)
    # By hand: differences 3, 1, 5, 3, -1 hundredths; mean 2.2, variance 5.2; 2.2 / sqrt((1/5 + 1/4) 5.2).
    found = fold_test(base, other)
    assert found.effect == pytest.approx(0.022)
    assert found.t == pytest.approx(2.2 / math.sqrt(0.45 * 5.2))
    assert (found.num_pairs, found.test_share) == (5, 0.25)


def test_what_cannot_be_told_of_folds_is_none():
    nothing = dict.fromkeys(["t", "p", "low", "high"])
    assert fold_test([0.5], [0.75]) == FoldTest(0.25, sd=None, num_pairs=1, test_share=None, **nothing)
    for other in ([0.5, 0.6, 0.7], [0.6, 0.7, 0.8]):
        found = fold_test([0.5, 0.6, 0.7], other)
        assert found == FoldTest(found.effect, sd=0.0, num_pairs=3, test_share=0.5, **nothing)


def test_corrected_test_is_right_where_the_plain_one_finds_too_much():
    """Differences of folds that share a part, as Nadeau and Bengio assume: correlation test / (test + train)."""
    generator = np.random.default_rng(0)
    num_folds, correlation = 5, 0.2
    rejected = np.zeros(2)
    for _ in range(1_000):
        common, own = generator.standard_normal(), generator.standard_normal(num_folds)
        values = (math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own).tolist()
        for index, share in enumerate([None, 0.0]):
            p = fold_test([0.0] * num_folds, values, test_share=share).p
            assert p is not None
            rejected[index] += p < 0.05
    assert 30 <= rejected[0] <= 70
    assert rejected[1] > 100


@pytest.mark.parametrize(
    ("base", "other", "share", "message"),
    [
        ([], [], None, "0 values of the base"),
        ([0.1, 0.2], [0.1], None, "2 values of the base, 1 of the other arm"),
        ([0.1, math.nan], [0.1, 0.2], None, "not finite"),
        ([0.1, 0.2], [0.1, math.inf], None, "not finite"),
        ([0.1, 0.2], [0.1, 0.2], -0.1, "test_share is -0.1"),
    ],
)
def test_wrong_values_of_folds_are_refused(base, other, share, message):
    with pytest.raises(ValueError, match=message):
        fold_test(base, other, test_share=share)


# --- Several questions, words, summaries


def adjusted_by_definition(p_values: Sequence[float]) -> list[float]:
    """The smallest level at which Holm's procedure rejects: all hypotheses up to it pass their steps."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        steps = [(len(p_values) - step) * p_values[order[step]] for step in range(rank + 1)]
        adjusted[index] = min(1.0, max(steps))
    return adjusted


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.02, 0.5]), max_size=12))
def test_holm_is_its_definition(p_values):
    found = holm(p_values)
    assert found == pytest.approx(adjusted_by_definition(p_values))
    assert all(one >= before for one, before in zip(found, p_values, strict=True))


def test_holm_of_four_by_hand():
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which cannot be below what comes before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    for wrong in ([-0.1], [1.1], [0.5, math.nan]):
        with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
            holm(wrong)


def difference(effect: float, low: float, high: float, measure: Any = "f1") -> Difference:
    return Difference(measure, 0.5, 0.5 + effect, effect, low, high, 0.01, num_tweets=10, num_runs=1)


def test_verdict_says_how_large_and_how_sure():
    assert verdict(difference(0.012, 0.003, 0.021), 0.01, 0.01) == "better by 1.2 (0.3 to 2.1)"
    assert verdict(difference(-0.012, -0.021, -0.003), 0.01, 0.01) == "worse by 1.2 (0.3 to 2.1)"
    alone = verdict(difference(0.012, 0.003, 0.021), 0.01, 0.05)
    assert alone == "better by 1.2 (0.3 to 2.1) with these models; no evidence over folds"
    assert verdict(difference(0.003, -0.002, 0.009), 0.3, 0.01) == "no evidence of a difference (-0.2 to 0.9)"
    assert verdict(difference(0.003, -0.002, 0.009), 0.3) == "no evidence of a difference (-0.2 to 0.9)"
    # What is left of an effect among many.
    assert verdict(difference(0.012, 0.003, 0.021), 0.05) == "no evidence of a difference (0.3 to 2.1)"
    assert verdict(difference(0.0, -0.0001, 0.0001), 1.0) == "no evidence of a difference (0.0 to 0.0)"
    assert verdict(difference(-3.25, -5.0, -1.0, "false_alarms"), 0.01, 0.01) == "better by 3.2 (1.0 to 5.0)"
    assert verdict(difference(3.25, 1.0, 5.0, "false_alarms"), 0.01, 0.01) == "worse by 3.2 (1.0 to 5.0)"
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="adjusted p is"):
            verdict(difference(0.0, 0.0, 0.0), wrong)


@pytest.mark.parametrize(("effect", "said"), [(0.012, "better"), (-0.012, "worse")])
def test_verdict_without_a_fold_test_is_one_of_these_models(effect, said):
    found = verdict(difference(effect, effect - 0.001, effect + 0.001), 0.01)
    assert found == f"{said} by 1.2 (1.1 to 1.3) with these models; not tested over folds"


def test_seeds_are_averaged_within_folds():
    values = {(0, 1): 0.50, (0, 2): 0.54, (1, 1): 0.60, (1, 2): 0.60, (1, 3): 0.66}
    assert fold_means(values) == pytest.approx({0: 0.52, 1: 0.62})
    found = summarise(values)
    assert found.mean == pytest.approx(0.57)
    assert found.sd == pytest.approx(0.1 / math.sqrt(2))
    assert (found.over, found.num_folds, found.num_runs) == ("folds", 2, 5)


def test_without_folds_the_spread_is_that_of_seeds():
    found = summarise({(None, 1): 0.5, (None, 2): 0.75, (None, 3): 1.0})
    assert found == Summary(mean=0.75, sd=pytest.approx(0.25), over="seeds", num_folds=1, num_runs=3)
    assert summarise({(None, 1): 0.5}) == Summary(mean=0.5, sd=None, over="seeds", num_folds=1, num_runs=1)


def test_wrong_values_are_not_summarised():
    for wrong in ({}, {(0, 0): math.nan}, {(0, 0): 0.5, (1, 0): math.inf}):
        with pytest.raises(ValueError, match="expected finite numbers"):
            summarise(wrong)
