"""Drills: a run is struck on purpose, on a small cluster on this machine, and must end with the same bytes.

The run is `scalemine mine` in a process of its own, as a user calls it. The undisturbed one is a single process, and is
kept for further drills of the same configuration and code. All of it lies in a folder beside the work directory.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import psutil

from scalemine import bucket
from scalemine.config import MINING_SECTIONS, Config, InputError, RunError, load_config
from scalemine.executor import StopSignals, prepare_ray, signals_kept
from scalemine.lease import hold_workdir
from scalemine.sources import find_sources
from scalemine.store import Workdir, file_sha256, fingerprint, read_json, write_json

logger = logging.getLogger(__name__)

# Seconds between two looks at how far the run has come; a shard of a drill may take a tenth of a second.
LOOK = 0.005
# Seconds that killed processes may take to be gone.
GONE = 10.0
OBJECT_STORE_BYTES = 100 * 2**20
FINISHED = ".finished.json"
# What says when and how long, and so is another's in each run: manifests, the report, and whatever is hidden.
TIMED = ("manifest.json", "report.html", "corpus.json")


class Kill(StrEnum):
    """What is killed."""

    actor = "actor"
    worker = "worker"
    node = "node"
    driver = "driver"


@dataclass(frozen=True)
class Blow:
    """What is killed, and at which share of finished shards."""

    kill: Kill
    at: float


@dataclass(frozen=True)
class Struck:
    """A blow that was dealt: to what, at how many finished shards of how many, and which these were."""

    blow: Blow
    what: str
    finished: int
    of: int
    done_before: dict[Path, tuple[int, int] | None]

    def tell(self) -> str:
        """Return it as a sentence, with what became of the shards that were finished."""
        kept = sum(_stamp(path) == stamp for path, stamp in self.done_before.items())
        return (
            f"killed at {self.finished} of {self.of} shards ({self.blow.kill}, --at {self.blow.at:.2f}): {self.what}; "
            f"{kept} of these {self.finished} shards were left as they were, {self.of - kept} were done after"
        )


@dataclass
class Drill:
    """What came of a drill."""

    folder: Path
    struck: list[Struck] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    rows_again: int = 0
    equal: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        """Whether every blow was dealt while the run was at work, and the bytes are equal."""
        return bool(self.struck) and not self.missed and bool(self.equal) and not self.different

    def judge(self, whole: Path, work: Path) -> None:
        """Compare with the undisturbed run."""
        self.kept = [struck.tell() for struck in self.struck]
        manifest = Workdir(work).manifest
        throughput = read_json(manifest).get("throughput") if manifest.exists() else None
        self.rows_again = (throughput or {}).get("rows_again", 0)
        self.equal, self.different = compare(whole, work)

    @property
    def lines(self) -> list[str]:
        """What to say of it."""
        found = [*self.kept, *(f"failed: {reason}" for reason in self.missed)]
        found.append(f"begun and lost, so begun again in the same call: {self.rows_again:,} rows")
        folders = Counter(str(Path(name).parent) for name in self.equal)
        of_folders = ", ".join(f"{count} {folder.replace('.', 'workdir')}" for folder, count in sorted(folders.items()))
        found.append(f"equal byte by byte: {len(self.equal)} files ({of_folders})")
        found += [f"DIFFERENT: {name}" for name in self.different]
        found.append("passed" if self.has_passed else f"FAILED; its files are kept in {self.folder}")
        return found


def draw_moment(seed: int) -> float:
    """Return the share of finished shards at which a drill of a seed kills."""
    return round(random.Random(f"{seed}:moment").uniform(0.0, 0.95), 2)


def plan_drills(number: int, seed: int, kill: Kill | None, at: float | None) -> list[tuple[int, Blow]]:
    """Return seeds and blows of so many drills: each kind in turn unless one is named, at moments that they draw."""
    kinds = [kill] if kill else list(Kill)
    seeds = range(seed, seed + number)
    return [(one, Blow(kinds[one % len(kinds)], draw_moment(one) if at is None else at)) for one in seeds]


def run_drills(
    path: Path,
    overrides: Sequence[str],
    plans: Sequence[tuple[int, Sequence[Blow]]],
    *,
    num_nodes: int = 2,
    signals: StopSignals | None = None,
) -> Iterator[Drill]:
    """Mine once undisturbed, then with each of some series of blows, and compare.

    Args:
        path: The configuration.
        overrides: Of its keys, as on the command line.
        plans: Of each drill the seed, which decides which actor or node is killed, and the blows in the order of their
            moments.
        num_nodes: Nodes of the cluster beside the one of the driver, with one worker each.
        signals: Ask for a stop.

    Raises:
        InputError: Another drill is at work in the folder beside the work directory, that is in a bucket, or a file is
            not there.
        RunError: A run ended with an error of its own.
        Stopped: A signal came.
    """
    signals = signals or StopSignals()
    # One kind of processor, and one engine: what a cluster would choose by itself may differ from a single process.
    overrides = [*overrides, "encoder.device=cpu"]
    config = load_config(path, overrides, needs=MINING_SECTIONS)
    if config.encoder.engine == "auto":
        overrides.append("encoder.engine=torch")
        config = load_config(path, overrides, needs=MINING_SECTIONS)
    if bucket.is_mirrored(config.workdir):
        raise InputError(f"workdir: {config.workdir}: a drill is held on this machine; set workdir to a folder")
    scratch = config.workdir.absolute().with_name(f"{config.workdir.name}.chaos")
    with hold_workdir(scratch):
        whole = scratch / f"undisturbed-{_print_of(config)}"
        _mine_undisturbed(whole, path, overrides, signals)
        with _Cluster(num_nodes) as cluster:
            for seed, blows in plans:
                drill, work = Drill(scratch / f"drill-{seed}"), scratch / "drill"
                _begin(work, whole)
                run = _Run(path, [*overrides, *cluster.settings, f"workdir={work}"], scratch / "drill.log")
                try:
                    with run:
                        _strike_and_wait(run, cluster, blows, _Progress(config, whole, work), drill, signals, seed)
                except RunError as error:
                    drill.missed.append(str(error))
                drill.judge(whole, work)
                if not drill.has_passed:  # its files are to be looked at
                    shutil.rmtree(drill.folder, ignore_errors=True)
                    work.rename(drill.folder)
                    shutil.copy(scratch / "drill.log", drill.folder)
                yield drill


def _begin(work: Path, whole: Path) -> None:
    """Make the folder of a drill; what comes before the encoding is taken from the undisturbed run."""
    shutil.rmtree(work, ignore_errors=True)
    named = Workdir(whole)
    for stage in (named.corpus, named.anchors, named.probe):
        if stage.exists():
            shutil.copytree(stage, work / stage.name)


def compare(whole: Path, work: Path) -> tuple[list[str], list[str]]:
    """Return which files of two runs are equal byte by byte, and which are not, or are only in one of them.

    Files that hold times are left out: manifests and the report.
    """
    equal: list[str] = []
    different: list[str] = []
    for name in sorted(_outputs(whole) | _outputs(work)):
        one, other = whole / name, work / name
        is_equal = one.is_file() and other.is_file() and file_sha256(one) == file_sha256(other)
        (equal if is_equal else different).append(name)
    return equal, different


def _outputs(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_manifest = path.suffix == ".json" and path.with_suffix("").exists()
        if path.is_file() and not is_hidden and not is_manifest and path.name not in TIMED:
            found.add(str(name))
    return found


def _print_of(config: Config) -> str:
    """Return a hash of what decides the bytes: the configuration, the files it reads, and the code.

    Raises:
        InputError: A file is not there.
    """
    settings = config.model_dump(mode="json", exclude={"workdir", "compute", "why"})
    read: list[list[Any]] = [[source.name, source.num_bytes] for source in find_sources(config.corpus.uri)]
    for key, uri in (("positives.uri", config.positives.uri), ("positives.test_uri", config.positives.test_uri)):
        if uri:
            path = bucket.file_of(uri)
            if not path.is_file():
                raise InputError(f"{key}: no such file: {uri}")
            read.append([uri, file_sha256(path)])
    code = [file_sha256(source) for source in sorted(Path(__file__).parent.rglob("*.py"))]
    return fingerprint([settings, read, code])


def _mine_undisturbed(whole: Path, path: Path, overrides: Sequence[str], signals: StopSignals) -> None:
    if (whole / FINISHED).exists():
        return
    logger.info("the undisturbed run: started")
    started = time.monotonic()
    inline = ["compute.executor=inline", "compute.workers=1", f"workdir={whole}"]
    with _Run(path, [*overrides, *inline], whole.with_suffix(".log")) as run:
        while run.is_up:
            signals.raise_if_requested()
            time.sleep(0.05)
        run.check()
    logger.info("the undisturbed run: %.1f s", time.monotonic() - started)
    write_json(whole / FINISHED, {"seconds": time.monotonic() - started})


class _Run:
    """`scalemine mine` in a process of its own, which goes with the drill."""

    def __init__(self, path: Path, overrides: Sequence[str], log: Path) -> None:
        self._command = [sys.executable, "-m", "scalemine", "mine", str(path)]
        for override in overrides:
            self._command += ["--set", override]
        self._log = log
        self._file: IO[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Run:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._log.open("wb")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self._file is not None:
            self._file.close()

    def start(self) -> None:
        """Call it, or call it again."""
        self.process = subprocess.Popen(self._command, stdout=self._file, stderr=self._file)

    @property
    def is_up(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def check(self) -> None:
        """Raise RunError if it has ended with an error."""
        if self.process is not None and self.process.poll():
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = said[-1] if said else "nothing"
            raise RunError(f"scalemine mine ended with exit code {self.process.returncode}: {last} (see {self._log})")


@dataclass(frozen=True)
class _Progress:
    """How far a run has come, by the manifests of its shards."""

    config: Config
    whole: Path
    work: Path

    @property
    def of(self) -> int:
        """Number of shards that are encoded in all."""
        return len(self._manifests(self.whole))

    @property
    def has_begun(self) -> bool:
        """Whether shards may be encoded by now."""
        return (self._folder(self.work) / "stage.json").exists()

    def done(self) -> list[Path]:
        """Return the manifests of finished shards."""
        return self._manifests(self.work)

    def _folder(self, root: Path) -> Path:
        named = Workdir(root)
        return named.embeddings if self.config.encoder.keep_embeddings else named.similarities

    def _manifests(self, root: Path) -> list[Path]:
        return sorted(self._folder(root).glob("*.arrow.json"))


def _strike_and_wait(
    run: _Run,
    cluster: _Cluster,
    blows: Sequence[Blow],
    progress: _Progress,
    drill: Drill,
    signals: StopSignals,
    seed: int,
) -> None:
    """Deal the blows as their moments come, and wait for the end of the run."""
    chance = random.Random(f"{seed}:victim")
    for blow in blows:
        due, what, done = math.ceil(blow.at * progress.of), None, progress.done()
        while run.is_up and what is None:
            signals.raise_if_requested()
            done = progress.done()
            if progress.has_begun and len(done) >= due:
                what = _strike(blow.kill, run, cluster, chance)  # nothing, where no worker is up yet
            time.sleep(LOOK)
        if what is None or len(progress.done()) >= progress.of:
            drill.missed.append(f"{blow.kill} at {blow.at:.2f}: all {progress.of} shards were finished by then")
        else:
            drill.struck.append(Struck(blow, what, len(done), progress.of, {path: _stamp(path) for path in done}))
            logger.info("killed at %d of %d shards: %s", len(done), progress.of, what)
        if what is None:
            break  # the run has ended
        if blow.kill is Kill.driver:
            run.start()
        elif blow.kill is Kill.node:
            cluster.add_node()
    while run.is_up:
        signals.raise_if_requested()
        time.sleep(0.05)
    run.check()


def _strike(kill: Kill, run: _Run, cluster: _Cluster, chance: random.Random) -> str | None:
    """Kill something, and see that it is gone; return what it was, or None where nothing of the kind was at work."""
    if not run.is_up or run.process is None:
        return None
    if kill is Kill.driver:
        run.process.kill()
        if run.process.wait() != -signal.SIGKILL:
            return None
        return f"process {run.process.pid}, which was called again"
    if kill is Kill.node:
        name, number = cluster.remove_node(chance)
        return f"{name} with {number} processes; another was added"
    victims = cluster.workers()
    if kill is Kill.actor:
        at_work = sorted((pid for pids in victims.values() for pid, name in pids if "_Actor" in name))
        if not at_work:
            return None
        victim = chance.choice(at_work)
        _end([victim])
        return f"actor, process {victim}"
    nodes = sorted(name for name, pids in victims.items() if any("_Actor" in title for _, title in pids))
    if not nodes:
        return None
    node = chance.choice(nodes)
    pids = [pid for pid, _ in victims[node]]
    _end(pids)
    return f"{len(pids)} worker process(es) of {node}"


def _end(pids: Sequence[int]) -> None:
    """Kill processes, and wait until they are gone.

    Raises:
        RunError: One does not go.
    """
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.send_signal(signal.SIGKILL)
            processes.append(process)
    until = time.monotonic() + GONE
    while any(_is_up(process) for process in processes):
        if time.monotonic() > until:
            raise RunError(f"killed processes {list(pids)} are still there after {GONE:.0f} s")
        time.sleep(LOOK)


def _is_up(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written again."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


class _Cluster:
    """A Ray cluster on this machine that listens to this machine alone: a node for the driver, and nodes of one CPU.

    All of them have the address 127.0.0.1: with another of the loopback's addresses, Ray's node listens to the network.
    """

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes, self._number = num_nodes, 0
        self._nodes: dict[str, Any] = {}
        self._cluster: Any = None

    def __enter__(self) -> _Cluster:
        prepare_ray(is_local=True)
        from ray.cluster_utils import Cluster

        with signals_kept():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "node_ip_address": "127.0.0.1",
                    "dashboard_agent_listen_port": None,
                },
            )
        try:
            for _ in range(self._num_nodes):
                self.add_node()
        except BaseException:
            self._cluster.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        left = [pid for node in self._nodes.values() for pid, _ in _processes_of(node)]
        self._cluster.shutdown()
        _end(left)

    @property
    def settings(self) -> list[str]:
        """What a run is to be configured with, to work here."""
        return [
            "compute.executor=ray",
            f"compute.address={self._cluster.address}",
            f"compute.workers={self._num_nodes}",
            "compute.threads=1",
            "compute.gpus_per_worker=0",
        ]

    def add_node(self) -> None:
        """Add a node of one CPU."""
        self._number += 1
        with signals_kept():
            self._nodes[f"node {self._number}"] = self._cluster.add_node(
                num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, node_ip_address="127.0.0.1"
            )

    def remove_node(self, chance: random.Random) -> tuple[str, int]:
        """Take a node away with all of its processes at once; return its name and how many these were."""
        name = chance.choice(sorted(self._nodes))
        node = self._nodes.pop(name)
        processes = [pid for pid, _ in _processes_of(node)]
        self._cluster.remove_node(node, allow_graceful=False)
        _end(processes)
        return name, len(processes) + 1

    def workers(self) -> dict[str, list[tuple[int, str]]]:
        """Return the worker processes of each node, with their titles."""
        return {
            name: [
                (pid, title) for pid, title in _processes_of(node) if title.startswith("ray::") and "Agent" not in title
            ]
            for name, node in self._nodes.items()
        }


def _processes_of(node: Any) -> Iterator[tuple[int, str]]:  # noqa: ANN401  Ray's
    """Yield the processes that a node's raylet has started, with their titles."""
    for raylet in node.all_processes.get("raylet", []):
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(raylet.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    yield process.pid, " ".join(process.cmdline())
