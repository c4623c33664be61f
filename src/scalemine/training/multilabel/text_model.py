"""A classical model, on words or on sentence embeddings, as one folder: written by training, loaded by its path.

    model = load_text_model("work/rescue/runs/NAME/model")
    model.predict(["water rising, need a boat, 77002"])

``model.json`` says all that is to be known: format, version, labels, model and its settings, normaliser, thresholds and
calibration by label, nested, training, metrics, versions of the libraries, and the hash of each further file; it is
written last. ``features.json`` holds the words (see ``word_features``) or how embeddings are read (see
``embedding_features``), ``label-N.skops`` the fitted estimator of label N, as skops writes it. That is no pickle:
arrays, and names of types, of which those alone are made that are expected here; no code of a file is run. An encoder
is not in the folder: ``model.json`` names it, with the hash of its weights.

Shapes: N texts, C labels.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from scalemine.config import BASELINES, InputError
from scalemine.models import first_line
from scalemine.store import file_sha256, read_json, write_json, write_whole
from scalemine.text import normaliser
from scalemine.training.kept import OTHERS, check_files, kind_of, model_folder, read_info
from scalemine.training.multilabel.baselines import Matrix, NearestTweets, probabilities
from scalemine.training.multilabel.calibration import Calibration, logits_of
from scalemine.training.multilabel.embedding_features import EmbeddingFeatures, load_text_encoder
from scalemine.training.multilabel.head import in_order, order
from scalemine.training.multilabel.label_model import LabelModel
from scalemine.training.multilabel.word_features import WordFeatures

Features: TypeAlias = WordFeatures | EmbeddingFeatures

FEATURES = "features.json"
WORDS, EMBEDDINGS = "words", "embeddings"
# Rises when the meaning of what model.json holds changes.
FORMAT = 1
# Beside scikit-learn's public estimators and numpy's arrays, which skops knows: what the models here are made of.
_TRUSTED = (
    f"{NearestTweets.__module__}.{NearestTweets.__qualname__}",
    "scipy.sparse._csr.csr_matrix",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",  # see _check_trees
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.tree._tree.Tree",  # see _check_trees
)
# Of what kind a label's estimator may be.
_ESTIMATORS = frozenset(
    {"RandomForestClassifier", "CalibratedClassifierCV", "BaggingClassifier", "DecisionTreeClassifier"}
    | {"LogisticRegression", "NearestTweets", "MultinomialNB", "MLPClassifier", "HistGradientBoostingClassifier"}
)
# Texts whose features are held at a time.
_TEXTS = 16_384
_ALONE = threading.Lock()


def label_file(label: int) -> str:
    """Return the name of the file of a label's estimator."""
    return f"label-{label}.skops"


def write_estimator(model: Any, path: Path) -> None:  # noqa: ANN401
    """Write a fitted estimator, compressed."""
    import skops.io

    # Only needed to go on with training, and three times the weights.
    for name in ("_optimizer", "_random_state"):
        model.__dict__.pop(name, None)
    with write_whole(path) as temporary:
        skops.io.dump(model, temporary, compression=zipfile.ZIP_DEFLATED, compresslevel=6)


def read_estimator(path: Path) -> Any:  # noqa: ANN401
    """Return a fitted estimator.

    Raises:
        InputError: The file holds none, or something that does not belong there; nothing of it was run.
    """
    import skops.io

    try:
        model = skops.io.load(path, trusted=list(_TRUSTED))
    # It is a file of anybody's, and what skops and scikit-learn make of damage is of many kinds.
    except Exception as error:  # noqa: BLE001
        raise InputError(f"{path}: not an estimator that can be read safely: {first_line(error)}") from None
    if type(model).__name__ not in _ESTIMATORS:
        raise InputError(f"{path}: holds a {type(model).__name__}, which is no estimator of a label")
    try:
        _check_parts(model)
        _check_trees(model, path)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged: {first_line(error)}") from None
    return model


def _check_parts(model: Any) -> None:  # noqa: ANN401
    """Refuse estimators inside others that do not belong there: their trees, too, would be followed blindly.

    Raises:
        ValueError: One does not.
    """
    inside = [one.estimator for one in getattr(model, "calibrated_classifiers_", [])]
    if strange := [type(one).__name__ for one in inside if type(one).__name__ not in ("SVC", "LinearSVC")]:
        raise ValueError(f"a calibrated {strange[0]}; expected a support vector machine")
    if getattr(model, "_preprocessor", None) is not None or getattr(model, "_in_fit", False):
        raise ValueError("boosting that rewrites its features")


def _check_trees(model: Any, path: Path) -> None:  # noqa: ANN401
    """Refuse trees that lead round in a circle or out of memory: scikit-learn follows them blindly.

    Raises:
        InputError: One does.
    """
    for tree in _trees(model):
        inner_N = np.flatnonzero(~tree.is_leaf_N)
        next_2N = np.stack([tree.left_N, tree.right_N])[:, inner_N].astype(np.int64)
        features_N = tree.feature_N[inner_N]
        leads_on = (next_2N > inner_N).all() and (next_2N < len(tree.left_N)).all()
        if not leads_on or ((features_N < 0) | (features_N >= tree.width)).any() or not len(tree.left_N):
            raise InputError(f"{path}: a tree leads to a node or a feature that is not there")


class _Tree(NamedTuple):
    """Where the nodes of a tree lead, and which of ``width`` features they look at."""

    is_leaf_N: NDArray[np.bool_]
    left_N: NDArray[Any]
    right_N: NDArray[Any]
    feature_N: NDArray[Any]
    width: int


def _trees(model: Any) -> Iterator[_Tree]:  # noqa: ANN401
    for one in [model] if hasattr(model, "tree_") else getattr(model, "estimators_", []):
        tree = one.tree_
        left_N = tree.children_left
        yield _Tree(left_N == -1, left_N, tree.children_right, tree.feature, one.n_features_in_)
    for one in (one for of_step in getattr(model, "_predictors", []) for one in of_step):
        nodes_N = one.nodes
        if nodes_N["is_categorical"].any():
            raise AttributeError("a tree of categories, and embeddings have none")
        yield _Tree(
            nodes_N["is_leaf"].astype(bool), nodes_N["left"], nodes_N["right"], nodes_N["feature_idx"],
            model.n_features_in_,
        )  # fmt: skip


def write_text_model(folder: Path, info: Mapping[str, Any], features: Features, priors: Mapping[int, float]) -> None:
    """Write what belongs to the estimators, which are there already; ``model.json`` comes last.

    Args:
        folder: Where.
        info: What ``model.json`` is to hold; format, kind, models and hashes are put in here. ``encoder`` is there for
            a model on embeddings.
        features: What the estimators read.
        priors: The labels that have no estimator, by place, and their probability.
    """
    write_json(folder / FEATURES, features.as_json())
    models: list[dict[str, Any]] = [
        {"probability": priors[label]} if label in priors else {"file": label_file(label)}
        for label in range(len(info["labels"]))
    ]
    names = [FEATURES, *(one["file"] for one in models if "file" in one)]
    hashes = {name: file_sha256(folder / name) for name in names}
    kind = WORDS if isinstance(features, WordFeatures) else EMBEDDINGS
    write_json(folder / OTHERS, {"format": FORMAT, "kind": kind} | dict(info) | {"models": models, "sha256": hashes})


class TextModel(LabelModel):
    """A trained classical model; made by ``load_text_model``.

    Args:
        info: What ``model.json`` holds.
        read: Gives the features that the models read of texts that are normalised.
        models: Of each label, the estimator or a probability.
    """

    def __init__(self, info: dict[str, Any], read: Callable[[Sequence[str]], Matrix], models: Sequence[Any]) -> None:
        self.info = info
        self._read = read
        self._models = models
        self._normalise = normaliser(info["normaliser"])
        pairs = [info["calibration"][label] for label in self.labels]
        self._calibration = Calibration(*(np.array(one, np.float64) for one in zip(*pairs, strict=True)))
        self._nesting = order(self.labels, info["nested"])

    def normalise(self, text: str) -> str:
        """Return a text as the model reads it; see ``LabelModel``."""
        return self._normalise(text)

    def scores_of_normalised(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probabilities ``(N, C)`` of texts that are normalised; see ``LabelModel``."""
        scores_NC = np.empty((len(texts), len(self.labels)), np.float32)
        for start in range(0, len(texts), _TEXTS):
            part = slice(start, start + _TEXTS)
            vectors_ND = self._read(texts[part])
            # Sums over a varying number of threads round differently; the limit is the process's.
            with _ALONE, threadpool_limits(1):
                for label, model in enumerate(self._models):
                    scores_NC[part, label] = probabilities(model, vectors_ND)
        return in_order(self._calibration.apply(logits_of(scores_NC)), self._nesting)


def load_text_model(folder: str | Path, *, device: str = "auto") -> TextModel:
    """Load a classical model from its folder, or from the folder of the run that wrote it.

    Args:
        folder: The folder.
        device: Of the encoder, where there is one.

    Raises:
        InputError: There is none, it is damaged, a file holds what does not belong there, or the encoder is not here.
    """
    path = model_folder(folder)
    kind = EMBEDDINGS if kind_of(path) == EMBEDDINGS else WORDS
    info = read_info(path, kind, FORMAT, _check_info)
    check_files(path, info["sha256"])
    models = [
        float(one["probability"]) if "probability" in one else read_estimator(path / one["file"])
        for one in info["models"]
    ]
    try:
        values = read_json(path / FEATURES)
        features = WordFeatures.from_json(values) if kind == WORDS else EmbeddingFeatures.from_json(values)
        width = features.width
        for one in models:
            if not isinstance(one, float) and _width(one) != width:
                raise ValueError(f"an estimator reads {_width(one)} features, and {FEATURES} has {width}")
        if isinstance(features, WordFeatures):
            return TextModel(info, features.transform, models)
        encode, prepare = load_text_encoder(info["encoder"], str(path), width, device=device), features.transform
        return TextModel(info, lambda texts: prepare(encode(texts)), models)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged: {first_line(error)}") from None


def _width(model: Any) -> int:  # noqa: ANN401
    found = model.nearest if isinstance(model, NearestTweets) else model
    return int(found.n_features_in_)


def _check_info(info: Mapping[str, Any]) -> None:
    labels, models = info["labels"], info["models"]
    normaliser(info["normaliser"])
    if info["model"] not in BASELINES:
        raise ValueError(f"model: unknown: {info['model']!r}")
    if not labels or len(set(labels)) < len(labels) or not len(labels) == len(models) == len(info["thresholds"]):
        raise ValueError(f"{len(labels)} labels, {len(models)} models, {len(info['thresholds'])} thresholds")
    if not all(isinstance(info["thresholds"][label], float | int) for label in labels):
        raise ValueError(f"thresholds: expected numbers, got {info['thresholds']}")
    for label, one in enumerate(models):
        if "probability" in one and not 0 <= float(one["probability"]) <= 1:
            raise ValueError(f"models: {one['probability']} is no probability")
        if "probability" not in one and one["file"] != label_file(label):
            raise ValueError(f"models: expected {label_file(label)}, got {one['file']!r}")
    # All that is read has a hash, and nothing else is read.
    if set(info["sha256"]) != {FEATURES, *(one["file"] for one in models if "file" in one)}:
        raise ValueError(f"sha256: expected a hash for each file, got {', '.join(info['sha256'])}")
