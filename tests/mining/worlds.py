"""Made-up corpora with the vector of every text known, as an encoder would have stored them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mining import oracles
from scalemine.config import CorpusConfig
from scalemine.corpus import Corpus, import_corpus
from scalemine.mining.anchors import Anchors
from scalemine.mining.candidates import View
from scalemine.mining.embeddings import Similarities, score
from scalemine.mining.similarity import Normal, anchor_grid
from scalemine.shards import Embeddings, matrix_column


def make_anchors(names: Sequence[str], classes: np.ndarray, positives: np.ndarray) -> Anchors:
    """Anchors of given positives, whose texts say where they belong."""
    means = np.stack([positives[classes == index].astype(np.float64).mean(axis=0) for index in range(len(names))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    ids = tuple(f"p{number}" for number in range(len(positives)))
    texts = tuple(f"positive {number} of {names[index]}" for number, index in enumerate(classes.tolist()))
    return Anchors(tuple(names), means.astype("f4"), ids, classes.astype(np.int64), positives.astype("f4"), texts)


def around(rng: np.random.Generator, centre: np.ndarray, num_rows: int, noise: float) -> np.ndarray:
    """Rows of length 1 near a centre."""
    rows = centre + noise * rng.standard_normal((num_rows, len(centre)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")


@dataclass
class World:
    """A corpus and what is near it; ids and texts are distinct."""

    anchors: Anchors
    vectors: np.ndarray
    ids: list[str]
    texts: list[str]
    quarantined: frozenset[str] = frozenset()
    events: list[str] | None = None

    @classmethod
    def of(cls, anchors: Anchors, vectors: np.ndarray, seed: int = 0) -> World:
        numbers = np.random.default_rng(seed).permutation(len(vectors)).tolist()
        return cls(anchors, vectors, [f"t{n}" for n in numbers], [f"tweet {n} about the day" for n in numbers])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        table = dict(zip(self.texts, self.vectors, strict=True))
        return np.stack([table[text] for text in texts]).astype("f4")

    def import_corpus(self, folder: Path, rows_per_shard: int) -> Corpus:
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "tweets.parquet"
        more = {"event": self.events} if self.events else {}
        pq.write_table(pa.table({"id": self.ids, "text": self.texts, **more}), source)
        config = CorpusConfig(uri=str(source), rows_per_shard=rows_per_shard, keep=tuple(more))
        return import_corpus(config, folder / "corpus")

    def view(self, folder: Path, rows_per_shard: int, *, margin: float = 2e-3, keep: bool = True) -> View:
        """The corpus as it would have been stored; normals are fitted to what was."""
        corpus = self.import_corpus(folder, rows_per_shard)
        embeddings = Embeddings(oracles.make_stage(folder / "embeddings"), corpus)
        similarities = Similarities(oracles.make_stage(folder / "similarities"), corpus)
        vector_of = dict(zip(self.ids, self.vectors.astype(np.float16), strict=True))
        grid = anchor_grid(self.anchors.vectors_KD)
        for shard in corpus.shards:
            ids = corpus.read(shard)["id"]
            stored = np.stack([vector_of[id_] for id_ in ids.to_pylist()])
            valid = np.array([id_ not in self.quarantined for id_ in ids.to_pylist()])
            embeddings.write(shard, pa.table({"id": ids, "vector": matrix_column(stored, valid)}))
            similarities.write(shard, score(ids, stored, valid, grid))
        cosines = self.vectors.astype(np.float64) @ self.anchors.vectors_KD.T
        normals = {
            name: Normal(float(cosines[:, index].mean()), float(cosines[:, index].std()))
            for index, name in enumerate(self.anchors.class_names)
        }
        columns = ("event",) if self.events else ()
        return View(similarities, self.anchors, normals, self.encode, margin, embeddings if keep else None, columns)


def stored_rows(view: View) -> list[tuple[str, list[float]]]:
    """Id and stored cosines of every row that has them, gone through one by one."""
    rows = []
    for shard in view.similarities.corpus.shards:
        ids = view.similarities.corpus.read(shard)["id"].to_pylist()
        _, steps, valid = view.similarities.steps(shard)
        rows += [
            (id_, [int(step) / 2**15 for step in row]) for id_, row, ok in zip(ids, steps, valid, strict=True) if ok
        ]
    return rows
