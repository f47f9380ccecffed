"""SBD's label files: MATLAB 5 files that are bounded before scipy reads them.

scipy inflates whatever a compressed element holds, makes room for whatever dimensions an array declares, and follows
arrays in arrays as deep as they go: a file of a megabyte can take gigabytes, or the process.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from u2pl.errors import UserError

_LARGEST = 1 << 25  # bytes when inflated; SBD's largest file has a fiftieth of it
_DEEPEST = 8  # arrays in arrays; SBD has three
_COMPRESSED, _MATRIX = 15, 14  # types of elements
_NESTING, _SPARSE, _OPAQUE = (1, 2, 3), 5, 17  # classes of arrays: cells, structs and objects, ...


def read_segmentation(content: bytes, where: object) -> NDArray[Any]:
    """GTcls.Segmentation of an SBD class file, (H, W) of an integer type.

    Raises UserError if the bytes are not such a file, or would take more than `_LARGEST` bytes.
    """
    try:
        stream: Any = io.BytesIO(_inflated(content))  # the stubs know paths only
        labels = scipy.io.loadmat(stream, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises whatever the damaged bytes lead to
        raise UserError(where, f"{type(error).__name__} {error}", "GTcls.Segmentation of SBD") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UserError(where, f"Segmentation of shape {np.shape(labels)}", "an (H, W) array of labels")
    return labels


def _inflated(content: bytes) -> bytes:
    """The same file without compression. Raises ValueError beyond the bounds."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("no MATLAB 5 file")
    parts, size = [content[:128]], 128
    for kind, element, whole in _elements(content[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            whole = unpacker.decompress(element, _LARGEST - size + 1)
            if unpacker.unconsumed_tail or len(whole) + size > _LARGEST:
                raise ValueError(f"more than {_LARGEST} bytes when inflated")
        size += len(whole)
        parts.append(whole)
    inflated = b"".join(parts)
    for kind, element, _ in _elements(inflated[128:], order):
        if kind == _MATRIX:
            _check_array(element, order, 1)
    return inflated


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, data, data with its tag and padding) of one data element after the other."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:  # a small element: size and type in one word, the data in the next
            yield kind & 0xFFFF, content[at + 4 : at + 4 + (kind >> 16)], content[at : at + 8]
            at += 8
            continue
        padded = size if kind == _COMPRESSED else -(-size // 8) * 8
        if at + 8 + size > len(content):
            raise ValueError(f"an element of {size} bytes in a file with {len(content) - at - 8} more")
        yield kind, content[at + 8 : at + 8 + size], content[at : at + 8 + padded]
        at += 8 + padded


def _check_array(content: bytes, order: str, depth: int) -> None:
    """Raise ValueError if an array declares more entries than it has bytes, or is too deep in others."""
    if depth > _DEEPEST:
        raise ValueError(f"arrays in arrays, more than {_DEEPEST} deep")
    parts = list(_elements(content, order))
    if not parts:
        return  # an empty cell
    if len(parts) < 2 or len(parts[0][1]) < 4:
        raise ValueError("an array without flags or dimensions")
    kind = struct.unpack_from(f"{order}I", parts[0][1])[0] & 0xFF
    if kind == _OPAQUE:
        raise ValueError("an object of MATLAB's own")
    sides = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1][: len(parts[1][1]) // 4 * 4])
    inner = [element for kind, element, _ in parts[2:] if kind == _MATRIX]
    room = max(1, len(inner)) if kind in _NESTING else len(content)
    if kind != _SPARSE and math.prod(map(abs, sides)) > room:
        raise ValueError(f"an array of {sides} entries in {len(content)} bytes")
    for element in inner:
        _check_array(element, order, depth + 1)
