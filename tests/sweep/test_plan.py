from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import assert_read_or_refused
from scalemine.config import InputError
from scalemine.store import Workdir, is_plain_name
from scalemine.sweep.plan import PLAN, Plan, PlannedRun, PlannedTrial, find_sweep, find_sweeps, read_plan, value_at


def trial(name: str, arm: str | None = None, *, stopped: int | None = None, **settings: Any) -> PlannedTrial:
    values = {f"train.{key}": value for key, value in settings.items()}
    return PlannedTrial(name, arm, values, stopped, (PlannedRun(7, None, f"run-{name}"),))


def plan_of(*trials: PlannedTrial, **others: Any) -> Plan:
    values = {
        "name": "lr", "why": "", "metric": "held_out.f1", "mode": "max", "search": "grid", "scheduler": "none",
        "folds": 0, "seeds": (7,), "concurrency": 1, "num_trials": len(trials), "trials": trials,
    }  # fmt: skip
    return Plan(**values | others)


WORDS = st.text(max_size=8)
SEEDS = st.integers(0, 2**63 - 1)
NAMES = WORDS.filter(is_plain_name)
RUNS = st.builds(PlannedRun, SEEDS, st.none() | st.integers(0, 9), NAMES)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
TRIALS = st.builds(
    PlannedTrial, NAMES, st.none() | WORDS, st.dictionaries(WORDS, VALUES, max_size=3), st.none() | st.integers(1, 9),
    st.lists(RUNS, max_size=3).map(tuple),
)  # fmt: skip


@given(
    st.builds(
        Plan, WORDS, WORDS, WORDS, st.sampled_from(["max", "min"]), WORDS, WORDS, st.integers(0, 9),
        st.lists(SEEDS, min_size=1, max_size=3).map(tuple), st.integers(1, 9), st.integers(1, 9),
        st.lists(TRIALS, max_size=3).map(tuple),
    )
)  # fmt: skip
def test_a_plan_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    folder = tmp_path_factory.mktemp("plan")
    plan.write(folder)
    assert read_plan(folder) == plan


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "", "a/b", "a\\b", "\0"])
def test_a_plan_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    for one in (trial(name), replace(trial("a"), runs=(PlannedRun(7, None, name),))):
        plan_of(one).write(tmp_path)
        with pytest.raises(InputError, match=r"plan.json: damaged \(.* is no name\)"):
            read_plan(tmp_path)


@pytest.mark.parametrize("values", [{"concurrency": 0}, {"seeds": ()}, {"folds": -1}])
def test_a_plan_that_cannot_be(tmp_path: Path, values: dict[str, Any]) -> None:
    plan_of(trial("a"), **values).write(tmp_path)
    with pytest.raises(InputError, match=r"plan.json: damaged"):
        read_plan(tmp_path)


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 5_000), marks=pytest.mark.slow)])
def test_damaged_plans_are_read_or_refused_in_one_line(tmp_path: Path, seeds: range) -> None:
    plan_of(trial("a", lr=0.1), trial("b", lr=0.2, arm="x", stopped=1), folds=2).write(tmp_path)
    assert_read_or_refused(
        tmp_path / PLAN, seeds, lambda: all(isinstance(text, str) for text in read_plan(tmp_path).labels().values())
    )


def test_runs_per_trial() -> None:
    assert plan_of().runs_per_trial == 1
    assert plan_of(folds=5, seeds=(1, 2)).runs_per_trial == 10


def labels(*trials: PlannedTrial) -> list[str]:
    found = plan_of(*trials).labels()
    assert list(found) == [one.name for one in trials]
    return list(found.values())


def test_labels_name_what_differs_and_nothing_else() -> None:
    trials = [trial(f"t{lr}", lr=lr, hidden=64, crf="fast") for lr in (1e-5, 2e-5)]
    assert labels(*trials) == ["lr=1e-05", "lr=2e-05"]


def test_labels_of_keys_that_only_some_have() -> None:
    assert labels(trial("a", lr=1.0), trial("b", lr=1.0, hidden=8)) == ["a", "hidden=8"]


def test_labels_of_arms() -> None:
    trials = [trial("a", "no", train_uri="sets/no.parquet"), trial("b", "1s", train_uri="sets/1s.parquet")]
    assert labels(*trials) == ["no", "1s"]


def test_labels_of_arms_that_go_through_a_space() -> None:
    trials = [trial(f"{arm}{size}", arm, model=arm, batch_size=size) for arm in ("crf", "svm") for size in (8, 16)]
    assert labels(*trials) == ["crf, batch_size=8", "crf, batch_size=16", "svm, batch_size=8", "svm, batch_size=16"]


def test_labels_of_paths_are_short() -> None:
    trials = [trial("a", vectors="/data/glove.txt"), trial("b", vectors="/data/crisis/")]
    assert labels(*trials) == ["vectors=glove.txt", "vectors=crisis"]


def test_a_single_trial_is_called_by_its_name_or_its_arm() -> None:
    assert labels(trial("lr1", lr=1.0)) == ["lr1"]
    assert labels(trial("lr1", "plain", lr=1.0)) == ["plain"]


def test_a_key_of_another_section_keeps_its_section() -> None:
    trials = [PlannedTrial(str(value), None, {"labels.threshold": value}, None, ()) for value in (0.25, 0.5)]
    assert labels(*trials) == ["labels.threshold=0.25", "labels.threshold=0.5"]


def test_sweeps_are_found_by_their_plans(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    for name in ("lr", "arms"):
        plan_of(name=name).write(workdir.sweeps / name)
    (workdir.sweeps / "begun").mkdir()
    assert find_sweeps(workdir) == [workdir.sweeps / "arms", workdir.sweeps / "lr"]
    assert find_sweeps(workdir, "lr") == [workdir.sweeps / "lr"]
    assert (workdir.sweeps / "lr" / PLAN).exists()
    with pytest.raises(InputError, match=r"no sweep 'begun' here \(there are: arms, lr\)$"):
        find_sweeps(workdir, "begun")


def test_the_only_sweep_is_found_and_of_several_one_is_named(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    plan_of().write(workdir.sweeps / "lr")
    assert find_sweep(workdir) == find_sweep(workdir, "lr") == workdir.sweeps / "lr"
    plan_of().write(workdir.sweeps / "arms")
    assert find_sweep(workdir, "lr") == workdir.sweeps / "lr"
    with pytest.raises(InputError, match=r"several sweeps here; name one with --sweep \(there are: arms, lr\)$"):
        find_sweep(workdir)
    with pytest.raises(InputError, match=r"no sweep 'less' here \(there are: arms, lr\)$"):
        find_sweep(workdir, "less")


@pytest.mark.parametrize("name", [None, "lr"])
def test_no_sweep_at_all(tmp_path: Path, name: str | None) -> None:
    for find in (find_sweep, find_sweeps):
        with pytest.raises(InputError, match=r"no sweep here \(expected sweeps/NAME/plan.json\); scalemine sweep"):
            find(Workdir(tmp_path / "none"), name)


METRICS = {"held_out": {"f1": 0.5, "num_tweets": 3, "undefined": None, "is_cut": True, "text": "x", "f1_ci": [0, 1]}}
RESULT = {"name": "run-a", "metrics": METRICS}


def test_value_at_a_path() -> None:
    assert value_at(RESULT, "held_out.f1") == 0.5
    count = value_at(RESULT, "held_out.num_tweets")
    assert (count, type(count)) == (3.0, float)
    assert math.isnan(value_at(RESULT, "held_out.undefined"))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("test.f1", "run run-a has no 'test' there, but held_out"),
        ("held_out.f2", "run run-a has no 'f2' there, but f1, num_tweets, "),
        ("held_out.f1.low", "run run-a has no 'low' there, but a number"),
        ("held_out.undefined.low", "run run-a has no 'low' there, but a number"),
        ("held_out", "held_out is no number in run run-a; name one"),
        ("held_out.is_cut", "held_out.is_cut is no number in run run-a"),
        ("held_out.text", "held_out.text is no number in run run-a"),
        ("held_out.f1_ci", "held_out.f1_ci is no number in run run-a"),
    ],
)
def test_value_at_a_path_that_leads_to_no_number(metric: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        value_at(RESULT, metric)
    assert str(caught.value).startswith(f"sweep.metric: {metric}")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
