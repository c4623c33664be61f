"""The trials of a sweep: all points of a grid, random points, or points that earlier results speak for.

A *trial* is one configuration but for the seed; it is trained in every fold and with every seed. It is named by what it
differs in and by a hash of the settings that decide its runs, so the same settings have the same name however wide the
space is, and are tried once.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalemine.config import (
    MOST_TRIALS,
    Config,
    Dimension,
    InputError,
    SweepConfig,
    check_values,
    dotted_keys,
    foreign_keys,
)
from scalemine.store import fingerprint
from scalemine.training.family import run_settings
from scalemine.training.runs import family_of

_MINED = "decides what is mined, and a sweep only trains; mine into several workdirs, and vary train.train_uri"
_COMPARED = "trials are compared on the same tweets, so all have the same"
_TARGETS = "says what is learnt, and trials that learn other things cannot be compared"
_INCIDENTAL = "changes no result; give it in the config"
# Why keys cannot vary: by key, or by section.
_FIXED = {
    "workdir": "a sweep has one",
    "seed": "give sweep.seeds",
    "why": "changes no result",
    "tracking": _INCIDENTAL,
    "compute": _INCIDENTAL,
    "sweep": "a sweep is not part of itself",
    **dict.fromkeys(("corpus", "positives", "mining", "guard", "index", "sets"), _MINED),
    "encoder": "decides what is mined; vary train.encoder",
    "train.name": "runs of a sweep are named by their settings",
    **dict.fromkeys(("train.test_sets", "train.test_uris", "train.unseen_types", "train.bootstrap"), _COMPARED),
    **dict.fromkeys(("train.folds", "train.fold_seed", "train.stratify", "train.group_by"), _COMPARED),
    "train.near_duplicate": _COMPARED,
    **dict.fromkeys(("labels.text", "labels.id", "labels.column", "labels.columns", "labels.categories"), _TARGETS),
    **dict.fromkeys(("labels.unknown_values", "labels.names", "labels.absent", "labels.weight"), _TARGETS),
    "labels.groups": _COMPARED,
}
# What changes the place or the pace of a run: an arm may need another, and alone it makes no other trial.
_PACE = frozenset({"train.processes", "train.micro_batch", "train.device", "train.checkpoint_steps"})
# Where in a range a value is looked at before anything runs: both ends, and one that is no whole number.
_LOOKED_AT = (0.0, 0.381966, 1.0)
_LONGEST_VALUE, _LONGEST_NAME = 24, 100


@dataclass(frozen=True)
class Trial:
    """One configuration, but for the seed.

    Args:
        name: Fit for a folder; the same for the same settings.
        overrides: What is laid over the sweep's configuration, by dotted key: the arm's values, and those of the space
            that matter to what is trained.
        arm: The arm's name; None: the sweep has no arms.
    """

    name: str
    overrides: Mapping[str, Any] = field(hash=False)
    arm: str | None = None

    def config(self, base: Config, seed: int | None = None) -> Config:
        """Return the trial's configuration, which is no sweep.

        Args:
            base: The sweep's configuration.
            seed: One of ``seeds_of``; None: that of the configuration.

        Raises:
            InputError: A value is not one that its key can have, or does not go with the others.
        """
        return _lay(base, self.arm, self.overrides if seed is None else {**self.overrides, "seed": seed})


def seeds_of(base: Config, sweep: SweepConfig) -> tuple[int, ...]:
    """Return the seeds that each trial is trained with."""
    return sweep.seeds or (base.seed,)


def looked_at(base: Config, sweep: SweepConfig) -> Sequence[Config]:
    """Return configurations that have each value of the space in each arm, and both ends of each range.

    Raises:
        InputError: The space or an arm is not one that can be.
    """
    return _open(base, sweep).looked_at


def grid(base: Config, sweep: SweepConfig) -> list[Trial]:
    """Return each point of the space in each arm; the last key varies fastest, and what comes to the same comes once.

    Raises:
        InputError: The space or an arm is not one that can be, or there are too many trials.
    """
    number = len(sweep.arms or [None]) * math.prod(len(one.choice or ()) for one in sweep.space.values())
    _refuse_too_many(number)
    space = _open(base, sweep)
    points = (dict(zip(space.choices, values, strict=True)) for values in itertools.product(*space.choices.values()))
    return _distinct(space.trial(arm, point) for arm, point in itertools.product(space.arms, points))


def random_trials(base: Config, sweep: SweepConfig, seed: int) -> list[Trial]:
    """Return points drawn at random, the same ones in each arm; what comes to the same comes once.

    A value depends on the seed, the point's number, its key and the key's values alone, so more trials add to fewer.

    Raises:
        InputError: The space or an arm is not one that can be, or there are too many trials.
    """
    _refuse_too_many(len(sweep.arms or [None]) * sweep.trials_per_arm)
    space = _open(base, sweep)
    points = (
        {key: space.value_at(key, _uniform(f"{seed}:{number}:{key}")) for key in sweep.space}
        for number in range(sweep.trials_per_arm)
    )
    return _distinct(space.trial(arm, point) for point, arm in itertools.product(points, space.arms))


class TpeSearcher:
    """Tree-structured Parzen estimators, each arm with a search of its own.

    A trial depends on the seed, its number, what was told so far, in order, and what is under way. So a search whose
    results are told again goes on as if it had not stopped, and results that lie outside the space are passed over.

    Source: Bergstra et al. (2011), as in Optuna, with its constant liar for what is under way.
    """

    def __init__(self, base: Config, sweep: SweepConfig, seed: int) -> None:
        """Open the search.

        Raises:
            InputError: The space or an arm is not one that can be, there are too many trials, or Optuna is missing.
        """
        try:
            import optuna
        except ImportError:
            raise InputError("sweep.search: tpe wants Optuna: pip install 'scalemine[optuna]'") from None
        logging.getLogger(optuna.__name__).setLevel(logging.WARNING)  # it reports every study
        _refuse_too_many(len(sweep.arms or [None]) * sweep.trials_per_arm)
        self._space, self._seed = _open(base, sweep), seed
        self._direction = "maximize" if sweep.mode == "max" else "minimize"
        self._told: dict[str, tuple[Trial, float, int]] = {}
        self._failed: set[str] = set()
        self._under_way: dict[str, Trial] = {}
        self._texts = {key: [_text(value) for value in values] for key, values in self._space.choices.items()}
        self._distributions = {
            key: optuna.distributions.CategoricalDistribution(self._texts[key])
            if dimension.bounds is None
            else optuna.distributions.IntDistribution(*dimension.bounds, log=dimension.is_log)
            if dimension.is_int
            else optuna.distributions.FloatDistribution(*dimension.bounds, log=dimension.is_log)
            for key, dimension in sweep.space.items()
        }

    def ask(self, number: int) -> Trial:
        """Return a trial to run, of each arm in turn; perhaps one that was run before, if the space has few points."""
        import optuna

        arm = list(self._space.arms)[number % len(self._space.arms)]
        seed = int(_uniform(f"{self._seed}:{number}:tpe") * 2**32)
        # Made anew, since Optuna's own state is random numbers drawn so far, which a restart would have lost.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)
        study = optuna.create_study(sampler=sampler, direction=self._direction)
        state = optuna.trial.TrialState
        for trial, value, pruned in self._told.values():
            if trial.arm != arm:
                continue
            if pruned:
                self._add(study, trial, state=state.PRUNED, intermediate_values={pruned: value})
            else:
                self._add(study, trial, state=state.COMPLETE, value=value)
        for trial in self._under_way.values():
            if trial.arm == arm:
                self._add(study, trial, state=state.RUNNING)
        point = study.ask(self._distributions).params
        for key, texts in self._texts.items():
            point[key] = self._space.choices[key][texts.index(point[key])]
        asked = self._space.trial(arm, point)
        if asked.name not in self._told and asked.name not in self._failed:
            self._under_way[asked.name] = asked
        return asked

    def tell(self, trial: Trial, value: float | None, pruned: int = 0) -> None:
        """Take note of what came of a trial.

        Args:
            trial: That was asked for.
            value: The metric's mean over folds and seeds; None: it failed.
            pruned: Folds after which it was stopped; 0: it ran to its end.
        """
        self._under_way.pop(trial.name, None)
        if value is None or math.isnan(value):
            self._failed.add(trial.name)
        else:
            self._told[trial.name] = (trial, value, pruned)

    def _add(self, study: Any, trial: Trial, **facts: Any) -> None:  # noqa: ANN401  Optuna's
        """Add a trial to a study, unless it lies outside the space."""
        from optuna.trial import create_trial

        params: dict[str, Any] = {}
        for key, dimension in self._distributions.items():
            if key not in trial.overrides:
                continue  # of no matter to what is trained
            value = trial.overrides[key]
            params[key] = _text(value) if key in self._texts else value
            if key in self._texts:
                inside = params[key] in self._texts[key]
            else:
                inside = isinstance(value, int | float) and dimension.low <= value <= dimension.high
            if not inside:
                return
        distributions = {key: self._distributions[key] for key in params}
        study.add_trial(create_trial(params=params, distributions=distributions, **facts))


@dataclass(frozen=True)
class _Space:
    """A space and arms that were looked at: every key is known and may vary, every value is one that it can have.

    Args:
        base: The sweep's configuration.
        arms: Values by dotted key, by name; None is the name where the sweep has no arms.
        dimensions: As the sweep gives them.
        choices: The values of those that are lists, as a configuration holds them, in JSON.
        looked_at: A configuration for each value of each key in each arm, with the first of every other key.
    """

    base: Config
    arms: Mapping[str | None, Mapping[str, Any]]
    dimensions: Mapping[str, Dimension]
    choices: Mapping[str, Sequence[Any]]
    looked_at: Sequence[Config]

    def value_at(self, key: str, share: float) -> Any:  # noqa: ANN401  any value of a configuration
        """Return the value that a share of all values, from 0 to below 1, lies below."""
        dimension = self.dimensions[key]
        if dimension.bounds is None:
            return self.choices[key][int(share * len(self.choices[key]))]
        return _point(dimension, share)

    def trial(self, arm: str | None, point: Mapping[str, Any]) -> Trial:
        """Return the trial of a point in an arm.

        Raises:
            InputError: The values do not go with one another.
        """
        config = _lay(self.base, arm, {**self.arms[arm], **point})
        settings = _settings(config)
        held = config.model_dump(mode="json")
        overrides = {key: _at(held, key) for key in (*self.arms[arm], *(key for key in point if key in settings))}
        before = self.base.model_dump(mode="json")
        said = [] if arm is None else [arm]
        said += [
            f"{key.removeprefix('train.')}-{_short(value)}"
            for key, value in sorted(overrides.items())
            if key not in self.arms[arm] and value != _at(before, key)
        ]
        readable = "_".join(said)[:_LONGEST_NAME].rstrip("-_.") or "base"
        return Trial(f"{readable}_{fingerprint(settings)[:10]}", overrides, arm)


def _open(base: Config, sweep: SweepConfig) -> _Space:
    """Look at each value of the space once in each arm, with the first of every other key.

    Raises:
        InputError: A key or a value is not one that can be, a key makes no difference, or two arms are the same.
    """
    _check_keys(sweep)
    named: list[str | None] = [*sweep.arms] or [None]
    arms = {arm: {} if arm is None else sweep.arms[arm] for arm in named}
    values = {
        key: list(one.choice) if one.choice else [_point(one, share) for share in _LOOKED_AT]
        for key, one in sweep.space.items()
    }
    first = {key: of_key[0] for key, of_key in values.items()}
    held: dict[str, list[Any]] = {key: [] for key in sweep.space}
    matter: set[str] = set()
    looked_at: list[Config] = []
    arm_of: dict[str, str | None] = {}
    for arm, overrides in arms.items():
        settings = _settings(_lay(base, arm, {**overrides, **first}))
        same = arm_of.setdefault(fingerprint(settings), arm)
        if same != arm:
            raise InputError(f"sweep.arms: {same} and {arm} come to the same settings; drop one")
        for key, of_key in values.items():
            configs = [_lay(base, arm, {**overrides, **first, key: value}) for value in of_key]
            looked_at += configs
            matter = matter.union(*(_settings(config) for config in configs))
            held[key] = [_at(config.model_dump(mode="json"), key) for config in configs]
    for key in sweep.space:
        if key not in matter:
            raise InputError(f"sweep.space: {key} makes no difference to what is trained here; drop it")
    choices = {key: held[key] for key, one in sweep.space.items() if one.choice}
    return _Space(base, arms, sweep.space, choices, looked_at)


def _check_keys(sweep: SweepConfig) -> None:
    """Refuse keys that are not known, or that cannot vary."""
    known = dotted_keys()
    given = [("sweep.space", key) for key in sweep.space]
    given += [(f"sweep.arms.{arm}", key) for arm, values in sweep.arms.items() for key in values]
    for where, key in given:
        section = key.split(".")[0]
        reason = _FIXED.get(key) or _FIXED.get(section)
        if key in _PACE and where == "sweep.space":
            reason = _INCIDENTAL
        if key.split(".")[-1] in ("seed", "seeds"):
            raise InputError(f"{where}: {key}: give sweep.seeds, with which each trial is trained")
        if key not in known:
            near = [one for one in known if one.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "expected a key of the config, such as train.lr"
            raise InputError(f"{where}: {key}: unknown key; {hint}")
        if reason:
            raise InputError(f"{where}: {key} cannot vary: {reason}")


def _lay(base: Config, arm: str | None, overrides: Mapping[str, Any]) -> Config:
    """Return the configuration with values laid over it by dotted key."""
    # What was not given is as the model of the arm has it.
    values = base.model_dump(exclude_unset=True) | {"sweep": {}}
    model = overrides.get("train.model", base.train.model)
    # Of a model in the space, keys of another kind are of no matter; given for it alone they are refused.
    foreign = foreign_keys(model)
    for key, value in overrides.items():
        if "train.model" in overrides and key.removeprefix("train.") in foreign:
            continue
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    where = "sweep.space" if arm is None else f"sweep.arms.{arm} and sweep.space"
    return check_values(values, f"{where} ({', '.join(f'{key}={value}' for key, value in overrides.items())})")


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide a trial's runs, but for the seed, by dotted key."""
    settings = run_settings(config, family_of(config))
    del settings["seed"]
    if config.train.train_uri is not None:
        del settings["train.train_set"]
    return settings


def _distinct(trials: Iterable[Trial]) -> list[Trial]:
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.name, trial)
    return list(found.values())


def _refuse_too_many(number: int) -> None:
    if number > MOST_TRIALS:
        raise InputError(f"sweep: expected at most {MOST_TRIALS:,} trials; got {number:,} (fewer values, or a search)")


def _uniform(text: str) -> float:
    """Return a number in [0, 1) that a text decides."""
    return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 11) / 2.0**53


def _point(dimension: Dimension, share: float) -> float | int:
    """Return the point of a range that a share of it lies below."""
    assert dimension.bounds is not None
    low, high = dimension.bounds
    # Whole numbers stand for what rounds to them, so that the ends are as probable as the others.
    margin = 0.5 if dimension.is_int else 0.0
    start, end = low - margin, high + margin
    if dimension.is_log:
        value = math.exp(math.log(start) + share * (math.log(end) - math.log(start)))
    else:
        value = start + share * (end - start)
    return min(max(round(value) if dimension.is_int else value, low), high)


def _at(values: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401  any value of a configuration
    for part in key.split("."):
        values = values[part]
    return values


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: object) -> str:
    """Return a value as part of a file name."""
    if isinstance(value, float):
        text = f"{value:.3g}"
    elif isinstance(value, str):
        text = value.rstrip("/").rsplit("/", 1)[-1]
    else:
        text = _text(value)
    return re.sub(r"[^\w.]+", "-", text).strip("-")[:_LONGEST_VALUE]
