from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scalemine import predict as module
from scalemine.config import ComputeConfig, CorpusConfig, InputError
from scalemine.executor import InlineExecutor, RayExecutor, Stopped, StopSignals, silent
from scalemine.predict import Wanted, check_predict, day_of, run_predict
from scalemine.store import read_json
from scalemine.training.kept import load_model
from scalemine.training.predictions import predictor_of
from training.trained import LABELS, WORDS, write_fine_tuned, write_on_embeddings, write_tagger, write_words

ODD = [
    "👩🏽‍🚒 at the 🔥🔥 in São Paulo 🇧🇷 — 火事だ",
    "!",
    "<script>alert(1)</script>",
    "fire " * 90,
    "سيل كبير",
    "a\tb\nc",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "words": write_words(folder / "words"),
        "embeddings": write_on_embeddings(folder / "embeddings"),
        "classifier": write_fine_tuned(folder / "classifier"),
        "tagger": write_tagger(folder / "tagger"),
    }


def write_tweets(path: Path, number: int = 60) -> Path:
    """Write tweets with copies, odd ones, and lines that are none."""
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(number)]
    texts += [*ODD, texts[0], texts[1].upper(), f"  {texts[2]}  "]
    lines = [
        json.dumps({"id": f"t{row}", "text": text, "at": f"2012-10-{10 + row % 3}T12:00:00Z", "lang": "en"})
        for row, text in enumerate(texts)
    ]
    path.write_text(
        "\n".join([*lines[:9], '{"id": "x", "text": "  "}', "no json", *lines[9:]]) + "\n", encoding="utf-8"
    )
    return path


@pytest.fixture
def tweets(tmp_path) -> Path:
    return write_tweets(tmp_path / "tweets.jsonl")


def wanted(model: Path, tweets: Path, to: Path, *, keep=(), **more) -> Wanted:
    return Wanted(model, to, CorpusConfig(uri=str(tweets), rows_per_shard=16, keep=keep), **more)


def run(model, tweets, to, executor=None, **more):
    return run_predict(wanted(model, tweets, to, **more), executor or InlineExecutor(), StopSignals())


def rows_of(to: Path, part: str = "predictions") -> list[dict]:
    folder = to / "corpus" / "shards" if part == "corpus" else to / part
    return [row for path in sorted(folder.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def bytes_of(to: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted((to / "predictions").glob("*.parquet"))}
    return found | {"predictions.json": (to / "predictions.json").read_bytes()}


@pytest.mark.parametrize("kind", ["words", "embeddings", "classifier", "tagger"])
def test_each_row_is_what_the_model_says_of_its_text_alone(models, kind, tweets, tmp_path):
    summary, manifest = run(models[kind], tweets, tmp_path / "out", keep=("lang",))
    model, corpus, found = load_model(models[kind]), rows_of(tmp_path / "out", "corpus"), rows_of(tmp_path / "out")
    assert len(corpus) == len(found) == 69
    some = 0
    for tweet, row in zip(corpus, found, strict=True):
        assert (row["id"], row["lang"]) == (tweet["id"], "en")
        if kind == "tagger":
            [spans] = model.tag([tweet["text"]])
            assert [tuple(span.values())[:4] for span in row["spans"]] == [tuple(span)[:4] for span in spans]
            assert [span["probability"] for span in row["spans"]] == [np.float32(span.confidence) for span in spans]
            for span in row["spans"]:
                assert tweet["text"][span["start"] : span["end"]] == span["text"]
            some += bool(spans)
        else:
            [scores] = model.scores([tweet["text"]])
            assert [row[f"p_{label}"] for label in LABELS] == scores.tolist()
            assert row["labels"] == list(model.classify([tweet["text"]])[0])
            some += bool(row["labels"])
    assert 0 < some == summary["with_any"]
    # The words' normaliser makes one of copies that differ in case and spaces.
    assert summary["distinct"] < 69
    counts = manifest["counts"]
    assert (counts["read"], counts["accepted"], counts["rejected"]) == (71, 69, 2)
    rejects = pq.read_table(tmp_path / "out" / "corpus" / "rejects.parquet")
    assert Counter(rejects["reason"].to_pylist()) == counts["rejected_by_reason"]
    assert manifest["tweets_per_second"] > 0


def test_the_summary_counts_what_the_files_hold(models, tweets, tmp_path):
    summary, _ = run(models["words"], tweets, tmp_path / "out", time="at")
    rows, texts = rows_of(tmp_path / "out"), {row["id"]: row["text"] for row in rows_of(tmp_path / "out", "corpus")}
    for label, threshold in (("fear", 0.4), ("joy", 0.6)):
        one = summary["classes"][label]
        of_label = [row[f"p_{label}"] for row in rows]
        assert one["tweets"] == sum(score >= threshold for score in of_label)
        assert one["histogram"] == np.histogram(of_label, bins=20, range=(0, 1))[0].tolist()
        assert [row["probability"] for row in one["confident"]][0] == max(of_label)
        assert abs(one["uncertain"][0]["probability"] - threshold) == min(abs(score - threshold) for score in of_label)
        for sample in [*one["confident"], *one["uncertain"]]:
            assert sample["text"] == texts[sample["id"]]
        for key, order in (("confident", lambda p: -p), ("uncertain", lambda p, t=threshold: abs(p - t))):
            keys = [order(sample["probability"]) for sample in one[key]]
            assert keys == sorted(keys)
            assert len({sample["id"] for sample in one[key]}) == 5
    by_day = Counter(row["at"][:10] for row in rows)
    assert {day: one["tweets"] for day, one in summary["days"].items()} == by_day
    fear = Counter(row["at"][:10] for row in rows if "fear" in row["labels"])
    assert {day: one["fear"] for day, one in summary["days"].items()} == {day: fear[day] for day in by_day}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "fear" in page


def test_two_workers_on_ray_give_the_same_bytes(models, tweets, tmp_path, ray_session):
    ray = RayExecutor(2, cpus_per_worker=1, gpus_per_worker=0, signals=StopSignals())
    compute = ComputeConfig(executor="ray", workers=2)
    for kind in ("words", "embeddings", "tagger"):
        run(models[kind], tweets, tmp_path / f"{kind}-inline")
        run(models[kind], tweets, tmp_path / f"{kind}-ray", ray, compute=compute)
        assert bytes_of(tmp_path / f"{kind}-inline") == bytes_of(tmp_path / f"{kind}-ray")
    ray.close()


@pytest.mark.parametrize("kind", ["words", "tagger"])
def test_stopped_and_torn_ends_with_the_same_bytes(models, kind, tweets, tmp_path):
    run(models[kind], tweets, tmp_path / "inline")
    signals = StopSignals()

    class StopsAfterOne:
        def __call__(self, stage, total):
            return self

        def __enter__(self):
            return self.advance

        def __exit__(self, *_):
            return False

        def advance(self, rows):
            signals.requested = True

    stopped = wanted(models[kind], tweets, tmp_path / "stopped")
    module.import_corpus(stopped.tweets, stopped.to / "corpus")
    with pytest.raises(Stopped):
        run_predict(
            stopped,
            InlineExecutor(signals),
            signals,
            show=lambda stage, total: StopsAfterOne()(stage, total) if stage == "predict" else silent(stage, total),
        )
    done = sorted((stopped.to / "predictions").glob("*.parquet"))
    assert 0 < len(done) < len(bytes_of(tmp_path / "inline")) - 1
    # As a kill in the middle leaves it.
    done[0].write_bytes(done[0].read_bytes()[:50])
    (done[0].parent / ".00001.parquet.1.2.tmp").write_bytes(b"half")
    assert check_predict(stopped)[-1].endswith(f"predictions: {len(done) - 1} of 5 shards done")
    _, manifest = run_predict(stopped, InlineExecutor(), StopSignals())
    assert manifest["predicted"] < 69
    assert bytes_of(tmp_path / "inline") == bytes_of(stopped.to)
    assert not list(done[0].parent.glob(".*.tmp"))
    # Called once more, there is nothing to do, and the speed is that of the call that did it.
    assert run_predict(stopped, InlineExecutor(), StopSignals())[1]["predicted"] == manifest["predicted"]


def test_only_positive_and_min_probability(models, tweets, tmp_path):
    run(models["words"], tweets, tmp_path / "all", min_probability=0.7)
    summary, manifest = run(models["words"], tweets, tmp_path / "some", min_probability=0.7, only_positive=True)
    every = rows_of(tmp_path / "all")
    for row in every:
        assert row["labels"] == [label for label in LABELS if row[f"p_{label}"] >= 0.7]
    assert rows_of(tmp_path / "some") == [row for row in every if row["labels"]]
    assert summary["written"] == summary["with_any"] == len(rows_of(tmp_path / "some")) < 69
    schema = pq.read_schema(tmp_path / "all" / "predictions" / "00000.parquet")
    assert json.loads(schema.metadata[b"scalemine"]) == {"labels": {"fear": 0.7, "joy": 0.7}}
    run(models["tagger"], tweets, tmp_path / "spans")
    run(models["tagger"], tweets, tmp_path / "sure", min_probability=0.5)
    sure = [[span for span in row["spans"] if span["probability"] >= 0.5] for row in rows_of(tmp_path / "spans")]
    assert [row["spans"] for row in rows_of(tmp_path / "sure")] == sure
    assert manifest["settings"]["--min-probability"] == 0.7


def test_rows_that_break_the_model_are_kept_and_counted(models, tweets, tmp_path, monkeypatch):
    def load(folder, **options):
        model = load_model(models["words"])
        read = model.scores_of_normalised

        def scores(texts):
            if bad := [text for text in texts if "script" in text]:
                raise RuntimeError(f"cannot digest {bad[0]!r}")
            return read(texts)

        model.scores_of_normalised = scores
        return predictor_of(model, "it")

    monkeypatch.setattr(module, "load_predictor", load)
    summary, _ = run(models["words"], tweets, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 69
    [bad] = [row for row in rows if row["labels"] is None]
    assert bad["p_fear"] is bad["p_joy"] is None
    assert summary["quarantined"] == 1
    [told] = pq.read_table(tmp_path / "out" / "predictions" / "quarantine.parquet").to_pylist()
    assert told["id"] == bad["id"]
    assert "cannot digest" in told["error"]
    run(models["words"], tweets, tmp_path / "some", only_positive=True)
    assert None not in [row["labels"] for row in rows_of(tmp_path / "some")]


def test_copies_are_read_once(models, tweets, tmp_path, monkeypatch):
    seen = []

    def load(folder, **options):
        model = load_model(models["words"])
        read = model.scores_of_normalised
        model.scores_of_normalised = lambda texts: seen.extend(texts) or read(texts)
        return predictor_of(model, "it")

    monkeypatch.setattr(module, "load_predictor", load)
    run(models["words"], tweets, tmp_path / "out")
    model = load_model(models["words"])
    of_shards = [pq.read_table(path)["text"].to_pylist() for path in sorted((tmp_path / "out/corpus/shards").iterdir())]
    assert Counter(seen) == Counter(text for texts in of_shards for text in {model.normalise(one) for one in texts})


def test_another_model_or_setting_is_refused_in_one_line(models, tweets, tmp_path):
    to = tmp_path / "out"
    run(models["words"], tweets, to)
    before = bytes_of(to)
    for other in (wanted(models["classifier"], tweets, to), wanted(models["words"], tweets, to, min_probability=0.2)):
        for call in (check_predict, partial(run_predict, executor=InlineExecutor(), signals=StopSignals())):
            with pytest.raises(InputError, match="made with another configuration .*(model|--min-probability) was"):
                call(other)
    assert bytes_of(to) == before
    run_predict(wanted(models["classifier"], tweets, to), InlineExecutor(), StopSignals(), redo=True)
    assert bytes_of(to) != before


@pytest.mark.parametrize(
    ("kind", "file"), [("words", "label-0.skops"), ("classifier", "model.safetensors"), ("tagger", "model.safetensors")]
)
def test_a_damaged_model_is_refused_before_anything_is_read(models, kind, file, tweets, tmp_path):
    folder = Path(shutil.copytree(models[kind], tmp_path / "model"))
    (folder / file).write_bytes((folder / file).read_bytes()[:200])
    with pytest.raises(InputError, match=file if kind != "classifier" else "cannot be loaded|weights"):
        run(folder, tweets, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no model here"):
        run(tmp_path / "none", tweets, tmp_path / "out")


def test_odd_corpora(models, tmp_path):
    path = tmp_path / "tweets.jsonl"
    path.write_text('{"text": ""}\nno json\n')
    with pytest.raises(InputError, match="2 records read, none usable"):
        run(models["words"], path, tmp_path / "rejects")
    assert pq.read_metadata(tmp_path / "rejects" / "corpus" / "rejects.parquet").num_rows == 2
    path.write_text("")
    with pytest.raises(InputError, match="0 records read"):
        run(models["words"], path, tmp_path / "nothing")
    path.write_text(json.dumps({"text": "‽ …"}) + "\n", encoding="utf-8")  # of which the normaliser leaves nothing
    for kind, model in models.items():
        assert run(model, path, tmp_path / kind)[0]["tweets"] == 1


def test_an_imported_corpus_and_a_workdir_are_read_where_they_lie(models, tweets, tmp_path):
    run(models["words"], tweets, tmp_path / "first", keep=("lang",))
    for place in ("first", "first/corpus"):
        run(models["words"], tmp_path / place, tmp_path / place.replace("/", "-") / "again")
        assert rows_of(tmp_path / place.replace("/", "-") / "again") == [
            {key: value for key, value in row.items() if key != "lang"} for row in rows_of(tmp_path / "first")
        ]
    with pytest.raises(InputError, match="at is not in the imported corpus"):
        run(models["words"], tmp_path / "first", tmp_path / "timed", time="at")


def test_what_would_be_done_is_told_and_nothing_written(models, tweets, tmp_path):
    lines = check_predict(wanted(models["tagger"], tweets, tmp_path / "out"))
    assert lines[0].startswith(f"model: tagger {models['tagger']}")
    assert lines[1] == "spans: event, place"
    assert "tweets.jsonl" in lines[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "said"), [
    ({"keep": ("labels",)}, "--keep labels"), ({"keep": ("p_fear",)}, "--keep p_fear"),
    ({"min_probability": 1.5}, "--min-probability"),
])  # fmt: skip
def test_impossible_settings_are_refused(models, tweets, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        run(models["words"], tweets, tmp_path / "out", **more)


def test_days():
    assert day_of("Mon Oct 29 23:13:02 -0300 2012") == "2012-10-30"
    assert day_of("1351548782000") == day_of("1351548782") == "2012-10-29"
    assert [day_of(text) for text in ("", None, "soon", "1e300", "inf")] == [None] * 5


def test_versions_and_hash_of_the_model_are_kept(models, tweets, tmp_path):
    _, manifest = run(models["words"], tweets, tmp_path / "out")
    assert read_json(tmp_path / "out" / "manifest.json") == json.loads(json.dumps(manifest))
    assert manifest["model"]["kind"] == "words"
    assert manifest["model"]["thresholds"] == {"fear": 0.4, "joy": 0.6}
    assert {"python", "torch", "scikit-learn"} <= manifest["versions"].keys()
