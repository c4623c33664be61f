"""Training a tagger: the task that the loop is given, and its predictions on other tweets.

Shapes: N tweets, L words of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scalemine.training.batches import BATCH_TOKENS, Batch, prediction_batches, to_device
from scalemine.training.loop import grouped, predict_rows
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.labels import OUTSIDE, spans_of_tags
from scalemine.training.tagging.network import TaggerNetwork


class TaggerTask:
    """A tagger to be trained.

    Args:
        network: The model.
        train: Training tweets, with tags.
        ids: Their identifiers.
        dev_score: Gives how good the predicted tags of the tweets that choose the epoch are.
        dev: These tweets.
        lr: Learning rate of the source of word vectors.
        head_lr: That of the layers above.
        weight_decay: Of AdamW.
        pad_id: The token that fills up.
    """

    def __init__(
        self,
        network: TaggerNetwork,
        train: Inputs,
        ids: Sequence[str],
        dev: Inputs,
        dev_score: Callable[[Sequence[Sequence[str]]], float],
        *,
        lr: float,
        head_lr: float,
        weight_decay: float,
        pad_id: int,
    ) -> None:
        self.model: nn.Module = network
        self._network, self._train, self._ids, self._pad_id = network, train, ids, pad_id
        self._dev, self._dev_score = dev, dev_score
        self._lr, self._head_lr, self._weight_decay = lr, head_lr, weight_decay

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters by learning rate and weight decay; frozen ones are left out."""
        named = self._network.named_parameters()
        rated = ((name, one, self._lr if name.startswith("words.") else self._head_lr) for name, one in named)
        return grouped(rated, self._weight_decay)

    def costs(self) -> Sequence[int]:
        """Return the length of each training tweet."""
        return self._train.costs

    def num_items(self, rows: Sequence[int]) -> int:
        """Return the number of words of some training tweets."""
        return sum(self._train.num_words[row] for row in rows)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Return the identifiers of some training tweets."""
        return [self._ids[row] for row in rows]

    def collate(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of some training tweets."""
        return self._train.collate(rows, self._pad_id)

    def begin_epoch(self, epoch: int, folder: Path, accelerator: Accelerator) -> None:
        """Do nothing: an epoch is like another."""

    def evaluate(self, accelerator: Accelerator) -> float:
        """Return the score on the tweets that choose the epoch."""
        return self._dev_score(self.predict(self._dev, accelerator))

    def predict(self, inputs: Inputs, accelerator: Accelerator) -> list[list[str]]:
        """Return the tags of the words that are read of each tweet."""
        return predict_tags(self._network, inputs, accelerator, self._pad_id)


def predict_tags(network: TaggerNetwork, inputs: Inputs, accelerator: Accelerator, pad_id: int) -> list[list[str]]:
    """Return the tags of the words that are read of each tweet; the same in every process."""
    network.eval()

    def predict(rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return network.decode(to_device(inputs.collate(rows, pad_id), accelerator.device))

    batches = prediction_batches(inputs.costs, BATCH_TOKENS[accelerator.device.type])
    tags_NL = predict_rows(accelerator, batches, (len(inputs), max(inputs.num_words, default=0)), predict)
    return [
        [network.tags[tag] for tag in row[:length]]
        for row, length in zip(tags_NL.tolist(), inputs.num_words, strict=True)
    ]


def fill_up(tags: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return tags for all words of the texts: "O" for those that were not read."""
    return [[*found, *[OUTSIDE] * (len(words) - len(found))] for found, words in zip(tags, texts, strict=True)]


def micro_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the micro F1 of exact spans, from 0 to 1, by conlleval's convention."""
    correct = num_gold = num_predicted = 0
    for one, other in zip(gold, predicted, strict=True):
        spans, found = set(spans_of_tags(one)), set(spans_of_tags(other))
        correct += len(spans & found)
        num_gold += len(spans)
        num_predicted += len(found)
    return 2 * correct / (num_gold + num_predicted) if num_gold + num_predicted else 0.0
