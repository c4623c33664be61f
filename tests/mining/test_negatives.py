from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from mining import oracles
from scalemine.config import GuardConfig, MiningConfig
from scalemine.executor import InlineExecutor
from scalemine.mining import negatives as module
from scalemine.mining.anchors import Anchors, Positives
from scalemine.mining.candidates import Cell, View, by_score
from scalemine.mining.embeddings import Similarities, score
from scalemine.mining.negatives import (
    DROPPED,
    NEAR_NEGATIVE,
    OF_NEGATIVE,
    OF_POSITIVE,
    OUTSIDE,
    REVIEW_SCHEMA,
    REVIEWED,
    SAME_EVENT,
    SCHEMA,
    UNSURE,
    Precautions,
    mine_negatives,
    near_pairs,
    quotas,
)
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, anchor_grid
from scalemine.mining.strategies import Rule, sigma_band
from scalemine.shards import matrix, matrix_column
from scalemine.text import duplicate_key

DIM = 16
NAMES = ("fire", "flood")
MARGIN = 0.03
SEED = 42
ENCODERS = ["main", "other"]


@dataclass
class World:
    """A made-up corpus with the exact vector of every text."""

    ids: list[str]
    texts: list[str]
    vectors: dict[str, np.ndarray]
    anchors: Anchors
    exclude: list[str]
    normals: dict[str, Normal] = field(default_factory=dict)
    noise: np.ndarray | None = None
    encoded: list[str] = field(default_factory=list)
    quarantined: frozenset[str] = frozenset()

    def encode(self, texts):
        self.encoded += texts
        return np.stack([self.vectors[text] for text in texts])

    def cosine(self, text, index) -> float:
        anchor = self.anchors.vectors_KD[index].astype(np.float64)
        return float((self.vectors[text].astype(np.float64) * anchor).sum())

    def view(self, folder, rows_per_shard=97) -> View:
        return View(self.similarities(folder, rows_per_shard), self.anchors, self.normals, self.encode, MARGIN)

    def similarities(self, folder, rows_per_shard) -> Similarities:
        """What a pass over the corpus would have stored, off by up to the margin."""
        corpus = oracles.make_corpus(folder, self.ids, self.texts, rows_per_shard)
        files = Similarities(oracles.make_stage(folder / "similarities"), corpus)
        noise_of = dict(zip(self.ids, self.noise, strict=True))
        for shard in corpus.shards:
            table = corpus.read(shard)
            ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
            stored = np.stack([self.vectors[text] for text in texts]).astype(np.float16)
            valid = np.array([id_ not in self.quarantined for id_ in ids])
            scored = score(table["id"], stored, valid, anchor_grid(self.anchors.vectors_KD))
            steps = matrix(scored["steps"])[0] + np.rint(np.stack([noise_of[id_] for id_ in ids]) * STEPS_PER_UNIT)
            steps = steps.clip(-(2**15), 2**15 - 1).astype(np.int16)
            for id_, text, row, ok in zip(ids, texts, steps, valid, strict=True):
                exact = [self.cosine(text, index) for index in range(len(NAMES))]
                assert not ok or np.abs(row / STEPS_PER_UNIT - exact).max() <= MARGIN, id_
            files.write(shard, pa.table({"key": scored["key"], "steps": matrix_column(steps, valid)}))
        return files


def make_world(num_rows=700, seed=1) -> World:
    rng = np.random.default_rng(seed)
    positives = oracles.unit_rows(rng, 8, DIM)
    positives[:4] += 2 * positives[0]
    positives[4:] += 2 * positives[4]
    positives /= np.linalg.norm(positives, axis=1, keepdims=True)
    classes = np.repeat([0, 1], 4)
    anchors_KD = np.stack([positives[:4].mean(0), positives[4:].mean(0)])
    anchors_KD /= np.linalg.norm(anchors_KD, axis=1, keepdims=True)
    exclude = [f"{NAMES[c]} alarm number {i}, leave now" for i, c in enumerate(classes)]
    ids = tuple(f"p{i}" for i in range(8))
    anchors = Anchors(NAMES, anchors_KD.astype("f4"), ids, classes, positives.astype("f4"), tuple(exclude))
    texts = [f"tweet {i} about the day" for i in range(num_rows)]
    vectors = dict(zip(texts, oracles.unit_rows(rng, num_rows, DIM), strict=True))
    # Retweets, whose vectors lie near those of what they repeat; and exact copies.
    for i in range(0, num_rows, 10):
        text = f"RT @user{i}: {texts[i + 1]}"
        near = vectors[texts[i + 1]] + 0.1 * oracles.unit_rows(rng, 1, DIM)[0]
        vectors[text] = (near / np.linalg.norm(near)).astype("f4")
        texts[i] = text
    for i in range(3, num_rows, 50):
        texts[i] = texts[i + 1]
    # Copies of positives, and what lies between them and the rest, up to beyond three sigma.
    for i in range(5, num_rows, 40):
        texts[i] = f"RT @user{i}: {exclude[i % 8]}"
        vectors[texts[i]] = anchors.positives_MD[i % 8]
    for i in range(7, num_rows, 25):
        mixed = vectors[texts[i]] + rng.uniform(0.3, 4) * anchors.vectors_KD[i % 2]
        vectors[texts[i]] = (mixed / np.linalg.norm(mixed)).astype("f4")
    world = World([f"id{i}" for i in range(num_rows)], texts, vectors, anchors, exclude)
    finish(world, rng)
    return world


def finish(world: World, rng) -> None:
    """Fit the normals, and choose how far each stored value is off: as far as may be, up or down."""
    for index, name in enumerate(NAMES):
        cosines = [world.cosine(text, index) for text in world.texts]
        world.normals[name] = Normal(float(np.mean(cosines)), float(np.std(cosines)))
    most = MARGIN - 1.5e-3
    world.noise = np.where(rng.random((len(world.ids), 2)) < 0.5, most, -most) * rng.choice([0, 1], (len(world.ids), 2))


def band(world, text, index, tails) -> int:
    normal = world.normals[NAMES[index]]
    return oracles.band_of((world.cosine(text, index) - normal.mean) / normal.std, tails)


def count_bands(world, tails) -> dict[tuple[str, str], int]:
    found = Counter((name, band(world, text, i, tails)) for i, name in enumerate(NAMES) for text in world.texts)
    return {(name, kind_of(b)): found[name, b] for name in NAMES for b in (1, 2, 3, 4)}


def fill(worlds, config, wanted, available, rules) -> dict[tuple[str, str, int], list[str]]:
    """Every row scored in float64, gone through by priority, cell after cell, the scarcest first."""
    taken, texts, world = set(rules.positive_keys), [], worlds[0]
    cells = [(i, b, view) for view in range(len(worlds)) for i in range(len(NAMES)) for b in config.bands]
    cells.sort(key=lambda c: (available[NAMES[c[0]], kind_of(c[1])] / wanted[NAMES[c[0]], kind_of(c[1])], *c))
    chosen = {}
    for index, b, view in cells:
        name, kind = NAMES[index], kind_of(b)
        rows = [row for row in zip(world.ids, world.texts, strict=True) if row[0] not in world.quarantined]
        rows = [(id_, text) for id_, text in rows if band(worlds[view], text, index, config.tails) == b]
        purpose = f"negatives:{name}:{kind}" + (f":{view}" if view else "")
        rows.sort(key=lambda row: oracles.priority(row[0], SEED, purpose))
        members = chosen[name, kind, view] = []
        for id_, text in rows:
            free = duplicate_key(text) not in taken and is_free(world, id_, text, name, rules, texts)
            if free and len(members) < wanted[name, kind]:
                taken.add(duplicate_key(text))
                texts.append(text)
                members.append(id_)
    return chosen


def is_free(world, id_, text, name, rules, texts) -> bool:
    """Whether no precaution speaks against a tweet."""
    decision, budget = rules.decisions.get(duplicate_key(text)), rules.config.max_false_negative
    if decision == "yes" or (id_, name) in getattr(rules.is_near_event, "pairs", ()):
        return False
    if rules.guard and budget is not None and decision != "no" and rules.guard.known[text] > budget:
        return False
    near = rules.near_duplicate or np.inf
    vector = world.vectors[text].astype(np.float64)
    return all(float(vector @ world.vectors[other]) < near for other in texts)


def oracle(world, config, wanted, available, precautions=None) -> dict[tuple[str, str], list[str]]:
    rules = precautions or Precautions(keys_of(world.exclude))
    return {cell[:2]: ids for cell, ids in fill([world], config, wanted, available, rules).items()}


def keys_of(texts) -> frozenset[bytes]:
    return frozenset(map(duplicate_key, texts))


def kind_of(b) -> str:
    return f"{b}s"


def cells_of(views, config, wanted) -> list[Cell]:
    """A cell per class and band, each view with what is wanted of it."""
    return [
        Cell(index, name, kind_of(b), wanted[name, kind_of(b)], Rule(rule), number)
        for number, view in enumerate(views)
        for index, name in enumerate(NAMES)
        for b in config.bands
        for rule in [partial(sigma_band, index=index, normal=view.normals[name], band=b, tails=config.tails)]
    ]


def mine(world, folder, config, wanted, *, others=(), rows_per_shard=97, precautions=None, available=None, lists=None):
    views = [one.view(folder / str(number), rows_per_shard) for number, one in enumerate([world, *others])]
    cells = cells_of(views, config, wanted)
    propose = by_score(views, cells, SEED, InlineExecutor())

    def note(sizes):
        if lists is not None:
            lists.append(list(sizes))
        return propose(sizes)

    return mine_negatives(
        views, cells, note, config, available=available or count_bands(world, config.tails),
        precautions=precautions or Precautions(keys_of(world.exclude)), seed=SEED, encoders=ENCODERS[: len(views)],
    )  # fmt: skip


def by_cell(table) -> dict[tuple[str, str], list[str]]:
    cells = {}
    for row in table.to_pylist():
        cells.setdefault((row["class_name"], row["kind"]), []).append(row["id"])
    return cells


def check_rules(world, mined, config, wanted) -> None:
    """What holds of every outcome, whatever was chosen."""
    assert mined.table.schema.equals(SCHEMA)
    rows = mined.table.to_pylist()
    text_of = dict(zip(world.ids, world.texts, strict=True))
    keys = [duplicate_key(row["text"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {duplicate_key(text) for text in world.exclude}
    for cell, members in by_cell(mined.table).items():
        assert len(members) <= wanted[cell]
    for row in rows:
        index = NAMES.index(row["class_name"])
        normal = world.normals[row["class_name"]]
        assert row["text"] == text_of[row["id"]]
        assert row["band"] == band(world, row["text"], index, config.tails)
        assert (row["kind"], row["encoder"]) == (kind_of(row["band"]), "main")
        assert row["cosine"] == pytest.approx(world.cosine(row["text"], index), abs=1e-6)
        assert row["z"] == pytest.approx((world.cosine(row["text"], index) - normal.mean) / normal.std, abs=1e-5)
        near = [oracles.cosine(world.vectors[row["text"]], p) for p in world.anchors.positives_MD]
        assert row["nearest_positive_cosine"] == pytest.approx(max(near), abs=1e-5)
        assert near[world.anchors.positive_ids.index(row["nearest_positive_id"])] == pytest.approx(max(near), abs=1e-5)
        assert (row["strategy"], row["seed"]) == ("sigma_bands", SEED)
        assert row["false_negative_probability"] is None


def same_everywhere(quota, bands=(1, 2, 3)):
    return {(name, kind_of(b)): quota for name in NAMES for b in bands}


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.mark.parametrize("tails", ["both", "upper"])
@pytest.mark.parametrize(("quota", "bands"), [(6, (1, 2, 3)), (25, (1, 2, 3, 4)), (1, (3,))])
def test_mined_negatives_equal_greedy_oracle(world, tmp_path, tails, quota, bands):
    config = MiningConfig(tails=tails, bands=bands)
    wanted = same_everywhere(quota, bands)
    available = count_bands(world, tails)
    mined = mine(world, tmp_path, config, wanted)
    expected = oracle(world, config, wanted, available)
    assert by_cell(mined.table) == {cell: ids for cell, ids in expected.items() if ids}
    check_rules(world, mined, config, wanted)
    assert any(len(ids) == quota for ids in expected.values())


def test_table_is_by_class_kind_and_priority(world, tmp_path):
    mined = mine(world, tmp_path, MiningConfig(), same_everywhere(9)).table.to_pylist()
    order = [
        (r["class_name"], r["kind"], oracles.priority(r["id"], SEED, f"negatives:{r['class_name']}:{r['kind']}"))
        for r in mined
    ]
    assert len({row[:2] for row in order}) == 6
    assert order == sorted(order)


def test_stored_values_do_mislead(world, tmp_path):
    # The noise puts rows into bands that they are not in, and takes others out; the choice is the same as without.
    wanted = same_everywhere(25)
    misled = mine(world, tmp_path / "noisy", MiningConfig(), wanted)
    exact = replace(world, noise=np.zeros_like(world.noise), encoded=[])
    straight = mine(exact, tmp_path / "exact", MiningConfig(), wanted)
    assert misled.table.equals(straight.table)
    assert misled.passed_over[OUTSIDE] > 0


def test_reasons_are_counted(world, tmp_path):
    wanted = same_everywhere(10_000, (1, 2, 3, 4))
    mined = mine(world, tmp_path, MiningConfig(bands=(1, 2, 3, 4)), wanted)
    assert set(mined.passed_over) == {OF_POSITIVE, OF_NEGATIVE, OUTSIDE}
    assert min(mined.passed_over.values()) > 0


@pytest.mark.parametrize("rows_per_shard", [20, 10_000])
def test_result_does_not_depend_on_shards(world, tmp_path, rows_per_shard):
    wanted = same_everywhere(12)
    one = mine(world, tmp_path / "one", MiningConfig(), wanted)
    other = mine(world, tmp_path / "other", MiningConfig(), wanted, rows_per_shard=rows_per_shard)
    assert one.table.equals(other.table)
    assert one.passed_over == other.passed_over


def test_shortage_gives_all_there_are(world, tmp_path):
    config = MiningConfig(bands=(1, 2, 3, 4))
    wanted = same_everywhere(10_000, config.bands)
    available = count_bands(world, "both")
    mined = mine(world, tmp_path, config, wanted)
    assert by_cell(mined.table) == {cell: ids for cell, ids in oracle(world, config, wanted, available).items() if ids}
    keys = {duplicate_key(text) for text in world.texts} - {duplicate_key(text) for text in world.exclude}
    # Each tweet lies in some band of the first class, so every one that is no copy was taken by a cell.
    assert {duplicate_key(text) for text in mined.table["text"].to_pylist()} == keys


def test_scarcest_cell_is_served_first(world, tmp_path):
    wanted = same_everywhere(30)
    available = count_bands(world, "both")
    reverse = {cell: 10_000 - count for cell, count in available.items()}
    for counts in (available, reverse):
        mined = mine(world, tmp_path / str(counts["fire", "1s"]), MiningConfig(), wanted, available=counts)
        assert by_cell(mined.table) == oracle(world, MiningConfig(), wanted, counts)


def test_scarcest_is_by_its_quota(tmp_path):
    # Every tweet lies in band 1 of both classes, so the cell that is served second gets what the first one leaves.
    world = replace(make_world(num_rows=80, seed=5), normals={name: Normal(0.0, 5.0) for name in NAMES})
    config = MiningConfig(bands=(1,))
    available = {("fire", "1s"): 80, ("flood", "1s"): 80}
    for wanted in ({("fire", "1s"): 50, ("flood", "1s"): 60}, {("fire", "1s"): 60, ("flood", "1s"): 50}):
        mined = mine(world, tmp_path / str(wanted["fire", "1s"]), config, wanted, available=available)
        assert by_cell(mined.table) == oracle(world, config, wanted, available)
        first = max(wanted, key=wanted.get)
        assert len(by_cell(mined.table)[first]) == 60


def test_nothing_in_the_band(world, tmp_path):
    far = replace(world, normals={name: Normal(-5.0, 0.1) for name in NAMES}, encoded=[])
    mined = mine(far, tmp_path, MiningConfig(bands=(1,)), same_everywhere(3), available=same_everywhere(0))
    assert mined.table.num_rows == 0
    assert mined.table.schema.equals(SCHEMA)
    assert mined.num_candidates == 0


def test_rows_in_quarantine_are_not_taken(world, tmp_path):
    wanted = same_everywhere(8)
    best = mine(world, tmp_path / "all", MiningConfig(), wanted)
    gone = frozenset(best.table["id"].to_pylist()[::2])
    rest = replace(world, quarantined=gone, encoded=[])
    mined = mine(rest, tmp_path / "rest", MiningConfig(), wanted)
    assert not gone & set(mined.table["id"].to_pylist())
    assert by_cell(mined.table) == oracle(rest, MiningConfig(), wanted, count_bands(rest, "both"))


@pytest.mark.parametrize("planted", ["copies of positives", "outside", "copies of one another"])
def test_lists_that_run_out_are_lengthened(tmp_path, planted):
    world = make_world(num_rows=900, seed=3)
    config = MiningConfig(bands=(2,))
    wanted = same_everywhere(4, (2,))
    # The ids that come first for the cell get rows that will not do: more than the list has room for.
    order = sorted(range(900), key=lambda i: oracles.priority(world.ids[i], SEED, "negatives:flood:2s"))[:300]
    normal = world.normals["flood"]
    off = {"outside": 0.01}.get(planted, -0.3 * normal.std)
    towards = world.anchors.vectors_KD[1].astype(float)
    rng = np.random.default_rng(4)
    for number, i in enumerate(order):
        text = f"unusual tweet {number} at the edge"
        text = f"RT @user{number}: {world.exclude[0]}" if planted == "copies of positives" else text
        text = f"RT @user{number}: one and the same" if planted == "copies of one another" else text
        across = rng.standard_normal(DIM)
        across -= across @ towards * towards
        cosine = normal.mean + 2 * normal.std + off
        mixed = cosine * towards + (1 - cosine**2) ** 0.5 * across / np.linalg.norm(across)
        world.vectors[text], world.texts[i] = mixed.astype("f4"), text
    world.noise[order] = [0, -0.02] if planted == "outside" else 0
    lists = []
    available = count_bands(world, "both")
    mined = mine(world, tmp_path, config, wanted, available=available, lists=lists)
    assert len(lists) > 1
    assert lists[-1][1] >= 300 > lists[0][1]
    assert by_cell(mined.table) == oracle(world, config, wanted, available)
    assert len(by_cell(mined.table)["flood", "2s"]) == 4
    check_rules(world, mined, config, wanted)


def test_each_text_is_encoded_once(world, tmp_path):
    fresh = replace(world, encoded=[])
    mined = mine(fresh, tmp_path, MiningConfig(), same_everywhere(25))
    assert len(fresh.encoded) == len(set(fresh.encoded)) == mined.num_candidates
    # Far fewer than the corpus holds: only what may be taken is encoded again.
    assert mined.num_candidates < len(world.ids) / 2


class PicklingExecutor(InlineExecutor):
    """Sends its workers over, as other processes get them."""

    def map(self, make_worker, items, **options):
        return super().map(pickle.loads(pickle.dumps(make_worker)), items, **options)


def test_what_goes_to_the_workers_holds_no_encoder(world, tmp_path):
    # An encoder holds locks, which cannot be sent; neither can this.
    view = replace(world.view(tmp_path), encode=lambda texts: world.encode(texts))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(view)
    cells = cells_of([view], MiningConfig(), same_everywhere(5))
    here = by_score([view], cells, SEED, InlineExecutor())([9] * len(cells))
    assert by_score([view], cells, SEED, PicklingExecutor())([9] * len(cells)) == here
    assert all(len(rows) == 9 for rows in here)


def test_unreadable_similarities_are_reported(world, tmp_path):
    view, config = world.view(tmp_path), MiningConfig()
    view.similarities.path(view.similarities.corpus.shards[0]).unlink()
    cells = cells_of([view], config, same_everywhere(1))
    with pytest.raises(RuntimeError, match="candidates cannot be selected"):
        mine_negatives(
            [view], cells, by_score([view], cells, SEED, InlineExecutor()), config,
            available=count_bands(world, "both"), precautions=Precautions(frozenset()), seed=SEED, encoders=["main"],
        )  # fmt: skip


# Precautions


@dataclass
class FakeGuard:
    """A guard that knows the probability of every text, and looks that each comes with its own vector, once."""

    world: World
    known: dict[str, float]
    asked: list[str] = field(default_factory=list)

    def probability(self, texts, vectors_ND):
        for text, vector in zip(texts, vectors_ND, strict=True):
            assert np.array_equal(vector, self.world.vectors[text])
        self.asked += texts
        return np.array([self.known[text] for text in texts])


@dataclass
class NearEvent:
    pairs: frozenset[tuple[str, str]]

    def __call__(self, row, class_name):
        return (row.id, class_name) in self.pairs


def guarded(world, **settings) -> tuple[Precautions, dict[str, float]]:
    """Precautions with a budget of 0.1 and a guard whose probabilities are anything."""
    rng = np.random.default_rng(11)
    known = {text: float(np.float32(p)) for text, p in zip(world.texts, rng.random(len(world.texts)), strict=True)}
    config = GuardConfig(max_false_negative=0.1, review_below=0.5)
    return Precautions(keys_of(world.exclude), FakeGuard(world, known), config, **settings), known


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.0, None), (0.05, None), (0.051, UNSURE), (0.5, UNSURE), (0.501, DROPPED), (1.0, DROPPED)],
)
def test_verdict(probability, expected):
    config = GuardConfig(max_false_negative=0.05, review_below=0.5)
    rules = Precautions(frozenset(), config=config, decisions={b"no": "no", b"yes": "yes"})
    assert rules.verdict(probability, b"key") == expected
    assert rules.verdict(probability, b"no") is None
    assert rules.verdict(probability, b"yes") == expected
    assert Precautions(frozenset()).verdict(probability, b"key") is None


def test_review_up_to_the_budget_asks_nothing():
    with pytest.raises(ValueError, match=r"review_below: expected at least max_false_negative \(0\.4\); got 0\.2"):
        GuardConfig(max_false_negative=0.4, review_below=0.2)
    rules = Precautions(frozenset(), config=GuardConfig(max_false_negative=0.4, review_below=0.4))
    assert [rules.verdict(p, b"key") for p in (0.3, 0.4, 0.41)] == [None, None, DROPPED]


@pytest.mark.parametrize("quota", [5, 25])
def test_guarded_negatives_equal_greedy_oracle(world, tmp_path, quota):
    rules, known = guarded(world)
    config, wanted, available = MiningConfig(bands=(1, 2, 3, 4)), same_everywhere(quota, (1, 2, 3, 4)), None
    available = count_bands(world, "both")
    mined = mine(world, tmp_path, config, wanted, precautions=rules)
    expected = oracle(world, config, wanted, available, rules)
    assert by_cell(mined.table) == {cell: ids for cell, ids in expected.items() if ids}
    for row in mined.table.to_pylist():
        assert row["false_negative_probability"] == known[row["text"]] <= 0.1
    # Every text is asked for once, and only what was encoded anyway.
    assert len(rules.guard.asked) == len(set(rules.guard.asked)) == mined.num_candidates


def test_without_a_budget_nothing_is_dropped(world, tmp_path):
    rules, known = guarded(world)
    rules = replace(rules, config=GuardConfig())
    mined = mine(world, tmp_path / "one", MiningConfig(), same_everywhere(12), precautions=rules)
    plain = mine(world, tmp_path / "other", MiningConfig(), same_everywhere(12))
    assert by_cell(mined.table) == by_cell(plain.table)
    found = mined.table.to_pylist()
    assert [row["false_negative_probability"] for row in found] == [known[row["text"]] for row in found]
    assert mined.review.num_rows == 0


def test_review_is_what_the_guard_is_unsure_about(world, tmp_path):
    rules, known = guarded(world)
    bands = (1, 2, 3, 4)
    mined = mine(world, tmp_path, MiningConfig(bands=bands), same_everywhere(10_000, bands), precautions=rules)
    assert mined.review.schema.equals(REVIEW_SCHEMA)
    rows = mined.review.to_pylist()
    free = {text for text in world.texts if duplicate_key(text) not in rules.positive_keys}
    taken = set(mined.table["text"].to_pylist())
    copies = {duplicate_key(text) for text in taken}
    # With quotas for all, every tweet was a candidate: what is unsure and no copy of what was taken is to be reviewed.
    unsure = {text for text in free if 0.1 < known[text] <= 0.5}
    assert {row["text"] for row in rows} <= unsure
    # Of copies of a tweet one is shown.
    shown = [duplicate_key(row["text"]) for row in rows]
    assert {duplicate_key(text) for text in unsure} - copies <= set(shown)
    assert len(set(shown)) == len(rows)
    order = [(row["false_negative_probability"], row["id"]) for row in rows]
    assert order == sorted(order)
    assert order != sorted(order, key=lambda pair: pair[1])
    for row in rows:
        index = NAMES.index(row["class_name"])
        near = [oracles.cosine(world.vectors[row["text"]], p) for p in world.anchors.positives_MD]
        best = world.anchors.positive_ids.index(row["nearest_positive_id"])
        assert near[best] == pytest.approx(max(near), abs=1e-5)
        assert row["nearest_positive_cosine"] == pytest.approx(max(near), abs=1e-5)
        assert row["nearest_positive_text"] == world.anchors.positive_texts[best]
        assert row["nearest_positive_class"] == NAMES[world.anchors.positive_class_M[best]]
        assert row["cosine"] == pytest.approx(world.cosine(row["text"], index), abs=1e-6)
        assert row["band"] == band(world, row["text"], index, "both")
        assert row["false_negative_probability"] == known[row["text"]]
        assert (row["id"], row["text"]) in set(zip(world.ids, world.texts, strict=True))
    assert mined.passed_over[UNSURE] >= len(rows) > 20
    assert mined.passed_over[DROPPED] > 20


def test_review_of_equal_probabilities_is_by_id(world, tmp_path):
    rules, known = guarded(world)
    rules.guard.known = dict.fromkeys(known, 0.25)
    mined = mine(world, tmp_path, MiningConfig(), same_everywhere(5), precautions=rules)
    assert mined.table.num_rows == 0
    ids = mined.review["id"].to_pylist()
    assert len(ids) > 100
    assert ids == sorted(ids)


@pytest.mark.parametrize("with_guard", [False, True])
def test_decided_tweets(world, tmp_path, with_guard):
    rules, known = guarded(world)
    rules = rules if with_guard else Precautions(keys_of(world.exclude))
    before = mine(world, tmp_path / "before", MiningConfig(), same_everywhere(8), precautions=rules)
    taken = before.table["text"].to_pylist()[::3]
    doubtful = [text for text in world.texts if duplicate_key(text) not in rules.positive_keys and known[text] > 0.1]
    decisions = {duplicate_key(text): "no" for text in doubtful[::2]} | {duplicate_key(text): "yes" for text in taken}
    decided = replace(rules, decisions=decisions)
    after = mine(world, tmp_path / "after", MiningConfig(), same_everywhere(8), precautions=decided)
    expected = oracle(world, MiningConfig(), same_everywhere(8), count_bands(world, "both"), decided)
    assert by_cell(after.table) == expected
    for text in (*after.table["text"].to_pylist(), *after.review["text"].to_pylist()):
        assert decisions.get(duplicate_key(text)) != "yes"
    assert after.passed_over[REVIEWED] > 0
    above = [row for row in after.table.to_pylist() if with_guard and known[row["text"]] > 0.1]
    # What a person said is none may be taken, whatever the guard says, and is surely none.
    assert {decisions[duplicate_key(row["text"])] for row in above} == ({"no"} if with_guard else set())
    assert all(row["false_negative_probability"] == 0 for row in above)
    assert with_guard or set(after.table["false_negative_probability"].to_pylist()) <= {None, 0.0}


def test_decisions_hold_for_copies(world, tmp_path):
    # Every tenth tweet is a retweet of the next one.
    text = world.texts[11]
    assert duplicate_key(world.texts[10]) == duplicate_key(text)
    rules = Precautions(keys_of(world.exclude), decisions={duplicate_key(text): "yes"})
    every = same_everywhere(10_000, (1, 2, 3, 4))
    mined = mine(world, tmp_path, MiningConfig(bands=(1, 2, 3, 4)), every, precautions=rules)
    assert duplicate_key(text) not in keys_of(mined.table["text"].to_pylist())
    assert mined.passed_over[REVIEWED] >= 2


def test_rows_near_an_event_are_passed_over(world, tmp_path):
    wanted = same_everywhere(8)
    before = mine(world, tmp_path / "before", MiningConfig(), wanted).table.to_pylist()
    # For the class that took them, or for the other one alone.
    own, other = before[::4], before[1::4]
    away = {"fire": "flood", "flood": "fire"}
    pairs = {(row["id"], row["class_name"]) for row in own} | {(row["id"], away[row["class_name"]]) for row in other}
    rules = Precautions(keys_of(world.exclude), is_near_event=NearEvent(frozenset(pairs)))
    after = mine(world, tmp_path / "after", MiningConfig(), wanted, precautions=rules)
    assert by_cell(after.table) == oracle(world, MiningConfig(), wanted, count_bands(world, "both"), rules)
    found = {(row["id"], row["class_name"]) for row in after.table.to_pylist()}
    assert not found & pairs
    assert {row["id"] for row in other} & {id_ for id_, _ in found}
    assert after.passed_over[SAME_EVENT] >= len(own)


def near_world(seed=7) -> World:
    """A world in which every fourth tweet is nearly another one, in vector and not in words."""
    world = make_world(num_rows=400, seed=seed)
    rng = np.random.default_rng(seed)
    for i in range(0, 400, 4):
        for j in (2, 3):
            near = world.vectors[world.texts[i]] + rng.uniform(0.05, 0.6) * oracles.unit_rows(rng, 1, DIM)[0]
            world.texts[i + j] = f"other words {i} {j}"
            world.vectors[world.texts[i + j]] = (near / np.linalg.norm(near)).astype("f4")
    finish(world, rng)
    return world


@pytest.mark.parametrize("threshold", [0.9, 0.95, 0.99])
def test_near_duplicates_equal_greedy_oracle(tmp_path, threshold):
    world = near_world()
    rules = Precautions(keys_of(world.exclude), near_duplicate=threshold)
    config, wanted = MiningConfig(), same_everywhere(40)
    available = count_bands(world, "both")
    mined = mine(world, tmp_path / "near", config, wanted, precautions=rules)
    expected = oracle(world, config, wanted, available, rules)
    assert by_cell(mined.table) == expected
    vectors = [world.vectors[text] for text in mined.table["text"].to_pylist()]
    assert max(float(a @ b) for i, a in enumerate(vectors) for b in vectors[:i]) < threshold
    assert mined.passed_over[NEAR_NEGATIVE] > 0
    # The cells are the fuller for it where the rule is not there, and hold what is near.
    plain = mine(world, tmp_path / "plain", config, wanted)
    vectors = [world.vectors[text] for text in plain.table["text"].to_pylist()]
    assert max(float(a @ b) for i, a in enumerate(vectors) for b in vectors[:i]) >= threshold
    assert NEAR_NEGATIVE not in plain.passed_over


@pytest.mark.parametrize("threshold", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("block", [3, 512])
def test_near_pairs_equal_quadratic_loop(monkeypatch, threshold, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    world = near_world(seed=8)
    every = list(dict.fromkeys(world.texts))[:90]
    vectors = {text: world.vectors[text] for text in every}
    texts = every[::2]
    found = near_pairs(vectors, texts, threshold)
    cosines = {(a, b): oracles.cosine(vectors[a], vectors[b]) for a in texts for b in every if a != b}
    sure = {pair for pair, cosine in cosines.items() if cosine >= threshold + 1e-3}
    never = {pair for pair, cosine in cosines.items() if cosine < threshold - 1e-3}
    assert sure <= set(found)
    assert not never & set(found)
    assert len(set(found)) == len(found)
    assert sure or threshold == 1.0


def test_all_precautions_at_once_equal_greedy_oracle(tmp_path):
    world = near_world(seed=9)
    rules, _ = guarded(world, near_duplicate=0.93)
    rng = np.random.default_rng(5)
    decisions = {duplicate_key(text): str(rng.choice(["yes", "no"])) for text in world.texts[::3]}
    pairs = frozenset((id_, NAMES[rng.integers(2)]) for id_ in world.ids[::5])
    rules = replace(rules, decisions=decisions, is_near_event=NearEvent(pairs))
    config, wanted = MiningConfig(bands=(1, 2, 3, 4)), same_everywhere(15, (1, 2, 3, 4))
    for rows_per_shard in (30, 400):
        folder = tmp_path / str(rows_per_shard)
        mined = mine(world, folder, config, wanted, precautions=rules, rows_per_shard=rows_per_shard)
        expected = oracle(world, config, wanted, count_bands(world, "both"), rules)
        assert by_cell(mined.table) == {cell: ids for cell, ids in expected.items() if ids}
    assert set(mined.passed_over) == {
        *(OUTSIDE, OF_POSITIVE, OF_NEGATIVE, NEAR_NEGATIVE, SAME_EVENT, REVIEWED, DROPPED, UNSURE)
    }


# Several encoders


def second_view(world) -> World:
    """The same tweets, otherwise encoded."""
    other = make_world(seed=21)
    rng = np.random.default_rng(22)
    distinct = list(dict.fromkeys([*world.texts, *world.exclude]))
    vectors = dict(zip(distinct, oracles.unit_rows(rng, len(distinct), DIM), strict=True))
    view = replace(world, vectors=vectors, anchors=other.anchors, normals={}, encoded=[])
    finish(view, rng)
    return view


def test_views_fill_their_own_cells(world, tmp_path):
    main, other = replace(world, encoded=[]), second_view(world)
    config, wanted = MiningConfig(), same_everywhere(9)
    rules, known = guarded(world, near_duplicate=0.95)
    mined = mine(main, tmp_path, config, wanted, others=[other], precautions=rules)
    expected = fill([main, other], config, wanted, count_bands(main, "both"), rules)
    found = {}
    for row in mined.table.to_pylist():
        found.setdefault((row["class_name"], row["kind"], ENCODERS.index(row["encoder"])), []).append(row["id"])
    assert found == expected
    assert len(found) == 12
    # What is written is as the main encoder sees it, whichever one chose; its band may then be another than the kind.
    strange = 0
    for row in mined.table.to_pylist():
        index, normal = NAMES.index(row["class_name"]), main.normals[row["class_name"]]
        assert row["cosine"] == pytest.approx(main.cosine(row["text"], index), abs=1e-6)
        assert row["z"] == pytest.approx((main.cosine(row["text"], index) - normal.mean) / normal.std, abs=1e-5)
        assert row["band"] == band(main, row["text"], index, "both")
        assert row["false_negative_probability"] == known[row["text"]]
        seen_by = (main, other)[ENCODERS.index(row["encoder"])]
        assert kind_of(band(seen_by, row["text"], index, "both")) == row["kind"]
        strange += kind_of(row["band"]) != row["kind"]
    assert strange > 5
    # The other encoder encodes only what its own cells want.
    assert set(other.encoded) < set(main.encoded)
    assert len(main.encoded) == len(set(main.encoded)) == mined.num_candidates


def labelled(names) -> Positives:
    rows = [{"id": f"{i}", "text": f"text {i}", "class_name": name} for i, name in enumerate(names)]
    return Positives(pa.Table.from_pylist(rows))


def test_quotas():
    train, test = labelled(["fire"] * 3 + ["flood"] * 5), labelled(["flood"] * 2)
    match = {("fire", "1s"): 3, ("fire", "3s"): 3, ("flood", "1s"): 7, ("flood", "3s"): 7}
    assert quotas(MiningConfig(bands=(1, 3)), train, test) == match
    alone = {**match, ("flood", "1s"): 5, ("flood", "3s"): 5}
    assert quotas(MiningConfig(bands=(1, 3)), train, None) == alone
    fixed = {("fire", "2s"): 9, ("flood", "2s"): 9}
    assert quotas(MiningConfig(bands=(2,), per_class=9), train, test) == fixed
    # Strategies without bands have one kind.
    assert quotas(MiningConfig(strategy="simans", bands=(1, 3)), train, None) == {
        ("fire", "simans"): 3,
        ("flood", "simans"): 5,
    }
    quantiles = MiningConfig(strategy="quantile_bands", bands=(2,), per_class=1)
    assert quotas(quantiles, train, test) == {("fire", "2q"): 1, ("flood", "2q"): 1}
