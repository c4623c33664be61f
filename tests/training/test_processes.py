from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from scalemine.config import InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import Workdir
from scalemine.training import processes as module
from scalemine.training.runs import run_training
from training.tweets import config, equal, settings, weights


def test_two_processes_score_another_test_set(data, tmp_path):
    run_training(config(data, tmp_path, epochs=2))
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests, processes=2))
    assert after["metrics"]["more"]["num_tweets"] == 40
    assert after["processes"] == 2


def test_a_stop_keeps_the_checkpoint(data, tmp_path):
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


def test_curves_are_tracked(data, tmp_path, monkeypatch):
    run_training(config(data, tmp_path, epochs=1).model_copy(update={"tracking": "tensorboard"}))
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents*"))
    assert all(name in content for name in (b"loss", b"lr", b"score"))
    monkeypatch.setattr(module, "get_available_trackers", list)
    with pytest.raises(InputError, match="tracking: wandb is not installed here"):
        run_training(config(data, tmp_path / "new", epochs=1).model_copy(update={"tracking": "wandb"}))
