from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from bucket_server import BUCKET, Store, serve
from scalemine import bucket, lease, store
from scalemine.bucket import BucketError
from scalemine.config import Config, InputError, RunError
from scalemine.corpus import import_corpus, open_corpus
from scalemine.executor import InlineExecutor, Outcome
from scalemine.lease import LEASE, hold_share, hold_workdir, look_at
from scalemine.mirror import MARK, mirror_of
from scalemine.pipeline import Run, run_mine
from scalemine.report.page import write_report
from scalemine.shards import read_arrow, write_arrow
from scalemine.store import Share, Workdir, open_stage, read_json, write_json, write_whole, write_whole_folder

Settings = Callable[..., dict[str, Any]]
# What says when it was made, and how long that took.
TIMED = re.compile(r"(manifest|checkpoint)\.json|report\.html|(embeddings|similarities)/\d+\.arrow\.json")


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with serve() as found:
        yield found


@pytest.fixture
def s3(server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The server, with an empty mirror, and clients that lose no time."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SCALEMINE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(bucket, "PAUSE", 0.0)
    monkeypatch.setattr(bucket, "TRIES", 2)
    monkeypatch.setattr(lease, "SETTLE", 0.05)
    monkeypatch.setattr(bucket, "YOUNG", 0.0)
    server.puts_left = None
    server.log.clear()
    for key in server.objects():
        server.delete(key)
    forget()
    yield server
    forget()


def forget() -> None:
    """Know as little as a process that was just started."""
    bucket._known.clear()
    bucket._listed.clear()
    bucket._filesystem.cache_clear()


def elsewhere() -> None:
    """Be another machine, where nothing has been mirrored yet."""
    shutil.rmtree(Path(os.environ["SCALEMINE_MIRROR"]), ignore_errors=True)
    forget()


def opened(prefix: str = "work") -> Path:
    folder = mirror_of(f"s3://{BUCKET}/{prefix}")
    bucket.sync(folder, alone=True)
    return folder


def test_what_is_written_is_there_byte_for_byte_and_so_it_is_on_another_machine(s3: Store) -> None:
    content = random.Random(1).randbytes(11 * 2**20)  # more than one part
    with write_whole(opened() / "sets" / "a.bin") as path:
        path.write_bytes(content)
    write_json(opened() / "empty" / "b.json", {"é": 1})
    with write_whole(opened() / "none") as path:
        path.touch()
    assert s3.objects() == {
        "work/sets/a.bin": content, "work/empty/b.json": '{\n "é": 1\n}\n'.encode(), "work/none": b""
    }  # fmt: skip
    elsewhere()
    folder = opened()
    assert (folder / "sets" / "a.bin").read_bytes() == content
    assert read_json(folder / "empty" / "b.json") == {"é": 1}
    assert (folder / "none").stat().st_size == 0
    assert not (Path(os.environ["SCALEMINE_MIRROR"]) / MARK).stat().st_mode & 0o077


def test_a_folder_of_any_name_is_uploaded(s3: Store) -> None:
    for name in ("staging", "staging/shards", "index/work"):
        write_json(opened(name) / "a.json", [1])
    assert sorted(s3.objects()) == ["index/work/a.json", "staging/a.json", "staging/shards/a.json"]


def test_what_is_at_hand_is_not_fetched_again_and_what_changed_is(s3: Store) -> None:
    write_json(opened() / "a.json", [1])
    write_json(opened() / "b.json", [1])
    s3.log.clear()
    forget()
    folder = opened()
    assert s3.log == []
    s3.put("work/a.json", b"[222222]")
    s3.delete("work/b.json")
    forget()
    assert read_json(opened() / "a.json") == [222222]
    assert not (folder / "b.json").exists()
    (folder / "a.json").write_text("[3]")  # tampered with
    (folder / "left.txt").write_text("by a run that was killed")
    forget()
    assert read_json(opened() / "a.json") == [222222]
    assert not (folder / "left.txt").exists()


def test_shards_are_fetched_when_they_are_opened(s3: Store) -> None:
    folder, table = opened() / "embeddings", pa.table({"a": list(range(1000))})
    for number in range(3):
        write_arrow(folder / f"0000{number}.arrow", table)
    elsewhere()
    s3.log.clear()
    assert folder == opened() / "embeddings"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes == {
        f"0000{number}.arrow": len(s3.objects()[f"work/embeddings/0000{number}.arrow"]) for number in range(3)
    }
    assert s3.log == []
    assert read_arrow(folder / "00001.arrow") == table
    assert read_arrow(folder / "00001.arrow") == table
    assert s3.log == [("GET", "work/embeddings/00001.arrow")]


def test_a_process_that_was_handed_a_path_fetches_it(s3: Store) -> None:
    folder, table = opened() / "embeddings", pa.table({"a": [1]})
    write_arrow(folder / "00000.arrow", table)
    write_json(folder / "00000.arrow.json", {"bytes": 1})
    elsewhere()
    assert read_arrow(folder / "00000.arrow") == table
    assert read_json(folder / "00000.arrow.json") == {"bytes": 1}
    with pytest.raises(FileNotFoundError):
        read_json(folder / "00001.arrow.json")


def test_a_failed_upload_leaves_no_file_and_says_so_in_one_line(s3: Store) -> None:
    path = opened() / "a.json"
    write_json(path, [1])
    s3.puts_left = 0
    with pytest.raises(BucketError) as caught:
        write_json(path, [2])
    assert re.fullmatch(
        r"s3://tweets/work/a\.json: upload failed 2 times \(.+\); .+ call again to go on", str(caught.value)
    )
    assert read_json(path) == [1]
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    assert "not-to-be-told" not in str(caught.value)


def test_a_disk_that_is_full_is_not_tried_again(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = opened() / "embeddings" / "00000.arrow"
    write_arrow(path, pa.table({"a": [1]}))
    elsewhere()
    tries = []

    def full(*_: Any) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "_object", full)
        with pytest.raises(OSError, match="No space left") as caught:
            read_arrow(path)
    assert not isinstance(caught.value, BucketError)
    assert len(tries) == 1
    assert read_arrow(path) == pa.table({"a": [1]})


def test_what_is_removed_goes_from_both_manifests_first(s3: Store) -> None:
    stage = open_stage(opened() / "stage", version=1, settings={"a": 1}, inputs={})
    for name in ("x.bin", "y.bin"):
        with write_whole(stage.file(name)) as path:
            path.write_bytes(b"1")
        stage.commit(stage.file(name))
    s3.log.clear()
    open_stage(opened() / "stage", version=1, settings={"a": 2}, inputs={}, redo=True)
    deleted = [key.rpartition("/")[2] for method, key in s3.log if method == "DELETE"]
    assert [sorted(deleted[:2]), sorted(deleted[2:4]), deleted[4:]] == [
        ["x.bin.json", "y.bin.json"], ["x.bin", "y.bin"], ["stage.json"],
    ]  # fmt: skip
    assert list(s3.objects()) == ["work/stage/stage.json"]
    store.remove(stage.file("stage.json"))
    store.remove(stage.file("stage.json"))
    assert s3.objects() == {}


def test_what_others_wrote_is_pushed_data_first(s3: Store) -> None:
    folder = opened()
    for name in ("a.json", "b.bin", "c.json", "d.txt", ".lock", ".staging/e.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    bucket.push(folder)
    order = [key for _, key in s3.log]
    assert sorted(order[:2]) == ["work/b.bin", "work/d.txt"]
    assert sorted(order[2:]) == ["work/a.json", "work/c.json"]
    s3.log.clear()
    bucket.push(folder)
    assert s3.log == []


def test_what_only_stands_for_a_shard_is_not_pushed(s3: Store) -> None:
    folder = opened()
    write_arrow(folder / "index" / "00000.arrow", pa.table({"a": [1]}))
    elsewhere()
    assert opened() == folder
    s3.delete("work/index/00000.arrow")
    bucket.push(folder)
    assert s3.objects() == {}


def test_a_whole_folder_is_in_the_bucket_when_it_has_its_name_and_nothing_of_the_one_before(s3: Store) -> None:
    for name in ("a", "b"):
        with write_whole_folder(opened() / "members") as folder:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(f'"{name}"')
        assert list(s3.objects()) == [f"work/members/{name}/config.json"]
        assert read_json(opened() / "members" / name / "config.json") == name


@pytest.mark.parametrize("case", ["no bucket", "wrong key"])
def test_a_bucket_that_is_not_to_be_had(s3: Store, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    uri = f"s3://{'nowhere' if case == 'no bucket' else BUCKET}/work"
    if case == "wrong key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    with pytest.raises(InputError) as caught:
        look_at(mirror_of(uri))
    assert str(caught.value).startswith(f"{uri}: cannot be reached: ")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be reached"), hold_workdir(mirror_of(uri)):
        pass


# One writer


def test_a_writer_on_another_machine_is_respected_until_its_lease_runs_out(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened()
    bucket.write_note(folder / LEASE, {"host": "far", "pid": 7, "started": "then", "command": "scalemine mine"})
    with pytest.raises(InputError, match=r"in use by another run \(process 7 on far, since then: scalemine mine\)"):
        with hold_workdir(folder):
            pass
    monkeypatch.setattr(lease, "EXPIRY", 0.0)
    with hold_workdir(folder):
        found, _ = bucket.read_note(folder / LEASE)
        assert found is not None
        assert found["pid"] == os.getpid()
    assert bucket.read_note(folder / LEASE) == (None, 0.0)


def test_one_that_was_killed_here_holds_nothing(s3: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    note = {"host": "here", "machine": lease._machine(), "pid": ended.pid}
    bucket.write_note(opened() / LEASE, note)
    with hold_workdir(opened()):
        pass


def test_of_many_that_come_at_once_one_writes(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 1.0)
    monkeypatch.setattr(lease, "_lock", lambda *_: False)  # of other machines
    monkeypatch.setattr(lease, "_is_alive", lambda *_: False)
    outcomes: list[str] = []
    together = threading.Barrier(4)

    def come(number: int) -> None:
        folder = tmp_path / str(number) / MARK / "s3" / BUCKET / "work"
        folder.mkdir(parents=True)
        together.wait()
        try:
            with hold_workdir(folder):
                outcomes.append("wrote")
                time.sleep(3.0)
        except InputError as error:
            assert "in use by another run" in str(error)  # noqa: PT017
            outcomes.append("refused")

    threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["wrote"]


def test_who_only_reads_leaves_what_a_writer_here_has_not_yet_pushed(s3: Store) -> None:
    folder = opened()
    with hold_workdir(folder):
        (folder / "run.log").write_text("so far")
        forget()
        look_at(folder)
        assert (folder / "run.log").read_text() == "so far"
    assert s3.objects() == {"work/run.log": b"so far"}


def test_who_only_reads_leaves_what_a_job_at_a_share_here_is_writing(s3: Store) -> None:
    folder = opened()
    with hold_share(folder, Share(0, 2), lambda: None) as whole:
        whole.close()
        (folder / "run.log").write_text("so far")
        look_at(folder)
        assert (folder / "run.log").exists()
    look_at(folder)
    assert not (folder / "run.log").exists()


# Whole runs


def mine(values: dict[str, Any], executor: Any = None) -> Workdir:
    config = Config.model_validate(values)
    with hold_workdir(config.workdir):
        run_mine(Run(config, executor or InlineExecutor()))
        write_report(Workdir(config.workdir))
    return Workdir(config.workdir)


def settings(settings_of: Settings, prefix: str) -> dict[str, Any]:
    values = settings_of(Path("placeholder"))
    return values | {"workdir": f"s3://{BUCKET}/{prefix}"}


def assert_equal(s3: Store, prefix: str, workdir: Path) -> None:
    """Every file but those with times in them; of these, that they are there."""
    here = {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and "/." not in f"/{path.relative_to(workdir)}"
    }
    there = {key.removeprefix(f"{prefix}/"): content for key, content in s3.objects(f"{prefix}/").items()}
    assert there.keys() == here.keys()
    differing = [name for name in here if here[name] != there[name] and not TIMED.fullmatch(name)]
    assert not differing


def assert_whole(s3: Store, prefix: str) -> None:
    """No manifest without its file, as it says it is; no corpus without its shards."""
    objects = s3.objects(f"{prefix}/")
    for key, content in objects.items():
        if key.endswith((".arrow.json", ".parquet.json")) and not key.endswith("mined/negatives.parquet.json"):
            assert len(objects[key.removesuffix(".json")]) == json.loads(content)["bytes"], key
    if corpus := objects.get(f"{prefix}/corpus/corpus.json"):
        for shard in json.loads(corpus)["shards"]:
            assert f"{prefix}/corpus/shards/{shard['name']}.parquet" in objects
    if f"{prefix}/mined/negatives.parquet.json" in objects:
        assert f"{prefix}/negatives.parquet" in objects


def test_an_import_goes_on_wherever_the_store_failed(s3: Store, settings_of: Settings, finished: Any) -> None:
    config = Config.model_validate(settings(settings_of, "imported"))

    def run() -> None:
        with hold_workdir(config.workdir):
            import_corpus(config.corpus, config.workdir / "corpus")

    for puts_left in range(7):
        s3.puts_left = puts_left
        elsewhere()
        with pytest.raises(BucketError, match="call again to go on"):
            run()
        assert_whole(s3, "imported")
        assert "imported/corpus/corpus.json" not in s3.objects()
        s3.puts_left = None
        for key in s3.objects():
            s3.delete(key)
    run()
    assert_equal(s3, "imported/corpus", finished.workdir / "corpus")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mine_in_a_bucket_is_the_same_as_on_a_disk_whenever_the_store_fails(
    s3: Store, settings_of: Settings, finished: Any
) -> None:
    values = settings(settings_of, "mined/work")
    for puts_left in (14, 9, 7):
        s3.puts_left = puts_left
        elsewhere()
        done = set(s3.objects("mined/work/"))
        s3.log.clear()
        with pytest.raises(RunError, match="call again to go on"):
            mine(values)
        assert_whole(s3, "mined/work")
        # What was finished is not done again.
        put = {key for method, key in s3.log if method in ("PUT", "POST")}
        both = (f"mined/work/{stage}/" for stage in ("embeddings", "similarities"))
        finished_shards = set.intersection(
            *(
                {key.removeprefix(stage) for key in done if key.startswith(stage) and key.endswith(".json")}
                for stage in both
            )
        )
        assert not {key for key in put if f"{key.rpartition('/')[2]}.json" in finished_shards}
    s3.puts_left = None
    elsewhere()
    mine(values)
    assert_equal(s3, "mined/work", finished.workdir)
    manifest = s3.objects()["mined/work/manifest.json"].decode()
    assert json.loads(manifest)["config"]["workdir"] == f"s3://{BUCKET}/mined/work"
    told = b"".join(s3.objects("mined/work/").values())
    assert b"not-to-be-told" not in told
    assert MARK.encode() not in told


class _OtherNode(InlineExecutor):
    """Does the work as another machine would: with a mirror of its own at the same path."""

    def map(self, make_worker: Callable[[], Callable[[Any], Any]], items: Sequence[Any], **_: Any) -> Iterator[Any]:
        for item in items:
            with self._there():
                outcome = Outcome(item, make_worker()(item))
            yield outcome

    @contextmanager
    def _there(self) -> Iterator[None]:
        base = Path(os.environ["SCALEMINE_MIRROR"])
        ours, theirs = base.with_name("ours"), base.with_name("theirs")
        known, listed = dict(bucket._known), set(bucket._listed)
        forget()
        base.rename(ours)
        if theirs.exists():
            theirs.rename(base)
        try:
            yield
        finally:
            base.rename(theirs)
            ours.rename(base)
            forget()
            bucket._known.update(known)
            bucket._listed.update(listed)


def test_workers_have_mirrors_of_their_own(s3: Store, settings_of: Settings, finished: Any) -> None:
    mine(settings(settings_of, "nodes/work"), _OtherNode())
    assert_equal(s3, "nodes/work", finished.workdir)


@pytest.mark.slow
def test_a_corpus_and_positives_in_a_bucket(
    s3: Store, settings_of: Settings, sample_folder: Path, finished: Any
) -> None:
    for path in (finished.workdir / "corpus").rglob("*"):
        if path.is_file():
            s3.put(f"corpus/{path.relative_to(finished.workdir / 'corpus').as_posix()}", path.read_bytes())
    values = settings(settings_of, "of/work")
    for key in ("uri", "test_uri"):
        path = Path(values["positives"][key])
        s3.put(f"labelled/{path.name}", path.read_bytes())
        values["positives"] = values["positives"] | {key: f"s3://{BUCKET}/labelled/{path.name}"}
    values["corpus"] = values["corpus"] | {"uri": f"s3://{BUCKET}/corpus"}
    mine(values)
    assert s3.objects()["of/work/negatives.parquet"] == (finished.workdir / "negatives.parquet").read_bytes()
    assert json.loads(s3.objects()["of/work/corpus/corpus.json"])["shards_in"] == f"s3://{BUCKET}/corpus"
    elsewhere()
    corpus = open_corpus(opened("of/work") / "corpus")
    assert corpus.read(corpus.shards[0]).num_rows == corpus.shards[0].num_rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_line_with_two_workers_on_ray(
    s3: Store, settings_of: Settings, finished: Any, tmp_path: Path
) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(settings(settings_of, "cli/work")))
    uri = f"s3://{BUCKET}/cli/work"

    def scalemine(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scalemine", *arguments],
            capture_output=True, text=True, env={**os.environ, **variables}, check=False, timeout=400,
        )  # fmt: skip

    made = scalemine("mine", str(config), "--executor", "ray", "--set", "compute.workers=2")
    assert made.returncode == 0, made.stderr
    assert f"report: {uri}/report.html" in made.stdout
    assert MARK not in made.stdout + made.stderr
    assert_equal(s3, "cli/work", finished.workdir)
    shutil.rmtree(tmp_path / "mirror")
    again = scalemine("mine", str(config))
    assert "nothing to do" in again.stderr
    shown = scalemine("report", uri, SCALEMINE_MIRROR=str(tmp_path / "other"))
    assert f"report: {uri}/report.html" in shown.stdout
    for arguments, variables, said in (
        (["status", uri], {}, f"scalemine: {uri}: no sweep here"),
        (["report", f"s3://{BUCKET}/none"], {}, f"scalemine: s3://{BUCKET}/none: no finished run here"),
        (["mine", str(config)], {"AWS_ACCESS_KEY_ID": "wrong"}, f"scalemine: {uri}: cannot be reached"),
        (["report", "s3://nowhere/a"], {}, "scalemine: s3://nowhere/a: cannot be reached"),
        (["report", "s3://b/a?secret_key=x"], {}, "scalemine: expected a folder, or s3://BUCKET/PREFIX"),
    ):
        found = scalemine(*arguments, **variables)
        assert (found.returncode, found.stdout) == (2, ""), found
        assert found.stderr.startswith(said), found.stderr
        assert found.stderr.count("\n") == 1, found.stderr
