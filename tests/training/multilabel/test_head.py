"""Nested labels: their order against all paths, and a layer that keeps it at every corner of its features."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scalemine.training.multilabel.head import MARGIN, NestedLinear, Nesting, in_order, order

KM = ["10km", "20km", "30km", "50km", "70km"]
DAYS = ["1d", "2d", "3d", "7d"]
# Not in order; one label hangs together with none.
LATTICE = ["other", *sorted(f"{day}-{km}" for day in DAYS for km in KM)[::-1]]
LATTICE_CHAINS = [
    *([f"{day}-{km}" for km in KM] for day in DAYS),
    *([f"{day}-{km}" for day in DAYS] for km in KM),
]
DIAMOND = order("dcba", ["abd", "acd"])
NESTINGS = [
    order("a", []),
    order("abc", []),
    order("cab", ["abc"]),
    DIAMOND,
    order("abcdef", ["abc", "de"]),
    order(LATTICE, LATTICE_CHAINS),
]
SEVERAL = settings(max_examples=30, deadline=None)


def pairs_of(nesting: Nesting) -> list[tuple[int, int]]:
    return [(inner, outer) for outer, direct in enumerate(nesting.inner) for inner in direct]


def reachable(pairs, num_labels) -> set[tuple[int, int]]:
    """All pairs of an inner and an outer label, by joining pairs until there are no more."""
    closed = set(pairs)
    for middle, inner, outer in itertools.product(range(num_labels), repeat=3):
        if (inner, middle) in closed and (middle, outer) in closed:
            closed.add((inner, outer))
    return closed


def random_layer(nesting: Nesting, num_features: int, scale: float, seed: int) -> NestedLinear:
    torch.manual_seed(seed)
    layer = NestedLinear(num_features, nesting)
    with torch.no_grad():
        for parameter in layer.parameters():
            # Some are exactly 0, as they are in the beginning.
            parameter.normal_(0, scale).mul_(torch.rand_like(parameter) < 0.9)
    return layer


def features_of(layer: NestedLinear, num_rows: int = 64) -> torch.Tensor:
    """Random features, corners, and for each pair of labels the corners where it is closest to breaking, and nearby."""
    num_features = layer.weight.shape[1]
    features_BD = torch.rand(num_rows, num_features) * 2 - 1
    weight_CD, _ = layer.weight_and_bias()
    difference_ED = torch.stack(
        [torch.zeros(num_features), *(weight_CD[o] - weight_CD[i] for i, o in pairs_of(layer.nesting))]
    )
    corners_ED = torch.where(difference_ED > 0, -1.0, 1.0)
    flipped_ED = corners_ED * torch.where(torch.rand_like(corners_ED) < 0.1, -1.0, 1.0)
    return torch.cat(
        [features_BD, features_BD.sign(), features_BD * 0, corners_ED, flipped_ED, torch.tanh(9 * corners_ED)]
    )


def assert_order_holds(layer: NestedLinear) -> None:
    features_BD = features_of(layer).detach()
    plain = layer.plain()
    # Other numbers of rows are added up in another order; so is one by one.
    for batch_BD in (features_BD, features_BD[:1], features_BD[-7:], *features_BD[-3:].split(1)):
        logits_BC = layer(batch_BD).detach()
        assert logits_BC.dtype == torch.float32
        assert torch.equal(logits_BC, plain(batch_BD))
        sums_BC = (
            torch.stack([(batch_BD * weight_D).flip(1).cumsum(1)[:, -1] for weight_D in plain.weight], 1) + plain.bias
        )
        for scores_BC in (logits_BC, torch.sigmoid(logits_BC), sums_BC):
            for inner, outer in pairs_of(layer.nesting):
                assert (scores_BC[:, outer] >= scores_BC[:, inner]).all()


@given(
    st.sampled_from(NESTINGS),
    st.sampled_from([1, 2, 17, 768]),
    st.sampled_from([0.0, 1e-3, 0.05, 1.0, 30.0]),
    st.booleans(),
    st.integers(0, 2**32),
)
@SEVERAL
@example(NESTINGS[-1], 768, 30.0, True, 1)
def test_order_holds(nesting, num_features, scale, least_steps, seed):
    layer = random_layer(nesting, num_features, scale, seed)
    if least_steps:
        nn.init.constant_(layer.bias, -100)
    assert_order_holds(layer)


def test_room_for_rounding_is_needed(monkeypatch):
    """With the margin alone the order of large logits breaks, so the tests above can fail."""
    monkeypatch.setattr(torch, "finfo", lambda _: SimpleNamespace(eps=0.0))
    layer = random_layer(NESTINGS[-1], 768, 30.0, 1)
    nn.init.constant_(layer.bias, -100)
    with pytest.raises(AssertionError):
        assert_order_holds(layer)


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_order_holds_after_training(nesting, lr):
    """Labels are random, hence against the order."""
    torch.manual_seed(5)
    layer = NestedLinear(24, nesting)
    assert_order_holds(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr)
    for _ in range(30):
        optimizer.zero_grad()
        features_BD = torch.tanh(3 * torch.randn(32, 24))
        targets_BC = (torch.rand(32, len(nesting.inner)) < 0.5).float()
        binary_cross_entropy_with_logits(layer(features_BD), targets_BC).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert_order_holds(layer)


def test_logits_are_close_and_ordered_in_the_beginning():
    layer = NestedLinear(50, order(KM, [KM]))
    logits_BC = layer(torch.rand(20, 50) * 2 - 1)
    steps_BC = logits_BC.diff(dim=1)
    assert (steps_BC > MARGIN).all()
    assert (steps_BC < 0.2).all()
    assert logits_BC[:, 0].std() > 0


@given(st.sampled_from(NESTINGS), st.integers(0, 2**32))
@SEVERAL
def test_weights_and_biases(nesting, seed):
    """Against the formulas in float64, up to the room for rounding."""
    layer = random_layer(nesting, 9, 0.5, seed)
    weight_CD, bias_C = (values.detach() for values in layer.weight_and_bias())
    own_CD, own_C = layer.weight.detach().double(), layer.bias.detach().double()
    for label, inner in enumerate(nesting.inner):
        if not inner:
            assert torch.equal(weight_CD[label], layer.weight[label])
            assert torch.equal(bias_C[label], layer.bias[label])
            continue
        torch.testing.assert_close(weight_CD[label].double(), weight_CD[inner[0]] + own_CD[label])
        least = max(float(bias_C[other] + (weight_CD[label] - weight_CD[other]).abs().sum()) for other in inner)
        expected = least + float(own_C[label].exp().log1p()) + MARGIN
        assert float(bias_C[label]) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_gradients_reach_all_parameters(nesting):
    layer = random_layer(nesting, 6, 0.5, 2)
    with torch.no_grad():
        layer.weight.add_(0.01)
    weights_BC = torch.randn(8, len(nesting.inner))
    (layer(torch.rand(8, 6) * 2 - 1) * weights_BC).sum().backward()
    assert (layer.weight.grad != 0).any(1).all()
    assert (layer.bias.grad != 0).all()


def test_plain_layer_is_a_copy():
    layer = random_layer(DIAMOND, 5, 1.0, 3)
    plain = layer.plain()
    assert type(plain) is nn.Linear
    before_CD = plain.weight.clone()
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(plain.weight, before_CD)
    assert not torch.equal(layer.plain().weight, before_CD)
    assert plain.weight.requires_grad


def test_float32_under_autocast():
    layer = random_layer(DIAMOND, 40, 1.0, 4)
    features_BD = torch.rand(9, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits_BC = layer(features_BD)
    assert torch.equal(logits_BC, layer(features_BD.float()))


def test_saved_and_loaded():
    layer = random_layer(DIAMOND, 5, 1.0, 3)
    other = NestedLinear(5, DIAMOND)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    features_BD = torch.rand(3, 5)
    assert torch.equal(layer(features_BD), other(features_BD))


def trained_loss(layer: nn.Module, features_BD: torch.Tensor, targets_BC: torch.Tensor) -> float:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(layer(features_BD), targets_BC)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_learns_how_far_away_as_well_as_a_free_layer():
    """Features tell which of five rings around an event a row is in, if in any; others tell nothing."""
    torch.manual_seed(6)
    ring_B = torch.randint(0, 6, (600,))
    signs_BR = torch.where(ring_B[:, None] > torch.arange(5), 1.0, -1.0)
    features_BD = torch.tanh(torch.cat([2 * signs_BR, torch.zeros(600, 3)], 1) + 0.7 * torch.randn(600, 8))
    # Ring 0 is within all distances, ring 5 within none.
    targets_BC = (ring_B[:, None] <= torch.arange(5)).float()
    nested = trained_loss(NestedLinear(8, order(KM, [KM])), features_BD, targets_BC)
    free = trained_loss(nn.Linear(8, 5), features_BD, targets_BC)
    same_B = binary_cross_entropy_with_logits(torch.zeros_like(targets_BC), targets_BC).item()
    assert nested < free + 0.1 * (same_B - free)


@st.composite
def label_pairs(draw):
    """Pairs of an inner and an outer label that have an order, which is not that of their numbers."""
    num_labels = draw(st.integers(1, 6))
    places = draw(st.permutations(range(num_labels)))
    possible = [(places[inner], places[outer]) for inner in range(num_labels) for outer in range(inner + 1, num_labels)]
    return num_labels, draw(st.lists(st.sampled_from(possible), max_size=10)) if possible else []


@given(label_pairs())
@SEVERAL
def test_order(case):
    num_labels, pairs = case
    labels = [f"label {number}" for number in range(num_labels)]
    nesting = order(labels, [[labels[inner], labels[outer]] for inner, outer in pairs])
    closed = reachable(pairs, num_labels)
    direct = pairs_of(nesting)
    assert reachable(direct, num_labels) == closed
    # Each direct pair is needed.
    assert all(reachable(set(direct) - {pair}, num_labels) != closed for pair in direct)
    assert len(set(direct)) == len(direct)
    assert sorted(nesting.inner_first) == list(range(num_labels))
    assert all(nesting.inner_first.index(inner) < nesting.inner_first.index(outer) for inner, outer in closed)
    both_ways = reachable([*pairs, *(pair[::-1] for pair in pairs)], num_labels)
    expected = {tuple(b for b in range(num_labels) if b == a or (a, b) in both_ways) for a in range(num_labels)}
    assert nesting.components == tuple(sorted(expected))


def test_lattice_of_days_and_km():
    nesting = order(LATTICE, LATTICE_CHAINS)
    inner = {LATTICE[outer]: {LATTICE[place] for place in direct} for outer, direct in enumerate(nesting.inner)}
    assert inner["1d-10km"] == inner["other"] == set()
    assert inner["3d-30km"] == {"3d-20km", "2d-30km"}
    assert inner["7d-10km"] == {"3d-10km"}
    assert nesting.components == ((0,), tuple(range(1, 21)))


def test_chain_of_one_label_says_nothing():
    assert order("ab", ["a", "", "b"]) == order("ab", [])


@pytest.mark.parametrize(
    ("labels", "chains", "message"),
    [
        ("aba", [], "a label is there twice: a, b, a"),
        ("ab", ["ab", "abc"], 'nested labels have "c", the labels are a, b'),
        ("ab", ["aba"], "a label is there twice in the nested labels a, b, a"),
        ("abcd", ["abc", "da", "cd"], "nested labels go round in a circle: . within . within . within . within .$"),
        ("ab", ["ab", "ba"], "nested labels go round in a circle: . within . within .$"),
    ],
)
def test_wrong_chains(labels, chains, message):
    with pytest.raises(ValueError, match=message) as error:
        order(labels, chains)
    assert "\n" not in str(error.value)


def test_an_outer_label_is_lifted_to_its_inner_ones():
    scores = np.array([[0.5, 0.25, 0.125, 0.75], [0.125, 0.25, 0.5, 0.75]], np.float32)
    nesting = order(["10km", "30km", "50km", "other"], [["10km", "30km", "50km"]])
    expected = [[0.5, 0.5, 0.5, 0.75], [0.125, 0.25, 0.5, 0.75]]
    np.testing.assert_array_equal(in_order(scores.copy(), nesting), expected)
    np.testing.assert_array_equal(in_order(scores.copy(), None), scores)
