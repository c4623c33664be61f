"""A trained multilabel classifier as one folder: written by training, loaded anywhere, shared on a hub.

    classifier = Classifier.from_pretrained("work/crisis/runs/NAME/model")
    classifier.classify(["bus crashed into a shop, two hurt"])

The folder is a plain Hugging Face model, which ``transformers.pipeline`` loads too: ``config.json``,
``model.safetensors`` (calibrated: the sigmoid of its logits are the probabilities), the tokeniser's files,
``README.md`` (the card) and ``metrics.json``. What Hugging Face has no place for is under ``scalemine`` in
``config.json``, called ``info`` here: format, version, kind, thresholds by label, calibration by label (slope and
offset, already in the weights), normaliser, max_length, nested (chains of labels, inner first), languages (tweets by
language), training (facts by name) and metrics (by set, as ``score_labels`` gives them).

Shapes: N texts, B texts of a batch, C labels.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from scalemine.config import InputError, RunError
from scalemine.models import (
    MODEL_FILES,
    device_name,
    first_line,
    is_path,
    load_tokenizer,
    precision_name,
    quieten_libraries,
)
from scalemine.store import read_json, remove, write_json, write_whole
from scalemine.text import normaliser
from scalemine.training.batches import BATCH_TOKENS, Batch, even_batches, pad, to_device
from scalemine.training.multilabel.calibration import probabilities_of
from scalemine.training.multilabel.label_model import LabelModel

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Rises when the meaning of what config.json holds under "scalemine" changes.
FORMAT = 1
PRECISIONS = ("float32", "bfloat16", "float16", "auto")
# Texts whose tokens are held at a time: as lists of Python's integers they are large.
_TOKENISED_TEXTS = 16_384
# What metrics.json and config.json say in full, and the card does not.
_LONG = ("history", "lr_check")
# ONNX files are protocol buffers, which end at 2 GiB; the graph itself takes some of it.
_ONNX_ONE_FILE_BYTES = 2_000_000_000
_ONNX_TOLERANCE = 1e-4
_ONNX_CHECKED = ("!", "bus crashed into a shop, two hurt", "fire near the old bridge " * 40)


def final_linear(model: Any) -> tuple[nn.Module, str]:  # noqa: ANN401  any Hugging Face classifier
    """Return the last linear layer of a Hugging Face sequence classifier, as its parent module and its name there.

    Raises:
        InputError: It has none with one output per label and a bias.
    """
    encoder = {id(module) for module in model.base_model.modules()}
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in encoder
        and module.out_features == model.config.num_labels
        and module.bias is not None
    ]
    if not found:
        raise InputError(
            f"{type(model).__name__}: no linear layer with a bias and {model.config.num_labels} outputs behind the "
            f"encoder; take a model of another kind, such as BERT, RoBERTa or XLM-RoBERTa"
        )
    parent, _, name = found[-1].rpartition(".")
    return model.get_submodule(parent), name


def fold(linear: nn.Linear, slope_C: npt.ArrayLike, offset_C: npt.ArrayLike) -> nn.Linear:
    """Return a linear layer whose outputs are ``slope * z + offset``, where z are those of ``linear``.

    Raises:
        ValueError: Slopes are not above 0, or not one slope and offset per output.
    """
    slopes_C, offsets_C = np.array(slope_C, np.float64), np.array(offset_C, np.float64)
    if not slopes_C.shape == offsets_C.shape == (linear.out_features,):
        raise ValueError(f"expected {linear.out_features} slopes and offsets, got {slopes_C.shape}, {offsets_C.shape}")
    if not (np.isfinite(slopes_C).all() and np.isfinite(offsets_C).all() and (slopes_C > 0).all()):
        raise ValueError(f"expected finite slopes above 0 and finite offsets, got {slopes_C}, {offsets_C}")
    weight = linear.weight
    folded = nn.Linear(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype)
    slope, offset = (torch.from_numpy(one).to(weight.device) for one in (slopes_C, offsets_C))
    bias = torch.zeros_like(slope) if linear.bias is None else linear.bias.double()
    with torch.no_grad():
        folded.weight.copy_(slope[:, None] * weight.double())
        folded.bias.copy_(slope * bias + offset)
    return folded


class Classifier(LabelModel, ModelHubMixin):  # type: ignore[misc]
    """A trained multilabel classifier; made by ``from_pretrained``.

    Args:
        model: Hugging Face sequence classifier.
        tokenizer: Its tokeniser.
        info: What ``config.json`` holds under ``scalemine``.
    """

    def __init__(self, model: Any, tokenizer: Any, info: dict[str, Any]) -> None:  # noqa: ANN401  of transformers
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.info = info
        self._normalise = normaliser(info["normaliser"])

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the columns of ``scores``."""
        return _labels(self.model.config.id2label)

    def to(self, device: str) -> Classifier:
        """Move the model to a device."""
        self.model.to(device)
        return self

    def normalise(self, text: str) -> str:
        """Return a text as the model reads it; see ``LabelModel``."""
        return self._normalise(text)

    @torch.inference_mode()
    def scores_of_normalised(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the probabilities ``(N, C)`` of texts that are normalised; see ``LabelModel``."""
        scores_NC = np.empty((len(texts), len(self.labels)), np.float32)
        num_cut = 0
        for start in range(0, len(texts), _TOKENISED_TEXTS):
            part = slice(start, start + _TOKENISED_TEXTS)
            tokens, cut = self._tokens(list(texts[part]))
            scores_NC[part] = self._scores_of(tokens)
            num_cut += cut
        if num_cut:
            logger.warning(
                "%d texts are longer than the classifier reads (%d tokens), and were cut",
                num_cut, self.info["max_length"],
            )  # fmt: skip
        return scores_NC

    def _scores_of(self, tokens: Mapping[str, list[list[int]]]) -> npt.NDArray[np.float32]:
        """Return the probabilities of the labels of texts that are tokenised."""
        lengths = list(map(len, tokens["input_ids"]))
        scores_NC = np.empty((len(lengths), self.model.config.num_labels), np.float32)
        device = next(self.model.parameters()).device
        for rows, count in even_batches(lengths, BATCH_TOKENS[device.type]):
            logits_BC = self.model(**to_device(self._collate(tokens, rows), device)).logits
            scores_NC[rows[:count]] = probabilities_of(logits_BC[:count].float().cpu().numpy())
        return scores_NC

    def _tokens(self, texts: list[str]) -> tuple[dict[str, list[list[int]]], int]:
        """Return what the model reads of texts that are normalised, by the name of the input, and how many are cut."""
        max_length = self.info["max_length"]
        # Not all tokenisers return what they cut off, so those texts that fill the length are read once more.
        tokens = self.tokenizer(texts, truncation=True, max_length=max_length, verbose=False)
        full = [text for text, ids in zip(texts, tokens["input_ids"], strict=True) if len(ids) >= max_length]
        whole = self.tokenizer(full, truncation=False, verbose=False)["input_ids"] if full else []
        return dict(tokens), sum(len(ids) > max_length for ids in whole)

    def _collate(self, tokens: Mapping[str, list[list[int]]], rows: Sequence[int]) -> Batch:
        fillers = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        return {name: pad([of_all[row] for row in rows], fillers.get(name, 0)) for name, of_all in tokens.items()}

    def _save_pretrained(self, save_directory: Path) -> None:
        write_classifier(self.model, self.tokenizer, self.info, save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None, force_download: bool,
        local_files_only: bool, token: str | bool | None, device: str = "auto", precision: str = "float32",
    ) -> Classifier:  # fmt: skip
        folder = Path(model_id)
        if not folder.is_dir():
            patterns = [*MODEL_FILES, "*.md"]
            folder = Path(
                snapshot_download(
                    model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token, allow_patterns=patterns,
                )
            )  # fmt: skip
        return _load(cls, folder, device, precision)


def find_folder(folder: str | Path) -> Path:
    """Return the folder of a classifier, of a run that wrote one, or what is no folder as it is.

    Raises:
        InputError: It is a folder, and holds none.
    """
    path = Path(folder)
    if path.is_dir() and not (path / CONFIG).exists() and (path / "model" / CONFIG).exists():
        path = path / "model"  # a run's folder
    if path.is_dir() and not (path / CONFIG).exists():
        raise InputError(
            f"{folder}: no classifier here (expected {CONFIG}; scalemine train writes it to runs/NAME/model)"
        )
    return path


def load_classifier(folder: str | Path, *, device: str = "auto", precision: str = "float32") -> Classifier:
    """Load a classifier from its folder, from the folder of the run that wrote it, or from a hub id.

    Args:
        folder: The folder, or the hub id.
        device: Such as cpu or cuda:1; auto is CUDA where it is there.
        precision: In which its weights are held and computed with: float32, bfloat16, float16, or auto, the fastest.

    Raises:
        InputError: The folder is no classifier, or is damaged.
    """
    path = find_folder(folder)
    if path.is_dir():
        return _load(Classifier, path, device, precision)
    if is_path(str(folder)):
        raise InputError(f"{folder}: no such folder (expected a classifier that scalemine train wrote, or a hub id)")
    try:
        return cast(Classifier, Classifier.from_pretrained(str(folder), device=device, precision=precision))
    except (OSError, HFValidationError) as error:
        raise InputError(f"{folder}: no classifier here, and the hub does not give it ({first_line(error)})") from None


def _load(cls: type[Classifier], folder: Path, device: str, precision: str) -> Classifier:
    info = _read_info(folder)
    device = device_name(device, key="device")
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no {WEIGHTS}; only safetensors are read")
    quieten_libraries()
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder, key=str(folder))
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, precision_name(precision, device)),
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: its model cannot be loaded: {first_line(error)}") from error
    # Without their files both are made up, and nothing is said.
    if loading["missing_keys"] or loading["unexpected_keys"] or loading["mismatched_keys"]:
        raise InputError(f"{folder / WEIGHTS}: not the weights of this classifier; train it again")
    return cls(model.to(device), tokenizer, info)


def _read_info(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` holds under ``scalemine``, checked against the rest of it."""
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise InputError(f"{folder}: {CONFIG} is not JSON: {first_line(error)}") from None
    info = config.get("scalemine") if isinstance(config, dict) else None
    if not isinstance(info, dict) or info.get("kind") != "classifier":
        raise InputError(f"{folder}: {CONFIG} is not that of a classifier of scalemine")
    if info.get("format") != FORMAT:
        raise InputError(
            f"{folder}: {CONFIG} has format {info.get('format')}, this version of scalemine reads {FORMAT}"
        )
    try:
        _check_info(info, _labels({int(index): label for index, label in config["id2label"].items()}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: {CONFIG} is damaged: {first_line(error)}") from None
    return info


def _labels(id2label: Mapping[int, str]) -> list[str]:
    return [id2label[index] for index in range(len(id2label))]


def _check_info(info: Mapping[str, Any], labels: Sequence[str]) -> None:
    normaliser(info["normaliser"])
    if not isinstance(info["max_length"], int) or info["max_length"] < 1:
        raise ValueError(f"max_length: expected a whole number above 0, got {info['max_length']!r}")
    if len(set(labels)) < len(labels) or set(info["thresholds"]) != set(labels):
        raise ValueError(f"thresholds: expected one for each of {', '.join(labels)}, got {info['thresholds']}")
    if not all(isinstance(one, float | int) for one in info["thresholds"].values()):
        raise ValueError(f"thresholds: expected numbers, got {info['thresholds']}")


def write_classifier(model: Any, tokenizer: Any, info: Mapping[str, Any], folder: Path) -> None:  # noqa: ANN401
    """Write a classifier's folder; ``config.json`` comes last, and without it there is no classifier.

    Args:
        model: Hugging Face sequence classifier in float32, its labels in its configuration, its last layer calibrated.
        tokenizer: Its tokeniser.
        info: What ``config.json`` is to hold under ``scalemine``; format and kind are put in here.
        folder: Where; other files that are there stay.

    Raises:
        ValueError: The weights are not float32, or ``info`` does not fit to the labels.
    """
    labels = _labels(model.config.id2label)
    _check_info(info, labels)
    if model.dtype != torch.float32:
        raise ValueError(f"expected weights in float32, got {model.dtype}; load the classifier in float32 to save it")
    info = {"format": FORMAT, "kind": "classifier"} | dict(info)
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / CONFIG)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        temporary = Path(name)
        model.save_pretrained(temporary)
        if tokenizer.is_fast:  # its file would keep how the last text was cut and filled up
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(temporary)
        config = read_json(temporary / CONFIG)
        # Where it was loaded from is of no use elsewhere, and another length would only mislead.
        unused = ("is_local", "local_files_only", "name_or_path", "max_length")
        reading = {key: one for key, one in read_json(temporary / TOKENIZER_CONFIG).items() if key not in unused}
        write_json(temporary / TOKENIZER_CONFIG, reading | {"model_max_length": info["max_length"]})
        (temporary / CARD).write_text(card(info, labels), encoding="utf-8")
        write_json(temporary / METRICS, info.get("metrics", {}))
        (temporary / CONFIG).unlink()
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with write_whole(folder / path.relative_to(temporary)) as moved:
                    path.replace(moved)
    ours = {"problem_type": "multi_label_classification", "scalemine": info}
    write_json(folder / CONFIG, {key: one for key, one in config.items() if key not in ours} | ours)


def card(info: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Return the model card: what it is, on what it was trained, how good it is, how to use it, and its limits."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags:",
        "- scalemine",
        "- multi-label-classification",
        "---",
        "# Multilabel classifier of tweets",
        "",
        f"Gives each tweet the probabilities of {len(labels)} labels, each on its own: {', '.join(labels)}. "
        f"Trained by scalemine {info.get('version', '')}".rstrip()
        + ".",
        "",
        *_use_section(info),
        "## Training",
        "",
        *(f"- {name}: {_cell(info[name])}" for name in ("encoder", "loss") if name in info),
        *(f"- {name}: {_cell(value)}" for name, value in info.get("training", {}).items() if name not in _LONG),
        "",
        *_metrics_section(info.get("metrics", {})),
        *_labels_section(info, labels),
        *_limits_section(info),
    ]
    return "\n".join(lines)


def _use_section(info: Mapping[str, Any]) -> Iterator[str]:
    name = info["normaliser"]
    plain = name == "none"
    yield from ("## Use", "", "With transformers:", "")
    if not plain:
        yield from (f"**Each text must first go through scalemine's normaliser `{name}`, as here; "
                    f"without it the probabilities are wrong.**", "")  # fmt: skip
    yield from ("```python", "from transformers import pipeline", "")
    if not plain:
        yield from ("from scalemine.text import normaliser", "")
    yield 'classify = pipeline("text-classification", model="this folder or its hub id", top_k=None)'
    yield 'texts = ["bus crashed into a shop, two hurt"]'
    if not plain:
        yield f'texts = [normaliser("{name}")(text) for text in texts]'
    yield from ("scores = classify(texts, truncation=True)", "```", "")
    changed = any(list(one) != [1, 0] for one in info.get("calibration", {}).values())
    yield (
        f"`truncation=True` is needed: the model reads {info['max_length']} tokens, and a pipeline does not cut longer "
        f"texts by itself. The scores are probabilities, {'already calibrated' if changed else 'not calibrated'}; no "
        f"threshold is applied."
    )
    yield from (
        "",
        "With scalemine, which normalises, cuts and applies the thresholds:",
        "",
        "```python",
        "from scalemine import Classifier",
        "",
        'classifier = Classifier.from_pretrained("this folder or its hub id")',
        'classifier.classify(["bus crashed into a shop, two hurt"])  # labels that reach their threshold',
        'classifier.scores(["bus crashed into a shop, two hurt"])  # all probabilities, as an array',
        "```",
        "",
    )


# Measures of the card: name, key and, below it, which mean.
_MEASURES = (
    ("macro ROC-AUC", "roc_auc", "macro"),
    ("micro ROC-AUC", "roc_auc", "micro"),
    ("macro AP", "average_precision", "macro"),
    ("micro AP", "average_precision", "micro"),
    ("macro F1", "macro_f1", None),
    ("micro F1", "micro_f1", None),
    ("Jaccard", "jaccard", None),
    ("ECE", "ece", None),
)


def _metrics_section(metrics: Mapping[str, Any]) -> Iterator[str]:
    if not metrics:
        return
    yield from ("## Metrics", "", f"| measure | {' | '.join(map(_cell, metrics))} |", "|---|" + "---|" * len(metrics))
    for name, key, mean in _MEASURES:
        cells = []
        for of_set in metrics.values():
            got, prior = (_number(one.get(key, {}), mean) for one in (of_set, of_set.get("prior", {})))
            cells.append(got if prior == _MISSING else f"{got} ({prior})")
        if set(cells) != {_MISSING}:
            yield f"| {name} | {' | '.join(cells)} |"
    yield from ("", "In brackets: what the labels' shares in the training tweets reach alone, without the text.", "")
    for name, of_set in metrics.items():
        if text := of_set.get("verdict", {}).get("text"):
            yield from (f"{name}: {text}", "")


def _labels_section(info: Mapping[str, Any], labels: Sequence[str]) -> Iterator[str]:
    columns = (("positive", "num_positive"), ("known", "num_known"), ("prior", "prior"), ("ROC-AUC", "roc_auc"),
               ("AP", "average_precision"), ("F1", "f1"))  # fmt: skip
    sets = {name: one["per_label"] for name, one in info.get("metrics", {}).items() if one.get("per_label")}
    heads = ["label", "threshold", *(f"{_cell(name)}: {head}" for name in sets for head, _ in columns)]
    yield from ("## Labels", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
    for label in labels:
        scores = [_number(of_set.get(label, {}).get(key)) for of_set in sets.values() for _, key in columns]
        yield f"| {' | '.join([_cell(label), _number(info['thresholds'][label]), *scores])} |"
    yield ""
    for chain in info.get("nested", []):
        yield from (f"Nested, each within the next, and so are their probabilities: {', '.join(chain)}.", "")


def _limits_section(info: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Limits", "")
    if languages := info.get("languages", {}):
        counts = ", ".join(f"{name} {count}" for name, count in sorted(languages.items(), key=lambda one: -one[1]))
        yield f"- Trained on tweets in these languages (tweets): {counts}. Others are untested."
    yield f"- Only the first {info['max_length']} tokens of a text are read."
    yield (
        "- Thresholds and calibration fit tweets that were collected like the training data; where labels are rarer or "
        "more frequent, probabilities are off, and thresholds should be chosen anew."
    )
    yield (
        "- Micro measures reward knowing how frequent a label is; whether the text tells more is seen in the macro "
        "ROC-AUC, which is 0.5 for one that does not read it."
    )
    yield "- Events, places and times unlike those of the training data may be judged much worse than the metrics say."
    yield ""


_MISSING = "–"


def _number(value: Any, mean: str | None = None) -> str:  # noqa: ANN401  of JSON
    value = value.get(mean) if isinstance(value, Mapping) else value
    if value is None:
        return _MISSING
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:  # noqa: ANN401  of JSON
    return str(value).replace("|", "\\|").replace("\n", " ")


def export_onnx(folder: str | Path, to: Path) -> None:
    """Write a classifier as one ONNX file, from input_ids, attention_mask (and token_type_ids) to logits.

    Number and length of the texts are free. The file is run and compared with the model before it takes its name.
    Weights above 2 GB lie beside it, in a file of the same name with ``.data`` behind it.

    Args:
        folder: The classifier's folder, or its hub id.
        to: The file, ``.onnx``.

    Raises:
        InputError: The packages for ONNX are missing, the folder is no classifier, or its model cannot be exported.
        RunError: The file does not compute what the model does.
    """
    if to.suffix != ".onnx":
        raise InputError(f"{to}: expected the name of a file that ends in .onnx")
    try:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'scalemine[onnx]'") from None
    classifier = load_classifier(folder, device="cpu")
    batches = [_onnx_batch(classifier, list(texts)) for texts in (_ONNX_CHECKED[:1], _ONNX_CHECKED[2:], _ONNX_CHECKED)]
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".") as temporary:
        path = Path(temporary) / to.name
        try:
            _write_onnx(classifier.model, batches[-1], path)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise InputError(f"{folder}: cannot be exported to ONNX: {first_line(error)}") from error
        worst = _onnx_difference(classifier.model, path, batches)
        if not worst <= _ONNX_TOLERANCE:
            raise RunError(f"{to}: not written, as its logits differ by {worst:.2g} from those of the model")
        for file in sorted(path.parent.iterdir(), reverse=True):  # the weights first, if they lie apart
            with write_whole(to.with_name(file.name)) as moved:
                file.replace(moved)


class _Logits(nn.Module):
    """A classifier with inputs by place, and its logits alone as output."""

    def __init__(self, model: Callable[..., Any], names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _onnx_batch(classifier: Classifier, texts: list[str]) -> Batch:
    tokens = classifier.tokenizer(texts, truncation=True, max_length=classifier.info["max_length"], verbose=False)
    return classifier._collate(tokens, range(len(texts)))


def _write_onnx(model: Any, batch: Batch, path: Path) -> None:  # noqa: ANN401
    num_bytes = sum(one.numel() * one.element_size() for one in model.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision, which nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(model, list(batch)).eval(),
            tuple(batch.values()),
            path,
            input_names=list(batch),
            output_names=["logits"],
            # Of variable positional arguments, so a tuple in a tuple.
            dynamic_shapes=(tuple({0: "batch", 1: "length"} for _ in batch),),
            dynamo=True,
            external_data=num_bytes > _ONNX_ONE_FILE_BYTES,
            verbose=False,
        )


@torch.inference_mode()
def _onnx_difference(model: Any, path: Path, batches: Sequence[Batch]) -> float:  # noqa: ANN401
    """Return by how much the logits of a file and of the model differ at most."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in batches:
        [logits_BC] = session.run(["logits"], {name: one.numpy() for name, one in batch.items()})
        differences.append(np.abs(logits_BC - model(**batch).logits.numpy()).max())
    return float(np.max(differences))  # NaN where there is one
