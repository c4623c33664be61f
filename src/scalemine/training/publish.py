"""A trained model for others: as an ONNX file, or on a hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from scalemine.config import InputError, RunError
from scalemine.models import first_line
from scalemine.training.evaluation import is_classifier

ONNX = "model.onnx"


def write_onnx(model: str) -> Path:
    """Write ``model.onnx`` into the folder of a classifier; return its path.

    Raises:
        InputError: There is no classifier, or what writes the file is not installed.
        RunError: The file would give other numbers than the model.
    """
    if not is_classifier(model):
        from scalemine.training.tagging.tagger import load_tagger

        load_tagger(model, device="cpu")  # says where there is no model at all
        raise InputError(f"publish --onnx: {model} is a tagger; only classifiers become ONNX files")
    from scalemine.training.multilabel.classifier import export_onnx, find_folder

    folder = find_folder(model)
    export_onnx(folder, folder / ONNX)
    return folder / ONNX


def push_model(model: str, name: str, *, private: bool) -> str:
    """Upload a trained model to a hub; return its address. The token is the hub client's own.

    Raises:
        InputError: There is no such model, or no such place on the hub.
        RunError: The hub does not take it.
    """
    if is_classifier(model):
        from scalemine.training.multilabel.classifier import load_classifier

        loaded = load_classifier(model, device="cpu")
    else:
        from scalemine.training.tagging.tagger import load_tagger

        loaded = load_tagger(model, device="cpu")
    try:
        return str(loaded.push_to_hub(name, private=private))
    except HFValidationError as error:
        raise InputError(f"publish --push {name}: {first_line(error)}") from None
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"publish --push {name}: the hub does not take it ({first_line(error)})") from None
