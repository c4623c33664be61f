from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.config import InputError
from scalemine.training.tagging.datasets import CONLL_ENDINGS, check_types, read_dataset

SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("type", pa.string())]))
SCHEMAS = {
    "tokens": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "text": pa.string(),
    "spans": SPANS,
    "is_negative": pa.bool_(),
}
TEXT, WORDS, WHO = "two hurt, bridge shut", ("two", "hurt", ",", "bridge", "shut"), ("B-who", "I-who", "O", "O", "O")


def span(start, end, kind="who"):
    return {"start": start, "end": end, "type": kind}


def write_parquet(path, rows, **types):
    """Write rows; columns that are not of the usual type are named."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pa.array([row.get(name) for row in rows], {**SCHEMAS, **types}.get(name)) for name in names}
    pq.write_table(pa.table(columns), path)
    return str(path)


def labels_of(dataset):
    return [(document.words, document.tags) for document in dataset.documents]


# --- What is read


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": WORDS, "tags": WHO},
        {"text": TEXT, "spans": [span(0, 8)]},
        {"tokens": WORDS, "spans": [span(0, 2)]},
        {"tokens": WORDS, "spans": [span(2, 3)], "tags": WHO},  # tags are nearer to what was labelled
        {"tokens": WORDS, "spans": [span(0, 2)], "tags": None},
        {"text": TEXT, "spans": [span(0, 8)], "tokens": None},
    ],
)
def test_each_form_of_parquet_gives_the_same_words_and_tags(tmp_path, row):
    uri = write_parquet(tmp_path / "tweets.parquet", [row, {**row, "id": 7}])
    dataset = read_dataset(uri)
    assert labels_of(dataset) == [(WORDS, WHO)] * 2
    assert [document.id for document in dataset.documents] == ["tweets:0", "7"]
    assert (dataset.uri, dataset.num_inexact, dataset.num_empty, dataset.types) == (uri, 0, 0, {"who"})
    assert dataset.sha256 == hashlib.sha256((tmp_path / "tweets.parquet").read_bytes()).hexdigest()
    for document in dataset.documents:
        assert tuple(document.text[start:end] for start, end in document.offsets) == WORDS
        assert (document.class_name, document.negative_kind, document.columns) == (None, None, {})


def test_sets_of_the_workdir_say_what_is_a_negative(tmp_path):
    sources = [("mined_2s", True), (None, True), ("gold", False), ("gold", None)]
    rows = [
        {
            "id": f"t{i}",
            "text": "all calm",
            "spans": [],
            "class_name": "flood",
            "label_source": source,
            "is_negative": is_,
        }
        for i, (source, is_) in enumerate(sources)
    ]
    dataset = read_dataset(write_parquet(tmp_path / "set.parquet", rows))
    assert [document.negative_kind for document in dataset.documents] == ["mined_2s", "negative", None, None]
    assert {document.class_name for document in dataset.documents} == {"flood"}
    assert dataset.types == set()


def test_predictions_may_give_a_negative_spans_and_labels_may_not(tmp_path):
    row = {"tokens": ["fire", "sale"], "tags": ["B-what", "O"], "is_negative": True, "label_source": "random"}
    uri = write_parquet(tmp_path / "set.parquet", [row])
    with pytest.raises(InputError, match=r"row 0 .*marked as a negative, and has spans"):
        read_dataset(uri)
    assert read_dataset(uri, are_predictions=True).types == {"what"}


def test_columns_are_kept_as_text(tmp_path):
    rows = [{"tokens": ["a"], "tags": ["O"], "event": "flood 13", "year": 2013, "class_name": 4, "more": "x"}]
    rows.append({"tokens": ["b"], "tags": ["O"]})
    documents = read_dataset(write_parquet(tmp_path / "a.parquet", rows), keep=["event", "year"]).documents
    assert [dict(document.columns) for document in documents] == [
        {"event": "flood 13", "year": "2013"},
        {"event": None, "year": None},
    ]
    assert [document.class_name for document in documents] == ["4", None]


def test_tweets_without_words_are_counted_and_left_out(tmp_path):
    texts = ["", "fire", None, " \n", "flood"]
    uri = write_parquet(tmp_path / "a.parquet", [{"text": text, "spans": None} for text in texts])
    dataset = read_dataset(uri)
    assert [document.id for document in dataset.documents] == ["a:1", "a:4"]  # the rows of the file
    assert dataset.num_empty == 3
    uri = write_parquet(
        tmp_path / "b.parquet", [{"tokens": words, "tags": words and ["O"]} for words in ([], None, ["a"])]
    )
    assert [(document.id, document.text) for document in read_dataset(uri).documents] == [("b:2", "a")]
    assert read_dataset(uri).num_empty == 2


def test_spans_that_cut_words_are_widened_and_counted(tmp_path):
    rows = [
        {"text": TEXT, "spans": [span(1, 8), span(8, 9, "x"), span(20, 21, "x")]},
        {"text": TEXT, "spans": [span(3, 4)]},
    ]
    dataset = read_dataset(write_parquet(tmp_path / "a.parquet", rows))
    assert [document.tags for document in dataset.documents] == [("B-who", "I-who", "B-x", "O", "B-x"), ("O",) * 5]
    assert dataset.num_inexact == 3


# --- CoNLL


TWO_TWEETS = [(("two", "hurt"), ("B-who", "I-who")), (("fire",), ("O",))]


@pytest.mark.parametrize("ending", CONLL_ENDINGS)
@pytest.mark.parametrize(
    "content",
    [
        "two\tB-who\nhurt\tI-who\n\nfire\tO\n",
        "two B-who\nhurt  I-who\n\nfire O",  # the last line is not ended
        "two\tB-who\r\nhurt\tI-who\r\n\r\nfire\tO\r\n",
        "two\tX\tB-who\nhurt\tY\tI-who \n\t\n \n\nfire\tZ\tO\n\n\n",
        "-DOCSTART- -X- O\n\ntwo B-who\nhurt I-who\n-DOCSTART- -X- O\nfire O\n",
        "\ufefftwo\tB-who\nhurt\tI-who\n\nfire\tO\n",  # as some editors save UTF-8
    ],
)
def test_conll_is_read_however_it_is_written(tmp_path, content, ending):
    path = tmp_path / f"tweets{ending.upper()}"
    path.write_bytes(content.encode())
    dataset = read_dataset(str(path))
    assert labels_of(dataset) == TWO_TWEETS
    assert [(document.id, document.text) for document in dataset.documents] == [
        ("tweets:0", "two hurt"),
        ("tweets:1", "fire"),
    ]


tags = st.sampled_from(["O", "B-who", "I-who", "B-a b", "I-B-"])
# A tab parts the fields, so that a word may hold any other character of a line.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\ufeff"), min_size=1, max_size=6)
tweets = st.lists(st.tuples(words.filter(lambda word: word != "-DOCSTART-"), tags), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@given(st.lists(tweets, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_conll_and_parquet_hold_the_same(folder, corpus, ending):
    lines = [f"{word}\t{tag}" if word else "" for tweet in corpus for word, tag in [*tweet, ("", "")]]
    (folder / "a.conll").write_text(ending.join(lines), encoding="utf-8", newline="")
    expected = [tuple(zip(*tweet, strict=True)) for tweet in corpus]
    assert labels_of(read_dataset(str(folder / "a.conll"))) == expected
    rows = [{"tokens": words, "tags": tags} for words, tags in expected]
    dataset = read_dataset(write_parquet(folder / "a.parquet", rows))
    assert labels_of(dataset) == expected
    for document in dataset.documents:
        assert tuple(document.text[start:end] for start, end in document.offsets) == document.words


# --- What is refused


def assert_refused(uri, *parts, **arguments):
    with pytest.raises(InputError) as raised:
        read_dataset(uri, key="train.train_uri", **arguments)
    message = str(raised.value)
    assert message.startswith(f"train.train_uri: {'no such file: ' if 'no such file' in message else ''}{uri}"), message
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


OK = {"tokens": ["a"], "tags": ["O"]}
CALM = {"text": "all calm", "spans": []}


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (
            OK,
            {"tokens": ["a", "b"], "tags": ["O", "fire"]},
            "tag 'fire' of word 1 is not BIO; expected O, B-type or I-type",
        ),
        (OK, {"tokens": ["a"], "tags": ["B-"]}, "tag 'B-' of word 0"),
        (OK, {"tokens": ["a"], "tags": [None]}, "tag None of word 0"),
        (OK, {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens but 1 tags"),
        (OK, {"tokens": ["a"], "tags": None}, "1 tokens but 0 tags"),
        (OK, {"tokens": None, "tags": ["O"]}, "0 tokens but 1 tags"),
        (OK, {"tokens": ["a", None], "tags": ["O", "O"]}, "tokens holds None, expected strings"),
        (CALM, {"text": TEXT, "spans": [span(0, 22)]}, "span (0, 22, 'who') is empty or outside of the text's 21"),
        (CALM, {"text": TEXT, "spans": [span(4, 4)]}, "span (4, 4, 'who') is empty"),
        (CALM, {"text": TEXT, "spans": [span(5, 9), span(0, 6)]}, "spans (0, 6, 'who') and (5, 9, 'who') overlap"),
        (CALM, {"text": "", "spans": [span(0, 1)]}, "outside of the text's 0 characters"),
        (CALM, {"text": TEXT, "spans": [span(0, 3, None)]}, "has no start, end and type"),
        (CALM, {"text": TEXT, "spans": [span(0, 3, "")]}, "has no start, end and type"),
        (CALM, {"text": TEXT, "spans": [span(None, 3)]}, "has no start, end and type"),
        (CALM, {"text": TEXT, "spans": [None]}, "span None has no start, end and type"),
        ({"tokens": ["a"], "spans": []}, {"tokens": ["a"], "spans": [span(0, 2)]}, "outside of 1 words"),
        ({"tokens": ["a"], "spans": []}, {"tokens": ["a"], "spans": [span(0, 1), span(0, 1)]}, "overlaps another"),
        (CALM, {"text": TEXT, "spans": [span(0, 3)], "is_negative": True}, "marked as a negative, and has spans"),
    ],
)
def test_a_bad_row_is_named(tmp_path, good, bad, reason):
    uri = write_parquet(tmp_path / "a.parquet", [good, bad])
    assert_refused(uri, ", row 1 (id 1): ", reason)
    uri = write_parquet(tmp_path / "a.parquet", [{**good, "id": "x"}, {**good, "id": "y"}, {**bad, "id": "a\nb"}])
    assert_refused(uri, ", row 2 (id 'a\\nb'): ", reason)


@pytest.mark.parametrize(
    ("row", "column", "values", "reason"),
    [
        (CALM, "spans", pa.array(["[]"]), "spans is of type str, expected a list"),
        (CALM, "spans", pa.array([[1]]), "span 1 has no start, end and type"),
        (CALM, "text", pa.array([5]), "text is of type int, expected a string"),
        (CALM, "text", pa.array([b"calm"]), "text is of type bytes, expected a string"),
        (CALM, "is_negative", pa.array(["false"]), "is_negative is 'false', expected true or false"),
        (OK, "tokens", pa.array(["a"]), "tokens is of type str, expected a list"),
        (OK, "tokens", pa.array([[5]]), "tokens holds 5, expected strings"),
        (OK, "tags", pa.array(["O"]), "tags is of type str, expected a list"),
        (OK, "tags", pa.array([[0]]), "tag 0 of word 0 is not BIO"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path, row, column, values, reason):
    uri = write_parquet(tmp_path / "a.parquet", [{**row, column: values.to_pylist()[0]}], **{column: values.type})
    assert_refused(uri, "row 0 (id 0): ", reason)


@pytest.mark.parametrize(
    ("row", "keep", "reason"),
    [
        (
            {"tweet": "x", "spans": []},
            (),
            "expected columns tokens and tags, or text and spans; the file has tweet, spans",
        ),
        (
            {"text": "x", "label": "y"},
            (),
            "expected columns tokens and tags, or text and spans; the file has text, label",
        ),
        ({"text": "x", "tags": ["O"]}, (), "column tags wants a column tokens beside it; the file has text, tags"),
        (OK, ("event", "source"), "no column event, source; the file has tokens, tags"),
    ],
)
def test_wrong_columns_are_refused_with_those_that_are_there(tmp_path, row, keep, reason):
    assert_refused(write_parquet(tmp_path / "a.parquet", [row]), reason, needs=keep)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert_refused(str(tmp_path / "none.parquet"), "no such file", "expected Parquet or CoNLL")
    assert_refused(str(tmp_path), "no such file")
    whole = tmp_path / "whole.parquet"
    write_parquet(whole, [OK])
    content = whole.read_bytes()
    for size in (0, 3, 50, len(content) - 1):
        (tmp_path / "part.parquet").write_bytes(content[:size])
        assert_refused(str(tmp_path / "part.parquet"), "cannot be read: ")
    (tmp_path / "part.parquet").write_bytes(content[:4] + b"\xff" * 20 + content[24:])  # the end is whole, the data not
    assert_refused(str(tmp_path / "part.parquet"), "cannot be read: ")
    (tmp_path / "tweets.csv").write_text("text,spans\n")
    assert_refused(str(tmp_path / "tweets.csv"), "cannot be read: ")


def test_what_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"fire O\n\nfl\xfcchtling B-who\n")
    assert_refused(str(tmp_path / "a.conll"), "is not UTF-8; convert it first")
    not_text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"text": not_text, "spans": pa.array([[]], SPANS)}), tmp_path / "a.parquet")
    assert_refused(str(tmp_path / "a.parquet"), "is not UTF-8; convert it first")


def test_bad_conll_lines_are_named(tmp_path):
    path = tmp_path / "a.tsv"
    for content, reason in {
        "a\tO\n\nfire\n": "line 3: expected a word and a tag, got 'fire'",
        "a\tO\n\nb\tO\nc\t\n": "row 1 (id 1): tag '' of word 1 is not BIO",
        "a\tO\tx\n": "row 0 (id 0): tag 'x' of word 0 is not BIO",
    }.items():
        path.write_text(content)
        assert_refused(str(path), reason)


def test_files_without_tweets_are_refused(tmp_path):
    (tmp_path / "a.conll").write_text("\n-DOCSTART- O\n\n")
    assert_refused(str(tmp_path / "a.conll"), "holds no tweets with words")
    assert_refused(write_parquet(tmp_path / "a.parquet", [{"text": " ", "spans": []}]), "holds no tweets with words")
    (tmp_path / "b.conll").touch()
    assert_refused(str(tmp_path / "b.conll"), "holds no tweets with words")


def test_types_that_training_lacks_are_refused(tmp_path):
    def of_types(name, *kinds):
        row = {"tokens": [*kinds, "."], "tags": [*(f"B-{kind}" for kind in kinds), "O"]}
        return read_dataset(write_parquet(tmp_path / f"{name}.parquet", [row]))

    train, fewer, more = of_types("train", "a", "b"), of_types("fewer", "b"), of_types("more", "b", "d", "c")
    check_types(train, [train, fewer])
    with pytest.raises(InputError) as raised:
        check_types(train, [fewer, more])
    assert str(raised.value).startswith(
        f"{more.uri}: spans of type c, d, of which {train.uri} has none (it has a, b); "
    )
    with pytest.raises(InputError, match="it has no spans at all"):
        check_types(of_types("calm"), [train])


@pytest.mark.parametrize("kind", ["all", "no_gold"])
def test_kinds_that_are_names_of_totals_are_refused(tmp_path, kind):
    row = {"tokens": ["so", "hungry"], "tags": ["O", "O"], "is_negative": True, "label_source": kind}
    assert_refused(write_parquet(tmp_path / "a.parquet", [row]), "is the name of a total")


def test_columns_are_carried_where_they_are_there(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"tokens": ["a"], "tags": ["O"], "event": "flood"}])
    [document] = read_dataset(path, keep=["event", "user"]).documents
    assert document.columns == {"event": "flood"}
