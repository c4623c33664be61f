"""The distribution of S_an per class over the whole corpus or a sample, fitted, tested, and forecast.

Shapes: K classes, B steps of S_an, P rows of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import beta

from scalemine.config import MiningConfig
from scalemine.corpus import Shard
from scalemine.executor import Executor
from scalemine.mining.anchors import Anchors
from scalemine.mining.embeddings import Similarities
from scalemine.mining.sampling import groups
from scalemine.mining.similarity import (
    NUM_STEPS,
    STEPS_PER_UNIT,
    Normal,
    SimilarityDistribution,
    Tails,
    count_steps,
)

HISTOGRAM_BINS = 200


class _Counter:
    def __init__(self, similarities: Similarities) -> None:
        self._similarities = similarities

    def __call__(self, shards: tuple[Shard, ...]) -> NDArray[np.int64]:
        """Return the histogram ``(K, B)`` of some shards."""
        counts_KB: NDArray[np.int64] | int = 0
        for shard in shards:
            _, steps_NK, valid_N = self._similarities.steps(shard)
            counts_KB = counts_KB + count_steps(steps_NK[valid_N])
        return np.asarray(counts_KB)


def measure(similarities: Similarities, class_names: Sequence[str], executor: Executor) -> list[SimilarityDistribution]:
    """Return the distribution of S_an per class over the corpus, counted in parallel and added up."""
    total: list[SimilarityDistribution] | None = None
    for outcome in executor.map(partial(_Counter, similarities), groups(similarities.corpus.shards)):
        if outcome.error is not None or outcome.result is None:
            raise RuntimeError(f"similarities cannot be counted:\n{outcome.error}")
        part = [SimilarityDistribution(name, counts) for name, counts in zip(class_names, outcome.result, strict=True)]
        total = part if total is None else [one + other for one, other in zip(total, part, strict=True)]
    assert total is not None
    return total


def of_sample(steps_PK: NDArray[np.int16], class_names: Sequence[str]) -> list[SimilarityDistribution]:
    """Return the distribution of S_an per class over a sample."""
    return [
        SimilarityDistribution(name, counts) for name, counts in zip(class_names, count_steps(steps_PK), strict=True)
    ]


def fit(distribution: SimilarityDistribution) -> Normal:
    """Return the normal distribution with the mean and standard deviation of S_an, which maximises its likelihood."""
    # All tweets alike: a width of one step keeps z finite, and every tweet in band 1.
    return Normal(distribution.mean, max(distribution.std, 1 / STEPS_PER_UNIT))


@dataclass(frozen=True)
class Forecast:
    """How many tweets of a band to expect in the corpus, from a sample, with a 95 % interval."""

    class_name: str
    band: int
    quota: int
    expected: float
    low: float
    high: float

    @property
    def falls_short(self) -> bool:
        """Whether even the upper end of the interval is below the quota."""
        return self.high < self.quota

    @property
    def may_fall_short(self) -> bool:
        """Whether fewer than the quota are expected."""
        return self.expected < self.quota

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON."""
        return asdict(self)


def forecast(
    sample: Sequence[SimilarityDistribution], quotas: dict[tuple[str, int], int], num_rows: int, tails: Tails
) -> list[Forecast]:
    """Return what each band will hold."""
    forecasts = []
    for distribution in sample:
        size, counts = distribution.count, distribution.band_counts(fit(distribution), tails)
        for band in sorted({band for name, band in quotas if name == distribution.class_name}):
            hits = counts[band]
            low, high = interval(hits, size)
            quota = quotas[distribution.class_name, band]
            forecasts.append(
                Forecast(distribution.class_name, band, quota, num_rows * hits / size, num_rows * low, num_rows * high)
            )
    return forecasts


def interval(hits: int, size: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a binomial share.

    Source: Clopper and Pearson (1934).
    """
    low = float(beta.ppf(0.025, hits, size - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, size - hits)) if hits < size else 1.0
    return low, high


def histogram_table(distributions: Sequence[SimilarityDistribution]) -> pa.Table:
    """Return histograms for the eye: class_name, low, high (S_an), count."""
    rows = []
    for distribution in distributions:
        used = np.flatnonzero(distribution.counts_B)
        first, stop = int(used[0]), int(used[-1]) + 1
        width = max(1, -(-(stop - first) // HISTOGRAM_BINS))
        for start in range(first, stop, width):
            end = min(start + width, NUM_STEPS)
            rows.append(
                {
                    "class_name": distribution.class_name,
                    "low": (start - 0.5) / STEPS_PER_UNIT - 1,
                    "high": (end - 0.5) / STEPS_PER_UNIT - 1,
                    "count": int(distribution.counts_B[start:end].sum()),
                }
            )
    return pa.Table.from_pylist(rows)


def weak_anchor_warnings(rows: Sequence[dict[str, Any]], config: MiningConfig) -> list[str]:
    """Return a warning for each class whose anchor does not tell its positives from the corpus."""
    return [
        f"{row['class_name']}: weak anchor, AUC {row['auc']:.2f} (below {config.weak_auc}): its bands say little about "
        f"difficulty; look at its positives, or split the class"
        for row in rows
        if row["auc"] < config.weak_auc
    ]


def positive_steps(anchors: Anchors) -> dict[str, NDArray[np.int16]]:
    """Return S_an of each class's positives, each against the anchor of the others."""
    return {name: anchors.leave_one_out_steps(index) for index, name in enumerate(anchors.class_names)}
