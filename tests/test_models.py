from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import zipfile
from collections import Counter

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine import models as module
from scalemine.config import EncoderConfig, InputError
from scalemine.models import (
    device_name,
    encoder_settings,
    find_model,
    first_line,
    length_batches,
    load_tokenizer,
    max_positions,
    model_fingerprint,
    precision_name,
)
from training.tiny import POSITIONS, make_bert, write_bert


def failure(name: str) -> str:
    with pytest.raises(InputError) as caught:
        find_model(name, key="some.key")
    message = str(caught.value)
    assert message.startswith("some.key: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["package:", "package:a.b", "package:../x"])
def test_impossible_package_names(name):
    assert "no package" in failure(name)


@pytest.mark.parametrize("key", ["weights", "settings"])
def test_fingerprint_changes_with_any_file(tmp_path, key):
    files = {"weights": tmp_path / "model.safetensors", "settings": tmp_path / "sub" / "config.json"}
    (tmp_path / "sub").mkdir()
    for path in files.values():
        path.write_bytes(b"one")
    (tmp_path / "README.md").write_bytes(b"one")
    before = model_fingerprint(tmp_path)
    (tmp_path / "README.md").write_bytes(b"two")
    assert model_fingerprint(tmp_path) == before
    files[key].write_bytes(b"two")
    assert model_fingerprint(tmp_path) != before


def test_hub_model_never_fetches_a_pickle(monkeypatch, tmp_path):
    folder = tmp_path
    (folder / "model.safetensors").write_bytes(b"weights")
    import huggingface_hub

    asked = {}

    def download(name, **rest):
        asked.update(rest, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("someone/some-model", "abc") == folder
    assert (asked["name"], asked["revision"]) == ("someone/some-model", "abc")
    assert not any(pattern in ("*", "*.bin", "*.pt", "*.pkl", "*.py") for pattern in asked["allow_patterns"])


class Distribution:
    """What importlib.metadata says of an installed package that carries one piece of a model."""

    def __init__(self, root, name: str, files: dict[str, bytes]) -> None:
        self.metadata = {"Name": name}
        self.root = root / name
        for path, content in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
        self.files = [importlib.metadata.PackagePath(path) for path in files]

    def locate_file(self, path):
        return self.root / path


@pytest.fixture
def in_pieces(tmp_path, monkeypatch):
    """Install the pieces of a zip file, all or some."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(model_files, numbers=(1, 2, 3), total=3):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in model_files.items():
                archive.writestr(name, content)
        whole = buffer.getvalue()
        size = -(-len(whole) // total)
        distributions = [
            Distribution(
                tmp_path / "site",
                f"big-model-part-{number:03}",
                {
                    f"big_model_part_{number:03}/__init__.py": b"",
                    f"big_model_part_{number:03}/model.zip.{number:03}": whole[(number - 1) * size : number * size],
                },
            )
            for number in reversed(numbers)  # as they come, not in order
        ]
        others = [Distribution(tmp_path / "site", name, {"x.py": b""}) for name in ("numpy", "big-model-part-x")]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*others, *distributions])

    return install


MODEL_FILES = {
    "big/modules.json": b"[]",
    "big/config.json": b"{}",
    "big/model.safetensors": bytes(range(256)) * 40,
}


def test_pieces_are_joined_once(in_pieces, tmp_path):
    in_pieces(MODEL_FILES)
    found = find_model("package:big-model")
    assert found.is_relative_to(tmp_path / "cache")
    for name, content in MODEL_FILES.items():
        assert (found / name.removeprefix("big/")).read_bytes() == content
    # The second time nothing is unpacked, and nothing of the first is left lying about.
    stamp = found.stat().st_mtime_ns
    assert find_model("package:big_model") == found
    assert found.stat().st_mtime_ns == stamp
    assert [path.name for path in found.parent.iterdir() if path.suffix != ".lock"] == [found.name]


def test_missing_pieces_are_named(in_pieces):
    in_pieces(MODEL_FILES, numbers=(2, 4), total=5)
    message = failure("package:big-model")
    assert "[1, 3]" in message
    assert "big_model" in message


def test_missing_last_piece(in_pieces):
    in_pieces(MODEL_FILES, numbers=(1, 2), total=3)
    assert "big_model" in failure("package:big-model")


def test_pieces_of_something_else(in_pieces):
    in_pieces({"readme.txt": b"no model"})
    assert "no sentence-transformers model" in failure("package:big-model")


def test_pieces_of_something_else_leave_nothing(in_pieces, tmp_path):
    in_pieces({"readme.txt": b"no model"})
    failure("package:big-model")
    assert not list((tmp_path / "cache").rglob("*.zip"))


def test_joined_weights_of_another_sum_are_refused(in_pieces, monkeypatch):
    in_pieces(MODEL_FILES)
    monkeypatch.setitem(module.KNOWN_SHA256, "big_model", "0" * 64)
    assert "expected 000" in failure("package:big-model")


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 1_000))
def test_length_batches(lengths, budget):
    batches = list(length_batches(lengths, budget))
    assert Counter(row for batch in batches for row in batch) == Counter(range(len(lengths)))
    for batch in batches:
        [length] = {lengths[row] for row in batch}
        assert len(batch) == 1 or len(batch) * length <= budget
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts)
    # No batch could have been joined with the next.
    for one, other in zip(batches, batches[1:], strict=False):
        length = lengths[one[0]]
        assert length != lengths[other[0]] or (len(one) + 1) * length > budget


def test_automatic_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert precision_name("auto", "cpu") == expected
    assert precision_name("float16", "cpu") == "float16"


def test_no_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name("auto") == "cpu"
    with pytest.raises(InputError, match=r"^train.device: cuda:1 wanted"):
        device_name("cuda:1", key="train.device")


def test_an_encoder_reads_as_many_tokens_as_it_has_positions():
    assert max_positions(make_bert()) == POSITIONS
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.RobertaConfig(vocab_size=9, max_position_embeddings=34, pad_token_id=1, **sizes)
    roberta = transformers.RobertaModel(config).eval()
    most = max_positions(roberta)
    assert most == 32
    roberta(torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError), match="ind"):
        roberta(torch.full((1, most + 1), 5))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def copied(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "copied")


def test_a_tokeniser_is_loaded(bert):
    tokenizer = load_tokenizer(bert, key="train.encoder")
    words = tokenizer.convert_ids_to_tokens(tokenizer("Fire near the bridge")["input_ids"])
    assert words == ["[CLS]", "fire", "near", "the", "bridge", "[SEP]"]


def test_a_folder_without_a_tokeniser(copied):
    for name in ("tokenizer.json", "vocab.txt"):
        (copied / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"^train\.encoder: .*copied holds no tokeniser; copy the whole folder$"):
        load_tokenizer(copied, key="train.encoder")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokeniser_that_is_damaged(copied, name):
    (copied / name).write_text('{"a": ')
    with pytest.raises(InputError, match=r"^train\.encoder: the tokeniser of .*copied cannot be loaded: ") as caught:
        load_tokenizer(copied, key="train.encoder")
    assert "\n" not in str(caught.value)


def test_the_code_of_a_tokeniser_is_not_run(copied):
    content = json.loads((copied / "tokenizer_config.json").read_text())
    content |= {"auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    (copied / "tokenizer_config.json").write_text(json.dumps(content))
    (copied / "code.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    try:
        tokenizer = load_tokenizer(copied, key="train.encoder")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  either is well
    else:
        assert type(tokenizer).__module__.startswith("transformers.")
    assert not (copied / "ran").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("\n one\ntwo"), "one"), (ValueError(), "ValueError"), (OSError(" \n"), "OSError")],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected


def test_settings_change_with_what_decides(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")

    def settings_with(**changes):
        values = {"model": str(tmp_path), "device": "cpu", "precision": "float32"}
        return encoder_settings(EncoderConfig(**(values | changes)))

    before = settings_with()
    assert before == settings_with(batch_tokens=999) == settings_with(keep_embeddings=False)
    assert before == settings_with(engine="torch") == settings_with(engine="auto")
    for changed in ({"max_length": 64}, {"normaliser": "bertweet"}, {"precision": "bfloat16"}, {"engine": "onednn"}):
        assert settings_with(**changed) != before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert settings_with() != before


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (
            '[{"path": "../other", "type": "sentence_transformers.models.Pooling"}]',
            "which is not in the model's folder",
        ),
        ('[{"path": "/etc", "type": "sentence_transformers.models.Pooling"}]', "which is not in the model's folder"),
        ('[{"path": "", "type": "evil.Thing"}]', "names evil.Thing, code that comes with the model; it is not run"),
        ('[{"path": ""}]', "damaged"),
        ('[{"path": 1}]', "damaged"),
        ("[{}]", "damaged"),
        ("{", "damaged"),
    ],
)
def test_modules_lie_in_the_models_folder(tmp_path, modules, expected):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "modules.json").write_text(modules)
    with pytest.raises(InputError, match=expected):
        find_model(str(folder))
