from __future__ import annotations

import json

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.preprocessing import StandardScaler

from scalemine.config import EncoderConfig, InputError
from scalemine.encoder import load_encoder
from scalemine.training.multilabel import embedding_features as module
from scalemine.training.multilabel.embedding_features import (
    LEVELS,
    EmbeddingFeatures,
    encoder_facts,
    load_text_encoder,
)
from training.tiny import DIM, write_bert

NAMES = ["svm", "logistic_regression", "mlp", "boosting", "knn", "random_forest"]
TEXTS = ["water rising", "", "fire in the house, and " * 30, "need a boat"]


def vectors(number=300, dims=5, seed=1):
    return (np.random.default_rng(seed).normal(size=(number, dims)) * [1, 2, 3, 0.1, 1] + 0.5).astype(np.float16)


@pytest.mark.parametrize("name", ["svm", "logistic_regression", "mlp"])
def test_they_are_standardised_as_by_scikit_learn(name):
    learnt, others = vectors(), vectors(seed=2)
    expected = StandardScaler().fit(learnt.astype(np.float64)).transform(others.astype(np.float64))
    found = EmbeddingFeatures.fit(name, learnt).transform(others)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_levels_part_the_training_rows_evenly_and_boosting_learns_as_from_the_values():
    learnt, others = vectors(6_400), vectors(900, seed=2)
    features = EmbeddingFeatures.fit("boosting", learnt.astype(np.float32) + np.linspace(0, 1e-3, 6_400)[:, None])
    levels = features.transform(learnt)
    assert set(np.unique(levels)) == set(range(LEVELS))
    counts = np.bincount(levels[:, 0].astype(int))
    assert counts.min() > 80 and counts.max() < 120
    # Levels keep the order.
    at = np.argsort(others[:, 1], kind="stable")
    assert (np.diff(features.transform(others)[at, 1]) >= 0).all()
    targets = (learnt[:, 1] + learnt[:, 2] > 1).astype(int)
    of_values, of_levels = (
        HistGradientBoostingClassifier(max_iter=30, max_bins=LEVELS, random_state=1).fit(rows, targets)
        for rows in (learnt.astype(np.float32), levels)
    )
    same = of_values.predict(others.astype(np.float32)) == of_levels.predict(features.transform(others))
    assert same.mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_reads_alike(name):
    features, others = EmbeddingFeatures.fit(name, vectors()), vectors(seed=2)
    again = EmbeddingFeatures.from_json(json.loads(json.dumps(features.as_json())))
    np.testing.assert_array_equal(again.transform(others), features.transform(others))
    assert again.width == 5
    assert again.transform(others[:0]).shape == (0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_are_refused(name):
    broken = vectors()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        EmbeddingFeatures.fit(name, broken)


@pytest.mark.parametrize(
    ("name", "values"),
    [("svm", {"scale": [1.0, 1.0]}), ("svm", {"scale": [1.0, 1.0, 1.0, 0.0, 1.0]}), ("svm", {"mean": []}),
     ("svm", {"mean": [1.0, 1.0, 1.0, float("nan"), 1.0]}), ("boosting", {"bounds": [[1.0]] * 5}),
     ("svm", {"width": 6})],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(name, values):
    with pytest.raises(ValueError, match=r"mean_D|scale_D|bounds_DQ"):
        EmbeddingFeatures.from_json(EmbeddingFeatures.fit(name, vectors()).as_json() | values)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoder") / "bert", num_hidden_layers=1)


def config(bert, **values):
    return EncoderConfig(model=str(bert), device="cpu", precision="float32", max_length=16, **values)


def test_the_encoder_is_that_of_training_in_whatever_company(bert, caplog):
    expected = load_encoder(config(bert)).encode_texts(TEXTS).astype(np.float16)
    facts = json.loads(json.dumps(encoder_facts(config(bert))))
    encode = load_text_encoder(facts, "model.json", DIM, device="cpu")
    np.testing.assert_array_equal(encode(TEXTS), expected)
    assert "1 of 4 texts are longer than 16 tokens" in caplog.text
    np.testing.assert_array_equal(encode(TEXTS[3:]), expected[3:])


def test_a_folder_is_named_from_anywhere(bert, monkeypatch):
    monkeypatch.chdir(bert.parent)
    assert encoder_facts(EncoderConfig(model="./bert"))["model"] == str(bert)


def test_an_encoder_that_is_another_or_gone_is_refused(bert):
    facts = encoder_facts(config(bert))
    with pytest.raises(InputError, match=r"^model.json: encoder: .* is not the one that the model was trained with"):
        load_text_encoder(facts | {"weights": "f" * 64}, "model.json", DIM)
    with pytest.raises(InputError, match="model.json: encoder: no such folder"):
        load_text_encoder(facts | {"model": "/nowhere/bert"}, "model.json", DIM)
    with pytest.raises(ValueError, match="max_length"):
        load_text_encoder(facts | {"max_length": "many"}, "model.json", DIM)
    with pytest.raises(KeyError):
        load_text_encoder({}, "model.json", DIM)
    with pytest.raises(InputError, match=f"embeddings have {DIM} dimensions, and the model reads 5"):
        load_text_encoder(facts, "model.json", 5)


def test_a_hub_model_is_looked_for_here_and_not_fetched(bert, monkeypatch):
    asked = []

    def look(name, **how):
        asked.append((name, how["local_files_only"]))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", look)
    with pytest.raises(InputError, match="somebody/encoder"):
        load_text_encoder(encoder_facts(config(bert)) | {"model": "somebody/encoder"}, "model.json", DIM)
    assert asked == [("somebody/encoder", True)]


def test_models_of_one_encoder_share_it(bert, monkeypatch):
    loaded = []
    real = module.load_encoder
    monkeypatch.setattr(module, "load_encoder", lambda *how, **more: loaded.append(1) or real(*how, **more))
    module._load_once.cache_clear()
    facts = encoder_facts(config(bert))
    one, other = (load_text_encoder(facts, where, DIM, device="cpu") for where in ("a", "b"))
    np.testing.assert_array_equal(one(TEXTS), other(TEXTS))
    assert len(loaded) == 1
