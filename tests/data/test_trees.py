"""Files in folders and zips: links, permissions, and archives that are not what they should be."""

import os
import shutil
import stat
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
from picture_files import encoded, make, pixels, said_to_be_encrypted, write_zip, zipped

from cifarlab.data import trees
from cifarlab.data.trees import open_folder, open_tree, open_zip
from cifarlab.errors import UserError

NOBODY = 65534


def refusal(do, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        do(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders ---


def test_loops_of_links_end(tmp_path):
    make(tmp_path / "x", "cat/1.png", "dog/1.png")
    for link, target in (("cat/up", ".."), ("dog/cats", "../cat"), ("dog/self", "self"), ("out", "../..")):
        (tmp_path / "x" / link).symlink_to(target)
    tree = open_folder(tmp_path / "x")
    assert tree.names == ("cat/1.png", "dog/1.png") and tree.folders == ("cat", "dog")
    assert dict(tree.left_out) == {
        "cat/up": "a link to a folder that is listed already",
        "dog/cats": "a link to a folder that is listed already",
        "dog/self": "a link that leads nowhere",
        "out": "a link to a folder that holds this one",
    }


def test_links_to_what_lies_elsewhere_are_followed_once(tmp_path):
    make(tmp_path, "pool/a/1.png", "pool/a/2.png", "x/dog/1.png")
    (tmp_path / "x" / "cat").symlink_to("../pool/a")
    (tmp_path / "x" / "tom").symlink_to("../pool/a")
    (tmp_path / "x" / "dog" / "2.png").symlink_to("../../pool/a/2.png")
    tree = open_folder(tmp_path / "x")
    assert tree.names == ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    assert [name for name, _ in tree.left_out] == ["tom"]
    assert tree.read("dog/2.png") == (tmp_path / "pool/a/2.png").read_bytes()


@pytest.mark.parametrize("name", ["broken.png", "round.png", "folder.png", "pipe.png"])
def test_what_is_no_file_cannot_be_read(tmp_path, name):
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    tree = open_folder(tmp_path)
    assert refusal(tree.read, name).startswith(f"{name} cannot be read: ")


def test_files_and_folders_without_permission():
    folder = Path(tempfile.mkdtemp())  # not tmp_path: the way to it is closed to others
    try:
        make(folder, "cat/1.png", "closed/1.png")
        folder.chmod(0o755)
        (folder / "cat/1.png").chmod(0)
        (folder / "closed").chmod(0)
        as_root = os.geteuid() == 0
        if as_root:
            os.seteuid(NOBODY)
        try:
            closed = refusal(open_folder, folder)
            unreadable = refusal(trees.Folder(folder).read, "cat/1.png")
        finally:
            if as_root:
                os.seteuid(0)
    finally:
        (folder / "closed").chmod(0o700)
        shutil.rmtree(folder)
    assert closed == f"cannot read the folder {folder}/closed: Permission denied"
    assert unreadable.startswith("cat/1.png cannot be read: ") and unreadable.endswith("Permission denied")


def test_names_that_are_not_text(tmp_path):
    stored = os.fsencode(make(tmp_path, "cat/")) + b"/cat/caf\xe9.png"
    Path(os.fsdecode(stored)).write_bytes(b"bytes")
    tree = open_folder(tmp_path)
    assert tree.names == ("cat/caf\\xe9.png",)
    assert tree.read(tree.names[0]) == b"bytes" and tree.state(tree.names[0])[0] == 5


def test_the_state_of_a_file_changes_with_it(tmp_path):
    make(tmp_path, "1.png")
    tree = open_folder(tmp_path)
    before = tree.state("1.png")
    assert before == tree.state("1.png")
    (tmp_path / "1.png").write_bytes(b"other")
    assert tree.state("1.png") != before
    (tmp_path / "1.png").unlink()
    assert tree.state("1.png") == (0,)


# --- zip files ---


@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\cat\\evil.png"]
)
def test_names_that_lead_out_of_a_zip(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", **{"cat/1.png": b"x", name: b"x"})
    assert f"has a member whose name leads out of it: {name!r}" in refusal(open_zip, path)


def test_an_encrypted_zip(tmp_path):
    path = said_to_be_encrypted(write_zip(tmp_path / "a.zip", **{"cat/1.png": b"x" * 100}))
    assert refusal(open_zip, path) == f"{path} is encrypted (cat/1.png): make one without a password"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_zip_that_is_cut_short(tmp_path, share):
    path = zipped(make(tmp_path / "x", "cat/1.png", "dog/1.png"), tmp_path / "a.zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert f"{path} is damaged or cut short: not a whole zip" in refusal(open_tree, path)


def test_a_damaged_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", **{"cat/1.png": b"whole picture", "cat/2.png": b"another one"})
    path.write_bytes(path.read_bytes().replace(b"whole picture", b"wHole picture"))
    tree = open_zip(path)
    assert refusal(tree.read, "cat/1.png").startswith("cat/1.png cannot be read: Bad CRC-32")
    assert tree.read("cat/2.png") == b"another one"


def test_a_damaged_member_is_told_whatever_its_compression(tmp_path):
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = tmp_path / f"{compression}.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("1.png", bytes(range(256)) * 20)
        data = bytearray(path.read_bytes())
        data[40:80] = bytes(value ^ 0x5A for value in data[40:80])
        path.write_bytes(data)
        assert refusal(open_zip(path).read, "1.png").startswith("1.png cannot be read: ")


def test_a_member_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "LARGEST_FILE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/bomb.png", bytes(3 << 20))
    tree = open_zip(tmp_path / "a.zip")
    assert refusal(tree.read, "cat/bomb.png") == "cat/bomb.png is too large: 3 MiB; at most 1 MiB are read"


def test_a_zip_that_lies_about_a_length(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", **{"cat/1.png": b"x" * 1000})
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 24
    path.write_bytes(data[:at] + (10).to_bytes(4, "little") + data[at + 4 :])
    assert refusal(open_zip(path).read, "cat/1.png").startswith("cat/1.png cannot be read: ")


def test_names_as_programs_write_them(tmp_path):
    path = write_zip(
        tmp_path / "a.zip", **{"dog\\windows.png": b"1", "./dog//dots.png": b"2", "XXX/1.png": b"3"}
    )
    path.write_bytes(path.read_bytes().replace(b"XXX", "犬".encode()))  # UTF-8 without its flag
    tree = open_zip(path)
    assert tree.names == ("dog/dots.png", "dog/windows.png", "犬/1.png") and tree.folders == ("dog", "犬")
    assert [tree.read(name) for name in tree.names] == [b"2", b"1", b"3"]


def test_the_root_is_no_folder_of_a_zip(tmp_path):
    """As bsdtar writes it: `tar -a -cf a.zip .`."""
    names = ("./", "./photos/", "./photos/cat/1.png", "./photos/dog/1.png", ".")
    tree = open_zip(write_zip(tmp_path / "a.zip", **dict.fromkeys(names, b"")))
    assert tree.names == ("photos/cat/1.png", "photos/dog/1.png")
    assert tree.folders == ("photos", "photos/cat", "photos/dog")


def test_links_in_a_zip_are_left_out(tmp_path):
    link = zipfile.ZipInfo("cat/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("cat/1.png", b"x")
    tree = open_zip(tmp_path / "a.zip")
    assert tree.names == ("cat/1.png",) and tree.left_out == (("cat/link.png", "a link within a zip"),)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_zip_is_read_by_threads_and_by_forked_processes_at_once(tmp_path):
    contents = {f"cat/{n}.png": encoded(pixels(n, 60, 60)) for n in range(40)}
    tree = open_zip(write_zip(tmp_path / "a.zip", **contents))
    assert tree.read("cat/0.png") == contents["cat/0.png"]  # open before the fork
    wrong: list[str] = []

    def read_all() -> None:
        wrong.extend(name for name in contents for _ in range(3) if tree.read(name) != contents[name])

    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            read_all()
            os._exit(len(wrong))
        children.append(child)
    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0] and wrong == []
