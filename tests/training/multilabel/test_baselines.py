from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import csr_matrix
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import SVC

from scalemine.config import BASELINES, BaselineConfig, InputError
from scalemine.training.multilabel import baselines as module
from scalemine.training.multilabel.baselines import fit_label, fit_predict, probabilities, settled
from scalemine.training.multilabel.embedding_features import EmbeddingFeatures

QUICK = BaselineConfig(trees=20, bags=30, iterations=15, k=15, hidden=(16, 8), epochs=60)
ON_EMBEDDINGS = [name for name in BASELINES if name != "naive_bayes"]
ON_WORDS = [name for name in BASELINES if name != "boosting"]


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
    features = EmbeddingFeatures.fit(name, vectors)
    sets = {"test": features.transform(others), "none": features.transform(others[:0])}
    scores = fit_predict(
        name, options, features.transform(vectors), targets, weights, sets, seed=seed, jobs=jobs, **calls
    )
    assert scores["none"].shape == (0, targets.shape[1])
    return scores["test"]


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_each_learns_and_the_seed_decides_whatever_the_threads(name, data):
    scores = fit(name, data)
    assert scores.dtype == np.float32
    assert scores.shape == (60, 3)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert roc_auc_score(data[3], scores, average="macro") > 0.7
    np.testing.assert_array_equal(scores, fit(name, data, jobs=3))


@pytest.mark.parametrize("name", ["random_forest", "bagging", "decision_tree", "mlp"])
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


@pytest.fixture(scope="module")
def words(data):
    """Rows as those of TF-IDF: sparse, not negative, of length 1."""
    vectors, targets, others, test = data

    def sparse(dense):
        shown = np.maximum(dense, 0)
        return csr_matrix(shown / np.maximum(np.linalg.norm(shown, axis=1, keepdims=True), 1e-9), dtype=np.float32)

    return sparse(vectors), targets, sparse(others), test


def words_config(**values):
    return BaselineConfig(features="tfidf", trees=20, bags=30, **{"k": 15, "hidden": (16, 8), "epochs": 60} | values)


def fit_words(name, words, *, options=None, targets=None, weights=None, seed=1, jobs=1, **calls):
    vectors, known, others, _ = words
    weights = np.ones(vectors.shape[0]) if weights is None else weights
    targets = known if targets is None else targets
    sets = {"test": others, "none": others[:0]}
    scores = fit_predict(
        name, options or words_config(), vectors, targets, weights, sets, seed=seed, jobs=jobs, **calls
    )
    assert scores["none"].shape == (0, targets.shape[1])
    return scores["test"]


@pytest.mark.parametrize("name", ON_WORDS)
def test_each_learns_from_words_whatever_the_threads(name, words):
    scores = fit_words(name, words)
    assert scores.dtype == np.float32
    assert roc_auc_score(words[3], scores, average="macro") > 0.7
    np.testing.assert_array_equal(scores, fit_words(name, words, jobs=2))


REFERENCES = {
    "logistic_regression": lambda: LogisticRegression(C=10, solver="liblinear"),
    "naive_bayes": MultinomialNB,
    "random_forest": lambda: RandomForestClassifier(
        20, max_features="log2", max_depth=300, min_samples_split=20, random_state=1
    ),
    "mlp": lambda: MLPClassifier((16, 8), max_iter=60, n_iter_no_change=60, tol=0, random_state=1, batch_size=64),
    "knn": lambda: KNeighborsClassifier(15, algorithm="brute"),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_on_words_they_are_those_of_scikit_learn_with_the_published_settings(name, words):
    vectors, targets, others, _ = words
    scores = fit_words(name, words)
    # A forest draws by weight where there is any.
    weights = {} if name == "knn" else {"sample_weight": np.ones(len(targets))}
    for label in range(3):
        expected = REFERENCES[name]().fit(vectors, targets[:, label], **weights).predict_proba(others)[:, 1]
        np.testing.assert_allclose(scores[:, label], expected, atol=1e-5)


def test_the_support_vector_machine_ranks_as_that_of_scikit_learn(words):
    vectors, targets, others, _ = words
    scores = fit_words("svm", words)
    for label in range(3):
        margins = SVC(C=1, gamma=1).fit(vectors, targets[:, label]).decision_function(others)
        # Rounded, as float32 makes neighbours equal.
        order = np.argsort(margins)
        assert (np.diff(scores[order, label]) >= -1e-6).all()


def test_neighbours_count_by_weight(words):
    vectors, targets, others, _ = words
    weights = np.random.default_rng(0).random(len(targets)) + 0.1
    scores = fit_words("knn", words, options=words_config(k=4), weights=weights)
    dense, far = vectors.toarray(), others.toarray()
    for row, found in zip(far, scores, strict=True):
        near = np.argsort(((dense - row) ** 2).sum(axis=1), kind="stable")[:4]
        if (
            len(np.unique(((dense - row) ** 2).sum(axis=1).round(5)[np.argsort(((dense - row) ** 2).sum(axis=1))[:5]]))
            == 5
        ):
            np.testing.assert_allclose(found, np.average(targets[near], axis=0, weights=weights[near]), atol=1e-6)


def test_more_neighbours_than_tweets_are_refused(words):
    with pytest.raises(InputError, match=r"baseline.k: 201 nearest of 200 training tweets; lower it"):
        fit_words("knn", words, options=words_config(k=201))


def test_what_is_set_and_what_the_features_decide():
    assert settled("svm", BaselineConfig()) == {"kernel": "linear", "C": 0.0002}
    assert settled("svm", words_config()) == {"kernel": "rbf", "C": 1.0, "gamma": 1.0}
    assert settled("svm", words_config(C=5, gamma=0.1))["gamma"] == 0.1
    assert settled("logistic_regression", words_config()) == {"C": 10.0}
    forest = settled("random_forest", words_config(min_split=12))
    assert forest == {"trees": 20, "max_features": "log2", "max_depth": 300, "min_split": 12, "min_leaf": 1}
    assert settled("random_forest", BaselineConfig())["max_depth"] is None
    assert settled("naive_bayes", words_config()) == {}


@pytest.mark.parametrize("name", ON_WORDS)
def test_every_model_is_given_to_be_kept(name, words):
    targets = words[1].copy()
    targets[:, 2] = 0
    kept = {}
    fit_words(name, words, targets=targets, keep=kept.__setitem__)
    assert set(kept) == {0, 1, 2}
    assert kept[2] == pytest.approx(1 / 202)
    assert all(hasattr(kept[label], "predict_proba") for label in (0, 1))


@pytest.mark.parametrize("name", ["random_forest", "decision_tree", "bagging", "knn"])
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


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_weights_are_heard(name, data):
    weights = np.where(data[1][:, 0] == 1, 1.0, 0.05)
    assert fit(name, data, weights=weights)[:, 0].mean() > fit(name, data)[:, 0].mean() + 0.01


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
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
@pytest.mark.parametrize("name", ON_EMBEDDINGS)
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
    # What is all fitted is not thrown away.
    one = (data[0], data[1][:, :1], *data[2:])
    done.clear()
    assert fit("decision_tree", one, on_label=done.append, check=check).shape == (60, 1)


def test_wrong_input_is_refused(data):
    vectors, targets, others, test = data
    with pytest.raises(ValueError, match=r"random_forest.*'forest'"):
        fit("forest", data)
    with pytest.raises(ValueError, match="199 embeddings"):
        fit("svm", (vectors[:-1], targets, others, test), weights=np.ones(200))
    for weight in (-1.0, np.nan):
        with pytest.raises(ValueError, match="weights"):
            fit("svm", data, weights=np.full(200, weight))
    with pytest.raises(ValueError, match="trees"):
        BaselineConfig(trees=0)


@pytest.mark.parametrize(
    ("name", "is_of_words", "hidden"),
    [*((name, False, (128, 64)) for name in ON_EMBEDDINGS), *((name, True, (128, 64)) for name in ON_WORDS)]
    + [("mlp", is_of_words, hidden) for is_of_words in (False, True) for hidden in ((7, 3), (64, 10), (5,), (128, 5))],
)
def test_a_row_has_the_same_score_whatever_its_company(name, is_of_words, hidden):
    rng = np.random.default_rng(4)
    rows = [rng.normal(size=(900, 384)) for _ in range(2)]
    options = BaselineConfig(trees=5, bags=5, iterations=5, k=5, hidden=hidden, epochs=12)
    if is_of_words:
        options = options.model_copy(update={"features": "tfidf"})
        learnt, others = (csr_matrix(normalize(np.where(of > 1, of, 0)), dtype=np.float32) for of in rows)
    else:
        features = EmbeddingFeatures.fit(name, rows[0])
        learnt, others = map(features.transform, rows)
    targets = (rows[0][:, 0] + rows[0][:, 1] > 0.5).astype(np.int8)
    model = fit_label(name, options, learnt, targets, np.ones(900), seed=1, jobs=1)
    together = probabilities(model, others)
    assert together.std() > 1e-3
    for start, end in ((0, 1), (5, 6), (5, 12), (130, 700), (1, 900)):
        np.testing.assert_array_equal(probabilities(model, others[start:end]), together[start:end])


def test_a_network_scores_as_that_of_scikit_learn(data, words):
    vectors, targets, others, _ = data
    for learnt, rows, features in ((vectors, others, "embeddings"), (words[0], words[2], "tfidf")):
        model = fit_label(
            "mlp", QUICK.model_copy(update={"features": features}), learnt, targets[: learnt.shape[0], 0],
            np.ones(learnt.shape[0]), seed=1, jobs=1,
        )  # fmt: skip
        np.testing.assert_allclose(probabilities(model, rows), model.predict_proba(rows)[:, 1], rtol=1e-4, atol=1e-6)


def test_a_kernel_machine_on_sparse_rows_is_that_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(0)
    learnt_ND, rows_MD = (sparse.random(n, 40, 0.1, "csr", np.float32, random_state=rng) for n in (120, 90))
    targets_NC = (np.asarray(learnt_ND.sum(1)) > np.median(np.asarray(learnt_ND.sum(1)))).astype(np.int8)
    kept = {}
    module.fit_predict(
        "svm", BaselineConfig(features="tfidf"), learnt_ND, targets_NC, np.ones(120), {}, seed=1, jobs=1,
        keep=lambda label, model: kept.update({label: model}),
    )  # fmt: skip
    monkeypatch.setattr(module, "_RBF_ROWS", 32)
    scores_M = module.probabilities(kept[0], rows_MD)
    assert np.allclose(scores_M, kept[0].predict_proba(rows_MD)[:, 1], rtol=0, atol=1e-7)
    assert scores_M.std() > 0.1
    # A row's score has the same bits in any company.
    alone_M = np.concatenate([module.probabilities(kept[0], rows_MD[row]) for row in range(90)])
    assert np.array_equal(scores_M, alone_M)
