"""Asynchronous successive halving over folds: trials that are behind after as many folds are stopped.

Source: Li et al. (2020), "A system for massively parallel hyperparameter tuning", in the form that stops trials instead
of pausing them. A rung is a number of folds; trials are compared by their means over the same folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal


def decide(
    trial: str,
    scores: Mapping[str, Sequence[float]],
    *,
    reduction: int,
    min_folds: int,
    mode: Literal["max", "min"] = "max",
) -> Literal["go", "stop"]:
    """Say whether a trial is worth another fold.

    It is if it belongs to the best one in ``reduction`` (rounded up) of all trials that have come as far as its highest
    rung, by the means over that rung's folds. Equal trials go on together.

    Args:
        trial: The one to judge.
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
    if len(scores[trial]) < min_folds:
        return "go"
    rung = min_folds
    while rung * reduction <= len(scores[trial]):
        rung *= reduction
    means = {name: _mean(of_trial[:rung], mode) for name, of_trial in scores.items() if len(of_trial) >= rung}
    better = sum(mean > means[trial] for mean in means.values())
    return "go" if better < math.ceil(len(means) / reduction) else "stop"


def survivors(
    scores: Mapping[str, Sequence[float]], *, reduction: int, min_folds: int, mode: Literal["max", "min"] = "max"
) -> set[str]:
    """Return the trials that are worth another fold; see ``decide``."""
    return {
        name for name in scores if decide(name, scores, reduction=reduction, min_folds=min_folds, mode=mode) == "go"
    }


def _mean(scores: Sequence[float], mode: Literal["max", "min"]) -> float:
    """Return the mean, as what is better the larger it is."""
    mean = math.fsum(scores) / len(scores)
    if math.isnan(mean):
        return -math.inf
    return mean if mode == "max" else -mean
