"""Training, scoring and using sequence taggers."""
