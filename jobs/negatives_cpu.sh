#!/bin/sh
# Which negatives beat random ones: other tails, beyond three sigma, with the guard, mixtures. After jobs/paper_exp1_cpu.sh.
set -eu
bands='mining.bands=[1, 2, 3, 4]' mix='sets.mix={random: 0.5, 3s: 0.5}'
scalemine mine configs/crisis.yaml --set "$bands" --set "$mix"
for name in upper guarded; do  # the same corpus and embeddings
    mkdir -p work/crisis_$name
    [ -d work/crisis_$name/embeddings ] || cp -al work/crisis/corpus work/crisis/embeddings work/crisis_$name/
done
# With another seed, so that few negatives are those of the test sets of work/crisis; those few are left out.
scalemine mine configs/crisis.yaml --set workdir=work/crisis_upper --set seed=7 --set mining.tails=upper --set "$bands" --set "$mix"
scalemine mine configs/crisis.yaml --set workdir=work/crisis_guarded --set seed=7 --set mining.tails=upper \
    --set 'mining.bands=[2, 3, 4]' --set guard.max_false_negative=0.05 --set "$mix"
for name in upper guarded; do python jobs/apart.py work/crisis_$name work/crisis; done
scalemine sweep configs/negatives_cpu.yaml
scalemine compare work/crisis --sweep negatives_cpu
