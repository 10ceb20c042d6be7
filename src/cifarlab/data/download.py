"""Fetching an official archive from whichever mirror answers, going on where an earlier attempt stopped.

No mirror is trusted: a checksum pinned in the source decides, and the archive takes its name only after it
holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cifarlab.data.cifar import Archive
from cifarlab.errors import UserError
from cifarlab.files import opened_for_update, sha256_of, sync_folder, write_all

Progress = Callable[[int, int | None, str], None]

STALL_SECONDS = 20.0
# A mirror slower than this is left for another one, at first: 170 MB would take an hour. In the last rounds
# nothing better is left, and only what hardly moves is given up.
SLOW_BYTES_PER_SECOND = (50_000, 1_000, 1_000)
CHUNK_BYTES = 1 << 16


class _Interrupted(Exception):
    """This transfer broke off; the mirror may do better another time."""


class _Refused(Exception):
    """This mirror does not have the archive."""


def fetch(
    title: str,
    archives: Sequence[Archive],
    folder: Path,
    progress: Progress | None = None,
    opener: urllib.request.OpenerDirector | None = None,
    stall_seconds: float = STALL_SECONDS,
    remedy: str = "--data demo works now, without a download",
) -> Path:
    """Fetch one of `archives`, whichever can be had, into `folder` and return its path.

    An unfinished archive is kept as NAME.part, and whichever mirror of that archive answers next goes on with
    it, in this process or a later one. A second process waits, and finds what the first one fetched.
    `progress(done_bytes, total_bytes, host)` is called as bytes arrive.
    Raises UserError if no mirror could give the archive, with `remedy` as another way out, or it cannot be written.
    """
    opener = opener or make_opener()
    progress = progress or (lambda done_bytes, total_bytes, host: None)
    with _only_one(folder, archives, progress):
        for archive in archives:
            if _is_whole(folder / archive.name, archive):
                return folder / archive.name
        # What was begun is finished first.
        mirrors = [(archive, url) for archive in archives for url in archive.urls]
        mirrors.sort(key=lambda mirror: -_size_bytes(_part(folder, mirror[0])))
        failures: dict[str, str] = {}
        for slow in SLOW_BYTES_PER_SECOND:
            before = _kept_bytes(folder, archives)
            for archive, url in list(mirrors):
                transfer = _Transfer(
                    archive, url, _part(folder, archive), opener, stall_seconds, slow, progress
                )
                try:
                    transfer.run()
                except (_Interrupted, OSError, http.client.HTTPException) as error:
                    failures[url] = _reason(error)
                except _Refused as error:
                    failures[url] = str(error)
                    mirrors.remove((archive, url))
                else:
                    return _finish(folder, archive, archives)
            if _kept_bytes(folder, archives) <= before:
                break
        kept = _kept_bytes(folder, archives)
    raise UserError(_failure(title, archives, folder, failures, kept, remedy))


def make_opener(
    schemes: Sequence[str] = ("https",), context: ssl.SSLContext | None = None
) -> urllib.request.OpenerDirector:
    """An opener for `schemes` alone, also where a mirror redirects; proxies are those of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPSHandler(context=context),
        _Redirects(schemes),
    ):
        opener.add_handler(handler)
    if "http" in schemes:
        opener.add_handler(urllib.request.HTTPHandler())
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, schemes: Sequence[str]) -> None:
        self._schemes = schemes

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in self._schemes:
            fp.close()
            raise urllib.error.URLError(f"redirects to {newurl}, which is not {self._schemes[0]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """One archive from one mirror into one .part file."""

    def __init__(
        self,
        archive: Archive,
        url: str,
        part: Path,
        opener: urllib.request.OpenerDirector,
        stall_seconds: float,
        slow_bytes_per_second: int,
        progress: Progress,
    ) -> None:
        self.archive, self.url, self.part, self.opener = archive, url, part, opener
        self.stall_seconds, self.slow_bytes_per_second = stall_seconds, slow_bytes_per_second
        self.progress = progress

    def run(self) -> None:
        """Complete the part and check it. Bytes that turn out wrong are deleted; if some of them were there
        before, they may be the wrong ones, and the mirror is asked once more from the beginning."""
        for _ in range(2):
            start = self._complete()
            if _has_its_checksum(self.part, self.archive):
                return
            self.part.unlink()
            if start == 0:
                break
        raise _Refused("sent other bytes than the official archive's")

    def _complete(self) -> int:
        """Fetch what the part lacks; the offset from which it was fetched."""
        had = _size_bytes(self.part)
        if had >= self.archive.size_bytes:
            return had
        response, start = self._open(had)
        with response:
            expected = self.archive.size_bytes - start
            if response.headers.get_content_type() == "text/html":
                raise _Refused("sent a web page instead of the archive")
            if response.length is not None and response.length != expected:
                raise _Refused(f"offered {response.length:,} bytes instead of {expected:,}")
            first = response.read1(CHUNK_BYTES)
            signature = self.archive.signature
            if start == 0 and first and not signature.startswith(first[: len(signature)]):
                raise _Refused("sent something else than the archive")
            self._write(response, start, first)
        return start

    def _open(self, had: int) -> tuple[http.client.HTTPResponse, int]:
        """A response, and the offset of its first byte: `had`, or 0 if the mirror cannot go on from there."""
        if had:
            try:
                response = self._request({"Range": f"bytes={had}-"})
            except urllib.error.HTTPError as error:
                if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                error.close()
            else:
                if response.status != http.client.PARTIAL_CONTENT:
                    return response, 0
                if self._goes_on_from(had, response):
                    return response, had
                response.close()
        return self._request({}), 0

    def _request(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        # Without `identity` a server may send the archive in another coding, of another length.
        headers = {"User-Agent": "cifarlab", "Accept-Encoding": "identity", **headers}
        return self.opener.open(urllib.request.Request(self.url, headers=headers), timeout=self.stall_seconds)

    def _goes_on_from(self, had: int, response: http.client.HTTPResponse) -> bool:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        return match is not None and int(match[1]) == had and match[2] in ("*", str(self.archive.size_bytes))

    def _write(self, response: http.client.HTTPResponse, start: int, chunk: bytes) -> None:
        """Write the response over the part from `start`: starting again never shortens what is there."""
        host, done = urlsplit(self.url).hostname or self.url, start
        since, since_bytes = time.monotonic(), start
        with opened_for_update(self.part) as descriptor:
            os.lseek(descriptor, start, os.SEEK_SET)
            while chunk:
                if done + len(chunk) > self.archive.size_bytes:
                    raise _Refused(f"sent more than {self.archive.size_bytes:,} bytes")
                self._write_chunk(descriptor, chunk, done)
                done += len(chunk)
                self.progress(done, self.archive.size_bytes, host)
                elapsed_seconds = time.monotonic() - since
                if elapsed_seconds > self.stall_seconds:
                    if done - since_bytes < self.slow_bytes_per_second * elapsed_seconds:
                        raise _Interrupted(f"too slow, {(done - since_bytes) / elapsed_seconds:,.0f} bytes/s")
                    since, since_bytes = time.monotonic(), done
                chunk = response.read1(CHUNK_BYTES)
            os.fsync(descriptor)
        if done < self.archive.size_bytes:
            raise _Interrupted(f"broke off after {done:,} bytes")

    def _write_chunk(self, descriptor: int, chunk: bytes, done: int) -> None:
        try:
            write_all(descriptor, chunk)
        except OSError as error:
            kept = _size_bytes(self.part)
            raise UserError(
                f"cannot write {self.part}: {error.strerror or error}; the {kept:,} bytes fetched so far "
                f"are kept: make room for {self.archive.size_bytes - done:,} more and run it again"
            ) from error


@contextmanager
def _only_one(folder: Path, archives: Sequence[Archive], progress: Progress) -> Iterator[None]:
    """Hold the lock on fetching; while another process holds it, show how far that one is."""
    lock = folder / ".download.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                begun = max(archives, key=lambda archive: _size_bytes(_part(folder, archive)))
                progress(_size_bytes(_part(folder, begun)), begun.size_bytes, "another process")
                time.sleep(0.2)
        yield


def _finish(folder: Path, archive: Archive, archives: Sequence[Archive]) -> Path:
    path = folder / archive.name
    _part(folder, archive).replace(path)
    for other in archives:
        _part(folder, other).unlink(missing_ok=True)
    sync_folder(folder)
    return path


def _part(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.name}.part"


def _kept_bytes(folder: Path, archives: Sequence[Archive]) -> int:
    return sum(_size_bytes(_part(folder, archive)) for archive in archives)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_whole(path: Path, archive: Archive) -> bool:
    return path.is_file() and _size_bytes(path) == archive.size_bytes and _has_its_checksum(path, archive)


def _has_its_checksum(path: Path, archive: Archive) -> bool:
    if archive.sha256 is not None:
        return sha256_of(path) == archive.sha256
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == archive.md5


def _reason(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return "stalled"
    if isinstance(error, http.client.HTTPException):
        return f"broke off ({type(error).__name__})"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)


def _failure(
    title: str,
    archives: Sequence[Archive],
    folder: Path,
    failures: dict[str, str],
    kept_bytes: int,
    remedy: str,
) -> str:
    tried = "; ".join(f"{urlsplit(url).hostname}: {why}" for url, why in failures.items())
    wanted = archives[0]
    kept = f" ({kept_bytes:,} bytes are kept, the next attempt goes on from there)" if kept_bytes else ""
    return (
        f"{title} could not be fetched{kept}: {tried}. To go on, download {wanted.name} "
        f"({wanted.size_bytes:,} bytes) from {wanted.urls[0]} and put it in {folder}; "
        f"{remedy}"
    )
