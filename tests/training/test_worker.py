from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from scalemine.config import Config
from scalemine.store import read_result
from scalemine.training import processes, worker
from scalemine.training.processes import FAILURE, LOCK, STOPPED


@pytest.fixture
def spec(tmp_path: Path):
    """Write the spec of a small run, with some settings changed; return its folder."""
    train = tmp_path / "train.parquet"
    tweets = [["van", "burns", str(number)] for number in range(30)]
    pq.write_table(pa.table({"tokens": tweets, "tags": [["B-fire", "I-fire", "O"]] * 30}), train)
    (tmp_path / "vectors.txt").write_text("van 1 0 0\nburns 0 1 0\n")

    def write(**changes) -> Path:
        values = {
            "train_uri": str(train), "vectors": str(tmp_path / "vectors.txt"), "epochs": 2, "folds": 2, "device": "cpu",
            "group_by": [], "bootstrap": 0,
        }  # fmt: skip
        config = Config.model_validate({"workdir": str(tmp_path / "work"), "train": values | changes})
        folder = tmp_path / "work" / "runs" / "one"
        folder.mkdir(parents=True)
        spec = {"config": config.model_dump(mode="json"), "fold": 1, "folder": str(folder)}
        (folder / "spec.json").write_text(json.dumps(spec))
        return folder

    return write


def test_does_the_run_that_the_spec_describes(spec, monkeypatch):
    folder = spec()
    monkeypatch.setattr(sys, "argv", ["worker", str(folder / "spec.json")])
    worker.main()
    result = read_result(folder)
    assert result is not None
    assert (result["fold"], result["processes"]) == (1, 1)
    assert result["metrics"]["held_out"]["num_tweets"] == 15


def test_what_is_wrong_is_left_for_who_started_it(spec, monkeypatch):
    folder = spec(train_uri="nowhere.parquet")
    monkeypatch.setattr(sys, "argv", ["worker", str(folder / "spec.json")])
    with pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == 1
    said = json.loads((folder / FAILURE).read_text())
    assert said["is_input"]
    assert "no such file: nowhere.parquet" in said["message"]


def test_a_run_that_others_are_at_is_refused(spec, monkeypatch):
    folder = spec()
    monkeypatch.setattr(sys, "argv", ["worker", str(folder / "spec.json")])
    monkeypatch.setattr(processes, "WAIT_SECONDS", 0.1)
    with FileLock(folder.with_name(f".{folder.name}{LOCK}")), pytest.raises(SystemExit):
        worker.main()
    assert "still at this run" in json.loads((folder / FAILURE).read_text())["message"]
    assert read_result(folder) is None


def test_a_stop_is_left_for_who_started_it(spec, monkeypatch):
    folder = spec()
    monkeypatch.setattr(sys, "argv", ["worker", str(folder / "spec.json")])

    class Requested(worker.StopSignals):
        def __enter__(self):
            self.requested = True
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(worker, "StopSignals", Requested)
    worker.main()
    assert (folder / STOPPED).exists()
    assert read_result(folder) is None
    assert (folder / "checkpoint.json").exists()


def test_stops_when_who_started_it_is_gone(monkeypatch):
    asked = []
    parents = iter([7, 7, 1])
    monkeypatch.setattr(worker, "PARENT_SECONDS", 0)
    monkeypatch.setattr(worker.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(worker.os, "kill", lambda *arguments: asked.append(arguments))
    worker._stop_with_parent(7)
    assert asked == [(worker.os.getpid(), worker.signal.SIGTERM)]
