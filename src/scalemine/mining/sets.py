"""Training and test sets: positives, and as many negatives of one kind.

Source: Zhang, Lo and Win Myint (2023), table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalemine.config import InputError
from scalemine.mining.anchors import SPANS, Positives
from scalemine.mining.sampling import Row
from scalemine.store import Stage, write_whole
from scalemine.text import duplicate_key

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("class_name", pa.string()),
        ("label_source", pa.string()),
        ("spans", SPANS),
        ("is_negative", pa.bool_()),
        # 1 less the probability of being a positive after all; 1 where there is no estimate.
        ("weight", pa.float32()),
    ]
)
MIX = "mix"


def split_mined(
    negatives: pa.Table, kind: str, train: Mapping[str, int], test: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the negatives of a kind for training and for test; none is in both.

    Args:
        negatives: The mined negatives, by order of choice inside a class and kind.
        kind: Which kind.
        train: Positives per class of the training set.
        test: Positives per class of the test set.
    """
    rows = negatives.filter(pc.equal(negatives["kind"], kind)).to_pylist()
    for_train: list[dict[str, Any]] = []
    for_test: list[dict[str, Any]] = []
    for name in train:
        of_class = [row for row in rows if row["class_name"] == name]
        wants_train, wants_test = train[name], test.get(name, 0)
        take = wants_train
        if len(of_class) < wants_train + wants_test:  # too few for both: each gets its share
            take = round(len(of_class) * wants_train / (wants_train + wants_test))
        for_train += of_class[:take]
        for_test += of_class[take : take + wants_test]
    return for_train, for_test


def set_kind(kind: str) -> str:
    """Return what the sets of a kind of mined negatives are called."""
    # What the strategy random mined for the classes is another set than the random tweets of all.
    return "mined_random" if kind == "random" else kind


def check_mix(mix: Mapping[str, float], kinds: Sequence[str]) -> None:
    """Raise InputError where the mix names a kind that is neither mined nor random."""
    known = ["random", *map(set_kind, kinds)]
    unknown = sorted(set(mix) - set(known))
    if unknown:
        raise InputError(f"sets.mix: no negatives of kind {unknown[0]!r}; this run has {', '.join(known)}")


def num_random(num_train: int, num_test: int, ratio: int) -> int:
    """Return how many random negatives the sets need: training's, and those of test_random_plus (test_random's too)."""
    return num_train + ratio * num_test


def usable_random(
    sample: Sequence[Row], negatives: pa.Table, positives: Sequence[str], reviewed: AbstractSet[bytes] = frozenset()
) -> list[Row]:
    """Return the rows of a random sample that are no copies of positives, of mined negatives, or of one another.

    Args:
        sample: The rows.
        negatives: The mined ones.
        positives: Texts.
        reviewed: Keys of texts that a person found to be positives.
    """
    seen = {duplicate_key(text) for text in [*positives, *negatives["text"].to_pylist()]} | reviewed
    usable = []
    for row in sample:
        key = duplicate_key(row.text)
        if key not in seen:
            seen.add(key)
            usable.append(row)
    return usable


def make_sets(
    positives: Positives,
    test: Positives | None,
    negatives: pa.Table,
    random: Sequence[Row],
    *,
    kinds: Sequence[str],
    ratio: int,
    mix: Mapping[str, float],
) -> dict[str, pa.Table]:
    """Return every set by name; those of training and of test share no negative.

    Args:
        positives: Of training.
        test: Of the test sets.
        negatives: The mined ones.
        random: Random tweets.
        kinds: Kinds of mined negatives, each a set.
        ratio: Random negatives per positive in test_random_plus.
        mix: Shares of kinds, of which a further set is mixed; none if empty.

    Raises:
        InputError: The mix names a kind that is not there.
    """
    train_counts = {name: positives.count(name) for name in positives.class_names}
    test_counts = {name: test.count(name) for name in test.class_names} if test else {}
    num_train, num_test = positives.table.num_rows, test.table.num_rows if test else 0
    # Where the corpus is too small for all, both sides give way alike.
    share = min(1.0, len(random) / max(1, num_random(num_train, num_test, ratio)))
    cut = num_train if share == 1 else round(num_train * share)
    random_rows = [_random(row) for row in random]
    split: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
        "random": (random_rows[:cut], random_rows[cut : cut + num_test])
    }
    for kind in kinds:
        mined = split_mined(negatives, kind, train_counts, test_counts)
        split[set_kind(kind)] = (negative_rows(mined[0]), negative_rows(mined[1]))
    check_mix(mix, kinds)
    if mix:
        split[MIX] = (
            _mixed({kind: rows for kind, (rows, _) in split.items()}, mix, num_train),
            _mixed({kind: rows for kind, (_, rows) in split.items()}, mix, num_test),
        )
    sets = {"train_no": _assemble(positives, [])}
    sets |= {f"train_{kind}": _assemble(positives, rows) for kind, (rows, _) in split.items()}
    if test:
        sets |= {"test_no": _assemble(test, [])}
        sets |= {f"test_{kind}": _assemble(test, rows) for kind, (_, rows) in split.items()}
        sets["test_random_plus"] = _assemble(test, random_rows[cut : cut + ratio * num_test])
    return sets


def _mixed(split: Mapping[str, Sequence[dict[str, Any]]], mix: Mapping[str, float], size: int) -> list[dict[str, Any]]:
    """Return rows of each kind, by shares; a kind that has too few gives what it has."""
    ends = np.rint(np.cumsum(list(mix.values())) * size).astype(int)
    counts = np.diff(ends, prepend=0).tolist()
    return [row for kind, count in zip(mix, counts, strict=True) for row in _spread(split[kind], count)]


def _spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return ``count`` rows, evenly over the list, which is by class."""
    picked = np.linspace(0, len(rows), min(count, len(rows)), endpoint=False).astype(int)
    return [rows[i] for i in picked]


def _random(row: Row) -> dict[str, Any]:
    return _negative(row.id, row.text, None, "random", None)


def negative_rows(mined: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mined negatives as rows of a set."""
    return [_mined(row) for row in mined]


def _mined(row: Mapping[str, Any]) -> dict[str, Any]:
    probability = row["false_negative_probability"]
    return _negative(row["id"], row["text"], row["class_name"], f"mined_{row['kind']}", probability)


def _negative(id_: str, text: str, class_name: str | None, source: str, probability: float | None) -> dict[str, Any]:
    return {
        "id": id_,
        "text": text,
        "class_name": class_name,
        "label_source": source,
        "spans": [],
        "is_negative": True,
        "weight": 1.0 - (probability or 0.0),
    }


def _assemble(positives: Positives, negatives: list[dict[str, Any]]) -> pa.Table:
    num_rows = positives.table.num_rows
    labelled = positives.table.append_column("label_source", pa.array(["annotated"] * num_rows))
    labelled = labelled.append_column("is_negative", pa.array([False] * num_rows))
    labelled = labelled.append_column("weight", pa.array([1.0] * num_rows)).select(SCHEMA.names).cast(SCHEMA)
    return pa.concat_tables([labelled, pa.Table.from_pylist(negatives, schema=SCHEMA)])


def write_sets(sets: Mapping[str, pa.Table], stage: Stage) -> None:
    """Write each set as NAME.parquet."""
    for name, table in sets.items():
        with write_whole(stage.file(f"{name}.parquet")) as path:
            pq.write_table(table, path, compression="zstd")
        stage.commit(stage.file(f"{name}.parquet"), rows=table.num_rows)


def describe(sets: Mapping[str, pa.Table], ratio: int) -> list[dict[str, Any]]:
    """Return the size of each set, and how many negatives it was to have."""
    rows = []
    for name, table in sets.items():
        num_negatives = int(pc.sum(table["is_negative"]).as_py() or 0)
        num_positives = table.num_rows - num_negatives
        wanted = 0 if name.endswith("_no") else num_positives * (ratio if name.endswith("_plus") else 1)
        rows.append({"name": name, "positives": num_positives, "negatives": num_negatives, "wanted_negatives": wanted})
    return rows
