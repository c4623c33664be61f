from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from scalemine import engines
from scalemine.config import InputError
from scalemine.engines import OneDnnEngine, TorchEngine, check_engine, is_installed, load_engine

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCAB, POSITIONS = 90, 80
# DistilBERT has other names for the same.
SIZE_OF_DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
ARCHITECTURES = {
    "bert": (BertModel, BertConfig, SIZE),
    "mpnet": (MPNetModel, MPNetConfig, SIZE),
    "roberta": (RobertaModel, RobertaConfig, SIZE),
    "albert": (AlbertModel, AlbertConfig, SIZE | {"embedding_size": 16}),
    "distilbert": (DistilBertModel, DistilBertConfig, SIZE_OF_DISTILBERT),
}
BESIDE_TORCH = [
    "onednn",
    pytest.param("openvino", marks=pytest.mark.skipif(not is_installed("openvino"), reason="openvino is an extra")),
]


def transformer(name: str = "bert"):
    torch.manual_seed(7)
    model, config, size = ARCHITECTURES[name]
    return model(config(vocab_size=VOCAB, max_position_embeddings=POSITIONS, **size)).eval()


def sentences(length: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


def reference(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@pytest.fixture
def warned(caplog):
    """What was warned of, in lines."""
    caplog.set_level(logging.WARNING, logger="scalemine")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("scalemine")]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("engine", ["torch", *BESIDE_TORCH])
def test_hidden_states_are_those_of_the_model(engine, name, warned):
    expected = {length: reference(transformer(name), sentences(length)) for length in (1, 2, 7, 30, 70)}
    found = load_engine(engine, transformer(name), precision="float32")
    assert (found.name, found.precision, str(found.device)) == (engine, "float32", "cpu")
    assert warned() == []
    with torch.inference_mode():
        for length, states in expected.items():
            computed = found.hidden_states(sentences(length))
            assert computed.dtype == torch.float32
            torch.testing.assert_close(computed, states, rtol=1e-4, atol=1e-5)


def test_fidelity_is_said():
    assert load_engine("torch", transformer(), precision="float32").fidelity == "the reference"
    assert load_engine("torch", transformer(), precision="bfloat16").fidelity.startswith("bfloat16")
    assert (
        "1 - cosine to torch in float32 at most" in load_engine("onednn", transformer(), precision="float32").fidelity
    )


def test_auto_is_torch_where_nothing_was_chosen():
    assert load_engine("auto", transformer(), precision="float32").name == "torch"


def test_onednn_leaves_the_model_as_it_was():
    model = transformer()
    expected = reference(model, sentences(9))
    OneDnnEngine(model)
    assert torch.equal(reference(model, sentences(9)), expected)


def test_onednn_copies_no_weights_but_those_of_linear_layers():
    model = transformer()
    engine = OneDnnEngine(model)
    shared = {parameter.data_ptr() for parameter in engine._transformer.parameters()}
    linear = {name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear}
    for name, parameter in model.named_parameters():
        assert (parameter.data_ptr() in shared) == (name.rpartition(".")[0] not in linear)


def wrong_product(inputs, weight, bias, *_):
    return torch.nn.functional.linear(inputs, weight.to_dense(), bias).flip(-1)


def no_number(inputs, weight, bias, *_):
    return torch.full((*inputs.shape[:-1], weight.shape[0]), float("nan"))


def no_such_operator(*_):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'\nand more")


@pytest.mark.parametrize(
    ("operator", "said"), [(wrong_product, "differ from torch's by"), (no_number, "nan"), (no_such_operator, "mkldnn")]
)
def test_onednn_that_does_not_work_is_refused(operator, said, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    with pytest.raises(InputError, match="onednn does not work here; set it to torch") as refused:
        load_engine("onednn", transformer(), precision="float32")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_openvino_that_does_not_work_is_refused(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("cannot convert aten::new_thing")

    monkeypatch.setattr(engines, "OpenVinoEngine", broken)
    monkeypatch.setattr(engines, "is_installed", lambda _: True)
    with pytest.raises(InputError, match="aten::new_thing"):
        load_engine("openvino", transformer(), precision="bfloat16")


def test_what_an_engine_takes_for_the_only_length_is_found_out(monkeypatch):
    """As a tracer does with what it computes from a shape."""

    class OneLength(TorchEngine):
        def hidden_states(self, input_ids_BL):
            states = super().hidden_states(input_ids_BL)
            return states if input_ids_BL.shape[1] == engines.TRIAL_LENGTHS[0] else states.roll(1, dims=1)

    monkeypatch.setattr(engines, "OneDnnEngine", lambda model: OneLength(model, precision="float32", device="cpu"))
    with pytest.raises(InputError, match="differ"):
        load_engine("onednn", transformer(), precision="float32")


@pytest.mark.parametrize(
    ("engine", "precision", "device", "said"),
    [
        ("onednn", "bfloat16", "cpu", "encoder.precision: float32"),
        ("openvino", "float16", "cpu", "encoder.precision: float32 or bfloat16"),
        ("onednn", "float32", "cuda", "encoder.device: cpu"),
        ("openvino", "float32", "cuda:1", "encoder.device: cpu"),
    ],
)
def test_what_an_engine_cannot_is_refused(engine, precision, device, said):
    with pytest.raises(InputError, match=f"^encoder.engine: .*{said}"):
        check_engine(engine, precision=precision, device=device)


def test_torch_computes_everything():
    for engine in ("auto", "torch"):
        for precision in ("float32", "bfloat16", "float16"):
            check_engine(engine, precision=precision, device="cuda")


def test_an_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _: None)
    assert not is_installed("openvino")
    assert is_installed("torch")
    assert is_installed("onednn")
    with pytest.raises(InputError, match=r"pip install 'scalemine\[openvino\]'"):
        load_engine("openvino", transformer(), precision="float32")


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is an extra")
def test_openvino_reports_to_no_one(tmp_path):
    code = (
        "import sys, torch\n"
        "from transformers import BertConfig, BertModel\n"
        "from scalemine.engines import load_engine\n"
        f"model = BertModel(BertConfig(vocab_size={VOCAB}, **{SIZE})).eval()\n"
        "assert load_engine('openvino', model, precision='float32').name == 'openvino'\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()
