"""A cheap first stage for rare bands: what cannot fall in a wanted band is not encoded.

A cheap score is learnt on the probe; with the spread of its errors it says how probable it is that a tweet lies in a
band that is wanted. Tweets above a cut go on, as a smaller corpus. The cut is chosen on predictions of probed tweets
that were left out, and its recall is estimated on an audit, a sample that nothing was learnt from.

Shapes: N tweets, P tweets of the probe, A of the audit, K classes, V tokens of the encoder, D dimensions, W wanted
tweets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from scipy.stats import beta

from scalemine import bucket
from scalemine.config import MiningConfig
from scalemine.corpus import Corpus, Shard
from scalemine.encoder import Encoder, Pieces
from scalemine.executor import Executor
from scalemine.mining import distributions
from scalemine.mining.anchors import Anchors
from scalemine.mining.cheap_score import CheapScore, TokenTable, chances, learn
from scalemine.mining.probe import Probe
from scalemine.mining.sampling import Row, fetch_rows, sample_places
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, Tails
from scalemine.shards import OnRows, ShardStage, matrix, matrix_column, read_arrow, write_arrow
from scalemine.store import Stage, read_json, write_json, write_whole

FloatArray = NDArray[np.float64]

# The ridge takes memory by the square of its rows, and time by the cube.
FIT_ROWS = 6_000
# How sure it is to be, when the cut is chosen, that the recall is what was asked for.
CONFIDENCE = 0.8
# Below so much of the work of encoding all, a cascade pays.
MAX_COST = 0.8
# The cheap score of a tweet, in encoded tweets: that of MiniLM on a CPU with bfloat16; larger encoders cost more.
CHEAP_COST = 0.04
BLOCK_ROWS = 8_192

_AUDIT, _SCORE, _PLAN = "audit.arrow", "score.safetensors", "cascade.json"


def in_bands(z_NK: FloatArray, bands: Sequence[int], tails: Tails) -> NDArray[np.bool_]:
    """Return whether each z lies in one of the bands ``(N, K)``."""
    is_in = np.zeros(z_NK.shape, np.bool_)
    for band in bands:
        is_in |= Normal(0.0, 1.0).in_band(z_NK, band, tails)
    return is_in


def choose_cut(chances_W: FloatArray, recall: float) -> float | None:
    """Return the cut that keeps a share ``recall`` of all wanted tweets, by the chances of those in a sample.

    It is one of these chances: the highest for which the recall is reached with probability ``CONFIDENCE``, whatever
    their distribution. None where the sample holds too few for that, also at the lowest.

    Source: Wilks (1941), tolerance limits: the share below the r-th lowest of n is distributed as Beta(r, n + 1 - r).
    """
    ranks_W = np.arange(1, len(chances_W) + 1)
    rank = int(
        (beta.cdf(1 - recall, ranks_W, len(chances_W) + 1 - ranks_W) >= CONFIDENCE).sum()
    )  # it falls with the rank
    return float(np.sort(chances_W)[rank - 1]) if rank else None


def num_needed(recall: float) -> int:
    """Return how many wanted tweets ``choose_cut`` wants at least."""
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(recall)))


def recall_rows(
    z_NK: FloatArray, kept_N: NDArray[np.bool_], class_names: Sequence[str], bands: Sequence[int], tails: Tails
) -> list[dict[str, Any]]:
    """Return the recall on a sample: of all wanted tweets first (class and band None), then by class and band."""
    any_N: NDArray[np.bool_] = np.any(in_bands(z_NK, bands, tails), axis=1)
    every: list[tuple[str | None, int | None, NDArray[np.bool_]]] = [(None, None, any_N)]
    for index, class_name in enumerate(class_names):
        every += [(class_name, band, in_bands(z_NK[:, index], [band], tails)) for band in bands]
    rows = []
    for name, band, wanted_N in every:
        wanted, kept = int(wanted_N.sum()), int((wanted_N & kept_N).sum())
        low, high = distributions.interval(kept, wanted)
        recall = kept / wanted if wanted else None
        rows.append(
            {
                "class_name": name,
                "band": band,
                "wanted": wanted,
                "kept": kept,
                "recall": recall,
                "low": low,
                "high": high,
            }
        )
    return rows


# The stage


@dataclass(frozen=True, eq=False)
class Samples:
    """The probe and the audit, and the normals that both give.

    Args:
        probe: Of the corpus.
        probe_rows: Its tweets.
        audit: A sample apart from it, encoded alike.
        audit_rows: Its tweets.
    """

    probe: Probe
    probe_rows: list[Row]
    audit: NDArray[np.float16]
    audit_rows: list[Row]

    def z(self, anchors: Anchors) -> tuple[FloatArray, FloatArray]:
        """Return z of the probe and of the audit, by the mean and sigma of both."""
        steps = _joined(self.probe, self.audit).steps(anchors)
        every = distributions.of_sample(steps, anchors.class_names)
        z = np.stack(
            [distributions.fit(one).z(steps[:, k] / float(STEPS_PER_UNIT)) for k, one in enumerate(every)], axis=1
        )
        return z[: len(self.probe_rows)], z[len(self.probe_rows) :]


def plan(
    stage: Stage,
    corpus: Corpus,
    probe: Probe,
    places: Sequence[tuple[str, int]],
    anchors: Anchors,
    config: MiningConfig,
    *,
    seed: int,
    load: Callable[[], Encoder],
    executor: Executor,
) -> dict[str, Any]:
    """Learn the score, choose the cut, look what they do on the audit, and decide; return and store what is known.

    Args:
        stage: Where to.
        corpus: The whole.
        probe: Of the corpus.
        places: Of the probe's tweets in the corpus.
        anchors: Of the classes.
        config: The bands, and the recall that is asked for.
        seed: Of the audit.
        load: Loads the encoder.
        executor: Where the corpus is sampled.
    """
    known = read_plan(stage)
    if known is not None:
        return known
    encoder = load()
    pieces = encoder.pieces()
    rows = fetch_rows(corpus, places)
    table = TokenTable.of(pieces.read([row.text for row in rows]))
    vocabulary = (
        encoder.vocabulary_size * (1 + pieces.num_special) / (pieces.num_special + float(table.lengths_N.mean()))
    )
    facts: dict[str, Any] = {"recall": config.cascade, "confidence": CONFIDENCE, "probe": len(rows), "pays": False}
    # The work, in parts of that of encoding all: of the samples and the vocabulary, and of the cheap score.
    facts |= {"cost": (2 * len(rows) + vocabulary) / corpus.num_rows + CHEAP_COST}
    if facts["cost"] < MAX_COST:
        samples = Samples(probe, rows, *_audit(stage, corpus, places, encoder, seed, executor))
        score, more = _learn(samples, table, encoder.encode_vocabulary(), anchors, config)
        facts |= more
        if score is not None:
            audited = TokenTable.of(pieces.read([row.text for row in samples.audit_rows]))
            facts |= _judge(score, facts, samples, audited, anchors, config, corpus.num_rows)
            _store(score, stage)
    else:
        facts["why"] = f"its samples alone are {100 * facts['cost']:.0f} % of the work of encoding all"
    write_json(stage.file(_PLAN), facts)
    stage.commit(stage.file(_PLAN))
    return facts


def _learn(
    samples: Samples, table: TokenTable, vectors_VD: NDArray[np.float32], anchors: Anchors, config: MiningConfig
) -> tuple[CheapScore | None, dict[str, Any]]:
    """Learn the score on the probe and choose the cut; return what is known of them, and no score without a cut."""
    assert config.cascade is not None
    z_PK = samples.z(anchors)[0][:FIT_ROWS]
    lengths_P = table.lengths_N[:FIT_ROWS]
    score, left_out_PK = learn(TokenTable(table.tokens_T[: lengths_P.sum()], lengths_P), vectors_VD, z_PK)
    wanted_P = in_bands(z_PK, config.bands, config.tails).any(axis=1)
    cut = choose_cut(chances(left_out_PK, score.spread_K, config.bands, config.tails)[wanted_P], config.cascade)
    wanted = int(wanted_P.sum())
    facts = {
        "wanted_in_probe": wanted,
        "spread": dict(zip(anchors.class_names, score.spread_K.tolist(), strict=True)),
        "cut": cut,
    }
    if cut is not None:
        return score, facts
    advice = "raise mining.sample_size, or ask for less" if len(samples.probe_rows) < FIT_ROWS else "ask for less"
    why = (
        f"{len(z_PK)} tweets of the probe hold {wanted} of the bands, and a cut for a recall of {config.cascade:g} "
        f"wants {num_needed(config.cascade)}; {advice}"
    )
    return None, facts | {"why": why}


def _judge(
    score: CheapScore,
    known: dict[str, Any],
    samples: Samples,
    audited: TokenTable,
    anchors: Anchors,
    config: MiningConfig,
    num_rows: int,
) -> dict[str, Any]:
    """Return what the audit says of the score and its cut, and whether they pay."""
    _, z_AK = samples.z(anchors)
    kept_A = score.chances(audited, config.bands, config.tails) >= known["cut"]
    share = float(kept_A.mean())
    facts: dict[str, Any] = {
        "audit": len(kept_A),
        "kept_share": share,
        "cost": known["cost"] + share,
        "found": recall_rows(z_AK, kept_A, anchors.class_names, config.bands, config.tails),
    }
    if not facts["found"][0]["wanted"]:
        return facts | {"why": "the audit holds no tweet of the bands, so nothing is known of the recall"}
    if not kept_A.any():
        return facts | {"why": "nothing of the audit would be kept"}
    if facts["cost"] >= MAX_COST:
        rows = f"{share * num_rows:,.0f} of {num_rows:,} tweets"
        return facts | {
            "why": f"{rows} would be kept, and the work be {100 * facts['cost']:.0f} % of that of encoding all"
        }
    return facts | {"pays": True}


def _store(score: CheapScore, stage: Stage) -> None:
    with write_whole(stage.file(_SCORE)) as path:
        safetensors.numpy.save_file({field.name: getattr(score, field.name) for field in fields(score)}, path)


def _audit(
    stage: Stage, corpus: Corpus, places: Sequence[tuple[str, int]], encoder: Encoder, seed: int, executor: Executor
) -> tuple[NDArray[np.float16], list[Row]]:
    """Return the audit: a sample as large as the probe, of what is not in it; encoded once."""
    drawn = sample_places(corpus, 2 * len(places), seed=seed, purpose="audit", executor=executor)
    probed = set(places)
    apart = [place for place in drawn if place not in probed][: len(places)]
    rows = fetch_rows(corpus, apart)
    if stage.manifest(stage.file(_AUDIT)) is None:
        vectors_AD = encoder.encode_texts([row.text for row in rows]).astype(np.float16)
        columns = {name: [getattr(row, name) for row in rows] for name in ("shard", "row", "id")}
        write_arrow(
            stage.file(_AUDIT), pa.table({**columns, "vector": matrix_column(vectors_AD, np.ones(len(rows), np.bool_))})
        )
        stage.commit(stage.file(_AUDIT), rows=len(rows))
    return _audit_vectors(stage), rows


def with_audit(stage: Stage, probe: Probe) -> Probe:
    """Return the probe and the audit as one sample of the corpus."""
    return _joined(probe, _audit_vectors(stage))


def _joined(probe: Probe, audit_AD: NDArray[np.float16]) -> Probe:
    return replace(probe, vectors_PD=np.concatenate([probe.vectors_PD, audit_AD]))


def _audit_vectors(stage: Stage) -> NDArray[np.float16]:
    vectors_AD: NDArray[np.float16] = matrix(read_arrow(stage.file(_AUDIT))["vector"])[0]
    return vectors_AD


def read_plan(stage: Stage) -> dict[str, Any] | None:
    """Return what ``plan`` found, or None where it is not finished."""
    path = stage.file(_PLAN)
    return read_json(path) if stage.manifest(path) is not None else None


@dataclass(frozen=True)
class KeptShards(ShardStage):
    """The shards of the corpus with only the tweets that may be wanted, in their order."""

    suffix = "parquet"

    def as_corpus(self) -> Corpus:
        """Return what is kept as a corpus; shards of which nothing is kept are left out."""
        shards = []
        for shard in self.corpus.shards:
            facts = self.facts(shard)
            assert facts is not None, shard.name
            if facts["rows"]:
                shards.append(Shard(shard.name, self.path(shard), facts["rows"], facts["sha256"]))
        return replace(self.corpus, shards=tuple(shards))


class _Sieve:
    """The worker that writes what is kept of a shard."""

    def __init__(self, files: KeptShards, pieces: Pieces, cut: float, config: MiningConfig) -> None:
        self._files, self._pieces, self._cut, self._config = files, pieces, cut, config
        self._score = CheapScore(**safetensors.numpy.load_file(bucket.local(files.stage.file(_SCORE))))

    def __call__(self, shard: Shard) -> int:
        """Sieve one shard; return how many rows it had."""
        table = self._files.corpus.read(shard)
        kept = [self._kept(table["text"].slice(start, BLOCK_ROWS)) for start in range(0, table.num_rows, BLOCK_ROWS)]
        rest = table.filter(pa.array(np.concatenate(kept)))
        path = self._files.path(shard)
        with write_whole(path) as temporary:
            pq.write_table(rest, temporary, compression="zstd", write_page_checksum=True)
        self._files.stage.commit(path, input=shard.sha256, rows=rest.num_rows)
        return shard.num_rows

    def _kept(self, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        tokens = TokenTable.of(self._pieces.read(texts.to_pylist()))
        return self._score.chances(tokens, self._config.bands, self._config.tails) >= self._cut


def sieve(files: KeptShards, pieces: Pieces, config: MiningConfig, executor: Executor, on_rows: OnRows) -> None:
    """Write the shards of what is kept that are missing."""
    known = read_plan(files.stage)
    assert known is not None and known["pays"]
    worker = partial(_Sieve, files, pieces, known["cut"], config)
    for outcome in executor.map(worker, files.missing()):
        if outcome.error is not None:
            raise RuntimeError(f"shard {outcome.item.name} cannot be sieved:\n{outcome.error}")
        on_rows(outcome.item.num_rows)
    bucket.refresh()


def describe(known: dict[str, Any]) -> str:
    """Return in a line what a cascade found."""
    if not known["pays"]:
        return f"mining.cascade does not pay here and all is encoded: {known['why']}"
    whole = known["found"][0]
    return (
        f"cascade: {100 * known['kept_share']:.1f} % of the corpus is encoded, with {100 * known['cost']:.0f} % of the "
        f"work of encoding all; recall {whole['recall']:.3f} ({whole['low']:.3f} to {whole['high']:.3f}, "
        f"{whole['kept']} of {whole['wanted']} audited tweets), {known['recall']:g} asked for"
    )
