from training.conftest import data  # noqa: F401  tweets, and static vectors of their words
