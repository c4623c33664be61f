"""Whether one arm does better than another: how large the difference is, and how sure of it one can be.

An arm is one configuration, with a run for each fold and seed. Arms are compared run by run: same fold, same seed,
same tweets.

- ``paired_bootstrap`` and ``false_alarm_difference`` ask what would happen on other tweets of the same kind. They hold
  the trained models as they are: that another seed or training set gives another model is not in their intervals.
- ``fold_test`` asks what would happen with other training sets, by how much the folds differ. Few folds show only
  large differences.
- ``holm`` adjusts the p-values of several questions that are asked together; ``verdict`` says in words what came out.

Shapes: N tweets of a run, R rounds of the bootstrap, C rounds of a chunk, S runs that share their tweets, J matched
pairs; an axis of A = 2 holds the base and the other arm, one of K holds what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rate = Callable[[Floats], Floats]
Measure = Literal["f1", "precision", "recall"]
Name = TypeVar("Name", Measure, Literal["false_alarms"])

LEVEL: Final = 0.05  # an adjusted p below it is evidence
# A measure: per 1,000 negatives; of one kind of them alone, with a dot and the kind.
FALSE_ALARMS: Final[Literal["false_alarms"]] = "false_alarms"

_TAIL: Final = 0.025  # on either side of a 95 % interval
_EQUAL: Final = 1e-12  # differences that are smaller come of rounding
_DRAWS_PER_CHUNK: Final = 1 << 20
_MOST_KEPT: Final = 1 << 28  # draws: 256 MB


@dataclass(frozen=True, eq=False)
class Counts:
    """What a run finds in each tweet of a test set.

    Args:
        ids: Identifier of each tweet.
        counts_N3: Whole numbers of correct, predicted and gold spans (or labels) of each tweet; measures are of their
            sums, so micro averages.

    Raises:
        ValueError: There is no tweet, the shape is another, a number is not whole or negative, or a tweet has more
            correct than predicted or gold.
    """

    ids: Sequence[str]
    counts_N3: NDArray[Any]

    def __post_init__(self) -> None:
        _check_counts(self.ids, self.counts_N3, 3)
        if (self.counts_N3[:, :1] > self.counts_N3[:, 1:]).any():
            raise ValueError("a tweet has more correct than predicted or gold")


@dataclass(frozen=True, eq=False)
class Alarms:
    """Whether a run gives an alarm in each tweet of a test set.

    Args:
        ids: Identifier of each tweet.
        alarms_N2: 1 where something is predicted, and 1 where the tweet is a negative; else 0. What is predicted in
            other tweets does not count.

    Raises:
        ValueError: There is no negative, the shape is another, or a number is neither 0 nor 1.
    """

    ids: Sequence[str]
    alarms_N2: NDArray[Any]

    def __post_init__(self) -> None:
        _check_counts(self.ids, self.alarms_N2, 2)
        if (self.alarms_N2 > 1).any():
            raise ValueError("alarms and negatives are 0 or 1")
        if not self.alarms_N2[:, 1].any():
            raise ValueError("there is no negative")


@dataclass(frozen=True)
class Difference:
    """A difference on the tweets of test sets, other arm minus base; means over runs.

    Attributes:
        measure: What differs. F1, precision and recall are in 0..1, false alarms are per 1,000 negatives.
        base: Value of the base.
        other: Value of the other arm.
        effect: The difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided.
        num_tweets: Tweets of all test sets; those that runs share count once.
        num_runs: Pairs of runs.
    """

    measure: Measure | Literal["false_alarms"]
    base: float
    other: float
    effect: float
    low: float
    high: float
    p: float
    num_tweets: int
    num_runs: int


@dataclass(frozen=True)
class FoldTest:
    """A paired test over folds, other arm minus base; what cannot be told is None.

    Attributes:
        effect: Mean difference, in the unit of the values.
        sd: Standard deviation of the differences, with J - 1.
        t: Statistic of the corrected resampled t-test.
        p: Its p, two-sided, with J - 1 degrees of freedom.
        low: Lower end of its 95 % interval.
        high: Upper end.
        num_pairs: J.
        test_share: Tweets tested on per tweet trained on, which corrects the t-test.
    """

    effect: float
    sd: float | None
    t: float | None
    p: float | None
    low: float | None
    high: float | None
    num_pairs: int
    test_share: float | None


@dataclass(frozen=True)
class Summary:
    """Values of the runs of an arm.

    Attributes:
        mean: Mean over folds of the mean over seeds.
        sd: Standard deviation, with n - 1, of what ``over`` names; None of a single run.
        over: "folds": of their means over seeds, so what seeds add is averaged first; "seeds": where there is one fold.
        num_folds: How many folds.
        num_runs: How many values.
    """

    mean: float
    sd: float | None
    over: Literal["folds", "seeds"]
    num_folds: int
    num_runs: int


def paired_bootstrap(
    base: Sequence[Counts],
    other: Sequence[Counts],
    *,
    rounds: int = 10_000,
    seed: int = 0,
) -> dict[Measure, Difference]:
    """Return the difference of each measure, the mean over runs, by one paired bootstrap over tweets.

    A round draws tweets of each test set with replacement, the same for both arms and for all runs with these tweets;
    runs whose ids differ (held-out folds) are drawn independently of one another. The interval is the percentile
    interval; p is twice the smaller share of rounds with a difference of at most or at least 0, where one more round
    is counted in, so that it is never 0. Where there is nothing to divide by, a measure is 0. Any order of the runs
    gives the same result.

    Args:
        base: The runs of the base.
        other: Those of the other arm, of the same folds and seeds in the same order.
        rounds: Of the bootstrap.
        seed: Of the bootstrap; with the same one, arms are compared with a base on the same draws.

    Raises:
        ValueError: There is no run, the runs do not match (number, tweets, their order, what is gold), the tweets of
            two runs are the same in another order, or there is no round.

    Source: Efron and Tibshirani 1993, chapters 13 and 15; Koehn 2004. One more round: Davison and
    Hinkley 1997, chapter 4.
    """
    runs = _match([(one.ids, one.counts_N3) for one in base], [(one.ids, one.counts_N3) for one in other], fixed=2)
    return _compare(_MEASURES, runs, rounds, seed)


def false_alarm_difference(
    base: Sequence[Alarms], other: Sequence[Alarms], *, rounds: int = 10_000, seed: int = 0
) -> Difference:
    """Return the difference of false alarms per 1,000 negatives, by the bootstrap of ``paired_bootstrap``.

    Args:
        base: The runs of the base.
        other: Those of the other arm, of the same folds and seeds in the same order.
        rounds: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: As ``paired_bootstrap``; what is a negative has to match.
    """
    runs = _match([(one.ids, one.alarms_N2) for one in base], [(one.ids, one.alarms_N2) for one in other], fixed=1)
    # An alarm counts only in a negative.
    runs = [(ids, np.stack([arms[..., 0] * arms[..., 1], arms[..., 1]], axis=-1)) for ids, arms in runs]
    return _compare(_FALSE_ALARMS, runs, rounds, seed)[FALSE_ALARMS]


def fold_test(base: Sequence[float], other: Sequence[float], *, test_share: float | None = None) -> FoldTest:
    """Return a corrected resampled t-test over folds.

    It is t = mean / sqrt((1 / J + test_share) sd^2): folds share training tweets, so that their mean is less
    sure than their spread suggests, and the plain t-test (``test_share=0``) finds too much. Without two pairs, or where
    all differences are equal, there is no t and no p.

    Args:
        base: A value per fold, best the mean over seeds: ``fold_means``.
        other: Those of the other arm, in the same order.
        test_share: Number of tweets tested on, by that of tweets trained on; if None, 1 / (J - 1), as in one
            cross-validation with J folds. To be given where there are more values than folds.

    Raises:
        ValueError: There is no value, the numbers of values differ, a value is not finite, or the share is below 0.

    Source: Nadeau and Bengio 2003; Bouckaert and Frank 2004.
    """
    from scipy import stats  # slow to load, and of use here alone

    base_J, other_J = np.asarray(base, np.float64), np.asarray(other, np.float64)
    if base_J.ndim != 1 or base_J.shape != other_J.shape or not len(base_J):
        raise ValueError(f"{len(base)} values of the base, {len(other)} of the other arm: expected pairs, at least one")
    if not (np.isfinite(base_J).all() and np.isfinite(other_J).all()):
        raise ValueError("a value is not finite")
    if test_share is not None and not (np.isfinite(test_share) and test_share >= 0):
        raise ValueError(f"test_share is {test_share}")
    differences_J = other_J - base_J
    num_pairs = len(differences_J)
    effect = float(differences_J.mean())
    if num_pairs < 2:
        return FoldTest(effect, None, None, None, None, None, num_pairs, test_share)
    if test_share is None:
        test_share = 1 / (num_pairs - 1)
    sd = float(differences_J.std(ddof=1))
    if sd <= _EQUAL * max(1.0, float(np.abs(base_J).max()), float(np.abs(other_J).max())):
        return FoldTest(effect, 0.0, None, None, None, None, num_pairs, test_share)
    error = sd * (1 / num_pairs + test_share) ** 0.5
    t = effect / error
    half = error * float(stats.t.ppf(1 - _TAIL, num_pairs - 1))
    p = float(2 * stats.t.sf(abs(t), num_pairs - 1))
    return FoldTest(effect, sd, t, p, effect - half, effect + half, num_pairs, test_share)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several, in their order: the chance of any false finding is bounded by them.

    Raises:
        ValueError: A p-value is not in 0..1.

    Source: Holm 1979.
    """
    p_J = np.asarray(p_values, np.float64)
    if not ((p_J >= 0) & (p_J <= 1)).all():
        raise ValueError(f"p-values {list(p_values)}: expected numbers from 0 to 1")
    order_J = np.argsort(p_J, kind="stable")
    adjusted_J = np.empty(len(p_J))
    adjusted_J[order_J] = np.maximum.accumulate(p_J[order_J] * np.arange(len(p_J), 0, -1))
    return [min(1.0, float(one)) for one in adjusted_J]


def verdict(difference: Difference, adjusted_p: float, folds_p: float | None = None) -> str:
    """Return in words whether the other arm is better, with the 95 % interval, which is not adjusted.

    Where the tweets are evidence, and the folds are not or were not tested, the difference is one of these models
    alone, and the words say so.

    Percent points for F1, precision and recall; per 1,000 negatives for false alarms, of which fewer are better. After
    "better" and "worse" the numbers are sizes; without evidence they are other minus base.

    Args:
        difference: By tweets.
        adjusted_p: Its p-value, adjusted.
        folds_p: The fold test's p-value, adjusted; None: there is no such test.

    Raises:
        ValueError: A p-value is not in 0..1.
    """
    for p in (adjusted_p, 0.0 if folds_p is None else folds_p):
        if not 0 <= p <= 1:
            raise ValueError(f"adjusted p is {p}: expected a number from 0 to 1")
    are_alarms = difference.measure == "false_alarms"
    effect, low, high = (
        (1 if are_alarms else 100) * one for one in (difference.effect, difference.low, difference.high)
    )
    if adjusted_p >= LEVEL:
        return f"no evidence of a difference ({low:z.1f} to {high:z.1f})"
    if effect < 0:
        effect, low, high = -effect, -high, -low
    is_better = (difference.effect < 0) == are_alarms
    if folds_p is None:
        alone = " with these models; not tested over folds"
    else:
        alone = " with these models; no evidence over folds" if folds_p >= LEVEL else ""
    return f"{'better' if is_better else 'worse'} by {effect:z.1f} ({low:z.1f} to {high:z.1f}){alone}"


def fold_means(values: Mapping[tuple[Hashable, Hashable], float]) -> dict[Hashable, float]:
    """Return per fold the mean over seeds, in the order in which folds are first named.

    Args:
        values: Of the runs of an arm, by (fold, seed); without folds, the fold is any one name.
    """
    folds = dict.fromkeys(fold for fold, _ in values)
    return {name: float(np.mean([value for (fold, _), value in values.items() if fold == name])) for name in folds}


def summarise(values: Mapping[tuple[Hashable, Hashable], float]) -> Summary:
    """Return mean and standard deviation: over folds of the mean over seeds, or over seeds where there is one fold.

    Args:
        values: Of the runs of an arm, by (fold, seed); without folds, the fold is any one name.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    means = list(fold_means(values).values())
    if not means or not np.isfinite(means).all():
        raise ValueError(f"values {dict(values)}: expected finite numbers, at least one")
    of_folds = len(means) > 1
    spread = means if of_folds else list(values.values())
    return Summary(
        mean=float(np.mean(means)),
        sd=float(np.std(spread, ddof=1)) if len(spread) > 1 else None,
        over="folds" if of_folds else "seeds",
        num_folds=len(means),
        num_runs=len(values),
    )


# --- Bootstrap

Tally = tuple[Sequence[str], NDArray[Any]]  # ids of the tweets, and counts (N, K)
Run = tuple[tuple[str, ...], Floats]  # ids of the tweets, and counts (N, A, K)


def _ratio(part: Floats, whole: Floats) -> Floats:
    # Where there is nothing to divide by, the part is 0 as well: 0 / 1.
    return part / np.maximum(whole, 1)


# Rates of sums of correct, predicted and gold, and of alarms and negatives: (..., K) to (...).
# Source: van Rijsbergen 1979; F1 = 2 correct / (predicted + gold).
_MEASURES: Final[Mapping[Measure, Rate]] = {
    "f1": lambda counts: _ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2]),
    "precision": lambda counts: _ratio(counts[..., 0], counts[..., 1]),
    "recall": lambda counts: _ratio(counts[..., 0], counts[..., 2]),
}
_FALSE_ALARMS: Final[Mapping[Literal["false_alarms"], Rate]] = {
    FALSE_ALARMS: lambda counts: 1_000 * _ratio(counts[..., 0], counts[..., 1])
}


def _check_counts(ids: Sequence[str], counts_NK: NDArray[Any], num_counted: int) -> None:
    if counts_NK.shape != (len(ids), num_counted) or not len(ids):
        raise ValueError(f"counts of shape {counts_NK.shape} for {len(ids)} tweets: expected {num_counted} per tweet")
    if counts_NK.dtype.kind not in "iub" or (counts_NK < 0).any():
        raise ValueError("counts are whole numbers from 0")


def _match(base: Sequence[Tally], other: Sequence[Tally], *, fixed: int) -> list[Run]:
    """Return the pairs of runs, in an order that does not depend on theirs.

    Args:
        base: Runs of the base.
        other: Runs of the other arm.
        fixed: Which count belongs to the tweets, and not to what an arm finds in them.
    """
    if len(base) != len(other) or not base:
        raise ValueError(f"{len(base)} runs of the base, {len(other)} of the other arm: expected pairs, at least one")
    runs = []
    for position, ((ids, counts_NK), (other_ids, other_NK)) in enumerate(zip(base, other, strict=True)):
        if tuple(ids) != tuple(other_ids):
            raise ValueError(f"pair {position}: the runs do not have the same tweets in the same order")
        if (counts_NK[:, fixed] != other_NK[:, fixed]).any():
            raise ValueError(f"pair {position}: the runs do not have the same targets")
        runs.append((tuple(ids), np.stack([counts_NK, other_NK], axis=1).astype(np.float64)))
    sets = {ids for ids, _ in runs}
    if len({tuple(sorted(ids)) for ids in sets}) < len(sets):
        raise ValueError("two runs have the same tweets in another order")
    return sorted(runs, key=lambda run: (run[0], run[1].tobytes()))


def _compare(rates: Mapping[Name, Rate], runs: Sequence[Run], rounds: int, seed: int) -> dict[Name, Difference]:
    """Return by one bootstrap the difference of each rate, which maps sums of counts ``(..., K)`` to ``(...)``."""
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}")
    totals = {name: np.zeros(rounds) for name in rates}  # (R,) each, over all runs
    generator = np.random.default_rng(seed)
    num_tweets = 0
    sets = [(ids, list(sharing)) for ids, sharing in groupby(runs, key=lambda run: run[0])]
    for ids, sharing in sets:
        counts_NSAK = np.stack([counts_NAK for _, counts_NAK in sharing], axis=1)
        num_tweets += len(ids)
        is_kept = len(sets) == 1 and len(ids) * rounds <= _MOST_KEPT
        draws = _kept_draws(len(ids), rounds, seed) if is_kept else _draws(len(ids), rounds, generator)
        for part, drawn_CN in draws:
            # Whole numbers: their sums are exact.
            sums_CSAK = (drawn_CN.astype(np.float64) @ counts_NSAK.reshape(len(ids), -1)).reshape(
                -1, *counts_NSAK.shape[1:]
            )
            for name, rate in rates.items():
                values_CSA = rate(sums_CSAK)
                totals[name][part] += (values_CSA[..., 1] - values_CSA[..., 0]).sum(axis=1)
    found = {}
    for name, rate in rates.items():
        base, other = np.mean([rate(counts_NAK.sum(axis=0)) for _, counts_NAK in runs], axis=0).tolist()
        low, high, p = _interval(totals[name] / len(runs))
        found[name] = Difference(name, base, other, other - base, low, high, p, num_tweets, len(runs))
    return found


def _interval(differences_R: Floats) -> tuple[float, float, float]:
    """Return the percentile interval of 95 %, and p."""
    # What rounding leaves of a difference of 0 would count on one side alone.
    differences_R[np.abs(differences_R) < _EQUAL] = 0.0
    low, high = np.quantile(differences_R, [_TAIL, 1 - _TAIL]).tolist()
    beyond = int(min(np.count_nonzero(differences_R <= 0), np.count_nonzero(differences_R >= 0)))
    return low, high, min(1.0, 2 * (beyond + 1) / (len(differences_R) + 1))


@lru_cache(maxsize=1)
def _kept_draws(num_tweets: int, rounds: int, seed: int) -> list[tuple[slice, NDArray[np.uint8]]]:
    """Return what ``_draws`` yields first: many arms and measures are compared on one test set after another."""
    return list(_draws(num_tweets, rounds, np.random.default_rng(seed)))


def _draws(num_tweets: int, rounds: int, generator: np.random.Generator) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Yield some rounds, and how often they draw each tweet, ``(C, N)``; the chunks bound the memory alone."""
    per_chunk = max(1, _DRAWS_PER_CHUNK // num_tweets)
    for first in range(0, rounds, per_chunk):
        num = min(per_chunk, rounds - first)
        cells_CN = generator.integers(num_tweets, size=(num, num_tweets)) + num_tweets * np.arange(num)[:, None]
        drawn_CN = np.bincount(cells_CN.ravel(), minlength=cells_CN.size).reshape(num, num_tweets)
        assert drawn_CN.max() <= 255  # of more tweets than that, none is drawn so often: 1 / 256! bounds the chance
        yield slice(first, first + num), drawn_CN.astype(np.uint8)
