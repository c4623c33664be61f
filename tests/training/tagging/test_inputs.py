from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.words import WordTokens

# --- Tensors


@st.composite
def inputs_and_rows(draw: st.DrawFn):
    """Words of some tweets, and what of them is read: with tags or without, and one of the three sources."""
    num_words = draw(st.lists(st.integers(1, 6), min_size=1, max_size=7))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tags = [random.integers(0, 9, size=num).tolist() for num in num_words] if draw(st.booleans()) else None
    source = draw(st.sampled_from(["tokens", "word_ids", "vectors_WD"]))
    if source == "tokens":
        values = []
        for num in num_words:
            ends = (1 + np.cumsum(random.integers(1, 4, size=num))).tolist()
            ids = random.integers(5, 99, size=ends[-1] + 1).tolist()
            values.append(WordTokens(tuple(ids), (1, *ends[:-1]), tuple(ends)))
    elif source == "word_ids":
        values = [random.integers(1, 99, size=num).tolist() for num in num_words]
    else:
        values = torch.from_numpy(random.normal(size=(sum(num_words), 3)).astype(np.float16))
    rows = draw(st.lists(st.integers(0, len(num_words) - 1), min_size=1, max_size=8))
    return Inputs(tuple(num_words), tags=tags, **{source: values}), rows


def expected_row(inputs, row):
    """What a batch holds of a tweet, before it is filled up: values and what fills them up."""
    num = inputs.num_words[row]
    expected = {"mask_BL": ([True] * num, False)}
    if inputs.tags is not None:
        expected["tags_BL"] = (inputs.tags[row], 0)
    if inputs.tokens is not None:
        one = inputs.tokens[row]
        expected["input_ids_BS"] = (one.ids, 7)
        expected["attention_BS"] = ([1 for _ in one.ids], 0)
        expected["starts_BL"], expected["ends_BL"] = (one.starts, 0), (one.ends, 0)
    elif inputs.word_ids is not None:
        expected["word_ids_BL"] = (inputs.word_ids[row], 0)
    else:
        first = sum(inputs.num_words[:row])
        expected["vectors_BLD"] = ([inputs.vectors_WD[first + word].tolist() for word in range(num)], [0.0, 0.0, 0.0])
    return expected


@settings(deadline=None)
@given(inputs_and_rows())
def test_a_batch_holds_its_tweets_and_is_filled_up_behind_them(drawn):
    inputs, rows = drawn
    batch = inputs.collate(rows, pad_id=7)
    expected = [expected_row(inputs, row) for row in rows]
    assert set(batch) == set(expected[0])
    for name, tensor in batch.items():
        width = max(len(row[name][0]) for row in expected)
        filled = [[*values, *[pad] * (width - len(values))] for values, pad in (row[name] for row in expected)]
        assert tensor.tolist() == filled, name
        kinds = {"mask_BL": torch.bool, "vectors_BLD": torch.float16}
        assert tensor.dtype == kinds.get(name, torch.long), name
        assert tensor.shape[:2] == (len(rows), width)


@given(inputs_and_rows())
def test_costs_are_what_a_batch_is_as_wide_as(drawn):
    inputs, _ = drawn
    assert len(inputs) == len(inputs.costs) == len(inputs.num_words)
    widest = "input_ids_BS" if inputs.tokens is not None else "mask_BL"
    assert inputs.costs == [inputs.collate([row])[widest].shape[1] for row in range(len(inputs))]


def test_a_batch_without_a_source_is_a_fault_of_ours():
    with pytest.raises(AssertionError):
        Inputs((1,)).collate([0])
