"""A local page on which a person decides, by keyboard, on the tweets that mining is unsure about.

The page is served on 127.0.0.1 alone, under a path that holds a random token. Tweets are hostile input: they reach the
page as JSON and are shown as text, and the page's policy allows no script but its own and no request but to its server.
Each answer is on the disk before the page goes on.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scalemine.config import InputError, RunError
from scalemine.decisions import Decision, append_decision, read_decisions
from scalemine.mining.negatives import REVIEW_SCHEMA
from scalemine.mirror import spelled
from scalemine.report.tables import BAND_NAMES, MISSING, decimal, plain_line, plain_name
from scalemine.store import Json, Workdir, read_json
from scalemine.text import duplicate_key

HOST = "127.0.0.1"
# An answer has about fifty.
MAX_BODY_BYTES = 1_024
# Where it is not known what the person saw.
ANYTHING: Final = "anything"
# Long tweets are shown whole; a damaged record is not.
_MAX_TWEET_CHARS = 4_000

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is not followed: the status of the answer, and why in one line."""

    def __init__(self, status: HTTPStatus, reason: str, **facts: Json) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"error": reason, **facts}


@dataclass(frozen=True)
class Candidate:
    """A tweet to decide on: a row of review.parquet, and the key that its copies share."""

    row: dict[str, Any]
    key: bytes

    def shown(self) -> Json:
        """Return what the page shows of it, as plain text."""
        row = self.row
        band = row["band"]
        return {
            "text": plain_line(row["text"], _MAX_TWEET_CHARS),
            "class_name": plain_name(row["class_name"]),
            "facts": [
                ["Found for", plain_name(row["class_name"])],
                ["Chance of being a positive", decimal(row["false_negative_probability"], 2)],
                ["Band", MISSING if band is None else BAND_NAMES.get(band, str(band))],
                ["z", decimal(row["z"], 2, signed=True)],
                ["Cosine to the anchor", decimal(row["cosine"])],
            ],
            "positive_text": plain_line(row["nearest_positive_text"] or "", _MAX_TWEET_CHARS),
            "positive_class": plain_name(row["nearest_positive_class"] or ""),
            "positive_cosine": decimal(row["nearest_positive_cosine"]),
        }


class Review:
    """The tweets of a work directory that want a decision, and the decisions on them.

    Args:
        workdir: The work directory.
        again: Ask for those, too, that are decided already.

    Raises:
        InputError: review.parquet is missing or not what mining writes, or decisions.jsonl has a broken line.
    """

    def __init__(self, workdir: Workdir, *, again: bool = False) -> None:
        self.workdir = workdir
        self.candidates = _read_candidates(workdir.review)
        self._decisions = read_decisions(workdir.decisions)
        # Keys that need not be asked for any more.
        self._settled = set() if again else set(self._decisions)
        self._lock = threading.Lock()

    @property
    def class_names(self) -> list[str]:
        """The classes whose positives are to be told: those that were mined for."""
        if self.workdir.distributions.exists():
            return [row["class_name"] for row in read_json(self.workdir.distributions)]
        rows = [candidate.row for candidate in self.candidates]
        return sorted({row[key] for row in rows for key in ("class_name", "nearest_positive_class")} - {None})

    def candidate(self, index: int) -> Json:
        """Return what the page shows of one tweet, with the decision on it so far."""
        candidate = self.candidates[index]
        return {"index": index, "decision": self._decisions.get(candidate.key), **candidate.shown()}

    def progress(self, after: int = -1) -> Json:
        """Return the index of the next tweet to decide on, None at the end, and how many are decided, by decision."""
        total = len(self.candidates)
        order = [*range(after + 1, total), *range(after + 1)]
        following = (index for index in order if self.candidates[index].key not in self._settled)
        return {"next": next(following, None), "total": total, "counts": self._counts()}

    def decide(self, index: int, decision: Decision, *, replaces: str | None = ANYTHING) -> Json:
        """Write the decision on one tweet, and return the progress after it.

        Args:
            index: Row of the tweet.
            decision: The answer; one that is given already is not written again.
            replaces: The decision that the person saw when answering; None: there was none.

        Raises:
            RequestError: Another window decided on the tweet in the meantime, or the decision cannot be saved.
        """
        candidate = self.candidates[index]
        with self._lock:
            known = self._decisions.get(candidate.key)
            if decision != known:
                if replaces not in (ANYTHING, known):
                    reason = f"Another window has decided on that tweet already: {known}. It was left as it is."
                    raise RequestError(HTTPStatus.CONFLICT, reason, **self.progress(index))
                self._append(candidate, decision)
                self._decisions[candidate.key] = decision
            self._settled.add(candidate.key)
            return self.progress(index)

    def _append(self, candidate: Candidate, decision: Decision) -> None:
        row, path = candidate.row, self.workdir.decisions
        try:
            append_decision(path, row["text"], tweet_id=row["id"], class_name=row["class_name"], decision=decision)
        except (OSError, RunError) as error:
            reason = f"Not saved: {spelled(str(path))} cannot be written ({getattr(error, 'strerror', None) or error})."
            log.error(reason)
            raise RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, reason) from error

    def _counts(self) -> dict[str, int]:
        found = Counter(self._decisions.get(candidate.key) for candidate in self.candidates)
        return {decision.value: found[decision] for decision in Decision}

    def summary(self) -> str:
        """Say in a line how many are decided."""
        # Not before an answer that is being written.
        with self._lock:
            counts = self._counts()
        yes, no, skipped = (f"{counts[decision]:,}" for decision in (Decision.yes, Decision.no, Decision.skip))
        return (
            f"{sum(counts.values()):,} of {len(self.candidates):,} decided ({yes} yes, {no} no, {skipped} skipped) "
            f"in {self.workdir.decisions}"
        )


def _read_candidates(path: Path) -> list[Candidate]:
    """Read review.parquet.

    Raises:
        InputError: It is missing, or is not what mining writes.
    """
    if not path.exists():
        raise InputError(
            f"{path}: nothing to review here yet; scalemine mine CONFIG makes it, with guard.max_false_negative"
        )
    try:
        table = pq.read_table(path)
        if missing := [name for name in REVIEW_SCHEMA.names if name not in table.column_names]:
            raise ValueError(f"no column {', '.join(missing)}")
        table = table.select(REVIEW_SCHEMA.names).cast(REVIEW_SCHEMA)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not what mining writes ({error}); mine again") from None
    return [Candidate(row, duplicate_key(row["text"])) for row in table.to_pylist()]


class ReviewServer(ThreadingHTTPServer):
    """Serves the page of a review, for this machine alone, to who knows its address.

    Args:
        review: What is to be decided.
        port: The port; 0 takes a free one.

    Raises:
        InputError: The port cannot be had.
    """

    # Some versions of Python let a second server take the port, which would then get half of the answers.
    allow_reuse_port = False
    # Connections that wait to be taken; of more, the system resets some.
    request_queue_size = 128

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review = review
        self.token = secrets.token_urlsafe(32)
        folder = Path(__file__).parent
        environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
        self._template = environment.get_template("review.html.jinja")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(
                f"--port {port}: cannot be had ({error.strerror}); choose another, or leave it out for a free one"
            ) from None
        names = (HOST, "localhost")
        # Browsers leave out the port of the protocol.
        self.hosts = {f"{name}:{self.server_port}" for name in names} | ({*names} if self.server_port == 80 else set())

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def page(self, nonce: str) -> str:
        """Return the page, whose style and script carry a nonce."""
        workdir = self.review.workdir.root
        return self._template.render(
            nonce=nonce,
            base=f"/{self.token}",
            workdir=plain_line(workdir.resolve().name or str(workdir), 120),
            progress=json.dumps(self.review.progress()),
            classes=", ".join(map(plain_name, self.review.class_names)),
        )

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  as inherited
        """Log what went wrong; a browser that hangs up is nothing wrong."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            log.exception("review: a request failed")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ReviewServer
    # Seconds for which a connection may say nothing.
    timeout = 30
    server_version = "scalemine"
    sys_version = ""

    def _answer(self) -> None:
        try:
            token, _, name = self.path.removeprefix("/").partition("/")
            if not secrets.compare_digest(token.encode(), self.server.token.encode()):
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")
            host = self.headers.get_all("Host", [])
            if len(host) != 1 or host[0] not in self.server.hosts:
                raise RequestError(HTTPStatus.FORBIDDEN, "this host is not served")
            if name == "":
                self._allow("GET")
                self._send_page()
            elif found := re.fullmatch(r"tweets/([0-9]{1,9})", name):
                self._allow("GET")
                index = int(found[1])
                self._check_index(index, HTTPStatus.NOT_FOUND)
                self._send_json(HTTPStatus.OK, self.server.review.candidate(index))
            elif name == "decide":
                self._allow("POST")
                if any(origin != f"http://{host[0]}" for origin in self.headers.get_all("Origin", [])):
                    raise RequestError(HTTPStatus.FORBIDDEN, "only the page itself may decide")
                self._send_json(HTTPStatus.OK, self._decide())
            else:
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")
        except RequestError as refusal:
            self._send_json(refusal.status, refusal.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def _decide(self) -> Json:
        """Follow a request to decide: ``index``, ``decision`` and perhaps ``replaces``; see ``Review.decide``."""
        length = self.headers.get("Content-Length", "")
        num_bytes = int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
        if num_bytes > MAX_BODY_BYTES:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"over {MAX_BODY_BYTES} bytes")
        try:
            body = orjson.loads(self.rfile.read(num_bytes))
            index, decision = body["index"], Decision(body["decision"])
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"expected an index and a decision, one of {', '.join(Decision)}"
            ) from None
        self._check_index(index, HTTPStatus.BAD_REQUEST)
        return self.server.review.decide(index, decision, replaces=body.get("replaces", ANYTHING))

    def _check_index(self, index: object, status: HTTPStatus) -> None:
        total = len(self.server.review.candidates)
        # True is a whole number to Python.
        if type(index) is not int or not 0 <= index < total:
            raise RequestError(status, f"no such tweet; they are numbered from 0 to {total - 1}")

    def _allow(self, method: str) -> None:
        if self.command != method:
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"only {method} is served here")

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page(nonce).encode(), policy)

    def _send_json(self, status: HTTPStatus, value: Json) -> None:
        self._send(status, "application/json", orjson.dumps(value), "sandbox")

    def _send(self, status: HTTPStatus, content_type: str, content: bytes, policy: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        nothing_else = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", f"{nothing_else}; {policy}")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is no HTTP, or of an unknown method, in the form of every other answer."""
        self._send_json(HTTPStatus(code), {"error": HTTPStatus(code).phrase})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  as inherited
        """Log nothing: the path holds the token."""
