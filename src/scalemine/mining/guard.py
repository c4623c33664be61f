"""The guard: how probable it is that a candidate is a positive that nobody labelled.

P(positive | x) = prior p+(x) / p(x), by Bayes' rule. The ratio of densities comes from a logistic regression of
held-out positives against the corpus, on few features that may only raise it, calibrated by isotonic regression; the
prior as ``strategies.prior_bound`` says. All of it supposes that unlabelled positives are like the labelled ones. One
estimate serves all classes: a tweet of another class is no negative either. The first feature is a linear classifier of
embeddings; it is learnt after a first estimate by the others, which says what of the corpus to take for negative.

Shapes: N candidates, U rows of the corpus's sample, M positives, K classes, D dimensions, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from scalemine.config import GuardConfig, InputError
from scalemine.executor import Executor
from scalemine.mining.anchors import Anchors
from scalemine.mining.candidates import View, sample_by_z
from scalemine.mining.events import normal_event
from scalemine.mining.sampling import Row
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, anchor_grid, similarities
from scalemine.mining.strategies import prior_bound

FloatArray = NDArray[np.float64]
Vectors = NDArray[np.float16]
# Of pairs (positive, candidate): a score that is high where they report alike.
Rescore = Callable[[Sequence[tuple[str, str]]], FloatArray]

FEATURES = (
    "linear classifier of the embedding",
    "mean z over the classes",
    "mean cosine to the nearest positives",
    "score of the rescorer",
)
# The sample is drawn apart where the corpus has few tweets and the guard is needed: by the largest z over the classes.
STRATA = (1.0, 2.0, 3.0, 4.0)
MIN_POSITIVES = 20
# A tweet of the sample that is a positive with this probability or a higher one is no negative to learn from.
MAX_NEGATIVE = 0.2
# Without events: about as many positives as an event has.
POSITIVES_PER_CLUSTER = 50
# A positive's own copies would flatter it.
COPY_COSINE = 0.95
BLOCK_ROWS = 4_096
FOLDS = 5
BIN_EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Features:
    """What the guard looks at.

    Args:
        anchors: Anchors and positives, float32.
        normals: The fitted normal of each class, in order.
        neighbours: How many of the nearest positives count.
        positive_texts: In the order of ``anchors.positive_ids``; for the rescorer.
        rescore: Scores pairs of texts, if there is a rescorer.
    """

    anchors: Anchors
    normals: Sequence[Normal]
    neighbours: int
    positive_texts: Sequence[str]
    rescore: Rescore | None = None

    def of(self, texts: Sequence[str], vectors_ND: Vectors) -> FloatArray:
        """Return the features ``(N, F)`` of tweets of the corpus."""
        anchors_grid, positives_grid = anchor_grid(self.anchors.vectors_KD), anchor_grid(self.anchors.positives_MD)
        parts = []
        for start in range(0, len(vectors_ND), BLOCK_ROWS):
            block_BD = vectors_ND[start : start + BLOCK_ROWS]
            z_BK = self._z(similarities(block_BD, anchors_grid) / STEPS_PER_UNIT)
            parts.append(self._row(z_BK, similarities(block_BD, positives_grid), texts[start : start + BLOCK_ROWS]))
        return np.concatenate(parts) if parts else np.empty((0, self.num))

    def of_positives(self, groups_M: NDArray[np.int64]) -> FloatArray:
        """Return the features ``(M, F)`` of the positives, each as if those of its group had not been labelled.

        Every class has positives of two groups at least.
        """
        anchors, vectors_MD = self.anchors, self.anchors.positives_MD
        features_MF = np.empty((len(vectors_MD), self.num))
        cosines_MM = similarities(vectors_MD.astype(np.float16), anchor_grid(vectors_MD))
        for group in np.unique(groups_M):
            held, others = groups_M == group, groups_M != group
            classes = [others & (anchors.positive_class_M == k) for k in range(len(self.normals))]
            means_KD = np.stack([vectors_MD[of_class].mean(axis=0) for of_class in classes])
            z_HK = self._z(similarities(vectors_MD[held].astype(np.float16), anchor_grid(means_KD)) / STEPS_PER_UNIT)
            near_HM = np.where(cosines_MM[held] < COPY_COSINE * STEPS_PER_UNIT, cosines_MM[held], -STEPS_PER_UNIT)
            near_HM[:, held] = -STEPS_PER_UNIT
            texts = [self.positive_texts[i] for i in np.flatnonzero(held).tolist()]
            features_MF[held] = self._row(z_HK, near_HM, texts)
        return features_MF

    @property
    def num(self) -> int:
        """Number of features."""
        return 3 if self.rescore else 2

    def _z(self, cosines_NK: FloatArray) -> FloatArray:
        return np.stack([normal.z(cosines_NK[:, k]) for k, normal in enumerate(self.normals)], axis=1)

    def _row(self, z_NK: FloatArray, near_NM: NDArray[np.int16], texts: Sequence[str]) -> FloatArray:
        count = min(self.neighbours, near_NM.shape[1])
        # Whole numbers: the mean hangs on no order.
        top_NR = -np.partition(-near_NM.astype(np.int32), count - 1, axis=1)[:, :count]
        counted_NR = top_NR > -STEPS_PER_UNIT
        mean_N = (top_NR * counted_NR).sum(axis=1) / np.maximum(1, counted_NR.sum(axis=1))
        columns = [z_NK.mean(axis=1), mean_N / STEPS_PER_UNIT]
        if self.rescore:
            nearest_N = near_NM.argmax(axis=1)
            pairs = [(self.positive_texts[i], text) for i, text in zip(nearest_N, texts, strict=True)]
            columns.append(self.rescore(pairs))
        return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class Ratio:
    """log p+(x) / p(x), fitted: a linear score with coefficients from 0 up, and an isotonic curve over it.

    Args:
        center_F: Mean of each feature over the corpus.
        scale_F: Its standard deviation.
        coefficients: Of the standardised features, then the constant.
        scores: Knots of the curve.
        shares: At each knot, q = p+ / (p+ + p), from 0 to 1.
    """

    center_F: FloatArray
    scale_F: FloatArray
    coefficients: FloatArray
    scores: FloatArray
    shares: FloatArray

    def score(self, features_NF: FloatArray) -> FloatArray:
        """Return the linear score ``(N,)``."""
        standard_NF = (features_NF - self.center_F) / self.scale_F
        scores_N: FloatArray = (standard_NF * self.coefficients[:-1]).sum(axis=1) + self.coefficients[-1]
        return scores_N

    def of(self, features_NF: FloatArray) -> FloatArray:
        """Return p+(x) / p(x) ``(N,)``, infinite where only positives were seen."""
        shares_N = np.interp(self.score(features_NF), self.scores, self.shares)
        with np.errstate(divide="ignore"):
            return shares_N / (1 - shares_N)


@dataclass(frozen=True, eq=False)
class Classifiers:
    """Linear classifiers of embeddings, each fitted without one part of the positives and of the sample.

    Args:
        weights_CD: A row of weights for each part, and its constant last.
    """

    weights_CD: FloatArray

    def scores(self, vectors_ND: NDArray[Any]) -> FloatArray:
        """Return the score ``(N, C)`` by each of them."""
        scores_NC: FloatArray = vectors_ND.astype(np.float64) @ self.weights_CD[:, :-1].T + self.weights_CD[:, -1]
        return scores_NC


def fit_classifiers(
    positives_MD: NDArray[Any],
    fold_M: NDArray[np.int64],
    sample_UD: NDArray[Any],
    fold_U: NDArray[np.int64],
    weights_U: FloatArray,
) -> Classifiers:
    """Fit a classifier without each fold: positives against the sample.

    Source: Elkan and Noto (2008), "Learning classifiers from only positive and unlabeled data": unlabelled rows count
    by the probability that they are negative.
    """
    rows = []
    for fold in range(FOLDS):
        inside, outside = positives_MD[fold_M != fold], sample_UD[fold_U != fold]
        weights = weights_U[fold_U != fold] / weights_U[fold_U != fold].sum()
        rows.append(_logistic(inside.astype(np.float64), outside.astype(np.float64), weights, 5e-4, None))
    return Classifiers(np.stack(rows))


def _logistic(
    positives_MF: FloatArray, corpus_UF: FloatArray, weights_U: FloatArray, penalty: float, least: float | None
) -> FloatArray:
    """Return the coefficients, and the constant last, of a penalised logistic regression; both sides weigh 1."""
    rows = np.concatenate([positives_MF, corpus_UF])
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    weights = np.concatenate([np.full(len(positives_MF), 1 / len(positives_MF)), weights_U])
    signs = np.where(np.arange(len(rows)) < len(positives_MF), 1.0, -1.0)
    penalties = np.append(np.full(positives_MF.shape[1], penalty), 0.0)

    def loss(coefficients: FloatArray) -> tuple[float, FloatArray]:
        margins = signs * (rows @ coefficients)
        slope = -signs * weights * expit(-margins)
        value = (weights * np.logaddexp(0, -margins)).sum() + (penalties * coefficients**2).sum()
        return float(value), rows.T @ slope + 2 * penalties * coefficients

    bounds = [(least, None)] * positives_MF.shape[1] + [(None, None)]
    found = minimize(loss, np.append(np.full(positives_MF.shape[1], 0.5 if least == 0 else 0.0), -1.0),
                     jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2_000})  # fmt: skip
    return np.asarray(found.x, np.float64)


def fit_ratio(positives_MF: FloatArray, corpus_UF: FloatArray, weights_U: FloatArray) -> Ratio:
    """Fit the ratio of densities.

    Source: Qin (1998), density ratios by logistic regression; isotonic calibration, Zadrozny and Elkan (2002).
    """
    weights_U = weights_U / weights_U.sum()
    center_F = (corpus_UF * weights_U[:, None]).sum(axis=0)
    scale_F = np.sqrt(((corpus_UF - center_F) ** 2 * weights_U[:, None]).sum(axis=0)) + 1e-9
    # A positive is no less likely for being nearer to positives.
    coefficients = _logistic(
        (positives_MF - center_F) / scale_F, (corpus_UF - center_F) / scale_F, weights_U, 1e-4, least=0.0
    )
    features = np.concatenate([positives_MF, corpus_UF])
    is_positive = np.arange(len(features)) < len(positives_MF)
    weights = np.concatenate([np.full(len(positives_MF), 1 / len(positives_MF)), weights_U])
    scores = (((features - center_F) / scale_F) * coefficients[:-1]).sum(axis=1) + coefficients[-1]
    order = np.argsort(scores, kind="stable")
    curve = isotonic_regression(is_positive[order].astype(np.float64), weights=weights[order]).x
    return Ratio(center_F, scale_F, coefficients, scores[order], np.asarray(curve, np.float64))


@dataclass(frozen=True, eq=False)
class Guard:
    """The estimate, ready for candidates.

    Args:
        classifiers: Give the first feature.
        features: The other things that it looks at.
        ratio: The ratio of densities.
        prior: Share of positives in the corpus.
        facts: What the report says of it, as JSON.
    """

    classifiers: Classifiers
    features: Features
    ratio: Ratio
    prior: float
    facts: dict[str, Any]

    def probability(self, texts: Sequence[str], vectors_ND: NDArray[np.float32] | Vectors) -> FloatArray:
        """Return P(positive) ``(N,)`` of tweets with their embeddings."""
        vectors_ND = vectors_ND.astype(np.float16)
        first_N = self.classifiers.scores(vectors_ND).mean(axis=1)
        features_NF = np.column_stack([first_N, self.features.of(texts, vectors_ND)])
        return np.minimum(1.0, self.prior * self.ratio.of(features_NF))


def check_positives(class_names: Sequence[str]) -> None:
    """Raise InputError where there are too few positives, or a class has one alone."""
    if len(class_names) < MIN_POSITIVES:
        raise InputError(
            f"guard: {len(class_names)} positives, expected at least {MIN_POSITIVES} to estimate from; add some"
        )
    for name, count in sorted(Counter(class_names).items()):
        if count < 2:
            raise InputError(f"guard: class {name!r} has one positive, expected at least 2 to hold one out; add some")


def hold_out_groups(
    events: Sequence[str | None], class_M: NDArray[np.int64], vectors_MD: NDArray[Any], seed: int
) -> list[str]:
    """Return the group of each positive: its event or, where its class is not of several events, its cluster.

    Unlabelled positives are of other events than the labelled ones. Where events are not known, clusters of like
    positives stand in for them; positives held out one by one would keep siblings that flatter them.
    """
    groups = [normal_event(event) for event in events]
    for index in range(int(class_M.max()) + 1):
        members = np.flatnonzero(class_M == index)
        if len({groups[i] for i in members}) > 1 and all(groups[i] for i in members):
            continue
        number = max(2, -(-len(members) // POSITIVES_PER_CLUSTER))
        rng = np.random.default_rng(seed)
        _, labels = kmeans2(vectors_MD[members].astype(np.float64), number, minit="++", seed=rng, missing="warn")
        if len(set(labels.tolist())) == 1:  # all alike
            labels = np.arange(len(members))
        for member, label in zip(members.tolist(), labels.tolist(), strict=True):
            groups[member] = f"\0{index}:{label}"
    return groups


def fit_guard(
    features: Features,
    positive_groups: Sequence[str],
    sample: Sequence[Row],
    sample_vectors_UD: Vectors,
    weights_U: FloatArray,
    config: GuardConfig,
) -> Guard:
    """Fit the guard, and look how well it is calibrated by predicting parts that it was not fitted on.

    Args:
        features: What it looks at.
        positive_groups: Group of each positive; those of one group, such as an event, are held out together.
        sample: Tweets of the corpus.
        sample_vectors_UD: Their embeddings.
        weights_U: How many tweets of the corpus each stands for.
        config: The prior, if it is given.
    """
    num = len(positive_groups)
    names = sorted(set(positive_groups))
    groups_M = np.array([names.index(group) for group in positive_groups])
    fold_M, fold_U = groups_M % FOLDS, np.arange(len(sample)) % FOLDS
    positives_MD = features.anchors.positives_MD.astype(np.float16)
    positives_MF = features.of_positives(groups_M)
    corpus_UF = features.of([row.text for row in sample], sample_vectors_UD)
    # What looks like a positive by the other features is no negative to learn from. Strata weigh alike.
    ratio, bound = _fit(positives_MF, corpus_UF, weights_U, config)
    probability_U = np.minimum(1.0, bound * ratio.of(corpus_UF))
    negative_U = np.where(probability_U < MAX_NEGATIVE, 1 - probability_U, 1e-9)
    classifiers = fit_classifiers(positives_MD, fold_M, sample_vectors_UD, fold_U, negative_U)
    # Each by the classifier that did not see its fold.
    first_M = classifiers.scores(positives_MD)[np.arange(num), fold_M]
    first_U = classifiers.scores(sample_vectors_UD)[np.arange(len(sample)), fold_U]
    positives_MF, corpus_UF = np.column_stack([first_M, positives_MF]), np.column_stack([first_U, corpus_UF])
    ratio, prior = _fit(positives_MF, corpus_UF, weights_U, config)
    # The classifier knows labelled positives better than those that were among its negatives: its own bound is too low.
    prior = max(bound, prior)
    facts = {
        "prior": prior,
        "prior_is": "given" if config.prior else "estimated",
        "features": dict(zip(FEATURES, ratio.coefficients[:-1].tolist(), strict=False)),
        "positives": num,
        "groups": len(names),
        "sample": len(sample),
        "reliability": reliability(positives_MF, groups_M, corpus_UF, weights_U, prior),
    }
    return Guard(classifiers, features, ratio, prior, facts)


def _fit(
    positives_MF: FloatArray, corpus_UF: FloatArray, weights_U: FloatArray, config: GuardConfig
) -> tuple[Ratio, float]:
    """Return the ratio of densities, and the prior: the given one, or its bound."""
    ratio = fit_ratio(positives_MF, corpus_UF, weights_U)
    return ratio, config.prior or prior_bound(ratio.score(corpus_UF), weights_U, ratio.score(positives_MF))


def reliability(
    positives_MF: FloatArray, groups_M: NDArray[np.int64], corpus_UF: FloatArray, weights_U: FloatArray, prior: float
) -> list[dict[str, float]]:
    """Return, per bin of the probability, what was said and what was seen, each part said by a fit on the others.

    Seen is the share of the corpus in the bin that held-out positives, as many as the prior says, would make up.
    """
    fold_M, fold_U = groups_M % FOLDS, np.arange(len(corpus_UF)) % FOLDS
    said_M, said_U = np.zeros(len(positives_MF)), np.zeros(len(corpus_UF))
    for fold in range(FOLDS):
        ratio = fit_ratio(positives_MF[fold_M != fold], corpus_UF[fold_U != fold], weights_U[fold_U != fold])
        for said, features, folds in ((said_M, positives_MF, fold_M), (said_U, corpus_UF, fold_U)):
            said[folds == fold] = np.minimum(1.0, prior * ratio.of(features[folds == fold]))
    rows = []
    mass_U = weights_U / weights_U.sum()
    for low, high in zip(BIN_EDGES[:-1], BIN_EDGES[1:], strict=True):
        last = high == BIN_EDGES[-1]
        in_U = (said_U >= low) & ((said_U < high) | last)
        in_M = (said_M >= low) & ((said_M < high) | last)
        mass = float(mass_U[in_U].sum())
        if mass:
            rows.append(
                {
                    "low": low,
                    "high": high,
                    "share_of_corpus": mass,
                    "said": float((mass_U[in_U] * said_U[in_U]).sum() / mass),
                    "seen": min(1.0, prior * float(in_M.mean()) / mass),
                    "positives": int(in_M.sum()),
                }
            )
    return rows


def sample_strata(
    view: View, normals: Sequence[Normal], size: int, seed: int, executor: Executor
) -> tuple[list[Row], FloatArray]:
    """Return up to ``size`` rows of each stratum of the corpus, and how many rows each stands for ``(U,)``."""
    counts, strata = sample_by_z(view, normals, STRATA, size, seed=seed, purpose="guard", executor=executor)
    weights = [count / len(part) for count, part in zip(counts, strata, strict=True) for _ in part]
    return [row for part in strata for row in part], np.array(weights)


def sample_vectors(view: View, sample: Sequence[Row]) -> Vectors:
    """Return the embeddings ``(U, D)`` of a sample: the stored ones, or encoded now where none are kept."""
    if view.embeddings is None:
        return view.encode([row.text for row in sample]).astype(np.float16)
    return view.embeddings.at([(row.shard, row.row) for row in sample])


def load_rescorer(model: str) -> Rescore:
    """Load a cross-encoder, safetensors weights only.

    Raises:
        InputError: There is no such model, or it cannot be loaded.
    """
    from scalemine.models import find_model, first_line, quieten_libraries

    quieten_libraries()
    from safetensors import SafetensorError
    from sentence_transformers import CrossEncoder

    folder = find_model(model, None, key="guard.rescorer")
    try:
        encoder = CrossEncoder(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(f"guard.rescorer: {model} cannot be loaded from {folder}: {first_line(error)}") from error

    def rescore(pairs: Sequence[tuple[str, str]]) -> FloatArray:
        scores = np.asarray(encoder.predict(list(pairs), show_progress_bar=False, convert_to_numpy=True), np.float64)
        # Of several labels, as entailment has them, the last one.
        return scores if scores.ndim == 1 else scores[:, -1]

    return rescore
