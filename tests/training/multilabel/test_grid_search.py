from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from scalemine.config import BaselineConfig, ComputeConfig, InputError
from scalemine.executor import ray_jobs
from scalemine.training.multilabel.grid_search import Part, Tried, best, deal, points, search


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    dense = np.abs(rng.normal(size=(150, 12))) * (rng.random((150, 12)) < 0.4)
    targets = np.stack([dense[:, 0] + 0.3 * rng.normal(size=150) > 0.3, dense[:, 1] > 0.4], axis=1).astype(np.int8)
    return csr_matrix(dense, dtype=np.float32), targets


def parts_of(data, *, weights=None):
    vectors, targets = data
    weights = np.ones(len(targets), np.float32) if weights is None else weights
    folds = deal(targets, 7)
    for fold in range(5):
        rows, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        yield Part((vectors[rows], targets[rows], weights[rows]), (vectors[held], targets[held]))


def words(**values):
    return BaselineConfig(features="tfidf", **values)


REFERENCES = {
    "logistic_regression": ({"C": [0.01, 10.0]}, lambda C: LogisticRegression(C=C, solver="liblinear")),
    "svm": ({"C": [0.1, 5.0], "gamma": [0.5, 2.0]}, lambda C, gamma: SVC(C=C, gamma=gamma)),
    "knn": ({"k": [1, 3, 7]}, lambda k: KNeighborsClassifier(k, algorithm="brute")),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_each_point_scores_as_scikit_learn_would(data, name):
    grid, make = REFERENCES[name]
    tried = search(name, words(grid=grid), parts_of(data), seed=0, jobs=1)
    assert [dict(one.values) for one in tried] == points(grid)
    for one in tried:
        f1s = []
        for part in parts_of(data):
            (vectors, targets, _), (held, gold) = part.learnt, part.judged
            found = [make(**one.values).fit(vectors, targets[:, label]).predict(held) for label in range(2)]
            f1s.append(np.mean([f1_score(gold[:, label], found[label]) for label in range(2)]))
        assert one.f1 == pytest.approx(np.mean(f1s))
        assert one.std == pytest.approx(np.std(f1s))


@pytest.mark.parametrize("name", ["random_forest", "svm", "mlp"])
def test_threads_change_nothing(data, name):
    grid = {"random_forest": {"trees": [5, 9]}, "svm": {"C": [1, 2, 3]}, "mlp": {"hidden": [(4,), (8, 4)]}}[name]
    one, two = (search(name, words(grid=grid, epochs=3), parts_of(data), seed=1, jobs=jobs) for jobs in (1, 2))
    assert one == two


def test_of_equals_the_first_is_best():
    tried = [Tried({"k": 1}, 0.5, 0.1), Tried({"k": 2}, 0.7, 0.1), Tried({"k": 3}, 0.7, 0.0)]
    assert best(tried).values == {"k": 2}


def test_the_last_key_varies_fastest():
    assert points({"C": [1, 2], "gamma": [3, 4]}) == [
        {"C": 1, "gamma": 3}, {"C": 1, "gamma": 4}, {"C": 2, "gamma": 3}, {"C": 2, "gamma": 4},
    ]  # fmt: skip


def test_folds_are_alike_in_every_combination_of_labels(data):
    targets = np.repeat([[1, 0], [0, 1], [-1, 0]], [50, 25, 10], axis=0).astype(np.int8)
    folds = deal(targets, 1)
    for combination in np.unique(targets, axis=0):
        numbers = np.bincount(folds[(targets == combination).all(axis=1)], minlength=5)
        assert numbers.max() - numbers.min() <= 1
    np.testing.assert_array_equal(folds, deal(targets, 1))
    assert (folds != deal(targets, 2)).any()


def test_what_is_unknown_is_not_judged(data):
    vectors, targets = data
    unknown = targets.copy()
    unknown[::3, 0] = -1
    changed = vectors.tolil()
    changed[::3, :] = 0
    one = search(
        "logistic_regression", words(grid={"C": [1.0]}), parts_of((vectors[:, :], unknown[:, :1])), seed=0, jobs=1
    )
    two = search(
        "logistic_regression", words(grid={"C": [1.0]}), parts_of((changed.tocsr(), unknown[:, :1])), seed=0, jobs=1
    )
    assert one == two


def test_a_fold_without_positives_counts_for_nothing(data):
    vectors, targets = data
    none = np.zeros_like(targets)
    [tried] = search("knn", words(grid={"k": [1]}), parts_of((vectors, none)), seed=0, jobs=1)
    assert (tried.f1, tried.std) == (0, 0)


def test_progress_and_a_check_that_stops(data):
    done = []
    search("knn", words(grid={"k": [1, 2]}), parts_of(data), seed=0, jobs=2, on_fit=done.append)
    assert done == [1] * 10

    def check():
        if len(done) > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search("knn", words(grid={"k": [1, 2]}), parts_of(data), seed=0, jobs=1, on_fit=done.append, check=check)
    assert len(done) == 11


def test_more_neighbours_than_tweets_are_refused(data):
    with pytest.raises(InputError, match=r"baseline.k: 121 nearest of 120 training tweets"):
        search("knn", words(grid={"k": [1, 121]}), parts_of(data), seed=0, jobs=1)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("random_forest", {"trees": [5, 9]}), ("svm", {"C": [1, 2, 3]}), ("logistic_regression", {"C": [0.1, 1]})],
)
def test_ray_finds_what_threads_find(ray_session, data, name, grid):
    here = search(name, words(grid=grid), parts_of(data), seed=1, jobs=2)
    done = []
    with ray_jobs(ComputeConfig(executor="ray", workers=2)) as cluster:
        there = search(name, words(grid=grid), parts_of(data), seed=1, jobs=2, cluster=cluster, on_fit=done.append)
    assert here == there
    assert done == [1] * 5 * len(points(grid))


def test_what_is_refused_on_ray_is_said_in_its_own_line(ray_session, data):
    with ray_jobs(ComputeConfig(executor="ray", workers=2)) as cluster:
        with pytest.raises(InputError, match=r"^baseline.k: 121 nearest of 120 training tweets; lower it$"):
            search("knn", words(grid={"k": [1, 121]}), parts_of(data), seed=0, jobs=1, cluster=cluster)
