"""The command line: one command per stage. Each reads its configuration, calls the stage, and prints its report.

Exit codes: 0 done; 1 the run failed; 2 the input or configuration is wrong; 75 stopped by a signal, call again.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, cast

import typer

from scalemine.mirror import spelled
from scalemine.redaction import redact, redact_text

if TYPE_CHECKING:
    from scalemine.config import Config
    from scalemine.executor import Advance, Executor, StopSignals
    from scalemine.pipeline import Run
    from scalemine.store import Workdir
    from scalemine.submit.job import Sent
    from scalemine.sweep.status import SweepStatus

EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED = 1, 2, 75
# Seconds between the lines of progress in a log.
LOG_INTERVAL = 30.0
# Seconds between two looks at a job that is waited for.
JOB_INTERVAL = 2.0

app = typer.Typer(
    help="Mine difficult negatives out of large tweet corpora.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ExecutorName(StrEnum):
    """Where the work runs."""

    inline = "inline"
    ray = "ray"


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see configs/")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="override one key; repeatable")]
OptExecutor = Annotated[ExecutorName | None, typer.Option("--executor", help="instead of compute.executor")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved configuration and what is to be done; write nothing")
]
Redo = Annotated[bool, typer.Option("--redo", help="discard what another configuration left in the workdir")]

OptText = Annotated[
    str | None, typer.Option("--text", help="column of the text; found by its usual names if not given")
]
MinProbability = Annotated[
    float | None, typer.Option(help="instead of the model's thresholds; spans less probable are left out")
]


class Precision(StrEnum):
    """In which a fine-tuned classifier computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


OptPrecision = Annotated[Precision, typer.Option("--precision", help="of a fine-tuned classifier; auto: the fastest")]

# What the command line calls the keys of corpus.
_IMPORT_NAMES = {"uri": "SRC", "text": "--text", "id": "--id", "keep": "--keep", "rows_per_shard": "--rows-per-shard"}


@contextlib.contextmanager
def _options_named() -> Iterator[None]:
    """Let what is wrong with an import name its options, where it names keys of a configuration."""
    from pydantic import ValidationError

    from scalemine.config import InputError

    try:
        yield
    except ValidationError as error:
        problems = (
            f"{_IMPORT_NAMES[str(problem['loc'][0])]}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise InputError("; ".join(problems)) from None
    except InputError as error:
        # Not in the middle of a path.
        key = rf"(?<![\w./-])corpus\.({'|'.join(_IMPORT_NAMES)})(?![\w./-])"
        raise InputError(re.sub(key, lambda found: _IMPORT_NAMES[found[1]], str(error))) from None


@app.command("import")
def import_command(
    sources: Annotated[list[str], typer.Argument(metavar="SRC…", help="files, globs, folders or bucket URIs")],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="folder of the imported corpus, or its URI")],
    text: Annotated[str | None, typer.Option(help="column of the text; found by its usual names if not given")] = None,
    id_: Annotated[
        list[str] | None,
        typer.Option(
            "--id", help="column of the identifier; several are joined by a colon, an empty one means file:line"
        ),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="a further column to carry along; repeatable")] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="rows of one shard")] = 16_384,
    redo: Redo = False,
) -> None:
    """Import tweets: JSON lines, CSV, TSV, Parquet or plain text, compressed or not, into Parquet shards."""
    from scalemine.config import CorpusConfig
    from scalemine.corpus import import_corpus
    from scalemine.executor import StopSignals
    from scalemine.lease import hold_workdir
    from scalemine.report.tables import read_line

    with _options_named():
        config = CorpusConfig(
            uri=tuple(sources),
            text=text,
            id=None if id_ is None else tuple(filter(None, id_)),
            keep=tuple(keep or ()),
            rows_per_shard=rows_per_shard,
        )
        folder = _folder(to)
        with hold_workdir(folder), StopSignals() as signals, _show("import", None) as advance:

            def read(rows: int) -> None:
                signals.raise_if_requested()
                advance(rows)

            corpus = import_corpus(config, folder, redo=redo, on_rows=read)
    counts = corpus.counts
    print(read_line(counts))
    print(f"copies of an earlier text: {counts['copies']:,} (a text is encoded once per shard)")
    print(f"{len(corpus.shards)} shards in {to}; rejects in {corpus.rejects}")


@app.command()
def embed(
    config: ConfigPath,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="embed only every N-th shard, from I on, beside other processes that do the others"
        ),
    ] = None,
) -> None:
    """Import and embed the corpus."""
    from scalemine.pipeline import check_embed, run_embed

    if share is not None:
        _embed_share(config, overrides, executor, dry_run, redo, share)
        return

    def action(run: Run) -> None:
        run_embed(run)
        encoded = run.facts["encoded"]
        speed = run.facts.get("tweets_per_second")
        print(
            f"{encoded['rows']:,} tweets ({encoded['distinct']:,} distinct) are embedded in {run.workdir.embeddings}"
            + (f", {speed:,.0f} tweets/s" if speed else " (were before)")
        )

    _run(config, overrides, executor, dry_run, redo, check_embed, action)


def _embed_share(
    path: Path, overrides: list[str] | None, executor: ExecutorName | None, dry_run: bool, redo: bool, text: str
) -> None:
    """Embed a share of the corpus, beside other processes."""
    from scalemine.config import InputError
    from scalemine.executor import StopSignals, make_executor
    from scalemine.lease import hold_share
    from scalemine.pipeline import Run, run_share
    from scalemine.store import Share

    share, config = Share.parse(text), _load(path, overrides, executor, None)
    if redo or dry_run:
        raise InputError("--share: the others are at work; give --redo and --dry-run without it")
    with (
        StopSignals() as signals,
        hold_share(config.workdir.absolute(), share, signals.raise_if_requested) as whole,
        make_executor(config.compute, signals=signals, wants_gpu=config.encoder.device != "cpu") as where,
    ):
        embeddings = run_share(Run(config, where, signals, show=_show), share, whole)
    print(f"share {text}: {len(embeddings.corpus.shards)} shard(s) are embedded in {embeddings.stage.folder}")


@app.command("filter")
def filter_command(
    config: ConfigPath,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Keep the tweets of the corpus with certain words, patterns or codes: filtered.parquet."""
    from rich.console import Console

    from scalemine.corpus import open_corpus
    from scalemine.filtering import check_filter, run_filter
    from scalemine.report.page import write_report
    from scalemine.report.tables import filter_tables, print_table, read_line

    def action(run: Run) -> None:
        counts = run_filter(run)
        for table in filter_tables(counts):
            print_table(Console(), table)
        if _is_mined(run.workdir.root):
            write_report(run.workdir)
        print(read_line(open_corpus(run.workdir.corpus).counts))
        print(f"{counts['kept']:,} tweets in {run.workdir.filtered}; all counts: {run.workdir.filter_counts}")

    sections = ("corpus", "filter", "compute")
    _run(config, overrides, executor, dry_run, redo, check_filter, action, ("corpus",), sections=sections)


@app.command()
def mine(
    config: ConfigPath,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Mine difficult negatives: import, embed, fit, choose, make the sets, and write report.html."""
    from scalemine.pipeline import check_mine, run_mine

    def action(run: Run) -> None:
        run_mine(run)
        _print_report(run.config.workdir)

    _run(config, overrides, executor, dry_run, redo, check_mine, action)


@app.command("index")
def index_command(
    config: ConfigPath,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Make the approximate index that index.kind names, for searches of very many queries or rows."""
    from scalemine.search import check_index, run_index

    def action(run: Run) -> None:
        index = run_index(run)
        print(f"{index.corpus.num_rows:,} tweets are indexed in {run.workdir.index} ({run.config.index.kind})")

    _run(config, overrides, executor, dry_run, redo, lambda loaded: check_index(_looking(loaded)), action, ("corpus",))


@app.command()
def search(
    config: ConfigPath,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]…", help="what to search for")] = None,
    k: Annotated[int, typer.Option("-k", help="hits per query")] = 10,
    like: Annotated[
        list[str] | None, typer.Option("--like", metavar="ID", help="rows like this row of the corpus; repeatable")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="texts: Parquet, CSV, TSV, JSON lines or plain")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="write the hits as Parquet")] = None,
    as_json: Json = False,
    overrides: Overrides = None,
    executor: OptExecutor = None,
) -> None:
    """Search the embedded corpus for tweets like a text; only reads."""
    from scalemine.config import InputError

    if to and to.suffix != ".parquet":
        raise InputError(f"--to {to}: expected a name that ends in .parquet")
    loaded = _load(config, overrides, executor, ("corpus",))

    from rich.console import Console

    from scalemine.executor import StopSignals, make_executor
    from scalemine.search import print_hits, run_search, write_hits

    with (
        StopSignals() as signals,
        make_executor(loaded.compute, signals=signals, wants_gpu=loaded.encoder.device != "cpu") as where,
    ):
        run = _looking(loaded, where, signals)
        result = run_search(run, texts=texts or (), file=queries, likes=like or (), k=k)
    if to:
        write_hits(result, to)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False))
    elif to:
        print(f"{result.hits.num_rows:,} hits of {len(result.queries):,} queries in {to}")
    else:
        print_hits(Console(), result)


def _looking(config: Config, executor: Executor | None = None, signals: StopSignals | None = None) -> Run:
    """Return a run that writes nothing."""
    from scalemine.executor import InlineExecutor, StopSignals
    from scalemine.pipeline import Run

    return Run(config, executor or InlineExecutor(), signals or StopSignals(), make=False, show=_show)


@app.command()
def rounds(
    config: ConfigPath,
    number: Annotated[int, typer.Option("-n", "--rounds", min=1, help="rounds of mining by the model")] = 2,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    redo: Redo = False,
) -> None:
    """Mine and train; then, in rounds, mine what the model wrongly tags, and train again."""
    from rich.console import Console

    from scalemine.pipeline import check_mine
    from scalemine.report.scores import print_rounds
    from scalemine.rounds import run_rounds

    def action(run: Run) -> None:
        print_rounds(Console(), run_rounds(run, number))
        print(f"training sets of the rounds: {run.workdir.rounds}; models: {run.workdir.runs}")

    _run(config, overrides, executor, False, redo, check_mine, action, trains=True)


@app.command()
def report(
    where: Annotated[str, typer.Argument(metavar="WORKDIR", help="folder of a finished run, or its URI")],
) -> None:
    """Print the report of a finished run, and write its report.html again."""
    from scalemine.config import InputError

    workdir = _entered(where)
    if not _is_mined(workdir):
        raise InputError(
            f"{workdir}: no finished run here (expected manifest.json and negatives.parquet); scalemine mine makes them"
        )
    _print_report(workdir)


@app.command()
def review(
    where: Annotated[str, typer.Argument(metavar="WORKDIR", help="folder of a finished run, or its URI")],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="of the page; 0: a free one")] = 0,
    again: Annotated[bool, typer.Option("--all", help="also ask for what is decided already")] = False,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="open the page in the browser")] = False,
) -> None:
    """Decide on the tweets that mining is unsure about, on a local page, by keyboard."""
    import threading
    import webbrowser

    from scalemine.review import Review, ReviewServer
    from scalemine.store import Workdir

    found = Review(Workdir(_entered(where)), again=again)
    if not found.candidates:
        print("nothing to review: mining was unsure about no tweet")
        return
    if found.progress()["next"] is None:
        print(f"nothing left to review: {found.summary()}; --all asks for them again")
        print("scalemine mine CONFIG --redo reads your decisions")
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell had it ignored, as in the background
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), ReviewServer(found, port) as server:
        print(f"review: {server.url}\nCtrl-C ends it; every answer is saved at once", flush=True)
        if open_browser:
            # Not in this thread: some browsers run until they are closed.
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        server.serve_forever()
    print(found.summary())


@app.command()
def sample(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="folder of the sample")],
    tweets: Annotated[int, typer.Option(min=100, help="size of the corpus")] = 20_000,
    seed: Annotated[int, typer.Option(help="of the generator")] = 7,
) -> None:
    """Write an invented corpus with labelled crisis tweets, to try everything on."""
    from scalemine.sample import write_sample

    files = write_sample(to, seed=seed, num_tweets=tweets)
    print(f"{tweets:,} invented tweets in {files.corpus}, positives in {files.positives} and {files.positives_test}")


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Train and test a tagger or a classifier: once, or once per fold; goes on from the last checkpoint."""
    from rich.console import Console

    from scalemine.config import load_config
    from scalemine.executor import StopSignals
    from scalemine.lease import hold_workdir
    from scalemine.store import Workdir
    from scalemine.training.runs import describe_plan, run_training

    loaded = load_config(config, overrides, needs=())
    _look_at(loaded)
    _refuse_nodes(loaded)
    if dry_run:
        for line in describe_plan(loaded):
            print(line)
        return
    workdir = Workdir(loaded.workdir)
    with hold_workdir(workdir.root), StopSignals() as signals:
        for one in loaded.trained:
            if one.reads_embeddings:
                from scalemine.frozen import embed_examples

                embed_examples(one, signals=signals, show=_show)
        results = run_training(loaded, signals=signals, show=_show, redo=redo)
    if "labels" not in results[0]:  # it gives spans
        from scalemine.report.scores import print_runs

        print_runs(Console(), results)
    else:
        from scalemine.report.labels import print_label_runs, write_roc_figures

        print_label_runs(Console(), results)
        for result in results:
            write_roc_figures(workdir.runs / result["name"])
    print(f"models and results: {workdir.runs}; all scores: {workdir.results}")


@app.command()
def sweep(
    config: ConfigPath,
    overrides: Overrides = None,
    executor: OptExecutor = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the runs, what each may take, and how long; write nothing")
    ] = False,
    redo: Redo = False,
) -> None:
    """Train every arm and point of a space in every fold and with every seed; call again to go on."""
    from scalemine.executor import StopSignals
    from scalemine.lease import hold_workdir
    from scalemine.store import Workdir
    from scalemine.sweep.driver import describe_sweep, run_sweep
    from scalemine.sweep.status import StatusReader

    loaded = _load(config, overrides, executor, ())
    _refuse_nodes(loaded)
    name = loaded.sweep.name or config.stem
    if dry_run:
        for line in describe_sweep(loaded, name, redo=redo):
            print(line)
        return
    workdir = Workdir(loaded.workdir)
    with hold_workdir(workdir.root), StopSignals() as signals, _watch(workdir, name):
        outcome = run_sweep(loaded, name, signals=signals, redo=redo)
    _print_sweep(StatusReader(workdir, workdir.sweeps / name).read())
    print(f"to compare: scalemine compare {loaded.workdir} --sweep {name}")
    print(f"each trial's configuration: {workdir.sweeps / name / 'configs'}; all scores: {workdir.results}")
    if outcome.failed:
        _fail(EXIT_FAILED, f"{len(outcome.failed)} runs failed; the others are kept: call again to try them anew")


@app.command()
def ablate(
    config: ConfigPath,
    overrides: Overrides = None,
    redo: Redo = False,
) -> None:
    """Remove a feature from a share of the positives, train anew in the same folds, and compare."""
    from rich.console import Console

    from scalemine.ablation import run_ablation
    from scalemine.config import load_config
    from scalemine.executor import StopSignals
    from scalemine.lease import hold_workdir
    from scalemine.report.ablation import print_ablation, write_ablation
    from scalemine.store import Workdir

    loaded = load_config(config, overrides, needs=())
    _refuse_nodes(loaded)
    workdir = Workdir(loaded.workdir)
    with hold_workdir(workdir.root), StopSignals() as signals:
        found = run_ablation(loaded, signals=signals, show=_show, redo=redo)
    write_ablation(found, workdir.ablation)
    print_ablation(Console(), found)
    print(f"{workdir.ablation}/ablation.json, .md, .svg; all scores: {workdir.results}")


@app.command()
def status(
    what: Annotated[str, typer.Argument(metavar="WORKDIR|JOB", help="folder with sweeps and jobs, or one job")],
    name: Annotated[str | None, typer.Option("--sweep", metavar="NAME", help="only this one")] = None,
) -> None:
    """Show how far sweeps and jobs have come; sweeps from their files alone."""
    from scalemine.store import Workdir
    from scalemine.submit.job import find_job, find_jobs
    from scalemine.sweep.plan import find_sweeps
    from scalemine.sweep.status import StatusReader

    workdir = _entered(what)
    if not workdir.is_dir() or workdir.with_name(f"{workdir.name}.json").exists():
        _print_job(find_job(what))
        return
    jobs = [] if name else find_jobs(workdir)
    for job in jobs:
        _print_job(job)
    if jobs and not Workdir(workdir).sweeps.exists():
        return
    for folder in find_sweeps(Workdir(workdir), name):
        _print_sweep(StatusReader(Workdir(workdir), folder).read())


def _print_job(job: Sent) -> None:
    from scalemine.submit.targets import state

    print(f"job {job.id} ({job.target}): {state(job)}, since {job.values['submitted']}")


JobName = Annotated[str, typer.Argument(metavar="JOB", help="its name, or the path of its record")]


@app.command()
def logs(job: JobName) -> None:
    """Print what a job has said."""
    from scalemine.submit.job import find_job
    from scalemine.submit.targets import log

    print(log(find_job(job)), end="")


@app.command()
def stop(job: JobName) -> None:
    """Ask a job to stop: what it finished is kept, and submitting it again goes on."""
    from scalemine.submit.job import find_job
    from scalemine.submit.targets import stop

    found = find_job(job)
    stop(found)
    print(f"job {found.id} was asked to stop")


class TargetOption(StrEnum):
    """Where a job goes."""

    local = "local"
    ray = "ray"
    slurm = "slurm"
    kubernetes = "kubernetes"


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="a command that may take long, such as mine or sweep")],
    config: ConfigPath,
    to: Annotated[TargetOption, typer.Option("--to", help="a Ray cluster of its own here, one that is up, a queue")],
    overrides: Overrides = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, 1gpu, 8gpu, 4x8gpu, or a YAML file; cpu, or this machine")
    ] = None,
    array: Annotated[
        int | None, typer.Option(min=1, help="of slurm: embed in so many jobs without Ray, each with a share")
    ] = None,
    address: Annotated[str | None, typer.Option(help="of ray: the dashboard, http://HOST:8265")] = None,
    token: Annotated[Path | None, typer.Option(help="of ray: file with the token of the cluster")] = None,
    records: Annotated[Path | None, typer.Option(help="where the job's record goes; WORKDIR/jobs")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be sent, what it would do and how long; write nothing")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="until the job has ended; its exit code is ours")] = False,
) -> None:
    """Send a stage to where it runs; what is finished already is not done again."""
    from scalemine.bucket import is_mirrored
    from scalemine.config import InputError
    from scalemine.redaction import redact_text
    from scalemine.submit import kubernetes
    from scalemine.submit.job import make_job
    from scalemine.submit.plan import describe_job
    from scalemine.submit.profile import load_profile, this_machine
    from scalemine.submit.targets import render
    from scalemine.submit.targets import submit as send

    if stage not in stages():
        raise InputError(f"submit {stage}: expected one of {', '.join(stages())}")
    needs = {"train": (), "sweep": (), "ablate": (), "filter": ("corpus",)}.get(stage)
    loaded = _load(config, overrides, None, needs)
    if records is None and is_mirrored(loaded.workdir):
        raise InputError("submit: the workdir is in a bucket; let --records name a folder that the job's machine sees")
    where = this_machine() if to == TargetOption.local and profile is None else load_profile(profile or "cpu")
    given = {key: one for key, one in (("address", address), ("token", token)) if one is not None}
    where = where.model_copy(update={"ray": type(where.ray).model_validate({**where.ray.model_dump(), **given})})
    job = make_job(stage, config, loaded, overrides or [], where, records=records, shares=array)
    # As the job will read it: what a profile says must fit, too.
    loaded = _load(config, list(job.settings), None, needs)
    if to == TargetOption.kubernetes and not is_mirrored(loaded.workdir):
        kubernetes.check_paths(job, str(loaded.workdir))
    if dry_run:
        for name, text in render(job, to.value, config).items():
            print(redact_text(f"# {job.home / name}\n{text}"))
        print(
            redact_text(
                "\n".join(f"# {line}" for line in describe_job(job, loaded, sees_files=to != TargetOption.kubernetes))
            )
        )
        return
    sent = send(job, to.value, config)
    print(f"job {sent.id} was sent to {to.value}; scalemine status|logs|stop {sent.id}", flush=True)
    if wait:
        _wait_for_job(sent)


def stages() -> list[str]:
    """Return the commands that may take long: those with a configuration that may begin anew."""
    found = []
    for one in app.registered_commands:
        assert one.callback is not None
        if {"config", "overrides", "redo"} <= inspect.signature(one.callback).parameters.keys():
            found.append(one.name or one.callback.__name__)
    return found


def _wait_for_job(job: Sent) -> None:
    """Wait until a job has ended, and end as it did."""
    from scalemine.submit.targets import log, state

    while (found := state(job)) in ("waiting", "running"):
        time.sleep(JOB_INTERVAL)
    print(log(job), end="")
    if found != "done":
        _fail(EXIT_STOPPED if found == "stopped" else EXIT_FAILED, f"job {job.id}: {found}")


def _print_sweep(found: SweepStatus) -> None:
    from rich.console import Console

    from scalemine.report.tables import print_table
    from scalemine.sweep.status import status_table

    console = Console()
    print_table(console, status_table(found))
    console.print(found.line(), markup=False, highlight=False, soft_wrap=True)
    if found.state in ("running", "interrupted"):
        console.print(f"by {found.where}", markup=False, highlight=False, soft_wrap=True)
    for run, said in found.failed.items():
        print(f"failed: {run}: {said}")


@contextlib.contextmanager
def _watch(workdir: Workdir, name: str) -> Iterator[None]:
    """Show how far a sweep has come while it runs: a live table on a terminal, sparse lines in a log."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from scalemine.config import InputError
    from scalemine.executor import every
    from scalemine.report.tables import render_table
    from scalemine.sweep.plan import PLAN
    from scalemine.sweep.status import StatusReader, status_table

    folder, is_terminal = workdir.sweeps / name, sys.stderr.isatty()
    reader, console, last = StatusReader(workdir, folder), Console(stderr=True), ""
    live = Live(console=console, auto_refresh=False, transient=True)

    def look() -> None:
        nonlocal last
        if not (folder / PLAN).exists():
            return
        try:
            found = reader.read()
        except InputError:  # another version's plan, which is written anew in a moment
            return
        if is_terminal:
            table = status_table(found, max(5, console.height - 8))
            live.update(Group(render_table(table, console.width), Text(found.line())), refresh=True)
        elif found.line() != last:
            last = found.line()
            logging.getLogger("scalemine").info("%s", last)

    with live if is_terminal else contextlib.nullcontext(), every(2.0 if is_terminal else LOG_INTERVAL, look):
        yield


@app.command("map")
def map_command(
    config: ConfigPath,
    overrides: Overrides = None,
    max_tweets: Annotated[int, typer.Option("--max", min=4, help="tweets on the map; more are sampled")] = 20_000,
) -> None:
    """Draw labelled tweets on a plane, coloured by label: embeddings by PCA, then UMAP; map.html and map.png."""
    from scalemine.config import InputError, load_config
    from scalemine.executor import StopSignals
    from scalemine.frozen import embed_examples
    from scalemine.lease import hold_workdir
    from scalemine.report.labels import projection_page
    from scalemine.store import Workdir
    from scalemine.training.multilabel.baseline_trainer import vectors_of
    from scalemine.training.multilabel.projection import MIN_ROWS, drawn_rows, project

    loaded = load_config(config, overrides, needs=())
    workdir = Workdir(loaded.workdir)
    with hold_workdir(workdir.root), StopSignals() as signals:
        tweets = embed_examples(loaded, signals=signals, show=_show, train_only=True).train
        if tweets.num_rows < MIN_ROWS:
            raise InputError(f"{tweets.uri}: a map needs at least {MIN_ROWS} tweets, and there are {tweets.num_rows}")
        rows = drawn_rows(tweets.num_rows, max_tweets, loaded.seed)
        found = project(vectors_of(loaded, tweets, rows), seed=loaded.seed, max_rows=max_tweets)
        texts = [text or "" for text in tweets.values("text", rows)]
        places = workdir.root / "map.html", workdir.root / "map.png"
        ids = tweets.ids_of(rows.tolist())
        projection_page(found, tweets.labels, tweets.targets_of(rows), texts, ids, *places)
    print(f"{len(rows):,} tweets on {places[0]} and {places[1]}")


@app.command()
def publish(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="folder of a trained model")],
    onnx: Annotated[bool, typer.Option("--onnx", help="write model.onnx into the folder (classifiers)")] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="NAME", help="upload it to this hub id; the token is the hub's own")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="for you and whom you let in")] = False,
) -> None:
    """Write a trained model as ONNX, or upload it to a hub."""
    from scalemine.config import InputError
    from scalemine.training.publish import push_model, write_onnx

    if not onnx and push is None:
        raise InputError("publish: expected --onnx, --push NAME, or both")
    if onnx:
        print(f"written: {write_onnx(model)}")
    if push is not None:
        print(f"uploaded: {push_model(model, push, private=private)}")


Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Bootstrap = Annotated[int, typer.Option(min=0, help="rounds of the 95 % intervals; 0: none")]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="folder of a trained model, or its hub id")],
    sets: Annotated[list[str], typer.Argument(metavar="SET…", help="labelled tweets: Parquet, or CoNLL for spans")],
    as_json: Json = False,
    bootstrap: Bootstrap = 1_000,
) -> None:
    """Score a trained tagger or classifier on labelled tweets."""
    from scalemine.training.evaluation import evaluate_classifier, evaluate_tagger, is_classifier

    if is_classifier(model):
        from rich.console import Console

        from scalemine.report.labels import print_label_scores

        scores = evaluate_classifier(model, sets, num_bootstrap=bootstrap)
        if as_json:
            print(json.dumps(scores, indent=1, ensure_ascii=False))
            return
        for name, one in scores.items():
            print_label_scores(Console(), Path(name).name, one)
        return
    scores = evaluate_tagger(model, sets, num_bootstrap=bootstrap)
    _print_scores(scores, scores, as_json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a trained model, or of its run")],
    corpus: Annotated[
        list[str], typer.Argument(metavar="CORPUS…", help="files, globs, folders, bucket URIs; or an imported folder")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="OUT", help="folder of everything that is written")],
    executor: OptExecutor = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray actors; with --executor ray")] = None,
    min_probability: MinProbability = None,
    only_positive: Annotated[bool, typer.Option("--only-positive", help="only tweets with a label or span")] = False,
    text: OptText = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="column of the identifier, as in import")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="a further column to carry along; repeatable")] = None,
    time_: Annotated[
        str | None, typer.Option("--time", metavar="COLUMN", help="time of a tweet: counts by day")
    ] = None,
    precision: OptPrecision = Precision.float32,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="a key of corpus or compute; repeatable")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done; write nothing")] = False,
    redo: Annotated[bool, typer.Option("--redo", help="discard what another model or setting left in OUT")] = False,
) -> None:
    """Predict a whole corpus with a trained model: labels or spans of every tweet; goes on where it was stopped."""
    from rich.console import Console

    from scalemine.config import InputError, config_of
    from scalemine.executor import StopSignals, make_executor
    from scalemine.lease import hold_workdir
    from scalemine.predict import Wanted, check_predict, run_predict
    from scalemine.report.predictions import print_predictions
    from scalemine.training.kept import kind_of

    for one in overrides or ():
        if not one.startswith(("corpus.", "compute.")):
            raise InputError(f"--set {one}: predict reads keys of corpus and compute alone")
    with _options_named():
        ids = None if id_ is None else tuple(filter(None, id_))
        values: dict[str, Any] = {
            "workdir": str(to),
            "corpus": {"uri": tuple(corpus), "text": text, "id": ids, "keep": tuple(keep or ())},
            "compute": {"executor": executor.value if executor else "inline", "workers": workers or 1},
        }
        config = config_of(values, overrides, "predict")
        wanted = Wanted(
            model, to, config.corpus, config.compute, min_probability, only_positive, time_, precision.value
        )
        if dry_run:
            for line in check_predict(wanted):
                print(line)
            return
        with (
            hold_workdir(to),
            StopSignals() as signals,
            make_executor(config.compute, signals=signals, wants_gpu=kind_of(model) != "words") as where,
        ):
            summary, manifest = run_predict(wanted, where, signals, redo=redo, show=_show)
    print_predictions(Console(), summary, manifest)
    print(
        f"predictions: {to / 'predictions'}; page: {to / 'report.html'}; rejects: {to / 'corpus' / 'rejects.parquet'}"
    )


@app.command()
def watch(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a trained model, or of its run")],
    folder: Annotated[
        str, typer.Argument(metavar="[FOLDER|-]", help="of growing or new files; -: JSON lines from standard input")
    ] = "-",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="OUT.jsonl", help="file to write; of a folder, it goes on after a restart"),
    ] = None,
    text: OptText = None,
    id_: Annotated[str | None, typer.Option("--id", help="column of the identifier; found by its usual names")] = None,
    min_probability: MinProbability = None,
    precision: OptPrecision = Precision.float32,
    once: Annotated[bool, typer.Option("--once", help="end when nothing more is there")] = False,
) -> None:
    """Predict tweets as they come: a line of JSON for each; ends with 0 at the end of input, Ctrl-C or SIGTERM."""
    from scalemine.executor import StopSignals
    from scalemine.training.predictions import load_predictor
    from scalemine.watch import Watched, run_watch

    with _options_named(), StopSignals() as signals:
        watched = Watched(model, folder, to, text, id_, min_probability, precision.value)
        predictor = load_predictor(model, min_probability=min_probability, precision=precision.value)
        try:
            tally = run_watch(watched, predictor, signals, once=once)
        except BrokenPipeError:  # who read it has gone; nothing may be written at the end, either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
    print(f"{tally.tweets:,} tweets, {tally.bad:,} bad lines", file=sys.stderr)


@app.command()
def score(
    gold: Annotated[str, typer.Argument(metavar="GOLD", help="labelled tweets: Parquet or CoNLL")],
    predicted: Annotated[str, typer.Argument(metavar="PRED", help="the same tweets in the same order, as predicted")],
    as_json: Json = False,
    bootstrap: Bootstrap = 1_000,
) -> None:
    """Score predicted spans or tags against gold ones."""
    from scalemine.training.tagging.scoring import score_files

    scores = score_files(gold, predicted, num_bootstrap=bootstrap)
    _print_scores(scores, {gold: scores}, as_json)


@app.command()
def compare(
    where: Annotated[str, typer.Argument(metavar="WORKDIR", help="folder of a sweep, finished or not, or its URI")],
    sweep: Annotated[str | None, typer.Option(metavar="NAME", help="which sweep, where there are several")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="what to compare with: an arm, a train set, a trial, or a part of a name that only one "
            "has; if not given, what is trained on random, or else the first",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=100, help="rounds of the bootstrap")] = 10_000,
    as_json: Json = False,
) -> None:
    """Compare the arms of a sweep with a base: intervals, tests, tables as text, LaTeX and CSV, and figures."""
    from scalemine.report.comparison import print_comparison, write_comparison
    from scalemine.report.page import write_comparison_page, write_report
    from scalemine.store import Workdir
    from scalemine.sweep.compare import compare as compare_arms

    workdir = _entered(where)
    found = compare_arms(workdir, sweep, base, rounds).as_dict()
    named = Workdir(workdir)
    folder = named.sweeps / found["sweep"]
    write_comparison(found, folder)
    page = named.report if _is_mined(workdir) else folder / "comparison.html"
    if page == named.report:
        write_report(named)
    else:
        write_comparison_page(found, page)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    print_comparison(Console(), found)
    print(f"{folder}/comparison.md, .tex, .csv, .json; page: {page}")


@app.command()
def export(
    where: Annotated[str, typer.Argument(metavar="WORKDIR", help="folder of a finished run, or its URI")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="triplets, n-tuples or labeled-pairs (sentence-transformers; PATH is .parquet or .jsonl), datasets "
            "(a folder for load_dataset), conll (a folder), jsonl (a file; with --sets, a folder)",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="file or folder to write")],
    sets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="only these sets; of pairs, tuples and triplets: only the negatives in these"
        ),
    ] = None,
    negatives_per_anchor: Annotated[int | None, typer.Option(min=1, help="of n-tuples; 3 if not given")] = None,
    max_false_negative: Annotated[
        float | None, typer.Option(min=0, max=1, help="leave out negatives likelier than this to be positives")
    ] = None,
    redo: Annotated[bool, typer.Option("--redo", help="replace what was exported to PATH before")] = False,
) -> None:
    """Write what was mined in the format of a trainer."""
    from scalemine.config import InputError
    from scalemine.export import Options
    from scalemine.export import export as export_workdir

    names = None if sets is None else tuple(dict.fromkeys(filter(None, map(str.strip, sets.split(",")))))
    if names == ():
        raise InputError("--sets: expected names of sets parted by commas, such as train_2s,test_2s")
    report = export_workdir(
        _entered(where), to, Options(format_, names, negatives_per_anchor, max_false_negative, redo)
    )
    for line in report.lines:
        print(line)


class KillName(StrEnum):
    """What a drill kills."""

    actor = "actor"
    worker = "worker"
    node = "node"
    driver = "driver"


@app.command()
def chaos(
    config: ConfigPath,
    kill: Annotated[
        KillName | None,
        typer.Option(
            help="an actor at work; all worker processes of a node; a node, and another is added; the run itself, "
            "which is called again; not given: one after the other"
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="share of finished shards at which it is killed; not given: drawn by the seed"),
    ] = None,
    seed: Annotated[int, typer.Option(help="also decides which actor or node it is")] = 0,
    drills: Annotated[int, typer.Option(min=1, help="so many, with this seed and those after it")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="of the cluster, with one worker each")] = 2,
    overrides: Overrides = None,
) -> None:
    """Drill: mine undisturbed, mine with a kill on a small cluster on this machine, and compare the bytes.

    Writes into WORKDIR.chaos, and nothing into the workdir itself.
    """
    from scalemine.chaos import Kill, plan_drills, run_drills
    from scalemine.executor import StopSignals

    plans = plan_drills(drills, seed, Kill(kill.value) if kill else None, at)
    passed = 0
    with StopSignals() as signals:
        done = run_drills(
            config, overrides or [], [(one, [blow]) for one, blow in plans], num_nodes=nodes, signals=signals
        )
        for (number, _), drill in zip(plans, done, strict=False):
            print(f"drill of seed {number}:")
            for line in drill.lines:
                print(f"  {line}", flush=True)
            passed += drill.has_passed
    print(f"{passed} of {drills} passed")
    if passed < drills:
        sys.exit(EXIT_FAILED)


@app.command()
def doctor(
    security: Annotated[bool, typer.Option("--security", help="what is open to others, and how to close it")] = False,
    workdir: Annotated[Path | None, typer.Option("--workdir", metavar="DIR", help="look at this folder, too")] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has, or what on it is open to others: each with the line that mends it."""
    from scalemine.doctor import findings

    found = findings(security=security, workdir=workdir)
    if as_json:
        print(json.dumps({"findings": [vars(one) for one in found]}, indent=1, ensure_ascii=False))
    else:
        width = max(len(one.what) for one in found)
        for one in found:
            print(f"{one.status:<4}  {one.what:<{width}}  {one.value}")
            if one.mend:
                print(f"{'':<4}  {'to mend':>{width}}: {one.mend}")
    if security and any(one.status == "open" for one in found):
        sys.exit(EXIT_FAILED)


def _print_scores(value: Any, scores: dict[str, Any], as_json: bool) -> None:  # noqa: ANN401  JSON
    if as_json:
        print(json.dumps(value, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from scalemine.report.scores import print_scores

    for name, one in scores.items():
        print_scores(Console(), Path(name).name, one)


def _is_mined(workdir: Path) -> bool:
    from scalemine.store import Workdir

    named = Workdir(workdir)
    # mined.json goes first where --redo discards a run.
    return all(path.exists() for path in (named.manifest, named.negatives, named.mined / "mined.json"))


def _print_report(workdir: Path) -> None:
    from rich.console import Console

    from scalemine.report.page import write_report
    from scalemine.report.tables import print_report
    from scalemine.store import Workdir

    write_report(Workdir(workdir))
    print_report(Console(), Workdir(workdir))


def _run(
    path: Path,
    overrides: list[str] | None,
    executor: ExecutorName | None,
    dry_run: bool,
    redo: bool,
    check: Callable[[Config], None],
    action: Callable[[Run], None],
    needs: Sequence[str] | None = None,
    *,
    trains: bool = False,
    sections: Sequence[str] | None = None,
) -> None:
    """Load the configuration, take the workdir, start the executor, and do it; or only say what would be done."""
    config = _load(path, overrides, executor, needs)
    if trains:
        _refuse_nodes(config)
    if dry_run:
        _print_plan(config, check, redo, sections)
        return
    from scalemine.executor import StopSignals, make_executor
    from scalemine.lease import hold_workdir
    from scalemine.pipeline import Run

    wants_gpu = config.encoder.device != "cpu"
    with (
        hold_workdir(config.workdir),
        StopSignals() as signals,
        make_executor(config.compute, signals=signals, wants_gpu=wants_gpu) as where,
    ):
        action(Run(config, where, signals, redo=redo, show=_show, on_forecast=_print_forecast))


def _load(
    path: Path, overrides: list[str] | None, executor: ExecutorName | None, needs: Sequence[str] | None
) -> Config:
    """Load the configuration, with the executor that was named on the command line."""
    from scalemine.config import MINING_SECTIONS, load_config

    extra = [f"compute.executor={executor.value}"] if executor else []
    if executor is ExecutorName.inline:
        extra.append("compute.workers=1")
    loaded = load_config(path, [*(overrides or []), *extra], needs=MINING_SECTIONS if needs is None else needs)
    _look_at(loaded)
    return loaded


def _folder(text: str) -> Path:
    """Return the folder that is written as a path, or as the URI of one in a bucket."""
    from scalemine.config import InputError
    from scalemine.mirror import is_uri, mirror_of

    try:
        return mirror_of(text) if is_uri(text) else Path(text)
    except ValueError as error:
        raise InputError(str(error)) from None


def _entered(text: str) -> Path:
    """Return the work directory that is written as a path or URI; of one in a bucket, what is there now."""
    from scalemine.lease import look_at

    folder = _folder(text)
    look_at(folder)
    return folder


def _look_at(config: Config) -> None:
    from scalemine.lease import look_at

    look_at(config.workdir)


def _refuse_nodes(config: Config) -> None:
    """Refuse to train on several machines out of a bucket: processes of a run tell one another by files."""
    from scalemine.bucket import is_mirrored
    from scalemine.config import InputError

    if is_mirrored(config.workdir) and config.compute.executor == "ray" and config.compute.address != "local":
        raise InputError(
            f"workdir: {config.workdir}: training on the nodes of a cluster wants a disk that they share, not a "
            f"bucket; mount one, or set compute.address to local"
        )


def _print_plan(config: Config, check: Callable[[Config], None], redo: bool, sections: Sequence[str] | None) -> None:
    """Say what a run would do, and refuse what it would refuse; of a run that mines nothing, what it reads alone."""
    import yaml

    from scalemine.config import InputError
    from scalemine.corpus import open_corpus
    from scalemine.sources import find_sources
    from scalemine.store import Workdir

    workdir = Workdir(config.workdir)
    shown = config.model_dump(mode="json", include=None if sections is None else {"workdir", *sections})
    print(yaml.safe_dump(redact(shown), sort_keys=False, allow_unicode=True))
    if sections is not None or any(workdir.root.glob("*/stage.json")):
        try:
            check(config)
        except InputError as error:
            if not (redo and "--redo" in str(error)):
                raise
            print(f"to be discarded: {error}")
    if (workdir.corpus / "corpus.json").exists():
        corpus = open_corpus(workdir.corpus)
        print(f"corpus: imported, {corpus.num_rows:,} rows in {len(corpus.shards)} shards")
        for folder in (workdir.embeddings, workdir.similarities) if sections is None else ():
            done = sum((folder / f"{shard.name}.arrow.json").exists() for shard in corpus.shards)
            print(f"{folder.name}: {done} of {len(corpus.shards)} shards done")
    else:
        for source in find_sources(config.corpus.uri):
            print(f"to import: {source.name}, {source.num_bytes / 1e6:,.1f} MB")
    if sections is None:
        print(f"negatives: {'done' if workdir.negatives.exists() else 'to be mined'}")


def _print_forecast(forecasts: list[Any]) -> None:
    """Warn of bands that the corpus will hardly fill."""
    logger = logging.getLogger("scalemine")
    for one in forecasts:
        if one.may_fall_short:
            verdict = "cannot be filled" if one.falls_short else "may not be filled"
            logger.warning(
                "forecast: %s, band %d %s: about %.0f tweets (95 %%: %.0f to %.0f) for %d wanted",
                one.class_name, one.band, verdict, one.expected, one.low, one.high, one.quota,
            )  # fmt: skip


@contextlib.contextmanager
def _show(stage: str, total: int | None) -> Iterator[Advance]:
    """Show progress: a bar with rate and time left on a terminal, sparse lines in a log."""
    if not sys.stderr.isatty():
        yield _log_progress(stage, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:>10}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(stage, total=total, rate="")

        def advance(rows: int) -> None:
            progress.advance(task, rows)
            state = progress.tasks[0]
            if state.elapsed:
                progress.update(task, rate=f"{state.completed / state.elapsed:,.0f}/s")

        yield advance


def _log_progress(stage: str, total: int | None) -> Advance:
    started, last, done = time.monotonic(), time.monotonic(), 0
    logger = logging.getLogger("scalemine")

    def advance(rows: int) -> None:
        nonlocal last, done
        done += rows
        now = time.monotonic()
        if now - last >= LOG_INTERVAL or done == total:
            last = now
            rate = done / max(now - started, 1e-9)
            left = f" of {total:,}, {(total - done) / rate:,.0f} s left" if total else ""
            logger.info("%s: %s%s, %s/s", stage, f"{done:,}", left, f"{rate:,.0f}")

    return advance


class _Redacting(logging.Formatter):
    """Leaves secrets out of what is logged, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(spelled(super().format(record)))


class _Spelling:
    """A stream that says URIs where a text names files of the mirror of a bucket."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(spelled(text))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _set_up_logging() -> None:
    from rich.console import Console
    from rich.logging import RichHandler

    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_time=False, markup=False
        )
        handler.setFormatter(_Redacting("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("scalemine")
    logger.handlers = [handler]
    logger.setLevel(os.environ.get("SCALEMINE_LOG", "INFO").upper())
    logger.propagate = False


def _fail(code: int, message: str) -> NoReturn:
    print(f"scalemine: {redact_text(spelled(message))}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line; every way to end has its exit code."""
    # Read when a tensor library starts its threads: they sleep while they wait. Where other work has the cores, threads
    # that turn in circles make each step ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from scalemine.config import InputError, RunError
    from scalemine.executor import Stopped

    _set_up_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a tweet may hold what a terminal's encoding does not
    try:
        with contextlib.redirect_stdout(cast(TextIO, _Spelling(sys.stdout))):
            app()
    except InputError as error:
        _fail(EXIT_INPUT, " ".join(str(error).split()))
    except RunError as error:
        _fail(EXIT_FAILED, " ".join(str(error).split()))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(EXIT_FAILED, f"{where}the disk or its quota is full; make room and call again, what was finished is kept")
    except Stopped:
        _fail(EXIT_STOPPED, "stopped; what was finished is kept: call again to go on")
