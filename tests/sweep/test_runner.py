from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped
from scalemine.store import STATE, Workdir, read_json
from scalemine.sweep import runner as module
from scalemine.sweep.plan import mark_of
from scalemine.sweep.runner import LOGS, STOP, Ran, Runner, Unit
from scalemine.training import processes, runs
from scalemine.training.processes import LOCK, StopFile, hold_run
from scalemine.training.runs import prepare, run_state
from training.tweets import config, equal, weights

logger = logging.getLogger("scalemine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the sweep."""
    return tmp_path / "sweeps" / "lr"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the program says by its log, set up as the command line does it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before = list(logger.handlers), logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel("INFO")
    yield lines
    logger.handlers, logger.level, logger.propagate = before


def unit_of(one: Config, fold: int | None = None) -> Unit:
    """Return a unit as the sweep makes it."""
    prepared = prepare(one)
    return Unit(one, fold, run_state(one, prepared, prepared.split(fold)).name)


def run_folder(unit: Unit) -> Path:
    return Workdir(unit.config.workdir).runs / unit.run


def invented(tmp_path: Path, run: str = "run", **train: Any) -> Unit:
    """Return a unit of which nothing is read, for where the run itself is another function."""
    return Unit(Config.model_validate({"workdir": str(tmp_path), "train": {"train_uri": "x", **train}}), None, run)


@pytest.fixture
def in_place_of_a_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has units do something else."""

    def replace(action: Any) -> None:
        monkeypatch.setattr(module, "prepare", lambda _: SimpleNamespace(split=lambda _: None))
        monkeypatch.setattr(module, "run_split", action)

    return replace


# What becomes of a unit


def test_a_unit_is_done_and_found_finished_again(
    data: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of(config(data, tmp_path, folds=2, epochs=1), fold=1)
    assert Runner(folder, "call", None)(unit) == Ran("finished")
    result = run_folder(unit) / "result.json"
    assert (read_json(result)["fold"], read_json(result)["name"]) == (1, unit.run)
    before = result.stat().st_mtime_ns
    monkeypatch.setattr(runs, "train_split", lambda *_, **__: pytest.fail("trained again"))
    assert Runner(folder, "call", None)(unit) == Ran("finished")
    assert result.stat().st_mtime_ns == before
    assert not list(tmp_path.rglob("*.running.json"))


def test_a_request_to_stop_that_is_there_before(tmp_path: Path, folder: Path, in_place_of_a_run: Any) -> None:
    in_place_of_a_run(lambda *_, **__: pytest.fail("begun"))
    folder.mkdir(parents=True)
    (folder / STOP).touch()
    assert Runner(folder, "call", None)(invented(tmp_path)) == Ran("stopped")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_stopped_goes_on_where_it_was(
    data: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsInTheMiddle(StopFile):
        asked = 0

        @property
        def requested(self) -> bool:
            self.asked += 1
            if self.asked == 20:
                self.path.touch()
            return super().requested

    unbroken, broken = (unit_of(config(data, tmp_path / name)) for name in ("unbroken", "broken"))
    assert Runner(folder, "call", None)(unbroken) == Ran("finished")
    monkeypatch.setattr(module, "StopFile", StopsInTheMiddle)
    assert Runner(folder, "call", None)(broken) == Ran("stopped")
    assert read_json(run_folder(broken) / STATE)["progress"]["step"] == 19
    assert not (run_folder(broken) / "result.json").exists()
    assert not mark_of(run_folder(broken)).exists()
    monkeypatch.undo()
    (folder / STOP).unlink()
    assert Runner(folder, "call", None)(broken) == Ran("finished")
    assert "going on from step 19" in (folder / LOGS / f"{broken.run}.log").read_text()
    assert equal(weights(run_folder(unbroken)), weights(run_folder(broken)))


def test_a_failure_comes_back_in_one_line_and_goes_no_further(data: Path, tmp_path: Path, folder: Path) -> None:
    runner = Runner(folder, "call", None)
    wild = unit_of(config(data, tmp_path, head_lr=1e30, clip=1e30))
    ran = runner(wild)
    assert ran.outcome == "failed"
    assert "stopped; the checkpoint before it is kept" in ran.said
    assert "\n" not in ran.said
    assert not mark_of(run_folder(wild)).exists()
    nowhere = Unit(config(data, tmp_path, train_uri=str(tmp_path / "nowhere.parquet")), None, "nowhere")
    ran = runner(nowhere)
    assert ran.outcome == "failed"
    assert f"train.train_uri: no such file: {tmp_path / 'nowhere.parquet'}" in ran.said
    # The same process does the next one as if nothing had been.
    tame, alone = (unit_of(config(data, tmp_path / name, epochs=1)) for name in ("tame", "alone"))
    assert runner(tame) == Ran("finished")
    assert Runner(folder, "call", None)(alone) == Ran("finished")
    assert equal(weights(run_folder(tame)), weights(run_folder(alone)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Stopped(), Ran("stopped")),
        (InputError("no such thing"), Ran("failed", "no such thing")),
        (RunError("the loss is nan"), Ran("failed", "the loss is nan")),
    ],
)
def test_how_a_run_can_end(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, error: Exception, expected: Ran
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    in_place_of_a_run(fail)
    assert Runner(folder, "call", None)(invented(tmp_path)) == expected
    assert not mark_of(tmp_path / "runs" / "run").exists()


def test_what_is_no_known_failure_is_raised_and_leaves_nothing(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, said: list[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk on fire")

    in_place_of_a_run(fail)
    handlers, level = list(logger.handlers), logger.level
    with pytest.raises(OSError, match="disk on fire"):
        Runner(folder, "call", None)(invented(tmp_path))
    assert not mark_of(tmp_path / "runs" / "run").exists()
    assert (logger.handlers, logger.level, handlers[0].filters) == (handlers, level, [])
    with hold_run(tmp_path / "runs" / "run"):
        pass


# The log


def test_what_a_run_says_goes_to_its_log_alone(data: Path, tmp_path: Path, folder: Path, said: list[str]) -> None:
    one, other = (unit_of(config(data, tmp_path, epochs=1, dev_share=share)) for share in (0.1, 0.2))
    runner = Runner(folder, "call", None)
    for unit in (one, other):
        assert runner(unit) == Ran("finished")
    assert said == []
    assert sorted(path.stem for path in (folder / LOGS).iterdir()) == sorted([one.run, other.run])
    assert " WARNING test shares with the training tweets: " in (folder / LOGS / f"{one.run}.log").read_text()
    runner(one)
    assert f"{one.run}: finished before" in (folder / LOGS / f"{one.run}.log").read_text()
    assert "finished before" not in (folder / LOGS / f"{other.run}.log").read_text()
    logger.info("between the runs")
    assert said == ["between the runs"]


def test_what_other_threads_say_is_not_the_runs(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, said: list[str]
) -> None:
    def talk(*_: Any, **__: Any) -> None:
        logging.getLogger("scalemine.training.loop").info("of the run")
        other = threading.Thread(target=lambda: logging.getLogger("scalemine.sweep.driver").warning("of another"))
        other.start()
        other.join()

    in_place_of_a_run(talk)
    Runner(folder, "call", None)(invented(tmp_path))
    assert said == ["of another"]
    log = (folder / LOGS / "run.log").read_text()
    assert log.endswith(" INFO of the run\n")
    assert log.count("\n") == 1


@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_the_level_of_the_log_is_the_users(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, said: list[str], level: str
) -> None:
    def talk(*_: Any, **__: Any) -> None:
        logger.info("of the run")
        other = threading.Thread(target=lambda: logger.info("of another"))
        other.start()
        other.join()

    in_place_of_a_run(talk)
    logger.setLevel(level)
    Runner(folder, "call", None)(invented(tmp_path))
    assert "of the run" in (folder / LOGS / "run.log").read_text()
    assert said == (["of another"] if level == "DEBUG" else [])
    assert logger.level == getattr(logging, level)


def test_a_worker_that_has_set_up_no_log_writes_one(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    logger.handlers = []
    logger.setLevel(logging.NOTSET)
    in_place_of_a_run(lambda *_, **__: logger.info("of the run"))
    Runner(folder, "call", None)(invented(tmp_path))
    assert "of the run" in (folder / LOGS / "run.log").read_text()
    assert capfd.readouterr() == ("", "")


# What a process keeps


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, in_place_of_a_run: Any) -> list[str]:
    """What is read, in order; the runs themselves do nothing."""
    found: list[str] = []

    def read(one: Config) -> Any:
        found.append(str(one.train.train_uri))
        return SimpleNamespace(split=lambda _: None)

    in_place_of_a_run(lambda *_, **__: None)
    monkeypatch.setattr(module, "prepare", read)
    return found


def test_data_is_read_once_for_all_runs_that_share_it(tmp_path: Path, folder: Path, reads: list[str]) -> None:
    runner = Runner(folder, "call", None)
    for uri in ("one", "other", "one"):
        for lr in (0.01, 0.02):
            assert runner(invented(tmp_path, train_uri=uri, lr=lr)) == Ran("finished")
    assert reads == ["one", "other"]


def test_a_seed_reads_nothing_anew(data: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(module, "prepare", lambda one: found.append(prepare(one)) or found[-1])
    one = config(data, tmp_path, folds=2, epochs=1)
    runner = Runner(folder, "call", None)
    for fold in (0, 1):
        for seed in (1, 2):
            assert runner(unit_of(one.model_copy(update={"seed": seed}), fold)) == Ran("finished")
    assert len(found) == 1
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4


def test_not_all_data_is_kept(tmp_path: Path, folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT", 2)
    runner = Runner(folder, "call", None)
    for uri in ("a", "b", "a", "c", "b", "a"):
        runner(invented(tmp_path, train_uri=uri))
    assert reads == ["a", "b", "c", "a"]


def test_share_of_a_gpus_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Runner(folder, "call", 0.5)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    Runner(folder, "call", None)
    assert shares == []
    Runner(folder, "call", 0.5)
    assert shares == [0.5]


# Marks, and runs that others hold


def test_a_mark_says_who_is_at_it(tmp_path: Path, folder: Path, in_place_of_a_run: Any) -> None:
    marks: list[dict[str, Any]] = []
    in_place_of_a_run(lambda *_, **__: marks.append(read_json(mark_of(tmp_path / "runs" / "run"))))
    before = time.time()
    assert Runner(folder, "call", None)(invented(tmp_path)) == Ran("finished")
    [mark] = marks
    assert mark["pid"] == os.getpid()
    assert before <= mark["since"] <= time.time()
    assert not mark_of(tmp_path / "runs" / "run").exists()


HOLD = """
import pathlib, sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    pathlib.Path(sys.argv[2]).write_text("{}")
    print("held", flush=True)
    sys.stdin.read()
    pathlib.Path(sys.argv[2]).unlink()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Any]:
    """Another process that is at the run ``run``; a function lets it end."""
    of_run = tmp_path / "runs" / "run"
    of_run.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(of_run.with_name(f".run{LOCK}")), str(mark_of(of_run))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process.communicate
        finally:
            with contextlib.suppress(ValueError):  # it has ended
                process.communicate()


def test_a_run_that_another_process_holds_is_waited_for(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, held: Any
) -> None:
    begun, ended = [], []
    in_place_of_a_run(lambda *_, **__: begun.append(time.monotonic()))
    waiting = threading.Thread(target=lambda: ended.append(Runner(folder, "call", None)(invented(tmp_path))))
    waiting.start()
    time.sleep(0.3)
    assert begun == []
    held()
    waiting.join(30)
    assert ended == [Ran("finished")]
    assert len(begun) == 1


def test_not_for_ever(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WAIT_SECONDS", 0.1)
    in_place_of_a_run(lambda *_, **__: pytest.fail("begun"))
    ran = Runner(folder, "call", None)(invented(tmp_path))
    assert ran.outcome == "failed"
    assert "processes of an earlier call are still at this run" in ran.said
    assert mark_of(tmp_path / "runs" / "run").exists()  # the other's


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_several_processes_is_held_by_them(
    tmp_path: Path, folder: Path, in_place_of_a_run: Any, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalemine.training.processes.WAIT_SECONDS", 0.5)
    free = []

    def try_to_hold(*_: Any, **__: Any) -> None:
        def hold() -> None:
            with contextlib.suppress(InputError), hold_run(tmp_path / "runs" / "run"):
                free.append(True)

        other = threading.Thread(target=hold)
        other.start()
        other.join()

    in_place_of_a_run(try_to_hold)
    assert Runner(folder, "call", None)(invented(tmp_path, processes=processes)) == Ran("finished")
    assert free == ([] if processes == 1 else [True])
