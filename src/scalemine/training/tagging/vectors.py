"""Static word vectors, such as those of GloVe and word2vec: the files they come in, and the vector of a tweet's word.

Shapes: V words, D dimensions.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.config import InputError

# Bounds on what a damaged file makes us hold at a time.
_MAX_LINE_BYTES: Final = 2**20
_MAX_WORD_BYTES: Final = 2**16
_MAX_DIMENSIONS: Final = 2**16
_BLOCK_BYTES: Final = 2**20
_SAMPLE_BYTES: Final = 1024

_HEADER: Final = re.compile(rb"(\d{1,18}) (\d{1,18}) ?\r?\n?")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")

# A word as it stands in the file, where it stands (a line's or a word's number, from 1), and its numbers unread: one by
# one as text, or all of them as little-endian float32.
_Entry: TypeAlias = tuple[bytes, int, list[bytes] | bytes]


@dataclass(frozen=True, eq=False)
class StaticVectors:
    """Words and their vectors.

    Args:
        words: V distinct words, in the order of the file.
        vectors_VD: The vector of each word, as the file has it (not normalised).
    """

    words: tuple[str, ...]
    vectors_VD: NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """How a file is written. ``num_words`` is None where it has no header."""

    num_words: int | None
    dimensions: int
    binary: bool


def read_vectors(path: Path, *, vocabulary: Collection[str] | None = None, first: int = 0) -> StaticVectors:
    r"""Return the word vectors in a file; only those are held that are wanted.

    Three formats are told apart by their content: GloVe's text (on each line a word and D numbers, parted by single
    spaces), word2vec's text (the same after a line "V D"), and word2vec's binary format (a line "V D", then V times
    the word, a space, D little-endian float32 and perhaps "\n"). So a first line of two whole numbers is a header, and
    the file is binary where it goes on as no text does. Where the name ends in .gz, it is unpacked.

    Words may hold any character but "\n", in text also spaces (GloVe 840B has such), though not the first word of a
    GloVe file. Bytes that are not UTF-8 become U+FFFD. Of a word that comes twice the first vector counts.

    Args:
        path: The file.
        vocabulary: The words to keep; None: all. For ``lookup`` to find a word, keep its ``lookup_forms``.
        first: Words from the start of the file, the most frequent ones as a rule, that are kept besides.

    Raises:
        InputError: The file cannot be read, is empty or truncated, a line has another number of parts, a vector that is
            kept holds something else than finite numbers, or there are more or fewer words than the header says.

    Source: Pennington, Socher and Manning (2014), https://nlp.stanford.edu/projects/glove/; word2vec.c of Mikolov et
        al. (2013), https://code.google.com/archive/p/word2vec/.
    """
    wanted = None if vocabulary is None else frozenset(vocabulary)
    words: dict[str, None] = {}
    numbers = bytearray()
    try:
        with _open(path) as file:
            layout = _find_layout(path, file)
        with _open(path) as file:
            for name, place, raw in (_binary_entries if layout.binary else _text_entries)(path, file, layout):
                word = name.decode("utf-8", errors="replace")
                if word not in words and (wanted is None or len(words) < first or word in wanted):
                    words[word] = None
                    numbers += _parse_vector(path, place, raw).tobytes()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    vectors_VD = np.frombuffer(numbers, np.float32).reshape(len(words), layout.dimensions)
    return StaticVectors(tuple(words), vectors_VD)


def _open(path: Path) -> io.BufferedReader:
    codec = "gzip" if path.name.lower().endswith(".gz") else None
    return io.BufferedReader(pa.input_stream(str(path), compression=codec), _BLOCK_BYTES)


def _find_layout(path: Path, file: io.BufferedReader) -> _Layout:
    first = file.readline(_MAX_LINE_BYTES)
    if not first:
        raise InputError(f"{path}: empty, expected word vectors")
    header = _HEADER.fullmatch(first)
    if header is None:
        dimensions = first.rstrip(b" \r\n").count(b" ")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise InputError(f"{path}, line 1: expected a word and its numbers, got {_excerpt(first)}")
        return _Layout(None, dimensions, binary=False)
    num_words, dimensions = int(header[1]), int(header[2])
    if not (num_words and 0 < dimensions <= _MAX_DIMENSIONS):
        raise InputError(f"{path}, line 1: expected the numbers of words and dimensions, got {_excerpt(first)}")
    return _Layout(num_words, dimensions, binary=not _is_text(file.read(_SAMPLE_BYTES)))


def _is_text(sample: bytes) -> bool:
    """Return whether bytes are UTF-8 without control characters, which no run of float32 is for long."""
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # The end of the sample may cut a character.
        if error.reason != "unexpected end of data":
            return False
    return _CONTROL.search(sample) is None


def _text_entries(path: Path, file: io.BufferedReader, layout: _Layout) -> Iterator[_Entry]:
    dimensions, first_line = layout.dimensions, 1
    if layout.num_words is not None:
        file.readline()
        first_line = 2
    place = first_line - 1
    for place, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=first_line):
        parts = line.rstrip(b" \r\n").rsplit(b" ", dimensions)
        name = parts[0]
        # A number too many would be taken for the end of a word with spaces.
        if (
            len(parts) <= dimensions
            or len(line) == _MAX_LINE_BYTES
            or (b" " in name and _is_number(name.split(b" ")[-1]))
        ):
            raise InputError(f"{path}, line {place}: expected a word and {dimensions} numbers, got {_excerpt(line)}")
        yield name, place, parts[1:]
    num_words = place - first_line + 1
    if layout.num_words not in (None, num_words):
        raise InputError(f"{path}: expected {layout.num_words} words by its first line, got {num_words}")


def _binary_entries(path: Path, file: io.BufferedReader, layout: _Layout) -> Iterator[_Entry]:
    assert layout.num_words is not None
    file.readline()
    num_bytes = 4 * layout.dimensions
    buffer, start = b"", 0
    for place in range(1, layout.num_words + 1):
        while (space := buffer.find(b" ", start)) < 0 or len(buffer) <= space + num_bytes:
            block = file.read(_BLOCK_BYTES)
            if not block:
                raise InputError(
                    f"{path}: truncated: expected {layout.num_words} words by its first line, got {place - 1}"
                )
            if space < 0 and len(buffer) - start > _MAX_WORD_BYTES:
                raise InputError(f"{path}, word {place}: longer than {_MAX_WORD_BYTES} bytes; the file is damaged")
            buffer, start = buffer[start:] + block, 0
        end = space + 1 + num_bytes
        yield buffer[start:space].lstrip(b"\n"), place, buffer[space + 1 : end]
        start = end
    if (buffer[start:] + file.read(_SAMPLE_BYTES)).strip(b"\n"):
        raise InputError(f"{path}: goes on after the {layout.num_words} words that its first line names")


def _parse_vector(path: Path, place: int, raw: list[bytes] | bytes) -> NDArray[np.float32]:
    if isinstance(raw, bytes):
        where, vector_D = "word", np.frombuffer(raw, "<f4").astype(np.float32)
    else:
        where = "line"
        try:
            with np.errstate(over="ignore"):  # infinite then, and refused below
                vector_D = np.fromiter(map(float, raw), np.float32, len(raw))
        except ValueError as error:
            raise InputError(f"{path}, {where} {place}: expected numbers: {error}") from None
    if not np.isfinite(vector_D).all():
        raise InputError(f"{path}, {where} {place}: expected finite float32, got {vector_D[~np.isfinite(vector_D)][0]}")
    return vector_D


def _is_number(part: bytes) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


def _excerpt(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "…")


_LINK: Final = re.compile(r"HTTPURL|(?i:https?://\S+|www\.\w+\.\S*)")
_MENTION: Final = re.compile(r"@\w+")
# Written so that each digit is looked at once.
_NUMBER: Final = re.compile(r"[-+]?\.*\d[\d.,:]*")
_HASHTAG: Final = re.compile(r"#\S+")


def lookup(word: str, index: Mapping[str, int]) -> int | None:
    """Return the row of a word in static vectors: that of the first of its ``lookup_forms`` that there is, or None.

    Args:
        word: A word of a tweet, or of one that was normalised for BERTweet.
        index: The row of each word that has a vector.

    Example:
        >>> lookup("@ana", {"fire": 0, "<user>": 1}), lookup("#Fire", {"fire": 0}), lookup("smoke", {"fire": 0})
        (1, 0, None)
    """
    return next((index[form] for form in lookup_forms(word) if form in index), None)


def lookup_forms(word: str) -> list[str]:
    """Return the forms under which a word may have a vector, best first.

    These are the word as written, the word in lower case, and what GloVe's Twitter vectors have in its place: "<url>"
    for a link, "<user>" for a mention, "<number>" for a number with its sign and separators, and for a hashtag its
    word, or "<hashtag>". BERTweet's HTTPURL and @USER are a link and a mention.

    Source: preprocess-twitter.rb, https://nlp.stanford.edu/projects/glove/preprocess-twitter.rb, whose patterns these
        are, but that a hashtag is not split at its capitals. Its tokens for emoticons, repetitions and capitals are
        left out: they stand beside or between words.

    Example:
        >>> lookup_forms("#Fire")
        ['#Fire', '#fire', 'fire', '<hashtag>']
    """
    if _LINK.fullmatch(word):
        stand_ins = ["<url>"]
    elif _MENTION.fullmatch(word):
        stand_ins = ["<user>"]
    elif _NUMBER.fullmatch(word):
        stand_ins = ["<number>"]
    elif _HASHTAG.fullmatch(word):
        stand_ins = [word[1:].lower(), "<hashtag>"]
    else:
        stand_ins = []
    return [word, word.lower(), *stand_ins]
