from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scalemine.config import BaselineConfig, InputError
from scalemine.store import read_json, write_json
from scalemine.training.ensemble import model as module
from scalemine.training.ensemble.model import (
    LabelEnsemble,
    SpanEnsemble,
    load_ensemble,
    voted_tags,
    write_ensemble,
)
from scalemine.training.kept import load_model
from scalemine.training.multilabel.baselines import fit_predict
from scalemine.training.multilabel.text_model import label_file, load_text_model, write_estimator, write_text_model
from scalemine.training.multilabel.word_features import WordFeatures
from scalemine.training.tagging.tagger import TaggedSpan
from training.trained import write_on_embeddings

LABELS = ["fear", "joy"]
WORDS = ["fire", "water", "rising", "boat", "happy", "dance", "late", "bus", "roof", "kids"]
TEXTS = ["fire on the roof", "happy dance", "", "happy fire", "late bus"]


def write_member(folder: Path, name: str, threshold: float, labels: list[str] = LABELS) -> Path:
    """Write a model on words that has learnt a little."""
    rng = np.random.default_rng(len(name))
    texts = [" ".join(rng.choice(WORDS, size=5)) for _ in range(60)]
    targets_NC = np.array([["fire" in text, "happy" in text] for text in texts], np.int8)
    features = WordFeatures.fit(texts, ngrams=(1, 1))
    fit_predict(
        name, BaselineConfig(features="tfidf"), features.transform(texts), targets_NC, np.ones(60), {}, seed=3, jobs=1,
        keep=lambda label, one: write_estimator(one, folder / label_file(label)),
    )  # fmt: skip
    info = {
        "labels": labels, "model": name, "normaliser": "none", "nested": [],
        "thresholds": dict.fromkeys(labels, threshold), "calibration": dict.fromkeys(labels, [1.0, 0.0]),
    }  # fmt: skip
    write_text_model(folder, info, features, {})
    return folder


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("members")
    kinds = {"nb": ("naive_bayes", 0.3), "lr": ("logistic_regression", 0.6), "tree": ("decision_tree", 0.5)}
    return {name: write_member(folder / name, *values) for name, values in kinds.items()}


def info(combine: str = "vote", **changes) -> dict:
    facts = {
        "of": "labels",
        "combine": combine,
        "labels": LABELS,
        "nested": [],
        "thresholds": dict.fromkeys(LABELS, 0.5),
    }
    return facts | changes


@pytest.fixture
def kept(members, tmp_path) -> Path:
    write_ensemble(tmp_path / "run" / "model", info(), members)
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("combine", ["vote", "average"])
def test_a_folder_gives_what_its_members_give_together_wherever_it_is_copied(members, tmp_path, combine):
    write_ensemble(tmp_path / "run" / "model", info(combine), members)
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    shutil.rmtree(tmp_path / "run")
    models = [load_text_model(folder) for folder in members.values()]
    scores_MNC = np.stack([one.scores(TEXTS) for one in models])
    for folder in (tmp_path / "copied", tmp_path / "copied" / "model"):
        ensemble = load_ensemble(folder)
        assert isinstance(ensemble, LabelEnsemble)
        assert (ensemble.labels, ensemble.thresholds) == (LABELS, dict.fromkeys(LABELS, 0.5))
        if combine == "average":
            assert np.array_equal(ensemble.scores(TEXTS), scores_MNC.astype(np.float64).mean(0).astype(np.float32))
        given = [set(one) for one in ensemble.classify(TEXTS)]
        votes = [[set(of_text) for of_text in one.classify(TEXTS)] for one in models]
        if combine == "vote":
            assert given == [
                {label for label in LABELS if sum(label in one for one in of) > 1} for of in zip(*votes, strict=True)
            ]
        assert np.array_equal(ensemble.predict(TEXTS), ensemble.scores(TEXTS))
    assert isinstance(load_model(tmp_path / "copied"), LabelEnsemble)
    assert ensemble.scores([]).shape == (0, 2)
    with pytest.raises(ValueError, match="give \\[text\\]"):
        ensemble.scores("text")


def test_members_on_embeddings_and_on_words_decide_together(members, tmp_path, monkeypatch):
    on_embeddings = write_on_embeddings(tmp_path / "on_embeddings")
    write_ensemble(tmp_path / "model", info("average"), {"words": members["lr"], "encoder": on_embeddings})
    monkeypatch.chdir(tmp_path.parent)
    found = load_model(tmp_path / "model", device="cpu").scores(TEXTS)
    apart = [load_model(folder, device="cpu").scores(TEXTS) for folder in (members["lr"], on_embeddings)]
    np.testing.assert_allclose(found, np.mean(apart, axis=0), rtol=1e-6)
    assert np.abs(apart[0] - apart[1]).max() > 0.01


def test_one_member_alone_is_that_member(members, tmp_path):
    alone = load_text_model(members["lr"])
    write_ensemble(tmp_path / "vote", info(), {"lr": members["lr"]})
    write_ensemble(tmp_path / "mean", info("average", thresholds=alone.thresholds), {"lr": members["lr"]})
    given = alone.classify(TEXTS)
    assert any(given)
    assert [set(one) for one in load_ensemble(tmp_path / "vote").classify(TEXTS)] == [set(one) for one in given]
    assert load_ensemble(tmp_path / "mean").classify(TEXTS) == given


def change(folder: Path, **values) -> None:
    write_json(folder / "model.json", read_json(folder / "model.json") | values)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: remove(folder / "members" / "nb"), "nb/features.json' is missing; copy the whole"),
        (lambda folder: remove(folder / "members" / "nb" / "label-0.skops"), "label-0.skops' is missing"),
        (lambda folder: remove(folder / "members"), "is missing"),
        (lambda folder: flip(folder / "members" / "lr" / "label-1.skops"), "not the file that was written with"),
        (lambda folder: (folder / "members" / "nb" / "more.safetensors").touch(), "no file of this ensemble"),
        (lambda folder: (folder / "members" / "link").symlink_to("/etc"), "link: a link"),
        (lambda folder: (folder / "members" / "nb" / "x").symlink_to("/etc/passwd"), "x: a link"),
        (lambda folder: remove(folder / "model.json"), "no model here|no ensemble here"),
        (lambda folder: (folder / "model.json").write_text("{"), "damaged, no JSON"),
        (lambda folder: change(folder, format=99), "format 99, and this version of scalemine reads 1"),
        (lambda folder: change(folder, combine="sum"), "damaged: expected labels or spans .*got 'sum'"),
        (lambda folder: change(folder, of="spans"), "damaged"),
        (lambda folder: change(folder, members=[]), "members: expected names, each once"),
        (lambda folder: change(folder, members=["../nb", "lr", "tree"]), "members: expected names, each once"),
        (lambda folder: change(folder, members=["/etc"]), "members: expected names, each once"),
        (lambda folder: change(folder, members=["nb", "nb"]), "members: expected names, each once"),
        (lambda folder: change(folder, members=3), "damaged"),
        (lambda folder: change(folder, members=["other"]), "other"),
        (lambda folder: change(folder, sha256={"../../secret": "0"}), "'../../secret' is missing"),
        (lambda folder: change(folder, sha256=[1]), "damaged"),
        (lambda folder: change(folder, thresholds={"fear": 0.5}), "damaged"),
        (lambda folder: change(folder, thresholds={"fear": 0.5, "joy": "high"}), "thresholds: expected numbers"),
        (lambda folder: change(folder, labels=["joy", "fear"]), "gives the labels fear, joy; expected .* joy, fear"),
        (lambda folder: change(folder, labels=["fear"]), "gives the labels fear, joy; expected the labels fear"),
        (lambda folder: change(folder, nested=[["fear", "anger"]]), "damaged"),
    ],
)  # fmt: skip
def test_damage_is_said_in_one_line(kept, damage, said):
    damage(kept)
    with pytest.raises(InputError) as error:
        load_ensemble(kept)
    assert re.search(said, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_member_that_does_not_fit_is_refused_though_its_hash_is_right(members, tmp_path):
    other = write_member(tmp_path / "other", "naive_bayes", 0.5, ["fear", "anger"])
    write_ensemble(tmp_path / "mixed", info(), {"lr": members["lr"], "other": other})
    with pytest.raises(
        InputError, match=r"other: gives the labels fear, anger; expected the labels fear, joy, as of all"
    ):
        load_ensemble(tmp_path / "mixed")
    write_ensemble(tmp_path / "one", info(), {"lr": members["lr"]})
    write_ensemble(tmp_path / "two", info(), {"one": tmp_path / "one"})
    with pytest.raises(InputError, match=r"one: an ensemble itself; name its members instead"):
        load_ensemble(tmp_path / "two")


def test_written_again_it_is_whole_or_not_there(kept, members, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(module.shutil, "copytree", fail)
    with pytest.raises(OSError, match="No space"):
        write_ensemble(kept, info(), members)
    with pytest.raises(InputError, match="no model here"):
        load_ensemble(kept)


class Fixed:
    """A tagger that always gives the same spans."""

    def __init__(self, *spans: tuple[int, int, str, float]) -> None:
        self.spans = spans

    def tag(self, texts):
        return [[TaggedSpan(a, b, type_, text[a:b], p) for a, b, type_, p in self.spans] for text in texts]


def test_taggers_vote_over_exact_spans():
    members = {
        "a": Fixed((0, 4, "fire", 0.9), (9, 13, "flood", 0.6)),
        "b": Fixed((0, 4, "fire", 0.6)),
        "c": Fixed((0, 4, "flood", 0.9), (9, 13, "flood", 0.3)),
    }
    ensemble = SpanEnsemble({"types": ["fire", "flood"]}, members)  # type: ignore[arg-type]
    [found] = ensemble.tag(["fire and rain"])
    assert [(one.start, one.end, one.type, one.text) for one in found] == [
        (0, 4, "fire", "fire"),
        (9, 13, "flood", "rain"),
    ]
    assert [one.confidence for one in found] == pytest.approx([0.5, 0.3])
    assert ensemble.tag([]) == []


def test_tags_of_what_is_voted():
    one, two, three = ["B-a", "I-a", "O", "I-b"], ["B-a", "I-a", "O", "B-b"], ["B-a", "O", "O", "O"]
    assert voted_tags([[one], [two], [three]]) == [["B-a", "I-a", "O", "B-b"]]
    assert voted_tags([[one], [three]]) == [["O", "O", "O", "O"]]  # half is no majority
    assert json.dumps(voted_tags([[], []])) == "[]"
