from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scalemine.config import InputError
from scalemine.executor import num_cores
from scalemine.submit.profile import PROFILES, Profile, load_profile, this_machine


def test_profiles_that_come_along() -> None:
    sizes = {path.stem: load_profile(path.stem) for path in PROFILES.glob("*.yaml")}
    assert {name: (one.nodes, one.gpus, one.workers) for name, one in sizes.items()} == {
        "cpu": (1, 0, 2), "1gpu": (1, 1, 1), "8gpu": (1, 8, 8), "4x8gpu": (4, 8, 32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "threads", "workers"),
    [
        ({"cpus": 8}, 8, 1),
        ({"cpus": 8, "threads": 3}, 3, 2),
        ({"cpus": 8, "gpus": 2}, 4, 2),
        ({"cpus": 8, "gpus": 2, "threads": 1, "nodes": 5}, 1, 10),
        ({"cpus": 1}, 1, 1),
    ],
)
def test_workers_follow_from_nodes(values: dict[str, int], threads: int, workers: int) -> None:
    profile = Profile.model_validate({"memory": 1, **values})
    assert (profile.threads_of_worker, profile.workers) == (threads, workers)
    assert profile.workers * threads <= profile.nodes * profile.cpus


def test_a_file_of_a_site_begins_from_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"base": "8gpu", "hours": 2, "slurm": {"directives": {"partition": "gpu"}}}))
    found = load_profile(str(path))
    assert (found.gpus, found.hours, found.slurm.directives) == (8, 2, {"partition": "gpu"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpus: 4", "memory: Field required"),
        ("{cpus: 4, memory: 1, gpu: 1}", "gpu: Extra inputs are not permitted"),
        ("{cpus: 4, memory: 1, gpus: 2, threads: 3}", "want 3 each, and it has 4 cpus"),
        ("{cpus: 1, memory: 1, gpus: 2}", "2 worker"),
        ("- cpus", "expected keys such as cpus: 8, got list"),
        ("base: huge", "base: expected 1gpu, 4x8gpu, 8gpu, cpu; got 'huge'"),
        ("{cpus: 4, memory: 1, slurm: {notice: 1}}", "slurm.notice"),
        ("{cpus: 4, memory: 1, ray: {address: auto}}", "ray.address"),
        ("{cpus: [", "while parsing"),
    ],
)
def test_profiles_that_are_wrong(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_profile(str(path))
    assert expected in str(error.value)


def test_profiles_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 1gpu, 4x8gpu, 8gpu, cpu, or a file"):
        load_profile("2gpu")
    with pytest.raises(InputError, match="No such file"):
        load_profile(str(tmp_path / "none.yaml"))


def test_this_machine() -> None:
    found = this_machine()
    assert (found.nodes, found.cpus) == (1, num_cores())
    assert found.memory >= 1
