"""Events and times: a tweet of the same event as the positives is hardly a negative, whatever its score."""

from __future__ import annotations

import bisect
import logging
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from scalemine.config import GuardConfig, InputError
from scalemine.mining.anchors import Positives
from scalemine.mining.sampling import Row

logger = logging.getLogger(__name__)

# "Mon Oct 29 20:13:02 +0000 2012", as Twitter's first API wrote it.
TWITTER_TIME = "%a %b %d %H:%M:%S %z %Y"
# A number from here on counts milliseconds, not seconds.
MILLISECONDS = 1e11


def normal_event(event: str | None) -> str:
    """Return an event's name without regard to case and blanks around it; empty for none."""
    return (event or "").strip().lower()


def columns_of(config: GuardConfig) -> tuple[str, ...]:
    """Return the columns of the corpus that ``near_event`` looks at."""
    return tuple(column for column in (config.event, config.time) if column)


def near_event(config: GuardConfig, positives: Sequence[Positives]) -> Callable[[Row, str], bool]:
    """Return what tells whether a row is of an event of any positive, or near in time to a positive of the class.

    Rows carry the columns of ``columns_of``. A row without an event or a time is of no event.

    Raises:
        InputError: A column is configured that the positives do not have, or a time of theirs cannot be read.
    """
    events: set[str] = set()
    times: dict[str, list[float]] = {}
    for group in positives:
        rows = group.table.select(["class_name", "event", "time"]).to_pylist()
        events |= {normal_event(row["event"]) for row in rows} - {""}
        for row in rows:
            if config.time and row["time"]:
                times.setdefault(row["class_name"], []).append(_read(row["time"]))
    if config.event and not events:
        raise InputError("guard.event: no positive has an event; name its column by positives.event")
    if config.time and not times:
        raise InputError("guard.time: no positive has a time; name its column by positives.time")
    for known in times.values():
        known.sort()

    warned: list[str] = []

    def is_near(row: Row, class_name: str) -> bool:
        more = dict(zip(columns_of(config), row.more, strict=True))
        event = more.get(config.event or "")
        if normal_event(event) in events:
            return True
        time = more.get(config.time or "")
        seconds = seconds_of(time) if time else None
        if time and seconds is None and not warned:
            warned.append(time)
            logger.warning(
                "guard.time: a time of the corpus cannot be read: %r; such tweets are taken to be of no time", time
            )
        return seconds is not None and _gap(times.get(class_name, []), seconds) <= config.hours * 3600

    return is_near


def seconds_of(text: str) -> float | None:
    """Return the seconds since 1970 of a time: ISO 8601, Twitter's, or a number; None for anything else.

    A time without a zone is taken for UTC.
    """
    text = text.strip().removesuffix(" UTC")
    # 20121029 is a date.
    if not re.fullmatch(r"\d{8}", text):
        try:
            number = float(text)
        except ValueError:
            pass
        else:
            if not math.isfinite(number):
                return None
            return number / 1000 if abs(number) >= MILLISECONDS else number
    for read in (datetime.fromisoformat, lambda value: datetime.strptime(value, TWITTER_TIME)):
        try:
            moment = read(text)
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None


def _read(text: str) -> float:
    seconds = seconds_of(text)
    if seconds is None:
        raise InputError(
            f"positives.time: cannot read {text!r} as a time; expected ISO 8601, Twitter's format, or seconds of 1970"
        )
    return seconds


def _gap(times: Sequence[float], seconds: float) -> float:
    """Return the distance to the nearest of sorted times, in seconds."""
    place = bisect.bisect(times, seconds)
    return min((abs(time - seconds) for time in times[max(0, place - 1) : place + 1]), default=float("inf"))
