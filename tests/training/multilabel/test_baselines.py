from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from scalemine.config import BASELINES, BaselineConfig
from scalemine.training.multilabel.baselines import fit_predict

QUICK = BaselineConfig(trees=20, bags=30, iterations=15)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(260, 8)).astype(np.float32)
    noise = rng.normal(size=(260, 3)) * 0.4
    targets = (vectors[:, :3] + noise > [0.0, 0.5, -0.3]).astype(np.int8)
    return vectors[:200], targets[:200], vectors[200:], targets[200:]


def fit(name, data, *, options=QUICK, targets=None, weights=None, seed=1, jobs=1, **calls):
    vectors, known, others, _ = data
    weights = np.ones(len(vectors)) if weights is None else weights
    targets = known if targets is None else targets
    sets = {"test": others, "none": others[:0]}
    scores = fit_predict(name, options, vectors, targets, weights, sets, seed=seed, jobs=jobs, **calls)
    assert scores["none"].shape == (0, targets.shape[1])
    return scores["test"]


@pytest.mark.parametrize("name", BASELINES)
def test_each_learns_and_the_seed_decides_whatever_the_threads(name, data):
    scores = fit(name, data)
    assert scores.dtype == np.float32
    assert scores.shape == (60, 3)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert roc_auc_score(data[3], scores, average="macro") > 0.7
    np.testing.assert_array_equal(scores, fit(name, data, jobs=3))


@pytest.mark.parametrize("name", ["random_forest", "bagging", "decision_tree"])
def test_another_seed_draws_otherwise(name, data):
    assert (fit(name, data, seed=1) != fit(name, data, seed=2)).any()


def test_rbf_kernel_learns(data):
    linear, rbf = (fit("svm", data, options=BaselineConfig(kernel=kernel)) for kernel in ("linear", "rbf"))
    assert roc_auc_score(data[3], rbf, average="macro") > 0.8
    assert (linear != rbf).any()


def test_forest_is_that_of_scikit_learn(data):
    vectors, targets, others, _ = data
    weights = np.linspace(0.1, 1, len(vectors))
    scores = fit("random_forest", data, weights=weights, seed=7)
    for label in range(3):
        forest = RandomForestClassifier(20, min_samples_split=10, min_samples_leaf=5, random_state=7)
        forest.fit(vectors, targets[:, label], sample_weight=weights)
        np.testing.assert_allclose(scores[:, label], forest.predict_proba(others)[:, 1], atol=1e-6)


def test_logistic_regression_is_that_of_scikit_learn(data):
    vectors, targets, others, _ = data
    scores = fit("logistic_regression", data, options=BaselineConfig(C=0.5))
    scaler = StandardScaler().fit(vectors)
    for label in range(3):
        model = LogisticRegression(C=0.5).fit(scaler.transform(vectors), targets[:, label])
        expected = model.predict_proba(scaler.transform(others))[:, 1]
        np.testing.assert_allclose(scores[:, label], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["random_forest", "decision_tree", "bagging"])
def test_unknown_rows_and_rows_without_weight_are_as_if_absent(name, data):
    vectors, targets, others, test = data
    absent = np.arange(len(vectors)) % 4 == 0
    unknown = targets.copy()
    unknown[absent, 1] = -1
    without = fit(name, (vectors[~absent], targets[~absent], others, test))
    whole = fit(name, data)
    partly = fit(name, data, targets=unknown)
    np.testing.assert_array_equal(partly[:, 1], without[:, 1])
    np.testing.assert_array_equal(partly[:, [0, 2]], whole[:, [0, 2]])
    assert (whole[:, 1] != without[:, 1]).any()
    np.testing.assert_array_equal(fit(name, data, weights=np.where(absent, 0.0, 1.0)), without)


@pytest.mark.parametrize("name", BASELINES)
def test_weights_are_heard(name, data):
    weights = np.where(data[1][:, 0] == 1, 1.0, 0.05)
    assert fit(name, data, weights=weights)[:, 0].mean() > fit(name, data)[:, 0].mean() + 0.01


@pytest.mark.parametrize("name", BASELINES)
def test_labels_of_one_class_get_their_prior(name, data):
    targets = data[1].copy()
    targets[:, 0] = 0
    targets[:, 1] = 1
    targets[:, 2] = -1
    weights = np.full(len(targets), 0.5)
    scores = fit(name, data, targets=targets, weights=weights)
    expected = np.array([1 / 102, 101 / 102, 0.5], np.float32)
    np.testing.assert_array_equal(scores, np.broadcast_to(expected, scores.shape))


@pytest.mark.parametrize("positives", [1, 2, 3])
@pytest.mark.parametrize("name", BASELINES)
def test_few_positives_are_no_error(name, positives, data):
    targets = np.zeros_like(data[1])
    targets[:positives] = 1
    scores = fit(name, data, targets=targets)
    assert np.isfinite(scores).all()
    assert scores.mean() < 0.3


def test_halves_of_floats_are_read(data):
    vectors, targets, others, test = data
    halves = (vectors.astype(np.float16), targets, others.astype(np.float16), test)
    np.testing.assert_allclose(fit("logistic_regression", halves), fit("logistic_regression", data), atol=0.01)


def test_progress_is_told_and_a_check_stops(data):
    done = []
    fit("decision_tree", data, jobs=2, on_label=done.append)
    assert done == [1, 2, 3]

    def check():
        if done:
            raise KeyboardInterrupt

    done.clear()
    with pytest.raises(KeyboardInterrupt):
        fit("decision_tree", data, on_label=done.append, check=check)
    assert done == [1]


def test_wrong_input_is_refused(data):
    vectors, targets, others, test = data
    with pytest.raises(ValueError, match=r"random_forest.*'forest'"):
        fit("forest", data)
    with pytest.raises(ValueError, match="199 embeddings"):
        fit("svm", (vectors[:-1], targets, others, test), weights=np.ones(200))
    for weight in (-1.0, np.nan):
        with pytest.raises(ValueError, match="weights"):
            fit("svm", data, weights=np.full(200, weight))
    broken = vectors.copy()
    broken[3, 3] = np.nan
    for name in ("svm", "boosting", "logistic_regression"):
        with pytest.raises(ValueError, match=r"NaN|finite"):
            fit(name, (broken, targets, others, test))
    with pytest.raises(ValueError, match="trees"):
        BaselineConfig(trees=0)
