from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining import oracles
from mining.worlds import World, around, make_anchors, stored_rows
from scalemine import scores as module
from scalemine.config import Config, InputError
from scalemine.executor import InlineExecutor
from scalemine.mining.mine import ScoredCorpus
from scalemine.mining.probe import Probe
from scalemine.scores import LEAST_Z, fingerprint_of, score_candidates
from scalemine.training.tagging import tagger
from scalemine.training.tagging.tagger import TaggedSpan

DIM = 12
NAMES = ("fire", "flood")
SEED = 42


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(1)
    centres = oracles.unit_rows(rng, 2, DIM)
    positives = np.concatenate([around(rng, centre, 5, 0.2) for centre in centres])
    rows = np.concatenate([*(around(rng, centre, 25, 0.4) for centre in centres), oracles.unit_rows(rng, 250, DIM)])
    world = World.of(make_anchors(NAMES, np.repeat([0, 1], 5), positives), rows)
    return replace(world, quarantined=frozenset(world.ids[::19]), events=[f"event {n % 3}" for n in range(300)])


def scored_corpus(world, folder, rows_per_shard=41) -> ScoredCorpus:
    view = world.view(folder, rows_per_shard)
    return ScoredCorpus("main", replace(view, normals={}), Probe(np.empty((0, DIM), "f2"), np.empty((0, DIM), "f2")))


@pytest.fixture(scope="module")
def corpus(world, tmp_path_factory) -> ScoredCorpus:
    return scored_corpus(world, tmp_path_factory.mktemp("corpus"))


def score(corpus, model, *, pool=5_000, **more):
    mining = {"strategy": "model", "model": str(model), "pool": pool}
    config = Config.model_validate({"workdir": "unused", "seed": SEED, "mining": mining})
    return score_candidates(config, corpus, InlineExecutor(), **more)


def z_of(corpus) -> dict[str, np.ndarray]:
    """z of each tweet to each class, from the stored cosines and their moments."""
    rows = stored_rows(corpus.view)
    cosines = np.array([one for _, one in rows])
    z = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)
    return dict(zip([id_ for id_, _ in rows], z, strict=True))


def write(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# A file of scores


@pytest.mark.parametrize("named", [True, False])
def test_scores_of_a_file(world, corpus, tmp_path, named):
    chosen = [id_ for id_ in world.ids if id_ not in world.quarantined][:40]
    values = [number / 40 for number in range(40)]
    classes = [NAMES[number % 2] if number % 3 else None for number in range(40)]
    more = {"class_name": pa.array(classes, pa.string())} if named else {}
    found = score(corpus, write(tmp_path / "scores.parquet", id=chosen, score=values, other=values, **more))
    assert sorted(one.row.id for one in found) == sorted(chosen)
    z, text_of = z_of(corpus), dict(zip(world.ids, world.texts, strict=True))
    event_of = dict(zip(world.ids, world.events, strict=True))
    for one in found:
        number = chosen.index(one.row.id)
        assert one.score == values[number]
        assert one.row.text == text_of[one.row.id]
        assert one.row.more == (event_of[one.row.id],)
        nearest = NAMES[int(np.argmax(z[one.row.id]))]
        assert one.class_name == ((classes[number] if named else None) or nearest)
    assert {one.class_name for one in found} == set(NAMES)


def test_ids_may_be_numbers_and_scores_whole_or_missing(world, tmp_path):
    numbered = replace(world, ids=[id_[1:] for id_ in world.ids], quarantined=frozenset())
    corpus = scored_corpus(numbered, tmp_path)
    path = write(tmp_path / "s.parquet", id=[3, 5, 8], score=pa.array([1, None, 0]))
    assert {(one.row.id, one.score) for one in score(corpus, path)} == {("3", 1.0), ("8", 0.0)}


def test_unknown_ids_are_counted(world, corpus, tmp_path, caplog):
    ids = [*world.ids[1:4], "gone", "lost"]
    with caplog.at_level(logging.WARNING):
        found = score(corpus, write(tmp_path / "s.parquet", id=ids, score=[0.5] * 5))
    assert len(found) == 3
    assert "2 of 5 ids are not in the corpus" in caplog.text
    with pytest.raises(InputError, match="none of the 2 ids in .* is in the corpus"):
        score(corpus, write(tmp_path / "t.parquet", id=["gone", "lost"], score=[0.5] * 2))


def test_rows_in_quarantine_are_not_taken(world, corpus, tmp_path):
    # They have no similarities, and would break the encoder again.
    gone = sorted(world.quarantined)
    ids = [*gone[:3], *world.ids[1:4]]
    found = score(corpus, write(tmp_path / "s.parquet", id=ids, score=[0.5] * 6))
    assert sorted(one.row.id for one in found) == sorted(world.ids[1:4])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["t1"], "value": [0.5]}, "has no column 'score'; it has id, value"),
        ({"text": ["t1"], "score": [0.5]}, "has no column 'id'; it has text, score"),
        ({"id": ["t1"], "score": [0.5], "class_name": ["storm"]}, "unknown class 'storm'; expected fire, flood"),
        ({"id": ["t1"], "score": ["high"]}, "column 'score' holds string"),
        ({"id": ["t1"], "score": [[0.5]]}, "column 'score' holds list"),
        ({"id": ["t1", "t2"], "score": [0.5, float("nan")]}, "column 'score' holds nan"),
    ],
)
def test_file_that_does_not_fit_is_refused(world, corpus, tmp_path, columns, message):
    ids = iter(id_ for id_ in world.ids if id_ not in world.quarantined)
    columns = {name: [next(ids) for _ in values] if name == "id" else values for name, values in columns.items()}
    with pytest.raises(InputError) as refused:
        score(corpus, write(tmp_path / "s.parquet", **columns))
    assert str(refused.value).startswith("mining.model: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_that_is_no_parquet_is_refused(corpus, tmp_path):
    (tmp_path / "s.parquet").write_text("id,score\nt1,0.5\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^mining\.model: .* cannot be read as Parquet") as refused:
        score(corpus, tmp_path / "s.parquet")
    assert "\n" not in str(refused.value)


# A tagger


class FakeTagger:
    """Tags every text with a number that is divisible by 3, surest where the number is high."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def tag(self, texts):
        self.batches.append(list(texts))
        return [self.spans(text) for text in texts]

    def spans(self, text) -> list[TaggedSpan]:
        number = int(text.split()[1])
        if number % 3:
            return []
        kind = ("fire", "flood", "storm")[number % 5 % 3]
        return [
            TaggedSpan(0, 5, "fire" if kind == "flood" else "flood", text[:5], 0.001),
            TaggedSpan(6, 9, kind, text[6:9], (number + 1) / 400),
            # As sure, and further behind.
            TaggedSpan(10, 15, "fire", text[10:15], (number + 1) / 400),
        ]


@pytest.fixture
def fake(monkeypatch):
    one = FakeTagger()
    asked = []

    def load(folder, **_):
        asked.append(folder)
        return one

    monkeypatch.setattr(tagger, "load_tagger", load)
    yield one
    assert len(set(asked)) <= 1


def slow_pool(world, corpus, size) -> list[str]:
    near = [id_ for id_, z in z_of(corpus).items() if z.max() >= LEAST_Z]
    return sorted(near, key=lambda id_: oracles.priority(id_, SEED, "pool:1"))[:size]


@pytest.mark.parametrize("pool", [30, 5_000])
def test_tagger_reads_the_pool(world, corpus, tmp_path, monkeypatch, fake, pool):
    monkeypatch.setattr(module, "BATCH", 8)
    advanced = []
    found = score(corpus, tmp_path, pool=pool, on_rows=advanced.append)
    expected = slow_pool(world, corpus, pool)
    text_of = dict(zip(world.ids, world.texts, strict=True))
    assert [text for batch in fake.batches for text in batch] == [text_of[id_] for id_ in expected]
    assert max(map(len, fake.batches)) == 8
    assert advanced == [len(batch) for batch in fake.batches]
    assert sum(advanced) == len(expected) < len(world.ids) / 2
    assert not world.quarantined & set(expected)
    # Each with its surest span; the class of a type that mining does not know is the nearest one.
    z = z_of(corpus)
    tagged = [id_ for id_ in expected if int(id_[1:]) % 3 == 0]
    assert [one.row.id for one in found] == tagged
    assert len(tagged) > 3
    for one in found:
        number = int(one.row.id[1:])
        kind = ("fire", "flood", "storm")[number % 5 % 3]
        assert one.score == (number + 1) / 400
        assert one.class_name == (NAMES[int(np.argmax(z[one.row.id]))] if kind == "storm" else kind)


@pytest.mark.parametrize("rows_per_shard", [7, 10_000])
def test_pool_does_not_depend_on_shards(world, corpus, tmp_path, fake, rows_per_shard):
    other = scored_corpus(world, tmp_path, rows_per_shard)
    found = [score(one, tmp_path, pool=25) for one in (corpus, other)]
    assert [(one.row.id, one.score, one.class_name) for one in found[0]] == [
        (one.row.id, one.score, one.class_name) for one in found[1]
    ]
    assert found[0]


def test_tagger_that_finds_nothing(corpus, tmp_path, monkeypatch, fake):
    monkeypatch.setattr(fake, "spans", lambda text: [])
    assert score(corpus, tmp_path) == []
    assert fake.batches


def test_pool_that_cannot_be_drawn_is_said(world, tmp_path, fake):
    broken = scored_corpus(world, tmp_path)
    stored = broken.view.similarities
    stored.path(stored.corpus.shards[0]).unlink()
    with pytest.raises(RuntimeError, match="cannot be counted|cannot be drawn"):
        score(broken, tmp_path)


# What made the scores


def test_fingerprint_follows_the_files(tmp_path):
    path = write(tmp_path / "s.parquet", id=["a"], score=[0.5])
    before = fingerprint_of(str(path))
    assert fingerprint_of(str(path)) == before
    write(path, id=["a"], score=[0.6])
    assert fingerprint_of(str(path)) != before
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(b"one")
    before = fingerprint_of(str(folder))
    (folder / "weights.safetensors").write_bytes(b"two")
    assert fingerprint_of(str(folder)) != before
    with pytest.raises(InputError, match=r"^mining\.model: no such folder or file: .*nothing"):
        fingerprint_of(str(tmp_path / "nothing"))
