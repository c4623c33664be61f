from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.training.tagging import labels
from scalemine.training.tagging.labels import CharSpan, Span, align, spans_of_tags, tags_of_spans, word_offsets

TYPES = ["who", "place", "B-x", "-"]  # the last two look like tags themselves
TAGS = ["O", *(f"{prefix}-{name}" for name in TYPES for prefix in "BI")]
# What tweets are made of, and what separates no words where it should or joins them where it should not.
PIECES = [
    *(
        "fire",
        "Fire2",
        "don't",
        "O’Brien",
        "well-known",
        "3",
        "12:30",
        "1,500.75",
        "5km",
        "_",
        "@ana",
        "#flood",
        "@",
        "#",
    ),
    *("https://example.org/a?b=c#d", "http://", "火事", "東京で", "حريق", "مُحَمَّد", "שריפה", "नमस्ते", "e\u0301", "\u0301"),
    *(
        "👍🏽",
        "❤️",
        "👩\u200d🚒",
        "🇲🇽",
        "4️⃣",
        "🔥",
        "\ufe0f",
        "\u200d",
        "\u202e",
        "\u200b",
        "\x00",
        "&amp;",
        ".",
        "…",
        "''",
    ),
    *(" ", " ", " ", "\n", "\u00a0", "\u3000", "\t"),
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=14).map("".join)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in word_offsets(text)]


# --- Tags and spans


@st.composite
def tweets_of_spans(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Spans that overlap nowhere, in order, and the number of words around them."""
    spans, position = [], 0
    for gap, length, name in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(TYPES)), max_size=5)
    ):
        spans.append(Span(position + gap, position + gap + length, name))
        position += gap + length
    return spans, position + draw(st.integers(0, 2))


@given(tweets_of_spans(), st.randoms(use_true_random=False), st.sampled_from(["conlleval", "iob2"]))
def test_spans_survive_their_tags(tweet, random, scheme):
    spans, num_words = tweet
    tags = tags_of_spans(random.sample(spans, len(spans)), num_words)
    assert len(tags) == num_words
    assert all(labels.is_bio(tag) for tag in tags)
    assert spans_of_tags(tags, scheme) == spans


def spans_by_word(tags: Sequence[str], strict: bool) -> list[Span]:
    """The spans of tags, found for every pair of ends from what the conventions say of single words."""

    def begins(position: int) -> bool:
        name = labels.type_of(tags[position])
        goes_on = tags[position][0] == "I" and position > 0 and labels.type_of(tags[position - 1]) == name
        return name is not None and not goes_on

    def is_span(start: int, end: int) -> bool:
        name = labels.type_of(tags[start])
        inside = all(labels.type_of(tags[i]) == name and not begins(i) for i in range(start + 1, end))
        ends = end == len(tags) or begins(end) or tags[end] == "O"
        return begins(start) and inside and ends and not (strict and tags[start][0] == "I")

    pairs = [(start, end) for start in range(len(tags)) for end in range(start + 1, len(tags) + 1)]
    return [Span(start, end, tags[start][2:]) for start, end in pairs if is_span(start, end)]


@given(st.lists(st.sampled_from(TAGS), max_size=9))
def test_any_tags_have_the_spans_that_the_conventions_say(tags):
    lenient, strict = spans_of_tags(tags), spans_of_tags(tags, "iob2")
    assert lenient == spans_by_word(tags, strict=False)
    assert strict == spans_by_word(tags, strict=True)
    # The repair is what a file would hold that marks the same spans and breaks no rule.
    repaired = tags_of_spans(lenient, len(tags))
    assert [labels.type_of(tag) for tag in repaired] == [labels.type_of(tag) for tag in tags]
    assert spans_of_tags(repaired, "iob2") == lenient


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        (["O", "I-a", "I-a"], [(1, 3, "a")], []),
        (["B-a", "I-b", "I-b"], [(0, 1, "a"), (1, 3, "b")], [(0, 1, "a")]),
        (["B-a", "B-a", "I-a"], [(0, 1, "a"), (1, 3, "a")], [(0, 1, "a"), (1, 3, "a")]),
        (["I-a", "B-a", "O", "I-a"], [(0, 1, "a"), (1, 2, "a"), (3, 4, "a")], [(1, 2, "a")]),
        ([], [], []),
    ],
)
def test_conlleval_repairs_what_iob2_drops(tags, lenient, strict):
    assert spans_of_tags(tags) == lenient
    assert spans_of_tags(tags, "iob2") == strict


@pytest.mark.parametrize("spans", [[(0, 0)], [(2, 1)], [(-1, 1)], [(2, 4)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]])
def test_spans_that_cannot_be_tagged_are_refused(spans):
    with pytest.raises(ValueError, match="empty or outside of 3 words|overlaps another"):
        tags_of_spans([Span(start, end, "a") for start, end in spans], 3)


def test_tag_names_are_sorted_and_bio():
    assert labels.tag_names(["place", "who", "place"]) == ["O", "B-place", "I-place", "B-who", "I-who"]
    assert labels.tag_names([]) == ["O"]
    for tag in ("B-", "I-", "B", "", "b-x", "E-x", "o", "BIO"):
        assert not labels.is_bio(tag), tag


# --- Words


@given(texts)
def test_words_cover_what_is_no_space_once_and_in_order(text):
    offsets = word_offsets(text)
    assert all(start < end for start, end in offsets)
    assert all(before[1] <= after[0] for before, after in zip(offsets, offsets[1:], strict=False))
    covered = {position for start, end in offsets for position in range(start, end)}
    assert covered == {position for position, character in enumerate(text) if not character.isspace()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\u3000", []),
        ("RT @ana: #flood! #火事", ["RT", "@ana", ":", "#flood", "!", "#火事"]),
        ("see https://t.co/a?b=c now", ["see", "https://t.co/a?b=c", "now"]),
        ("don't O’Brien well-to-do 'no'", ["don't", "O’Brien", "well-to-do", "'", "no", "'"]),
        ("3 12:30 1,500.75 5km 3, ", ["3", "12:30", "1,500.75", "5km", "3", ","]),
        ("👍🏽👍 ❤️🔥", ["👍🏽", "👍", "❤️", "🔥"]),
        ("👩\u200d🚒", ["👩\u200d", "🚒"]),
        ("🇲🇽", ["🇲", "🇽"]),
        ("火事です 東京", ["火事です", "東京"]),
        ("حريق كبير في שריפה", ["حريق", "كبير", "في", "שריפה"]),
        ("a\u00a0b", ["a", "b"]),
    ],
)
def test_words_of_tweets(text, words):
    assert words_of(text) == words


@given(texts, texts)
def test_words_on_one_side_of_a_space_do_not_depend_on_the_other(left, right):
    assert words_of(f"{left} {right}") == words_of(left) + words_of(right)


# --- Spans of characters to spans of words


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[CharSpan]]:
    """A text with spans anywhere in it, that overlap nowhere."""
    text = draw(texts.filter(bool))
    ends = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pairs = zip(ends, ends[1:], strict=False)
    return text, [CharSpan(*pair, draw(st.sampled_from(TYPES))) for pair in pairs if draw(st.booleans())]


def aligned_by_character(
    spans: Sequence[CharSpan], offsets: Sequence[tuple[int, int]]
) -> tuple[list[Span], list[CharSpan]]:
    """What align returns, from the owner of each word: the first span with a character in it."""
    owners = [
        next((k for k, span in enumerate(spans) if {*range(*word)} & {*range(*span[:2])}), None) for word in offsets
    ]
    aligned, inexact = [], []
    for k, span in enumerate(spans):
        own = [position for position, owner in enumerate(owners) if owner == k]
        if own:
            aligned.append(Span(own[0], own[-1] + 1, span.type))
        if not own or (offsets[own[0]][0], offsets[own[-1]][1]) != span[:2]:
            inexact.append(span)
    return aligned, inexact


@given(texts_with_spans(), st.randoms(use_true_random=False))
def test_aligned_spans_cover_their_characters_and_never_overlap(tweet, random):
    text, spans = tweet
    offsets = word_offsets(text)
    aligned, inexact = align(random.sample(spans, len(spans)), offsets, len(text))
    assert (aligned, inexact) == aligned_by_character(spans, offsets)
    assert spans_of_tags(tags_of_spans(aligned, len(offsets))) == aligned  # refuses overlaps
    covered = {
        position for span in aligned for start, end in offsets[span.start : span.end] for position in range(start, end)
    }
    wanted = {position for span in spans for position in range(span.start, span.end) if not text[position].isspace()}
    assert wanted <= covered


@given(texts.filter(lambda text: bool(word_offsets(text))), st.data())
def test_spans_that_end_where_words_do_are_exact(text, data):
    offsets = word_offsets(text)
    start = data.draw(st.integers(0, len(offsets) - 1))
    end = data.draw(st.integers(start + 1, len(offsets)))
    span = CharSpan(offsets[start][0], offsets[end - 1][1], "who")
    assert align([span], offsets, len(text)) == ([Span(start, end, "who")], [])


def test_a_span_that_cuts_words_is_widened_and_the_first_has_a_word_that_two_cut():
    text = "big explosion near school "
    offsets = word_offsets(text)
    cut = CharSpan(6, 15, "a")  # "plosion n"
    assert align([cut], offsets, len(text)) == ([Span(1, 3, "a")], [cut])
    spaced = CharSpan(3, 14, "a")  # " explosion "
    assert align([spaced], offsets, len(text)) == ([Span(1, 2, "a")], [spaced])
    second = CharSpan(15, 25, "b")
    assert align([second, cut], offsets, len(text)) == ([Span(1, 3, "a"), Span(3, 4, "b")], [cut, second])
    swallowed = CharSpan(7, 9, "b")
    assert align([CharSpan(0, 6, "a"), swallowed], offsets, len(text))[0] == [Span(0, 2, "a")]
    blank = CharSpan(25, 26, "a")
    assert align([blank], offsets, len(text)) == ([], [blank])


@pytest.mark.parametrize(
    "spans", [[(0, 0)], [(3, 2)], [(-1, 2)], [(2, 6)], [(5, 6)], [(0, 3), (2, 4)], [(1, 2), (1, 2)]]
)
def test_spans_that_lie_nowhere_or_overlap_are_refused(spans):
    with pytest.raises(ValueError, match=r"\(\d, \d, 'a'\)|\(-1, 2, 'a'\)"):
        align([CharSpan(start, end, "a") for start, end in spans], [(0, 2), (3, 5)], 5)


@pytest.mark.data
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_spans_end_where_words_do(part):
    folder = Path(os.environ.get("SCALEMINE_DATA") or Path(__file__).parents[3] / "shared" / "data")
    path = folder / f"crisis_spans_{part}.parquet"
    if not path.exists():
        pytest.skip(f"no real tweets at {path}; SCALEMINE_DATA names their folder")
    num_spans = num_inexact = 0
    for row in pq.read_table(path, columns=["text", "spans"]).to_pylist():
        spans = [CharSpan(span["start"], span["end"], span["type"]) for span in row["spans"]]
        num_spans += len(spans)
        num_inexact += len(align(spans, word_offsets(row["text"]), len(row["text"]))[1])
    assert num_spans > 200
    assert num_inexact <= 0.01 * num_spans


@pytest.mark.parametrize("text", ["e\u0301tude à l'école", "नमस्ते दुनिया", "مَدْرَسَة كبيرة"])
def test_marks_stay_with_their_letters(text):
    assert [text[start:end] for start, end in word_offsets(text)] == text.split()
