"""images.npz of a run: the confusion matrix of each validation image, of both checkpoints.

Few classes occur in an image, so nearly all counts are zero. Only the others are kept, which compress to about 100
bytes per image and checkpoint. Arrays of the file, with n images of C classes:

    ids               the image ids in the validation list's order, UTF-8, separated by line feeds
    classes           C
    <name>.entries    (n,): how many counts of an image are not zero; name: "best" or "last"
    <name>.cells      (sum of entries,): where they are, target class * C + predicted class
    <name>.pixels     (sum of entries,): the counts

Equal counts give equal bytes, and evaluation.json holds their SHA-256.
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from u2pl.errors import UserError
from u2pl.files import atomic_path, sha256

Counts = NDArray[np.int64]
CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class Confusions:
    """Of every image: counts[checkpoint] is (images, C, C), rows of target classes; ids has the images' names."""

    ids: list[str]
    counts: dict[str, Counts]


def write_confusions(path: Path, confusions: Confusions) -> str:
    """Write images.npz atomically and return its SHA-256. Raises UserError if it cannot be written."""
    n_images, n_classes = confusions.counts["best"].shape[:2]
    text = np.frombuffer("\n".join(confusions.ids).encode(), dtype=np.uint8)
    arrays = {"ids": text, "classes": np.array(n_classes)}
    for name in CHECKPOINTS:
        flat = confusions.counts[name].reshape(n_images, -1)
        image, cell = flat.nonzero()
        found = {"entries": np.bincount(image, minlength=n_images), "cells": cell, "pixels": flat[image, cell]}
        for kind, values in found.items():
            arrays[f"{name}.{kind}"] = values.astype(np.min_scalar_type(values.max(initial=0)))
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # its only other argument is a flag
        return sha256(temporary)


def read_confusions(path: Path, data: bytes) -> Confusions:
    """What images.npz holds, from its bytes `data`. Raises UserError, naming `path`, if they are not as written."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids, n_classes = arrays["ids"].tobytes().decode().split("\n"), int(arrays["classes"])
        counts = {name: _dense(arrays, name, len(ids), n_classes) for name in CHECKPOINTS}
    except (
        BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:
        raise UserError(path, error, "the confusion matrices of a run's evaluation") from error
    return Confusions(ids, counts)


def _dense(arrays: dict[str, NDArray[np.int64]], name: str, n_images: int, n_classes: int) -> Counts:
    """(images, C, C). Raises ValueError or LookupError if the arrays do not fit together."""
    entries, cells, pixels = (arrays[f"{name}.{kind}"] for kind in ("entries", "cells", "pixels"))
    if any(values.dtype.kind != "u" or values.ndim != 1 for values in (entries, cells, pixels)):
        raise ValueError(f"{name}: arrays that are no lists of counts")
    if len(entries) != n_images:
        raise ValueError(f"{name}: {len(entries)} matrices of {n_images} images")
    flat = np.zeros((n_images, n_classes**2), dtype=np.int64)
    flat[np.repeat(np.arange(n_images), entries), cells] = pixels
    return flat.reshape(n_images, n_classes, n_classes)
