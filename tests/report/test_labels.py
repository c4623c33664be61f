from __future__ import annotations

import copy
import io
import json
import sys
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console
from sklearn.metrics import roc_auc_score

from browser import chromium, needs_chromium
from scalemine.config import InputError
from scalemine.report import labels as module
from scalemine.report.labels import (
    comparison_tables,
    print_label_runs,
    print_label_scores,
    projection_page,
    roc_figure,
    runs_table,
    summary_table,
    write_roc_figures,
)
from scalemine.training.multilabel.projection import Projection

WIDTH = 80
HOSTILE = "\x1b[31mred\x07\u202e [bold]x[/bold]"
SCRIPT = '<script>alert(1)</script><img src=x onerror="alert(2)"> &amp; </script>'


def printed(show, *arguments):
    buffer = io.StringIO()
    show(Console(file=buffer, width=WIDTH), *arguments)
    text = buffer.getvalue()
    assert max(map(cell_len, text.splitlines())) <= WIDTH
    assert not {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    return text


def cells(table):
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [[cell.text for cell in row] for row in table.rows]


def averages(value):
    return {"macro": value, "weighted": value, "micro": value}


def scores(auc=0.75):
    one = {"num_positive": 30, "num_known": 1_090, "prior": 0.3, "roc_auc": auc, "average_precision": 0.41, "f1": 0.5}
    one |= {"precision": 0.61, "recall": 0.42, "threshold": 0.35, "ece": 0.031}
    group = {"num_rows": 7, "roc_auc": {"macro": 0.66, "micro": None}, "average_precision": {"macro": 0.2}}
    return {
        "num_rows": 1_100,
        "num_known": 2_180,
        "roc_auc": averages(auc),
        "average_precision": averages(0.4),
        "prior": {"roc_auc": averages(0.5), "average_precision": averages(0.25)},
        "micro_f1": 0.55,
        "macro_f1": 0.45,
        "jaccard": 0.35,
        "exact_match": 0.15,
        "ece": 0.025,
        "brier": 0.125,
        "per_label": {"anger": one, HOSTILE: one},
        "groups": {"language": {"en": {**group, "micro_f1": 0.5, "macro_f1": 0.4}}},
        "intervals": {"roc_auc_macro": [0.72, 0.78]},
        "verdict": {"beats_prior": True, "text": "better than the prior"},
    }


def result(name, **sets):
    known = {"best_epoch": 2, "epochs": 5, "chosen_on": "dev", "seconds": 60.0, "device": "cpu"}
    return {"name": name, "metrics": sets, **known}


def nothing(value):
    """The same scores with None for every number."""
    if isinstance(value, dict):
        return {key: nothing(part) for key, part in value.items()}
    return None if isinstance(value, float) else value


# --- Tables


def test_runs_show_the_model_beside_the_prior():
    rows = cells(runs_table("a", [result("a", test=scores(), dev=scores(0.5))]))
    assert rows[0] == ["test", "ROC-AUC, macro", "75.0", "50.0"]
    assert rows[3:7] == [
        ["test", "average precision, macro", "40.0", "25.0"],
        ["test", "F1, micro", "55.0", "–"],
        ["test", "F1, macro", "45.0", "–"],
        ["test", "Jaccard", "35.0", "–"],
    ]
    assert rows[8][:3] == ["dev", "ROC-AUC, macro", "50.0"]
    assert len(rows) == 16


def of_one_label(f1):
    found = scores()
    measures = {"micro_f1": f1, "micro_precision": 0.6, "micro_recall": 0.7, "accuracy": 0.8}
    return found | measures | {"per_label": {"anger": found["per_label"]["anger"]}}


def test_one_label_has_precision_recall_and_accuracy():
    runs = [result(f"a-fold{fold}", test=of_one_label(f1)) for fold, f1 in enumerate((0.5, 0.7))]
    rows = {row[1]: row[2] for row in cells(runs_table("a", runs))}
    assert (rows["F1"], rows["precision"], rows["accuracy"]) == ("60.0 ± 14.1", "60.0 ± 0.0", "80.0 ± 0.0")
    assert not {"Jaccard", "F1, macro"} & rows.keys()
    _, deciding = comparison_tables("test", runs)
    assert [column.heading for column in deciding.columns][1:5] == ["F1", "precision", "recall", "accuracy"]
    assert cells(deciding)[0][1:5] == ["60.0 ± 14.1", "60.0 ± 0.0", "70.0 ± 0.0", "80.0 ± 0.0"]
    assert "accuracy" in {row[0] for row in cells(summary_table("test", of_one_label(0.5)))}


def test_what_a_grid_search_chose_has_rows():
    runs = [
        result(f"a-fold{fold}", test=scores()) | {"chosen": {"C": C, "gamma": 1}} for fold, C in enumerate((10, 1, 10))
    ]
    assert cells(runs_table("a", runs))[:2] == [["grid search", "C", "10, 1", "–"], ["grid search", "gamma", "1", "–"]]


def test_folds_are_mean_and_deviation_of_those_with_a_value():
    folds = [result(f"a-fold{fold}", test=scores(auc)) for fold, auc in enumerate((0.5, 0.7, 0.9, None))]
    table = runs_table("a", folds)
    assert cells(table)[0] == ["test", "ROC-AUC, macro", "70.0 ± 20.0", "50.0 ± 0.0"]
    assert table.caption.endswith("over 4 folds")


def false_alarms(per_1000):
    return {"false_alarms": {"num_tweets": 400, "num_with_alarm": 1, "per_1000": per_1000}}


def test_false_alarms_have_a_row_where_there_are_negatives():
    heading = "false alarms per 1,000 negatives"
    folds = [
        result(f"a-fold{fold}", test=scores() | false_alarms(per_1000), dev=scores() | false_alarms(None))
        for fold, per_1000 in enumerate((2.5, 4.5, None))
    ]
    rows = cells(runs_table("a", folds))
    assert [row for row in rows if row[1] == heading] == [["test", heading, "3.5 ± 1.4", "–"]]
    assert len(rows) == 17
    assert cells(summary_table("test", scores() | false_alarms(12.34)))[-1] == [heading, "12.3", "–", "–"]
    assert heading not in printed(print_label_scores, "test", scores() | false_alarms(None))
    for text in (printed(print_label_runs, folds), printed(print_label_scores, "test", scores() | false_alarms(2.5))):
        assert heading in text


def test_arms_are_compared_on_one_set():
    runs = [result("a-fold0", test=scores(0.6)), result("a-fold1", test=scores(0.8)), result("b", test=scores(0.9))]
    runs.append(result("c", other=scores()))
    ranking, deciding = comparison_tables("test", runs)
    assert [row[0] for row in cells(ranking)] == ["label prior", "a", "b"]
    assert cells(ranking)[1] == ["a", *["70.0 ± 14.1"] * 3, "40.0 ± 0.0", "120"]
    assert cells(deciding) == [
        ["a", "55.0 ± 0.0", "45.0 ± 0.0", "35.0 ± 0.0", "2.5 ± 0.0"],
        ["b", "55.0", "45.0", "35.0", "2.5"],
    ]


def test_printed_runs_say_verdict_epoch_and_time():
    text = printed(print_label_runs, [result("a-fold0", test=scores()), result("a-fold1", test=scores())])
    assert text.count("test: better than the prior") == 1
    assert "epoch chosen on dev: 2 of 5, 2 of 5" in text
    assert "120 s of training on cpu" in text
    assert "ranking" not in text
    both = printed(print_label_runs, [result("a", test=scores()), result(HOSTILE, test=scores())])
    assert "test: ranking, in percent" in both
    assert "[bold]x[/bold]" in both
    baseline = {key: value for key, value in result("b", test=scores()).items() if "epoch" not in key}
    assert "epoch" not in printed(print_label_runs, [baseline])


def test_one_set_in_full():
    text = printed(print_label_scores, "test", scores())
    lines = [line.split() for line in text.splitlines()]
    assert ["anger", "30", "1,090", "30.0", "75.0", "41.0", "50.0", "61.0", "42.0", "0.35", "3.1"] in lines
    assert ["en", "7", "66.0", "–", "20.0", "50.0", "40.0"] in lines
    assert ["ROC-AUC,", "macro", "75.0", "72.0", "to", "78.0", "50.0"] in lines
    assert "1,100 tweets, 2,180 known labels" in text
    assert "better than the prior" in text
    assert cells(summary_table("test", scores()))[-1] == ["Brier score", "12.5", "–", "–"]


def test_what_is_not_known_is_a_dash():
    empty = nothing(copy.deepcopy(scores()))
    assert "–" in printed(print_label_scores, "test", empty)
    assert "–" in printed(print_label_runs, [result("a", test=empty), result("b", test=empty)])
    bare = {**empty, "groups": {}, "intervals": {}, "verdict": None, "prior": {}}
    printed(print_label_scores, "test", bare)
    assert {tuple(row[1:]) for row in cells(summary_table("test", bare))} == {("–", "–", "–")}


# --- Figures


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Figures of few dots, which are soon drawn."""
    monkeypatch.setattr(module, "_DPI", 30)


def is_drawn(path):
    image = imread(path)
    assert image.std() > 0.05
    return image.shape


@pytest.mark.parametrize("number", [0, 1, 10, 11, 40])
def test_roc_figures_are_written_and_the_same_each_time(number, tmp_path):
    rates = np.linspace(0, 1, 30)
    curves = {f"label {index} $x_1$ {HOSTILE}": (rates, rates**0.5, 0.66) for index in range(number)}
    for label in list(curves)[1:2]:
        curves[label] = (np.array([]), np.array([]), None)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    roc_figure(curves, one)
    is_drawn(one)
    if number == 10:
        roc_figure(curves, two)
        assert one.read_bytes() == two.read_bytes()


def test_roc_figures_of_a_run_are_of_what_it_predicted(tmp_path, monkeypatch):
    chance = np.random.default_rng(0)
    expected = {}
    for name in ("dev", "test", "unknown"):
        targets = chance.integers(-1, 2, (50, 3)).astype(np.int8)
        targets[:, 2] = 1 if name == "test" else targets[:, 2]  # without a negative there is no curve
        targets = np.full_like(targets, -1) if name == "unknown" else targets
        values = chance.random((50, 3), np.float32)
        columns = {
            kind: pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), 3)
            for kind, array in (("targets", targets), ("scores", values))
        }
        path = tmp_path / "predictions" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata({"labels": "fear\njoy\npain"}), path)
        known = [targets[:, label] >= 0 for label in range(3)]
        expected[name] = {
            label: roc_auc_score(targets[known[place], place], values[known[place], place])
            for place, label in enumerate(("fear", "joy", "pain"))
            if len(set(targets[known[place], place])) == 2
        }
    drawn = {}
    real = module.roc_figure

    def see(curves, path):
        drawn[path.stem] = {label: auc for label, (_, _, auc) in curves.items()}
        real(curves, path)

    monkeypatch.setattr(module, "roc_figure", see)
    write_roc_figures(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"roc-dev.png", "roc-test.png"}
    assert drawn == {f"roc-{name}": pytest.approx(expected[name]) for name in ("dev", "test")}
    assert sorted(drawn["roc-test"]) == ["fear", "joy"]
    for path in tmp_path.glob("*.png"):
        is_drawn(path)


def test_a_run_without_predictions_has_no_figures(tmp_path):
    write_roc_figures(tmp_path)
    assert not list(tmp_path.iterdir())


class Outline(HTMLParser):
    """Tags, their attributes, and the data of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.data, self._in_data = [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in_data = ("id", "data") in attrs

    def handle_data(self, data):
        if self._in_data:
            self.data += data


@pytest.fixture
def pages(tmp_path):
    def write(labels=("anger", SCRIPT), texts=None):
        rng = np.random.default_rng(1)
        places = rng.normal(size=(60, 2)).astype(np.float32)
        targets = rng.integers(-1, 2, (60, len(labels))).astype(np.int8)
        texts = texts or [SCRIPT, HOSTILE, "long " * 100, *["a tweet"] * 57]
        html, png = tmp_path / "page.html", tmp_path / "page.png"
        ids = [f"<i>{row}" for row in range(60)]
        projection_page(Projection(np.arange(60), places), labels, targets, texts, ids, html, png)
        return html, png, targets

    return write


def test_page_is_self_contained_and_tweets_are_text(pages):
    path, png, targets = pages()
    is_drawn(png)
    outline = Outline(path.read_text("utf-8"))
    assert outline.tags.count("script") == 3
    assert "img" not in outline.tags
    assert not [value for name, value in outline.attributes if name in ("src", "href") or name.startswith("on")]
    policy = next(value for name, value in outline.attributes if name == "content")
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    data = json.loads(outline.data)
    assert "<" not in outline.data
    assert data["hover"][0].startswith("&lt;i&gt;0\n&lt;script&gt;alert(1)&lt;/script&gt;")
    assert len(data["hover"][2].replace("\n", " ")) < 160
    assert data["targets"] == targets.T.tolist()


def test_many_labels_and_many_tweets(pages, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SVG_DOTS", 10)
    path, png, _ = pages([f"label {index}" for index in range(20)])
    is_drawn(png)
    html = path.read_text("utf-8")
    assert html.count("<option") == 20
    assert '"type":"scattergl"' in html


def test_lengths_must_agree_and_plotly_be_there(pages, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="59 texts"):
        pages(texts=["x"] * 59)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install 'scalemine\[umap\]'"):
        pages()
    assert not list(tmp_path.iterdir())


@needs_chromium
def test_page_shows_each_label_and_the_tweet_at_the_pointer(pages, tmp_path):
    path, _, targets = pages()
    with chromium(tmp_path / "profile") as browser:
        page = browser.open(path.as_uri())
        page.wait("document.body?.dataset.ready === 'yes'")
        for label in (0, 1):
            page.value(f"choice.value = '{label}', draw().then(() => 0)")
            counts = [int((targets[:, label] == value).sum()) for value in (-1, 0, 1)]
            assert page.value("document.getElementById('plane').data.map((trace) => trace.x.length)") == counts
        kind = [-1, 0, 1].index(targets[0, 1])
        page.value(f"Plotly.Fx.hover('plane', [{{curveNumber: {kind}, pointNumber: 0}}])")
        assert "<script>alert(1)</script>" in page.wait("document.querySelector('.hoverlayer').textContent")
        assert not page.of_kind("Runtime.exceptionThrown")
        asked = [event["request"]["url"].split(":")[0] for event in page.of_kind("Network.requestWillBeSent")]
        assert set(asked) <= {"file", "data", "blob"}
