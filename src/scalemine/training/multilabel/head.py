"""A linear layer for nested labels: one that implies another never has the higher probability.

An event within 10 km is one within 30 km: the 10 km label is inner to the 30 km label, and that is outer to it. With
features x in [-1, 1], as the tanh of a pooler leaves them, logits w . x + b keep that order for every x if

    w_outer = w_inner + u,    b_outer = b_inner + ||u||_1 + a positive step,

as u . x + ||u||_1 >= 0. The layer learns u and the step; what it gives is an ordinary linear layer.

Shapes: B rows of a batch, N tweets, C labels, D features.
"""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

# Least difference of the logits of an outer and an inner label, where both are small.
MARGIN: Final = 1e-3
# As transformers begins.
_INITIAL_DEVIATION: Final = 0.02
# A step of 0.13 in the beginning.
_INITIAL_STEP: Final = -2.0


@dataclass(frozen=True)
class Nesting:
    """A partial order of labels, which are numbered by their places.

    Attributes:
        inner: The direct inner labels of each label.
        inner_first: All labels, each after its inner ones.
        components: The labels that hang together, each label in one component; both in ascending order.
    """

    inner: tuple[tuple[int, ...], ...]
    inner_first: tuple[int, ...]
    components: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]], num_labels: int) -> Self:
        """Return the order with some pairs of an inner and an outer label.

        Raises:
            graphlib.CycleError: There is none.
        """
        given: list[list[int]] = [[] for _ in range(num_labels)]
        for inner, outer in pairs:
            given[outer].append(inner)
        inner_first = tuple(graphlib.TopologicalSorter(dict(enumerate(given))).static_order())
        component_of = list(range(num_labels))
        for pair in pairs:
            joined = {component_of[label] for label in pair}
            component_of = [min(joined) if component in joined else component for component in component_of]
        all_inner: list[set[int]] = [set() for _ in range(num_labels)]
        direct: list[tuple[int, ...]] = [()] * num_labels
        for label in inner_first:
            further = set().union(*(all_inner[inner] for inner in given[label]))
            direct[label] = tuple(inner for inner in dict.fromkeys(given[label]) if inner not in further)
            all_inner[label] = further.union(given[label])
        components = tuple(
            tuple(label for label in range(num_labels) if component_of[label] == component)
            for component in sorted(set(component_of))
        )
        return cls(tuple(direct), inner_first, components)


def in_order(scores_NC: NDArray[np.float32], nesting: Nesting | None) -> NDArray[np.float32]:
    """Return probabilities none of whose outer labels is below an inner one."""
    if nesting is not None:
        for label in nesting.inner_first:
            scores_NC[:, label] = scores_NC[:, [label, *nesting.inner[label]]].max(axis=1)
    return scores_NC


def order(labels: Sequence[str], chains: Sequence[Sequence[str]]) -> Nesting:
    """Return the partial order of labels in which each chain goes from inner to outer labels.

    Raises:
        ValueError: A label is unknown, is there twice, or is outer to itself.

    Example:
        >>> order(["10km", "30km", "50km", "other"], [["10km", "30km"], ["30km", "50km"], ["10km", "50km"]])
        Nesting(inner=((), (0,), (1,), ()), inner_first=(0, 3, 1, 2), components=((0, 1, 2), (3,)))
    """
    number = {label: place for place, label in enumerate(labels)}
    if len(number) < len(labels):
        raise ValueError(f"a label is there twice: {', '.join(labels)}")
    for chain in chains:
        if unknown := [label for label in chain if label not in number]:
            raise ValueError(f'nested labels have "{unknown[0]}", the labels are {", ".join(labels)}')
        if len(set(chain)) < len(chain):
            raise ValueError(f"a label is there twice in the nested labels {', '.join(chain)}")
    pairs = [(number[inner], number[outer]) for chain in chains for inner, outer in pairwise(chain)]
    try:
        return Nesting.of(pairs, len(labels))
    except graphlib.CycleError as error:
        cycle = " within ".join(labels[place] for place in error.args[1])
        raise ValueError(f"nested labels go round in a circle: {cycle}") from None


class NestedLinear(nn.Module):
    """A linear layer whose logits keep the order of nested labels, for all features in [-1, 1].

    Labels without inner ones have free weights and biases. Another one has the weights of its first inner label and u
    more, and the least bias that puts it above all of its inner labels, and a step more.

    The order holds in float32, for any order of adding, as biases have room for the rounding; in float16 and bfloat16
    rounding can break it, so the layer leaves autocast.

    Attributes:
        nesting: The order.
        weight: Weights of labels without inner ones, u of the others, ``(C, D)``.
        bias: Biases of labels without inner ones, the steps before ``softplus`` of the others, ``(C,)``.
    """

    def __init__(self, num_features: int, nesting: Nesting) -> None:
        super().__init__()
        self.nesting = nesting
        num_labels = len(nesting.inner)
        self.weight = nn.Parameter(torch.zeros(num_labels, num_features))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        with torch.no_grad():
            for label, inner in enumerate(nesting.inner):
                if inner:
                    self.bias[label] = _INITIAL_STEP
                else:
                    self.weight[label].normal_(0, _INITIAL_DEVIATION)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logits ``(B, C)``, float32 also under autocast, of features in [-1, 1]."""
        with torch.autocast(features_BD.device.type, enabled=False):
            weight_CD, bias_C = self.weight_and_bias()
            return linear(features_BD.to(weight_CD.dtype), weight_CD, bias_C)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return weights ``(C, D)`` and biases ``(C,)`` of the linear layer that this is."""
        num_labels, num_features = self.weight.shape
        weights, biases = list(self.weight.unbind()), list(self.bias.unbind())
        # A sum of n products is wrong by at most n epsilon / 2 times the sum of their sizes, in any order of adding
        # (Higham 2002, section 3.1). Twice that, and some more, for the sums of this method.
        rounding = (num_features + 8) * torch.finfo(self.weight.dtype).eps
        for label in self.nesting.inner_first:
            inner = self.nesting.inner[label]
            if not inner:
                continue
            weights[label] = weights[inner[0]] + weights[label]
            step = softplus(biases[label]) + MARGIN
            above = []
            for other in inner:
                rise = (weights[label] - weights[other]).abs().sum() + step
                size = weights[label].abs().sum() + weights[other].abs().sum() + 2 * biases[other].abs() + rise
                above.append(biases[other] + rise + rounding * size.detach())
            biases[label] = torch.stack(above).max()
        if not num_labels:
            return self.weight, self.bias
        return torch.stack(weights), torch.stack(biases)

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """Return an ordinary linear layer that does the same, with copies of the weights."""
        weight_CD, bias_C = self.weight_and_bias()
        num_labels, num_features = weight_CD.shape
        layer = nn.Linear(num_features, num_labels, device=weight_CD.device, dtype=weight_CD.dtype)
        layer.weight.copy_(weight_CD)
        layer.bias.copy_(bias_C)
        return layer
