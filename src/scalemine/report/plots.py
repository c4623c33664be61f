"""The figures of the report, as SVG to be put into a page.

Figures are made without pyplot, which keeps global state, and come out the same to the byte each time.

Shapes: M positives, K classes, B bins, D dimensions.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from scalemine.report.tables import BAND_NAMES, plain_line

# Green, blue and amber as in the paper, in the shades of Okabe and Ito, which the colour-blind tell apart.
BAND_COLOURS = {1: "#009E73", 2: "#3B8FCC", 3: "#E69F00", 4: "#C0392B"}
_UNUSED_COLOUR = "#9a9a9a"
POSITIVE_COLOUR = "#5B2A86"
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
# As many shapes as colours would pair each colour with one shape for ever.
_CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The same shapes as letters, for the key beside the figure; the selector keeps them from turning into pictures.
_MARKER_LETTERS = ("●", "■", "▲", "◆", "▼", "✚\ufe0e", "✖\ufe0e", "★")

# Dots of one class in the figure of the positives: more add bytes, not insight.
MAX_DOTS_PER_CLASS = 250
_NUM_POSITIVE_BINS = 60

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scalemine",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#555555",
    "axes.unicode_minus": True,
    "path.simplify": True,
}


@dataclass(frozen=True, eq=False)
class Histogram:
    """Tweets per bin of S_an of one class; bins are side by side and in order.

    Args:
        low: Lower ends ``(B,)`` of the bins.
        high: Upper ends ``(B,)``.
        count: Tweets ``(B,)`` in each.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: NDArray[np.float64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges ``(B + 1,)`` of the bins."""
        return np.concatenate([self.low, self.high[-1:]])

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(np.mean(self.high - self.low))


@dataclass(frozen=True)
class ClassLook:
    """The colour of a class, its marker, and the letter that looks like the marker."""

    colour: str
    marker: str
    letter: str


def class_look(index: int) -> ClassLook:
    """Return how the class at an index is drawn; no two of the first 56 are alike."""
    shape = index % len(_CLASS_MARKERS)
    return ClassLook(CLASS_COLOURS[index % len(CLASS_COLOURS)], _CLASS_MARKERS[shape], _MARKER_LETTERS[shape])


def cosines(vectors_MD: NDArray[np.float32], anchor_D: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine ``(M,)`` of each row with an anchor; neither need have length 1."""
    lengths_M = np.linalg.norm(vectors_MD, axis=1) * np.linalg.norm(anchor_D)
    products_M = (vectors_MD @ anchor_D).astype(np.float64)
    cosines_M: NDArray[np.float64] = np.divide(
        products_M, lengths_M, out=np.zeros_like(products_M), where=lengths_M > 0
    )
    return cosines_M


def draw_distribution(
    histogram: Histogram, mean: float, std: float, positives_M: NDArray[np.float64], *, tails: str, key: str, label: str
) -> str:
    """Return the histogram of S_an over the tweets, with bands and normal curve, above that of the positives.

    Args:
        histogram: Tweets per bin of S_an.
        mean: Mean of the fitted normal distribution.
        std: Its standard deviation; where it is not above 0 there are no bands and no curve.
        positives_M: S_an of the positives of the class.
        tails: ``both``, or ``upper`` where only what lies above the mean has a band.
        key: Begins every id in the figure, so that figures on one page do not mix; letters and digits.
        label: What the figure shows, for those who do not see it.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.8))
        tweets = figure.add_axes((0.14, 0.37, 0.84, 0.43))
        strip = figure.add_axes((0.14, 0.19, 0.84, 0.14), sharex=tweets)
        _set_limits(tweets, histogram, mean, std, positives_M)
        if std > 0:
            _draw_bands(tweets, strip, histogram, mean, std, tails)
            _draw_curve(tweets, histogram, mean, std)
            _draw_z_axis(tweets, mean, std)
        else:
            tweets.stairs(histogram.count, histogram.edges, fill=True, color=_UNUSED_COLOUR)
        tweets.set_ylabel("Tweets per bin", labelpad=9)
        tweets.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        tweets.yaxis.set_major_formatter(EngFormatter(sep=""))
        tweets.tick_params(axis="x", labelbottom=False)
        _draw_positives(strip, positives_M)
        strip.set_xlabel("Sₐₙ: similarity to the anchor (cosine)", labelpad=8)
        return _to_svg(figure, key, label)


def _set_limits(axes: Axes, histogram: Histogram, mean: float, std: float, positives_M: NDArray[np.float64]) -> None:
    filled = np.flatnonzero(histogram.count)
    ends = [mean - 3.4 * std, mean + 3.4 * std]
    if len(filled):
        ends += [histogram.low[filled[0]], histogram.high[filled[-1]]]
    if len(positives_M):
        ends += [positives_M.min(), positives_M.max()]
    margin = 0.01 * (max(ends) - min(ends)) or 0.01
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.set_ylim(0, 1.22 * max(float(histogram.count.max(initial=0)), 1))


def _band_intervals(low: float, high: float, mean: float, std: float, tails: str) -> list[tuple[int, float, float]]:
    """Return band, start and end of each stretch of the axis, from left to right; band 0 is what has none."""
    right = [(band, mean + (band - 1) * std, mean + band * std if band < 4 else high) for band in (1, 2, 3, 4)]
    if tails == "upper":
        return [(0, low, mean), *right]
    left = [(band, mean - band * std if band < 4 else low, mean - (band - 1) * std) for band in (4, 3, 2, 1)]
    return left[:-1] + [(1, mean - std, mean + std)] + right[1:]


def _draw_bands(tweets: Axes, strip: Axes, histogram: Histogram, mean: float, std: float, tails: str) -> None:
    """Fill the bars in the colour of their band, and tint the whole height, since in the tails no bar can be seen."""
    low, high = tweets.get_xlim()
    edges = histogram.edges
    for band, start, end in _band_intervals(low, high, mean, std, tails):
        if end <= start:
            continue
        colour = BAND_COLOURS.get(band, _UNUSED_COLOUR)
        for axes in (tweets, strip):
            axes.axvspan(start, end, color=colour, alpha=0.11, linewidth=0)
        # A bin that a limit cuts is shown in two colours: the part on each side keeps the height of the whole.
        inside = edges[(edges > start) & (edges < end)]
        cuts = np.concatenate([[max(start, edges[0])], inside, [min(end, edges[-1])]])
        if cuts[0] < cuts[-1]:
            middles = (cuts[:-1] + cuts[1:]) / 2
            bins = np.clip(np.searchsorted(edges, middles) - 1, 0, len(histogram.count) - 1)
            tweets.stairs(histogram.count[bins], cuts, fill=True, color=colour, alpha=0.85, linewidth=0)
        if band:
            _label_band(tweets, BAND_NAMES[band], (start + end) / 2, (end - start) / (high - low))


def _label_band(axes: Axes, label: str, centre: float, share: float) -> None:
    # Where the stretch is narrower than its label the colour has to do.
    if share > 0.027 * len(label):
        axes.text(centre, 0.975, label, transform=axes.get_xaxis_transform(), ha="center", va="top", color="#222222")


def _draw_curve(axes: Axes, histogram: Histogram, mean: float, std: float) -> None:
    low, high = axes.get_xlim()
    x = np.linspace(low, high, 160)
    tweets_per_bin = histogram.count.sum() * histogram.width
    density = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    axes.plot(x, tweets_per_bin * density, color="#111111", linewidth=1.4)


def _draw_z_axis(axes: Axes, mean: float, std: float) -> None:
    low, high = ((limit - mean) / std for limit in axes.get_xlim())
    step = math.ceil((high - low) / 10)
    ticks = np.arange(np.ceil(low / step) * step, high, step)
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(mean + ticks * std), [f"{tick:.0f}".replace("-", "−") for tick in ticks])
    above.set_xlabel("z: standard deviations from the mean", labelpad=8)
    above.spines["top"].set_visible(True)


def _draw_positives(axes: Axes, positives_M: NDArray[np.float64]) -> None:
    low, high = axes.get_xlim()
    counts, edges = np.histogram(positives_M, bins=_NUM_POSITIVE_BINS, range=(low, high))
    axes.stairs(counts, edges, fill=True, color=POSITIVE_COLOUR, linewidth=0)
    axes.set_ylim(0, 1.15 * max(int(counts.max()), 1))
    axes.set_yticks([])
    # Positives lie on the right, so the left has room for the label.
    axes.text(0.012, 0.88, "positives", transform=axes.transAxes, ha="left", va="top", color=POSITIVE_COLOUR)


def project(
    vectors_MD: NDArray[np.float32], anchors_KD: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return vectors ``(M, 2)`` and anchors ``(K, 2)`` on two principal components, and the shares ``(2,)`` of these.

    The components are the first two of the vectors, centred; the shares are of their variance, from 0 to 1.

    Source: Pearson (1901); the singular vectors of the scatter matrix are its principal components.
    """
    mean_D = vectors_MD.mean(axis=0, dtype=np.float64)
    centred_MD = vectors_MD - mean_D
    # The D x D scatter matrix has the same components as the M x D vectors, at a cost that hardly grows with M.
    components_DD, variances_D, _ = np.linalg.svd(centred_MD.T @ centred_MD)
    components_D2 = components_DD[:, :2]
    # The sign of a component is arbitrary; without a rule the figure could turn over between machines.
    largest = np.abs(components_D2).argmax(axis=0)
    components_D2 = components_D2 * np.where(components_D2[largest, [0, 1]] < 0, -1.0, 1.0)
    total = float(variances_D.sum())
    shares = variances_D[:2] / total if total > 0 else np.zeros(2)
    return centred_MD @ components_D2, (anchors_KD - mean_D) @ components_D2, shares


def draw_positives(
    positives_MD: NDArray[np.float32],
    positive_classes: list[str],
    anchors_KD: NDArray[np.float32],
    class_names: list[str],
    *,
    key: str,
    label: str,
) -> str:
    """Return positives, coloured by class, and the anchors on their first two principal components.

    Args:
        positives_MD: Embeddings of the positives.
        positive_classes: Class of each positive.
        anchors_KD: Anchors.
        class_names: Class of each anchor.
        key: Begins every id in the figure; letters and digits.
        label: What the figure shows, for those who do not see it.
    """
    dots_M2, anchors_K2, shares = project(positives_MD, anchors_KD)
    classes_M = np.array(positive_classes, dtype=object)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 4.6))
        axes = figure.add_axes((0.15, 0.15, 0.83, 0.83))
        for index, name in enumerate(class_names):
            look = class_look(index)
            of_class = dots_M2[classes_M == name]
            every = -(-len(of_class) // MAX_DOTS_PER_CLASS) or 1
            dots = of_class[::every].T
            axes.plot(*dots, look.marker, color=look.colour, markersize=4.2, alpha=0.6, markeredgewidth=0)
        # Over all dots, also those of the classes that come later.
        for index in range(len(class_names)):
            look = class_look(index)
            anchor = anchors_K2[index]
            axes.plot(*anchor, look.marker, color=look.colour, markersize=9, markeredgecolor="white", zorder=4)
            axes.plot(*anchor, "o", color="none", markersize=18, markeredgecolor="#111111", zorder=5)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"Component 1 ({100 * shares[0]:.1f}% of the variance)", labelpad=8)
        axes.set_ylabel(f"Component 2 ({100 * shares[1]:.1f}% of the variance)", labelpad=8)
        return _to_svg(figure, key, label)


@dataclass(frozen=True)
class Gain:
    """A gain at one value of a setting, with its interval."""

    value: float
    effect: float
    low: float
    high: float


def draw_gains(series: Mapping[str, Sequence[Gain]], x_name: str, y_name: str, *, key: str, label: str) -> str:
    """Return gains by the value of a setting, with their intervals; a line per series.

    Args:
        series: By name, gains from the smallest value to the largest; at most seven, one for each colour.
        x_name: What the setting is.
        y_name: What the gain is of.
        key: Begins every id in the figure; letters and digits.
        label: What the figure shows, for those who do not see it.
    """
    values = sorted({gain.value for gains in series.values() for gain in gains})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.8 + 0.25 * len(series)))
        below = 0.25 * len(series) / (3.8 + 0.25 * len(series))
        axes = figure.add_axes((0.13, 0.17, 0.84, 0.79 - below))
        axes.axhline(0, color="#555555", linewidth=1)
        for index, (name, gains) in enumerate(series.items()):
            # Values are evenly spaced, in the manner of the paper; series stand side by side.
            places = [values.index(gain.value) + 0.09 * (index - (len(series) - 1) / 2) for gain in gains]
            effects = [gain.effect for gain in gains]
            ends = [[gain.effect - gain.low for gain in gains], [gain.high - gain.effect for gain in gains]]
            look = class_look(index)
            axes.errorbar(
                places, effects, np.maximum(ends, 0), color=look.colour, marker=look.marker, markersize=6, capsize=3,
                linewidth=1.6, label=f" {plain_line(name, 60)}",
            )  # fmt: skip
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(x_name, labelpad=8)
        axes.set_ylabel(y_name, labelpad=8)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1.8)
        return _to_svg(figure, key, label)


def _to_svg(figure: Figure, key: str, label: str) -> str:
    """Return a figure as an ``svg`` element to be put into a page, as wide as its place."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Matplotlib only measures the text; the browser draws it, with fonts that have more glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata=nothing
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    # Its style element would hold for the whole page; the page says the same for figures alone.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _tidy_tag(tag[0], key), svg)
    svg = re.sub(r">\s*\n\s*<", ">\n<", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def _tidy_tag(tag: str, key: str) -> str:
    """Make the ids of a tag the figure's own, and leave out size and digits that nobody sees."""
    if tag.startswith("<svg"):
        return re.sub(r' (?:width|height|version|xmlns:xlink)="[^"]*"', "", tag)
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", tag).replace("xlink:href", "href")
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 sans-serif", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
