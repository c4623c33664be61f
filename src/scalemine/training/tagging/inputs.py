"""What a tagger's network reads of some tweets.

Shapes: B tweets, L words of the longest one, S tokens of the longest one, D dimensions of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from scalemine.training.batches import Batch, pad
from scalemine.training.tagging.words import WordTokens


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a network reads of some tweets; one of tokens, word ids and vectors is there.

    Args:
        num_words: Words of each tweet that are read.
        tags: Index of the tag of each of these words; None where they are to be found.
        tokens: Tokens of each tweet, for a transformer.
        word_ids: Rows of the table of static vectors, per word.
        vectors_WD: Cached vectors of words.
        firsts: Where each tweet's vectors begin in them; None: tweet after tweet.
    """

    num_words: tuple[int, ...]
    tags: Sequence[Sequence[int]] | None = None
    tokens: Sequence[WordTokens] | None = None
    word_ids: Sequence[Sequence[int]] | None = None
    vectors_WD: Tensor | None = None
    firsts: tuple[int, ...] | None = None

    @cached_property
    def _places(self) -> tuple[int, ...]:
        """Where each tweet's vectors begin."""
        return self.firsts or (0, *accumulate(self.num_words))

    def select(self, rows: Sequence[int]) -> Inputs:
        """Return the inputs of some tweets; vectors are shared, not copied."""

        def pick(values: Sequence[Any] | None) -> Any:  # noqa: ANN401  a tuple of what there is, or None
            return None if values is None else tuple(values[row] for row in rows)

        return Inputs(
            num_words=pick(self.num_words),
            tags=pick(self.tags),
            tokens=pick(self.tokens),
            word_ids=pick(self.word_ids),
            vectors_WD=self.vectors_WD,
            firsts=pick(self._places),
        )

    def __len__(self) -> int:
        return len(self.num_words)

    @property
    def costs(self) -> list[int]:
        """How long each tweet is in the dearest step: tokens for a transformer, else words."""
        return [len(one.ids) for one in self.tokens] if self.tokens is not None else list(self.num_words)

    def collate(self, rows: Sequence[int], pad_id: int = 0) -> Batch:
        """Return the tensors of some tweets; each has a word at least."""
        lengths = [self.num_words[row] for row in rows]
        batch = {"mask_BL": torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]}
        if self.tags is not None:
            batch["tags_BL"] = pad([self.tags[row] for row in rows], 0)
        if self.tokens is not None:
            tokens = [self.tokens[row] for row in rows]
            batch["input_ids_BS"] = pad([one.ids for one in tokens], pad_id)
            batch["attention_BS"] = pad([[1] * len(one.ids) for one in tokens], 0)
            batch["starts_BL"] = pad([one.starts for one in tokens], 0)
            batch["ends_BL"] = pad([one.ends for one in tokens], 0)
        elif self.word_ids is not None:
            batch["word_ids_BL"] = pad([self.word_ids[row] for row in rows], 0)
        else:
            assert self.vectors_WD is not None
            vectors = [self.vectors_WD[self._places[row] :][: self.num_words[row]] for row in rows]
            batch["vectors_BLD"] = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
        return batch
