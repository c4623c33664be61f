from __future__ import annotations

import csv
import json
import logging
import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from scalemine.config import ComputeConfig, CorpusConfig, InputError, LabelsConfig
from scalemine.executor import InlineExecutor, StopSignals, make_executor
from scalemine.models import model_fingerprint
from scalemine.training.multilabel import examples as module
from scalemine.training.multilabel.examples import (
    Examples,
    TokeniserSpec,
    check_labels,
    check_same_labels,
    num_cut,
    read_examples,
    read_targets,
)
from training.tiny import write_bert

WORDS = ["fire", "bridge", "bus", "crash", "shop", "hurt", "old", "near"]
NAMES = ["fear", "anger", "joy"]


def write_file(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def tweets(number: int, seed: int = 0) -> list[dict]:
    """Return invented tweets with several kinds of label columns."""
    chance = random.Random(seed)
    rows = []
    for place in range(number):
        text = " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 20)))
        labels = [name for name in NAMES if chance.random() < 0.4]
        rows.append(
            {
                "id": f"t{place}", "text": f"{text} {place}", "labels": labels,
                "one": chance.choice(["1", "0", "-1", "", "true", "False", "1.0"]),
                "kind": chance.choice(["flood", "fire", "?", ""]), "place": chance.choice(["near", "far", ""]),
                "weight": chance.choice([1.0, 0.5, 0.0, 3.0]), "is_negative": chance.random() < 0.2,
                "lang": chance.choice(["en", "fr"]),
            }
        )  # fmt: skip
    return rows


def read(path: Path, folder: Path, how: dict | None = None, **options) -> Examples:
    config = LabelsConfig.model_validate(how or {})
    return read_examples(str(path), config, folder, **({"executor": InlineExecutor} | options))


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Let an import write shards of seven tweets."""
    monkeypatch.setattr(module, "CorpusConfig", partial(CorpusConfig, rows_per_shard=7))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def spec(encoder: Path, max_length: int = 12) -> TokeniserSpec:
    return TokeniserSpec(encoder, model_fingerprint(encoder), max_length, "none")


def forbidden() -> InlineExecutor:
    pytest.fail("there was something to do")


# What labels come to


def slow_targets(rows: list[dict], labels: list[str], config: LabelsConfig) -> list[list[int]]:
    """Return the targets, entry by entry."""
    found = []
    for row in rows:
        targets = []
        for label in labels:
            if str(row.get("is_negative") or "").lower() in ("true", "1", "1.0"):
                targets.append(-1)
                continue
            absent = -1 if config.absent == "unknown" else 0
            if config.columns:
                value = str(row[label]).lower() if label in row and row[label] is not None else ""
                targets.append({"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}.get(value, -1))
            elif config.categories:
                column, value = (config.categories[0], label) if len(config.categories) == 1 else label.split("=")
                given = (row[column] or "").strip()
                known = given and given not in config.unknown_values
                targets.append(-1 if not known else 1 if given == value else absent)
            else:
                given = row["labels"] or []
                names = given if isinstance(given, list) else [name.strip() for name in given.split(",")]
                targets.append(1 if label in names else absent)
        found.append(targets)
    return found


WAYS: list[tuple[dict, list[str]]] = [
    ({}, sorted(NAMES)),
    ({"names": ["joy", "fear"]}, ["joy", "fear"]),
    ({"columns": ["one"]}, ["one"]),
    ({"categories": ["kind"], "unknown_values": ["?"]}, ["fire", "flood"]),
    ({"categories": ["kind", "place"]}, ["kind=?", "kind=fire", "kind=flood", "place=far", "place=near"]),
]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_targets_are_those_of_an_oracle(tmp_path, small_shards, suffix):
    rows = tweets(23)
    given = [row | {"labels": ", ".join(row["labels"])} if suffix in ("csv", "tsv") else row for row in rows]
    path = write_file(tmp_path / f"tweets.{suffix}", given)
    for how, expected in WAYS:
        for absent in ("negative", "unknown"):
            found = read(path, tmp_path / "work", how | {"absent": absent})
            config = LabelsConfig.model_validate(how | {"absent": absent})
            assert list(found.labels) == expected
            assert found.targets_of().dtype == np.int8
            assert found.targets_of().tolist() == slow_targets(rows, expected, config)
            assert found.weights_of().tolist() == [row["weight"] for row in rows]
    assert len(found.corpus.shards) == 4
    assert found.column("id") == [row["id"] for row in rows]


COLUMN = st.sampled_from(["1", "0", "-1", "", None, "true", "False", "1.0", "0.0", "-1.0", "TRUE", " 1 "])
LISTS = st.sampled_from([None, "", "a", "a, b", "b,,c", '["a", "c"]', "[]", '[" b "]', "a,a", "nobody's"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COLUMN, COLUMN, LISTS, COLUMN), min_size=1, max_size=12), st.booleans())
def test_values_are_read_as_an_oracle_reads_them(values, absent_unknown):
    absent = "unknown" if absent_unknown else "negative"
    names = ["x", "y", "labels", "is_negative"]
    columns = {
        name: pa.array(column, pa.string()) for name, column in zip(names, zip(*values, strict=True), strict=True)
    }
    table = pa.table(columns | {"id": [str(number) for number in range(len(values))]})
    rows = []
    for x, y, listed, negative in values:
        labels = json.loads(listed) if (listed or "").startswith("[") else (listed or "").split(",")
        stripped = {"x": (x or "").strip(), "y": (y or "").strip(), "is_negative": (negative or "").strip()}
        rows.append(stripped | {"labels": [label.strip() for label in labels]})
    for how, labels in (({"columns": ["x", "y"]}, ["y", "x"]), ({}, ["a", "b", "c"])):
        config = LabelsConfig.model_validate(how | {"absent": absent})
        assert read_targets(table, labels, config).tolist() == slow_targets(rows, labels, config)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, None], [1, 0, -1]),
        ([1, 0, -1], [1, 0, -1]),
        ([1.0, 0.0, None], [1, 0, -1]),
        (pa.array([1, 0, -1], pa.int8()), [1, 0, -1]),
        (["1", "", "-1"], [1, -1, -1]),
    ],
)
def test_columns_of_any_type(tmp_path, values, expected):
    pq.write_table(pa.table({"id": list("abc"), "text": list("xyz"), "hot": values}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", tmp_path, {"columns": "hot"}).targets_of()[:, 0].tolist() == expected


def test_mined_negatives_are_unknown_and_keep_their_weight(tmp_path):
    rows = [
        {"id": "a", "text": "fire", "labels": ["fear"], "is_negative": False, "weight": 1.0},
        {"id": "b", "text": "mixtape", "labels": [], "is_negative": True, "weight": 0.25},
        {"id": "c", "text": "bus", "labels": ["fear"], "is_negative": None, "weight": None},
    ]
    found = read(write_file(tmp_path / "t.parquet", rows), tmp_path)
    assert found.targets_of().tolist() == [[1], [-1], [1]]
    assert found.weights_of().tolist() == [1.0, 0.25, 1.0]
    assert list(found.rows().is_negative) == [False, True, False]
    assert found.negative([2, 1, 0]).tolist() == [False, True, False]
    assert list(found.rows().strata) == [["fear"], [], ["fear"]]


# Rows by memory map


def test_any_rows_are_those_of_an_oracle(tmp_path, small_shards, encoder):
    rows = tweets(30)
    path = write_file(tmp_path / "tweets.parquet", rows)
    found = read(path, tmp_path / "work", tokenise=spec(encoder), keep=("lang", "user"))
    every, weight_N, tokens = found.targets_of(), found.weights_of(), found.tokens_of(range(30))
    chance = np.random.default_rng(0)
    for places in ([], [29], [0, 7, 6, 6, 29], *(chance.integers(0, 30, 15).tolist() for _ in range(5))):
        assert found.targets_of(places).tolist() == [every[place].tolist() for place in places]
        assert found.weights_of(places).tolist() == [weight_N[place] for place in places]
        assert [one.tolist() for one in found.tokens_of(places)] == [tokens[place].tolist() for place in places]
        assert found.ids_of(places) == [rows[place]["id"] for place in places]
        assert found.values("lang", places) == [rows[place]["lang"] for place in places]
    assert found.targets_of([]).shape == (0, 3)
    assert found.columns == ("lang",)
    some = found.rows(np.array([9, 2]))
    assert (list(some.ids), list(some.texts)) == (["t9", "t2"], [rows[9]["text"], rows[2]["text"]])
    columns = {name: list(values) for name, values in some.columns.items()}
    assert columns == {"lang": [rows[9]["lang"], rows[2]["lang"]]}


@pytest.mark.parametrize("places", [None, [], [29], [28, 3, 3, 14, 0, 9, 21, 7, 1]])
def test_rows_are_streams(tmp_path, small_shards, monkeypatch, places):
    """Nothing is read before it is gone through, and then a few tweets at a time, as often as wanted."""
    rows = tweets(30)
    found = read(write_file(tmp_path / "tweets.parquet", rows), tmp_path / "work", keep=("lang",))
    monkeypatch.setattr(module, "_STREAMED_ROWS", 4)
    sizes = []
    for name in ("values", "targets_of"):
        real = getattr(Examples, name)
        monkeypatch.setattr(Examples, name, lambda *given, real=real: (sizes.append(len(given[-1])), real(*given))[1])
    given = found.rows(None if places is None else np.array(places, np.int64))
    chosen = [rows[place] for place in (range(30) if places is None else places)]
    streams = {
        "id": given.ids, "text": given.texts, "labels": given.strata, "is_negative": given.is_negative,
        "lang": given.columns["lang"],
    }  # fmt: skip
    assert {name: len(stream) for name, stream in streams.items()} == dict.fromkeys(streams, len(chosen))
    assert not sizes
    for name, stream in streams.items():
        if name == "labels":  # those that are known
            expected = [[] if row["is_negative"] else sorted(row["labels"]) for row in chosen]
        else:
            expected = [row[name] for row in chosen]
        assert list(stream) == expected
        assert list(stream) == expected
        assert list(stream[1:3]) == expected[1:3]
        if chosen:
            assert (stream[0], stream[-1]) == (expected[0], expected[-1])
    assert max(sizes, default=0) <= 4


def test_shards_of_one_row(tmp_path, encoder, monkeypatch):
    whole = read(write_file(tmp_path / "t.parquet", tweets(5)), tmp_path / "whole", tokenise=spec(encoder))
    monkeypatch.setattr(module, "CorpusConfig", partial(CorpusConfig, rows_per_shard=1))
    parts = read(tmp_path / "t.parquet", tmp_path / "parts", tokenise=spec(encoder))
    assert (len(whole.corpus.shards), len(parts.corpus.shards)) == (1, 5)
    assert np.array_equal(parts.targets_of([4, 0]), whole.targets_of([4, 0]))
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert num_cut(parts, np.arange(parts.num_rows)) == num_cut(whole, np.arange(whole.num_rows))


def test_targets_and_tokens_are_mapped_not_held(tmp_path, encoder):
    found = read(write_file(tmp_path / "t.parquet", tweets(40)), tmp_path, tokenise=spec(encoder))
    [(targets_NC, weight_N)], [(offsets, ids)] = found._maps, found._ids
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no /proc")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(".arrow")]
    for array in (targets_NC, weight_N, offsets, ids):
        place = array.__array_interface__["data"][0]
        assert any(int(low, 16) <= place < int(high, 16) for low, high in spans)


# Tokens


def test_tokens_are_the_tokenisers_own(tmp_path, small_shards, encoder):
    rows = tweets(60)
    found = read(write_file(tmp_path / "t.jsonl", rows), tmp_path, tokenise=spec(encoder))
    tokenizer = BertTokenizerFast.from_pretrained(encoder)
    whole = [tokenizer(row["text"])["input_ids"] for row in rows]
    expected = [ids if len(ids) <= 12 else [*ids[:11], ids[-1]] for ids in whole]
    assert [ids.tolist() for ids in found.tokens_of(range(60))] == expected
    assert found.lengths.tolist() == [len(ids) for ids in expected]
    cut = sum(len(ids) > 12 for ids in whole)
    assert 0 < cut < 60
    assert num_cut(found, np.arange(found.num_rows)) == cut
    assert [num_cut(found, np.array([row])) for row in range(60)] == [len(ids) > 12 for ids in whole]


def test_threads_do_not_share_the_tokeniser_at_a_time(tmp_path, small_shards, encoder, monkeypatch):
    """Whether it cuts is a state of the tokeniser, so a call beside another would change what that one does."""
    real, inside, most = BertTokenizerFast.__call__, [], []

    def call(self, *arguments, **options):
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()
        return real(self, *arguments, **options)

    monkeypatch.setattr(BertTokenizerFast, "__call__", call)
    read(write_file(tmp_path / "t.parquet", tweets(60)), tmp_path, tokenise=spec(encoder))
    assert len(most) >= 9
    assert max(most) == 1


def test_a_text_without_tokens_has_one_all_the_same(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(
        BertTokenizerFast, "__call__", lambda _self, texts, **_: {"input_ids": [[] for _ in texts]}, raising=True
    )
    found = read(write_file(tmp_path / "t.parquet", tweets(3)), tmp_path, tokenise=spec(encoder))
    assert found.lengths.tolist() == [1, 1, 1]


def test_texts_are_normalised_before_they_are_tokenised(tmp_path, encoder):
    rows = [{"id": "a", "text": "see https://t.co/x @ana", "labels": ["fear"]}]
    one = spec(encoder, 60)
    other = TokeniserSpec(encoder, one.fingerprint, 60, "bertweet")
    path = write_file(tmp_path / "t.parquet", rows)
    found = [read(path, tmp_path, tokenise=each).tokens_of([0])[0].tolist() for each in (one, other)]
    expected = BertTokenizerFast.from_pretrained(encoder)(module.normaliser("bertweet")(rows[0]["text"]))["input_ids"]
    assert found[1] == expected != found[0]


# What was read before


def test_a_second_reading_does_nothing(tmp_path, small_shards, encoder):
    path = write_file(tmp_path / "tweets.parquet", tweets(20))
    first = read(path, tmp_path / "work", tokenise=spec(encoder))
    again = read(path, tmp_path / "work", tokenise=spec(encoder), executor=forbidden)
    assert again.sha256 == first.sha256
    assert np.array_equal(again.targets_of(), first.targets_of())
    assert np.array_equal(again.lengths, first.lengths)


def test_another_meaning_of_labels_leaves_tweets_and_tokens(tmp_path, encoder):
    path = write_file(tmp_path / "tweets.parquet", tweets(20))
    first = read(path, tmp_path / "work", tokenise=spec(encoder))
    other = read(path, tmp_path / "work", {"absent": "unknown"}, tokenise=spec(encoder))
    assert other.corpus.folder == first.corpus.folder
    assert other.tokens.stage.folder == first.tokens.stage.folder
    assert other.sha256 != first.sha256
    assert sorted(np.unique(other.targets_of())) == [-1, 1]
    back = read(path, tmp_path / "work", tokenise=spec(encoder), executor=forbidden)
    assert np.array_equal(back.targets_of(), first.targets_of())


def test_a_changed_file_is_read_anew(tmp_path, encoder):
    rows = tweets(20)
    path = write_file(tmp_path / "tweets.jsonl", rows)
    first = read(path, tmp_path / "work", tokenise=spec(encoder))
    changed = [*rows[:-1], rows[-1] | {"text": "another", "labels": ["joy"], "is_negative": False}]
    write_file(path, changed)
    again = read(path, tmp_path / "work", tokenise=spec(encoder))
    assert again.sha256 != first.sha256
    assert again.column("text")[-1] == "another"
    assert again.targets_of([19]).tolist() == [[0, 0, 1]]
    assert len(again.tokens_of([19])[0]) != len(BertTokenizerFast.from_pretrained(encoder)(rows[-1]["text"]).input_ids)


def test_files_of_one_name_do_not_get_in_each_others_way(tmp_path):
    paths = []
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        paths.append(write_file(tmp_path / name / "train.parquet", tweets(10, seed)))
    found = [read(path, tmp_path / "work") for path in paths]
    again = [read(path, tmp_path / "work", executor=forbidden) for path in paths]
    for before, after, seed in zip(found, again, (1, 2), strict=True):
        assert before.column("text") == after.column("text") == [row["text"] for row in tweets(10, seed)]


@pytest.mark.slow
def test_ray_writes_the_same_files(tmp_path, small_shards, encoder, ray_session):
    path = write_file(tmp_path / "tweets.parquet", tweets(30))
    here = read(path, tmp_path / "here", tokenise=spec(encoder))
    with make_executor(ComputeConfig(executor="ray", workers=2), signals=StopSignals(), wants_gpu=False) as executor:
        there = read(path, tmp_path / "there", tokenise=spec(encoder), executor=lambda: executor)
        write_file(path, [tweets(30)[0] | {"one": "maybe"}])
        with pytest.raises(InputError, match=r"column one holds 'maybe' \(id t0\)"):
            read(path, tmp_path / "there", {"columns": ["one"]}, executor=lambda: executor)
    for kind in ("targets", "tokens"):
        for shard in here.corpus.shards:
            assert getattr(here, kind).path(shard).read_bytes() == getattr(there, kind).path(shard).read_bytes()


# Bad input


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


BAD_VALUES = [
    ({"one": "maybe"}, {"columns": ["one"]}, "column one holds 'maybe' (id t3); expected 1, 0, and -1 or nothing"),
    ({"one": "2"}, {"columns": ["one"]}, "column one holds '2' (id t3)"),
    ({"labels": '["fear"'}, {}, "column labels holds '[\"fear\"' (id t3); expected a JSON list of names"),
    ({"labels": "[1]"}, {}, "column labels holds '[1]' (id t3); expected a JSON list of names"),
    ({"weight": "-0.5"}, {}, "column weight holds '-0.5' (id t3); expected a number from 0"),
    ({"weight": "heavy"}, {}, "column weight holds 'heavy' (id t3)"),
    ({"weight": "nan"}, {}, "column weight holds 'nan' (id t3)"),
    ({"is_negative": "perhaps"}, {}, "column is_negative holds 'perhaps' (id t3)"),
]
BAD_COLUMNS = [{"column": "nowhere"}, {"columns": ["one", "nowhere"]}, {"categories": ["nowhere"]}]


@pytest.mark.parametrize(
    ("suffix", "change", "how", "expected"),
    [("csv", *bad) for bad in BAD_VALUES]
    + [("parquet", *BAD_VALUES[0]), ("jsonl", *BAD_VALUES[2]), ("parquet", *BAD_VALUES[4])]
    + [(suffix, {}, how, "no column nowhere") for how in BAD_COLUMNS for suffix in ("csv", "parquet", "jsonl")],
)
def test_bad_values_are_one_line(tmp_path, suffix, change, how, expected):
    rows = [row | {"labels": ",".join(row["labels"]), "one": "1", "weight": "1"} for row in tweets(6)]
    rows = [row | {"is_negative": ""} for row in rows]
    rows[3] |= change
    path = write_file(tmp_path / f"tweets.{suffix}", rows)
    with pytest.raises(InputError) as error:
        read(path, tmp_path / "work", how, key="train.train_uri")
    said = one_line(error)
    assert said.startswith(f"train.train_uri: {path}")
    assert expected in said


@pytest.mark.parametrize(
    ("suffix", "expected"), [("csv", r"no column nowhere \(labels.text\)"), ("jsonl", "set labels.text")]
)
def test_a_text_column_that_is_not_there(tmp_path, suffix, expected):
    path = write_file(tmp_path / f"tweets.{suffix}", [{"id": "a", "text": "bus", "labels": "fear"}])
    with pytest.raises(InputError, match=expected) as error:
        read(path, tmp_path / "work", {"text": "nowhere"})
    assert "corpus." not in one_line(error)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(InputError, match=r"train.dev_uri .*nowhere.csv: matches no file"):
        read(tmp_path / "nowhere.csv", tmp_path / "work", key="train.dev_uri")
    (tmp_path / "empty.csv").write_text("id,text,labels\n")
    with pytest.raises(InputError, match="empty.csv"):
        read(tmp_path / "empty.csv", tmp_path / "work")
    (tmp_path / "broken.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="broken.parquet"):
        read(tmp_path / "broken.parquet", tmp_path / "work")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_columns_that_folds_need(tmp_path, suffix):
    path = write_file(tmp_path / f"t.{suffix}", [row | {"labels": ",".join(row["labels"])} for row in tweets(5)])
    with pytest.raises(InputError, match="no column event"):
        read(path, tmp_path / "work", needs=("event",))
    assert read(path, tmp_path / "work", needs=("lang",)).columns == ("lang",)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_columns_that_are_not_there_are_not_spoken_of(tmp_path, suffix, caplog):
    path = write_file(tmp_path / f"t.{suffix}", [{"id": "a", "text": "bus", "labels": "fear"}])
    found = read(path, tmp_path / "work", {"groups": ["lang"]}, keep=("event", "user"))
    assert found.columns == ()
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert found.weights_of().tolist() == [1.0]


def test_no_label_at_all(tmp_path):
    path = write_file(tmp_path / "t.parquet", [row | {"labels": ""} for row in tweets(3)])
    with pytest.raises(InputError, match="no tweet bears a label"):
        read(path, tmp_path / "work")


def test_a_label_that_nobody_bears_cannot_be_learnt(tmp_path):
    rows = [row | {"one": "0"} for row in tweets(6)]
    found = read(write_file(tmp_path / "t.parquet", rows), tmp_path / "work", {"columns": ["one"]})
    with pytest.raises(InputError, match=r"train.train_uri: .*t.parquet: no tweet bears the label 'one'") as error:
        check_labels(found, "train.train_uri")
    one_line(error)


def test_labels_of_few_or_of_all_are_warned_about(tmp_path, caplog):
    rows = [{"id": str(n), "text": f"bus {n}", "labels": ["all"] + ["rare"] * (n == 0)} for n in range(5)]
    found = read(write_file(tmp_path / "t.parquet", rows), tmp_path / "work")
    with caplog.at_level(logging.WARNING, logger="scalemine"):
        check_labels(found, "train.train_uri")
    assert any("every tweet whose label 'all' is known bears it" in message for message in caplog.messages)
    assert any("fewer than 3 tweets bear: rare (1)" in message for message in caplog.messages)


def test_labels_that_training_has_none_of(tmp_path):
    train = read(write_file(tmp_path / "a.parquet", [{"id": "1", "text": "x", "labels": ["fear"]}]), tmp_path / "w")
    rows = [{"id": "1", "text": "x", "labels": ["fear", "riot"]}, {"id": "2", "text": "y", "labels": ["riot"]}]
    test = read(write_file(tmp_path / "b.parquet", rows), tmp_path / "w", names=train.labels)
    assert test.unlisted == {"riot": 2}
    assert test.targets_of().tolist() == [[1], [0]]
    with pytest.raises(InputError, match=r"train.test_uris.b: .*b.parquet: label 'riot' \(2 tweets\)") as error:
        check_same_labels(train, {"train.test_uris.b": test})
    one_line(error)
    check_same_labels(train, {"train.test_uris.a": train})


def test_tweets_that_are_left_out_are_counted(tmp_path, caplog):
    rows = [{"id": "1", "text": "fire", "labels": "fear"}, {"id": "2", "text": "", "labels": "joy"}]
    with caplog.at_level(logging.WARNING, logger="scalemine"):
        found = read(write_file(tmp_path / "t.csv", rows), tmp_path / "work")
    assert any("1 of 2 tweets left out" in message for message in caplog.messages)
    assert (found.num_rows, found.labels) == (1, ("fear",))
