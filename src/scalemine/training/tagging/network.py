"""The network of a tagger: words to vectors, vectors to scores of tags, scores to a loss or a path.

    words ─ transformer | static table | cache → vectors ─ BiLSTM | CNN | both | none → emissions ─ CRF | softmax → tags

Source: Zhang, Lo and Win Myint (2023) for LSTM-CRF, CNN-CRF and LSTM-CNN-CRF: one BiLSTM layer of 128 each way, dropout
0.4, kernel 3; Huang, Xu and Yu (2015), Ma and Hovy (2016) for their form.

Shapes: B tweets, L words of the longest one, S tokens of the longest one, D dimensions of a word, H of its context,
T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scalemine.training.batches import Batch
from scalemine.training.tagging.crf import make_crf
from scalemine.training.tagging.labels import Span

Architecture = Literal["lstm_crf", "cnn_crf", "lstm_cnn_crf", "linear"]
Pooling = Literal["first", "mean"]
# The part of an encoder behind the tokens' vectors: it has no part in them, and would get no gradient.
UNUSED = "pooler."


@dataclass(frozen=True)
class Shape:
    """What a network above the words is made of; see ``config.TrainConfig``."""

    model: Architecture
    crf: Literal["pytorch-crf", "fast"]
    hidden: int
    kernel: int
    dropout: float
    dim: int


class TransformerWords(nn.Module):
    """Vectors of words by a Hugging Face encoder: those of their first token, or the mean of all.

    Args:
        transformer: The encoder.
        pooling: Which tokens stand for a word.
        precision: In which the encoder computes; what follows is float32.
        frozen: Whether it stays as it is. A frozen one rounds to float16, as the cache of its vectors does.
    """

    def __init__(self, transformer: Any, *, pooling: Pooling, precision: str, frozen: bool) -> None:  # noqa: ANN401
        super().__init__()
        self.transformer = transformer
        self.pooling, self.frozen = pooling, frozen
        self.dtype = getattr(torch, precision)
        self.dim = int(transformer.config.hidden_size)
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(not frozen and not name.startswith(UNUSED))

    def train(self, mode: bool = True) -> TransformerWords:
        """Switch between training and use; a frozen encoder is always in use."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, batch: Batch) -> Tensor:
        """Return the vectors ``(B, L, D)``, float32."""
        ids_BS = batch["input_ids_BS"]
        with torch.autocast(ids_BS.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden_BSD = self.transformer(input_ids=ids_BS, attention_mask=batch["attention_BS"]).last_hidden_state
        hidden_BSD = hidden_BSD.float()
        starts_BL, ends_BL = batch["starts_BL"], batch["ends_BL"]
        if self.pooling == "first":
            vectors_BLD = _take(hidden_BSD, starts_BL)
        else:
            sums_BSD = functional.pad(hidden_BSD.cumsum(1), (0, 0, 1, 0))
            length_BL = (ends_BL - starts_BL).clamp(min=1)
            vectors_BLD = (_take(sums_BSD, ends_BL) - _take(sums_BSD, starts_BL)) / length_BL[..., None]
        return vectors_BLD.half().float() if self.frozen else vectors_BLD


class StaticWords(nn.Module):
    """Vectors of words by a table; row 0 is that of words that are not in it.

    Args:
        vectors_VD: The table, row 0 included.
        frozen: Whether it stays as it is.
    """

    def __init__(self, vectors_VD: Tensor, *, frozen: bool) -> None:
        super().__init__()
        num_words, self.dim = vectors_VD.shape
        self.table = nn.Embedding(num_words, self.dim, _weight=vectors_VD, _freeze=frozen)

    def forward(self, batch: Batch) -> Tensor:
        """Return the vectors ``(B, L, D)``, float32."""
        vectors_BLD: Tensor = self.table(batch["word_ids_BL"])
        return vectors_BLD


class BiLstm(nn.Module):
    """One LSTM layer each way over texts of several lengths, each as if it were alone.

    The way back runs over each text turned round, so that the fill at the end of a text comes last both ways.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.forth = nn.LSTM(dim, hidden, batch_first=True)
        self.back = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what is known of each word in its context ``(B, L, H)``."""
        position_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        turned_BL = torch.where(mask_BL, mask_BL.sum(1, keepdim=True) - 1 - position_L, position_L)
        forth_BLH, _ = self.forth(vectors_BLD)
        back_BLH, _ = self.back(_take(vectors_BLD, turned_BL))
        return torch.cat([forth_BLH, _take(back_BLH, turned_BL)], dim=2)


class Cnn(nn.Module):
    """One convolution over words, and ReLU."""

    def __init__(self, dim: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, channels, kernel, padding=kernel // 2)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what is known of each word in its context ``(B, L, H)``."""
        filled_BLD = vectors_BLD * mask_BL[..., None]  # beyond a text's end lies nothing, as at the batch's edge
        context_BLH: Tensor = self.convolution(filled_BLD.transpose(1, 2)).transpose(1, 2).relu()
        return context_BLH


class TaggerNetwork(nn.Module):
    """Words to tags.

    Args:
        shape: What it is made of.
        tags: BIO tags, "O" first.
        words: Gives the words' vectors where a batch does not bring them.
    """

    def __init__(self, shape: Shape, tags: Sequence[str], words: TransformerWords | StaticWords | None) -> None:
        super().__init__()
        self.tags = tuple(tags)
        self.words = words
        dim = shape.dim
        layers: list[nn.Module] = []
        if shape.model in ("lstm_crf", "lstm_cnn_crf"):
            layers.append(BiLstm(dim, shape.hidden))
            dim = 2 * shape.hidden
        if shape.model in ("cnn_crf", "lstm_cnn_crf"):
            layers.append(Cnn(dim, 2 * shape.hidden, shape.kernel))
            dim = 2 * shape.hidden
        self.context = nn.ModuleList(layers)
        self.dropout = nn.Dropout(shape.dropout)
        self.emit = nn.Linear(dim, len(tags))
        self.crf = None if shape.model == "linear" else make_crf(shape.crf, tags)

    def emissions(self, batch: Batch) -> Tensor:
        """Return the score of each tag for each word ``(B, L, T)``, float32."""
        if "vectors_BLD" in batch:
            vectors_BLD = batch["vectors_BLD"].float()
        else:
            assert self.words is not None
            vectors_BLD = self.words(batch)
        with torch.autocast(vectors_BLD.device.type, enabled=False):
            vectors_BLD = self.dropout(vectors_BLD)
            for layer in self.context:
                vectors_BLD = self.dropout(layer(vectors_BLD, batch["mask_BL"]))
            emissions_BLT: Tensor = self.emit(vectors_BLD)
        return emissions_BLT

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed negative log likelihood of the batch's tags, a scalar; of no word it is 0."""
        emissions_BLT, mask_BL = self.emissions(batch), batch["mask_BL"]
        if self.crf is not None:
            return self.crf.negative_log_likelihood(emissions_BLT, batch["tags_BL"], mask_BL).sum()
        return functional.cross_entropy(emissions_BLT[mask_BL], batch["tags_BL"][mask_BL], reduction="sum")

    @torch.no_grad()
    def decode(self, batch: Batch) -> Tensor:
        """Return the best tags ``(B, L)``, int64, 0 where there is no word."""
        return self._decode(self.emissions(batch), batch["mask_BL"])

    def _decode(self, emissions_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        if self.crf is not None:
            return self.crf.decode(emissions_BLT, mask_BL)
        return emissions_BLT.argmax(2) * mask_BL

    @torch.no_grad()
    def decode_spans(self, batch: Batch, spans_of: Any) -> tuple[Tensor, list[list[float]]]:  # noqa: ANN401
        """Return the best tags, and how probable each span of them is, by the CRF or as the product over its words.

        Args:
            batch: The tweets.
            spans_of: Gives the spans of one tweet's tags: a list of strings to a list of ``Span``.
        """
        emissions_BLT, mask_BL = self.emissions(batch), batch["mask_BL"]
        tags_BL = self._decode(emissions_BLT, mask_BL)
        spans: list[list[Span]] = [
            spans_of([self.tags[tag] for tag in row[:length]])
            for row, length in zip(tags_BL.tolist(), mask_BL.sum(1).tolist(), strict=True)
        ]
        if self.crf is not None:
            return tags_BL, self.crf.span_confidence(emissions_BLT, mask_BL, tags_BL, spans)
        chosen_BL = emissions_BLT.softmax(2).gather(2, tags_BL[..., None])[..., 0]
        return tags_BL, [
            [float(chosen_BL[row, span.start : span.end].prod()) for span in of_row] for row, of_row in enumerate(spans)
        ]


def _take(vectors_BLD: Tensor, index_BL: Tensor) -> Tensor:
    """Return the vectors at some places of each row."""
    return vectors_BLD.gather(1, index_BL[..., None].expand(-1, -1, vectors_BLD.shape[2]))
