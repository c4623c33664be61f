"""The training loop: one to many processes, one result.

A step is one *global* batch: its rows are shared out among the processes, each row's loss is summed, and the sum is
divided by the number of items (words, for a tagger) in the whole batch, so neither the number of processes nor that of
micro-batches changes what a step does, but for rounding and the draw of dropout. Everything random in a step is drawn
from a generator seeded by (seed, step, process), and the order of an epoch by (seed, epoch); so a checkpoint needs no
state of a generator, and a run that is continued in the middle of an epoch ends with the weights of one that was not
interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from scalemine.config import RunError, TrainConfig
from scalemine.executor import Stopped, StopRequest
from scalemine.store import STATE, read_json, remove, write_json, write_whole
from scalemine.training.batches import Batch, to_device, training_batches

logger = logging.getLogger(__name__)

BEST = "best-{}.safetensors"
MODEL, MOMENTS = "model.", "optimizer."

Schedule = Literal["linear", "cosine", "constant"]


class Task(Protocol):
    """What is trained: a network, its data, and how good it is."""

    model: nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups of parameters, each with ``params``, ``lr`` and ``weight_decay``."""
        ...

    def costs(self) -> Sequence[int] | NDArray[np.int32]:
        """Return the length of each training row, to put rows of like length together."""
        ...

    def num_items(self, rows: Sequence[int]) -> int:
        """Return over how many items the loss of some training rows is averaged."""
        ...

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Return the identifiers of some training rows, for messages."""
        ...

    def collate(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of some training rows, of which ``model`` returns the summed loss."""
        ...

    def begin_epoch(self, epoch: int, folder: Path, accelerator: Accelerator) -> None:
        """Get ready for an epoch, from 0; called again where a run goes on in the middle of it."""
        ...

    def evaluate(self, accelerator: Accelerator) -> float:
        """Return how good the model is on what chooses the epoch, from 0 to 1; the same in every process."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long a fit lasts, and its steps; see ``config.TrainConfig``."""

    batch_size: int
    micro_batch: int | None
    bucket_batches: int
    epochs: int
    patience: int
    min_delta: float
    schedule: Schedule
    warmup: float
    clip: float
    checkpoint_steps: int
    seed: int

    @classmethod
    def of(cls, options: TrainConfig, seed: int) -> Plan:
        """Return the plan of a configuration."""
        named = {one.name: getattr(options, one.name) for one in fields(cls) if one.name != "seed"}
        return cls(**named, seed=seed)


@dataclass
class RateCheck:
    """Whether an optimiser uses the learning rates planned: compared step by step, of which only this is kept.

    Args:
        num_steps: Steps that were compared.
        first: The rate of each group of parameters at the first of them.
        last: At the last of them.
        mismatch: Where the rates first differed, in words.
    """

    num_steps: int = 0
    first: list[float] | None = None
    last: list[float] | None = None
    mismatch: str | None = None

    def add(self, step: int, planned: Sequence[float], applied: Sequence[float]) -> None:
        """Compare the rates of one step, group by group."""
        for group, (wanted, used) in enumerate(zip(planned, applied, strict=True)):
            if self.mismatch is None and not math.isclose(wanted, used, rel_tol=1e-6, abs_tol=1e-12):
                self.mismatch = (
                    f"learning rate at step {step}, group {group} of parameters: planned {wanted:.3g}, applied "
                    f"{used:.3g}: these weights are not what the configuration says"
                )
        self.num_steps += 1
        self.last = list(applied)
        self.first = self.first or self.last

    def summary(self, steps: int, skipped: int) -> dict[str, Any]:
        """Return what was compared, ready for JSON.

        Args:
            steps: Steps that were planned.
            skipped: Those of them that a gradient scaler left out, after too large a number.

        Raises:
            RunError: The rates differed, in number or in value, or most steps were left out.
        """
        if self.num_steps + skipped != steps or 2 * skipped > steps:
            raise RunError(
                f"the optimiser made {self.num_steps} steps and left out {skipped} where {steps} were planned: these "
                f"weights are not what the configuration says"
            )
        if self.mismatch is not None:
            raise RunError(self.mismatch)
        return {
            "equal": True,
            "steps_planned": steps,
            "steps_applied": self.num_steps,
            "skipped_steps": skipped,
            "groups": len(self.first or ()),
            "first": self.first,
            "last": self.last,
        }


@dataclass
class Progress:
    """How far a fit has come; written with each checkpoint."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    item_sum: int = 0
    best: float = -1.0
    best_epoch: int = 0
    best_file: str = ""
    seconds: float = 0.0
    skipped_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    rates: RateCheck = field(default_factory=RateCheck)


@dataclass(frozen=True)
class Fit:
    """What came out of a fit; the model holds the weights of the best epoch.

    Args:
        best: The score of the best epoch.
        best_epoch: Which that was, from 1.
        history: Per epoch: loss (mean per item), score, seconds.
        lr_check: Steps and learning rates planned and applied.
        seconds: Of all sessions of this fit.
    """

    best: float
    best_epoch: int
    history: list[dict[str, float]]
    lr_check: dict[str, Any]
    seconds: float


OnStep = Callable[[int], None]
OnEpoch = Callable[[Progress], None]


def rate(step: int, num_steps: int, schedule: Schedule, warmup: float) -> float:
    """Return the share of the learning rate at a step from 0.

    It rises in even steps over the first ``warmup`` of all steps, and falls to 0 over the others: in even steps, along
    half a cosine (Loshchilov and Hutter 2017), or not at all.
    """
    rising = round(warmup * num_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    gone = min(1.0, (step - rising) / (num_steps - rising))
    if schedule == "constant":
        return 1.0
    return 1.0 - gone if schedule == "linear" else (1.0 + math.cos(math.pi * gone)) / 2


def fit(
    task: Task,
    plan: Plan,
    folder: Path,
    *,
    accelerator: Accelerator,
    signals: StopRequest | None = None,
    on_step: OnStep = lambda _rows: None,
    on_epoch: OnEpoch = lambda _progress: None,
) -> Fit:
    """Train until the score has not improved for ``patience`` epochs, or to the last epoch; go on from a checkpoint.

    Args:
        task: What is trained.
        plan: How.
        folder: Of the checkpoint and of the best weights, on a disk that all processes see.
        accelerator: The processes.
        signals: A request to stop writes a checkpoint and raises ``Stopped``.
        on_step: Called after each step with the number of its rows.
        on_epoch: Called after each epoch.

    Raises:
        RunError: The loss or the gradient is no number, or the learning rates applied are not those planned.
        Stopped: A signal asked for it.
    """
    costs = task.costs()
    steps_per_epoch = math.ceil(len(costs) / plan.batch_size)
    num_steps = plan.epochs * steps_per_epoch
    groups = task.parameter_groups()
    base_rates = _rates(groups)
    # A fused step hides from the scaler of float16 that it was left out.
    fused = accelerator.device.type in ("cpu", "cuda") and accelerator.scaler is None
    optimizer = torch.optim.AdamW(groups, fused=fused)
    # By the number of the optimiser's step alone, so not prepared: a prepared one steps once per process.
    planned = partial(rate, num_steps=num_steps, schedule=plan.schedule, warmup=plan.warmup)
    scheduler = LambdaLR(optimizer, planned)
    model, prepared = accelerator.prepare(task.model, optimizer)
    progress = Progress()
    # What the optimiser really uses, seen from inside of its steps.
    optimizer.register_step_pre_hook(
        lambda used, *_: progress.rates.add(
            progress.step, [base * planned(progress.step) for base in base_rates], _rates(used.param_groups)
        )
    )
    loop = _Loop(task, plan, folder, accelerator, model, prepared, optimizer, scheduler, progress)
    loop.restore()
    started = time.monotonic() - progress.seconds
    while progress.epoch < plan.epochs and not _has_stalled(progress, plan):
        task.begin_epoch(progress.epoch, folder, accelerator)
        batches = training_batches(costs, plan.batch_size, plan.bucket_batches, seed=plan.seed, epoch=progress.epoch)
        for rows in batches[progress.epoch_step :]:
            loop.step(rows.tolist())
            progress.seconds = time.monotonic() - started
            on_step(len(rows))
            stop = _any_process(accelerator, signals is not None and signals.requested)
            if stop or (progress.step % plan.checkpoint_steps == 0 and progress.epoch_step < len(batches)):
                loop.save()
            if stop:
                raise Stopped
        loop.end_epoch(started)
        on_epoch(progress)
    lr_check = progress.rates.summary(progress.step, progress.skipped_steps) | {"schedule_steps": num_steps}
    loop.load_best()
    if not progress.best:
        logger.warning("the score never rose above 0: nothing that counts was learnt; try a higher train.head_lr")
    return Fit(progress.best, progress.best_epoch, progress.history, lr_check, round(progress.seconds, 3))


def grouped(parameters: Iterable[tuple[str, nn.Parameter, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameters, each with its name and learning rate, in groups for the optimiser; frozen ones are left out.

    Biases and the scales of norms are not decayed. Source: Devlin et al. (2019), as in their published code.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter, lr in parameters:
        if parameter.requires_grad:
            decays = not any(part in name.lower() for part in ("bias", "norm"))
            groups.setdefault((lr, weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


def _rates(groups: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(group["lr"]) for group in groups]


def _has_stalled(progress: Progress, plan: Plan) -> bool:
    return progress.epoch - progress.best_epoch >= plan.patience and progress.epoch > 0


def _any_process(accelerator: Accelerator, wanted: bool) -> bool:
    """Return whether any process wants it, in all of them."""
    if accelerator.num_processes == 1:
        return wanted
    flag = torch.tensor([int(wanted)], device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum").item())


@dataclass
class _Loop:
    """The parts of a fit in progress."""

    task: Task
    plan: Plan
    folder: Path
    accelerator: Accelerator
    model: nn.Module
    prepared: Any
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    progress: Progress

    def step(self, rows: Sequence[int]) -> None:
        """Make one optimiser step on a global batch."""
        accelerator, progress = self.accelerator, self.progress
        rank, world = accelerator.process_index, accelerator.num_processes
        num_items = self.task.num_items(rows)
        torch.manual_seed(_step_seed(self.plan.seed, progress.step, rank))
        self.model.train()
        # Without a row of its own, a process goes through the motions with a row that counts for nothing.
        mine, weight = (rows[rank::world], 1.0) if rows[rank::world] else (rows[:1], 0.0)
        size = self.plan.micro_batch or len(mine)
        parts = [mine[start : start + size] for start in range(0, len(mine), size)]
        total = torch.zeros((), device=accelerator.device)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
                loss_sum = self.model(to_device(self.task.collate(part), accelerator.device)) * weight
                # The processes' gradients are averaged; the mean is over the items of all of them.
                accelerator.backward(loss_sum * (world / num_items))
            total += loss_sum.detach()
        loss = float(accelerator.reduce(total, reduction="sum").item()) / num_items
        if not math.isfinite(loss):
            self._refuse(f"the loss is {loss}", rows)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        if norm is not None and not torch.isfinite(norm) and accelerator.scaler is None:
            self._refuse(f"the gradient's norm is {float(norm)}", rows)
        self.prepared.step()
        self.prepared.zero_grad()
        progress.skipped_steps += int(self.prepared.step_was_skipped)
        self.scheduler.step()
        progress.step += 1
        progress.epoch_step += 1
        progress.loss_sum += loss * num_items
        progress.item_sum += num_items
        lr = progress.rates.last[0] if progress.rates.last else 0.0
        accelerator.log({"loss": loss, "lr": lr}, step=progress.step)

    def _refuse(self, what: str, rows: Sequence[int]) -> None:
        ids = ", ".join(self.task.ids(rows)[:32])
        raise RunError(
            f"{what} at step {self.progress.step} (epoch {self.progress.epoch + 1}), tweets {ids}: stopped; the "
            f"checkpoint before it is kept in {self.folder}; lower train.lr, or look at these tweets"
        )

    def end_epoch(self, started: float) -> None:
        """Score the model, keep it where it is the best so far, and write a checkpoint."""
        progress = self.progress
        self.model.eval()
        if not all(bool(one.isfinite().all()) for one in self.model.parameters() if one.requires_grad):
            raise RunError(
                f"weights are no numbers after step {progress.step} (epoch {progress.epoch + 1}): stopped; the "
                f"checkpoint before it is kept in {self.folder}; lower train.lr"
            )
        score = self.task.evaluate(self.accelerator)
        progress.epoch += 1
        progress.epoch_step = 0
        seconds = time.monotonic() - started
        before = sum(epoch["seconds"] for epoch in progress.history)
        progress.history.append(
            {
                "epoch": progress.epoch,
                "loss": progress.loss_sum / max(1, progress.item_sum),
                "score": score,
                "seconds": round(seconds - before, 3),
            }
        )
        progress.seconds, progress.loss_sum, progress.item_sum = seconds, 0.0, 0
        if score > progress.best + (self.plan.min_delta if progress.best_epoch else 0.0):
            progress.best, progress.best_epoch = score, progress.epoch
            # Named by its epoch, so that the checkpoint before keeps the weights that it speaks of.
            progress.best_file = BEST.format(f"{progress.epoch:05}")
            self._write(self.folder / progress.best_file, self._model_tensors)
        self.accelerator.log({"score": score, "epoch": progress.epoch}, step=progress.step)
        self.save()

    def _model_tensors(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        frozen = _frozen(model)
        return {
            MODEL + name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if name not in frozen
        }

    def _write(self, path: Path, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        if self.accelerator.is_main_process:
            try:
                with write_whole(path) as temporary:
                    save_file(dict(tensors()), temporary)
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{path}: the checkpoint cannot be written ({error}); the one before it is kept: make "
                    f"room and call again"
                ) from error

    def save(self) -> None:
        """Write a checkpoint: tensors to a file of their own first, then the JSON file that names it."""
        progress = self.progress
        name = f"checkpoint-{progress.step:09}-{progress.epoch:05}.safetensors"
        self._write(self.folder / name, lambda: self._model_tensors() | self._moments())
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            facts = {
                "tensors": name,
                "progress": asdict(progress),
                "processes": self.accelerator.num_processes,
                "scheduler_step": self.scheduler.last_epoch,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            write_json(self.folder / STATE, facts)
            for old in [*self.folder.glob("checkpoint-*.safetensors"), *self.folder.glob(BEST.format("*"))]:
                if old.name not in (name, progress.best_file):
                    remove(old)
        self.accelerator.wait_for_everyone()

    def _moments(self) -> dict[str, Tensor]:
        """Return what AdamW remembers of each parameter."""
        return {
            f"{MOMENTS}{index}.{key}": value.detach().cpu().contiguous()
            for index, values in self.optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }

    def restore(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        if not (self.folder / STATE).exists():
            return
        facts = read_json(self.folder / STATE)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _read_tensors(self.folder / facts["tensors"], MOMENTS):
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = tensor
        self._load_model(self.folder / facts["tensors"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for name, value in facts["progress"].items():
            setattr(self.progress, name, RateCheck(**value) if name == "rates" else value)
        if facts["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.scheduler.last_epoch = facts["scheduler_step"]
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * self.scheduler.lr_lambdas[0](facts["scheduler_step"])
        if facts["processes"] != self.accelerator.num_processes:
            logger.warning(
                "started with %d processes, going on with %d: dropout is drawn otherwise than in an unbroken run",
                facts["processes"], self.accelerator.num_processes,
            )  # fmt: skip
        logger.info("going on from step %d (epoch %d)", self.progress.step, self.progress.epoch + 1)

    def load_best(self) -> None:
        """Give the model the weights of the best epoch."""
        self.accelerator.wait_for_everyone()
        self._load_model(self.folder / self.progress.best_file)

    def _load_model(self, path: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        found = model.load_state_dict(dict(_read_tensors(path, MODEL)), strict=False)
        assert not found.unexpected_keys, found
        assert set(found.missing_keys) <= _frozen(model), found


def _frozen(model: nn.Module) -> set[str]:
    """Return the names of the parameters that stay as they were loaded, and need not be kept."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _read_tensors(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            if name.startswith(prefix):
                yield name.removeprefix(prefix), file.get_tensor(name)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def predict_rows(
    accelerator: Accelerator,
    batches: Sequence[Sequence[int]],
    shape: tuple[int, int],
    predict: Callable[[Sequence[int]], Tensor],
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Return a prediction for every row, the same in every process: batches are shared out, and the results added up.

    Args:
        accelerator: The processes.
        batches: Rows, each in one batch.
        shape: Rows, and the widest prediction.
        predict: Rows to their predictions ``(B, W)``, W at most the widest.
        dtype: Of the predictions.
    """
    result_NW = torch.zeros(shape, dtype=dtype)
    for rows in batches[accelerator.process_index :: accelerator.num_processes]:
        predicted_BW = predict(rows).cpu()
        result_NW[list(rows), : predicted_BW.shape[1]] = predicted_BW
    if accelerator.num_processes > 1:
        result_NW = accelerator.reduce(result_NW.to(accelerator.device), reduction="sum").cpu()
    return result_NW
