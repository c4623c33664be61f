from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from mining import oracles
from mining.worlds import World, around, make_anchors, stored_rows
from scalemine.config import GuardConfig, InputError
from scalemine.executor import InlineExecutor
from scalemine.mining.guard import (
    COPY_COSINE,
    MIN_POSITIVES,
    STRATA,
    Features,
    Guard,
    check_positives,
    fit_classifiers,
    fit_guard,
    fit_ratio,
    hold_out_groups,
    load_rescorer,
    reliability,
    sample_strata,
    sample_vectors,
)
from scalemine.mining.sampling import Row
from scalemine.mining.similarity import STEPS_PER_UNIT, Normal, anchor_grid, similarities
from scalemine.mining.strategies import prior_bound

SEED = 11
DIM = 16


# The ratio of densities, where both are known: normal distributions, the positives' moved.


MOVED = np.array([1.5, 1.0])


def true_probability(features, prior):
    ratio = np.exp(features @ MOVED - MOVED @ MOVED / 2)  # p+ over p-
    return prior * ratio / (prior * ratio + 1 - prior)


def draw(seed, num_rows, prior, num_positives):
    """Features of positives, and of a corpus with a share of them, and which those are."""
    rng = np.random.default_rng(seed)
    hidden = rng.random(num_rows) < prior
    corpus = rng.standard_normal((num_rows, 2)) + MOVED * hidden[:, None]
    return rng.standard_normal((num_positives, 2)) + MOVED, corpus, hidden


def by_bins(said, seen, edges=(0, 0.02, 0.1, 0.3, 0.6, 0.9, 1.0)):
    """Mean of both and number of rows, per bin of what is said."""
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (said >= low) & ((said < high) | (high == 1))
        if inside.sum() >= 50:
            yield said[inside].mean(), seen[inside].mean(), inside.sum()


@pytest.mark.parametrize("prior", [0.01, 0.1, 0.4])
def test_ratio_gives_the_true_probability(prior):
    positives, corpus, hidden = draw(1, 30_000, prior, 2_000)
    ratio = fit_ratio(positives, corpus, np.ones(len(corpus)))
    _, fresh, fresh_hidden = draw(2, 30_000, prior, 1)
    said = np.minimum(1, prior * ratio.of(fresh))
    truth = true_probability(fresh, prior)
    bins = list(by_bins(said, fresh_hidden))
    assert len(bins) >= 4
    for one, seen, num in bins:
        assert abs(one - seen) < 0.05 + 3 * math.sqrt(seen * (1 - seen) / num)
    assert np.abs(said - truth).mean() < 0.03
    # A ranking as good as the true one's: the direction was found.
    assert np.corrcoef(ratio.score(fresh), np.log(truth / (1 - truth)))[0, 1] > 0.99
    assert hidden.any()


def test_weights_stand_for_rows():
    positives, corpus, _ = draw(3, 400, 0.1, 100)
    weights = np.random.default_rng(4).integers(1, 6, 400)
    one = fit_ratio(positives, corpus, weights.astype(float))
    other = fit_ratio(positives, np.repeat(corpus, weights, axis=0), np.ones(weights.sum()))
    assert one.of(corpus) == pytest.approx(other.of(corpus), rel=1e-3, abs=1e-3)
    # Only their proportions count.
    assert fit_ratio(positives, corpus, 7.0 * weights).of(corpus) == pytest.approx(one.of(corpus), rel=1e-6)


@pytest.fixture(scope="module")
def ratio():
    positives, corpus, _ = draw(5, 5_000, 0.05, 300)
    return fit_ratio(positives, corpus, np.ones(len(corpus)))


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.floats(-5, 8), st.floats(-5, 8)), st.integers(0, 1), st.floats(0, 5))
def test_no_feature_lowers_the_probability(ratio, features, which, more):
    raised = list(features)
    raised[which] += more
    low, high = ratio.of(np.array([features, raised]))
    assert low <= high


def test_a_feature_that_points_the_wrong_way_is_left_out():
    # Positives have less of the second feature than the corpus: by chance, it is taken to be.
    rng = np.random.default_rng(6)
    positives = rng.standard_normal((300, 2)) + [2, -1]
    ratio = fit_ratio(positives, rng.standard_normal((3_000, 2)), np.ones(3_000))
    assert ratio.coefficients[0] > 0.5
    assert ratio.coefficients[1] == 0


def test_scores_that_are_equal_have_one_probability():
    # Isotonic regression in the order of equal scores would tell positives from the rest.
    positives, corpus = np.array([[1.0, 1.0]] * 10), np.array([[1.0, 1.0]] * 30 + [[0.0, 0.0]] * 60)
    ratio = fit_ratio(positives, corpus, np.ones(90))
    assert ratio.of(np.array([[1.0, 1.0]]))[0] == pytest.approx(3, rel=1e-6)
    assert ratio.of(np.array([[0.0, 0.0]]))[0] == pytest.approx(0, abs=1e-9)


def test_only_positives_beyond_the_corpus():
    rng = np.random.default_rng(7)
    ratio = fit_ratio(rng.normal(9, 0.1, (50, 2)), rng.standard_normal((500, 2)), np.ones(500))
    assert ratio.of(np.array([[9.0, 9.0], [0.0, 0.0]])).tolist() == [math.inf, 0.0]


# Features


NAMES = ("fire", "flood")
NORMALS = [Normal(0.05, 0.2), Normal(-0.02, 0.25)]


def features_of(positives, classes, *, neighbours=3, rescore=None) -> Features:
    anchors = make_anchors(NAMES, np.asarray(classes), positives)
    return Features(anchors, NORMALS, neighbours, anchors.positive_texts, rescore)


@pytest.fixture(scope="module")
def positives():
    rng = np.random.default_rng(8)
    return np.concatenate([around(rng, centre, 9, 0.25) for centre in oracles.unit_rows(rng, 2, DIM)])


CLASSES = np.repeat([0, 1], 9)
GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 4, 4, 0, 1, 1, 2, 5, 5, 5, 6, 7])


def test_features_equal_a_loop(positives):
    features = features_of(positives, CLASSES)
    rows = oracles.unit_rows(np.random.default_rng(9), 30, DIM)
    found = features.of([""] * 30, rows.astype(np.float16))
    for row, (mean_z, near) in zip(rows, found, strict=True):
        z = [
            (oracles.cosine(row, anchor) - normal.mean) / normal.std
            for anchor, normal in zip(features.anchors.vectors_KD, NORMALS, strict=True)
        ]
        cosines = sorted((oracles.cosine(row, one) for one in positives), reverse=True)
        assert mean_z == pytest.approx(sum(z) / 2, abs=0.01)
        assert near == pytest.approx(sum(cosines[:3]) / 3, abs=2e-3)
    assert features.of([], rows[:0].astype(np.float16)).shape == (0, 2)


def test_features_do_not_depend_on_company(positives):
    features = features_of(positives, CLASSES)
    rows = oracles.unit_rows(np.random.default_rng(9), 5_000, DIM).astype(np.float16)
    together = features.of([""] * 5_000, rows)
    assert np.array_equal(together[4_090:4_110], features.of([""] * 20, rows[4_090:4_110]))


def slow_positive(positives, classes, groups, one, neighbours=3):
    """The features of a positive by those of other groups, without its copies."""
    others = [i for i in range(len(positives)) if groups[i] != groups[one]]
    z = []
    for index, normal in enumerate(NORMALS):
        members = [positives[i].astype(float) for i in others if classes[i] == index]
        if members:
            z.append((oracles.cosine(positives[one], np.mean(members, axis=0)) - normal.mean) / normal.std)
    cosines = [oracles.cosine(positives[one], positives[i]) for i in others]
    nearest = sorted((c for c in cosines if c < COPY_COSINE), reverse=True)[:neighbours]
    return [sum(z) / len(z), sum(nearest) / len(nearest)]


def test_positives_are_held_out_with_their_group(positives):
    found = features_of(positives, CLASSES).of_positives(GROUPS)
    for one in range(len(positives)):
        expected = slow_positive(positives, CLASSES, GROUPS, one)
        assert found[one] == pytest.approx(expected, abs=0.01)


def names_of(classes):
    return [f"class {number}" for number in classes]


def test_events_are_groups_whatever_their_case(positives):
    events = ["Flood", " flood ", "fire", "FIRE"] * 4 + ["flood", "fire"]
    groups = hold_out_groups(events, CLASSES, positives, 1)
    assert groups == [event.strip().lower() for event in events]


@pytest.mark.parametrize("events", [[None] * 18, ["one"] * 18, ["", "two"] * 9])
def test_clusters_stand_in_for_events(positives, events):
    groups = hold_out_groups(events, CLASSES, positives, 1)
    for index in set(CLASSES.tolist()):
        own = {group for group, one in zip(groups, CLASSES, strict=True) if one == index}
        others = set(groups) - own
        assert len(own) == 2
        assert all(group not in others for group in own)
    assert groups == hold_out_groups(events, CLASSES, positives, 1)


def test_clusters_hold_out_siblings():
    # Two stories a class: those of one story go together, so none is judged beside its siblings.
    rng = np.random.default_rng(5)
    centres = oracles.unit_rows(rng, 4, DIM)
    rows = np.concatenate([around(rng, centre, 30, 0.05) for centre in centres])
    classes, stories = np.repeat([0, 1], 60), np.repeat(np.arange(4), 30)
    groups = hold_out_groups([None] * 120, classes, rows, 3)
    for story in range(4):
        assert len({groups[i] for i in np.flatnonzero(stories == story)}) == 1
    assert len(set(groups)) == 4


def test_positives_that_are_all_alike_are_held_out_one_by_one():
    groups = hold_out_groups([None] * 20, np.zeros(20, int), np.ones((20, 4)) / 2, 1)
    assert len(set(groups)) >= 2


@pytest.mark.parametrize("num", [1, MIN_POSITIVES - 1])
def test_too_few_positives_are_refused(num):
    with pytest.raises(InputError, match=rf"^guard: {num} positives, expected at least {MIN_POSITIVES}") as refused:
        check_positives(["fire"] * num)
    assert "\n" not in str(refused.value)


def test_class_with_one_positive_is_refused():
    with pytest.raises(InputError, match=r"^guard: class 'class 1' has one positive, expected at least 2") as refused:
        check_positives(names_of([0] * 19 + [1]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_copies_in_its_own_event_do_not_flatter_a_positive(positives, noise):
    before = features_of(positives, CLASSES).of_positives(GROUPS)
    copies = around(np.random.default_rng(10), positives[4], 12, noise)
    after = features_of(np.concatenate([positives, copies]), np.concatenate([CLASSES, np.zeros(12, int)])).of_positives(
        np.concatenate([GROUPS, np.full(12, GROUPS[4])])
    )
    own = np.isin(GROUPS, GROUPS[4])
    assert np.array_equal(after[:18][own], before[own])
    # Elsewhere they count.
    assert not np.array_equal(after[:18][~own], before[~own])


def test_copies_of_other_events_are_masked(positives):
    before = features_of(positives, CLASSES).of_positives(GROUPS)
    for cosine, flattered in ((0.99, False), (0.93, True)):
        rng = np.random.default_rng(10)
        across = rng.standard_normal((12, DIM))
        across -= np.outer(across @ positives[4], positives[4])
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        near = (cosine * positives[4] + math.sqrt(1 - cosine**2) * across).astype("f4")
        more = features_of(np.concatenate([positives, near]), np.concatenate([CLASSES, np.zeros(12, int)]))
        after = more.of_positives(np.concatenate([GROUPS, np.full(12, 8)]))
        assert (after[4, 1] > before[4, 1] + 0.05) == flattered
        if not flattered:
            assert after[4, 1] == before[4, 1]


# The rescorer


class Alike:
    """A rescorer that notes what it is asked, and finds texts of one length alike."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def __call__(self, pairs):
        self.pairs += pairs
        return np.array([-abs(len(one) - len(other)) for one, other in pairs], float)


def test_rescorer_is_asked_about_the_nearest_positive(positives):
    rescore = Alike()
    features = features_of(positives, CLASSES, rescore=rescore)
    rows = oracles.unit_rows(np.random.default_rng(11), 25, DIM)
    texts = ["x" * number for number in range(25)]
    found = features.of(texts, rows.astype(np.float16))
    expected = []
    for row, text in zip(rows, texts, strict=True):
        cosines = [oracles.cosine(row, one) for one in positives]
        expected.append((features.positive_texts[int(np.argmax(cosines))], text))
    assert rescore.pairs == expected
    assert found.shape == (25, 3)
    assert found[:, 2].tolist() == [-abs(len(one) - len(other)) for one, other in expected]
    plain = features_of(positives, CLASSES)
    assert np.array_equal(found[:, :2], plain.of(texts, rows.astype(np.float16)))


def test_rescorer_does_not_see_the_held_out(positives):
    rescore = Alike()
    features = features_of(positives, CLASSES, rescore=rescore)
    assert features.of_positives(GROUPS).shape == (18, 3)
    number_of = {text: number for number, text in enumerate(features.positive_texts)}
    assert sorted(number_of[held] for _, held in rescore.pairs) == list(range(18))
    for shown, held in rescore.pairs:
        assert GROUPS[number_of[shown]] != GROUPS[number_of[held]]
        cosines = [
            oracles.cosine(positives[number_of[held]], one) if group != GROUPS[number_of[held]] else -2
            for one, group in zip(positives, GROUPS, strict=True)
        ]
        assert number_of[shown] == int(np.argmax([c if c < COPY_COSINE else -2 for c in cosines]))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fire", "flood", "bus", "crash", "in", "the", "shop"]
PAIRS = [("fire in the shop", "bus crash"), ("flood", "the flood in the shop"), ("crash", "crash"), ("in", "bus bus")]


def write_cross_encoder(folder, num_labels) -> BertForSequenceClassification:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=num_labels, initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    return model


@pytest.mark.parametrize("num_labels", [1, 3])
def test_cross_encoder_scores_pairs(tmp_path, num_labels):
    model = write_cross_encoder(tmp_path / "model", num_labels)
    rescore = load_rescorer(str(tmp_path / "model"))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        logits = [model(**tokenizer(*pair, return_tensors="pt")).logits[0] for pair in PAIRS]
    # One label is a probability; of several, the last one's logit.
    expected = [float(torch.sigmoid(one[0]) if num_labels == 1 else one[-1]) for one in logits]
    found = rescore(PAIRS)
    assert found.shape == (4,)
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(one, 3) for one in expected}) > 1


@pytest.mark.parametrize("fault", ["missing", "pickle", "garbage", "no config"])
def test_rescorer_that_cannot_be_loaded_is_refused(tmp_path, fault):
    folder = tmp_path / "model"
    if fault != "missing":
        write_cross_encoder(folder, 1)
    if fault == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if fault == "garbage":
        (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not the weights")
    if fault == "no config":
        (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"^guard\.rescorer: ") as refused:
        load_rescorer(str(folder))
    assert "\n" not in str(refused.value)


# The whole guard


EVENTS = 12


def make_mixture(seed, num_rows, prior, num_positives=240):
    """A corpus in which positives hide, and positives of many events; both drawn alike."""
    rng = np.random.default_rng(seed)
    centres = oracles.unit_rows(np.random.default_rng(99), 2, DIM)
    both = np.repeat([0, 1], num_positives // 2)
    positives = np.concatenate([around(rng, centre, num_positives // 2, 0.18) for centre in centres])
    hidden = rng.random(num_rows) < prior
    # What is not positive reaches from far away to close by.
    rows = (
        oracles.unit_rows(rng, num_rows, DIM)
        + rng.uniform(0, 0.9, (num_rows, 1)) * centres[rng.integers(2, size=num_rows)]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for index, centre in enumerate(centres):
        mine = np.flatnonzero(hidden & (np.arange(num_rows) % 2 == index))
        rows[mine] = around(rng, centre, len(mine), 0.18)
    world = World.of(make_anchors(NAMES, both, positives), rows.astype("f4"), seed)
    return world, hidden, [f"event {number}" for number in rng.integers(EVENTS, size=num_positives)]


def fit_world(world, events, config=None, *, sample=None, rescore=None) -> Guard:
    cosines = world.vectors.astype(float) @ world.anchors.vectors_KD.T
    normals = [Normal(float(cosines[:, k].mean()), float(cosines[:, k].std())) for k in range(2)]
    features = Features(world.anchors, normals, 10, world.anchors.positive_texts, rescore)
    rows = np.arange(len(world.ids)) if sample is None else sample
    return fit_guard(
        features, events, [Row("", int(i), world.ids[i], world.texts[i]) for i in rows],
        world.vectors[rows].astype(np.float16), np.ones(len(rows)), config or GuardConfig(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixture():
    return make_mixture(1, 6_000, 0.08)


@pytest.fixture(scope="module")
def guard(mixture):
    world, _, events = mixture
    return fit_world(world, events, GuardConfig(prior=0.08))


def test_probability_is_calibrated(guard):
    fresh, hidden, _ = make_mixture(2, 12_000, 0.08)
    said = guard.probability(fresh.texts, fresh.vectors)
    bins = list(by_bins(said, hidden))
    assert len(bins) >= 5
    for one, seen, num in bins:
        assert abs(one - seen) < 0.08 + 3 * math.sqrt(seen * (1 - seen) / num)
    # What a budget of 5 % lets through leaks no more than that, and most of what is no positive is let through.
    through = said <= 0.05
    assert hidden[through].mean() < 0.02
    assert through[~hidden].mean() > 0.8


def test_reliability_says_what_is_there(guard, mixture):
    _, hidden, _ = mixture
    rows = guard.facts["reliability"]
    assert sum(row["share_of_corpus"] for row in rows) == pytest.approx(1)
    assert sum(row["positives"] for row in rows) == 240
    assert [row["low"] for row in rows] == sorted(row["low"] for row in rows)
    for row in rows:
        assert row["low"] <= row["said"] <= row["high"]
        num_rows, expected = row["share_of_corpus"] * len(hidden), row["said"] * row["share_of_corpus"] / 0.08 * 240
        # Both are counts: of held-out positives, and of rows of the corpus.
        noise = math.sqrt(expected + expected**2 / num_rows)
        assert abs(row["positives"] - expected) < 4 * noise + 0.15 * expected + 2
        assert row["seen"] == pytest.approx(min(1, 0.08 * row["positives"] / 240 / row["share_of_corpus"]))
    assert len(rows) >= 5


def test_facts_of_the_guard(guard, mixture):
    world, hidden, events = mixture
    facts = guard.facts
    assert (facts["prior"], facts["prior_is"]) == (0.08, "given")
    assert (facts["positives"], facts["groups"], facts["sample"]) == (240, EVENTS, 6_000)
    names = ["linear classifier of the embedding", "mean z over the classes", "mean cosine to the nearest positives"]
    assert list(facts["features"]) == names
    estimated = fit_world(world, events)
    assert estimated.facts["prior_is"] == "estimated"
    assert estimated.prior == estimated.facts["prior"]
    assert 0.95 * hidden.mean() < estimated.prior < 2 * hidden.mean()


def test_probability_rises_with_the_prior(guard, mixture):
    world, _, _ = mixture
    said = guard.probability(world.texts, world.vectors)
    doubled = replace(guard, prior=0.16).probability(world.texts, world.vectors)
    assert doubled == pytest.approx(np.minimum(1, 2 * said))
    assert (said < 1).any()
    assert guard.probability([], world.vectors[:0]).shape == (0,)


def test_classifier_of_a_fold_has_not_seen_it():
    rng = np.random.default_rng(3)
    positives, sample = rng.standard_normal((100, 8)), rng.standard_normal((400, 8))
    positives[:, 0] += 1.5
    fold_M, fold_U = np.arange(100) % 5, np.arange(400) % 5
    fitted = fit_classifiers(positives, fold_M, sample, fold_U, np.ones(400))
    changed = positives.copy()
    changed[fold_M == 2] = 50.0
    other = fit_classifiers(changed, fold_M, sample, fold_U, np.ones(400))
    assert (other.weights_CD[2] == fitted.weights_CD[2]).all()
    assert (other.weights_CD[[0, 1, 3, 4]] != fitted.weights_CD[[0, 1, 3, 4]]).any(axis=1).all()
    assert (fitted.weights_CD[:, 0] > 0.5).all()
    # A row that counts for nothing is as one that is not there.
    without = fit_classifiers(positives, fold_M, sample[:200], fold_U[:200], np.ones(200))
    ignored = fit_classifiers(positives, fold_M, sample, fold_U, (np.arange(400) < 200) + 1e-12)
    assert ignored.weights_CD == pytest.approx(without.weights_CD, abs=1e-3)


def test_positives_in_the_corpus_do_not_blind_the_classifier():
    # Most of what is nearest to the positives is positive itself; taken for negative, it would turn the classifier.
    world, hidden, events = make_mixture(4, 6_000, 0.4)
    guard = fit_world(world, events)
    said = guard.probability(world.texts, world.vectors)
    far = np.flatnonzero(~hidden)
    assert said[hidden].mean() > 0.8 > 0.2 > said[far].mean()
    scores = guard.classifiers.scores(world.vectors).mean(axis=1)
    auc = (scores[hidden][:500, None] > scores[far][None, :500]).mean()
    assert auc > 0.8


@pytest.mark.parametrize("rows_of_sample", [300, 3_000])
def test_few_rows_do_not_pass_for_few_positives(mixture, rows_of_sample):
    # The prior is said to be an upper bound, also where hardly a positive is in the sample.
    world, hidden, events = mixture
    found = fit_world(world, events, sample=np.arange(rows_of_sample))
    assert found.prior > 0.7 * hidden.mean()


def test_rescorer_counts_where_it_tells_more(mixture):
    world, hidden, events = mixture
    number_of = {text: number for number, text in enumerate(world.texts)}
    rng = np.random.default_rng(12)

    def knows(pairs):
        is_positive = [text not in number_of or hidden[number_of[text]] for _, text in pairs]
        return np.array(is_positive) * 2.0 + rng.standard_normal(len(pairs))

    world, hidden = replace(world), hidden
    with_it = fit_world(world, events, GuardConfig(prior=0.08), rescore=knows)
    without = fit_world(world, events, GuardConfig(prior=0.08))
    assert list(with_it.facts["features"])[3] == "score of the rescorer"
    assert with_it.facts["features"]["score of the rescorer"] > 0.5

    def brier(guard):
        return ((guard.probability(world.texts, world.vectors) - hidden) ** 2).mean()

    assert brier(with_it) < 0.8 * brier(without)


@pytest.mark.parametrize("num", [MIN_POSITIVES, 30])
def test_few_positives_are_enough(num):
    rng = np.random.default_rng(13)
    centre = oracles.unit_rows(rng, 1, DIM)[0]
    world = World.of(
        make_anchors(("fire",), np.zeros(num, int), around(rng, centre, num, 0.2)), oracles.unit_rows(rng, 400, DIM)
    )
    features = Features(world.anchors, [Normal(0.0, 0.25)], 10, world.anchors.positive_texts)
    sample = [Row("", i, world.ids[i], world.texts[i]) for i in range(400)]
    found = fit_guard(
        features, [str(i) for i in range(num)], sample, world.vectors.astype("f2"), np.ones(400), GuardConfig()
    )
    near, far = found.probability(["", ""], np.stack([centre, -centre]))
    assert far == 0
    assert near == 1


def test_reliability_of_two_groups():
    # Three of five parts hold no group; each is said by a fit on the others all the same.
    positives, corpus, _ = draw(14, 3_000, 0.05, 200)
    rows = reliability(positives, np.arange(200) % 2, corpus, np.ones(3_000), 0.05)
    assert sum(row["positives"] for row in rows) == 200
    assert sum(row["share_of_corpus"] for row in rows) == pytest.approx(1)


def test_prior_of_a_mixture_is_bounded_through_the_score():
    positives, corpus, hidden = draw(15, 20_000, 0.05, 1_000)
    ratio = fit_ratio(positives, corpus, np.ones(len(corpus)))
    bound = prior_bound(ratio.score(corpus), np.ones(len(corpus)), ratio.score(positives))
    assert hidden.mean() * 0.95 < bound < 4 * hidden.mean()


# The sample


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    world, _, _ = make_mixture(3, 1_500, 0.03, 40)
    world = replace(world, quarantined=frozenset(world.ids[::31]))
    view = world.view(tmp_path_factory.mktemp("strata"), 90)
    return world, view, [view.normals[name] for name in NAMES]


def slow_strata(view, normals) -> list[list[str]]:
    strata = [[] for _ in range(len(STRATA) + 1)]
    for id_, cosines in stored_rows(view):
        largest = max((c - n.mean) / n.std for c, n in zip(cosines, normals, strict=True))
        strata[sum(largest >= edge for edge in STRATA)].append(id_)
    return strata


@pytest.mark.parametrize("size", [20, 5_000])
def test_strata_are_sampled_by_priority(scored, size):
    world, view, normals = scored
    sample, weights = sample_strata(view, normals, size, SEED, InlineExecutor())
    expected, shares = [], []
    for number, ids in enumerate(slow_strata(view, normals)):
        chosen = sorted(ids, key=lambda id_, n=number: oracles.priority(id_, SEED, f"guard:{n}"))[:size]
        expected += chosen
        shares += [len(ids) / max(1, len(chosen))] * len(chosen)
    assert [row.id for row in sample] == expected
    assert weights.tolist() == shares
    assert weights.sum() == pytest.approx(1_500 - len(world.quarantined))
    assert (weights > 1).any() == (size == 20)
    text_of = dict(zip(world.ids, world.texts, strict=True))
    assert all(row.text == text_of[row.id] for row in sample)


@pytest.mark.parametrize("rows_per_shard", [40, 10_000])
def test_sample_does_not_depend_on_shards(scored, tmp_path, rows_per_shard):
    world, view, normals = scored
    one = sample_strata(view, normals, 30, SEED, InlineExecutor())
    other = sample_strata(world.view(tmp_path, rows_per_shard), normals, 30, SEED, InlineExecutor())
    assert [row.id for row in one[0]] == [row.id for row in other[0]]
    assert one[1].tolist() == other[1].tolist()


def test_weighted_sample_gives_the_mean_of_the_corpus(scored):
    # The strata overrepresent what is near; weighted, the corpus comes out again.
    world, view, normals = scored
    grid = anchor_grid(world.anchors.vectors_KD)
    vectors = dict(zip(world.ids, world.vectors.astype(np.float16), strict=True))
    means = []
    for seed in range(20):
        sample, weights = sample_strata(view, normals, 40, seed, InlineExecutor())
        steps = similarities(np.stack([vectors[row.id] for row in sample]), grid)[:, 0]
        means.append(np.average(steps, weights=weights) / STEPS_PER_UNIT)
    truth = np.mean([cosines[0] for _, cosines in stored_rows(view)])
    assert np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / math.sqrt(20))


def test_vectors_of_the_sample_are_stored_or_encoded(scored, tmp_path):
    world, view, normals = scored
    sample, _ = sample_strata(view, normals, 10, SEED, InlineExecutor())
    vector_of = dict(zip(world.ids, world.vectors.astype(np.float16), strict=True))
    expected = np.stack([vector_of[row.id] for row in sample])
    asked = []

    def encode(texts):
        asked.append(texts)
        return world.encode(texts)

    for one, calls in ((replace(view, encode=encode), 0), (replace(view, encode=encode, embeddings=None), 1)):
        found = sample_vectors(one, sample)
        assert found.dtype == np.float16
        assert np.array_equal(found, expected)
        assert len(asked) == calls


def test_sample_that_cannot_be_read_is_said(scored, tmp_path):
    world, _, normals = scored
    broken = world.view(tmp_path, 100)
    broken.similarities.path(broken.similarities.corpus.shards[0]).unlink()
    with pytest.raises(RuntimeError, match="the corpus cannot be sampled"):
        sample_strata(broken, normals, 10, SEED, InlineExecutor())
