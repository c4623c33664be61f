from __future__ import annotations

import sys

import numpy as np
import pytest

from scalemine.config import InputError
from scalemine.training.multilabel.projection import drawn_rows, principal_components, project


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(2, 12)) * 8
    return (np.repeat(centres, 40, axis=0) + rng.normal(size=(80, 12))).astype(np.float16)


def test_rows_are_all_or_a_seeded_sample():
    np.testing.assert_array_equal(drawn_rows(5, 5, 1), np.arange(5))
    rows = drawn_rows(1_000, 30, 1)
    assert len(set(rows.tolist())) == 30
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, drawn_rows(1_000, 30, 1))
    assert (rows != drawn_rows(1_000, 30, 2)).any()


def test_principal_components_are_those_of_the_singular_values(vectors):
    reduced = principal_components(vectors, 3, 1)
    assert reduced.shape == (80, 3)
    assert reduced.dtype == np.float32
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(reduced), np.abs(centred @ rows[:3].T), rtol=1e-2, atol=2e-2)
    np.testing.assert_array_equal(reduced, principal_components(vectors, 3, 1))


@pytest.mark.parametrize(("rows", "wanted", "kept"), [(80, 50, 12), (6, 50, 6), (80, 1, 1)])
def test_components_are_no_more_than_there_are(vectors, rows, wanted, kept):
    assert principal_components(vectors[:rows], wanted, 1).shape == (rows, kept)


def test_wrong_settings_are_refused(vectors):
    with pytest.raises(ValueError, match="at least 4 rows"):
        project(vectors[:3], seed=1)
    with pytest.raises(ValueError, match="neighbours"):
        project(vectors, seed=1, neighbours=1)
    with pytest.raises(ValueError, match="4 rows"):
        project(vectors, seed=1, max_rows=3)
    with pytest.raises(ValueError, match="component"):
        project(vectors, seed=1, components=0)
    broken = vectors.copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        project(broken, seed=1)


def test_a_missing_umap_says_what_to_install(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'scalemine\[umap\]'"):
        project(vectors, seed=1)


@pytest.mark.slow  # UMAP compiles itself for a minute
def test_a_plane_is_seeded_and_keeps_groups_together(vectors):
    one, same, other = (project(vectors, seed=seed) for seed in (1, 1, 2))
    assert one.places_M2.shape == (80, 2)
    assert one.places_M2.dtype == np.float32
    np.testing.assert_array_equal(one.places_M2, same.places_M2)
    assert (one.places_M2 != other.places_M2).any()
    distances = np.linalg.norm(one.places_M2[:, None] - one.places_M2[None], axis=2)
    assert distances[:40, :40].max() < distances[:40, 40:].min()
    sample = project(vectors, seed=1, max_rows=20)
    np.testing.assert_array_equal(sample.rows_M, drawn_rows(80, 20, 1))
    assert sample.places_M2.shape == (20, 2)
    for rows in (4, 5, 17):
        assert np.isfinite(project(vectors[:rows], seed=1).places_M2).all()
    equal = project(np.ones((30, 6), np.float32), seed=1)
    assert np.isfinite(equal.places_M2).all()
