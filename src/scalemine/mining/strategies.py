"""Strategies: which tweets may become negatives of a class, and which of them first.

A strategy is a pure function from cosines to log-weights, minus infinity where a tweet may not be taken. Its rule takes
the eligible in order of their weights, or draws them with these weights, by keys of the seed and the row alone.

Shapes: N tweets, K classes, B steps of S_an, M positives, R neighbours of a positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.stats import norm

from scalemine.config import BANDED, MiningConfig
from scalemine.mining.sampling import race
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, SimilarityDistribution, Tails, step_values

FloatArray = NDArray[np.float64]
Weigh = Callable[[FloatArray, float], FloatArray]

NEVER = -np.inf


@dataclass(frozen=True)
class Rule:
    """How a cell takes tweets.

    Args:
        weigh: Log-weights ``(N,)`` of cosines ``(N, K)``, given how far a cosine may be off.
        in_order: The largest weight first; else drawn with these weights.
        window: Of those in order, the places that count, [start, stop).
        draw_window: What is in the window is drawn, not taken in order.
    """

    weigh: Weigh
    in_order: bool = False
    window: tuple[int, int | None] = (0, None)
    draw_window: bool = False

    def keys(self, cosines_NK: FloatArray, priorities_N: NDArray[np.uint64], slack: float) -> FloatArray:
        """Return keys ``(N,)``: the least is taken first, and infinity never."""
        log_weights_N = self.weigh(cosines_NK, slack)
        return -log_weights_N if self.in_order else race(log_weights_N, priorities_N)

    def holds(self, cosines_K: FloatArray) -> bool:
        """Return whether a tweet of these exact cosines may be taken."""
        return bool(self.weigh(cosines_K[None], 0.0)[0] > NEVER)


def everything(cosines_NK: FloatArray, slack: float) -> FloatArray:
    """Weigh all tweets alike: random negatives."""
    del slack
    return np.zeros(len(cosines_NK))


def sigma_band(
    cosines_NK: FloatArray, slack: float, *, index: int, normal: Normal, band: int, tails: Tails
) -> FloatArray:
    """Weigh the tweets of a band alike, by sigma of the fitted normal.

    Source: Zhang, Lo and Win Myint (2023), "Search negatives by the position of S_an in normal distribution".
    """
    return np.where(normal.in_band(cosines_NK[:, index], band, tails, margin=slack), 0.0, NEVER)


def quantile_band(
    cosines_NK: FloatArray, slack: float, *, index: int, intervals: Sequence[tuple[float, float]]
) -> FloatArray:
    """Weigh the tweets of a band alike, by quantiles of S_an: no normal distribution is assumed."""
    cosines_N = cosines_NK[:, index]
    inside = [(cosines_N >= low - slack) & (cosines_N < high + slack) for low, high in intervals]
    return np.where(np.any(inside, axis=0), 0.0, NEVER)


def quantile_intervals(
    distribution: SimilarityDistribution, quantiles: Sequence[float], band: int, tails: Tails
) -> list[tuple[float, float]]:
    """Return where S_an of a band lies, [low, high): above the median and, with both tails, mirrored below it."""
    edges = [0.5, *quantiles, 1.0]
    low, high = edges[band - 1], edges[band]
    top = np.inf if high == 1 else distribution.quantile(high)
    intervals = [(distribution.quantile(low), top)]
    if tails == "both":
        intervals.append((-np.inf if high == 1 else distribution.quantile(1 - high), distribution.quantile(1 - low)))
    return intervals


def nearest(cosines_NK: FloatArray, slack: float, *, index: int) -> FloatArray:
    """Weigh by the cosine itself: the nearest first, for a window of ranks."""
    del slack
    return cosines_NK[:, index]


def margin_limit(reference: FloatArray, absolute: float | None, relative: float | None) -> FloatArray:
    """Return the largest cosine that a negative may have beside a positive of cosine ``reference``.

    Source: de Souza P. Moreira et al. (2024), NV-Retriever, MarginPos and PercPos; relative to the absolute value, so
    that the limit lies below a negative reference, too.
    """
    limit = np.full(np.shape(reference), np.inf)
    if absolute is not None:
        limit = np.minimum(limit, reference - absolute)
    if relative is not None:
        limit = np.minimum(limit, reference - relative * np.abs(reference))
    return limit


def margin(cosines_NK: FloatArray, slack: float, *, index: int, limit: float, alike: bool) -> FloatArray:
    """Weigh what lies below the limit of ``margin_limit``, alike or by its cosine."""
    cosines_N = cosines_NK[:, index]
    return np.where(cosines_N <= limit + slack, 0.0 if alike else cosines_N, NEVER)


def simans_log_weights(cosines: FloatArray, reference: FloatArray, half_width: float, offset: float) -> FloatArray:
    """Return log-weights of SimANS, -a (s - s+ + b)^2, with a = ln 2 / half_width^2.

    Source: Zhou et al. (2022), SimANS, with the sign of b that their code uses: the peak lies b below the positive.
    """
    log_weights: FloatArray = -np.log(2) / half_width**2 * (cosines - reference + offset) ** 2
    return log_weights


def simans(
    cosines_NK: FloatArray, slack: float, *, index: int, reference: float, half_width: float, offset: float
) -> FloatArray:
    """Weigh by SimANS: what is about as similar as a positive, neither far easier nor far harder."""
    del slack
    return simans_log_weights(cosines_NK[:, index], np.array(reference), half_width, offset)


def by_table(cosines_NK: FloatArray, slack: float, *, index: int, log_weights_B: FloatArray) -> FloatArray:
    """Weigh by a table over the steps of S_an."""
    del slack
    steps_N = np.rint(cosines_NK[:, index] * STEPS_PER_UNIT).astype(np.int64) + STEPS_PER_UNIT
    weights_N: FloatArray = log_weights_B[steps_N.clip(0, len(log_weights_B) - 1)]
    return weights_N


def positive_probability(distribution: SimilarityDistribution, positive_steps: NDArray[np.int16]) -> FloatArray:
    """Return P(positive of the class | S_an) ``(B,)``: prior p+(s) / p(s), densities of positives and of the corpus.

    Source: Bayes' rule; the prior by ``prior_bound``.
    """
    values_B = step_values()
    cosines_M = positive_steps / STEPS_PER_UNIT
    used_B = distribution.counts_B > 0
    prior = prior_bound(values_B[used_B], distribution.counts_B[used_B].astype(np.float64), cosines_M)
    # A tenth of sigma wide: the histogram has far more steps than tweets.
    width = max(1.0, 0.1 * distribution.std * STEPS_PER_UNIT)
    corpus_B = gaussian_filter1d(distribution.counts_B / distribution.count, width, mode="constant")
    positives_B = norm.pdf(values_B, cosines_M.mean(), max(cosines_M.std(), 1 / STEPS_PER_UNIT)) / STEPS_PER_UNIT
    ratio_B = np.divide(positives_B, corpus_B, out=np.zeros_like(positives_B), where=corpus_B > 0)
    # A tweet is no less likely a positive for being nearer; tails of the two estimates may say otherwise.
    return np.minimum(1.0, prior * np.maximum.accumulate(ratio_B))


# Thresholds between these quantiles of the positives: above the last, too few of them are left to count.
PRIOR_QUANTILES = np.linspace(0.02, 0.9, 45)


def prior_bound(scores_N: FloatArray, weights_N: FloatArray, positive_scores_M: FloatArray) -> float:
    """Return an upper bound of the share of positives in a corpus, from a score that is high for positives.

    Above any threshold the corpus holds at least the share of positives times the part of them that lies there. Both
    are known from samples: so that few rows, or none, do not pass for few positives, one row of the corpus more is
    counted and two standard deviations are added, and of the positives two are taken off.

    Source: Scott (2015), "A rate of convergence for mixture proportion estimation": inf p(A) / p+(A), here over tails.
    """
    thresholds = np.quantile(positive_scores_M, PRIOR_QUANTILES)
    order = np.argsort(scores_N)
    sorted_N, weights_N = scores_N[order], weights_N[order]
    start = np.maximum(np.searchsorted(sorted_N, thresholds) - 1, 0)
    mass = np.cumsum(weights_N[::-1])[::-1][start]
    deviation = np.sqrt(np.cumsum(weights_N[::-1] ** 2)[::-1][start])
    part = np.array([(positive_scores_M >= threshold).mean() for threshold in thresholds])
    part -= 2 * np.sqrt(part * (1 - part) / len(positive_scores_M))
    known = part > 0
    return float(np.clip(((mass + 2 * deviation)[known] / weights_N.sum() / part[known]).min(), 1e-9, 1.0))


def hardness_log_weights(probability_B: FloatArray, normal: Normal, hardness: float) -> FloatArray:
    """Return log-weights ``(B,)``: of true negatives alone, tilted towards the class by e^(hardness z).

    Source: Robinson et al. (2021), "Contrastive learning with hard negative samples": q(s) ~ e^(beta s) p-(s), where
    Chuang et al. (2020), "Debiased contrastive learning": (1 - prior) p- = p - prior p+.
    """
    with np.errstate(divide="ignore"):
        return np.log(1 - probability_B) + hardness * normal.z(step_values())


def confusable(
    cosines_NK: FloatArray, slack: float, *, index: int, normals: Sequence[Normal], least_z: float, margin: float
) -> FloatArray:
    """Weigh alike what is near the class, and nearer to another one by a margin: likely the other's, not its own."""
    z_NK = np.stack([normal.z(cosines_NK[:, k]) for k, normal in enumerate(normals)], axis=1)
    own_N = z_NK[:, index]
    other_N = np.delete(z_NK, index, axis=1).max(axis=1)
    loose = slack / min(normal.std for normal in normals)
    inside = (own_N >= least_z - loose) & (other_N - own_N >= margin - 2 * loose)
    return np.where(inside, 0.0, NEVER)


def kinds(config: MiningConfig) -> dict[str, int | None]:
    """Return the kinds of negatives of a strategy and the band of each: 1s, 2s, 3s; 1q, 2q, 3q; or its own name."""
    if config.strategy in BANDED:
        letter = "q" if config.strategy == "quantile_bands" else "s"
        return {f"{band}{letter}": band for band in config.bands}
    return {config.strategy: None}


@dataclass(frozen=True)
class ClassScores:
    """What a strategy knows of the classes: fits, distributions over the corpus, and S_an of positives, held out."""

    class_names: Sequence[str]
    normals: Mapping[str, Normal]
    distributions: Sequence[SimilarityDistribution]
    positive_steps: Mapping[str, NDArray[np.int16]]


def make_rule(config: MiningConfig, scores: ClassScores, index: int, band: int | None) -> Rule:
    """Return the rule of a class; what is proposed otherwise than by the anchor's score may all be taken."""
    if config.query == "positive":
        return Rule(everything)
    name = scores.class_names[index]
    normal, distribution = scores.normals[name], scores.distributions[index]
    positives_M = scores.positive_steps[name] / STEPS_PER_UNIT
    reference = float(np.quantile(positives_M, config.positive_quantile))
    in_order = config.sampling == "top"
    match config.strategy:
        case "sigma_bands" | "clusters":
            assert band is not None
            return Rule(partial(sigma_band, index=index, normal=normal, band=band, tails=config.tails))
        case "quantile_bands":
            assert band is not None
            intervals = quantile_intervals(distribution, config.quantiles, band, config.tails)
            return Rule(partial(quantile_band, index=index, intervals=intervals))
        case "rank":
            window = (config.rank_min, config.rank_max)
            return Rule(partial(nearest, index=index), in_order=True, window=window, draw_window=not in_order)
        case "margin":
            limit = margin_limit(np.array([reference]), config.absolute_margin, config.relative_margin)[0]
            return Rule(partial(margin, index=index, limit=float(limit), alike=not in_order), in_order)
        case "simans":
            weigh = partial(
                simans, index=index, reference=reference, half_width=config.half_width, offset=config.offset
            )
            return Rule(weigh, in_order)
        case "hardness":
            probability_B = positive_probability(distribution, scores.positive_steps[name])
            table_B = hardness_log_weights(probability_B, normal, config.hardness)
            return Rule(partial(by_table, index=index, log_weights_B=table_B))
        case "confusable":
            every = [scores.normals[other] for other in scores.class_names]
            weigh = partial(
                confusable, index=index, normals=every, least_z=config.confusable_z, margin=config.confusable_margin
            )
            return Rule(weigh)
        case _:  # random; and what is proposed otherwise
            return Rule(everything)


def weigh_neighbours(config: MiningConfig, cosines_MR: FloatArray, reference_M: FloatArray) -> FloatArray:
    """Return log-weights ``(M, R)`` of the nearest tweets of each positive, in falling order of their cosines.

    Args:
        config: Strategy rank, margin or simans, and its numbers.
        cosines_MR: To the positive; nan where there are no more tweets.
        reference_M: What stands for the positive's own similarity: its cosine to the nearest other one of its class.
    """
    ranks_R = np.arange(cosines_MR.shape[1])
    eligible_MR = (ranks_R >= config.rank_min) & (ranks_R < config.rank_max) & ~np.isnan(cosines_MR)
    weights_MR = np.zeros(cosines_MR.shape)
    if config.strategy == "margin":
        limit_M = margin_limit(reference_M, config.absolute_margin, config.relative_margin)
        eligible_MR &= cosines_MR <= limit_M[:, None]
    if config.strategy == "simans":
        weights_MR = simans_log_weights(cosines_MR, reference_M[:, None], config.half_width, config.offset)
    return np.where(eligible_MR, weights_MR, NEVER)
