"""Where a stage runs: on this machine, on a Ray cluster, by Slurm, or on Kubernetes."""
