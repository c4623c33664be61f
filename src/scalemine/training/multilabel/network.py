"""The network of a classifier: a Hugging Face sequence classifier whose last layer is ours.

    tokens ─ encoder (low precision) → vectors of tokens ─ pooling → features ─ linear head (float32) → logits ─ loss

The head is a plain linear layer or, for nested labels, one that keeps their order; either leaves as a plain one. Of a
frozen encoder only the first token's vector is of use, which is computed once (see ``first_tokens``).

Shapes: B tweets, S tokens of the longest one, D dimensions, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from scalemine.config import InputError
from scalemine.models import first_line, max_positions, quieten_libraries
from scalemine.training.batches import Batch
from scalemine.training.multilabel.classifier import final_linear, fold
from scalemine.training.multilabel.head import NestedLinear, Nesting
from scalemine.training.multilabel.losses import LabelLoss

# Heads whose features come out of a tanh, as the order of nested labels wants.
_TANH_HEADS = ("Albert", "Bert", "Camembert", "MPNet", "Roberta", "XLMRoberta")


class ClassifierNetwork(nn.Module):
    """Tweets to logits and to the loss.

    Args:
        model: A Hugging Face sequence classifier.
        head: What stands in the place of its last linear layer; None: that layer itself.
        loss: The loss; None where nothing is learnt.
        precision: In which the model computes; head and loss are float32.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        head: nn.Module | None,
        loss: LabelLoss | None,
        *,
        precision: str,
    ) -> None:
        super().__init__()
        parent, name = final_linear(model)
        last = getattr(parent, name)
        self._place = next(path for path, module in model.named_modules() if module is last)
        setattr(parent, name, nn.Identity())
        self.model, self.head, self.loss = model, head or last, loss
        self.dtype = getattr(torch, precision)

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits ``(B, C)``, float32."""
        if "vectors" in batch:
            return self._head(pool_first(self.model, batch["vectors"]))
        ids_BS = batch["input_ids"]
        with torch.autocast(ids_BS.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features_BD = self.model(input_ids=ids_BS, attention_mask=batch["attention_mask"]).logits
        return self._head(features_BD)

    def _head(self, features_BD: Tensor) -> Tensor:
        with torch.autocast(features_BD.device.type, enabled=False):
            logits_BC: Tensor = self.head(features_BD.float())
        return logits_BC

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of the batch, a scalar."""
        assert self.loss is not None
        loss: Tensor = self.loss(self.logits(batch), batch["targets"], batch["weight"], batch.get("pseudo"))
        return loss

    def whole(self, slope_C: npt.ArrayLike, offset_C: npt.ArrayLike) -> Any:  # noqa: ANN401
        """Return the Hugging Face model with a calibrated linear layer in its place, and no adapters; it is taken."""
        model = self.model.merge_and_unload() if hasattr(self.model, "merge_and_unload") else self.model
        head = self.head.plain() if isinstance(self.head, NestedLinear) else self.head
        assert isinstance(head, nn.Linear)
        parent, _, name = self._place.rpartition(".")
        setattr(model.get_submodule(parent), name, fold(head, slope_C, offset_C))
        return model


def pool_first(model: Any, vectors_BD: Tensor) -> Tensor:  # noqa: ANN401
    """Return what a sequence classifier makes of the first tokens' vectors alone, behind its encoder."""
    vectors_B1D = vectors_BD[:, None]
    if isinstance(getattr(model, "classifier", None), nn.Linear | nn.Identity):
        pooled: Tensor = model.dropout(model.base_model.pooler(vectors_B1D))
        return pooled
    features: Tensor = model.classifier(vectors_B1D)
    return features


def load_model(folder: Path, labels: Sequence[str]) -> Any:  # noqa: ANN401
    """Load a sequence classifier with a new last layer; safetensors only, no code that comes with it.

    Raises:
        InputError: There is no such encoder.
    """
    quieten_libraries()
    from transformers import AutoModelForSequenceClassification

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"train.encoder: {folder} cannot be loaded as a classifier: {first_line(error)}") from error
    new = [name for name in loading["missing_keys"] if ".encoder." in name or ".embeddings." in name]
    if new:
        raise InputError(f"train.encoder: {folder} lacks {len(new)} of its weights, such as {sorted(new)[0]}")
    return model


def load_network(
    folder: Path,
    labels: Sequence[str],
    *,
    nesting: Nesting | None,
    loss: LabelLoss,
    precision: str,
    max_length: int,
    freeze: bool,
    lora: int | None,
    gradient_checkpointing: bool,
) -> ClassifierNetwork:
    """Load an encoder with a new head; safetensors only, no code that comes with it.

    Args:
        folder: The encoder, or a classifier whose head is discarded.
        labels: What the head is for.
        nesting: The order of the labels, where some imply others.
        loss: The loss.
        precision: Of the encoder.
        max_length: Tokens of a tweet.
        freeze: Whether the encoder stays as it is, but for its pooling.
        lora: Rank of adapters, which are tuned instead of the encoder.
        gradient_checkpointing: Compute activations again in the backward pass, instead of keeping them.

    Raises:
        InputError: There is no such encoder, it reads fewer tokens, or cannot keep the order of nested labels.
    """
    model = load_model(folder, labels)
    most = max_positions(model.base_model)
    if max_length > most:
        raise InputError(f"train.max_length: {folder} reads at most {most} tokens, got {max_length}")
    kind = type(model).__name__.removesuffix("ForSequenceClassification")
    if nesting is not None and kind not in _TANH_HEADS:
        raise InputError(
            f"labels.nested: wants an encoder whose classifier ends in tanh ({', '.join(_TANH_HEADS)}); "
            f"{folder} is of the kind {kind}"
        )
    last = getattr(*final_linear(model))
    head = None if nesting is None else NestedLinear(last.in_features, nesting)
    if head is None:
        _draw_anew(model, last)
    network = ClassifierNetwork(model, head, loss, precision=precision)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if freeze or lora:
        for name, parameter in model.base_model.named_parameters():
            parameter.requires_grad_(name.startswith("pooler."))
    if lora:
        network.model = _with_adapters(model, lora)
    return network


def _draw_anew(model: Any, linear: nn.Linear) -> None:  # noqa: ANN401
    """Draw a layer as that of a new model: transformers keeps that of a classifier with as many labels."""
    nn.init.normal_(linear.weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(linear.bias)


def _with_adapters(model: Any, rank: int) -> Any:  # noqa: ANN401
    """Return a model whose encoder has low-rank adapters; what was tuned before still is.

    Source: Hu et al. (2022), as in peft: all linear layers, scaled by 2.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("train.lora: peft is not installed here; pip install 'scalemine[lora]'") from None
    tuned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inner = [
        name for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler.")
    ]  # fmt: skip
    prefix = model.base_model_prefix
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[f"{prefix}.{name}" for name in inner])
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if name.removeprefix("base_model.model.") in tuned:
            parameter.requires_grad_(True)
    return adapted
