"""Mine difficult negatives out of large tweet corpora, and train sequence taggers on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalemine.training.tagging.tagger import Tagger

__all__ = ["Tagger"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module's attribute
    """Import the tagger when it is asked for: torch takes seconds, and the command line's help wants none of it."""
    if name == "Tagger":
        from scalemine.training.tagging.tagger import Tagger

        return Tagger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
