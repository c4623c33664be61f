"""A trained network on word vectors as one folder: written by training, loaded anywhere.

    model = load_word_network("work/rescue/runs/NAME/model")
    model.predict(["water rising, need a boat, 77002"])

``model.json`` says all that is to be known: format, version, labels, the shape of the network, normaliser, max_length,
thresholds and calibration by label (already in the weights), nested, training, metrics, and the hash of each further
file; it is written last. ``model.safetensors`` holds the weights, the words' vectors among them, and
``vocabulary.json`` the words.

Shapes: N texts, C labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scalemine.config import InputError
from scalemine.models import device_name, first_line
from scalemine.store import file_sha256, read_json, remove, write_json, write_whole
from scalemine.text import normaliser
from scalemine.training.kept import OTHERS, check_files, model_folder, read_info
from scalemine.training.multilabel.calibration import probabilities_of
from scalemine.training.multilabel.head import in_order, order
from scalemine.training.multilabel.label_model import LabelModel
from scalemine.training.multilabel.word_network import (
    NetworkShape,
    WordNetwork,
    logits_of_one_length,
    prediction_rows,
    split_words,
)
from scalemine.training.tagging.network import StaticWords
from scalemine.training.tagging.vectors import lookup

logger = logging.getLogger(__name__)

WEIGHTS, VOCABULARY = "model.safetensors", "vocabulary.json"
KIND = "word_network"
# Rises when the meaning of what model.json holds changes.
FORMAT = 1
_TABLE = "words.table.weight"
# Texts whose words are held at a time.
_TEXTS = 16_384


def write_word_network(
    network: WordNetwork, vocabulary: Mapping[str, int], info: Mapping[str, Any], folder: Path
) -> None:
    """Write a network's folder; ``model.json`` comes last, and without it there is no model.

    Args:
        network: The network, its last layer calibrated.
        vocabulary: Row of the table by word, from 1, in this order.
        info: What ``model.json`` is to hold; format, kind, shape and hashes are put in here.
        folder: Where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / OTHERS)
    with write_whole(folder / WEIGHTS) as path:
        save_file({name: one.detach().cpu().contiguous() for name, one in network.state_dict().items()}, path)
    write_json(folder / VOCABULARY, list(vocabulary))
    hashes = {name: file_sha256(folder / name) for name in (WEIGHTS, VOCABULARY)}
    facts = {"format": FORMAT, "kind": KIND, "shape": asdict(network.shape)}
    write_json(folder / OTHERS, facts | dict(info) | {"sha256": hashes})


class WordModel(LabelModel):
    """A trained network on word vectors; made by ``load_word_network``.

    Args:
        network: The network.
        vocabulary: Row of its table by word; row 0 is of unknown words.
        info: What ``model.json`` holds.
    """

    def __init__(self, network: WordNetwork, vocabulary: Mapping[str, int], info: dict[str, Any]) -> None:
        self.network = network.eval()
        self.vocabulary = vocabulary
        self.info = info
        self._normalise = normaliser(info["normaliser"])
        self._nesting = order(self.labels, info["nested"])

    def normalise(self, text: str) -> str:
        """Return a text as the model reads it; see ``LabelModel``."""
        return self._normalise(text)

    def scores_of_normalised(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probabilities ``(N, C)`` of texts that are normalised; see ``LabelModel``."""
        scores_NC = np.empty((len(texts), len(self.labels)), np.float32)
        num_cut = 0
        for start in range(0, len(texts), _TEXTS):
            words, cut = split_words(texts[start : start + _TEXTS], str, self.info["max_length"])
            ids = [[lookup(word, self.vocabulary) or 0 for word in of_text] for of_text in words]
            num_cut += cut
            for rows in prediction_rows([len(one) for one in ids]):
                logits_BC = logits_of_one_length(self.network, [ids[row] for row in rows])
                scores_NC[[start + row for row in rows]] = probabilities_of(logits_BC.numpy())
        if num_cut:
            logger.warning("%d texts have more than %d words, and were cut", num_cut, self.info["max_length"])
        return in_order(scores_NC, self._nesting)


def load_word_network(folder: str | Path, *, device: str = "auto") -> WordModel:
    """Load a network from its folder, or from the folder of the run that wrote it.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = model_folder(folder)
    info = read_info(path, KIND, FORMAT, _check_info)
    check_files(path, info["sha256"])
    try:
        words, weights = read_json(path / VOCABULARY), load_file(path / WEIGHTS)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{VOCABULARY}: expected a list of words")
        vocabulary = {word: row for row, word in enumerate(words, start=1)}
        network = _network(NetworkShape(**info["shape"]), weights)
        if len(vocabulary) != len(words) or len(words) + 1 != len(weights[_TABLE]):
            raise ValueError(f"{len(vocabulary)} distinct words of {len(words)}, {len(weights[_TABLE])} vectors")
        model = WordModel(network.to(device_name(device, key="device")), vocabulary, info)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {first_line(error)}") from None
    return model


def _network(shape: NetworkShape, weights: Mapping[str, torch.Tensor]) -> WordNetwork:
    """Return the network of some weights; what the shape says takes no memory before it is compared with them."""
    with torch.device("meta"):
        network = WordNetwork(shape, StaticWords(torch.empty(weights[_TABLE].shape), frozen=True))
    expected = {name: (one.shape, one.dtype) for name, one in network.state_dict().items()}
    if {name: (one.shape, one.dtype) for name, one in weights.items()} != expected:
        raise ValueError(f"{WEIGHTS}: not the weights of a {shape.model} of these sizes")
    if not all(bool(one.isfinite().all()) for one in weights.values()):
        raise ValueError(f"{WEIGHTS}: holds numbers that are not finite")
    network.load_state_dict(dict(weights), assign=True)
    return network


def _check_info(info: Mapping[str, Any]) -> None:
    labels = info["labels"]
    normaliser(info["normaliser"])
    if not labels or len(set(labels)) < len(labels) or set(info["thresholds"]) != set(labels):
        raise ValueError(f"{len(labels)} labels, thresholds of {', '.join(info['thresholds'])}")
    if info["shape"]["num_labels"] != len(labels):
        raise ValueError(f"{len(labels)} labels, and a network of {info['shape']['num_labels']}")
    if not all(isinstance(one, float | int) for one in info["thresholds"].values()):
        raise ValueError(f"thresholds: expected numbers, got {info['thresholds']}")
    if not isinstance(info["max_length"], int) or info["max_length"] < 1:
        raise ValueError(f"max_length: expected a whole number above 0, got {info['max_length']!r}")
    # All that is read has a hash, and nothing else is read.
    if set(info["sha256"]) != {WEIGHTS, VOCABULARY}:
        raise ValueError(f"sha256: expected a hash for each file, got {', '.join(info['sha256'])}")
