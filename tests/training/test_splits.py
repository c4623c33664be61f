from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import Config, TrainConfig
from scalemine.training.folds import near_duplicate_groups
from scalemine.training.runs import family_of
from scalemine.training.splits import Rows, Split, plan_splits
from scalemine.training.tagging.datasets import Dataset
from training.tweets import config, settings


def plan(one: Config) -> tuple[Dataset, list[Split]]:
    """Return the training set of a configuration and its splits."""
    family = family_of(one)
    data = family.read(one)
    return data.train, plan_splits(one.train, data.train.num_rows, partial(family.rows, one, data))


def test_folds_are_the_same_for_every_arm_and_kept_apart_from_the_seed(data, tmp_path):
    def parts(**changes):
        one = Config.model_validate(settings(data, tmp_path, folds=3, group_by=["event"]) | changes)
        train, splits = plan(one)
        return train, [(set(split.train), set(split.dev), set(split.held_out)) for split in splits]

    train, splits = parts()
    assert parts(seed=7)[1] == splits
    assert (
        parts(train=settings(data, tmp_path, folds=3, group_by=["event"], model="linear", lr=0.1)["train"])[1] == splits
    )
    assert parts(train=settings(data, tmp_path, folds=3, group_by=["event"], fold_seed=1)["train"])[1] != splits
    events = [document.columns["event"] for document in train.documents]
    for fit_rows, dev, held_out in splits:
        assert sorted([*fit_rows, *dev, *held_out]) == list(range(120))
        of_part = [{events[row] for row in part} for part in (fit_rows, dev, held_out)]
        assert not of_part[0] & of_part[1] and not of_part[0] & of_part[2] and not of_part[1] & of_part[2]
    assert sorted(row for _, _, held_out in splits for row in held_out) == list(range(120))


def invented(number: int) -> Rows:
    """Return rows, copies and negatives among them."""
    chance = random.Random(0)
    base = [chance.randrange(number // 2) for _ in range(number)]
    return Rows(
        [f"t{row % (number - 3)}" for row in range(number)],  # three come twice
        [f"one{text} two{text} three{text} four{text}" for text in base],
        [[one for one in ("fear", "joy") if chance.random() < 0.4] for _ in range(number)],
        [chance.random() < 0.2 for _ in range(number)],
        {"event": [None if chance.random() < 0.3 else f"event{text // 3}" for text in base]},
    )


def listed(splits: list[Split]) -> list[tuple]:
    return [(split.fold, split.train.tolist(), split.dev.tolist(), split.held_out.tolist()) for split in splits]


def test_rows_are_read_only_if_any_are_dealt_out():
    """A file of any size can be trained on whole: a dev file chooses the epoch, and there are no folds."""
    whole = TrainConfig(train_uri="train.parquet", dev_uri="dev.parquet", group_by=["event", "near_duplicates"])
    [split] = plan_splits(whole, 60, lambda: pytest.fail("read"))
    assert listed([split]) == [(None, list(range(60)), [], [])]
    dealt = [{"dev_uri": None}, {"folds": 3}, {"folds": 3, "dev_uri": None}]
    dealt.append({"folds": 3, "dev_uri": None, "stop_on": "test"})
    for changes in dealt:
        times = []
        options = TrainConfig(**(whole.model_dump() | {"group_by": [], **changes}))
        splits = plan_splits(options, 60, lambda times=times: (times.append(1), invented(60))[1])
        assert len(times) == 1, changes
        assert len(splits) == (options.folds or 1)


class Stream(Sequence):
    """Values that can only be counted and gone through from the beginning, as those of a large file are."""

    def __init__(self, values: Sequence) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self):
        yield from self.values

    def __getitem__(self, place):
        pytest.fail("read one by one")


@pytest.mark.parametrize("group_by", [[], ["event"], ["near_duplicates"], ["event", "near_duplicates"]])
@pytest.mark.parametrize("stratify", [True, False])
def test_streams_are_dealt_out_as_lists_are(group_by, stratify):
    rows = invented(80)
    streams = Rows(
        *(Stream(values) for values in (rows.ids, rows.texts, rows.strata, rows.is_negative)),
        {name: Stream(values) for name, values in rows.columns.items()},
    )
    for changes in ({"folds": 3}, {"folds": 0}):
        options = TrainConfig(train_uri="train.parquet", group_by=group_by, stratify=stratify, **changes)
        found = listed(plan_splits(options, 80, lambda: streams))
        assert found == listed(plan_splits(options, 80, lambda: rows))
        assert all(sorted(train + dev + held_out) == list(range(80)) for _, train, dev, held_out in found)
        assert all(dev for _, _, dev, _ in found)


def test_positives_lie_in_the_same_folds_whatever_negatives_there_are(data, tmp_path):
    tweets = pq.read_table(data / "train.parquet", columns=["tokens", "tags", "id"]).to_pylist()
    chance = random.Random(5)

    def held_out(name: str, num_negatives: int) -> dict[str, int | None]:
        # Copies of positives and of one another among them.
        words = [
            chance.choice([["so", "hungry", f"n{number}"], tweets[number % 7]["tokens"]])
            for number in range(num_negatives)
        ]
        rows = [{**row, "is_negative": False} for row in tweets]
        rows += [
            {"tokens": each, "tags": ["O"] * len(each), "id": f"{name}{number}", "is_negative": True}
            for number, each in enumerate(words)
        ]
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(chance.sample(rows, len(rows))), path)
        one = config(data, tmp_path, train_uri=str(path), folds=4, group_by=["near_duplicates"])
        train, splits = plan(one)
        return {train.documents[row].id: split.fold for split in splits for row in split.held_out}

    without, some, many = held_out("none", 0), held_out("some", 50), held_out("many", 300)
    few = held_out("few", 2)  # fewer than folds
    assert len(few) == 122
    assert all(few[row["id"]] == without[row["id"]] for row in tweets)
    assert len(many) == 420
    for row in tweets:
        assert without[row["id"]] == some[row["id"]] == many[row["id"]]


@pytest.mark.data
def test_crisis_folds_part_no_near_duplicates(tmp_path):
    path = Path(os.environ.get("SCALEMINE_DATA", "../shared/data")) / "crisis_spans_train.parquet"
    if not path.exists():
        pytest.skip(f"the real tweets are not at {path.parent}")
    one = Config.model_validate({"workdir": str(tmp_path), "train": {"train_uri": str(path), "folds": 5}})
    train, splits = plan(one)
    groups = near_duplicate_groups([document.text for document in train.documents])
    for split in splits:
        sides = [{groups[row] for row in part} for part in (split.train, split.dev, split.held_out)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert abs(len(split.held_out) - len(train.documents) / 5) < 20
