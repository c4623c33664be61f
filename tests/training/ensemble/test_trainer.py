from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine.config import Config, InputError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import read_json
from scalemine.sweep.compare import compare
from scalemine.sweep.driver import run_sweep
from scalemine.training import runs
from scalemine.training.ensemble.model import SpanEnsemble
from scalemine.training.evaluation import evaluate_classifier, evaluate_tagger, is_classifier
from scalemine.training.kept import load_model
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.runs import describe_plan, learns_spans, run_training
from scalemine.training.tagging.labels import spans_of_tags
from training import tweets

LABELS = ["fear", "joy"]
MEMBERS = {
    "nb": {"train.model": "naive_bayes"},
    "lr": {"train.model": "logistic_regression", "labels.threshold": 0.4},
    "tree": {"train.model": "decision_tree", "seed": 3},
}


def write_tweets(path: Path, number: int, seed: int) -> Path:
    """Write tweets whose words tell the labels most of the time."""
    chance = random.Random(seed)
    rows = []
    for place in range(number):
        labels = [label for label in LABELS if chance.random() < 0.4]
        told = [label for label in LABELS if (label in labels) == (chance.random() < 0.8)]
        words = [*told, *chance.choices(["a", "bus", "late", "kids"], k=2), f"{path.stem}{place}"]
        rows.append({"id": f"{path.stem}{place}", "text": " ".join(words), "labels": labels})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_tweets(folder / "train.parquet", 120, 1)
    write_tweets(folder / "test.parquet", 50, 2)
    return folder


def config(files: Path, workdir: Path, members: Any = MEMBERS, combine: str = "vote", **train: Any) -> Config:
    values = {
        "train_uri": str(files / "train.parquet"), "test_uris": {"test": str(files / "test.parquet")},
        "model": "ensemble", "bootstrap": 5, "group_by": [], "dev_share": 0.3, "folds": 2,
    }  # fmt: skip
    sections = {"baseline": {"features": "tfidf"}, "compute": {"threads": 1}}
    ensemble = {} if members is None else {"members": members, "combine": combine}
    return Config.model_validate({"workdir": str(workdir), "train": values | train, "ensemble": ensemble} | sections)


@pytest.fixture(scope="module")
def done(files, tmp_path_factory) -> tuple[Path, dict[str, list[dict]]]:
    """A workdir with the results of a vote and of an average, by fold."""
    workdir = tmp_path_factory.mktemp("work")
    return workdir, {how: run_training(config(files, workdir, combine=how)) for how in ("vote", "average")}


def predicted(workdir: Path, run: str, name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    path = workdir / "runs" / run / "predictions" / f"{name}.parquet"
    labels, targets_NC, scores_NC = read_predictions(path)
    assert labels == LABELS
    return targets_NC, scores_NC, pq.read_table(path)["id"].to_pylist()


def thresholds(workdir: Path, run: str) -> np.ndarray:
    of_label = read_json(workdir / "runs" / run / "result.json")["metrics"]["dev"]["per_label"]
    return np.array([of_label[label]["threshold"] for label in LABELS])


def test_what_members_give_together_is_scored_on_the_same_sets(done):
    workdir, results = done
    for how, of_folds in results.items():
        for result in of_folds:
            assert list(result["members"]) == ["nb", "lr", "tree"]
            assert (result["labels"], result["model"]) == (LABELS, "ensemble")
            assert (workdir / "runs" / result["name"] / "model" / "model.json").exists()
            assert list(result["metrics"]) == ["dev", "held_out", "test"]
            least_MC = [thresholds(workdir, run) for run in result["members"].values()]
            for name in result["metrics"]:
                members = [predicted(workdir, run, name) for run in result["members"].values()]
                targets_NC, scores_NC, ids = predicted(workdir, result["name"], name)
                for of_member in members:
                    assert of_member[2] == ids
                    assert np.array_equal(of_member[0], targets_NC)
                given = scores_NC >= thresholds(workdir, result["name"])
                if how == "average":
                    mean_NC = np.mean([of_member[1] for of_member in members], axis=0, dtype=np.float64)
                    assert np.array_equal(scores_NC, mean_NC.astype(np.float32))
                else:
                    given_MNC = [of_member[1] >= least for of_member, least in zip(members, least_MC, strict=True)]
                    assert np.array_equal(given, np.sum(given_MNC, axis=0) >= 2)
                true = (given & (targets_NC == 1)).sum()
                f1 = 2 * true / (given.sum() + (targets_NC == 1).sum())
                assert result["metrics"][name]["micro_f1"] == pytest.approx(f1)


def test_members_are_runs_as_they_would_be_alone_and_are_trained_once(done, files, monkeypatch, tmp_path):
    workdir, results = done
    assert [one["members"] for one in results["vote"]] == [one["members"] for one in results["average"]]
    alone = config(files, tmp_path, None, model="logistic_regression")
    alone = Config.model_validate(alone.model_dump() | {"labels": {"threshold": 0.4}})
    for result, of_ensemble in zip(run_training(alone), results["vote"], strict=True):
        assert result["name"] == of_ensemble["members"]["lr"]
        inside = read_json(workdir / "runs" / result["name"] / "result.json")
        assert inside["metrics"] == json.loads(json.dumps(result["metrics"]))
    # With these runs there, no member is trained a second time.
    trained = []
    real = runs.train_split
    monkeypatch.setattr(
        runs, "train_split", lambda one, *args, **named: (trained.append(one.train.model), real(one, *args, **named))
    )
    run_training(config(files, workdir, {name: MEMBERS[name] for name in ("nb", "lr")}))
    assert trained == ["ensemble"] * 2
    trained.clear()
    run_training(config(files, tmp_path, {name: MEMBERS[name] for name in ("nb", "lr")}))
    assert trained == ["naive_bayes", "ensemble"] * 2


def test_results_stand_in_the_table_beside_those_of_the_members(done):
    workdir, results = done
    rows = pq.read_table(workdir / "results.parquet").to_pylist()
    models = {row["model"] for row in rows if row["metric"] == "micro_f1" and row["test_set"] == "held_out"}
    assert models == {"naive_bayes", "logistic_regression", "decision_tree", "ensemble"}
    said = {row["run"]: row["words"] for row in rows if row["model"] == "ensemble"}
    for how, of_folds in results.items():
        assert {said[one["name"]] for one in of_folds} == {f"{how} of nb, lr, tree"}


def test_the_folder_scores_as_the_run_did(done, files):
    workdir, results = done
    for of_folds in results.values():
        run = workdir / "runs" / of_folds[1]["name"]
        assert is_classifier(str(run))
        found = evaluate_classifier(str(run), [str(files / "test.parquet")], num_bootstrap=5)
        wanted = of_folds[1]["metrics"]["test"]
        assert json.loads(json.dumps(found[str(files / "test.parquet")])) == json.loads(json.dumps(wanted))
        ensemble = load_model(run)
        texts = pq.read_table(files / "test.parquet")["text"].to_pylist()
        assert np.array_equal(ensemble.scores(texts), predicted(workdir, run.name, "test")[1])


def test_one_member_alone_has_its_own_scores(files, tmp_path):
    for how in ("vote", "average"):
        for result in run_training(config(files, tmp_path, {"nb": MEMBERS["nb"]}, how)):
            member = read_json(tmp_path / "runs" / result["members"]["nb"] / "result.json")["metrics"]
            for name, found in result["metrics"].items():
                keys = ("micro_f1", "macro_f1", "jaccard") if how == "vote" else tuple(found)
                assert {key: found[key] for key in keys} == {key: member[name][key] for key in keys}


def test_what_would_be_done_is_said_and_a_request_to_stop_is_heard(files, tmp_path):
    one = config(files, tmp_path)
    lines = describe_plan(one)
    assert "ensemble.combine: vote" in lines
    assert [line.rsplit(": ", 1)[1] for line in lines if "-fold" in line] == ["to do", "to do"]
    assert not tmp_path.joinpath("runs").exists()

    class Asked:
        requested = True

    prepared = runs.prepare(one)
    with pytest.raises(Stopped):
        runs.run_split(one, prepared, prepared.split(0), signals=Asked())
    assert len(run_training(one)) == 2


def test_a_member_of_other_data_is_made_again_only_when_asked(files, tmp_path):
    shutil.copytree(files, tmp_path / "data")
    run_training(config(tmp_path / "data", tmp_path / "work"))
    write_tweets(tmp_path / "data" / "train.parquet", 110, 7)
    with pytest.raises(InputError, match="--redo"):
        run_training(config(tmp_path / "data", tmp_path / "work"))
    again = run_training(config(tmp_path / "data", tmp_path / "work"), redo=True)
    fresh = run_training(config(tmp_path / "data", tmp_path / "fresh"))
    assert [one["metrics"] for one in again] == [one["metrics"] for one in fresh]


# Members that are folders


def test_folders_of_finished_runs_give_what_the_same_members_give(done, files, tmp_path):
    workdir, results = done
    for how, of_folds in results.items():
        folders = [str(workdir / "runs" / run.removesuffix("-fold0")) for run in of_folds[0]["members"].values()]
        for result, wanted in zip(run_training(config(files, tmp_path, folders, how)), of_folds, strict=True):
            assert (tmp_path / "runs" / result["name"] / "model" / "model.json").exists()
            assert result["metrics"] == wanted["metrics"]


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    """The folder of a run without folds."""
    workdir = tmp_path_factory.mktemp("whole")
    [result] = run_training(config(files, workdir, None, model="naive_bayes", folds=0))
    return workdir / "runs" / result["name"]


def test_members_that_may_have_seen_what_is_held_out_are_refused(done, whole, files, tmp_path):
    workdir, results = done
    of_fold = [workdir / "runs" / one["members"]["nb"] for one in results["vote"]]
    general = str(of_fold[0]).removesuffix("-fold0")
    with pytest.raises(InputError, match="was trained on another file or fold, so it may have seen tweets of fold 0"):
        run_training(config(files, tmp_path, [str(whole)]))
    with pytest.raises(InputError, match="so it may have seen tweets of fold 1"):
        run_training(config(files, tmp_path, [str(of_fold[0])]))  # that of fold 0, for all folds
    with pytest.raises(InputError, match=r"was trained on other train.fold_seed, so it may have seen"):
        run_training(config(files, tmp_path, [general], fold_seed=7))
    shutil.copytree(of_fold[0] / "model", tmp_path / "bare")
    with pytest.raises(InputError, match=r"no result.json beside it, so it is not known which tweets it has seen"):
        run_training(config(files, tmp_path, [str(tmp_path / "bare")]))
    shutil.copytree(files, tmp_path / "data")
    shutil.copy(files / "train.parquet", tmp_path / "data" / "test.parquet")
    with pytest.raises(InputError, match=r"was trained on .*test.parquet, which is train.test_uris.test"):
        run_training(config(tmp_path / "data", tmp_path, [str(whole)], folds=0))
    assert not tmp_path.joinpath("runs").exists()


def test_without_folds_it_is_noted(done, whole, files, tmp_path, caplog):
    workdir, results = done
    of_fold = str(workdir / "runs" / results["vote"][0]["members"]["lr"])
    [result] = run_training(config(files, tmp_path, [str(whole), of_fold], "average", folds=0))
    noted = [one.getMessage() for one in caplog.records if "may have seen tweets of dev" in one.getMessage()]
    assert noted
    assert all(one.startswith(of_fold) for one in noted)
    models = [load_model(whole), load_model(of_fold)]
    texts = pq.read_table(files / "test.parquet")["text"].to_pylist()
    mean_NC = np.mean([one.scores(texts) for one in models], axis=0, dtype=np.float64)
    assert np.array_equal(predicted(tmp_path, result["name"], "test")[1], mean_NC.astype(np.float32))


@pytest.mark.parametrize(
    ("members", "said"),
    [(["nowhere"], "no folder nowhere or nowhere-fold0"), (["{files}"], "no model here")],
)
def test_folders_that_are_none(files, tmp_path, members, said):
    with pytest.raises(InputError, match=said):
        run_training(config(files, tmp_path, [one.format(files=files) for one in members]))


def test_members_of_other_labels_are_refused(whole, files, tmp_path):
    one = config(files, tmp_path, [str(whole)], folds=0)
    one = Config.model_validate(one.model_dump() | {"labels": {"names": ["joy", "fear"]}})
    with pytest.raises(
        InputError, match="gives the labels fear, joy; expected the labels joy, fear, as of all"
    ) as error:
        run_training(one)
    assert "\n" not in str(error.value)


# Taggers

TAGGERS = {
    "one": {"train.model": "lstm_crf"},
    "other": {"train.model": "lstm_crf", "seed": 1},
    "cnn": {"train.model": "cnn_crf", "train.hidden": 16},
}


def test_taggers_vote_over_spans(data, tmp_path):
    values = tweets.settings(data, tmp_path, model="ensemble", epochs=6, head_lr=0.05) | {
        "ensemble": {"members": TAGGERS}
    }
    one = Config.model_validate(values)
    assert learns_spans(one)
    [result] = run_training(one)
    for name in ("dev", "test"):
        tables = [
            pq.read_table(tmp_path / "runs" / run / "predictions" / f"{name}.parquet")
            for run in (result["name"], *result["members"].values())
        ]
        assert all(table["id"] == tables[0]["id"] for table in tables)
        for voted, *of_members in zip(*(table["predicted"].to_pylist() for table in tables), strict=True):
            spans = [set(spans_of_tags(tags)) for tags in of_members]
            wanted = {span for span in set.union(*spans) if sum(span in of_one for of_one in spans) >= 2}
            assert set(spans_of_tags(voted)) == wanted
    assert 0 < result["metrics"]["test"]["f1"] <= 1
    run = tmp_path / "runs" / result["name"]
    assert not is_classifier(str(run))
    [scores] = evaluate_tagger(str(run), [str(data / "test.parquet")], num_bootstrap=0).values()
    assert scores["f1"] == result["metrics"]["test"]["f1"]
    ensemble = load_model(run)
    assert isinstance(ensemble, SpanEnsemble)
    words = pq.read_table(data / "test.parquet")["tokens"].to_pylist()
    texts = [" ".join(one) for one in words]
    votes = [[{span[:3] for span in spans} for spans in member.tag(texts)] for member in ensemble.members.values()]
    for found, of_text in zip(ensemble.tag(texts), zip(*votes, strict=True), strict=True):
        wanted = {span for span in set.union(*of_text) if sum(span in of_one for of_one in of_text) >= 2}
        assert [span[:3] for span in found] == sorted(wanted)
        assert all(0 <= span.confidence <= 1 for span in found)
    folders = [str(tmp_path / "runs" / name) for name in result["members"].values()]
    again = Config.model_validate(values | {"workdir": str(tmp_path / "again"), "ensemble": {"members": folders}})
    assert run_training(again)[0]["metrics"] == result["metrics"]


# Sweeps


def test_an_ensemble_is_an_arm_among_its_members(files, tmp_path):
    base = config(files, tmp_path, None, model="naive_bayes").model_dump()
    arms = MEMBERS | {
        how: {"train.model": "ensemble", "ensemble.combine": how, "ensemble.members": MEMBERS}
        for how in ("vote", "average")
    }
    arms["tree"] = {"train.model": "decision_tree"}
    one = Config.model_validate(base | {"sweep": {"arms": arms}})
    with StopSignals() as signals:
        outcome = run_sweep(one, "one", signals=signals)
    assert not outcome.failed
    assert outcome.plan.metric == "held_out.roc_auc.macro"
    results = {
        trial.arm: [read_json(tmp_path / "runs" / run.run / "result.json") for run in trial.runs]
        for trial in outcome.plan.trials
    }
    # What an arm has trained is not trained again as a member.
    for how in ("vote", "average"):
        for nb, together in zip(results["nb"], results[how], strict=True):
            assert together["members"]["nb"] == nb["name"]
    found = json.dumps(compare(tmp_path, base="nb", rounds=200).as_dict())
    assert all(f'"{arm}"' in found for arm in arms)
