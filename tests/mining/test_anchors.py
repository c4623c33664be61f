from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining import oracles
from scalemine.config import InputError, PositivesConfig
from scalemine.mining.anchors import (
    SPANS,
    Anchors,
    Positives,
    check_classes,
    load_anchors,
    make_anchors,
    positives_settings,
    read_positives,
    store_anchors,
)
from scalemine.mining.similarity import STEPS_PER_UNIT

ROWS = [
    {"id": "a1", "text": 'River over its banks, "leave" now', "class_name": "flood"},
    {"id": "a2", "text": "Inundación 🌊 en el puente", "class_name": "flood"},
    {"id": "a3", "text": "Smoke\tover the hill", "class_name": "fire"},
    {"id": "a4", "text": "flames,\nwind, roads shut", "class_name": "fire"},
]
SPANNED = [[{"start": 0, "end": 5, "type": "LOC"}], [], None, [{"start": 2, "end": 3, "type": "X"}]]


def write(path, rows=ROWS):
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        case _:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path, **settings) -> Positives:
    return read_positives(str(path), PositivesConfig(uri=str(path), **settings))


def failure(path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl", "ndjson", "CSV"])
def test_read_positives_of_every_format(tmp_path, suffix):
    path = tmp_path / f"positives.{suffix.lower()}"
    write(path)
    path = path.rename(tmp_path / f"positives.{suffix}")
    positives = read(path)
    assert positives.table.select(["id", "text", "class_name"]).to_pylist() == ROWS
    assert positives.table["spans"].to_pylist() == [None] * 4
    assert positives.table["spans"].type == SPANS
    assert positives.class_names == ["fire", "flood"]
    assert [positives.count(name) for name in ("fire", "flood", "storm")] == [2, 2, 0]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_read_positives_keeps_spans(tmp_path, suffix):
    rows = [{**row, "gold": spans} for row, spans in zip(ROWS, SPANNED, strict=True)]
    positives = read(write(tmp_path / f"p.{suffix}", rows), spans="gold")
    assert positives.table["spans"].to_pylist() == SPANNED


def test_read_positives_keeps_events_and_times_as_text(tmp_path):
    rows = [{**row, "crisis": f"crisis {i}", "at": i} for i, row in enumerate(ROWS)]
    rows[2] |= {"crisis": None, "at": None, "text": "ash over the hill"}
    for suffix in ("parquet", "jsonl"):
        path = write(tmp_path / f"p.{suffix}", rows)
        table = read(path, event="crisis", time="at").table
        assert table["event"].to_pylist() == ["crisis 0", "crisis 1", None, "crisis 3"]
        assert table["time"].to_pylist() == ["0", "1", None, "3"]
        assert table["id"].to_pylist() == ["a1", "a2", "a3", "a4"]
        # By default the columns go by their own names, and need not be there.
        for column in ("event", "time"):
            assert read(path).table[column].to_pylist() == [None] * 4
            assert read(path).table[column].type == pa.string()


@pytest.mark.parametrize("column", ["event", "time"])
def test_read_positives_refuses_nested_events_and_times(tmp_path, column):
    rows = [{**row, column: ["storm"]} for row in ROWS]
    assert failure(write(tmp_path / "p.parquet", rows)).startswith(f"positives.{column}: ")


def test_read_positives_refuses_other_spans(tmp_path):
    rows = [{**row, "spans": "0-5"} for row in ROWS]
    assert "positives.spans" in failure(write(tmp_path / "p.parquet", rows))


def test_read_positives_of_other_columns(tmp_path):
    rows = [{"nr": i, "tweet": row["text"], "label": row["class_name"]} for i, row in enumerate(ROWS)]
    positives = read(write(tmp_path / "p.csv", rows), id="nr", text="tweet", class_name="label")
    assert positives.table["id"].to_pylist() == ["0", "1", "2", "3"]
    assert positives.table["text"].to_pylist() == [row["text"] for row in ROWS]


def test_read_positives_numbers_rows_without_id(tmp_path):
    rows = [{key: row[key] for key in ("text", "class_name")} for row in ROWS]
    rows[1]["text"] = " "
    # The numbers are those of the rows in the file, whatever is left out.
    assert read(write(tmp_path / "p.jsonl", rows)).table["id"].to_pylist() == ["p:0", "p:2", "p:3"]


def test_read_positives_leaves_out_rows_without_text_or_class(tmp_path):
    rows = [*ROWS, {"id": "b1", "text": None, "class_name": "fire"}, {"id": "b2", "text": " \n", "class_name": "fire"}]
    rows += [{"id": "b3", "text": "ash", "class_name": None}, {"id": "b4", "text": "ash", "class_name": ""}]
    assert read(write(tmp_path / "p.parquet", rows)).table["id"].to_pylist() == ["a1", "a2", "a3", "a4"]


def test_read_positives_of_some_classes(tmp_path):
    path = write(tmp_path / "p.parquet")
    assert read(path, classes=("fire",)).table["id"].to_pylist() == ["a3", "a4"]
    assert "storm" in failure(path, classes=("storm",))


def test_missing_column_is_named_with_the_nearest(tmp_path):
    rows = [{"id": row["id"], "txt": row["text"], "class": row["class_name"]} for row in ROWS]
    path = write(tmp_path / "p.csv", rows)
    message = failure(path)
    assert message.startswith("positives.text: no column 'text'")
    assert "did you mean txt?" in message
    message = failure(path, text="txt")
    assert message.startswith("positives.class_name: no column 'class_name'")
    assert "did you mean class?" in message
    message = failure(path, text="xyzzy")
    assert "did you mean" not in message
    assert "id, txt, class" in message


def test_nested_column_is_refused(tmp_path):
    rows = [{**row, "text": [row["text"]]} for row in ROWS]
    assert "positives.text" in failure(write(tmp_path / "p.parquet", rows))


def test_empty_and_broken_files(tmp_path):
    header = tmp_path / "header.csv"
    header.write_text("id,text,class_name\n")
    assert "no positives" in failure(header)
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        empty = tmp_path / f"empty.{suffix}"
        empty.touch()
        assert "cannot be read" in failure(empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1, "text": \n')
    assert "cannot be read" in failure(broken)


def test_no_such_file_or_format(tmp_path):
    assert "no such file" in failure(tmp_path / "nowhere.csv")
    other = tmp_path / "p.xlsx"
    other.touch()
    assert "unknown ending" in failure(other)


def test_the_key_that_named_the_file_is_in_what_is_wrong_with_it(tmp_path):
    twice, other, latin = (tmp_path / name for name in ("twice.csv", "p.xlsx", "latin.csv"))
    twice.write_text("id,text,text,class_name\n1,smoke,ash,fire\n")
    other.touch()
    latin.write_bytes("id,text,class_name\n1,inundación,flood\n".encode("latin-1"))
    empty = tmp_path / "empty.parquet"
    empty.touch()
    for path in (twice, other, latin, empty, tmp_path / "nowhere.csv"):
        assert failure(path).startswith("positives.uri: ")
        with pytest.raises(InputError) as caught:
            read_positives(str(path), PositivesConfig(uri="p.csv"), key="positives.test_uri")
        assert str(caught.value) == failure(path).replace("positives.uri", "positives.test_uri")


def test_csv_ids_and_texts_are_read_as_written(tmp_path):
    rows = [
        {"id": "007", "text": "0012", "class_name": "True"},
        {"id": "7", "text": "0300", "class_name": "False"},
    ]
    assert read(write(tmp_path / "p.csv", rows)).table.select(["id", "text", "class_name"]).to_pylist() == rows


def test_long_csv_of_tweets_with_line_ends(tmp_path):
    rows = [{"id": f"t{i}", "text": "water over the bridge\n" * 100, "class_name": "flood"} for i in range(1_000)]
    assert read(write(tmp_path / "p.csv", rows)).table["text"].to_pylist() == [row["text"] for row in rows]


def test_jsonl_texts_are_read_as_written(tmp_path):
    rows = [{"id": "1", "text": "2016-04-16T23:58:00Z", "class_name": "quake"}]
    assert read(write(tmp_path / "p.jsonl", rows)).table["text"].to_pylist() == ["2016-04-16T23:58:00Z"]


def test_column_that_is_there_twice(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,text,text,class_name\n1,smoke,ash,fire\n")
    assert "text" in failure(path)


def test_csv_that_is_not_utf8(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes("id,text,class_name\n1,inundación,flood\n".encode("latin-1"))
    assert "UTF-8" in failure(path).upper().replace("UTF8", "UTF-8")


@pytest.mark.parametrize("late", ["id", "spans"])
def test_jsonl_keys_that_the_first_line_lacks(tmp_path, late):
    rows = [{**row, "spans": spans} for row, spans in zip(ROWS, SPANNED, strict=True)]
    expected = [None, *(row[late] for row in rows[1:])]
    del rows[0][late]
    assert read(write(tmp_path / "p.jsonl", rows)).table[late].to_pylist()[1:] == expected[1:]


@pytest.mark.parametrize("line", ['{"id": 99999999999999999999, "text": "ash"', '{"id": 1, "text": "ash \\ud83d"'])
def test_jsonl_values_that_arrow_does_not_hold(tmp_path, line):
    # A number above 64 bits; half an emoji, as cut tweets have it. Read or refused in one line, but no traceback.
    path = tmp_path / "p.jsonl"
    path.write_text(line + ', "class_name": "fire"}\n')
    try:
        assert read(path).table.num_rows == 1
    except InputError as error:
        assert str(path) in str(error)


def labelled(counts) -> Positives:
    rows = [
        {"id": f"{name}{i}", "text": f"{name} number {i}", "class_name": name, "spans": None}
        for name, count in counts.items()
        for i in range(count)
    ]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("class_name", pa.string()), ("spans", SPANS)])
    return Positives(pa.Table.from_pylist(rows, schema=schema))


def test_check_classes():
    config = PositivesConfig(uri="p.csv", min_per_class=3)
    check_classes(labelled({"fire": 3, "flood": 4}), None, config)
    check_classes(labelled({"fire": 3, "flood": 4}), labelled({"fire": 1}), config)
    with pytest.raises(InputError, match=r"class 'fire' has 2 positives, expected at least 3.*flood \(4\)"):
        check_classes(labelled({"fire": 2, "flood": 4}), None, config)
    with pytest.raises(InputError, match="'storm' has 0"):
        check_classes(labelled({"fire": 3}), labelled({"storm": 5}), config)
    wanted = PositivesConfig(uri="p.csv", classes=("fire", "flod"))
    with pytest.raises(InputError, match="'flod' has 0"):
        check_classes(labelled({"fire": 3}), None, wanted)


class Encode:
    def __init__(self, vectors):
        self.vectors = vectors

    def encode_texts(self, texts):
        return np.stack([self.vectors[text] for text in texts])


@pytest.fixture
def anchored():
    positives = labelled({"flood": 5, "fire": 3})
    texts = positives.table["text"].to_pylist()
    vectors = dict(zip(texts, oracles.unit_rows(np.random.default_rng(1), len(texts), 9), strict=True))
    return positives, vectors, make_anchors(positives, Encode(vectors))


def test_anchor_is_the_mean_of_its_positives(anchored):
    positives, vectors, anchors = anchored
    assert anchors.class_names == ("fire", "flood")
    for name, anchor in zip(anchors.class_names, anchors.vectors_KD, strict=True):
        own = [vectors[row["text"]] for row in positives.table.to_pylist() if row["class_name"] == name]
        mean = [sum(float(vector[d]) for vector in own) / len(own) for d in range(9)]
        assert oracles.cosine(mean, anchor) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(anchor) == pytest.approx(1, abs=1e-6)
    assert [anchors.class_names[i] for i in anchors.positive_class_M] == positives.table["class_name"].to_pylist()
    assert list(anchors.positive_ids) == positives.table["id"].to_pylist()
    assert list(anchors.positive_texts) == positives.table["text"].to_pylist()
    # Each text beside its own vector.
    for text, vector in zip(anchors.positive_texts, anchors.positives_MD, strict=True):
        assert np.array_equal(vector, vectors[text])


def test_leave_one_out_equals_loop(anchored):
    positives, vectors, anchors = anchored
    for index, name in enumerate(anchors.class_names):
        own = [vectors[row["text"]] for row in positives.table.to_pylist() if row["class_name"] == name]
        expected = [oracles.cosine(one, sum(other for other in own if other is not one)) for one in own]
        found = anchors.leave_one_out_steps(index)
        assert found.dtype == np.int16
        assert found / STEPS_PER_UNIT == pytest.approx(expected, abs=2e-5)
        flattering = [oracles.cosine(one, sum(own)) for one in own]
        assert (found / STEPS_PER_UNIT < np.array(flattering)).all()


def test_leave_one_out_at_the_ends():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    anchors = Anchors(("fire", "flood"), vectors[1:], tuple("123"), np.array([0, 0, 1]), vectors, tuple("abc"))
    assert anchors.leave_one_out_steps(0).tolist() == [2**15 - 1] * 2
    assert anchors.leave_one_out_steps(1).tolist() == [0]


def test_anchors_are_stored_and_loaded(anchored, tmp_path):
    positives, _, anchors = anchored
    stage = oracles.make_stage(tmp_path / "anchors")
    assert load_anchors(stage) is None
    store_anchors(anchors, positives, stage)
    loaded = load_anchors(stage)
    assert loaded is not None
    for name in ("class_names", "positive_ids", "positive_texts"):
        assert getattr(loaded, name) == getattr(anchors, name)
    assert loaded.positive_texts == tuple(positives.table["text"].to_pylist())
    for name in ("vectors_KD", "positive_class_M", "positives_MD"):
        assert np.array_equal(getattr(loaded, name), getattr(anchors, name))
        assert getattr(loaded, name).dtype == getattr(anchors, name).dtype
    stage.file("anchors.safetensors.json").unlink()
    assert load_anchors(stage) is None


def test_positives_settings_change_with_what_decides():
    one = positives_settings(PositivesConfig(uri="p.csv"))
    assert one == positives_settings(
        PositivesConfig(uri="p.csv", test_uri="t.csv", spans="gold", event="crisis", time="at")
    )
    assert one != positives_settings(PositivesConfig(uri="p.csv", classes=("fire",)))
    assert all(key.startswith("positives.") for key in one)
