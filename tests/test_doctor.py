from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from scalemine import doctor
from scalemine.config import InputError
from scalemine.doctor import (
    Finding,
    Listener,
    cpu_quota,
    file_findings,
    findings,
    library_findings,
    listener_findings,
    machine_findings,
    memory_limit,
    model_findings,
    ray_findings,
    umask_finding,
    variable_findings,
    version_findings,
)


def by_name(found: list[Finding]) -> dict[str, Finding]:
    assert len({one.what for one in found}) == len(found)
    for one in found:
        assert "\n" not in one.what + one.value + one.mend
        assert one.mend or one.status == "ok"  # whatever is amiss can be mended
    return {one.what: one for one in found}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that others can go into, as far as that is this test's to say."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_reachable", lambda _: True)  # pytest's own folders are private


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_share_of_the_cores(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("memory.max", "1073741824\n", 2**30),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", 2**30),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1", None),
    ],
)
def test_limit_of_the_memory(tmp_path: Path, name: str, content: str, expected: int | None) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(content)
    assert memory_limit(tmp_path) == expected


def test_a_small_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000")
    (tmp_path / "memory.max").write_text(str(2**30))
    usage = type("Usage", (), {"total": 64 * 2**20, "free": 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/" + "t" * 60)
    found = by_name(machine_findings(tmp_path / "not" / "yet", shm=tmp_path, cgroup=tmp_path))
    assert {what for what, one in found.items() if one.status == "note"} >= {
        "cores", str(tmp_path), "disk", "temporary files",
    }  # fmt: skip
    assert "0.5" in found["cores"].value
    assert found["cores"].mend == "--set compute.threads=1"
    assert found["memory"].value.startswith("1.0 GiB, by the limit of this container")
    assert "--shm-size=1g" in found[str(tmp_path)].mend
    assert found["disk"].value.endswith(str(tmp_path))


def test_a_roomy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 2**50, "free": 2**50})
    memory = type("Memory", (), {"total": 2**40, "available": 2**39})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/tmp")
    found = by_name(machine_findings(tmp_path, shm=tmp_path, cgroup=tmp_path))
    assert {one.status for one in found.values()} == {"ok"}


def test_what_this_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = by_name(findings(workdir=tmp_path))
    assert {"Python", "cores", "memory", "disk", "torch", "precision", "engines", "FAISS", "ray"} <= found.keys()
    assert all(one.status != "open" for one in found.values())


@pytest.mark.parametrize(
    ("version", "is_open"), [("2.53.9", True), ("2.54.0", False), ("2.60.0", False), ("3.0", False), ("1.99", True)]
)
def test_old_libraries_are_open(version: str, is_open: bool) -> None:
    found = by_name(version_findings({"ray": version, "torch": "2.13.0+cpu", "transformers": "5.3.0"}))
    assert found["ray"].status == ("open" if is_open else "ok")
    assert ("pip install 'ray>=2.54'" in found["ray"].mend) == is_open
    assert {found[name].status for name in ("torch", "transformers")} == {"ok"}
    assert by_name(version_findings({}))["torch"].mend == "pip install torch"


@pytest.mark.parametrize(
    ("names", "status", "mend"),
    [
        ([], "note", "pip install faiss-cpu"),
        (["faiss-cpu"], "ok", ""),
        (["faiss-gpu-cu12"], "ok", ""),
        (["faiss-gpu", "faiss-cpu"], "note", "pip uninstall faiss-cpu: they exclude one another"),
    ],
)
def test_faiss(monkeypatch: pytest.MonkeyPatch, names: list[str], status: str, mend: str) -> None:
    installed = [type("One", (), {"metadata": {"Name": name}, "version": "1.9"}) for name in [*names, "numpy"]]
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: installed)
    faiss = by_name(library_findings())["FAISS"]
    assert (faiss.status, faiss.mend) == (status, mend)


def test_models(tmp_path: Path) -> None:
    for name in ("models--org--one", "models--two", "datasets--org--three"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    found = by_name(model_findings({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}))
    assert found["models of the hub"].value == "org/one, two"
    assert found["hub"] == Finding("hub", "offline")
    found = by_name(model_findings({"HF_HUB_CACHE": str(tmp_path / "none")}))
    assert found["models of the hub"].value == f"none in {tmp_path / 'none'}"
    assert found["hub"].status == "note"


def test_other_sessions_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"name": "raylet", "pid": 7, "username": "eve", "cmdline": []}
    fake = type("Process", (), {"info": info, "pid": 7, "net_connections": lambda *_: []})
    monkeypatch.setattr(doctor.psutil, "process_iter", lambda _: [fake()])
    monkeypatch.setattr(doctor, "_listeners", lambda: [Listener("x", 1, "127.0.0.1", 8265), Listener("x", 1, "::", 1)])
    found = by_name(ray_findings())
    assert found["other Ray sessions"].value == "raylet 7 of eve"
    assert found["Ray's ports"].value == "taken: 8265"


def test_secrets_of_the_environment_are_named_and_not_shown() -> None:
    environment = {
        "HF_TOKEN": "planted", "AWS_SECRET_ACCESS_KEY": "planted", "EMPTY_TOKEN": "", "HOME": "/home/me",
        "RAY_AUTH_TOKEN_PATH": "/token", "RAY_AUTH_TOKEN": "planted", "RAY_ADDRESS": "https://me:planted@head",
    }  # fmt: skip
    found = by_name(variable_findings(environment))
    assert found["secrets in the environment"].value == "AWS_SECRET_ACCESS_KEY, HF_TOKEN, RAY_AUTH_TOKEN"
    assert found["RAY_AUTH_TOKEN"].status == "open"
    assert "planted" not in str(found)


@pytest.mark.parametrize(
    ("variable", "value", "what", "status"),
    [
        ("RAY_AUTH_MODE", "disabled", "Ray asks who it is", "open"),
        ("RAY_AUTH_MODE", "token", "Ray asks who it is", "ok"),
        ("RAY_USAGE_STATS_ENABLED", "1", "Ray's telemetry", "open"),
        ("RAY_USAGE_STATS_ENABLED", "0", "Ray's telemetry", "ok"),
        ("RAY_ADDRESS", "auto", "RAY_ADDRESS", "open"),
        ("RAY_ADDRESS", "head:6379", "RAY_ADDRESS", "ok"),
        ("NOTHING", "1", "Ray's telemetry", "ok"),
        ("NOTHING", "1", "Ray asks who it is", "ok"),
    ],
)
def test_variables_that_open(variable: str, value: str, what: str, status: str) -> None:
    found = by_name(variable_findings({variable: value}))
    assert found[what].status == status
    assert bool(found[what].mend) == (status == "open")


@pytest.mark.parametrize(
    ("mask", "status"), [(0o000, "open"), (0o020, "open"), (0o022, "note"), (0o077, "ok"), (0o027, "ok")]
)
def test_masks(mask: int, status: str) -> None:
    assert umask_finding(mask).status == status
    before = os.umask(mask)
    try:
        assert by_name(variable_findings({}))["umask"] == umask_finding(mask)
        assert os.umask(mask) == mask  # looking does not change it
    finally:
        os.umask(before)


@pytest.mark.usefixtures("is_reachable")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o604])
def test_files_with_secrets(home: Path, mode: int) -> None:
    token, named = home / ".ray" / "auth_token", home / "it's a token"
    token.parent.mkdir()
    for path in (token, named, home / ".netrc"):
        path.write_text("planted")
        path.chmod(mode)
    found = by_name(file_findings({"RAY_AUTH_TOKEN_PATH": str(named)}, home, None))
    assert found.keys() == {str(token), str(named), str(home / ".netrc")}
    for one in found.values():
        assert one.status == ("open" if mode & 0o077 else "ok")
        if one.mend:
            assert os.system(one.mend) == 0
    assert {one.status for one in file_findings({"RAY_AUTH_TOKEN_PATH": str(named)}, home, None)} == {"ok"}
    assert "planted" not in str(found)


@pytest.mark.usefixtures("is_reachable")
@pytest.mark.parametrize(("mode", "status"), [(0o755, "open"), (0o777, "open"), (0o750, "ok"), (0o700, "ok")])
def test_a_workdir(home: Path, mode: int, status: str) -> None:
    home.chmod(mode)
    [found] = file_findings({}, home, home)
    assert found.status == status
    assert bool(found.mend) == (status == "open")


def test_what_no_way_leads_to_is_only_noted(home: Path) -> None:
    workdir = home / "work"
    workdir.mkdir()
    workdir.chmod(0o777)
    home.chmod(0o700)
    [found] = file_findings({}, home, workdir)
    assert (found.status, found.mend) == ("note", f"chmod o-rwx {workdir}")


def test_a_workdir_that_is_not_there(home: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        file_findings({}, home, home / "none")


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("fe80::1", False),
    ],
)  # fmt: skip
def test_who_reaches_a_listener(address: str, is_local: bool) -> None:
    [found] = listener_findings([Listener("raylet", 3, address, 6379), Listener("gcs_server", 4, "127.0.0.1", 1)])
    assert found.status == ("ok" if is_local else "open")
    assert (f"raylet (3) on {address}:6379" in found.value) == (not is_local)
    assert "gcs_server" not in found.value


def test_listeners_are_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        me = [one for one in doctor._listeners() if one.pid == os.getpid()]
    assert ("127.0.0.1", port) in {(one.address, one.port) for one in me}


@pytest.mark.parametrize(
    ("name", "command", "is_ours"),
    [
        ("raylet", ["raylet"], True),
        ("gcs_server", ["/x/gcs_server"], True),
        ("ray::_Actor", ["ray::_Actor", ""], True),
        ("python", ["python", "/x/site-packages/ray/dashboard/agent.py"], True),
        ("python", ["python", "-m", "scalemine.training.worker"], True),
        ("scalemine", ["python", "/x/bin/scalemine", "train"], True),
        ("python", ["python", "-m", "http.server"], False),
        ("array", ["array"], False),
    ],
)
def test_whose_a_listener_is(monkeypatch: pytest.MonkeyPatch, name: str, command: list[str], is_ours: bool) -> None:
    where = type("Address", (), {"ip": "0.0.0.0", "port": 5})
    connection = type("Connection", (), {"status": psutil.CONN_LISTEN, "laddr": where})

    class Process:
        info: Any = {"name": name, "cmdline": command}
        pid = 3

        def net_connections(self, _: str) -> list[Any]:
            return [connection]

    monkeypatch.setattr(doctor.psutil, "process_iter", lambda _: [Process()])
    assert len(doctor.our_listeners()) == is_ours
