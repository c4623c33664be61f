"""Sweeps made by hand: plans, results and predictions whose scores can be told beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.store import Workdir, write_json
from scalemine.sweep.plan import FORMAT
from scalemine.training.multilabel.scores import score_labels
from scalemine.training.tagging.metrics import score

INSIDE, OUTSIDE = ["O", "B-who", "I-who"], ["O", "O", "O"]
WORDS = ["secret", "words", "here"]  # of the tweets: no report may hold them


@dataclass(frozen=True)
class Tweet:
    id: str
    kind: str | None  # of a negative


def tweets(prefix: str, positives: int, **negatives: int) -> list[Tweet]:
    """Return tweets that have one span each, and negatives by kind."""
    made = [Tweet(f"{prefix}-p{number}", None) for number in range(positives)]
    return made + [Tweet(f"{prefix}-{kind}{i}", kind) for kind, number in negatives.items() for i in range(number)]


def first(of: list[Tweet], hits: int, **alarms: int) -> list[bool]:
    """Return what is predicted: the first positives are found, and the first negatives of each kind are alarms."""
    left = {None: hits, **alarms}
    predicted = []
    for tweet in of:
        predicted.append(left.get(tweet.kind, 0) > 0)
        left[tweet.kind] = left.get(tweet.kind, 0) - 1
    return predicted


def guessed(of: list[Tweet], recall: float, alarms: float, seed: int) -> list[bool]:
    generator = np.random.default_rng(seed)
    return [bool(generator.random() < (recall if tweet.kind is None else alarms)) for tweet in of]


def write_tagger_run(workdir: Path, name: str, sets: dict[str, tuple[list[Tweet], list[bool]]], **facts: Any) -> None:
    """Write a finished run of a tagger, its predictions and its scores."""
    folder = Workdir(workdir).runs / name
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    metrics = {}
    for key, (of_set, found) in sets.items():
        gold = [OUTSIDE if tweet.kind else INSIDE for tweet in of_set]
        predicted = [INSIDE if one else OUTSIDE for one in found]
        kinds = [tweet.kind for tweet in of_set]
        metrics[key] = score(gold, predicted, [WORDS] * len(gold), negative_kinds=kinds, num_bootstrap=0)
        columns = {
            "id": pa.array([tweet.id for tweet in of_set], pa.string()),
            "negative_kind": pa.array(kinds, pa.string()),
            "gold": pa.array(gold, pa.list_(pa.string())),
            "predicted": pa.array(predicted, pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), folder / "predictions" / f"{key}.parquet")
    defaults = {"model": "lstm_crf", "words": "bertweet, frozen", "train_set": "random", "seed": 1, "fold": None}
    write_json(folder / "result.json", {**_FACTS, **defaults, "name": name, "metrics": metrics, **facts})


def write_classifier_run(
    workdir: Path,
    name: str,
    sets: dict[str, tuple[list[str], np.ndarray, np.ndarray]],
    labels: list[str],
    thresholds: list[float],
    **facts: Any,
) -> None:
    """Write a finished run of a classifier: per set ids, targets and scores."""
    folder = Workdir(workdir).runs / name
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    metrics = {}
    for key, (ids, targets_NC, scores_NC) in sets.items():
        negative_N = np.all(targets_NC < 0, axis=1)
        metrics[key] = score_labels(
            targets_NC, scores_NC, labels, prior_C=[0.5] * len(labels), thresholds_C=thresholds, negative_N=negative_N,
            num_bootstrap=0,
        )  # fmt: skip
        columns = {"id": pa.array(ids), "is_negative": pa.array(negative_N)} | {
            column: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), len(labels))
            for column, values in (("targets", targets_NC), ("scores", scores_NC))
        }
        table = pa.table(columns).replace_schema_metadata({"labels": "\n".join(labels)})
        pq.write_table(table, folder / "predictions" / f"{key}.parquet")
    defaults = {"model": "classifier", "words": "labse", "train_set": "random", "seed": 1, "fold": None}
    write_json(
        folder / "result.json", {**_FACTS, **defaults, "labels": labels, "name": name, "metrics": metrics, **facts}
    )


_FACTS = {"epochs": 7, "best_epoch": 3, "chosen_on": "a dev part of the training folds", "seconds": 12.5} | {
    "train_tweets": 100,
    "device": "cpu",
}


def planned(name: str, runs: list[tuple[int | None, int, str]], settings: dict[str, Any], **facts: Any) -> dict:
    """Return a trial of a plan; a run is its fold, its seed and its name."""
    found = [{"seed": seed, "fold": fold, "run": run} for fold, seed, run in runs]
    return {"name": name, "arm": None, "settings": settings, "stopped": None, "runs": found} | facts


def write_plan(workdir: Path, trials: list[dict], name: str = "exp", **facts: Any) -> None:
    seeds = sorted({run["seed"] for trial in trials for run in trial["runs"]})
    plan = {"name": name, "why": "", "metric": "test_random.f1", "mode": "max", "search": "grid", "scheduler": "none"}
    plan |= {"folds": 0, "seeds": seeds, "concurrency": 1, "num_trials": len(trials), "trials": trials}
    write_json(Workdir(workdir).sweeps / name / "plan.json", {"format": FORMAT, **plan, **facts})


def write_arms(
    workdir: Path,
    arms: dict[str, tuple[float, float]],
    *,
    folds: int = 5,
    seeds: tuple[int, ...] = (1, 2),
    positives: int = 60,
    space: tuple[dict[str, Any], ...] = ({},),
    gain: dict[str, float] | None = None,
    name: str = "exp",
) -> None:
    """Write a finished sweep of train sets, in the manner of the paper.

    Args:
        workdir: Where it goes.
        arms: By train set the recall and the rate of false alarms.
        folds: Number of folds.
        seeds: Of each trial.
        positives: Of a test set; random_plus has ten times as many negatives.
        space: Settings that each arm goes through.
        gain: By text of such settings, what they add to the recall of all arms but random.
        name: Of the sweep.
    """
    sets = {
        "test_random": tweets("t", positives, random=positives),
        "test_random_plus": tweets("t", positives, random=10 * positives),
        "test_1s": tweets("t", positives, mined_1s=positives),
        "test_2s": tweets("t", positives, mined_2s=positives),
    }
    trials = []
    for number, (arm, (recall, alarms)) in enumerate(arms.items()):
        for place, point in enumerate(space):
            runs = []
            for fold in range(folds) if folds else [None]:
                for seed in seeds:
                    run = f"{arm}-{place}-{fold}-{seed}"
                    runs.append((fold, seed, run))
                    held_out = tweets(f"f{fold}", 20, **{arm: 20})
                    extra = 0.0 if arm == "random" or not gain else gain[str(point)]
                    found = {
                        key: (of, guessed(of, recall + extra, alarms, 1_000 * number + 10 * (fold or 0) + seed))
                        for key, of in {**({"held_out": held_out} if folds else {}), **sets}.items()
                    }
                    of_model = {key.removeprefix("train."): value for key, value in point.items() if "model" in key}
                    write_tagger_run(workdir, run, found, fold=fold, seed=seed, train_set=arm, **of_model)
            trials.append(planned(f"{arm}_{place}", runs, {"train.train_set": arm, **point}, arm=arm))
    write_plan(workdir, trials, name, folds=folds, seeds=list(seeds), metric="test_random.f1")
