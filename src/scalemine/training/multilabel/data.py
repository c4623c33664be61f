"""What runs of classifiers and of classical baselines have in common: labelled tweets, splits, decisions and scores.

Shapes: N tweets, C labels.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import Config, InputError, LabelsConfig
from scalemine.executor import Executor, ShowProgress, StopSignals, make_executor, silent
from scalemine.shards import matrix
from scalemine.store import Workdir, write_whole
from scalemine.training.family import DEV, HELD_OUT, Data, chooser, find_files
from scalemine.training.multilabel.calibration import MIN_POSITIVES, Calibration, best_thresholds, fit_calibration
from scalemine.training.multilabel.examples import (
    IS_NEGATIVE,
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    Examples,
    TokeniserSpec,
    check_labels,
    check_same_labels,
    read_examples,
)
from scalemine.training.multilabel.head import Nesting, in_order, order
from scalemine.training.multilabel.scores import score_labels
from scalemine.training.splits import Rows, Split

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

LANGUAGES = ("lang", "language")
_DEFAULT_THRESHOLD = 0.5
# The share of tweets that may contradict the order of nested labels: labels are noisy.
_CONTRADICTIONS = 0.1


def judged_labels(config: LabelsConfig) -> LabelsConfig:
    """Return how the labels of tweets are read that a model is judged on: all of them are known."""
    return config.model_copy(update={"absent": "negative"})


def read_label_data(
    config: Config,
    tokenise: TokeniserSpec | None,
    *,
    signals: StopSignals | None,
    show: ShowProgress,
    encode: Callable[..., Examples] | None = None,
    scratch: Path | None = None,
) -> Data[Examples]:
    """Read the labelled tweets that a configuration trains on, chooses the epoch on, and is tested on.

    Args:
        config: The configuration.
        tokenise: How to tokenise; None: no tokens.
        signals: A request to stop.
        show: Shows progress.
        encode: Adds the vectors of a frozen encoder.
        scratch: Where imported tweets, targets and tokens go; None: into the workdir.

    Raises:
        InputError: A file or column is not there, a value is not what it should be, or labels do not fit.
    """
    files = find_files(config)
    folder = scratch or Workdir(config.workdir.absolute()).examples
    keep = (*files.keep, *LANGUAGES)
    wants_gpu = encode is not None and config.train.device != "cpu"
    with _executor_on_demand(config, signals or StopSignals(), wants_gpu=wants_gpu) as executor:
        # Where only positives are known nothing can be judged.
        judged = judged_labels(config.labels)

        def read(uri: str, key: str, labels: LabelsConfig = judged, **how: Any) -> Examples:  # noqa: ANN401
            with show(f"read {Path(uri).stem}", None) as shown:

                def on_rows(rows: int) -> None:
                    if signals is not None:
                        signals.raise_if_requested()
                    shown(rows)

                examples = read_examples(
                    uri, labels, folder, executor=executor, keep=keep, key=key, tokenise=tokenise,
                    on_rows=on_rows, **how,
                )  # fmt: skip
            if encode is None:
                return examples
            with show(f"encode {Path(uri).stem}", examples.num_rows) as advance:
                return encode(examples, executor=executor, on_rows=advance)

        train = read(files.train, files.train_key, config.labels, needs=files.needs)
        check_labels(train, files.train_key)
        check_nested(train, config.labels, files.train_key)
        dev = read(files.dev, "train.dev_uri", names=train.labels) if files.dev else None
        tests = {name: read(uri, f"train.test_uris.{name}", names=train.labels) for name, uri in files.tests.items()}
    check_columns(config, train, [*([dev] if dev else []), *tests.values()], files.train_key)
    others = {f"train.test_uris.{name}": one for name, one in tests.items()}
    if config.labels.names is None and config.train.unseen_types == "refuse":
        check_same_labels(train, others | ({"train.dev_uri": dev} if dev else {}))
    return Data(train, dev, tests)


@contextlib.contextmanager
def _executor_on_demand(config: Config, signals: StopSignals, *, wants_gpu: bool) -> Iterator[Callable[[], Executor]]:
    """Give what starts the executor once it is asked for: Ray takes seconds, and there may be nothing to do."""
    with contextlib.ExitStack() as stack:

        @cache
        def executor() -> Executor:
            return stack.enter_context(make_executor(config.compute, signals=signals, wants_gpu=wants_gpu))

        yield executor


class LabelFamily:
    """What classifiers and classical baselines say alike; see ``family.Family``."""

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,
        show: ShowProgress = silent,
        scratch: Path | None = None,
    ) -> Data[Examples]:
        """Read the files; their texts are not tokenised."""
        return read_label_data(config, None, signals=signals, show=show, scratch=scratch)

    def rows(self, config: Config, data: Data[Examples]) -> Rows:  # noqa: ARG002
        """Return the training tweets, as folds are made of them."""
        return data.train.rows()

    def check_split(self, config: Config, data: Data[Examples], split: Split) -> None:
        """Refuse a split without a known positive to learn from, or to choose the epoch by."""
        if data.dev is not None and not (data.dev.targets_of() == POSITIVE).any():
            raise InputError(f"train.dev_uri: {data.dev.uri}: no tweet bears a label, so it cannot choose the epoch")
        chooses = split.held_out if config.train.stop_on == "test" else split.dev
        for what, rows in (("to train on", split.train), ("to choose the epoch on", chooses)):
            if len(rows) and not (data.train.targets_of(rows) == POSITIVE).any():
                raise InputError(
                    f"train.folds: {data.train.uri}, fold {split.fold}: no tweet {what} bears a label; take another "
                    f"train.dev_share, train.fold_seed or number of folds"
                )

    def describe(self, data: Data[Examples]) -> list[str]:
        """Return what was read, line by line."""
        lines = []
        for name, examples in {"train": data.train, **({"dev": data.dev} if data.dev else {}), **data.tests}.items():
            targets_NC = examples.targets_of()
            unknown = f", {(targets_NC == UNKNOWN).mean():.1%} unknown" if (targets_NC == UNKNOWN).any() else ""
            lines.append(
                f"{name}: {examples.num_rows:,} tweets, {len(examples.labels)} labels, "
                f"{(targets_NC == POSITIVE).sum(1).mean():.2f} a tweet{unknown}"
            )
        return lines

    def settings(self, config: Config) -> dict[str, Any]:
        """Return what the labels mean; where they are is in the hash of what was read."""
        labels = config.labels.model_dump(include={"nested", "select", "calibration", "threshold"})
        return {f"labels.{key}": value for key, value in labels.items()}


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The tweets of one run: those to train on, and the sets that it is scored on."""

    config: Config
    data: Data[Examples]
    split: Split

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, C of them."""
        return self.data.train.labels

    @property
    def names(self) -> list[str]:
        """The sets that the model is scored on."""
        return [name for name in (DEV, HELD_OUT, *self.data.tests) if len(self.of(name)[1])]

    def of(self, name: str) -> tuple[Examples, NDArray[np.int64]]:
        """Return in which file a set is, and its rows there; ``train`` are the tweets to train on."""
        if name in self.data.tests:
            return self.data.tests[name], np.arange(self.data.tests[name].num_rows)
        if name == DEV and self.data.dev is not None:
            return self.data.dev, np.arange(self.data.dev.num_rows)
        split = self.split
        return self.data.train, {"train": split.train, DEV: split.dev, HELD_OUT: split.held_out}[name]

    def targets(self, name: str) -> NDArray[np.int8]:
        """Return the targets ``(N, C)`` of a set."""
        examples, rows = self.of(name)
        return examples.targets_of(rows)

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set."""
        examples, rows = self.of(name)
        return examples.rows(rows)

    @property
    def nesting(self) -> Nesting | None:
        """The order of nested labels."""
        return nesting_of(self.labels, self.config.labels)

    @cached_property
    def priors(self) -> NDArray[np.float64]:
        """The share of positives of each label, where it is known: in training, or on dev if only positives are."""
        targets_NC = self.targets("train")
        if not (targets_NC == NEGATIVE).any():
            targets_NC = self.targets(chooser(self.config))
        known_C = (targets_NC != UNKNOWN).sum(0)
        return np.asarray((targets_NC == POSITIVE).sum(0) / np.maximum(known_C, 1), np.float64)

    def _targets_to_decide_by(self) -> NDArray[np.int8]:
        """Return the targets ``(N, C)`` of what chose the epoch, where mined and random negatives count as such.

        Without them, thresholds would be those of a world in which every tweet bears a label.
        """
        targets_NC = self.targets(chooser(self.config))
        if self.config.loss.unknown == "negative":
            targets_NC[(targets_NC == UNKNOWN).all(axis=1)] = NEGATIVE
        return targets_NC

    def calibrate(self, logits_NC: Floats) -> Calibration:
        """Return how logits become probabilities, fitted on what chose the epoch."""
        name = chooser(self.config)
        groups = self.nesting.components if self.nesting else None
        found = fit_calibration(logits_NC, self._targets_to_decide_by(), self.config.labels.calibration, groups=groups)
        as_is = (found.slope_C == 1) & (found.offset_C == 0)
        if self.config.labels.calibration != "none" and as_is.any():
            few = ", ".join(label for label, one in zip(self.labels, as_is, strict=True) if one)
            logger.warning("not calibrated, as %s has too few tweets with or without them: %s", name, few)
        return found

    def thresholds(self, scores_NC: Floats) -> NDArray[np.float64]:
        """Return from which probability each label is given ``(C,)``, fitted on what chose the epoch."""
        wanted = self.config.labels.threshold
        if wanted != "best":
            return np.full(len(self.labels), float(wanted))
        targets_NC = self._targets_to_decide_by()
        thresholds_C = best_thresholds(targets_NC, scores_NC, default=_DEFAULT_THRESHOLD)
        numbers = (targets_NC == POSITIVE).sum(0)
        rare = ", ".join(label for label, n in zip(self.labels, numbers, strict=True) if n < MIN_POSITIVES)
        if rare:
            name = chooser(self.config)
            logger.warning("%s has fewer than %d tweets with %s: they share a threshold", name, MIN_POSITIVES, rare)
        if nesting := self.nesting:  # who is given an inner label is given the outer ones
            for label in nesting.inner_first:
                thresholds_C[label] = min(thresholds_C[[label, *nesting.inner[label]]])
        return thresholds_C

    def in_order(self, scores_NC: Floats) -> Floats:
        """Return probabilities none of whose outer labels is below an inner one."""
        return in_order(scores_NC, self.nesting)

    def score(self, name: str, scores_NC: Floats, thresholds_C: NDArray[np.float64]) -> dict[str, Any]:
        """Return the scores of the probabilities of a set."""
        examples, rows = self.of(name)
        groups = {one: examples.values(one, rows) for one in self.config.labels.groups if one in examples.columns}
        return score_labels(
            examples.targets_of(rows), scores_NC, self.labels, prior_C=self.priors, thresholds_C=thresholds_C,
            negative_N=examples.negative(rows), groups=groups, num_bootstrap=self.config.train.bootstrap,
            seed=self.config.seed,
        )  # fmt: skip

    def write_predictions(self, name: str, scores_NC: Floats, path: Path) -> None:
        """Write the probabilities of a set: id, whether it is a negative, target and score of each label, in order."""
        examples, rows = self.of(name)
        width = len(self.labels)
        columns = {
            "id": pa.array(examples.ids_of(rows.tolist())),
            IS_NEGATIVE: pa.array(examples.negative(rows)),
            "targets": pa.FixedSizeListArray.from_arrays(pa.array(examples.targets_of(rows).reshape(-1)), width),
            "scores": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(scores_NC).reshape(-1)), width),
        }
        table = pa.table(columns).replace_schema_metadata({"labels": "\n".join(self.labels)})
        with write_whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def languages(self) -> dict[str, int]:
        """Return how many training tweets are in each language, where a column says it."""
        examples, rows = self.of("train")
        for name in LANGUAGES:
            if name in examples.columns:
                counts = Counter(value for value in examples.values(name, rows) if value)
                return dict(counts.most_common())
        return {}


def nesting_of(labels: Sequence[str], config: LabelsConfig) -> Nesting | None:
    """Return the order of nested labels, or None where there is none.

    Raises:
        InputError: A chain names a label that is not there, or chains contradict one another.
    """
    if not config.nested:
        return None
    try:
        return order(labels, config.nested)
    except ValueError as error:
        raise InputError(f"labels.nested: {error}") from None


def check_nested(examples: Examples, config: LabelsConfig, key: str) -> None:
    """Refuse an order of labels that the tweets contradict.

    Raises:
        InputError: Of the tweets with an inner label more than a tenth lack the outer one, or the order is none.
    """
    nesting = nesting_of(examples.labels, config)
    targets_NC = examples.targets_of() if nesting else np.empty((0, 0), np.int8)
    pairs = [(outer, inner) for outer, found in enumerate(nesting.inner if nesting else ()) for inner in found]
    for outer, inner in pairs:
        has_inner_N = targets_NC[:, inner] == POSITIVE
        lacking = int((has_inner_N & (targets_NC[:, outer] == NEGATIVE)).sum())
        said = (
            f"{key}: {examples.uri}: {lacking} of {int(has_inner_N.sum())} tweets with {examples.labels[inner]!r} are "
            f"without {examples.labels[outer]!r}, which labels.nested says it implies"
        )
        if lacking > _CONTRADICTIONS * has_inner_N.sum():
            raise InputError(f"{said}; write chains from inner to outer, or leave the chain out")
        if lacking:
            logger.warning("%s", said)


def check_columns(config: Config, train: Examples, others: Sequence[Examples], key: str) -> None:
    """Refuse names of columns that no file has.

    Raises:
        InputError: One is.
    """
    for name in config.labels.groups:
        if not any(name in examples.columns for examples in (train, *others)):
            raise InputError(
                f"labels.groups: no file has a column {name}; {train.uri} has {', '.join(train.corpus.columns)}"
            )
    weight = config.labels.weight
    if weight != LabelsConfig().weight and weight not in train.corpus.columns:
        raise InputError(f"labels.weight: {key}: {train.uri} has no column {weight}")


def read_predictions(path: Path) -> tuple[list[str], NDArray[np.int8], Floats]:
    """Return the labels, targets ``(N, C)`` and scores ``(N, C)`` in a file of predictions."""
    table = pq.read_table(path)
    labels = table.schema.metadata[b"labels"].decode().split("\n")
    return labels, matrix(table["targets"])[0], matrix(table["scores"])[0]


def brief(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card says of the scores: all but the groups."""
    return {name: {key: value for key, value in one.items() if key != "groups"} for name, one in metrics.items()}
