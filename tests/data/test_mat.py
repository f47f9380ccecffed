"""SBD's label files: what scipy reads of them, within bounds."""

import io
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from u2pl.data.mat import read_segmentation
from u2pl.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 21, (37, 50)).astype(np.uint8)
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def mat(compressed: bool = True, **fields: Any) -> bytes:
    stream: Any = io.BytesIO()
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[scipy.sparse.csc_array((37, 50), dtype=float)] for _ in range(20)]
    content = {"Segmentation": LABELS, "CategoriesPresent": np.array([[3.0]]), "Boundaries": boundaries} | fields
    scipy.io.savemat(stream, {"GTcls": content, "other": 1.0}, do_compression=compressed)
    return stream.getvalue()


def element(kind: int, content: bytes) -> bytes:
    padded = content if kind == 15 else content.ljust(-(-len(content) // 8) * 8, b"\0")
    return struct.pack("<II", kind, len(content)) + padded


def array(kind: int, sides: tuple[int, ...], *parts: bytes, name: bytes = b"GTcls") -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    dimensions = element(5, struct.pack(f"<{len(sides)}i", *sides))
    return element(14, flags + dimensions + element(1, name) + b"".join(parts))


@pytest.mark.parametrize("compressed", [True, False])
def test_it_reads_what_scipy_reads(compressed: bool) -> None:
    content = mat(compressed)
    stream: Any = io.BytesIO(content)
    expected = scipy.io.loadmat(stream)["GTcls"]["Segmentation"][0, 0]
    np.testing.assert_array_equal(read_segmentation(content, "a.mat"), expected)
    np.testing.assert_array_equal(expected, LABELS)


def nested(depth: int) -> bytes:
    inner = array(9, (1, 1), element(2, b"\1"), name=b"")
    for _ in range(depth):
        inner = array(1, (1, 1), inner, name=b"")
    return inner


BOMBS = {
    "inflates": HEADER + element(15, zlib.compress(array(9, (20_000, 10_000), element(2, bytes(200_000_000))), 1)),
    "declares numbers": HEADER + array(9, (2**31 - 1, 1), element(2, b"\1")),
    "declares cells": HEADER + array(1, (30_000, 10_000), nested(0)),
    "declares structs": HEADER + array(2, (30_000, 10_000), element(5, struct.pack("<i", 4)), element(1, b"abc\0")),
    "is deep": HEADER + nested(20_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(bomb: str) -> None:
    content = BOMBS[bomb]
    assert len(content) < 2_000_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="a.mat: found ValueError .*expected GTcls.Segmentation of SBD"):
            read_segmentation(content, "a.mat")
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_is_one_line_or_harmless(compressed: bool) -> None:
    good, refused = mat(compressed), 0
    for seed in range(300):
        rng = random.Random(seed)
        bad = bytearray(good)
        if seed % 6 == 0:
            bad = bad[: rng.randrange(len(bad))]
        else:
            bad[rng.randrange(len(bad) if seed % 2 else 400)] ^= 1 << rng.randrange(8)
        try:
            read_segmentation(bytes(bad), "a.mat")
        except UserError as error:
            refused += 1
            assert str(error).startswith("a.mat: found ")
    assert refused > 50
