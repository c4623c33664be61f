"""What a model found in a corpus, for the page and the terminal; see ``scalemine.predict``."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from scalemine.report.tables import (
    Cell,
    Column,
    Table,
    decimal,
    percent,
    plain_line,
    plain_name,
    print_table,
    rate,
    read_line,
    whole,
)
from scalemine.store import Json

# Classes that the page shows in full; the table holds all.
MAX_CLASSES = 40
_MAX_TWEET_CHARS = 400
_MAX_DAYS = 400


def shown(summary: Json, manifest: Json) -> dict[str, Any]:
    """Return what the page shows."""
    counts, speed = manifest["counts"], manifest.get("tweets_per_second")
    facts = [
        ("Records read", whole(counts["read"])),
        ("Rejected", whole(counts["rejected"])),
        *((f"Rejected: {reason}", whole(count)) for reason, count in sorted(counts["rejected_by_reason"].items())),
        ("Tweets", whole(summary["tweets"])),
        (f"With a {summary['gives'].removesuffix('s')}", whole(summary["with_any"])),
        ("Distinct texts, each read once", whole(summary["distinct"])),
        ("Rows that could not be predicted", whole(summary["quarantined"])),
        ("Tweets/s", rate(speed) if speed else "–"),
    ]
    return {
        "facts": facts,
        "model": plain_line(f"{manifest['model']['kind']}, {manifest['model']['folder']}", 200),
        "sha256": plain_name(manifest["model"]["sha256"]),
        "finished": plain_name(manifest["finished"]),
        "classes": classes_table(summary),
        "sections": [_section(name, one) for name, one in list(summary["classes"].items())[:MAX_CLASSES]],
        "days": days_table(summary) if summary["days"] else None,
        "noun": summary["gives"].removesuffix("s"),
    }


def classes_table(summary: Json) -> Table:
    """Return the counts by class."""
    spans = summary["gives"] == "spans"
    columns = [Column("Class", "class", numeric=False), Column("Tweets", "tweets")]
    columns.append(Column("Share of all, %", "share, %"))
    columns.append(Column("Spans", "spans") if spans else Column("Threshold", "threshold"))
    rows = []
    for name, one in summary["classes"].items():
        last = whole(one["entries"]) if spans else decimal(one["threshold"])
        share = percent(one["tweets"] / summary["tweets"])
        rows.append((Cell(plain_name(name)), Cell(whole(one["tweets"])), Cell(share), Cell(last)))
    return Table("What was found, by class", tuple(columns), tuple(rows))


def days_table(summary: Json) -> Table:
    """Return the counts by day, the last ones where there are many."""
    names = list(summary["classes"])[:MAX_CLASSES]
    columns = [Column("Day", "day", numeric=False), Column("Tweets", "tweets")]
    columns += [Column(plain_name(name), plain_name(name)) for name in names]
    rows = [
        (Cell(day), Cell(whole(one["tweets"])), *(Cell(whole(one[name])) for name in names))
        for day, one in list(summary["days"].items())[-_MAX_DAYS:]
    ]
    return Table("Tweets by day (UTC), and those with a class", tuple(columns), tuple(rows))


def _section(name: str, one: Json) -> dict[str, Any]:
    most = max(1, *one["histogram"])
    return {
        "name": plain_name(name),
        # Roots, as nearly all tweets have a probability near 0.
        "bars": [
            (place, round(100 * (count / most) ** 0.5, 2), whole(count)) for place, count in enumerate(one["histogram"])
        ],
        "num_bins": len(one["histogram"]),
        "threshold": one["threshold"],
        "samples": [
            (title, [_sample(row) for row in one[key]])
            for key, title in (("confident", "Surest"), ("uncertain", "Nearest to the threshold"))
        ],
    }


def _sample(row: Json) -> dict[str, str]:
    return {
        "probability": decimal(row["probability"]),
        "part": plain_line(row.get("part", ""), 120),
        "id": plain_line(row["id"], 80),
        "text": plain_line(row["text"], _MAX_TWEET_CHARS),
    }


def print_predictions(console: Console, summary: Json, manifest: Json) -> None:
    """Print the counts by class, and a tweet or two of each."""
    print_table(console, classes_table(summary))
    for name, one in list(summary["classes"].items())[:MAX_CLASSES]:
        for key, title in (("confident", "surest"), ("uncertain", "doubtful")):
            for row in one[key][:1]:
                sample = _sample(row)
                line = f"{plain_name(name)}, {title} {sample['probability']}: {sample['part'] or sample['text']}"
                console.print(line, markup=False, highlight=False, overflow="ellipsis", no_wrap=True)
    speed = manifest.get("tweets_per_second")
    counts = manifest["counts"]
    console.print(
        f"{read_line(counts)}; "
        f"{summary['with_any']:,} of {summary['tweets']:,} tweets have a {summary['gives'].removesuffix('s')}"
        + (f"; {summary['quarantined']:,} could not be predicted" if summary["quarantined"] else "")
        + (f"; {speed:,.0f} tweets/s" if speed else ""),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
