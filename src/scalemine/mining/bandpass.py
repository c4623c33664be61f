"""The pass over stored embeddings: similarities by the fastest of several exact ways, and how near that is to a read.

The ways differ in speed alone: all of them give the whole numbers of `similarity.similarities`.

Shapes: N rows, K classes, D dimensions.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalemine.mining.similarity import similarities

Way = Callable[[NDArray[np.float16], NDArray[np.float32]], NDArray[np.int16]]

# With fewer rows than this it is not worth trying which way is fastest, nor measuring what a read takes.
MIN_ROWS_TO_TUNE = 100_000
# Coordinates from which two seconds of compiling are made up for, at some 0.4 ns that each one takes less.
MIN_COORDINATES_TO_COMPILE = 5_000_000_000
TRIAL_ROWS = 8_192
READ_BYTES = 2**26


@dataclass(frozen=True)
class Passed:
    """What a shard's pass took: bytes of its embeddings, seconds of one thread, bytes per second of a plain read."""

    num_bytes: int
    seconds: float
    read_speed: float | None


class BandPass:
    """Computes similarities to K anchors, in the way that was fastest on the first rows.

    Args:
        grid_KD: Anchors from ``anchor_grid``.
        num_rows: About how many rows this will be called with, in all.
    """

    def __init__(self, grid_KD: NDArray[np.float32], num_rows: int) -> None:
        self._grid_KD = grid_KD
        self._lock = threading.Lock()
        self._way: Way | None = None if num_rows >= MIN_ROWS_TO_TUNE else similarities
        self._compile = num_rows * grid_KD.shape[1] >= MIN_COORDINATES_TO_COMPILE
        self.read_speed = read_speed() if self._way is None else None

    def __call__(self, vectors_ND: NDArray[np.float16]) -> tuple[NDArray[np.int16], Passed]:
        """Return S_an ``(N, K)`` in steps of 2^-15, and what that took."""
        with self._lock:
            if self._way is None:
                self._way = fastest(ways(compiled=self._compile), vectors_ND[:TRIAL_ROWS], self._grid_KD)
        started = time.perf_counter()
        steps_NK = self._way(vectors_ND, self._grid_KD)
        return steps_NK, Passed(vectors_ND.nbytes, time.perf_counter() - started, self.read_speed)


def ways(*, compiled: bool) -> dict[str, Way]:
    """Return the ways to compute similarities, by name; that of `kernel.py` if asked for and numba is installed."""
    found: dict[str, Way] = {}
    for block_rows in (512, 2_048, 8_192):
        for anchors_first in (True, False):
            name = f"torch {'K x N' if anchors_first else 'N x K'}, {block_rows} rows"
            found[name] = partial(similarities, block_rows=block_rows, anchors_first=anchors_first)
    if compiled and importlib.util.find_spec("numba"):
        from scalemine.mining import kernel

        found["compiled"] = kernel.similarities
    return found


def fastest(found: dict[str, Way], vectors_ND: NDArray[np.float16], grid_KD: NDArray[np.float32]) -> Way:
    """Return the way that takes this thread least time on the processor, of three trials each, taken in turns."""
    times = dict.fromkeys(found, float("inf"))
    for _ in range(3):
        for name, way in found.items():
            started = time.thread_time()
            way(vectors_ND, grid_KD)
            times[name] = min(times[name], time.thread_time() - started)
    return found[min(times, key=times.__getitem__)]


def read_speed() -> float:
    """Return how many bytes per second one thread reads from memory: the best of five sums over a large array."""
    numbers = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return READ_BYTES / min(seconds)


def describe(passed: Iterable[Passed]) -> dict[str, Any]:
    """Return bytes per second and thread, and their share of a plain read's (the roofline), as JSON."""
    every = list(passed)
    speed = sum(one.num_bytes for one in every) / max(sum(one.seconds for one in every), 1e-9)
    reads = [one.read_speed for one in every if one.read_speed]
    read = sum(reads) / len(reads) if reads else None
    return {
        "bytes_per_second": round(speed),
        "read_bytes_per_second": round(read) if read else None,
        "share_of_read": speed / read if read else None,
    }
