"""A job on this machine, with a Ray cluster of its own that goes on when the terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil

from scalemine.config import InputError
from scalemine.submit.job import LOG, Job, Sent, State, exit_state, read_log
from scalemine.submit.script import SCRIPT, write_script

DESTINATION = "this machine"


def render(job: Job) -> dict[str, str]:
    """Return the files of a job, by name.

    Raises:
        InputError: The profile wants more than one machine.
    """
    if job.profile.nodes > 1 or job.shares is not None:
        raise InputError("--to local: this is one machine; take a profile of one node, and no --array")
    return {SCRIPT: write_script(job, [], "none")}


def send(job: Job) -> dict[str, int | float]:
    """Start the script in a session of its own; return its process."""
    with (job.home / LOG).open("wb") as log:
        process = subprocess.Popen(
            [job.home / SCRIPT],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}


def state(sent: Sent) -> State:
    """Return how far a job has come."""
    ended = exit_state(sent.home)
    if ended is None and _process(sent) is None:
        ended = exit_state(sent.home) or "failed"  # it was killed, unless it ended just now
    return ended or "running"


def log(sent: Sent) -> str:
    """Return what a job has said."""
    return read_log(sent.home)


def stop(sent: Sent) -> None:
    """Ask a job to stop: it finishes what is in flight."""
    if _process(sent) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(sent.handle["pid"]), signal.SIGTERM)


def _process(sent: Sent) -> psutil.Process | None:
    """Return the process of a job, unless it has ended; another may have its number by now."""
    try:
        process = psutil.Process(int(sent.handle["pid"]))
        is_it = abs(process.create_time() - float(sent.handle["started"])) < 1.0
        return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
