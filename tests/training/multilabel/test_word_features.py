from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from scalemine.config import InputError
from scalemine.text import normaliser
from scalemine.training.multilabel.word_features import WordFeatures, count_phrases, read_lexicon, words_of

TEXTS = ["fire near the bridge", "Fire! fire in the shop", "two hurt near the shop", "the bus is late"]
WORDS = st.text(alphabet="abc", min_size=2, max_size=3)
DOCUMENTS = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8)


def test_the_formula_by_hand():
    features = WordFeatures.fit(TEXTS)
    row = features.transform(["fire fire shop unheard"]).toarray()[0]
    idf = {word: math.log((1 + 4) / (1 + number)) + 1 for word, number in {"fire": 2, "shop": 2, "the": 4}.items()}
    assert features.idf[features.terms.index("the")] == idf["the"] == 1
    expected = {"fire": 2 * idf["fire"], "shop": idf["shop"]}
    length = math.hypot(*expected.values())
    for place, word in enumerate(features.terms):
        assert row[place] == pytest.approx(expected.get(word, 0) / length, rel=1e-6), word


@given(DOCUMENTS, DOCUMENTS, st.sampled_from([(1, 1), (1, 2), (2, 3)]), st.integers(1, 2))
@settings(deadline=None, max_examples=60)
def test_as_scikit_learn_has_it(train, test, ngrams, min_df):
    reference = TfidfVectorizer(ngram_range=ngrams, min_df=min_df, smooth_idf=True, norm="l2")
    try:
        reference.fit(train)
    except ValueError:
        with pytest.raises(InputError):
            WordFeatures.fit(train, ngrams=ngrams, min_df=min_df)
        return
    features = WordFeatures.fit(train, ngrams=ngrams, min_df=min_df)
    assert list(features.terms) == reference.get_feature_names_out().tolist()
    np.testing.assert_allclose(features.idf, reference.idf_)
    found = features.transform(test)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), reference.transform(test).toarray(), atol=1e-6)


def test_counts_are_those_of_texts_not_of_words():
    features = WordFeatures.fit(TEXTS)
    expected = Counter(word for text in TEXTS for word in set(words_of(text)) if len(word) > 1)
    assert dict(zip(features.terms, features.texts_with, strict=True)) == expected
    assert features.num_texts == 4


@given(DOCUMENTS, st.sets(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5))
@settings(deadline=None)
def test_phrases_are_counted_as_a_slow_search_does(texts, phrases):
    slow = [sum(f" {phrase} " in f" {' '.join(words_of(text))} " for phrase in phrases) for text in texts]
    assert count_phrases(texts, phrases).tolist() == slow


def test_phrases_are_whole_words_once_in_any_case():
    phrases = ("go to hell", "a", "hell")
    texts = ["GO to Hell, go to hell", "shells", "a hell", "", "go to; hell"]
    assert count_phrases(texts, phrases).tolist() == [2, 0, 2, 0, 2]


def test_the_number_of_phrases_is_the_last_feature():
    phrases = ("fire", "two hurt")
    features = WordFeatures.fit(TEXTS, phrases=phrases)
    found = features.transform([*TEXTS, "nothing known"]).toarray()
    assert found.shape == (5, len(features.terms) + 1)
    assert found[:, -1].tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_array_equal(found[:, :-1], WordFeatures.fit(TEXTS).transform([*TEXTS, "nothing known"]).toarray())
    assert not found[4].any()


@pytest.mark.parametrize("phrases", [(), ("fire",)])
def test_no_texts_have_no_rows(phrases):
    features = WordFeatures.fit(TEXTS, phrases=phrases)
    assert features.transform([]).shape == (0, len(features.terms) + len(phrases))


def test_written_and_read_again_they_are_the_same():
    features = WordFeatures.fit(TEXTS, ngrams=(1, 2), phrases=("fire",))
    again = WordFeatures.from_json(json.loads(json.dumps(features.as_json())))
    assert again == features
    np.testing.assert_array_equal(again.transform(TEXTS).toarray(), features.transform(TEXTS).toarray())


@pytest.mark.parametrize(
    "change",
    [{"terms": []}, {"texts_with": [1]}, {"num_texts": 1}, {"terms": ["a", "a"]}, {"ngrams": [1]}, {"texts_with": "x"}],
)
def test_damaged_features_are_refused(change):
    values = json.loads(json.dumps(WordFeatures.fit(["fire near", "fire"]).as_json()))
    with pytest.raises((ValueError, TypeError)):
        WordFeatures.from_json(values | change)


def test_texts_without_words_are_refused():
    with pytest.raises(InputError, match="no word of two letters"):
        WordFeatures.fit(["", "a !"])
    with pytest.raises(InputError, match=r"baseline.min_df: nothing is in 3 of the 2"):
        WordFeatures.fit(["fire", "fire"], min_df=3)


def test_a_lexicon_is_normalised_as_tweets_are(tmp_path, caplog):
    path = tmp_path / "phrases.txt"
    path.write_text("\ufeffGo to the hell\n\n  a  \nhell\nHELL\n", "utf-8")
    assert read_lexicon(path, normaliser("none")) == ("go to the hell", "a", "hell")
    assert read_lexicon(path, normaliser("rescue")) == ("go hell", "hell")
    assert "of 1 phrases nothing is left" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot be read"), (b"", "no phrase"), (b" \n!\n", "no phrase"), (b"\xff\xfe\x41", "UTF-8")],
)
def test_a_lexicon_that_is_none(tmp_path, content, expected):
    path = tmp_path / "phrases.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        read_lexicon(path, normaliser("none"))
    assert "baseline.lexicon" in str(caught.value) and "\n" not in str(caught.value)
