from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scalemine.config import InputError, RunError
from scalemine.submit import slurm
from scalemine.submit.profile import Profile, SlurmSite
from scalemine.submit.targets import submit
from submit import fakes
from submit.fakes import a_job, until


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fakes.use_fakes(tmp_path, monkeypatch)


def called(notes: Path, name: str) -> list[list[str]]:
    path = notes / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plain_job(tmp_path: Path, **options):
    return a_job(tmp_path, records=tmp_path / "jobs", **options)


def signal_batch(notes: Path, number: signal.Signals) -> None:
    os.kill(int((notes / "pid").read_text()), number)


def test_directives() -> None:
    site = SlurmSite(directives={"partition": "gpu", "time": "0:10:00"}, notice=300)
    job, _ = a_job(Path("/tmp"), profile=Profile(nodes=3, cpus=16, gpus=4, memory=100, hours=0.51, slurm=site))
    found = slurm.directives(job)
    assert {key: found[key] for key in ("nodes", "cpus-per-task", "gpus-per-node", "mem", "ntasks-per-node")} == {
        "nodes": "3", "cpus-per-task": "16", "gpus-per-node": "4", "mem": "100G", "ntasks-per-node": "1",
    }  # fmt: skip
    assert (found["partition"], found["time"], found["signal"]) == ("gpu", "0:10:00", "B:USR1@300")
    assert found["requeue"] is None
    assert slurm.directive("requeue", None) == "#SBATCH --requeue"
    assert slurm.directives(a_job(Path("/tmp"))[0])["time"] == "1:30:00"


def test_directives_of_an_array_are_those_of_one_worker() -> None:
    job, _ = a_job(Path("/tmp"), "embed", Profile(nodes=4, cpus=64, gpus=8, memory=512), shares=100)
    found = slurm.directives(job)
    assert [found[key] for key in ("nodes", "cpus-per-task", "gpus-per-node", "mem", "array")] == [
        "1", "8", "1", "64G", "0-99",
    ]  # fmt: skip
    assert found["output"] is not None and found["output"].endswith("/log.%a")


@pytest.mark.parametrize(("name", "value"), [("partition", "a b"), ("account", "x\ny"), ("x;y", "z"), ("qos", '"q"')])
def test_directives_that_sbatch_may_misread(name: str, value: str) -> None:
    with pytest.raises(InputError, match="expected letters, digits"):
        slurm.directive(name, value)


def test_script_is_sound(tmp_path: Path) -> None:
    for options in ({}, {"stage": "embed", "shares": 2}):
        job, _ = plain_job(tmp_path, **options)
        text = slurm.render(job)["run.sh"]
        path = tmp_path / "run.sh"
        path.write_text(text)
        subprocess.run(["bash", "-n", path], check=True)
        # The shell reads back what was written, whatever characters it has.
        words = shlex.split(next(line for line in text.splitlines() if line.startswith("command=("))[9:-1])
        assert words[-2:] == ["--set", "why=it's $HOME; `x`"]
        if shellcheck := shutil.which("shellcheck"):
            said = subprocess.run([shellcheck, "--exclude=SC2016", path], capture_output=True, text=True)
            assert said.returncode == 0, said.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (pip install .[dev])")
def test_shellcheck_is_there() -> None:
    said = subprocess.run(["shellcheck", "-"], input="#!/bin/sh\necho $x\n", capture_output=True, text=True)
    assert said.returncode == 1


def test_a_job_runs_and_leaves_nothing(notes: Path, tmp_path: Path) -> None:
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    assert sent.handle == {"slurm": "4711"}
    until(lambda: slurm.state(sent) == "done")
    # One Ray on each node; the others join the first; each ended by this script.
    lines = (notes / "ray").read_text().splitlines()
    began, ended = ([line for line in lines if line.startswith(word)] for word in ("began", "ended"))
    assert (len(began), len(ended)) == (2, 2)
    (head,), (worker,) = ([one for one in began if ("--head" in one) is is_head] for is_head in (True, False))
    port = 20000 + 4711 % 1200 * 10
    assert re.search(rf"--port={port} ", head)
    assert re.search(rf"--address=[\d.]+:{port} ", worker)
    assert all("mode=600 mode=token" in line and "--block" in line for line in lines)
    assert all("--num-cpus=4 --num-gpus=2" in line for line in began)
    # The stage: where the user was, with the profile's settings, and the address of this cluster.
    (words,) = called(notes, "stage")
    assert words[:3] == [str(tmp_path), "mine", str(job.config)]
    assert "compute.workers=4" in words
    assert "compute.threads=2" in words
    assert re.fullmatch(rf"compute\.address=[\d.]+:{port}", words[-1])
    # Tasks go to the nodes of the allocation.
    placed = {word for call in called(notes, "srun") for word in call if word.startswith("--nodelist")}
    assert placed == {"--nodelist=n1", "--nodelist=n2"}
    assert not list(tmp_path.glob("sm.*"))
    assert not (sent.home / "token").exists()
    assert slurm.log(sent).strip().endswith("the stage speaks")
    assert [call[0] for call in called(notes, "scontrol")] == ["show"]


def test_out_of_time_is_queued_again_and_goes_on(notes: Path, tmp_path: Path) -> None:
    (notes / "lasting").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    until(lambda: called(notes, "stage"))
    first = (notes / "pid").read_text()
    signal_batch(notes, signal.SIGUSR1)
    until(lambda: slurm.state(sent) == "done")
    assert (notes / "signals").read_text() == "SIGUSR1\n"
    assert ["requeue", "4711"] in called(notes, "scontrol")
    assert len(called(notes, "stage")) == 2
    assert (notes / "pid").read_text() != first
    until(lambda: (notes / "ray").read_text().count("ended") == 4)  # none of the first is left
    assert "queued again" in slurm.log(sent)


def test_a_job_is_queued_again_only_so_often(notes: Path, tmp_path: Path) -> None:
    (notes / "lasting").touch()
    job, source = plain_job(tmp_path, profile=Profile(cpus=1, memory=1, slurm=SlurmSite(restarts=0)))
    sent = submit(job, "slurm", source)
    until(lambda: called(notes, "stage"))
    signal_batch(notes, signal.SIGUSR1)
    until(lambda: slurm.state(sent) == "stopped")
    assert (sent.home / "exit").read_text() == "75\n"
    assert [call[0] for call in called(notes, "scontrol")] == ["show"]


def test_who_stops_a_job_does_not_want_it_again(notes: Path, tmp_path: Path) -> None:
    (notes / "lasting").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    until(lambda: called(notes, "stage"))
    assert slurm.state(sent) == "running"
    slurm.stop(sent)
    until(lambda: slurm.state(sent) == "stopped")
    assert (notes / "signals").read_text() == "SIGTERM\n"
    assert [call[0] for call in called(notes, "scontrol")] == ["show"]


def test_a_job_that_is_stopped_while_it_waits(notes: Path, tmp_path: Path) -> None:
    (notes / "waiting").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    assert slurm.state(sent) == "waiting"
    slurm.stop(sent)
    assert slurm.state(sent) == "stopped"
    slurm.stop(sent)  # once more does no harm
    assert called(notes, "stage") == []


def test_who_stops_a_job_that_runs_out_of_time_does_not_want_it_again(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "lasting").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    until(lambda: called(notes, "stage"))
    scancel = slurm._call

    def out_of_time(command: list[str]) -> str:
        if command[0] == "scancel" and "--state=PENDING" in command:
            signal_batch(notes, signal.SIGUSR1)
        return scancel(command)

    monkeypatch.setattr(slurm, "_call", out_of_time)
    slurm.stop(sent)
    until(lambda: slurm.state(sent) == "stopped")
    assert [call[0] for call in called(notes, "scontrol")] == ["show"]


@pytest.mark.parametrize("code", [1, 2, 127, 143])
def test_a_failure_is_told(notes: Path, tmp_path: Path, code: int) -> None:
    (notes / "code").write_text(str(code))
    job, source = plain_job(tmp_path, profile=Profile(cpus=1, memory=1))
    sent = submit(job, "slurm", source)
    until(lambda: slurm.state(sent) == "failed")
    assert (sent.home / "exit").read_text() == f"{code}\n"


def test_ray_that_does_not_start(notes: Path, tmp_path: Path) -> None:
    (notes / "ray_fails").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    until(lambda: slurm.state(sent) == "failed")
    assert called(notes, "stage") == []
    assert not list(tmp_path.glob("sm.*"))


def test_an_array_shares_the_corpus_out_without_ray(notes: Path, tmp_path: Path) -> None:
    job, source = plain_job(tmp_path, stage="embed", shares=3)
    sent = submit(job, "slurm", source)
    until(lambda: slurm.state(sent) == "done")
    shares = sorted(words[-1] for words in called(notes, "stage"))
    assert shares == ["0/3", "1/3", "2/3"]
    assert all("compute.executor=inline" in words for words in called(notes, "stage"))
    assert not (notes / "ray").exists()
    assert slurm.log(sent).count("the stage speaks") == 3
    assert "== log.1\n" in slurm.log(sent)


def test_an_array_with_a_share_that_failed(notes: Path, tmp_path: Path) -> None:
    job, source = plain_job(tmp_path, stage="embed", shares=2)
    sent = submit(job, "slurm", source)
    until(lambda: slurm.state(sent) == "done")
    (sent.home / "exit.1").write_text("1\n")
    assert slurm.state(sent) == "failed"


def test_a_cluster_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job, source = plain_job(tmp_path)
    with pytest.raises(InputError, match="sbatch: not found here; call this on a login node"):
        submit(job, "slurm", source)


@pytest.mark.parametrize(
    ("said", "known"), [("error: Invalid job id specified", True), ("error: Unable to contact slurm controller", False)]
)
def test_a_job_is_gone_only_where_squeue_says_so(notes: Path, tmp_path: Path, said: str, known: bool) -> None:
    (notes / "waiting").touch()
    job, source = plain_job(tmp_path)
    sent = submit(job, "slurm", source)
    fakes.write_program(tmp_path / "bin" / "squeue", f"import sys; sys.exit('slurm_load_jobs {said}')")
    if known:
        assert slurm.state(sent) == "unknown"
        return
    with pytest.raises(RunError, match="Unable to contact"):
        slurm.state(sent)


def test_sbatch_that_refuses(notes: Path, tmp_path: Path) -> None:
    fakes.write_program(tmp_path / "bin" / "sbatch", "import sys; sys.exit('invalid partition')")
    job, source = plain_job(tmp_path)
    with pytest.raises(RunError, match="sbatch ended with code 1: invalid partition"):
        submit(job, "slurm", source)
