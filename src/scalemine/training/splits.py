"""Which rows a run trains on, which choose the epoch, and which are held out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalemine.config import InputError, TrainConfig
from scalemine.training.folds import hold_out, join_groups, make_folds, near_duplicate_groups

NEAR_DUPLICATES = "near_duplicates"


@dataclass(frozen=True, eq=False)
class Rows:
    """What decides where the rows of a training set go.

    Args:
        ids: Identifier of each row.
        texts: Its text.
        strata: What folds are to be alike in, such as its labels.
        is_negative: Whether it is a negative, which follows the positives that are like it.
        columns: Further columns, by name.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    strata: Sequence[Collection[str]]
    is_negative: Sequence[bool]
    columns: Mapping[str, Sequence[str | None]]


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of the training set a run trains on, chooses the epoch on, and is tested on.

    Args:
        fold: Which fold is held out, from 0; None where there are no folds.
        train: Rows to train on.
        dev: Rows that choose the epoch; none where a file or the held-out fold does.
        held_out: Rows of the held-out fold.
    """

    fold: int | None
    train: NDArray[np.int64]
    dev: NDArray[np.int64]
    held_out: NDArray[np.int64]


def plan_splits(options: TrainConfig, num_rows: int, read: Callable[[], Rows]) -> list[Split]:
    """Return the split of each fold, or the one split where there are no folds; the seed of the folds alone decides.

    Positives are dealt first, by themselves: they lie in the same folds whatever negatives there are.

    Args:
        options: Folds and dev part.
        num_rows: Rows of the training set.
        read: Gives them; called only if any are dealt out.

    Raises:
        InputError: There are too few groups of tweets for the folds or the dev part, or a part would be empty.
    """
    every = np.arange(num_rows)
    wants_dev = options.stop_on == "dev" and options.dev_uri is None
    if not options.folds and not wants_dev:
        return [Split(None, every, every[:0], every[:0])]
    dealer = _Dealer(options, read())
    parts: list[tuple[int | None, NDArray[np.int64], NDArray[np.int64]]] = [(None, every, every[:0])]
    if options.folds:
        fold_N = dealer.deal(every, _in_folds(options), "train.folds")
        parts = [(fold, every[fold_N != fold], every[fold_N == fold]) for fold in range(options.folds)]
    splits = []
    for fold, rest, held_out in parts:
        is_dev = np.zeros(len(rest), np.bool_)
        if wants_dev:
            is_dev = dealer.deal(rest, _in_dev(options), "train.dev_share") == 1
        splits.append(Split(fold, rest[~is_dev], rest[is_dev], held_out))
    return splits


Deal = Callable[..., NDArray[np.int64]]


def _in_folds(options: TrainConfig) -> Deal:
    return lambda rows, **how: make_folds(rows, options.folds, seed=options.fold_seed, **how)


def _in_dev(options: TrainConfig) -> Deal:
    return lambda rows, **how: hold_out(rows, options.dev_share, seed=options.fold_seed, **how).astype(np.int64)


class _Dealer:
    """Deals tweets out to parts: positives first, then each negative to its near copies or wherever it is wanted."""

    def __init__(self, options: TrainConfig, rows: Rows) -> None:
        self.options = options
        self.keys, self.strata = _distinct(rows.ids), list(rows.strata)
        self.texts = list(rows.texts) if NEAR_DUPLICATES in options.group_by else []
        self.columns = {name: list(rows.columns[name]) for name in options.group_by if name != NEAR_DUPLICATES}
        self.is_negative_N = np.fromiter(rows.is_negative, np.bool_, len(rows.ids))
        positives = np.flatnonzero(~self.is_negative_N)
        # Those of positives must not hang on the negatives, which may tie two of them together.
        self.group_of_positive = dict(zip(positives.tolist(), self._groups(positives), strict=True))
        self.group_N = np.array(self._groups(np.arange(len(rows.ids))))

    def _groups(self, rows: NDArray[np.int64]) -> list[int]:
        groupings: list[Sequence[Hashable | None]] = []
        for name in self.options.group_by:
            if name == NEAR_DUPLICATES:
                texts = [self.texts[row] for row in rows]
                groupings.append(near_duplicate_groups(texts, threshold=self.options.near_duplicate))
            else:
                groupings.append([self.columns[name][row] for row in rows])
        return join_groups(*groupings) if groupings else list(range(len(rows)))

    def deal(self, rows: NDArray[np.int64], deal: Deal, key: str) -> NDArray[np.int64]:
        """Return the part of each of some rows."""
        positives, negatives = rows[~self.is_negative_N[rows]], rows[self.is_negative_N[rows]]
        groups = [self.group_of_positive[row] for row in positives.tolist()]
        try:
            part_of = self._deal(positives, groups, deal)
        except ValueError as error:
            raise InputError(f"{key}: {error}; take fewer folds or another share, or group by less") from None
        of_group = {int(self.group_N[row]): part for row, part in part_of.items()}
        near = of_group.keys() & set(self.group_N[negatives].tolist())
        part_of |= {row: of_group[group] for row in negatives.tolist() if (group := int(self.group_N[row])) in near}
        alone = np.array([row for row in negatives.tolist() if row not in part_of], np.int64)
        try:
            part_of |= self._deal(alone, self.group_N[alone].tolist(), deal)
        except ValueError:  # too few to be shared out
            part_of |= dict.fromkeys(alone.tolist(), 0)
        return np.array([part_of[row] for row in rows.tolist()])

    def _deal(self, rows: NDArray[np.int64], groups: list[int], deal: Deal) -> dict[int, int]:
        if not len(rows):
            return {}
        strata = [self.strata[row] for row in rows] if self.options.stratify else None
        parts = deal(len(rows), strata=strata, groups=groups, keys=[self.keys[row] for row in rows])
        return dict(zip(rows.tolist(), parts.tolist(), strict=True))


def _distinct(ids: Sequence[str]) -> list[str]:
    """Return identifiers, those that come again with a number."""
    seen: dict[str, int] = {}
    keys = []
    for id_ in ids:
        seen[id_] = seen.get(id_, 0) + 1
        keys.append(id_ if seen[id_] == 1 else f"{id_}#{seen[id_]}")
    return keys
