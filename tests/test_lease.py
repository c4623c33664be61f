from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scalemine import lease as lease_module
from scalemine.config import InputError
from scalemine.lease import EXPIRY, LEASE, LOCK, hold_share, hold_workdir
from scalemine.store import Share

HOLD = """
import sys, time
from pathlib import Path
from scalemine.lease import hold_workdir
with hold_workdir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def write_lease(workdir: Path, *, age: float = 0.0, **holder: Any) -> Path:
    workdir.mkdir(exist_ok=True)
    path = workdir / LEASE
    path.write_text(json.dumps({"started": "then", "command": "scalemine mine a.yaml"} | holder))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def files(workdir: Path) -> set[str]:
    return {path.name for path in workdir.iterdir()}


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "work")], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(InputError) as caught, hold_workdir(tmp_path / "work"):
                pass
        finally:
            holder.kill()
    said = str(caught.value)
    where = rf"in use by another run \(process {holder.pid} on {re.escape(socket.gethostname())}, since 20\S+: -c "
    assert re.search(where, said), said
    assert "\n" not in said
    assert (tmp_path / "work" / LEASE).exists()
    with hold_workdir(tmp_path / "work"):
        assert json.loads((tmp_path / "work" / LEASE).read_text())["pid"] == os.getpid()


def test_it_is_free_after_use_and_after_a_failure(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold_workdir(tmp_path / "work"):
            raise ZeroDivisionError
        assert files(tmp_path / "work") <= {LOCK}
    with hold_workdir(tmp_path / "work"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="workdir cannot be written"), hold_workdir(tmp_path / "file" / "work"):
        pass


@pytest.mark.parametrize("age", [0.0, EXPIRY - 20])
def test_a_writer_on_another_machine_is_respected(tmp_path: Path, age: float) -> None:
    path = write_lease(tmp_path / "work", host="elsewhere", pid=1, age=age)
    before = path.read_bytes()
    said = "process 1 on elsewhere, since then: scalemine mine a.yaml"
    with pytest.raises(InputError, match=re.escape(said)), hold_workdir(tmp_path / "work"):
        pass
    assert path.read_bytes() == before
    assert files(tmp_path / "work") <= {LEASE, LOCK}
    path.unlink()
    with hold_workdir(tmp_path / "work"):  # what was refused left nothing behind
        pass


@pytest.mark.parametrize(
    ("age", "holder"),
    [
        (EXPIRY + 1, {"host": "elsewhere", "pid": 1}),
        (0.0, {"host": socket.gethostname(), "pid": os.getpid()}),  # had it lived, it would have the lock
    ],
)
def test_a_writer_that_is_gone_is_followed(tmp_path: Path, age: float, holder: dict[str, Any]) -> None:
    write_lease(tmp_path / "work", age=age, **holder)
    with hold_workdir(tmp_path / "work"):
        assert json.loads((tmp_path / "work" / LEASE).read_text())["command"] != "scalemine mine a.yaml"


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_lease_that_says_nothing_expires(tmp_path: Path, content: str) -> None:
    path = write_lease(tmp_path / "work")
    path.write_text(content)
    with pytest.raises(InputError, match="an unknown process"), hold_workdir(tmp_path / "work"):
        pass
    then = time.time() - EXPIRY - 1
    os.utime(path, (then, then))
    with hold_workdir(tmp_path / "work"):
        pass


def test_on_a_disk_without_locks_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_lock", lambda *_: False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        write_lease(tmp_path / "work", host=socket.gethostname(), pid=other.pid)
        with pytest.raises(InputError, match=f"process {other.pid} on "), hold_workdir(tmp_path / "work"):
            pass
        other.communicate(b"\n")
    with hold_workdir(tmp_path / "work"):
        pass


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT", 0.01)
    path = tmp_path / "work" / LEASE
    with hold_workdir(tmp_path / "work"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert caplog.text == ""
        write_lease(tmp_path / "work", host="elsewhere", pid=1)
        while "another's by now" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert json.loads(path.read_text())["host"] == "elsewhere"  # not ours to take away


def test_who_holds_it_says_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/scalemine", "mine", "--set", "corpus.uri=s3://me:planted@b"])
    with hold_workdir(tmp_path):
        holder = json.loads((tmp_path / LEASE).read_text())
    assert holder["command"] == "scalemine mine --set corpus.uri=s3://***@b"
    assert holder.keys() == {"host", "pid", "command", "started"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.1.2.tmp").touch()
    with hold_workdir(tmp_path):
        assert files(tmp_path) == {LEASE, LOCK}


def test_shares_are_held_beside_one_another_and_keep_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "WAIT", 0.01)
    with hold_share(tmp_path, Share(0, 2), lambda: None) as whole:
        with pytest.raises(InputError, match="in use by another run"), hold_workdir(tmp_path):
            pass
        whole.close()
        with hold_share(tmp_path, Share(1, 2), lambda: None) as other:
            other.close()
            with pytest.raises(InputError, match=r"a job at a share of the corpus, \.share-00000-of-00002, \(process"):
                with hold_workdir(tmp_path):
                    pass
        with pytest.raises(InputError, match="use another share"), hold_share(tmp_path, Share(0, 2), lambda: None):
            pass
    assert not [name for name in files(tmp_path) if name.endswith(LEASE)]


def test_who_comes_for_a_share_waits_while_another_holds_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "WAIT", 0.01)
    waits: list[None] = []

    def stop_waiting() -> None:
        waits.append(None)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with hold_workdir(tmp_path):
        with pytest.raises(KeyboardInterrupt), hold_share(tmp_path, Share(1, 2), stop_waiting):
            pass
    assert len(waits) == 3
    with hold_share(tmp_path, Share(1, 2), lambda: None):
        pass


def test_who_waits_for_another_machine_goes_on_when_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "WAIT", 0.01)
    path, waits = write_lease(tmp_path, host="elsewhere", pid=1), []

    def wait() -> None:
        waits.append(None)
        if len(waits) == 3:
            path.unlink()
        assert len(waits) < 6

    with hold_share(tmp_path, Share(1, 2), wait):
        assert len(waits) == 3


def test_a_share_on_another_machine_is_respected_until_it_expires(tmp_path: Path) -> None:
    path = write_lease(tmp_path, host="elsewhere", pid=1)
    path.rename(tmp_path / ".share-00001-of-00004.lease")
    with pytest.raises(InputError, match="elsewhere"), hold_workdir(tmp_path):
        pass
    then = time.time() - 2 * EXPIRY
    os.utime(tmp_path / ".share-00001-of-00004.lease", (then, then))
    with hold_workdir(tmp_path):
        pass
