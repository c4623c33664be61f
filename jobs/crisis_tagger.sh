#!/bin/sh
# A tagger for each training set of jobs/crisis.sh, in the same folds; each step goes on where it was stopped.
set -eu
for set in no random 1s 2s 3s; do
    scalemine train configs/crisis_tagger.yaml --set "train.train_set=$set"
done
