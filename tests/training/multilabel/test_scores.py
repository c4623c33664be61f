from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle

from scalemine.training.multilabel import scores
from scalemine.training.multilabel.calibration import ece
from scalemine.training.multilabel.scores import (
    FEW_ROWS,
    MOST_VALUES,
    NO_VALUE,
    OTHER_VALUES,
    average_precision,
    macro_roc_auc,
    micro_roc_auc,
    roc_auc,
    roc_curves,
    score_labels,
)

Arrays = tuple[NDArray[Any], NDArray[Any]]
LABELS = ["one", "two", "three"]
PRIOR = [0.5, 0.25, 0.125]


@st.composite
def predictions(draw: st.DrawFn, most_rows: int = 14, unknown: bool = True) -> Arrays:
    """Targets and scores; few distinct scores, so that many are equal, also across labels."""
    num_rows = draw(st.integers(1, most_rows))
    targets = draw(
        st.lists(st.sampled_from([0, 1, -1] if unknown else [0, 1]), min_size=3 * num_rows, max_size=3 * num_rows)
    )
    values = draw(st.lists(st.integers(0, 6), min_size=3 * num_rows, max_size=3 * num_rows))
    return np.array(targets, np.int8).reshape(-1, 3), np.array(values, np.float32).reshape(-1, 3) / 6


def random_predictions(
    num_rows: int, num_labels: int, seed: int, *, signal: float = 0.5, unknown: float = 0.2
) -> Arrays:
    generator = np.random.default_rng(seed)
    targets_NC = (generator.random((num_rows, num_labels)) < 0.3).astype(np.int8)
    noise_NC = generator.standard_normal(targets_NC.shape)
    scores_NC = (1 / (1 + np.exp(1 - signal * targets_NC - noise_NC))).round(2).astype(np.float32)
    targets_NC[generator.random(targets_NC.shape) < unknown] = -1
    return targets_NC, scores_NC


def score(targets_NC: NDArray[Any], scores_NC: NDArray[Any], **arguments: Any) -> dict[str, Any]:
    num_labels = targets_NC.shape[1]
    chosen = {"prior_C": np.linspace(0.2, 0.6, num_labels), "num_bootstrap": 0} | arguments
    return score_labels(targets_NC, scores_NC, [f"label {i}" for i in range(num_labels)], **chosen)


def known(targets: NDArray[Any], values: NDArray[Any]) -> Arrays:
    return targets[targets >= 0], values[targets >= 0]


def mixed(targets: NDArray[Any]) -> bool:
    return (targets == 1).any() and (targets == 0).any()


# --- Against scikit-learn


@given(predictions())
@settings(deadline=None)
def test_ranking_measures_as_scikit_learn_has_them(arrays: Arrays) -> None:
    targets_NC, scores_NC = arrays
    result = score(targets_NC, scores_NC)
    areas: dict[str, list[float]] = {"roc_auc": [], "average_precision": []}
    positives = []
    for targets_N, scores_N, found in zip(targets_NC.T, scores_NC.T, result["per_label"].values(), strict=True):
        assert found["roc_auc"] == roc_auc(targets_N, scores_N)
        assert found["average_precision"] == average_precision(targets_N, scores_N)
        if not mixed(targets_N):
            assert found["roc_auc"] is None and found["average_precision"] is None
            continue
        assert found["roc_auc"] == pytest.approx(oracle.roc_auc_score(*known(targets_N, scores_N)), abs=1e-12)
        assert found["average_precision"] == pytest.approx(
            oracle.average_precision_score(*known(targets_N, scores_N)), abs=1e-12
        )
        for name, values in areas.items():
            values.append(found[name])
        positives.append(found["num_positive"])
    assert result["num_undefined"] == 3 - len(positives)
    for name, values in areas.items():
        assert result[name]["macro"] == (pytest.approx(np.mean(values)) if values else None)
        assert result[name]["weighted"] == (pytest.approx(np.average(values, weights=positives)) if values else None)
    assert macro_roc_auc(targets_NC, scores_NC) == (result["roc_auc"]["macro"] if positives else 0.5)
    if mixed(targets_NC):
        together = known(targets_NC, scores_NC)
        assert result["roc_auc"]["micro"] == pytest.approx(oracle.roc_auc_score(*together), abs=1e-12)
        assert result["average_precision"]["micro"] == pytest.approx(
            oracle.average_precision_score(*together), abs=1e-12
        )
        assert micro_roc_auc(targets_NC, scores_NC) == result["roc_auc"]["micro"]
    else:
        assert result["roc_auc"]["micro"] is None
        assert micro_roc_auc(targets_NC, scores_NC) == 0.5


@given(predictions())
@settings(deadline=None)
def test_blocks_do_not_show(arrays: Arrays) -> None:
    targets_NC, scores_NC = arrays
    whole = score(targets_NC, scores_NC, num_bootstrap=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "_DRAWS_PER_BLOCK", 2)
        patch.setattr(scores, "_DRAWS_PER_CHUNK", 1)
        assert_alike(score(targets_NC, scores_NC, num_bootstrap=3), whole)


def assert_alike(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | float):
        assert one == pytest.approx(other, abs=1e-9)
    else:
        assert one == other


@given(predictions(unknown=False), st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=3))
@settings(deadline=None)
def test_decisions_as_scikit_learn_has_them(arrays: Arrays, thresholds: list[float]) -> None:
    targets_NC, scores_NC = arrays
    result = score(targets_NC, scores_NC, thresholds_C=thresholds)
    predicted_NC = (scores_NC >= np.array(thresholds)).astype(int)
    of = {"average": "micro", "zero_division": 0}
    assert result["micro_f1"] == pytest.approx(oracle.f1_score(targets_NC, predicted_NC, **of))
    assert result["micro_precision"] == pytest.approx(oracle.precision_score(targets_NC, predicted_NC, **of))
    assert result["micro_recall"] == pytest.approx(oracle.recall_score(targets_NC, predicted_NC, **of))
    assert result["exact_match"] == pytest.approx(oracle.accuracy_score(targets_NC, predicted_NC))
    assert result["hamming_loss"] == pytest.approx(oracle.hamming_loss(targets_NC, predicted_NC))
    assert result["accuracy"] == pytest.approx(oracle.accuracy_score(targets_NC.ravel(), predicted_NC.ravel()))
    assert result["jaccard"] == pytest.approx(
        oracle.jaccard_score(targets_NC, predicted_NC, average="samples", zero_division=1)
    )
    f1s = []
    for targets_N, predicted_N, scores_N, found in zip(
        targets_NC.T, predicted_NC.T, scores_NC.T, result["per_label"].values(), strict=True
    ):
        assert found["ece"] == ece(targets_N, scores_N)
        assert found["brier"] == pytest.approx(np.mean((scores_N - targets_N) ** 2), abs=1e-6)
        if targets_N.any():
            rates = oracle.precision_recall_fscore_support(targets_N, predicted_N, average="binary", zero_division=0)
            assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(rates[:3])
            f1s.append(found["f1"])
        else:
            assert found["precision"] is found["recall"] is found["f1"] is None
    assert result["macro_f1"] == (pytest.approx(np.mean(f1s)) if f1s else None)


def test_brier_score_of_a_label() -> None:
    targets_NC, scores_NC = random_predictions(200, 2, 0)
    result = score(targets_NC, scores_NC)
    found = [one["brier"] for one in result["per_label"].values()]
    wanted = [oracle.brier_score_loss(*known(targets_NC[:, i], scores_NC[:, i].astype(float))) for i in range(2)]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert result["brier"] == pytest.approx(np.mean(found))
    assert result["ece"] == pytest.approx(np.mean([one["ece"] for one in result["per_label"].values()]))


@given(predictions())
@settings(deadline=None)
def test_jaccard_and_exact_match_tweet_by_tweet(arrays: Arrays) -> None:
    targets_NC, scores_NC = arrays
    shares, exact = [], []
    for targets, row in zip(targets_NC.tolist(), scores_NC.tolist(), strict=True):
        gold = {i for i, target in enumerate(targets) if target == 1}
        predicted = {i for i, target in enumerate(targets) if target >= 0 and row[i] >= 0.5}
        if max(targets) >= 0:
            shares.append(len(gold & predicted) / len(gold | predicted) if gold | predicted else 1)
            exact.append(gold == predicted)
    result = score(targets_NC, scores_NC)
    assert result["jaccard"] == (pytest.approx(np.mean(shares)) if shares else None)
    assert result["exact_match"] == (pytest.approx(np.mean(exact)) if exact else None)


# --- Properties


@given(predictions())
@settings(deadline=None)
def test_a_monotone_change_leaves_the_ranking(arrays: Arrays) -> None:
    targets_NC, scores_NC = arrays
    for measure in (macro_roc_auc, micro_roc_auc):
        assert measure(targets_NC, 3 * scores_NC.astype(np.float64) ** 3 - 7) == measure(targets_NC, scores_NC)


def test_unknown_entries_are_as_if_absent() -> None:
    """A row for each known entry, all else in it unknown: the measures of entries are the same."""
    targets_NC, scores_NC = random_predictions(120, 3, 1)
    rows, columns = np.nonzero(targets_NC >= 0)
    alone_MC = np.full((len(rows), 3), -1, np.int8)
    alone_MC[np.arange(len(rows)), columns] = targets_NC[rows, columns]
    junk_MC = np.random.default_rng(0).random((len(rows), 3)).astype(np.float32)
    junk_MC[np.arange(len(rows)), columns] = scores_NC[rows, columns]
    one, other = score(targets_NC, scores_NC), score(alone_MC, junk_MC)
    same = ["num_known", "roc_auc", "average_precision", "micro_f1", "macro_f1", "hamming_loss", "ece", "brier"]
    for key in (*same, "per_label"):
        assert_alike(one[key], other[key])


def test_the_order_of_tweets_does_not_matter() -> None:
    targets_NC, scores_NC = random_predictions(100, 3, 2)
    order = np.random.default_rng(0).permutation(100)
    assert_alike(score(targets_NC[order], scores_NC[order]), score(targets_NC, scores_NC))


# --- The prior


@given(predictions())
@settings(deadline=None)
def test_the_prior_scores_as_a_model_that_gives_it_to_every_tweet(arrays: Arrays) -> None:
    targets_NC, scores_NC = arrays
    # Two labels share a prior, so that they are tied.
    prior_C = np.array([0.5, 0.125, 0.5])
    prior = score(targets_NC, scores_NC, prior_C=prior_C)["prior"]
    # Yes for the two frequent labels, as 2 * 1 / (2 + 1.125) is more than with one label or three.
    constant = score(targets_NC, np.broadcast_to(prior_C, targets_NC.shape), thresholds_C=[0.5] * 3)
    always = score(targets_NC, np.ones_like(scores_NC))
    assert prior.keys() == {"roc_auc", "average_precision", "micro_f1", "macro_f1", "micro_precision", "micro_recall",
                            "jaccard", "exact_match", "hamming_loss", "accuracy"}  # fmt: skip
    assert_alike(prior, {key: constant[key] for key in prior} | {"macro_f1": always["macro_f1"]})
    assert prior["roc_auc"]["macro"] in (0.5, None)


@given(predictions(), st.lists(st.integers(0, 10), min_size=3, max_size=3))
@settings(deadline=None)
def test_the_prior_decides_as_well_as_a_constant_can(arrays: Arrays, tenths: list[int]) -> None:
    """Every constant decision is tried: on the tweets for macro F1, on the frequencies of training for micro F1."""
    targets_NC, scores_NC = arrays
    prior_C = np.array(tenths) / 10
    constants = [np.array(yes) for yes in itertools.product([0.0, 1.0], repeat=3)]
    found = {tuple(yes): score(targets_NC, np.broadcast_to(yes, targets_NC.shape)) for yes in constants}
    prior = score(targets_NC, scores_NC, prior_C=prior_C, thresholds_C=[0.9] * 3)["prior"]
    macro_f1s = [one["macro_f1"] for one in found.values() if one["macro_f1"] is not None]
    assert prior["macro_f1"] == (pytest.approx(max(macro_f1s)) if macro_f1s else None)

    def expected_f1(yes: NDArray[Any]) -> float:
        whole = yes.sum() + prior_C.sum()
        return float(2 * (yes * prior_C).sum() / whole) if whole else 0.0

    chosen = scores._best_constant(prior_C).astype(float)
    assert expected_f1(chosen) == pytest.approx(max(map(expected_f1, constants)))
    micro = ("micro_f1", "micro_precision", "micro_recall", "jaccard", "exact_match", "hamming_loss", "accuracy")
    assert_alike({key: prior[key] for key in micro}, {key: found[tuple(chosen)][key] for key in micro})


def test_thresholds_do_not_move_the_prior() -> None:
    targets_NC, scores_NC = random_predictions(100, 3, 11)
    priors = [score(targets_NC, scores_NC, thresholds_C=[at] * 3)["prior"] for at in (0.0, 0.5, 1.0)]
    assert priors[0] == priors[1] == priors[2]
    assert priors[0]["micro_f1"] > 0


@pytest.mark.parametrize(
    ("prior", "yes"),
    [
        ([0.1, 0.7, 0.05], [False, True, False]),
        ([0.2, 0.2, 0.2], [True, True, True]),  # of rare labels all: a yes is needed to be right at all
        ([0.3, 0.0, 0.3], [True, False, True]),
        ([0.0, 0.0, 0.0], [False, False, False]),
    ],
)
def test_labels_that_the_prior_gives(prior: list[float], yes: list[bool]) -> None:
    assert scores._best_constant(np.array(prior)).tolist() == yes


def without_signal(seed: int, *, weak: float = 0.0) -> tuple[Arrays, NDArray[Any]]:
    """40 labels of different frequencies; the scores are those, noise, and perhaps a little of the truth."""
    generator = np.random.default_rng(seed)
    prior_C = np.linspace(0.08, 0.45, 40)
    targets_NC = (generator.random((1_500, 40)) < prior_C).astype(np.int8)
    scores_NC = prior_C + 0.02 * generator.standard_normal(targets_NC.shape) + weak * targets_NC
    return (targets_NC, scores_NC.clip(0, 1)), prior_C


@pytest.mark.parametrize("num_bootstrap", [0, 200])
def test_knowing_label_frequencies_alone_is_no_better_than_the_prior(num_bootstrap: int) -> None:
    arrays, prior_C = without_signal(0)
    result = score(*arrays, prior_C=prior_C, num_bootstrap=num_bootstrap)
    assert result["roc_auc"]["micro"] > 0.6
    assert result["prior"]["roc_auc"]["micro"] == pytest.approx(result["roc_auc"]["micro"], abs=0.03)
    assert result["verdict"]["beats_prior"] is False
    assert result["verdict"]["text"].startswith("no better than the prior: macro ROC-AUC 0.")
    assert f"{result['prior']['roc_auc']['micro']:.3f}" in result["verdict"]["text"]


@pytest.mark.parametrize("num_bootstrap", [0, 200])
def test_a_weak_signal_is_found(num_bootstrap: int) -> None:
    arrays, prior_C = without_signal(0, weak=0.002)
    result = score(*arrays, prior_C=prior_C, num_bootstrap=num_bootstrap)
    assert 0.51 < result["roc_auc"]["macro"] < 0.55
    assert result["verdict"]["beats_prior"] is True
    assert result["verdict"]["text"].startswith("better than the prior: macro ROC-AUC 0.5")


def test_labels_that_say_the_same_are_not_counted_as_many() -> None:
    """One label forty times over has an interval as wide as the label alone, not as forty."""
    targets_NC, scores_NC = random_predictions(300, 1, 3, signal=0.1, unknown=0)
    one = scores._rank_labels(targets_NC, scores_NC)
    forty = scores._rank_labels(np.repeat(targets_NC, 40, axis=1), np.repeat(scores_NC, 40, axis=1))
    assert scores._normal_interval(forty, 300) == pytest.approx(scores._normal_interval(one, 300))


def test_the_normal_interval_is_delongs() -> None:
    targets_NC, scores_NC = random_predictions(80, 1, 4)
    positives, negatives = (scores_NC[targets_NC == target].tolist() for target in (1, 0))

    def wins(one: float, other: float) -> float:
        return (one > other) + (one == other) / 2

    of_positives = [np.mean([wins(one, other) for other in negatives]) for one in positives]
    of_negatives = [np.mean([wins(one, other) for one in positives]) for other in negatives]
    variance = np.var(of_positives, ddof=1) / len(positives) + np.var(of_negatives, ddof=1) / len(negatives)
    low, high = scores._normal_interval(scores._rank_labels(targets_NC, scores_NC), 80)
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert (high + low) / 2 == pytest.approx(np.mean(of_positives))


# --- False alarms


@given(predictions(), st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), min_size=3, max_size=3))
@settings(deadline=None)
def test_false_alarms_tweet_by_tweet(arrays: Arrays, thresholds: list[float]) -> None:
    targets_NC, scores_NC = arrays
    # Every other tweet that nothing is known of; the rest of those may bear any label.
    negative_N = (targets_NC < 0).all(axis=1) & (np.arange(len(targets_NC)) % 2 == 0)
    alarms = [
        any(value >= at for value, at in zip(row, thresholds, strict=True))
        for is_negative, row in zip(negative_N.tolist(), scores_NC.tolist(), strict=True)
        if is_negative
    ]
    assert score(targets_NC, scores_NC, thresholds_C=thresholds, negative_N=negative_N)["false_alarms"] == {
        "num_tweets": len(alarms),
        "num_with_alarm": sum(alarms),
        "per_1000": pytest.approx(1_000 * np.mean(alarms)) if alarms else None,
    }


def test_negatives_change_nothing_but_false_alarms_and_the_number_of_rows() -> None:
    targets_NC, scores_NC = random_predictions(80, 3, 12, unknown=0)
    negative_NC = np.full((8, 3), -1, np.int8)
    scored_NC = np.full((8, 3), 0.1, np.float32)
    scored_NC[[0, 0, 5], [0, 2, 1]] = 0.5  # two tweets, three labels; the threshold itself is a yes
    without = score(targets_NC, scores_NC)
    both = np.concatenate([targets_NC, negative_NC]), np.concatenate([scores_NC, scored_NC])
    found = score(*both, negative_N=np.arange(88) >= 80)
    with pytest.raises(ValueError, match="negative_N"):
        score(*both, negative_N=np.arange(80) >= 80)
    assert without["false_alarms"] == {"num_tweets": 0, "num_with_alarm": 0, "per_1000": None}
    assert found["false_alarms"] == {"num_tweets": 8, "num_with_alarm": 2, "per_1000": 250.0}
    assert found["num_rows"] == 88
    same = without.keys() - {"false_alarms", "num_rows"}
    assert_alike({key: found[key] for key in same}, {key: without[key] for key in same})


# --- The bootstrap


@given(predictions(most_rows=10), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_tweet_drawn_twice_counts_as_two(arrays: Arrays, seed: int) -> None:
    targets_NC, scores_NC = arrays
    num_rows, thresholds_C = len(targets_NC), np.array([0.5, 0.3, 0.7])
    drawn_NR = np.concatenate(list(scores._draws(num_rows, 4, seed)), axis=1)
    assert drawn_NR.shape == (num_rows, 4) and (drawn_NR.sum(axis=0) == num_rows).all()
    ranking_C = scores._rank_labels(targets_NC, scores_NC)
    predictions = (targets_NC, scores_NC, thresholds_C)
    measured = scores._measure_draws(ranking_C, scores._merge(ranking_C), predictions, drawn_NR)
    for drawn_N, found in zip(drawn_NR.T, measured.T.tolist(), strict=True):
        rows = np.repeat(np.arange(num_rows), drawn_N.astype(int))
        whole = score(targets_NC[rows], scores_NC[rows], thresholds_C=thresholds_C)
        wanted = [whole["roc_auc"]["macro"], whole["roc_auc"]["micro"], whole["average_precision"]["macro"]]
        wanted += [whole["micro_f1"], whole["macro_f1"]]
        assert found == pytest.approx([math.nan if one is None else one for one in wanted], abs=1e-9, nan_ok=True)


def test_intervals_are_percentiles_of_the_rounds() -> None:
    targets_NC, scores_NC = random_predictions(150, 3, 5)
    result = score(targets_NC, scores_NC, num_bootstrap=400, seed=1)
    assert result["bootstrap_rounds"] == 400
    assert list(result["intervals"]) == [
        "roc_auc_macro", "roc_auc_micro", "average_precision_macro", "micro_f1", "macro_f1",
    ]  # fmt: skip
    points = {
        "roc_auc_macro": result["roc_auc"]["macro"], "roc_auc_micro": result["roc_auc"]["micro"],
        "average_precision_macro": result["average_precision"]["macro"],
        "micro_f1": result["micro_f1"], "macro_f1": result["macro_f1"],
    }  # fmt: skip
    for name, (low, high) in result["intervals"].items():
        assert low < points[name] < high, name
    normal = scores._normal_interval(scores._rank_labels(targets_NC, scores_NC), 150)
    assert result["intervals"]["roc_auc_macro"] == pytest.approx(normal, abs=0.015)
    assert score(targets_NC, scores_NC, num_bootstrap=400, seed=1) == result
    assert score(targets_NC, scores_NC, num_bootstrap=400, seed=2)["intervals"] != result["intervals"]
    assert score(targets_NC, scores_NC)["intervals"] == {}


def test_many_entries_have_fewer_rounds() -> None:
    assert scores._num_rounds(1_000, 886 * 11) == 1_000
    assert scores._num_rounds(1_000, 100_000 * 40) == 250
    assert scores._num_rounds(1_000, 2_300_000 * 40) == 50
    assert scores._num_rounds(20, 2_300_000 * 40) == 20


# --- Groups


def test_a_group_is_scored_as_its_tweets_alone() -> None:
    targets_NC, scores_NC = random_predictions(300, 3, 6)
    values = [["fr", "es", "es", None, f"rare {i}"][i % 5] if i >= 20 else "pt" for i in range(300)]
    thresholds_C = np.array([0.3, 0.4, 0.5])
    result = score(targets_NC, scores_NC, groups={"lang": values}, thresholds_C=thresholds_C)["groups"]["lang"]
    assert list(result) == ["es", "fr", NO_VALUE, FEW_ROWS]
    rare = [value for value in values if value not in ("es", "fr", None)]
    assert [one["num_rows"] for one in result.values()] == [112, 56, 56, len(rare)]
    for value, found in result.items():
        rows = np.array(
            [(one in rare) if value == FEW_ROWS else one == (None if value == NO_VALUE else value) for one in values]
        )
        alone = score(targets_NC[rows], scores_NC[rows], thresholds_C=thresholds_C)
        for key in ("num_rows", "micro_f1", "macro_f1"):
            assert found[key] == alone[key]
        assert found["roc_auc"] == {name: alone["roc_auc"][name] for name in ("macro", "micro")}
        assert found["average_precision"] == {"macro": alone["average_precision"]["macro"]}


def test_only_the_most_frequent_values_are_scored_one_by_one() -> None:
    num_values = MOST_VALUES + 5
    targets_NC, scores_NC = random_predictions(31 * num_values, 1, 7)
    values = [f"user {i % num_values}" for i in range(len(targets_NC))]
    result = score(targets_NC, scores_NC, groups={"user": values})["groups"]["user"]
    assert list(result) == [*(f"user {i}" for i in range(MOST_VALUES)), OTHER_VALUES]
    assert result[OTHER_VALUES]["num_rows"] == 5 * 31


# --- Curves


def test_curves_are_thinned_and_keep_their_ends() -> None:
    targets_NC, scores_NC = random_predictions(3_000, 2, 8)
    targets_NC[:, 1] = 0
    curves = roc_curves(targets_NC, scores_NC, ["one", "none"], points=50)
    assert list(curves) == ["one"]
    fpr, tpr, area = curves["one"]
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert len(fpr) == len(tpr) <= 50
    assert area == roc_auc(targets_NC[:, 0], scores_NC[:, 0])
    assert oracle.auc(fpr, tpr) == pytest.approx(area, abs=0.005)
    whole = oracle.roc_curve(*known(targets_NC[:, 0], scores_NC[:, 0]), drop_intermediate=False)
    points = set(zip(*(np.round(axis, 9).tolist() for axis in whole[:2]), strict=True))
    assert set(zip(np.round(fpr, 9).tolist(), np.round(tpr, 9).tolist(), strict=True)) <= points


def test_a_curve_of_few_scores_is_whole() -> None:
    targets_NC, scores_NC = np.array([[1], [0], [1]], np.int8), np.array([[0.9], [0.5], [0.5]])
    assert roc_curves(targets_NC, scores_NC, ["one"])["one"] == ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0], 0.75)


# --- What cannot be told, and what is refused


@pytest.mark.parametrize("fill", [-1, 0, 1])
@pytest.mark.parametrize("num_rows", [0, 4])
def test_nothing_to_tell_is_none_and_json(fill: int, num_rows: int) -> None:
    targets_NC, scores_NC = np.full((num_rows, 2), fill, np.int8), np.full((num_rows, 2), 0.5, np.float32)
    result = score(targets_NC, scores_NC, num_bootstrap=5, groups={"lang": ["es"] * num_rows})
    json.dumps(result, allow_nan=False)
    assert result["num_undefined"] == 2
    assert result["roc_auc"] == {"macro": None, "weighted": None, "micro": None}
    assert "roc_auc_macro" not in result["intervals"]
    assert result["verdict"] == {
        "beats_prior": False, "text": "cannot be told: no label has both a positive and a negative",
    }  # fmt: skip
    assert (result["jaccard"] is None) == (fill < 0 or not num_rows)
    assert (result["macro_f1"] is None) == (fill < 1 or not num_rows)
    assert roc_curves(targets_NC, scores_NC, ["one", "two"]) == {}


def test_results_are_plain_json() -> None:
    targets_NC, scores_NC = random_predictions(60, 3, 9)
    result = score(targets_NC, scores_NC, num_bootstrap=20, groups={"lang": ["es"] * 60})
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_wrong_values_are_named() -> None:
    targets_NC, scores_NC = random_predictions(10, 3, 10)

    def refuse(match: str, targets: Any = targets_NC, values: Any = scores_NC, **arguments: Any) -> None:
        chosen = {"labels": LABELS, "prior_C": PRIOR, "num_bootstrap": 0} | arguments
        with pytest.raises(ValueError, match=match):
            score_labels(targets, values, **chosen)

    refuse("shape", values=scores_NC[:5])
    refuse("for labels one, two", labels=["one", "two"])
    refuse("for labels one, one", labels=["one", "one", "two"])
    refuse("1, 0 and -1", targets=targets_NC + 1)
    refuse("1, 0 and -1", targets=targets_NC.astype(np.float32))
    refuse("finite", values=np.full((10, 3), np.nan))
    refuse("probabilities", values=scores_NC + 1)
    refuse("priors", prior_C=[0.5, 0.5])
    refuse("priors", prior_C=[0.5, 0.5, math.nan])
    refuse("priors", prior_C=[0.5, 0.5, 2])
    refuse("thresholds", thresholds_C=[0.5])
    refuse("thresholds", thresholds_C=[0.5, 0.5, math.inf])
    refuse("9 values of lang for 10 tweets", groups={"lang": ["es"] * 9})
    refuse("num_bootstrap is -1", num_bootstrap=-1)
    with pytest.raises(ValueError, match="those of one label"):
        roc_auc(targets_NC, scores_NC)
    with pytest.raises(ValueError, match="tweets by labels"):
        micro_roc_auc(targets_NC[:, 0], scores_NC[:, 0])
    with pytest.raises(ValueError, match="tweets by labels"):
        macro_roc_auc(targets_NC[:, :0], scores_NC[:, :0])
    with pytest.raises(ValueError, match="2 labels"):
        roc_curves(targets_NC, scores_NC, ["one", "two"])


def test_a_good_ranking_with_bad_thresholds_is_said():
    targets_NC = np.tile(np.array([[1], [0]], np.int8), (100, 1))
    scores_NC = np.where(targets_NC == 1, 0.6, 0.4).astype(np.float32)
    good, bad = (
        score_labels(targets_NC, scores_NC, ["a"], prior_C=[0.5], thresholds_C=[at], num_bootstrap=50)["verdict"]
        for at in (0.5, 0.9)
    )
    assert good["beats_prior"]
    assert bad["beats_prior"]
    assert "no better: see macro F1" not in good["text"]
    assert bad["text"].endswith("at these thresholds the labels given are no better: see macro F1")
