from __future__ import annotations

import sys

import numpy as np

from mining import oracles
from scalemine.mining import bandpass, kernel
from scalemine.mining.bandpass import choose_way
from scalemine.mining.similarity import anchor_grid, similarities


def test_few_embeddings_are_not_worth_compiling(monkeypatch):
    monkeypatch.setitem(sys.modules, "scalemine.mining.kernel", None)
    assert choose_way(bandpass.MIN_COORDINATES_TO_COMPILE - 1) is similarities


def test_many_are_computed_by_the_kernel_and_alike():
    way = choose_way(bandpass.MIN_COORDINATES_TO_COMPILE)
    assert way is kernel.similarities
    rows = oracles.unit_rows(np.random.default_rng(1), 3_000, 48).astype(np.float16)
    grid = anchor_grid(oracles.unit_rows(np.random.default_rng(2), 6, 48).astype(np.float32))
    assert np.array_equal(way(rows, grid), similarities(rows, grid))


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "scalemine.mining.kernel")
    monkeypatch.delattr("scalemine.mining.kernel")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert choose_way(bandpass.MIN_COORDINATES_TO_COMPILE) is similarities
