"""Decoding of images and masks with the checks every reader needs."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2pl.errors import UserError

UInt8 = NDArray[np.uint8]

# Pillow refuses images of more than twice as many pixels before it makes room for them; a Cityscapes frame has 2**21.
Image.MAX_IMAGE_PIXELS = 1 << 24


def decode(content: bytes, where: object) -> Image.Image:
    """Decode completely. Raises UserError if the bytes are no image or stop too early."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    # Pillow raises SyntaxError for broken PNG chunks and ValueError for some malformed headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(where, str(error).replace(f"{io.BytesIO.__name__}", "bytes"), "a complete image") from error
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
    """(H, W) uint8 labels: a grey PNG's values or a palettised PNG's indices. Raises UserError for other modes."""
    mask = decode(content, where)
    if mask.mode not in ("L", "P"):
        raise UserError(where, f"image mode {mask.mode}", "one 8-bit label a pixel (mode L or P)")
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
