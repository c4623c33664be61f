"""Sequence taggers: spans in tweets."""
