from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.store import Workdir
from scalemine.sweep.outcomes import read_findings, read_sweep
from scalemine.training.tagging.labels import spans_of_tags
from scalemine.training.tagging.scoring import write_predictions
from sweep.sweeps import first, planned, tweets, write_classifier_run, write_plan, write_tagger_run


def only_run(workdir):
    (trial,) = read_sweep(Workdir(workdir), Workdir(workdir).sweeps / "exp").trials
    return trial.runs[None, 1]


# --- Trials


def test_only_finished_runs_count_and_a_stopped_trial_has_as_many_planned_as_the_others(tmp_path):
    of_set = tweets("t", 3)
    for run in ("a0", "a1", "b0"):
        write_tagger_run(tmp_path, run, {"test_no": (of_set, first(of_set, 1))}, fold=int(run[1]))
    trials = [
        planned("a", [(0, 1, "a0"), (1, 1, "a1"), (2, 1, "a2")], {"train.lr": 1.0}),
        planned("b", [(0, 1, "b0")], {"train.lr": 2.0}, stopped=1),
    ]
    write_plan(tmp_path, trials, folds=3)
    found = read_sweep(Workdir(tmp_path), Workdir(tmp_path).sweeps / "exp")
    assert [list(trial.runs) for trial in found.trials] == [[(0, 1), (1, 1)], [(0, 1)]]
    assert [(trial.num_planned, trial.trial.stopped) for trial in found.trials] == [(3, None), (3, 1)]
    assert found.trials[0].runs[1, 1].folder == Workdir(tmp_path).runs / "a1"


# --- Taggers


def test_spans_and_alarms_of_a_run(tmp_path):
    of_set = tweets("t", 4, random=3, mined_1s=2)
    write_tagger_run(tmp_path, "a", {"test_x": (of_set, first(of_set, 3, random=1, mined_1s=2))})
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    found = read_findings(only_run(tmp_path), "test_x")
    assert list(found.counts.ids) == [tweet.id for tweet in of_set]
    correct, predicted, gold = found.counts.counts_N3.sum(axis=0)
    assert (correct, predicted, gold) == (3, 6, 4)
    alarms = {kind: (one.alarms_N2[:, 0] * one.alarms_N2[:, 1]).sum() for kind, one in found.alarms.items()}
    assert alarms == {"all": 3, "random": 1, "mined_1s": 2}
    assert {kind: one.alarms_N2[:, 1].sum() for kind, one in found.alarms.items()} == {
        "all": 5,
        "random": 3,
        "mined_1s": 2,
    }


def test_a_set_without_negatives_has_no_alarms(tmp_path):
    of_set = tweets("t", 2)
    write_tagger_run(tmp_path, "a", {"test_no": (of_set, [False, False])})
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    found = read_findings(only_run(tmp_path), "test_no")
    assert found.alarms == {}
    assert found.counts.counts_N3.tolist() == [[0, 0, 1], [0, 0, 1]]


class FakeDocument:
    def __init__(self, number, tags):
        self.id, self.negative_kind, self.tags = str(number), None, tags


TAGS = st.lists(st.sampled_from(["O", "O", "B-a", "I-a", "B-b", "I-b"]), min_size=1, max_size=6)


@given(st.lists(TAGS.flatmap(lambda gold: st.tuples(st.just(gold), st.permutations(gold))), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_sets_of_spans(tmp_path_factory, pairs):
    """Written as the trainer writes them, counted tweet by tweet."""
    folder = tmp_path_factory.mktemp("run")
    write_tagger_run(folder, "a", {"test_x": (tweets("t", 1), [True])})
    write_plan(folder, [planned("a", [(None, 1, "a")], {})])
    run = only_run(folder)
    documents = [FakeDocument(number, gold) for number, (gold, _) in enumerate(pairs)]
    write_predictions(documents, [tags for _, tags in pairs], run.folder / "predictions" / "test_x.parquet")
    expected = []
    for gold, predicted in pairs:
        ours, theirs = set(spans_of_tags(gold)), set(spans_of_tags(predicted))
        expected.append([len(ours & theirs), len(theirs), len(ours)])
    assert read_findings(run, "test_x").counts.counts_N3.tolist() == expected


def test_predictions_that_are_gone(tmp_path):
    of_set = tweets("t", 2)
    write_tagger_run(tmp_path, "a", {"test_no": (of_set, [True, False])})
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    (Workdir(tmp_path).runs / "a" / "predictions" / "test_no.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        read_findings(only_run(tmp_path), "test_no")


# --- Classifiers


def test_labels_over_the_thresholds_where_targets_are_known(tmp_path):
    targets_NC = np.array([[1, 0], [1, -1], [0, 1], [-1, -1], [-1, -1]], np.int8)
    scores_NC = np.array([[0.9, 0.9], [0.2, 0.9], [0.1, 0.5], [0.1, 0.1], [0.6, 0.1]], np.float32)
    ids = [f"t{number}" for number in range(5)]
    write_classifier_run(tmp_path, "a", {"test_x": (ids, targets_NC, scores_NC)}, ["rain", "wind"], [0.6, 0.5])
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    run = only_run(tmp_path)
    found = read_findings(run, "test_x")
    # The unknown label of the second tweet does not count; 0.6 as float32 is above 0.6, 0.5 is the threshold itself.
    assert found.counts.counts_N3.tolist() == [[1, 2, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert found.alarms["all"].alarms_N2.tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [1, 1]]
    correct, predicted, gold = found.counts.counts_N3.sum(axis=0)
    scores = run.result["metrics"]["test_x"]
    assert 2 * correct / (predicted + gold) == pytest.approx(scores["micro_f1"])
    assert scores["false_alarms"]["per_1000"] == 500


def test_thresholds_are_found_by_the_name_of_the_label(tmp_path):
    targets_NC, scores_NC = np.array([[1, 0]], np.int8), np.array([[0.4, 0.4]], np.float32)
    write_classifier_run(tmp_path, "a", {"test_x": (["t"], targets_NC, scores_NC)}, ["rain", "wind"], [0.3, 0.7])
    path = Workdir(tmp_path).runs / "a" / "predictions" / "test_x.parquet"
    table = pq.read_table(path)
    turned = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array([row[i] for row in table[name].to_pylist() for i in (1, 0)], table[name].type.value_type), 2
        )
        for name in ("targets", "scores")
    }
    kept = {name: table[name] for name in ("id", "is_negative")}
    pq.write_table(pa.table(kept | turned).replace_schema_metadata({"labels": "wind\nrain"}), path)
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    found = read_findings(only_run(tmp_path), "test_x")
    assert found.counts.counts_N3.tolist() == [[1, 1, 1]]


def test_runs_of_the_same_tweets_hold_their_ids_once(tmp_path):
    known = {}
    for number, size in enumerate((3, 3, 4)):
        of_set = tweets("t", size)
        write_tagger_run(tmp_path, f"a{number}", {"test_no": (of_set, first(of_set, number))}, seed=number)
    write_plan(tmp_path, [planned("a", [(None, number, f"a{number}") for number in range(3)], {})])
    (trial,) = read_sweep(Workdir(tmp_path), Workdir(tmp_path).sweeps / "exp").trials
    one, another, longer = (read_findings(run, "test_no", known) for run in trial.runs.values())
    assert one.counts.ids is another.counts.ids
    assert longer.counts.ids == ("t-p0", "t-p1", "t-p2", "t-p3")
    assert list(known) == [one.counts.ids, longer.counts.ids]
