"""Which bytes are an image or a mask, and which are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from u2pl.data.images import decode, decode_image, decode_mask
from u2pl.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def png(bits: int, colour: int, rows: list[bytes], palette: bytes = b"") -> bytes:
    """A PNG written by hand from packed rows, as its specification has it; 16 / `bits` pixels wide."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 16 // bits, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_read_raw_or_refused(bits: int) -> None:
    """Pillow scales grey values to 0 to 255: label 1 of 4 bits would be 17."""
    rows, most = [bytes([0b00011011, 0b11100100])], 2**bits - 1
    expected = [(0b0001101111100100 >> (16 - bits * (i + 1))) & most for i in range(16 // bits)]
    colours = bytes(range(3 * (most + 1)))
    assert decode_mask(png(bits, 3, rows, colours), "mask").tolist() == [expected]
    with pytest.raises(UserError, match=f"mask: found image mode .* of {bits} bits, expected one 8-bit label"):
        decode_mask(png(bits, 0, rows), "mask")


def test_eight_bits_are_labels_and_sixteen_are_not() -> None:
    assert decode_mask(png(8, 0, [bytes([7, 255])]), "mask").tolist() == [[7, 255]]
    with pytest.raises(UserError, match="of 16 bits"):
        decode_mask(png(16, 0, [bytes([7, 255])]), "mask")


@pytest.mark.parametrize("content", [EPS, saved("GIF"), saved("TIFF"), saved("PPM"), saved("BMP")])
def test_other_formats_are_refused_whatever_they_are_called(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript for EPS."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", started.append)
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: started.append(arguments))
    for function in (decode, decode_image, decode_mask):
        with pytest.raises(UserError, match=f"a.jpg: found {len(content)} bytes that are no .*PNG"):
            function(content, "a.jpg")
    assert not started


def test_masks_are_png_only() -> None:
    assert decode_image(saved("JPEG"), "image").shape == (8, 8, 3)
    with pytest.raises(UserError, match="no PNG"):
        decode_mask(saved("JPEG"), "mask")


@pytest.mark.parametrize(("content", "message"), [(b"", "an empty file"), (b"\xff\xd8\xff", "3 bytes that are no|")])
def test_messages_are_about_the_file(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"a.jpg: found {message}") as caught:
        decode_image(content, "a.jpg")
    assert "0x" not in str(caught.value)
