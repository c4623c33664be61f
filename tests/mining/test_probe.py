from __future__ import annotations

import numpy as np
import pytest

from mining import oracles
from scalemine.config import MiningConfig
from scalemine.mining.anchors import Anchors
from scalemine.mining.probe import AUDIT_ROWS, MIN_MARGIN, Probe, load_probe, probe_size, store_probe
from scalemine.mining.sampling import Row
from scalemine.store import open_stage

DIM = 32


class FakeEncoder:
    """Unit vectors from the text's number; a low-precision one is off by a known turn towards one axis."""

    def __init__(self, precision: str, tilt: float = 0.0, engine: str = "torch") -> None:
        self.precision, self.tilt, self.engine, self.encoded = precision, tilt, engine, 0

    def encode_texts(self, texts):
        self.encoded += len(texts)
        rows = np.stack([oracles.unit_rows(np.random.default_rng(int(text)), 1, DIM)[0] for text in texts])
        rows[:, 0] += self.tilt
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def anchors():
    vectors = oracles.unit_rows(np.random.default_rng(0), 2, DIM).astype(np.float32)
    return Anchors(("fire", "flood"), vectors, ("a", "b"), np.array([0, 1]), vectors, ("A", "B"))


def stored(tmp_path, low, num_rows=AUDIT_ROWS + 40) -> tuple[Probe, FakeEncoder]:
    stage = open_stage(tmp_path / "probe", version=1, settings={}, inputs={})
    assert load_probe(stage) is None
    exact = FakeEncoder("float32")
    store_probe([Row("00000", i, f"t{i}", str(i)) for i in range(num_rows)], low, exact, stage)
    probe = load_probe(stage)
    assert probe is not None
    return probe, exact


def test_error_is_the_largest_change_of_a_similarity(tmp_path, anchors):
    probe, exact = stored(tmp_path, FakeEncoder("bfloat16", tilt=0.05))
    assert exact.encoded == AUDIT_ROWS
    texts = [str(i) for i in range(AUDIT_ROWS)]
    low, high = FakeEncoder("bfloat16", tilt=0.05).encode_texts(texts), exact.encode_texts(texts)
    changes = [abs(float((a - b) @ anchor)) for a, b in zip(low, high, strict=True) for anchor in anchors.vectors_KD]
    assert probe.max_error(anchors) == pytest.approx(max(changes), abs=1e-3)
    assert probe.margin(anchors) == 2 * probe.max_error(anchors)
    assert 0 < probe.band_changed_share(anchors, "both") < 0.5


def test_float32_needs_no_audit(tmp_path, anchors):
    probe, exact = stored(tmp_path, FakeEncoder("float32"), num_rows=50)
    assert exact.encoded == 0
    assert probe.max_error(anchors) == 0
    assert probe.margin(anchors) == MIN_MARGIN
    assert probe.band_changed_share(anchors, "both") == 0


def test_another_engine_is_audited_in_float32_too(tmp_path, anchors):
    probe, exact = stored(tmp_path, FakeEncoder("float32", tilt=0.05, engine="onednn"), num_rows=50)
    assert exact.encoded == 50
    assert probe.max_error(anchors) > 0


def test_fewer_rows_than_the_audit_wants(tmp_path, anchors):
    probe, exact = stored(tmp_path, FakeEncoder("bfloat16", tilt=0.1), num_rows=7)
    assert exact.encoded == 7
    assert [one.count for one in probe.distributions(anchors)] == [7, 7]
    assert probe.max_error(anchors) > 0


@pytest.mark.parametrize(
    ("fit", "num_rows", "expected"),
    [("exact", 10, 300), ("exact", 20_000, 1_000), ("exact", 10**8, 3_000), ("sample", 20_000, 3_000)],
)
def test_small_corpora_have_small_probes(fit, num_rows, expected):
    assert probe_size(MiningConfig(fit=fit), num_rows) == expected
