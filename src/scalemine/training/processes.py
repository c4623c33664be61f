"""The processes of one run: on this machine, or on a cluster by Ray Train; and how they are stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from filelock import FileLock, Timeout

from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped, StopRequest, num_cores, ray_session
from scalemine.models import device_name, precision_name
from scalemine.store import Stage, read_json, remove, write_json

logger = logging.getLogger(__name__)

# How long processes may take to end by themselves when one of them has failed.
GRACE_SECONDS = 2.0
# How long the processes of a killed call may go on before the next call gives up.
WAIT_SECONDS = 60.0
# What passes between the processes of a run and who started them; hidden, as it is no result.
SPEC, FAILURE, STOPPED, LOCK = ".spec.json", ".failure.json", ".stopped", ".lock"
# With Ray also: that a process is at work, that they are to stop, and Ray's own files.
BEGUN, STOP, RAY = ".begun", ".stop", ".ray"


def make_accelerator(config: Config, folder: Path, settings: Mapping[str, Any]) -> Accelerator:
    """Return the processes of a run, as seen from one of them.

    Raises:
        InputError: The tracker that is configured is not installed.
        RunError: There are not as many processes as configured.
    """
    options = config.train
    cpu = device_name(options.device, key="train.device") == "cpu"
    # Only float16 wants its gradients scaled; bfloat16 is the encoder's own affair.
    scaled = not cpu and precision_name(options.precision, "cuda") == "float16"
    tracker = None if config.tracking == "none" else config.tracking
    if tracker and tracker not in {str(one.value) for one in get_available_trackers()}:
        raise InputError(f"tracking: {tracker} is not installed here; pip install {tracker}, or tracking: none")
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="fp16" if scaled else "no", log_with=tracker, project_dir=str(folder),
        # The others wait while one process fills the cache.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )  # fmt: skip
    if accelerator.num_processes != options.processes:
        raise RunError(
            f"train.processes: {options.processes} wanted, but {accelerator.num_processes} are running; let scalemine "
            f"train start them itself"
        )
    if tracker:
        accelerator.init_trackers(folder.name, config={key: str(value) for key, value in settings.items()})
    return accelerator


def threads_of_process(config: Config) -> int:
    """Return how many threads a process of a run computes with: as configured, or its share of this machine's cores."""
    if config.compute.threads is not None:
        return config.compute.threads
    # The nodes of a cluster are not this machine.
    is_here = config.compute.executor != "ray" or config.train.processes == 1 or config.compute.address == "local"
    return max(1, num_cores() // config.train.processes) if is_here else 1


@contextlib.contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Hold a run for this process: processes outlive the one that started them for a while, where that is killed.

    Raises:
        InputError: Another process has held it for all of ``WAIT_SECONDS``.
    """
    try:
        # Beside the folder, which may be discarded while it is held.
        with FileLock(folder.with_name(f".{folder.name}{LOCK}"), timeout=WAIT_SECONDS):
            yield
    except Timeout:
        raise InputError(
            f"{folder}: processes of an earlier call are still at this run; wait for them, or end them"
        ) from None


@contextlib.contextmanager
def wait_for_run(folder: Path, signals: StopRequest | None) -> Iterator[None]:
    """Hold a run for this process, once no other does; that may take as long as the run.

    Raises:
        Stopped: A signal asked for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}{LOCK}"))
    while not lock.is_locked:
        if signals is not None and signals.requested:
            raise Stopped
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1)
    try:
        yield
    finally:
        lock.release()


def launch(config: Config, fold: int | None, stage: Stage, signals: StopRequest | None) -> None:
    """Do one run with several processes; a request to stop is passed on to them once.

    Raises:
        InputError: A process found the input wrong.
        RunError: A process failed.
        Stopped: A signal asked for it; the processes have written a checkpoint.
    """
    spec, failure, stopped = (stage.file(name) for name in (SPEC, FAILURE, STOPPED))
    for left in (failure, stopped):
        remove(left)
    absolute = config.model_copy(update={"workdir": config.workdir.absolute()})
    write_json(spec, {"config": absolute.model_dump(mode="json"), "fold": fold, "folder": str(stage.folder.absolute())})
    on_ray = config.compute.executor == "ray"
    try:
        said = _run_by_ray(config, stage, signals) if on_ray else _run_here(config, spec, signals)
    finally:
        remove(spec)
    if stopped.exists():
        stopped.unlink()
        raise Stopped
    if failure.exists():
        found = read_json(failure)
        remove(failure)
        raise (InputError if found["is_input"] else RunError)(found["message"])
    if said:
        raise RunError(f"{stage.folder.name}: {said}")


def _run_here(config: Config, spec: Path, signals: StopRequest | None) -> str | None:
    """Run the processes on this machine; return what is to be said of a failure that left no file."""
    with _meeting_point("127.0.0.1") as meeting:
        return _watch(_start_workers(config, spec, meeting), signals)


def _watch(workers: list[subprocess.Popen[bytes]], signals: StopRequest | None) -> str | None:
    """Wait until the processes have ended, and pass a request to stop on to them."""
    told = False
    try:
        while any(worker.poll() is None for worker in workers):
            if signals is not None and signals.requested and not told:
                told = True
                for worker in workers:
                    worker.terminate()
            if any(worker.poll() for worker in workers):  # one failed, so the others would wait for it for ever
                time.sleep(GRACE_SECONDS)
                break
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    codes = [worker.returncode for worker in workers if worker.returncode]
    return f"a process ended with code {codes[0]}; see what it said above" if codes else None


@contextlib.contextmanager
def _meeting_point(host: str) -> Iterator[dict[str, str]]:
    """Give the variables by which the processes of a run find one another, at a store in this process.

    One that the first of them started would listen on all interfaces, and let in whoever comes.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        # The store closes what it is given.
        store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(server.fileno()))
        found = {
            "MASTER_ADDR": host, "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        if ip_address(host).is_loopback:
            # Else what they exchange goes by the address that the name of this machine has.
            found |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _interface_of(host))
        yield found
        del store


def _interface_of(host: str) -> str:
    return next(str(name) for name, them in psutil.net_if_addrs().items() if any(one.address == host for one in them))


def _start_workers(config: Config, spec: Path, meeting: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run, each in a session of its own: Ctrl-C reaches them through this process, once."""
    world = config.train.processes
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads_of_process(config)),
        **meeting,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    command = [sys.executable, "-m", "scalemine.training.worker", str(spec)]
    return [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True
        )
        for rank in range(world)
    ]


def _run_by_ray(config: Config, stage: Stage, signals: StopRequest | None) -> str | None:
    """Run the processes over the nodes of a Ray cluster, which all see the workdir; as ``_run_here``."""
    threads = threads_of_process(config)
    begun, stop, own = (stage.file(name) for name in (BEGUN, STOP, RAY))
    for left in (begun, stop):
        remove(left)
    errors: list[BaseException] = []
    try:
        with ray_session(config.compute, num_cpus=config.train.processes * threads):
            trainer = _make_ray_trainer(config, stage, threads)

            def fit() -> None:
                try:
                    trainer.fit()
                except Exception as error:  # noqa: BLE001  whatever ended the run is said by the caller
                    errors.append(error)

            thread = threading.Thread(target=fit, daemon=True)
            thread.start()
            while thread.is_alive():
                if signals is not None and signals.requested:
                    if not begun.exists():  # still waiting for its place: nothing is lost
                        raise Stopped
                    stop.touch()
                thread.join(0.5)
    finally:
        for left in (begun, stop):
            remove(left)
        shutil.rmtree(own, ignore_errors=True)  # a process that was interrupted may still write there
    return f"Ray Train failed: {str(errors[0]).strip().splitlines()[-1]}" if errors else None


def _make_ray_trainer(config: Config, stage: Stage, threads: int) -> Any:  # noqa: ANN401  of Ray
    """Return what runs ``_work_in_ray`` in each process.

    Raises:
        InputError: This machine has too few GPUs.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    world, there = config.train.processes, ray.cluster_resources()
    on_gpu = there.get("GPU", 0) > 0 and config.train.device != "cpu"
    of_each = {"CPU": threads, **({"GPU": 1} if on_gpu else {})}
    for name, amount in of_each.items():
        if there.get(name, 0) < world * amount:
            said = f"train.processes: {world} want {world * amount} {name}s, and there are {there.get(name, 0):g}"
            if config.compute.address == "local":
                raise InputError(said)
            logger.warning("%s: waiting until the cluster has them", said)
    return TorchTrainer(
        _work_in_ray,
        train_loop_config={"home": str(Path.cwd()), "spec": str(stage.file(SPEC).absolute()), "threads": threads},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=world, use_gpu=on_gpu, resources_per_worker=of_each),
        # Its own files are of no use to us: what is resumed is our checkpoint.
        run_config=ray.train.RunConfig(
            name=f"{stage.fingerprint}-{os.getpid()}", storage_path=str(stage.file(RAY).absolute())
        ),
    )


def _work_in_ray(given: dict[str, Any]) -> None:
    """Do one process's part; the environment says which it is."""
    os.environ["OMP_NUM_THREADS"] = str(given["threads"])
    os.chdir(given["home"])  # Ray has put it elsewhere, and paths are taken from where the run was begun
    spec = Path(given["spec"])
    spec.with_name(BEGUN).touch()
    from scalemine.training.worker import work

    if not work(spec, StopFile(spec.with_name(STOP))):
        # Ray ends the others, which would wait for this one for ever.
        raise RuntimeError("what was wrong is said in a file")


class StopFile:
    """A request to stop that comes as a file, for processes that no signal reaches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def requested(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()
