"""Copy training sets without the negatives that are in test sets: python jobs/apart.py TRAIN_WORKDIR TEST_WORKDIR.

Workdirs that are mined with other settings do not know of one another, so a negative of one's training sets may be in
the other's test sets. The copies are in TRAIN_WORKDIR/apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalemine.store import Workdir, write_whole


def main() -> None:
    """Copy the sets, and say what was left out."""
    train, test = (Workdir(Path(folder)) for folder in sys.argv[1:])
    tested = pa.concat_tables(pq.read_table(path, columns=["id"]) for path in test.sets.glob("test_*.parquet"))
    for path in sorted(train.sets.glob("train_*.parquet")):
        rows = pq.read_table(path)
        is_tested = pc.is_in(rows["id"], value_set=tested["id"].combine_chunks())
        kept = rows.filter(pc.invert(pc.and_(rows["is_negative"], is_tested)))
        with write_whole(train.root / "apart" / path.name) as temporary:
            pq.write_table(kept, temporary, compression="zstd")
        print(f"{path.name}: {rows.num_rows - kept.num_rows} of {rows.num_rows} tweets left out")  # noqa: T201  a job's own words


if __name__ == "__main__":
    main()
