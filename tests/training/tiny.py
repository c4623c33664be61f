"""Encoders, tweets and batches that are small enough to be made anew for each test."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from scalemine.models import quieten_libraries
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.words import WordTokens

DIM = 32
POSITIONS = 64
_CHARACTERS = string.ascii_lowercase + string.digits
_WORDS = ["fire", "near", "the", "old", "bridge", "bus", "crash", "##ed", "in", "into", "a", "shop", "two", "hurt"]
_MARKS = ["#", "@", ",", ".", ":", "!"]
VOCABULARY = list(
    dict.fromkeys(
        [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *_WORDS,
            *_MARKS,
            *_CHARACTERS,
            *(f"##{one}" for one in _CHARACTERS),
        ]
    )
)


def make_bert(seed: int = 0, **settings) -> BertModel:
    """Return an untrained encoder, in use, whose attention is felt."""
    torch.manual_seed(seed)
    values = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    values |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": POSITIONS, "initializer_range": 0.2}
    return BertModel(BertConfig(**(values | settings))).eval()


def write_bert(folder: Path, seed: int = 0, **settings) -> Path:
    """Write an encoder and its tokeniser as a folder."""
    quieten_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    make_bert(seed, **settings).save_pretrained(folder)
    return folder


def random_inputs(num_words: Sequence[int], seed: int, *, num_tags: int, kind: str) -> Inputs:
    """Return tweets of random tokens (1 to 3 a word), words or vectors, with random tags."""
    chance = random.Random(seed)
    tags = [[chance.randrange(num_tags) for _ in range(length)] for length in num_words]
    if kind == "vectors":
        generator = torch.Generator().manual_seed(seed)
        return Inputs(tuple(num_words), tags, vectors_WD=torch.randn(sum(num_words), DIM, generator=generator).half())
    if kind == "static":
        ids = [[chance.randrange(len(VOCABULARY)) for _ in range(length)] for length in num_words]
        return Inputs(tuple(num_words), tags, word_ids=ids)
    return Inputs(tuple(num_words), tags, tokens=[_random_tokens(length, chance) for length in num_words])


def _random_tokens(length: int, chance: random.Random) -> WordTokens:
    ids, starts, ends = [2], [], []
    for _ in range(length):
        starts.append(len(ids))
        ids += [chance.randrange(5, len(VOCABULARY)) for _ in range(chance.randint(1, 3))]
        ends.append(len(ids))
    return WordTokens((*ids, 3), tuple(starts), tuple(ends))


def write_vectors(folder: Path, words: Sequence[str], dim: int = 6, seed: int = 0) -> Path:
    """Write static vectors as GloVe's text."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    lines = [" ".join([word, *(f"{chance.uniform(-2, 2):.4f}" for _ in range(dim))]) for word in words]
    path = folder / "vectors.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
