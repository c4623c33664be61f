from __future__ import annotations

import builtins
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from scalemine.config import InputError, LossConfig
from scalemine.models import load_tokenizer
from scalemine.training.multilabel.classifier import write_classifier
from scalemine.training.multilabel.head import NestedLinear, order
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss
from scalemine.training.multilabel.network import ClassifierNetwork, load_network
from training.tiny import DIM, POSITIONS, VOCABULARY, write_bert

LABELS = ["far", "mid", "near", "other"]
CHAINS = [["near", "mid", "far"]]
NESTING = order(LABELS, CHAINS)
SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DISTIL = {"dim": DIM, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
INFO = {
    "thresholds": dict.fromkeys(LABELS, 0.5), "calibration": {}, "normaliser": "none", "max_length": 32,
    "nested": CHAINS, "languages": {}, "training": {}, "metrics": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def loss(name: str = "bce") -> LabelLoss:
    return LabelLoss(LossConfig(name=name), LabelCounts(20, np.full(4, 5), np.full(4, 15)))


def load(encoder: Path, seed: int = 0, **options) -> ClassifierNetwork:
    torch.manual_seed(seed)
    values = {"nesting": None, "loss": loss(), "precision": "float32", "max_length": 32, "freeze": False}
    values |= {"lora": None, "gradient_checkpointing": False}
    return load_network(encoder, LABELS, **(values | options))


def batch(seed: int = 0, rows: int = 6, targets: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 15, (rows,), generator=generator)
    mask = (torch.arange(15)[None] < lengths[:, None]).long()
    ids = torch.randint(5, len(VOCABULARY), (rows, 15), generator=generator) * mask
    found = {"input_ids": ids, "attention_mask": mask}
    if targets:
        found["targets"] = torch.randint(-1, 2, (rows, 4), generator=generator).to(torch.int8)
        found["weight"] = torch.rand(rows, generator=generator)
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet"])
def test_logits_are_those_of_the_whole_model(kind):
    torch.manual_seed(0)
    sizes = DISTIL if kind == "distilbert" else SIZES
    config = AutoConfig.for_model(kind, **sizes, vocab_size=len(VOCABULARY), num_labels=4)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    inputs = batch(targets=False)
    with torch.inference_mode():
        expected = model(**inputs).logits
        network = ClassifierNetwork(model, None, None, precision="float32").eval()
        assert torch.allclose(network.logits(inputs), expected, atol=1e-6)
        assert torch.allclose(network.whole(np.ones(4), np.zeros(4))(**inputs).logits, expected, atol=1e-6)


def test_calibration_is_in_the_whole_model(encoder):
    network = load(encoder).eval()
    inputs = batch(targets=False)
    slope_C, offset_C = np.array([0.5, 1, 2, 3]), np.array([-1.0, 0, 1, 2])
    with torch.inference_mode():
        expected = network.logits(inputs) * torch.tensor(slope_C) + torch.tensor(offset_C)
        whole = network.whole(slope_C, offset_C)
        assert torch.allclose(whole(**inputs).logits.double(), expected, atol=1e-5)
        again = ClassifierNetwork(whole, None, None, precision="float32").eval()
        assert torch.allclose(again.logits(inputs).double(), expected, atol=1e-5)
    assert whole.config.id2label == dict(enumerate(LABELS))


def test_only_the_encoder_is_in_low_precision(encoder):
    network = load(encoder, precision="bfloat16").eval()
    seen = {}

    def see(module: torch.nn.Module, given: tuple, found: object) -> None:
        seen.update({"given": given[0]} if module is network.head else {"features": found.logits})

    network.model.register_forward_hook(see)
    network.head.register_forward_hook(see)
    given = batch()
    logits_BC = network.logits(given)
    assert seen["features"].dtype == torch.bfloat16
    assert seen["given"].dtype == logits_BC.dtype == network(given).dtype == torch.float32
    # Bit for bit what float32 gives: under autocast it would not be.
    assert torch.equal(logits_BC, torch.nn.functional.linear(seen["given"], network.head.weight, network.head.bias))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def gradients(network: ClassifierNetwork, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)  # of dropout
    network.zero_grad()
    network.train()(given).backward()
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    ("options", "is_tuned"),
    [
        ({}, lambda _name: True),
        ({"freeze": True}, lambda name: ".pooler." in name or name.startswith("head.")),
        ({"lora": 2}, lambda name: "lora_" in name or ".pooler." in name or name.startswith("head.")),
        (
            {"lora": 2, "gradient_checkpointing": True},
            lambda name: "lora_" in name or ".pooler." in name or name.startswith("head."),
        ),
    ],
)
@pytest.mark.parametrize("nesting", [None, NESTING])
def test_gradients_go_where_they_should(encoder, options, is_tuned, nesting):
    network = load(encoder, nesting=nesting, **options)
    found = gradients(network, batch())
    assert set(found) == {name for name, _ in network.named_parameters() if is_tuned(name)}
    assert any(found[name].abs().max() > 0 for name in found if "head." not in name)
    if "lora" in options:  # B begins at 0, so A has no gradient yet; all linear layers but the pooler have both
        assert sum("lora_B" in name for name in found) == 2 * 6
        assert all(found[name].abs().max() > 0 for name in found if "lora_B" in name)


@pytest.mark.parametrize("options", [{}, {"lora": 2}])
def test_gradient_checkpointing_changes_no_gradient(encoder, options):
    plain = gradients(load(encoder, **options), batch())
    again = gradients(load(encoder, gradient_checkpointing=True, **options), batch())
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)


def test_gradient_checkpointing_computes_layers_twice(encoder):
    calls = {}
    for checkpointing in (False, True):
        network = load(encoder, gradient_checkpointing=checkpointing)
        seen = []
        inner = network.model.bert.encoder.layer[0].attention.self.query
        inner.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        gradients(network, batch())
        calls[checkpointing] = len(seen)
    assert calls == {False: 1, True: 2}


def learn(network: ClassifierNetwork, steps: int, seed: int = 0) -> None:
    optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=0.02)
    network.train()
    for step in range(steps):
        given = batch(seed + step)
        # As far from the order as can be: the inner label always, the outer ones never.
        given["targets"] = torch.tensor([[0, 0, 1, 1]]).expand(6, 4)
        optimizer.zero_grad()
        network(given).backward()
        optimizer.step()
    network.eval()


def test_adapters_are_merged(encoder):
    network = load(encoder, lora=4)
    learn(network, 5)
    inputs = batch(9, targets=False)
    with torch.inference_mode():
        before = network.logits(inputs)
        whole = network.whole(np.ones(4), np.zeros(4)).eval()
        assert (load(encoder).eval().logits(inputs) - before).abs().max() > 0.01
        assert torch.allclose(whole(**inputs).logits, before, atol=1e-5)
    assert not [name for name, _ in whole.named_parameters() if "lora" in name or "base_layer" in name]
    assert type(whole).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("options", [{}, {"lora": 2}, {"precision": "bfloat16"}])
def test_nested_labels_keep_their_order_to_the_end(encoder, tmp_path, options):
    network = load(encoder, nesting=NESTING, **options)
    assert isinstance(network.head, NestedLinear)
    learn(network, 25)

    def coherent(scores_NC: torch.Tensor) -> bool:
        far, mid, near, _ = scores_NC.T
        return bool((near <= mid).all() and (mid <= far).all())

    inputs = batch(5, 200, targets=False)
    with torch.inference_mode():
        assert coherent(network.logits(inputs))
        # What calibration may do: one slope and offset for labels that hang together.
        whole = network.whole([3.0, 3.0, 3.0, 0.5], [-2.0, -2.0, -2.0, 1.0]).eval()
        assert coherent(whole(**inputs).logits)
        assert coherent(torch.sigmoid(whole(**inputs).logits))
    write_classifier(whole, load_tokenizer(encoder, key="x"), INFO, tmp_path / "model")
    chain = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None, device="cpu")
    for scores in chain(["fire near the old bridge", "two hurt", "a", "bus crash " * 9]):
        by_label = {one["label"]: one["score"] for one in scores}
        assert by_label["near"] <= by_label["mid"] <= by_label["far"]


def test_a_classifiers_head_is_discarded(encoder, tmp_path):
    network = load(encoder)
    write_classifier(network.whole(np.ones(4), np.zeros(4)), load_tokenizer(encoder, key="x"), INFO, tmp_path)
    other = load_network(
        tmp_path, ["one", "two"], nesting=None, loss=loss(), precision="float32", max_length=32, freeze=False,
        lora=None, gradient_checkpointing=False,
    )  # fmt: skip
    assert other.head.out_features == 2
    assert other.whole([1, 1], [0, 0]).config.id2label == {0: "one", 1: "two"}


def test_the_head_of_a_classifier_with_as_many_labels_is_drawn_anew(encoder, tmp_path):
    trained = load(encoder)
    with torch.no_grad():
        trained.head.weight.fill_(9.0)
        trained.head.bias.fill_(-9.0)
        trained.model.bert.pooler.dense.bias.fill_(7.0)
    write_classifier(trained.whole(np.ones(4), np.zeros(4)), load_tokenizer(encoder, key="x"), INFO, tmp_path)
    network = load(tmp_path)
    assert torch.equal(network.model.bert.pooler.dense.bias, torch.full((DIM,), 7.0))  # the rest is kept
    assert network.head.out_features == 4
    assert not network.head.bias.any()
    spread = network.model.config.initializer_range
    assert network.head.weight.std().item() == pytest.approx(spread, rel=0.3)
    assert abs(network.head.weight.mean().item()) < 0.3 * spread
    # By the seed that is set before, and as that of an encoder that is no classifier.
    assert torch.equal(load(tmp_path).head.weight, network.head.weight)
    assert not torch.equal(load(tmp_path, seed=1).head.weight, network.head.weight)
    assert load(encoder).head.weight.std().item() == pytest.approx(spread, rel=0.3)


# Refusals


def test_too_long_for_the_encoder(encoder):
    assert load(encoder, max_length=POSITIONS)
    with pytest.raises(InputError, match=f"train.max_length: .* reads at most {POSITIONS} tokens, got {POSITIONS + 1}"):
        load(encoder, max_length=POSITIONS + 1)


def test_nested_labels_want_a_tanh(encoder, tmp_path):
    config = AutoConfig.for_model("distilbert", **DISTIL, vocab_size=len(VOCABULARY))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path)
    with pytest.raises(InputError, match=r"labels.nested: wants an encoder .*tanh.* of the kind DistilBert"):
        load(tmp_path, nesting=NESTING)


def test_the_kinds_of_tanh_end_in_one():
    """Features of the kinds that nested labels go with lie in [-1, 1]; those of others do not."""
    from scalemine.training.multilabel.network import _TANH_HEADS

    kinds = {"bert": True, "roberta": True, "camembert": True, "xlm-roberta": True, "mpnet": True, "albert": True}
    for kind, has_tanh in (kinds | {"electra": False, "distilbert": False}).items():
        sizes = DISTIL if kind == "distilbert" else SIZES
        embedding = {"embedding_size": DIM} if kind in ("albert", "electra") else {}
        config = AutoConfig.for_model(kind, **sizes, **embedding, vocab_size=len(VOCABULARY), num_labels=4)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
        network = ClassifierNetwork(model, None, None, precision="float32").eval()
        with torch.inference_mode():
            features = network.model(**batch(targets=False)).logits
        assert bool(features.abs().max() <= 1) == has_tanh
        assert (type(model).__name__.removesuffix("ForSequenceClassification") in _TANH_HEADS) == has_tanh


def test_folders_that_are_no_encoder(encoder, tmp_path):
    with pytest.raises(InputError, match=r"train.encoder: .*nowhere cannot be loaded"):
        load(tmp_path / "nowhere")
    broken = shutil.copytree(encoder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded as a classifier"):
        load(broken)
    partial = shutil.copytree(encoder, tmp_path / "partial")
    tensors = load_file(partial / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(kept, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks \d+ of its weights, such as bert.encoder.layer.1"):
        load(partial)


def test_adapters_without_their_library(encoder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name == "peft":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"train.lora: peft is not installed here; pip install 'scalemine\[lora\]'"):
        load(encoder, lora=2)
