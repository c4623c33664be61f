from __future__ import annotations

from training.conftest import data  # noqa: F401  a fixture
