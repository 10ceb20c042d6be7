"""A mirror on this machine that misbehaves on demand."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Answer:
    """One request to the mirror: what was asked for, and the means to answer it well or badly."""

    def __init__(
        self, handler: http.server.BaseHTTPRequestHandler, data: bytes, closing: threading.Event
    ) -> None:
        self.handler, self.data, self.closing = handler, data, closing
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        self.start = int(match[1]) if match else 0

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def well(self, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        """Answer as a good server does, though with `body` and `headers` where they are given."""
        rest = self.data[self.start :]
        right = {"Content-Type": "application/x-gzip", "Content-Length": str(len(rest))}
        if self.start:
            right["Content-Range"] = f"bytes {self.start}-{len(self.data) - 1}/{len(self.data)}"
        self.send(206 if self.start else 200, right | (headers or {}), rest if body is None else body)

    def wait(self, seconds: float) -> None:
        self.closing.wait(seconds)


Behaviour = Callable[[Answer], None]


def good(answer: Answer) -> None:
    answer.well()


def cut(n: int) -> Behaviour:
    """Close the connection after n bytes."""
    return lambda answer: answer.well(answer.data[answer.start : answer.start + n])


def stall(n: int) -> Behaviour:
    """Send n bytes, then nothing more while the connection stays open."""

    def behave(answer: Answer) -> None:
        answer.well(answer.data[answer.start : answer.start + n])
        answer.wait(60)

    return behave


def trickle(n: int, seconds: float) -> Behaviour:
    """Send n bytes at a time with a pause after each."""

    def behave(answer: Answer) -> None:
        answer.well(b"")
        for i in range(answer.start, len(answer.data), n):
            answer.handler.wfile.write(answer.data[i : i + n])
            answer.handler.wfile.flush()
            if answer.closing.wait(seconds):
                return

    return behave


def lying_length(change: int) -> Behaviour:
    """Announce another length than is right."""
    return lambda answer: answer.well(
        headers={"Content-Length": str(len(answer.data) - answer.start + change)}
    )


def without_length(extra: bytes) -> Behaviour:
    """Announce no length, and send `extra` after the archive."""

    def behave(answer: Answer) -> None:
        answer.send(200, {"Content-Type": "application/x-gzip"}, answer.data + extra)

    return behave


def ignoring_range(answer: Answer) -> None:
    answer.start = 0
    answer.well()


def refusing_range(answer: Answer) -> None:
    if answer.start:
        answer.send(416, {"Content-Length": "0"}, b"")
    else:
        answer.well()


def wrong_content_range(answer: Answer) -> None:
    """Answer a range with another one."""
    if answer.start:
        end = len(answer.data) - 1
        answer.send(
            206, {"Content-Range": f"bytes 0-{end}/{end + 1}", "Content-Length": str(end + 1)}, answer.data
        )
    else:
        answer.well()


def html(answer: Answer) -> None:
    page = b"<html>Log in to go on</html>"
    answer.send(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(page))}, page)


def html_in_disguise(answer: Answer) -> None:
    """A page that says it is an archive of the right length."""
    answer.well(b"<html>".ljust(len(answer.data))[answer.start :])


def flipped(answer: Answer) -> None:
    """The right length, one bit wrong, far from the beginning."""
    data = bytearray(answer.data)
    data[len(data) // 2] ^= 1
    answer.data = bytes(data)
    answer.well()


def failing(status: int) -> Behaviour:
    return lambda answer: answer.send(status, {"Content-Length": "0"}, b"")


def redirecting(url: str) -> Behaviour:
    return lambda answer: answer.send(302, {"Location": url, "Content-Length": "0"}, b"")


class Mirror:
    """A server on this machine. `requests` lists (path, Range or None); `behaviours` answer them one by one,
    the last one for ever."""

    def __init__(self, url: str, content: dict[str, bytes]) -> None:
        self.url, self.content = url, content
        self.requests: list[tuple[str, str | None]] = []
        self.behaviours: list[Behaviour] = [good]

    def behaves(self, *behaviours: Behaviour) -> Mirror:
        self.behaviours = list(behaviours)
        return self


@contextmanager
def serving(content: dict[str, bytes], certificate: Path | None = None) -> Iterator[Mirror]:
    """A mirror of `content`, by file name, while the block runs; by https if there is a certificate (with its key)."""
    closing, lock = threading.Event(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                mirror.requests.append((self.path, self.headers.get("Range")))
                first = len(mirror.behaviours) > 1
                behave = mirror.behaviours.pop(0) if first else mirror.behaviours[0]
            with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up, as it should
                behave(Answer(self, content[self.path.lstrip("/")], closing))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror = Mirror(f"http://127.0.0.1:{server.server_port}", content)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            mirror.url = f"https://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield mirror
        finally:
            closing.set()
            server.shutdown()
            thread.join()
