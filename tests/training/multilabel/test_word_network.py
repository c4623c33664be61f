from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from scalemine.config import WORD_NETWORKS, LossConfig
from scalemine.text import normaliser
from scalemine.training.batches import pad
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.word_network import (
    PREDICTED_TEXTS,
    NetworkShape,
    WordNetwork,
    learnt_words,
    logits_of_one_length,
    prediction_rows,
    split_words,
)
from scalemine.training.tagging.network import StaticWords

DIM, NUM_WORDS, LABELS = 5, 12, 2
TEXTS = [[3], [1, 2], [4, 4, 0, 7, 2, 9], [5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9], [8, 1, 10, 2]]


def shape(model: str, hidden: int = 7, kernel: int = 2, dropout: float = 0.0) -> NetworkShape:
    return NetworkShape(model, DIM, hidden, kernel, dropout, LABELS)


def make(model: str, seed: int = 0, loss: LabelLoss | None = None, **sizes) -> WordNetwork:
    torch.manual_seed(seed)
    return WordNetwork(shape(model, **sizes), StaticWords(torch.randn(NUM_WORDS, DIM), frozen=False), loss).eval()


def batch(texts: list[list[int]], width: int | None = None, filler: int = 0) -> dict:
    lengths = torch.tensor(list(map(len, texts)))
    ids_BL = pad([*texts, [0] * (width or 1)], filler)[: len(texts)]
    return {"word_ids_BL": ids_BL, "mask_BL": torch.arange(ids_BL.shape[1])[None] < lengths[:, None]}


# A slow version: one text, one window and one step at a time, in float64 and without torch's layers.


def window(convolution: nn.Conv1d, rows: np.ndarray) -> np.ndarray:
    weight, bias = (one.detach().double().numpy() for one in (convolution.weight, convolution.bias))
    return np.maximum([(weight[channel].T * rows).sum() + bias[channel] for channel in range(len(bias))], 0)


def windows_within(convolution: nn.Conv1d, vectors: np.ndarray, size: int) -> list[np.ndarray]:
    if len(vectors) < size:
        vectors = np.concatenate([vectors, np.zeros((size - len(vectors), vectors.shape[1]))])
    return [window(convolution, vectors[at : at + size]) for at in range(len(vectors) - size + 1)]


def lstm(layer: nn.LSTM, inputs: list[np.ndarray]) -> np.ndarray:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    into, on, bias_in, bias_on = (getattr(layer, name).detach().double().numpy() for name in names)
    hidden = cell = np.zeros(layer.hidden_size)
    for one in inputs:
        gates = into @ one + bias_in + on @ hidden + bias_on
        enter, forget, new, out = np.split(gates, 4)
        sigmoid = lambda values: 1 / (1 + np.exp(-values))  # noqa: E731
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
    return hidden


def linear(layer: nn.Linear, values: np.ndarray) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ values + layer.bias.detach().double().numpy()


def slow_logits(network: WordNetwork, text: list[int]) -> np.ndarray:
    vectors = network.words.table.weight.detach().double().numpy()[text]
    model, size, parts = network.shape.model, network.shape.kernel, network.features
    if model == "text_cnn":
        found = [
            np.max(windows_within(one.convolution, vectors, size + place), axis=0)
            for place, one in enumerate(parts.windows)
        ]
        return linear(network.head, np.concatenate(found))
    if model == "cnn_lstm":
        return linear(network.head, lstm(parts.lstm, windows_within(parts.windows.convolution, vectors, size)))
    before = np.zeros((size // 2, DIM))
    around = np.concatenate([before, vectors, before])
    channels = [window(parts.convolution.convolution, around[at : at + size]) for at in range(len(text))]
    values = np.concatenate([lstm(parts.lstm.forth, channels), lstm(parts.lstm.back, channels[::-1])])
    for layer in network.dense:
        values = linear(layer, values) if isinstance(layer, nn.Linear) else np.maximum(values, 0)
    return linear(network.head, values)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_equals_the_slow_version(model, kernel):
    network = make(model, kernel=kernel)
    expected = np.stack([slow_logits(network, text) for text in TEXTS])
    assert network.logits(batch(TEXTS)).detach().numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_what_fills_up_changes_no_logits_and_no_gradient(model):
    network = make(model)
    alone = torch.cat([network.logits(batch([text])) for text in TEXTS])
    alone.square().sum().backward()
    expected = [one.grad.clone() for one in network.parameters()]
    for width, filler in ((9, 0), (23, 0), (23, 11)):  # also where it is a word's
        network.zero_grad()
        together = network.logits(batch(TEXTS, width, filler))
        assert torch.allclose(together, alone, atol=1e-5)
        together.square().sum().backward()
        for one, wanted in zip(network.parameters(), expected, strict=True):
            assert torch.allclose(one.grad, wanted, atol=1e-4)


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_the_order_of_words_counts_within_windows(model):
    network = make(model)
    assert not torch.allclose(network.logits(batch([[1, 2, 3]])), network.logits(batch([[3, 2, 1]])))


def test_published_sizes():
    """As the papers have them: 1,024 maxima in three windows; two dense layers of 512; 150 windows of two words."""
    words = StaticWords(torch.zeros(3, 300), frozen=True)
    text_cnn, cnn_bilstm, cnn_lstm = (
        WordNetwork(NetworkShape(model, 300, published["hidden"], published["kernel"], 0.5, 1), words)
        for model, published in ((one, WORD_NETWORKS[one]) for one in ("text_cnn", "cnn_bilstm", "cnn_lstm"))
    )
    assert [one.convolution.kernel_size[0] for one in text_cnn.features.windows] == [3, 4, 5]
    assert [one.convolution.out_channels for one in text_cnn.features.windows] == [342, 341, 341]
    assert text_cnn.head.in_features == 1_024
    assert cnn_bilstm.features.convolution.convolution.out_channels == cnn_bilstm.features.lstm.back.hidden_size == 128
    assert [one.out_features for one in cnn_bilstm.dense if isinstance(one, nn.Linear)] == [512, 512]
    assert cnn_lstm.features.windows.convolution.weight.shape == (150, 300, 2)


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_overfits_a_few_texts(model):
    targets_NC = np.array([[row % 2, row // 3] for row in range(len(TEXTS))], np.int8)
    network = make(model, loss=LabelLoss(LossConfig(), LabelCounts.of(targets_NC)), hidden=16).train()
    rows = batch(TEXTS) | {"targets": torch.from_numpy(targets_NC), "weight": torch.ones(len(TEXTS))}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    first = network(rows).item()
    for _ in range(60):
        optimizer.zero_grad()
        network(rows).backward()
        optimizer.step()
    assert network(rows).item() < 0.05 * first
    assert ((network.eval().logits(batch(TEXTS)) > 0).numpy() == targets_NC).all()


@pytest.mark.parametrize("model", WORD_NETWORKS)
def test_company_changes_no_bit(model):
    network = make(model, hidden=64)
    texts = torch.randint(0, NUM_WORDS, (PREDICTED_TEXTS + 5, 6), generator=torch.Generator().manual_seed(1)).tolist()
    batches = prediction_rows([6] * len(texts))
    assert max(map(len, batches)) == PREDICTED_TEXTS
    together = torch.cat([logits_of_one_length(network, [texts[row] for row in rows]) for rows in batches])
    order = [row for rows in batches for row in rows]
    alone = torch.cat([logits_of_one_length(network, [texts[row]]) for row in order[::3]])
    assert torch.equal(together[::3], alone)


def test_batches_hold_each_row_once_and_one_length():
    lengths = [3, 1, 3, 2, 3] * 40
    batches = prediction_rows(lengths)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert all(len({lengths[row] for row in rows}) == 1 and len(rows) <= PREDICTED_TEXTS for rows in batches)
    assert prediction_rows([]) == []


def test_words_are_split_cut_and_never_none():
    texts = ["Trapped at 77002, HELP http://t.co/x", "", None, "a b c d e f g h"]
    words, num_cut = split_words(texts, normaliser("none"), 5)
    assert words == [["Trapped", "at", "77002", ",", "HELP"], [""], [""], ["a", "b", "c", "d", "e"]]
    assert num_cut == 2
    [cleaned], _ = split_words(texts[:1], normaliser("rescue"), 5)
    assert "help" in cleaned and "zcode" in cleaned


def test_learnt_words():
    texts = [["Fire", "near", "fire"], ["fire", "bridge"], ["near", "rare", ""], [""]]
    torch.manual_seed(3)
    words = learnt_words(texts, dimensions=4, most=None)
    assert words.vocabulary == {"fire": 1, "near": 2}  # in two texts each; the empty word is unknown
    table = words.module.table.weight
    assert table.shape == (3, 4) and table.requires_grad and table.abs().max() <= 0.25
    assert words.read([["FIRE", "smoke", "#near"], [""]]).word_ids == [[1, 0, 2], [0]]
    assert learnt_words(texts, dimensions=4, most=1).vocabulary == {"fire": 1}
    assert learnt_words([["once"]], dimensions=2, most=None).vocabulary == {}
    torch.manual_seed(3)
    assert torch.equal(learnt_words(texts[::-1], dimensions=4, most=None).module.table.weight, table)


@pytest.mark.parametrize(
    "changes", [{"model": "lstm"}, {"dim": 0}, {"hidden": 2}, {"kernel": 0}, {"dropout": 1.0}, {"dropout": math.nan}]
)
def test_refuses_sizes_that_no_network_has(changes):
    values = {"model": "text_cnn", "dim": 4, "hidden": 3, "kernel": 1, "dropout": 0.5, "num_labels": 1}
    NetworkShape(**values)
    with pytest.raises(ValueError, match="expected one of|sizes"):
        NetworkShape(**values | changes)
