from __future__ import annotations

import itertools

import numpy as np
import pytest

from mining import oracles
from scalemine.config import InputError
from scalemine.encoder import Tokens
from scalemine.mining import engine_choice
from scalemine.mining.engine_choice import MIN_GAIN, ROUNDS, ROWS_PER_LENGTH, candidates, choose_engine

TEXTS = ["x" * (3 + i % 11) + f"{i:03}" for i in range(60)]


class FakeEncoder:
    """An encoder that takes a time per token, by a clock of its own; if it is fickle, its bits hang on the company."""

    def __init__(self, engine: str, clock: list[float], seconds: list[float], *, fickle: bool = False) -> None:
        self.engine, self.fidelity = engine, f"fidelity of {engine}"
        self._clock, self._fickle = clock, fickle
        self._seconds = itertools.cycle(seconds)
        self.encoded: list[Tokens] = []

    def normalise(self, text):
        return text.strip()

    def tokenise(self, texts):
        return Tokens([list(text.encode()) for text in texts], 0)

    def encode(self, tokens):
        self.encoded.append(tokens)
        self._clock[0] += next(self._seconds) * tokens.num_tokens
        vectors = np.array([[len(ids), ids[-1]] for ids in tokens.ids], np.float32)
        return vectors + len(tokens.ids) * np.float32(self._fickle)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(engine_choice.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(engine_choice, "MIN_ROWS", len(TEXTS))
    return now


@pytest.fixture
def corpus(tmp_path):
    return oracles.make_corpus(tmp_path, [f"t{i}" for i in range(len(TEXTS))], TEXTS, 50)


def chosen(encoders, corpus):
    return choose_engine(
        {encoder.engine: encoder for encoder in encoders}.__getitem__, [e.engine for e in encoders], corpus
    )


def test_the_fastest_is_chosen(clock, corpus):
    seconds = {"torch": 4e-4, "onednn": 1e-4, "openvino": 2e-4}
    encoders = [FakeEncoder(name, clock, [taken]) for name, taken in seconds.items()]
    choice = chosen(encoders, corpus)
    assert choice.engine == "onednn"
    assert list(choice.measured) == ["torch", "onednn", "openvino"]
    [tokens] = {id(tokens): tokens for tokens in encoders[0].encoded}.values()
    rates = {name: facts["tweets_per_second"] for name, facts in choice.measured.items()}
    expected = len(tokens.ids) / (4e-4 * tokens.num_tokens)
    assert rates["torch"] == pytest.approx(expected, abs=0.1)
    assert rates["onednn"] == pytest.approx(4 * expected, abs=0.1)
    assert choice.measured["onednn"]["fidelity"] == "fidelity of onednn"


@pytest.mark.parametrize(("factor", "expected"), [(0.99, "torch"), (1.02, "onednn")])
def test_a_small_gain_is_noise(factor, expected, clock, corpus):
    encoders = [FakeEncoder("torch", clock, [MIN_GAIN * factor]), FakeEncoder("onednn", clock, [1.0])]
    assert chosen(encoders, corpus).engine == expected


def test_one_round_that_was_disturbed_decides_nothing(clock, corpus):
    # What the first call and the first round cost counts for nothing; nor does one round in which all went wrong.
    rival = [9.0, 0.1, 9.0, *[1.0] * (ROUNDS - 1), 30.0]
    encoders = [FakeEncoder("torch", clock, [2.0]), FakeEncoder("onednn", clock, rival)]
    assert chosen(encoders, corpus).engine == "onednn"


def test_rounds_take_turns(clock, corpus):
    order = []
    encoders = [FakeEncoder(name, clock, [1.0]) for name in ("torch", "onednn")]
    for encoder in encoders:
        encode = encoder.encode
        encoder.encode = lambda tokens, name=encoder.engine, encode=encode: order.append(name) or encode(tokens)
    chosen(encoders, corpus)
    assert order[-2 * ROUNDS :] == ["torch", "onednn"] * ROUNDS


def test_bits_that_hang_on_the_company_are_left_out(clock, corpus, caplog):
    encoders = [FakeEncoder("torch", clock, [1.0]), FakeEncoder("openvino", clock, [0.1], fickle=True)]
    choice = chosen(encoders, corpus)
    assert choice.engine == "torch"
    assert "openvino" not in choice.measured
    assert "openvino is left out" in caplog.text


def test_an_engine_that_does_not_work_is_left_out(clock, corpus, caplog):
    def load(name):
        if name == "onednn":
            raise InputError("encoder.engine: onednn does not work here")
        return FakeEncoder(name, clock, [1.0])

    choice = choose_engine(load, ["torch", "onednn"], corpus)
    assert choice.engine == "torch"
    assert list(choice.measured) == ["torch"]
    assert "onednn does not work here" in caplog.text


def test_nothing_is_measured_without_need(clock, corpus, monkeypatch):
    def load(name):
        raise AssertionError(name)

    assert choose_engine(load, ["torch"], corpus) == engine_choice.Choice("torch", {})
    monkeypatch.setattr(engine_choice, "MIN_ROWS", len(TEXTS) + 1)
    assert choose_engine(load, ["torch", "onednn"], corpus) == engine_choice.Choice("torch", {})


def test_sample_has_the_lengths_of_the_quartiles(clock, corpus):
    encoder = FakeEncoder("torch", clock, [1.0])
    ids = engine_choice._sample(encoder, corpus).ids
    texts = corpus.read(corpus.shards[0])["text"].to_pylist()
    lengths = np.sort([len(text) for text in texts])
    assert len(ids) == 3 * ROWS_PER_LENGTH
    expected = np.quantile(lengths, [0.25, 0.5, 0.75], method="lower")
    assert [len(tokens) for tokens in ids] == np.repeat(expected, ROWS_PER_LENGTH).tolist()
    assert {bytes(tokens).decode() for tokens in ids} == {text for text in texts if len(text) in expected}


def test_candidates(monkeypatch):
    monkeypatch.setattr(engine_choice, "is_installed", lambda _: True)
    assert candidates("float32", "cpu") == ["torch", "onednn", "openvino"]
    assert candidates("bfloat16", "cpu") == ["torch", "openvino"]
    assert (
        candidates("float16", "cpu") == candidates("float32", "cuda") == candidates("bfloat16", "cuda:1") == ["torch"]
    )
    monkeypatch.setattr(engine_choice, "is_installed", lambda name: name != "openvino")
    assert candidates("bfloat16", "cpu") == ["torch"]
