"""What a trained model takes for positives in the corpus: its false positives are the negatives that it needs.

The one place where mining and training meet but in files: a trained tagger reads candidates, and mining takes those on
which it is surest. Scores of any other model come as a Parquet file.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalemine.config import Config, InputError
from scalemine.executor import Advance, Executor
from scalemine.mining.candidates import Scored, View, sample_by_z
from scalemine.mining.mine import ScoredCorpus
from scalemine.mining.sampling import Row, fetch_rows
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal
from scalemine.models import model_fingerprint
from scalemine.store import file_sha256

logger = logging.getLogger(__name__)

# Tweets that the tagger reads between two looks at the clock.
BATCH = 512
# The pool is drawn from tweets that are at least so near to some class: elsewhere false positives are rare.
LEAST_Z = 1.0


def fingerprint_of(model: str) -> str:
    """Return a hash of a model's files, or of a file of scores.

    Raises:
        InputError: There is neither.
    """
    path = Path(model)
    if path.is_dir():
        return model_fingerprint(path)
    if path.is_file():
        return file_sha256(path)
    raise InputError(f"mining.model: no such folder or file: {model}; expected a trained tagger, or Parquet of scores")


def score_candidates(
    config: Config, corpus: ScoredCorpus, executor: Executor, *, on_rows: Advance = lambda _: None
) -> list[Scored]:
    """Return the tweets that the model takes for positives, each with its class.

    Args:
        config: ``mining.model``, a tagger's folder or a Parquet file, and ``mining.pool``.
        corpus: The scored corpus.
        executor: Where the corpus is gone through.
        on_rows: Told how many tweets were read by the tagger.
    """
    from scalemine.mining import distributions

    model, view = str(config.mining.model), corpus.view
    normals = [distributions.fit(one) for one in corpus.measure(executor)]
    if Path(model).is_file():
        return _read_scores(Path(model), view, normals)
    _, (_, pool) = sample_by_z(
        view, normals, (LEAST_Z,), config.mining.pool, seed=config.seed, purpose="pool", executor=executor
    )
    return _tag(model, view, normals, pool, on_rows)


def _tag(model: str, view: View, normals: list[Normal], rows: list[Row], on_rows: Advance) -> list[Scored]:
    from scalemine.training.tagging.tagger import load_tagger

    tagger, names = load_tagger(model), view.anchors.class_names
    scored = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        for row, spans in zip(batch, tagger.tag([row.text for row in batch]), strict=True):
            if spans:
                surest = max(spans, key=lambda span: (span.confidence, -span.start))
                name = surest.type if surest.type in names else _nearest(view, normals, row.shard, row.row)
                scored.append(Scored(row, surest.confidence, name))
        on_rows(len(batch))
    logger.info("%s: %d of %d tweets of the corpus are tagged", model, len(scored), len(rows))
    return scored


def _read_scores(path: Path, view: View, normals: list[Normal]) -> list[Scored]:
    """Read a file with id, score and perhaps class_name; ids of no embedded tweet are counted and left out."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"mining.model: {path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    names = view.anchors.class_names
    for column in ("id", "score"):
        if column not in table.column_names:
            raise InputError(f"mining.model: {path} has no column {column!r}; it has {', '.join(table.column_names)}")
    try:
        values = table["score"].cast(pa.float64())
    except pa.ArrowException:
        raise InputError(
            f"mining.model: {path}: column 'score' holds {table['score'].type}, expected numbers"
        ) from None
    if pc.any(pc.is_nan(values)).as_py():
        raise InputError(f"mining.model: {path}: column 'score' holds nan, expected numbers or null")
    table = table.set_column(table.column_names.index("score"), "score", values)
    columns = [column for column in ("id", "score", "class_name") if column in table.column_names]
    by_id = {str(row["id"]): row for row in table.select(columns).to_pylist() if row["score"] is not None}
    places, found = [], []
    wanted = pa.array(list(by_id), pa.string())
    for shard in view.similarities.corpus.shards:
        ids = view.similarities.corpus.read(shard, columns=["id"])["id"]
        # A row in quarantine has no similarities, and would break the encoder again.
        valid_N = view.similarities.steps(shard)[2]
        for row in np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy() & valid_N).tolist():
            places.append((shard.name, row))
            found.append(by_id[ids[row].as_py()])
    if not places:
        raise InputError(f"mining.model: none of the {len(by_id)} ids in {path} is in the corpus")
    if len(places) < len(by_id):
        logger.warning("%s: %d of %d ids are not in the corpus", path, len(by_id) - len(places), len(by_id))
    unknown = {row.get("class_name") for row in found} - {None, *names}
    if unknown:
        raise InputError(f"mining.model: {path}: unknown class {sorted(unknown)[0]!r}; expected {', '.join(names)}")
    rows = fetch_rows(view.similarities.corpus, places, view.columns)
    return [
        Scored(row, one["score"], one.get("class_name") or _nearest(view, normals, row.shard, row.row))
        for row, one in zip(rows, found, strict=True)
    ]


def _nearest(view: View, normals: list[Normal], shard_name: str, row: int) -> str:
    """Return the class of the largest z."""
    shard = next(shard for shard in view.similarities.corpus.shards if shard.name == shard_name)
    cosines_K = view.similarities.steps(shard)[1][row] / STEPS_PER_UNIT
    z_K = [float(normal.z(cosines_K[[k]])[0]) for k, normal in enumerate(normals)]
    return view.anchors.class_names[int(np.argmax(z_K))]
