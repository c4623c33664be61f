from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from scalemine.config import InputError, load_config
from scalemine.submit import ray_jobs
from scalemine.submit.job import Job, find_job, make_job
from scalemine.submit.profile import Profile, RaySite
from scalemine.submit.targets import submit
from submit.fakes import a_job, until, write_program

SITE = RaySite(address="http://127.0.0.1:8265")


def ray_job(folder: Path, site: RaySite = SITE, **options: Any) -> tuple[Job, Path]:
    return a_job(folder, profile=Profile(cpus=1, memory=1, ray=site), **options)


def private(path: Path, text: str = "secret" * 8) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_requirements_are_pinned_to_what_is_installed() -> None:
    found = ray_jobs.pinned_requirements()
    assert f"numpy=={version('numpy')}" in found
    assert f"torch=={version('torch').split('+')[0]}" in found
    assert all(one.count("==") == 1 for one in found)
    names = {one.split("==")[0] for one in found}
    assert "ray" not in names  # the cluster's own
    assert not names & {"pytest", "mypy", "ruff"}


def test_the_configuration_goes_along_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    job, _ = ray_job(tmp_path)
    found = yaml.safe_load(ray_jobs.render(job)["runtime_env.yaml"])
    assert found["working_dir"] == str(job.home)
    (module,) = found["py_modules"]
    assert (Path(module) / "cli.py").exists()
    assert found["pip"] == ray_jobs.pinned_requirements()
    assert found["env_vars"]["HF_HUB_OFFLINE"] == "1"
    assert not any("TOKEN" in key for key in found["env_vars"])  # the dashboard shows them
    own, _ = ray_job(tmp_path, RaySite(address=SITE.address, install=False))
    assert not {"pip", "py_modules"} & ray_jobs.runtime_env(own).keys()


def test_the_entry_point_runs_where_the_user_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, unpacked = tmp_path / "it's here", tmp_path / "unpacked"
    folder.mkdir()
    unpacked.mkdir()
    monkeypatch.chdir(folder)
    job, _ = ray_job(tmp_path)
    write_program(tmp_path / "python", "import os, sys; print(os.getcwd(), *sys.argv[1:], sep='\\n')")
    environment = {"RAY_ADDRESS": "10.0.0.1:6379", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(
        ray_jobs.entrypoint(job), shell=True, cwd=unpacked, capture_output=True, text=True, env=environment, check=True
    )
    words = said.stdout.splitlines()
    assert words[:4] == [str(folder), "-m", "scalemine", "mine"]
    assert words[-3:] == ["--set", "compute.address=10.0.0.1:6379", f"{unpacked}/some config.yaml"]
    assert "why=it's $HOME; `x`" in words


def test_what_cannot_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    job, source = ray_job(tmp_path, records=tmp_path / "jobs")
    with pytest.raises(InputError, match="where is the token of the cluster"):
        submit(job, "ray", source)
    open_to_all = private(tmp_path / "token")
    open_to_all.chmod(0o644)
    with pytest.raises(InputError, match="others may read this token"):
        submit(ray_job(tmp_path, RaySite(address=SITE.address, token=open_to_all))[0], "ray", source)
    with pytest.raises(InputError, match="the token cannot be read"):
        submit(ray_job(tmp_path, RaySite(address=SITE.address, token=tmp_path / "none"))[0], "ray", source)
    with pytest.raises(InputError, match="where is the cluster"):
        submit(ray_job(tmp_path, RaySite())[0], "ray", source)
    with pytest.raises(InputError, match="only with --to slurm"):
        ray_jobs.render(ray_job(tmp_path, stage="embed", shares=2)[0])
    assert not (tmp_path / "jobs").exists()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert ray_jobs.token_file(job) is None


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    job, source = ray_job(tmp_path, RaySite(address=address, token=private(tmp_path / "token")), records=tmp_path / "j")
    with pytest.raises(InputError, match=f"nothing answers at {address}"):
        submit(job, "ray", source)


@dataclass(frozen=True)
class Cluster:
    address: str
    token: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster with a token and the Jobs API, of another process and another token than this one's."""
    folder = Path(tempfile.mkdtemp(prefix="smt"))  # sockets have short paths
    token = private(folder / "token", secrets.token_hex(32))
    base = 32_000 + os.getpid() % 70 * 10
    options = {
        "port": base, "dashboard-port": base + 1, "dashboard-agent-listen-port": base + 2,
        "ray-client-server-port": base + 3, "min-worker-port": 0, "max-worker-port": 0, "num-cpus": 2,
        "object-store-memory": 200_000_000, "temp-dir": folder / "ray",
    }  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{key}={value}" for key, value in options.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{base + 1}"
        until(lambda: answer(address, token) == 200 or process.poll() is not None, 120)
        assert process.poll() is None, (folder / "log").read_text()
        yield Cluster(address, token)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answer(address: str, token: Path | None) -> int:
    """Return how the Jobs API answers."""
    headers = {} if token is None else {"Authorization": f"Bearer {token.read_text()}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", headers=headers), timeout=10) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_a_job_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    assert answer(cluster.address, None) == 401
    another = private(tmp_path / "another")
    assert answer(cluster.address, another) == 403
    site = RaySite(address=cluster.address, token=another, install=False)
    job, source = ray_job(tmp_path, site, records=tmp_path / "jobs")
    with pytest.raises(InputError, match="refuses it; it wants its own token"):
        submit(job, "ray", source)
    assert not list((tmp_path / "jobs").glob("*.json"))


@pytest.mark.slow
def test_a_stage_goes_its_way(
    cluster: Cluster, tmp_path: Path, settings_of: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "config.yaml"
    source.write_text(yaml.safe_dump({**settings_of(Path("work")), "workdir": "work"}))
    site = RaySite(address=cluster.address, token=cluster.token, install=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the address that is given wins
    job = make_job("embed", source, load_config(source), [], Profile(cpus=2, memory=2, threads=1, ray=site))
    sent = submit(job, "ray", source)
    assert find_job(job.id) == sent
    ended = until(lambda: None if (found := ray_jobs.state(sent)) in ("waiting", "running") else found, 240)
    assert ended == "done", ray_jobs.log(sent)
    assert "are embedded in" in ray_jobs.log(sent)
    assert list((tmp_path / "work" / "embeddings").glob("*.arrow"))


@pytest.mark.slow
def test_a_stage_that_is_stopped(
    cluster: Cluster, tmp_path: Path, settings_of: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "config.yaml"
    source.write_text(yaml.safe_dump({**settings_of(Path("work")), "workdir": "work"}))
    site = RaySite(address=cluster.address, token=cluster.token, install=False)
    job = make_job("embed", source, load_config(source), [], Profile(cpus=2, memory=2, threads=1, ray=site))
    sent = submit(job, "ray", source)
    until(lambda: ray_jobs.state(sent) == "running" and (tmp_path / "work" / "corpus").exists(), 120)
    ray_jobs.stop(sent)
    until(lambda: ray_jobs.state(sent) == "stopped", 120)


@pytest.mark.parametrize("name", ["aws", "onpremise"])
def test_clusters_are_what_ray_takes(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = yaml.safe_load((Path(__file__).parents[2] / "cluster" / "ray" / f"{name}.yaml").read_text())
    jsonschema.validate(found, schema)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in found[commands][-1]
    assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][-1]
