from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from damage import assert_read_or_refused
from scalemine.config import Config, InputError
from scalemine.store import read_json, write_json
from scalemine.submit.job import (
    EXIT,
    Job,
    check_private,
    exit_state,
    find_job,
    find_jobs,
    make_job,
    new_id,
    read_log,
    read_record,
    settings_of,
    write_files,
    write_record,
)
from scalemine.submit.profile import Profile, load_profile
from submit.fakes import a_job

GPUS, CPUS = load_profile("4x8gpu"), load_profile("cpu")


def settings(stage: str, profile: Profile, **sections: Any) -> dict[str, str]:
    config = Config.model_validate({"workdir": "work", **sections})
    return dict(one.split("=", 1) for one in settings_of(stage, config, profile, with_ray=True))


@pytest.mark.parametrize("stage", ["embed", "mine", "index", "rounds"])
def test_workers_of_a_corpus(stage: str) -> None:
    assert settings(stage, GPUS) == {
        "compute.executor": "ray", "compute.threads": "8", "compute.gpus_per_worker": "1", "compute.workers": "32",
    }  # fmt: skip
    assert settings(stage, CPUS)["compute.gpus_per_worker"] == "0"


def test_processes_of_a_training() -> None:
    assert settings("train", GPUS)["train.processes"] == "32"
    assert "compute.workers" not in settings("train", GPUS)
    assert "train.processes" not in settings("train", GPUS, train={"model": "logistic_regression"})


def test_runs_of_a_sweep() -> None:
    assert settings("sweep", GPUS)["sweep.concurrency"] == "32"
    assert settings("sweep", GPUS)["sweep.gpus_per_run"] == "1"
    several = settings("sweep", GPUS, train={"processes": 8})
    assert (several["sweep.concurrency"], several["sweep.gpus_per_run"]) == ("4", "8")
    shared = settings("sweep", GPUS, sweep={"gpus_per_run": 0.25})
    assert (shared["sweep.concurrency"], shared["compute.threads"]) == ("128", "2")
    assert "sweep.gpus_per_run" not in shared
    assert settings("sweep", CPUS)["sweep.gpus_per_run"] == "0"


def test_the_users_settings_win(tmp_path: Path) -> None:
    config = Config.model_validate({"workdir": tmp_path / "work"})
    job = make_job("mine", tmp_path / "c.yaml", config, ["compute.workers=3"], GPUS)
    assert [one for one in job.settings if one.startswith("compute.workers")] == [
        "compute.workers=32", "compute.workers=3",
    ]  # fmt: skip
    assert job.argv(["x"], "c")[:3] == ["x", "mine", "c"]
    assert job.home == tmp_path / "work" / "jobs" / job.id


def test_shares_are_of_embeddings(tmp_path: Path) -> None:
    job, _ = a_job(tmp_path, "embed", shares=4)
    assert job.settings[:2] == ("compute.executor=inline", "compute.workers=1")
    with pytest.raises(InputError, match="only embed is shared out"):
        a_job(tmp_path, "mine", shares=4)


def record(tmp_path: Path, **options: Any) -> tuple[Job, Any]:
    job, source = a_job(tmp_path, records=tmp_path / "work" / "jobs", **options)
    write_files(job, source, {"run.sh": "#!/bin/bash\n", "manifest.yaml": "a: 1\n"})
    return job, write_record(job, "slurm", {"slurm": "1"})


def test_records_are_found_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, sent = record(tmp_path)
    path = tmp_path / "work" / "jobs" / f"{job.id}.json"
    assert find_job(str(path)) == find_job(str(path.with_suffix(""))) == sent
    monkeypatch.chdir(tmp_path / "work")
    assert find_job(job.id).id == job.id
    monkeypatch.chdir(tmp_path)
    assert find_job(job.id).handle == {"slurm": "1"}
    assert [one.id for one in find_jobs(tmp_path / "work")] == [job.id]
    copy = tmp_path / "other" / "jobs" / path.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="several jobs of that name"):
        find_job(job.id)


@pytest.mark.parametrize("name", ["mine-1", "no such/job", "../x", "*"])
def test_jobs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such job"):
        find_job(name)


def test_a_file_that_is_no_record(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"id": "x"}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="no record of a job"):
            find_job(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../x"}, {"id": "other"}, {"target": "moon"}, {"shares": -1}, {"shares": "x"}, {"handle": {}},
        {"handle": {"slurm": "--user=root"}}, {"handle": {"slurm": "1", "more": "2"}}, {"submitted": None},
        {"target": "kubernetes", "handle": {"namespace": "--all", "name": "x"}},
        {"target": "local", "handle": {"pid": -1, "started": 1.0}},
        {"target": "ray", "handle": {"address": "file:///etc", "token": None}},
    ],
)  # fmt: skip
def test_a_record_that_was_tampered_with(tmp_path: Path, change: dict[str, Any]) -> None:
    job, _ = record(tmp_path)
    path = job.records / f"{job.id}.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(InputError, match="no record of a job"):
        read_record(path)


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 5_000), marks=pytest.mark.slow)])
def test_damaged_records_are_read_or_refused_in_one_line(tmp_path: Path, seeds: range) -> None:
    job, sent = record(tmp_path)
    path = job.records / f"{job.id}.json"

    def is_read() -> bool:
        found = read_record(path)
        return (found.id, found.home) == (sent.id, sent.home)

    assert_read_or_refused(path, seeds, is_read)


def test_a_record_that_others_may_read_shows_no_secret(tmp_path: Path) -> None:
    config = Config.model_validate({"workdir": tmp_path / "work"})
    job = make_job("mine", tmp_path / "c.yaml", config, ["why=https://me:planted@host/", "seed=3"], GPUS)
    sent = write_record(job, "slurm", {"slurm": "1"})
    text = (job.records / f"{sent.id}.json").read_text()
    assert "planted" not in text
    assert '"seed=3"' in text


def test_the_configuration_is_kept_as_it_was_and_to_oneself(tmp_path: Path) -> None:
    job, _ = record(tmp_path)
    (tmp_path / "some config.yaml").write_text("workdir: other\n")
    assert job.config.read_text() == "workdir: work\n"
    assert job.home.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in job.home.iterdir()}
    assert (modes["run.sh"], modes["manifest.yaml"]) == (0o700, 0o600)


def test_states_and_logs(tmp_path: Path) -> None:
    assert exit_state(tmp_path) is None
    for text, state in (("0\n", "done"), ("75\n", "stopped"), ("1\n", "failed"), ("137\n", "failed"), ("", None)):
        (tmp_path / EXIT).write_text(text)
        assert exit_state(tmp_path) == state
    assert read_log(tmp_path) == ""
    (tmp_path / "log").write_text("said\n")
    assert read_log(tmp_path) == "said\n"


def test_names_are_what_kubernetes_takes() -> None:
    names = {new_id("rounds") for _ in range(3)}
    assert all(len(name) <= 47 and name.replace("-", "").isalnum() and name.islower() for name in names)


def test_a_token_is_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    check_private(path)
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(InputError, match="chmod 600"):
            check_private(path)
