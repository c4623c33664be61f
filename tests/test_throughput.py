from __future__ import annotations

import importlib.resources

import pytest
import yaml

from scalemine.config import ComputeConfig
from scalemine.throughput import CORPUS_SIZES, Effort, Work, worker_price

PRICES = yaml.safe_load((importlib.resources.files("scalemine") / "prices.yaml").read_text("utf-8"))


def effort(worker: str = "a:1", *, machine: str = "cpu", peak: float | None = 1e10) -> Effort:
    return Effort(worker, machine, peak, tokens=100, padded_tokens=125, flops=2e9)


def work_of(*efforts: Effort, seconds: float = 10.0) -> Work:
    work = Work(seconds=seconds)
    for one in efforts:
        work.add(50, one)
    return work


def test_rates_and_share_of_the_peak() -> None:
    # 4 x 2e9 operations in 10 s, on two workers that reach 1e10 and 3e10 a second.
    work = work_of(effort(), effort("a:2", peak=3e10), effort(), effort())
    found = work.describe(ComputeConfig(executor="ray", workers=2), 1)
    assert (found["rows"], found["rows_again"], found["workers"], found["machine"]) == (200, 0, 2, "cpu")
    assert (found["tweets_per_second"], found["tokens_per_second"]) == (20, 40)
    assert found["padded_tokens_per_second"] == 50
    assert found["peak_flops_per_second"] == 4e10
    assert found["share_of_peak"] == pytest.approx(8e8 / 4e10)


def test_a_worker_that_was_replaced_adds_no_peak() -> None:
    work = work_of(effort("a:1"), effort("a:2"), effort("a:3"))
    assert work.describe(ComputeConfig(executor="ray", workers=2), 1)["peak_flops_per_second"] == 2e10


def test_no_peak_no_share() -> None:
    found = work_of(effort(peak=None)).describe(ComputeConfig(), 1)
    assert found["peak_flops_per_second"] is None
    assert found["share_of_peak"] is None


def test_hours_and_price_of_larger_corpora() -> None:
    work = work_of(*[effort()] * 2, seconds=4.0)  # 25 tweets/s, two workers
    found = work.describe(ComputeConfig(executor="ray", workers=2, price_per_hour=0.5), 3)
    assert found["price_per_hour"] == 0.5
    assert [row["tweets"] for row in found["larger"]] == list(CORPUS_SIZES)
    for row in found["larger"]:
        assert row["worker_hours"] == pytest.approx(row["tweets"] / 12.5 / 3_600)
        assert row["price"] == pytest.approx(row["worker_hours"] / 2)


def test_work_adds_up() -> None:
    work = work_of(effort(), seconds=4.0)
    work.rows_again = 7
    # No worker measures twice: the second wave says nothing of the peak.
    work += work_of(effort(peak=None), effort("b:1", machine="NVIDIA L4", peak=None), seconds=2.0)
    assert (work.rows, work.rows_again, work.seconds) == (150, 7, 6)
    assert (work.tokens, work.padded_tokens, work.flops) == (300, 375, 6e9)
    assert work.peaks == {"a:1": 1e10, "b:1": None}
    assert work.machines == {"cpu", "NVIDIA L4"}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
    ],
)
def test_gpus_are_priced_by_their_name(machine: str, name: str) -> None:
    assert worker_price(machine, ComputeConfig(), 8) == PRICES["gpu"][name]
    assert worker_price(machine, ComputeConfig(gpus_per_worker=0.5), 8) == PRICES["gpu"][name] / 2


def test_cores_are_priced_by_threads() -> None:
    assert worker_price("cpu", ComputeConfig(), 4) == pytest.approx(4 * PRICES["core"])


def test_a_price_that_nobody_knows_is_not_said() -> None:
    assert worker_price("Example GPU 9", ComputeConfig(), 1) is None
    assert worker_price("Example GPU 9", ComputeConfig(price_per_hour=2.0), 1) == 2
    assert worker_price("cpu", ComputeConfig(price_per_hour=0.0), 1) == 0
    found = work_of(effort(), effort("b:1", machine="Example GPU 9")).describe(ComputeConfig(), 1)
    assert found["price_per_hour"] is None
    assert [row["price"] for row in found["larger"]] == [None] * len(CORPUS_SIZES)


def test_the_table_has_a_date_and_prices() -> None:
    assert str(PRICES["date"]).startswith("20")
    assert all(price > 0 for price in (PRICES["core"], *PRICES["gpu"].values()))
