"""Losses and classical baselines beside one another: the same folds, several seeds, one table, with wall time.

    python benchmarks/losses.py configs/affect_cpu.yaml --seeds 3 --set train.freeze=true --set train.epochs=20
    python benchmarks/losses.py configs/crisislex_labels.yaml --seeds 3 --set train.freeze=true --set train.folds=3

Runs that are finished are not redone. Parameters follow a loss: --losses bce "em, em_warmup 5". Only em makes a
difference between unknown and negative labels: labels.absent=unknown gives it some.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalemine.config import BASELINES, load_config
from scalemine.executor import StopSignals
from scalemine.frozen import embed_examples
from scalemine.training.runs import run_training

LOSSES = ("bce", "bce, pos_weight 20", "focal", "asl", "dice", "db", "em")
MEASURES = {
    "macro AUC": ("roc_auc", "macro"),
    "micro AUC": ("roc_auc", "micro"),
    "macro AP": ("average_precision", "macro"),
    "micro F1": ("micro_f1",),
    "macro F1": ("macro_f1",),
    "Jaccard": ("jaccard",),
    "ECE": ("ece",),
}


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="*", default=LOSSES)
    parser.add_argument("--baselines", nargs="*", default=BASELINES)
    parser.add_argument("--on", help="set to score on; the held-out folds, or the first test set, if not given")
    options = parser.parse_args()
    if load_config(options.config, options.overrides, needs=()).train.name is not None:
        raise SystemExit("train.name: would give the runs of all arms one name; drop it")
    print(f"| arm | {' | '.join(MEASURES)} | training s | all s |")
    print("|---" * (len(MEASURES) + 3) + "|")
    for name in options.losses:
        loss, *parameters = name.split(", ")
        overrides = [f"loss.name={loss}", *(f"loss.{one.replace(' ', '=')}" for one in parameters)]
        report(name, options, overrides, range(options.seeds))
    for name in options.baselines:
        report(name.replace("_", " "), options, [f"train.model={name}"], range(1))


def report(name: str, options: argparse.Namespace, overrides: Sequence[str], seeds: Sequence[int]) -> None:
    """Run one arm with several seeds, and print its line: mean and standard deviation over folds and seeds."""
    started, results = time.monotonic(), []
    for seed in seeds:
        config = load_config(options.config, [*options.overrides, *overrides, f"seed={seed}"], needs=())
        with StopSignals() as signals:
            if config.reads_embeddings:
                embed_examples(config, signals=signals)
            results += run_training(config, signals=signals)
    scored = [scores_of(result["metrics"], options.on) for result in results]
    cells = [spread([at(one, path) for one in scored]) for path in MEASURES.values()]
    seconds = sum(result["seconds"] for result in results) / len(results)
    print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} | {time.monotonic() - started:.0f} |", flush=True)


def scores_of(metrics: dict[str, Any], wanted: str | None) -> dict[str, Any]:
    """Return the scores on the set that is asked for."""
    name = wanted or ("held_out" if "held_out" in metrics else next(one for one in metrics if one != "dev"))
    found: dict[str, Any] = metrics[name]
    return found


def at(scores: dict[str, Any], path: Sequence[str]) -> float | None:
    """Return what lies at a path of keys, in percent; None where it cannot be told."""
    value: Any = scores
    for key in path:
        value = value[key]
    return None if value is None else 100 * float(value)


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation of those that can be told, or a dash."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
