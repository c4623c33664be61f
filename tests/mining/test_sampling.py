from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.config import CorpusConfig
from scalemine.corpus import import_corpus
from scalemine.executor import InlineExecutor
from scalemine.mining.sampling import (
    SHARDS_PER_TASK,
    fetch_rows,
    groups,
    lowest,
    priorities,
    race,
    row_keys,
    sample_corpus,
)

IDS = [f"2016:{i}" for i in range(20_000)]


def test_priorities_equal_python_integers():
    ids = ["", "1", "001", "ünïcode 🌊", *IDS[:50]]
    found = priorities(row_keys(ids), 42, "probe")
    assert found.dtype == np.uint64
    assert found.tolist() == [oracles.priority(id_, 42, "probe") for id_ in ids]


def test_the_finaliser_is_splitmix64():
    # The first numbers of SplitMix64 for the seed 1234567, as published.
    state, found = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        found.append(oracles.splitmix64_finaliser(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_priorities_do_not_depend_on_order_or_company():
    whole = priorities(row_keys(IDS[:500]), 1, "probe")
    order = np.random.default_rng(1).permutation(500)
    assert np.array_equal(priorities(row_keys([IDS[i] for i in order]), 1, "probe"), whole[order])
    assert np.array_equal(priorities(row_keys(IDS[100:101]), 1, "probe"), whole[100:101])


def test_priorities_are_distinct():
    assert len(set(priorities(row_keys(IDS), 42, "probe").tolist())) == len(IDS)


def test_no_rows():
    assert priorities(row_keys([]), 42, "probe").tolist() == []
    assert lowest(np.empty(0, np.uint64), 3).tolist() == []


@pytest.mark.parametrize(("seed", "purpose"), [(1, "random"), (2, "probe"), (12, ":3"), (1, "2:3")])
def test_other_seeds_and_purposes_are_independent(seed, purpose):
    base = priorities(row_keys(IDS), 1, "probe")
    other = priorities(row_keys(IDS), seed, purpose)
    assert not (base == other).any()
    assert abs(scipy.stats.spearmanr(base, other).statistic) < 0.05
    # Samples of a tenth share about a tenth of their rows.
    shared = len(set(lowest(base, 2_000).tolist()) & set(lowest(other, 2_000).tolist()))
    assert 120 < shared < 290


def test_priorities_are_uniform():
    found = priorities(row_keys(IDS), 7, "negatives:flood:3")
    for bits in (found >> np.uint64(58), found & np.uint64(63)):
        assert scipy.stats.chisquare(np.bincount(bits.astype(int), minlength=64)).pvalue > 1e-4


def test_samples_do_not_prefer_a_place_in_the_corpus():
    chosen = Counter()
    keys = row_keys(IDS[:200])
    for seed in range(300):
        chosen.update(lowest(priorities(keys, seed, "probe"), 20).tolist())
    # 30 expected each; a hypergeometric count varies a little less than a multinomial one.
    assert scipy.stats.chisquare([chosen[i] for i in range(200)]).pvalue > 1e-4


@settings(deadline=None)
@given(st.lists(st.integers(0, 20) | st.integers(2**64 - 3, 2**64 - 1), max_size=40), st.integers(0, 50))
def test_lowest_equals_sorted(values, size):
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:size]
    assert lowest(np.array(values, np.uint64), size).tolist() == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3) | st.integers(2**64 - 2, 2**64 - 1)), max_size=40),
    st.integers(0, 50),
)
def test_lowest_with_ties_equals_sorted(rows, size):
    expected = sorted(range(len(rows)), key=lambda i: (rows[i], i))[:size]
    keys, ties = np.array([key for key, _ in rows], float), np.array([tie for _, tie in rows], np.uint64)
    assert lowest(keys, size, ties).tolist() == expected


# Draws with weights


def draws(weights, size, num_seeds):
    """How often each sample came, by one race per seed."""
    keys = row_keys(IDS[: len(weights)])
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.array(weights, float))
    found = Counter()
    for seed in range(num_seeds):
        found[tuple(lowest(race(log_weights, priorities(keys, seed, "draw")), size).tolist())] += 1
    return found


def sequential(weights, size):
    """The probability of each ordered sample where each draw is by weight among what is left, as one would do it."""
    chances = {}
    for sample in itertools.permutations(range(len(weights)), size):
        left, chance = sum(weights), 1.0
        for i in sample:
            chance *= weights[i] / left
            left -= weights[i]
        chances[sample] = chance
    return chances


@pytest.mark.parametrize("size", [1, 2, 3])
def test_race_draws_with_the_weights_without_replacement(size):
    weights, num_seeds = (1.0, 2.0, 4.0, 9.0), 6_000
    chances = sequential(weights, size)
    found = draws(weights, size, num_seeds)
    assert sum(chances.values()) == pytest.approx(1)
    expected = [num_seeds * chance for chance in chances.values()]
    # Seeds are fixed, so this passes always or never.
    assert scipy.stats.chisquare([found[sample] for sample in chances], expected).pvalue > 1e-3
    # The test does see weights that are other ones.
    other = [num_seeds * chance for chance in sequential((1.0, 2.0, 4.0, 7.0), size).values()]
    assert scipy.stats.chisquare([found[sample] for sample in chances], other).pvalue < 1e-6


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-50, 50) | st.just(-math.inf), st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**64 - 1])),
        min_size=1,
        max_size=30,
    )
)
def test_race_keys_are_logarithms_of_waiting_times(rows):
    log_weights, values = (
        np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), ("f8", "u8"), strict=True)
    )
    keys = race(log_weights, values)
    assert not np.isnan(keys).any()
    assert np.array_equal(keys == np.inf, log_weights == -np.inf)
    for key, (log_weight, value) in zip(keys.tolist(), rows, strict=True):
        if log_weight > -math.inf and 2**40 < value < 2**63:
            waiting = -math.log1p(-(value + 0.5) / 2**64) / math.exp(log_weight)
            assert key == pytest.approx(math.log(waiting), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(2**64 - 3_000, 2**64 - 1), min_size=1, max_size=40), st.data())
def test_race_of_equal_weights_takes_the_lowest_priorities(values, data):
    values = np.array(values, np.uint64)
    size = data.draw(st.integers(0, len(values)))
    keys = race(np.full(len(values), data.draw(st.floats(-5, 5))), values)
    # Priorities that are next to one another may share a key, so they settle ties.
    assert lowest(keys, size, values).tolist() == lowest(values, size).tolist()


def test_what_weighs_more_goes_first_whatever_is_added_to_all():
    keys = row_keys(IDS[:300])
    values = priorities(keys, 1, "draw")
    log_weights = np.random.default_rng(3).normal(0, 2, 300)
    order = lowest(race(log_weights, values), 300, values)
    assert np.array_equal(lowest(race(log_weights + 7.5, values), 300, values), order)
    # Of two with the same priority, the heavier one.
    assert np.array_equal(np.argsort(race(log_weights, np.full(300, 12345, np.uint64))), np.argsort(-log_weights))


@settings(deadline=None)
@given(st.data())
def test_samples_of_parts_merge_to_the_sample_of_the_whole(data):
    num_rows = data.draw(st.integers(1, 60))
    size = data.draw(st.integers(1, 70))
    part_of = data.draw(st.lists(st.integers(0, 4), min_size=num_rows, max_size=num_rows))
    values = priorities(row_keys(IDS[:num_rows]), 42, "probe")
    merged = []
    for part in range(5):
        rows = np.array([row for row in range(num_rows) if part_of[row] == part], int)
        merged += [(int(values[rows][i]), int(rows[i])) for i in lowest(values[rows], size)]
    assert [row for _, row in sorted(merged)[:size]] == lowest(values, size).tolist()


def test_groups_hold_every_shard_once():
    shards = list(range(2 * SHARDS_PER_TASK + 3))
    found = groups(shards)
    assert [shard for group in found for shard in group] == shards
    assert max(map(len, found)) == SHARDS_PER_TASK
    assert groups([]) == []


def make(tmp_path, rows_per_shard, num_rows=150):
    texts = [f"tweet {i % 140} of the storm" for i in range(num_rows)]
    return oracles.make_corpus(tmp_path / str(rows_per_shard), IDS[:num_rows], texts, rows_per_shard), texts


@pytest.mark.parametrize("size", [1, 40, 150, 1_000])
def test_sample_corpus_does_not_depend_on_shards(tmp_path, size):
    expected = sorted(range(150), key=lambda i: oracles.priority(IDS[i], 42, "probe"))[:size]
    for rows_per_shard in (4, 33, 1_000):
        corpus, texts = make(tmp_path, rows_per_shard)
        rows = sample_corpus(corpus, size, seed=42, purpose="probe", executor=InlineExecutor())
        assert [(row.id, row.text) for row in rows] == [(IDS[i], texts[i]) for i in expected]


def test_sample_corpus_says_what_went_wrong(tmp_path):
    corpus, _ = make(tmp_path, 50)
    corpus.shards[0].path.unlink()
    with pytest.raises(RuntimeError, match="cannot be sampled"):
        sample_corpus(corpus, 3, seed=42, purpose="probe", executor=InlineExecutor())


def test_fetch_rows_keeps_the_order_asked_for(tmp_path):
    corpus, _ = make(tmp_path, 40)
    places = [(shard.name, row) for shard in corpus.shards for row in (0, 5, 3)]
    places = places[::-1] + places[:1]
    rows = fetch_rows(corpus, places)
    assert [(row.shard, row.row) for row in rows] == places
    tables = {shard.name: corpus.read(shard).to_pylist() for shard in corpus.shards}
    assert [{"id": row.id, "text": row.text} for row in rows] == [tables[shard][row] for shard, row in places]
    assert fetch_rows(corpus, []) == []


def test_fetch_rows_with_further_columns(tmp_path):
    rows = [{"id": f"id{i}", "text": f"tweet {i}", "place": None if i % 3 else f"town {i}", "at": i} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tweets.parquet")
    config = CorpusConfig(uri=str(tmp_path / "tweets.parquet"), rows_per_shard=7, keep=("place", "at"))
    corpus = import_corpus(config, tmp_path / "corpus")
    places = [(shard.name, row) for shard in corpus.shards for row in (1, 0)][::-1]
    by_id = {row["id"]: row for row in rows}
    found = fetch_rows(corpus, places, ("at", "place"))
    assert [(row.shard, row.row) for row in found] == places
    for row in found:
        assert row.text == by_id[row.id]["text"]
        assert row.more == (str(by_id[row.id]["at"]), by_id[row.id]["place"])
    assert {row.more[1] is None for row in found} == {True, False}
    assert {row.more for row in fetch_rows(corpus, places)} == {()}
