from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalemine import watch as module
from scalemine.config import CorpusConfig, InputError
from scalemine.executor import StopSignals
from scalemine.sources import Record, Reject
from scalemine.training.kept import load_model
from scalemine.training.predictions import load_predictor
from scalemine.watch import Follower, Tally, Watched, read_stream, run_watch
from training.trained import write_words

TWEETS = [
    {"id": "a", "text": "water rising, fire on the roof"},
    {"id": "b", "text": "happy dance 🔥 São Paulo"},
    {"id": "c", "text": "late bus"},
    {"id": "d", "text": 'she said "boat",\nand left'},
]
LINES = [json.dumps(tweet) for tweet in TWEETS]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_words(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def add(path: Path, content: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(content)


def read(follower: Follower, most: int = 100) -> list[tuple[str, str]]:
    return [
        (name, found.id if isinstance(found, Record) else f"line {found.line}: {found.reason}")
        for name, found in follower.read(most)
    ]


def follow(model: Path, folder: Path, to: Path, **more) -> Tally:
    watched = Watched(model, str(folder), to, **more)
    return run_watch(watched, load_predictor(model, min_probability=watched.min_probability), StopSignals(), once=True)


def answers(to: Path) -> list[dict]:
    return [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]


# Files


def test_lines_come_once_they_are_whole(folder):
    follower = Follower(folder, CorpusConfig())
    assert read(follower) == []
    add(folder / "x.jsonl", "\ufeff" + LINES[0] + "\n" + LINES[1][:9])
    assert read(follower) == [("x.jsonl", "a")]
    assert read(follower) == []
    add(folder / "x.jsonl", LINES[1][9:] + "\n\nno json\n" + LINES[2] + "\n")
    add(folder / ".hidden.jsonl", LINES[3] + "\n")
    (folder / "deep").mkdir()
    add(folder / "deep" / "y.ndjson", LINES[3] + "\n")
    assert read(follower) == [
        ("deep/y.ndjson", "d"), ("x.jsonl", "b"), ("x.jsonl", "line 4: broken JSON"), ("x.jsonl", "c")
    ]  # fmt: skip
    assert read(follower) == []


def test_a_file_of_another_content_is_read_from_its_beginning(folder):
    follower = Follower(folder, CorpusConfig())
    add(folder / "x.jsonl", LINES[0] + "\n" + LINES[1] + "\n")
    assert len(read(follower)) == 2
    (folder / "x.jsonl").write_text(LINES[2] + "\n")
    assert read(follower) == [("x.jsonl", "c")]
    # The same with more behind it, under a new inode, as rsync writes it.
    (folder / ".new").write_text(LINES[2] + "\n" + LINES[3] + "\n")
    (folder / ".new").rename(folder / "x.jsonl")
    assert read(follower) == [("x.jsonl", "d")]
    longer = "\n".join([json.dumps({"id": "z", "text": "z" * 200}), *LINES[:2]]) + "\n"
    (folder / "x.jsonl").write_text(longer)
    assert [id_ for _, id_ in read(follower)] == ["z", "a", "b"]


@pytest.mark.parametrize("most", [1, 2, 100])
def test_rows_of_tables(folder, most):
    follower, found = Follower(folder, CorpusConfig()), []
    add(folder / "x.csv", 'id,text\na,fire\nb,"she said ""boat"",\n')
    while some := read(follower, most):
        found += some
    assert found == [("x.csv", "a")]  # the second row is not whole
    add(folder / "x.csv", 'and left"\nc,one,two\nd,bus\ne,"bad" quote\nf,\nun')
    while some := read(follower, most):
        found += some
    assert [id_ for _, id_ in found] == [
        "a", "b", "line 5: broken CSV row", "d", "line 7: broken CSV row", "line 8: no text"
    ]  # fmt: skip


def test_a_quote_that_is_never_closed_costs_its_line(folder):
    follower = Follower(folder, CorpusConfig())
    add(folder / "x.tsv", 'id\ttext\na\t"fire\n')
    assert read(follower) == []
    add(folder / "x.tsv", "".join(f"b{row}\tbus\n" for row in range(120)))
    found = read(follower, 1_000)
    assert found[0] == ("x.tsv", "line 2: unclosed quote")
    assert [id_ for _, id_ in found[1:]] == [f"b{row}" for row in range(120)]


def test_a_line_over_the_cap_in_an_open_quote_hides_no_line(folder):
    follower = Follower(folder, CorpusConfig(max_record_bytes=1_024))
    add(folder / "t.csv", 'id,text\n1,"never closed\n2,a boat\n3,' + "x" * 3_000 + "\n4,late\n")
    rows = read(follower)
    assert [row for _, row in rows] == ["line 2: unclosed quote", "2", "line 4: record over the cap", "4"]
    assert read(follower) == []


@pytest.mark.parametrize("most", [1, 100])
def test_a_file_that_fails_in_the_middle_loses_nothing(folder, monkeypatch, most):
    follower = Follower(folder, CorpusConfig())
    add(folder / "x.jsonl", LINES[0] + "\n" + LINES[1] + "\n" + LINES[2] + "\n")
    whole, calls = module.read_json_line, []

    def fail(*given):
        calls.append(given)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return whole(*given)

    monkeypatch.setattr(module, "read_json_line", fail)
    found = [id_ for _ in range(6) for _, id_ in read(follower, most)]
    add(folder / "x.jsonl", LINES[3] + "\n")  # it is passed over until it changes
    found += [id_ for _ in range(6) for _, id_ in read(follower, most)]
    assert found == ["a", "b", "c", "d"]


def test_lines_over_the_cap_are_told_of_once(folder):
    follower = Follower(folder, CorpusConfig(max_record_bytes=1_024))
    add(folder / "x.jsonl", "x" * 3_000)
    assert read(follower) == [("x.jsonl", "line 1: record over the cap")]
    add(folder / "x.jsonl", "x" * 3_000 + "\n" + LINES[0] + "\n")
    assert read(follower) == [("x.jsonl", "a")]


def test_parquet_files_new_and_grown(folder):
    follower = Follower(folder, CorpusConfig())
    (folder / "x.parquet").write_bytes(b"PAR1 not whole yet")
    assert read(follower) == []
    pq.write_table(pa.Table.from_pylist(TWEETS[:2]), folder / "x.parquet")
    assert read(follower, 1) == [("x.parquet", "a")]
    assert read(follower, 1) == [("x.parquet", "b")]
    assert read(follower) == read(follower) == []
    pq.write_table(pa.Table.from_pylist(TWEETS), folder / "x.parquet")
    # By a follower that goes on from what was kept.
    again = Follower(folder, CorpusConfig(), json.loads(json.dumps(follower.places)))
    assert [id_ for _, id_ in read(again)] == ["c", "d"]


def test_a_file_without_a_text_is_passed_over_until_it_changes(folder, caplog):
    follower = Follower(folder, CorpusConfig())
    add(folder / "x.csv", "id,words\na,fire\n")
    add(folder / "y.jsonl", LINES[0] + "\n")
    with caplog.at_level(logging.WARNING, "scalemine"):
        assert read(follower) == [("y.jsonl", "a")]
        assert read(follower) == []
    assert len([one for one in caplog.records if "no text column found" in one.message]) == 1


def test_a_restart_neither_skips_nor_repeats(model, folder, tmp_path):
    to = tmp_path / "out.jsonl"
    add(folder / "x.jsonl", LINES[0] + "\n" + LINES[1] + "\nbroken\n")
    assert follow(model, folder, to) == Tally(tweets=2, bad=1)
    whole = to.read_bytes()
    # Killed after it wrote, and before it noted that.
    to.write_bytes(whole + b'{"id": "c", "labels": []}\n{"id": "d", "la')
    add(folder / "x.jsonl", LINES[2] + "\n" + LINES[3] + "\n")
    assert follow(model, folder, to) == Tally(tweets=2)
    assert follow(model, folder, to) == Tally()
    assert to.read_bytes().startswith(whole)
    found = answers(to)
    assert [one["id"] for one in found] == list("abcd")
    expected = load_model(model)
    for one, tweet in zip(found, TWEETS, strict=True):
        assert one["labels"] == list(expected.classify([tweet["text"]])[0])
        scores = expected.scores([tweet["text"]])[0].tolist()
        assert list(one["probabilities"].values()) == [round(score, 6) for score in scores]


def test_an_output_of_others_is_refused(model, folder, tmp_path):
    to = tmp_path / "out.jsonl"
    add(folder / "x.jsonl", LINES[0] + "\n")
    follow(model, folder, to)
    with pytest.raises(InputError, match="made with another --min-probability"):
        follow(model, folder, to, min_probability=0.1)
    to.write_bytes(b"")
    with pytest.raises(InputError, match="has 0 bytes"):
        follow(model, folder, to)
    (tmp_path / "other.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match="not from following a folder"):
        follow(model, folder, tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_text() == "mine\n"
    for wrong, said in ((folder / "out.jsonl", "lies in the folder"),):
        with pytest.raises(InputError, match=said):
            follow(model, folder, wrong)
    with pytest.raises(InputError, match="no such folder"):
        Watched(model, str(tmp_path / "none"))


def test_a_tweet_that_breaks_the_model_costs_itself_alone(model, folder, tmp_path):
    predictor = load_predictor(model)
    read_texts = predictor.read

    def picky(texts):
        if any("bus" in text for text in texts):
            raise RuntimeError("no buses")
        return read_texts(texts)

    object.__setattr__(predictor, "read", picky)
    add(folder / "x.jsonl", "\n".join(LINES) + "\n")
    watched = Watched(model, str(folder), tmp_path / "out.jsonl")
    assert run_watch(watched, predictor, StopSignals(), once=True) == Tally(tweets=3, bad=1)
    assert [one["id"] for one in answers(tmp_path / "out.jsonl")] == ["a", "b", "d"]


# Streams


def test_a_stream_is_answered_as_it_comes():
    out, into = os.pipe()
    came = read_stream(out, CorpusConfig(max_record_bytes=1_024), StopSignals())
    os.write(into, (LINES[0] + "\n" + LINES[1][:5]).encode())
    assert [found.id for _, found in next(came)] == ["a"]  # while the stream is open
    os.write(into, (LINES[1][5:] + "\n[1]\n" + "x" * 5_000 + "\n" + LINES[2]).encode())
    threading.Timer(0.2, os.close, (into,)).start()
    rest = [found for batch in came for _, found in batch]
    os.close(out)
    assert [found.id for found in rest if isinstance(found, Record)] == ["b", "c"]
    assert [(one.line, one.reason) for one in rest if isinstance(one, Reject)] == [
        (3, "JSON array, expected one object a line"), (4, "record over the cap")
    ]  # fmt: skip


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "scalemine", "watch", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_pipe_a_signal_and_a_reader_that_goes(model, folder, tmp_path):
    piped, gone, following = start(model), start(model), start(model, folder, "--to", tmp_path / "out.jsonl")
    assert gone.stdout and gone.stdin
    gone.stdout.close()
    gone.stdin.write((LINES[0] + "\n").encode())
    gone.stdin.flush()
    out, said = piped.communicate(("\n".join([*LINES, "broken"])).encode(), timeout=200)
    assert piped.returncode == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == list("abcd")
    assert b"stdin, line 5: broken JSON" in said
    assert said.endswith(b"4 tweets, 1 bad lines\n")
    assert gone.wait(timeout=200) == 0
    assert gone.stderr is not None
    assert b"roken" not in gone.stderr.read()
    add(folder / "x.jsonl", LINES[0] + "\n")
    until = time.monotonic() + 200
    while not (tmp_path / "out.jsonl.state").exists() and time.monotonic() < until:
        time.sleep(0.1)
    following.send_signal(signal.SIGTERM)
    _, said = following.communicate(timeout=200)
    assert following.returncode == 0
    assert b"1 tweets, 0 bad lines" in said
    assert [one["id"] for one in answers(tmp_path / "out.jsonl")] == ["a"]
