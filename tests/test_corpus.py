from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import damage
from scalemine.config import CorpusConfig, InputError
from scalemine.corpus import Corpus, check_import, import_corpus, open_corpus
from scalemine.store import read_json, write_json

TWEETS = [
    {"id": "11", "text": "Flood in the city centre, stay away", "lang": "en"},
    {"id": "12", "text": "Inundación en el centro 🌊 “evítenlo”", "lang": "es"},
    {"id": "13", "text": 'A "quoted" text, with\ta tab', "lang": None},
    {"id": "14", "text": "Flood in the city centre, stay away", "lang": "de"},
    {"id": "15", "text": " spaces around ", "lang": "en"},
]


def compress(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def as_jsonl(tweets: list[dict]) -> bytes:
    return "".join(json.dumps(tweet) + "\n" for tweet in tweets).encode()


def as_csv(tweets: list[dict], delimiter: str = ",") -> bytes:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["id", "text", "lang"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(tweets)
    return table.getvalue().encode()


def as_parquet(tweets: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(tweets), sink)
    return sink.getvalue().to_pybytes()


def make(folder: Path, content: bytes | list[dict], name: str = "in/tweets.jsonl", **settings: object) -> Corpus:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_jsonl(content) if isinstance(content, list) else content)
    return import_corpus(CorpusConfig(uri=str(path), **settings), folder / "out")


def rows(corpus: Corpus) -> list[dict]:
    return [row for shard in corpus.shards for row in corpus.read(shard).to_pylist()]


def ids(corpus: Corpus) -> list[str]:
    return [row["id"] for row in rows(corpus)]


def digests(corpus: Corpus) -> dict[str, str]:
    files = sorted(path for path in corpus.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(corpus.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(corpus: Corpus, rows_per_shard: int = 16_384) -> None:
    """Check what holds for every corpus."""
    counts = corpus.counts
    assert counts["read"] == counts["accepted"] + counts["rejected"]
    assert counts["accepted"] == corpus.num_rows == len(rows(corpus))
    rejects = pq.read_table(corpus.rejects)
    assert rejects.schema.names == ["source", "line", "reason", "excerpt"]
    assert rejects.num_rows == counts["rejected"]
    assert Counter(rejects["reason"].to_pylist()) == counts["rejected_by_reason"]
    for key in ("read", "accepted", "rejected"):
        assert sum(source[key] for source in counts["by_source"].values()) == counts[key]
    assert len(set(ids(corpus))) == corpus.num_rows
    shards_of_text: dict[str, set[str]] = {}
    runs: list[str] = []
    last = None
    for shard in corpus.shards:
        texts = corpus.read(shard, ["text"])["text"].to_pylist()
        assert len(texts) == shard.num_rows
        assert hashlib.sha256(shard.path.read_bytes()).hexdigest() == shard.sha256
        for text in texts:
            shards_of_text.setdefault(text, set()).add(shard.name)
        runs += [text for before, text in zip([last, *texts], texts, strict=False) if text != before]
        last = texts[-1]
    copies = Counter(row["text"] for row in rows(corpus))
    assert all(len(shards) == 1 for text, shards in shards_of_text.items() if copies[text] <= rows_per_shard)
    assert all(shard.num_rows <= 2 * rows_per_shard for shard in corpus.shards)
    left = corpus.num_rows
    for shard in corpus.shards[:-1]:
        assert shard.num_rows >= min(rows_per_shard, max(4_096, left // 16))
        left -= shard.num_rows
    assert len(runs) == len(set(runs)), "copies of a text lie apart"
    assert counts["copies"] == corpus.num_rows - len(shards_of_text)
    names = {path.name for path in corpus.folder.iterdir()}
    assert names == {"corpus.json", "rejects.parquet", "shards", "stage.json"}
    assert {path.name for path in (corpus.folder / "shards").iterdir()} == {shard.path.name for shard in corpus.shards}


# Content


FORMATS = {
    "t.jsonl": as_jsonl(TWEETS),
    "t.ndjson": as_jsonl(TWEETS),
    "t.json": as_jsonl(TWEETS),
    "t.csv": as_csv(TWEETS),
    "t.tsv": as_csv(TWEETS, "\t"),
    "t.parquet": as_parquet(TWEETS),
    **{
        f"t.jsonl{ending}": compress(as_jsonl(TWEETS), codec)
        for ending, codec in ((".gz", "gzip"), (".zst", "zstd"), (".bz2", "bz2"))
    },
    "t.csv.gz": compress(as_csv(TWEETS), "gzip"),
    "t.TSV.ZST": compress(as_csv(TWEETS, "\t"), "zstd"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_corpus(tmp_path, name):
    corpus = make(tmp_path, FORMATS[name], name, keep=["lang"])
    check(corpus)
    expected = [TWEETS[place] for place in (0, 3, 1, 2, 4)]
    null = "" if ".csv" in name or ".tsv" in name.lower() else None
    assert rows(corpus) == [{**tweet, "lang": tweet["lang"] or null} for tweet in expected]
    assert corpus.columns == ("id", "text", "lang")
    assert corpus.read(corpus.shards[0]).schema == pa.schema(
        {"id": pa.string(), "text": pa.string(), "lang": pa.string()}
    )
    assert corpus.counts["copies"] == 1


def test_plain_text(tmp_path):
    corpus = make(tmp_path, "\n".join(tweet["text"] for tweet in TWEETS).encode(), "t.txt")
    check(corpus)
    assert rows(corpus)[1] == {"id": "t.txt:4", "text": TWEETS[0]["text"]}


def test_awkward_texts_come_through(tmp_path):
    texts = ["a\r\nb", "nul \0 inside", "a\u2028b", "e\u0301", "é", "🏳️‍🌈" * 500, "'; DROP TABLE staged; --", "A", "a"]
    corpus = make(tmp_path, [{"id": i, "text": text} for i, text in enumerate(texts)])
    check(corpus)
    assert [row["text"] for row in rows(corpus)] == texts


def test_awkward_names_come_through(tmp_path):
    corpus = make(
        tmp_path / "it's [1] *",
        [{"a'b": 1, "seq": "x", **TWEETS[0]}],
        'in/we\'ird "name".jsonl',
        keep=["seq", "a'b", "ID"],
    )
    assert rows(corpus) == [{"id": "11", "text": TWEETS[0]["text"], "seq": "x", "a'b": "1", "ID": None}]


def test_the_first_row_of_an_id_wins(tmp_path):
    for name, tweets in {
        "b.jsonl": [{"id": 1, "text": "late"}, {"id": 3, "text": "same"}],
        "a.jsonl": [{"id": 1, "text": "first"}, {"id": 2, "text": "same"}, {"id": 1, "text": "again" * 50}],
    }.items():
        (tmp_path / name).write_bytes(as_jsonl(tweets))
    corpus = import_corpus(CorpusConfig(uri=f"{tmp_path}/*.jsonl"), tmp_path / "out")
    check(corpus)
    assert [(row["id"], row["text"]) for row in rows(corpus)] == [("1", "first"), ("2", "same"), ("3", "same")]
    assert pq.read_table(corpus.rejects).to_pylist() == [
        {"source": "a.jsonl", "line": 3, "reason": "duplicate id", "excerpt": ("again" * 50)[:120]},
        {"source": "b.jsonl", "line": 1, "reason": "duplicate id", "excerpt": "late"},
    ]
    assert corpus.counts["by_source"]["b.jsonl"] == {"read": 2, "accepted": 1, "rejected": 1}


def test_many_duplicate_ids_are_warned_about(tmp_path, caplog):
    make(tmp_path, TWEETS)
    assert not caplog.records
    make(tmp_path / "many", [*TWEETS, {"id": "11", "text": "another text"}])
    assert "1 of 6 records have an id that was there before" in caplog.text


def test_a_rejected_copy_moves_nothing(tmp_path):
    """The first occurrence of a text counts only if its row is accepted."""
    tweets = [("1", "x"), ("1", "copied"), ("2", "y"), ("3", "copied"), ("4", "z"), ("5", "copied")]
    corpus = make(tmp_path, [{"id": id, "text": text} for id, text in tweets])
    check(corpus)
    assert ids(corpus) == ["1", "2", "3", "5", "4"]


@pytest.mark.parametrize("rows_per_shard", [1, 3, 7, 1000])
def test_copies_lie_together_in_one_shard(tmp_path, rows_per_shard):
    chance = random.Random(rows_per_shard)
    texts = [f"text {chance.choice([chance.randrange(20), chance.randrange(1000)])}" for _ in range(600)]
    corpus = make(tmp_path, [{"id": i, "text": text} for i, text in enumerate(texts)], rows_per_shard=rows_per_shard)
    check(corpus, rows_per_shard)
    # The slow way: a group for each text, in the order of first occurrence.
    groups: dict[str, list[str]] = {}
    for number, text in enumerate(texts):
        groups.setdefault(text, []).append(str(number))
    assert ids(corpus) == [id for group in groups.values() for id in group]
    sizes: list[int] = []
    for group in groups.values():
        for place in range(len(group)):
            if not sizes or sizes[-1] == 2 * rows_per_shard or (place == 0 and sizes[-1] >= rows_per_shard):
                sizes.append(0)
            sizes[-1] += 1
    assert [shard.num_rows for shard in corpus.shards] == sizes


@pytest.mark.parametrize("place", [0, 60, 200])
def test_a_text_of_many_copies_makes_no_giant_shard(tmp_path, monkeypatch, place):
    monkeypatch.setattr("scalemine.corpus._STAGING_ROWS", 64)  # the copies come in several batches
    texts = [f"text {number}" for number in range(200)]
    texts[place:place] = ["again"] * 1_000
    corpus = make(tmp_path, [{"id": i, "text": text} for i, text in enumerate(texts)], rows_per_shard=50)
    check(corpus, 50)
    assert ids(corpus) == [str(number) for number in range(1_200)]
    assert corpus.counts["copies"] == 999
    assert max(shard.num_rows for shard in corpus.shards) == 100
    # Nine shards of copies alone, one or two that they share, and the others.
    assert len(corpus.shards) <= 1_000 // 100 + 200 // 50 + 1


def test_rows_come_through_many_batches_in_order(tmp_path):
    tweets = [{"id": number, "text": f"text {number % 49_999}"} for number in range(50_000)]
    corpus = make(tmp_path, tweets, rows_per_shard=20_000)
    check(corpus, 20_000)
    assert ids(corpus) == [str(number) for number in (0, 49_999, *range(1, 49_999))]
    assert [shard.num_rows for shard in corpus.shards] == [4_096] * 12 + [848]


@pytest.mark.parametrize("rows_per_shard", [1_000, 5_000, 7_000])
def test_shards_become_smaller_towards_the_end(tmp_path, rows_per_shard):
    tweets = [{"id": number, "text": f"text {number}"} for number in range(120_000)]
    corpus = make(tmp_path, tweets, rows_per_shard=rows_per_shard)
    check(corpus, rows_per_shard)
    sizes = [shard.num_rows for shard in corpus.shards]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == rows_per_shard
    # Eight workers that each take the next shard when they are free: the last one ends soon after the first.
    ends = [0] * 8
    for size in sizes:
        ends[ends.index(min(ends))] += size
    assert max(ends) - min(ends) <= min(rows_per_shard, 4_096)
    assert min(sizes[:-1]) == min(rows_per_shard, 4_096)


@pytest.mark.parametrize("seed", range(5))
def test_a_messy_folder_adds_up(tmp_path, seed):
    chance = random.Random(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        tweets = [{"id": str(chance.randrange(300)), "text": f"text {chance.randrange(50)}"} for _ in range(60)]
        ending = chance.choice([".jsonl", ".csv", ".parquet", ".txt"])
        content = {".csv": as_csv, ".parquet": as_parquet}.get(ending, as_jsonl)(tweets)
        lines = content.split(b"\n")
        for _ in range(chance.randrange(15)):
            if ending != ".parquet":
                lines.insert(chance.randrange(1, len(lines)), chance.randbytes(chance.randrange(60)))
        content = b"\n".join(lines)
        if ending != ".parquet" and chance.random() < 0.5:
            content, ending = compress(content, "gzip"), ending + ".gz"
        if chance.random() < 0.2:
            content = content[: len(content) // 2]
        (folder / f"{number}{ending}").write_bytes(content)
    config = CorpusConfig(uri=str(folder), rows_per_shard=50)
    corpus = import_corpus(config, tmp_path / "out")
    check(corpus, 50)
    again = import_corpus(config, tmp_path / "again")
    assert digests(again) == digests(corpus)


@pytest.mark.parametrize(
    ("num_files", "num_records"),
    [(25, 80), pytest.param(250, 400, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["2,000", "100,000"],
)
def test_damaged_files_are_imported_or_refused(tmp_path, num_files, num_records):
    endings = [".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".csv.zst", ".txt.bz2", ".json"]
    read = refused = 0
    for seed in range(num_files):
        chance = random.Random(seed)
        ending = endings[seed % len(endings)]
        form, _, codec = ending[1:].partition(".")
        tweets = [
            {"id": str(chance.randrange(10**6)), "text": f'tweet "{chance.randrange(50)}", caf\u00e9 \U0001f525'}
            for _ in range(num_records)
        ]
        content = {
            "csv": as_csv, "tsv": lambda rows: as_csv(rows, "\t"), "parquet": as_parquet,
        }.get(form, as_jsonl)(tweets)  # fmt: skip
        if form == "parquet":
            content = damage(content, chance)
        else:
            lines = content.split(b"\n")
            content = b"\n".join(damage(line, chance) if chance.random() < 0.4 and line else line for line in lines)
        if codec:
            content = compress(content, {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[codec])
            content = damage(content, chance, 1) if chance.random() < 0.3 else content
        path = tmp_path / f"in{seed}" / f"t{ending}"
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            corpus = import_corpus(CorpusConfig(uri=str(path), rows_per_shard=100), tmp_path / f"out{seed}")
        except InputError as error:
            assert "\n" not in str(error), seed
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {ending}: {error}") from error
        else:
            check(corpus, 100)
            read += corpus.counts["read"]
    assert read > num_files * num_records / 2
    assert refused < num_files / 2


@pytest.mark.parametrize("num_seeds", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_corpus_is_read_or_refused(tmp_path, num_seeds):
    whole = make(tmp_path, TWEETS, rows_per_shard=2)
    expected, refused = rows(whole), 0
    files = sorted(path for path in whole.folder.rglob("*") if path.suffix in {".json", ".parquet"})
    assert {path.name for path in files} >= {"corpus.json", "stage.json", "00000.parquet"}
    config = CorpusConfig(uri=str(tmp_path / "in" / "tweets.jsonl"), rows_per_shard=2)
    for seed in range(num_seeds):
        chance = random.Random(seed)
        path = chance.choice(files)
        content = path.read_bytes()
        path.write_bytes(damage(content, chance))
        try:
            corpus = open_corpus(whole.folder)
            found = [row for shard in corpus.shards for row in corpus.read(shard).to_pylist()]
            check_import(config, whole.folder)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path.name}: {error!r}") from error
        else:
            assert found == expected or path.suffix == ".json", seed
        path.write_bytes(content)
    assert num_seeds / 4 < refused < num_seeds


@pytest.mark.parametrize("name", ["../../00000", "/etc/00000", "..", "", 5])
def test_a_corpus_names_nothing_outside_its_folder(tmp_path, name):
    corpus = make(tmp_path, TWEETS)
    facts = read_json(corpus.folder / "corpus.json")
    facts["shards"][0]["name"] = name
    write_json(corpus.folder / "corpus.json", facts)
    with pytest.raises(InputError, match=r"corpus.json: damaged .* is no name of a shard"):
        open_corpus(corpus.folder)


def test_rejects_say_where_and_why(tmp_path):
    corpus = make(tmp_path, as_jsonl(TWEETS[:1]) + b"\xff\n{\n" + as_jsonl([{"id": 5}]), "in/t.jsonl")
    check(corpus)
    assert pq.read_table(corpus.rejects).to_pylist() == [
        {"source": "t.jsonl", "line": 2, "reason": "not UTF-8", "excerpt": "\ufffd"},
        {"source": "t.jsonl", "line": 3, "reason": "broken JSON", "excerpt": "{"},
        {"source": "t.jsonl", "line": 4, "reason": "no text", "excerpt": '{"id": 5}'},
    ]


def test_a_broken_file_costs_only_itself(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(compress(bytes(20 * 2**20), "gzip"))
    (folder / "b.jsonl.zst").write_bytes(compress(as_jsonl(TWEETS), "zstd")[:-1])
    (folder / "c.parquet").write_bytes(b"PAR1 it is not")
    (folder / "d.jsonl").write_bytes(as_jsonl(TWEETS))
    corpus = import_corpus(CorpusConfig(uri=str(folder)), tmp_path / "out")
    check(corpus)
    assert corpus.num_rows == 5
    assert set(corpus.counts["rejected_by_reason"]) >= {
        "decompression over the ratio cap",
        "broken compressed stream",
        "broken Parquet file",
    }


# Import and import again


def test_a_finished_import_is_opened(tmp_path):
    corpus = make(tmp_path, TWEETS)
    before = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
    assert make(tmp_path, TWEETS) == corpus == open_corpus(tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
    assert pq.read_table(corpus.rejects).num_rows == 0
    assert corpus.fingerprint == make(tmp_path / "other", TWEETS).fingerprint
    assert corpus.fingerprint != make(tmp_path / "third", TWEETS[:4]).fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [("keep", ["lang"]), ("rows_per_shard", 2), ("max_text_chars", 50), ("id", "id"), ("text", "text")],
)
def test_other_settings_are_refused_by_name(tmp_path, key, value):
    make(tmp_path, TWEETS)
    with pytest.raises(InputError, match=rf"corpus\.{key} was"):
        make(tmp_path, TWEETS, **{key: value})
    config = CorpusConfig(uri=str(tmp_path / "in" / "tweets.jsonl"), **{key: value})
    corpus = import_corpus(config, tmp_path / "out", redo=True)
    check(corpus, config.rows_per_shard)
    assert corpus.num_rows == 5
    assert ("lang" in corpus.columns) == (key == "keep")


def test_other_files_are_refused_by_name(tmp_path):
    make(tmp_path, TWEETS)
    with pytest.raises(InputError, match=r"tweets\.jsonl was"):
        make(tmp_path, TWEETS[:2])


KILLED = """
import os, signal, sys
from pathlib import Path
from scalemine.config import CorpusConfig
from scalemine import corpus
uri, folder, moment = sys.argv[1:]
num_rows = 0
cut_shards = corpus._cut_shards

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_in_second_file(rows):
    global num_rows
    num_rows += rows
    if num_rows > 1500:
        kill()

def kill_after_two_shards(*arguments):
    for number, table in enumerate(cut_shards(*arguments)):
        if number == 2:
            kill()
        yield table

def kill_after_commit(path, **_):
    if (path.parent / "corpus.json").exists():
        kill()

if moment == "shards":
    corpus._cut_shards = kill_after_two_shards
if moment == "commit":
    corpus.shutil.rmtree = kill_after_commit
on_rows = kill_in_second_file if moment == "reading" else None
config = CorpusConfig(uri=uri, rows_per_shard=500)
corpus.import_corpus(config, Path(folder), on_rows=on_rows)
"""


@pytest.mark.parametrize(
    ("moment", "num_read_again"), [("reading", [1000, 1000, 1000]), ("shards", [1000] * 3), ("commit", [])]
)
def test_a_killed_import_goes_on(tmp_path, moment, num_read_again):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        tweets = [{"id": number * 900 + i, "text": f"text {i % 800}"} for i in range(1000)]
        (folder / f"{number}.jsonl").write_bytes(as_jsonl(tweets))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), moment]
    killed = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    staged = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".staging").glob("*.parquet")}
    assert len(staged) == {"reading": 1}.get(moment, 3)
    assert (tmp_path / "out" / "corpus.json").exists() == (moment == "commit")

    config = CorpusConfig(uri=str(folder), rows_per_shard=500)
    num_read: list[int] = []
    kept: dict[Path, int] = {}

    def look(number: int) -> None:
        num_read.append(number)
        kept.update({path: path.stat().st_mtime_ns for path in staged})

    corpus = import_corpus(config, tmp_path / "out", on_rows=look)
    check(corpus, 500)
    assert num_read == num_read_again
    assert not num_read or kept == staged
    assert digests(corpus) == digests(import_corpus(config, tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (duckdb.IOException('Could not write file "x.duckdb": No space left on device'), True),
        (duckdb.OutOfMemoryException("failed to offload data block of size 256.0 KiB"), True),
        (duckdb.IOException("Could not read from file: Input/output error"), False),
    ],
)
def test_a_disk_that_the_database_fills_is_said_and_the_next_call_goes_on(tmp_path, monkeypatch, error, is_full):
    (tmp_path / "in.jsonl").write_bytes(as_jsonl([{"id": i, "text": f"text {i}"} for i in range(20)]))
    config = CorpusConfig(uri=str(tmp_path / "in.jsonl"))

    def fail(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("scalemine.corpus._find_repeats", fail)
        with pytest.raises(OSError if is_full else duckdb.IOException) as caught:
            import_corpus(config, tmp_path / "out")
    assert (getattr(caught.value, "errno", None) == errno.ENOSPC) == is_full
    assert import_corpus(config, tmp_path / "out").num_rows == 20


# Input that is refused


def test_an_empty_corpus_says_why(tmp_path):
    content = as_jsonl([{"body": "x"}, {"body": "y"}]) + b"{\n"
    with pytest.raises(InputError) as error:
        make(tmp_path, content)
    assert "empty corpus: 3 records read, none usable; most often: no text (2 times)" in str(error.value)
    assert str(tmp_path / "out" / "rejects.parquet") in str(error.value)
    assert pq.read_table(tmp_path / "out" / "rejects.parquet").num_rows == 3
    with pytest.raises(InputError, match="empty corpus"):
        make(tmp_path, content)
    with pytest.raises(InputError, match="empty corpus: 0 records read"):
        make(tmp_path / "other", b"\n")


def test_columns_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(TWEETS))
    (tmp_path / "b.csv").write_bytes(b"id,body\n1,x\n")
    read: list[int] = []
    with pytest.raises(InputError, match="b.csv: no text column found"):
        import_corpus(CorpusConfig(uri=f"{tmp_path}/*.*"), tmp_path / "out", on_rows=read.append)
    assert read == []


@pytest.mark.parametrize("keep", [["id"], ["a", "a"], ["text"]])
def test_columns_are_kept_once(tmp_path, keep):
    with pytest.raises(InputError, match=r"corpus\.keep: .* twice"):
        make(tmp_path, TWEETS, keep=keep)


def test_a_folder_is_not_imported_into_itself(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(TWEETS))
    with pytest.raises(InputError, match=r"choose a workdir outside"):
        import_corpus(CorpusConfig(uri=str(tmp_path)), tmp_path / "run" / "corpus")


def test_there_must_be_a_corpus_to_open(tmp_path):
    with pytest.raises(InputError, match="no imported corpus"):
        open_corpus(tmp_path)
    corpus = make(tmp_path, TWEETS)
    corpus.shards[0].path.unlink()
    with pytest.raises(InputError, match="shard is gone"):
        open_corpus(corpus.folder)


def test_a_look_says_what_an_import_says_and_writes_nothing(tmp_path):
    corpus = make(tmp_path, TWEETS)
    files = digests(corpus)
    good = CorpusConfig(uri=str(tmp_path / "in" / "tweets.jsonl"))
    check_import(good, corpus.folder)
    check_import(good, tmp_path / "new")
    for other in (
        CorpusConfig(uri=good.uri, rows_per_shard=2),
        CorpusConfig(uri=good.uri, keep=["id"]),
        CorpusConfig(uri=str(tmp_path / "none.csv")),
        CorpusConfig(uri=str(corpus.folder), keep=["user"]),
        CorpusConfig(uri=str(tmp_path)),
    ):
        with pytest.raises(InputError) as looked:
            check_import(other, corpus.folder)
        with pytest.raises(InputError) as imported:
            import_corpus(other, corpus.folder)
        assert str(looked.value) == str(imported.value)
    assert digests(corpus) == files
    assert not (tmp_path / "new").exists()


# Corpora elsewhere


def test_an_imported_corpus_is_used_in_place(tmp_path):
    first = make(tmp_path, as_jsonl(TWEETS) + b"broken\n", keep=["lang"])
    config = CorpusConfig(uri=str(first.folder), keep=["lang"])
    second = import_corpus(config, tmp_path / "second")
    assert second.shards == first.shards
    assert (second.counts, second.columns, second.folder) == (first.counts, first.columns, tmp_path / "second")
    assert second.rejects.read_bytes() == first.rejects.read_bytes()
    assert sorted(path.name for path in second.folder.iterdir()) == ["corpus.json", "rejects.parquet", "stage.json"]
    assert import_corpus(config, tmp_path / "second") == second
    third = import_corpus(CorpusConfig(uri=str(second.folder)), tmp_path / "third")
    assert third.shards == first.shards
    with pytest.raises(InputError, match=r"corpus\.keep: user is not in the imported corpus"):
        import_corpus(CorpusConfig(uri=str(first.folder), keep=["user"]), tmp_path / "fourth")
    with pytest.raises(InputError, match="choose a workdir outside"):
        import_corpus(config, first.folder, redo=True)


def test_file_uris(tmp_path):
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "t.jsonl").write_bytes(as_jsonl(TWEETS))
    corpus = import_corpus(CorpusConfig(uri=f"file://{tmp_path}/with%20space"), tmp_path / "out")
    check(corpus)
    assert corpus.num_rows == 5
    assert list(corpus.counts["by_source"]) == ["t.jsonl"]
