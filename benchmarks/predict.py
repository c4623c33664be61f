"""Bulk prediction against what one would write oneself; peer and ours take turns, medians, and ratios of medians.

    python benchmarks/predict.py CORPUS --classifier MODEL --tagger MODEL --words MODEL --tweets 1024 --rounds 5

CORPUS is a Parquet file with text. Peers: ``transformers.pipeline`` over a list (one text at a time, as it comes, and
in the precision of ours), a loop that tags text by text, and scikit-learn's vectoriser and estimator, 1,000 at a time.
Ours is a shard as a worker predicts it: reading, prediction, summary and file. Seconds of this process, which other
work on the machine lengthens less than those on the clock; one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from scalemine.config import CorpusConfig
from scalemine.corpus import import_corpus
from scalemine.models import precision_name, quieten_libraries
from scalemine.predict import Predictions, ShardPredictor
from scalemine.shards import ShardJob
from scalemine.store import open_stage
from scalemine.training.kept import load_model
from scalemine.training.predictions import load_predictor
from scalemine.training.tagging.labels import word_offsets

CHUNK = 1_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    for kind in ("classifier", "tagger"):
        parser.add_argument(f"--{kind}", type=Path)
    parser.add_argument("--words", type=Path, action="append", default=[])
    parser.add_argument("--tweets", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = pq.read_table(options.data, columns=["text"]).slice(0, options.tweets)["text"].to_pylist()
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        here = Path(name)
        pq.write_table(pa.table({"text": texts}), here / "tweets.parquet")
        config = CorpusConfig(uri=str(here / "tweets.parquet"), id=[])
        corpus = import_corpus(config, here / "corpus")

        def ours(folder: Path, precision: str = "float32") -> Callable[[], object]:
            stage = open_stage(here / f"{folder.name}-{time.monotonic_ns()}", version=1, settings={}, inputs={})
            load = partial(load_predictor, folder, precision=precision)
            worker = ShardPredictor(
                load, Predictions(stage, corpus), keep=(), only_positive=False, time=None, threads=1
            )
            return lambda: [worker(ShardJob(shard)) for shard in corpus.shards]

        if options.classifier:
            fastest = precision_name("auto", "cpu")
            for precision in dict.fromkeys(("float32", fastest)):
                # As it comes, and at equal precision.
                for peer in dict.fromkeys(("float32", precision)):
                    title = f"classifier in {precision} / pipeline in {peer}"
                    compare(
                        title,
                        pipeline(options.classifier, texts, peer),
                        ours(options.classifier, precision),
                        options,
                        corpus.num_rows,
                    )
        if options.tagger:
            compare(
                "tagger / text by text", tag_loop(options.tagger, texts), ours(options.tagger), options, corpus.num_rows
            )
        for folder in options.words:
            compare(
                f"words {folder.parent.name} / scikit-learn",
                sklearn_loop(folder, texts),
                ours(folder),
                options,
                corpus.num_rows,
            )


def compare(
    title: str, peer: Callable[[], object], ours: Callable[[], object], options: argparse.Namespace, rows: int
) -> None:
    """Let both take turns, after one call that is not counted, and print tweets per second and the ratio."""
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for number in range(options.rounds + 1):
        for name, call in (("peer", peer), ("ours", ours)):
            started = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - started)
    peer_s, ours_s = (statistics.median(seconds[name]) for name in ("peer", "ours"))

    print(
        f"{title}: {rows / peer_s:,.0f} and {rows / ours_s:,.0f} tweets/s of processor time, x{peer_s / ours_s:.2f} "
        f"(rounds x{min(p / o for p, o in zip(*seconds.values(), strict=True)):.2f} to "
        f"x{max(p / o for p, o in zip(*seconds.values(), strict=True)):.2f})",
        flush=True,
    )


def pipeline(folder: Path, texts: Sequence[str], precision: str) -> Callable[[], object]:
    """Return a call of Hugging Face's pipeline over the texts."""
    quieten_libraries()
    from transformers import pipeline as make

    classify = make("text-classification", model=str(folder), top_k=None, dtype=getattr(torch, precision), device="cpu")
    return lambda: classify(list(texts), truncation=True)


def tag_loop(folder: Path, texts: Sequence[str]) -> Callable[[], object]:
    """Return a call that tags text by text."""
    tagger = load_model(folder, device="cpu")
    words = [[text[start:end] for start, end in word_offsets(text)] for text in texts]
    return lambda: [tagger.tag_words([one]) for one in words if one]  # type: ignore[union-attr]


def sklearn_loop(folder: Path, texts: Sequence[str]) -> Callable[[], object]:
    """Return a call of vectoriser and estimators, chunk by chunk."""
    model: Any = load_model(folder)
    features = model._features
    vectoriser = TfidfVectorizer(ngram_range=features.ngrams, vocabulary=features.terms)
    vectoriser.idf_ = features.idf

    def call() -> None:
        for start in range(0, len(texts), CHUNK):
            vectors_ND = vectoriser.transform([model.normalise(text) for text in texts[start : start + CHUNK]])
            for one in model._models:
                one.predict_proba(vectors_ND)

    return call


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
