from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from listening import assert_listens_to_this_machine_alone
from scalemine import chaos
from scalemine.chaos import Blow, Drill, Kill, compare, draw_moment, plan_drills, run_drills
from scalemine.config import InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.lease import hold_workdir

Settings = Callable[..., dict[str, Any]]


def test_moments_are_drawn_by_the_seed_and_before_the_end() -> None:
    moments = [draw_moment(seed) for seed in range(300)]
    assert moments == [draw_moment(seed) for seed in range(300)]
    assert 0 <= min(moments) < 0.05
    assert 0.9 < max(moments) <= 0.95


def test_drills_go_through_all_kinds_of_kills() -> None:
    plans = plan_drills(20, 1, None, None)
    assert [seed for seed, _ in plans] == list(range(1, 21))
    assert {kill: sum(blow.kill is kill for _, blow in plans) for kill in Kill} == dict.fromkeys(Kill, 5)
    assert len({blow.at for _, blow in plans}) > 10
    assert plan_drills(2, 7, Kill.node, 0.4) == [(7, Blow(Kill.node, 0.4)), (8, Blow(Kill.node, 0.4))]


# The comparison


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    for name, seconds in (("one", 1.0), ("other", 2.0)):
        for path, text in {
            "negatives.parquet": "n",
            "distributions.json": "{}",
            "embeddings/00000.arrow": "vectors",
            "embeddings/stage.json": "{}",
            "sets/train_2s.parquet": "set",
            # Of these no two runs have the same.
            "embeddings/00000.arrow.json": json.dumps({"seconds": seconds}),
            "negatives.parquet.json": json.dumps({"seconds": seconds}),
            "manifest.json": json.dumps({"seconds": seconds}),
            "report.html": f"took {seconds}",
            ".lock": str(seconds),
        }.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
    return tmp_path / "one", tmp_path / "other"


def test_files_that_hold_times_are_not_compared(two_runs: tuple[Path, Path]) -> None:
    equal, different = compare(*two_runs)
    assert different == []
    assert equal == [
        "distributions.json",
        "embeddings/00000.arrow",
        "embeddings/stage.json",
        "negatives.parquet",
        "sets/train_2s.parquet",
    ]


def test_one_byte_is_a_difference(two_runs: tuple[Path, Path]) -> None:
    (two_runs[1] / "embeddings" / "00000.arrow").write_text("vectorz")
    assert compare(*two_runs)[1] == ["embeddings/00000.arrow"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_that_one_run_lacks_is_a_difference(place: int, two_runs: tuple[Path, Path]) -> None:
    (two_runs[place] / "sets" / "train_2s.parquet").unlink()
    assert compare(*two_runs)[1] == ["sets/train_2s.parquet"]


def test_what_passes_and_what_does_not(tmp_path: Path) -> None:
    struck = chaos.Struck(Blow(Kill.node, 0.4), "node 1", 1, 3, {})
    assert Drill(tmp_path, struck=[struck], equal=["a"]).has_passed
    assert not Drill(tmp_path, equal=["a"]).has_passed
    assert not Drill(tmp_path, struck=[struck]).has_passed
    assert not Drill(tmp_path, struck=[struck], equal=["a"], different=["b"]).has_passed
    late = Drill(tmp_path, struck=[struck], equal=["a"], missed=["all were finished"])
    assert not late.has_passed
    assert "failed: all were finished" in late.lines
    assert late.lines[-1].startswith("FAILED")


# The blows, dealt to a run that is none

SLEEPER = "import time; time.sleep(600)"


class FakeRun:
    """A process that finishes a shard at each look of the drill."""

    def __init__(self, progress: FakeProgress) -> None:
        self.progress, self.calls = progress, 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SLEEPER])
        self.calls += 1

    @property
    def is_up(self) -> bool:
        self.progress.step()
        if self.progress.num_done >= self.progress.of:
            self.process.kill()
            self.process.wait()
        return self.process.poll() is None

    def check(self) -> None:
        pass


class FakeProgress:
    """Shards that become finished in order."""

    of, has_begun = 6, True

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_done = folder, 0

    def step(self) -> None:
        if self.num_done < self.of:
            (self.folder / f"{self.num_done}.arrow.json").write_text("{}")
            self.num_done += 1

    def done(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow.json"))


class FakeCluster:
    """Two nodes with a process each."""

    def __init__(self) -> None:
        self.processes = {name: self._start() for name in ("node 1", "node 2")}

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SLEEPER])

    def workers(self) -> dict[str, list[tuple[int, str]]]:
        return {name: [(process.pid, "ray::_Actor.run")] for name, process in self.processes.items()}

    def remove_node(self, chance: random.Random) -> tuple[str, int]:
        name = chance.choice(sorted(self.processes))
        chaos._end([self.processes.pop(name).pid])
        return name, 1

    def add_node(self) -> None:
        self.processes["node 3"] = self._start()


@pytest.mark.parametrize("kill", list(Kill))
def test_a_blow_is_dealt_at_its_moment(kill: Kill, tmp_path: Path) -> None:
    progress, cluster = FakeProgress(tmp_path), FakeCluster()
    run, drill = FakeRun(progress), Drill(tmp_path)
    before = [run.process, *cluster.processes.values()]
    try:
        chaos._strike_and_wait(run, cluster, [Blow(kill, 0.5)], progress, drill, StopSignals(), 0)
        killed = [process for process in before if process is not run.process and process.poll() is not None]
    finally:
        for process in [run.process, *cluster.processes.values()]:
            process.kill()
    [struck] = drill.struck
    assert 3 <= struck.finished < struck.of == 6
    assert len(struck.done_before) == struck.finished
    assert f"killed at {struck.finished} of 6 shards ({kill}, --at 0.50)" in struck.tell()
    assert drill.missed == []
    assert len(killed) == 1
    assert run.calls == (2 if kill is Kill.driver else 1)
    assert ("node 3" in cluster.processes) == (kill is Kill.node)


def test_a_blow_that_comes_too_late_is_none(tmp_path: Path) -> None:
    progress, cluster = FakeProgress(tmp_path), FakeCluster()
    run, drill = FakeRun(progress), Drill(tmp_path)
    try:
        chaos._strike_and_wait(run, cluster, [Blow(Kill.actor, 1.0)], progress, drill, StopSignals(), 0)
    finally:
        for process in [run.process, *cluster.processes.values()]:
            process.kill()
    assert drill.struck == []
    assert drill.missed == ["actor at 1.00: all 6 shards were finished by then"]


def test_a_shard_that_was_done_again_is_said(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.arrow.json" for number in range(3)]
    for path in paths:
        path.write_text("{}")
    struck = chaos.Struck(Blow(Kill.actor, 0.4), "actor", 3, 7, {path: chaos._stamp(path) for path in paths})
    paths[0].unlink()
    assert struck.tell().endswith("2 of these 3 shards were left as they were, 5 were done after")


def test_killed_processes_are_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER])
    chaos._end([process.pid, process.pid])
    assert not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    process.wait()
    chaos._end([process.pid])  # it is gone already


# What is said before anything starts


@pytest.fixture
def config(settings_of: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings_of(tmp_path / "work")))
    return path


def test_one_drill_at_a_time(config: Path, tmp_path: Path) -> None:
    with hold_workdir(tmp_path / "work.chaos"):
        with pytest.raises(InputError, match="in use by another run"):
            next(run_drills(config, [], [(0, [Blow(Kill.actor, 0.4)])]))


def test_a_run_that_fails_by_itself_is_said(config: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"scalemine mine ended with exit code 2: scalemine: .*encoder\.model"):
        next(run_drills(config, [f"encoder.model={tmp_path}"], [(0, [Blow(Kill.actor, 0.4)])]))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("key", ["positives.uri", "positives.test_uri", "workdir"])
def test_what_cannot_be_drilled_is_refused(config: Path, tmp_path: Path, key: str) -> None:
    value, said = {"workdir": ("s3://bucket/work", "set workdir to a folder")}.get(
        key, (f"{tmp_path}/none.csv", f"{key}: no such file: {tmp_path}/none.csv")
    )
    with pytest.raises(InputError, match=said):
        next(run_drills(config, [f"{key}={value}"], [(0, [Blow(Kill.actor, 0.4)])]))


def test_a_drill_can_be_stopped(config: Path, tmp_path: Path) -> None:
    signals = StopSignals()
    signals.requested = True
    with pytest.raises(Stopped):
        next(run_drills(config, [], [(0, [Blow(Kill.actor, 0.4)])], signals=signals))


def test_the_undisturbed_run_hangs_on_what_decides_the_bytes(config: Path, sample_folder: Path) -> None:
    def print_of(*overrides: str) -> str:
        return chaos._print_of(chaos.load_config(config, list(overrides)))

    assert print_of() == print_of("workdir=elsewhere", "compute.workers=2", "compute.executor=ray")
    assert print_of() != print_of("seed=43")
    assert print_of() != print_of("corpus.rows_per_shard=100")
    assert print_of() != print_of(f"positives.uri={sample_folder / 'positives_test.parquet'}")


# Drills in earnest


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_whatever_is_killed_the_bytes_are_those_of_an_undisturbed_run(settings_of: Settings, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings_of(tmp_path / "work", corpus={"rows_per_shard": 75})))
    plans = [(seed, [blow]) for seed, blow in plan_drills(4, 1, None, None)]
    plans.append((5, [Blow(Kill.actor, 0.2), Blow(Kill.node, 0.4), Blow(Kill.driver, 0.6)]))
    drills = list(run_drills(path, [], plans))
    assert [drill.lines for drill in drills if not drill.has_passed] == []
    assert len(drills) == len(plans)
    assert {struck.blow.kill for drill in drills for struck in drill.struck} == set(Kill)
    assert all("negatives.parquet" in drill.equal for drill in drills)
    assert not (tmp_path / "work").exists()
    assert not list((tmp_path / "work.chaos").glob("drill-*"))


@pytest.mark.slow
def test_a_drill_that_ends_otherwise_fails(settings_of: Settings, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings_of(tmp_path / "work", corpus={"rows_per_shard": 150})))
    [drill] = run_drills(path, [], [(1, [Blow(Kill.actor, 0.2)])])
    assert drill.has_passed
    [whole] = (tmp_path / "work.chaos").glob("undisturbed-*[0-9a-f]")
    (whole / "negatives.parquet").write_bytes(b"other")
    [drill] = run_drills(path, [], [(1, [Blow(Kill.actor, 0.2)])])
    assert not drill.has_passed
    assert drill.different == ["negatives.parquet"]
    assert (tmp_path / "work.chaos" / "drill-1" / "negatives.parquet").exists()


LISTENING = """
from scalemine.chaos import _Cluster
with _Cluster(2):
    scan()
"""


@pytest.mark.slow
def test_the_cluster_of_a_drill_listens_to_this_machine_alone() -> None:
    assert assert_listens_to_this_machine_alone(LISTENING).count("raylet") >= 3
