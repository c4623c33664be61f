#!/bin/sh
# Experiment 1 of the paper on a laptop. Each step goes on where it was stopped.
set -eu
scalemine mine configs/crisis.yaml
scalemine sweep configs/paper_exp1_cpu.yaml
scalemine compare work/crisis --sweep paper_exp1_cpu
