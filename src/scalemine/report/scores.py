"""Scores of taggers as tables for the terminal."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from scalemine.report.tables import MISSING, Cell, Column, Table, plain_name, print_table, whole
from scalemine.store import Json
from scalemine.training.tagging.metrics import ALL_NEGATIVES, NO_GOLD

_FOLD = re.compile(r"-fold\d+$")


def print_runs(console: Console, results: Sequence[Json]) -> None:
    """Print the results of training runs: means over the folds of each arm, per test set."""
    arms: dict[str, list[Json]] = {}
    for result in results:
        arms.setdefault(_FOLD.sub("", result["name"]), []).append(result)
    for name, runs in arms.items():
        print_table(console, runs_table(name, runs))
        epochs = ", ".join(f"{run['best_epoch']} of {run['epochs']}" for run in runs)
        console.print(Text(f"epoch chosen on {plain_name(runs[0]['chosen_on'])}: {epochs}"))
        console.print(Text(f"{sum(run['seconds'] for run in runs):,.0f} s of training on {runs[0]['device']}"))


def print_rounds(console: Console, history: Sequence[Json]) -> None:
    """Print rounds of mining by the model: what each replaced, and the scores on every test set after it."""
    columns = (
        Column("round", "round", numeric=False),
        Column("negatives that had become easy", "easy"),
        Column("replaced", "replaced"),
        Column("test set", "set", numeric=False),
        Column("F1", "F1"),
        Column("false alarms per 1,000 negatives", "false alarms"),
    )
    rows = []
    for one in history:
        known = [MISSING if "easy" not in one else whole(one[key]) for key in ("easy", "replaced")]
        for name, scored in one["result"]["metrics"].items():
            alarms = [scored["false_alarms"][ALL_NEGATIVES]["per_1000"]] if _num_negatives(scored) else []
            cells = [str(one["round"]), *known, plain_name(name), _mean([100 * scored["f1"]]), _mean(alarms)]
            rows.append(tuple(map(Cell, cells)))
    print_table(console, Table("Rounds: exact spans, micro, in percent", columns, tuple(rows)))


def runs_table(name: str, runs: Sequence[Json]) -> Table:
    """Return the scores of one arm per test set, in percent: mean and standard deviation over its folds."""
    columns = (
        Column("test set", "set", numeric=False),
        Column("F1", "F1"),
        Column("precision", "P"),
        Column("recall", "R"),
        Column("macro F1", "macro"),
        Column("false alarms per 1,000 negatives", "false alarms"),
    )
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run["metrics"]):
        scored = [run["metrics"][key] for run in runs if key in run["metrics"]]
        alarms = [one["false_alarms"][ALL_NEGATIVES]["per_1000"] for one in scored if _num_negatives(one)]
        measures = [[100 * one[measure] for one in scored] for measure in ("f1", "precision", "recall", "macro_f1")]
        rows.append((Cell(plain_name(key)), *(Cell(_mean(values)) for values in (*measures, alarms))))
    folds = f", mean ± standard deviation over {len(runs)} folds" if len(runs) > 1 else ""
    caption = f"{plain_name(name)}: exact spans, micro, in percent; false alarms per 1,000 negatives{folds}"
    return Table(caption, columns, tuple(rows))


def _num_negatives(scores: Json) -> int:
    return int(scores["false_alarms"].get(ALL_NEGATIVES, {}).get("num_tweets", 0))


def _mean(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def print_scores(console: Console, name: str, scores: Json) -> None:
    """Print the scores on one set: all conventions, each type, and false alarms; no table without a row."""
    by_type = _measures(f"{plain_name(name)}: by type, exact spans, in percent", "type", scores["per_type"])
    for table in (conventions_table(name, scores), by_type, alarms_table(name, scores["false_alarms"])):
        if table.rows:
            print_table(console, table)
    if scores.get("num_cut"):
        console.print(Text(f"{whole(scores['num_cut'])} tweets are longer than the model reads, and O beyond that"))


def conventions_table(name: str, scores: Json) -> Table:
    """Return precision, recall and F1 by every convention, in percent."""
    rows = {"exact spans, micro (conlleval)": scores, "exact spans, strict IOB2": scores["strict_iob2"]}
    rows["spans of one type that overlap (half credit)"] = scores["overlap"]
    rows |= {"words": scores["token"], "distinct surfaces": scores["surface"]}
    rows["exact spans, macro over types"] = {key: scores[f"macro_{key}"] for key in ("f1", "precision", "recall")}
    for part in ("seen", "unseen"):
        if part in scores:
            rows[f"surfaces {part} in training (recall)"] = scores[part]
    table = _measures(f"{plain_name(name)}: {whole(scores['num_tweets'])} tweets, in percent", "measure", rows)
    if scores["intervals"]:
        low, high = scores["intervals"]["f1"]
        return Table(f"{table.caption}; F1 is {100 * low:.1f} to {100 * high:.1f} (95 %)", table.columns, table.rows)
    return table


def _measures(caption: str, heading: str, measured: Mapping[str, Json]) -> Table:
    columns = (
        Column(heading, heading, numeric=False), Column("F1", "F1"), Column("precision", "P"), Column("recall", "R"),
        Column("gold", "gold"), Column("predicted", "found"), Column("correct", "right"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(plain_name(name)),
            *(Cell(f"{100 * one[key]:.2f}" if key in one else MISSING) for key in ("f1", "precision", "recall")),
            *(Cell(whole(one.get(key))) for key in ("num_gold", "num_predicted", "num_correct")),
        )
        for name, one in measured.items()
    )
    return Table(caption, columns, rows)


def alarms_table(name: str, alarms: Mapping[str, Json]) -> Table:
    """Return how often tweets without a span are given one, by where they come from."""
    columns = (
        Column("tweets without a span", "tweets without a span", numeric=False),
        Column("tweets", "tweets"),
        Column("with a false alarm", "alarms"),
        Column("per 1,000", "per 1,000"),
        Column("95 %", "95 %"),
    )
    names = {ALL_NEGATIVES: "negatives", NO_GOLD: "all without a gold span"}
    rows = tuple(
        (
            Cell(names.get(kind, plain_name(kind))),
            Cell(whole(one["num_tweets"])),
            Cell(whole(one["num_with_alarm"])),
            Cell(f"{one['per_1000']:.1f}"),
            Cell(" to ".join(f"{bound:.1f}" for bound in one["interval"]) if one["interval"] else MISSING),
        )
        for kind, one in alarms.items()
        if one["num_tweets"]
    )
    return Table(f"{plain_name(name)}: false alarms", columns, rows)
