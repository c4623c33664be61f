from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import BASELINES, ComputeConfig, Config, InputError
from scalemine.executor import Stopped, StopSignals
from scalemine.frozen import embed_examples
from scalemine.shards import matrix_column
from scalemine.store import Workdir, read_json
from scalemine.training import runs
from scalemine.training.kept import OTHERS, kind_of, load_model
from scalemine.training.multilabel.baseline_trainer import BaselineFamily, open_embeddings, vectors_of
from scalemine.training.multilabel.baselines import settled
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.multilabel.embedding_features import encoder_facts
from scalemine.training.multilabel.text_model import load_text_model, read_estimator
from scalemine.training.multilabel.word_features import WordFeatures
from scalemine.training.runs import describe_plan, run_training
from training.tiny import write_bert

LABELS = ["fear", "joy"]
DIM = 6


def write_tweets(path: Path, number: int, seed: int) -> Path:
    chance = random.Random(seed)
    rows = []
    for place in range(number):
        labels = [label for label in LABELS if chance.random() < 0.4]
        unique = f"{path.stem} {chance.random()}"
        rows.append({"id": f"{path.stem}{place}", "text": " ".join([*labels, unique]), "labels": labels})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tweets")
    write_tweets(folder / "train.parquet", 90, 1)
    write_tweets(folder / "test.parquet", 50, 2)
    write_bert(folder / "bert", num_hidden_layers=1)
    return folder


def config(data: Path, workdir: Path, model: str = "logistic_regression", **train) -> Config:
    values = {
        "train_uri": str(data / "train.parquet"), "test_uris": {"test": str(data / "test.parquet")}, "model": model,
        "bootstrap": 10, "device": "cpu", "group_by": [], "dev_share": 0.3,
    }  # fmt: skip
    encoder = {"model": str(data / "bert"), "device": "cpu"}
    sections = {"encoder": encoder, "baseline": {"trees": 20}, "compute": {"threads": 1}}
    return Config.model_validate({"workdir": str(workdir), "train": values | train} | sections)


def vector(text: str) -> list[float]:
    """Return an embedding that tells the labels, with noise that is the text's own."""
    noise = np.random.default_rng(sum(map(ord, text))).normal(0, 0.3, DIM)
    noise[: len(LABELS)] += [label in text.split() for label in LABELS]
    return noise.tolist()


def embed(one: Config) -> None:
    data = BaselineFamily().read(one)
    for examples in (data.train, *data.tests.values()):
        files = open_embeddings(one, examples)
        for shard in files.missing():
            table = examples.corpus.read(shard)
            vectors = np.array([vector(text) for text in table["text"].to_pylist()], np.float16)
            column = matrix_column(vectors, np.ones(len(vectors), np.bool_))
            files.write(shard, pa.table({"id": table["id"], "vector": column}))


@pytest.mark.parametrize("model", ["logistic_regression", "random_forest"])
def test_learns_what_embeddings_tell(data, tmp_path, model):
    one = config(data, tmp_path, model, name="run")
    embed(one)
    [result] = run_training(one)
    assert result["metrics"]["test"]["roc_auc"]["macro"] > 0.9
    assert set(result["metrics"]) == {"dev", "test"}
    assert result["metrics"]["dev"]["num_rows"] + result["train_tweets"] == 90
    assert result["labels"] == LABELS
    assert result["words"] == "bert, frozen embeddings"
    assert (result["epochs"], result["device"]) == (0, "cpu")
    assert "train.lr" not in result["spec"] and result["spec"]["baseline.trees"] == 20
    folder = Workdir(tmp_path).runs / "run"
    info = read_json(folder / "model" / OTHERS)
    assert info["encoder"] == encoder_facts(one.encoder) and info["normaliser"] == "none"
    labels, targets_NC, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    assert labels == LABELS
    ids = pq.read_table(folder / "predictions" / "test.parquet")["id"].to_pylist()
    rows = pq.read_table(data / "test.parquet").to_pylist()
    truth = {row["id"]: [int(label in row["labels"]) for label in LABELS] for row in rows}
    assert targets_NC.tolist() == [truth[one] for one in ids]
    assert ((scores_NC >= 0) & (scores_NC <= 1)).all()


@pytest.mark.parametrize("model", [name for name in BASELINES if name != "naive_bayes"])
def test_what_is_kept_predicts_what_training_did(data, tmp_path, model):
    """With the encoder's own embeddings, and a normaliser that is the encoder's."""
    one = config(data, tmp_path, model, name="run", normaliser="none")
    one = one.model_copy(update={"encoder": one.encoder.model_copy(update={"normaliser": "rescue"})})
    with StopSignals() as signals:
        embed_examples(one, signals=signals)
    run_training(one)
    folder = Workdir(tmp_path).runs / "run"
    _, _, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    rows = pq.read_table(data / "test.parquet").to_pylist()
    text_of = {row["id"]: row["text"] for row in rows}
    ids = pq.read_table(folder / "predictions" / "test.parquet")["id"].to_pylist()
    kept = load_model(folder)
    assert kind_of(folder) == "embeddings"
    np.testing.assert_array_equal(kept.scores([text_of[one] for one in ids]), scores_NC)
    np.testing.assert_array_equal(kept.scores([text_of[ids[3]]]), scores_NC[3:4])


def of_words(data: Path, workdir: Path, model: str = "naive_bayes", *, baseline=None, **train) -> Config:
    found = config(data, workdir, **train)
    values = found.model_dump() | {"baseline": {"features": "tfidf", "trees": 20, "epochs": 60} | (baseline or {})}
    values["train"]["model"] = model
    return Config.model_validate(values)


@pytest.mark.parametrize("model", [name for name in BASELINES if name != "boosting"])
def test_learns_what_words_tell_and_is_kept(data, tmp_path, model):
    one = of_words(data, tmp_path, model, name="run", normaliser="mex_a3t")
    [result] = run_training(one)
    assert not list(tmp_path.rglob("embeddings-*"))
    assert result["metrics"]["test"]["roc_auc"]["macro"] > 0.8
    assert result["words"] == "tfidf"
    assert result["spec"]["train.normaliser"] == "mex_a3t"
    assert result["settings"] == json.loads(json.dumps(settled(model, one.baseline)))
    folder = Workdir(tmp_path).runs / "run"
    kept = load_text_model(folder)
    rows = {row["id"]: row["text"] for row in pq.read_table(data / "test.parquet").to_pylist()}
    ids = pq.read_table(folder / "predictions" / "test.parquet")["id"].to_pylist()
    labels, _, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    np.testing.assert_array_equal(kept.predict([rows[one] for one in ids]), scores_NC)
    assert kept.labels == labels == LABELS
    assert kept.info["metrics"]["test"]["micro_f1"] == result["metrics"]["test"]["micro_f1"]
    assert kept.info["training"]["tweets"] == 63
    assert kept.thresholds == {label: result["metrics"]["test"]["per_label"][label]["threshold"] for label in LABELS}


def test_a_grid_is_searched_and_said(data, tmp_path):
    one = of_words(
        data, tmp_path, "svm", name="run", baseline={"grid": {"C": [0.001, 2.0], "kernel": ["rbf", "linear"]}}
    )
    [result] = run_training(one)
    assert len(result["grid"]) == 4
    assert result["chosen"] == max(result["grid"], key=lambda point: point["f1"])["values"]
    assert result["settings"]["C"] == result["chosen"]["C"] == 2.0
    assert load_text_model(Workdir(tmp_path).runs / "run").info["settings"] == result["settings"]
    assert result["spec"]["baseline.grid"] == {"C": [0.001, 2.0], "kernel": ["rbf", "linear"]}


def test_a_grid_is_searched_on_embeddings_too(data, tmp_path):
    one = config(data, tmp_path, "knn")
    one = one.model_copy(update={"baseline": one.baseline.model_copy(update={"grid": {"k": (1, 5)}})})
    embed(one)
    [result] = run_training(one)
    assert result["chosen"]["k"] in (1, 5)


def test_the_grid_sees_training_tweets_alone(data, tmp_path, monkeypatch):
    learnt = []
    fit = WordFeatures.fit.__func__
    monkeypatch.setattr(
        WordFeatures, "fit", classmethod(lambda cls, texts, **how: learnt.append(list(texts)) or fit(cls, texts, **how))
    )
    one = of_words(data, tmp_path, "knn", folds=3, baseline={"grid": {"k": [1, 2]}})
    results = run_training(one)
    train = BaselineFamily().read(one).train
    texts = train.column("text")
    assert len(learnt) == 3 * 6
    for place, (result, split) in enumerate(
        zip(results, runs.splits_of(one, BaselineFamily(), BaselineFamily().read(one)), strict=True)
    ):
        assert result["fold"] == split.fold
        *inner, whole = learnt[6 * place : 6 * place + 6]
        assert whole == [texts[row] for row in split.train]
        assert all(set(part) < set(whole) for part in inner)


def test_a_lexicon_is_read_and_its_content_decides(data, tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("fear\njoy train\n")
    one = of_words(
        data, tmp_path / "work", "mlp", name="run", baseline={"features": "tfidf+lexicon", "lexicon": str(path)}
    )
    before = BaselineFamily().source(one)
    run_training(one)
    path.write_text("joy\n")
    assert BaselineFamily().source(one) != before
    with pytest.raises(InputError, match="words was"):
        run_training(one)
    path.unlink()
    # What is kept does without the file.
    assert load_text_model(Workdir(tmp_path / "work").runs / "run").predict(["fear"]).shape == (1, 2)
    with pytest.raises(InputError, match=r"baseline.lexicon: .*phrases.txt cannot be read"):
        describe_plan(one)


@pytest.mark.parametrize("model", ["svm", "random_forest", "knn"])
def test_threads_change_nothing(data, tmp_path, model):
    found = []
    for threads in (1, 2):
        one = of_words(
            data, tmp_path / str(threads), model, name="run", baseline={"grid": {"k": [1, 3]}} if model == "knn" else {}
        )
        run_training(one.model_copy(update={"compute": one.compute.model_copy(update={"threads": threads})}))
        found.append((Workdir(tmp_path / str(threads)).runs / "run" / "predictions" / "test.parquet").read_bytes())
    assert found[0] == found[1]


def test_a_second_call_does_nothing(data, tmp_path, monkeypatch):
    one = config(data, tmp_path)
    embed(one)
    first = run_training(one)
    monkeypatch.setattr(runs, "train_split", lambda *_, **__: pytest.fail("fitted again"))
    assert run_training(one) == first


def test_folds_are_those_of_a_classifier(data, tmp_path):
    one = config(data, tmp_path, folds=2)
    embed(one)
    results = run_training(one)
    assert [result["fold"] for result in results] == [0, 1]
    assert all(set(result["metrics"]) == {"dev", "held_out", "test"} for result in results)
    [other] = [
        runs.splits_of(each, runs.family_of(each), BaselineFamily().read(each))
        for each in [config(data, tmp_path, "classifier", encoder=str(data / "bert"), folds=2)]
    ]
    held_out = [
        pq.read_table(Workdir(tmp_path).runs / result["name"] / "predictions" / "held_out.parquet")["id"].to_pylist()
        for result in results
    ]
    train = BaselineFamily().read(one).train
    assert held_out == [train.ids_of(split.held_out.tolist()) for split in other]


def test_the_published_way_chooses_thresholds_on_the_held_out_fold(data, tmp_path):
    one = config(data, tmp_path, folds=2, stop_on="test")
    embed(one)
    for result in run_training(one):
        assert set(result["metrics"]) == {"held_out", "test"}
        assert result["chosen_on"] == "the held-out fold (the published way)"


def test_vectors_are_those_of_the_rows(data, tmp_path):
    one = config(data, tmp_path)
    train = BaselineFamily().read(one).train
    with pytest.raises(InputError, match="train.parquet: not embedded yet") as error:
        vectors_of(one, train, np.arange(train.num_rows))
    assert "\n" not in str(error.value)
    embed(one)
    expected = np.array([vector(text) for text in train.column("text")], np.float16)
    assert np.array_equal(vectors_of(one, train, np.arange(train.num_rows)), expected)


def test_another_encoder_has_embeddings_of_its_own(data, tmp_path):
    one = config(data, tmp_path)
    embed(one)
    train = BaselineFamily().read(one).train
    other = one.model_copy(update={"encoder": one.encoder.model_copy(update={"max_length": 7})})
    assert not open_embeddings(one, train).missing()
    assert open_embeddings(other, train).missing()


def test_several_processes_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="train.processes: logistic_regression is fitted by one process"):
        run_training(config(data, tmp_path, processes=2))


def test_a_stop_is_heeded_between_labels(data, tmp_path):
    one = config(data, tmp_path)
    embed(one)
    signals = StopSignals()
    signals.requested = True
    with pytest.raises(Stopped):
        run_training(one, signals=signals)


def test_the_plan_says_what_would_be_done(data, tmp_path):
    lines = describe_plan(config(data, tmp_path / "work", name="run"))
    assert any(line.startswith("run: 63 tweets, 27 of dev, 0 held out: to do") for line in lines), lines
    assert not (tmp_path / "work").exists()


def test_trees_that_grow_on_ray_are_those_that_grow_here(ray_session, data, tmp_path):
    """A grid and a forest on Ray come to the same bits as on this process's threads."""
    found = []
    for name, compute in (("here", {"threads": 1}), ("ray", {"executor": "ray", "workers": 2, "threads": 1})):
        one = of_words(data, tmp_path / name, "random_forest", name="run", baseline={"grid": {"trees": [4, 7]}})
        run_training(one.model_copy(update={"compute": ComputeConfig.model_validate(compute)}))
        folder = Workdir(tmp_path / name).runs / "run"
        # Of the same estimators skops writes other bytes, as it names arrays by where they lie in memory.
        trees = [
            (tree.tree_.feature.tobytes(), tree.tree_.threshold.tobytes(), tree.tree_.value.tobytes())
            for file in sorted((folder / "model").glob("label-*.skops"))
            for tree in read_estimator(file).estimators_
        ]
        assert len(trees) >= 4 * len(LABELS)
        found.append(((folder / "predictions" / "test.parquet").read_bytes(), trees))
    assert found[0] == found[1]
