"""Secrets in text and in values that are written down: found by the names they go by, and left out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

Json = Any

MASK: Final = "***"
_NAME: Final = r"TOKEN|KEY(?!WORD)|SECRET|PASSW(?:OR)?D|CREDENTIALS?"
_SECRET_NAME: Final = re.compile(_NAME, re.IGNORECASE)
# Names that only point to a secret, or switch something.
_NO_SECRET: Final = re.compile(r"(_PATH|_FILE|_DIR|_MODE)$|^TOKENIZERS_", re.IGNORECASE)
# What stands before the last @ of scheme://user:password@host, whose password may have slashes; a user alone is none.
_USER: Final = re.compile(r"(?<=://)[^\s/?#@:]*:(?!\d{1,5}/)\S*@")
# NAME=value, of an environment or a query; the name as a word of its own, since there are keys of other kinds.
_ASSIGNED: Final = re.compile(
    rf"(?<![^\W_])(?P<name>(?:\w*[_-]|api|access|auth)?(?:{_NAME})(?:[_-](?!path|file|dir|mode)\w+)?=)"
    r"(?P<value>[^\s&;,'\"]+)",
    re.IGNORECASE,
)
_QUERY: Final = re.compile(rf"[?&][\w-]*(?:{_NAME})[\w-]*=[^&\s]", re.IGNORECASE)
_BEARER: Final = re.compile(r"(?<=\bBearer )[\w.~+/=-]+", re.IGNORECASE)
# Of Hugging Face, of Amazon, of GitHub.
_KNOWN_FORM: Final = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,})\b")
# Shorter values of the environment would be found by chance.
_MIN_VALUE: Final = 8


def is_secret_name(name: str) -> bool:
    """Return whether a variable or key of this name holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET.search(name)


def has_credentials(text: str) -> bool:
    """Return whether a URI carries a password, or a query such as ``?secret_key=…``."""
    return "://" in text and bool(_USER.search(text) or _QUERY.search(text))


def redact_text(text: str) -> str:
    """Return a text without its secrets.

    Left out are passwords and queries of URIs, values after names such as ``AWS_SECRET_ACCESS_KEY=``, tokens of known
    form, and the values of such variables of this process's environment.
    """
    text = _USER.sub(f"{MASK}@", text)
    text = _ASSIGNED.sub(rf"\g<name>{MASK}", text)
    text = _KNOWN_FORM.sub(MASK, _BEARER.sub(MASK, text))
    for name, value in os.environ.items():
        if len(value) >= _MIN_VALUE and value in text and is_secret_name(name):
            text = text.replace(value, MASK)
    return text


def redact(value: Json) -> Json:
    """Return a value of JSON without secrets: texts as by ``redact_text``, and texts under the name of a secret."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(one, str) and one and is_secret_name(str(key)) else redact(one)
            for key, one in value.items()
        }
    return [redact(one) for one in value] if isinstance(value, list | tuple) else value
