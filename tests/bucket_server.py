"""A store that speaks as S3 does, in a thread of this process: it notes what is asked of it, and fails if told to."""

from __future__ import annotations

import contextlib
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto is not installed")
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

BUCKET = "tweets"
_FAILED = b"<Error><Code>InvalidRequest</Code><Message>made to fail</Message></Error>"
_UNKNOWN = b"<Error><Code>InvalidAccessKeyId</Code><Message>who is this</Message></Error>"


@dataclass
class Store:
    """What tests see of the server."""

    app: Any
    port: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)
    # Of so many objects written the next one fails, and all that is written after; None: none does.
    puts_left: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "not-to-be-told",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if "Credential=wrong" in environ.get("HTTP_AUTHORIZATION", ""):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [_UNKNOWN]
        is_object = path.count("/") > 1 and not path.endswith("/")
        is_hidden = "/." in path
        # A write in one request, or the first of several.
        if method in ("PUT", "DELETE") and is_object or method == "POST" and environ["QUERY_STRING"] == "uploads":
            if self.puts_left == 0 and not is_hidden:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start("400 Bad Request", [("Content-Type", "application/xml")])
                return [_FAILED]
            if self.puts_left is not None and not is_hidden:
                self.puts_left -= 1
            self.log.append((method, path.removeprefix(f"/{BUCKET}/")))
        elif method == "GET" and is_object:
            self.log.append((method, path.removeprefix(f"/{BUCKET}/")))
        answer: Iterable[bytes] = self.app(environ, start)
        return answer

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return the content of every object that is no note, by its key."""
        bucket = self._backend.buckets[BUCKET]
        return {
            key: found.value
            for key, found in bucket.keys.items()
            if key.startswith(prefix) and not key.endswith("/") and "/." not in key
        }

    def delete(self, key: str) -> None:
        self._backend.delete_object(BUCKET, key)

    def put(self, key: str, content: bytes) -> None:
        self._backend.put_object(BUCKET, key, content)

    @property
    def _backend(self) -> Any:
        from moto.backends import get_backend

        return get_backend("s3")["123456789012"]["aws"]


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """Serve one empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.port = server.port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{store.port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"))  # noqa: S310
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"))  # noqa: S310
        yield store
    finally:
        server.shutdown()
        thread.join()
