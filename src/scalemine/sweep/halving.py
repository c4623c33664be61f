"""Successive halving over folds: trials that are behind after as many folds are stopped.

Source: the rule of Li et al. (2020), "A system for massively parallel hyperparameter tuning", in the form that stops
trials instead of pausing them. A rung is a number of folds; trials are compared by their means over the same folds.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Literal


def survivors(
    scores: Mapping[str, Sequence[float]], *, reduction: int, min_folds: int, mode: Literal["max", "min"] = "max"
) -> set[str]:
    """Return the trials that are worth another fold.

    One is if it belongs to the best one in ``reduction`` (rounded up) of all trials that have come as far as its
    highest rung, by the means over that rung's folds. Equal trials go on together.

    Args:
        scores: Per trial, stopped and finished ones too, its score in fold 0, 1, and so on without a gap: the mean over
            its seeds. A score that is no number is worse than any other.
        reduction: One in so many goes on.
        min_folds: The first rung; each further one is ``reduction`` times as high.
        mode: Whether more is better, or less.

    Raises:
        ValueError: The reduction is below 2, or there are no folds in the first rung.
    """
    if reduction < 2 or min_folds < 1:
        raise ValueError(f"expected a reduction from 2 and min_folds from 1; got {reduction} and {min_folds}")
    going = {name for name, of_trial in scores.items() if len(of_trial) < min_folds}
    rung, most = min_folds, max(map(len, scores.values()), default=0)
    while rung <= most:
        means = {name: _mean(of_trial[:rung], mode) for name, of_trial in scores.items() if len(of_trial) >= rung}
        ranked = sorted(means.values())
        num_going = math.ceil(len(means) / reduction)
        for name, mean in means.items():
            is_highest = len(scores[name]) < rung * reduction
            if is_highest and len(ranked) - bisect.bisect_right(ranked, mean) < num_going:
                going.add(name)
        rung *= reduction
    return going


def _mean(scores: Sequence[float], mode: Literal["max", "min"]) -> float:
    """Return the mean, as what is better the larger it is."""
    mean = math.fsum(scores) / len(scores)
    if math.isnan(mean):
        return -math.inf
    return mean if mode == "max" else -mean
