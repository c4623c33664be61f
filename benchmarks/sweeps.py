"""What a sweep takes besides its runs: wall time of the command against the runs' own seconds, two at a time with Ray.

    python benchmarks/sweeps.py [--runs 20] [--epochs 100]

Invented tweets, a BiLSTM-CRF on random static vectors; choose the epochs so that a run takes about 15 s. The ratio is
wall time / (sum of the runs' seconds / 2): what it has above 1 is the start of the command, of Ray and of the workers,
what passes between runs, and the end. It is to be at most 1.15 with 20 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

CONCURRENCY = 2
DIM = 50
PLACES = ["oak street", "the mill", "harbour road", "the old bridge", "north gate", "the town hall"]
THINGS = ["bus", "van", "fire", "flood", "tree", "train", "lorry"]
VERBS = {"crashed": "traffic", "burns": "fire", "overflowed": "flood", "derailed": "traffic", "exploded": "fire"}
CHATTER = ["so hungry", "my phone is dying", "this mixtape is fire", "good morning all", "monday again", "lol ok"]


def write_tweets(path: Path, num_tweets: int, seed: int) -> None:
    """Write tweets with spans, each with a word of its own."""
    chance = random.Random(seed)
    tokens, tags = [], []
    for number in range(num_tweets):
        words = [*chance.choice(CHATTER).split(), f"w{seed}n{number}"]
        of_words = ["O"] * len(words)
        if chance.random() < 0.6:
            verb = chance.choice(list(VERBS))
            event = [chance.choice(THINGS), verb, "at", *chance.choice(PLACES).split()]
            words += event
            of_words += [f"B-{VERBS[verb]}", *[f"I-{VERBS[verb]}"] * (len(event) - 1)]
        tokens.append(words)
        tags.append(of_words)
    ids = [f"{path.stem}-{number}" for number in range(num_tweets)]
    pq.write_table(pa.table({"id": ids, "tokens": tokens, "tags": tags}), path)


def write_vectors(path: Path) -> None:
    """Write random vectors of all words but those that stand in one tweet alone."""
    generator = np.random.default_rng(0)
    words = sorted({word for text in [*PLACES, *CHATTER] for word in text.split()} | {*THINGS, *VERBS, "at"})
    lines = (f"{word} {' '.join(f'{x:.4f}' for x in generator.standard_normal(DIM))}\n" for word in words)
    path.write_text("".join(lines), encoding="utf-8")


def write_config(folder: Path, num_runs: int, epochs: int, tweets: int) -> Path:
    """Write data and configuration of a sweep with so many seeds of one trial; return the latter."""
    write_tweets(folder / "train.parquet", tweets, 1)
    write_tweets(folder / "test.parquet", tweets // 4, 2)
    write_vectors(folder / "vectors.txt")
    train = {
        "train_uri": str(folder / "train.parquet"), "test_uris": {"test": str(folder / "test.parquet")},
        "vectors": str(folder / "vectors.txt"), "crf": "fast", "hidden": 32, "head_lr": 3e-3, "epochs": epochs,
        "patience": epochs, "bootstrap": 0, "device": "cpu", "group_by": [],
    }  # fmt: skip
    sweep = {
        "name": "bench", "seeds": list(range(num_runs)), "metric": "test.f1",
        "concurrency": CONCURRENCY, "cpus_per_run": 1,
    }  # fmt: skip
    values = {"workdir": str(folder / "work"), "train": train, "sweep": sweep}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values | {"compute": {"executor": "ray", "threads": 1}}), encoding="utf-8")
    return path


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--tweets", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scalemine-") as name:
        folder = Path(name)
        config = write_config(folder, arguments.runs, arguments.epochs, arguments.tweets)
        command = [sys.executable, "-m", "scalemine", "sweep", str(config)]
        began = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        first_mark = None
        while process.poll() is None:
            if first_mark is None and any((folder / "work" / "runs").glob(".*.running.json")):
                first_mark = time.time()
            time.sleep(0.1)
        ended = time.time()
        out = process.stdout.read() if process.stdout else ""
        if process.returncode:
            sys.exit(out)
        report(folder / "work", began, first_mark or ended, ended, arguments.runs)


def report(workdir: Path, began: float, first_mark: float, ended: float, num_runs: int) -> None:
    """Print where the time went."""
    paths = sorted(workdir.glob("runs/*/result.json"), key=lambda path: path.stat().st_mtime)
    assert len(paths) == num_runs, f"{len(paths)} of {num_runs} runs"
    seconds = [json.loads(path.read_text())["total_seconds"] for path in paths]
    wall, runs = ended - began, sum(seconds) / CONCURRENCY
    last = paths[-1].stat().st_mtime
    # With an odd number, or runs that differ, a worker has nothing to do at the end.
    idle = last - paths[-min(CONCURRENCY, num_runs)].stat().st_mtime
    between = (last - first_mark) - runs - idle / CONCURRENCY
    print(f"{num_runs} runs of {min(seconds):.1f} to {max(seconds):.1f} s, {CONCURRENCY} at a time, "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"wall time of the command        {wall:8.1f} s")
    print(f"seconds of the runs / {CONCURRENCY}         {runs:8.1f} s")
    print(f"ratio                           {wall / runs:8.3f}")
    print(f"start: command, Ray, workers    {first_mark - began:8.1f} s")
    print(f"between runs, and first reading {between:8.1f} s")
    print(f"one worker without work, / {CONCURRENCY}    {idle / CONCURRENCY:8.1f} s")
    print(f"end: results, Ray               {ended - last:8.1f} s")


if __name__ == "__main__":
    main()
