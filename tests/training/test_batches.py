from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalemine.training import batches as module
from scalemine.training.batches import even_batches, prediction_batches, to_device


def training_batches(*args, **how):
    return [batch.tolist() for batch in module.training_batches(*args, **how)]


costs_of_rows = st.lists(st.integers(1, 40), max_size=70)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**40)


def num_padded(batches, costs):
    """Places of all batches that hold nothing."""
    return sum(max(costs[row] for row in batch) * len(batch) for batch in batches) - sum(costs)


# --- Batches of training


@given(costs_of_rows, sizes, sizes, seeds, st.integers(0, 50))
def test_an_epoch_has_each_row_once_in_full_batches(costs, batch_size, bucket_batches, seed, epoch):
    batches = training_batches(costs, batch_size, bucket_batches, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(costs)))
    assert all(type(row) is int for batch in batches for row in batch)
    # As few steps as can be: all batches are full, but for one that holds the rest.
    rest = len(costs) % batch_size
    assert sorted(map(len, batches)) == [rest] * (rest > 0) + [batch_size] * (len(costs) // batch_size)


@given(costs_of_rows, sizes, sizes, seeds, st.integers(0, 50))
def test_rows_of_a_bucket_are_batched_by_length(costs, batch_size, bucket_batches, seed, epoch):
    batches = training_batches(costs, batch_size, bucket_batches, seed=seed, epoch=epoch)
    # The oracle draws what the code draws, and fills batch after batch by a plain sort.
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(costs)).tolist()
    expected, size = [], batch_size * bucket_batches
    while order:
        pool, order = order[:size], order[size:]
        if bucket_batches > 1:
            pool.sort(key=lambda row: costs[row])
        while pool:
            batch, pool = pool[:batch_size], pool[batch_size:]
            expected.append(batch)
    assert batches == [expected[place] for place in random.permutation(len(expected))]


def test_the_order_depends_on_seed_and_epoch_alone():
    costs = np.random.default_rng(0).integers(1, 30, size=200).tolist()
    first = training_batches(costs, 8, 4, seed=1, epoch=0)
    np.random.seed(5)  # noqa: NPY002  the global state that must not matter
    torch.manual_seed(5)
    assert training_batches(costs, 8, 4, seed=1, epoch=0) == first
    others = [training_batches(costs, 8, 4, seed=seed, epoch=epoch) for seed, epoch in ((1, 1), (2, 0), (0, 1))]
    for number, batches in enumerate(others):
        assert batches not in [first, *others[:number]]
    # The shuffle is not one of batches that stay together: most neighbours of an epoch are strangers in the next.
    neighbours = [
        {(a, b) for batch in batches for a in batch for b in batch if a < b} for batches in (first, others[0])
    ]
    assert len(neighbours[0] & neighbours[1]) < 0.3 * len(neighbours[0])


def test_buckets_save_padding_and_one_batch_is_no_bucket():
    costs = np.random.default_rng(0).lognormal(3, 0.5, size=1_000).astype(int).clip(1, 128).tolist()
    padded = {
        bucket: [num_padded(training_batches(costs, 16, bucket, seed=seed, epoch=0), costs) for seed in range(5)]
        for bucket in (1, 20)
    }
    assert max(padded[20]) < 0.3 * min(padded[1])
    # Short and long tweets come in any order, not the short ones first.
    means = [np.mean([costs[row] for row in batch]) for batch in training_batches(costs, 16, 20, seed=0, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    rows = [row for batch in training_batches(costs, 16, 1, seed=0, epoch=0) for row in batch]
    assert abs(np.corrcoef([costs[row] for row in rows], np.arange(len(rows)))[0, 1]) < 0.1


# --- Batches of prediction


@given(costs_of_rows, st.integers(1, 120))
def test_prediction_has_each_row_once_sorted_and_within_the_budget(costs, budget):
    batches = prediction_batches(costs, budget)
    assert prediction_batches(np.array(costs, np.int32), budget) == batches
    assert all(type(row) is int for batch in batches for row in batch)
    rows = [row for batch in batches for row in batch]
    assert rows == sorted(range(len(costs)), key=lambda row: (costs[row], row))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(costs[row] for row in batch) <= budget
    # No batch could have taken the first row of the next.
    for batch, following in zip(batches, batches[1:], strict=False):
        assert (len(batch) + 1) * costs[following[0]] > budget


@given(st.lists(st.integers(0, 40), max_size=70), st.integers(0, 120))
def test_batches_of_prediction_are_filled_row_by_row(costs, budget):
    """Rows that cost nothing, too: they go with any number of others."""
    expected: list[list[int]] = []
    for row in sorted(range(len(costs)), key=lambda row: costs[row]):
        if expected and (len(expected[-1]) + 1) * costs[row] <= budget:
            expected[-1].append(row)
        else:
            expected.append([row])
    assert prediction_batches(costs, budget) == expected


def test_batches_go_to_a_device():
    batch = {"mask_BL": torch.ones(1, 2, dtype=torch.bool)}
    moved = to_device(batch, torch.device("meta"))
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in moved.items()} == {"mask_BL": ("meta", (1, 2))}
    assert batch["mask_BL"].device.type == "cpu"


# --- Batches that nobody's company changes


@given(costs_of_rows, st.integers(1, 600))
def test_even_batches_have_one_length_and_each_row_once(costs, budget):
    found = list(even_batches(costs, budget))
    assert sorted(row for rows, count in found for row in rows[:count]) == list(range(len(costs)))
    for rows, count in found:
        [length] = {costs[row] for row in rows}
        assert count == 1 or count * length <= budget
        # Copies of its own rows, in turn, up to what kernels want.
        assert len(rows) == next(size for size in range(8, 2_000, 8) if size >= count and size * length >= 256)
        assert rows == [rows[place % count] for place in range(len(rows))]
