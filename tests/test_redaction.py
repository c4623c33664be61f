from __future__ import annotations

import json

import pytest

from scalemine.config import dotted_keys
from scalemine.redaction import MASK, has_credentials, is_secret_name, redact, redact_text

SECRET = "planted-7f3a9c"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIDEXAMPLE:{SECRET}@bucket/tweets",
        f"corpus.uri s3://me:{SECRET}/+=@bucket/a@b.csv: cannot be reached",
        f"https://me:p@{SECRET}@host/",
        f"s3://bucket/tweets?secret_key={SECRET}&region=eu",
        f"gs://bucket?access_token={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET} scalemine mine",
        f"--set x.api_key={SECRET}",
        f"apikey={SECRET}",
        f"DB_PASSWORD={SECRET};next",
        f"Authorization: Bearer {SECRET}",
    ],
)
def test_no_secret_is_left(text: str) -> None:
    assert "planted" in text
    assert "7f3a9c" not in redact_text(text)
    assert MASK in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/tweets@2.csv",
        "s3://bucket/monkey=1/key/token.csv",
        "file:///home/me@work/a.csv",
        "http://localhost:8080/me@work",
        "https://t.co/abc see me@example.org: 12:30",
        "batch_tokens=4096, tokens=12 of 7",
        "RAY_AUTH_TOKEN_PATH=/tmp/token",
        "RAY_AUTH_MODE=token",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_tokens_of_known_form() -> None:
    for token in ("hf_" + "a" * 34, "AKIA" + "A" * 16, "ghp_" + "b" * 36):
        assert redact_text(f"got {token}.") == f"got {MASK}."


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "forbidden")
    monkeypatch.setenv("MY_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("SHORT_KEY", "text")
    assert redact_text(f"wandb: {SECRET}; forbidden; /home/me/token; text") == (
        f"wandb: {MASK}; forbidden; /home/me/token; text"
    )


def test_values_under_the_name_of_a_secret() -> None:
    value = {"env": {"HF_TOKEN": SECRET, "N_KEYS": 3, "HOME": "/root"}, "uris": [f"s3://a:{SECRET}@b"], "none": None}
    assert redact(value) == {
        "env": {"HF_TOKEN": MASK, "N_KEYS": 3, "HOME": "/root"}, "uris": [f"s3://{MASK}@b"], "none": None,
    }  # fmt: skip
    assert SECRET not in json.dumps(redact(value))
    assert redact(("a", 1)) == ["a", 1]


def test_no_key_of_the_configuration_is_taken_for_a_secret() -> None:
    names = {key.split(".")[-1] for key in dotted_keys() if is_secret_name(key)}
    assert names <= {"batch_tokens"}  # numbers are never left out


def test_credentials_of_uris() -> None:
    assert has_credentials(f"s3://me:{SECRET}@bucket/a")
    assert has_credentials(f"s3://bucket/a?region=eu&secret_key={SECRET}")
    assert not has_credentials("s3://bucket/key=1/a?region=eu")
    assert not has_credentials("s3://anonymous@bucket/a")
    assert not has_credentials("what is a token=1?")
