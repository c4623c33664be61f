from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from scalemine.config import Config, InputError
from scalemine.training import evaluation as module
from scalemine.training.evaluation import evaluate_classifier, evaluate_tagger, is_classifier
from scalemine.training.runs import run_training
from training.tiny import write_bert
from training.tweets import config

TELLING = {"fire": "fire", "crash": "bus", "harm": "hurt"}
NUM_BOOTSTRAP = 20


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"scalemine": {"kind": "classifier"}}', True),
        ('{"scalemine": {"kind": "another"}}', False),
        ('{"scalemine": "tagger"}', False),
        ('{"model_type": "bert"}', False),
        ('["classifier"]', False),
        ('{"scalemine": {"kind"', False),
    ],
)
def test_a_classifier_is_told_by_its_configuration(tmp_path, content, expected):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text(content)
    assert is_classifier(str(tmp_path / "run" / "model")) is expected
    assert is_classifier(str(tmp_path / "run")) is expected  # a run's folder, which holds the model
    assert not is_classifier(str(tmp_path))


@pytest.mark.parametrize(("kind", "expected"), [("classifier", True), ("tagger", False)])
def test_a_classifier_of_the_hub_is_told_by_its_configuration(tmp_path, monkeypatch, kind, expected):
    asked = []

    def download(repo_id, filename):
        asked.append((repo_id, filename))
        path = tmp_path / "cache" / filename
        path.parent.mkdir()
        path.write_text(json.dumps({"scalemine": {"kind": kind}}))
        return str(path)

    monkeypatch.setattr(module, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert is_classifier("someone/hub-model") is expected
    assert asked == [("someone/hub-model", "config.json")]  # and nothing more
    # What can only be a folder is asked of nobody.
    for name in ("nowhere/at/all", "./nowhere", "~/nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=r"^MODEL: .*nowhere.*: no such folder"):
            is_classifier(name)
    (tmp_path / "someone" / "hub-model").mkdir(parents=True)
    assert not is_classifier("someone/hub-model")  # a folder here comes first
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot be found\nand more lines"),  # offline
        HfHubHTTPError("404: no such file\nand more", response=SimpleNamespace(headers={}, request=None)),
        OSError("no route to host\nand more"),
    ],
)
def test_what_the_hub_does_not_give_is_no_tagger(monkeypatch, error):
    def download(*_):
        raise error

    monkeypatch.setattr(module, "hf_hub_download", download)
    said = str(error).split("\n")[0]
    with pytest.raises(InputError, match=rf"^someone/model: .*the hub does not give it \({said}\)$"):
        is_classifier("someone/model")


@pytest.mark.parametrize("name", ["not a name", "someone/-"])
def test_no_name_of_the_hub(name):
    with pytest.raises(InputError, match="the hub does not give it") as caught:
        is_classifier(name)
    assert "\n" not in str(caught.value)


# Taggers


def test_a_tagger_has_the_scores_that_its_run_gave(data, tmp_path, caplog):
    [result] = run_training(config(data, tmp_path, epochs=8, bootstrap=NUM_BOOTSTRAP))
    run, test = str(tmp_path / "runs" / result["name"]), str(data / "test.parquet")
    found = evaluate_tagger(run, [test, str(data / "dev.parquet")], num_bootstrap=NUM_BOOTSTRAP)
    assert list(found) == [test, str(data / "dev.parquet")]
    scores, of_run = json.loads(json.dumps(found[test])), result["metrics"]["test"]
    assert of_run["f1"] > 0.3
    # What was seen in training is known to the run alone; how a file was read, to who reads it.
    differing = {name for name in scores.keys() | of_run.keys() if scores.get(name) != of_run.get(name)}
    assert differing == {"seen", "unseen", "num_inexact"}
    assert (scores.get("seen"), of_run.get("num_inexact")) == (None, None)
    assert found[test]["num_tweets"] == 60
    assert not [message for message in caplog.messages if "knows no spans" in message]


def test_spans_of_a_type_that_a_tagger_does_not_know(data, tmp_path, caplog):
    [result] = run_training(config(data, tmp_path, epochs=1))
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"tokens": [["a", "riot"]], "tags": [["O", "B-riot"]]}), path)
    with caplog.at_level("WARNING", logger="scalemine"):
        found = evaluate_tagger(str(tmp_path / "runs" / result["name"]), [str(path)], num_bootstrap=0)
    assert found[str(path)]["per_type"]["riot"]["recall"] == 0
    assert f"{path}: the model knows no spans of type riot, and misses all of them" in caplog.messages


def test_files_are_read_before_the_model(tmp_path):
    with pytest.raises(InputError, match=r"^SET: no such file: nowhere\.parquet"):
        evaluate_tagger("no/model", ["nowhere.parquet"], num_bootstrap=0)


# Classifiers


def write_labelled(path: Path, num_tweets: int, seed: int, *, column: str = "marks", labels=tuple(TELLING)) -> Path:
    """Write tweets whose labels their words tell, as lists of labels."""
    chance = random.Random(seed)
    rows = []
    for number in range(num_tweets):
        marks = [label for label in labels if chance.random() < 0.4]
        words = [*(TELLING.get(label, "old") for label in marks), "near", "the", "bridge", f"w{seed}n{number}"]
        language = chance.choice(["en", "es"])
        rows.append({"id": f"{seed}-{number}", "text": " ".join(words), column: marks, "language": language})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> tuple[Path, dict, Path]:
    """The folder of a classifier's run, its result, and its test file."""
    folder = tmp_path_factory.mktemp("classified")
    test = write_labelled(folder / "test.parquet", 40, 2)
    values = {
        "workdir": str(folder / "work"), "compute": {"threads": 1},
        "labels": {"column": "marks", "groups": ["language"]},
        "train": {
            "model": "classifier", "train_uri": str(write_labelled(folder / "train.parquet", 60, 1)),
            "test_uris": {"test": str(test)}, "encoder": str(write_bert(folder / "encoder")), "device": "cpu",
            "precision": "float32", "epochs": 2, "batch_size": 16, "lr": 1e-3, "group_by": [],
            "max_length": 32, "bootstrap": NUM_BOOTSTRAP,
        },
    }  # fmt: skip
    [result] = run_training(Config.model_validate(values))
    return folder / "work" / "runs" / result["name"], result, test


def test_a_classifier_has_the_scores_that_its_run_gave(classified, tmp_path):
    run, result, test = classified
    assert is_classifier(str(run))
    found = evaluate_classifier(str(run), [str(test)], num_bootstrap=NUM_BOOTSTRAP)
    assert list(found) == [str(test)]
    check_equal(json.loads(json.dumps(found[str(test)])), result["metrics"]["test"])
    # Nothing is left beside the file or the model.
    assert {path.name for path in test.parent.iterdir()} == {"encoder", "test.parquet", "train.parquet", "work"}


def check_equal(one, other, where: str = "") -> None:
    """Compare nested scores; the network rounds otherwise in other batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            check_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        for number, (mine, its) in enumerate(zip(one, other, strict=True)):
            check_equal(mine, its, f"{where}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4), where
    else:
        assert one == other, where


def test_the_training_file_is_told_of(classified, caplog):
    run, _, test = classified
    train = test.with_name("train.parquet")
    with caplog.at_level("WARNING", logger="scalemine"):
        evaluate_classifier(str(run), [str(test), str(train)], num_bootstrap=0)
    [told] = [message for message in caplog.messages if "flattered" in message]
    assert told.startswith(f"{train}: the model was trained on this file")


def test_labels_that_a_classifier_does_not_know(classified, tmp_path, caplog):
    run, _, _ = classified
    path = write_labelled(tmp_path / "more.parquet", 30, 3, labels=("fire", "riot"))
    with caplog.at_level("WARNING", logger="scalemine"):
        found = evaluate_classifier(str(run), [str(path)], num_bootstrap=0)
    assert set(found[str(path)]["per_label"]) == set(TELLING)
    assert f"{path}: labels that the model does not know are left out: 'riot' (13 tweets)" in caplog.messages
    path = write_labelled(tmp_path / "other.parquet", 30, 3, labels=("riot",))
    with pytest.raises(InputError, match=r"^SET: .*no tweet bears one of the model's labels: crash, fire, harm$"):
        evaluate_classifier(str(run), [str(path)], num_bootstrap=0)


def test_files_that_cannot_be_read_as_the_training_was(classified, tmp_path):
    run, _, _ = classified
    with pytest.raises(InputError, match=r"^SET nowhere\.parquet: matches no file"):
        evaluate_classifier(str(run), ["nowhere.parquet"], num_bootstrap=0)
    path = write_labelled(tmp_path / "other.parquet", 9, 4, column="labels")
    with pytest.raises(InputError, match="no column marks"):
        evaluate_classifier(str(run), [str(path)], num_bootstrap=0)
