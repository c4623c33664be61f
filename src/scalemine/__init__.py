"""Mine difficult negatives out of large tweet corpora, and train taggers and classifiers with them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalemine.training.multilabel.classifier import Classifier
    from scalemine.training.tagging.tagger import Tagger

__all__ = ["Classifier", "Tagger"]

_MODULES = {"Classifier": "scalemine.training.multilabel.classifier", "Tagger": "scalemine.training.tagging.tagger"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module's attribute
    """Import a model when it is asked for: torch takes seconds, and the command line's help wants none of it."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
