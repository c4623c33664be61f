"""The losses against the formulas in plain arithmetic, against torch's, and at the ends of what a logit can be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from scalemine.config import LossConfig
from scalemine.training.multilabel.losses import LabelCounts, LabelLoss, pseudo_labels

COUNTS = LabelCounts(1000, np.array([5, 100, 500, 950]), np.array([895, 800, 300, 20]))
# The last label has neither a positive nor a known negative.
BARE_COUNTS = LabelCounts(1000, np.array([1, 100, 1000, 0]), np.array([999, 800, 0, 0]))
OPTIONS = [
    LossConfig(name="bce"),
    LossConfig(name="bce", unknown="ignore"),
    LossConfig(name="bce", pos_weight=20),
    LossConfig(name="bce", pos_weight=1000, unknown="ignore"),
    LossConfig(name="focal"),
    LossConfig(name="focal", unknown="ignore", focal_alpha=None, focal_gamma=0.5),
    LossConfig(name="asl"),
    LossConfig(name="asl", unknown="ignore", asl_detach=False),
    LossConfig(name="asl", asl_gamma_positive=0.5, asl_gamma_negative=0.5, asl_margin=0.2, asl_detach=False),
    LossConfig(name="asl", asl_gamma_positive=0, asl_gamma_negative=0.5, asl_margin=0, asl_detach=False),
    LossConfig(name="asl", asl_gamma_negative=0, asl_margin=0.3, asl_detach=False),
    LossConfig(name="asl", asl_margin=1e-10, asl_detach=False),
    LossConfig(name="dice"),
    LossConfig(name="dice", unknown="ignore", dice_alpha=1, dice_smooth=1e-4),
    LossConfig(name="dice", dice_alpha=0.5, dice_smooth=1e-45),
    LossConfig(name="db"),
    LossConfig(name="db", db_beta=0),
    LossConfig(
        name="db", unknown="ignore", db_focal_alpha=None, db_focal_gamma=0, db_kappa=0.3, db_lambda=3, db_mu=0.05
    ),
    LossConfig(name="em"),
    LossConfig(name="em", em_alpha=1, em_beta=0.9),
]
each_loss = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.name)
SEVERAL = settings(max_examples=25, deadline=None)


class Batch(NamedTuple):
    logits_BC: torch.Tensor
    targets_BC: torch.Tensor
    weight_B: torch.Tensor
    pseudo_BC: torch.Tensor

    def loss(self, options: LossConfig, counts: LabelCounts = COUNTS, rows: slice = slice(None)) -> torch.Tensor:
        pseudo_BC = self.pseudo_BC[rows] if options.name == "em" else None
        loss = LabelLoss(options, counts)
        return loss(self.logits_BC[rows], self.targets_BC[rows], self.weight_B[rows], pseudo_BC)


def random_batch(seed: int, num_rows: int, scale: float, targets: tuple[int, ...] = (-1, 0, 1)) -> Batch:
    """The first row has no positive; half of the soft labels are missing."""
    rng = np.random.default_rng(seed)
    targets_BC = rng.choice(targets, (num_rows, 4))
    targets_BC[0] = np.minimum(targets_BC[0], 0)
    pseudo_BC = rng.random((num_rows, 4))
    pseudo_BC[rng.random((num_rows, 4)) < 0.5] = np.nan
    return Batch(
        torch.tensor(rng.uniform(-scale, scale, (num_rows, 4)), dtype=torch.float64),
        torch.tensor(targets_BC, dtype=torch.int8),
        torch.tensor(rng.random(num_rows), dtype=torch.float32),
        torch.tensor(pseudo_BC, dtype=torch.float32),
    )


batches = st.builds(random_batch, st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1.0, 8.0]))


class Oracle:
    """The losses as the papers write them, entry by entry in plain floats."""

    def __init__(self, options: LossConfig, counts: LabelCounts) -> None:
        self.options = options
        self.positives = [int(count) for count in counts.positives_C]
        self.negatives = [int(count) for count in counts.negatives_C]
        if options.unknown == "negative":
            self.negatives = [counts.num_rows - count for count in self.positives]

    def loss(self, batch: Batch) -> float:
        rows = zip(*(values.tolist() for values in batch), strict=True)
        return sum(
            weight * self.entry(logit, target, soft, label, targets)
            for logits, targets, weight, softs in rows
            for label, (logit, target, soft) in enumerate(zip(logits, targets, softs, strict=True))
        )

    def entry(self, z: float, y: int, soft: float, label: int, row: list[int]) -> float:
        p = 1 / (1 + math.exp(-z))
        if y == -1:
            if self.options.name == "em":
                return self.unknown(p, soft)
            if self.options.unknown == "ignore":
                return 0.0
            y = 0
        return getattr(self, self.options.name)(z, p, y, label, row)

    def bce(self, z, p, y, label, row) -> float:
        weight = 1.0
        if self.options.pos_weight is not None:
            weight = min(self.negatives[label] / self.positives[label], self.options.pos_weight)
        return -(weight * y * math.log(p) + (1 - y) * math.log(1 - p))

    def focal(self, z, p, y, label, row, prefix="focal") -> float:
        alpha, gamma = getattr(self.options, f"{prefix}_alpha"), getattr(self.options, f"{prefix}_gamma")
        p_t = p if y else 1 - p
        alpha_t = 1.0 if alpha is None else alpha if y else 1 - alpha
        return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)

    def asl(self, z, p, y, label, row) -> float:
        if y:
            return -((1 - p) ** self.options.asl_gamma_positive) * math.log(p)
        shifted = max(p - self.options.asl_margin, 0)
        return -(shifted**self.options.asl_gamma_negative) * math.log(1 - shifted)

    def dice(self, z, p, y, label, row) -> float:
        q, s = (1 - p) ** self.options.dice_alpha * p, self.options.dice_smooth
        return 1 - (2 * q * y + s) / (q + y + s)

    def db(self, z, p, y, label, row) -> float:
        total = sum(1 / count for count, target in zip(self.positives, row, strict=True) if target == 1)
        weight = 1 + self.options.db_alpha
        if total:
            ratio = 1 / self.positives[label] / total
            weight = 1 / (1 + math.exp(-self.options.db_beta * (ratio - self.options.db_mu))) + self.options.db_alpha
        num_rows = self.positives[label] + self.negatives[label]
        z -= self.options.db_kappa * math.log(num_rows / self.positives[label] - 1)
        if not y:
            z *= self.options.db_lambda
            weight /= self.options.db_lambda
        return weight * self.focal(z, 1 / (1 + math.exp(-z)), y, label, row, "db_focal")

    def em(self, z, p, y, label, row) -> float:
        return -math.log(p) if y else -math.log(1 - p)

    def unknown(self, p: float, soft: float) -> float:
        if math.isnan(soft):
            return self.options.em_alpha * (p * math.log(p) + (1 - p) * math.log(1 - p))
        return -self.options.em_beta * (soft * math.log(p) + (1 - soft) * math.log(1 - p))


# Plain floats cannot tell these from 0 where 1 - p is rounded.
plain_losses = pytest.mark.parametrize(
    "options", [one for one in OPTIONS if one.asl_margin != 1e-10 and one.dice_smooth > 1e-40], ids=lambda one: one.name
)


@plain_losses
@given(batch=batches)
@SEVERAL
def test_formula(options, batch):
    expected = Oracle(options, COUNTS).loss(batch)
    double = batch.loss(options)
    assert double.dtype == torch.float64
    # Counts, and numbers made of them, are float32.
    assert double.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    single = batch._replace(logits_BC=batch.logits_BC.float()).loss(options)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@each_loss
@given(batch=batches, cut=st.integers(0, 6))
@SEVERAL
def test_sum_over_parts_of_a_batch(options, batch, cut):
    parts = batch.loss(options, rows=slice(cut)) + batch.loss(options, rows=slice(cut, None))
    assert parts.item() == pytest.approx(batch.loss(options).item(), rel=1e-9, abs=1e-12)


@each_loss
def test_weight_is_of_a_row(options):
    batch = random_batch(3, 5, 4.0)
    alone = [batch._replace(weight_B=torch.ones(5)).loss(options, rows=slice(row, row + 1)).item() for row in range(5)]
    expected = sum(weight * loss for weight, loss in zip(batch.weight_B.tolist(), alone, strict=True))
    assert batch.loss(options).item() == pytest.approx(expected)
    pseudo_BC = batch.pseudo_BC if options.name == "em" else None
    unweighted = LabelLoss(options, COUNTS)(batch.logits_BC, batch.targets_BC, None, pseudo_BC)
    assert unweighted.item() == pytest.approx(sum(alone))


@each_loss
def test_types_of_targets(options):
    batch = random_batch(4, 5, 4.0)
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        assert batch._replace(targets_BC=batch.targets_BC.to(dtype)).loss(options) == batch.loss(options)


@each_loss
@pytest.mark.parametrize("counts", [COUNTS, BARE_COUNTS], ids=["counts", "bare counts"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_to_the_ends(options, counts, dtype):
    largest = torch.finfo(torch.float16).max
    steps = [0.0, 1e-7, 1e-3, 1.0, 5.0, 10.0, 15.0, 16.0, 17.0, 30.0, 69.0, 80.0, 87.0, 88.0, 89.0, 100.0, 104.0, 1e3]
    z_R = torch.tensor([sign * step for step in [*steps, largest] for sign in (1, -1)])
    # Where p is asl's margin, or next to it.
    z_R = torch.cat(
        [z_R, torch.logit(torch.tensor([0.05, 0.2, 0.3])).repeat_interleave(9) + torch.arange(27) % 9 * 1e-8]
    )
    for soft in (math.nan, 0.0, 1.0, 0.3):
        for targets in ([-1] * 4, [0] * 4, [1] * 4, [1, 0, -1, 0], [0, 1, 0, -1], [0, 0, 1, 0], [-1, 0, 0, 1]):
            logits_BC = z_R[:, None].repeat(1, 4).to(dtype).requires_grad_()
            targets_BC = torch.tensor(targets, dtype=torch.int8).repeat(len(z_R), 1)
            batch = Batch(logits_BC, targets_BC, torch.ones(len(z_R)), torch.full(targets_BC.shape, soft))
            loss = batch.loss(options, counts)
            loss.backward()
            assert loss.dtype == torch.float32
            assert math.isfinite(loss.item())
            assert logits_BC.grad.dtype == dtype
            assert logits_BC.grad.isfinite().all()


@each_loss
def test_float32_under_autocast(options):
    batch = random_batch(5, 50, 8.0)
    batch = batch._replace(logits_BC=batch.logits_BC.bfloat16())
    expected = batch._replace(logits_BC=batch.logits_BC.float()).loss(options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batch.loss(options), expected)


# A detached focus has its own test below.
@pytest.mark.parametrize(
    "options", [one for one in OPTIONS if one.name != "asl" or not one.asl_detach], ids=lambda one: one.name
)
def test_gradient(options):
    # No logit is at asl's margin, where there is a corner.
    for seed in range(3):
        batch = random_batch(seed, 4, 5.0)
        assert torch.autograd.gradcheck(
            lambda logits_BC, batch=batch: batch._replace(logits_BC=logits_BC).loss(options),
            batch.logits_BC.requires_grad_(),
        )


def test_gradient_of_detached_asl_takes_the_focus_for_a_constant():
    batch = random_batch(1, 6, 5.0, (0, 1))
    batch.logits_BC.requires_grad_()
    batch.loss(LossConfig(name="asl")).backward()
    p_BC, y_BC = torch.sigmoid(batch.logits_BC.detach()), batch.targets_BC
    q_BC = (p_BC - 0.05).clamp(min=0)
    negative_BC = q_BC**4 * (q_BC > 0) * p_BC * (1 - p_BC) / (1 - q_BC)
    expected_BC = batch.weight_B[:, None] * torch.where(y_BC == 1, -((1 - p_BC) ** 2), negative_BC)
    torch.testing.assert_close(batch.logits_BC.grad, expected_BC)


@given(batch=batches)
@SEVERAL
def test_bce_is_torchs(batch):
    for targets_BC, options in [
        (batch.targets_BC.clamp(min=0), LossConfig(name="bce")),
        (batch.targets_BC.clamp(min=0), LossConfig(name="bce", pos_weight=50)),
    ]:
        loss = LabelLoss(options, COUNTS)
        weight_BC = batch.weight_B[:, None].expand_as(targets_BC)
        expected = binary_cross_entropy_with_logits(
            batch.logits_BC, targets_BC.double(), weight_BC, pos_weight=loss.pos_weight_C, reduction="sum"
        )
        assert batch._replace(targets_BC=targets_BC).loss(options).item() == pytest.approx(expected.item())
        # Unknown is negative unless told otherwise.
        assert batch.loss(options).item() == pytest.approx(expected.item())


PLAIN_DB = {"db_kappa": 0, "db_lambda": 1, "db_focal_alpha": None, "db_focal_gamma": 0}


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        (LossConfig(name="focal", focal_alpha=None, focal_gamma=0), 1),
        (LossConfig(name="focal", focal_alpha=0.5, focal_gamma=0), 0.5),
        (LossConfig(name="asl", asl_gamma_positive=0, asl_gamma_negative=0, asl_margin=0), 1),
        (LossConfig(name="em"), 1),
        # The weight of every entry is sigmoid(0) + alpha.
        (LossConfig(name="db", db_beta=0, db_alpha=0.25, **PLAIN_DB), 0.75),
    ],
)
@given(batch=st.builds(random_batch, st.integers(0, 2**32), st.just(4), st.just(9.0), st.just((0, 1))))
@SEVERAL
def test_limits_are_bce(options, factor, batch):
    # Each row has a positive: one without weighs 1 + alpha in db.
    batch.targets_BC[:, 0] = 1
    assert batch.loss(options).item() == pytest.approx(factor * batch.loss(LossConfig(name="bce")).item())


def test_focal_of_equal_gammas_is_asl():
    batch = random_batch(6, 20, 6.0)
    focal = LossConfig(name="focal", focal_alpha=None, focal_gamma=2)
    asl = LossConfig(name="asl", asl_gamma_positive=2, asl_gamma_negative=2, asl_margin=0)
    assert batch.loss(focal).item() == pytest.approx(batch.loss(asl).item())


@pytest.mark.parametrize("name", ["bce", "focal", "asl", "dice", "db"])
def test_ignored_unknowns_have_no_gradient(name):
    batch = random_batch(7, 30, 3.0)
    batch.logits_BC.requires_grad_()
    batch.loss(LossConfig(name=name, unknown="ignore", asl_margin=0)).backward()
    known_BC = batch.targets_BC != -1
    assert (batch.logits_BC.grad[~known_BC] == 0).all()
    assert (batch.logits_BC.grad[known_BC] != 0).all()


def test_em_draws_unknowns_to_one_half_or_to_their_pseudo_labels():
    logits_BC = torch.tensor([[-1.0, 0.0, 1.0, 3.0]], requires_grad=True)
    targets_BC = torch.full((1, 4), -1)
    loss = LabelLoss(LossConfig(name="em", em_alpha=0.5, em_beta=0.3), COUNTS)
    p_BC = torch.sigmoid(logits_BC.detach())
    # The entropy's derivative is -z p (1 - p): Zhou et al., section 3.2.
    expected_BC = 0.5 * logits_BC.detach() * p_BC * (1 - p_BC)
    loss(logits_BC, targets_BC).backward()
    torch.testing.assert_close(logits_BC.grad, expected_BC)
    logits_BC.grad = None
    loss(logits_BC, targets_BC, None, torch.tensor([[math.nan, 0.1, math.nan, 1.0]])).backward()
    pseudo_BC = 0.3 * (p_BC - torch.tensor([[0, 0.1, 0, 1.0]]))
    expected_BC[0, 1::2] = pseudo_BC[0, 1::2]
    torch.testing.assert_close(logits_BC.grad, expected_BC)


def test_pseudo_labels_of_known_entries_are_not_read():
    batch = random_batch(8, 10, 3.0, (0, 1))
    rubbish = batch._replace(pseudo_BC=torch.full((10, 4), 7.0))
    assert rubbish.loss(LossConfig(name="em")) == batch.loss(LossConfig(name="bce"))


@pytest.mark.parametrize(("unknown", "weights"), [("negative", [20, 9, 1]), ("ignore", [20, 3, 1])])
def test_true_probability_with_pos_weight(unknown, weights):
    """The logit of least loss, less log w, gives the share of positives."""
    # 10, 100 and 500 positives of 1,000 rows; 600 of the second label are unknown.
    targets_NC = torch.zeros(1000, 3, dtype=torch.int8)
    targets_NC[:10, 0] = targets_NC[:100, 1] = targets_NC[:500, 2] = 1
    targets_NC[-600:, 1] = -1
    loss = LabelLoss(LossConfig(name="bce", pos_weight=20, unknown=unknown), LabelCounts.of(targets_NC.numpy()))
    assert loss.pos_weight_C.tolist() == weights
    logits_C = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_C], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        mean = loss(logits_C.expand(1000, 3), targets_NC) / 1000
        mean.backward()
        return mean

    optimizer.step(closure)
    recovered = torch.sigmoid(logits_C.detach() - loss.pos_weight_C.log())
    assert recovered.tolist() == pytest.approx([0.01, 0.1 if unknown == "negative" else 0.25, 0.5], rel=1e-3)


def test_labels_without_a_positive_or_a_negative_count_as_having_one():
    bare = LabelCounts(100, np.array([0, 100, 100]), np.array([100, 0, 0]))
    one = LabelCounts(101, np.array([1, 100, 100]), np.array([100, 1, 1]))
    for options in (LossConfig(name="bce", pos_weight=1e6, unknown="ignore"), LossConfig(name="db", unknown="ignore")):
        for name, values_C in LabelLoss(options, bare).named_buffers():
            assert torch.equal(values_C, getattr(LabelLoss(options, one), name))


def test_nothing_of_the_loss_is_saved():
    assert LabelLoss(LossConfig(name="db"), COUNTS).state_dict() == {}


def test_counts():
    counts = LabelCounts.of(np.array([[1, 0], [1, -1], [-1, 0], [0, -1]], np.int8))
    assert (counts.num_rows, counts.positives_C.tolist(), counts.negatives_C.tolist()) == (4, [2, 0], [1, 2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "bec"}, "name"),
        ({"unknown": "drop"}, "unknown"),
        ({"name": "asl", "pos_weight": 3.0}, "loss.pos_weight: is of bce"),
        ({"pos_weight": 0.0}, "pos_weight"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"em_alpha": math.nan}, "em_alpha"),
        ({"db_beta": math.inf}, "db_beta"),
        ({"dice_smooth": 0.0}, "dice_smooth"),
        ({"db_lambda": 0.0}, "db_lambda"),
        ({"focal_alpha": 1.5}, "focal_alpha"),
        ({"db_focal_alpha": 2.0}, "db_focal_alpha"),
        ({"asl_margin": 1.0}, "asl_margin"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (LabelCounts(9, np.array([1, 2]), np.array([1])), "one per label"),
        (LabelCounts(9, np.array([[1]]), np.array([[1]])), "one per label"),
        (LabelCounts(9, np.array([-1]), np.array([1])), "0 or more"),
        (LabelCounts(9, np.array([5]), np.array([5])), "more positives and negatives than the 9 rows"),
    ],
)
def test_wrong_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(LossConfig(), counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([torch.zeros(3, 5), torch.zeros(3, 5)], r"logits must be \(B, 4\), got \(3, 5\)"),
        ([torch.zeros(4), torch.zeros(4)], "logits must be"),
        ([torch.zeros(3, 4), torch.zeros(1, 4)], r"targets must be \(3, 4\), got \(1, 4\)"),
        ([torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(3, 1)], r"weights must be \(3,\), got \(3, 1\)"),
        ([torch.zeros(3, 4), torch.zeros(3, 4), None, torch.ones(4, 3)], r"pseudo labels must be \(3, 4\)"),
        ([torch.zeros(3, 4), torch.zeros(3, 4), None, torch.ones(3, 4)], 'pseudo labels are of the loss "em"'),
    ],
)
def test_wrong_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(LossConfig(), COUNTS)(*arguments)


def slow_pseudo_labels(scores_NC, targets_NC, share, earlier_NC=None):
    pseudo_NC = np.full(scores_NC.shape, np.nan) if earlier_NC is None else earlier_NC.astype(float)
    for label in range(scores_NC.shape[1]):
        unknown = [row for row in range(len(scores_NC)) if targets_NC[row, label] == -1]
        free = sorted((scores_NC[row, label], row) for row in unknown if np.isnan(pseudo_NC[row, label]))
        for score, row in free[: round(share * 100) * len(unknown) // 100]:
            pseudo_NC[row, label] = score
    return pseudo_NC.astype(np.float32)


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 100))
@SEVERAL
def test_pseudo_labels(seed, num_rows, percent):
    rng = np.random.default_rng(seed)
    # Some scores are equal.
    scores_NC = (rng.integers(0, 9, (num_rows, 3)) / 8).astype(np.float32)
    targets_NC = rng.integers(-1, 2, (num_rows, 3)).astype(np.int8)
    first_NC = pseudo_labels(scores_NC, targets_NC, percent / 100)
    assert first_NC.dtype == np.float32
    np.testing.assert_array_equal(first_NC, slow_pseudo_labels(scores_NC, targets_NC, percent / 100))
    later_NC, kept_NC = 1 - scores_NC, first_NC.copy()
    second_NC = pseudo_labels(later_NC, targets_NC, percent / 100, first_NC)
    np.testing.assert_array_equal(first_NC, kept_NC)
    np.testing.assert_array_equal(second_NC, slow_pseudo_labels(later_NC, targets_NC, percent / 100, first_NC))


def test_of_equal_scores_the_lower_row_is_first_and_products_are_not_rounded_down_twice():
    labels_NC = pseudo_labels(np.full((100, 1), 0.25), np.full((100, 1), -1), 0.29)
    assert np.flatnonzero(~np.isnan(labels_NC)).tolist() == list(range(29))
    assert np.isnan(pseudo_labels(np.full((100, 1), 0.25), np.zeros((100, 1)), 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([np.zeros((2, 3)), np.zeros((2, 2)), 0.5], "same shape"),
        ([np.zeros(3), np.zeros(3), 0.5], "same shape"),
        ([np.zeros((2, 3)), np.zeros((2, 3)), 0.5, np.zeros((3, 3))], "same shape"),
        ([np.zeros((2, 3)), np.zeros((2, 3)), 1.1], "share of pseudo labels"),
        ([np.zeros((2, 3)), np.zeros((2, 3)), math.nan], "share of pseudo labels"),
        ([np.full((2, 3), np.nan), np.full((2, 3), -1), 0.5], "not in"),
        ([np.full((2, 3), 1.5), np.full((2, 3), -1), 0.5], "not in"),
    ],
)
def test_wrong_pseudo_labels(arguments, message):
    with pytest.raises(ValueError, match=message):
        pseudo_labels(*arguments)
