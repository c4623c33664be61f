from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import Config, InputError
from scalemine.executor import Stopped, StopSignals
from scalemine.shards import matrix_column
from scalemine.store import Workdir
from scalemine.training import runs
from scalemine.training.multilabel.baseline_trainer import BaselineFamily, open_embeddings, vectors_of
from scalemine.training.multilabel.data import read_predictions
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
    assert not (folder / "model").exists()
    labels, targets_NC, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    assert labels == LABELS
    ids = pq.read_table(folder / "predictions" / "test.parquet")["id"].to_pylist()
    rows = pq.read_table(data / "test.parquet").to_pylist()
    truth = {row["id"]: [int(label in row["labels"]) for label in LABELS] for row in rows}
    assert targets_NC.tolist() == [truth[one] for one in ids]
    assert ((scores_NC >= 0) & (scores_NC <= 1)).all()


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
