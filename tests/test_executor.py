from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from listening import assert_listens_to_this_machine_alone
from scalemine import executor as module
from scalemine.bucket import BucketError
from scalemine.config import ComputeConfig, DiskFullError, RunError
from scalemine.executor import (
    IN_FLIGHT,
    MAX_ATTEMPTS,
    Executor,
    InlineExecutor,
    Outcome,
    Stopped,
    StopSignals,
    _private_token,
    every,
    make_executor,
    may_hand_out_ahead,
    threads_of_worker,
)

# Workers are nested functions throughout: those travel by value, so no actor needs to import this file.
Worker = Callable[[int], Any]


@contextlib.contextmanager
def executor_of(kind: str, request: pytest.FixtureRequest, workers: int = 2) -> Iterator[tuple[Executor, StopSignals]]:
    signals = StopSignals()
    if kind == "ray":
        request.getfixturevalue("ray_session")
    config = ComputeConfig(executor=kind, workers=workers if kind == "ray" else 1)
    with make_executor(config, signals=signals, wants_gpu=False) as executor:
        yield executor, signals


@pytest.fixture(scope="module", params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with executor_of(request.param, request) as (made, _):
        yield made


@pytest.fixture(scope="module")
def ray_executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with executor_of("ray", request) as (made, _):
        yield made


def by_item(outcomes: Iterator[Outcome[int, Any]]) -> dict[int, Outcome[int, Any]]:
    found = list(outcomes)
    assert len({outcome.item for outcome in found}) == len(found)
    return {outcome.item: outcome for outcome in found}


def note(folder: Path) -> Callable[[int], None]:
    """Return a function that notes an attempt at an item, from whatever process."""

    def attempt(item: int) -> None:
        with (folder / f"{item}.txt").open("a") as file:
            file.write("x")

    return attempt


def attempts_at(folder: Path, item: int) -> int:
    return len((folder / f"{item}.txt").read_text())


def test_every_item_has_its_result(executor: Executor) -> None:
    def make_worker() -> Worker:
        return lambda item: item * item

    outcomes = by_item(executor.map(make_worker, range(9)))
    assert {item: outcome.result for item, outcome in outcomes.items()} == {item: item * item for item in range(9)}
    assert {outcome.error for outcome in outcomes.values()} == {None}


def test_no_items_make_no_worker(executor: Executor) -> None:
    def make_worker() -> Worker:
        raise AssertionError

    assert list(executor.map(make_worker, [])) == []


def test_worker_is_made_once_in_a_process(executor: Executor, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        (tmp_path / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return lambda _: os.getpid()

    used = {outcome.result for outcome in executor.map(make_worker, range(12))}
    made = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
    assert len(made) == len(set(made)) <= 2
    assert used <= set(made)


def test_exception_is_reported_with_its_traceback_after_three_attempts(executor: Executor, tmp_path: Path) -> None:
    attempt = note(tmp_path)

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            if item == 3:
                raise ValueError(f"cannot do {item}")
            return item

        return work

    outcomes = by_item(executor.map(make_worker, range(6)))
    assert {item: outcome.result for item, outcome in outcomes.items() if item != 3} == {i: i for i in (0, 1, 2, 4, 5)}
    assert outcomes[3].result is None
    assert {item: outcome.failures for item, outcome in outcomes.items() if outcome.failures} == {3: MAX_ATTEMPTS}
    error = outcomes[3].error or ""
    assert "ValueError: cannot do 3" in error
    assert "in work" in error
    assert attempts_at(tmp_path, 3) == MAX_ATTEMPTS
    assert attempts_at(tmp_path, 4) == 1


def test_exception_that_passes_is_no_error(executor: Executor, tmp_path: Path) -> None:
    attempt, count = note(tmp_path), attempts_at

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            if item == 1 and len((tmp_path / "1.txt").read_text()) < 3:
                raise OSError("not yet")
            return item

        return work

    outcomes = by_item(executor.map(make_worker, range(3)))
    assert [outcomes[item].result for item in range(3)] == [0, 1, 2]
    assert [outcomes[item].failures for item in range(3)] == [0, 2, 0]
    assert count(tmp_path, 1) == 3


def test_number_of_attempts_can_be_set(executor: Executor, tmp_path: Path) -> None:
    attempt = note(tmp_path)

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            raise ValueError

        return work

    [outcome] = executor.map(make_worker, [7], attempts=1)
    assert "ValueError" in (outcome.error or "")
    assert attempts_at(tmp_path, 7) == 1


@pytest.mark.parametrize("kind", ["inline", "ray"])
def test_two_items_are_in_flight_and_no_more(kind: str, request: pytest.FixtureRequest) -> None:
    def make_worker() -> Worker:
        both, lock, running = threading.Barrier(IN_FLIGHT), threading.Lock(), []

        def work(item: int) -> int:
            with lock:
                running.append(item)
                most = len(running)
            both.wait(timeout=30)
            with lock:
                running.remove(item)
            return most

        return work

    with executor_of(kind, request, workers=1) as (one, _):
        outcomes = list(one.map(make_worker, range(2 * IN_FLIGHT)))
    assert [outcome.error for outcome in outcomes] == [None] * (2 * IN_FLIGHT)
    assert max(outcome.result or 0 for outcome in outcomes) == IN_FLIGHT


def test_one_item_at_a_time_where_that_is_wanted(executor: Executor, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        lock = threading.Lock()

        def work(item: int) -> bool:
            is_first = not (tmp_path / str(item)).exists()
            (tmp_path / str(item)).touch()
            is_alone = lock.acquire(blocking=False)
            time.sleep(0.05)
            if is_alone:
                lock.release()
            if item == 2 and is_first:
                raise OSError("once")  # what is tried again is no exception to it
            return is_alone

        return work

    outcomes = by_item(executor.map(make_worker, range(8), in_flight=1))
    assert sorted(outcomes) == list(range(8))
    assert {outcome.error for outcome in outcomes.values()} == {None}
    assert all(outcome.result for outcome in outcomes.values())


def test_last_item_is_kept_for_whoever_is_free_first(ray_executor: Executor, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        def work(item: int) -> int:
            until = time.monotonic() + 30
            while item == 0 and not (tmp_path / "2").exists() and time.monotonic() < until:
                time.sleep(0.01)
            (tmp_path / str(item)).touch()
            return os.getpid()

        return work

    found = by_item(ray_executor.map(make_worker, range(3)))
    processes = {item: outcome.result for item, outcome in found.items()}
    assert processes[2] == processes[1] != processes[0]


@pytest.mark.parametrize(
    ("num_left", "num_members", "expected"), [(1, 1, True), (2, 2, False), (3, 2, True), (1, 512, False)]
)
def test_second_item_is_handed_out_while_enough_are_left(num_left: int, num_members: int, expected: bool) -> None:
    assert may_hand_out_ahead(num_left, num_members) == expected


def test_worker_that_cannot_be_set_up_inline() -> None:
    def make_worker() -> Worker:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        list(InlineExecutor().map(make_worker, [1]))


def test_worker_that_cannot_be_set_up_in_ray(ray_executor: Executor) -> None:
    def make_worker() -> Worker:
        raise ValueError("no such model")

    with pytest.raises(RuntimeError, match="could not be set up") as caught:
        list(ray_executor.map(make_worker, [1, 2, 3]))
    assert "ValueError: no such model" in str(caught.value)

    def make_sound_worker() -> Worker:
        return lambda item: item

    assert len(list(ray_executor.map(make_sound_worker, [1, 2, 3]))) == 3


def test_worker_that_dies_in_set_up(ray_executor: Executor) -> None:
    def make_worker() -> Worker:
        os._exit(1)

    with pytest.raises(RuntimeError, match="no worker could be started"):
        list(ray_executor.map(make_worker, [1]))


def test_workers_that_die_between_two_maps_are_replaced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_worker() -> Worker:
        def work(_: int) -> int:
            time.sleep(0.5)
            return os.getpid()

        return work

    monkeypatch.setattr(module, "MAX_ATTEMPTS", 1)  # no new one may die in its set-up
    with executor_of("ray", request) as (executor, _):
        pids = {outcome.result for outcome in executor.map(make_worker, range(2))}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        outcomes = list(executor.map(make_worker, range(2)))
    assert not pids & {outcome.result for outcome in outcomes}
    assert [outcome.failures for outcome in outcomes] == [0, 0]


def test_item_that_ends_the_process_takes_no_other_with_it(ray_executor: Executor, tmp_path: Path) -> None:
    attempt = note(tmp_path)

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            if item == 2:
                time.sleep(0.2)  # so that another is in flight
                os._exit(1)
            time.sleep(0.05)
            return item

        return work

    outcomes = by_item(ray_executor.map(make_worker, range(8)))
    assert sorted(outcomes) == list(range(8))
    assert {item: outcome.result for item, outcome in outcomes.items() if item != 2} == {
        item: item for item in range(8) if item != 2
    }
    assert "the worker process died" in (outcomes[2].error or "")
    assert attempts_at(tmp_path, 2) == MAX_ATTEMPTS


def test_item_that_ends_the_process_takes_no_other_with_it_in_one_attempt(ray_executor: Executor) -> None:
    def make_worker() -> Worker:
        def work(item: int) -> int:
            if item == 0:
                time.sleep(0.3)
                os._exit(1)
            time.sleep(1.0)
            return item

        return work

    outcomes = by_item(ray_executor.map(make_worker, range(4), attempts=1))
    assert [item for item, outcome in outcomes.items() if outcome.error] == [0]


def test_stop_inline_finishes_what_is_in_flight() -> None:
    signals, started, outcomes = StopSignals(), [], []

    def make_worker() -> Worker:
        def work(item: int) -> int:
            started.append(item)
            signals.requested = True
            time.sleep(0.1)
            return item

        return work

    with pytest.raises(Stopped):
        for outcome in InlineExecutor(signals).map(make_worker, range(20)):
            outcomes.append(outcome.result)
    assert sorted(outcomes) == sorted(started)
    assert 1 <= len(started) <= IN_FLIGHT


def test_stop_in_ray_finishes_what_is_in_flight(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    attempt, outcomes = note(tmp_path), []

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            time.sleep(0.3)
            return item

        return work

    with executor_of("ray", request, workers=1) as (one, signals):
        with pytest.raises(Stopped):
            for outcome in one.map(make_worker, range(20)):
                outcomes.append(outcome.result)
                signals.requested = True
        assert sorted(outcomes) == sorted(int(path.stem) for path in tmp_path.iterdir())
        assert len(outcomes) <= 2 * IN_FLIGHT
        # The next run of the same pool stops at once, and starts nothing.
        with pytest.raises(Stopped):
            list(one.map(make_worker, [99]))
        assert not (tmp_path / "99.txt").exists()


def test_stop_during_the_last_item_is_still_a_stop() -> None:
    signals = StopSignals()

    def make_worker() -> Worker:
        def work(item: int) -> int:
            signals.requested = True
            return item

        return work

    with pytest.raises(Stopped):
        list(InlineExecutor(signals).map(make_worker, [1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_asks_for_a_stop_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        signals.raise_if_requested()
        os.kill(os.getpid(), number)
        assert signals.requested
        with pytest.raises(Stopped):
            signals.raise_if_requested()
    assert signal.getsignal(number) is before


def test_second_interrupt_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt):
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_threads_of_a_worker() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_of_worker(ComputeConfig(threads=3)) == 3
    assert threads_of_worker(ComputeConfig()) == cores
    assert threads_of_worker(ComputeConfig(executor="ray", workers=10_000)) == 1


TWO_SESSIONS = """
from scalemine.config import ComputeConfig
from scalemine.executor import StopSignals, make_executor
for _ in range(2):
    with make_executor(ComputeConfig(executor="ray"), signals=StopSignals(), wants_gpu=False) as executor:
        print([outcome.result for outcome in executor.map(lambda: abs, [-1])])
"""


@pytest.mark.slow
def test_one_process_can_have_one_ray_session_after_another() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", TWO_SESSIONS], capture_output=True, text=True, env=environment)
    assert done.stdout == "[1]\n[1]\n"


PRIVATE_TOKEN = """
import os, pathlib, stat
from scalemine.executor import _private_token
_private_token()
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
assert os.environ["RAY_AUTH_MODE"] == "token"
assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
print(token)
"""


def test_token_is_private_and_goes_with_the_process() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", PRIVATE_TOKEN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_token_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/mine")
    _private_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/mine"


LISTENING = """
from scalemine.config import ComputeConfig
from scalemine.executor import StopSignals, make_executor
with make_executor(ComputeConfig(executor="ray"), signals=StopSignals(), wants_gpu=False) as executor:
    for _ in executor.map(lambda: abs, [-1]):
        scan()
"""


@pytest.mark.slow
def test_local_session_listens_to_this_machine_alone() -> None:
    # The scan sees what there is to see.
    assert set(assert_listens_to_this_machine_alone(LISTENING)) >= {"gcs_server", "raylet", "ray::_Actor"}


NO_CLUSTER = """
from scalemine.config import ComputeConfig, InputError
from scalemine.executor import StopSignals, make_executor
config = ComputeConfig(executor="ray", address="127.0.0.1:9")
try:
    with make_executor(config, signals=StopSignals(), wants_gpu=False):
        print("connected")
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_ray_cluster_that_does_not_answer() -> None:
    done = subprocess.run([sys.executable, "-c", NO_CLUSTER], capture_output=True, text=True, timeout=90)
    assert done.stdout.startswith("compute.address: no Ray cluster at '127.0.0.1:9'")


def test_something_is_done_every_so_often_while_entered_and_not_after() -> None:
    done = threading.Event()
    calls: list[int] = []

    def call() -> None:
        calls.append(threading.get_ident())
        if len(calls) >= 3:
            done.set()

    with every(0.001, call):
        assert done.wait(30)
    number = len(calls)
    time.sleep(0.05)
    assert len(calls) == number
    assert threading.get_ident() not in calls


def test_what_fails_once_is_told_of_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[None] = []
    done = threading.Event()

    def call() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise ValueError("not now")
        done.set()

    with every(0.001, call):
        assert done.wait(30)
    assert "has failed" in caplog.text
    assert "not now" in caplog.text


@pytest.mark.parametrize("failure", [DiskFullError, BucketError, RunError])
def test_a_known_failure_ends_it_at_once(failure: type[RunError], executor: Executor, tmp_path: Path) -> None:
    attempt = note(tmp_path)

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            if item == 0:
                raise failure("x.arrow: cannot be written")
            return item

        return work

    with pytest.raises(failure, match=r"x\.arrow: cannot be written"):
        list(executor.map(make_worker, range(20)))
    assert attempts_at(tmp_path, 0) == 1
    assert len(list(tmp_path.iterdir())) < 20


# Stragglers


def slow_once(folder: Path, slow: int, then: str) -> Callable[[], Worker]:
    """Return a maker of workers that hang, the first time that one item comes, until a file is there."""

    def make_worker() -> Worker:
        def work(item: int) -> int:
            mark = folder / f"{item}.begun"
            is_first = not mark.exists()
            mark.touch()
            if item == slow and is_first:
                while not (folder / then).exists():
                    time.sleep(0.02)
            (folder / f"{item}-{os.getpid()}.done").touch()
            return os.getpid()

        return work

    return make_worker


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRAGGLER_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_an_item_that_takes_too_long_is_begun_by_an_idle_worker(
    ray_executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = by_item(ray_executor.map(slow_once(tmp_path, 0, "never"), range(4)))
    assert sorted(found) == [0, 1, 2, 3]
    assert {outcome.error for outcome in found.values()} == {None}
    assert {outcome.failures for outcome in found.values()} == {0}
    assert "an idle worker begins it, too" in caplog.text
    # The one that hung was ended, and is not met again.
    again = by_item(ray_executor.map(slow_once(tmp_path, -1, "never"), range(4)))
    assert {outcome.error for outcome in again.values()} == {None}
    assert len(list(tmp_path.glob("0-*.done"))) <= 2


@pytest.mark.usefixtures("impatient")
def test_the_slower_of_two_is_not_counted(ray_executor: Executor, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        def work(item: int) -> str:
            try:
                (tmp_path / f"{item}.begun").touch(exist_ok=False)
            except FileExistsError:
                # The copy has begun: the first goes on, and the map waits for this one a little longer.
                (tmp_path / "go").touch()
                time.sleep(1.0)
                return "copy"
            while item == 0 and not (tmp_path / "go").exists():
                time.sleep(0.02)
            return "first"

        return work

    found = by_item(ray_executor.map(make_worker, range(4)))
    assert {item: (outcome.result, outcome.failures) for item, outcome in found.items()} == dict.fromkeys(
        range(4), ("first", 0)
    )


@pytest.mark.usefixtures("impatient")
def test_a_copy_that_dies_takes_nothing_from_the_first(ray_executor: Executor, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        def work(item: int) -> int:
            if item == 0 and (tmp_path / "begun").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            if item == 0:
                (tmp_path / "begun").touch()
                while not (tmp_path / "died").exists():
                    time.sleep(0.02)
                time.sleep(0.5)
            return item

        return work

    found = by_item(ray_executor.map(make_worker, range(3)))
    assert {item: (outcome.result, outcome.failures) for item, outcome in found.items()} == {
        item: (item, 0) for item in range(3)
    }
    assert (tmp_path / "died").exists()


@pytest.mark.usefixtures("impatient")
def test_no_copies_where_they_are_not_wanted(ray_executor: Executor, tmp_path: Path) -> None:
    attempt = note(tmp_path)

    def make_worker() -> Worker:
        def work(item: int) -> int:
            attempt(item)
            time.sleep(1.5 if item == 0 else 0.0)
            return item

        return work

    found = by_item(ray_executor.map(make_worker, range(3), copies=False))
    assert [found[item].result for item in range(3)] == [0, 1, 2]
    assert attempts_at(tmp_path, 0) == 1


# Ray's own losses


@pytest.mark.parametrize("how", ["ObjectLostError", "OwnerDiedError", "ObjectFetchTimedOutError"])
def test_a_result_that_is_lost_is_made_again(
    how: str, ray_executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    attempt, lost, get = note(tmp_path), [], ray.get

    def make_worker() -> Worker:
        def work(item: int) -> bytes:
            attempt(item)
            return bytes([item]) * 2**20  # too large to travel with the answer: it lies in the node's store

        return work

    def get_once_in_vain(call: Any) -> Any:
        if not lost and isinstance(get(call), bytes):
            lost.append(call)
            raise getattr(ray.exceptions, how)(call.hex(), None, "")
        return get(call)

    monkeypatch.setattr(ray, "get", get_once_in_vain)
    found = by_item(ray_executor.map(make_worker, range(4)))
    assert lost
    assert [found[item].result for item in range(4)] == [bytes([item]) * 2**20 for item in range(4)]
    assert sorted(outcome.failures for outcome in found.values()) == [0, 0, 0, 1]
    assert sorted(attempts_at(tmp_path, item) for item in range(4)) == [1, 1, 1, 2]
    assert "is replaced" not in caplog.text


@pytest.mark.slow
def test_workers_that_die_at_birth_now_and_then_are_replaced(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    def make_worker() -> Worker:
        (tmp_path / f"{time.monotonic_ns()}.born").touch()
        if len(list(tmp_path.glob("*.born"))) in (1, 2, 4, 5):
            os._exit(1)

        def work(item: int) -> int:
            if item == 3 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            return item

        return work

    with executor_of("ray", request, workers=1) as (one, _):
        found = by_item(one.map(make_worker, range(6)))
    assert [found[item].result for item in range(6)] == list(range(6))
    assert len(list(tmp_path.glob("*.born"))) == 6


AFTER_SIGTERM = """
import os, signal, time
from scalemine.config import ComputeConfig
from scalemine.executor import StopSignals, Stopped, make_executor
with StopSignals() as signals:
    with make_executor(ComputeConfig(executor="ray"), signals=signals, wants_gpu=False) as executor:
        try:
            for outcome in executor.map(lambda: abs, [-1, -2, -3, -4, -5, -6]):
                print(outcome.result)
                os.kill(os.getpid(), signal.SIGTERM)
        except Stopped:
            print("stopped")
"""


@pytest.mark.slow
def test_sigterm_asks_for_a_stop_also_in_a_ray_session() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", AFTER_SIGTERM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "stopped"
    assert 1 <= len(done.stdout.splitlines()) - 1 <= 3
