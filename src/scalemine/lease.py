"""One writer at a time in a work directory.

Who writes holds a lock and a lease. The lock is the system's, goes with the process however that ends, and is enough on
one machine. Not every shared disk hands locks on to other machines, so the lease, a file that says who writes, is
touched every few seconds: one of another machine that was touched lately is respected as well. Jobs that share a corpus
out hold a lock and a lease each, of their share. Who only reads asks for none.

A bucket has no locks, and its files cannot be made on condition that they are not there yet through Arrow. There the
lease is an object that is written, and read again after a while: of two that come at once, the one that wrote last has
it. That holds as long as a write lands within ``SETTLE`` seconds of the look before it, and a holder that is suspended
for longer than ``EXPIRY`` is not kept from writing once it goes on; two on one machine also have the mirror's lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shlex
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from scalemine import bucket
from scalemine.config import InputError
from scalemine.executor import Stopped, every
from scalemine.redaction import redact_text
from scalemine.store import Share, Workdir

logger = logging.getLogger(__name__)

LEASE, LOCK = ".lease", ".lock"
# Seconds between two signs of life, and how long after the last one a writer on another machine is taken to be gone.
HEARTBEAT, EXPIRY = 10.0, 60.0
# Seconds between two tries of who waits.
WAIT = 1.0
# Seconds after which a lease in a bucket is read again, to see whether somebody else wrote one at the same time.
SETTLE = 2.0


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Be the only writer of a work directory.

    Raises:
        InputError: The folder cannot be written, or somebody else writes there; the message says who.
    """
    lease = workdir / LEASE
    with contextlib.ExitStack() as stack:
        with _refusals(workdir):
            _hold(lease, stack)
            for share in sorted(workdir.glob(".share-*.lease")):
                with _refusals(workdir, share), contextlib.ExitStack() as probe:
                    _take(share, probe)
            if bucket.is_mirrored(workdir):
                for share in bucket.notes(workdir, ".share-*.lease"):
                    _refuse_if_alive(share)
        bucket.sync(workdir, alone=True)
        Workdir(workdir).discard_leftovers()
        with _pushed(workdir):
            yield


@contextlib.contextmanager
def _pushed(workdir: Path) -> Iterator[None]:
    """Let a bucket have what was written, also by a run that was asked to stop."""
    try:
        yield
    except Stopped:
        bucket.push(workdir)
        raise
    bucket.push(workdir)


def look_at(workdir: Path) -> None:
    """Let the mirror of a bucket be as the bucket is, for who only reads; an ordinary folder is left as it is.

    Raises:
        InputError: The bucket cannot be reached.
    """
    if not bucket.is_mirrored(workdir):
        return
    with contextlib.ExitStack() as stack:
        alone = False
        with contextlib.suppress(Timeout, OSError):
            workdir.mkdir(parents=True, exist_ok=True)
            # Jobs at a share hold locks of their own.
            alone = _lock(workdir / LEASE, stack) and not any(workdir.glob(f".share-*{LEASE}"))
        bucket.sync(workdir, alone=alone)


@contextlib.contextmanager
def hold_share(workdir: Path, share: Share, on_wait: Callable[[], object]) -> Iterator[contextlib.ExitStack]:
    """Write a share of a work directory, beside others who have other shares.

    At first, and until what is given is closed, the whole is held: who comes meanwhile for a share waits, and calls
    ``on_wait`` each second.

    Raises:
        InputError: The folder cannot be written, or somebody has this share.
    """
    lease = workdir / f".share-{share.index:05d}-of-{share.count:05d}{LEASE}"
    with contextlib.ExitStack() as part, contextlib.ExitStack() as whole:
        with _refusals(workdir, lease):
            while True:
                on_wait()
                try:
                    _hold(workdir / LEASE, whole)
                    break
                except Timeout:
                    time.sleep(WAIT)
            _hold(lease, part)
        bucket.sync(workdir, alone=False)
        yield whole


@contextlib.contextmanager
def _refusals(workdir: Path, lease: Path | None = None) -> Iterator[None]:
    """Say in one line why a lease was not to be had."""
    try:
        yield
    except _Taken as taken:
        raise _refusal(workdir, taken.lease, taken.holder) from None
    except Timeout:
        raise _refusal(workdir, lease or workdir / LEASE) from None
    except OSError as error:
        if bucket.is_mirrored(workdir):
            raise bucket.unreachable(workdir, error) from None
        raise InputError(
            f"{workdir}: workdir cannot be written ({error.strerror}); choose a folder you may write"
        ) from None


def _hold(lease: Path, stack: contextlib.ExitStack) -> None:
    """Take a lease, and give signs of life until it is given up.

    Raises:
        Timeout: Somebody has it.
    """
    # Of what is not to be had nothing is kept: who waits would find its own lock.
    with contextlib.ExitStack() as attempt:
        mine = _take(lease, attempt)
        attempt.enter_context(every(HEARTBEAT, lambda: _touch(lease, mine)))
        if bucket.is_mirrored(lease):
            _claim(lease, mine | {"machine": _machine(), "token": secrets.token_hex(8)}, attempt)
        stack.enter_context(attempt.pop_all())


class _Taken(Timeout):
    """Somebody has a lease in a bucket."""

    def __init__(self, lease: Path, holder: dict[str, Any]) -> None:
        super().__init__(str(lease))
        self.lease, self.holder = lease, holder


def _claim(lease: Path, mine: dict[str, Any], stack: contextlib.ExitStack) -> None:
    """Take the lease in a bucket, and give signs of life until it is given up.

    Raises:
        Timeout: Somebody has it.
        InputError: The bucket cannot be reached.
    """
    try:
        _refuse_if_alive(lease)
        bucket.write_note(lease, mine)
        time.sleep(SETTLE)
        found, _ = bucket.read_note(lease)
    except Timeout:  # which is an OSError
        raise
    except OSError as error:
        raise bucket.unreachable(lease, error) from None
    if found != mine:
        raise _Taken(lease, found or {})

    def beat() -> None:
        try:
            if bucket.read_note(lease)[0] == mine:
                bucket.write_note(lease, mine)
                return
        except OSError as error:
            logger.warning("%s: no sign of life could be given (%s)", lease, error)
            return
        logger.warning("%s: is gone or another's by now; let nobody else write into this workdir", lease)

    def give_up() -> None:
        try:
            if bucket.read_note(lease)[0] == mine:
                bucket.drop_note(lease)
        except OSError as error:
            logger.warning("%s: could not be given up, and runs out in %.0f s (%s)", lease, EXPIRY, error)

    stack.callback(give_up)
    stack.enter_context(every(HEARTBEAT, beat))


def _refuse_if_alive(lease: Path) -> None:
    """Raise Timeout where the holder of a lease in a bucket still writes."""
    holder, age = bucket.read_note(lease)
    if holder is None or age >= EXPIRY:
        return
    pid = holder.get("pid")
    if holder.get("machine") == _machine() and isinstance(pid, int) and not psutil.pid_exists(pid):
        return  # killed here, where its number would be known
    raise _Taken(lease, holder)


def _machine() -> str:
    """Return what tells this machine, since it was started, and this container's processes from all others."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(facts)


def _take(lease: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Take the lock and the lease, and return what the lease says.

    Raises:
        Timeout: Somebody has one of them.
    """
    lease.parent.mkdir(parents=True, exist_ok=True)
    has_lock = _lock(lease, stack)
    before = _read(lease)
    if before is not None and _is_alive(lease, before, has_lock):
        raise Timeout(str(lease))
    lease.unlink(missing_ok=True)
    try:
        mine = _sign(lease)
    except FileExistsError:  # somebody was faster
        raise Timeout(str(lease)) from None
    stack.callback(_give_up, lease, mine)
    return mine


def _lock(lease: Path, stack: contextlib.ExitStack) -> bool:
    """Take the lock beside a lease; return False where the disk has none.

    Raises:
        Timeout: Another process has it.
    """
    try:
        stack.enter_context(FileLock(lease.with_name(lease.name.removesuffix(LEASE) + LOCK), timeout=0))
    except NotImplementedError:
        return False
    return True


def _sign(lease: Path) -> dict[str, Any]:
    """Write the lease, which must not be there yet, and return it."""
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": redact_text(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:500],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with lease.open("x", encoding="utf-8") as file:
        json.dump(mine, file)
    return mine


def _read(lease: Path) -> dict[str, Any] | None:
    """Return who wrote a lease; None where there is none, nothing in it where it cannot be understood."""
    try:
        found = json.loads(lease.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # half written, by one who was killed or is about to go on
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(lease: Path, holder: dict[str, Any], has_lock: bool) -> bool:
    """Say whether the holder of a lease still writes."""
    if holder.get("host") == socket.gethostname():
        # Here the lock goes with its process.
        pid = holder.get("pid")
        return not has_lock and isinstance(pid, int) and psutil.pid_exists(pid)
    return _age(lease) < EXPIRY


def _age(lease: Path) -> float:
    """Return the seconds since the last sign of life, by the clock of the disk: those of two machines may differ."""
    now = lease.with_name(f"{lease.name}.{os.getpid()}.now")
    try:
        now.touch()
        return now.stat().st_mtime - lease.stat().st_mtime
    except FileNotFoundError:  # given up in this moment
        return EXPIRY
    finally:
        now.unlink(missing_ok=True)


def _touch(lease: Path, mine: dict[str, Any]) -> None:
    """Give a sign of life, unless the lease is another's by now."""
    try:
        if _read(lease) == mine:
            os.utime(lease)
            return
    except OSError as error:
        logger.warning("%s: no sign of life could be given (%s)", lease, error)
        return
    logger.warning("%s: is gone or another's by now; let nobody else write into this workdir", lease)


def _give_up(lease: Path, mine: dict[str, Any]) -> None:
    if _read(lease) == mine:
        lease.unlink(missing_ok=True)


def _refusal(workdir: Path, lease: Path, holder: dict[str, Any] | None = None) -> InputError:
    holder, who = holder or _read(lease), "an unknown process"
    if holder:
        who = "process {pid} on {host}, since {started}: {command}".format_map(defaultdict(lambda: "?", holder))
    what, other = ("another run", "workdir")
    if lease.name != LEASE:
        what, other = (f"a job at a share of the corpus, {lease.name.removesuffix(LEASE)},", "share, or workdir")
    return InputError(
        f"{workdir}: in use by {what} ({who}); wait for it, end it, or use another {other} "
        f"(one that was killed on another machine holds it for {EXPIRY:.0f} s more)"
    )
