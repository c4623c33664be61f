"""Classifiers: their scores as tables for the terminal, ROC curves, and tweets on a plane coloured by label.

Shapes: M tweets on the plane, C labels, P points of a curve.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from scalemine.config import InputError
from scalemine.report.plots import CLASS_COLOURS, STYLE
from scalemine.report.tables import (
    MISSING,
    Cell,
    Column,
    Table,
    counted,
    decimal,
    plain_line,
    plain_name,
    print_table,
    whole,
)
from scalemine.store import Json, write_whole
from scalemine.training.multilabel.data import read_predictions
from scalemine.training.multilabel.projection import Projection
from scalemine.training.multilabel.scores import roc_curves

_FOLD = re.compile(r"-fold\d+$")
_MAX_VERDICT_CHARS = 300
# What is measured: its name, a short one, where it stands in the scores, and where its interval does.
_RANKING = (
    ("ROC-AUC, macro", "AUC macro", ("roc_auc", "macro"), "roc_auc_macro"),
    ("ROC-AUC, weighted", "weighted", ("roc_auc", "weighted"), ""),
    ("ROC-AUC, micro", "micro", ("roc_auc", "micro"), "roc_auc_micro"),
    ("average precision, macro", "AP macro", ("average_precision", "macro"), "average_precision_macro"),
)
_DECIDING = (
    ("F1, micro", "F1 micro", ("micro_f1",), "micro_f1"),
    ("F1, macro", "F1 macro", ("macro_f1",), "macro_f1"),
    ("Jaccard", "Jaccard", ("jaccard",), ""),
    ("calibration error (ECE)", "ECE", ("ece",), ""),
)
# Where there is one label alone, micro and macro are the same.
_DECIDING_ONE = (
    ("F1", "F1", ("micro_f1",), "micro_f1"),
    ("precision", "P", ("micro_precision",), ""),
    ("recall", "R", ("micro_recall",), ""),
    ("accuracy", "accuracy", ("accuracy",), ""),
    ("calibration error (ECE)", "ECE", ("ece",), ""),
)
_FALSE_ALARMS = ("false alarms per 1,000 negatives", ("false_alarms", "per_1000"))
_ALONE = (("all labels right", "", ("exact_match",), ""), ("Brier score", "", ("brier",), ""))

# Curves in one pair of axes, beyond which each label gets its own.
MAX_CURVES_TOGETHER = 10
MAX_LABELS_DRAWN = 12
MAX_HOVER_CHARS = 140
_HOVER_LINE_CHARS = 60
_LINE_STYLES = ("-", "--", ":")
_DPI = 150
# SVG is sharp and needs no graphics card, but a browser moves no more dots than this with ease.
_MAX_SVG_DOTS = 5_000
# The colour-blind tell these apart.
_KINDS = ((-1, "unknown", "#b4b4b4"), (0, "negative", "#7fb2dd"), (1, "positive", "#D55E00"))
_COLOURS = {value: colour for value, _, colour in _KINDS}


# --- Tables


def print_label_runs(console: Console, results: Sequence[Json]) -> None:
    """Print runs of classifiers: each arm's means over its folds, then the arms beside one another."""
    arms = _arms(results)
    for name, runs in arms.items():
        print_table(console, runs_table(name, runs))
        for line in _verdicts(runs):
            console.print(Text(line))
        epochs = [f"{run['best_epoch']} of {run['epochs']}" for run in runs if run.get("best_epoch") is not None]
        if not any(run.get("epochs", 1) for run in runs):
            console.print(Text(f"thresholds chosen on {plain_name(runs[0]['chosen_on'])}"))
        elif epochs:
            console.print(Text(f"epoch chosen on {plain_name(runs[0]['chosen_on'])}: {', '.join(epochs)}"))
        console.print(Text(f"{_total_seconds(runs):,.0f} s of training on {plain_name(runs[0]['device'])}"))
    if len(arms) > 1:
        for key in _sets(results):
            for table in comparison_tables(key, results):
                print_table(console, table)


def runs_table(name: str, runs: Sequence[Json]) -> Table:
    """Return the scores of one arm per test set, in percent: mean and standard deviation over its folds.

    False alarms, per 1,000, have a row where any fold has tweets to raise them, and so has each setting that a search
    over a grid chose, fold by fold.
    """
    columns = (
        Column("test set", "set", numeric=False),
        Column("measure", "measure", numeric=False),
        Column("model", "model"),
        Column("label prior", "prior"),
    )
    rows = []
    for setting in runs[0].get("chosen") or {}:
        values = ", ".join(dict.fromkeys(str(run["chosen"][setting]) for run in runs if run.get("chosen")))
        rows.append(tuple(map(Cell, ("grid search", plain_name(setting), plain_line(values, 40), MISSING))))
    for key in _sets(runs):
        scored = _scored(runs, key)
        for heading, _, path, _ in (*_RANKING, *_deciding(scored)):
            cells = (key_name(key), heading, _mean(scored, path), _mean(scored, ("prior", *path)))
            rows.append(tuple(map(Cell, cells)))
        heading, path = _FALSE_ALARMS
        if any(_at(one, path) is not None for one in scored):
            rows.append(tuple(map(Cell, (key_name(key), heading, _mean(scored, path, times=1), MISSING))))
    return Table(f"{plain_name(name)}: in percent{_over_folds([runs])}", columns, tuple(rows))


def comparison_tables(key: str, results: Sequence[Json]) -> tuple[Table, Table]:
    """Return the arms that were scored on a set: how they rank tweets, and how they decide; in percent.

    Args:
        key: The test set.
        results: Results of runs; the folds of one arm share a row.
    """
    arms = {name: runs for name, runs in _arms(results).items() if _scored(runs, key)}
    folds = _over_folds(list(arms.values()))
    prior = ("label prior", *(_mean(_scored(results, key), ("prior", *path)) for _, _, path, _ in _RANKING), MISSING)
    ranking, deciding = [tuple(map(Cell, prior))], []
    measures = _deciding(_scored(results, key))
    for name, runs in arms.items():
        scored, shown = _scored(runs, key), plain_name(name)
        means = {part: [_mean(scored, path) for _, _, path, _ in part] for part in (_RANKING, measures)}
        ranking.append(tuple(map(Cell, (shown, *means[_RANKING], whole(_total_seconds(runs))))))
        deciding.append(tuple(map(Cell, (shown, *means[measures]))))
    arm = Column("run", "run", numeric=False)
    return (
        Table(
            f"{key_name(key)}: ranking, in percent{folds}",
            (arm, *(Column(heading, short) for heading, short, _, _ in _RANKING), Column("seconds", "s")),
            tuple(ranking),
        ),
        Table(
            f"{key_name(key)}: decisions and calibration, in percent{folds}",
            (arm, *(Column(heading, short) for heading, short, _, _ in measures)),
            tuple(deciding),
        ),
    )


def print_label_scores(console: Console, name: str, scores: Json) -> None:
    """Print the scores on one set: in all, per label, and per group of each column."""
    print_table(console, summary_table(name, scores))
    verdict = (scores.get("verdict") or {}).get("text")
    if verdict:
        console.print(Text(plain_line(verdict, _MAX_VERDICT_CHARS)))
    print_table(console, labels_table(name, scores["per_label"]))
    for column, groups in (scores.get("groups") or {}).items():
        print_table(console, groups_table(name, column, groups))


def summary_table(name: str, scores: Json) -> Table:
    """Return all measures of one set, in percent, with their intervals where there are any; false alarms per 1,000."""
    columns = (
        Column("measure", "measure", numeric=False),
        Column("model", "model"),
        Column("95 %", "95 %"),
        Column("label prior", "prior"),
    )
    rows = []
    for heading, _, path, interval in (*_RANKING, *_deciding([scores]), *_ALONE):
        bounds = (scores.get("intervals") or {}).get(interval) or (None, None)
        between = " to ".join(_percent(bound) for bound in bounds) if None not in bounds else MISSING
        values = (heading, _percent(_at(scores, path)), between, _percent(_at(scores, ("prior", *path))))
        rows.append(tuple(map(Cell, values)))
    heading, path = _FALSE_ALARMS
    if (false_alarms := _at(scores, path)) is not None:
        rows.append(tuple(map(Cell, (heading, decimal(false_alarms, 1), MISSING, MISSING))))
    known = f"{whole(scores['num_rows'])} tweets, {whole(scores['num_known'])} known labels"
    return Table(f"{plain_name(name)}: {known}, in percent", columns, tuple(rows))


def labels_table(name: str, per_label: Mapping[str, Json]) -> Table:
    """Return one row per label, in percent; the threshold is a probability."""
    columns = (
        Column("label", "label", numeric=False),
        Column("positives", "pos."),
        Column("known", "known"),
        Column("prior", "prior"),
        Column("ROC-AUC", "AUC"),
        Column("average precision", "AP"),
        Column("F1", "F1"),
        Column("precision", "P"),
        Column("recall", "R"),
        Column("threshold", "from"),
        Column("calibration error", "ECE"),
    )
    measures = ("prior", "roc_auc", "average_precision", "f1", "precision", "recall")
    rows = tuple(
        (
            Cell(plain_name(label)),
            Cell(whole(one.get("num_positive"))),
            Cell(whole(one.get("num_known"))),
            *(Cell(_percent(one.get(measure))) for measure in measures),
            Cell(decimal(one.get("threshold"), 2)),
            Cell(_percent(one.get("ece"))),
        )
        for label, one in per_label.items()
    )
    return Table(f"{plain_name(name)}: by label, in percent; positive from a probability on", columns, rows)


def groups_table(name: str, column: str, groups: Mapping[str, Json]) -> Table:
    """Return one row per group of tweets, such as a language, in percent."""
    columns = (
        Column(column, plain_name(column), numeric=False),
        Column("tweets", "tweets"),
        Column("ROC-AUC, macro", "AUC macro"),
        Column("ROC-AUC, micro", "micro"),
        Column("average precision, macro", "AP macro"),
        Column("F1, micro", "F1 micro"),
        Column("F1, macro", "F1 macro"),
    )
    paths = (("roc_auc", "macro"), ("roc_auc", "micro"), ("average_precision", "macro"), ("micro_f1",), ("macro_f1",))
    rows = tuple(
        (
            Cell(plain_name(value)),
            Cell(whole(one.get("num_rows"))),
            *(Cell(_percent(_at(one, path))) for path in paths),
        )
        for value, one in groups.items()
    )
    return Table(f"{plain_name(name)}: by {plain_name(column)}, in percent", columns, rows)


def key_name(key: str) -> str:
    """Return the name of a test set as it may be shown."""
    return plain_name(key)


def _arms(results: Sequence[Json]) -> dict[str, list[Json]]:
    """Return the runs of each arm: its folds, or the one run."""
    arms: dict[str, list[Json]] = {}
    for result in results:
        arms.setdefault(_FOLD.sub("", result["name"]), []).append(result)
    return arms


def _sets(runs: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run["metrics"]))


def _scored(runs: Sequence[Json], key: str) -> list[Json]:
    return [run["metrics"][key] for run in runs if key in run["metrics"]]


def _deciding(scored: Sequence[Json]) -> tuple[tuple[str, str, tuple[str, ...], str], ...]:
    """Return what decisions are measured by: otherwise where there is one label."""
    return _DECIDING_ONE if all(len(one["per_label"]) == 1 for one in scored) else _DECIDING


def _verdicts(runs: Sequence[Json]) -> list[str]:
    """Return what is said of each set, once where all folds say the same."""
    said = [
        (key, (run["metrics"][key].get("verdict") or {}).get("text"))
        for key in _sets(runs)
        for run in runs
        if key in run["metrics"]
    ]
    return [f"{key_name(key)}: {plain_line(text, _MAX_VERDICT_CHARS)}" for key, text in dict.fromkeys(said) if text]


def _total_seconds(runs: Sequence[Json]) -> float:
    return math.fsum(run["seconds"] for run in runs)


def _over_folds(arms: Sequence[Sequence[Json]]) -> str:
    folds = max(map(len, arms), default=0)
    return f", mean ± standard deviation over {folds} folds" if folds > 1 else ""


def _at(scores: Json, path: Sequence[str]) -> float | None:
    """Return what lies at a path of keys; None where the path ends early, or where no number lies there."""
    value: Any = scores
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if value is not None and math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return MISSING if value is None else decimal(100 * value, 1)


def _mean(scored: Iterable[Json], path: Sequence[str], *, times: float = 100) -> str:
    """Return mean and standard deviation, in percent unless told, over the folds where the measure has a value."""
    values = [times * value for one in scored if (value := _at(one, path)) is not None]
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


# --- ROC curves

Curve = tuple[NDArray[np.float64], NDArray[np.float64], float | None]


def roc_figure(curves: Mapping[str, Curve], path_png: Path) -> None:
    """Draw the ROC curve of each label: together up to 10 labels, beyond that each in axes of its own.

    Args:
        curves: By label, false and true positive rates ``(P,)`` and the area under them; None: there is no curve.
        path_png: Where the figure goes.
    """

    def draw() -> Figure:
        return _curves_together(curves) if len(curves) <= MAX_CURVES_TOGETHER else _curves_apart(curves)

    _write_png(draw, path_png)


def write_roc_figures(run: Path) -> None:
    """Draw the ROC curves of each set that a run has predicted, as ``roc-SET.png`` in its folder."""
    for path in sorted((run / "predictions").glob("*.parquet")):
        labels, targets_NC, scores_NC = read_predictions(path)
        curves = roc_curves(targets_NC, scores_NC, labels)
        figures = {name: (np.array(false_P), np.array(true_P), auc) for name, (false_P, true_P, auc) in curves.items()}
        if figures:
            roc_figure(figures, run / f"roc-{path.stem}.png")


def _curves_together(curves: Mapping[str, Curve]) -> Figure:
    figure = Figure(figsize=(9, 5.4))
    axes = figure.add_axes((0.075, 0.12, 0.5, 0.84))
    _roc_axes(axes)
    lines = []
    for index, (label, (false_P, true_P, auc)) in enumerate(curves.items()):
        shape: dict[str, Any] = {
            "color": CLASS_COLOURS[index % len(CLASS_COLOURS)],
            "linestyle": _LINE_STYLES[index // 7],
        }
        axes.plot(false_P, true_P, linewidth=2, **shape)
        # The number comes first: a name that begins with an underscore would be left out.
        text = f"{decimal(auc, 3)}  {plain_line(label, 28)}"
        lines.append((-1 if auc is None else auc, Line2D([], [], linewidth=2.5, label=text, **shape)))
    lines.sort(key=lambda line: -line[0])
    handles = [line for _, line in lines]
    place = (1.03, 0.5)
    title = "Area under the curve"
    axes.legend(handles=handles, title=title, alignment="left", frameon=False, loc="center left", bbox_to_anchor=place)
    axes.set_xlabel("False positive rate")
    axes.set_ylabel("True positive rate")
    return figure


def _curves_apart(curves: Mapping[str, Curve]) -> Figure:
    figure, grid = _grid(len(curves), 4 if len(curves) <= 16 else 6, 2.1)
    for axes, (label, (false_P, true_P, auc)) in zip(grid, curves.items(), strict=True):
        _roc_axes(axes)
        axes.fill_between(false_P, true_P, color=CLASS_COLOURS[0], alpha=0.12, linewidth=0)
        axes.plot(false_P, true_P, color=CLASS_COLOURS[0], linewidth=1.8)
        axes.set_title(plain_line(label, 24), fontsize=10, loc="left")
        axes.text(0.96, 0.06, decimal(auc, 3), ha="right", va="bottom", fontsize=11)
        axes.tick_params(labelsize=8)
    figure.supxlabel("False positive rate", fontsize=11, y=0.15 / figure.get_figheight())
    figure.supylabel("True positive rate", fontsize=11, x=0.1 / figure.get_figwidth())
    return figure


def _roc_axes(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="#9a9a9a", linewidth=1, linestyle=(0, (4, 4)))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")


def _grid(number: int, most_columns: int, inches: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and so many axes in it, by rows; each is a square of about so many inches."""
    columns = min(most_columns, max(number, 1))
    rows = -(-number // columns) or 1
    width, height = columns * inches + 0.5, rows * (inches + 0.3) + 1.0
    figure = Figure(figsize=(width, height))
    # Set by hand: a layout that matplotlib finds itself takes half a minute for forty axes.
    edges = {"left": 0.6 / width, "right": 1 - 0.1 / width, "bottom": 0.75 / height, "top": 1 - 0.65 / height}
    figure.subplots_adjust(**edges, wspace=0.22, hspace=0.3)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(number)]


def _write_png(draw: Callable[[], Figure], path: Path) -> None:
    """Write what is drawn, the same bytes each time."""
    # Names of labels are no formulas, whatever dollars there are in them.
    with mpl.rc_context({**STYLE, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw()
        FigureCanvasAgg(figure)
        with write_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


# --- Tweets on a plane


def projection_page(
    projection: Projection,
    labels: Sequence[str],
    targets_MC: NDArray[np.int8],
    texts: Sequence[str],
    ids: Sequence[str],
    path_html: Path,
    path_png: Path,
) -> None:
    """Write tweets on a plane, coloured by label: a page to look around in, and a figure of up to 12 labels.

    The page holds the tweets' texts, and all that it needs: it asks no network for anything.

    Args:
        projection: Where the tweets lie; their rows in the data.
        labels: Names of the labels.
        targets_MC: 1, 0, or -1 where it is not known, of the tweets that are laid out.
        texts: Their texts ``(M,)``.
        ids: Their ids ``(M,)``.
        path_html: Where the page goes.
        path_png: Where the figure goes.

    Raises:
        ValueError: Lengths differ.
        InputError: Plotly is not installed.
    """
    num_tweets = len(projection.places_M2)
    if targets_MC.shape != (num_tweets, len(labels)) or not len(texts) == len(ids) == num_tweets:
        raise ValueError(
            f"{num_tweets} places, {len(labels)} labels: got targets of shape {targets_MC.shape}, "
            f"{len(texts)} texts and {len(ids)} ids"
        )
    html = _projection_html(projection, labels, targets_MC, texts, ids)
    with write_whole(path_html) as temporary:
        temporary.write_text(html, "utf-8")
    _write_png(lambda: _projection_figure(projection, labels, targets_MC), path_png)


def _projection_html(
    projection: Projection,
    labels: Sequence[str],
    targets_MC: NDArray[np.int8],
    texts: Sequence[str],
    ids: Sequence[str],
) -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise InputError("a page of a projection needs Plotly: pip install 'scalemine[umap]'") from error
    data = {
        "x": [round(float(x), 3) for x in projection.places_M2[:, 0]],
        "y": [round(float(y), 3) for y in projection.places_M2[:, 1]],
        "hover": [_hover(identifier, text) for identifier, text in zip(ids, texts, strict=True)],
        "targets": targets_MC.T.tolist(),
        "kinds": _KINDS,
        "middle": _middle(projection),
        "type": "scatter" if len(ids) <= _MAX_SVG_DOTS else "scattergl",
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("labels.html.jinja").render(
        plotly=Markup(get_plotlyjs()),  # noqa: S704 (the library itself)
        data=Markup(json.dumps(data, separators=(",", ":"))),  # noqa: S704 (no < is left in it)
        options=[
            (plain_name(label), whole(int((targets_MC[:, index] == 1).sum()))) for index, label in enumerate(labels)
        ],
        sentence=f"{counted(len(ids), 'tweet', 'tweets')}; what lies near one another reads alike to the encoder.",
    )


def _hover(identifier: str, text: str) -> str:
    """Return what is shown beside the pointer, a few lines; Plotly reads tags in it, so none are left."""
    lines = [plain_name(identifier), *textwrap.wrap(plain_line(text, MAX_HOVER_CHARS), _HOVER_LINE_CHARS)]
    return "\n".join(escape(line, quote=False) for line in lines)


def _middle(projection: Projection) -> tuple[list[float], list[float]]:
    """Return the lower and upper ends of both axes that show nearly all tweets: UMAP throws some far out."""
    low_2, high_2 = np.percentile(projection.places_M2, (2.5, 97.5), axis=0)
    margin_2 = 0.15 * (high_2 - low_2) + 1e-3
    return (low_2 - margin_2).tolist(), (high_2 + margin_2).tolist()


def _projection_figure(projection: Projection, labels: Sequence[str], targets_MC: NDArray[np.int8]) -> Figure:
    positives_C = (targets_MC == 1).sum(axis=0)
    # The most frequent labels, in the order of the data.
    drawn = np.sort(np.argsort(-positives_C, kind="stable")[:MAX_LABELS_DRAWN])
    figure, grid = _grid(len(drawn), 3 if len(drawn) <= 9 else 4, 2.7)
    size = float(np.clip(4_000 / max(len(targets_MC), 1), 1.5, 30))
    low, high = _middle(projection)
    for axes, label in zip(grid, drawn, strict=True):
        # Unknown ones below, the others as they come: were positives on top they would seem to be everywhere.
        for values in ((-1,), (0, 1)):
            of_kind_M = np.isin(targets_MC[:, label], values)
            colours = [_COLOURS[value] for value in targets_MC[of_kind_M, label].tolist()]
            x_K, y_K = projection.places_M2[of_kind_M].T
            axes.scatter(x_K, y_K, s=size, c=colours, alpha=0.7, linewidths=0)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.set_title(
            f"{plain_line(labels[label], 24)}  ({whole(int(positives_C[label]))})", fontsize=10.5, loc="left"
        )
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#cccccc")
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=kind) for _, kind, colour in _KINDS[::-1]]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=10)
    notes = [f"{len(drawn)} of {len(labels)} labels, those with the most positives"] if len(drawn) < len(labels) else []
    beyond = int(((projection.places_M2 < low) | (projection.places_M2 > high)).any(axis=1).sum())
    if beyond:
        notes.append(f"{counted(beyond, 'tweet lies', 'tweets lie')} beyond the edges")
    figure.suptitle("; ".join(notes), fontsize=10, color="#555555", y=1 - 0.1 / figure.get_figheight(), va="top")
    return figure
