from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.config import Config, InputError, SweepConfig, load_config
from scalemine.sweep.space import TpeSearcher, Trial, grid, random_trials, seeds_of
from scalemine.training import family
from scalemine.training.family import run_settings
from scalemine.training.runs import family_of

BASE = Config(workdir=Path("work"))
LR_RANGE = {"train.lr": {"log_uniform": [1e-5, 2e-4]}}


def sweep(space: dict[str, Any] | None = None, **others: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": space or {}, **others})


def base(**sections: Any) -> Config:
    return Config.model_validate({"workdir": "work", **sections})


def names(trials: list[Trial]) -> list[str]:
    return [trial.name for trial in trials]


def refusal(space: dict[str, Any] | None = None, *, of: Config = BASE, **others: Any) -> str:
    with pytest.raises(InputError) as caught:
        grid(of, sweep(space, **others))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Grids


def test_a_model_of_an_arm_has_its_own_defaults() -> None:
    of = base(train={"model": "text_cnn", "max_length": 64, "train_uri": "x.parquet"})
    arms = {name: {"train.model": name} for name in ("text_cnn", "cnn_bilstm", "classifier")}
    found = {trial.arm: trial.config(of).train for trial in grid(of, sweep(arms=arms | {"fast": {"train.lr": 0.5}}))}
    assert {arm: (one.lr, one.hidden, one.epochs, one.max_length) for arm, one in found.items()} == {
        "text_cnn": (1e-3, 1_024, 100, 64), "cnn_bilstm": (1e-4, 128, 100, 64), "classifier": (2e-5, 128, 40, 64),
        "fast": (0.5, 1_024, 100, 64),
    }  # fmt: skip


def test_grid_is_the_product_in_order() -> None:
    space = {"train.lr": [1e-5, 2e-5, 3e-5], "train.batch_size": [8, 16], "train.crf": ["fast", "pytorch-crf"]}
    trials = grid(BASE, sweep(space))
    expected = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    assert [trial.overrides for trial in trials] == expected
    assert len(set(names(trials))) == 12
    for trial, values in zip(trials, expected, strict=True):
        config = trial.config(BASE)
        assert (config.train.lr, config.train.batch_size, config.train.crf) == tuple(values.values())


def test_each_arm_goes_through_the_space() -> None:
    arms = {"glove": {"train.vectors": "glove.txt", "train.lr": 0.1}, "plain": {}}
    trials = grid(BASE, sweep({"train.batch_size": [8, 32]}, arms=arms))
    assert [(trial.arm, trial.overrides) for trial in trials] == [
        ("glove", {"train.vectors": "glove.txt", "train.lr": 0.1, "train.batch_size": 8}),
        ("glove", {"train.vectors": "glove.txt", "train.lr": 0.1, "train.batch_size": 32}),
        ("plain", {"train.batch_size": 8}),
        ("plain", {"train.batch_size": 32}),
    ]
    assert [name.rsplit("_", 1)[0] for name in names(trials)] == [
        f"{arm}_batch_size-{size}" for arm in ("glove", "plain") for size in (8, 32)
    ]


def test_arms_alone() -> None:
    trials = grid(BASE, sweep(arms={"slow": {"train.lr": 1e-6}, "as_it_is": {}}))
    assert [(trial.arm, dict(trial.overrides)) for trial in trials] == [("slow", {"train.lr": 1e-6}), ("as_it_is", {})]


def test_no_space_and_no_arms_is_the_config_itself() -> None:
    [trial] = grid(BASE, sweep())
    assert trial.name.startswith("base_")
    assert trial.config(BASE) == BASE


def test_a_choice_may_be_written_out() -> None:
    assert grid(BASE, sweep({"train.crf": {"choice": ["fast"]}})) == grid(BASE, sweep({"train.crf": ["fast"]}))


def test_values_are_kept_as_the_config_holds_them() -> None:
    space = {"train.train_set": [False, "1s"], "train.lr": ["1e-5"], "train.batch_size": [8.0]}
    trial = grid(BASE, sweep(space))[0]
    assert dict(trial.overrides) == {"train.train_set": "no", "train.lr": 1e-5, "train.batch_size": 8}
    assert type(trial.overrides["train.batch_size"]) is int
    assert json.loads(json.dumps(dict(trial.overrides))) == trial.overrides


def test_trials_that_come_to_the_same_come_once() -> None:
    assert len(grid(BASE, sweep({"train.lr": [1e-5, "1e-5", 0.00001, 2e-5]}))) == 2
    # The static vectors of a tagger, and the kernel of a classical model, are of no matter to the other.
    space = {"train.model": ["svm", "linear"], "train.hidden": [64, 128], "baseline.kernel": ["linear", "rbf"]}
    trials = grid(BASE, sweep(space))
    assert [dict(trial.overrides) for trial in trials] == [
        {"train.model": "svm", "baseline.kernel": "linear"},
        {"train.model": "svm", "baseline.kernel": "rbf"},
        {"train.model": "linear", "train.hidden": 64},
        {"train.model": "linear", "train.hidden": 128},
    ]


def test_a_name_says_the_settings() -> None:
    of = base(train={"lr": 2e-5})
    trials = grid(
        of, sweep({"train.lr": [2e-5, 1e-4], "train.model": ["linear"], "train.vectors": [None, "/a/b c.txt"]})
    )
    assert [name.rsplit("_", 1)[0] for name in names(trials)] == [
        "model-linear", "model-linear_vectors-b-c.txt", "lr-0.0001_model-linear",
        "lr-0.0001_model-linear_vectors-b-c.txt",
    ]  # fmt: skip


def test_a_name_is_fit_for_a_folder_however_long_the_values() -> None:
    keys = ["train.encoder", "train.train_uri", "train.dev_uri", "train.revision", "train.vocabulary", "train.hidden"]
    space: dict[str, Any] = {key: ["../../x y\n" * 30] for key in keys[:4]} | {key: [10**9] for key in keys[4:]}
    [trial] = grid(BASE, sweep(space))
    assert re.fullmatch(r"\w[\w.\-]{0,106}", trial.name)


points = st.lists(st.sampled_from([1e-5, 2e-5, 3e-5, 5e-5]), min_size=1, max_size=3)
sizes = st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=3)


more_points = st.lists(st.sampled_from([2e-5, 1e-4]), max_size=2)


@settings(max_examples=15, deadline=None)
@given(points, sizes, more_points, st.lists(st.sampled_from([1, 2]), max_size=2))
def test_a_wider_space_keeps_the_names(
    lrs: list[float], sizes: list[int], more_lrs: list[float], patience: list[int]
) -> None:
    narrow = grid(BASE, sweep({"train.lr": lrs, "train.batch_size": sizes}))
    space = {"train.patience": [*patience, BASE.train.patience], "train.batch_size": sizes, "train.lr": more_lrs + lrs}
    wide = grid(BASE, sweep(space))
    assert set(names(narrow)) <= set(names(wide))
    of_wide = {trial.name: trial for trial in wide}
    for trial in narrow:
        assert of_wide[trial.name].config(BASE) == trial.config(BASE)


def test_names_stay_when_only_place_and_pace_change() -> None:
    space = {"train.lr": [1e-5, 1e-4]}
    other = base(seed=7, train={"micro_batch": 2, "device": "cpu"}, sweep={"seeds": [0, 1]}, compute={"threads": 1})
    assert names(grid(BASE, sweep(space))) == names(grid(other, sweep(space)))
    assert not set(names(grid(BASE, sweep(space)))) & set(names(grid(base(train={"epochs": 3}), sweep(space))))


def test_same_name_means_same_runs() -> None:
    space = {"train.model": ["svm", "linear", "classifier"], "train.dropout": [0.1, 0.4], "loss.name": ["bce", "asl"]}
    trials = grid(BASE, sweep(space))
    decisive = [run_settings(config, family_of(config)) for config in (trial.config(BASE) for trial in trials)]
    assert all(one != other for one, other in itertools.combinations(decisive, 2))
    assert len(trials) == 1 + 2 + 2


# Trials


def test_config_of_a_trial_is_no_sweep_and_has_its_seed() -> None:
    of = base(seed=5, sweep={"space": {"train.lr": [1e-4]}, "seeds": [1, 2]})
    [trial] = grid(of, of.sweep)
    assert trial.config(of).sweep == SweepConfig()
    assert trial.config(of).seed == 5
    assert trial.config(of, 2).seed == 2
    assert trial.config(of, 2).model_dump(exclude={"seed", "sweep", "train"}) == of.model_dump(
        exclude={"seed", "sweep", "train"}
    )


def test_a_trial_survives_json() -> None:
    space = {"train.normaliser": ["none"], "labels.nested": [[["a", "b"]], []], "train.model": ["classifier"]}
    for trial in grid(BASE, sweep(space)):
        again = Trial(**json.loads(json.dumps(dataclasses.asdict(trial))))
        assert again == trial
        assert hash(again) == hash(trial)
        assert again.config(BASE) == trial.config(BASE)


def test_seeds() -> None:
    assert seeds_of(BASE, sweep()) == (42,)
    assert seeds_of(BASE, sweep(seeds=[3, 1])) == (3, 1)


# Refusals


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.pateince", "sweep.space: train.pateince: unknown key; did you mean train.patience?"),
        ("lr", "sweep.space: lr: unknown key; did you mean train.lr?"),
        ("trian.lr", "did you mean train.lr?"),
        ("train", "sweep.space: train: unknown key"),
        ("train.lr.more", "sweep.space: train.lr.more: unknown key"),
        ("zzzzzz", "sweep.space: zzzzzz: unknown key; expected a key of the config"),
        ("workdir", "sweep.space: workdir cannot vary: a sweep has one"),
        ("seed", "give sweep.seeds"),
        ("why", "changes no result"),
        ("tracking", "changes no result"),
        ("compute.threads", "changes no result"),
        ("sweep.trials", "not part of itself"),
        ("corpus.uri", "decides what is mined"),
        ("positives.uri", "decides what is mined"),
        ("mining.bands", "decides what is mined"),
        ("guard.hours", "decides what is mined"),
        ("index.kind", "decides what is mined"),
        ("sets.mix", "decides what is mined"),
        ("encoder.model", "vary train.encoder"),
        ("train.name", "named by their settings"),
        ("train.folds", "the same tweets"),
        ("train.test_sets", "the same tweets"),
        ("labels.names", "what is learnt"),
        ("train.micro_batch", "changes no result"),
        ("loss.name", "loss.name makes no difference to what is trained here; drop it"),
    ],
)
def test_keys_that_cannot_vary(key: str, expected: str) -> None:
    assert expected in refusal({key: ["a"] if key != "loss.name" else ["bce", "asl"]})


def test_arms_may_not_have_these_keys_either() -> None:
    assert refusal(arms={"a": {"train.folds": 3}}).startswith("sweep.arms.a: train.folds cannot vary")
    assert refusal(arms={"a": {"train.fodls": 3}}).startswith("sweep.arms.a: train.fodls: unknown key; did you mean")


def test_an_arm_may_need_another_pace() -> None:
    arms = {"large": {"train.encoder": "large", "train.micro_batch": 2}, "small": {}}
    large, small = grid(BASE, sweep(arms=arms))
    assert (large.config(BASE).train.micro_batch, small.config(BASE).train.micro_batch) == (2, None)


def test_what_no_name_tells_apart_cannot_vary_in_a_space() -> None:
    # Runs are named by their settings, so a key that is none of them would make two trials one folder.
    for key in family._INCIDENTAL - {"encoder", "revision"}:
        assert "cannot vary" in refusal({f"train.{key}": [1, 2]})


def test_a_training_set_makes_no_difference_beside_a_file() -> None:
    of = base(train={"train_uri": "tweets.parquet"})
    assert "train.train_set makes no difference" in refusal({"train.train_set": ["1s", "2s"]}, of=of)


def test_values_that_cannot_be_are_named() -> None:
    said = refusal({"train.batch_size": [16], "train.lr": [1e-4, -1]})
    assert said.startswith("sweep.space (train.batch_size=16, train.lr=-1): train.lr: ")
    assert "greater than 0" in said
    assert refusal({"train.batch_size": [16]}, arms={"a": {"train.lr": 0}}).startswith(
        "sweep.arms.a and sweep.space (train.lr=0, train.batch_size=16): train.lr: "
    )


def test_values_that_do_not_go_together() -> None:
    said = refusal({"train.model": ["classifier"], "loss.name": ["bce", "asl"], "loss.pos_weight": [None, 3]})
    assert "loss.pos_weight: is of bce" in said


def test_arms_that_are_the_same() -> None:
    assert "sweep.arms: a and b come to the same settings" in refusal(arms={"a": {"train.lr": 2e-5}, "b": {}})


def test_too_many() -> None:
    numbers = list(range(1, 102))
    assert "at most 10,000 trials; got 10,201" in refusal({"train.hidden": numbers, "train.epochs": numbers})
    many = sweep(LR_RANGE, search="random", trials=5_001, arms={"a": {}, "b": {"train.crf": "fast"}})
    with pytest.raises(InputError, match="got 10,002"):
        random_trials(BASE, many, 0)
    with pytest.raises(InputError, match="got 10,002"):
        TpeSearcher(BASE, many, 0)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_a_range_of_fractions_for_whole_numbers(kind: str) -> None:
    for open_search in (lambda s: random_trials(BASE, s, 0), lambda s: TpeSearcher(BASE, s, 0)):
        with pytest.raises(InputError, match=r"train\.batch_size: .*integer"):
            open_search(sweep({"train.batch_size": {kind: [4, 64]}}, search="random"))


# Random points

MIXED = {
    "train.lr": {"log_uniform": [1e-5, 1e-1]},
    "train.dropout": {"uniform": [0.1, 0.5]},
    "train.batch_size": {"log_int_uniform": [1, 64]},
    "train.patience": {"int_uniform": [1, 4]},
    "train.crf": ["fast", "pytorch-crf"],
}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 12), st.integers(0, 12))
def test_more_trials_only_add(seed: int, few: int, more: int) -> None:
    first = random_trials(BASE, sweep(MIXED, search="random", trials=few), seed)
    second = random_trials(BASE, sweep(MIXED, search="random", trials=few + more), seed)
    assert second[:few] == first
    for trial in second:
        train = trial.config(BASE).train
        assert 1e-5 <= train.lr <= 1e-1
        assert 0.1 <= train.dropout <= 0.5
        assert 1 <= train.batch_size <= 64
        assert 1 <= train.patience <= 4


def test_another_key_leaves_the_draws_of_the_others() -> None:
    narrow = random_trials(BASE, sweep(LR_RANGE, search="random", trials=5), 1)
    wide = random_trials(BASE, sweep({"train.crf": ["fast"], **LR_RANGE}, search="random", trials=5), 1)
    assert [trial.overrides["train.lr"] for trial in narrow] == [trial.overrides["train.lr"] for trial in wide]


def test_seeds_draw_others_and_arms_share_points() -> None:
    arms = {"a": {}, "b": {"train.crf": "fast"}}
    trials = random_trials(BASE, sweep(LR_RANGE, search="random", trials=4, arms=arms), 0)
    assert [trial.arm for trial in trials] == ["a", "b"] * 4
    lrs = [trial.overrides["train.lr"] for trial in trials]
    assert lrs[::2] == lrs[1::2]
    assert len(set(lrs)) == 4
    others = random_trials(BASE, sweep(LR_RANGE, search="random", trials=4), 1)
    assert not set(lrs) & {trial.overrides["train.lr"] for trial in others}


def test_draws_are_uniform_as_said() -> None:
    trials = random_trials(BASE, sweep(MIXED, search="random", trials=600), 3)
    configs = [trial.config(BASE).train for trial in trials]
    # Of 600, 4.5 standard deviations from the expected count.
    for share, hits in [
        (0.5, sum(config.lr < 1e-3 for config in configs)),
        (0.25, sum(config.dropout < 0.2 for config in configs)),
        (0.25, sum(config.patience == 1 for config in configs)),
        (0.25, sum(config.patience == 4 for config in configs)),
        (0.5, sum(config.crf == "fast" for config in configs)),
        # ln 3 / ln 129: what rounds to 1 lies between 0.5 and 1.5
        (0.226, sum(config.batch_size == 1 for config in configs)),
    ]:
        assert abs(hits - 600 * share) < 4.5 * (600 * share * (1 - share)) ** 0.5


def test_random_points_of_lists_come_once() -> None:
    trials = random_trials(BASE, sweep({"train.lr": [1e-5, 1e-4, 1e-3]}, search="random", trials=60), 0)
    assert sorted(trial.overrides["train.lr"] for trial in trials) == [1e-5, 1e-4, 1e-3]


# Parzen estimators

TPE = {"search": "tpe"}
SPACE = {"train.dropout": {"uniform": [0.0, 0.9]}, "train.crf": ["fast", "pytorch-crf"], "train.hidden": [64, 128]}


def value_of(trial: Trial) -> float:
    return -abs(trial.overrides["train.dropout"] - 0.6) - 0.2 * (trial.overrides["train.crf"] == "fast")


def run_search(searcher: TpeSearcher, numbers: range) -> list[Trial]:
    asked = []
    for number in numbers:
        asked.append(searcher.ask(number))
        searcher.tell(asked[-1], value_of(asked[-1]))
    return asked


def test_a_search_that_starts_again_goes_on_as_before() -> None:
    whole = run_search(TpeSearcher(BASE, sweep(SPACE, **TPE), 1), range(16))
    assert len({trial.name for trial in whole}) == 16
    again = TpeSearcher(BASE, sweep(SPACE, **TPE), 1)
    for trial in whole[:12]:
        again.tell(Trial(**json.loads(json.dumps(dataclasses.asdict(trial)))), value_of(trial))
    assert run_search(again, range(12, 16)) == whole[12:]


def test_what_is_under_way_counts() -> None:
    first, forgetful = (TpeSearcher(BASE, sweep(SPACE, **TPE), 1) for _ in range(2))
    for searcher in (first, forgetful):
        run_search(searcher, range(11))
    for number in range(11, 14):
        first.ask(number)
    assert forgetful.ask(14) != first.ask(14)


def test_it_finds_what_is_better() -> None:
    best, others = [], []
    for mode, found in (("max", best), ("min", others)):
        trials = run_search(TpeSearcher(BASE, sweep(SPACE, mode=mode, **TPE), 0), range(30))
        found += [value_of(trial) for trial in trials[15:]]
    assert sum(best) / 15 > -0.2 > -0.5 > sum(others) / 15


def test_each_arm_is_searched_by_itself() -> None:
    arms = {"a": {}, "b": {"train.lr": 1e-4}}
    both = TpeSearcher(BASE, sweep(SPACE, arms=arms, **TPE), 0)
    asked = run_search(both, range(24))
    assert [trial.arm for trial in asked] == ["a", "b"] * 12
    alone = TpeSearcher(BASE, sweep(SPACE, arms=arms, **TPE), 0)
    for trial in asked[:22]:
        if trial.arm == "a":
            alone.tell(trial, value_of(trial))
    assert alone.ask(22) == asked[22]
    assert alone.ask(23) != asked[23]


def test_failed_and_stopped_trials() -> None:
    plain, failing = (TpeSearcher(BASE, sweep(SPACE, **TPE), 0) for _ in range(2))
    for trial in run_search(plain, range(11)):
        failing.tell(trial, value_of(trial))
    lost = failing.ask(40)
    failing.tell(lost, float("nan"))
    assert failing.ask(11) == plain.ask(11)

    # What was stopped counts for less than what ran to its end, however good it looked.
    stopped = TpeSearcher(BASE, sweep(SPACE, **TPE), 0)
    asked = [stopped.ask(number) for number in range(20)]
    for trial in asked:
        high = trial.overrides["train.dropout"] > 0.45
        stopped.tell(trial, 9.0 if high else 0.1, pruned=1 if high else 0)
    found = [stopped.ask(number).overrides["train.dropout"] for number in range(20, 30)]
    assert sum(dropout <= 0.45 for dropout in found) >= 8


def test_results_of_another_space_are_passed_over() -> None:
    wide = {**SPACE, "train.hidden": [32, 64, 128]}
    trials = random_trials(BASE, sweep(wide, search="random", trials=30), 0)
    inside = [trial for trial in trials if trial.overrides["train.hidden"] != 32]
    assert 10 < len(inside) < 30
    of_all, of_inside = (TpeSearcher(BASE, sweep(SPACE, **TPE), 0) for _ in range(2))
    for searcher, told in ((of_all, trials), (of_inside, inside)):
        for trial in told:
            searcher.tell(trial, value_of(trial))
    assert of_all.ask(0) == of_inside.ask(0)
    # The other way round, more values than before, all results count.
    widened, unknowing = (TpeSearcher(BASE, sweep(wide, **TPE), 0) for _ in range(2))
    for trial in inside:
        widened.tell(trial, value_of(trial))
    assert widened.ask(0) != unknowing.ask(0)


def test_keys_of_no_matter_are_left_out_of_what_is_told() -> None:
    space = {"train.model": ["svm", "linear"], "train.dropout": {"uniform": [0.0, 0.9]}, "baseline.C": [0.1, 1.0]}
    searcher = TpeSearcher(BASE, sweep(space, **TPE), 0)
    asked = []
    for number in range(16):
        asked.append(searcher.ask(number))
        searcher.tell(asked[-1], asked[-1].overrides.get("train.dropout", 0.5))
    kinds = {tuple(trial.overrides) for trial in asked}
    assert kinds == {("train.model", "baseline.C"), ("train.model", "train.dropout")}


def test_whole_numbers_and_values_that_are_no_text() -> None:
    space = {"train.batch_size": {"log_int_uniform": [2, 64]}, "labels.nested": [[], [["a", "b"]]]}
    of = base(train={"model": "classifier"})
    searcher = TpeSearcher(of, sweep(space, **TPE), 0)
    for number in range(14):
        trial = searcher.ask(number)
        assert type(trial.overrides["train.batch_size"]) is int
        assert trial.overrides["labels.nested"] in ([], [["a", "b"]])
        searcher.tell(trial, 1.0 / trial.overrides["train.batch_size"])


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"tpe wants Optuna: pip install 'scalemine\[optuna\]'"):
        TpeSearcher(BASE, sweep(SPACE, **TPE), 0)


# Configurations that come with the project


@pytest.mark.parametrize(
    ("name", "trials", "runs"),
    [("paper_exp1", 5, 25), ("paper_exp1_cpu", 5, 50), ("paper_exp1_tuned_cpu", 4, 24), ("paper_grid", 30, 150),
     ("paper_grid_cpu", 30, 90), ("paper_exp2", 18, 90), ("paper_exp2_cpu", 6, 30), ("paper_fig10_cpu", 8, 40),
     ("negatives_cpu", 12, 60), ("smoke_sweep", 4, 12)],
)  # fmt: skip
def test_sweeps_of_the_project(name: str, trials: int, runs: int) -> None:
    config = load_config(Path(__file__).parents[2] / f"configs/{name}.yaml", [], needs=())
    found = grid(config, config.sweep)
    assert len(found) == trials
    assert len(found) * config.train.folds * len(seeds_of(config, config.sweep)) == runs
    assert config.train.bootstrap == 0  # the comparison draws its own
