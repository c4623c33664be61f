"""Losses of multilabel classifiers, where a label of a tweet is 1, 0 or unknown (-1).

With z the logit of an entry (a tweet and a label) and p = sigmoid(z), the probability of its label, a loss is one
number if the target is 1, another one if it is 0 and a third if it is unknown. All are sums over entries, so that they
add up over parts of a batch, and come from log p and log (1 - p), which are finite for any finite logit.

    bce     binary cross-entropy: -w log p,  -log (1 - p)
    focal   -a (1 - p)^g log p,  -(1 - a) p^g log (1 - p)                                  Lin et al., ICCV 2017
    asl     -(1 - p)^g+ log p,  -q^g- log (1 - q)  with q = max(p - m, 0)                  Ridnik et al., ICCV 2021
    dice    1 - (2 q y + s) / (q + y + s)  with q = (1 - p)^a p and y the target           Li et al., ACL 2020
    db      weighted by how rare a row's labels are, with biased logits; see ``_db``       Wu et al., ECCV 2020
    em      -log p,  -log (1 - p),  and less the entropy of p where unknown                Zhou et al., ECCV 2022

Shapes: N rows, B rows of a batch, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scalemine.config import LossConfig

UNKNOWN: Final = -1

# Excesses over asl's margin below this count as this, so that their logarithms are finite.
_LEAST_EXCESS: Final = 1e-30


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """How many of the training rows have each label.

    Attributes:
        num_rows: Rows, known and unknown.
        positives_C: Rows whose target is 1, int64.
        negatives_C: Rows whose target is 0, int64.
    """

    num_rows: int
    positives_C: NDArray[np.int64]
    negatives_C: NDArray[np.int64]

    @classmethod
    def of(cls, targets_NC: NDArray[Any]) -> Self:
        """Return the counts of targets of 1, 0 and -1."""
        return cls(len(targets_NC), (targets_NC == 1).sum(0), (targets_NC == 0).sum(0))


class _Losses(NamedTuple):
    """The losses of entries in case that their target is 1, and in case that it is 0."""

    if_positive_BC: Tensor
    if_negative_BC: Tensor


class LabelLoss(nn.Module):
    """The loss of logits against targets, as a sum over entries.

    A label without a positive, or without a negative, in the training rows counts as having one, in ``pos_weight`` and
    in db. Unknown targets count as negatives where the loss takes them for such, and as nothing otherwise.

    Attributes:
        options: The loss and its parameters.
        pos_weight_C: The weight of positives in bce; 1 without ``pos_weight``.

    Raises:
        ValueError: The counts do not fit one another.
    """

    pos_weight_C: Tensor
    rarity_C: Tensor
    bias_C: Tensor

    def __init__(self, options: LossConfig, counts: LabelCounts) -> None:
        super().__init__()
        self.options = options
        positives_C, negatives_C = np.asarray(counts.positives_C), np.asarray(counts.negatives_C)
        if positives_C.ndim != 1 or positives_C.shape != negatives_C.shape:
            shapes = f"{positives_C.shape} and {negatives_C.shape}"
            raise ValueError(f"counts of positives and negatives must be one per label, got {shapes}")
        if min(positives_C.min(initial=0), negatives_C.min(initial=0)) < 0:
            raise ValueError("counts of positives and negatives must be 0 or more")
        if (positives_C + negatives_C).max(initial=0) > counts.num_rows:
            raise ValueError(f"a label has more positives and negatives than the {counts.num_rows} rows")
        if options.unknown == "negative":
            negatives_C = counts.num_rows - positives_C
        positives_C, negatives_C = np.maximum(positives_C, 1), np.maximum(negatives_C, 1)
        odds_C = negatives_C / positives_C
        pos_weight_C = np.ones_like(odds_C) if options.pos_weight is None else odds_C.clip(max=options.pos_weight)
        for name, values_C in {
            "pos_weight_C": pos_weight_C,
            "rarity_C": 1 / positives_C,
            "bias_C": -options.db_kappa * np.log(odds_C),
        }.items():
            self.register_buffer(name, torch.tensor(values_C, dtype=torch.float32), persistent=False)

    def forward(
        self,
        logits_BC: Tensor,
        targets_BC: Tensor,
        weight_B: Tensor | None = None,
        pseudo_BC: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the losses of all entries: float32 also under autocast, or float64 for float64 logits.

        Args:
            logits_BC: Logits, any float type, finite.
            targets_BC: 1, 0 or -1 for unknown, of any type.
            weight_B: Weight of each row, 0 or more; None for 1.
            pseudo_BC: Of em: soft labels in [0, 1] for unknown entries, NaN where there is none (``pseudo_labels``);
                not read where the target is known.

        Raises:
            ValueError: Shapes do not fit, or there are pseudo labels for a loss other than em.
        """
        self._check_shapes(logits_BC, targets_BC, weight_B, pseudo_BC)
        with torch.autocast(logits_BC.device.type, enabled=False):
            z_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
            losses = self._known(z_BC, targets_BC)
            if self.options.name == "em":
                if_unknown_BC = _em(z_BC, pseudo_BC, losses, self.options)
            elif self.options.unknown == "negative":
                if_unknown_BC = losses.if_negative_BC
            else:
                if_unknown_BC = torch.zeros_like(z_BC)
            loss_BC = torch.where(targets_BC == UNKNOWN, if_unknown_BC, losses.if_negative_BC)
            loss_BC = torch.where(targets_BC == 1, losses.if_positive_BC, loss_BC)
            if weight_B is not None:
                loss_BC = weight_B.to(z_BC.dtype)[:, None] * loss_BC
            return loss_BC.sum()

    def _known(self, z_BC: Tensor, targets_BC: Tensor) -> _Losses:
        options = self.options
        match options.name:
            case "bce":
                return _Losses(-self.pos_weight_C * logsigmoid(z_BC), -logsigmoid(-z_BC))
            case "focal":
                return _focal(z_BC, z_BC, options.focal_alpha, options.focal_gamma)
            case "asl":
                return _asl(z_BC, options)
            case "dice":
                return _dice(z_BC, options)
            case "db":
                return _db(z_BC, targets_BC == 1, self.rarity_C, self.bias_C, options)
            case "em":
                return _Losses(-logsigmoid(z_BC), -logsigmoid(-z_BC))

    def _check_shapes(
        self, logits_BC: Tensor, targets_BC: Tensor, weight_B: Tensor | None, pseudo_BC: Tensor | None
    ) -> None:
        shape = tuple(logits_BC.shape)
        if len(shape) != 2 or shape[1] != len(self.pos_weight_C):
            raise ValueError(f"logits must be (B, {len(self.pos_weight_C)}), got {shape}")
        others: Mapping[str, Tensor | None] = {"targets": targets_BC, "weights": weight_B, "pseudo labels": pseudo_BC}
        for name, values in others.items():
            expected = shape[:1] if values is weight_B else shape
            if values is not None and tuple(values.shape) != expected:
                raise ValueError(f"{name} must be {expected}, got {tuple(values.shape)}")
        if pseudo_BC is not None and self.options.name != "em":
            raise ValueError(f'pseudo labels are of the loss "em" and do nothing for "{self.options.name}"')


def pseudo_labels(
    scores_NC: NDArray[np.floating[Any]],
    targets_NC: NDArray[Any],
    share: float,
    earlier_NC: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return soft labels for the unknown entries of lowest score, their own scores; NaN elsewhere; float32 ``(N, C)``.

    Each label has those of ``share`` of its unknown entries, rounded down; of equal scores the lower row comes first.
    Asymmetric pseudo-labelling begins after w of E epochs, and gives a share theta / (E - w) of the entries their label
    after each; the authors have theta 0.9 and keep a label once it is given.

    Args:
        scores_NC: Probabilities in [0, 1].
        targets_NC: 1, 0 and -1 for unknown.
        share: In [0, 1].
        earlier_NC: What the function returned before: those labels stay, and the new ones come in addition.

    Raises:
        ValueError: Shapes do not fit, the share or the score of an unknown entry is out of range.

    Source: Zhou et al., ECCV 2022, section 3.3, and their code, whose soft label is the probability itself.
    """
    pseudo_NC = np.full(scores_NC.shape, np.nan, np.float32) if earlier_NC is None else earlier_NC.copy()
    if scores_NC.ndim != 2 or not scores_NC.shape == targets_NC.shape == pseudo_NC.shape:
        raise ValueError("scores, targets and earlier pseudo labels must be of the same shape (N, C)")
    if not 0 <= share <= 1:
        raise ValueError(f"the share of pseudo labels must be in [0, 1], got {share}")
    unknown_NC = targets_NC == UNKNOWN
    if not ((scores_NC >= 0) & (scores_NC <= 1))[unknown_NC].all():
        raise ValueError("a score of an unknown entry is not in [0, 1]")
    for scores_N, unknown_N, pseudo_N in zip(scores_NC.T, unknown_NC.T, pseudo_NC.T, strict=True):
        # A product that should be whole may lie just below.
        count = math.floor(share * unknown_N.sum() + 1e-9)
        rows = np.flatnonzero(unknown_N & np.isnan(pseudo_N))
        rows = rows[np.argsort(scores_N[rows], kind="stable")[:count]]
        pseudo_N[rows] = scores_N[rows]
    return pseudo_NC


def _focal(positive_z_BC: Tensor, negative_z_BC: Tensor, alpha: float | None, gamma: float) -> _Losses:
    """Return the focal loss, of one logit in case of a positive and another one in case of a negative.

    Source: Lin et al., ICCV 2017, equation 5.
    """
    positive_weight, negative_weight = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    # Powers are taken of logarithms: their gradients are finite for gamma below 1 too.
    positive_focus_BC = torch.exp(gamma * logsigmoid(-positive_z_BC))
    negative_focus_BC = torch.exp(gamma * logsigmoid(negative_z_BC))
    return _Losses(
        -positive_weight * positive_focus_BC * logsigmoid(positive_z_BC),
        -negative_weight * negative_focus_BC * logsigmoid(-negative_z_BC),
    )


def _asl(z_BC: Tensor, options: LossConfig) -> _Losses:
    """Return the asymmetric loss.

    Source: Ridnik et al., ICCV 2021, section 2. Their script trains with the focus detached
    (``disable_torch_grad_focal_loss=True``), and sums.
    """
    margin = options.asl_margin
    positive_focus_BC = torch.exp(options.asl_gamma_positive * logsigmoid(-z_BC))
    # No gradient where clamped, so that the large one of the logarithm is not used.
    excess_BC = (torch.sigmoid(z_BC) - margin).clamp(min=_LEAST_EXCESS)
    negative_focus_BC = torch.exp(options.asl_gamma_negative * excess_BC.log())
    if options.asl_detach:
        positive_focus_BC, negative_focus_BC = positive_focus_BC.detach(), negative_focus_BC.detach()
    # 1 - q = min(1 - p + m, 1), which is not below m.
    log_margin = z_BC.new_tensor(margin).log()
    log_rest_BC = torch.logaddexp(logsigmoid(-z_BC), log_margin).clamp(max=0)
    return _Losses(-positive_focus_BC * logsigmoid(z_BC), -negative_focus_BC * log_rest_BC)


def _dice(z_BC: Tensor, options: LossConfig) -> _Losses:
    """Return the self-adjusting Dice loss of single entries, which does not depend on the rest of a batch.

    Source: Li et al., ACL 2020, section 3.3; smoothing and alpha as in their scripts.
    """
    smooth = options.dice_smooth
    log_q_BC = options.dice_alpha * logsigmoid(-z_BC) + logsigmoid(z_BC)
    q_BC = log_q_BC.exp()
    # q / (q + s) for negatives.
    return _Losses((1 - q_BC) / (1 + q_BC + smooth), torch.sigmoid(log_q_BC - math.log(smooth)))


def _db(z_BC: Tensor, is_positive_BC: Tensor, rarity_C: Tensor, bias_C: Tensor, options: LossConfig) -> _Losses:
    """Return the distribution-balanced loss.

    With n_k positives of label k in N rows, r = (1 / n_k) / sum of 1 / n_j over the row's positive labels j, and
    entries weigh R = sigmoid(beta (r - mu)) + alpha. Logits become z + v with v_k = -kappa log(N / n_k - 1); for
    negatives also times lambda, and their loss is divided by lambda. The loss of those logits is focal. In a row
    without a positive r is infinite, so R is 1 + alpha, as the authors' code has it.

    Args:
        z_BC: Logits.
        is_positive_BC: Which targets are 1.
        rarity_C: 1 / n_k.
        bias_C: v_k.
        options: The parameters.

    Source: Wu et al., ECCV 2020, section 3, and Huang et al., EMNLP 2021, with their code (BalancedLossNLP).
    """
    sum_B1 = (is_positive_BC * rarity_C).sum(1, keepdim=True)
    has_positive_B1 = is_positive_BC.any(1, keepdim=True)
    ratio_BC = rarity_C / sum_B1
    rise_BC = torch.where(has_positive_B1, torch.sigmoid(options.db_beta * (ratio_BC - options.db_mu)), 1)
    weight_BC = rise_BC + options.db_alpha
    z_BC = z_BC + bias_C
    losses = _focal(z_BC, options.db_lambda * z_BC, options.db_focal_alpha, options.db_focal_gamma)
    return _Losses(weight_BC * losses.if_positive_BC, weight_BC / options.db_lambda * losses.if_negative_BC)


def _em(z_BC: Tensor, pseudo_BC: Tensor | None, known: _Losses, options: LossConfig) -> Tensor:
    """Return the loss of unknown entries: -alpha times the entropy of p, or the cross-entropy with a pseudo label.

    Source: Zhou et al., ECCV 2022, sections 3.2 and 3.3.
    """
    if_positive_BC, if_negative_BC = known
    loss_BC = -options.em_alpha * (torch.sigmoid(z_BC) * if_positive_BC + torch.sigmoid(-z_BC) * if_negative_BC)
    if pseudo_BC is None:
        return loss_BC
    soft_BC = pseudo_BC.to(z_BC.dtype).nan_to_num(0)
    cross_entropy_BC = soft_BC * if_positive_BC + (1 - soft_BC) * if_negative_BC
    return torch.where(pseudo_BC.isnan(), loss_BC, options.em_beta * cross_entropy_BC)
