"""Which local folder stands for a folder in a bucket, and what users are told in its place; see ``bucket``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

# Whatever lies in a folder of this name stands for an object: scheme, bucket and key follow.
MARK: Final = "scalemine-mirror"
BASE_VARIABLE: Final = "SCALEMINE_MIRROR"


def mirror_base() -> Path:
    """Return the folder that this process's mirrors lie in."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(BASE_VARIABLE) or Path(cache, "scalemine")).absolute() / MARK


def is_uri(text: str) -> bool:
    """Return whether a text has the form of a URI."""
    return re.match(r"[A-Za-z][\w+.-]*://", text) is not None


def mirror_of(uri: str) -> Path:
    """Return the folder that a folder in a bucket is worked on in.

    Raises:
        ValueError: The URI is none of such a folder.
    """
    found = re.fullmatch(r"(s3|gs|gcs|abfs|abfss|hdfs)://([^/?#]+)/([^?#]*)", uri.rstrip("/") + "/")
    parts = found[3].split("/")[:-1] if found else []
    if found and re.search(":.*@", found[2]):
        raise ValueError("expected no password in a URI, got one; give credentials by the environment instead")
    if found is None or any(not part or part.startswith(".") for part in parts):
        raise ValueError(
            f"expected a folder, or s3://BUCKET/PREFIX (or gs, abfs, hdfs) without a query, and no name that "
            f"begins with a dot; got {uri}"
        )
    return mirror_base().joinpath(found[1], quote(found[2], safe=""), *parts)


def spelled(text: str) -> str:
    """Return a text with URIs in place of the paths of mirrors."""
    if MARK not in text:
        return text
    pattern = re.escape(str(mirror_base())) + r"/(\w+)/([^/\s'\"]+)"
    return re.sub(pattern, lambda found: f"{found[1]}://{unquote(found[2])}", text)
