#!/bin/sh
# Experiment 2 of the paper: needs GPUs, the model hub, and glove.twitter.27B.200d.txt in this folder. Each step goes on where it was stopped.
set -eu
scalemine mine configs/paper.yaml
scalemine sweep configs/paper_exp2.yaml
scalemine compare work/paper --sweep paper_exp2
