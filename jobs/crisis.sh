#!/bin/sh
# Difficult negatives from the real corpus; each step goes on where it was stopped.
set -eu
scalemine mine configs/crisis.yaml --dry-run
scalemine mine configs/crisis.yaml
