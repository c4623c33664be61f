"""Embeddings laid out on a plane: principal components, then UMAP.

Shapes: N rows, M rows laid out, D dimensions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scalemine.config import InputError

FloatArray = NDArray[np.float32]

# Of fewer rows UMAP makes no graph that it could lay out.
MIN_ROWS = 4


@dataclass(frozen=True, eq=False)
class Projection:
    """Where rows lie on the plane.

    Args:
        rows_M: Rows that were laid out, ascending.
        places_M2: Their places, float32; distances have no unit.
    """

    rows_M: NDArray[np.int64]
    places_M2: FloatArray


def project(
    vectors_ND: NDArray[Any], *, seed: int, components: int = 50, neighbours: int = 15, max_rows: int = 20_000
) -> Projection:
    """Lay embeddings out on a plane; a seed gives the same picture on the same machine.

    Args:
        vectors_ND: Embeddings, float32 or float16.
        seed: Decides which rows are drawn, and how they are laid out.
        components: Principal components that UMAP sees: fewer make it faster and drop noise.
        neighbours: Neighbours of each row that UMAP keeps together; at most M - 1 are.
        max_rows: Where there are more rows, so many are drawn.

    Raises:
        ValueError: There are fewer than 4 rows, or a setting is too small.
        InputError: UMAP is not installed.

    Source: McInnes, Healy, Melville (2018), UMAP: Uniform Manifold Approximation and Projection.
    """
    if neighbours < 2 or max_rows < MIN_ROWS:
        raise ValueError(f"expected at least 2 neighbours and {MIN_ROWS} rows, got {neighbours} and {max_rows}")
    rows_M = drawn_rows(len(vectors_ND), max_rows, seed)
    reduced = principal_components(vectors_ND[rows_M], components, seed)
    try:
        import umap
    except ModuleNotFoundError as error:
        raise InputError("a projection needs UMAP: pip install 'scalemine[umap]'") from error
    # Seeded it runs on one thread. A spectral layout, its usual start, fails on few rows.
    reducer = umap.UMAP(
        n_neighbors=min(neighbours, len(rows_M) - 1),
        random_state=seed,
        n_jobs=1,
        init="spectral" if len(rows_M) > 10 * MIN_ROWS else "random",
    )
    with warnings.catch_warnings():
        # That some rows have no path to others is usual among tweets: they lie apart.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"umap|sklearn\.manifold")
        places_M2 = reducer.fit_transform(reduced)
    return Projection(rows_M, np.ascontiguousarray(places_M2, np.float32))


def drawn_rows(num_rows: int, max_rows: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``max_rows`` rows ``(M,)``, ascending: all of them, or those that a seed draws.

    Raises:
        ValueError: There are fewer rows than can be laid out.
    """
    if num_rows < MIN_ROWS:
        raise ValueError(f"expected at least {MIN_ROWS} rows to lay out, got {num_rows}")
    if num_rows <= max_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, max_rows, replace=False))


def principal_components(vectors_MD: NDArray[Any], components: int, seed: int) -> FloatArray:
    """Return the rows on their first principal components, float32: as many as asked for and as there are.

    Raises:
        ValueError: Fewer than one component is asked for, or an embedding is not finite.
    """
    if components < 1:
        raise ValueError(f"expected at least 1 component, got {components}")
    kept = min(components, *vectors_MD.shape)
    # Squares of float16 would overflow.
    pca = PCA(kept, svd_solver="randomized", random_state=seed)
    return np.asarray(pca.fit_transform(vectors_MD.astype(np.float32)), np.float32)
