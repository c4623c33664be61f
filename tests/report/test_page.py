import json
import re
from html.parser import HTMLParser

import pytest

from scalemine.report.page import MAX_REJECTS, write_report
from scalemine.store import Workdir

SECTIONS = (
    "summary",
    "words",
    "distributions",
    "classes",
    "class-1",
    "class-2",
    "class-3",
    "yields",
    "sets",
    "positives",
    "corpus",
    "timings",
    "configuration",
)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.ids, self.open, self.text = set(), [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(workdir):
    return write_report(workdir).read_text("utf-8")


def test_report_has_every_section(workdir):
    html = page(workdir)
    outline = Outline(html)
    assert outline.open == []
    for section in SECTIONS:
        assert f'id="{section}"' in html
        assert f'aria-labelledby="{section}"' in html
    assert len(outline.ids) == len(set(outline.ids))
    assert {value for _, name, value in outline.attributes if name == "href" and value.startswith("#")} <= {
        f"#{identifier}" for identifier in outline.ids
    }
    assert html.count("<figure>") == html.count("<figcaption>") == 4
    assert html.count("<svg") == html.count('role="img"') == 4
    assert "50,155 tweets were read, 55 of them rejected; 100 of the others repeat a text." in html
    assert "54 negatives were mined; 3 quotas were not filled." in html
    assert "those of a sample of 3,000 tweets" in html


def test_report_says_what_larger_corpora_would_take(workdir):
    assert "takes 2.1 h for 1 million tweets; at $0.09 for an hour of it, $0.19." in page(workdir)


def test_report_asks_for_nothing(workdir):
    html = page(workdir)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    outline = Outline(html)
    assert not outline.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "image"}
    loads = [
        value for _, name, value in outline.attributes if name in {"src", "href", "xlink:href", "srcset", "action"}
    ]
    assert all(value.startswith("#") for value in loads)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_hostile_tweets_are_text(workdir):
    html = page(workdir)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html
    assert "<b>ürün" not in html
    assert "&lt;b&gt;ürün &amp; $x" in html
    assert "<i>binary" not in html
    assert "<em>what" not in html
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert "␛[31malert" in html
    assert "one two three four five" in html
    assert "long " * 200 not in html
    assert '<p dir="auto">سيل كبير في المدينة</p>' in html


def test_tables_say_what_they_are(workdir):
    html = page(workdir)
    assert html.count("<table") == html.count("<caption>")
    assert "<th>" not in html
    assert '<html lang="en">' in html
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_rejects_take_turns(workdir):
    html = page(workdir)
    table = html[html.index("<caption>Examples of rejected records") :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == MAX_REJECTS + 1
    assert table.count("&lt;i&gt;binary") == 3


def test_same_files_give_the_same_bytes(workdir):
    first = write_report(workdir).read_bytes()
    workdir.report.unlink()
    assert write_report(workdir).read_bytes() == first
    assert len(first) < 700_000


def test_every_key_of_the_manifest_may_be_missing(workdir):
    # Without the figures, which do not depend on the manifest and take most of the time.
    (workdir.mined / "histograms.parquet").unlink()
    (workdir.anchors / "anchors.safetensors").unlink()
    manifest = json.loads(workdir.manifest.read_text("utf-8"))
    sections = {"sets": "sets", "seconds": "timings-table", "config": "why", "encoder": "Encoder and machine"}
    for key in manifest:
        workdir.manifest.write_text(json.dumps({**manifest, key: None}), "utf-8")
        html = page(workdir)
        workdir.manifest.write_text(json.dumps({k: v for k, v in manifest.items() if k != key}), "utf-8")
        assert page(workdir) == html
        assert Outline(html).open == []
        if key in sections:
            assert f'id="{sections[key]}"' not in html


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("distributions.json", 'id="distributions"'),
        ("mined/histograms.parquet", 'aria-label="Histogram'),
        ("negatives.parquet", 'class="tweets'),
        ("anchors/anchors.safetensors", 'id="positives"'),
        ("anchors/positives.parquet", 'id="positives"'),
        ("corpus/rejects.parquet", "Examples of rejected"),
        ("manifest.json", 'id="configuration"'),
    ],
)
def test_every_file_may_be_missing(workdir, name, gone):
    assert gone in page(workdir)
    (workdir.root / name).unlink()
    html = page(workdir)
    assert gone not in html
    assert Outline(html).open == []


def test_numbers_inside_a_class_may_be_missing(workdir):
    rows = json.loads(workdir.distributions.read_text("utf-8"))
    for row in rows:
        row.update(skewness=None, auc=None, fit=None, band_counts=None, std=0.0)
    workdir.distributions.write_text(json.dumps(rows), "utf-8")
    assert 'id="class-1"' in page(workdir)


def test_anchors_of_other_classes_are_not_shown(workdir):
    rows = json.loads(workdir.distributions.read_text("utf-8"))
    workdir.distributions.write_text(json.dumps(rows[:2]), "utf-8")
    assert 'id="positives"' not in page(workdir)


def test_empty_work_directory(tmp_path):
    html = page(Workdir(tmp_path))
    assert "Nothing has been mined here yet." in html
    assert Outline(html).open == []
