from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import oracles
from scalemine.config import InputError
from scalemine.mining import negatives as negatives_module
from scalemine.mining import sets as module
from scalemine.mining.anchors import SPANS, Positives
from scalemine.mining.sampling import Row
from scalemine.mining.sets import describe, make_sets, num_random, split_mined, usable_random, write_sets

RATIO = 10
MINED = ("1s", "2s", "3s")
KINDS = ("no", "random", *MINED)


def labelled(prefix, counts, spans=None) -> Positives:
    rows = [
        {"id": f"{prefix}-{name}-{i}", "text": f"{prefix} {name} report {i}", "class_name": name, "spans": spans}
        for name, count in counts.items()
        for i in range(count)
    ]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("class_name", pa.string()), ("spans", SPANS)])
    return Positives(pa.Table.from_pylist(rows, schema=schema))


def mined(counts, probability=lambda i: None) -> pa.Table:
    """Mined negatives by (class, kind): as many as said."""
    rows = [
        {"id": f"m-{name}-{kind}-{i}", "text": f"mined {name} {kind} {i}", "class_name": name, "kind": kind}
        | {"false_negative_probability": probability(i)}
        for (name, kind), count in counts.items()
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=negatives_module.SCHEMA)


def random_rows(count) -> list[Row]:
    return [Row("00000", i, f"r-{i}", f"random tweet number {i}") for i in range(count)]


TRAIN = {"fire": 8, "flood": 20}
TEST = {"fire": 3, "flood": 5}


def whole(kinds=MINED, spans=None, random=None, counts=None, mix=None, probability=lambda i: None):
    train, test = labelled("train", TRAIN, spans), labelled("test", TEST, spans)
    counts = counts or {(name, kind): TRAIN[name] + TEST[name] for name in TRAIN for kind in kinds}
    random = random_rows(num_random(28, 8, RATIO)) if random is None else random
    negatives = mined(counts, probability)
    return train, test, make_sets(train, test, negatives, random, kinds=kinds, ratio=RATIO, mix=mix or {})


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


@pytest.mark.parametrize("kind", MINED)
def test_mined_sets_match_their_positives_by_class_and_kind(kind):
    _, _, sets = whole()
    for side, counts in (("train", TRAIN), ("test", TEST)):
        rows = [row for row in sets[f"{side}_{kind}"].to_pylist() if row["is_negative"]]
        assert Counter(row["class_name"] for row in rows) == counts
        assert {row["label_source"] for row in rows} == {f"mined_{kind}"}
        assert all(row["id"].startswith(f"m-{row['class_name']}-{kind}-") for row in rows)


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


def test_each_kind_that_was_mined_makes_its_sets_and_no_other():
    # The band beyond three sigma, too: with the guard on it is safe to learn from.
    _, _, sets = whole(kinds=("2s", "4s"))
    assert sets.keys() == {f"{side}_{kind}" for side in ("train", "test") for kind in ("no", "random", "2s", "4s")} | {
        "test_random_plus"
    }
    assert not any(name.endswith(("_1s", "_3s")) for name in sets)
    assert len(ids(sets["train_4s"])) == 28


def test_what_the_strategy_random_mined_is_not_the_random_tweets():
    _, _, sets = whole(kinds=("random",))
    for side, counts in (("train", TRAIN), ("test", TEST)):
        rows = [row for row in sets[f"{side}_mined_random"].to_pylist() if row["is_negative"]]
        assert Counter(row["class_name"] for row in rows) == counts
        assert {row["label_source"] for row in rows} == {"mined_random"}
        rows = [row for row in sets[f"{side}_random"].to_pylist() if row["is_negative"]]
        assert {(row["label_source"], row["class_name"]) for row in rows} == {("random", None)}


def test_weight_is_the_probability_of_being_a_negative():
    _, _, sets = whole(probability=lambda i: [None, 0.0, 0.25, 1.0][i % 4], mix={"random": 0.5, "2s": 0.5})
    expected = {0: 1.0, 1: 1.0, 2: 0.75, 3: 0.0}
    seen = set()
    for table in sets.values():
        for row in table.to_pylist():
            mined_one = row["label_source"].startswith("mined_")
            wanted = expected[int(row["id"].rsplit("-", 1)[1]) % 4] if mined_one else 1.0
            assert row["weight"] == wanted
            seen.add((row["label_source"], row["weight"]))
    assert {("annotated", 1.0), ("random", 1.0), ("mined_2s", 0.75), ("mined_2s", 0.0)} <= seen


# Mixtures


@pytest.mark.parametrize(
    ("mix", "train", "test"),
    [
        ({"random": 0.5, "3s": 0.5}, {"random": 14, "3s": 14}, {"random": 4, "3s": 4}),
        ({"1s": 0.25, "2s": 0.75}, {"1s": 7, "2s": 21}, {"1s": 2, "2s": 6}),
        ({"2s": 1.0}, {"2s": 28}, {"2s": 8}),
        # 28 / 3 and 8 / 3: rounded at their ends, so that they add up.
        (
            dict.fromkeys(("random", "1s", "2s"), 1 / 3),
            {"random": 9, "1s": 10, "2s": 9},
            {"random": 3, "1s": 2, "2s": 3},
        ),
    ],
)
def test_mix_takes_the_shares(mix, train, test):
    _, _, sets = whole(mix=mix)
    for side, shares in (("train", train), ("test", test)):
        rows = [row for row in sets[f"{side}_mix"].to_pylist() if row["is_negative"]]
        assert Counter(row["label_source"].removeprefix("mined_") for row in rows) == shares
        # Each is in the set of its kind on the same side, and stands there once.
        for row in rows:
            assert row["id"] in ids(sets[f"{side}_{row['label_source'].removeprefix('mined_')}"])
        assert len({row["id"] for row in rows}) == len(rows)
    assert not set(ids(sets["train_mix"])) & set(ids(sets["test_mix"]))
    of_test = {id_ for name, table in sets.items() if name.startswith("test") for id_ in ids(table)}
    assert not set(ids(sets["train_mix"])) & of_test
    for row in describe(sets, RATIO):
        assert row["negatives"] == row["wanted_negatives"], row["name"]


def test_mix_is_spread_over_the_classes():
    # A kind's rows are by class; the first ones alone would be of one class.
    _, _, sets = whole(mix={"random": 0.5, "3s": 0.5})
    of_mined = [row["class_name"] for row in sets["train_mix"].to_pylist() if row["label_source"] == "mined_3s"]
    assert Counter(of_mined) == {"fire": 4, "flood": 10}


def test_mix_holds_the_positives():
    train, test, sets = whole(mix={"random": 0.5, "1s": 0.5})
    assert ids(sets["train_mix"], negative=False) == train.table["id"].to_pylist()
    assert ids(sets["test_mix"], negative=False) == test.table["id"].to_pylist()
    assert not any(name.endswith("_mix") for name in whole()[2])


def test_mix_of_what_is_scarce_gives_what_there_is():
    _, _, sets = whole(counts={("fire", "3s"): 3, ("flood", "3s"): 2}, mix={"random": 0.5, "3s": 0.5})
    counts = Counter(row["label_source"] for row in sets["train_mix"].to_pylist() if row["is_negative"])
    assert counts["random"] == 14
    assert counts["mined_3s"] == len(ids(sets["train_3s"])) == 4
    short = {row["name"]: row["wanted_negatives"] - row["negatives"] for row in describe(sets, RATIO)}
    assert short["train_mix"] == 10


@pytest.mark.parametrize("unknown", ["4s", "no", "mix", "3S"])
def test_mix_of_a_kind_that_is_not_there_is_refused(unknown):
    with pytest.raises(InputError, match=f"sets.mix: no negatives of kind '{unknown}'.*random, 1s, 2s, 3s"):
        whole(mix={"random": 0.5, unknown: 0.5})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 30), st.integers(0, 30))
def test_mix_of_any_shares_adds_up(parts, fire, flood):
    kinds = ("random", *MINED)[: len(parts)]
    mix = {kind: part / sum(parts) for kind, part in zip(kinds, parts, strict=True)}
    _, _, sets = whole(
        counts={(name, kind): count for name, count in (("fire", fire), ("flood", flood)) for kind in MINED}, mix=mix
    )
    for side, size in (("train", 28), ("test", 8)):
        counts = Counter(
            row["label_source"].removeprefix("mined_") for row in sets[f"{side}_mix"].to_pylist() if row["is_negative"]
        )
        for kind, share in mix.items():
            supply = len(ids(sets[f"{side}_{kind}"]))
            assert counts[kind] <= supply
            # Both ends of a share are rounded.
            assert counts[kind] == supply or abs(counts[kind] - share * size) <= 1
        assert sum(counts.values()) <= size
        if all(counts[kind] < len(ids(sets[f"{side}_{kind}"])) for kind in mix):
            assert sum(counts.values()) == size
    assert not set(ids(sets["train_mix"])) & set(ids(sets["test_mix"]))


def test_sets_without_test_positives():
    train = labelled("train", TRAIN)
    counts = {(name, "3s"): count for name, count in TRAIN.items()}
    mix = {"random": 0.5, "3s": 0.5}
    sets = make_sets(train, None, mined(counts), random_rows(28), kinds=("3s",), ratio=RATIO, mix=mix)
    assert sets.keys() == {"train_no", "train_random", "train_3s", "train_mix"}
    assert [len(ids(table)) for table in sets.values()] == [0, 28, 28, 28]


def test_short_supply_of_mined_is_shared_alike():
    _, _, sets = whole(counts={("fire", "3s"): 11, ("flood", "3s"): 10})
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
    for_train, for_test = split_mined(mined({("flood", "2s"): supply}), "2s", {"flood": train}, {"flood": test})
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
        Row("0", 3, "r3", "RT @ben: mined flood 1s 0"),
        Row("0", 4, "r4", "good morning"),
    ]
    usable = usable_random(sample, mined({("flood", "1s"): 1}), ["Train fire report 0!"])
    assert [row.id for row in usable] == ["r0", "r4"]


def test_write_sets(tmp_path):
    _, _, sets = whole()
    stage = oracles.make_stage(tmp_path / "sets")
    write_sets(sets, stage)
    for name, table in sets.items():
        path = stage.file(f"{name}.parquet")
        assert pq.read_table(path).equals(table)
        assert stage.manifest(path)["rows"] == table.num_rows
