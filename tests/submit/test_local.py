from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from scalemine.config import InputError, load_config
from scalemine.submit import local
from scalemine.submit.job import find_job, make_job
from scalemine.submit.profile import Profile
from scalemine.submit.targets import submit
from submit import fakes
from submit.fakes import a_job, until

ONE = Profile(cpus=2, memory=2, threads=1)


def test_a_job_with_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notes = fakes.use_fakes(tmp_path, monkeypatch)
    job, source = a_job(tmp_path, profile=ONE)  # into a folder with a blank
    sent = submit(job, "local", source)
    until(lambda: local.state(sent) == "done")
    assert local.log(sent).strip().endswith("the stage speaks")
    assert not (notes / "srun").exists()
    ray = (notes / "ray").read_text().splitlines()
    assert [line.split()[0] for line in ray] == ["began", "ended"]
    assert "--node-ip-address=127.0.0.1" in ray[0]
    assert re.search(r"compute\.address=127\.0\.0\.1:[23]\d{4}", (notes / "stage").read_text())


def test_a_job_that_is_stopped_and_one_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notes = fakes.use_fakes(tmp_path, monkeypatch)
    for end, state in ((local.stop, "stopped"), (lambda sent: psutil.Process(sent.handle["pid"]).kill(), "failed")):
        (notes / "lasting").touch()
        (notes / "stage").unlink(missing_ok=True)
        job, source = a_job(tmp_path, profile=ONE)
        sent = submit(job, "local", source)
        until((notes / "stage").exists)
        assert local.state(sent) == "running"
        children = psutil.Process(sent.handle["pid"]).children(recursive=True)
        end(sent)
        until(lambda sent=sent, state=state: local.state(sent) == state)
        for child in children:
            if state == "failed":
                child.kill()
        psutil.wait_procs(children, timeout=30)
    local.stop(sent)  # one that has ended: nothing to do


def test_one_machine_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is one machine"):
        local.render(a_job(tmp_path, profile=Profile(nodes=2, cpus=1, memory=1))[0])
    with pytest.raises(InputError, match="this is one machine"):
        local.render(a_job(tmp_path, "embed", ONE, shares=2)[0])


@pytest.mark.slow
def test_a_stage_on_a_ray_cluster_of_its_own(
    tmp_path: Path, settings_of: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "config.yaml"
    source.write_text(yaml.safe_dump({**settings_of(Path("work")), "workdir": "work"}))
    job = make_job("embed", source, load_config(source), [], ONE)
    sent = submit(job, "local", source)
    assert find_job(job.id) == sent
    process = psutil.Process(sent.handle["pid"])
    started = until(lambda: process.children(recursive=True))
    until(lambda: local.state(sent) != "running", 240)
    assert local.state(sent) == "done", local.log(sent)
    assert "are embedded in" in local.log(sent)
    assert list((tmp_path / "work" / "embeddings").glob("*.arrow"))
    assert not (sent.home / "token").exists()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
