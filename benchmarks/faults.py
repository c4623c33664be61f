"""Mine the real tweets on nodes that are killed and replaced one after the other, against one undisturbed process.

Usage: python benchmarks/faults.py [--config CONFIG] [--rows-per-shard N] [--max-length N]

Texts are cut to a dozen tokens, so that encoding 275,183 tweets twice takes minutes; nothing else is made smaller.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from scalemine.chaos import Blow, Kill, run_drills
from scalemine.executor import StopSignals

BLOWS = [
    Blow(Kill.node, 0.1),
    Blow(Kill.actor, 0.2),
    Blow(Kill.node, 0.3),
    Blow(Kill.worker, 0.45),
    Blow(Kill.driver, 0.55),
    Blow(Kill.node, 0.7),
    Blow(Kill.node, 0.85),
]


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/crisis.yaml"))
    parser.add_argument("--rows-per-shard", type=int, default=4_096)
    parser.add_argument("--max-length", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("work/faults"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    overrides = [
        f"workdir={options.workdir}",
        f"corpus.rows_per_shard={options.rows_per_shard}",
        f"encoder.max_length={options.max_length}",
    ]
    started = time.monotonic()
    with StopSignals() as signals:
        for drill in run_drills(options.config, overrides, [(1, BLOWS)], num_nodes=options.nodes, signals=signals):
            for line in drill.lines:
                print(line)
            print(f"{time.monotonic() - started:.0f} s in all")
            if not drill.has_passed:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
