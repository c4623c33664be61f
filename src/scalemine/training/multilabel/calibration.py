"""Thresholds of decision and calibrated probabilities, fitted on the development set alone.

Unknown targets (-1) are left out of everything.

Shapes: N tweets, C labels, M known entries (of a label, of a group of labels, or of all), T distinct scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

Floats = NDArray[np.float64]
Method = Literal["none", "temperature", "platt"]

NUM_BINS: Final = 15
# Positives that a label needs for a threshold of its own.
MIN_POSITIVES: Final = 50
LEAST_SLOPE: Final = 0.05
MOST_SLOPE: Final = 20.0
# A model may give 0 or 1, whose logits are no numbers.
_LEAST: Final = 1e-6


def best_thresholds(
    targets_NC: NDArray[Any], scores_NC: NDArray[Any], *, min_positives: int = MIN_POSITIVES, default: float
) -> Floats:
    """Return per label the threshold of the highest F1, ``(C,)``: a score as high or higher is a yes.

    A threshold lies midway between two neighbouring scores, or between the lowest and 0; among equals the highest is
    taken. A label with few positives has that of the highest micro F1 of all labels together: its own would be chance.

    Args:
        targets_NC: 1, 0 or -1 for unknown.
        scores_NC: Probabilities.
        min_positives: Positives that a label needs for a threshold of its own.
        default: The threshold where no label has any positive.

    Raises:
        ValueError: Shapes differ, a target is none of 1, 0 and -1, or a score is not in 0..1.
    """
    targets_NC, scores_NC = check_entries(targets_NC, scores_NC)
    check_probabilities(scores_NC)
    num_positive_C = np.count_nonzero(targets_NC == 1, axis=0)
    own_C = num_positive_C >= max(min_positives, 1)
    thresholds_C = np.full(len(own_C), default, np.float64)
    if num_positive_C.any() and not own_C.all():
        thresholds_C[:] = _best_threshold(targets_NC, scores_NC)
    for label in np.flatnonzero(own_C):
        thresholds_C[label] = _best_threshold(targets_NC[:, label], scores_NC[:, label])
    return thresholds_C


def _best_threshold(targets: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the threshold of the highest F1 of all entries together, of which one is positive at least."""
    known = targets >= 0
    scores_M, positive_M = scores[known], targets[known] == 1
    order_M = np.argsort(-scores_M)
    scores_M, positive_M = scores_M[order_M], positive_M[order_M]
    last_T = np.append(np.flatnonzero(scores_M[1:] != scores_M[:-1]), len(scores_M) - 1)
    num_correct_T = np.cumsum(positive_M)[last_T]
    f1_T = 2 * num_correct_T / (last_T + 1 + num_correct_T[-1])
    cut = last_T[np.argmax(f1_T)]  # the first of equals, so the highest
    above, below = float(scores_M[cut]), float(scores_M[cut + 1]) if cut + 1 < len(scores_M) else 0.0
    midway = (above + below) / 2
    return midway if midway > below else above  # of two neighbours among float64 nothing lies between


def ece(targets_N: NDArray[Any], scores_N: NDArray[Any], bins: int = NUM_BINS) -> float:
    """Return the expected calibration error over bins of equal mass: 0 is perfect, 1 the worst.

    Equal scores share a bin, so that the order of the rows does not matter; bins are then only nearly equal.

    Args:
        targets_N: 1, 0 or -1 for unknown.
        scores_N: Probabilities.
        bins: How many.

    Raises:
        ValueError: Lengths differ, a target is none of 1, 0 and -1, a score is not in 0..1, no target is known, or
            there is no bin.

    Source: Naeini, Cooper and Hauskrecht 2015; bins of equal mass after Nguyen and O'Connor 2015.
    """
    targets_N, scores_N = check_entries(targets_N, scores_N)
    check_probabilities(scores_N)
    known_N = targets_N >= 0
    scores_M, positive_M = scores_N[known_N], targets_N[known_N] == 1
    num_known = len(scores_M)
    if not num_known or bins < 1:
        raise ValueError(f"{num_known} known targets in {bins} bins; expected one of each at least")
    # The last of each bin but the highest: with fewer entries than bins some are empty.
    last = np.ceil(np.arange(1, bins) * num_known / bins).astype(np.int64) - 1
    edges = np.partition(scores_M, last)[last] if bins > 1 else scores_M[:0]
    bin_M = np.searchsorted(edges, scores_M)
    excess = np.bincount(bin_M, weights=positive_M, minlength=bins) - np.bincount(bin_M, scores_M, minlength=bins)
    return float(np.abs(excess).sum() / num_known)


def logits_of(scores_NC: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of probabilities, which are numbers also where those are 0 or 1."""
    return np.asarray(logit(scores_NC.clip(_LEAST, 1 - _LEAST)))


def probabilities_of(logits_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sigmoid of logits, each computed alone: torch rounds otherwise at the end of a tensor."""
    return np.asarray(expit(logits_NC), np.float32)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probabilities of logits: sigmoid(slope z + offset), label by label.

    Attributes:
        slope_C: Above 0, so that no ranking changes.
        offset_C: Of the logit.
    """

    slope_C: Floats
    offset_C: Floats

    def __post_init__(self) -> None:
        finite = np.isfinite(self.slope_C).all() and np.isfinite(self.offset_C).all()
        if self.slope_C.ndim != 1 or self.slope_C.shape != self.offset_C.shape or not finite:
            raise ValueError(f"slopes {self.slope_C}, offsets {self.offset_C}: expected a number of each per label")
        if not (self.slope_C > 0).all():
            raise ValueError(f"slopes {self.slope_C}: expected above 0")

    @classmethod
    def identity(cls, num_labels: int) -> Calibration:
        """Return what leaves the sigmoid of the logits as it is."""
        return cls(np.ones(num_labels), np.zeros(num_labels))

    def apply(self, logits_NC: NDArray[Any]) -> NDArray[np.float32]:
        """Return the probabilities of logits, ``(N, C)``.

        Raises:
            ValueError: The number of labels is another.
        """
        if logits_NC.ndim != 2 or logits_NC.shape[1] != len(self.slope_C):
            raise ValueError(f"logits of shape {logits_NC.shape} for {len(self.slope_C)} labels")
        scores_NC = np.empty(logits_NC.shape, np.float32)
        for label, (slope, offset) in enumerate(zip(self.slope_C, self.offset_C, strict=True)):
            scores_NC[:, label] = expit(slope * logits_NC[:, label].astype(np.float64) + offset)
        return scores_NC


def fit_calibration(
    logits_NC: NDArray[Any],
    targets_NC: NDArray[Any],
    method: Method,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    min_positives: int = 20,
) -> Calibration:
    """Return the calibration of the lowest log loss; a group with few positives or negatives keeps its sigmoid.

    Args:
        logits_NC: Outputs of the model.
        targets_NC: 1, 0 or -1 for unknown.
        method: ``temperature`` fits the slope alone, ``platt`` the offset too, ``none`` neither.
        groups: Labels that share slope and offset, such as nested ones, whose order is kept thereby; a label that is
            in none is a group of its own.
        min_positives: Positives, and negatives, that a group needs.

    Raises:
        ValueError: Shapes differ, a target is none of 1, 0 and -1, a logit is not finite, the method is unknown, a
            group is empty, or a label is in two groups or does not exist.

    Source: Platt 1999 with the targets of Lin, Lin and Weng 2007; temperature: Guo et al. 2017.
    """
    targets_NC, logits_NC = check_entries(targets_NC, logits_NC)
    if method not in ("none", "temperature", "platt"):
        raise ValueError(f"method is {method!r}; expected none, temperature or platt")
    num_labels = logits_NC.shape[1]
    slope_C, offset_C = np.ones(num_labels), np.zeros(num_labels)
    for group in _complete_groups(groups or [], num_labels):
        known = targets_NC[:, group] >= 0
        positive_M, logits_M = targets_NC[:, group][known] == 1, logits_NC[:, group][known].astype(np.float64)
        num_positive = np.count_nonzero(positive_M)
        if method != "none" and min(num_positive, len(positive_M) - num_positive) >= max(min_positives, 1):
            slope_C[group], offset_C[group] = _fit(logits_M, positive_M, with_offset=method == "platt")
    return Calibration(slope_C, offset_C)


def _complete_groups(groups: Sequence[Sequence[int]], num_labels: int) -> list[list[int]]:
    named = [label for group in groups for label in group]
    if len(set(named)) < len(named) or not set(named) <= set(range(num_labels)) or not all(map(len, groups)):
        raise ValueError(f"groups {groups}: expected each of the labels 0 to {num_labels - 1} once at most")
    return [*map(list, groups), *([label] for label in range(num_labels) if label not in named)]


def _fit(logits_M: Floats, positive_M: NDArray[np.bool_], *, with_offset: bool) -> tuple[float, float]:
    """Return slope and offset of the lowest log loss within bounds; the problem is convex.

    Logits are brought to mean 0 and deviation 1 first, so that the steps of the search fit whatever the model gives.
    """
    target_M = positive_M.astype(np.float64)
    if with_offset:
        num_positive = np.count_nonzero(positive_M)
        num_negative = len(positive_M) - num_positive
        target_M = np.where(positive_M, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    centre = logits_M.mean() if with_offset else 0.0
    scale = np.sqrt(np.mean((logits_M - centre) ** 2)) or 1.0  # all equal: any slope will do, and it stays 1
    scaled_M = (logits_M - centre) / scale

    def loss_and_gradient(point: Floats) -> tuple[float, Floats]:
        fitted_M = point[0] * scaled_M + point[1]
        error_M = expit(fitted_M) - target_M
        loss = np.mean(np.logaddexp(0, fitted_M) - target_M * fitted_M)
        return float(loss), np.array([np.mean(error_M * scaled_M), np.mean(error_M)])

    found = minimize(
        loss_and_gradient,
        x0=(scale, centre),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST_SLOPE * scale, MOST_SLOPE * scale), (None, None) if with_offset else (0.0, 0.0)],
        options={"ftol": 1e-13, "gtol": 1e-9, "maxiter": 1_000},
    )
    slope = float(np.clip(found.x[0] / scale, LEAST_SLOPE, MOST_SLOPE))
    return slope, float(found.x[1] - slope * centre) if with_offset else 0.0


def check_entries(targets: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return targets and scores (or logits), of one shape, as arrays that all else can rely on.

    Raises:
        ValueError: Shapes differ, a target is none of 1, 0 and -1, or a score is not finite.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape:
        raise ValueError(f"targets of shape {targets.shape} for scores of shape {scores.shape}")
    if targets.dtype.kind not in "iub" or (targets.size and not -1 <= targets.min() <= targets.max() <= 1):
        raise ValueError(f"targets of type {targets.dtype}: expected 1, 0 and -1 alone")
    if scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise ValueError(f"scores of type {scores.dtype}: expected finite floating point numbers")
    return targets.astype(np.int8, copy=False), scores


def check_probabilities(scores: NDArray[Any]) -> None:
    """Check that scores are in 0..1.

    Raises:
        ValueError: One is not.
    """
    if scores.size and not 0 <= scores.min() <= scores.max() <= 1:
        raise ValueError(f"scores from {scores.min()} to {scores.max()}: expected probabilities")
