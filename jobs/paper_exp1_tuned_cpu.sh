#!/bin/sh
# Experiment 1 of the paper on a laptop, fine-tuned: some minutes a run. Each step goes on where it was stopped.
set -eu
scalemine mine configs/crisis.yaml
scalemine sweep configs/paper_exp1_tuned_cpu.yaml
scalemine compare work/crisis --sweep paper_exp1_tuned_cpu
