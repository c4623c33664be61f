from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from damage import damage
from scalemine.config import DiskFullError, InputError
from scalemine.store import (
    Share,
    Stage,
    Workdir,
    fingerprint,
    open_stage,
    read_json,
    write_json,
    write_whole,
    write_whole_folder,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_write_whole_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with write_whole(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "half"
    assert names(path.parent) == {"a.txt"}


@pytest.mark.parametrize("before", [None, "old"])
def test_write_whole_that_fails_leaves_nothing_behind(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with pytest.raises(ZeroDivisionError):
        with write_whole(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert names(tmp_path) == ({"a.txt"} if before else set())
    assert not before or path.read_text() == before


def test_write_whole_without_a_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with write_whole(tmp_path / "a.txt"):
            pass
    assert names(tmp_path) == set()


def test_write_whole_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, sys; from pathlib import Path; from scalemine.store import write_whole\n"
        "with write_whole(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What it left is swept away by the next run that opens the stage.
    assert len(names(tmp_path)) == 2
    open_stage(tmp_path, version=1, settings={}, inputs={})
    assert names(tmp_path) == {"a.txt", "stage.json"}


@pytest.mark.parametrize("before", [False, True])
def test_write_whole_folder_appears_at_once(tmp_path: Path, before: bool) -> None:
    folder = tmp_path / "new" / "a"
    if before:
        (folder / "old").mkdir(parents=True)
    with write_whole_folder(folder) as temporary:
        (temporary / "b.txt").write_text("half")
        assert names(folder) == ({"old"} if before else set())
        assert temporary.parent == folder.parent
    assert names(folder.parent) == {"a", "b.txt"}


@pytest.mark.parametrize("before", [False, True])
def test_write_whole_folder_that_fails_leaves_nothing_behind(tmp_path: Path, before: bool) -> None:
    folder = tmp_path / "a"
    if before:
        (folder / "old").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        with write_whole_folder(folder) as temporary:
            (temporary / "b.txt").write_text("half")
            raise ZeroDivisionError
    assert names(tmp_path) == ({"a", "old"} if before else set())


def test_write_whole_folder_that_cannot_take_its_name_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "old").mkdir(parents=True)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if (self / "b.txt").exists():
            raise PermissionError(13, "refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        with write_whole_folder(tmp_path / "a") as temporary:
            (temporary / "b.txt").write_text("whole")
    assert names(tmp_path) == {"a", "old"}


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"größe": [1, 2.5, None, "\u2028"], "a": {"b": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_fingerprint_does_not_depend_on_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def open_with(folder: Path, *, redo: bool = False, version: int = 1, inputs: str = "x", **settings: object) -> Stage:
    return open_stage(folder, version=version, settings=settings, inputs={"corpus": inputs}, redo=redo)


def test_stage_is_opened_again_with_the_same_settings(tmp_path: Path) -> None:
    stage = open_with(tmp_path / "s", bands=(1, 2), path=Path("a"))
    stage.file("kept").write_text("kept")
    again = open_with(tmp_path / "s", path=Path("a"), bands=[1, 2])
    assert again == stage
    assert again.file("kept").exists()


def test_stage_refuses_another_setting_by_name(tmp_path: Path) -> None:
    open_with(tmp_path / "s", tails="both", seed=1).file("kept").write_text("kept")
    with pytest.raises(InputError) as caught:
        open_with(tmp_path / "s", tails="upper", seed=1)
    message = str(caught.value)
    assert 'tails was "both", is "upper"' in message
    assert "seed" not in message
    assert "--redo" in message
    assert "\n" not in message
    assert (tmp_path / "s" / "kept").exists()


def test_stage_refuses_another_input_and_another_version(tmp_path: Path) -> None:
    open_with(tmp_path / "s", inputs="aaa").file("kept").write_text("kept")
    with pytest.raises(InputError, match='corpus was "aaa", is "bbb"'):
        open_with(tmp_path / "s", inputs="bbb")
    with pytest.raises(InputError, match="stage version was 1, is 2"):
        open_with(tmp_path / "s", inputs="aaa", version=2)


def test_stage_that_made_nothing_is_no_obstacle(tmp_path: Path) -> None:
    open_with(tmp_path / "s", tails="bth")
    assert open_with(tmp_path / "s", tails="both") == open_with(tmp_path / "s", tails="both")


def test_redo_discards_what_was_made_otherwise(tmp_path: Path) -> None:
    open_with(tmp_path / "s", tails="both").file("old").write_text("old")
    stage = open_with(tmp_path / "s", tails="upper", redo=True)
    assert names(tmp_path / "s") == {"stage.json"}
    assert stage == open_with(tmp_path / "s", tails="upper")


def test_redo_keeps_what_was_made_alike(tmp_path: Path) -> None:
    open_with(tmp_path / "s", tails="both").file("old").write_text("old")
    assert open_with(tmp_path / "s", tails="both", redo=True).file("old").exists()


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_a_look_at_a_stage_writes_nothing(tmp_path: Path, tails: str) -> None:
    def look() -> Stage:
        return open_stage(tmp_path / "s", version=1, settings={"tails": tails}, inputs={"corpus": "x"}, make=False)

    would_be = look()
    assert list(tmp_path.iterdir()) == []
    open_with(tmp_path / "s", tails="both")
    half = tmp_path / "s" / ".half.tmp"
    half.write_text("half")
    mark = (tmp_path / "s" / "stage.json").read_bytes()
    assert look() == would_be  # there is no work to lose
    (tmp_path / "s" / "kept").write_text("kept")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    if tails == "both":
        assert look() == would_be == open_with(tmp_path / "s", tails="both")
    else:
        with pytest.raises(InputError) as looked:
            look()
        with pytest.raises(InputError) as opened:
            open_with(tmp_path / "s", tails="upper")
        assert str(looked.value) == str(opened.value)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (tmp_path / "s" / "stage.json").read_bytes() == mark


def test_manifest_is_the_commit_point(tmp_path: Path) -> None:
    stage = open_with(tmp_path / "s")
    path = stage.file("00000.arrow")
    assert stage.manifest(path) is None
    path.write_bytes(b"12345")
    assert stage.manifest(path) is None
    stage.commit(path, rows=5)
    manifest = stage.manifest(path)
    assert manifest is not None
    assert (manifest["bytes"], manifest["rows"]) == (5, 5)


@pytest.mark.parametrize("content", [b"1234", b"123456", b""])
def test_manifest_is_not_accepted_for_a_file_of_another_size(tmp_path: Path, content: bytes) -> None:
    stage = open_with(tmp_path / "s")
    path = stage.file("00000.arrow")
    path.write_bytes(b"12345")
    stage.commit(path)
    path.write_bytes(content)
    assert stage.manifest(path) is None


def test_manifest_is_not_accepted_without_its_file_or_half_or_of_another_stage(tmp_path: Path) -> None:
    stage = open_with(tmp_path / "s", seed=1)
    path = stage.file("a")
    path.write_bytes(b"12345")
    stage.commit(path)
    whole = (tmp_path / "s" / "a.json").read_text()
    assert Stage(stage.folder, "another").manifest(path) is None
    (tmp_path / "s" / "a.json").write_text(whole[:-10])
    assert stage.manifest(path) is None
    (tmp_path / "s" / "a.json").write_text(json.dumps({"rows": 3}))
    assert stage.manifest(path) is None
    (tmp_path / "s" / "a.json").write_text(whole)
    assert stage.manifest(path) is not None
    path.unlink()
    assert stage.manifest(path) is None


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 1_100), marks=pytest.mark.slow)])
def test_damaged_marks_and_manifests(tmp_path: Path, seeds: range) -> None:
    stage = open_with(tmp_path / "s", tails="both")
    path = stage.file("a")
    path.write_bytes(b"12345")
    stage.commit(path, rows=5)
    mark, manifest = tmp_path / "s" / "stage.json", tmp_path / "s" / "a.json"
    contents = {one: one.read_bytes() for one in (mark, manifest)}
    refused = unfinished = 0
    for seed in seeds:
        chance = random.Random(seed)
        one = chance.choice([mark, manifest])
        one.write_bytes(damage(contents[one], chance))
        try:
            unfinished += open_with(tmp_path / "s", tails="both").manifest(path) is None
        except InputError:
            assert one == mark, seed  # a manifest that is damaged is none: its file is made again
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {one.name}: {one.read_bytes()!r}") from error
        one.write_bytes(contents[one])
    assert refused > len(seeds) / 5
    assert unfinished > len(seeds) / 5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1e'])
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a.json: damaged, no JSON"):
        read_json(tmp_path / "a.json")


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.1.2.tmp").write_text("half")
    (tmp_path / ".b.3.4.tmp").mkdir()
    (tmp_path / "c.tmp").write_text("of the user")
    Workdir(tmp_path).discard_leftovers()
    assert names(tmp_path) == {"c.tmp"}


def test_names_of_the_work_directory(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    assert [
        str(path.relative_to(tmp_path))
        for path in (workdir.negatives, workdir.distributions, workdir.manifest, workdir.report, workdir.sets)
    ] == ["negatives.parquet", "distributions.json", "manifest.json", "report.html", "sets"]


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    with write_whole(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
    (tmp_path / "b").write_text("as others are written")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "0/0", "1/2/3"])
def test_shares_that_are_none(text):
    assert Share.parse("1/2") == Share(1, 2)
    with pytest.raises(InputError, match="expected I/N"):
        Share.parse(text)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_one_line_and_leaves_what_was_there(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError) as caught:
        write_json(path, {"a": 2})
    assert str(caught.value).startswith(f"{path}: cannot be written, the disk or its quota is full")
    assert "\n" not in str(caught.value)
    assert read_json(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_another_fault_of_the_disk_is_no_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_json(tmp_path / "x.json", {})
    assert not isinstance(caught.value, DiskFullError)


def test_the_error_of_a_full_disk_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DiskFullError("x: full")))
    assert (type(error), str(error)) == (DiskFullError, "x: full")
