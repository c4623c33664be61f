"""What a finished work directory holds, as tables for the HTML page and as a report for the terminal.

Everything shown passes through ``plain_line`` first: tweets, class names and file names come from others, and a
terminal obeys escape sequences, while both terminal and browser obey characters that reverse the order of text.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from scalemine.store import Json, Workdir, read_json

BANDS = (1, 2, 3, 4)
BAND_NAMES = {1: "1σ", 2: "2σ", 3: "3σ", 4: ">3σ"}
_BAND_STYLES = {1: "green", 2: "bright_blue", 3: "yellow", 4: "red"}

MISSING = "–"
_JOINERS = "\u200c\u200d"
_MAX_MARKS = 3
_MAX_NAME_CHARS = 60
_MAX_WARNING_CHARS = 1_000
_MOST_ENTRIES = 20
# An anchor below this is called weak where the manifest does not say what the experiment calls weak.
_WEAK_AUC = 0.8


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading on the page, a shorter one for the terminal, and how it is aligned."""

    heading: str
    short: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell of a table; a note says in a word what is wrong with the value."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows ready to be shown, the same on the page and in the terminal."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Findings:
    """The finished files that both reports read; what is not there is empty or None."""

    manifest: dict[str, Json]
    distributions: list[Json]
    negatives: pa.Table | None

    def part(self, key: str) -> dict[str, Json]:
        """Return a mapping of the manifest, empty where the manifest lacks it."""
        return self.manifest.get(key) or {}

    def entries(self, key: str) -> list[Json]:
        """Return a list of the manifest, empty where the manifest lacks it."""
        return self.manifest.get(key) or []

    @property
    def tails(self) -> str:
        """Which side of the mean the bands lie on: ``both`` or ``upper``."""
        tails = ((self.part("config").get("mining")) or {}).get("tails")
        if tails is None and self.distributions:
            # On both sides the bands hold the whole of a normal distribution, on the upper side half of it.
            tails = "upper" if sum(self.distributions[0]["normal_shares"].values()) < 0.75 else "both"
        return tails or "both"

    @property
    def weak_auc(self) -> float:
        """The AUC below which the experiment calls an anchor weak."""
        value = ((self.part("config").get("mining")) or {}).get("weak_auc")
        return _WEAK_AUC if value is None else float(value)


def read_findings(workdir: Workdir) -> Findings:
    """Read the manifest, the distributions and the negatives of a work directory, as far as they are there."""
    return Findings(
        manifest=read_json(workdir.manifest) if workdir.manifest.exists() else {},
        distributions=read_json(workdir.distributions) if workdir.distributions.exists() else [],
        negatives=pq.read_table(workdir.negatives) if workdir.negatives.exists() else None,
    )


def plain_line(text: str, max_chars: int) -> str:
    """Return a text on one line, at most ``max_chars`` characters long, that no terminal or browser obeys.

    Whitespace is folded, control characters become their pictures (␛), and characters that steer the direction of
    text or show nothing are dropped; so is the fourth of a pile of combining marks, which would cover other lines.
    """
    # Folding and dropping only shorten, and a text of ten thousand characters need not be read to its end.
    clipped = text[: 4 * max_chars]
    shown: list[str] = []
    marks = 0
    for character in " ".join(clipped.split()):
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind in ("Cc", "Cs"):
            shown.append(_picture(ord(character)))
        elif marks <= _MAX_MARKS and (kind != "Cf" or character in _JOINERS):
            shown.append(character)
    line = "".join(shown)
    if len(line) > max_chars or len(clipped) < len(text):
        return line[: max_chars - 1].rstrip() + "…"
    return line


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def plain_name(name: object) -> str:
    """Return the name of a class, a file or a reason as it may be shown."""
    return plain_line(str(name), _MAX_NAME_CHARS)


def whole(value: float | None) -> str:
    """Return a count with thousands separated, such as 12,345."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number with a fixed number of digits after the point."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage, with as many digits as a band beyond three sigma needs."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{100 * share:.2f}" if 0 < share < 0.01 else f"{100 * share:.1f}"


def duration(seconds: float | None) -> str:
    """Return a time with the unit that fits it, such as 3 min 12 s."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(per_second: float | None) -> str:
    """Return tweets per second, with a digit after the point where there are few."""
    return decimal(per_second, 1) if per_second is not None and per_second < 100 else whole(per_second)


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun, such as 1 class or 6 classes."""
    return f"{number:,} {one if number == 1 else many}"


def distributions_table(distributions: list[Json], weak_auc: float = _WEAK_AUC) -> Table:
    """Return one row per class, and a last one with what a normal distribution has."""
    columns = (
        Column("Class", "class", numeric=False),
        Column("Positives", "pos."),
        Column("Mean", "mean"),
        Column("σ", "σ"),
        Column("Skew", "skew"),
        Column("Kurtosis", "kurt."),
        Column("KS", "KS"),
        Column("AUC", "AUC"),
        *(Column(f"{BAND_NAMES[band]} %", f"{BAND_NAMES[band]}%") for band in BANDS),
    )
    rows = [_distribution_row(distribution, weak_auc) for distribution in distributions]
    if distributions:
        shares = distributions[0].get("normal_shares") or {}
        known = ("normal curve", "", "", "", decimal(0, 2), decimal(0, 2), decimal(0), "")
        cells = [Cell(text) for text in (*known, *(percent(shares.get(str(band))) for band in BANDS))]
        rows.append(tuple(cells))
    return Table("Distribution of the similarity S_an, by class", columns, tuple(rows))


def _distribution_row(distribution: Json, weak_auc: float) -> tuple[Cell, ...]:
    auc = distribution.get("auc")
    shares = distribution.get("band_shares") or {}
    return (
        Cell(plain_name(distribution["class_name"])),
        Cell(whole(distribution.get("num_positives"))),
        Cell(decimal(distribution.get("mean"))),
        Cell(decimal(distribution.get("std"))),
        Cell(decimal(distribution.get("skewness"), 2, signed=True)),
        Cell(decimal(distribution.get("excess_kurtosis"), 2, signed=True)),
        Cell(decimal(distribution.get("ks_statistic"))),
        Cell(decimal(auc), "weak" if auc is not None and auc < weak_auc else ""),
        *(Cell(percent(shares.get(str(band)))) for band in BANDS),
    )


def yield_table(yields: list[Json], forecast: list[Json]) -> Table:
    """Return one row per class and kind of negatives: what was wanted, forecast, there, and found."""
    found_by_key = {(entry["class_name"], _kind_name(entry)): entry for entry in yields}
    forecast_by_key = {(entry["class_name"], _kind_name(entry)): entry for entry in forecast}
    columns = (
        Column("Class", "class", numeric=False),
        Column("Kind", "kind", numeric=False),
        Column("Quota", "quota"),
        Column("Forecast (interval)", "forecast"),
        Column("Available", "available"),
        Column("Found", "found"),
        Column("Short by", "short"),
    )
    rows = []
    # A dict keeps the order of the mined bands and adds those that were only forecast.
    for key in found_by_key | forecast_by_key:
        mined, expected = found_by_key.get(key, {}), forecast_by_key.get(key)
        quota = mined.get("quota", (expected or {}).get("quota"))
        row = (
            Cell(plain_name(key[0])),
            Cell(plain_name(key[1])),
            Cell(whole(quota)),
            Cell(_interval(expected)),
            Cell(whole(mined.get("available"))),
            Cell(whole(mined.get("found"))),
            _shortfall(quota, mined.get("found")),
        )
        rows.append(row)
    return Table("Negatives wanted, forecast and found, by class and kind", columns, tuple(rows))


def _kind_name(entry: Json) -> str:
    """Return a band of sigma as the other tables name it, any other kind as it is."""
    kind = str(entry.get("kind") or "")
    in_sigma = entry["band"] is not None and not kind.endswith("q")
    return BAND_NAMES.get(entry["band"], str(entry["band"])) if in_sigma else kind


def cascade_table(cascade: Json) -> Table:
    """Return what a cascade kept of the audited tweets of each class and band, and of all of them first."""
    columns = (
        Column("Class", "class", numeric=False),
        Column("Band", "band", numeric=False),
        Column("Audited tweets in it", "audited"),
        Column("Kept", "kept"),
        Column("Recall %", "recall %"),
        Column("95 % interval", "interval"),
    )
    rows = tuple(
        (
            Cell(plain_name(row["class_name"] or "any")),
            Cell(BAND_NAMES.get(row["band"], "any")),
            Cell(whole(row["wanted"])),
            Cell(whole(row["kept"])),
            Cell(percent(row["recall"])),
            Cell(f"{percent(row['low'])}–{percent(row['high'])}"),
        )
        for row in cascade.get("found") or []
    )
    return Table("Recall of the cascade on its audit, by class and band", columns, rows)


def cascade_sentences(findings: Findings) -> list[str]:
    """Return what a cascade left out, in plain sentences; none where there was no cascade, or it did not pay."""
    cascade = findings.part("cascade")
    if not cascade.get("pays"):
        return []
    share = percent(cascade["kept"] / cascade["rows"])
    return [
        f"{whole(cascade['kept'])} of the corpus's {whole(cascade['rows'])} tweets ({share} %) were encoded: a cheap "
        f"score ruled the others out. A recall of {percent(cascade['recall'])} % was asked for.",
        "Mean, σ and the shares of the bands are those of a sample of the whole corpus; numbers of tweets are those "
        "that were kept. What a cascade misses is not random: it is worded unlike other tweets of its band.",
    ]


def guard_table(guard: Json) -> Table:
    """Return how well the guard's probability is calibrated: one row per bin of it."""
    columns = (
        Column("Said to be a positive, %", "said from", numeric=False),
        Column("Tweets of the corpus, %", "corpus %"),
        Column("Mean of what was said, %", "said %"),
        Column("Seen, %", "seen %"),
        Column("Held-out positives", "positives"),
    )
    rows = tuple(
        (
            Cell(f"{100 * row['low']:g} to {100 * row['high']:g}"),
            Cell(percent(row["share_of_corpus"])),
            Cell(percent(row["said"])),
            Cell(percent(row["seen"])),
            Cell(whole(row["positives"])),
        )
        for row in guard.get("reliability") or []
    )
    return Table("The guard's probability on held-out data: what was said and what was seen", columns, rows)


def guard_sentences(findings: Findings) -> list[str]:
    """Return what the guard assumed and did, in plain sentences; none where there was no guard."""
    guard = findings.part("guard")
    if not guard:
        return []
    budget = (findings.part("config").get("guard") or {}).get("max_false_negative")
    corpus = "what the cascade kept" if cascade_sentences(findings) else "the corpus"
    sentences = [
        f"About {percent(guard['prior'])} % of {corpus} are positives ({plain_name(guard['prior_is'])}).",
        f"No negative has an estimated probability above {percent(budget)} % of being one.",
    ]
    waiting = findings.manifest.get("to_review")
    if waiting:
        sentences.append(f"{whole(waiting)} tweets may be positives and wait for a review.")
    return sentences


def _interval(expected: Json | None) -> str:
    if expected is None or expected.get("expected") is None:
        return MISSING
    middle = whole(expected["expected"])
    if expected.get("low") is None or expected.get("high") is None:
        return middle
    return f"{middle} ({whole(expected['low'])}–{whole(expected['high'])})"


def _shortfall(wanted: int | None, found: int | None) -> Cell:
    if wanted is None or found is None or found >= wanted:
        return Cell("")
    return Cell(whole(wanted - found), "short")


def sets_table(sets: list[Json]) -> Table:
    """Return one row per training or test set."""
    columns = (
        Column("Set", "set", numeric=False),
        Column("Positives", "positives"),
        Column("Negatives", "negatives"),
        Column("Wanted negatives", "wanted"),
        Column("Short by", "short"),
    )
    rows = tuple(
        (
            Cell(plain_name(entry["name"])),
            Cell(whole(entry.get("positives"))),
            Cell(whole(entry.get("negatives"))),
            Cell(whole(entry.get("wanted_negatives"))),
            _shortfall(entry.get("wanted_negatives"), entry.get("negatives")),
        )
        for entry in sets
    )
    return Table("Positives and negatives of each set", columns, rows)


def bands_table(distribution: Json, yields: list[Json], tails: str) -> Table:
    """Return one row per band of a class: where it lies, how much is in it, and how much was taken."""
    found = {entry["band"]: entry.get("found") for entry in yields if entry["class_name"] == distribution["class_name"]}
    columns = (
        Column("Band", "band", numeric=False),
        Column("z", "z", numeric=False),
        Column("Tweets", "tweets"),
        Column("Share %", "share %"),
        Column("Normal %", "normal %"),
        Column("Mined", "mined"),
    )
    counts, shares, normal = (distribution.get(key) or {} for key in ("band_counts", "band_shares", "normal_shares"))
    z = "|z|" if tails == "both" else "z"
    rows = tuple(
        (
            Cell(BAND_NAMES[band]),
            Cell(f"{z} ≥ 3" if band == 4 else f"{band - 1} ≤ {z} < {band}" if band > 1 or z == "z" else f"{z} < 1"),
            Cell(whole(counts.get(str(band)))),
            Cell(percent(shares.get(str(band)))),
            Cell(percent(normal.get(str(band)))),
            Cell(whole(found.get(band))),
        )
        for band in BANDS
    )
    return Table(f"Bands of {plain_name(distribution['class_name'])}", columns, rows)


def timings_table(seconds: dict[str, float]) -> Table:
    """Return one row per stage, and a last one with their sum."""
    total = sum(seconds.values())
    columns = (Column("Stage", "stage", numeric=False), Column("Time", "time"), Column("Share %", "share %"))
    rows = [
        (Cell(plain_name(stage)), Cell(duration(value)), Cell(percent(value / total if total else None)))
        for stage, value in seconds.items()
    ]
    rows.append((Cell("all stages"), Cell(duration(total)), Cell("")))
    return Table("Time by stage", columns, tuple(rows))


def reasons_table(caption: str, heading: str, counts: dict[str, int]) -> Table:
    """Return one row per reason or rule, the most frequent first."""
    total = sum(counts.values())
    numbers = (Column("Number", "number"), Column("Share %", "share %"))
    columns = (Column(heading, heading.lower(), numeric=False), *numbers)
    rows = tuple(
        (Cell(plain_name(reason)), Cell(whole(number)), Cell(percent(number / total if total else None)))
        for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return Table(caption, columns, rows)


def read_line(counts: Json) -> str:
    """Return how many records were read, taken and rejected, and why, by the counts of a corpus."""
    said = f"read {counts['read']:,} = accepted {counts['accepted']:,} + rejected {counts['rejected']:,}"
    reasons = sorted(counts["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    return said + (f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons)})" if reasons else "")


def filter_tables(counts: dict[str, Json]) -> list[Table]:
    """Return how many tweets a filter read and kept, and how many have each keyword, pattern and code."""
    number = Column("Tweets", "tweets")
    steps = {
        "read": "Read",
        "found": "With what is looked for",
        "excluded": "Of these left out by what is excluded",
        "kept": "Kept",
    }
    rows = tuple((Cell(name), Cell(whole(counts[key]))) for key, name in steps.items())
    found = [Table("Filter", (Column("Step", "step", numeric=False), number), rows)]
    for key, one in (("codes", "Code"), ("keywords", "Keyword"), ("patterns", "Pattern")):
        by_entry = sorted(counts[key].items(), key=lambda item: (-item[1], item[0]))
        shown = [(plain_line(entry, _MAX_NAME_CHARS), whole(tweets)) for entry, tweets in by_entry[:_MOST_ENTRIES]]
        rows = tuple((Cell(entry), Cell(tweets)) for entry, tweets in shown)
        if rows:
            more = f", the {_MOST_ENTRIES} most frequent of {len(by_entry)}" if len(by_entry) > _MOST_ENTRIES else ""
            columns = (Column(one, one.lower(), numeric=False), number)
            found.append(Table(f"Kept tweets by {one.lower()}{more}", columns, rows))
    return found


def sample_negatives(negatives: pa.Table, per_band: int, class_name: str) -> dict[int, list[Json]]:
    """Return the first negatives of a class in each band, as they lie in the file; bands without any are left out.

    Args:
        negatives: The rows of ``negatives.parquet``.
        per_band: Rows of one band.
        class_name: The class.
    """
    of_class = negatives.filter(pc.equal(negatives["class_name"], class_name))
    samples = {band: of_class.filter(pc.equal(of_class["band"], band)).slice(0, per_band) for band in BANDS}
    return {band: rows.to_pylist() for band, rows in samples.items() if rows.num_rows}


def summary_sentences(findings: Findings) -> list[str]:
    """Return what was read and what came out, in plain sentences."""
    counts = findings.part("counts")
    sentences = []
    if counts.get("read") is not None:
        rejected = f", {whole(counts['rejected'])} of them rejected" if counts.get("rejected") else ""
        copies = f"; {whole(counts['copies'])} of the others repeat a text" if counts.get("copies") else ""
        sentences.append(f"{counted(counts['read'], 'tweet was', 'tweets were')} read{rejected}{copies}.")
    if findings.distributions:
        num_positives = sum(row.get("num_positives") or 0 for row in findings.distributions)
        positives = counted(num_positives, "positive", "positives")
        classes = counted(len(findings.distributions), "class", "classes")
        scored = whole(findings.distributions[0].get("count"))
        sentences.append(f"{scored} were compared with the anchors of {classes}, made from {positives}.")
    if findings.negatives is not None:
        mined = counted(findings.negatives.num_rows, "negative was", "negatives were")
        short = sum((entry.get("found") or 0) < (entry.get("quota") or 0) for entry in findings.entries("yield"))
        missed = f"; {counted(short, 'quota was', 'quotas were')} not filled" if short else ""
        sentences.append(f"{mined} mined{missed}.")
        sentences += filter(None, [read_sentence(findings)])
    return sentences


def read_sentence(findings: Findings) -> str:
    """Return how much of the corpus was read, where reading was to stop early; else nothing."""
    mining, read = findings.part("config").get("mining") or {}, findings.part("read")
    if mining.get("until") != "quota" or not read:
        return ""
    share, tries = percent(read["rows"] / read["of_rows"]), counted(read["waves"], "try", "tries")
    start = (
        f"{whole(read['rows'])} of the corpus's {whole(read['of_rows'])} tweets ({share} %) were looked at, in {tries}"
    )
    if read["rows"] == read["of_rows"]:
        return f"{start}."
    of_part = mining.get("fit") != "sample"
    fitted = "are those of this part" if of_part else "are those of a sample of the whole corpus"
    return f"{start}, until every quota was filled; mean, σ and bands {fitted}, random negatives are from all of it."


def cost_sentences(findings: Findings) -> list[str]:
    """Return what encoding took and what larger corpora would take; nothing where the manifest does not say."""
    found = findings.part("throughput")
    if not found:
        return []
    speed = f"Encoding read {rate(found['tokens_per_second'])} tokens/s"
    speed += f" ({rate(found['padded_tokens_per_second'])} with the copies that fill up small batches)"
    if found.get("share_of_peak") is not None:
        peak = f"{found['peak_flops_per_second'] / 1e12:.3g} TFLOP/s"
        speed += f", {percent(found['share_of_peak'])} % of the peak measured on this machine ({peak})"
    speed += f"; {counted(found['rows_again'], 'tweet was', 'tweets were')} begun again after failures."
    hours = [f"{_hours(row['worker_hours'])} for {row['tweets'] // 1_000_000} million" for row in found["larger"]]
    larger = f"At the speed measured here a worker takes {', '.join(hours)} tweets"
    if found.get("price_per_hour") is not None:
        prices = ", ".join(f"${row['price']:,.2f}" for row in found["larger"])
        larger += f"; at ${found['price_per_hour']:.3g} for an hour of it, {prices}"
    return [speed, f"{larger}."]


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 99.5 else f"{hours:.2g} h"


def throughput_line(findings: Findings) -> str:
    """Return how fast it went, on what; empty where the manifest does not say."""
    encoder, machine = findings.part("encoder"), findings.part("machine")
    seconds = findings.part("seconds")
    parts = []
    if findings.manifest.get("tweets_per_second") is not None:
        parts.append(f"{rate(findings.manifest['tweets_per_second'])} tweets/s")
    if seconds:
        parts.append(f"{duration(sum(seconds.values()))} in all")
    if encoder.get("model"):
        settings = ", ".join(str(encoder[key]) for key in ("precision", "device") if encoder.get(key))
        parts.append(f"{encoder['model']} ({settings})" if settings else str(encoder["model"]))
    if machine.get("cores"):
        cores = counted(machine["cores"], "core", "cores")
        parts.append(f"{cores} of {machine['cpu']}" if machine.get("cpu") else cores)
    return plain_line(" · ".join(parts), 300)


def print_report(console: Console, workdir: Workdir, *, per_band: int = 3) -> None:
    """Print the report of a work directory to a terminal or a pipe.

    Args:
        console: Where it goes; its width decides how texts are cut.
        workdir: The work directory.
        per_band: Negatives shown per class and band.
    """
    findings = read_findings(workdir)
    sentences = summary_sentences(findings) or ["Nothing has been mined here yet."]
    console.print(Text(" ".join(sentences), style="bold"))
    if findings.distributions:
        _print_distributions(console, findings)
    if findings.entries("yield") or findings.entries("forecast"):
        print_table(console, yield_table(findings.entries("yield"), findings.entries("forecast")))
    if cascade_sentences(findings):
        print_table(console, cascade_table(findings.part("cascade")))
        console.print(Text(" ".join(cascade_sentences(findings))))
    if findings.part("guard"):
        print_table(console, guard_table(findings.part("guard")))
        console.print(Text(" ".join(guard_sentences(findings))))
    if findings.entries("sets"):
        print_table(console, sets_table(findings.entries("sets")))
    if findings.negatives is not None and per_band > 0:
        _print_negatives(console, findings, per_band)
    for warning in findings.entries("warnings"):
        console.print(Text(f"warning: {plain_line(str(warning), _MAX_WARNING_CHARS)}", style="yellow"))
    speed = throughput_line(findings)
    if speed:
        console.print(Text(speed))
    for sentence in cost_sentences(findings):
        console.print(Text(sentence))
    # A path broken over two lines cannot be copied.
    console.print(Text(plain_line(f"report: {workdir.report}", 4_096), style="bold"), soft_wrap=True)


def _print_distributions(console: Console, findings: Findings) -> None:
    """Print the distributions as one table, or as two where one would be too wide to read."""
    table = distributions_table(findings.distributions, findings.weak_auc)
    unlimited = console.options.update(width=10_000)
    if console.measure(render_table(table, console.width), options=unlimited).maximum <= console.width:
        print_table(console, table)
        return
    middle = len(table.columns) - len(BANDS)
    print_table(console, Table(table.caption, table.columns[:middle], tuple(row[:middle] for row in table.rows)))
    columns = (table.columns[0], *table.columns[middle:])
    shares = tuple((row[0], *row[middle:]) for row in table.rows)
    print_table(console, Table("Share of the tweets in each band", columns, shares))


def print_table(console: Console, table: Table) -> None:
    """Print a table after an empty line."""
    console.print()
    console.print(render_table(table, console.width))


def render_table(table: Table, width: int) -> RichTable:
    """Return a table for the terminal; texts are Text, so that nothing in them is read as markup."""
    drawn = RichTable(
        title=Text(table.caption, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1 if width < 100 else 2, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
    )
    for column in table.columns:
        # Numbers keep their width; where the line is short it is the names that are folded.
        drawn.add_column(
            Text(column.short),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
            min_width=None if column.numeric else 4,
        )
    before = ""
    for cells in table.rows:
        first, *others = cells
        drawn.add_row(_cell(Cell("") if first.text == before else first), *map(_cell, others))
        before = first.text
    return drawn


def _cell(cell: Cell) -> Text:
    return Text(f"{cell.text}!", style="yellow") if cell.note else Text(cell.text)


def _print_negatives(console: Console, findings: Findings, per_band: int) -> None:
    """Print a few negatives per class and band, one a line: band, z, cosine, text."""
    names = [row["class_name"] for row in findings.distributions]
    names = names or sorted(set(findings.negatives["class_name"].to_pylist()) if findings.negatives else ())
    console.print()
    console.print(Text("Negatives: band, z, cosine, text", style="bold"))
    for name in names:
        samples = sample_negatives(findings.negatives, per_band, name)
        if samples:
            console.print(Text(plain_name(name), style="underline"))
        for band, rows in samples.items():
            for row in rows:
                console.print(_negative_line(band, row, console.width), no_wrap=True, overflow="ellipsis")
    console.print()


def _negative_line(band: int, row: Json, width: int) -> Text:
    line = Text()
    line.append(f"{BAND_NAMES[band]:>4}", style=_BAND_STYLES[band])
    line.append(f" {decimal(row['z'], 2, signed=True):>6} {decimal(row['cosine']):>6}  ", style="dim")
    line.append(plain_line(row["text"] or "", width))
    return line
