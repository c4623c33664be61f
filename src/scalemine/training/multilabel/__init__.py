"""Multilabel classifiers: several labels, one or none per tweet."""
