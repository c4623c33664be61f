from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.corpus import Corpus, Shard
from scalemine.mining.candidates import Cell
from scalemine.mining.strategies import Rule, by_table, everything
from scalemine.mining.waves import (
    ROOM,
    ROOM_OF_WEIGHTED,
    effective_share,
    first_shards,
    rows_needed,
    seeded_order,
    waves,
)

SERIES = sorted({2**i for i in range(12)} | {3 * 2**i for i in range(11)})


def corpus_of(tmp_path, *rows: int) -> Corpus:
    shards = tuple(Shard(f"{i:05}", tmp_path / f"{i}", count, f"{i}") for i, count in enumerate(rows))
    return Corpus(tmp_path, shards, ("id", "text"), {})


def test_order_is_of_seed_and_name_alone(tmp_path):
    shards = corpus_of(tmp_path, *range(1, 41)).shards
    order = [shard.name for shard in seeded_order(shards, 7)]
    assert sorted(order) == [shard.name for shard in shards] != order
    assert [shard.name for shard in seeded_order(shards[::-1], 7)] == order
    other = [Shard(shard.name, tmp_path / "elsewhere", 3, "x") for shard in shards]
    assert [shard.name for shard in seeded_order(other, 7)] == order
    assert [shard.name for shard in seeded_order(shards, 8)] != order
    # What is added to a corpus changes nothing between those that were there.
    assert [shard.name for shard in seeded_order(shards[:20], 7)] == [name for name in order if int(name) < 20]


def test_first_shards_lie_as_in_the_corpus(tmp_path):
    corpus = corpus_of(tmp_path, *[10] * 9)
    part = first_shards(corpus, 4, 3)
    assert {shard.name for shard in part.shards} == {shard.name for shard in seeded_order(corpus.shards, 3)[:4]}
    assert list(part.shards) == sorted(part.shards, key=lambda shard: shard.name)
    assert part.num_rows == 40
    assert part.fingerprint != corpus.fingerprint
    assert first_shards(corpus, 9, 3) == corpus


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0, 2_000), st.integers(0, 5))
def test_waves_are_nested_and_end_with_the_whole(tmp_path_factory, rows, num_rows, seed):
    corpus = corpus_of(tmp_path_factory.getbasetemp(), *rows)
    parts = list(waves(corpus, num_rows, seed))
    sizes = [len(part.shards) for part in parts]
    assert parts[-1] == corpus
    assert all(size in SERIES for size in sizes[:-1])
    for one, other in itertools.pairwise(parts):
        assert set(one.shards) < set(other.shards)
    assert parts[0].num_rows >= num_rows or len(parts) == 1
    # None of the series is left out that has rows enough.
    enough = [size for size in SERIES if size < len(rows) and first_shards(corpus, size, seed).num_rows >= num_rows]
    assert sizes == [*enough, len(rows)]


@given(st.integers(1, 500), st.integers(0, 500), st.floats(-50, 50))
def test_effective_share_of_equal_weights_is_their_share(num_rows, hits, weight):
    hits = min(hits, num_rows)
    log_weights = np.where(np.arange(num_rows) < hits, weight, -np.inf)
    assert effective_share(log_weights) == pytest.approx((hits + 0.5) / (num_rows + 1))


def test_effective_share_falls_where_few_weigh_all():
    z = np.random.default_rng(1).standard_normal(200_000)
    # For e^(b z) over a normal z it is e^(-b^2).
    for hardness in (0.5, 1.0, 1.5):
        assert effective_share(hardness * z) == pytest.approx(np.exp(-(hardness**2)), rel=0.1)
    assert effective_share(np.array([1_000.0, 0.0, 0.0])) == pytest.approx(1.5 / 4)
    assert 0 < effective_share(np.empty(0)) <= 1


def cell(quota: int, rule: Rule, view: int = 0) -> Cell:
    return Cell(0, "flood", "kind", quota, rule, view)


def above(cosines_NK, slack, *, least):
    return np.where(cosines_NK[:, 0] >= least - slack, 0.0, -np.inf)


def test_rows_needed_is_that_of_the_scarcest_cell():
    cosines = np.linspace(0, 1, 1_000)[:, None]
    every, tenth, hundredth = (Rule(partial(above, least=least)) for least in (0.0, 0.9, 0.99))
    assert rows_needed([cell(50, hundredth), cell(50, tenth), cell(50, every)], [cosines]) == pytest.approx(
        ROOM * 50 / (10.5 / 1_001)
    )
    # A cell that looks at another view is judged by that one's probe.
    assert rows_needed([cell(50, hundredth, 1)], [cosines, np.ones((1_000, 1))]) == pytest.approx(ROOM * 50, rel=1e-3)


def test_rows_needed_for_all_cells_together():
    assert rows_needed([cell(30, Rule(everything)) for _ in range(4)], [np.zeros((99, 1))]) == ROOM * 120


def test_rows_needed_of_a_band_that_the_probe_did_not_see():
    never = Rule(partial(above, least=2.0))
    assert rows_needed([cell(10, never)], [np.zeros((99, 1))]) == pytest.approx(ROOM * 10 / (0.5 / 100))


def test_weighted_draws_need_more_than_bands():
    cosines = np.linspace(-0.5, 0.5, 999)[:, None]
    table = np.linspace(0, 3, 2**16)
    weighted = Rule(partial(by_table, index=0, log_weights_B=table))
    share = effective_share(weighted.weigh(cosines, 0.0))
    assert share < 0.9
    assert rows_needed([cell(10, weighted)], [cosines]) == pytest.approx(ROOM_OF_WEIGHTED * 10 / share)
