from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from scalemine.training.tagging import metrics
from scalemine.training.tagging.labels import Span, spans_of_tags
from scalemine.training.tagging.metrics import score, surfaces

# What a tagger may emit: with three types and as many I- as B-, most sequences break the rules of BIO somewhere.
TAGS = ["O", "B-who", "I-who", "B-place", "I-place", "B-when", "I-when"]
Tweet = tuple[list[str], list[str]]


@st.composite
def tweets(draw: st.DrawFn, most_words: int = 8) -> Tweet:
    """Gold and predicted tags of a tweet; the prediction is a copy of gold with some tags changed."""
    gold = draw(st.lists(st.sampled_from(TAGS), min_size=1, max_size=most_words))
    predicted = [draw(st.sampled_from([tag, tag, *TAGS])) for tag in gold]
    return gold, predicted


corpora = st.lists(tweets(), min_size=1, max_size=8)


def words_of(tags: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[f"w{position}" for position, _ in enumerate(row)] for row in tags]


def score_of(corpus: Sequence[Tweet], num_bootstrap: int = 0, **arguments: Any) -> dict[str, Any]:
    gold, predicted = [one for one, _ in corpus], [other for _, other in corpus]
    return score(gold, predicted, words_of(gold), num_bootstrap=num_bootstrap, **arguments)


def random_corpus(num_tweets: int, seed: int) -> list[Tweet]:
    generator = np.random.default_rng(seed)
    golds = [generator.choice(TAGS, size=generator.integers(1, 10)) for _ in range(num_tweets)]
    corpus = []
    for gold in golds:
        kept = generator.random(len(gold)) < 0.7
        corpus.append((gold.tolist(), np.where(kept, gold, generator.choice(TAGS, size=len(gold))).tolist()))
    return corpus


# --- Against seqeval


def assert_rates(ours: dict[str, Any], precision: float, recall: float, f1: float) -> None:
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx([precision, recall, f1], abs=1e-12)


def assert_rates_of_seqeval(ours: dict[str, Any], corpus: Sequence[Tweet], **convention: Any) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    gold, predicted = [one for one, _ in corpus], [other for _, other in corpus]
    measures = seqeval.precision_score, seqeval.recall_score, seqeval.f1_score
    assert_rates(ours, *(measure(gold, predicted, zero_division=0, **convention) for measure in measures))


@given(corpora)
@settings(deadline=None)
def test_spans_as_seqeval_counts_them(corpus: list[Tweet]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    ours = score_of(corpus)
    assert_rates_of_seqeval(ours, corpus)
    if not ours["per_type"]:
        return  # seqeval has no report of nothing
    gold, predicted = [one for one, _ in corpus], [other for _, other in corpus]
    report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
    averages = {name: report.pop(name) for name in ("micro avg", "macro avg", "weighted avg")}
    assert averages["micro avg"]["support"] == ours["num_gold"]
    assert list(ours["per_type"]) == sorted(report)
    for name, row in report.items():
        assert_rates(ours["per_type"][name], row["precision"], row["recall"], row["f1-score"])
        assert ours["per_type"][name]["num_gold"] == row["support"]
    # seqeval's macro average has the types that are only predicted in it as well.
    in_gold = [row for row in report.values() if row["support"]]
    for measure, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        mean = sum(row[key] for row in in_gold) / len(in_gold) if in_gold else 0.0
        assert ours[f"macro_{measure}"] == pytest.approx(mean, abs=1e-12)


@given(corpora)
@settings(deadline=None)
def test_strict_iob2_as_seqeval_counts_it(corpus: list[Tweet]) -> None:
    scheme = pytest.importorskip("seqeval.scheme").IOB2
    assert_rates_of_seqeval(score_of(corpus)["strict_iob2"], corpus, mode="strict", scheme=scheme)


def test_strict_iob2_differs_where_i_opens_a_span() -> None:
    result = score_of([(["B-who", "I-who", "O"], ["I-who", "I-who", "O"])])
    assert (result["f1"], result["strict_iob2"]["f1"]) == (1.0, 0.0)
    assert (result["num_predicted"], result["strict_iob2"]["num_predicted"]) == (1, 0)


# --- Against published results


@pytest.fixture(scope="module")
def data_folder() -> Path:
    folder = Path(os.environ.get("SCALEMINE_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "wnut17_submissions.parquet").exists():
        pytest.skip(f"no shared-task submissions in {folder}; name their folder in SCALEMINE_DATA")
    return folder


@pytest.mark.data
def test_published_f1_of_shared_task_systems(data_folder: Path) -> None:
    test = pq.read_table(data_folder / "wnut17_test.parquet").to_pydict()
    train = pq.read_table(data_folder / "wnut17_train.parquet").to_pydict()
    known = surfaces(train["tags"], train["tokens"])
    rows = pq.read_table(data_folder / "wnut17_submissions.parquet").to_pylist()
    published = {row["system"]: row["published_f1"] for row in rows}
    assert len(published) == 4
    for system, f1 in published.items():
        predicted = {row["sentence"]: row["tags"] for row in rows if row["system"] == system}
        tags = [predicted[position] for position in range(len(test["tags"]))]
        result = score(test["tags"], tags, test["tokens"], known_surfaces=known, num_bootstrap=200)
        assert round(100 * result["f1"], 2) == f1
        assert result["intervals"]["f1"][0] < result["f1"] < result["intervals"]["f1"][1]
        assert (result["num_tweets"], result["num_gold"]) == (1_287, 1_079)
        assert result["seen"]["num_gold"] + result["unseen"]["num_gold"] == 1_079
        assert result["seen"]["num_correct"] + result["unseen"]["num_correct"] == result["num_correct"]


# --- By hand


def test_every_number_of_a_small_corpus() -> None:
    gold = [["B-who", "I-who", "O", "B-place"], ["O", "B-place", "I-place"], ["O", "O"]]
    predicted = [["B-who", "I-who", "O", "B-when"], ["O", "B-place", "O"], ["B-place", "O"]]
    words = [["Ana", "Paz", "in", "Rome"], ["near", "New", "York"], ["rome", "burns"]]
    result = score(gold, predicted, words, num_bootstrap=0)
    # Gold: who, 2 x place. Predicted: who, when, 2 x place. Correct: who.
    assert result["f1"] == pytest.approx(2 / 7)
    assert (result["precision"], result["recall"]) == (1 / 4, 1 / 3)
    assert [result[f"num_{what}"] for what in ("gold", "predicted", "correct", "tweets")] == [3, 4, 1, 3]
    # "when" is only predicted: not averaged.
    assert [result[f"macro_{what}"] for what in ("f1", "precision", "recall")] == [0.5, 0.5, 0.5]
    assert {name: list(row.values()) for name, row in result["per_type"].items()} == {
        "place": [0, 0, 0, 2, 2, 0],
        "when": [0, 0, 0, 0, 1, 0],
        "who": [1, 1, 1, 1, 1, 1],
    }
    assert list(result["per_type"]["who"]) == ["f1", "precision", "recall", "num_gold", "num_predicted", "num_correct"]
    # "New" of "New York" earns a half.
    assert result["overlap"]["credit"] == 1.5
    assert (result["overlap"]["precision"], result["overlap"]["recall"]) == (1.5 / 4, 1.5 / 3)
    # Words in gold: 2 who, 3 place; predicted: 2 who, 1 when, 2 place; right: 2 who, 1 place, and 3 outside.
    token = result["token"]
    assert [token[f"num_{what}"] for what in ("gold", "predicted", "correct", "words")] == [5, 5, 3, 9]
    assert (token["f1"], token["accuracy"]) == (pytest.approx(3 / 5), 6 / 9)
    # In gold: Ana Paz, Rome, New York; predicted: Ana Paz, Rome (when), New, rome. As names, Rome is found.
    surface = result["surface"]
    assert [surface[f"num_{what}"] for what in ("gold", "predicted", "correct")] == [3, 4, 2]
    assert (surface["precision"], surface["recall"]) == (2 / 4, 2 / 3)
    assert result["intervals"] is None


def test_token_ignores_where_a_span_begins() -> None:
    token = score_of([(["B-who", "I-who", "B-who"], ["I-who", "B-who", "I-who"])])["token"]
    assert (token["f1"], token["accuracy"]) == (1.0, 1.0)


def test_surfaces_are_folded_and_joined() -> None:
    tags = [["B-place", "I-place", "O"], ["B-place", "I-place"], ["I-who", "B-who"]]
    words = [["STRASSE", "Neun", "x"], ["Straße", "neun"], ["neun", "Neun"]]
    assert surfaces(tags, words) == {("place", "strasse neun"), ("who", "neun")}
    assert surfaces([], []) == set()


def test_recall_of_seen_and_unseen() -> None:
    gold = [["B-place", "O", "B-place", "I-place"], ["B-who", "B-place"]]
    predicted = [["B-place", "O", "B-place", "O"], ["O", "B-place"]]
    words = [["ROME", "or", "New", "York"], ["Rome", "Oslo"]]
    # ROME is known as a place, not as a who; of New York only a part, and as another type.
    known = surfaces([["B-place"], ["B-place"], ["B-who", "I-who"]], [["Rome"], ["York"], ["New", "York"]])
    result = score(gold, predicted, words, known_surfaces=known, num_bootstrap=0)
    assert result["seen"] == {"recall": 1.0, "num_gold": 1, "num_correct": 1}
    assert result["unseen"] == {"recall": 1 / 3, "num_gold": 3, "num_correct": 1}
    assert score(gold, predicted, words, known_surfaces={("place", "Rome")}, num_bootstrap=0)["seen"]["num_gold"] == 1
    nothing_known = score(gold, predicted, words, known_surfaces=[], num_bootstrap=0)
    assert nothing_known["seen"] == {"recall": 0.0, "num_gold": 0, "num_correct": 0}
    assert nothing_known["unseen"]["num_gold"] == 4
    unasked = score(gold, predicted, words, num_bootstrap=0)
    assert not {"seen", "unseen"} & unasked.keys()


def test_false_alarms_by_kind() -> None:
    quiet, one, two = ["O", "O"], ["B-who", "I-who"], ["B-who", "B-place"]
    corpus = [
        (one, one),  # no negative
        (quiet, two),  # without a gold span, and yet no negative by name
        (quiet, quiet),
        (quiet, one),
        (quiet, two),
        (quiet, quiet),
    ]
    kinds = [None, None, "random", "random", "mined_2s", "random"]
    alarms = score_of(corpus, negative_kinds=kinds)["false_alarms"]
    counts = {name: [row["num_tweets"], row["num_with_alarm"], row["num_spans"]] for name, row in alarms.items()}
    assert counts == {"mined_2s": [1, 1, 2], "random": [3, 1, 1], "all": [4, 2, 3], "no_gold": [5, 3, 5]}
    assert {name: row["per_1000"] for name, row in alarms.items()} == pytest.approx(
        {"mined_2s": 1_000, "random": 1_000 / 3, "all": 500, "no_gold": 600}
    )
    assert list(alarms) == ["mined_2s", "random", "all", "no_gold"]
    assert list(score_of(corpus)["false_alarms"]) == ["no_gold"]
    assert score_of(corpus, negative_kinds=[None] * 6)["false_alarms"]["all"]["num_tweets"] == 0


@pytest.mark.parametrize(("num_hits", "num_tweets"), [(0, 1), (1, 1), (0, 50), (39, 598), (7, 7), (500, 1_000)])
def test_interval_of_false_alarms_is_wilsons(num_hits: int, num_tweets: int) -> None:
    corpus: list[Tweet] = [(["O"], ["B-who"] if i < num_hits else ["O"]) for i in range(num_tweets)]
    row = score_of(corpus)["false_alarms"]["no_gold"]
    expected = binomtest(num_hits, num_tweets).proportion_ci(0.95, method="wilson")
    assert row["interval"] == pytest.approx([1_000 * expected.low, 1_000 * expected.high], abs=1e-9)
    assert 0 <= row["interval"][0] <= row["per_1000"] <= row["interval"][1] <= 1_000


def test_interval_without_a_negative_says_nothing() -> None:
    row = score_of([(["B-who"], ["O"])])["false_alarms"]["no_gold"]
    assert (row["num_tweets"], row["per_1000"]) == (0, 0.0)
    assert row["interval"] == pytest.approx([0, 1_000])


# --- Overlap


def most_credit(gold: list[Span], predicted: list[Span]) -> float:
    """The most that any one-to-one pairing earns, by trying all."""
    if not gold:
        return 0.0
    first, rest = gold[0], gold[1:]
    best = most_credit(rest, predicted)
    for other in predicted:
        shared = range(max(first.start, other.start), min(first.end, other.end))
        if shared and first.type == other.type:
            credit = 1.0 if first == other else 0.5
            best = max(best, credit + most_credit(rest, [span for span in predicted if span is not other]))
    return best


@given(tweets(most_words=9))
@settings(deadline=None, max_examples=200)
def test_overlap_earns_the_most_that_any_pairing_earns(tweet: Tweet) -> None:
    gold, predicted = (spans_of_tags(tags) for tags in tweet)
    overlap = score_of([tweet])["overlap"]
    assert overlap["credit"] == most_credit(gold, predicted)
    assert overlap["precision"] == pytest.approx(overlap["credit"] / max(len(predicted), 1))
    assert overlap["recall"] == pytest.approx(overlap["credit"] / max(len(gold), 1))


@given(st.lists(st.sampled_from("BI"), min_size=4, max_size=9), st.data())
@settings(deadline=None, max_examples=200)
def test_overlap_of_chained_spans(prefixes: list[str], data: st.DataObject) -> None:
    # Each word is in a span of one type on both sides, so that spans overlap in long chains.
    others = [data.draw(st.sampled_from("BI")) for _ in prefixes]
    tweet = [f"{prefix}-who" for prefix in prefixes], [f"{prefix}-who" for prefix in others]
    gold, predicted = (spans_of_tags(tags) for tags in tweet)
    assert score_of([tweet])["overlap"]["credit"] == most_credit(gold, predicted)


def test_overlap_says_its_definition_and_pairs_one_to_one() -> None:
    whole, parts = ["B-who", "I-who", "I-who"], ["B-who", "B-who", "B-who"]
    overlap = score_of([(whole, parts)])["overlap"]
    assert (overlap["credit"], overlap["num_gold"], overlap["num_predicted"]) == (0.5, 1, 3)
    assert "0.5" in overlap["definition"]
    assert "one to one" in overlap["definition"]
    other_type = score_of([(whole, ["B-place", "I-place", "I-place"])])["overlap"]
    assert other_type["credit"] == 0


# --- Bootstrap


@pytest.mark.parametrize("draws_per_chunk", [1 << 21, 210, 1])
def test_intervals_are_those_of_scoring_each_round_alone(draws_per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_DRAWS_PER_CHUNK", draws_per_chunk)
    corpus = random_corpus(30, seed=1)
    # A type that is rare in gold is missing from some rounds, and then not averaged in them.
    corpus[0] = (["B-rare", "O"], ["B-rare", "O"])
    corpus[1] = (["O", "O"], ["O", "B-rare"])
    rounds = np.random.default_rng(5).integers(len(corpus), size=(60, len(corpus)))
    assert {0 in drawn for drawn in rounds.tolist()} == {True, False}
    scores = [score_of([corpus[i] for i in drawn]) for drawn in rounds]
    intervals = score_of(corpus, num_bootstrap=60, seed=5)["intervals"]
    assert list(intervals) == ["f1", "precision", "recall", "macro_f1"]
    for name, interval in intervals.items():
        expected = np.percentile([one[name] for one in scores], [2.5, 97.5])
        assert interval == pytest.approx(expected.tolist(), abs=1e-12)


def test_intervals_hold_the_point_and_follow_the_seed() -> None:
    corpus = random_corpus(150, seed=2)
    result = score_of(corpus, num_bootstrap=500)
    for name, (low, high) in result["intervals"].items():
        assert low < result[name] < high
    assert score_of(corpus, num_bootstrap=500) == result
    other = score_of(corpus, num_bootstrap=500, seed=1)
    assert other["intervals"] != result["intervals"]
    assert {**other, "intervals": None} == {**result, "intervals": None}


def test_interval_of_recall_is_that_of_a_share() -> None:
    # One gold span a tweet, a quarter of them found: the recall is a share of 400 independent trials.
    corpus: list[Tweet] = [(["B-who"], ["B-who"] if i % 4 == 0 else ["O"]) for i in range(400)]
    low, high = score_of(corpus, num_bootstrap=4_000)["intervals"]["recall"]
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert [low, high] == pytest.approx([0.25 - half, 0.25 + half], abs=0.006)


# --- Properties of the whole


@given(corpora, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_tweets_does_not_matter(corpus: list[Tweet], random: Any) -> None:
    kinds = [None if any(tag != "O" for tag in gold) else f"kind {len(gold) % 2}" for gold, _ in corpus]
    order = list(range(len(corpus)))
    random.shuffle(order)
    known = {("who", "w0"), ("place", "w1 w2")}
    before = score_of(corpus, negative_kinds=kinds, known_surfaces=known)
    shuffled = [corpus[i] for i in order]
    assert score_of(shuffled, negative_kinds=[kinds[i] for i in order], known_surfaces=known) == before


@given(st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8), min_size=1, max_size=8))
@settings(deadline=None)
def test_perfect_and_empty_prediction(gold: list[list[str]]) -> None:
    gold.append(["B-who"])  # something to find under each convention
    perfect = score_of([(tags, tags) for tags in gold], num_bootstrap=20)
    for part in (perfect, *(perfect[name] for name in ("strict_iob2", "overlap", "token", "surface"))):
        assert [part[name] for name in ("f1", "precision", "recall")] == [1.0, 1.0, 1.0]
    assert [perfect["macro_f1"], perfect["token"]["accuracy"]] == [1.0, 1.0]
    assert perfect["false_alarms"]["no_gold"]["num_spans"] == 0
    empty = score_of([(tags, ["O"] * len(tags)) for tags in gold])
    for part in (empty, *(empty[name] for name in ("strict_iob2", "overlap", "token", "surface"))):
        assert [part[name] for name in ("f1", "precision", "recall")] == [0.0, 0.0, 0.0]
        assert part["num_predicted"] == 0
    assert empty["macro_f1"] == 0.0


@pytest.mark.parametrize("corpus", [[], [([], [])], [(["O"], ["O"])]])
def test_nothing_to_find(corpus: list[Tweet]) -> None:
    result = score_of(corpus, num_bootstrap=10)
    assert [result[name] for name in ("f1", "precision", "recall", "macro_f1")] == [0.0] * 4
    assert result["per_type"] == {}
    assert result["intervals"] == (
        dict.fromkeys(("f1", "precision", "recall", "macro_f1"), [0.0, 0.0]) if corpus else None
    )


def floats_named_f1(value: Any) -> list[float]:
    if not isinstance(value, dict):
        return []
    found: list[float] = []
    for key, inner in value.items():
        found += [inner] if key == "f1" and isinstance(inner, float) else floats_named_f1(inner)
    return found


def test_result_is_json_with_the_micro_f1_first() -> None:
    corpus = random_corpus(20, seed=3)
    kinds = [None] * 20
    result = score_of(corpus, negative_kinds=kinds, known_surfaces=set(), num_bootstrap=10)
    back = json.loads(json.dumps(result, allow_nan=False))
    assert back == result
    assert list(back) == list(result)
    assert list(result) == [
        *("f1", "precision", "recall", "num_gold", "num_predicted", "num_correct", "num_tweets"),
        *("macro_f1", "macro_precision", "macro_recall", "intervals", "per_type", "strict_iob2", "overlap", "token"),
        *("surface", "seen", "unseen", "false_alarms"),
    ]
    correct, predicted, gold = (result[f"num_{what}"] for what in ("correct", "predicted", "gold"))
    assert floats_named_f1(result)[0] == pytest.approx(2 * correct / (predicted + gold))


# --- Wrong arguments

GOOD = ["B-who", "O"]


@pytest.mark.parametrize(
    ("gold", "predicted", "words", "named"),
    [
        ([GOOD, GOOD], [GOOD, ["O"]], [["a", "b"]] * 2, "tweet 1: 2 gold and 1 predicted tags, 2 words"),
        ([GOOD, GOOD], [GOOD, GOOD], [["a", "b"], ["a"]], "tweet 1: 2 gold and 2 predicted tags, 1 words"),
        ([["O"], GOOD], [GOOD, GOOD], [["a", "b"]] * 2, "tweet 0: 1 gold"),
        ([GOOD, ["O", "who"]], [GOOD, GOOD], [["a", "b"]] * 2, "tweet 1: 'who' is no BIO tag"),
        ([GOOD, GOOD], [GOOD, ["O", "S-who"]], [["a", "b"]] * 2, "tweet 1: 'S-who' is no BIO tag"),
        ([GOOD], [["B-", "O"]], [["a", "b"]], "tweet 0: 'B-' is no BIO tag"),
        ([GOOD, GOOD], [GOOD], [["a", "b"]] * 2, "2 tweets in gold, 1 predicted, 2 of words"),
        ([GOOD], [GOOD], [], "1 tweets in gold, 1 predicted, 0 of words"),
    ],
)
def test_wrong_tags_are_refused(gold: Any, predicted: Any, words: Any, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        score(gold, predicted, words)
    assert named in str(caught.value)


def test_surfaces_refuses_wrong_tags() -> None:
    with pytest.raises(ValueError, match="tweet 1"):
        surfaces([GOOD, GOOD], [["a", "b"], ["a"]])
    with pytest.raises(ValueError, match="tweet 0: 'x'"):
        surfaces([["x"]], [["a"]])


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        (["random"], "1 negative kinds for 2 tweets"),
        (["random", "random"], "tweet 1: a negative ('random') with 1 gold spans"),
        (["all", None], "tweet 0: a kind of negatives cannot be called 'all'"),
        (["no_gold", None], "tweet 0: a kind of negatives cannot be called 'no_gold'"),
    ],
)
def test_wrong_kinds_are_refused(kinds: list[str | None], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        score_of([(["O", "O"], GOOD), (GOOD, GOOD)], negative_kinds=kinds)
    assert named in str(caught.value)


def test_negative_number_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bootstrap"):
        score_of([(GOOD, GOOD)], num_bootstrap=-1)
