#!/bin/sh
# The main path on invented tweets. A second call finds everything done.
set -eu
[ -d work/sample/tweets ] || scalemine sample --to work/sample
scalemine mine configs/demo.yaml
