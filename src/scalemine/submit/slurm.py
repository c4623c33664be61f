"""A job of Slurm: Ray over the nodes of one allocation; or an array of jobs without Ray, each with a share."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

from scalemine.config import InputError, RunError
from scalemine.submit.job import ASKED, EXIT, LOG, Job, Sent, State, exit_state, read_log
from scalemine.submit.script import SCRIPT, write_script

DESTINATION = "sbatch"
# How a job of several shares ended: as the worst of them did.
WORST_FIRST: tuple[State, ...] = ("failed", "stopped", "done")
# sbatch splits its lines by rules of its own; none of these characters means anything to it.
_PLAIN = re.compile(r"[\w./:,@%+=\-\[\]]*")


def render(job: Job) -> dict[str, str]:
    """Return the files of a job, by name.

    Raises:
        InputError: A directive cannot be written.
    """
    header = [directive(name, value) for name, value in directives(job).items()]
    return {SCRIPT: write_script(job, header, "srun")}


def directives(job: Job) -> dict[str, str | None]:
    """Return the options of sbatch; None: an option without a value."""
    profile = job.profile
    if job.shares is None:
        nodes, cpus, gpus, memory, log = profile.nodes, profile.cpus, profile.gpus, profile.memory, LOG
    else:  # each job of an array is one worker
        nodes, cpus, gpus = 1, profile.threads_of_worker, min(1, profile.gpus)
        memory, log = max(1, profile.memory // profile.workers_of_node), f"{LOG}.%a"
    found: dict[str, str | None] = {
        "job-name": f"scalemine-{job.stage}",
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cpus),
        "mem": f"{memory}G",
        "time": _hours(profile.hours),
        "signal": f"B:USR1@{profile.slurm.notice}",
        "requeue": None,
        "open-mode": "append",
        "output": str(job.home / log),
    }
    if gpus:
        found["gpus-per-node"] = str(gpus)
    if job.shares is not None:
        found["array"] = f"0-{job.shares - 1}"
    return {**found, **profile.slurm.directives}


def directive(name: str, value: str | None) -> str:
    """Return the line of one option.

    Raises:
        InputError: It has characters that sbatch may read otherwise.
    """
    if not re.fullmatch(r"[a-z][a-z\-]*", name) or (value is not None and not _PLAIN.fullmatch(value)):
        raise InputError(f"sbatch --{name}={value}: expected letters, digits and . / : , @ % + = - [ ] _")
    return f"#SBATCH --{name}" + ("" if value is None else f"={value}")


def _hours(hours: float) -> str:
    minutes = math.ceil(hours * 60)
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def send(job: Job) -> dict[str, str]:
    """Queue the script; return the number of the job."""
    said = _call(["sbatch", "--parsable", str(job.home / SCRIPT)])
    return {"slurm": said.strip().split(";")[0]}


def state(sent: Sent) -> State:
    """Return how far a job has come."""
    shares = sent.values["shares"]
    ended = [exit_state(sent.home, EXIT if shares is None else f"{EXIT}.{share}") for share in range(shares or 1)]
    states = {one for one in ended if one is not None}
    if None not in ended:
        return next(one for one in WORST_FIRST if one in states)
    try:
        queued = _call(["squeue", "--noheader", "--jobs", sent.handle["slurm"], "--format", "%T"]).split()
    except RunError as error:  # squeue forgets jobs that have ended
        if "Invalid job id" not in str(error):
            raise
        queued = []
    if not queued:
        # What waited when it was stopped never began, so it left no word of its end.
        return "stopped" if (sent.home / ASKED).exists() else "failed" if states else "unknown"
    return "running" if set(queued) & {"RUNNING", "COMPLETING"} or states else "waiting"


def log(sent: Sent) -> str:
    """Return what a job has said."""
    return read_log(sent.home)


def stop(sent: Sent) -> None:
    """Ask a job to stop: it finishes what is in flight; what waits in the queue leaves it."""
    # Whoever has run out of time in this moment is not queued again.
    (sent.home / ASKED).touch()
    for rest in (["--state=PENDING"], ["--state=RUNNING", "--batch", "--signal=TERM"]):
        try:
            _call(["scancel", *rest, sent.handle["slurm"]])
        except RunError as error:  # it has ended, or there was no more of it than what waited
            if "Invalid job id" not in str(error):
                raise


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not found here; call this on a login node of the cluster") from None
    if done.returncode:
        raise RunError(f"{Path(command[0]).name} ended with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
