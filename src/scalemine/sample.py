"""An invented tweet corpus for the demo, written in the formats real collections come in.

Everything is composed from the templates of :mod:`scalemine.sample_pools`, so the sample may be shared
freely. The corpus carries no labels; only the two Parquet files of positives do, and their spans are
recorded while the text is put together.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import dataclasses
import datetime
import gzip
import io
import json
import random
import re
import string
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine import sample_pools as pools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MIN_TWEETS: Final = 100
FORMAT_FILES: Final = ("stream-v1.jsonl.gz", "stream-v2.jsonl", "export.csv", "flat.jsonl.bz2")
V1, V2, CSV, FLAT = range(4)
FAULTS: Final = ("broken_json", "no_text", "empty_text", "invalid_utf8", "duplicate_id")

# Shares of num_tweets; what is left is plain English chatter.
SHARES: Final = {
    "figurative": 0.06,
    "hard_near_miss": 0.06,
    "foreign": 0.10,
    "hidden_crisis": 0.005,
    "exact_copy": 0.03,
    "retweet": 0.06,
} | dict.fromkeys(FAULTS, 0.001)

_RETWEET_LIMIT: Final = 140
_WINDOW: Final = 5_000
_PAGE_EVERY: Final = 97
_EPOCH_MS: Final = 1_288_834_974_657
_START: Final = datetime.datetime(2021, 3, 1, tzinfo=datetime.UTC)
# Own names, as strftime("%a %b") follows the locale and the bytes must not.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Stands for undecodable bytes until the record is encoded; plain ASCII passes through JSON and CSV unchanged.
_BAD_MARK: Final = "@@BAD-BYTES@@"
_BAD_BYTES: Final = b"\xc3\x28\xff"

_SLOT = re.compile(r"\{(\w+)\}")
_MARK = re.compile(r"\[(act2?|extra)\]|\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aei]|o(?!ne\b))", re.IGNORECASE)
_CHATTER = tuple(template for topic in pools.CHATTER.values() for template in topic)
_ENDINGS: Final = ("!", "!", "!!", ".", ".", "...", " :)", " xx")
_JOINTS: Final = (". ", " and ", "... ", ", ", " - ", " but ", "! ")

_SPAN_TYPE = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("type", pa.string())])
POSITIVES_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("type", pa.string()),
        ("event", pa.string()),
        ("spans", pa.list_(_SPAN_TYPE)),
    ]
)


class Span(TypedDict):
    """A gold span: ``text[start:end]`` is an actionable phrase of crisis type ``type``."""

    start: int
    end: int
    type: str


class Positive(TypedDict):
    """One row of a positives file."""

    id: str
    text: str
    type: str
    event: str
    spans: list[Span]


@dataclasses.dataclass(frozen=True)
class SampleFiles:
    """Where the sample was written, and how much of each kind was planted.

    Attributes:
        corpus: Folder with the unlabelled tweets in four formats.
        positives: Parquet file with the labelled crisis tweets.
        positives_test: Parquet file with labelled tweets of other events.
        counts: Number of corpus records by kind (including each kind of broken record), of records in all,
            of v2 pages, and of rows in the positives files.
    """

    corpus: Path
    positives: Path
    positives_test: Path
    counts: dict[str, int]


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


@dataclasses.dataclass(frozen=True)
class _Tweet:
    ident: int
    text: str
    lang: str
    handle: str
    user: int
    moment: datetime.datetime
    source: _Tweet | None = None


def write_sample(folder: Path, *, seed: int = 7, num_tweets: int = 20_000) -> SampleFiles:
    """Write the demo corpus and its positives; equal arguments give equal bytes.

    Args:
        folder: Folder to write into; created if missing, older sample files in it are replaced.
        seed: Seed of every random choice.
        num_tweets: Number of corpus records, the broken ones included.

    Returns:
        The written paths and the counts of what was planted.

    Raises:
        ValueError: If num_tweets is too small to hold every kind of record.
    """
    if num_tweets < MIN_TWEETS:
        raise ValueError(f"num_tweets must be at least {MIN_TWEETS}, got {num_tweets}")
    corpus = folder / "tweets"
    corpus.mkdir(parents=True, exist_ok=True)
    counts = _write_corpus(corpus, seed, num_tweets)
    sets = {
        "positives": _positives(
            random.Random(f"{seed}:positives"),
            pools.TRAIN_EVENTS,
            ((pools.TRAIN_FRAMES, 7), (pools.TRAIN_EXTRA_FRAMES, 1), (pools.TRAIN_VAGUE, 2)),
            prefix="11",
        ),
        "positives_test": _positives(
            random.Random(f"{seed}:positives_test"),
            pools.TEST_EVENTS,
            ((pools.TEST_FRAMES, 4), (pools.TEST_EXTRA_FRAMES, 1), (pools.TEST_VAGUE, 1)),
            prefix="12",
        ),
    }
    for name, rows in sets.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=POSITIVES_SCHEMA), folder / f"{name}.parquet")
        counts[name] = len(rows)
    return SampleFiles(corpus, folder / "positives.parquet", folder / "positives_test.parquet", counts)


def _fill(template: str, rng: random.Random) -> str:
    def pick(match: re.Match[str]) -> str:
        slot = match[1]
        return _link(rng) if slot == "link" else _fill(rng.choice(pools.POOLS[slot]), rng)

    return _SLOT.sub(pick, template)


def _link(rng: random.Random) -> str:
    return "https://t.co/" + "".join(rng.choices(string.ascii_letters + string.digits, k=10))


def _handle(rng: random.Random) -> str:
    # Always longer than the 15 characters Twitter allows, so that no handle can belong to a real account.
    first, second = rng.choice(pools.POOLS["handleA"]), rng.choice(pools.POOLS["handleB"])
    return f"{first}_{second}_{rng.randrange(100_000, 1_000_000)}"


def _english(templates: Sequence[str], rng: random.Random) -> str:
    """Compose one English text, often with a second clause from another topic.

    Mixing topics within a text is what keeps the similarity distribution of the corpus broad: texts of one
    topic alone would form clumps.
    """
    text = _fill(rng.choice(templates), rng)
    if rng.random() < 0.18:
        text += rng.choice(_JOINTS) + _fill(rng.choice(_CHATTER), rng)
    if rng.random() < 0.14:
        text = f"{_fill(rng.choice(pools.POOLS['opener']), rng)} {text}"
    if rng.random() < 0.32:
        text += rng.choice((" ", ", ", ". ", "... ")) + _fill(rng.choice(pools.POOLS["tail"]), rng)
    return _ARTICLE.sub(r"\1n ", text)


def _misspell(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if long:
        at = rng.choice(long)
        word, cut = words[at], rng.randrange(1, len(words[at]) - 1)
        swapped = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
        words[at] = swapped if rng.random() < 0.5 else word[:cut] + word[cut + 1 :]
    return " ".join(words)


def _elongate(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    usable = [at for at, word in enumerate(words) if len(word) > 1 and word.isalpha()]
    if usable:
        at = rng.choice(usable)
        words[at] += words[at][-1] * rng.randrange(2, 6)
    return " ".join(words)


def _noise(text: str, rng: random.Random, *, latin: bool = True) -> str:
    """Roughen a clean text the way people type: case, typos, hashtags, mentions, links, emoji."""
    if latin:
        if rng.random() < 0.08:
            text = _misspell(text, rng)
        if rng.random() < 0.06:
            text = _elongate(text, rng)
        case = rng.random()
        if "http" not in text:
            text = text.upper() if case < 0.03 else text.lower() if case < 0.25 else text
        if case > 0.6:
            text = text[:1].upper() + text[1:]
    if rng.random() < 0.03 and " " in text:
        text = text.replace(" ", "\n", 1) if rng.random() < 0.3 else text.replace(". ", ".\n\n") + "\n" + _link(rng)
    if rng.random() < 0.02:
        text = f'"{text}"'
    if text[-1:].isalnum() and rng.random() < 0.4:
        text += rng.choice(_ENDINGS)
    for chance, template in ((0.16, "{emoji}"), (0.12, "{hashtag}"), (0.04, "{hashtag}"), (0.10, "{link}")):
        if rng.random() < chance:
            text += " " + _fill(template, rng)
    if rng.random() < 0.14:
        text = f"@{_handle(rng)} {text}"
    return text


def _crisis(frame: str, event: pools.Event, kind: str, rng: random.Random) -> tuple[str, list[Span]]:
    """Put a crisis text together piece by piece, so that the span offsets are right by construction."""
    place, tag, acts, (other_kind, other_act) = event
    first, second = rng.sample(acts, 2)
    phrases = {"act": (first, kind), "act2": (second, kind), "extra": (other_act, other_kind)}
    slots = {"place": place, "place_tag": "".join(filter(str.isalnum, place)), "tag": tag}
    text, spans, done = "", list[Span](), 0
    for match in _MARK.finditer(frame):
        text += frame[done : match.start()]
        done = match.end()
        if match[1]:
            phrase, phrase_kind = phrases[match[1]]
            spans.append({"start": len(text), "end": len(text) + len(phrase), "type": phrase_kind})
            text += phrase
        else:
            text += slots.get(match[2]) or _fill(match[0], rng)
    return _crisis_noise(text + frame[done:], spans, rng)


def _crisis_noise(text: str, spans: list[Span], rng: random.Random) -> tuple[str, list[Span]]:
    # Only changes that keep the length (case of ASCII text), text behind the last span, and a prefix.
    case = rng.random()
    if text.isascii() and case < 0.25:
        text = text.upper() if case < 0.05 else text.lower()
    elif case > 0.5:
        text = text[:1].upper() + text[1:]
    for chance, template in ((0.15, "!!"), (0.3, " {worry}"), (0.2, " {link}")):
        if rng.random() < chance:
            text += _fill(template, rng)
    roll = rng.random()
    prefix = f"RT @{_handle(rng)}: " if roll < 0.1 else f"@{_handle(rng)} " if roll < 0.2 else ""
    moved: list[Span] = [
        {"start": span["start"] + len(prefix), "end": span["end"] + len(prefix), "type": span["type"]} for span in spans
    ]
    return prefix + text, moved


def _positives(
    rng: random.Random,
    events: Mapping[str, Sequence[pools.Event]],
    quotas: Sequence[tuple[Sequence[str], int]],
    *,
    prefix: str,
) -> list[Positive]:
    rows: list[Positive] = []
    for kind, kind_events in events.items():
        for event in kind_events:
            # Without replacement within an event: no two rows share both the frame and the event.
            frames = [frame for choices, number in quotas for frame in rng.sample(choices, number)]
            for frame in frames:
                text, spans = _crisis(frame, event, kind, rng)
                rows.append({"id": "", "text": text, "type": kind, "event": event[0], "spans": spans})
    rng.shuffle(rows)
    for number, row in enumerate(rows):
        row["id"] = f"{prefix}{number * 7_919_000_003 + rng.randrange(10**9):016d}"
    return rows


def _plan(seed: int, num_tweets: int) -> list[str]:
    """List the kind of every record; the head is plain, so that copies and retweets have something to copy."""
    special = [kind for kind, share in SHARES.items() for _ in range(max(1, round(share * num_tweets)))]
    head = ["chatter"] * 16
    rest = special + ["chatter"] * (num_tweets - len(special) - len(head))
    random.Random(f"{seed}:plan").shuffle(rest)
    return head + rest


def _compose(kind: str, rng: random.Random) -> tuple[str, str]:
    """Return the text and language code of a new tweet of some kind."""
    if kind == "foreign":
        lang = rng.choice(tuple(pools.FOREIGN))
        text = _fill(rng.choice(pools.FOREIGN[lang]), rng)
        return _noise(text, rng, latin=lang not in ("ar", "ja")), lang
    if kind == "hidden_crisis":
        crisis_type = rng.choice(tuple(pools.HIDDEN_EVENTS))
        event = rng.choice(pools.HIDDEN_EVENTS[crisis_type])
        return _crisis(rng.choice(pools.HIDDEN_FRAMES), event, crisis_type, rng)[0], "en"
    templates = {"figurative": pools.FIGURATIVE, "hard_near_miss": pools.HARD_NEAR}.get(kind, _CHATTER)
    # The real language field errs now and then as well.
    return _noise(_english(templates, rng), rng), "und" if rng.random() < 0.02 else "en"


class _Corpus:
    """Writes the records one by one, remembering just enough recent ones to copy from."""

    def __init__(self, files: Sequence[_Sink], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._files = files
        self._seed = seed
        self._recent: deque[_Tweet] = deque(maxlen=_WINDOW)
        self._idents: tuple[deque[_Tweet], ...] = tuple(deque(maxlen=_WINDOW // 4) for _ in files)
        self._moment = _START
        self._singles = 0
        self._page: list[dict[str, Any]] = []
        self._page_size = 0

    def add(self, number: int, kind: str) -> None:
        """Compose record number of the corpus and write it to one of the files."""
        rng = random.Random(f"{self._seed}:{number}")
        place = number % 4 if number < 16 else rng.randrange(4)
        if kind in ("broken_json", "no_text") and place == CSV:
            place = FLAT  # a CSV row can be neither
        tweet = self._tweet(kind, place, rng)
        self.counts[kind] += 1
        self.counts["records"] += 1
        self._write(tweet, kind, place, rng)
        if kind not in FAULTS:
            self._idents[place].append(tweet)
            if tweet.source is None:
                self._recent.append(tweet)

    def _tweet(self, kind: str, place: int, rng: random.Random) -> _Tweet:
        self._moment += datetime.timedelta(milliseconds=rng.randrange(500, 180_000))
        millis = round((self._moment - _START) / datetime.timedelta(milliseconds=1)) + round(_START.timestamp()) * 1000
        ident = (millis - _EPOCH_MS) << 22 | rng.randrange(1 << 22)
        source = None
        if kind in ("exact_copy", "retweet"):
            source = rng.choice(self._recent)
            text, lang = source.text, source.lang
            if kind == "retweet":
                text = f"RT @{source.handle}: {text}"
                text = text if len(text) <= _RETWEET_LIMIT else text[: _RETWEET_LIMIT - 1] + "…"
        else:
            text, lang = _compose(kind, rng)
        if kind == "empty_text":
            text = ""
        elif kind == "invalid_utf8":
            text = f"{text} {_BAD_MARK}"
        elif kind == "duplicate_id":
            target = rng.choice(self._idents[place])
            ident = target.ident
            while text == target.text:
                text, lang = _compose(kind, rng)
        handle, user = _handle(rng), rng.randrange(10**8, 10**10)
        return _Tweet(ident, text, lang, handle, user, self._moment, source if kind == "retweet" else None)

    def _write(self, tweet: _Tweet, kind: str, place: int, rng: random.Random) -> None:
        if place == CSV:
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerow((tweet.ident, tweet.text, tweet.lang, _iso(tweet.moment)))
            line = buffer.getvalue()
        else:
            record = _RECORDS[place](tweet)
            if kind == "no_text":
                record = {"delete": {"status": {"id": tweet.ident}}} if place == V1 else record
                record.pop("text", None)
            if place == V2:
                if kind not in FAULTS and self._paged(record, rng):
                    return
                record = {"data": record}
            # The v1.1 API sent escaped ASCII, its successor plain UTF-8.
            line = json.dumps(record, ensure_ascii=place == V1)
            line = (line[: len(line) * 2 // 3] if kind == "broken_json" else line) + "\n"
        self._files[place].write(line.encode().replace(_BAD_MARK.encode(), _BAD_BYTES))

    def _paged(self, record: dict[str, Any], rng: random.Random) -> bool:
        if not self._page:
            self._singles += 1
            if self._singles % _PAGE_EVERY != 10:
                return False
            self._page_size = rng.randrange(2, 7)
        self._page.append(record)
        if len(self._page) == self._page_size:
            self.close_page()
        return True

    def close_page(self) -> None:
        """Write the open v2 page, if there is one."""
        if self._page:
            page = {"data": self._page, "meta": {"result_count": len(self._page)}}
            self._files[V2].write(json.dumps(page, ensure_ascii=False).encode() + b"\n")
            self.counts["pages"] += 1
            self._page = []


def _write_corpus(folder: Path, seed: int, num_tweets: int) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        raw = [stack.enter_context((folder / name).open("wb")) for name in FORMAT_FILES]
        files: list[_Sink] = list(raw)
        # No file name and no time in the header: they would change the bytes from run to run.
        files[V1] = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw[V1], mtime=0))
        files[FLAT] = stack.enter_context(bz2.BZ2File(raw[FLAT], "wb"))
        files[CSV].write(b"id,text,lang,created_at\n")
        corpus = _Corpus(files, seed)
        for number, kind in enumerate(_plan(seed, num_tweets)):
            corpus.add(number, kind)
        corpus.close_page()
    return dict(sorted(corpus.counts.items()))


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _record_v1(tweet: _Tweet) -> dict[str, Any]:
    at = tweet.moment
    record: dict[str, Any] = {
        "created_at": f"{_DAYS[at.weekday()]} {_MONTHS[at.month - 1]} {at:%d %H:%M:%S} +0000 {at.year}",
        "id": tweet.ident,
        "id_str": str(tweet.ident),
        "full_text": tweet.text,
        "lang": tweet.lang,
        "user": {"screen_name": tweet.handle, "id_str": str(tweet.user)},
    }
    if tweet.source is not None:
        record["retweeted_status"] = _record_v1(tweet.source)
    return record


def _record_v2(tweet: _Tweet) -> dict[str, Any]:
    return {
        "id": str(tweet.ident),
        "text": tweet.text,
        "lang": tweet.lang,
        "created_at": _iso(tweet.moment),
        "author_id": str(tweet.user),
    }


def _record_flat(tweet: _Tweet) -> dict[str, Any]:
    return {"id": str(tweet.ident), "text": tweet.text, "lang": tweet.lang, "created_at": _iso(tweet.moment)}


_RECORDS: Final[Mapping[int, Callable[[_Tweet], dict[str, Any]]]] = {V1: _record_v1, V2: _record_v2, FLAT: _record_flat}
