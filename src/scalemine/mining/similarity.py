"""The similarity S_an of a tweet to the anchor of a class: its kernel, its distribution, and its bands.

Everything after the encoder is exact. Vectors and anchors are rounded to a grid on which a float32 product sum has no
rounding at all, so S_an does not depend on the order of a sum: not on shards, blocks, threads or device. S_an is then a
whole number of steps of 2^-15, and its distribution is a histogram with one bin per step: counts that add.

Shapes: N tweets, K classes, D dimensions, B steps of the grid.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

Tails = Literal["both", "upper"]

# One step of S_an: 2^-15, about 0.0004 sigma. Steps run from -2^15 (S_an = -1) to 2^15 - 1.
STEPS_PER_UNIT = 2**15
NUM_STEPS = 2 * STEPS_PER_UNIT

# Coordinates are whole numbers of these steps. Sums of their products are whole numbers too and, by Cauchy and Schwarz,
# no partial sum is above the product of the lengths: below 2^24 also where rounding has made both vectors longer than 1
# (up to 8,000 dimensions). A float32 holds every whole number up to 2^24.
COORDINATES_PER_UNIT = 4_096
ANCHOR_COORDINATES_PER_UNIT = 4_000
BLOCK_ROWS = 2_048

BANDS = (1, 2, 3, 4)

# Embeddings are memory-mapped, hence read-only, and only read here.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def anchor_grid(anchors_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return anchors ``(K, D)`` as whole numbers of grid steps, ready for ``similarities``."""
    units = anchors_KD / np.linalg.norm(anchors_KD, axis=1, keepdims=True)
    grid: NDArray[np.float32] = np.rint(units.astype(np.float64) * ANCHOR_COORDINATES_PER_UNIT).astype(np.float32)
    return grid


def row_grid(vectors_BD: NDArray[np.float16], room_ND: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1 as whole numbers of grid steps ``(B, D)``, written into float32 room for them."""
    rows = torch.from_numpy(vectors_BD)
    grid_BD = room_ND[: len(rows)]
    return grid_BD.copy_(rows).mul_(COORDINATES_PER_UNIT).round_()


def similarities(vectors_ND: NDArray[np.float16], grid_KD: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return S_an ``(N, K)`` in steps of 2^-15: the cosine of each row of length 1 with each anchor.

    Args:
        vectors_ND: Embeddings, rows of length 1.
        grid_KD: Anchors from ``anchor_grid``.
    """
    num_rows, num_classes = len(vectors_ND), len(grid_KD)
    steps_KN = np.empty((num_classes, num_rows), np.int16)
    out_KN = torch.from_numpy(steps_KN)
    anchors_KD = torch.from_numpy(grid_KD)
    block_BD = torch.empty((min(BLOCK_ROWS, num_rows), vectors_ND.shape[1]), dtype=torch.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        grid_BD = row_grid(vectors_ND[start : start + BLOCK_ROWS], block_BD)
        # A rounded vector may be a little longer than 1, hence the clamp.
        sums_KB = anchors_KD @ grid_BD.T
        sums_KB.div_(COORDINATES_PER_UNIT * ANCHOR_COORDINATES_PER_UNIT // STEPS_PER_UNIT).round_().clamp_(
            -STEPS_PER_UNIT, STEPS_PER_UNIT - 1
        )
        out_KN[:, start : start + BLOCK_ROWS] = sums_KB
    return steps_KN.T


def count_steps(steps_NK: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the histogram ``(K, B)`` of similarities ``(N, K)``; each row sums to N."""
    num_classes = steps_NK.shape[1]
    # One count over all classes, each with bins of its own: half the time of a count per class.
    bins_KN = steps_NK.T.astype(np.int64)
    bins_KN += (np.arange(num_classes) * NUM_STEPS + STEPS_PER_UNIT)[:, None]
    return np.bincount(bins_KN.ravel(), minlength=num_classes * NUM_STEPS).reshape(num_classes, NUM_STEPS)


@functools.cache
def step_values() -> NDArray[np.float64]:
    """Return S_an of every step ``(B,)``, rising."""
    return np.arange(-STEPS_PER_UNIT, STEPS_PER_UNIT) / STEPS_PER_UNIT


@dataclass(frozen=True, eq=False)
class SimilarityDistribution:
    """How S_an of one class is distributed over tweets: a count per step. Partial distributions add.

    Args:
        class_name: The class of the anchor.
        counts_B: Tweets per step of S_an.
    """

    class_name: str
    counts_B: NDArray[np.int64]

    def __add__(self, other: SimilarityDistribution) -> SimilarityDistribution:
        """Return the distribution over the tweets of both."""
        assert self.class_name == other.class_name
        return SimilarityDistribution(self.class_name, self.counts_B + other.counts_B)

    @property
    def count(self) -> int:
        """Number of tweets."""
        return int(self.counts_B.sum())

    @functools.cached_property
    def mean(self) -> float:
        """Mean of S_an."""
        steps_B = np.arange(-STEPS_PER_UNIT, STEPS_PER_UNIT)
        return int((self.counts_B * steps_B).sum()) / self.count / STEPS_PER_UNIT

    @functools.cached_property
    def std(self) -> float:
        """Standard deviation of S_an (of the population, not a sample's estimate)."""
        return float(np.sqrt(self._central_moment(2)))

    @property
    def skewness(self) -> float:
        """Third standardised moment; 0 for a normal distribution."""
        return float(self._central_moment(3) / self.std**3) if self.std else 0.0

    @property
    def excess_kurtosis(self) -> float:
        """Fourth standardised moment less 3; 0 for a normal distribution."""
        return float(self._central_moment(4) / self.std**4 - 3) if self.std else 0.0

    def _central_moment(self, order: int) -> float:
        # Not as a product of vectors, whose last bits depend on the threads of the library that computes it.
        return float((self.counts_B * (step_values() - self.mean) ** order).sum() / self.count)

    def ks_statistic(self, normal: Normal) -> float:
        """Return the largest distance between this distribution's cdf and a normal's, from 0 to 1.

        Source: Kolmogorov (1933), looked at where the steps of S_an meet.
        """
        cdf_B = np.cumsum(self.counts_B) / self.count
        # A step stands for the interval of its width around it.
        upper_B = ndtr((step_values() + 0.5 / STEPS_PER_UNIT - normal.mean) / normal.std)
        return float(np.abs(cdf_B - upper_B).max())

    def quantile(self, share: float) -> float:
        """Return the least S_an up to which at least this share of the tweets lies."""
        reached = np.searchsorted(np.cumsum(self.counts_B), share * self.count)
        return float(step_values()[min(int(reached), NUM_STEPS - 1)])

    def auc(self, positive_steps: NDArray[np.int16]) -> float:
        """Return P(S_an of a positive > S_an of a tweet), ties counted half: the area under the ROC curve.

        Source: Hanley and McNeil (1982), the Mann-Whitney form.
        """
        below_B = np.cumsum(self.counts_B) - self.counts_B
        index = positive_steps.astype(np.int64) + STEPS_PER_UNIT
        return float(np.mean(below_B[index] + self.counts_B[index] / 2) / self.count)

    def band_counts(self, normal: Normal, tails: Tails) -> dict[int, int]:
        """Return the number of tweets per band, 4 being beyond three sigma."""
        band_B = normal.bands(step_values(), tails)
        return {band: int(self.counts_B[band_B == band].sum()) for band in BANDS}


@dataclass(frozen=True)
class Normal:
    """The normal distribution fitted to S_an; its sigma measures how difficult a negative is.

    Source: Zhang, Lo and Win Myint (2023), "Search negatives by the position of S_an in normal distribution".
    """

    mean: float
    std: float

    def z(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how many sigma each cosine lies from the mean."""
        return (cosines - self.mean) / self.std

    def bands(self, cosines: NDArray[np.float64], tails: Tails) -> NDArray[np.int8]:
        """Return the band of each cosine: 1, 2, 3, or 4 beyond; 0 for the lower half where only the upper counts.

        Band b holds b - 1 <= |z| < b (both tails) or b - 1 <= z < b (upper).
        """
        z = self.z(cosines)
        distance = np.abs(z) if tails == "both" else z
        band = np.minimum(np.floor(distance) + 1, BANDS[-1]).astype(np.int8)
        return np.where(distance < 0, 0, band).astype(np.int8)

    def in_band(
        self, cosines: NDArray[np.float64], band: int, tails: Tails, *, margin: float = 0.0
    ) -> NDArray[np.bool_]:
        """Return whether each cosine is in a band, or within a margin (a cosine) of it."""
        distance = np.abs(self.z(cosines)) if tails == "both" else self.z(cosines)
        slack = margin / self.std
        above: NDArray[np.bool_] = distance >= band - 1 - slack
        return above if band == BANDS[-1] else above & (distance < band + slack)

    @staticmethod
    def band_share(band: int, tails: Tails) -> float:
        """Return the share of a normal distribution in a band."""
        upper = 1.0 if band == BANDS[-1] else float(ndtr(band))
        share = upper - float(ndtr(band - 1))
        return 2 * share if tails == "both" else share


def describe(
    distribution: SimilarityDistribution,
    normal: Normal,
    *,
    fit: dict[str, Any],
    tails: Tails,
    positive_steps: NDArray[np.int16],
) -> dict[str, Any]:
    """Return the row of ``distributions.json`` for one class."""
    bands = distribution.band_counts(normal, tails)
    return {
        "class_name": distribution.class_name,
        "num_positives": len(positive_steps),
        "count": distribution.count,
        "mean": normal.mean,
        "std": normal.std,
        "skewness": distribution.skewness,
        "excess_kurtosis": distribution.excess_kurtosis,
        "ks_statistic": distribution.ks_statistic(normal),
        "band_counts": {str(band): count for band, count in bands.items()},
        "band_shares": {str(band): count / distribution.count for band, count in bands.items()},
        "normal_shares": {str(band): Normal.band_share(band, tails) for band in BANDS},
        "auc": distribution.auc(positive_steps),
        "fit": fit,
    }
