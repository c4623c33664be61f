"""Mining against its peers, side by side in one run: medians, and ratios.

    python benchmarks/mining.py [encode] [bands] [loop] [memory] [--rounds 3]

- encode: our encoder against SentenceTransformer.encode, same model, same tweets;
- bands: the band pass over cached embeddings, in each way that is there, against one read of a float32 array of the
  same shape, and as a share of one read of the embeddings (roofline);
- loop: the published procedure (class by class: encode one tweet, compare, keep or not, until the class is full)
  against `mine`, for 864 negatives in all, at each band; alone, and with its anchors and moments (sample of 3,000);
- memory: peak memory of `scalemine mine` at 275,000 and at 1,100,000 tweets (about half an hour).

Tweets come from SCALEMINE_DATA (default ../shared/data); where that is absent, from the invented sample.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from threadpoolctl import threadpool_limits

from scalemine.config import Config, EncoderConfig
from scalemine.encoder import load_encoder
from scalemine.executor import InlineExecutor
from scalemine.mining import kernel
from scalemine.mining.bandpass import Way
from scalemine.mining.similarity import anchor_grid, count_steps, similarities
from scalemine.models import find_model
from scalemine.pipeline import Run, run_mine
from scalemine.sample import write_sample

CORES = os.cpu_count() or 1
NUM_NEGATIVES = 864
ROWS_PER_SHARD = 16_384
# A process of its own, so that its children's peak is that of one run.
MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "scalemine", "mine", sys.argv[1]], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
PARTS = ("encode", "bands", "loop", "memory")


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def data_paths(folder: Path) -> tuple[pa.Table, Path, str]:
    """Return a corpus table with distinct ids, the positives' file, and its class column."""
    data = Path(os.environ.get("SCALEMINE_DATA", "../shared/data"))
    if (data / "corpus.parquet").exists():
        texts = pq.read_table(data / "corpus.parquet", columns=["text"])["text"].to_pylist()
        positives = data / "crisis_spans_train.parquet"
    else:
        files = write_sample(folder / "sample", num_tweets=20_000)
        from scalemine.config import CorpusConfig
        from scalemine.corpus import import_corpus

        corpus = import_corpus(CorpusConfig(uri=(str(files.corpus),)), folder / "imported")
        texts = [text for shard in corpus.shards for text in corpus.read(shard)["text"].to_pylist()]
        positives = files.positives
        print("(the real tweets are absent: measured on the invented sample)")
    order = np.random.default_rng(11).permutation(len(texts))
    shuffled = [texts[i] for i in order]
    return pa.table({"id": [f"t{i}" for i in range(len(shuffled))], "text": shuffled}), positives, "type"


def sentence_transformer() -> object:
    """Return the peer, on the model that we use."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(find_model(EncoderConfig().model)), device="cpu")


def bench_encode(corpus: pa.Table, rounds: int) -> None:
    """Print tweets per second of the peer and of ours."""
    texts = corpus["text"].slice(0, 3_000).to_pylist()
    peer = sentence_transformer()
    ours = {name: load_encoder(EncoderConfig(), precision=name, threads=CORES) for name in ("bfloat16", "float32")}
    torch.set_num_threads(CORES)
    actions = {"SentenceTransformer.encode": lambda: peer.encode(texts, batch_size=32, normalize_embeddings=True)}
    actions |= {f"scalemine {name}": lambda e=encoder: e.encode_texts(texts) for name, encoder in ours.items()}
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    base = times["SentenceTransformer.encode"]
    for name, taken in times.items():
        ratios = [b / t for b, t in zip(base, taken, strict=True)]
        print(
            f"encode  {name:28} {len(texts) / statistics.median(taken):7.0f} tweets/s  x{statistics.median(ratios):.2f}"
        )


def bench_bands(rounds: int, num_rows: int, threads: int) -> None:
    """Print the time of the band pass, in each way, and of one read of float32 of the same shape; taken in turns."""
    rng = np.random.default_rng(0)
    for dim in (384, 768):
        wide = rng.standard_normal((num_rows, dim), dtype=np.float32)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        stored = wide.astype(np.float16)
        for num_classes in (1, 6, 12):
            anchors = rng.standard_normal((num_classes, dim), dtype=np.float32)
            _bench_pass(wide, stored, anchors, max(5, rounds), threads)


def _bench_pass(wide: np.ndarray, stored: np.ndarray, anchors: np.ndarray, rounds: int, threads: int) -> None:
    grid = anchor_grid(anchors)
    units = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    starts = range(0, len(wide), ROWS_PER_SHARD)
    tensor = torch.from_numpy(wide)
    found = {"torch": similarities, "compiled": kernel.similarities}

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool, threadpool_limits(1):

        def over(work: Callable[[int], object]) -> Callable[[], object]:
            return lambda: list(pool.map(lambda core: [work(start) for start in starts[core::threads]], range(threads)))

        def naive(start: int) -> object:
            cosines = wide[start : start + ROWS_PER_SHARD] @ units.T
            return [np.histogram(column, 65_536, (-1, 1)) for column in cosines.T], cosines.mean(0), cosines.std(0)

        def by(way: Way) -> Callable[[int], object]:
            return lambda start: count_steps(way(stored[start : start + ROWS_PER_SHARD], grid))

        actions = {
            "read of float32": over(lambda start: tensor[start : start + ROWS_PER_SHARD].sum()),
            "read of float16": over(lambda start: stored[start : start + ROWS_PER_SHARD].view(np.uint64).sum()),
            "numpy, float32": over(naive),
        }
        actions |= {name: over(by(way)) for name, way in found.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
        for turn in range(rounds + 1):
            for name, action in actions.items():
                before = time.process_time()
                taken = seconds(action)
                if turn:  # the first warms up
                    times[name].append((taken, time.process_time() - before))
    print(f"bands   {len(wide):,} x {wide.shape[1]}, K = {len(grid)}, {threads} threads; clock; processor, in brackets")
    # Of what others do on the machine, the processor's time shows least.
    clock, processor = ({name: np.array(of)[:, kind] for name, of in times.items()} for kind in (0, 1))
    for name in actions:
        ratios = [np.median(of[name] / of["read of float32"]) for of in (clock, processor)]
        shares = [np.median(of["read of float16"] / of[name]) for of in (clock, processor)]
        print(
            f"          {name:22} {1e3 * np.median(clock[name]):7.1f} ms  x{ratios[0]:5.2f} ({ratios[1]:5.2f})"
            f"  roofline {shares[0]:4.0%} ({shares[1]:4.0%})"
        )


def bench_loop(corpus: pa.Table, positives: Path, class_column: str, folder: Path, bands: list[int]) -> None:
    """Print the time of the published procedure and of ours, per band."""
    table = pq.read_table(positives)
    names = sorted(set(table[class_column].to_pylist()))
    per_class = NUM_NEGATIVES // len(names)
    peer = sentence_transformer()
    torch.set_num_threads(CORES)
    started = time.perf_counter()
    vectors = peer.encode(table["text"].to_pylist(), normalize_embeddings=True)
    labels = np.array(table[class_column].to_pylist())
    sample = peer.encode(corpus["text"].slice(0, 3_000).to_pylist(), normalize_embeddings=True)
    preparation = time.perf_counter() - started
    texts = corpus["text"].to_pylist()
    for band in bands:
        started, used = time.perf_counter(), 0
        for name in names:
            anchor = vectors[labels == name].mean(axis=0)
            anchor /= np.linalg.norm(anchor)
            scores = sample @ anchor
            mean, std, kept = scores.mean(), scores.std(), 0
            for position, text in enumerate(texts, start=1):
                z = abs(float(peer.encode([text], normalize_embeddings=True)[0] @ anchor) - mean) / std
                kept += band - 1 <= z < band
                if kept == per_class:
                    used = max(used, position)
                    break
            else:
                used = len(texts)
        loop = time.perf_counter() - started
        stream = folder / f"stream-{band}.parquet"
        # The published loop may take a tweet for several classes; ours takes it for one, so it needs more of them.
        read = corpus.slice(0, used * 5 // 4 + 3 * NUM_NEGATIVES)
        pq.write_table(read, stream)
        batches = seconds(lambda read=read: peer.encode(read["text"].to_pylist(), batch_size=32))
        print(f"loop    band {band}: published {preparation:.1f} s of anchors and moments, {loop:.1f} s of its loop")
        print(f"          for {per_class * len(names)} negatives from {used} tweets;")
        print(f"          in batches: {batches:.1f} s for the {read.num_rows} tweets that ours may read")
        for way, mining, encoder in (
            ("default", {}, {}),
            ("until: quota", {"until": "quota"}, {}),
            ("until: quota, openvino", {"until": "quota"}, {"engine": "openvino"}),
        ):
            config = Config.model_validate(
                {
                    "workdir": folder / f"loop-{band}-{way.replace(': ', '-').replace(', ', '-')}",
                    "corpus": {"uri": str(stream), "rows_per_shard": 1024 if mining else ROWS_PER_SHARD},
                    "positives": {"uri": str(positives), "class_name": class_column},
                    "mining": {"bands": [band], "per_class": per_class} | mining,
                    "encoder": encoder,
                }
            )
            run = Run(config, InlineExecutor())
            found = run_mine(run).num_rows
            chosen = run.seconds["negatives"]
            print(f"          ours, {way}: {found} negatives")
            for what, theirs, taken in (
                ("all steps, against both", preparation + loop, sum(run.seconds.values())),
                ("embed and choose, against the loop", loop, run.seconds["embed"] + chosen),
                ("embed and choose, against batches", batches, run.seconds["embed"] + chosen),
                ("choose from embeddings, against the loop", loop, chosen),
            ):
                print(f"            {what:42} {taken:6.1f} s  x{theirs / taken:.1f}")


def bench_memory(
    corpus: pa.Table, positives: Path, class_column: str, folder: Path, max_length: int, repeats: bool
) -> None:
    """Print the peak memory of `scalemine mine` for a corpus and for one four times its size."""
    texts = corpus["text"].to_pylist()
    peaks = []
    for copies in (1, 4):
        uri = folder / f"times-{copies}.parquet"
        many = [text if repeats or not n else f"{n} {text}" for n in range(copies) for text in texts]
        pq.write_table(pa.table({"id": [f"t{i}" for i in range(len(many))], "text": many}), uri)
        rows = len(many)
        del many
        config = {
            "workdir": str(folder / f"memory-{copies}"),
            "corpus": {"uri": str(uri)},
            "positives": {"uri": str(positives), "class_name": class_column},
            # Short, so that it ends today; memory hangs on the batch, which is counted in tokens.
            "encoder": {"max_length": max_length},
        }
        path = folder / f"memory-{copies}.yaml"
        path.write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        command = [sys.executable, "-c", MEASURE, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        print(f"memory  {rows:,} tweets: peak {peaks[-1]:,.0f} MiB, {time.perf_counter() - started:.0f} s", flush=True)
    print(f"memory  ratio {peaks[1] / peaks[0]:.3f}")


def main() -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all but memory by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=275_000, help="of bands")
    parser.add_argument("--threads", type=int, default=CORES, help="of bands")
    parser.add_argument("--bands", type=int, nargs="+", default=[1, 2, 3], help="of loop")
    parser.add_argument("--max-length", type=int, default=12, help="tokens, of memory")
    parser.add_argument("--copies", action="store_true", help="of memory: the larger corpus repeats texts, for speed")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS[:-1]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  also into a file
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {CORES} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus, positives, class_column = data_paths(folder)
        if "encode" in parts:
            bench_encode(corpus, arguments.rounds)
        if "bands" in parts:
            bench_bands(arguments.rounds, arguments.rows, arguments.threads)
        if "loop" in parts:
            bench_loop(corpus, positives, class_column, folder, arguments.bands)
        if "memory" in parts:
            bench_memory(corpus, positives, class_column, folder, arguments.max_length, arguments.copies)


if __name__ == "__main__":
    main()
