#!/bin/sh
# A classifier on the invented sample: its classes are the labels, mined negatives are unknown. After jobs/demo.sh in two minutes.
set -eu
[ -f work/sample/positives_test.parquet ] || scalemine sample --to work/sample
scalemine mine configs/demo.yaml
scalemine train configs/smoke_multilabel.yaml
