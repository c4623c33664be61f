from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import Config, InputError, LossConfig
from scalemine.executor import StopSignals
from scalemine.training.family import Data
from scalemine.training.multilabel import data as module
from scalemine.training.multilabel.calibration import best_thresholds
from scalemine.training.multilabel.data import LabelFamily, LabelSets, brief, read_label_data, read_predictions
from scalemine.training.splits import Split

NAMES = ("near", "mid", "far")


def write(path: Path, labels: list[list[str]], **columns: list) -> Path:
    ids = [f"{path.stem}{number}" for number in range(len(labels))]
    table = {"id": ids, "text": [f"tweet {one}" for one in ids], "labels": labels}
    pq.write_table(pa.table(table | columns), path)
    return path


@pytest.fixture
def files(tmp_path) -> Path:
    labels = [["near", "mid", "far"], ["mid", "far"], ["far"], [], ["far"], []]
    write(tmp_path / "train.parquet", labels * 4, lang=["en", "fr", None] * 8, event=[f"e{n // 2}" for n in range(24)])
    write(tmp_path / "test.parquet", labels * 2, is_negative=[False] * 6 + [True] * 6)
    write(tmp_path / "dev.parquet", labels)
    return tmp_path


def config(files: Path, labels: dict | None = None, **train) -> Config:
    values = {
        "train_uri": str(files / "train.parquet"), "test_uris": {"test": str(files / "test.parquet")},
        "model": "classifier", "bootstrap": 0,
    }  # fmt: skip
    return Config.model_validate({"workdir": str(files / "work"), "labels": labels or {}, "train": values | train})


def read(one: Config) -> Data:
    return read_label_data(one, None, signals=StopSignals(), show=module_show)


def module_show(*_):
    from scalemine.executor import silent

    return silent(*_)


def split(train: list[int], dev: list[int] = [], held_out: list[int] = [], fold: int | None = None) -> Split:  # noqa: B006
    return Split(fold, *(np.array(part, np.int64) for part in (train, dev, held_out)))


def sets_of(files: Path, one: Split, labels: dict | None = None, **train) -> LabelSets:
    made = config(files, labels, **train)
    return LabelSets(made, read(made), one)


def test_which_sets_there_are_and_where(files):
    inside = sets_of(files, split([0, 1], [5, 4], [7], 0), folds=2)
    assert inside.names == ["dev", "held_out", "test"]
    assert list(inside.rows("dev").ids) == ["train5", "train4"]
    assert list(inside.rows("held_out").ids) == ["train7"]
    assert list(inside.rows("train").columns["event"]) == ["e0", "e0"]
    assert inside.targets("test").shape == (12, 3)
    assert (inside.targets("test")[6:] == -1).all()
    outside = sets_of(files, split([0, 1]), dev_uri=str(files / "dev.parquet"))
    assert outside.names == ["dev", "test"]
    assert list(outside.rows("dev").ids) == [f"dev{n}" for n in range(6)]
    assert outside.labels == ("far", "mid", "near")


def test_priors_are_of_known_training_tweets(files):
    some = sets_of(files, split([0, 1, 2, 3], [4]))
    assert some.priors.tolist() == [0.75, 0.5, 0.25]
    positives, dev = {"absent": "unknown"}, {"dev_uri": str(files / "dev.parquet")}
    # Where only positives are known in training, dev has the shares.
    sets = sets_of(files, split([0, 1, 2, 3]), positives, **dev)
    assert sets.priors.tolist() == pytest.approx(sets.targets("dev").mean(axis=0).tolist())


def test_what_is_absent_is_unknown_in_training_alone(files):
    """Where only positives are known of the tweets to train on, those to judge by are still complete."""
    dev = {"dev_uri": str(files / "dev.parquet")}
    plain, known = read(config(files, **dev)), read(config(files, {"absent": "unknown"}, **dev))
    before = plain.train.targets_of()
    assert (before == 0).any()
    assert known.train.targets_of().tolist() == np.where(before == 1, 1, -1).tolist()
    for one, other in ((plain.dev, known.dev), (plain.tests["test"], known.tests["test"])):
        assert (other.targets_of() == 0).any()
        assert other.targets_of().tolist() == one.targets_of().tolist()
    with pytest.raises(ValueError, match=r"labels.absent: unknown leaves nothing .*; give train.dev_uri"):
        config(files, {"absent": "unknown"})


def test_thresholds_keep_the_order_of_nested_labels(files):
    nested = {"nested": [["near", "mid", "far"]]}
    chosen = sets_of(files, split([0, 1], list(range(2, 24))), nested)
    targets_NC = chosen.targets("dev")
    chance = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        scores_NC = np.sort(chance.random(targets_NC.shape), axis=1)[:, ::-1].astype(np.float32)
        far, mid, near = chosen.thresholds(scores_NC)
        assert far <= mid <= near
        free = best_thresholds(targets_NC, scores_NC, min_positives=1, default=0.5)
        seen.add(bool(free[0] <= free[1] <= free[2]))
        # Who is given an inner label is given the outer ones.
        given = scores_NC >= [far, mid, near]
        assert (given[:, 2] <= given[:, 1]).all() and (given[:, 1] <= given[:, 0]).all()
    assert False in seen  # by themselves they would not
    assert sets_of(files, split([0], [1]), {"threshold": 0.3}).thresholds(scores_NC[:1]).tolist() == [0.3] * 3


def test_nested_labels_share_a_calibration(files):
    nested = {"nested": [["near", "mid"]]}
    chosen = sets_of(files, split([0], list(range(24))), nested)
    chance = np.random.default_rng(0)
    logits_NC = chance.normal(0, 1, (24, 3)).astype(np.float32)
    found = chosen.calibrate(logits_NC)
    assert found.slope_C[1] == found.slope_C[2]
    assert found.offset_C[1] == found.offset_C[2]


@pytest.mark.parametrize(
    ("chains", "message"), [([["near", "off"]], "off"), ([["near", "mid"], ["mid", "near"]], "circle")]
)
def test_bad_nesting_is_an_input_error(files, chains, message):
    with pytest.raises(InputError, match=f"labels.nested: .*{message}"):
        _ = sets_of(files, split([0]), {"nested": chains}).nesting


def test_predictions_are_read_as_they_were_written(files, tmp_path):
    chosen = sets_of(files, split([0, 1], [5, 4, 17]))
    scores_NC = np.random.default_rng(0).random((3, 3), np.float32)
    chosen.write_predictions("dev", scores_NC, tmp_path / "p" / "dev.parquet")
    labels, targets_NC, again_NC = read_predictions(tmp_path / "p" / "dev.parquet")
    assert labels == ["far", "mid", "near"]
    assert np.array_equal(targets_NC, chosen.targets("dev")) and np.array_equal(again_NC, scores_NC)
    assert pq.read_table(tmp_path / "p" / "dev.parquet")["id"].to_pylist() == ["train5", "train4", "train17"]
    # Also where scores are a view in another order of bytes.
    chosen.write_predictions("dev", np.asfortranarray(scores_NC), tmp_path / "p" / "dev.parquet")
    assert np.array_equal(read_predictions(tmp_path / "p" / "dev.parquet")[2], scores_NC)


def test_scores_of_groups_and_languages(files):
    chosen = sets_of(files, split(list(range(12)), list(range(12, 24))), {"groups": ["lang"]})
    assert chosen.languages() == {"en": 4, "fr": 4}
    scores_NC = np.full((12, 3), 0.5, np.float32)
    found = chosen.score("dev", scores_NC, np.full(3, 0.5))
    assert set(found["groups"]) == {"lang"}
    assert "groups" not in brief({"dev": found})["dev"]
    assert brief({"dev": found})["dev"]["prior"] == found["prior"]
    assert (
        sets_of(files, split([0, 1]), dev_uri=str(files / "dev.parquet")).score("test", scores_NC, [0.5] * 3)["groups"]
        == {}
    )


# What is refused


def test_a_split_without_a_positive_is_refused(files):
    one = config(files, folds=2)
    data = read(one)
    family = LabelFamily()
    family.check_split(one, data, split([0, 3], [4, 5], [3], 0))
    with pytest.raises(InputError, match=r"fold 1: no tweet to train on bears a label"):
        family.check_split(one, data, split([3, 5], [4], [0], 1))
    with pytest.raises(InputError, match=r"fold 1: no tweet to choose the epoch on bears a label"):
        family.check_split(one, data, split([0], [3], [1], 1))
    chosen_by_test = config(files, folds=2, stop_on="test")
    family.check_split(chosen_by_test, data, split([0], [], [1], 0))
    with pytest.raises(InputError, match="to choose the epoch on"):
        family.check_split(chosen_by_test, data, split([0], [], [3], 0))


def test_a_dev_file_without_a_positive_is_refused(files):
    write(files / "dev.parquet", [[], []])
    one = config(files, dev_uri=str(files / "dev.parquet"))
    with pytest.raises(InputError, match=r"train.dev_uri: .*dev.parquet: no tweet bears a label"):
        LabelFamily().check_split(one, read(one), split([0, 1]))


def test_labels_that_training_has_none_of(files):
    write(files / "test.parquet", [["far", "riot"], ["near"]])
    with pytest.raises(InputError, match=r"train.test_uris.test: .*label 'riot' \(1 tweets\)"):
        read(config(files))
    assert read(config(files, unseen_types="count")).tests["test"].targets_of().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert read(config(files, {"names": ["far", "near"]})).tests["test"].labels == ("far", "near")
    write(files / "dev.parquet", [["riot"]])
    with pytest.raises(InputError, match=r"train.dev_uri: .*riot"):
        read(config(files, test_uris={}, dev_uri=str(files / "dev.parquet"), test_sets=[]))


def test_a_test_file_without_the_label_column_is_refused(files):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), files / "test.parquet")
    with pytest.raises(InputError, match=r"train.test_uris.test: .*test.parquet: no column labels"):
        read(config(files))
    (files / "test.csv").write_text("id,text\na,b\n")
    with pytest.raises(InputError, match=r"train.test_uris.csv: .*test.csv: no column labels"):
        read(config(files, test_uris={"csv": str(files / "test.csv")}))


def test_no_executor_is_started_where_nothing_is_to_be_done(files, monkeypatch):
    read(config(files))
    monkeypatch.setattr(module, "make_executor", lambda *_, **__: pytest.fail("started"))
    assert read(config(files)).train.num_rows == 24


def test_what_was_read_is_said(files):
    lines = LabelFamily().describe(read(config(files, dev_uri=str(files / "dev.parquet"))))
    assert lines == [
        "train: 24 tweets, 3 labels, 1.17 a tweet",
        "dev: 6 tweets, 3 labels, 1.17 a tweet",
        "test: 12 tweets, 3 labels, 0.58 a tweet, 50.0% unknown",
    ]


def test_false_alarms_are_of_negatives_and_not_of_tweets_of_which_nothing_is_known(files, tmp_path):
    labels = {"categories": ["labels"], "names": ["far"], "unknown_values": ["?"]}
    told = [["far"], ["none"], ["?"], [], []]
    write(files / "dev.parquet", [one[0] if one else "" for one in told], is_negative=[False] * 3 + [True] * 2)
    write(files / "train.parquet", ["far", "none", "?"] * 8)
    made = config(files, labels, dev_uri=str(files / "dev.parquet"), test_uris={})
    chosen = LabelSets(made, read(made), split(list(range(24))))
    scores_NC = np.array([[0.9], [0.1], [0.9], [0.9], [0.1]], np.float32)
    found = chosen.score("dev", scores_NC, np.array([0.5]))
    assert found["false_alarms"] == {"num_tweets": 2, "num_with_alarm": 1, "per_1000": 500.0}
    chosen.write_predictions("dev", scores_NC, tmp_path / "dev.parquet")
    assert pq.read_table(tmp_path / "dev.parquet")["is_negative"].to_pylist() == [False] * 3 + [True] * 2


def test_thresholds_know_of_negatives(files):
    """Without them all scores are of tweets that bear a label, and any threshold will do."""
    labels = [["far"]] * 60 + [[]] * 40
    write(files / "dev.parquet", labels, is_negative=[False] * 60 + [True] * 40)
    scores_NC = np.full((100, 3), 0.01, np.float32)
    scores_NC[:60, 0] = np.linspace(0.6, 0.9, 60)
    scores_NC[60:, 0] = np.linspace(0.1, 0.5, 40)
    how = {"dev_uri": str(files / "dev.parquet")}
    made = config(files, **how)
    known = LabelSets(made, read(made), split(list(range(24)))).thresholds(scores_NC)
    assert known[0] == pytest.approx(0.55)
    ignoring = made.model_copy(update={"loss": LossConfig(unknown="ignore")})
    free = LabelSets(ignoring, read(ignoring), split(list(range(24)))).thresholds(scores_NC)
    assert free[0] == pytest.approx(0.3)  # midway to nothing: no tweet without the label is known
