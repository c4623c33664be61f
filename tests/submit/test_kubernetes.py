from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scalemine.config import InputError, RunError
from scalemine.submit import kubernetes
from scalemine.submit.job import Job, find_job
from scalemine.submit.profile import PROFILES, KubernetesSite, Profile, load_profile
from scalemine.submit.targets import submit
from submit.fakes import a_job, write_program
from submit.rayjob import RAY_JOB

CONFIG = "workdir: work\nwhy: ünïcode\n"
NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))


def documents(job: Job) -> dict[str, Any]:
    found = yaml.safe_load_all(kubernetes.render(job, CONFIG)[kubernetes.MANIFEST])
    return {one["kind"]: one for one in found}


def pods_of(ray_job: dict[str, Any]) -> list[dict[str, Any]]:
    spec = ray_job["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"].get("workerGroupSpecs", [])]
    return [spec["submitterPodTemplate"], *(group["template"] for group in groups)]


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_what_the_operator_takes(name: str, tmp_path: Path) -> None:
    found = documents(a_job(tmp_path, profile=load_profile(name))[0])
    assert list(found) == ["ConfigMap", "NetworkPolicy", "RayJob"]
    jsonschema.validate(found["RayJob"], RAY_JOB)


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_what_kubernetes_takes(name: str, tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    found = documents(a_job(tmp_path, profile=load_profile(name))[0])
    for kind in ("ConfigMap", "NetworkPolicy"):
        validate(found[kind], "1.34", strict=True)
    for template in pods_of(found["RayJob"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
        validate({**pod, "spec": template["spec"]}, "1.34", strict=True)
        with pytest.raises(Exception, match="nodeSelektor"):
            validate({**pod, "spec": {**template["spec"], "nodeSelektor": {}}}, "1.34", strict=True)


@pytest.mark.parametrize(
    "mend",
    [
        lambda spec: spec.update(backOffLimit=1),
        lambda spec: spec.pop("entrypoint"),
        lambda spec: spec.update(submissionMode="Http"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="none"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 4}),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="3"),
    ],
)
def test_the_schema_refuses(tmp_path: Path, mend: Any) -> None:
    found = copy.deepcopy(documents(a_job(tmp_path)[0])["RayJob"])
    mend(found["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, RAY_JOB)


def test_nodes_are_pods_and_each_is_the_same(tmp_path: Path) -> None:
    job, _ = a_job(tmp_path, profile=load_profile("4x8gpu"))
    cluster = documents(job)["RayJob"]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert {workers[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {3}
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["image"] == f"scalemine:{version('scalemine')}-cuda"
    assert "compute.workers=32" in job.settings
    assert cluster["rayVersion"] == version("ray")
    one = documents(a_job(tmp_path, profile=load_profile("cpu"))[0])["RayJob"]["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in one
    assert one["headGroupSpec"]["template"]["spec"]["containers"][0]["image"].endswith("-cpu")


def test_nobody_gets_in(tmp_path: Path) -> None:
    job, _ = a_job(tmp_path)
    found = documents(job)
    assert found["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    policy, label = found["NetworkPolicy"]["spec"], {"scalemine.io/job": job.id}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["podSelector"] == {"matchLabels": label}
    for pod in pods_of(found["RayJob"]):
        assert label.items() <= pod["metadata"]["labels"].items()  # so that the policy holds for it
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
    # Each opening names who: the job's own pods, the operator, the name service.
    openings = [*policy["ingress"], *policy["egress"]]
    assert all("podSelector" in peer for one in openings for peer in one.get("from", one.get("to", [{}])))
    outside = Profile(cpus=1, memory=1, kubernetes=KubernetesSite(https=True))
    open_one = documents(a_job(tmp_path, profile=outside)[0])["NetworkPolicy"]["spec"]["egress"]
    assert open_one[-1] == {"ports": [{"protocol": "TCP", "port": 443}]}


def test_the_entry_point_is_the_users_command_with_the_address(tmp_path: Path) -> None:
    job, _ = a_job(tmp_path)
    entrypoint = documents(job)["RayJob"]["spec"]["entrypoint"]
    program = write_program(tmp_path / "scalemine", "import json, sys; print(json.dumps(sys.argv[1:]))")
    environment = {**os.environ, "RAY_ADDRESS": "10.0.0.1:6379", "PATH": f"{program.parent}:{os.environ['PATH']}"}
    said = subprocess.run(entrypoint, shell=True, capture_output=True, text=True, env=environment, check=True)
    words = json.loads(said.stdout)
    assert words[:2] == ["mine", "/etc/scalemine/some config.yaml"]
    assert words[-2:] == ["--set", "compute.address=10.0.0.1:6379"]
    assert "why=it's $HOME; `x`" in words
    assert shlex.split(entrypoint)[:2] == ["sh", "-c"]
    assert documents(job)["ConfigMap"]["data"] == {"some config.yaml": CONFIG}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "waiting"),
        ({"jobDeploymentStatus": "Initializing"}, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "done"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, "failed"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "failed"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped"),
        ({"jobDeploymentStatus": "Suspended"}, "stopped"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, "waiting"),
    ],
)
def test_state(status: dict[str, str], expected: str) -> None:
    assert kubernetes.state_of(status) == expected


def test_workdir_off_the_volume(tmp_path: Path) -> None:
    job, _ = a_job(tmp_path)
    kubernetes.check_paths(job, "work")
    kubernetes.check_paths(job, "/data/work")
    with pytest.raises(InputError, match="/home/me is not on the volume, which lies in /data"):
        kubernetes.check_paths(job, "/home/me")
    with pytest.raises(InputError, match="only with --to slurm"):
        kubernetes.render(a_job(tmp_path, "embed", shares=2)[0], CONFIG)


KUBECTL = r"""
import json, os, sys
from pathlib import Path
notes = Path(os.environ["NOTES"])
with (notes / "kubectl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
if (notes / "refuse").exists():
    sys.exit("no such namespace")
if sys.argv[1] == "get":
    print(json.dumps({"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}))
if sys.argv[1] == "logs":
    print("the stage speaks")
"""


def test_a_job_is_handed_to_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / "kubectl", KUBECTL)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path))
    job, source = a_job(tmp_path, records=tmp_path / "jobs")
    sent = submit(job, "kubernetes", source)
    assert find_job(job.id) == sent
    assert kubernetes.state(sent) == "running"
    assert kubernetes.log(sent) == "the stage speaks\n"
    kubernetes.stop(sent)
    manifest = str(sent.home / "manifest.yaml")
    calls = [json.loads(line) for line in (tmp_path / "kubectl").read_text().splitlines()]
    assert calls[0] == ["apply", "-f", manifest]
    assert calls[1] == ["get", "rayjob", job.id, "-n", "scalemine", "-o", "json"]
    assert calls[3] == ["delete", "--ignore-not-found", "-f", manifest]
    (tmp_path / "refuse").touch()
    with pytest.raises(RunError, match="kubectl get ended with code 1: no such namespace"):
        kubernetes.state(sent)


CLUSTER = Path(__file__).parents[2] / "cluster"


def test_what_a_cluster_is_set_up_with() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    found = list(yaml.safe_load_all((CLUSTER / "kubernetes" / "setup.yaml").read_text()))
    for one in found:
        validate(one, "1.34", strict=True)
    site = KubernetesSite()
    assert {one["metadata"].get("namespace", site.namespace) for one in found} == {site.namespace}
    assert site.claim in [one["metadata"]["name"] for one in found if one["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*/site.yaml")), ids=lambda path: path.parent.name)
def test_profiles_of_sites(path: Path) -> None:
    assert load_profile(str(path)).gpus == load_profile("8gpu").gpus


def test_the_dockerfile_is_sound() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    stages = text.split("\nFROM ")[1:]
    assert [stage.split(" AS ")[1].split()[0] for stage in stages] == ["base", "cpu", "cuda"]
    for stage in stages[1:]:
        assert "USER 1000:1000" in stage
        assert "-c constraints.txt" in stage
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed (pip install .[dev])")
    said = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
