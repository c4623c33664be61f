from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalemine.config import Config, InputError, load_config
from scalemine.executor import Stopped, StopSignals
from scalemine.store import Workdir, read_json
from scalemine.sweep import runner
from scalemine.sweep.driver import Outcome, describe_sweep, run_sweep
from scalemine.sweep.plan import read_plan
from scalemine.training import runs
from scalemine.training.runs import run_training
from training.tweets import settings


def sweep(data: Path, workdir: Path, space: dict[str, Any], *, folds: int = 2, **options: Any) -> Config:
    """Return a sweep of quick runs."""
    train = options.pop("train", {})
    given = {"metric": "test.f1", "space": space, **options}
    return Config.model_validate(settings(data, workdir, folds=folds, **train) | {"sweep": given})


def do(config: Config, name: str = "one", **options: Any) -> Outcome:
    with StopSignals() as signals:
        return run_sweep(config, name, signals=signals, **options)


def results(workdir: Path) -> list[dict[str, Any]]:
    return pq.read_table(Workdir(workdir).results).to_pylist()


def refuse_to_run(*_: object, **__: object) -> None:
    pytest.fail("trained again")


SPACE = {"train.hidden": [4, 8]}


def test_every_trial_is_trained_in_every_fold_with_every_seed(data, tmp_path):
    outcome = do(sweep(data, tmp_path, SPACE, seeds=[1, 2]))
    assert not outcome.failed
    plan = read_plan(tmp_path / "sweeps/one")
    assert plan == outcome.plan
    assert [dict(trial.settings) for trial in plan.trials] == [{"train.hidden": 4}, {"train.hidden": 8}]
    for trial in plan.trials:
        assert [(run.fold, run.seed) for run in trial.runs] == [(0, 1), (0, 2), (1, 1), (1, 2)]
        for run in trial.runs:
            result = read_json(tmp_path / "runs" / run.run / "result.json")
            assert (result["fold"], result["seed"]) == (run.fold, run.seed)
            assert result["spec"]["train.hidden"] == trial.settings["train.hidden"]
    assert len({row["run"] for row in results(tmp_path)}) == 8
    assert read_json(tmp_path / "sweeps/one/progress.json")["state"] == "finished"


def test_a_second_call_trains_nothing_and_more_values_folds_and_seeds_only_what_is_new(data, tmp_path, monkeypatch):
    do(sweep(data, tmp_path, SPACE))
    real, trained = runs.train_split, []
    monkeypatch.setattr(runs, "train_split", refuse_to_run)
    again = do(sweep(data, tmp_path, SPACE))
    assert again.plan == read_plan(tmp_path / "sweeps/one")

    def count(config: Config, prepared: Any, split: Any, *args: Any, **named: Any) -> None:
        trained.append((config.train.hidden, config.seed, split.fold))
        real(config, prepared, split, *args, **named)

    monkeypatch.setattr(runs, "train_split", count)
    do(sweep(data, tmp_path, {"train.hidden": [4, 6, 8]}, seeds=[42, 7]))
    before = {(hidden, 42, fold) for hidden in (4, 8) for fold in (0, 1)}
    every = {(hidden, seed, fold) for hidden in (4, 6, 8) for seed in (42, 7) for fold in (0, 1)}
    assert sorted(trained) == sorted(every - before)


def test_every_trial_has_the_same_folds_and_test_tweets(data, tmp_path):
    outcome = do(sweep(data, tmp_path, SPACE))
    for runs_of_fold in zip(*(trial.runs for trial in outcome.plan.trials), strict=True):
        for name in ("held_out", "test"):
            ids = {
                tuple(pq.read_table(tmp_path / "runs" / run.run / f"predictions/{name}.parquet")["id"].to_pylist())
                for run in runs_of_fold
            }
            assert len(ids) == 1


def test_a_run_alone_with_the_written_config_gives_the_same_numbers(data, tmp_path):
    outcome = do(sweep(data, tmp_path, SPACE, seeds=[3]))
    trial = outcome.plan.trials[1]
    path = tmp_path / "sweeps/one/configs" / f"{trial.name}_seed3.yaml"
    assert "sweep" not in yaml.safe_load(path.read_text())
    alone = run_training(load_config(path, [f"workdir={tmp_path / 'alone'}"], needs=()))
    for run, result in zip(trial.runs, alone, strict=True):
        assert result["metrics"] == read_json(tmp_path / "runs" / run.run / "result.json")["metrics"]
        assert result["name"] == run.run


def test_trials_that_are_behind_are_stopped_and_a_second_call_says_the_same(data, tmp_path, monkeypatch):
    # Without learning the score is 0, so who is behind is known.
    arms = {"good": {}, "bad": {"train.lr": 1e-9, "train.head_lr": 1e-9}, "worse": {"train.epochs": 1}}
    options = {"folds": 3, "arms": arms, "scheduler": "asha", "train": {"epochs": 12, "patience": 12, "hidden": 16}}
    outcome = do(sweep(data, tmp_path, {}, **options))
    assert not outcome.failed
    stopped = {trial.arm: trial.stopped for trial in outcome.plan.trials}
    assert stopped == {"good": None, "bad": 1, "worse": 1}
    done = {trial.arm: sum((tmp_path / "runs" / run.run / "result.json").exists() for run in trial.runs)
            for trial in outcome.plan.trials}  # fmt: skip
    assert done == {"good": 3, "bad": stopped["bad"], "worse": stopped["worse"]}
    monkeypatch.setattr(runs, "train_split", refuse_to_run)
    assert do(sweep(data, tmp_path, {}, **options)).plan == outcome.plan


def test_a_search_goes_on_as_if_it_had_not_stopped(data, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    space = {"train.head_lr": {"log_uniform": [1e-3, 1e-1]}}
    options = {"search": "tpe", "folds": 0, "trials": 4, "train": {"epochs": 1}}
    unbroken = do(sweep(data, tmp_path / "unbroken", space, **options)).plan
    assert len(unbroken.trials) == 4

    real, left = runs.train_split, [2]

    def stop(*args: Any, **named: Any) -> None:
        if not left[0]:
            raise Stopped
        left[0] -= 1
        real(*args, **named)

    monkeypatch.setattr(runs, "train_split", stop)
    with StopSignals() as signals, pytest.raises(Stopped):
        asked = runner.Runner.__call__

        def call(self: runner.Runner, unit: runner.Unit) -> runner.Ran:
            ran = asked(self, unit)
            if ran.outcome == "stopped":
                signals.requested = True
            return ran

        monkeypatch.setattr(runner.Runner, "__call__", call)
        run_sweep(sweep(data, tmp_path / "broken", space, **options), "one", signals=signals)
    monkeypatch.undo()
    broken = do(sweep(data, tmp_path / "broken", space, **options)).plan
    assert broken == unbroken
    assert results(tmp_path / "broken") == results(tmp_path / "unbroken")


def test_a_run_that_fails_does_not_end_the_sweep_and_is_tried_again(data, tmp_path, caplog, monkeypatch):
    arms = {"good": {}, "mad": {"train.head_lr": 1e30, "train.lr": 1e30, "train.clip": 1e30}}
    config = sweep(data, tmp_path, {}, arms=arms)
    with caplog.at_level(logging.WARNING, logger="scalemine"):
        outcome = do(config)
    mad = next(trial for trial in outcome.plan.trials if trial.arm == "mad")
    assert set(outcome.failed) == {run.run for run in mad.runs}
    assert all("train.lr" in said for said in outcome.failed.values())
    assert sum(record.message.startswith("lstm_crf") for record in caplog.records) == 2
    assert len({row["run"] for row in results(tmp_path)}) == 2
    real, tried = runs.train_split, []

    def train(config: Config, prepared: Any, split: Any, *args: Any, **named: Any) -> None:
        tried.append((config.train.lr, split.fold))
        real(config, prepared, split, *args, **named)

    monkeypatch.setattr(runs, "train_split", train)
    assert do(config).failed == outcome.failed
    assert tried == [(1e30, 0), (1e30, 1)]


def test_a_request_to_stop_ends_the_sweep_and_the_same_call_goes_on(data, tmp_path, monkeypatch):
    unbroken = sweep(data, tmp_path / "unbroken", SPACE, train={"epochs": 4})
    do(unbroken)
    config = sweep(data, tmp_path / "broken", SPACE, train={"epochs": 4})
    real = runs.train_split
    with StopSignals() as signals, pytest.raises(Stopped):

        def train(*args: Any, **named: Any) -> None:
            signals.requested = True
            while not named["signals"].requested:  # it is passed on by a file
                pass
            real(*args, **named)

        monkeypatch.setattr(runs, "train_split", train)
        run_sweep(config, "one", signals=signals)
    monkeypatch.undo()
    folder = tmp_path / "broken/sweeps/one"
    assert read_json(folder / "progress.json")["state"] == "stopped"
    assert len(list((tmp_path / "broken/runs").glob("*/checkpoint.json"))) == 1
    assert not list((tmp_path / "broken/runs").glob("*/result.json"))
    assert not (folder / runner.STOP).exists()
    do(config)
    assert results(tmp_path / "broken") == results(tmp_path / "unbroken")


def test_what_cannot_be_is_refused_before_anything_runs(data, tmp_path):
    def refusal(config: Config) -> str:
        with pytest.raises(InputError) as caught:
            do(config)
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "sweeps").exists()
        return str(caught.value)

    assert "train.name" in refusal(sweep(data, tmp_path, SPACE, train={"name": "x"}))
    assert "did you mean train.hidden?" in refusal(sweep(data, tmp_path, {"train.hiden": [4]}))
    assert "train.hidden" in refusal(sweep(data, tmp_path, {"train.hidden": ["many"]}))
    assert "train.folds" in refusal(sweep(data, tmp_path, SPACE, folds=60))
    assert "nothing to vary" in refusal(sweep(data, tmp_path, {}))
    assert "sweep.concurrency" in refusal(sweep(data, tmp_path, SPACE, concurrency=2))
    assert "no set 'tset' is scored (there are: held_out, test, dev)" in refusal(
        sweep(data, tmp_path, SPACE, metric="tset.f1")
    )
    missing = {"train.train_uri": [str(data / "train.parquet"), "nowhere.parquet"]}
    assert "nowhere.parquet" in refusal(sweep(data, tmp_path, missing))


def test_a_metric_that_no_run_has_is_said_after_the_first_run(data, tmp_path):
    with pytest.raises(InputError, match=r"sweep.metric: test.f2: run .* has no 'f2' there, but .*f1"):
        do(sweep(data, tmp_path, SPACE, metric="test.f2"))
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 1


def test_folds_are_added_to_those_that_were_run(data, tmp_path):
    do(sweep(data, tmp_path, SPACE, folds=3))
    whole = results(tmp_path)
    config = sweep(data, tmp_path / "first", SPACE, folds=3)
    outcome = do(config.model_copy(update={"sweep": config.sweep.model_copy(update={"folds": 2})}))
    assert outcome.plan.folds == 2
    assert {run.fold for trial in outcome.plan.trials for run in trial.runs} == {0, 1}
    assert results(tmp_path / "first") == [row for row in whole if row["fold"] < 2]
    do(config)
    assert results(tmp_path / "first") == whole


def test_data_that_has_changed_is_refused_by_name_and_redone_on_request(data, tmp_path, monkeypatch):
    copy = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(data / "train.parquet"), copy)
    config = sweep(data, tmp_path / "work", SPACE, train={"train_uri": str(copy)})
    before = do(config).plan
    pq.write_table(pq.read_table(copy).slice(0, 110), copy)
    with pytest.raises(InputError, match="--redo"):
        do(config)
    assert describe_sweep(config, "one", redo=True)[0].endswith("0 finished; by test.f1")
    after = do(config, redo=True).plan
    assert [[run.run for run in trial.runs] for trial in after.trials] == [
        [run.run for run in trial.runs] for trial in before.trials
    ]
    assert not {run.stage for trial in after.trials for run in trial.runs} & {
        run.stage for trial in before.trials for run in trial.runs
    }
    monkeypatch.setattr(runs, "train_split", refuse_to_run)
    do(config)


def test_a_look_writes_nothing_and_says_what_is_to_be_done(data, tmp_path):
    config = sweep(data, tmp_path, SPACE, seeds=[1, 2])
    lines = describe_sweep(config, "one")
    assert not list(tmp_path.iterdir())
    assert lines[0] == "sweep one: 2 trials x 2 folds x 2 seeds = 8 runs; 0 finished; by test.f1"
    assert lines[2] == "time: not known until a first run is finished"
    assert lines[3].endswith("train.hidden=4: 4 to do")
    do(sweep(data, tmp_path, {"train.hidden": [4]}, seeds=[1, 2]))
    lines = describe_sweep(config, "one")
    assert lines[0].endswith("= 8 runs; 4 finished; by test.f1")
    assert "for 4 runs" in lines[2]
    assert lines[3].endswith("4 finished")


def test_results_of_other_data_do_not_count(data, tmp_path, monkeypatch):
    copy = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(data / "train.parquet"), copy)
    config = sweep(data, tmp_path / "work", SPACE, folds=0, train={"train_uri": str(copy)})
    do(config)
    pq.write_table(pq.read_table(copy).slice(0, 110), copy)
    real = runs.train_split
    with StopSignals() as signals, pytest.raises(Stopped):

        def train(*args: Any, **named: Any) -> None:
            real(*args, **named)
            signals.requested = True

        monkeypatch.setattr(runs, "train_split", train)
        run_sweep(config, "one", signals=signals, redo=True)
    workdir = Workdir(tmp_path / "work")
    plan = read_plan(workdir.sweeps / "one")
    assert [run.result(workdir) is not None for trial in plan.trials for run in trial.runs] == [True, False]
    assert len(list(workdir.runs.glob("*/result.json"))) == 2  # one of them of the data before


def test_the_metric_is_on_a_test_set_where_train_sets_vary(data, tmp_path):
    pq.write_table(pq.read_table(data / "train.parquet").slice(0, 110), other := tmp_path / "other.parquet")
    space = {"train.train_uri": [str(data / "train.parquet"), str(other)]}
    assert describe_sweep(sweep(data, tmp_path, space, metric=None), "one")[0].endswith("by test.f1")
    assert describe_sweep(sweep(data, tmp_path, SPACE, metric=None), "one")[0].endswith("by held_out.f1")


def test_trials_that_other_settings_took_out_are_named(data, tmp_path, caplog):
    before = do(sweep(data, tmp_path, SPACE)).plan
    with caplog.at_level(logging.WARNING, logger="scalemine"):
        after = do(sweep(data, tmp_path, SPACE, train={"epochs": 2})).plan
    assert any(record.message.startswith("2 trials of the call before do not belong") for record in caplog.records)
    written = {path.name for path in (tmp_path / "sweeps/one/configs").iterdir()}
    assert written == {f"{trial.name}_seed42.yaml" for trial in after.trials}
    assert all((tmp_path / "runs" / run.run / "result.json").exists() for one in before.trials for run in one.runs)


def test_configs_are_written_for_runs_that_were_done_before(data, tmp_path):
    do(sweep(data, tmp_path, SPACE))
    do(sweep(data, tmp_path, SPACE), "two")
    assert {path.name for path in (tmp_path / "sweeps/two/configs").iterdir()} == {
        path.name for path in (tmp_path / "sweeps/one/configs").iterdir()
    }


def test_a_search_refuses_what_any_of_its_trials_cannot_be(data, tmp_path):
    pytest.importorskip("optuna")
    space = {"train.train_uri": [str(data / "train.parquet")] * 3 + ["nowhere.parquet"]}
    with pytest.raises(InputError, match=r"nowhere\.parquet"):
        do(sweep(data, tmp_path, space, search="tpe", trials=2))
    assert not (tmp_path / "runs").exists()


def test_a_search_does_not_hang_on_the_number_of_workers(data, tmp_path):
    pytest.importorskip("optuna")
    space = {"train.head_lr": {"log_uniform": [1e-3, 1e-1]}}
    options = {"search": "tpe", "folds": 0, "trials": 6, "train": {"epochs": 1}}
    one = do(sweep(data, tmp_path, space, **options)).plan
    ray = sweep(data, tmp_path, space, **options, concurrency=2, cpus_per_run=1)
    ray = ray.model_copy(update={"compute": ray.compute.model_copy(update={"executor": "ray"})})
    # All of it is finished, so no worker starts.
    assert do(ray).plan.trials == one.trials


def test_an_error_that_nobody_foresaw_leaves_its_traceback_in_the_log(data, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(runs, "train_split", fail)
    outcome = do(sweep(data, tmp_path, {}, folds=0, seeds=[1]))
    [said] = outcome.failed.values()
    assert said == "KeyError: 'unforeseen'"
    [log] = (tmp_path / "sweeps/one/logs").iterdir()
    assert "Traceback" in log.read_text()


# Sweeps that are killed


@contextlib.contextmanager
def command(config: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a sweep as a program in a session of its own."""
    arguments = [sys.executable, "-m", "scalemine", "sweep", str(config)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (
        config.with_suffix(".out").open("a") as out,
        subprocess.Popen(arguments, stdout=out, stderr=out, text=True, env=environment, start_new_session=True) as one,
    ):
        try:
            yield one
        finally:
            if one.poll() is None:
                kill(one)


def kill(process: subprocess.Popen[str]) -> None:
    """End a program and nothing else, and see that its workers end by themselves."""
    started = psutil.Process(process.pid).children(recursive=True)
    # Agents of Ray, which hold no run, take a minute to see that they are alone.
    started = [one for one in started if "Agent" not in one.name()]
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(started, timeout=60)
    for one in left:
        one.kill()
    assert not left, f"still running: {left}"


def finished(workdir: Path) -> dict[Path, int]:
    """Return the results that are there, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/result.json")}


def wait_for(process: subprocess.Popen[str], workdir: Path, number: int) -> None:
    """Wait for so many results more than there are."""
    number += len(finished(workdir))
    while len(finished(workdir)) < number:
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.05)


def worker_at_work(workdir: Path) -> int:
    """Return the number of a process that is at a run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in workdir.glob("runs/.*.running.json"):
            with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
                mark = read_json(path)
                # Not one that a process left when it was killed.
                if psutil.Process(mark["pid"]).create_time() < mark["since"] and time.time() - mark["since"] < 5:
                    return int(mark["pid"])
        time.sleep(0.02)
    raise AssertionError("no process is at a run")


def all_results(workdir: Path) -> pa.Table:
    table = pq.read_table(Workdir(workdir).results)
    return table.sort_by([(name, "ascending") for name in table.column_names])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_killed_again_and_again_ends_like_one_that_is_not(data, tmp_path):
    seed = random.randrange(10**6)
    print("chance:", seed)  # noqa: T201  what to look for again where it fails
    chance = random.Random(seed)
    configs = {}
    for name in ("unbroken", "broken"):
        values = settings(data, tmp_path / name, folds=2, epochs=120, patience=120, checkpoint_steps=5)
        values["compute"] = {"executor": "ray", "threads": 1}
        options = {"name": "one", "space": {"train.hidden": [4, 6, 8]}, "seeds": [1, 2], "metric": "test.f1"}
        values["sweep"] = options | {"concurrency": 2, "cpus_per_run": 1}
        configs[name] = tmp_path / f"{name}.yaml"
        configs[name].write_text(yaml.safe_dump(values))
    with command(configs["unbroken"]) as process:
        assert process.wait() == 0, configs["unbroken"].with_suffix(".out").read_text()

    workdir, config = tmp_path / "broken", configs["broken"]
    before: dict[Path, int] = {}
    for _ in range(2):
        with command(config) as process:
            wait_for(process, workdir, chance.randint(1, 3))
            time.sleep(chance.uniform(0, 2))
            kill(process)
        assert before.items() <= finished(workdir).items()
        before = finished(workdir)
        assert 0 < len(before) < 12
    with command(config) as process:
        victim = worker_at_work(workdir)
        time.sleep(chance.uniform(0, 2))
        os.kill(victim, signal.SIGKILL)
        assert process.wait() == 0, config.with_suffix(".out").read_text()
    assert "a worker died and is replaced" in config.with_suffix(".out").read_text()
    assert before.items() <= finished(workdir).items()
    assert len(finished(workdir)) == 12
    assert all_results(workdir).equals(all_results(tmp_path / "unbroken"))
    assert len(all_results(workdir)) > 12
    assert any("going on from step" in path.read_text() for path in workdir.glob("sweeps/one/logs/*.log"))
    assert not list(workdir.glob("runs/.*.running.json"))
    assert not list(workdir.rglob("checkpoint*"))
