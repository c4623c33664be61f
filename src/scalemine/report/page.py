"""The report as one HTML file that needs no network, no script and nothing beside it.

Tweets are hostile input: the template escapes all of them, and the page's own policy forbids scripts and requests.
Only the figures, which this package draws, are put into the page as they are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from safetensors.numpy import load_file

from scalemine.report import comparison as comparisons
from scalemine.report import plots, predictions, tables
from scalemine.report.tables import Findings, Table
from scalemine.store import Json, Workdir, read_json, write_whole

NEGATIVES_PER_BAND = 5
MAX_REJECTS = 20
_MAX_TWEET_CHARS = 400
_MAX_EXCERPT_CHARS = 200
_ROWS_PER_BATCH = 65_536
# A corpus of a hundred million tweets may have millions of rejects; the first million show what there is to see.
_MAX_BATCHES = 16

_BAND_TITLES = {
    1: "easy",
    2: "harder",
    3: "hardest that the bands hold",
    4: "beyond the bands: hard negatives mixed with unlabelled positives",
}
_COUNT_LABELS = {
    "read": "Tweets read",
    "accepted": "Accepted",
    "rejected": "Rejected",
    "copies": "Copies: tweets that repeat a text",
    "rows": "Rows of the corpus",
    "distinct": "Distinct texts, each encoded once",
    "cut": "Texts cut at the encoder's limit",
    "tokens": "Tokens encoded",
    "quarantined": "Rows that could not be encoded",
}
_ENCODER_LABELS = {
    "model": "Model",
    "dim": "Dimensions of an embedding",
    "precision": "Precision",
    "device": "Device",
    "engine": "Engine",
    "max_length": "Longest text, in tokens",
    "threads": "Threads",
    "max_error": "Largest error of S_an from this precision",
    "band_changed_share": "Share of tweets whose band that changes, %",
}


@dataclass(frozen=True, eq=False)
class Positives:
    """The positives and the anchors made from them.

    Args:
        vectors: Embeddings ``(M, D)`` of the positives.
        anchors: Anchors ``(K, D)``.
        class_names: Class of each positive.
        text_by_id: Texts of the positives.
    """

    vectors: NDArray[np.float32]
    anchors: NDArray[np.float32]
    class_names: list[str]
    text_by_id: dict[str, str]


def write_report(workdir: Workdir) -> Path:
    """Write ``report.html`` from the finished files of a work directory, and return its path.

    What a work directory lacks is left out of the report.
    """
    findings = tables.read_findings(workdir)
    positives = _read_positives(workdir, len(findings.distributions))
    template = _environment().get_template("page.html.jinja")
    html = template.render(
        version=tables.plain_name(findings.manifest.get("scalemine") or ""),
        finished=tables.plain_name(findings.manifest.get("finished") or ""),
        why=tables.plain_line(str(findings.part("config").get("why") or ""), _MAX_TWEET_CHARS),
        workdir=tables.plain_line(workdir.root.name or str(workdir.root), 120),
        sentences=tables.summary_sentences(findings),
        throughput=tables.throughput_line(findings),
        costs=tables.cost_sentences(findings),
        warnings=[tables.plain_line(str(warning), 1_000) for warning in findings.entries("warnings")],
        tails=findings.tails,
        classes=_class_sections(workdir, findings, positives),
        distributions=_distributions(findings),
        yields=_yields(findings),
        rejected_candidates=_rejected_candidates(findings),
        cascade=tables.cascade_table(findings.part("cascade")) if tables.cascade_sentences(findings) else None,
        cascade_sentences=tables.cascade_sentences(findings),
        guard=tables.guard_table(findings.part("guard")) if findings.part("guard") else None,
        guard_sentences=tables.guard_sentences(findings),
        sets=tables.sets_table(findings.entries("sets")) if findings.entries("sets") else None,
        pca=_pca_figure(findings, positives),
        looks=_looks(findings),
        band_colours=plots.BAND_COLOURS,
        positive_colour=plots.POSITIVE_COLOUR,
        filter_tables=tables.filter_tables(read_json(workdir.filter_counts)) if workdir.filter_counts.exists() else [],
        corpus=_corpus_facts(workdir, findings),
        reject_reasons=_reject_reasons(findings),
        rejects=_reject_examples(workdir),
        comparisons=[
            _compared(comparison, f"s{number}")
            for number, comparison in enumerate(comparisons.read_comparisons(workdir))
        ],
        timings=tables.timings_table(findings.part("seconds")) if findings.part("seconds") else None,
        encoder=_encoder_facts(findings),
        config=_as_yaml(findings.part("config")),
        versions=_as_yaml(findings.part("versions")),
        band_names=tables.BAND_NAMES,
        band_titles=_BAND_TITLES,
    )
    with write_whole(workdir.report) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")
    return workdir.report


def write_comparison_page(comparison: Json, path: Path) -> None:
    """Write the page of a comparison alone, for a work directory without a report."""
    html = _environment().get_template("comparison.html.jinja").render(comparison=_compared(comparison, "s0"))
    with write_whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def write_predictions_page(summary: Json, manifest: Json, path: Path) -> None:
    """Write the page of the predictions of a corpus."""
    html = _environment().get_template("predictions.html.jinja").render(**predictions.shown(summary, manifest))
    with write_whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tweet"] = lambda text: tables.plain_line(str(text or ""), _MAX_TWEET_CHARS)
    environment.filters["decimal"] = tables.decimal
    environment.filters["name"] = tables.plain_name
    return environment


def _compared(comparison: Json, key: str) -> dict[str, Json]:
    """Return what the page shows of a comparison."""
    return {
        "title": comparisons.title(comparison),
        "why": tables.plain_line(comparison["why"], _MAX_TWEET_CHARS),
        "tables": comparisons.overview_tables(comparison),
        "details": comparisons.contrast_tables(comparison),
        "main": comparisons.main_set(comparison),
        "drawings": [
            {"svg": Markup(one.svg), "caption": one.caption}  # noqa: S704  drawn here; every text in it is escaped
            for one in comparisons.drawings(comparison, key)
        ],
        "notes": comparisons.notes(comparison),
    }


def _read_positives(workdir: Workdir, num_classes: int) -> Positives | None:
    """Read positives and anchors; None where they are not there or belong to other classes."""
    tensors_path, texts_path = workdir.anchors / "anchors.safetensors", workdir.anchors / "positives.parquet"
    if not (tensors_path.exists() and texts_path.exists()):
        return None
    tensors = load_file(tensors_path)
    texts = pq.read_table(texts_path, columns=["id", "text", "class_name"])
    if len(tensors["anchors"]) != num_classes or len(tensors["positives"]) != texts.num_rows:
        return None
    ids, words = (texts[column].to_pylist() for column in ("id", "text"))
    return Positives(
        vectors=tensors["positives"],
        anchors=tensors["anchors"],
        class_names=texts["class_name"].to_pylist(),
        text_by_id=dict(zip(ids, words, strict=True)),
    )


def _read_histograms(workdir: Workdir) -> dict[str, plots.Histogram]:
    path = workdir.mined / "histograms.parquet"
    if not path.exists():
        return {}
    bins = pq.read_table(path)
    histograms = {}
    for name in pc.unique(bins["class_name"]).to_pylist():
        of_class = bins.filter(pc.equal(bins["class_name"], name)).sort_by("low")
        columns = (of_class[column].to_numpy().astype(np.float64) for column in ("low", "high", "count"))
        histograms[name] = plots.Histogram(*columns)
    return histograms


def _class_sections(workdir: Workdir, findings: Findings, positives: Positives | None) -> list[dict[str, Json]]:
    """Return, per class, what its section of the page shows."""
    histograms = _read_histograms(workdir)
    sections = []
    for index, distribution in enumerate(findings.distributions):
        name = distribution["class_name"]
        figure = None
        if name in histograms:
            figure = _distribution_figure(findings, positives, histograms[name], index)
        samples = {}
        if findings.negatives is not None:
            samples = tables.sample_negatives(findings.negatives, NEGATIVES_PER_BAND, name)
        for row in itertools.chain.from_iterable(samples.values()):
            row["nearest_positive_text"] = positives.text_by_id.get(row["nearest_positive_id"]) if positives else None
        fit = distribution.get("fit") or {}
        section = {
            "id": f"class-{index + 1}",
            "name": tables.plain_name(name),
            "figure": figure,
            "bin_width": f"{histograms[name].width:.2g}" if figure else None,
            "statistics": _statistics(distribution, findings.weak_auc),
            "fitted_rows": tables.whole(fit.get("rows")) if fit.get("method") == "sample" else None,
            "bands": tables.bands_table(distribution, findings.entries("yield"), findings.tails),
            "samples": samples,
        }
        sections.append(section)
    return sections


def _distribution_figure(
    findings: Findings, positives: Positives | None, histogram: plots.Histogram, index: int
) -> Markup:
    distribution = findings.distributions[index]
    name, mean, std = distribution["class_name"], distribution.get("mean") or 0.0, distribution.get("std") or 0.0
    cosines_M = np.empty(0)
    if positives is not None:
        of_class = np.array([class_name == name for class_name in positives.class_names], bool)
        cosines_M = plots.cosines(positives.vectors[of_class], positives.anchors[index])
    label = (
        f"Histogram of the similarity to the anchor of {tables.plain_name(name)}, with the fitted normal curve "
        f"(mean {mean:.3f}, standard deviation {std:.3f}) and the bands"
    )
    if len(cosines_M):
        z = f", about {(np.median(cosines_M) - mean) / std:.1f} standard deviations above the mean" if std > 0 else ""
        label += f"; below it that of the positives, half of which lie above {np.median(cosines_M):.3f}{z}"
    svg = plots.draw_distribution(
        histogram, mean, std, cosines_M, tails=findings.tails, key=f"d{index + 1}", label=f"{label}."
    )
    return Markup(svg)  # noqa: S704  drawn here; every text in it is escaped


def _pca_figure(findings: Findings, positives: Positives | None) -> Markup | None:
    # Two components need three points to mean anything.
    if positives is None or len(positives.vectors) < 3 or positives.vectors.shape[1] < 2:
        return None
    names = [distribution["class_name"] for distribution in findings.distributions]
    svg = plots.draw_positives(
        positives.vectors,
        positives.class_names,
        positives.anchors,
        names,
        key="pca",
        label="The positives of every class and their anchors on the first two principal components.",
    )
    return Markup(svg)  # noqa: S704  drawn here; every text in it is escaped


def _looks(findings: Findings) -> list[tuple[str, plots.ClassLook]]:
    """Return the classes with how they are drawn among the positives."""
    names = [tables.plain_name(distribution["class_name"]) for distribution in findings.distributions]
    return [(name, plots.class_look(index)) for index, name in enumerate(names)]


def _statistics(distribution: Json, weak_auc: float) -> list[tuple[str, str]]:
    """Return the numbers of a class as names and values."""
    table = tables.distributions_table([distribution], weak_auc)
    pairs = zip(table.columns[1:8], table.rows[0][1:8], strict=True)
    return [
        ("Tweets", tables.whole(distribution.get("count"))),
        *((column.heading, f"{cell.text} ({cell.note})" if cell.note else cell.text) for column, cell in pairs),
    ]


def _distributions(findings: Findings) -> Table | None:
    if not findings.distributions:
        return None
    return tables.distributions_table(findings.distributions, findings.weak_auc)


def _yields(findings: Findings) -> Table | None:
    yields, forecast = findings.entries("yield"), findings.entries("forecast")
    return tables.yield_table(yields, forecast) if yields or forecast else None


def _rejected_candidates(findings: Findings) -> Table | None:
    counts = {rule: number for rule, number in findings.part("rejected_candidates").items() if number}
    return tables.reasons_table("Candidates turned down, by rule", "Rule", counts) if counts else None


def _reject_reasons(findings: Findings) -> Table | None:
    reasons = findings.part("counts").get("rejected_by_reason") or {}
    return tables.reasons_table("Rejected records, by reason", "Reason", reasons) if reasons else None


def _corpus_facts(workdir: Workdir, findings: Findings) -> list[tuple[str, str]]:
    counts = dict(findings.part("counts"))
    if counts.get("quarantined") is None and workdir.quarantine.exists():
        counts["quarantined"] = pq.read_metadata(workdir.quarantine).num_rows
    return [(label, tables.whole(counts[key])) for key, label in _COUNT_LABELS.items() if counts.get(key) is not None]


def _encoder_facts(findings: Findings) -> list[tuple[str, str]]:
    encoder, machine = findings.part("encoder"), findings.part("machine")
    facts = []
    for key, label in _ENCODER_LABELS.items():
        value = encoder.get(key)
        if value is None:
            continue
        if key == "band_changed_share":
            value = f"{100 * value:.3g}"
        elif isinstance(value, float):
            value = f"{value:.3g}"
        facts.append((label, tables.plain_line(str(value), 200)))
    facts += [
        (label, tables.plain_line(str(machine[key]), 200))
        for key, label in (("cpu", "Processor"), ("cores", "Cores"))
        if machine.get(key) is not None
    ]
    return facts


def _reject_examples(workdir: Workdir) -> list[dict[str, str]]:
    """Return up to ``MAX_REJECTS`` rejected records, taking turns between the reasons, in the order of the file."""
    path = workdir.corpus / "rejects.parquet"
    if not path.exists():
        return []
    by_reason: dict[str, list[Json]] = {}
    with pq.ParquetFile(path) as file:
        columns = ["source", "line", "reason", "excerpt"]
        for batch in itertools.islice(file.iter_batches(_ROWS_PER_BATCH, columns=columns), _MAX_BATCHES):
            rows = pa.Table.from_batches([batch])
            for reason in pc.unique(rows["reason"]).to_pylist():
                seen = by_reason.setdefault(reason, [])
                wanted = rows.filter(pc.equal(rows["reason"], reason)).slice(0, MAX_REJECTS - len(seen))
                seen.extend(wanted.to_pylist())
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_reason.values()))
    chosen = itertools.islice((row for row in turns if row is not None), MAX_REJECTS)
    return [
        {
            "where": tables.plain_line(f"{row['source']}:{row['line']}", _MAX_EXCERPT_CHARS),
            "reason": tables.plain_name(row["reason"]),
            "excerpt": tables.plain_line(str(row["excerpt"] or ""), _MAX_EXCERPT_CHARS),
        }
        for row in chosen
    ]


def _as_yaml(values: dict[str, Json]) -> str:
    """Return a mapping as YAML; characters that a browser would obey come out as escapes."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=100) if values else ""
