"""Where the vectors of words come from: a transformer, tuned or frozen and cached, or a table of static vectors.

Shapes: W words, D dimensions, V words of the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scalemine.config import EncoderConfig, InputError, TrainConfig
from scalemine.models import (
    device_name,
    find_model,
    first_line,
    max_positions,
    model_fingerprint,
    precision_name,
    quieten_libraries,
)
from scalemine.store import file_sha256, fingerprint, write_whole
from scalemine.training.batches import BATCH_TOKENS, prediction_batches, to_device
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.network import UNUSED, Pooling, StaticWords, TransformerWords
from scalemine.training.tagging.vectors import lookup, lookup_forms, read_vectors
from scalemine.training.tagging.words import PROBE, WordTokenizer

_CACHE_TENSOR = "vectors_WD"


@dataclass(frozen=True, eq=False)
class WordEncoder:
    """A source of word vectors: the module that makes them, and what it wants to read.

    Args:
        module: Words to vectors.
        tokenizer: For a transformer: words to tokens.
        vocabulary: For static vectors: row of the table by word; row 0 is of unknown words.
        settings: What decides its vectors.
    """

    module: TransformerWords | StaticWords
    tokenizer: WordTokenizer | None
    vocabulary: dict[str, int] | None
    settings: dict[str, Any]

    @property
    def pad_id(self) -> int:
        """The token that fills up."""
        return self.tokenizer.pad_id if self.tokenizer else 0

    def read(self, texts: Sequence[Sequence[str]]) -> Inputs:
        """Return what the module reads of the words of some texts, each of one word at least."""
        if self.tokenizer is not None:
            tokens = [self.tokenizer.encode(words) for words in texts]
            return Inputs(tuple(one.num_words for one in tokens), tokens=tokens)
        assert self.vocabulary is not None
        ids = [[lookup(word, self.vocabulary) or 0 for word in words] for words in texts]
        return Inputs(tuple(map(len, ids)), word_ids=ids)

    def read_cached(self, texts: Sequence[Sequence[str]], folder: Path) -> Inputs:
        """Return inputs whose vectors were computed once and are read, memory-mapped, from a file of the folder."""
        inputs = self.read(texts)
        settings = fingerprint(self.settings)
        digest = hashlib.sha256(repr([settings, [tuple(words) for words in texts]]).encode()).hexdigest()[:24]
        path = folder / settings / f"{digest}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # runs side by side want the same
            if not path.exists():
                vectors_WD = self.vectors(inputs)
                with write_whole(path) as temporary:
                    save_file({_CACHE_TENSOR: vectors_WD}, temporary)
        with safe_open(path, framework="pt") as file:
            return replace(inputs, tokens=None, word_ids=None, vectors_WD=file.get_tensor(_CACHE_TENSOR))

    @torch.inference_mode()
    def vectors(self, inputs: Inputs) -> torch.Tensor:
        """Return the vectors of all words ``(W, D)``, float16, text after text."""
        device = next(self.module.parameters()).device
        self.module.eval()
        firsts = np.concatenate([[0], np.cumsum(inputs.num_words)])
        vectors_WD = torch.empty((int(firsts[-1]), self.module.dim), dtype=torch.float16)
        for rows in prediction_batches(inputs.costs, BATCH_TOKENS[device.type]):
            vectors_BLD = self.module(to_device(inputs.collate(rows, self.pad_id), device)).half().cpu()
            for place, row in enumerate(rows):
                vectors_WD[firsts[row] : firsts[row + 1]] = vectors_BLD[place, : inputs.num_words[row]]
        return vectors_WD


def load_words(config: TrainConfig, default: EncoderConfig, texts: Iterable[Sequence[str]]) -> WordEncoder:
    """Load what a configuration names.

    Args:
        config: Encoder or static vectors, and how they are used.
        default: Names the encoder where ``config`` names none.
        texts: The words of the training tweets, whose static vectors are kept however rare they are.

    Raises:
        InputError: There is no such model or file, or it cannot be read.
    """
    if config.vectors is not None:
        return _load_static(config, texts)
    name, revision = config.encoder or default.model, config.revision if config.encoder else default.revision
    return load_transformer(
        find_model(name, revision, key="train.encoder"),
        pooling=config.pooling,
        frozen=config.freeze,
        precision=precision_name(config.precision, device_name(config.device, key="train.device")),
        max_length=config.max_length,
        normaliser_name=config.normaliser,
    )


def load_transformer(
    folder: Path,
    *,
    pooling: Pooling,
    frozen: bool,
    precision: str,
    max_length: int,
    normaliser_name: str,
) -> WordEncoder:
    """Load a Hugging Face encoder and its tokeniser from a folder; safetensors only, no code that comes with it."""
    quieten_libraries()
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        transformer, loading = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"train.encoder: {folder} cannot be loaded: {first_line(error)}") from error
    # Without their files both are made up, and nothing is said.
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith(UNUSED)):
        raise InputError(f"train.encoder: {folder} lacks {len(missing)} of its weights, such as {missing[0]}")
    if set(tokenizer(" ".join(PROBE), add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise InputError(f"train.encoder: {folder} has no tokeniser, or one that knows none of {', '.join(PROBE)}")
    if getattr(transformer.config, "is_encoder_decoder", False):
        raise InputError(f"train.encoder: {folder} is an encoder with a decoder; take one that only encodes")
    most = max_positions(transformer)
    if max_length > most:
        raise InputError(f"train.max_length: {folder} reads at most {most} tokens, got {max_length}")
    settings = {
        "train.weights": model_fingerprint(folder),
        "train.pooling": pooling,
        "train.max_length": max_length,
        "train.normaliser": normaliser_name,
        "train.precision": precision,
    }
    module = TransformerWords(transformer, pooling=pooling, precision=precision, frozen=frozen)
    words = WordTokenizer(tokenizer, max_length=max_length, normaliser_name=normaliser_name)
    return WordEncoder(module, words, None, settings)


def _load_static(config: TrainConfig, texts: Iterable[Sequence[str]]) -> WordEncoder:
    assert config.vectors is not None
    path = Path(config.vectors)
    if not path.is_file():
        raise InputError(f"train.vectors: no such file: {path} (expected GloVe text or word2vec binary)")
    seen = None
    if config.vocabulary is not None:
        seen = {form for words in texts for word in words for form in lookup_forms(word)}
    vectors = read_vectors(path, vocabulary=seen, first=config.vocabulary or 0)
    settings = {"train.vectors": file_sha256(path), "train.vocabulary": config.vocabulary}
    table_VD = np.concatenate([np.zeros((1, vectors.vectors_VD.shape[1]), np.float32), vectors.vectors_VD])
    module = StaticWords(torch.from_numpy(table_VD), frozen=config.freeze)
    return WordEncoder(module, None, {word: row for row, word in enumerate(vectors.words, start=1)}, settings)
