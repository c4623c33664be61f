from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import Workdir
from scalemine.training import runs as module
from scalemine.training.family import run_settings
from scalemine.training.folds import Leak
from scalemine.training.runs import describe_plan, family_of, run_name, run_training, splits_of
from scalemine.training.splits import Rows
from training.tweets import config


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
    monkeypatch.setattr(
        "scalemine.training.tagging.trainer._Trainer.fit", lambda *_: (_ for _ in ()).throw(RunError("stop"))
    )
    with caplog.at_level("WARNING", logger="scalemine"), pytest.raises(RunError, match="stop"):
        run_training(config(data, tmp_path, test_uris={"leaky": str(path)}, dev_uri=str(data / "dev.parquet")))
    assert any(
        "leaky shares with the training tweets: exact copies in 30 tweets" in message for message in caplog.messages
    )


@pytest.mark.parametrize("most", [7, 6])
def test_very_many_texts_are_compared_for_copies_alone(data, tmp_path, caplog, monkeypatch, most):
    """At most so many texts of both sets are looked at for near copies; above that only exact ones are found."""
    texts = ["fire at the old mill", "fire at the old mill: two hurt", "so hungry", "monday again"]
    train = Rows(list("abcd"), texts, [[]] * 4, [False] * 4, {"event": ["x", "x", None, "y"], "user": list("pqrs")})
    asked = ["fire at the old mill, one hurt", "So hungry!", "good morning all"]
    test = Rows(list("efg"), asked, [[]] * 3, [False] * 3, {"event": ["x", None, "z"]})
    trainer = SimpleNamespace(sets=["test"], rows={"train": train, "test": test}.get)
    monkeypatch.setattr(module, "_MOST_COMPARED", most)
    with caplog.at_level(logging.INFO, logger="scalemine"):
        found = module._leaks(config(data, tmp_path), trainer)
    copies, near = Leak("exact copies", 1, 1, 1 / 3), Leak("near-duplicates", 2, 2, 2 / 3)
    event = Leak("event", 1, 1, 1 / 3)
    assert found == {"test": [copies, near, event] if most == 7 else [copies, event]}
    [said] = caplog.messages
    assert said.endswith("(compared: texts, event)" if most == 7 else "(compared: texts, for copies only, event)")
    assert ("near-duplicates" in said) == (most == 7)


def test_a_training_set_that_is_used_whole_is_not_gone_through(data, tmp_path, monkeypatch):
    one = config(data, tmp_path, dev_uri=str(data / "dev.parquet"), group_by=["near_duplicates"])
    family = family_of(one)
    read = family.read(one)
    monkeypatch.setattr(family, "rows", lambda *_: pytest.fail("read"))
    [split] = splits_of(one, family, read)
    assert (len(split.train), len(split.dev), len(split.held_out)) == (120, 0, 0)


def test_shared_events_are_said_whatever_folds_are_grouped_by(data, tmp_path):
    test = pq.read_table(data / "test.parquet")
    path = tmp_path / "events.parquet"
    pq.write_table(test.append_column("event", pa.array(["event-3"] * 20 + ["elsewhere"] * 40)), path)
    [result] = run_training(config(data, tmp_path, test_uris={"events": str(path)}, epochs=1))
    [leak] = [leak for leak in result["leaks"]["events"] if leak["kind"] == "event"]
    assert (leak["shared"], leak["rows"]) == (1, 20)
    assert {leak["kind"] for leak in result["leaks"]["dev"]} >= {"event", "exact copies"}


def test_other_files_of_the_encoder_are_another_run(data, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text((data / "vectors.txt").read_text())
    run_training(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))
    vectors.write_text((data / "vectors.txt").read_text() + "extra" + " 1" * 12 + "\n")
    with pytest.raises(InputError, match="words was .*, is "):
        run_training(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))
    with pytest.raises(InputError, match="words was .*, is "):
        describe_plan(config(data, tmp_path, vectors=str(vectors), name="run", epochs=1))


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


def test_a_stop_keeps_the_checkpoint(data, tmp_path):
    signals = StopSignals()
    signals.requested = True
    with pytest.raises(Stopped):
        run_training(config(data, tmp_path), signals=signals)
    assert not list(tmp_path.glob("runs/*"))  # it came before the first run

    class Later(StopSignals):
        """A signal that comes when the first epoch is over."""

        @property
        def requested(self):
            return bool(list(tmp_path.glob("runs/*/checkpoint.json")))

        @requested.setter
        def requested(self, value):
            pass

    with pytest.raises(Stopped):
        run_training(config(data, tmp_path), signals=Later())
    [state] = tmp_path.glob("runs/*/checkpoint.json")
    progress = json.loads(state.read_text())["progress"]
    assert (progress["epoch"], progress["epoch_step"]) == (1, 1)


def test_the_plan_of_a_dry_run_writes_nothing(data, tmp_path):
    lines = describe_plan(config(data, tmp_path / "new", folds=2))
    assert sum("to do" in line for line in lines) == 2
    assert not (tmp_path / "new").exists()


def test_names_tell_settings_apart(data, tmp_path):
    one = config(data, tmp_path)
    family = family_of(one)
    [split] = splits_of(one, family, family.read(one))

    def name(**changes):
        other = config(data, tmp_path, **changes)
        return run_name(other, run_settings(other, family), split)

    assert name() == name(processes=2, checkpoint_steps=9)
    assert name() != name(dropout=0.1)
