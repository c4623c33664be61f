#!/bin/sh
# The grid of the paper: needs GPUs and the model hub. Each step goes on where it was stopped.
set -eu
scalemine mine configs/paper.yaml
scalemine sweep configs/paper_grid.yaml
scalemine compare work/paper --sweep paper_grid
