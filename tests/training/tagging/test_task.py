from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalemine.training.batches import prediction_batches
from scalemine.training.loop import Plan, fit
from scalemine.training.tagging import task as module
from scalemine.training.tagging.labels import tag_names
from scalemine.training.tagging.metrics import score
from scalemine.training.tagging.network import Shape, StaticWords, TaggerNetwork, TransformerWords
from scalemine.training.tagging.task import TaggerTask, fill_up, micro_f1, predict_tags
from training.tiny import DIM, VOCABULARY, make_bert, random_inputs

TAGS = tag_names("xy")
PAD = 7  # a token like any other, but for the attention


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def make_network(words=None, model="lstm_cnn_crf", crf="fast", *, dropout=0.4) -> TaggerNetwork:
    torch.manual_seed(3)
    return TaggerNetwork(Shape(model, crf, 6, 3, dropout, DIM), TAGS, words)


def bert_words(*, frozen=False, **settings) -> TransformerWords:
    return TransformerWords(make_bert(**settings), pooling="first", precision="float32", frozen=frozen)


def inputs_of(lengths, seed=0, kind="tokens"):
    return random_inputs(lengths, seed, num_tags=len(TAGS), kind=kind)


def make_task(network, lengths=(4, 1, 6, 2), dev_score=lambda _: 0.5, *, kind="tokens", **rates) -> TaggerTask:
    values = {"lr": 2e-5, "head_lr": 1e-3, "weight_decay": 0.01, "pad_id": PAD}
    ids = [f"tweet-{row}" for row in range(len(lengths))]
    train, dev = inputs_of(lengths, 1, kind), inputs_of((3, 5, 1), 2, kind)
    return TaggerTask(network, train, ids, dev, dev_score, **(values | rates))


# Parameter groups


def described(task: TaggerTask, network: nn.Module) -> dict[str, tuple[float, float]]:
    """Return learning rate and decay of each parameter by name; each is in one group at most."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in task.parameter_groups():
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("crf", ["pytorch-crf", "fast"])
def test_each_parameter_has_its_rate_and_decay(crf):
    network = make_network(bert_words(), crf=crf)
    task = make_task(network)
    found = described(task, network)
    # All but the pooler, which is not learnt, and with a name for each kind.
    assert found.keys() == {name for name, _ in network.named_parameters() if ".pooler." not in name}
    layer = "words.transformer.encoder.layer.0."
    expected = {
        "words.transformer.embeddings.word_embeddings.weight": (2e-5, 0.01),
        "words.transformer.embeddings.LayerNorm.weight": (2e-5, 0.0),
        "words.transformer.embeddings.LayerNorm.bias": (2e-5, 0.0),
        layer + "attention.self.query.weight": (2e-5, 0.01),
        layer + "attention.self.query.bias": (2e-5, 0.0),
        layer + "output.LayerNorm.weight": (2e-5, 0.0),
        "context.0.forth.weight_ih_l0": (1e-3, 0.01),
        "context.0.forth.weight_hh_l0": (1e-3, 0.01),
        "context.0.back.bias_ih_l0": (1e-3, 0.0),
        "context.0.back.bias_hh_l0": (1e-3, 0.0),
        "context.1.convolution.weight": (1e-3, 0.01),
        "context.1.convolution.bias": (1e-3, 0.0),
        "emit.weight": (1e-3, 0.01),
        "emit.bias": (1e-3, 0.0),
        "crf.transitions": (1e-3, 0.01),
        "crf.start_transitions": (1e-3, 0.01),
    }
    assert {name: found[name] for name in expected} == expected
    # And by kind of module, whatever its name.
    for prefix, part in network.named_modules():
        for name, _ in part.named_parameters(recurse=False):
            whole = f"{prefix}.{name}"
            if whole in found:
                is_decayed = not isinstance(part, nn.LayerNorm) and not name.startswith("bias")
                rate = 2e-5 if prefix.startswith("words.") else 1e-3
                assert found[whole] == (rate, 0.01 if is_decayed else 0.0)
    assert len(task.parameter_groups()) == 4


def test_frozen_parameters_are_left_out():
    frozen_table = StaticWords(torch.randn(len(VOCABULARY), DIM), frozen=True)
    for words in (bert_words(frozen=True), frozen_table, None):
        network = make_network(words)
        found = described(make_task(network), network)
        assert found
        assert not any(name.startswith("words.") for name in found)
        assert found.keys() == {name for name, one in network.named_parameters() if one.requires_grad}


def test_a_tuned_table_has_the_rate_of_words():
    network = make_network(StaticWords(torch.randn(len(VOCABULARY), DIM), frozen=False))
    assert described(make_task(network), network)["words.table.weight"] == (2e-5, 0.01)


def test_one_rate_for_all_is_two_groups():
    network = make_network(bert_words())
    groups = make_task(network, lr=3e-5, head_lr=3e-5).parameter_groups()
    assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [(3e-5, 0.0), (3e-5, 0.01)]
    assert len(make_task(network, lr=3e-5, head_lr=3e-5, weight_decay=0.0).parameter_groups()) == 1


# The rows


def test_rows_are_counted_and_named():
    task = make_task(make_network(bert_words()), (4, 1, 6, 2))
    assert task.num_items([0]) == 4
    assert task.num_items([3, 2]) == 8
    assert task.num_items(range(4)) == 13
    assert task.ids([2, 0]) == ["tweet-2", "tweet-0"]
    inputs = inputs_of((4, 1, 6, 2), 1)
    assert list(task.costs()) == [len(tokens.ids) for tokens in inputs.tokens]


def test_a_batch_holds_its_rows_and_their_tags():
    task, inputs = make_task(make_network(bert_words()), (4, 1, 6, 2)), inputs_of((4, 1, 6, 2), 1)
    batch = task.collate([3, 0])
    assert batch["mask_BL"].sum(1).tolist() == [2, 4]
    for place, row in enumerate([3, 0]):
        length, tokens = inputs.num_words[row], inputs.tokens[row]
        assert batch["tags_BL"][place, :length].tolist() == list(inputs.tags[row])
        ids = batch["input_ids_BS"][place].tolist()
        assert ids[: len(tokens.ids)] == list(tokens.ids)
        assert set(ids[len(tokens.ids) :]) <= {PAD}


def test_the_loss_is_that_of_the_number_of_items():
    """The mean over the words of rows that are put together is that over all of them."""
    network = make_network(bert_words()).eval()
    task = make_task(network)
    with torch.no_grad():
        whole = float(network(task.collate(range(4)))) / task.num_items(range(4))
        parts = sum(float(network(task.collate([row]))) for row in range(4)) / sum(
            task.num_items([r]) for r in range(4)
        )
    assert whole == pytest.approx(parts, rel=1e-5)


# Predictions


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(1, 60))
def test_predictions_are_those_of_each_tweet_alone(lengths, seed, budget):
    """In the order of the tweets, whatever the batches."""
    network, inputs = make_network(bert_words(), "linear"), inputs_of(lengths, seed)
    accelerator = Accelerator(cpu=True)
    network.train()  # predicting is no training
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.BATCH_TOKENS, "cpu", budget)
        found = predict_tags(network, inputs, accelerator, PAD)
    network.eval()
    assert [len(tags) for tags in found] == lengths
    for row, tags in enumerate(found):
        emissions_LT = network.emissions(inputs.collate([row]))[0].detach()
        for emission_T, tag in zip(emissions_LT, tags, strict=True):
            # Two tags may be equally good but for rounding.
            assert float(emission_T.max() - emission_T[TAGS.index(tag)]) < 1e-4


def test_predictions_are_made_in_several_batches(accelerator, monkeypatch):
    network, inputs = make_network(), inputs_of([5, 1, 9, 1, 3], kind="vectors")
    whole = predict_tags(network, inputs, accelerator, 0)
    sizes = []
    network.register_forward_pre_hook(lambda *_: pytest.fail("a loss is not wanted"))
    network.emit.register_forward_hook(lambda _, __, emissions_BLT: sizes.append(len(emissions_BLT)))
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 6)
    assert predict_tags(network, inputs, accelerator, 0) == whole
    assert sizes == [len(rows) for rows in prediction_batches(inputs.costs, 6)] == [2, 1, 1, 1]


def test_short_tweets_are_filled_up_with_the_token_for_it(accelerator):
    network, inputs, seen = make_network(bert_words()), inputs_of([2, 8]), []
    network.words.register_forward_pre_hook(lambda _, given: seen.append(given[0]["input_ids_BS"].tolist()))
    predict_tags(network, inputs, accelerator, PAD)
    [[short, long]] = seen
    assert short == [*inputs.tokens[0].ids, *[PAD] * (len(long) - len(inputs.tokens[0].ids))]
    assert len(short) == len(long) == len(inputs.tokens[1].ids) > len(inputs.tokens[0].ids)


def test_nothing_is_predicted_of_nothing(accelerator):
    assert predict_tags(make_network(), inputs_of([], kind="vectors"), accelerator, 0) == []


def test_the_score_is_that_of_the_tweets_that_choose(accelerator):
    network, seen = make_network(bert_words()), []
    task = make_task(network, dev_score=lambda tags: seen.append(tags) or 0.25)
    assert task.evaluate(accelerator) == 0.25
    dev = inputs_of((3, 5, 1), 2)
    assert seen == [predict_tags(network, dev, accelerator, PAD)] == [task.predict(dev, accelerator)]
    assert [len(tags) for tags in seen[0]] == [3, 5, 1]


def test_a_task_learns_its_tweets_by_heart(accelerator, tmp_path):
    """In the loop that it is made for."""
    gold = [["B-x", "I-x", "O", "B-y"], ["O"] * 3, ["O", "B-y", "I-y", "B-y", "O", "O"], ["B-x", "B-x"], ["O"] * 5]
    inputs = inputs_of([len(tags) for tags in gold], 5)
    words = bert_words(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    network = make_network(words, "lstm_crf", dropout=0.0)
    task = TaggerTask(
        network, replace(inputs, tags=[[TAGS.index(tag) for tag in tags] for tags in gold]), list("abcde"), inputs,
        lambda tags: micro_f1(gold, tags), lr=2e-4, head_lr=3e-2, weight_decay=0.01, pad_id=PAD,
    )  # fmt: skip
    plan = Plan(
        batch_size=5, micro_batch=None, bucket_batches=1, epochs=40, patience=40, min_delta=0.0,
        schedule="linear", warmup=0.0, clip=1.0, checkpoint_steps=1_000, seed=1,
    )  # fmt: skip
    assert task.evaluate(accelerator) < 0.5
    assert fit(task, plan, tmp_path, accelerator=accelerator).best == 1


# Tags of all words


def test_words_that_were_not_read_are_outside():
    texts = [["a", "b", "c"], ["d"], ["e", "f"]]
    assert fill_up([["B-x"], ["B-y"], []], texts) == [["B-x", "O", "O"], ["B-y"], ["O", "O"]]
    assert fill_up([], []) == []
    with pytest.raises(ValueError, match="argument 2 is"):
        fill_up([["O"]], texts)


TAG = st.sampled_from([*tag_names("xyz"), "O", "O"])
PAIRS = st.lists(st.lists(st.tuples(TAG, TAG), min_size=1, max_size=8), max_size=6)


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_micro_f1_is_that_of_the_scores(pairs):
    gold, predicted = [[[pair[side] for pair in tweet] for tweet in pairs] for side in (0, 1)]
    words = [["w"] * len(tweet) for tweet in pairs]
    expected = score(gold, predicted, words, num_bootstrap=0)["f1"]
    assert micro_f1(gold, predicted) == pytest.approx(expected, abs=1e-12)


def test_micro_f1_by_hand():
    gold = [["B-x", "I-x", "O"], ["B-y"], ["O", "O"]]
    assert micro_f1(gold, gold) == 1
    assert micro_f1(gold, [["O"] * len(tags) for tags in gold]) == 0
    assert micro_f1([["O"]], [["O"]]) == 0
    # One of two gold spans and one of three predicted ones: 2 * 1 / (2 + 3).
    assert micro_f1(gold, [["B-x", "I-x", "O"], ["B-x"], ["I-y", "O"]]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="shorter"):
        micro_f1(gold, gold[:2])
