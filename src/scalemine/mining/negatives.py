"""Difficult negatives: for each class and kind, tweets of the corpus that its rule takes.

Stored similarities (low precision, rounded) only propose candidates; each one that is taken was encoded again in
float32 and may be taken by that. Candidates are gone through in their order, so the outcome depends on the seed and the
corpus alone.

Shapes: N texts, K classes, D dimensions, M positives.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.config import GuardConfig, MiningConfig
from scalemine.mining.anchors import Positives
from scalemine.mining.candidates import Cell, FloatArray, Propose, View
from scalemine.mining.guard import Guard
from scalemine.mining.sampling import Row
from scalemine.mining.similarity import STEPS_PER_UNIT, anchor_grid, similarities
from scalemine.mining.strategies import kinds
from scalemine.text import duplicate_key

logger = logging.getLogger(__name__)

# Why a candidate was not taken.
OUTSIDE = "outside its band in float32"
OF_POSITIVE = "copy of a positive"
OF_NEGATIVE = "copy of a negative already taken"
NEAR_NEGATIVE = "near-duplicate of a negative already taken"
SAME_EVENT = "of the event or time of positives"
REVIEWED = "a positive, by review"
DROPPED = "probably a positive"
UNSURE = "perhaps a positive: to be reviewed"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("class_name", pa.string()),
        ("band", pa.int8()),
        ("cosine", pa.float32()),
        ("z", pa.float32()),
        ("nearest_positive_id", pa.string()),
        ("nearest_positive_cosine", pa.float32()),
        ("false_negative_probability", pa.float32()),
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("kind", pa.string()),
        ("encoder", pa.string()),
    ]
)
REVIEW_SCHEMA = pa.schema(
    [SCHEMA.field(name).with_nullable(False) for name in ("id", "text", "class_name")]
    + [SCHEMA.field(name) for name in ("band", "cosine", "z", "nearest_positive_id")]
    + [("nearest_positive_text", pa.string()), ("nearest_positive_class", pa.string())]
    + [SCHEMA.field(name) for name in ("nearest_positive_cosine", "false_negative_probability")]
)


@dataclass(frozen=True)
class MinedNegatives:
    """The mined negatives, and how many candidates were passed over by each rule.

    Args:
        table: The columns of ``SCHEMA``; by class, kind and order of choice.
        review: The columns of ``REVIEW_SCHEMA``: what may be a positive, the least probable first.
        passed_over: Candidates by reason.
        num_candidates: Candidates encoded in float32.
    """

    table: pa.Table
    review: pa.Table
    passed_over: dict[str, int]
    num_candidates: int


def quotas(config: MiningConfig, positives: Positives, test: Positives | None) -> dict[tuple[str, str], int]:
    """Return how many negatives each class and kind is to have.

    ``match`` asks for as many as the class has positives, those of the test sets included.
    """
    wanted: dict[tuple[str, str], int] = {}
    for name in positives.class_names:
        matching = positives.count(name) + (test.count(name) if test else 0)
        for kind in kinds(config):
            wanted[name, kind] = matching if config.per_class == "match" else int(config.per_class)
    return wanted


@dataclass(frozen=True)
class Precautions:
    """What keeps true positives, and repetitions, out of the negatives.

    Args:
        positive_keys: Keys of the positives' texts, of training and test.
        guard: Estimates the probability of being a positive; None: there is no estimate.
        config: The budget.
        decisions: yes or no by the key of a text, from a review: a positive, or none.
        near_duplicate: Of tweets with this cosine or more one is taken; None: all.
        is_near_event: Whether a row is of the event or time of a class's positives.
    """

    positive_keys: frozenset[bytes]
    guard: Guard | None = None
    config: GuardConfig = field(default_factory=GuardConfig)
    decisions: Mapping[bytes, str] = field(default_factory=dict)
    near_duplicate: float | None = None
    is_near_event: Callable[[Row, str], bool] = lambda _row, _class_name: False

    def verdict(self, probability: float, key: bytes) -> str | None:
        """Return why a tweet of this probability is not taken, or None if it is."""
        budget = self.config.max_false_negative
        if budget is None or probability <= budget or self.decisions.get(key) == "no":
            return None
        return UNSURE if probability <= self.config.review_below else DROPPED


@dataclass
class _Choice:
    """The choice in progress: what is known of the candidates, across rounds."""

    views: Sequence[View]
    cells: Sequence[Cell]
    precautions: Precautions
    vectors: list[dict[str, FloatArray]] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    guesses: dict[str, float] = field(default_factory=dict)
    near: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vectors = [{} for _ in self.views]

    def key(self, row: Row) -> bytes:
        """Return the key that copies of a tweet share."""
        if row.text not in self.keys:
            self.keys[row.text] = duplicate_key(row.text)
        return self.keys[row.text]

    def cosines(self, text: str, view: int) -> NDArray[np.float64] | None:
        """Return the float32 S_an of a text to each class ``(K,)``, None where it was not encoded yet."""
        vector = self.vectors[view].get(text)
        if vector is None:
            return None
        # Summed in float64 and in one fixed order, so that it is the same in whatever company it is computed.
        sums: NDArray[np.float64] = (
            vector.astype(np.float64) * self.views[view].anchors.vectors_KD.astype(np.float64)
        ).sum(axis=1)
        return sums

    def take(
        self, candidates: Sequence[Sequence[Row]], order: Sequence[int]
    ) -> tuple[list[list[Row]], Counter[str], dict[bytes, tuple[Row, Cell]]]:
        """Fill the cells from their candidates; return the chosen, why others were not, and those to be reviewed."""
        taken: set[bytes] = set()
        texts: set[str] = set()
        unsure: dict[bytes, tuple[Row, Cell]] = {}
        chosen: list[list[Row]] = [[] for _ in self.cells]
        passed_over: Counter[str] = Counter()
        for index in order:
            cell = self.cells[index]
            for row in candidates[index]:
                if len(chosen[index]) == cell.quota:
                    break
                reason = self._reason(row, cell, taken, texts)
                if reason is None:
                    taken.add(self.key(row))
                    texts.add(row.text)
                    chosen[index].append(row)
                    continue
                passed_over[reason] += 1
                if reason == UNSURE:
                    unsure.setdefault(self.key(row), (row, cell))
        return chosen, passed_over, unsure

    def _reason(self, row: Row, cell: Cell, taken: set[bytes], texts: set[str]) -> str | None:
        """Return why a tweet is not taken; what is not known of it yet is no reason."""
        key, rules = self.key(row), self.precautions
        if key in rules.positive_keys:
            return OF_POSITIVE
        if key in taken:
            return OF_NEGATIVE
        if rules.decisions.get(key) == "yes":
            return REVIEWED
        if rules.is_near_event(row, cell.class_name):
            return SAME_EVENT
        cosines_K = self.cosines(row.text, cell.view)
        if cosines_K is not None and not cell.rule.holds(cosines_K):
            return OUTSIDE
        probability = self.probabilities.get(row.text, self.guesses.get(row.text, 0.0) / GUESS_MARGIN)
        reason = rules.verdict(probability, key)
        if reason:
            return reason
        return NEAR_NEGATIVE if not texts.isdisjoint(self.near.get(row.text, ())) else None

    def verify(
        self, candidates: Sequence[Sequence[Row]], order: Sequence[int]
    ) -> tuple[list[list[Row]], Counter[str], dict[bytes, tuple[Row, Cell]]]:
        """Return the choice in which every tweet was encoded in float32, and may be taken."""
        self._guess(candidates)
        while True:
            outcome = self.take(candidates, order)
            wanted: list[set[str]] = [set() for _ in self.views]
            for cell, rows in zip(self.cells, outcome[0], strict=True):
                for view in {0, cell.view}:
                    wanted[view] |= {row.text for row in rows}
            unknown = [sorted(texts - self.vectors[view].keys()) for view, texts in enumerate(wanted)]
            if not any(unknown):
                return outcome
            for view, texts in enumerate(unknown):
                if texts:
                    self.vectors[view].update(zip(texts, self.views[view].encode(texts), strict=True))
            self._look_at(unknown[0])

    def _guess(self, candidates: Sequence[Sequence[Row]]) -> None:
        """Guess from stored embeddings which candidates the guard will stop: they need not be encoded again."""
        guard, embeddings = self.precautions.guard, self.views[0].embeddings
        if guard is None or embeddings is None:
            return
        rows = {row.text: row for part in candidates for row in part if row.text not in self.guesses}
        if rows:
            vectors_ND = embeddings.at([(row.shard, row.row) for row in rows.values()])
            probabilities = guard.probability(list(rows), vectors_ND)
            self.guesses.update(zip(rows, probabilities.tolist(), strict=True))

    def to_review(self, unsure: Mapping[bytes, tuple[Row, Cell]]) -> list[tuple[Row, Cell]]:
        """Return what is to be reviewed, encoded, the least probable first; not more than somebody would look at."""
        by_text = {row.text: (row, cell) for row, cell in unsure.values()}
        known = {text: self.probabilities.get(text, self.guesses.get(text, 1.0)) for text in by_text}
        texts = sorted(known, key=lambda text: (known[text], text))[: self.precautions.config.review_size]
        unknown = [text for text in texts if text not in self.vectors[0]]
        if unknown:
            self.vectors[0].update(zip(unknown, self.views[0].encode(unknown), strict=True))
            self._look_at(unknown)
        # By stored embeddings they were doubtful; some are not.
        texts = [text for text in texts if self.precautions.verdict(self.probabilities[text], b"") == UNSURE]
        return sorted(map(by_text.__getitem__, texts), key=lambda pair: (self.probabilities[pair[0].text], pair[0].id))

    def _look_at(self, texts: Sequence[str]) -> None:
        """Learn of texts that were just encoded how probable positives they are, and what they nearly repeat."""
        if not texts:
            return
        vectors_ND = np.stack([self.vectors[0][text] for text in texts])
        if self.precautions.guard:
            probabilities = self.precautions.guard.probability(texts, vectors_ND)
            self.probabilities.update(zip(texts, probabilities.tolist(), strict=True))
        if self.precautions.near_duplicate is not None:
            for one, other in near_pairs(self.vectors[0], texts, self.precautions.near_duplicate):
                self.near.setdefault(one, set()).add(other)
                self.near.setdefault(other, set()).add(one)


# Candidates that are looked at for each negative wanted; a guard that stops more will stop the rest, too.
MAX_PER_QUOTA = 256
# A probability guessed from stored embeddings may be off by this factor before it counts.
GUESS_MARGIN = 1.25
# Texts that are compared with all others at a time.
_BLOCK = 512


def near_pairs(vectors: Mapping[str, FloatArray], texts: Sequence[str], threshold: float) -> list[tuple[str, str]]:
    """Return the pairs (one of ``texts``, any other) whose cosine is at least the threshold."""
    every = list(vectors)
    grid_ND = np.stack([vectors[text] for text in every]).astype(np.float16)
    pairs = []
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        steps_NB = similarities(grid_ND, anchor_grid(np.stack([vectors[text] for text in block])))
        for row, column in np.argwhere(steps_NB >= threshold * STEPS_PER_UNIT).tolist():
            if every[row] != block[column]:
                pairs.append((block[column], every[row]))
    return pairs


def mine_negatives(
    views: Sequence[View],
    cells: Sequence[Cell],
    propose: Propose,
    config: MiningConfig,
    *,
    available: Mapping[tuple[str, str], int],
    precautions: Precautions,
    seed: int,
    encoders: Sequence[str],
) -> MinedNegatives:
    """Mine the negatives of every class and kind.

    Args:
        views: The corpus as each encoder sees it; the first one's vectors, cosines and z are those that are written.
        cells: What is to be filled.
        propose: Gives each cell's candidates.
        config: Tails and strategy.
        available: Tweets per class and kind; the scarcest is served first when two want the same tweet.
        precautions: What is not taken.
        seed: Of the choice.
        encoders: The name of each view's encoder.
    """
    order = sorted(
        range(len(cells)),
        key=lambda i: (
            available[cells[i].class_name, cells[i].kind] / cells[i].quota,
            cells[i].class_name,
            cells[i].kind,
            cells[i].view,
        ),
    )
    choice = _Choice(views, cells, precautions)
    # Room for what will be passed over; where it is used up, the lists are made again, longer.
    sizes = [cell.quota + cell.quota // 4 + 64 for cell in cells]
    before: list[int] = []
    while True:
        candidates = propose(sizes)
        chosen, passed_over, unsure = choice.verify(candidates, order)
        lengths = [len(rows) for rows in candidates]
        cut_short = [len(chosen[i]) < cells[i].quota and lengths[i] >= sizes[i] for i in range(len(cells))]
        if not any(cut_short) or lengths == before:
            break
        before = lengths
        longer = [min(size * 4, cell.quota * MAX_PER_QUOTA + 64) for size, cell in zip(sizes, cells, strict=True)]
        if not any(cut and more > size for cut, more, size in zip(cut_short, longer, sizes, strict=True)):
            logger.warning("gave up on some quotas after %s candidates for each", MAX_PER_QUOTA)
            break
        sizes = [max(size, more) if cut else size for size, more, cut in zip(sizes, longer, cut_short, strict=True)]
    num_candidates = len(choice.vectors[0])
    table = _table(chosen, choice, config, seed, encoders)
    review = [_describe(choice, row, cell, config) for row, cell in choice.to_review(unsure)]
    return MinedNegatives(table, pa.Table.from_pylist(review, schema=REVIEW_SCHEMA), dict(passed_over), num_candidates)


def _table(
    chosen: Sequence[Sequence[Row]], choice: _Choice, config: MiningConfig, seed: int, encoders: Sequence[str]
) -> pa.Table:
    """Return the chosen rows with what is known of them."""
    rows = [
        {
            **_describe(choice, row, cell, config),
            "strategy": config.strategy,
            "seed": seed,
            "kind": cell.kind,
            "encoder": encoders[cell.view],
        }
        for cell, members in zip(choice.cells, chosen, strict=True)
        for row in members
    ]
    return pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in rows], schema=SCHEMA)


def _describe(choice: _Choice, row: Row, cell: Cell, config: MiningConfig) -> dict[str, object]:
    """Return what is known of a tweet that was encoded, as the first view sees it."""
    view = choice.views[0]
    cosines_K = choice.cosines(row.text, 0)
    assert cosines_K is not None
    normal = view.normals[cell.class_name]
    cosine = cosines_K[[cell.class_index]]
    probability = choice.probabilities.get(row.text)
    if choice.precautions.decisions.get(choice.key(row)) == "no":
        probability = 0.0
    near_M = view.anchors.positives_MD @ choice.vectors[0][row.text]
    nearest = int(near_M.argmax())
    return {
        "id": row.id,
        "text": row.text,
        "class_name": cell.class_name,
        "band": int(normal.bands(cosine, config.tails)[0]),
        "cosine": float(cosine[0]),
        "z": float(normal.z(cosine)[0]),
        "nearest_positive_id": view.anchors.positive_ids[nearest],
        "nearest_positive_text": view.anchors.positive_texts[nearest],
        "nearest_positive_class": view.anchors.class_names[view.anchors.positive_class_M[nearest]],
        "nearest_positive_cosine": float(near_M[nearest]),
        "false_negative_probability": probability,
    }
