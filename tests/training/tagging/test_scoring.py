from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import InputError
from scalemine.training.tagging.datasets import Document, read_dataset
from scalemine.training.tagging.metrics import score
from scalemine.training.tagging.scoring import score_dataset, score_documents, score_files, write_predictions

SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("type", pa.string())]))
# Four tweets, one of them without a word; the first span cuts "two", and is widened.
GOLD = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["two hurt, bridge shut", " ", "this mixtape is fire", "all calm"],
        "spans": pa.array(
            [[{"start": 1, "end": 8, "type": "who"}, {"start": 10, "end": 16, "type": "place"}], [], [], []], SPANS
        ),
        "is_negative": [False, False, True, True],
        "label_source": ["gold", "gold", "mined_2s", "random"],
    }
)
# Predicted: the first span, another end of the second, and a false alarm.
PREDICTED_TAGS = [["B-who", "I-who", "O", "B-place", "I-place"], ["O", "O", "O", "B-what"], ["O", "O"]]
WORDS = [["two", "hurt", ",", "bridge", "shut"], ["this", "mixtape", "is", "fire"], ["all", "calm"]]


@pytest.fixture
def gold(tmp_path):
    pq.write_table(GOLD, tmp_path / "gold.parquet")
    return str(tmp_path / "gold.parquet")


def write_tags(path, words=WORDS, tags=PREDICTED_TAGS):
    pq.write_table(pa.table({"tokens": words, "tags": tags}), path)
    return str(path)


def write_spans(path):
    """The predictions in a copy of the gold file, which still says what is a negative."""
    who, place = {"start": 0, "end": 8, "type": "who"}, {"start": 10, "end": 21, "type": "place"}
    what = {"start": 16, "end": 20, "type": "what"}
    spans = pa.array([[who, place], [], [what], []], SPANS)
    pq.write_table(GOLD.set_column(GOLD.column_names.index("spans"), "spans", spans), path)
    return str(path)


def write_conll(path):
    blocks = ["\n".join(map("\t".join, zip(*tweet, strict=True))) for tweet in zip(WORDS, PREDICTED_TAGS, strict=True)]
    path.write_text("\n\n".join(blocks), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("write", "name"), [(write_tags, "tags.parquet"), (write_spans, "spans.parquet"), (write_conll, "tags.conll")]
)
def test_predictions_in_any_form_are_scored_against_gold(tmp_path, gold, write, name):
    scores = score_files(gold, write(tmp_path / name), num_bootstrap=20)
    assert (scores["num_gold"], scores["num_predicted"], scores["num_correct"]) == (2, 3, 1)
    assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 3, 1 / 2, 2 / 5])
    assert scores["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert {name: one["num_correct"] for name, one in scores["per_type"].items()} == {"place": 0, "what": 0, "who": 1}
    assert (scores["num_tweets"], scores["num_inexact"]) == (3, 1)
    assert set(scores["intervals"]) == {"f1", "precision", "recall", "macro_f1"}
    alarms = {kind: (one["num_with_alarm"], one["num_tweets"]) for kind, one in scores["false_alarms"].items()}
    assert alarms == {"mined_2s": (1, 1), "random": (0, 1), "all": (1, 2), "no_gold": (1, 2)}


def test_gold_against_itself_is_right(tmp_path, gold):
    scores = score_files(gold, gold, num_bootstrap=0)
    assert (scores["f1"], scores["macro_f1"], scores["strict_iob2"]["f1"], scores["intervals"]) == (1, 1, 1, None)
    conll = write_conll(tmp_path / "gold.conll")
    scores = score_files(conll, conll, num_bootstrap=0)
    assert scores["f1"] == 1
    assert set(scores["false_alarms"]) == {"all", "no_gold"}
    assert scores["false_alarms"]["all"]["num_tweets"] == 0


def test_documents_are_scored_with_their_negatives_and_known_surfaces():
    def document(words, tags, kind):
        return Document("id", " ".join(words), tuple(words), (), tuple(tags), None, kind, {})

    tags = [["B-who", "I-who", "O", "B-place", "O"], ["O"] * 4, ["O"] * 2]
    kinds = [None, "mined_2s", "random"]
    documents = [document(*one) for one in zip(WORDS, tags, kinds, strict=True)]
    known = {("place", "Bridge")}
    found = score_documents(documents, PREDICTED_TAGS, known_surfaces=known, num_bootstrap=5)
    assert found == score(tags, PREDICTED_TAGS, WORDS, negative_kinds=kinds, known_surfaces=known, num_bootstrap=5)
    assert (found["seen"]["num_gold"], found["seen"]["num_correct"]) == (1, 0)
    assert (found["unseen"]["num_gold"], found["unseen"]["num_correct"]) == (1, 1)
    assert found["false_alarms"]["mined_2s"]["per_1000"] == 1_000
    assert "seen" not in score_documents(documents, PREDICTED_TAGS, num_bootstrap=0)


def test_a_dataset_is_scored_in_its_order(gold):
    dataset = read_dataset(gold)
    scores = score_dataset(dataset, PREDICTED_TAGS, num_bootstrap=0)
    assert scores == score_documents(dataset.documents, PREDICTED_TAGS, num_bootstrap=0) | {"num_inexact": 1}
    with pytest.raises(ValueError, match="tweet 0: 5 gold and 4 predicted tags"):
        score_dataset(dataset, [PREDICTED_TAGS[1], PREDICTED_TAGS[0], PREDICTED_TAGS[2]], num_bootstrap=0)


def assert_refused(gold, predicted, *parts):
    with pytest.raises(InputError) as raised:
        score_files(gold, predicted, num_bootstrap=0)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    for part in (gold, predicted, *parts):
        assert part in message, message


@pytest.mark.parametrize("num", [1, 2, 4])
def test_another_number_of_tweets_is_refused(tmp_path, gold, num):
    words, tags = [*WORDS, ["more"]][:num], [*PREDICTED_TAGS, ["O"]][:num]
    predicted = write_tags(tmp_path / "pred.parquet", words, tags)
    assert_refused(gold, predicted, f"{num} tweets with words, expected the 3", "in the same order")


@pytest.mark.parametrize(
    ("row", "words", "position", "excerpts"),
    [
        (1, ["this", "mixtape", "was", "fire"], 2, ["'was fire'", "'is fire'"]),
        (1, ["this", "mixtape", "is", "fire", "!"], 4, ["'!'", "''"]),
        (2, ["all"], 1, ["''", "'calm'"]),
        (2, ["all\u200b", "calm"], 0, ["'all\\u200b calm'", "'all calm'"]),
        (0, ["two", "hurt", ",", *["bridge"] * 9], 4, ["'" + ("bridge " * 6)[:40] + "…'", "'shut'"]),
    ],
)
def test_other_words_are_refused_with_the_row_and_where_they_differ(tmp_path, gold, row, words, position, excerpts):
    all_words = [*WORDS[:row], words, *WORDS[row + 1 :]]
    predicted = write_tags(tmp_path / "pred.parquet", all_words, [["O"] * len(one) for one in all_words])
    place = f"pred.parquet, row {row} of those with words (id 'pred:{row}'): from word {position} on, "
    assert_refused(gold, predicted, place, *excerpts)


def test_other_order_is_refused(tmp_path, gold):
    predicted = write_tags(tmp_path / "pred.parquet", WORDS[::-1], PREDICTED_TAGS[::-1])
    assert_refused(gold, predicted, "row 0 of those with words (id 'pred:0')", "'all calm'", "'two hurt , bridge shut'")


def test_files_that_cannot_be_read_are_named_by_their_argument(tmp_path, gold):
    missing = str(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="^GOLD: no such file"):
        score_files(missing, gold, num_bootstrap=0)
    with pytest.raises(InputError, match="^PRED: no such file"):
        score_files(gold, missing, num_bootstrap=0)
    # What predictions may have, labels may not.
    with pytest.raises(InputError, match=r"^GOLD: .*row 2 \(id 'c'\): it is marked as a negative, and has spans"):
        score_files(write_spans(tmp_path / "spans.parquet"), gold, num_bootstrap=0)


def test_predictions_are_written_tweet_by_tweet(gold, tmp_path):
    documents = read_dataset(gold).documents
    write_predictions(documents, PREDICTED_TAGS, tmp_path / "predictions" / "test.parquet")
    rows = pq.read_table(tmp_path / "predictions" / "test.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["a", "c", "d"]
    assert [row["negative_kind"] for row in rows] == [None, "mined_2s", "random"]
    assert [row["predicted"] for row in rows] == PREDICTED_TAGS
    assert [row["gold"] for row in rows] == [list(document.tags) for document in documents]
