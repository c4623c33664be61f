"""A sentence encoder: texts to unit vectors, in batches of sentences of one length.

Sentences of one length need no padding, so no work is wasted and a sentence's vector does not depend on its neighbours:
the same text gives the same bits in whatever shard, batch or worker it is met (tests/test_encoder.py).

Shapes: N texts, L tokens of a sentence, D dimensions.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalemine.config import EncoderConfig, InputError
from scalemine.engines import load_engine
from scalemine.models import (
    device_name,
    find_model,
    first_line,
    length_batches,
    max_positions,
    precision_name,
    quieten_libraries,
)
from scalemine.text import normaliser

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

# Kernels for a few rows round otherwise than those for many (seen below 100 tokens); no batch is smaller than this.
MIN_BATCH_TOKENS = 256
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}
# Of the products that the peak is measured with: rows of square matrices, and how long.
PEAK_ROWS = {"cpu": 1_024, "cuda": 8_192}
PEAK_SECONDS = 1.0
# Of the sentence that operations are counted with.
SENTENCE_TOKENS = 32


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: the ids of each, and how many texts were longer than the encoder reads."""

    ids: list[list[int]]
    num_cut: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens, special ones included."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Pieces:
    """The encoder's tokeniser alone: faster than the encoder's, and small enough to go to workers.

    Args:
        tokenizer: Of the tokenizers package; cuts nothing.
        prompt: What stands before each text.
        lower_case: Texts are lower-cased first.
        normalise: Texts as the encoder reads them.
        most: Tokens that the encoder reads of a text, special ones left out.
        num_special: How many of these a text gets.
    """

    tokenizer: Any
    prompt: str
    lower_case: bool
    normalise: Callable[[str], str]
    most: int
    num_special: int

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts as they come, without special ones."""
        prepared = _prompted([self.normalise(text) for text in texts], self.prompt, self.lower_case)
        found = self.tokenizer.encode_batch_fast(prepared, add_special_tokens=False)
        return [encoding.ids[: self.most] for encoding in found]


class Encoder:
    """A sentence-transformers model behind two verbs: ``tokenise`` in any thread, ``encode`` in one of its own."""

    def __init__(self, model: Any, *, config: EncoderConfig, precision: str, device: str, threads: int) -> None:  # noqa: ANN401
        self._num_flops = _flops_of(model[0].auto_model)
        self._engine = load_engine(
            config.engine, model[0].auto_model, precision=precision, device=device, threads=threads
        )
        self._head = list(model.children())[1:]
        self._tokenizer = model.tokenizer
        self._tokenizer_lock = threading.Lock()  # cutting is a state of the tokeniser
        self._prompt = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
        self._lower_case = bool(getattr(model[0], "do_lower_case", False))
        self._normalise: Callable[[str], str] = normaliser(config.normaliser)
        self._device = self._engine.device
        self._threads = threads
        self._batch_tokens = config.batch_tokens or BATCH_TOKENS[self._device.type]
        self.engine, self.fidelity = self._engine.name, self._engine.fidelity
        self.precision = precision
        self.device = device
        self.max_length = _max_length(model, config)
        for module in self._head:
            module.to(self._device, torch.float32)
        # A thread of its own: the threads that a tensor library starts for a calling thread then stay the same ones.
        self._model_thread = ThreadPoolExecutor(
            1, thread_name_prefix="model", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self.dim = int(self.encode(self.tokenise(["a"])).shape[1])

    def normalise(self, text: str) -> str:
        """Return the text as the encoder reads it."""
        return self._normalise(text)

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of texts that were normalised, cut to ``max_length`` and counted where they were."""
        if not texts:
            return Tokens([], 0)
        prepared = _prompted(texts, self._prompt, self._lower_case)
        with self._tokenizer_lock:
            return self._tokenise(prepared)

    def _tokenise(self, prepared: list[str]) -> Tokens:
        ids = self._tokenizer(prepared, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        long = [row for row, tokens in enumerate(ids) if len(tokens) > self.max_length]
        if long:
            cut = self._tokenizer([prepared[row] for row in long], truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
            for row, tokens in zip(long, cut, strict=True):
                ids[row] = tokens
        # A tokeniser without special tokens makes nothing of an empty text.
        nothing = [self._tokenizer.pad_token_id or 0]
        return Tokens([tokens or nothing for tokens in ids], len(long))

    def encode(self, tokens: Tokens) -> FloatArray:
        """Return the embeddings ``(N, D)``, float32 rows of length 1, in the order of the texts."""
        return self._model_thread.submit(self._encode, tokens).result()

    def pieces(self) -> Pieces:
        """Return the tokeniser alone.

        Raises:
            InputError: It is one of the slow ones.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                "mining.cascade: wants an encoder whose tokeniser is of the tokenizers package; set it to null"
            )
        own = type(backend).from_str(backend.to_str())
        own.no_truncation()
        own.no_padding()
        before, after = self._frame()
        num_special = len(before) + len(after)
        most = max(1, self.max_length - num_special)
        return Pieces(own, self._prompt, self._lower_case, self._normalise, most, num_special)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the encoder knows."""
        return len(self._tokenizer)

    def encode_vocabulary(self) -> FloatArray:
        """Return the embeddings ``(V, D)`` of sentences of one token each, one for every token there is."""
        before, after = self._frame()
        return self.encode(Tokens([[*before, token, *after] for token in range(self.vocabulary_size)], 0))

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a text."""
        empty, text = (self._tokenizer(some)["input_ids"] for some in ("", "a"))
        num_before = next(
            (i for i, (one, other) in enumerate(zip(empty, text, strict=False)) if one != other), len(empty)
        )
        return empty[:num_before], empty[num_before:]

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the embeddings ``(N, D)`` of texts as they come, normalised here."""
        return self.encode(self.tokenise([self.normalise(text) for text in texts]))

    def num_padded(self, tokens: Tokens) -> int:
        """Return how many tokens go through the model: those of the copies that fill up small batches, too."""
        lengths = [len(ids) for ids in tokens.ids]
        batches = [(len(rows), lengths[rows[0]]) for rows in length_batches(lengths, self._batch_tokens)]
        return sum(_num_copies(num_rows, length) * num_rows * length for num_rows, length in batches)

    def num_flops(self, tokens: Tokens) -> float:
        """Return the floating-point operations that the texts need."""
        return float(sum(self._num_flops(len(ids)) for ids in tokens.ids))

    def measure_peak(self) -> float:
        """Return how many floating-point operations per second large matrix products reach here, as the model runs."""
        return self._model_thread.submit(peak_flops, self.device, self.precision, self._threads).result()

    @property
    def machine(self) -> str:
        """What the model runs on: the name of a GPU, or cpu."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    @torch.inference_mode()
    def _encode(self, tokens: Tokens) -> FloatArray:
        batches = list(length_batches([len(ids) for ids in tokens.ids], self._batch_tokens))
        vectors_ND: FloatArray | None = None
        while batches:
            rows = batches.pop()
            try:
                batch_BD = self._encode_batch([tokens.ids[row] for row in rows])
            except (MemoryError, RuntimeError) as error:
                if len(rows) == 1 or not is_out_of_memory(error):
                    raise
                batches += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                self._batch_tokens = max(MIN_BATCH_TOKENS, self._batch_tokens // 2)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                logger.warning("out of memory: batches are now %d tokens", self._batch_tokens)
                continue
            if vectors_ND is None:
                vectors_ND = np.empty((len(tokens.ids), batch_BD.shape[1]), np.float32)
            vectors_ND[rows] = batch_BD
        return vectors_ND if vectors_ND is not None else np.empty((0, self.dim), np.float32)

    def _encode_batch(self, ids: list[list[int]]) -> FloatArray:
        """Return the embeddings of sentences of one length."""
        num_rows, length = len(ids), len(ids[0])
        input_ids_BL = torch.tensor(ids * _num_copies(num_rows, length), dtype=torch.long)
        if self._device.type == "cuda":
            input_ids_BL = input_ids_BL.pin_memory().to(self._device, non_blocking=True)
        # Only the transformer runs in low precision; pooling and what follows are float32.
        features: dict[str, Any] = {
            "token_embeddings": self._engine.hidden_states(input_ids_BL),
            "attention_mask": torch.ones_like(input_ids_BL),
        }
        features["cls_token_embeddings"] = features["token_embeddings"][:, 0]
        for module in self._head:
            features = module(features)
        vectors_BD = torch.nn.functional.normalize(features["sentence_embedding"][:num_rows].float(), dim=1)
        return vectors_BD.cpu().numpy()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of a GPU or of this machine: each library says it its way."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error)
        for words in (
            "not enough memory",  # PyTorch's allocator: DefaultCPUAllocator, too
            "can't allocate memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
        )
    )


def _prompted(texts: Sequence[str], prompt: str, lower_case: bool) -> list[str]:
    """Return normalised texts as the tokeniser gets them."""
    return [prompt + (text.lower() if lower_case else text) for text in texts]


def _num_copies(num_rows: int, length: int) -> int:
    """Return how often a batch is repeated to be large enough."""
    return -(-MIN_BATCH_TOKENS // (num_rows * length))


@torch.inference_mode()
def _flops_of(transformer: Any) -> Callable[[int], float]:  # noqa: ANN401  of Hugging Face, with a config
    """Return the floating-point operations of a text by its tokens: two per parameter and token, and the attention's.

    The parameters are those of the linear layers, each as often as a token of a sentence goes through it.

    Source: Narayanan et al. (2021), "Efficient large-scale language model training on GPU clusters", appendix; of the
    forward pass alone.
    """
    products: list[int] = []

    def note(layer: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        products.append(inputs[0].shape[:-1].numel() * layer.weight.numel())

    linear = [layer for layer in transformer.modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in linear]
    sentence_BL = torch.ones((1, min(SENTENCE_TOKENS, max_positions(transformer))), dtype=torch.long)
    transformer(input_ids=sentence_BL, attention_mask=sentence_BL)
    for hook in hooks:
        hook.remove()
    per_token = 2.0 * sum(products) / sentence_BL.numel()
    attention = 4.0 * transformer.config.num_hidden_layers * transformer.config.hidden_size
    return lambda num_tokens: num_tokens * (per_token + attention * num_tokens)


@functools.cache
def peak_flops(device: str, precision: str, threads: int) -> float:
    """Return the floating-point operations per second of the fastest of a second of large matrix products.

    Args:
        device: Where they are computed.
        precision: Of the factors.
        threads: Of the calling thread; a key of the cache only.
    """
    del threads
    on = torch.device(device)
    rows = PEAK_ROWS[on.type]
    factor = torch.rand((rows, rows), device=on).to(getattr(torch, precision))
    best, until = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(factor, factor)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows**3 / best


def load_encoder(config: EncoderConfig, *, precision: str | None = None, threads: int = 1) -> Encoder:
    """Load the encoder that a configuration names; safetensors weights only, and no code that comes with a model.

    Args:
        config: Which model, and how it runs.
        precision: Instead of the configured one; ``float32`` decides what is selected.
        threads: CPU threads of the model.

    Raises:
        InputError: There is no such model, its weights are not safetensors, or the device is not there.
    """
    quieten_libraries()
    from sentence_transformers import SentenceTransformer

    folder = find_model(config.model, config.revision)
    device = device_name(config.device)
    torch.set_num_threads(threads)
    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"encoder.model: {config.model} cannot be loaded from {folder}: {first_line(error)}"
        ) from error
    model.eval()
    return Encoder(
        model,
        config=config,
        precision=precision or precision_name(config.precision, device),
        device=device,
        threads=threads,
    )


def _max_length(model: Any, config: EncoderConfig) -> int:  # noqa: ANN401
    most = max_positions(model[0].auto_model)
    own = int(model.max_seq_length or most)
    if config.max_length is not None and config.max_length > most:
        raise InputError(f"encoder.max_length: {config.model} reads at most {most} tokens, got {config.max_length}")
    return config.max_length or own
