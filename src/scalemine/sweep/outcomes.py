"""What a sweep has found so far: its trials, their finished runs, and what each run finds in each tweet.

Shapes: N tweets, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import InputError
from scalemine.store import Json, Workdir
from scalemine.sweep.plan import Plan, PlannedTrial, read_plan
from scalemine.training.comparison import Alarms, Counts
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.multilabel.examples import IS_NEGATIVE
from scalemine.training.tagging.labels import OUTSIDE, spans_of_tags
from scalemine.training.tagging.metrics import ALL_NEGATIVES

# Fold and seed; the fold is None where there are no folds.
Pair = tuple[int | None, int]
Ids = tuple[str, ...]  # of the tweets of a test set, in its order


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that is finished.

    Args:
        folder: Its folder.
        result: What ``result.json`` says.
    """

    folder: Path
    result: Json

    @property
    def is_tagger(self) -> bool:
        """Whether it gives spans; else it gives labels."""
        return "labels" not in self.result


@dataclass(frozen=True, eq=False)
class TrialRuns:
    """A trial and its runs that are finished.

    Args:
        trial: As it was planned.
        num_planned: Runs of the whole trial, had it not been stopped.
        runs: The finished ones, by fold and seed.
    """

    trial: PlannedTrial
    num_planned: int
    runs: Mapping[Pair, FinishedRun]

    @property
    def name(self) -> str:
        """Its name."""
        return self.trial.name

    @property
    def arm(self) -> str | None:
        """Its arm; None where the sweep has none."""
        return self.trial.arm

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it lays over the sweep's configuration, by dotted key."""
        return self.trial.settings

    @property
    def first(self) -> FinishedRun | None:
        """Any run that is finished."""
        return next(iter(self.runs.values()), None)


@dataclass(frozen=True, eq=False)
class SweepRuns:
    """A sweep as it was planned, and the runs that are finished.

    Args:
        plan: The plan.
        trials: In its order.
    """

    plan: Plan
    trials: tuple[TrialRuns, ...]


@dataclass(frozen=True, eq=False)
class Findings:
    """What one run finds in the tweets of one test set.

    Args:
        counts: Correct, predicted and gold spans, or labels, of each tweet.
        alarms: Which negatives are given something, by the kind of negative; "all" holds all of them. Empty where the
            set has no negatives.
    """

    counts: Counts
    alarms: Mapping[str, Alarms]


def read_sweep(workdir: Workdir, folder: Path) -> SweepRuns:
    """Return a sweep with its finished runs."""
    plan = read_plan(folder)
    return SweepRuns(plan, tuple(_read_trial(workdir, trial, plan.runs_per_trial) for trial in plan.trials))


def _read_trial(workdir: Workdir, trial: PlannedTrial, num_planned: int) -> TrialRuns:
    runs = {}
    for planned in trial.runs:
        folder = workdir.runs / planned.run
        result = planned.result(workdir)
        if result is not None:
            runs[planned.fold, planned.seed] = FinishedRun(folder, result)
    return TrialRuns(trial, num_planned, runs)


def read_findings(run: FinishedRun, test_set: str, known: dict[Ids, Ids] | None = None) -> Findings:
    """Return what a run finds in each tweet of a test set, from its predictions.

    Args:
        run: The run.
        test_set: Of its test sets.
        known: Ids of test sets that were read before, to which new ones are added; runs that are tested on the same
            tweets then hold their ids once.

    Raises:
        FileNotFoundError: The predictions are not there.
    """
    path = run.folder / "predictions" / f"{test_set}.parquet"
    known = {} if known is None else known
    if run.is_tagger:
        return _of_tagger(path, known)
    of_label = run.result["metrics"][test_set]["per_label"]
    return _of_classifier(path, {label: scores["threshold"] for label, scores in of_label.items()}, known)


def _ids(column: pa.ChunkedArray, known: dict[Ids, Ids]) -> Ids:
    ids = tuple(column.to_pylist())
    return known.setdefault(ids, ids)


def _of_tagger(path: Path, known: dict[Ids, Ids]) -> Findings:
    table = pq.read_table(path, columns=["id", "negative_kind", "gold", "predicted"])
    ids = _ids(table["id"], known)
    gold, predicted = (_spans(table[name]) for name in ("gold", "predicted"))
    counts_N3 = np.zeros((len(ids), 3), np.int32)
    for row in gold.keys() | predicted.keys():
        of_gold, of_predicted = gold.get(row, frozenset()), predicted.get(row, frozenset())
        counts_N3[row] = len(of_gold & of_predicted), len(of_predicted), len(of_gold)
    kinds = table["negative_kind"].to_pylist()
    found = sorted({kind for kind in kinds if kind is not None})
    masks = {ALL_NEGATIVES: np.array([kind is not None for kind in kinds], np.bool_)}
    masks |= {name: np.array([kind == name for kind in kinds], np.bool_) for name in found}
    return Findings(Counts(ids, counts_N3), _alarms(ids, counts_N3[:, 1] > 0, masks))


def _spans(tags: pa.ChunkedArray) -> dict[int, frozenset[Any]]:
    """Return the spans of each row that has any: most rows of a test set with many negatives have none."""
    column = tags.combine_chunks()
    inside = pc.not_equal(pc.list_flatten(column), OUTSIDE)
    rows = np.unique(pc.list_parent_indices(column).filter(inside).to_numpy(zero_copy_only=False))
    return {
        row: frozenset(spans_of_tags(of_row))
        for row, of_row in zip(rows.tolist(), column.take(pa.array(rows, pa.int64())).to_pylist(), strict=True)
    }


def _of_classifier(path: Path, thresholds: Mapping[str, float], known: dict[Ids, Ids]) -> Findings:
    labels, targets_NC, scores_NC = read_predictions(path)
    table = pq.read_table(path)
    if IS_NEGATIVE not in table.column_names:
        raise InputError(f"{path}: written by an older version; train the run again (scalemine sweep … --redo)")
    ids = _ids(table["id"], known)
    given_NC: NDArray[np.bool_] = scores_NC >= np.array([thresholds[label] for label in labels])
    gold_NC, predicted_NC = targets_NC == 1, given_NC & (targets_NC >= 0)
    counts = (np.count_nonzero(mask_NC, axis=1) for mask_NC in (gold_NC & predicted_NC, predicted_NC, gold_NC))
    negative_N, alarm_N = table[IS_NEGATIVE].to_numpy(), np.any(given_NC, axis=1)
    return Findings(Counts(ids, np.stack(list(counts), axis=1)), _alarms(ids, alarm_N, {ALL_NEGATIVES: negative_N}))


def _alarms(ids: Ids, predicted_N: NDArray[np.bool_], masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, Alarms]:
    return {
        kind: Alarms(ids, np.stack([predicted_N, mask_N], axis=1).astype(np.int8))
        for kind, mask_N in masks.items()
        if mask_N.any()
    }
