from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mining import oracles
from mining.worlds import World, around, make_anchors
from scalemine.config import Config
from scalemine.executor import InlineExecutor
from scalemine.mining import mine as module
from scalemine.mining.anchors import Positives
from scalemine.mining.candidates import Scored
from scalemine.mining.mine import ScoredCorpus, mine, texts_of
from scalemine.mining.negatives import DROPPED, NEAR_NEGATIVE, OUTSIDE, SAME_EVENT, UNSURE
from scalemine.mining.probe import Probe
from scalemine.mining.sampling import sample_corpus
from scalemine.text import duplicate_key

DIM = 16
NAMES = ("fire", "flood")
PER_CLASS = 15
STRATEGIES = [
    "sigma_bands",
    "quantile_bands",
    "random",
    "rank",
    "margin",
    "simans",
    "hardness",
    "confusable",
    "clusters",
]


def make_world(seed=1, num_rows=1_200) -> World:
    """Tweets at every distance from two classes; every 12th is a positive that nobody labelled."""
    rng = np.random.default_rng(seed)
    centres = oracles.unit_rows(np.random.default_rng(99), 2, DIM)
    positives = np.concatenate([around(rng, centre, 20, 0.15) for centre in centres])
    towards = centres[rng.integers(2, size=num_rows)]
    rows = oracles.unit_rows(rng, num_rows, DIM) + rng.uniform(0, 0.9, (num_rows, 1)) * towards
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for index, centre in enumerate(centres):
        rows[12 * index :: 24] = around(rng, centre, len(rows[12 * index :: 24]), 0.15)
    world = World.of(make_anchors(NAMES, np.repeat([0, 1], 20), positives), rows.astype("f4"), seed)
    return replace(world, events=[f"event {number % 10}" for number in range(num_rows)])


def hidden_of(world) -> set[str]:
    return set(world.ids[::12])


def labelled(world, events=None) -> Positives:
    anchors = world.anchors
    columns = {
        "id": list(anchors.positive_ids),
        "text": list(anchors.positive_texts),
        "class_name": [NAMES[index] for index in anchors.positive_class_M],
        "event": pa.array(events or [None] * len(anchors.positive_ids), pa.string()),
        "time": pa.nulls(len(anchors.positive_ids), pa.string()),
    }
    return Positives(pa.table(columns))


def scored_corpus(world, folder, rows_per_shard=170, name="main") -> ScoredCorpus:
    view = world.view(folder, rows_per_shard)
    # What the pipeline hands over: neither normals, nor columns that nobody asked for.
    view = replace(view, normals={}, columns=())
    rows = sample_corpus(view.similarities.corpus, 400, seed=1, purpose="probe", executor=InlineExecutor())
    vectors = world.encode([row.text for row in rows]).astype(np.float16)
    return ScoredCorpus(name, view, Probe(vectors, vectors[:0]))


def config_of(mining=None, guard=None, seed=42) -> Config:
    mining = {"per_class": PER_CLASS, "near_duplicate": None, "rank_max": 60} | (mining or {})
    mining = {"confusable_z": 0.5, "confusable_margin": 0.2} | mining
    return Config.model_validate({"workdir": "unused", "seed": seed, "mining": mining, "guard": guard or {}})


def run(config, corpora, positives, *, test=None, scored=(), decisions=None):
    return mine(
        config, corpora, positives, test, decisions=decisions or {}, scored=scored, threads=1, executor=InlineExecutor()
    )


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def corpus(world, tmp_path_factory):
    return scored_corpus(world, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def other_shards(world, corpus, tmp_path_factory):
    return replace(scored_corpus(world, tmp_path_factory.mktemp("other"), 60), probe=corpus.probe)


def z_of(world, mined) -> dict[str, np.ndarray]:
    """z of every tweet to each class, by float64 and the fit that was reported."""
    cosines = world.vectors.astype(float) @ world.anchors.vectors_KD.T.astype(float)
    rows = {row["class_name"]: row for row in mined.distributions}
    z = [(cosines[:, k] - rows[name]["mean"]) / rows[name]["std"] for k, name in enumerate(NAMES)]
    return dict(zip(world.ids, np.stack(z, axis=1), strict=True))


def holds(strategy, kind, z, index, config) -> bool:
    """What the strategy promises of a tweet, where it promises something of each by itself."""
    if strategy in ("sigma_bands", "clusters"):
        return oracles.band_of(z[index], config.mining.tails) == int(kind[0])
    if strategy == "confusable":
        return z[index] >= 0.5 and z[1 - index] - z[index] >= 0.2
    return True


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_its_word(world, corpus, strategy):
    config = config_of({"strategy": strategy, "clusters": 12})
    mined = run(config, [corpus], labelled(world))
    rows = mined.negatives.table.to_pylist()
    assert rows
    z = z_of(world, mined)
    for row in rows:
        index = NAMES.index(row["class_name"])
        assert holds(strategy, row["kind"], z[row["id"]], index, config)
        assert (row["strategy"], row["seed"], row["encoder"]) == (strategy, 42, "main")
        assert row["z"] == pytest.approx(z[row["id"]][index], abs=1e-4)
    assert len({row["id"] for row in rows}) == len(rows)
    found = Counter((row["class_name"], row["kind"]) for row in rows)
    kinds = {"sigma_bands": "s", "clusters": "s", "quantile_bands": "q"}
    expected = [f"{band}{kinds[strategy]}" for band in (1, 2, 3)] if strategy in kinds else [strategy]
    assert [(one["class_name"], one["kind"]) for one in mined.yields] == [(n, k) for n in NAMES for k in expected]
    for one in mined.yields:
        assert one["found"] == found[one["class_name"], one["kind"]] <= one["quota"] == PER_CLASS
        assert (one["available"] is not None) == (kinds.get(strategy) == "s")
    short = [one for one in mined.yields if one["found"] < PER_CLASS]
    warned = [warning for warning in mined.warnings if "negatives found" in warning]
    assert len(warned) == len(short)
    assert mined.guard is None


@pytest.mark.parametrize("strategy", ["rank", "margin", "simans"])
@pytest.mark.parametrize("sampling", ["top", "random"])
def test_each_positive_by_itself(world, corpus, strategy, sampling):
    config = config_of({"strategy": strategy, "query": "positive", "sampling": sampling, "relative_margin": 0.2})
    mined = run(config, [corpus], labelled(world))
    assert [one["found"] for one in mined.yields] == [PER_CLASS] * 2
    # Whether a positive takes a tweet is its own matter; the anchor's limit refuses none.
    assert OUTSIDE not in mined.negatives.passed_over
    positives = world.anchors.positives_MD.astype(float)
    cosines = dict(zip(world.ids, world.vectors.astype(float) @ positives.T, strict=True))
    for row in mined.negatives.table.to_pylist():
        own = world.anchors.positive_class_M == NAMES.index(row["class_name"])
        among = positives[own] @ positives[own].T - 2 * np.eye(own.sum())
        if strategy == "margin":
            assert (cosines[row["id"]][own] <= 0.8 * among.max(axis=1) + 1e-3).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_result_does_not_depend_on_shards(world, corpus, other_shards, strategy):
    # Of the few that lie near two classes most are probably positives.
    guard = {"max_false_negative": 0.9 if strategy == "confusable" else 0.3, "review_below": 1.0}
    config = config_of({"strategy": strategy, "clusters": 12, "rank_max": 400}, guard)
    events = [f"event {number % 8}" for number in range(40)]
    one, two = (run(config, [each], labelled(world, events)) for each in (corpus, other_shards))
    assert one.negatives.table.equals(two.negatives.table)
    assert one.negatives.review.equals(two.negatives.review)
    assert one.negatives.passed_over == two.negatives.passed_over
    assert one.guard == two.guard
    assert one.negatives.table.num_rows > 3


@pytest.mark.parametrize("strategy", ["random", "clusters", "hardness"])
def test_seed_decides_a_draw(world, corpus, strategy):
    ids = []
    for seed in (42, 42, 2**62):
        mined = run(config_of({"strategy": strategy, "clusters": 12}, seed=seed), [corpus], labelled(world))
        ids.append(mined.negatives.table["id"].to_pylist())
    assert ids[0] == ids[1] != ids[2]


def test_shortage_is_said_with_what_is_there(world, corpus):
    mined = run(config_of({"bands": (4,), "per_class": 1_000}), [corpus], labelled(world))
    for row, warning in zip(mined.yields, mined.warnings, strict=True):
        name, found, available = row["class_name"], row["found"], row["available"]
        assert found < 1_000
        in_band = mined.distributions[NAMES.index(name)]["band_counts"]["4"]
        assert available == in_band
        assert warning == (f"{name}, band 4: {found} of 1000 negatives found; the corpus holds {in_band} tweets there")


def test_what_lies_far_above_the_mean_without_a_guard_is_warned_about(world, corpus):
    # The same tweets, as if the mean lay three sigma lower.
    config = config_of({"strategy": "rank", "rank_max": 40})
    mined = run(config, [corpus], labelled(world))
    far = [row | {"z": row["z"] + 3} for row in mined.negatives.table.to_pylist()]
    moved = replace(mined.negatives, table=pa.Table.from_pylist(far, schema=mined.negatives.table.schema))
    beyond = sum(row["z"] >= 3 for row in far)
    assert beyond > 0
    [warning] = module._unguarded(config, moved)
    assert warning.startswith(f"{beyond} negatives lie 3 sigma or more above the mean")
    assert module._unguarded(config, mined.negatives) == []


def test_shortage_of_what_is_not_counted(world, corpus):
    mined = run(config_of({"strategy": "rank", "rank_max": 9}), [corpus], labelled(world))
    assert mined.warnings == [
        f"{row['class_name']}, rank: {row['found']} of {PER_CLASS} negatives found" for row in mined.yields
    ]
    assert all(0 < row["found"] <= 9 for row in mined.yields)


def test_fit_of_a_sample(world, corpus):
    exact = run(config_of(), [corpus], labelled(world))
    sampled = run(config_of({"fit": "sample"}), [corpus], labelled(world))
    assert [row["fit"] for row in exact.distributions] == [{"method": "exact", "rows": 1_200}] * 2
    assert [row["fit"] for row in sampled.distributions] == [{"method": "sample", "rows": 400}] * 2
    cosines = world.vectors.astype(float) @ world.anchors.vectors_KD.T.astype(float)
    for index, (one, other) in enumerate(zip(exact.distributions, sampled.distributions, strict=True)):
        assert one["mean"] == pytest.approx(cosines[:, index].mean(), abs=1e-4)
        assert one["std"] == pytest.approx(cosines[:, index].std(), abs=1e-4)
        assert other["mean"] == pytest.approx(one["mean"], abs=4 * one["std"] / 20)
        assert other["mean"] != one["mean"]
        assert other["count"] == 1_200
    assert [one.count for one in sampled.measured] == [1_200, 1_200]


def test_weak_anchor_is_warned_about(world, corpus):
    mined = run(config_of({"weak_auc": 1.0}), [corpus], labelled(world))
    assert sum("weak anchor" in warning for warning in mined.warnings) == 2
    assert not any("weak anchor" in warning for warning in run(config_of(), [corpus], labelled(world)).warnings)


# The guard


def test_guard_keeps_hidden_positives_out(world, corpus):
    hidden = hidden_of(world)
    mining = {"bands": (3, 4), "per_class": 60}
    without = run(config_of(mining), [corpus], labelled(world)).negatives.table.to_pylist()
    guarded = run(config_of(mining, {"max_false_negative": 0.05}), [corpus], labelled(world))
    rows, review = guarded.negatives.table.to_pylist(), guarded.negatives.review.to_pylist()
    leaks = [sum(row["id"] in hidden for row in part) / len(part) for part in (without, rows)]
    assert leaks[0] > 0.3
    assert leaks[1] < leaks[0] / 5
    assert all(row["false_negative_probability"] is None for row in without)
    assert all(row["false_negative_probability"] <= 0.05 for row in rows)
    assert all(0.05 < row["false_negative_probability"] <= 0.5 for row in review)
    assert guarded.negatives.passed_over[DROPPED] > 0
    assert guarded.negatives.passed_over.get(UNSURE, 0) >= len(review)
    assert guarded.guard["groups"] == 4  # two clusters of each class
    assert (guarded.guard["prior_is"], guarded.guard["positives"]) == ("estimated", 40)


def test_events_are_held_out_together(world, corpus):
    events = [f"event {number % 4}" for number in range(40)]
    mined = run(config_of(guard={"max_false_negative": 0.1, "prior": 0.08}), [corpus], labelled(world, events))
    assert (mined.guard["groups"], mined.guard["prior"], mined.guard["prior_is"]) == (4, 0.08, "given")
    alike = run(config_of(guard={"max_false_negative": 0.1}), [corpus], labelled(world, ["one"] * 40))
    assert alike.guard["groups"] == 2 * len(NAMES)


def test_decisions_overrule_the_guard(world, corpus):
    config = config_of({"bands": (3, 4), "per_class": 60}, {"max_false_negative": 0.05, "review_below": 1.0})
    first = run(config, [corpus], labelled(world))
    unsure = first.negatives.review["text"].to_pylist()
    assert len(unsure) > 20
    assert f"{len(unsure)} tweets wait in review.parquet; scalemine review WORKDIR shows them" in first.warnings
    decided = {duplicate_key(text): "no" if number % 2 else "yes" for number, text in enumerate(unsure)}
    second = run(config, [corpus], labelled(world), decisions=decided).negatives
    taken, waiting = set(second.table["text"].to_pylist()), set(second.review["text"].to_pylist())
    assert not waiting & set(unsure)
    assert not taken & set(unsure[::2])
    assert taken & set(unsure[1::2])


def test_rescorer_is_loaded_and_asked(world, corpus, monkeypatch):
    asked = []

    def load(name):
        def rescore(pairs):
            asked.extend(pairs)
            return np.zeros(len(pairs))

        asked.append(name)
        return rescore

    monkeypatch.setattr(module, "load_rescorer", load)
    mined = run(config_of(guard={"max_false_negative": 0.1, "rescorer": "cross"}), [corpus], labelled(world))
    assert asked[0] == "cross"
    assert set(world.anchors.positive_texts) >= {pair[0] for pair in asked[1:]}
    assert len(mined.guard["features"]) == 4
    asked.clear()
    run(config_of(guard={"rescorer": "cross"}), [corpus], labelled(world))
    assert asked == []


def test_nothing_of_the_events_of_positives(world, corpus):
    with_events = replace(corpus, view=replace(corpus.view, columns=("event",)))
    events = ["Event 3", "event 7 "] * 20
    config = config_of({"strategy": "random", "per_class": 100}, {"event": "event"})
    mined = run(config, [with_events], labelled(world, events))
    event_of = dict(zip(world.ids, world.events, strict=True))
    found = {event_of[id_] for id_ in mined.negatives.table["id"].to_pylist()}
    assert found == {f"event {number}" for number in range(10)} - {"event 3", "event 7"}
    assert mined.negatives.passed_over[SAME_EVENT] > 10


def test_events_of_test_positives_count_too(world, corpus):
    with_events = replace(corpus, view=replace(corpus.view, columns=("event",)))
    config = config_of({"strategy": "random", "per_class": 100}, {"event": "event"})
    train, test = labelled(world, ["event 3"] * 40), labelled(world, ["event 5"] * 40)
    mined = run(config, [with_events], train, test=test)
    event_of = dict(zip(world.ids, world.events, strict=True))
    assert not {"event 3", "event 5"} & {event_of[id_] for id_ in mined.negatives.table["id"].to_pylist()}


def test_texts_of_test_positives_are_no_negatives(world, corpus):
    chosen = run(config_of({"strategy": "random"}), [corpus], labelled(world)).negatives.table["text"].to_pylist()
    test = labelled(world)
    table = test.table.set_column(1, "text", pa.array((chosen * 2)[:40]))
    mined = run(config_of({"strategy": "random"}), [corpus], labelled(world), test=Positives(table))
    assert not set(chosen[:40]) & set(mined.negatives.table["text"].to_pylist())
    assert texts_of(labelled(world), Positives(table)) == [*world.anchors.positive_texts, *(chosen * 2)[:40]]
    assert texts_of(labelled(world), None) == list(world.anchors.positive_texts)


def test_near_duplicates_are_taken_once(tmp_path):
    world = make_world(num_rows=600)
    rng = np.random.default_rng(2)
    # Every tweet but some is one of 40 stories, told a little otherwise.
    stories = oracles.unit_rows(rng, 40, DIM)
    world.vectors[60:] = np.concatenate([around(rng, story, 1, 0.01) for story in stories[rng.integers(40, size=540)]])
    corpus = scored_corpus(world, tmp_path)
    config = config_of({"strategy": "random", "per_class": 40, "near_duplicate": 0.95})
    mined = run(config, [corpus], labelled(world)).negatives
    vectors = world.encode(mined.table["text"].to_pylist()).astype(float)
    cosines = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert cosines.max() < 0.951
    assert mined.passed_over[NEAR_NEGATIVE] > 10
    loose = run(config_of({"strategy": "random", "per_class": 40}), [corpus], labelled(world)).negatives
    vectors = world.encode(loose.table["text"].to_pylist()).astype(float)
    assert (vectors @ vectors.T - 2 * np.eye(len(vectors))).max() > 0.99


# Several encoders, clusters, models


def test_encoders_share_a_quota(world, corpus, tmp_path):
    rng = np.random.default_rng(3)
    other = replace(
        world,
        vectors=oracles.unit_rows(rng, len(world.ids), 24),
        anchors=make_anchors(NAMES, np.repeat([0, 1], 20), oracles.unit_rows(rng, 40, 24)),
    )
    second = scored_corpus(other, tmp_path, 170, "second")
    config = config_of({"bands": (1, 2)})
    mined = run(config, [corpus, second], labelled(world))
    rows = mined.negatives.table.to_pylist()
    shares = Counter((row["class_name"], row["kind"], row["encoder"]) for row in rows)
    assert shares == {
        (name, kind, encoder): count
        for name in NAMES
        for kind in ("1s", "2s")
        for encoder, count in (("main", 8), ("second", 7))
    }
    z = z_of(world, mined)
    cosines = dict(zip(other.ids, other.vectors.astype(float) @ other.anchors.vectors_KD.T.astype(float), strict=True))
    means, stds = np.mean(list(cosines.values()), axis=0), np.std(list(cosines.values()), axis=0)
    for row in rows:
        index = NAMES.index(row["class_name"])
        # A tweet lies in the band as its encoder sees it; what is written of it is as the first one does.
        theirs = (cosines[row["id"]][index] - means[index]) / stds[index]
        seen = z[row["id"]][index] if row["encoder"] == "main" else theirs
        assert oracles.band_of(seen, "both") == int(row["kind"][0]) or abs(abs(seen) % 1 - 0.5) > 0.498
        assert row["z"] == pytest.approx(z[row["id"]][index], abs=1e-4)


@pytest.mark.parametrize("limit", [1.0, 0.2])
def test_clusters_full_of_positives_are_skipped(world, corpus, limit):
    config = config_of({"strategy": "clusters", "clusters": 8, "cluster_positives": limit, "bands": (1, 2, 3, 4)})
    clusters = module._clusters(config, corpus.probe, corpus.view)
    tweets = Counter(clusters.of(corpus.probe.vectors_PD).tolist())
    positives = Counter(clusters.of(world.anchors.positives_MD.astype(np.float16)).tolist())
    full = {one for one in range(8) if positives[one] and positives[one] / (positives[one] + tweets[one]) > limit}
    assert clusters.skipped == full
    assert bool(full) == (limit == 0.2)
    mined = run(config, [corpus], labelled(world)).negatives.table
    of_rows = Counter(clusters.of(world.encode(mined["text"].to_pylist()).astype(np.float16)).tolist())
    assert not full & of_rows.keys()
    assert set(of_rows) == set(range(8)) - full


def test_more_clusters_than_tweets(world, corpus):
    few = replace(corpus, probe=Probe(corpus.probe.vectors_PD[:5], corpus.probe.exact_AD))
    mined = run(config_of({"strategy": "clusters", "clusters": 64}), [few], labelled(world))
    assert mined.negatives.table.num_rows > 10


def test_false_positives_of_a_model_are_taken_surest_first(world, corpus):
    rows = sample_corpus(corpus.view.similarities.corpus, 50, seed=3, purpose="x", executor=InlineExecutor())
    scored = [Scored(row, number / 50, NAMES[number % 2]) for number, row in enumerate(rows)]
    mined = run(
        config_of({"strategy": "model", "model": "x", "per_class": 20}), [corpus], labelled(world), scored=scored
    )
    table = mined.negatives.table
    for index, name in enumerate(NAMES):
        found = [row["id"] for row in table.to_pylist() if row["class_name"] == name]
        assert found == [rows[number].id for number in range(49, -1, -1) if number % 2 == index][:20]
    assert set(table["kind"].to_pylist()) == {"model"}
