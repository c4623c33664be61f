from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from scalemine.config import InputError, RunError
from scalemine.training import publish as module
from scalemine.training.multilabel import classifier as classifier_module
from scalemine.training.publish import push_model, write_onnx
from scalemine.training.runs import run_training
from training.tweets import config


@pytest.fixture(scope="module")
def tagger(data, tmp_path_factory):
    """The folder of a tagger's run."""
    folder = tmp_path_factory.mktemp("tagger")
    [result] = run_training(config(data, folder, epochs=1))
    return folder / "runs" / result["name"]


@pytest.fixture
def classifier(tmp_path):
    """A folder that says that it is a classifier's."""
    folder = tmp_path / "classifier" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"scalemine": {"kind": "classifier"}}')
    return folder.parent


@pytest.fixture
def hub(monkeypatch):
    """Take what is pushed; return what was asked."""
    asked = []

    def create(_, repo_id, *, private, exist_ok):
        asked.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=repo_id)

    def upload(_, *, repo_id, folder_path, **__):
        files = {path.name for path in folder_path.iterdir()} if hasattr(folder_path, "iterdir") else set()
        asked.append(("upload", repo_id, files))
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    return asked


@pytest.mark.parametrize("private", [True, False])
def test_a_tagger_is_pushed(tagger, hub, private):
    assert push_model(str(tagger), "someone/tagger", private=private) == "https://hub/someone/tagger"
    (created, uploaded) = hub
    assert created == ("create", "someone/tagger", private, True)
    assert uploaded[2] >= {"config.json", "model.safetensors", "README.md"}


def test_a_classifier_is_pushed(classifier, monkeypatch):
    asked = []

    def load(model, *, device):
        return SimpleNamespace(push_to_hub=lambda name, **how: asked.append((model, device, name, how)) or "https://x")

    monkeypatch.setattr(classifier_module, "load_classifier", load)
    assert push_model(str(classifier), "someone/model", private=True) == "https://x"
    assert asked == [(str(classifier), "cpu", "someone/model", {"private": True})]


@pytest.mark.parametrize("name", ["someone/a/b", "someone/-", "what is this"])
def test_no_name_of_the_hub(tagger, name):
    with pytest.raises(InputError, match=f"^publish --push {name}: ") as caught:
        push_model(str(tagger), name, private=True)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_take_it(tagger, monkeypatch):
    refusals = [
        HfHubHTTPError("401: who are you?\nand more", response=SimpleNamespace(headers={}, request=None)),
        OSError("no route to host\nand more"),
    ]

    def refuse(*_, **__):
        raise refusals.pop(0)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    for said in ("401: who are you", "no route to host"):
        with pytest.raises(RunError, match=f"the hub does not take it .*{said}") as caught:
            push_model(str(tagger), "someone/tagger", private=True)
        assert "\n" not in str(caught.value)


def test_no_model_is_not_pushed(tmp_path, hub):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        push_model(str(tmp_path / "empty"), "someone/tagger", private=True)
    assert not hub


def test_onnx_lies_beside_the_weights(classifier, monkeypatch):
    asked = []
    monkeypatch.setattr(classifier_module, "export_onnx", lambda *arguments: asked.append(arguments))
    path = write_onnx(str(classifier))
    assert path == classifier / "model" / module.ONNX
    assert asked == [(classifier / "model", path)]


def test_a_tagger_becomes_no_onnx(tagger):
    with pytest.raises(InputError, match="is a tagger; only classifiers become ONNX files"):
        write_onnx(str(tagger))
    assert not list(tagger.rglob("*.onnx"))
