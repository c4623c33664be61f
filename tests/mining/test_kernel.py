from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.mining.similarity import ANCHOR_COORDINATES_PER_UNIT, anchor_grid, similarities

kernel = pytest.importorskip("scalemine.mining.kernel", reason="numba is not installed")


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.one_of(st.integers(0, 12), st.integers(125, 135)),
    num_classes=st.integers(1, 16),
    dim=st.one_of(st.integers(1, 40), st.sampled_from([384, 768, 1_024])),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_equals_torch(num_rows, num_classes, dim, seed):
    rng = np.random.default_rng(seed)
    rows = oracles.unit_rows(rng, num_rows, dim).astype(np.float16) if num_rows else np.empty((0, dim), np.float16)
    grid = anchor_grid(oracles.unit_rows(rng, num_classes, dim).astype(np.float32))
    found = kernel.similarities(rows, grid)
    assert found.dtype == np.int16
    assert np.array_equal(found, similarities(rows, grid))


def test_every_float16_up_to_one_is_rounded_alike():
    # All magnitudes and signs: unnormal numbers, ties of the grid, both zeros; alone in a row, so that S_an shows it.
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    values = bits.view(np.float16)
    values = values[np.isfinite(values) & (np.abs(values) <= 1)]
    rows = np.zeros((len(values), 5), np.float16)
    rows[np.arange(len(values)), np.arange(len(values)) % 5] = values
    # 500 sums are a step, so this anchor gives a step per unit of the grid.
    grid = np.full((3, 5), 500, np.float32)
    expected = np.rint(values.astype(np.float64) * 4_096)
    assert np.array_equal(kernel.similarities(rows, grid), np.stack([expected] * 3, axis=1))
    assert np.array_equal(similarities(rows, grid), kernel.similarities(rows, grid))


def test_ties_of_a_step_and_clamps_are_alike():
    # Sums from -16,384,000 to 16,384,000 in units of 250: every tie between two steps, and one beyond each end.
    units = np.arange(-4_096, 4_097)
    rows = np.stack([units / 4_096, np.zeros(len(units))], axis=1).astype(np.float16)
    grid = np.array([[250, 0], [ANCHOR_COORDINATES_PER_UNIT, 3], [1, 0], [3_999, 7]], np.float32)
    exact = np.rint(rows.astype(np.float64) * 4_096) @ grid.T.astype(np.float64) / 500
    expected = np.clip(np.rint(exact), -(2**15), 2**15 - 1)
    assert (np.abs(exact - np.trunc(exact)) == 0.5).any()
    assert (exact > 2**15 - 1).any()
    assert np.array_equal(kernel.similarities(rows, grid), expected)
    assert np.array_equal(similarities(rows, grid), expected)


def test_read_only_slices_and_other_layouts_are_read_alike():
    rng = np.random.default_rng(3)
    rows = oracles.unit_rows(rng, 50, 24).astype(np.float16)
    grid = anchor_grid(oracles.unit_rows(rng, 4, 24).astype(np.float32))
    expected = similarities(rows, grid)
    frozen = rows.copy()
    frozen.flags.writeable = False
    assert np.array_equal(kernel.similarities(frozen, grid), expected)
    assert np.array_equal(kernel.similarities(frozen[7:31], grid), expected[7:31])
    assert np.array_equal(kernel.similarities(frozen[::3], grid), expected[::3])
    assert np.array_equal(kernel.similarities(np.asfortranarray(rows), np.asfortranarray(grid)), expected)
