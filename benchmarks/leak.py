"""False negatives among what is mined, on real labels: how many planted positives leak, with and without the guard.

    python benchmarks/leak.py [--rows 100000] [--shares 1 0.1] [--budgets 0.05 0.2]

The Relevant tweets of disasters.parquet and the on-topic ones of crisislex_t6.parquet are planted among the unlabelled
corpus, in the proportion of the whole files or in a share of it, with nothing to tell them by; the positives are
crisis_spans_train.parquet. Printed is the share of planted tweets among what is mined, per strategy; both columns of a
row hold equally many negatives of each class. For bands also the part of the band that the guard leaves, of all tweets
and of those that are not planted. Tweets come from SCALEMINE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalemine.config import Config
from scalemine.executor import InlineExecutor
from scalemine.pipeline import Run, run_mine
from scalemine.text import duplicate_key

ALL = 1_000_000
STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "quantile band 4": {"strategy": "quantile_bands", "bands": [4]},
    "clusters, band 3": {"strategy": "clusters", "bands": [3], "tails": "upper"},
    "rank 0 to 500, anchor": {"strategy": "rank", "rank_max": 500},
    "margin 5 %, anchor": {"strategy": "margin"},
    "simans, anchor": {"strategy": "simans", "sampling": "random", "half_width": 0.05},
    "hardness 2": {"strategy": "hardness", "hardness": 2.0},
    "confusable": {"strategy": "confusable"},
    "rank 0 to 100, positives": {"strategy": "rank", "query": "positive"},
    "margin 5 %, positives": {"strategy": "margin", "query": "positive"},
    "simans, positives": {"strategy": "simans", "query": "positive", "sampling": "random", "half_width": 0.05},
}


def planted_texts(data: Path) -> list[str]:
    """Return the tweets to plant, each text once, none a copy of a labelled positive."""
    seen = {duplicate_key(text) for text in pq.read_table(data / "crisis_spans_train.parquet")["text"].to_pylist()}
    texts = []
    for name, label in (("disasters", "Relevant"), ("crisislex_t6", "on-topic")):
        for row in pq.read_table(data / f"{name}.parquet", columns=["text", "label"]).to_pylist():
            key = duplicate_key(row["text"])
            if row["label"] == label and key not in seen:
                seen.add(key)
                texts.append(row["text"])
    return texts


def write_corpus(data: Path, path: Path, rows: int, share: float) -> tuple[int, int]:
    """Write the corpus with planted tweets; return how many there are of each. Ids say nothing but to this script."""
    rng = np.random.default_rng(5)
    plain, planted = pq.read_table(data / "corpus.parquet", columns=["text"])["text"].to_pylist(), planted_texts(data)
    num_planted = round(len(planted) * share * min(1, rows / len(plain)))
    texts = [plain[i] for i in rng.permutation(len(plain))[:rows]]
    texts += [planted[i] for i in rng.permutation(len(planted))[:num_planted]]
    order = rng.permutation(len(texts))
    ids = [f"{'p' if i >= min(rows, len(plain)) else 'c'}{i}" for i in order]
    pq.write_table(pa.table({"id": ids, "text": [texts[i] for i in order]}), path)
    return len(texts) - num_planted, num_planted


def mined(settings: dict[str, Any], mining: dict[str, Any], budget: float | None) -> tuple[pa.Table, dict[str, Any]]:
    """Mine anew with a strategy and a budget; embeddings and similarities stay."""
    sections = {"mining": {"near_duplicate": None, **mining}, "guard": {"max_false_negative": budget}}
    run = Run(Config.model_validate({**settings, **sections}), InlineExecutor(), redo=True)
    return run_mine(run), run.facts["mined"]


def is_planted(table: pa.Table) -> np.ndarray:
    """Return which rows were planted."""
    return np.array([id_.startswith("p") for id_ in table["id"].to_pylist()], bool)


def leak(table: pa.Table) -> float:
    """Return the share of planted tweets."""
    return float(is_planted(table).mean()) if table.num_rows else float("nan")


def equal_yield(free: pa.Table, guarded: pa.Table) -> pa.Table:
    """Return the first rows of each class and kind, as many as the guarded run has."""
    left = Counter(zip(guarded["class_name"].to_pylist(), guarded["kind"].to_pylist(), strict=True))
    rows = []
    for index, cell in enumerate(zip(free["class_name"].to_pylist(), free["kind"].to_pylist(), strict=True)):
        if left[cell] > 0:
            left[cell] -= 1
            rows.append(index)
    return free.take(pa.array(rows, pa.int64()))


def print_bands(settings: dict[str, Any], budgets: list[float]) -> None:
    """Print what the guard leaves of whole bands of the upper tail, per class and in all."""
    for band in (3, 4):
        mining = {"bands": [band], "tails": "upper", "per_class": ALL if band == 4 else 600}
        free, _ = mined(settings, mining, None)
        for budget in budgets:
            guarded, facts = mined(settings, mining, budget)
            print(f"band {band} above the mean, budget {budget:g} (prior {facts['guard']['prior']:.4f}):")
            for name in [*sorted(set(free["class_name"].to_pylist())), None]:
                a, b = (
                    table if name is None else table.filter(pc.equal(table["class_name"], name))
                    for table in (free, guarded)
                )
                same, ours = leak(equal_yield(a, b)), leak(b)
                kept = b.num_rows / max(1, a.num_rows)
                true = (~is_planted(b)).sum() / max(1, (~is_planted(a)).sum()) if b.num_rows else 0.0
                ratio = same / ours if b.num_rows and ours else float("inf") if b.num_rows else float("nan")
                of_band = f"; leaves {kept:.0%} of the band, {true:.0%} of what is not planted" if band == 4 else ""
                print(
                    f"  {name or 'all':16} {a.num_rows:6,} -> {b.num_rows:6,} tweets, leak {leak(a):.3f}; "
                    f"at equal yield {same:.3f} -> {ours:.3f}, x{ratio:.1f}{of_band}"
                )
    rows = facts["guard"]["reliability"]
    print("reliability: " + ", ".join(f"said {r['said']:.3f} seen {r['seen']:.3f}" for r in rows))


def print_strategies(settings: dict[str, Any], budget: float) -> None:
    """Print the leak of each strategy, with and without the guard."""
    print(f"strategies, as many negatives as positives, budget {budget:g}:")
    for name, mining in STRATEGIES.items():
        free, _ = mined(settings, mining, None)
        guarded, _ = mined(settings, mining, budget)
        print(
            f"  {name:26} {free.num_rows:5,} -> {guarded.num_rows:5,} negatives; "
            f"at equal yield {leak(equal_yield(free, guarded)):.3f} -> {leak(guarded):.3f}"
        )


def main() -> None:
    """Plant, mine, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="tweets of the corpus")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.1], help="of the planted tweets")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.2])
    parser.add_argument("--workdir", type=Path, help="kept for the next call; a temporary one if not given")
    arguments = parser.parse_args()
    data = Path(os.environ.get("SCALEMINE_DATA", "../shared/data"))
    if not (data / "corpus.parquet").exists():
        sys.exit(f"no labelled tweets in {data}; set SCALEMINE_DATA")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  also into a file
    logging.getLogger("scalemine").setLevel(logging.ERROR)
    print(time.strftime("%Y-%m-%d"))
    with tempfile.TemporaryDirectory() as temporary:
        for share in arguments.shares:
            folder = (arguments.workdir or Path(temporary)) / f"share-{share:g}"
            folder.mkdir(parents=True, exist_ok=True)
            plain, planted = write_corpus(data, folder / "corpus.parquet", arguments.rows, share)
            print(f"{plain:,} tweets and {planted:,} planted positives ({planted / (plain + planted):.1%})")
            settings = {
                "workdir": folder / "work",
                "corpus": {"uri": str(folder / "corpus.parquet")},
                "positives": {"uri": str(data / "crisis_spans_train.parquet"), "class_name": "type"},
            }
            print_bands(settings, arguments.budgets)
            print_strategies(settings, arguments.budgets[-1])


if __name__ == "__main__":
    main()
