"""Exact search by shards against one faiss.IndexFlatIP of everything, interleaved in one run: medians, and ratios.

    python benchmarks/search.py WORKDIR [--queries 2000] [-k 10] [--rounds 3] [--threads 2]

WORKDIR is one that is embedded (scalemine embed configs/crisis.yaml). Queries are rows of it, with noise. Each round of
each side is a process of its own, so that its peak memory is that of one search; pages of the memory-mapped embeddings
count in it. Flat is given every row as float32, which takes the time that is printed as add. The two need not agree on
ties, nor where cosines differ by less than the grid; how far they do is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from scalemine.corpus import open_corpus
from scalemine.executor import InlineExecutor
from scalemine.mining.index import search
from scalemine.shards import Embeddings
from scalemine.store import Stage, Workdir, fingerprint, read_json

SIDES = ("scalemine", "flat")


def open_embeddings(workdir: Path) -> Embeddings:
    """Return the embeddings of a workdir, whatever its configuration."""
    folder = Workdir(workdir).embeddings
    return Embeddings(Stage(folder, fingerprint(read_json(folder / "stage.json"))), open_corpus(workdir / "corpus"))


def make_queries(embeddings: Embeddings, number: int) -> np.ndarray:
    """Return rows spread over the corpus, with noise, of length 1."""
    rng = np.random.default_rng(1)
    share = -(-number // len(embeddings.corpus.shards))
    parts = []
    for shard in embeddings.corpus.shards:
        vectors, valid = embeddings.vectors(shard)
        rows = rng.choice(np.flatnonzero(valid), min(share, int(valid.sum())), replace=False)
        parts.append(vectors[rows].astype(np.float32))
    queries = np.concatenate(parts)[:number]
    queries += 0.3 / np.sqrt(queries.shape[1]) * rng.standard_normal(queries.shape, np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def one_round(side: str, workdir: Path, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Search once, write the ids found, and return seconds and the peak of memory in MiB."""
    embeddings = open_embeddings(workdir)
    queries = make_queries(embeddings, arguments.queries)
    faiss.omp_set_num_threads(arguments.threads)
    started, added = time.perf_counter(), 0.0
    if side == "scalemine":
        found = search(embeddings, queries, arguments.k, executor=InlineExecutor(), threads=arguments.threads)
        ids = found.ids
    else:
        index = faiss.IndexFlatIP(queries.shape[1])
        names: list[str] = []
        for shard in embeddings.corpus.shards:
            index.add(embeddings.vectors(shard)[0].astype(np.float32))
            names += embeddings.read(shard)["id"].to_pylist()
        added = time.perf_counter() - started
        _, rows = index.search(queries, arguments.k)
        ids = [[names[row] for row in query] for query in rows]
    seconds = time.perf_counter() - started - added
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.write_text(json.dumps(ids))
    return {"seconds": seconds, "add": added, "peak": peak}


def main() -> None:
    """Run the rounds and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, out = arguments.one
        print(json.dumps(one_round(side, arguments.workdir, arguments, Path(out))))
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                command = [sys.executable, *sys.argv, "--one", side, f"{folder}/{side}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[side].append(json.loads(done.stdout))
        ids = [json.loads(Path(folder, side).read_text()) for side in SIDES]
    shared = [len(set(one) & set(other)) / len(one) for one, other in zip(*ids, strict=True)]
    print(f"{arguments.queries:,} queries, k {arguments.k}, {arguments.threads} threads, {arguments.rounds} rounds")
    for side in SIDES:
        median = {key: statistics.median(one[key] for one in results[side]) for key in results[side][0]}
        every = ", ".join(f"{one['seconds']:.2f}" for one in results[side])
        added = f", and {median['add']:.2f} s to add" if side == "flat" else ""
        print(f"{side:>10}: {median['seconds']:.2f} s ({every}){added}; peak {median['peak']:,.0f} MiB")
    print(f"{100 * statistics.mean(shared):.2f} % of the hits are the same")


if __name__ == "__main__":
    main()
