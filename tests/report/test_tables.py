import io
import json
import unicodedata

import pytest
from rich.cells import cell_len
from rich.console import Console

from scalemine.config import ComputeConfig
from scalemine.report import tables
from scalemine.store import Workdir
from scalemine.throughput import Effort, Work

NEVER_SHOWN = {"Cc", "Cf", "Cs"}


def printed(workdir, width=80, **options):
    buffer = io.StringIO()
    tables.print_report(Console(file=buffer, width=width), workdir, **options)
    return buffer.getvalue()


def set_manifest(workdir, **changes):
    manifest = json.loads(workdir.manifest.read_text("utf-8"))
    manifest.update(changes)
    workdir.manifest.write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n\tc\u2028d", "a b c d"),
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("\x9b31m\x7f", "\ufffd31m␡"),
        ("a\u202eb\u2066c\u200fd\ufeff\u00ad", "abcd"),
        ("\ud800", "\ufffd"),
        ("👩\u200d🚒", "👩\u200d🚒"),
        ("e" + "\u0301" * 9, "e" + "\u0301" * 3),
        ("[bold]x", "[bold]x"),
        ("", ""),
    ],
)
def test_plain_line_obeys_nothing(text, shown):
    assert tables.plain_line(text, 80) == shown


def test_plain_line_cuts_long_texts():
    assert tables.plain_line("x" * 80, 80) == "x" * 80
    assert tables.plain_line("x" * 10_000, 80) == "x" * 79 + "…"
    assert tables.plain_line("a" + " " * 10_000 + "b", 80) == "a…"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.2 s"), (59.94, "59.9 s"), (192, "3 min 12 s"), (7_500, "2 h 05 min"), (None, "–")]
)
def test_duration(seconds, shown):
    assert tables.duration(seconds) == shown


def test_numbers_that_are_not_there_are_dashes():
    assert tables.whole(None) == tables.decimal(None) == tables.percent(float("nan")) == tables.rate(None) == "–"
    assert (tables.percent(0.0027), tables.percent(0.684), tables.percent(0)) == ("0.27", "68.4", "0.0")
    assert (tables.rate(9.96), tables.rate(1234.6)) == ("10.0", "1,235")


def test_distributions_table_ends_with_the_normal_curve(workdir):
    table = tables.distributions_table(tables.read_findings(workdir).distributions, 0.8)
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0] == [
        "flood",
        "40",
        "0.200",
        "0.060",
        "+0.31",
        "-0.12",
        "0.021",
        "0.991",
        "68.4",
        "27.0",
        "4.2",
        "0.39",
    ]
    assert texts[-1][0] == "normal curve"
    assert texts[-1][-4:] == ["68.3", "27.2", "4.3", "0.27"]
    assert [row[7].note for row in table.rows] == ["", "weak", "", ""]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_yield_table_joins_forecast_and_flags_what_is_short():
    forecast = [{"class_name": "a", "band": band, "quota": 5, "expected": 9.6, "low": 7, "high": 12} for band in (2, 3)]
    mined = [{"class_name": "a", "band": band, "quota": 5, "available": 8, "found": 7 - band} for band in (1, 2, 3)]
    rows = tables.yield_table(mined, forecast).rows
    assert [[cell.text for cell in row] for row in rows] == [
        ["a", "1σ", "5", "–", "8", "6", ""],
        ["a", "2σ", "5", "10 (7–12)", "8", "5", ""],
        ["a", "3σ", "5", "10 (7–12)", "8", "4", "1"],
    ]
    assert [row[-1].note for row in rows] == ["", "", "short"]
    only_forecast = tables.yield_table([], forecast).rows
    assert [cell.text for cell in only_forecast[0]] == ["a", "2σ", "5", "10 (7–12)", "–", "–", ""]


def test_sets_timings_and_reasons():
    sets = tables.sets_table([{"name": "train_1s", "positives": 9, "negatives": 7, "wanted_negatives": 9}])
    assert [cell.text for cell in sets.rows[0]] == ["train_1s", "9", "7", "9", "2"]
    timings = tables.timings_table({"import": 1.0, "embed": 3.0})
    assert [[cell.text for cell in row] for row in timings.rows] == [
        ["import", "1.0 s", "25.0"],
        ["embed", "3.0 s", "75.0"],
        ["all stages", "4.0 s", ""],
    ]
    reasons = tables.reasons_table("Rejects", "Reason", {"b": 1, "a": 1, "c": 2})
    assert [row[0].text for row in reasons.rows] == ["c", "a", "b"]


@pytest.mark.parametrize(("tails", "z"), [("both", ["|z| < 1", "1 ≤ |z| < 2"]), ("upper", ["0 ≤ z < 1", "1 ≤ z < 2"])])
def test_bands_table_says_where_bands_lie(workdir, tails, z):
    findings = tables.read_findings(workdir)
    table = tables.bands_table(findings.distributions[0], findings.entries("yield"), tails)
    assert [row[1].text for row in table.rows][:2] == z
    assert [row[-1].text for row in table.rows] == ["40", "40", "28", "–"]


def test_sample_negatives_are_the_first_of_the_file(workdir):
    negatives = tables.read_findings(workdir).negatives
    samples = tables.sample_negatives(negatives, 2, "flood")
    assert {band: [row["id"] for row in rows] for band, rows in samples.items()} == {
        1: ["flood-0", "flood-1"],
        2: ["flood-6", "flood-7"],
        3: ["flood-12", "flood-13"],
    }
    assert tables.sample_negatives(negatives, 2, "no such class") == {}


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_report_is_plain_text_that_fits(workdir, width):
    text = printed(workdir, width)
    *lines, last = text.splitlines()
    assert last == f"report: {workdir.report}"
    assert max(cell_len(line) for line in lines) <= width
    assert not {c for c in text if c != "\n" and c not in "\u200c\u200d" and unicodedata.category(c) in NEVER_SHOWN}
    assert "[bold]x[/bold] :smile:" in text
    assert "<script>alert(1)</script>" in text
    assert "warning: earthquake: AUC 0.710" in text
    assert "135 tweets/s" in text
    assert "3 quotas were not filled" in text
    for name in ("flood", "earthquake", "<b>ürün & $x"):
        assert name in text


def test_terminal_report_shows_as_many_negatives_as_asked(workdir):
    assert printed(workdir, per_band=2).count("alert(1)</script>") < printed(workdir, per_band=6).count(
        "alert(1)</script>"
    )
    assert "Negatives:" not in printed(workdir, per_band=0)


def test_terminal_colours_come_from_the_report_alone(workdir):
    buffer = io.StringIO()
    tables.print_report(Console(file=buffer, width=100, force_terminal=True, color_system="standard"), workdir)
    text = buffer.getvalue()
    assert "\x1b[31malert" not in text
    assert "\x1b[2J" not in text
    assert "\x1b[33mwarning" in text


READ = {"rows": 1_000, "of_rows": 40_000, "shards": 2, "of_shards": 80, "waves": 2}


def test_how_much_was_read(workdir):
    assert tables.read_sentence(tables.read_findings(workdir)) == ""
    set_manifest(workdir, read=READ, config={"mining": {"until": "all", "fit": "exact"}})
    assert tables.read_sentence(tables.read_findings(workdir)) == ""
    set_manifest(workdir, config={"mining": {"until": "quota", "fit": "exact"}})
    sentence = tables.read_sentence(tables.read_findings(workdir))
    assert sentence.startswith("1,000 of the corpus's 40,000 tweets (2.5 %) were looked at, in 2 tries, until every")
    assert "bands are those of this part" in sentence
    assert sentence in " ".join(printed(workdir).split())
    set_manifest(workdir, config={"mining": {"until": "quota", "fit": "sample"}})
    assert "a sample of the whole" in tables.read_sentence(tables.read_findings(workdir))
    set_manifest(workdir, read={**READ, "rows": 40_000, "waves": 1})
    sentence = tables.read_sentence(tables.read_findings(workdir))
    assert sentence == "40,000 of the corpus's 40,000 tweets (100.0 %) were looked at, in 1 try."


CASCADE = {
    "pays": True,
    "recall": 0.95,
    "rows": 40_000,
    "kept": 9_000,
    "found": [
        {"class_name": None, "band": None, "wanted": 50, "kept": 48, "recall": 0.96, "low": 0.863, "high": 0.995},
        {"class_name": "fire\x1b", "band": 4, "wanted": 0, "kept": 0, "recall": None, "low": 0.0, "high": 1.0},
    ],
}


def test_what_a_cascade_left_out(workdir):
    assert tables.cascade_sentences(tables.read_findings(workdir)) == []
    set_manifest(workdir, cascade={**CASCADE, "pays": False})
    assert tables.cascade_sentences(tables.read_findings(workdir)) == []
    set_manifest(workdir, cascade=CASCADE)
    sentences = tables.cascade_sentences(tables.read_findings(workdir))
    assert sentences[0].startswith("9,000 of the corpus's 40,000 tweets (22.5 %) were encoded")
    assert sentences[0] in " ".join(printed(workdir).split())
    rows = [[cell.text for cell in row] for row in tables.cascade_table(CASCADE).rows]
    assert rows == [
        ["any", "any", "50", "48", "96.0", "86.3–99.5"],
        ["fire␛", ">3σ", "0", "0", "–", "0.0–100.0"],
    ]


def test_what_encoding_took_and_larger_corpora_would_take(workdir):
    set_manifest(workdir, throughput=None)
    assert tables.cost_sentences(tables.read_findings(workdir)) == []
    work = Work(seconds=10.0, rows_again=300)
    work.add(5_000, Effort("a:1", "cpu", 5e10, tokens=100_000, padded_tokens=130_000, flops=2e11))
    set_manifest(workdir, throughput=work.describe(ComputeConfig(price_per_hour=0.09), 2))
    speed, larger = tables.cost_sentences(tables.read_findings(workdir))
    assert speed == (
        "Encoding read 10,000 tokens/s (13,000 with the copies that fill up small batches), 40.0 % of the peak "
        "measured on this machine (0.05 TFLOP/s); 300 tweets were begun again after failures."
    )
    assert larger == (
        "At the speed measured here a worker takes 0.56 h for 1 million, 5.6 h for 10 million, 56 h for 100 million "
        "tweets; at $0.09 for an hour of it, $0.05, $0.50, $5.00."
    )
    assert larger in " ".join(printed(workdir).split())
    work.peaks, work.machines = {"a:1": None}, {"Example GPU 9"}
    set_manifest(workdir, throughput=work.describe(ComputeConfig(), 2))
    assert not [sentence for sentence in tables.cost_sentences(tables.read_findings(workdir)) if "$" in sentence]
    assert "peak" not in tables.cost_sentences(tables.read_findings(workdir))[0]


def test_what_is_missing_is_left_out(workdir):
    manifest = json.loads(workdir.manifest.read_text("utf-8"))
    for key in manifest:
        set_manifest(workdir, **{**manifest, key: None})
        assert "report:" in printed(workdir)
    workdir.negatives.unlink()
    workdir.manifest.unlink()
    assert "Distribution of the similarity" in printed(workdir)


def test_empty_work_directory(tmp_path):
    assert printed(Workdir(tmp_path)).splitlines()[0] == "Nothing has been mined here yet."


def test_tails_follow_from_the_shares_where_the_manifest_is_silent(workdir):
    set_manifest(workdir, config=None)
    assert tables.read_findings(workdir).tails == "both"
    rows = json.loads(workdir.distributions.read_text("utf-8"))
    for row in rows:
        row["normal_shares"] = {band: share / 2 for band, share in row["normal_shares"].items()}
    workdir.distributions.write_text(json.dumps(rows), "utf-8")
    assert tables.read_findings(workdir).tails == "upper"
