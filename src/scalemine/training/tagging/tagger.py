"""A trained tagger as one folder: written by training, loaded anywhere, shared on a hub.

    tagger = Tagger.from_pretrained("work/crisis/runs/NAME/model")
    tagger.tag(["bus crashed into a shop, two hurt"])

The folder holds ``config.json`` (tags, layers, how words are read, hash of the training data), ``model.safetensors``
(the layers above the words), ``README.md`` (the card), ``metrics.json``, and where words come from: ``encoder/``, a
Hugging Face model with its tokeniser, or ``vectors.safetensors`` with ``vocabulary.json``. A frozen encoder that a
package or a hub provides is not copied but named, with the hash of its files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scalemine import bucket
from scalemine.config import InputError
from scalemine.models import (
    MODEL_FILES,
    device_name,
    find_model,
    first_line,
    is_path,
    model_fingerprint,
    precision_name,
)
from scalemine.store import FILE_MODE, read_json, write_json, write_whole
from scalemine.training.batches import BATCH_TOKENS, even_batches, prediction_batches, to_device
from scalemine.training.tagging.encoders import WordEncoder, load_transformer
from scalemine.training.tagging.labels import spans_of_tags, word_offsets
from scalemine.training.tagging.network import Shape, StaticWords, TaggerNetwork, TransformerWords
from scalemine.training.tagging.task import fill_up

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
ENCODER, VECTORS, VOCABULARY = "encoder", "vectors.safetensors", "vocabulary.json"
# Rises when the meaning of config.json changes.
FORMAT = 1
_WORDS = "words."


class TaggedSpan(NamedTuple):
    """A span that a tagger found.

    Args:
        start: First character, in the text as it was given.
        end: Behind its last character.
        type: Its type.
        text: Its characters.
        confidence: How probable the model holds exactly this span, from 0 to 1.
    """

    start: int
    end: int
    type: str
    text: str
    confidence: float


class Tagger(ModelHubMixin):  # type: ignore[misc]
    """A trained tagger; made by ``from_pretrained``.

    Args:
        network: The model, its words included.
        words: Where the words' vectors come from.
        config: What ``config.json`` holds.
    """

    def __init__(self, network: TaggerNetwork, words: WordEncoder, config: dict[str, Any]) -> None:
        self.network = network.eval()
        self.words = words
        self.config = config

    @property
    def types(self) -> list[str]:
        """The span types that it knows."""
        return sorted({tag[2:] for tag in self.network.tags if tag != "O"})

    def to(self, device: str) -> Tagger:
        """Move the model to a device."""
        self.network.to(device)
        return self

    @torch.inference_mode()
    def tag(self, texts: Sequence[str]) -> list[list[TaggedSpan]]:
        """Return the spans of some texts, in order of their place; those longer than is read give a warning.

        A text's spans are the same, to the last bit of their confidence, whatever the other texts.

        Raises:
            ValueError: ``texts`` is one text rather than several.
        """
        if isinstance(texts, str):
            raise ValueError("expected several texts, got one; give [text]")
        offsets = [word_offsets(text) for text in texts]
        filled = [row for row, of_text in enumerate(offsets) if of_text]
        inputs = self.words.read([[texts[row][start:end] for start, end in offsets[row]] for row in filled])
        if cut := sum(read < len(offsets[row]) for row, read in zip(filled, inputs.num_words, strict=True)):
            logger.warning("%d texts are longer than the tagger reads; beyond that no span is found", cut)
        found: list[list[TaggedSpan]] = [[] for _ in texts]
        device = self._device()
        for rows, count in even_batches(inputs.costs, BATCH_TOKENS[device.type]):
            batch = to_device(inputs.collate(rows, self.words.pad_id), device)
            tags_BL, confidences = self.network.decode_spans(batch, spans_of_tags)
            for row, path, of_row in zip(rows[:count], tags_BL[:count].tolist(), confidences[:count], strict=True):
                text, places = texts[filled[row]], offsets[filled[row]]
                names = [self.network.tags[tag] for tag in path[: inputs.num_words[row]]]
                for span, confidence in zip(spans_of_tags(names), of_row, strict=True):
                    start, end = places[span.start][0], places[span.end - 1][1]
                    found[filled[row]].append(TaggedSpan(start, end, span.type, text[start:end], confidence))
        return found

    @torch.inference_mode()
    def tag_words(self, texts: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the BIO tags of texts that are words already, one at least; "O" where words are not read."""
        inputs = self.words.read(texts)
        device = self._device()
        tags: list[list[str]] = [[] for _ in texts]
        for rows in prediction_batches(inputs.costs, BATCH_TOKENS[device.type]):
            tags_BL = self.network.decode(to_device(inputs.collate(rows, self.words.pad_id), device))
            for row, path in zip(rows, tags_BL.tolist(), strict=True):
                tags[row] = [self.network.tags[tag] for tag in path[: inputs.num_words[row]]]
        return fill_up(tags, texts)

    def count_cut(self, texts: Sequence[Sequence[str]]) -> int:
        """Return of how many texts not all words are read, as they are too long."""
        num_read = self.words.read(texts).num_words
        return sum(read < len(words) for read, words in zip(num_read, texts, strict=True))

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _save_pretrained(self, save_directory: Path) -> None:
        write_tagger(self.network, self.words, self.config, save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None, force_download: bool,
        local_files_only: bool, token: str | bool | None, config: dict[str, Any] | None = None, device: str = "auto",
    ) -> Tagger:  # fmt: skip
        folder = Path(model_id)
        if not folder.is_dir():
            patterns = [*MODEL_FILES, "*.md"]
            folder = Path(
                snapshot_download(
                    model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token, allow_patterns=patterns,
                )
            )  # fmt: skip
        return _load(cls, folder, device_name(device, key="device"))


def load_tagger(folder: str | Path, *, device: str = "auto") -> Tagger:
    """Load a tagger from its folder, or from a hub id.

    Raises:
        InputError: The folder is no tagger, or what it names is not there.
    """
    path = Path(folder)
    if path.is_dir() and not (path / CONFIG).exists() and (path / "model" / CONFIG).exists():
        path = path / "model"  # a run's folder
    if path.is_dir() and not (path / CONFIG).exists():
        raise InputError(f"{folder}: no tagger here (expected {CONFIG}; scalemine train writes it to runs/NAME/model)")
    if path.is_dir():
        return _load(Tagger, path, device_name(device, key="device"))
    if is_path(str(folder)):
        raise InputError(f"{folder}: no such folder (expected a tagger that scalemine train wrote, or a hub id)")
    try:
        return cast(Tagger, Tagger.from_pretrained(str(folder), device=device))
    except (OSError, HFValidationError) as error:
        raise InputError(f"{folder}: no tagger here, and the hub does not give it ({first_line(error)})") from None


def _load(cls: type[Tagger], folder: Path, device: str) -> Tagger:
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise InputError(f"{folder}: {CONFIG} is not JSON: {first_line(error)}") from None
    if not isinstance(config, dict) or config.get("scalemine") != "tagger":
        raise InputError(f"{folder}: {CONFIG} is not that of a tagger of scalemine")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder}: {CONFIG} has format {config.get('format')}, this version of scalemine reads {FORMAT}"
        )
    shape = Shape(**config["shape"])
    words = _load_words(folder, config, device)
    network = TaggerNetwork(shape, config["tags"], words.module)
    weights = _read_tensors(folder / WEIGHTS)
    expected = {name: one.shape for name, one in network.state_dict().items() if not name.startswith(_WORDS)}
    if {name: one.shape for name, one in weights.items()} != expected:
        raise InputError(f"{folder / WEIGHTS}: not the weights of this tagger; train it again")
    network.load_state_dict(weights, strict=False)
    return cls(network.to(device), words, config)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; train the tagger again") from None


def _load_words(folder: Path, config: dict[str, Any], device: str) -> WordEncoder:
    reading = config["word_source"]
    if reading["kind"] == "static":
        table_VD = _read_tensors(folder / VECTORS)["vectors_VD"]
        vocabulary = {word: row for row, word in enumerate(read_json(folder / VOCABULARY), start=1)}
        return WordEncoder(StaticWords(table_VD, frozen=True), None, vocabulary, reading)
    source = folder / ENCODER
    if reading["name"] is not None:
        source = find_model(reading["name"], reading["revision"], key=str(folder))
        if (got := model_fingerprint(source)) != reading["fingerprint"]:
            raise InputError(
                f"{folder}: trained on {reading['name']} with files {reading['fingerprint']}, but those here are {got}"
            )
    elif not source.is_dir():
        raise InputError(f"{folder}: holds no {ENCODER}/, of which its words come; copy the whole folder")
    return load_transformer(
        source,
        pooling=reading["pooling"],
        frozen=reading["frozen"],
        precision=precision_name(reading["precision"], device),
        max_length=reading["max_length"],
        normaliser_name=reading["normaliser"],
    )


def write_tagger(network: TaggerNetwork, words: WordEncoder, config: dict[str, Any], folder: Path) -> None:
    """Write a tagger's folder; ``config.json`` comes last, and without it there is no tagger."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(_WORDS)
    }
    with write_whole(folder / WEIGHTS) as path:
        save_file(state, path)
    if isinstance(words.module, StaticWords):
        assert words.vocabulary is not None
        with write_whole(folder / VECTORS) as path:
            save_file({"vectors_VD": words.module.table.weight.detach().cpu().contiguous()}, path)
        write_json(folder / VOCABULARY, list(words.vocabulary))
    elif config["word_source"]["name"] is None:
        assert isinstance(words.module, TransformerWords)
        assert words.tokenizer is not None
        words.module.transformer.save_pretrained(folder / ENCODER, safe_serialization=True)
        words.tokenizer.save(folder / ENCODER)
        for path in (folder / ENCODER).iterdir():
            path.chmod(FILE_MODE)
        bucket.push(folder / ENCODER)
    with write_whole(folder / CARD) as path:
        path.write_text(card(config), encoding="utf-8")
    write_json(folder / METRICS, config.get("metrics", {}))
    write_json(folder / CONFIG, config)


def card(config: dict[str, Any]) -> str:
    """Return the model card: what it is, on what it was trained, how good it is, and how to use it."""
    types = sorted({tag[2:] for tag in config["tags"] if tag != "O"})
    rows = [
        f"| {name} | {one['f1']:.4f} | {one['precision']:.4f} | {one['recall']:.4f} | {one['num_gold']} |"
        for name, one in config.get("metrics", {}).items()
    ]
    lines = [
        "---",
        "library_name: scalemine",
        "pipeline_tag: token-classification",
        "---",
        f"# {config['shape']['model']} tagger",
        "",
        f"Finds spans of {', '.join(types)} in tweets. Trained by scalemine {config['version']}.",
        "",
        f"- words: {config['word_source']['description']}",
        f"- training data: {config['training']['file']}, {config['training']['tweets']} tweets, sha256 "
        f"{config['training']['sha256']}",
        f"- epoch {config['training']['best_epoch']} of {config['training']['epochs']}, chosen on "
        f"{config['training']['chosen_on']}",
        f"- seed {config['training']['seed']}, fold {config['training']['fold']}",
        "",
        "| set | F1 | precision | recall | spans |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Exact spans, micro average, conlleval's convention.",
        "",
        "```python",
        "from scalemine import Tagger",
        "",
        'tagger = Tagger.from_pretrained("this folder or its hub id")',
        'tagger.tag(["bus crashed into a shop, two hurt"])',
        "```",
        "",
    ]
    return "\n".join(lines)
