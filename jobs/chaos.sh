#!/bin/sh
# Twenty drills: a run that is killed, in each of four ways and at moments that the seed draws, ends with the same bytes.
set -eu
[ -f work/sample_small/positives_test.parquet ] || scalemine sample --to work/sample_small --tweets 1500
scalemine chaos configs/smoke_mine.yaml --drills 20 --seed "${1:-1}"
