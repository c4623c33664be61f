"""Sweeps over settings, folds and hyper-parameters."""
