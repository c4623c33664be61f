"""Scores of a multilabel classifier: how well it ranks and decides, and whether it knows more than label frequencies.

Unknown targets (-1) are left out of every measure but the false alarms; equal scores count half where they are ranked,
as in scikit-learn.

- ROC-AUC and average precision are defined for labels with a positive and a negative; the others are None, counted as
  ``num_undefined``, and averaged nowhere. Macro: the mean over labels; weighted: by their positives; micro: all
  entries (pairs of tweet and label) ranked together. Micro rewards whoever knows which labels are frequent.
- F1, precision and recall of a label need a positive; with nothing else to divide by they are 0. Macro F1 is the mean
  over the labels that have one, micro counts all entries together.
- Jaccard: |gold and predicted| / |gold or predicted|, 1 where both are empty, the mean over tweets (the "accuracy" of
  SemEval-2018 E-c). Exact match: the share of tweets whose known labels are all right. A tweet without a known label
  counts in neither. Accuracy: the share of known entries that are right, which is one less the Hamming loss.
- False alarms: tweets without a known label, which mined and random negatives are, that are given a label all the same.
- The prior knows how frequent each label is in training, whatever the tweet says. It ranks by that. No threshold
  decides, but every tweet is given the same labels: all of them for macro F1, and for the other measures those that
  promise the highest micro F1.

Shapes: N tweets, C labels, M known entries from the highest score to the lowest (of a label, or of all labels), T
distinct scores, R rounds of the bootstrap, V tweets of one value of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scalemine.training.multilabel.calibration import check_entries, check_probabilities, ece

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FEWEST_ROWS: Final = 30
MOST_VALUES: Final = 50
FEW_ROWS: Final = f"(fewer than {FEWEST_ROWS} rows)"
OTHER_VALUES: Final = f"(beyond the {MOST_VALUES} most frequent)"
NO_VALUE: Final = "(none)"
CHANCE: Final = 0.5  # ROC-AUC of what does not read the tweet

_WITH_INTERVAL: Final = ("roc_auc_macro", "roc_auc_micro", "average_precision_macro", "micro_f1", "macro_f1")
_TAIL: Final = 0.025  # on either side of a 95 % interval
_Z: Final = NormalDist().inv_cdf(1 - _TAIL)
# The bootstrap has fewer rounds where there are many entries, but so many in any case: intervals are narrow then.
_MOST_DRAWN: Final = 1_000_000_000
_FEWEST_ROUNDS: Final = 50
_DRAWS_PER_CHUNK: Final = 1 << 21
_DRAWS_PER_BLOCK: Final = 1 << 17


def score_labels(
    targets_NC: NDArray[Any],
    scores_NC: NDArray[Any],
    labels: Sequence[str],
    *,
    prior_C: Sequence[float] | NDArray[Any],
    thresholds_C: Sequence[float] | NDArray[Any] | None = None,
    negative_N: NDArray[np.bool_] | None = None,
    groups: Mapping[str, Sequence[str | None]] = {},  # noqa: B006 - a mapping is not written to
    num_bootstrap: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of predictions, ready for JSON; None is what cannot be told.

    Args:
        targets_NC: 1, 0 or -1 for unknown.
        scores_NC: Probabilities.
        labels: Their names.
        prior_C: Share of positives of each label in the rows of training.
        thresholds_C: A score as high or higher is a yes; 0.5 if None.
        negative_N: Which tweets are mined or random negatives, on which any label is a false alarm; None: none is.
        groups: For each column, such as the language, its value per tweet; scored value by value.
        num_bootstrap: Rounds of the bootstrap over tweets; ``bootstrap_rounds`` are made, fewer where there are many
            entries. Without any there are no ``intervals``, and the verdict relies on an approximation.
        seed: Of the bootstrap.

    Raises:
        ValueError: Shapes or lengths differ, labels repeat, a target is none of 1, 0 and -1, a score, prior or
            threshold is not in its range, or the number of rounds is below 0.
    """
    targets_NC, scores_NC = check_entries(targets_NC, scores_NC)
    prior_C = np.asarray(prior_C, np.float64)
    thresholds_C = np.full(len(labels), 0.5) if thresholds_C is None else np.asarray(thresholds_C, np.float64)
    _check(targets_NC, scores_NC, labels, prior_C, thresholds_C, groups, num_bootstrap)
    if negative_N is not None and negative_N.shape != (len(targets_NC),):
        raise ValueError(f"negative_N of shape {negative_N.shape} for {len(targets_NC)} tweets")
    num_rows = len(targets_NC)
    ranking_C = _rank_labels(targets_NC, scores_NC)
    merged = _merge(ranking_C)
    areas = _areas_of(ranking_C, merged)
    counts_C3 = _counts(targets_NC, scores_NC, thresholds_C)
    per_label = _per_label(targets_NC, scores_NC, labels, ranking_C, counts_C3, prior_C, thresholds_C)
    rounds = _num_rounds(num_bootstrap, targets_NC.size) if num_rows else 0
    intervals = _intervals(ranking_C, merged, (targets_NC, scores_NC, thresholds_C), rounds, seed)
    result = {
        "num_rows": num_rows,
        "num_known": len(merged.rows_M),
        "num_undefined": sum(not one.defined for one in ranking_C),
        **areas,
        **_decisions(targets_NC, scores_NC, thresholds_C, counts_C3),
        "ece": _mean([one["ece"] for one in per_label.values()]),
        "brier": _mean([one["brier"] for one in per_label.values()]),
        "false_alarms": _false_alarms(negative_N, scores_NC, thresholds_C),
        "prior": _score_prior(targets_NC, ranking_C, prior_C),
        "per_label": per_label,
        "groups": {name: _score_groups(targets_NC, scores_NC, thresholds_C, values) for name, values in groups.items()},
        "intervals": intervals,
        "bootstrap_rounds": rounds,
    }
    return result | {"verdict": _verdict(result, ranking_C)}


def roc_auc(targets_N: NDArray[Any], scores_N: NDArray[Any]) -> float | None:
    """Return the chance that a positive is scored above a negative, ties half; None without one of each.

    Args:
        targets_N: 1, 0 or -1 for unknown.
        scores_N: Higher is more likely; any finite numbers.

    Raises:
        ValueError: Lengths differ, a target is none of 1, 0 and -1, or a score is not finite.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    return _or_none(_areas(_rank(*check_entries(targets_N, scores_N)))[0])


def average_precision(targets_N: NDArray[Any], scores_N: NDArray[Any]) -> float | None:
    """Return the mean precision at the positives, equal scores taken together; None without a positive and a negative.

    Args:
        targets_N: 1, 0 or -1 for unknown.
        scores_N: Higher is more likely; any finite numbers.

    Raises:
        ValueError: Lengths differ, a target is none of 1, 0 and -1, or a score is not finite.

    Source: Zhu 2004; the sum over thresholds of precision times the step of recall, without interpolation.
    """
    return _or_none(_areas(_rank(*check_entries(targets_N, scores_N)))[1])


def macro_roc_auc(targets_NC: NDArray[Any], scores_NC: NDArray[Any]) -> float:
    """Return the mean ROC-AUC of the labels that have one, 0.5 where none does: by this an epoch can be chosen.

    Raises:
        ValueError: As ``roc_auc``.
    """
    areas = [_areas(one)[0] for one in _rank_labels(*check_entries(targets_NC, scores_NC)) if one.defined]
    return float(np.mean(areas)) if areas else CHANCE


def micro_roc_auc(targets_NC: NDArray[Any], scores_NC: NDArray[Any]) -> float:
    """Return the ROC-AUC of all entries together, 0.5 where there is none: it rewards knowing label frequencies.

    Raises:
        ValueError: As ``roc_auc``.
    """
    merged = _merge(_rank_labels(*check_entries(targets_NC, scores_NC)))
    return float(_areas(merged)[0]) if merged.defined else CHANCE


def roc_curves(
    targets_NC: NDArray[Any], scores_NC: NDArray[Any], labels: Sequence[str], points: int = 200
) -> dict[str, tuple[list[float], list[float], float]]:
    """Return per label false positive rates, true positive rates and ROC-AUC; undefined labels are left out.

    Args:
        targets_NC: 1, 0 or -1 for unknown.
        scores_NC: Higher is more likely; any finite numbers.
        labels: Their names.
        points: About how many a curve is thinned to, evenly along its length; both ends are kept.

    Raises:
        ValueError: As ``roc_auc``, or the number of labels is another, or there are fewer than 2 points.
    """
    targets_NC, scores_NC = check_entries(targets_NC, scores_NC)
    if targets_NC.ndim != 2 or targets_NC.shape[1] != len(labels) or points < 2:
        raise ValueError(f"targets of shape {targets_NC.shape}, {len(labels)} labels, {points} points a curve")
    curves = {}
    for name, ranking in zip(labels, _rank_labels(targets_NC, scores_NC), strict=True):
        if ranking.defined:
            positives_T, negatives_T = _cumulated(ranking)
            fpr_T, tpr_T = negatives_T / negatives_T[-1], positives_T / positives_T[-1]
            kept = np.unique(np.searchsorted(fpr_T + tpr_T, np.linspace(0, 2, points)).clip(max=len(fpr_T) - 1))
            curves[name] = (fpr_T[kept].tolist(), tpr_T[kept].tolist(), float(_areas(ranking)[0]))
    return curves


def _check(
    targets_NC: NDArray[Any],
    scores_NC: NDArray[Any],
    labels: Sequence[str],
    prior_C: Floats,
    thresholds_C: Floats,
    groups: Mapping[str, Sequence[str | None]],
    num_bootstrap: int,
) -> None:
    num_labels = len(labels)
    if targets_NC.ndim != 2 or targets_NC.shape[1] != num_labels or len(set(labels)) < num_labels:
        raise ValueError(f"targets of shape {targets_NC.shape} for labels {', '.join(labels)}")
    check_probabilities(scores_NC)
    if prior_C.shape != (num_labels,) or not ((prior_C >= 0) & (prior_C <= 1)).all():
        raise ValueError(f"priors {prior_C}: expected a share of positives for each of {num_labels} labels")
    if thresholds_C.shape != (num_labels,) or not np.isfinite(thresholds_C).all():
        raise ValueError(f"thresholds {thresholds_C}: expected a number for each of {num_labels} labels")
    for name, values in groups.items():
        if len(values) != len(targets_NC):
            raise ValueError(f"{len(values)} values of {name} for {len(targets_NC)} tweets")
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap is {num_bootstrap}")


# --- Ranking


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Known entries from the highest score to the lowest.

    Attributes:
        negated_M: Scores times -1, so ascending.
        rows_M: Row of each entry.
        positive_M: Whether its target is 1.
    """

    negated_M: NDArray[Any]
    rows_M: NDArray[np.int32]
    positive_M: Bools

    @property
    def last(self) -> Bools:
        """Whether each entry is the last of those with its score, ``(M,)``."""
        last_M = np.ones(len(self.rows_M), np.bool_)
        last_M[:-1] = self.negated_M[1:] != self.negated_M[:-1]
        return last_M

    @property
    def num_positive(self) -> int:
        return int(np.count_nonzero(self.positive_M))

    @property
    def num_negative(self) -> int:
        return len(self.rows_M) - self.num_positive

    @property
    def defined(self) -> bool:
        """Whether there is something to rank above something else."""
        return 0 < self.num_positive < len(self.rows_M)


def _rank(targets_N: NDArray[np.int8], scores_N: NDArray[Any]) -> _Ranking:
    if targets_N.ndim != 1:
        raise ValueError(f"targets of shape {targets_N.shape}: expected those of one label")
    rows_M = np.flatnonzero(targets_N >= 0).astype(np.int32)
    negated_M = -scores_N[rows_M]
    order_M = np.argsort(negated_M)
    rows_M = rows_M[order_M]
    return _Ranking(negated_M[order_M], rows_M, targets_N[rows_M] == 1)


def _rank_labels(targets_NC: NDArray[np.int8], scores_NC: NDArray[Any]) -> list[_Ranking]:
    if targets_NC.ndim != 2 or not targets_NC.shape[1]:
        raise ValueError(f"targets of shape {targets_NC.shape}: expected tweets by labels, one label at least")
    return [_rank(targets_N, scores_N) for targets_N, scores_N in zip(targets_NC.T, scores_NC.T, strict=True)]


def _merge(ranking_C: Sequence[_Ranking]) -> _Ranking:
    """Return one ranking of the entries of all labels."""
    parts = [(one.negated_M, one.rows_M, one.positive_M) for one in ranking_C]
    negated_M, rows_M, positive_M = map(np.concatenate, zip(*parts, strict=True))
    # A stable sort merges runs that are sorted already: five times as fast as sorting anew.
    order_M = np.argsort(negated_M, kind="stable")
    return _Ranking(negated_M[order_M], rows_M[order_M], positive_M[order_M])


def _areas(ranking: _Ranking, weights_NR: NDArray[Any] | None = None) -> tuple[Any, Any]:
    """Return ROC-AUC and average precision; arrays ``(R,)`` where tweets have weights, nan where undefined.

    The entries are gone through in blocks, which bounds the memory; a threshold lies only after the last of equals.
    """
    unweighted = weights_NR is None
    num_rounds = 1 if weights_NR is None else weights_NR.shape[1]
    last_M = ranking.last
    block = max(1, _DRAWS_PER_BLOCK // num_rounds)
    # Positives and entries so far: at the end of the block, and at the last threshold.
    seen_2R, passed_2R = np.zeros((2, num_rounds)), np.zeros((2, 1, num_rounds))
    under_roc_R, precision_R = np.zeros(num_rounds), np.zeros(num_rounds)
    for start in range(0, len(last_M), block):
        part = slice(start, start + block)
        positive_B1 = ranking.positive_M[part, None]
        drawn_BR = np.ones(positive_B1.shape) if weights_NR is None else weights_NR.take(ranking.rows_M[part], axis=0)
        positives_BR = np.cumsum(drawn_BR * positive_B1, axis=0) + seen_2R[0]
        entries_BR = np.cumsum(drawn_BR, axis=0) + seen_2R[1]
        seen_2R = np.stack([positives_BR[-1], entries_BR[-1]])
        at_T = np.flatnonzero(last_M[part])
        positives_TR = np.concatenate([passed_2R[0], positives_BR.take(at_T, axis=0)])
        entries_TR = np.concatenate([passed_2R[1], entries_BR.take(at_T, axis=0)])
        passed_2R = np.stack([positives_TR[-1:], entries_TR[-1:]])
        step_TR = np.diff(positives_TR, axis=0)
        # Trapezoids: a step of false positives, at the mean of the true positives before and after it.
        midway_TR = positives_TR[1:] - step_TR / 2
        under_roc_R += ((np.diff(entries_TR, axis=0) - step_TR) * midway_TR).sum(axis=0)
        precision_R += (step_TR * positives_TR[1:] / np.maximum(entries_TR[1:], 1)).sum(axis=0)
    positives_R, negatives_R = seen_2R[0], seen_2R[1] - seen_2R[0]
    defined_R = (positives_R > 0) & (negatives_R > 0)
    auc_R = np.divide(under_roc_R, positives_R * negatives_R, out=np.full(num_rounds, np.nan), where=defined_R)
    ap_R = np.divide(precision_R, positives_R, out=np.full(num_rounds, np.nan), where=defined_R)
    return (auc_R[0], ap_R[0]) if unweighted else (auc_R, ap_R)


def _cumulated(ranking: _Ranking) -> tuple[Floats, Floats]:
    """Return positives and negatives above each threshold, ``(T + 1,)``, from 0 to all."""
    at_T = np.flatnonzero(ranking.last)
    positives_T = np.cumsum(ranking.positive_M)[at_T].astype(np.float64)
    return np.append(0.0, positives_T), np.append(0.0, at_T + 1 - positives_T)


def _areas_of(ranking_C: Sequence[_Ranking], merged: _Ranking) -> dict[str, dict[str, float | None]]:
    areas_C2 = np.array([_areas(one) for one in ranking_C]).reshape(-1, 2)
    num_positive_C = np.array([one.num_positive for one in ranking_C])
    return {
        name: _averages(areas_C, num_positive_C, micro)
        for name, areas_C, micro in zip(("roc_auc", "average_precision"), areas_C2.T, _areas(merged), strict=True)
    }


def _averages(areas_C: Floats, num_positive_C: NDArray[Any], micro: float) -> dict[str, float | None]:
    known_C = ~np.isnan(areas_C)
    some = known_C.any()
    return {
        "macro": float(areas_C[known_C].mean()) if some else None,
        "weighted": float(np.average(areas_C[known_C], weights=num_positive_C[known_C])) if some else None,
        "micro": _or_none(micro),
    }


# --- Decisions


def _counts(targets_NC: NDArray[Any], scores_NC: NDArray[Any], thresholds_C: Floats) -> NDArray[np.int64]:
    """Return gold, predicted and correct positives of each label, ``(C, 3)``, of the known entries."""
    masks = (_masks(targets_NC[:, i], scores_NC[:, i], at) for i, at in enumerate(thresholds_C))
    return np.array([[np.count_nonzero(mask_N) for mask_N in of_label] for of_label in masks]).reshape(-1, 3)


def _masks(targets: NDArray[Any], scores: NDArray[Any], threshold: Any) -> tuple[Bools, Bools, Bools]:  # noqa: ANN401
    gold, predicted = targets == 1, (scores >= threshold) & (targets >= 0)
    return gold, predicted, gold & predicted


def _rates(counts_3: NDArray[Any]) -> Floats:
    """Return F1, precision and recall ``(..., 3)`` of counts ``(..., 3)``; 0 with nothing to divide by.

    Source: van Rijsbergen 1979; F1 = 2 correct / (gold + predicted).
    """
    gold, predicted, correct = np.moveaxis(counts_3, -1, 0)
    parts = (2 * correct, gold + predicted), (correct, predicted), (correct, gold)
    return np.stack([np.divide(part, np.maximum(whole, 1)) for part, whole in parts], axis=-1)


def _macro_f1(counts_C3: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return the mean F1 ``(...)`` of counts ``(..., C, 3)`` over the labels with a positive; nan if none has any."""
    in_gold_C = counts_C3[..., 0] > 0
    num = in_gold_C.sum(axis=-1)
    return (_rates(counts_C3)[..., 0] * in_gold_C).sum(axis=-1) / np.where(num, num, np.nan)


def _f1s(counts_C3: NDArray[Any]) -> dict[str, float | None]:
    micro_f1, precision, recall = map(_or_none, _rates(counts_C3.sum(axis=0)))
    return {
        "micro_f1": micro_f1,
        "macro_f1": _or_none(_macro_f1(counts_C3)),
        "micro_precision": precision,
        "micro_recall": recall,
    }


def _decisions(
    targets_NC: NDArray[Any], scores_NC: NDArray[Any], thresholds_C: Floats, counts_C3: NDArray[Any]
) -> dict[str, float | None]:
    num_known_N = np.count_nonzero(targets_NC >= 0, axis=1)
    gold_N, predicted_N, correct_N = (
        np.count_nonzero(mask_NC, axis=1) for mask_NC in _masks(targets_NC, scores_NC, thresholds_C)
    )
    union_N = gold_N + predicted_N - correct_N
    wrong_N = union_N - correct_N
    jaccard_N = np.where(union_N, correct_N / np.maximum(union_N, 1), 1.0)
    read_N = num_known_N > 0
    return {
        **_f1s(counts_C3),
        "jaccard": float(jaccard_N[read_N].mean()) if read_N.any() else None,
        "exact_match": float((wrong_N[read_N] == 0).mean()) if read_N.any() else None,
        "hamming_loss": float(wrong_N.sum() / num_known_N.sum()) if read_N.any() else None,
        "accuracy": float(1 - wrong_N.sum() / num_known_N.sum()) if read_N.any() else None,
    }


def _false_alarms(
    negative_N: NDArray[np.bool_] | None, scores_NC: NDArray[Any], thresholds_C: Floats
) -> dict[str, Any]:
    """Return how many negatives there are, and how many of them are given any label."""
    negative_N = np.zeros(len(scores_NC), np.bool_) if negative_N is None else negative_N
    num_tweets = int(np.count_nonzero(negative_N))
    num_with_alarm = int(np.count_nonzero((scores_NC[negative_N] >= thresholds_C).any(axis=1)))
    per_1000 = 1_000 * num_with_alarm / num_tweets if num_tweets else None
    return {"num_tweets": num_tweets, "num_with_alarm": num_with_alarm, "per_1000": per_1000}


def _score_prior(targets_NC: NDArray[Any], ranking_C: Sequence[_Ranking], prior_C: Floats) -> dict[str, Any]:
    """Return what one scores who knows the priors alone and says of every tweet the same.

    Ranking: all entries of a label are one tie. Macro F1: yes for every label, as a label's F1 is 0 without a yes. All
    else that decides: yes for the labels ``_best_constant`` chooses.
    """
    positive_C = np.array([one.num_positive for one in ranking_C])
    negative_C = np.array([one.num_negative for one in ranking_C])
    known_C = positive_C + negative_C
    defined_C = (positive_C > 0) & (negative_C > 0)
    share_C = np.divide(positive_C, known_C, out=np.full(len(known_C), np.nan), where=defined_C)
    # One row per label and target says it all: the row's weight is how often it occurs.
    label_M, is_positive_M = np.repeat(np.arange(len(prior_C)), 2), np.tile([True, False], len(prior_C))
    weights_M = np.stack([positive_C, negative_C], axis=1).ravel()
    merged = _rank(is_positive_M.astype(np.int8), prior_C[label_M])
    auc_1, ap_1 = _areas(merged, weights_M[:, None].astype(np.float64))
    always_C3 = np.stack([positive_C, known_C, positive_C], axis=1)
    yes_C = _best_constant(prior_C)
    counts_C3 = np.stack([positive_C, yes_C * known_C, yes_C * positive_C], axis=1)
    yes_NC = np.broadcast_to(yes_C, targets_NC.shape)
    return {
        "roc_auc": _averages(np.where(defined_C, CHANCE, np.nan), positive_C, auc_1[0]),
        "average_precision": _averages(share_C, positive_C, ap_1[0]),
        **_decisions(targets_NC, yes_NC, np.ones(len(yes_C)), counts_C3),
        "macro_f1": _or_none(_macro_f1(always_C3)),
    }


def _best_constant(prior_C: Floats) -> Bools:
    """Return the labels that, given to every tweet, promise the highest micro F1 where frequencies are as in training.

    For any number m of labels the m most frequent are best: 2 * their priors / (m + all priors), which m maximises; of
    equals the fewest labels.
    """
    frequent_first = np.argsort(-prior_C, kind="stable")
    correct = np.append(0.0, np.cumsum(prior_C[frequent_first]))  # of a tweet, for m = 0 to C
    expected_f1 = 2 * correct / np.maximum(np.arange(len(correct)) + correct[-1], 1)
    yes_C = np.zeros(len(prior_C), np.bool_)
    yes_C[frequent_first[: np.argmax(expected_f1)]] = True
    return yes_C


def _per_label(
    targets_NC: NDArray[Any],
    scores_NC: NDArray[Any],
    labels: Sequence[str],
    ranking_C: Sequence[_Ranking],
    counts_C3: NDArray[np.int64],
    prior_C: Floats,
    thresholds_C: Floats,
) -> dict[str, dict[str, Any]]:
    result = {}
    for label, (name, ranking) in enumerate(zip(labels, ranking_C, strict=True)):
        auc, ap = map(_or_none, _areas(ranking))
        f1, precision, recall = _rates(counts_C3[label]).tolist() if ranking.num_positive else (None, None, None)
        known = len(ranking.rows_M)
        error_M = ranking.negated_M.astype(np.float64) + ranking.positive_M
        result[name] = {
            "num_positive": ranking.num_positive,
            "num_known": known,
            "prior": float(prior_C[label]),
            "roc_auc": auc,
            "average_precision": ap,
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "threshold": float(thresholds_C[label]),
            "ece": ece(targets_NC[:, label], scores_NC[:, label]) if known else None,
            "brier": float(np.mean(error_M**2)) if known else None,
        }
    return result


def _score_groups(
    targets_NC: NDArray[Any], scores_NC: NDArray[Any], thresholds_C: Floats, values: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """Return the scores of the tweets of each value, the most frequent first; what is rare is scored together."""
    named = [NO_VALUE if value is None else value for value in values]
    frequent = [(value, num) for value, num in Counter(named).most_common() if num >= FEWEST_ROWS]
    kept = dict.fromkeys(value for value, _ in frequent[:MOST_VALUES])
    beyond = dict.fromkeys(value for value, _ in frequent[MOST_VALUES:])
    place = {value: index for index, value in enumerate([*kept, OTHER_VALUES, FEW_ROWS])}
    code_N = np.fromiter(
        (place[value if value in kept else OTHER_VALUES if value in beyond else FEW_ROWS] for value in named),
        np.int64,
        len(named),
    )
    order_N = np.argsort(code_N, kind="stable")
    bounds = np.searchsorted(code_N[order_N], np.arange(len(place) + 1))
    result = {}
    for value, start, stop in zip(place, bounds, bounds[1:], strict=False):
        if stop > start:
            rows_V = order_N[start:stop]
            result[value] = _score_rows(targets_NC[rows_V], scores_NC[rows_V], thresholds_C)
    return result


def _score_rows(targets_VC: NDArray[Any], scores_VC: NDArray[Any], thresholds_C: Floats) -> dict[str, Any]:
    ranking_C = _rank_labels(targets_VC, scores_VC)
    areas = _areas_of(ranking_C, _merge(ranking_C))
    decided = _f1s(_counts(targets_VC, scores_VC, thresholds_C))
    return {
        "num_rows": len(targets_VC),
        "roc_auc": {name: areas["roc_auc"][name] for name in ("macro", "micro")},
        "micro_f1": decided["micro_f1"],
        "macro_f1": decided["macro_f1"],
        "average_precision": {"macro": areas["average_precision"]["macro"]},
    }


# --- Intervals


def _num_rounds(num_bootstrap: int, num_entries: int) -> int:
    return min(num_bootstrap, max(_FEWEST_ROUNDS, _MOST_DRAWN // max(num_entries, 1)))


def _draws(num_rows: int, num_rounds: int, seed: int) -> Iterator[Floats]:
    """Yield how often rounds of the bootstrap draw each tweet, ``(N, R)``; the chunks bound the memory alone."""
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _DRAWS_PER_CHUNK // num_rows)
    for first in range(0, num_rounds, per_chunk):
        num = min(per_chunk, num_rounds - first)
        drawn_NR = np.empty((num_rows, num))
        for index in range(num):
            drawn_NR[:, index] = np.bincount(generator.integers(num_rows, size=num_rows), minlength=num_rows)
        yield drawn_NR


def _intervals(
    ranking_C: Sequence[_Ranking],
    merged: _Ranking,
    predictions: tuple[NDArray[Any], NDArray[Any], Floats],
    num_rounds: int,
    seed: int,
) -> dict[str, list[float]]:
    """Return 95 % percentile intervals of a bootstrap over tweets: each round is scored as if it were the set.

    A measure is left out where no round defines it.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    if not num_rounds:
        return {}
    measured = [
        _measure_draws(ranking_C, merged, predictions, drawn_NR)
        for drawn_NR in _draws(len(predictions[0]), num_rounds, seed)
    ]
    intervals = {}
    for name, values_R in zip(_WITH_INTERVAL, np.concatenate(measured, axis=1), strict=True):
        defined = values_R[~np.isnan(values_R)]
        if defined.size:
            intervals[name] = np.quantile(defined, [_TAIL, 1 - _TAIL]).tolist()
    return intervals


def _measure_draws(
    ranking_C: Sequence[_Ranking],
    merged: _Ranking,
    predictions: tuple[NDArray[Any], NDArray[Any], Floats],
    drawn_NR: Floats,
) -> Floats:
    """Return the measures that have an interval, ``(5, R)``, of tweets that count so often; nan where undefined."""
    targets_NC, scores_NC, thresholds_C = predictions
    macro_2R = _nanmean(np.array([_areas(one, drawn_NR) for one in ranking_C if one.defined]), drawn_NR.shape[1])
    micro_R, _ = _areas(merged, drawn_NR)
    masks = (_masks(targets_NC[:, i], scores_NC[:, i], at) for i, at in enumerate(thresholds_C))
    counts_C3R = np.array([np.stack(of_label).astype(np.float64) @ drawn_NR for of_label in masks])
    counts_RC3 = np.moveaxis(counts_C3R, -1, 0)
    return np.stack(
        [macro_2R[0], micro_R, macro_2R[1], _rates(counts_RC3.sum(axis=1))[:, 0], _macro_f1(counts_RC3)],
    )


def _nanmean(areas_C2R: Floats, num_rounds: int) -> Floats:
    """Return the mean over labels, ``(2, R)``, of those that a round defines."""
    if not len(areas_C2R):
        return np.full((2, num_rounds), np.nan)
    num_2R = np.count_nonzero(~np.isnan(areas_C2R), axis=0)
    mean_2R: Floats = np.nansum(areas_C2R, axis=0) / np.where(num_2R, num_2R, np.nan)
    return mean_2R


def _normal_interval(ranking_C: Sequence[_Ranking], num_rows: int) -> list[float]:
    """Return the 95 % interval of the macro ROC-AUC by the normal approximation.

    What a tweet adds to the error is summed over its labels before it is squared, since labels of one tweet depend on
    one another.

    Source: DeLong, DeLong and Clarke-Pearson 1988, by midranks; sums over clusters after Obuchowski 1997.
    """
    defined = [one for one in ranking_C if one.defined]
    influence_N, areas = np.zeros(num_rows), []
    for one in defined:
        positives_T, negatives_T = _cumulated(one)
        num_positive, num_negative = positives_T[-1], negatives_T[-1]
        sizes_T = np.diff(positives_T + negatives_T).astype(np.int64)
        above_M = np.repeat((positives_T[1:] + positives_T[:-1]) / 2, sizes_T) / num_positive
        below_M = 1 - np.repeat((negatives_T[1:] + negatives_T[:-1]) / 2, sizes_T) / num_negative
        area = float(_areas(one)[0])
        influence_N[one.rows_M] += np.where(
            one.positive_M,
            (below_M - area) / np.sqrt(num_positive * max(num_positive - 1, 1)),
            (above_M - area) / np.sqrt(num_negative * max(num_negative - 1, 1)),
        )
        areas.append(area)
    macro, half = float(np.mean(areas)), _Z * float(np.sqrt(np.sum(influence_N**2))) / len(areas)
    return [max(0.0, macro - half), min(1.0, macro + half)]


def _verdict(scores: Mapping[str, Any], ranking_C: Sequence[_Ranking]) -> dict[str, Any]:
    """Return whether the scores tell tweets apart: the interval of the macro ROC-AUC decides, micro never."""
    auc, prior = scores["roc_auc"], scores["prior"]
    if auc["macro"] is None:
        return {"beats_prior": False, "text": "cannot be told: no label has both a positive and a negative"}
    low, high = scores["intervals"].get("roc_auc_macro") or _normal_interval(ranking_C, scores["num_rows"])
    beats = low > CHANCE
    text = (
        f"{'better' if beats else 'no better'} than the prior: macro ROC-AUC {auc['macro']:.3f} "
        f"(95 % {low:.3f} to {high:.3f}), where the prior has 0.5; micro ROC-AUC {auc['micro']:.3f}, "
        f"of which label frequencies alone give {prior['roc_auc']['micro']:.3f}"
    )
    if beats and (scores["macro_f1"] or 0) <= (prior["macro_f1"] or 0):
        text += "; at these thresholds the labels given are no better: see macro F1"
    return {"beats_prior": beats, "text": text}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
