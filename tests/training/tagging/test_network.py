from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalemine.training.tagging.labels import Span, spans_of_tags, tag_names
from scalemine.training.tagging.network import BiLstm, Cnn, Shape, StaticWords, TaggerNetwork, TransformerWords
from training.tiny import DIM, VOCABULARY, make_bert, random_inputs

TAGS = tag_names("xy")
KINDS = [
    *((model, crf) for model in ("lstm_crf", "cnn_crf", "lstm_cnn_crf") for crf in ("pytorch-crf", "fast")),
    ("linear", "fast"),
]
each_kind = pytest.mark.parametrize(("model", "crf"), KINDS)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def make_network(model: str, crf: str, words=None, *, kernel=3, dropout=0.4, tags=TAGS) -> TaggerNetwork:
    """Return a network in use, whose weights are large enough for tags and spans of all kinds."""
    torch.manual_seed(1)
    network = TaggerNetwork(Shape(model, crf, 8, kernel, dropout, DIM), tags, words)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("words."):
                parameter.normal_(0, 0.3)
    return network.eval()


def bert_words(pooling="first", *, frozen=False, precision="float32", **settings) -> TransformerWords:
    return TransformerWords(make_bert(**settings), pooling=pooling, precision=precision, frozen=frozen)


def static_words(*, frozen=False) -> StaticWords:
    table_VD = torch.randn(len(VOCABULARY), DIM, generator=torch.Generator().manual_seed(2))
    return StaticWords(table_VD, frozen=frozen)


def inputs_of(lengths, seed=0, kind="vectors", num_tags=5):
    return random_inputs(lengths, seed, num_tags=num_tags, kind=kind)


def check_each_alone(network: TaggerNetwork, inputs, tolerance: float = 1e-5) -> None:
    """In a batch each tweet has the emissions, the share of the loss and the tags that it has alone.

    Where two paths are equally good but for rounding, either may be taken.
    """
    rows = range(len(inputs))
    batch = inputs.collate(rows)
    with torch.no_grad():
        emissions_BLT, tags_BL, loss = network.emissions(batch), network.decode(batch), float(network(batch))
        losses = []
        for row, length in enumerate(inputs.num_words):
            alone = inputs.collate([row])
            assert torch.allclose(emissions_BLT[row, :length], network.emissions(alone)[0], rtol=0, atol=tolerance)
            assert not tags_BL[row, length:].any()
            of_batch, of_alone = (
                float(network(alone | {"tags_BL": tags_BL}))
                for tags_BL in (tags_BL[row, None, :length], network.decode(alone))
            )
            assert of_batch == pytest.approx(of_alone, rel=tolerance, abs=10 * tolerance)
            losses.append(float(network(alone)))
    assert loss == pytest.approx(sum(losses), rel=tolerance, abs=10 * tolerance)


@each_kind
@pytest.mark.parametrize("kernel", [1, 5])
def test_a_tweet_gets_in_a_batch_what_it_gets_alone(model, crf, kernel):
    network = make_network(model, crf, kernel=kernel)

    @settings(deadline=None, max_examples=15)
    @given(LENGTHS, st.integers(0, 2**32))
    def compare(lengths, seed):
        check_each_alone(network, inputs_of(lengths, seed))

    compare()


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("kind", ["tuned", "frozen", "static"])
def test_words_do_not_depend_on_the_batch(pooling, kind):
    words = static_words() if kind == "static" else bert_words(pooling, frozen=kind == "frozen")
    network = make_network("lstm_cnn_crf", "fast", words)

    @settings(deadline=None, max_examples=10)
    @given(LENGTHS, st.integers(0, 2**32))
    def compare(lengths, seed):
        inputs = inputs_of(lengths, seed, "static" if kind == "static" else "tokens")
        # Rounding to float16 may fall the other way after another last bit of float32.
        check_each_alone(network, inputs, 3e-3 if kind == "frozen" else 1e-5)

    compare()


@each_kind
def test_what_lies_beyond_a_tweet_counts_for_nothing(model, crf):
    network, inputs = make_network(model, crf, kernel=5), inputs_of([1, 4, 7])
    batch = inputs.collate(range(3))
    rubbish = {name: tensor.clone() for name, tensor in batch.items()}
    rubbish["vectors_BLD"] = batch["vectors_BLD"].masked_fill(~batch["mask_BL"][..., None], 1e4)
    rubbish["tags_BL"] = batch["tags_BL"].masked_fill(~batch["mask_BL"], 3)
    with torch.no_grad():
        assert torch.equal(network.decode(batch), network.decode(rubbish))
        assert float(network(batch)) == float(network(rubbish))


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(0, 2**32), st.integers(1, 7))
def test_bilstm_is_that_of_torch_over_packed_sequences(lengths, seed, hidden):
    torch.manual_seed(seed)
    ours, theirs = BiLstm(DIM, hidden), nn.LSTM(DIM, hidden, batch_first=True, bidirectional=True)
    theirs.load_state_dict(
        ours.forth.state_dict() | {f"{name}_reverse": one for name, one in ours.back.state_dict().items()}
    )
    batch = inputs_of(lengths, seed).collate(range(len(lengths)))
    vectors_BLD, mask_BL = batch["vectors_BLD"].float(), batch["mask_BL"]
    packed = nn.utils.rnn.pack_padded_sequence(vectors_BLD, torch.tensor(lengths), True, enforce_sorted=False)
    expected_BLH, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    assert torch.allclose(ours(vectors_BLD, mask_BL)[mask_BL], expected_BLH[mask_BL], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_cnn_looks_at_the_words_around(kernel):
    """Against the sum written out word by word."""
    torch.manual_seed(0)
    layer, lengths = Cnn(DIM, 5, kernel), [4, 1, 6]
    batch = inputs_of(lengths).collate(range(3))
    context_BLH = layer(batch["vectors_BLD"].float(), batch["mask_BL"])
    weight_HDK, bias_H = layer.convolution.weight, layer.convolution.bias
    for row, length in enumerate(lengths):
        for place in range(length):
            sum_H = bias_H.clone()
            for offset in range(kernel):
                other = place + offset - kernel // 2
                if 0 <= other < length:
                    sum_H = sum_H + weight_HDK[:, :, offset] @ batch["vectors_BLD"][row, other].float()
            assert torch.allclose(context_BLH[row, place], sum_H.clamp(min=0), rtol=0, atol=1e-5)


# Words


@pytest.mark.parametrize("pooling", ["first", "mean"])
@settings(deadline=None, max_examples=20)
@given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_pooling_against_a_loop(pooling, lengths, seed):
    words, inputs = bert_words(pooling), inputs_of(lengths, seed, "tokens")
    with torch.no_grad():
        vectors_BLD = words(inputs.collate(range(len(lengths))))
        assert vectors_BLD.dtype == torch.float32
        for row, tokens in enumerate(inputs.tokens):
            hidden_SD = words.transformer(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
            for place, (start, end) in enumerate(zip(tokens.starts, tokens.ends, strict=True)):
                expected_D = hidden_SD[start] if pooling == "first" else sum(hidden_SD[start:end]) / (end - start)
                assert torch.allclose(vectors_BLD[row, place], expected_D, rtol=0, atol=1e-5)


def test_frozen_words_are_rounded_as_their_cache_is():
    batch = inputs_of([3, 5], kind="tokens").collate([0, 1])
    with torch.no_grad():
        tuned_BLD, frozen_BLD = bert_words()(batch), bert_words(frozen=True)(batch)
    assert frozen_BLD.dtype == torch.float32
    assert torch.equal(frozen_BLD, tuned_BLD.half().float())
    assert not torch.equal(frozen_BLD, tuned_BLD)


def test_vectors_of_a_batch_stand_for_frozen_words():
    """Whether words are read from a cache or encoded, the emissions are the same to the bit."""
    words, inputs = bert_words(frozen=True), inputs_of([3, 5, 1], kind="tokens")
    network = make_network("lstm_crf", "fast", words)
    batch = inputs.collate(range(3))
    cached = {name: batch[name] for name in ("mask_BL", "tags_BL")} | {"vectors_BLD": words(batch).half()}
    with torch.no_grad():
        assert torch.equal(network.emissions(batch), network.emissions(cached))


def test_a_table_gives_its_rows():
    words = static_words()
    batch = inputs_of([3, 5], kind="static").collate([0, 1])
    for row, place in itertools.product(range(2), range(5)):
        expected_D = words.table.weight[batch["word_ids_BL"][row, place]]
        assert torch.equal(words(batch)[row, place], expected_D)


def test_bfloat16_is_the_encoders_alone():
    inputs = inputs_of([3, 6], kind="tokens")
    batch = inputs.collate([0, 1])
    with torch.no_grad():
        exact_BLT = make_network("lstm_crf", "fast", bert_words()).emissions(batch)
        network = make_network("lstm_crf", "fast", bert_words(precision="bfloat16"))
        rounded_BLT = network.emissions(batch)
        seen = []
        network.words.transformer.encoder.register_forward_hook(lambda *args: seen.append(args[2][0].dtype))
        network.context[0].forth.register_forward_hook(lambda *args: seen.append(args[2][0].dtype))
        with torch.autocast("cpu", torch.bfloat16):  # of whoever calls: what is above the words is not rounded either
            assert torch.equal(network.emissions(batch), rounded_BLT)
            loss = network(batch)
    assert rounded_BLT.dtype == loss.dtype == torch.float32
    assert torch.allclose(rounded_BLT, exact_BLT, rtol=0, atol=0.2)
    assert not torch.allclose(rounded_BLT, exact_BLT, rtol=0, atol=1e-5)
    assert seen[-1] == torch.float32


def test_an_encoder_that_gives_bfloat16_is_heeded_in_float32():
    class Rounding(nn.Module):
        config = SimpleNamespace(hidden_size=DIM)

        def forward(self, input_ids, attention_mask):
            hidden_BS1 = (input_ids * attention_mask)[..., None].bfloat16() / 7
            return SimpleNamespace(last_hidden_state=hidden_BS1.expand(-1, -1, DIM))

    inputs = inputs_of([4], kind="tokens")
    for pooling in ("first", "mean"):
        words = TransformerWords(Rounding(), pooling=pooling, precision="bfloat16", frozen=False)
        vectors_BLD = words(inputs.collate([0]))
        assert vectors_BLD.dtype == torch.float32
        [tokens] = inputs.tokens
        for place, (start, end) in enumerate(zip(tokens.starts, tokens.ends, strict=True)):
            rounded = (torch.tensor(tokens.ids[start:end]).bfloat16() / 7).double()
            expected = rounded[0] if pooling == "first" else rounded.mean()
            assert vectors_BLD[0, place].tolist() == pytest.approx([float(expected)] * DIM, rel=1e-5)


# Gradients


def without_gradient(network: TaggerNetwork, batch) -> set[str]:
    network.zero_grad(set_to_none=True)
    network(batch).backward()
    return {name for name, one in network.named_parameters() if one.requires_grad and one.grad is None}


@each_kind
@pytest.mark.parametrize("lengths", [[3, 1, 7], [1, 1], [1]])
def test_every_parameter_that_is_learnt_gets_a_gradient(model, crf, lengths):
    """Also where no tweet has two words: processes that train together wait for the gradient of each."""
    for kind, words in (
        ("vectors", None),
        ("static", static_words()),
        ("tokens", bert_words("first")),
        ("tokens", bert_words("mean")),
    ):
        network = make_network(model, crf, words)
        for mode in (True, False):
            batch = inputs_of(lengths, kind=kind).collate(range(len(lengths)))
            assert not without_gradient(network.train(mode), batch)


@pytest.mark.parametrize("crf", ["pytorch-crf", "fast"])
def test_transitions_of_single_words_are_not_moved(crf):
    network = make_network("lstm_crf", crf)
    assert not without_gradient(network, inputs_of([1, 1]).collate([0, 1]))
    assert not network.crf.transitions.grad.any()
    assert network.crf.start_transitions.grad.any()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_tuned_words_are_learnt_and_frozen_ones_are_not(pooling):
    batch = inputs_of([4, 2], kind="tokens").collate([0, 1])
    tuned = make_network("lstm_crf", "fast", bert_words(pooling))
    tuned(batch).backward()
    for name, parameter in tuned.words.named_parameters():
        is_pooler = name.startswith("transformer.pooler.")
        assert parameter.requires_grad is not is_pooler
        assert (parameter.grad is None) == is_pooler
    assert any(name.startswith("transformer.pooler.") for name, _ in tuned.words.named_parameters())
    frozen = make_network("lstm_crf", "fast", bert_words(pooling, frozen=True))
    frozen(batch).backward()
    assert not any(one.requires_grad or one.grad is not None for one in frozen.words.parameters())
    assert all(one.grad is not None for name, one in frozen.named_parameters() if not name.startswith("words."))


def test_a_table_is_learnt_unless_it_is_frozen():
    batch = inputs_of([4, 2], kind="static").collate([0, 1])
    for frozen in (False, True):
        network = make_network("cnn_crf", "fast", static_words(frozen=frozen))
        network(batch).backward()
        assert network.words.table.weight.requires_grad is not frozen
        assert (network.words.table.weight.grad is None) == frozen


# Dropout


@each_kind
def test_dropout_is_of_training_alone(model, crf):
    network = make_network(model, crf)
    batch = inputs_of([6, 4]).collate([0, 1])
    with torch.no_grad():
        in_use = network.emissions(batch)
        assert torch.equal(in_use, network.emissions(batch))
        network.train()
        assert not torch.equal(network.emissions(batch), network.emissions(batch))
        assert torch.equal(make_network(model, crf, dropout=0.0).train().emissions(batch), in_use)
        assert torch.equal(network.eval().emissions(batch), in_use)


@each_kind
def test_dropout_is_before_each_layer(model, crf):
    network, shares = make_network(model, crf), {}
    batch = inputs_of([9, 9]).collate([0, 1])
    for layer in (*network.context, network.emit):

        def note(_, given, layer=layer):
            shares.setdefault(layer, []).append(float((given[0] == 0).float().mean()))

        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network.emissions(batch)
        network.train().emissions(batch)
    assert len(shares) == {"linear": 1, "lstm_cnn_crf": 3}.get(model, 2)
    for before, dropped in shares.values():  # what ReLU leaves at 0 is there before
        assert dropped == pytest.approx(before + 0.4 * (1 - before), abs=0.12)


def test_dropout_of_the_encoder_is_of_tuning_alone():
    batch = inputs_of([6, 4], kind="tokens").collate([0, 1])
    with torch.no_grad():
        for frozen in (False, True):
            words = bert_words(frozen=frozen, hidden_dropout_prob=0.3)
            network = make_network("lstm_crf", "fast", words).train()
            assert torch.equal(words(batch), words(batch)) is frozen
            assert network.training
            assert words.transformer.training is not frozen


# Losses, tags and spans


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(0, 2**32))
def test_loss_of_the_linear_head_is_cross_entropy(lengths, seed):
    network, inputs = make_network("linear", "fast"), inputs_of(lengths, seed)
    expected = 0.0
    with torch.no_grad():
        for row, tags in enumerate(inputs.tags):
            emissions_LT = network.emissions(inputs.collate([row]))[0].double()
            for emission_T, tag in zip(emissions_LT, tags, strict=True):
                expected -= float(emission_T[tag] - emission_T.exp().sum().log())
        assert float(network(inputs.collate(range(len(lengths))))) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_linear_head_takes_the_best_tag_of_each_word():
    network, inputs = make_network("linear", "fast"), inputs_of([3, 9, 1])
    batch = inputs.collate(range(3))
    tags_BL, emissions_BLT = network.decode(batch), network.emissions(batch).detach()
    assert tags_BL.dtype == torch.int64
    for row, length in enumerate([3, 9, 1]):
        expected = [max(range(len(TAGS)), key=lambda tag: float(one_T[tag])) for one_T in emissions_BLT[row, :length]]
        assert tags_BL[row].tolist() == [*expected, *[0] * (9 - length)]


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(0, 2**32))
def test_confidence_of_the_linear_head_is_the_product_over_the_words(lengths, seed):
    network, inputs = make_network("linear", "fast"), inputs_of(lengths, seed)
    batch = inputs.collate(range(len(lengths)))
    tags_BL, confidences = network.decode_spans(batch, spans_of_tags)
    assert torch.equal(tags_BL, network.decode(batch))
    chances_BLT = network.emissions(batch).detach().double().softmax(2)
    for row, length in enumerate(lengths):
        spans = spans_of_tags([TAGS[tag] for tag in tags_BL[row, :length].tolist()])
        assert len(confidences[row]) == len(spans)
        for span, confidence in zip(spans, confidences[row], strict=True):
            expected = 1.0
            for place in range(span.start, span.end):
                expected *= float(chances_BLT[row, place, tags_BL[row, place]])
            assert confidence == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("crf", ["pytorch-crf", "fast"])
def test_confidence_of_a_crf_counts_the_paths_with_that_span(crf):
    """Against all paths of tweets of one to five words. A path has a span if it has just its tags, and no more."""
    tags = tag_names("x")
    network, inputs = make_network("lstm_crf", crf, tags=tags), inputs_of([1, 2, 3, 4, 5, 5], num_tags=len(tags))
    batch = inputs.collate(range(6))
    tags_BL, confidences = network.decode_spans(batch, spans_of_tags)
    start_T, end_T, transitions_TT = (
        getattr(network.crf, name).detach().double() for name in ("start_transitions", "end_transitions", "transitions")
    )
    num_spans = 0
    for row, length in enumerate(inputs.num_words):
        emissions_LT = network.emissions(batch)[row].detach().double()
        found = tags_BL[row, :length].tolist()
        spans: dict[Span, float] = dict.fromkeys(spans_of_tags([tags[tag] for tag in found]), 0.0)
        total = 0.0
        for path in itertools.product(range(len(tags)), repeat=length):
            score = start_T[path[0]] + end_T[path[-1]] + sum(emissions_LT[i, tag] for i, tag in enumerate(path))
            weight = float((score + sum(transitions_TT[pair] for pair in itertools.pairwise(path))).exp())
            total += weight
            for span in set(spans_of_tags([tags[tag] for tag in path])) & set(spans):
                if list(path[span.start : span.end]) == found[span.start : span.end]:
                    spans[span] += weight
        assert confidences[row] == pytest.approx([weight / total for weight in spans.values()], rel=1e-4)
        num_spans += len(spans)
    assert num_spans >= 3


def test_spans_are_found_as_they_are_asked_for():
    network, inputs = make_network("lstm_crf", "pytorch-crf"), inputs_of([6, 2])
    seen = []
    network.decode_spans(inputs.collate([0, 1]), lambda tags: seen.append(tags) or [])
    assert [len(tags) for tags in seen] == [6, 2]
    assert {tag for tags in seen for tag in tags} <= set(TAGS)
