"""The flair side of training.py, for an environment of its own (flair 0.15 wants transformers 4).

Reads one line of JSON with the job, then a word per line, and answers each with the seconds that it took.
"""

from __future__ import annotations

import json
import sys
import time

import flair
import torch
from flair.data import Dictionary, Sentence
from flair.embeddings import TransformerWordEmbeddings
from flair.models import SequenceTagger


def sentences(rows: list) -> list[Sentence]:
    """Return flair's sentences with their spans."""
    made = []
    for words, spans in rows:
        sentence = Sentence(words)
        for start, end, kind in spans:
            sentence[start:end].add_label("ner", kind)
        made.append(sentence)
    return made


def tagger(model: str, types: list[str], fine_tune: bool) -> SequenceTagger:
    """Return a tagger of the same layers: first subtoken, BiLSTM of 128 each way, CRF."""
    labels = Dictionary(add_unk=False)
    labels.span_labels = True
    for name in types:
        labels.add_item(name)
    embeddings = TransformerWordEmbeddings(
        model, layers="-1", subtoken_pooling="first", fine_tune=fine_tune, use_context=False, allow_long_sentences=True
    )
    return SequenceTagger(
        embeddings, labels, "ner", tag_format="BIO", hidden_size=128, rnn_layers=1, use_rnn=True, use_crf=True,
        reproject_embeddings=False, dropout=0.4, word_dropout=0.0, locked_dropout=0.0,
    )  # fmt: skip


def train_seconds(model: SequenceTagger, rows: list[Sentence], batch_size: int, store: bool) -> float:
    """Return how long one pass over the rows takes: loss, gradient, clipping, AdamW, as flair's trainer does it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
    model.train()
    started = time.perf_counter()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        optimizer.zero_grad()
        loss, count = model.forward_loss(batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        for sentence in batch:
            sentence.clear_embeddings() if not store else None
    return time.perf_counter() - started


def main() -> None:
    """Answer the words on standard input."""
    flair.device = torch.device("cpu")
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    tuned, frozen = (tagger(job["model"], job["types"], tune) for tune in (True, False))
    few, many, test = (sentences(job[name]) for name in ("few", "many", "test"))
    train_seconds(frozen, many, job["batch_size"], store=True)  # fills flair's cache
    print("ready", flush=True)
    for word in map(str.strip, sys.stdin):
        if word == "tuned":
            taken = train_seconds(tuned, few, job["batch_size"], store=False)
        elif word == "frozen":
            taken = train_seconds(frozen, many, job["batch_size"], store=True)
        else:
            for sentence in test:
                sentence.clear_embeddings()
            started = time.perf_counter()
            tuned.predict(test, mini_batch_size=32)
            taken = time.perf_counter() - started
        print(taken, flush=True)


if __name__ == "__main__":
    main()
