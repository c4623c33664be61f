"""The places a job goes to; each renders the files of a job, sends it, and says, logs and stops what was sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from scalemine.config import InputError
from scalemine.submit import kubernetes, local, ray_jobs, slurm
from scalemine.submit.job import Job, Sent, State, TargetName, write_files, write_record


class Target(Protocol):
    """What each of these modules does."""

    DESTINATION: str

    def render(self, job: Job) -> dict[str, str]:
        """Return the files of a job, by name; pure, but that it may read the job's configuration."""
        ...

    def send(self, job: Job) -> dict[str, Any]:
        """Send a job, whose files are written; return what it is called there."""
        ...

    def state(self, sent: Sent) -> State:
        """Return how far a job has come."""
        ...

    def log(self, sent: Sent) -> str:
        """Return what a job has said."""
        ...

    def stop(self, sent: Sent) -> None:
        """Ask a job to stop; what it finished is kept."""
        ...


TARGETS: dict[TargetName, Target] = {"local": local, "ray": ray_jobs, "slurm": slurm, "kubernetes": kubernetes}


# What a job is handed to.
_PROGRAMS: dict[TargetName, tuple[str, str]] = {
    "slurm": ("sbatch", "call this on a login node of the cluster"),
    "kubernetes": ("kubectl", "it is what reaches the Kubernetes cluster"),
}


def render(job: Job, target: TargetName, source: Path) -> dict[str, str]:
    """Return the files of a job, of which nothing is written yet.

    Args:
        job: The job.
        target: Where to.
        source: The configuration file.

    Raises:
        InputError: The job cannot go there.
    """
    if target == "kubernetes":
        return kubernetes.render(job, source.read_text(encoding="utf-8"))
    return TARGETS[target].render(job)


def submit(job: Job, target: TargetName, source: Path) -> Sent:
    """Write a job's files, send it, and write its record.

    Raises:
        InputError: The job cannot go there.
    """
    files = render(job, target, source)
    # What is amiss is said before anything is written.
    if target == "ray":
        ray_jobs.token_file(job)
    elif target in _PROGRAMS and shutil.which(_PROGRAMS[target][0]) is None:
        raise InputError("{}: not found here; {}".format(*_PROGRAMS[target]))
    write_files(job, source, files)
    return write_record(job, target, TARGETS[target].send(job))


def state(sent: Sent) -> State:
    """Return how far a job has come."""
    return TARGETS[sent.target].state(sent)


def log(sent: Sent) -> str:
    """Return what a job has said."""
    return TARGETS[sent.target].log(sent)


def stop(sent: Sent) -> None:
    """Ask a job to stop; what it finished is kept."""
    TARGETS[sent.target].stop(sent)
