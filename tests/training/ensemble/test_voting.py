from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scalemine.training.ensemble.voting import MAJORITY, average, vote, vote_spans

# Eighths are exact, so that equal means are equal.
EIGHTHS = st.integers(0, 8).map(lambda number: number / 8)


@st.composite
def members(draw):
    """Return probabilities of 1 to 5 members and their thresholds, with many ties."""
    shape = tuple(draw(st.integers(1, most)) for most in (5, 6, 3))
    scores_MNC = draw(arrays.arrays(np.float32, shape, elements=EIGHTHS))
    thresholds_MC = draw(arrays.arrays(np.float64, (shape[0], shape[2]), elements=EIGHTHS))
    return scores_MNC, thresholds_MC


@given(members())
def test_what_more_than_half_of_the_members_give_is_given_and_the_mean_decides_ties(given_members):
    scores_MNC, thresholds_MC = given_members
    voted_NC = vote(scores_MNC, thresholds_MC)
    num_members, num_texts, num_labels = scores_MNC.shape
    assert voted_NC.shape == (num_texts, num_labels)
    assert voted_NC.dtype == np.float32
    for text in range(num_texts):
        for label in range(num_labels):
            probabilities = [Fraction(float(scores_MNC[one, text, label])) for one in range(num_members)]
            thresholds = [Fraction(float(thresholds_MC[one, label])) for one in range(num_members)]
            votes = sum(one >= least for one, least in zip(probabilities, thresholds, strict=True))
            is_given = votes > num_members - votes
            if votes == num_members - votes:
                is_given = sum(probabilities) >= sum(thresholds)
            assert (voted_NC[text, label] >= MAJORITY) == is_given
            assert voted_NC[text, label] == pytest.approx(votes / num_members, abs=1e-7)


@given(members())
def test_the_average_is_the_mean_of_the_probabilities(given_members):
    scores_MNC, _ = given_members
    found_NC = average(scores_MNC)
    assert found_NC.dtype == np.float32
    for place in np.ndindex(found_NC.shape):
        of_members = [Fraction(float(of_member[place])) for of_member in scores_MNC]
        assert found_NC[place] == np.float32(float(sum(of_members) / len(of_members)))


@given(members())
def test_one_member_decides_as_it_would_alone(given_members):
    scores_MNC, thresholds_MC = (array[:1] for array in given_members)
    assert np.array_equal(average(scores_MNC), scores_MNC[0])
    assert np.array_equal(vote(scores_MNC, thresholds_MC) >= MAJORITY, scores_MNC[0] >= thresholds_MC)


@given(members(), st.randoms())
def test_the_order_of_members_does_not_matter(given_members, chance):
    scores_MNC, thresholds_MC = given_members
    order = list(range(len(scores_MNC)))
    chance.shuffle(order)
    assert np.array_equal(vote(scores_MNC[order], thresholds_MC[order]), vote(scores_MNC, thresholds_MC))


def test_a_tie_is_seen_in_the_share():
    scores_MNC = np.array([[[0.9], [0.6]], [[0.4], [0.1]]], np.float32)
    [[won], [lost]] = vote(scores_MNC, np.full((2, 1), 0.5))
    assert won == 0.5
    assert 0.4999999 < lost < 0.5


def test_nested_labels_stay_in_order():
    """Outer labels are never less probable, and their thresholds never higher, in any member."""
    chance = np.random.default_rng(0)
    for _ in range(300):
        size = chance.integers(1, 5)
        scores_MNC = np.sort(chance.integers(0, 5, (size, 8, 2)) / 4, axis=2)[..., ::-1].astype(np.float32)
        thresholds_MC = np.sort(chance.integers(0, 5, (size, 2)) / 4, axis=1)
        for found_NC in (vote(scores_MNC, thresholds_MC), average(scores_MNC)):
            assert (found_NC[:, 0] >= found_NC[:, 1]).all()


def test_what_cannot_be_combined():
    with pytest.raises(ValueError, match=r"expected the probabilities"):
        vote(np.empty((0, 2, 1), np.float32), np.empty((0, 1)))
    with pytest.raises(ValueError, match=r"expected the probabilities"):
        average(np.empty((2, 1), np.float32))
    with pytest.raises(ValueError, match=r"thresholds \(1, 2\)"):
        vote(np.zeros((2, 3, 2), np.float32), np.zeros((1, 2)))


@st.composite
def tagged(draw):
    """Return the spans that 1 to 5 members give a text of 6 words; a member's own do not overlap."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        edges = sorted(draw(st.sets(st.integers(0, 6), max_size=6)))
        pairs = list(zip(edges, edges[1:], strict=False))
        chosen = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
        types = draw(st.lists(st.sampled_from("ab"), min_size=len(pairs), max_size=len(pairs)))
        found.append([(*pair, type_) for pair, is_in, type_ in zip(pairs, chosen, types, strict=True) if is_in])
    return found


@given(tagged())
def test_spans_that_more_than_half_of_the_members_give_exactly(found):
    voted = vote_spans(found)
    every = {(start, end, type_) for start in range(7) for end in range(start + 1, 7) for type_ in "ab"}
    assert voted == {span for span in every if 2 * sum(span in of_member for of_member in found) > len(found)}
    places = [word for start, end, _ in voted for word in range(start, end)]
    assert len(places) == len(set(places))  # none overlap
