"""Picture files for tests. `python tests/data/picture_files.py FOLDER` makes a data set with every fault there is."""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Cat", "cat ", "犬", "🦊 fox", "owl")
PER_CLASS = 6


def pixels(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    """A smooth picture, uint8 (height, width, 3): one seed looks like no other, at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, format, **options)
    return file.getvalue()


def make(root: Path, *names: str) -> Path:
    """A folder with a picture under each name, all different, or an empty folder where a name ends with `/`."""
    for seed, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(seed, 8, 6)))
    return root


def zipped(folder: Path, path: Path) -> Path:
    """A zip of what is in `folder`."""
    with zipfile.ZipFile(path, "w") as archive:
        for inside in sorted(folder.rglob("*")):
            archive.write(inside, inside.relative_to(folder))
    return path


def write_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def said_to_be_encrypted(path: Path) -> Path:
    """A zip whose first member has the flag of that."""
    data = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    path.write_bytes(data)
    return path


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(300)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def good_pictures() -> dict[str, bytes]:
    """Below class folders: pictures of several sizes, modes and formats, no two alike."""
    made = {}
    for label, name in enumerate(CLASSES):
        for number in range(PER_CLASS):
            seed = 100 * label + number
            made[f"{name}/{number}.png"] = encoded(pixels(seed, 20 + 8 * number, 30))
        grey = Image.fromarray(pixels(900 + label)).convert("L")
        made[f"{name}/grey ñ.png"] = encoded(grey)
        made[f"{name}/Фото 😀.JPG"] = encoded(pixels(950 + label), "JPEG", quality=90)
    made["owl/nested/deep/palette.gif"] = encoded(pixels(990), "GIF")
    made["owl/clear.webp"] = encoded(Image.fromarray(pixels(991)).convert("RGBA"), "WEBP", lossless=True)
    return made


def unreadable_files() -> dict[str, bytes]:
    whole = encoded(pixels(1))
    return {
        "owl/empty.png": b"",
        "owl/cut.png": whole[: len(whole) // 2],
        "owl/text.jpg": b"this is no picture",
        "owl/bomb.png": bomb(),
    }


def duplicates(good: dict[str, bytes]) -> dict[str, bytes]:
    """The same bytes in a class and in another, and pictures at another size or quality."""
    return {
        "owl/copy of 1.png": good["owl/1.png"],
        "犬/owl.png": good["owl/2.png"],
        "owl/3 smaller.jpg": encoded(pixels(403, 22, 15), "JPEG", quality=85),
    }


def clutter() -> dict[str, bytes]:
    names = (
        ".DS_Store",
        "owl/Thumbs.db",
        "__MACOSX/owl/._1.png",
        "owl/.1.png",
        "owl/@eaDir/1.png",
        "desktop.ini",
    )
    return dict.fromkeys(names, b"clutter")


def faulty_files() -> dict[str, bytes]:
    """Everything but links and empty folders, which a zip made of this cannot hold."""
    good = good_pictures()
    beside = {"README.txt": b"about", "owl/notes.txt": b"notes", "loose.png": encoded(pixels(7777))}
    return good | unreadable_files() | duplicates(good) | clutter() | beside


def make_faulty(folder: Path) -> Path:
    """All faults below `folder`, which is made. No file here is larger than a few kilobytes."""
    for name, data in faulty_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "nothing here").mkdir()
    (folder / "owl" / "broken link.png").symlink_to("not there.png")
    (folder / "owl" / "round and round").symlink_to("..")
    (folder / "owl" / "itself.png").symlink_to("itself.png")
    return folder


if __name__ == "__main__":
    print(make_faulty(Path(sys.argv[1])))
