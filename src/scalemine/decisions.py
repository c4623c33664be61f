"""What a person decided on tweets that mining was unsure about: one JSON object a line, only ever added to.

A line without its end is what a crash left: it is ignored, and cut off before the next line is added. The tweets
themselves are not repeated here; a decision is found by ``scalemine.text.duplicate_key``, so it holds for copies too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from datetime import UTC, datetime
from enum import StrEnum
from io import FileIO
from pathlib import Path

from filelock import FileLock

from scalemine import bucket
from scalemine.config import InputError
from scalemine.text import duplicate_key

# Longer than any disk takes to sync one line.
_LOCK_SECONDS = 10.0


class Decision(StrEnum):
    """The answer to whether a tweet is a positive of a class."""

    yes = "yes"
    no = "no"
    skip = "skip"


def read_decisions(path: Path) -> dict[bytes, str]:
    """Return the last decision on each tweet by its duplicate key; none where there is no file.

    Raises:
        InputError: A line is not a decision; the message names it.
    """
    if not path.exists():
        return {}
    decisions: dict[bytes, str] = {}
    # What stands behind the last end of a line is not whole.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            decisions[bytes.fromhex(entry["key"])] = Decision(entry["decision"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f'{path}, line {number}: not a decision (expected an object with "key", in hexadecimal, and '
                f'"decision", one of {", ".join(Decision)}); correct or delete the line'
            ) from None
    return decisions


def append_decision(path: Path, text: str, *, tweet_id: str, class_name: str, decision: Decision) -> None:
    """Add a decision and sync it to the disk; it replaces an earlier one on the same tweet or a copy of it.

    Args:
        path: The file of decisions, made if it is new.
        text: The tweet, as it was mined.
        tweet_id: Its identifier.
        class_name: The class that was asked for.
        decision: The answer.

    Raises:
        OSError: The line could not be written; the file is then as it was, or ends in a part of the line.
        BucketError: It is in the mirror, and not in the bucket; the next line brings it along.
    """
    entry = {
        "key": duplicate_key(text).hex(),
        "id": tweet_id,
        "class_name": class_name,
        "decision": decision,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    line = json.dumps(entry).encode() + b"\n"
    # Two reviews of one folder must not take the other's line for what a crash left.
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS):
        with path.open("ab+", buffering=0) as file:
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                # The failure itself is what the caller is told.
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        bucket.upload(path, path)


def _end_of_lines(file: FileIO) -> int:
    """Return the size of a file up to the end of its last whole line."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            return file.read().rfind(b"\n") + 1
    return size
