"""What each run of a sweep may take, and whether this machine has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from scalemine.config import ComputeConfig, Config, InputError
from scalemine.executor import num_cores
from scalemine.models import find_model
from scalemine.report.tables import counted
from scalemine.training.family import encoder_name

# A process with its libraries, Ray's part of it, and what a batch takes: measured at 0.6 to 0.9 GiB.
_PROCESS_BYTES = 900 << 20
# Weights; and with them a gradient and AdamW's two moments, where they are tuned.
_FROZEN, _TUNED = 1, 4


@dataclass(frozen=True)
class Resources:
    """What one run may take.

    Args:
        concurrency: Runs at a time.
        processes: Of one run.
        threads: Of one process.
        gpus: Of one run; None: one for each process, where there are GPUs.
        memory_fraction: Of a GPU's memory; None: all of it.
        memory_bytes: Of the host's memory, at least; an estimate.
    """

    concurrency: int
    processes: int
    threads: int
    gpus: float | None
    memory_fraction: float | None
    memory_bytes: int

    def compute(self, config: ComputeConfig) -> ComputeConfig:
        """Return where the runs go: as many workers as there are runs at a time."""
        return config.model_copy(
            update={"workers": self.concurrency, "threads": self.threads, "gpus_per_worker": self.gpus_of_worker}
        )

    def own(self, config: Config) -> Config:
        """Return a run's configuration with the threads that it has here."""
        return config.model_copy(update={"compute": config.compute.model_copy(update={"threads": self.threads})})

    @property
    def gpus_of_worker(self) -> float | None:
        """What Ray reserves for a worker itself; a run of several processes reserves its own."""
        return self.gpus if self.processes == 1 else 0.0

    @property
    def cpus_of_worker(self) -> float:
        """As ``gpus_of_worker``."""
        return float(self.threads) if self.processes == 1 else 0.0

    @property
    def cpus(self) -> int:
        """CPUs of all runs that are there at a time."""
        return self.concurrency * self.processes * self.threads

    def __str__(self) -> str:
        """Say it in words."""
        cores = counted(self.threads, "core", "cores")
        parts = [cores + (f" in each of {self.processes} processes" * (self.processes > 1))]
        if self.gpus is not None:
            parts.append(f"{self.gpus:g} of a GPU" if self.gpus < 1 else f"{self.gpus:g} GPUs")
        if self.memory_fraction is not None:
            parts.append(f"{self.memory_fraction:.0%} of a GPU's memory")
        parts.append(f"about {self.memory_bytes / 2**30:.1f} GiB of memory")
        return f"{counted(self.concurrency, 'run', 'runs')} at a time, each with {', '.join(parts)}"


def resources_of(config: Config, trials: list[Config]) -> Resources:
    """Return what the runs of a sweep may take.

    Args:
        config: Of the sweep.
        trials: The configurations of its trials; the largest decides.

    Raises:
        InputError: They cannot run together as asked.
    """
    sweep, compute = config.sweep, config.compute
    if sweep.concurrency > 1 and compute.executor == "inline":
        raise InputError(
            f"sweep.concurrency: {sweep.concurrency} runs at a time want workers; give --executor ray "
            f"(compute.executor), or sweep.concurrency=1"
        )
    processes = trials[0].train.processes
    if other := next((one.train.processes for one in trials if one.train.processes != processes), None):
        raise InputError(
            f"train.processes: trials with {processes} and with {other} do not share workers; take one number"
        )
    gpus = sweep.gpus_per_run
    if gpus is not None and (gpus not in (0, processes) if processes > 1 else gpus > 1):
        raise InputError(
            f"sweep.gpus_per_run: a process takes one GPU or a share of it, and a run has {processes} "
            f"(train.processes); got {sweep.gpus_per_run:g}"
        )
    is_here = compute.address == "local"
    cores = sweep.cpus_per_run or (num_cores() / sweep.concurrency if is_here else float(compute.threads or 1))
    threads = compute.threads or max(1, math.floor(cores / processes))
    fraction = sweep.memory_fraction
    if fraction is None and sweep.gpus_per_run is not None and 0 < sweep.gpus_per_run < 1:
        fraction = sweep.gpus_per_run
    memory = processes * max(_memory_bytes(one) for one in trials)
    found = Resources(sweep.concurrency, processes, threads, sweep.gpus_per_run, fraction, memory)
    if is_here:
        _check_cores(found)
        _check_memory(found)
        _check_gpus(found, is_wanted=config.train.device != "cpu")
    return found


def _memory_bytes(config: Config) -> int:
    """Return what a process of a run takes at least, by the size of the encoder's weights."""
    if config.is_ensemble:  # whose members are trained one after the other
        return max(map(_memory_bytes, config.trained), default=_PROCESS_BYTES)
    if config.train.vectors or config.train.is_baseline or config.train.is_word_network:
        return _PROCESS_BYTES
    folder = find_model(*encoder_name(config), key="train.encoder")
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return _PROCESS_BYTES + weights * (_FROZEN if config.train.freeze else _TUNED)


def _check_cores(found: Resources) -> None:
    if found.concurrency * found.processes > num_cores() or found.cpus > num_cores():
        raise InputError(
            f"sweep.concurrency: {found.concurrency} runs of {found.processes} process(es) with {found.threads} "
            f"core(s) want {found.cpus} cores, this machine has {num_cores()}; lower sweep.concurrency, "
            f"sweep.cpus_per_run or compute.threads"
        )


def _check_memory(found: Resources) -> None:
    free = psutil.virtual_memory().available
    if found.concurrency * found.memory_bytes > free:
        raise InputError(
            f"sweep.concurrency: {found.concurrency} runs want about "
            f"{found.concurrency * found.memory_bytes / 2**30:.1f} GiB of memory (processes, and weights with what "
            f"AdamW keeps of them), and {free / 2**30:.1f} GiB are free; lower sweep.concurrency, or train.freeze=true"
        )


def _check_gpus(found: Resources, *, is_wanted: bool) -> None:
    import torch

    there = torch.cuda.device_count()
    each = found.gpus
    if each is None:
        each = float(found.processes) if is_wanted and there else 0.0
    # A share is of one GPU: two of 0.6 do not fit on one, and a third one has no place on two.
    wanted = math.ceil(found.concurrency / math.floor(1 / each)) if 0 < each < 1 else found.concurrency * each
    if wanted > there:
        raise InputError(
            f"sweep.gpus_per_run: {found.concurrency} runs with {each:g} GPU(s) want {wanted:g}, this machine "
            f"has {there}; lower sweep.concurrency or sweep.gpus_per_run"
        )
    if found.memory_fraction and found.gpus and found.memory_fraction * math.floor(1 / min(found.gpus, 1.0)) > 1:
        raise InputError(
            f"sweep.memory_fraction: {math.floor(1 / found.gpus)} runs share a GPU, with {found.memory_fraction:.0%} "
            f"of its memory each; lower it, or raise sweep.gpus_per_run"
        )
