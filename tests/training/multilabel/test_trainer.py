from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file
from transformers import pipeline

from scalemine.config import Config, InputError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import read_json
from scalemine.training.multilabel import trainer as module
from scalemine.training.multilabel.classifier import load_classifier
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.runs import run_training
from training.tiny import write_bert

SIGNS = {"fear": ["fire", "crash"], "joy": ["shop", "near"], "pain": ["hurt"]}
LABELS = list(SIGNS)
NUM_TRAIN = 200
FILLERS = ["the", "old", "bridge", "bus", "in", "into", "a", "two", "#", ","]


def tweet(chance: random.Random) -> tuple[str, list[str]]:
    """Return a tweet whose words tell its labels."""
    labels = [label for label in LABELS if chance.random() < 0.35]
    words = [chance.choice(SIGNS[label]) for label in labels] + chance.choices(FILLERS, k=chance.randint(1, 5))
    chance.shuffle(words)
    return " ".join(words), labels


def write_tweets(path: Path, number: int, seed: int, **columns: list) -> Path:
    chance = random.Random(seed)
    rows = [tweet(chance) for _ in range(number)]
    table = {"id": [f"{path.stem}{n}" for n in range(number)], "text": [text for text, _ in rows]}
    pq.write_table(pa.table(table | {"labels": [labels for _, labels in rows]} | columns), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Tweets to learn from, and an encoder without dropout, as a folder."""
    folder = tmp_path_factory.mktemp("tweets")
    events = [f"event-{number % 30}" for number in range(NUM_TRAIN)]
    languages = ["en" if number % 3 else "fr" for number in range(NUM_TRAIN)]
    write_tweets(folder / "train.parquet", NUM_TRAIN, 1, event=events, lang=languages)
    write_tweets(folder / "dev.parquet", 90, 2)
    write_tweets(folder / "test.parquet", 60, 3, lang=["en", "fr"] * 30)
    write_bert(folder / "bert", num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_bert(folder / "dropout", num_hidden_layers=1)
    return folder


def settings(data: Path, workdir: Path, labels: dict | None = None, loss: dict | None = None, **train) -> dict:
    values = {
        "train_uri": str(data / "train.parquet"), "test_uris": {"test": str(data / "test.parquet")},
        "model": "classifier", "encoder": str(data / "bert"), "max_length": 24, "lr": 3e-3, "head_lr": 0.01,
        "epochs": 3, "batch_size": 8, "bootstrap": 20, "device": "cpu", "precision": "float32", "group_by": [],
        "dev_share": 0.3,
    }  # fmt: skip
    return {
        "workdir": str(workdir), "compute": {"threads": 1}, "labels": labels or {}, "loss": loss or {},
        "train": values | train,
    }  # fmt: skip


def config(data: Path, workdir: Path, labels: dict | None = None, loss: dict | None = None, **train) -> Config:
    return Config.model_validate(settings(data, workdir, labels, loss, **train))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(np.abs(one[name] - other[name]).max() <= tolerance for name in one)


def tweets_of(predictions: Path, file: Path) -> list[dict]:
    """Return the tweets of a file in the order of the predictions, where copies of a text lie together."""
    by_id = {row["id"]: row for row in pq.read_table(file).to_pylist()}
    ids = pq.read_table(predictions)["id"].to_pylist()
    assert sorted(ids) == sorted(by_id)
    return [by_id[one] for one in ids]


def dev_of(data: Path) -> dict:
    return {"dev_uri": str(data / "dev.parquet")}


# From tweets to a classifier


def test_learns_what_is_there_to_be_learnt(data, tmp_path):
    [result] = run_training(config(data, tmp_path, {"groups": ["lang"]}, epochs=6, name="run"))
    scores = result["metrics"]["test"]
    assert scores["roc_auc"]["macro"] > 0.95
    assert "no better than" not in scores["verdict"]["text"]
    assert set(result["metrics"]) == {"dev", "test"}
    assert result["metrics"]["dev"]["num_rows"] + result["train_tweets"] == NUM_TRAIN
    assert set(scores["groups"]["lang"]) == {"en", "fr"}
    assert result["labels"] == sorted(LABELS)
    wanted = {"name", "spec", "fold", "seed", "model", "metrics", "scoring", "leaks", "history", "lr_check", "loss"}
    assert wanted | {"best_epoch", "chosen_on", "train_cut", "versions", "device", "words"} <= set(result)
    assert result["lr_check"]["equal"]
    assert result["history"][-1]["loss"] < 0.5 * result["history"][0]["loss"]
    folder = tmp_path / "runs" / "run"
    assert not list(folder.glob("checkpoint*")) and not list(folder.glob("best-*"))
    best = max(epoch["score"] for epoch in result["history"])
    assert result["metrics"]["dev"]["roc_auc"]["macro"] == pytest.approx(best, abs=1e-6)
    # The folder is a plain model: what transformers makes of it are the scores that were written.
    chain = pipeline("text-classification", model=str(folder / "model"), top_k=None, device="cpu")
    labels, targets_NC, scores_NC = read_predictions(folder / "predictions" / "test.parquet")
    table = tweets_of(folder / "predictions" / "test.parquet", data / "test.parquet")
    assert targets_NC.tolist() == [[int(label in row["labels"]) for label in labels] for row in table]
    for row, found, expected in zip(table, chain([row["text"] for row in table]), scores_NC, strict=True):
        by_label = {one["label"]: one["score"] for one in found}
        assert [by_label[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5), row["id"]
    classifier = load_classifier(folder, device="cpu")
    assert np.allclose(classifier.scores([row["text"] for row in table]), scores_NC, atol=1e-5)
    info = read_json(folder / "model" / "config.json")["scalemine"]
    assert info["languages"].keys() == {"en", "fr"}
    assert info["priors"].keys() == info["thresholds"].keys() == set(LABELS)
    for path in (folder / "model").rglob("*"):
        assert not path.is_file() or str(data).encode() not in path.read_bytes(), path


def test_a_second_call_does_nothing_and_another_test_set_is_only_scored(data, tmp_path, monkeypatch):
    [first] = run_training(config(data, tmp_path, epochs=2))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert run_training(config(data, tmp_path, epochs=2)) == [first]
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests))
    for name in ("dev", "test"):
        old, new = first["metrics"][name], after["metrics"][name]
        assert new["roc_auc"] == pytest.approx(old["roc_auc"]), name
        assert new["micro_f1"] == old["micro_f1"]
        assert [one["threshold"] for one in new["per_label"].values()] == [
            one["threshold"] for one in old["per_label"].values()
        ]
    assert after["metrics"]["more"]["num_rows"] == 90
    assert after["history"] == first["history"]


def test_test_targets_decide_nothing(data, tmp_path):
    """Another test file, of the same tweets with other labels: the same model and thresholds, other scores."""
    rows = pq.read_table(data / "test.parquet").to_pylist()
    other = [row | {"labels": [label for label in LABELS if label not in row["labels"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(other), tmp_path / "other.parquet")
    found = []
    for name, path in (("one", data / "test.parquet"), ("two", tmp_path / "other.parquet")):
        [result] = run_training(config(data, tmp_path / name, epochs=2, name="run", test_uris={"test": str(path)}))
        info = read_json(tmp_path / name / "runs" / "run" / "model" / "config.json")["scalemine"]
        found.append((weights(tmp_path / name / "runs" / "run"), info, result))
    (one, info, result), (two, other_info, other_result) = found
    assert equal(one, two)
    for key in ("thresholds", "calibration", "priors"):
        assert info[key] == other_info[key]
    assert result["metrics"]["dev"] == other_result["metrics"]["dev"]
    assert result["metrics"]["test"]["roc_auc"] != other_result["metrics"]["test"]["roc_auc"]


@pytest.mark.parametrize("calibration", ["none", "temperature", "platt"])
def test_calibration_is_in_the_weights(data, tmp_path, calibration):
    labels = {"calibration": calibration, "names": LABELS, "threshold": "best" if calibration == "platt" else 0.4}
    run_training(config(data, tmp_path, labels, epochs=2, name="run", **dev_of(data)))
    info = read_json(tmp_path / "runs" / "run" / "model" / "config.json")["scalemine"]
    slopes, offsets = (list(one) for one in zip(*info["calibration"].values(), strict=True))
    assert (slopes == [1.0] * 3) == (calibration == "none")
    assert any(offsets) == (calibration == "platt")
    assert (set(info["thresholds"].values()) == {0.4}) == (calibration != "platt")
    names, targets_NC, scores_NC = read_predictions(tmp_path / "runs" / "run" / "predictions" / "dev.parquet")
    assert names == LABELS
    if calibration == "platt":  # mean probabilities are then about the shares of the labels
        assert np.abs(scores_NC.mean(0) - targets_NC.mean(0)).max() < 0.03


@pytest.mark.parametrize("select", ["macro_roc_auc", "micro_roc_auc", "macro_average_precision"])
def test_what_chooses_the_epoch(data, tmp_path, select):
    labels = {"select": select, "calibration": "none"}
    [result] = run_training(config(data, tmp_path, labels, epochs=2, name="run", **dev_of(data)))
    scores = result["metrics"]["dev"]
    average, measure = select.split("_", 1)
    best = max(epoch["score"] for epoch in result["history"])
    assert scores[measure][average] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("name", ["bce", "focal", "asl", "dice", "db", "em"])
def test_every_loss_learns(data, tmp_path, name):
    loss = {"name": name, "unknown": "ignore"} | ({"em_warmup": 2} if name == "em" else {})
    rows = pq.read_table(data / "train.parquet").to_pylist()
    # A part is unknown, as mined negatives are.
    rows = [row | {"is_negative": n % 10 == 0, "weight": 0.0 if n % 10 == 5 else 0.7} for n, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    [result] = run_training(
        config(data, tmp_path / "work", {}, loss, epochs=8, train_uri=str(tmp_path / "train.parquet"), **dev_of(data))
    )
    losses = [epoch["loss"] for epoch in result["history"]]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    # Dice has the smallest gradients of all, and would take more epochs.
    assert result["metrics"]["test"]["roc_auc"]["macro"] > (0.5 if name == "dice" else 0.8)


def test_labels_that_are_absent_are_unknown_in_training_alone(data, tmp_path):
    """Learnt from positives alone by pseudo-labels, and judged on tweets whose labels are all known."""
    rows = pq.read_table(data / "train.parquet").to_pylist()
    chance = random.Random(0)  # a third of the positives was not seen
    rows = [row | {"labels": [label for label in row["labels"] if chance.random() < 0.67]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    loss = {"name": "em", "em_warmup": 4}
    train = {"train_uri": str(tmp_path / "train.parquet"), "name": "run", "epochs": 8, **dev_of(data)}
    [result] = run_training(config(data, tmp_path / "work", {"absent": "unknown"}, loss, **train))
    folder = tmp_path / "work" / "runs" / "run"
    info = read_json(folder / "model" / "config.json")["scalemine"]
    dev = pq.read_table(data / "dev.parquet")["labels"].to_pylist()  # what is not known in training is known there
    assert info["priors"] == {label: sum(label in row for row in dev) / len(dev) for label in info["priors"]}
    assert info["reading"]["absent"] == "negative"
    for name in ("dev", "test"):
        path = folder / "predictions" / f"{name}.parquet"
        labels, targets_NC, _ = read_predictions(path)
        table = tweets_of(path, data / f"{name}.parquet")
        assert targets_NC.tolist() == [[int(label in row["labels"]) for label in labels] for row in table]
        assert result["metrics"][name]["num_known"] == 3 * len(table)
    assert result["metrics"]["test"]["roc_auc"]["macro"] > 0.7


@pytest.mark.parametrize("options", [{"freeze": True}, {"lora": 2}, {"gradient_checkpointing": True, "micro_batch": 3}])
def test_ways_to_tune(data, tmp_path, options):
    [result] = run_training(config(data, tmp_path, epochs=2, name="run", **options))
    classifier = load_classifier(tmp_path / "runs" / "run", device="cpu")
    path = tmp_path / "runs" / "run" / "predictions" / "test.parquet"
    _, _, scores_NC = read_predictions(path)
    texts = [row["text"] for row in tweets_of(path, data / "test.parquet")]
    assert np.allclose(classifier.scores(texts), scores_NC, atol=1e-5)
    words = {"freeze": "bert, frozen", "lora": "bert, adapted"}
    assert result["words"] == words.get(next(iter(options)), "bert, fine-tuned")
    before, after = load_file(data / "bert" / "model.safetensors"), weights(tmp_path / "runs" / "run")
    name = "encoder.layer.0.attention.self.query.weight"
    assert np.array_equal(before[name], after[f"bert.{name}"]) == ("freeze" in options)


def test_nested_labels_keep_their_order(data, tmp_path):
    chance, rows = random.Random(0), []
    for number in range(260):
        text, labels = tweet(chance)
        rows.append({"id": str(number), "text": text, "near": int("fear" in labels), "far": int(bool(labels))})
    pq.write_table(pa.Table.from_pylist(rows[:200]), tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[200:]), tmp_path / "test.parquet")
    labels = {"columns": ["near", "far"], "names": ["near", "far"], "nested": [["near", "far"]]}
    files = {"train_uri": str(tmp_path / "train.parquet"), "test_uris": {"test": str(tmp_path / "test.parquet")}}
    [result] = run_training(config(data, tmp_path / "work", labels, name="run", epochs=5, **files))
    folder = tmp_path / "work" / "runs" / "run"
    for path in (folder / "predictions").iterdir():
        _, _, scores_NC = read_predictions(path)
        assert (scores_NC[:, 0] <= scores_NC[:, 1]).all()
    info = read_json(folder / "model" / "config.json")["scalemine"]
    assert info["calibration"]["near"] == info["calibration"]["far"]
    assert info["thresholds"]["far"] <= info["thresholds"]["near"]
    assert result["metrics"]["test"]["roc_auc"]["macro"] > 0.8


def test_labels_that_no_text_tells_are_no_better_than_the_prior(data, tmp_path):
    """Micro ROC-AUC rewards who knows which labels are frequent; the verdict is not taken in."""
    chance = random.Random(0)
    shares = {"common": 0.8, "usual": 0.4, "rare": 0.1}
    for name, number in (("train", 300), ("test", 300)):
        rows = [
            {
                "id": f"{name}{n}", "text": " ".join(chance.choices(FILLERS, k=8)),
                "labels": [label for label, share in shares.items() if chance.random() < share],
            }
            for n in range(number)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    files = {"train_uri": str(tmp_path / "train.parquet"), "test_uris": {"test": str(tmp_path / "test.parquet")}}
    [result] = run_training(config(data, tmp_path / "work", {"select": "micro_roc_auc"}, bootstrap=200, **files))
    scores = result["metrics"]["test"]
    assert scores["roc_auc"]["micro"] > 0.6
    low, high = scores["intervals"]["roc_auc_macro"]
    assert low < 0.5 < high
    assert "no better than" in scores["verdict"]["text"]


# Folds


def test_folds_share_no_event(data, tmp_path):
    results = run_training(config(data, tmp_path, folds=3, group_by=["event"], epochs=1, name="run"))
    train = {row["id"]: row["event"] for row in pq.read_table(data / "train.parquet").to_pylist()}
    held_out = []
    for fold, result in enumerate(results):
        folder = tmp_path / "runs" / f"run-fold{fold}"
        parts = {
            name: pq.read_table(folder / "predictions" / f"{name}.parquet")["id"].to_pylist()
            for name in ("dev", "held_out")
        }
        held_out += parts["held_out"]
        used = set(train) - set(parts["dev"]) - set(parts["held_out"])
        assert len(used) == result["train_tweets"]
        of_part = [{train[one] for one in part} for part in (used, parts["dev"], parts["held_out"])]
        assert not of_part[0] & of_part[1] and not of_part[0] & of_part[2] and not of_part[1] & of_part[2]
        assert not [leak for leak in result["leaks"]["held_out"] if leak["kind"] == "event" and leak["rows"]]
    assert sorted(held_out) == sorted(train)


def test_the_published_way(data, tmp_path):
    results = run_training(config(data, tmp_path, {"select": "micro_roc_auc"}, folds=2, stop_on="test", epochs=1))
    for result in results:
        assert set(result["metrics"]) == {"held_out", "test"}
        assert "held-out fold (the published way)" in result["chosen_on"]
        assert result["metrics"]["held_out"]["num_rows"] + result["train_tweets"] == NUM_TRAIN


# Corners


def test_batches_larger_than_the_training_set(data, tmp_path):
    [result] = run_training(config(data, tmp_path, epochs=2, batch_size=1_000))
    assert result["lr_check"]["steps_applied"] == 2


def test_rows_that_all_weigh_nothing(data, tmp_path):
    rows = [row | {"weight": 0.0} for row in pq.read_table(data / "train.parquet").to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.train_uri: .*train.parquet: every tweet weighs 0"):
        run_training(config(data, tmp_path / "work", train_uri=str(tmp_path / "train.parquet")))


def test_a_label_that_dev_has_none_of(data, tmp_path):
    rows = pq.read_table(data / "dev.parquet").to_pylist()
    rows = [row | {"labels": [label for label in row["labels"] if label != "pain"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dev.parquet")
    [result] = run_training(config(data, tmp_path / "work", dev_uri=str(tmp_path / "dev.parquet"), epochs=2))
    assert result["metrics"]["dev"]["per_label"]["pain"]["roc_auc"] is None
    assert result["metrics"]["dev"]["num_undefined"] == 1
    assert result["metrics"]["test"]["per_label"]["pain"]["roc_auc"] > 0.5


def test_no_tweet_of_a_set_has_a_known_label(data, tmp_path):
    rows = [row | {"is_negative": True} for row in pq.read_table(data / "test.parquet").to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "unknown.parquet")
    tests = {"unknown": str(tmp_path / "unknown.parquet")}
    [result] = run_training(config(data, tmp_path / "work", epochs=1, test_uris=tests))
    assert result["metrics"]["unknown"]["num_known"] == 0
    assert result["metrics"]["unknown"]["roc_auc"]["macro"] is None
    with pytest.raises(InputError, match=r"train.dev_uri: .*unknown.parquet: no tweet bears a label"):
        run_training(config(data, tmp_path / "work", epochs=1, dev_uri=tests["unknown"]))
    with pytest.raises(InputError, match=r"train.train_uri: .*no tweet bears the label"):
        run_training(config(data, tmp_path / "work", epochs=1, train_uri=tests["unknown"]))


@pytest.mark.parametrize(
    ("labels", "train", "message"),
    [
        ({}, {"encoder": "./nowhere"}, "train.encoder: no such folder"),
        ({}, {"max_length": 65}, "train.max_length: .* reads at most 64 tokens, got 65"),
        ({"nested": [["fear", "all"]]}, {}, "labels.nested: "),
        ({"nested": [["fear", "joy"], ["joy", "fear"]]}, {}, "labels.nested: .*circle"),
        ({"names": ["fear", "riot"]}, {}, "train.train_uri: .*no tweet bears the label 'riot'"),
        ({"column": "event"}, {}, "train.test_uris.test: .*no column event"),
        ({}, {"group_by": ["author"]}, "train.train_uri: .*no column author"),
        ({}, {"folds": 999}, "999 folds need as many groups"),
        ({}, {"dev_uri": "nowhere.parquet"}, "train.dev_uri.* nowhere.parquet: matches no file"),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, labels, train, message):
    with pytest.raises(InputError, match=message) as caught:
        run_training(config(data, tmp_path, labels, **train))
    assert "\n" not in str(caught.value)


# Runs that end too soon, and runs of several processes


def test_a_stop_in_mid_epoch_changes_nothing(data, tmp_path, monkeypatch):
    """Stopped by a signal in the second epoch, with pseudo-labels and dropout: the weights of an unbroken run."""
    train = {"epochs": 3, "name": "run", "encoder": str(data / "dropout"), "patience": 9, **dev_of(data)}
    labels, loss = {"absent": "unknown"}, {"name": "em", "em_warmup": 1}
    [unbroken] = run_training(config(data, tmp_path / "unbroken", labels, loss, **train))
    signals = StopSignals()
    collate = module.ClassifierTask.collate
    calls = iter(range(10**6))

    def stop_soon(self, rows):
        signals.requested = next(calls) == 31
        return collate(self, rows)

    monkeypatch.setattr(module.ClassifierTask, "collate", stop_soon)
    with pytest.raises(Stopped):
        run_training(config(data, tmp_path / "broken", labels, loss, **train), signals=signals)
    monkeypatch.undo()
    state = read_json(tmp_path / "broken" / "runs" / "run" / "checkpoint.json")["progress"]
    assert (state["epoch"], state["step"]) == (1, 32)
    assert 0 < state["epoch_step"] < 25
    [again] = run_training(config(data, tmp_path / "broken", labels, loss, **train))
    assert equal(*(weights(tmp_path / name / "runs" / "run") for name in ("unbroken", "broken")))
    assert again["metrics"] == unbroken["metrics"]


def step_of(state: Path) -> int:
    return json.loads(state.read_text())["progress"]["step"] if state.exists() else -1


def kill_session(leader: int) -> None:
    """Kill a process and all that it started, which have groups of their own."""
    parents = psutil.Process(leader)
    for process in [*parents.children(recursive=True), parents]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_mid_epoch(data, tmp_path, processes):
    """Kill -9 of everything, then the same command: the weights of the unbroken run, bit for bit, with dropout."""
    train = {"processes": processes, "epochs": 12, "patience": 12, "checkpoint_steps": 3, "name": "run"}
    train |= {"encoder": str(data / "dropout"), **dev_of(data)}
    labels, loss = {"absent": "unknown"}, {"name": "em", "em_warmup": 1}
    [unbroken] = run_training(config(data, tmp_path / "unbroken", labels, loss, **train))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(data, tmp_path / "broken", labels, loss, **train)), encoding="utf-8")
    command = [sys.executable, "-m", "scalemine", "train", str(path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = tmp_path / "broken" / "runs" / "run" / "checkpoint.json"
    try:
        while process.poll() is None and step_of(state) < 33:
            time.sleep(0.005)
    finally:
        kill_session(process.pid)
        process.wait()
    assert 33 <= step_of(state) < 12 * 25, "it had ended before it was killed"
    [again] = run_training(config(data, tmp_path / "broken", labels, loss, **train))
    assert equal(*(weights(tmp_path / name / "runs" / "run") for name in ("unbroken", "broken")))
    assert again["metrics"] == unbroken["metrics"]
    assert [epoch["loss"] for epoch in again["history"]] == [epoch["loss"] for epoch in unbroken["history"]]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"name": "em", "em_warmup": 1}])
def test_two_processes_do_what_one_does(data, tmp_path, loss):
    """At equal global batch: the same losses and scores, and weights but for rounding."""
    labels, dev = ({"absent": "unknown"}, dev_of(data)) if loss else ({}, {})
    [one] = run_training(config(data, tmp_path / "one", labels, loss, name="run", **dev))
    [two] = run_training(config(data, tmp_path / "two", labels, loss, name="run", **dev, processes=2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for before, after in zip(one["history"], two["history"], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-3)
        assert before["score"] == pytest.approx(after["score"], abs=1e-3)
    assert one["lr_check"] == two["lr_check"]
    assert equal(*(weights(tmp_path / name / "runs" / "run") for name in ("one", "two")), 1e-3)
    tests = {"more": str(data / "dev.parquet")}
    [more] = run_training(config(data, tmp_path / "two", labels, loss, name="run", **dev, processes=2, test_uris=tests))
    assert more["metrics"]["more"]["num_rows"] == 90
