"""The models that training leaves behind, loaded by their folder, whatever they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalemine.config import InputError
from scalemine.store import read_json

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
        device: Such as cpu or cuda:1; auto is CUDA where it is there. Classical models are on the CPU.
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

    return load_text_model(folder)


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
    raise InputError(f"{folder}: no model here; expected one that scalemine train wrote, such as WORKDIR/runs/NAME")


def folder_of(folder: str | Path) -> Path:
    """Return the folder that holds a model's files: the one given, or that of the run that wrote it.

    Raises:
        InputError: There is none.
    """
    kind_of(folder)
    return next(path for path in _places(folder) if (path / OTHERS).exists() or (path / FINE_TUNED).exists())


def _places(folder: str | Path) -> tuple[Path, Path]:
    return Path(folder), Path(folder) / "model"
