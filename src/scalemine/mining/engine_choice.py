"""The fastest engine for a corpus, by a trial on some of its tweets before anything is encoded."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalemine.config import InputError
from scalemine.corpus import Corpus
from scalemine.encoder import Encoder, Tokens
from scalemine.engines import RIVALS, is_installed

logger = logging.getLogger(__name__)

# A smaller corpus is encoded before the trial would pay.
MIN_ROWS = 10_000
# Tweets of three lengths, so that batches are as full as later on.
FIRST_ROWS, ROWS_PER_LENGTH, QUARTILES = 2_048, 64, (0.25, 0.5, 0.75)
ROUNDS = 3
# Another engine is to be faster than torch by so much: less is noise.
MIN_GAIN = 1.1


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen, and what was measured of each: tweets per second, and its fidelity in a line."""

    engine: str
    measured: dict[str, dict[str, Any]]


def candidates(precision: str, device: str) -> list[str]:
    """Return the engines that can be meant by ``auto``, torch first."""
    return ["torch", *(name for name in RIVALS.get(precision, ()) if device == "cpu" and is_installed(name))]


def choose_engine(load: Callable[[str], Encoder], names: Sequence[str], corpus: Corpus) -> Choice:
    """Return the fastest engine; torch, unmeasured, where there is no other or the corpus is small.

    An engine that does not work here, or that gives a text other bits in other company, is not taken.

    Args:
        load: Loads an encoder with an engine.
        names: The engines, torch first.
        corpus: What will be encoded.
    """
    if len(names) == 1 or corpus.num_rows < MIN_ROWS:
        return Choice(names[0], {})
    encoders: dict[str, Encoder] = {}
    for name in names:
        try:
            encoders[name] = load(name)
        except InputError as error:
            if name == names[0]:
                raise
            logger.warning("%s", error)
    tokens = _sample(encoders[names[0]], corpus)
    encoders = {name: encoder for name, encoder in encoders.items() if name == names[0] or _keeps_bits(encoder, tokens)}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for round_ in range(1 + ROUNDS):
        for name, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode(tokens)
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    measured = {
        name: {
            "tweets_per_second": round(len(tokens.ids) / statistics.median(seconds[name]), 1),
            "fidelity": encoder.fidelity,
        }
        for name, encoder in encoders.items()
    }
    gains = {
        name: statistics.median(torch / own for torch, own in zip(seconds[names[0]], seconds[name], strict=True))
        for name in encoders
    }
    best = max(gains, key=lambda name: gains[name])
    chosen = best if gains[best] >= MIN_GAIN else names[0]
    rates = ", ".join(f"{name} {facts['tweets_per_second']:,.0f}" for name, facts in measured.items())
    logger.info("encoder.engine: %s, of %s tweets/s", chosen, rates)
    return Choice(chosen, measured)


def _sample(encoder: Encoder, corpus: Corpus) -> Tokens:
    """Return tweets of the first shard whose lengths are its quartiles, over and over where they are few."""
    texts = corpus.read(corpus.shards[0], columns=["text"])["text"].slice(0, FIRST_ROWS).to_pylist()
    ids = encoder.tokenise([encoder.normalise(text) for text in texts]).ids
    lengths = np.sort([len(tokens) for tokens in ids])
    sample: list[list[int]] = []
    for quartile in QUARTILES:
        length = lengths[int(quartile * (len(lengths) - 1))]
        found = [tokens for tokens in ids if len(tokens) == length]
        sample += [found[i % len(found)] for i in range(ROWS_PER_LENGTH)]
    return Tokens(sample, 0)


def _keeps_bits(encoder: Encoder, tokens: Tokens) -> bool:
    """Return whether texts get the same bits among all others and among few."""
    whole_ND = encoder.encode(tokens)
    rows = range(0, len(tokens.ids), 7)
    few_ND = encoder.encode(Tokens([tokens.ids[row] for row in rows], 0))
    same = bool(np.array_equal(few_ND, whole_ND[list(rows)]))
    if not same:
        logger.warning("encoder.engine: %s is left out: a text's bits depend on its neighbours", encoder.engine)
    return same
