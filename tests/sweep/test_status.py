from __future__ import annotations

import math
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from damage import damage
from scalemine.config import InputError
from scalemine.store import STATE, Workdir, write_json
from scalemine.sweep.plan import PROGRESS, Plan, PlannedRun, PlannedTrial, mark_of
from scalemine.sweep.status import SILENCE, StatusReader, SweepStatus, TrialStatus, status_table
from scalemine.training.loop import Progress


class Sweep:
    """The files of a sweep of trials a, b, c … with folds and seeds."""

    def __init__(self, root: Path, trials: str = "abc", folds: int = 2, seeds: tuple[int, ...] = (7,), **plan: Any):
        self.workdir, self.folder = Workdir(root), Workdir(root).sweeps / "lr"
        made = tuple(
            PlannedTrial(name, None, {"train.lr": name}, None, tuple(
                PlannedRun(seed, fold, f"{name}-{fold}-{seed}")
                for fold in (range(folds) if folds else [None]) for seed in seeds
            ))
            for name in trials
        )  # fmt: skip
        values = {
            "name": "lr", "why": "", "metric": "held_out.f1", "mode": "max", "search": "grid", "scheduler": "none",
            "folds": folds, "seeds": seeds, "concurrency": 2, "num_trials": len(made), "trials": made,
        }  # fmt: skip
        self.plan = Plan(**values | plan)
        self.plan.write(self.folder)
        self.progress("running")

    def progress(self, state: str, *, ago: float = 0.0, **failed: str) -> None:
        facts = {"state": state, "updated": time.time() - ago, "host": "here", "pid": 17}
        named = {run.replace("_", "-"): said for run, said in failed.items()}
        write_json(self.folder / PROGRESS, {**facts, "failed": named})

    def stop(self, name: str, after: int) -> None:
        trials = [replace(one, stopped=after if one.name == name else one.stopped) for one in self.plan.trials]
        self.plan = replace(self.plan, trials=tuple(trials))
        self.plan.write(self.folder)

    def finish(self, run: str, f1: float | None, seconds: float = 10.0) -> None:
        result = {"name": run, "metrics": {"held_out": {"f1": f1}}, "total_seconds": seconds}
        write_json(self.workdir.runs / run / "result.json", result)

    def begin(self, run: str, epoch: int | None = None) -> None:
        write_json(mark_of(self.workdir.runs / run), {"host": "here", "pid": 18, "since": time.time()})
        if epoch is not None:
            write_json(self.workdir.runs / run / STATE, {"progress": asdict(Progress(epoch=epoch))})

    def read(self) -> SweepStatus:
        return StatusReader(self.workdir, self.folder).read()


def trial(found: SweepStatus, name: str) -> TrialStatus:
    [one] = [one for one in found.trials if one.trial.name == name]
    return one


def order(found: SweepStatus) -> list[str]:
    return [one.trial.name for one in found.best_first()]


# What the files say


def test_nothing_has_begun(tmp_path: Path) -> None:
    found = Sweep(tmp_path).read()
    assert (found.state, found.done, found.running, found.waiting, found.failed) == ("running", 0, 0, 6, {})
    assert found.seconds_left is None
    assert found.where == "process 17 on here"
    assert {one.score for one in found.trials} == {None}
    assert found.line() == "sweep lr, running: 0 done, 0 running, 6 waiting"


def test_some_are_done_and_some_under_way(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("a-0-7", 0.5)
    sweep.begin("a-1-7", epoch=3)
    sweep.begin("b-0-7")
    found = sweep.read()
    assert (found.done, found.running, found.waiting) == (1, 2, 3)
    a, b = trial(found, "a"), trial(found, "b")
    assert (a.done, a.wanted, a.running) == (1, 2, ("fold 2 seed 7 (3 epochs done)",))
    assert (b.done, b.running, b.score) == (0, ("fold 1 seed 7",), None)
    assert a.score is not None
    assert (a.score.mean, a.score.sd, a.score.num_runs) == (0.5, None, 1)


def test_a_run_without_folds_is_named_by_its_seed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, folds=0, seeds=(1, 2))
    sweep.begin("a-None-2", epoch=0)
    assert trial(sweep.read(), "a").running == ("seed 2 (0 epochs done)",)
    assert sweep.read().waiting == 5


def test_a_finished_run_is_not_under_way_whatever_was_left(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.begin("a-0-7", epoch=3)
    sweep.finish("a-0-7", 0.5)
    found = sweep.read()
    assert (found.done, found.running) == (1, 0)


def test_scores_are_those_of_the_runs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, seeds=(1, 2))
    values = {("a", fold, seed): 0.1 * (1 + fold) + 0.01 * seed for fold in (0, 1) for seed in (1, 2)}
    for (name, fold, seed), value in values.items():
        sweep.finish(f"{name}-{fold}-{seed}", value)
    score = trial(sweep.read(), "a").score
    assert score is not None
    assert score.mean == pytest.approx(statistics.mean(values.values()))
    of_folds = [statistics.mean(value for key, value in values.items() if key[1] == fold) for fold in (0, 1)]
    assert score.sd == pytest.approx(statistics.stdev(of_folds))


def test_a_score_that_is_undefined_makes_no_mean(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("a-0-7", None)
    sweep.finish("a-1-7", 0.5)
    sweep.finish("b-0-7", 0.1)
    found = sweep.read()
    assert (trial(found, "a").done, trial(found, "a").score) == (2, None)
    assert order(found) == ["b", "a", "c"]


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, metric="held_out.f2")
    sweep.finish("a-0-7", 0.5)
    found = trial(sweep.read(), "a")
    assert (found.done, found.score) == (1, None)


def test_failed_runs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.begin("a-0-7", epoch=1)  # killed, and not done anew
    sweep.finish("a-1-7", 0.5)
    sweep.progress("finished", a_0_7="the loss is nan")
    found = sweep.read()
    assert found.failed == {"a-0-7": "the loss is nan"}
    one = trial(found, "a")
    assert (one.done, one.failed, one.running) == (1, 1, ())
    assert found.waiting == 4
    assert "1 done, 0 running, 4 waiting, 1 failed, best 0.5000 by lr=a (1 of 2 runs)" in found.line()


def test_a_stopped_trial_wants_no_more(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, folds=4, seeds=(1, 2))
    sweep.finish("b-0-1", 0.1)
    sweep.finish("b-0-2", 0.2)
    sweep.stop("b", after=1)
    found = sweep.read()
    assert (trial(found, "b").done, trial(found, "b").wanted) == (2, 2)
    assert found.waiting == 16


def test_a_stopped_trial_may_have_been_finished_before(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, folds=3)
    for fold in range(3):
        sweep.finish(f"b-{fold}-7", 0.1)
    sweep.stop("b", after=1)
    found = sweep.read()
    assert (trial(found, "b").done, trial(found, "b").wanted) == (3, 3)
    assert found.waiting == 6
    assert found.seconds_left == 6 * 10.0 / 2


def test_trials_that_are_yet_to_be_chosen_are_waited_for(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials="ab", num_trials=5)
    sweep.finish("a-0-7", 0.5)
    assert sweep.read().waiting == 9
    sweep.progress("finished")  # the search proposed some trials twice
    assert sweep.read().waiting == 3


# Whether it lives


def test_a_process_that_was_killed_is_at_no_run(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    ended = subprocess.run([sys.executable, "-Sc", "import os; print(os.getpid())"], capture_output=True, text=True)
    for run, pid in (("a-0-7", int(ended.stdout)), ("b-0-7", os.getpid())):
        mark = {"host": socket.gethostname(), "pid": pid, "since": time.time()}
        write_json(mark_of(sweep.workdir.runs / run), mark)
    found = sweep.read()
    assert (trial(found, "a").running, trial(found, "b").running) == ((), ("fold 1 seed 7",))
    assert found.waiting == 5


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_nothing_runs_after_the_end(tmp_path: Path, state: str) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("a-0-7", 0.5)
    sweep.begin("a-1-7", epoch=1)
    sweep.progress(state, ago=10 * SILENCE)
    found = sweep.read()
    assert (found.state, found.running, found.waiting) == (state, 0, 5)
    assert found.line() == f"sweep lr, {state}: 1 done, 0 running, 5 waiting, best 0.5000 by lr=a (1 of 2 runs)"


def test_a_sweep_that_gives_no_sign_of_life_was_interrupted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.begin("a-0-7", epoch=1)
    sweep.progress("running", ago=SILENCE / 2)
    assert (sweep.read().state, sweep.read().running) == ("running", 1)
    sweep.progress("running", ago=SILENCE + 1)
    found = sweep.read()
    assert (found.state, found.running, found.waiting) == ("interrupted", 0, 6)


def test_a_plan_before_the_first_sign_of_life(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    (sweep.folder / PROGRESS).unlink()
    found = sweep.read()
    assert (found.state, found.done, found.failed) == ("running", 0, {})


# Time left


def test_time_left_is_by_the_runs_that_are_finished(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    for run, seconds in (("a-0-7", 60.0), ("a-1-7", 90.0), ("b-0-7", 6000.0)):
        sweep.finish(run, 0.5, seconds)
    found = sweep.read()
    # That of b as the other one of b, both of c as is usual.
    assert found.seconds_left == (6000.0 + 2 * 90.0) / 2
    assert found.line().endswith(", about 51 min 30 s left")
    sweep.progress("stopped")
    assert "left" not in sweep.read().line()


def test_runs_that_failed_take_no_more_time(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("a-0-7", 0.5, 60.0)
    sweep.progress("running", a_1_7="the loss is nan")
    assert sweep.read().seconds_left == 60.0 * 4 / 2


def test_a_reader_sees_what_comes(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    reader = StatusReader(sweep.workdir, sweep.folder)
    assert reader.read().done == 0
    sweep.begin("a-0-7", epoch=1)
    assert trial(reader.read(), "a").running == ("fold 1 seed 7 (1 epoch done)",)
    sweep.finish("a-0-7", 0.5)
    mark_of(sweep.workdir.runs / "a-0-7").unlink()
    assert (reader.read().done, reader.read().running) == (1, 0)


def test_a_reader_reads_a_result_once_and_one_that_was_replaced_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, read = Sweep(tmp_path), []
    real = PlannedRun.result
    monkeypatch.setattr(PlannedRun, "result", lambda run, workdir: read.append(run.run) or real(run, workdir))
    reader = StatusReader(sweep.workdir, sweep.folder)

    def seen() -> float | None:
        score = trial(reader.read(), "a").score
        return score and score.mean

    sweep.finish("a-0-7", 0.5)
    assert [seen(), seen(), seen()] == [0.5] * 3
    assert read == ["a-0-7"]
    sweep.finish("a-0-7", 0.25)  # discarded, and trained again
    assert seen() == 0.25
    (sweep.workdir.runs / "a-0-7" / "result.json").unlink()
    assert seen() is None


def test_a_reader_sees_another_metric(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("a-0-7", 0.5)
    reader = StatusReader(sweep.workdir, sweep.folder)
    reader.read()
    replace(sweep.plan, metric="held_out.f2").write(sweep.folder)
    assert trial(reader.read(), "a").score is None


# The best first, and the table


def scored(tmp_path: Path, **values: float) -> Sweep:
    """Return a sweep of one run per trial, some finished."""
    sweep = Sweep(tmp_path, trials="abcdef", folds=0, mode=values.pop("mode", "max"))
    for name, value in values.items():
        sweep.finish(f"{name}-None-7", value)
    return sweep


@pytest.mark.parametrize(("mode", "expected"), [("max", "dbacef"), ("min", "abdcef")])
def test_the_best_come_first_and_those_without_a_score_last(tmp_path: Path, mode: Any, expected: str) -> None:
    found = scored(tmp_path, mode=mode, a=-1.0, b=0.5, d=2.0).read()
    assert "".join(order(found)) == expected
    assert f" by lr={expected[0]} " in found.line()


def test_the_table(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.finish("b-0-7", 0.5)
    sweep.finish("b-1-7", 0.7)
    sweep.finish("a-0-7", 0.25)
    sweep.begin("a-1-7", epoch=0)
    sweep.stop("c", after=1)
    sweep.progress("running", c_0_7="x")
    table = status_table(sweep.read())
    assert table.caption == "lr"
    assert [column.heading for column in table.columns] == ["trial", "runs finished", "held_out.f1", "under way"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["lr=b", "2/2", f"0.6000 ± {math.sqrt(0.02):.4f}", ""],
        ["lr=a", "1/2", "0.2500", "fold 2 seed 7 (0 epochs done)"],
        ["lr=c", "0/1", "–", "stopped after 1 fold(s); 1 failed"],
    ]


def test_a_table_hides_the_worst_but_not_what_is_under_way(tmp_path: Path) -> None:
    sweep = scored(tmp_path, a=0.6, b=0.5, c=0.4, d=0.3)
    sweep.begin("f-None-7")
    table = status_table(sweep.read(), most=2)
    assert [row[0].text for row in table.rows] == ["lr=a", "lr=b", "lr=f"]
    assert table.caption == "lr; 3 further trials"
    assert [row[2].text for row in table.rows] == ["0.6000", "0.5000", "–"]
    whole = status_table(sweep.read(), most=6)
    assert (whole.caption, len(whole.rows)) == ("lr", 6)


@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(150, 3_000), marks=pytest.mark.slow)])
def test_damaged_files_of_a_sweep_are_read_or_refused_in_one_line(tmp_path: Path, seeds: range) -> None:
    sweep = Sweep(tmp_path, "ab")
    sweep.begin("a-0-7", epoch=3)
    sweep.finish("b-0-7", 0.5)
    runs, refused = sweep.workdir.runs, 0
    files = [sweep.folder / PROGRESS, mark_of(runs / "a-0-7"), runs / "a-0-7" / STATE]
    contents = {path: path.read_bytes() for path in files}
    for seed in seeds:
        chance = random.Random(seed)
        path = chance.choice(files)
        path.write_bytes(damage(contents[path], chance))
        try:
            assert sweep.read().line()
        except InputError as error:
            assert "\n" not in str(error), seed
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path.name}: {path.read_bytes()!r}") from error
        path.write_bytes(contents[path])
    assert 0 < refused < len(seeds)
