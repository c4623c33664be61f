from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from scalemine.config import WORD_NETWORKS, Config, InputError
from scalemine.executor import Stopped
from scalemine.store import STATE, read_json
from scalemine.training.evaluation import evaluate_classifier, is_classifier
from scalemine.training.kept import load_model
from scalemine.training.multilabel import trainer as module
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.runs import run_training

SIGNS = {"fear": ["fire", "crash"], "joy": ["shop", "dance"]}
LABELS = sorted(SIGNS)
FILLERS = ["the", "old", "bridge", "bus", "in", "into", "a", "two", "#", ","]


def write_tweets(path: Path, number: int, seed: int) -> Path:
    chance = random.Random(seed)
    rows = []
    for row in range(number):
        labels = [label for label in LABELS if chance.random() < 0.4]
        words = [chance.choice(SIGNS[label]) for label in labels] + chance.choices(FILLERS, k=chance.randint(1, 5))
        chance.shuffle(words)
        rows.append({"id": f"{path.stem}{row}", "text": " ".join(words), "labels": labels})
    rows[3] |= {"text": "!", "labels": []}
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tweets")
    write_tweets(folder / "train.parquet", 160, 1)
    write_tweets(folder / "test.parquet", 60, 3)
    lines = [
        f"{word} {' '.join(str((len(word) * place) % 5 / 5) for place in range(6))}"
        for word in FILLERS[:6] + ["fire", "smoke"]
    ]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    return folder


def config(data: Path, workdir: Path, labels: dict | None = None, **train) -> Config:
    values = {
        "train_uri": str(data / "train.parquet"), "test_uris": {"test": str(data / "test.parquet")},
        "model": "text_cnn", "name": "run", "dimensions": 8, "hidden": 12, "lr": 0.01, "batch_size": 8, "epochs": 2,
        "bootstrap": 0, "device": "cpu", "group_by": [], "dev_share": 0.3, "normaliser": "rescue", "max_length": 6,
    }  # fmt: skip
    values = {key: value for key, value in (values | train).items() if value is not None}
    return Config.model_validate(
        {"workdir": str(workdir), "compute": {"threads": 1}, "labels": labels or {}, "train": values}
    )


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "runs" / "run" / "model" / "model.safetensors")


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_learns_and_what_is_kept_scores_as_it_did(data, tmp_path, model):
    [result] = run_training(config(data, tmp_path, model=model, epochs=8))
    scores = result["metrics"]["test"]
    assert scores["roc_auc"]["macro"] > 0.85
    assert result["labels"] == LABELS and result["model"] == model and result["lr_check"]["equal"]
    assert result["words"] == "vectors of 8 dimensions, learnt"
    folder = tmp_path / "runs" / "run"
    assert not list(folder.glob("checkpoint*")) and not list(folder.glob("best-*"))
    labels, targets_NC, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    texts = {row["id"]: row["text"] for row in pq.read_table(data / "test.parquet").to_pylist()}
    ids = pq.read_table(folder / "predictions" / "test.parquet")["id"].to_pylist()
    kept = load_model(folder, device="cpu")
    assert labels == kept.labels
    assert np.array_equal(kept.predict([texts[one] for one in ids]), scores_NC)
    assert is_classifier(str(folder))
    [again] = evaluate_classifier(str(folder), [str(data / "test.parquet")], num_bootstrap=0).values()
    assert again["roc_auc"] == scores["roc_auc"] and again["micro_f1"] == scores["micro_f1"]
    # Scored again on other sets: the same model.
    before = weights(tmp_path)
    tests = {"test": str(data / "test.parquet"), "more": str(data / "train.parquet")}
    [after] = run_training(config(data, tmp_path, model=model, epochs=8, test_uris=tests))
    assert after["metrics"]["test"] == scores and "more" in after["metrics"]
    assert equal(before, weights(tmp_path))
    assert read_json(folder / "model" / "model.json")["metrics"].keys() == {"dev", "test", "more"}


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_a_run_that_is_stopped_ends_with_the_same_weights(data, tmp_path, model):
    run_training(config(data, tmp_path / "whole", model=model))
    if model == "text_cnn":
        run_training(config(data, tmp_path / "twice", model=model))
        assert equal(weights(tmp_path / "whole"), weights(tmp_path / "twice"))
        run_training(config(data, tmp_path / "other", model=model).model_copy(update={"seed": 7}))
        assert not equal(weights(tmp_path / "whole"), weights(tmp_path / "other"))

    class Halfway:
        steps = 0

        @property
        def requested(self):
            self.steps += 1
            return self.steps > 20  # in the second epoch

        def raise_if_requested(self):
            pass

    with pytest.raises(Stopped):
        run_training(config(data, tmp_path / "stopped", model=model), signals=Halfway())
    assert (tmp_path / "stopped" / "runs" / "run" / STATE).exists()
    [result] = run_training(config(data, tmp_path / "stopped", model=model))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert len(result["history"]) == 2


@pytest.mark.parametrize("freeze", [False, True])
def test_static_vectors(data, tmp_path, freeze):
    options = {"vectors": str(data / "vectors.txt"), "freeze": freeze, "dimensions": None}
    [result] = run_training(config(data, tmp_path, **options))
    assert result["words"] == f"vectors.txt, {'frozen' if freeze else 'tuned'}"
    vocabulary = read_json(tmp_path / "runs" / "run" / "model" / "vocabulary.json")
    assert vocabulary == [*FILLERS[:6], "fire", "smoke"]  # a word that training has not, too
    table_VD = weights(tmp_path)["words.table.weight"]
    given_VD = np.loadtxt(data / "vectors.txt", usecols=range(1, 7)).astype(np.float32)
    assert np.array_equal(table_VD[1:], given_VD) == freeze
    assert not freeze or not table_VD[0].any()


def test_nested_labels(data, tmp_path):
    labels = {"names": LABELS, "nested": [["fear", "joy"]]}
    table = pq.read_table(data / "train.parquet").to_pylist()
    rows = [row | {"labels": LABELS if "fear" in row["labels"] else row["labels"]} for row in table]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    run_training(config(tmp_path, tmp_path / "w", labels, test_uris={}))
    _, _, scores_NC = read_predictions(tmp_path / "w" / "runs" / "run" / "predictions" / "dev.parquet")
    assert (scores_NC[:, 1] >= scores_NC[:, 0]).all()
    texts = [row["text"] for row in rows]
    scores_NC = load_model(tmp_path / "w" / "runs" / "run").predict(texts)
    assert (scores_NC[:, 1] >= scores_NC[:, 0]).all()


def test_pseudo_labels_of_unknown_entries(data, tmp_path):
    """What the loss asks for beside the batch works here as for other classifiers."""
    rows = pq.read_table(data / "train.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[:80]), tmp_path / "dev.parquet")
    values = config(data, tmp_path, dev_uri=str(tmp_path / "dev.parquet"), epochs=3).model_dump()
    values["labels"]["absent"] = "unknown"
    values["loss"] |= {"name": "em", "em_warmup": 1}
    [result] = run_training(Config.model_validate(values))
    assert len(result["history"]) == 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vectors": "nowhere.txt"}, "train.vectors: no such file"),
        ({"test_uris": {"test": "nowhere.parquet"}}, "nowhere.parquet"),
    ],
)
def test_refuses_files_that_are_not_there(data, tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        run_training(config(data, tmp_path, **changes))


def test_a_trained_model_is_not_trained_again(data, tmp_path, monkeypatch):
    [first] = run_training(config(data, tmp_path))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert run_training(config(data, tmp_path)) == [first]
