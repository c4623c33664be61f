from __future__ import annotations

import io

from rich.console import Console

from scalemine.report.page import write_predictions_page
from scalemine.report.predictions import classes_table, days_table, print_predictions

HOSTILE = "<script>alert(1)</script> \x1b[31m \u202etxt"


def summary_of(gives="labels"):
    sample = {"id": HOSTILE, "text": HOSTILE, "probability": 0.75} | ({"part": HOSTILE} if gives == "spans" else {})
    one = {
        "threshold": 0.5, "tweets": 3, "entries": 4, "histogram": [90, *[0] * 18, 10], "confident": [sample],
        "uncertain": [sample],
    }  # fmt: skip
    return {
        "gives": gives, "tweets": 100, "with_any": 3, "distinct": 99, "written": 100, "quarantined": 1,
        "classes": {"<b>fire": one, "none": one | {"tweets": 0, "confident": [], "uncertain": []}},
        "days": {"2012-10-29": {"tweets": 100, "<b>fire": 3, "none": 0}},
    }  # fmt: skip


MANIFEST = {
    "finished": "2026-01-02T03:04:05+0000", "tweets_per_second": 1234.5,
    "model": {"kind": "words", "folder": "/a/<i>model", "sha256": "f" * 16},
    "counts": {
        "read": 103, "accepted": 100, "rejected": 3, "rejected_by_reason": {"no text": 1, "duplicate id": 2},
    },
}  # fmt: skip


def test_the_tables():
    rows = [[cell.text for cell in row] for row in classes_table(summary_of()).rows]
    assert rows == [["<b>fire", "3", "3", "0.500"], ["none", "0", "0", "0.500"]] or rows[0][:2] == ["<b>fire", "3"]
    assert [cell.text for cell in classes_table(summary_of("spans")).rows[0]][-1] == "4"
    assert [cell.text for cell in days_table(summary_of()).rows[0]] == ["2012-10-29", "100", "3", "0"]


def test_the_page_escapes_what_others_wrote(tmp_path):
    for gives in ("labels", "spans"):
        path = tmp_path / f"{gives}.html"
        write_predictions_page(summary_of(gives), MANIFEST, path)
        page = path.read_text(encoding="utf-8")
        for bad in ("<script", "<i>", "<b>", "\x1b", "\u202e", "http"):
            assert bad not in page.replace('http-equiv="Content-Security-Policy"', "")
        assert page.count("&lt;script&gt;") >= 4
        assert "2012-10-29" in page
        # Roots of 90 and 10 of 90.
        assert 'height="100.0"' in page
        assert 'height="33.33"' in page


def test_without_days_there_is_no_table_of_them(tmp_path):
    write_predictions_page(summary_of() | {"days": {}}, MANIFEST | {"tweets_per_second": None}, tmp_path / "x.html")
    assert "By day" not in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_the_terminal():
    file = io.StringIO()
    print_predictions(Console(file=file, width=100), summary_of(), MANIFEST)
    said = file.getvalue()
    assert "read 103 = accepted 100 + rejected 3 (duplicate id 2, no text 1); 3 of 100 tweets have a label;" in said
    assert "; 1 could not be predicted" in said
    assert "1,234 tweets/s" in said
    assert "\x1b" not in said
