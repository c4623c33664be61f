"""Scores of a sequence tagger: spans, words, surfaces, false alarms, and how sure of them one can be.

Precision, recall and F1 with nothing to divide by are 0. Spans are right where start, end and type are; unless said
otherwise they are read from the tags by conlleval's convention (see ``labels.spans_of_tags``).

- Micro measures count the spans of all types together. Macro measures average the measure over the types that occur in
  gold: a type that is only predicted lowers the micro measures, and is not averaged. (seqeval averages it too, as 0.)
- Overlap: a predicted and a gold span of one type earn 1 if they are equal, 1/2 if they share a word; each span is
  paired with one at most, so that a tweet earns the most. Precision and recall are credit per span.
- Token measures compare the type of each word, whether its tag begins or goes on with a span; words outside of every
  span count for accuracy alone.
- Surface measures compare the sets of distinct (type, surface) of the whole corpus: a name said often counts once.
- False alarms are predicted spans in tweets that have none in gold.

Shapes: N tweets, K span types, R rounds of the bootstrap, C rounds of a chunk; an axis of 3 holds gold, predicted and
correct when it counts, and F1, precision and recall when it measures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from math import sqrt
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scalemine.training.tagging.labels import Span, is_bio, spans_of_tags, type_of

Tags = Sequence[Sequence[str]]
Floats = NDArray[np.float64]

OVERLAP_DEFINITION: Final = (
    "spans of equal type: 1 if exact, 0.5 if they share a word; one to one, maximum credit per tweet"
)
_RATES: Final = ("f1", "precision", "recall")
_MEASURES: Final = (*_RATES, *(f"macro_{name}" for name in _RATES))
_WITH_INTERVAL: Final = ("f1", "precision", "recall", "macro_f1")
_TAIL: Final = 0.025  # on either side of a 95 % interval
_Z: Final = NormalDist().inv_cdf(1 - _TAIL)
_DRAWS_PER_CHUNK: Final = 1 << 21
ALL_NEGATIVES: Final = "all"
NO_GOLD: Final = "no_gold"


def score(
    gold: Tags,
    predicted: Tags,
    words: Sequence[Sequence[str]],
    *,
    negative_kinds: Sequence[str | None] | None = None,
    known_surfaces: Collection[tuple[str, str]] | None = None,
    num_bootstrap: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of predicted tags, ready for JSON; measures are in 0..1.

    Args:
        gold: BIO tags of each tweet.
        predicted: Those that the tagger gives.
        words: The words of each tweet.
        negative_kinds: Where each tweet comes from as a negative, such as "random"; None if it is no negative.
            ``false_alarms`` has an entry per kind and "all"; that of "no_gold", all tweets without a gold span, is
            there in any case.
        known_surfaces: What the tagger was trained on, from ``surfaces``; gives the recall of ``seen`` and ``unseen``.
        num_bootstrap: Rounds of the bootstrap over tweets; ``intervals`` is None without rounds or tweets.
        seed: Of the bootstrap.

    Raises:
        ValueError: Lengths differ, a tag is not BIO, a tweet is named a negative and has a gold span, a kind of
            negatives is called "all" or "no_gold", or the number of rounds is below 0.
    """
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap is {num_bootstrap}")
    _check_tweets(gold, predicted, words)
    gold_spans = [spans_of_tags(tags) for tags in gold]
    predicted_spans = [spans_of_tags(tags) for tags in predicted]
    types = sorted({span.type for span in chain(*gold_spans, *predicted_spans)})
    counts_NK3 = _count_spans(gold_spans, predicted_spans, types)
    counts_K3 = counts_NK3.sum(axis=0)
    measures = dict(zip(_MEASURES, _micro_and_macro(counts_K3).tolist(), strict=True))
    strict_K3 = _count_spans(
        [spans_of_tags(tags, "iob2") for tags in gold], [spans_of_tags(tags, "iob2") for tags in predicted], types
    ).sum(axis=0)
    result = {
        **_measured(counts_K3.sum(axis=0)),
        "num_tweets": len(gold),
        **{name: measures[name] for name in _MEASURES if name not in _RATES},
        "intervals": _intervals(counts_NK3, num_bootstrap, seed),
        "per_type": {name: _measured(counts_3) for name, counts_3 in zip(types, counts_K3, strict=True)},
        "strict_iob2": _measured(strict_K3.sum(axis=0)),
        "overlap": _overlap(gold_spans, predicted_spans),
        "token": _token(gold, predicted),
        "surface": _measured(_count_sets(_surfaces(gold_spans, words), _surfaces(predicted_spans, words))),
    }
    if known_surfaces is not None:
        known = {(name, surface.casefold()) for name, surface in known_surfaces}
        result |= _recall_of_seen(gold_spans, predicted_spans, words, known)
    result["false_alarms"] = _false_alarms(counts_NK3.sum(axis=1), negative_kinds)
    return result


def surfaces(tags: Tags, words: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """Return the distinct (type, surface) of the spans of tweets; a surface is words joined by spaces, case-folded.

    Raises:
        ValueError: Lengths differ, or a tag is not BIO.
    """
    _check_tweets(tags, tags, words)
    return _surfaces([spans_of_tags(row) for row in tags], words)


def _check_tweets(gold: Tags, predicted: Tags, words: Sequence[Sequence[str]]) -> None:
    if not len(gold) == len(predicted) == len(words):
        raise ValueError(f"{len(gold)} tweets in gold, {len(predicted)} predicted, {len(words)} of words")
    bio = {tag for tag in set(chain(*gold, *predicted)) if is_bio(tag)}
    for position, tweet in enumerate(zip(gold, predicted, words, strict=True)):
        num_gold, num_predicted, num_words = map(len, tweet)
        if not num_gold == num_predicted == num_words:
            raise ValueError(f"tweet {position}: {num_gold} gold and {num_predicted} predicted tags, {num_words} words")
        for tag in chain(tweet[0], tweet[1]):
            if tag not in bio:
                raise ValueError(f"tweet {position}: {tag!r} is no BIO tag")


def _count_spans(
    gold_spans: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]], types: Sequence[str]
) -> NDArray[np.int64]:
    """Return gold, predicted and correct spans per tweet and type, ``(N, K, 3)``."""
    index_of = {name: index for index, name in enumerate(types)}
    counts_NK3 = np.zeros((len(gold_spans), len(types), 3), np.int64)
    for counts_K3, gold, predicted in zip(counts_NK3, gold_spans, predicted_spans, strict=True):
        for part, spans in enumerate((gold, predicted, set(gold) & set(predicted))):
            for span in spans:
                counts_K3[index_of[span.type], part] += 1
    return counts_NK3


def _count_sets(gold: Collection[object], predicted: Collection[object]) -> NDArray[np.int64]:
    return np.array([len(gold), len(predicted), len(set(gold) & set(predicted))])


def _measure(counts_3: NDArray[Any]) -> Floats:
    """Return F1, precision and recall ``(..., 3)`` of counts ``(..., 3)``.

    Source: van Rijsbergen 1979; F1 = 2 correct / (gold + predicted).
    """
    gold, predicted, correct = np.moveaxis(counts_3, -1, 0)
    # Without a span to divide by there is none that is correct either: 0 / 1.
    parts = (2 * correct, gold + predicted), (correct, predicted), (correct, gold)
    return np.stack([np.divide(part, np.maximum(whole, 1)) for part, whole in parts], axis=-1)


def _micro_and_macro(counts_K3: NDArray[Any]) -> Floats:
    """Return ``_MEASURES``, shape ``(..., 6)``, of counts ``(..., K, 3)``."""
    in_gold_K1 = counts_K3[..., :1] > 0
    macro_3 = (_measure(counts_K3) * in_gold_K1).sum(axis=-2) / np.maximum(in_gold_K1.sum(axis=-2), 1)
    return np.concatenate([_measure(counts_K3.sum(axis=-2)), macro_3], axis=-1)


def _measured(counts_3: NDArray[np.int64]) -> dict[str, Any]:
    names = (*_RATES, "num_gold", "num_predicted", "num_correct")
    return dict(zip(names, [*_measure(counts_3).tolist(), *counts_3.tolist()], strict=True))


def _draws(num_tweets: int, num_rounds: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often rounds of the bootstrap draw each tweet, ``(C, N)``; the chunks bound the memory alone."""
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _DRAWS_PER_CHUNK // num_tweets)
    for first in range(0, num_rounds, per_chunk):
        num = min(per_chunk, num_rounds - first)
        cells_CN = generator.integers(num_tweets, size=(num, num_tweets)) + num_tweets * np.arange(num)[:, None]
        yield np.bincount(cells_CN.ravel(), minlength=cells_CN.size).reshape(num, num_tweets)


def _intervals(counts_NK3: NDArray[np.int64], num_rounds: int, seed: int) -> dict[str, list[float]] | None:
    """Return 95 % percentile intervals of a bootstrap over tweets: each round is scored as if it were the corpus.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    num_tweets, num_types, _ = counts_NK3.shape
    if not (num_rounds and num_tweets):
        return None
    flat = counts_NK3.reshape(num_tweets, -1).astype(np.float64)  # whole numbers: their sums are exact
    measures_R6 = np.concatenate(
        [
            _micro_and_macro((drawn_CN @ flat).reshape(len(drawn_CN), num_types, 3))
            for drawn_CN in _draws(num_tweets, num_rounds, seed)
        ]
    )
    ends = np.quantile(measures_R6, [_TAIL, 1 - _TAIL], axis=0).T.tolist()
    return {name: pair for name, pair in zip(_MEASURES, ends, strict=True) if name in _WITH_INTERVAL}


def _overlap(gold_spans: Sequence[Sequence[Span]], predicted_spans: Sequence[Sequence[Span]]) -> dict[str, Any]:
    num_gold, num_predicted = sum(map(len, gold_spans)), sum(map(len, predicted_spans))
    credit = float(sum(map(_overlap_credit, gold_spans, predicted_spans)))
    return {
        **dict(zip(_RATES, _measure(np.array([num_gold, num_predicted, credit])).tolist(), strict=True)),
        "num_gold": num_gold,
        "num_predicted": num_predicted,
        "credit": credit,
        "definition": OVERLAP_DEFINITION,
    }


def _overlap_credit(gold: Sequence[Span], predicted: Sequence[Span]) -> float:
    """Return the most credit that pairing the spans of one tweet can earn.

    Pairing from left to right is exact. The spans of a side share no word, so an equal pair overlaps nothing else. Of
    two that overlap and are the first of their sides, not both can overlap a later span: the one that ends first
    cannot. Hence some best pairing holds the two.
    """
    credit = 0.0
    for name in {span.type for span in gold} & {span.type for span in predicted}:
        ours = [span for span in gold if span.type == name]
        theirs = [span for span in predicted if span.type == name]
        i = j = 0
        while i < len(ours) and j < len(theirs):
            one, other = ours[i], theirs[j]
            apart = one.end <= other.start or other.end <= one.start
            if not apart:
                credit += 1.0 if one == other else 0.5
            i += not apart or one.end <= other.start
            j += not apart or other.end <= one.start
    return credit


def _token(gold: Tags, predicted: Tags) -> dict[str, Any]:
    pairs = [(type_of(one), type_of(other)) for one, other in zip(chain(*gold), chain(*predicted), strict=True)]
    equal = [one for one, other in pairs if one == other]
    counts_3 = np.array(
        [
            sum(one is not None for one, _ in pairs),
            sum(other is not None for _, other in pairs),
            sum(name is not None for name in equal),
        ]
    )
    return _measured(counts_3) | {"num_words": len(pairs), "accuracy": len(equal) / max(len(pairs), 1)}


def _surface(span: Span, words: Sequence[str]) -> tuple[str, str]:
    return span.type, " ".join(words[span.start : span.end]).casefold()


def _surfaces(spans: Sequence[Sequence[Span]], words: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    return {_surface(span, row) for found, row in zip(spans, words, strict=True) for span in found}


def _recall_of_seen(
    gold_spans: Sequence[Sequence[Span]],
    predicted_spans: Sequence[Sequence[Span]],
    words: Sequence[Sequence[str]],
    known: set[tuple[str, str]],
) -> dict[str, dict[str, Any]]:
    """Return the recall of the gold spans whose (type, surface) is known, and of the others."""
    num_gold, num_correct = {True: 0, False: 0}, {True: 0, False: 0}
    for gold, predicted, row in zip(gold_spans, predicted_spans, words, strict=True):
        for span in gold:
            is_known = _surface(span, row) in known
            num_gold[is_known] += 1
            num_correct[is_known] += span in predicted
    return {
        name: {
            "recall": num_correct[is_known] / max(num_gold[is_known], 1),
            "num_gold": num_gold[is_known],
            "num_correct": num_correct[is_known],
        }
        for name, is_known in (("seen", True), ("unseen", False))
    }


def _false_alarms(counts_N3: NDArray[np.int64], negative_kinds: Sequence[str | None] | None) -> dict[str, Any]:
    num_gold_N, num_predicted_N, _ = counts_N3.T
    groups = {}
    if negative_kinds is not None:
        _check_kinds(negative_kinds, num_gold_N)
        for name in sorted({kind for kind in negative_kinds if kind is not None}):
            groups[name] = np.array([kind == name for kind in negative_kinds])
        groups[ALL_NEGATIVES] = np.array([kind is not None for kind in negative_kinds], np.bool_)
    groups[NO_GOLD] = num_gold_N == 0
    return {name: _alarms(num_predicted_N[chosen_N]) for name, chosen_N in groups.items()}


def _check_kinds(negative_kinds: Sequence[str | None], num_gold_N: NDArray[np.int64]) -> None:
    if len(negative_kinds) != len(num_gold_N):
        raise ValueError(f"{len(negative_kinds)} negative kinds for {len(num_gold_N)} tweets")
    for position, (kind, num_gold) in enumerate(zip(negative_kinds, num_gold_N.tolist(), strict=True)):
        if kind in (ALL_NEGATIVES, NO_GOLD):
            raise ValueError(f"tweet {position}: a kind of negatives cannot be called {kind!r}")
        if kind is not None and num_gold:
            raise ValueError(f"tweet {position}: a negative ({kind!r}) with {num_gold} gold spans")


def _alarms(num_spans_M: NDArray[np.int64]) -> dict[str, Any]:
    """Return the false alarms of M tweets; ``interval`` is that of ``per_1000``, in its unit."""
    num_tweets, num_with_alarm = len(num_spans_M), int(np.count_nonzero(num_spans_M))
    return {
        "num_tweets": num_tweets,
        "num_with_alarm": num_with_alarm,
        "num_spans": int(num_spans_M.sum()),
        "per_1000": 1_000 * num_with_alarm / max(num_tweets, 1),
        "interval": [1_000 * end for end in _wilson(num_with_alarm, num_tweets)],
    }


def _wilson(num_hits: int, num_trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share; 0 to 1 without a trial.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, equation 4.
    """
    centre = (num_hits + _Z**2 / 2) / (num_trials + _Z**2)
    variance = num_hits * (num_trials - num_hits) / max(num_trials, 1)
    half = _Z * sqrt(variance + _Z**2 / 4) / (num_trials + _Z**2)
    return max(0.0, centre - half), min(1.0, centre + half)
