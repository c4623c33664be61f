"""The models that training leaves behind, loaded by their folder, whatever they are."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalemine.config import InputError
from scalemine.models import first_line
from scalemine.store import file_sha256, read_json

if TYPE_CHECKING:
    from scalemine.training.ensemble.model import LabelEnsemble, SpanEnsemble
    from scalemine.training.multilabel.classifier import Classifier
    from scalemine.training.multilabel.text_model import TextModel
    from scalemine.training.multilabel.word_model import WordModel
    from scalemine.training.tagging.tagger import Tagger

# Who says in a folder what it holds: fine-tuned models by Hugging Face's name, the others by ours.
FINE_TUNED, OTHERS = "config.json", "model.json"


def load_model(
    folder: str | Path, *, device: str = "auto", precision: str = "float32"
) -> Tagger | Classifier | TextModel | WordModel | LabelEnsemble | SpanEnsemble:
    """Load a model from its folder, or from the folder of the run that wrote it.

    Args:
        folder: The folder.
        device: Such as cpu or cuda:1; auto is CUDA where it is there. Of classical models, the encoder's.
        precision: In which a fine-tuned classifier computes: float32, bfloat16, float16, or auto, the fastest.

    Raises:
        InputError: There is none, or it is damaged.
    """
    kind = kind_of(folder)
    if kind == "tagger":
        from scalemine.training.tagging.tagger import load_tagger

        return load_tagger(folder, device=device)
    if kind == "classifier":
        from scalemine.training.multilabel.classifier import load_classifier

        return load_classifier(folder, device=device, precision=precision)
    if kind == "word_network":
        from scalemine.training.multilabel.word_model import load_word_network

        return load_word_network(folder, device=device)
    if kind == "ensemble":
        from scalemine.training.ensemble.model import load_ensemble

        return load_ensemble(folder, device=device, precision=precision)
    from scalemine.training.multilabel.text_model import load_text_model

    return load_text_model(folder, device=device)


def kind_of(folder: str | Path) -> str:
    """Return what a folder holds: ``tagger``, ``classifier``, or what its ``model.json`` says.

    Raises:
        InputError: There is none.
    """
    for path in _places(folder):
        if (path / OTHERS).exists():
            info = read_json(path / OTHERS)
            return str(info.get("kind")) if isinstance(info, dict) else "damaged"
        if (path / FINE_TUNED).exists():
            info = read_json(path / FINE_TUNED)
            is_tagger = isinstance(info, dict) and info.get("scalemine") == "tagger"
            return "tagger" if is_tagger else "classifier"
    folds = sorted(one.name for one in Path(folder).parent.glob(f"{glob.escape(Path(folder).name)}-fold*"))
    hint = f"; there are {folds[0]} to {folds[-1]}" if folds else ""
    raise InputError(
        f"{folder}: no model here; expected one that scalemine train wrote, such as WORKDIR/runs/NAME{hint}"
    )


def folder_of(folder: str | Path) -> Path:
    """Return the folder that holds a model's files: the one given, or that of the run that wrote it.

    Raises:
        InputError: There is none.
    """
    kind_of(folder)
    return model_folder(folder)


def model_folder(folder: str | Path) -> Path:
    """Return where a model's files are in a folder, or would be: there, or below ``model`` in that of a run."""
    own, of_run = _places(folder)
    return own if any((own / name).exists() for name in (OTHERS, FINE_TUNED)) else of_run


def _places(folder: str | Path) -> tuple[Path, Path]:
    return Path(folder), Path(folder) / "model"


def read_info(folder: Path, kind: str, version: int, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Return what the ``model.json`` of a folder holds.

    Args:
        folder: The folder itself.
        kind: Of which kind the model is to be.
        version: The format of that kind which is read.
        check: Raises ValueError, or what Python does, where something of it cannot be.

    Raises:
        InputError: There is none, it is of another kind or format, or damaged.
    """
    path = folder / OTHERS
    if not path.exists():
        raise InputError(f"{folder}: no model here (expected {OTHERS}; scalemine train writes it to runs/NAME/model)")
    info: dict[str, Any] = read_json(path)
    try:
        if not isinstance(info, dict) or info["kind"] != kind:
            raise ValueError(f"not that of a model of the kind {kind}")
        if info["format"] != version:
            raise ValueError(f"format {info['format']}, and this version of scalemine reads {version}")
        if not isinstance(info["sha256"], dict):
            raise ValueError(f"sha256: expected a hash for each file, got {info['sha256']!r}")
        check(info)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {first_line(error)}") from None
    return info


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Refuse files of a model that are not those which were written with its ``model.json``.

    Args:
        folder: The folder.
        hashes: SHA-256 by name; names that lead out of the folder are refused before.

    Raises:
        InputError: One is missing, or has another hash.
    """
    for name, wanted in hashes.items():
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: missing; copy the whole folder, or train the model again")
        if file_sha256(folder / name) != wanted:
            raise InputError(f"{folder / name}: not the file that was written with {OTHERS} (its sha256 is another)")
