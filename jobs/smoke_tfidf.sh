#!/bin/sh
# A support vector machine on TF-IDF: incidents among traffic tweets; work/traffic/runs/svm/model is kept.
set -eu
scalemine train configs/smoke_tfidf.yaml
