from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalemine.config import WORD_NETWORKS, InputError
from scalemine.store import file_sha256, read_json, write_json
from scalemine.training.kept import OTHERS, kind_of, load_model
from scalemine.training.multilabel.word_model import (
    VOCABULARY,
    WEIGHTS,
    WordModel,
    load_word_network,
    write_word_network,
)
from scalemine.training.multilabel.word_network import NetworkShape, WordNetwork
from scalemine.training.tagging.network import StaticWords

WORDS = ["fire", "water", "rising", "boat", "zcode", "roof"]
LABELS = ["near", "far"]
TEXTS = ["FIRE on the roof", "", "water rising, need a boat 77002", "boat", "🚤 " * 40, "fire fire", "water rising"]


def write(folder: Path, model: str = "text_cnn", **changes) -> WordModel:
    torch.manual_seed(1)
    words = StaticWords(torch.randn(len(WORDS) + 1, 5), frozen=False)
    network = WordNetwork(NetworkShape(model, 5, 6, 2, 0.5, len(LABELS)), words)
    vocabulary = {word: row for row, word in enumerate(WORDS, start=1)}
    info = {
        "labels": LABELS, "model": model, "normaliser": "rescue", "nested": [], "max_length": 20,
        "thresholds": {"near": 0.5, "far": 0.4}, "calibration": {label: [1.0, 0.0] for label in LABELS},
    } | changes  # fmt: skip
    write_word_network(network, vocabulary, info, folder)
    return WordModel(network, vocabulary, info)


@pytest.fixture
def model(tmp_path) -> Path:
    write(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("name", WORD_NETWORKS)
def test_what_is_loaded_gives_what_was_written(tmp_path, name):
    before = write(tmp_path / "run" / "model", name)
    expected = before.predict(TEXTS)
    assert expected.dtype == np.float32 and expected.shape == (len(TEXTS), 2)
    assert kind_of(tmp_path / "run") == "word_network"
    for found in (load_word_network(tmp_path / "run" / "model"), load_model(tmp_path / "run", device="cpu")):
        assert isinstance(found, WordModel)
        assert np.array_equal(found.scores(TEXTS), expected)
        assert (found.labels, found.thresholds) == (LABELS, {"near": 0.5, "far": 0.4})
        wanted = [
            {label: s for label, s in zip(LABELS, row, strict=True) if s >= found.thresholds[label]}
            for row in expected.tolist()
        ]  # noqa: E501
        assert found.classify(TEXTS) == wanted
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == {OTHERS, WEIGHTS, VOCABULARY}


def test_texts_do_not_depend_on_company(model):
    found = load_word_network(model)
    together = found.predict(TEXTS * 30)
    for row, text in enumerate(TEXTS):
        assert np.array_equal(together[row :: len(TEXTS)], np.repeat(found.predict([text]), 30, axis=0))
    assert found.predict([]).shape == (0, 2)
    with pytest.raises(ValueError, match="several texts"):
        found.predict("one text")


def test_unknown_and_cut_words(model, caplog):
    found = load_word_network(model)
    assert np.array_equal(found.predict(["quux flurb"]), found.predict(["blarg snark"]))
    assert not np.array_equal(found.predict(["fire water"]), found.predict(["water fire"]))
    long = " ".join(["fire"] * 20)
    assert not caplog.text
    assert np.array_equal(found.predict([long]), found.predict([f"{long} water boat"]))
    assert "1 texts have more than 20 words" in caplog.text


def test_nested_labels_keep_their_order(tmp_path):
    write(tmp_path, nested=[["near", "far"]])
    scores_NC = load_word_network(tmp_path).predict(TEXTS)
    assert (scores_NC[:, 1] >= scores_NC[:, 0]).all()


def rewrite(folder: Path, **changes) -> None:
    write_json(folder / OTHERS, read_json(folder / OTHERS) | changes)


def rehash(folder: Path) -> None:
    rewrite(folder, sha256={name: file_sha256(folder / name) for name in (WEIGHTS, VOCABULARY)})


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_word_network(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", [WEIGHTS, VOCABULARY, OTHERS])
def test_refuses_files_that_are_missing_or_damaged(model, name):
    whole = (model / name).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:], b"[]", b"null"):
        (model / name).write_bytes(damaged)
        refuse(model, str(model))
    (model / name).unlink()
    refuse(model, "missing|no model here")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "words"}, {"format": 2}, {"labels": []}, {"labels": ["near", "near"]}, {"labels": ["near"]},
        {"labels": 3}, {"thresholds": {"near": 0.5}}, {"thresholds": {"near": "a", "far": 0.5}}, {"normaliser": "no"},
        {"max_length": 0}, {"max_length": "20"}, {"nested": [["near", "other"]]}, {"sha256": {}}, {"shape": {}},
        {"sha256": {WEIGHTS: "0", VOCABULARY: "0", "../../secret": "0"}},
    ],
)  # fmt: skip
def test_refuses_facts_that_do_not_fit(model, changes):
    rewrite(model, **changes)
    refuse(model, str(model))


def test_refuses_weights_that_do_not_fit_the_shape(model, tmp_path):
    shape = read_json(model / OTHERS)["shape"]
    for changes in ({"hidden": 9}, {"hidden": 10**12}, {"model": "cnn_lstm"}, {"kernel": 3}, {"dim": 6}, {"more": 1}):
        rewrite(model, shape=shape | changes)
        refuse(model, "damaged")
    rewrite(model, shape=shape)
    weights = load_file(model / WEIGHTS)
    for name, one in weights.items():
        broken = weights | {name: torch.full_like(one, torch.nan)}
        save_file(broken, model / WEIGHTS)
        rehash(model)
        refuse(model, "not finite")
    save_file(weights, model / WEIGHTS)
    for words in (WORDS[:-1], [*WORDS, "more"], [*WORDS[:-1], WORDS[0]], [*WORDS[:-1], 7], {"fire": 1}):
        (model / VOCABULARY).write_text(json.dumps(words))
        rehash(model)
        refuse(model, "damaged")


def test_a_write_that_was_cut_off_leaves_no_model(model, monkeypatch):
    import scalemine.training.multilabel.word_model as module

    copy = shutil.copytree(model, model.with_name("copy"))

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write(copy)
    refuse(copy, "no model here")
