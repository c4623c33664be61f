"""What classical models read of sentence embeddings: as they are, standardised, or in levels, as the model wants them.

Shapes: N embeddings to learn from, M to read, D dimensions, Q quantiles.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from scalemine.config import EncoderConfig, InputError
from scalemine.encoder import Encoder, load_encoder
from scalemine.models import device_name, encoder_settings, find_model, model_fingerprint

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

# These are moved by the scale of a dimension, trees are not, and near are those of a high cosine.
_STANDARDISED = ("svm", "logistic_regression", "mlp")
# Levels of a dimension that boosting tells apart.
LEVELS = 64


@dataclass(frozen=True, eq=False)
class EmbeddingFeatures:
    """How a model reads embeddings, as it was learnt from some.

    Args:
        width: Of an embedding.
        mean_D: What is taken from each dimension; empty: nothing.
        scale_D: What each is divided by then; empty: nothing.
        bounds_DQ: Where each dimension's levels end, ascending; empty: values stay as they are.
    """

    width: int
    mean_D: NDArray[np.float64]
    scale_D: NDArray[np.float64]
    bounds_DQ: NDArray[np.float64]

    def __post_init__(self) -> None:
        dims = self.width
        for name, shapes in (
            ("mean_D", ((0,), (dims,))), ("scale_D", ((0,), (dims,))), ("bounds_DQ", ((0, 0), (dims, LEVELS - 1)))
        ):  # fmt: skip
            values = getattr(self, name)
            if values.shape not in shapes or not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite numbers for {dims} dimensions, got {values.shape}")
        if self.mean_D.shape != self.scale_D.shape or not (self.scale_D > 0).all():
            raise ValueError("scale_D: expected a number above 0 for each mean")

    @classmethod
    def fit(cls, name: str, vectors_ND: NDArray[Any]) -> EmbeddingFeatures:
        """Learn from embeddings, float16 or float32, what a model asks for.

        Args:
            name: The model, one of ``BASELINES``.
            vectors_ND: The embeddings.

        Raises:
            ValueError: One is not finite.
        """
        vectors_ND = np.asarray(vectors_ND, np.float32)
        if not np.isfinite(vectors_ND).all():
            raise ValueError("an embedding is not finite")
        mean_D, scale_D, bounds_DQ = np.empty(0), np.empty(0), np.empty((0, 0))
        if name in _STANDARDISED:
            scaler = StandardScaler().fit(vectors_ND)
            mean_D, scale_D = scaler.mean_.astype(np.float64), scaler.scale_.astype(np.float64)
        elif name == "boosting":
            # It does so itself, but for weighted rows it takes minutes, and again for each label.
            shares = np.linspace(0, 1, LEVELS + 1)[1:-1]
            bounds_DQ = np.stack([np.quantile(values_N.astype(np.float64), shares) for values_N in vectors_ND.T])
        return cls(vectors_ND.shape[1], mean_D, scale_D, bounds_DQ)

    def transform(self, vectors_MD: NDArray[Any]) -> FloatArray:
        """Return what the model reads of embeddings ``(M, D)``, float32."""
        vectors_MD = np.asarray(vectors_MD, np.float32)
        if len(self.mean_D):
            centred_MD: FloatArray = vectors_MD - self.mean_D.astype(np.float32)
            centred_MD /= self.scale_D.astype(np.float32)
            return centred_MD
        if not len(self.bounds_DQ):
            return vectors_MD
        levels_MD = np.empty_like(vectors_MD)
        for dim, bounds_Q in enumerate(self.bounds_DQ):
            levels_MD[:, dim] = np.searchsorted(bounds_Q, vectors_MD[:, dim])
        return levels_MD

    def as_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes."""
        return {
            "width": self.width, "mean": self.mean_D.tolist(), "scale": self.scale_D.tolist(),
            "bounds": self.bounds_DQ.tolist(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EmbeddingFeatures:
        """Return what was written as JSON.

        Raises:
            KeyError: A value is missing.
            TypeError: One is of another type.
            ValueError: They contradict one another.
        """
        mean_D, scale_D = (np.array(values[name], np.float64) for name in ("mean", "scale"))
        bounds_DQ = np.array(values["bounds"] or np.empty((0, 0)), np.float64)
        return cls(int(values["width"]), mean_D, scale_D, bounds_DQ)


def encoder_facts(config: EncoderConfig) -> dict[str, Any]:
    """Return what ``load_text_encoder`` takes: which encoder it is, and how it computes, on whatever device."""
    settings = encoder_settings(config)
    folder = Path(config.model).expanduser()
    return {
        "model": str(folder.absolute()) if folder.is_dir() else config.model,
        "revision": config.revision,
        "weights": settings["encoder.weights"],
        "max_length": config.max_length,
        "precision": settings["encoder.precision"],
        "engine": settings.get("encoder.engine", "torch"),
    }


def load_text_encoder(
    facts: Mapping[str, Any], where: str, width: int, *, device: str = "auto"
) -> Callable[[Sequence[str]], NDArray[np.float16]]:
    """Return what gives the embeddings ``(N, D)`` of texts that are normalised, as training had them.

    Models of one encoder share it. Nothing is downloaded: a folder that somebody gave away says what is loaded.

    Args:
        facts: See ``encoder_facts``.
        where: What says so, for messages.
        width: Dimensions of the embeddings.
        device: Such as cpu or cuda:1; auto is CUDA where it is there. Engines other than torch are on the CPU.

    Raises:
        InputError: The encoder is not on this machine, or is another by now.
        KeyError: A fact is missing.
        TypeError: One is of another type.
        ValueError: It cannot be.
    """
    names = ("model", "revision", "max_length", "precision", "engine")
    config = EncoderConfig(**{name: facts[name] for name in names})
    if config.engine == "torch":
        config = config.model_copy(update={"device": device_name(device, key="device")})
    else:
        config = config.model_copy(update={"device": "cpu"})
    folder = find_model(config.model, config.revision, key=f"{where}: encoder", downloads=False)
    if model_fingerprint(folder) != facts["weights"]:
        raise InputError(
            f"{where}: encoder: {config.model} is not the one that the model was trained with (its files have another "
            f"hash); put that one there"
        )
    encoder = _load_once(config.model_dump_json(), facts["weights"], torch.get_num_threads())
    if encoder.dim != width:
        raise InputError(f"{where}: encoder: its embeddings have {encoder.dim} dimensions, and the model reads {width}")
    return partial(_embed, encoder)


@functools.lru_cache(maxsize=4)
def _load_once(config: str, weights: str, threads: int) -> Encoder:
    """Load an encoder; of other files it is another."""
    del weights
    given = EncoderConfig.model_validate_json(config)
    return load_encoder(given, precision=given.precision, threads=threads)


def _embed(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float16]:
    tokens = encoder.tokenise(texts)
    if tokens.num_cut:
        logger.warning(
            "%d of %d texts are longer than %d tokens, and cut", tokens.num_cut, len(texts), encoder.max_length
        )
    return encoder.encode(tokens).astype(np.float16)
