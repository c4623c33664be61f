"""Sweeps: trials are chosen, each is trained in every fold and with every seed, and those that fall behind are stopped.

Main path: ``run_sweep`` -> ``_Sweep.run`` -> waves of trials -> rungs of folds -> units, on this process or on Ray
actors (``runner``). What is finished is found by the runs' own folders, so the same call again does what is missing; a
choice depends on results alone, and not on when they came, so a sweep that was broken off ends like one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import secrets
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import yaml

from scalemine.config import Config, InputError
from scalemine.executor import Executor, Stopped, StopSignals, every, make_executor
from scalemine.frozen import embed_examples
from scalemine.report.tables import counted, duration
from scalemine.store import RESULT, Workdir, read_result, remove, write_json, write_whole
from scalemine.sweep.halving import survivors
from scalemine.sweep.plan import PROGRESS, Plan, PlannedRun, PlannedTrial, mark_of, read_plan, value_at
from scalemine.sweep.resources import Resources, resources_of
from scalemine.sweep.runner import STOP, Ran, Runner, Unit
from scalemine.sweep.space import TpeSearcher, Trial, grid, looked_at, random_trials, seeds_of
from scalemine.training.family import DEV, HELD_OUT, RANDOM_PLUS
from scalemine.training.runs import KnownRun, Prepared, learns_spans, preparation_key, prepare, run_state, write_results

logger = logging.getLogger(__name__)

CONFIGS = "configs"
# Trials that a search asks for at a time.
WAVE = 4
# Seconds between signs of life, between looks for a signal, and between writings of results.parquet.
HEARTBEAT, LISTENING, RESULTS = 5.0, 0.2, 60.0


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Args:
        plan: All trials and their runs.
        failed: What was wrong, by the name of the run.
    """

    plan: Plan
    failed: dict[str, str]


def run_sweep(config: Config, name: str, *, signals: StopSignals, redo: bool = False) -> Outcome:
    """Do what is missing of a sweep; a run that fails does not end it.

    Args:
        config: The configuration, with its section ``sweep``.
        name: Of the sweep's folder.
        signals: A request to stop.
        redo: Discard runs of these settings that other data left.

    Raises:
        InputError: The data, the configuration or the space is wrong, or the machine too small; nothing has begun.
        Stopped: A signal asked for it; what is finished is kept, runs under way go on from their checkpoints.
    """
    sweep = _Sweep(config, name, redo=redo, signals=signals)
    return sweep.run(sweep.check())


def describe_sweep(config: Config, name: str, *, redo: bool = False) -> list[str]:
    """Return what a sweep would do, line by line; nothing is written.

    Raises:
        InputError: As ``run_sweep``.
    """
    with tempfile.TemporaryDirectory(prefix="scalemine-") as scratch:
        sweep = _Sweep(config, name, redo=redo, scratch=Path(scratch))
        return sweep.describe(sweep.check())


@dataclass(frozen=True)
class _Run:
    """A run of a trial, before it is begun."""

    config: Config
    fold: int | None
    seed: int
    known: KnownRun

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.known.name

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.known.state == "finished"


class _Sweep:
    """A sweep in progress.

    Args:
        config: The configuration.
        name: Of the sweep.
        redo: Discard runs of these settings that other data left.
        signals: A request to stop; None: this is only a look.
        scratch: Where to write what is made of the data, where this is only a look.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        *,
        redo: bool,
        signals: StopSignals | None = None,
        scratch: Path | None = None,
    ) -> None:
        if config.train.name is not None:
            raise InputError("train.name: would give all runs one name; drop it (sweep.name names a sweep)")
        self.config = config.model_copy(update={"workdir": config.workdir.absolute()})
        self.options, self.redo, self.signals, self.scratch = config.sweep, redo, signals, scratch
        self.workdir = Workdir(self.config.workdir)
        self.folder = self.workdir.sweeps / name
        self.seeds = seeds_of(self.config, self.options)
        self.folds: list[int | None] = list(range(self.options.folds or config.train.folds)) or [None]
        self.known = self._known_trials()
        self.num_trials = len(self.known)
        if self.is_search:
            self.num_trials = self.options.trials_per_arm * max(1, len(self.options.arms))
        if not (self.options.space or self.options.arms or self.options.seeds):
            raise InputError(
                "sweep: nothing to vary; give sweep.space, sweep.arms or sweep.seeds (one run: scalemine train)"
            )
        self.metric = ""
        self.planned: dict[str, PlannedTrial] = {}
        self.runs: dict[str, list[_Run]] = {}
        self.prepared: dict[str, Prepared] = {}
        self.scores: dict[str, list[float]] = {}
        self.failed: dict[str, str] = {}
        self.wrote_results = time.monotonic()

    def _known_trials(self) -> list[Trial]:
        """Return the trials that do not depend on results: all, or the first of a search."""
        if self.options.search == "grid":
            return grid(self.config, self.options)
        if self.options.search == "random":
            return random_trials(self.config, self.options, self.config.seed)
        return [TpeSearcher(self.config, self.options, self.config.seed).ask(0)]

    @property
    def is_search(self) -> bool:
        """Whether later trials depend on the results of earlier ones."""
        return self.options.search == "tpe"

    # --- Before anything runs

    def check(self) -> Resources:
        """Read the data of all trials, of a search that of each value that it may try; return what a run may take.

        Raises:
            InputError: A trial cannot be trained as asked.
        """
        configs = [trial.config(self.config, self.seeds[0]) for trial in self.known]
        if self.is_search:
            configs += looked_at(self.config, self.options)
        resources = resources_of(self.config, configs)
        for config in configs:
            self._prepare(config)
        chosen_by = self.metric.split(".")[0]
        if chosen_by in (HELD_OUT, DEV) and self._train_sets_vary:
            logger.warning("sweep.metric: %s is of other tweets in each train set, a test set's is not", self.metric)
        if self.is_search or self.options.scheduler != "none":
            logger.info("trials are chosen by %s: a comparison on %s flatters those that are", self.metric, chosen_by)
        return resources

    def _check_folds(self, config: Config, prepared: Prepared) -> None:
        """Refuse more folds than the rarest class has tweets: some folds would say nothing of it."""
        if not config.train.folds or not config.train.stratify:
            return
        rows = prepared.family.rows(config, prepared.data)
        strata = zip(rows.strata, rows.is_negative, strict=True)
        counts = Counter(name for names, is_negative in strata if not is_negative for name in names)
        name, number = min(counts.items(), key=itemgetter(1))
        if number < config.train.folds:
            raise InputError(
                f"train.folds: {config.train.folds} folds want as many tweets of each class, "
                f"{prepared.data.train.uri} has {number} of {name}; take fewer, or train.stratify=false"
            )

    def _check_metric(self, config: Config, prepared: Prepared) -> None:
        """Choose the metric, unless one is given, and refuse one of a set that is not scored."""
        tests = sorted(prepared.data.tests, key=lambda name: name != RANDOM_PLUS)
        held_out = [HELD_OUT] if config.train.folds else []
        # A held-out fold has the negatives of its own train set.
        sets = [*tests, *held_out] if self._train_sets_vary else [*held_out, *tests]
        sets += [DEV] if config.train.stop_on == "dev" else []
        self.metric = self.options.metric or f"{sets[0]}.{'f1' if learns_spans(config) else 'roc_auc.macro'}"
        wanted = self.metric.split(".")[0]
        if wanted not in sets:
            raise InputError(f"sweep.metric: {self.metric}: no set {wanted!r} is scored (there are: {', '.join(sets)})")

    @property
    def _train_sets_vary(self) -> bool:
        keys = ("train.train_set", "train.train_uri")
        return any(key in values for key in keys for values in (self.options.space, *self.options.arms.values()))

    def _prepare(self, config: Config) -> Prepared:
        """Return the data of a trial; what is shared by runs (imports, tokens, embeddings) is made here, once."""
        key = preparation_key(config)
        if key not in self.prepared:
            if self.signals is not None:
                for one in config.trained:
                    if one.reads_embeddings:
                        embed_examples(one, signals=self.signals)
            self.prepared[key] = prepare(config, signals=self.signals, scratch=self.scratch)
            self._check_folds(config, self.prepared[key])
            self._check_metric(config, self.prepared[key])
        return self.prepared[key]

    def _plan(self, trials: Sequence[Trial]) -> None:
        """Find out what each run of some trials is called, and how far it has come."""
        for trial in trials:
            configs = {seed: trial.config(self.config, seed) for seed in self.seeds}
            runs = []
            for fold, seed in itertools.product(self.folds, self.seeds):
                prepared = self._prepare(configs[seed])
                known = run_state(configs[seed], prepared, prepared.split(fold), redo=self.redo)
                runs.append(_Run(configs[seed], fold, seed, known))
                if known.state == "finished":
                    self._check_measure(known.name)
            self.runs[trial.name] = runs
            planned = (PlannedRun(run.seed, run.fold, run.name, run.known.stage, run.known.scoring) for run in runs)
            self.planned[trial.name] = PlannedTrial(trial.name, trial.arm, trial.overrides, None, tuple(planned))

    def _check_measure(self, run: str) -> None:
        """Refuse a metric that a finished run does not have: as soon as there is one, and not after all runs."""
        result = read_result(self.workdir.runs / run)
        assert result is not None
        value_at(result, self.metric)

    def describe(self, resources: Resources) -> list[str]:
        """Return what is to be done, line by line."""
        self._plan(self.known)
        number = self.num_trials * len(self.folds) * len(self.seeds)
        finished = sum(run.is_finished for runs in self.runs.values() for run in runs)
        lines = [
            f"sweep {self.folder.name}: {counted(self.num_trials, 'trial', 'trials')} x "
            f"{counted(len(self.folds), 'fold', 'folds')} x {counted(len(self.seeds), 'seed', 'seeds')} = {number} "
            f"runs{' at most' if self.options.scheduler != 'none' else ''}; {finished} finished; by {self.metric}",
            str(resources),
            self._estimate(number - finished),
        ]
        for trial in self.known:
            states = Counter(run.known.state for run in self.runs[trial.name])
            counts = ", ".join(f"{number} {state}" for state, number in states.items())
            values = ", ".join(f"{key}={value}" for key, value in trial.overrides.items())
            lines.append(f"{trial.name}: {values or 'as configured'}: {counts}")
        if self.is_search:
            lines.append("further trials are chosen by the results of those before them")
        return lines

    def _estimate(self, number: int) -> str:
        """Return in words how long so many runs take, by those that are finished."""
        if not number:
            return "nothing is left to do"
        names = {run.name for runs in self.runs.values() for run in runs}
        model = self.config.train.model
        found = [read_result(path.parent) for path in self.workdir.runs.glob(f"*/{RESULT}")]
        results = [result for result in found if result and "total_seconds" in result]
        alike = [one for one in results if one["name"] in names] or [one for one in results if one["model"] == model]
        if not alike:
            return "time: not known until a first run is finished"
        seconds = statistics.median(result["total_seconds"] for result in alike)
        total = seconds * number / self.options.concurrency
        return (
            f"time: about {duration(total)} for {number} runs of {duration(seconds)}, the median of {len(alike)} runs "
            f"that are finished in this workdir"
        )

    # --- The runs

    def run(self, resources: Resources) -> Outcome:
        """Do what is missing."""
        assert self.signals is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.is_search:
            self._plan(self.known)
            self._write_configs(self.known, resources)
        self._say_what_is_new(resources)
        self._write_plan()
        ended = "failed"
        try:
            self._give_sign_of_life()
            with (
                _Workers(self.folder, self.config, resources, self.signals) as workers,
                every(HEARTBEAT, self._give_sign_of_life),
            ):
                for wave in self._waves(resources):
                    self._run_wave(wave, workers)
                    self.signals.raise_if_requested()
            ended = "finished"
        except Stopped:
            ended = "stopped"
            raise
        finally:
            self._write_progress(ended)
            write_results(self.workdir)
        return Outcome(self._plan_now(), self.failed)

    def _say_what_is_new(self, resources: Resources) -> None:
        """Say how much there is to do, and which trials of the call before are none any more."""
        number = self.num_trials * len(self.folds) * len(self.seeds)
        if self.is_search:  # which are finished is seen as they are asked for
            logger.info("sweep %s: at most %d runs; %s", self.folder.name, number, resources)
            return
        finished = sum(run.is_finished for runs in self.runs.values() for run in runs)
        logger.info("sweep %s: %d of %d runs are finished; %s", self.folder.name, finished, number, resources)
        with contextlib.suppress(FileNotFoundError, InputError):
            before = {trial.name for trial in read_plan(self.folder).trials}
            gone = before - {trial.name for trial in self.known}
            if gone:
                logger.warning(
                    "%d trials of the call before do not belong to this sweep any more, as settings have changed; "
                    "their runs are kept, and are found again with the settings of then", len(gone),
                )  # fmt: skip
                for path in (self.folder / CONFIGS).glob("*.yaml"):
                    if path.name.rpartition("_seed")[0] in gone:
                        remove(path)

    def _run_wave(self, wave: Sequence[Trial], workers: _Workers) -> None:
        """Train trials fold by fold; between rungs those that are behind are stopped."""
        rungs = self._rungs()
        for number, folds in enumerate(rungs):
            self._run_folds(wave, folds, workers)
            for trial in wave:
                self.scores.setdefault(trial.name, []).extend(self._score(trial, fold) for fold in folds)
            if number == len(rungs) - 1:
                break
            going = survivors(
                self.scores, reduction=self.options.reduction, min_folds=self.options.min_folds, mode=self.options.mode
            )
            for trial in wave:
                if trial.name not in going:
                    stopped = len(self.scores[trial.name])
                    self.planned[trial.name] = replace(self.planned[trial.name], stopped=stopped)
            wave = [trial for trial in wave if trial.name in going]
            self._write_plan()

    def _run_folds(self, trials: Sequence[Trial], folds: Sequence[int | None], workers: _Workers) -> None:
        """Do those runs of some folds that are not finished: all trials in one fold before any in the next."""
        units = []
        for fold, trial in itertools.product(folds, trials):
            for run in self.runs[trial.name]:
                if run.fold == fold and not run.is_finished:
                    remove(mark_of(self.workdir.runs / run.name))
                    units.append(Unit(workers.resources.own(run.config), fold, run.name, self.redo))
        for unit, ran in workers.run(units):
            if ran.outcome == "failed":
                self.failed[unit.run] = ran.said
                logger.warning("%s: %s", unit.run, ran.said)
            elif ran.outcome == "finished":
                self._check_measure(unit.run)
            if time.monotonic() - self.wrote_results > RESULTS:
                write_results(self.workdir)
                self.wrote_results = time.monotonic()

    def _write_configs(self, trials: Sequence[Trial], resources: Resources) -> None:
        """Write the configurations with which ``scalemine train`` does the same runs."""
        others = 0
        for trial in trials:
            of_trial = self.runs[trial.name]
            for run in of_trial[: len(self.seeds)]:  # of one fold: the others have the same
                values = resources.own(run.config).model_dump(mode="json", exclude={"sweep"}, exclude_unset=True)
                text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
                path = self.folder / CONFIGS / f"{trial.name}_seed{run.seed}.yaml"
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    with write_whole(path) as temporary:
                        temporary.write_text(text, encoding="utf-8")
            results = [read_result(self.workdir.runs / run.name) for run in of_trial if run.is_finished]
            others += sum(result is not None and result.get("threads") != resources.threads for result in results)
        if others:
            logger.warning(
                "%d runs that are finished did not compute with %d thread(s): sums round otherwise, so their last "
                "digits are not those of a run with the configurations written now (result.json says their threads)",
                others, resources.threads,
            )  # fmt: skip

    def _score(self, trial: Trial, fold: int | None) -> float:
        """Return the metric's mean over seeds; nan where a run failed."""
        scores = []
        for run in self.planned[trial.name].runs:
            if run.fold == fold:
                result = None if run.run in self.failed else run.result(self.workdir)
                scores.append(math.nan if result is None else value_at(result, self.metric))
        return statistics.fmean(scores)

    def _waves(self, resources: Resources) -> Iterator[list[Trial]]:
        """Yield trials that are chosen together: all, or a few; how many does not hang on the workers."""
        if not self.is_search:
            yield self.known
            return
        searcher = TpeSearcher(self.config, self.options, self.config.seed)
        for first in range(0, self.num_trials, WAVE):
            asked = [searcher.ask(number) for number in range(first, min(first + WAVE, self.num_trials))]
            wave = list({trial.name: trial for trial in asked if trial.name not in self.planned}.values())
            self._plan(wave)
            self._write_configs(wave, resources)
            self._write_plan()
            yield wave
            for trial in wave:
                scores = self.scores.get(trial.name, [])
                mean = statistics.fmean(scores) if scores else None
                searcher.tell(trial, mean, self.planned[trial.name].stopped or 0)

    def _rungs(self) -> list[list[int | None]]:
        """Return the folds between which trials are judged."""
        if self.options.scheduler == "none" or len(self.folds) == 1:
            return [self.folds]
        edges, edge = [0], self.options.min_folds
        while edge < len(self.folds):
            edges.append(edge)
            edge *= self.options.reduction
        edges.append(len(self.folds))
        return [self.folds[start:end] for start, end in zip(edges, edges[1:], strict=False)]

    # --- Files

    def _plan_now(self) -> Plan:
        options = self.options
        return Plan(
            name=self.folder.name,
            why=self.config.why,
            metric=self.metric,
            mode=options.mode,
            search=options.search,
            scheduler=options.scheduler,
            folds=len(self.folds) if self.config.train.folds else 0,
            seeds=self.seeds,
            concurrency=options.concurrency,
            num_trials=self.num_trials,
            trials=tuple(self.planned.values()),
        )

    def _write_plan(self) -> None:
        self._plan_now().write(self.folder)

    def _write_progress(self, state: str) -> None:
        facts = {"state": state, "updated": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        write_json(self.folder / PROGRESS, {**facts, "failed": dict(self.failed)})

    def _give_sign_of_life(self) -> None:
        try:
            self._write_progress("running")
        except OSError as error:  # the disk may have room again
            logger.warning("%s: %s", self.folder / PROGRESS, error)


class _Workers:
    """Processes that do units; they start when there is something to do, and a request to stop is passed on to them."""

    def __init__(self, folder: Path, config: Config, resources: Resources, signals: StopSignals) -> None:
        self.folder, self.config, self.resources, self.signals = folder, config, resources, signals
        self._opened = contextlib.ExitStack()
        self._executor: Executor | None = None
        self._call = secrets.token_hex(8)  # what processes keep of the data is for this call

    def __enter__(self) -> _Workers:
        (self.folder / STOP).unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        (self.folder / STOP).unlink(missing_ok=True)

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Ran]]:
        """Yield what became of each unit, as they end; a process that dies is replaced, and its unit goes on.

        Raises:
            Stopped: A signal asked for it.
        """
        if not units:
            return
        if self._executor is None:
            self._executor = self._opened.enter_context(
                make_executor(
                    self.resources.compute(self.config.compute),
                    signals=self.signals,
                    wants_gpu=self.config.train.device != "cpu",
                    cpus_per_worker=self.resources.cpus_of_worker,
                    num_cpus=self.resources.cpus,
                )
            )
        runner = partial(Runner, self.folder, self._call, self.resources.memory_fraction)
        with every(LISTENING, self._pass_on):
            for outcome in self._executor.map(runner, units, in_flight=1, copies=False):
                ran = outcome.result or Ran("failed", (outcome.error or "").strip().splitlines()[-1])
                yield outcome.item, ran

    def _pass_on(self) -> None:
        """Turn a signal into a file that all processes see."""
        if self.signals.requested:
            (self.folder / STOP).touch()
