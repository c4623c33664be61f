from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scalemine.config import InputError
from scalemine.store import write_json
from scalemine.training.kept import kind_of, load_model
from scalemine.training.multilabel.word_model import WordModel, write_word_network
from scalemine.training.multilabel.word_network import NetworkShape, WordNetwork
from scalemine.training.tagging.network import StaticWords


def test_runs_of_folds_are_named_where_their_common_name_is_given(tmp_path):
    for fold in range(3):
        (tmp_path / f"run-fold{fold}" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match="no model here; .* there are run-fold0 to run-fold2"):
        kind_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "facts", "expected"),
    [
        ("config.json", {"scalemine": "tagger"}, "tagger"),
        ("config.json", {"scalemine": {"kind": "classifier"}}, "classifier"),
        ("model.json", {"kind": "words"}, "words"),
        ("model.json", {"kind": "word_network"}, "word_network"),
        ("model.json", [], "damaged"),
    ],
)
def test_a_folder_says_what_it_holds(tmp_path, file, facts, expected):
    (tmp_path / "run" / "model").mkdir(parents=True)
    write_json(tmp_path / "run" / "model" / file, facts)
    assert kind_of(tmp_path / "run") == kind_of(tmp_path / "run" / "model") == expected
    with pytest.raises(InputError, match=str(tmp_path)):
        load_model(tmp_path / "run")  # it says so, and no more


def test_refuses_what_is_no_model(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no model here"):
            load_model(folder)


def write_network(folder: Path) -> None:
    network = WordNetwork(NetworkShape("cnn_lstm", 3, 4, 2, 0.5, 1), StaticWords(torch.ones(2, 3), frozen=True))
    info = {"labels": ["fear"], "normaliser": "none", "nested": [], "max_length": 9, "thresholds": {"fear": 0.5}}
    write_word_network(network, {"fire": 1}, info, folder)


def test_a_network_is_loaded_by_its_folder(tmp_path):
    write_network(tmp_path / "model")
    model = load_model(tmp_path, device="cpu")
    assert isinstance(model, WordModel)
    assert model.scores(["fire", ""]).shape == (2, 1)
