"""The arms of a sweep beside one another: tables for the terminal, files for papers and programs, and a page's section.

Everything here reads the JSON of a comparison, as ``sweep/NAME/comparison.json`` has it. No tweet is in it.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from scalemine.report.plots import Gain, draw_gains
from scalemine.report.tables import (
    MISSING,
    Cell,
    Column,
    Table,
    counted,
    decimal,
    duration,
    plain_line,
    plain_name,
    print_table,
    whole,
)
from scalemine.store import Json, Workdir, read_json, remove, write_json, write_whole
from scalemine.training.comparison import FALSE_ALARMS, LEVEL
from scalemine.training.family import HELD_OUT, RANDOM_PLUS
from scalemine.training.tagging.metrics import ALL_NEGATIVES

logger = logging.getLogger(__name__)

# Rises when the form of comparison.json changes.
FORMAT: Final = 2
_MEASURES: Final = {
    "f1": "F1",
    "precision": "P",
    "recall": "R",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "macro_ap": "macro AP",
    FALSE_ALARMS: "alarms per 1,000",
}
_OF_MODEL: Final = ("train.model", "train.encoder", "train.vectors", "train.freeze")
_STARS: Final = f"* p < {LEVEL:g} over tweets, ** over folds too (Holm)"
_BARE: Final = ("train.train_set", "train.train_uri", *_OF_MODEL[:3])
_MOST_SERIES: Final = 7  # as there are colours
_MANY_TRIALS: Final = 6  # of more, a terminal shows F1 alone, and they are counted instead of named
_MOST_SIDE: Final = 12  # rows or columns of a matrix
_LINE_CHARS: Final = 400
_FOLDED_CHARS: Final = 24  # of a name in the terminal
_FIELDS: Final = (
    ("trial", "arm", "settings", "test_set", "measure", "mean", "sd", "n", "over", "base", "base_mean_of_pairs")
    + ("mean_of_pairs", "effect", "low", "high", "p", "holm_p", "fold_test_p", "fold_test_holm_p", "fold_test_low")
    + ("fold_test_high",)
    + ("num_tweets", "num_pairs", "verdict")
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure: its file name without an ending, what it shows, and the picture."""

    name: str
    caption: str
    svg: str


# --- Words


def title(comparison: Json) -> str:
    """Return what is compared with what, how often it was trained, and on how much it is tested."""
    bases = {trial["base"] for trial in comparison["trials"] if trial["base"]}
    compared = sum(trial["base"] is not None for trial in comparison["trials"])
    base = labels(comparison)[comparison["base"]]
    if len(bases) > 1:
        side = next(trial["side"] for trial in comparison["trials"] if trial["name"] == comparison["base"])
        base = f"{plain_name(side)} with the same other settings"
    folds = comparison["folds"]
    trained = [counted(folds, "fold", "folds")] if folds else []
    trained.append(counted(len(comparison["seeds"]), "seed", "seeds"))
    sets = counted(len(comparison["test_sets"]), "test set", "test sets")
    against = f"{counted(compared, 'trial', 'trials')} against {base}" if compared else base
    return f"{plain_name(comparison['sweep'])}: {against}; {' × '.join(trained)}, {sets}"


def labels(comparison: Json) -> dict[str, str]:
    """Return a short name of each trial that says what it differs in from the others."""
    found = {}
    for trial in comparison["trials"]:
        said = [] if trial["side"] == trial["name"] else [trial["side"]]
        said += [_setting(key, value) for key, value in trial["others"].items() if value is not None]
        found[trial["name"]] = plain_name(", ".join(said) or trial["name"])
    if len(set(found.values())) < len(found):
        return {name: plain_name(name) for name in found}
    return found


def notes(comparison: Json) -> list[str]:
    """Return what has to be known to read the tables, in sentences."""
    what = "spans of all types" if comparison["kind"] == "tagger" else "labels"
    said = [
        f"F1, P (precision) and R (recall) count {what} together (micro), in percent; differences are in percent "
        f"points. ± is the standard deviation over folds of the mean over seeds; where there are no folds, over seeds."
    ]
    if comparison["contrasts"]:
        said += _of_differences(comparison)
    elif len(comparison["trials"]) == 1:
        said.append("Nothing is compared: the sweep has one trial.")
    chosen = " or ".join(plain_name(one) for one in comparison["chosen_on"])
    flatters = any("held-out" in one for one in comparison["chosen_on"])
    what = "Epochs" if _has_epochs(comparison) else "Thresholds"
    said.append(f"{what} were chosen on: {chosen}{', so that what is scored there is flattered' if flatters else ''}.")
    return said + list(_missing(comparison))


def _of_differences(comparison: Json) -> list[str]:
    """Return what has to be known to read differences and their p-values."""
    said = [
        f"Differences are those of the same folds, seeds and tweets. Their 95 % interval and p are of a paired "
        f"bootstrap over tweets ({comparison['rounds']:,} rounds), which holds the trained models fixed; the fold test "
        f"(corrected resampled t-test) does not: it asks what other training sets would bring, and few folds show only "
        f"large differences.",
        f"Each p is adjusted for all trials of its test set and measure (Holm), the intervals are not. An adjusted p "
        f"below {LEVEL:g} of the tweets is taken for evidence that these models differ (*), one of the folds too that "
        f"training sets do (**); else there is no evidence of a difference, which is no proof that there is none. "
        f"Where there are no two folds, or all differ alike, nothing is tested over folds.",
    ]
    ways = [comparison["search"]] * (comparison["search"] != "grid")
    ways += [comparison["scheduler"]] * (comparison["scheduler"] != "none")
    metric, chosen_on = comparison["metric"], _set_of_metric(comparison)
    if ways and chosen_on in {one["test_set"] for one in comparison["contrasts"]}:
        said.append(
            f"Trials were searched for or stopped ({', '.join(map(plain_name, ways))}) by {plain_name(metric)}, and "
            f"they are compared on {plain_name(chosen_on)} too: there the p-values of those that it chose are "
            f"optimistic."
        )
    return said


def _set_of_metric(comparison: Json) -> str | None:
    """Return the test set of the sweep's metric; None: it is of none."""
    names = [one["name"] for one in comparison["test_sets"] if comparison["metric"].startswith(f"{one['name']}.")]
    return max(names, key=len, default=None)  # names may have dots


def _missing(comparison: Json) -> Iterator[str]:
    names = labels(comparison)
    for trial in comparison["trials"]:
        if trial["stopped"] is not None:
            after = counted(trial["stopped"], "fold", "folds")
            yield f"{names[trial['name']]}: stopped after {after} for being behind; {_runs(trial)} runs are finished."
        elif trial["num_runs"] < trial["num_planned"]:
            yield f"{names[trial['name']]}: {_runs(trial)} runs are finished."
    pairs = {
        (one["trial"], one["base"]): (one["difference"]["num_runs"], one["num_planned"])
        for one in comparison["contrasts"]
        if one["difference"]["num_runs"] < one["num_planned"]
    }
    for (trial, base), (number, of) in pairs.items():
        yield f"{names[trial]} is compared with {names[base]} by {number} of {of} pairs of runs."
    for test_set, alike in _grouped(comparison["not_compared"], lambda one: one["test_set"]).items():
        bases = {names[one["base"]] for one in alike}
        trials = "; ".join(names[one["trial"]] for one in alike)
        if len(alike) > _MANY_TRIALS:
            trials = counted(len(alike), "trial", "trials")
        on = f" on {plain_name(test_set)}" if test_set else ""
        reasons = "; ".join(dict.fromkeys(plain_line(one["why"], _LINE_CHARS) for one in alike))
        yield f"Not compared{on} with {bases.pop() if len(bases) == 1 else 'their bases'}: {trials} ({reasons})."


def _runs(trial: Json) -> str:
    return f"{trial['num_runs']} of {trial['num_planned']}"


def _setting(key: str, value: Any) -> str:  # noqa: ANN401  JSON
    """Return a setting as part of a name: what says what it is by itself stands alone."""
    if isinstance(value, str):
        value = value.rstrip("/").rsplit("/", 1)[-1]
    if key in _BARE:
        return str(value)
    if key == "train.freeze":
        return "frozen" if value else "fine-tuned"
    return f"{_key(key)} {_value(value)}"


def _key(key: str) -> str:
    return key.removeprefix("train.").replace("_", " ")


def _value(value: Any) -> str:  # noqa: ANN401  JSON
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value)
    return value if isinstance(value, str) else format(value, "g")


# --- Tables


def tables(comparison: Json) -> list[Table]:
    """Return all tables of a comparison."""
    return overview_tables(comparison) + list(contrast_tables(comparison).values())


def overview_tables(comparison: Json) -> list[Table]:
    """Return what is to be seen first; each table only where the sweep has what it shows."""
    main = main_set(comparison)
    found: list[Table | None] = [trials_table(comparison)]
    if main is not None:
        found += [sets_table(comparison), measures_table(comparison, main), gains_table(comparison)]
        found += [models_table(comparison, main), alarms_table(comparison)]
    return [table for table in (*found, *matrix_tables(comparison)) if table is not None and table.rows]


def contrast_tables(comparison: Json) -> dict[str, Table]:
    """Return by test set the differences by all measures."""
    found = {one["name"]: contrasts_table(comparison, one["name"]) for one in comparison["test_sets"]}
    return {key: table for key, table in found.items() if table is not None}


def main_set(comparison: Json) -> str | None:
    """Return the test set that is shown in detail: that of the paper, else that of the sweep's metric, or the first.

    None where nothing is tested but dev parts.
    """
    names = [one["name"] for one in comparison["test_sets"]]
    compared = {one["test_set"] for one in comparison["contrasts"]}
    wanted = [name for name in (RANDOM_PLUS, _set_of_metric(comparison), *names) if name in names]
    return next((name for name in wanted if name in compared), wanted[0] if wanted else None)


def trials_table(comparison: Json) -> Table:
    """Return one row per trial: how far it came, the sweep's metric, epochs where there are any, and time."""
    times, has_epochs = _metric_scale(comparison), _has_epochs(comparison)
    columns = (
        Column("Trial", "trial", numeric=False),
        Column("Compared with", "against", numeric=False),
        Column("Finished runs", "runs"),
        Column(f"{plain_name(comparison['metric'])}{', %' if times == 100 else ''}", "metric"),
        *((Column("Epoch chosen", "epoch"), Column("Epochs run", "epochs")) if has_epochs else ()),
        Column("Time of a run", "time"),
    )
    names = labels(comparison)
    rows = tuple(
        (
            Cell(names[trial["name"]]),
            Cell(names[trial["base"]] if trial["base"] else "(base)"),
            Cell(_runs(trial)),
            Cell(_mean(trial["metric"], times=times, digits=2)),
            *(Cell(_mean(trial[key], times=1)) for key in ("best_epoch", "epochs") if has_epochs),
            Cell(duration(trial["seconds"]["mean"]) if trial["seconds"] else MISSING),
        )
        for trial in comparison["trials"]
    )
    better = "more is better" if comparison["mode"] == "max" else "less is better"
    return Table(f"Trials of {plain_name(comparison['sweep'])}; of the metric {better}", columns, rows)


def _has_epochs(comparison: Json) -> bool:
    """Return whether some trial was trained step by step."""
    return any(trial["epochs"] and trial["epochs"]["mean"] for trial in comparison["trials"])


def sets_table(comparison: Json) -> Table | None:
    """Return F1 of each trial on each test set, and the epochs if there are any: table 4 of the paper."""
    sets, has_epochs = [one["name"] for one in comparison["test_sets"]], _has_epochs(comparison)
    epoch = (Column("Epoch chosen", "epoch"),) if has_epochs else ()
    columns = (Column("Trial", "trial", numeric=False), *map(_of_set, sets), *epoch)
    names = labels(comparison)
    rows = tuple(
        (
            Cell(names[trial["name"]]),
            *(Cell(_mean(trial["scores"].get(key, {}).get("f1"))) for key in sets),
            *(Cell(_mean(trial["best_epoch"], times=1)) for _ in epoch),
        )
        for trial in comparison["trials"]
        if trial["num_runs"]
    )
    caption = f"F1 by trial and test set, in percent{_over(comparison)}"
    return Table(caption, columns, rows)


def measures_table(comparison: Json, test_set: str) -> Table:
    """Return each trial's measures on one test set: table 5 of the paper."""
    scores = [(trial, trial["scores"].get(test_set, {})) for trial in comparison["trials"]]
    shown = [name for name in _MEASURES if any(name in of_set for _, of_set in scores)]
    columns = (Column("Trial", "trial", numeric=False), *(Column(_heading(name), _MEASURES[name]) for name in shown))
    names = labels(comparison)
    rows = tuple(
        (Cell(names[trial["name"]]), *(Cell(_mean(of_set.get(name), times=_times(name))) for name in shown))
        for trial, of_set in scores
        if of_set
    )
    caption = f"{plain_name(test_set)} ({_tweets(comparison, test_set)}): measures in percent{_over(comparison)}"
    return Table(caption, columns, rows)


def gains_table(comparison: Json) -> Table | None:
    """Return by how much F1 differs from that of the base, by trial and test set."""
    found = {(one["trial"], one["test_set"]): one for one in comparison["contrasts"] if one["measure"] == "f1"}
    sets = [one["name"] for one in comparison["test_sets"] if any(key == one["name"] for _, key in found)]
    names = labels(comparison)
    pairs = {one["trial"]: one["base"] for one in found.values()}
    one_base = len(set(pairs.values())) == 1
    shown = names if one_base else _against(comparison, names)
    rows = tuple((Cell(shown[trial]), *(Cell(_gain(found.get((trial, key)))) for key in sets)) for trial in pairs)
    base = f" less that of {names[next(iter(pairs.values()))]}" if one_base and pairs else " less that of the base"
    caption = f"F1{base}, in percent points, with its 95 % interval{_over(comparison, spread=False)}"
    return Table(f"{caption}; {_STARS}", (Column("Trial", "trial", False), *map(_of_set, sets)), rows)


def models_table(comparison: Json, test_set: str) -> Table | None:
    """Return F1 on one test set by model and embedding, sides as columns, with gains: table 6 of the paper."""
    groups = _grouped(comparison["trials"], lambda trial: json.dumps(trial["others"], sort_keys=True))
    sides = list(dict.fromkeys(trial["side"] for trial in comparison["trials"]))
    if len(groups) < 2 or len(sides) < 2 or len(sides) == len(comparison["trials"]):
        return None
    gains = {
        one["trial"]: one for one in comparison["contrasts"] if one["measure"] == "f1" and one["test_set"] == test_set
    }
    base_side = next(trial["side"] for trial in comparison["trials"] if trial["name"] == comparison["base"])
    sides = [base_side, *(side for side in sides if side != base_side)]
    rows = []
    for group in groups.values():
        of_side = {trial["side"]: trial for trial in group}
        known = next((trial for trial in group if trial["model"]), group[0])
        others = {key: value for key, value in known["others"].items() if key not in _OF_MODEL}
        cells = [plain_name(known["model"] or MISSING), plain_name(known["words"] or MISSING)]
        cells.append(plain_name(", ".join(_setting(*one) for one in others.items())))
        for side in sides:
            trial = of_side.get(side)
            cells.append(_mean(trial["scores"].get(test_set, {}).get("f1")) if trial else MISSING)
            if side != base_side:
                matched = trial is not None and trial["base"] == (of_side.get(base_side) or {}).get("name")
                cells.append(_gain(gains.get(trial["name"])) if trial and matched else MISSING)
        rows.append(tuple(map(Cell, cells)))
    columns = [Column("Model", "model", False), Column("Embedding", "embedding", False)]
    columns.append(Column("Other settings", "other", False))
    for side in map(plain_name, sides):
        columns.append(Column(side, side))
        if side != plain_name(base_side):
            columns.append(Column(f"{side} − {plain_name(base_side)}", "gain"))
    if not any(row[2].text for row in rows):
        columns, rows = [*columns[:2], *columns[3:]], [(*row[:2], *row[3:]) for row in rows]
    caption = (
        f"F1 on {plain_name(test_set)} ({_tweets(comparison, test_set)}) by model, and the gain over "
        f"{plain_name(base_side)} with its 95 % interval, in percent{_over(comparison)}; {_STARS}"
    )
    return Table(caption, tuple(columns), tuple(rows))


def alarms_table(comparison: Json) -> Table | None:
    """Return false alarms per 1,000 negatives, by trial and kind of negative."""
    places: dict[str, tuple[int, str, str]] = {}  # by kind the test set with most of them
    for one in comparison["test_sets"]:
        # Held-out folds have each trial's own.
        kinds = {} if one["name"] == HELD_OUT else one["negatives"]
        named = {kind: number for kind, number in kinds.items() if kind != ALL_NEGATIVES}
        for kind, number in named.items():
            places[kind] = max(places.get(kind, (0, "", "")), (number, one["name"], f"{FALSE_ALARMS}.{kind}"))
        if kinds and not named:  # what classifiers predict does not say which kind it is of
            places[one["name"]] = (kinds[ALL_NEGATIVES], one["name"], FALSE_ALARMS)
    columns = (
        Column("Trial", "trial", numeric=False),
        *(
            Column(
                f"{plain_name(kind)} ({whole(number)}{f' of {plain_name(key)}' if kind != key else ''})",
                plain_name(kind),
            )
            for kind, (number, key, _) in places.items()
        ),
    )
    names = labels(comparison)
    rows = tuple(
        (
            Cell(names[trial["name"]]),
            *(Cell(_mean(trial["scores"].get(key, {}).get(name), times=1)) for _, key, name in places.values()),
        )
        for trial in comparison["trials"]
        if trial["num_runs"] and places
    )
    return Table(f"False alarms per 1,000 negatives, by kind of negative{_over(comparison)}", columns, rows)


def matrix_tables(comparison: Json) -> list[Table]:
    """Return the sweep's metric over two numeric settings, such as the learning rate by the batch size."""
    keys = _numeric_keys(comparison)
    times = _metric_scale(comparison)
    found = []
    for key, other in itertools.combinations(keys, 2):
        groups = _grouped(comparison["trials"], partial(_fixed, keys=(key, other)))
        for group in groups.values():
            values = {(one["others"].get(key), one["others"].get(other)): one["metric"] for one in group}
            rows, columns = (sorted({pair[side] for pair in values if pair[side] is not None}) for side in (0, 1))
            is_grid = len(values) > len(rows) * len(columns) / 2 and max(len(rows), len(columns)) <= _MOST_SIDE
            if len(rows) < 2 or len(columns) < 2 or not is_grid or not any(values.values()):
                continue
            caption = f"{plain_name(comparison['metric'])}{', in percent,' if times == 100 else ''} by {_key(key)}"
            said = [] if group[0]["side"] == group[0]["name"] else [group[0]["side"]]
            said += [_setting(*one) for one in group[0]["others"].items() if one[0] not in (key, other)]
            caption = f"{caption} and {_key(other)}{': ' if said else ''}{plain_name(', '.join(said))}"
            heading = Column(f"{_key(key)} \\ {_key(other)}", f"{_key(key)}", numeric=False)
            found.append(
                Table(
                    caption + _over(comparison),
                    (heading, *(Column(_value(one), _value(one)) for one in columns)),
                    tuple(
                        (Cell(_value(one)), *(Cell(_mean(values.get((one, at)), times=times)) for at in columns))
                        for one in rows
                    ),
                )
            )
    return found


def contrasts_table(comparison: Json, test_set: str, measures: Sequence[str] | None = None) -> Table | None:
    """Return each trial against its base on one test set, with intervals, p-values and verdict.

    Args:
        comparison: The comparison.
        test_set: The test set.
        measures: Only these; None: all.
    """
    names = labels(comparison)
    found = [one for one in comparison["contrasts"] if one["test_set"] == test_set]
    found = [one for one in found if measures is None or one["measure"] in measures]
    columns = (
        Column("Trial", "trial", numeric=False),
        Column("Measure", "measure", numeric=False),
        Column("Verdict", "verdict", numeric=False),
        Column("Base", "base"),
        Column("Trial's", "trial's"),
        Column("Difference (95 %)", "difference"),
        Column("p of tweets", "p"),
        Column("p of folds", "p of folds"),
    )
    if not found:
        return None
    one_base = len({one["base"] for one in found}) == 1
    shown = names if one_base else _against(comparison, names)
    rows = []
    for one in found:
        difference, times = one["difference"], _times(one["measure"])
        cells = (
            shown[one["trial"]],
            _name(one["measure"]),
            re.sub(r"( by \S+)? \([^)]*\)", "", one["verdict"]),  # its numbers have columns of their own
            decimal(times * difference["base"], 1),
            decimal(times * difference["other"], 1),
            _gain(one),
            _p(one["holm_p"]),
            _p(one["folds_holm_p"]),
        )
        rows.append(tuple(map(Cell, cells)))
    against = f" against {names[found[0]['base']]}" if one_base else " against their bases"
    fewest, most = (end(one["difference"]["num_runs"] for one in found) for end in (min, max))
    pairs = f"{f'{fewest} to ' if fewest < most else ''}{counted(most, 'pair', 'pairs')} of runs"
    caption = f"{plain_name(test_set)} ({_tweets(comparison, test_set)}): trials{against}, {pairs}; {_STARS}"
    return Table(caption, columns, tuple(rows))


def _against(comparison: Json, names: Mapping[str, str]) -> dict[str, str]:
    """Return of each trial with which it is compared; of a base with the same other settings these are not said again.

    Args:
        comparison: The comparison.
        names: Of all trials: ``labels``.
    """
    trials = {trial["name"]: trial for trial in comparison["trials"]}
    found = {}
    for ours in comparison["trials"]:
        if ours["base"] is not None:
            theirs = trials[ours["base"]]
            alike = ours["others"] == theirs["others"] and theirs["side"] != theirs["name"]
            against = plain_name(theirs["side"]) if alike else names[theirs["name"]]
            found[ours["name"]] = f"{names[ours['name']]} against {against}"
    return found


def _of_set(key: str) -> Column:
    name = plain_name(key)
    return Column(name, name.removeprefix("test_"))


def _grouped(entries: Sequence[Json], key_of: Callable[[Json], Any]) -> dict[Any, list[Json]]:
    groups: dict[Any, list[Json]] = {}
    for one in entries:
        groups.setdefault(key_of(one), []).append(one)
    return groups


def _numeric_keys(comparison: Json) -> list[str]:
    """Return the settings that vary and are numbers."""
    values: dict[str, list[Any]] = {}
    for trial in comparison["trials"]:
        for key, value in trial["others"].items():
            values.setdefault(key, []).append(value)
    return [
        key
        for key, found in values.items()
        if len(set(map(str, found))) > 1
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in found)
    ]


def _fixed(trial: Json, keys: Sequence[str]) -> str:
    """Return what else a trial is, beside some settings."""
    side = "" if trial["side"] == trial["name"] else trial["side"]
    return json.dumps([side, {key: value for key, value in trial["others"].items() if key not in keys}], sort_keys=True)


def _metric_scale(comparison: Json) -> int:
    """Return 100 where the metric is a share, which is shown in percent, else 1."""
    means = [trial["metric"]["mean"] for trial in comparison["trials"] if trial["metric"]]
    rates = comparison["metric"].endswith(("per_1000", "loss", "seconds"))
    return 1 if rates or any(abs(one) > 1 for one in means) else 100


def _times(measure: str) -> int:
    return 1 if measure.startswith(FALSE_ALARMS) else 100


def _name(measure: str) -> str:
    name, _, kind = measure.partition(".")
    return f"{_MEASURES[name]}{f': {plain_name(kind)}' if kind else ''}"


def _heading(measure: str) -> str:
    known = {"precision": "P (precision)", "recall": "R (recall)", FALSE_ALARMS: "False alarms per 1,000 negatives"}
    return known.get(measure, _MEASURES[measure])


def _tweets(comparison: Json, test_set: str) -> str:
    found = next(one for one in comparison["test_sets"] if one["name"] == test_set)
    negatives = found["negatives"].get(ALL_NEGATIVES, 0)
    said = f", {whole(negatives)} of them negatives" if negatives else ""
    return f"{counted(found['num_tweets'], 'tweet', 'tweets')}{said}"


def _over(comparison: Json, *, spread: bool = True) -> str:
    """Return what the means are over: all folds and seeds, or what is finished of them."""
    folds, seeds = comparison["folds"], len(comparison["seeds"])
    trained = [counted(folds, "fold", "folds")] * bool(folds) + [counted(seeds, "seed", "seeds")] * (seeds > 1)
    if not trained:
        return ""
    # A trial without a run is not in a mean.
    is_whole = all(trial["num_runs"] in (0, trial["num_planned"]) for trial in comparison["trials"]) and all(
        one["difference"]["num_runs"] == one["num_planned"] for one in comparison["contrasts"]
    )
    there = "" if is_whole else "the finished runs of "
    return f", mean {'± standard deviation ' if spread else ''}over {there}{' × '.join(trained)}"


def _mean(summary: Json | None, *, times: float = 100, digits: int = 1) -> str:
    if summary is None:
        return MISSING
    spread = f" ± {decimal(times * summary['sd'], digits)}" if summary["sd"] is not None else ""
    return decimal(times * summary["mean"], digits) + spread


def _stars(contrast: Json) -> str:
    """Return whether there is evidence: over tweets, and over folds too."""
    if contrast["holm_p"] >= LEVEL:
        return ""
    of_folds = contrast["folds_holm_p"]
    return "**" if of_folds is not None and of_folds < LEVEL else "*"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"


def _between(low: float, high: float) -> str:
    return f"{low:z.1f} to {high:z.1f}".replace("-", "−")


def _gain(contrast: Json | None) -> str:
    if contrast is None:
        return MISSING
    difference, times = contrast["difference"], _times(contrast["measure"])
    effect, low, high = (times * difference[key] for key in ("effect", "low", "high"))
    return f"{_signed(effect)}{_stars(contrast)} ({_between(low, high)})"


def _p(value: float | None) -> str:
    return MISSING if value is None else "<0.001" if value < 0.001 else decimal(value)


# --- Figures


def drawings(comparison: Json, key: str = "c") -> list[Drawing]:
    """Return the gain of F1 over the base by each numeric setting, such as the batch size: figure 10 of the paper.

    Args:
        comparison: The comparison.
        key: Begins every id in the figures; letters and digits.
    """
    test_set = main_set(comparison)
    if test_set is None:
        return []
    trials = {trial["name"]: trial for trial in comparison["trials"]}
    gains = [one for one in comparison["contrasts"] if one["test_set"] == test_set and one["measure"] == "f1"]
    # Only where the base has the same other settings is a gain the side's.
    gains = [one for one in gains if trials[one["trial"]]["others"] == trials[one["base"]]["others"]]
    found = []
    for number, setting in enumerate(_numeric_keys(comparison)):
        having = [one for one in gains if setting in trials[one["trial"]]["others"]]
        rests = {name: _fixed(trial, (setting,)) for name, trial in trials.items()}
        groups: dict[str, list[Json]] = {}
        for one in having:
            groups.setdefault(rests[one["trial"]], []).append(one)
        series = {}
        for group in groups.values():
            first = trials[group[0]["trial"]]
            rest = [_setting(*one) for one in first["others"].items() if one[0] != setting]
            points = [
                Gain(
                    trials[one["trial"]]["others"][setting],
                    *(100 * one["difference"][name] for name in ("effect", "low", "high")),
                )
                for one in group
            ]
            if len(points) > 1:
                series[plain_name(", ".join([first["side"], *rest]))] = sorted(points, key=lambda one: one.value)
        if not series:
            continue
        left_out = len(series) - _MOST_SERIES
        shown = dict(itertools.islice(series.items(), _MOST_SERIES))
        base = plain_name(trials[comparison["base"]]["side"])
        caption = (
            f"F1 on {plain_name(test_set)} ({_tweets(comparison, test_set)}) less that of {base} with the same "
            f"{_key(setting)}, in percent points, with its 95 % interval{_over(comparison, spread=False)}"
            f"{f'; {left_out} further series are in the tables' if left_out > 0 else ''}."
        )
        svg = draw_gains(
            shown, f"{_key(setting)}", f"Gain over {base}, F1 points", key=f"{key}g{number}", label=caption
        )
        found.append(Drawing(f"gain-by-{re.sub(r'[^a-z0-9]+', '-', _key(setting).lower()).strip('-')}", caption, svg))
    return found


# --- Terminal


def print_comparison(console: Console, comparison: Json) -> None:
    """Print a comparison: what fits a terminal; differences by all measures on all test sets are in the files."""
    console.print(Text(title(comparison), style="bold"))
    if comparison["why"]:
        console.print(Text(plain_line(comparison["why"], _LINE_CHARS)))
    main = main_set(comparison)
    many = sum(trial["base"] is not None for trial in comparison["trials"]) > _MANY_TRIALS
    detail = None if main is None else contrasts_table(comparison, main, ["f1"] if many else None)
    for table in [*overview_tables(comparison), *([] if detail is None else [detail])]:
        for part in _parts(table, console.width):
            print_table(console, part)
    console.print()
    for note in notes(comparison):
        console.print(Text(note))


def _parts(table: Table, width: int) -> Iterator[Table]:
    """Yield a table, or parts of it that fit the width, each with the columns that name its rows."""
    texts = [[column.short, *(row[index].text for row in table.rows)] for index, column in enumerate(table.columns)]
    widths = [
        2 + (max(map(len, of_column)) if column.numeric else min(max(map(len, of_column)), _FOLDED_CHARS))
        for column, of_column in zip(table.columns, texts, strict=True)
    ]
    naming = list(itertools.takewhile(lambda index: not table.columns[index].numeric, range(len(table.columns))))
    chosen: list[int] = []
    for index in range(len(naming), len(table.columns)):
        if chosen and sum(widths[one] for one in (*naming, *chosen, index)) > width:
            yield _part(table, [*naming, *chosen])
            chosen = []
        chosen.append(index)
    yield _part(table, [*naming, *chosen])


def _part(table: Table, kept: Sequence[int]) -> Table:
    columns, rows = tuple(table.columns[one] for one in kept), (tuple(row[one] for one in kept) for row in table.rows)
    return Table(table.caption, columns, tuple(rows))


# --- Files


def write_comparison(comparison: Json, folder: Path) -> list[Path]:
    """Write a comparison as Markdown, LaTeX, CSV and JSON, and its figures; return the files.

    Args:
        comparison: The comparison.
        folder: Where they go; figures of an earlier one are removed.
    """
    figures = drawings(comparison)
    for old in folder.glob("gain-by-*.svg"):
        remove(old)
    files = {f"{figure.name}.svg": figure.svg + "\n" for figure in figures}
    files |= {"comparison.md": _markdown(comparison, figures), "comparison.tex": _latex(comparison)}
    for name, text in files.items():
        with write_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    with write_whole(folder / "comparison.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_records(comparison))
    write_json(folder / "comparison.json", {"format": FORMAT, **comparison})
    return [folder / name for name in (*files, "comparison.csv", "comparison.json")]


def read_comparisons(workdir: Workdir) -> list[Json]:
    """Return the comparisons of a workdir's sweeps; those that another version wrote are left out, and named."""
    found = {path: read_json(path) for path in sorted(workdir.sweeps.glob("*/comparison.json"))}
    for path, comparison in found.items():
        if comparison.get("format") != FORMAT:
            logger.warning("%s: written by another version; scalemine compare makes it anew", path)
    return [comparison for comparison in found.values() if comparison.get("format") == FORMAT]


def _records(comparison: Json) -> Iterator[dict[str, Any]]:
    """Yield every number: one record per trial, test set and measure."""
    contrasts = {(one["trial"], one["test_set"], one["measure"]): one for one in comparison["contrasts"]}
    for trial in comparison["trials"]:
        own = {key: trial[key] for key in ("metric", "best_epoch", "epochs", "seconds") if trial[key]}
        named = {("", comparison["metric"] if key == "metric" else key): value for key, value in own.items()}
        named |= {(key, name): value for key, of_set in trial["scores"].items() for name, value in of_set.items()}
        for (key, name), summary in named.items():
            yield {
                "trial": trial["name"],
                "arm": trial["arm"],
                "settings": json.dumps(trial["settings"], sort_keys=True, ensure_ascii=False),
                "test_set": key,
                "measure": name,
                "mean": summary["mean"],
                "sd": summary["sd"],
                "n": summary["num_runs"],
                "over": summary["over"],
                **_record_of(contrasts.get((trial["name"], key, name))),
            }


def _record_of(contrast: Json | None) -> dict[str, Any]:
    if contrast is None:
        return {}
    difference, folds = contrast["difference"], contrast["folds"] or {}
    return {
        "base": contrast["base"],
        "base_mean_of_pairs": difference["base"],
        "mean_of_pairs": difference["other"],
        **{key: difference[key] for key in ("effect", "low", "high", "p", "num_tweets")},
        "holm_p": contrast["holm_p"],
        "fold_test_holm_p": contrast["folds_holm_p"],
        **{f"fold_test_{key}": folds.get(key) for key in ("p", "low", "high")},
        "num_pairs": difference["num_runs"],
        "verdict": contrast["verdict"],
    }


def _markdown(comparison: Json, figures: Sequence[Drawing]) -> str:
    parts = [f"# {_escape_markdown(title(comparison))}"]
    if comparison["why"]:
        parts.append(_escape_markdown(plain_line(comparison["why"], _LINE_CHARS)))
    for table in tables(comparison):
        lines = [[column.heading for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
        shown = [f"| {' | '.join(map(_escape_markdown, line))} |" for line in lines]
        rule = "|".join("---:" if column.numeric else ":---" for column in table.columns)
        parts.append("\n".join([f"**{_escape_markdown(table.caption)}**", "", shown[0], f"|{rule}|", *shown[1:]]))
    parts += [f"![{_escape_markdown(one.caption)}]({one.name}.svg)" for one in figures]
    parts.append("\n".join(f"- {_escape_markdown(note)}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


_LATEX: Final[Mapping[str, str]] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--",
    "σ": r"$\sigma$", "<": r"$<$", ">": r"$>$", "…": r"\dots{}", "|": r"$|$", '"': r"\textquotedbl{}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Return a text as LaTeX sets it; of letters that a usual LaTeX has no font for, a question mark stays."""
    return "".join(
        _LATEX.get(character) or (character if character.isascii() or _is_western(character) else "?")
        for character in text
    )


def _is_western(character: str) -> bool:
    return "\u00c0" <= character <= "\u017e"  # Latin-1 and Latin Extended-A: in T1


def _latex(comparison: Json) -> str:
    parts = [
        "% Each table can be copied out; it needs the package booktabs.",
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs}",
        r"\usepackage[landscape,margin=15mm]{geometry}",
        r"\begin{document}",
        r"\footnotesize",
    ]
    for number, table in enumerate(tables(comparison), 1):
        align = "".join("r" if column.numeric else "l" for column in table.columns)
        lines = [[column.heading for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
        # A bracket at the start of a row would be taken for the space above it.
        shown = [f"{{}}{' & '.join(map(escape_latex, line))} \\\\" for line in lines]
        parts += [
            "",
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            f"\\caption{{{escape_latex(table.caption)}}}",
            f"\\label{{tab:comparison-{number}}}",
            f"\\begin{{tabular}}{{{align}}}",
            r"\toprule",
            shown[0],
            r"\midrule",
            *shown[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            r"\clearpage",  # LaTeX holds only so many tables that are not set yet
        ]
    parts += ["", *(f"\\noindent {escape_latex(note)}\n" for note in notes(comparison)), r"\end{document}"]
    return "\n".join(parts) + "\n"
