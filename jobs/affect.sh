#!/bin/sh
# Emotions in tweets: a fine-tuned classifier, a classical one on frozen embeddings, and a map of the tweets.
set -eu
scalemine train configs/affect_cpu.yaml
scalemine train configs/affect_cpu.yaml --set train.model=logistic_regression
scalemine map configs/affect_cpu.yaml
