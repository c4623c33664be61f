"""Invented tweets with spans, and the configuration of a quick run on them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from scalemine.config import Config

PLACES = ["oak street", "the mill", "harbour road", "the old bridge", "north gate"]

THINGS = ["bus", "van", "fire", "flood", "tree"]

CHATTER = ["so hungry", "my phone is dying", "this mixtape is fire", "good morning all", "monday again"]

VERBS = {"crashed": "traffic", "burns": "fire", "overflowed": "flood"}


def sentence(chance: random.Random) -> tuple[list[str], list[str]]:
    """Return a tweet and its tags: what happened, with where, is a span of the type that the verb tells."""
    words, tags = chance.choice(CHATTER).split(), []
    tags = ["O"] * len(words)
    if chance.random() < 0.6:
        verb = chance.choice(list(VERBS))
        event = [chance.choice(THINGS), verb, "at", *chance.choice(PLACES).split()]
        words += [*event, f"x{chance.randrange(10**6)}"]
        tags += [f"B-{VERBS[verb]}", *[f"I-{VERBS[verb]}"] * (len(event) - 1), "O"]
    return words, tags


def write_tweets(path: Path, num_tweets: int, seed: int, **columns: list[str]) -> Path:
    """Write tweets, each with words of its own, so that none is like another."""
    chance = random.Random(seed)
    rows = [sentence(chance) for _ in range(num_tweets)]
    rows = [([*words, f"w{seed}n{number}"], [*tags, "O"]) for number, (words, tags) in enumerate(rows)]
    table = {"tokens": [words for words, _ in rows], "tags": [tags for _, tags in rows], **columns}
    pq.write_table(pa.table(table | {"id": [f"{path.stem}-{number}" for number in range(num_tweets)]}), path)
    return path


def settings(data: Path, workdir: Path, **train) -> dict:
    """Return the configuration of a quick run, as it stands in a YAML file."""
    values = {
        "train_uri": str(data / "train.parquet"), "test_uris": {"test": str(data / "test.parquet")},
        "vectors": str(data / "vectors.txt"), "hidden": 8, "crf": "fast", "lr": 1e-3, "head_lr": 0.02, "epochs": 3,
        "batch_size": 8, "bootstrap": 20, "device": "cpu", "group_by": [],
    }  # fmt: skip
    return {"workdir": str(workdir), "compute": {"threads": 1}, "train": values | train}


def config(data: Path, workdir: Path, **train) -> Config:
    """Return the configuration of a quick run."""
    return Config.model_validate(settings(data, workdir, **train))


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights of a finished run."""
    return load_file(folder / "model" / "model.safetensors")


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 0.0) -> bool:
    """Say whether weights are the same, but for a difference."""
    assert one.keys() == other.keys()
    return all(np.abs(one[name] - other[name]).max() <= tolerance for name in one)
