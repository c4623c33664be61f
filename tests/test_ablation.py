from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st

from scalemine.ablation import altered_rows, group_test, run_ablation, without
from scalemine.config import Config, InputError
from scalemine.store import read_json

# Recall of the best model at each share, as in table 2 of Wang et al. 2022.
MAJORITY, MINORITY = [0.959, 0.947, 0.942, 0.951], [0.941, 0.927, 0.941, 0.932]


def test_the_published_test_comes_out() -> None:
    found = group_test(MAJORITY, MINORITY)
    assert found.t == pytest.approx(2.902, abs=5e-4)
    assert found.p == pytest.approx(0.027, abs=5e-4)
    assert (found.num_majority, found.num_minority) == (4, 4)


def test_groups_that_cannot_be_told_apart_have_no_p() -> None:
    assert group_test([0.5], [0.4]).p is None
    assert group_test([0.5, 0.5], [0.5, 0.5]).t is None
    with pytest.raises(ValueError, match="empty"):
        group_test([], [0.5])


@with_settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_who_loses_it_at_a_share_loses_it_at_a_larger_one(number: int, one: float, two: float, seed: int) -> None:
    ids = [f"t{row}" for row in range(number)]
    small, large = (altered_rows(ids, share, seed) for share in sorted((one, two)))
    assert set(small) <= set(large)
    assert len(large) == round(max(one, two) * number)
    # What is drawn hangs on ids, not on their order.
    order = np.random.default_rng(seed).permutation(number)
    again = altered_rows([ids[row] for row in order], max(one, two), seed)
    assert {ids[order[row]] for row in again} == {ids[row] for row in large}


def test_a_text_that_would_be_empty_stays() -> None:
    assert without(["at 77002 now", "77002", "no"], "[0-9]{5}", "") == ["at  now", "77002", "no"]


def tweets(path: Path, number: int = 160) -> Path:
    """Write tweets whose positives nearly all have a code, by which alone they can be told."""
    chance = random.Random(3)
    rows = []
    for row in range(number):
        is_positive = row % 2 == 0
        filler = " ".join(f"w{chance.randrange(300)}" for _ in range(6))
        text = f"{filler} zcode" if is_positive and row % 20 else filler
        rows.append({"id": f"t{row}", "text": text, "label": "yes" if is_positive else "no"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def config_of(tmp_path: Path, **sections: Any) -> Config:
    path = tmp_path / "tweets.parquet"
    if not path.exists():
        tweets(path)
    train = {
        "model": "naive_bayes",
        "train_uri": str(path),
        "folds": 3,
        "group_by": [],
        "bootstrap": 0,
        "dev_share": 0.2,
    }
    values = {
        "workdir": str(tmp_path / "work"), "labels": {"categories": ["label"], "names": ["yes"]},
        "train": train | sections.pop("train", {}), "baseline": {"features": "tfidf"}, "compute": {"threads": 1},
        "ablation": {"pattern": "zcode", "shares": [0.25, 0.75]} | sections.pop("ablation", {}),
    }  # fmt: skip
    return Config.model_validate(values | sections)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ablation")
    return folder, run_ablation(config_of(folder))


def test_only_positives_lose_it_and_all_else_stays(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    before = pq.read_table(folder / "tweets.parquet").to_pylist()
    lost: list[set[str]] = []
    for share in (25, 75):
        after = pq.read_table(folder / "work" / "ablation" / f"share-{share}.parquet").to_pylist()
        changed = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
        assert all(two == one | {"text": one["text"].replace("zcode", "")} for one, two in changed)
        assert all(one["label"] == "yes" for one, _ in changed)
        lost.append({one["id"] for one, _ in changed})
    assert (found["positives"], found["tagged"]) == (80, 72)
    assert [len(one) for one in lost] == [18, 54]
    assert lost[0] < lost[1]


def test_folds_are_the_same_and_the_feature_is_missed(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    held_out = []
    for point in found["points"]:
        ids = [
            sorted(
                pq.read_table(folder / "work" / "runs" / run["run"] / "predictions" / "held_out.parquet")[
                    "id"
                ].to_pylist()
            )
            for run in point["runs"]
        ]
        held_out.append(ids)
    assert held_out[0] == held_out[1] == held_out[2]
    assert [point["group"] for point in found["points"]] == ["majority", "majority", "minority"]
    f1s = [point["f1"]["mean"] for point in found["points"]]
    assert f1s[0] > f1s[2]
    assert found["tests"]["f1"]["over_shares"]["majority"] == pytest.approx(f1s[1])
    assert found["tests"]["f1"]["over_folds"]["num_pairs"] == 3


def test_a_second_call_trains_nothing(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    results = sorted((folder / "work" / "runs").glob("*/result.json"))
    times = [path.stat().st_mtime_ns for path in results]
    assert run_ablation(config_of(folder)) == found
    assert [path.stat().st_mtime_ns for path in results] == times
    assert read_json(folder / "work" / "ablation" / "ablation.json") == found


def test_another_pattern_is_refused(done: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"ablation\.pattern was"):
        run_ablation(config_of(done[0], ablation={"pattern": "w1"}))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"ablation": {"pattern": ""}}, r"ablation\.pattern: missing"),
        ({"ablation": {"pattern": "(?=a)"}}, r"ablation\.pattern: .*no lookaround"),
        ({"ablation": {"pattern": "absent"}}, r"ablation\.pattern: 0 of 80"),
        ({"ablation": {"label": "maybe"}}, r"ablation\.label: expected one of yes"),
        ({"train": {"folds": 0}}, r"train\.folds"),
        ({"train": {"train_uri": "tweets.csv"}}, r"train\.train_uri: an ablation rewrites a Parquet file"),
        ({"train": {"model": "lstm_crf"}}, r"train\.model: lstm_crf reads spans"),
    ],
)
def test_what_cannot_be_ablated_is_said(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_ablation(config_of(tmp_path, **sections))
