from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scalemine.config import Config, InputError, TrainConfig
from scalemine.training.family import (
    DEV,
    HELD_OUT,
    Data,
    chooser,
    encoder_name,
    find_files,
    fit_facts,
    report_epoch,
    run_label,
    run_settings,
)
from scalemine.training.loop import Fit, Progress
from scalemine.training.runs import family_of
from scalemine.training.splits import Split
from scalemine.training.tagging.trainer import TaggerFamily


def configured(workdir: Path | str = "work", *, encoder=None, seed=42, **train) -> Config:
    return Config.model_validate({"workdir": str(workdir), "seed": seed, "train": train, "encoder": encoder or {}})


def split(fold: int | None, num_train: int = 3) -> Split:
    return Split(fold, np.arange(num_train), np.arange(0), np.arange(0))


# Files


@pytest.fixture
def workdir(tmp_path) -> Path:
    sets = tmp_path / "work" / "sets"
    sets.mkdir(parents=True)
    for name in ("train_random", "train_1s", "test_no", "test_2s", "test_1s", "negatives_1s"):
        (sets / f"{name}.parquet").touch()
    return tmp_path / "work"


def test_the_sets_of_a_workdir(workdir):
    found = find_files(configured(workdir, train_set="1s"))
    assert found.train == str(workdir / "sets" / "train_1s.parquet")
    assert (found.train_key, found.dev) == ("train.train_set", None)
    assert found.tests == {
        f"test_{name}": str(workdir / "sets" / f"test_{name}.parquet") for name in ("1s", "2s", "no")
    }
    assert list(find_files(configured(workdir, test_sets=["2s"])).tests) == ["test_2s"]


def test_a_set_that_a_workdir_has_not(workdir, tmp_path):
    with pytest.raises(InputError, match=r"^train\.train_set: no set '3s' in .* \(there are: 1s, random\)"):
        find_files(configured(workdir, train_set="3s"))
    with pytest.raises(InputError, match=r"\(there are: none\); scalemine mine makes them"):
        find_files(configured(tmp_path / "elsewhere"))


def test_files_of_the_users(workdir):
    found = find_files(configured(workdir, train_uri="a.parquet", dev_uri="b.parquet", test_uris={"c": "c.parquet"}))
    assert (found.train, found.train_key, found.dev) == ("a.parquet", "train.train_uri", "b.parquet")
    assert found.tests == {"c": "c.parquet"}
    # With a file to train on, the workdir's test sets are taken where they are named.
    assert find_files(configured(workdir, train_uri="a.parquet")).tests == {}
    named = find_files(configured(workdir, train_uri="a.parquet", test_sets=["1s"])).tests
    assert named == {"test_1s": str(workdir / "sets" / "test_1s.parquet")}


def test_columns_that_are_needed_and_kept():
    found = find_files(configured(train_uri="a", group_by=["author", "near_duplicates", "event"]))
    assert found.needs == ("author", "event")
    assert found.keep == ("author", "event", "user")
    assert find_files(configured(train_uri="a", group_by=[])).keep == ("event", "user")


# Settings


class Other(TaggerFamily):
    """A family that knows neither vectors nor a CRF."""

    foreign_keys = frozenset({"crf", "vectors"})

    def settings(self, config):
        return {"train.encoder": "its own"}


CHANGED = {
    "name": "one", "processes": 3, "micro_batch": 2, "device": "cpu", "checkpoint_steps": 7, "bootstrap": 5,
    "test_sets": ["1s"], "unseen_types": "count",
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGED)
def test_what_changes_no_weight_is_no_setting(key):
    assert run_settings(configured(), Other()) == run_settings(configured(**{key: CHANGED[key]}), Other())


def test_whatever_else_is_a_setting():
    """Each key of ``train``, by its name, so that a new one is thought about."""
    keys = {f"train.{key}" for key in TrainConfig.model_fields}
    aside = {f"train.{key}" for key in {*CHANGED, "test_uris", "revision", *Other.foreign_keys}}
    assert set(run_settings(configured(), Other())) == (keys - aside) | {"seed"}


def test_settings_of_a_family():
    tagger = TaggerFamily()
    one = configured(encoder={"model": "someone/model", "revision": "abc"}, seed=7)
    assert run_settings(one, tagger)["seed"] == 7
    assert run_settings(one, tagger)["train.encoder"] == "someone/model"
    assert run_settings(one, tagger)["train.revision"] == "abc"
    assert "train.encoder" not in run_settings(configured(vectors="v.txt"), tagger)
    # The same encoder, whichever section names it.
    named = {"encoder": "someone/model", "revision": "abc"}
    other = Config.model_validate({"workdir": "work", "seed": 7, "encoder": {"model": "x"}, "train": named})
    assert run_settings(other, tagger) == run_settings(one, tagger)


def test_the_encoder_is_that_of_train_or_of_mining():
    mining = {"model": "someone/model", "revision": "abc"}
    of_train = {"workdir": "work", "encoder": mining, "train": {"encoder": "other/model"}}
    assert encoder_name(configured(encoder=mining)) == ("someone/model", "abc")
    assert encoder_name(Config.model_validate(of_train)) == ("other/model", None)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("linear", "TaggerFamily"), ("classifier", "ClassifierFamily"), ("svm", "BaselineFamily")],
)
def test_the_model_decides_the_family(model, expected):
    assert type(family_of(configured(model=model))).__name__ == expected


def test_an_ensemble_is_a_family():
    members = {"a": {"train.model": "svm"}, "b": {"train.model": "classifier"}}
    values = {"workdir": "work", "ensemble": {"members": members}, "train": {"model": "ensemble"}}
    found = Config.model_validate(values)
    assert type(family_of(found)).__name__ == "EnsembleFamily"
    settings = run_settings(found, family_of(found))
    # What any member heeds, and what each has of its own.
    for name in members:
        of_member = run_settings(found.members()[name], family_of(found.members()[name]))
        assert of_member.keys() <= settings.keys() | {"seed"}
    assert settings["ensemble.members"] == members
    assert "train.crf" not in settings


# What is said


def test_what_chooses_the_epoch():
    assert chooser(configured()) == DEV
    assert chooser(configured(folds=2, stop_on="test")) == HELD_OUT


def test_a_run_is_called_by_its_fold():
    assert run_label(configured(), split(None)) == "train"
    assert run_label(configured(folds=5), split(4)) == "fold 5/5"


def test_how_an_epoch_went(caplog):
    history = [
        {"epoch": 1, "loss": 2.0, "score": 0.75, "seconds": 1.0},
        {"epoch": 2, "loss": 0.5, "score": 0.5, "seconds": 4.0},
    ]
    with caplog.at_level("INFO", logger="scalemine"):
        report_epoch(
            configured(epochs=5), split(None, 200), Progress(epoch=2, best=0.75, best_epoch=1, history=history), "F1"
        )
    assert caplog.messages == [
        "train: epoch 2/5, loss 0.5000, F1 on dev 0.5000 (best 0.7500 at 1), 50 tweets/s, at most 12 s left"
    ]


class File:
    uri, sha256, num_rows = "/somewhere/train.parquet", "f" * 64, 9


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, "a dev part of the training folds"),
        ({"folds": 2, "stop_on": "test"}, "the held-out fold (the published way)"),
        ({"dev_uri": "/home/me/dev.parquet"}, "dev.parquet"),
    ],
)
def test_facts_of_a_fit(train, expected):
    found = Fit(0.75, 2, [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 3.0}], {"equal": True}, 1.5)
    assert fit_facts(configured(seed=7, **train), Data(File(), None, {}), split(1), found, cut=4) == {
        "file": "train.parquet", "sha256": "f" * 64, "tweets": 3, "cut": 4, "seed": 7, "fold": 1, "epochs": 3,
        "best_epoch": 2, "chosen_on": expected, "history": found.history, "lr_check": {"equal": True}, "seconds": 1.5,
    }  # fmt: skip
