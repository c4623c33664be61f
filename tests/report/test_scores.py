from __future__ import annotations

import copy
import io
import math
import unicodedata

import pytest
from rich.cells import cell_len
from rich.console import Console

from scalemine.report import scores as module
from scalemine.report.scores import alarms_table, conventions_table, print_runs, print_scores, runs_table
from scalemine.training.tagging.metrics import score

WIDTH = 80
RUNS = ["set", "F1", "P", "R", "macro", "false", "alarms"]
MEASURES = ["F1", "P", "R", "gold", "found", "right"]
ALARMS = ["tweets", "without", "a", "span", "tweets", "alarms", "per", "1,000", "95", "%"]
HOSTILE = "\x1b[31mred\x07\u202e [bold]x[/bold]"
MARKUP = "[bold]x[/bold]"


def printed(show, *arguments):
    buffer = io.StringIO()
    show(Console(file=buffer, width=WIDTH), *arguments)
    return buffer.getvalue()


def cells(table):
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def assert_fits(text, *headings):
    """No line is too long, nothing steers the terminal, and the headings of a table stand in one line."""
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= WIDTH
    assert not {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    assert "…" not in text.replace("xx…", "")  # only names are cut, numbers never
    for heading in headings:
        assert heading in [line.split() for line in lines]


def metrics(f1, precision, recall, macro_f1, alarms=None):
    """The part of a test set's scores that the table of runs shows; alarms: how many of how many."""
    false_alarms = {"no_gold": {"num_tweets": 9, "per_1000": 111.1}}
    if alarms is not None:
        false_alarms["all"] = {"num_tweets": alarms[1], "per_1000": 1_000 * alarms[0] / max(alarms[1], 1)}
    rates = {"f1": f1, "precision": precision, "recall": recall, "macro_f1": macro_f1}
    return {**rates, "false_alarms": false_alarms}


def result(name, sets, **changes):
    defaults = {"best_epoch": 3, "epochs": 7, "chosen_on": "a dev part", "seconds": 100.4, "device": "cpu"}
    return {"name": name, "metrics": sets, **defaults, **changes}


# --- Runs


def test_one_run_is_shown_as_it_is():
    table = runs_table(
        "lstm", [result("lstm", {"random": metrics(0.5, 0.25, 1.0, 0.125, (3, 40)), "no": metrics(0, 0, 0, 0)})]
    )
    assert cells(table) == {
        "random": ["50.0", "25.0", "100.0", "12.5", "75.0"],
        "no": ["0.0", "0.0", "0.0", "0.0", "–"],
    }
    assert "folds" not in table.caption


def test_folds_are_shown_as_mean_and_standard_deviation():
    folds = [
        result("arm-fold0", {"a": metrics(0.5, 0.1, 0.9, 0.2, (1, 10)), "b": metrics(0.1, 0.1, 0.1, 0.1)}),
        result("arm-fold1", {"a": metrics(0.7, 0.2, 0.8, 0.2, (2, 10)), "b": metrics(0.3, 0.1, 0.1, 0.1)}),
        result("arm-fold2", {"a": metrics(0.9, 0.6, 0.1, 0.2, (0, 0))}),
    ]
    table = runs_table("arm", folds)
    assert cells(table) == {
        # Deviations of n - 1: of 50, 70, 90; of 10, 20, 60; of 90, 80, 10; the third fold has no negatives.
        "a": ["70.0 ± 20.0", "30.0 ± 26.5", "60.0 ± 43.6", "20.0 ± 0.0", f"150.0 ± {math.sqrt(2) * 50:.1f}"],
        "b": ["20.0 ± 14.1", "10.0 ± 0.0", "10.0 ± 0.0", "10.0 ± 0.0", "–"],
    }
    assert table.caption.endswith("mean ± standard deviation over 3 folds")


def test_sets_without_negatives_show_a_dash():
    for alarms in (None, (0, 0)):
        table = runs_table("arm", [result("arm", {"no": metrics(0.5, 0.5, 0.5, 0.5, alarms)})])
        assert cells(table)["no"] == ["50.0", "50.0", "50.0", "50.0", "–"]


def test_runs_of_an_arm_are_put_together_and_arms_apart():
    sets = {"random": metrics(0.25, 0.5, 0.75, 1.0, (1, 8))}
    results = [
        result("lstm-fold0", sets, best_epoch=3, seconds=1_000.2),
        result("other", sets, best_epoch=5, epochs=6, seconds=2, chosen_on="dev.parquet", device="cuda"),
        result("lstm-fold1", sets, best_epoch=4, epochs=8, seconds=500.4),
        result("lstm-folding", sets, best_epoch=1),
    ]
    text = printed(print_runs, results)
    assert_fits(text, RUNS)
    captions = " ".join(text.split())  # a caption is folded
    assert captions.count("over 2 folds") == 1
    assert captions.count("false alarms per 1,000 negatives") == 3
    assert "epoch chosen on a dev part: 3 of 7, 4 of 8\n1,501 s of training on cpu" in text
    assert "epoch chosen on dev.parquet: 5 of 6\n2 s of training on cuda" in text
    places = [text.index(name) for name in ("lstm:", "other:", "lstm-folding:")]
    assert places == sorted(places)


def test_wide_numbers_and_long_names_lose_nothing():
    name = "test_" + "x" * 80
    rates = [(1.0, 1.0, 1.0, 1.0, (9, 9)), (0.0, 0.0, 0.0, 0.0, (0, 9))]
    folds = [result(f"{name}-fold{i}", {name: metrics(*one), "b": metrics(*one)}) for i, one in enumerate(rates)]
    text = printed(print_runs, folds)
    assert_fits(text, RUNS)
    assert text.count("50.0 ± 70.7") == 8
    assert text.count("500.0 ± 707.1") == 2


# --- Scores of one set


def real_scores(kind="mined_2s", type_="who", **arguments):
    gold = [[f"B-{type_}", f"I-{type_}", "O"], ["O", "O", "B-place"], ["O", "O", "O"], ["O", "O", "O"]]
    predicted = [[f"B-{type_}", f"I-{type_}", "O"], ["O", "B-place", "I-place"], ["O", "I-place", "O"], ["O", "O", "O"]]
    words = [["two", "hurt", "."], ["near", "the", "bridge"], ["all", "calm", "."], ["all", "well", "."]]
    return score(gold, predicted, words, negative_kinds=[None, None, kind, kind], **arguments)


def test_every_convention_shows_its_numbers():
    scores = real_scores(known_surfaces={("place", "bridge")}, num_bootstrap=0)
    table = conventions_table("test_2s", scores)
    # Gold 2, found 3, right 1: exact. The overlap earns 1 and 1/2. Three words of gold, five found, three right.
    assert cells(table) == {
        "exact spans, micro (conlleval)": ["40.00", "33.33", "50.00", "2", "3", "1"],
        "exact spans, strict IOB2": ["50.00", "50.00", "50.00", "2", "2", "1"],
        "spans of one type that overlap (half credit)": ["60.00", "50.00", "75.00", "2", "3", "–"],
        "words": ["75.00", "60.00", "100.00", "3", "5", "3"],
        "distinct surfaces": ["40.00", "33.33", "50.00", "2", "3", "1"],
        "exact spans, macro over types": ["50.00", "50.00", "50.00", "–", "–", "–"],
        "surfaces seen in training (recall)": ["–", "–", "0.00", "1", "–", "0"],
        "surfaces unseen in training (recall)": ["–", "–", "100.00", "1", "–", "1"],
    }
    assert table.caption == "test_2s: 4 tweets, in percent"
    without = conventions_table("test_2s", real_scores(num_bootstrap=0))
    assert not any("training" in name for name in cells(without))


def test_the_interval_stands_beside_its_measure():
    scores = real_scores(num_bootstrap=50)
    scores["intervals"]["f1"] = [0.1234, 0.9]
    assert conventions_table("x", scores).caption == "x: 4 tweets, in percent; F1 is 12.3 to 90.0 (95 %)"


def test_alarms_are_shown_for_what_is_there():
    alarms = copy.deepcopy(real_scores(num_bootstrap=0)["false_alarms"])
    alarms["mined_2s"] |= {"interval": [94.53, 905.47]}
    alarms["all"] |= {"num_tweets": 0}
    alarms["no_gold"] |= {"num_tweets": 12_345, "num_with_alarm": 1_000, "per_1000": 81.0045, "interval": None}
    table = alarms_table("test_2s", alarms)
    assert cells(table) == {
        "mined_2s": ["2", "1", "500.0", "94.5 to 905.5"],
        "all without a gold span": ["12,345", "1,000", "81.0", "–"],
    }


def test_scores_are_printed_with_each_type_and_the_alarms():
    text = printed(print_scores, "test_2s", real_scores(num_bootstrap=50))
    assert_fits(text, ["measure", *MEASURES], ["type", *MEASURES], ALARMS)
    lines = [line.split() for line in text.splitlines()]
    assert ["who", "100.00", "100.00", "100.00", "1", "1", "1"] in lines
    assert ["place", "0.00", "0.00", "0.00", "1", "2", "0"] in lines
    assert any(line[:4] == ["mined_2s", "2", "1", "500.0"] for line in lines)
    assert any(line[:4] == ["negatives", "2", "1", "500.0"] for line in lines)


def test_large_counts_fit():
    scores = real_scores(num_bootstrap=50, known_surfaces=set())
    large = {"num_gold": 12_345_678, "num_predicted": 12_345_678, "num_correct": 12_345_678}
    for one in (scores, *(scores[part] for part in ("strict_iob2", "overlap", "token", "surface", "seen", "unseen"))):
        one |= {"f1": 1.0, "precision": 1.0, "recall": 1.0} | large
    for one in scores["false_alarms"].values():
        one |= {"num_tweets": 12_345_678, "num_with_alarm": 12_345_678, "per_1000": 1_000.0, "interval": [1_000.0] * 2}
    text = printed(print_scores, "n" * 50, scores)
    assert_fits(text, ["measure", *MEASURES])
    # Seven conventions with three counts each, and three rows of false alarms with two.
    assert text.count("12,345,678") == 7 * 3 + 3 * 2
    assert text.count("1000.0 to 1000.0") == 3


def test_tables_without_a_row_are_left_out():
    calm = printed(print_scores, "calm", score([["O"]], [["O"]], [["calm"]], num_bootstrap=0))
    assert_fits(calm, ["measure", *MEASURES], ALARMS)
    assert "by type" not in calm
    fire = printed(print_scores, "fire", score([["B-a"]], [["B-a"]], [["fire"]], num_bootstrap=0))
    assert_fits(fire, ["measure", *MEASURES], ["type", *MEASURES])
    assert "alarms" not in fire


# --- Names


def test_names_are_made_plain_wherever_they_come_from():
    scores = real_scores(kind=HOSTILE, type_=HOSTILE, num_bootstrap=50)
    text = printed(print_scores, HOSTILE, scores)
    assert_fits(text)
    assert text.count("␛[31mred␇ " + MARKUP) >= 4  # the set in three captions, and a row; a long row may be folded
    runs = [result(HOSTILE, {HOSTILE: metrics(0.5, 0.5, 0.5, 0.5)}, chosen_on=HOSTILE)]
    text = printed(print_runs, runs)
    assert_fits(text)
    assert f"epoch chosen on ␛[31mred␇ {MARKUP}: 3 of 7" in text


@pytest.mark.parametrize(
    ("name", "arm"), [("a-fold0", "a"), ("a-fold12", "a"), ("a-fold", "a-fold"), ("fold1", "fold1")]
)
def test_the_fold_is_no_part_of_the_arm(name, arm):
    text = printed(print_runs, [result(name, {"x": metrics(0, 0, 0, 0)})])
    assert f"\n{arm}: exact spans" in text
    assert module._FOLD.sub("", name) == arm
