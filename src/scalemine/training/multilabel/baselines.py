"""Classical models on frozen embeddings: one model per label, fitted on the rows where that label is known.

Nothing is kept of a model but its scores, so no model is ever written or read. A seed gives the same scores whatever
the number of threads.

Shapes: N rows to learn from, M rows to score, C labels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from scalemine.config import BASELINES, BaselineConfig

FloatArray = NDArray[np.float32]

# These are moved by the scale of a dimension; trees are not.
_STANDARDISED = ("svm", "logistic_regression")
_CALIBRATION_FOLDS = 3
_DEFAULT_C = {"linear": 0.0002, "rbf": 1.0, "logistic_regression": 0.003}
# With all dimensions ten trees would take minutes on some thousand tweets.
_BAG_SHARE = 0.2
# Levels of a dimension that boosting tells apart.
_LEVELS = 64


def fit_predict(
    name: str,
    options: BaselineConfig,
    vectors_ND: NDArray[Any],
    targets_NC: NDArray[np.int8],
    weight_N: NDArray[Any],
    others: Mapping[str, NDArray[Any]],
    *,
    seed: int,
    jobs: int,
    on_label: Callable[[int], None] = lambda done: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, FloatArray]:
    """Fit one model per label and score every other set with it.

    A label that no known row has, or that all have, gets its prior for every row: (positives + 1) / (rows + 2), by
    weight.

    Args:
        name: One of ``BASELINES``.
        options: What the models are like.
        vectors_ND: Embeddings to learn from, float32 or float16.
        targets_NC: 1, 0, or -1 where it is not known whether the row has the label; such rows are left out.
        weight_N: Weight of each row, at least 0; a row of weight 0 is left out.
        others: The sets to score: embeddings ``(M, D)`` by name.
        seed: Decides everything that is drawn.
        jobs: Threads.
        on_label: Called with the number of labels that are done.
        check: Called between labels; what it raises ends the work.

    Returns:
        Probabilities ``(M, C)``, float32, by set.

    Raises:
        ValueError: There is no such baseline, an option is out of its range, lengths differ, a weight is negative or
            not finite, or so is an embedding.
    """
    _check_input(name, vectors_ND, targets_NC, weight_N)
    num_labels = targets_NC.shape[1]
    vectors_ND, others = _prepared(name, vectors_ND, others)
    scores = {key: np.empty((len(vectors_MD), num_labels), np.float32) for key, vectors_MD in others.items()}

    def fit_label(label: int) -> int:
        known_N = (targets_NC[:, label] >= 0) & (weight_N > 0)
        targets_N, known_weight_N = targets_NC[known_N, label], weight_N[known_N].astype(np.float64)
        fewest = min(int(targets_N.sum()), int((1 - targets_N).sum()))
        # Of a single row nothing can be held out to turn the margin into a probability.
        if fewest < (2 if name == "svm" else 1):
            prior = (known_weight_N[targets_N == 1].sum() + 1) / (known_weight_N.sum() + 2)
            for scores_MC in scores.values():
                scores_MC[:, label] = prior
            return label
        # Labels draw apart, so that the score of one does not depend on which others there are.
        model = _model(name, options, seed=seed, jobs=jobs, fewest=fewest)
        model.fit(vectors_ND[known_N], targets_N, sample_weight=known_weight_N)
        if name == "random_forest":
            model.n_jobs = 1  # threads would add up the votes in any order, and round as it comes
        for key, vectors_MD in others.items():
            if len(vectors_MD):
                scores[key][:, label] = model.predict_proba(vectors_MD)[:, 1]
        return label

    check()
    # The forest shares its trees among threads, the others their labels.
    threads = 1 if name == "random_forest" else jobs
    with threadpool_limits(1, user_api="blas"), _pool(threads) as pool:
        fits = [pool.submit(fit_label, label) for label in range(num_labels)]
        try:
            for done, fit in enumerate(as_completed(fits), start=1):
                fit.result()
                on_label(done)
                check()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scores


def _check_input(name: str, vectors_ND: NDArray[Any], targets_NC: NDArray[np.int8], weight_N: NDArray[Any]) -> None:
    if name not in BASELINES:
        raise ValueError(f"baseline: expected one of {', '.join(BASELINES)}, got {name!r}")
    if not len(vectors_ND) == len(targets_NC) == len(weight_N):
        raise ValueError(f"{len(vectors_ND)} embeddings, {len(targets_NC)} rows of targets and {len(weight_N)} weights")
    if not np.all(np.isfinite(weight_N) & (weight_N >= 0)):
        raise ValueError("weights must be finite and at least 0")


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads start no others: sums over a varying number of threads round differently."""

    def alone() -> None:
        threadpool_limits(1, user_api="openmp")

    return ThreadPoolExecutor(threads, initializer=alone)


def _prepared(
    name: str, vectors_ND: NDArray[Any], others: Mapping[str, NDArray[Any]]
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return embeddings as float32; standardised or in levels, by the rows to learn from, where a model asks for it."""
    vectors_ND = vectors_ND.astype(np.float32, copy=False)
    prepared = {key: vectors_MD.astype(np.float32, copy=False) for key, vectors_MD in others.items()}
    if name == "boosting":
        return _levels(vectors_ND, vectors_ND), {key: _levels(other, vectors_ND) for key, other in prepared.items()}
    if name not in _STANDARDISED:
        return vectors_ND, prepared
    scaler = StandardScaler().fit(vectors_ND)
    return scaler.transform(vectors_ND), {
        key: scaler.transform(vectors_MD) if len(vectors_MD) else vectors_MD for key, vectors_MD in prepared.items()
    }


def _levels(vectors_MD: FloatArray, vectors_ND: FloatArray) -> FloatArray:
    """Return of each value the quantile of the rows to learn from that it lies in, from 0 to 63.

    Boosting does so itself, but for weighted rows it takes minutes, and again for each label.
    """
    if not np.isfinite(vectors_ND).all():
        raise ValueError("an embedding is not finite")
    shares = np.linspace(0, 1, _LEVELS + 1)[1:-1]
    levels_MD = np.empty_like(vectors_MD)
    for dim in range(vectors_ND.shape[1]):
        levels_MD[:, dim] = np.searchsorted(np.quantile(vectors_ND[:, dim], shares), vectors_MD[:, dim])
    return levels_MD


def _model(name: str, options: BaselineConfig, *, seed: int, jobs: int, fewest: int) -> Any:  # noqa: ANN401
    """Return an unfitted model; ``fewest``: rows of the rarer of both classes."""
    tree = {
        "max_depth": options.max_depth,
        "min_samples_leaf": options.min_leaf,
        "min_samples_split": options.min_split,
    }
    if name == "random_forest":
        return RandomForestClassifier(options.trees, **tree, random_state=seed, n_jobs=jobs)
    if name == "decision_tree":
        return DecisionTreeClassifier(**tree, random_state=seed)
    if name == "bagging":
        return BaggingClassifier(
            DecisionTreeClassifier(**tree), options.bags, max_features=_BAG_SHARE, random_state=seed
        )
    if name == "boosting":
        # Without a part held out, which would take rows from rare labels.
        return HistGradientBoostingClassifier(
            max_iter=options.iterations, max_bins=_LEVELS, early_stopping=False, random_state=seed
        )
    if name == "logistic_regression":
        return LogisticRegression(C=_strength(options, name), max_iter=1_000)
    if options.kernel == "linear":
        margin = LinearSVC(C=_strength(options, "linear"), random_state=seed)
    else:
        margin = SVC(C=_strength(options, "rbf"), kernel="rbf", cache_size=500)
    folds = StratifiedKFold(min(_CALIBRATION_FOLDS, fewest), shuffle=True, random_state=seed)
    return CalibratedClassifierCV(margin, method="sigmoid", cv=folds, ensemble=False)


def _strength(options: BaselineConfig, model: str) -> float:
    return _DEFAULT_C[model] if options.C is None else options.C
