"""What a frozen encoder makes of tweets: the vector of each one's first token, computed once and read by memory map.

Shapes: N tweets, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from scalemine.config import InputError
from scalemine.executor import Executor
from scalemine.models import device_name, model_fingerprint
from scalemine.shards import OnRows, ShardFiles, ShardJob, matrix_column
from scalemine.store import fingerprint, open_stage
from scalemine.training.batches import BATCH_TOKENS, prediction_batches, to_device
from scalemine.training.multilabel.examples import Examples, make_shards, tokens_batch
from scalemine.training.multilabel.network import load_model, pool_first

# A text for a look at what an encoder does with it.
_PROBE = [[5, 6, 7, 8], [9, 8, 7, 6]]
_TOLERANCE = 1e-5


def check_first_tokens(folder: Path) -> None:
    """Refuse an encoder whose classifier looks at more than the first token.

    Raises:
        InputError: It does.
    """
    model = load_model(folder, ["one", "other"]).eval()
    ids = torch.tensor(_PROBE)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        try:
            features = pool_first(model, model.base_model(input_ids=ids).last_hidden_state[:, 0])
            found = model.classifier(features) if features.shape != expected.shape else features
        except (AttributeError, RuntimeError, TypeError, IndexError):
            found = None
    if found is None or not torch.allclose(found, expected, atol=_TOLERANCE):
        raise InputError(
            f"train.freeze: {folder} is of a kind ({type(model).__name__}) whose classifier reads more than the first "
            f"token; take BERT, RoBERTa, XLM-RoBERTa or MPNet, or train.lora"
        )


def with_vectors(
    examples: Examples, folder: Path, pad_id: int, *, device: str, executor: Callable[[], Executor],
    on_rows: OnRows | None,
) -> Examples:  # fmt: skip
    """Return tweets with the vectors that a frozen encoder makes of them, in float32."""
    assert examples.tokens is not None
    settings = {"train.weights": model_fingerprint(folder), "tokens": examples.tokens.stage.fingerprint}
    stage = open_stage(
        examples.corpus.folder.parent / f"vectors-{fingerprint(settings)}",
        version=1, settings=settings, inputs={}, redo=True,
    )  # fmt: skip
    files = ShardFiles(stage, examples.corpus)
    make_shards(files, partial(_FirstVectors, examples, files, folder, pad_id, device), executor, on_rows)
    return replace(examples, vectors=files)


class _FirstVectors:
    """The worker that encodes a shard."""

    def __init__(self, examples: Examples, files: ShardFiles, folder: Path, pad_id: int, device: str) -> None:
        self.examples, self.files, self.pad_id = examples, files, pad_id
        self.device = torch.device(device_name(device, key="train.device"))
        self.encoder = load_model(folder, ["one"]).base_model.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, job: ShardJob) -> None:
        """Write the vectors of one shard."""
        shards = self.examples.corpus.shards
        first = sum(shard.num_rows for shard in shards[: shards.index(job.shard)])
        lengths = self.examples.lengths[first : first + job.shard.num_rows]
        vectors_ND: NDArray[np.float32] = np.empty((len(lengths), self.encoder.config.hidden_size), np.float32)
        for rows in prediction_batches(lengths.tolist(), BATCH_TOKENS[self.device.type]):
            batch = tokens_batch(self.examples, first + np.array(rows), self.pad_id)
            hidden_BSD = self.encoder(**to_device(batch, self.device)).last_hidden_state
            vectors_ND[rows] = hidden_BSD[:, 0].float().cpu().numpy()
        valid_N = np.ones(len(vectors_ND), np.bool_)
        self.files.write(job.shard, pa.table({"vector": matrix_column(vectors_ND, valid_N)}))
