from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from scalemine.cli import EXIT_STOPPED
from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import Stage, Workdir, open_stage, write_json
from scalemine.training import processes as module
from scalemine.training import worker
from scalemine.training.runs import run_training
from training.tweets import config, equal, settings, weights


def nothing_is_left(folder: Path) -> bool:
    """Say whether nothing lies about of what passes between the processes of a run."""
    passing = (module.SPEC, module.FAILURE, module.STOPPED, module.BEGUN, module.STOP, module.RAY)
    return not [path for path in folder.rglob("*") if path.name in passing]


@pytest.fixture
def stage(tmp_path) -> Stage:
    return open_stage(tmp_path / "run", version=1, settings={}, inputs={})


def start(monkeypatch, *codes: str) -> None:
    """Have processes run some code, which is given the spec's path, in place of a worker's."""
    prelude = "import json, os, pathlib, signal, sys, time; spec = pathlib.Path(sys.argv[1]); run = spec.parent\n"

    def start_workers(_config, spec, _meeting):
        return [subprocess.Popen([sys.executable, "-Sc", prelude + code, str(spec)]) for code in codes]

    monkeypatch.setattr(module, "_start_workers", start_workers)


SAYS = "(run / '.failure.json').write_text(json.dumps({'is_input': %s, 'message': 'no such file'})); sys.exit(1)"
WAITS = "time.sleep(600)"
STOPS = """
def stop(*_):
    (run / '.stopped').touch()
    with open(run / 'asked', 'a') as file:
        file.write('once ')
    time.sleep(0.5)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
(run / str(os.getpid())).touch()
time.sleep(600)
"""


def launch(tmp_path, stage, signals=None, **compute) -> None:
    values = {"workdir": str(tmp_path), "train": {"train_uri": "x", "processes": 2}, "compute": compute}
    module.launch(Config.model_validate(values), None, stage, signals)


@pytest.mark.parametrize(("is_input", "kind"), [(True, InputError), (False, RunError)])
def test_what_a_process_says_is_raised_and_the_others_are_ended(tmp_path, stage, monkeypatch, is_input, kind):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    before = {child.pid for child in psutil.Process().children()}  # such as a Ray session of other tests
    start(monkeypatch, WAITS, SAYS % is_input)
    with pytest.raises(kind, match="^no such file$"):
        launch(tmp_path, stage)
    assert nothing_is_left(tmp_path)
    left = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert {child.pid for child in left} <= before


def test_a_process_that_says_nothing(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    start(monkeypatch, "sys.exit(7)", "pass")
    with pytest.raises(RunError, match="^run: a process ended with code 7; see what it said above$"):
        launch(tmp_path, stage)
    assert nothing_is_left(tmp_path)


def test_what_an_earlier_call_left_is_not_taken_for_this_ones(tmp_path, stage, monkeypatch):
    write_json(stage.file(module.FAILURE), {"is_input": True, "message": "of before"})
    stage.file(module.STOPPED).touch()
    start(monkeypatch, "assert json.loads(spec.read_text())['folder'] == str(run)", "pass")
    launch(tmp_path, stage)
    assert nothing_is_left(tmp_path)


def test_processes_are_asked_once_to_stop(tmp_path, stage, monkeypatch):
    start(monkeypatch, STOPS, STOPS)
    signals = StopSignals()

    def ask() -> None:
        while len(list(stage.folder.glob("[0-9]*"))) < 2:
            time.sleep(0.01)
        signals.requested = True

    threading.Thread(target=ask).start()
    with pytest.raises(Stopped):
        launch(tmp_path, stage, signals)
    assert (stage.folder / "asked").read_text() == "once once "
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("compute", "processes", "expected"),
    [
        ({"threads": 3}, 2, 3),
        ({"threads": 3, "executor": "ray", "address": "10.0.0.1:6379"}, 2, 3),
        ({}, 2, 4),
        ({}, 3, 2),
        ({}, 100, 1),
        ({"executor": "ray"}, 2, 4),
        ({"executor": "ray", "address": "10.0.0.1:6379"}, 2, 1),  # whose nodes are not this machine
        ({"executor": "ray", "address": "10.0.0.1:6379"}, 1, 8),  # which runs here
    ],
)
def test_threads_of_a_process(monkeypatch, compute, processes, expected):
    monkeypatch.setattr(module, "num_cores", lambda: 8)
    values = {"workdir": "work", "train": {"train_uri": "x", "processes": processes}, "compute": compute}
    assert module.threads_of_process(Config.model_validate(values)) == expected


class RayTrainer:
    """Stands in for Ray Train: does something in the place of the processes."""

    def __init__(self, monkeypatch, fit) -> None:
        self.fit = fit
        monkeypatch.setattr(module, "ray_session", lambda *_, **__: contextlib.nullcontext())
        monkeypatch.setattr(module, "_make_ray_trainer", lambda *_: self)


def test_ray_that_waits_for_its_place_is_given_up_at_once(tmp_path, stage, monkeypatch):
    done = threading.Event()
    RayTrainer(monkeypatch, done.wait)
    signals = StopSignals()
    signals.requested = True
    with pytest.raises(Stopped):
        launch(tmp_path, stage, signals, executor="ray")
    done.set()
    assert nothing_is_left(tmp_path)


def test_processes_of_ray_are_stopped_by_a_file(tmp_path, stage, monkeypatch):
    signals = StopSignals()
    request = module.StopFile(stage.file(module.STOP))

    def fit() -> None:
        stage.file(module.RAY).mkdir()
        assert not request.requested
        stage.file(module.BEGUN).touch()
        signals.requested = True
        while not request.requested:
            time.sleep(0.01)
        stage.file(module.STOPPED).touch()

    RayTrainer(monkeypatch, fit)
    stage.file(module.STOP).touch()  # of an earlier call that was killed
    with pytest.raises(Stopped):
        launch(tmp_path, stage, signals, executor="ray")
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("says", [True, False])
def test_a_failure_under_ray(tmp_path, stage, monkeypatch, says):
    def fit() -> None:
        stage.file(module.RAY).mkdir()
        if says:
            write_json(stage.file(module.FAILURE), {"is_input": True, "message": "no such file"})
        raise ValueError("Worker failures:\nout of memory")

    RayTrainer(monkeypatch, fit)
    expected = (InputError, "^no such file$") if says else (RunError, "^run: Ray Train failed: out of memory$")
    with pytest.raises(expected[0], match=expected[1]):
        launch(tmp_path, stage, executor="ray")
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("there", "device", "said"),
    [
        ({"CPU": 5}, "auto", "train.processes: 2 want 6 CPUs, and there are 5"),
        ({"CPU": 6, "GPU": 1}, "auto", "train.processes: 2 want 2 GPUs, and there are 1"),
        ({"CPU": 6, "GPU": 1}, "cpu", None),
        ({"CPU": 6}, "auto", None),
    ],
)
def test_room_for_the_processes_of_ray(tmp_path, stage, monkeypatch, caplog, there, device, said):
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    values = {"workdir": str(tmp_path), "train": {"train_uri": "x", "processes": 2, "device": device}}
    values["compute"] = {"executor": "ray"}
    if said is None:
        assert module._make_ray_trainer(Config.model_validate(values), stage, 3) is not None
        return
    with pytest.raises(InputError, match=f"^{said}$"):
        module._make_ray_trainer(Config.model_validate(values), stage, 3)
    # A cluster may grow.
    values["compute"]["address"] = "10.0.0.1:6379"
    with caplog.at_level("WARNING", logger="scalemine"):
        assert module._make_ray_trainer(Config.model_validate(values), stage, 3) is not None
    assert caplog.messages == [f"{said}: waiting until the cluster has them"]


@pytest.mark.parametrize("went_well", [True, False])
def test_a_process_of_ray_that_fails_is_known_to_have_failed(tmp_path, monkeypatch, went_well):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = []
    monkeypatch.setattr(worker, "work", lambda path, request: asked.append((path, request.requested)) or went_well)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    given = {"home": str(tmp_path / "home"), "spec": str(tmp_path / module.SPEC), "threads": 3}
    with contextlib.nullcontext() if went_well else pytest.raises(RuntimeError, match="said in a file"):
        module._work_in_ray(given)
    assert asked == [(tmp_path / module.SPEC, False)]
    assert (tmp_path / module.BEGUN).exists()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert Path.cwd() == tmp_path / "home"  # relative paths are as for who began the run


def test_another_number_of_processes_than_configured_is_refused(data, tmp_path):
    with pytest.raises(RunError, match="train.processes: 2 wanted, but 1 are running"):
        module.make_accelerator(config(data, tmp_path, processes=2), tmp_path, {})


def test_two_processes_score_another_test_set(data, tmp_path):
    run_training(config(data, tmp_path, epochs=2))
    tests = {"test": str(data / "test.parquet"), "more": str(data / "dev.parquet")}
    [after] = run_training(config(data, tmp_path, epochs=2, test_uris=tests, processes=2))
    assert after["metrics"]["more"]["num_tweets"] == 40
    assert after["processes"] == 2


MEETS = """
import os, sys
import torch.distributed as dist
dist.init_process_group("gloo")
total = [None] * dist.get_world_size()
dist.all_gather_object(total, dist.get_rank())
print(total, flush=True)
sys.stdin.read()
"""


def test_processes_meet_where_no_other_machine_reaches_them() -> None:
    # What other tests of this process listen with, such as a Ray session.
    before = {one.laddr for one in psutil.Process().net_connections("inet")}
    with module._meeting_point("127.0.0.1") as meeting:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", MEETS], env=os.environ | meeting | {"RANK": str(rank), "WORLD_SIZE": "2"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            assert [process.stdout.readline() for process in ranks] == ["[0, 1]\n", "[0, 1]\n"]
            listening = [
                (process.pid, one.laddr.ip)
                for process in (psutil.Process(), *(psutil.Process(rank.pid) for rank in ranks))
                for one in process.net_connections("inet")
                if one.status == psutil.CONN_LISTEN and one.laddr.port != 0 and one.laddr not in before
            ]
            here = [ip for pid, ip in listening if pid == os.getpid()]
            assert "127.0.0.1" in here  # the store
            assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}
        finally:
            for process in ranks:
                process.communicate()


def test_a_stop_keeps_the_checkpoint(data, tmp_path):
    # Another process asks this one to stop, as a scheduler would.
    with StopSignals() as listening:
        child = subprocess.Popen([sys.executable, "-c", STOPPER, str(tmp_path), str(os.getpid())])
        with pytest.raises(Stopped):
            run_training(config(data, tmp_path, processes=2, epochs=400, patience=400), signals=listening)
        child.wait()
    assert list(tmp_path.glob("runs/*/checkpoint.json"))
    left = [one.cmdline() for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    assert not [command for command in left if "scalemine.training.worker" in command]


STOPPER = """
import os, signal, sys, time
from pathlib import Path
until = time.monotonic() + 120
while not list(Path(sys.argv[1]).glob("runs/*/checkpoint.json")) and time.monotonic() < until:
    time.sleep(0.05)
os.kill(int(sys.argv[2]), signal.SIGTERM)
"""


def test_two_processes_do_what_one_does(data, tmp_path):
    """At equal global batch: the same losses, scores and predictions, and weights but for rounding."""
    [one] = run_training(config(data, tmp_path / "one", dropout=0.0))
    [two] = run_training(config(data, tmp_path / "two", dropout=0.0, processes=2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for before, after in zip(one["history"], two["history"], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-4)
        assert before["score"] == after["score"]
    assert one["metrics"] == two["metrics"]
    assert one["lr_check"] == two["lr_check"]
    folders = [Workdir(tmp_path / name).runs / one["name"] for name in ("one", "two")]
    assert equal(weights(folders[0]), weights(folders[1]), 1e-3)


def step_of(state: Path) -> int:
    return json.loads(state.read_text())["progress"]["step"] if state.exists() else -1


def kill_session(leader: int) -> None:
    """Kill a process and all that it started, which have groups of their own."""
    parents = psutil.Process(leader)
    for process in [*parents.children(recursive=True), parents]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_killed_in_mid_epoch_with_two_processes(data, tmp_path):
    """Kill -9 of everything, then the same command: the weights of the unbroken run, bit for bit, with dropout."""
    train = {"processes": 2, "epochs": 12, "patience": 12, "checkpoint_steps": 3, "name": "run"}
    [unbroken] = run_training(config(data, tmp_path / "unbroken", **train))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(data, tmp_path / "broken", **train)), encoding="utf-8")
    command = [sys.executable, "-m", "scalemine", "train", str(path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = tmp_path / "broken" / "runs" / "run" / "checkpoint.json"
    try:
        while process.poll() is None and step_of(state) < 17:
            time.sleep(0.005)
    finally:
        kill_session(process.pid)
        process.wait()
    assert 17 <= step_of(state) < 12 * 14, "it had ended before it was killed"
    [again] = run_training(config(data, tmp_path / "broken", **train))
    folders = [tmp_path / name / "runs" / "run" for name in ("unbroken", "broken")]
    assert equal(weights(folders[0]), weights(folders[1]))
    assert again["metrics"] == unbroken["metrics"]
    assert [epoch["loss"] for epoch in again["history"]] == [epoch["loss"] for epoch in unbroken["history"]]


@pytest.mark.slow
def test_a_failure_in_one_of_two_processes_is_said(data, tmp_path):
    with pytest.raises(RunError, match="stopped; the checkpoint before it is kept"):
        run_training(config(data, tmp_path, processes=2, head_lr=1e30, lr=1e30, clip=1e30))
    with pytest.raises(InputError, match="train.vectors: no such file"):
        run_training(config(data, tmp_path, processes=2, vectors="nowhere.txt"))
    assert nothing_is_left(tmp_path)


def test_curves_are_tracked(data, tmp_path, monkeypatch):
    run_training(config(data, tmp_path, epochs=1).model_copy(update={"tracking": "tensorboard"}))
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents*"))
    assert all(name in content for name in (b"loss", b"lr", b"score"))
    monkeypatch.setattr(module, "get_available_trackers", list)
    with pytest.raises(InputError, match="tracking: wandb is not installed here"):
        run_training(config(data, tmp_path / "new", epochs=1).model_copy(update={"tracking": "wandb"}))


# Ray Train


@pytest.fixture
def of_ray(data, monkeypatch):
    """A run over Ray, whose paths are relative: Ray begins its processes in another folder."""
    monkeypatch.chdir(data)

    def make(workdir: Path, **train) -> Config:
        values = settings(data, workdir, processes=2, **train)
        values["train"] = {
            key: value.removeprefix(f"{data}/") if isinstance(value, str) else value
            for key, value in values["train"].items()
        }
        values["compute"] |= {"executor": "ray", "workers": 2}
        return Config.model_validate(values)

    return make


@pytest.mark.slow
def test_ray_does_what_processes_here_do_also_when_stopped_in_between(data, of_ray, tmp_path, ray_session):
    """Bit for bit, with dropout."""
    train = {"epochs": 30, "patience": 30, "name": "run"}
    [here] = run_training(config(data, tmp_path / "here", processes=2, **train))
    signals, folder = StopSignals(), tmp_path / "ray" / "runs" / "run"

    def ask() -> None:
        while step_of(folder / "checkpoint.json") < 14:
            time.sleep(0.01)
        signals.requested = True

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Stopped):
        run_training(of_ray(tmp_path / "ray", **train), signals=signals)
    assert 14 <= step_of(folder / "checkpoint.json") < 30 * 14, "it had ended before it was stopped"
    assert nothing_is_left(folder)
    [there] = run_training(of_ray(tmp_path / "ray", **train))
    assert there["processes"] == 2
    assert equal(weights(tmp_path / "here" / "runs" / "run"), weights(folder))
    assert there["metrics"] == here["metrics"]
    assert nothing_is_left(folder)
    assert not list(folder.glob("checkpoint*"))


@pytest.mark.slow
def test_what_is_wrong_in_a_process_of_ray_is_said(of_ray, tmp_path, ray_session):
    with pytest.raises(InputError, match="train.vectors: no such file"):
        run_training(of_ray(tmp_path, vectors="nowhere.txt"))
    with pytest.raises(RunError, match="stopped; the checkpoint before it is kept"):
        run_training(of_ray(tmp_path, head_lr=1e30, lr=1e30, clip=1e30))
    assert nothing_is_left(tmp_path)


@pytest.mark.slow
def test_ctrl_c_stops_processes_of_ray(data, tmp_path):
    """A terminal sends it to all that was started from it."""
    values = settings(data, tmp_path / "work", processes=2, epochs=4_000, patience=4_000, name="run")
    values["compute"] |= {"executor": "ray"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    without = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "scalemine", "train", str(path)]
    process = subprocess.Popen(command, start_new_session=True, env=without, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "work" / "runs" / "run"
    try:
        while process.poll() is None and step_of(folder / "checkpoint.json") < 14:
            time.sleep(0.05)
        ours = psutil.Process(process.pid).children(recursive=True)
        raylets = [child.environ() for child in ours if "raylet" in child.name()]
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            kill_session(process.pid)
    assert process.returncode == EXIT_STOPPED, said
    assert raylets and all(one["RAY_AUTH_MODE"] == "token" for one in raylets)
    assert "Traceback" not in said
    assert nothing_is_left(folder)
    assert step_of(folder / "checkpoint.json") >= 14


def test_a_run_is_waited_for_until_it_is_free_or_a_signal_comes(tmp_path):
    class Asked:
        requested = False

    run, order = tmp_path / "runs" / "one", []

    def next_one() -> None:
        with module.wait_for_run(run, None):
            order.append("next")

    waiting = threading.Thread(target=next_one)
    with module.wait_for_run(run, None):
        waiting.start()
        Asked.requested = True
        with pytest.raises(Stopped), module.wait_for_run(run, Asked()):
            order.append("never")
        order.append("first")
    waiting.join()
    assert order == ["first", "next"]
