"""A job of a Ray cluster that is up, by its Jobs API; with its configuration, scalemine, and requirements."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import yaml

import scalemine
from scalemine.config import InputError, RunError
from scalemine.submit.job import Job, Sent, State, check_private, state_of_code

DESTINATION = "the Jobs API of Ray"
RUNTIME_ENV, ENTRYPOINT = "runtime_env.yaml", "entrypoint.sh"
# Beside the requirements of every run, what some configurations name; only what is installed here.
_EXTRAS = ("minilm", "lora", "optuna")
# The driver finishes what is in flight before it is ended.
_STOP_SECONDS = 120
# The dashboard answers a few seconds before the agent that takes jobs.
_PATIENCE = 30.0

# The shell of the Ray job knows the address, and where the configuration was unpacked.
_IN_FOLDER = (
    'here=$PWD; name=$1; cd -- "$2" || exit 2; shift 2; exec "$@" --set "compute.address=$RAY_ADDRESS" "$here/$name"'
)


def render(job: Job) -> dict[str, str]:
    """Return the files of a job, by name.

    Raises:
        InputError: The job cannot be one of a Ray cluster.
    """
    if job.shares is not None:
        raise InputError("--array: only with --to slurm")
    address_of(job)
    return {
        ENTRYPOINT: entrypoint(job) + "\n",
        RUNTIME_ENV: yaml.safe_dump(runtime_env(job), sort_keys=False, allow_unicode=True),
    }


def entrypoint(job: Job) -> str:
    """Return the command line of the driver."""
    argv = job.argv(["python", "-m", "scalemine"])
    return shlex.join(["sh", "-c", _IN_FOLDER, "sh", job.config.name, str(job.folder), *argv])


def runtime_env(job: Job) -> dict[str, Any]:
    """Return what the cluster is to make ready: the configuration's folder, scalemine, and pinned requirements."""
    found: dict[str, Any] = {
        "working_dir": str(job.home),
        # The entry point and the environment are in the request; the rest of the folder is the record's.
        "excludes": [f"/{ENTRYPOINT}", f"/{RUNTIME_ENV}"],
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
            **{key: os.environ[key] for key in ("HF_HUB_OFFLINE", "SCALEMINE_LOG") if key in os.environ},
        },
    }
    if job.profile.ray.install:
        found["py_modules"] = [str(Path(scalemine.__file__).parent)]
        found["pip"] = pinned_requirements()
    return found


def pinned_requirements() -> list[str]:
    """Return the requirements of scalemine, of the versions that are installed here; Ray is the cluster's own."""
    found = []
    for line in requires("scalemine") or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", marker)
        match = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
        if match is None or match[0] in ("ray", "scalemine") or (extra and extra[1] not in _EXTRAS):
            continue
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{match[0]}=={version(match[0]).split('+')[0]}")  # a build, as +cpu, is the cluster's choice
    return sorted(found)


def address_of(job: Job) -> str:
    """Return the address of the cluster's dashboard.

    Raises:
        InputError: The profile says none.
    """
    address = job.profile.ray.address
    if address is None:
        raise InputError("--to ray: where is the cluster? give --address http://HOST:8265, or ray.address in a profile")
    return address


def token_file(job: Job) -> Path | None:
    """Return the file of the cluster's token; None: the cluster wants none, which has to be said by RAY_AUTH_MODE.

    Raises:
        InputError: There is none, or others can read it.
    """
    path = job.profile.ray.token or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None:
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            return None
        raise InputError(
            "--to ray: where is the token of the cluster? give --token FILE, ray.token in a profile, or "
            "RAY_AUTH_TOKEN_PATH (a cluster without one runs anybody's code; RAY_AUTH_MODE=disabled allows it)"
        )
    found = Path(path).expanduser().absolute()
    check_private(found)
    return found


def send(job: Job) -> dict[str, str | None]:
    """Hand the job over, under its own name.

    Raises:
        InputError: Nothing answers there, or it wants another token.
    """
    address, token = address_of(job), token_file(job)
    with _client(address, token) as client:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                client.submit_job(
                    entrypoint=entrypoint(job), submission_id=job.id, runtime_env=runtime_env(job),
                    metadata={"stage": job.stage, "config": job.config.name},
                )  # fmt: skip
                break
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
    return {"address": address, "token": None if token is None else str(token)}


def state(sent: Sent) -> State:
    """Return how far a job has come."""
    with _client_of(sent) as client:
        info = client.get_job_info(sent.id)
    if info.status == "SUCCEEDED":
        return "done"
    if info.status == "FAILED":
        return "failed" if info.driver_exit_code is None else state_of_code(info.driver_exit_code)
    known: dict[str, State] = {"PENDING": "waiting", "RUNNING": "running", "STOPPED": "stopped"}
    return known.get(str(info.status.value), "unknown")


def log(sent: Sent) -> str:
    """Return what a job has said."""
    with _client_of(sent) as client:
        return str(client.get_job_logs(sent.id))


def stop(sent: Sent) -> None:
    """Ask a job to stop: it finishes what is in flight."""
    with _client_of(sent) as client:
        client.stop_job(sent.id)


def _client_of(sent: Sent) -> contextlib.AbstractContextManager[Any]:
    token, record = sent.handle["token"], sent.home.with_name(f"{sent.id}.json")
    if token is not None and record.stat().st_uid != os.getuid():
        # It says which file of yours goes to which address.
        raise InputError(f"{record}: another user's job; only its owner can reach the cluster with its token")
    return _client(sent.handle["address"], None if token is None else Path(token))


@contextlib.contextmanager
def _client(address: str, token: Path | None) -> Iterator[Any]:
    """Give a client; what is wrong with the address or the token is the user's to mend."""
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError(
            "--to ray: the client of Ray's jobs is not installed; pip install 'scalemine[cluster]'"
        ) from None

    headers = None
    if token is not None:
        check_private(token)
        headers = {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"}
    # They would win over the address that is given.
    others = {key: os.environ.pop(key) for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if key in os.environ}
    try:
        yield JobSubmissionClient(address, headers=headers)
    except ConnectionError:
        raise InputError(f"ray.address: nothing answers at {address}") from None
    except AuthenticationError:
        raise InputError(f"ray.token: the cluster at {address} refuses it; it wants its own token") from None
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise RunError(f"the Ray cluster at {address} says: {said[:500]}") from None
    finally:
        os.environ.update(others)
