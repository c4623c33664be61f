"""Damage to files, as disks, networks and editors do it: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from scalemine.config import InputError

# What parsers stumble over: bytes that end or open something, numbers too large, and text that is none.
AWKWARD = (
    b"\x00", b'"', b"'", b"\\", b"\n", b"\r\n", b",", b"\t", b":", b"{", b"}", b"[", b"]", b"-", b" ", b"[" * 3000,
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xf0\x9f", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\\ud800",
    b"9" * 400, b"9" * 5000, b"1e999", b"0x", b"NaN", b"null", b"true", b"2001-99-99", b"../..",
    b"&a", b"*a", b"!!", b"!!int x", b"!!python/object:os.system x", b"<<:", b"? ", b"- ", b"# ", b"%", b"@", b"|",
)  # fmt: skip


def damage(content: bytes, chance: random.Random, most: int = 3) -> bytes:
    """Return content with one to ``most`` places damaged."""
    for _ in range(chance.randint(1, most)):
        begin, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        end = min(end, begin + chance.choice([1, 4, 64, len(content)]))
        part = content[begin:end]
        new = chance.choice(
            [
                b"",
                part + part,
                part[::-1],
                chance.randbytes(chance.randrange(1, 9)),
                chance.choice(AWKWARD),
                part + chance.choice(AWKWARD),
                bytes(byte ^ (1 << chance.randrange(8)) for byte in part[:8]) + part[8:],
            ]
        )
        content = content[:begin] if chance.random() < 0.05 else content[:begin] + new + content[end:]
    return content


def assert_read_or_refused(path: Path, seeds: Iterable[int], read: Callable[[], bool]) -> None:
    """Damage a file in many ways; each time it is read as it should be, or refused in one line, and both happen.

    Args:
        path: The file.
        seeds: Of the damages.
        read: Reads it; says whether what was read is as it should be.
    """
    content, outcomes = path.read_bytes(), []
    for seed in seeds:
        path.write_bytes(damage(content, random.Random(seed)))
        try:
            assert read(), seed
            outcomes.append("read")
        except InputError as error:
            assert "\n" not in str(error), seed
            outcomes.append("refused")
        except Exception as error:
            raise AssertionError(f"seed {seed}: {path.read_bytes()!r}") from error
    assert len(outcomes) / 4 < outcomes.count("refused") < len(outcomes)
