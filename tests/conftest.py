from __future__ import annotations

import sys
from pathlib import Path

# The oracles and fakes that several test files share, importable as mining.oracles.
sys.path.insert(0, str(Path(__file__).parent))
