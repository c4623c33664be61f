from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.sweep.halving import survivors


def decide(trial, scores, **how):
    return "go" if trial in survivors(scores, **how) else "stop"


# Quarters: sums of them are exact.
quarters = st.integers(-8, 8).map(lambda number: number / 4)
reductions = st.integers(2, 4)
min_folds = st.integers(1, 3)
ladders = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.lists(quarters, max_size=9), min_size=1)


def obvious(trial: str, scores: dict[str, list[float]], reduction: int, first: int) -> bool:
    """Sort all that came as far; go on if the mean is no worse than that of the last one that is kept."""
    rungs = [first * reduction**power for power in range(8)]
    reached = [rung for rung in rungs if rung <= len(scores[trial])]
    if not reached:
        return True
    rung = reached[-1]
    means = {
        name: sum(map(Fraction, of_trial[:rung])) / rung for name, of_trial in scores.items() if len(of_trial) >= rung
    }
    keep = -(-len(means) // reduction)
    return means[trial] >= sorted(means.values(), reverse=True)[keep - 1]


@given(ladders, reductions, min_folds)
def test_as_by_sorting(scores: dict[str, list[float]], reduction: int, first: int) -> None:
    found = {name: decide(name, scores, reduction=reduction, min_folds=first) for name in scores}
    assert found == {name: "go" if obvious(name, scores, reduction, first) else "stop" for name in scores}
    assert survivors(scores, reduction=reduction, min_folds=first) == {n for n, said in found.items() if said == "go"}


@given(ladders, reductions, min_folds)
def test_less_is_better_is_more_of_the_opposite(scores: dict[str, list[float]], reduction: int, first: int) -> None:
    opposite = {name: [-score for score in of_trial] for name, of_trial in scores.items()}
    assert survivors(scores, reduction=reduction, min_folds=first, mode="min") == survivors(
        opposite, reduction=reduction, min_folds=first
    )


@given(ladders, reductions, min_folds)
def test_the_best_of_its_rung_goes_on(scores: dict[str, list[float]], reduction: int, first: int) -> None:
    reached = {name: of_trial for name, of_trial in scores.items() if len(of_trial) >= first}
    if reached:
        assert survivors(scores, reduction=reduction, min_folds=first) & set(reached)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True), reductions)
def test_all_as_far_is_plain_halving(means: list[int], reduction: int) -> None:
    scores = {str(mean): [mean / 8, mean / 8] for mean in means}
    best = sorted(means, reverse=True)[: math.ceil(len(means) / reduction)]
    assert survivors(scores, reduction=reduction, min_folds=2) == {str(mean) for mean in best}


@given(ladders, reductions, min_folds, st.data())
def test_folds_beyond_the_rung_and_trials_below_it_do_not_count(
    scores: dict[str, list[float]], reduction: int, first: int, data: st.DataObject
) -> None:
    trial = data.draw(st.sampled_from(sorted(scores)))
    rung = max((r for r in (first * reduction**p for p in range(8)) if r <= len(scores[trial])), default=first)
    other = {
        name: [*of_trial[:rung], *data.draw(st.lists(quarters, max_size=2))] if len(of_trial) >= rung else of_trial
        for name, of_trial in scores.items()
        if name == trial or len(of_trial) >= rung
    }
    other[trial] = scores[trial]
    assert decide(trial, other, reduction=reduction, min_folds=first) == decide(
        trial, scores, reduction=reduction, min_folds=first
    )


def test_a_hard_fold_is_held_against_nobody() -> None:
    # Fold 1 is hard: over different folds the newcomer would look better than those that did it.
    scores = {"a": [0.8, 0.2, 0.8], "b": [0.7, 0.1], "c": [0.7, 0.1, 0.7], "new": [0.6]}
    assert decide("new", scores, reduction=3, min_folds=1) == "stop"
    assert decide("new", scores, reduction=3, min_folds=2) == "go"


def test_the_first_and_those_before_the_first_rung_go_on() -> None:
    assert decide("a", {"a": [0.1]}, reduction=3, min_folds=1) == "go"
    assert decide("a", {"a": [], "b": [0.9]}, reduction=3, min_folds=1) == "go"


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_is_no_number_is_worst(mode: str) -> None:
    scores = {"a": [math.nan], "b": [0.5], "c": [0.5]}
    assert survivors(scores, reduction=2, min_folds=1, mode=mode) == {"b", "c"}  # type: ignore[arg-type]


@pytest.mark.parametrize(("reduction", "first"), [(1, 1), (3, 0)])
def test_rungs_that_cannot_be(reduction: int, first: int) -> None:
    with pytest.raises(ValueError, match="expected a reduction"):
        decide("a", {"a": [0.1]}, reduction=reduction, min_folds=first)
