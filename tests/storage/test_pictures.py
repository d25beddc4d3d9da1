"""Pictures of users: every kind is read as a viewer shows it, or refused in one line, in time."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.pictures import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = PIXELS[..., 0]
ON_WHITE = (PIXELS * 0.25 + 255 * 0.75).round().astype(np.uint8)


def half_transparent() -> Image.Image:
    alpha = np.full((6, 9, 1), 64, np.uint8)  # A quarter.
    return Image.fromarray(np.concatenate([PIXELS, alpha], -1))


def palette(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


FEW = PICTURE.quantize(7)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # The camera was held upright: turned clockwise when shown.

READ: dict[str, tuple[Image.Image, str, dict[str, Any], np.ndarray, int]] = {
    "plain": (PICTURE, "a.png", {}, PIXELS, 0),
    "wrong suffix": (PICTURE, "a.jpg", {"format": "PNG"}, PIXELS, 0),
    "bmp": (PICTURE, "a.bmp", {}, PIXELS, 0),
    "webp": (PICTURE, "a.webp", {"lossless": True}, PIXELS, 0),
    "grey": (Image.fromarray(GREY), "a.png", {}, np.stack([GREY] * 3, -1), 0),
    "16 bits": (
        Image.fromarray(GREY.astype(np.uint16) * 257),
        "a.png",
        {},
        np.stack([GREY] * 3, -1),
        0,
    ),
    "black and white": (
        Image.fromarray(GREY > 127),
        "a.png",
        {},
        np.stack([(GREY > 127) * np.uint8(255)] * 3, -1),
        0,
    ),
    "palette": (FEW, "a.png", {}, palette(FEW), 0),
    "still gif": (FEW, "a.gif", {}, palette(FEW), 0),
    "alpha": (half_transparent(), "a.png", {}, ON_WHITE, 1),
    "opaque alpha": (PICTURE.convert("RGBA"), "a.png", {}, PIXELS, 0),
    "one transparent colour": (
        Image.new("RGB", (9, 6), (1, 2, 3)),
        "a.png",
        {"transparency": (1, 2, 3)},
        np.full((6, 9, 3), 255, np.uint8),
        0,
    ),
    "cmyk": (
        Image.new("CMYK", (9, 6), (0, 255, 255, 0)),
        "a.jpg",
        {"quality": 100},
        np.full((6, 9, 3), (255, 0, 0), np.uint8),
        3,
    ),
    "turned": (PICTURE, "a.png", {"exif": TURNED}, np.rot90(PIXELS, -1), 0),
}


@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_as_they_are_shown(name: str, tmp_path: Path) -> None:
    image, file, options, wanted, within = READ[name]
    image.save(tmp_path / file, **options)
    found = read_picture(tmp_path / file)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= within


def bomb(path: Path, side: int) -> None:
    """A PNG of `side` x `side` black pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    packer, rows = zlib.compressobj(9), bytes(side // 8 + 2) * 64
    data = b"".join(packer.compress(rows) for _ in range(side // 64 + 1)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def animated(path: Path) -> None:
    PICTURE.save(path, format="GIF", save_all=True, append_images=[Image.new("RGB", (9, 6))])


def cut(path: Path) -> None:
    Image.fromarray(np.tile(PIXELS, (20, 20, 1))).save(path, format="JPEG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    PICTURE.save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 30] ^= 16
    path.write_bytes(content)


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a jpeg": (cut, "cannot be read"),
    "damaged data": (flipped, "cannot be read"),
    "13,300 pixels square": (lambda path: bomb(path, 13_300), "pixels; make it smaller"),
    "8,200 pixels square": (lambda path: bomb(path, 8_200), "8,200 x 8,200 pixels; make it small"),
    "animated": (animated, "has 2 frames; give a file of one picture"),
    "floats": (
        lambda path: Image.fromarray(GREY.astype(np.float32)).save(path, format="TIFF"),
        "numbers of 32 bits",
    ),
    "a program": (postscript, "is not an image; give a PNG or JPEG file"),
    "text": (lambda path: path.write_text("no"), "is not an image"),
    "empty": (lambda path: path.touch(), "is not an image"),
    "missing": (lambda path: None, "does not exist; correct the path"),
    "pipe": (os.mkfifo, "is a pipe; give a plain file"),
    "folder": (os.mkdir, "Is a directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_picture_is_one_line(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "picture"
    make(path)
    with pytest.raises(UserError, match=message) as error:
        read_picture(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@given(st.data())
def test_any_damage_is_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
    PICTURE.save(path, format=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    said = ""
    try:
        assert read_picture(path).ndim == 3
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or said.startswith(f"{path}: ")


MEASURED = """
import sys
from pathlib import Path
import numpy, PIL.Image, PIL.ImageOps, PIL.PngImagePlugin
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.pictures import read_picture


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


before = peak()
try:
    read_picture(Path(sys.argv[1]))
except UserError:
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_picture_that_explodes_is_refused_before_it_does(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png", 13_300)
    assert (tmp_path / "bomb.png").stat().st_size < 30_000
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 2**10  # kB; it takes 942 MiB decoded
