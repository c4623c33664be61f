"""Classical models on frozen embeddings or on words: one model per label, fitted on the rows where that label is known.

A seed gives the same scores whatever the number of threads.

Shapes: N rows to learn from, M rows to score, C labels, D dimensions.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from scalemine.config import BASELINE_KEYS, BASELINES, BaselineConfig, InputError
from scalemine.executor import RayJobs
from scalemine.training.multilabel.embedding_features import LEVELS, FloatArray

# Embeddings are dense, TF-IDF is sparse.
Matrix: TypeAlias = FloatArray | csr_matrix

_CALIBRATION_FOLDS = 3
# What is taken where nothing is set. On words: Wang et al. 2022, tables A1 to A4, first line.
_ON_EMBEDDINGS = {"max_features": "sqrt", "min_split": 10, "min_leaf": 5, "kernel": "linear", "gamma": "scale"}
_ON_WORDS = {
    "max_features": "log2", "min_split": 20, "min_leaf": 1, "max_depth": 300, "kernel": "rbf", "gamma": 1.0
}  # fmt: skip
_C_ON_EMBEDDINGS = {"linear": 0.0002, "rbf": 1.0, "logistic_regression": 0.003}
_C_ON_WORDS = {"linear": 1.0, "rbf": 1.0, "logistic_regression": 10.0}
# With all dimensions ten trees would take minutes on some thousand tweets.
_BAG_SHARE = 0.2
# Of mlp: some hundred tweets take more than a few steps by it.
_BATCH_SIZE = 64
# Rows whose kernel with all support vectors is held at a time.
_RBF_ROWS = 512
# Rows that are scored at a time: a kernel's or a neighbour's matrix is this by the rows that were learnt from.
_SCORED_ROWS = 4_096
# Rows of a product of dense matrices, which rounds a row by how many there are; and what its columns are a multiple of.
_DENSE_ROWS, _WIDTH_STEP = 512, 16


def settled(name: str, options: BaselineConfig) -> dict[str, Any]:
    """Return what a model is made with, by key: what is set, and else what the features decide."""
    found = {key: getattr(options, key) for key in sorted(BASELINE_KEYS[name])}
    defaults, strengths = (_ON_WORDS, _C_ON_WORDS) if options.is_of_words else (_ON_EMBEDDINGS, _C_ON_EMBEDDINGS)
    found = {key: defaults.get(key) if value is None else value for key, value in found.items()}
    if "C" in found and found["C"] is None:
        found["C"] = strengths[found.get("kernel", name)]
    if found.get("kernel") == "linear":
        del found["gamma"]
    return found


def fit_predict(
    name: str,
    options: BaselineConfig,
    vectors_ND: Any,  # noqa: ANN401  a matrix, dense or sparse
    targets_NC: NDArray[np.int8],
    weight_N: NDArray[Any],
    others: Mapping[str, Any],
    *,
    seed: int,
    jobs: int,
    on_label: Callable[[int], None] = lambda done: None,
    check: Callable[[], None] = lambda: None,
    keep: Callable[[int, Any], None] = lambda label, model: None,
    cluster: RayJobs | None = None,
) -> dict[str, FloatArray]:
    """Fit one model per label and score every other set with it.

    A label that no known row has, or that all have, gets its prior for every row: (positives + 1) / (rows + 2), by
    weight.

    Args:
        name: One of ``BASELINES``.
        options: What the models are like.
        vectors_ND: What to learn from, float32: embeddings as ``EmbeddingFeatures`` gives them, or sparse features of
            words.
        targets_NC: 1, 0, or -1 where it is not known whether the row has the label; such rows are left out.
        weight_N: Weight of each row, at least 0; a row of weight 0 is left out.
        others: The sets to score: such rows ``(M, D)`` by name.
        seed: Decides everything that is drawn.
        jobs: Threads.
        on_label: Called with the number of labels that are done.
        check: Called between labels; what it raises ends the work.
        keep: Given each label and its model, as ``probabilities`` takes it, from the thread that fitted it.
        cluster: Where the trees of a forest grow; None: here.

    Returns:
        Probabilities ``(M, C)``, float32, by set.

    Raises:
        ValueError: There is no such baseline, an option is out of its range, lengths differ, or a weight is negative or
            not finite.
        InputError: ``k`` is above the rows of a label.
    """
    _check_input(name, vectors_ND, targets_NC, weight_N)
    num_labels = targets_NC.shape[1]
    scores = {key: np.empty((vectors_MD.shape[0], num_labels), np.float32) for key, vectors_MD in others.items()}

    if cluster is not None and name == "random_forest":
        jobs = cluster.workers

    def fit_and_score(label: int) -> int:
        model = fit_label(name, options, vectors_ND, targets_NC[:, label], weight_N, seed=seed, jobs=jobs)
        keep(label, model)
        for key, vectors_MD in others.items():
            scores[key][:, label] = probabilities(model, vectors_MD)
        return label

    check()
    if cluster is not None and name == "random_forest":
        # In this thread, the one that joblib has its backend in.
        with quiet_threads(1):
            for label in range(num_labels):
                on_label(fit_and_score(label) + 1)
                if label + 1 < num_labels:  # what is all done is not thrown away
                    check()
        return scores
    # The forest shares its trees among threads, the others their labels.
    threads = 1 if name == "random_forest" else jobs
    with quiet_threads(threads) as pool:
        fits = [pool.submit(fit_and_score, label) for label in range(num_labels)]
        try:
            for done, fit in enumerate(as_completed(fits), start=1):
                fit.result()
                on_label(done)
                if done < num_labels:
                    check()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scores


def fit_label(
    name: str,
    options: BaselineConfig,
    vectors_ND: Matrix,
    targets_N: NDArray[np.int8],
    weight_N: NDArray[Any],
    *,
    seed: int,
    jobs: int,
    only_decides: bool = False,
) -> Any:  # noqa: ANN401
    """Return the fitted model of one label; its prior, a number, where that is all that can be known.

    Args:
        name: One of ``BASELINES``.
        options: What the model is like.
        vectors_ND: What to learn from, as ``fit_predict`` gets it.
        targets_N: 1, 0 or -1.
        weight_N: Weight of each row.
        seed: Decides everything that is drawn.
        jobs: Threads of the forest.
        only_decides: Do without probabilities where they cost further fits, and yes or no does not.
    """
    known_N = (targets_N >= 0) & (weight_N > 0)
    targets_N, weight_N = targets_N[known_N], weight_N[known_N].astype(np.float64)
    fewest = min(int(targets_N.sum()), int((1 - targets_N).sum()))
    is_margin = name == "svm" and not only_decides
    # Of a single row nothing can be held out to turn the margin into a probability.
    if fewest < (2 if is_margin else 1):
        return float((weight_N[targets_N == 1].sum() + 1) / (weight_N.sum() + 2))
    if name == "knn" and options.k > len(targets_N):
        raise InputError(f"baseline.k: {options.k} nearest of {len(targets_N)} training tweets; lower it")
    # Labels draw apart, so that the score of one does not depend on which others there are.
    model = _model(name, options, seed=seed, jobs=jobs)
    if name == "mlp":
        model.batch_size = min(_BATCH_SIZE, len(targets_N))
    if is_margin:
        folds = StratifiedKFold(min(_CALIBRATION_FOLDS, fewest), shuffle=True, random_state=seed)
        model = CalibratedClassifierCV(model, method="sigmoid", cv=folds, ensemble=False)
    model.fit(vectors_ND[known_N], targets_N, sample_weight=weight_N)
    if name == "random_forest":
        model.n_jobs = 1  # threads would add up the votes in any order, and round as it comes
    return model


def probabilities(model: Any, vectors_MD: Matrix) -> FloatArray:  # noqa: ANN401
    """Return the probability of a label ``(M,)`` by its model, or its prior."""
    scores_M = np.full(vectors_MD.shape[0], model if isinstance(model, float) else np.nan, np.float32)
    if isinstance(model, float):
        return scores_M
    if isinstance(model, MLPClassifier):
        return _by_layers(model, vectors_MD)
    if not issparse(vectors_MD) and isinstance(model, LogisticRegression):
        return _by_blocks(lambda rows_BD: model.predict_proba(rows_BD)[:, 1], vectors_MD)
    for start in range(0, len(scores_M), _SCORED_ROWS):
        part = slice(start, start + _SCORED_ROWS)
        scores_M[part] = _probabilities_of_rows(model, vectors_MD[part])
    return scores_M


def _by_blocks(of_rows: Callable[[FloatArray], Any], rows_MD: FloatArray) -> FloatArray:
    """Return what a function gives for each row ``(M,)``, of as many rows at a time as ever."""
    found_M = np.empty(len(rows_MD), np.float32)
    for start in range(0, len(rows_MD), _DENSE_ROWS):
        part_MD = rows_MD[start : start + _DENSE_ROWS]
        rows_BD = np.zeros((_DENSE_ROWS, rows_MD.shape[1]), np.float32)
        rows_BD[: len(part_MD)] = part_MD
        found_M[start : start + len(part_MD)] = of_rows(rows_BD)[: len(part_MD)]
    return found_M


def _by_layers(model: MLPClassifier, vectors_MD: Matrix) -> FloatArray:
    """Return the probability of a label ``(M,)`` by a network with ReLU, as ``predict_proba`` does but for last bits.

    NumPy's products round a row by its place in a block; PyTorch's do not, where all widths are multiples of some.
    """
    layers: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for weights_HK, bias_K in zip(model.coefs_, model.intercepts_, strict=True):
        more_h, more_k = (-size % _WIDTH_STEP for size in weights_HK.shape)
        more_h = more_h if layers else 0  # the features are as they are
        layers.append((np.pad(weights_HK, ((0, more_h), (0, more_k))), np.pad(bias_K, (0, more_k))))
    tensors = [(torch.from_numpy(weights_HK), torch.from_numpy(bias_K)) for weights_HK, bias_K in layers]

    @torch.inference_mode()
    def rest(hidden_BH: torch.Tensor) -> FloatArray:
        for weights_HK, bias_K in tensors[1:]:
            hidden_BH = torch.addmm(bias_K, torch.relu(hidden_BH), weights_HK)
        return torch.sigmoid(hidden_BH[:, 0]).numpy()

    (weights_DH, bias_H), *_ = layers
    if not issparse(vectors_MD):
        first = tensors[0]
        return _by_blocks(lambda rows_BD: rest(torch.addmm(first[1], torch.from_numpy(rows_BD), first[0])), vectors_MD)
    starts = range(0, vectors_MD.shape[0], _SCORED_ROWS)
    # A sparse matrix is gone through row by row.
    hidden = (vectors_MD[start : start + _SCORED_ROWS] @ weights_DH + bias_H for start in starts)
    parts = [_by_blocks(lambda rows_BH: rest(torch.from_numpy(rows_BH)), rows_MH) for rows_MH in hidden]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _probabilities_of_rows(model: Any, vectors_MD: Matrix) -> FloatArray:  # noqa: ANN401
    """Return what ``predict_proba`` does, of a calibrated kernel machine on sparse rows many times as fast."""
    parts = getattr(model, "calibrated_classifiers_", [])
    machine = parts[0].estimator if len(parts) == 1 else None
    if not (isinstance(machine, SVC) and machine.kernel == "rbf" and issparse(vectors_MD)):
        return np.asarray(model.predict_proba(vectors_MD)[:, 1], np.float32)
    starts = range(0, vectors_MD.shape[0], _RBF_ROWS)
    margins_M = np.concatenate([_rbf_margins(machine, vectors_MD[start : start + _RBF_ROWS]) for start in starts])
    return np.asarray(parts[0].calibrators[0].predict(margins_M), np.float32)


def _rbf_margins(machine: SVC, vectors_MD: Any) -> NDArray[np.float64]:  # noqa: ANN401  sparse rows
    """Return the decision function of a machine with RBF kernel ``(M,)``; libsvm merges row with row, one by one."""
    rows_MD, support_SD = vectors_MD.astype(np.float64), machine.support_vectors_
    # exp(-gamma |x - v|²) = exp(-gamma |x|² - gamma |v|² + 2 gamma x·v)
    kernel_MS = np.asarray((rows_MD @ support_SD.T).toarray())
    kernel_MS *= 2 * machine._gamma
    kernel_MS -= machine._gamma * np.asarray(support_SD.multiply(support_SD).sum(1)).ravel()
    kernel_MS -= machine._gamma * np.asarray(rows_MD.multiply(rows_MD).sum(1)).reshape(-1, 1)
    np.exp(kernel_MS, out=kernel_MS)
    kernel_MS *= machine.dual_coef_.toarray().ravel()
    # Row by row: a product of matrices rounds a row by how many there are.
    return np.asarray(kernel_MS.sum(1) + machine.intercept_[0])


class NearestTweets:
    """The share of positives, by weight, among the k nearest rows; a classifier as scikit-learn's are.

    Args:
        k: How many.
    """

    def __init__(self, k: int) -> None:
        self.nearest = NearestNeighbors(n_neighbors=k, algorithm="brute")

    def fit(self, vectors_ND: Matrix, targets_N: NDArray[np.int8], sample_weight: NDArray[np.float64]) -> NearestTweets:
        """Remember the rows."""
        self.nearest.fit(vectors_ND)
        self.weight_N = sample_weight
        self.positive_N = sample_weight * targets_N
        return self

    def predict_proba(self, vectors_MD: Matrix) -> NDArray[np.float64]:
        """Return the probabilities of no and yes ``(M, 2)``."""
        near_MK = self.nearest.kneighbors(vectors_MD, return_distance=False)
        share_M = self.positive_N[near_MK].sum(axis=1) / self.weight_N[near_MK].sum(axis=1)
        return np.stack([1 - share_M, share_M], axis=1)

    def predict(self, vectors_MD: Matrix) -> NDArray[np.int8]:
        """Return yes where it is the more likely ``(M,)``."""
        return (self.predict_proba(vectors_MD)[:, 1] > 0.5).astype(np.int8)  # noqa: PLR2004


def _check_input(name: str, vectors_ND: Matrix, targets_NC: NDArray[np.int8], weight_N: NDArray[Any]) -> None:
    if name not in BASELINES:
        raise ValueError(f"baseline: expected one of {', '.join(BASELINES)}, got {name!r}")
    if not vectors_ND.shape[0] == len(targets_NC) == len(weight_N):
        rows = vectors_ND.shape[0]
        raise ValueError(f"{rows} embeddings, {len(targets_NC)} rows of targets and {len(weight_N)} weights")
    if not np.all(np.isfinite(weight_N) & (weight_N >= 0)):
        raise ValueError("weights must be finite and at least 0")


@contextlib.contextmanager
def quiet_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool whose threads start no others: sums over a varying number of threads round differently."""

    def alone() -> None:
        threadpool_limits(1, user_api="openmp")

    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a number of epochs is no failure
        with ThreadPoolExecutor(threads, initializer=alone) as pool:
            yield pool


def _model(name: str, options: BaselineConfig, *, seed: int, jobs: int) -> Any:  # noqa: ANN401
    """Return an unfitted model; one that has no probabilities has margins."""
    found = settled(name, options)
    if name == "logistic_regression":
        # The published solver; it is slow on embeddings.
        solver = "liblinear" if options.is_of_words else "lbfgs"
        return LogisticRegression(C=found["C"], solver=solver, max_iter=1_000)
    if name == "svm" and found["kernel"] == "linear":
        return LinearSVC(C=found["C"], random_state=seed)
    if name == "svm":
        return SVC(C=found["C"], kernel="rbf", gamma=found["gamma"], cache_size=500)
    if name == "boosting":
        # Without a part held out, which would take rows from rare labels.
        return HistGradientBoostingClassifier(
            max_iter=found["iterations"], max_bins=LEVELS, early_stopping=False, random_state=seed
        )
    if name == "knn":
        return NearestTweets(found["k"])
    if name == "naive_bayes":
        return MultinomialNB()
    if name == "mlp":
        epochs = found["epochs"]
        return MLPClassifier(found["hidden"], max_iter=epochs, n_iter_no_change=epochs, tol=0, random_state=seed)
    return _trees(name, found, seed=seed, jobs=jobs)


def _trees(name: str, found: Mapping[str, Any], *, seed: int, jobs: int) -> Any:  # noqa: ANN401
    tree = {
        "max_depth": found["max_depth"],
        "min_samples_leaf": found["min_leaf"],
        "min_samples_split": found["min_split"],
    }
    if name == "decision_tree":
        return DecisionTreeClassifier(**tree, random_state=seed)
    if name == "bagging":
        return BaggingClassifier(
            DecisionTreeClassifier(**tree), found["bags"], max_features=_BAG_SHARE, random_state=seed
        )
    features = found["max_features"]
    return RandomForestClassifier(found["trees"], **tree, max_features=features, random_state=seed, n_jobs=jobs)
