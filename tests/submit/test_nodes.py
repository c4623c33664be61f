from __future__ import annotations

import sys
import time

import pytest

from scalemine.submit import nodes


def test_it_waits_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def two_are_there(address: str, wanted: int, deadline: float) -> int:
        assert deadline > time.monotonic()
        asked.append((address, wanted))
        return 2

    monkeypatch.setattr(nodes, "await_nodes", two_are_there)
    monkeypatch.setattr(sys, "argv", ["nodes", "10.0.0.1:6379", "2"])
    nodes.main()
    assert asked == [("10.0.0.1:6379", 2)]
    monkeypatch.setattr(sys, "argv", ["nodes", "10.0.0.1:6379", "3"])
    with pytest.raises(SystemExit, match="2 of 3 nodes of the Ray cluster at 10.0.0.1:6379 came"):
        nodes.main()
