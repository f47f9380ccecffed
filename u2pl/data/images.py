"""Decoding of images and masks with the checks every reader needs."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from u2pl.errors import UserError

UInt8 = NDArray[np.uint8]

# Pillow refuses images of more than twice as many pixels before it makes room for them; a Cityscapes frame has 2**21.
Image.MAX_IMAGE_PIXELS = 1 << 24


def decode(content: bytes, where: object, formats: tuple[str, ...] = ("JPEG", "PNG")) -> Image.Image:
    """Decode completely, whatever the name's ending says. Raises UserError unless the bytes are a whole image of
    one of the `formats`: among Pillow's others are some that start programs.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        image.load()
    except UnidentifiedImageError as error:  # whose message shows an address in memory
        kind = f"{len(content)} bytes that are no {' or '.join(formats)}" if content else "an empty file"
        raise UserError(where, kind, "a complete image") from error
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise UserError(where, str(error) or type(error).__name__, "a complete image") from error
    return image


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(path, "no file", "an image") from error
    except OSError as error:
        raise UserError(path, error.strerror, "a readable file") from error


def decode_image(content: bytes, where: object) -> UInt8:
    """(H, W, 3) uint8 RGB; grey images are repeated over the channels."""
    return np.array(decode(content, where).convert("RGB"), dtype=np.uint8)


def decode_mask(content: bytes, where: object) -> UInt8:
    """(H, W) uint8 labels: the values of an 8-bit grey PNG or the indices of a palettised one.

    Raises UserError for any other file. Pillow scales grey values of 1, 2 and 4 bits to 0 to 255: to other labels.
    """
    mask = decode(content, where, ("PNG",))
    bits, palettised = content[24], content[25] == 3  # IHDR, always the first chunk
    if mask.mode not in ("L", "P") or not (bits == 8 or palettised):
        raise UserError(where, f"image mode {mask.mode} of {bits} bits", "one 8-bit label per pixel (mode L or P)")
    return np.array(mask, dtype=np.uint8)


def encode_mask(labels: UInt8) -> bytes:
    """(H, W) uint8 labels as the bytes of a grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG")
    return stream.getvalue()


def check_size(labels: UInt8, size: tuple[int, int], where: object) -> None:
    """Raise UserError unless the mask (H, W) has the image's `size` (height, width)."""
    if labels.shape != size:
        raise UserError(where, f"a mask of {labels.shape[0]}x{labels.shape[1]}", f"its image's {size[0]}x{size[1]}")


def check_labels(labels: UInt8, n_classes: int, ignore_label: int, where: object) -> None:
    """Raise UserError if a label is neither a class (0 to n_classes - 1) nor the ignore label."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    bad = [int(value) for value in present if value >= n_classes and value != ignore_label]
    if bad:
        raise UserError(where, f"label {bad[0]}", f"0 to {n_classes - 1} or {ignore_label}")
