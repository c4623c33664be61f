"""What a job would do, and about how long: from the manifests of shards that are finished, or from a probe of one."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scalemine.config import Config
from scalemine.corpus import Corpus, Shard, open_corpus
from scalemine.executor import InlineExecutor
from scalemine.mining.embeddings import ShardEncoder, encoder_loader
from scalemine.pipeline import Run
from scalemine.report.tables import duration
from scalemine.shards import ShardJob
from scalemine.sources import find_sources
from scalemine.store import Workdir, read_as
from scalemine.submit.job import Job

# Tweets that the probe encodes.
_PROBE_ROWS = 256
# Shards that are named; the others are counted.
_NAMED = 8


def describe_job(job: Job, config: Config, *, sees_files: bool = True) -> list[str]:
    """Return what a job would do, line by line; nothing is written.

    Args:
        job: The job.
        config: As the job will read it.
        sees_files: Whether the files that it reads lie where this process sees them.

    Raises:
        InputError: As the stage itself.
    """
    lines = [f"{job.stage} on {job.profile}"]
    if not sees_files:
        return [*lines, "no estimate: the files that the job reads are not to be seen from here"]
    if job.stage == "sweep":
        from scalemine.sweep.driver import describe_sweep

        return [*lines, *describe_sweep(config, config.sweep.name or job.config.stem)]
    if job.stage == "train":
        from scalemine.training.runs import describe_plan

        return [*lines, *describe_plan(config)]
    if job.stage in ("ablate", "filter"):
        return [*lines, "no estimate: that is made of embedding, of training and of sweeps"]
    return [*lines, *_describe_shards(job, config)]


def _describe_shards(job: Job, config: Config) -> list[str]:
    workdir = Workdir(config.workdir.absolute())
    if not (workdir.corpus / "corpus.json").exists():
        sources = find_sources(config.corpus.uri)
        return [
            *(f"to import: {source.name}, {source.num_bytes / 1e6:,.1f} MB" for source in sources),
            "no estimate: how many shards there are is known once the corpus is imported",
        ]
    corpus = open_corpus(workdir.corpus)
    folder = workdir.embeddings if config.encoder.keep_embeddings else workdir.similarities
    facts = {shard.name: _facts(folder / f"{shard.name}.arrow.json") for shard in corpus.shards}
    todo = [shard for shard in corpus.shards if facts[shard.name] is None]
    rows = sum(shard.num_rows for shard in todo)
    lines = [
        f"shards: {len(corpus.shards)}, {len(corpus.shards) - len(todo)} embedded, {len(todo)} to do ({rows:,} tweets)",
        *(f"  {shard.name}: {shard.num_rows:,} tweets" for shard in todo[:_NAMED]),
        *([f"  and {len(todo) - _NAMED} more"] if len(todo) > _NAMED else []),
    ]
    if job.shares is not None:
        most = -(-len(corpus.shards) // job.shares)
        lines.append(f"shares: {job.shares}, each of at most {most} shard(s)")
    workers = job.shares or job.profile.workers
    return [*lines, _estimate(config, corpus, todo, [one for one in facts.values() if one], workers)]


def _facts(path: Path) -> _Facts | None:
    return read_as(path, _Facts) if path.exists() else None


@dataclass(frozen=True)
class _Facts:
    """What the manifest of a shard says of its pace."""

    rows: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)] | None = None


def _estimate(config: Config, corpus: Corpus, todo: list[Shard], finished: list[_Facts], workers: int) -> str:
    """Say how long the shards that are left take: in waves of as many as there are workers."""
    if not todo:
        return "estimate: all shards are embedded; what is left takes minutes at most"
    paces = [one.rows / one.seconds for one in finished if one.rows and one.seconds]
    if paces:
        pace, source = statistics.median(paces), f"as {len(paces)} finished shard(s) of this workdir took"
    else:
        pace, source = _probe(config, corpus, todo[0]), f"by a probe of shard {todo[0].name} on this machine"
    at_a_time = min(workers, len(todo))
    seconds = sum(shard.num_rows for shard in todo) / pace / at_a_time
    return f"estimate: {pace:,.0f} tweets/s a worker, {source}; {at_a_time} at a time: about {duration(seconds)}"


def _probe(config: Config, corpus: Corpus, shard: Shard) -> float:
    """Encode the beginning of a shard, write nothing, and return how many tweets a second that was."""
    run = Run(config, InlineExecutor(), make=False)
    load = encoder_loader(run.encoder_config, precision=run.settings["encoder.precision"], threads=run.threads)
    worker = ShardEncoder(load, corpus, None, None)
    rows = min(_PROBE_ROWS, shard.num_rows)
    worker(ShardJob(shard, trial=(0, min(8, rows))))  # the first batch sets things up
    started = time.monotonic()
    worker(ShardJob(shard, trial=(0, rows)))
    return rows / max(time.monotonic() - started, 1e-9)
