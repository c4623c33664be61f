"""Networks on word vectors that give labels: convolutions and LSTMs, as published.

    cnn_bilstm  words ─ convolution, ReLU ─ LSTM each way, its last states ─ dropout ─ 512 ─ 512 ─ logits
    text_cnn    words ─ convolutions of three windows, ReLU ─ the largest of each channel ─ dropout ─ logits
    cnn_lstm    words ─ convolution of two words, ReLU ─ LSTM, its last state ─ dropout ─ logits

What fills up a batch changes no text's logits: windows that reach beyond a text's end see zeros there, as if the text
stood alone, and LSTMs and maxima end where the text ends. For one label a sigmoid of one logit is what a softmax of two
is; for several, each has its own.

Source: cnn_bilstm: Wang et al. (2022), section 3.5.6. text_cnn: Kim (2014), with the lengths of Wang et al., table A6.
cnn_lstm: De la Peña Sarracén & Rosso (2019), section 2.3.

Shapes: B texts, L words of the longest one, D dimensions of a word, H channels or units, C labels, V words known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalemine.config import WORD_NETWORKS
from scalemine.models import length_batches
from scalemine.training.batches import Batch
from scalemine.training.multilabel.losses import LabelLoss
from scalemine.training.tagging.encoders import WordEncoder
from scalemine.training.tagging.labels import word_offsets
from scalemine.training.tagging.network import BiLstm, Cnn, StaticWords

# Units of the two layers of cnn_bilstm that decide.
DENSE = 512
# Half of the width from which new vectors are drawn. Source: Kim (2014), section 3.2.
_SPREAD = 0.25
# Training tweets that a word must be in to have a vector of its own; rarer ones teach that of unknown words.
_FEWEST_TWEETS = 2
# Texts that are computed together are of one length and always as many, so none has other bits in other company.
PREDICTED_TEXTS = 64


@dataclass(frozen=True)
class NetworkShape:
    """What a network is made of; see ``config.TrainConfig``."""

    model: str
    dim: int
    hidden: int
    kernel: int
    dropout: float
    num_labels: int

    def __post_init__(self) -> None:
        if self.model not in WORD_NETWORKS:
            raise ValueError(f"expected one of {', '.join(WORD_NETWORKS)}, got {self.model!r}")
        least = 3 if self.model == "text_cnn" else 1
        sizes = (self.dim, self.hidden - least + 1, self.kernel, self.num_labels)
        if not all(isinstance(size, int) and size >= 1 for size in sizes) or not 0 <= self.dropout < 1:
            raise ValueError(f"sizes that no network has: {self}")


class WordNetwork(nn.Module):
    """Words to logits and to the loss.

    Args:
        shape: What it is made of.
        words: The words' vectors.
        loss: The loss; None where nothing is learnt.
    """

    def __init__(self, shape: NetworkShape, words: StaticWords, loss: LabelLoss | None = None) -> None:
        super().__init__()
        self.shape, self.words, self.loss = shape, words, loss
        self.features = _FEATURES[shape.model](shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.dense = nn.Sequential()
        width = self.features.width
        if shape.model == "cnn_bilstm":
            self.dense = nn.Sequential(nn.Linear(width, DENSE), nn.ReLU(), nn.Linear(DENSE, DENSE), nn.ReLU())
            width = DENSE
        self.head = nn.Linear(width, shape.num_labels)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits ``(B, C)``, float32."""
        mask_BL = batch["mask_BL"]
        features_BH = self.features(self.words(batch) * mask_BL[..., None], mask_BL)
        logits_BC: Tensor = self.head(self.dense(self.dropout(features_BH)))
        return logits_BC

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of the batch, a scalar."""
        assert self.loss is not None
        loss: Tensor = self.loss(self.logits(batch), batch["targets"], batch["weight"], batch.get("pseudo"))
        return loss


class _CnnBiLstm(nn.Module):
    """A convolution whose channels an LSTM reads each way."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.width = 2 * shape.hidden
        self.convolution = Cnn(shape.dim, shape.hidden, shape.kernel)
        self.lstm = BiLstm(shape.hidden, shape.hidden)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what is known of each text ``(B, H)``."""
        # A window of an even number of words leaves one place too many, or too few, at the end.
        channels_BLH = self.convolution(vectors_BLD, mask_BL)[:, : mask_BL.shape[1]]
        states_BLH = self.lstm(channels_BLH, mask_BL)
        forth_BLH, back_BLH = states_BLH.chunk(2, dim=2)
        return torch.cat([_at(forth_BLH, mask_BL.sum(1) - 1), back_BLH[:, 0]], dim=1)


class _Windows(nn.Module):
    """A convolution over the windows that lie within a text, and ReLU; a text that is shorter has one, with zeros."""

    def __init__(self, dim: int, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.convolution = nn.Conv1d(dim, channels, size)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels ``(B, L, H)`` of the windows by their first word, and which windows there are."""
        filled_BDL = nn.functional.pad(vectors_BLD.transpose(1, 2), (0, self.size - 1))
        channels_BLH = self.convolution(filled_BDL).transpose(1, 2).relu()
        last_B = (mask_BL.sum(1) - self.size).clamp(min=0)
        return channels_BLH, torch.arange(mask_BL.shape[1], device=mask_BL.device) <= last_B[:, None]


class _TextCnn(nn.Module):
    """The largest value of each channel over the windows of three sizes; ``hidden`` channels in all."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.width = shape.hidden
        each, more = divmod(shape.hidden, 3)
        self.windows = nn.ModuleList(
            _Windows(shape.dim, each + (place < more), shape.kernel + place) for place in range(3)
        )

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what is known of each text ``(B, H)``."""
        found = [windows(vectors_BLD, mask_BL) for windows in self.windows]
        # ReLU gives nothing below 0.
        return torch.cat([(channels * there[..., None]).amax(1) for channels, there in found], dim=1)


class _CnnLstm(nn.Module):
    """A convolution whose windows an LSTM reads one after the other; its state after the last."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.width = shape.hidden
        self.windows = _Windows(shape.dim, shape.hidden, shape.kernel)
        self.lstm = nn.LSTM(shape.hidden, shape.hidden, batch_first=True)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what is known of each text ``(B, H)``."""
        channels_BLH, there_BL = self.windows(vectors_BLD, mask_BL)
        states_BLH, _ = self.lstm(channels_BLH)
        return _at(states_BLH, there_BL.sum(1) - 1)


_FEATURES: dict[str, type[_CnnBiLstm | _TextCnn | _CnnLstm]] = {
    "cnn_bilstm": _CnnBiLstm, "text_cnn": _TextCnn, "cnn_lstm": _CnnLstm,
}  # fmt: skip


def _at(states_BLH: Tensor, place_B: Tensor) -> Tensor:
    """Return the state of each text at its place."""
    return states_BLH[torch.arange(len(states_BLH), device=states_BLH.device), place_B]


def split_words(
    texts: Iterable[str | None], normalise: Callable[[str], str], max_length: int
) -> tuple[list[list[str]], int]:
    """Return the words that are read of each text, one at least (an empty one), and how many texts are cut."""
    found, num_cut = [], 0
    for text in texts:
        normal = normalise(text or "")
        words = [normal[start:end] for start, end in word_offsets(normal)]
        num_cut += len(words) > max_length
        found.append(words[:max_length] or [""])
    return found, num_cut


def learnt_words(texts: Iterable[Sequence[str]], *, dimensions: int, most: int | None) -> WordEncoder:
    """Return new vectors of the words of training tweets in lower case, the most frequent first, drawn at random.

    Args:
        texts: Words of each tweet.
        dimensions: Of a vector.
        most: Words that get a vector at most; None: all that are in two tweets.
    """
    texts_with = Counter(word for words in texts for word in {word.lower() for word in words} if word)
    known = [word for word, number in texts_with.items() if number >= _FEWEST_TWEETS]
    known = sorted(known, key=lambda word: (-texts_with[word], word))[:most]
    table_VD = torch.empty(1 + len(known), dimensions).uniform_(-_SPREAD, _SPREAD)
    vocabulary = {word: row for row, word in enumerate(known, start=1)}
    return WordEncoder(StaticWords(table_VD, frozen=False), None, vocabulary, {})


def prediction_rows(lengths: Sequence[int] | NDArray[np.int64]) -> list[list[int]]:
    """Return batches of texts of one length, of ``PREDICTED_TEXTS`` at most."""
    return [
        rows[start : start + PREDICTED_TEXTS]
        for rows in length_batches([int(length) for length in lengths], 2**62)
        for start in range(0, len(rows), PREDICTED_TEXTS)
    ]


@torch.inference_mode()
def logits_of_one_length(network: WordNetwork, word_ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits ``(B, C)`` of texts of one length, on the CPU; copies fill the batch up to its one size."""
    device = network.head.weight.device
    filled = [*word_ids, *[word_ids[0]] * (PREDICTED_TEXTS - len(word_ids))]
    ids_BL = torch.tensor(filled, dtype=torch.long, device=device)
    batch = {"word_ids_BL": ids_BL, "mask_BL": torch.ones_like(ids_BL, dtype=torch.bool)}
    return network.logits(batch)[: len(word_ids)].float().cpu()
