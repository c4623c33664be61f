from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest

from mining import oracles
from scalemine.config import MiningConfig
from scalemine.executor import InlineExecutor
from scalemine.mining import negatives as module
from scalemine.mining.anchors import Anchors, Positives
from scalemine.mining.embeddings import Similarities, matrix, matrix_column, score
from scalemine.mining.negatives import OF_NEGATIVE, OF_POSITIVE, OUTSIDE, SCHEMA, mine_negatives, quotas
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, anchor_grid
from scalemine.text import duplicate_key

DIM = 16
NAMES = ("fire", "flood")
MARGIN = 0.03
SEED = 42


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
    anchors = Anchors(NAMES, anchors_KD.astype("f4"), tuple(f"p{i}" for i in range(8)), classes, positives.astype("f4"))
    exclude = [f"{NAMES[c]} alarm number {i}, leave now" for i, c in enumerate(classes)]
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


def count_bands(world, tails) -> dict[tuple[str, int], int]:
    found = Counter((name, band(world, text, i, tails)) for i, name in enumerate(NAMES) for text in world.texts)
    return {(name, b): found[name, b] for name in NAMES for b in (1, 2, 3, 4)}


def oracle(world, config, wanted, available, *, exclude=None) -> dict[tuple[str, int], list[str]]:
    """Every row scored in float64, gone through by priority, cell after cell, the scarcest first."""
    taken = {duplicate_key(text) for text in (world.exclude if exclude is None else exclude)}
    cells = [(i, b) for i in range(len(NAMES)) for b in config.bands]
    cells.sort(key=lambda c: (available[NAMES[c[0]], c[1]] / wanted[NAMES[c[0]], c[1]], NAMES[c[0]], c[1]))
    chosen = {}
    for index, b in cells:
        rows = [(id_, t) for id_, t in zip(world.ids, world.texts, strict=True) if id_ not in world.quarantined]
        rows = [(id_, text) for id_, text in rows if band(world, text, index, config.tails) == b]
        rows.sort(key=lambda row: oracles.priority(row[0], SEED, f"negatives:{NAMES[index]}:{b}"))
        members = chosen[NAMES[index], b] = []
        for id_, text in rows:
            if len(members) < wanted[NAMES[index], b] and duplicate_key(text) not in taken:
                taken.add(duplicate_key(text))
                members.append(id_)
    return chosen


def mine(world, folder, config, wanted, *, rows_per_shard=97, exclude=None, available=None):
    return mine_negatives(
        world.similarities(folder, rows_per_shard), world.anchors, world.normals, config,
        wanted=wanted, available=available or count_bands(world, config.tails),
        exclude=world.exclude if exclude is None else exclude, encode=world.encode, margin=MARGIN, seed=SEED,
        executor=InlineExecutor(),
    )  # fmt: skip


def by_cell(table) -> dict[tuple[str, int], list[str]]:
    cells = {}
    for row in table.to_pylist():
        cells.setdefault((row["class_name"], row["band"]), []).append(row["id"])
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
        assert row["cosine"] == pytest.approx(world.cosine(row["text"], index), abs=1e-6)
        assert row["z"] == pytest.approx((world.cosine(row["text"], index) - normal.mean) / normal.std, abs=1e-5)
        near = [oracles.cosine(world.vectors[row["text"]], p) for p in world.anchors.positives_MD]
        assert row["nearest_positive_cosine"] == pytest.approx(max(near), abs=1e-5)
        assert near[world.anchors.positive_ids.index(row["nearest_positive_id"])] == pytest.approx(max(near), abs=1e-5)
        assert (row["strategy"], row["seed"]) == ("sigma_bands", SEED)
        assert row["false_negative_probability"] is None


def same_everywhere(quota, bands=(1, 2, 3)):
    return {(name, b): quota for name in NAMES for b in bands}


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


def test_table_is_by_class_band_and_priority(world, tmp_path):
    mined = mine(world, tmp_path, MiningConfig(), same_everywhere(9)).table.to_pylist()
    order = [
        (r["class_name"], r["band"], oracles.priority(r["id"], SEED, f"negatives:{r['class_name']}:{r['band']}"))
        for r in mined
    ]
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
        mined = mine(world, tmp_path / str(counts["fire", 1]), MiningConfig(), wanted, available=counts)
        assert by_cell(mined.table) == oracle(world, MiningConfig(), wanted, counts)


def test_scarcest_is_by_its_quota(tmp_path):
    # Every tweet lies in band 1 of both classes, so the cell that is served second gets what the first one leaves.
    world = replace(make_world(num_rows=80, seed=5), normals={name: Normal(0.0, 5.0) for name in NAMES})
    config = MiningConfig(bands=(1,))
    available = {("fire", 1): 80, ("flood", 1): 80}
    for wanted in ({("fire", 1): 50, ("flood", 1): 60}, {("fire", 1): 60, ("flood", 1): 50}):
        mined = mine(world, tmp_path / str(wanted["fire", 1]), config, wanted, available=available)
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
def test_lists_that_run_out_are_lengthened(tmp_path, monkeypatch, planted):
    world = make_world(num_rows=900, seed=3)
    config = MiningConfig(bands=(2,))
    wanted = same_everywhere(4, (2,))
    # The ids that come first for the cell get rows that will not do: more than the list has room for.
    order = sorted(range(900), key=lambda i: oracles.priority(world.ids[i], SEED, "negatives:flood:2"))[:300]
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
    propose = module._propose

    def spy(similarities, cells, sizes, **rest):
        lists.append(list(sizes))
        return propose(similarities, cells, sizes, **rest)

    monkeypatch.setattr(module, "_propose", spy)
    available = count_bands(world, "both")
    mined = mine(world, tmp_path, config, wanted, available=available)
    assert len(lists) > 1
    assert lists[-1][1] >= 300 > lists[0][1]
    assert by_cell(mined.table) == oracle(world, config, wanted, available)
    assert len(by_cell(mined.table)["flood", 2]) == 4
    check_rules(world, mined, config, wanted)


def test_each_text_is_encoded_once(world, tmp_path):
    fresh = replace(world, encoded=[])
    mined = mine(fresh, tmp_path, MiningConfig(), same_everywhere(25))
    assert len(fresh.encoded) == len(set(fresh.encoded)) == mined.num_candidates
    # Far fewer than the corpus holds: only what may be taken is encoded again.
    assert mined.num_candidates < len(world.ids) / 2


def test_unreadable_similarities_are_reported(world, tmp_path):
    files = world.similarities(tmp_path, 97)
    files.path(files.corpus.shards[0]).unlink()
    with pytest.raises(RuntimeError, match="candidates cannot be selected"):
        mine_negatives(
            files, world.anchors, world.normals, MiningConfig(), wanted=same_everywhere(1),
            available=count_bands(world, "both"), exclude=[], encode=world.encode, margin=MARGIN, seed=SEED,
            executor=InlineExecutor(),
        )  # fmt: skip


def labelled(names) -> Positives:
    rows = [{"id": f"{i}", "text": f"text {i}", "class_name": name} for i, name in enumerate(names)]
    return Positives(pa.Table.from_pylist(rows))


def test_quotas():
    train, test = labelled(["fire"] * 3 + ["flood"] * 5), labelled(["flood"] * 2)
    match = {("fire", 1): 3, ("fire", 3): 3, ("flood", 1): 7, ("flood", 3): 7}
    assert quotas(MiningConfig(bands=(1, 3)), train, test) == match
    assert quotas(MiningConfig(bands=(1, 3)), train, None) == {**match, ("flood", 1): 5, ("flood", 3): 5}
    assert quotas(MiningConfig(bands=(2,), per_class=9), train, test) == {("fire", 2): 9, ("flood", 2): 9}
