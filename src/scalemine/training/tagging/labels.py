"""Words, tags and spans: the text that a tagger reads, and the labels that it learns and gives.

A span covers whole words. Tags are BIO: "B-x" begins a span of type x, "I-x" goes on with it, "O" is outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from scalemine.text import WORD_CHARACTER

OUTSIDE: Final = "O"
Scheme = Literal["conlleval", "iob2"]


class Span(NamedTuple):
    """A typed span of words: positions, end exclusive."""

    start: int
    end: int
    type: str


class CharSpan(NamedTuple):
    """A typed span of characters of a text: Python string indices, end exclusive."""

    start: int
    end: int
    type: str


def tag_names(types: Iterable[str]) -> list[str]:
    """Return the tags for some span types, in order of their names, "O" first."""
    return [OUTSIDE, *(f"{prefix}-{name}" for name in sorted(set(types)) for prefix in "BI")]


def type_of(tag: str) -> str | None:
    """Return the span type of a tag; None for "O"."""
    return None if tag == OUTSIDE else tag[2:]


def is_bio(tag: str) -> bool:
    """Return whether a tag is "O", or "B-" or "I-" and a type."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > len("B-"))


def spans_of_tags(tags: Sequence[str], scheme: Scheme = "conlleval") -> list[Span]:
    """Return the spans that tags mark, in order.

    Args:
        tags: BIO tags of one text.
        scheme: ``conlleval`` lets an I- that continues nothing open a span, and a change of type split one;
            ``iob2`` takes only what begins with B-, and drops an I- that continues nothing.

    Source: conlleval (Tjong Kim Sang and Buchholz 2000); IOB2 as seqeval's strict mode has it.

    Example:
        >>> spans_of_tags(["I-place", "I-place", "O", "B-who"])
        [Span(start=0, end=2, type='place'), Span(start=3, end=4, type='who')]
        >>> spans_of_tags(["I-place", "I-place", "O", "B-who"], "iob2")
        [Span(start=3, end=4, type='who')]
    """
    spans: list[Span] = []
    start, current = 0, None
    for position, tag in enumerate([*tags, OUTSIDE]):
        kind = type_of(tag)
        if current is not None and kind == current and tag[0] == "I":
            continue
        if current is not None:
            spans.append(Span(start, position, current))
        opens = kind is not None and (tag[0] == "B" or scheme == "conlleval")
        start, current = position, kind if opens else None
    return spans


def tags_of_spans(spans: Iterable[Span], num_words: int) -> list[str]:
    """Return the BIO tags of some spans over a text.

    Raises:
        ValueError: A span is empty, out of range, or overlaps another.
    """
    tags = [OUTSIDE] * num_words
    for span in spans:
        if not 0 <= span.start < span.end <= num_words:
            raise ValueError(f"span {tuple(span)} is empty or outside of {num_words} words")
        if any(tag != OUTSIDE for tag in tags[span.start : span.end]):
            raise ValueError(f"span {tuple(span)} overlaps another")
        tags[span.start] = f"B-{span.type}"
        tags[span.start + 1 : span.end] = [f"I-{span.type}"] * (span.end - span.start - 1)
    return tags


# A link, a mention or hashtag, a number with its separators, a word with the marks inside it, or any other character.
_WORD: Final = re.compile(
    rf"https?://\S+|[@#]{WORD_CHARACTER}+|\d+(?:[.,:]\d+)*(?!{WORD_CHARACTER})|{WORD_CHARACTER}+(?:['’\-]{WORD_CHARACTER}+)*"
    r"|\S(?:[\ufe0f\u200d\U0001f3fb-\U0001f3ff]+)?"
)


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Return where the words of a tweet are: character positions, end exclusive.

    Example:
        >>> text = "RT @ana: bus crashed, 3 hurt"
        >>> [text[start:end] for start, end in word_offsets(text)]
        ['RT', '@ana', ':', 'bus', 'crashed', ',', '3', 'hurt']
    """
    return [match.span() for match in _WORD.finditer(text)]


def align(
    spans: Iterable[CharSpan], offsets: Sequence[tuple[int, int]], text_length: int
) -> tuple[list[Span], list[CharSpan]]:
    """Return spans of characters as spans of words, and those that had to be widened or had no word in them.

    A span that cuts a word takes the whole word; where two spans cut the same word, the first has it.

    Args:
        spans: Spans of one text, in any order.
        offsets: Where the words are; see ``word_offsets``.
        text_length: Characters of the text.

    Raises:
        ValueError: A span is empty, out of range, or overlaps another.
    """
    ordered = sorted(spans)
    for span in ordered:
        if not 0 <= span.start < span.end <= text_length:
            raise ValueError(f"span {tuple(span)} is empty or outside of the text's {text_length} characters")
    for before, after in zip(ordered, ordered[1:], strict=False):
        if after.start < before.end:
            raise ValueError(f"spans {tuple(before)} and {tuple(after)} overlap")
    aligned: list[Span] = []
    inexact: list[CharSpan] = []
    for span in ordered:
        taken = aligned[-1].end if aligned else 0
        inside = [i for i, (start, end) in enumerate(offsets) if start < span.end and end > span.start and i >= taken]
        if not inside:
            inexact.append(span)
            continue
        aligned.append(Span(inside[0], inside[-1] + 1, span.type))
        if (offsets[inside[0]][0], offsets[inside[-1]][1]) != (span.start, span.end):
            inexact.append(span)
    return aligned, inexact
