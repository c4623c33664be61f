"""Stand-ins of what a cluster has: Slurm's commands, Ray, and a stage; each a program that runs here."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalemine.config import Config
from scalemine.submit import script
from scalemine.submit.job import Job, make_job
from scalemine.submit.profile import Profile

# Each notes how it was called in $NOTES, one file per program.
SLURM = r"""
import json, os, re, subprocess, sys, time
from pathlib import Path
name, arguments, notes = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["NOTES"])
with (notes / name).open("a") as file:
    file.write(json.dumps(arguments) + "\n")

def options(script):
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", Path(script).read_text(), re.MULTILINE)
    return dict(found)

def begin(script, number, restarts, task=None):
    given = options(script)
    log = given["output"].replace("%a", str(task))
    job = {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "n[1-%s]" % given["nodes"],
           "SLURM_RESTART_COUNT": str(restarts), "SCRIPT": script}
    if task is not None:
        job |= {"SLURM_ARRAY_TASK_ID": str(task)}
    with open(log, "ab") as out:
        process = subprocess.Popen(["bash", script], env={**os.environ, **job}, stdout=out, stderr=out,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
    (notes / "pid").write_text(str(process.pid))

if name == "sbatch" and (notes / "waiting").exists():
    (notes / "pid").write_text("0")
    print("4711")
elif name == "sbatch":
    script = arguments[-1]
    array = re.fullmatch(r"0-(\d+)", options(script).get("array", ""))
    for task in range(int(array[1]) + 1) if array else [None]:
        begin(script, "4711", 0, task)
    print("4711;fake")
elif name == "srun":
    while arguments and arguments[0].startswith("--"):
        arguments.pop(0)
    os.execvp(arguments[0], arguments)
elif name == "scontrol" and arguments[0] == "show":
    number = re.search(r"-(\d+)\]", arguments[2])[1]
    print("\n".join("n%d" % (1 + one) for one in range(int(number))))
elif name == "scontrol" and arguments[0] == "requeue":
    begin(os.environ["SCRIPT"], arguments[1], int(os.environ["SLURM_RESTART_COUNT"]) + 1)
elif name == "squeue":
    if (notes / "waiting").exists():
        print("PENDING")
        sys.exit()
    pid = int((notes / "pid").read_text())
    if os.path.exists("/proc/%d" % pid):
        print("RUNNING")
elif name == "scancel":
    # As the real one: what is not in the queue is refused; with a state, what is in another one is let be.
    waiting, pid = notes / "waiting", int((notes / "pid").read_text())
    if not waiting.exists() and not os.path.exists("/proc/%d" % pid):
        sys.exit("scancel: error: Kill job error on job id 4711: Invalid job id specified")
    if waiting.exists() and "--state=PENDING" in arguments:
        waiting.unlink()
    elif not waiting.exists() and "--state=RUNNING" in arguments:
        os.kill(pid, 15)
"""

RAY = r"""
import os, signal, sys, time
from pathlib import Path
notes = Path(os.environ["NOTES"])
token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
def note(word):
    with (notes / "ray").open("a") as file:
        file.write("%s mode=%o mode=%s %s\n" % (word, token.stat().st_mode & 0o777, os.environ["RAY_AUTH_MODE"],
                                               " ".join(sys.argv[1:])))
def end(*_):
    note("ended")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if (notes / "ray_fails").exists():
    sys.exit(1)
note("began")
time.sleep(60)
"""

# Waits for the nodes: here, until each has noted that it began.
AWAIT = r"""
import os, sys, time
from pathlib import Path
ray = Path(os.environ["NOTES"]) / "ray"
for _ in range(300):
    if ray.exists() and ray.read_text().count("began") >= int(sys.argv[2]):
        sys.exit(0)
    time.sleep(0.1)
sys.exit(1)
"""

# The first call lasts until a signal comes where "lasting" is there; a code to end with may be given.
STAGE = r"""
import json, os, signal, sys, time
from pathlib import Path
notes = Path(os.environ["NOTES"])
def end(number, _):
    with (notes / "signals").open("a") as file:
        file.write(signal.Signals(number).name + "\n")
    sys.exit(75)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, end)
with (notes / "stage").open("a") as file:
    file.write(json.dumps([os.getcwd(), *sys.argv[1:]]) + "\n")
print("the stage speaks", flush=True)
lasting = notes / "lasting"
if lasting.exists():
    lasting.unlink()
    time.sleep(60)
code = notes / "code"
sys.exit(int(code.read_text()) if code.exists() else 0)
"""

PROFILE = Profile(nodes=2, cpus=4, gpus=2, memory=8, hours=1.5)


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def use_fakes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins in place; return the folder of what they note."""
    notes, programs = folder / "notes", folder / "bin"
    notes.mkdir()
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue", "scancel"):
        write_program(programs / name, SLURM)
    stage = [str(write_program(programs / "stage", STAGE))]
    monkeypatch.setattr(script, "own_program", lambda: stage)
    monkeypatch.setattr(script, "RAY", [str(write_program(programs / "ray", RAY))])
    monkeypatch.setattr(script, "AWAIT", [str(write_program(programs / "await", AWAIT))])
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TMPDIR", str(folder))
    return notes


def a_job(folder: Path, stage: str = "mine", profile: Profile = PROFILE, **options: Any) -> tuple[Job, Path]:
    """Return a job and its configuration file."""
    source = folder / "some config.yaml"
    source.write_text("workdir: work\n")
    config = Config.model_validate({"workdir": folder / "work dir"})
    return make_job(stage, source, config, ["why=it's $HOME; `x`"], profile, **options), source


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return what a condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found
