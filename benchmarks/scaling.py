"""Two workers against one, what each shard costs beside its encoding, and a simulation of up to 512 workers.

    python benchmarks/scaling.py [--tweets 2500] [--rows-per-shard 250] [--rounds 5] [--speed 50]

Measured: one and two workers of one thread encode the same shards through the same Ray executor, in turns; efficiency
is t1 / (2 t2), from when the encoders are loaded until the last shard is written. Beside them one and two processes
without Ray encode the same tweets: what two of these lose, the machine loses (turbo, caches, memory, other work). Then
what the driver takes per shard with 2 to 512 members of the pool (which do nothing, on as many processes as cores),
what it takes to list a corpus of 10^8 tweets (invented files), and what the disk takes.

Simulated from these: 2 to 512 workers, 10^8 tweets and as many as the real corpus has. A worker is a thread as
measured, or one that is --speed times as fast, in place of a GPU. The driver and the disk are one each and serve one
shard at a time. Not in it: the network, the start of workers, what workers on one machine take from each other.

Tweets come from SCALEMINE_DATA (default ../shared/data); where that is absent, from the invented sample.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mining import data_paths  # beside this file
from scalemine.config import ComputeConfig, CorpusConfig, EncoderConfig
from scalemine.corpus import Corpus, import_corpus, open_corpus, shard_rows
from scalemine.encoder import Encoder, Tokens, load_encoder
from scalemine.executor import IN_FLIGHT, RayExecutor, StopSignals, may_hand_out_ahead, ray_session
from scalemine.mining.embeddings import LoadEncoder, Similarities, encode_corpus, encoder_loader, score
from scalemine.mining.similarity import anchor_grid
from scalemine.models import precision_name
from scalemine.shards import Embeddings, ShardJob, matrix_column, run_shards, write_arrow
from scalemine.store import Stage, file_sha256, write_json, write_whole

CORES = os.cpu_count() or 1
ROWS_PER_SHARD = CorpusConfig().rows_per_shard
LARGE, REAL = 100_000_000, 275_183
POOLS, NUM_JOBS = (2, 64, 512), 2_000
SIZES = (125, 250, 500, 1_000, 2_048, 4_096, 8_192, 16_384)
WORKERS, ENOUGH = (2, 8, 64, 512), 0.9
HEAD = (
    "tweets", "shards", "workers", "time", "efficiency", "driver busy", "disk busy", "lost to the driver",
    "to the disk", "to the last shards", "what binds",
)  # fmt: skip
NUM_CLASSES = 6
# Of a run of `mine`: the stages that are looked through for what is missing, before; the manifests read, after.
LOOKS_BEFORE, LOOKS_AFTER = 3, 2
DISK_BYTES, NUM_COMMITS = 256 * 2**20, 50


# Measured: one and two workers


@dataclass(frozen=True)
class LoadTogether:
    """Loads an encoder, and waits until all workers have theirs; the files say when."""

    load: LoadEncoder
    folder: Path
    workers: int

    def __call__(self) -> Encoder:
        """Return the encoder."""
        encoder = self.load()
        encoder.encode_texts(["a text to warm up"] * 64)
        (self.folder / f"{os.getpid()}.ready").touch()
        while len(list(self.folder.glob("*.ready"))) < self.workers:
            time.sleep(0.002)
        return encoder


@dataclass(frozen=True)
class Round:
    """One encoding of the corpus: seconds to load, seconds from then on, and when each shard was finished."""

    load: float
    steady: float
    finished: tuple[float, ...]


def encode_round(executor: RayExecutor, workers: int, load: LoadEncoder, corpus: Corpus, folder: Path) -> Round:
    """Encode the corpus into a new folder, embeddings and similarities, and say how long it took."""
    folder.mkdir(parents=True)
    times: list[float] = []
    grid_KD = anchor_grid(np.random.default_rng(0).standard_normal((NUM_CLASSES, 384), np.float32))
    embeddings = Embeddings(Stage(folder / "embeddings", "scaling"), corpus)
    scored = Similarities(Stage(folder / "similarities", "scaling"), corpus)
    together = LoadTogether(load, folder, workers)
    began = time.time()
    encode_corpus(
        together, corpus, executor, embeddings=embeddings, scoring=(scored, grid_KD),
        on_rows=lambda _: times.append(time.time()),
    )  # fmt: skip
    ready = max(path.stat().st_mtime for path in folder.glob("*.ready"))
    return Round(ready - began, times[-1] - ready, tuple(moment - ready for moment in times))


class Alone:
    """A process without Ray that encodes texts when it is told to."""

    def __init__(self, model: str, texts: Path) -> None:
        command = [sys.executable, __file__, "--child", str(texts), "--model", model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def begin(self) -> None:
        """Begin to encode."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def finish(self) -> float:
        """Return how long it took."""
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()}")
        return line


def child(model: str, path: Path) -> None:
    """Be the process without Ray: encode the texts of a file for each line that comes in."""
    encoder = load_encoder(encoder_config(model), threads=1)
    texts = pq.read_table(path)["text"].to_pylist()
    encoder.encode_texts(texts[:64])
    print(0.0, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        encoder.encode_texts(texts)
        print(time.perf_counter() - started, flush=True)


def together(processes: Sequence[Alone]) -> float:
    """Return how long processes take that encode at once, each as many texts."""
    for process in processes:
        process.begin()
    return statistics.mean(process.finish() for process in processes)


@dataclass(frozen=True)
class Measured:
    """Rounds with one and two workers, and seconds of one and two processes without Ray, for each to do its share."""

    rounds: dict[int, list[Round]]
    alone: list[float]
    both: list[float]

    def seconds(self, workers: int) -> float:
        """Return the median."""
        return statistics.median(one.steady for one in self.rounds[workers])

    @property
    def efficiencies(self) -> list[float]:
        """Of each round t1 / (2 t2)."""
        return [one.steady / (2 * two.steady) for one, two in zip(self.rounds[1], self.rounds[2], strict=True)]

    @property
    def ceilings(self) -> list[float]:
        """Of each round what two processes without Ray keep of the speed of one."""
        return [one / two for one, two in zip(self.alone, self.both, strict=True)]

    @cached_property
    def spread(self) -> tuple[float, ...]:
        """Seconds of shards, one worker, by their mean in each round; without the first, as it is not read ahead."""
        ratios: list[float] = []
        for one in self.rounds[1]:
            gaps = np.diff(one.finished)
            ratios += (gaps / gaps.mean()).tolist()
        return tuple(ratios)


def measure_workers(arguments: argparse.Namespace, corpus: Corpus, folder: Path) -> Measured:
    """Encode with one and two workers, and with one and two processes, in turns."""
    config = encoder_config(arguments.model)
    load = encoder_loader(config, precision=precision_name(config.precision, "cpu"), threads=1)
    texts = [text for shard in corpus.shards for text in corpus.read(shard)["text"].to_pylist()]
    pq.write_table(pa.table({"text": texts[: arguments.tweets // 4]}), folder / "texts.parquet")
    processes = [Alone(arguments.model, folder / "texts.parquet") for _ in range(2)]
    executors = {
        workers: RayExecutor(workers, cpus_per_worker=1, gpus_per_worker=0, signals=StopSignals()) for workers in (1, 2)
    }
    measured = Measured({1: [], 2: []}, [], [])
    few = replace(corpus, shards=corpus.shards[:2])
    for number in range(arguments.rounds + 1):
        part = corpus if number else few  # the first round, which also imports, is not counted
        found = {
            workers: encode_round(executors[workers], workers, load, part, folder / f"{number}-{workers}")
            for workers in ((1, 2) if number % 2 else (2, 1))
        }
        alone, both = together(processes[:1]), together(processes)
        if number == 0:
            print(f"start of two actors, with imports and model: {found[2].load:.1f} s", flush=True)
            continue
        for workers, one in found.items():
            measured.rounds[workers].append(one)
        measured.alone.append(alone)
        measured.both.append(both)
        print(f"  round {number}: 1 worker {found[1].steady:.2f} s, 2 workers {found[2].steady:.2f} s, efficiency "
              f"{measured.efficiencies[-1]:.3f}; without Ray {measured.ceilings[-1]:.3f}", flush=True)  # fmt: skip
    for executor in executors.values():
        executor.close()
    for process in processes:
        process.close()
    return measured


def report_workers(measured: Measured, num_rows: int) -> None:
    """Print the efficiency, and what of the loss is the machine's."""
    loads = [one.load for one in measured.rounds[2]]
    for workers in (1, 2):
        seconds = measured.seconds(workers)
        print(f"{workers} worker{'s' * (workers > 1)}: {seconds:.2f} s, {num_rows / seconds:.0f} tweets/s")
    efficiency, ceiling = statistics.median(measured.efficiencies), statistics.median(measured.ceilings)
    low, high = min(measured.efficiencies), max(measured.efficiencies)
    print(f"efficiency of 2 workers: {efficiency:.3f} ({low:.3f} to {high:.3f}); aim 0.9")
    print(f"two processes without Ray: {ceiling:.3f} ({min(measured.ceilings):.3f} to {max(measured.ceilings):.3f})")
    print(f"what is left of the machine's own: {efficiency / ceiling:.3f}")
    print(f"to load the encoder again, not in the above: {statistics.median(loads):.1f} s")
    print(f"seconds of a shard: coefficient of variation {statistics.pstdev(measured.spread):.3f}, "
          f"largest {max(measured.spread):.2f} times the mean, n = {len(measured.spread)}")  # fmt: skip


# Measured: what a shard costs beside its encoding


class Idle:
    """An actor that does nothing, in the place of many."""

    def prepare(self, _: object) -> int:
        """Be ready."""
        return os.getpid()

    def run(self, _: object) -> None:
        """Do nothing."""


class SharedActors(RayExecutor):
    """A pool of any number of members on few processes, to measure what the driver takes."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, cpus_per_worker=0, gpus_per_worker=0, signals=StopSignals())
        import ray

        actor_class = ray.remote(Idle).options(num_cpus=0, max_concurrency=IN_FLIGHT)
        self._shared = deque(actor_class.remote() for _ in range(CORES))
        self._kill = ray.kill

    def take_actor(self) -> Any:  # noqa: ANN401
        """Return each of the actors in turn."""
        self._shared.rotate()
        return self._shared[0]

    def give_back(self, actor: Any) -> None:  # noqa: ANN401
        """Keep them."""

    def close(self) -> None:
        """End them."""
        for actor in self._shared:
            self._kill(actor)


def measure_driver(workers: int, corpus: Corpus) -> tuple[float, float]:
    """Return the driver's seconds per shard, by the clock and of its thread, with so many members of the pool."""
    executor = SharedActors(workers)
    jobs = [ShardJob(corpus.shards[0])] * NUM_JOBS
    marks: list[tuple[float, float]] = []

    def no_worker() -> Any:  # noqa: ANN401  the actors have none
        return None

    run_shards(executor, no_worker, jobs, lambda _: marks.append((time.perf_counter(), time.thread_time())))
    executor.close()
    # From the middle on, when all members are ready and none is without work but at the very end.
    (wall_0, cpu_0), (wall_1, cpu_1) = marks[NUM_JOBS // 4], marks[-1]
    num = NUM_JOBS - 1 - NUM_JOBS // 4
    return (wall_1 - wall_0) / num, (cpu_1 - cpu_0) / num


def invent_corpus(folder: Path, num_shards: int) -> None:
    """Write the files that tell of a corpus and its embeddings: manifests as they are, tables of one row."""
    (folder / "corpus" / "shards").mkdir(parents=True)
    (folder / "embeddings").mkdir()
    table = folder / "one.arrow"
    write_arrow(
        table, pa.table({"id": ["a"], "vector": matrix_column(np.ones((1, 384), np.float16), np.ones(1, bool))})
    )
    content, digest = table.read_bytes(), file_sha256(table)
    entries = []
    for number in range(num_shards):
        name = f"{number:05}"
        (folder / "corpus" / "shards" / f"{name}.parquet").touch()
        (folder / "embeddings" / f"{name}.arrow").write_bytes(content)
        facts = {
            "bytes": len(content), "sha256": digest, "stage": "scaling", "input": digest, "rows": 1, "distinct": 1,
            "tokens": 25, "cut": 0, "max_length": 256, "precision": "bfloat16", "device": "cpu", "engine": "torch",
            "quarantined": [], "seconds": 1.0,
        }  # fmt: skip
        (folder / "embeddings" / f"{name}.arrow.json").write_text(json.dumps(facts, indent=1))
        entries.append({"name": name, "rows": 1, "sha256": digest})
    facts = {"columns": ["id", "text"], "counts": {}, "shards_in": None, "shards": entries}
    write_json(folder / "corpus" / "corpus.json", facts)


def measure_listing(folder: Path) -> tuple[float, float]:
    """Return the driver's seconds per shard before and after the shards are encoded."""
    num_shards = -(-LARGE // ROWS_PER_SHARD)
    invent_corpus(folder, num_shards)
    started = time.perf_counter()
    corpus = open_corpus(folder / "corpus")
    opened = time.perf_counter() - started
    started = time.perf_counter()
    hashed = corpus.fingerprint
    printed = time.perf_counter() - started
    finished = Embeddings(Stage(folder / "embeddings", "scaling"), corpus)
    unbegun = Embeddings(Stage(folder / "nothing", hashed), corpus)
    times = {}
    for name, files, expected in (("nothing is there", unbegun, num_shards), ("all is there", finished, 0)):
        started = time.perf_counter()
        assert len(files.missing()) == expected
        times[name] = time.perf_counter() - started
    print(f"driver, {num_shards:,} shards (10^8 tweets): open the corpus {opened:.2f} s, its fingerprint "
          f"{printed:.3f} s, look for what is missing {times['nothing is there']:.2f} s where nothing is there, "
          f"{times['all is there']:.2f} s where all is")  # fmt: skip
    before = opened + printed + LOOKS_BEFORE * times["nothing is there"]
    return before / num_shards, LOOKS_AFTER * times["all is there"] / num_shards


def measure_disk(folder: Path) -> tuple[float, float]:
    """Return bytes per second of a large file written and synced, and seconds to commit a small one."""
    block, rates = os.urandom(2**20), []
    for _ in range(3):
        path = folder / "large"
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        rates.append(DISK_BYTES / (time.perf_counter() - started))
        path.unlink()
    commits = []
    for number in range(NUM_COMMITS):
        started = time.perf_counter()
        with write_whole(folder / f"small-{number}") as temporary:
            temporary.write_bytes(block[:500])
        commits.append(time.perf_counter() - started)
    return statistics.median(rates), statistics.median(commits)


def bytes_per_row(texts: Sequence[str], folder: Path) -> float:
    """Return what a tweet takes on the disk: read from the corpus, and written as embedding and similarities."""
    ids = pa.chunked_array([[f"t{number}" for number in range(len(texts))]])
    vectors_ND = np.random.default_rng(0).standard_normal((len(texts), 384)).astype(np.float16)
    vectors_ND /= np.linalg.norm(vectors_ND.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    valid_N = np.ones(len(texts), bool)
    grid_KD = anchor_grid(np.random.default_rng(0).standard_normal((NUM_CLASSES, 384), np.float32))
    write_arrow(folder / "e.arrow", pa.table({"id": ids, "vector": matrix_column(vectors_ND, valid_N)}))
    write_arrow(folder / "s.arrow", score(ids, vectors_ND, valid_N, grid_KD))
    pq.write_table(pa.table({"id": ids, "text": list(texts)}), folder / "c.parquet", compression="zstd")
    return sum((folder / name).stat().st_size for name in ("e.arrow", "s.arrow", "c.parquet")) / len(texts)


def padding_by_size(encoder: Encoder, texts: Sequence[str], sizes: set[int]) -> dict[int, float]:
    """Return, by rows of a shard, the tokens that go through the model per token of the texts."""
    ids = encoder.tokenise(list(dict.fromkeys(encoder.normalise(text) for text in texts))).ids
    ratios = {}
    for size in sorted(sizes):
        parts = [Tokens(ids[start : start + size], 0) for start in range(0, len(ids) - size + 1, size)]
        if parts:
            tokens = sum(part.num_tokens for part in parts)
            ratios[size] = sum(encoder.num_padded(part) for part in parts) / tokens
    return ratios


# Simulated


@dataclass(frozen=True)
class Costs:
    """What the simulation is told.

    Args:
        row_seconds: Of a worker for a tweet, without what is computed for nothing.
        padding: By rows of a shard, what is computed per what is needed.
        spread: Seconds of shards by what was expected; one is drawn for each shard.
        driver_seconds: By members of the pool, what the driver takes to handle a shard.
        before, after: What the driver takes per shard before any and after all are encoded.
        row_bytes: What goes to and from the disk.
        disk_speed: Bytes per second, of all workers together.
        commit_seconds: To commit the four files of a shard.
    """

    row_seconds: float
    padding: dict[int, float]
    spread: tuple[float, ...]
    driver_seconds: dict[int, float]
    before: float
    after: float
    row_bytes: float
    disk_speed: float
    commit_seconds: float

    def compute(self, rows: int) -> float:
        """Return the seconds that a worker is expected to compute for a shard."""
        known = sorted(self.padding)
        padding = float(np.interp(np.log(rows), np.log(known), [self.padding[size] for size in known]))
        return rows * self.row_seconds * padding

    def driver(self, workers: int) -> float:
        """Return the driver's seconds per shard; beyond the pools that were measured, those of the nearest."""
        known = sorted(self.driver_seconds)
        return float(np.interp(workers, known, [self.driver_seconds[size] for size in known]))

    def disk(self, rows: int) -> float:
        """Return the disk's seconds for a shard."""
        return rows * self.row_bytes / self.disk_speed + self.commit_seconds


@dataclass(frozen=True)
class Simulated:
    """What came of it: seconds, shares of these that driver and disk were busy, and that workers waited at the end."""

    seconds: float
    driver_busy: float
    disk_busy: float
    idle_at_end: float
    capacity: float


def simulate(
    sizes: Sequence[int], workers: int, costs: Costs, *, slow: float = 0.0, before: bool = False, seed: int = 0
) -> Simulated:
    """Deal shards to workers as the executor does, and return how long that takes.

    A worker holds up to two shards and computes one after the other; what is computed goes to the disk, then to the
    driver, which deals the next, largest first.

    Args:
        sizes: Rows of the shards.
        workers: How many.
        costs: What takes how long.
        slow: Share of the workers that are half as fast.
        before: A worker is always dealt its second shard, as it was before.
        seed: Of the shards' draws.
    """
    chance = np.random.default_rng(seed)
    speeds = np.ones(workers)
    speeds[: round(slow * workers)] = 0.5
    todo = deque(sorted(sizes, reverse=True))
    draws = iter(chance.choice(costs.spread, len(todo)))
    expected = {rows: (costs.compute(rows), costs.disk(rows)) for rows in set(sizes)}
    per_shard, pool = costs.driver(workers), min(workers, len(todo))
    driver_free, disk_free, disk_total = costs.before * len(todo), 0.0, 0.0
    held, free = [0] * pool, [0.0] * pool
    events: list[tuple[float, int, int, int, bool]] = []
    order = iter(range(4 * len(todo) + 1))

    def deal(worker: int) -> None:
        rows = todo.popleft()
        held[worker] += 1
        free[worker] = max(free[worker], driver_free) + expected[rows][0] * next(draws) / speeds[worker]
        heapq.heappush(events, (free[worker], next(order), worker, rows, False))

    for load in range(IN_FLIGHT):
        for worker in range(pool):
            if todo and (load == 0 or before or may_hand_out_ahead(len(todo), pool)):
                driver_free += per_shard
                deal(worker)
    while events:
        now, _, worker, rows, is_written = heapq.heappop(events)
        if not is_written:
            disk_free = max(disk_free, now) + expected[rows][1]
            disk_total += expected[rows][1]
            heapq.heappush(events, (disk_free, next(order), worker, rows, True))
            continue
        driver_free = max(driver_free, now) + per_shard
        held[worker] -= 1
        while (
            todo and held[worker] < IN_FLIGHT and (held[worker] == 0 or before or may_hand_out_ahead(len(todo), pool))
        ):
            deal(worker)
    end = driver_free + costs.after * len(sizes)
    waited = sum(end - moment for moment in free) + (workers - pool) * end
    driver_total = per_shard * (len(sizes) + min(len(sizes), IN_FLIGHT * pool)) + len(sizes) * (
        costs.before + costs.after
    )
    return Simulated(end, driver_total / end, disk_total / end, waited / workers / end, float(speeds.sum()))


def shard_sizes(num_rows: int, before: bool = False) -> list[int]:
    """Return the rows of the shards of a corpus without copies: as they are cut, or all but the last one equal."""
    sizes, left = [], num_rows
    while left:
        sizes.append(min(left, ROWS_PER_SHARD if before else shard_rows(left, ROWS_PER_SHARD)))
        left -= sizes[-1]
    return sizes


def check_simulation() -> None:
    """Print what the simulation makes of cases that are known, and end where it is wrong."""
    free = Costs(1.0, {1: 1.0}, (1.0,), {1: 0.0}, 0.0, 0.0, 0.0, 1.0, 0.0)
    mixed = np.random.default_rng(3).integers(1, 100, 300).tolist()
    lower, slack = sum(mixed) / 8, IN_FLIGHT * max(mixed)
    found = simulate(mixed, 8, free).seconds
    driver = replace(free, row_seconds=0.0, driver_seconds={1: 2.0})
    disk = replace(free, row_seconds=0.0, commit_seconds=2.0)
    cases = [
        ("equal shards are whole rounds", simulate([7] * 17, 8, free).seconds, 21.0, 21.0),
        ("one worker does all", simulate(mixed, 1, free).seconds, sum(mixed), sum(mixed)),
        ("list scheduling (Graham 1969)", found, lower, lower + slack),
        ("nothing but the driver", simulate([1] * 50, 9, driver).seconds, 100.0, 100.0 + 2 * IN_FLIGHT * 9),
        ("nothing but the disk", simulate([1] * 50, 9, disk).seconds, 100.0, 100.0),
    ]
    for name, value, least, most in cases:
        if not least - 1e-6 <= value <= most + 1e-6:
            sys.exit(f"the simulation is wrong: {name}: {value}, not {least} to {most}")
    print(f"simulation checked against {len(cases)} cases that are known")


def compare(measured: Measured, costs: Costs, corpus: Corpus) -> None:
    """Print what the simulation makes of what was measured; two workers as slow as two processes without Ray."""
    sizes = [shard.num_rows for shard in corpus.shards]
    for workers, share in ((1, 1.0), (2, statistics.median(measured.ceilings))):
        there = replace(costs, row_seconds=costs.row_seconds / share, before=0.0, after=0.0)
        found = statistics.median(simulate(sizes, workers, there, seed=seed).seconds for seed in range(9))
        print(f"workers: {workers}, simulated {found:.2f} s, measured {measured.seconds(workers):.2f} s")


def row(num_rows: int, workers: int, costs: Costs, slow: float, before: bool) -> str:
    """Return a row of the table: what so many workers make of a corpus, and what they lose to what."""
    sizes = shard_sizes(num_rows, before)
    run = partial(simulate, sizes, workers, slow=slow, before=before)
    found = run(costs)
    efficiency = simulate(sizes, 1, costs).seconds / found.capacity / found.seconds
    without = {
        "driver": replace(costs, driver_seconds={1: 0.0}, before=0.0, after=0.0),
        "disk": replace(costs, row_bytes=0.0, commit_seconds=0.0),
    }
    lost = {name: 1 - run(one).seconds / found.seconds for name, one in without.items()}
    lost["last shards"] = found.idle_at_end
    most = max(lost, key=lambda name: lost[name])
    shares = [
        f"{share:.1%}" for share in (found.driver_busy, found.disk_busy, *(max(0.0, one) for one in lost.values()))
    ]
    numbers = [f"{sum(sizes):,}", f"{len(sizes):,}", str(workers), duration(found.seconds), f"{efficiency:.3f}"]
    return f"| {' | '.join([*numbers, *shares, most if efficiency < ENOUGH else 'nothing'])} |"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits."""
    return f"{seconds / 3_600:.1f} h" if seconds >= 3_600 else f"{seconds / 60:.1f} min"


def report_simulation(costs: Costs, speed: float) -> None:
    """Print the tables."""
    fast = replace(costs, row_seconds=costs.row_seconds / speed)
    for title, one, slow, before in (
        ("workers of one thread, as measured", costs, 0.0, False),
        ("the same, and one of eight half as fast", costs, 1 / 8, False),
        (f"workers {speed:g} times as fast (assumed: a GPU)", fast, 0.0, False),
        ("workers of one thread, equal shards, each always dealt two (as it was before)", costs, 0.0, True),
        ("the same, and one of eight half as fast", costs, 1 / 8, True),
    ):
        print(f"\nSimulated: {title}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for num_rows in (LARGE, REAL):
            for workers in WORKERS:
                print(row(num_rows, workers, one, slow, before))


def encoder_config(model: str) -> EncoderConfig:
    """Return the encoder of all that is measured."""
    return EncoderConfig(model=model, engine="torch", device="cpu")


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Measured, Costs, Corpus]:
    """Measure everything, and print it."""
    table, _, _ = data_paths(folder)
    pq.write_table(table.slice(0, arguments.tweets), folder / "tweets.parquet")
    settings = CorpusConfig(uri=(str(folder / "tweets.parquet"),), rows_per_shard=arguments.rows_per_shard)
    corpus = import_corpus(settings, folder / "corpus")
    print(f"{corpus.num_rows:,} tweets in {len(corpus.shards)} shards", flush=True)
    compute = ComputeConfig(executor="ray", workers=2, threads=1)
    with ray_session(compute, num_cpus=4):
        (folder / "rounds").mkdir()
        measured = measure_workers(arguments, corpus, folder / "rounds")
        report_workers(measured, corpus.num_rows)
        driver = {}
        for pool in POOLS:
            driver[pool], of_thread = measure_driver(pool, corpus)
            print(
                f"driver, {pool} members: {1e3 * driver[pool]:.2f} ms per shard, {1e3 * of_thread:.2f} ms of its thread"
            )
    before, after = measure_listing(folder / "invented")
    disk_speed, commit = measure_disk(folder)
    texts = table["text"].slice(0, 2 * ROWS_PER_SHARD).to_pylist()
    row_bytes = bytes_per_row(texts[:4_096], folder)
    print(f"disk: {disk_speed / 1e6:.0f} MB/s, {1e3 * commit:.1f} ms to commit a small file")
    print(f"{row_bytes:.0f} bytes per tweet, read and written")
    padding = padding_by_size(
        load_encoder(encoder_config(arguments.model), threads=1), texts, {*SIZES, arguments.rows_per_shard}
    )
    print("tokens computed per token, by rows of a shard: " + ", ".join(f"{n:,}: {x:.3f}" for n, x in padding.items()))
    costs = Costs(1.0, padding, measured.spread, driver, before, after, row_bytes, disk_speed, 4 * commit)
    # A shard of the measured kind takes what it took.
    gaps = [statistics.mean(np.diff(one.finished)) for one in measured.rounds[1]]
    return (
        measured,
        replace(costs, row_seconds=statistics.median(gaps) / costs.compute(arguments.rows_per_shard)),
        corpus,
    )


def main() -> None:
    """Measure, simulate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EncoderConfig().model)
    parser.add_argument("--tweets", type=int, default=2_500)
    parser.add_argument("--rows-per-shard", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed", type=float, default=50.0, help="of a fast worker, in threads as measured")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.model, arguments.child)
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {CORES} cores, load {os.getloadavg()[0]:.1f}, "
          f"torch {torch.__version__}, {arguments.model}")  # fmt: skip
    check_simulation()
    with tempfile.TemporaryDirectory(prefix="scalemine-") as name:
        measured, costs, corpus = measure(arguments, Path(name))
    compare(measured, costs, corpus)
    report_simulation(costs, arguments.speed)


if __name__ == "__main__":
    main()
