"""What a job may take: its nodes and what each of them has; each said once, in a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from scalemine.config import InputError, Section
from scalemine.executor import num_cores

PROFILES = Path(__file__).parent / "profiles"


class SlurmSite(Section):
    """What one Slurm cluster wants."""

    directives: dict[str, str] = Field({}, description="further options of sbatch: partition, account, qos")
    source: Path | None = Field(None, description="shell file that each node reads first: modules, an environment")
    notice: int = Field(120, ge=30, description="seconds before the time limit at which the run is told to stop")
    restarts: int = Field(20, ge=0, description="how often a run that ran out of time is queued again")


class RaySite(Section):
    """A Ray cluster that is up."""

    address: str | None = Field(None, pattern=r"^https?://[\w.\-\[\]:]+(/[\w./\-]*)?$", description="of its dashboard")
    token: Path | None = Field(None, description="file of its token, readable by its owner alone")
    install: bool = Field(True, description="bring scalemine and its pinned requirements along, but for Ray")


class KubernetesSite(Section):
    """What one Kubernetes cluster wants."""

    namespace: str = Field("scalemine", pattern=r"^[a-z0-9]([a-z0-9\-]*[a-z0-9])?$")
    image: str | None = Field(None, description="None: scalemine:VERSION-cuda, or -cpu without GPUs")
    claim: str = Field("scalemine", description="the volume claim that holds corpus and workdir; nodes share it")
    mount: Path = Field(Path("/data"), description="where that volume lies; relative paths begin there")
    https: bool = Field(False, description="whether the job may reach outside by HTTPS: a model hub, buckets")
    operator: str = Field("kuberay-operator", description="app.kubernetes.io/name of the KubeRay operator's pods")
    retries: int = Field(3, ge=0, description="how often a job that failed is tried on a new cluster")


class Profile(Section):
    """What a job may take. ``cpus``, ``gpus`` and ``memory`` are those of one node."""

    nodes: int = Field(1, ge=1)
    cpus: int = Field(ge=1)
    gpus: int = Field(0, ge=0)
    memory: int = Field(ge=1, description="GiB")
    hours: float = Field(24.0, gt=0, description="time limit")
    threads: int | None = Field(None, ge=1, description="of a worker; None: its share of the CPUs")
    slurm: SlurmSite = SlurmSite()
    ray: RaySite = RaySite()
    kubernetes: KubernetesSite = KubernetesSite()

    @model_validator(mode="after")
    def _threads_fit(self) -> Profile:
        if self.threads_of_worker * max(1, self.gpus) > self.cpus:
            raise ValueError(
                f"threads: {max(1, self.gpus)} worker(s) of a node want {self.threads_of_worker} each, and it has "
                f"{self.cpus} cpus"
            )
        return self

    @property
    def threads_of_worker(self) -> int:
        """Threads of one worker: its share of the node's CPUs, if not said."""
        return self.threads or max(1, self.cpus // max(1, self.gpus))

    @property
    def workers_of_node(self) -> int:
        """Workers of one node: one per GPU, or as many as the CPUs have threads for."""
        return self.gpus or self.cpus // self.threads_of_worker

    @property
    def workers(self) -> int:
        """Workers of all nodes."""
        return self.nodes * self.workers_of_node

    def __str__(self) -> str:
        """Say it in words."""
        gpus = f", {self.gpus} GPUs" if self.gpus else ""
        return (
            f"{self.nodes} node(s) of {self.cpus} CPUs{gpus} and {self.memory} GiB for {self.hours:g} h: "
            f"{self.workers} worker(s) of {self.threads_of_worker} thread(s)"
        )


def load_profile(name: str) -> Profile:
    """Return a profile by its name, or from a YAML file.

    A file may begin from another profile: ``base: 8gpu``.

    Raises:
        InputError: There is none of that name, or a key or value is not one that is known.
    """
    return _validated(_values(name), name)


def _values(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    known = sorted(one.stem for one in PROFILES.glob("*.yaml"))
    if path.parent == PROFILES and path.stem not in known:
        raise InputError(f"--profile {name}: expected {', '.join(known)}, or a file that ends in .yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--profile {name}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"--profile {name}: expected keys such as cpus: 8, got {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in known:
        raise InputError(f"--profile {name}: base: expected {', '.join(known)}; got {base!r}")
    return {**_values(base), **values}


def _validated(values: dict[str, Any], name: str) -> Profile:
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        said = (
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        )
        raise InputError(f"--profile {name}: {'; '.join(said)}") from None


def this_machine() -> Profile:
    """Return the profile of the machine at hand."""
    devices = Path("/proc/driver/nvidia/gpus")
    gpus = len(list(devices.iterdir())) if devices.is_dir() else 0
    memory = _memory_gib()
    return Profile(cpus=max(num_cores(), gpus, 1), gpus=gpus, memory=memory)


def _memory_gib() -> int:
    import psutil

    return max(1, int(psutil.virtual_memory().total) >> 30)
