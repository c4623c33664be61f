from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from scalemine.cli import main
from scalemine.config import Config, InputError
from scalemine.executor import InlineExecutor
from scalemine.lease import hold_workdir
from scalemine.pipeline import Run
from scalemine.search import SCHEMA, Query, SearchResult, print_hits, run_index, run_search, write_hits
from scalemine.shards import matrix, matrix_column, read_arrow, write_arrow

TEXT = "a truck crashed into a shop on the high street"


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Take back what the command line does to the logger of this process."""
    logger = logging.getLogger("scalemine")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command in this process, and returns its exit code and what it said."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scalemine", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def write_config(settings_of: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the configuration of a workdir; without positives, which no search needs."""

    def write(workdir: Path, **sections: Any) -> Path:
        path = tmp_path / "config.yaml"
        values = settings_of(workdir, **sections)
        del values["positives"]
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config(write_config: Any, finished: Any) -> Path:
    """The configuration of the finished run, whose workdir must stay as it is."""
    path: Path = write_config(finished.workdir)
    return path


@pytest.fixture(scope="module")
def rows(finished: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Text and vector of each row of the corpus, by id."""
    found = {}
    for path in sorted(finished.workdir.glob("embeddings/*.arrow")):
        table = read_arrow(path)
        texts = pq.read_table(finished.workdir / "corpus" / "shards" / f"{path.stem}.parquet")["text"].to_pylist()
        vectors = matrix(table["vector"])[0].astype(np.float64)
        found |= dict(zip(table["id"].to_pylist(), zip(texts, vectors, strict=True), strict=True))
    return found


@pytest.fixture(scope="module")
def run(settings_of: Any, finished: Any) -> Run:
    """A run that only looks, with its encoder loaded once."""
    return Run(Config.model_validate(settings_of(finished.workdir)), InlineExecutor(), make=False)


def state(workdir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [workdir, *workdir.rglob("*")]}


def nearest(rows: dict[str, tuple[str, np.ndarray]], vector: np.ndarray, k: int, but: str = "") -> list[str]:
    """The ids of highest cosine; to more digits than the search has."""
    cosines = {id_: float(other @ vector) / float(np.linalg.norm(other)) for id_, (_, other) in rows.items()}
    return sorted((id_ for id_ in rows if id_ != but), key=lambda id_: -cosines[id_])[:k]


def agree(found: list[str], wanted: list[str]) -> bool:
    """Whether two lists are alike but for rows whose cosines differ by less than the grid, or not at all."""
    return len(found) == len(wanted) and len(set(found) & set(wanted)) >= 0.9 * len(wanted)


# Searching


def test_a_text_finds_its_nearest_rows(run: Run, rows: Any) -> None:
    result = run_search(run, texts=[TEXT], k=20)
    [vector] = run.float32_encoder.encode_texts([TEXT])
    assert agree(result.hits["id"].to_pylist(), nearest(rows, vector, 20))
    for hit in result.hits.to_pylist():
        text, other = rows[hit["id"]]
        assert hit["text"] == text
        assert hit["cosine"] == pytest.approx(float(other @ vector) / float(np.linalg.norm(other)), abs=1e-3)
    assert result.hits["rank"].to_pylist() == list(range(1, 21))
    assert (np.diff(result.hits["cosine"].to_numpy()) <= 0).all()


def test_a_row_is_no_hit_of_its_own(run: Run, rows: Any) -> None:
    for id_ in list(rows)[::400]:
        result = run_search(run, likes=[id_], k=10)
        found = result.hits["id"].to_pylist()
        assert id_ not in found
        assert agree(found, nearest(rows, rows[id_][1] / np.linalg.norm(rows[id_][1]), 10, but=id_))
        [query] = result.queries
        assert (query.id, query.text) == (id_, rows[id_][0])


def test_each_query_is_answered_as_if_alone(run: Run, rows: Any, tmp_path: Path) -> None:
    (tmp_path / "queries.csv").write_text('id,text\nA,"fire, in the hall"\nB,my phone is dying\n')
    like = list(rows)[7]
    whole = run_search(run, texts=[TEXT, "flood"], file=tmp_path / "queries.csv", likes=[like, like], k=4)
    assert [query.id for query in whole.queries] == ["1", "2", "A", "B", like, like]
    assert whole.counts == [4] * 6
    alone = [
        run_search(run, texts=[TEXT], k=4), run_search(run, texts=["flood"], k=4),
        run_search(run, texts=["fire, in the hall"], k=4), run_search(run, texts=["my phone is dying"], k=4),
        run_search(run, likes=[like], k=4), run_search(run, likes=[like], k=4),
    ]  # fmt: skip
    columns = ["rank", "id", "text", "cosine"]
    assert whole.hits.select(columns) == pa.concat_tables([one.hits.select(columns) for one in alone])


def test_more_hits_than_rows(run: Run, rows: Any) -> None:
    result = run_search(run, texts=[TEXT], likes=[next(iter(rows))], k=10**6)
    assert result.counts == [len(rows), len(rows) - 1]


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("q.txt", "fire\nflood\n", ["q.txt:1", "q.txt:2"]),
        ("q.jsonl", '{"id": 5, "text": "fire"}\n{"id": "x", "text": "flood"}\n', ["5", "x"]),
        ("q.tsv", "text\tid\nfire\ta\nflood\tb\n", ["a", "b"]),
        ("q.parquet", None, ["a", "b"]),
    ],
)
def test_files_of_queries(run: Run, tmp_path: Path, name: str, content: str | None, ids: list[str]) -> None:
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.table({"text": ["fire", "flood"], "id": ["a", "b"]}), path)
    else:
        path.write_text(content)
    result = run_search(run, file=path, k=2)
    assert result.queries == [Query(ids[0], "fire"), Query(ids[1], "flood")]
    assert result.hits["query_id"].to_pylist() == [ids[0]] * 2 + [ids[1]] * 2


def test_a_query_that_is_cut_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run_search(run, texts=["fire " * 100], k=1)
    assert "1 of 1 queries are longer than the 24 tokens that the encoder reads" in caplog.text


def test_a_row_without_a_vector_is_no_query(settings_of: Any, copy_of_finished: Callable[..., Path], rows: Any) -> None:
    workdir = copy_of_finished()
    path = workdir / "embeddings" / "00000.arrow"
    table = read_arrow(path)
    id_ = table["id"][0].as_py()
    vectors, valid = matrix(table["vector"])
    valid[0] = False
    write_arrow(path, table.set_column(1, "vector", matrix_column(vectors, valid)))
    manifest = path.with_name(path.name + ".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"bytes": path.stat().st_size}))
    looking = Run(Config.model_validate(settings_of(workdir)), InlineExecutor(), make=False)
    with pytest.raises(InputError, match=f"--like {id_}: the row could not be encoded"):
        run_search(looking, likes=[id_], k=3)
    other = list(rows)[1]
    assert id_ not in run_search(looking, likes=[other], k=len(rows)).hits["id"].to_pylist()


# The command line


def test_json(call: Any, config: Path, finished: Any) -> None:
    before = state(finished.workdir)
    with hold_workdir(Path(finished.workdir)):
        holding = state(finished.workdir)
        code, out, _ = call("search", config, TEXT, "-k", 3, "--json")  # beside a run that holds the workdir
        assert state(finished.workdir) == holding
    assert code == 0
    found = json.loads(out)
    assert found["queries"] == [{"query_id": "1", "query": TEXT, "is_row": False}]
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert {key for hit in found["hits"] for key in hit} == {"query_id", "query", "rank", "id", "text", "cosine"}
    assert {hit["query"] for hit in found["hits"]} == {TEXT}
    assert state(finished.workdir).keys() == before.keys() | {finished.workdir / ".lock"}


def test_table(call: Any, config: Path, rows: Any) -> None:
    like = list(rows)[3]
    code, out, _ = call("search", config, "fire [bold]", "--like", like, "-k", 2)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert lines[0] == "fire [bold]"
    assert lines[1].split() == ["rank", "cosine", "id", "text"]
    assert [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert lines[5].startswith(f"{like}: ")
    assert len(lines) == 10


def test_hits_in_a_file(call: Any, config: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("fire\nflood\n")
    code, out, _ = call("search", config, "--queries", tmp_path / "q.txt", "--to", tmp_path / "hits.parquet", "-k", 5)
    assert (code, out) == (0, f"10 hits of 2 queries in {tmp_path / 'hits.parquet'}\n")
    table = pq.read_table(tmp_path / "hits.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["query_id"].to_pylist() == ["q.txt:1"] * 5 + ["q.txt:2"] * 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to search for; give a text, --like ID or --queries FILE"),
        (["fire", "-k", "0"], "-k: expected a number from 1, got 0"),
        (["fire", "  "], "query 2 is empty"),
        (["--like", "no such row"], "--like no such row: no row of the corpus has this id; they look like "),
        (["--queries", "none.csv"], "--queries none.csv: matches no file"),
        (["--queries", "empty.txt"], "--queries empty.txt: the file is empty"),
        (["--queries", "gap.jsonl"], "--queries gap.jsonl: line 2: no text"),
        (["--queries", "words.csv"], "words.csv: no text column found; name it text; it has: word, number"),
        (["fire", "--to", "hits.csv"], "--to hits.csv: expected a name that ends in .parquet"),
        (["fire", "--to", "gap.jsonl/hits.parquet"], "--to gap.jsonl/hits.parquet: cannot be written"),
        (["fire", "--set", "encoder.max_length=32"], "encoder.max_length was 24, is 32"),
        (["fire", "--set", "index.kind=hnsw"], "index.kind: Input should be 'exact', 'ivf', 'sq8' or 'ivf_sq8'"),
        (["fire", "--set", "index.kind=ivf"], "no finished index here (0 of 4 shards); scalemine index CONFIG makes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    call: Any, config: Path, finished: Any, tmp_path: Path, monkeypatch: Any, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("gap.jsonl").write_text('{"text": "fire"}\n{"text": ""}\n')
    Path("words.csv").write_text("word,number\nfire,1\n")
    before = state(finished.workdir)
    code, out, err = call("search", config, *arguments)
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if " INFO " not in line]
    assert len(said) == 1
    assert said[0].startswith("scalemine: ")
    assert expected in said[0]
    assert state(finished.workdir) == before


def test_near_ids_are_named(run: Run, rows: Any) -> None:
    id_ = list(rows)[5]
    with pytest.raises(InputError, match="there is .*"):
        run_search(run, likes=[id_[:-1].upper()], k=1)


def test_embeddings_that_are_not_finished(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(copy_of_finished("00002.arrow.json"))
    code, _, err = call("search", config, "fire")
    assert code == 2
    assert "embeddings: no finished embeddings here (3 of 4 shards); scalemine embed CONFIG makes them" in err
    code, _, err = call("search", write_config(tmp_path / "nothing"), "fire")
    assert code == 2
    assert "no imported corpus and no embeddings here; scalemine embed CONFIG makes them" in err
    assert not (tmp_path / "nothing").exists()


def test_tweets_are_not_obeyed() -> None:
    text = "[red]up[/red]\n\x1b[31m\u202edown " * 30
    hits = pa.Table.from_pylist(
        [{"query_id": "1", "rank": rank, "id": "[b]\x07" * 40, "text": text, "cosine": 0.5} for rank in (1, 2)],
        schema=SCHEMA,
    )
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        print_hits(console, SearchResult([Query("1", "[i]q\x1b[2J"), Query("2", "none")], hits, [2, 0]))
    out = captured.get()
    assert not {"\x1b", "\u202e", "\x07"} & set(out)
    assert "[red]up[/red]" in out
    assert "[i]q␛[2J" in out
    assert len([line for line in out.splitlines() if "0.500" in line]) == 2
    assert max(map(len, out.splitlines())) <= 80


def test_hits_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_hits(SearchResult([], SCHEMA.empty_table(), []), tmp_path / "file" / "hits.parquet")


# The index


def test_index_is_made_used_and_refused(
    call: Any, write_config: Any, copy_of_finished: Callable[..., Path], rows: Any
) -> None:
    workdir = copy_of_finished()
    config = write_config(workdir, index={"kind": "ivf_sq8", "lists": 8, "probes": 8})
    code, out, _ = call("index", config)
    assert (code, out) == (0, f"{len(rows):,} tweets are indexed in {workdir / 'index'} (ivf_sq8)\n")
    before = state(workdir / "index")
    code, out, _ = call("search", config, TEXT, "-k", 10, "--json")
    approximate = [hit["id"] for hit in json.loads(out)["hits"]]
    code, out, _ = call("search", config, TEXT, "-k", 10, "--json", "--set", "index.kind=exact")
    assert len(set(approximate) & {hit["id"] for hit in json.loads(out)["hits"]}) >= 9
    assert call("search", config, TEXT, "--set", "index.probes=1")[0] == 0
    assert call("index", config)[0] == 0
    assert state(workdir / "index") == before
    # Another one is refused by who would use it and by who would make it, unless it is to be discarded.
    for command in (["search", config, TEXT], ["index", config], ["index", config, "--dry-run"]):
        code, _, err = call(*command, "--set", "index.lists=9")
        assert code == 2
        assert "index: made with another configuration (index.lists was 8, is 9)" in err
        assert state(workdir / "index") == before
    assert call("index", config, "--set", "index.lists=9", "--redo")[0] == 0
    assert call("search", config, TEXT, "--set", "index.lists=9")[0] == 0


def test_index_of_other_embeddings_is_refused(settings_of: Any, copy_of_finished: Callable[..., Path]) -> None:
    workdir = copy_of_finished()
    run = Run(Config.model_validate(settings_of(workdir, index={"kind": "sq8"})), InlineExecutor())
    run_index(run)
    mark = workdir / "index" / "stage.json"
    now = json.loads(mark.read_text())
    mark.write_text(json.dumps(now | {"inputs": {"embeddings": "of another model"}}))
    with pytest.raises(InputError, match='made with another configuration .embeddings was "of another model", is '):
        run_search(run, texts=[TEXT], k=1)


def test_exact_needs_no_index(call: Any, config: Path) -> None:
    code, _, err = call("index", config)
    assert code == 2
    assert "index.kind is exact" in err
