"""A linear-chain conditional random field (CRF) over the tags of words: loss, best path, probabilities.

A path y of tags over a text of n words has the score

    start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t-1, y_t] + end[y_n]

and P(y) is exp(score) over the sum of exp(score) of all paths. ``Crf`` and ``TorchCrf`` (around pytorch-crf) have the
same parameters and methods.

All of P comes from one pass over the words and one back. The pass forward, with logarithms of sums, gives the
conditionals P(y_t = i | y_t+1 = j, words up to t). The pass back multiplies them up, from P(y_n) to P(y_t, y_t+1): as
automatic differentiation would, and without the differences of large logarithms that lose digits. The passes run in
numpy on a CPU, where calls on small arrays cost less than in torch and do not wait for threads, and in torch elsewhere.

Shapes: B texts, L words of the longest text, T tags; LTB arrays hold the texts side by side, as sums over tags then run
over contiguous memory.
Source: Lafferty, McCallum and Pereira 2001, "Conditional random fields"; Rabiner 1989, "A tutorial on hidden Markov
models", section III, for the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
import torchcrf
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from scalemine.training.tagging.labels import is_bio, spans_of_tags, type_of

# Scores are limited to this, as infinite ones (a forbidden transition) would lead to inf - inf.
LARGEST_SCORE: Final = 1e30


def make_crf(backend: Literal["pytorch-crf", "fast"], tags: Sequence[str]) -> Crf | TorchCrf:
    """Return a CRF over BIO tags: ``Crf`` for "fast", ``TorchCrf`` for "pytorch-crf".

    Raises:
        ValueError: The backend is unknown, or the tags cannot be a CRF's; see ``Crf``.
    """
    if backend not in ("pytorch-crf", "fast"):
        raise ValueError(f'the CRF is "pytorch-crf" or "fast", got "{backend}"')
    return Crf(tags) if backend == "fast" else TorchCrf(tags)


class _Chain:
    """What both backends share: the checks, and the probabilities of tags and spans.

    The probabilities are those of the CRF as trained, so illegal paths have theirs, also where ``decode`` avoids them.
    """

    tags: tuple[str, ...]
    start_transitions: torch.nn.Parameter
    end_transitions: torch.nn.Parameter
    transitions: torch.nn.Parameter

    @torch.no_grad()
    def marginals(self, emissions_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the probability of each tag at each word ``(B, L, T)``; 0 beyond the end of a text.

        Args:
            emissions_BLT: Score of each tag at each word.
            mask_BL: Which positions hold a word, bool.

        Raises:
            ValueError: Shapes do not fit, or a row of the mask is empty or has holes.
        """
        _, posterior_LTB = self._posterior(emissions_BLT, mask_BL)
        return posterior_LTB.permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def span_confidence(
        self,
        emissions_BLT: Tensor,
        mask_BL: Tensor,
        tags_BL: Tensor,
        spans: Sequence[Sequence[tuple[int, int] | tuple[int, int, str]]],
    ) -> list[list[float]]:
        """Return the probability of exactly each span of some paths, in [0, 1], one list per text.

        It is that of all paths that have the given path's tags in the span and in which ``labels.spans_of_tags`` finds
        that span: it does not go on after its end nor, if it opens with I-, go on with another one.

        Args:
            emissions_BLT: Score of each tag at each word.
            mask_BL: Which positions hold a word, bool.
            tags_BL: The paths, from ``decode``.
            spans: Per text, words from start to end (exclusive), with or without the type (``labels.Span``).

        Raises:
            ValueError: As for ``marginals``, or a path has no such span.
        """
        if len(spans) != len(mask_BL):
            raise ValueError(f"there are spans of {len(spans)} texts, but {len(mask_BL)} texts")
        conditionals, posterior_LTB = self._posterior(emissions_BLT, mask_BL)
        conditionals = [torch.as_tensor(conditional_TTB).numpy(force=True) for conditional_TTB in conditionals]
        posterior_BLT = posterior_LTB.permute(2, 0, 1).numpy(force=True)
        continues_TT = _continues(self.tags)
        confidences: list[list[float]] = []
        for row, length in enumerate(mask_BL.sum(1).tolist()):
            path = tags_BL[row, :length].tolist()
            names = [self.tags[tag] for tag in path]
            conditionals_of_row = [conditional_TTB[:, :, row] for conditional_TTB in conditionals[: length - 1]]
            confidences.append([])
            for start, end, *_ in spans[row]:
                is_inside = 0 <= start < end <= length
                if not is_inside or [span[:2] for span in spans_of_tags(names[start:end])] != [(0, end - start)]:
                    raise ValueError(f"words {start} to {end} are no span of {names}")
                confidences[-1].append(
                    _span_probability(start, end, path, conditionals_of_row, posterior_BLT[row], continues_TT)
                )
        return confidences

    def _posterior(self, emissions_BLT: Tensor, mask_BL: Tensor) -> tuple[list[Any], Tensor]:
        """Return the conditionals (see ``_forward``) and the probability of each tag at each word ``(L, T, B)``."""
        emissions_BLT, start_T, transitions_TT, end_T = self._scores(emissions_BLT, mask_BL)
        if not mask_BL.numel():
            return [], emissions_BLT.permute(1, 2, 0)
        conditionals, last_BT, _ = _forward(emissions_BLT, start_T, transitions_TT, end_T, mask_BL)
        return conditionals, _backward(conditionals, last_BT, mask_BL)[0]

    def _scores(self, emissions_BLT: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return emissions, start, transitions and end, finite and in float32 or 64; emissions are 0 beyond a text.

        Raises:
            ValueError: Shapes do not fit, or a row of the mask is empty or has holes.
        """
        if emissions_BLT.dim() != 3 or emissions_BLT.shape[2] != len(self.tags):
            raise ValueError(f"emissions must be (B, L, {len(self.tags)}), got {tuple(emissions_BLT.shape)}")
        if mask_BL.dtype != torch.bool or mask_BL.shape != emissions_BLT.shape[:2]:
            expected, got = tuple(emissions_BLT.shape[:2]), tuple(mask_BL.shape)
            raise ValueError(f"the mask must be bool and {expected}, got {mask_BL.dtype} and {got}")
        if not (mask_BL[:, :1].any(1).all() and (mask_BL[:, 1:] <= mask_BL[:, :-1]).all()):
            raise ValueError("the mask must mark the first words of each text, at least one and without holes")
        dtype = torch.promote_types(emissions_BLT.dtype, torch.float32)
        emissions_BLT = emissions_BLT.masked_fill(~mask_BL[..., None], 0)
        parameters = (self.start_transitions, self.transitions, self.end_transitions)
        emissions_BLT, start_T, transitions_TT, end_T = (
            scores.to(dtype).clamp(-LARGEST_SCORE, LARGEST_SCORE) for scores in (emissions_BLT, *parameters)
        )
        return emissions_BLT, start_T, transitions_TT, end_T


class Crf(_Chain, torch.nn.Module):
    """A linear-chain CRF, exact and fast; its parameters load into pytorch-crf's ``CRF`` and from it.

    Attributes:
        tags: The BIO tags; a tag's number is its place here.
        constrained: Whether ``decode`` gives legal paths only, in which I-x follows B-x or I-x. Only ``decode`` is
            constrained: the loss and the probabilities count all paths, so that gold tags may be illegal.

    Raises:
        ValueError: Tags are not BIO, one is there twice, or all are I-, so that no path is legal.
    """

    illegal_start_T: Tensor
    illegal_TT: Tensor

    def __init__(self, tags: Sequence[str], *, constrained: bool = True) -> None:
        super().__init__()
        self.tags = _checked_tags(tags)
        self.constrained = constrained
        num_tags = len(self.tags)
        # As pytorch-crf begins.
        self.start_transitions = torch.nn.Parameter(torch.empty(num_tags).uniform_(-0.1, 0.1))
        self.end_transitions = torch.nn.Parameter(torch.empty(num_tags).uniform_(-0.1, 0.1))
        self.transitions = torch.nn.Parameter(torch.empty(num_tags, num_tags).uniform_(-0.1, 0.1))
        illegal_start_T = torch.tensor([tag.startswith("I-") for tag in self.tags])
        self.register_buffer("illegal_start_T", illegal_start_T, persistent=False)
        illegal_TT = illegal_start_T & ~torch.from_numpy(_continues(self.tags))
        self.register_buffer("illegal_TT", illegal_TT, persistent=False)

    def negative_log_likelihood(self, emissions_BLT: Tensor, tags_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return -log P(tags) of each text ``(B,)``: float32 also under autocast, or float64 for float64 emissions.

        Args:
            emissions_BLT: Score of each tag at each word, any float type.
            tags_BL: The true tags, int64; any value where there is no word.
            mask_BL: Which positions hold a word, bool.

        Raises:
            ValueError: Shapes do not fit, a row of the mask is empty or has holes, or a word's tag is out of range.
        """
        with torch.autocast(emissions_BLT.device.type, enabled=False):
            scores = self._scores(emissions_BLT, mask_BL)
            tags_BL = _checked_paths(tags_BL, mask_BL, len(self.tags))
            if not mask_BL.numel():
                return scores[0].sum((1, 2))
            loss_B: Tensor = _NegativeLogLikelihood.apply(*scores, tags_BL, mask_BL)  # type: ignore[no-untyped-call]
            return loss_B

    @torch.no_grad()
    def decode(self, emissions_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the most probable (legal) path of each text ``(B, L)``, int64, 0 where there is no word.

        Args:
            emissions_BLT: Score of each tag at each word, any float type.
            mask_BL: Which positions hold a word, bool.

        Raises:
            ValueError: Shapes do not fit, a row of the mask is empty or has holes, or a score is not a number.
        """
        emissions_BLT, start_T, transitions_TT, end_T = self._scores(emissions_BLT, mask_BL)
        _refuse_nan(emissions_BLT, start_T, transitions_TT, end_T)
        if not mask_BL.numel():
            return torch.zeros_like(mask_BL, dtype=torch.int64)
        if self.constrained:
            start_T = start_T.masked_fill(self.illegal_start_T, -torch.inf)
            transitions_TT = transitions_TT.masked_fill(self.illegal_TT, -torch.inf)
        return _best_paths(emissions_BLT, start_T, transitions_TT, end_T, mask_BL)


class TorchCrf(_Chain, torchcrf.CRF):  # type: ignore[misc]
    """pytorch-crf's CRF with the methods of ``Crf``; ``decode`` is not constrained.

    Raises:
        ValueError: Tags are not BIO, one is there twice, or all are I-.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__(len(_checked_tags(tags)), batch_first=True)
        self.tags = tuple(tags)

    def negative_log_likelihood(self, emissions_BLT: Tensor, tags_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return -log P(tags) of each text ``(B,)``; see ``Crf.negative_log_likelihood``."""
        with torch.autocast(emissions_BLT.device.type, enabled=False):
            emissions_BLT, _, transitions_TT, _ = self._scores(emissions_BLT, mask_BL)
            tags_BL = _checked_paths(tags_BL, mask_BL, len(self.tags))
            if not mask_BL.numel():
                return emissions_BLT.sum((1, 2))
            log_likelihood_B: Tensor = self(emissions_BLT, tags_BL, mask_BL, reduction="none")
            # Texts of one word use no transition: the gradient is zeros then, as processes wait for one.
            return 0 * transitions_TT.sum() - log_likelihood_B

    @torch.no_grad()
    def decode(self, emissions_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the most probable path of each text ``(B, L)``, int64, 0 beyond its end; see ``Crf.decode``."""
        emissions_BLT, *transitions = self._scores(emissions_BLT, mask_BL)
        _refuse_nan(emissions_BLT, *transitions)
        paths_BL = torch.zeros_like(mask_BL, dtype=torch.int64)
        if mask_BL.numel():
            paths = torchcrf.CRF.decode(self, emissions_BLT, mask_BL)
            paths_BL[mask_BL] = torch.tensor([tag for path in paths for tag in path], device=mask_BL.device)
        return paths_BL


class _NegativeLogLikelihood(torch.autograd.Function):
    """-log P(tags) and its gradient: expected less observed counts of tags and transitions.

    Scores must be finite, and emissions and tags 0 where there is no word.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        emissions_BLT: Tensor,
        start_T: Tensor,
        transitions_TT: Tensor,
        end_T: Tensor,
        tags_BL: Tensor,
        mask_BL: Tensor,
    ) -> Tensor:
        conditionals, last_BT, log_sum_BL = _forward(emissions_BLT, start_T, transitions_TT, end_T, mask_BL)
        ctx.save_for_backward(last_BT, tags_BL, mask_BL)
        ctx.conditionals = conditionals
        score_BL = emissions_BLT.gather(2, tags_BL[..., None])[..., 0]
        score_BL[:, 0] += start_T[tags_BL[:, 0]]
        score_BL[:, 1:] += transitions_TT[tags_BL[:, :-1], tags_BL[:, 1:]]
        # Subtracted word by word, as both sums may be large where their difference is small. Added in the order of
        # words, so that a longer text in the batch changes no rounding.
        loss_B = _at_last_word((log_sum_BL - score_BL).cumsum(1), mask_BL)
        return loss_B - end_T[_at_last_word(tags_BL, mask_BL)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight_B: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        last_BT, tags_BL, mask_BL = ctx.saved_tensors
        last_BT = last_BT * weight_B[:, None]
        posterior_LTB, count_TTB = _backward(ctx.conditionals, last_BT, mask_BL)
        observed_BL = mask_BL * weight_B[:, None]
        emissions_BLT = posterior_LTB.permute(2, 0, 1).contiguous()
        emissions_BLT.scatter_add_(2, tags_BL[..., None], -observed_BL[..., None])
        # Subtracted text by text, for the digits.
        pairs = (tags_BL[:, :-1], tags_BL[:, 1:], torch.arange(len(tags_BL), device=tags_BL.device)[:, None])
        count_TTB.index_put_(pairs, -observed_BL[:, 1:], accumulate=True)
        end_T = last_BT.sum(0).index_add_(0, _at_last_word(tags_BL, mask_BL), -weight_B)
        return emissions_BLT, emissions_BLT[:, 0].sum(0), count_TTB.sum(2), end_T, None, None


def _forward(
    emissions_BLT: Tensor, start_T: Tensor, transitions_TT: Tensor, end_T: Tensor, mask_BL: Tensor
) -> tuple[list[Any], Tensor, Tensor]:
    """Pass over the words.

    Returns:
        The conditionals P(y_t = i | y_t+1 = j, words up to t), arrays ``(T, T, B)`` for t = 1 to L - 1; P(y_n)
        ``(B, T)``; and the logarithm of the sum over all paths ``(B, L)`` as one summand per word, of which those
        beyond the end of a text do not count.
    """
    xp, emissions_LTB, start_T1, transitions_TT1 = _arrays(
        emissions_BLT.permute(1, 2, 0), start_T[:, None], transitions_TT[:, :, None]
    )
    # Logarithms of the sums over the paths so far that end in a tag, less the largest of them.
    sum_TB = start_T1 + emissions_LTB[0]
    largest_B = xp.amax(sum_TB, 0)
    sum_TB = sum_TB - largest_B
    conditionals, sums, largest = [], [sum_TB], [largest_B]
    for emission_TB in emissions_LTB[1:]:
        pair_TTB = transitions_TT1 + sum_TB[:, None]
        largest_TB = xp.amax(pair_TTB, 0)
        pair_TTB -= largest_TB
        xp.exp(pair_TTB, out=pair_TTB)
        total_TB = pair_TTB.sum(0)
        pair_TTB /= total_TB
        conditionals.append(pair_TTB)
        sum_TB = xp.log(total_TB) + largest_TB + emission_TB
        largest_B = xp.amax(sum_TB, 0)
        sum_TB -= largest_B
        sums.append(sum_TB)
        largest.append(largest_B)
    last_BT = _at_last_word(torch.as_tensor(xp.stack(sums)).permute(2, 0, 1), mask_BL) + end_T
    # Not torch.logsumexp, which starts threads even for this little and then waits for them.
    largest_B1 = last_BT.amax(1, keepdim=True)
    last_BT = (last_BT - largest_B1).exp()
    total_B1 = last_BT.sum(1, keepdim=True)
    log_sum_BL = torch.as_tensor(xp.stack(largest, 1))
    log_sum_BL[:, 0] += (total_B1.log() + largest_B1)[:, 0]
    return conditionals, last_BT / total_B1, log_sum_BL


def _backward(conditionals: list[Any], last_BT: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Pass back over the words, from P(y_n) ``(B, T)``, or from a multiple of it for a multiple of the results.

    Returns:
        P(y_t) ``(L, T, B)``, 0 beyond the end of a text; and how often each transition, from the first tag to the
        second, is expected in each text ``(T, T, B)``.
    """
    is_last_LB = _is_last_word(mask_BL).T
    posterior_LTB = torch.where(is_last_LB[:, None], last_BT.T, 0)
    num_tags = last_BT.shape[1]
    count_TTB = last_BT.new_zeros((num_tags, num_tags, len(last_BT)))
    xp, posterior, count, joint = _arrays(posterior_LTB, count_TTB, torch.empty_like(count_TTB))
    for t in reversed(range(len(conditionals))):
        # The tag after comes first, so that the sum over it runs along contiguous texts, in one order for any number.
        xp.multiply(conditionals[t].swapaxes(0, 1), posterior[t + 1][:, None], out=joint)
        posterior[t] += joint.sum(0)
        count += joint
    return torch.as_tensor(posterior), torch.as_tensor(count).transpose(0, 1)


def _best_paths(
    emissions_BLT: Tensor, start_T: Tensor, transitions_TT: Tensor, end_T: Tensor, mask_BL: Tensor
) -> Tensor:
    """Return the paths of the highest score ``(B, L)``, 0 beyond the end of a text.

    Source: Viterbi 1967, "Error bounds for convolutional codes".
    """
    xp, emissions_LTB, start_T1, transitions_TT1, end_T1, is_last_LB = _arrays(
        emissions_BLT.permute(1, 2, 0),
        start_T[:, None],
        transitions_TT[:, :, None],
        end_T[:, None],
        _is_last_word(mask_BL).T,
    )
    best_TB = start_T1 + emissions_LTB[0]
    best = [best_TB]
    for emission_TB in emissions_LTB[1:]:
        best_TB = xp.amax(transitions_TT1 + best_TB[:, None], 0) + emission_TB
        best.append(best_TB)
    # Where a path came from is found again on the way back: for one tag a text, not for all as on the way forward.
    tag_B = xp.argmax(best_TB + end_T1, 0)
    path = [tag_B]
    for t in reversed(range(len(best) - 1)):
        onward_TB = xp.where(is_last_LB[t], end_T1, transitions_TT1[:, tag_B, 0])
        tag_B = xp.argmax(best[t] + onward_TB, 0)
        path.append(tag_B)
    return torch.as_tensor(xp.stack(path[::-1], 1)) * mask_BL


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """Return the module of the passes, numpy for tensors on a CPU and torch for others, and its arrays."""
    contiguous = [tensor.contiguous() for tensor in tensors]
    if contiguous[0].device.type != "cpu":
        return torch, *contiguous
    return np, *(tensor.numpy() for tensor in contiguous)


def _is_last_word(mask_BL: Tensor) -> Tensor:
    """Return where the last word of each text is ``(B, L)``."""
    return mask_BL & ~torch.nn.functional.pad(mask_BL[:, 1:], (0, 1))


def _at_last_word(values: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the values ``(B, ...)`` at the last word of each text, of values ``(B, L, ...)``."""
    return values[torch.arange(len(mask_BL), device=mask_BL.device), mask_BL.sum(1) - 1]


def _span_probability(
    start: int,
    end: int,
    path: list[int],
    conditionals: list[NDArray[np.floating]],
    posterior_LT: NDArray[np.floating],
    continues_TT: NDArray[np.bool_],
) -> float:
    """Return the probability of one span of one text; see ``_Chain.span_confidence``.

    Given the tag of a word, the tags before it do not depend on those after it, so the product of the conditionals,
    from the word after the span back to that before it, is the probability of them all.
    """
    last = end - 1
    if end == len(path):
        probability = posterior_LT[last, path[last]]
    else:
        ends_T = ~continues_TT[path[last]]
        probability = conditionals[last][path[last], ends_T] @ posterior_LT[end, ends_T]
    for t in range(start, last):
        probability *= conditionals[t][path[t], path[t + 1]]
    if start > 0:
        probability *= conditionals[start - 1][~continues_TT[:, path[start]], path[start]].sum()
    return min(float(probability), 1.0)


def _continues(tags: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether the second tag goes on with the span of the first ``(T, T)``: I-x after B-x or I-x."""
    return np.array([[after[0] == "I" and type_of(before) == type_of(after) for after in tags] for before in tags])


def _refuse_nan(*scores: Tensor) -> None:
    if any(part.isnan().any() for part in scores):
        raise ValueError("there is no best path: a score is not a number")


def _checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if bad := [tag for tag in tags if not is_bio(tag)]:
        raise ValueError(f"tags of a CRF are O, B-x and I-x, got {bad}")
    if len(set(tags)) < len(tags):
        raise ValueError(f"a tag is there twice: {list(tags)}")
    if all(tag.startswith("I-") for tag in tags):
        raise ValueError(f"no path over these tags is legal, as none may come first: {list(tags)}")
    return tuple(tags)


def _checked_paths(tags_BL: Tensor, mask_BL: Tensor, num_tags: int) -> Tensor:
    """Return the tags, 0 where there is no word."""
    if tags_BL.dtype != torch.int64 or tags_BL.shape != mask_BL.shape:
        expected, got = tuple(mask_BL.shape), tuple(tags_BL.shape)
        raise ValueError(f"the tags must be int64 and {expected}, got {tags_BL.dtype} and {got}")
    tags_BL = tags_BL.masked_fill(~mask_BL, 0)
    if ((tags_BL < 0) | (tags_BL >= num_tags)).any():
        raise ValueError(f"a word's tag is not one of 0 to {num_tags - 1}")
    return tags_BL
