"""Map a task over items, in this process or on a fixed pool of Ray actors; the only module that imports Ray.

Both executors make a worker once per process (so an encoder is loaded once), keep two items in flight for each worker
(so that one is read and tokenised while the other is in the model), and yield outcomes in the order they finish. An
item that fails is tried again, at last alone; what fails three times comes back with its traceback. On Ray, an item
that takes far longer than the others is also given to a worker that has nothing left to do.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from scalemine.config import ComputeConfig, InputError, RunError

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_ATTEMPTS = 3
IN_FLIGHT = 2
# An item straggles that takes so many times as long as half of the others took, and so many seconds at least.
STRAGGLER_FACTOR, STRAGGLER_SECONDS = 3.0, 20.0


Advance = Callable[[int], None]
ShowProgress = Callable[[str, int | None], AbstractContextManager[Advance]]


@contextlib.contextmanager
def silent(_: str, __: int | None) -> Iterator[Advance]:
    """Show no progress."""
    yield lambda _rows: None


class Stopped(Exception):  # noqa: N818  not an error: the user asked for it
    """A signal asked the run to stop; what was in flight is finished and kept."""


@dataclass(frozen=True)
class Outcome(Generic[ItemT, ResultT]):
    """What became of an item: a result, or the traceback of its last failure; and how many attempts failed."""

    item: ItemT
    result: ResultT | None
    error: str | None = None
    failures: int = 0


class Executor(Protocol):
    """Runs a task over items."""

    def map(
        self,
        make_worker: Callable[[], Callable[[ItemT], ResultT]],
        items: Sequence[ItemT],
        *,
        attempts: int = MAX_ATTEMPTS,
        in_flight: int = IN_FLIGHT,
        copies: bool = True,
    ) -> Iterator[Outcome[ItemT, ResultT]]:
        """Yield the outcome of every item, in the order they finish.

        Args:
            make_worker: Called once in each process; must pickle.
            items: Small values that pickle; put the largest first.
            attempts: How often an item is tried before it is given up; the last time alone in its process.
            in_flight: Items that a process works on at a time, each in a thread; at most two.
            copies: Whether two workers may be at one item at a time, the first to finish counting: what a worker
                writes must then be whole, and the same from both.

        Raises:
            Stopped: A signal came; items in flight were finished and yielded before.
            RunError: An item failed for a reason that trying it again would not mend, such as a full disk.
        """
        ...


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """While entered, call something every so many seconds, in a thread of its own."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                action()
            except Exception:  # noqa: BLE001  one that fails is told of, and the next may not
                logger.warning("what is to be done every %.0f s has failed", seconds, exc_info=True)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class StopRequest(Protocol):
    """Says whether a stop was asked for."""

    @property
    def requested(self) -> bool:
        """Whether it was."""
        ...


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGUSR1 asks for a stop, and a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("%s: finishing what is in flight, then stopping", signal.Signals(number).name)

    def raise_if_requested(self) -> None:
        """Raise ``Stopped`` if a signal has come."""
        if self.requested:
            raise Stopped


@dataclass
class _Attempt(Generic[ItemT]):
    item: ItemT
    max_failures: int
    failures: int = 0
    num_calls: int = 0
    since: float = 0.0
    is_done: bool = False

    @property
    def runs_alone(self) -> bool:
        """Whether it must not share its process: it has failed before, or has one chance only."""
        return self.failures > 0 or self.max_failures == 1


@dataclass(frozen=True)
class InlineExecutor:
    """Runs the task in this process, two items at a time."""

    signals: StopSignals = field(default_factory=StopSignals)

    def map(
        self,
        make_worker: Callable[[], Callable[[ItemT], ResultT]],
        items: Sequence[ItemT],
        *,
        attempts: int = MAX_ATTEMPTS,
        in_flight: int = IN_FLIGHT,
        copies: bool = True,
    ) -> Iterator[Outcome[ItemT, ResultT]]:
        """Yield the outcome of every item; see ``Executor.map``."""
        if not items:
            return
        worker = make_worker()
        todo = deque(_Attempt(item, attempts) for item in items)
        running: dict[Future[ResultT], _Attempt[ItemT]] = {}
        with ThreadPoolExecutor(in_flight, thread_name_prefix="shard") as threads:
            while running or (todo and not self.signals.requested):
                while todo and len(running) < in_flight and not self.signals.requested:
                    attempt = todo.popleft()
                    running[threads.submit(worker, attempt.item)] = attempt
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    attempt = running.pop(future)
                    error = future.exception()
                    if isinstance(error, RunError):
                        raise error
                    if error is None:
                        yield Outcome(attempt.item, future.result(), failures=attempt.failures)
                        continue
                    attempt.failures += 1
                    if attempt.failures >= attempts:
                        message = "".join(traceback.format_exception(error))
                        yield Outcome(attempt.item, None, message, attempt.failures)
                    else:
                        todo.append(attempt)
        self.signals.raise_if_requested()


class _Actor:
    """The Ray actor: a process that outlives a map, so that libraries are imported once, and its worker of this map."""

    def __init__(self) -> None:
        self._worker: Callable[[Any], Any] | None = None

    def prepare(self, make_worker: Callable[[], Callable[[Any], Any]]) -> int:
        self._worker = None  # the old one goes before the new one takes memory
        self._worker = make_worker()
        return os.getpid()

    def run(self, item: object) -> object:
        assert self._worker is not None
        return self._worker(item)


@dataclass
class _Member:
    """One place of the pool: an actor and what it is doing."""

    actor: Any
    is_new: bool
    is_ready: bool = False
    running: dict[Any, _Attempt[Any]] = field(default_factory=dict)

    def has_room(self, attempt: _Attempt[Any], in_flight: int) -> bool:
        """So many at a time, but for those that run alone."""
        if attempt.runs_alone or any(other.runs_alone for other in self.running.values()):
            return not self.running
        return len(self.running) < in_flight


class RayExecutor:
    """Runs the task on a fixed pool of Ray actors, which stay up from one map to the next.

    Args:
        workers: Number of actors.
        cpus_per_worker: CPUs that Ray reserves for each.
        gpus_per_worker: GPUs that Ray reserves for each.
        signals: Ask for a stop.
    """

    def __init__(self, workers: int, *, cpus_per_worker: float, gpus_per_worker: float, signals: StopSignals) -> None:
        import ray

        self._ray = ray
        self._workers, self._signals = workers, signals
        self._actor_class = ray.remote(_Actor).options(
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT,
        )
        self._idle: list[Any] = []

    def map(
        self,
        make_worker: Callable[[], Callable[[ItemT], ResultT]],
        items: Sequence[ItemT],
        *,
        attempts: int = MAX_ATTEMPTS,
        in_flight: int = IN_FLIGHT,
        copies: bool = True,
    ) -> Iterator[Outcome[ItemT, ResultT]]:
        """Yield the outcome of every item; see ``Executor.map``."""
        if not items:
            return
        pool = _Pool(self, make_worker, min(self._workers, len(items)), in_flight, copies)
        todo = deque(_Attempt(item, attempts) for item in items)
        try:
            while pool.is_running or (todo and not self._signals.requested):
                if not self._signals.requested:
                    pool.submit(todo)
                for attempt, result, error in pool.collect():
                    if error is None:
                        yield Outcome(attempt.item, result, failures=attempt.failures)
                        continue
                    attempt.failures += 1
                    if attempt.failures >= attempts:
                        yield Outcome(attempt.item, None, error, attempt.failures)
                    else:
                        todo.append(attempt)
        finally:
            pool.disband()
        self._signals.raise_if_requested()

    def take_actor(self) -> tuple[Any, bool]:
        """Return an actor that is idle, or a new one; and whether it is new."""
        return (self._idle.pop(), False) if self._idle else (self._actor_class.remote(), True)

    def give_back(self, actor: Any) -> None:  # noqa: ANN401
        """Keep an actor for the next map."""
        self._idle.append(actor)

    def close(self) -> None:
        """End the actors."""
        while self._idle:
            self._ray.kill(self._idle.pop())


def may_hand_out_ahead(num_left: int, num_members: int) -> bool:
    """Return whether an actor that has an item is given its second, with so many not handed out."""
    return num_members == 1 or num_left > num_members


class _Pool:
    """The actors of one map; one that dies is replaced, and what it did comes back as failed."""

    def __init__(
        self,
        executor: RayExecutor,
        make_worker: Callable[[], Callable[[Any], Any]],
        size: int,
        in_flight: int,
        copies: bool,
    ) -> None:
        import ray

        self._ray, self._executor, self._in_flight, self._copies = ray, executor, in_flight, copies
        self._make_worker = ray.put(make_worker)
        self._deaths_at_birth = 0
        self._durations: list[float] = []
        self._waiting: dict[Any, _Member] = {}
        self._members = [self._start() for _ in range(size)]
        self._since, self._warned = time.monotonic(), False

    @property
    def is_running(self) -> bool:
        return any(not attempt.is_done for member in self._members for attempt in member.running.values())

    def _start(self) -> _Member:
        member = _Member(*self._executor.take_actor())
        self._waiting[member.actor.prepare.remote(self._make_worker)] = member
        return member

    def submit(self, todo: deque[_Attempt[Any]]) -> None:
        """Hand out items from the left: each actor gets one before any gets its second.

        The last items are kept for whoever is free first: a second would wait behind its first, maybe on a slow node,
        while others have nothing to do.
        """
        for load in range(self._in_flight):
            for member in self._members:
                may = not load or may_hand_out_ahead(len(todo), len(self._members))
                is_free = member.is_ready and len(member.running) <= load
                if todo and may and is_free and member.has_room(todo[0], self._in_flight):
                    self._hand_out(todo.popleft(), member)
        if self._copies and not todo:
            self._copy_straggler()

    def _hand_out(self, attempt: _Attempt[Any], member: _Member) -> None:
        if not attempt.num_calls:
            attempt.since = time.monotonic()
        attempt.num_calls += 1
        call = member.actor.run.remote(attempt.item)
        member.running[call] = attempt
        self._waiting[call] = member

    def _copy_straggler(self) -> None:
        """Give the item that is in flight the longest to a member that has nothing to do, if it takes too long."""
        idle = [member for member in self._members if member.is_ready and not member.running]
        alone = [
            attempt
            for member in self._members
            for attempt in member.running.values()
            if attempt.num_calls == 1 and not attempt.is_done
        ]
        if not (idle and alone and self._durations):
            return
        oldest = min(alone, key=lambda attempt: attempt.since)
        taken = time.monotonic() - oldest.since
        if taken > max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(self._durations)):
            logger.warning("an item takes %.0f s, where others took less: an idle worker begins it, too", taken)
            self._hand_out(oldest, idle[0])

    def collect(self) -> Iterator[tuple[_Attempt[Any], Any, str | None]]:
        """Yield what has finished within half a second: the attempt, its result, its error."""
        done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=0.5)
        for call in done:
            member = self._waiting.pop(call)
            attempt = member.running.pop(call, None)
            try:
                result = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, RunError):
                    raise error.cause from None
                if attempt is None:
                    raise RuntimeError(f"a worker could not be set up:\n{error}") from None
                yield from self._failed([attempt], str(error))
            except self._ray.exceptions.RayError as error:  # the actor, its memory or its node
                attempts = [attempt, *member.running.values()] if attempt else list(member.running.values())
                if attempt and isinstance(error, self._ray.exceptions.ObjectLostError):
                    attempts = [attempt]  # the result alone is gone; if the actor is too, its next call says so
                else:
                    self._replace(member, str(error))
                yield from self._failed(attempts, f"the worker process died: {error}")
            else:
                if attempt is None:
                    member.is_ready, self._deaths_at_birth = True, 0
                elif not attempt.is_done:  # else a copy was faster
                    attempt.is_done = True
                    self._durations.append(time.monotonic() - attempt.since)
                    yield attempt, result, None
        self._warn_if_none_is_ready()

    def _failed(self, attempts: Sequence[_Attempt[Any]], error: str) -> Iterator[tuple[_Attempt[Any], Any, str]]:
        """Yield what failed, but for what another worker has done, or is doing."""
        for attempt in attempts:
            attempt.num_calls -= 1
            if not attempt.is_done and not attempt.num_calls:
                yield attempt, None, error

    def _replace(self, member: _Member, error: str) -> None:
        if not member.is_ready and member.is_new:  # one of an earlier map may have gone with its node since
            self._deaths_at_birth += 1
            if self._deaths_at_birth >= MAX_ATTEMPTS:
                raise RuntimeError(f"no worker could be started; the last one said: {error}")
        logger.warning("a worker died and is replaced (%s)", error.strip().splitlines()[0])
        for call in [call for call, owner in self._waiting.items() if owner is member]:
            del self._waiting[call]
        self._ray.kill(member.actor)  # it may be out of reach, and at work
        self._members[self._members.index(member)] = self._start()

    def _warn_if_none_is_ready(self) -> None:
        if not self._warned and time.monotonic() - self._since > 60 and not any(m.is_ready for m in self._members):
            self._warned = True
            logger.warning("no worker is up after 60 s: does the cluster have the CPUs or GPUs that each one asks for?")

    def disband(self) -> None:
        """Give back the actors that are well and have nothing to do; end the others."""
        for member in self._members:
            if member.is_ready and not member.running:
                self._executor.give_back(member.actor)
            else:
                self._ray.kill(member.actor)


@contextlib.contextmanager
def make_executor(
    config: ComputeConfig,
    *,
    signals: StopSignals,
    wants_gpu: bool,
    cpus_per_worker: float | None = None,
    num_cpus: int | None = None,
) -> Iterator[Executor]:
    """Give the executor that a configuration names; a Ray session that this starts also ends with it.

    Args:
        config: Where the work runs.
        signals: Ask for a stop.
        wants_gpu: Whether a worker uses a GPU where the cluster has one.
        cpus_per_worker: CPUs that Ray reserves for each worker; None: one here, on a cluster one per thread.
        num_cpus: CPUs of a Ray session on this machine; None: one per worker.

    Raises:
        InputError: The named Ray cluster does not answer.
    """
    if config.executor == "inline":
        yield InlineExecutor(signals)
        return
    with ray_session(config, num_cpus=num_cpus):
        import ray

        gpus = config.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if wants_gpu and ray.cluster_resources().get("GPU", 0) > 0 else 0.0
        cpus = cpus_per_worker
        if cpus is None:
            # On a machine of its own a worker's share of the cores is a matter of threads, not of Ray's bookkeeping.
            cpus = 1.0 if config.address == "local" else float(config.threads or 1)
        executor = RayExecutor(config.workers, cpus_per_worker=cpus, gpus_per_worker=gpus, signals=signals)
        try:
            yield executor
        finally:
            executor.close()


def threads_of_worker(config: ComputeConfig) -> int:
    """Return how many threads a worker computes with: as configured, or its share of this machine's cores."""
    if config.threads is not None:
        return config.threads
    # The nodes of a cluster are not this machine.
    return max(1, num_cores() // config.workers) if config.address == "local" else 1


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def ray_session(config: ComputeConfig, *, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to the Ray cluster that a configuration names; a local one is started, with so many CPUs.

    Raises:
        InputError: There is none at that address.
    """
    prepare_ray(is_local=config.address == "local")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {}
    if config.address == "local":
        options = {"num_cpus": num_cpus or config.workers, "include_dashboard": False}
    try:
        _knock(config.address)
        with signals_kept():
            ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"compute.address: no Ray cluster at {config.address!r} ({str(error).splitlines()[0]}); "
            f"start one, or set compute.address=local"
        ) from None
    try:
        if config.address == "local" and not ip_address(ray.util.get_node_ip_address()).is_loopback:
            logger.warning("Ray was imported before this session, and listens to the network; only its token guards it")
        yield
    finally:
        ray.shutdown()


class RayJobs:
    """What scikit-learn shares out by joblib, and calls of our own, on a pool of Ray actors.

    To be used by the thread that it was made in: joblib knows its backend by thread.

    Args:
        workers: Number of actors.
    """

    def __init__(self, workers: int) -> None:
        import ray

        self._ray, self.workers = ray, workers

    def map(
        self, function: Callable[..., ResultT], shared: Sequence[object], calls: Sequence[tuple[int, tuple[Any, ...]]]
    ) -> Iterator[list[ResultT]]:
        """Yield the results of ``function(shared[place], *arguments)``, some calls at a time, in their order.

        Args:
            function: What is called, by processes that compute with one thread each.
            shared: Each is sent to a machine once, not with every call.
            calls: Place in ``shared``, and arguments.

        Raises:
            InputError: As ``function`` does.
        """
        from joblib import Parallel, delayed

        kept = [self._ray.put(one) for one in shared]
        at_a_time = 4 * self.workers
        with Parallel(n_jobs=self.workers, batch_size=1) as parallel:
            for start in range(0, len(calls), at_a_time):
                some = calls[start : start + at_a_time]
                found = parallel(delayed(_call_alone)(function, [kept[place]], given) for place, given in some)
                for one in found:
                    if isinstance(one, InputError):
                        raise one
                yield found


def _call_alone(function: Callable[..., ResultT], kept: Sequence[Any], given: tuple[Any, ...]) -> ResultT | InputError:
    """Call a function in a worker, with one thread: sums over a varying number of threads round differently."""
    import ray
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        try:
            return function(ray.get(kept[0]), *given)
        except InputError as error:  # as Ray hands errors on, their line is lost in a traceback
            return error


@contextlib.contextmanager
def ray_jobs(config: ComputeConfig) -> Iterator[RayJobs | None]:
    """Let joblib work on Ray where a configuration says so; None: inline, or in a Ray worker, which has its share."""
    if config.executor == "inline":
        yield None
        return
    with ray_session(config):
        import ray

        if ray.get_runtime_context().get_actor_id() is not None:
            yield None
            return
        from joblib import parallel_config
        from ray.util.joblib import register_ray

        register_ray()
        with parallel_config("ray", n_jobs=config.workers):
            yield RayJobs(config.workers)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Keep who asked for SIGTERM from losing it to Ray, which aborts on it, whatever handler was there."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def prepare_ray(*, is_local: bool) -> None:
    """Set what Ray reads once, when it is imported; a local session is closed to other users and machines.

    The processes that this one starts inherit it, so they may join its session.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if is_local:
        _private_token()
        # Else Ray takes the machine's outward address, whatever it is told, and all of its processes listen on it.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def await_nodes(address: str, nodes: int, deadline: float) -> int:
    """Wait until a Ray cluster has so many nodes, or until the deadline of the monotonic clock; return how many it has.

    Its address is that of its first node, HOST:PORT.
    """
    there = 0
    while there < nodes and time.monotonic() < deadline:
        try:
            with ray_session(ComputeConfig(executor="ray", address=address)):
                import ray

                while there < nodes and time.monotonic() < deadline:
                    there = sum(node["Alive"] for node in ray.nodes())
                    time.sleep(0.2)
        except (InputError, RuntimeError):  # the first node is not up yet
            time.sleep(0.5)
    return there


def _knock(address: str) -> None:
    """Raise OSError where nothing answers at host:port; Ray itself would go on trying for many minutes."""
    match = re.fullmatch(r"([\w.-]+):(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _private_token() -> None:
    """Guard this process's own Ray sessions by a token that only this user can read.

    A Ray port runs any code that it is sent.

    Ray reads it once in a process, so it stays until the process ends.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="scalemine-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"] = "token", str(token)
