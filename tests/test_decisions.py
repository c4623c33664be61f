from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.config import InputError
from scalemine.decisions import Decision, append_decision, read_decisions
from scalemine.text import duplicate_key

# Everything that a file of tweets can hold, and what ends a line in some places and not in others.
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["a\nb", "a\u2028b", "a\x85b", "🔥", ""])
ENTRIES = st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.sampled_from(list(Decision))), max_size=8)


def append(path, text, decision=Decision.yes, tweet_id="7", class_name="traffic"):
    append_decision(path, text, tweet_id=tweet_id, class_name=class_name, decision=decision)


@given(entries=ENTRIES)
@settings(max_examples=60, deadline=None)
def test_what_is_appended_is_read_and_the_last_wins(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("decisions") / "decisions.jsonl"
    expected = {}
    for text, tweet_id, class_name, decision in entries:
        append(path, text, decision, tweet_id, class_name)
        expected[duplicate_key(text)] = decision
    assert read_decisions(path) == expected
    if entries:
        lines = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
        assert [(line["id"], line["class_name"], line["decision"]) for line in lines] == [one[1:] for one in entries]


@given(entries=ENTRIES.filter(bool), data=st.data())
@settings(max_examples=60, deadline=None)
def test_half_a_line_is_ignored_and_cut_off(entries, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("decisions") / "decisions.jsonl"
    for text, tweet_id, class_name, decision in entries:
        append(path, text, decision, tweet_id, class_name)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    num_lines = path.read_bytes().count(b"\n")
    expected = {duplicate_key(text): decision for text, _, _, decision in entries[:num_lines]}
    assert read_decisions(path) == expected
    append(path, "the next one", Decision.no)
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:num_lines]))
    assert path.read_bytes().count(b"\n") == num_lines + 1
    assert read_decisions(path) == expected | {duplicate_key("the next one"): Decision.no}


def test_a_line_says_all_but_the_text(tmp_path):
    path = tmp_path / "decisions.jsonl"
    append(path, "Bus crashed into a shop", Decision.skip)
    entry = json.loads(path.read_text())
    assert list(entry) == ["key", "id", "class_name", "decision", "time"]
    assert entry["key"] == duplicate_key("bus crashed into a shop https://t.co/x").hex()
    assert entry["decision"] == "skip"
    assert timedelta(seconds=-2) < datetime.now(UTC) - datetime.fromisoformat(entry["time"]) < timedelta(minutes=5)
    assert "crashed" not in path.read_text()


def test_no_file_holds_no_decision(tmp_path):
    assert read_decisions(tmp_path / "decisions.jsonl") == {}


GOOD = b'{"key": "00", "decision": "yes"}'


@pytest.mark.parametrize(
    "line",
    [
        b"", b"nonsense", b"7", b"null", b"[]", b'"key"', b'{"key": "00"}', b'{"decision": "yes"}', b"\xff",
        b'{"key": "0", "decision": "yes"}', b'{"key": 7, "decision": "yes"}', b'{"key": "00", "decision": "maybe"}',
        b'{"key": "00", "decision": ["yes"]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    with pytest.raises(InputError, match=r"decisions\.jsonl, line 2: not a decision .*yes, no, skip"):
        read_decisions(path)


def test_each_line_is_synced_after_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "decisions.jsonl"
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    append(path, "one")
    append(path, "two")
    lines = path.read_bytes().splitlines(keepends=True)
    assert sizes == [len(lines[0]), len(lines[0] + lines[1])]


def test_what_is_not_synced_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "decisions.jsonl"
    append(path, "one")
    before = path.read_bytes()

    def fail(number):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr(os, "fsync", fail)
        append(path, "two", Decision.no)
    assert path.read_bytes() == before
    append(path, "three", Decision.no)
    assert list(read_decisions(path).values()) == ["yes", "no"]


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_whole_lines(tmp_path):
    path = tmp_path / "decisions.jsonl"
    append(path, "one")
    size = path.stat().st_size
    code = (
        "import resource, signal, sys, pathlib\n"
        "from scalemine.decisions import Decision, append_decision\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 20}, {resource.RLIM_INFINITY}))\n"
        "try:\n"
        "    append_decision(pathlib.Path(sys.argv[1]), 'two', tweet_id='', class_name='', decision=Decision.no)\n"
        "except OSError as error:\n"
        "    sys.exit(f'refused {error.errno}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stderr.startswith("refused "), done.stderr
    assert path.stat().st_size == size


def test_threads_and_processes_write_whole_lines(tmp_path):
    path = tmp_path / "decisions.jsonl"
    code = (
        "import sys, pathlib\n"
        "from scalemine.decisions import Decision, append_decision\n"
        "for number in range(40):\n"
        "    append_decision(pathlib.Path(sys.argv[1]), f'process {number}', tweet_id='x' * 500, class_name='', "
        "decision=Decision.no)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    threads = [
        threading.Thread(target=lambda name=name: [append(path, f"{name} {number}") for number in range(20)])
        for name in ("left", "right")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait(60) == 0
    found = read_decisions(path)
    assert len(found) == path.read_bytes().count(b"\n") == 80
    assert found[duplicate_key("process 39")] == "no"
    assert found[duplicate_key("left 19")] == "yes"
