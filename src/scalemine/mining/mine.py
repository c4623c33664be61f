"""From a scored corpus to negatives: fit the distributions, set up the strategy and the guard, and choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from scalemine.config import SIGMA_BANDED, Config, InputError
from scalemine.executor import Executor
from scalemine.mining import distributions
from scalemine.mining.anchors import Positives
from scalemine.mining.candidates import (
    Cell,
    Clusters,
    Propose,
    Scored,
    View,
    by_model,
    by_positive,
    by_score,
)
from scalemine.mining.events import near_event
from scalemine.mining.guard import (
    Features,
    Guard,
    Rescore,
    check_positives,
    fit_guard,
    hold_out_groups,
    load_rescorer,
    sample_strata,
    sample_vectors,
)
from scalemine.mining.negatives import MinedNegatives, Precautions, mine_negatives, quotas
from scalemine.mining.probe import Probe
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, SimilarityDistribution, anchor_grid, describe
from scalemine.mining.strategies import ClassScores, kinds, make_rule
from scalemine.mining.waves import rows_needed
from scalemine.text import duplicate_key


@dataclass(frozen=True, eq=False)
class ScoredCorpus:
    """A corpus that one encoder scores, before anything is fitted to it.

    Args:
        encoder: Name of the encoder.
        view: What candidates are proposed and verified with; its normals are not known yet.
        probe: An encoded sample of the corpus.
        is_sieved: The view is of what a cascade kept of the corpus, so only the probe is like the whole.
    """

    encoder: str
    view: View
    probe: Probe
    is_sieved: bool = False

    def measure(self, executor: Executor) -> list[SimilarityDistribution]:
        """Return S_an of the corpus per class; of the probe, where the rest of the corpus is not all scored."""
        anchors = self.view.anchors
        if self.is_sieved:
            return self.probe.distributions(anchors)
        return distributions.measure(self.view.similarities, anchors.class_names, executor)


@dataclass(frozen=True, eq=False)
class Mined:
    """What mining a corpus gave.

    Args:
        negatives: What was chosen, what is to be reviewed, and what was passed over.
        distributions: The rows of distributions.json.
        measured: S_an of the corpus per class.
        yields: Per class and kind what was wanted, what is there, and what was found.
        guard: What the report says of the guard; None without one.
        warnings: What the user should know.
    """

    negatives: MinedNegatives
    distributions: list[dict[str, Any]]
    measured: list[SimilarityDistribution]
    yields: list[dict[str, Any]]
    guard: dict[str, Any] | None
    warnings: list[str]

    @property
    def num_short(self) -> int:
        """How many classes and kinds have fewer negatives than were wanted."""
        return sum(row["found"] < row["quota"] for row in self.yields)


def mine(
    config: Config,
    corpora: Sequence[ScoredCorpus],
    positives: Positives,
    test: Positives | None,
    *,
    decisions: Mapping[bytes, str],
    scored: Sequence[Scored],
    threads: int,
    executor: Executor,
    exclude: Sequence[str] = (),
) -> Mined:
    """Mine negatives as the configuration says.

    Args:
        config: Strategy, guard and seed.
        corpora: The corpus as each encoder scored it, the main one first.
        positives: Of training.
        test: Of the test sets.
        decisions: Of a review, by the key of a text.
        scored: What a model took for positives; for the strategy model.
        threads: Of one worker.
        executor: Where the corpus is gone through.
        exclude: Further texts whose copies are not taken.
    """
    fitted = [_fit(config, corpus, executor) for corpus in corpora]
    main, rows, measured = fitted[0]
    views = [view for view, _, _ in fitted]
    wanted = quotas(config.mining, positives, test)
    guard = _guard(config, main, positives, executor)
    cells = _cells(config, fitted, wanted)
    available = _available(config, rows, wanted)
    mined = mine_negatives(
        views,
        cells,
        _proposer(config, views, cells, corpora[0].probe, scored, threads, executor),
        config.mining,
        available={key: count if count is not None else main.similarities.corpus.num_rows
                   for key, count in available.items()},
        precautions=Precautions(
            positive_keys=frozenset(map(duplicate_key, [*texts_of(positives, test), *exclude])),
            guard=guard,
            config=config.guard,
            decisions=decisions,
            near_duplicate=config.mining.near_duplicate,
            is_near_event=near_event(config.guard, [group for group in (positives, test) if group]),
        ),
        seed=config.seed,
        encoders=[corpus.encoder for corpus in corpora],
    )  # fmt: skip
    yields = _yields(config, mined, wanted, available)
    warnings = distributions.weak_anchor_warnings(rows, config.mining) + _shortages(yields, mined)
    warnings += [] if guard else _unguarded(config, mined)
    return Mined(mined, rows, measured, yields, guard.facts if guard else None, warnings)


def rows_wanted(config: Config, corpora: Sequence[ScoredCorpus], wanted: Mapping[tuple[str, str], int]) -> float:
    """Return about how many rows of the corpus fill every quota, going by the probes."""
    fitted: list[_Fitted] = []
    for corpus in corpora:
        sampled = corpus.probe.distributions(corpus.view.anchors)
        normals = {one.class_name: distributions.fit(one) for one in sampled}
        fitted.append((replace(corpus.view, normals=normals), [], sampled))
    cosines = [corpus.probe.steps(corpus.view.anchors) / float(STEPS_PER_UNIT) for corpus in corpora]
    return rows_needed(_cells(config, fitted, wanted), cosines)


def texts_of(positives: Positives, test: Positives | None) -> list[str]:
    """Return the texts of all positives."""
    return [text for group in (positives, test) if group for text in group.table["text"].to_pylist()]


# A view with its normals, the rows of distributions.json, and the distributions.
_Fitted = tuple[View, list[dict[str, Any]], list[SimilarityDistribution]]


def _fit(config: Config, corpus: ScoredCorpus, executor: Executor) -> _Fitted:
    """Return the view with its fitted normals, the rows of distributions.json, and the distributions."""
    anchors, mining = corpus.view.anchors, config.mining
    measured = corpus.measure(executor)
    fitted = corpus.probe.distributions(anchors) if mining.fit == "sample" else measured
    positive_steps = distributions.positive_steps(anchors)
    normals = {one.class_name: distributions.fit(one) for one in fitted}
    rows = [
        describe(
            whole,
            normals[whole.class_name],
            fit={"method": "sample" if corpus.is_sieved else mining.fit, "rows": part.count},
            tails=mining.tails,
            positive_steps=positive_steps[whole.class_name],
        )
        for whole, part in zip(measured, fitted, strict=True)
    ]
    if corpus.is_sieved:  # counts are of what there is to choose from; shares and moments, of the corpus
        scored = distributions.measure(corpus.view.similarities, anchors.class_names, executor)
        for row, kept in zip(rows, scored, strict=True):
            bands = kept.band_counts(normals[kept.class_name], mining.tails)
            row |= {"count": kept.count, "band_counts": {str(band): count for band, count in bands.items()}}
    return replace(corpus.view, normals=normals), rows, measured


def check_precautions(config: Config, positives: Positives, test: Positives | None) -> None:
    """Raise InputError where the guard or the strategy cannot do with these positives, before the work begins."""
    near_event(config.guard, [group for group in (positives, test) if group])
    if config.guard.max_false_negative is not None:
        check_positives(positives.table["class_name"].to_pylist())
    if config.mining.strategy == "confusable" and len(positives.class_names) < 2:
        raise InputError("mining.strategy: confusable wants two classes at least; the positives have one")


def _in_order(view: View) -> list[Normal]:
    return [view.normals[name] for name in view.anchors.class_names]


def _guard(config: Config, view: View, positives: Positives, executor: Executor) -> Guard | None:
    """Return the guard, or None where nobody asked for it."""
    if config.guard.max_false_negative is None:
        return None
    rescore: Rescore | None = load_rescorer(config.guard.rescorer) if config.guard.rescorer else None
    normals = _in_order(view)
    features = Features(view.anchors, normals, config.guard.neighbours, view.anchors.positive_texts, rescore)
    sample, weights_U = sample_strata(view, normals, config.guard.sample_size, config.seed, executor)
    events = positives.table["event"].to_pylist()
    groups = hold_out_groups(events, view.anchors.positive_class_M, view.anchors.positives_MD, config.seed)
    return fit_guard(features, groups, sample, sample_vectors(view, sample), weights_U, config.guard)


def _cells(
    config: Config,
    fitted: Sequence[_Fitted],
    wanted: Mapping[tuple[str, str], int],
) -> list[Cell]:
    """Return the cells: per class and kind, each view with an equal share of the quota."""
    cells = []
    for number, (view, _, measured) in enumerate(fitted):
        names = view.anchors.class_names
        scores = ClassScores(names, view.normals, measured, distributions.positive_steps(view.anchors))
        for index, name in enumerate(names):
            for kind, band in kinds(config.mining).items():
                share, rest = divmod(wanted[name, kind], len(fitted))
                rule = make_rule(config.mining, scores, index, band)
                if share + (number < rest):
                    cells.append(Cell(index, name, kind, share + (number < rest), rule, number))
    return cells


def _proposer(
    config: Config,
    views: Sequence[View],
    cells: Sequence[Cell],
    probe: Probe,
    scored: Sequence[Scored],
    threads: int,
    executor: Executor,
) -> Propose:
    if config.mining.strategy == "model":
        return by_model(cells, scored, config.seed)
    if config.mining.query == "positive":
        return by_positive(views[0], cells, config.mining, config.seed, executor, threads)
    clusters = _clusters(config, probe, views[0]) if config.mining.strategy == "clusters" else None
    return by_score(views, cells, config.seed, executor, clusters)


def _clusters(config: Config, probe: Probe, view: View) -> Clusters:
    """Part the probe by k-means; clusters full of positives are skipped.

    Source: Arthur and Vassilvitskii (2007), k-means++.
    """
    vectors_PD = probe.vectors_PD.astype(np.float64)
    num = min(config.mining.clusters, len(vectors_PD))
    centroids_CD, _ = kmeans2(vectors_PD, num, minit="++", seed=np.random.default_rng(config.seed), missing="warn")
    clusters = Clusters(anchor_grid(centroids_CD.astype(np.float32)), frozenset())
    of_tweets = Counter(clusters.of(probe.vectors_PD).tolist())
    of_positives = Counter(clusters.of(view.anchors.positives_MD.astype(np.float16)).tolist())
    full = frozenset(
        cluster
        for cluster, count in of_positives.items()
        if count / (count + of_tweets[cluster]) > config.mining.cluster_positives
    )
    return replace(clusters, skipped=full)


def _available(
    config: Config,
    rows: Sequence[dict[str, Any]],
    wanted: Mapping[tuple[str, str], int],
) -> dict[tuple[str, str], int | None]:
    """Return how many tweets each class and kind has; None where that is not counted."""
    counts: dict[tuple[str, str], int | None] = dict.fromkeys(wanted)
    if config.mining.strategy not in SIGMA_BANDED:
        return counts
    for row in rows:
        for kind, band in kinds(config.mining).items():
            counts[row["class_name"], kind] = row["band_counts"][str(band)]
    return counts


def _yields(
    config: Config,
    mined: MinedNegatives,
    wanted: Mapping[tuple[str, str], int],
    available: Mapping[tuple[str, str], int | None],
) -> list[dict[str, Any]]:
    found: Counter[tuple[str, str]] = Counter()
    for row in mined.table.select(["class_name", "kind"]).to_pylist():
        found[row["class_name"], row["kind"]] += 1
    band_of = kinds(config.mining)
    return [
        {
            "class_name": name,
            "kind": kind,
            "band": band_of[kind],
            "quota": quota,
            "available": available[name, kind],
            "found": found[name, kind],
        }
        for (name, kind), quota in wanted.items()
    ]


def _unguarded(config: Config, mined: MinedNegatives) -> list[str]:
    """Warn of what was taken where true positives lie, and nobody looked."""
    advice = "guard.max_false_negative, such as 0.05, keeps them out"
    if config.mining.strategy == "model":
        return [f"what a model takes for positives are in part positives that nobody labelled; {advice}"]
    beyond = sum(z >= 3 for z in mined.table["z"].to_pylist())
    if not beyond:
        return []
    return [f"{beyond} negatives lie 3 sigma or more above the mean, where many tweets are true positives; {advice}"]


def _shortages(yields: Sequence[dict[str, Any]], mined: MinedNegatives) -> list[str]:
    warnings = []
    for row in yields:
        if row["found"] < row["quota"]:
            what = f"band {row['band']}" if row["band"] else row["kind"]
            there = "" if row["available"] is None else f"; the corpus holds {row['available']} tweets there"
            warnings.append(f"{row['class_name']}, {what}: {row['found']} of {row['quota']} negatives found{there}")
    if warnings and mined.review.num_rows:
        warnings.append(f"{mined.review.num_rows} tweets wait in review.parquet; scalemine review WORKDIR shows them")
    return warnings
