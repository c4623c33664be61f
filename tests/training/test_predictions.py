from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from scalemine.config import InputError
from scalemine.training.kept import folder_of, kind_of, load_model
from scalemine.training.multilabel.label_model import LabelModel
from scalemine.training.predictions import Labels, Spans, load_predictor, predictor_of
from scalemine.training.tagging.tagger import TaggedSpan
from training.trained import write_tagger, write_words

TEXTS = ["FIRE on the roof, water rising", "", "happy dance", "fire roof water rising"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("words") / "run" / "model")


class Lengths(LabelModel):
    info = {"labels": ["a", "b"], "thresholds": {"b": 0.25, "a": 0.5}}

    def normalise(self, text):
        return text

    def scores_of_normalised(self, texts):
        return np.array([[len(text) / 10, 0.25] for text in texts], np.float32)


def test_a_model_is_taken_by_what_it_does():
    ensemble = Lengths()
    predictor = predictor_of(ensemble, "it")
    assert (predictor.gives, predictor.names, predictor.thresholds) == ("labels", ("a", "b"), (0.5, 0.25))
    assert predictor.normalise(" A ") == " A "
    assert [one["labels"] for one in predictor.read(["12345", "1"]).as_json()] == [["a", "b"], ["b"]]
    assert predictor_of(ensemble, "it", 0.3).read(["12345"]).as_json()[0]["labels"] == ["a"]
    tagger = SimpleNamespace(
        types=["x"], tag=lambda texts: [[TaggedSpan(0, 1, "x", text[:1], 0.4)] if text else [] for text in texts]
    )
    assert predictor_of(tagger, "it").thresholds == (0.5,)
    found = predictor_of(tagger, "it").read(["fire", ""]).as_json()
    assert found == [{"spans": [{"start": 0, "end": 1, "type": "x", "text": "f", "probability": 0.4}]}, {"spans": []}]
    assert predictor_of(tagger, "it", 0.5).read(["fire"]).as_json() == [{"spans": []}]
    with pytest.raises(InputError, match="it: a SimpleNamespace gives neither spans nor labels"):
        predictor_of(SimpleNamespace(labels=[], scores=len), "it")


def test_a_text_model_is_read_as_it_normalises(words):
    predictor, model = load_predictor(words), load_model(words)
    keys = [predictor.normalise(text) for text in TEXTS]
    assert keys[0] == keys[3] != TEXTS[0]
    found = predictor.read(keys)
    assert np.array_equal(found.probabilities_DC, model.scores(TEXTS))
    assert np.array_equal(found.has_class(), model.scores(TEXTS) >= np.array([0.4, 0.6]))


def test_a_folder_may_be_that_of_the_run(words):
    assert folder_of(words) == folder_of(words.parent) == words
    assert kind_of(words.parent) == "words"
    with pytest.raises(InputError, match="no model here"):
        folder_of(words.parent.parent)


def test_no_text_gives_no_row(words, tmp_path):
    for folder in (words, write_tagger(tmp_path / "tagger", static=True)):
        found = load_predictor(folder).read([])
        assert found.as_json() == []
        for column in found.columns(np.array([-1, -1])).values():
            assert column.to_pylist() == [None, None]


def test_columns_of_labels():
    found = Labels(("a", "b"), np.array([[0.5, 0.1], [0.25, 0.75]], np.float32), np.array([0.5, 0.5]))
    columns = found.columns(np.array([1, -1, 0, 1]))
    assert columns["labels"].to_pylist() == [["b"], None, ["a"], ["b"]]
    assert columns["p_a"].to_pylist() == [0.25, None, 0.5, 0.25]
    assert columns["p_b"].type == pa.float32()
    assert found.entries(1)[1].tolist() == [np.float32(0.1), 0.75]


def test_columns_of_spans():
    spans = [[TaggedSpan(3, 5, "b", "🔥!", 0.5), TaggedSpan(6, 7, "b", "x", 0.25)], []]
    found = Spans(("a", "b"), spans)
    assert found.has_class().tolist() == [[False, True], [False, False]]
    first, none, empty = found.columns(np.array([0, -1, 1]))["spans"].to_pylist()
    assert first[0] == {"start": 3, "end": 5, "type": "b", "text": "🔥!", "probability": 0.5}
    assert (none, empty) == (None, [])
    at, scores, parts = found.entries(1)
    assert (at.tolist(), scores.tolist(), parts) == ([0, 0], [0.5, 0.25], ["🔥!", "x"])
    assert found.entries(0)[2] == []
