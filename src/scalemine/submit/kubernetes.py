"""A job on Kubernetes: a RayJob of KubeRay with a token, and a network policy that lets nobody else in."""

from __future__ import annotations

import json
import shlex
import subprocess
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import yaml

from scalemine.config import InputError, RunError
from scalemine.submit.job import Job, Sent, State

DESTINATION = "kubectl"
MANIFEST = "manifest.yaml"
# Where the configuration lies in a pod, and the user of the image.
_CONFIG, _USER = "/etc/scalemine", 1000
_JOB_LABEL = "scalemine.io/job"
# KubeRay makes other names of it, which have at most 63 characters.
_LONGEST_NAME = 47

# The shell of the Ray job knows the address.
_WITH_ADDRESS = 'exec "$@" --set "compute.address=$RAY_ADDRESS"'

Json = dict[str, Any]


def with_address(argv: list[str]) -> str:
    """Return the command line of a Ray job: the address of its cluster is handed over by name."""
    return shlex.join(["sh", "-c", _WITH_ADDRESS, "sh", *argv])


def render(job: Job, text: str | None = None) -> dict[str, str]:
    """Return the files of a job, by name.

    Args:
        job: The job.
        text: The configuration; None: what its file holds.

    Raises:
        InputError: The job cannot be one of Kubernetes.
    """
    if job.shares is not None:
        raise InputError("--array: only with --to slurm")
    if len(job.id) > _LONGEST_NAME:
        raise InputError(f"{job.id}: expected a name of at most {_LONGEST_NAME} characters")
    text = job.config.read_text(encoding="utf-8") if text is None else text
    return {MANIFEST: yaml.safe_dump_all(manifests(job, text), sort_keys=False, allow_unicode=True)}


def manifests(job: Job, text: str) -> list[Json]:
    """Return the configuration, the network policy and the job."""
    return [_config_map(job, text), _network_policy(job), _ray_job(job)]


def _metadata(job: Job) -> Json:
    labels = {"app.kubernetes.io/name": "scalemine", _JOB_LABEL: job.id}
    return {"name": job.id, "namespace": job.profile.kubernetes.namespace, "labels": labels}


def _config_map(job: Job, text: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(job), "data": {job.config.name: text}}


def _network_policy(job: Job) -> Json:
    """Return a policy: the pods of the job speak with one another, with the name service, and with the operator."""
    site = job.profile.kubernetes
    own = {"podSelector": {"matchLabels": {_JOB_LABEL: job.id}}}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": site.operator}},
    }
    names = {
        "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    }
    egress: list[Json] = [{"to": [own]}, names]
    if site.https:
        egress.append({"ports": [{"protocol": "TCP", "port": 443}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}, {"from": [operator], "ports": [{"protocol": "TCP", "port": 8265}]}],
            "egress": egress,
        },
    }


def _ray_job(job: Job) -> Json:
    profile = job.profile
    entrypoint = with_address(job.argv(["scalemine"], f"{_CONFIG}/{job.config.name}"))
    cluster: Json = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Not 127.0.0.1: the operator sends the job there. The policy and the token keep others out.
            "rayStartParams": {"dashboard-host": "0.0.0.0", **_start_params(job)},  # noqa: S104
            "template": _pod(job, "ray-head"),
        },
    }
    if profile.nodes > 1:
        others = profile.nodes - 1
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": others, "minReplicas": others, "maxReplicas": others,
                "rayStartParams": _start_params(job),
                "template": _pod(job, "ray-worker"),
            }
        ]  # fmt: skip
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(job),
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(job),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "activeDeadlineSeconds": int(profile.hours * 3600),
            "backoffLimit": profile.kubernetes.retries,
            "rayClusterSpec": cluster,
        },
    }


def _start_params(job: Job) -> dict[str, str]:
    return {"num-cpus": str(job.profile.cpus), "num-gpus": str(job.profile.gpus), "disable-usage-stats": "true"}


def _container(name: str, image: str) -> Json:
    return {
        "name": name,
        "image": image,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _pod_security() -> Json:
    return {
        "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def image_of(job: Job) -> str:
    """Return the image of a job: of this version of scalemine, as cluster/Dockerfile makes it."""
    profile = job.profile
    return profile.kubernetes.image or f"scalemine:{version('scalemine')}-{'cuda' if profile.gpus else 'cpu'}"


def _pod(job: Job, name: str) -> Json:
    profile, site = job.profile, job.profile.kubernetes
    limits = {"cpu": str(profile.cpus), "memory": f"{profile.memory}Gi"}
    if profile.gpus:
        limits["nvidia.com/gpu"] = str(profile.gpus)
    container = _container(name, image_of(job)) | {
        "workingDir": str(site.mount),
        "env": [
            {"name": "HF_HUB_OFFLINE", "value": "0" if site.https else "1"},
            {"name": "TOKENIZERS_PARALLELISM", "value": "false"},
            {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "120"},
        ],
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [
            {"name": "data", "mountPath": str(site.mount)},
            {"name": "config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  Ray's object store
        ],
    }
    spec = {
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": site.claim}},
            {"name": "config", "configMap": {"name": job.id}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, profile.memory // 4)}Gi"}},
        ],
    }
    return {"metadata": {"labels": _metadata(job)["labels"]}, "spec": spec}


def _submitter(job: Job) -> Json:
    container = _container("ray-job-submitter", image_of(job)) | {
        "resources": {
            "limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "500m", "memory": "512Mi"},
        },
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "containers": [container],
    }
    return {"metadata": {"labels": _metadata(job)["labels"]}, "spec": spec}


def check_paths(job: Job, workdir: str) -> None:
    """Refuse a workdir that the pods would lose.

    Raises:
        InputError: It does not lie on the volume.
    """
    path, mount = PurePosixPath(workdir), PurePosixPath(str(job.profile.kubernetes.mount))
    if path.is_absolute() and not path.is_relative_to(mount):
        raise InputError(
            f"workdir: {path} is not on the volume, which lies in {mount}; give a path that is, or a relative one"
        )


def send(job: Job) -> dict[str, str]:
    """Hand the manifests over."""
    _call(["kubectl", "apply", "-f", str(job.home / MANIFEST)])
    return {"namespace": job.profile.kubernetes.namespace, "name": job.id}


def state(sent: Sent) -> State:
    """Return how far a job has come."""
    said = _call(["kubectl", "get", "rayjob", sent.handle["name"], "-n", sent.handle["namespace"], "-o", "json"])
    return state_of(json.loads(said).get("status", {}))


def state_of(status: Json) -> State:
    """Return how far a job has come, by the status of its RayJob."""
    known: dict[str, State] = {"SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
    deployment = status.get("jobDeploymentStatus", "")
    if deployment in ("Complete", "Failed"):
        return known.get(status.get("jobStatus", ""), "failed")
    if deployment in ("Suspended", "Suspending"):
        return "stopped"
    return "running" if status.get("jobStatus") == "RUNNING" else "waiting"


def log(sent: Sent) -> str:
    """Return what a job has said."""
    selector = f"job-name={sent.handle['name']}"
    return _call(["kubectl", "logs", "-n", sent.handle["namespace"], "-l", selector, "--tail=-1"])


def stop(sent: Sent) -> None:
    """Remove a job and its cluster; the driver is told, and has two minutes to finish what is in flight."""
    _call(["kubectl", "delete", "--ignore-not-found", "-f", str(sent.home / MANIFEST)])


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("kubectl: not found here; it is what reaches the Kubernetes cluster") from None
    if done.returncode:
        raise RunError(f"{' '.join(command[:2])} ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
