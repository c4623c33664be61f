"""The arms of a sweep beside one another: what each scores, and whether it does better than the one it is held against.

Trials are compared run by run: same fold, same seed, same tweets. Each has an opponent: the trial that differs from it
in its side alone, the arm or the train set, where there is one, else the base of the whole sweep.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from scalemine.config import InputError
from scalemine.store import Json, Workdir
from scalemine.sweep.outcomes import (
    Findings,
    FinishedRun,
    Ids,
    Pair,
    SweepRuns,
    TrialRuns,
    read_findings,
    read_sweep,
)
from scalemine.sweep.plan import find_sweep
from scalemine.training.comparison import (
    FALSE_ALARMS,
    LEVEL,
    Difference,
    FoldTest,
    Summary,
    false_alarm_difference,
    fold_means,
    fold_test,
    holm,
    paired_bootstrap,
    summarise,
    verdict,
)
from scalemine.training.family import DEV, HELD_OUT
from scalemine.training.tagging.metrics import ALL_NEGATIVES, NO_GOLD

DEFAULT_BASE: Final = "random"  # a train set
_RESOLUTION: Final = 0.2  # of the level, at most: the least adjusted p that the rounds of the bootstrap can give
_MOST_ROUNDS: Final = 200_000  # that are drawn without being asked for
_TRAIN_SETS: Final = ("train.train_set", "train.train_uri")
# Where a result has each measure; spans and labels of all types together are "f1", "precision" and "recall".
_OF_TAGGERS: Final = {name: name for name in ("f1", "precision", "recall", "macro_f1")}
_OF_CLASSIFIERS: Final = {
    "f1": "micro_f1",
    "precision": "micro_precision",
    "recall": "micro_recall",
    "accuracy": "accuracy",
    "macro_f1": "macro_f1",
    "macro_auc": "roc_auc.macro",
    "macro_ap": "average_precision.macro",
}


@dataclass(frozen=True)
class TrialScores:
    """What a trial scores, over its finished runs.

    Args:
        name: Its name.
        side: What is compared: its train set, its arm, or its name.
        others: Settings that vary among the trials, but for those that make the side, by dotted key.
        arm: Its arm; None where the sweep has none.
        settings: What it lays over the sweep's configuration, by dotted key.
        train_set: What it is trained on; None while no run is finished that says so.
        model: Its model; None while no run is finished.
        words: How it reads words; None while no run is finished.
        stopped: After how many folds it was stopped; None: it was not.
        num_runs: Finished runs.
        num_planned: Runs of the whole trial.
        base: Name of the trial it is compared with; None: it is a base.
        metric: Of the sweep.
        best_epoch: The epoch that was chosen.
        epochs: Epochs that were run.
        seconds: Seconds of training of a run.
        scores: By test set and measure, in 0..1, and false alarms per 1,000 negatives.
    """

    name: str
    side: str
    others: Mapping[str, Any]
    arm: str | None
    settings: Mapping[str, Any]
    train_set: str | None
    model: str | None
    words: str | None
    stopped: int | None
    num_runs: int
    num_planned: int
    base: str | None
    metric: Summary | None
    best_epoch: Summary | None
    epochs: Summary | None
    seconds: Summary | None
    scores: Mapping[str, Mapping[str, Summary]]


@dataclass(frozen=True)
class Contrast:
    """A trial against its base, on one test set, by one measure.

    Args:
        trial: Its name.
        base: Name of the base.
        test_set: What they are tested on.
        measure: What is compared.
        difference: By tweets; the models are held fixed.
        folds: By folds; None where there are none.
        holm_p: The difference's p, adjusted for all trials of this test set and measure.
        folds_holm_p: The fold test's p, adjusted so too; None where it has none.
        verdict: What came out, in words.
        num_planned: Pairs of runs that there would be if all were finished.
    """

    trial: str
    base: str
    test_set: str
    measure: str
    difference: Difference
    folds: FoldTest | None
    holm_p: float
    folds_holm_p: float | None
    verdict: str
    num_planned: int


@dataclass(frozen=True)
class NotCompared:
    """A trial that is not compared with its base on a test set, and why; None: on no test set."""

    trial: str
    base: str
    test_set: str | None
    why: str


@dataclass(frozen=True)
class TestSet:
    """A test set: its tweets, of all folds where each has its own, and its negatives by kind."""

    name: str
    num_tweets: int
    negatives: Mapping[str, int]

    __test__ = False  # to pytest a name that begins so is a test


@dataclass(frozen=True)
class Comparison:
    """A sweep's arms compared.

    Args:
        sweep: Name of the sweep.
        why: What it is for.
        metric: What it is judged by, a dotted path into a result's metrics.
        mode: ``max`` or ``min``.
        folds: Number of folds; 0: none.
        seeds: Each trial is trained with each.
        search: How trials were chosen: ``grid``, or else perhaps by the metric.
        scheduler: ``none``, or what stopped trials by the metric.
        rounds: Of the bootstrap, as they were drawn.
        kind: ``tagger`` or ``classifier``.
        base: Name of the trial that is the base where none has the same other settings.
        chosen_on: What chose the epochs.
        test_sets: What all are tested on.
        trials: In the order of the plan.
        contrasts: By trial, test set and measure.
        not_compared: What is missing there.
    """

    sweep: str
    why: str
    metric: str
    mode: str
    folds: int
    seeds: tuple[int, ...]
    search: str
    scheduler: str
    rounds: int
    kind: str
    base: str
    chosen_on: tuple[str, ...]
    test_sets: tuple[TestSet, ...]
    trials: tuple[TrialScores, ...]
    contrasts: tuple[Contrast, ...]
    not_compared: tuple[NotCompared, ...]

    def as_dict(self) -> dict[str, Json]:
        """Return it as JSON has it."""
        found: dict[str, Json] = json.loads(json.dumps(asdict(self), default=str))
        return found


def compare(workdir: Path, name: str | None = None, base: str | None = None, rounds: int = 10_000) -> Comparison:
    """Compare the trials of a sweep by the runs that are finished.

    Args:
        workdir: Where the sweep is.
        name: Of the sweep; None: the only one.
        base: Name of a trial, an arm or a train set, or a part of a name that only one has; None: trained on
            ``random``, or else the first.
        rounds: Of the bootstrap; more are drawn where there are so many trials that no p could be evidence.

    Raises:
        InputError: There is no such sweep, no finished run, or no such base.
    """
    named = Workdir(workdir)
    sweep = read_sweep(named, find_sweep(named, name))
    finished = [run for trial in sweep.trials for run in trial.runs.values()]
    if not finished:
        raise InputError(f"{workdir}: no run of sweep {sweep.plan.name} is finished; scalemine sweep goes on with it")
    train_sets = _train_sets(sweep.trials)
    chosen, kind = _chosen(sweep.trials, train_sets, sweep.plan.labels(), base)
    sides = _sides(sweep.trials, train_sets, is_arm_named=kind == "arm")
    if kind == "trial":
        base_of = {trial.name: chosen.name for trial in sweep.trials if trial.name != chosen.name}
    else:
        base_of = _opponents(sweep.trials, sides, chosen)
    rounds = _enough_rounds(rounds, sweep.trials, base_of)
    sets = [key for key in dict.fromkeys(key for run in finished for key in run.result["metrics"]) if key != DEV]
    contrasts, not_compared = _compare_all(sweep, base_of, sets, rounds)
    others = _others(sweep.trials, sides)
    return Comparison(
        sweep=sweep.plan.name,
        why=sweep.plan.why,
        metric=sweep.plan.metric,
        mode=sweep.plan.mode,
        folds=sweep.plan.folds,
        seeds=sweep.plan.seeds,
        search=sweep.plan.search,
        scheduler=sweep.plan.scheduler,
        rounds=rounds,
        kind="tagger" if finished[0].is_tagger else "classifier",
        base=chosen.name,
        chosen_on=tuple(dict.fromkeys(run.result["chosen_on"] for run in finished)),
        test_sets=tuple(_test_set(key, [chosen, *sweep.trials]) for key in sets),
        trials=tuple(
            _scores(
                trial,
                side=sides.name_of[trial.name],
                others=others[trial.name],
                train_set=train_sets[trial.name],
                base=base_of.get(trial.name),
                metric=sweep.plan.metric,
                sets=sets,
            )
            for trial in sweep.trials
        ),
        contrasts=tuple(contrasts),
        not_compared=tuple(not_compared),
    )


# --- Who is compared with whom


def _train_sets(trials: Sequence[TrialRuns]) -> dict[str, str | None]:
    """Return by trial the name of what it is trained on, one per set or file; None where nothing says it.

    Trials that do not say it themselves have it from the sweep's configuration: all the same.
    """
    said = {
        trial.name: next((str(trial.settings[key]) for key in reversed(_TRAIN_SETS) if trial.settings.get(key)), None)
        for trial in trials
    }
    runs = [trial.first for trial in trials if said[trial.name] is None and trial.first is not None]
    common = runs[0].result["train_set"] if runs else None
    settings = {name: common if value is None else value for name, value in said.items()}
    names = _short_names({value for value in settings.values() if value is not None})
    return {name: None if value is None else names[value] for name, value in settings.items()}


def _short_names(settings: Collection[str]) -> dict[str, str]:
    """Return a name for each train set or file: the stem, and as many of its folders as tell it from the others."""
    depths = dict.fromkeys(settings, 0)
    while True:
        names = {one: _short_name(one, depth) for one, depth in depths.items()}
        times = Counter(names.values())
        alike = [one for one, name in names.items() if times[name] > 1]
        deeper = [one for one in alike if _short_name(one, depths[one] + 1) != names[one]]
        if not deeper:
            return names if not alike else {one: one if one in alike else name for one, name in names.items()}
        for one in deeper:
            depths[one] += 1


def _short_name(setting: str, num_folders: int) -> str:
    path = Path(setting)
    folders = [folder for folder in path.parts[:-1] if folder != path.anchor]
    return "/".join([*folders[max(0, len(folders) - num_folders) :], path.stem.removeprefix("train_")])


@dataclass(frozen=True)
class _Sides:
    """What is held against what.

    Args:
        name_of: The side of each trial: its train set, its arm, or itself.
        keys: The settings that make a side.
    """

    name_of: Mapping[str, str]
    keys: frozenset[str]

    def rest(self, trial: TrialRuns) -> str:
        """Return the other settings of a trial."""
        return _text({key: value for key, value in trial.settings.items() if key not in self.keys})


def _sides(trials: Sequence[TrialRuns], train_sets: Mapping[str, str | None], *, is_arm_named: bool) -> _Sides:
    """Return the sides: arms, or train sets where arms have several; without either each trial is one of its own.

    Args:
        trials: Of the sweep.
        train_sets: What each is trained on.
        is_arm_named: An arm is to be the base.
    """
    arms = {trial.arm for trial in trials}
    has_one_each = len({(trial.arm, train_sets[trial.name]) for trial in trials}) == len(arms)
    if len(arms) > 1 and (is_arm_named or has_one_each):
        return _Sides({trial.name: str(trial.arm) for trial in trials}, _arm_keys(trials))
    if len(set(train_sets.values())) > 1:
        return _Sides({name: str(value) for name, value in train_sets.items()}, frozenset(_TRAIN_SETS))
    return _Sides({trial.name: trial.name for trial in trials}, frozenset())


def _opponents(trials: Sequence[TrialRuns], sides: _Sides, chosen: TrialRuns) -> dict[str, str]:
    """Return by name of each trial that is compared the name of its base, where ``chosen`` is that of the sweep."""
    side = sides.name_of[chosen.name]
    of_base = {sides.rest(trial): trial.name for trial in trials if sides.name_of[trial.name] == side}
    of_base[sides.rest(chosen)] = chosen.name
    base_of = {
        trial.name: of_base.get(sides.rest(trial), chosen.name) for trial in trials if sides.name_of[trial.name] != side
    }
    # What is of the base's side without being anyone's base is compared with it too.
    bases = {chosen.name, *base_of.values()}
    idle = [trial.name for trial in trials if trial.name not in base_of and trial.name not in bases]
    return base_of | dict.fromkeys(idle, chosen.name)


def _arm_keys(trials: Sequence[TrialRuns]) -> frozenset[str]:
    """Return the keys that the arms give a value, as far as it shows: within each arm they do not vary."""
    values: dict[tuple[str | None, str], set[str]] = {}
    for trial in trials:
        for key, value in trial.settings.items():
            values.setdefault((trial.arm, key), set()).add(_text(value))
    varying = {key for (_, key), found in values.items() if len(found) > 1}
    return frozenset(key for _, key in values) - varying


Kind = Literal["trial", "arm", "train set"]


def _chosen(
    trials: Sequence[TrialRuns], train_sets: Mapping[str, str | None], labels: Mapping[str, str], base: str | None
) -> tuple[TrialRuns, Kind]:
    """Return the base of the sweep, and as what it was named."""
    kind: Kind = "train set"
    if base is not None:
        named, kind = _named(trials, train_sets, labels, base)
    else:
        # A file of such a name serves too, where it has to be told from others by its folder.
        names = [(trial, train_sets[trial.name] or "") for trial in trials if trial.runs]
        named = [trial for trial, name in names if name == DEFAULT_BASE]
        named = named or [trial for trial, name in names if name.endswith(f"/{DEFAULT_BASE}")] or list(trials)
    found = next((trial for trial in named if trial.runs), None)
    if found is None:
        raise InputError(f"--base {base}: no run of {named[0].name} is finished")
    return found, kind


def _named(
    trials: Sequence[TrialRuns], train_sets: Mapping[str, str | None], labels: Mapping[str, str], base: str
) -> tuple[list[TrialRuns], Kind]:
    """Return the trials of a name, one, or all of an arm or a train set, and what has the name."""

    def of_trial(one: TrialRuns) -> str | None:
        return one.name

    def of_label(one: TrialRuns) -> str | None:
        return labels[one.name]

    def of_arm(one: TrialRuns) -> str | None:
        return one.arm

    def of_set(one: TrialRuns) -> str | None:
        return train_sets[one.name]

    kinds: list[tuple[Callable[[TrialRuns], str | None], Kind]] = [(of_arm, "arm"), (of_set, "train set")]
    kinds += [(of_trial, "trial"), (of_label, "trial")]
    for name_of, kind in kinds:
        if found := [trial for trial in trials if name_of(trial) == base]:
            return found, kind
    for name_of, kind in (kinds[0], *kinds[2:]):
        found = [trial for trial in trials if base and base in (name_of(trial) or "")]
        if len({name_of(trial) for trial in found}) == 1:
            return found, kind
    what = "several have this in their names" if found else "no trial or arm has this name"
    known = {"arms": of_arm, "train sets": of_set, "trials": of_label}
    there = {word: [one for one in dict.fromkeys(map(name_of, trials)) if one] for word, name_of in known.items()}
    shown = "; ".join(f"{word}: {' | '.join(names)}" for word, names in there.items() if names)
    raise InputError(f"--base {base}: {what} ({shown})")


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _others(trials: Sequence[TrialRuns], sides: _Sides) -> dict[str, dict[str, Any]]:
    """Return for each trial its settings that vary among the trials, but for those of its side."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings if key not in sides.keys))
    varying = [key for key in keys if len({_text(trial.settings.get(key)) for trial in trials}) > 1]
    return {trial.name: {key: trial.settings[key] for key in varying if key in trial.settings} for trial in trials}


# --- Scores of a trial


def _scores(
    trial: TrialRuns,
    *,
    side: str,
    others: Mapping[str, Any],
    train_set: str | None,
    base: str | None,
    metric: str,
    sets: Sequence[str],
) -> TrialScores:
    first = trial.first.result if trial.first else {}
    names = {key: _measures(trial, key) for key in sets}
    scores = {
        key: {name: found for name in of_set if (found := _summary(trial, _getter(key, name))) is not None}
        for key, of_set in names.items()
    }
    return TrialScores(
        name=trial.name,
        side=side,
        others=dict(others),
        arm=trial.arm,
        settings=dict(trial.settings),
        train_set=train_set,
        model=first.get("model"),
        words=first.get("words"),
        stopped=trial.trial.stopped,
        num_runs=len(trial.runs),
        num_planned=trial.num_planned,
        base=base,
        metric=_summary(trial, lambda run: _at(run.result["metrics"], metric)),
        best_epoch=_summary(trial, lambda run: _at(run.result, "best_epoch")),
        epochs=_summary(trial, lambda run: _at(run.result, "epochs")),
        seconds=_summary(trial, lambda run: _at(run.result, "seconds")),
        scores={key: of_set for key, of_set in scores.items() if of_set},
    )


def _measures(trial: TrialRuns, test_set: str) -> list[str]:
    """Return the names of what the runs of a trial are measured by on a test set."""
    run = next((run for run in trial.runs.values() if test_set in run.result["metrics"]), None)
    if run is None:
        return []
    names = list(_OF_TAGGERS if run.is_tagger else _OF_CLASSIFIERS)
    kinds = list(_negatives(run, test_set))
    return names + [FALSE_ALARMS if kind == ALL_NEGATIVES else f"{FALSE_ALARMS}.{kind}" for kind in kinds]


def _negatives(run: FinishedRun, test_set: str) -> dict[str, int]:
    """Return how many negatives of each kind a run was tested on; "all" holds all kinds."""
    alarms = run.result["metrics"][test_set][FALSE_ALARMS]
    if not run.is_tagger:
        alarms = {ALL_NEGATIVES: alarms}
    kinds = sorted((kind for kind in alarms if kind != NO_GOLD), key=lambda kind: (kind != ALL_NEGATIVES, kind))
    return {kind: alarms[kind]["num_tweets"] for kind in kinds if alarms[kind]["num_tweets"]}


def _getter(test_set: str, measure: str) -> Callable[[FinishedRun], float | None]:
    """Return what looks a measure up in a run."""
    name, _, kind = measure.partition(".")

    def value(run: FinishedRun) -> float | None:
        if name == FALSE_ALARMS:
            path = f"{FALSE_ALARMS}.{kind or ALL_NEGATIVES}.per_1000" if run.is_tagger else f"{FALSE_ALARMS}.per_1000"
        else:
            path = (_OF_TAGGERS if run.is_tagger else _OF_CLASSIFIERS)[measure]
        return _at(run.result["metrics"].get(test_set, {}), path)

    return value


def _summary(trial: TrialRuns, value: Callable[[FinishedRun], float | None]) -> Summary | None:
    values: dict[tuple[Hashable, Hashable], float] = {
        pair: found for pair, run in trial.runs.items() if (found := value(run)) is not None
    }
    return summarise(values) if values else None


def _at(values: Json, path: str) -> float | None:
    """Return the number at a dotted path; None where there is none."""
    parts = path.split(".")
    while parts and isinstance(values, dict):
        # Names of sets and kinds may have dots: the longest key that is there.
        number = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in values), None)
        if number is None:
            return None
        values, parts = values[".".join(parts[:number])], parts[number:]
    is_number = not parts and isinstance(values, int | float) and np.isfinite(values)
    return float(values) if is_number else None


def _test_set(key: str, trials: Sequence[TrialRuns]) -> TestSet:
    """Return a test set as the first trial has it that was tested on it."""
    runs = next(found for trial in trials if (found := _tested(trial, key)))
    of_folds = list({fold: run for (fold, _), run in runs.items()}.values())
    chosen = of_folds if key == HELD_OUT else of_folds[:1]
    negatives: dict[str, int] = {}
    for run in chosen:
        for kind, number in _negatives(run, key).items():
            negatives[kind] = negatives.get(kind, 0) + number
    return TestSet(key, sum(_num_tweets(run, key) or 0 for run in chosen), negatives)


def _num_tweets(run: FinishedRun, test_set: str) -> int | None:
    scored = run.result["metrics"].get(test_set)
    return None if scored is None else int(scored["num_tweets" if run.is_tagger else "num_rows"])


# --- Comparisons


def _enough_rounds(asked: int, trials: Sequence[TrialRuns], base_of: Mapping[str, str]) -> int:
    """Return how many rounds to draw: their least p, 2 / (rounds + 1), is adjusted for all trials that are compared."""
    runs = {trial.name: trial.runs.keys() for trial in trials}
    num_compared = sum(bool(runs[name] & runs[base]) for name, base in base_of.items())
    wanted = math.ceil(2 * num_compared / (_RESOLUTION * LEVEL)) - 1
    return max(asked, min(wanted, _MOST_ROUNDS))


def _compare_all(
    sweep: SweepRuns, base_of: Mapping[str, str], sets: Sequence[str], rounds: int
) -> tuple[list[Contrast], list[NotCompared]]:
    by_name = {trial.name: trial for trial in sweep.trials}
    found: list[Contrast] = []
    missing: list[NotCompared] = []
    for name, base in base_of.items():
        if not by_name[name].runs.keys() & by_name[base].runs.keys():
            none = next((one for one in (name, base) if not by_name[one].runs), None)
            why = f"no run of {none} is finished" if none else "no finished runs with the same fold and seed"
            missing.append(NotCompared(name, base, None, why))
    for key in sets:
        of_set = []
        # Predictions of a base and of one trial are held at a time.
        for base in dict.fromkeys(base_of.values()):
            known: dict[Ids, Ids] = {}
            of_base = _read(by_name[base], key, known)
            for name in (name for name, against in base_of.items() if against == base):
                try:
                    of_other = _read(by_name[name], key, known)
                    of_set += list(_contrasts(by_name[base], by_name[name], key, of_base, of_other, rounds))
                except _NotComparableError as error:
                    missing.append(NotCompared(name, base, key, str(error)))
        found += _adjusted(of_set)
    order = {name: number for number, name in enumerate(base_of)}
    return sorted(found, key=lambda one: order[one.trial]), sorted(missing, key=lambda one: order[one.trial])


class _NotComparableError(Exception):
    """Two trials cannot be compared on a test set; the message says why."""


def _tested(trial: TrialRuns, test_set: str) -> dict[Pair, FinishedRun]:
    return {pair: run for pair, run in trial.runs.items() if test_set in run.result["metrics"]}


def _read(trial: TrialRuns, test_set: str, known: dict[Ids, Ids]) -> dict[Pair, Findings]:
    """Return what each run of a trial finds in a test set; runs whose predictions are gone are left out."""
    found = {}
    for pair, run in _tested(trial, test_set).items():
        try:
            found[pair] = read_findings(run, test_set, known)
        except FileNotFoundError:
            continue
    return found


def _contrasts(
    base: TrialRuns,
    other: TrialRuns,
    test_set: str,
    found_by_base: Mapping[Pair, Findings],
    found_by_other: Mapping[Pair, Findings],
    rounds: int,
) -> Iterator[Contrast]:
    """Yield a trial's contrasts on a test set; their p-values are not adjusted yet.

    Raises:
        _NotComparableError: They are not tested on the same tweets.
    """
    both = [pair for pair in base.runs if pair in other.runs]
    if not both:
        return  # said once for all test sets
    pairs = [pair for pair in both if pair in found_by_base and pair in found_by_other]
    if not pairs:
        raise _NotComparableError("the predictions of one of them are not there")
    of_base, of_other = ([found[pair] for pair in pairs] for found in (found_by_base, found_by_other))
    _check_same_tweets(of_base, of_other)
    for measure, difference in _differences(of_base, of_other, rounds).items():
        yield Contrast(
            trial=other.name,
            base=base.name,
            test_set=test_set,
            measure=measure,
            difference=difference,
            folds=_by_folds(base, other, pairs, _getter(test_set, measure)),
            holm_p=difference.p,
            folds_holm_p=None,
            verdict="",
            num_planned=min(base.num_planned, other.num_planned),
        )


def _differences(base: Sequence[Findings], other: Sequence[Findings], rounds: int) -> dict[str, Difference]:
    """Return the differences by measure: of spans or labels, and of false alarms, by kind where there are several."""
    counts = ([one.counts for one in of_arm] for of_arm in (base, other))
    found = {str(measure): one for measure, one in paired_bootstrap(*counts, rounds=rounds).items()}
    kinds = [kind for kind in base[0].alarms if all(kind in one.alarms for one in (*base, *other))]
    kinds = kinds if len(kinds) > 2 else [kind for kind in kinds if kind == ALL_NEGATIVES]  # one kind is all there is
    for kind in kinds:
        alarms = ([one.alarms[kind] for one in of_arm] for of_arm in (base, other))
        measure = FALSE_ALARMS if kind == ALL_NEGATIVES else f"{FALSE_ALARMS}.{kind}"
        found[measure] = false_alarm_difference(*alarms, rounds=rounds)
    return found


def _check_same_tweets(base: Sequence[Findings], other: Sequence[Findings]) -> None:
    for one, another in zip(base, other, strict=True):
        ids, others = one.counts.ids, another.counts.ids
        if ids is not others and sorted(ids) != sorted(others):
            common = len(set(ids) & set(others))
            raise _NotComparableError(
                f"tested on other tweets: {common:,} of {len(ids):,} and {len(others):,} are the same (a held-out fold "
                f"has the negatives of its train set)"
            )
        if ids != others:
            raise _NotComparableError("the predictions have the same tweets in another order")
        targets, of_other = (
            [found.counts.counts_N3[:, 2], *(found.alarms[kind].alarms_N2[:, 1] for kind in sorted(found.alarms))]
            for found in (one, another)
        )
        if len(targets) != len(of_other) or not all(map(np.array_equal, targets, of_other)):
            raise _NotComparableError("the same tweets have other labels")


def _by_folds(
    base: TrialRuns, other: TrialRuns, pairs: Sequence[Pair], value: Callable[[FinishedRun], float | None]
) -> FoldTest | None:
    """Return the test over folds of the means over seeds; None without folds."""
    if any(fold is None for fold, _ in pairs):
        return None
    means = []
    for trial in (base, other):
        values: dict[tuple[Hashable, Hashable], float] = {
            pair: found for pair in pairs if (found := value(trial.runs[pair])) is not None
        }
        if len(values) < len(pairs):
            return None
        means.append(fold_means(values))
    # What a fold leaves out makes the training sets differ, whatever they are tested on.
    shares = [
        (_num_tweets(run, HELD_OUT) or 0) / max(run.result["train_tweets"], 1)
        for trial in (base, other)
        for run in map(trial.runs.__getitem__, pairs)
    ]
    share = float(np.mean(shares)) if all(shares) else None
    return fold_test(list(means[0].values()), list(means[1].values()), test_share=share)


def _adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts of one test set with p-values adjusted among those of the same measure, and verdicts."""
    found = []
    for measure in dict.fromkeys(one.measure for one in contrasts):
        alike = [one for one in contrasts if one.measure == measure]
        of_folds = [one.folds.p for one in alike if one.folds is not None and one.folds.p is not None]
        adjusted = iter(holm(of_folds))
        for one, p in zip(alike, holm([one.difference.p for one in alike]), strict=True):
            folds_p = next(adjusted) if one.folds is not None and one.folds.p is not None else None
            said = verdict(one.difference, p, folds_p)
            found.append(replace(one, holm_p=p, folds_holm_p=folds_p, verdict=said))
    return found
