from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel, BertTokenizerFast, pipeline

from scalemine.config import Config, CorpusConfig, InputError, LabelsConfig
from scalemine.executor import InlineExecutor
from scalemine.models import model_fingerprint
from scalemine.training import runs
from scalemine.training.multilabel import data as data_module
from scalemine.training.multilabel import examples as examples_module
from scalemine.training.multilabel import first_tokens as module
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.multilabel.examples import Examples, TokeniserSpec, read_examples, tokens_batch
from scalemine.training.multilabel.first_tokens import check_first_tokens, with_vectors
from scalemine.training.multilabel.network import ClassifierNetwork, load_model
from scalemine.training.runs import run_training
from training.tiny import DIM, VOCABULARY

SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
OTHER_SIZES = {
    "distilbert": {"dim": DIM, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "albert": SIZES | {"embedding_size": DIM},
    "electra": SIZES | {"embedding_size": DIM},
}
SIGNS = {"fear": "fire", "joy": "shop", "pain": "hurt"}
LABELS = list(SIGNS)
FILLERS = ["the", "old", "bridge", "bus", "in", "into", "a", "two", "#", ","]
MAX_LENGTH = 12


def write_encoder(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """Write an untrained encoder of a kind, and a tokeniser, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = OTHER_SIZES.get(kind, SIZES)
    config = AutoConfig.for_model(kind, **sizes, vocab_size=len(VOCABULARY), pad_token_id=0, initializer_range=0.2)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(folder / kind, kind) for kind in ("bert", "roberta", "distilbert")}


def write_tweets(path: Path, number: int, seed: int) -> Path:
    """Write tweets whose words tell their labels, some of them longer than is read."""
    chance = np.random.default_rng(seed)
    rows = []
    for place in range(number):
        labels = [label for label in LABELS if chance.random() < 0.4]
        words = [SIGNS[label] for label in labels] + chance.choice(FILLERS, chance.integers(1, 12)).tolist()
        rows.append({"id": f"{path.stem}{place}", "text": " ".join(chance.permutation(words)), "labels": labels})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tweets")
    write_tweets(folder / "train.parquet", 90, 1)
    write_tweets(folder / "dev.parquet", 40, 2)
    write_tweets(folder / "test.parquet", 40, 3)
    return folder


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Let an import write shards of seven tweets, which are encoded a few at a time."""
    monkeypatch.setattr(examples_module, "CorpusConfig", partial(CorpusConfig, rows_per_shard=7))
    monkeypatch.setattr(module, "BATCH_TOKENS", {"cpu": 3 * MAX_LENGTH})


def read(path: Path, folder: Path, encoder: Path, max_length: int = MAX_LENGTH, normaliser: str = "none") -> Examples:
    spec = TokeniserSpec(encoder, model_fingerprint(encoder), max_length, normaliser)
    return read_examples(str(path), LabelsConfig(), folder, executor=InlineExecutor, tokenise=spec)


def encoded(examples: Examples, encoder: Path, on_rows: Callable[[int], None] | None = None) -> Examples:
    return with_vectors(examples, encoder, 0, device="cpu", executor=InlineExecutor, on_rows=on_rows)


def config(files: Path, workdir: Path, encoder: Path, labels: dict | None = None, **train) -> Config:
    values = {
        "train_uri": str(files / "train.parquet"), "dev_uri": str(files / "dev.parquet"),
        "test_uris": {"test": str(files / "test.parquet")}, "model": "classifier", "encoder": str(encoder),
        "freeze": True, "max_length": MAX_LENGTH, "lr": 0.01, "head_lr": 0.01, "epochs": 3, "batch_size": 8,
        "bootstrap": 0, "device": "cpu", "precision": "float32", "group_by": [], "name": "run",
    }  # fmt: skip
    return Config.model_validate(
        {"workdir": str(workdir), "compute": {"threads": 1}, "labels": labels or {}, "train": values | train}
    )


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Of each call of BERT, how many tweets it was of."""
    seen: list[int] = []
    real = BertModel.forward

    def counted(self, input_ids, *args, **named):
        seen.append(len(input_ids))
        return real(self, input_ids, *args, **named)

    monkeypatch.setattr(BertModel, "forward", counted)
    return seen


# Vectors


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_vectors_are_the_hidden_states_of_transformers(files, tmp_path, small_shards, encoders, kind):
    path, told = files / "train.parquet", []
    examples = encoded(read(path, tmp_path, encoders[kind]), encoders[kind], on_rows=told.append)
    assert len(examples.corpus.shards) == 13
    assert sum(told) == 90
    # One tweet at a time, so nothing is filled up.
    model, tokenizer = AutoModel.from_pretrained(encoders[kind]).eval(), AutoTokenizer.from_pretrained(encoders[kind])
    with torch.inference_mode():
        expected = [
            model(**tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")).last_hidden_state
            for text in examples.column("text")
        ]
    assert sorted(examples.column("id")) == sorted(pq.read_table(path)["id"].to_pylist())
    expected_ND = np.stack([hidden_1SD[0, 0].numpy() for hidden_1SD in expected])
    assert max(hidden_1SD.shape[1] for hidden_1SD in expected) == MAX_LENGTH
    for rows in (range(90), [88, 3, 3, 41, 0]):
        found_BD = examples.vectors_of(rows)
        assert found_BD.dtype == np.float32
        assert np.allclose(found_BD, expected_ND[rows], atol=1e-5)
    assert np.abs(expected_ND - expected_ND[0]).max() > 0.1  # tweets differ
    assert examples.vectors_of([]).shape == (0, DIM)


def test_a_batch_holds_vectors_alone(files, tmp_path, encoders):
    examples = encoded(read(files / "dev.parquet", tmp_path, encoders["bert"]), encoders["bert"])
    batch = tokens_batch(examples, np.array([5, 2]), 0)
    assert set(batch) == {"vectors"}
    assert np.array_equal(batch["vectors"].numpy(), examples.vectors_of([5, 2]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra"])
def test_logits_from_vectors_are_those_from_tokens(files, tmp_path, small_shards, kind):
    encoder = write_encoder(tmp_path / "encoder", kind)
    check_first_tokens(encoder)
    plain = read(files / "dev.parquet", tmp_path / "work", encoder)
    examples = encoded(plain, encoder)
    torch.manual_seed(0)
    network = ClassifierNetwork(load_model(encoder, LABELS), None, None, precision="float32").eval()
    rows = np.array([30, 2, 17, 39])
    with torch.inference_mode():
        found_BC = network.logits(tokens_batch(examples, rows, 0))
        assert torch.allclose(found_BC, network.logits(tokens_batch(plain, rows, 0)), atol=1e-5)
    assert (found_BC[0] - found_BC[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "albert", "deberta-v2"])
def test_kinds_that_read_more_are_refused(tmp_path, kind):
    encoder = write_encoder(tmp_path / "encoder", kind)
    with pytest.raises(
        InputError, match=r"train.freeze: .*encoder is of a kind \(\w+ForSequence.*more than the"
    ) as error:
        check_first_tokens(encoder)
    assert "\n" not in str(error.value)


# Computed once


def forbidden(*_: object) -> None:
    pytest.fail("encoded again")


def test_vectors_are_computed_once(files, tmp_path, small_shards, encoders, monkeypatch):
    path, encoder = files / "dev.parquet", encoders["bert"]
    first = encoded(read(path, tmp_path, encoder), encoder)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_FirstVectors", forbidden)
        again = encoded(read(path, tmp_path, encoder), encoder)
        # A copy of the encoder elsewhere is the same encoder.
        copied = write_encoder(tmp_path / "copied")
        encoded(read(path, tmp_path, copied), copied)
    assert np.array_equal(again.vectors_of(range(40)), first.vectors_of(range(40)))


def test_other_vectors_are_computed_anew(files, tmp_path, small_shards, encoders):
    """Another encoder, other tokens, other tweets: each has vectors of its own, and none takes another's place."""
    path, encoder = files / "dev.parquet", encoders["bert"]
    seeded = write_encoder(tmp_path / "seeded", seed=1)
    ways = [(encoder, {}), (seeded, {}), (encoder, {"max_length": 5}), (encoder, {"normaliser": "bertweet"})]
    found = [encoded(read(path, tmp_path, one, **how), one).vectors_of(range(40)) for one, how in ways]
    for number, (one, how) in enumerate(ways):
        told: list[int] = []
        again_ND = encoded(read(path, tmp_path, one, **how), one, on_rows=told.append).vectors_of(range(40))
        assert np.array_equal(again_ND, found[number])
        assert not told
    assert not np.allclose(found[0], found[1], atol=0.1)
    assert not np.allclose(found[0], found[2], atol=0.1)
    # Of the very tokens that the other encoder was given.
    assert np.allclose(encoded(read(path, tmp_path, encoder), seeded).vectors_of(range(40)), found[1], atol=1e-5)
    rows = pq.read_table(path).to_pylist()
    other = tmp_path / "elsewhere" / "dev.parquet"  # of the same name
    other.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), other)
    told = []
    turned_ND = encoded(read(other, tmp_path, encoder), encoder, on_rows=told.append).vectors_of(range(40))
    assert sum(told) == 40
    places = {id_: place for place, id_ in enumerate(read(path, tmp_path, encoder).column("id"))}
    order = [places[id_] for id_ in read(other, tmp_path, encoder).column("id")]
    assert order != list(range(40))
    assert np.allclose(turned_ND, found[0][order], atol=1e-5)


def test_what_was_encoded_before_a_fault_is_kept(files, tmp_path, small_shards, encoders, monkeypatch):
    path, encoder = files / "dev.parquet", encoders["bert"]
    whole_ND = encoded(read(path, tmp_path / "whole", encoder), encoder).vectors_of(range(40))
    real, encode = module._FirstVectors.__call__, []

    def faulty(self, job):
        encode.append(job)
        if len(encode) > 2:
            raise RuntimeError("no memory is left")
        return real(self, job)

    monkeypatch.setattr(module._FirstVectors, "__call__", faulty)
    with pytest.raises(RuntimeError, match="no memory is left"):
        encoded(read(path, tmp_path / "work", encoder), encoder)
    monkeypatch.setattr(module._FirstVectors, "__call__", real)
    told: list[int] = []
    found = encoded(read(path, tmp_path / "work", encoder), encoder, on_rows=told.append)
    assert sum(told) == 40 - 2 * 7
    assert np.array_equal(found.vectors_of(range(40)), whole_ND)


# Runs


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_encoder_is_not_run_in_training(files, tmp_path, encoders, calls, monkeypatch, freeze):
    real, within = runs.train_split, []

    def train_split(*args: object, **named) -> None:
        before = len(calls)
        real(*args, **named)
        within.append(len(calls) - before)

    monkeypatch.setattr(runs, "train_split", train_split)
    run_training(config(files, tmp_path, encoders["bert"], freeze=freeze))
    if not freeze:
        assert within[0] > 3 * 90 / 8  # so they would be seen
        return
    assert within == [0]
    # Beside the look at what the classifier reads, which is of two texts and its model.
    assert sum(calls) == 90 + 40 + 40 + 2 * 2
    calls.clear()
    run_training(config(files, tmp_path, encoders["bert"], lr=0.02, name="another"))
    assert within == [0, 0]
    assert sum(calls) == 2 * 2


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("bert", {}), ("roberta", {}), ("roberta", {"nested": [["fear", "joy"]], "calibration": "none"})],
)
def test_a_frozen_run_gives_a_plain_model(files, tmp_path, encoders, kind, labels, monkeypatch):
    """What transformers makes of the folder are the scores that were written; the encoder is in it as it was."""
    monkeypatch.setattr(data_module, "_CONTRADICTIONS", 1.0)  # these labels are not nested in truth
    [result] = run_training(config(files, tmp_path, encoders[kind], labels))
    assert result["words"] == f"{kind}, frozen"
    folder = tmp_path / "runs" / "run"
    chain = pipeline("text-classification", model=str(folder / "model"), top_k=None, device="cpu")
    for name in ("dev", "test"):
        path = folder / "predictions" / f"{name}.parquet"
        names, _, scores_NC = read_predictions(path)
        texts = {row["id"]: row["text"] for row in pq.read_table(files / f"{name}.parquet").to_pylist()}
        asked = [texts[id_] for id_ in pq.read_table(path)["id"].to_pylist()]
        assert len(asked) == 40
        for text, found, expected in zip(asked, chain(asked, truncation=True), scores_NC, strict=True):
            by_label = {one["label"]: one["score"] for one in found}
            assert [by_label[label] for label in names] == pytest.approx(expected.tolist(), abs=1e-5), text
        assert np.ptp(scores_NC, axis=0).min() > 1e-3  # tweets differ
        if labels:
            assert (scores_NC[:, names.index("fear")] <= scores_NC[:, names.index("joy")]).all()
    before, after = load_file(encoders[kind] / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    inner = [name for name in before if not name.startswith("pooler.")]
    assert inner
    assert all(np.array_equal(before[name], after[f"{kind}.{name}"]) for name in inner)
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    if kind == "bert":  # what is behind the first token's vector is tuned
        name = "pooler.dense.weight"
        assert np.abs(before[name] - after[f"bert.{name}"]).max() > 1e-3


def test_a_frozen_distilbert_is_refused_before_anything_is_read(files, tmp_path, encoders):
    with pytest.raises(
        InputError, match=r"train.freeze: .*DistilBertForSequenceClassification.*or train.lora"
    ) as error:
        run_training(config(files, tmp_path / "work", encoders["distilbert"]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "work").exists()
    [result] = run_training(config(files, tmp_path / "work", encoders["distilbert"], freeze=False, epochs=1))
    assert result["words"] == "distilbert, fine-tuned"
