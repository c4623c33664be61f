from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.mining import negatives as negatives_module
from scalemine.mining import sets as module
from scalemine.mining.anchors import SPANS, Positives
from scalemine.mining.sampling import Row
from scalemine.mining.sets import describe, make_sets, num_random, split_mined, usable_random, write_sets

RATIO = 10
BANDS = (1, 2, 3)
KINDS = ("no", "random", "1s", "2s", "3s")


def labelled(prefix, counts, spans=None) -> Positives:
    rows = [
        {"id": f"{prefix}-{name}-{i}", "text": f"{prefix} {name} report {i}", "class_name": name, "spans": spans}
        for name, count in counts.items()
        for i in range(count)
    ]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("class_name", pa.string()), ("spans", SPANS)])
    return Positives(pa.Table.from_pylist(rows, schema=schema))


def mined(counts) -> pa.Table:
    """Mined negatives by (class, band): as many as said."""
    rows = [
        {"id": f"m-{name}-{band}-{i}", "text": f"mined {name} {band} {i}", "class_name": name, "band": band}
        for (name, band), count in counts.items()
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=negatives_module.SCHEMA)


def random_rows(count) -> list[Row]:
    return [Row("00000", i, f"r-{i}", f"random tweet number {i}") for i in range(count)]


TRAIN = {"fire": 8, "flood": 20}
TEST = {"fire": 3, "flood": 5}


def whole(bands=BANDS, spans=None, random=None, counts=None):
    train, test = labelled("train", TRAIN, spans), labelled("test", TEST, spans)
    counts = counts or {(name, band): TRAIN[name] + TEST[name] for name in TRAIN for band in bands}
    random = random_rows(num_random(28, 8, RATIO)) if random is None else random
    return train, test, make_sets(train, test, mined(counts), random, bands=bands, ratio=RATIO)


def ids(table, *, negative=True):
    return [row["id"] for row in table.to_pylist() if row["is_negative"] == negative]


def test_sets_have_the_sizes_of_the_paper():
    train, test, sets = whole()
    names = {f"{side}_{kind}" for side in ("train", "test") for kind in KINDS} | {"test_random_plus"}
    assert sets.keys() == names
    for name, table in sets.items():
        positives = train if name.startswith("train") else test
        assert table.schema.equals(module.SCHEMA)
        assert ids(table, negative=False) == positives.table["id"].to_pylist()
        wanted = {"no": 0, "plus": RATIO}.get(name.split("_")[-1], 1) * positives.table.num_rows
        assert len(ids(table)) == wanted
        assert len(set(table["id"].to_pylist())) == table.num_rows
    for row in describe(sets, RATIO):
        assert row["negatives"] == row["wanted_negatives"]


@pytest.mark.parametrize("band", BANDS)
def test_mined_sets_match_their_positives_by_class_and_band(band):
    _, _, sets = whole()
    for side, counts in (("train", TRAIN), ("test", TEST)):
        rows = [row for row in sets[f"{side}_{band}s"].to_pylist() if row["is_negative"]]
        assert Counter(row["class_name"] for row in rows) == counts
        assert {row["label_source"] for row in rows} == {f"mined_{band}s"}
        assert all(row["id"].startswith(f"m-{row['class_name']}-{band}-") for row in rows)


def test_train_and_test_share_no_row():
    _, _, sets = whole()
    train = {id_ for name, table in sets.items() if name.startswith("train") for id_ in table["id"].to_pylist()}
    test = {id_ for name, table in sets.items() if name.startswith("test") for id_ in table["id"].to_pylist()}
    assert train
    assert not train & test


def test_random_plus_contains_test_random():
    _, _, sets = whole()
    assert ids(sets["test_random_plus"])[:8] == ids(sets["test_random"])
    rows = [row for row in sets["test_random_plus"].to_pylist() if row["is_negative"]]
    assert {(row["label_source"], row["class_name"]) for row in rows} == {("random", None)}


def test_spans_are_carried():
    spans = [{"start": 2, "end": 7, "type": "LOC"}]
    _, _, sets = whole(spans=spans)
    for table in sets.values():
        for row in table.to_pylist():
            assert row["spans"] == ([] if row["is_negative"] else spans)
            assert row["is_negative"] or row["label_source"] == "annotated"
            assert row["is_negative"] or row["class_name"] in TRAIN


def test_spans_that_are_not_there_stay_null():
    _, _, sets = whole()
    assert sets["train_no"]["spans"].to_pylist() == [None] * 28


def test_band_beyond_three_sigma_makes_no_set():
    _, _, sets = whole(bands=(2, 4))
    assert "train_2s" in sets
    assert not any(name.endswith(("_1s", "_3s", "_4s")) for name in sets)


def test_sets_without_test_positives():
    train = labelled("train", TRAIN)
    counts = {(name, 3): count for name, count in TRAIN.items()}
    sets = make_sets(train, None, mined(counts), random_rows(28), bands=(3,), ratio=RATIO)
    assert sets.keys() == {"train_no", "train_random", "train_3s"}
    assert [len(ids(table)) for table in sets.values()] == [0, 28, 28]


def test_short_supply_of_mined_is_shared_alike():
    _, _, sets = whole(counts={("fire", 3): 11, ("flood", 3): 10})
    # Fire has enough for both; of flood's 10 the training set gets 20 of 25 parts.
    assert Counter(row["class_name"] for row in sets["train_3s"].to_pylist() if row["is_negative"]) == {
        "fire": 8,
        "flood": 8,
    }
    assert Counter(row["class_name"] for row in sets["test_3s"].to_pylist() if row["is_negative"]) == {
        "fire": 3,
        "flood": 2,
    }
    assert ids(sets["train_1s"]) == []


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 15), st.integers(0, 15))
def test_split_mined_shares_everything_and_no_more(supply, train, test):
    for_train, for_test = split_mined(mined({("flood", 2): supply}), 2, {"flood": train}, {"flood": test})
    assert len(for_train) + len(for_test) == min(supply, train + test)
    assert not {row["id"] for row in for_train} & {row["id"] for row in for_test}
    assert len(for_train) <= train
    assert len(for_test) <= test
    if supply < train + test:
        assert abs(len(for_train) - supply * train / (train + test)) <= 0.5
    else:
        assert (len(for_train), len(for_test)) == (train, test)


@pytest.mark.parametrize("supply", [0, 1, 27, 54, 107])
def test_short_supply_of_random_is_shared_alike(supply):
    random = random_rows(supply)
    _, _, sets = whole(random=random)
    share = supply / num_random(28, 8, RATIO)
    assert abs(len(ids(sets["train_random"])) - 28 * share) <= 0.5
    assert abs(len(ids(sets["test_random_plus"])) - 80 * share) <= 0.5
    assert sorted(ids(sets["train_random"]) + ids(sets["test_random_plus"])) == sorted(row.id for row in random)
    assert ids(sets["test_random"]) == ids(sets["test_random_plus"])[:8]
    short = {row["name"]: row["wanted_negatives"] - row["negatives"] for row in describe(sets, RATIO)}
    assert short["test_random_plus"] == 80 - len(ids(sets["test_random_plus"]))
    assert short["test_no"] == 0


def test_usable_random_leaves_out_copies():
    sample = [
        Row("0", 0, "r0", "smoke over the hill"),
        Row("0", 1, "r1", "RT @ana: Smoke over the hill https://t.co/x"),
        Row("0", 2, "r2", "train fire report 0"),
        Row("0", 3, "r3", "RT @ben: mined flood 1 0"),
        Row("0", 4, "r4", "good morning"),
    ]
    usable = usable_random(sample, mined({("flood", 1): 1}), ["Train fire report 0!"])
    assert [row.id for row in usable] == ["r0", "r4"]


def test_write_sets(tmp_path):
    _, _, sets = whole()
    stage = oracles.make_stage(tmp_path / "sets")
    write_sets(sets, stage)
    for name, table in sets.items():
        path = stage.file(f"{name}.parquet")
        assert pq.read_table(path).equals(table)
        assert stage.manifest(path)["rows"] == table.num_rows
