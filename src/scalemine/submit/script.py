"""The shell script of a job: values that are quoted, above a text that is the same for every job."""

from __future__ import annotations

import shlex
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from scalemine.submit.job import Job, own_program

SCRIPT = "run.sh"
_BODY = Path(__file__).parent / SCRIPT

# How Ray is called, and what waits until its nodes are up: of the Python at hand.
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
AWAIT = [sys.executable, "-m", "scalemine.submit.nodes"]

Value = str | int | Sequence[str]


def write_script(job: Job, header: Sequence[str], launcher: Literal["srun", "none"]) -> str:
    """Return the script of a job.

    Args:
        job: The job.
        header: Lines between the first and the values.
        launcher: How a command comes to a node.
    """
    profile = job.profile
    values: dict[str, Value] = {
        "command": job.argv(own_program(), str(job.config)),
        "ray": RAY,
        "await": AWAIT,
        "launcher": launcher,
        "shares": job.shares or 0,
        "cpus": profile.cpus,
        "gpus": profile.gpus,
        "folder": str(job.folder),
        "home": str(job.home),
        "source": "" if profile.slurm.source is None or launcher == "none" else str(profile.slurm.source.absolute()),
        "slot": zlib.crc32(job.id.encode()),
        "restarts": profile.slurm.restarts,
    }
    return "\n".join(["#!/bin/bash", *header, *assignments(values), "", _BODY.read_text(encoding="utf-8")])


def assignments(values: Mapping[str, Value]) -> list[str]:
    """Return the lines of a shell script that set variables; a sequence becomes an array."""
    return [
        f"{name}=({shlex.join(value)})"
        if isinstance(value, Sequence) and not isinstance(value, str)
        else f"{name}={shlex.quote(str(value))}"
        for name, value in values.items()
    ]
