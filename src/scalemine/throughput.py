"""What encoding took, as rates, as a share of what the machine can do, and as hours and prices of larger corpora."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from scalemine.config import ComputeConfig

CORPUS_SIZES = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Effort:
    """What a worker did for one shard.

    Args:
        worker: Its process.
        machine: What it computes on: the name of a GPU, or cpu.
        peak: Floating-point operations per second that were measured there; None: not measured.
        tokens: Tokens of the texts.
        padded_tokens: Those that went through the model: copies that fill up small batches, too.
        flops: Floating-point operations that the texts need.
    """

    worker: str
    machine: str
    peak: float | None
    tokens: int
    padded_tokens: int
    flops: float


@dataclass
class Work:
    """What encoding took so far, over shards and workers.

    Args:
        rows: Tweets of the shards that were finished.
        rows_again: Tweets of shards that were begun in vain: a worker failed or died, and they were begun again.
        seconds: On the clock, the loading of the encoder included.
        peaks: Measured by each worker; None: not measured.
    """

    rows: int = 0
    rows_again: int = 0
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0
    flops: float = 0.0
    peaks: dict[str, float | None] = field(default_factory=dict)
    machines: set[str] = field(default_factory=set)

    def add(self, rows: int, effort: Effort) -> None:
        """Count a finished shard."""
        self.rows += rows
        self.tokens += effort.tokens
        self.padded_tokens += effort.padded_tokens
        self.flops += effort.flops
        self.peaks[effort.worker] = effort.peak
        self.machines.add(effort.machine)

    def __iadd__(self, other: Work) -> Work:
        """Count what was done after this."""
        self.rows += other.rows
        self.rows_again += other.rows_again
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.padded_tokens += other.padded_tokens
        self.flops += other.flops
        # A worker that measured once need not measure again.
        self.peaks |= {worker: peak or self.peaks.get(worker) for worker, peak in other.peaks.items()}
        self.machines |= other.machines
        return self

    def describe(self, compute: ComputeConfig, threads: int) -> dict[str, Any]:
        """Return the rates as JSON; what is not known is None.

        A share of the peak counts the operations that the texts need, not those spent on copies.

        Args:
            compute: How many workers there were, and what one costs if the user says so.
            threads: Of a worker.
        """
        seconds = max(self.seconds, 1e-9)
        measured = [peak for peak in self.peaks.values() if peak]
        # Workers that died and were replaced are among them: the peak of all is that of those at work at a time.
        peak = sum(measured) / len(measured) * compute.workers if measured else None
        prices = [worker_price(machine, compute, threads) for machine in sorted(self.machines)]
        known = [price for price in prices if price is not None]
        # Of unlike machines the dearest: no promise is broken.
        price = max(known) if known and len(known) == len(prices) else None
        worker_hours = seconds * compute.workers / max(self.rows, 1) / 3_600
        return {
            "rows": self.rows,
            "rows_again": self.rows_again,
            "seconds": round(seconds, 3),
            "workers": compute.workers,
            "machine": ", ".join(sorted(self.machines)),
            "tweets_per_second": round(self.rows / seconds, 1),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "padded_tokens_per_second": round(self.padded_tokens / seconds, 1),
            "peak_flops_per_second": peak,
            "share_of_peak": self.flops / seconds / peak if peak else None,
            "price_per_hour": price,
            "larger": [
                {
                    "tweets": size,
                    "worker_hours": size * worker_hours,
                    "price": None if price is None else size * worker_hours * price,
                }
                for size in CORPUS_SIZES
            ],
        }


def worker_price(machine: str, compute: ComputeConfig, threads: int) -> float | None:
    """Return what an hour of a worker costs, in dollars: as configured, or by prices.yaml; None: not known.

    Args:
        machine: Name of a GPU, or cpu.
        compute: Its price, and its share of a GPU.
        threads: Cores that it uses, on a processor.
    """
    if compute.price_per_hour is not None:
        return compute.price_per_hour
    prices = yaml.safe_load((importlib.resources.files("scalemine") / "prices.yaml").read_text(encoding="utf-8"))
    if machine == "cpu":
        return float(prices["core"]) * threads
    for name, price in prices["gpu"].items():
        if re.search(rf"\b{re.escape(name)}\b", machine):
            return float(price) * (compute.gpus_per_worker or 1.0)
    return None
