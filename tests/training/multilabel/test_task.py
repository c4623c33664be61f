from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from scalemine.config import LabelsConfig, LossConfig
from scalemine.executor import InlineExecutor
from scalemine.models import model_fingerprint
from scalemine.training.multilabel import task as module
from scalemine.training.multilabel.examples import Examples, TokeniserSpec, read_examples
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.network import ClassifierNetwork, load_network
from scalemine.training.multilabel.scores import macro_roc_auc, micro_roc_auc
from scalemine.training.multilabel.task import ClassifierTask, predict_logits, selection
from training.tiny import DIM, VOCABULARY, write_bert

LABELS = ("fear", "joy")
WORDS = ["fire", "bridge", "bus", "crash", "shop", "hurt", "old", "near"]
EM = LossConfig(name="em", em_warmup=2, em_share=0.8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def tweets(tmp_path_factory, encoder) -> Examples:
    """Forty tweets, of which only positives are known."""
    folder, chance = tmp_path_factory.mktemp("tweets"), random.Random(0)
    rows = [
        {
            "id": f"t{number}", "text": " ".join(chance.choices(WORDS, k=chance.randint(1, 12))),
            "labels": [label for label in LABELS if chance.random() < 0.3], "weight": chance.random(),
        }
        for number in range(40)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return read_examples(
        str(folder / "t.parquet"), LabelsConfig(absent="unknown"), folder, executor=InlineExecutor,
        tokenise=TokeniserSpec(encoder, model_fingerprint(encoder), 16, "none"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def make_network(encoder: Path, seed: int = 0, **options) -> ClassifierNetwork:
    torch.manual_seed(seed)
    values = {"nesting": None, "precision": "float32", "max_length": 16, "freeze": False, "lora": None}
    values |= {"gradient_checkpointing": False, "loss": LabelLoss(EM, LabelCounts(40, np.full(2, 5), np.full(2, 9)))}
    return load_network(encoder, LABELS, **(values | options))


def make_task(network: ClassifierNetwork, tweets: Examples, rows: np.ndarray | None = None, **options):
    rows = np.arange(40) if rows is None else rows
    values = {"epochs": 6, "lr": 1e-4, "head_lr": 1e-2, "weight_decay": 0.1, "pad_id": 0}
    loss = options.pop("loss", EM)
    return ClassifierTask(network, tweets, rows, lambda _: 0.5, loss, **(values | options))


# Parameters


@pytest.mark.parametrize("options", [{}, {"freeze": True}, {"lora": 2}])
def test_each_tuned_parameter_is_in_one_group(encoder, tweets, options):
    network = make_network(encoder, **options)
    groups = make_task(network, tweets).parameter_groups()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [(names[id(one)], group["lr"], group["weight_decay"]) for group in groups for one in group["params"]]
    tuned = sorted(name for name, one in network.named_parameters() if one.requires_grad)
    assert sorted(name for name, _, _ in found) == tuned
    for name, lr, decay in found:
        assert lr == (1e-2 if name.startswith("head.") or "pooler" in name else 1e-4), name
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "mpnet", "modernbert"])
def test_all_new_layers_have_the_rate_of_the_head(tweets, kind):
    sizes = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes = {"dim": DIM, "n_layers": 1, "n_heads": 2, "hidden_dim": 64} if kind == "distilbert" else sizes
    config = AutoConfig.for_model(kind, **sizes, vocab_size=len(VOCABULARY), num_labels=2, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    network = ClassifierNetwork(model, None, None, precision="float32")
    for group in make_task(network, tweets).parameter_groups():
        assert {id(one) in inside for one in group["params"]} == {group["lr"] == 1e-4}


# Batches


def test_a_batch_holds_what_the_tweets_hold(encoder, tweets):
    rows = np.array([5, 30, 2, 17, 9])
    task = make_task(make_network(encoder), tweets, rows)
    assert task.costs().tolist() == tweets.lengths[rows].tolist()
    batch = task.collate([3, 0, 0])
    assert "pseudo" not in batch
    for place, row in enumerate([17, 5, 5]):
        length = int(batch["attention_mask"][place].sum())
        assert batch["input_ids"][place, :length].tolist() == tweets.tokens_of([row])[0].tolist()
        assert not batch["input_ids"][place, length:].any()
        assert batch["targets"][place].tolist() == tweets.targets_of([row])[0].tolist()
        assert batch["weight"][place].item() == tweets.weights_of([row])[0]
    assert task.ids([3, 0]) == ["t17", "t5"]
    assert task.num_items([3, 0]) == 4


# Pseudo-labels


def pseudo_of(task: ClassifierTask, num_rows: int = 40) -> np.ndarray | None:
    batch = task.collate(range(num_rows))
    return batch["pseudo"].numpy() if "pseudo" in batch else None


def test_the_share_of_pseudo_labels_grows(encoder, tweets, accelerator, tmp_path):
    network = make_network(encoder)
    task = make_task(network, tweets)
    unknown_C = (tweets.targets_of() == -1).sum(0)
    before = np.full((40, 2), np.nan, np.float32)
    for epoch in range(6):
        task.begin_epoch(epoch, tmp_path, accelerator)
        found = pseudo_of(task)
        if epoch < 2:
            assert found is None
            continue
        given = ~np.isnan(found)
        assert not given[tweets.targets_of() != -1].any()
        assert given.sum(0).tolist() == [int(0.8 / 4 * n + 1e-9) * (epoch - 1) for n in unknown_C]
        assert np.array_equal(found[~np.isnan(before)], before[~np.isnan(before)])  # once given, kept
        new = given & np.isnan(before)
        scores = predict_logits(network, tweets, np.arange(40), accelerator, 0).sigmoid().numpy()
        assert np.array_equal(found[new], scores[new])
        assert [path.name for path in tmp_path.glob("pseudo-*")] == [f"pseudo-{epoch:05}.safetensors"]
        before = found
        with torch.no_grad():
            network.head.weight.add_(torch.randn_like(network.head.weight))
    assert network.training  # as it was


def test_pseudo_labels_outlast_a_run_that_ended_in_mid_epoch(encoder, tweets, accelerator, tmp_path):
    first = make_task(make_network(encoder), tweets)
    for epoch in (0, 1, 2, 3):
        first.begin_epoch(epoch, tmp_path, accelerator)
    # Weights have changed since the epoch began.
    again = make_task(make_network(encoder, seed=1), tweets)
    again.begin_epoch(3, tmp_path, accelerator)
    assert np.array_equal(pseudo_of(again), pseudo_of(first), equal_nan=True)
    other = make_task(make_network(encoder, seed=1), tweets)
    (tmp_path / "other").mkdir()
    other.begin_epoch(2, tmp_path / "other", accelerator)
    assert not np.array_equal(pseudo_of(other), pseudo_of(first), equal_nan=True)


def test_pseudo_labels_are_of_the_rows_that_are_trained_on(encoder, tweets, accelerator, tmp_path):
    rows = np.array([8, 1, 33, 20, 4, 6, 7])
    task = make_task(make_network(encoder), tweets, rows, loss=LossConfig(name="em", em_warmup=0, em_share=1), epochs=1)
    task.begin_epoch(0, tmp_path, accelerator)
    found = pseudo_of(task, 7)
    assert np.array_equal(~np.isnan(found), tweets.targets_of(rows) == -1)
    task.begin_epoch(0, tmp_path, accelerator)
    assert np.array_equal(task.collate([4, 2])["pseudo"].numpy(), found[[4, 2]], equal_nan=True)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(name="em")])
def test_without_a_warm_up_there_are_none(encoder, tweets, accelerator, tmp_path, loss):
    task = make_task(make_network(encoder), tweets, loss=loss)
    for epoch in range(3):
        task.begin_epoch(epoch, tmp_path, accelerator)
        assert pseudo_of(task) is None
    assert not list(tmp_path.iterdir())


# Predictions


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(40)), budget=st.integers(1, 200))
def test_logits_do_not_depend_on_batches(encoder, tweets, accelerator, order, budget):
    network = make_network(encoder).eval()
    rows = np.array(order)[:25]
    with torch.inference_mode():
        alone = [network.logits(module.tokens_batch(tweets, np.array([row]), 0))[0] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_TOKENS", {"cpu": budget})
        found = predict_logits(network, tweets, rows, accelerator, 0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    assert not network.training


def test_dropout_is_off_where_nothing_is_learnt(encoder, tweets, accelerator):
    network = make_network(encoder).train()
    one, two = (predict_logits(network, tweets, np.arange(40), accelerator, 0) for _ in range(2))
    assert torch.equal(one, two)
    assert network.training
    assert predict_logits(network, tweets, np.arange(0), accelerator, 0).shape == (0, 2)


def test_what_chooses_the_epoch():
    chance = np.random.default_rng(0)
    targets_NC = chance.integers(-1, 2, (30, 3)).astype(np.int8)
    targets_NC[:, 2] = 0
    scores_NC = chance.random((30, 3)).astype(np.float32)
    assert selection("macro_roc_auc")(targets_NC, scores_NC) == macro_roc_auc(targets_NC, scores_NC)
    assert selection("micro_roc_auc")(targets_NC, scores_NC) == micro_roc_auc(targets_NC, scores_NC)
    from sklearn.metrics import average_precision_score

    known = targets_NC >= 0
    expected = np.mean([average_precision_score(targets_NC[known[:, c], c], scores_NC[known[:, c], c]) for c in (0, 1)])
    assert selection("macro_average_precision")(targets_NC, scores_NC) == pytest.approx(expected)
    assert selection("macro_average_precision")(targets_NC * 0, scores_NC) == 0.0
