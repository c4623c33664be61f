"""Engines: what computes an encoder's hidden states from token ids; pooling, which follows, is the same for all.

An engine other than PyTorch is tried when it is loaded, against PyTorch in float32 on made-up sentences. One that fails
or disagrees is refused: no other takes its place, as shards of one stage are of one engine.

Shapes: B sentences of a batch, L tokens of each, D dimensions.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch

from scalemine.config import InputError
from scalemine.models import first_line, max_positions

# What each engine computes in, on a CPU. PyTorch computes in everything, on every device.
PRECISIONS = {"onednn": ("float32",), "openvino": ("float32", "bfloat16")}
# Those that `auto` tries beside PyTorch.
RIVALS = {"float32": ("onednn", "openvino"), "bfloat16": ("openvino",)}

# Sentences of the trial: lengths that no engine can have taken for the only one.
TRIAL_LENGTHS, TRIAL_ROWS = (3, 17, 64), 4
# Largest 1 - cosine of a token's hidden state to PyTorch's in float32. Measured: below 1e-6, and 1e-3 in bfloat16.
TRIAL_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


class Engine(Protocol):
    """What turns token ids into hidden states; ``fidelity`` says how near they are to PyTorch's in float32."""

    name: str
    precision: str
    fidelity: str
    device: torch.device

    def hidden_states(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states ``(B, L, D)``, float32 on the engine's device, of whole sentences."""


class TorchEngine:
    """PyTorch, in any precision and on any device."""

    name = "torch"

    def __init__(self, transformer: torch.nn.Module, *, precision: str, device: str) -> None:
        self.precision = precision
        self.device = torch.device(device)
        self.fidelity = "the reference" if precision == "float32" else f"{precision}, pooled in float32"
        self._transformer = transformer.to(self.device, getattr(torch, precision))

    def hidden_states(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """See ``Engine``."""
        return _last_hidden_states(self._transformer, input_ids_BL).float()


class OneDnnEngine:
    """PyTorch in float32 with linear layers on oneDNN: Intel's MKL, their usual place, is slow on other processors."""

    name, precision, fidelity = "onednn", "float32", "float32"
    device = torch.device("cpu")

    def __init__(self, transformer: torch.nn.Module) -> None:
        # A copy that shares all tensors, with other layers in the place of the linear ones.
        shared = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
        packed = {id(layer): _PackedLinear(layer) for layer in transformer.modules() if type(layer) is torch.nn.Linear}
        self._transformer = copy.deepcopy(transformer, shared | packed)

    def hidden_states(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """See ``Engine``."""
        return _last_hidden_states(self._transformer, input_ids_BL)


class _PackedLinear(torch.nn.Module):
    """A linear layer on oneDNN, by the operator that PyTorch's own compiler puts in its place."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self._weight = layer.weight.detach().to_mkldnn()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return product


class OpenVinoEngine:
    """OpenVINO; the model is converted here, in memory, and no hub or service is asked."""

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, transformer: torch.nn.Module, *, precision: str, threads: int) -> None:
        self.precision = self.fidelity = precision
        # Its import reports to its makers, unless the package that does so is not there.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        with warnings.catch_warnings():  # of the tracer; whether it is right is tried
            warnings.simplefilter("ignore")
            model = openvino.convert_model(
                _IdsAlone(transformer),
                example_input=torch.ones((2, 7), dtype=torch.long),
                input=[([-1, -1], openvino.Type.i64)],  # any number of sentences of any length
            )
        hint = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self._model = openvino.Core().compile_model(model, "CPU", settings)
        # What the processor lacks, OpenVINO replaces without a word.
        if self._model.get_property("INFERENCE_PRECISION_HINT") != hint:
            raise ArithmeticError(f"it does not compute in {precision} on this processor")

    def hidden_states(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """See ``Engine``."""
        return torch.from_numpy(self._model([input_ids_BL.numpy()])[0])


class _IdsAlone(torch.nn.Module):
    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self._transformer = transformer

    def forward(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        return _last_hidden_states(self._transformer, input_ids_BL)


def _last_hidden_states(transformer: torch.nn.Module, input_ids_BL: torch.Tensor) -> torch.Tensor:
    # A batch holds sentences of one length, so that nothing is masked.
    states_BLD: torch.Tensor = transformer(
        input_ids=input_ids_BL, attention_mask=torch.ones_like(input_ids_BL)
    ).last_hidden_state
    return states_BLD


def is_installed(engine: str) -> bool:
    """Return whether the package of an engine is there."""
    return engine != "openvino" or importlib.util.find_spec("openvino") is not None


def check_engine(engine: str, *, precision: str, device: str) -> None:
    """Look whether an engine can compute what is wanted.

    Raises:
        InputError: It cannot, or it is not installed.
    """
    if engine not in PRECISIONS:
        return
    if device != "cpu":
        raise InputError(f"encoder.engine: {engine} computes on the CPU, not on {device}; set encoder.device: cpu")
    if precision not in PRECISIONS[engine]:
        able = " or ".join(PRECISIONS[engine])
        raise InputError(f"encoder.engine: {engine} does not compute in {precision}; set encoder.precision: {able}")
    if not is_installed(engine):
        raise InputError(f"encoder.engine: {engine} is not installed here; pip install 'scalemine[{engine}]'")


@torch.inference_mode()
def load_engine(
    engine: str, transformer: torch.nn.Module, *, precision: str, device: str = "cpu", threads: int = 1
) -> Engine:
    """Return an engine for a transformer.

    Args:
        engine: Its name; ``auto``, where nothing was chosen, is ``torch``.
        transformer: The model, in float32 on the CPU; it is the engine's from now on.
        precision: What it computes in.
        device: Where.
        threads: CPU threads, for engines that have their own.

    Raises:
        InputError: The engine is not installed, knows no such precision or device, or does not work here.
    """
    check_engine(engine, precision=precision, device=device)
    makers: dict[str, Callable[[], Engine]] = {
        "onednn": lambda: OneDnnEngine(transformer),
        "openvino": lambda: OpenVinoEngine(transformer, precision=precision, threads=threads),
    }
    if engine not in makers:
        return TorchEngine(transformer, precision=precision, device=device)
    try:
        made = makers[engine]()
        difference = _difference(made, transformer)
        if not difference <= TRIAL_TOLERANCE[precision]:
            raise ArithmeticError(f"hidden states differ from torch's by {difference:.1e} (1 - cosine)")
    # A private operator, and a converter of what it has not seen: they fail in many ways.
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = first_line(error)
        raise InputError(f"encoder.engine: {engine} does not work here; set it to torch ({reason})") from error
    made.fidelity = f"{made.precision}, 1 - cosine to torch in float32 at most {difference:.0e} when tried"
    return made


def _difference(engine: Engine, transformer: Any) -> float:  # noqa: ANN401  of Hugging Face, with a config
    """Return the largest 1 - cosine of an engine's hidden states to PyTorch's in float32, over made-up sentences."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for length in TRIAL_LENGTHS:
        shape = (TRIAL_ROWS, min(length, max_positions(transformer)))
        ids_BL = torch.randint(transformer.config.vocab_size, shape, generator=generator)
        cosines_BL = torch.cosine_similarity(
            engine.hidden_states(ids_BL).double(), _last_hidden_states(transformer, ids_BL).double(), dim=-1
        )
        worst = max(worst, 1 - float(cosines_BL.min()))
        if cosines_BL.isnan().any():
            return float("nan")
    return worst
