#!/bin/sh
# Experiment 1 of the paper: needs GPUs and the model hub. Each step goes on where it was stopped.
set -eu
scalemine mine configs/paper.yaml
scalemine sweep configs/paper_exp1.yaml
scalemine compare work/paper --sweep paper_exp1
