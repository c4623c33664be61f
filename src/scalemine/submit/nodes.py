"""Wait until a Ray cluster is up: ``python -m scalemine.submit.nodes HOST:PORT NODES``."""

from __future__ import annotations

import sys
import time

from scalemine.executor import await_nodes

# Nodes of a large allocation do not start at once.
PATIENCE = 300.0


def main() -> None:
    """Wait, and end with code 1 where the nodes do not come."""
    address, nodes = sys.argv[1:]
    deadline = time.monotonic() + PATIENCE
    there = await_nodes(address, int(nodes), deadline)
    if there < int(nodes):
        sys.exit(f"scalemine: {there} of {nodes} nodes of the Ray cluster at {address} came within {PATIENCE:.0f} s")


if __name__ == "__main__":
    main()
