from __future__ import annotations

import sys

import numpy as np
import pytest

from mining import oracles
from scalemine.mining import bandpass
from scalemine.mining.bandpass import BandPass, Passed, describe, fastest, read_speed, ways
from scalemine.mining.similarity import anchor_grid, similarities


@pytest.fixture(scope="module")
def rows():
    return oracles.unit_rows(np.random.default_rng(1), 3_000, 48).astype(np.float16)


@pytest.fixture(scope="module")
def grid():
    return anchor_grid(oracles.unit_rows(np.random.default_rng(2), 6, 48).astype(np.float32))


def test_all_ways_give_the_same(rows, grid):
    expected = similarities(rows, grid)
    for name, way in ways(compiled=True).items():
        for part in (slice(0), slice(1), slice(5, 2_600), slice(None)):
            assert np.array_equal(way(rows[part], grid), expected[part]), name


def test_the_kernel_is_compiled_only_on_demand(monkeypatch):
    assert "compiled" not in ways(compiled=False)
    monkeypatch.setattr(bandpass.importlib.util, "find_spec", lambda name: None)
    assert "compiled" not in ways(compiled=True)


def test_fastest_is_the_one_that_takes_least(rows, grid):
    def slow(vectors, grid):
        sum(range(200_000))

    def fast(vectors, grid):
        pass

    assert fastest({"slow": slow, "fast": fast, "slower": slow}, rows, grid) is fast


@pytest.mark.parametrize("num_rows", [10, 10**6, 10**9])
def test_band_pass_gives_what_similarities_gives(rows, grid, num_rows):
    band_pass = BandPass(grid, num_rows)
    for part in (rows[:1_000], rows, rows[:0]):
        steps, passed = band_pass(part)
        assert np.array_equal(steps, similarities(part, grid))
        assert passed.num_bytes == part.nbytes
        assert (passed.read_speed is None) == (num_rows < bandpass.MIN_ROWS_TO_TUNE)


def test_a_small_corpus_is_neither_tuned_nor_compiled(rows, grid, monkeypatch):
    monkeypatch.setattr(bandpass, "fastest", None)
    monkeypatch.setattr(bandpass, "read_speed", None)
    monkeypatch.setitem(sys.modules, "scalemine.mining.kernel", None)
    BandPass(grid, 1_000)(rows)


def test_it_is_tuned_once(rows, grid, monkeypatch):
    calls = []
    monkeypatch.setattr(bandpass, "fastest", lambda found, *_: calls.append(found) or similarities)
    band_pass = BandPass(grid, bandpass.MIN_ROWS_TO_TUNE)
    band_pass(rows)
    band_pass(rows)
    assert len(calls) == 1


def test_describe_sums_up():
    passed = [Passed(100, 1.0, 200.0), Passed(300, 3.0, 200.0)]
    assert describe(passed) == {"bytes_per_second": 100, "read_bytes_per_second": 200, "share_of_read": 0.5}
    assert describe([Passed(100, 1.0, None)])["share_of_read"] is None


def test_read_speed_is_of_this_world():
    assert 1e8 < read_speed() < 1e13
