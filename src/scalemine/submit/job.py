"""A job: a stage of the command line, with its configuration, on what a profile names; and its record.

A job's record is ``WORKDIR/jobs/ID.json``; what is sent lies beside it, in ``WORKDIR/jobs/ID``.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from scalemine.config import Config, InputError
from scalemine.redaction import redact
from scalemine.store import Workdir, read_as, write_json
from scalemine.submit.profile import Profile

TargetName = Literal["local", "ray", "slurm", "kubernetes"]
State = Literal["waiting", "running", "done", "failed", "stopped", "unknown"]

# What a job's folder holds, beside what is sent: its exit code, what it said, and that it was asked to stop.
EXIT, LOG, ASKED = "exit", "log", "asked"
# The exit code of a stage that a signal stopped.
EXIT_STOPPED = 75


@dataclass(frozen=True)
class Job:
    """A job, before it is sent.

    Args:
        id: Its name; also that of what runs it, so lower-case letters, digits and hyphens.
        stage: The command.
        config: The configuration file, as it was when the job was made; in the job's folder.
        settings: Of keys, by ``a.b=c``: those of the profile, then the user's.
        folder: Where the command runs; relative paths begin there.
        records: The folder with the record.
        profile: What it may take.
        shares: Of an embedding without Ray: how many jobs share the corpus out; None: one job, with Ray.
    """

    id: str
    stage: str
    config: Path
    settings: tuple[str, ...]
    folder: Path
    records: Path
    profile: Profile
    shares: int | None = None

    @property
    def home(self) -> Path:
        """The job's own folder."""
        return self.records / self.id

    def argv(self, program: Sequence[str], *config: str) -> list[str]:
        """Return the command, but for what only the place knows where it runs: an address, a share, a path."""
        return [*program, self.stage, *config, *(word for one in self.settings for word in ("--set", one))]


def own_program() -> list[str]:
    """Return the command line of scalemine, of the Python at hand."""
    return [sys.executable, "-m", "scalemine"]


def new_id(stage: str) -> str:
    """Return the name of a new job."""
    return f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def make_job(
    stage: str,
    path: Path,
    config: Config,
    overrides: Sequence[str],
    profile: Profile,
    *,
    records: Path | None = None,
    shares: int | None = None,
) -> Job:
    """Return the job of a stage; nothing is written.

    Args:
        stage: The command.
        path: The configuration file.
        config: What it says, with the overrides.
        overrides: ``a.b=c``; they win over the profile.
        profile: What the job may take.
        records: Where its record goes; None: into the workdir.
        shares: Of an embedding without Ray.

    Raises:
        InputError: Shares of something that has none.
    """
    if shares is not None and (stage != "embed" or shares < 1):
        raise InputError(f"--array: only embed is shared out among at least one job; got {stage}, {shares}")
    settings = settings_of(stage, config, profile, with_ray=shares is None)
    where = (records or Workdir(config.workdir).jobs).absolute()
    name = new_id(stage)
    folder = Path.cwd()
    return Job(name, stage, where / name / path.name, (*settings, *overrides), folder, where, profile, shares)


def settings_of(stage: str, config: Config, profile: Profile, *, with_ray: bool) -> list[str]:
    """Return what a profile says of a configuration: how many workers, and what each has; no result depends on it."""
    threads = f"compute.threads={profile.threads_of_worker}"
    if not with_ray:
        return ["compute.executor=inline", "compute.workers=1", threads]
    found = ["compute.executor=ray", threads, f"compute.gpus_per_worker={min(1, profile.gpus)}"]
    if stage == "train":
        return found if config.train.is_baseline else [*found, f"train.processes={profile.workers}"]
    if stage != "sweep":
        return [*found, f"compute.workers={profile.workers}"]
    processes, share = config.train.processes, config.sweep.gpus_per_run
    if profile.gpus and share is not None and 0 < share < 1:  # several runs on one GPU
        runs, threads_of_run = profile.workers * int(1 / share), max(1, profile.threads_of_worker // int(1 / share))
        return [found[0], f"compute.threads={threads_of_run}", *found[2:], f"sweep.concurrency={runs}"]
    runs = max(1, profile.workers // processes)
    return [*found, f"sweep.concurrency={runs}", f"sweep.gpus_per_run={processes if profile.gpus else 0}"]


@dataclass(frozen=True)
class Sent:
    """A job that was sent, as its record says.

    Args:
        id: Of the job.
        target: Where to.
        stage: The command.
        home: The job's own folder.
        handle: What it is called there.
        values: The whole record.
    """

    id: str
    target: TargetName
    stage: str
    home: Path
    handle: dict[str, Any]
    values: dict[str, Any]


def write_files(job: Job, source: Path, files: dict[str, str]) -> None:
    """Make the job's folder: the configuration as it is now, and what is sent; only its owner may read it."""
    job.home.mkdir(parents=True, mode=0o700)
    shutil.copyfile(source, job.config)
    for name, text in files.items():
        place = job.home / name
        place.write_text(text, encoding="utf-8")
        place.chmod(0o700 if text.startswith("#!") else 0o600)


def write_record(job: Job, target: TargetName, handle: dict[str, Any]) -> Sent:
    """Write the record of a job that was sent."""
    values = {
        "id": job.id, "target": target, "stage": job.stage, "config": str(job.config), "folder": str(job.folder),
        "settings": redact(job.settings), "shares": job.shares, "profile": job.profile.model_dump(mode="json"),
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "handle": handle,
    }  # fmt: skip
    write_json(job.records / f"{job.id}.json", values)
    return read_record(job.records / f"{job.id}.json")


def read_record(path: Path) -> Sent:
    """Return a job by its record.

    Raises:
        InputError: That is no record of a job.
    """
    try:
        sent = read_as(path, _Record)
    except (OSError, InputError):
        raise InputError(f"{path}: no record of a job") from None
    # Names become paths, and what is handed over becomes words of a command line.
    if sent.id != path.stem or not re.fullmatch(_NAME, sent.id) or not _is_handle(sent.target, sent.handle):
        raise InputError(f"{path}: no record of a job (its names are not those that submit gives)")
    return Sent(sent.id, sent.target, sent.stage, path.parent / sent.id, sent.handle, asdict(sent))


@dataclass(frozen=True)
class _Record:
    """What is read of a job's record."""

    id: str
    target: TargetName
    stage: str
    handle: dict[str, Any]
    shares: Annotated[int, Field(ge=1, le=100_000)] | None
    submitted: str


_NAME = r"[a-z0-9][a-z0-9-]*"
# By what a job is called where it was sent to: each value in full.
_HANDLES: dict[TargetName, dict[str, str]] = {
    "local": {"pid": r"\d{1,9}", "started": r"[\d.e+]{1,30}"},
    "ray": {"address": r"https?://\S+", "token": r"None|/.*"},
    "slurm": {"slurm": r"\d+"},
    "kubernetes": {"namespace": _NAME, "name": _NAME},
}


def _is_handle(target: TargetName, handle: dict[str, Any]) -> bool:
    forms = _HANDLES[target]
    return handle.keys() == forms.keys() and all(re.fullmatch(form, str(handle[key])) for key, form in forms.items())


def find_jobs(workdir: Path) -> list[Sent]:
    """Return the jobs of a workdir, the oldest first."""
    found = [read_record(path) for path in Workdir(workdir).jobs.glob("*.json")]
    return sorted(found, key=lambda sent: (sent.values["submitted"], sent.id))


# How deep below the current folder the workdir of a job is looked for by the job's name.
_DEPTH = 3


def find_job(name: str) -> Sent:
    """Return a job by its name, its record, or its folder.

    Args:
        name: The path of a record or folder; or a name, of a job whose workdir lies in the current folder.

    Raises:
        InputError: There is no such job, or there are several.
    """
    path = Path(name)
    if path.suffix == ".json" and path.exists():
        return read_record(path)
    if path.is_dir() and path.with_name(f"{path.name}.json").exists():
        return read_record(path.with_name(f"{path.name}.json"))
    if not re.fullmatch(_NAME, name):
        raise InputError(f"{name}: no such job (expected its name, or the path of its record, WORKDIR/jobs/NAME.json)")
    found = sorted({place.resolve() for place in _records(name)})
    if not found:
        raise InputError(
            f"{name}: no such job in the workdirs below {Path.cwd()}; give the path of its record, "
            f"WORKDIR/jobs/NAME.json"
        )
    if len(found) > 1:
        raise InputError(f"{name}: several jobs of that name: {', '.join(map(str, found))}; give the path of one")
    return read_record(found[0])


def _records(name: str) -> Iterator[Path]:
    for depth in range(_DEPTH + 1):
        yield from Path().glob("/".join(["*"] * depth + ["jobs", f"{name}.json"]))


def exit_state(home: Path, name: str = EXIT) -> State | None:
    """Return how a job ended, by the file that its script leaves; None where there is none."""
    try:
        code = int((home / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state_of_code(code)


def state_of_code(code: int) -> State:
    """Return how a stage ended, by its exit code."""
    return "done" if code == 0 else "stopped" if code == EXIT_STOPPED else "failed"


def read_log(home: Path) -> str:
    """Return the log of a job, which is written into its folder."""
    parts = sorted(home.glob(f"{LOG}*"))
    texts = [(place.name, place.read_text(encoding="utf-8", errors="replace")) for place in parts]
    return texts[0][1] if len(texts) == 1 else "".join(f"== {name}\n{text}" for name, text in texts)


def check_private(path: Path) -> None:
    """Refuse a token that others can read.

    Raises:
        InputError: They can, or there is none.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: the token cannot be read ({error.strerror})") from None
    if mode & 0o077 or not os.access(path, os.R_OK):
        raise InputError(f"{path}: others may read this token, and whoever has it runs code as you; chmod 600 it")
