from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalemine.config import InputError
from scalemine.store import Workdir, read_json
from scalemine.sweep.compare import compare
from scalemine.training.comparison import Counts, fold_test, holm, paired_bootstrap, summarise
from sweep.sweeps import first, guessed, planned, tweets, write_arms, write_classifier_run, write_plan, write_tagger_run

ROUNDS = 1_000
SET = tweets("t", 40, random=40)


def one_run_each(workdir, arms, of_set=SET, settings=None, **facts):
    """Write a sweep with one run per arm, without folds; arms: what each predicts."""
    trials = []
    for name, predicted in arms.items():
        write_tagger_run(workdir, name, {"test_random": (of_set, predicted)}, train_set=name)
        own = {"train.train_set": name} if settings is None else settings[name]
        trials.append(planned(f"{name}_1", [(None, 1, name)], own))
    write_plan(workdir, trials, **facts)


def contrast(found, trial, measure, test_set="test_random"):
    key = (trial, test_set, measure)
    (one,) = [one for one in found.contrasts if (one.trial, one.test_set, one.measure) == key]
    return one


def opponents(workdir, settings, base=None, arms=None, unfinished=()):
    """Return the base of the sweep, and by trial its own."""
    trials = []
    for name, own in settings.items():
        if name not in unfinished:
            write_tagger_run(workdir, name, {"test_random": (SET, first(SET, 1))}, train_set="base_set")
        trials.append(planned(name, [(None, 1, name)], own, arm=(arms or {}).get(name)))
    write_plan(workdir, trials)
    found = compare(workdir, base=base, rounds=1)
    return found.base, {trial.name: trial.base for trial in found.trials if trial.base}


# --- Differences


def test_differences_are_those_that_were_made(tmp_path):
    one_run_each(tmp_path, {"random": first(SET, 20, random=10), "2s": first(SET, 30, random=2)})
    found = compare(tmp_path, rounds=ROUNDS)
    assert (found.base, [trial.base for trial in found.trials]) == ("random_1", [None, "random_1"])
    values = {
        measure: (contrast(found, "2s_1", measure).difference.base, contrast(found, "2s_1", measure).difference.other)
        for measure in ("f1", "precision", "recall", "false_alarms")
    }
    assert values["precision"] == pytest.approx((20 / 30, 30 / 32))
    assert values["recall"] == pytest.approx((0.5, 0.75))
    assert values["f1"] == pytest.approx((40 / 70, 60 / 72))
    assert values["false_alarms"] == pytest.approx((250, 50))
    assert contrast(found, "2s_1", "recall").difference.effect == pytest.approx(0.25)
    assert contrast(found, "2s_1", "f1").verdict.startswith("better by 26.2 (")
    assert contrast(found, "2s_1", "false_alarms").verdict.startswith("better by 200.0 (")
    assert all(one.folds is None for one in found.contrasts)


def test_equal_arms_give_no_evidence(tmp_path):
    one_run_each(tmp_path, {name: first(SET, 20, random=5) for name in ("random", "1s", "2s")})
    found = compare(tmp_path, rounds=ROUNDS)
    assert len(found.contrasts) == 2 * 4
    for one in found.contrasts:
        assert (one.difference.effect, one.difference.p, one.holm_p) == (0, 1, 1)
        assert one.verdict == "no evidence of a difference (0.0 to 0.0)"


def test_bootstrap_and_fold_test_are_given_what_the_runs_found(tmp_path):
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.6, 0.1)}, folds=3, positives=30)
    found = contrast(compare(tmp_path, rounds=ROUNDS), "2s_0", "recall")
    arms, means = [], []
    for arm in ("random", "2s"):
        counts, of_fold = [], []
        for fold in range(3):
            recalls = []
            for seed in (1, 2):
                table = pq.read_table(
                    Workdir(tmp_path).runs / f"{arm}-0-{fold}-{seed}" / "predictions" / "test_random.parquet"
                )
                gold, predicted = (
                    [tags[1] == "B-who" for tags in table[name].to_pylist()] for name in ("gold", "predicted")
                )
                rows = [[one and other, other, one] for one, other in zip(gold, predicted, strict=True)]
                counts.append(Counts(table["id"].to_pylist(), np.array(rows, np.int64)))
                recalls.append(sum(row[0] for row in rows) / sum(gold))
            of_fold.append(sum(recalls) / 2)
        arms.append(counts)
        means.append(of_fold)
    assert found.difference == paired_bootstrap(*arms, rounds=ROUNDS)["recall"]
    # 40 tweets are held out per 100 that are trained on.
    expected = fold_test(*means, test_share=0.4)
    assert (found.folds.effect, found.folds.p) == pytest.approx((expected.effect, expected.p))
    assert found.folds.num_pairs == 3


def test_p_values_are_adjusted_among_the_arms_of_a_set_and_measure(tmp_path):
    arms = {"random": (0.5, 0.1), "1s": (0.53, 0.1), "2s": (0.6, 0.08), "3s": (0.52, 0.05)}
    write_arms(tmp_path, arms, folds=0, seeds=(1,), positives=80)
    found = compare(tmp_path, rounds=ROUNDS)
    keys = {(one.test_set, one.measure) for one in found.contrasts}
    assert len(keys) == 4 * 4
    for key in keys:
        alike = [one for one in found.contrasts if (one.test_set, one.measure) == key]
        assert [one.holm_p for one in alike] == holm([one.difference.p for one in alike])
        assert len(alike) == 3
    assert any(one.holm_p > one.difference.p for one in found.contrasts)


def test_several_kinds_of_negatives_are_compared_apart(tmp_path):
    of_set = tweets("t", 10, random=20, mined_1s=20)
    arms = {"random": first(of_set, 5, random=10), "2s": first(of_set, 5, mined_1s=10)}
    one_run_each(tmp_path, arms, of_set)
    found = compare(tmp_path, rounds=ROUNDS)
    effects = {
        name: contrast(found, "2s_1", f"false_alarms{name}").difference.effect for name in ("", ".random", ".mined_1s")
    }
    assert effects == {"": 0, ".random": -500, ".mined_1s": 500}


def test_classifiers(tmp_path):
    generator = np.random.default_rng(0)
    targets_NC = (generator.random((60, 2)) < 0.4).astype(np.int8)
    targets_NC[40:] = -1
    ids, trials = [f"t{number}" for number in range(60)], []
    for name, noise in (("random", 1.0), ("2s", 0.1)):
        scores_NC = np.clip(targets_NC * (1 - noise) + noise * generator.random((60, 2)), 0, 1).astype(np.float32)
        run = {"test_random": (ids, targets_NC, scores_NC)}
        write_classifier_run(tmp_path, name, run, ["rain", "wind"], [0.5, 0.5], train_set=name)
        trials.append(planned(f"{name}_1", [(None, 1, name)], {"train.train_set": name}))
    write_plan(tmp_path, trials, metric="test_random.roc_auc.macro")
    found = compare(tmp_path, rounds=ROUNDS)
    scores = read_json(Workdir(tmp_path).runs / "2s" / "result.json")["metrics"]["test_random"]
    of_trial = found.trials[1].scores["test_random"]
    assert found.kind == "classifier"
    assert found.trials[1].metric.mean == scores["roc_auc"]["macro"] == of_trial["macro_auc"].mean
    assert of_trial["f1"].mean == scores["micro_f1"] == pytest.approx(contrast(found, "2s_1", "f1").difference.other)
    assert of_trial["macro_ap"].mean == scores["average_precision"]["macro"]
    assert contrast(found, "2s_1", "f1").verdict.startswith("better by")
    assert found.test_sets[0].negatives == {"all": 20}


def test_rounds_are_enough_for_the_arms_that_are_compared(tmp_path):
    arms = {name: first(SET, 30) for name in ("a", "b", "c", "d")}
    one_run_each(tmp_path, {"random": first(SET, 10), **arms})
    found = compare(tmp_path, rounds=100)
    assert found.rounds == 799
    alike = [contrast(found, f"{name}_1", "f1") for name in arms]
    # As little as can be, and still evidence after the adjustment.
    assert [one.difference.p for one in alike] == [2 / 800] * 4
    assert [one.holm_p for one in alike] == pytest.approx([0.01] * 4)
    assert all(one.verdict.startswith("better by") for one in alike)
    assert compare(tmp_path, rounds=1_000).rounds == 1_000
    (Workdir(tmp_path).runs / "d" / "result.json").unlink()
    assert compare(tmp_path, rounds=100).rounds == 599


def test_rounds_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("scalemine.sweep.compare._MOST_ROUNDS", 300)
    one_run_each(tmp_path, {"random": first(SET, 10), **{name: first(SET, 30) for name in "abc"}})
    assert compare(tmp_path, rounds=100).rounds == 300
    assert compare(tmp_path, rounds=400).rounds == 400


@pytest.mark.parametrize(("folds", "tested"), [(0, False), (1, False), (2, True)])
def test_verdicts_say_whether_folds_were_tested(tmp_path, folds, tested):
    write_arms(tmp_path, {"random": (0.2, 0.1), "2s": (0.9, 0.1)}, folds=folds, positives=60)
    one = contrast(compare(tmp_path, rounds=ROUNDS), "2s_0", "recall")
    assert (one.folds_holm_p is not None) == tested
    assert one.verdict.endswith(" with these models; not tested over folds") != tested


def test_folds_that_differ_alike_are_not_tested(tmp_path):
    runs = {name: [(fold, 1, f"{name}{fold}") for fold in range(3)] for name in ("random", "2s")}
    for name, hits in (("random", 10), ("2s", 30)):
        for fold, _, run in runs[name]:
            write_tagger_run(tmp_path, run, {"test_random": (SET, first(SET, hits))}, fold=fold, train_set=name)
    trials = [planned(f"{name}_1", own, {"train.train_set": name}) for name, own in runs.items()]
    write_plan(tmp_path, trials, folds=3)
    one = contrast(compare(tmp_path, rounds=ROUNDS), "2s_1", "recall")
    assert (one.folds.sd, one.folds.p) == (0, None)
    assert one.verdict.endswith("with these models; not tested over folds")


# --- What cannot be compared


def test_permuted_tweets_are_refused(tmp_path):
    one_run_each(tmp_path, {"random": first(SET, 20), "2s": first(SET, 30)})
    path = Workdir(tmp_path).runs / "2s" / "predictions" / "test_random.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.r_[1, 0, 2 : table.num_rows]), path)
    found = compare(tmp_path, rounds=ROUNDS)
    assert found.contrasts == ()
    assert [one.why for one in found.not_compared] == ["the predictions have the same tweets in another order"]


def test_other_labels_of_the_same_tweets_are_refused(tmp_path):
    one_run_each(tmp_path, {"random": first(SET, 20), "2s": first(SET, 30)})
    path = Workdir(tmp_path).runs / "2s" / "predictions" / "test_random.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "gold", table["predicted"]), path)
    found = compare(tmp_path, rounds=ROUNDS)
    assert [one.why for one in found.not_compared] == ["the same tweets have other labels"]


def test_held_out_folds_are_compared_only_where_they_hold_the_same_tweets(tmp_path):
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.6, 0.1)}, folds=2, seeds=(1,), positives=10)
    found = compare(tmp_path, rounds=ROUNDS)
    (missing,) = found.not_compared
    assert (missing.trial, missing.base, missing.test_set) == ("2s_0", "random_0", "held_out")
    assert missing.why.startswith("tested on other tweets: 20 of 40 and 40 are the same")
    assert {one.test_set for one in found.contrasts} == {"test_random", "test_random_plus", "test_1s", "test_2s"}
    write_arms(
        tmp_path / "lr", {"random": (0.5, 0.1)}, folds=2, seeds=(1,), positives=10,
        space=({"train.lr": 1e-3}, {"train.lr": 1e-4}),
    )  # fmt: skip
    found = compare(tmp_path / "lr", rounds=ROUNDS)
    assert found.not_compared == ()
    assert "held_out" in {one.test_set for one in found.contrasts}
    assert next(one for one in found.test_sets if one.name == "held_out").num_tweets == 2 * 40


def test_unfinished_runs_are_left_out_and_counted(tmp_path):
    write_arms(tmp_path, {"random": (0.5, 0.1), "1s": (0.6, 0.1), "2s": (0.6, 0.1)}, folds=2, positives=10)
    runs = Workdir(tmp_path).runs
    for name in ("random-0-0-1", "1s-0-1-2", *(f"2s-0-{fold}-{seed}" for fold in (0, 1) for seed in (1, 2))):
        (runs / name / "result.json").unlink()
    found = compare(tmp_path, rounds=ROUNDS)
    assert [(trial.num_runs, trial.num_planned) for trial in found.trials] == [(3, 4), (3, 4), (0, 4)]
    one = contrast(found, "1s_0", "f1")
    assert (one.difference.num_runs, one.num_planned) == (2, 4)
    assert {(one.trial, one.test_set, one.why) for one in found.not_compared if one.trial == "2s_0"} == {
        ("2s_0", None, "no run of 2s_0 is finished")
    }
    recalls = {
        (fold, seed): read_json(runs / f"1s-0-{fold}-{seed}" / "result.json")["metrics"]["test_random"]["recall"]
        for fold, seed in ((0, 1), (0, 2), (1, 1))
    }
    assert found.trials[1].scores["test_random"]["recall"] == summarise(recalls)


def test_predictions_that_are_gone_are_said(tmp_path):
    one_run_each(tmp_path, {"random": first(SET, 20), "2s": first(SET, 30)})
    (Workdir(tmp_path).runs / "2s" / "predictions" / "test_random.parquet").unlink()
    found = compare(tmp_path, rounds=ROUNDS)
    assert [one.why for one in found.not_compared] == ["the predictions of one of them are not there"]


def test_no_finished_run(tmp_path):
    write_plan(tmp_path, [planned("a", [(None, 1, "a")], {})])
    with pytest.raises(InputError, match="no run of sweep exp is finished"):
        compare(tmp_path)


# --- Who is compared with whom

SETS = {
    "lstm_random": {"train.model": "lstm_crf", "train.train_set": "random"},
    "lstm_2s": {"train.model": "lstm_crf", "train.train_set": "2s"},
    "cnn_random": {"train.model": "cnn_crf", "train.train_set": "random"},
    "cnn_2s": {"train.model": "cnn_crf", "train.train_set": "2s"},
}


def test_each_is_compared_with_the_base_of_the_same_other_settings(tmp_path):
    assert opponents(tmp_path, SETS) == ("lstm_random", {"lstm_2s": "lstm_random", "cnn_2s": "cnn_random"})


def test_where_none_has_the_same_other_settings_the_base_of_the_sweep_serves(tmp_path):
    settings = {**SETS, "long_2s": {"train.model": "lstm_crf", "train.train_set": "2s", "train.epochs": 40}}
    base, found = opponents(tmp_path, settings)
    assert (base, found["long_2s"]) == ("lstm_random", "lstm_random")


def test_the_first_is_the_base_where_nothing_is_trained_on_random(tmp_path):
    settings = {"a": {"train.train_set": "1s"}, "b": {"train.train_set": "2s"}}
    assert opponents(tmp_path, settings) == ("a", {"b": "a"})


def test_hyper_parameters_alone_are_compared_with_the_first_that_is_finished(tmp_path):
    settings = {name: {"train.lr": number} for number, name in enumerate("abc")}
    assert opponents(tmp_path, settings, unfinished=("a",)) == ("b", {"a": "b", "c": "b"})


def test_what_is_not_finished_is_trained_on_what_the_others_are(tmp_path):
    settings = {"a": {"train.lr": 1}, "b": {"train.lr": 2}, "c": {"train.lr": 2, "train.train_set": "2s"}}
    base, found = opponents(tmp_path, settings, unfinished=("b",))
    assert (base, found) == ("a", {"c": "b"})
    del settings["c"]
    assert opponents(tmp_path / "alone", settings, unfinished=("b",)) == ("a", {"b": "a"})


def test_a_train_set_as_base_is_compared_where_all_else_is_the_same(tmp_path):
    found = opponents(tmp_path, SETS, "2s")
    assert found == ("lstm_2s", {"lstm_random": "lstm_2s", "cnn_random": "cnn_2s"})


@pytest.mark.parametrize("base", ["lstm_2s", "stm_2", "model=lstm_crf, train_set=2s"])
def test_a_trial_as_base_is_that_of_all(tmp_path, base):
    found = opponents(tmp_path, SETS, base)
    assert found == ("lstm_2s", dict.fromkeys(("lstm_random", "cnn_random", "cnn_2s"), "lstm_2s"))


def test_an_arm_as_base_is_compared_where_all_else_is_the_same(tmp_path):
    arms = {name: name.split("_")[0] for name in SETS}
    assert opponents(tmp_path, SETS, "cnn", arms) == (
        "cnn_random",
        {"lstm_random": "cnn_random", "lstm_2s": "cnn_2s"},
    )


TRAINED_ON = {
    "both_3s": {"train.train_set": "3s"},
    "guarded_3s": {"train.train_uri": "guarded/train_3s.parquet"},
    "random": {"train.train_set": "random"},
}


def by_batch_size(trained_on=TRAINED_ON):
    """Return settings and arms of a sweep of train sets by batch size."""
    settings = {
        f"{arm}_{size}": {**own, "train.batch_size": size} for arm, own in trained_on.items() for size in (8, 16)
    }
    return settings, {name: name.rpartition("_")[0] for name in settings}


@pytest.mark.parametrize("base", ["both_3s", "guarded_3s", "random", "guarded", None])
def test_arms_by_batch_size_are_compared_with_the_base_of_their_own(tmp_path, base):
    settings, arms = by_batch_size()
    side = {None: "random", "guarded": "guarded_3s"}.get(base, base)
    found = opponents(tmp_path, settings, base, arms)
    sizes = {f"{arm}_{size}": f"{side}_{size}" for arm in TRAINED_ON if arm != side for size in (8, 16)}
    assert found == (f"{side}_8", sizes)
    assert {trial.side for trial in compare(tmp_path, base=base, rounds=1).trials} == set(TRAINED_ON)


def test_a_set_and_a_file_of_the_same_name_are_not_the_same(tmp_path):
    settings, _ = by_batch_size()
    base, found = opponents(tmp_path, settings, "3s")
    assert (base, found) == (
        "both_3s_8",
        {
            "guarded_3s_8": "both_3s_8", "guarded_3s_16": "both_3s_16",
            "random_8": "both_3s_8", "random_16": "both_3s_16",
        },
    )  # fmt: skip
    assert list(dict.fromkeys(trial.side for trial in compare(tmp_path, rounds=1).trials)) == [
        "3s", "guarded/3s", "random",
    ]  # fmt: skip
    assert opponents(tmp_path, settings, "guarded/3s")[0] == "guarded_3s_8"


def test_arms_that_differ_in_more_than_the_train_set_are_the_sides(tmp_path):
    trained_on = {
        "plain": {"train.train_set": "random"},
        "slow": {"train.train_set": "2s", "train.lr": 1e-4},
        "fast": {"train.train_set": "2s", "train.lr": 1e-2},
    }
    settings, arms = by_batch_size(trained_on)
    assert opponents(tmp_path, settings, "slow", arms) == (
        "slow_8", {"plain_8": "slow_8", "plain_16": "slow_16", "fast_8": "slow_8", "fast_16": "slow_16"},
    )  # fmt: skip
    base, found = opponents(tmp_path, settings, None, arms)
    assert (base, found) == (
        "plain_8", {"slow_8": "plain_8", "slow_16": "plain_16", "fast_8": "plain_8", "fast_16": "plain_16"},
    )  # fmt: skip


def test_train_sets_that_go_through_each_arm_are_the_sides(tmp_path):
    arms = {name: name.split("_")[0] for name in SETS}
    assert opponents(tmp_path, SETS, None, arms) == (
        "lstm_random",
        {"lstm_2s": "lstm_random", "cnn_2s": "cnn_random"},
    )


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["3s", "random"], ["3s", "random"]),
        (["3s", "guarded/train_3s.parquet"], ["3s", "guarded/3s"]),
        (["/a/apart/train_3s.parquet", "/b/apart/train_3s.parquet", "3s"], ["a/apart/3s", "b/apart/3s", "3s"]),
        (["/a/train_3s.parquet", "/a/train_2s.parquet"], ["3s", "2s"]),
        (["a/train_3s.parquet", "a/train_3s.conll"], ["a/train_3s.parquet", "a/train_3s.conll"]),
        (["3s", "train_3s.parquet"], ["3s", "train_3s.parquet"]),
        (["s3://x/3s.parquet", "s3://y/3s.parquet"], ["x/3s", "y/3s"]),
    ],
)
def test_names_of_train_sets_tell_them_apart(tmp_path, settings, names):
    own = {
        f"t{number}": {"train.train_uri" if "." in one else "train.train_set": one}
        for number, one in enumerate(settings)
    }
    opponents(tmp_path, own)
    assert [trial.side for trial in compare(tmp_path, rounds=1).trials] == names


def test_of_several_files_of_random_the_first_is_the_base(tmp_path):
    settings = {name: {"train.train_uri": f"{name}/train_random.parquet"} for name in ("b", "a")}
    settings = {"c": {"train.train_uri": "c/train_2s.parquet"}, **settings}
    assert opponents(tmp_path, settings) == ("b", {"c": "b", "a": "b"})


def test_files_are_train_sets_too(tmp_path):
    settings = {name: {"train.train_uri": f"/data/train_{name}.parquet"} for name in ("2s", "random")}
    assert opponents(tmp_path, settings) == ("random", {"2s": "random"})


@pytest.mark.parametrize(
    ("base", "said"),
    [("bert", "no trial or arm has this name"), ("random", ""), ("_", "several have this in their names")],
)
def test_bases_that_are_not_known_are_refused_with_the_names(tmp_path, base, said):
    if not said:
        assert opponents(tmp_path, SETS, base)[0] == "lstm_random"
        return
    with pytest.raises(
        InputError,
        match=rf"--base {base}: {said} .train sets: random . 2s; trials: model=lstm_crf, train_set=random . model=",
    ):
        opponents(tmp_path, SETS, base)


def test_a_base_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="--base lstm_2s: no run of lstm_2s is finished"):
        opponents(tmp_path, SETS, "lstm_2s", unfinished=("lstm_2s",))


def test_json_holds_everything_but_tweets(tmp_path):
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.6, 0.1)}, folds=2, seeds=(1,), positives=10)
    found = compare(tmp_path, rounds=ROUNDS)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert "secret" not in text
    assert "t-p0" not in text
    assert found.as_dict()["contrasts"][0]["difference"]["num_runs"] == 2
    assert compare(tmp_path, rounds=ROUNDS) == found


def test_two_guesses_of_one_rate_do_not_differ(tmp_path):
    of_set = tweets("t", 200, random=200)
    one_run_each(
        tmp_path, {name: guessed(of_set, 0.5, 0.2, seed) for seed, name in enumerate(("random", "2s"))}, of_set
    )
    assert all(one.verdict.startswith("no evidence") for one in compare(tmp_path, rounds=1_000).contrasts)
