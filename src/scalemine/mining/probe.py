"""The probe: a sample of the corpus, encoded before the rest, in its precision and, in part, in float32.

It forecasts the bands, can stand for the corpus in the fit, and measures how far low precision moves S_an.

Shapes: P rows of the sample, A rows of it that are audited, K classes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalemine.config import MiningConfig
from scalemine.encoder import Encoder
from scalemine.mining import distributions
from scalemine.mining.anchors import Anchors
from scalemine.mining.sampling import Row
from scalemine.mining.similarity import STEPS_PER_UNIT, SimilarityDistribution, Tails, anchor_grid, similarities
from scalemine.shards import matrix, matrix_column, read_arrow, write_arrow
from scalemine.store import Stage

AUDIT_ROWS = 1_000
# A small corpus is not encoded twice for its forecast's sake.
MIN_ROWS, ROWS_PER_PROBED = 300, 20
# How far a stored S_an may be off although nothing was seen to be: rounding to float16 and to the grid.
MIN_MARGIN = 1e-3

_FILE = "sample.arrow"


@dataclass(frozen=True, eq=False)
class Probe:
    """An encoded sample of the corpus.

    Args:
        vectors_PD: Embeddings as the corpus's.
        exact_AD: Embeddings of the first rows by torch in float32 (stored as float16); none where that is what the
            corpus's are.
    """

    vectors_PD: NDArray[np.float16]
    exact_AD: NDArray[np.float16]

    def distributions(self, anchors: Anchors) -> list[SimilarityDistribution]:
        """Return the distribution of S_an per class over the sample."""
        return distributions.of_sample(self.steps(anchors), anchors.class_names)

    def steps(self, anchors: Anchors) -> NDArray[np.int16]:
        """Return S_an of the sample ``(P, K)``, in steps of 2^-15."""
        return similarities(self.vectors_PD, anchor_grid(anchors.vectors_KD))

    def max_error(self, anchors: Anchors) -> float:
        """Return the largest change of S_an by low precision, over the audited rows and the classes."""
        low_AK, exact_AK = self._audit(anchors)
        return float(np.abs(low_AK.astype(np.int32) - exact_AK).max(initial=0) / STEPS_PER_UNIT)

    def margin(self, anchors: Anchors) -> float:
        """Return how far a stored S_an may be off: twice what was seen, as a sample misses the largest."""
        return max(MIN_MARGIN, 2 * self.max_error(anchors))

    def band_changed_share(self, anchors: Anchors, tails: Tails) -> float:
        """Return the share of (audited row, class) that low precision puts into another band."""
        low_AK, exact_AK = self._audit(anchors)
        changed = []
        for index, exact in enumerate(distributions.of_sample(exact_AK, anchors.class_names)):
            if exact.count:
                normal = distributions.fit(exact)
                low_A, exact_A = (normal.bands(steps[:, index] / STEPS_PER_UNIT, tails) for steps in (low_AK, exact_AK))
                changed.append(float((low_A != exact_A).mean()))
        return float(np.mean(changed)) if changed else 0.0

    def _audit(self, anchors: Anchors) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        grid_KD = anchor_grid(anchors.vectors_KD)
        return similarities(self.vectors_PD[: len(self.exact_AD)], grid_KD), similarities(self.exact_AD, grid_KD)


def probe_size(config: MiningConfig, num_rows: int) -> int:
    """Return how many rows of a corpus to probe: of a small one fewer than ``sample_size``, but for a sampled fit."""
    if config.fit == "sample":
        return config.sample_size
    return min(config.sample_size, max(MIN_ROWS, num_rows // ROWS_PER_PROBED))


def store_probe(rows: Sequence[Row], encoder: Encoder, exact_encoder: Encoder, stage: Stage) -> None:
    """Encode a sample and write it: shard, row, id, vector, and exact (null but for the audited rows)."""
    texts = [row.text for row in rows]
    vectors_PD = encoder.encode_texts(texts).astype(np.float16)
    exact_PD = np.zeros_like(vectors_PD)
    is_exact = (encoder.precision, encoder.engine) == (exact_encoder.precision, exact_encoder.engine)
    num_audited = 0 if is_exact else min(AUDIT_ROWS, len(rows))
    if num_audited:
        exact_PD[:num_audited] = exact_encoder.encode_texts(texts[:num_audited])
    columns = {name: [getattr(row, name) for row in rows] for name in ("shard", "row", "id")}
    columns["vector"] = matrix_column(vectors_PD, np.ones(len(rows), np.bool_))
    columns["exact"] = matrix_column(exact_PD, np.arange(len(rows)) < num_audited)
    write_arrow(stage.file(_FILE), pa.table(columns))
    stage.commit(stage.file(_FILE), rows=len(rows))


def load_probe(stage: Stage) -> Probe | None:
    """Return the stored probe, or None where it is not finished."""
    if stage.manifest(stage.file(_FILE)) is None:
        return None
    table = read_arrow(stage.file(_FILE))
    exact_PD, is_audited_P = matrix(table["exact"])
    return Probe(matrix(table["vector"])[0], exact_PD[: int(is_audited_P.sum())])


def probed_places(stage: Stage) -> list[tuple[str, int]]:
    """Return where in the corpus (shard, row) the tweets of a stored probe are, in its order."""
    table = read_arrow(stage.file(_FILE)).select(["shard", "row"])
    return [(row["shard"], row["row"]) for row in table.to_pylist()]
