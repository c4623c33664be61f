from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalemine.config import Config, InputError
from scalemine.sweep import resources as module
from scalemine.sweep.resources import Resources, resources_of

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with 8 cores, 64 GiB and no GPU, whatever the tests run on."""
    machine = SimpleNamespace(cores=8, free=64 * GIB, gpus=0)
    monkeypatch.setattr(module, "num_cores", lambda: machine.cores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=machine.free))
    monkeypatch.setattr("torch.cuda.device_count", lambda: machine.gpus)
    return machine


def config(concurrency: int = 1, *, compute: dict[str, Any] | None = None, train: Any = None, **sweep: Any) -> Config:
    values = {"vectors": "glove.txt", **(train or {})}
    here = {"executor": "ray" if concurrency > 1 else "inline", **(compute or {})}
    return Config.model_validate(
        {"workdir": "work", "train": values, "compute": here, "sweep": {"concurrency": concurrency, **sweep}}
    )


def found(*arguments: Any, **others: Any) -> Resources:
    one = config(*arguments, **others)
    return resources_of(one, [one])


def refusal(*arguments: Any, **others: Any) -> str:
    with pytest.raises(InputError) as caught:
        found(*arguments, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Cores


@pytest.mark.parametrize(
    ("concurrency", "sweep", "threads", "processes", "expected"),
    [
        (1, {}, None, 1, 8),
        (2, {}, None, 1, 4),
        (3, {}, None, 1, 2),
        (8, {}, None, 1, 1),
        (2, {"cpus_per_run": 3}, None, 1, 3),
        (2, {"cpus_per_run": 0.5}, None, 1, 1),
        (2, {"cpus_per_run": 3}, 2, 1, 2),
        (2, {}, 1, 1, 1),
        (2, {}, None, 2, 2),
        (2, {}, None, 3, 1),
        (1, {"cpus_per_run": 4}, None, 2, 2),
    ],
)
def test_cores_are_shared_out(
    concurrency: int, sweep: dict[str, Any], threads: int | None, processes: int, expected: int
) -> None:
    compute = {} if threads is None else {"threads": threads}
    one = found(concurrency, compute=compute, train={"processes": processes}, **sweep)
    assert (one.concurrency, one.processes, one.threads) == (concurrency, processes, expected)
    assert one.cpus == concurrency * processes * expected <= 8


def test_on_a_cluster_cores_are_those_that_are_asked_for(machine: SimpleNamespace) -> None:
    machine.cores, machine.free = 1, 0  # this machine does not matter
    cluster = {"executor": "ray", "address": "head:6379"}
    assert found(20, compute=cluster).threads == 1
    assert found(20, compute=cluster, cpus_per_run=6).threads == 6
    assert found(20, compute={**cluster, "threads": 3}, gpus_per_run=1).threads == 3


def test_two_at_a_time_want_workers() -> None:
    assert "sweep.concurrency: 2 runs at a time want workers; give --executor ray" in refusal(
        2, compute={"executor": "inline"}
    )
    assert found(1, compute={"executor": "inline"}).concurrency == 1


@pytest.mark.parametrize(
    ("concurrency", "sweep", "threads", "processes", "expected"),
    [
        (9, {}, None, 1, "9 runs of 1 process(es) with 1 core(s) want 9 cores, this machine has 8"),
        (3, {}, None, 3, "3 runs of 3 process(es) with 1 core(s) want 9 cores, this machine has 8"),
        (1, {"cpus_per_run": 9}, None, 1, "1 runs of 1 process(es) with 9 core(s) want 9 cores"),
        (2, {"cpus_per_run": 5}, None, 1, "2 runs of 1 process(es) with 5 core(s) want 10 cores"),
        (2, {}, 5, 1, "2 runs of 1 process(es) with 5 core(s) want 10 cores"),
        (2, {}, 3, 2, "2 runs of 2 process(es) with 3 core(s) want 12 cores"),
    ],
)
def test_more_cores_than_there_are(
    concurrency: int, sweep: dict[str, Any], threads: int | None, processes: int, expected: str
) -> None:
    compute = {} if threads is None else {"threads": threads}
    said = refusal(concurrency, compute=compute, train={"processes": processes}, **sweep)
    assert said.startswith("sweep.concurrency: ")
    assert expected in said


# Memory


def encoder(folder: Path, num_bytes: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"part{number}.safetensors").write_bytes(bytes(num_bytes // 2))
    return folder


def memory(path: Path, **train: Any) -> int:
    return found(train={"vectors": None, "encoder": str(path), **train}).memory_bytes


def test_memory_grows_with_the_encoder_and_more_where_it_is_tuned(tmp_path: Path) -> None:
    small, large = (encoder(tmp_path / str(size), size << 20) for size in (2, 6))
    assert memory(large, freeze=True) - memory(small, freeze=True) == 4 << 20
    # Weights, gradient, and two moments.
    assert memory(large) - memory(small) == 4 * (4 << 20)
    assert memory(small) > memory(small, freeze=True) > found().memory_bytes
    assert memory(small, processes=3) == 3 * memory(small)


def test_vectors_and_baselines_load_no_encoder() -> None:
    assert found(train={"vectors": None, "model": "svm"}).memory_bytes == found().memory_bytes


def test_the_largest_trial_decides(tmp_path: Path) -> None:
    small, large = (
        config(train={"vectors": None, "encoder": str(encoder(tmp_path / str(size), size << 20))}) for size in (2, 6)
    )
    expected = resources_of(large, [large]).memory_bytes
    for trials in ([small, large], [large, small]):
        assert resources_of(small, trials).memory_bytes == expected
    with pytest.raises(InputError, match="trials with 1 and with 2 do not share workers"):
        resources_of(small, [small, config(train={"processes": 2})])


def test_more_memory_than_is_free(machine: SimpleNamespace) -> None:
    each = found().memory_bytes
    machine.free = 3 * each
    assert found(3).memory_bytes == each
    machine.free -= 1
    said = refusal(3)
    assert f"sweep.concurrency: 3 runs want about {3 * each / GIB:.1f} GiB of memory" in said
    assert f"and {machine.free / GIB:.1f} GiB are free" in said


# GPUs


def test_gpus_are_counted(machine: SimpleNamespace) -> None:
    said = refusal(2, gpus_per_run=0.5)
    assert "sweep.gpus_per_run: 2 runs with 0.5 GPU(s) want 1, this machine has 0" in said
    machine.gpus = 1
    assert found(2, gpus_per_run=0.5).gpus == 0.5
    assert "3 runs with 0.5 GPU(s) want 2, this machine has 1" in refusal(3, gpus_per_run=0.5)
    assert "2 runs with 1 GPU(s) want 2, this machine has 1" in refusal(2, gpus_per_run=1)
    assert found(8, gpus_per_run=0).gpus == 0


def test_shares_of_gpus_do_not_add_up(machine: SimpleNamespace) -> None:
    machine.gpus = 2
    assert found(2, gpus_per_run=0.6).gpus == 0.6
    assert "3 runs with 0.6 GPU(s) want 3, this machine has 2" in refusal(3, gpus_per_run=0.6)
    assert found(4, gpus_per_run=0.4).gpus == 0.4
    assert "5 runs with 0.4 GPU(s) want 3" in refusal(5, gpus_per_run=0.4)


def test_where_nothing_is_said_a_process_has_a_gpu_if_there_are_any(machine: SimpleNamespace) -> None:
    assert found(8).gpus is None
    machine.gpus = 2
    assert found(2).gpus is None
    assert "3 runs with 1 GPU(s) want 3, this machine has 2" in refusal(3)
    assert "2 runs with 2 GPU(s) want 4, this machine has 2" in refusal(2, train={"processes": 2})
    assert found(3, train={"device": "cpu"}).gpus is None


def test_a_share_of_a_gpu_is_also_one_of_its_memory(machine: SimpleNamespace) -> None:
    machine.gpus = 1
    assert found(2, gpus_per_run=0.5).memory_fraction == 0.5
    assert found(2, gpus_per_run=0.5, memory_fraction=0.4).memory_fraction == 0.4
    assert found(1, gpus_per_run=1).memory_fraction is None
    assert found(1).memory_fraction is None
    assert found(1, gpus_per_run=0).memory_fraction is None
    assert found(1, memory_fraction=0.3).memory_fraction == 0.3


def test_more_memory_of_a_gpu_than_it_has(machine: SimpleNamespace) -> None:
    machine.gpus = 2
    said = refusal(2, gpus_per_run=0.5, memory_fraction=0.6)
    assert "sweep.memory_fraction: 2 runs share a GPU, with 60% of its memory each" in said
    assert found(2, gpus_per_run=0.6, memory_fraction=0.6).memory_fraction == 0.6  # each has a GPU of its own
    assert found(2, gpus_per_run=1, memory_fraction=1).memory_fraction == 1
    assert "4 runs share a GPU" in refusal(2, gpus_per_run=0.25, memory_fraction=0.3)


# What Ray is told


def test_workers_are_as_many_as_runs_at_a_time(machine: SimpleNamespace) -> None:
    machine.gpus = 1
    one = found(2, gpus_per_run=0.5, cpus_per_run=3)
    compute = one.compute(config(2).compute)
    assert (compute.executor, compute.workers, compute.threads, compute.gpus_per_worker) == ("ray", 2, 3, 0.5)
    assert (one.gpus_of_worker, one.cpus_of_worker, one.cpus) == (0.5, 3.0, 6)


def test_a_run_of_several_processes_reserves_for_itself(machine: SimpleNamespace) -> None:
    machine.gpus = 2
    one = found(1, gpus_per_run=2, train={"processes": 2})
    assert (one.gpus_of_worker, one.cpus_of_worker, one.cpus) == (0.0, 0.0, 8)


def test_it_is_said_in_words(machine: SimpleNamespace) -> None:
    assert str(Resources(1, 1, 8, None, None, 3 * GIB // 2)) == (
        "1 run at a time, each with 8 cores, about 1.5 GiB of memory"
    )
    assert str(Resources(2, 2, 2, 0.5, 0.5, 2 * GIB)) == (
        "2 runs at a time, each with 2 cores in each of 2 processes, 0.5 of a GPU, 50% of a GPU's memory, "
        "about 2.0 GiB of memory"
    )
