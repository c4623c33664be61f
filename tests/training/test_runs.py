from __future__ import annotations

import contextlib
import json
import os
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

from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import Workdir
from scalemine.training import runs as module
from scalemine.training.folds import near_duplicate_groups
from scalemine.training.runs import describe_plan, plan_splits, read_data, run_name, run_training
from scalemine.training.tagging.datasets import read_dataset
from scalemine.training.tagging.tagger import load_tagger

PLACES = ["oak street", "the mill", "harbour road", "the old bridge", "north gate"]
THINGS = ["bus", "van", "fire", "flood", "tree"]
CHATTER = ["so hungry", "my phone is dying", "this mixtape is fire", "good morning all", "monday again"]
VERBS = {"crashed": "traffic", "burns": "fire", "overflowed": "flood"}


def sentence(chance: random.Random) -> tuple[list[str], list[str]]:
    """Return a tweet and its tags: what happened, with where, is a span of the type that the verb tells."""
    words, tags = chance.choice(CHATTER).split(), []
    tags = ["O"] * len(words)
    if chance.random() < 0.6:
        verb = chance.choice(list(VERBS))
        event = [chance.choice(THINGS), verb, "at", *chance.choice(PLACES).split()]
        words += [*event, f"x{chance.randrange(10**6)}"]
        tags += [f"B-{VERBS[verb]}", *[f"I-{VERBS[verb]}"] * (len(event) - 1), "O"]
    return words, tags


def write_tweets(path: Path, num_tweets: int, seed: int, **columns: list[str]) -> Path:
    chance = random.Random(seed)
    rows = [sentence(chance) for _ in range(num_tweets)]
    rows = [([*words, f"w{seed}n{number}"], [*tags, "O"]) for number, (words, tags) in enumerate(rows)]
    table = {"tokens": [words for words, _ in rows], "tags": [tags for _, tags in rows], **columns}
    pq.write_table(pa.table(table | {"id": [f"{path.stem}-{number}" for number in range(num_tweets)]}), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Tweets to learn from, and static vectors of their words, as a folder."""
    folder = tmp_path_factory.mktemp("tweets")
    events = [f"event-{number % 30}" for number in range(120)]
    write_tweets(folder / "train.parquet", 120, 1, event=events)
    write_tweets(folder / "dev.parquet", 40, 2)
    write_tweets(folder / "test.parquet", 60, 3)
    generator = np.random.default_rng(0)
    words = sorted({w for text in [*PLACES, *CHATTER] for w in text.split()} | {*THINGS, *VERBS, "at"})
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in generator.standard_normal(12))}" for word in words]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def settings(data: Path, workdir: Path, **train) -> dict:
    values = {
        "train_uri": str(data / "train.parquet"), "test_uris": {"test": str(data / "test.parquet")},
        "vectors": str(data / "vectors.txt"), "hidden": 8, "crf": "fast", "lr": 1e-3, "head_lr": 0.02, "epochs": 3,
        "batch_size": 8, "bootstrap": 20, "device": "cpu", "group_by": [],
    }  # fmt: skip
    return {"workdir": str(workdir), "compute": {"threads": 1}, "train": values | train}


def config(data: Path, workdir: Path, **train) -> Config:
    return Config.model_validate(settings(data, workdir, **train))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(np.abs(one[name] - other[name]).max() <= tolerance for name in one)


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


def test_every_run_leaves_its_rows_in_the_results(data, tmp_path):
    results = run_training(config(data, tmp_path, folds=2, epochs=1))
    table = pq.read_table(Workdir(tmp_path).results)
    rows = {(row["fold"], row["test_set"], row["metric"]): row["value"] for row in table.to_pylist()}
    for result in results:
        for name, metrics in result["metrics"].items():
            assert rows[result["fold"], name, "f1"] == metrics["f1"]
            assert rows[result["fold"], name, "strict_iob2.recall"] == metrics["strict_iob2"]["recall"]
    assert len({result["name"] for result in results}) == 2
    assert not list(tmp_path.rglob("checkpoint*"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".bin", ".pt")]


def test_a_second_call_does_nothing_and_another_configuration_is_refused(data, tmp_path, monkeypatch):
    first = run_training(config(data, tmp_path, name="one", epochs=1))
    monkeypatch.setattr(module, "train_split", lambda *_, **__: pytest.fail("trained again"))
    assert run_training(config(data, tmp_path, name="one", epochs=1)) == first
    with pytest.raises(InputError, match="train.lr was 0.001, is 0.5"):
        run_training(config(data, tmp_path, name="one", epochs=1, lr=0.5))
    monkeypatch.undo()
    [again] = run_training(config(data, tmp_path, name="one", epochs=1, lr=0.5), redo=True)
    assert again["spec"]["train.lr"] == 0.5


def test_another_test_set_is_scored_without_training_again(data, tmp_path, monkeypatch):
    [before] = run_training(config(data, tmp_path, epochs=2))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests))
    assert after["metrics"]["test"] == before["metrics"]["test"]
    assert after["metrics"]["more"]["num_tweets"] == 40
    assert after["history"] == before["history"]


def test_folds_are_the_same_for_every_arm_and_kept_apart_from_the_seed(data, tmp_path):
    def parts(**changes):
        one = Config.model_validate(settings(data, tmp_path, folds=3, group_by=["event"]) | changes)
        train = read_data(one).train
        return train, [(set(split.train), set(split.dev), set(split.held_out)) for split in plan_splits(one, train)]

    train, splits = parts()
    assert parts(seed=7)[1] == splits
    assert (
        parts(train=settings(data, tmp_path, folds=3, group_by=["event"], model="linear", lr=0.1)["train"])[1] == splits
    )
    assert parts(train=settings(data, tmp_path, folds=3, group_by=["event"], fold_seed=1)["train"])[1] != splits
    events = [document.columns["event"] for document in train.documents]
    for fit_rows, dev, held_out in splits:
        assert sorted([*fit_rows, *dev, *held_out]) == list(range(120))
        of_part = [{events[row] for row in part} for part in (fit_rows, dev, held_out)]
        assert not of_part[0] & of_part[1] and not of_part[0] & of_part[2] and not of_part[1] & of_part[2]
    assert sorted(row for _, _, held_out in splits for row in held_out) == list(range(120))


def test_the_published_way_is_marked(data, tmp_path):
    [one, _] = run_training(config(data, tmp_path, folds=2, stop_on="test", epochs=1))
    assert "held-out fold (the published way)" in one["chosen_on"]
    assert set(one["metrics"]) == {"held_out", "test"}
    with pytest.raises(ValueError, match="train.folds of at least 2"):
        config(data, tmp_path, stop_on="test")


def test_a_dev_file_chooses_the_epoch(data, tmp_path):
    [result] = run_training(config(data, tmp_path, dev_uri=str(data / "dev.parquet"), epochs=2))
    assert result["metrics"]["dev"]["num_tweets"] == 40
    assert result["train_tweets"] == 120
    assert result["chosen_on"].endswith("dev.parquet")
    best = max(epoch["score"] for epoch in result["history"])
    assert result["metrics"]["dev"]["f1"] == pytest.approx(best, abs=1e-12)


def test_leaks_are_said_before_training(data, tmp_path, caplog, monkeypatch):
    train = pq.read_table(data / "train.parquet").to_pylist()
    test = pq.read_table(data / "test.parquet").to_pylist()
    path = tmp_path / "leaky.parquet"
    pq.write_table(pa.Table.from_pylist([*test, *({**row, "id": "copy"} for row in train[:30])]), path)
    monkeypatch.setattr("scalemine.training.runs._Trainer.fit", lambda *_: (_ for _ in ()).throw(RunError("stop")))
    with caplog.at_level("WARNING", logger="scalemine"), pytest.raises(RunError, match="stop"):
        run_training(config(data, tmp_path, test_uris={"leaky": str(path)}, dev_uri=str(data / "dev.parquet")))
    assert any(
        "leaky shares with the training tweets: exact copies in 30 tweets" in message for message in caplog.messages
    )


def test_shared_events_are_said_whatever_folds_are_grouped_by(data, tmp_path):
    test = pq.read_table(data / "test.parquet")
    path = tmp_path / "events.parquet"
    pq.write_table(test.append_column("event", pa.array(["event-3"] * 20 + ["elsewhere"] * 40)), path)
    [result] = run_training(config(data, tmp_path, test_uris={"events": str(path)}, epochs=1))
    [leak] = [leak for leak in result["leaks"]["events"] if leak["kind"] == "event"]
    assert (leak["shared"], leak["rows"]) == (1, 20)
    assert {leak["kind"] for leak in result["leaks"]["dev"]} >= {"event", "exact copies"}


def test_positives_lie_in_the_same_folds_whatever_negatives_there_are(data, tmp_path):
    tweets = pq.read_table(data / "train.parquet", columns=["tokens", "tags", "id"]).to_pylist()
    chance = random.Random(5)

    def held_out(name: str, num_negatives: int) -> dict[str, int | None]:
        # Copies of positives and of one another among them.
        words = [
            chance.choice([["so", "hungry", f"n{number}"], tweets[number % 7]["tokens"]])
            for number in range(num_negatives)
        ]
        rows = [{**row, "is_negative": False} for row in tweets]
        rows += [
            {"tokens": each, "tags": ["O"] * len(each), "id": f"{name}{number}", "is_negative": True}
            for number, each in enumerate(words)
        ]
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(chance.sample(rows, len(rows))), path)
        one = config(data, tmp_path, train_uri=str(path), folds=4, group_by=["near_duplicates"])
        train = read_data(one).train
        return {train.documents[row].id: split.fold for split in plan_splits(one, train) for row in split.held_out}

    without, some, many = held_out("none", 0), held_out("some", 50), held_out("many", 300)
    few = held_out("few", 2)  # fewer than folds
    assert len(few) == 122
    assert all(few[row["id"]] == without[row["id"]] for row in tweets)
    assert len(many) == 420
    for row in tweets:
        assert without[row["id"]] == some[row["id"]] == many[row["id"]]


def test_other_files_of_the_encoder_are_another_run(data, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text((data / "vectors.txt").read_text())
    run_training(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))
    vectors.write_text((data / "vectors.txt").read_text() + "extra" + " 1" * 12 + "\n")
    with pytest.raises(InputError, match="words was .*, is "):
        run_training(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))
    with pytest.raises(InputError, match="words was .*, is "):
        describe_plan(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))


def test_two_processes_score_another_test_set(data, tmp_path):
    run_training(config(data, tmp_path, epochs=2))
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests, processes=2))
    assert after["metrics"]["more"]["num_tweets"] == 40
    assert after["processes"] == 2


def test_a_choosing_set_without_spans_is_refused(data, tmp_path):
    path = tmp_path / "dev.parquet"
    pq.write_table(pa.table({"tokens": [["so", "hungry"]], "tags": [["O", "O"]]}), path)
    with pytest.raises(InputError, match="no tweet bears a span, so it cannot choose"):
        run_training(config(data, tmp_path, dev_uri=str(path)))


@pytest.mark.parametrize("name", ["dev", "held_out", "train"])
def test_names_of_parts_are_no_names_of_test_sets(data, tmp_path, name):
    with pytest.raises(ValueError, match="is the name of a part of the training set"):
        config(data, tmp_path, test_uris={name: str(data / "test.parquet")})


def test_nothing_of_this_machine_is_in_the_artefact(data, tmp_path):
    [result] = run_training(config(data, tmp_path, epochs=1, dev_uri=str(data / "dev.parquet")))
    for path in (tmp_path / "runs" / result["name"] / "model").rglob("*"):
        if path.is_file():
            assert str(data).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_keeps_the_checkpoint(data, tmp_path, processes):
    signals = StopSignals()
    if processes == 1:
        signals.requested = True
        with pytest.raises(Stopped):
            run_training(config(data, tmp_path), signals=signals)
        return
    # Another process asks this one to stop, as a scheduler would.
    with StopSignals() as listening:
        child = subprocess.Popen([sys.executable, "-c", STOPPER, str(tmp_path), str(os.getpid())])
        with pytest.raises(Stopped):
            run_training(config(data, tmp_path, processes=2, epochs=400, patience=400), signals=listening)
        child.wait()
    assert list(tmp_path.glob("runs/*/checkpoint.json"))
    left = [one.cmdline() for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    assert not [command for command in left if "scalemine.training.worker" in command]


STOPPER = """
import os, signal, sys, time
from pathlib import Path
until = time.monotonic() + 120
while not list(Path(sys.argv[1]).glob("runs/*/checkpoint.json")) and time.monotonic() < until:
    time.sleep(0.05)
os.kill(int(sys.argv[2]), signal.SIGTERM)
"""


def test_two_processes_do_what_one_does(data, tmp_path):
    """At equal global batch: the same losses, scores and predictions, and weights but for rounding."""
    [one] = run_training(config(data, tmp_path / "one", dropout=0.0))
    [two] = run_training(config(data, tmp_path / "two", dropout=0.0, processes=2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for before, after in zip(one["history"], two["history"], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-4)
        assert before["score"] == after["score"]
    assert one["metrics"] == two["metrics"]
    assert one["lr_check"] == two["lr_check"]
    folders = [Workdir(tmp_path / name).runs / one["name"] for name in ("one", "two")]
    assert equal(weights(folders[0]), weights(folders[1]), 1e-3)


def step_of(state: Path) -> int:
    return json.loads(state.read_text())["progress"]["step"] if state.exists() else -1


def kill_session(leader: int) -> None:
    """Kill a process and all that it started, which have groups of their own."""
    parents = psutil.Process(leader)
    for process in [*parents.children(recursive=True), parents]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def test_killed_in_mid_epoch_with_two_processes(data, tmp_path):
    """Kill -9 of everything, then the same command: the weights of the unbroken run, bit for bit, with dropout."""
    train = {"processes": 2, "epochs": 12, "patience": 12, "checkpoint_steps": 3, "name": "run"}
    [unbroken] = run_training(config(data, tmp_path / "unbroken", **train))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(data, tmp_path / "broken", **train)), encoding="utf-8")
    command = [sys.executable, "-m", "scalemine", "train", str(path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = tmp_path / "broken" / "runs" / "run" / "checkpoint.json"
    try:
        while process.poll() is None and step_of(state) < 17:
            time.sleep(0.005)
    finally:
        kill_session(process.pid)
        process.wait()
    assert 17 <= step_of(state) < 12 * 14, "it had ended before it was killed"
    [again] = run_training(config(data, tmp_path / "broken", **train))
    folders = [tmp_path / name / "runs" / "run" for name in ("unbroken", "broken")]
    assert equal(weights(folders[0]), weights(folders[1]))
    assert again["metrics"] == unbroken["metrics"]
    assert [epoch["loss"] for epoch in again["history"]] == [epoch["loss"] for epoch in unbroken["history"]]


def test_a_failure_in_one_of_two_processes_is_said(data, tmp_path):
    with pytest.raises(RunError, match="stopped; the checkpoint before it is kept"):
        run_training(config(data, tmp_path, processes=2, head_lr=1e30, lr=1e30, clip=1e30))
    with pytest.raises(InputError, match="train.vectors: no such file"):
        run_training(config(data, tmp_path, processes=2, vectors="nowhere.txt"))
    assert not [path for path in tmp_path.rglob("*") if path.name in (module.SPEC, module.FAILURE, module.STOPPED)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"folds": 200}, "200 folds need as many groups"),
        ({"train_uri": "nowhere.parquet"}, "no such file: nowhere.parquet"),
        ({"vectors": "nowhere.txt"}, "train.vectors: no such file"),
        ({"vectors": None, "encoder": "./nowhere"}, "train.encoder: no such folder"),
        ({"group_by": ["author"]}, "no column author"),
        ({"train_uri": None, "test_uris": {}, "train_set": "4s"}, "no set '4s'"),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, train, message):
    with pytest.raises(InputError, match=message) as caught:
        run_training(config(data, tmp_path, **train))
    assert "\n" not in str(caught.value)


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


def test_curves_are_tracked(data, tmp_path, monkeypatch):
    run_training(config(data, tmp_path, epochs=1).model_copy(update={"tracking": "tensorboard"}))
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents*"))
    assert all(name in content for name in (b"loss", b"lr", b"score"))
    monkeypatch.setattr(module, "get_available_trackers", list)
    with pytest.raises(InputError, match="tracking: wandb is not installed here"):
        run_training(config(data, tmp_path / "new", epochs=1).model_copy(update={"tracking": "wandb"}))


def test_the_plan_of_a_dry_run_writes_nothing(data, tmp_path):
    lines = describe_plan(config(data, tmp_path / "new", folds=2))
    assert sum("to do" in line for line in lines) == 2
    assert not (tmp_path / "new").exists()


def test_names_tell_settings_apart(data, tmp_path):
    one = config(data, tmp_path)
    [split] = plan_splits(one, read_data(one).train)
    assert run_name(one, split) == run_name(config(data, tmp_path, processes=2, checkpoint_steps=9), split)
    assert run_name(one, split) != run_name(config(data, tmp_path, dropout=0.1), split)


@pytest.mark.data
def test_crisis_folds_part_no_near_duplicates(tmp_path):
    path = Path(os.environ.get("SCALEMINE_DATA", "../shared/data")) / "crisis_spans_train.parquet"
    if not path.exists():
        pytest.skip(f"the real tweets are not at {path.parent}")
    one = Config.model_validate({"workdir": str(tmp_path), "train": {"train_uri": str(path), "folds": 5}})
    train = read_data(one).train
    groups = near_duplicate_groups([document.text for document in train.documents])
    for split in plan_splits(one, train):
        sides = [{groups[row] for row in part} for part in (split.train, split.dev, split.held_out)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert abs(len(split.held_out) - len(train.documents) / 5) < 20
