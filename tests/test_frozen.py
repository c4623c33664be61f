from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine import frozen as module
from scalemine.config import Config, InputError
from scalemine.encoder import load_encoder
from scalemine.executor import Stopped, StopSignals
from scalemine.frozen import embed_examples
from scalemine.training.multilabel.baseline_trainer import vectors_of
from training.tiny import DIM, write_bert

WORDS = ["fire", "bridge", "bus", "crash", "shop", "hurt", "old", "near"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, chance = tmp_path_factory.mktemp("tweets"), random.Random(0)
    for name in ("train", "dev", "test"):
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(20)]
        table = {"id": [f"{name}{n}" for n in range(20)], "text": texts, "labels": [["fear"], []] * 10}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    write_bert(folder / "bert", num_hidden_layers=1)
    return folder


def config(data: Path, workdir: Path, **sections) -> Config:
    train = {
        "train_uri": str(data / "train.parquet"), "dev_uri": str(data / "dev.parquet"), "group_by": [],
        "test_uris": {"test": str(data / "test.parquet"), "again": str(data / "train.parquet")},
        "model": "logistic_regression",
    }  # fmt: skip
    encoder = {"model": str(data / "bert"), "device": "cpu", "precision": "float32", "max_length": 16}
    return Config.model_validate(
        {"workdir": str(workdir), "train": train, "encoder": encoder, "compute": {"threads": 1}} | sections
    )


def test_every_file_is_embedded_once(data, tmp_path, monkeypatch):
    one = config(data, tmp_path)
    shown: list[str] = []
    real = module.silent

    def show(stage, total):
        shown.append(stage)
        return real(stage, total)

    found = embed_examples(one, signals=StopSignals(), show=show)
    encoder = load_encoder(one.encoder, precision="float32", threads=1)
    for examples in (found.train, found.dev, *found.tests.values()):
        texts = [text or "" for text in examples.column("text")]
        expected = encoder.encode(encoder.tokenise([encoder.normalise(text) for text in texts])).astype(np.float16)
        assert vectors_of(one, examples, np.arange(20)).shape == (20, DIM)
        assert np.array_equal(vectors_of(one, examples, np.arange(20)), expected)
    assert [stage for stage in shown if stage.startswith("embed")] == ["embed train", "embed dev", "embed test"]
    monkeypatch.setattr(module, "make_executor", lambda *_, **__: pytest.fail("embedded again"))
    again = embed_examples(one, signals=StopSignals())
    assert again.train.sha256 == found.train.sha256


def test_a_stop_keeps_nothing_half_done(data, tmp_path):
    signals = StopSignals()
    signals.requested = True
    with pytest.raises(Stopped):
        embed_examples(config(data, tmp_path), signals=signals)
    found = embed_examples(config(data, tmp_path), signals=StopSignals())
    assert np.isfinite(vectors_of(config(data, tmp_path), found.train, np.arange(20))).all()


def test_engines_of_the_embeddings(data, tmp_path):
    one = config(data, tmp_path)
    vectors = {}
    for engine in ("auto", "onednn"):
        named = one.model_copy(update={"encoder": one.encoder.model_copy(update={"engine": engine})})
        found = embed_examples(named, signals=StopSignals(), train_only=True)
        vectors[engine] = vectors_of(named, found.train, np.arange(20))
    assert np.abs(vectors["auto"].astype(np.float32) - vectors["onednn"]).max() < 1e-3
    wrong = named.model_copy(update={"encoder": named.encoder.model_copy(update={"precision": "bfloat16"})})
    with pytest.raises(InputError, match=r"^encoder.engine: onednn does not compute in bfloat16"):
        embed_examples(wrong, signals=StopSignals())
