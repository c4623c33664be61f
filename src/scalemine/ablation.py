"""What a feature of the text is worth: positives lose it, share by share, and models are trained anew.

Of the positives that have the feature, a share loses it, and all else stays: the tweets, their labels, their folds.
Which lose it hangs on the seed and the id alone, and those that lose it at 10 % lose it at 20 %, too. As published, the
tweets of the held-out fold lose it as well.

Shapes: N tweets.

Source: Wang et al. 2022, section 4.2 and table 2 (rescue requests without their ZIP code).
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

from scalemine.config import Config, InputError
from scalemine.executor import ShowProgress, StopSignals, silent
from scalemine.filtering import check_pattern
from scalemine.frozen import embed_examples
from scalemine.mining.sampling import priorities, row_keys
from scalemine.sources import ID_NAMES, TEXT_NAMES
from scalemine.store import Stage, Workdir, open_stage, write_json, write_whole
from scalemine.training.comparison import fold_test
from scalemine.training.family import Data, Family
from scalemine.training.multilabel.examples import POSITIVE, Examples
from scalemine.training.runs import Prepared, family_of, run_split, splits_of, write_results
from scalemine.training.splits import Split

logger = logging.getLogger(__name__)

MEASURES: Final = ("precision", "recall", "accuracy", "f1")
VERSION = 1
_HALF = 0.5
_NUM_GROUPS = 2


@dataclass(frozen=True)
class GroupTest:
    """Whether scores of two groups differ, majority minus minority; what cannot be told is None.

    Args:
        majority: Mean where most of the positives still have the feature.
        minority: Mean where few do.
        t: Statistic of Student's t-test for two independent samples of equal variance.
        p: Its p, two-sided.
        num_majority: Values in the group.
        num_minority: And in the other.
    """

    majority: float
    minority: float
    t: float | None
    p: float | None
    num_majority: int
    num_minority: int


def group_test(majority: Sequence[float], minority: Sequence[float]) -> GroupTest:
    """Return the published test: shares are taken for independent samples, though they share tweets and folds.

    Raises:
        ValueError: A group is empty.

    Source: Wang et al. 2022, section 4.2: its t = 2.902 and p = 0.027 are those of this test on the recall of the best
    models in table 2, with four values in each group.
    """
    if not (majority and minority):
        raise ValueError("a group is empty")
    t = p = None
    if len(majority) + len(minority) > _NUM_GROUPS and len({*majority}) + len({*minority}) > _NUM_GROUPS:
        found = stats.ttest_ind(majority, minority)
        t, p = float(found.statistic), float(found.pvalue)
    means = statistics.fmean(majority), statistics.fmean(minority)
    return GroupTest(*means, t, p, len(majority), len(minority))


def altered_rows(ids: Sequence[str], share: float, seed: int) -> NDArray[np.int64]:
    """Return which of some rows lose the feature at a share, in rising order; a larger share's hold a smaller one's."""
    order_N = np.argsort(priorities(row_keys(ids), seed, "ablation"), kind="stable")
    return np.sort(order_N[: round(share * len(ids))])


def without(texts: Sequence[str], pattern: str, replacement: str) -> list[str]:
    """Return texts without what a pattern of RE2 finds; one that would be empty then stays as it is."""
    found: list[str] = pc.replace_substring_regex(pa.array(texts, pa.string()), pattern, replacement).to_pylist()
    return [after if after.strip() else before for before, after in zip(texts, found, strict=True)]


@dataclass(frozen=True, eq=False)
class _Tagged:
    """The positives that have the feature.

    Args:
        examples: The labelled tweets.
        label: Whose positives.
        num_positives: How many positives there are in all.
        ids: Of those with the feature.
        texts: By id, what is left without it.
    """

    examples: Examples
    label: str
    num_positives: int
    ids: list[str]
    texts: dict[str, str]


def run_ablation(
    config: Config, *, signals: StopSignals | None = None, show: ShowProgress = silent, redo: bool = False
) -> dict[str, Any]:
    """Train with every share of positives altered, in the same folds; return what came out, as in ablation.json.

    Runs that are finished are found, so that a call goes on where another was stopped.

    Raises:
        InputError: The configuration or the data is wrong.
        RunError: A run failed.
        Stopped: A signal asked for it.
    """
    _check(config)
    family = family_of(config)
    whole = _read(config, family, signals, show)
    prepared = Prepared(family, whole, splits_of(config, family, whole))
    tagged = _find_tagged(config, prepared.data.train)
    stage = _open(config, prepared.data.train, tagged, redo=redo)
    logger.info("%s of %s positives have the feature", f"{len(tagged.ids):,}", f"{tagged.num_positives:,}")
    points = [_point(tagged, 0.0, _train(config, prepared, tagged, signals, show, redo))]
    for share in config.ablation.shares:
        altered = [tagged.ids[row] for row in altered_rows(tagged.ids, share, config.seed)]
        uri = _write_altered(config, stage, share, {id_: tagged.texts[id_] for id_ in altered})
        train = config.train.model_copy(update={"train_uri": str(uri), "name": None})
        one = config.model_copy(update={"train": train})
        data = _read(one, family, signals, show)
        splits = [_moved(split, prepared.data.train, data.train) for split in prepared.splits]
        # What folds share with one another was found before, on the tweets as they are.
        results = _train(one, Prepared(family, data, splits, prepared.leaks), tagged, signals, show, redo)
        points.append(_point(tagged, share, results))
    found = _summary(config, tagged, points)
    write_json(stage.folder / "ablation.json", found)
    return found


def _check(config: Config) -> None:
    """Refuse what cannot be ablated before anything is read."""
    if not config.ablation.pattern:
        raise InputError("ablation.pattern: missing; give a regular expression of what positives are to lose")
    check_pattern(config.ablation.pattern, "ablation.pattern")
    train = config.train
    if train.is_tagger:
        raise InputError(f"train.model: {train.model} reads spans, whose places would move; take a classifier")
    if train.folds < 2:  # noqa: PLR2004
        raise InputError(f"train.folds: an ablation compares folds; expected at least 2, got {train.folds}")
    if train.train_uri is None or Path(train.train_uri).suffix != ".parquet" or not Path(train.train_uri).is_file():
        raise InputError(f"train.train_uri: an ablation rewrites a Parquet file; got {train.train_uri}")


def _read(config: Config, family: Family, signals: StopSignals | None, show: ShowProgress) -> Data[Examples]:
    for one in config.trained:
        if one.reads_embeddings:
            embed_examples(one, signals=signals or StopSignals(), show=show)
    found: Data[Examples] = family.read(config, signals=signals, show=show)
    return found


def _find_tagged(config: Config, examples: Examples) -> _Tagged:
    """Return the positives with the feature.

    Raises:
        InputError: The label is not one of those learnt, or has no positive with the feature.
    """
    options = config.ablation
    label = options.label or (examples.labels[0] if len(examples.labels) == 1 else None)
    if label not in examples.labels:
        raise InputError(f"ablation.label: expected one of {', '.join(examples.labels)}; got {label}")
    rows = np.flatnonzero(examples.targets_of()[:, examples.labels.index(label)] == POSITIVE)
    texts = [text or "" for text in examples.values("text", rows)]
    left = without(texts, options.pattern, options.replacement)
    has = [place for place, text in enumerate(texts) if left[place] != text]
    if len(has) < len(options.shares):
        raise InputError(
            f"ablation.pattern: {len(has)} of {len(rows)} tweets with {label!r} have {options.pattern!r}; too few for "
            f"{len(options.shares)} shares"
        )
    ids = examples.ids_of(rows[has])
    return _Tagged(examples, label, len(rows), ids, dict(zip(ids, (left[place] for place in has), strict=True)))


def _open(config: Config, examples: Examples, tagged: _Tagged, *, redo: bool) -> Stage:
    options = config.ablation
    settings: dict[str, Any] = {"ablation.pattern": options.pattern, "ablation.replacement": options.replacement}
    settings |= {"ablation.label": tagged.label, "seed": config.seed}
    folder = Workdir(config.workdir.absolute()).ablation
    return open_stage(folder, version=VERSION, settings=settings, inputs={"train": examples.sha256}, redo=redo)


def _write_altered(config: Config, stage: Stage, share: float, texts: dict[str, str]) -> Path:
    """Write the training tweets, some with other texts, and return the file."""
    path = stage.file(f"share-{100 * share:g}.parquet")
    if stage.manifest(path) is not None:
        return path
    assert config.train.train_uri is not None
    table = pq.read_table(config.train.train_uri)
    names = table.column_names
    text_name = config.labels.text or next(name for name in TEXT_NAMES if name in names)
    id_names = tuple(name for name in ID_NAMES if name in names)[:1] if config.labels.id is None else config.labels.id
    if not id_names:
        raise InputError(
            f"labels.id: an ablation finds tweets by their ids; expected a column of them, got none in {names}"
        )
    ids = [":".join(map(str, values)) for values in zip(*(table[name].to_pylist() for name in id_names), strict=True)]
    old = table[text_name].to_pylist()
    new = pa.array(
        [texts.get(id_, text) for id_, text in zip(ids, old, strict=True)], table.schema.field(text_name).type
    )
    with write_whole(path) as temporary:
        pq.write_table(table.set_column(names.index(text_name), text_name, new), temporary, compression="zstd")
    stage.commit(path, share=share, altered=len(texts))
    return path


def _moved(split: Split, before: Examples, now: Examples) -> Split:
    """Return a split of the same tweets in a file whose import put them in another order."""
    row_of = {id_: row for row, id_ in enumerate(now.ids_of(np.arange(now.num_rows)))}
    if len(row_of) != before.num_rows:
        raise InputError(f"labels.id: {before.num_rows} tweets of {before.uri} and {len(row_of)} of {now.uri} have ids")
    parts: dict[str, Any] = {}
    for part in ("train", "dev", "held_out"):
        rows = getattr(split, part)
        parts[part] = np.array([row_of[id_] for id_ in before.ids_of(rows)], np.int64) if len(rows) else rows
    return replace(split, **parts)


def _train(
    config: Config,
    prepared: Prepared,
    tagged: _Tagged,
    signals: StopSignals | None,
    show: ShowProgress,
    redo: bool,
) -> list[dict[str, Any]]:
    """Return, fold by fold, how a share's models score on the held-out fold."""
    found = []
    for split in prepared.splits:
        if signals is not None:
            signals.raise_if_requested()
        result = run_split(config, prepared, split, signals=signals, show=show, redo=redo)
        scores = result["metrics"]["held_out"]
        of_label = scores["per_label"][tagged.label]
        accuracy = scores["accuracy"] if len(scores["per_label"]) == 1 else None
        found.append(
            {"run": result["name"], "fold": split.fold, "accuracy": accuracy}
            | {key: of_label[key] for key in ("precision", "recall", "f1")}
        )
    write_results(Workdir(config.workdir.absolute()))
    return found


def _point(tagged: _Tagged, share: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is to be said of one share."""
    num_tagged = len(tagged.ids) - round(share * len(tagged.ids))
    point: dict[str, Any] = {"share": share, "tagged": num_tagged, "tagged_of_all": num_tagged / tagged.num_positives}
    point["group"] = None if share == _HALF else "majority" if share < _HALF else "minority"
    for measure in MEASURES:
        values = [run[measure] for run in runs if run[measure] is not None]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            point[measure] = {"mean": statistics.fmean(values), "sd": sd}
    return point | {"runs": runs}


def _summary(config: Config, tagged: _Tagged, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the points with the comparison of their groups; the unaltered tweets are of neither, as published."""
    groups = {name: [one for one in points[1:] if one["group"] == name] for name in ("majority", "minority")}
    tests = {}
    for measure in MEASURES if all(groups.values()) else ():
        if measure not in points[0]:
            continue
        means = [[one[measure]["mean"] for one in group] for group in groups.values()]
        # Shares of one fold are much alike, so that what is independent is the folds.
        by_fold = [
            [
                statistics.fmean(values)
                for values in zip(*([run[measure] for run in one["runs"]] for one in group), strict=True)
            ]
            for group in groups.values()
        ]
        tests[measure] = {
            "over_shares": asdict(group_test(*means)),
            "over_folds": asdict(fold_test(by_fold[1], by_fold[0])),
        }
    return {
        "model": config.train.model,
        "label": tagged.label,
        "pattern": config.ablation.pattern,
        "replacement": config.ablation.replacement,
        "train": Path(config.train.train_uri or "").name,
        "positives": tagged.num_positives,
        "tagged": len(tagged.ids),
        "folds": config.train.folds,
        "points": points,
        "tests": tests,
    }
