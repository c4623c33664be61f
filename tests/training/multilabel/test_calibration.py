from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from scalemine.training.multilabel.calibration import (
    LEAST_SLOPE,
    MOST_SLOPE,
    Calibration,
    best_thresholds,
    ece,
    fit_calibration,
    logits_of,
    probabilities_of,
)

Arrays = tuple[NDArray[Any], NDArray[Any]]


@st.composite
def predictions(draw: st.DrawFn, most_rows: int = 14, num_labels: int = 3) -> Arrays:
    """Targets and scores; few distinct scores, so that many are equal."""
    num_rows = draw(st.integers(1, most_rows))
    cells = num_rows * num_labels
    targets = draw(st.lists(st.sampled_from([0, 0, 1, 1, -1]), min_size=cells, max_size=cells))
    scores = draw(st.lists(st.integers(0, 8), min_size=cells, max_size=cells))
    return (
        np.array(targets, np.int8).reshape(num_rows, num_labels),
        np.array(scores, np.float32).reshape(num_rows, num_labels) / 8,
    )


# --- Thresholds


def f1_at(targets: NDArray[Any], scores: NDArray[Any], threshold: float) -> float:
    known = targets >= 0
    return float(f1_score(targets[known] == 1, scores[known] >= threshold, zero_division=0))


def best_by_trying(targets: NDArray[Any], scores: NDArray[Any]) -> float:
    """Every cut between two distinct known scores, the highest first."""
    values = sorted({float(value) for value in scores[targets >= 0]}, reverse=True)
    cuts = [(above + below) / 2 for above, below in zip(values, [*values[1:], 0.0], strict=True)]
    return max(cuts, key=lambda cut: f1_at(targets, scores, cut))


@given(predictions(), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_thresholds_are_the_best_of_all_cuts(arrays: Arrays, min_positives: int) -> None:
    targets_NC, scores_NC = arrays
    found_C = best_thresholds(targets_NC, scores_NC, min_positives=min_positives, default=0.3)
    assert found_C.dtype == np.float64
    for label, found in enumerate(found_C):
        targets_N, scores_N = targets_NC[:, label], scores_NC[:, label]
        if np.count_nonzero(targets_N == 1) >= min_positives:
            assert found == best_by_trying(targets_N, scores_N)
        elif (targets_NC == 1).any():
            assert found == best_by_trying(targets_NC.ravel(), scores_NC.ravel())
        else:
            assert found == 0.3


def test_a_threshold_lies_midway_and_the_highest_of_equals_is_taken() -> None:
    # Cuts after 0.9 (F1 2/3) and after 0.25 (4/5) and after 0.125 (2/3): the second; then a tie.
    targets_N = np.array([1, 0, 1, 0], np.int8)
    assert best_thresholds(targets_N[:, None], np.array([[0.875], [0.5], [0.25], [0.125]]), min_positives=1, default=0)[
        0
    ] == pytest.approx((0.25 + 0.125) / 2)
    tie_N = np.array([1, 0, 0, 1], np.int8)  # F1 is 2/3 after the first and after the last
    assert best_thresholds(tie_N[:, None], np.array([[0.9], [0.5], [0.3], [0.2]]), min_positives=1, default=0)[
        0
    ] == pytest.approx(0.7)


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    high = np.nextafter(low, 1)
    targets_NC, scores_NC = np.array([[1], [0]], np.int8), np.array([[high], [low]])
    threshold = best_thresholds(targets_NC, scores_NC, min_positives=1, default=0.5)
    assert (scores_NC >= threshold).tolist() == [[True], [False]]


def test_a_rare_label_takes_the_threshold_of_all_together() -> None:
    generator = np.random.default_rng(0)
    targets_NC = (generator.random((400, 2)) < [0.4, 0.01]).astype(np.int8)
    targets_NC[:3, 1] = 1
    scores_NC = expit(2 * targets_NC - 1 + generator.standard_normal((400, 2)))
    first, second = best_thresholds(targets_NC, scores_NC, default=0.5)
    assert first == best_by_trying(targets_NC[:, 0], scores_NC[:, 0])
    assert second == best_by_trying(targets_NC.ravel(), scores_NC.ravel())
    assert second != best_by_trying(targets_NC[:, 1], scores_NC[:, 1])


# --- Expected calibration error


def ece_by_bins(targets: list[int], scores: list[float], bins: int) -> float:
    """Bins of equal numbers of entries that have distinct scores."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    parts = [order[len(order) * k // bins : len(order) * (k + 1) // bins] for k in range(bins)]
    return sum(abs(sum(targets[i] - scores[i] for i in part)) for part in parts) / len(scores)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_as_by_bins(bins: int) -> None:
    generator = np.random.default_rng(bins)
    scores_N = generator.permutation(np.linspace(0.01, 0.99, 300))
    targets_N = (generator.random(300) < scores_N**2).astype(np.int8)
    expected = ece_by_bins(targets_N.tolist(), scores_N.tolist(), bins)
    assert ece(targets_N, scores_N, bins) == pytest.approx(expected, abs=1e-12)


@given(predictions(num_labels=1), st.integers(1, 20), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_ece_does_not_depend_on_order_or_on_unknown_entries(arrays: Arrays, bins: int, random: Any) -> None:
    targets_N, scores_N = (array[:, 0] for array in arrays)
    if (targets_N < 0).all():
        with pytest.raises(ValueError, match="0 known targets"):
            ece(targets_N, scores_N, bins)
        return
    found = ece(targets_N, scores_N, bins)
    known = np.flatnonzero(targets_N >= 0).tolist()
    random.shuffle(known)
    assert 0 <= found <= 1
    assert ece(targets_N[known], scores_N[known], bins) == pytest.approx(found, abs=1e-6)


def test_ece_of_constant_scores_is_their_distance_from_the_share() -> None:
    targets_N = np.array([1, 0, 0, 0], np.int8)
    assert ece(targets_N, np.full(4, 0.25)) == 0
    assert ece(targets_N, np.full(4, 0.75)) == pytest.approx(0.5)


# --- Calibration


def drawn(slope: Any, offset: Any, num_rows: int = 20_000, num_labels: int = 1, seed: int = 0) -> Arrays:
    """Logits, and targets whose logit is slope times theirs plus offset."""
    generator = np.random.default_rng(seed)
    logits_NC = generator.normal(0.5, 2, (num_rows, num_labels)).astype(np.float32)
    targets_NC = (generator.random(logits_NC.shape) < expit(slope * logits_NC + offset)).astype(np.int8)
    return logits_NC, targets_NC


def test_platt_recovers_slope_and_offset() -> None:
    slope_C, offset_C = np.array([0.4, 1.0, 2.5]), np.array([-1.0, 0.0, 1.5])
    fitted = fit_calibration(*drawn(slope_C, offset_C, num_labels=3), "platt")
    assert fitted.slope_C == pytest.approx(slope_C, rel=0.08)
    assert fitted.offset_C == pytest.approx(offset_C, abs=0.1)


def test_temperature_recovers_the_slope() -> None:
    fitted = fit_calibration(*drawn(0.5, 0.0), "temperature")
    assert fitted.slope_C == pytest.approx([0.5], rel=0.05)
    assert fitted.offset_C.tolist() == [0.0]


@pytest.mark.parametrize(("method", "with_offset"), [("platt", True), ("temperature", False)])
def test_the_optimum_is_that_of_logistic_regression(method: Any, with_offset: bool) -> None:
    logits_NC, targets_NC = drawn(0.7, -0.4 if with_offset else 0.0, num_rows=3_000)
    oracle = LogisticRegression(C=np.inf, fit_intercept=with_offset, tol=1e-10, max_iter=1_000)
    weights = None
    inputs, wanted = logits_NC.astype(np.float64), targets_NC[:, 0]
    if with_offset:  # a target between 0 and 1 is a row of each class, weighted
        num_positive = int(wanted.sum())
        soft = np.where(wanted == 1, (num_positive + 1) / (num_positive + 2), 1 / (len(wanted) - num_positive + 2))
        inputs, weights = np.concatenate([inputs, inputs]), np.concatenate([soft, 1 - soft])
        wanted = np.repeat([1, 0], len(wanted))
    oracle.fit(inputs, wanted, sample_weight=weights)
    fitted = fit_calibration(logits_NC, targets_NC, method)
    assert fitted.slope_C == pytest.approx(oracle.coef_[0], rel=1e-4)
    assert fitted.offset_C == pytest.approx(np.ravel(oracle.intercept_), abs=1e-4)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_log_loss_and_calibration_error_fall(method: Any) -> None:
    logits_NC, targets_NC = drawn(0.4, -1.5)
    before_NC = Calibration.identity(1).apply(logits_NC)
    after_NC = fit_calibration(logits_NC, targets_NC, method).apply(logits_NC)
    assert log_loss(targets_NC[:, 0], after_NC[:, 0]) < log_loss(targets_NC[:, 0], before_NC[:, 0])
    assert ece(targets_NC[:, 0], after_NC[:, 0]) < ece(targets_NC[:, 0], before_NC[:, 0])


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize("sign", [1, -1])
def test_separable_data_stay_within_bounds(method: Any, sign: int) -> None:
    logits_NC = np.linspace(-3, 3, 200)[:, None]
    targets_NC = (sign * logits_NC > 0).astype(np.int8)
    fitted = fit_calibration(logits_NC, targets_NC, method)
    assert LEAST_SLOPE <= fitted.slope_C[0] <= MOST_SLOPE
    assert np.isfinite(fitted.offset_C).all()
    if sign < 0:  # the model is wrong throughout: as flat as allowed, and never turned round
        assert fitted.slope_C[0] == LEAST_SLOPE
    else:
        assert fitted.slope_C[0] > 2


def test_logits_that_are_all_equal_become_the_share_of_positives() -> None:
    targets_NC = np.repeat(np.array([[1], [0]], np.int8), [100, 300], axis=0)
    fitted = fit_calibration(np.full((400, 1), 3.0), targets_NC, "platt")
    assert fitted.apply(np.full((1, 1), 3.0))[0, 0] == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_labels_of_a_group_share_and_keep_their_order(method: Any) -> None:
    logits_NC, _ = drawn(1.0, 0.0, num_rows=2_000, num_labels=4)
    nested_NC = np.sort(logits_NC, axis=1)
    generator = np.random.default_rng(1)
    targets_NC = (generator.random(nested_NC.shape) < expit(nested_NC * [0.3, 1, 2, 1] - 1)).astype(np.int8)
    fitted = fit_calibration(nested_NC, targets_NC, method, groups=[[2, 0, 1]])
    assert len(set(fitted.slope_C[:3])) == 1 and len(set(fitted.offset_C[:3])) == 1
    assert fitted.slope_C[3] != fitted.slope_C[0]
    assert (np.diff(fitted.apply(nested_NC)[:, :3], axis=1) >= 0).all()
    pooled = fit_calibration(nested_NC[:, :3].reshape(-1, 1), targets_NC[:, :3].reshape(-1, 1), method)
    assert fitted.slope_C[0] == pytest.approx(pooled.slope_C[0], rel=1e-4)
    alone = fit_calibration(nested_NC[:, 3:], targets_NC[:, 3:], method)
    assert fitted.slope_C[3] == pytest.approx(alone.slope_C[0], rel=1e-6)


def test_few_positives_or_negatives_keep_the_sigmoid() -> None:
    logits_NC, targets_NC = drawn(0.3, 1.0, num_rows=400, num_labels=3)
    targets_NC[:, 0] = np.where(np.arange(400) < 19, 1, 0)
    targets_NC[:, 1] = np.where(np.arange(400) < 19, 0, 1)
    fitted = fit_calibration(logits_NC, targets_NC, "platt")
    assert fitted.slope_C[:2].tolist() == [1, 1] and fitted.offset_C[:2].tolist() == [0, 0]
    assert fitted.slope_C[2] < 0.6
    assert fit_calibration(logits_NC, targets_NC, "platt", min_positives=19).slope_C[0] != 1
    none = fit_calibration(logits_NC, targets_NC, "none")
    assert none.slope_C.tolist() == [1, 1, 1] and none.offset_C.tolist() == [0, 0, 0]


def test_unknown_entries_are_as_if_absent() -> None:
    logits_NC, targets_NC = drawn(0.6, -0.5, num_rows=500)
    unknown_NC = np.where(np.arange(500)[:, None] % 3 == 0, -1, targets_NC).astype(np.int8)
    kept = np.flatnonzero(unknown_NC[:, 0] >= 0)
    whole, part = (
        fit_calibration(*arrays, "platt") for arrays in ((logits_NC, unknown_NC), (logits_NC[kept], targets_NC[kept]))
    )
    assert whole.slope_C == pytest.approx(part.slope_C) and whole.offset_C == pytest.approx(part.offset_C)


def test_probabilities_are_sigmoids_in_float32() -> None:
    logits_NC = np.array([[-1.0, 2.0], [0.5, -800.0]], np.float32)
    scores_NC = Calibration(np.array([2.0, 0.5]), np.array([1.0, -1.0])).apply(logits_NC)
    assert scores_NC.dtype == np.float32
    assert scores_NC == pytest.approx(expit(logits_NC * [2.0, 0.5] + [1.0, -1.0]))
    identity_NC = Calibration.identity(2).apply(logits_NC)
    assert logit(identity_NC[0]) == pytest.approx(logits_NC[0], rel=1e-5)


# --- What is refused


def test_wrong_values_are_named() -> None:
    targets_NC, logits_NC = np.array([[1, 0]], np.int8), np.array([[0.5, 0.5]])
    for groups in ([[0, 0]], [[0], [0, 1]], [[2]], [[-1]], [[]]):
        with pytest.raises(ValueError, match="each of the labels 0 to 1 once"):
            fit_calibration(logits_NC, targets_NC, "platt", groups=groups)
    with pytest.raises(ValueError, match="isotonic"):
        fit_calibration(logits_NC, targets_NC, "isotonic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        fit_calibration(logits_NC[:, :1], targets_NC, "platt")
    with pytest.raises(ValueError, match="finite"):
        fit_calibration(np.array([[np.nan, 0.0]]), targets_NC, "platt")
    with pytest.raises(ValueError, match="1, 0 and -1"):
        best_thresholds(np.array([[2, 0]]), logits_NC, default=0.5)
    with pytest.raises(ValueError, match="1, 0 and -1"):
        best_thresholds(np.array([[1.0, np.nan]]), logits_NC, default=0.5)
    with pytest.raises(ValueError, match="probabilities"):
        best_thresholds(targets_NC, logits_NC + 1, default=0.5)
    with pytest.raises(ValueError, match="probabilities"):
        ece(targets_NC[0], np.array([-0.5, 0.5]))
    with pytest.raises(ValueError, match="0 bins"):
        ece(targets_NC[0], logits_NC[0], bins=0)
    with pytest.raises(ValueError, match="above 0"):
        Calibration(np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="of each per label"):
        Calibration(np.ones(2), np.zeros(1))
    with pytest.raises(ValueError, match="for 3 labels"):
        Calibration.identity(3).apply(logits_NC)


def test_logits_of_probabilities_are_numbers_everywhere() -> None:
    scores = np.array([[0.0, 1.0, 0.25]], np.float32)
    found = logits_of(scores)
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(-found[0, 1], rel=1e-2)
    assert found[0, 2] == pytest.approx(np.log(1 / 3))


def test_a_sigmoid_does_not_depend_on_how_many_there_are() -> None:
    logits_NC = np.random.default_rng(0).normal(0, 4, (64, 5)).astype(np.float32)
    whole_NC = probabilities_of(logits_NC)
    assert whole_NC == pytest.approx(1 / (1 + np.exp(-logits_NC.astype(np.float64))), abs=1e-6)
    assert all(np.array_equal(probabilities_of(logits_NC[:rows]), whole_NC[:rows]) for rows in range(64))
