"""Which settings of a classical model are best: every point of a grid, in folds of the training tweets alone.

A point's score is its macro F1 over the labels, by what the model decides itself (a probability of a half, a margin of
0), as scikit-learn's GridSearchCV does it; the mean over folds decides. One point serves all labels.

Shapes: N rows, C labels, M rows of one fold.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalemine.config import BaselineConfig
from scalemine.executor import RayJobs
from scalemine.training.multilabel.baselines import Matrix, fit_label, quiet_threads

NUM_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Part:
    """One fold's rows to learn from, and those to judge on.

    Args:
        learnt: Features, targets ``(N, C)`` and weights ``(N,)``.
        judged: Features and targets ``(M, C)``.
    """

    learnt: tuple[Matrix, NDArray[np.int8], NDArray[Any]]
    judged: tuple[Matrix, NDArray[np.int8]]


@dataclass(frozen=True)
class Tried:
    """A point of the grid.

    Args:
        values: By key of the section ``baseline``.
        f1: Macro F1, mean over folds; 0 where no fold has a positive to find.
        std: Its standard deviation over folds.
    """

    values: Mapping[str, Any]
    f1: float
    std: float


def points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every point of a grid, the last key varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def deal(targets_NC: NDArray[np.int8], seed: int, num_folds: int = NUM_FOLDS) -> NDArray[np.int64]:
    """Return the fold of each row ``(N,)``; folds are alike in how often each combination of labels is in them."""
    order_N = np.lexsort([np.random.default_rng(seed).random(len(targets_NC)), *targets_NC.T])
    fold_N = np.empty(len(targets_NC), np.int64)
    fold_N[order_N] = np.arange(len(targets_NC)) % num_folds
    return fold_N


def search(
    name: str,
    options: BaselineConfig,
    parts: Iterable[Part],
    *,
    seed: int,
    jobs: int,
    on_fit: Callable[[int], None] = lambda done: None,
    check: Callable[[], None] = lambda: None,
    cluster: RayJobs | None = None,
) -> list[Tried]:
    """Return how good each point of ``options.grid`` is, in the order of the grid; the same wherever it is tried.

    Args:
        name: The model.
        options: Its settings and the grid.
        parts: Fold by fold; one is held at a time.
        seed: Of the models.
        jobs: Threads.
        on_fit: Told 1 for each point that was tried in a fold.
        check: Called in between; what it raises ends the work.
        cluster: Where points of all folds are tried at a time; None: here, fold by fold.
    """
    tries = points(options.grid)
    f1s: list[list[float]] = [[] for _ in tries]
    if cluster is not None:
        ready = list(parts)
        calls = [(place, values) for place in range(len(ready)) for values in range(len(tries))]
        given = [(place, (name, options.model_copy(update=tries[values]), seed, 1)) for place, values in calls]
        found_of_calls = (found for some in cluster.map(_macro_f1_of, ready, given) for found in some)
        for (_, values), found in zip(calls, found_of_calls, strict=True):
            if found is not None:
                f1s[values].append(found)
            on_fit(1)
            check()
        return _tried(tries, f1s)
    # The forest shares its trees among threads, the others the points.
    threads = 1 if name == "random_forest" else jobs
    for part in parts:
        check()
        with quiet_threads(threads) as pool:
            fits = {
                pool.submit(_macro_f1, name, options.model_copy(update=values), part, seed, jobs): place
                for place, values in enumerate(tries)
            }
            try:
                for fit in as_completed(fits):
                    if (f1 := fit.result()) is not None:
                        f1s[fits[fit]].append(f1)
                    on_fit(1)
                    check()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return _tried(tries, f1s)


def _macro_f1_of(part: Part, name: str, options: BaselineConfig, seed: int, jobs: int) -> float | None:
    with quiet_threads(1):
        return _macro_f1(name, options, part, seed, jobs)


def _tried(tries: Sequence[Mapping[str, Any]], f1s: Sequence[Sequence[float]]) -> list[Tried]:
    return [
        Tried(values, statistics.fmean(of_point) if of_point else 0.0, statistics.pstdev(of_point) if of_point else 0.0)
        for values, of_point in zip(tries, f1s, strict=True)
    ]


def best(tried: Sequence[Tried]) -> Tried:
    """Return the point of the highest F1, of equals the first."""
    return max(tried, key=lambda one: one.f1)


def _macro_f1(name: str, options: BaselineConfig, part: Part, seed: int, jobs: int) -> float | None:
    """Return the mean F1 of the labels that the fold has a positive of; None where it has none."""
    (vectors_ND, learnt_NC, weight_N), (vectors_MD, judged_MC) = part.learnt, part.judged
    f1s = []
    for label in range(learnt_NC.shape[1]):
        known_M = judged_MC[:, label] >= 0
        gold_M = judged_MC[known_M, label] == 1
        if gold_M.any():
            model = fit_label(
                name, options, vectors_ND, learnt_NC[:, label], weight_N, seed=seed, jobs=jobs, only_decides=True
            )
            chosen_M = (
                np.full(len(gold_M), model > 0.5) if isinstance(model, float) else model.predict(vectors_MD[known_M])
            )  # noqa: PLR2004
            f1s.append(2 * int((gold_M & (chosen_M == 1)).sum()) / int(gold_M.sum() + (chosen_M == 1).sum()))
    return statistics.fmean(f1s) if f1s else None
