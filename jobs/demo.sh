#!/bin/sh
# The main path on invented tweets. A second call finds everything done.
set -eu
[ -f work/sample/positives_test.parquet ] || scalemine sample --to work/sample
scalemine mine configs/demo.yaml
scalemine train configs/demo.yaml
