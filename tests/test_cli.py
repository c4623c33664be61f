from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalemine.cli import main
from scalemine.lease import hold_workdir
from scalemine.report.comparison import FORMAT
from scalemine.store import Workdir, read_json
from submit import fakes
from sweep.sweeps import write_arms
from training.tiny import write_bert

ROOT = Path(__file__).parents[1]

Settings = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line that says why, after checking that it is the only one."""
        lines = self.err.splitlines()
        said = [line for line in lines if line.startswith("scalemine: ")]
        # Besides it only the log speaks: a time, a level, a message.
        others = [line for line in lines if line not in said and " INFO " not in line and " WARNING " not in line]
        assert len(said) == 1, self.err
        assert not others, self.err
        assert "Traceback" not in self.out + self.err
        return said[0]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Return a function that runs a command in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["scalemine", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(bool(code)), said.out, said.err)

    return run


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Take back what the command line does to the logger of this process."""
    logger = logging.getLogger("scalemine")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture
def write_config(settings_of: Settings, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the file of a quick run."""

    def write(workdir: Path | None = None, **sections: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings_of(workdir or tmp_path / "work", **sections)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def few_tweets(tmp_path: Path) -> Path:
    path = tmp_path / "few.csv"
    path.write_text("id,text\n" + "".join(f"{i},tweet number {i}\n" for i in range(30)))
    return path


# Bad input: exit code 2 and one line


def test_config_file_that_is_missing(call: Any, tmp_path: Path) -> None:
    ended = call("mine", tmp_path / "none.yaml")
    assert ended.code == 2
    assert "none.yaml: no such config file" in ended.refusal


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("corpus.uri=/nowhere/tweets.jsonl", "/nowhere/tweets.jsonl"),
        ("mining.perclass=3", "mining.perclass: unknown key; did you mean per_class?"),
        ("compute.workers=3", "executor inline is one process; got workers=3"),
        ("corpus.rows_per_shard=x", "corpus.rows_per_shard"),
        ("positives.uri=/nowhere/positives.parquet", "positives.uri: no such file: /nowhere/positives.parquet"),
        ("positives.test_uri=/nowhere/test.parquet", "positives.test_uri: no such file: /nowhere/test.parquet"),
        ("positives.class_name=typ", "positives.class_name: no column 'typ'"),
        ("positives.class_name=typ", "did you mean type?"),
        ("positives.text=message", "positives.text: no column 'message'"),
        ("positives.classes=[traffic, volcano]", "class 'volcano' has 0 positives, expected at least 2"),
        ("positives.classes=[volcano]", "no positives of volcano"),
        ("positives.min_per_class=500", "positives, expected at least 500"),
    ],
)
def test_bad_value(call: Any, write_config: Any, override: str, expected: str) -> None:
    ended = call("mine", write_config(), "--set", override)
    assert ended.code == 2
    assert expected in ended.refusal


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty corpus"),
        ("id,text\n", "empty corpus"),
        ("id,text\n1,\n2,\n", "empty corpus"),
        ("id,body_of_it\n1,a\n", "corpus.text"),
    ],
)
def test_bad_corpus(call: Any, write_config: Any, tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "tweets.csv"
    path.write_text(content)
    ended = call("mine", write_config(corpus={"uri": str(path)}))
    assert ended.code == 2
    assert str(path) in ended.refusal
    assert expected in ended.refusal


def test_text_column_that_is_unknown(call: Any, write_config: Any, few_tweets: Path) -> None:
    ended = call("mine", write_config(corpus={"uri": str(few_tweets), "text": "txt"}))
    assert ended.code == 2
    assert "no column txt (corpus.text)" in ended.refusal


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("encoder.model=package:nope", "encoder.model: no package nope is installed here"),
        ("encoder.model=./no/such/folder", "encoder.model: no such folder: ./no/such/folder"),
        ("encoder.max_length=100000", "reads at most 512 tokens, got 100000"),
    ],
)
def test_bad_encoder(call: Any, write_config: Any, few_tweets: Path, override: str, expected: str) -> None:
    ended = call("mine", write_config(corpus={"uri": str(few_tweets)}), "--set", override)
    assert ended.code == 2
    assert expected in ended.refusal


def test_workdir_that_cannot_be_written(call: Any, write_config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended = call("mine", write_config(tmp_path / "file" / "work"))
    assert ended.code == 2
    assert "workdir cannot be written" in ended.refusal


def test_workdir_that_another_run_holds(call: Any, write_config: Any, tmp_path: Path) -> None:
    with hold_workdir(tmp_path / "work"):
        ended = call("mine", write_config())
    assert ended.code == 2
    assert f"in use by another run (process {os.getpid()} on " in ended.refusal


def test_doctor(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalemine import doctor

    found = [doctor.Finding("a", "fine"), doctor.Finding("bcd", "amiss", "open", "chmod 600 x")]
    monkeypatch.setattr(doctor, "findings", lambda **asked: found[: 2 if asked["workdir"] == tmp_path else 1])
    assert call("doctor", "--security").code == 0
    ended = call("doctor", "--security", "--workdir", tmp_path)
    assert ended.code == 1
    assert [" ".join(line.split()) for line in ended.out.splitlines()] == [
        "ok a fine", "open bcd amiss", "to mend: chmod 600 x",
    ]  # fmt: skip
    ended = call("doctor", "--workdir", tmp_path, "--json")
    assert ended.code == 0  # only --security judges
    assert json.loads(ended.out)["findings"][1] == {
        "what": "bcd", "value": "amiss", "status": "open", "mend": "chmod 600 x",
    }  # fmt: skip


def test_logs_and_errors_show_no_secret(
    call: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch, few_tweets: Path
) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-in-the-environment")
    ended = call("mine", write_config(), "--set", "corpus.uri=s3://me:planted@bucket/a")
    assert (ended.code, "planted" in ended.err) == (2, False)
    ended = call("mine", "planted-in-the-environment.yaml")
    assert (ended.code, "***.yaml: no such config file" in ended.refusal) == (2, True)
    ended = call("import", "s3://me:planted@bucket/a", "--to", few_tweets.parent / "corpus")
    assert (ended.code, "planted" in ended.err) == (2, False)


SECRET = "planted-7f3a9c-secret"


def test_no_secret_is_written_or_said(
    call: Any, write_config: Any, copy_of_finished: Any, tagged: Path, few_tweets: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All that commands write and say, with secrets in the environment, in settings and in addresses."""
    monkeypatch.chdir(tmp_path)
    for name in ("MY_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    fakes.use_fakes(tmp_path, monkeypatch)
    before = set(tmp_path.rglob("*"))
    mining, why = write_config(copy_of_finished("mined")), ["--set", f"why=with HF_TOKEN={SECRET}"]
    submit = ["submit", "embed", mining, *why]
    said = [
        call("import", few_tweets, "--to", tmp_path / "corpus"),
        call("import", f"s3://me:{SECRET}@bucket/a", "--to", tmp_path / "other"),
        call("mine", mining, *why),
        call("mine", mining, *why, "--dry-run"),
        call("mine", mining, "--set", f"corpus.uri=s3://bucket/a?secret_key={SECRET}"),
        call("mine", mining, "--set", f"seed={SECRET}"),
        call("train", tagged, *why, "--set", f"workdir={tmp_path / 'runs'}"),
        call(*submit, "--to", "slurm", "--dry-run"),
        call(*submit, "--to", "slurm"),
        call("status", tmp_path / "work"),
        call("report", tmp_path / "work"),
        call("doctor", "--security"),
    ]
    codes = [0, 2, 0, 0, 2, 2, 0, 0, 0, 0, 0]
    assert [one.code for one in said[:-1]] == codes, [one.err for one in said]
    assert [number for number, one in enumerate(said) if SECRET in one.out + one.err] == []
    written = [path for path in set(tmp_path.rglob("*")) - before if path.is_file()]
    assert {"manifest.json", "negatives.parquet", "result.json", "run.sh", "report.html"} <= {
        one.name for one in written
    }
    # What a job is sent has to say what it is to do; nobody else may read it.
    private = {path for path in written if path.parent.parent.name == "jobs"}
    assert all(path.parent.stat().st_mode & 0o077 == 0 for path in private)
    assert [
        path
        for path in written
        if path not in private and "notes" not in path.parts and SECRET.encode() in path.read_bytes()
    ] == []


def test_corpus_inside_its_own_workdir(call: Any, write_config: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tweets.csv").write_text("id,text\n1,a\n")
    ended = call("mine", write_config(corpus={"uri": str(tmp_path / "work")}))
    assert ended.code == 2
    assert "choose a workdir outside of it" in ended.refusal


def test_embedding_without_embeddings(call: Any, write_config: Any) -> None:
    ended = call("embed", write_config(encoder={"keep_embeddings": False}))
    assert ended.code == 2
    assert "encoder.keep_embeddings is false" in ended.refusal


def test_another_configuration_in_the_same_workdir(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path]
) -> None:
    workdir = copy_of_finished()
    before = (workdir / "negatives.parquet").read_bytes()
    config = write_config(workdir)
    change = ["--set", "mining.tails=upper", "--set", "mining.per_class=2"]
    refused = call("mine", config, *change)
    assert refused.code == 2
    assert 'mining.tails was "both", is "upper"' in refused.refusal
    assert 'mining.per_class was "match", is 2' in refused.refusal
    assert "--redo" in refused.refusal
    assert (workdir / "negatives.parquet").read_bytes() == before

    done = call("mine", config, *change, "--redo")
    assert done.code == 0
    assert pq.read_table(workdir / "negatives.parquet", columns=["z"])["z"].to_numpy().min() >= 0
    assert read_json(workdir / "manifest.json")["config"]["mining"]["tails"] == "upper"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("corpus.rows_per_shard=400", "corpus.rows_per_shard was 300, is 400"),
        ("encoder.max_length=32", "encoder.max_length was 24, is 32"),
        ("encoder.normaliser=bertweet", "encoder.normaliser was"),
        ("seed=7", "seed was 42, is 7"),
        ("positives.classes=[traffic]", 'positives.classes was null, is ["traffic"]'),
    ],
)
def test_changed_key_is_named(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path], override: str, named: str
) -> None:
    ended = call("mine", write_config(copy_of_finished()), "--set", override)
    assert ended.code == 2
    assert named in ended.refusal


@pytest.mark.parametrize(
    "arguments", [["mine"], ["mine", "a.yaml", "--sett", "a=b"], ["dig", "a.yaml"], ["mine", "a", "--executor", "dask"]]
)
def test_command_line_that_is_wrong(call: Any, arguments: list[str]) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert "Usage:" in ended.err
    assert "Traceback" not in ended.err


# Commands


def test_import_prints_its_counts(call: Any, tmp_path: Path) -> None:
    (tmp_path / "tweets.csv").write_text('id,text\n1,a storm\n2,a storm\n3,\n3,quiet\n4,"loud"\n4,again\n')
    ended = call("import", tmp_path / "tweets.csv", "--to", tmp_path / "corpus", "--rows-per-shard", 2)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == "read 6 = accepted 4 + rejected 2 (duplicate id 1, no text 1)"
    assert lines[1].startswith("copies of an earlier text: 1")
    assert f"2 shards in {tmp_path / 'corpus'}" in lines[2]
    assert pq.read_table(tmp_path / "corpus" / "rejects.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.csv", "--to", "corpus"], "none.csv"),
        (["few.csv", "--to", "corpus", "--text", "txt"], "no column txt"),
        (["few.csv", "--to", "corpus", "--id", "tweet"], "no column tweet"),
        (["few.csv", "--to", "few.csv"], "few.csv"),
        (["few.csv", "--to", "corpus", "--rows-per-shard", "2000000"], "1000000"),
    ],
)
def test_import_of_bad_input(
    call: Any, few_tweets: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(few_tweets.parent)
    ended = call("import", *arguments)
    assert ended.code == 2
    assert expected in ended.refusal


def test_import_names_the_option_that_is_wrong(call: Any, few_tweets: Path, tmp_path: Path) -> None:
    ended = call("import", few_tweets, "--to", tmp_path / "corpus", "--rows-per-shard", 2_000_000)
    assert ended.code == 2
    assert "rows" in ended.refusal
    assert "shard" in ended.refusal
    assert ended.refusal.startswith("scalemine: --rows-per-shard: ")
    ended = call("import", few_tweets, "--to", tmp_path / "corpus", "--rows-per-shard", 0)
    assert ended.code == 2
    assert "'--rows-per-shard'" in ended.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.csv"], "SRC none.csv: matches no file"),
        (["s3://me:secret@bucket/x.csv"], "SRC: expected no password in a URI"),
        (["few.csv", "--text", "txt"], "few.csv: no column txt (--text); did you mean text?"),
        (["few.csv", "--id", "tweet"], "few.csv: no column tweet (--id);"),
        (["few.csv", "--keep", "id"], "--keep: id would be there twice"),
        (["corpus.text/few.csv", "--text", "a"], "corpus.text/few.csv: no column a (--text);"),
        # Of two --to, the last counts.
        (["few.csv", "--rows-per-shard", "10", "--to", "done"], "(--rows-per-shard was 16384, is 10)"),
    ],
)
def test_import_names_options_and_no_keys(
    call: Any, few_tweets: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(few_tweets.parent)
    Path("corpus.text").mkdir()
    shutil.copy("few.csv", "corpus.text")
    assert call("import", "few.csv", "--to", "done").code == 0
    ended = call("import", "--to", "new", *arguments)
    assert ended.code == 2
    assert expected in ended.refusal
    assert "secret" not in ended.err


def test_dry_run_writes_nothing(call: Any, write_config: Any, tmp_path: Path) -> None:
    config = write_config()
    ended = call("mine", config, "--dry-run", "--set", "mining.per_class=3")
    assert ended.code == 0
    assert "per_class: 3" in ended.out
    assert "to import: " in ended.out
    assert "negatives: to be mined" in ended.out
    assert list(tmp_path.iterdir()) == [config]


def test_dry_run_of_a_filter_speaks_of_it_alone_and_refuses_what_it_would(
    call: Any, write_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "zip.txt").write_text("77002\n7702\n")
    config = write_config()
    ended = call("filter", config, "--dry-run", "--set", "filter.codes=[77002]")
    assert ended.code == 0
    assert "keywords: []" in ended.out and "to import: " in ended.out
    assert "mining" not in ended.out and "mined" not in ended.out
    assert not (tmp_path / "work").exists()
    ended = call("filter", config, "--dry-run", "--set", f"filter.codes={tmp_path / 'zip.txt'}")
    assert ended.code == 2
    assert "expected five digits" in ended.refusal


def test_dry_run_of_a_finished_run(call: Any, write_config: Any, copy_of_finished: Callable[..., Path]) -> None:
    workdir = copy_of_finished("00002.arrow.json")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    ended = call("mine", write_config(workdir), "--dry-run")
    assert ended.code == 0
    assert "embeddings: 3 of 4 shards done" in ended.out
    assert "negatives: done" in ended.out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def state(workdir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("corpus.rows_per_shard=400", "corpus"),
        ("encoder.max_length=32", "anchors"),
        ("positives.classes=[traffic]", "anchors"),
        ("seed=7", "probe"),
        ("mining.tails=upper", "mined"),
        ("sets.random_plus_ratio=3", "sets"),
    ],
)
def test_dry_run_refuses_what_the_run_would(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path], override: str, stage: str
) -> None:
    workdir = copy_of_finished()
    arguments = ["mine", write_config(workdir), "--set", override]
    before = state(workdir)
    dry = call(*arguments, "--dry-run")
    assert state(workdir) == before
    assert dry.code == 2
    assert f"{workdir / stage}: made with another configuration ({override.split('=')[0]} was " in dry.refusal
    assert call(*arguments).refusal == dry.refusal
    before = state(workdir)
    assert call(*arguments, "--dry-run", "--redo").code == 0
    assert state(workdir) == before


@pytest.mark.parametrize("stage", ["embeddings", "similarities"])
def test_dry_run_looks_at_each_stage(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path], stage: str
) -> None:
    workdir = copy_of_finished()
    mark = workdir / stage / "stage.json"
    mark.write_text(mark.read_text().replace('"encoder.max_length": 24', '"encoder.max_length": 25'))
    ended = call("mine", write_config(workdir), "--dry-run")
    assert ended.code == 2
    assert f"{workdir / stage}: made with another configuration (encoder.max_length was 25, is 24)" in ended.refusal


def test_dry_run_of_embed_refuses_what_embed_would(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path]
) -> None:
    config = write_config(copy_of_finished())
    assert call("embed", config, "--dry-run", "--set", "mining.tails=upper").code == 0
    arguments = ["embed", config, "--set", "encoder.max_length=32"]
    dry = call(*arguments, "--dry-run")
    assert "embeddings: made with another configuration (encoder.max_length was 24, is 32)" in dry.refusal
    assert call(*arguments).refusal == dry.refusal


def test_dry_run_without_the_corpus(call: Any, write_config: Any, copy_of_finished: Callable[..., Path]) -> None:
    config = write_config(copy_of_finished("corpus"))
    ended = call("mine", config, "--dry-run")
    assert ended.code == 0
    assert "to import: " in ended.out
    assert "anchors: made with" in call("mine", config, "--dry-run", "--set", "encoder.max_length=32").refusal


def test_mine_says_whether_anything_was_to_be_done(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path]
) -> None:
    workdir = copy_of_finished("sets")
    said = "already finished; nothing to do"
    assert said not in call("mine", write_config(workdir)).err
    before = state(workdir / "sets")
    for redo in ([], ["--redo"]):
        assert call("mine", write_config(workdir), *redo).err.count(said) == 1
        assert state(workdir / "sets") == before


def test_mine_of_a_finished_run_prints_its_report(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path]
) -> None:
    workdir = copy_of_finished("report.html")
    ended = call("mine", write_config(workdir))
    assert ended.code == 0
    assert "bombing" in ended.out
    assert f"report: {workdir}" in ended.out.replace("\n", "")
    assert (workdir / "report.html").exists()


def test_report_of_a_finished_run(call: Any, copy_of_finished: Callable[..., Path]) -> None:
    workdir = copy_of_finished("report.html", "embeddings", "corpus")
    ended = call("report", workdir)
    assert ended.code == 0
    assert "natural_hazard" in ended.out
    assert (workdir / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_report_of_an_empty_folder(call: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        ended = call("report", folder)
        assert ended.code == 2
        assert f"{folder}: no finished run here" in ended.refusal
    assert list(tmp_path.iterdir()) == []


def test_embed_says_how_many(call: Any, write_config: Any, copy_of_finished: Callable[..., Path]) -> None:
    ended = call("embed", write_config(copy_of_finished()))
    assert ended.code == 0
    assert "tweets (" in ended.out
    assert "(were before)" in ended.out


def test_sample_writes_what_it_says(call: Any, tmp_path: Path) -> None:
    ended = call("sample", "--to", tmp_path / "s", "--tweets", 150)
    assert ended.code == 0
    assert "150 invented tweets" in ended.out
    assert (tmp_path / "s" / "positives.parquet").exists()
    assert call("sample", "--to", tmp_path / "s", "--tweets", 5).code == 2


# Processes of their own


# Training and scoring


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """Write tweets to learn from, one file of vectors, and the configuration of a quick run; return the last."""
    tweets = [["van", "burns", f"w{number}"] for number in range(40)]
    table = pa.table({"tokens": tweets, "tags": [["B-fire", "I-fire", "O"]] * 40})
    pq.write_table(table, tmp_path / "gold.parquet")
    (tmp_path / "vectors.txt").write_text("van 1 0 0\nburns 0 1 0\n")
    train = {
        "train_uri": str(tmp_path / "gold.parquet"), "vectors": str(tmp_path / "vectors.txt"), "head_lr": 0.05,
        "epochs": 5, "device": "cpu", "group_by": [], "bootstrap": 10, "name": "quick",
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"workdir": str(tmp_path / "work"), "train": train}))
    return path


def test_train_evaluate_and_score(call: Any, tagged: Path, tmp_path: Path) -> None:
    plan = call("train", tagged, "--dry-run")
    assert plan.code == 0
    assert "quick: 36 tweets, 4 of dev, 0 held out: to do" in plan.out
    assert not (tmp_path / "work").exists()
    trained = call("train", tagged)
    assert trained.code == 0
    assert re.search(r"^dev +100\.0 +100\.0 +100\.0 ", trained.out, re.MULTILINE)
    model = tmp_path / "work" / "runs" / "quick"
    scored = call("evaluate", model, tmp_path / "gold.parquet", "--json")
    [scores] = json.loads(scored.out).values()
    assert (scored.code, scores["f1"], scores["num_cut"]) == (0, 1.0, 0)
    assert call("evaluate", model, tmp_path / "gold.parquet").out.count("100.00") > 5
    again = call("train", tagged)
    assert (again.code, again.out) == (0, trained.out)
    assert "quick: finished before" in again.err


@pytest.fixture
def swept(tagged: Path, tmp_path: Path) -> Path:
    """Write the configuration of a quick sweep: two trials in two folds."""
    values = yaml.safe_load(tagged.read_text())
    del values["train"]["name"]
    values["train"] |= {"folds": 2, "epochs": 2}
    values["sweep"] = {"space": {"train.head_lr": [0.05, 0.02]}}
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_sweep_and_status(call: Any, swept: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    plan = call("sweep", swept, "--dry-run")
    assert plan.code == 0, plan.err
    assert plan.out.startswith("sweep rates: 2 trials x 2 folds x 1 seed = 4 runs; 0 finished; by held_out.f1\n")
    assert len(re.findall(r"train\.head_lr=0\.0[52]: 2 to do$", plan.out, re.MULTILINE)) == 2
    assert not workdir.exists()

    done = call("sweep", swept)
    assert done.code == 0, done.err
    for label in ("head_lr=0.05", "head_lr=0.02"):
        assert re.search(rf"{label} +2/2 +[01]\.\d{{4}} ± ", done.out), done.out
    assert re.search(r"sweep rates, finished: 4 done, 0 running, 0 waiting, best [01]\.\d{4} by head_lr=0\.0", done.out)
    configs = workdir / "sweeps" / "rates" / "configs"
    assert f"each trial's configuration: {configs}; all scores: {workdir / 'results.parquet'}" in done.out
    assert len(list(configs.glob("*.yaml"))) == 2
    assert len(set(pq.read_table(workdir / "results.parquet")["run"].to_pylist())) == 4
    assert "epoch" not in done.err  # what runs say is in their logs
    assert len(list((workdir / "sweeps" / "rates" / "logs").iterdir())) == 4

    before = state(workdir / "runs")
    status = call("status", workdir)
    assert status.code == 0
    assert status.out == done.out[: done.out.index("to compare: ")]
    assert call("sweep", swept, "--dry-run").out.count("2 finished\n") == 2
    again = call("sweep", swept)
    assert (again.code, again.out) == (0, done.out)
    assert state(workdir / "runs") == before


def test_status_of_several_sweeps(call: Any, swept: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        swept_again = ["--set", f"sweep.name={name}", "--set", "sweep.space={train.head_lr: [0.05]}"]
        assert call("sweep", swept, *swept_again, "--set", "train.epochs=1").code == 0
    both, one = call("status", tmp_path / "work"), call("status", tmp_path / "work", "--sweep", "one")
    assert ("sweep one, " in both.out, "sweep two, " in both.out) == (True, True)
    assert ("sweep one, " in one.out, "sweep two, " in one.out) == (True, False)
    other = call("status", tmp_path / "work", "--sweep", "three")
    assert other.code == 2
    assert "no sweep 'three' here (there are: one, two)" in other.refusal


def test_a_sweep_with_runs_that_failed(call: Any, swept: Path, tmp_path: Path) -> None:
    wild = [
        "--set",
        "sweep.space={train.head_lr: [0.05, 1.0e30]}",
        "--set",
        "train.clip=1.0e30",
        "--set",
        "train.batch_size=2",
    ]
    ended = call("sweep", swept, *wild)
    assert ended.code == 1
    assert "2 runs failed; the others are kept: call again to try them anew" in ended.refusal
    failed = [line for line in ended.out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert all("stopped; the checkpoint before it is kept" in line for line in failed)
    assert re.search(r"2 done, 0 running, 0 waiting, 2 failed, best [01]\.\d{4} by head_lr=0\.05", ended.out)
    assert "2 failed, best" in call("status", tmp_path / "work").out
    finished = state(tmp_path / "work" / "runs").items() & {
        (path, path.stat().st_mtime_ns) for path in tmp_path.glob("work/runs/*/result.json")
    }
    assert len(finished) == 2
    assert call("sweep", swept, *wild).code == 1
    assert finished <= state(tmp_path / "work" / "runs").items()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_metric_that_no_run_has(call: Any, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalemine.cli.LOG_INTERVAL", 0.02)
    for _ in range(2):  # also where results are there from the start
        ended = call("sweep", swept, "--set", "sweep.metric=held_out.f2")
        assert ended.code == 2
        assert re.search(r"sweep\.metric: held_out\.f2: run \S+ has no 'f2' there, but ", ended.refusal)
    assert "1 done" in call("status", tmp_path / "work").out
    assert call("sweep", swept).code == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.name=one"], "train.name: would give all runs one name"),
        (["sweep.concurrency=2"], "sweep.concurrency: 2 runs at a time want workers; give --executor ray"),
        (["sweep.space={train.lernrate: [1]}"], "train.lernrate: unknown key"),
        (["sweep.space={train.lr: {uniform: [0, 1]}}"], "a grid wants lists"),
        (["sweep.space={train.folds: [2, 3]}"], "train.folds"),
        (["train.train_uri=nowhere.parquet"], "no such file: nowhere.parquet"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_bad_input_of_sweeps(
    call: Any, swept: Path, tmp_path: Path, overrides: list[str], expected: str, dry_run: list[str]
) -> None:
    ended = call("sweep", swept, *dry_run, *(word for one in overrides for word in ("--set", one)))
    assert ended.code == 2
    assert expected in ended.refusal
    assert not (tmp_path / "work" / "runs").exists()


def test_status_of_a_folder_without_sweeps(call: Any, tmp_path: Path) -> None:
    ended = call("status", tmp_path)
    assert ended.code == 2
    assert f"{tmp_path}: no sweep here (expected sweeps/NAME/plan.json)" in ended.refusal


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Write labelled tweets, a tiny encoder, and the configuration of a quick classifier; return the last."""
    for name, number in (("train", 60), ("test", 30)):
        labels = [["fear"] if n % 2 else ["joy"] if n % 3 else [] for n in range(number)]
        words = {"fear": "fire near", "joy": "shop", "": "bus"}
        texts = [f"{words[one[0] if one else '']} {name} {n}" for n, one in enumerate(labels)]
        table = {"id": [f"{name}{n}" for n in range(number)], "text": texts, "labels": labels}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    write_bert(tmp_path / "bert", num_hidden_layers=1)
    train = {
        "model": "classifier", "train_uri": str(tmp_path / "train.parquet"), "name": "quick", "epochs": 2,
        "test_uris": {"test": str(tmp_path / "test.parquet")}, "max_length": 16, "lr": 3e-3, "head_lr": 0.01,
        "device": "cpu", "precision": "float32", "group_by": [], "dev_share": 0.3, "bootstrap": 10,
    }  # fmt: skip
    encoder = {"model": str(tmp_path / "bert"), "device": "cpu", "precision": "float32", "max_length": 16}
    settings = {"workdir": str(tmp_path / "work"), "train": train, "encoder": encoder, "compute": {"threads": 1}}
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(settings | {"baseline": {"trees": 10}}))
    return path


def test_train_evaluate_and_publish_a_classifier(call: Any, labelled: Path, tmp_path: Path) -> None:
    plan = call("train", labelled, "--dry-run")
    assert plan.code == 0
    assert "quick: 42 tweets, 18 of dev, 0 held out: to do" in plan.out
    assert not (tmp_path / "work").exists()
    trained = call("train", labelled)
    assert trained.code == 0
    assert re.search(r"^test +.*ROC", trained.out, re.MULTILINE)
    run = tmp_path / "work" / "runs" / "quick"
    for name in ("dev", "test"):
        assert (run / f"roc-{name}.png").read_bytes().startswith(b"\x89PNG")
    again = call("train", labelled)
    assert (again.code, again.out) == (0, trained.out)
    assert "quick: finished before" in again.err
    assert "0 held out: finished" in call("train", labelled, "--dry-run").out
    [result] = [read_json(run / "result.json")["metrics"]["test"]]
    scored = call("evaluate", run, tmp_path / "test.parquet", "--json", "--bootstrap", 10)
    [scores] = json.loads(scored.out).values()
    assert scored.code == 0
    assert scores["roc_auc"] == pytest.approx(result["roc_auc"], abs=1e-6)
    assert scores["micro_f1"] == pytest.approx(result["micro_f1"])
    shown = call("evaluate", run, tmp_path / "test.parquet", "--bootstrap", 10)
    assert shown.code == 0
    assert "fear" in shown.out and "joy" in shown.out
    nothing = call("publish", run)
    assert (nothing.code, "expected --onnx, --push NAME, or both" in nothing.refusal) == (2, True)


@pytest.mark.slow
def test_publish_writes_onnx(call: Any, labelled: Path, tmp_path: Path) -> None:
    assert call("train", labelled, "--set", "train.epochs=1").code == 0
    done = call("publish", tmp_path / "work" / "runs" / "quick", "--onnx")
    assert done.code == 0, done.err
    assert (tmp_path / "work" / "runs" / "quick" / "model" / "model.onnx").stat().st_size > 1_000


@pytest.mark.parametrize("model", ["logistic_regression", "random_forest"])
def test_train_a_baseline(
    call: Any, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    change = ("--set", f"train.model={model}")
    trained = call("train", labelled, *change)
    assert trained.code == 0, trained.err
    assert re.search(r"^test +.*ROC", trained.out, re.MULTILINE)
    assert len(list((tmp_path / "work").rglob("embeddings-*/*.arrow"))) == 2
    assert (tmp_path / "work" / "runs" / "quick" / "roc-test.png").exists()
    monkeypatch.setattr("scalemine.frozen.encode_corpus", lambda *_, **__: pytest.fail("embedded again"))
    other = call("train", labelled, *change, "--set", "train.name=other", "--set", "seed=1")
    assert other.code == 0, other.err
    assert (tmp_path / "work" / "runs" / "other" / "result.json").exists()


def test_a_model_on_words_is_trained_kept_and_evaluated(call: Any, labelled: Path, tmp_path: Path) -> None:
    trained = call("train", labelled, "--set", "train.model=naive_bayes", "--set", "baseline.features=tfidf")
    assert trained.code == 0, trained.err
    assert "models and results" in trained.out and "not kept" not in trained.out
    assert not list((tmp_path / "work").rglob("embeddings-*"))
    run = tmp_path / "work" / "runs" / "quick"
    scored = call("evaluate", run, tmp_path / "test.parquet", "--json", "--bootstrap", 10)
    assert scored.code == 0, scored.err
    [scores] = json.loads(scored.out).values()
    kept = read_json(run / "result.json")["metrics"]["test"]
    assert (scores["roc_auc"], scores["accuracy"]) == (kept["roc_auc"], kept["accuracy"])
    (run / "model" / "features.json").write_text("{}")
    assert "features.json: not the file that was written" in call("evaluate", run, tmp_path / "test.parquet").refusal


def test_a_model_on_embeddings_is_trained_evaluated_and_watches(
    call: Any, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = call("train", labelled, "--set", "train.model=logistic_regression")
    assert trained.code == 0, trained.err
    run = tmp_path / "work" / "runs" / "quick"
    scored = call("evaluate", run, tmp_path / "test.parquet", "--json", "--bootstrap", 10)
    assert scored.code == 0, scored.err
    [scores] = json.loads(scored.out).values()
    kept = read_json(run / "result.json")["metrics"]["test"]
    assert (scores["roc_auc"], scores["accuracy"]) == (kept["roc_auc"], kept["accuracy"])
    [row] = pq.read_table(run / "predictions" / "test.parquet").slice(2, 1).to_pylist()
    texts = {one["id"]: one["text"] for one in pq.read_table(tmp_path / "test.parquet").to_pylist()}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps({"id": row["id"], "text": texts[row["id"]]}) + "\n")
    watched = call("watch", run, tmp_path / "in", "--once")
    assert watched.code == 0, watched.err
    assert list(json.loads(watched.out)["probabilities"].values()) == pytest.approx(row["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "CONFIG", "--set", "labels.column=nowhere"], "train.train_uri: TRAIN: no column nowhere"),
        (["train", "CONFIG", "--set", "labels.columns=[text]"], "train.train_uri: TRAIN: "),
        (["train", "CONFIG", "--set", "labels.names=[riot]"], "no tweet bears the label 'riot'"),
        (
            ["train", "CONFIG", "--set", "train.test_uris={bad: BAD}"],
            "train.test_uris.bad: BAD: column labels holds '['",
        ),
        (["train", "CONFIG", "--set", "train.max_length=999"], "train.max_length: "),
        (["train", "CONFIG", "--set", "train.model=svm", "--set", "train.processes=2"], "train.processes: svm"),
        (["train", "CONFIG", "--set", "labels.threshold=2"], "labels.threshold"),
        (
            ["map", "CONFIG", "--set", "train.train_uri=FEW", "--set", "train.test_uris={}"],
            "FEW: a map needs at least 4 tweets, and there are 2",
        ),
        (["map", "CONFIG", "--set", "train.train_uri=nowhere.csv"], "nowhere.csv: matches no file"),
        (["publish", "CONFIG", "--push", "me/it"], "no such folder"),
    ],
)
def test_bad_input_of_classifiers(
    call: Any, labelled: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "bad.csv").write_text("id,text,labels\n1,a b,[\n")
    (tmp_path / "few.csv").write_text("id,text,labels\n1,a b,fear\n2,b c,\n")
    names = {
        "CONFIG": str(labelled), "TRAIN": str(tmp_path / "train.parquet"), "BAD": str(tmp_path / "bad.csv"),
        "FEW": str(tmp_path / "few.csv"),
    }  # fmt: skip

    def named(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    ended = call(*map(named, arguments))
    assert ended.code == 2, ended.err
    assert named(expected) in ended.refusal


def test_evaluate_refuses_tweets_without_the_models_labels(call: Any, labelled: Path, tmp_path: Path) -> None:
    assert call("train", labelled, "--set", "train.epochs=1").code == 0
    (tmp_path / "other.csv").write_text("id,text,labels\n1,a b,riot\n2,b c,\n")
    run = tmp_path / "work" / "runs" / "quick"
    ended = call("evaluate", run, tmp_path / "other.csv")
    assert ended.code == 2
    assert "no tweet bears one of the model's labels: fear, joy" in ended.refusal
    (tmp_path / "other.csv").write_text("id,text\n1,a b\n")
    ended = call("evaluate", run, tmp_path / "other.csv")
    assert ended.code == 2
    assert "other.csv: no column labels" in ended.refusal


def test_map_draws_the_training_tweets(
    call: Any, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalemine.training.multilabel import projection

    def on_a_line(vectors_ND: Any, *, seed: int, max_rows: int) -> projection.Projection:
        rows_M = projection.drawn_rows(len(vectors_ND), max_rows, seed)
        return projection.Projection(rows_M, vectors_ND[rows_M, :2].astype("float32"))

    monkeypatch.setattr(projection, "project", on_a_line)
    drawn = call("map", labelled, "--max", 25)
    assert drawn.code == 0, drawn.err
    assert drawn.out.startswith("25 tweets on ")
    page = (tmp_path / "work" / "map.html").read_text()
    texts = pq.read_table(tmp_path / "train.parquet")["text"].to_pylist()
    assert sum(text in page for text in texts) >= 25
    assert (tmp_path / "work" / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_map_by_umap(call: Any, labelled: Path, tmp_path: Path) -> None:
    drawn = call("map", labelled)
    assert drawn.code == 0, drawn.err
    assert {path.name for path in (tmp_path / "work").glob("map.*")} == {"map.html", "map.png"}


def test_score_of_files(call: Any, tmp_path: Path) -> None:
    (tmp_path / "gold.conll").write_text("van B-fire\nburns I-fire\n\nso O\nhungry O\n")
    (tmp_path / "found.conll").write_text("van B-fire\nburns O\n\nso O\nhungry B-fire\n")
    done = call("score", tmp_path / "gold.conll", tmp_path / "found.conll", "--json", "--bootstrap", 0)
    scores = json.loads(done.out)
    assert (scores["f1"], scores["num_predicted"], scores["overlap"]["credit"]) == (0.0, 2, 0.5)
    assert scores["false_alarms"]["no_gold"]["num_with_alarm"] == 1
    assert "false alarms" in call("score", tmp_path / "gold.conll", tmp_path / "found.conll").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "GOLD", "nowhere.parquet"], "PRED: no such file: nowhere.parquet"),
        (["score", "GOLD", "NOT_BIO"], "tag 'fire' of word 0 is not BIO"),
        (["score", "GOLD", "SHORT"], "1 tweets with words, expected the 40"),
        (["evaluate", "nowhere/at/all", "GOLD"], "nowhere/at/all: no such folder"),
        (["evaluate", ".", "GOLD"], "no tagger here"),
        (["train", "CONFIG", "--set", "train.train_uri=nowhere.parquet"], "no such file: nowhere.parquet"),
        (["train", "CONFIG", "--set", "train.folds=99"], "99 folds need as many groups"),
        (["train", "CONFIG", "--set", "train.lernrate=1"], "train.lernrate: unknown key"),
    ],
)
def test_bad_training_input(
    call: Any, tagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_bio.conll").write_text("van fire\n")
    (tmp_path / "short.conll").write_text("van B-fire\n")
    names = {"GOLD": "gold.parquet", "NOT_BIO": "not_bio.conll", "SHORT": "short.conll", "CONFIG": str(tagged)}
    ended = call(*(names.get(argument, argument) for argument in arguments))
    assert ended.code == 2
    assert expected in ended.refusal


def test_a_training_that_failed_says_so_in_one_line(call: Any, tagged: Path) -> None:
    ended = call("train", tagged, "--set", "train.head_lr=1.0e30", "--set", "train.clip=1.0e30")
    assert ended.code == 1
    assert "stopped; the checkpoint before it is kept" in ended.refusal


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = """
import sys, time
started = time.monotonic()
from scalemine.cli import main
sys.argv = ["scalemine", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "ray", "transformers", "sentence_transformers", "pyarrow", "duckdb", "scipy", "matplotlib"}
    print(sorted(heavy & sys.modules.keys()), time.monotonic() - started, file=sys.stderr)
"""
    for arguments in (["--help"], ["mine", "--help"]):
        seconds = []
        for _ in range(3):  # another process may have the cores at the moment
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
            assert done.returncode == 0
            assert "Usage: scalemine" in done.stdout
            loaded, second = done.stderr.rsplit(maxsplit=1)
            assert loaded == "[]"
            seconds.append(float(second))
            if seconds[-1] < 1.5:
                break
        assert min(seconds) < 1.5


@pytest.mark.parametrize(
    ("command", "executor", "number"),
    [
        ("mine", "inline", signal.SIGTERM),
        pytest.param("mine", "ray", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("mine", "inline", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("embed", "ray", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("embed", "inline", signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_embedding_keeps_what_was_finished(
    command: str, executor: str, number: signal.Signals, call: Any, write_config: Any, finished: Any, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    for stage in ("corpus", "anchors", "probe"):
        shutil.copytree(finished.workdir / stage, workdir / stage)
    config = write_config(workdir)
    called = [sys.executable, "-m", "scalemine", command, str(config), "--executor", executor]
    # Ray reads the token of its sessions once; that of the tests is not for this one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with subprocess.Popen(
        called, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while not list(workdir.glob("embeddings/*.arrow.json")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    assert f"{number.name}: finishing what is in flight, then stopping" in err
    assert err.splitlines()[-1].startswith("scalemine: stopped; what was finished is kept: call again")
    assert "Traceback" not in err
    assert out == ""
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("embeddings/*.arrow")}
    assert kept
    assert not (workdir / "negatives.parquet").exists()

    assert call(command, config).code == 0
    assert call("mine", config).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (workdir / "negatives.parquet").read_bytes() == (finished.workdir / "negatives.parquet").read_bytes()


@pytest.mark.slow
def test_shares_side_by_side_make_what_one_makes(call: Any, write_config: Any, finished: Any, tmp_path: Path) -> None:
    """Two processes that begin with nothing: one imports and the other waits for it."""
    workdir, config = tmp_path / "work", write_config()
    command = [sys.executable, "-m", "scalemine", "embed", str(config), "--set", "compute.threads=1", "--share"]
    both = [
        subprocess.Popen([*command, f"{share}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for share in range(2)
    ]
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("embeddings/*.arrow")}
    assert call("embed", config).code == 0
    for stage in ("corpus/shards", "embeddings"):
        names = sorted(path.name for path in (finished.workdir / stage).glob("*.[ap]*") if path.suffix != ".json")
        assert names == sorted(path.name for path in (workdir / stage).glob("*.[ap]*") if path.suffix != ".json")
        assert len(names) > 1
        for name in names:
            assert (workdir / stage / name).read_bytes() == (finished.workdir / stage / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # found, not made again


# A disk that is full, in earnest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that gives a disk of so many bytes, or gives the one that is there another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def give(size: int) -> Path:
        how = f"remount,size={size}" if folder.is_mount() else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield give
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)  # a process may be about to end


def used_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a disk")
@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    executor: str, call: Any, write_config: Any, finished: Any, small_disk: Any, request: pytest.FixtureRequest
) -> None:
    workdir = small_disk(2**26) / "work"
    for stage in ("corpus", "anchors", "probe"):
        shutil.copytree(finished.workdir / stage, workdir / stage)
    config = write_config(workdir)
    if executor == "ray":
        request.getfixturevalue("ray_session")
    # Room for a shard or two of four, and for what is small.
    shard = (finished.workdir / "embeddings" / "00000.arrow").stat().st_size
    small_disk(used_bytes(workdir) + 2 * shard + 100_000)
    ended = call("mine", config, "--executor", executor)
    assert ended.code == 1
    assert "the disk or its quota is full" in ended.refusal
    assert "make room and call again, what was finished is kept" in ended.refusal
    assert not list(workdir.rglob("*.tmp"))
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("embeddings/*.arrow.json")}
    assert 1 <= len(kept) < 4

    small_disk(2**26)
    assert call("mine", config, "--executor", executor).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (workdir / "negatives.parquet").read_bytes() == (finished.workdir / "negatives.parquet").read_bytes()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a disk")
def test_a_disk_that_is_full_at_the_import_is_one_line(call: Any, write_config: Any, small_disk: Any) -> None:
    workdir = small_disk(2**16) / "work"
    ended = call("mine", write_config(workdir))
    assert ended.code == 1
    assert "the disk or its quota is full" in ended.refusal
    small_disk(2**26)
    assert call("mine", write_config(workdir)).code == 0


def test_a_drill_that_has_failed_ends_with_1(call: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalemine import chaos

    plans: list[Any] = []

    def drills(_path: Path, overrides: list[str], planned: list[Any], **_: Any) -> Iterator[chaos.Drill]:
        plans.append((overrides, planned))
        struck = chaos.Struck(planned[0][1][0], "node 1", 1, 3, {})
        yield chaos.Drill(Path(), struck=[struck], equal=["negatives.parquet"])
        yield chaos.Drill(Path(), struck=[struck], equal=["negatives.parquet"], different=["review.parquet"])

    monkeypatch.setattr(chaos, "run_drills", drills)
    config = write_config()
    ended = call("chaos", config, "--kill", "node", "--at", "0.4", "--drills", "2", "--seed", "5", "--set", "seed=3")
    assert ended.code == 1
    assert ended.out.splitlines()[-1] == "1 of 2 passed"
    assert "DIFFERENT: review.parquet" in ended.out
    blow = chaos.Blow(chaos.Kill.node, 0.4)
    assert plans == [(["seed=3"], [(5, [blow]), (6, [blow])])]
    assert call("chaos", config, "--drills", "1").code == 0
    assert call("chaos", config, "--kill", "everything").code == 2
    assert call("chaos", config, "--at", "1.5").code == 2


def test_a_failure_is_not_a_bad_input(
    call: Any, write_config: Any, few_tweets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("scalemine.pipeline.run_import", fail)
    monkeypatch.setattr(sys, "argv", ["scalemine", "mine", str(write_config(corpus={"uri": str(few_tweets)}))])
    with pytest.raises(RuntimeError, match="a bug"):
        main()


def test_log_level_is_taken_from_the_environment(
    call: Any, tmp_path: Path, few_tweets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALEMINE_LOG", "error")
    ended = call("import", few_tweets, "--to", tmp_path / "corpus")
    assert (ended.code, ended.err) == (0, "")


def test_module_runs_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "scalemine", "mine", "/none.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("scalemine: /none.yaml: no such config file")
    assert json.dumps(done.stderr).count("\\n") == 1


# Comparisons


def test_compare_prints_and_writes(call: Any, tmp_path: Path) -> None:
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.8, 0.1)}, folds=2, seeds=(1,), positives=20)
    ended = call("compare", tmp_path, "--rounds", "200")
    assert ended.code == 0, ended.err
    assert "exp: 1 trial against random; 2 folds × 1 seed, 5 test sets" in ended.out
    folder = Workdir(tmp_path).sweeps / "exp"
    for name in ("comparison.md", "comparison.tex", "comparison.csv", "comparison.html"):
        assert (folder / name).exists()
    # Nothing is mined here, so there is no report.
    assert not Workdir(tmp_path).report.exists()
    ended = call("compare", tmp_path, "--base", "2s", "--rounds", "200", "--json")
    assert {"format": FORMAT, **json.loads(ended.out)} == read_json(folder / "comparison.json")
    assert json.loads(ended.out)["base"] == "2s_0"


def test_compare_refuses_in_one_line(call: Any, tmp_path: Path) -> None:
    ended = call("compare", tmp_path)
    assert (ended.code, "no sweep here" in ended.refusal) == (2, True)
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.8, 0.1)}, folds=0, seeds=(1,), positives=5)
    ended = call("compare", tmp_path, "--sweep", "other")
    assert (ended.code, "no sweep 'other' here (there are: exp)" in ended.refusal) == (2, True)
    ended = call("compare", tmp_path, "--base", "4s")
    assert (ended.code, "--base 4s: no trial or arm has this name" in ended.refusal) == (2, True)
    assert "arms: random | 2s" in ended.refusal
    shutil.rmtree(Workdir(tmp_path).runs)
    ended = call("compare", tmp_path)
    assert (ended.code, "no run of sweep exp is finished" in ended.refusal) == (2, True)


# Jobs


SUBMIT = ["submit", "embed"]


def test_submit_shows_what_it_would_send(call: Any, write_config: Any, tmp_path: Path) -> None:
    config = write_config()
    for target, expected in (
        ("slurm", "#SBATCH --nodes=4"),
        ("kubernetes", "kind: RayJob"),
        ("ray", "working_dir: "),
        ("local", "launcher=none"),
    ):
        options = [] if target == "local" else ["--profile", "4x8gpu"]
        options += ["--address", "http://10.0.0.1:8265"] if target == "ray" else []
        options += ["--set", "workdir=work"] if target == "kubernetes" else []
        ended = call("submit", "embed", config, "--to", target, *options, "--dry-run")
        assert ended.code == 0, ended.err
        assert expected in ended.out
        assert "\n# embed on " in ended.out
        assert "\n# no estimate: " in ended.out
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("command", ["train", "sweep", "rounds"])
def test_training_on_the_nodes_of_a_cluster_out_of_a_bucket_is_refused(
    command: str, call: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalemine.bucket.is_mirrored", lambda _: True)
    cluster = ("--set", "compute.executor=ray", "--set", "compute.address=10.0.0.1:6379")
    ended = call(command, write_config(), *cluster, "--set", "train.train_set=random")
    assert ended.code == 2
    assert "wants a disk that they share, not a bucket" in ended.refusal


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["submit", "report", "--to", "local"],
            "expected one of embed, filter, mine, index, rounds, train, sweep, ablate",
        ),
        ([*SUBMIT, "--to", "slurm", "--profile", "9gpu"], "--profile 9gpu: expected 1gpu, 4x8gpu, 8gpu, cpu"),
        (["submit", "mine", "--to", "slurm", "--array", "3"], "only embed is shared out"),
        ([*SUBMIT, "--to", "kubernetes"], "is not on the volume"),
        ([*SUBMIT, "--to", "ray"], "where is the cluster"),
        ([*SUBMIT, "--to", "local", "--set", "encoder.modell=x"], "encoder.modell: unknown key"),
        ([*SUBMIT, "--to", "local", "--profile", "4x8gpu"], "this is one machine"),
    ],
)
def test_bad_submissions(call: Any, write_config: Any, tmp_path: Path, arguments: list[str], expected: str) -> None:
    ended = call(*arguments[:2], write_config(), *arguments[2:])
    assert ended.code == 2
    assert expected in ended.refusal
    assert not (tmp_path / "work").exists()


def test_a_place_that_is_none(call: Any, write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for place, expected in (("slurm", "sbatch: not found here"), ("kubernetes", "kubectl: not found here")):
        ended = call(*SUBMIT, write_config(), "--to", place, "--set", "workdir=work", "--records", tmp_path / "records")
        assert (ended.code, expected in ended.refusal) == (2, True)
        assert not (tmp_path / "records").exists()
    ended = call(*SUBMIT, write_config(), "--to", "moon")
    assert ended.code == 2
    assert "moon" in ended.err and "Traceback" not in ended.err
    for command in ("status", "logs", "stop"):
        ended = call(command, "mine-20200101-000000-abcd")
        assert (ended.code, "no such job" in ended.refusal) == (2, True)


def test_a_job_and_its_status_logs_and_stop(
    call: Any, write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scalemine.cli.JOB_INTERVAL", 0.1)
    notes = fakes.use_fakes(tmp_path, monkeypatch)
    config = write_config()
    done = call(*SUBMIT, config, "--to", "local", "--wait")
    assert done.code == 0, done.err
    assert done.out.endswith("the stage speaks\n")
    name = re.match(r"job (\S+) was sent to local; scalemine status\|logs\|stop \1\n", done.out)
    assert name is not None
    for what in (name[1], tmp_path / "work" / "jobs" / f"{name[1]}.json", tmp_path / "work"):
        assert f"job {name[1]} (local): done, since 20" in call("status", what).out
    assert "the stage speaks" in call("logs", name[1]).out
    (notes / "code").write_text("1")
    failed = call(*SUBMIT, config, "--to", "local", "--wait")
    assert failed.code == 1
    assert failed.refusal.endswith(": failed")
    (notes / "lasting").touch()
    (notes / "stage").unlink()
    sent = call(*SUBMIT, config, "--to", "local").out.split()[1]
    fakes.until((notes / "stage").exists)
    assert "(local): running" in call("status", sent).out
    assert call("stop", sent).out == f"job {sent} was asked to stop\n"
    fakes.until(lambda: "(local): stopped" in call("status", sent).out)
    assert len(call("status", tmp_path / "work").out.splitlines()) == 3
    assert "no such job" in call("logs", "mine-1").refusal


def test_shares_of_an_embedding(call: Any, write_config: Any, finished: Any, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    for stage in ("corpus", "anchors", "probe"):
        shutil.copytree(finished.workdir / stage, workdir / stage)
    config = write_config(workdir)
    names = sorted(path.name for path in (finished.workdir / "embeddings").glob("*.arrow"))
    for share in range(2):
        ended = call("embed", config, "--share", f"{share}/2")
        assert ended.code == 0, ended.err
        assert f"share {share}/2: {len(names[share::2])} shard(s) are embedded" in ended.out
        made = sorted(path.name for path in (workdir / "embeddings").glob("*.arrow"))
        assert made == sorted(name for one in range(share + 1) for name in names[one::2])
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "embeddings").glob("*.arrow")}
    assert call("embed", config).code == 0  # finds all of them
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in names:
        assert (workdir / "embeddings" / name).read_bytes() == (finished.workdir / "embeddings" / name).read_bytes()
    for text, expected in (("2/2", "--share 2/2: expected I/N"), ("a", "expected I/N")):
        assert expected in call("embed", config, "--share", text).refusal
    assert "give --redo and --dry-run without it" in call("embed", config, "--share", "0/2", "--redo").refusal
