#!/bin/sh
# Twelve short runs on the invented sample. After jobs/demo.sh in a few minutes.
set -eu
[ -f work/sample/positives_test.parquet ] || scalemine sample --to work/sample
scalemine mine configs/demo.yaml
scalemine sweep configs/smoke_sweep.yaml
scalemine compare work/demo --sweep smoke_sweep
