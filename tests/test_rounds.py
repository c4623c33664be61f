from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from scalemine import rounds as module
from scalemine.config import Config, InputError
from scalemine.decisions import Decision, append_decision
from scalemine.executor import InlineExecutor
from scalemine.pipeline import Run, run_mine
from scalemine.rounds import run_rounds
from scalemine.store import Workdir
from scalemine.text import duplicate_key
from scalemine.training.tagging import tagger
from scalemine.training.tagging.tagger import TaggedSpan

REPLACE = 0.25


class Stand:
    """A tagger that finds a span in some tweets, other ones in each round."""

    def __init__(self, number: int) -> None:
        self.number = number

    def surely(self, text: str) -> float:
        return (sum(text.encode()) * (3 + self.number) % 97) / 97

    def tag(self, texts):
        found = [(text, self.surely(text)) for text in texts]
        return [[TaggedSpan(0, 1, "traffic", text[:1], sure)] if sure > 0.6 else [] for text, sure in found]


@pytest.fixture
def trained(monkeypatch):
    """What was trained on, in order; no model is."""
    calls = []

    def train(config, *, signals, show, redo):
        folder = Workdir(config.workdir).runs / config.train.name
        result = {"name": config.train.name, "metrics": {}, "data": config.train.train_uri}
        if not (folder / "result.json").exists():
            calls.append(config.train)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(result))
        return [result]

    monkeypatch.setattr(module, "run_training", train)
    monkeypatch.setattr(module, "load_tagger", lambda folder: Stand(int(folder.split("-")[-1].split("/")[0])))
    monkeypatch.setattr(tagger, "load_tagger", lambda folder: Stand(int(folder.split("-")[-1].split("/")[0])))
    return calls


@pytest.fixture
def run_of(settings_of):
    def make(workdir, redo=False, **sections) -> Run:
        sections = {"mining": {"pool": 400, "replace": REPLACE, **sections.pop("mining", {})}, **sections}
        config = Config.model_validate(
            settings_of(workdir, train={"train_set": "2s", **sections.pop("train", {})}, **sections)
        )
        return Run(config, InlineExecutor(), redo=redo)

    return make


def rows_of(path):
    return pq.read_table(path).to_pylist()


def test_each_round_replaces_some_of_the_easy(copy_of_finished, run_of, trained):
    workdir = copy_of_finished()
    history = run_rounds(run_of(workdir), 2)
    assert [one["round"] for one in history] == [0, 1, 2]
    before = rows_of(workdir / "sets" / "train_2s.parquet")
    in_sets = {duplicate_key(row["text"]) for path in (workdir / "sets").glob("*.parquet") for row in rows_of(path)}
    for number, facts in enumerate(history[1:], start=1):
        stand, after = Stand(number - 1), rows_of(workdir / "rounds" / str(number) / "train.parquet")
        negatives = [row for row in before if row["is_negative"]]
        easy = [row for row in negatives if stand.surely(row["text"]) <= 0.6]
        assert (facts["negatives"], facts["easy"]) == (len(negatives), len(easy))
        assert 0 < facts["replaced"] <= min(len(easy), int(REPLACE * len(negatives)))
        gone = [row for row in before if row not in after]
        fresh = [row for row in after if row not in before]
        assert len(gone) == len(fresh) == facts["replaced"]
        assert all(row in easy for row in gone)
        # What comes in is tagged by the model, and in no set: neither of training nor of test.
        assert all(stand.surely(row["text"]) > 0.6 for row in fresh)
        assert not {duplicate_key(row["text"]) for row in fresh} & in_sets
        assert {row["label_source"] for row in fresh} == {"mined_model"}
        assert all(row["is_negative"] and row["spans"] == [] for row in fresh)
        assert Counter(row["is_negative"] for row in after) == Counter(row["is_negative"] for row in before)
        before = after
    assert [call.train_uri.split("/")[-2:] for call in trained] == [
        ["sets", "train_2s.parquet"], ["1", "train.parquet"], ["2", "train.parquet"],
    ]  # fmt: skip
    assert all(call.test_uris.keys() >= {"test_random", "test_3s"} for call in trained)


def test_finished_rounds_are_not_redone_and_more_can_follow(copy_of_finished, run_of, trained):
    workdir = copy_of_finished()
    first = run_rounds(run_of(workdir), 1)
    stamp = (workdir / "rounds" / "1" / "train.parquet").stat().st_mtime_ns
    assert run_rounds(run_of(workdir), 2)[:2] == first
    assert (workdir / "rounds" / "1" / "train.parquet").stat().st_mtime_ns == stamp
    assert len(trained) == 3
    assert json.loads((workdir / "rounds" / "rounds.json").read_text())[2]["round"] == 2


def test_other_decisions_make_other_rounds(copy_of_finished, run_of, trained):
    workdir = copy_of_finished()
    run_rounds(run_of(workdir), 1)
    fresh = [row for row in rows_of(workdir / "rounds" / "1" / "train.parquet") if row["label_source"] == "mined_model"]
    append_decision(
        workdir / "decisions.jsonl",
        fresh[0]["text"],
        tweet_id=fresh[0]["id"],
        class_name="traffic",
        decision=Decision.yes,
    )
    with pytest.raises(InputError, match=r"decisions\.jsonl"):
        run_rounds(run_of(workdir), 1)
    run_mine(run_of(workdir, redo=True))
    with pytest.raises(InputError, match="rounds/1: made with another configuration"):
        run_rounds(run_of(workdir), 1)
    run_rounds(run_of(workdir, redo=True), 1)
    again = rows_of(workdir / "rounds" / "1" / "train.parquet")
    assert fresh[0]["text"] not in {row["text"] for row in again}


@pytest.mark.parametrize("train", [{"folds": 3}, {"train_uri": "a.parquet"}])
def test_what_has_no_place_in_rounds_is_refused(tmp_path, run_of, train):
    with pytest.raises(InputError, match=r"train\.train_uri and train\.folds have no place in rounds"):
        run_rounds(run_of(tmp_path / "work", train=train), 1)
    assert not (tmp_path / "work").exists()
