from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine import sources
from scalemine.config import CorpusConfig, InputError
from scalemine.sources import Record, Reject, find_sources, read_records


def compress(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def read(path: Path, content: bytes | None = None, **settings: object) -> list[Record | Reject]:
    if content is not None:
        path.write_bytes(content)
    config = CorpusConfig(uri=str(path), **settings)
    return [found for source in find_sources(config.uri) for found in read_records(source, config)]


def read_json(tmp_path: Path, *values: object, **settings: object) -> list[Record | Reject]:
    return read(tmp_path / "t.jsonl", "\n".join(map(json.dumps, values)).encode(), **settings)


def texts(found: list[Record | Reject]) -> list[str]:
    return [record.text for record in found if isinstance(record, Record)]


def rejects(found: list[Record | Reject]) -> list[tuple[int, str]]:
    return [(reject.line, reject.reason) for reject in found if isinstance(reject, Reject)]


# Finding files


def names(*uris: object) -> list[str]:
    return [source.name for source in find_sources([str(uri) for uri in uris])]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a/2.csv.gz", "a/1.txt", ".hidden.jsonl", "_SUCCESS", "_temporary/x.jsonl", "README.md"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(b"")
    return tmp_path / "f"


def test_folders_are_searched_in_order_without_hidden_and_unknown_files(folder):
    assert names(folder) == ["a/1.txt", "a/2.csv.gz", "b.jsonl"]
    assert names(f"file://{folder}") == names(folder)


def test_files_globs_and_the_order_of_uris(folder):
    assert names(folder / "b.jsonl") == ["b.jsonl"]
    assert names(folder / "b.jsonl", folder / "a") == ["b.jsonl", "a/1.txt", "a/2.csv.gz"]
    assert names(f"{folder}/a/*") == ["1.txt", "2.csv.gz"]
    assert names(f"{folder}/**/*.txt", folder / "a" / "1.txt") == ["1.txt"]


def test_names_in_brackets_are_files_before_they_are_globs(tmp_path):
    (tmp_path / "x[1].txt").write_text("hello")
    assert names(tmp_path / "x[1].txt") == ["x[1].txt"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nothing.jsonl", "matches no file (paths are taken from"),
        ("nothing-*.jsonl", "matches no file"),
        ("README.md", "unknown file ending; expected .jsonl"),
        ("x.parquet.gz", "unknown file ending"),
        ("foo://bucket/x", "cannot be reached: Unrecognized filesystem type"),
        ("hdfs://nowhere:1/x", "check the bucket's name, your credentials and the network"),
    ],
)
def test_uris_that_lead_nowhere(folder, monkeypatch, uri, message):
    monkeypatch.chdir(folder)
    (folder / "x.parquet.gz").write_bytes(b"")
    with pytest.raises(InputError) as error:
        find_sources([uri])
    assert message in str(error.value)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_fingerprint_sees_both_ends_and_the_size(tmp_path):
    path = tmp_path / "x.txt"
    content = bytearray(b"x" * 200_000)
    found = set()
    for change in (None, 0, 199_999):
        if change is not None:
            content[change] = ord("y")
        path.write_bytes(content)
        found.add(find_sources([str(path)])[0].fingerprint())
    path.write_bytes(content + b"y")
    found.add(find_sources([str(path)])[0].fingerprint())
    assert len(found) == 4


def test_a_file_that_cannot_be_opened(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"hello")
    [source] = find_sources([str(path)])
    path.unlink()
    with pytest.raises(InputError, match="x.txt: cannot be read"):
        source.fingerprint()


def test_a_file_that_fails_to_be_read_is_no_broken_file(tmp_path, monkeypatch):
    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError("the network is down")

    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "hello"}'))
    monkeypatch.setattr(sources._Raw, "__init__", lambda self, file: self.__dict__.update(_file=Failing(), error=None))
    with pytest.raises(OSError, match="the network is down"):
        read(path)


# JSON


def test_flat_objects(tmp_path):
    found = read_json(
        tmp_path,
        {"id": 1234567890123456789, "text": "one"},
        {"id_str": "7", "id": 6.9, "full_text": "two", "text": "tw…"},
        {"tweet": "three"},
        {"id": 123456789012345678901234567890, "tweet_text": "four", "score": 1.5},
        {"id": "", "text": "a\r\nb "},
    )
    assert [(record.id, record.text) for record in found] == [
        ("1234567890123456789", "one"),
        ("7", "two"),
        ("t.jsonl:3", "three"),
        ("123456789012345678901234567890", "four"),
        ("t.jsonl:5", "a\r\nb "),
    ]


def test_v1_objects(tmp_path):
    found = read_json(
        tmp_path,
        {"id_str": "1", "text": "cut…", "truncated": True, "extended_tweet": {"full_text": "the whole text"}},
        {
            "id_str": "2",
            "text": "RT @a: cut…",
            "retweeted_status": {
                "text": "cut…",
                "user": {"screen_name": "a"},
                "extended_tweet": {"full_text": "the whole retweeted text"},
            },
        },
        {"id_str": "3", "full_text": "RT @a: short", "retweeted_status": {"text": "x", "user": {"screen_name": "a"}}},
        {"id_str": "4", "full_text": "RT @a: cut…", "retweeted_status": {"full_text": "nobody's"}},
    )
    assert texts(found) == ["the whole text", "RT @a: the whole retweeted text", "RT @a: short", "RT @a: cut…"]


def test_v2_objects(tmp_path):
    found = read_json(
        tmp_path,
        {"data": {"id": "1", "text": "one", "lang": "en"}, "includes": {"place": "x"}},
        {"data": [{"id": "2", "text": "tw…", "note_tweet": {"text": "two"}}, {"text": "no id"}, 5]},
        {"data": []},
        {"data": {"of": "another kind"}, "id": "4", "text": "flat"},
        keep=("lang", "includes.place"),
    )
    assert found == [
        Record(1, "1", "one", ("en", "x")),
        Record(2, "2", "two", (None, None)),
        Record(2, "t.jsonl:2.2", "no id", (None, None)),
        Reject(2, sources.NO_TEXT, found[3].excerpt),
        Record(4, "4", "flat", (None, None)),
    ]


def test_named_columns_win_and_may_be_paths(tmp_path):
    tweet = {"id": 1, "text": "no", "body": {"text": "yes"}, "user": {"id": 7, "tags": ["a", {"b": "ü"}]}, "x.y": True}
    found = read_json(
        tmp_path, tweet, {"text": "no"}, text="body.text", id=["user.id", "id"], keep=["user.tags", "x.y", "user.no"]
    )
    assert found[0] == Record(1, "7:1", "yes", ('["a", {"b": "ü"}]', "true", None))
    assert rejects(found) == [(2, sources.NO_TEXT)]


def test_a_composite_id_is_whole_or_not_at_all(tmp_path):
    found = read_json(tmp_path, {"a": 1, "b": 2, "text": "x"}, {"a": 1, "text": "y"}, id=["a", "b"])
    assert [record.id for record in found] == ["1:2", "t.jsonl:2"]


def test_json_rejects(tmp_path):
    lines = [
        b'[{"id": 1,',
        b'{"id": 1, "text": "good"}',
        b'{"id": 2, "text": "cut',
        b'{"id": 3}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"text": " \\t "}',
        b'{"text": 5}',
        b"",
        b'{"text": "caf\xe9"}',
        b'{"text": "half \\ud83d"}',
        b"\xff\xfe\x00",
        b"5",
        b'[{"text": "x"}]',
        b'{"text": "' + b"x" * 60 + b'"}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        b"[" * 1000,
        b'{"id": 4, "text": "unused faults are forgiven", "other": NaN, "name": "\\ud83d\xe9"}\r',
    ]
    found = read(tmp_path / "t.jsonl", b"\n".join(lines), max_text_chars=50, max_record_bytes=1024)
    assert texts(found) == ["good", "unused faults are forgiven"]
    assert rejects(found) == [
        (1, sources.JSON_ARRAY),
        (3, sources.BROKEN_JSON),
        *[(line, sources.NO_TEXT) for line in (4, 5, 6, 7, 8)],
        *[(line, sources.NOT_UTF8) for line in (10, 11, 12)],
        (13, sources.BROKEN_JSON),
        (14, sources.JSON_ARRAY),
        (15, sources.LONG_TEXT),
        (16, sources.LONG_RECORD),
        (17, sources.BROKEN_JSON),
    ]
    assert found[2].excerpt == '{"id": 2, "text": "cut'
    assert found[8].excerpt == '{"text": "caf�"}'
    assert found[-3].excerpt == lines[-3][:120].decode()


def test_deep_nesting_breaks_nothing(tmp_path):
    deep = b'{"text": "x", "id": 1e30, "a": ' + b'{"retweeted_status": ' * 900 + b"1" + b"}" * 900 + b"}"
    [found] = read(tmp_path / "t.jsonl", deep, keep="a")
    assert found.text == "x"


# Lines


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_plain_text(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
    lines = [b"first", b"  spaces are kept ", b"", b"x" * 3000, b"\xe9", b"nul \0", b"last"]
    if block > 2:
        lines[0] = b"\xef\xbb\xbf" + lines[0]
    found = read(tmp_path / "t.txt", end.join(lines), max_record_bytes=1024)
    assert texts(found) == ["first", "  spaces are kept ", "nul \0", "last"]
    assert rejects(found) == [(3, sources.NO_TEXT), (4, sources.LONG_RECORD), (5, sources.NOT_UTF8)]
    assert found[0].id == "t.txt:1"


def test_files_of_one_name_have_different_ids(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("hello")
    assert [record.id for record in read(tmp_path)] == ["a/x.txt:1", "b/x.txt:1"]


# Tables


def test_csv(tmp_path):
    content = (
        b"\xef\xbb\xbfid,text,lang\r\n"
        b'1,"two\r\nlines, ""quoted""",en\r\n'
        b"2,too,many,fields\r\n"
        b"\r\n"
        b"3,too few\r\n"
        b'4,"broken "quote",en\r\n'
        b"5,caf\xe9,en\r\n"
        b"6,,en\r\n"
        b"7,nul \0,\r\n"
        b'8,"' + b"x" * 200_000 + b'",en\r\n'
        b'9,"never closed,en\r\n10,swallowed,en\r\n'
    )
    found = read(tmp_path / "t.csv", content, keep=["lang", "absent"], max_text_chars=300_000)
    assert found[0] == Record(2, "1", 'two\r\nlines, "quoted"', ("en", None))
    assert [record.id for record in found if isinstance(record, Record)] == ["1", "7", "8", "10"]
    assert rejects(found) == [
        (4, sources.BROKEN_CSV),
        (6, sources.BROKEN_CSV),
        (7, sources.BROKEN_CSV),
        (8, sources.NOT_UTF8),
        (9, sources.NO_TEXT),
        (12, sources.UNCLOSED_QUOTE),
    ]


ROWS = [b'%d,"tweet %d, \nof two lines",en' % (number, number) for number in range(6)]


@pytest.mark.parametrize("codec", ["", "gzip"])
@pytest.mark.parametrize(
    "places", [(0,), (3,), (5,), (6,), (1, 4), (2, 3), (6, 6), (0, 0, 0, 6)], ids=lambda places: f"before {places}"
)
@pytest.mark.parametrize("bad", [b'x,"open,en', b'x,en,"open', b'x,"a","b","open'])
def test_an_open_quote_costs_its_own_line(tmp_path, codec, places, bad):
    """Also where the next quoted field closes it; the rows around it, of two lines each, are all there."""
    rows = list(ROWS)
    for place in reversed(places):
        rows.insert(place, bad)
    content = b"id,text,lang\n" + b"\n".join(rows)
    path = tmp_path / ("t.csv" + (".gz" if codec else ""))
    found = read(path, compress(content, codec) if codec else content)
    assert texts(found) == [f"tweet {number}, \nof two lines" for number in range(6)]
    bad_lines = [number for number, line in enumerate(content.split(b"\n"), start=1) if line == bad]
    assert len(bad_lines) == len(places)
    assert rejects(found) == [(number, sources.UNCLOSED_QUOTE) for number in bad_lines]
    assert {reject.excerpt for reject in found if isinstance(reject, Reject)} == {bad.decode()}


def test_an_open_quote_that_a_later_row_closes(tmp_path):
    lines = [b"id,text,lang", b'1,"open,en', b"2,plain,en", b"3,5'10\",en,", b"4,plain,en", b"5,tall 5'10\",en"]
    found = read(tmp_path / "t.csv", b"\n".join(lines))
    # Line 4 closes the quote of line 2 and has a column too many then, as it has by itself.
    assert [record.id for record in found if isinstance(record, Record)] == ["2", "4", "5"]
    assert rejects(found) == [(2, sources.UNCLOSED_QUOTE), (4, sources.BROKEN_CSV)]
    # Were it not for that column, nothing would tell the four lines from one tweet.
    lines[3] = b"3,5'10\",en"
    found = read(tmp_path / "t.csv", b"\n".join(lines))
    assert texts(found)[0] == "open,en\n2,plain,en\n3,5'10"
    assert len(found) == 3


def test_an_open_quote_costs_no_more_than_its_line_whatever_the_cap(tmp_path):
    rows = b"".join(b"%d,text\n" % number for number in range(1000))
    found = read(tmp_path / "t.csv", b'id,text\nx,"open\n' + rows, max_record_bytes=1024)
    assert rejects(found) == [(2, sources.UNCLOSED_QUOTE)]
    assert [record.id for record in found[1:]] == [str(number) for number in range(1000)]
    # Of what it ran over in vain, a line over the cap is a reject of its own.
    found = read(tmp_path / "t.csv", b'id,text\nx,"open\n' + b"y" * 2000 + b"\n1,text", max_record_bytes=1024)
    assert rejects(found) == [(2, sources.UNCLOSED_QUOTE), (3, sources.LONG_RECORD)]
    assert texts(found) == ["text"]


@pytest.mark.parametrize(
    ("line", "most", "settings"),
    [(b"x", sources._RECORD_LINES, {}), (b"x" * 100, 10, {"max_record_bytes": 1024})],
    ids=["lines", "bytes"],
)
def test_a_record_is_no_longer_than_is_believed(tmp_path, line, most, settings):
    for num_lines, num_rejects in ((most, 0), (most + 1, most + 1)):
        content = b'id,text\n1,"' + b"\n".join([line] * num_lines) + b'"\n2,last'
        found = read(tmp_path / "t.csv", content, **settings)
        assert len(rejects(found)) == num_rejects
        assert [record.id for record in found if isinstance(record, Record)] == (["2"] if num_rejects else ["1", "2"])


@pytest.mark.parametrize("ending", [b"", b'a,"b"\n'])
def test_rows_that_all_leave_a_quote_open_are_read_in_one_go(tmp_path, monkeypatch, ending):
    """Columns cut apart at their quotes: each row leaves one open, which the next closes to open another."""
    num_asked = 0
    next_line = sources._CsvLines.__next__

    def count(lines: sources._CsvLines) -> str:
        nonlocal num_asked
        num_asked += 1
        return next_line(lines)

    monkeypatch.setattr(sources._CsvLines, "__next__", count)
    found = read(tmp_path / "t.csv", b"id,text\n" + b'x","y\n' * 10_000 + ending)
    assert rejects(found) == [(number + 2, sources.UNCLOSED_QUOTE) for number in range(10_000)]
    assert texts(found) == (["b"] if ending else [])
    # For each line by itself, for each that is refused to it, and once in the company of all those before it.
    assert num_asked < 4 * 10_000


def test_lines_before_a_broken_place_are_read_also_behind_an_open_quote(tmp_path):
    lines = [b"id,text", b'0,"open', *(b"%d,text %d" % (n, random.Random(n).getrandbits(64)) for n in range(1, 900))]
    whole = compress(b"\n".join(lines), "gzip")
    found = read(tmp_path / "t.csv.gz", whole[: len(whole) // 2])
    good = len(texts(found))
    assert good > 100
    assert [f"{record.id},{record.text}".encode() for record in found[1:-1]] == lines[2 : 2 + good]
    assert rejects(found) == [(2, sources.UNCLOSED_QUOTE), (good + 3, sources.BROKEN_STREAM)]


def slow_rows(lines: list[str], num_columns: int) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the place of each record's first line, and the row: the shortest run of lines that can be parsed."""
    place = 0
    while place < len(lines):
        row, num_taken = None, 1
        for stop in range(place + 1, len(lines) + 1):
            try:
                parsed = list(csv.reader([line + "\n" for line in lines[place:stop]], strict=True))
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    continue  # the quote is still open
                break
            if len(parsed) == 1 and len(parsed[0]) in (0, num_columns):
                row, num_taken = parsed[0], stop - place
            break
        if row != []:
            yield place, row
        place += num_taken


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text('x",', max_size=8) | st.sampled_from(['1,"open', 'x","y', '"', 'a,"two', 'lines"', '"a","b"', "a,b"]),
        max_size=12,
    ),
    st.sampled_from([1, 2, 3]),
)
def test_csv_equals_the_slow_way(tmp_path_factory, lines, num_columns):
    header = ["text", "b", "c"][:num_columns]
    path = tmp_path_factory.getbasetemp() / "slow.csv"
    found = read(path, "\n".join([",".join(header), *lines]).encode())
    expected = [(place + 2, row and row[0]) for place, row in slow_rows(lines, num_columns)]
    assert [item.line for item in found] == [line for line, _ in expected]
    for item, (_, text) in zip(found, expected, strict=True):
        if isinstance(item, Record):
            assert item.text == text
        else:
            assert item.reason == sources.NO_TEXT if text is not None else item.reason in FAULTS
            assert item.reason != sources.NO_TEXT or not text.strip()


FAULTS = {sources.BROKEN_CSV, sources.UNCLOSED_QUOTE}


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        (b"id,body", {}, "no text column found; set corpus.text to one of: id, body"),
        (b"id;text;date", {}, "one column, 'id;text;date', which seems to be several parted by ';'; expected commas"),
        (b"id,body", {"text": "bdy"}, "no column bdy (corpus.text); did you mean body? it has: id, body"),
        (b"nr,text", {"id": "id"}, "no column id (corpus.id); it has: nr, text"),
        (b"text,text", {}, "column text is there more than once"),
        (b'"op"en', {}, "broken CSV row where the column names were expected"),
        (b'"open', {}, "unclosed quote where the column names were expected"),
    ],
)
def test_tables_without_the_columns(tmp_path, header, settings, message):
    with pytest.raises(InputError) as error:
        read(tmp_path / "t.csv", header + b"\n1,x\n", **settings)
    assert message in str(error.value)
    assert "t.csv" in str(error.value)
    if b"op" not in header and header != b"text,text":
        pq.write_table(pa.table({name: ["x"] for name in header.decode().split(",")}), tmp_path / "t.parquet")
        with pytest.raises(InputError) as error:
            read(tmp_path / "t.parquet", **settings)
        assert message in str(error.value)


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3, store_schema="dictionary" not in str(path))
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_strings_of_every_kind(tmp_path, kind):
    column = pa.array(["a", None, "b", "a", "x" * 99], pa.string()).cast(kind)
    ids = pa.array([2**62, 1, None, 3, 4])
    times = pa.array([0, 1, 2, 3, None], pa.timestamp("s"))
    found = read(write_parquet(tmp_path / "t.parquet", text=column, id=ids, at=times), max_text_chars=50, keep=["at"])
    assert found[0] == Record(1, str(2**62), "a", ("1970-01-01 00:00:00",))
    assert [record.id for record in found if isinstance(record, Record)] == [str(2**62), "t.parquet:3", "3"]
    assert rejects(found) == [(2, sources.NO_TEXT), (5, sources.LONG_TEXT)]


def test_parquet_nested_and_binary_columns_are_kept_as_text(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", text=["a"], tags=[["x", "y"]], raw=[b"bytes"], yes=[True])
    assert read(path, keep=["tags", "raw", "yes"])[0].kept == ('["x", "y"]', "bytes", "true")


def test_parquet_bytes_that_are_not_unicode(tmp_path):
    bad = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    assert rejects(read(write_parquet(tmp_path / "t.parquet", text=bad))) == [(2, sources.NOT_UTF8)]


@pytest.mark.parametrize("column", [[1], [b"x"], [["x"]]])
def test_parquet_text_must_be_strings(tmp_path, column):
    with pytest.raises(InputError, match="corpus.text must name one of strings"):
        read(write_parquet(tmp_path / "t.parquet", text=column))


def test_parquet_records_over_the_cap(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", text=["a", "b"], other=["x", "x" * 2000])
    assert rejects(read(path, keep="other", max_record_bytes=1024)) == [(2, sources.LONG_RECORD)]
    assert rejects(read(path, max_record_bytes=1024)) == []


@pytest.mark.parametrize("damage", ["empty", "no footer", "page"])
def test_broken_parquet(tmp_path, damage):
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [f"text {number}" for number in range(20_000)]})
    pq.write_table(
        table, path, row_group_size=10_000, write_page_checksum=True, compression="none", use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    if damage == "page":
        content[len(content) * 3 // 4] ^= 1
    found = read(path, {"empty": b"", "no footer": bytes(content[:-50]), "page": bytes(content)}[damage])
    assert len(texts(found)) == (10_000 if damage == "page" else 0)
    assert rejects(found) == [(len(texts(found)) + 1, sources.BROKEN_PARQUET)]


def test_parquet_dictionary_bomb(tmp_path):
    path = tmp_path / "t.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 100_000])
    pq.write_table(pa.table({"text": text}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000
    before = pa.default_memory_pool().max_memory()
    assert read(path) == [Reject(1, sources.RATIO, "")]
    # Of the 10 GB, no more than a batch was ever there.
    assert pa.default_memory_pool().max_memory() <= max(before, 2**27)


def test_parquet_page_bomb(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x" * 20_000_000]}), path, compression="zstd", use_dictionary=False)
    assert rejects(read(path)) == [(1, sources.RATIO)]
    assert rejects(read(path, max_ratio=1e6)) == [(1, sources.LONG_RECORD)]


# Compression


@pytest.mark.parametrize(("ending", "codec"), sources.CODECS.items())
def test_compressed_files(tmp_path, ending, codec):
    lines = [f"text {number} {random.Random(number).random()}" for number in range(20_000)]
    content = "\n".join(lines).encode()
    path = tmp_path / f"t.txt{ending}"
    assert texts(read(path, compress(content, codec))) == lines
    # What `cat` makes of two compressed files is one.
    assert texts(read(path, compress(content[:1000], codec) + compress(content[1000:], codec))) == lines
    whole = compress(content, codec)
    found = read(path, whole[: len(whole) // 2])
    good = len(texts(found))
    assert texts(found) == lines[:good]
    assert rejects(found) == [(good + 1, sources.BROKEN_STREAM)]
    assert codec == "bz2" or good > 5_000
    assert rejects(read(path, b"this is not compressed")) == [(1, sources.BROKEN_STREAM)]


def test_other_tools_write_what_is_read(tmp_path):
    assert texts(read(tmp_path / "t.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"))) == ["one", "two"]
    assert texts(read(tmp_path / "t.txt.bz2", bz2.compress(b"one\n") + bz2.compress(b"two\n"))) == ["one", "two"]


@pytest.mark.parametrize(("ending", "codec"), sources.CODECS.items())
def test_decompression_bombs(tmp_path, ending, codec):
    path = tmp_path / f"t.jsonl{ending}"
    bomb = compress(b'{"id": 1, "text": "first"}\n' + bytes(20 * 2**20), codec)
    found = read(path, bomb)
    assert texts(found) == ["first"]
    assert rejects(found) == [(2, sources.RATIO)]
    # As much, but within the ratio: one long line.
    assert rejects(read(path, bomb, max_ratio=1e7)) == [(2, sources.LONG_RECORD)]


# Everything at once


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_counted_line_by_line(tmp_path, seed):
    chance = random.Random(seed)
    lines: list[bytes] = []
    for number in range(200):
        good = json.dumps({"id": number, "text": f"tweet {number}"}).encode()
        if chance.random() < 0.3:
            noise = bytes(byte for byte in chance.randbytes(chance.randrange(1, 40)) if byte != 10)
            place = chance.randrange(len(good))
            good = chance.choice([noise, good[:place], good[:place] + noise + good[place:]])
        lines.append(good)
    content = b"\n".join(lines)
    found = read(tmp_path / "t.jsonl", content)
    assert [item.line for item in found] == [n for n, line in enumerate(lines, 1) if line and not line.isspace()]
    for record in found:
        if isinstance(record, Record):
            assert json.loads(lines[record.line - 1].decode("utf-8", "replace"))
            record.text.encode()
    plain = read(tmp_path / "t.txt", content)
    assert [item.line for item in plain] == list(range(1, len(lines) + (lines[-1] != b"")))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["id", "text"])
    kept = [line.decode("latin-1") for line in lines if not line.isspace() and line]
    writer.writerows((number, text) for number, text in enumerate(kept))
    found = read(tmp_path / "t.csv", table.getvalue().encode())
    assert [record.text for record in found if isinstance(record, Record)] == [text for text in kept if text.strip()]
