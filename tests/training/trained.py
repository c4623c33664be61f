"""Small models of each kind as training leaves them: folders that can be loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from scalemine.config import BaselineConfig, EncoderConfig, TrainConfig
from scalemine.encoder import load_encoder
from scalemine.training.multilabel.baselines import fit_predict
from scalemine.training.multilabel.classifier import write_classifier
from scalemine.training.multilabel.embedding_features import EmbeddingFeatures, encoder_facts
from scalemine.training.multilabel.text_model import label_file, write_estimator, write_text_model
from scalemine.training.multilabel.word_features import WordFeatures
from scalemine.training.tagging import tagger
from scalemine.training.tagging.encoders import load_words
from scalemine.training.tagging.labels import tag_names
from scalemine.training.tagging.network import Shape, TaggerNetwork
from training.tiny import DIM, POSITIONS, VOCABULARY, write_bert, write_vectors

LABELS = ["fear", "joy"]
WORDS = ["fire", "water", "rising", "boat", "happy", "dance", "late", "bus", "roof", "kids"]


def write_words(folder: Path, name: str = "svm", normaliser: str = "rescue") -> Path:
    """Write a classical model on words."""
    texts = _texts()
    features = WordFeatures.fit(texts)
    options = BaselineConfig(features="tfidf")
    return _write_classical(folder, name, options, features, features.transform(texts), normaliser=normaliser)


def write_on_embeddings(folder: Path, name: str = "mlp") -> Path:
    """Write a classical model on the embeddings of a small encoder."""
    bert = write_bert(folder.with_name(f"{folder.name}-encoder"), num_hidden_layers=1)
    encoder = EncoderConfig(model=str(bert), device="cpu", precision="float32", max_length=16)
    vectors = load_encoder(encoder).encode_texts(_texts())
    features = EmbeddingFeatures.fit(name, vectors)
    facts = {"normaliser": "none", "encoder": encoder_facts(encoder)}
    return _write_classical(folder, name, BaselineConfig(), features, features.transform(vectors), **facts)


def _texts() -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, size=5)) for _ in range(120)]


def _write_classical(folder: Path, name: str, options: BaselineConfig, features, learnt, **facts) -> Path:
    targets = np.array([["fire" in text, "happy" in text] for text in _texts()], np.int8)
    fit_predict(
        name, options, learnt, targets, np.ones(len(targets)), {}, seed=3, jobs=1,
        keep=lambda label, model: write_estimator(model, folder / label_file(label)),
    )  # fmt: skip
    info = {
        "labels": LABELS, "model": name, "nested": [],
        "thresholds": {"fear": 0.4, "joy": 0.6}, "calibration": dict.fromkeys(LABELS, [1.0, 0.0]),
    }  # fmt: skip
    write_text_model(folder, info | facts, features, {})
    return folder


def write_fine_tuned(folder: Path, seed: int = 0) -> Path:
    """Write a classifier, untrained, whose scores vary with the text."""
    tokenizer = AutoTokenizer.from_pretrained(write_bert(folder.with_name(f"{folder.name}-encoder")))
    torch.manual_seed(seed)
    sizes = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    config = BertConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=POSITIONS, initializer_range=0.2, **sizes, **names
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5)
    info = {
        "version": "1", "thresholds": dict.fromkeys(LABELS, 0.5), "calibration": dict.fromkeys(LABELS, [1.0, 0.0]),
        "normaliser": "none", "max_length": 32, "nested": [], "languages": {}, "metrics": {},
        "training": {"file": "t.parquet", "tweets": 1, "sha256": "f" * 64, "seed": 42},
    }  # fmt: skip
    write_classifier(model, tokenizer, info, folder)
    return folder


def write_tagger(folder: Path, model: str = "lstm_crf", *, static: bool = False, seed: int = 0) -> Path:
    """Write a tagger, untrained, that finds many spans."""
    beside = folder.with_name(f"{folder.name}-words")
    source = {"vectors": str(write_vectors(beside, WORDS))} if static else {"encoder": str(write_bert(beside))}
    options = TrainConfig(**source, device="cpu", precision="float32", max_length=32)
    words = load_words(options, EncoderConfig(), [])
    torch.manual_seed(seed)
    shape = Shape(model, "fast", 6, 3, 0.4, words.module.dim)
    tags = tag_names(["place", "event"])
    network = TaggerNetwork(shape, tags, words.module)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("words."):
                parameter.normal_(0, 0.7)
    reading = {"kind": "static", "description": "for a test"}
    if not static:
        reading |= {
            "kind": "transformer", "name": None, "revision": None, "fingerprint": words.settings["train.weights"],
            "pooling": options.pooling, "normaliser": options.normaliser, "max_length": 32, "precision": "float32",
            "frozen": False,
        }  # fmt: skip
    training = {"file": "t", "sha256": "f" * 64, "tweets": 1, "seed": 1, "fold": 0, "epochs": 1, "best_epoch": 1}
    config = {
        "scalemine": "tagger", "format": tagger.FORMAT, "version": "1", "tags": tags, "shape": asdict(shape),
        "word_source": reading, "training": training | {"chosen_on": "dev"},
    }  # fmt: skip
    tagger.write_tagger(network.eval(), words, config, folder)
    return folder
