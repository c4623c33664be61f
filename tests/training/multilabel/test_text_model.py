from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from scalemine.config import BASELINES, BaselineConfig, InputError
from scalemine.store import read_json, write_json
from scalemine.training.kept import OTHERS
from scalemine.training.multilabel.baselines import fit_predict
from scalemine.training.multilabel.text_model import (
    FEATURES,
    label_file,
    load_text_model,
    read_estimator,
    write_estimator,
    write_text_model,
)
from scalemine.training.multilabel.word_features import WordFeatures
from training.trained import write_on_embeddings

ON_WORDS = [name for name in BASELINES if name != "boosting"]
LABELS = ["fear", "joy", "never"]
WORDS = ["fire", "water", "rising", "boat", "happy", "dance", "late", "bus", "roof", "kids"]


def make_tweets(number, seed):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=5)) for _ in range(number)]
    targets = np.array([["fire" in text, "happy" in text, False] for text in texts], np.int8)
    return texts, targets


def write(folder: Path, name: str, **changes):
    """Fit, write, and return what was predicted before it was written."""
    texts, targets = make_tweets(160, 1)
    options = BaselineConfig(features="tfidf", trees=12, bags=4, epochs=4, hidden=(8, 4), k=3)
    features = WordFeatures.fit(texts, ngrams=(1, 2), phrases=("fire", "happy dance"))
    priors: dict[int, float] = {}

    def keep(label, model):
        if isinstance(model, float):
            priors[label] = model
        else:
            write_estimator(model, folder / label_file(label))

    others, _ = make_tweets(70, 2)
    scores = fit_predict(
        name, options, features.transform(texts), targets, np.ones(160), {"test": features.transform(others)},
        seed=3, jobs=2, keep=keep,
    )["test"]  # fmt: skip
    info = {
        "labels": LABELS, "model": name, "normaliser": "none", "nested": [],
        "thresholds": dict.fromkeys(LABELS, 0.5), "calibration": dict.fromkeys(LABELS, [1.0, 0.0]),
    }  # fmt: skip
    write_text_model(folder, info | changes, features, priors)
    return others, scores


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "model"
    write(folder, "logistic_regression")
    return folder


@pytest.fixture
def model(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "model"))


def rehash(folder: Path, name: str) -> None:
    """Make the hash in model.json that of the file, as an attacker would."""
    info = read_json(folder / OTHERS)
    info["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write_json(folder / OTHERS, info)


def change(folder: Path, **values) -> None:
    write_json(folder / OTHERS, read_json(folder / OTHERS) | values)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_text_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ON_WORDS)
def test_predicts_what_it_did_before_it_was_written(tmp_path, name):
    texts, scores = write(tmp_path, name)
    found = load_text_model(tmp_path).predict(texts)
    assert found.dtype == np.float32
    # Logits go through 1e-6 from 0 and 1.
    np.testing.assert_array_equal(
        found, expit(logit(scores.clip(1e-6, 1 - 1e-6)).astype(np.float64)).astype(np.float32)
    )
    assert (found[:, 2] == found[0, 2]).all()
    assert not (tmp_path / label_file(2)).exists()


def test_calibration_thresholds_and_nesting_are_heard(tmp_path):
    texts, scores = write(
        tmp_path, "logistic_regression", nested=[["joy", "fear"]], thresholds={"fear": 0.6, "joy": 0.2, "never": 0.9},
        calibration={"fear": [0.5, -1.0], "joy": [2.0, 0.25], "never": [1.0, 0.0]},
    )  # fmt: skip
    model = load_text_model(tmp_path)
    expected = expit(logit(scores.astype(np.float64)) * [0.5, 2.0, 1.0] + [-1.0, 0.25, 0.0])
    expected[:, 0] = expected[:, :2].max(axis=1)
    np.testing.assert_allclose(model.predict(texts), expected, atol=1e-5)
    least = model.thresholds
    for found, row in zip(model.classify(texts[:9]), expected, strict=False):
        scores_of = dict(zip(LABELS, row.tolist(), strict=True))
        assert found == pytest.approx({label: one for label, one in scores_of.items() if one >= least[label]}, abs=1e-5)
    assert (model.labels, model.thresholds) == (LABELS, {"fear": 0.6, "joy": 0.2, "never": 0.9})


def test_texts_are_normalised(tmp_path):
    write(tmp_path, "naive_bayes", normaliser="rescue")
    model = load_text_model(tmp_path)
    np.testing.assert_array_equal(model.predict(["The FIRE, https://t.co/a"]), model.predict(["fire"]))


def test_no_texts_one_text_and_unknown_words(model):
    loaded = load_text_model(model)
    assert loaded.predict([]).shape == (0, 3)
    assert np.isfinite(loaded.predict(["", "unheard of"])).all()
    with pytest.raises(ValueError, match=r"give \[text\]"):
        loaded.predict("fire")


def test_the_folder_of_a_run_will_do(model):
    assert load_text_model(model.parent).labels == LABELS


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_planted_pickle_is_refused_and_not_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / label_file(0)).write_bytes(pickle.dumps(Bomb()))
    assert "sha256 is another" in refusal(model)
    rehash(model, label_file(0))
    assert "not an estimator that can be read safely" in refusal(model)
    (model / FEATURES).write_bytes(pickle.dumps(Bomb()))
    rehash(model, FEATURES)
    refusal(model)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_beside_the_files_is_not_looked_at(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model / "label-9.pkl").write_bytes(pickle.dumps(Bomb()))
    load_text_model(model)
    assert not (tmp_path / "exploded").exists()


def test_types_that_do_not_belong_there_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(model / label_file(0)) as archive:
        schema, parts = (
            json.loads(archive.read("schema.json")),
            {name: archive.read(name) for name in archive.namelist() if name != "schema.json"},
        )
    for module, name in (("os", "system"), ("subprocess", "Popen"), ("scalemine.executor", "StopSignals")):
        with zipfile.ZipFile(model / label_file(0), "w") as archive:
            archive.writestr("schema.json", json.dumps(schema | {"__module__": module, "__class__": name}))
            for part, content in parts.items():
                archive.writestr(part, content)
        rehash(model, label_file(0))
        assert "not an estimator that can be read safely" in refusal(model)
    write_estimator(PCA(), model / label_file(0))
    rehash(model, label_file(0))
    assert "holds a PCA, which is no estimator of a label" in refusal(model)


@pytest.mark.parametrize(("field", "value"), [("left_child", 0), ("right_child", 10_000), ("feature", 10_000)])
@pytest.mark.parametrize("name", ["random_forest", "decision_tree"])
def test_trees_that_lead_nowhere_are_refused(tmp_path, name, field, value):
    write(tmp_path, name)
    model = read_estimator(tmp_path / label_file(0))
    tree = model.tree_ if name == "decision_tree" else model.estimators_[3].tree_
    state = tree.__getstate__()
    state["nodes"][field][0] = value
    tree.__setstate__(state)
    write_estimator(model, tmp_path / label_file(0))
    rehash(tmp_path, label_file(0))
    assert "a tree leads to a node or a feature that is not there" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("left", 0), ("right", 10_000), ("feature_idx", 10_000), ("feature_idx", -1)]
)
def test_trees_of_boosting_that_lead_nowhere_are_refused(tmp_path, field, value):
    rows = np.random.default_rng(1).integers(0, 64, (200, 6)).astype(np.float32)
    model = HistGradientBoostingClassifier(max_iter=4).fit(rows, rows[:, 0] > 30)
    write_estimator(model, tmp_path / "label-0.skops")
    again = read_estimator(tmp_path / "label-0.skops")
    np.testing.assert_array_equal(again.predict_proba(rows), model.predict_proba(rows))
    nodes = model._predictors[2][0].nodes
    nodes[field][0] = value
    write_estimator(model, tmp_path / "label-0.skops")
    with pytest.raises(InputError, match="a tree leads to a node or a feature that is not there"):
        read_estimator(tmp_path / "label-0.skops")
    nodes["is_categorical"][0] = 1
    write_estimator(model, tmp_path / "label-0.skops")
    with pytest.raises(InputError, match="a tree of categories"):
        read_estimator(tmp_path / "label-0.skops")


def test_what_would_lead_past_the_checks_is_refused(tmp_path):
    rows = np.random.default_rng(1).integers(0, 64, (200, 6)).astype(np.float32)
    labels = rows[:, 0] > 30
    of_trees = CalibratedClassifierCV(DecisionTreeClassifier(max_depth=3), ensemble=False, cv=2).fit(rows, labels)
    boosting = HistGradientBoostingClassifier(max_iter=2).fit(rows, labels)
    boosting._preprocessor = StandardScaler().fit(rows)
    no_trees = HistGradientBoostingClassifier(max_iter=2).fit(rows, labels)
    no_trees._predictors = 3
    for place, (model, expected) in enumerate(
        ((of_trees, "a calibrated DecisionTree"), (boosting, "rewrites its features"), (no_trees, "damaged"))
    ):
        path = tmp_path / f"label-{place}.skops"
        write_estimator(model, path)
        with pytest.raises(InputError, match=expected):
            read_estimator(path)


def test_what_is_wrong_with_the_encoder_is_said_as_it_is(tmp_path):
    """Not as damage of the folder."""
    folder = write_on_embeddings(tmp_path / "model", "knn")
    facts = read_json(folder / OTHERS)
    for encoder, expected in (
        ({"model": str(tmp_path / "gone")}, r"^[^:]*: encoder: no such folder"),
        ({"model": "package:nothing_here"}, r"^[^:]*: encoder: no package"),
        ({"max_length": "x"}, "damaged"),
    ):
        write_json(folder / OTHERS, facts | {"encoder": facts["encoder"] | encoder})
        with pytest.raises(InputError, match=expected):
            load_text_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "classifier"}, "not that of a model of the kind words"),
        ({"kind": "embeddings"}, "damaged: 'mean'"),
        ({"format": 2}, "format 2, and this version of scalemine reads 1"),
        ({"model": "oracle"}, "unknown: 'oracle'"),
        ({"normaliser": "loud"}, "unknown normaliser"),
        ({"labels": []}, "0 labels"),
        ({"labels": ["a", "a", "b"]}, "3 labels"),
        ({"thresholds": {}}, "0 thresholds"),
        ({"thresholds": {"fear": "x", "joy": 0.5, "never": 0.5}}, "expected numbers"),
        ({"calibration": {"fear": [0, 0], "joy": [1, 0], "never": [1, 0]}}, "expected above 0"),
        (
            {"models": [{"file": "../label-0.skops"}, {"file": "label-1.skops"}, {"probability": 0.1}]},
            "expected label-0",
        ),
        ({"models": [{"probability": 2}, {"file": "label-1.skops"}, {"probability": 0.1}]}, "no probability"),
        ({"sha256": {}}, "expected a hash for each file"),
        ({"sha256": None}, "model.json"),
        ({"nested": [["fear", "riot"]]}, "riot"),
    ],
)
def test_damaged_facts_are_refused(model, values, expected):
    change(model, **values)
    assert expected in refusal(model)


def test_damaged_files_are_refused(model):
    whole = (model / label_file(0)).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-40]):
        (model / label_file(0)).write_bytes(damaged)
        rehash(model, label_file(0))
        assert label_file(0) in refusal(model)
    (model / label_file(0)).unlink()
    assert "missing" in refusal(model)
    (model / OTHERS).write_text("{", "utf-8")
    assert OTHERS in refusal(model)
    (model / OTHERS).unlink()
    assert "no model here" in refusal(model)


def test_estimators_of_other_features_are_refused(model):
    other = WordFeatures.fit(["fire water", "fire"])
    write_json(model / FEATURES, other.as_json())
    rehash(model, FEATURES)
    assert "features, and features.json has 2" in refusal(model)
