from __future__ import annotations

import hashlib
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.text import duplicate_key
from scalemine.training import folds
from scalemine.training.folds import (
    MIN_WORDS,
    Leak,
    hold_out,
    join_groups,
    leak_report,
    make_folds,
    near_duplicate_groups,
    text_leaks,
)

DATA = Path(os.environ.get("SCALEMINE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@st.composite
def problems(draw, max_rows=40):
    """Rows with groups (None: on its own), labels and keys."""
    num_rows = draw(st.integers(2, max_rows))
    groups = draw(st.lists(st.none() | st.integers(0, 12), min_size=num_rows, max_size=num_rows))
    strata = draw(st.lists(st.frozensets(st.sampled_from("abcde"), max_size=4), min_size=num_rows, max_size=num_rows))
    return {"strata": strata, "groups": groups, "keys": [f"tweet {row}" for row in range(num_rows)]}


def num_groups(groups):
    return len(set(groups) - {None}) + groups.count(None)


def permuted(problem, order):
    return {name: [values[row] for row in order] for name, values in problem.items()}


@settings(deadline=None)
@given(problems(), st.integers(2, 6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_each_row_is_in_one_fold_of_many_whatever_the_order(problem, num_folds, seed, random):
    num_rows = len(problem["keys"])
    if num_groups(problem["groups"]) < num_folds:
        with pytest.raises(ValueError, match=f"there are {num_groups(problem['groups'])}$"):
            make_folds(num_rows, num_folds, seed=seed, **problem)
        return
    found = make_folds(num_rows, num_folds, seed=seed, **problem)
    assert found.dtype == np.int64
    assert set(found.tolist()) == set(range(num_folds))
    folds_of_groups = {(group, fold) for group, fold in zip(problem["groups"], found, strict=True) if group is not None}
    assert len(folds_of_groups) == len({group for group, _ in folds_of_groups})
    order = random.sample(range(num_rows), num_rows)
    again = make_folds(num_rows, num_folds, seed=seed, **permuted(problem, order))
    assert again.tolist() == found[order].tolist()


def slow_deal(problem, shares, seed):
    """The part of each row, by the definition: the chi-square is computed anew for each part that a group may go to."""
    rows_of = {}
    for row, group in enumerate(problem["groups"]):
        rows_of.setdefault(("own", row) if group is None else group, []).append(row)

    def digest(text):
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    total = Counter(label for labels in problem["strata"] for label in ["", *labels])
    held = [Counter() for _ in shares]

    def chi_square(counts, part):
        wanted = {label: total[label] * shares[part] for label in total}
        return sum((counts[label] - wanted[label]) ** 2 / wanted[label] for label in total)

    groups = []
    for rows in rows_of.values():
        counts = Counter(label for row in rows for label in ["", *problem["strata"][row]])
        mass = sum(Fraction(count**2, total[label]) for label, count in counts.items())
        groups.append(
            (-round(float(mass), 9), min(digest(f"{seed}:{problem['keys'][row]}") for row in rows), rows, counts)
        )
    part_of = {}
    for _, name, rows, counts in sorted(groups, key=lambda group: group[:2]):
        rise = [chi_square(held[part] + counts, part) - chi_square(held[part], part) for part in range(len(shares))]
        slack = Fraction(folds._EQUALLY_FULL) * 2 * counts.total()
        best = [part for part in range(len(shares)) if rise[part] <= min(rise) + slack]
        part = min(best, key=lambda part: (held[part].total() > 0, digest(f"{part}:{name.hex()}")))
        held[part] += counts
        part_of |= dict.fromkeys(rows, part)
    return [part_of[row] for row in range(len(problem["keys"]))]


@settings(deadline=None)
@given(problems(max_rows=30), st.integers(2, 4), st.integers(0, 3))
def test_groups_are_dealt_by_chi_square(problem, num_folds, seed):
    if num_groups(problem["groups"]) >= num_folds:
        found = make_folds(len(problem["keys"]), num_folds, seed=seed, **problem)
        assert found.tolist() == slow_deal(problem, [Fraction(1, num_folds)] * num_folds, seed)
    expected = slow_deal(problem, [Fraction(3, 4), Fraction(1, 4)], seed)
    if len(set(expected)) == 2:
        assert hold_out(len(problem["keys"]), 0.25, seed=seed, **problem).tolist() == [part == 1 for part in expected]
    else:
        with pytest.raises(ValueError, match="would hold out"):
            hold_out(len(problem["keys"]), 0.25, seed=seed, **problem)


def test_a_seed_gives_its_folds_and_another_seed_others():
    first, again, other = (make_folds(100, 4, seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert 0.5 < np.mean(first != other) < 0.95


def test_keys_default_to_positions():
    positions = make_folds(50, 3, seed=1, keys=[str(row) for row in range(50)])
    assert make_folds(50, 3, seed=1).tolist() == positions.tolist()


@pytest.mark.parametrize("sizes", [[20_000, 1, 1, 1, 1], [500, 400, 1, 1, 1], [1] * 5])
def test_as_many_groups_as_folds_leave_no_fold_empty(sizes):
    groups = np.repeat(range(5), sizes).tolist()
    strata = [["a"] if group < 3 else [] for group in groups]
    for seed in range(5):
        found = make_folds(len(groups), 5, seed=seed, groups=groups, strata=strata)
        assert sorted(np.bincount(found, minlength=5)) == sorted(sizes)


def skewed_problem(seed):
    """Events of very different sizes, with labels that are rare, nested, and differ in frequency between events."""
    rng = np.random.default_rng(seed)
    shares = rng.pareto(2.0, 200) + 0.1
    events = rng.choice(200, 5_000, p=shares / shares.sum())
    signal = rng.normal(0, 1.5, (200, 4))[events] + rng.normal(0, 1, (5_000, 4))
    labels = np.concatenate([signal > bound for bound in (0.5, 1.5, 2.5)], axis=1)
    return events, labels, [[f"label {i}" for i in np.flatnonzero(row)] for row in labels]


def label_error(fold_N, labels, num_folds):
    """Return the mean relative error of the label rates in the folds."""
    rates = np.array([labels[fold_N == fold].mean(axis=0) for fold in range(num_folds)])
    return np.mean(np.abs(rates / labels.mean(axis=0) - 1))


def folds_by_size(groups, num_folds):
    """The largest group first, each to the fold of the fewest rows."""
    sizes, fold_of = np.zeros(num_folds), {}
    for group, size in Counter(groups.tolist()).most_common():
        fold_of[group] = int(sizes.argmin())
        sizes[fold_of[group]] += size
    return np.array([fold_of[group] for group in groups.tolist()])


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_better_balanced_than_by_chance_or_by_size(seed):
    events, labels, strata = skewed_problem(seed)
    found = label_error(make_folds(5_000, 5, seed=seed, strata=strata, groups=events.tolist()), labels, 5)
    by_chance = np.median(
        [label_error(np.random.default_rng(i).integers(0, 5, 200)[events], labels, 5) for i in range(9)]
    )
    assert found < 0.6 * by_chance
    assert found < 0.6 * label_error(folds_by_size(events, 5), labels, 5)
    by_row = label_error(np.random.default_rng(seed).integers(0, 5, 5_000), labels, 5)
    alone = make_folds(5_000, 5, seed=seed, strata=strata)
    assert label_error(alone, labels, 5) < 0.3 * by_row
    assert np.ptp(np.bincount(alone)) <= 25


@pytest.mark.parametrize(("num_rows", "bound"), [(500, 0.75), (8_000, 0.25)])
def test_appended_rows_move_few_others(num_rows, bound):
    strata = [[f"label {row % 3}"] for row in range(num_rows + 10)]
    before, other = (make_folds(num_rows, 5, seed=seed, strata=strata[:num_rows]) for seed in (1, 2))
    after = make_folds(num_rows + 10, 5, seed=1, strata=strata)[:num_rows]
    assert np.mean(before != after) < bound * np.mean(before != other)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_hold_out_takes_about_its_share_of_rows_and_labels(share):
    events, labels, strata = skewed_problem(1)
    keys = [f"tweet {row}" for row in range(5_000)]
    held_out = hold_out(5_000, share, seed=3, strata=strata, groups=events.tolist(), keys=keys)
    assert held_out.dtype == np.bool_
    assert not set(events[held_out]) & set(events[~held_out])
    assert abs(held_out.mean() - share) < 0.05 * share

    def label_error_of(held_out):
        return np.abs(labels[held_out].sum(axis=0) / labels.sum(axis=0) - share).mean()

    draws = [np.random.default_rng(i).random(200)[events] < share for i in range(9)]
    assert label_error_of(held_out) < 0.5 * np.median([label_error_of(draw) for draw in draws])
    order = np.random.default_rng(0).permutation(5_000)
    problem = permuted({"strata": strata, "groups": events.tolist(), "keys": keys}, order)
    assert np.array_equal(hold_out(5_000, share, seed=3, **problem), held_out[order])


def test_hold_out_of_rows_on_their_own():
    held_out = hold_out(1_000, 0.1, seed=1, strata=[["rare"] if row < 20 else [] for row in range(1_000)])
    assert 98 <= held_out.sum() <= 102
    assert held_out[:20].sum() == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_hold_out_refuses_a_share_out_of_range(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(10, share, seed=1)


def test_hold_out_refuses_nothing_and_everything():
    with pytest.raises(ValueError, match="nothing: there are only 1 groups"):
        hold_out(3, 0.3, seed=1, groups=["a"] * 3)
    with pytest.raises(ValueError, match="everything: there are only 1 groups"):
        hold_out(3, 0.7, seed=1, groups=["a"] * 3)
    with pytest.raises(ValueError, match="at least one row, got 0"):
        hold_out(0, 0.5, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "at least 2 folds, got 1"),
        ({"num_folds": 5}, "there are 4"),
        ({"groups": ["a", "a", "b", None]}, "there are 3"),
        ({"groups": ["a", "b"]}, "groups for 4 rows, got 2"),
        ({"strata": [["a"]] * 5}, "strata for 4 rows, got 5"),
        ({"keys": []}, "keys for 4 rows, got 0"),
        ({"keys": ["a", "b", "c", "b"]}, "'b' comes twice"),
        ({"strata": [["a"], [], "flood", []]}, "got the string 'flood'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_folds(4, **{"num_folds": 4, "seed": 1, **arguments})


# Groups


def slow_components(num_rows, related):
    """Number the connected components by merging whole groups until nothing changes."""
    group = list(range(num_rows))
    for left in range(num_rows):
        for right in range(left):
            if group[left] != group[right] and related(left, right):
                group = [group[right] if other == group[left] else other for other in group]
    numbers = {}
    return [numbers.setdefault(name, len(numbers)) for name in group]


VALUES = st.none() | st.integers(0, 9) | st.sampled_from(["0", "a"])


@settings(deadline=None)
@given(st.integers(0, 25).flatmap(lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=3)))
def test_joined_groups_are_connected_components(groupings):
    def related(left, right):
        return any(values[left] == values[right] is not None for values in groupings)

    found = join_groups(*groupings)
    assert found == slow_components(len(groupings[0]), related)
    assert all(type(group) is int for group in found)


def test_groupings_of_different_rows_are_refused():
    for groupings in ([], [["a"], ["a", "b"]]):
        with pytest.raises(ValueError, match="groupings of the same rows"):
            join_groups(*groupings)


# Few words, so that many texts are alike; none of them means anything to the folding of texts.
WORDS = st.lists(st.sampled_from([f"w{i}" for i in range(9)]), max_size=8)
FRAMES = st.sampled_from(["{}", "RT @ana: {}", "{} https://t.co/x", "@bo {}!", "{} via @cy"])
TEXTS = st.lists(st.builds(lambda words, frame: frame.format(" ".join(words)), WORDS, FRAMES), max_size=25)


def near(left, right, threshold):
    words, others = ({word.strip("!") for word in text.split() if word.startswith("w")} for text in (left, right))
    if min(len(words), len(others)) < MIN_WORDS:
        return False
    return Fraction(len(words & others), len(words | others)) >= Fraction(str(threshold))


@pytest.mark.parametrize("pairs_per_block", [1, 30, 2**18])
def test_near_duplicates_are_those_of_all_pairs(pairs_per_block, monkeypatch):
    monkeypatch.setattr(folds, "_PAIRS_PER_BLOCK", pairs_per_block)

    @settings(deadline=None, max_examples=60)
    @given(TEXTS, st.sampled_from([0.05, 0.3, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0]))
    def compare(texts, threshold):
        keys = [duplicate_key(text) for text in texts]

        def related(left, right):
            return keys[left] == keys[right] or near(texts[left], texts[right], threshold)

        found = near_duplicate_groups(texts, threshold=threshold)
        assert found == slow_components(len(texts), related)
        assert all(type(group) is int for group in found)

    compare()


@settings(deadline=None)
@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.6, 1.0]))
def test_text_leaks_are_those_of_all_pairs(train, test, threshold):
    keys = {duplicate_key(text) for text in train}
    copied = [text for text in test if duplicate_key(text) in keys]
    alike = [text for text in test if text in copied or any(near(text, other, threshold) for other in train)]
    expected = [
        Leak(kind, len({duplicate_key(text) for text in rows}), len(rows), len(rows) / len(test) if test else 0.0)
        for kind, rows in (("exact copies", copied), ("near-duplicates", alike))
    ]
    assert text_leaks(train, test, threshold) == expected
    assert text_leaks(train, test, None) == expected[:1]


def test_words_of_texts_are_folded():
    texts = [
        "BREAKING: Fire at the Old Mill, two hurt https://t.co/abc",
        "RT @ana: “fire” at the old mill &amp; two hurt... @bo via @cy",
        "fire at the old mill: nobody hurt",
        "fire at the opera: nobody hurt",
        "Fire at the dam",
    ]
    assert near_duplicate_groups(texts) == [0, 0, 0, 0, 1]
    assert near_duplicate_groups(texts, threshold=0.7) == [0, 0, 0, 1, 2]


def test_short_texts_are_grouped_only_as_copies():
    assert near_duplicate_groups(["so sad", "So sad!", "so so sad", "sad so", "@ana", "@ana", "@bo", ""]) == [
        0,
        0,
        1,
        2,
        3,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    for texts in ([], ["one two three"]):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            near_duplicate_groups(texts, threshold=threshold)
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            text_leaks(texts, texts, threshold)


# Leaks


def test_leaks_are_counted_by_kind():
    train = {"user": ["ana", None, "bo", "ana"], "event": ["flood", "flood", "fire", None]}
    test = {"event": ["fire", "quake", "fire", "flood", None], "user": [None, None, "cy", "dee", "ana"]}
    assert leak_report(train, test) == [Leak("event", 2, 3, 0.6), Leak("user", 1, 1, 0.2)]
    assert leak_report({"event": []}, {"event": ["a"]}) == [Leak("event", 0, 0, 0.0)]
    assert leak_report({"event": ["a"]}, {"event": []}) == [Leak("event", 0, 0, 0.0)]
    assert leak_report({}, {}) == []


def test_columns_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"same kinds .* \['user'\] and \['event'\]"):
        leak_report({"user": ["ana"]}, {"event": ["fire"]})
    with pytest.raises(ValueError, match="each test row"):
        leak_report({"user": [], "event": []}, {"user": ["ana"], "event": ["fire", "flood"]})


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason=f"no real tweets in {DATA}")
def test_folds_of_real_tweets_keep_near_duplicates_together():
    rows = pq.read_table(DATA / "crisis_spans_train.parquet", columns=["id", "text", "type"]).to_pylist()
    texts = [row["text"] for row in rows]
    groups = near_duplicate_groups(texts)
    assert len(set(groups)) < len(rows)
    found = make_folds(len(rows), 5, seed=1, strata=[[row["type"]] for row in rows], groups=groups)
    assert len(set(zip(groups, found.tolist(), strict=True))) == len(set(groups))
    for type_, total in Counter(row["type"] for row in rows).items():
        counts = Counter(fold for fold, row in zip(found.tolist(), rows, strict=True) if row["type"] == type_)
        assert max(abs(counts[fold] - total / 5) for fold in range(5)) <= 2 + 0.01 * total
    # What the groups are there for.
    for fold in range(5):
        train = [text for text, other in zip(texts, found, strict=True) if other != fold]
        test = [text for text, other in zip(texts, found, strict=True) if other == fold]
        assert [leak.rows for leak in text_leaks(train, test)] == [0, 0]
