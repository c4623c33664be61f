"""One of several processes of a run; started by ``runs``."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from scalemine import bucket
from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped, StopRequest, StopSignals
from scalemine.store import read_json, write_json
from scalemine.training.processes import FAILURE, STOPPED, hold_run
from scalemine.training.runs import prepare, train_split

# How often a process looks whether the one that started it is still there.
PARENT_SECONDS = 0.5


def main() -> None:
    """Do this process's part of the run that a spec file describes."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("scalemine").setLevel(logging.INFO if _is_main() else logging.ERROR)
    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    with StopSignals() as signals:
        if not work(Path(sys.argv[1]), signals):
            sys.exit(1)


def work(path: Path, signals: StopRequest) -> bool:
    """Do this process's part of the run that a spec file describes; say whether it went well.

    What is wrong is left in a file for who started the processes, as is that they were stopped.
    """
    spec = read_json(path)
    config, folder = Config.model_validate(spec["config"]), Path(spec["folder"])
    bucket.attach(config.workdir)
    try:
        with hold_run(folder) if _is_main() else contextlib.nullcontext():
            prepared = prepare(config)
            train_split(config, prepared, prepared.split(spec["fold"]), folder, signals=signals)
    except Stopped:
        (folder / STOPPED).touch()
    except (InputError, RunError) as error:
        write_json(folder / FAILURE, {"is_input": isinstance(error, InputError), "message": str(error)})
        return False
    return True


def _stop_with_parent(parent: int) -> None:
    """Ask this process to stop, with a checkpoint, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    main()
