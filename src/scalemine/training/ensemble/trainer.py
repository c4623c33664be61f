"""Runs of ensembles: models that were trained without the same fold, and decide together on the tweets of it.

The members that a configuration describes are runs of their own, done first (see ``runs``), or found as they were done
before; what they predict is combined. Members that are folders were trained elsewhere, and are asked here.

Shapes: M members, N tweets, C labels.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalemine.config import SHARED_BY_MEMBERS, Config, InputError, TrainConfig
from scalemine.executor import ShowProgress, StopRequest, StopSignals, silent
from scalemine.store import RESULT, Workdir, file_sha256, fingerprint, read_json
from scalemine.training.ensemble.model import (
    LABELS,
    SPANS,
    check_member,
    combined,
    voted_tags,
    write_ensemble,
)
from scalemine.training.ensemble.voting import MAJORITY
from scalemine.training.family import (
    Data,
    Family,
    Trainer,
    chooser,
    described_chooser,
    encoder_name,
    remove_predictions,
    run_settings,
)
from scalemine.training.kept import FINE_TUNED, OTHERS, folder_of, kind_of, load_model, model_folder
from scalemine.training.multilabel.baseline_trainer import BaselineFamily
from scalemine.training.multilabel.data import LabelFamily, LabelSets, brief, judged_labels, read_predictions
from scalemine.training.multilabel.examples import Examples
from scalemine.training.runs import family_of, run_name
from scalemine.training.splits import Rows, Split
from scalemine.training.tagging.datasets import Dataset
from scalemine.training.tagging.metrics import surfaces
from scalemine.training.tagging.scoring import score_documents, write_predictions
from scalemine.training.tagging.trainer import TaggerFamily, rows_of, scored_documents

logger = logging.getLogger(__name__)

# What decides how the tweets of one file are dealt out.
_SPLIT_KEYS = ("folds", "fold_seed", "stratify", "group_by", "near_duplicate", "dev_share", "stop_on")
_FOLD = re.compile(r"-fold\d+$")


@dataclass(frozen=True, eq=False)
class Member:
    """A member that is trained.

    Args:
        family: Its kind of model.
        data: The ensemble's tweets, as it reads them.
    """

    family: Family
    data: Data[Any]


def gives_spans(config: Config) -> bool:
    """Return whether the members of an ensemble give spans; else they give labels.

    Raises:
        InputError: A folder holds no model.
    """
    if folders := _folders(config):
        return kind_of(_folder_of(folders[0], config, 0 if config.train.folds else None)) == "tagger"
    return all(one.train.is_tagger for one in config.members().values())


def _folders(config: Config) -> tuple[str, ...]:
    """Return the folders that are the members; none where members are trained."""
    return () if isinstance(config.ensemble.members, dict) else config.ensemble.members


def _folder_of(given: str, config: Config, fold: int | None) -> Path:
    """Return the folder of a member, or that of its run for a fold."""
    folder = Path(given)
    if fold is not None and not folder.exists():
        folder = folder.with_name(f"{folder.name}-fold{fold}")
    if not folder.exists():
        wanted = given if fold is None else f"{given} or {given}-fold{fold}"
        raise InputError(f"ensemble.members: no folder {wanted}; expected one that scalemine train wrote")
    return folder


class EnsembleFamily:
    """Ensembles; see ``family.Family``."""

    foreign_keys = frozenset(TrainConfig.model_fields) - SHARED_BY_MEMBERS

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def _inner(self, config: Config) -> Family:
        """Return the kind of model that reads tweets as all members do."""
        if _folders(config):
            return TaggerFamily() if gives_spans(config) else BaselineFamily()
        return family_of(next(iter(config.members().values())))

    def read(
        self,
        config: Config,
        *,
        signals: StopSignals | None = None,
        show: ShowProgress = silent,
        scratch: Path | None = None,
    ) -> Data[Any]:
        """Read the files, as each member reads them."""
        if _folders(config):
            return self._inner(config).read(config, signals=signals, show=show, scratch=scratch)
        self.members = {}
        for name, one in config.members().items():
            family = family_of(one)
            data = family.read(one, signals=signals, show=show, scratch=scratch)
            self.members[name] = Member(family, data)
        return next(iter(self.members.values())).data

    def rows(self, config: Config, data: Data[Any]) -> Rows:
        """Return the training tweets, as folds are made of them."""
        return self._inner(config).rows(config, data)

    def check_split(self, config: Config, data: Data[Any], split: Split) -> None:
        """Refuse a split that nothing can be learnt or judged on, and members that have seen what is held out."""
        self._inner(config).check_split(config, data, split)
        for given in _folders(config):
            _check_unseen(config, data, split, _folder_of(given, config, split.fold))

    def describe(self, data: Data[Any]) -> list[str]:
        """Return what was read, line by line."""
        family = LabelFamily() if isinstance(data.train, Examples) else TaggerFamily()
        return family.describe(data)

    def settings(self, config: Config) -> dict[str, Any]:
        """Return how members decide together, what they have of their own, and all else that they heed."""
        found = {"ensemble.combine": config.ensemble.combine, "ensemble.members": config.ensemble.members}
        keys = {key for one in config.members().values() for key in run_settings(one, family_of(one))}
        if _folders(config):
            keys = {"loss.unknown", *LabelFamily().settings(config)}
        values = config.model_dump()
        values["train"]["encoder"], values["train"]["revision"] = encoder_name(config)
        for key in keys - {"seed"}:
            section, inner = key.split(".")
            found[key] = values[section][inner]
        return dict(sorted(found.items()))

    def source(self, config: Config) -> str | None:
        """Return the hash of what the members read texts with, or of the folders that they are."""
        found: dict[str, Any] = {name: family_of(one).source(one) for name, one in config.members().items()}
        for given in _folders(config):
            for fold in range(config.train.folds) if config.train.folds else (None,):
                folder = model_folder(_folder_of(given, config, fold))
                for name in (OTHERS, FINE_TUNED, "model.safetensors"):
                    if (folder / name).exists():
                        found[str(folder / name)] = file_sha256(folder / name)
        return fingerprint(found)

    def trainer(self, config: Config, data: Data[Any], split: Split, folder: Path) -> Trainer:
        """Return what does one run."""
        kind = LabelEnsembleTrainer if isinstance(data.train, Examples) else SpanEnsembleTrainer
        return kind(config, data, split, folder)


def _check_unseen(config: Config, data: Data[Any], split: Split, folder: Path) -> None:
    """Refuse a model that has, or may have, seen the tweets that it is judged on.

    Raises:
        InputError: It has, or it is not known that it has not.
    """
    run = folder.parent if folder.name == "model" and (folder.parent / RESULT).exists() else folder
    if not (run / RESULT).exists() or not (run / "stage.json").exists():
        if split.fold is not None:
            raise InputError(
                f"ensemble.members: {folder}: no {RESULT} beside it, so it is not known which tweets it has seen; "
                f"name the folder of its run, or set train.folds=0"
            )
        logger.warning("%s: which tweets it has seen is not known; test sets are to be new to it", folder)
        return
    spec, inputs = read_json(run / RESULT)["spec"], read_json(run / "stage.json")["inputs"]
    judged = {f"train.test_uris.{name}": one for name, one in data.tests.items()}
    judged |= {"train.dev_uri": data.dev} if data.dev else {}
    for key, one in judged.items():
        if one.sha256 == inputs["train"]:
            raise InputError(f"ensemble.members: {folder}: was trained on {one.uri}, which is {key}; take other tweets")
    now = json.loads(json.dumps({key: getattr(config.train, key) for key in _SPLIT_KEYS}))
    is_same = inputs["train"] == data.train.sha256 and inputs["fold"] == split.fold
    is_same &= inputs["dev"] == (data.dev.sha256 if data.dev else None)
    differing = [key for key, value in now.items() if spec.get(f"train.{key}") != value]
    if is_same and not differing:
        return
    why = f"other train.{differing[0]}" if is_same else "another file or fold"
    if split.fold is not None:
        raise InputError(
            f"ensemble.members: {folder}: was trained on {why}, so it may have seen tweets of fold {split.fold}, "
            f"which is held out; train it with these folds, or set train.folds=0"
        )
    logger.warning("%s: was trained on %s, so it may have seen tweets of dev", folder, why)


class _EnsembleTrainer(ABC):
    """One run; see ``family.Trainer``."""

    is_main = True

    def __init__(self, config: Config, data: Data[Any], split: Split, folder: Path) -> None:
        self.config, self.data, self.split, self.folder = config, data, split, folder
        self.is_trained = not _folders(config)
        # Runs of this workdir, or folders of models.
        self.members: dict[str, Path] = self._runs() if self.is_trained else self._given()

    def _runs(self) -> dict[str, Path]:
        runs = Workdir(self.config.workdir.absolute()).runs
        return {
            name: runs / run_name(one, run_settings(one, family_of(one)), self.split)
            for name, one in self.config.members().items()
        }

    def _given(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for given in _folders(self.config):
            folder = _folder_of(given, self.config, self.split.fold)
            called = _FOLD.sub("", (folder.parent if folder.name == "model" else folder).resolve().name)
            called = re.sub(r"^\W+|[^\w.\-]", "-", called).lstrip(".-") or "member"
            found[called if called not in found else f"{called}-{len(found)}"] = folder
        return found

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """What came of the members' runs."""
        return {name: read_json(folder / RESULT) for name, folder in self.members.items()} if self.is_trained else {}

    @cached_property
    def models(self) -> dict[str, Any]:
        """The members that are folders, loaded."""
        return {} if self.is_trained else {name: load_model(folder) for name, folder in self.members.items()}

    def train(self, signals: StopRequest | None, show: ShowProgress) -> dict[str, Any]:  # noqa: ARG002
        """Look at the members, which were trained before."""
        started = time.monotonic()
        self.check_members()
        seconds = sum(result["seconds"] for result in self.results.values())
        return {"seconds": round(seconds + time.monotonic() - started, 3)}

    def check_members(self) -> None:
        """Refuse members that do not go together."""
        of, names = self.given
        for name, model in self.models.items():
            check_member(f"ensemble.members: {self.members[name]}", model, of, names)
        for name, result in self.results.items():
            assert result.get("labels", names) == list(names), name
            if not model_folder(self.members[name]).is_dir():  # an older version kept none of some
                run = self.members[name]
                raise InputError(f"ensemble.members: {name}: its run left no model ({run}); train it again with --redo")

    @property
    @abstractmethod
    def given(self) -> tuple[str, Sequence[str]]:
        """Whether labels or spans are given, and which."""

    def write_model(self, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write ``model/``."""
        info = {
            "version": importlib.metadata.version("scalemine"),
            "of": self.given[0],
            "combine": self.config.ensemble.combine,
            "training": {
                "file": Path(self.data.train.uri).name,
                "sha256": self.data.train.sha256,
                "tweets": len(self.split.train),
                "seed": self.config.seed,
                "fold": self.split.fold,
                "chosen_on": described_chooser(self.config),
                "seconds": facts["seconds"],
            },
        }
        members = {name: folder_of(folder) for name, folder in self.members.items()}
        write_ensemble(self.folder / "model", info | self.described(metrics), members)

    @abstractmethod
    def described(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ``model.json`` says of labels or spans."""

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        combine = self.config.ensemble.combine
        return {
            "words": f"{combine} of {', '.join(self.members)}",
            "members": {name: folder.name if self.is_trained else str(folder) for name, folder in self.members.items()},
            "epochs": 0,
            "best_epoch": 0,
            "chosen_on": described_chooser(self.config),
            "seconds": facts["seconds"],
            "device": "cpu",
        }

    def end(self) -> None:  # noqa: B027  there is nothing to end, for either kind
        """Do nothing: there is one process."""


class LabelEnsembleTrainer(_EnsembleTrainer):
    """Members that give labels."""

    def __init__(self, config: Config, data: Data[Examples], split: Split, folder: Path) -> None:
        super().__init__(config, data, split, folder)
        self.tweets = LabelSets(config, data, split)
        self.thresholds_C = np.full(len(self.tweets.labels), MAJORITY)

    @property
    def sets(self) -> Sequence[str]:
        """What the ensemble is scored on."""
        return self.tweets.names

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that members were trained on."""
        return self.tweets.rows(name)

    @property
    def given(self) -> tuple[str, Sequence[str]]:
        """The labels."""
        return LABELS, self.tweets.labels

    def _scores(self, name: str) -> NDArray[np.float32]:
        """Return the scores ``(N, C)`` of a set, of the members together."""
        if self.is_trained:
            paths = [folder / "predictions" / f"{name}.parquet" for folder in self.members.values()]
            of_members = [read_predictions(path)[2] for path in paths]
        else:
            examples, rows = self.tweets.of(name)
            texts = [text or "" for text in examples.values("text", rows)]
            of_members = [model.scores(texts) for model in self.models.values()]
        return self.tweets.in_order(
            combined(self.config.ensemble.combine, np.stack(of_members), self.thresholds_of_members)
        )

    @cached_property
    def thresholds_of_members(self) -> NDArray[np.float64]:
        """The least probability at which each member gives each label ``(M, C)``."""
        labels = self.tweets.labels
        if not self.is_trained:
            return np.array([[one.thresholds[label] for label in labels] for one in self.models.values()])
        scored = [result["metrics"][chooser(self.config)]["per_label"] for result in self.results.values()]
        return np.array([[of_label[label]["threshold"] for label in labels] for of_label in scored], np.float64)

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and write the predictions."""
        remove_predictions(self.folder, self.sets)
        scores = {name: self._scores(name) for name in self.sets}
        if self.config.ensemble.combine == "average":
            self.thresholds_C = self.tweets.thresholds(scores[chooser(self.config)])
        for name, scores_NC in scores.items():
            self.tweets.write_predictions(name, scores_NC, self.folder / "predictions" / f"{name}.parquet")
        return {name: self.tweets.score(name, of_set, self.thresholds_C) for name, of_set in scores.items()}

    def described(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return labels, thresholds, and how labelled files are read."""
        labels = list(self.tweets.labels)
        return {
            "labels": labels,
            "thresholds": dict(zip(labels, self.thresholds_C.tolist(), strict=True)),
            "nested": self.config.labels.nested,
            # As files of the same kind are to be read again.
            "reading": judged_labels(self.config.labels).model_dump(mode="json", exclude={"names", "nested"}),
            "priors": dict(zip(labels, self.tweets.priors.tolist(), strict=True)),
            "languages": self.tweets.languages(),
            "metrics": brief(metrics),
        }

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        return super().describe(facts) | {"labels": list(self.tweets.labels)}


class SpanEnsembleTrainer(_EnsembleTrainer):
    """Members that give spans."""

    def __init__(self, config: Config, data: Data[Dataset], split: Split, folder: Path) -> None:
        super().__init__(config, data, split, folder)
        self.train_documents = [data.train.documents[row] for row in split.train]
        self.documents = scored_documents(data, split)

    @property
    def sets(self) -> Sequence[str]:
        """What the ensemble is scored on."""
        return list(self.documents)

    def rows(self, name: str) -> Rows:
        """Return the tweets of a set, or those that members were trained on."""
        return rows_of(self.train_documents if name == "train" else self.documents[name])

    @property
    def given(self) -> tuple[str, Sequence[str]]:
        """The span types."""
        return SPANS, sorted(self.data.train.types)

    def evaluate(self) -> dict[str, Any]:
        """Return the scores on every set, and write the predictions."""
        remove_predictions(self.folder, self.sets)
        train = self.train_documents
        known = surfaces([one.tags for one in train], [one.words for one in train])
        metrics = {}
        for name, documents in self.documents.items():
            words = [document.words for document in documents]
            if self.is_trained:
                paths = [folder / "predictions" / f"{name}.parquet" for folder in self.members.values()]
                by_member = [pq.read_table(path, columns=["predicted"])["predicted"].to_pylist() for path in paths]
                cut = max(result["metrics"][name]["num_cut"] for result in self.results.values())
            else:
                by_member = [model.tag_words(words) for model in self.models.values()]
                cut = max(model.count_cut(words) for model in self.models.values())
            predicted = voted_tags(by_member)
            write_predictions(documents, predicted, self.folder / "predictions" / f"{name}.parquet")
            found = score_documents(
                documents, predicted, known_surfaces=known, num_bootstrap=self.config.train.bootstrap
            )
            metrics[name] = found | {"num_cut": cut}
        return metrics

    def described(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the span types."""
        keys = ("f1", "precision", "recall", "num_gold", "num_tweets", "false_alarms")
        brief_ones = {name: {key: one[key] for key in keys} for name, one in metrics.items()}
        return {"types": self.given[1], "metrics": brief_ones}

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be said of the run beside its scores."""
        return super().describe(facts) | {"train_cut": 0}
