"""Training a classifier: the task that the loop is given, and its predictions on other tweets.

Shapes: N tweets, B tweets of a batch, S tokens of the longest one, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scalemine.config import LossConfig
from scalemine.store import remove, write_whole
from scalemine.training.batches import BATCH_TOKENS, Batch, prediction_batches, to_device
from scalemine.training.loop import grouped, predict_rows
from scalemine.training.multilabel.examples import Examples, tokens_batch
from scalemine.training.multilabel.losses import pseudo_labels
from scalemine.training.multilabel.network import ClassifierNetwork
from scalemine.training.multilabel.scores import average_precision, macro_roc_auc, micro_roc_auc

_PSEUDO = "pseudo-{:05}.safetensors"


class ClassifierTask:
    """A classifier to be trained.

    Args:
        network: The model, with its loss.
        examples: The tweets.
        rows: Those of them that are trained on.
        evaluate: Gives how good the model is on what chooses the epoch.
        loss: When unknown entries get pseudo-labels.
        epochs: Of the whole fit.
        lr: Learning rate of the encoder.
        head_lr: That of the last layer, and of what is between it and the encoder's layers, such as its pooling.
        weight_decay: Of AdamW.
        pad_id: The token that fills up.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401  a ClassifierNetwork, or of who reads otherwise
        examples: Examples,
        rows: NDArray[np.int64],
        evaluate: Callable[[Accelerator], float],
        loss: LossConfig,
        *,
        epochs: int,
        lr: float,
        head_lr: float,
        weight_decay: float,
        pad_id: int,
    ) -> None:
        self.model: nn.Module = network
        self._network, self._examples, self._rows, self._evaluate = network, examples, rows, evaluate
        self._loss, self._epochs, self._pad_id = loss, epochs, pad_id
        self._lr, self._head_lr, self._weight_decay = lr, head_lr, weight_decay
        self._pseudo_NC: Tensor | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters by learning rate and weight decay; frozen ones are left out."""
        named = self._network.named_parameters()
        rated = ((name, one, self._head_lr if self._is_head(name) else self._lr) for name, one in named)
        return grouped(rated, self._weight_decay)

    def _is_head(self, name: str) -> bool:
        """Return whether a parameter is above the encoder's layers."""
        within = name.removeprefix("model.").removeprefix("base_model.model.")  # that of adapters
        return not within.startswith(f"{self._network.model.base_model_prefix}.") or ".pooler." in name

    def costs(self) -> NDArray[np.int32]:
        """Return the length of each training tweet."""
        return self._examples.lengths[self._rows]

    def num_items(self, rows: Sequence[int]) -> int:
        """Return the number of entries, tweets times labels."""
        return len(rows) * len(self._examples.labels)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Return the identifiers of some training tweets."""
        return self._examples.ids_of(self._rows[rows].tolist())

    def collate(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of some training tweets."""
        places = self._rows[rows]
        batch = self._read(rows)
        batch["targets"] = torch.from_numpy(self._examples.targets_of(places))
        batch["weight"] = torch.from_numpy(self._examples.weights_of(places))
        if self._pseudo_NC is not None:
            batch["pseudo"] = self._pseudo_NC[rows]
        return batch

    def _read(self, rows: Sequence[int]) -> Batch:
        """Return what the network reads of some training tweets."""
        return tokens_batch(self._examples, self._rows[rows], self._pad_id)

    def _logits(self, accelerator: Accelerator) -> Tensor:
        """Return the logits ``(N, C)`` of the training tweets."""
        return predict_logits(self._network, self._examples, self._rows, accelerator, self._pad_id)

    def begin_epoch(self, epoch: int, folder: Path, accelerator: Accelerator) -> None:
        """Give unknown entries pseudo-labels, where these are wanted and the warm-up is over.

        They are kept in a file: a run that goes on in the middle of an epoch has other weights by then.
        Source: Zhou et al. (2022), section 3.3: the share of a label's unknown entries grows evenly by the epoch.
        """
        self._pseudo_NC = None
        if self._loss.em_warmup is None or epoch < self._loss.em_warmup:
            return
        path = folder / _PSEUDO.format(epoch)
        if not path.exists():
            logits_NC = self._logits(accelerator)
            before = folder / _PSEUDO.format(epoch - 1)
            earlier_NC = load_file(before)["pseudo_NC"].numpy() if before.exists() else None
            share = self._loss.em_share / max(1, self._epochs - self._loss.em_warmup)
            targets_NC = self._examples.targets_of(self._rows)
            found_NC = pseudo_labels(logits_NC.sigmoid().numpy(), targets_NC, share, earlier_NC)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                with write_whole(path) as temporary:
                    save_file({"pseudo_NC": torch.from_numpy(found_NC)}, temporary)
                for old in folder.glob("pseudo-*.safetensors"):
                    if old != path:
                        remove(old)
            accelerator.wait_for_everyone()
        self._pseudo_NC = load_file(path)["pseudo_NC"]

    def evaluate(self, accelerator: Accelerator) -> float:
        """Return how good the model is on what chooses the epoch."""
        return self._evaluate(accelerator)


def predict_logits(
    network: ClassifierNetwork, examples: Examples, rows: NDArray[np.int64], accelerator: Accelerator, pad_id: int
) -> Tensor:
    """Return the logits ``(N, C)`` of some tweets, float32 on the CPU; the same in every process."""
    was_training = network.training
    network.eval()

    def predict(places: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return network.logits(to_device(tokens_batch(examples, rows[places], pad_id), accelerator.device))

    batches = prediction_batches(examples.lengths[rows].tolist(), BATCH_TOKENS[accelerator.device.type])
    shape = (len(rows), len(examples.labels))
    logits_NC = predict_rows(accelerator, batches, shape, predict, torch.float32)
    network.train(was_training)
    return logits_NC


def selection(name: str) -> Callable[[NDArray[np.int8], NDArray[np.float32]], float]:
    """Return the measure that chooses the epoch: targets and probabilities ``(N, C)`` to a number from 0 to 1."""
    if name == "macro_average_precision":
        return _macro_average_precision
    return macro_roc_auc if name == "macro_roc_auc" else micro_roc_auc


def _macro_average_precision(targets_NC: NDArray[np.int8], scores_NC: NDArray[np.float32]) -> float:
    found = [average_precision(targets, scores) for targets, scores in zip(targets_NC.T, scores_NC.T, strict=True)]
    return float(np.mean([one for one in found if one is not None] or [0.0]))
