"""How far a sweep has come, from its files alone: also while it runs elsewhere, and when nothing runs any more."""

from __future__ import annotations

import contextlib
import math
import socket
import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field

from scalemine.config import InputError
from scalemine.report.tables import MISSING, Cell, Column, Table, counted, duration, plain_name
from scalemine.store import RESULT, STATE, Workdir, read_as, read_json
from scalemine.sweep.plan import PROGRESS, Plan, PlannedRun, PlannedTrial, mark_of, read_plan, value_at
from scalemine.training.comparison import Summary, summarise

# A sweep that has given no sign of life for so long has ended.
SILENCE = 60.0
# Trials of a table; the best ones and those under way.
MOST_ROWS = 30


State = Literal["running", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """What a sweep says of itself while it runs: how it goes, when it last said so, and what was wrong, by run."""

    state: State
    updated: float
    host: str
    pid: int | str
    failed: dict[str, str]


@dataclass(frozen=True)
class Mark:
    """Which process is at a run."""

    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class TrialStatus:
    """How far a trial has come.

    Args:
        trial: The trial.
        done: Runs that are finished.
        wanted: Runs that it has in all.
        running: What is under way, in words.
        failed: Runs that failed.
        score: Of the sweep's metric; None: of no run yet.
    """

    trial: PlannedTrial
    done: int
    wanted: int
    running: tuple[str, ...]
    failed: int
    score: Summary | None


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep has come.

    Args:
        plan: The sweep.
        state: Whether it is running, or how it ended; interrupted: it gives no sign of life.
        where: Host and process that run it, or did.
        trials: Its trials.
        waiting: Runs that have not begun, or are to go on; at most, where trials may be stopped.
        failed: What was wrong, by run.
        seconds_left: By the runs that are finished; None: not known.
    """

    plan: Plan
    state: State
    where: str
    trials: tuple[TrialStatus, ...]
    waiting: int
    failed: Mapping[str, str]
    seconds_left: float | None

    @property
    def done(self) -> int:
        """Runs that are finished."""
        return sum(one.done for one in self.trials)

    @property
    def running(self) -> int:
        """Runs that are under way."""
        return sum(len(one.running) for one in self.trials)

    def best_first(self) -> list[TrialStatus]:
        """Return the trials, the best by their means so far first, those without a score last."""
        sign = -1 if self.plan.mode == "max" else 1

        def key(one: TrialStatus) -> float:
            return math.inf if one.score is None or math.isnan(one.score.mean) else sign * one.score.mean

        return sorted(self.trials, key=key)

    def line(self) -> str:
        """Return one line that says how far it has come."""
        parts = [f"{self.done} done", f"{self.running} running", f"{self.waiting} waiting"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        best = self.best_first()[0] if self.trials else None
        if best and best.score:
            label = self.plan.labels()[best.trial.name]
            parts.append(f"best {_number(best.score.mean)} by {label} ({best.done} of {best.wanted} runs)")
        if self.seconds_left is not None and self.state == "running":
            parts.append(f"about {duration(self.seconds_left)} left")
        return f"sweep {self.plan.name}, {self.state}: {', '.join(parts)}"


class StatusReader:
    """Reads how far a sweep has come, again and again; a result is read once."""

    def __init__(self, workdir: Workdir, folder: Path) -> None:
        self._workdir, self._folder = workdir, folder
        self._results: dict[str, tuple[tuple[str, int], float, float]] = {}

    def read(self) -> SweepStatus:
        """Return how far it has come."""
        plan, progress = read_plan(self._folder), self._progress()
        is_silent = progress.state == "running" and time.time() - progress.updated > SILENCE
        state: State = "interrupted" if is_silent else progress.state
        failed = progress.failed
        trials = tuple(self._trial(plan, trial, state == "running", failed) for trial in plan.trials)
        unfinished = sum(one.wanted - one.done - one.failed for one in trials)
        if state != "finished":  # a search that proposes one trial twice makes fewer
            unfinished += (plan.num_trials - len(trials)) * plan.runs_per_trial
        waiting = unfinished - sum(len(one.running) for one in trials)
        left = self._seconds_left(trials, unfinished)
        where = f"process {progress.pid} on {progress.host}"
        return SweepStatus(
            plan, state, where, trials, waiting, failed, None if left is None else left / plan.concurrency
        )

    def _seconds_left(self, trials: Sequence[TrialStatus], unfinished: int) -> float | None:
        """Return how long the unfinished runs take one after the other: as those of their trial, or else as all."""
        seconds = {run: of for run, (_, _, of) in self._results.items() if not math.isnan(of)}
        if not seconds:
            return None
        left, of_all = 0.0, statistics.median(seconds.values())
        for one in trials:
            own = [seconds[run.run] for run in one.trial.runs if run.run in seconds]
            missing = one.wanted - one.done - one.failed
            left += (statistics.median(own) if own else of_all) * missing
            unfinished -= missing
        return left + of_all * unfinished

    def _progress(self) -> Progress:
        path = self._folder / PROGRESS
        if path.exists():
            return read_as(path, Progress)
        since = path.parent.stat().st_mtime
        return Progress("running", since, MISSING, MISSING, {})

    def _trial(self, plan: Plan, trial: PlannedTrial, is_alive: bool, failed: Mapping[str, str]) -> TrialStatus:
        values: dict[tuple[Hashable, Hashable], float] = {}
        running, num_failed = [], 0
        for run in trial.runs:
            found = self._result(run, plan.metric)
            if run.run in failed:
                num_failed += 1
            elif found is not None:
                values[run.fold, run.seed] = found[0]
            elif is_alive and self._is_at_work(run):
                running.append(self._under_way(run))
        score = summarise(values) if values and not any(map(math.isnan, values.values())) else None
        wanted = len(trial.runs)
        if trial.stopped is not None:  # an earlier call may have gone further
            wanted = max(trial.stopped * len(plan.seeds), len(values) + num_failed)
        return TrialStatus(trial, len(values), wanted, tuple(running), num_failed, score)

    def _result(self, run: PlannedRun, metric: str) -> tuple[float, float] | None:
        """Return score and seconds of a run that is finished."""
        folder = self._workdir.runs / run.run
        try:
            key = metric, (folder / RESULT).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        known = self._results.get(run.run)
        if known is None or known[0] != key:
            result = run.result(self._workdir)
            if result is None:
                return None
            known = self._results[run.run] = key, _score(result, metric), result.get("total_seconds", math.nan)
        return known[1:]

    def _is_at_work(self, run: PlannedRun) -> bool:
        """Say whether a process is at a run; one that was killed has left its mark."""
        try:
            mark = read_as(mark_of(self._workdir.runs / run.run), Mark)
        except FileNotFoundError:
            return False
        return mark.host != socket.gethostname() or bool(psutil.pid_exists(mark.pid))

    def _under_way(self, run: PlannedRun) -> str:
        """Say which run it is, and in which epoch."""
        parts = [] if run.fold is None else [f"fold {run.fold + 1}"]
        parts.append(f"seed {run.seed}")
        path = self._workdir.runs / run.run / STATE
        # No checkpoint yet, or finished just now; one that is damaged says nothing of it.
        with contextlib.suppress(FileNotFoundError, InputError, KeyError, TypeError):
            epochs = int(read_json(path)["progress"]["epoch"])
            parts.append(f"({counted(epochs, 'epoch', 'epochs')} done)")
        return " ".join(parts)


def _score(result: Mapping[str, Any], metric: str) -> float:
    try:
        return value_at(result, metric)
    except InputError:  # the sweep says so, and what it was stays to be seen
        return math.nan


def status_table(status: SweepStatus, most: int = MOST_ROWS) -> Table:
    """Return the trials of a sweep as a table: the best first, and always those under way."""
    ranked, labels = status.best_first(), status.plan.labels()
    shown = [one for place, one in enumerate(ranked) if place < most or one.running]
    columns = (
        Column("trial", "trial", numeric=False),
        Column("runs finished", "done"),
        Column(plain_name(status.plan.metric), "score"),
        Column("under way", "under way", numeric=False),
    )
    rows = tuple(
        (
            Cell(labels[one.trial.name]),
            Cell(f"{one.done}/{one.wanted}"),
            Cell(MISSING if one.score is None else _spread(one.score)),
            Cell(_said(one)),
        )
        for one in shown
    )
    hidden = f"; {len(ranked) - len(shown)} further trials" if len(ranked) > len(shown) else ""
    return Table(f"{status.plan.name}{hidden}", columns, rows)


def _said(one: TrialStatus) -> str:
    parts = list(one.running)
    if one.trial.stopped is not None:
        parts.append(f"stopped after {one.trial.stopped} fold(s)")
    if one.failed:
        parts.append(f"{one.failed} failed")
    return "; ".join(parts)


def _spread(score: Summary) -> str:
    return _number(score.mean) + (f" ± {_number(score.sd)}" if score.sd is not None else "")


def _number(value: float) -> str:
    return f"{value:.4f}"
