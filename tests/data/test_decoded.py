"""Decoding to the cache: what is in it, when it is used again, and when it is made anew."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.drawn_pictures import draw, write_folder

from cifarlab.cli import main
from cifarlab.data import decoded as module
from cifarlab.data import decoding
from cifarlab.data.decoded import Decoded, decode, find_decoded
from cifarlab.data.decoding import Work
from cifarlab.data.listing import Entry, list_pictures
from cifarlab.errors import UserError
from cifarlab.files import cache_dir
from cifarlab.pictures import read_picture

FITS = ("squash", "crop", "letterbox")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir() / "pictures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "flowers", {"rose": 5, "tulip": 4})


def _decode(folder: Path, size: int = 32, fit="squash") -> tuple[Decoded, int]:
    """What was decoded, and how many pictures were decoded for it."""
    calls = []
    result = decode(list_pictures(folder), size, fit, lambda done, total: calls.append((done, total)))
    assert all(total == len(result.pixels) for _, total in calls)
    return result, calls[-1][0] if calls else 0


def test_another_process_may_be_faster(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same pictures elsewhere: its cache appears between looking for it and renaming ours to it."""
    _decode(folder)
    shutil.copytree(folder, folder.with_name("copy"))
    (content,) = (path for path in cache.iterdir() if path.is_dir())
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **how: path != content and exists(path, **how))
    assert len(_decode(folder.with_name("copy"))[0].pixels) == 9
    assert not list(cache.glob(".*.tmp"))


@pytest.mark.parametrize("fit", FITS)
def test_every_picture_is_what_prediction_would_read(folder: Path, fit) -> None:
    result, _ = _decode(folder, 48, fit)
    names = [entry.name for entry in list_pictures(folder).entries]
    assert result.pixels.shape == (9, 48, 48, 3) and not result.pixels.flags.writeable
    for pixels, name, sha256 in zip(result.pixels, names, result.sha256, strict=True):
        assert np.array_equal(pixels, read_picture(folder / name, 48, 48, fit))
        assert sha256.tobytes() == hashlib.sha256((folder / name).read_bytes()).digest()
    assert result.sizes.tolist() == [[40, 30]] * 9 and set(result.modes) == {"RGB"} and result.reasons == {}


def test_fits_differ_in_what_they_show(folder: Path) -> None:
    letterbox = _decode(folder, 32, "letterbox")[0].pixels
    assert (letterbox[:, :4] == 128).all() and (letterbox[:, -4:] == 128).all()
    assert not (letterbox[:, 5:-5] == 128).all(axis=3).any(axis=(1, 2)).any()
    picture = draw(0)
    middle = np.asarray(picture.crop((5, 0, 35, 30)).resize((32, 32), 2)).astype(int)
    assert np.abs(_decode(folder, 32, "crop")[0].pixels[0] - middle).max() <= 2


def test_the_second_time_nothing_is_decoded(folder: Path) -> None:
    first, n = _decode(folder)
    again, none = _decode(folder)
    assert (n, none) == (9, 0) and np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.groups, again.groups) and find_decoded(list_pictures(folder), 32, "squash")
    assert find_decoded(list_pictures(folder), 32, "crop") is None
    assert _decode(folder, 33)[1] == _decode(folder, 32, "crop")[1] == 9


def test_a_changed_file_is_noticed_and_a_copied_folder_shares_its_cache(folder: Path, cache: Path) -> None:
    _decode(folder)
    caches = {path.name for path in cache.iterdir() if path.is_dir()}
    copy = shutil.copytree(folder, folder.parent / "copy")
    assert _decode(copy)[1] == 9 and {path.name for path in cache.iterdir() if path.is_dir()} == caches
    changed = folder / "rose" / "001.png"
    draw(99).save(changed)
    result, n = _decode(folder)
    assert n == 9 and np.array_equal(result.pixels[1], read_picture(changed, 32, 32))


@pytest.mark.parametrize("what", ["pixels flipped", "pixels short", "table", "gone"])
def test_a_damaged_cache_is_made_again(folder: Path, cache: Path, what: str) -> None:
    right = _decode(folder)[0].pixels.copy()
    (place,) = (path for path in cache.iterdir() if path.is_dir())
    file = place / ("table.npz" if what == "table" else "pixels.npy")
    content = bytearray(file.read_bytes())
    if what == "gone":
        file.unlink()
    elif what == "pixels short":
        file.write_bytes(content[:-5000])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    result, n = _decode(folder)
    assert n == 9 and np.array_equal(result.pixels, right)


def test_an_unreadable_picture_has_a_reason_and_its_place(folder: Path) -> None:
    (folder / "rose" / "001.png").write_bytes(b"")
    (folder / "tulip" / "000.png").write_bytes((folder / "tulip" / "001.png").read_bytes()[:200])
    (folder / "tulip" / "002.png").write_text("no picture")
    result, _ = _decode(folder)
    assert result.reasons[1] == "is empty (0 bytes)"
    assert result.reasons[5].startswith("is damaged or cut short: not a whole PNG")
    assert result.reasons[7].startswith("is not a picture that can be read")
    assert set(result.reasons) == {1, 5, 7} and not result.pixels[[1, 5, 7]].any()
    assert len(set(result.groups[[1, 5, 7]].tolist())) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_tried_again(folder: Path) -> None:
    file = folder / "rose" / "001.png"
    file.chmod(0)
    assert set(_decode(folder)[0].reasons) == {1}
    file.chmod(0o600)
    assert _decode(folder)[0].reasons == {}


def test_a_file_that_is_gone_meanwhile_is_unreadable_and_tried_again(folder: Path) -> None:
    listing, file = list_pictures(folder), folder / "rose" / "001.png"
    content = file.read_bytes()
    file.unlink()
    assert set(decode(listing, 32, "squash").reasons) == {1}
    file.write_bytes(content)
    assert decode(listing, 32, "squash").reasons == {}


def test_no_space_is_one_line_and_leaves_nothing(folder: Path, cache: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"9 pictures of 32x32 need 28 kB in .* free \(No space left on device\)"
    ):
        _decode(folder)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_system_that_takes_no_space_ahead_decodes_too(folder: Path, monkeypatch) -> None:
    """As macOS."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    result, n = _decode(folder)
    assert n == 9 and result.pixels.any(axis=(1, 2, 3)).all()


def test_processes_give_what_one_gives(folder: Path, cache: Path, monkeypatch) -> None:
    write_folder(folder / "more", {"a": 150, "b": 120})
    alone = _decode(folder)[0]
    shutil.rmtree(cache)
    monkeypatch.setattr(module, "WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    together, n = _decode(folder)
    assert n == len(alone.pixels) and np.array_equal(together.pixels, alone.pixels)
    assert np.array_equal(together.sha256, alone.sha256) and np.array_equal(together.groups, alone.groups)


def test_messages_larger_than_a_pipe_holds_stop_nobody(folder: Path, monkeypatch) -> None:
    """Long names, and as many long reasons why they cannot be read."""
    listing = list_pictures(folder)
    long = tuple(Entry(f"{'a' * 200}/" * 18 + f"{place}.png", 0, None) for place in range(1_000))
    monkeypatch.setattr(module, "WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    assert len(decode(replace(listing, entries=long), 32, "squash").reasons) == 1_000


def test_files_of_every_kind_side_by_side_are_what_prediction_would_read(folder: Path) -> None:
    for place in range(3):
        draw(place, 32, 32).save(folder / "rose" / f"small-{place}.png")
        draw(place, 32, 32).convert("L").save(folder / "rose" / f"grey-{place}.png")
        draw(place, 31, 32).save(folder / "tulip" / f"narrow-{place}.png")
        draw(place, 32, 32).save(folder / "tulip" / f"lossy-{place}.jpg")
    (folder / "rose" / "grey-1.png").write_bytes((folder / "rose" / "grey-1.png").read_bytes()[:80])
    result, _ = _decode(folder)
    names = [entry.name for entry in list_pictures(folder).entries]
    unreadable = names.index("rose/grey-1.png")
    assert set(result.reasons) == {unreadable} and not result.pixels[unreadable].any()
    for place, (pixels, name) in enumerate(zip(result.pixels, names, strict=True)):
        if place != unreadable:
            assert np.array_equal(pixels, read_picture(folder / name, 32, 32))
            with Image.open(folder / name) as image:
                assert (*result.sizes[place], result.modes[place]) == (*image.size, image.mode)


SLOWLY = """
import sys, time, pathlib
from cifarlab.data import decoded
from cifarlab.data.listing import list_pictures
def progress(done, total):
    print("decoding", done, flush=True)
    time.sleep(float(sys.argv[2]))
decoded.BLOCK = 2
decoded.decode(list_pictures(pathlib.Path(sys.argv[1])), 32, "squash", progress)
print("done", flush=True)
"""


def _start(folder: Path, pause_seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWLY, str(folder), str(pause_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_decode_once_and_a_killed_one_is_taken_over(folder: Path, cache: Path) -> None:
    first = _start(folder, 30)
    assert first.stdout is not None and first.stdout.readline() == "decoding 2\n"
    second = _start(folder, 0)
    first.send_signal(signal.SIGKILL)
    first.wait()
    output, _ = second.communicate(timeout=60)
    first.stdout.close()
    assert output.startswith("decoding 2\n") and output.endswith("done\n")
    third = _start(folder, 0)
    assert third.communicate(timeout=60)[0] == "done\n"
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("worker", ["import os; os._exit(1)", "DIES_LATER"])
def test_a_process_that_dies_is_one_line_and_leaves_nothing(folder, cache, monkeypatch, worker: str) -> None:
    later = decoding.WORKER.replace(
        "serve(link)", "link.recv(); link.recv(); import os; os.kill(os.getpid(), 9)"
    )
    monkeypatch.setattr(decoding, "WORKER", later if worker == "DIES_LATER" else worker)
    monkeypatch.setattr(module, "WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module, "BLOCK", 2)
    with pytest.raises(UserError, match="a process that decoded pictures was ended from outside"):
        _decode(folder)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_what_a_process_cannot_write_is_said(folder: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(module, "Work", lambda *parts: Work(*parts[:3], cache / "no" / "folder", parts[4]))
    with pytest.raises(UserError, match=r"cannot write .*/no/folder: No such file"):
        _decode(folder)


IN_PROCESSES = """
import sys, time, pathlib
from cifarlab.data import decoded
from cifarlab.data.listing import list_pictures
print("begun", flush=True)
decoded.BLOCK, decoded.WORTH_PROCESSES_BYTES, decoded.available_cores = 2, 0, lambda: 2
def progress(done, total):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[2]))
decoded.decode(list_pictures(pathlib.Path(sys.argv[1])), 32, "squash", progress)
print("done", flush=True)
"""


def test_a_script_without_a_guard_runs_once(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_PROCESSES)
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    command = [sys.executable, "-P", script, folder, "0"]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout.split()
    assert lines == ["begun", *["decoding"] * 5, "done"]


def test_control_c_ends_the_processes_and_leaves_nothing(folder: Path, cache: Path) -> None:
    command = [sys.executable, "-c", IN_PROCESSES, str(folder), "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stdout and asking.stdout.readline() == "begun\n"
        assert asking.stdout.readline() == "decoding\n"
        children = Path(f"/proc/{asking.pid}/task/{asking.pid}/children")
        started = children.read_text().split() if children.exists() else []
        asking.send_signal(signal.SIGINT)
        output, error = asking.communicate(timeout=10)
    assert output == "" and error.rstrip().endswith("KeyboardInterrupt")
    assert not any(Path(f"/proc/{number}").exists() for number in started)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def _caches(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_the_oldest_caches_go_and_those_in_use_stay(folder: Path, cache: Path, monkeypatch) -> None:
    in_use = _decode(folder, 32)[0]
    held = _caches(cache)
    assert _decode(folder, 33)[1] == 9
    _decode(folder, 34)
    oldest = _decode(folder, 33)  # used again, so that the one of 34 pixels is the oldest that is free
    assert oldest[1] == 0
    del oldest
    left_by_a_killed_one = cache / f".{'0' * 40}.tmp"
    left_by_a_killed_one.mkdir()
    before = _caches(cache)
    one = in_use.pixels.nbytes * 40**2 // 32**2
    monkeypatch.setenv("CIFARLAB_CACHE_GB", str(3 * one / 1e9))
    _decode(folder, 35)
    stayed = _caches(cache) & before
    assert held < stayed and len(stayed) == 2 and not left_by_a_killed_one.exists()
    assert _decode(folder, 33)[1] == 0 and _decode(folder, 34)[1] == 9
    monkeypatch.setenv("CIFARLAB_CACHE_GB", "0")
    _decode(folder, 36)
    assert held <= _caches(cache) and len(_caches(cache)) == 2
    assert np.array_equal(in_use.pixels, _decode(folder, 32)[0].pixels)
    del in_use
    module.clear_cache()
    assert not _caches(cache) and not list(cache.glob("*.known"))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0", b"x" * 5000])
def test_a_damaged_note_goes_and_stops_nobody(folder: Path, cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    note = cache / f"{'0' * 40}.known"
    note.write_bytes(content)
    assert _decode(folder)[1] == 9
    assert not note.exists()


@pytest.mark.parametrize("limit", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_one_line(folder: Path, monkeypatch, limit: str) -> None:
    monkeypatch.setenv("CIFARLAB_CACHE_GB", limit)
    with pytest.raises(UserError, match="CIFARLAB_CACHE_GB is '.*'; a number of gigabytes is needed"):
        _decode(folder)


def test_the_command_clears_the_cache(folder: Path, cache: Path, capsys) -> None:
    _decode(folder)
    assert main(["data", "--clear-cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 9 * 32 * 32 * 3
    assert not _caches(cache)
    assert main(["data", "--clear-cache"]) == 0 and "removed decoded pictures: 0" in capsys.readouterr().out
