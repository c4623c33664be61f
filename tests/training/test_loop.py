from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from scalemine.config import RunError
from scalemine.executor import Stopped, StopSignals
from scalemine.store import STATE, read_json
from scalemine.training import loop as module
from scalemine.training.loop import BEST, Plan, RateCheck, fit, predict_rows, rate

NUM_ROWS, DIM = 22, 3


class Network(nn.Module):
    """A linear regression with dropout; returns the summed squared error."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(DIM, 1)

    def forward(self, batch):
        return ((self.linear(self.dropout(batch["x"]))[:, 0] - batch["y"]) ** 2 * batch["weight"]).sum()


class Regression:
    """Rows of several items each, so that a mean of means would be another thing than the mean."""

    def __init__(self, *, dropout=0.0, scores=None, poison=None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(NUM_ROWS, DIM, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5])
        self.items = torch.arange(NUM_ROWS) % 4 + 1
        if poison is not None:
            self.y[poison] = math.nan
        torch.manual_seed(0)
        self.model = Network(dropout)
        self.scores = iter(scores or [])
        self.seen: list[list[int]] = []
        self.epochs: list[int] = []

    def parameter_groups(self):
        return [{"params": list(self.model.parameters()), "lr": 0.05, "weight_decay": 0.01}]

    def costs(self):
        return [int(x) for x in self.items]

    def num_items(self, rows):
        return int(self.items[list(rows)].sum())

    def ids(self, rows):
        return [f"row-{row}" for row in rows]

    def collate(self, rows):
        self.seen.append(list(rows))
        index = list(rows)
        return {"x": self.x[index], "y": self.y[index], "weight": self.items[index].float()}

    def begin_epoch(self, epoch, folder, accelerator):
        self.epochs.append(epoch)

    def evaluate(self, accelerator):
        return next(self.scores, 1.0 / (1.0 + float(((self.x @ self.model.linear.weight[0] - self.y) ** 2).mean())))


def plan(**changes) -> Plan:
    values = {
        "batch_size": 4, "micro_batch": None, "bucket_batches": 1, "epochs": 3, "patience": 10, "min_delta": 0.0,
        "schedule": "linear", "warmup": 0.0, "clip": 1.0, "checkpoint_steps": 2, "seed": 5,
    }  # fmt: skip
    return Plan(**(values | changes))


def run(task, folder, signals=None, on_step=lambda _: None, **changes):
    found = fit(task, plan(**changes), folder, accelerator=Accelerator(cpu=True), signals=signals, on_step=on_step)
    return found, {name: tensor.detach().clone() for name, tensor in task.model.state_dict().items()}


def same(one, other, tolerance=0.0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


def test_is_adamw_on_the_mean_over_items(tmp_path):
    """One epoch against the update written out with torch alone."""
    task = Regression()
    _, weights = run(task, tmp_path, epochs=1, clip=1e9)
    oracle = Regression()
    optimizer = torch.optim.AdamW(oracle.parameter_groups())
    for step, rows in enumerate(task.seen):
        optimizer.param_groups[0]["lr"] = 0.05 * (6 - step) / 6
        batch = oracle.collate(rows)
        error = (oracle.model.linear(batch["x"])[:, 0] - batch["y"]) ** 2
        loss = (error * batch["weight"]).sum() / batch["weight"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert same(weights, oracle.model.state_dict(), 1e-6)
    assert sorted(row for rows in task.seen for row in rows) == list(range(NUM_ROWS))


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_nothing(tmp_path, micro_batch):
    whole, weights = run(Regression(), tmp_path / "whole")
    parts, other = run(Regression(), tmp_path / "parts", micro_batch=micro_batch)
    assert same(weights, other, 1e-6)
    for one, two in zip(whole.history, parts.history, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_the_gradient_is_clipped(tmp_path):
    task = Regression()
    task.y *= 1e4
    before, after = [], []
    task.model.linear.weight.register_hook(lambda grad: before.append(float(grad.norm())))
    handle = torch.optim.Optimizer.register_step_pre_hook
    parameters = list(task.model.parameters())

    def watch(optimizer, hook):
        handle(optimizer, lambda *_: after.append(float(torch.stack([p.grad.norm() for p in parameters]).norm())))
        return handle(optimizer, hook)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "register_step_pre_hook", watch)
        run(task, tmp_path, epochs=1, clip=0.5)
    assert min(before) > 0.5
    assert after == pytest.approx([0.5] * len(after), rel=1e-4)
    assert len(after) == 6


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6, 7, 11, 17])
def test_stopped_and_continued_is_the_same(tmp_path, stop_after):
    """Wherever a signal comes, in mid-epoch too: the same weights, to the bit, with dropout."""
    unbroken, weights = run(Regression(dropout=0.5), tmp_path / "unbroken")
    signals, steps = StopSignals(), []

    def stop(rows):
        steps.append(rows)
        signals.requested = signals.requested or len(steps) == stop_after

    with pytest.raises(Stopped):
        run(Regression(dropout=0.5), tmp_path / "broken", signals=signals, on_step=stop)
    again, other = run(Regression(dropout=0.5), tmp_path / "broken")
    assert same(weights, other)
    assert [epoch["loss"] for epoch in again.history] == [epoch["loss"] for epoch in unbroken.history]
    assert (again.best, again.best_epoch) == (unbroken.best, unbroken.best_epoch)
    assert again.lr_check == unbroken.lr_check


def test_killed_between_checkpoints(tmp_path):
    """What was done after the last checkpoint is done again, the same."""
    _, weights = run(Regression(dropout=0.5), tmp_path / "unbroken", checkpoint_steps=4)
    steps = []

    class Killed(BaseException):
        pass

    def kill(rows):
        steps.append(rows)
        if len(steps) == 11:  # checkpoints lie at 4, 6 (end of the epoch), 8
            raise Killed

    with pytest.raises(Killed):
        run(Regression(dropout=0.5), tmp_path / "broken", on_step=kill, checkpoint_steps=4)
    assert read_json(tmp_path / "broken" / STATE)["progress"]["step"] == 8
    _, other = run(Regression(dropout=0.5), tmp_path / "broken", checkpoint_steps=4)
    assert same(weights, other)


def test_the_seed_decides(tmp_path):
    one, other, third = Regression(dropout=0.5), Regression(dropout=0.5), Regression(dropout=0.5)
    _, first = run(one, tmp_path / "one")
    _, second = run(other, tmp_path / "other")
    _, changed = run(third, tmp_path / "third", seed=6)
    assert same(first, second)
    assert one.seen == other.seen != third.seen
    assert not same(first, changed, 1e-3)


def test_stops_when_the_score_has_stalled_and_keeps_the_best(tmp_path):
    task = Regression(scores=[0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    weights = []
    evaluate = task.evaluate
    task.evaluate = lambda accelerator: (
        weights.append({name: tensor.clone() for name, tensor in task.model.state_dict().items()}),
        evaluate(accelerator),
    )[1]
    found, kept = run(task, tmp_path, epochs=40, patience=3)
    assert [epoch["score"] for epoch in found.history] == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert (found.best, found.best_epoch) == (0.5, 2)
    assert same(kept, weights[1])
    assert not same(kept, weights[-1], 1e-4)
    assert found.lr_check["equal"]


def test_a_gain_of_less_than_min_delta_is_none(tmp_path):
    found, _ = run(Regression(scores=[0.5, 0.505, 0.508, 0.6]), tmp_path, epochs=4, patience=9, min_delta=0.01)
    assert found.best_epoch == 4
    found, _ = run(Regression(scores=[0.5, 0.505, 0.508, 0.6]), tmp_path / "b", epochs=3, patience=2, min_delta=0.01)
    assert (found.best_epoch, len(found.history)) == (1, 3)


def test_a_score_of_zero_is_a_score(tmp_path):
    found, _ = run(Regression(scores=[0.0, 0.0, 0.0]), tmp_path, patience=2)
    assert (found.best, found.best_epoch, len(found.history)) == (0.0, 1, 3)


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_scored(tmp_path):
    task = Regression()
    task.evaluate = lambda _: pytest.fail("scored")
    task.parameter_groups = lambda: [{"params": list(task.model.parameters()), "lr": 1e38, "weight_decay": 10.0}]
    with pytest.raises(RunError, match=r"weights are no numbers after step 1 \(epoch 1\).*lower train.lr"):
        run(task, tmp_path, batch_size=NUM_ROWS)


def test_a_loss_that_is_no_number_names_the_rows(tmp_path):
    with pytest.raises(RunError, match="row-13") as caught:
        run(Regression(poison=13), tmp_path, checkpoint_steps=1, batch_size=2)
    assert "nan" in str(caught.value)
    # What came before is kept, and whole.
    if (tmp_path / STATE).exists():
        tensors = load_file(tmp_path / read_json(tmp_path / STATE)["tensors"])
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert "model.linear.weight" in tensors


def test_a_schedule_that_steps_otherwise_fails(tmp_path, monkeypatch):
    class Twice(module.LambdaLR):
        def step(self, *arguments):
            super().step(*arguments)
            if self.last_epoch:
                super().step(*arguments)

    monkeypatch.setattr(module, "LambdaLR", Twice)
    with pytest.raises(RunError, match=r"learning rate at step 1, group 0 .*: planned 0\.0472, applied 0\.0444"):
        run(Regression(), tmp_path)


def falling(step):
    return 1 - step / 10


def compare(rates, skipped=0, bases=(0.1, 0.5), steps=6):
    """Give the steps and what they applied to a check, and return what it says in the end."""
    found = RateCheck()
    for step, applied in rates:
        found.add(step, [base * falling(step) for base in bases], applied)
    return found.summary(steps, skipped)


def test_rates_are_compared_in_number_and_value_and_group():
    rates = [(step, [0.1 * falling(step), 0.5 * falling(step)]) for step in range(6)]
    assert compare(rates) == {
        "equal": True, "steps_planned": 6, "steps_applied": 6, "skipped_steps": 0, "groups": 2,
        "first": [0.1, 0.5], "last": [0.05, 0.25],
    }  # fmt: skip
    with pytest.raises(RunError, match="made 5 steps and left out 0 where 6"):
        compare(rates[:-1])
    with pytest.raises(RunError, match="at step 3, group 1 of parameters: planned 0.35, applied 0.5"):
        compare([*rates[:3], (3, [0.07, 0.5]), *rates[4:]])
    with pytest.raises(RunError, match="at step 0, group 0"):
        compare(rates, bases=(0.5, 0.1))  # the two rates taken for one another
    # Of several differences, the first one is told.
    with pytest.raises(RunError, match="at step 2, group 0 of parameters: planned 0.08, applied 1"):
        compare([*rates[:2], (2, [1.0, 2.0]), (3, [3.0, 3.0]), *rates[4:]])
    # A gradient scaler leaves steps out, and says so; the others are compared all the same.
    assert compare(rates[1:], skipped=1)["skipped_steps"] == 1
    with pytest.raises(RunError, match="at step 5"):
        compare([*rates[1:5], (5, [1.0, 1.0])], skipped=1)
    with pytest.raises(RunError, match="left out 4"):
        compare(rates[4:], skipped=4)


def test_rates_that_differed_before_a_stop_are_told_after_it(tmp_path, monkeypatch):
    """And the checkpoint is as small after many steps as after few."""
    signals, sizes = StopSignals(), []

    def stop(rows):
        sizes.append(len(rates_kept(tmp_path)))
        signals.requested = len(sizes) == 9

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(module, "rate", lambda step, **how: 0.5 if step == 3 else rate(step, **how))
        task = Regression()
        wrong = module.LambdaLR
        patch.setattr(module, "LambdaLR", lambda optimizer, _: wrong(optimizer, lambda step: 1 - step / 18))
        run(task, tmp_path, signals=signals, on_step=stop, checkpoint_steps=1)
    assert rates_kept(tmp_path)["num_steps"] == 9
    assert set(sizes) == {0, 4}
    with pytest.raises(RunError, match=r"learning rate at step 3, group 0 .*: planned 0\.025, applied 0\.0417"):
        run(Regression(), tmp_path, checkpoint_steps=1)


def rates_kept(folder):
    return read_json(folder / STATE)["progress"]["rates"] if (folder / STATE).exists() else {}


def test_each_epoch_is_begun_once(tmp_path):
    task = Regression(scores=[0.5, 0.1, 0.1, 0.1])
    run(task, tmp_path, epochs=9, patience=2)
    assert task.epochs == [0, 1, 2]


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7])
def test_the_epoch_that_is_gone_on_with_is_begun_again(tmp_path, stop_after):
    """Before its first batch, and with the batches that are left; six make an epoch."""
    unbroken = Regression()
    run(unbroken, tmp_path / "unbroken")
    signals, steps = StopSignals(), []

    def stop(rows):
        steps.append(rows)
        signals.requested = signals.requested or len(steps) == stop_after

    class Noting(Regression):
        def begin_epoch(self, epoch, folder, accelerator):
            super().begin_epoch(epoch, folder, accelerator)
            begun.append((epoch, folder, accelerator.num_processes, len(self.seen)))

    begun: list = []
    broken, again = Noting(), Noting()
    with pytest.raises(Stopped):
        run(broken, tmp_path / "broken", signals=signals, on_step=stop)
    begun.clear()
    run(again, tmp_path / "broken")
    made = len(broken.seen)
    first = (made - 1) // 6  # with its last batch made, it is still to be scored
    assert [epoch for epoch, *_ in begun] == list(range(first, 3))
    assert [seen for *_, seen in begun] == [0, *((epoch * 6) - made for epoch in range(first + 1, 3))]
    assert {(folder, processes) for _, folder, processes, _ in begun} == {(tmp_path / "broken", 1)}
    assert broken.seen + again.seen == unbroken.seen


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.0, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        ("cosine", 0.25, [0.5, 1, 0.75, 0.25]),
        ("constant", 0.0, [1, 1, 1, 1]),
        ("constant", 0.25, [0.5, 1, 1, 1]),
    ],
)
def test_the_rate_rises_then_falls(schedule, warmup, expected):
    assert [rate(step, 4, schedule, warmup) for step in range(4)] == pytest.approx(expected)
    assert rate(4, 4, schedule, warmup) == pytest.approx(float(schedule == "constant"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    _, weights = run(Regression(dropout=0.5), tmp_path / "unbroken")
    save, calls = module.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(RunError, match="cannot be written .*No space left on device.*the one before it is kept"):
        run(Regression(dropout=0.5), tmp_path / "broken")
    state = read_json(tmp_path / "broken" / STATE)
    assert load_file(tmp_path / "broken" / state["tensors"])
    assert not list((tmp_path / "broken").glob(".*.tmp"))
    monkeypatch.setattr(module, "save_file", save)
    _, other = run(Regression(dropout=0.5), tmp_path / "broken")
    assert same(weights, other)


def test_one_checkpoint_is_kept(tmp_path):
    run(Regression(), tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 1
    assert len(list(tmp_path.glob(BEST.format("*")))) == 1
    assert (tmp_path / STATE).exists()


def test_predictions_come_back_by_row():
    rows = predict_rows(
        Accelerator(cpu=True),
        [[2, 0], [1]],
        (3, 4),
        lambda rows: torch.tensor([[10 + row] * (row + 1) + [0] * (2 - row) for row in rows]),
    )
    assert rows.tolist() == [[10, 0, 0, 0], [11, 11, 0, 0], [12, 12, 12, 0]]


def test_a_score_that_never_rose_is_said(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="scalemine"):
        run(Regression(scores=[0.0, 0.0]), tmp_path, patience=1)
    assert any("never rose above 0" in message for message in caplog.messages)


def test_killed_between_the_best_weights_and_their_checkpoint(tmp_path, monkeypatch):
    """The epoch is made again, and the checkpoint before it still finds the weights that it speaks of."""
    scores = [0.3, 0.5, 0.4]
    unbroken, weights = run(Regression(dropout=0.5, scores=scores), tmp_path / "unbroken")
    save = module._Loop.save

    class Killed(BaseException):
        pass

    def killed(loop):
        if loop.progress.epoch == 2 and loop.progress.epoch_step == 0:
            raise Killed
        save(loop)

    monkeypatch.setattr(module._Loop, "save", killed)
    with pytest.raises(Killed):
        run(Regression(dropout=0.5, scores=scores), tmp_path / "broken")
    assert len(list((tmp_path / "broken").glob(BEST.format("*")))) == 2
    monkeypatch.setattr(module._Loop, "save", save)
    again, other = run(Regression(dropout=0.5, scores=scores[1:]), tmp_path / "broken")
    assert (again.best, again.best_epoch) == (unbroken.best, unbroken.best_epoch) == (0.5, 2)
    assert same(weights, other)
