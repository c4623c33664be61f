#!/bin/sh
# A support vector machine on TF-IDF: incidents among traffic tweets, five folds; its models are kept.
set -eu
scalemine train configs/smoke_tfidf.yaml
