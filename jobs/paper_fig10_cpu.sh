#!/bin/sh
# Figure 10 of the paper on a laptop. Each step goes on where it was stopped.
set -eu
scalemine mine configs/crisis.yaml
scalemine sweep configs/paper_fig10_cpu.yaml
scalemine compare work/crisis --sweep paper_fig10_cpu
