"""Mining per positive against sentence_transformers.util.mine_hard_negatives: seconds and peak memory.

    python benchmarks/per_positive.py WORKDIR [--positives 500] [--rows 5000 100000] [--rounds 3]

WORKDIR is one that is mined, such as that of configs/crisis.yaml. Both sides take the five nearest tweets of each
positive below 95 % of the cosine to its nearest sibling, among the 100 nearest; both are given the embeddings: what is
compared is the search and the choice. Each round of each side is a process of its own, the sides in turn.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scalemine.config import MiningConfig
from scalemine.corpus import Corpus, Shard, open_corpus
from scalemine.executor import InlineExecutor
from scalemine.mining.anchors import Anchors, load_anchors
from scalemine.mining.candidates import Cell, View, by_positive, nearest_sibling
from scalemine.mining.embeddings import Similarities
from scalemine.mining.strategies import Rule, everything
from scalemine.shards import Embeddings, matrix_column
from scalemine.store import Stage, Workdir, fingerprint, read_json

SIDES = ("scalemine", "sentence-transformers", "sentence-transformers, faiss")
PER_POSITIVE, WINDOW, MARGIN = 5, 100, 0.05


def open_stage_of(folder: Path) -> Stage:
    """Return a finished stage, whatever its configuration."""
    return Stage(folder, fingerprint(read_json(folder / "stage.json")))


def first_positives(workdir: Workdir, number: int) -> Anchors:
    """Return the anchors with only some of their positives, spread over the classes."""
    anchors = load_anchors(open_stage_of(workdir.anchors))
    assert anchors is not None
    picked = np.linspace(0, len(anchors.positive_ids), min(number, len(anchors.positive_ids)), endpoint=False).astype(
        int
    )
    ids, texts = (tuple(values[i] for i in picked) for values in (anchors.positive_ids, anchors.positive_texts))
    classes, vectors = anchors.positive_class_M[picked], anchors.positives_MD[picked]
    return Anchors(anchors.class_names, anchors.vectors_KD, ids, classes, vectors, texts)


def part_of(workdir: Workdir, rows: int, folder: Path) -> Embeddings:
    """Return the first rows of the embedded corpus as a corpus of its own."""
    corpus = open_corpus(workdir.corpus)
    embeddings = Embeddings(open_stage_of(workdir.embeddings), corpus)
    shards: list[Shard] = []
    for shard in corpus.shards:
        if sum(one.num_rows for one in shards) + shard.num_rows <= rows:
            shards.append(shard)
    left = rows - sum(one.num_rows for one in shards)
    stage = Stage(folder / "embeddings", "part")
    stage.folder.mkdir()
    part = Embeddings(stage, Corpus(corpus.folder, tuple(shards), corpus.columns, corpus.counts))
    for shard in shards:
        part.path(shard).symlink_to(embeddings.path(shard).absolute())
    if left:  # a shard cut short
        shard = next(shard for shard in corpus.shards if shard not in shards)
        import pyarrow.parquet as pq

        path = folder / "rest.parquet"
        pq.write_table(corpus.read(shard).slice(0, left), path)
        cut = Shard("rest", path, left, "rest")
        part = Embeddings(stage, Corpus(corpus.folder, (*shards, cut), corpus.columns, corpus.counts))
        vectors, valid = embeddings.vectors(shard)
        ids = corpus.read(shard, columns=["id"])["id"].slice(0, left)
        part.write(cut, pa.table({"id": ids, "vector": matrix_column(vectors[:left], valid[:left])}))
    return part


def ours(part: Embeddings, anchors: Anchors) -> int:
    """Mine; return how many negatives there are."""
    stored = Similarities(part.stage, part.corpus)
    view = View(stored, anchors, {}, lambda texts: np.empty((len(texts), 0), np.float32), 0.0, part)
    cells = [Cell(index, name, "margin", 0, Rule(everything)) for index, name in enumerate(anchors.class_names)]
    config = MiningConfig(strategy="margin", query="positive", relative_margin=MARGIN, rank_max=WINDOW)
    propose = by_positive(view, cells, config, 42, InlineExecutor(), threads=torch.get_num_threads())
    counts = np.bincount(anchors.positive_class_M, minlength=len(cells)) * PER_POSITIVE
    return sum(map(len, propose(counts.tolist())))


class Lookup:
    """What mine_hard_negatives asks of a model, on vectors that are there."""

    device = torch.device("cpu")

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        """Return the stored vectors."""
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)

    encode_query = encode_document = encode

    def get_embedding_dimension(self) -> int:
        """Return the dimension."""
        return len(next(iter(self.vectors.values())))

    @staticmethod
    def similarity(a: Any, b: Any) -> torch.Tensor:  # noqa: ANN401
        """Return all inner products."""
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    @staticmethod
    def similarity_pairwise(a: Any, b: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the inner products of pairs."""
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)


def theirs(part: Embeddings, anchors: Anchors, use_faiss: bool) -> tuple[float, int]:
    """Mine; return the seconds, without what it takes to lay the vectors out, and how many negatives there are."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    vectors: dict[str, np.ndarray] = {}
    for shard in part.corpus.shards:
        texts = part.corpus.read(shard, columns=["text"])["text"].to_pylist()
        vectors |= dict(zip(texts, part.vectors(shard)[0], strict=True))
    corpus = list(vectors)
    vectors |= dict(zip(anchors.positive_texts, anchors.positives_MD, strict=True))
    cosines = anchors.positives_MD @ anchors.positives_MD.T
    same = anchors.positive_class_M[:, None] == anchors.positive_class_M
    np.fill_diagonal(same, False)
    siblings = np.where(same, cosines, -2).argmax(axis=1)
    pairs = {"query": list(anchors.positive_texts), "positive": [anchors.positive_texts[i] for i in siblings]}
    assert np.allclose(cosines[np.arange(len(cosines)), siblings], nearest_sibling(anchors), atol=1e-5)
    started = time.perf_counter()
    found = mine_hard_negatives(
        Dataset.from_dict(pairs), Lookup(vectors), corpus=corpus, relative_margin=MARGIN, range_max=WINDOW,
        num_negatives=PER_POSITIVE, output_format="triplet", use_faiss=use_faiss, verbose=False,
    )  # fmt: skip
    return time.perf_counter() - started, len(found)


def one_round(side: str, workdir: Workdir, positives: int, rows: int) -> dict[str, float]:
    """Mine once; return seconds, the peak of memory in MiB, and the number of negatives."""
    anchors = first_positives(workdir, positives)
    with tempfile.TemporaryDirectory() as folder:
        part = part_of(workdir, rows, Path(folder))
        if side == "scalemine":
            started = time.perf_counter()
            found = ours(part, anchors)
            seconds = time.perf_counter() - started
        else:
            seconds, found = theirs(part, anchors, use_faiss=side.endswith("faiss"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak": peak, "found": found}


def main() -> None:
    """Go through rows, rounds and sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--positives", type=int, default=500)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="one round of one side, in this process")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(one_round(arguments.side, Workdir(arguments.workdir), arguments.positives, arguments.rows[0])))
        return
    for rows in arguments.rows:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, str(arguments.workdir), "--side", side, "--rows", str(rows)]
                command += ["--positives", str(arguments.positives)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rounds[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, each in rounds.items():
            seconds, peak = (statistics.median(one[key] for one in each) for key in ("seconds", "peak"))
            ratio = statistics.median(
                one["seconds"] / base["seconds"] for one, base in zip(each, rounds[SIDES[0]], strict=True)
            )
            print(
                f"{rows:,} tweets, {arguments.positives} positives: {side:30} {seconds:6.2f} s (x{ratio:.2f} of ours), "
                f"peak {peak:,.0f} MiB, {each[0]['found']:,.0f} negatives",
                flush=True,
            )


if __name__ == "__main__":
    main()
