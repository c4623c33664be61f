from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalemine import sample_pools as pools
from scalemine.sample import FORMAT_FILES, SHARES, SampleFiles, write_sample

NUM_TWEETS = 2_000
TYPES = {"traffic", "fire_explosion", "bombing", "armed_assault", "civil_disorder", "natural_hazard"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SampleFiles:
    return write_sample(tmp_path_factory.mktemp("sample"), num_tweets=NUM_TWEETS)


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def raw(files: SampleFiles, name: str) -> bytes:
    data = (files.corpus / name).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else bz2.decompress(data) if name.endswith(".bz2") else data


def naive(files: SampleFiles) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Read all formats the simplest way; return (id, text) of the sound records and what went wrong."""
    found: list[tuple[str, str]] = []
    faults: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()

    def take(name: str, ident: str, text: str | None) -> None:
        if text is None:
            faults["no_text"] += 1
        elif not text:
            faults["empty_text"] += 1
        elif (name, ident) in seen:
            faults["duplicate_id"] += 1
        else:
            seen.add((name, ident))
            found.append((ident, text))

    for name in FORMAT_FILES:
        if name.endswith(".csv"):
            text = raw(files, name).decode(errors="surrogateescape")
            for row in csv.DictReader(io.StringIO(text, newline="")):
                assert None not in row and None not in row.values()
                if re.search("[\udc80-\udcff]", row["text"]):
                    faults["invalid_utf8"] += 1
                else:
                    take(name, row["id"], row["text"])
            continue
        for line in raw(files, name).splitlines():
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError:
                faults["invalid_utf8"] += 1
                continue
            except json.JSONDecodeError:
                faults["broken_json"] += 1
                continue
            inner = record.get("data", record)
            faults["pages"] += isinstance(inner, list)
            for tweet in inner if isinstance(inner, list) else [inner]:
                take(name, str(tweet.get("id")), tweet.get("full_text", tweet.get("text")))
    return found, faults


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_same_seed_same_bytes(files: SampleFiles, tmp_path: Path) -> None:
    again = write_sample(tmp_path / "again", num_tweets=NUM_TWEETS)
    other = write_sample(tmp_path / "other", num_tweets=NUM_TWEETS, seed=8)
    first = digests(files.corpus.parent)
    assert first == digests(tmp_path / "again")
    assert files.counts == again.counts
    changed = digests(tmp_path / "other")
    assert set(changed) == set(first) and not set(changed.values()) & set(first.values())
    assert other.counts["records"] == NUM_TWEETS


def test_only_the_promised_files(files: SampleFiles) -> None:
    folder = files.corpus.parent
    expected = {f"tweets/{name}" for name in FORMAT_FILES} | {"positives.parquet", "positives_test.parquet"}
    assert set(digests(folder)) == expected


def test_too_few_tweets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 100"):
        write_sample(tmp_path, num_tweets=99)


def test_smallest_sample_has_every_kind(tmp_path: Path) -> None:
    counts = write_sample(tmp_path, num_tweets=100).counts
    assert all(counts[kind] >= 1 for kind in SHARES)
    assert counts["records"] == 100


@pytest.mark.parametrize(("which", "expected"), [("positives", 240), ("positives_test", 72)])
def test_positives(files: SampleFiles, which: str, expected: int) -> None:
    found = rows(getattr(files, which))
    assert len(found) == expected == files.counts[which]
    assert set(Counter(row["type"] for row in found).values()) == {expected // 6}
    assert {row["type"] for row in found} == TYPES
    assert len({row["id"] for row in found}) == len({row["text"] for row in found}) == expected
    empty = sum(not row["spans"] for row in found)
    assert 0.15 <= empty / expected <= 0.25
    assert any(span["type"] != row["type"] for row in found for span in row["spans"])


@pytest.mark.parametrize(
    ("which", "events"), [("positives", pools.TRAIN_EVENTS), ("positives_test", pools.TEST_EVENTS)]
)
def test_spans_are_exact(files: SampleFiles, which: str, events: dict[str, tuple[pools.Event, ...]]) -> None:
    covered: set[str] = set()
    for row in rows(getattr(files, which)):
        event = next(event for event in events[row["type"]] if event[0] == row["event"])
        own = {act.lower() for act in event[2]}
        end = 0
        for span in row["spans"]:
            assert end <= span["start"] < span["end"] <= len(row["text"])
            end = span["end"]
            phrase = row["text"][span["start"] : span["end"]]
            assert phrase == phrase.strip() != ""
            # The whole phrase and nothing else, of the type that the event gives it.
            assert phrase.lower() in (own if span["type"] == row["type"] else {event[3][1].lower()})
            covered.add(span["type"])
        # No phrase of the event stands in the text without its span.
        marked = {row["text"][span["start"] : span["end"]].lower() for span in row["spans"]}
        assert {act for act in own if act in row["text"].lower()} <= marked
    assert covered == TYPES


def test_events_are_disjoint(files: SampleFiles) -> None:
    train, test = ({row["event"] for row in rows(path)} for path in (files.positives, files.positives_test))
    assert len(train) == 24 and len(test) == 12
    assert not train & test
    tables = (pools.TRAIN_EVENTS, pools.TEST_EVENTS, pools.HIDDEN_EVENTS)
    sets = [
        {part for kind in table.values() for place, tag, acts, extra in kind for part in (place, tag, *acts, extra[1])}
        for table in tables
    ]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_other_event_type_differs_from_main() -> None:
    for table in (pools.TRAIN_EVENTS, pools.TEST_EVENTS, pools.HIDDEN_EVENTS):
        assert set(table) == TYPES
        for kind, events in table.items():
            assert all(event[3][0] in TYPES - {kind} for event in events)


def test_planted_counts_are_found(files: SampleFiles) -> None:
    found, faults = naive(files)
    planted = {kind: files.counts[kind] for kind in ("broken_json", "no_text", "empty_text", "duplicate_id", "pages")}
    planted["invalid_utf8"] = files.counts["invalid_utf8"]
    assert dict(faults) == planted
    assert len(found) == NUM_TWEETS - sum(planted.values()) + planted["pages"]
    assert len({ident for ident, _ in found}) == len(found)
    assert files.counts["records"] == NUM_TWEETS == sum(files.counts[kind] for kind in (*SHARES, "chatter"))


def test_formats_have_about_equal_shares(files: SampleFiles) -> None:
    for name in FORMAT_FILES:
        pattern = rb"^\d{19}," if name.endswith(".csv") else rb'"(?:author_id|id_str)"|"id": "'
        matches = len(re.findall(pattern, raw(files, name), re.MULTILINE))
        assert matches > NUM_TWEETS * 0.2


def test_texts_are_varied(files: SampleFiles) -> None:
    texts = [text for _, text in naive(files)[0]]
    assert len(set(texts)) > 0.6 * len(texts)
    plain = Counter(text for text in texts if not text.startswith("RT @"))
    duplicates = sum(number - 1 for number in plain.values())
    assert duplicates >= files.counts["exact_copy"] * 0.9
    words = {word for text in texts for word in re.findall(r"[a-z]{3,}", text.lower())}
    assert len(words) > 1_500


def test_near_misses_appear(files: SampleFiles) -> None:
    texts = [text.lower() for _, text in naive(files)[0]]
    phrases = ("is dying", "traffic", "bombed", "flood", "fire drill", "crash test", "demoli", "fireworks", "riot",
               "insurance", "recruitment", "blew up", "shots", "crash", "storm", "earthquake", "explo")  # fmt: skip
    # A small sample draws each template less than once on average, so no single one is certain to appear.
    assert sum(any(phrase in text for text in texts) for phrase in phrases) >= len(phrases) * 2 / 3
    planted = files.counts["figurative"] + files.counts["hard_near_miss"]
    literals = [
        max(re.split(r"\{\w+\}", line), key=len).strip().lower() for line in (*pools.FIGURATIVE, *pools.HARD_NEAR)
    ]
    literals = [literal for literal in literals if len(literal) >= 8]
    # Typos and stretched words hide some of them.
    assert sum(any(literal in text for literal in literals) for text in texts) > 0.75 * planted
    assert planted / NUM_TWEETS == pytest.approx(0.12, abs=0.01)


def test_hidden_crisis_tweets_are_not_those_of_the_positives(files: SampleFiles) -> None:
    everything = "\n".join(text.lower() for _, text in naive(files)[0])
    hidden = [act for kind in pools.HIDDEN_EVENTS.values() for event in kind for act in event[2]]
    assert sum(everything.count(act.lower()) for act in hidden) >= files.counts["hidden_crisis"]
    for table in (pools.TRAIN_EVENTS, pools.TEST_EVENTS):
        places = [event[0].lower() for kind in table.values() for event in kind]
        assert [place for place in places if place in everything] == []


def test_v1_retweets(files: SampleFiles) -> None:
    retweets = 0
    for line in raw(files, FORMAT_FILES[0]).splitlines():
        try:
            tweet = json.loads(line)
        except ValueError:
            continue
        inner = tweet.get("retweeted_status")
        if inner is None:
            continue
        retweets += 1
        whole = f"RT @{inner['user']['screen_name']}: {inner['full_text']}"
        assert tweet["full_text"] == whole or (
            len(tweet["full_text"]) == 140
            and tweet["full_text"].endswith("…")
            and whole.startswith(tweet["full_text"][:-1])
        )
        assert tweet["id"] > inner["id"]
    assert retweets > 5


def test_nothing_leaks_labels(files: SampleFiles) -> None:
    keys: set[str] = set()
    for name in FORMAT_FILES:
        if name.endswith(".csv"):
            assert raw(files, name).startswith(b"id,text,lang,created_at\n")
            continue
        keys |= {key.decode() for key in re.findall(rb'"(\w+)": ', raw(files, name))}
    assert keys <= {
        "author_id", "created_at", "data", "delete", "full_text", "id", "id_str", "lang", "meta", "result_count",
        "retweeted_status", "screen_name", "status", "text", "user",
    }  # fmt: skip


def test_csv_holds_quotes_and_newlines(files: SampleFiles) -> None:
    text = raw(files, "export.csv").decode(errors="surrogateescape")
    fields = [row["text"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert any('"' in field for field in fields) and any("\n" in field for field in fields)


def test_languages(files: SampleFiles) -> None:
    text = raw(files, "export.csv").decode(errors="surrogateescape")
    langs = Counter(row["lang"] for row in csv.DictReader(io.StringIO(text, newline="")))
    assert set(langs) >= set(pools.FOREIGN) | {"en"}
    assert files.counts["foreign"] == pytest.approx(0.1 * NUM_TWEETS, rel=0.05)


def test_every_slot_has_a_pool() -> None:
    chatter = [line for block in (*pools.CHATTER.values(), *pools.FOREIGN.values()) for line in block]
    words = [word for pool in pools.POOLS.values() for word in pool]
    lines = [*chatter, *words, *pools.FIGURATIVE, *pools.HARD_NEAR]
    assert {slot for line in lines for slot in re.findall(r"\{(\w+)\}", line)} <= {*pools.POOLS, "link"}
    assert len(chatter) + len(pools.FIGURATIVE) + len(pools.HARD_NEAR) > 250
    assert len(words) > 1_000


def test_handles_cannot_be_real_accounts(files: SampleFiles) -> None:
    handles = {handle for _, text in naive(files)[0] for handle in re.findall(r"@(\w+)", text) if "…" not in text}
    assert handles and min(map(len, handles)) > 15
