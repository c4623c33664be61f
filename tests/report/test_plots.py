import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from scalemine.report import plots


@pytest.fixture
def histogram():
    edges = np.linspace(-0.1, 0.6, 201)
    middles = (edges[:-1] + edges[1:]) / 2
    counts = np.rint(900 * np.exp(-0.5 * ((middles - 0.2) / 0.06) ** 2))
    return plots.Histogram(edges[:-1], edges[1:], counts)


def draw(histogram, *, std=0.06, tails="both", positives=(0.45, 0.5, 0.52), label="A histogram"):
    return plots.draw_distribution(histogram, 0.2, std, np.array(positives), tails=tails, key="d1", label=label)


def draw_classes(names=("a", "b"), key="pca"):
    rng = np.random.default_rng(0)
    anchors = rng.normal(size=(len(names), 8)).astype(np.float32)
    vectors = np.repeat(anchors, 400, axis=0) + rng.normal(size=(400 * len(names), 8)).astype(np.float32)
    classes = [name for name in names for _ in range(400)]
    return plots.draw_positives(vectors, classes, anchors, list(names), key=key, label="Positives")


def test_cosines_do_not_depend_on_length():
    vectors = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], np.float32)
    cosines = plots.cosines(vectors, np.array([5, 0], np.float32))
    np.testing.assert_allclose(cosines, [1, 0, np.sqrt(0.5), 0], atol=1e-6)


@pytest.mark.parametrize("tails", ["both", "upper"])
def test_band_intervals_cover_the_axis_without_overlap(tails):
    intervals = plots._band_intervals(-1.0, 1.0, 0.1, 0.05, tails)
    assert intervals[0][1] == -1.0
    assert intervals[-1][2] == 1.0
    for (_, _, end), (_, start, _) in zip(intervals, intervals[1:], strict=False):
        assert end == pytest.approx(start)
    bands = [band for band, _, _ in intervals]
    assert bands == ([4, 3, 2, 1, 2, 3, 4] if tails == "both" else [0, 1, 2, 3, 4])


def test_distribution_shows_bands_curve_axes_and_positives(histogram):
    svg = draw(histogram)
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert {"1σ", "2σ", "3σ", "&gt;3σ", "positives", "Tweets per bin"} <= texts
    assert "Sₐₙ: similarity to the anchor (cosine)" in texts
    assert "z: standard deviations from the mean" in texts
    for colour in plots.BAND_COLOURS.values():
        assert colour.lower() in svg


def test_upper_tails_leave_the_lower_half_grey(histogram):
    assert plots._UNUSED_COLOUR in draw(histogram, tails="upper")
    assert plots._UNUSED_COLOUR not in draw(histogram, tails="both")


@pytest.mark.parametrize("svg_of", [draw, lambda histogram: draw_classes()])
def test_figures_are_whole_small_deterministic_and_ask_for_nothing(histogram, svg_of):
    svg = svg_of(histogram)
    assert svg == svg_of(histogram)
    ElementTree.fromstring(svg)
    assert svg.startswith('<svg role="img" aria-label=')
    assert len(svg) < 150_000
    assert not re.search(r"<script|<style|<image|<metadata|<!--", svg)
    assert set(re.findall(r'href="(.)', svg)) <= {"#"}
    assert re.search(r"<svg[^>]* (width|height)=", svg) is None


def test_ids_are_the_figures_own():
    first, second = (set(re.findall(r' id="([^"]*)"', draw_classes(key=key))) for key in ("one", "two"))
    assert first
    assert not first & second
    svg = draw_classes(key="one")
    used = set(re.findall(r'(?:url\(#|href="#)([^")]*)', svg))
    assert used <= first


def test_settings_of_matplotlib_are_left_as_they_were(histogram):
    before = dict(mpl.rcParams)
    draw(histogram)
    assert dict(mpl.rcParams) == before


def test_nothing_to_show_still_draws(histogram):
    ElementTree.fromstring(draw(histogram, std=0.0))
    ElementTree.fromstring(draw(histogram, positives=()))
    empty = plots.Histogram(histogram.low, histogram.high, np.zeros_like(histogram.count))
    ElementTree.fromstring(draw(empty))
    one = plots.Histogram(np.array([0.1]), np.array([0.2]), np.array([5.0]))
    ElementTree.fromstring(draw(one))


def test_hostile_names_stay_text(histogram):
    svg = draw(histogram, label='"><script>alert(1)</script>')
    ElementTree.fromstring(svg)
    assert "<script" not in svg


def test_every_class_has_its_own_look():
    assert len({plots.class_look(index) for index in range(56)}) == 56


def test_projection_is_that_of_the_singular_vectors():
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]).astype(np.float32)
    dots, anchors, shares = plots.project(vectors, vectors[:2])
    centred = vectors - vectors.mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(dots), np.abs(centred @ rows[:2].T), atol=1e-4)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:2], rtol=1e-5)
    np.testing.assert_allclose(anchors, dots[:2], atol=1e-5)


def test_projection_of_equal_vectors():
    dots, _, shares = plots.project(np.ones((4, 3), np.float32), np.ones((1, 3), np.float32))
    assert not dots.any()
    assert not shares.any()


def test_gains_have_a_line_per_series_and_a_tick_per_value():
    series = {
        "2s": [plots.Gain(4, 1.5, 0.5, 2.5), plots.Gain(16, 3.8, 2.0, 5.0)],
        "1s <b>": [plots.Gain(2, -1.0, -2.0, 0.5)],
    }
    svg = plots.draw_gains(series, "batch size", "Gain, F1 points", key="g0", label='what "it" shows')
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {" 2s", " 1s &lt;b&gt;", "2", "4", "16", "batch size", "Gain, F1 points"} <= set(texts)
    assert 'aria-label="what &quot;it&quot; shows"' in svg
    assert svg == plots.draw_gains(series, "batch size", "Gain, F1 points", key="g0", label='what "it" shows')
    assert all(name.startswith("g0-") for name in re.findall(r' id="([^"]*)"', svg))
