from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from scalemine.config import ComputeConfig, MiningConfig
from scalemine.corpus import Corpus
from scalemine.encoder import Pieces
from scalemine.executor import InlineExecutor, StopSignals, make_executor
from scalemine.mining import cascade, distributions
from scalemine.mining.anchors import Anchors
from scalemine.mining.probe import Probe
from scalemine.mining.sampling import sample_corpus
from scalemine.mining.similarity import anchor_grid, similarities
from scalemine.store import Stage
from scalemine.text import normaliser

from .oracles import fake_vector, make_corpus, make_stage, unit_rows

NUM_WORDS, DIM, NUM_ROWS, SAMPLE = 80, 8, 3_000, 400
WORDS = [f"w{number}" for number in range(NUM_WORDS)]


class Bag:
    """An encoder that is nearly a bag of words: what its vectors hold beside the words is noise of the text."""

    vocabulary_size = NUM_WORDS

    def __init__(self, noise: float = 0.05) -> None:
        self._noise, self.texts = noise, 0
        self._vectors = unit_rows(np.random.default_rng(0), NUM_WORDS, DIM)

    def pieces(self) -> Pieces:
        tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w0"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        return Pieces(tokenizer, "", False, normaliser("none"), 64, 0)

    def encode_vocabulary(self) -> np.ndarray:
        return self._vectors

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self.texts += len(texts)
        rows = [
            self._vectors[[int(word[1:]) for word in text.split()]].mean(axis=0) + self._noise * fake_vector(text, DIM)
            for text in texts
        ]
        return (np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(NUM_ROWS)]
    return make_corpus(tmp_path_factory.mktemp("corpus"), [f"t{i}" for i in range(NUM_ROWS)], texts, 700)


@pytest.fixture(scope="module")
def anchors() -> Anchors:
    vectors = unit_rows(np.random.default_rng(2), 2, DIM)
    return Anchors(("fire", "flood"), vectors, ("a", "b"), np.array([0, 1]), vectors, ("a", "b"))


def config_of(**values: Any) -> MiningConfig:
    return MiningConfig.model_validate({"cascade": 0.9, "bands": [3, 4], "tails": "upper", **values})


def planned(
    stage: Stage,
    corpus: Corpus,
    anchors: Anchors,
    config: MiningConfig,
    encoder: Bag,
    size: int = SAMPLE,
    seed: int = 3,
) -> tuple[dict[str, Any], Probe]:
    rows = sample_corpus(corpus, size, seed=seed, purpose="probe", executor=InlineExecutor())
    vectors = Bag.encode_texts(encoder, [row.text for row in rows]).astype(np.float16)
    probe, places = Probe(vectors, vectors[:0]), [(row.shard, row.row) for row in rows]
    known = cascade.plan(
        stage, corpus, probe, places, anchors, config, seed=seed, load=lambda: encoder, executor=InlineExecutor()
    )  # type: ignore[arg-type]
    return known, probe


def sieved(stage: Stage, corpus: Corpus, encoder: Bag, config: MiningConfig, executor: Any = None) -> Corpus:
    files = cascade.KeptShards(stage, corpus)
    cascade.sieve(files, encoder.pieces(), config, executor or InlineExecutor(), lambda _: None)
    return files.as_corpus()


def rows_of(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for shard in corpus.shards for row in corpus.read(shard).to_pylist()]


def z_of(texts: list[str], anchors: Anchors, probe: Probe) -> np.ndarray:
    steps = similarities(Bag().encode_texts(texts).astype(np.float16), anchor_grid(anchors.vectors_KD))
    normals = [distributions.fit(one) for one in probe.distributions(anchors)]
    return np.stack([normal.z(steps[:, k] / 2**15) for k, normal in enumerate(normals)], axis=1)


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_recall_is_what_was_asked_for_and_what_the_audit_says(
    tails: Any, corpus: Corpus, anchors: Anchors, tmp_path: Path
) -> None:
    config = config_of(tails=tails)
    known, probe = planned(make_stage(tmp_path), corpus, anchors, config, Bag())
    assert known["pays"]
    kept = sieved(make_stage(tmp_path), corpus, Bag(), config)
    both = cascade.with_audit(make_stage(tmp_path), probe)
    assert len(both.vectors_PD) == 2 * SAMPLE
    every = [row["text"] for row in rows_of(corpus)]
    wanted = cascade.in_bands(z_of(every, anchors, both), config.bands, tails).any(axis=1)
    left = {row["id"] for row in rows_of(kept)}
    is_kept = np.array([row["id"] in left for row in rows_of(corpus)])
    recall = is_kept[wanted].mean()
    whole = known["found"][0]
    assert recall >= 0.85
    assert whole["low"] <= recall <= whole["high"]
    assert abs(is_kept.mean() - known["kept_share"]) < 0.08
    assert is_kept.mean() < 0.7
    assert known["cost"] == pytest.approx(
        0.04 + (2 * SAMPLE + NUM_WORDS / 6.5) / NUM_ROWS + known["kept_share"], abs=0.01
    )
    assert {(row["class_name"], row["band"]) for row in known["found"][1:]} == {
        (name, band) for name in ("fire", "flood") for band in (3, 4)
    }


def test_what_is_kept_lies_as_in_the_corpus(corpus: Corpus, anchors: Anchors, tmp_path: Path) -> None:
    config = config_of()
    planned(make_stage(tmp_path), corpus, anchors, config, Bag())
    kept = sieved(make_stage(tmp_path), corpus, Bag(), config)
    assert [shard.name for shard in kept.shards] == [shard.name for shard in corpus.shards]
    for one, whole in zip(kept.shards, corpus.shards, strict=True):
        rows = kept.read(one).to_pylist()
        assert 0 < len(rows) == one.num_rows < whole.num_rows
        ids = {row["id"] for row in rows}
        assert rows == [row for row in corpus.read(whole).to_pylist() if row["id"] in ids]
    assert kept.fingerprint != corpus.fingerprint
    assert kept.columns == corpus.columns


def test_the_audit_is_apart_from_the_probe(corpus: Corpus, anchors: Anchors, tmp_path: Path) -> None:
    encoder = Bag()
    planned(make_stage(tmp_path), corpus, anchors, config_of(), encoder)
    assert encoder.texts == 2 * SAMPLE
    audit = cascade.read_arrow(tmp_path / "audit.arrow").select(["shard", "row"]).to_pylist()
    probe = sample_corpus(corpus, SAMPLE, seed=3, purpose="probe", executor=InlineExecutor())
    places = {(row["shard"], row["row"]) for row in audit}
    assert len(places) == SAMPLE
    assert not places & {(row.shard, row.row) for row in probe}


def test_it_goes_on_where_it_was_stopped(
    corpus: Corpus, anchors: Anchors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stage = config_of(), make_stage(tmp_path)
    monkeypatch.setattr(cascade, "learn", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        planned(stage, corpus, anchors, config, Bag())
    monkeypatch.undo()
    encoder = Bag()
    known, _ = planned(stage, corpus, anchors, config, encoder)
    assert encoder.texts == SAMPLE  # the probe: the audit was encoded before
    whole = sieved(stage, corpus, encoder, config)
    for shard in corpus.shards[1:3]:
        path = cascade.KeptShards(stage, corpus).path(shard)
        path.with_name(path.name + ".json").unlink()
    assert len(cascade.KeptShards(stage, corpus).missing()) == 2
    assert sieved(stage, corpus, encoder, config).fingerprint == whole.fingerprint
    encoder = Bag()
    assert planned(stage, corpus, anchors, config, encoder)[0] == known
    assert encoder.texts == SAMPLE


def test_two_workers_keep_the_same(ray_session: None, corpus: Corpus, anchors: Anchors, tmp_path: Path) -> None:
    config, kept = config_of(), []
    compute = ComputeConfig(executor="ray", workers=2)
    with make_executor(compute, signals=StopSignals(), wants_gpu=False) as two:
        for number, executor in enumerate((InlineExecutor(), two)):
            stage = make_stage(tmp_path / str(number))
            planned(stage, corpus, anchors, config, Bag())
            kept.append(sieved(stage, corpus, Bag(), config, executor).fingerprint)
    assert kept[0] == kept[1]


def test_other_shards_keep_the_same(corpus: Corpus, anchors: Anchors, tmp_path: Path) -> None:
    rows, config = rows_of(corpus), config_of()
    other = make_corpus(tmp_path / "other", [row["id"] for row in rows], [row["text"] for row in rows], 1_900)
    kept = []
    for number, one in enumerate((corpus, other)):
        stage = make_stage(tmp_path / str(number))
        planned(stage, one, anchors, config, Bag())
        kept.append(rows_of(sieved(stage, one, Bag(), config)))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("values", "noise", "size", "why"),
    [
        ({}, 0.05, 1_200, "its samples alone are 8"),
        ({"cascade": 0.99, "bands": [1, 2]}, 0.05, SAMPLE, "of 3,000 tweets would be kept, and the work be"),
        ({"cascade": 0.95, "bands": [2]}, 30.0, SAMPLE, "tweets would be kept, and the work be"),
        ({"bands": [4], "cascade": 0.99}, 0.05, SAMPLE, "wants 161; raise mining.sample_size, or ask for less"),
    ],
)
def test_where_it_does_not_pay_it_says_why(
    values: dict[str, Any], noise: float, size: int, why: str, corpus: Corpus, anchors: Anchors, tmp_path: Path
) -> None:
    encoder = Bag(noise)
    known, _ = planned(make_stage(tmp_path), corpus, anchors, config_of(**values), encoder, size)
    assert not known["pays"]
    assert why in known["why"]
    assert known["why"] in cascade.describe(known)
    if "samples alone" in why:
        assert encoder.texts == size  # no audit was encoded


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_intervals_are_exact(one: int, other: int) -> None:
    hits, size = min(one, other), max(one, other)
    if size:
        expected = binomtest(hits, size).proportion_ci(0.95, "exact")
        assert distributions.interval(hits, size) == pytest.approx((expected.low, expected.high), abs=1e-7)
    else:
        assert distributions.interval(hits, size) == (0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.integers(0, 2**31))
def test_the_cut_is_the_highest_that_is_sure_enough(num: int, recall: float, seed: int) -> None:
    chances = np.random.default_rng(seed).random(num)
    cut = cascade.choose_cut(chances, recall)
    # With r - 1 of n below it, the recall is reached unless fewer than r fall into the lowest share of all.
    surely = [rank for rank in range(1, num + 1) if 1 - binom.cdf(rank - 1, num, 1 - recall) >= cascade.CONFIDENCE]
    assert cut == (np.sort(chances)[surely[-1] - 1] if surely else None)
    assert (cut is None) == (num < cascade.num_needed(recall))


def test_the_cut_reaches_the_recall_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    # Of uniform chances, what lies above the cut is one less the cut.
    reached = np.mean([1 - (cascade.choose_cut(rng.random(150), 0.9) or 0.0) >= 0.9 for _ in range(400)])
    assert cascade.CONFIDENCE - 0.06 <= reached < 0.95


def test_the_line_says_what_was_found(corpus: Corpus, anchors: Anchors, tmp_path: Path) -> None:
    known, _ = planned(make_stage(tmp_path), corpus, anchors, config_of(), Bag())
    whole = known["found"][0]
    line = cascade.describe(known)
    assert f"{whole['kept']} of {whole['wanted']} audited tweets), 0.9 asked for" in line
    assert f"{100 * known['kept_share']:.1f} % of the corpus" in line
