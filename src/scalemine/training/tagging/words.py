"""Words to the tokens of a Hugging Face encoder, aligned exactly whatever its tokeniser.

Each word is tokenised alone and the tokens are put one after the other, so the place of a word's first token is known
without offsets; tokenisers that give none (BERTweet's) work like any other. How a word has to be written for this,
with or without a space before it, is found out when the tokeniser is loaded, by comparing with what it makes of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalemine.config import InputError
from scalemine.text import normaliser

PROBE = ("fire", "near", "the", "old", "bridge")


@dataclass(frozen=True)
class WordTokens:
    """The tokens of one text.

    Args:
        ids: Token ids, special ones included.
        starts: Place of the first token of each word that is read.
        ends: Place behind its last token.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def num_words(self) -> int:
        """Words that fit into the encoder's length."""
        return len(self.starts)


# Words whose tokens are remembered: some 50 MB.
MOST_CACHED = 100_000


class WordTokenizer:
    """Turns the words of a text into an encoder's tokens.

    Args:
        tokenizer: A Hugging Face tokeniser, fast or slow.
        max_length: Tokens of a text, special ones included; words that do not fit whole are left out.
        normaliser_name: How each word is rewritten first; see scalemine.text.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, normaliser_name: str = "none") -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.normaliser_name = normaliser_name
        self._normalise: Callable[[str], str] = normaliser(normaliser_name)
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._cache: dict[tuple[str, bool], tuple[int, ...]] = {}
        bare = self._ids(PROBE[0])
        whole = list(tokenizer(PROBE[0])["input_ids"])
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
        if at is None:
            raise InputError(f"train.encoder: this tokeniser reads {PROBE[0]!r} otherwise alone than in a text")
        self._prefix, self._suffix = tuple(whole[:at]), tuple(whole[at + len(bare) :])
        self._space = self._find_space()

    def save(self, folder: Path) -> None:
        """Write the tokeniser's files into a folder."""
        self._tokenizer.save_pretrained(folder)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _find_space(self) -> str:
        """Return what is to be put before every word but the first."""
        expected = self._ids(" ".join(PROBE))
        for space in ("", " "):
            if sum((self._ids((space if i else "") + word) for i, word in enumerate(PROBE)), []) == expected:
                return space
        raise InputError(
            f"train.encoder: the tokens of {' '.join(PROBE)!r} are not those of its words, so words cannot be aligned"
        )

    def _tokens_of_word(self, word: str, is_first: bool) -> tuple[int, ...]:
        key = (word, is_first)
        if key not in self._cache:
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()  # links and names never end; words that are common are soon there again
            text = self._normalise(word)
            ids = self._ids(text if is_first else self._space + text) if text else []
            # A word that the tokeniser makes nothing of still has its place.
            unknown = self._tokenizer.unk_token_id
            self._cache[key] = tuple(ids) or (self.pad_id if unknown is None else int(unknown),)
        return self._cache[key]

    def encode(self, words: Sequence[str]) -> WordTokens:
        """Return the tokens of a text's words; words beyond ``max_length`` are left out, the first is cut to fit."""
        ids = list(self._prefix)
        room = self.max_length - len(self._prefix) - len(self._suffix)
        starts: list[int] = []
        ends: list[int] = []
        for position, word in enumerate(words):
            tokens = self._tokens_of_word(word, position == 0)
            if position == 0:
                tokens = tokens[:room]
            if len(ids) - len(self._prefix) + len(tokens) > room:
                break
            starts.append(len(ids))
            ids += tokens
            ends.append(len(ids))
        return WordTokens((*ids, *self._suffix), tuple(starts), tuple(ends))
