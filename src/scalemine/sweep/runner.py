"""One run after another in one process, which keeps its libraries and the data that it has read."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scalemine import bucket
from scalemine.config import Config, InputError, RunError
from scalemine.executor import Stopped
from scalemine.store import Workdir, remove, write_json
from scalemine.sweep.plan import mark_of
from scalemine.training.processes import StopFile, hold_run
from scalemine.training.runs import Prepared, preparation_key, prepare, run_split

logger = logging.getLogger(__name__)

# In a sweep's folder: a request to stop, and what its runs say.
STOP, LOGS = ".stop", "logs"
# Data sets that a process keeps.
_MOST_KEPT = 8


@dataclass(frozen=True)
class Unit:
    """A run that is to be done.

    Args:
        config: Its configuration, of one seed.
        fold: Which is held out.
        run: Name of its folder.
        redo: Discard what other data left in the folder.
    """

    config: Config
    fold: int | None
    run: str
    redo: bool = False


@dataclass(frozen=True)
class Ran:
    """What became of a unit.

    Args:
        outcome: What happened.
        said: What was wrong.
    """

    outcome: Literal["finished", "stopped", "failed"]
    said: str = ""


class Runner:
    """Does units.

    Args:
        folder: Of the sweep; where it holds a request to stop, runs write a checkpoint and stop.
        sweep: Names the call; what a process has read is kept for one.
        memory_fraction: Of a GPU's memory that this process may take.
    """

    def __init__(self, folder: Path, sweep: str, memory_fraction: float | None) -> None:
        self._logs, self._stop = folder / LOGS, StopFile(folder / STOP)
        self._prepared = _kept_of(sweep)
        if memory_fraction is not None:
            import torch

            if torch.cuda.is_available():  # Ray's shares of a GPU are bookkeeping alone
                torch.cuda.set_per_process_memory_fraction(memory_fraction)

    def __call__(self, unit: Unit) -> Ran:
        """Do a run; what it says goes into a file of its own."""
        if self._stop.requested:
            return Ran("stopped")
        bucket.attach(unit.config.workdir)
        folder = Workdir(unit.config.workdir).runs / unit.run
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several processes hold their run themselves.
        held = hold_run(folder) if unit.config.train.processes == 1 else contextlib.nullcontext()
        try:
            with _log_to(self._logs / f"{unit.run}.log"), held, _mark(folder):
                self._run(unit)
        except Stopped:
            return Ran("stopped")
        except (InputError, RunError) as error:
            return Ran("failed", str(error))
        return Ran("finished")

    def _run(self, unit: Unit) -> None:
        try:
            prepared = self._prepare(unit.config)
            run_split(unit.config, prepared, prepared.split(unit.fold), signals=self._stop, redo=unit.redo)
        except (Stopped, InputError, RunError):
            raise
        except Exception:
            logger.exception("%s", unit.run)  # where it is looked for; the sweep says its last line
            raise

    def _prepare(self, config: Config) -> Prepared:
        key = preparation_key(config)
        if key not in self._prepared:
            while len(self._prepared) >= _MOST_KEPT:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = prepare(config)
        return self._prepared[key]


# What this process has read for a sweep; it outlives one round of trials.
_kept: tuple[str, dict[str, Prepared]] = ("", {})


def _kept_of(sweep: str) -> dict[str, Prepared]:
    """Return what this process has read for a sweep; another one's is forgotten, as its files may have changed."""
    global _kept  # noqa: PLW0603
    if _kept[0] != sweep:
        _kept = (sweep, {})
    return _kept[1]


@contextlib.contextmanager
def _mark(folder: Path) -> Iterator[None]:
    """Leave a mark beside a folder, as long as a process is at it."""
    path = mark_of(folder)
    write_json(path, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
    try:
        yield
    finally:
        remove(path)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what this thread says to a file alone: of many runs, nobody wants to see each epoch."""
    logger, thread = logging.getLogger("scalemine"), threading.get_ident()
    own_level, level = logger.level, logger.getEffectiveLevel()

    def is_of_run(record: logging.LogRecord) -> bool:
        return record.thread == thread

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread and record.levelno >= level

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(is_of_run)
    others = list(logger.handlers)
    for other in others:
        other.addFilter(is_of_others)
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO))  # in a worker nobody has set it
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(own_level)
        for other in others:
            other.removeFilter(is_of_others)
