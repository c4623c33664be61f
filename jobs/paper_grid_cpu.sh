#!/bin/sh
# The grid of the paper on a laptop. Each step goes on where it was stopped.
set -eu
scalemine mine configs/crisis.yaml
scalemine sweep configs/paper_grid_cpu.yaml
scalemine compare work/crisis --sweep paper_grid_cpu
