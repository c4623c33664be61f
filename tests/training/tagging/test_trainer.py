from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import InputError, RunError
from scalemine.training.runs import run_training
from scalemine.training.tagging import trainer as module
from scalemine.training.tagging.datasets import read_dataset
from scalemine.training.tagging.tagger import load_tagger
from training.tweets import config


def test_learns_what_is_there_to_be_learnt(data, tmp_path):
    [result] = run_training(config(data, tmp_path, epochs=12))
    scores = result["metrics"]["test"]
    assert scores["f1"] > 0.9
    assert result["lr_check"]["equal"]
    assert result["lr_check"]["steps_applied"] == 14 * result["epochs"]  # 108 tweets to train on, by 8
    assert result["metrics"]["dev"]["num_tweets"] + result["train_tweets"] == 120
    tagger = load_tagger(tmp_path / "runs" / result["name"])
    gold = read_dataset(str(data / "test.parquet"))
    predicted = tagger.tag_words([document.words for document in gold.documents])
    correct = sum(one == list(document.tags) for one, document in zip(predicted, gold.documents, strict=True))
    assert correct >= 54
    [spans] = tagger.tag(["good morning all bus crashed at the mill x1"])
    assert [(span.text, span.type) for span in spans] == [("bus crashed at the mill", "traffic")]
    assert 0 < spans[0].confidence <= 1


def test_another_test_set_is_scored_without_training_again(data, tmp_path, monkeypatch):
    [before] = run_training(config(data, tmp_path, epochs=2))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests))
    assert after["metrics"]["test"] == before["metrics"]["test"]
    assert after["metrics"]["more"]["num_tweets"] == 40
    assert after["history"] == before["history"]


def test_a_choosing_set_without_spans_is_refused(data, tmp_path):
    path = tmp_path / "dev.parquet"
    pq.write_table(pa.table({"tokens": [["so", "hungry"]], "tags": [["O", "O"]]}), path)
    with pytest.raises(InputError, match="no tweet bears a span, so it cannot choose"):
        run_training(config(data, tmp_path, dev_uri=str(path)))


def test_nothing_of_this_machine_is_in_the_artefact(data, tmp_path):
    [result] = run_training(config(data, tmp_path, epochs=1, dev_uri=str(data / "dev.parquet")))
    for path in (tmp_path / "runs" / result["name"] / "model").rglob("*"):
        if path.is_file():
            assert str(data).encode() not in path.read_bytes(), path


def test_types_that_training_has_none_of(data, tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"tokens": [["a", "riot"]], "tags": [["O", "B-riot"]]}), path)
    with pytest.raises(InputError, match="spans of type riot, of which .*train.parquet has none"):
        run_training(config(data, tmp_path, test_uris={"other": str(path)}))
    [result] = run_training(config(data, tmp_path, test_uris={"other": str(path)}, unseen_types="count", epochs=1))
    assert result["metrics"]["other"]["per_type"]["riot"]["recall"] == 0


def test_a_training_set_without_spans(data, tmp_path):
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"tokens": [["a", "b"]] * 9, "tags": [["O", "O"]] * 9}), path)
    with pytest.raises(InputError, match="nothing to learn"):
        run_training(config(data, tmp_path, train_uri=str(path)))


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path):
    lines = (data / "vectors.txt").read_text().splitlines()
    big = tmp_path / "vectors.txt"
    big.write_text("\n".join([f"{lines[0].split(' ')[0]} {' '.join(['3e38'] * 12)}", *lines[1:]]) + "\n")
    with pytest.raises(RunError, match=r"tweets train-\d+.*lower train.lr"):
        run_training(config(data, tmp_path, vectors=str(big), model="linear", head_lr=10.0))
