# shellcheck shell=bash
# Read on the first node before anything else: what this site wants loaded.
# module load cuda
export HF_HUB_OFFLINE=1
