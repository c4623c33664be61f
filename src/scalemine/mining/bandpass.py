"""The pass over stored embeddings: similarities as `similarity.py` computes them, or compiled where that pays.

Shapes: N rows, K classes, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scalemine.mining.similarity import similarities

logger = logging.getLogger(__name__)

Way = Callable[[NDArray[np.float16], NDArray[np.float32]], NDArray[np.int16]]

# Coordinates from which two seconds of compiling are made up for, at some 0.4 ns that each one takes less.
MIN_COORDINATES_TO_COMPILE = 5_000_000_000


def choose_way(num_coordinates: int) -> Way:
    """Return what computes the similarities of so many coordinates fastest; the results are the same.

    Args:
        num_coordinates: Rows times dimensions that this process will go through.
    """
    if num_coordinates < MIN_COORDINATES_TO_COMPILE:
        return similarities
    try:
        from scalemine.mining import kernel
    except ImportError:  # numba is an extra, and may not go with the numpy that is there
        logger.info("pip install 'scalemine[numba]' for a faster pass over so many embeddings")
        return similarities
    return kernel.similarities
