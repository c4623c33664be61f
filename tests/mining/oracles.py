"""Slow, obvious counterparts of what scalemine.mining computes, and fakes for its tests."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.config import CorpusConfig
from scalemine.corpus import Corpus, import_corpus
from scalemine.encoder import Tokens
from scalemine.store import Stage, open_stage

WORD_64 = 2**64


def unit_rows(rng: np.random.Generator, num_rows: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((num_rows, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def grid_of(row) -> list[int]:
    """A stored row as whole multiples of 2^-12, halves to the even one."""
    return [round(Fraction(float(value)) * 4096) for value in row]


def exact_steps(vectors, grid) -> list[list[int]]:
    """S_an in steps of 2^-15, by whole numbers alone."""
    anchors = [[int(value) for value in row] for row in grid]
    table = []
    for row in vectors:
        coordinates = grid_of(row)
        sums = [sum(a * b for a, b in zip(coordinates, anchor, strict=True)) for anchor in anchors]
        table.append([min(max(round(Fraction(total, 500)), -(2**15)), 2**15 - 1) for total in sums])
    return table


def cosine(one, other) -> float:
    one, other = [float(value) for value in one], [float(value) for value in other]
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5)


def band_of(z: float, tails: str) -> int:
    """The band by the definition: 1, 2, 3 by sigma, 4 beyond, 0 for the half that does not count."""
    if tails == "upper" and z < 0:
        return 0
    for band in (1, 2, 3):
        if abs(z) < band:
            return band
    return 4


def priority(id_: str, seed: int, purpose: str) -> int:
    """The priority of a row by python integers."""
    key = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
    salt = int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest(), "little")
    return splitmix64_finaliser(key ^ salt)


def splitmix64_finaliser(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD_64
    return z ^ (z >> 31)


def make_corpus(folder: Path, ids: Sequence[str], texts: Sequence[str], rows_per_shard: int) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "tweets.parquet"
    pq.write_table(pa.table({"id": list(ids), "text": list(texts)}), source)
    return import_corpus(CorpusConfig(uri=str(source), rows_per_shard=rows_per_shard), folder / "corpus")


def make_stage(folder: Path) -> Stage:
    return open_stage(folder, version=1, settings={"encoder.model": "fake"}, inputs={})


def fake_vector(text: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return unit_rows(np.random.default_rng(seed), 1, dim)[0]


class FakeEncoder:
    """An encoder whose vectors come from a hash of the text; it notes each text that it encodes in a file."""

    dim = 12
    max_length = 64
    precision = "float32"
    device = machine = "cpu"
    engine = "torch"

    def __init__(
        self,
        notes: Path,
        poison: tuple[str, ...] = (),
        most_texts: int | None = None,
        deadly: tuple[str, ...] = (),
        killed_once: tuple[str, ...] = (),
    ) -> None:
        self.notes, self.poison, self.most_texts = notes, poison, most_texts
        self.deadly, self.killed_once = deadly, killed_once
        with self.notes.open("a", encoding="utf-8") as file:
            file.write("\tloaded\n")

    def normalise(self, text: str) -> str:
        return text.strip()

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        return Tokens([list(text.encode()) for text in texts], sum("long" in text for text in texts))

    def num_padded(self, tokens: Tokens) -> int:
        return 2 * tokens.num_tokens

    def num_flops(self, tokens: Tokens) -> float:
        return 10.0 * tokens.num_tokens

    def measure_peak(self) -> float:
        return 1e9

    def encode(self, tokens: Tokens) -> np.ndarray:
        texts = [bytes(ids).decode() for ids in tokens.ids]
        for text in texts:
            if text in self.deadly:
                os._exit(139)
            if text in self.killed_once and not (mark := self.notes.with_suffix(".killed")).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
            if text in self.poison:
                raise ValueError(f"cannot digest {text!r}")
        if self.most_texts is not None and len(texts) > self.most_texts:
            raise MemoryError("too many texts at once")
        with self.notes.open("a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in texts)
        return np.stack([fake_vector(text, self.dim) for text in texts]) if texts else np.empty((0, self.dim), "f4")


def noted(notes: Path) -> list[str]:
    """The texts that were encoded so far, sorted."""
    return sorted(line for line in notes.read_text(encoding="utf-8").splitlines() if line != "\tloaded")
