"""Folds of cross-validation and held-out parts: what belongs together stays together, and what leaks is counted.

Rows that share an event, a user or nearly a text form a group, and a group is never parted. Groups are dealt out so
that every part gets its share of the rows and of each label.

Shapes: N rows, G groups, L labels, P parts (folds, or train and held out), V words, A and B texts that are compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from scalemine.text import canonical_words, duplicate_key

# Texts of fewer distinct words are too short to tell a near copy from another text on the same thing.
MIN_WORDS = 3
# What a product or quotient may be off, and far below what tells two of them apart.
_ROUNDING = 1e-9
# Parts that differ by no more than this, of what they are to hold, are equally good places for a group.
_EQUALLY_FULL = 0.01 + _ROUNDING
# Pairs of texts that are compared at a time: some tens of MiB.
_PAIRS_PER_BLOCK = 2**18


def make_folds(
    num_rows: int,
    num_folds: int,
    *,
    seed: int,
    strata: Sequence[Collection[str]] | None = None,
    groups: Sequence[Hashable] | None = None,
    keys: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Return the fold ``(N,)`` of each row, from 0 to num_folds - 1; no fold is empty.

    The seed alone decides, and where keys are given the order of the rows does not matter.

    Args:
        num_rows: N.
        num_folds: Number of folds, at least 2.
        seed: Another seed gives other folds.
        strata: The labels of each row: several, one or none. None: folds are balanced in rows only.
        groups: The group of each row, which is never parted; None as a group, or no groups: the row is on its own.
        keys: A distinct name of each row, its identifier; None: its position.

    Raises:
        ValueError: There are fewer groups than folds, fewer folds than 2, lengths differ, or a key comes twice.

    Example:
        >>> make_folds(6, 3, seed=1, groups=["a", "a", "b", "b", "c", "c"]).tolist()
        [1, 1, 0, 0, 2, 2]
    """
    if num_folds < 2:
        raise ValueError(f"expected at least 2 folds, got {num_folds}")
    grouped = _group_rows(num_rows, seed, strata, groups, keys)
    if len(grouped.digests) < num_folds:
        raise ValueError(
            f"{num_folds} folds need as many groups of rows that belong together, but there are {len(grouped.digests)}"
        )
    return _deal(grouped, np.full(num_folds, 1 / num_folds))[grouped.group_N]


def hold_out(
    num_rows: int,
    share: float,
    *,
    seed: int,
    strata: Sequence[Collection[str]] | None = None,
    groups: Sequence[Hashable] | None = None,
    keys: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Return ``(N,)`` which rows are held out: about a share of the rows and of each label.

    Args:
        num_rows: N.
        share: Of the rows, between 0 and 1. Groups are kept whole, so large ones make it inexact.
        seed: As for ``make_folds``, and so are the others.
        strata: The labels of each row.
        groups: The group of each row, which is never parted.
        keys: A distinct name of each row.

    Raises:
        ValueError: Nothing or everything would be held out, lengths differ, or a key comes twice.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out must be between 0 and 1, got {share}")
    grouped = _group_rows(num_rows, seed, strata, groups, keys)
    held_out_N: NDArray[np.bool_] = _deal(grouped, np.array([1 - share, share]))[grouped.group_N] == 1
    if held_out_N.all() or not held_out_N.any():
        outcome = "nothing" if not held_out_N.any() else "everything"
        raise ValueError(
            f"a share of {share} would hold out {outcome}: there are only {len(grouped.digests)} groups of rows"
        )
    return held_out_N


@dataclass(frozen=True, eq=False)
class _GroupedRows:
    """What is dealt out: the group of each row, and what each group holds.

    Args:
        group_N: Group of each row.
        counts_GL: Rows of each label in each group; column 0 counts all rows.
        digests: Per group a hash of the seed and its rows: a name that does not depend on the order of the rows.
    """

    group_N: NDArray[np.int64]
    counts_GL: sparse.csr_matrix
    digests: list[bytes]


def _group_rows(
    num_rows: int,
    seed: int,
    strata: Sequence[Collection[str]] | None,
    groups: Sequence[Hashable] | None,
    keys: Sequence[str] | None,
) -> _GroupedRows:
    if num_rows < 1:
        raise ValueError(f"expected at least one row, got {num_rows}")
    for name, values in (("strata", strata), ("groups", groups), ("keys", keys)):
        if values is not None and len(values) != num_rows:
            raise ValueError(f"expected {name} for {num_rows} rows, got {len(values)}")
    labels_N = [set[str]()] * num_rows if strata is None else [_labels(labels) for labels in strata]
    keys_N = [str(row) for row in range(num_rows)] if keys is None else keys
    if len(set(keys_N)) < num_rows:
        raise ValueError(f"the key {Counter(keys_N).most_common(1)[0][0]!r} comes twice; keys must tell rows apart")
    group_N = np.array(join_groups([None] * num_rows if groups is None else groups), np.int64)
    num_groups = int(group_N.max(initial=-1)) + 1
    digests = [b""] * num_groups
    for group, key in zip(group_N, keys_N, strict=True):
        digest = _digest(f"{seed}:{key}")
        digests[group] = min(digests[group] or digest, digest)
    column_of = {label: column for column, label in enumerate(sorted(set(chain.from_iterable(labels_N))), start=1)}
    columns = [column_of[label] for labels in labels_N for label in labels]
    rows = np.repeat(group_N, [len(labels) for labels in labels_N])
    counts_GL = sparse.csr_matrix(
        (np.ones(num_rows + len(columns)), (np.concatenate([group_N, rows]), [0] * num_rows + columns)),
        shape=(num_groups, 1 + len(column_of)),
    )
    return _GroupedRows(group_N, counts_GL, digests)


def _labels(labels: Collection[str]) -> set[str]:
    if isinstance(labels, str):
        raise ValueError(f"expected a collection of labels for each row, got the string {labels!r}; put it into a list")
    return set(labels)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _deal(grouped: _GroupedRows, share_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the part ``(G,)`` of each group: the heaviest first, each to the part that is least full of what it holds.

    That is where it raises Pearson's chi-square least: that of the rows and of each label in each part, against their
    shares of the whole. A group weighs what it would add to an empty part: much where it is large or its labels are
    rare. Parts that are about as full are equally good, and each group has its own order among them, so that one more
    row moves few of thousands. An empty part is preferred, and with equal shares always among the least full, so that
    none stays empty.

    Source: for label l with N_l rows, c_lp of them in part p of share s_p, the chi-square is the sum of
        (c_lp - N_l s_p)^2 / (N_l s_p). A group with n_l rows of it raises that by 2 n_l times
        (c_lp + n_l / 2) / (N_l s_p) - 1: how full the part is of that label, and so on for the others. Largest first:
        Graham (1969). Rarest first: Sechidis, Tsoumakas and Vlahavas (2011).
    """
    counts_GL = grouped.counts_GL
    weight_L = 1 / np.asarray(counts_GL.sum(axis=0)).ravel()
    # Equal masses may differ in their last digits.
    mass_G = (counts_GL.power(2) @ weight_L).round(9)
    dealt_LP = np.zeros((len(weight_L), len(share_P)))
    part_G = np.empty(len(grouped.digests), np.int64)
    for group in sorted(range(len(part_G)), key=lambda group: (-mass_G[group], grouped.digests[group])):
        own = slice(*counts_GL.indptr[group : group + 2])
        labels, counts = counts_GL.indices[own], counts_GL.data[own, None]
        fullness_LP = (dealt_LP[labels] + counts / 2) * weight_L[labels, None] / share_P
        fullness_P = (counts * fullness_LP).sum(axis=0) / counts.sum()
        best = np.flatnonzero(fullness_P <= fullness_P.min() + _EQUALLY_FULL)
        part = min(best, key=lambda part: (dealt_LP[0, part] > 0, _digest(f"{part}:{grouped.digests[group].hex()}")))
        part_G[group] = part
        dealt_LP[labels, part] += counts[:, 0]
    return part_G


def join_groups(*groupings: Sequence[Hashable | None]) -> list[int]:
    """Return the group of each row: rows that share a value in any of the groupings, directly or by others, are in one.

    Groups are numbered in order of their first rows.

    Args:
        groupings: Per grouping the value of each row; None is shared with no row.

    Raises:
        ValueError: There is no grouping, or their lengths differ.

    Example:
        >>> join_groups(["flood", "fire", None, "fire"], ["ana", "ana", "bo", None])
        [0, 0, 1, 0]
    """
    lengths = {len(values) for values in groupings}
    if len(lengths) != 1:
        raise ValueError(f"expected groupings of the same rows, got lengths {[len(values) for values in groupings]}")
    first_rows: dict[tuple[int, Hashable], int] = {}
    pairs = [
        (row, first_rows.setdefault((grouping, value), row))
        for grouping, values in enumerate(groupings)
        for row, value in enumerate(values)
        if value is not None
    ]
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    groups: list[int] = _components(lengths.pop(), left, right).tolist()
    return groups


def _components(num_nodes: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the connected component ``(num_nodes,)`` of each node, numbered in order of their first nodes."""
    graph = sparse.coo_matrix((np.ones(len(left), np.bool_), (left, right)), shape=(num_nodes, num_nodes))
    component = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def near_duplicate_groups(texts: Sequence[str], *, threshold: float = 0.6) -> list[int]:
    """Return the group of each text: near copies, and near copies of these, are in one.

    Two texts are near copies where the Jaccard similarity of their sets of words reaches the threshold. The words are
    those by which ``duplicate_key`` compares texts: case folded, without links, mentions, retweet marks and punctuation
    at their edges. Texts of fewer than ``MIN_WORDS`` distinct words are in one group only where their duplicate keys
    are equal; texts with equal keys always are. Groups are numbered in order of their first texts.

    Args:
        texts: The tweets.
        threshold: Above 0, at most 1.

    Raises:
        ValueError: The threshold is out of range.

    Source: Jaccard (1912): words in both over words in either.

    Example:
        >>> near_duplicate_groups(["Fire in the old mill", "RT @ana: fire in the mill!", "mill", "Mill?"])
        [0, 0, 1, 1]
    """
    copy_N = np.array(join_groups([duplicate_key(text) for text in texts]), np.int64)
    first_of_copies = np.unique(copy_N, return_index=True)[1]
    words_AV = _word_sets([texts[row] for row in first_of_copies])
    group_A = np.arange(len(first_of_copies))
    for left, right in _similar_pairs(words_AV, words_AV, threshold):
        group_A = _components(int(group_A.max(initial=-1)) + 1, group_A[left], group_A[right])[group_A]
    groups: list[int] = group_A[copy_N].tolist()
    return groups


def _word_sets(texts: Sequence[str]) -> sparse.csr_matrix:
    """Return which words each text has, as a sparse matrix ``(N, V)`` of ones; the rarest words come first."""
    words_N = [set(canonical_words(text)) for text in texts]
    frequency = Counter(chain.from_iterable(words_N))
    column_of = {word: column for column, word in enumerate(sorted(frequency, key=lambda word: frequency[word]))}
    columns_N = [sorted(column_of[word] for word in words) for words in words_N]
    starts = np.cumsum([0, *map(len, columns_N)])
    columns = np.fromiter(chain.from_iterable(columns_N), np.int64, starts[-1])
    return sparse.csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(texts), len(column_of)))


def _similar_pairs(
    left_AV: sparse.csr_matrix, right_BV: sparse.csr_matrix, threshold: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the similar pairs of a left and a right text, as their row numbers, some blocks of left rows at a time.

    Args:
        left_AV: Word sets, whose columns are in order of rarity on both sides.
        right_BV: Word sets.
        threshold: The least Jaccard similarity.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of near copies must be above 0 and at most 1, got {threshold}")
    size_A, size_B = np.diff(left_AV.indptr), np.diff(right_BV.indptr)
    rarest_AV, rarest_VB = _rarest_words(left_AV, threshold), _rarest_words(right_BV, threshold).T.tocsr()
    # No row has more pairs to look at than this.
    most_pairs_A = rarest_AV @ np.diff(rarest_VB.indptr)
    block_A = np.cumsum(most_pairs_A) // _PAIRS_PER_BLOCK
    for rows in np.split(np.arange(len(size_A)), np.flatnonzero(np.diff(block_A)) + 1):
        candidates = (rarest_AV[rows] @ rarest_VB).tocoo()
        left, right = rows[candidates.row], candidates.col
        in_both = np.asarray(left_AV[left].multiply(right_BV[right]).sum(axis=1)).ravel()
        similar = in_both / (size_A[left] + size_B[right] - in_both) >= threshold
        yield left[similar], right[similar]


def _rarest_words(words_NV: sparse.csr_matrix, threshold: float) -> sparse.csr_matrix:
    """Return of each word set of at least MIN_WORDS its rarest words: similar sets have one of these in common.

    Source: prefix filtering, Chaudhuri, Ganti and Kaushik (2006). Of n words a similar set has at least threshold * n,
        so it has at least one of any n - threshold * n + 1; and the rarest word in both is among the rarest of both.
    """
    size_N = np.diff(words_NV.indptr)
    num_N = size_N - np.ceil(threshold * size_N - _ROUNDING).astype(np.int64) + 1
    num_N[size_N < MIN_WORDS] = 0
    position = np.arange(words_NV.nnz) - np.repeat(words_NV.indptr[:-1], size_N)
    kept = position < np.repeat(num_N, size_N)
    starts = np.cumsum([0, *num_N])
    return sparse.csr_matrix((words_NV.data[kept], words_NV.indices[kept], starts), shape=words_NV.shape)


@dataclass(frozen=True)
class Leak:
    """What test rows have in common with training rows, so that a tagger or classifier may know it by heart.

    Args:
        kind: What is shared, such as "event", "user", "exact copies" or "near-duplicates".
        shared: Number of distinct values that are in both.
        rows: Number of test rows that hold one of them.
        share: The same as a share of the test rows, from 0 to 1; 0 where there are none.
    """

    kind: str
    shared: int
    rows: int
    share: float


def leak_report(
    train: Mapping[str, Sequence[Hashable | None]], test: Mapping[str, Sequence[Hashable | None]]
) -> list[Leak]:
    """Return what test rows share with training rows, per kind, in the order of ``test``.

    A user is the author of a tweet; being mentioned in its text does not make one.

    Args:
        train: Per kind the value of each training row, such as its event or user; None is shared with no row.
        test: The same kinds for the test rows.

    Raises:
        ValueError: The kinds of train and test differ, or the lengths of one's columns do.

    Example:
        >>> leak_report({"event": ["flood", "fire", None]}, {"event": ["fire", "quake", None, None]})
        [Leak(kind='event', shared=1, rows=1, share=0.25)]
    """
    if set(train) != set(test):
        raise ValueError(f"expected the same kinds for train and test, got {sorted(train)} and {sorted(test)}")
    for name, columns in (("train", train), ("test", test)):
        lengths = {kind: len(values) for kind, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected a value of each {name} row, got as many as {lengths}")
    leaks = []
    for kind, values in test.items():
        shared = {value for value in set(values) & set(train[kind]) if value is not None}
        leaks.append(_leak(kind, len(shared), [value in shared for value in values]))
    return leaks


def _leak(kind: str, shared: int, affected: Sequence[bool]) -> Leak:
    return Leak(kind, shared, sum(affected), sum(affected) / max(1, len(affected)))


def text_leaks(train_texts: Sequence[str], test_texts: Sequence[str], threshold: float | None = 0.6) -> list[Leak]:
    """Return how many test texts are in the training texts: as exact copies, and as copies or near copies.

    Both are as in ``near_duplicate_groups``, but near copies of near copies are not counted. Near-duplicates include
    the exact copies; what is shared are distinct texts of the test set.

    Args:
        train_texts: The tweets for training.
        test_texts: The tweets for testing.
        threshold: The least Jaccard similarity of near copies, above 0 and at most 1; None: near copies are not looked
            for.

    Raises:
        ValueError: The threshold is out of range.
    """
    train_keys = {duplicate_key(text) for text in train_texts}
    test_keys = [duplicate_key(text) for text in test_texts]
    near_A = np.array([key in train_keys for key in test_keys], np.bool_)
    copies = _leak("exact copies", len(train_keys.intersection(test_keys)), near_A.tolist())
    if threshold is None:
        return [copies]
    words_NV = _word_sets([*test_texts, *train_texts])
    for rows, _ in _similar_pairs(words_NV[: len(test_texts)], words_NV[len(test_texts) :], threshold):
        near_A[rows] = True
    distinct = {key for key, near in zip(test_keys, near_A, strict=True) if near}
    return [copies, _leak("near-duplicates", len(distinct), near_A.tolist())]
