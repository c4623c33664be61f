from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browser import Browser, Page, chromium, needs_chromium
from scalemine import review
from scalemine.bucket import BucketError
from scalemine.cli import main
from scalemine.config import InputError
from scalemine.decisions import Decision, append_decision, read_decisions
from scalemine.review import HOST, MAX_BODY_BYTES, Review, ReviewServer
from scalemine.store import Workdir
from scalemine.text import duplicate_key

SCRIPT = '<script>document.title = "owned"</script><img src=x onerror="document.title = \'owned\'"> &amp; "quoted\''
RTL = "انفجار كبير في وسط المدينة 🚑👩‍🚒 \u202egnp.exe"
TEXTS = [
    "Bus crashed into a shop, two hurt",
    SCRIPT,
    RTL,
    "this mixtape is fire 🔥",
    "stuck in traffic of feelings\nand a second line",
]


def row(number: int, text: str, **changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "id": f"id{number}",
        "text": text,
        "class_name": "traffic",
        "band": 3,
        "cosine": 0.4,
        "z": 2.5,
        "nearest_positive_id": f"p{number}",
        "nearest_positive_text": f"Truck overturned {number}",
        "nearest_positive_class": "traffic",
        "nearest_positive_cosine": 0.7131,
        "false_negative_probability": 0.625,
    }
    return values | changes


def write(workdir: Path, rows: list[dict[str, object]]) -> Workdir:
    workdir.mkdir(exist_ok=True)
    schema = pa.schema(
        [
            (name, pa.int64() if name == "band" else pa.float64() if kind is float else pa.string())
            for name, kind in ((name, type(value)) for name, value in row(0, "").items())
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), workdir / "review.parquet")
    return Workdir(workdir)


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return write(tmp_path / "work", [row(number, text) for number, text in enumerate(TEXTS)])


@contextlib.contextmanager
def served(workdir: Workdir, *, again: bool = False) -> Iterator[ReviewServer]:
    with ReviewServer(Review(workdir, again=again)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(workdir: Workdir) -> Iterator[ReviewServer]:
    with served(workdir) as started:
        yield started


class Answer:
    """What a server answered."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


def ask(server: ReviewServer, path: str = "", *, method: str = "GET", body: object = None, **headers: str) -> Answer:
    """Make a request, below the token where the path does not begin with a slash."""
    url = f"http://{HOST}:{server.server_port}{path}" if path.startswith("/") else server.url + path
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


def decide(server: ReviewServer, index: object, decision: object = "yes", **more: object) -> Answer:
    headers = more.pop("headers", {})
    return ask(server, "decide", method="POST", body={"index": index, "decision": decision, **more}, **headers)


def decided(workdir: Workdir) -> list[tuple[str, str]]:
    """The lines of the file of decisions: id and decision."""
    if not workdir.decisions.exists():
        return []
    lines = workdir.decisions.read_text("utf-8").splitlines()
    return [(entry["id"], entry["decision"]) for entry in map(json.loads, lines)]


def test_a_decision_is_on_the_disk_before_the_answer(server, workdir, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (fsync(number), synced.append(decided(workdir)))[0])
    answer = decide(server, 0, "no")
    assert answer.json == {"next": 1, "total": 5, "counts": {"yes": 0, "no": 1, "skip": 0}}
    assert synced == [[("id0", "no")]]
    assert read_decisions(workdir.decisions) == {duplicate_key(TEXTS[0]): "no"}


def test_a_tweet_comes_with_all_that_helps_to_decide(server):
    tweet = ask(server, "tweets/0").json
    assert tweet["text"] == TEXTS[0]
    assert tweet["class_name"] == tweet["positive_class"] == "traffic"
    assert tweet["positive_text"] == "Truck overturned 0"
    assert dict(tweet["facts"])["Chance of being a positive"] == "0.62"
    assert tweet["positive_cosine"] == "0.713"
    assert tweet["decision"] is None
    decide(server, 0, "skip")
    assert ask(server, "tweets/0").json["decision"] == "skip"


def test_values_that_are_missing_are_shown_as_such(tmp_path):
    changes = {name: None for name in row(0, "") if name not in ("id", "text", "class_name")}
    shown = Review(write(tmp_path, [row(0, "a", **changes), row(1, "b", band=-7, z=float("nan"))]))
    assert shown.candidate(0)["positive_text"] == shown.candidate(0)["positive_class"] == ""
    assert dict(shown.candidate(0)["facts"]) == {
        "Found for": "traffic", "Chance of being a positive": "–", "Band": "–", "z": "–", "Cosine to the anchor": "–",
    }  # fmt: skip
    assert dict(shown.candidate(1)["facts"])["Band"] == "-7"


def test_next_goes_on_in_order_and_then_to_what_was_left_out(workdir):
    shown = Review(workdir)
    assert shown.progress()["next"] == 0
    assert shown.decide(2, Decision.yes)["next"] == 3
    assert shown.decide(3, Decision.yes)["next"] == 4
    assert shown.decide(4, Decision.skip)["next"] == 0
    assert shown.decide(0, Decision.no)["next"] == 1
    assert shown.decide(2, Decision.no)["next"] == 1
    last = shown.decide(1, Decision.no)
    assert last == {"next": None, "total": 5, "counts": {"yes": 1, "no": 3, "skip": 1}}
    assert "5 of 5 decided (1 yes, 3 no, 1 skipped)" in shown.summary()


def test_a_second_run_goes_on_where_the_first_stopped_and_all_begins_again(workdir):
    first = Review(workdir)
    first.decide(0, Decision.yes)
    first.decide(1, Decision.skip)
    assert Review(workdir).progress() == {"next": 2, "total": 5, "counts": {"yes": 1, "no": 0, "skip": 1}}
    again = Review(workdir, again=True)
    assert again.progress()["next"] == 0
    assert again.candidate(0)["decision"] == "yes"
    assert again.decide(0, Decision.yes)["next"] == 1
    assert again.decide(1, Decision.no)["next"] == 2
    assert decided(workdir) == [("id0", "yes"), ("id1", "skip"), ("id1", "no")]


def test_copies_are_decided_together_and_decisions_on_other_tweets_stay(tmp_path):
    rows = [row(0, "Bus crashed!"), row(1, "something else"), row(2, "RT @ana: bus crashed https://t.co/x")]
    workdir = write(tmp_path, rows)
    append_decision(workdir.decisions, "of an earlier run", tweet_id="0", class_name="x", decision=Decision.no)
    shown = Review(workdir)
    assert shown.progress()["counts"] == {"yes": 0, "no": 0, "skip": 0}
    shown.decide(0, Decision.yes)
    assert shown.decide(1, Decision.yes) == {"next": None, "total": 3, "counts": {"yes": 3, "no": 0, "skip": 0}}
    assert len(decided(workdir)) == 3


def test_an_answer_given_twice_is_written_once(server, workdir):
    for _ in range(3):
        assert decide(server, 0, "yes", replaces=None).json["next"] == 1
    assert decided(workdir) == [("id0", "yes")]


def test_another_window_does_not_overwrite_what_it_has_not_seen(server, workdir):
    decide(server, 0, "yes", replaces=None)
    late = decide(server, 0, "no", replaces=None)
    assert late.status == 409
    assert late.json["error"] == "Another window has decided on that tweet already: yes. It was left as it is."
    assert late.json["next"] == 1
    assert decided(workdir) == [("id0", "yes")]
    # Who has seen it may change it, and so may a program that says nothing of it.
    assert decide(server, 0, "no", replaces="yes").status == 200
    assert decide(server, 0, "skip").status == 200
    assert decided(workdir) == [("id0", "yes"), ("id0", "no"), ("id0", "skip")]


def test_many_windows_at_once_write_one_decision_for_each_tweet(server, workdir):
    wanted = [(index, decision) for index in range(5) for decision in ("yes", "no", "skip", "yes")]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda one: decide(server, *one, replaces=None), wanted))
    assert {answer.status for answer in answers} <= {200, 409}
    lines = decided(workdir)
    assert sorted(line[0] for line in lines) == [f"id{index}" for index in range(5)]
    for (index, decision), answer in zip(wanted, answers, strict=True):
        assert (answer.status == 200) == ((f"id{index}", decision) in lines)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BucketError("upload failed 4 times")])
def test_what_cannot_be_saved_is_said_and_not_counted(server, workdir, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(review, "append_decision", full)
        answer = decide(server, 0)
    assert answer.status == 500
    reason = getattr(error, "strerror", None) or str(error)
    assert answer.json == {"error": f"Not saved: {workdir.decisions} cannot be written ({reason})."}
    assert ask(server, "tweets/0").json["decision"] is None
    assert server.review.progress()["next"] == 0
    assert decide(server, 0, replaces=None).json["next"] == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 1_000, {"index": 0}, {"decision": "yes"},
        {"index": 0, "decision": "maybe"}, {"index": 0, "decision": None}, {"index": 0, "decision": ["yes"]},
        {"index": 5, "decision": "yes"}, {"index": -1, "decision": "yes"}, {"index": True, "decision": "yes"},
        {"index": "0", "decision": "yes"}, {"index": 0.0, "decision": "yes"}, {"index": None, "decision": "yes"},
        b'{"index": 99999999999999999999999999, "decision": "yes"}',
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused_in_one_line(server, workdir, body):
    answer = ask(server, "decide", method="POST", body=body)
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert decided(workdir) == []


def test_large_bodies_are_refused_unread(server, workdir):
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    connection.putrequest("POST", f"/{server.token}/decide")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    answer.read()
    connection.close()
    padding = " " * MAX_BODY_BYTES
    assert decide(server, 0, "yes", more=padding).status == 413
    assert decided(workdir) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["", "tweets/0", "decide"])
def test_each_page_has_its_method(server, workdir, method, path):
    answer = ask(server, path, method=method, body={"index": 0, "decision": "yes"} if method == "POST" else None)
    allowed = method == ("POST" if path == "decide" else "GET")
    assert answer.status == (200 if allowed else 405)
    assert decided(workdir) == ([("id0", "yes")] if allowed and path == "decide" else [])


@pytest.mark.parametrize(
    "path", ["tweets/5", "tweets/-1", "tweets/x", "tweets/", "tweets/0/", "other", "?x", "/", "../"]
)
def test_what_is_not_there_is_not_found(server, path):
    target = f"/{server.token}/{path}"
    assert ask(server, target).status == 404


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_without_the_token_there_is_nothing(server, workdir, method):
    wrong = server.token[:-1] + ("A" if server.token[-1] != "A" else "B")
    tokens = ["", wrong, server.token[:-1], server.token + "A", server.token.swapcase(), "%41", "x" * 10_000]
    for token in tokens:
        for page in ("", "/", "/tweets/0", "/decide"):
            body = {"index": 0, "decision": "yes"} if method == "POST" else None
            answer = ask(server, f"/{token}{page}", method=method, body=body)
            assert answer.status == 404, (token, page)
            assert b"crashed" not in answer.body
            assert server.token.encode() not in answer.body
    assert decided(workdir) == []


def test_tokens_are_long_and_new_and_compared_in_constant_time(workdir, monkeypatch):
    with ReviewServer(Review(workdir)) as one, ReviewServer(Review(workdir)) as other:
        assert one.token != other.token
        assert min(len(one.token), len(other.token)) >= 40
    compared = []
    compare = review.secrets.compare_digest
    monkeypatch.setattr(review.secrets, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    with served(workdir) as server:
        assert raw(server, b"GET /\xe9 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 404 ")
        assert compared == [("é".encode(), server.token.encode())]


def raw(server: ReviewServer, request: bytes) -> bytes:
    """Send bytes, and return all that comes back."""
    with socket.create_connection((HOST, server.server_port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_names_of_this_machine_are_served(server, workdir, name):
    host = f"{name}:{server.server_port}"
    assert ask(server, Host=host).status == 200
    assert decide(server, 0, headers={"Host": host, "Origin": f"http://{host}"}).status == 200
    assert decided(workdir) == [("id0", "yes")]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "[::1]:{port}", ""]
)
def test_other_hosts_are_refused(server, workdir, host):
    given = host.format(port=server.server_port)
    for answer in (ask(server, Host=given), decide(server, 0, headers={"Host": given})):
        assert answer.status == 403
        assert b"crashed" not in answer.body
    assert decided(workdir) == []


def test_no_host_and_two_hosts_are_refused(server):
    target = f"GET /{server.token}/ HTTP/1.1\r\n".encode()
    good = f"Host: {HOST}:{server.server_port}\r\n".encode()
    assert raw(server, target + good + b"\r\n").startswith(b"HTTP/1.0 200 ")
    for hosts in (b"", good + b"Host: evil.example\r\n", good + good):
        assert raw(server, target + hosts + b"\r\n").startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://localhost:{port}", ""],
)
def test_other_pages_may_not_decide(server, workdir, origin):
    answer = decide(server, 0, headers={"Origin": origin.format(port=server.server_port)})
    assert answer.status == 403
    assert decided(workdir) == []
    assert decide(server, 0, headers={"Origin": f"http://{HOST}:{server.server_port}"}).status == 200


@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", b"FOO / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 70_000, b"GET / HTTP/9.9\r\n\r\n", b"\r\n"],
)
def test_what_is_no_request_harms_nothing(server, request_):
    answer = raw(server, request_)
    assert b"Traceback" not in answer
    assert server.token.encode() not in answer
    assert ask(server).status == 200


def test_every_answer_carries_its_policy(server):
    for path in ("", "tweets/0", "tweets/9", "/nothing"):
        headers = ask(server, path).headers
        policy = headers["Content-Security-Policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]


def test_the_page_names_nothing_outside_and_its_nonce_is_new(server, workdir):
    pages = [ask(server) for _ in range(2)]
    nonces = [re.search(r"script-src 'nonce-([\w-]+)'", page.headers["Content-Security-Policy"])[1] for page in pages]
    assert nonces[0] != nonces[1]
    for page, nonce in zip(pages, nonces, strict=True):
        html = page.body.decode()
        assert re.findall(r"<(?:script|style)[^>]*>", html) == [f'<style nonce="{nonce}">', f'<script nonce="{nonce}">']
        assert not re.search(r"https?:|//[a-z]|\son\w+=|\sstyle=", re.sub(r"(?m)^\s*//.*$|  // .*$", "", html))


def test_names_of_folders_are_escaped(tmp_path):
    workdir = write(tmp_path / '"><script>x<', [row(0, "a")])
    with ReviewServer(Review(workdir)) as server:
        assert "<script>x" not in server.page("n")
        assert "&lt;script&gt;x" in server.page("n")


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named(server, workdir):
    with pytest.raises(InputError, match=rf"--port {server.server_port}: cannot be had \(Address already in use\)"):
        ReviewServer(Review(workdir), server.server_port)


def test_a_hanging_client_holds_up_no_other(server):
    with socket.create_connection((HOST, server.server_port)) as silent:
        silent.sendall(b"GET /")
        assert ask(server).status == 200


def test_connections_wait_for_their_turn(workdir):
    with ReviewServer(Review(workdir)) as busy, contextlib.ExitStack() as open_ones:
        for _ in range(40):
            open_ones.enter_context(socket.create_connection((HOST, busy.server_port), timeout=20))


@pytest.mark.parametrize("column", ["text", "band", "false_negative_probability"])
def test_a_missing_column_is_named(workdir, column):
    pq.write_table(pq.read_table(workdir.review).drop_columns([column]), workdir.review)
    with pytest.raises(
        InputError, match=rf"review\.parquet: not what mining writes \(no column {column}\); mine again"
    ):
        Review(workdir)


def test_what_is_no_review_is_refused(workdir):
    table = pq.read_table(workdir.review)
    wrong = [
        table.set_column(1, "text", pa.array([None] * 5, pa.string())),
        table.set_column(3, "band", pa.array(["three"] * 5)),
    ]
    for one in wrong:
        pq.write_table(one, workdir.review)
        with pytest.raises(InputError, match="not what mining writes"):
            Review(workdir)
    workdir.review.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not what mining writes"):
        Review(workdir)


def test_further_columns_and_other_widths_are_read(workdir):
    table = pq.read_table(workdir.review)
    table = table.set_column(3, "band", table["band"].cast(pa.int8())).set_column(5, "z", table["z"].cast(pa.float32()))
    table = table.set_column(2, "class_name", table["class_name"].dictionary_encode())
    pq.write_table(table.append_column("later", pa.array(range(5))), workdir.review)
    assert Review(workdir).candidate(4)["class_name"] == "traffic"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """Run the command in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["scalemine", "review", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_without_a_file_the_command_says_what_makes_it(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"scalemine: {tmp_path}/review.parquet: nothing to review here yet; "
        "scalemine mine CONFIG makes it, with guard.max_false_negative"
    ]


def test_where_nothing_is_unsure_the_command_ends_well(tmp_path, monkeypatch, capsys):
    write(tmp_path, [])
    assert run(monkeypatch, tmp_path) == 0
    assert capsys.readouterr().out == "nothing to review: mining was unsure about no tweet\n"


def test_where_all_is_decided_the_command_says_how_to_go_on(workdir, monkeypatch, capsys):
    shown = Review(workdir)
    for index in range(5):
        shown.decide(index, Decision.no)
    assert run(monkeypatch, workdir.root) == 0
    said = capsys.readouterr().out
    assert "5 of 5 decided (0 yes, 5 no, 0 skipped)" in said
    assert "scalemine mine CONFIG --redo reads your decisions" in said


@pytest.mark.parametrize(("options", "opened"), [([], False), (["--open"], True), (["--no-open"], False)])
def test_the_browser_is_opened_only_on_request(workdir, monkeypatch, capsys, options, opened):
    calls = []
    done = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda url: (calls.append(url), done.set()))

    def serve(server):
        if opened:
            assert done.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(ReviewServer, "serve_forever", serve)
    assert run(monkeypatch, workdir.root, *options) == 0
    said = capsys.readouterr().out
    assert bool(calls) == opened
    assert all(url in said for url in calls)


def test_the_command_serves_until_it_is_interrupted(workdir):
    command = [sys.executable, "-m", "scalemine", "review", str(workdir.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{40,})/", process.stdout.readline())
        body = json.dumps({"index": 0, "decision": "yes"}).encode()
        with urllib.request.urlopen(f"{url[0]}decide", body, timeout=20) as answer:
            assert json.load(answer)["next"] == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == f"1 of 5 decided (1 yes, 0 no, 0 skipped) in {workdir.decisions}"
    # The address is nobody else's business: not in a log either.
    assert err == ""


IDLE = "document.readyState === 'complete' && !document.body.hasAttribute('aria-busy')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: ReviewServer) -> Page:
    opened = browser.open(server.url)
    opened.wait(IDLE)
    return opened


def press(page: Page, keys: str) -> None:
    """Press keys one after the other, each when the page listens."""
    for key in keys:
        page.press("Backspace" if key == "<" else key)
        page.wait(IDLE)


@needs_chromium
def test_tweets_are_decided_by_keyboard(page, workdir):
    assert page.text("question") == "Is this a positive, a tweet of traffic?"
    assert page.text("text") == TEXTS[0]
    assert page.text("positive-text") == "Truck overturned 0"
    assert page.text("positive") == "The nearest positive, of class traffic, cosine 0.713"
    assert page.text("facts").split("\n")[2:4] == ["Chance of being a positive", "0.62"]
    assert page.text("position") == "1 of 5"
    assert page.text("counts") == "decided: 0 (0 yes, 0 no, 0 skipped)"
    press(page, "yns")
    assert decided(workdir) == [("id0", "yes"), ("id1", "no"), ("id2", "skip")]
    assert page.text("text") == TEXTS[3]
    assert page.text("position") == "4 of 5"
    assert page.text("counts") == "decided: 3 (1 yes, 1 no, 1 skipped)"
    assert page.value("document.getElementById('bar').value") == 3
    assert page.text("end") == ""
    press(page, "Yn")
    assert page.text("question") == page.text("tweets") == page.text("yes") == ""
    assert "All are decided." in page.text("end")
    assert "scalemine mine CONFIG --redo reads your decisions." in page.text("end")
    assert page.text("counts") == "decided: 5 (2 yes, 2 no, 1 skipped)"
    press(page, "yns")
    assert len(decided(workdir)) == 5


@needs_chromium
@pytest.mark.parametrize("key", ["u", "<"])
def test_back_answers_again(page, workdir, key):
    press(page, f"yn{key}")
    assert page.text("text") == " ".join(SCRIPT.split())
    assert page.text("asked") == "The tweet; your answer: no"
    assert page.value("document.getElementById('no').getAttribute('aria-pressed')") == "true"
    press(page, key)
    assert page.text("text") == TEXTS[0]
    press(page, key)
    assert page.text("text") == TEXTS[0]
    press(page, "s")
    assert page.text("text") == "انفجار كبير في وسط المدينة 🚑👩‍🚒 gnp.exe"
    assert decided(workdir) == [("id0", "yes"), ("id1", "no"), ("id0", "skip")]
    # And from the end, also on a page that is loaded anew.
    press(page, "nnn")
    page.call("Page.reload")
    page.wait(IDLE + " && !document.getElementById('end').hidden")
    press(page, f"{key}y")
    assert decided(workdir)[-1] == ("id4", "yes")
    assert "All are decided." in page.text("end")


@needs_chromium
def test_buttons_do_what_keys_do(page, workdir):
    for button in ("yes", "no", "skip", "back"):
        page.click(button)
        page.wait(IDLE)
    assert decided(workdir) == [("id0", "yes"), ("id1", "no"), ("id2", "skip")]
    assert page.text("position") == "3 of 5"
    page.value("document.getElementById('yes').focus()")
    press(page, ["Enter"])
    assert decided(workdir)[-1] == ("id2", "yes")


@needs_chromium
def test_keys_held_down_or_with_others_do_not_answer(page, workdir):
    press(page, "y")
    for _ in range(3):
        page.press("y", repeated=True)
        page.wait(IDLE)
    assert decided(workdir) == [("id0", "yes")]
    control = 2
    page.call("Input.dispatchKeyEvent", type="keyDown", key="s", code="KeyS", modifiers=control)
    press(page, "xq")
    assert len(decided(workdir)) == 1


@needs_chromium
def test_keys_are_ignored_while_an_answer_is_saved(page, workdir, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*args, **kwargs):
        begun.set()
        assert go_on.wait(20)
        append_decision(*args, **kwargs)

    monkeypatch.setattr(review, "append_decision", slowly)
    page.press("y")
    assert begun.wait(20)
    assert page.text("position") == "1 of 5"
    for key in "ynsu":
        page.press(key)
    page.click("no")
    go_on.set()
    page.wait(IDLE)
    assert decided(workdir) == [("id0", "yes")]
    assert page.text("position") == "2 of 5"
    methods = [event["request"]["method"] for event in page.of_kind("Network.requestWillBeSent")]
    assert methods.count("POST") == 1


@needs_chromium
def test_a_key_pressed_twice_does_not_answer_for_the_next_tweet(page, workdir):
    # The second press comes 50 ms after the next tweet is shown, by the clock of the page.
    page.value(
        "new MutationObserver(() => setTimeout(() => {"
        " document.dispatchEvent(new KeyboardEvent('keydown', {key: 'y'})); window.pressedTwice = true; }, 50))"
        ".observe(document.getElementById('position'), {childList: true})"
    )
    page.press("y")
    page.wait("window.pressedTwice")
    page.wait(IDLE)
    assert page.text("position") == "2 of 5"
    assert decided(workdir) == [("id0", "yes")]


@needs_chromium
def test_two_tabs_write_one_decision_for_a_tweet(browser, server, page, workdir):
    other = browser.open(server.url)
    other.wait(IDLE)
    press(page, "y")
    press(other, "n")
    assert other.text("notice") == "Another window has decided on that tweet already: yes. It was left as it is."
    assert other.text("position") == "2 of 5"
    press(other, "n")
    assert other.text("notice") == ""
    assert decided(workdir) == [("id0", "yes"), ("id1", "no")]


@needs_chromium
def test_tweets_are_shown_as_text(page):
    press(page, "y")
    assert page.text("text") == SCRIPT
    assert page.value("document.querySelectorAll('main img, main script, #text *').length") == 0
    assert page.value("document.title") == "scalemine review: work"
    press(page, "y")
    assert page.value("getComputedStyle(document.getElementById('text')).direction") == "rtl"
    assert "\u202e" not in page.value("document.body.textContent")
    assert "👩‍🚒" in page.text("text")


@needs_chromium
def test_the_page_asks_nobody_else_and_breaks_no_rule_of_its_own(page, server):
    press(page, "ynus")
    asked = {event["request"]["url"] for event in page.of_kind("Network.requestWillBeSent")}
    assert asked
    assert all(url.startswith(server.url) for url in asked), asked
    assert page.of_kind("Runtime.exceptionThrown") == page.of_kind("Log.entryAdded") == []
    # The policy holds: nothing else can be asked.
    assert page.value("fetch('http://localhost:1/').then(() => 'sent', () => 'refused')") == "refused"
    assert "security" in [event["entry"]["source"] for event in page.of_kind("Log.entryAdded")]


@needs_chromium
def test_what_cannot_be_saved_is_said_in_red_and_the_page_stays(page, workdir, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(review, "append_decision", full)
        press(page, "y")
    assert page.text("problem").startswith("Not saved: ")
    assert page.text("problem").endswith("(No space left on device).")
    red, green, blue = map(
        int, re.findall(r"\d+", page.value("getComputedStyle(document.getElementById('problem')).color"))
    )
    assert red > 3 * max(green, blue)
    assert page.text("position") == "1 of 5"
    assert page.text("counts").startswith("decided: 0 ")
    press(page, "n")
    assert page.text("problem") == ""
    assert decided(workdir) == [("id0", "no")]


@needs_chromium
def test_a_server_that_has_ended_is_said_in_red(browser, workdir):
    with served(workdir) as server:
        page = browser.open(server.url)
        page.wait(IDLE)
    press(page, "y")
    assert page.text("problem").startswith("No answer from scalemine review")
    assert page.text("position") == "1 of 5"


@needs_chromium
def test_other_sites_cannot_decide(browser, server, workdir):
    page = browser.open("data:text/html,<title>evil</title>")
    page.wait("document.readyState === 'complete'")
    body = json.dumps(json.dumps({"index": 0, "decision": "yes"}))
    page.value(f"fetch('{server.url}decide', {{method: 'POST', mode: 'no-cors', body: {body}}}).catch(() => null)")
    sent = [event["request"]["method"] for event in page.of_kind("Network.requestWillBeSent")]
    assert "POST" in sent
    assert decided(workdir) == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_or_scrolls_sideways(browser, tmp_path, width):
    long = "w" * 3_000
    workdir = write(tmp_path, [row(0, f"{long} {RTL}", class_name="c" * 300, nearest_positive_text=long)])
    with served(workdir) as server:
        page = browser.open(server.url, width, 800)
        page.wait(IDLE)
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("document.getElementById('text').scrollWidth <= document.getElementById('text').clientWidth")
        # The buttons are in sight without scrolling.
        assert page.value("document.getElementById('back').getBoundingClientRect().bottom") < 800


@needs_chromium
def test_the_question_names_all_classes_as_a_positive_of_any_is_no_negative(browser, tmp_path):
    rows = [
        row(0, "a", class_name="armed_assault"),
        row(1, "b", nearest_positive_text=None, nearest_positive_class=None),
    ]
    with served(write(tmp_path, rows)) as server:
        page = browser.open(server.url)
        page.wait(IDLE)
        assert page.text("question") == "Is this a positive, a tweet of armed_assault, traffic?"
        assert page.text("facts").split("\n")[:2] == ["Found for", "armed_assault"]
        assert page.text("positive") == "The nearest positive, of class traffic, cosine 0.713"
        press(page, "y")
        assert page.text("facts").split("\n")[:2] == ["Found for", "traffic"]
        assert page.text("positive-card") == ""
