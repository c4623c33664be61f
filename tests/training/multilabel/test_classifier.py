from __future__ import annotations

import builtins
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import nn

from scalemine.config import InputError, RunError
from scalemine.models import quieten_libraries
from scalemine.store import FILE_MODE
from scalemine.text import NORMALISERS, normaliser
from scalemine.training.multilabel import classifier as module
from scalemine.training.multilabel.classifier import (
    Classifier,
    card,
    export_onnx,
    final_linear,
    fold,
    load_classifier,
    write_classifier,
)
from training.tiny import DIM, POSITIONS, VOCABULARY, write_bert

LABELS = ["pre1geo10", "pre1geo50", "fear"]
MAX_LENGTH = 24
TEXTS = [
    "bus crashed into a shop, two hurt",
    "",
    "RT @ana: FIRE near the old bridge!! https://t.co/abc #fire",
    " \n\t ",
    "👩🏽‍🚒 at the 🔥🔥 in São Paulo 🇧🇷 — 火事だ",
    "!",
    ("fire near the old bridge " * 400)[:10_000],
    "two hurt",
]
# Tiny versions of models whose last layers lie in different places.
SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DISTIL_SIZES = {"dim": DIM, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
MODELS = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "MPNet": SIZES,
    "Electra": SIZES,
    "DistilBert": DISTIL_SIZES,
    "DebertaV2": SIZES,
    "ModernBert": SIZES
    | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}
LAST = {
    "Bert": "classifier", "Roberta": "classifier.out_proj", "XLMRoberta": "classifier.out_proj",
    "MPNet": "classifier.out_proj", "Electra": "classifier.out_proj", "DistilBert": "classifier",
    "DebertaV2": "classifier", "ModernBert": "classifier",
}  # fmt: skip


def make_model(kind="Bert", labels=LABELS, seed=0, **more):
    """Return an untrained classifier whose scores vary with the text."""
    quieten_libraries()
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    values = {"vocab_size": len(VOCABULARY), "max_position_embeddings": POSITIONS + 1, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(
        **(values | {"initializer_range": 0.2} | MODELS[kind] | names | more)
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    parent, name = final_linear(model)
    with torch.no_grad():
        getattr(parent, name).weight.normal_(0, 0.5)
        getattr(parent, name).bias.normal_(0, 0.5)
    return model


def make_info(labels=LABELS, **more):
    per_label = {"num_positive": 77, "num_known": 900, "prior": 0.125, "roc_auc": 0.87654, "average_precision": 0.5}
    scores = {
        "num_rows": 1000, "roc_auc": {"macro": 0.71234, "micro": 0.8}, "average_precision": {"macro": 0.4},
        "macro_f1": 0.5, "micro_f1": 0.625, "jaccard": 0.55, "ece": 0.02,
        "prior": {"roc_auc": {"macro": 0.5, "micro": 0.66}, "micro_f1": 0.25},
        "per_label": {label: per_label | {"f1": 0.75} for label in labels[:-1]} | {labels[-1]: {"roc_auc": None}},
        "verdict": {"beats_prior": True, "text": "better than the prior: macro ROC-AUC 0.712 (95 % 0.69 to 0.73)"},
    }  # fmt: skip
    info = {
        "version": "9.8.7", "thresholds": {label: 0.3 + 0.2 * (index % 2) for index, label in enumerate(labels)},
        "calibration": {label: [1.5, -0.25] for label in labels}, "normaliser": "none", "max_length": MAX_LENGTH,
        "nested": [labels[:2]], "languages": {"es": 10, "en": 4_321},
        "training": {"file": "sets/train.parquet", "tweets": 1_234, "sha256": "f" * 64, "seed": 42},
        "metrics": {"dev": scores, "test": {"roc_auc": {"macro": 0.6}, "macro_f1": None}},
    }  # fmt: skip
    return info | more


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("encoder"))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory) -> Path:
    """A classifier's folder, which tests may copy, not touch."""
    folder = tmp_path_factory.mktemp("written") / "model"
    write_classifier(make_model(), tokenizer, make_info(), folder)
    return folder


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "copied")


@pytest.fixture(scope="module")
def loaded(written) -> Classifier:
    return load_classifier(written, device="cpu")


def refused(folder, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_classifier(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def slow_scores(model, tokenizer, texts, max_length=MAX_LENGTH) -> np.ndarray:
    """Return the scores text by text, with nothing filled up."""
    scores = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            scores.append(torch.sigmoid(model(input_ids=ids).logits[0]).numpy())
    return np.array(scores)


# The last layer


@pytest.mark.parametrize("kind", MODELS)
def test_the_last_layer_is_found(kind):
    model = make_model(kind)
    parent, name = final_linear(model)
    assert getattr(parent, name) is model.get_submodule(LAST[kind])
    setattr(parent, name, nn.Identity())
    ids = torch.tensor([[2, 5, 6, 3]])
    features_BD = model(input_ids=ids).logits
    assert features_BD.shape == (1, DIM)  # nothing that mattered came behind it
    with pytest.raises(InputError, match="no linear layer with a bias and 3 outputs"):
        final_linear(model)


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert"])
def test_the_last_layer_is_the_last_where_others_have_its_size(kind):
    model = make_model(kind, labels=[f"label {index}" for index in range(DIM)])
    parent, name = final_linear(model)
    assert getattr(parent, name) is model.get_submodule(LAST[kind])


def test_a_last_layer_without_a_bias_is_refused():
    model = make_model()
    model.classifier = nn.Linear(DIM, len(LABELS), bias=False)
    with pytest.raises(InputError, match="BertForSequenceClassification: no linear layer with a bias"):
        final_linear(model)


@settings(deadline=None, max_examples=50)
@given(
    slopes=st.lists(st.floats(0.05, 20), min_size=4, max_size=4),
    offsets=st.lists(st.floats(-10, 10), min_size=4, max_size=4),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_calibration_is_folded_into_the_layer(slopes, offsets, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(8, 4, bias=bias)
    before = [parameter.detach().clone() for parameter in linear.parameters()]
    x_BD = torch.randn(16, 8)
    folded = fold(linear, slopes, offsets)
    expected = expit(np.array(slopes) * linear(x_BD).detach().double().numpy() + np.array(offsets))
    assert torch.sigmoid(folded(x_BD)).detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(before, linear.parameters(), strict=True))


def test_the_identity_folds_to_the_same_layer():
    linear = nn.Linear(8, 4)
    folded = fold(linear, np.ones(4), np.zeros(4))
    assert torch.equal(folded.weight, linear.weight)
    assert torch.equal(folded.bias, linear.bias)
    assert folded.weight is not linear.weight


@pytest.mark.parametrize(
    ("slopes", "offsets"),
    [
        ([1, 1], [0, 0, 0]),
        ([1, 1, 1], 0),
        ([1, 1, 0], [0, 0, 0]),
        ([1, 1, np.nan], [0, 0, 0]),
        ([1] * 3, [0, 0, np.inf]),
    ],
)
def test_wrong_calibrations_are_refused(slopes, offsets):
    with pytest.raises(ValueError, match="expected"):
        fold(nn.Linear(2, 3), slopes, offsets)


# Written and loaded


@pytest.mark.parametrize("kind", MODELS)
def test_a_pipeline_gives_the_same_scores(kind, tokenizer, tmp_path):
    model = make_model(kind)
    write_classifier(model, tokenizer, make_info(), tmp_path)
    classifier = load_classifier(tmp_path, device="cpu")
    scores_NC = classifier.scores(TEXTS)
    assert scores_NC.dtype == np.float32
    assert scores_NC == pytest.approx(slow_scores(model, tokenizer, TEXTS), abs=1e-5)
    assert scores_NC.std(axis=0).min() > 1e-3  # the text matters
    pipe = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    for batch_size in (1, 3, len(TEXTS)):
        given = pipe(TEXTS, truncation=True, batch_size=batch_size)
        for of_text, expected in zip(given, scores_NC, strict=True):
            assert {one["label"]: one["score"] for one in of_text} == pytest.approx(
                dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5
            )


def test_many_labels_keep_their_order(tokenizer, tmp_path):
    labels = [f"label {index}" for index in range(40)]  # as text, "10" comes before "2"
    write_classifier(make_model(labels=labels), tokenizer, make_info(labels), tmp_path)
    classifier = load_classifier(tmp_path, device="cpu")
    assert classifier.labels == list(classifier.thresholds) == labels
    [expected] = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")(TEXTS[:1])
    got = dict(zip(labels, classifier.scores(TEXTS[:1])[0].tolist(), strict=True))
    assert got == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-5)


def test_one_label_is_enough(tokenizer, tmp_path):
    write_classifier(make_model(labels=["event"]), tokenizer, make_info(["event"], nested=[]), tmp_path)
    scores_NC = load_classifier(tmp_path, device="cpu").scores(TEXTS)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    assert [one["score"] for [one] in pipe(TEXTS, truncation=True)] == pytest.approx(scores_NC[:, 0].tolist(), abs=1e-5)


def test_a_folded_layer_gives_calibrated_scores(tokenizer, tmp_path):
    model = make_model("Roberta")
    plain_NC = slow_scores(model, tokenizer, TEXTS).astype(np.float64)
    slope_C, offset_C = np.array([0.5, 2.0, 1.0]), np.array([1.0, -1.0, 0.0])
    parent, name = final_linear(model)
    setattr(parent, name, fold(getattr(parent, name), slope_C, offset_C))
    write_classifier(model, tokenizer, make_info(), tmp_path)
    expected = expit(slope_C * np.log(plain_NC / (1 - plain_NC)) + offset_C)
    assert load_classifier(tmp_path, device="cpu").scores(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_a_second_writing_changes_no_bit(written, loaded, tmp_path):
    loaded.scores(TEXTS)  # which sets how the tokeniser cuts and fills up
    loaded.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(written)
    again = Classifier.from_pretrained(tmp_path / "again", device="cpu")
    assert np.array_equal(again.scores(TEXTS), loaded.scores(TEXTS))
    assert again.info == loaded.info == make_info() | {"format": module.FORMAT, "kind": "classifier"}


def test_a_classifier_can_be_saved_over_itself(written, copied):
    (copied / "notes.md").write_text("mine", encoding="utf-8")
    classifier = load_classifier(copied, device="cpu")
    before = classifier.scores(TEXTS)
    classifier.save_pretrained(copied)
    assert files(copied) == files(written) | {"notes.md": b"mine"}
    assert np.array_equal(load_classifier(copied, device="cpu").scores(TEXTS), before)
    assert np.array_equal(classifier.scores(TEXTS), before)


def test_what_a_folder_holds(written):
    names = set(files(written))
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "metrics.json"
    }  # fmt: skip
    config = json.loads((written / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1], "2": LABELS[2]}
    assert config["label2id"] == {LABELS[0]: 0, LABELS[1]: 1, LABELS[2]: 2}
    assert config["scalemine"] == make_info() | {"format": 1, "kind": "classifier"}
    assert json.loads((written / "metrics.json").read_text(encoding="utf-8")) == make_info()["metrics"]
    reading = json.loads((written / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert reading["model_max_length"] == MAX_LENGTH
    assert "local_files_only" not in reading
    whole = json.loads((written / "tokenizer.json").read_text(encoding="utf-8"))
    assert whole["truncation"] is whole["padding"] is None
    for path in written.iterdir():
        assert path.stat().st_mode & 0o777 == FILE_MODE, path


def test_writing_leaves_the_model_as_it_was(tokenizer, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "plain")  # which puts the class into its configuration
    before, length, info = model.config.to_json_string(), tokenizer.model_max_length, make_info()
    write_classifier(model, tokenizer, info, tmp_path / "model")
    assert model.config.to_json_string() == before
    assert tokenizer.model_max_length == length
    assert info == make_info()


def test_a_run_that_was_cut_short_leaves_no_classifier(tokenizer, tmp_path, monkeypatch, copied):
    """Whichever file is not written: without config.json there is none, also where one was before."""
    whole = module.write_whole

    def fail(path, last):
        if path.name == last:
            raise OSError(28, "No space left on device")
        return whole(path)

    for last in ("README.md", "metrics.json", "model.safetensors", "tokenizer.json"):
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_whole", partial(fail, last=last))
            with pytest.raises(OSError, match="No space"):
                write_classifier(make_model(), tokenizer, make_info(), copied)
        assert "no classifier here" in refused(copied)
        assert not [path for path in copied.iterdir() if path.name.startswith(".")]
    write_classifier(make_model(), tokenizer, make_info(), copied)
    assert load_classifier(copied).labels == LABELS


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds": {"pre1geo10": 0.5}},
        {"thresholds": dict.fromkeys([*LABELS, "other"], 0.5)},
        {"thresholds": dict.fromkeys(LABELS, "0.5")},
        {"normaliser": "unheard-of"},
        {"max_length": 0},
    ],
)
def test_what_does_not_fit_is_not_written(tokenizer, tmp_path, change):
    with pytest.raises(ValueError, match="thresholds|normaliser|max_length"):
        write_classifier(make_model(), tokenizer, make_info(**change), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rounded_weights_are_not_written(written, tmp_path):
    with pytest.raises(ValueError, match="expected weights in float32, got torch.bfloat16"):
        load_classifier(written, device="cpu", precision="bfloat16").save_pretrained(tmp_path)


# Loading


def test_the_folder_of_a_run_will_do(written, loaded, tmp_path):
    shutil.copytree(written, tmp_path / "run" / "model")
    assert np.array_equal(load_classifier(str(tmp_path / "run"), device="cpu").scores(TEXTS), loaded.scores(TEXTS))


def test_loads_on_a_device_by_name(written, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for load in (load_classifier, Classifier.from_pretrained):
        assert load(written).model.device.type == "cpu"
        assert load(written, device="meta").model.device.type == "meta"
        with pytest.raises(InputError, match="^device: cuda:1 wanted"):
            load(written, device="cuda:1")
    classifier = load_classifier(written)
    assert not classifier.model.training
    assert classifier.to("meta") is classifier
    assert classifier.model.device.type == "meta"


def test_precision(written, loaded):
    for load in (load_classifier, Classifier.from_pretrained):
        rounded = load(written, device="cpu", precision="bfloat16")
        assert rounded.model.dtype == torch.bfloat16
    scores_NC = rounded.scores(TEXTS)
    assert scores_NC.dtype == np.float32
    assert scores_NC == pytest.approx(loaded.scores(TEXTS), abs=0.1)
    assert not np.array_equal(scores_NC, loaded.scores(TEXTS))
    with pytest.raises(InputError, match="^precision: expected one of float32, .*, got 'int8'"):
        load_classifier(written, precision="int8")


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere", "~/nowhere"])
def test_no_folder(name):
    assert "no such folder" in refused(name)


def test_folders_that_hold_no_classifier(tmp_path):
    assert "no classifier here (expected config.json" in refused(tmp_path)
    make_model().save_pretrained(tmp_path)
    assert "is not that of a classifier" in refused(tmp_path)
    for content in ("{}", "[]", '"x"', '{"scalemine": "tagger"}', '{"scalemine": {"kind": "tagger"}}'):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        assert "is not that of a classifier" in refused(tmp_path)
    for content in (b"", b'{"scalemine": ', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        assert "config.json is not JSON" in refused(tmp_path)


def test_a_folder_of_another_format_is_refused(copied):
    edit(copied / "config.json", lambda config: config["scalemine"].update(format=99))
    assert "has format 99, this version of scalemine reads 1" in refused(copied)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("damage", [cut, spoil, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_files_that_are_damaged_are_refused(copied, name, damage):
    damage(copied / name)
    refused(copied)


@pytest.mark.parametrize("damage", [cut, spoil])
def test_a_damaged_tokeniser_configuration_is_refused(copied, damage):
    damage(copied / "tokenizer_config.json")
    assert "the tokeniser of" in refused(copied)


def test_a_tokeniser_that_the_library_cannot_read_is_refused(copied):
    edit(copied / "tokenizer.json", lambda content: content["model"].update(type="Unheard"))
    assert "the tokeniser of" in refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("id2label"),
        lambda config: config.update(id2label={"0": "a", "2": "b"}),
        lambda config: config.update(id2label=["a", "b"]),
        lambda config: config["scalemine"].pop("thresholds"),
        lambda config: config["scalemine"].update(thresholds=3),
        lambda config: config["scalemine"].update(thresholds=dict.fromkeys(LABELS)),
        lambda config: config["scalemine"]["thresholds"].pop("fear"),
        lambda config: config["scalemine"].pop("max_length"),
        lambda config: config["scalemine"].update(max_length="24"),
        lambda config: config["scalemine"].update(normaliser="unheard-of"),
        lambda config: config["scalemine"].update(normaliser=["none"]),
    ],
)
def test_a_configuration_that_is_damaged_is_refused(copied, change):
    edit(copied / "config.json", change)
    assert "config.json is damaged" in refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(model_type="unheard-of"),
        lambda config: config.update(hidden_size="many"),
        lambda config: config.update(hidden_size=64),
    ],
)
def test_a_configuration_of_another_model_is_refused(copied, change):
    edit(copied / "config.json", change)
    refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("classifier.bias"),
        lambda weights: weights.update(other=torch.zeros(1)),
        lambda weights: weights.update({"classifier.bias": torch.zeros(len(LABELS) + 1)}),
    ],
)
def test_weights_of_another_classifier_are_refused(copied, change):
    weights = load_file(copied / "model.safetensors")
    change(weights)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    refused(copied)


def test_pickles_and_code_are_refused(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "only safetensors are read" in refused(copied)
    (copied / "pytorch_model.bin").rename(copied / "model.safetensors")
    (copied / "code.py").write_text("raise SystemExit", encoding="utf-8")
    names = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    edit(copied / "config.json", lambda config: config.update(auto_map=names))
    assert load_classifier(copied, device="cpu").labels == LABELS  # BERT is known: its own code is used


# Scores


def test_scores_do_not_depend_on_what_is_beside(loaded, monkeypatch):
    alone = np.concatenate([loaded.scores([text]) for text in TEXTS])
    for budget in (1, 50, 10_000):
        monkeypatch.setattr(module, "BATCH_TOKENS", {"cpu": budget})
        for order in (np.arange(len(TEXTS)), np.arange(len(TEXTS))[::-1]):
            assert loaded.scores([TEXTS[i] for i in order]) == pytest.approx(alone[order], abs=1e-5)


def test_copies_have_the_same_bits_however_many(loaded):
    for text in TEXTS:
        alone = loaded.scores([text])
        assert all(np.array_equal(loaded.scores([text] * number), alone.repeat(number, 0)) for number in (9, 17, 33))


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(max_size=40) | st.sampled_from(TEXTS), max_size=4))
def test_any_text_has_scores(loaded, texts):
    scores_NC = loaded.scores(texts)
    assert scores_NC.shape == (len(texts), len(LABELS))
    assert ((scores_NC >= 0) & (scores_NC <= 1)).all()
    assert loaded.classify(texts) == [
        {label: float(score) for label, score in zip(LABELS, row, strict=True) if score >= loaded.thresholds[label]}
        for row in scores_NC
    ]


def test_thresholds_decide(loaded):
    [row] = loaded.scores(TEXTS[:1]).tolist()
    for label, score in zip(LABELS, row, strict=True):
        for threshold, expected in ((score, True), (np.nextafter(score, 1), False), (0.0, True), (1.0, False)):
            info = loaded.info | {"thresholds": dict.fromkeys(LABELS, 2.0) | {label: threshold}}
            [found] = Classifier(loaded.model, loaded.tokenizer, info).classify(TEXTS[:1])
            assert found == ({label: score} if expected else {})


@pytest.mark.parametrize("name", sorted(NORMALISERS))
def test_texts_are_normalised_first(loaded, name):
    classifier = Classifier(loaded.model, loaded.tokenizer, loaded.info | {"normaliser": name})
    rewritten = [normaliser(name)(text) for text in TEXTS]
    assert np.array_equal(classifier.scores(TEXTS), loaded.scores(rewritten))
    assert (rewritten == TEXTS) == (name == "none")


def test_what_is_not_read_is_said(loaded, caplog):
    room = MAX_LENGTH - 2
    with caplog.at_level("WARNING", logger="scalemine"):
        fits = loaded.scores(["short", "two " * room])
        assert not caplog.messages
        over = loaded.scores(["short", "two " * room + "fire", "two " * 5_000])
    assert caplog.messages == ["2 texts are longer than the classifier reads (24 tokens), and were cut"]
    assert over == pytest.approx(fits[[0, 1, 1]], abs=1e-6)


@pytest.mark.parametrize("num_texts", [1, 2, 3, 100])
def test_texts_are_tokenised_some_at_a_time(loaded, caplog, monkeypatch, num_texts):
    expected, sizes = loaded.scores(TEXTS), []
    caplog.clear()
    tokens = Classifier._tokens

    def count(classifier, texts):
        sizes.append(len(texts))
        return tokens(classifier, texts)

    monkeypatch.setattr(Classifier, "_tokens", count)
    monkeypatch.setattr(module, "_TOKENISED_TEXTS", num_texts)
    texts = [*TEXTS, TEXTS[6]]
    with caplog.at_level("WARNING", logger="scalemine"):
        assert loaded.scores(texts) == pytest.approx(expected[[*range(len(TEXTS)), 6]], abs=1e-6)
    assert caplog.messages == ["3 texts are longer than the classifier reads (24 tokens), and were cut"]
    assert sum(sizes) == len(texts)
    assert max(sizes) == min(num_texts, len(texts))


def test_one_text_is_no_list_of_texts(loaded):
    for call in (loaded.scores, loaded.classify):
        with pytest.raises(ValueError, match="give \\[text\\]"):
            call("a bus crashed")


# The card


def test_the_card_says_what_it_is_and_how_good(written):
    text = (written / "README.md").read_text(encoding="utf-8")
    assert text == card(make_info(), LABELS)
    before, front, body = text.split("---\n", 2)
    assert before == ""
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["scalemine", "multi-label-classification"],
    }
    for fact in ("3 labels", "pre1geo10, pre1geo50, fear", "scalemine 9.8.7.", "file: sets/train.parquet"):
        assert fact in body
    for fact in ("tweets: 1234", "f" * 64, "seed: 42", "truncation=True", "24 tokens", "en 4321, es 10"):
        assert fact in body
    assert "| measure | dev | test |\n|---|---|---|\n| macro ROC-AUC | 0.7123 (0.5000) | 0.6000 |" in body
    assert "| micro ROC-AUC | 0.8000 (0.6600) | – |" in body
    assert "| micro F1 | 0.6250 (0.2500) | – |" in body
    assert "dev: better than the prior: macro ROC-AUC 0.712" in body
    assert "| pre1geo50 | 0.5000 | 77 | 900 | 0.1250 | 0.8765 | 0.5000 | 0.7500 |" in body
    assert "| fear | 0.3000 | – | – | – | – | – | – |" in body
    assert "Nested, each within the next, and so are their probabilities: pre1geo10, pre1geo50." in body
    assert "**" not in body


def test_the_card_warns_of_a_normaliser():
    text = card(make_info(normaliser="bertweet"), LABELS)
    assert "**Each text must first go through scalemine's normaliser `bertweet`" in text


def test_the_card_says_whether_scores_are_calibrated():
    assert "probabilities, already calibrated;" in card(make_info(), LABELS)
    for calibration in ({}, {label: [1.0, 0.0] for label in LABELS}):
        assert "probabilities, not calibrated;" in card(make_info(calibration=calibration), LABELS)


def test_a_card_of_little_knowledge():
    info = make_info(metrics={}, training={}, languages={}, nested=[])
    text = card({key: info[key] for key in ("thresholds", "normaliser", "max_length")}, LABELS)
    assert "## Metrics" not in text
    assert "languages" not in text
    label = {"thresholds": {"a|b": 0.5}, "normaliser": "none", "max_length": 8}
    assert "| a\\|b | 0.5000 |" in card(label, ["a|b"])


def test_the_card_is_one_that_the_hub_reads(written):
    found = huggingface_hub.ModelCard.load(written / "README.md")
    assert found.data.library_name == "transformers"
    assert found.data.pipeline_tag == "text-classification"


@pytest.mark.parametrize("name", ["none", "violence"])
def test_the_code_in_the_card_runs(tokenizer, tmp_path, name):
    write_classifier(make_model(), tokenizer, make_info(normaliser=name), tmp_path)
    parts = (tmp_path / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    assert len(parts) == 2
    names: dict[str, object] = {}
    for part in parts:
        exec(part.split("```")[0].replace("this folder or its hub id", str(tmp_path)), names)
    assert isinstance(names["classifier"], Classifier)
    [expected] = names["classifier"].scores(names["texts"]).tolist()
    [scores] = names["scores"]
    got = {one["label"]: one["score"] for one in scores}
    assert got == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)


# The hub


class Hub:
    """Stands in for the hub: keeps what is pushed, and gives of it what is asked for."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.asked = root, []
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self.create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self.upload)
        monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", self.download)
        monkeypatch.setattr(module, "snapshot_download", self.snapshot)

    def create(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.asked.append(("create", repo_id, private))
        return SimpleNamespace(repo_id=repo_id)

    def upload(self, *, repo_id, folder_path, **options):
        self.asked.append(("upload", repo_id, options["commit_message"]))
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://hub/{repo_id}"

    def download(self, *, repo_id, filename, **_):
        if not (self.root / repo_id / filename).exists():
            raise LocalEntryNotFoundError("cannot be found\nand more lines")
        return str(self.root / repo_id / filename)

    def snapshot(self, repo_id, *, allow_patterns, **options):
        self.asked.append(("snapshot", repo_id, options))
        got = self.root / "cache" / repo_id
        for name in filter_repo_objects(sorted(files(self.root / repo_id)), allow_patterns=allow_patterns):
            (got / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / repo_id / name, got / name)
        return str(got)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_pushed_to_the_hub_and_got_from_it(hub, loaded, written):
    url = loaded.push_to_hub("someone/classifier", private=True, commit_message="better")
    assert url == "https://hub/someone/classifier"
    assert hub.asked == [("create", "someone/classifier", True), ("upload", "someone/classifier", "better")]
    pushed = hub.root / "someone" / "classifier"
    assert files(pushed) == files(written)
    # Not one file that could be more than data is asked for.
    (pushed / "pytorch_model.bin").write_bytes(b"a pickle")
    (pushed / "code.py").write_text("raise SystemExit", encoding="utf-8")
    for load in (load_classifier, Classifier.from_pretrained):
        hub.asked.clear()
        got = load("someone/classifier", device="cpu", precision="float32")
        assert [asked[:2] for asked in hub.asked] == [("snapshot", "someone/classifier")]
        assert np.array_equal(got.scores(TEXTS), loaded.scores(TEXTS))
    assert files(hub.root / "cache" / "someone" / "classifier") == files(written)


def test_the_hub_is_asked_as_the_caller_says(hub, loaded):
    loaded.push_to_hub("someone/classifier")
    Classifier.from_pretrained("someone/classifier", revision="abc", token="t", cache_dir="/c", local_files_only=True)
    [(_, _, options)] = [asked for asked in hub.asked if asked[0] == "snapshot"]
    expected = {"revision": "abc", "token": "t", "cache_dir": "/c", "local_files_only": True, "force_download": False}
    assert options == expected


@pytest.mark.parametrize("name", ["someone/nothing", "not a name"])
def test_what_the_hub_does_not_have(hub, name):
    assert "the hub does not give it" in refused(name)


# ONNX


def onnx_scores(path: Path, classifier: Classifier, texts) -> np.ndarray:
    """Return the probabilities that a file gives for texts, filled up to the longest."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    read = classifier.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="np")
    inputs = {one.name for one in session.get_inputs()}
    assert inputs == set(read)
    assert {tuple(one.shape) for one in session.get_inputs()} == {("batch", "length")}
    return expit(session.run(["logits"], dict(read))[0])


def check_onnx(folder: Path, to: Path) -> None:
    export_onnx(folder, to)
    assert [path.name for path in to.parent.iterdir()] == [to.name]  # one file, and nothing left over
    assert to.stat().st_mode & 0o777 == FILE_MODE
    classifier = load_classifier(folder, device="cpu")
    for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[5:], TEXTS):
        assert onnx_scores(to, classifier, texts) == pytest.approx(classifier.scores(texts), abs=1e-4)


def test_exported_to_onnx(tokenizer, tmp_path, caplog):
    pytest.importorskip("onnxscript")
    write_classifier(make_model(num_hidden_layers=1), tokenizer, make_info(), tmp_path / "model")
    check_onnx(tmp_path / "model", tmp_path / "onnx" / "model.onnx")
    said = [record for record in caplog.records if record.name.startswith("scalemine")]
    assert len(said) == 2  # of the texts that are scored here, not of those of the export


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(MODELS) - {"Bert"}))
def test_all_kinds_are_exported_to_onnx(kind, tokenizer, tmp_path):
    reading = tokenizer
    if kind not in ("Electra", "DebertaV2"):  # the others have no types of tokens
        write_bert(tmp_path / "reading")
        reading = transformers.AutoTokenizer.from_pretrained(
            tmp_path / "reading", model_input_names=["input_ids", "attention_mask"]
        )
    write_classifier(make_model(kind), reading, make_info(), tmp_path / "model")
    check_onnx(tmp_path / "model", tmp_path / "onnx" / "some.onnx")


def fail_export(*_, **__):
    raise RuntimeError("this operator is not known\nand much more")


def test_a_model_that_cannot_be_exported_leaves_no_file(written, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(torch.onnx, "export", fail_export)
    with pytest.raises(InputError, match="cannot be exported to ONNX: this operator is not known$"):
        export_onnx(written, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("difference", [2e-4, np.nan])
def test_a_file_that_computes_otherwise_is_not_kept(written, tmp_path, monkeypatch, difference):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(module, "_write_onnx", lambda model, batch, path: path.write_bytes(b"onnx"))
    monkeypatch.setattr(module, "_onnx_difference", lambda model, path, batches: difference)
    with pytest.raises(RunError, match="its logits differ by"):
        export_onnx(written, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_difference_is_the_largest_of_all_batches(loaded, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    batches = [module._onnx_batch(loaded, texts) for texts in (TEXTS[:1], TEXTS[:3])]
    added = iter([0.0, 0.25])

    class Session:
        def __init__(self, path, providers):
            assert providers == ["CPUExecutionProvider"]

        def run(self, names, inputs):
            with torch.inference_mode():
                logits = loaded.model(**{name: torch.from_numpy(one) for name, one in inputs.items()}).logits.numpy()
            logits[-1, -1] += next(added)
            return [logits]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert module._onnx_difference(loaded.model, Path("x"), batches) == pytest.approx(0.25)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(written, tmp_path, monkeypatch, package):
    def missing(name):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return builtins

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"{package} is not installed; pip install 'scalemine\[onnx\]'"):
        export_onnx(written, tmp_path / "model.onnx")


def test_the_name_of_an_onnx_file_ends_so(written, tmp_path):
    with pytest.raises(InputError, match="ends in .onnx"):
        export_onnx(written, tmp_path)
