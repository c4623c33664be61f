"""The similarities of `similarity.py` in one loop over the rows, compiled by numba when this module is imported.

It takes a second or two to compile, in each process, and is an optional dependency: `bandpass.py` says when it pays.
numba's cache on disk holds pickles, so it is not used.

Shapes: N rows, K classes, D dimensions, R rows of a tile.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from scalemine.mining.similarity import (
    ANCHOR_COORDINATES_PER_UNIT,
    COORDINATES_PER_UNIT,
    STEPS_PER_UNIT,
)

# Rows and anchors whose products are summed at a time: twelve sums, which stay in registers.
TILE_ROWS, TILE_ANCHORS = 4, 3
BLOCK_ROWS = 128

F4, U4 = np.float32, np.uint32
# The bits of a float16, moved to where a float32 has them, are its value times 2^-112: unnormal ones, too.
SCALE = F4(COORDINATES_PER_UNIT * 2.0**112)
# A float32 this large has no fraction: adding it rounds, ties to even.
ROUNDS = F4(3 << 22)
SUMS_PER_STEP = F4(COORDINATES_PER_UNIT * ANCHOR_COORDINATES_PER_UNIT // STEPS_PER_UNIT)
FIRST_STEP, LAST_STEP = F4(-STEPS_PER_UNIT), F4(STEPS_PER_UNIT - 1)


def _to_grid(bits_ND: NDArray[np.uint16], n: int, tile_RD: NDArray[np.float32], r: int) -> None:
    """Write a row of float16, given as bits, as whole numbers of grid steps."""
    for d in range(tile_RD.shape[1]):
        bits = U4(bits_ND[n, d])
        moved = U4(((bits & U4(0x7FFF)) << U4(13)) | ((bits & U4(0x8000)) << U4(16)))
        tile_RD[r, d] = F4(F4(moved.view(F4) * SCALE) + ROUNDS) - ROUNDS


def _add_products(
    tile_RD: NDArray[np.float32], grid_KD: NDArray[np.float32], k: int, sums_KB: NDArray[np.float32], n: int
) -> None:
    """Write the product sums of the rows of a tile with three anchors, in any order: they are exact."""
    a1 = b1 = c1 = d1 = a2 = b2 = c2 = d2 = a3 = b3 = c3 = d3 = F4(0)
    for i in range(tile_RD.shape[1]):
        a, b, c, d = tile_RD[0, i], tile_RD[1, i], tile_RD[2, i], tile_RD[3, i]
        one, two, three = grid_KD[k, i], grid_KD[k + 1, i], grid_KD[k + 2, i]
        a1, b1, c1, d1 = a1 + a * one, b1 + b * one, c1 + c * one, d1 + d * one
        a2, b2, c2, d2 = a2 + a * two, b2 + b * two, c2 + c * two, d2 + d * two
        a3, b3, c3, d3 = a3 + a * three, b3 + b * three, c3 + c * three, d3 + d * three
    sums_KB[k, n], sums_KB[k, n + 1], sums_KB[k, n + 2], sums_KB[k, n + 3] = a1, b1, c1, d1
    sums_KB[k + 1, n], sums_KB[k + 1, n + 1], sums_KB[k + 1, n + 2], sums_KB[k + 1, n + 3] = a2, b2, c2, d2
    sums_KB[k + 2, n], sums_KB[k + 2, n + 1], sums_KB[k + 2, n + 2], sums_KB[k + 2, n + 3] = a3, b3, c3, d3


def _to_steps(sums_KB: NDArray[np.float32], k: int, steps_KN: NDArray[np.int16], start: int, num_rows: int) -> None:
    """Write product sums in steps of S_an."""
    for n in range(num_rows):
        step = F4(F4(sums_KB[k, n] / SUMS_PER_STEP) + ROUNDS) - ROUNDS
        steps_KN[k, start + n] = np.int16(max(min(step, LAST_STEP), FIRST_STEP))


def _score(
    bits_ND: NDArray[np.uint16], grid_KD: NDArray[np.float32], tile_RD: NDArray[np.float32], steps_KN: NDArray[np.int16]
) -> None:
    """Write the similarities of rows, given as the bits of float16, in steps of S_an; K is a multiple of three."""
    num_rows = len(bits_ND)
    num_classes = len(grid_KD)
    sums_KB = np.empty((num_classes, BLOCK_ROWS), np.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_rows)
        for first in range(start, stop, TILE_ROWS):
            for n in range(first, min(first + TILE_ROWS, stop)):
                _to_grid(bits_ND, n, tile_RD, n - first)
            for k in range(0, num_classes, TILE_ANCHORS):
                _add_products(tile_RD, grid_KD, k, sums_KB, first - start)
        for k in range(num_classes):
            _to_steps(sums_KB, k, steps_KN, start, stop - start)


# Only where order makes no difference may the compiler change it.
_to_grid = numba.njit(_to_grid, error_model="numpy")
_add_products = numba.njit(_add_products, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
_to_steps = numba.njit(_to_steps, error_model="numpy")
_compiled = numba.njit(
    [
        (
            numba.types.Array(numba.uint16, 2, "C", readonly=True),
            numba.types.Array(numba.float32, 2, "C", readonly=True),
            numba.float32[:, ::1],
            numba.int16[:, ::1],
        )
    ],
    nogil=True,
    error_model="numpy",
)(_score)


def similarities(vectors_ND: NDArray[np.float16], grid_KD: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return what `similarity.similarities` returns, computed on one core."""
    # torch aligns to 64 bytes, a line of the cache, which numpy does not.
    tile_RD = torch.zeros((TILE_ROWS, grid_KD.shape[1])).numpy()
    padded_KD = torch.zeros((len(grid_KD) + -len(grid_KD) % TILE_ANCHORS, grid_KD.shape[1])).numpy()
    padded_KD[: len(grid_KD)] = grid_KD
    steps_KN = np.empty((len(padded_KD), len(vectors_ND)), np.int16)
    _compiled(np.ascontiguousarray(vectors_ND).view(np.uint16), padded_KD, tile_RD, steps_KN)
    return steps_KN[: len(grid_KD)].T
