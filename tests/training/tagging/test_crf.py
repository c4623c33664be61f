"""The CRF against all its paths, against pytorch-crf, and against itself in other batches, types and passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import Tensor

from scalemine.training.tagging import crf as crf_module
from scalemine.training.tagging.crf import Crf, TorchCrf, make_crf
from scalemine.training.tagging.labels import spans_of_tags, tag_names, tags_of_spans

TAG_SETS = [["O"], ["O", "B-x"], tag_names("x"), ["I-y", "B-x", "I-x", "O"], tag_names("xy")]
SEVERAL = settings(max_examples=30, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On arrays this small, threads cost pytorch-crf up to a hundred times what they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Problem(NamedTuple):
    """A CRF's parameters, and texts of different lengths with paths of tags."""

    tags: list[str]
    parameters: dict[str, Tensor]
    emissions_BLT: Tensor
    tags_BL: Tensor
    mask_BL: Tensor

    def loaded(self, crf: Crf | TorchCrf | torchcrf.CRF) -> Crf | TorchCrf | torchcrf.CRF:
        crf.load_state_dict(self.parameters)
        return crf


def random_problem(tags: list[str], lengths: Sequence[int], seed: int, scale: float = 2.0) -> Problem:
    """Scores of normal distribution; beyond the end of a text there is rubbish."""
    generator = torch.Generator().manual_seed(seed)
    num_tags = len(tags)
    parameters = {
        "start_transitions": scale * torch.randn(num_tags, generator=generator),
        "end_transitions": scale * torch.randn(num_tags, generator=generator),
        "transitions": scale * torch.randn(num_tags, num_tags, generator=generator),
    }
    shape = (len(lengths), max(lengths))
    mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    emissions_BLT = scale * torch.randn(*shape, num_tags, generator=generator)
    emissions_BLT[~mask_BL] = torch.nan
    tags_BL = torch.randint(num_tags, shape, generator=generator).masked_fill(~mask_BL, -100)
    return Problem(tags, parameters, emissions_BLT, tags_BL, mask_BL)


def problems(
    most_words: int, most_texts: int = 4, tag_sets: Sequence[list[str]] = TAG_SETS
) -> st.SearchStrategy[Problem]:
    return st.builds(
        random_problem,
        st.sampled_from(tag_sets),
        st.lists(st.integers(1, most_words), min_size=1, max_size=most_texts),
        st.integers(0, 2**32),
        st.sampled_from([0.1, 1.0, 5.0]),
    )


class Paths(NamedTuple):
    """All paths of one text ``(P, N)`` and their scores in float64: the definition of the CRF, word by word."""

    paths_PN: np.ndarray
    scores_P: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        return np.exp(self.scores_P - logsumexp(self.scores_P))

    def score(self, path: Sequence[int]) -> float:
        return float(self.scores_P[(self.paths_PN == np.array(path)).all(1)].item())


def all_paths(problem: Problem) -> list[Paths]:
    start_T, end_T, transitions_TT = (scores.double().numpy() for scores in problem.parameters.values())
    of_texts = []
    for emissions_LT, mask_L in zip(problem.emissions_BLT.double().numpy(), problem.mask_BL, strict=True):
        length = int(mask_L.sum())
        paths_PN = np.array(list(itertools.product(range(len(problem.tags)), repeat=length)))
        scores_P = start_T[paths_PN[:, 0]] + end_T[paths_PN[:, -1]]
        for word in range(length):
            scores_P = scores_P + emissions_LT[word, paths_PN[:, word]]
            if word > 0:
                scores_P = scores_P + transitions_TT[paths_PN[:, word - 1], paths_PN[:, word]]
        of_texts.append(Paths(paths_PN, scores_P))
    return of_texts


def names(tags: Sequence[str], path: Sequence[int]) -> list[str]:
    return [tags[tag] for tag in path]


def is_legal(tags: Sequence[str]) -> bool:
    """Nothing is lost where only B- opens a span."""
    return tags_of_spans(spans_of_tags(tags, "iob2"), len(tags)) == list(tags)


def rows(values_BL: Tensor, mask_BL: Tensor) -> list[list[int]]:
    return [values_L[mask_L].tolist() for values_L, mask_L in zip(values_BL, mask_BL, strict=True)]


def gradients(loss_B: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the texts' losses, each with another weight."""
    weights_B = torch.linspace(0.5, 2, len(loss_B), dtype=loss_B.dtype)
    return torch.autograd.grad((loss_B * weights_B).sum(), inputs, materialize_grads=True)


BACKENDS = pytest.mark.parametrize("backend", [Crf, TorchCrf])


# Against all paths


@BACKENDS
@SEVERAL
@given(problem=problems(most_words=5))
def test_loss_is_that_of_all_paths(backend: type, problem: Problem) -> None:
    crf = problem.loaded(backend(problem.tags))
    loss_B = crf.negative_log_likelihood(problem.emissions_BLT, problem.tags_BL, problem.mask_BL)
    gold = rows(problem.tags_BL, problem.mask_BL)
    expected = [
        logsumexp(text.scores_P) - text.score(path) for text, path in zip(all_paths(problem), gold, strict=True)
    ]
    np.testing.assert_allclose(loss_B.detach().numpy(), expected, rtol=1e-5, atol=2e-5)


@BACKENDS
@SEVERAL
@given(problem=problems(most_words=5))
def test_marginals_are_those_of_all_paths(backend: type, problem: Problem) -> None:
    marginals_BLT = problem.loaded(backend(problem.tags)).marginals(problem.emissions_BLT, problem.mask_BL)
    expected_BLT = np.zeros(marginals_BLT.shape)
    for row, text in enumerate(all_paths(problem)):
        for word, tag in np.ndindex(text.paths_PN.shape[1], len(problem.tags)):
            expected_BLT[row, word, tag] = text.probabilities[text.paths_PN[:, word] == tag].sum()
    np.testing.assert_allclose(marginals_BLT.numpy(), expected_BLT, rtol=1e-4, atol=1e-6)


@BACKENDS
@SEVERAL
@given(problem=problems(most_words=5, most_texts=2))
def test_span_confidence_is_that_of_all_paths(backend: type, problem: Problem) -> None:
    # Random paths hold spans of all kinds: opened by I-, one beside the other, at the start and at the end.
    paths = rows(problem.tags_BL, problem.mask_BL)
    spans = [spans_of_tags(names(problem.tags, path)) for path in paths]
    crf = problem.loaded(backend(problem.tags))
    confidences = crf.span_confidence(problem.emissions_BLT, problem.mask_BL, problem.tags_BL, spans)
    without_type = [[span[:2] for span in of_text] for of_text in spans]
    assert confidences == crf.span_confidence(problem.emissions_BLT, problem.mask_BL, problem.tags_BL, without_type)
    for path, of_text, text, confidence in zip(paths, spans, all_paths(problem), confidences, strict=True):
        found = [spans_of_tags(names(problem.tags, other)) for other in text.paths_PN]
        expected = [
            text.probabilities[
                [
                    span in there and list(other[span.start : span.end]) == path[span.start : span.end]
                    for other, there in zip(text.paths_PN, found, strict=True)
                ]
            ].sum()
            for span in of_text
        ]
        np.testing.assert_allclose(confidence, expected, rtol=1e-4, atol=1e-6)
        assert all(0 <= value <= 1 for value in confidence)


@pytest.mark.parametrize(
    "make", [Crf, lambda tags: Crf(tags, constrained=False), TorchCrf], ids=["legal", "any", "torchcrf"]
)
@SEVERAL
@given(problem=problems(most_words=5))
def test_no_path_is_better_than_the_decoded_one(make, problem: Problem) -> None:
    crf = problem.loaded(make(problem.tags))
    paths_BL = crf.decode(problem.emissions_BLT, problem.mask_BL)
    assert paths_BL.dtype == torch.int64
    assert not paths_BL[~problem.mask_BL].any()
    constrained = getattr(crf, "constrained", False)
    for text, path in zip(all_paths(problem), rows(paths_BL, problem.mask_BL), strict=True):
        allowed_P = [not constrained or is_legal(names(problem.tags, other)) for other in text.paths_PN]
        assert text.score(path) == pytest.approx(text.scores_P[allowed_P].max(), rel=1e-5, abs=1e-5)
        assert not constrained or is_legal(names(problem.tags, path))


def test_confidence_of_sure_spans_is_not_rounded_above_one() -> None:
    problem = random_problem(tag_names("abcdef"), [40] * 8, seed=7, scale=0.5)
    sure_BLT = problem.emissions_BLT.scatter_add(2, problem.tags_BL[..., None], torch.full((8, 40, 1), 18.0))
    spans = [spans_of_tags(names(problem.tags, path)) for path in problem.tags_BL.tolist()]
    crf = problem.loaded(Crf(problem.tags))
    confidences = crf.span_confidence(sure_BLT, problem.mask_BL, problem.tags_BL, spans)
    assert max(itertools.chain(*confidences)) == 1
    assert min(itertools.chain(*confidences)) > 0.9999


# Against pytorch-crf


@BACKENDS
@SEVERAL
@given(problem=problems(most_words=24, most_texts=9))
def test_loss_and_gradients_are_those_of_pytorch_crf(backend: type, problem: Problem) -> None:
    # In float32 pytorch-crf itself is off by more than this now and then, so it computes in float64.
    ours, theirs = problem.loaded(backend(problem.tags)), problem.loaded(torchcrf.CRF(len(problem.tags), True).double())
    emissions_BLT = problem.emissions_BLT.requires_grad_()
    loss_B = ours.negative_log_likelihood(emissions_BLT, problem.tags_BL, problem.mask_BL)
    exact_BLT = emissions_BLT.detach().double().nan_to_num().requires_grad_()
    expected_B = -theirs(exact_BLT, problem.tags_BL.clamp(min=0), problem.mask_BL, reduction="none")
    found = [loss_B, *gradients(loss_B, emissions_BLT, *ours.parameters())]
    expected = [expected_B, *gradients(expected_B, exact_BLT, *theirs.parameters())]
    tolerance = 1e-4 if backend is Crf else 1e-3
    torch.testing.assert_close([part.double() for part in found], expected, rtol=tolerance, atol=tolerance)


@SEVERAL
@given(problem=problems(most_words=24, most_texts=9))
def test_decoded_score_is_that_of_pytorch_crf(problem: Problem) -> None:
    ours = problem.loaded(Crf(problem.tags, constrained=False))
    theirs = problem.loaded(TorchCrf(problem.tags))
    losses_B = [
        theirs.negative_log_likelihood(
            problem.emissions_BLT, crf.decode(problem.emissions_BLT, problem.mask_BL), problem.mask_BL
        )
        for crf in (ours, theirs)
    ]
    torch.testing.assert_close(*losses_B, rtol=1e-4, atol=1e-4)


def test_parameters_begin_as_those_of_pytorch_crf_and_load_into_all() -> None:
    tags = tag_names("xyz")
    crfs = []
    for make in (lambda: Crf(tags), lambda: TorchCrf(tags), lambda: torchcrf.CRF(len(tags))):
        torch.manual_seed(5)
        crfs.append(make())
    for crf in crfs[1:]:
        torch.testing.assert_close(crf.state_dict(), crfs[0].state_dict(), rtol=0, atol=0)
    for one, other in itertools.permutations(crfs, 2):
        with torch.no_grad():
            one.transitions += 1
        other.load_state_dict(one.state_dict())
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


# Gradients


@pytest.mark.parametrize("lengths", [[1], [4, 1, 3]])
def test_gradients_are_those_of_finite_differences(lengths: list[int]) -> None:
    problem = random_problem(tag_names("xy"), lengths, seed=1, scale=1.0)
    crf = problem.loaded(Crf(problem.tags).double())
    emissions_BLT = problem.emissions_BLT.double().nan_to_num().requires_grad_()

    def loss(emissions_BLT: Tensor, *_: Tensor) -> Tensor:
        return crf.negative_log_likelihood(emissions_BLT, problem.tags_BL, problem.mask_BL)

    assert loss(emissions_BLT).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (emissions_BLT, *crf.parameters()))
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * loss(emissions_BLT).sum(), emissions_BLT, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_backward_twice_gives_the_same() -> None:
    problem = random_problem(tag_names("x"), [5, 2], seed=2)
    crf = problem.loaded(Crf(problem.tags))
    loss = crf.negative_log_likelihood(problem.emissions_BLT, problem.tags_BL, problem.mask_BL).sum()
    first = torch.autograd.grad(loss, list(crf.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(crf.parameters())), first, rtol=0, atol=0)


@BACKENDS
def test_texts_of_one_word_give_each_parameter_a_gradient(backend: type) -> None:
    problem = random_problem(tag_names("x"), [1, 1], seed=8)
    crf = problem.loaded(backend(problem.tags))
    crf.negative_log_likelihood(problem.emissions_BLT, problem.tags_BL, problem.mask_BL).sum().backward()
    assert not crf.transitions.grad.any()
    assert crf.start_transitions.grad.any()
    assert crf.end_transitions.grad.any()


# Batches, types, devices


@BACKENDS
@SEVERAL
@given(problem=problems(most_words=12, most_texts=9, tag_sets=[["O"], tag_names("xy"), tag_names("abcdef")]))
def test_texts_get_in_a_batch_what_they_get_alone(backend: type, problem: Problem) -> None:
    crf = problem.loaded(backend(problem.tags))

    def results(emissions_BLT: Tensor, tags_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
        emissions_BLT = emissions_BLT.clone().requires_grad_()
        loss_B = crf.negative_log_likelihood(emissions_BLT, tags_BL, mask_BL)
        loss_B.sum().backward()
        marginals_BLT = crf.marginals(emissions_BLT, mask_BL)
        return loss_B.detach(), crf.decode(emissions_BLT, mask_BL), marginals_BLT, emissions_BLT.grad

    together = results(problem.emissions_BLT, problem.tags_BL, problem.mask_BL)
    for row, length in enumerate(problem.mask_BL.sum(1).tolist()):
        alone = results(
            *(part[row : row + 1, :length] for part in (problem.emissions_BLT, problem.tags_BL, problem.mask_BL))
        )
        of_row = [together[0][row : row + 1], *(part[row : row + 1, :length] for part in together[1:])]
        tolerance = 0 if backend is Crf else 1e-5
        torch.testing.assert_close(list(alone), of_row, rtol=tolerance, atol=tolerance)
        assert not together[3][row, length:].any()
        assert not together[2][row, length:].any()


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 0), (0, 7)])
def test_empty_batch(backend: type, shape: tuple[int, int]) -> None:
    crf = backend(tag_names("x"))
    emissions_BLT = torch.zeros(*shape, 3, requires_grad=True)
    tags_BL, mask_BL = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    loss_B = crf.negative_log_likelihood(emissions_BLT, tags_BL, mask_BL)
    loss_B.sum().backward()
    assert loss_B.shape == (0,)
    assert crf.decode(emissions_BLT, mask_BL).shape == shape
    assert crf.decode(emissions_BLT, mask_BL).dtype == torch.int64
    assert crf.marginals(emissions_BLT, mask_BL).shape == (*shape, 3)
    assert crf.span_confidence(emissions_BLT, mask_BL, tags_BL, []) == []


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_of_emissions_stays_outside(backend: type, dtype: torch.dtype, autocast: bool) -> None:
    problem = random_problem(tag_names("xyz"), [30, 7, 1], seed=3)
    crf = problem.loaded(backend(problem.tags))
    low_BLT = problem.emissions_BLT.to(dtype).requires_grad_()
    same_BLT = low_BLT.detach().float().requires_grad_()
    spans = [spans_of_tags(names(problem.tags, path)) for path in rows(problem.tags_BL, problem.mask_BL)]

    def results(emissions_BLT: Tensor) -> tuple[list[Tensor], list[list[float]]]:
        loss_B = crf.negative_log_likelihood(emissions_BLT, problem.tags_BL, problem.mask_BL)
        gradient_BLT, *of_parameters = gradients(loss_B, emissions_BLT, *crf.parameters())
        decoded_BL = crf.decode(emissions_BLT, problem.mask_BL)
        marginals_BLT = crf.marginals(emissions_BLT, problem.mask_BL)
        confidences = crf.span_confidence(emissions_BLT, problem.mask_BL, problem.tags_BL, spans)
        return [loss_B, marginals_BLT, decoded_BL, gradient_BLT.to(dtype), *of_parameters], confidences

    expected, expected_confidences = results(same_BLT)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got, confidences = results(low_BLT)
    assert got[0].dtype == got[1].dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert confidences == expected_confidences


def test_passes_in_torch_are_those_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(tag_names("xy"), [6, 1, 4], seed=4)
    crf = problem.loaded(Crf(problem.tags))
    paths = rows(problem.tags_BL, problem.mask_BL)
    spans = [spans_of_tags(names(problem.tags, path)) for path in paths]

    def results() -> list[Tensor]:
        emissions_BLT = problem.emissions_BLT.clone().requires_grad_()
        loss_B = crf.negative_log_likelihood(emissions_BLT, problem.tags_BL, problem.mask_BL)
        confidences = crf.span_confidence(emissions_BLT, problem.mask_BL, problem.tags_BL, spans)
        return [
            loss_B,
            *gradients(loss_B, emissions_BLT, *crf.parameters()),
            crf.marginals(emissions_BLT, problem.mask_BL),
            crf.decode(emissions_BLT, problem.mask_BL),
            torch.tensor(list(itertools.chain(*confidences))),
        ]

    in_numpy = results()
    monkeypatch.setattr(crf_module, "_arrays", lambda *tensors: (torch, *(part.contiguous() for part in tensors)))
    torch.testing.assert_close(results(), in_numpy, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_gpu_gives_what_the_cpu_gives() -> None:
    problem = random_problem(tag_names("xyz"), [30, 1, 18], seed=5)
    results = []
    for device in ("cpu", "cuda"):
        crf = problem.loaded(Crf(problem.tags)).to(device)
        emissions_BLT, tags_BL, mask_BL = (
            part.to(device) for part in (problem.emissions_BLT, problem.tags_BL, problem.mask_BL)
        )
        loss_B = crf.negative_log_likelihood(emissions_BLT, tags_BL, mask_BL)
        loss_B.sum().backward()
        decoded_BL = crf.decode(emissions_BLT, mask_BL)
        spans = [spans_of_tags(names(problem.tags, path)) for path in rows(decoded_BL, mask_BL)]
        confidences = crf.span_confidence(emissions_BLT, mask_BL, decoded_BL, spans)
        tensors = [loss_B, decoded_BL, crf.marginals(emissions_BLT, mask_BL), crf.transitions.grad]
        results.append([*(part.cpu() for part in tensors), torch.tensor(list(itertools.chain(*confidences)))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# Large scores


FORBIDDEN = st.sampled_from([0.0, -1e4, -torch.inf])


@SEVERAL
@given(problem=problems(most_words=4), seed=st.integers(0, 2**32), forbidden=FORBIDDEN)
def test_large_scores_stay_finite_and_exact(problem: Problem, seed: int, forbidden: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    signs_BLT = torch.randint(-1, 2, problem.emissions_BLT.shape, generator=generator)
    parameters = dict(problem.parameters)
    if forbidden:
        legal = Crf(problem.tags)
        parameters["start_transitions"] = parameters["start_transitions"].masked_fill(legal.illegal_start_T, forbidden)
        parameters["transitions"] = parameters["transitions"].masked_fill(legal.illegal_TT, forbidden)
    problem = problem._replace(emissions_BLT=problem.emissions_BLT + 1e4 * signs_BLT, parameters=parameters)
    crf = problem.loaded(Crf(problem.tags))
    emissions_BLT = problem.emissions_BLT.requires_grad_()
    loss_B = crf.negative_log_likelihood(emissions_BLT, problem.tags_BL, problem.mask_BL)
    found = [loss_B, *gradients(loss_B, emissions_BLT, *crf.parameters())]
    assert all(part.isfinite().all() for part in found)
    marginals_BLT = crf.marginals(emissions_BLT, problem.mask_BL)
    torch.testing.assert_close(marginals_BLT.sum(2), problem.mask_BL.float())
    texts = all_paths(problem._replace(emissions_BLT=emissions_BLT.detach()))
    for row, (text, path) in enumerate(zip(texts, rows(problem.tags_BL, problem.mask_BL), strict=True)):
        expected = logsumexp(text.scores_P) - text.score(path)
        if np.isfinite(expected):  # float32 holds 10,000 to 0.001
            assert loss_B[row].item() == pytest.approx(expected, rel=1e-6, abs=0.02)
        else:
            assert loss_B[row].item() > 1e29
        for word in range(len(path)):
            chances_T = [text.probabilities[text.paths_PN[:, word] == tag].sum() for tag in range(len(problem.tags))]
            np.testing.assert_allclose(marginals_BLT[row, word].numpy(), chances_T, atol=0.01)


def test_small_loss_of_a_long_sure_text_keeps_its_digits() -> None:
    # Both sums are near 6,000, where float32 is exact to 0.0005; the loss is near 0.01.
    problem = random_problem(tag_names("xyz"), [300], seed=6, scale=0.5)
    sure_BLT = problem.emissions_BLT.scatter_add(2, problem.tags_BL[..., None], torch.full((1, 300, 1), 20.0)) - 7
    losses = [
        problem.loaded(crf).negative_log_likelihood(sure_BLT.to(dtype), problem.tags_BL, problem.mask_BL).item()
        for crf, dtype in ((Crf(problem.tags), torch.float32), (Crf(problem.tags).double(), torch.float64))
    ]
    assert 0 < losses[1] < 0.01
    assert losses[0] == pytest.approx(losses[1], abs=2e-6 * 300**0.5)


@given(
    emissions_LT=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 1e4, -1e4, 3e38, -3e38, torch.inf, -torch.inf]), min_size=5, max_size=5),
        min_size=1,
        max_size=8,
    ),
    bonus=st.sampled_from([0.0, 1e4, torch.inf]),
)
@settings(max_examples=200, deadline=None)
def test_constrained_path_is_legal_whatever_the_scores(emissions_LT: list[list[float]], bonus: float) -> None:
    crf = Crf(tag_names("xy"))
    inside_T = torch.tensor([tag[0] == "I" for tag in crf.tags])
    with torch.no_grad():  # the model wants I- everywhere
        crf.start_transitions[inside_T] += bonus
        crf.transitions[:, inside_T] += bonus
    emissions_BLT = torch.tensor([emissions_LT])
    path_BL = crf.decode(emissions_BLT, torch.ones(emissions_BLT.shape[:2], dtype=torch.bool))
    assert is_legal(names(crf.tags, path_BL[0].tolist()))


# What is refused


@BACKENDS
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[True, False, True], [True, True, True]], "without holes"),
        ([[False, True, True], [True, True, True]], "without holes"),
        ([[True, True, True], [False, False, False]], "at least one"),
        ([[1, 1, 1], [1, 0, 0]], "must be bool"),
        ([[True, True], [True, True]], r"\(2, 3\)"),
    ],
)
def test_mask_that_marks_no_prefix_is_refused(backend: type, mask: list[list[bool]], message: str) -> None:
    crf, emissions_BLT, mask_BL = backend(tag_names("x")), torch.zeros(2, 3, 3), torch.tensor(mask)
    tags_BL = torch.zeros(2, 3, dtype=torch.int64)
    for call in (
        lambda: crf.negative_log_likelihood(emissions_BLT, tags_BL, mask_BL),
        lambda: crf.decode(emissions_BLT, mask_BL),
        lambda: crf.marginals(emissions_BLT, mask_BL),
        lambda: crf.span_confidence(emissions_BLT, mask_BL, tags_BL, [[], []]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@BACKENDS
def test_wrong_emissions_and_tags_are_refused(backend: type) -> None:
    crf, mask_BL = backend(tag_names("x")), torch.ones(1, 2, dtype=torch.bool)
    emissions_BLT = torch.zeros(1, 2, 3)
    for shape in ((1, 2, 4), (2, 3)):
        with pytest.raises(ValueError, match="emissions must be"):
            crf.decode(torch.zeros(shape), mask_BL)
    for tags in ([[0, 3]], [[-1, 0]], [[0, -100]]):
        with pytest.raises(ValueError, match="one of 0 to 2"):
            crf.negative_log_likelihood(emissions_BLT, torch.tensor(tags), mask_BL)
    for wrong_BL in (torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="tags must be int64"):
            crf.negative_log_likelihood(emissions_BLT, wrong_BL, mask_BL)
    with pytest.raises(ValueError, match="not a number"):
        crf.decode(torch.full((1, 2, 3), torch.nan), mask_BL)
    diverged = backend(tag_names("x"))
    torch.nn.init.constant_(diverged.end_transitions, torch.nan)
    with pytest.raises(ValueError, match="not a number"):
        diverged.decode(emissions_BLT, mask_BL)


@pytest.mark.parametrize("span", [(2, 3), (0, 3), (1, 4), (3, 5), (1, 1), (2, 1), (4, 6), (-5, -3)])
def test_span_that_the_path_does_not_hold_is_refused(span: tuple[int, int]) -> None:
    crf, mask_BL = Crf(["O", "B-x", "I-x"]), torch.tensor([[True] * 5 + [False]])
    tags_BL, emissions_BLT = torch.tensor([[1, 2, 0, 1, 1, 0]]), torch.zeros(1, 6, 3)
    held = [(0, 2), (3, 4), (4, 5)]
    assert len(crf.span_confidence(emissions_BLT, mask_BL, tags_BL, [held])[0]) == 3
    with pytest.raises(ValueError, match="no span of"):
        crf.span_confidence(emissions_BLT, mask_BL, tags_BL, [[span]])


def test_spans_of_more_texts_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts, but 1"):
        Crf(["O"]).span_confidence(
            torch.zeros(1, 1, 1), torch.tensor([[True]]), torch.zeros(1, 1, dtype=torch.int64), [[], []]
        )


@pytest.mark.parametrize(
    ("tags", "message"),
    [(["O", "B-x", "X-y"], "X-y"), (["O", "O"], "twice"), ([], "may come first"), (["I-x", "I-y"], "may come first")],
)
@BACKENDS
def test_tags_that_make_no_crf_are_refused(backend: type, tags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend(tags)


def test_backends_have_names() -> None:
    assert type(make_crf("fast", ["O"])) is Crf
    assert type(make_crf("pytorch-crf", ["O"])) is TorchCrf
    with pytest.raises(ValueError, match='got "slow"'):
        make_crf("slow", ["O"])
