"""What an ablation found, as tables for the terminal, as Markdown, and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from scalemine.report.plots import Gain, draw_gains
from scalemine.report.tables import MISSING, Cell, Column, Table, plain_line, plain_name, print_table
from scalemine.store import Json, write_whole

_MEASURES: Final = {
    "precision": ("Precision", "P"),
    "recall": ("Recall", "R"),
    "accuracy": ("Accuracy", "acc"),
    "f1": ("F1", "F1"),
}
_MAX_CHARS = 120
_SMALLEST_P = 0.001


def sentence(found: Json) -> str:
    """Say what was removed from what."""
    pattern, label = plain_line(found["pattern"], _MAX_CHARS), plain_name(found["label"])
    return (
        f"{found['tagged']:,} of {found['positives']:,} tweets with {label} in {plain_name(found['train'])} have "
        f"{pattern}; a share of them loses it, also in the held-out fold. {plain_name(found['model'])}, "
        f"{found['folds']} folds, in percent."
    )


def shares_table(found: Json) -> Table:
    """Return the scores by share: mean and standard deviation over the held-out folds, in percent."""
    there = [measure for measure in _MEASURES if measure in found["points"][0]]
    columns = (
        Column("Without it, %", "without %"),
        Column("Positives with it", "with it"),
        *(Column(*_MEASURES[measure]) for measure in there),
    )
    rows = []
    for point in found["points"]:
        scores = [_percent(point[measure]["mean"], point[measure]["sd"]) for measure in there]
        rows.append(tuple(map(Cell, (f"{100 * point['share']:g}", f"{point['tagged']:,}", *scores))))
    return Table("Share of positives that lost the feature", columns, tuple(rows))


def groups_table(found: Json) -> Table:
    """Return the comparison of where most positives have the feature with where few do."""
    columns = (
        Column("Measure", "measure", numeric=False),
        Column("Majority has it", "majority"),
        Column("Minority has it", "minority"),
        Column("t over shares", "t shares"),
        Column("p over shares", "p shares"),
        Column("n", "n"),
        Column("t over folds", "t folds"),
        Column("p over folds", "p folds"),
        Column("folds", "folds"),
    )
    rows = []
    for measure, test in found["tests"].items():
        shares, folds = test["over_shares"], test["over_folds"]
        cells = (
            _MEASURES[measure][0], _percent(shares["majority"]), _percent(shares["minority"]), _number(shares["t"]),
            _p(shares["p"]), f"{shares['num_majority']} + {shares['num_minority']}", _number(folds["t"]),
            _p(folds["p"]), str(folds["num_pairs"]),
        )  # fmt: skip
        rows.append(tuple(map(Cell, cells)))
    return Table("Majority against minority", columns, tuple(rows))


NOTE: Final = (
    "Over shares: Student's t-test for two independent samples, as published; it takes shares for independent, though "
    "they share tweets and folds, so its p is too small. Over folds: paired, each fold's mean over the shares of a "
    "group, corrected for shared training tweets (Nadeau and Bengio 2003)."
)


def print_ablation(console: Console, found: Json) -> None:
    """Print the tables."""
    console.print(Text(sentence(found)))
    print_table(console, shares_table(found))
    if found["tests"]:
        print_table(console, groups_table(found))
        console.print(Text(NOTE))


def write_ablation(found: Json, folder: Path) -> None:
    """Write ``ablation.md`` and ``ablation.svg``."""
    with write_whole(folder / "ablation.svg") as path:
        path.write_text(draw_ablation(found), encoding="utf-8")
    with write_whole(folder / "ablation.md") as path:
        path.write_text(markdown(found), encoding="utf-8")


def draw_ablation(found: Json) -> str:
    """Return the change of each measure by share, with one standard deviation of the folds' own changes."""
    series = {}
    base = found["points"][0]["runs"]
    for measure, (name, _) in _MEASURES.items():
        if measure not in found["points"][0]:
            continue
        gains = []
        for point in found["points"][1:]:
            changes = [100 * (run[measure] - before[measure]) for run, before in zip(point["runs"], base, strict=True)]
            mean = sum(changes) / len(changes)
            sd = (sum((one - mean) ** 2 for one in changes) / max(len(changes) - 1, 1)) ** 0.5
            gains.append(Gain(100 * point["share"], mean, mean - sd, mean + sd))
        series[name] = gains
    return draw_gains(
        series, "Positives that lost the feature, %", "Change, percentage points", key="ablation",
        label="Change of the scores by the share of positives that lost the feature",
    )  # fmt: skip


def markdown(found: Json) -> str:
    """Return the tables as Markdown."""
    parts = ["# Ablation", _escaped(sentence(found))]
    for table in (shares_table(found), groups_table(found)):
        if not table.rows:
            continue
        lines = [[column.heading for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
        shown = [f"| {' | '.join(map(_escaped, line))} |" for line in lines]
        rule = "|".join("---:" if column.numeric else ":---" for column in table.columns)
        parts.append("\n".join([f"**{table.caption}**", "", shown[0], f"|{rule}|", *shown[1:]]))
    return "\n\n".join([*parts, NOTE, "![Change of the scores](ablation.svg)"]) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in text)


def _percent(mean: float | None, sd: float | None = None) -> str:
    if mean is None:
        return MISSING
    return f"{100 * mean:.1f}" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < _SMALLEST_P else _number(value)
