"""How several models decide together: by a majority of votes, or by the mean of their probabilities.

Source: De la Peña Sarracén and Rosso (2019) take the majority vote of three models. An even number of members can be
of two minds about a label; their mean probability then decides.

Shapes: M members, N tweets, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# Of a vote: a share of votes as high or higher gives the label.
MAJORITY = 0.5

SpanT = TypeVar("SpanT", bound=Hashable)


def vote(scores_MNC: NDArray[np.float32], thresholds_MC: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the share of the members that give each label to each tweet, by their own thresholds.

    Where exactly half of them do, the label is given if the mean of their probabilities reaches the mean of their
    thresholds. The share says so, too: it is just below a half if it is not given.

    Args:
        scores_MNC: Probabilities.
        thresholds_MC: The least probability at which a member gives a label.

    Returns:
        Shares ``(N, C)``, float32; the label is given from ``MAJORITY`` on.

    Raises:
        ValueError: There is no member, or the shapes do not fit.
    """
    _check(scores_MNC)
    if thresholds_MC.shape != (scores_MNC.shape[0], scores_MNC.shape[2]):
        raise ValueError(f"thresholds {thresholds_MC.shape} of probabilities {scores_MNC.shape}")
    num_members = len(scores_MNC)
    votes_NC = (scores_MNC >= thresholds_MC[:, None, :]).sum(axis=0)
    shares_NC: NDArray[np.float32] = (votes_NC / num_members).astype(np.float32)
    is_lost_NC = scores_MNC.mean(axis=0, dtype=np.float64) < thresholds_MC.mean(axis=0)
    shares_NC[(2 * votes_NC == num_members) & is_lost_NC] = np.nextafter(np.float32(MAJORITY), np.float32(0))
    return shares_NC


def average(scores_MNC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the members' probabilities ``(N, C)``, float32; what one member alone says stays as it is.

    Raises:
        ValueError: There is no member, or the shapes do not fit.
    """
    _check(scores_MNC)
    mean_NC: NDArray[np.float32] = scores_MNC.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean_NC


def vote_spans(found: Sequence[Collection[SpanT]]) -> set[SpanT]:
    """Return the spans of one tweet that more than half of the members give, each exactly so.

    Two of these cannot overlap: some member would have given both, and a member's own spans do not overlap.

    Args:
        found: The spans of each member.
    """
    votes = Counter(span for of_member in found for span in set(of_member))
    return {span for span, number in votes.items() if 2 * number > len(found)}


def _check(scores_MNC: NDArray[np.float32]) -> None:
    if scores_MNC.ndim != 3 or not len(scores_MNC):  # noqa: PLR2004
        raise ValueError(f"expected the probabilities of members, tweets and labels; got the shape {scores_MNC.shape}")
