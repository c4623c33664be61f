from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.config import InputError
from scalemine.training.tagging import vectors
from scalemine.training.tagging.vectors import lookup, lookup_forms, read_vectors

FORMATS = ["glove", "word2vec text", "word2vec binary", "word2vec binary with newlines"]
ROWS = [("the", [0.5, -1.25, 3.0]), ("<user>", [1e-3, 0.0, -7.5]), ("häus", [2.0, 4.0, 8.0])]


def encode(form, rows, num_words=None):
    """Return the bytes of a file of word vectors."""
    header = f"{len(rows) if num_words is None else num_words} {len(rows[0][1])}\n".encode()
    if form.startswith("word2vec binary"):
        end = b"\n" if "newlines" in form else b""
        return header + b"".join(
            word.encode() + b" " + struct.pack(f"<{len(numbers)}f", *numbers) + end for word, numbers in rows
        )
    # 9 digits tell every float32 apart; the C programs write a space after the last number.
    end = " \n" if form == "word2vec text" else "\n"
    lines = "".join(" ".join([word, *(f"{number:.9g}" for number in numbers)]) + end for word, numbers in rows)
    return (b"" if form == "glove" else header) + lines.encode()


def write(folder, content, name="vectors.txt"):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    return path


def refused(path, **options):
    with pytest.raises(InputError) as caught:
        read_vectors(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


# Words hold no "\n" and begin with no space; control characters are told from binary only by their rarity.
WORD = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\x85"), min_size=1, max_size=6)
NUMBER = st.floats(-(2.0**99), 2.0**99, width=32)


@st.composite
def word_rows(draw, spaces=False):
    """The first number of the first word is one whose bytes cannot be read as text."""
    words = draw(st.lists(WORD if spaces else WORD.filter(lambda word: " " not in word), min_size=1, max_size=12))
    dimensions = draw(st.integers(2, 5))  # "5 1" would be a header
    rows = [(word, draw(st.lists(NUMBER, min_size=dimensions, max_size=dimensions))) for word in words]
    rows[0][1][0] = 1.0
    return rows


def first_rows(rows, vocabulary=None):
    kept = {}
    for word, numbers in rows:
        if vocabulary is None or word in vocabulary:
            kept.setdefault(word, numbers)
    return list(kept), np.array(list(kept.values()), np.float32).reshape(len(kept), len(rows[0][1]))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz", "VECTORS.GZ"])
def test_what_was_written_is_read(form, name, tmp_path):
    @settings(deadline=None, max_examples=40)
    @given(word_rows(), st.data())
    def compare(rows, data):
        path = write(tmp_path, encode(form, rows), name)
        found = read_vectors(path)
        words, vectors_VD = first_rows(rows)
        assert list(found.words) == words
        assert found.vectors_VD.dtype == np.float32
        assert np.array_equal(found.vectors_VD, vectors_VD)
        vocabulary = data.draw(st.sets(st.sampled_from(words) | WORD))
        found = read_vectors(path, vocabulary=vocabulary)
        words, vectors_VD = first_rows(rows, vocabulary)
        assert list(found.words) == words
        assert np.array_equal(found.vectors_VD, vectors_VD)

    compare()


def last_part_is_a_number(word):
    try:
        float(word.split(" ")[-1].encode())
    except ValueError:
        return False
    return True


@settings(deadline=None)
@given(rows=word_rows(spaces=True))
def test_words_may_hold_spaces(rows, tmp_path_factory):
    rows = [("first", rows[0][1]), *((w, numbers) for w, numbers in rows if not last_part_is_a_number(w))]
    for form in ("glove", "word2vec text"):
        found = read_vectors(write(tmp_path_factory.getbasetemp(), encode(form, rows)))
        assert list(found.words) == first_rows(rows)[0]
        assert np.array_equal(found.vectors_VD, first_rows(rows)[1])


@pytest.mark.parametrize("word", ["\x85", "\u2028", "\xa0", "a\x0bb", "\t", ". . .", "at name@domain.com", "1", "nan"])
def test_odd_words_are_one_word(word, tmp_path):
    rows = [("the", [1.0, 2.0]), (word, [3.0, 4.0]), ("of", [5.0, 6.0])]
    assert read_vectors(write(tmp_path, encode("glove", rows))).words == ("the", word, "of")


@pytest.mark.parametrize("form", FORMATS)
def test_the_first_of_equal_words_counts(form, tmp_path):
    rows = [*ROWS, ("the", [9.0, 9.0, 9.0])]
    found = read_vectors(write(tmp_path, encode(form, rows)))
    assert found.words == ("the", "<user>", "häus")
    assert found.vectors_VD[0].tolist() == [0.5, -1.25, 3.0]


def test_no_word_of_the_vocabulary_is_there(tmp_path):
    for form in FORMATS:
        found = read_vectors(write(tmp_path, encode(form, ROWS)), vocabulary=["smoke"])
        assert found.words == ()
        assert found.vectors_VD.shape == (0, 3)


def test_the_first_words_are_kept_besides(tmp_path):
    for form in FORMATS:
        path = write(tmp_path, encode(form, ROWS))
        words = [word for word, _ in ROWS]
        assert list(read_vectors(path, vocabulary=[words[-1]], first=2).words) == [*words[:2], words[-1]]


def test_words_that_are_not_utf8_are_kept_apart_from_others(tmp_path):
    found = read_vectors(write(tmp_path, b"the 1 2\nb\xff\xfe 3 4\n"))
    assert found.words == ("the", "b\ufffd\ufffd")
    content = b"2 3\n" + b"b\xff " + struct.pack("<3f", 1, 2, 3) + b"the " + struct.pack("<3f", 4, 5, 6)
    assert read_vectors(write(tmp_path, content)).words == ("b\ufffd", "the")


def test_lines_may_end_as_on_windows(tmp_path):
    for form in ("glove", "word2vec text"):
        found = read_vectors(write(tmp_path, encode(form, ROWS).replace(b"\n", b"\r\n")))
        assert np.array_equal(found.vectors_VD, first_rows(ROWS)[1])


@pytest.mark.parametrize("num_bytes", [7, 64, 2**20])
def test_binary_files_are_read_in_blocks_of_any_size(num_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", num_bytes)
    rng = np.random.default_rng(1)
    rows = [(f"{'w' * (i % 90)}{i}", rng.normal(size=20).astype(np.float32).tolist()) for i in range(60)]
    for form in FORMATS:
        found = read_vectors(write(tmp_path, encode(form, rows)))
        assert np.array_equal(found.vectors_VD, first_rows(rows)[1])


# Faults


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.bin.gz"])
def test_an_empty_file_is_refused(name, tmp_path):
    assert "empty" in refused(write(tmp_path, b"", name))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot be read" in refused(tmp_path / "none.txt")
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("form", FORMATS[2:])
def test_a_binary_file_cut_anywhere_is_refused(form, tmp_path):
    content = encode(form, ROWS)
    whole = len(content.rstrip(b"\n"))
    for num_bytes in range(whole):
        refused(write(tmp_path, content[:num_bytes]))
    for num_bytes in range(len(b"3 3\nthe 1234"), whole):
        message = refused(write(tmp_path, content[:num_bytes]))
        assert "truncated: expected 3 words by its first line, got" in message
    assert read_vectors(write(tmp_path, content[:whole])).words == ("the", "<user>", "häus")


def test_a_text_file_cut_within_a_line_is_refused(tmp_path):
    content = encode("word2vec text", ROWS)
    for num_bytes in range(len(content) - len(b"8 \n")):
        refused(write(tmp_path, content[:num_bytes]))
    content = encode("glove", ROWS)
    for num_bytes in range(content.index(b"<user>") + 1, content.index(b"-7.5")):
        assert ", line 2: expected a word and 3 numbers" in refused(write(tmp_path, content[:num_bytes]))


def test_a_packed_file_that_is_damaged_is_refused(tmp_path):
    packed = gzip.compress(encode("glove", ROWS * 100))
    damaged = [packed[:num_bytes] for num_bytes in (1, 5, 12, len(packed) // 2, len(packed) - 1)]
    damaged += [packed[:-8] + b"\0" * 8, b"the 0.1 0.2\n"]
    for content in damaged:
        path = tmp_path / "vectors.gz"
        path.write_bytes(content)
        assert "cannot be read" in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the\n", ", line 1: expected a word and its numbers, got 'the"),
        (b"\n", ", line 1: expected a word and its numbers"),
        (b"the 1 2\nof 1\n", ", line 2: expected a word and 2 numbers, got 'of 1"),
        (b"the 1 2\nof 1 2 3\n", ", line 2: expected a word and 2 numbers"),
        (b"the 1 2\n\nof 1 2\n", ", line 2: expected a word and 2 numbers"),
        (b"the 1 2\nof 1 x\n", ", line 2: expected numbers: could not convert string to float: b'x'"),
        (b"the 1 2\nof 1  2\n", ", line 2: expected a word and 2 numbers"),
        (b"the 1 2\nof 1 nan\n", ", line 2: expected finite float32, got nan"),
        (b"the 1 2\nof -inf 2\n", ", line 2: expected finite float32, got -inf"),
        (b"the 1 2\nof 1 1e39\n", ", line 2: expected finite float32, got inf"),
        (b"2 2\nthe 1 2\nof 1 x\n", ", line 3: expected numbers"),
        (b"2 2\nthe 1 2 3\nof 1 2\n", ", line 2: expected a word and 2 numbers"),
        (b"2 3\nthe 1 2\nof 1 2\n", ", line 2: expected a word and 3 numbers"),
        (b"3 2\nthe 1 2\nof 1 2\n", ": expected 3 words by its first line, got 2"),
        (b"1 2\nthe 1 2\nof 1 2\n", ": expected 1 words by its first line, got 2"),
        (b"3 2\n", ": expected 3 words by its first line, got 0"),
        (b"0 2\n", ", line 1: expected the numbers of words and dimensions"),
        (b"2 0\n", ", line 1: expected the numbers of words and dimensions"),
        (b"1 99999999999\n\0", ", line 1: expected the numbers of words and dimensions"),
        (encode(FORMATS[2], ROWS, num_words=2), ": goes on after the 2 words"),
        (encode(FORMATS[3], ROWS, num_words=4), ": truncated: expected 4 words by its first line, got 3"),
        (encode(FORMATS[2], [("a", [1.0]), ("b", [float("nan")])]), ", word 2: expected finite float32, got nan"),
    ],
)
def test_what_is_broken_is_named(content, message, tmp_path):
    for name in ("vectors.txt", "vectors.gz"):
        assert refused(write(tmp_path, content, name)).startswith(message)


def test_lines_that_are_not_kept_are_only_counted(tmp_path):
    content = b"the 1 2\nof 1 x\nthe 1 x\n"
    assert read_vectors(write(tmp_path, content), vocabulary={"the"}).vectors_VD.tolist() == [[1.0, 2.0]]
    refused(write(tmp_path, content), vocabulary={"of"})
    refused(write(tmp_path, content + b"to 1\n"), vocabulary={"the"})


def test_damaged_files_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(vectors, "_MAX_WORD_BYTES", 500)
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", 100)
    assert ", line 2: expected" in refused(write(tmp_path, b"the 1 2\n" + b"x" * 5_000 + b" 1 2\n"))
    assert ", word 1: longer than 500 bytes" in refused(write(tmp_path, b"2 2\n" + b"\0" * 5_000))


# Words of tweets

INDEX = {form: row for row, form in enumerate(["fire", "Fire", "<url>", "<user>", "<number>", "<hashtag>", ",", "at"])}


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("Fire", "Fire"),
        ("fire", "fire"),
        ("FIRE", "fire"),
        ("At", "at"),
        (",", ","),
        ("#fire", "fire"),
        ("#FIRE", "fire"),
        ("#LacMegantic", "<hashtag>"),
        ("#", None),
        ("@ana", "<user>"),
        ("@USER", "<user>"),
        ("@", None),
        ("@ana:", None),
        ("HTTPURL", "<url>"),
        ("https://t.co/abc", "<url>"),
        ("HTTP://T.CO/ABC", "<url>"),
        ("www.fire.org/x", "<url>"),
        ("www.fire", None),
        ("https", None),
        ("3", "<number>"),
        ("-1,500.25", "<number>"),
        ("+.5", "<number>"),
        ("10:30", "<number>"),
        ("<number>", "<number>"),
        ("3rd", None),
        (".", None),
        ("smoke", None),
        ("", None),
    ],
)
def test_words_are_looked_up_by_their_forms(word, found):
    assert lookup(word, INDEX) == (None if found is None else INDEX[found])


def test_without_twitter_tokens_only_words_are_found():
    assert [lookup(word, {"fire": 0}) for word in ("#Fire", "@ana", "3", "HTTPURL")] == [0, None, None, None]


@given(st.text(max_size=12), st.lists(st.text(max_size=3), max_size=3))
def test_a_word_is_found_as_written_first(word, others):
    assert lookup_forms(word)[:2] == [word, word.lower()]
    assert lookup(word, {form: row for row, form in enumerate([word, *others])}) is not None


def test_a_vocabulary_of_forms_finds_every_word(tmp_path):
    rows = [(form, [float(row), 0.5]) for form, row in INDEX.items()]
    path = write(tmp_path, encode("glove", rows))
    words = ["FIRE", "@ana", "#LacMegantic", "3"]
    found = read_vectors(path, vocabulary={form for word in words for form in lookup_forms(word)})
    index = {word: row for row, word in enumerate(found.words)}
    firsts = [found.vectors_VD[lookup(word, index), 0] for word in words]
    assert firsts == [INDEX[form] for form in ("fire", "<user>", "<hashtag>", "<number>")]


def test_hostile_words_are_looked_up_at_once():
    # Seconds with a pattern that looks at digits again and again; the suite's time limit would end it.
    for word in ("1" * 200_000 + "x", "www." + "a." * 100_000 + "\n", "#" * 200_000):
        assert lookup(word, {"fire": 0}) is None
