from __future__ import annotations

import sys
from pathlib import Path

# The oracles and fakes that several test files share, importable as mining.oracles.
sys.path.insert(0, str(Path(__file__).parent))

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# As the command line does: the threads of tensor libraries sleep while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NUM_TWEETS = 1_200


def pytest_configure() -> None:
    """Give every Ray session of the tests one token: Ray reads it once per process."""
    folder = Path(tempfile.mkdtemp(prefix="scalemine-tests-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"] = "token", str(token)


def pytest_unconfigure() -> None:
    shutil.rmtree(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session for all tests, with room for the actors of several executors."""
    from scalemine.config import ComputeConfig
    from scalemine.executor import StopSignals, make_executor

    with make_executor(ComputeConfig(executor="ray", workers=6), signals=StopSignals(), wants_gpu=False):
        yield


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented tweets, and few enough positives of each class to be encoded in a moment."""
    from scalemine.sample import write_sample

    folder = tmp_path_factory.mktemp("sample")
    files = write_sample(folder, num_tweets=NUM_TWEETS)
    for path, per_class in ((files.positives, 10), (files.positives_test, 4)):
        rows: dict[str, list[dict[str, Any]]] = {}
        table = pq.read_table(path)
        for row in table.to_pylist():
            rows.setdefault(row["type"], []).append(row)
        few = [row for group in rows.values() for row in group[:per_class]]
        pq.write_table(pa.Table.from_pylist(few, schema=table.schema), path)
    return folder


@pytest.fixture(scope="session")
def settings_of(sample_folder: Path) -> Callable[..., dict[str, Any]]:
    """Return the configuration of a quick run in a folder, as it stands in a YAML file; sections may be added to."""

    def settings(workdir: Path, **sections: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {
            "workdir": str(workdir),
            "corpus": {"uri": str(sample_folder / "tweets"), "rows_per_shard": 300},
            "positives": {
                "uri": str(sample_folder / "positives.parquet"),
                "test_uri": str(sample_folder / "positives_test.parquet"),
                "class_name": "type",
            },
            # Short texts: the fewer lengths there are, the fewer batches.
            "encoder": {"max_length": 24},
            "mining": {"sample_size": 300, "bands": [1, 2, 3, 4]},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return values

    return settings


@dataclass(frozen=True)
class FinishedRun:
    """A run that other tests may copy, not touch."""

    workdir: Path
    warnings: list[str]
    forecasts: list[Any]
    embedded_before_forecast: list[Path]


@pytest.fixture(scope="session")
def finished(settings_of: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A whole run, in this process."""
    from scalemine.config import Config
    from scalemine.executor import InlineExecutor
    from scalemine.pipeline import Run, run_mine
    from scalemine.report.page import write_report

    workdir = tmp_path_factory.mktemp("finished") / "work"
    forecasts: list[Any] = []
    embedded: list[Path] = []

    def on_forecast(found: list[Any]) -> None:
        forecasts.extend(found)
        embedded.extend(workdir.glob("embeddings/*.arrow"))

    run = Run(Config.model_validate(settings_of(workdir)), InlineExecutor(), on_forecast=on_forecast)
    run_mine(run)
    write_report(run.workdir)
    return FinishedRun(workdir, run.warnings, forecasts, embedded)


@pytest.fixture
def copy_of_finished(finished: FinishedRun, tmp_path: Path) -> Callable[..., Path]:
    """Return a copier of the finished run, without the stages named."""

    def copy(*without: str) -> Path:
        return Path(shutil.copytree(finished.workdir, tmp_path / "work", ignore=shutil.ignore_patterns(*without)))

    return copy
