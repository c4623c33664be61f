from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.tweets import CHATTER, PLACES, THINGS, VERBS, write_tweets


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Tweets to learn from, and static vectors of their words, as a folder."""
    folder = tmp_path_factory.mktemp("tweets")
    events = [f"event-{number % 30}" for number in range(120)]
    write_tweets(folder / "train.parquet", 120, 1, event=events)
    write_tweets(folder / "dev.parquet", 40, 2)
    write_tweets(folder / "test.parquet", 60, 3)
    generator = np.random.default_rng(0)
    words = sorted({w for text in [*PLACES, *CHATTER] for w in text.split()} | {*THINGS, *VERBS, "at"})
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in generator.standard_normal(12))}" for word in words]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
