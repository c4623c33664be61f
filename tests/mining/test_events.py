from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalemine.config import CorpusConfig, GuardConfig, InputError, PositivesConfig
from scalemine.corpus import import_corpus
from scalemine.mining.anchors import Positives, read_positives
from scalemine.mining.events import TWITTER_TIME, columns_of, near_event, seconds_of
from scalemine.mining.sampling import Row, fetch_rows

# Mon Oct 29 20:13:02 2012, UTC.
MOMENT = 1_351_541_582.0
HOUR = 3_600


def positives(*rows) -> Positives:
    names = ("class_name", "event", "time")
    table = [{"id": str(i), "text": f"report {i}", **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", *names)])
    return Positives(pa.Table.from_pylist(table, schema=schema))


def row(*more) -> Row:
    return Row("00000", 0, "id", "a tweet", more)


EVENT = GuardConfig(event="crisis")
TIME = GuardConfig(time="created_at", hours=6)
BOTH = GuardConfig(event="crisis", time="created_at", hours=6)


def test_columns_are_those_that_are_named():
    assert columns_of(GuardConfig()) == ()
    assert columns_of(EVENT) == ("crisis",)
    assert columns_of(TIME) == ("created_at",)
    assert columns_of(BOTH) == ("crisis", "created_at")


def test_nothing_is_near_where_nothing_is_configured():
    is_near = near_event(GuardConfig(), [positives(("fire", "sandy", str(MOMENT)))])
    assert not is_near(row(), "fire")


# Events


@pytest.mark.parametrize(
    ("event", "expected"),
    [("sandy", True), (" Sandy\t", True), ("SANDY", True), ("quake", True), ("sandy hook", False), ("", False)],
)
def test_event_of_any_positive(event, expected):
    train, test = positives(("fire", "Sandy ", None), ("flood", None, None)), positives(("flood", "quake", None))
    is_near = near_event(EVENT, [train, test])
    # Whatever its class: a tweet of the event is a likely positive of another one, too.
    assert [is_near(row(event), name) for name in ("fire", "flood", "storm")] == [expected] * 3


def test_row_without_an_event_is_of_none():
    is_near = near_event(EVENT, [positives(("fire", "sandy", None), ("fire", "", None), ("fire", None, None))])
    assert not is_near(row(None), "fire")
    assert not is_near(row(" "), "fire")


def test_positives_without_events_are_refused():
    with pytest.raises(InputError, match=r"guard.event: .*positives.event"):
        near_event(EVENT, [positives(("fire", None, None), ("flood", "", None))])
    with pytest.raises(InputError, match=r"guard.time: .*positives.time"):
        near_event(TIME, [positives(("fire", "sandy", None))])


# Times


def test_time_of_a_positive_of_the_class():
    is_near = near_event(TIME, [positives(("fire", None, str(MOMENT)), ("flood", None, str(MOMENT + 100 * HOUR)))])
    for hours, expected in ((-6.01, False), (-6, True), (0, True), (5.5, True), (6, True), (6.01, False)):
        text = datetime.fromtimestamp(MOMENT + hours * HOUR, UTC).isoformat()
        assert is_near(row(text), "fire") == expected, hours
        assert not is_near(row(text), "flood")
        # A class without positives of a time.
        assert not is_near(row(text), "storm")


@pytest.mark.parametrize("time", [None, "", "yesterday", "nan"])
def test_row_without_a_time_is_near_none(time):
    assert not near_event(TIME, [positives(("fire", None, str(MOMENT)))])(row(time), "fire")


@pytest.mark.parametrize("time", ["yesterday", "2012-13-01", "nan", "inf", "  "])
def test_time_of_a_positive_that_cannot_be_read(time):
    with pytest.raises(InputError, match="positives.time: cannot read") as caught:
        near_event(TIME, [positives(("fire", None, str(MOMENT)), ("fire", None, time))])
    assert repr(time) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_times_that_nobody_asked_for_are_not_read():
    is_near = near_event(EVENT, [positives(("fire", "sandy", "yesterday"))])
    assert is_near(row("sandy"), "fire")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["fire", "flood"]), st.integers(-50, 50)), min_size=1, max_size=12),
    st.integers(-60, 60),
    st.integers(1, 20),
)
def test_time_equals_loop(known, hour, hours):
    half = len(known) // 2
    groups = [
        positives(*((name, None, str(MOMENT + at * HOUR)) for name, at in part))
        for part in (known[:half], known[half:])
    ]
    is_near = near_event(GuardConfig(time="at", hours=hours), groups)
    for name in ("fire", "flood"):
        expected = any(other == name and abs(at - hour) <= hours for other, at in known)
        assert is_near(row(str(MOMENT + hour * HOUR)), name) == expected


def test_event_or_time():
    is_near = near_event(BOTH, [positives(("fire", "sandy", str(MOMENT)))])
    far = str(MOMENT + 500 * HOUR)
    assert is_near(row("sandy", far), "fire")
    assert is_near(row("sandy", far), "flood")
    assert is_near(row("match", str(MOMENT)), "fire")
    assert not is_near(row("match", str(MOMENT)), "flood")
    assert not is_near(row("match", far), "fire")
    assert not is_near(row(None, None), "fire")


@pytest.mark.parametrize(
    "text",
    [
        "2012-10-29T20:13:02+00:00",
        "2012-10-29T20:13:02Z",
        "2012-10-29 20:13:02",  # without a zone: UTC
        "2012-10-29T21:13:02+01:00",
        "2012-10-29 16:13:02-04:00",
        "2012-10-29 20:13:02.000000",
        "2012-10-29 20:13:02.000000000",  # as Arrow writes nanoseconds
        "2012-10-29 20:13:02.000Z",
        "20121029T201302Z",
        "Mon Oct 29 20:13:02 +0000 2012",
        "Mon Oct 29 22:13:02 +0200 2012",
        "  1351541582 ",
        "1351541582.0",
        "1351541582000",  # milliseconds
        "1351541582000.0",
        "1.351541582e9",
    ],
)
def test_forms_of_a_time(text):
    assert seconds_of(text) == MOMENT


@pytest.mark.parametrize(
    "text", ["", " ", "yesterday", "29.10.2012", "Mon Oct 29 20:13:02 2012", "nan", "-inf", "1e999"]
)
def test_what_is_no_time(text):
    assert seconds_of(text) is None


def test_date_alone_is_its_midnight():
    assert seconds_of("2012-10-29") == MOMENT - (20 * HOUR + 13 * 60 + 2)


@settings(deadline=None)
@given(
    st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2100, 1, 1)),
    st.integers(-12 * 60, 14 * 60),
)
def test_times_round_trip(moment, offset):
    moment = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset)))
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    assert seconds_of(moment.isoformat()) == expected
    assert seconds_of(moment.strftime(TWITTER_TIME)) == expected
    assert seconds_of(str(expected)) == expected
    assert seconds_of(str(round(expected * 1000))) == (expected if expected >= 1e8 else expected * 1000)


@settings(deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"\d{4}-?\d\d-?\d\d([T ]\d\d:?\d\d)?.{0,7}", fullmatch=True))
@example("9999-12-31T23:59:59-23:59")
@example("0001-01-01T00:00:00+23:59")
@example("Mon Jan 01 00:00:00 +9999 2012")
def test_any_text_is_a_time_or_none(text):
    seconds = seconds_of(text)
    assert seconds is None or math.isfinite(seconds)


def test_columns_of_other_types_are_read_from_files(tmp_path):
    moment = datetime(2012, 10, 29, 20, 13, 2)
    for kind in ("s", "ms", "us", "ns"):
        rows = {
            "id": ["1", "2"],
            "text": ["a tweet on the storm", "another one"],
            "class_name": ["fire", "fire"],
            "at": pa.array([moment, moment + timedelta(days=9)], pa.timestamp(kind)),
            "crisis": pa.array([7, 8]),
        }
        pq.write_table(pa.table(rows), tmp_path / f"{kind}.parquet")
        config = CorpusConfig(uri=str(tmp_path / f"{kind}.parquet"), keep=("at", "crisis"))
        corpus = import_corpus(config, tmp_path / kind)
        shard = corpus.shards[0].name
        wanted = GuardConfig(event="crisis", time="at", hours=1)
        near, far = fetch_rows(corpus, [(shard, 0), (shard, 1)], columns_of(wanted))
        pq.write_table(pa.table(rows).slice(0, 1), tmp_path / "positives.parquet")
        uri = str(tmp_path / "positives.parquet")
        labelled = read_positives(uri, PositivesConfig(uri=uri, time="at", event="crisis"))
        for config, expected in ((wanted, True), (wanted.model_copy(update={"event": None}), True)):
            is_near = near_event(config, [labelled])
            keep = slice(None) if config.event else slice(1, None)
            found = [is_near(Row("", 0, "", "", one.more[keep]), "fire") for one in (near, far)]
            assert found == [expected, False]
