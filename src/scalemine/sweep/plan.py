"""What a sweep consists of: trials, and for each its runs by name; the file that says so, and what follows from it.

The results are those of the runs' own folders. The plan is written anew by each call, before anything runs, and names
which runs belong to which trial; it is all that ``status`` and ``compare`` need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scalemine.config import InputError
from scalemine.store import Workdir, fingerprint, is_plain_name, read_as, read_json, read_result, write_json

# Rises when the form of plan.json changes.
FORMAT = 1
# In a sweep's folder: what it consists of, and that it is going on.
PLAN, PROGRESS = "plan.json", "progress.json"


@dataclass(frozen=True)
class PlannedRun:
    """One run: a model trained with one seed and without one fold.

    Args:
        seed: Of the model.
        fold: Which is held out, from 0; None where there are no folds.
        run: Name of the folder in ``runs/``.
        stage: Hash of the settings and data that decide its model; another one's result is not this run's.
        scoring: Hash of what decides its scores beside that.
    """

    seed: int
    fold: int | None
    run: str
    stage: str | None = None
    scoring: str | None = None

    def result(self, workdir: Workdir) -> dict[str, Any] | None:
        """Return what came out; None where it is not finished, or what is there is of other data."""
        folder = workdir.runs / self.run
        result = read_result(folder)
        if result is None or self.stage is None:
            return result
        try:
            is_ours = fingerprint(read_json(folder / "stage.json")) == self.stage
        except FileNotFoundError:  # discarded just now
            return None
        return result if is_ours and fingerprint(result["scoring"]) == self.scoring else None


@dataclass(frozen=True)
class PlannedTrial:
    """One configuration, but for the seed.

    Args:
        name: Of the trial; see ``space.Trial``.
        arm: Of the sweep's arms; None: it has none.
        settings: What is laid over the sweep's configuration, by dotted key.
        stopped: Folds after which halving stopped it; None: it did not.
        runs: Fold by fold, and in each seed by seed.
    """

    name: str
    arm: str | None
    settings: Mapping[str, Any]
    stopped: int | None
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Args:
        name: Of the sweep.
        why: What it is for.
        metric: Dotted path into a result's metrics.
        mode: Whether more of it is better, or less.
        search: How trials are chosen.
        scheduler: Whether trials are stopped early.
        folds: How many; 0: none.
        seeds: Each trial is trained with each.
        concurrency: Runs at a time.
        num_trials: Trials there will be; more than are planned yet where later ones are chosen by the results.
        trials: Those that are planned.
    """

    name: str
    why: str
    metric: str
    mode: Literal["max", "min"]
    search: str
    scheduler: str
    folds: int
    seeds: tuple[int, ...]
    concurrency: int
    num_trials: int
    trials: tuple[PlannedTrial, ...]

    @property
    def runs_per_trial(self) -> int:
        """How many runs a trial has that is not stopped."""
        return max(1, self.folds) * len(self.seeds)

    def labels(self) -> dict[str, str]:
        """Return what to call each trial where people read it: its arm, and the values in which trials differ."""
        labels = {}
        counts: dict[str | None, Counter[tuple[str, str]]] = {}
        sizes = Counter(trial.arm for trial in self.trials)
        for trial in self.trials:
            counts.setdefault(trial.arm, Counter()).update((key, str(one)) for key, one in trial.settings.items())
        for trial in self.trials:
            alike = counts[trial.arm]
            keys = [key for key, one in trial.settings.items() if alike[key, str(one)] < sizes[trial.arm]]
            values = [f"{key.removeprefix('train.')}={_short(trial.settings[key])}" for key in keys]
            labels[trial.name] = ", ".join(([trial.arm] if trial.arm else []) + values) or trial.name
        return labels

    def write(self, folder: Path) -> None:
        """Write ``plan.json``."""
        write_json(folder / PLAN, {"format": FORMAT, **asdict(self)})


def mark_of(run: Path) -> Path:
    """Return the file that is there while a process is at a run: beside its folder, as that may be discarded."""
    return run.with_name(f".{run.name}.running.json")


def read_plan(folder: Path) -> Plan:
    """Return the plan in a sweep's folder.

    Raises:
        InputError: Another version wrote it, or it is damaged.
    """
    path = folder / PLAN
    if read_as(path, dict[str, Any]).get("format") != FORMAT:
        raise InputError(f"{path}: written by another version; scalemine sweep writes it anew")
    plan = read_as(path, Plan)
    runs = [run.run for trial in plan.trials for run in trial.runs]
    # They become paths, in folders that others may write.
    strange = [name for name in (*runs, *(trial.name for trial in plan.trials)) if not is_plain_name(name)]
    if strange or not plan.seeds or plan.concurrency < 1 or plan.folds < 0:
        said = f"{strange[0]!r} is no name" if strange else "no seeds, runs at a time, or folds"
        raise InputError(f"{path}: damaged ({said[:80]}); scalemine sweep writes it anew")
    return plan


def _short(value: object) -> str:
    """Return a value, of a path its last part."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else str(value)


def find_sweeps(workdir: Workdir, name: str | None = None) -> list[Path]:
    """Return the folders of a workdir's sweeps, or of one of them.

    Raises:
        InputError: There is none, or none of that name.
    """
    found = sorted(path.parent for path in workdir.sweeps.glob(f"*/{PLAN}"))
    if not found:
        raise InputError(f"{workdir.root}: no sweep here (expected sweeps/NAME/{PLAN}); scalemine sweep makes them")
    named = [folder for folder in found if name in (None, folder.name)]
    if not named:
        raise InputError(f"{workdir.root}: no sweep {name!r} here (there are: {_names(found)})")
    return named


def find_sweep(workdir: Workdir, name: str | None = None) -> Path:
    """Return the folder of a sweep, or of the only one.

    Raises:
        InputError: There is no such sweep, or no name where there are several.
    """
    found = find_sweeps(workdir, name)
    if len(found) > 1:
        raise InputError(f"{workdir.root}: several sweeps here; name one with --sweep (there are: {_names(found)})")
    return found[0]


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def value_at(result: Mapping[str, Any], metric: str) -> float:
    """Return a number of a result's metrics by its dotted path; nan where it is undefined.

    Raises:
        InputError: There is no such number.
    """
    value: Any = result["metrics"]
    for part in metric.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else "a number"
            raise InputError(f"sweep.metric: {metric}: run {result['name']} has no {part!r} there, but {known}")
        value = value[part]
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"sweep.metric: {metric} is no number in run {result['name']}; name one, such as held_out.f1")
    return float(value)
