from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.config import MiningConfig
from scalemine.mining.sampling import lowest, priorities, race, row_keys
from scalemine.mining.similarity import NUM_STEPS, STEPS_PER_UNIT, Normal, SimilarityDistribution, step_values
from scalemine.mining.strategies import (
    ClassScores,
    Rule,
    by_table,
    confusable,
    everything,
    hardness_log_weights,
    kinds,
    make_rule,
    margin,
    margin_limit,
    nearest,
    positive_probability,
    prior_bound,
    quantile_band,
    quantile_intervals,
    sigma_band,
    simans,
    simans_log_weights,
    weigh_neighbours,
)

NORMAL = Normal(0.1, 0.125)
COSINES = np.random.default_rng(1).uniform(-0.6, 0.9, (500, 2))


def distribution_of(cosines) -> SimilarityDistribution:
    steps = np.rint(np.asarray(cosines) * STEPS_PER_UNIT).astype(int) + STEPS_PER_UNIT
    return SimilarityDistribution("fire", np.bincount(steps, minlength=NUM_STEPS))


def may(log_weights) -> np.ndarray:
    return log_weights > -np.inf


# Bands


@pytest.mark.parametrize("tails", ["both", "upper"])
@pytest.mark.parametrize("band", [1, 2, 3, 4])
def test_sigma_band_equals_the_definition(tails, band):
    found = sigma_band(COSINES, 0.0, index=1, normal=NORMAL, band=band, tails=tails)
    expected = [oracles.band_of((c - NORMAL.mean) / NORMAL.std, tails) == band for c in COSINES[:, 1]]
    assert may(found).tolist() == expected
    assert any(expected)
    assert set(found[may(found)]) == {0.0}


@pytest.mark.parametrize("slack", [0.0, 0.02])
def test_slack_widens_each_band_by_as_much(slack):
    def bands(cosines, allowed):
        column = np.stack([cosines, cosines], axis=1)
        intervals = [(0.2, 0.35), (-0.15, 0.0)]
        yield may(sigma_band(column, allowed, index=0, normal=NORMAL, band=2, tails="upper"))
        yield may(quantile_band(column, allowed, index=0, intervals=intervals))
        yield may(margin(column, allowed, index=0, limit=0.4, alike=True))

    cosines = COSINES[:, 0]
    moved = [list(bands(cosines + shift, 0.0)) for shift in np.linspace(-slack, slack, 41)]
    for number, wide in enumerate(bands(cosines, slack)):
        # What a shift within the slack brings in is let in; what a larger one is needed for is not.
        assert wide[np.any([one[number] for one in moved], axis=0)].all()
        shifts = np.linspace(-slack - 0.01, slack + 0.01, 41)
        further = np.any([list(bands(cosines + shift, 0.0))[number] for shift in shifts], axis=0)
        assert further[wide].all()
        assert further.sum() > wide.sum()


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_quantile_bands_hold_their_shares_of_a_skewed_distribution(tails):
    # Every step at most once, so that no tie blurs a share.
    drawn = np.random.default_rng(2).exponential(0.12, 9_000) - 0.1
    cosines = np.unique(np.rint(drawn[drawn < 0.99] * STEPS_PER_UNIT)) / STEPS_PER_UNIT
    distribution = distribution_of(cosines)
    quantiles = (0.8413, 0.9772, 0.9987)
    column = cosines[:, None]
    edges = [0.5, *quantiles, 1.0]
    in_band, off = [], []
    for band in (1, 2, 3, 4):
        intervals = quantile_intervals(distribution, quantiles, band, tails)
        in_band.append(may(quantile_band(column, 0.0, index=0, intervals=intervals)))
        share = (edges[band] - edges[band - 1]) * (2 if tails == "both" else 1)
        assert abs(in_band[-1].sum() - share * len(cosines)) <= 2
        normal = Normal(distribution.mean, distribution.std)
        off.append(may(sigma_band(column, 0.0, index=0, normal=normal, band=band, tails=tails)).mean() / share - 1)
    # The normal distribution promises these shares, too, and does not keep to them here.
    assert max(map(abs, off)) > 0.5
    times = np.sum(in_band, axis=0)
    assert (times == 1).all() if tails == "both" else ((times == 1) == (cosines >= distribution.quantile(0.5))).all()


# Margins and ranks


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1), st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.floats(0, 0.99)))
def test_margin_limit_is_never_above_the_reference(reference, absolute, relative):
    limit = float(margin_limit(np.array([reference]), absolute, relative)[0])
    limits = [math.inf]
    limits += [] if absolute is None else [reference - absolute]
    limits += [] if relative is None else [reference * (1 - relative if reference >= 0 else 1 + relative)]
    assert limit == pytest.approx(min(limits), abs=1e-12)
    assert limit <= reference or len(limits) == 1


def test_margin_limit_of_the_paper():
    # MarginPos 0.05, PercPos 95 %; and the latter at a negative reference, where 95 % of it would lie above it.
    references = np.array([0.8, 0.4, -0.2])
    assert margin_limit(references, 0.05, None) == pytest.approx([0.75, 0.35, -0.25])
    assert margin_limit(references, None, 0.05) == pytest.approx([0.76, 0.38, -0.21])
    assert margin_limit(references, 0.05, 0.05) == pytest.approx([0.75, 0.35, -0.25])


def test_margin_takes_what_lies_below_its_limit():
    for alike in (True, False):
        found = margin(COSINES, 0.0, index=0, limit=0.3, alike=alike)
        for cosine, weight in zip(COSINES[:, 0], found, strict=True):
            assert weight == (-np.inf if cosine > 0.3 else 0.0 if alike else cosine)


def test_nearest_and_everything():
    assert nearest(COSINES, 0.1, index=1).tolist() == COSINES[:, 1].tolist()
    assert everything(COSINES, 0.1).tolist() == [0.0] * len(COSINES)


# SimANS


@pytest.mark.parametrize("offset", [0.0, 0.15, -0.1])
def test_simans_weighs_half_at_its_half_width(offset):
    reference, half_width = 0.6, 0.1
    log_weights = partial(simans_log_weights, reference=np.array(reference), half_width=half_width, offset=offset)
    peak = reference - offset
    grid = np.linspace(-1, 1, 4_001)
    assert grid[np.argmax(log_weights(grid))] == pytest.approx(peak, abs=1e-9)
    assert np.exp(log_weights(np.array([peak, peak - half_width, peak + half_width]))) == pytest.approx([1, 0.5, 0.5])


def test_simans_is_what_its_code_computes():
    # exp(-a (s - s+ + b)^2) with a = 0.5 and b = 1, for scores that are dot products around 80.
    scores = np.random.default_rng(3).uniform(75, 82, 50)
    expected = [math.exp(-0.5 * (score - 80 + 1) ** 2) for score in scores]
    half_width = math.sqrt(math.log(2) / 0.5)
    assert np.exp(simans_log_weights(scores, np.array(80.0), half_width, 1.0)) == pytest.approx(expected)
    found = simans(scores[:, None], 0.3, index=0, reference=80.0, half_width=half_width, offset=1.0)
    assert np.exp(found) == pytest.approx(expected)


def first_drawn(log_weights, num_seeds) -> np.ndarray:
    """How often each of some tweets is the first that a cell draws, over many seeds."""
    keys = row_keys([f"t{number}" for number in range(len(log_weights))])
    counts = np.zeros(len(log_weights))
    for seed in range(num_seeds):
        order = priorities(keys, seed, "draw")
        counts[lowest(race(log_weights, order), 1, order)[0]] += 1
    return counts


def assert_frequencies(counts, weights):
    expected = weights / weights.sum() * counts.sum()
    # Five standard deviations of a Poisson count, for 40 of them.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()
    assert counts[weights == 0].sum() == 0


def test_simans_draws_by_its_weights():
    cosines = np.linspace(0.1, 0.9, 40)
    rule = make_rule(MiningConfig(strategy="simans", sampling="random", offset=0.1), scores_of(), 0, None)
    reference = np.quantile(POSITIVES, 0.25)
    weights = np.array([math.exp(-math.log(2) * ((c - reference + 0.1) / 0.1) ** 2) for c in cosines])
    found = rule.weigh(np.stack([cosines, cosines], axis=1), 0.0)
    assert_frequencies(first_drawn(found, 4_000), weights)


# Hardness


POSITIVES = np.random.default_rng(5).normal(0.55, 0.05, 800)
SHARE = 0.02


def mixture(num_rows=2_000_000) -> SimilarityDistribution:
    """A corpus of two normal distributions, counted without noise."""
    values = step_values()
    density = (1 - SHARE) * pdf(values, 0.1, 0.12) + SHARE * pdf(values, 0.55, 0.05)
    return SimilarityDistribution("fire", np.rint(num_rows * density / STEPS_PER_UNIT).astype(np.int64))


def pdf(values, mean, std):
    return np.exp(-0.5 * ((values - mean) / std) ** 2) / std / math.sqrt(2 * math.pi)


def posterior(cosines):
    positive, negative = SHARE * pdf(cosines, 0.55, 0.05), (1 - SHARE) * pdf(cosines, 0.1, 0.12)
    return positive / (positive + negative)


def scores_of() -> ClassScores:
    steps = np.rint(POSITIVES * STEPS_PER_UNIT).astype(np.int16)
    other = replace(mixture(), class_name="flood")
    return ClassScores(
        ("fire", "flood"), {"fire": NORMAL, "flood": NORMAL}, [mixture(), other], {"fire": steps, "flood": steps}
    )


def test_positive_probability_is_near_the_truth():
    found = positive_probability(mixture(), np.rint(POSITIVES * STEPS_PER_UNIT).astype(np.int16))
    values = step_values()
    inside = (values > -0.3) & (values < 0.7)
    # The positives are few, and the corpus is smoothed.
    assert np.abs(found - posterior(values))[inside].max() < 0.12
    assert (np.diff(found) >= 0).all()
    assert (found[0], found[-1]) == (0.0, pytest.approx(1.0, abs=0.05))


def test_hardness_weighs_true_negatives_by_their_hardness():
    probability = np.zeros(NUM_STEPS)
    probability[-1] = 1.0
    probability[40_000] = 0.75
    table = hardness_log_weights(probability, NORMAL, 2.0)
    assert table[-1] == -np.inf
    values = step_values()
    z = (values - NORMAL.mean) / NORMAL.std
    steps = np.array([10, 30_000, 40_000, 50_000])
    expected = [(1 - probability[step]) * math.exp(2.0 * z[step]) for step in steps]
    assert np.exp(table[steps]) == pytest.approx(expected)
    # One sigma nearer weighs e^hardness times as much.
    sigma = round(NORMAL.std * STEPS_PER_UNIT)
    assert table[30_000 + sigma] - table[30_000] == pytest.approx(2.0, abs=1e-3)


def test_hardness_draws_tweets_by_its_weights():
    # Tweets as they are in the corpus, p(s), drawn by (1 - P(positive | s)) e^(beta z), make p-(s) e^(beta z).
    rule = make_rule(MiningConfig(strategy="hardness", hardness=0.7), scores_of(), 0, None)
    cosines = np.linspace(0.0, 0.6, 40)
    weights = np.array([(1 - posterior(c)) * math.exp(0.7 * (c - NORMAL.mean) / NORMAL.std) for c in cosines])
    log_weights = rule.weigh(np.stack([cosines, cosines], axis=1), 0.0)
    found = np.exp(log_weights)
    easy = cosines < 0.38
    assert found[easy] == pytest.approx(weights[easy], rel=0.03)
    # Where there are hardly any true negatives, hardly anything is taken, however hard it looks.
    assert (found[cosines > 0.55] < 0.2 * found.max()).all()
    assert_frequencies(first_drawn(log_weights, 4_000), found)


def test_table_is_looked_up_by_the_nearest_step():
    table = np.arange(NUM_STEPS, dtype=np.float64)
    cosines = np.array([[-1.0], [0.0], [0.4 / STEPS_PER_UNIT], [0.6 / STEPS_PER_UNIT], [1.0], [1.1], [-1.1]])
    expected = [0, STEPS_PER_UNIT, STEPS_PER_UNIT, STEPS_PER_UNIT + 1, NUM_STEPS - 1, NUM_STEPS - 1, 0]
    assert by_table(cosines, 0.0, index=0, log_weights_B=table).tolist() == expected


# The prior


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("distance", [0.5, 1.5, 6.0])
@pytest.mark.parametrize("num_positives", [30, 2_000])
def test_prior_bound_is_above_the_truth_and_near_it_where_classes_part(share, distance, num_positives):
    num = 50_000
    is_positive = np.arange(num) < share * num
    bounds = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        corpus = rng.standard_normal(num) + distance * is_positive
        bounds.append(prior_bound(corpus, np.ones(num), rng.standard_normal(num_positives) + distance))
    # A minimum over thresholds takes the luckiest of noisy ratios: now and then it lies a little below the truth.
    assert np.mean(np.array(bounds) >= share) >= 0.8
    assert min(bounds) > 0.7 * share
    assert max(bounds) <= 1
    if distance == 6:
        # 50 rows of the corpus, or 30 positives, are counted within some tenths.
        assert np.median(bounds) < share * (1.1 if share * num >= 1_000 and num_positives >= 1_000 else 1.5)


@pytest.mark.parametrize("num_rows", [50, 400])
def test_prior_bound_of_a_sample_without_positives(num_rows):
    # Nothing lies above the thresholds: that is what up to some rows of so many are likely to look like.
    scores, positives = np.linspace(-1, 1, num_rows), np.linspace(8, 9, 200)
    assert 1 / num_rows < prior_bound(scores, np.ones(num_rows), positives) < 5 / num_rows


def slow_bound(scores, weights, positives) -> float:
    ratios = []
    rows = sorted(zip(scores, weights, strict=True))
    for quantile in np.linspace(0.02, 0.9, 45):
        threshold = np.quantile(positives, quantile)
        first = max(0, sum(score < threshold for score, _ in rows) - 1)
        above = [weight for _, weight in rows[first:]]
        part = sum(positives >= threshold) / len(positives)
        part -= 2 * math.sqrt(part * (1 - part) / len(positives))
        if part > 0:
            ratios.append((sum(above) + 2 * math.sqrt(sum(w * w for w in above))) / sum(weights) / part)
    return min(1.0, *ratios)


@pytest.mark.parametrize("shift", [-1, 0, 1, 2.5])
def test_prior_bound_equals_a_loop(shift):
    rng = np.random.default_rng(9)
    scores, positives = rng.standard_normal(400), rng.standard_normal(60) + shift
    weights = rng.choice([1.0, 8.0, 30.0], 400)
    assert prior_bound(scores, weights, positives) == pytest.approx(slow_bound(scores, weights, positives))


# Confusable


@pytest.mark.parametrize("slack", [0.0, 0.01])
def test_confusable_equals_a_loop(slack):
    normals = [Normal(0.1, 0.1), Normal(0.0, 0.2), Normal(-0.1, 0.15)]
    cosines = np.random.default_rng(10).uniform(-0.5, 0.8, (2_000, 3))
    found = may(confusable(cosines, slack, index=1, normals=normals, least_z=1.0, margin=0.5))
    steps = [-1, 0, 1] if slack else [0]
    for row, ok in zip(cosines, found, strict=True):
        expected = False
        # Whether some cosines within the slack would do.
        for own_shift in steps:
            for other_shift in steps:
                z = [(c - n.mean) / n.std for c, n in zip(row, normals, strict=True)]
                own = z[1] + own_shift * slack / 0.2
                other = max(z[k] + other_shift * slack / normals[k].std for k in (0, 2))
                expected |= own >= 1.0 and other - own >= 0.5
        # With a slack more may be let in, not less; without, just these.
        assert ok == expected or (slack and ok)
    assert 20 < found.sum() < 1_000


# Rules


BANDS = {
    "sigma_bands": {"1s": 1, "3s": 3, "4s": 4},
    "clusters": {"1s": 1, "3s": 3, "4s": 4},
    "quantile_bands": {"1q": 1, "3q": 3, "4q": 4},
}


@pytest.mark.parametrize(
    "strategy",
    ["sigma_bands", "quantile_bands", "random", "rank", "margin", "simans", "hardness", "confusable", "clusters"],
)
def test_every_strategy_has_its_kinds_and_rules(strategy):
    config = MiningConfig(strategy=strategy, bands=(1, 3, 4))
    assert kinds(config) == BANDS.get(strategy, {strategy: None})
    cosines = np.random.default_rng(11).uniform(-0.4, 0.9, (400, 2))
    order = priorities(row_keys([f"t{number}" for number in range(400)]), 1, "x")
    for band in kinds(config).values():
        rule = make_rule(config, scores_of(), 0, band)
        assert rule.in_order == (strategy in ("rank", "margin", "simans"))
        keys, weights = rule.keys(cosines, order, 0.0), rule.weigh(cosines, 0.0)
        assert [rule.holds(row) for row in cosines] == (keys < np.inf).tolist() == may(weights).tolist()
        assert may(weights).any()
        expected = -weights if rule.in_order else race(weights, order)
        assert keys.tolist() == expected.tolist()


def test_confusable_wants_another_class():
    rule = make_rule(MiningConfig(strategy="confusable"), scores_of(), 1, None)
    # z of fire and of flood: near flood and nearer to fire; the other way round; far from both.
    cosines = NORMAL.mean + NORMAL.std * np.array([[4.0, 2.0], [2.0, 4.0], [0.5, -1.0]])
    assert [rule.holds(row) for row in cosines] == [True, False, False]


@pytest.mark.parametrize(("sampling", "drawn"), [("top", False), ("random", True)])
def test_rank_counts_places_in_order(sampling, drawn):
    rule = make_rule(MiningConfig(strategy="rank", rank_min=3, rank_max=9, sampling=sampling), scores_of(), 0, None)
    assert (rule.in_order, rule.window, rule.draw_window) == (True, (3, 9), drawn)


@pytest.mark.parametrize("quantile", [0.0, 0.25, 1.0])
def test_margin_and_simans_refer_to_a_quantile_of_the_positives(quantile):
    config = MiningConfig(strategy="margin", positive_quantile=quantile, relative_margin=0.1, sampling="random")
    reference = float(np.quantile(np.rint(POSITIVES * STEPS_PER_UNIT) / STEPS_PER_UNIT, quantile))
    rule = make_rule(config, scores_of(), 0, None)
    assert not rule.in_order
    limit = 0.9 * reference
    assert rule.holds(np.array([limit - 1e-9, 0.0]))
    assert not rule.holds(np.array([limit + 1e-9, 0.0]))
    rule = make_rule(config.model_copy(update={"strategy": "simans", "offset": 0.05}), scores_of(), 0, None)
    assert rule.weigh(np.array([[reference - 0.05, 0.0]]), 0.0)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("strategy", ["rank", "margin", "simans"])
def test_where_each_positive_asks_the_anchor_decides_nothing(strategy):
    # The limit of a margin hangs on the positive; one at the anchor's would refuse what a positive took.
    rule = make_rule(MiningConfig(strategy=strategy, query="positive"), scores_of(), 0, None)
    assert all(rule.holds(np.array([cosine, 0.0])) for cosine in (-0.9, 0.0, 0.5, 0.99))


def test_equal_keys_are_taken_by_priority():
    rule = Rule(everything, in_order=True)
    order = priorities(row_keys(["a", "b", "c", "d"]), 3, "x")
    keys = rule.keys(np.zeros((4, 1)), order, 0.0)
    assert lowest(keys, 2, order).tolist() == np.argsort(order)[:2].tolist()


# Neighbours of a positive


def slow_neighbours(config, cosines, reference) -> list[float]:
    weights = []
    for rank, cosine in enumerate(cosines):
        weight = 0.0
        if config.strategy == "simans":
            weight = -math.log(2) * ((cosine - reference + config.offset) / config.half_width) ** 2
        allowed = config.rank_min <= rank < config.rank_max and not math.isnan(cosine)
        if config.strategy == "margin":
            limits = [] if config.absolute_margin is None else [reference - config.absolute_margin]
            limits += [] if config.relative_margin is None else [reference - config.relative_margin * abs(reference)]
            allowed = allowed and cosine <= min(limits)
        weights.append(weight if allowed else -math.inf)
    return weights


@pytest.mark.parametrize(
    "more",
    [
        {"strategy": "rank", "rank_min": 2, "rank_max": 7},
        {"strategy": "margin", "relative_margin": None, "absolute_margin": 0.1},
        {"strategy": "margin", "rank_min": 1},
        {"strategy": "simans", "offset": 0.05, "rank_max": 9},
    ],
)
def test_neighbours_weigh_as_a_loop_says(more):
    config = MiningConfig(query="positive", **more)
    rng = np.random.default_rng(12)
    cosines = -np.sort(-rng.uniform(-0.5, 1, (30, 12)), axis=1)
    cosines[::7, -3:] = np.nan
    reference = rng.uniform(-0.3, 0.9, 30)
    found = weigh_neighbours(config, cosines, reference)
    expected = np.array([slow_neighbours(config, row, r) for row, r in zip(cosines, reference, strict=True)])
    assert (may(found) == may(expected)).all()
    assert found[may(found)] == pytest.approx(expected[may(found)])
    assert 0 < may(found).sum() < found.size
