from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from browser import chromium, needs_chromium
from scalemine.report.comparison import (
    FORMAT,
    alarms_table,
    contrasts_table,
    drawings,
    escape_latex,
    gains_table,
    labels,
    main_set,
    matrix_tables,
    measures_table,
    models_table,
    notes,
    print_comparison,
    read_comparisons,
    sets_table,
    tables,
    title,
    trials_table,
    write_comparison,
)
from scalemine.report.page import write_comparison_page
from scalemine.store import Workdir, read_json, write_json
from scalemine.sweep.compare import compare
from sweep.sweeps import first, planned, tweets, write_arms, write_plan, write_tagger_run

ROUNDS = 100
POINTS = tuple(
    {"train.model": model, "train.batch_size": size} for model in ("lstm_crf", "cnn_crf") for size in (4, 16)
)
HOSTILE = "a|b_$x & <b>50% #{1}~^\\ \x1b[31m\u202e"


def cells(table):
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Train sets, each in 2 folds with 2 seeds."""
    folder = tmp_path_factory.mktemp("arms")
    write_arms(folder, {"no": (0.4, 0.2), "random": (0.5, 0.1), "2s": (0.8, 0.05)}, folds=2, positives=30)
    return compare(folder, rounds=ROUNDS).as_dict()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Train sets by model and batch size; the larger batch gains more."""
    folder = tmp_path_factory.mktemp("grid")
    gain = {str(point): point["train.batch_size"] / 50 for point in POINTS}
    own = {"random": (0.5, 0.1), "2s": (0.5, 0.1)}
    write_arms(folder, own, folds=0, seeds=(1,), positives=100, space=POINTS, gain=gain)
    return compare(folder, rounds=ROUNDS).as_dict()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Names that mean something to LaTeX, Markdown, HTML and terminals; one run, one unfinished, one stopped."""
    folder = tmp_path_factory.mktemp("hostile")
    of_set = tweets("t", 10, **{HOSTILE: 10})
    trials = []
    # Names of trials are those of files.
    for number, name in enumerate((HOSTILE.replace("\\", ""), "plain", "never")):
        if name != "never":
            run = {f"test_{HOSTILE[:4]}": (of_set, first(of_set, 5 + number, **{HOSTILE: 2}))}
            write_tagger_run(folder, f"run{number}", run, words=HOSTILE, train_set=name, chosen_on=HOSTILE)
        stopped = 1 if name == "plain" else None
        trials.append(planned(name, [(None, 1, f"run{number}")], {"train.train_set": name}, stopped=stopped))
    write_plan(folder, trials, why=HOSTILE, metric=f"test_{HOSTILE[:4]}.f1")
    return compare(folder, rounds=ROUNDS).as_dict()


# --- Words


def test_title_and_notes_say_what_is_compared(arms, grid):
    assert title(arms) == "exp: 2 trials against random; 2 folds × 2 seeds, 5 test sets"
    assert title(grid) == "exp: 4 trials against random with the same other settings; 1 seed, 4 test sets"
    said = " ".join(notes(arms))
    assert "holds the trained models fixed; the fold test (corrected resampled t-test) does not" in said
    assert "95 %" in said
    assert "Not compared on held_out with random: no; 2s (tested on other tweets: 20 of 40" in said


def test_labels_say_what_differs(arms, grid):
    assert labels(arms) == {"no_0": "no", "random_0": "random", "2s_0": "2s"}
    assert labels(grid)["2s_3"] == "2s, cnn_crf, batch size 16"


def test_labels_that_would_be_the_same_are_names():
    trials = [{"name": name, "side": "2s", "others": {}} for name in ("a", "b")]
    assert labels({"trials": trials}) == {"a": "a", "b": "b"}


def test_what_is_missing_is_said(hostile):
    said = notes(hostile)
    assert any(one.startswith("plain: stopped after 1 fold for being behind; 1 of 1 runs") for one in said)
    assert "never: 0 of 1 runs are finished." in said
    assert any("never (no run of never is finished)" in one for one in said)


def test_epochs_chosen_on_the_held_out_fold_are_said_to_flatter(arms):
    assert "flattered" not in " ".join(notes(arms))
    chosen = {**arms, "chosen_on": ["the held-out fold (the published way)"]}
    assert "so that what is scored there is flattered" in " ".join(notes(chosen))


@pytest.mark.parametrize(
    ("search", "scheduler", "metric", "ways"),
    [
        ("grid", "none", "test_random.f1", None),
        ("tpe", "none", "test_random.f1", "tpe"),
        ("grid", "asha", "test_random.f1", "asha"),
        ("random", "asha", "test_random.f1", "random, asha"),
        ("tpe", "asha", "dev.f1", None),
        ("tpe", "asha", "held_out.f1", None),  # of other tweets by arm, so not compared
    ],
)
def test_p_values_of_what_the_metric_chose_are_said_to_be_optimistic(arms, search, scheduler, metric, ways):
    said = [
        one for one in notes({**arms, "search": search, "scheduler": scheduler, "metric": metric}) if "optimi" in one
    ]
    assert len(said) == (ways is not None)
    if ways is not None:
        assert f"({ways}) by test_random.f1, and they are compared on test_random too" in said[0]


def test_the_rounds_that_were_drawn_are_said(tmp_path):
    write_arms(tmp_path, dict.fromkeys(("random", "1s", "2s"), (0.5, 0.1)), folds=0, seeds=(1,), positives=10)
    assert "bootstrap over tweets (399 rounds)" in " ".join(notes(compare(tmp_path, rounds=ROUNDS).as_dict()))


# --- Sweeps that are not finished, or in which there is nothing to compare


def outputs(comparison, folder):
    """Return all that is written of a comparison, once each table is seen to have rows and columns."""
    for table in tables(comparison):
        assert table.rows
        assert all(len(row) == len(table.columns) > 1 for row in table.rows)
        assert any(cell.text not in ("–", "") for row in table.rows for cell in row[1:])
    buffer = io.StringIO()
    print_comparison(Console(file=buffer, width=100), comparison)
    paths = [*write_comparison(comparison, folder), folder / "page.html"]
    write_comparison_page(comparison, paths[-1])
    return buffer.getvalue() + "".join(path.read_text("utf-8") for path in paths)


def test_a_sweep_of_one_trial(tmp_path):
    of_set = tweets("t", 10, random=10)
    write_tagger_run(tmp_path, "a", {"test_random": (of_set, first(of_set, 5, random=1))})
    write_plan(tmp_path, [planned("only", [(None, 1, "a")], {"train.lr": 0.1})])
    comparison = compare(tmp_path, rounds=ROUNDS).as_dict()
    assert title(comparison) == "exp: only; 1 seed, 1 test set"
    assert "Nothing is compared: the sweep has one trial." in notes(comparison)
    assert not any("bootstrap" in one for one in notes(comparison))
    assert drawings(comparison) == []
    assert cells(sets_table(comparison)) == {"only": ["62.5", "3.0"]}
    assert "Differences on" not in outputs(comparison, tmp_path)


def test_a_sweep_in_which_no_other_trial_is_finished(tmp_path):
    write_arms(tmp_path, {"random": (0.5, 0.1), "2s": (0.6, 0.1)}, folds=2, seeds=(1,), positives=10, space=POINTS)
    for path in Workdir(tmp_path).runs.glob("2s-*"):
        (path / "result.json").unlink()
    for path in Workdir(tmp_path).runs.glob("random-[123]-*"):
        (path / "result.json").unlink()
    comparison = compare(tmp_path, rounds=ROUNDS).as_dict()
    said = notes(comparison)
    assert any(one.startswith("Not compared with") and "is finished" in one for one in said)
    assert not any("bootstrap" in one or "one trial" in one for one in said)
    assert drawings(comparison) == []
    assert "over 2 folds" in outputs(comparison, tmp_path)


def test_a_sweep_that_is_tested_on_nothing_but_its_dev_part(tmp_path):
    of_set = tweets("t", 10)
    trials = []
    for number, lr in enumerate((0.1, 0.2)):
        write_tagger_run(tmp_path, f"r{number}", {"dev": (of_set, first(of_set, 5 + number))})
        trials.append(planned(f"t{number}", [(None, 1, f"r{number}")], {"train.lr": lr}))
    write_plan(tmp_path, trials, metric="dev.f1")
    comparison = compare(tmp_path, rounds=ROUNDS).as_dict()
    assert main_set(comparison) is None
    assert [table.caption for table in tables(comparison)] == ["Trials of exp; of the metric more is better"]
    assert "lr 0.2" in outputs(comparison, tmp_path)


def test_captions_say_that_runs_are_missing(arms, tmp_path):
    shown = [table.caption for table in tables(arms)] + [
        one.caption for one in (measures_table(arms, "test_1s"), alarms_table(arms))
    ]
    assert any("mean ± standard deviation over 2 folds × 2 seeds" in one for one in shown)
    assert not any("finished" in one for one in shown)
    write_arms(tmp_path, {"random": (0.5, 0.1), "1s": (0.5, 0.1), "2s": (0.8, 0.05)}, folds=2, positives=10)
    runs = Workdir(tmp_path).runs
    for path in runs.glob("1s-*"):
        (path / "result.json").unlink()
    # A trial without a run is in no mean.
    assert "deviation over 2 folds × 2 seeds" in sets_table(compare(tmp_path, rounds=ROUNDS).as_dict()).caption
    (runs / "2s-0-1-2" / "predictions" / "test_1s.parquet").unlink()
    found = compare(tmp_path, rounds=ROUNDS).as_dict()
    assert "mean over the finished runs of 2 folds × 2 seeds" in gains_table(found).caption
    (runs / "2s-0-1-2" / "result.json").unlink()
    found = compare(tmp_path, rounds=ROUNDS).as_dict()
    for table in (sets_table(found), measures_table(found, "test_1s"), alarms_table(found)):
        assert "deviation over the finished runs of 2 folds × 2 seeds" in table.caption


def test_differences_without_folds_have_one_star_and_say_so(grid):
    assert any(one["holm_p"] < 0.05 for one in grid["contrasts"])
    for row in contrasts_table(grid, "test_random_plus").rows:
        said, difference, of_folds = row[2].text, row[5].text, row[7].text
        is_evidence = said.startswith(("better", "worse"))
        assert difference.count("*") == is_evidence
        assert said.endswith("with these models; not tested over folds") == is_evidence
        assert of_folds == "–"


# --- Tables


def test_tables_in_the_shape_of_the_paper(arms):
    scores = {trial["name"]: trial["scores"] for trial in arms["trials"]}
    f1 = scores["2s_0"]["test_1s"]["f1"]
    by_set = sets_table(arms)
    assert [column.heading for column in by_set.columns] == [
        "Trial", "held_out", "test_random", "test_random_plus", "test_1s", "test_2s", "Epoch chosen",
    ]  # fmt: skip
    assert cells(by_set)["2s"][3] == f"{100 * f1['mean']:.1f} ± {100 * f1['sd']:.1f}"
    assert cells(by_set)["2s"][-1] == "3.0 ± 0.0"
    assert main_set(arms) == "test_random_plus"
    measures = measures_table(arms, "test_random_plus")
    assert "330 tweets, 300 of them negatives" in measures.caption
    assert "over 2 folds × 2 seeds" in measures.caption
    precision = scores["no_0"]["test_random_plus"]["precision"]["mean"]
    assert cells(measures)["no"][1].startswith(f"{100 * precision:.1f} ± ")
    assert cells(trials_table(arms))["random"][:2] == ["(base)", "4 of 4"]
    alarms = alarms_table(arms)
    assert [column.heading for column in alarms.columns[1:]] == [
        "random (300 of test_random_plus)", "mined_1s (30 of test_1s)", "mined_2s (30 of test_2s)",
    ]  # fmt: skip
    rate = scores["no_0"]["test_1s"]["false_alarms.mined_1s"]["mean"]
    assert cells(alarms)["no"][1].startswith(f"{rate:.1f} ± ")
    assert models_table(arms, "test_random_plus") is None
    assert matrix_tables(arms) == []


def test_epochs_stand_in_tables_of_what_has_any(arms):
    assert "Epochs run" in [column.heading for column in trials_table(arms).columns]
    none = {key: {"mean": 0.0, "sd": 0.0, "n": 4} for key in ("best_epoch", "epochs")}
    classical = arms | {"trials": [trial | none for trial in arms["trials"]]}
    for table in (trials_table(classical), sets_table(classical)):
        assert not any("poch" in column.heading for column in table.columns)
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert any(note.startswith("Thresholds were chosen on") for note in notes(classical))
    assert any(note.startswith("Epochs were chosen on") for note in notes(arms))


def test_differences_have_intervals_and_a_star_where_there_is_evidence(arms):
    found = {(one["trial"], one["measure"]): one for one in arms["contrasts"] if one["test_set"] == "test_random_plus"}
    table = contrasts_table(arms, "test_random_plus")
    assert "trials against random, 4 pairs of runs" in table.caption
    for row in table.rows:
        trial, measure, said, _, _, difference, *_ = (cell.text for cell in row)
        name = {"F1": "f1", "P": "precision", "R": "recall", "alarms per 1,000": "false_alarms"}[measure]
        one = found[f"{trial}_0", name]
        assert one["verdict"].split(" by ")[0].split(" (")[0] == said.split(" with ")[0]
        by_tweets, by_folds = one["holm_p"] < 0.05, (one["folds_holm_p"] or 0.0) < 0.05
        assert difference.count("*") == (0 if not by_tweets else 1 + (one["folds_holm_p"] is not None and by_folds))
        assert by_tweets == said.startswith(("better", "worse"))
        assert said.endswith("no evidence over folds") == (by_tweets and not by_folds)
    assert {row[2].text.split(" with ")[0] for row in table.rows} >= {"better", "worse"}
    assert cells(gains_table(arms)).keys() == {"no", "2s"}
    assert [column.heading for column in gains_table(arms).columns[1:]] == [
        "test_random", "test_random_plus", "test_1s", "test_2s",
    ]  # fmt: skip


def test_models_and_embeddings_are_rows_with_train_sets_as_columns(grid):
    table = models_table(grid, "test_random_plus")
    assert [column.heading for column in table.columns] == [
        "Model", "Embedding", "Other settings", "random", "2s", "2s − random",
    ]  # fmt: skip
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:3] for row in rows] == [
        [point["train.model"], "bertweet, frozen", f"batch size {point['train.batch_size']}"] for point in POINTS
    ]
    for row in rows:
        assert float(row[5].split("*")[0].split(" ")[0].replace("−", "-")) == pytest.approx(
            float(row[4]) - float(row[3]), abs=0.11
        )
    assert "2s, cnn_crf, batch size 16 against random" in cells(gains_table(grid))


def test_two_numeric_settings_make_a_matrix(tmp_path):
    of_set, trials = tweets("t", 10), []
    for lr in (1e-3, 1e-4):
        for size in (4, 16):
            name = f"{lr}-{size}"
            hits = 1 + (lr == 1e-3) + 2 * (size == 16)
            write_tagger_run(tmp_path, name, {"test_no": (of_set, first(of_set, hits))})
            trials.append(planned(name, [(None, 1, name)], {"train.lr": lr, "train.batch_size": size}))
    write_plan(tmp_path, trials, metric="test_no.recall")
    (table,) = matrix_tables(compare(tmp_path, rounds=ROUNDS).as_dict())
    assert [column.heading for column in table.columns] == ["lr \\ batch size", "4", "16"]
    assert cells(table) == {"0.0001": ["10.0", "30.0"], "0.001": ["20.0", "40.0"]}


def test_gains_are_drawn_by_the_batch_size(arms, grid):
    assert drawings(arms) == []
    (one,) = drawings(grid)
    assert one.name == "gain-by-batch-size"
    assert "less that of random with the same batch size" in one.caption
    assert "95 %" in one.caption
    for text in (" 2s, lstm_crf", " 2s, cnn_crf", ">batch size<", ">4<", ">16<"):
        assert text in one.svg


# --- Terminal


@pytest.mark.parametrize("width", [80, 130])
def test_terminal(arms, grid, hostile, width):
    for comparison in (arms, grid, hostile):
        buffer = io.StringIO()
        print_comparison(Console(file=buffer, width=width), comparison)
        lines = buffer.getvalue().splitlines()
        assert max(map(cell_len, lines)) <= width
        assert not re.search("[\x1b\u202e]", buffer.getvalue())
        assert lines[0] == title(comparison)[: len(lines[0])]
        assert "secret" not in buffer.getvalue()


# --- Files


def test_csv_has_every_number_in_long_form(arms, tmp_path):
    write_comparison(arms, tmp_path)
    with (tmp_path / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for trial in arms["trials"]:
        for key, of_set in trial["scores"].items():
            for measure, summary in of_set.items():
                (row,) = [
                    row
                    for row in rows
                    if (row["trial"], row["test_set"], row["measure"]) == (trial["name"], key, measure)
                ]
                assert (float(row["mean"]), int(row["n"])) == (summary["mean"], summary["num_runs"])
                assert json.loads(row["settings"]) == trial["settings"]
    assert sum(bool(row["verdict"]) for row in rows) == len(arms["contrasts"])
    for one in arms["contrasts"]:
        (row,) = [
            row
            for row in rows
            if (row["trial"], row["test_set"], row["measure"]) == (one["trial"], one["test_set"], one["measure"])
        ]
        assert float(row["effect"]) == one["difference"]["effect"]
        assert float(row["holm_p"]) == one["holm_p"]
        assert float(row["fold_test_p"]) == one["folds"]["p"] if one["folds"]["p"] is not None else True
    assert {row["measure"] for row in rows if not row["test_set"]} == {
        "test_random.f1", "best_epoch", "epochs", "seconds",
    }  # fmt: skip


def test_latex_is_balanced_and_escaped(arms, grid, hostile, tmp_path):
    for comparison in (arms, grid, hostile):
        write_comparison(comparison, tmp_path)
        text = (tmp_path / "comparison.tex").read_text("utf-8")
        body = text[text.index(r"\begin{document}") :]
        assert re.findall(r"\\begin{(\w+)}", text).count("tabular") == len(tables(comparison))
        opened = []
        for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        assert not opened
        for tabular in re.findall(r"\\begin{tabular}{([lr]+)}\n(.*?)\\end{tabular}", text, re.S):
            align, rows = tabular
            for row in [line for line in rows.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]:
                assert row.endswith(r" \\")
                assert len(re.findall(r"(?<!\\)&", row)) == len(align) - 1
        plain = re.sub(r"\\.", "", body)
        depth = 0
        for character in plain:
            depth += (character == "{") - (character == "}")
            assert depth >= 0
        assert depth == 0
        assert re.sub(r"\\[&%$#_{}]|\\\w+", "", body).count("$") % 2 == 0
        assert not re.search(r"(?<!\\)[#%]", body)
        assert not re.search(r"[~^]", body)
        assert all(ord(character) < 0x17F for character in text)


def test_latex_escapes():
    assert escape_latex(r"50% of a_b & c\d {e} $f #1 ~ ^") == (
        r"50\% of a\_b \& c\textbackslash{}d \{e\} \$f \#1 \textasciitilde{} \textasciicircum{}"
    )
    assert escape_latex("2σ ± 1 − ü 大") == r"2$\sigma$ $\pm$ 1 $-$ ü ?"


def test_markdown_tables_have_as_many_cells_as_headings(hostile, grid, tmp_path):
    for comparison in (hostile, grid):
        write_comparison(comparison, tmp_path)
        text = (tmp_path / "comparison.md").read_text("utf-8")
        rows = [line for line in text.splitlines() if line.startswith("|")]
        bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
        shown = [len(table.columns) + 1 for table in tables(comparison) for _ in range(len(table.rows) + 2)]
        assert bars == shown
        assert "<b>" not in text
    assert "](gain-by-batch-size.svg)" in text


def test_files_of_a_comparison(grid, arms, tmp_path):
    paths = write_comparison(grid, tmp_path)
    assert {path.name for path in paths} == {
        "comparison.md", "comparison.tex", "comparison.csv", "comparison.json", "gain-by-batch-size.svg",
    }  # fmt: skip
    assert read_json(tmp_path / "comparison.json") == {"format": FORMAT, **grid}
    assert (tmp_path / "gain-by-batch-size.svg").read_text("utf-8").startswith("<svg")
    for path in paths:
        assert "secret" not in path.read_text("utf-8")
    write_comparison(arms, tmp_path)
    assert not (tmp_path / "gain-by-batch-size.svg").exists()


# --- Page


def test_page_holds_no_markup_of_names(hostile, tmp_path):
    write_comparison_page(hostile, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "<b>50" not in html
    assert "&lt;b&gt;50" in html
    assert "\u202e" not in html


@needs_chromium
def test_page_in_a_browser(grid, tmp_path):
    path: Path = tmp_path / "page.html"
    write_comparison_page(grid, path)
    with chromium(tmp_path / "profile") as browser:
        page = browser.open(path.as_uri(), width=900)
        page.wait("document.readyState === 'complete'")
        assert page.value("document.querySelectorAll('table').length") == len(tables(grid))
        assert page.value("document.querySelectorAll('figure svg').length") == 1
        assert page.value("document.querySelectorAll('details[open]').length") == 1
        assert page.value("document.documentElement.scrollWidth") <= 900
        assert not page.of_kind("Log.entryAdded")


def test_report_of_a_mined_run_has_a_section(workdir, grid):
    from scalemine.report.page import write_report

    before = write_report(workdir).read_text("utf-8")
    assert 'id="comparisons"' not in before
    write_comparison(grid, Workdir(workdir.root).sweeps / "exp")
    html = write_report(workdir).read_text("utf-8")
    assert 'id="comparisons"' in html
    assert "4 trials against random with the same other settings" in html
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_a_comparison_of_another_version_is_left_out_and_named(arms, tmp_path, caplog):
    write_comparison(arms, tmp_path / "sweeps/new")
    write_json(tmp_path / "sweeps/old/comparison.json", {"sweep": "old"})
    with caplog.at_level("WARNING", logger="scalemine"):
        [found] = read_comparisons(Workdir(tmp_path))
    assert found["sweep"] == arms["sweep"]
    [record] = caplog.records
    assert "sweeps/old/comparison.json" in record.message
    assert "scalemine compare" in record.message
