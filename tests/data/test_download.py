"""Fetching from mirrors that cut, stall, lie, ignore what they are asked and serve web pages."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mirror as mirrors
import numpy as np
import pytest
from mirror import Mirror, cut, failing, flipped, good, html, html_in_disguise, lying_length, serving, stall
from small_cifar import PYTHON, SmallData, archive_of

from cifarlab.data import open_source, sources
from cifarlab.data.download import fetch, make_opener
from cifarlab.data.official import OFFICIAL
from cifarlab.errors import UserError
from cifarlab.files import cache_dir

NAME, OTHER_NAME = "archive.tar.gz", "other.tar.gz"
DATA = b"\x1f\x8b" + random.Random(1).randbytes(200_000)
OTHER_DATA = b"\x1f\x8b" + random.Random(2).randbytes(150_000)
HALF = 100_000


@pytest.fixture(autouse=True)
def on_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CIFARLAB_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def first() -> Iterator[Mirror]:
    with serving({NAME: DATA, OTHER_NAME: OTHER_DATA}) as server:
        yield server


@pytest.fixture
def second() -> Iterator[Mirror]:
    with serving({NAME: DATA, OTHER_NAME: OTHER_DATA}) as server:
        yield server


def get(folder: Path, *servers: Mirror, stall_seconds: float = 20.0, progress=None) -> Path:
    archive = archive_of(NAME, DATA, tuple(server.url for server in servers))
    return fetch("CIFAR-10", [archive], folder, progress, make_opener(["http"]), stall_seconds)


def assert_fetched(folder: Path) -> None:
    assert (folder / NAME).read_bytes() == DATA
    assert sorted(path.name for path in folder.iterdir()) == [".download.lock", NAME]


def failure(folder: Path, *servers: Mirror, stall_seconds: float = 20.0) -> str:
    with pytest.raises(UserError) as caught:
        get(folder, *servers, stall_seconds=stall_seconds)
    assert not (folder / NAME).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- all is well ---


def test_an_archive_is_fetched_with_progress(tmp_path, first):
    seen = []
    path = get(tmp_path, first, progress=lambda *step: seen.append(step))
    assert path == tmp_path / NAME
    assert_fetched(tmp_path)
    assert first.requests == [(f"/{NAME}", None)]
    done = [step[0] for step in seen]
    assert done == sorted(done) and done[-1] == len(DATA) and len(done) > 2
    assert {step[1:] for step in seen} == {(len(DATA), "127.0.0.1")}


def test_what_is_there_is_not_fetched_again(tmp_path, first):
    for _ in range(2):
        get(tmp_path, first)
    assert len(first.requests) == 1


def test_a_length_need_not_be_announced(tmp_path, first):
    get(tmp_path, first.behaves(mirrors.without_length(b"")))
    assert_fetched(tmp_path)


# --- going on ---


def test_what_was_cut_off_goes_on_at_the_next_mirror(tmp_path, first, second):
    get(tmp_path, first.behaves(cut(HALF)), second)
    assert_fetched(tmp_path)
    assert second.requests == [(f"/{NAME}", f"bytes={HALF}-")]


def test_a_mirror_that_cuts_again_and_again_is_gone_on_with(tmp_path, first):
    get(tmp_path, first.behaves(cut(90_000), cut(90_000), good))
    assert_fetched(tmp_path)
    assert [wanted for _, wanted in first.requests] == [None, "bytes=90000-", "bytes=180000-"]


def test_a_later_call_goes_on_where_the_first_one_failed(tmp_path, first):
    assert f"({HALF:,} bytes are kept" in failure(tmp_path, first.behaves(cut(HALF), failing(500)))
    first.requests.clear()
    get(tmp_path, first.behaves(good))
    assert_fetched(tmp_path)
    assert first.requests == [(f"/{NAME}", f"bytes={HALF}-")]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cifarlab.data.download import fetch, make_opener
from small_cifar import archive_of
import test_download as t
archive = archive_of(t.NAME, t.DATA, tuple(sys.argv[3:]))
print(fetch("CIFAR-10", [archive], Path(sys.argv[2]), None, make_opener(["http"])))
"""


def in_another_process(folder: Path, *servers: Mirror) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(Path(__file__).parent),
        str(folder),
        *(s.url for s in servers),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_later_process_goes_on_where_a_killed_one_was(tmp_path, first):
    part = tmp_path / f"{NAME}.part"
    process = in_another_process(tmp_path, first.behaves(stall(HALF), good))
    wait_until(lambda: part.exists() and part.stat().st_size == HALF)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / NAME).exists()
    get(tmp_path, first)
    assert_fetched(tmp_path)
    assert first.requests[1] == (f"/{NAME}", f"bytes={HALF}-")


def test_two_processes_at_once_fetch_it_once(tmp_path, first):
    first.behaves(mirrors.trickle(20_000, 0.15))
    processes = [in_another_process(tmp_path, first) for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert (out.strip(), errors) == (str(tmp_path / NAME), "")
    assert_fetched(tmp_path)
    assert len(first.requests) == 1


def test_the_one_that_waits_sees_how_far_the_other_is(tmp_path, first):
    first.behaves(mirrors.trickle(20_000, 0.1))
    part = tmp_path / f"{NAME}.part"
    thread = threading.Thread(target=get, args=(tmp_path, first))
    thread.start()
    wait_until(part.exists)
    seen = []
    get(tmp_path, first, progress=lambda *step: seen.append(step))
    thread.join()
    assert seen and {step[1:] for step in seen} == {(len(DATA), "another process")}
    assert len(first.requests) == 1


# --- mirrors that go wrong ---

BAD = {
    "stalls": (stall(1000), "stalled"),
    "stalls at once": (stall(0), "stalled"),
    "crawls": (mirrors.trickle(40, 0.05), "too slow"),
    "cuts": (cut(1000), "broke off after 3,000 bytes"),
    "cuts at once": (cut(0), "broke off after 0 bytes"),
    "announces too little": (lying_length(-1000), "offered 199,002 bytes instead of 200,002"),
    "announces too much": (lying_length(1000), "offered 201,002 bytes instead of 200,002"),
    "announces nothing and sends too much": (mirrors.without_length(b"more"), "sent more than 200,002 bytes"),
    "announces nothing and cuts": (
        lambda answer: answer.send(200, {}, answer.data[:1000]),
        "broke off after 1,000 bytes",
    ),
    "serves a web page": (html, "sent a web page"),
    "serves a web page in disguise": (html_in_disguise, "sent something else than the archive"),
    "flips a bit": (flipped, "sent other bytes"),
    "does not have it": (failing(404), "answered 404"),
    "is broken": (failing(503), "answered 503"),
    "redirects to nowhere": (mirrors.redirecting("http://127.0.0.1:1/a"), "Connection refused"),
    "redirects to a file": (mirrors.redirecting("file:///etc/passwd"), "answered 302"),
    "redirects in a circle": (mirrors.redirecting(f"/{NAME}"), "answered 302"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_mirror_is_left_for_the_next(tmp_path, first, second, what):
    get(tmp_path, first.behaves(BAD[what][0]), second, stall_seconds=0.8)
    assert_fetched(tmp_path)
    assert len(second.requests) in (1, 2)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_mirror_alone_ends_in_one_line_that_says_what_to_do(tmp_path, first, what):
    behaviour, why = BAD[what]
    message = failure(tmp_path, first.behaves(behaviour), stall_seconds=0.8)
    assert f"127.0.0.1: {why}" in message
    assert f"download {NAME} (200,002 bytes) from {first.url}/{NAME} and put it in {tmp_path}" in message
    assert "--data demo works now" in message


def test_a_stall_does_not_hold_for_longer_than_it_may(tmp_path, first):
    start = time.monotonic()
    failure(tmp_path, first.behaves(stall(10)), stall_seconds=0.3)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("behaviour", "asked"),
    [
        (mirrors.ignoring_range, [f"bytes={HALF}-"]),
        (mirrors.refusing_range, [f"bytes={HALF}-", None]),
        (mirrors.wrong_content_range, [f"bytes={HALF}-", None]),
    ],
)
def test_a_mirror_that_cannot_go_on_starts_again(tmp_path, first, second, behaviour, asked):
    get(tmp_path, first.behaves(cut(HALF)), second.behaves(behaviour))
    assert_fetched(tmp_path)
    assert [wanted for _, wanted in second.requests] == asked and len(first.requests) == 1


def test_starting_again_and_breaking_off_loses_nothing(tmp_path, first, second):
    def ignore_range_and_cut(answer):
        answer.start = 0
        answer.well(answer.data[:1000])

    (tmp_path / f"{NAME}.part").write_bytes(DATA[:HALF])
    failure(tmp_path, first.behaves(ignore_range_and_cut))
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:HALF]


@pytest.mark.parametrize("had", [b"\x1f\x8b" + b"wrong" * 100, b"x" * len(DATA), b"x" * (len(DATA) + 1)])
def test_an_unfinished_file_with_wrong_bytes_is_fetched_from_the_beginning(tmp_path, first, had):
    (tmp_path / f"{NAME}.part").write_bytes(had)
    get(tmp_path, first)
    assert_fetched(tmp_path)
    assert first.requests[-1] == (f"/{NAME}", None)


def test_wrong_bytes_are_not_kept_and_not_asked_for_again(tmp_path, first):
    failure(tmp_path, first.behaves(flipped))
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]
    assert len(first.requests) == 1


def test_a_mirror_with_wrong_bytes_is_not_tried_again_while_others_go_on(tmp_path, first, second):
    failure(tmp_path, first.behaves(flipped), second.behaves(cut(1000)))
    assert len(first.requests) == 1 and len(second.requests) == 3


def test_a_finished_unfinished_file_needs_no_mirror(tmp_path, first):
    (tmp_path / f"{NAME}.part").write_bytes(DATA)
    get(tmp_path, first)
    assert_fetched(tmp_path)
    assert first.requests == []


def test_a_wrong_file_of_the_final_name_is_replaced(tmp_path, first):
    (tmp_path / NAME).write_bytes(b"x" * len(DATA))
    get(tmp_path, first)
    assert_fetched(tmp_path)


# --- two archives ---


def get_either(folder: Path, *servers: Mirror) -> Path:
    hosts = tuple(server.url for server in servers)
    archives = [archive_of(NAME, DATA, hosts), archive_of(OTHER_NAME, OTHER_DATA, hosts)]
    return fetch("CIFAR-10", archives, folder, None, make_opener(["http"]), 20.0)


def test_the_other_archive_serves_where_the_first_cannot_be_had(tmp_path, first):
    def only_the_other(answer):
        failing(404)(answer) if answer.data == DATA else answer.well()

    assert get_either(tmp_path, first.behaves(only_the_other)) == tmp_path / OTHER_NAME
    assert (tmp_path / OTHER_NAME).read_bytes() == OTHER_DATA


def test_what_was_begun_is_finished_first_and_the_rest_is_cleared_away(tmp_path, first):
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:10])
    (tmp_path / f"{OTHER_NAME}.part").write_bytes(OTHER_DATA[:HALF])
    assert get_either(tmp_path, first) == tmp_path / OTHER_NAME
    assert first.requests == [(f"/{OTHER_NAME}", f"bytes={HALF}-")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download.lock", OTHER_NAME]


# --- https ---


def test_the_program_itself_speaks_https_alone(tmp_path, first):
    with pytest.raises(UserError, match="unknown url type: http"):
        fetch("CIFAR-10", [archive_of(NAME, DATA, (first.url,))], tmp_path)
    assert first.requests == []
    layouts = [layout for dataset in OFFICIAL.values() for layout in dataset.layouts]
    files = [file for layout in layouts for file in (layout.archive, *layout.downloads) if file is not None]
    assert len(files) == 8  # CIFAR-100's two stand for fine and for coarse labels
    assert all(url.startswith("https://") and file.sha256 for file in files for url in file.urls)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", str(path) + ".crt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    path.write_text(path.read_text() + Path(str(path) + ".crt").read_text())
    return path


def test_https_is_verified_and_never_left_for_http(tmp_path, first, certificate):
    trusting = ssl.create_default_context(cafile=certificate)
    with serving({NAME: DATA}, certificate) as safe:
        archive = archive_of(NAME, DATA, (safe.url,))

        def attempt(context: ssl.SSLContext | None) -> Path:
            return fetch("CIFAR-10", [archive], tmp_path, None, make_opener(context=context), 20.0)

        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            attempt(None)
        safe.behaves(mirrors.redirecting(f"{first.url}/{NAME}"))
        with pytest.raises(UserError, match=r"redirects to http://.*, which is not https"):
            attempt(trusting)
        assert first.requests == []
        safe.behaves(mirrors.redirecting(f"{safe.url}/{NAME}"), good)
        assert attempt(trusting).read_bytes() == DATA


# --- the disk ---


def test_a_full_disk_is_one_line_and_the_part_is_kept(tmp_path, first):
    """A limit on the size of files stands for the full disk: the kernel refuses the same `write`."""
    limited = SCRIPT.replace(
        "print(",
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "print(",
    )
    command = [sys.executable, "-c", limited, str(Path(__file__).parent), str(tmp_path), first.url]
    errors = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    last = errors.strip().splitlines()[-1]
    assert f"UserError: cannot write {tmp_path / NAME}.part: File too large; the 100,000 bytes" in last
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:100_000]
    assert len(first.requests) == 1  # it is no fault of the mirror
    get(tmp_path, first)
    assert_fetched(tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, first):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^cannot write to ") as caught:
        get(tmp_path / "file" / "cache", first)
    assert "\n" not in str(caught.value) and first.requests == []


# --- from the outside ---


@pytest.fixture
def fetchable(monkeypatch) -> Iterator[tuple[SmallData, Mirror]]:
    """The small data set in CIFAR-10's place, its mirror on this machine."""
    small = SmallData()
    with ExitStack() as stack:
        server = stack.enter_context(
            serving({"cifar-10-python.tar.gz": small.archives[PYTHON], "cifar-10-binary.tar.gz": b"none"})
        )
        monkeypatch.setitem(sources.DATASETS, "cifar10", small.described((server.url,)))
        monkeypatch.setattr("cifarlab.data.download.make_opener", lambda: make_opener(["http"]))
        yield small, server


def test_open_source_fetches_what_is_not_there_and_only_once(fetchable):
    small, server = fetchable
    seen = []
    source = open_source("cifar10", progress=lambda *step: seen.append(step))
    assert seen[-1] == (len(small.archives[PYTHON]), len(small.archives[PYTHON]), "127.0.0.1")
    assert source.location == str(cache_dir() / "cifar-10-python.tar.gz")
    for again in (source, open_source("cifar10")):
        assert np.array_equal(again.load("train").images, small.images[:40])
        assert np.array_equal(again.load("test").labels, small.labels[40:])
    assert len(server.requests) == 1


def test_a_named_folder_never_leads_to_the_network(fetchable, tmp_path, monkeypatch):
    with pytest.raises(UserError):
        open_source("cifar10", tmp_path)
    monkeypatch.setenv("CIFARLAB_DATA", str(tmp_path))
    with pytest.raises(UserError):
        open_source("cifar10")
    assert fetchable[1].requests == []


def test_what_was_fetched_and_then_damaged_is_fetched_again(fetchable):
    small, server = fetchable
    source = open_source("cifar10")
    archive = cache_dir() / "cifar-10-python.tar.gz"
    os.truncate(archive, 1000)
    assert np.array_equal(source.load("train").images, small.images[:40])
    assert archive.read_bytes() == small.archives[PYTHON] and len(server.requests) == 2


def test_without_a_network_there_is_one_message_and_it_says_what_to_do(monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    with pytest.raises(UserError) as caught:
        open_source("cifar10")
    message = str(caught.value)
    assert "\n" not in message
    assert "zenodo.org: Temporary failure in name resolution" in message
    assert "download cifar-10-python.tar.gz (170,498,071 bytes) from https://zenodo.org/" in message
    assert f"put it in {cache_dir()}" in message and "--data demo works now" in message
