from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalemine.config import Config
from scalemine.store import read_json
from scalemine.submit.job import make_job
from scalemine.submit.plan import describe_job
from scalemine.submit.profile import Profile

PROFILE = Profile(cpus=2, memory=1, threads=1)


def lines(workdir: Path, settings_of: Callable[..., dict[str, Any]], stage: str = "embed", **options: Any) -> list[str]:
    config = Config.model_validate(settings_of(workdir))
    return describe_job(make_job(stage, Path("config.yaml"), config, [], PROFILE, **options), config)


def files_of(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_corpus_that_is_not_imported(tmp_path: Path, settings_of: Callable[..., dict[str, Any]]) -> None:
    found = lines(tmp_path / "work", settings_of)
    assert found[0].startswith("embed on 1 node(s) of 2 CPUs and 1 GiB")
    assert any(re.match(r"to import: .*, [\d.,]+ MB", line) for line in found)
    assert found[-1].startswith("no estimate")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("stage", ["ablate", "filter"])
def test_a_stage_that_embeds_nothing(stage: str, tmp_path: Path) -> None:
    config = Config(workdir=tmp_path / "work")
    found = describe_job(make_job(stage, Path("config.yaml"), config, [], PROFILE), config)
    assert len(found) == 2
    assert found[-1].startswith("no estimate")


def test_a_probe_of_one_shard(
    settings_of: Callable[..., dict[str, Any]], copy_of_finished: Callable[..., Path]
) -> None:
    workdir = copy_of_finished("embeddings")
    before = files_of(workdir)
    found = lines(workdir, settings_of)
    corpus = read_json(workdir / "corpus" / "corpus.json")["shards"]
    assert f"shards: {len(corpus)}, 0 embedded, {len(corpus)} to do" in found[1]
    assert re.fullmatch(
        r"estimate: [\d,]+ tweets/s a worker, by a probe of shard \S+ on this machine; 2 at a time: about .+", found[-1]
    )
    assert files_of(workdir) == before
    assert len([line for line in found if re.fullmatch(r"  \S+: \d+ tweets", line)]) == len(corpus)


def test_finished_shards_say_how_long_the_others_take(
    settings_of: Callable[..., dict[str, Any]], copy_of_finished: Callable[..., Path]
) -> None:
    workdir = copy_of_finished()
    manifests = sorted((workdir / "embeddings").glob("*.arrow.json"))
    assert lines(workdir, settings_of)[-1].startswith("estimate: all shards are embedded")
    manifests[0].unlink()
    found = lines(workdir, settings_of, shares=2)
    assert f"{len(manifests) - 1} embedded, 1 to do" in found[1]
    assert f"as {len(manifests) - 1} finished shard(s) of this workdir took; 1 at a time" in found[-1]
    assert any(line.startswith("shares: 2, each of at most") for line in found)
